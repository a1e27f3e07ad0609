"""How good a bundle is on scans that it was not trained on: kept in the bundle, told before everything else."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewscan.bundle import read_json
from fewscan.errors import BundleError
from fewscan.files import replace_when_complete
from fewscan.scans import Scan
from fewscan.training.fingerprint import differences, read_fingerprint

FILE = "models/validation.json"
"""Its place in a bundle."""
BUDGET = ("epochs", "steps_per_epoch", "minutes")
_HERE = (
    "imports", "bundle_root", "dataset_dir", "datalist", "ckpt_dir", "output_dir", "device", "workers", "overwrite",
    "val_interval", "validate", "initialize", "run",
)  # fmt: skip
"""Of train.json, what says where and when, not how."""
HASH, WARNINGS = "settings_sha256", "warnings"
NEVER = "never validated: no score on scans that it was not trained on is known (run `fewscan validate`)"


def settings_hash(bundle: Path) -> str:
    """Of the settings in train.json that decide how good a training gets, but for its length."""
    config = read_json(bundle / "configs" / "train.json")
    kept = {key: value for key, value in config.items() if key not in (*_HERE, *BUDGET)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def write_estimate(bundle: Path, estimate: Mapping[str, Any]) -> None:
    """Into the bundle, bound to its settings as they are now."""
    content = {**estimate, HASH: settings_hash(bundle)}
    with replace_when_complete(bundle / FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_estimate(bundle: Path) -> dict[str, Any] | None:
    """What `write_estimate` left; None where nobody has validated. Raises BundleError where something is missing."""
    if not (bundle / FILE).exists():
        return None
    estimate: dict[str, Any] = read_json(bundle / FILE)
    missing = [key for key in ("dice", "cases", "scheme", "blocks", "models", WARNINGS, HASH) if key not in estimate]
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
    counted = (
        f"{estimate['scheme']} of one scan" if estimate["blocks"] else f"{n} scan{'s' * (n > 1)}, {estimate['scheme']}"
    )
    told = [f"Dice {dice['mean']:.2f}{spread}", f"worst {dice['worst']:.2f}", counted]
    first = ", ".join(told)
    if ensemble:
        first += " (of single models; their ensemble was not scored)"
    if not is_of_these_settings(bundle, estimate):
        first = f"validated with other settings than it has now: {first}"
    return "; ".join([first, *estimate[WARNINGS], *_differences(bundle, scans)])


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
        ways.update(differences(fingerprint, grid.spacing_mm, grid.shape))
    told = [
        (f"yours: {way}" if count == len(scans) else f"{count} of your {len(scans)} scans: {way}")
        for way, count in ways.most_common(2)
    ]
    return [*told, f"and {len(ways) - 2} further differences"] if len(ways) > 2 else told
