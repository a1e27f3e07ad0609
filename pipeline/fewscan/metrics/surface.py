"""Scores that measure how far two surfaces lie apart, in mm on grids of any spacing.

MONAI 1.6.1 computes both scores right on anisotropic grids, and the tests hold these to its values. It needs SciPy
for that, and it takes every voxel of a volume of one slice for surface; so distances come from SimpleITK here, and
an axis of length 1 is left out: a 2D image has outlines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import GeometryError
from fewscan.grid import Grid

Mask = NDArray[np.bool_]
_ROUNDING = 1e-5  # distances are float32, and squared on the way: up to 1.2e-6 was seen


def hausdorff95_mm(answer: NDArray[Any], truth: NDArray[Any], grid: Grid) -> float:
    """HD95 in mm, 0 or more: the larger of the two directed 95th percentiles of the distances between surfaces.

    max(P95 of d(a, T) for a in A's surface, P95 of d(t, A) for t in T's surface), where a surface is the voxels that
    touch the outside through a face (beyond the image is outside), each counts once, and percentiles interpolate
    linearly. The same as MONAI's `compute_hausdorff_distance(percentile=95)`. Others pool both directions or weight
    by area, which gives other numbers.

    Args:
        answer: mask (i, j, k) of one class, true inside.
        truth: mask of the same shape.
        grid: where the voxels lie; its axes are at right angles.

    Returns:
        mm; inf where one mask is empty, NaN where both are.

    Raises ValueError where shapes differ, GeometryError on a sheared grid.
    """
    pair = _Pair.of(answer, truth, grid)
    if pair is None:
        return float("nan")
    if not pair.answer.any() or not pair.truth.any():
        return float("inf")
    of_answer, of_truth = _border(pair.answer), _border(pair.truth)
    there = distance_to(of_truth, pair.spacing_mm)[of_answer]
    back = distance_to(of_answer, pair.spacing_mm)[of_truth]
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def surface_dice(answer: NDArray[Any], truth: NDArray[Any], grid: Grid, tolerance_mm: float) -> float:
    """Normalised surface distance (surface Dice at a tolerance), 0 to 1.

    (|A's surface within the tolerance of T's| + |T's within the tolerance of A's|) / (|A's surface| + |T's|), where
    |.| is the area in mm2 (in a 2D image the length in mm) of the elements between voxels: Nikolov et al. 2018,
    arXiv:1809.04430. Area counts, not voxels: on thick slices voxels weigh wrongly. Elements lie on the corners of
    voxels, so at tolerance 0 only elements that coincide agree. The same as MONAI's
    `compute_surface_dice(use_subvoxels=True)`; its default counts voxels and gives another number.

    Args:
        answer: mask (i, j, k) of one class, true inside.
        truth: mask of the same shape.
        grid: where the voxels lie; its axes are at right angles.
        tolerance_mm: distance that still counts as agreement, 0 or more; that of two experts, for example.

    Returns:
        0 to 1; 0 where one mask is empty, NaN where both are.

    Raises ValueError where shapes differ, the tolerance is negative, or only one axis is longer than 1; GeometryError
    on a sheared grid.
    """
    from monai.metrics.utils import get_mask_edges

    if not tolerance_mm >= 0:
        raise ValueError(f"the tolerance has to be 0 mm or more, not {tolerance_mm}")
    pair = _Pair.of(answer, truth, grid)
    if pair is None:
        return float("nan")
    if pair.answer.ndim < 2:
        raise ValueError(f"a surface needs two axes longer than 1; the masks have the shape {answer.shape}")
    if not pair.answer.any() or not pair.truth.any():
        return 0.0
    of_answer, of_truth, answer_areas, truth_areas = get_mask_edges(pair.answer, pair.truth, spacing=pair.spacing_mm)
    there = distance_to(of_truth, pair.spacing_mm)[of_answer]
    back = distance_to(of_answer, pair.spacing_mm)[of_truth]
    reach = tolerance_mm * (1 + _ROUNDING)
    answer_areas, truth_areas = answer_areas[of_answer].astype(np.float64), truth_areas[of_truth].astype(np.float64)
    agreed = answer_areas[there <= reach].sum() + truth_areas[back <= reach].sum()
    return float(agreed / (answer_areas.sum() + truth_areas.sum()))


@dataclass(frozen=True)
class _Pair:
    """Two masks in the box that holds both, without axes of length 1."""

    answer: Mask
    truth: Mask
    spacing_mm: tuple[float, ...]

    @classmethod
    def of(cls, answer: NDArray[Any], truth: NDArray[Any], grid: Grid) -> _Pair | None:
        """The checked pair; None where both masks are empty."""
        if not answer.shape == truth.shape == grid.shape:
            raise ValueError(f"answer {answer.shape}, truth {truth.shape} and grid {grid.shape} have to have one shape")
        if not grid.is_orthogonal:
            raise GeometryError(
                "the grid is sheared (a gantry tilt), so spacing alone gives no distances; resample both masks to "
                "axes at right angles first"
            )
        inside = (answer != 0) | (truth != 0)
        if not inside.any():
            return None
        box: list[slice | int] = []
        for axis, length in enumerate(grid.shape):
            found = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
            box.append(slice(int(found[0]), int(found[-1]) + 1) if length > 1 else 0)
        spacing = tuple(mm for mm, length in zip(grid.spacing_mm, grid.shape, strict=True) if length > 1)
        crop = tuple(box)
        return cls(answer[crop] != 0, truth[crop] != 0, spacing)


def _border(mask: Mask) -> Mask:
    """The voxels of a mask that have a face neighbour outside it; beyond the array is outside."""
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(mask.ndim):
        for shift in (-1, 1):
            inner &= np.roll(padded, shift, axis)[(slice(1, -1),) * mask.ndim]
    return mask & ~inner


def distance_to(mask: Mask, spacing: tuple[float, ...]) -> NDArray[np.float32]:
    """The exact Euclidean distance from each voxel to the nearest voxel of a mask (not empty), in units of spacing."""
    import SimpleITK as sitk

    # The filter measures from the rim of an object: a margin, and an axis more where there is one, make all of it rim.
    axes = max(mask.ndim, 2)
    padded = np.pad(mask.reshape(mask.shape + (1,) * (axes - mask.ndim)), 1)
    image = sitk.GetImageFromArray(padded.astype(np.uint8))
    image.SetSpacing((*spacing, 1.0)[:axes][::-1])  # SimpleITK counts axes from the array's last
    signed = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    distance: NDArray[np.float32] = sitk.GetArrayFromImage(signed)[(slice(1, -1),) * axes]
    return np.maximum(distance, 0).reshape(mask.shape)
