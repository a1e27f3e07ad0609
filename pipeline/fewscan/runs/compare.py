"""`fewscan compare`: several networks on the same folds, with the same augmentation and budget, on one page."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fewscan import __version__
from fewscan.bundle import read_json
from fewscan.errors import BundleError
from fewscan.runs.compare_page import write_csv, write_page
from fewscan.runs.compare_table import initialisation_of, mode_of, row_of
from fewscan.runs.folds import Fold, Grouping, find_groups, make_folds
from fewscan.runs.measure import gmac, network_of, parameters, patch_memory, seconds_per_step
from fewscan.runs.predictor import Predictor, read_settings
from fewscan.runs.records import (
    DATA,
    NEVER,
    duration,
    is_trained,
    kept_record,
    other_content,
    training_record,
    usual_device,
    write_json,
)
from fewscan.runs.score import label_reading, refuse_trained_on, score_cases
from fewscan.scans.walk import MARKER
from fewscan.training.fingerprint import CaseFingerprint
from fewscan.training.material import Material, read_material
from fewscan.training.plan import write_plan
from fewscan.training.run import train
from fewscan.training.settings import LEARNING_RATE, NETWORK_DEF

NETWORKS = tuple(NETWORK_DEF)
MINUTES, QUICK_MINUTES = 10.0, 1.0
STEPS_AN_EPOCH = 50


@dataclass(frozen=True)
class Budget:
    """What each network may spend on each fold: minutes of training, or steps."""

    minutes: float | None
    steps: int | None

    def settings(self) -> dict[str, Any]:
        """As a bundle's train.json has it; steps are rounded up to epochs of equal length."""
        if self.steps is None:
            return {"minutes": self.minutes, "val_interval": NEVER}
        epochs = math.ceil(self.steps / STEPS_AN_EPOCH)
        return {"epochs": epochs, "steps_per_epoch": math.ceil(self.steps / epochs), "val_interval": NEVER}

    def __str__(self) -> str:
        return f"{self.minutes:g} minute(s)" if self.steps is None else f"{self.steps} steps"


def compare(
    data: Path,
    output: Path,
    *,
    networks: Sequence[str] = NETWORKS,
    minutes: float | None = None,
    steps: int | None = None,
    folds: int | None = None,
    test: Sequence[str] = (),
    quick: bool = False,
    device: str | None = None,
    images: str | None = None,
    labels: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    dims: int | None = None,
    merge_masks: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Train and score each network on each fold; the same call goes on where it was interrupted.

    `output` gets `index.html`, `compare.csv` and `compare.json`, refreshed whenever a network is done with a fold;
    `bundles/NETWORK/fold-N`, usable bundles; `scores/NETWORK-fold-N.json`, with pictures of the fold's worst case.

    Args:
        data: a folder or a MONAI datalist.
        output: a new or empty folder, or that of the same comparison.
        networks: the first is the one that the others are tested against.
        minutes: of training for each network and fold; 10 where no steps are given either.
        steps: of training instead of minutes.
        folds, test: see `fewscan.runs.folds.make_folds`.
        quick: the first fold alone, and 1 minute unless `minutes` or `steps` are given.
        device: for example "cpu" or "cuda:0"; None takes a GPU where there is one.
        images, labels, include, exclude, dims, merge_masks, seed: see `fewscan.training.plan.plan`.

    Returns:
        What `compare.json` holds.

    Raises:
        PairingError: the cases cannot be parted.
        BundleError: `output` is that of another comparison, or the request contradicts itself.
    """
    networks = tuple(dict.fromkeys(networks))
    _check(networks, minutes, steps, folds, test)
    budget = Budget(None if steps else minutes or (QUICK_MINUTES if quick else MINUTES), steps)
    material = read_material(data, images, labels, include, exclude, merge_masks=merge_masks)
    grouping = groups_of(material)
    found = (grouping.of_case, grouping.how)
    parts, why = make_folds(material.cases.cases, material.root, folds, test, seed, found, grouping.stack)
    listed = [[[case.name for case in part] for part in fold.parts] for fold in parts[: 1 if quick else None]]
    spec: dict[str, Any] = {DATA: {case.name: _content(material.looks[case.name]) for case in material.cases.cases}}
    spec |= {**asdict(budget), "device": device or usual_device(), "dims": dims, "merge_masks": merge_masks}
    spec |= {"learning_rates": {network: list(rates.values()) for network, rates in LEARNING_RATE.items()}}
    spec |= {"seed": seed, "folds": [{"training": training, "test": tested} for training, tested in listed]}
    _open(output, spec)

    work = [(network, number) for number in range(1, len(listed) + 1) for network in networks]
    for network, number in work:
        if not _bundle(output, network, number).exists():
            fold = parts[number - 1]
            write_plan(
                material,
                _bundle(output, network, number),
                fold.training,
                fold.test,
                f"the test cases of a comparison ({why}); never trained on, scored when the training is over",
                decide_by=fold.training,
                dims=dims,
                seed=seed,
                network=network,
                settings=budget.settings(),
            )
    records = {
        item: record
        for item in work
        if (record := kept_record(_record(output, *item), _bundle(output, *item))) is not None
    }
    waiting = [item for item in work if item not in records]
    print(f"{len(networks)} network(s) x {len(listed)} fold(s) ({why}), {budget} each; {len(records)} done before")
    print("\n".join([*grouping.warnings, _forecast(output, waiting, budget, spec["device"])]))

    groups = dict(zip((case.name for case in material.cases.cases), grouping.of_case, strict=True))
    header = {**spec, "how": why, "warnings": list(grouping.warnings)}
    result = _publish(output, header, networks, records, len(work))
    for network, number in waiting:
        print(f"{network}, fold {number} of {len(listed)}")
        memory = next((record["memory"] for (name, _), record in records.items() if name == network), None)
        fold = parts[number - 1]
        records[network, number] = _train_and_score(output, network, number, fold, material, device, groups, memory)
        result = _publish(output, header, networks, records, len(work))
    print(f"open {output / 'index.html'}")
    return {**result, "failed": [list(item) for item in material.failed]}


def groups_of(material: Material) -> Grouping:
    """What of the cases stays together: see `find_groups`."""
    cases = material.cases.cases
    return find_groups(cases, [material.previews[case.name].thumbnail for case in cases])


def _content(look: CaseFingerprint) -> str:
    """Hash of image, label and voxel size as they were read."""
    return hashlib.sha256(f"{look.image_sha256} {look.label_sha256} {look.spacing_mm}".encode()).hexdigest()


def _check(
    networks: Sequence[str], minutes: float | None, steps: int | None, folds: int | None, test: Sequence[str]
) -> None:
    unknown = [name for name in networks if name not in NETWORKS]
    if unknown or not networks:
        raise BundleError(f"--networks takes {', '.join(NETWORKS)}, with commas; not {', '.join(unknown) or 'none'}")
    if minutes is not None and steps is not None:
        raise BundleError("give --minutes or --steps, not both")
    if (minutes is not None and minutes <= 0) or (steps is not None and steps < 1):
        raise BundleError(f"the budget has to be more than 0, not {steps if minutes is None else minutes}")
    if folds is not None and test:
        raise BundleError("give --folds or --test, not both: --test makes a single fold")


def _bundle(output: Path, network: str, fold: int) -> Path:
    return output / "bundles" / network / f"fold-{fold}"


def _record(output: Path, network: str, fold: int) -> Path:
    return output / "scores" / f"{network}-fold-{fold}.json"


def _open(output: Path, spec: Mapping[str, Any]) -> None:
    """Make the folder, or see that it is of this comparison."""
    file = output / MARKER
    if file.exists():
        before = read_json(file)
        for key, value in spec.items():
            if before.get(key) != value:
                shown = "other cases or folds" if key == "folds" else f"{key} {before.get(key)}, now it is {value}"
                if key == DATA:
                    shown = other_content(before.get(key), value)
                raise BundleError(f"{output}: holds a comparison with {shown}; choose another --output")
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BundleError(f"{output}: is not empty and no comparison; choose another --output")
    (output / "scores").mkdir(parents=True, exist_ok=True)
    write_json(file, spec)  # by it the folder is known, and its pictures are never taken for scans


def _forecast(output: Path, waiting: Sequence[tuple[str, int]], budget: Budget, device: str) -> str:
    """How long the whole will take, in words."""
    untrained = [item for item in waiting if not is_trained(_bundle(output, *item) / "models")]
    if budget.minutes is not None:
        return f"training takes {duration(60 * budget.minutes * len(untrained))} in all; scoring comes on top"
    seconds = {network: seconds_per_step(_bundle(output, network, fold), device) for network, fold in untrained[::-1]}
    config = budget.settings()
    total = sum(seconds[network] * config["epochs"] * config["steps_per_epoch"] for network, _ in untrained)
    each = ", ".join(f"{network} {one:.2g} s" for network, one in reversed(seconds.items()))
    timed = f" (forward and backward of a step: {each})" if each else ""
    return f"training takes at least {duration(total)} in all{timed}; reading, augmentation and scoring come on top"


def _train_and_score(
    output: Path,
    network: str,
    number: int,
    fold: Fold,
    material: Material,
    device: str | None,
    groups: Mapping[str, str],
    memory: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The record of a network on a fold, written when it is complete; `memory` as measured on another fold."""
    bundle, file = _bundle(output, network, number), _record(output, network, number)
    config = read_json(bundle / "configs" / "train.json")
    refuse_trained_on(read_json(bundle / "configs" / "datalist.json"), material.root, fold.test)
    if not is_trained(bundle / "models"):
        train(bundle, device=device, data=material.root)  # what was read: the bundle may name its former place
    predictor, settings = Predictor(bundle, device), read_settings(bundle)
    patch = tuple(config["patch"])
    macs = gmac(network_of(bundle), (1, len(config["channels"]), *patch))
    memory = memory or patch_memory(bundle, predictor.device)
    with tqdm(total=len(fold.test), unit="case", desc="scoring", leave=False) as bar:
        scores = score_cases(predictor, settings, fold.test, label_reading(config), file.with_suffix(""), bar.update)
    optimiser = config["train"]["optimizer"]["_target_"].rpartition(".")[2]
    record = {
        "network": network,
        "fold": number,
        "model_sha256": predictor.spec["model_sha256"],
        "mode": mode_of(network, settings["network_def"]),
        "initialisation": initialisation_of(network),
        "optimiser": f"{optimiser}, learning rate {config['learning_rate']:g}, falling to 0",
        "parameters": parameters(predictor.network),
        "patch": list(patch),
        "batch": config["batch"],
        "gmac_patch": macs,
        "gmac_per_mvoxel": macs / (math.prod(patch) / 1e6),
        "memory": memory,
        **training_record(bundle),
        "cases": [{**asdict(score), "group": groups[score.case]} for score in scores],
        "worst": min(scores, key=lambda score: score.dice).case,
    }
    write_json(file, record)
    return record


def _publish(
    output: Path,
    header: Mapping[str, Any],
    networks: Sequence[str],
    records: Mapping[tuple[str, int], dict[str, Any]],
    planned: int,
) -> dict[str, Any]:
    """Write page, CSV and JSON of what is done so far; returns the JSON."""
    of = {name: [record for (owner, _), record in sorted(records.items()) if owner == name] for name in networks}
    rows = [row_of(name, of[name], of[networks[0]], header["seed"]) for name in networks]
    result = {
        "fewscan": __version__,
        **header,
        "planned": planned,
        "done": len(records),
        "table": rows,
        "records": [record for name in networks for record in of[name]],
    }
    write_json(output / "compare.json", result)
    write_csv(output / "compare.csv", rows)
    write_page(output / "index.html", result, output / "scores")
    return result
