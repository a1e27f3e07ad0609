"""Where tiles lie: integers only. Positions are a function of the volume's shape and the settings alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tile:
    """One bite of a volume, as slices over its spatial axes.

    The network reads `read`; of its answer only `core` is kept. Both are in voxels of the padded volume, which
    begins `margin` before the volume itself for valid networks and at the volume's origin otherwise.
    """

    read: tuple[slice, ...]
    core: tuple[slice, ...]

    @property
    def core_in_read(self) -> tuple[slice, ...]:
        """`core` counted from the start of `read`."""
        return tuple(
            slice(core.start - read.start, core.stop - read.start)
            for read, core in zip(self.read, self.core, strict=True)
        )


def exact_tiles(
    shape: Sequence[int], tile: Sequence[int], *, halo: int, stride: int
) -> tuple[list[Tile], tuple[int, ...]]:
    """The U-Net paper's overlap-tile for padded networks: cores partition the volume, reads reach `halo` beyond.

    Args:
        shape: voxels of the volume along each axis.
        tile: largest read along each axis; rounded down to the stride, and at least 2 x halo + stride where the
            volume is longer than that.
        halo: how far the network's answer looks, a multiple of `stride`.
        stride: the network's stride.

    Returns:
        The tiles, last axis fastest, and the shape that the volume has to be padded to at its end: the next multiple
        of the stride. All reads have one shape; reads at the border shift inward. Whatever the tile, what the
        network sees of a core is what it sees in one pass over the whole padded volume.
    """
    if halo % stride:
        raise ValueError(f"the halo {halo} has to be a multiple of the stride {stride}")
    padded = tuple(-(-n // stride) * stride for n in shape)
    reads = [min(n, max(t // stride * stride, 2 * halo + stride)) for n, t in zip(padded, tile, strict=True)]
    along = [_axis_tiles(n, size, halo) for n, size in zip(padded, reads, strict=True)]
    return _product(along), padded


def valid_tiles(
    shape: Sequence[int], core: Sequence[int], *, margin: int, surplus: int
) -> tuple[list[Tile], tuple[int, ...]]:
    """Overlap-tile for valid (unpadded) networks, which answer `margin` less on every side than they read.

    Args:
        shape: voxels of the volume along each axis.
        core: what is kept of a tile's answer along each axis; a multiple of the network's stride, so that every tile
            pools at the same places as one pass over the whole would.
        margin: what an answer loses on each side.
        surplus: voxels that every answer has beyond its core, for only some sizes fit through the network.

    Returns:
        The tiles, and the shape of the volume padded with `margin` at its start and what is needed at its end, by
        mirroring. Cores partition the answers, from `margin` on; the last ones reach beyond the volume.
    """
    along = []
    for n, size in zip(shape, core, strict=True):
        starts = range(0, n, size)
        along.append(
            [(slice(s, s + size + surplus + 2 * margin), slice(s + margin, s + margin + size)) for s in starts]
        )
    return _product(along), tuple(axis[-1][0].stop for axis in along)


def blend_tiles(shape: Sequence[int], patch: Sequence[int], overlap: float) -> tuple[list[Tile], tuple[int, ...]]:
    """Overlapping patches for networks whose answer depends on the patch (instance norm, foreign networks).

    Patches lie on a global grid in steps of `patch x (1 - overlap)`, none is moved at the end: the volume is padded
    there instead. `core` is the whole patch; answers are averaged under a window.

    Returns:
        The patches, and the shape that the volume has to be padded to at its end.
    """
    along = []
    for n, size in zip(shape, patch, strict=True):
        step = max(1, int(size * (1 - overlap)))
        count = 1 if n <= size else -(-(n - size) // step) + 1
        along.append([(slice(i * step, i * step + size),) * 2 for i in range(count)])
    return _product(along), tuple(axis[-1][0].stop for axis in along)


def mirror(start: int, stop: int, n: int) -> NDArray[np.int64]:
    """Indices of voxels start..stop-1 of an axis of n voxels continued by mirroring at its border voxels.

    Repeated reflection (`numpy.pad(mode="reflect")`), so any distance is allowed; a single voxel repeats itself.
    """
    if n == 1:
        return np.zeros(stop - start, dtype=np.int64)
    folded = np.abs(np.arange(start, stop)) % (2 * (n - 1))
    inside: NDArray[np.int64] = np.minimum(folded, 2 * (n - 1) - folded)
    return inside


def _axis_tiles(n: int, size: int, halo: int) -> list[tuple[slice, slice]]:
    starts = [0]
    while starts[-1] + size < n:
        starts.append(min(starts[-1] + size - 2 * halo, n - size))
    ends = [start + size - halo for start in starts[:-1]] + [n]  # a core ends where its own halo begins
    return [
        (slice(start, start + size), slice(begin, end))
        for start, begin, end in zip(starts, [0, *ends[:-1]], ends, strict=True)
    ]


def _product(along: Sequence[list[tuple[slice, slice]]]) -> list[Tile]:
    return [
        Tile(tuple(read for read, _ in combination), tuple(core for _, core in combination))
        for combination in itertools.product(*along)
    ]
