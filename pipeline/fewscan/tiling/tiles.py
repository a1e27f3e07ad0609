"""Where tiles lie: integers only. Positions are a function of the volume's shape and the settings alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, ...]
"""Voxels of a volume along each of its spatial axes."""


@dataclass(frozen=True)
class Tile:
    """One bite of a volume, as slices over its spatial axes, in voxels of the volume.

    The network reads `read`; when its answer is there, `core` is decided. Both may reach beyond the volume's end, and
    `read` before its start: there the volume is continued by mirroring (see `mirror`).
    """

    read: Box
    core: Box


def exact_tiles(shape: Sequence[int], tile: Sequence[int], *, halo: int, stride: int) -> list[Tile]:
    """The U-Net paper's overlap-tile for padded networks: cores partition the volume, reads reach `halo` beyond.

    Args:
        shape: voxels of the volume along each axis.
        tile: largest read along each axis; rounded down to the stride, and at least 2 x halo + stride where the
            volume is longer than that.
        halo: how far the network's answer looks, a multiple of `stride`.
        stride: the network's stride.

    Returns:
        The tiles, last axis fastest. The volume is continued at its end to the next multiple of the stride. All reads
        have one shape; reads at the border shift inward. Whatever the tile, what the network sees of a core is what
        it sees in one pass over the whole continued volume.
    """
    if halo % stride:
        raise ValueError(f"the halo {halo} has to be a multiple of the stride {stride}")
    padded = tuple(-(-n // stride) * stride for n in shape)
    reads = [min(n, max(t // stride * stride, 2 * halo + stride)) for n, t in zip(padded, tile, strict=True)]
    along = [_axis_tiles(n, size, halo) for n, size in zip(padded, reads, strict=True)]
    return _product(along)


def valid_tiles(shape: Sequence[int], core: Sequence[int], *, margin: int, surplus: int) -> list[Tile]:
    """Overlap-tile for valid (unpadded) networks, which answer `margin` less on every side than they read.

    Args:
        shape: voxels of the volume along each axis.
        core: what is kept of a tile's answer along each axis; a multiple of the network's stride, so that every tile
            pools at the same places as one pass over the whole would.
        margin: what an answer loses on each side.
        surplus: voxels that every answer has beyond its core, for only some sizes fit through the network.

    Returns:
        The tiles, last axis fastest. Cores partition the volume; the last ones reach beyond it.
    """
    along = []
    for n, size in zip(shape, core, strict=True):
        starts = range(0, n, size)
        along.append([(slice(s - margin, s + size + surplus + margin), slice(s, s + size)) for s in starts])
    return _product(along)


def blend_tiles(shape: Sequence[int], patch: Sequence[int], overlap: float, *, snap: bool = False) -> list[Tile]:
    """Overlapping patches for networks whose answer depends on the patch (instance norm, foreign networks).

    Patches lie on a global grid in steps of `patch x (1 - overlap)`, none is moved at the end: the volume is continued
    there instead. Answers are averaged under a window.

    Args:
        shape: voxels of the volume along each axis.
        patch: voxels of a patch along each axis.
        overlap: 0 up to but not 1, fraction of a patch shared with its neighbour.
        snap: MONAI's grid instead: the last patch is moved back to the volume's end, and where a volume is smaller
            than a patch it lies in the patch's middle.

    Returns:
        The patches, last axis fastest. Cores partition the volume: no later patch reaches a core, nor the voxel beyond
        its end along each axis, whichever axis is the slowest. Where patches lie closer than that, cores are empty.
    """
    along = []
    for n, size in zip(shape, patch, strict=True):
        step = max(1, int(size * (1 - overlap)))
        starts = [i * step for i in range(max(0, -(-(n - size) // step)) + 1)]
        if snap:
            starts = [min(start, n - size) for start in starts] if n >= size else [-((size - n) // 2)]
        ends = [start - 1 for start in starts[1:]] + [n]
        along.append(
            [
                (slice(start, start + size), slice(begin, end))
                for start, begin, end in zip(starts, [0, *ends[:-1]], ends, strict=True)
            ]
        )
    return _product(along)


def cheapest_tile(shape: Sequence[int], *, halo: int, stride: int, voxels: int, core: float = 0.0) -> tuple[int, ...]:
    """The read of exact tiles that evaluates the fewest voxels in all, of those with at most so many voxels.

    Args:
        shape, halo, stride: as for `exact_tiles`.
        voxels: of one reading, and `core` times those that it decides.

    Raises ValueError where the smallest reading, 2 x halo + stride along each long axis, has more.
    """
    along = [_reads(n, halo, stride) for n in shape]
    best: tuple[int, tuple[int, ...]] | None = None
    for choice in itertools.product(*along):
        reads = tuple(read for read, _ in choice)
        decided = math.prod(read if count == 1 else read - halo for read, count in choice)  # at an end, the most
        if math.prod(reads) + core * decided <= voxels:
            cost = math.prod(read * count for read, count in choice)
            if best is None or (cost, reads) < best:
                best = cost, reads
    if best is None:
        smallest = [min(read for read, _ in axis) for axis in along]
        raise ValueError(
            f"exact tiles of this network read at least {' x '.join(map(str, smallest))} = {math.prod(smallest)} "
            f"voxels, {voxels} are allowed"
        )
    return best[1]


def _reads(n: int, halo: int, stride: int) -> list[tuple[int, int]]:
    """(read, tiles along the axis): for each number of tiles the smallest read, from one tile on."""
    padded = -(-n // stride) * stride
    smallest, found = 2 * halo + stride, [(padded, 1)]
    for count in range(2, max(2, -(-padded // stride)) + 1):
        read = -(-(padded + (count - 1) * 2 * halo) // (count * stride)) * stride
        if read >= padded:
            continue
        if read < smallest:
            if found[-1][0] > smallest:
                found.append((smallest, -(-(padded - 2 * halo) // stride)))
            break
        if read < found[-1][0]:
            found.append((read, count))
    return found


def mirror(start: int, stop: int, n: int) -> NDArray[np.int64]:
    """Indices of voxels start..stop-1 of an axis of n voxels continued by mirroring at its border voxels.

    Repeated reflection (`numpy.pad(mode="reflect")`), so any distance is allowed; a single voxel repeats itself.
    """
    if n == 1:
        return np.zeros(stop - start, dtype=np.int64)
    folded = np.abs(np.arange(start, stop)) % (2 * (n - 1))
    inside: NDArray[np.int64] = np.minimum(folded, 2 * (n - 1) - folded)
    return inside


def inside(box: Sequence[slice], shape: Sequence[int]) -> Box:
    """What of a box lies in a volume."""
    return tuple(slice(max(along.start, 0), min(along.stop, n)) for along, n in zip(box, shape, strict=True))


def relative(box: Sequence[slice], start: Sequence[int]) -> Box:
    """A box as voxels of an array whose first voxel is `start`."""
    return tuple(slice(along.start - s, along.stop - s) for along, s in zip(box, start, strict=True))


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
