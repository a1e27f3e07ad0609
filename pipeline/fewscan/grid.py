"""Where voxels lie: the one geometry object of the project."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Affine = NDArray[np.float64]

LPS_FROM_RAS: Affine = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """The lattice of a scan: three voxel axes and where they lie in the patient.

    `shape` counts voxels along the array's axes (i, j, k), the file's fastest axis first, as NIfTI, ITK and MONAI
    order them; a 2D image has k = 1. `affine` (4 x 4) takes voxel indices (i, j, k, 1), at voxel centres, to
    patient coordinates in mm, RAS+ (x to the right, y to the front, z up). `frame_of_reference` is the DICOM
    FrameOfReferenceUID where there is one. Raises ValueError on a shape or affine that is no grid.
    """

    shape: tuple[int, int, int]
    affine: Affine
    frame_of_reference: str | None = None

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError(f"the affine has to be 4 x 4 and finite, not {affine.tolist()}")
        if not np.allclose(affine[3], (0, 0, 0, 1)):
            raise ValueError(f"the last row of the affine is {affine[3].tolist()}, not 0 0 0 1")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a grid has three axes of at least one voxel, not {tuple(self.shape)}")
        if np.linalg.matrix_rank(affine[:3, :3]) < 3:
            raise ValueError(f"the axes of the affine do not span space: {affine[:3, :3].tolist()}")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along i, j, k, in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel; less than the product of its spacing where a gantry tilt shears it."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def directions(self) -> NDArray[np.float64]:
        """Unit vectors of the voxel axes as columns, in RAS+."""
        unit: NDArray[np.float64] = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return unit

    @property
    def is_orthogonal(self) -> bool:
        """Whether the voxel axes are at right angles (within 1e-3); a gantry tilt shears them."""
        return bool(np.abs(self.directions.T @ self.directions - np.eye(3)).max() < 1e-3)

    def to_mm(self, index: ArrayLike) -> NDArray[np.float64]:
        """Voxel indices (..., 3) to patient coordinates (..., 3) in mm, RAS+."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def corners_mm(self) -> NDArray[np.float64]:
        """The centres of the eight corner voxels (8, 3) in mm, RAS+."""
        return self.to_mm(np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), -1).reshape(-1, 3))

    def differs_from(self, other: Grid, tolerance: float = 0.01) -> str | None:
        """In words, how the two grids differ; None where they are the same.

        Equal means: the same shape, and every corner within `tolerance` of the smallest voxel spacing.
        """
        if self.shape != other.shape:
            return f"shape {_times(self.shape)} against {_times(other.shape)}"
        gap = float(np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1).max())
        if gap <= tolerance * min(*self.spacing_mm, *other.spacing_mm):
            return None
        if not np.allclose(self.spacing_mm, other.spacing_mm, rtol=1e-3):
            return f"spacing {_times(self.spacing_mm)} mm against {_times(other.spacing_mm)} mm"
        return f"the same shape, but corners up to {gap:.4g} mm apart (origin or orientation)"

    def reordered(self, axes: tuple[int, int, int], flips: tuple[bool, bool, bool]) -> Grid:
        """The grid of `array.transpose(axes)` flipped along the new axes where `flips` says so."""
        step = np.zeros((4, 4))
        step[3, 3] = 1
        for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
            step[old, new] = -1 if flip else 1
            step[old, 3] = self.shape[old] - 1 if flip else 0
        shape = (self.shape[axes[0]], self.shape[axes[1]], self.shape[axes[2]])
        return Grid(shape, self.affine @ step, self.frame_of_reference)

    def cropped(self, part: tuple[slice, ...]) -> Grid:
        """The grid of `array[part]`; slices along i, j, k without a step."""
        ends = [one.indices(n)[:2] for one, n in zip(part, self.shape, strict=True)]
        step = np.eye(4)
        step[:3, 3] = [first for first, _ in ends]
        i, j, k = (stop - first for first, stop in ends)
        return Grid((i, j, k), self.affine @ step, self.frame_of_reference)

    def axes_to_lps(self) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """Which permutation and flips bring the axes closest to left, posterior, superior.

        In this order an axial slice lies as radiologists look at it, and a photograph as it was taken.
        """
        closeness = np.abs(self.directions)
        axes: list[int] = []
        for row in range(3):  # x, y, z of the patient, each takes its closest free voxel axis
            free = [axis for axis in range(3) if axis not in axes]
            axes.append(max(free, key=lambda axis: closeness[row, axis]))
        wanted = (-1, -1, 1)
        flips = [bool(np.sign(self.directions[row, axis]) == -wanted[row]) for row, axis in enumerate(axes)]
        return (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2])

    def in_lps(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array whose last axes are (i, j, k) with these as `axes_to_lps` says; a view."""
        axes, flips = self.axes_to_lps()
        before = array.ndim - 3
        turned = array.transpose(*range(before), *(before + axis for axis in axes))
        turn: tuple[Any, ...] = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
        return turned[(..., *turn)]


def _times(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{number:.6g}" for number in numbers)
