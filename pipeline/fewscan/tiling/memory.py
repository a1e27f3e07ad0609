"""What a network's forward pass holds in memory, found without computing anything, and what it may hold."""

from __future__ import annotations

import contextlib
import copy
import weakref
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OVERHEAD = 1.6
"""What a forward pass takes on a CPU, of the bytes of its tensors: convolutions hold copies in layouts of their own.

1.1 to 1.25 where channels come in sixteens, 1.5 where not; by OpenVINO 0.9 for U-Net and 1.5 for FCN, which holds a
second copy of the weights besides."""
PROBE = {2: 256, 3: 64}
"""Voxels along each axis, at least, of the pass that is counted."""
MOST = 8 * 2**30
"""Bytes that tiles take by themselves, at most."""


@dataclass(frozen=True)
class Footprint:
    """What a network needs to answer a batch of one."""

    bytes: float
    """For each voxel that is read: of tensors at the peak of a forward pass in float32, and of columns, see below."""
    classes: int
    """That it answers; of a network that is split, the maps that its head makes classes of."""
    head: int = 0
    """Classes that a head makes of these, see `fewscan.tiling.OverlapTileInferer.pieces`."""
    turned: bool = False
    """Whether the answers of several turns of a tile are averaged: their sum is held, and one turned back."""

    @property
    def read(self) -> float:
        """Bytes on a CPU for each voxel that is read; OpenVINO holds the answer in two layouts besides."""
        return OVERHEAD * self.bytes + (5 if self.turned else 2) * 4 * self.classes

    @property
    def decided(self) -> float:
        """Bytes for each voxel that a head answers: its logits, in the convolution's layout and in rows."""
        return 2 * 4 * self.head


def footprint(network: Any, channels: int, dims: int) -> Footprint | None:
    """What a network needs, from a pass on torch's meta device, where nothing is computed.

    Every operation's result is counted from its making until nothing refers to it any more. None for a callable that is
    no module, and for modules of others that cannot be asked there.
    """
    if not isinstance(network, nn.Module):
        return None
    try:
        return _counted(network, channels, dims)
    except Exception:  # whatever a foreign network does with its input
        if getattr(network, "is_local", False):
            raise
        return None


def _counted(network: nn.Module, channels: int, dims: int) -> Footprint:
    stride = int(getattr(network, "stride", 1))
    size = -(-PROBE[dims] // stride) * stride
    if getattr(network, "padding", "same") == "valid":
        lost: Any = 2 * network.halo + network.surplus  # type: ignore[operator]  # torch: attributes may be modules
        size += lost
    weights = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in network.parameters()}
    buffers = {id(b): b.to("meta") for b in network.buffers()}
    ghost = copy.deepcopy(network, {**weights, **buffers}).float().eval()  # no copy of the weights
    columns = _count_columns(ghost)
    with torch.inference_mode(), _Live() as live:
        answer = ghost(torch.empty((1, channels, *(size,) * dims), device="meta"))
        classes = int(answer.shape[1])
        del answer
    return Footprint((live.most + max(columns, default=0)) / size**dims, classes)


def default_memory(device: torch.device) -> float:
    """Bytes that tiles may take where nobody says: a third of what the machine or its container has, at most `MOST`.

    On a GPU seven tenths of what it has. What else runs has no say in it, for tiles decide the last bits of an answer.
    """
    if device.type == "cuda":
        return 0.7 * float(torch.cuda.mem_get_info(device)[1])
    return min(MOST, machine_memory() / 3)


def machine_memory() -> int:
    """Bytes of the machine, or of the container that this runs in."""
    total = int(psutil.virtual_memory().total)
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # none, or "max"
            total = min(total, int(file.read_text()))
    return total


def _count_columns(network: nn.Module) -> list[int]:
    """Will hold, after a pass, the bytes of each transposed convolution's columns where its kernels overlap.

    OpenVINO multiplies such a layer out (each input voxel's contribution by itself, before they are added up) and keeps
    the room for it: 2^axes answers for FCN's upsampling, whose kernels are twice as large as its factors.
    """
    columns: list[int] = []

    def count(layer: Any, inputs: Any, _: Any) -> None:
        if any(kernel > stride for kernel, stride in zip(layer.kernel_size, layer.stride, strict=True)):
            columns.append(4 * layer.out_channels * prod(layer.kernel_size) * prod(inputs[0].shape[2:]))

    for layer in network.modules():
        if isinstance(layer, (nn.ConvTranspose2d, nn.ConvTranspose3d)):
            layer.register_forward_hook(count)
    return columns


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """Counts the bytes of storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._watch(tensor)
        self.most = max(self.most, self.now)
        return result

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._users:
            self._users[key] = 0
            self.now += size
        self._users[key] += 1
        weakref.finalize(tensor, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if self._users[key] == 0:
            del self._users[key]
            self.now -= size
