"""How much memory a training step takes, by arithmetic; and the budgets that plans are made for."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewscan.errors import BundleError

COPIES_OF_WEIGHTS = 5
"""The weights, their gradients, AdamW's two states, and the running average."""
LOSS_COPIES = 5
"""Arrays of the logits' size in float32 that cross-entropy and Dice hold at once (one-hot as int64 counts twice)."""
WORKING_COPIES = 3
"""Of the largest layer's output while its gradient is computed: gradient in, gradient out, workspace."""
CONTEXT_GB = 0.9
"""What CUDA, cuDNN and the allocator's gaps take of a GPU beside the tensors, about."""

CASES_SHARE = 0.1
"""Of a GPU's memory that the cases may take from which patches are cut there."""


@dataclass(frozen=True)
class Budget:
    """What a training may use: two CPU cores, for which all was measured, or the memory of a GPU."""

    name: str
    gpu_gb: float | None = None
    """GiB of the GPU; None without one."""

    @classmethod
    def of(cls, name: str) -> Budget:
        """`cpu`, `titan6gb`, or the memory of a GPU such as `24gb`. Raises BundleError on anything else."""
        match = re.fullmatch(r"(?:titan)?(\d+(?:\.\d+)?)gb", name.lower())
        if name == "cpu":
            return cls(name)
        if match is None or float(match[1]) < 2:
            raise BundleError(f"--budget takes cpu, titan6gb or the memory of a GPU from 2gb on, not {name!r}")
        return cls(name, float(match[1]))

    @property
    def tensor_bytes(self) -> float:
        """What is left of the GPU for a training step's tensors, beside CUDA and the cases."""
        return math.inf if self.gpu_gb is None else ((1 - CASES_SHARE) * self.gpu_gb - CONTEXT_GB) * 2**30


def training_bytes(network: nn.Module, shape: Sequence[int], amp: bool = False) -> int:
    """Bytes that one training step with AdamW holds at its peak, for a batch (N, C, *spatial) = `shape`.

        weights x 4 x 5                                       float32: themselves, gradients, AdamW's two, their average
        + what the forward pass keeps for the backward pass   each storage once
        + 3 x the largest output of a layer                   while its gradient is computed
        + 5 x the logits in float32                           cross-entropy and Dice
        + weights x 2 and the batch x 4                       half-precision copies under `amp`, and the input

    Nothing is computed: the pass runs on torch's meta device, where what autograd keeps is counted as it is saved.
    Under `amp` every kept array counts as half precision.
    """
    ghost = copy.deepcopy(network).to("meta").train()
    if amp:
        ghost = ghost.half()
    owned = {tensor.untyped_storage()._cdata for tensor in (*ghost.parameters(), *ghost.buffers())}
    kept: dict[int, tuple[int, Tensor]] = {}
    largest = 0

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            kept[storage._cdata] = (storage.nbytes(), tensor)  # the tensor too, so that no storage is used twice
        return tensor

    def measure(_: nn.Module, __: object, output: Tensor | list[Tensor]) -> None:
        nonlocal largest
        for one in [output] if isinstance(output, Tensor) else output:
            if isinstance(one, Tensor):
                largest = max(largest, one.numel() * one.element_size())

    for layer in ghost.modules():
        layer.register_forward_hook(measure)
    batch = torch.empty(tuple(shape), device="meta", dtype=torch.float16 if amp else torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = ghost(batch)
    logits = sum(one.numel() for one in ([answer] if isinstance(answer, Tensor) else answer))
    weights = sum(parameter.numel() for parameter in network.parameters())
    return (
        COPIES_OF_WEIGHTS * 4 * weights
        + sum(size for size, _ in kept.values())
        + WORKING_COPIES * largest
        + LOSS_COPIES * 4 * logits
        + (2 * weights if amp else 0)
        + 4 * math.prod(shape)
    )
