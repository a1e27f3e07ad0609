"""Number formats and memory layouts that a device trains fastest in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def has_half_precision(device: torch.device | str) -> bool:
    """Whether training in half precision pays: on CUDA (float16), and on CPUs with instructions for bfloat16.

    On two cores with AVX512-BF16 a step of the plans' U-Nets takes 0.6 of its time in float32 (docs/measured.md).
    """
    kind = torch.device(device).type
    if kind == "cpu":
        # not in every torch that MONAI supports
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
    return kind == "cuda"


def bfloat16_is_right(network: nn.Module, shape: Sequence[int]) -> bool:
    """Whether a batch (N, C, *spatial) can be learned from in bfloat16 on a CPU.

    oneDNN, as torch 2.13 has it, gives wrong gradients of a padded 3 x 3 x 3 convolution's weights, without a word and
    at times not finite, where its input has 2 voxels along the first spatial axis (tests/training/test_precision.py).
    Found by a pass on torch's meta device, where nothing is computed.
    """
    if len(shape) != 5:
        return True
    depths: set[int] = set()
    ghost = copy.deepcopy(network).to("meta").eval()
    for layer in ghost.modules():
        if isinstance(layer, nn.Conv3d):
            layer.register_forward_pre_hook(lambda _, inputs: depths.add(int(inputs[0].shape[2])))
    with torch.no_grad():
        ghost(torch.empty(tuple(shape), device="meta"))
    return 2 not in depths


def lay_out(network: nn.Module) -> nn.Module:
    """The network, on a CPU, channels last: convolution and batch norm read a voxel's channels together.

    A step of the plans' U-Nets takes 0.85 of its time with channels first (docs/measured.md); values differ by the
    order of summation alone. Nothing is changed on other devices.
    """
    for parameter in network.parameters():
        if parameter.device.type == "cpu" and parameter.ndim in (4, 5):
            parameter.data = parameter.data.contiguous(memory_format=_channels_last(parameter))
    return network


def _channels_last(tensor: Tensor) -> torch.memory_format:
    return torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
