"""Connected pieces of a label: which are kept. Small isolated ones are often what a network took for something else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def keep_pieces(
    classes: NDArray[np.integer], keep_largest: Sequence[int] = (), minimum_voxels: int = 0
) -> NDArray[np.integer]:
    """Class indices (i, j, k) where pieces of labels became background; the array itself where nothing changed.

    A piece is connected over faces, edges and corners, within one label.

    Args:
        classes: 0 is the background.
        keep_largest: classes of which only the largest piece stays, the first in the array on a tie.
        minimum_voxels: smaller pieces of every label go.
    """
    if minimum_voxels <= 1 and not keep_largest:
        return classes
    found = np.unique(classes)
    found = found[found > 0]
    wanted = found if minimum_voxels > 1 else np.intersect1d(found, list(keep_largest))
    result = classes
    for label in wanted.tolist():
        box = _box(classes == label)
        pieces = number_pieces(classes[box] == label)
        sizes = np.bincount(pieces.ravel())
        gone = sizes < minimum_voxels
        if label in keep_largest:
            gone |= np.arange(len(sizes)) != sizes[1:].argmax() + 1
        gone[0] = False
        if gone.any():
            result = classes.copy() if result is classes else result
            result[box][gone[pieces]] = 0
    return result


def number_pieces(inside: NDArray[np.bool_], corners: bool = True) -> NDArray[np.unsignedinteger]:
    """The pieces of a mask (i, j) or (i, j, k), numbered from 1 in the order of the array; 0 outside.

    `corners`: whether voxels that touch at an edge or a corner are connected, or over faces alone.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(inside, dtype=np.uint8))
    numbers: NDArray[np.unsignedinteger] = sitk.GetArrayFromImage(sitk.ConnectedComponent(image, corners))
    return numbers


def count_pieces(inside: NDArray[np.bool_]) -> int:
    """How many there are, connected over faces, edges and corners."""
    return int(number_pieces(inside[_box(inside)]).max()) if inside.any() else 0


def _box(inside: NDArray[np.bool_]) -> tuple[slice, ...]:
    """Around all that is inside; there is something."""
    sides = []
    for axis in range(inside.ndim):
        along = np.flatnonzero(inside.any(axis=tuple(a for a in range(inside.ndim) if a != axis)))
        sides.append(slice(int(along[0]), int(along[-1]) + 1))
    return tuple(sides)
