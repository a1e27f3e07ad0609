"""How a volume is tiled for a network: exactly where it says how far it looks, in blended patches elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewscan.errors import BudgetError
from fewscan.networks.bare import bare
from fewscan.tiling.memory import Footprint
from fewscan.tiling.tiles import Tile, blend_tiles, cheapest_tile, exact_tiles, valid_tiles

DEFAULT_TILE = {2: 1024, 3: 160}
"""Largest tile along each axis where it cannot be told what a network needs."""
FLOOR = 1e-3
"""Of the window that patches are blended under."""
MODES = ("auto", "exact", "blend", "monai")


@dataclass(frozen=True)
class Layout:
    """The tiles of one volume."""

    shape: tuple[int, ...]
    """The volume's, in voxels."""
    tiles: list[Tile]
    """In the order in which they are read: where patches are blended, from one end of `axis` to the other."""
    margin: int
    """What a tile's answer lacks at each side of what it reads (valid networks); else 0."""
    stride: int
    window: Tensor | None
    """What the answers of a patch weigh, float32, where patches are blended; None where each voxel has one answer."""
    bytes: float | None = None
    """An estimate of what is held at once, beside the volume; None where it cannot be told."""
    axis: int = 0
    """Along which patches are blended: the longest, so that the fewest voxels are unfinished; for MONAI the first."""
    zeros: bool = False
    """Whether the volume goes on with zeros beyond its ends, as in MONAI; else it is mirrored there."""

    @property
    def read(self) -> tuple[int, ...]:
        """Voxels of every reading."""
        return tuple(along.stop - along.start for along in self.tiles[0].read)

    @property
    def evaluated(self) -> int:
        """Voxels that the network is given in all."""
        return len(self.tiles) * math.prod(self.read)


def lay_tiles(
    network: Any,
    shape: Sequence[int],
    *,
    mode: str = "auto",
    tile: Sequence[int] | None = None,
    patch: Sequence[int] | None = None,
    overlap: float = 0.5,
    slack: bool = False,
    footprint: Footprint | None = None,
    memory: float | None = None,
) -> Layout:
    """The tiles of a volume.

    Networks that say how far they look (`halo`, `stride`, `is_local`; all of fewscan's but those with instance norm)
    get the U-Net paper's overlap-tile, whose answer is that of one pass over the whole volume: of all tiles that fit
    into `memory` those that evaluate the fewest voxels. All others get patches on a global grid, averaged under a
    Gaussian; with the mode "monai" on the grid of `monai.inferers.sliding_window_inference`, whose answer this is then.

    Args:
        network: a module, or any callable, which is foreign then.
        shape: voxels of the volume along each axis.
        mode: "exact", "blend" or "monai", or "auto", which blends also where that evaluates fewer voxels than exact
            tiles.
        tile: largest read along each axis of exact tiles, instead of what `memory` allows.
        patch: voxels along each axis of a patch of the network's training, for blending; for networks that do not say
            how far they look `tile` is taken where it is None.
        overlap: 0 up to but not 1, fraction of a patch shared with its neighbour, where patches are blended.
        slack: whether a reading may be shifted back by less than a stride, or the answers one voxel beyond a core's end
            count as well; then exact readings are a stride larger.
        footprint: what the network needs; None where it cannot be told: then tiles have at most `DEFAULT_TILE`.
        memory: bytes that may be held at once, beside the volume; None for no limit.

    Raises:
        ValueError: neither the network nor a patch says what is to be read.
        BudgetError: `memory` does not suffice.
    """
    module = bare(network)
    local = getattr(module, "is_local", False)
    blended = patch if local else patch or tile
    if mode in ("blend", "monai") or not local:
        if mode == "exact" or blended is None or len(blended) != len(shape):
            raise ValueError(
                f"{type(module).__name__} does not say how far it looks, or looks at the whole patch (instance "
                f"norm), or was asked for blended patches; give the inferer the `patch` of its training, {len(shape)} "
                f"numbers, not {blended}"
            )
        layout = _blended(shape, blended, overlap, footprint, monai=mode == "monai")
        if memory is not None and layout.bytes is not None and layout.bytes > memory:
            raise BudgetError(
                f"blended patches of {_shown(blended)} need {layout.bytes / 2**30:.1f} GiB, {memory / 2**30:.1f} are "
                "allowed: allow more, or train a network without instance norm, which takes smaller tiles"
            )
        return layout
    if mode == "exact" or tile is not None or patch is None or len(patch) != len(shape):
        return _exact(module, shape, tile, slack, footprint, memory)
    other = _blended(shape, patch, overlap, footprint)
    fits = other.bytes is None or memory is None or other.bytes <= memory
    try:
        exact = _exact(module, shape, tile, slack, footprint, memory)
    except BudgetError:
        if fits:
            return other
        raise
    return other if fits and other.evaluated < exact.evaluated else exact


def _blended(
    shape: Sequence[int], patch: Sequence[int], overlap: float, footprint: Footprint | None, monai: bool = False
) -> Layout:
    axis = 0 if monai else max(range(len(shape)), key=lambda axis: shape[axis])
    tiles = sorted(blend_tiles(shape, patch, overlap, snap=monai), key=lambda one: one.read[axis].start)
    held = None
    if footprint is not None:  # a pass, the sums of one more plane than a patch has, and two copies of a core
        planes = math.prod(min(patch[a] + 1, n) if a == axis else n for a, n in enumerate(shape))
        core = max(math.prod(along.stop - along.start + 1 for along in tile.core) for tile in tiles)
        sums = 4 * ((footprint.head or footprint.classes) + 1) * (planes + 2 * core)
        held = (footprint.read + footprint.decided) * math.prod(patch) + sums
    return Layout(tuple(shape), tiles, 0, 1, gaussian(patch), held, axis, zeros=monai)


def _exact(
    module: Any,
    shape: Sequence[int],
    tile: Sequence[int] | None,
    slack: bool,
    footprint: Footprint | None,
    memory: float | None,
) -> Layout:
    stride, more = module.stride, module.stride if slack else 0
    valid = getattr(module, "padding", "same") == "valid"
    chosen = tile is None
    if tile is None:
        tile = (DEFAULT_TILE[len(shape)],) * len(shape)
        if footprint is not None and not valid:
            voxels = sys.maxsize if memory is None else int(memory / footprint.read)
            ratio = footprint.decided / footprint.read
            try:
                tile = cheapest_tile(shape, halo=module.halo + more, stride=stride, voxels=voxels, core=ratio)
            except ValueError as problem:
                raise BudgetError(f"{problem}, as {(memory or 0) / 2**30:.2f} GiB hold: allow more memory") from None
    if valid:
        core = [min(max(t // stride, 1), -(-n // stride)) * stride for t, n in zip(tile, shape, strict=True)]
        around = 2 * module.halo + module.surplus + more
        if chosen and footprint is not None and memory is not None:
            while max(core) > stride and footprint.read * math.prod(c + around for c in core) > memory:
                axis = core.index(max(core))
                core[axis] = -(-core[axis] // (2 * stride)) * stride
        tiles = valid_tiles(shape, core, margin=module.halo, surplus=module.surplus + more)
    else:
        tiles = exact_tiles(shape, tile, halo=module.halo + more, stride=stride)
    layout = Layout(tuple(shape), tiles, module.halo if valid else 0, stride, None)
    if footprint is None:
        return layout
    decided = max(math.prod(along.stop - along.start + 1 for along in one.core) for one in tiles)
    layout = replace(layout, bytes=footprint.read * math.prod(layout.read) + footprint.decided * decided)
    if memory is not None and layout.bytes is not None and layout.bytes > memory:
        raise BudgetError(
            f"exact tiles of {_shown(layout.read)} need {layout.bytes / 2**30:.2f} GiB, {memory / 2**30:.2f} are "
            "allowed: allow more memory, or smaller tiles"
        )
    return layout


def _shown(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def gaussian(patch: Sequence[int]) -> Tensor:
    """A Gaussian around the middle, float32, of standard deviation patch / 8 along each axis, at least `FLOOR`.

    As MONAI's importance map, to the last bit.
    """
    window = torch.ones(())
    for size in patch:
        away = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        window = window.unsqueeze(-1) * torch.exp(away**2 / (-2 * (size / 8) ** 2))
    return window.clamp(min=FLOOR)
