"""What border weights are worth: objects found in held-out images, by the Cell Tracking Challenge's SEG.

    python tests/benchmarks/border_weights.py DATA --test '0*' --test '1*' --minutes 10 --seeds 0 1 2

DATA holds images with one mask per object, or maps of object numbers, as dsb2018 does. For each seed two bundles are
planned and trained on the cases that no `--test` pattern (on the case's name) matches: they differ in `border_weights`
alone. Objects are the connected pieces of the mask (4 neighbours). Prints SEG, the number of objects, and how many true
objects share a piece with another, for each training and their means. Test cases never take part in anything else.
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.metrics.cell_tracking import seg
from fewscan.metrics.objects import components
from fewscan.runs.predictor import Predictor
from fewscan.scans import Case, match_grid, open_scan
from fewscan.scans.labels import read_instances
from fewscan.training.material import read_material
from fewscan.training.plan import write_plan
from fewscan.training.run import train

BORDERS = {"off": None, "on": {"height": 10.0, "sd": 5.0}}


def main() -> None:
    """Print a table: one line a training, and the means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--test", action="append", required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--device")
    options = parser.parse_args()
    with redirect_stdout(sys.stderr):  # what plan and train say
        material = read_material(options.data, merge_masks="object")
    cases = material.cases.cases
    tested = [case for case in cases if any(fnmatch(case.name, pattern) for pattern in options.test)]
    learned = [case for case in cases if case not in tested]
    print(f"{len(learned)} cases to train on, {len(tested)} to test, {options.minutes:g} minutes each\n")
    print("| border weights | seed | SEG | objects found | true objects | that share a piece |\n" + "|---" * 6 + "|")
    scores: dict[str, list[float]] = {name: [] for name in BORDERS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for name, border in BORDERS.items():
                with redirect_stdout(sys.stderr):
                    bundle, settings = Path(folder) / f"{name}_{seed}", {"border_weights": border}
                    settings |= {"minutes": options.minutes}
                    write_plan(material, bundle, learned, [], "none", decide_by=learned, seed=seed, settings=settings)
                    train(bundle, device=options.device)
                    predictor = Predictor(bundle, options.device)
                    frames = [segmented(predictor, case, material.cases.channels) for case in tested]
                scores[name].append(seg(frames))
                found, true = (sum(len(np.unique(one[one > 0])) for one in side) for side in zip(*frames, strict=True))
                together = sum(sharing(answer, truth) for answer, truth in frames)
                print(f"| {name} | {seed} | {scores[name][-1]:.4f} | {found} | {true} | {together} |", flush=True)
    for name, all_of in scores.items():
        print(f"| {name} | mean | {statistics.mean(all_of):.4f} | | | |")


def segmented(predictor: Predictor, case: Case, channels: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(answer, truth) of an image: object numbers (i, j)."""
    scan = open_scan(case.image, channels)
    answer = components(predictor(scan)[..., 0] > 0)
    numbers, grid = read_instances(case.label)
    return answer, match_grid(numbers, grid, scan.grid, case.name)[..., 0]


def sharing(answer: np.ndarray, truth: np.ndarray) -> int:
    """True objects whose piece (the one that covers most of them) is another's too."""
    pieces = []
    for number in np.unique(truth[truth > 0]):
        inside = answer[truth == number]
        if (inside > 0).mean() > 0.5:
            pieces.append(int(np.bincount(inside[inside > 0]).argmax()))
    return sum(pieces.count(piece) > 1 for piece in pieces)


if __name__ == "__main__":
    main()
