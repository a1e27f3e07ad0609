"""Networks with few channels, and what every network has to keep: its claims of stride and halo."""

import sys
from pathlib import Path

import torch
from torch import nn

from conftest import shared

WIDTHS = (4, 8, 16, 32, 32)
"""VGG-16's widths / 16, as in the reference files."""


def against_reference(network: nn.Module, name: str, monkeypatch) -> None:
    """The network with a reference file's weights gives the file's answer."""
    folder: Path = shared("parity")
    monkeypatch.syspath_prepend(str(folder))
    ours, reference = sys.modules.get("load", __import__("load")).load_into(network, folder / name)
    assert (ours - reference).abs().max() <= 1e-4 * max(1, reference.abs().max())


def reach_of(network: nn.Module, dims: int, axis: int = 0, images: int = 30) -> int:
    """How far, in voxels along an axis, the answers in a cell of the stride's grid look beyond it, by gradient."""
    network = network.double().eval()
    stride, start = network.stride, network.halo + network.stride
    shape = [stride] * dims
    shape[axis] = 2 * start + stride
    reach = 0
    for _ in range(images):  # max pooling lets one voxel of a cell through: several images find every path
        for parameter in network.parameters():
            parameter.data.uniform_(0.1, 1)  # positive: nothing cancels, no ReLU is shut
            parameter.data /= parameter[0].numel()
        x = torch.rand((1, 1, *shape), dtype=torch.double, requires_grad=True)
        network(x)[0, 0].movedim(axis, 0)[start : start + stride].sum().backward()
        touched = x.grad[0, 0].movedim(axis, 0).abs().flatten(1).sum(-1).nonzero().flatten()
        reach = max(reach, start - int(touched.min()), int(touched.max()) - (start + stride - 1))
    return reach


def randomise(network: nn.Module) -> nn.Module:
    """In double precision and `eval()`, with batch norm statistics, scales and biases that change something."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
        if getattr(module, "bias", None) is not None:
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return network.double().eval()
