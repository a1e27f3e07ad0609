"""A network's answer for a volume, piece by piece: each piece is final when it comes, and the whole never exists."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fewscan.tiling.layout import Layout
from fewscan.tiling.tiles import Tile, mirror

SYMMETRIES = ("none", "mirror", "square")

Box = tuple[slice, ...]
"""Voxels of a volume along each of its spatial axes."""
Ask = Callable[[Tensor], Tensor]
"""(N, C, *spatial) -> (N, classes, *spatial) logits."""


class Volume(Protocol):
    """(C, *spatial) intensities, of which parts are read: a tensor, an array, a memory map, a Zarr array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *spatial)."""

    def __getitem__(self, box: Any, /) -> Any:
        """Part of it, by a tuple of slices."""


@dataclass(frozen=True)
class Piece:
    """Part of the network's answer."""

    core: Box
    """What this piece decides, inside the volume; the cores of all pieces partition it."""
    box: Box
    """What `logits` cover: the core and, where the volume goes on, one voxel beyond its end along each axis."""
    logits: Tensor
    """(classes, *box)."""


def pieces(
    volume: Volume, ask: Ask, layout: Layout, *, device: torch.device, batch: int = 1, symmetry: str = "none"
) -> Iterator[Piece]:
    """The answer for a volume (C, *spatial): for cores tile by tile, for blended patches slab by slab.

    What is held is `batch` tiles and their answers or, for blended patches, as many planes along the longest axis as a
    patch has. Pieces do not depend on `batch` but for rounding, and never on what else is read.

    Args:
        volume: read in parts; mirrored beyond its ends.
        ask: the network.
        layout: of `lay_tiles`, with `slack` where there is a symmetry or where the voxels beyond cores count.
        device: of the network; answers stay there.
        batch: tiles given to the network at once.
        symmetry: see `fewscan.tiling.OverlapTileInferer`.
    """
    answers = _answers(volume, ask, layout, device, batch, copies(symmetry, len(layout.shape)))
    if layout.window is None:
        return _cores(answers, layout)
    return _slabs(_finished(answers, layout, torch.from_numpy(layout.window).to(device)), layout)


def copies(symmetry: str, dims: int) -> list[tuple[tuple[int, ...], bool]]:
    """The turns of a symmetry: spatial axes that are mirrored, and whether the first two are swapped before that."""
    if symmetry == "none":
        return [((), False)]
    mirrored = [axes for n in range(dims + 1) for axes in itertools.combinations(range(dims), n)]
    return list(itertools.product(mirrored, (False, True) if symmetry == "square" else (False,)))


def read(volume: Volume, box: Sequence[slice]) -> Tensor:
    """(C, *box) of a volume that goes on by mirroring at its border voxels, without end."""
    places = [mirror(along.start, along.stop, n) for along, n in zip(box, volume.shape[1:], strict=True)]
    inside = tuple(slice(int(at.min()), int(at.max()) + 1) for at in places)
    part = volume[(slice(None), *inside)]
    part = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part, dtype=np.float32))
    for axis, (at, along) in enumerate(zip(places, inside, strict=True), start=1):
        if len(at) != along.stop - along.start or (np.diff(at) < 0).any():
            part = part.index_select(axis, torch.from_numpy(at - along.start).to(part.device))
    return part


def _answers(
    volume: Volume,
    ask: Ask,
    layout: Layout,
    device: torch.device,
    batch: int,
    turns: Sequence[tuple[tuple[int, ...], bool]],
) -> Iterator[tuple[Tile, tuple[int, ...], Tensor]]:
    """Each tile, where the first voxel of its answer lies in the volume, and its answer (classes, *spatial).

    Of several turns, the mean over the copies of the volume that are mirrored and swapped as wholes: a copy begins
    where the volume ends, and is continued there, so that its cells lie otherwise and readings are shifted back.
    """
    shifts = [-n % layout.stride if len(turns) > 1 else 0 for n in layout.shape]
    for first in range(0, len(layout.tiles), batch):
        group = layout.tiles[first : first + batch]
        mean: Tensor | None = None
        for mirrored, swapped in turns:
            back = [shift if axis in mirrored else 0 for axis, shift in enumerate(shifts)]
            boxes = [[slice(a.start - n, a.stop - n) for a, n in zip(tile.read, back, strict=True)] for tile in group]
            tiles = torch.stack([read(volume, box) for box in boxes]).to(device)
            answer = _turned(tiles, ask, [axis + 2 for axis in mirrored], swapped)
            ends = [n - shift for n, shift in zip(answer.shape[2:], shifts, strict=True)]  # what all copies cover
            common = tuple(slice(n, n + end) for n, end in zip(back, ends, strict=True))
            answer = answer[(slice(None), slice(None), *common)] / len(turns)
            mean = answer if mean is None else mean + answer
        assert mean is not None  # there is always a turn
        for tile, answer in zip(group, mean, strict=True):
            yield tile, tuple(along.start + layout.margin for along in tile.read), answer


def _turned(tiles: Tensor, ask: Ask, mirrored: list[int], swapped: bool) -> Tensor:
    """The answer for turned tiles, turned back; float32 at least."""
    tiles = tiles.flip(mirrored)
    answer = ask(tiles.transpose(2, 3) if swapped else tiles)
    answer = answer.transpose(2, 3) if swapped else answer
    return answer.flip(mirrored).to(torch.promote_types(answer.dtype, torch.float32))


def _cores(answers: Iterator[tuple[Tile, tuple[int, ...], Tensor]], layout: Layout) -> Iterator[Piece]:
    for tile, start, answer in answers:
        core = tuple(slice(a.start, min(a.stop, n)) for a, n in zip(tile.core, layout.shape, strict=True))
        ends = zip(core, start, answer.shape[1:], layout.shape, strict=True)
        box = tuple(slice(c.start, min(c.stop + 1, s + size, n)) for c, s, size, n in ends)
        yield Piece(core, box, answer[_within(box, start)])


def _slabs(planes: Iterator[Tensor], layout: Layout) -> Iterator[Piece]:
    """Pieces of groups of finished planes; the last plane of each waits for what comes beyond it."""
    axis, shape = layout.longest, layout.shape
    decided, held = 0, None
    for group in planes:
        known = group if held is None else torch.cat([held, group], dim=axis + 1)
        end = decided + known.shape[axis + 1]
        core_end = end if end == shape[axis] else end - 1
        if core_end > decided:
            core, box = [slice(0, n) for n in shape], [slice(0, n) for n in shape]
            core[axis], box[axis] = slice(decided, core_end), slice(decided, end)
            yield Piece(tuple(core), tuple(box), known)
        held, decided = known.narrow(axis + 1, known.shape[axis + 1] - 1, 1).clone(), core_end


def _finished(
    answers: Iterator[tuple[Tile, tuple[int, ...], Tensor]], layout: Layout, window: Tensor
) -> Iterator[Tensor]:
    """Blended answers (classes, *planes), planes along the longest axis in groups, once no further patch reaches them.

    Patches come in the order of that axis, so as many planes as one of them has hold all that is unfinished.
    """
    axis, shape = layout.longest + 1, layout.shape
    inside = tuple(slice(0, n) if a != layout.longest else slice(None) for a, n in enumerate(shape))
    sums: Tensor | None = None  # (classes + 1, *planes): answers times weights, then the weights
    begun = 0
    for _, start, answer in answers:
        if sums is None:
            size = [max(tile.read[a].stop for tile in layout.tiles) for a in range(len(shape))]
            size[layout.longest] = layout.read[layout.longest]
            sums = answer.new_zeros((len(answer) + 1, *size))
        if (done := start[layout.longest] - begun) > 0:
            finished = sums.narrow(axis, 0, done)
            yield _mean(finished)[(slice(None), *inside)]
            rest = sums.narrow(axis, done, sums.shape[axis] - done).clone()
            sums.zero_().narrow(axis, 0, rest.shape[axis]).copy_(rest)
            begun += done
        where = [slice(s, s + n) for s, n in zip(start, answer.shape[1:], strict=True)]
        where[layout.longest] = slice(0, answer.shape[axis])
        sums[:-1][(slice(None), *where)].addcmul_(answer, window)
        sums[-1][tuple(where)] += window
    assert sums is not None  # there is always a tile
    yield _mean(sums.narrow(axis, 0, shape[layout.longest] - begun))[(slice(None), *inside)]


def _mean(sums: Tensor) -> Tensor:
    return sums[:-1] / sums[-1:]


def _within(box: Box, start: Sequence[int]) -> tuple[slice, ...]:
    """Where a box lies in an answer (classes, *spatial) whose first voxel is `start`."""
    return (slice(None), *(slice(along.start - s, along.stop - s) for along, s in zip(box, start, strict=True)))
