"""Number formats that a device trains fastest in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


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
