"""The scores of the ISBI 2012 challenge, of trained bundles on labelled sections that they have not seen.

    python tests/benchmarks/isbi2012.py IMAGES LABELS BUNDLE [BUNDLE ...] --include '1[5-9].png'

Sections are PNG files of equal names; in the labels 255 is inside, 0 membrane. IMAGES may also be one volume whose
slices are all of the labels' sections in the order of their names, for a 3D bundle. Instead of a bundle a folder of
probabilities may be given, `NAME.npy` (column, row), as `nnunet.py` writes them. Prints a table, a line for each, and
one for no learning at all (everything inside). `differ` is the share of pixels on the wrong side of 0.5.
"""

import argparse
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewscan.metrics import score_isbi2012
from fewscan.network_grid import to_scan_grid
from fewscan.runs.predictor import Predictor, read_settings
from fewscan.scans import open_scan
from fewscan.transforms import scan_grid

COLUMNS = ("v_rand_macro", "v_info_macro", "old_rand_error", "pixel_error")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--include", default="*")
    parser.add_argument("--symmetry", default="none", help="of the inferer: none, mirror, or in 2D square")
    options = parser.parse_args()
    sections = sorted(options.labels.glob("*.png"))
    chosen = [number for number, file in enumerate(sections) if fnmatch(file.name, options.include)]
    truth = np.stack([np.asarray(Image.open(sections[number])).T > 0 for number in chosen], axis=-1)
    print("| | " + " | ".join(COLUMNS) + " | differ |\n" + "|---" * (len(COLUMNS) + 2) + "|")
    for bundle in options.bundles:
        if options.images.is_dir():
            maps = inside(bundle, [options.images / sections[number].name for number in chosen], options.symmetry)
        else:
            maps = inside(bundle, [options.images], options.symmetry)[:, :, chosen]
        show(str(bundle), maps, truth)
    show("no learning", np.ones(truth.shape), truth)


def inside(bundle: Path, files: list[Path], symmetry: str) -> np.ndarray:
    """(column, row, section) probabilities of the last label, "inside", 0 to 1."""
    if not (bundle / "configs").is_dir():
        return np.stack([np.load(bundle / f"{file.stem}.npy") for file in files], axis=-1).astype(np.float64)
    predictor, settings = Predictor(bundle), read_settings(bundle)
    predictor.inferer.symmetry = symmetry
    maps = []
    for file in files:
        scan = open_scan([file], settings["channels"])
        with torch.inference_mode():
            image = predictor.prepare(scan)["image"]
            probability = torch.softmax(predictor.logits(image).as_subclass(torch.Tensor).float(), dim=0)[-1:]
        maps.append(to_scan_grid(probability, scan_grid(image).affine, scan.grid)[0])
    return np.concatenate(maps, axis=-1).astype(np.float64)


def show(name: str, probability: np.ndarray, truth: np.ndarray) -> None:
    """One line of the table."""
    scores = score_isbi2012(probability, truth.astype(np.uint8))
    shown = [*(getattr(scores, column) for column in COLUMNS), ((probability > 0.5) != truth).mean()]
    print(f"| {name} | " + " | ".join(f"{score:.4f}" for score in shown) + " |", flush=True)


if __name__ == "__main__":
    main()
