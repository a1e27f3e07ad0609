"""Which norm, which weights and which statistics score best, found on held-out training cases.

    python tests/benchmarks/norms.py DATA --exclude '1[5-9].png' --validation 3 --steps 600 --seeds 0 1 2

Trains the planned U-Net with each norm and seed for equally many steps on the cases that the patterns leave, less those
held out, and prints their mean Dice when the training is over, with the spread over the seeds. From each training come
four models: the weights of the last step or the average over the steps, each with batch norm's running statistics or
with those recomputed on training patches. `frozen` is batch norm whose statistics are recomputed after half of the
steps and stay so from there on, in training too. Test cases never take part.
"""

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from unittest.mock import patch

from monai.bundle import run
from torch import nn

from fewscan.training import TrainingRun
from fewscan.training.final import FinalWeights
from fewscan.training.plan import plan
from fewscan.training.run import train

STEPS_AN_EPOCH = 50
NORMS = ("batch", "frozen", "instance", "none")
MODELS = ("last, running", "last, recomputed", "average, running", "average, recomputed")
wear, start_epoch = FinalWeights.wear, TrainingRun._start_epoch


def main() -> None:
    """Print a table: one line a norm, one column a model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("--exclude", action="append", default=[])
    parser.add_argument("--validation", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    print(f"| norm, {options.steps} steps, seeds {options.seeds} | " + " | ".join(MODELS) + " | s a step |")
    print("|---" * (len(MODELS) + 2) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for norm in options.norms:
            with redirect_stdout(sys.stderr):  # what plan and train say
                scored = [scores(options, norm, seed, Path(folder) / f"{norm}_{seed}") for seed in options.seeds]
            cells = [told([of_seed[name] for of_seed in scored]) for name in MODELS]
            seconds = statistics.fmean(of_seed["seconds"] for of_seed in scored) / options.steps
            print(f"| {norm} | " + " | ".join(cells) + f" | {seconds:.3f} |", flush=True)


def told(dice: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.fmean(dice):.4f}" + (f" ± {statistics.stdev(dice):.4f}" if len(dice) > 1 else "")


def scores(options: argparse.Namespace, norm: str, seed: int, bundle: Path) -> dict[str, float]:
    """Mean Dice of the held-out cases, drawn alike for every seed, for each of `MODELS`; and `seconds` of training."""
    plan(options.data, bundle, include=options.include, exclude=options.exclude, validation=options.validation)
    for name in ("train", "inference"):
        file = bundle / "configs" / f"{name}.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config["network_def"]["norm"] = {"none": None, "frozen": "batch"}.get(norm, norm)
        epochs = max(1, round(options.steps / STEPS_AN_EPOCH))
        changed = {"epochs": epochs, "steps_per_epoch": STEPS_AN_EPOCH, "patience": None, "val_interval": 10**6}
        config |= {**changed, "seed": seed} if name == "train" else {}
        file.write_text(json.dumps(config), encoding="utf-8")
    start = time.monotonic()
    freezing = patch.object(TrainingRun, "_start_epoch", freeze_at_half) if norm == "frozen" else patch.dict({})
    with patch.object(FinalWeights, "wear", wear_each(bundle / "models")), freezing:
        train(bundle, device=options.device)
    seconds = time.monotonic() - start
    result = {"seconds": seconds}
    for name in MODELS:
        (bundle / "models" / f"{name}.pt").replace(bundle / "models" / "model.pt")
        configs = [str(bundle / "configs" / config) for config in ("train.json", "evaluate.json")]
        device = f"$torch.device({options.device!r})"
        run(config_file=configs, bundle_root=str(bundle), logging_file=False, device=device)
        with (bundle / "evaluation" / "metrics.csv").open(encoding="utf-8") as file:
            result[name] = float(next(row[1] for row in csv.reader(file) if row[0] == "val_mean_dice"))
    return result


def wear_each(folder: Path):
    """Writes the four models on the way; at the end, for these trainings look at the held-out cases but once."""

    def wear_and_write(self, engine) -> None:
        if not self.worn:
            last = FinalWeights(self.network, self.sampler, self.step, average=False)
            last.write(folder / f"{MODELS[0]}.pt")
            own = {name: value.clone() for name, value in self.network.state_dict().items()}
            wear(last, engine)
            last.write(folder / f"{MODELS[1]}.pt")
            last.take_off()
            self.average.copy_to(self.network)
            self.write(folder / f"{MODELS[2]}.pt")
            self.network.load_state_dict(own)
            wear(self, engine)
            self.write(folder / f"{MODELS[3]}.pt")

    return wear_and_write


def freeze_at_half(self, engine) -> None:
    """Batch norm gets the statistics of the present weights and keeps them: `train()` does not reach it any more."""
    if 2 * (engine.state.epoch - 1) >= engine.state.max_epochs and not hasattr(self, "frozen"):
        self.frozen = FinalWeights(self.network, self.sampler, self.step, average=False)
        wear(self.frozen, engine)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
                module.eval()
                module.train = lambda mode=True, module=module: module
    start_epoch(self, engine)


if __name__ == "__main__":
    main()
