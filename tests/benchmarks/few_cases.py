"""What elastic deformation is worth when 1, 2, 5 or 10 cases are labelled.

    python tests/benchmarks/few_cases.py DATA --test 'hippocampus_[23]*' --minutes 3

For each number of cases and each seed, cases are drawn from those that no `--test` pattern (on the case's name)
matches. Two bundles are planned for them and trained; they differ in `augmentation::elastic_sd` alone, which is 0 in
one: that one still turns, scales and, where planned, flips. Prints the mean Dice of the test cases on their own grids
for each training, and for each number of cases the gain, its mean over the seeds and its standard error. Test cases
never take part in anything else.
"""

import argparse
import random
import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from fnmatch import fnmatch
from pathlib import Path

from fewscan.bundle import read_json
from fewscan.labels import LabelTable
from fewscan.runs.predictor import Predictor, read_settings
from fewscan.runs.score import label_reading, score_case
from fewscan.scans import Case
from fewscan.training.material import Material, read_material
from fewscan.training.plan import write_plan
from fewscan.training.run import train


def main() -> None:
    """Print two tables: the trainings, and the gains."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--include", action="append", default=[])
    parser.add_argument("--test", action="append", required=True)
    parser.add_argument("--most", type=int, default=40, help="test cases, the first ones by name")
    parser.add_argument("--cases", type=int, nargs="+", default=[1, 2, 5, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    with redirect_stdout(sys.stderr):  # what plan and train say
        material = read_material(options.data, include=options.include)
    named = sorted(material.cases.cases, key=lambda case: case.name)
    tested = [case for case in named if any(fnmatch(case.name, pattern) for pattern in options.test)]
    pool = [case for case in named if case not in tested]
    tested = tested[: options.most]
    print(f"{len(tested)} test cases, {options.minutes:g} minutes a training\n")
    print("| cases | seed | elastic | steps | mean Dice | worst case |\n" + "|---" * 6 + "|")
    gains: dict[int, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in options.cases:
            for seed in options.seeds:
                learned = random.Random(f"{number} of {seed}").sample(pool, number)
                dice = {}
                for elastic in ("off", "on"):
                    bundle = Path(folder) / f"{number}_{seed}_{elastic}"
                    with redirect_stdout(sys.stderr):
                        steps = trained(material, learned, bundle, seed, elastic == "on", options)
                        scores = scored(bundle, tested, options.device)
                    dice[elastic] = statistics.mean(scores)
                    line = f"| {number} | {seed} | {elastic} | {steps} | {dice[elastic]:.4f} | {min(scores):.4f} |"
                    print(line, flush=True)
                gains.setdefault(number, []).append(dice["on"] - dice["off"])
    print("\n| cases | gain in Dice by elastic deformation, mean (standard error) |\n|---|---|")
    for number, each in gains.items():
        error = f"{statistics.stdev(each) / len(each) ** 0.5:.4f}" if len(each) > 1 else "one seed"
        print(f"| {number} | {statistics.mean(each):+.4f} ({error}) |")


def trained(
    material: Material, learned: list[Case], bundle: Path, seed: int, elastic: bool, options: argparse.Namespace
) -> int:
    """Plan and train; the number of steps."""
    settings = {"minutes": options.minutes}
    made = write_plan(material, bundle, learned, [], "none", decide_by=learned, seed=seed, settings=settings)
    augmentation = dict(made.settings["augmentation"])
    if not elastic:
        augmentation["elastic_sd"] = 0.0
    train(bundle, device=options.device, settings={"augmentation": augmentation})
    return int(read_json(bundle / "models" / "training.json")["steps"])


def scored(bundle: Path, tested: list[Case], device: str) -> list[float]:
    """Mean Dice over the labels, of each case."""
    settings, reading = read_settings(bundle), label_reading(read_json(bundle / "configs" / "train.json"))
    predictor, table = Predictor(bundle, device), LabelTable.from_json(settings["labels"])
    return [score_case(predictor, settings["channels"], table, case, reading).score.dice for case in tested]


if __name__ == "__main__":
    main()
