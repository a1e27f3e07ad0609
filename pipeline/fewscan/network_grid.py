"""Between a scan's grid and the network's: there, and numbers back again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewscan.errors import BundleError, GeometryError
from fewscan.grid import Affine, Grid
from fewscan.taps import Taps, linear_weights, resample_axis


def to_network_grid(
    array: Tensor, grid: Grid, spacing_mm: Sequence[float] | None, slice_axis: int | None = None
) -> tuple[Tensor, Grid]:
    """Bring a scan onto the grid that the network sees.

    The axes are permuted and flipped, without resampling, to lie closest to left, posterior, superior. Then each is
    resampled linearly (with a wider kernel where it gets coarser, so that nothing aliases) to the wanted spacing;
    the extent stays exactly the same, so the spacing is met up to rounding to whole voxels.

    Args:
        array: (channel, i, j, k) on `grid`, float.
        grid: the scan's.
        spacing_mm: wanted along left, posterior, superior; None keeps the scan's own.
        slice_axis: 0, 1 or 2 (left, posterior, superior) where a 2D network looks at slices: that axis goes last
            and is never resampled.

    Returns:
        The array, contiguous, and its grid.
    """
    way = Way.to_network(grid, spacing_mm, slice_axis)
    array = way.reorder(array)
    for axis, taps in way.taps.items():
        array = resample_axis(array, axis, taps)
    return array.contiguous(), way.target


def labels_to_network_grid(
    classes: Tensor, grid: Grid, spacing_mm: Sequence[float] | None, slice_axis: int | None = None
) -> tuple[Tensor, Grid]:
    """As `to_network_grid`, for class indices (1, i, j, k): the class that covers most of a new voxel wins.

    The lower class wins a tie. The type stays; without resampling the voxels are only reordered. Axis by axis a new
    voxel is unknown (-1) where less than half of it is known, or of one of the scan's voxels where those are smaller:
    a single annotated slice stays one. Else the class that covers most of what is known wins.
    """
    way = Way.to_network(grid, spacing_mm, slice_axis)
    classes = way.reorder(classes)
    if not way.taps:
        return classes.contiguous(), way.target
    largest = torch.zeros((1, *way.target.shape), device=classes.device)
    winner = torch.zeros((1, *way.target.shape), dtype=classes.dtype, device=classes.device)
    for value, box in _boxes(classes[0]):  # one after the other: maps of all classes would need far more memory
        share, reached = (classes[:, *box] == value).float(), [slice(None), *box]
        for axis, taps in way.taps.items():
            reached[axis] = taps.reach(box[axis - 1])
            share = resample_axis(share, axis, taps.part(reached[axis], box[axis - 1]))
        here = tuple(reached)
        winner[here][share > largest[here]] = value
        largest[here] = torch.maximum(largest[here], share)
    unknown = classes < 0
    if unknown.any():
        known = (~unknown).float()
        for axis, taps in way.taps.items():
            coarser = max(1.0, classes.shape[axis] / way.target.shape[axis - 1])
            known = (resample_axis(known, axis, taps) >= 0.5 / coarser).float()
        winner[known == 0] = -1
    return winner, way.target


def _boxes(classes: Tensor) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Each value from 0 on that there is in (i, j, k), and the box that it lies in."""
    values = classes.numpy(force=True)
    count, sides = int(values.max()) + 2, []
    for axis in range(3):
        planes = np.moveaxis(values, axis, 0)
        found = np.stack([np.bincount(plane.ravel().astype(np.int64) + 1, minlength=count)[1:] > 0 for plane in planes])
        sides.append((found.argmax(axis=0), len(found) - found[::-1].argmax(axis=0)))
    for value in np.flatnonzero(found.any(axis=0)).tolist():
        yield value, tuple(slice(int(first[value]), int(end[value])) for first, end in sides)


@dataclass(frozen=True)
class Way:
    """From a scan's grid to the one that the network sees: axes permuted and flipped, then resampled."""

    axes: tuple[int, int, int]
    """The scan's axis that lies along each axis of the network."""
    flips: tuple[bool, bool, bool]
    """Whether each axis of the network runs against the scan's."""
    taps: dict[int, Taps]
    """For each axis of (channel, *network) that is resampled."""
    target: Grid
    """The network's."""

    @classmethod
    def to_network(cls, grid: Grid, spacing_mm: Sequence[float] | None, slice_axis: int | None) -> Way:
        """As `to_network_grid` goes; its arguments."""
        axes, flips = grid.axes_to_lps()
        spacing = list(grid.reordered(axes, flips).spacing_mm if spacing_mm is None else spacing_mm)
        if slice_axis is not None:
            order = [axis for axis in range(3) if axis != slice_axis] + [slice_axis]
            axes, flips = (
                (axes[order[0]], axes[order[1]], axes[order[2]]),
                (flips[order[0]], flips[order[1]], flips[order[2]]),
            )
            spacing = [spacing[axis] for axis in order]
        reordered = grid.reordered(axes, flips)
        shape, step, taps = list(reordered.shape), np.eye(4), {}
        for axis in range(2 if slice_axis is not None else 3):
            n = reordered.shape[axis]
            shape[axis] = max(1, round(n * reordered.spacing_mm[axis] / spacing[axis]))
            if shape[axis] != n:
                scale = n / shape[axis]
                step[axis, axis], step[axis, 3] = scale, (scale - 1) / 2
                centres = np.arange(shape[axis], dtype=np.float64) * scale + (scale - 1) / 2
                taps[axis + 1] = linear_weights(centres, n, max(scale, 1.0))
        target = Grid((shape[0], shape[1], shape[2]), reordered.affine @ step, grid.frame_of_reference)
        return cls(axes, flips, taps, target)

    def reorder(self, array: Tensor) -> Tensor:
        """(channel, i, j, k) of the scan with its axes permuted and flipped."""
        turned = array.permute(0, *(axis + 1 for axis in self.axes))
        return turned.flip([axis + 1 for axis in range(3) if self.flips[axis]])


def to_scan_grid(maps: Tensor, network_affine: Affine, scan: Grid) -> NDArray[np.float32]:
    """Numbers on the network's grid back on the scan's, linearly, as `Decision` brings probabilities back.

    Args:
        maps: (map, *spatial), each by itself.
        network_affine: of their grid, 4 x 4, voxel -> mm RAS+.
        scan: the grid of the answer.

    Returns:
        (map, i, j, k) on `scan`.

    Raises:
        BundleError: the network answers with numbers that are not finite: its weights are broken.
        GeometryError: the two grids are not related by a permutation, flips and scaling of axes.
    """
    refuse_not_finite(maps)
    turn, coordinates = in_scan_order(network_affine, scan)
    maps = maps.permute(0, *(axis + 1 for axis in turn))
    for axis, (places, n) in enumerate(zip(coordinates, maps.shape[1:], strict=True), start=1):
        if are_voxels(places, n):
            maps = maps.index_select(axis, torch.from_numpy(places.round().astype(np.int64)).to(maps.device))
        else:
            maps = resample_axis(maps, axis, linear_weights(places, n, 1.0))
    return maps.float().cpu().numpy()


def refuse_not_finite(maps: Tensor) -> None:
    """Raises BundleError where the network's answer holds NaN or infinity."""
    low, high = torch.aminmax(maps)  # NaN where there is one; ten times as fast as asking each number
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise BundleError(
            "the network answers with numbers that are not finite, so its mask would be empty; its training went "
            "astray, or its weights are broken: train the bundle again"
        )


def in_scan_order(network_affine: Affine, scan: Grid) -> tuple[list[int], list[NDArray[np.float64]]]:
    """For each axis of the scan the network's axis along it, and where the scan's voxels lie there, in voxels.

    Raises GeometryError where the two grids are not related by a permutation, flips and scaling of axes.
    """
    step = np.linalg.inv(network_affine) @ scan.affine  # scan voxel -> network voxel
    turn = [int(axis) for axis in np.abs(step[:3, :3]).argmax(axis=0)]
    expected = np.zeros((3, 3))
    expected[turn, range(3)] = step[turn, range(3)]
    if sorted(turn) != [0, 1, 2] or np.abs(step[:3, :3] - expected).max() > 1e-4:
        raise GeometryError(f"the network's grid is turned against the scan's by more than whole axes: {step.tolist()}")
    return turn, [step[turn[axis], axis] * np.arange(scan.shape[axis]) + step[turn[axis], 3] for axis in range(3)]


def are_voxels(places: NDArray[np.float64], n: int) -> bool:
    """Whether every coordinate is that of one of n voxels: nothing lies between them."""
    near = places.round()
    return bool(np.abs(places - near).max() < 1e-3 and near.min() >= 0 and near.max() < n)
