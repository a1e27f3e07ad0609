"""The one decision on the way back from the network: softmax, scan's grid, argmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewscan.arrays import IN_MEMORY_ONLY, Arrays, release
from fewscan.grid import Affine, Grid
from fewscan.network_grid import are_voxels, in_scan_order, refuse_not_finite
from fewscan.taps import linear_weights, resample_axis

IN_CACHE = 2**18
"""Voxels whose largest values are found at once."""
ON_GPU = 2**24
"""Numbers of all classes, before or after, that are interpolated at once: a GPU is slow in small steps."""


class Decision:
    """The class of every voxel of a scan, from the network's answer, which comes whole or in pieces, in any order.

    Softmax over the classes, linear interpolation back to the scan's grid, the largest wins (the lower class on a
    tie). Probabilities never exist for the whole scan.

    Args:
        shape: voxels of the network's grid along each axis.
        network_affine: of that grid, 4 x 4, voxel -> mm RAS+.
        scan: the grid of the answer.
        empty: makes the array of the classes.

    Raises GeometryError where the two grids are not related by a permutation, flips and scaling of axes.

    Attributes:
        aligned: whether the grids' voxels coincide, so that nothing is interpolated.
    """

    def __init__(
        self, shape: Sequence[int], network_affine: Affine, scan: Grid, empty: Arrays = IN_MEMORY_ONLY
    ) -> None:
        self.scan, self.shape, self.empty = scan, tuple(shape), empty
        self.turn, places = in_scan_order(network_affine, scan)
        whole = [are_voxels(at, shape[axis]) for at, axis in zip(places, self.turn, strict=True)]
        self.aligned = all(whole)
        # by rounding 0.999999 of an oblique scan's slices would be in the core of the slice before
        self.places = [at.round() if voxels else at for at, voxels in zip(places, whole, strict=True)]
        self._classes: NDArray[np.integer] | None = None

    @property
    def classes(self) -> NDArray[np.integer]:
        """(i, j, k) class indices on the scan's grid, i contiguous, uint8 up to 256 classes, else uint16.

        Complete when the cores that were added are the whole volume.
        """
        assert self._classes is not None  # nothing was added
        return self._classes

    def add(self, logits: Tensor, box: tuple[slice, ...], core: tuple[slice, ...]) -> None:
        """Decide the scan's voxels that lie in a core of the network's grid.

        Args:
            logits: (classes, *box).
            box: voxels of the network's grid: the core and, unless the volume ends, one voxel beyond its end; that
                one is not needed where the grids' voxels coincide.
            core: voxels of the network's grid. A voxel of the scan is decided by the core with the last of the
                network's voxels that is not beyond it; those outside the grid by the core that is nearest.

        Raises BundleError where the network answers with numbers that are not finite: its weights are broken.
        """
        refuse_not_finite(logits)
        if self._classes is None:
            self._classes = self.empty(self.scan.shape, np.uint8 if logits.shape[0] <= 256 else np.uint16, "F")
        logits = logits.permute(0, *(axis + 1 for axis in self.turn))
        begun, cores = [box[axis].start for axis in self.turn], [core[axis] for axis in self.turn]
        sizes = [self.shape[axis] for axis in self.turn]
        own = [_owned(at, along, n, self.aligned) for at, along, n in zip(self.places, cores, sizes, strict=True)]
        if any(along.start == along.stop for along in own):
            return
        there = [at[along] - start for at, along, start in zip(self.places, own, begun, strict=True)]
        if self.aligned:
            values = largest(logits).cpu().numpy()
            self._classes[tuple(own)] = values[tuple(map(_run, there))]
            release(self._classes)
            return
        taps = [linear_weights(at, n, 1.0) for at, n in zip(there, logits.shape[1:], strict=True)]
        of_plane = max(logits[..., 0].numel(), len(logits) * math.prod(along.stop - along.start for along in own[:2]))
        planes = 1 if logits.device.type == "cpu" else max(1, ON_GPU // of_plane)
        for first in range(0, own[2].stop - own[2].start, planes):
            here = slice(first, min(first + planes, own[2].stop - own[2].start))
            near = taps[2].needs(here)
            slab = torch.softmax(logits[..., near].float(), dim=0)
            slab = resample_axis(slab, 3, taps[2].part(here, near))
            slab = resample_axis(resample_axis(slab, 1, taps[0]), 2, taps[1])
            k = slice(own[2].start + here.start, own[2].start + here.stop)
            self._classes[own[0], own[1], k] = largest(slab).cpu().numpy()
        release(self._classes)


def largest(values: Tensor) -> Tensor:
    """(classes, *spatial) -> (*spatial), the class of the largest value, the lower one on a tie.

    uint8 up to 256 classes, else int16. torch's `argmax` over the first axis takes 100 times as long for 3 classes, 15
    times for 20: here bytes are compared, in parts that stay in a processor's cache.
    """
    winner = torch.zeros_like(values[0], dtype=torch.uint8 if len(values) <= 256 else torch.int16)
    rows = max(1, IN_CACHE // max(1, math.prod(values.shape[2:])) if values.device.type == "cpu" else values.shape[1])
    for first in range(0, values.shape[1], rows):
        part, place = values[:, first : first + rows], winner[first : first + rows]
        best, wins = part[0].clone(), torch.empty_like(place)
        for number in range(1, len(part)):
            torch.gt(part[number], best, out=wins)
            torch.maximum(place, wins.mul_(number), out=place)
            torch.maximum(best, part[number], out=best)
    return winner


def _run(places: NDArray[np.float64]) -> slice:
    """Evenly spaced voxels, in rising or falling order, as a slice."""
    first, last = round(places[0]), round(places[-1])
    step = (last - first) // (len(places) - 1) if len(places) > 1 else 1
    end = last + step
    return slice(first, end if end >= 0 else None, step)


def _owned(places: NDArray[np.float64], core: slice, n: int, aligned: bool) -> slice:
    """The scan's voxels along an axis that a core of the network's axis (n voxels) decides; `places` are monotonic."""
    at = np.clip(places.round() if aligned else np.floor(places), 0, n - 1)
    inside = np.flatnonzero((at >= core.start) & (at < core.stop))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)
