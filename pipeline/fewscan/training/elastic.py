"""Elastic deformation and affine augmentation in one resample, image and label together.

Ronneberger et al. 2015, section 3.1: random displacements on a coarse grid, Gaussian, to every pixel by cubic
interpolation. Here the coarse field is composed with rotation, scale and flips, and the volume is sampled once,
straight from where it lies: no border is dragged in by a crop before, and nothing is blurred twice.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SMALLEST_JACOBIAN = 0.2
"""Deformations that squeeze a voxel below this share of its volume are weakened: at 0 the image folds."""


def dense_field(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """Displacements at every voxel from those at control points, by cubic B-spline interpolation.

    The first and the last control point of an axis lie on its first and last voxel, the others evenly between.
    Equals `scipy.ndimage.zoom(grid, order=3, mode="mirror", grid_mode=False)` of each component.

    Args:
        coarse: (component, *points), at least 2 points along each axis.
        shape: voxels of the result along each axis.

    Returns:
        (component, *shape), in the units and dtype of `coarse`.
    """
    for axis, size in enumerate(shape, start=1):
        weights = torch.from_numpy(_cubic_weights(coarse.shape[axis], size)).to(coarse)
        coarse = torch.tensordot(coarse, weights, dims=([axis], [1])).movedim(-1, axis)
    return coarse


def deform(image: Tensor, label: Tensor, coordinates: Tensor) -> tuple[Tensor, Tensor]:
    """Sample image and label at the same places.

    Args:
        image: (C, *spatial) float; sampled linearly, mirrored beyond its border.
        label: (*spatial) integer; the nearest voxel's value is taken, and -1 (unknown) beyond the border.
        coordinates: (axes, *patch) voxel coordinates into `spatial`.

    Returns:
        (C, *patch) float32 and (*patch) int64.
    """
    shape = image.shape[1:]
    size = torch.tensor(shape, dtype=torch.float32).view(-1, *(1,) * len(shape))
    scaled = (2 * coordinates + 1) / size - 1  # voxel centres at (i + 0.5) / n, as grid_sample counts them
    places = scaled.flip(0).movedim(0, -1)[None]  # grid_sample wants the last axis first
    moved = torch.nn.functional.grid_sample(
        image[None].float(), places, mode="bilinear", padding_mode="reflection", align_corners=False
    )[0]
    nearest = torch.floor(coordinates + 0.5).long()
    inside = torch.ones(nearest.shape[1:], dtype=torch.bool)
    flat = torch.zeros(nearest.shape[1:], dtype=torch.long)
    for axis, n in enumerate(shape):
        inside &= (nearest[axis] >= 0) & (nearest[axis] < n)
        flat = flat * n + nearest[axis].clamp(0, n - 1)
    values = label.reshape(-1)[flat].long()
    return moved, torch.where(inside, values, -1)


def random_coordinates(
    random: np.random.Generator,
    patch: Sequence[int],
    centre: Sequence[float],
    spacing_mm: Sequence[float],
    *,
    elastic_sd: float = 0.0,
    control_points: int = 3,
    rotate_degrees: float = 0.0,
    scale: Sequence[float] = (1.0, 1.0),
    flip: bool = False,
) -> Tensor:
    """Where the voxels of a randomly deformed patch come from.

    Args:
        random: source of everything random here.
        patch: voxels of the patch along each axis (2 or 3).
        centre: voxel coordinates of the patch's centre in the volume.
        spacing_mm: of the volume; rotation and scale are true in mm.
        elastic_sd: standard deviation of the control points' displacements, in voxels (10 in the paper); weakened
            where it would fold the image.
        control_points: along each axis, from border to border of the patch (3 in the paper).
        rotate_degrees: rotations are drawn evenly from -this to this, about each axis in 3D.
        scale: smallest and largest magnification, drawn evenly on a logarithmic scale.
        flip: whether each axis is mirrored in half of all cases.

    Returns:
        (axes, *patch) float32 voxel coordinates in the volume.
    """
    axes = len(patch)
    grids = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in patch]
    offset = torch.stack(torch.meshgrid(*grids, indexing="ij"))
    if elastic_sd > 0:
        points = random.normal(0.0, elastic_sd, (axes, *(control_points,) * axes))
        offset = offset + _without_folds(torch.from_numpy(points.astype(np.float32)), patch)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    magnification = np.exp(random.uniform(np.log(scale[0]), np.log(scale[1])))
    turn = _rotation(random, axes, np.deg2rad(rotate_degrees)) / magnification
    if flip:
        turn = turn @ np.diag(random.choice((-1.0, 1.0), axes))
    matrix = torch.from_numpy((turn * spacing[None, :] / spacing[:, None]).astype(np.float32))
    moved: Tensor = torch.tensordot(matrix, offset, dims=([1], [0]))
    return moved + torch.tensor(centre, dtype=torch.float32).view(-1, *(1,) * axes)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """(axes, *shape) displacements in voxels -> (*shape) local change of volume; at 0 or below the image folds."""
    axes = displacement.shape[0]
    gradient = torch.stack([torch.stack(torch.gradient(d)) for d in displacement]).movedim((0, 1), (-2, -1))
    determinant: Tensor = torch.linalg.det(gradient + torch.eye(axes).to(displacement))
    return determinant


def _without_folds(points: Tensor, patch: Sequence[int]) -> Tensor:
    """The dense field of the control points, weakened until no voxel shrinks below SMALLEST_JACOBIAN."""
    field = dense_field(points, patch)
    step = max(1, min(patch) // 16)
    coarse = field[(slice(None), *(slice(None, None, step),) * len(patch))]
    if min(coarse.shape[1:]) < 2:
        return field
    while float(jacobian_determinant(coarse / step).min()) < SMALLEST_JACOBIAN:
        field, coarse = field * 0.7, coarse * 0.7
    return field


def _rotation(random: np.random.Generator, axes: int, largest: float) -> NDArray[np.float64]:
    """Axes x axes rotation matrix, angles (radians) drawn evenly from -largest to largest."""
    matrix = np.eye(axes)
    for first, second in [(0, 1)] if axes == 2 else [(0, 1), (0, 2), (1, 2)]:
        angle = random.uniform(-largest, largest)
        one = np.eye(axes)
        one[[first, second], [first, second]] = np.cos(angle)
        one[first, second], one[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ one
    return matrix


@functools.lru_cache(maxsize=64)
def _cubic_weights(points: int, size: int) -> NDArray[np.float64]:
    """(size, points) matrix of cubic B-spline interpolation through the points, mirrored at both ends."""
    if points < 2:
        raise ValueError(f"a control grid needs at least 2 points along each axis, not {points}")
    places = np.linspace(0, points - 1, size) if size > 1 else np.zeros(1)
    return _basis(places, points) @ np.linalg.inv(_basis(np.arange(points, dtype=float), points))


def _basis(places: NDArray[np.float64], points: int) -> NDArray[np.float64]:
    """(len(places), points) values of the cubic B-splines; those beyond the ends are folded back (mirror)."""
    matrix = np.zeros((len(places), points))
    first = np.floor(places).astype(int) - 1
    for near in range(4):
        node = first + near
        t = np.abs(places - node)
        value = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
        folded = np.abs(node) % (2 * (points - 1))
        np.add.at(matrix, (np.arange(len(places)), np.minimum(folded, 2 * (points - 1) - folded)), value)
    return matrix
