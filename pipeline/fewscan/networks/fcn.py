"""Fully convolutional networks (Long, Shelhamer, Darrell 2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from fewscan.errors import FewscanError
from fewscan.networks.layers import (
    CONVOLUTION,
    UP_CONVOLUTION,
    Strides,
    bilinear_kernel,
    cell_of,
    continue_to,
    cut,
    he_initialise,
    round_up,
)
from fewscan.networks.vgg import CONVOLUTIONS, VGG16, WIDTHS, load_vgg16

CROP = {"8s": 31, "16s": 27, "32s": 19}
"""Voxels cut from the start of the last upsampled map in faithful mode; it centres the answer on the image."""

FC_KERNEL = {2: 7, 3: 3}
"""fc6: VGG-16's 7x7 window in 2D; 3x3x3 in 3D, where 7x7x7 would hold 0.7 G parameters."""


class FCN(nn.Module):
    """FCN-32s, -16s and -8s (Long et al. 2015, Fig. 3): VGG-16 as convolutions, its class scores upsampled and summed.

    (N, in_channels, *spatial) -> (N, classes, *spatial) logits, whatever the size. Two modes:

    - "practical": the image is continued at its end to whole cells of 32 voxels, fc6 is padded, and upsampling is
      aligned: with fixed kernels it is linear interpolation with half-voxel centres. 2D and 3D.
    - "faithful": as published, for 2D: 100 zeros around the image, pools that keep incomplete cells, fc6 without
      padding, upsampled maps cut by 5, 9 and 31 (16s: 5, 27; 32s: 19). Both modes hold the same parameters.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        classes: classes, the background among them.
        variant: "32s" upsamples the scores of the last map by 32; "16s" first adds those of pool4, "8s" of pool3 too.
        widths: channels of VGG-16's five stages.
        fc_width: channels of fc6 and fc7, which hold 119.5 M of the 134.3 M parameters.
        mode: "practical" or "faithful".
        norm: "batch" in the encoder, or None as published.
        strides: of the five poolings, 1 or 2, for all axes or each; practical mode only.
        at_once: pool4 is scaled by 0.01 and pool3 by 0.0001, for training all in one go rather than in stages.
        learn_upsampling: whether the upsampling kernels, bilinear at first, are trained.
        dropout: probability behind fc6 and fc7.

    FCN-8s for one channel and two classes has 134,270,278 parameters (1,152 of them upsampling kernels, counted also
    where they are fixed). Initialised as He et al. 2015; VGG-16's weights come by `load_vgg16`.

    Attributes:
        cell: voxels of one cell of the coarse score map along each axis.
        stride: the largest of `cell`, 32; a shift by this much shifts the answer exactly.
        halo: how far the answers in a cell look beyond it, rounded up to the stride: 224 voxels in 2D, 160 in 3D
            (the most of all axes).
        is_local: always; a voxel's answer depends on its surroundings only.
    """

    source = (
        "Long, Shelhamer, Darrell 2015, Fully Convolutional Networks for Semantic Segmentation, CVPR, "
        "doi 10.1109/CVPR.2015.7298965"
    )

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        classes: int,
        variant: str = "8s",
        *,
        widths: Sequence[int] = WIDTHS,
        fc_width: int = 4096,
        mode: str = "practical",
        norm: str | None = None,
        strides: Strides | None = None,
        at_once: bool = False,
        learn_upsampling: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if variant not in CROP:
            raise ValueError(f'variant has to be "32s", "16s" or "8s", not {variant!r}')
        if mode not in ("practical", "faithful"):
            raise ValueError(f'mode has to be "practical" or "faithful", not {mode!r}')
        self.faithful, self.variant, self.is_local = mode == "faithful", variant, True
        if self.faithful and (spatial_dims != 2 or strides is not None):
            raise ValueError('the faithful mode is 2D and pools by 2; for anything else take mode="practical"')
        if len(widths) != len(WIDTHS):
            raise ValueError(f"widths needs VGG-16's five stages, not {list(widths)}")
        self.encoder = VGG16(
            spatial_dims,
            in_channels,
            widths,
            norm=norm,
            strides=strides,
            first_padding=100 if self.faithful else 1,
            ceil=self.faithful,
        )
        pooled = self.encoder.strides
        self.cell = cell_of(pooled)
        self.stride = max(self.cell)
        self.halo = max(
            round_up(_reach(along, FC_KERNEL[spatial_dims]) + 3 * self.faithful, self.stride)
            for along in zip(*pooled, strict=True)
        )
        self.scale_pool4, self.scale_pool3 = (0.01, 0.0001) if at_once else (1.0, 1.0)
        self.crop = CROP[variant] if self.faithful else 0

        def layer(inputs: int, outputs: int, kernel: int = 1, padding: int = 0) -> nn.Module:
            made = CONVOLUTION[spatial_dims](inputs, outputs, kernel, padding=padding)
            he_initialise(made)
            return made

        def upsampling(factors: Sequence[int]) -> Upsampling:
            return Upsampling(classes, factors, continued=not self.faithful, learn=learn_upsampling)

        kernel = FC_KERNEL[spatial_dims]
        self.fc6 = layer(widths[4], fc_width, kernel, 0 if self.faithful else kernel // 2)
        self.fc7 = layer(fc_width, fc_width)
        self.dropout = nn.Dropout(dropout)
        self.score = layer(fc_width, classes)
        fine = {"32s": 5, "16s": 4, "8s": 3}[variant]  # the last pooling whose cells the last upsampling starts from
        self.upscore2 = upsampling(pooled[4]) if fine <= 4 else None
        self.score_pool4 = layer(widths[3], classes) if fine <= 4 else None
        self.upscore_pool4 = upsampling(pooled[3]) if fine <= 3 else None
        self.score_pool3 = layer(widths[2], classes) if fine <= 3 else None
        self.upscore = upsampling(cell_of(pooled[:fine]))

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial) -> (N, classes, *spatial)."""
        size = list(x.shape[2:])
        pools = self._pool(x)
        score = self._score(pools[4])
        if self.upscore2 is not None and self.score_pool4 is not None:
            score = self._add(self.upscore2(score), self.score_pool4(pools[3] * self.scale_pool4), 5)
        if self.upscore_pool4 is not None and self.score_pool3 is not None:
            score = self._add(self.upscore_pool4(score), self.score_pool3(pools[2] * self.scale_pool3), 9)
        return cut(self.upscore(score), self.crop, size)

    @torch.jit.export
    def heat_map(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial) -> (N, classes, *cells), the class scores of each cell of `stride` voxels.

        Practical mode: cell k covers voxels stride x k to stride x (k + 1) - 1 (`cell` instead of `stride`, where
        strides differ). Faithful mode: the map is wider, by what the 100 zeros around the image add.
        """
        return self._score(self._pool(x)[4])

    def load_vgg16(self, file: str | Path) -> list[str]:
        """Start from a torchvision-style VGG-16 state dict (see `vgg.load_vgg16`); returns what was loaded.

        VGG-16's fully connected layers `classifier.0` and `.3` become fc6 and fc7, where the file holds them in this
        network's widths: their weights, reshaped, give the same scores at every window.
        """
        state, loaded = load_vgg16(self.encoder, file), ["encoder"]
        with torch.no_grad():
            for name, layer, dense in (("fc6", self.fc6, "classifier.0"), ("fc7", self.fc7, "classifier.3")):
                assert isinstance(layer, nn.Conv2d) and layer.bias is not None  # a 3D encoder was refused above
                weight = state.get(f"{dense}.weight")
                if weight is None or weight.shape != (layer.out_channels, layer.weight[0].numel()):
                    break
                layer.weight.copy_(weight.reshape(layer.weight.shape))
                layer.bias.copy_(state[f"{dense}.bias"])
                loaded.append(name)
        return loaded

    def load_stage(self, coarser: Mapping[str, Tensor]) -> None:
        """Go on from the state dict of a trained 32s (into 16s or 8s) or 16s (into 8s) of the same widths.

        The scores of the pools that are new start at 0, so that training starts from what the coarser network
        answers; new upsampling kernels are bilinear.
        """
        order = ("32s", "16s", "8s")
        stage = order[("score_pool4.weight" in coarser) + ("score_pool3.weight" in coarser)]
        if order.index(stage) >= order.index(self.variant):
            raise FewscanError(
                f"FCN-{self.variant} goes on from a coarser network, but these are weights of FCN-{stage}"
            )
        own = self.state_dict()
        known = {key: value for key, value in coarser.items() if not key.startswith("upscore.")}
        new = {"upscore"}
        if stage == "32s":
            new |= {"upscore2", "score_pool4"}
        if self.variant == "8s":
            new |= {"upscore_pool4", "score_pool3"}
        shared = {key for key in own if key.split(".")[0] not in new}
        wrong = sorted(shared ^ known.keys()) or sorted(k for k in shared if own[k].shape != known[k].shape)
        if wrong:
            raise FewscanError(
                f"FCN-{stage} and this FCN-{self.variant} differ in {len(wrong)} layers, first in {wrong[0]}; build "
                "both with the same classes, widths, fc_width, norm and mode"
            )
        self.load_state_dict(known, strict=False)
        for layer in (self.score_pool4 if stage == "32s" else None, self.score_pool3):
            if layer is not None:
                for parameter in layer.parameters():
                    nn.init.zeros_(parameter)

    def _pool(self, x: Tensor) -> list[Tensor]:
        """The maps behind the five poolings, from fine to coarse."""
        if not self.faithful:
            # not -(-n // cell): a traced division may round towards 0
            x = continue_to(x, [(n + cell - 1) // cell * cell for n, cell in zip(x.shape[2:], self.cell)])  # noqa: B905
        pools: list[Tensor] = []
        for stage, pool in zip(self.encoder.stages, self.encoder.pools):  # noqa: B905  TorchScript knows no strict
            x = pool(stage(x))
            pools.append(x)
        return pools

    def _score(self, pool5: Tensor) -> Tensor:
        x = self.dropout(torch.relu(self.fc6(pool5)))
        x = self.dropout(torch.relu(self.fc7(x)))
        scores: Tensor = self.score(x)
        return scores

    def _add(self, upsampled: Tensor, skip: Tensor, crop: int) -> Tensor:
        """The sum of both; in faithful mode the skip is larger, and cut to where the upsampled map lies."""
        return upsampled + (cut(skip, crop, list(upsampled.shape[2:])) if self.faithful else skip)


class Upsampling(nn.Module):
    """A transposed convolution without bias that starts as linear interpolation, for each class by itself.

    (N, classes, *cells) -> (N, classes, *voxels). With `continued`, cells x factor voxels come out, and the map goes
    on beyond its border with its outermost cells; the kernels at first then give exactly
    `torch.nn.functional.interpolate(mode="bilinear" or "trilinear", align_corners=False)`. Without it, as published:
    (cells - 1) x factor + kernel voxels, fading out at the border.

    Args:
        classes: channels in and out.
        factors: 1 or an even number along each axis; the kernel is twice as large (1 where the factor is 1).
        continued: whether the map goes on beyond its border.
        learn: whether the kernels are trained.
    """

    def __init__(self, classes: int, factors: Sequence[int], *, continued: bool, learn: bool) -> None:
        super().__init__()
        kernel = [2 * f if f > 1 else 1 for f in factors]
        beyond = [int(f > 1 and continued) for f in factors]  # cells
        self.beyond = [n for n in reversed(beyond) for _ in range(2)]
        self.transposed = UP_CONVOLUTION[len(factors)](
            classes,
            classes,
            tuple(kernel),
            tuple(factors),
            tuple(b * (f + f // 2) for b, f in zip(beyond, factors, strict=True)),
            bias=False,
        )
        self.transposed.weight.data.copy_(bilinear_kernel(classes, kernel))
        self.transposed.weight.requires_grad_(learn)

    def forward(self, x: Tensor) -> Tensor:
        """(N, classes, *cells) -> (N, classes, *voxels)."""
        if max(self.beyond) > 0:
            x = nn.functional.pad(x, self.beyond, mode="replicate")
        upsampled: Tensor = self.transposed(x)
        return upsampled


def _reach(strides: Sequence[int], fc_kernel: int) -> int:
    """Voxels that the answers in a bottom cell look beyond it along an axis, in practical mode.

    Upsampling looks one coarse cell far, fc6 half its kernel, each 3x3 convolution one cell of its own map.
    (The faithful mode's crops place the answer so that it looks 3 voxels farther to the left.)
    """
    reach = int(prod(strides) > 1) + fc_kernel // 2
    for stride, convolutions in zip(reversed(strides), reversed(CONVOLUTIONS), strict=True):
        reach = stride * reach + convolutions
    return reach
