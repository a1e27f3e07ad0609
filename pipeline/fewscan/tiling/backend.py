"""What runs a network: torch as it is ("eager", the reference), or on a CPU OpenVINO, held to torch's answer."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import chain
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from fewscan.errors import BundleError, first_line
from fewscan.networks.bare import bare
from fewscan.tiling import BACKENDS
from fewscan.tiling.signal_stack import own_signal_stack

LOGITS = 2e-4
"""How far OpenVINO's logits may lie from torch's, of the largest |logit|."""
LABELS = 1e-4
"""Share of the voxels, rounded up to one, whose label may be another."""
COMPARED = {2: 128, 3: 32}
"""Voxels along each axis that are compared at least, where a tile has them."""
CHECKS = 8
"""Tiles that are compared at most, one after the other, until one of them holds two labels: background tells little."""
LARGE = 8
"""Times the voxels that a check computes by torch: tiles from there on are checked shape by shape."""


def choose_backend(name: str, network: Any, device: torch.device | str) -> str:
    """What `name`, one of `BACKENDS`, comes to: "eager" or "openvino".

    "auto" is OpenVINO where it is installed, on the CPU, for a network in float32 and `eval()` that it runs exactly.
    Raises BundleError where "openvino" is asked for by name on another device, or is not installed.
    """
    if name not in BACKENDS:
        raise ValueError(f"the backend has to be one of {', '.join(BACKENDS)}, not {name!r}")
    on_cpu, installed = torch.device(device).type == "cpu", find_spec("openvino") is not None
    if name == "openvino" and not on_cpu:
        raise BundleError(
            f"the backend openvino computes on the CPU, but the device is {device}; take the backend auto, or the "
            "device cpu"
        )
    if name == "openvino" and not installed:
        raise BundleError('the backend openvino is not installed: pip install "fewscan[openvino]"')
    if name == "auto":
        return "openvino" if on_cpu and installed and _unfit(network) is None else "eager"
    return name


class OpenVinoNetwork:
    """A network on the CPU, run by OpenVINO in float32, as long as its answer is torch's.

    It is called like the network: (N, C, *spatial) -> (N, classes, *spatial) logits. Tiles are computed one by one, so
    an answer does not depend on the batch.

    The first tile of each shape is computed by torch as well, and the following ones (`CHECKS` in all) until one holds
    several labels; of networks that say how far they look only a part, its far corner. Where the logits lie farther
    apart than `LOGITS`, or more labels differ than `LABELS`, and where OpenVINO cannot run the network, torch computes
    all tiles of that shape. Small tiles of such a network share one check where their sizes leave the same rest when
    divided by its stride: they go through the same operations.

    Networks that OpenVINO does not run exactly go to torch as wholes (unpooling, instance and group norm), what is not
    float32, and everything while a part of the network is in `train()` (dropout that is left on to draw samples).
    Weights are taken as they are at the first tile.

    Args:
        network: in `eval()`, in float32.

    Attributes:
        notes: in words, what torch computed and why.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.notes: list[str] = []
        self._converted = _Converted(network)
        self._right: dict[tuple[int, ...], bool] = {}
        self._checks: dict[tuple[int, ...], int] = {}
        module = bare(network)
        self._stride = int(module.stride) if getattr(module, "is_local", False) else None
        self._halo = int(module.halo) if self._stride else 0
        self._valid = self._stride is not None and getattr(module, "padding", "same") == "valid"
        self._least = 2 * self._halo + int(module.surplus) if self._valid else 2 * (self._stride or 0)

    def __call__(self, tiles: Tensor) -> Tensor:
        """(N, C, *spatial) -> (N, classes, *spatial)."""
        why = _unfit(self.network)
        if why is None and tiles.dtype != torch.float32:
            why = f"tiles are {tiles.dtype}"
        if why is not None:
            self._note(f"torch computes, as {why}")
            return self._by_torch(tiles)
        answers = [self._answer(tiles[n : n + 1]) for n in range(len(tiles))]
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def _answer(self, tile: Tensor) -> Tensor:
        """Of one tile (1, C, *spatial)."""
        shape = tuple(tile.shape[1:])
        example = self._part(shape, self._least)
        looked_at = self._part(shape, (self._least if self._valid else self._halo) + COMPARED[len(shape) - 1])
        alike = shape if prod(shape) >= LARGE * prod(looked_at) else example
        if alike not in self._right:
            answer, telling = self._checked(tile, example, looked_at)
            self._checks[alike] = self._checks.get(alike, 0) + 1
            if answer is None or telling or self._checks[alike] == CHECKS:
                self._right[alike] = answer is not None
            if answer is not None:
                return answer
            return self._by_torch(tile)
        if self._right[alike]:
            try:
                return self._converted(tile, example)
            except Exception as problem:  # another shape than that of the check
                self._note(f"torch computes a tile of {shape}, as OpenVINO could not: {first_line(problem)}")
                self._converted.forget(tile)
        return self._by_torch(tile)

    def _by_torch(self, tiles: Tensor) -> Tensor:
        answer: Tensor = self.network(tiles)
        return answer

    def _checked(
        self, tile: Tensor, example: tuple[int, ...], looked_at: tuple[int, ...]
    ) -> tuple[Tensor | None, bool]:
        """OpenVINO's answer, or None where it is not torch's; and whether what was compared holds several labels."""
        shown = " x ".join(map(str, tile.shape[2:]))
        with torch.inference_mode():
            expected = self._by_torch(_corner(tile, looked_at[1:]))  # before OpenVINO holds its memory
            if not self._valid and looked_at != tuple(tile.shape[1:]):  # near the cut the rest of the tile has a say
                cut = zip(looked_at[1:], tile.shape[2:], strict=True)
                expected = _corner(expected, [n if n == whole else n - self._halo for n, whole in cut]).clone()
        try:
            answer = self._converted(tile, example)
            part = _corner(answer, expected.shape[2:])
            apart, largest = float((part - expected).abs().max()), float(expected.abs().max())
            wanted = expected.argmax(1)
            other, labels = int((part.argmax(1) != wanted).sum()), wanted.numel()
        except Exception as problem:  # whatever a foreign network does that OpenVINO does not know
            self._note(f"torch computes tiles of {shown} voxels, as OpenVINO cannot: {first_line(problem)}")
        else:
            if apart <= LOGITS * largest and other <= ceil(LABELS * labels):
                return answer, bool((wanted != wanted.flatten()[0]).any())
            self._note(
                f"torch computes tiles of {shown} voxels, as OpenVINO's answer differs: logits by up to {apart:.2g}, "
                f"where the largest is {largest:.2g} ({LOGITS:.0e} of it is allowed), {other} of {labels} labels"
            )
        self._converted.forget(tile)
        return None, False

    def _part(self, shape: Sequence[int], least: int) -> tuple[int, ...]:
        """The smallest shape of at least so many voxels along each axis that goes through the same operations."""
        if self._stride is None:
            return tuple(shape)
        step = self._stride
        return (shape[0], *(n - max(0, n - least) // step * step for n in shape[1:]))

    def _note(self, words: str) -> None:
        if words not in self.notes:
            self.notes.append(words)


class _Converted:
    """A network as OpenVINO runs it: converted where an example of a tile comes first, compiled for each shape."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.models: dict[tuple[int, ...], Any] = {}
        self.compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, tile: Tensor, example: tuple[int, ...]) -> Tensor:
        """Of one tile (1, C, *spatial); `example` is a shape (C, *spatial) that goes through the same operations."""
        shape = tuple(tile.shape)
        for other in [s for s in self.compiled if s != shape]:
            self.compiled[other].release_memory()
        if shape not in self.compiled:
            while len(self.compiled) > 1:  # two, for tiles whose axes are swapped in turn
                del self.compiled[next(iter(self.compiled))]
            if example not in self.models:
                self.models[example] = self._convert(_corner(tile, example[1:]))
            self.models[example].reshape(list(shape))
            settings = {
                "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 by default where the CPU has it
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,  # workers would share the same cores
            }
            with own_signal_stack():
                self.compiled[shape] = _core().compile_model(self.models[example], "CPU", settings)
        answer = torch.from_numpy(self.compiled[shape](tile.detach().contiguous().numpy())[0])
        return answer

    def forget(self, tile: Tensor) -> None:
        """Release what is held for tiles of this shape."""
        self.compiled.pop(tuple(tile.shape), None)

    def _convert(self, example: Tensor) -> Any:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of Python numbers that the trace takes for constants: so they are
            traced = torch.jit.trace(self.network, example, check_trace=False)  # type: ignore[no-untyped-call]
            return _openvino().convert_model(traced)


def _openvino() -> Any:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it reports and writes into the home
    import openvino

    return openvino


@cache
def _core() -> Any:
    """OpenVINO's devices, loaded once."""
    return _openvino().Core()


def _unfit(network: Any) -> str | None:
    """Why OpenVINO is not asked at all."""
    if not isinstance(network, nn.Module):
        return "the network is no module"
    for module in network.modules():
        if module.training:
            return "a part of the network is in train()"
        if getattr(module, "return_indices", False):  # logits 1e-2 apart, where maxima nearly tie
            return "the network puts maxima back to where pooling found them, which rounding may move"
        if isinstance(module, (nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm)):  # logits 3e-4 apart at 96^3 voxels
            return "OpenVINO rounds too much where instance or group norm sums over many voxels"
    for tensor in chain(network.parameters(), network.buffers()):
        if tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            return f"the network has weights in {tensor.dtype} on {tensor.device}"
    return None


def _corner(x: Tensor, size: Sequence[int]) -> Tensor:
    """The last voxels along each axis of (N, C, *spatial)."""
    return x[(slice(None), slice(None), *(slice(whole - n, whole) for n, whole in zip(size, x.shape[2:], strict=True)))]
