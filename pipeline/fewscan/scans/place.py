"""Where a mask lies in its scan: voxel on voxel, or nowhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import GeometryError
from fewscan.grid import Grid
from fewscan.scans.labels import match_grid

TOLERANCE = 0.01
"""How far a mask's voxel may lie from the scan's, in voxels along each axis of the scan: what rounding does."""

Box = tuple[slice, slice, slice]


def place(values: NDArray[Any], own: Grid, scan: Grid, where: str) -> tuple[NDArray[Any], Box]:
    """The part of a mask that lies in its scan, in the scan's order of axes, and the box of the scan that it fills.

    A mask that was cropped, shifted by whole voxels, or saved with other or reversed axes is moved without
    resampling; what of it lies beyond the scan is left out where it is 0. Pictures are placed by their shape where one
    of them states no pixel size (see `match_grid`).

    Args:
        values: (i, j, k) of the mask; 0 is no label.
        own: the mask's grid.
        scan: the grid to be placed on.
        where: names the mask in errors.

    Raises:
        GeometryError: the mask's voxels do not lie on the scan's, or labelled ones lie beyond it.
    """
    if own.shape == scan.shape and own.differs_from(scan):
        try:
            return match_grid(values, own, scan, where), (slice(None), slice(None), slice(None))
        except GeometryError:  # said below in numbers of voxels
            pass
    step = np.linalg.inv(scan.affine) @ own.affine  # the mask's voxel -> the scan's
    axes, signs = _turn(step[:3, :3], own.shape)
    first = step[:3, 3].round()
    moves = np.zeros((3, 3))
    for axis, (target, sign) in enumerate(zip(axes, signs, strict=True)):
        moves[target, axis] = sign
    lasts = np.array(np.meshgrid(*[(0, n - 1) for n in own.shape], indexing="ij")).reshape(3, -1)
    off = step[:3, :3] @ lasts + step[:3, 3:] - (moves @ lasts + first[:, None])
    if np.abs(off).max() > TOLERANCE:
        raise GeometryError(f"{where}: {_disagreement(own, scan, step, float(np.abs(off).max()))}")
    order = [axes.index(target) for target in range(3)]
    turned = values.transpose(order)[tuple(slice(None, None, signs[axis]) for axis in order)]
    begin = [int(first[target]) + min(0, signs[axis] * (own.shape[axis] - 1)) for target, axis in enumerate(order)]
    box, part = [], []
    for at, n, size in zip(begin, turned.shape, scan.shape, strict=True):
        low, high = min(max(0, at), size), min(max(0, at + n), size)
        box.append(slice(low, high))
        part.append(slice(low - at, high - at) if low < high else slice(0, 0))
    inside = turned[tuple(part)]
    outside = int(np.count_nonzero(values)) - int(np.count_nonzero(inside))
    if outside:
        reach = ", ".join(f"{at} to {at + n - 1}" for at, n in zip(begin, turned.shape, strict=True))
        raise GeometryError(
            f"{where}: {outside} labelled voxel(s) lie beyond the scan: the mask reaches over its voxels {reach} along "
            f"i, j, k, the scan has {' x '.join(map(str, scan.shape))}; is it the mask of another scan?"
        )
    return inside, (box[0], box[1], box[2])


def _turn(step: NDArray[np.float64], shape: tuple[int, int, int]) -> tuple[list[int], list[int]]:
    """For each axis of the mask the scan's axis that it runs along, and 1 or -1 for its sense.

    An axis of one voxel runs nowhere: it takes what the others leave.
    """
    axes, signs = [-1, -1, -1], [1, 1, 1]
    for axis in sorted(range(3), key=lambda axis: (shape[axis] == 1, axis)):
        free = [target for target in range(3) if target not in axes]
        axes[axis] = max(free, key=lambda target: abs(step[target, axis]))
        signs[axis] = -1 if shape[axis] > 1 and step[axes[axis], axis] < 0 else 1
    return axes, signs


def _disagreement(own: Grid, scan: Grid, step: NDArray[np.float64], off: float) -> str:
    """In words, why the voxels of two grids do not coincide."""
    way_out = "save it in the geometry of its scan"
    sizes = sorted(own.spacing_mm), sorted(scan.spacing_mm)
    thick = [axis for axis, n in enumerate(own.shape) if n > 1]
    turned = np.abs(scan.directions.T @ own.directions)[:, thick].max(axis=0) if thick else np.ones(1)
    if len(thick) == 3 and not np.allclose(*sizes, rtol=1e-3):
        told = f"has voxels of {_times(own.spacing_mm)} mm, its scan {_times(scan.spacing_mm)} mm"
    elif turned.min() < 1 - 1e-7:
        angle = float(np.degrees(np.arccos(min(1.0, turned.min()))))
        told = f"is turned against its scan by {angle:.3g} degrees"
    else:
        shift = step[:3, 3] - step[:3, 3].round()
        told = f"is shifted against the voxels of its scan by {', '.join(f'{s:.3g}' for s in shift)} voxels"
    return f"{told}, so that its voxels lie up to {off:.3g} voxels beside the scan's; {way_out}"


def _times(numbers: tuple[float, float, float]) -> str:
    return " x ".join(f"{number:.6g}" for number in numbers)
