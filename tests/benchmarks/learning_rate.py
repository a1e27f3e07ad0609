"""Which learning rate each network wants, found on training data alone.

    python tests/benchmarks/learning_rate.py DATA --exclude '1[5-9].png' --validation 3 --steps 300

Trains every network at every rate for equally many steps on the cases that the patterns leave, less those held out,
and prints the mean Dice of the held-out ones when the training is over. Test cases never take part.
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path

from fewscan.training.plan import plan
from fewscan.training.run import train
from fewscan.training.settings import NETWORK_DEF

STEPS_AN_EPOCH = 50


def main() -> None:
    """Print a table: one line a network, one column a rate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("--exclude", action="append", default=[])
    parser.add_argument("--validation", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0005, 0.002, 0.008, 0.03])
    parser.add_argument("--networks", nargs="+", default=list(NETWORK_DEF))
    options = parser.parse_args()
    print(f"| network, {options.steps} steps | " + " | ".join(f"{rate:g}" for rate in options.rates) + " |")
    print("|---" * (len(options.rates) + 1) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for network in options.networks:
            with redirect_stdout(sys.stderr):  # what plan and train say
                scores = [score(options, network, rate, Path(folder) / f"{network}_{rate:g}") for rate in options.rates]
            print(f"| {network} | " + " | ".join(f"{dice:.3f} ({s:.0f} s)" for dice, s in scores) + " |", flush=True)


def score(options: argparse.Namespace, network: str, rate: float, bundle: Path) -> tuple[float, float]:
    """(mean Dice of the held-out cases, seconds of training)."""
    plan(
        options.data,
        bundle,
        include=options.include,
        exclude=options.exclude,
        validation=options.validation,
        network=network,
    )
    file = bundle / "configs" / "train.json"
    epochs = max(1, round(options.steps / STEPS_AN_EPOCH))
    changed = {"learning_rate": rate, "epochs": epochs, "steps_per_epoch": STEPS_AN_EPOCH, "val_interval": epochs}
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changed}), encoding="utf-8")
    start = time.monotonic()
    train(bundle, device="cpu")
    record = json.loads((bundle / "models" / "training.json").read_text(encoding="utf-8"))
    return record["validation"]["val_mean_dice"], time.monotonic() - start


if __name__ == "__main__":
    main()
