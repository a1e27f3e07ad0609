"""From annotated scans to a trained bundle. What a bundle names is here; MONAI is loaded with it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewscan.training.engine import TrainingRun
    from fewscan.training.loss import SegmentationLoss
    from fewscan.training.patches import ListLabelVoxelsd, PatchDataset, RandomIntensityd, RandomPatchd, StepSampler
    from fewscan.training.ranks import leave_ranks

_HOME = {
    "TrainingRun": "engine",
    "leave_ranks": "ranks",
    "SegmentationLoss": "loss",
    "ListLabelVoxelsd": "patches",
    "PatchDataset": "patches",
    "RandomIntensityd": "patches",
    "RandomPatchd": "patches",
    "StepSampler": "patches",
}

__all__ = [
    "ListLabelVoxelsd",
    "PatchDataset",
    "RandomIntensityd",
    "RandomPatchd",
    "SegmentationLoss",
    "StepSampler",
    "TrainingRun",
    "leave_ranks",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"fewscan.training.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
