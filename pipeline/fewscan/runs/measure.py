"""What a network costs: parameters, multiplications, seconds of a training step, memory of one patch.

`python -m fewscan.runs.measure BUNDLE` prints the memory that one patch takes on the CPU, in a process of its own.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewscan.bundle import read_json
from fewscan.training.step import is_out_of_memory

TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, *TRANSPOSED)
_STATUS = Path("/proc/self/status")


def parameters(network: nn.Module) -> int:
    """Numbers that make the network, fixed upsampling kernels among them; running statistics are not counted."""
    return sum(parameter.numel() for parameter in network.parameters())


def gmac(network: nn.Module, shape: Sequence[int]) -> float:
    """Multiply-accumulates in 1e9 of one forward pass over (1, C, *spatial) = `shape`, of its convolutions alone.

    A convolution counts outputs x inputs x kernel, a transposed one the same for each voxel that goes in: what lies
    beyond the border counts too. Norms, ReLU, pooling and softmax are left out. Nothing is computed: the pass runs
    on torch's meta device.
    """
    counted = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, CONVOLUTIONS)
        places = (inputs[0] if isinstance(layer, TRANSPOSED) else output).shape[2:]
        channels = layer.in_channels * layer.out_channels // layer.groups
        counted += math.prod(places) * channels * math.prod(layer.kernel_size)

    ghost = copy.deepcopy(network).to("meta").eval()
    for layer in ghost.modules():
        if isinstance(layer, CONVOLUTIONS):
            layer.register_forward_hook(count)
    with torch.no_grad():
        ghost(torch.empty(tuple(shape), device="meta"))
    return counted / 1e9


def seconds_per_step(bundle: Path, device: str) -> float:
    """Of a training step of a bundle's network on random patches: forward and backward, the quicker of two.

    Reading, augmentation and the optimiser are not in it, so a training takes longer. On CUDA in half precision; where
    memory does not suffice for the batch, which a training would part, patch by patch.
    """
    config = read_json(bundle / "configs" / "train.json")
    batch, shape = int(config["batch"]), (len(config["channels"]), *config["patch"])
    try:
        return _seconds(network_of(bundle), (batch, *shape), device)
    except RuntimeError as problem:
        if not is_out_of_memory(problem) or batch == 1:
            raise
    return batch * _seconds(network_of(bundle), (1, *shape), device)


def _seconds(network: nn.Module, shape: Sequence[int], device: str) -> float:
    """Forward and backward of noise (N, C, *spatial) = `shape`, the quicker of two."""
    network, taken = network.to(device).train(), []
    patches = torch.randn(tuple(shape), device=device)
    for _ in range(3):
        started = time.perf_counter()
        with torch.autocast("cuda", enabled=torch.device(device).type == "cuda"):
            answer = network(patches)
        first = answer[0] if isinstance(answer, (list, tuple)) else answer  # of a U-Net with deep supervision
        first.float().square().mean().backward()
        _wait_for(device)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def patch_memory(bundle: Path, device: torch.device) -> dict[str, Any]:
    """Peak memory in MB (1e6 bytes) while a bundle's network answers one patch, and in words what was measured.

    CUDA: the most that torch had allocated. CPU: the most that a fresh process had in memory, Python and libraries
    among it, of which `before_mb` were there before the patch; Linux only. `mb` is None where it was not measured.
    """
    if device.type == "cuda":
        network, patch = network_of(bundle).to(device).eval(), _patch(bundle).to(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        with torch.inference_mode(), torch.autocast("cuda"):
            network(patch)
        peak = torch.cuda.max_memory_allocated(device)
        return {"mb": peak / 1e6, "before_mb": before / 1e6, "how": "allocated by torch on the GPU, one patch"}
    if device.type != "cpu" or not _STATUS.exists():
        return {"mb": None, "before_mb": None, "how": "not measured on this system"}
    command = [sys.executable, "-m", "fewscan.runs.measure", str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return {"mb": None, "before_mb": None, "how": "not measured: the process that measures it failed"}
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "how": "resident memory of a fresh process with one patch, Python and libraries among it",
    }


def network_of(bundle: Path) -> nn.Module:
    """The bundle's network, built anew from its inference.json; without the trained weights."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    network: nn.Module = parser.get_parsed_content("network_def")
    return network


def _patch(bundle: Path) -> torch.Tensor:
    """(1, C, *patch) noise of the size that the bundle trains on."""
    config = read_json(bundle / "configs" / "train.json")
    return torch.randn(1, len(config["channels"]), *config["patch"])


def _wait_for(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _resident(field: str) -> float:
    """VmRSS (now) or VmHWM (the most so far) of this process in MB.

    Not `resource.getrusage`: on Linux its maximum begins with that of the process that started this one.
    """
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6


def _main(bundle: Path) -> None:
    network, patch = network_of(bundle).eval(), _patch(bundle)
    with contextlib.suppress(OSError):  # some containers forbid it; then the libraries' own peak counts too
        Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
    before = _resident("VmRSS")
    with torch.inference_mode():
        network(patch)
    print(json.dumps({"mb": round(_resident("VmHWM"), 1), "before_mb": round(before, 1)}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
