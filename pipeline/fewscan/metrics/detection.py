"""How well an uncertainty tells which voxels are wrong. 0.5, or the looked-at part itself, is what chance gives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def detection_auc(scores: NDArray[Any], wrong: NDArray[np.bool_]) -> float | None:
    """The area under the ROC of `scores` for `wrong`, both of one shape; None where all or none are wrong.

    It is the probability that a wrong voxel has a higher score than a right one, ties counting one half (Mann and
    Whitney 1947), from ranks: exact, without thresholds.
    """
    positives = int(wrong.sum())
    negatives = wrong.size - positives
    if positives == 0 or negatives == 0:
        return None
    _, place, counts = np.unique(scores.ravel(), return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # from 1; equal scores share the middle of their ranks
    above = ranks[place.ravel()][wrong.ravel()].sum() - positives * (positives + 1) / 2
    return float(above / positives / negatives)


def share_found(scores: NDArray[Any], wrong: NDArray[np.bool_], part: float) -> float | None:
    """The share (0 to 1) of the wrong voxels that lie among the `part` (0 to 1) with the highest scores.

    Where equal scores stand at the limit, as many of them count as fit, with their mean share of wrong ones. None
    where none is wrong.
    """
    if not wrong.any():
        return None
    scores, wrong = scores.ravel(), wrong.ravel()
    taken = max(1, round(part * scores.size))
    limit = np.partition(scores, scores.size - taken)[scores.size - taken]
    above, at = scores > limit, scores == limit
    found = wrong[above].sum() + (taken - above.sum()) * wrong[at].mean()
    return float(found / wrong.sum())
