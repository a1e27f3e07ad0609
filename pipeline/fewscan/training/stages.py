"""FCN-16s and -8s in stages (Long et al. 2015, Sec. 4.2): 32s first, then each finer one from the coarser's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewscan.bundle import read_json, settings_difference
from fewscan.errors import BundleError, FewscanError
from fewscan.files import sha256

if TYPE_CHECKING:
    from torch import nn

VARIANTS = ("32s", "16s", "8s")
ORIGIN = "start_from (sha256)"
"""By this name `training.json` keeps the hash of the weights that a training started from."""


ANEW = "stages_anew"
"""An empty file in `models` from the begin of `--stages --overwrite` to its end: given again, it goes on."""


@dataclass(frozen=True)
class Stage:
    """One network of a staged training; it is trained once its model came from the stage before as that is now.

    Args:
        variant: "32s", "16s" or "8s".
        folder: of its `model.pt`; the last stage's is the bundle's `models`.
        start_from: `model.pt` of the stage before; None for the first.
        epochs: its share.
    """

    variant: str
    folder: Path
    start_from: Path | None
    epochs: int

    def is_trained(self) -> bool:
        """Whether nothing is left to do; the stage before has to be trained."""
        if not (self.folder / "model.pt").exists() or (self.folder / "training_state.pt").exists():
            return False
        origin = None if self.start_from is None else sha256(self.start_from)
        return bool(_settings_of(self.folder).get(ORIGIN) == origin)

    def settings(self) -> dict[str, Any]:
        """What this stage has otherwise than train.json."""
        start = {} if self.start_from is None else {"start_from": str(self.start_from)}
        return {"network_def::variant": self.variant, "ckpt_dir": str(self.folder), "epochs": self.epochs, **start}


def train_stages(
    bundle: Path,
    minutes: float | None = None,
    device: str | None = None,
    data: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Train the bundle of an FCN-16s or -8s in stages, or go on in the stage where it was interrupted.

    `models/32s` (and `models/16s`) get the coarser networks; `models/model.pt` is the last stage's, as without stages.
    Plain `python -m monai.bundle run` trains a stage with `--network_def#variant`, `--ckpt_dir` and `--start_from`.

    Args:
        bundle, device, data: as for `fewscan.training.run.train`.
        minutes: for all stages together, shared equally; None shares train.json's `minutes`, or else its `epochs`.
        overwrite: train all stages anew although the bundle is trained or begun. Interrupted in that, give it again to
            go on.
    """
    from fewscan.training.run import train

    config = bundle / "configs" / "train.json"
    if minutes is None:
        minutes = read_json(config).get("minutes")
    stages = stages_of(bundle, minutes)
    model, state = stages[-1].folder / "model.pt", stages[-1].folder / "training_state.pt"
    if model.exists() and not state.exists() and not overwrite:
        raise BundleError(
            f"{model}: this bundle is trained already; give `--overwrite` to train its stages anew, or plan a new one"
        )
    begun = bundle / "models" / ANEW
    if overwrite and not begun.exists():
        begun.parent.mkdir(parents=True, exist_ok=True)
        begun.touch()
        for stage in stages:
            (stage.folder / "training_state.pt").unlink(missing_ok=True)
        for stage in stages[:-1]:  # the last model stays until the new one is complete
            (stage.folder / "model.pt").unlink(missing_ok=True)
    for number, stage in enumerate(stages, 1):
        title = f"stage {number} of {len(stages)}, FCN-{stage.variant}"
        if stage.is_trained():
            print(f"{title}: trained before, {stage.folder / 'model.pt'}")
            continue
        print(title)
        share = None if minutes is None else minutes / len(stages)
        train(bundle, share, device, data, overwrite, stage.settings())
    begun.unlink(missing_ok=True)


@dataclass(frozen=True)
class Length:
    """How long a model was trained, its stages together."""

    minutes: float | None
    """That were given; None where steps decided, or the time of a stage is not known."""
    steps: int | None
    """None where the steps of a stage are not known."""
    in_stages: bool


def length_trained(models: Path) -> Length | None:
    """Of the model in a bundle's folder `models`, by the records beside it and its stages; None without a record."""
    if not (models / "training.json").exists():
        return None
    records = [read_json(models / "training.json")]
    folders = [folder for name in VARIANTS if (folder := models / name).is_dir()]
    while (origin := records[-1].get("settings", {}).get(ORIGIN)) is not None:
        files = ("model.pt", "training.json")
        known = [folder for folder in folders if all((folder / name).exists() for name in files)]
        before = next((folder for folder in known if sha256(folder / "model.pt") == origin), None)
        if before is None:  # the bundle was passed on without it, or it was trained elsewhere
            return Length(None, None, True)
        folders.remove(before)
        records.append(read_json(before / "training.json"))
    minutes = [record.get("minutes_given") for record in records]
    total = None if None in minutes else round(sum(minutes), 6)  # equal shares add up to what was shared
    return Length(total, sum(record["steps"] for record in records), len(records) > 1)


def refuse_begun_stages(bundle: Path) -> None:
    """Raise BundleError where a training in stages is not complete: a plain one would leave its stages unused."""
    models = bundle / "models"
    if (models / VARIANTS[0]).exists() and not (models / "model.pt").exists():
        raise BundleError(
            f"{models / VARIANTS[0]}: this training was begun with --stages; give it again, or remove that folder to "
            "train without stages"
        )


def stages_of(bundle: Path, minutes: float | None = None) -> list[Stage]:
    """The stages of a bundle, coarse to fine; without `minutes`, their epochs add up to the bundle's.

    Raises BundleError where its network has no stages, or fewer epochs than stages.
    """
    file = bundle / "configs" / "train.json"
    config = read_json(file)
    network_def = config["network_def"]
    target, variant = str(network_def.get("_target_")), network_def.get("variant", "8s")
    if not (target.startswith("fewscan.networks.") and target.endswith(".FCN")):
        raise BundleError(f"{file}: {target} has no stages, only FCN-16s and -8s have; train it without --stages")
    if variant not in VARIANTS[1:]:
        raise BundleError(
            f"{file}: network_def has variant {variant}, but stages end with 16s or 8s (32s is the first by itself); "
            "set another variant in train.json and inference.json, or train it without --stages"
        )
    if "start_from" not in config:
        raise BundleError(f"{file}: has no start_from, which older plans lack; plan the bundle anew to train in stages")
    variants, epochs = VARIANTS[: VARIANTS.index(variant) + 1], config["epochs"]
    count = len(variants)
    if minutes is not None:
        epochs = count  # the time alone ends each stage
    elif not isinstance(epochs, int) or epochs < count:
        raise BundleError(
            f"{file}: {count} stages cannot share epochs {epochs}; set {count} or more, or give --minutes"
        )
    folders = [bundle / "models" / name for name in variants[:-1]] + [bundle / "models"]
    starts = [None, *(folder / "model.pt" for folder in folders[:-1])]
    shares = [epochs * (k + 1) // count - epochs * k // count for k in range(count)]
    return [Stage(*stage) for stage in zip(variants, folders, starts, shares, strict=True)]


def load_coarser(network: nn.Module, file: Path, settings: Mapping[str, Any]) -> None:
    """Let an FCN go on from the weights of a coarser one.

    Raises BundleError where it cannot, or where the `training.json` beside the weights says that they were trained by
    other `settings`: on cases, for example, that are held out now.
    """
    import torch

    from fewscan.networks import FCN

    if not isinstance(network, FCN):
        raise BundleError(
            f"start_from {file}: {type(network).__name__} has no stages, only FCN-16s and -8s go on from a coarser "
            "FCN; set start_from to null"
        )
    difference = settings_difference(_but_the_stage(_settings_of(file.parent) or settings), _but_the_stage(settings))
    if difference is not None:
        raise BundleError(
            f"{file}: was trained with {difference}; restore the former settings, or remove the file and train that "
            "stage anew"
        )
    try:
        network.load_stage(torch.load(file, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise BundleError(f"start_from {file}: does not exist; train that stage, or set start_from to null") from None
    except FewscanError as problem:
        raise BundleError(f"start_from {file}: {problem}") from problem
    except OSError:
        raise
    except Exception as problem:
        raise BundleError(f"start_from {file}: holds no weights of an FCN; train that stage anew") from problem


def _settings_of(folder: Path) -> dict[str, Any]:
    """By which settings the model in a folder was trained; empty where no record says so."""
    file = folder / "training.json"
    settings: dict[str, Any] = read_json(file).get("settings", {}) if file.exists() else {}
    return settings


def _but_the_stage(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that may differ from stage to stage: the paper's finer ones learn at a lower rate."""
    network_def = {key: value for key, value in settings.get("network_def", {}).items() if key != "variant"}
    own = (ORIGIN, "learning_rate")
    return {key: value for key, value in settings.items() if key not in own} | {"network_def": network_def}
