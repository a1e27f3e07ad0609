"""A scan as the network sees it, read in parts: normalised, and on the network's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewscan.arrays import SLAB, release
from fewscan.grid import Affine, Grid
from fewscan.intensity import Normalisation
from fewscan.network_grid import Way
from fewscan.taps import resample_axis


class PreparedVolume:
    """(C, *spatial) float32 on the network's grid, bit for bit what normalising and `to_network_grid` give at once.

    Only what is asked for is computed, and read from `array`.

    Args:
        array: the scan's intensities (C, i, j, k), in memory or in a file.
        grid: of the scan.
        rules: one for each channel.
        spacing_mm, slice_axis: see `to_network_grid`.

    Attributes:
        shape: (C, *spatial).
        affine: of the network's grid, 4 x 4, voxel -> mm RAS+.
    """

    def __init__(
        self,
        array: NDArray[Any],
        grid: Grid,
        rules: Sequence[Normalisation],
        spacing_mm: Sequence[float] | None,
        slice_axis: int | None,
    ) -> None:
        self._array, self._rules = array, rules
        self._way = Way.to_network(grid, spacing_mm, slice_axis)
        self.shape: tuple[int, ...] = (len(array), *self._way.target.shape)
        self.affine: Affine = self._way.target.affine

    def __getitem__(self, box: Any) -> Tensor:
        """Part of it, by a tuple of slices; the first chooses channels, of the others each is from start to stop."""
        chosen = range(len(self._array))[box[0]]
        places = [slice(*along.indices(n)) for along, n in zip(box[1:], self.shape[1:], strict=True)]
        sizes = [along.stop - along.start for along in places]
        answer = torch.empty((len(chosen), *sizes))
        if answer.numel() == 0:
            return answer
        needed = math.prod(along.stop - along.start for along in self._voxels(places))
        cut = max(range(3), key=lambda a: (sizes[a] > 1, abs(self._array.strides[self._way.axes[a] + 1])))
        planes = max(1, SLAB * sizes[cut] // needed)  # the scan may be far finer than what is asked for
        for first in range(0, sizes[cut], planes):
            here, own = list(places), [slice(None)] * 4
            own[cut + 1] = slice(first, min(first + planes, sizes[cut]))
            here[cut] = slice(places[cut].start + own[cut + 1].start, places[cut].start + own[cut + 1].stop)
            for number, channel in enumerate(chosen):
                answer[(slice(number, number + 1), *own[1:])] = self._part(channel, here)
        return answer

    def _voxels(self, places: Sequence[slice]) -> list[slice]:
        """What these places of the network's grid need, in the scan's voxels along the network's axes."""
        voxels = list(places)
        for axis, taps in self._way.taps.items():
            voxels[axis - 1] = taps.needs(places[axis - 1])
        return voxels

    def _part(self, channel: int, places: Sequence[slice]) -> Tensor:
        """(1, *places) of one channel."""
        way, voxels, source = self._way, self._voxels(places), [slice(0)] * 3
        for along, axis, flipped in zip(voxels, way.axes, way.flips, strict=True):
            n = self._array.shape[axis + 1]
            source[axis] = slice(n - along.stop, n - along.start) if flipped else along
        part = np.array(self._array[(slice(channel, channel + 1), *source)], dtype=np.float32)
        release(self._array)
        values = way.reorder(self._rules[channel](torch.from_numpy(part)))
        for axis, taps in way.taps.items():
            values = resample_axis(values, axis, taps.part(places[axis - 1], voxels[axis - 1]))
        return values

    def whole(self) -> Tensor:
        """All of it."""
        return self[(slice(None),) * len(self.shape)]
