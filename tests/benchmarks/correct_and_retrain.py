"""Correct and retrain, as a loop on real data: train on 3 cases, correct the 3 worst of 10 others, train on, twice.

    python tests/benchmarks/correct_and_retrain.py DATA OUTPUT [--minutes 2] [--rounds 2] [--seed 0] [--rate 0.25]

DATA holds `images/` and `labels/` with equal names (Medical Decathlon's hippocampus). Twenty cases are held out from
the first training on; the ten that are segmented are others in each round. A correction is the true label, saved as 3D
Slicer saves it: cropped to its segments, axes reordered and reversed, by pynrrd. Prints Dice of the held-out cases
after each round, and what a training anew on the same cases for the same minutes gives (`--anew`).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import nibabel
import nrrd
import numpy as np

from fewscan.bundle import read_json
from fewscan.cli import main as fewscan
from fewscan.runs import correct

NAMES = {1: "anterior", 2: "posterior"}
FOUND, CORRECTED, HELD_OUT = 10, 3, 20


def save_as_slicer_does(label: Path, path: Path) -> None:
    """A label (i, j, k) as a cropped `.seg.nrrd` whose axes run k, i, j, the last one backwards."""
    image = nibabel.load(label)
    values = np.rint(np.asarray(image.dataobj)).astype(np.uint8)
    box = tuple(slice(at.min(), at.max() + 1) for at in np.nonzero(values))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    corner = [box[0].start, box[1].stop - 1, box[2].start, 1]
    header = {
        "space": "left-posterior-superior",
        "kinds": ["domain"] * 3,
        "space directions": np.array([lps[:3, 2], lps[:3, 0], -lps[:3, 1]]),
        "space origin": (lps @ corner)[:3],
        "encoding": "gzip",
        "Segmentation_MasterRepresentation": "Binary labelmap",
    }
    for number, (value, name) in enumerate(NAMES.items()):
        entries = {"ID": f"Segment_{value}", "Name": name, "LabelValue": str(value), "Layer": "0"}
        header |= {f"Segment{number}_{key}": text for key, text in entries.items()}
    nrrd.write(str(path), values[box].transpose(2, 0, 1)[:, :, ::-1], header)


def dice(mask: Path, label: Path) -> float:
    """Mean of both labels, by nibabel and NumPy alone."""
    answer, truth = (np.rint(np.asarray(nibabel.load(path).dataobj)) for path in (mask, label))
    return float(
        np.mean([2 * ((answer == v) & (truth == v)).sum() / ((answer == v).sum() + (truth == v).sum()) for v in NAMES])
    )


def run(*arguments: object) -> None:
    """One command line; anything but success ends the benchmark."""
    code = fewscan([str(argument) for argument in arguments])
    assert code == 0, f"{arguments}: exit code {code}"


def held_out_dice(bundle: Path, data: Path, cases: list[str], output: Path) -> float:
    """Mean over the cases, through `fewscan segment`."""
    include = [part for case in cases for part in ("--include", f"{case}.nii.gz")]
    run("segment", data / "images", "--bundle", bundle, "--output", output, *include)
    return float(np.mean([dice(output / f"{case}_seg.nii.gz", data / "labels" / f"{case}.nii.gz") for case in cases]))


def main() -> None:
    """The loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path, help="a new folder")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the first training and of each further one")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=correct.RATE, help="share of the learning rate in a round")
    parser.add_argument("--anew", action="store_true", help="also train anew on the cases of the last round")
    options = parser.parse_args()
    correct.RATE = options.rate
    data, home, minutes = options.data.resolve(), options.output.resolve(), options.minutes
    names = sorted(path.name.removesuffix(".nii.gz") for path in (data / "labels").glob("*.nii.gz"))
    names = [names[n] for n in np.random.default_rng(options.seed).permutation(len(names))]
    held_out, training, others = names[:HELD_OUT], names[HELD_OUT : HELD_OUT + 3], names[HELD_OUT + 3 :]

    def entries(cases: list[str]) -> list[dict[str, str]]:
        return [{part: str(data / f"{part}s" / f"{case}.nii.gz") for part in ("image", "label")} for case in cases]

    home.mkdir(parents=True)
    listing = {"labels": {str(v): name for v, name in NAMES.items()}}
    listing |= {"training": entries(training), "validation": entries(held_out)}
    (home / "cases.json").write_text(json.dumps(listing))
    bundle = home / "bundle"
    run("plan", home / "cases.json", "--output", bundle)
    run("train", bundle, "--minutes", minutes)
    scores = [held_out_dice(bundle, data, held_out, home / "masks-0")]
    for number in range(1, options.rounds + 1):
        found = others[(number - 1) * FOUND : number * FOUND]
        masks, corrected = home / f"found-{number}", home / f"corrected-{number}"
        include = [part for case in found for part in ("--include", f"{case}.nii.gz")]
        run("segment", data / "images", "--bundle", bundle, "--output", masks, *include)
        dices = {case: dice(masks / f"{case}_seg.nii.gz", data / "labels" / f"{case}.nii.gz") for case in found}
        corrected.mkdir()
        for case in sorted(dices, key=lambda case: dices[case])[:CORRECTED]:
            save_as_slicer_does(data / "labels" / f"{case}.nii.gz", corrected / f"{case}.seg.nrrd")
        run("train", bundle, "--add", corrected, "--scans", data / "images", "--minutes", minutes)
        recorded = read_json(bundle / "models" / "corrections.json")["rounds"][-1]["cases"]
        assert all(abs(case["mean_dice_before"] - dices[case["scan"]]) < 1e-3 for case in recorded), (recorded, dices)
        scores.append(held_out_dice(bundle, data, held_out, home / f"masks-{number}"))
    for number, score in enumerate(scores):
        print(f"after round {number}: {3 + CORRECTED * number} cases, held-out Dice {score:.4f}")
    if options.anew:
        shutil.copytree(bundle, home / "anew", ignore=shutil.ignore_patterns("models"))
        run("train", home / "anew", "--minutes", minutes)
        score = held_out_dice(home / "anew", data, held_out, home / "masks-anew")
        print(f"anew on {3 + CORRECTED * options.rounds} cases: held-out Dice {score:.4f}")


if __name__ == "__main__":
    main()
