"""Scores that count voxels: Dice, IoU, pixel accuracy and mean IoU, all from one table of counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
"""(classes, classes) voxels: row = class of the truth, column = class of the answer."""


def confusion(answer: NDArray[Any], truth: NDArray[Any], classes: int) -> Counts:
    """How often the answer says one class where the truth says another.

    Args:
        answer: class indices 0 to classes - 1, integers of any shape.
        truth: class indices of the same shape; negative means unknown, and such voxels count nowhere.
        classes: number of classes, the background included.

    Returns:
        (classes, classes) counts, row = truth, column = answer. Counts of slabs or scans may be added: scores of the
        sum are those of all voxels together (micro); the mean over scans of their scores is another number (macro).

    Raises ValueError where shapes differ, or an index is no integer or out of range.
    """
    if answer.shape != truth.shape:
        raise ValueError(f"the answer has the shape {answer.shape}, the truth {truth.shape}; they have to be equal")
    for name, array in (("answer", answer), ("truth", truth)):
        if array.dtype.kind not in "iub":
            raise ValueError(f"the {name} has to hold class indices as integers, not {array.dtype}")
    known = truth >= 0
    said, true = answer[known].astype(np.int64), truth[known].astype(np.int64)
    for name, values in (("answer", said), ("truth", true)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(
                f"the {name} holds class indices from {values.min()} to {values.max()}; "
                f"{classes} classes go from 0 to {classes - 1}"
            )
    return np.bincount(true * classes + said, minlength=classes**2).reshape(classes, classes)


def dice(counts: Counts) -> NDArray[np.float64]:
    """(classes,) Dice of each class, 0 to 1: 2 |A and T| / (|A| + |T|); NaN for a class that neither side has.

    The same number as the F1 score of the class's voxels.
    """
    return _share(2 * np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1))


def iou(counts: Counts) -> NDArray[np.float64]:
    """(classes,) intersection over union (Jaccard), 0 to 1: |A and T| / |A or T|; NaN for a class neither side has."""
    same = np.diag(counts)
    return _share(same, counts.sum(axis=0) + counts.sum(axis=1) - same)


def pixel_accuracy(counts: Counts) -> float:
    """Share of the voxels whose class is right, background included, 0 to 1; NaN without any voxel.

    "Pixel accuracy" of Long, Shelhamer and Darrell 2015. It is not 1 - the pixel error of ISBI 2012.
    """
    return float(_share(np.trace(counts), counts.sum()))


def mean_iou(counts: Counts) -> float:
    """Mean IoU, 0 to 1, over the classes that the truth or the answer has, background included.

    "Mean IU" of Long, Shelhamer and Darrell 2015, when the counts are those of the whole test set.
    """
    present = iou(counts)
    present = present[~np.isnan(present)]
    return float(present.mean()) if present.size else float("nan")


def _share(part: Any, whole: Any) -> NDArray[np.float64]:
    """`part` / `whole`, NaN where `whole` is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    share: NDArray[np.float64] = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return share
