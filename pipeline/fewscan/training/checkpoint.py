"""The state that a training goes on from: read with refusals that say the way out, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewscan.bundle import settings_difference
from fewscan.errors import BundleError
from fewscan.files import replace_when_complete


def refuse_trained(model: Path, state: Path) -> None:
    """Raise BundleError where a training is complete already."""
    if model.exists() and not state.exists():
        raise BundleError(
            f"{model}: this bundle is trained already; give `--overwrite` (plain MONAI: `--overwrite True`) "
            "to train it anew, or plan a new bundle"
        )


def read_state(file: Path, settings: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The state of an interrupted training; None where there is none, or one by other settings is to be replaced.

    Args:
        file: of the state.
        settings: what decides the outcome, as the state has it under `settings`.
        overwrite: whether the state of other settings is replaced; one of the same settings is gone on from.

    Raises:
        BundleError: it is broken or of other settings.
    """
    if not file.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        difference = settings_difference(state["settings"], settings)
    except Exception as problem:
        raise BundleError(f"{file}: is no complete training state; remove it to train from the start") from problem
    if difference is None:
        return state
    if overwrite:
        return None  # that training is replaced, by the next state
    raise BundleError(
        f"{file}: was written with {difference}; restore the former settings to resume, or give `--overwrite` "
        "(plain MONAI: `--overwrite True`) to train from the start"
    )


def write_state(file: Path, state: Mapping[str, Any]) -> None:
    """For `read_state`."""
    with replace_when_complete(file) as temporary, temporary.open("wb") as opened:
        torch.save(dict(state), opened)  # by a path, torch says of a full disk that a writer failed, not why
