"""ISBI 2012's sections written so that a network sees the neighbouring ones.

    python tests/benchmarks/neighbours.py IMAGES LABELS FOLDER

FOLDER/rgb/images holds colour pictures, the section before as red, the section itself as green, the next as blue,
beside FOLDER/rgb/labels; FOLDER/stack.tif all sections, voxels of 4 x 4 x 50 nm, and FOLDER/stack/images and
FOLDER/stack/labels the first 15 of them with their labels.
"""

import argparse
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image


def main() -> None:
    """Write both."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write_neighbours(options.images, options.labels, options.folder)


def write_neighbours(images: Path, labels: Path, folder: Path) -> None:
    """Sections with their neighbours as colours, and as a stack."""
    names = [file.name for file in sorted(images.glob("*.png"))]
    pixels = np.stack([np.asarray(Image.open(images / name)) for name in names])
    truth = np.stack([np.asarray(Image.open(labels / name)) for name in names])
    for kind in ("rgb/images", "rgb/labels", "stack/images", "stack/labels"):
        (folder / kind).mkdir(parents=True)
    for number, name in enumerate(names):
        seen = pixels[[max(number - 1, 0), number, min(number + 1, len(names) - 1)]]
        Image.fromarray(np.moveaxis(seen, 0, -1)).save(folder / "rgb" / "images" / name)
        Image.fromarray(truth[number]).save(folder / "rgb" / "labels" / name)
    size = {"resolution": (1 / 0.004, 1 / 0.004), "metadata": {"axes": "ZYX", "spacing": 0.05, "unit": "um"}}
    for stack, file in ((pixels[:15], "stack/images/train.tif"), (truth[:15], "stack/labels/train.tif")):
        tifffile.imwrite(folder / file, stack, imagej=True, **size)
    tifffile.imwrite(folder / "stack.tif", pixels, imagej=True, **size)


if __name__ == "__main__":
    main()
