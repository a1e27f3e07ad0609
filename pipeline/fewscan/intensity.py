"""How intensities become what the network expects, by one rule for the whole scan, never by patch or block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fewscan.arrays import slabs

QUANTILES = (0.005, 0.995)
"""Between them a channel without a window is standardised."""


@dataclass(frozen=True)
class Normalisation:
    """Of one channel: clipped to [low, high], then (value - centre) / spread; a spread of infinity gives 0."""

    low: float
    high: float
    centre: float
    spread: float

    @classmethod
    def of_window(cls, low: float, high: float) -> Normalisation:
        """`low` to -1 and `high` to 1, clipped."""
        return cls(low, high, (low + high) / 2, (high - low) / 2)

    @classmethod
    def of_channel(cls, channel: NDArray[Any]) -> Normalisation:
        """To mean 0 and standard deviation 1 between its 0.5th and 99.5th percentile.

        Not clipped where both are the same: few voxels are bright. A constant channel becomes 0. `channel` (any shape,
        taken as float32) is read in slabs, three times; the percentiles are NumPy's.
        """
        low, high = percentiles(channel, QUANTILES)
        if low >= high:
            low, high = percentiles(channel, (0.0, 1.0))
        total = squares = 0.0
        for values in _slabs(channel):
            above = np.clip(values, np.float32(low), np.float32(high)).astype(np.float64) - low
            total += float(above.sum())
            squares += float(np.vdot(above, above))
        mean = total / channel.size
        spread = math.sqrt(max(squares / channel.size - mean**2, 0.0))
        constant = spread <= 1e-6 * max(abs(low), abs(high))
        return cls(low, high, low + mean, math.inf if constant else spread)

    def __call__(self, channel: Tensor) -> Tensor:
        """Float32 (any shape) normalised."""
        return channel.clamp(self.low, self.high).sub_(self.centre).div_(self.spread)


def percentiles(channel: NDArray[Any], quantiles: Sequence[float]) -> list[float]:
    """Quantiles of an array as float32, 0 to 1, linear between neighbours; the array is read in slabs and never sorted.

    Positive float32 numbers sort as the integers of the same bits, so that counting their upper and then their lower
    sixteen bits finds each rank exactly.
    """
    wanted = [quantile * (channel.size - 1) for quantile in quantiles]
    ranks = sorted({rank for place in wanted for rank in (math.floor(place), math.ceil(place))})
    upper = np.zeros(2**16, dtype=np.int64)
    for values in _slabs(channel):
        upper += np.bincount(_sortable(values) >> np.uint32(16), minlength=2**16)
    below = np.cumsum(upper)
    of_rank = {rank: int(np.searchsorted(below, rank, side="right")) for rank in ranks}
    lower = {bucket: np.zeros(2**16, dtype=np.int64) for bucket in of_rank.values()}
    for values in _slabs(channel):
        keys = _sortable(values)
        for bucket, counts in lower.items():
            counts += np.bincount(keys[keys >> np.uint32(16) == bucket] & np.uint32(0xFFFF), minlength=2**16)
    found = {}
    for rank, bucket in of_rank.items():
        within = rank - (int(below[bucket - 1]) if bucket else 0)
        low = int(np.searchsorted(np.cumsum(lower[bucket]), within, side="right"))
        found[rank] = _number(bucket << 16 | low)
    return [
        found[math.floor(place)] + (found[math.ceil(place)] - found[math.floor(place)]) * (place - math.floor(place))
        for place in wanted
    ]


def _slabs(channel: NDArray[Any]) -> Iterator[NDArray[np.float32]]:
    """Flat parts of an array, as float32."""
    for _, part in slabs(channel):
        yield part.astype(np.float32).ravel(order="K")


def _sortable(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Integers in the order of the numbers: negative ones count backwards, so all of their bits are turned."""
    bits = values.view(np.uint32)
    turned: NDArray[np.uint32] = bits ^ (np.right_shift(values.view(np.int32), 31).view(np.uint32) | np.uint32(1 << 31))
    return turned


def _number(key: int) -> float:
    bits = key ^ (1 << 31) if key >> 31 else key ^ 0xFFFFFFFF
    return float(np.array([bits], dtype=np.uint32).view(np.float32)[0])
