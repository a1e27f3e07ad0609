"""Label files become class indices on the grid of their image."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import GeometryError, LabelError
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.scans.names import stem_of
from fewscan.scans.open import open_file


def read_values(path: Path) -> tuple[NDArray[Any], Grid]:
    """What a label file holds: values (i, j, k) as stored, and its grid. Raises ScanError where it cannot be read."""
    scan = open_file(path, stem_of(path), label=True)
    data = scan.read()
    if len(data) != 1:
        raise LabelError(f"{path}: a label holds one number a voxel, this file {len(data)}")
    return data[0], scan.grid


def read_label(
    files: Sequence[Path],
    table: LabelTable,
    structures: Sequence[str] = (),
    merged: bool = False,
    unlabelled: float | None = None,
    sparse: int | None = None,
) -> tuple[NDArray[np.integer[Any]], Grid]:
    """Class indices (i, j, k) and their grid.

    One file holds values of the table. With `structures`, each file is a mask (anything above 0) of the label of that
    name. With `merged`, anything above 0 in any file is class 1. Raises LabelError on values or names that the table
    does not list and where two structures overlap; GeometryError where the files' grids differ.

    Args:
        files, structures, merged: see above.
        table: the labels.
        unlabelled: the value of voxels that nobody annotated. They are -1, unless another file says what they are.
        sparse: 0, 1 or 2 where only some slices across left, posterior or superior are annotated: slices without
            any label are -1 then. A case without any label at all stays background.

    Returns:
        uint16; int32 where voxels can be -1.
    """
    if not files:
        raise LabelError("no label file was given")
    if len(files) > 1 and not structures and not merged:
        raise LabelError(f"{files[0]}: {len(files)} label files for one image; name the structures or merge the masks")
    if merged:
        numbers, grid = read_instances(files, unlabelled)
        classes = np.minimum(numbers, 1)
    elif structures:
        classes, grid = _read_structures(files, _classes(files, structures, table), unlabelled)
    else:
        values, grid = read_values(files[0])
        unknown = _is(values, unlabelled)
        classes = table.to_classes(np.where(unknown, values.dtype.type(0), values), str(files[0])).astype(np.int32)
        classes[unknown] = -1
    if unlabelled is None and sparse is None:
        return classes.astype(np.uint16), grid
    return classes if sparse is None else forget_empty_slices(classes, grid, sparse), grid


def read_instances(files: Sequence[Path], unlabelled: float | None = None) -> tuple[NDArray[np.int32], Grid]:
    """Which object a voxel of merged masks belongs to, (i, j, k), and the grid.

    In one file each value above 0 is an object, in several each file; where files overlap, the later one counts.
    Objects are numbered from 1; 0 is background, -1 has the value `unlabelled` and is no object in any file. Raises
    GeometryError where the files' grids differ.
    """
    values, grid = read_values(files[0])
    unknown = _is(values, unlabelled)
    inside = (values > 0) & ~unknown
    numbers = np.zeros(grid.shape, dtype=np.int32)
    numbers[inside] = np.unique(values[inside], return_inverse=True)[1] + 1 if len(files) == 1 else 1
    for number, path in enumerate(files[1:], start=2):
        values, own_grid = read_values(path)
        values = match_grid(values, own_grid, grid, str(path))
        here = _is(values, unlabelled)
        numbers[(values > 0) & ~here] = number
        unknown |= here
    numbers[unknown & (numbers == 0)] = -1
    return numbers, grid


def forget_empty_slices(classes: NDArray[np.int32], grid: Grid, axis: int) -> NDArray[np.int32]:
    """Class indices or object numbers (i, j, k) with -1 in the slices that hold none above 0.

    Slices lie across `axis`, 0, 1 or 2 for the array's axis closest to left, posterior or superior. Where no slice
    holds anything, nothing says that some were annotated: the array stays as it is.
    """
    own = grid.axes_to_lps()[0][axis]
    labelled = (classes > 0).any(axis=tuple(other for other in range(3) if other != own))
    if labelled.any():
        classes[(slice(None),) * own + (~labelled,)] = -1
    return classes


def match_grid(label: NDArray[Any], label_grid: Grid, image_grid: Grid, where: str) -> NDArray[Any]:
    """The label (i, j, k) on the image's grid: as it is where the grids are equal, reordered where voxels coincide.

    A picture without a voxel size matches one that states it by the shape alone, for editors drop the size. Raises
    GeometryError in the numbers that differ where the voxels do not coincide; nothing is resampled.
    """
    difference = image_grid.differs_from(label_grid)
    if difference is None or (label_grid.shape == image_grid.shape and _only_a_size_is_missing(label_grid, image_grid)):
        return label
    for axes in itertools.permutations(range(3)):
        if tuple(label_grid.shape[axis] for axis in axes) != image_grid.shape:
            continue
        for flips in itertools.product((False, True), repeat=3):
            order = (axes[0], axes[1], axes[2])
            if image_grid.differs_from(label_grid.reordered(order, (flips[0], flips[1], flips[2]))) is None:
                turned = label.transpose(order)
                return turned[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    raise GeometryError(f"{where}: is not on the grid of its image: {difference}; resample it to the image's grid")


def _only_a_size_is_missing(*grids: Grid) -> bool:
    """Whether all lie as pictures do, x to the right and y down from 0, and one is 1 x 1 x 1, as without a size."""
    sizes = [np.array(grid.spacing_mm) for grid in grids]
    pictures = [np.diag([-x, -y, z, 1]) for x, y, z in sizes]
    return all(np.allclose(grid.affine, picture) for grid, picture in zip(grids, pictures, strict=True)) and any(
        np.allclose(size, 1) for size in sizes
    )


def _is(values: NDArray[Any], unlabelled: float | None) -> NDArray[np.bool_]:
    return np.zeros(values.shape, dtype=bool) if unlabelled is None else np.asarray(values == unlabelled)


def _read_structures(
    files: Sequence[Path], classes: Sequence[int], unlabelled: float | None
) -> tuple[NDArray[np.int32], Grid]:
    """Class indices of masks, one per structure."""
    first, grid = read_values(files[0])
    result = np.zeros(grid.shape, dtype=np.int32)
    owner = np.zeros(grid.shape, dtype=np.uint16)
    unknown = np.zeros(grid.shape, dtype=bool)
    for number, (path, class_index) in enumerate(zip(files, classes, strict=True), start=1):
        values, own_grid = (first, grid) if number == 1 else read_values(path)
        values = match_grid(values, own_grid, grid, str(path))
        here = _is(values, unlabelled)
        inside = (values > 0) & ~here
        overlap = inside & (owner > 0)
        if overlap.any():
            other = files[int(owner[overlap][0]) - 1]
            raise LabelError(
                f"{path} and {other} overlap in {int(overlap.sum())} voxels; a voxel has one label: correct one of them"
            )
        owner[inside] = number
        result[inside] = class_index
        unknown |= here
    result[unknown & (owner == 0)] = -1
    return result, grid


def _classes(files: Sequence[Path], structures: Sequence[str], table: LabelTable) -> list[int]:
    classes: Mapping[str, int] = {label.name: number for number, label in enumerate(table, start=1)}
    if len(structures) != len(files):
        raise LabelError(f"{files[0].parent}: {len(files)} masks for {len(structures)} structures")
    for path, name in zip(files, structures, strict=True):
        if name not in classes:
            raise LabelError(
                f"{path}: the label table has no {name!r} ({', '.join(classes)}); rename the file or add the label"
            )
    return [classes[name] for name in structures]
