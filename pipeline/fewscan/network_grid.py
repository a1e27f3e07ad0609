"""From a scan's grid to the network's, and the one decision on the way back: softmax, scan's grid, argmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewscan.errors import BundleError, GeometryError
from fewscan.grid import Affine, Grid


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
    axes, flips, target = _target(grid, spacing_mm, slice_axis)
    array = _reorder(array, axes, flips)
    for axis, own in _weights(array.shape[1:], target.shape).items():
        array = _along(array, axis, own)
    return array.contiguous(), target


def labels_to_network_grid(
    classes: Tensor, grid: Grid, spacing_mm: Sequence[float] | None, slice_axis: int | None = None
) -> tuple[Tensor, Grid]:
    """As `to_network_grid`, for class indices (1, i, j, k): the class that covers most of a new voxel wins.

    The lower class wins a tie. The type stays; without resampling the voxels are only reordered. Axis by axis a new
    voxel is unknown (-1) where less than half of it is known, or of one of the scan's voxels where those are smaller:
    a single annotated slice stays one. Else the class that covers most of what is known wins.
    """
    axes, flips, target = _target(grid, spacing_mm, slice_axis)
    classes = _reorder(classes, axes, flips)
    if classes.shape[1:] == target.shape:
        return classes.contiguous(), target
    weights = _weights(classes.shape[1:], target.shape)
    largest = torch.zeros((1, *target.shape), device=classes.device)
    winner = torch.zeros((1, *target.shape), dtype=classes.dtype, device=classes.device)
    for value, box in _boxes(classes[0]):  # one after the other: maps of all classes would need far more memory
        share, reached = (classes[:, *box] == value).float(), [slice(None), *box]
        for axis, own in weights.items():
            rows = np.flatnonzero(own[:, box[axis - 1]].any(axis=1))
            reached[axis] = slice(int(rows[0]), int(rows[-1]) + 1)
            share = _along(share, axis, own[reached[axis], box[axis - 1]])
        here = tuple(reached)
        winner[here][share > largest[here]] = value
        largest[here] = torch.maximum(largest[here], share)
    unknown = classes < 0
    if unknown.any():
        known = (~unknown).float()
        for axis, own in weights.items():
            coarser = max(1.0, own.shape[1] / own.shape[0])
            known = (_along(known, axis, own) >= 0.5 / coarser).float()
        winner[known == 0] = -1
    return winner, target


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


def _target(
    grid: Grid, spacing_mm: Sequence[float] | None, slice_axis: int | None
) -> tuple[tuple[int, int, int], tuple[bool, bool, bool], Grid]:
    """The network's grid, and how the scan's axes are permuted and flipped before it is resampled to that."""
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
    shape, step = list(reordered.shape), np.eye(4)
    for axis in range(2 if slice_axis is not None else 3):
        n = reordered.shape[axis]
        shape[axis] = max(1, round(n * reordered.spacing_mm[axis] / spacing[axis]))
        if shape[axis] != n:
            scale = n / shape[axis]
            step[axis, axis], step[axis, 3] = scale, (scale - 1) / 2
    return axes, flips, Grid((shape[0], shape[1], shape[2]), reordered.affine @ step, grid.frame_of_reference)


def _reorder(array: Tensor, axes: Sequence[int], flips: Sequence[bool]) -> Tensor:
    return array.permute(0, *(axis + 1 for axis in axes)).flip([a + 1 for a in range(3) if flips[a]])


def _weights(shape: Sequence[int], target: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """For each axis of (channel, i, j, k) that changes, the matrix to its new length, linear, of the same extent."""
    weights = {}
    for axis, (n, size) in enumerate(zip(shape, target, strict=True), start=1):
        if n != size:
            scale = n / size
            centres = np.arange(size, dtype=np.float64) * scale + (scale - 1) / 2
            weights[axis] = linear_weights(centres, n, max(scale, 1.0))
    return weights


def decide(logits: Tensor, network_affine: Affine, scan: Grid) -> NDArray[np.integer]:
    """The class of every voxel of the scan, from the network's answer: the one decision of the project.

    Softmax over the classes, linear interpolation back to the scan's grid, the largest wins (the lower class on a
    tie). Probabilities never exist for the whole scan.

    Args:
        logits: (classes, *spatial) on the network's grid.
        network_affine: of that grid, 4 x 4, voxel -> mm RAS+.
        scan: the grid of the answer.

    Returns:
        (i, j, k) class indices on `scan`, uint8 up to 256 classes, else uint16.

    Raises:
        BundleError: the network answers with numbers that are not finite: its weights are broken.
        GeometryError: the two grids are not related by a permutation, flips and scaling of axes.
    """
    decision = Decision(tuple(logits.shape[1:]), network_affine, scan)
    whole = tuple(slice(0, n) for n in logits.shape[1:])
    decision.add(logits, whole, whole)
    return decision.classes


class Decision:
    """`decide` for an answer that comes in pieces, in any order.

    Args:
        shape: voxels of the network's grid along each axis.
        network_affine, scan: as for `decide`.
        allocate: makes the array of the classes, by shape and type; for example a memory map.

    Raises GeometryError as `decide`.

    Attributes:
        aligned: whether the grids' voxels coincide, so that nothing is interpolated.
    """

    def __init__(
        self,
        shape: Sequence[int],
        network_affine: Affine,
        scan: Grid,
        allocate: Callable[[tuple[int, ...], type[np.integer]], NDArray[np.integer]] = np.zeros,
    ) -> None:
        self.scan, self.allocate, self.shape = scan, allocate, tuple(shape)
        self.turn, self.places = _in_scan_order(network_affine, scan)
        self.aligned = all(_are_voxels(at, shape[axis]) for at, axis in zip(self.places, self.turn, strict=True))
        self._classes: NDArray[np.integer] | None = None

    @property
    def classes(self) -> NDArray[np.integer]:
        """(i, j, k) class indices on the scan's grid; complete when the cores that were added are the whole volume."""
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

        Raises BundleError as `decide`.
        """
        _refuse_not_finite(logits)
        if self._classes is None:
            self._classes = self.allocate(self.scan.shape, np.uint8 if logits.shape[0] <= 256 else np.uint16)
        logits = logits.permute(0, *(axis + 1 for axis in self.turn))
        begun, cores = [box[axis].start for axis in self.turn], [core[axis] for axis in self.turn]
        sizes = [self.shape[axis] for axis in self.turn]
        own = [_owned(at, along, n, self.aligned) for at, along, n in zip(self.places, cores, sizes, strict=True)]
        if any(along.start == along.stop for along in own):
            return
        there = [at[along] - start for at, along, start in zip(self.places, own, begun, strict=True)]
        if self.aligned:
            values = largest(logits).cpu().numpy()
            voxels = [at.round().astype(np.int64) for at in there]
            self._classes[tuple(own)] = values[np.ix_(*voxels)]
            return
        weights = [linear_weights(at, n, 1.0) for at, n in zip(there, logits.shape[1:], strict=True)]
        for number, k in enumerate(range(own[2].start, own[2].stop)):
            near = np.flatnonzero(weights[2][number])
            slab = torch.softmax(logits[..., near.min() : near.max() + 1].float(), dim=0)
            slab = _along(slab, 3, weights[2][number : number + 1, near.min() : near.max() + 1])
            slab = _along(_along(slab, 1, weights[0]), 2, weights[1])
            self._classes[own[0], own[1], k] = largest(slab[..., 0]).cpu().numpy()


def largest(values: Tensor) -> Tensor:
    """(classes, *spatial) -> (*spatial), the class of the largest value, the lower one on a tie.

    uint8 up to 256 classes, else int16. Class by class: torch's `argmax` over the first axis is many times slower.
    """
    best = values[0]
    winner = torch.zeros_like(best, dtype=torch.uint8 if len(values) <= 256 else torch.int16)
    for number in range(1, len(values)):
        wins = values[number] > best
        winner.masked_fill_(wins, number)
        best = torch.maximum(best, values[number])
    return winner


def _owned(places: NDArray[np.float64], core: slice, n: int, aligned: bool) -> slice:
    """The scan's voxels along an axis that a core of the network's axis (n voxels) decides; `places` are monotonic."""
    at = np.clip(places.round() if aligned else np.floor(places), 0, n - 1)
    inside = np.flatnonzero((at >= core.start) & (at < core.stop))
    return slice(int(inside[0]), int(inside[-1]) + 1) if inside.size else slice(0, 0)


def to_scan_grid(maps: Tensor, network_affine: Affine, scan: Grid) -> NDArray[np.float32]:
    """Numbers on the network's grid back on the scan's, linearly, as `decide` brings probabilities back.

    Args:
        maps: (map, *spatial), each by itself.
        network_affine: of their grid, 4 x 4, voxel -> mm RAS+.
        scan: the grid of the answer.

    Returns:
        (map, i, j, k) on `scan`.

    Raises:
        BundleError, GeometryError: as `decide`.
    """
    _refuse_not_finite(maps)
    turn, coordinates = _in_scan_order(network_affine, scan)
    maps = maps.permute(0, *(axis + 1 for axis in turn))
    for axis, (places, n) in enumerate(zip(coordinates, maps.shape[1:], strict=True), start=1):
        if _are_voxels(places, n):
            maps = maps.index_select(axis, torch.from_numpy(places.round().astype(np.int64)).to(maps.device))
        else:
            maps = _along(maps, axis, linear_weights(places, n, 1.0))
    return maps.float().cpu().numpy()


def _refuse_not_finite(maps: Tensor) -> None:
    if not torch.isfinite(maps).all():
        raise BundleError(
            "the network answers with numbers that are not finite, so its mask would be empty; its training went "
            "astray, or its weights are broken: train the bundle again"
        )


def _in_scan_order(network_affine: Affine, scan: Grid) -> tuple[list[int], list[NDArray[np.float64]]]:
    """For each axis of the scan the network's axis along it, and where the scan's voxels lie there, in voxels."""
    step = np.linalg.inv(network_affine) @ scan.affine  # scan voxel -> network voxel
    turn = [int(axis) for axis in np.abs(step[:3, :3]).argmax(axis=0)]
    expected = np.zeros((3, 3))
    expected[turn, range(3)] = step[turn, range(3)]
    if sorted(turn) != [0, 1, 2] or np.abs(step[:3, :3] - expected).max() > 1e-4:
        raise GeometryError(f"the network's grid is turned against the scan's by more than whole axes: {step.tolist()}")
    return turn, [step[turn[axis], axis] * np.arange(scan.shape[axis]) + step[turn[axis], 3] for axis in range(3)]


def linear_weights(coordinates: NDArray[np.float64], n: int, width: float) -> NDArray[np.float32]:
    """(len(coordinates), n) matrix of linear interpolation: a triangle of half-width `width` voxels, rows sum to 1.

    Coordinates beyond the first and last voxel take the border's value.
    """
    inside = np.clip(coordinates, 0, n - 1)
    weights = np.maximum(0.0, 1 - np.abs(inside[:, None] - np.arange(n)) / width)
    weights[weights < 1e-6] = 0.0
    normalised: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised


def _along(array: Tensor, axis: int, weights: NDArray[np.float32]) -> Tensor:
    moved: Tensor = torch.tensordot(array, torch.from_numpy(weights).to(array), dims=([axis], [1]))
    return moved.movedim(-1, axis)


def _are_voxels(places: NDArray[np.float64], n: int) -> bool:
    """Whether every coordinate is that of one of n voxels: nothing lies between them."""
    near = places.round()
    return bool(np.abs(places - near).max() < 1e-3 and near.min() >= 0 and near.max() < n)
