"""A drop-in `monai.inferers.Inferer` that predicts a volume tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from fewscan.tiling.layout import MODES, Layout, lay_tiles
from fewscan.tiling.memory import default_memory, footprint
from fewscan.tiling.stream import SYMMETRIES, Ask, Piece, Volume, pieces, read

AT_ONCE = 2**24
"""Voxels of slices that are read together."""


class OverlapTileInferer(Inferer):  # type: ignore[misc]  # MONAI has no types
    """Logits of a whole volume, whatever its size: (N, C, *spatial) -> (N, classes, *spatial), float32
    (float64 where the network answers so).

    Networks that say how far they look (`halo`, `stride`, `is_local`; all of fewscan's) get the U-Net paper's
    overlap-tile, unless blending is cheaper: cores partition the volume, and the answer is that of one pass over the
    whole volume, mirrored at its end to the stride (within 1e-5 of max |logit| in float32). All other networks, and
    networks with instance norm, get overlapping patches of size `patch`, averaged under a Gaussian.

    Blended answers carry no gradients.

    A 2D network takes a 3D volume slice by slice along the last axis. The volume stays where it is; tiles go to
    the network's device, and answers come back to the volume's.

    Args:
        spatial_dims: 2 or 3, what the network works on.
        tile: voxels of an exact tile along each axis; None for what evaluates the fewest voxels within `memory_gb`.
        patch: voxels along each axis of a patch of the network's training, for blending. Networks that do not say how
            far they look take `tile` where it is None, and one of both has to be given; others are never blended then.
        batch: tiles given to the network at once.
        overlap: 0 up to but not 1, fraction of a patch shared with its neighbour, where patches are blended.
        symmetry: what images may be turned by without a change of meaning; the logits of all these copies, turned
            back, are averaged. "none", "mirror" (each axis of the network: 4 copies in 2D, 8 in 3D) or, in 2D,
            "square" (quarter turns as well: 8 copies). Only right for a network that was trained with them.
        mode: "exact", "blend", or "auto", which takes what evaluates fewer voxels; a network that does not say how far
            it looks is always blended. "monai" blends on MONAI's own grid, for bundles that were published with its
            `SlidingWindowInferer(roi_size=patch, overlap=overlap, mode="gaussian")`, whose answer this is then.
        memory_gb: GiB that tiles may take; None for a third of the machine's, 8 at most, or seven tenths of a GPU's.
    """

    def __init__(
        self,
        spatial_dims: int,
        tile: Sequence[int] | None = None,
        batch: int = 1,
        overlap: float = 0.5,
        patch: Sequence[int] | None = None,
        symmetry: str = "none",
        mode: str = "auto",
        memory_gb: float | None = None,
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims has to be 2 or 3, not {spatial_dims}")
        if tile is not None and len(tile) != spatial_dims:
            raise ValueError(f"tile {list(tile)} has {len(tile)} axes, but the network works on {spatial_dims}")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap has to be at least 0 and less than 1, not {overlap}")
        if symmetry not in SYMMETRIES or (symmetry == "square" and spatial_dims != 2):
            raise ValueError(f"symmetry has to be one of {', '.join(SYMMETRIES)} ('square' in 2D), not {symmetry!r}")
        self.spatial_dims, self.tile, self.batch, self.overlap, self.patch = spatial_dims, tile, batch, overlap, patch
        if mode not in MODES:
            raise ValueError(f"mode has to be one of {', '.join(MODES)}, not {mode!r}")
        self.symmetry, self.mode, self.memory_gb = symmetry, mode, memory_gb

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Logits (N, classes, *spatial) of `inputs` (N, C, *spatial), on the device of `inputs`."""
        volume = inputs.as_subclass(Tensor)
        extra = volume.ndim - 2 - self.spatial_dims
        if extra not in (0, 1) or (extra == 1 and self.spatial_dims != 2):
            raise ValueError(
                f"a volume of shape {tuple(volume.shape)} does not fit (batch, channel) and {self.spatial_dims} axes"
            )

        def ask(tiles: Tensor) -> Tensor:
            return network(tiles, *args, **kwargs)

        answers = [self._whole(image, ask, network) for image in volume]
        logits = answers[0][None] if len(answers) == 1 else torch.stack(answers)  # of one volume no second copy
        if isinstance(inputs, MetaTensor):
            meta = MetaTensor([]).copy_meta_from(inputs, copy_attr=False)
            logits = convert_to_dst_type(logits, meta, device=logits.device)[0]
        return logits

    def pieces(
        self, volume: Volume, ask: Ask, network: Any, slack: bool = True, head: Ask | None = None
    ) -> Iterator[Piece]:
        """Logits of a volume (C, *spatial), which may be anything that is read in parts, piece by piece.

        Args:
            volume: of as many spatial axes as the network, or for a 2D network one more, the last.
            ask: (N, C, *spatial) -> (N, classes, *spatial), on the network's device.
            network: that `ask` asks, which says how far it looks.
            slack: whether the voxels beyond the cores are right too; else they must not be looked at.
            head: makes logits of what `ask` answers, each voxel's by itself, as that of `fewscan.networks.UNet.split`;
                of many classes there are logits for cores alone then.
        """
        shape, layout = tuple(volume.shape[1:]), self.layout(volume, network, slack, head)
        device = _device_of(network, volume.device if isinstance(volume, Tensor) else torch.device("cpu"))
        options: dict[str, Any] = {"device": device, "batch": self.batch, "symmetry": self.symmetry, "head": head}
        if len(shape) == self.spatial_dims:
            yield from pieces(volume, ask, layout, **options)
            return
        for number, image in enumerate(_slices(volume)):
            here = slice(number, number + 1)
            for piece in pieces(image, ask, layout, **options):
                yield Piece((*piece.core, here), (*piece.box, here), piece.logits.unsqueeze(-1))

    def layout(self, volume: Volume, network: Any, slack: bool = True, head: Any = None) -> Layout:
        """The tiles of a volume (C, *spatial), or of each of its slices; the arguments are those of `pieces`.

        Raises BudgetError where the memory that is allowed does not suffice.
        """
        needs = footprint(network, int(volume.shape[0]), self.spatial_dims)
        if needs is not None and head is not None:
            needs = replace(needs, head=int(head.out_channels))
        if needs is not None:
            needs = replace(needs, turned=self.symmetry != "none")
        return lay_tiles(
            network,
            tuple(volume.shape[1 : self.spatial_dims + 1]),
            mode=self.mode,
            tile=self.tile,
            patch=self.patch,
            overlap=self.overlap,
            slack=slack or self.symmetry != "none",
            footprint=needs,
            memory=self.allowed(_device_of(network, torch.device("cpu"))) / self.batch,
        )

    def allowed(self, device: torch.device) -> float:
        """Bytes that tiles may take."""
        return default_memory(device) if self.memory_gb is None else self.memory_gb * 2**30

    def _whole(self, image: Tensor, ask: Ask, network: Any) -> Tensor:
        """(C, *spatial) -> (classes, *spatial)."""
        answer: Tensor | None = None
        for piece in self.pieces(image, ask, network, slack=False):
            if answer is None:
                answer = piece.logits.new_empty((len(piece.logits), *image.shape[1:]), device=image.device)
            own = (
                slice(None),
                *(slice(c.start - b.start, c.stop - b.start) for c, b in zip(piece.core, piece.box, strict=True)),
            )
            answer[(slice(None), *piece.core)] = piece.logits[own].to(image.device)
        assert answer is not None  # there is always a piece
        return answer


def prepare_batch_of(inferer: Any) -> Callable[..., Any]:
    """What fits an inferer as `SupervisedEvaluator(prepare_batch=...)`.

    `OverlapTileInferer` brings tiles alone to the network's device. So image and label stay where they are: neither the
    volume nor its logits take a GPU's memory, and answer and label are on one device. Others get MONAI's own way.
    """
    from monai.engines.utils import default_prepare_batch  # slow to load

    return _leave_where_it_is if isinstance(inferer, OverlapTileInferer) else default_prepare_batch


def _leave_where_it_is(
    batch: Mapping[str, Any], device: torch.device | str | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    return batch["image"], batch.get("label")


def _device_of(network: Any, otherwise: torch.device) -> torch.device:
    """Where the network's weights are."""
    weights = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return otherwise if weights is None else weights.device


def _slices(volume: Volume) -> Iterator[Volume]:
    """The slices across the last axis; small ones are read in groups, for in files they may lie interleaved."""
    *shape, depth = volume.shape
    group = max(1, AT_ONCE // math.prod(shape))
    if isinstance(volume, Tensor) or group == 1:
        yield from (_Slice(volume, number) for number in range(depth))
        return
    for first in range(0, depth, group):
        held = read(volume, [*(slice(0, n) for n in shape[1:]), slice(first, min(first + group, depth))])
        yield from (_Slice(held, number) for number in range(held.shape[-1]))


class _Slice:
    """One slice of a volume (C, *spatial) across its last axis, read in parts."""

    def __init__(self, volume: Volume, number: int) -> None:
        self.volume, self.number, self.shape = volume, number, tuple(volume.shape[:-1])

    def __getitem__(self, box: Any) -> Any:
        return self.volume[(*box, slice(self.number, self.number + 1))][..., 0]
