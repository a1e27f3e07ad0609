"""A drop-in `monai.inferers.Inferer` that predicts a volume tile by tile."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from fewscan.tiling.tiles import Tile, blend_tiles, exact_tiles, mirror, valid_tiles

DEFAULT_TILE = {2: 1024, 3: 160}
"""Largest tile along each axis: about 2 GB for a 3D U-Net of base width 16, less in 2D."""
SYMMETRIES = ("none", "mirror", "square")


class OverlapTileInferer(Inferer):  # type: ignore[misc]  # MONAI has no types
    """Logits of a whole volume, whatever its size: (N, C, *spatial) -> (N, classes, *spatial), float32
    (float64 where the network answers so).

    Networks that say how far they look (`halo`, `stride`, `is_local`; all of fewscan's) get the U-Net paper's
    overlap-tile: cores partition the volume, and the answer is that of one pass over the whole volume, mirrored at
    its end to the stride (within 1e-5 of max |logit| in float32). All other networks, and networks with instance
    norm, get overlapping patches of size `patch`, averaged under a Gaussian.

    A 2D network takes a 3D volume slice by slice along the last axis. The volume stays where it is; tiles go to
    the network's device, and answers come back to the volume's.

    Args:
        spatial_dims: 2 or 3, what the network works on.
        tile: voxels of a tile along each axis; None for the largest that is sensible.
        patch: voxels along each axis of a patch of the network's training, for networks that do not say how far
            they look, and only for these; None takes `tile`, and one of both has to be given.
        batch: tiles given to the network at once.
        overlap: 0 up to but not 1, fraction of a patch shared with its neighbour, where patches are blended.
        symmetry: what images may be turned by without a change of meaning; the logits of all these copies, turned
            back, are averaged. "none", "mirror" (each axis of the network: 4 copies in 2D, 8 in 3D) or, in 2D,
            "square" (quarter turns as well: 8 copies). Only right for a network that was trained with them.
    """

    def __init__(
        self,
        spatial_dims: int,
        tile: Sequence[int] | None = None,
        batch: int = 1,
        overlap: float = 0.5,
        patch: Sequence[int] | None = None,
        symmetry: str = "none",
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
        self.symmetry = symmetry

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

        if extra == 0:
            logits = torch.stack([self._average(image, ask, network) for image in volume])
        else:
            slices = volume.unbind(-1)
            logits = torch.stack([torch.stack([self._average(i, ask, network) for i in s]) for s in slices], dim=-1)
        if isinstance(inputs, MetaTensor):
            logits = convert_to_dst_type(logits, MetaTensor([]).copy_meta_from(inputs, copy_attr=False))[0]
        return logits

    def _average(self, image: Tensor, ask: Callable[[Tensor], Tensor], network: Any) -> Tensor:
        """(C, *spatial) -> (classes, *spatial), the mean over the copies of the symmetry."""
        if self.symmetry == "none":
            return self._predict(image, ask, network)
        spatial = range(1, image.ndim)
        mirrored = [m for n in range(image.ndim) for m in itertools.combinations(spatial, n)]
        swapped = (False, True) if self.symmetry == "square" else (False,)
        total: Tensor | None = None
        for flip, swap in itertools.product(mirrored, swapped):
            turned = image.flip(flip)
            turned = turned.transpose(1, 2) if swap else turned
            logits = self._predict(turned, ask, network)
            logits = (logits.transpose(1, 2) if swap else logits).flip(flip)
            total = logits if total is None else total + logits
        assert total is not None
        return total / (len(mirrored) * len(swapped))

    def _predict(self, image: Tensor, ask: Callable[[Tensor], Tensor], network: Any) -> Tensor:
        """(C, *spatial) -> (classes, *spatial)."""
        module = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        shape = tuple(image.shape[1:])
        weights = next(module.parameters(), None) if isinstance(module, nn.Module) else None
        device = image.device if weights is None else weights.device
        margin, window = 0, None
        if getattr(module, "is_local", False):
            tile = self.tile or (DEFAULT_TILE[self.spatial_dims],) * self.spatial_dims
            if getattr(module, "padding", "same") == "valid":
                margin = module.halo
                core = [
                    min(max(t // module.stride, 1), -(-n // module.stride)) * module.stride
                    for t, n in zip(tile, shape, strict=True)
                ]
                tiles, padded = valid_tiles(shape, core, margin=margin, surplus=module.surplus)
            else:
                tiles, padded = exact_tiles(shape, tile, halo=module.halo, stride=module.stride)
        else:
            patch = self.patch or self.tile
            if patch is None or len(patch) != self.spatial_dims:
                raise ValueError(
                    f"{type(module).__name__} does not say how far it looks, or looks at the whole patch (instance "
                    f"norm); give the inferer the `patch` of its training, {self.spatial_dims} numbers, not {patch}"
                )
            tiles, padded = blend_tiles(shape, patch, self.overlap)
            window = _gaussian(patch).to(image.device)
        return self._accumulate(image, ask, tiles, padded, margin, window, device)

    def _accumulate(
        self,
        image: Tensor,
        ask: Callable[[Tensor], Tensor],
        tiles: list[Tile],
        padded: tuple[int, ...],
        margin: int,
        window: Tensor | None,
        device: torch.device,
    ) -> Tensor:
        shape = tuple(image.shape[1:])
        for axis, (n, size) in enumerate(zip(shape, padded, strict=True), start=1):
            if size != n:
                index = torch.from_numpy(mirror(-margin, size - margin, n)).to(image.device)
                image = image.index_select(axis, index)
        answer = weight = None
        for first in range(0, len(tiles), self.batch):
            group = tiles[first : first + self.batch]
            reads = torch.stack([image[(slice(None), *tile.read)] for tile in group])
            logits = ask(reads.to(device)).to(image.device)
            if answer is None:
                answer = logits.new_zeros(
                    (logits.shape[1], *padded), dtype=torch.promote_types(logits.dtype, torch.float32)
                )
                weight = answer.new_zeros(padded)
            for tile, piece in zip(group, logits, strict=True):
                core = (slice(None), *tile.core)
                if window is not None:
                    answer[core] += piece * window
                    weight[tile.core] += window  # type: ignore[index]
                elif margin:
                    answer[core] = piece[(slice(None), *(slice(c.stop - c.start) for c in tile.core))]
                else:
                    answer[core] = piece[(slice(None), *tile.core_in_read)]
        assert answer is not None and weight is not None  # there is always a tile
        if window is not None:
            answer /= weight
        return answer[(slice(None), *(slice(margin, margin + n) for n in shape))]


def _gaussian(patch: Sequence[int]) -> Tensor:
    """A Gaussian of standard deviation patch / 8 along each axis, at most 1 and at least 1e-3."""
    window = np.ones((), dtype=np.float32)
    for size in patch:
        along = np.exp(-0.5 * ((np.arange(size) - (size - 1) / 2) / (size / 8)) ** 2)
        window = np.multiply.outer(window, along.astype(np.float32))
    return torch.from_numpy(np.maximum(window / window.max(), 1e-3).astype(np.float32))
