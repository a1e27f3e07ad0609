"""One step of a training, in parts where memory does not suffice for the whole batch at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from tqdm import tqdm

from fewscan.errors import BundleError
from fewscan.networks.bare import bare
from fewscan.training.precision import bfloat16_is_right

OUT_OF_MEMORY = (
    "not enough memory", "DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED", "unable to find an engine",
    "nable to find a valid cuDNN algorithm",
)  # fmt: skip
"""What torch's other errors say: Windows; Linux and macOS; Apple's GPUs; cuBLAS and cuDNN, the last two where no
workspace can be had."""
ANY_STRIDE = 32
"""Steps in which the patch of a network that names no stride is made smaller."""

Piece = tuple[slice, ...]
"""Of a batch (N, C, *spatial): samples, all channels, and the voxels of each axis."""


class TrainingStep:
    """What `monai.engines.SupervisedTrainer` does in a step, as its `iteration_update`; it survives a lack of memory.

    Then the batch is halved, down to single patches, and then each patch is cut into two along its longest axis, again
    and again; gradients are added up over the pieces, so that a step still sees every voxel of its batch and the
    optimiser steps once. A piece's share of the loss is its share of the voxels' weights: for cross-entropy that is
    the gradient of the whole batch, exactly, while patches are whole. Parts of a patch see nothing beyond their ends,
    and where they overlap a voxel counts twice. Nor is it so for what depends on the batch: Dice is then the mean over
    the pieces, and batch norm sees the voxels of a piece. Of an unpadded network, which decides only the centre of a
    patch, the whole patch's weights count for its share. Once lowered, it stays so.

    MONAI's events come as in its own step, those of forward pass and loss for each piece. The trainer's
    `accumulation_steps` is not looked at: the optimiser steps once a batch.

    Args:
        bfloat16: whether the forward pass is in bfloat16, which needs no scaled gradients, and so works without the
            trainer's `amp`, which is float16 and for CUDA only.

    Raises BundleError where the least is still too much, where the optimiser's own memory does not suffice, and in a
    training on several devices: there the others wait for this one in the midst of a step.
    """

    def __init__(self, bfloat16: bool = False) -> None:
        self.bfloat16 = bfloat16
        self._right: dict[tuple[int, ...], bool] = {}
        self.samples: int | None = None
        self.size: tuple[int, ...] | None = None
        self.notes: list[str] = []

    def __call__(self, engine: SupervisedTrainer, batch: Any) -> dict[str, Any]:
        """What MONAI keeps of a step: image, label and loss; `pred` where the batch was not parted."""
        image, label = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        while True:
            try:
                engine.state.output = self._learn(engine, image, label)
                break
            except RuntimeError as problem:
                if not is_out_of_memory(problem):
                    raise
                told = str(problem).strip().partition("\n")[0]
            self._lower(engine, image, told)  # here, for the exception holds on to what fills the memory
        _optimise(engine, image.device)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        output: dict[str, Any] = engine.state.output
        return output

    def pieces(self, shape: Sequence[int]) -> list[Piece]:
        """The parts of a batch (N, C, *spatial): the whole, as long as memory sufficed."""
        samples = self.samples or shape[0]
        size = self.size or tuple(shape[2:])
        axes = [_cuts(n, wanted) for n, wanted in zip(shape[2:], size, strict=True)]
        batches = [slice(first, first + samples) for first in range(0, shape[0], samples)]
        return [(part, slice(None), *cut) for part, *cut in product(batches, *axes)]

    def state(self) -> dict[str, Any]:
        """How far it was lowered, for a training that goes on."""
        return {"samples": self.samples, "size": self.size, "notes": self.notes}

    def load(self, state: Mapping[str, Any]) -> None:
        """Begin with what another one was lowered to."""
        self.samples, self.notes = state["samples"], list(state["notes"])
        self.size = None if state["size"] is None else tuple(state["size"])

    def _learn(self, engine: SupervisedTrainer, image: Tensor, label: Tensor) -> dict[str, Any]:
        """The gradients of the whole batch; nothing else is changed but batch-norm's running statistics."""
        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        pieces = self.pieces(image.shape)
        weights = [weight_of(label[piece], engine.loss_function) for piece in pieces] if len(pieces) > 1 else [1.0]
        whole = sum(weights) or 1.0
        engine.state.output = output = {"image": image, "label": label, "loss": torch.zeros((), device=image.device)}
        for piece, weight in zip(pieces, weights, strict=True):
            if weight == 0 and any(weights):
                continue  # nothing to learn from
            with self._precision(engine, image[piece]):
                output["pred"] = engine.inferer(image[piece], engine.network)
                engine.fire_event(IterationEvents.FORWARD_COMPLETED)
                loss = engine.loss_function(output["pred"], label[piece]).mean() * (weight / whole)
            output["loss"] += loss.detach()
            engine.fire_event(IterationEvents.LOSS_COMPLETED)
            (engine.scaler.scale(loss) if engine.amp else loss).backward()
        if len(pieces) > 1:
            output.pop("pred")
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        return output

    def _precision(self, engine: SupervisedTrainer, image: Tensor) -> torch.autocast:
        """For a batch of this size, float32 where bfloat16 would be wrong."""
        if self.bfloat16:
            size = tuple(image.shape)
            if size not in self._right:
                self._right[size] = bfloat16_is_right(bare(engine.network), size)
                note = f"patches of {_shown(size[2:])} voxels are learned from in float32: a convolution sees only 2 "
                note += "voxels along the first axis, which bfloat16 gets wrong on CPUs"
                if not self._right[size] and note not in self.notes:  # a resumed training has it already
                    self.notes.append(note)
                    tqdm.write(note)
            return torch.autocast(image.device.type, torch.bfloat16, enabled=self._right[size])
        return torch.autocast("cuda", enabled=engine.amp, **engine.amp_kwargs)

    def _lower(self, engine: SupervisedTrainer, image: Tensor, told: str) -> None:
        engine.optimizer.zero_grad(set_to_none=True)
        engine.state.output = None
        if image.device.type == "cuda":
            torch.cuda.empty_cache()
        batch, patch = image.shape[0], tuple(image.shape[2:])
        if bare(engine.network) is not engine.network:
            raise BundleError(
                f"out of memory on {image.device}, with a batch of {batch} patches of {_shown(patch)}; several devices "
                "cannot lower it in the midst of a step: set a smaller `batch` or `patch` in train.json"
            )
        samples, size = self.samples or batch, self.size or patch
        if samples > 1:
            self.samples = -(-samples // 2)
        else:
            self.size = halved(size, engine.network)
            if self.size is None:
                raise BundleError(
                    f"out of memory on {image.device}, even with a single patch of {_shown(size)} ({told}); make "
                    "`network_def` narrower in train.json and inference.json, free memory, or train on another device"
                )
            self.samples = 1
        note = f"out of memory in step {engine.state.iteration}: from here on {self.samples} patch(es) of "
        note += f"{_shown(self.size or patch)} at a time, gradients of all {batch} patches of {_shown(patch)} added up"
        self.notes.append(note)
        tqdm.write(note)


def _optimise(engine: SupervisedTrainer, device: torch.device) -> None:
    try:
        if engine.amp and engine.scaler is not None:
            engine.scaler.step(engine.optimizer)
            engine.scaler.update()
        else:
            engine.optimizer.step()
    except RuntimeError as problem:
        if not is_out_of_memory(problem):
            raise
        raise BundleError(
            f"out of memory on {device} while the optimiser steps, which knows no parts of a batch; make `network_def` "
            "narrower in train.json and inference.json, free memory, or train on another device"
        ) from problem


def weight_of(target: Tensor, loss: Any = None) -> float:
    """The sum of what the voxels of a target (N, 1 or 2, *spatial) weigh in `SegmentationLoss`; unknown ones nothing.

    Its first channel holds class indices, -1 where unknown, its second, if it has one, weights.
    """
    classes = target[:, 0].long()
    weights = (classes >= 0).float()
    if target.shape[1] > 1:
        weights = weights * target[:, 1]
    of_classes = getattr(loss, "class_weights", None)
    if of_classes is not None:
        weights = weights * weights.new_tensor(of_classes)[classes.clamp(min=0)]
    return float(weights.sum())


def is_out_of_memory(problem: RuntimeError) -> bool:
    """Whether torch could not allocate, on whatever device."""
    told = str(problem)
    return isinstance(problem, torch.OutOfMemoryError) or any(words in told for words in OUT_OF_MEMORY)


def halved(size: Sequence[int], network: nn.Module) -> tuple[int, ...] | None:
    """About half of a patch along its longest axis, less by a multiple of the stride; None where nothing is left.

    None also for an unpadded network, whose parts would have to overlap by what each of them loses.
    """
    stride = int(getattr(network, "stride", ANY_STRIDE))
    axis = max(range(len(size)), key=lambda one: size[one])
    half = size[axis] - stride * max(1, size[axis] // (2 * stride))
    if half < stride or getattr(network, "padding", "same") == "valid":
        return None
    return tuple(half if one == axis else n for one, n in enumerate(size))


def _cuts(n: int, size: int) -> list[slice]:
    """The fewest parts of one size that cover an axis, evenly placed; they overlap where it is no multiple."""
    count = math.ceil(n / size)
    starts = [round(number * (n - size) / max(1, count - 1)) for number in range(count)]
    return [slice(start, start + size) for start in starts]


def _shown(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
