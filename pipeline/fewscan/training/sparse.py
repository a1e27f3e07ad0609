"""Volumes of which only some slices are annotated, told from objects that end.

Of 100 complete hippocampi none is taken for sparse, along no axis; with every fifth slice kept all are found along each
axis, with a random fifth 88, 98 and 99 of 100 (shared data msd_hippocampus; tests/training/test_sparse.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLAT = 6.0
"""An object this many times as wide as it is thick, all within very few slices, is part of a larger one."""
MOST_FLAT = 3
"""Slices; of more, an object may be a layer or a disc by itself."""
SHORTEST_BLOCK = 7
"""Slices; the outermost of fewer may hold half the largest area of a ball that ends."""


@dataclass(frozen=True)
class UnlabelledSlices:
    """Which slices of a volume nobody annotated."""

    axis: int
    """Of the array; slices lie across it."""
    unlabelled: NDArray[np.bool_]
    """(slices,) true where no voxel holds a label."""
    why: str
    """What gave them away, in words."""


def unlabelled_slices(
    classes: NDArray[np.integer[Any]], spacing: Sequence[float] | None = None
) -> UnlabelledSlices | None:
    """Whether only some slices of a volume are annotated, and which are not.

    Three signs, each along every axis. An object that ends gets smaller towards its last slice, it does not vanish
    from one slice to the next.

    - Gaps: a third or more of the slices between the first and the last labelled one are empty, and across most of
      these gaps the same label goes on at the same place, without getting smaller towards the gap.
    - Flat: most runs of labelled slices are of 1 to 3, and hold an object at least 6 times as wide as the run is thick.
    - Cut: one run of 7 slices or more whose outermost slices hold more than half of its largest area (0.6 where the
      other side lies at the volume's border), along one axis alone: a box is flat on all sides.

    No slice is empty along the axis of a complete case in which the object fills the volume, and small objects here
    and there do not go on across gaps. An object that truly ends flat across one axis only, such as a cylinder that
    stands upright, or is a layer of up to 3 slices, cannot be told from a cut one: a person has to look.

    Args:
        classes: (i, j, k) class indices, 0 background. Where voxels are unknown (-1), the file says itself what is
            unlabelled, and nothing is looked for.
        spacing: of the voxels along each axis, in any unit; by default all the same.

    Returns:
        None where nothing is found: all slices count as annotated. Single slices never give anything.
    """
    if min(classes.shape) < 2 or classes.min() < 0:
        return None
    steps = (1.0,) * classes.ndim if spacing is None else tuple(spacing)
    profiles = [_Profile.along(classes, axis) for axis in range(classes.ndim)]
    for axis, profile in enumerate(profiles):
        sign = profile.gaps() or profile.flat(steps[axis], *(steps[:axis] + steps[axis + 1 :]))
        if sign is not None:
            return profile.found(axis, sign)
    cut = [axis for axis, profile in enumerate(profiles) if profile.ends_flat()]
    if len(cut) == 1 and int((profiles[cut[0]].area > 0).sum()) >= SHORTEST_BLOCK:
        return profiles[cut[0]].found(cut[0], "the label stops from one slice to the next without getting smaller")
    return None


@dataclass(frozen=True)
class _Profile:
    """A volume as slices across one axis."""

    slices: NDArray[np.integer[Any]]
    """(slices, rows, columns) classes."""
    area: NDArray[np.int64]
    """(slices,) labelled voxels."""
    runs: tuple[tuple[int, int], ...]
    """First and last slice of each run of labelled slices."""

    @classmethod
    def along(cls, classes: NDArray[np.integer[Any]], axis: int) -> _Profile:
        slices = np.moveaxis(classes, axis, 0)
        area = np.count_nonzero(slices, axis=(1, 2))
        edges = np.diff((area > 0).astype(np.int8), prepend=0, append=0)
        firsts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        return cls(slices, area, tuple((int(a), int(b) - 1) for a, b in zip(firsts, ends, strict=True)))

    def found(self, axis: int, sign: str) -> UnlabelledSlices:
        count = int((self.area > 0).sum())
        return UnlabelledSlices(axis, self.area == 0, f"{count} of {len(self.area)} slices hold a label: {sign}")

    def gaps(self) -> str | None:
        """The first sign, in words."""
        pairs = list(zip(self.runs, self.runs[1:], strict=False))
        if not pairs:
            return None
        span = self.runs[-1][1] + 1 - self.runs[0][0]
        empty = span - int((self.area > 0).sum())
        bridged = sum(self._goes_on(before, after) for before, after in pairs)
        if 3 * empty < span or 2 * bridged <= len(pairs):
            return None
        return f"across {bridged} of {len(pairs)} gaps it goes on at the same place"

    def _goes_on(self, before: tuple[int, int], after: tuple[int, int]) -> bool:
        """Whether a label is at the same place on both sides of a gap, and gets smaller towards it on neither."""
        one, other = self.slices[before[1]], self.slices[after[0]]
        common = np.count_nonzero((one == other) & (one > 0))
        smaller = min(self.area[before[1]], self.area[after[0]])
        return bool(4 * common >= smaller) and self._abrupt(before, 1) and self._abrupt(after, 0)

    def _abrupt(self, run: tuple[int, int], side: int) -> bool:
        """Whether the run's slice at that side holds half of its largest area; one or two slices tell nothing."""
        return run[1] - run[0] < 2 or bool(2 * self.area[run[side]] >= self.area[run[0] : run[1] + 1].max())

    def flat(self, thickness: float, *steps: float) -> str | None:
        """The second sign, in words."""
        if (self.area > 0).all():
            return None
        thin = [(first, last + 1 - first) for first, last in self.runs if last + 1 - first <= MOST_FLAT]
        voxel = steps[0] * steps[1]
        wide = sum(self._holds(first, count, (FLAT * count * thickness) ** 2 / voxel) for first, count in thin)
        if 2 * wide <= len(self.runs):
            return None
        return f"in {wide} of {len(self.runs)} places it is more than {FLAT:.0f} times as wide as it is thick"

    def _holds(self, first: int, count: int, least: float) -> bool:
        """Whether one of `count` slices holds a connected piece of that many voxels."""
        from fewscan.metrics.objects import components

        large = [n for n in range(first, first + count) if self.area[n] >= least]
        return any(np.bincount(components(self.slices[n] > 0).ravel())[1:].max() >= least for n in large)

    def ends_flat(self) -> bool:
        """The third sign, whatever the length of the run."""
        if len(self.runs) != 1:
            return False
        first, last = self.runs[0]
        inside = [n for n, edge in ((first, 0), (last, len(self.area) - 1)) if n != edge]
        least = 0.5 if len(inside) == 2 else 0.6
        return bool(inside) and all(self.area[n] > least * self.area.max() for n in inside)
