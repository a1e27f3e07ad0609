"""Linear interpolation along one axis of a volume, the same to the last bit for a part as for the whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Taps:
    """Linear interpolation along one axis: each place is the weighted sum of some neighbouring voxels.

    The weighted voxels are added one after the other, so that a place gets the same bits whatever else is computed.
    """

    first: NDArray[np.int64]
    """(places,) the first of the voxels of each place."""
    weights: NDArray[np.float32]
    """(places, taps) of that and the following voxels; rows sum to 1, and to less where voxels were left out."""

    def part(self, places: slice | NDArray[np.int64], voxels: slice) -> Taps:
        """For some of the places, where only some of the voxels are at hand; the others weigh nothing."""
        first, weights = self.first[places], self.weights[places].copy()
        at = first[:, None] + np.arange(weights.shape[1])
        weights[(at < voxels.start) | (at >= voxels.stop)] = 0
        return Taps(first - voxels.start, weights)

    def reach(self, voxels: slice) -> slice:
        """From the first to behind the last place that looks at any of these voxels; places in rising order."""
        at = self.first[:, None] + np.arange(self.weights.shape[1])
        hit = np.flatnonzero(((at >= voxels.start) & (at < voxels.stop) & (self.weights > 0)).any(axis=1))
        return slice(int(hit[0]), int(hit[-1]) + 1) if hit.size else slice(0, 0)

    def needs(self, places: slice) -> slice:
        """From the first to behind the last voxel that these places look at."""
        at = self.first[places, None] + np.arange(self.weights.shape[1])
        used = at[self.weights[places] > 0]
        return slice(int(used.min()), int(used.max()) + 1)


def linear_weights(coordinates: NDArray[np.float64], n: int, width: float) -> Taps:
    """Linear interpolation at coordinates along an axis of n voxels: a triangle of half-width `width` voxels.

    Coordinates beyond the first and last voxel take the border's value.
    """
    inside = np.clip(coordinates, 0, n - 1)
    first = np.maximum(np.floor(inside - width).astype(np.int64) + 1, 0)
    at = first[:, None] + np.arange(min(2 * math.ceil(width) + 1, n))
    weights = np.maximum(0.0, 1 - np.abs(inside[:, None] - at) / width)
    weights[(weights < 1e-6) | (at >= n)] = 0.0
    used = np.flatnonzero(weights.any(axis=0))
    weights = weights[:, : used[-1] + 1]
    return Taps(first, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def resample_axis(array: Tensor, axis: int, taps: Taps) -> Tensor:
    """(channel, *spatial) with one of its axes at the places of `taps`."""
    total: Tensor | None = None
    for number in range(taps.weights.shape[1]):
        at = torch.from_numpy(np.clip(taps.first + number, 0, array.shape[axis] - 1)).to(array.device)
        weight = torch.from_numpy(taps.weights[:, number].copy()).to(array)
        part = array.index_select(axis, at).mul_(weight.view([-1 if a == axis else 1 for a in range(array.ndim)]))
        total = part if total is None else total.add_(part)
    assert total is not None  # there is always a tap
    return total
