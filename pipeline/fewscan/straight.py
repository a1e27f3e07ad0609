"""A gantry tilt taken out for the network: planes are moved within themselves, and their labels moved back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewscan.arrays import IN_MEMORY_ONLY, Arrays, release
from fewscan.errors import GeometryError
from fewscan.grid import Grid


@dataclass(frozen=True)
class Straight:
    """The planes of a sheared scan, moved along i and j by whole voxels until the stack stands upright.

    Nothing is interpolated: a voxel lies within half a voxel, along i and along j, of its place, and each label goes
    back to the very voxel that it was decided for.
    """

    grid: Grid
    """Upright, and as large as all moved planes together."""
    shifts: NDArray[np.intp]
    """(plane, 2): the first voxel of each plane along i and j."""
    scan: Grid
    """The sheared one."""

    @classmethod
    def of(cls, scan: Grid) -> Straight:
        """Of a scan whose planes (i, j) are rectangles. Raises GeometryError where they are parallelograms."""
        i, j, k = scan.affine[:3, :3].T
        cosine = float(i @ j / np.linalg.norm(i) / np.linalg.norm(j))
        if abs(cosine) > 1e-3:
            raise GeometryError(f"its planes are no rectangles (cosine {cosine:.3g} between i and j): leave the shear")
        shear = np.array([k @ i / (i @ i), k @ j / (j @ j)])  # voxels along i and j from plane to plane
        places = np.rint(np.arange(scan.shape[2])[:, None] * shear).astype(np.intp)
        first = places.min(axis=0)
        shifts = places - first
        affine = np.array(scan.affine)
        affine[:3, 2] -= shear @ [i, j]
        affine[:3, 3] += first @ np.array([i, j])
        wide, high = shifts.max(axis=0)
        shape = (scan.shape[0] + int(wide), scan.shape[1] + int(high), scan.shape[2])
        return cls(Grid(shape, affine, scan.frame_of_reference), shifts, scan)

    def array(self, array: NDArray[np.generic], empty: Arrays = IN_MEMORY_ONLY) -> NDArray[np.generic]:
        """Intensities (channel, i, j, k) of the scan on `grid`; where nothing was imaged, the channel's smallest."""
        moved = empty((len(array), *self.grid.shape[::-1]), array.dtype).transpose(0, 3, 2, 1)
        smallest = [channel.min() for channel in array]
        for k in range(self.scan.shape[2]):
            for channel, values, low in zip(moved, array, smallest, strict=True):
                channel[:, :, k] = low
                channel[:, :, k][self._part(k)] = values[:, :, k]
            release(moved)
        return moved

    def back(self, labels: NDArray[np.integer], empty: Arrays = IN_MEMORY_ONLY) -> NDArray[np.integer]:
        """Labels (i, j, k) on `grid`, where the scan's voxels came from."""
        own = empty(self.scan.shape[::-1], labels.dtype).transpose(2, 1, 0)
        for k in range(self.scan.shape[2]):
            own[:, :, k] = labels[:, :, k][self._part(k)]
            release(own)
        return own

    def _part(self, k: int) -> tuple[slice, slice]:
        i, j = (int(first) for first in self.shifts[k])
        return slice(i, i + self.scan.shape[0]), slice(j, j + self.scan.shape[1])
