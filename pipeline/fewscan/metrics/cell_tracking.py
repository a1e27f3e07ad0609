"""The SEG score of the Cell Tracking Challenge (Ulman et al. 2017, Nat. Methods 14:1141; U-Net's second challenge)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def seg(frames: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    """SEG, 0 to 1: the mean over all objects of the truth of the Jaccard index with the object that matches it.

    The answer's object that covers more than half of a true object matches it: |A and T| / |A or T|; at most one
    does. Without such an object the true object scores 0. All objects of all frames weigh the same. False objects
    elsewhere do not lower SEG.

    Args:
        frames: (answer, truth) of each frame: object numbers from 1, 0 background, integers of one shape, 2D or 3D.

    Raises ValueError where shapes differ, numbers are no integers or negative, or no frame has an object.
    """
    scores = [_jaccard_of_objects(answer, truth) for answer, truth in frames]
    every = np.concatenate(scores) if scores else np.zeros(0)
    if not every.size:
        raise ValueError("no frame of the truth has an object, so there is nothing to score")
    return float(every.mean())


def _jaccard_of_objects(answer: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """(objects of the truth,) Jaccard with the match of each, 0 without one."""
    if answer.shape != truth.shape:
        raise ValueError(f"the answer has the shape {answer.shape}, the truth {truth.shape}; they have to be equal")
    for name, array in (("answer", answer), ("truth", truth)):
        if array.dtype.kind not in "iu" or (array.size and array.min() < 0):
            raise ValueError(f"the {name} has to hold object numbers, integers of 0 or more")
    true_numbers, true = np.unique(truth, return_inverse=True)
    numbers, said = np.unique(answer, return_inverse=True)
    shared = np.bincount(true.ravel() * len(numbers) + said.ravel(), minlength=len(true_numbers) * len(numbers))
    shared = shared.reshape(len(true_numbers), len(numbers))
    size, answer_size = shared.sum(axis=1), shared.sum(axis=0)
    shared[:, numbers == 0] = 0  # the background is no match
    best = shared.argmax(axis=1)
    common = shared.max(axis=1)
    jaccard = np.where(2 * common > size, common / (size + answer_size[best] - common), 0.0)
    return jaccard[true_numbers > 0]
