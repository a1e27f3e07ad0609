"""Elastic deformation and affine augmentation, composed into the coordinates of one resample.

Ronneberger et al. 2015, section 3.1: random displacements on a coarse grid, Gaussian, to every pixel by cubic
interpolation. Rotation, scale, flips and a change of spacing are applied to the control points, so that the dense
coordinates are made once, and the volume is sampled once, straight from where it lies: no border is dragged in by a
crop before (see `fewscan.training.resample`). A bundle has brought the scan to the network's grid before, once a case
and with kernels that do not alias; where that changed the spacing, a patch is the second interpolation of its voxels.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SMALLEST_JACOBIAN = 0.2
"""Deformations that squeeze a voxel below this share of its volume are weakened: at 0 the image folds."""
_SHARES = 0.9 ** np.arange(40, -1, -1, dtype=np.float64)
_SAMPLES = 4
"""Places in each interval of the control grid where folding is looked for."""


@dataclass(frozen=True)
class Deformation:
    """From the voxels of a patch to those of its source: a few drawn numbers, on the CPU."""

    matrix: Tensor
    """(axes, axes) float32."""
    points: Tensor | None = None
    """(axes, *points) displacements of the control points in voxels of the patch, float32; None without any."""
    share: float = 1.0
    """What is left of the drawn displacements: below 1 where they would have folded the image."""

    def coordinates(self, patch: Sequence[int], centre: Sequence[float], device: torch.device | str = "cpu") -> Tensor:
        """Where the voxels of the patch come from: (axes, *patch) float32 voxel coordinates in the source.

        Args:
            patch: voxels along each axis (2 or 3).
            centre: voxel coordinates of the patch's centre in the source.
            device: of the result.
        """
        axes = len(patch)
        along = (-1, *(1,) * axes)
        places = torch.tensor(centre, dtype=torch.float32, device=device).view(along)
        matrix = self.matrix.to(device)
        ramps = []
        for axis, n in enumerate(patch):
            steps = torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2
            ramps.append(matrix[:, axis].view(along) * steps.view(-1, *(1,) * (axes - 1 - axis)))
        plane = sum(ramps[:-1], start=places)
        if self.points is None:
            return plane + ramps[-1]
        # the interpolation is linear in the control points: turning them turns the field
        turned = torch.tensordot(self.matrix, self.points, dims=1).to(device)
        return dense_field(turned, patch).add_(plane).add_(ramps[-1])


@dataclass(frozen=True)
class RandomDeformation:
    """How strongly patches are deformed; `draw` makes deformations of that strength.

    Args:
        elastic_sd: standard deviation of the control points' displacements along each axis, in `unit` (10 voxels in
            the U-Net paper, 4 in the 3D U-Net's); 0 switches it off. Weakened where it would fold the image.
        control_points: along each axis, from border to border of the patch (3 in the U-Net paper).
        control_spacing: instead of `control_points`, the distance of control points in `unit` (32 voxels in the 3D
            U-Net paper), rounded so that they go from border to border; at least 2 points an axis.
        unit: "voxels" of the patch, or "mm".
        rotate_degrees: rotations are drawn evenly from -this to this, about each axis in 3D; true in mm.
        scale: smallest and largest magnification, drawn evenly on a logarithmic scale.
        flip: whether each axis is mirrored in half of all cases.
        still_axis: 0, 1 or 2, the axis of a 3D patch along which slices lie so far apart that nothing may mix them.
            Each slice stays one: nothing is displaced or magnified along it, and rotations are about it alone. In the
            plane all is as without it, and the displacements there may differ from slice to slice. Flips mirror it
            too, and another spacing of the patch holds along it, for that is asked for and not drawn.
    """

    elastic_sd: float = 0.0
    control_points: int = 3
    control_spacing: float | None = None
    unit: Literal["voxels", "mm"] = "voxels"
    rotate_degrees: float = 0.0
    scale: Sequence[float] = (1.0, 1.0)
    flip: bool = False
    still_axis: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("voxels", "mm"):
            raise ValueError(f"the unit of an elastic deformation is 'voxels' or 'mm', not {self.unit!r}")
        if self.elastic_sd < 0 or self.control_points < 2:
            raise ValueError(
                f"elastic_sd {self.elastic_sd} has to be 0 or more, and control_points {self.control_points} 2 or more"
            )
        if self.control_spacing is not None and self.control_spacing <= 0:
            raise ValueError(f"control_spacing has to be more than 0, not {self.control_spacing}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is [smallest, largest], both more than 0, not {list(self.scale)}")
        if self.still_axis not in (None, 0, 1, 2):
            raise ValueError(f"still_axis is 0, 1 or 2, an axis of a 3D patch, or None, not {self.still_axis!r}")

    def refuse_flat(self, axes: int) -> None:
        """Raise ValueError where a patch of so many axes cannot have the still axis."""
        if self.still_axis is not None and axes != 3:
            raise ValueError(
                f"still_axis {self.still_axis} is for 3D patches: a patch of {axes} axes lies in one slice, which "
                "nothing mixes with others; leave it out (None)"
            )

    def draw(
        self,
        random: np.random.Generator,
        patch: Sequence[int],
        spacing_mm: Sequence[float],
        patch_spacing_mm: Sequence[float] | None = None,
    ) -> Deformation:
        """One deformation of this strength.

        Args:
            random: source of everything random here.
            patch: voxels of the patch along each axis (2 or 3).
            spacing_mm: of the source.
            patch_spacing_mm: None for that of the source. Where it is coarser, the source's voxels between are
                passed over: nothing is averaged.

        Raises:
            ValueError: a 2D patch has no still axis.
        """
        axes = len(patch)
        self.refuse_flat(axes)
        source = np.asarray(spacing_mm, dtype=np.float64)
        spacing = source if patch_spacing_mm is None else np.asarray(patch_spacing_mm, dtype=np.float64)
        points, share = None, 1.0
        if self.elastic_sd > 0:
            unit = spacing if self.unit == "mm" else np.ones(axes)
            drawn = random.normal(0.0, self.elastic_sd, (axes, *self._counts(patch, unit)))
            drawn /= unit.reshape(-1, *(1,) * axes)
            if self.still_axis is not None:
                drawn[self.still_axis] = 0
            share = largest_share(drawn, patch)
            points = torch.from_numpy((share * drawn).astype(np.float32))
        magnification = np.exp(random.uniform(np.log(self.scale[0]), np.log(self.scale[1])))
        turn = _rotation(random, axes, np.deg2rad(self.rotate_degrees), self.still_axis) / magnification
        if self.still_axis is not None:
            turn[self.still_axis, self.still_axis] = 1
        if self.flip:
            turn = turn @ np.diag(random.choice((-1.0, 1.0), axes))
        matrix = torch.from_numpy((turn * spacing[None, :] / source[:, None]).astype(np.float32))
        return Deformation(matrix, points, share)

    def _counts(self, patch: Sequence[int], unit: NDArray[np.float64]) -> list[int]:
        """Control points along each axis."""
        if self.control_spacing is None:
            return [self.control_points] * len(patch)
        extents = [(n - 1) * size for n, size in zip(patch, unit, strict=True)]
        return [max(2, round(extent / self.control_spacing) + 1) for extent in extents]


def dense_field(coarse: Tensor, shape: Sequence[int]) -> Tensor:
    """Displacements at every voxel from those at control points, by cubic B-spline interpolation.

    The first and the last control point of an axis lie on its first and last voxel, the others evenly between.
    Equals `scipy.ndimage.zoom(grid, order=3, mode="mirror", grid_mode=False)` of each component.

    Args:
        coarse: (..., *points), at least 2 points along each axis.
        shape: voxels of the result along each axis.

    Returns:
        (..., *shape), in the units and dtype and on the device of `coarse`.
    """
    points = coarse.shape[-len(shape) :]
    for axis, counts in zip(range(-len(shape), 0), zip(points, shape, strict=True), strict=True):
        weights = torch.from_numpy(_cubic_weights(*counts)).to(coarse.dtype).to(coarse.device)
        coarse = torch.tensordot(coarse, weights, dims=([axis], [1])).movedim(-1, axis)
    return coarse.contiguous()


def largest_share(points: NDArray[np.float64], patch: Sequence[int]) -> float:
    """How much of a deformation may be kept, so that no voxel shrinks below SMALLEST_JACOBIAN of its volume.

    The Jacobian is taken at four places in each interval of the control grid, from the exact derivatives of the
    splines, at all shares from 0.9^40 to 1: a field that turns over twice is no better than one that does once.

    Args:
        points: (axes, *points) displacements in voxels.
        patch: voxels along each axis.

    Returns:
        The largest of the shares up to which all are sound, 1 where nothing folds; 0 where even the smallest folds.
    """
    sizes = [min(n, _SAMPLES * (k - 1) + 1) for n, k in zip(patch, points.shape[1:], strict=True)]
    values = [_cubic_weights(k, size) for k, size in zip(points.shape[1:], sizes, strict=True)]
    slopes = [_cubic_slopes(k, size) / max(1, n - 1) for k, size, n in zip(points.shape[1:], sizes, patch, strict=True)]
    gradient = []
    for along in range(len(patch)):
        field = points
        for axis in range(len(patch)):
            weights = slopes[axis] if axis == along else values[axis]
            field = np.moveaxis(np.tensordot(field, weights, (axis + 1, 1)), -1, axis + 1)
        gradient.append(field.reshape(len(patch), -1))
    powers = _SHARES[:, None] ** np.arange(1, len(patch) + 1)
    determinant = 1 + powers @ _invariants(gradient)  # (shares, places)
    sound = np.logical_and.accumulate(determinant.min(axis=1) >= SMALLEST_JACOBIAN)
    return float(_SHARES[sound][-1]) if sound.any() else 0.0


def _invariants(g: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(axes, M) coefficients of s, s^2 (and s^3) in det(I + s G); g[j][i] is the slope of component i along axis j."""

    def minor(i: int, j: int) -> NDArray[np.float64]:
        difference: NDArray[np.float64] = g[i][i] * g[j][j] - g[j][i] * g[i][j]
        return difference

    if len(g) == 2:
        return np.stack([g[0][0] + g[1][1], minor(0, 1)])
    whole = (np.cross(g[0], g[1], axis=0) * g[2]).sum(axis=0)
    return np.stack([g[0][0] + g[1][1] + g[2][2], minor(0, 1) + minor(0, 2) + minor(1, 2), whole])


def _rotation(random: np.random.Generator, axes: int, largest: float, still: int | None) -> NDArray[np.float64]:
    """Axes x axes rotation matrix, angles (radians) drawn evenly from -largest to largest; about `still` alone."""
    matrix = np.eye(axes)
    for first, second in itertools.combinations([axis for axis in range(axes) if axis != still], 2):
        angle = random.uniform(-largest, largest)
        one = np.eye(axes)
        one[[first, second], [first, second]] = np.cos(angle)
        one[first, second], one[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ one
    return matrix


@functools.lru_cache(maxsize=64)
def _cubic_weights(points: int, size: int) -> NDArray[np.float64]:
    """(size, points) matrix of cubic B-spline interpolation through the points, mirrored at both ends."""
    return _basis(_evenly(points, size), points) @ _from_values(points)


@functools.lru_cache(maxsize=64)
def _cubic_slopes(points: int, size: int) -> NDArray[np.float64]:
    """The same for the derivative, along the whole axis as the unit of length."""
    return (points - 1) * (_basis(_evenly(points, size), points, slope=True) @ _from_values(points))


def _evenly(points: int, size: int) -> NDArray[np.float64]:
    return np.linspace(0, points - 1, size) if size > 1 else np.zeros(1)


def _from_values(points: int) -> NDArray[np.float64]:
    """The matrix from values at the points to the coefficients of the splines."""
    if points < 2:
        raise ValueError(f"a control grid needs at least 2 points along each axis, not {points}")
    return np.linalg.inv(_basis(np.arange(points, dtype=float), points)).astype(np.float64, copy=False)


def _basis(places: NDArray[np.float64], points: int, slope: bool = False) -> NDArray[np.float64]:
    """(len(places), points) values or slopes of the cubic B-splines; those beyond the ends are folded back (mirror)."""
    matrix = np.zeros((len(places), points))
    first = np.floor(places).astype(int) - 1
    for near in range(4):
        node = first + near
        t = np.abs(places - node)
        if slope:
            value = np.where(t < 1, 1.5 * t**2 - 2 * t, -(np.clip(2 - t, 0, None) ** 2) / 2) * np.sign(places - node)
        else:
            value = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
        folded = np.abs(node) % (2 * (points - 1))
        np.add.at(matrix, (np.arange(len(places)), np.minimum(folded, 2 * (points - 1) - folded)), value)
    return matrix
