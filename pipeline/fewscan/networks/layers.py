"""What the networks share: layers by number of axes, strides, initialisation, and how an axis is continued or cut."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
UP_CONVOLUTION: dict[int, type[Any]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORM: dict[str, dict[int, type[nn.Module]]] = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
}

Strides = Sequence[int | Sequence[int]]
"""For each pooling, from full resolution down: 1 or 2 for all axes, or 1 or 2 for each axis."""


def strides_by_axis(strides: Strides | None, levels: int, spatial_dims: int) -> list[tuple[int, ...]]:
    """One tuple (one stride an axis) for each pooling; None means 2 everywhere."""
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims has to be 2 or 3, not {spatial_dims}")
    given = [2] * levels if strides is None else list(strides)
    each = [(s,) * spatial_dims if isinstance(s, int) else tuple(s) for s in given]
    if len(each) != levels or any(len(s) != spatial_dims or not set(s) <= {1, 2} for s in each):
        raise ValueError(
            f"strides needs 1 or 2 for each of {levels} poolings (and each of {spatial_dims} axes), not {given}"
        )
    return each


def cell_of(strides: Sequence[Sequence[int]]) -> list[int]:
    """Voxels of one bottom cell along each axis."""
    return [prod(along) for along in zip(*strides, strict=True)]


def round_up(n: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-n // step) * step


def continue_to(x: Tensor, size: list[int]) -> Tensor:
    """(N, C, *spatial) with its last voxels repeated at the end of each axis that is shorter than `size`."""
    ends: list[int] = []
    for axis in range(x.ndim - 1, 1, -1):
        ends += [0, max(size[axis - 2] - x.shape[axis], 0)]
    return nn.functional.pad(x, ends, mode="replicate") if max(ends) > 0 else x


def cut(x: Tensor, start: int, size: list[int]) -> Tensor:
    """(N, C, *spatial) from voxel `start` of each axis on, `size` voxels."""
    for axis, n in enumerate(size):
        x = x.narrow(axis + 2, start, n)
    return x


def he_initialise(module: nn.Module) -> None:
    """Gaussian weights with standard deviation sqrt(2 / incoming nodes) (He et al. 2015), biases 0."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.normal_(module.weight, std=(2 / module.in_channels) ** 0.5)  # kernel = stride: one input cell a voxel
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def bilinear_kernel(channels: int, size: Sequence[int]) -> Tensor:
    """(channels, channels, *size) weights of a transposed convolution that upsamples each channel linearly.

    A kernel of 2 f voxels upsamples by f, one of 1 copies; channels do not mix.
    """
    kernel = torch.ones(())
    for n in size:
        factor = (n + 1) // 2
        centre = factor - 1 if n % 2 else factor - 0.5
        kernel = kernel[..., None] * (1 - (torch.arange(n, dtype=torch.float64) - centre).abs() / factor)
    weight = torch.zeros(channels, channels, *size)
    weight[range(channels), range(channels)] = kernel.to(weight.dtype)
    return weight
