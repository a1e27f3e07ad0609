"""Dropout left on while predicting: samples of the network's answer.

Kendall, Badrinarayanan, Cipolla 2017, Bayesian SegNet: Model Uncertainty in Deep Convolutional Encoder-Decoder
Architectures for Scene Understanding, BMVC, doi 10.5244/C.31.57.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def dropout_layers(network: nn.Module) -> list[nn.Module]:
    """The network's layers that drop something (p > 0)."""
    return [layer for layer in network.modules() if isinstance(layer, _DROPOUT) and layer.p > 0]


@contextlib.contextmanager
def dropout_on(network: nn.Module, seed: int) -> Iterator[None]:
    """Inside, each call of the network is one sample: its dropout layers draw, all others stay in `eval()`.

    Batch norm keeps and uses its running statistics. Afterwards each module is in the mode that it was in, and
    torch's random numbers go on where they were. The same seed gives the same samples, on a CPU bit for bit. Raises
    ValueError where no layer drops anything, for then all samples are equal.
    """
    layers = dropout_layers(network)
    if not layers:
        raise ValueError(f"{type(network).__name__} has no dropout layer with p > 0, so all samples would be equal")
    modes = {module: module.training for module in network.modules()}
    gpus = {weights.device for weights in network.parameters() if weights.device.type == "cuda"}
    try:
        with torch.random.fork_rng(gpus):
            torch.manual_seed(seed)
            network.eval()
            for layer in layers:
                layer.train()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def mean_and_variance(samples: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and variance of tensors of one shape, element by element, of which one is held at a time (Welford 1962).

    The variance is divided by the number of samples. Sums of squares are never subtracted, so small variances are
    right in float32 too. Raises ValueError without a sample.
    """
    count, mean, squares = 0, torch.empty(0), torch.empty(0)
    for sample in samples:
        if count == 0:
            mean, squares = torch.zeros_like(sample), torch.zeros_like(sample)
        count += 1
        difference = sample - mean
        mean += difference / count
        squares += difference * (sample - mean)
    if count == 0:
        raise ValueError("no sample was given, so there is no mean")
    return mean, squares / count
