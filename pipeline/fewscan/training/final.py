"""The weights that a training writes, at its end and for every look at the held-out cases."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn

from fewscan.errors import BundleError
from fewscan.files import replace_when_complete
from fewscan.training.average import WeightAverage, recompute_statistics
from fewscan.training.patches import StepSampler
from fewscan.training.step import TrainingStep

STATISTICS_PATCHES = (8, 64)
"""Fewest and most training patches that batch-norm statistics are recomputed on: an eighth of those trained on."""


class FinalWeights:
    """Lets a network wear what would be written now, the average with recomputed statistics, and its own again.

    Args:
        network: that is trained.
        sampler: of the training's loader, from which the patches for the statistics come.
        step: knows into which pieces a lack of memory parts a batch.
        average: whether weights are averaged; False writes those of the last step.
    """

    def __init__(self, network: nn.Module, sampler: StepSampler, step: TrainingStep | None, average: bool) -> None:
        self.network, self.sampler, self.step = network, sampler, step
        self.average = WeightAverage(network) if average else None
        self._own: dict[str, Tensor] | None = None

    @property
    def worn(self) -> bool:
        """Whether the network wears them."""
        return self._own is not None

    def wear(self, engine: Engine) -> None:
        """Between two epochs of the trainer, or after its last step; nothing where the network wears them already."""
        if self.worn:
            return
        self._own = {name: value.clone() for name, value in self.network.state_dict().items()}
        if self.average is not None:
            self.average.copy_to(self.network)
        recompute_statistics(self.network, self._training_images(engine), self.sampler.ranks, engine.amp)

    def take_off(self) -> None:
        """The network is as it was."""
        if self._own is not None:
            self.network.load_state_dict(self._own)
        self._own = None

    def write(self, path: Path) -> None:
        """What the network holds, on the CPU; the file's bytes depend on nothing else.

        Raises BundleError where that is not finite.
        """
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
            raise BundleError(
                f"{path}: is not written, for batch-norm statistics of it are not finite: half precision does not hold "
                "what the network answers; set `half_precision` to false in train.json"
            )
        with replace_when_complete(path) as temporary, temporary.open("wb") as file:
            torch.save(weights, file)  # to a path, the temporary name would get into the file and its hash

    def _training_images(self, engine: Any) -> Iterator[Tensor]:
        """This rank's share of the first training patches."""
        fewest, most = STATISTICS_PATCHES
        seen = engine.state.iteration * self.sampler.items // engine.state.epoch_length
        self.sampler.only = range(max(fewest, self.sampler.ranks, min(most, seen // 8)))
        try:
            for batch in engine.data_loader:
                image = engine.prepare_batch(batch, engine.state.device, engine.non_blocking, **engine.to_kwargs)[0]
                for piece in [()] if self.step is None else self.step.pieces(image.shape):
                    yield image[piece]
        finally:
            self.sampler.only = None
