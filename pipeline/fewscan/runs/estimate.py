"""How good a bundle is on scans that it was not trained on: kept in the bundle, told before everything else."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewscan.bundle import TRAINED_CASES, cases_hash, read_json
from fewscan.errors import BundleError
from fewscan.files import replace_when_complete
from fewscan.runs.correct import HISTORY
from fewscan.scans import Scan
from fewscan.training.fingerprint import differences, read_fingerprint, says_spacing
from fewscan.training.stages import length_trained

FILE = "models/validation.json"
"""Its place in a bundle."""
BUDGET = ("epochs", "steps_per_epoch", "minutes")
_HERE = (
    "imports", "bundle_root", "dataset_dir", "datalist", "ckpt_dir", "output_dir", "device", "workers", "overwrite",
    "val_interval", "validate", "initialize", "run",
)  # fmt: skip
"""Of train.json, what says where and when, not how."""
HASH, WARNINGS, CASES = "settings_sha256", "warnings", "cases_sha256"
NEVER = "never validated: no score on scans that it was not trained on is known (run `fewscan validate`)"


def settings_hash(bundle: Path) -> str:
    """Of the settings in train.json that decide how good a training gets, but for its length."""
    config = read_json(bundle / "configs" / "train.json")
    kept = {key: value for key, value in config.items() if key not in (*_HERE, *BUDGET)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def write_estimate(bundle: Path, estimate: Mapping[str, Any]) -> None:
    """Into the bundle, bound to its settings and its list of cases as they are now."""
    cases = cases_hash(read_json(bundle / "configs" / "datalist.json"))
    content = {**estimate, HASH: settings_hash(bundle), CASES: cases}
    with replace_when_complete(bundle / FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_estimate(bundle: Path) -> dict[str, Any] | None:
    """What `write_estimate` left; None where nobody has validated. Raises BundleError where something is missing."""
    if not (bundle / FILE).exists():
        return None
    estimate: dict[str, Any] = read_json(bundle / FILE)
    needed = ("dice", "cases", "scheme", "blocks", "models", "groups", "budget", WARNINGS, HASH, CASES)
    missing = [key for key in (*needed, *(["labels"] if estimate.get("blocks") else [])) if key not in estimate]
    if missing:
        raise BundleError(f"{bundle / FILE}: has no {', '.join(missing)}; run `fewscan validate {bundle}` again")
    return estimate


def is_of_these_settings(bundle: Path, estimate: Mapping[str, Any]) -> bool:
    """Whether the bundle's settings are those that were validated; true where it was passed on without train.json."""
    known = (bundle / "configs" / "train.json").exists()
    return not known or bool(estimate[HASH] == settings_hash(bundle))


def fold_models(bundle: Path) -> tuple[Path, ...]:
    """The weights of the models that were trained on the folds, for an ensemble.

    Raises BundleError where there are none, one is missing, or they were trained with other settings.
    """
    estimate = read_estimate(bundle)
    if estimate is None or not is_of_these_settings(bundle, estimate):
        why = "was never validated" if estimate is None else "has other settings than those that were validated"
        raise BundleError(
            f"{bundle}: {why}, so there are no models of folds for an ensemble; run `fewscan validate {bundle}`"
        )
    files = tuple(bundle / "validation" / f"fold-{n}" / "models" / "model.pt" for n in estimate["models"])
    missing = [file for file in files if not file.exists()]
    if missing:
        raise BundleError(f"{missing[0]}: is missing, so the ensemble is not whole; run `fewscan validate {bundle}`")
    return files


def in_words(bundle: Path, scans: Sequence[Scan] = (), ensemble: bool = False) -> str:
    """One line for a person: how good the bundle was on how many scans, and how these scans differ from them."""
    estimate = read_estimate(bundle)
    if estimate is None:
        return "; ".join([_of_training(bundle / "models" / "training.json"), *_differences(bundle, scans)])
    dice, n = estimate["dice"], estimate["cases"]
    spread = "" if dice["sd"] is None else f" (sd {dice['sd']:.2f})"
    scans_of = "" if estimate["groups"] == n else f" of {estimate['groups']} groups"
    if estimate["blocks"]:
        low = min(estimate["labels"], key=lambda one: one["dice"])
        worst, counted = f"worst label {low['label']} {low['dice']:.2f}", f"{estimate['scheme']} of one scan together"
    else:
        worst, counted = f"worst {dice['worst']:.2f}", f"{n} scan{'s' * (n > 1)}{scans_of}, {estimate['scheme']}"
    first = ", ".join([f"Dice {dice['mean']:.2f}{spread}", worst, counted])
    if ensemble:
        first += " (of single models; their ensemble was not scored)"
    if not is_of_these_settings(bundle, estimate):
        first = f"validated with other settings than it has now: {first}"
    caveats = [*([] if ensemble else _of_another_model(bundle, estimate)), *_post_processing(bundle)]
    return "; ".join([first, *estimate[WARNINGS], *caveats, *_differences(bundle, scans)])


def length_in_words(minutes: float | None, steps: int) -> str:
    """Of a training, which is as long as its minutes where there are any."""
    return f"{steps} steps" if minutes is None else f"{minutes:g} minute(s)"


def _of_another_model(bundle: Path, estimate: Mapping[str, Any]) -> list[str]:
    """How the training of the bundle's model was not that of the folds."""
    record, config = bundle / "models" / "training.json", bundle / "configs" / "train.json"
    trained = read_json(record) if record.exists() else {}
    told = []
    if trained.get("settings", {}).get(TRAINED_CASES) not in (None, estimate[CASES]):
        told.append("the model was trained on other cases than the estimate is of")
    if (bundle / HISTORY).exists():  # rounds of corrections go on from a model: they have no length to compare
        return told
    length = length_trained(bundle / "models")
    if length is not None:
        if length.in_stages:
            told.append("each fold was trained in one go, the bundle in stages")
        if length.steps is None:
            return told
        own = length_in_words(length.minutes, length.steps)
    elif config.exists():
        planned = read_json(config)
        own = length_in_words(planned.get("minutes"), planned["epochs"] * planned["steps_per_epoch"])
    else:
        return told
    if own != estimate["budget"]:
        told.append(f"each fold was trained for {estimate['budget']}, the bundle for {own}")
    return told


def _post_processing(bundle: Path) -> list[str]:
    """Whether masks are cleaned in a way that was not scored."""
    config = read_json(bundle / "configs" / "inference.json")
    is_on = any(config.get(key) for key in ("keep_largest", "minimum_size_mm3"))
    return ["scored without the post-processing that inference.json has on"] if is_on else []


def _of_training(record: Path) -> str:
    """What a training alone knows: the score of its held-out cases, if there were any."""
    scores = read_json(record).get("validation") if record.exists() else None
    if not isinstance(scores, dict) or not scores:
        return NEVER
    shown = ", ".join(f"{key} {value:.3f}" for key, value in scores.items())
    return f"never validated by `fewscan validate`; on held-out cases of the training data: {shown}"


def _differences(bundle: Path, scans: Sequence[Scan]) -> list[str]:
    """How the scans differ from the labelled cases: the two most frequent ways."""
    fingerprint = read_fingerprint(bundle)
    if fingerprint is None or not scans:
        return []
    ways: Counter[str] = Counter()
    for scan in scans:
        grid = scan.grid.reordered(*scan.grid.axes_to_lps())
        spacing_mm = grid.spacing_mm if says_spacing(scan.format, grid.spacing_mm) else None
        ways.update(differences(fingerprint, spacing_mm, grid.shape))
    told = [
        (f"yours: {way}" if count == len(scans) else f"{count} of your {len(scans)} scans: {way}")
        for way, count in ways.most_common(2)
    ]
    more = len(ways) - len(told)
    return [*told, f"and {more} further {'difference' if more == 1 else 'differences'}"] if more else told
