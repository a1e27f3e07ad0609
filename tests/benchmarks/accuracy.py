"""Score a folder of masks against labels, on the original grids, read by nibabel and Pillow alone.

    python tests/benchmarks/accuracy.py MASKS LABELS

Masks are `NAME_seg.nii.gz` or `NAME_seg.png`, labels `NAME.nii.gz` or `NAME.png`. Prints Dice of each label for each
case, the means and worst cases, and the share of pixels whose value differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image


def read(path: Path) -> np.ndarray:
    """Values as the file stores them."""
    if path.suffix == ".png":
        return np.asarray(Image.open(path)).astype(np.int64)
    return np.rint(np.asarray(nibabel.load(path).dataobj)).astype(np.int64)


def main(masks: Path, labels: Path) -> None:
    """Print the table."""
    pairs = [
        (mask, labels / mask.name.replace("_seg.", "."))
        for mask in sorted([*masks.glob("*_seg.nii.gz"), *masks.glob("*_seg.png")])
    ]
    values = sorted({int(v) for _, label in pairs for v in np.unique(read(label))} - {0})
    scores, errors = [], []
    for mask_file, label_file in pairs:
        mask, label = read(mask_file), read(label_file)
        assert mask.shape == label.shape, f"{mask_file}: {mask.shape} against {label.shape}"
        dice = [2 * ((mask == v) & (label == v)).sum() / ((mask == v).sum() + (label == v).sum()) for v in values]
        scores.append(dice)
        errors.append((mask != label).mean())
        print(f"{label_file.name:28}", *(f"{d:.4f}" for d in dice), f"differs {errors[-1]:.4f}")
    table = np.array(scores)
    print(f"{len(pairs)} cases; mean Dice of labels {values}:", *(f"{d:.4f}" for d in table.mean(axis=0)))
    print(f"mean of all labels {table.mean():.4f}, worst case {table.mean(axis=1).min():.4f}")
    print(f"share of voxels that differ: {np.mean(errors):.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
