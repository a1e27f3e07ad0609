"""What is written at the end: the average of the weights on the way, with batch-norm statistics of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fewscan.training.ranks import total

HALF = 0.05
"""The last share of the steps that has half of the average's weight."""
POWER = math.log(0.5) / math.log(1 - HALF)


class WeightAverage:
    """Exponential moving average of a network's parameters, whose memory grows with the training.

    After t steps, the first s of them have (s / t) ^ POWER of the weight: whatever the length, the last 5 % have half,
    and what the network began with has none. So short trainings need no other decay than long ones, and nobody has
    to know the length before (as with `minutes`). This is the power function of Karras et al. 2024 (Analyzing and
    Improving the Training Dynamics of Diffusion Models, CVPR, Sec. 3.1): the decay of step t is (1 - 1/t) ^ POWER.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parameters = {name: value.detach().clone() for name, value in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """After that step of the training, counted from 1."""
        news = [value.detach() for _, value in network.named_parameters()]
        torch._foreach_lerp_(list(self.parameters.values()), news, 1 - (1 - 1 / step) ** POWER)

    @torch.no_grad()
    def copy_to(self, network: nn.Module) -> None:
        """The network's parameters become the average; its buffers stay."""
        for name, value in network.named_parameters():
            value.copy_(self.parameters[name])

    @torch.no_grad()
    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Go on from the `parameters` of another one."""
        for name, value in self.parameters.items():
            value.copy_(parameters[name])


@torch.no_grad()
def recompute_statistics(network: nn.Module, images: Iterable[Tensor], ranks: int = 1, amp: bool = False) -> None:
    """Give batch-norm layers the mean and variance of all images together, as they are with the present weights.

    Each layer's statistics are those of the pooled voxels of every batch, not a mean over batches: of two patches a
    batch, the variance within would miss what lies between the batches. It is the variance that training divides by
    (n, not n - 1). As in training, a layer's input is normalised
    by its own batch before; dropout is off. Frozen layers, which stay in `eval()`, keep their statistics. The network
    is in `eval()` afterwards.

    Args:
        network: on a device.
        images: batches (N, C, *spatial) on that device; left alone where the network has no batch norm.
        ranks: processes that each have a share of the images; all get the same statistics.
        amp: whether the network answers in half precision on CUDA; how images are made is not touched by it.
    """
    network.train()
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.training]
    layers = [layer for layer in layers if layer.running_mean is not None]
    network.eval()
    if not layers:
        return
    sums = [torch.zeros(3, layer.num_features, dtype=torch.float64) for layer in layers]
    listeners = [layer.register_forward_pre_hook(_add_to(pooled)) for layer, pooled in zip(layers, sums, strict=True)]
    try:
        for layer in layers:
            layer.train()
        for image in images:
            with torch.autocast("cuda", enabled=amp):
                network(image)
    finally:
        network.eval()
        for listener in listeners:
            listener.remove()
    for layer, pooled in zip(layers, sums, strict=True):
        assert layer.running_mean is not None and layer.running_var is not None
        count, first, second = total(pooled, ranks, layer.running_mean.device)
        mean = first / count
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(second / count - mean**2)


def _add_to(pooled: Tensor) -> Any:
    """A hook that adds voxels, their sum and their sum of squares to (3, channels), in double precision."""

    def listen(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        voxels = inputs[0].unsqueeze(-1).flatten(2).float()  # (N, C, voxels)
        mean = voxels.mean((0, 2), keepdim=True)
        variance = (voxels - mean).square().mean((0, 2))  # in two passes, as torch.var_mean is far slower on a CPU
        first, spread, count = mean.flatten().cpu().double(), variance.cpu().double(), voxels[:, 0].numel()
        pooled.add_(torch.stack([torch.full_like(first, count), count * first, count * (spread + first**2)]))

    return listen
