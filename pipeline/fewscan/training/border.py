"""Border weights of the U-Net paper: what lies between two touching objects counts more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.metrics.surface import distance_to

Instances = NDArray[np.integer[Any]]


def part_touching(instances: Instances) -> NDArray[np.bool_]:
    """Foreground with a gap of one voxel between instances that touch: what a network learns to answer.

    A voxel becomes background where any of its neighbours (8, in 3D 26) that come before it in the order of the
    array belongs to another instance.

    Args:
        instances: (*spatial), each object's own value above 0; 0 is background, -1 unknown.
    """
    foreground = instances > 0
    around = np.pad(instances, 1)
    touching = np.zeros(instances.shape, dtype=bool)
    for offset in product((-1, 0, 1), repeat=instances.ndim):
        if offset < (0,) * instances.ndim:
            shifted = tuple(slice(1 + step, 1 + step + n) for step, n in zip(offset, instances.shape, strict=True))
            neighbour = around[shifted]
            touching |= (neighbour > 0) & (neighbour != instances)
    return foreground & ~touching


def border_weights(
    instances: Instances, height: float = 10.0, sd: float = 5.0, spacing: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """w(x) = 1 + height * exp(-(d1(x) + d2(x))^2 / (2 sd^2)) (Ronneberger et al. 2015, Eq. 2), 2D and 3D.

    d1 and d2 are the distances to the nearest and to the second nearest instance. The term counts on the background
    (of `part_touching`); foreground has 1, unknown 0. A single instance has no border term. Balance between classes
    is the loss's matter.

    Not one distance transform for each of n instances, but two for each binary digit of their numbers, 2 log2(n): the
    instances whose digit is 0, and those whose digit is 1. The nearer of the two sets is d1 away. The farther one is
    at least d2 away, and exactly d2 for a digit in which the nearest and the second nearest instance differ.

    Args:
        instances: (*spatial), each object's own value above 0; 0 is background, -1 unknown.
        height: of the term, w0 of the paper.
        sd: in the unit of `spacing`, sigma of the paper.
        spacing: of the voxels along each axis, by default 1.

    Returns:
        (*spatial), 0 to 1 + height.
    """
    weights = np.where(instances < 0, 0, 1).astype(np.float32)
    gap = (instances >= 0) & ~part_touching(instances)
    steps = (1.0,) * instances.ndim if spacing is None else tuple(spacing)
    known, numbers = np.unique(instances.clip(min=0), return_inverse=True)
    numbers = numbers.reshape(instances.shape) - (known[0] == 0)  # 0, 1, ... for instances, -1 elsewhere
    count = len(known) - (known[0] == 0)
    if count < 2:
        return weights
    nearest = second = np.full(instances.shape, np.inf, dtype=np.float32)
    for digit in range(int(count - 1).bit_length()):
        ones = (numbers >> digit & 1).astype(bool)
        with_one, with_zero = (distance_to((numbers >= 0) & chosen, steps) for chosen in (ones, ~ones))
        nearest = np.minimum(with_one, with_zero)
        second = np.minimum(second, np.maximum(with_one, with_zero))
    term = height * np.exp(-((nearest + second) ** 2) / (2 * sd**2))
    weights[gap] += term[gap]
    return weights
