"""The scores of the ISBI 2012 challenge (membranes in EM stacks), as the challenge's own scorer computes them.

V_rand and V_info: Arganda-Carreras et al. 2015, "Crowdsourcing the creation of image segmentation algorithms for
connectomics", Front. Neuroanat. 9:142. The older "Rand error" and "pixel error", in the U-Net paper's table, are other
formulas and other numbers; never print one as another. The warping error is not here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.metrics.objects import basins, components

THRESHOLDS: tuple[float, ...] = tuple(accumulate(repeat(0.1, 10), initial=0.0))
"""0, 0.1, ... added up in double precision as the challenge does, so that the last is 0.9999999999999999."""

Table = NDArray[np.int64]
"""(objects of the truth, objects of the answer + 1) pixels; column 0 is what the answer leaves to lines or membrane.

Pixels of the truth's membrane are in no row: the scores do not look at them.
"""


@dataclass(frozen=True)
class Agreement:
    """Two numbers, 0 to 1: `precision` falls with each false merge, `recall` with each false split."""

    precision: float
    recall: float

    @property
    def f(self) -> float:
        """The harmonic mean of both, 0 to 1; 0 where both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


@dataclass(frozen=True)
class Isbi2012:
    """The challenge's scores of a stack, each the best over all thresholds.

    `v_rand` and `v_info` (0 to 1, 1 is perfect) compare the thinned answer's objects with the truth's: `macro` is the
    mean over the slices, `micro` counts the pixels of all slices together. The challenge reports no micro V_info; it
    is the same formula, and a stack where every slice is one object gets more than 0, as slices share none.
    `old_rand_error` and `pixel_error` (0 to 1, 0 is perfect) are the two scores of the challenge's first years: 1 - F
    of object pairs without thinning, and 1 - F of the inside pixels, both micro.
    """

    v_rand_macro: float
    v_rand_micro: float
    v_info_macro: float
    v_info_micro: float
    old_rand_error: float
    pixel_error: float


def score_isbi2012(probability: NDArray[Any], truth: NDArray[Any]) -> Isbi2012:
    """All scores of a stack, the best over the thresholds 0, 0.1, ..., 0.9999999999999999.

    Args:
        probability: (i, j, k) of being inside a cell, 0 to 1; i = column of the image, j = row, k = slice.
        truth: (i, j, k), 1 inside, 0 membrane.

    Raises ValueError where shapes differ, a value is out of range, or a slice of the truth has no inside.
    """
    _check(probability, truth)
    inside = np.moveaxis(truth == 1, -1, 0)
    objects = [components(one) for one in inside]
    rows: list[tuple[float, ...]] = []
    for threshold in THRESHOLDS:
        # float64: a float32 of 0.3 lies above the threshold of 0.3
        said = np.moveaxis(probability.astype(np.float64) > threshold, -1, 0)
        thinned = [count_pairs(true, basins(one)) for true, one in zip(objects, said, strict=True)]
        plain = [count_pairs(true, components(one)) for true, one in zip(objects, said, strict=True)]
        rows.append(
            (
                float(np.mean([v_rand([table]).f for table in thinned])),
                v_rand(thinned).f,
                float(np.mean([v_info([table]).f for table in thinned])),
                v_info(thinned).f,
                v_rand(plain).f,
                2 * float((said & inside).sum()) / float(said.sum() + inside.sum()),
            )
        )
    rand_macro, rand_micro, info_macro, info_micro, old_rand, pixel = np.max(rows, axis=0).tolist()
    return Isbi2012(rand_macro, rand_micro, info_macro, info_micro, 1 - old_rand, 1 - pixel)


def count_pairs(truth: NDArray[np.int64], answer: NDArray[np.int64]) -> Table:
    """How many pixels each object of the truth shares with each of the answer, in one slice.

    Both hold numbers (i, j) from 1, and 0 for lines or membrane.
    """
    cells = truth > 0
    columns = int(answer.max()) + 1
    pairs = np.bincount(truth[cells] * columns + answer[cells], minlength=(int(truth.max()) + 1) * columns)
    return pairs.reshape(-1, columns)[1:]


def v_rand(tables: Sequence[Table]) -> Agreement:
    """V_rand of one slice, or of several together: precision = AB / B, recall = AB / A.

    With n pixels in the truth's objects, p_ij = the share of them in object i of the truth and j of the answer, a_i
    and b_j its sums, p_0 = the share that the answer leaves out: A = sum a_i^2, B = sum b_j^2 + p_0 / n, AB = sum
    p_ij^2 + p_0 / n, over j >= 1. Pixels left out count as objects of one pixel.

    On thinned answers its F is the challenge's V_rand; without thinning 1 - F is its old Rand error.
    """
    a = b = ab = 0  # all times n^2: whole numbers, so that the order of slices and objects changes nothing
    for table in tables:
        single = int(table[:, 0].sum())
        a += int(np.square(table.sum(axis=1)).sum())
        b += int(np.square(table[:, 1:].sum(axis=0)).sum()) + single
        ab += int(np.square(table[:, 1:]).sum()) + single
    return Agreement(ab / b, ab / a)


def v_info(tables: Sequence[Table]) -> Agreement:
    """V_info of one slice, or of several together: the mutual information I over each side's entropy.

    With the shares of `v_rand` and pixels left out as objects of one pixel: H(T) = -sum a ln a, H(S) = -(sum b ln b -
    p_0 ln n), J = sum p ln p - p_0 ln n, I = H(T) + H(S) + J; precision = I / H(S), recall = I / H(T). A side that is
    one object has no entropy; its quotient counts as 1.
    """
    pixels = sum(int(table.sum()) for table in tables)
    of_truth = of_answer = joint = 0.0
    for table in tables:
        share = table / pixels
        singles = float(share[:, 0].sum()) * math.log(pixels)
        of_truth -= _sum_x_ln_x(share.sum(axis=1))
        of_answer -= _sum_x_ln_x(share[:, 1:].sum(axis=0)) - singles
        joint += _sum_x_ln_x(share[:, 1:]) - singles
    common = max(0.0, of_truth + of_answer + joint)
    precision, recall = (min(1.0, common / entropy) if entropy else 1.0 for entropy in (of_answer, of_truth))
    return Agreement(precision, recall)


def _sum_x_ln_x(share: NDArray[np.float64]) -> float:
    share = share[share > 0]
    return float((share * np.log(share)).sum())


def _check(probability: NDArray[Any], truth: NDArray[Any]) -> None:
    if probability.shape != truth.shape or truth.ndim != 3:
        raise ValueError(
            f"probability {probability.shape} and truth {truth.shape} have to be stacks of one shape (i, j, k)"
        )
    if not (probability.min() >= 0 and probability.max() <= 1):
        raise ValueError(f"probabilities go from 0 to 1, not from {probability.min():g} to {probability.max():g}")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(f"the truth is 1 inside and 0 on membrane; it holds {np.unique(truth).tolist()[:8]}")
    empty = np.flatnonzero(~(truth == 1).any(axis=(0, 1)))
    if empty.size:
        raise ValueError(f"slice {empty[0]} of the truth has no inside, so it cannot be scored; leave it out")
