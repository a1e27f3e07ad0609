"""What it costs to annotate only some slices of each case.

    python tests/benchmarks/sparse.py DATA --train 'hippocampus_0[0-5]*' --test 'hippocampus_[01]*' --minutes 3

Trains on the same cases twice: with all slices labelled, and with labels in every (1 / share)-th slice across `--axis`
alone, the others empty, as a person leaves them who annotates a few. `fewscan plan` has to see that by itself. Prints
the mean Dice of the test cases on their own grids for each training, and the loss. Test cases never take part in
anything else.
"""

import argparse
import statistics
import sys
import tempfile
from contextlib import redirect_stdout
from fnmatch import fnmatch
from pathlib import Path

import nibabel
import numpy as np
from few_cases import scored

from fewscan.bundle import read_json
from fewscan.scans import find_cases
from fewscan.training.plan import plan
from fewscan.training.run import train


def main() -> None:
    """Print a table: one line a training, and the loss."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="images/ and labels/ of NIfTI files with equal names")
    parser.add_argument("--train", action="append", required=True, help="pattern on the file name without its ending")
    parser.add_argument("--test", action="append", required=True)
    parser.add_argument("--most", type=int, default=40, help="test cases, the first ones by name")
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--axis", type=int, default=2, help="of the label file's array, across which slices lie")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    names = sorted(file.name for file in (options.data / "labels").glob("*.nii.gz"))
    chosen = [n for n in names if any(fnmatch(n.removesuffix(".nii.gz"), pattern) for pattern in options.train)]
    with redirect_stdout(sys.stderr):
        cases = sorted(find_cases(options.data).cases, key=lambda case: case.name)
    tested = [case for case in cases if any(fnmatch(case.name, p) for p in options.test)]
    tested = [case for case in tested if f"{case.name}.nii.gz" not in chosen][: options.most]
    print(f"{len(chosen)} cases to train on, {len(tested)} to test, {options.minutes:g} minutes each\n")
    print("| slices labelled | seed | `sparse` | steps | mean Dice | worst case |\n" + "|---" * 6 + "|")
    dice: dict[str, list[float]] = {"all": [], f"{options.share:.0%}": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for kind in dice:
                data, bundle = Path(folder) / f"{kind}_{seed}", Path(folder) / f"bundle_{kind}_{seed}"
                copy_cases(options, chosen, data, 1.0 if kind == "all" else options.share, seed)
                with redirect_stdout(sys.stderr):
                    made = plan(data, bundle, validation=0, seed=seed, minutes=options.minutes)
                    train(bundle, device=options.device)
                    scores = scored(bundle, tested, options.device)
                steps = read_json(bundle / "models" / "training.json")["steps"]
                dice[kind].append(statistics.mean(scores))
                shown = f"{made.settings['sparse']} | {steps} | {dice[kind][-1]:.4f} | {min(scores):.4f}"
                print(f"| {kind} | {seed} | {shown} |", flush=True)
    every, few = dice.values()
    print(f"\nloss: {statistics.mean(a - b for a, b in zip(every, few, strict=True)):+.4f}")


def copy_cases(options: argparse.Namespace, names: list[str], folder: Path, share: float, seed: int) -> None:
    """Images as they are, and labels of which a share of the slices is kept, evenly spaced from a random first one."""
    step = round(1 / share)
    random = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for name in names:
        (folder / "images" / name).write_bytes((options.data / "images" / name).read_bytes())
        image = nibabel.load(options.data / "labels" / name)
        values = np.moveaxis(np.array(image.dataobj), options.axis, 0)
        kept = np.arange(len(values)) % step == random.integers(step)
        values[~kept] = 0
        whole = np.ascontiguousarray(np.moveaxis(values, 0, options.axis))
        nibabel.save(nibabel.Nifti1Image(whole, image.affine, image.header), folder / "labels" / name)


if __name__ == "__main__":
    main()
