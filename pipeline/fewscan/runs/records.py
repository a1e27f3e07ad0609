"""Of each training on a fold a record: what `compare` and `validate` go on from and report."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewscan.bundle import read_json
from fewscan.files import replace_when_complete, sha256

NEVER = 1_000_000
"""Epochs from one look at held-out cases to the next during training: they are scored at its end alone."""

DATA = "data_sha256"
"""By this name a run keeps {case: sha256 of its image and label}: scores of others are not repeated."""


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    with replace_when_complete(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def kept_record(file: Path, bundle: Path) -> dict[str, Any] | None:
    """The record of a fold that is done, if its bundle is still the one that was scored."""
    weights = bundle / "models" / "model.pt"
    if not file.exists() or not weights.exists():
        return None
    record: dict[str, Any] = read_json(file)
    return record if record["model_sha256"] == sha256(weights) else None


def other_content(before: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """In words, of which cases image or label changed, by {case: sha256}; `before` None where no hash was kept."""
    if before is None:
        return "no hash of its images and labels, for it is of an older version"
    if before.keys() != now.keys():
        return "other cases"
    names = sorted(name for name in {*before, *now} if before[name] != now[name])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"another image or label of {', '.join(names[:3])}{more}"


def is_trained(models: Path) -> bool:
    """Whether a training wrote its weights into this folder, and was not killed before it wrote the rest."""
    return (models / "model.pt").exists() and not (models / "training_state.pt").exists()


def training_record(bundle: Path) -> dict[str, Any]:
    """Of a trained bundle: steps, minutes, device, threads, and losses as (step, loss)."""
    trained = read_json(bundle / "models" / "training.json")
    with (bundle / "models" / "history.csv").open(encoding="utf-8", newline="") as file:
        losses = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
    return {**{key: trained[key] for key in ("steps", "minutes", "device", "threads")}, "losses": losses}


def duration(seconds: float) -> str:
    """For a person."""
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def usual_device() -> str:
    """A GPU where there is one."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"
