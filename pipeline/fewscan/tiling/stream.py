"""A network's answer for a volume, piece by piece: each piece is final when it comes, and the whole never exists."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fewscan.tiling.layout import Layout
from fewscan.tiling.slab import Slab
from fewscan.tiling.tiles import Box, Tile, inside, mirror, relative

SYMMETRIES = ("none", "mirror", "square")

Ask = Callable[[Tensor], Tensor]
"""(N, C, *spatial) -> (N, classes, *spatial) logits."""
Answer = tuple[Tile, tuple[int, ...], Tensor]
"""A tile, where the first voxel of its answer lies in the volume, and the answer (classes, *spatial)."""


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
    volume: Volume,
    ask: Ask,
    layout: Layout,
    *,
    device: torch.device,
    batch: int = 1,
    symmetry: str = "none",
    head: Ask | None = None,
) -> Iterator[Piece]:
    """The answer for a volume (C, *spatial), a core at a time.

    What is held is `batch` tiles and their answers and, for blended patches, as many planes along the longest axis as a
    patch has; on a GPU the next tiles are read meanwhile. Pieces do not depend on `batch` but for rounding, and never
    on what else is read.

    Args:
        volume: read in parts; mirrored beyond its ends, or zero there, as the layout says.
        ask: the network.
        layout: of `lay_tiles`, with `slack` where there is a symmetry or where the voxels beyond cores count.
        device: of the network; answers stay there.
        batch: tiles given to the network at once.
        symmetry: see `fewscan.tiling.OverlapTileInferer`.
        head: makes logits of what `ask` answers, each voxel's by itself; None where these are the logits.
    """
    answers = _answers(volume, ask, layout, device, batch, copies(symmetry, len(layout.shape)))
    return _single(answers, layout, head) if layout.window is None else _blended(answers, layout, head)


def copies(symmetry: str, dims: int) -> list[tuple[tuple[int, ...], bool]]:
    """The turns of a symmetry: spatial axes that are mirrored, and whether the first two are swapped before that."""
    if symmetry == "none":
        return [((), False)]
    mirrored = [axes for n in range(dims + 1) for axes in itertools.combinations(range(dims), n)]
    return list(itertools.product(mirrored, (False, True) if symmetry == "square" else (False,)))


def read(volume: Volume, box: Sequence[slice], zeros: bool = False) -> Tensor:
    """(C, *box) of a volume that goes on by mirroring at its border voxels, without end, or with zeros."""
    if zeros:
        within = inside(box, volume.shape[1:])
        ends = [(i.start - b.start, b.stop - i.stop) for i, b in zip(within, box, strict=True)]
        part = _part(volume, within)
        return functional.pad(part, [end for both in reversed(ends) for end in both]) if any(map(any, ends)) else part
    places = [mirror(along.start, along.stop, n) for along, n in zip(box, volume.shape[1:], strict=True)]
    within = tuple(slice(int(at.min()), int(at.max()) + 1) for at in places)
    part = _part(volume, within)
    for axis, (at, along) in enumerate(zip(places, within, strict=True), start=1):
        if len(at) != along.stop - along.start or (np.diff(at) < 0).any():
            part = part.index_select(axis, torch.from_numpy(at - along.start).to(part.device))
    return part


def _part(volume: Volume, box: Box) -> Tensor:
    part = volume[(slice(None), *box)]
    return part if isinstance(part, Tensor) else torch.from_numpy(np.array(part, dtype=np.float32))


def _answers(
    volume: Volume,
    ask: Ask,
    layout: Layout,
    device: torch.device,
    batch: int,
    turns: Sequence[tuple[tuple[int, ...], bool]],
) -> Iterator[Answer]:
    """Each tile's answer.

    Of several turns, the mean over the copies of the volume that are mirrored and swapped as wholes: a copy begins
    where the volume ends, and is continued there, so that its cells lie otherwise and readings are shifted back.
    """
    shifts = [-n % layout.stride if len(turns) > 1 else 0 for n in layout.shape]
    backs = [[shift if axis in mirrored else 0 for axis, shift in enumerate(shifts)] for mirrored, _ in turns]
    groups = [layout.tiles[first : first + batch] for first in range(0, len(layout.tiles), batch)]

    def read_group(group: Sequence[Tile], back: Sequence[int]) -> Tensor:
        boxes = [[slice(a.start - n, a.stop - n) for a, n in zip(tile.read, back, strict=True)] for tile in group]
        tiles = torch.stack([read(volume, box, layout.zeros) for box in boxes])
        return tiles.pin_memory() if device.type == "cuda" and tiles.device.type == "cpu" else tiles

    jobs = [partial(read_group, group, back) for group in groups for back in backs]
    stacks = _ahead(jobs) if device.type == "cuda" else (job() for job in jobs)
    for group in groups:
        mean: Tensor | None = None
        for (mirrored, swapped), back in zip(turns, backs, strict=True):
            tiles = next(stacks).to(device, non_blocking=True)
            answer = _turned(tiles, ask, [axis + 2 for axis in mirrored], swapped)
            ends = [n - shift for n, shift in zip(answer.shape[2:], shifts, strict=True)]  # what all copies cover
            common = tuple(slice(n, n + end) for n, end in zip(back, ends, strict=True))
            answer = answer[(slice(None), slice(None), *common)]
            answer = answer / len(turns) if len(turns) > 1 else answer
            mean = answer if mean is None else mean.add_(answer) if not mean.requires_grad else mean + answer
        assert mean is not None  # there is always a turn
        many, mean = list(mean), None
        del answer
        for tile in group:
            yield tile, tuple(along.start + layout.margin for along in tile.read), many.pop(0)


def _ahead(jobs: Sequence[Callable[[], Tensor]]) -> Iterator[Tensor]:
    """What the jobs give, in their order; the next one is done in a thread of its own while this one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(jobs[0])
        for job in jobs[1:]:
            ready, coming = coming.result(), pool.submit(job)
            yield ready
        yield coming.result()


def _turned(tiles: Tensor, ask: Ask, mirrored: list[int], swapped: bool) -> Tensor:
    """The answer for turned tiles, turned back; float32 at least."""
    tiles = tiles.flip(mirrored) if mirrored else tiles
    answer = ask(tiles.transpose(2, 3) if swapped else tiles)
    answer = answer.transpose(2, 3) if swapped else answer
    answer = (answer.flip(mirrored) if mirrored else answer).contiguous()  # networks may answer channels last
    return answer.to(torch.promote_types(answer.dtype, torch.float32))


def _single(answers: Iterator[Answer], layout: Layout, head: Ask | None) -> Iterator[Piece]:
    """Cores of tiles: each voxel has one answer."""
    for tile, start, answer in answers:
        core = inside(tile.core, layout.shape)
        ends = zip(core, start, answer.shape[1:], layout.shape, strict=True)
        box = tuple(slice(c.start, min(c.stop + 1, s + size, n)) for c, s, size, n in ends)
        own = answer[:, *relative(box, start)]
        yield Piece(core, box, own if head is None else _by(head, own))
        del own, answer  # before the next tile is answered


def _by(head: Ask, maps: Tensor) -> Tensor:
    """(maps, *spatial) -> (classes, *spatial), float32 at least."""
    answer = head(maps[None])[0]
    return answer.to(torch.promote_types(answer.dtype, torch.float32))


def _blended(answers: Iterator[Answer], layout: Layout, head: Ask | None) -> Iterator[Piece]:
    """Cores of patches: weighted means of all patches that reach them, each as soon as there is no further one."""
    slab: Slab | None = None
    for tile, start, answer in answers:
        answer = (answer if head is None else _by(head, answer)).detach()  # sums are made in place
        slab = Slab(layout, answer) if slab is None else slab
        slab.add(answer, start)
        del answer
        if all(along.start < along.stop for along in tile.core):
            box = inside([slice(along.start, along.stop + 1) for along in tile.core], layout.shape)
            yield Piece(tile.core, box, slab.mean(box))
