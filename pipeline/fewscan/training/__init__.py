"""From annotated scans to a trained bundle. What a bundle names is here; MONAI is loaded with it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewscan.training.engine import TrainingRun
    from fewscan.training.intensity import RandomIntensityd
    from fewscan.training.loss import SegmentationLoss, prepare_batch
    from fewscan.training.patches import ListLabelVoxelsd, PatchDataset, RandomPatchd, StepSampler
    from fewscan.training.precision import has_half_precision
    from fewscan.training.rand_elastic import RandElasticAffine, RandElasticAffined
    from fewscan.training.ranks import leave_ranks
    from fewscan.training.seeds import set_seed
    from fewscan.training.step import TrainingStep
    from fewscan.training.weights import AddWeightMapd

_HOME = {
    "AddWeightMapd": "weights",
    "TrainingRun": "engine",
    "TrainingStep": "step",
    "has_half_precision": "precision",
    "leave_ranks": "ranks",
    "set_seed": "seeds",
    "SegmentationLoss": "loss",
    "prepare_batch": "loss",
    "ListLabelVoxelsd": "patches",
    "PatchDataset": "patches",
    "RandomIntensityd": "intensity",
    "RandElasticAffine": "rand_elastic",
    "RandElasticAffined": "rand_elastic",
    "RandomPatchd": "patches",
    "StepSampler": "patches",
}

__all__ = [
    "AddWeightMapd",
    "ListLabelVoxelsd",
    "PatchDataset",
    "RandElasticAffine",
    "RandElasticAffined",
    "RandomIntensityd",
    "RandomPatchd",
    "SegmentationLoss",
    "StepSampler",
    "TrainingRun",
    "TrainingStep",
    "has_half_precision",
    "leave_ranks",
    "prepare_batch",
    "set_seed",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"fewscan.training.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
