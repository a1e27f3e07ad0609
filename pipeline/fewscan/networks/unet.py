"""U-Net (Ronneberger, Fischer, Brox 2015; 3D: Cicek et al. 2016)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewscan.networks.layers import (
    CONVOLUTION,
    NORM,
    POOL,
    UP_CONVOLUTION,
    Strides,
    cell_of,
    continue_to,
    cut,
    he_initialise,
    round_up,
    strides_by_axis,
)


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015, Fig. 1), 2D and 3D.

    (N, in_channels, *spatial) -> (N, classes, *spatial) logits. By default it is padded, so that the answer has the
    size of the input, whatever that is, and has batch norm. The network of the paper, exactly (31,030,658 parameters):

        UNet(2, 1, 2, widths=(64, 128, 256, 512, 1024), padding="valid", norm=None, dropout=0.5)

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        classes: classes, the background among them.
        widths: channels of each level, from full resolution to the bottom; one pooling between neighbours.
        padding: "same" keeps the size; "valid" is the paper's unpadded convolution: the answer is the centre of the
            input, `2 * halo` smaller along each axis, and only sizes in steps of `stride` fit (572, 556, ...).
        norm: "batch", "instance", or None as in the paper (convolutions then have biases).
        dropout: probability at the end of the contracting path (after the last skip's level and the bottom).
        strides: of each pooling and its up-convolution, from full resolution down: 1 or 2, for all axes or each
            ([[2, 2, 1], 2, 2] for thick slices). By default 2; "valid" networks have no other.
        concat_order: "skip_up" puts the skip's channels first, "up_skip" the upsampled map's, as some others do.
        relu_after_upconv: whether a ReLU follows each up-convolution, as in the authors' own model file.
        deep_supervision: whether the network in `train()` answers a list for the loss: first the logits, then those
            of each coarser decoder level, interpolated to the same size. In `eval()` and compiled by TorchScript the
            answer is one tensor.

    Initialised as in the paper (He et al. 2015): Gaussian with standard deviation sqrt(2 / incoming nodes).

    Attributes:
        cell: voxels of one bottom cell along each axis.
        stride: the largest of `cell`; a shift by this much shifts the answer exactly.
        halo: how far the answers in a cell of the stride's grid look beyond it, in voxels along each axis. Padded:
            rounded up to the stride, no voxel farther away has any influence (6 x 2^levels: 24, 48, 96 for 2, 3, 4
            levels). Valid: what the answer loses on each side (92 for the paper's four levels).
        surplus: valid networks take 2 x halo + surplus + k x stride voxels, and answer surplus + k x stride.
        is_local: whether a voxel's answer depends on its surroundings only; not so with instance norm.
    """

    source = (
        "Ronneberger, Fischer, Brox 2015, U-Net: Convolutional Networks for Biomedical Image Segmentation, MICCAI, "
        "doi 10.1007/978-3-319-24574-4_28"
    )

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        classes: int,
        widths: Sequence[int] = (32, 64, 128, 256),
        *,
        padding: str = "same",
        norm: str | None = "batch",
        dropout: float = 0.0,
        strides: Strides | None = None,
        concat_order: str = "skip_up",
        relu_after_upconv: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if padding not in ("same", "valid"):
            raise ValueError(f'padding has to be "same" or "valid", not {padding!r}')
        if norm not in (None, *NORM):
            raise ValueError(f'norm has to be "batch", "instance" or None, not {norm!r}')
        if concat_order not in ("skip_up", "up_skip"):
            raise ValueError(f'concat_order has to be "skip_up" or "up_skip", not {concat_order!r}')
        if len(widths) < 2:
            raise ValueError(f"widths needs at least two levels, not {list(widths)}")
        if padding == "valid" and (deep_supervision or strides is not None):
            raise ValueError('valid convolutions go with strides of 2 and one answer; for others take padding="same"')
        self.spatial_dims, self.padding, self.is_local = spatial_dims, padding, norm != "instance"
        self.skip_first, self.relu_after_upconv = concat_order == "skip_up", relu_after_upconv
        self.deep_supervision = deep_supervision
        self.levels = len(widths) - 1
        by_axis = strides_by_axis(strides, self.levels, spatial_dims)
        self.cell = cell_of(by_axis)
        self.stride, self.surplus = max(self.cell), 4
        if padding == "valid":
            self.halo = 6 * self.stride - 4
        else:
            self.halo = round_up(max(_reach(along) for along in zip(*by_axis, strict=True)), self.stride)

        def block(inputs: int, outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for channels in (inputs, outputs):
                pad = 1 if padding == "same" else 0
                layers.append(CONVOLUTION[spatial_dims](channels, outputs, 3, padding=pad, bias=norm is None))
                if norm is not None:
                    layers.append(NORM[norm][spatial_dims](outputs, affine=True))
                layers.append(nn.ReLU(inplace=True))
            return nn.Sequential(*layers)

        self.down = nn.ModuleList(map(block, (in_channels, *widths[:-2]), widths[:-1]))
        self.pools = nn.ModuleList(POOL[spatial_dims](stride) for stride in by_axis)
        self.dropout = nn.Dropout(dropout)
        self.bottom = block(widths[-2], widths[-1])
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (wide, narrow), from the bottom up
        self.up = nn.ModuleList(
            UP_CONVOLUTION[spatial_dims](wide, narrow, stride, stride)
            for (wide, narrow), stride in zip(pairs, reversed(by_axis), strict=True)
        )
        self.merge = nn.ModuleList(block(2 * narrow, narrow) for _, narrow in pairs)
        self.head = CONVOLUTION[spatial_dims](widths[0], classes, 1)
        self.coarse_cells = [cell_of(by_axis[:level]) for level in range(1, self.levels)]
        self.coarse_heads = nn.ModuleList(
            CONVOLUTION[spatial_dims](widths[level], classes, 1) for level in range(1, self.levels) if deep_supervision
        )
        self.apply(he_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *spatial) -> (N, classes, *spatial); written so that TorchScript can compile it.

        With deep supervision and in `train()`: a list of such tensors, the network's own answer first.
        """
        size = list(x.shape[2:])
        if self.padding == "valid":
            self._check_valid_size(x)
        else:
            x = continue_to(x, self.cell)  # an axis shorter than one cell
        skips: list[Tensor] = []
        for level, (block, pool) in enumerate(zip(self.down, self.pools)):  # noqa: B905  TorchScript knows no strict
            x = block(x)
            if level == self.levels - 1:
                x = self.dropout(x)
            skips.append(x)
            x = pool(x)
        x = self.dropout(self.bottom(x))
        maps: list[Tensor] = []
        for up, merge in zip(self.up, self.merge):  # noqa: B905
            x = up(x)
            if self.relu_after_upconv:
                x = torch.relu(x)
            x = merge(self._join(skips.pop(), x))
            maps.append(x)
        x = self.head(x)
        if not torch.jit.is_scripting() and self.deep_supervision and self.training:  # type: ignore[attr-defined]
            answers: Tensor = self._with_coarse_answers(x, maps, size)
            return answers
        return cut(x, 0, size) if self.padding == "same" else x

    @torch.jit.unused
    def split(self) -> tuple[UNet, Any]:
        """The network up to its last maps, and the 1 x 1 convolution that makes logits of them, voxel by voxel.

        Both share this network's weights: (N, in_channels, *spatial) -> (N, widths[0], *spatial) -> (N, classes, ...).
        """
        body = copy.copy(self)
        body._modules = {**self._modules, "head": nn.Identity().train(self.training)}
        return body, self.head

    def _join(self, skip: Tensor, upsampled: Tensor) -> Tensor:
        """`[skip, up]`: the skip cropped at the centre (valid), or the upsampled map padded at its end (odd sizes)."""
        ends: list[int] = []
        for axis in range(skip.ndim - 1, 1, -1):
            extra = skip.shape[axis] - upsampled.shape[axis]
            if self.padding == "valid":
                skip = skip.narrow(axis, extra // 2, upsampled.shape[axis])
                extra = 0
            ends += [0, extra]
        upsampled = nn.functional.pad(upsampled, ends)
        return torch.cat([skip, upsampled] if self.skip_first else [upsampled, skip], dim=1)

    @torch.jit.unused
    def _with_coarse_answers(self, logits: Tensor, maps: list[Tensor], size: list[int]) -> Any:
        """The list of the answer and the logits of the coarser decoder levels, interpolated to its size."""
        answers = [cut(logits, 0, size)]
        mode = {2: "bilinear", 3: "trilinear"}[self.spatial_dims]
        for head, cell, coarse in zip(self.coarse_heads, self.coarse_cells, maps[-2::-1], strict=True):
            factors = [float(n) for n in cell]
            answer = nn.functional.interpolate(head(coarse), scale_factor=factors, mode=mode, align_corners=False)
            answers.append(cut(continue_to(answer, size), 0, size))
        return answers

    def _check_valid_size(self, x: Tensor) -> None:
        smallest = 2 * self.halo + self.surplus
        for size in x.shape[2:]:
            if size < smallest or (size - smallest) % self.stride != 0:
                raise ValueError(
                    f"a valid U-Net of {self.levels} levels takes sizes {smallest}, {smallest + self.stride}, ... "
                    f"(steps of {self.stride}), not {size}"
                )


def _reach(strides: Sequence[int]) -> int:
    """Voxels that the answers in a bottom cell look beyond it: each block's two convolutions look 2 cells far."""
    reach = 2
    for stride in strides:
        reach = -(-reach // stride) + 2
    for stride in reversed(strides):
        reach = stride * reach + 2
    return reach
