"""`fewscan train`: MONAI's own `run` on the bundle's train.json, with errors in one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewscan.bundle import refuse_markup
from fewscan.errors import BundleError, of_the_system, ours


def train(
    bundle: Path,
    minutes: float | None = None,
    device: str | None = None,
    data: Path | None = None,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Train a bundle, or go on with an interrupted training.

    The same as `python -m monai.bundle run --config_file BUNDLE/configs/train.json --bundle_root BUNDLE`.

    Args:
        bundle: its folder.
        minutes: for the whole training; None trains the bundle's `epochs`.
        device: for example "cpu" or "cuda:1"; None takes a GPU where there is one.
        data: the folder of the cases; None takes the bundle's `dataset_dir`.
        overwrite: train anew although there is a trained model, or the state of a training by other settings (its
            learning rate, for example). From a state of the same settings training goes on.
        settings: of train.json, for this training otherwise than in the file.
    """
    import torch
    from monai.bundle import run

    for chatter in ("monai.bundle.workflows", "monai.bundle.scripts", "monai.data", "ignite"):
        logging.getLogger(chatter).setLevel(logging.CRITICAL)  # what goes wrong is raised; the rest is no news
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
    refuse_markup([str(bundle), str(data or "")])
    config = bundle / "configs" / "train.json"
    if not config.exists():
        raise BundleError(f"{config}: is missing; {bundle} is no bundle (make one with `fewscan plan`)")
    if minutes is not None and minutes <= 0:
        raise BundleError(f"--minutes has to be more than 0, not {minutes:g}")
    override: dict[str, Any] = {**(settings or {}), "bundle_root": str(bundle)}
    if minutes is not None:
        override["minutes"] = minutes
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as problem:
            raise BundleError(f"--device {device} cannot be used: {str(problem).splitlines()[0]}") from None
        override["device"] = f"$torch.device({device!r})"
    if data is not None:
        override["dataset_dir"] = str(data.resolve())
    if overwrite:
        override["overwrite"] = True
    try:
        run(config_file=str(config), logging_file=False, **override)
    except RuntimeError as problem:  # MONAI wraps what a config's expressions and transforms raise
        known = ours(problem) or of_the_system(problem)
        if known is None:
            raise
        raise known from None
