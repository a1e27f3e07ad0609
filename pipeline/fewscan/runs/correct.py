"""Correct and retrain: corrected masks are added, training goes on from the model, the new one is held against it."""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fewscan.bundle import read_cases, read_json, resolve
from fewscan.errors import BundleError, FewscanError
from fewscan.files import replace_when_complete, sha256
from fewscan.labels import LabelTable
from fewscan.metrics import confusion, dice
from fewscan.runs.predictor import Predictor, read_settings
from fewscan.runs.records import is_trained, write_json
from fewscan.runs.score import label_reading, score_case, sign_flip_test
from fewscan.scans import Case, Scan, find_scans
from fewscan.scans.cases import entry_stem, listed_name
from fewscan.scans.dicom_segments import NotASegmentation
from fewscan.scans.mask_files import read_mask
from fewscan.training.corrections import (
    MaskFile,
    ScanIndex,
    find_masks,
    refuse_held_out,
    source_of,
    with_case,
    write_label,
)
from fewscan.training.run import train
from fewscan.training.split import group_cases

HISTORY = "models/corrections.json"
"""Its place in a bundle: {"rounds": [...]}, one entry a round, the first first; entries are only added."""
RATE = 0.25
"""Of train.json's learning rate: the weights are near a good place already."""
LENGTH = 0.25
"""Of train.json's epochs (or minutes)."""


@dataclass(frozen=True)
class Setup:
    """A bundle as a round of corrections finds it."""

    bundle: Path
    table: LabelTable
    config: Mapping[str, Any]
    """train.json."""
    settings: Mapping[str, Any]
    """inference.json."""
    datalist: Mapping[str, Any]
    root: Path
    """The folder of the cases, which the datalist's images are relative to."""
    history: Sequence[Mapping[str, Any]]

    @property
    def merged(self) -> bool:
        """Whether everything above 0 is one class."""
        return bool(self.config.get("merge_masks"))

    @property
    def structures(self) -> Mapping[str, str] | None:
        """See `fewscan.scans.LabelReader`."""
        return self.config.get("structures")

    @property
    def unlabelled(self) -> float | None:
        """The value of voxels that nobody decided."""
        return self.config.get("unlabelled")

    @property
    def model(self) -> Path:
        """The weights in use."""
        return self.bundle / "models" / "model.pt"

    @property
    def number(self) -> int:
        """Of this round, from 1: the one that was begun, else past all whose masks are listed, history or not."""
        number = _last(self.history) + 1
        while self.lists(number) and not (_folder(self.bundle, number) / "round.json").exists():
            number += 1
        return number

    @property
    def folder(self) -> Path:
        """Of this round: its masks stay, the rest is there until it is complete."""
        return _folder(self.bundle, self.number)

    def lists(self, number: int) -> bool:
        """Whether the datalist names masks of that round."""
        start = _folder(Path(), number).as_posix() + "/"
        entries = (entry for part in ("training", "validation") for entry in self.datalist.get(part) or ())
        labels = (entry.get("label", "") for entry in entries)
        return any(
            path.startswith(start) for label in labels for path in ([label] if isinstance(label, str) else label)
        )


def _folder(bundle: Path, number: int) -> Path:
    return bundle / "corrections" / f"round-{number}"


def _last(history: Sequence[Mapping[str, Any]]) -> int:
    """The number of the last complete round."""
    return int(history[-1]["round"]) if history else 0


def correct(
    bundle: Path,
    masks: Path,
    *,
    scans: Path | None = None,
    minutes: float | None = None,
    device: str | None = None,
    data: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """One round: add corrected masks to a trained bundle, train on from its weights, score old and new model.

    Masks are brought onto their scans' grids without resampling (`fewscan.scans.mask_files.read_mask`) and kept in
    `corrections/round-N`; the data of the user stays as it is. The training takes a quarter of train.json's learning
    rate and epochs. Its model replaces `models/model.pt` when it is complete; the former one is kept as
    `models/model_round-<rounds before>.pt`, and so is its `training.json`. What was done is added to
    `models/corrections.json`. Interrupted, the same call goes on.

    Args:
        bundle: a trained one.
        masks: a folder at any depth, or one file. Left out are masks that an earlier round added, that equal what the
            model says now, or that lie as `fewscan segment` wrote them in its own output folder.
        scans: the folder of their scans; None takes the bundle's own data.
        minutes: for the training; None takes a quarter of what train.json says.
        device, data: as for `fewscan.training.run.train`.
        overwrite: begin the round anew where one with other masks or settings was begun.

    Returns:
        The entry of `corrections.json`, and under `failed` the reasons of masks that cannot be used.

    Raises:
        FewscanError: nothing was added; the bundle is as it was.
    """
    setup = _look(bundle, data)
    found, left = find_masks(masks, {case["sha256"] for entry in setup.history for case in entry["cases"]})
    for item in left:
        if item.reason != "no mask":
            print(f"left out {item.path.name}: {item.reason}")
    if not found:
        raise FewscanError(f"{masks}: holds no corrected mask that was not added before ({len(left)} files left out)")
    record = _pending(setup, found, overwrite) or _add(setup, found, masks, scans, device)
    _tell_cases(record, setup)
    for reason in record["failed"]:
        print(f"failed: {reason}")
    _train(setup, record, minutes, device, data)
    record["held_out"] = _compare(setup, record, device, data)
    record["when"] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    record["model_after"] = sha256(setup.folder / "training" / "model.pt")
    _tell_comparison(record, setup)
    _commit(setup, record)
    return record


def _look(bundle: Path, data: Path | None) -> Setup:
    settings, config = read_settings(bundle), read_json(bundle / "configs" / "train.json")
    models = bundle / "models"
    if not (models / "model.pt").exists():
        raise BundleError(f"{models / 'model.pt'}: is missing: train the bundle first, then add corrections")
    if (models / "training_state.pt").exists():
        raise BundleError(f"{models / 'training_state.pt'}: a training is not complete; run `fewscan train {bundle}`")
    datalist = read_json(bundle / "configs" / "datalist.json")
    listed = [*(datalist.get("training") or ()), *(datalist.get("validation") or ())]
    first = listed[0]["image"] if listed else "."
    where = str(data.resolve() if data else config["dataset_dir"])
    root = resolve(str(bundle), where, first[0] if isinstance(first, list) else first)
    history = read_json(bundle / HISTORY)["rounds"] if (bundle / HISTORY).exists() else []
    _clear(_folder(bundle, _last(history)))  # where that was interrupted
    return Setup(bundle, LabelTable.from_json(settings["labels"]), config, settings, datalist, root, history)


def _pending(setup: Setup, found: Sequence[MaskFile], overwrite: bool) -> dict[str, Any] | None:
    """This round as it was begun with the same masks and the same model; None where it was not begun."""
    file = setup.folder / "round.json"
    if overwrite and setup.lists(setup.number):
        raise BundleError(f"{setup.folder}: is listed in configs/datalist.json already; go on without --overwrite")
    if not file.exists() or overwrite:
        shutil.rmtree(setup.folder, ignore_errors=True)
        return None
    record: dict[str, Any] = read_json(file)
    trained = setup.folder / "training" / "model.pt"
    models = {record["model_before"], sha256(trained) if trained.exists() else None}
    if record["masks"] != sorted(mask.sha256 for mask in found) or sha256(setup.model) not in models:
        raise BundleError(
            f"{setup.folder}: round {setup.number} was begun with other masks, or another model; give the same ones to "
            "go on, or --overwrite to begin it anew"
        )
    print(f"round {setup.number} goes on where it was interrupted")
    return record


# --- the corrections --------------------------------------------------------------------------------------------------


def _add(
    setup: Setup, found: Sequence[MaskFile], masks: Path, scans: Path | None, device: str | None
) -> dict[str, Any]:
    """Masks onto their scans' grids, into the round's folder and its datalist; the record as far as it is known."""
    place = scans or setup.root
    index = ScanIndex(find_scans(place, setup.settings["channels"], output=masks).scans, place)
    pairs, failed = _pair(found, masks, index)
    predictor = Predictor(setup.bundle, device)
    datalist: Mapping[str, Any] = setup.datalist
    rows: list[dict[str, Any]] = []
    unchanged: list[str] = []
    begun = False
    try:
        for mask, scan in tqdm(pairs, desc="corrected masks", unit="scan", leave=False):
            try:
                refuse_held_out(datalist, setup.root, scan, setup.settings["channels"])
                source = source_of(scan)
                classes, notes = read_mask(mask.path, scan, setup.table, setup.merged, setup.unlabelled)
                answer = setup.table.to_classes(predictor(scan), "the model's mask")
                if np.array_equal(classes, answer):
                    unchanged.append(f"{mask.path.name}: as the model says, not corrected")
                    print(f"left out {unchanged[-1]}")
                    continue
                corrected = np.minimum(classes, 1) if setup.merged else classes
                row = _held_against(corrected, answer, setup.table)
                label = write_label(
                    classes, scan, setup.table, setup.folder, setup.structures, setup.merged, setup.unlabelled
                )
                datalist, known = with_case(datalist, setup.root, scan, source, label, setup.bundle)
            except (FewscanError, OSError) as problem:
                failed.append(str(problem))
                continue
            name = {"scan": scan.name, "file": mask.path.name, "sha256": mask.sha256, "trained_on_before": known}
            rows.append({**name, **row, "notes": [*notes, *row["notes"]]})
        if not rows:
            reasons = [*failed, *unchanged]
            raise FewscanError("\n".join([f"{masks}: none of the {len(found)} masks can be used:", *reasons]))
        record = {
            "round": setup.number,
            "masks": sorted(mask.sha256 for mask in found),
            "model_before": sha256(setup.model),
            "cases": rows,
            "failed": failed,
        }
        write_json(setup.folder / "datalist.json", datalist)
        write_json(setup.folder / "round.json", record)
        begun = True
    finally:
        if not begun:
            shutil.rmtree(setup.folder, ignore_errors=True)
    return record


def _pair(found: Sequence[MaskFile], folder: Path, index: ScanIndex) -> tuple[list[tuple[MaskFile, Scan]], list[str]]:
    """Each mask with its scan, and why others have none; a scan beside its mask is no mask."""
    images = {file.resolve() for scan in index.scans for file in scan.files}
    pairs: list[tuple[MaskFile, Scan]] = []
    failed: list[str] = []
    for mask in found:
        if mask.path.resolve() in images:
            print(f"left out {mask.path.name}: a scan")
            continue
        try:
            scan = index.of_mask(mask.path, folder)
        except NotASegmentation as problem:
            print(f"left out {problem}")
        except FewscanError as problem:
            failed.append(str(problem))
        else:
            if any(mask.sha256 == sha256(file) for file in dict.fromkeys(scan.files)):
                print(f"left out {mask.path.name}: the scan itself")
            else:
                pairs.append((mask, scan))
    for scan in dict.fromkeys(scan for _, scan in pairs):
        of_scan = [mask.path.name for mask, other in pairs if other == scan]
        if len(of_scan) > 1:
            failed.append(f"{scan.name}: has {len(of_scan)} masks, {' and '.join(of_scan)}; leave all but one out")
            pairs = [pair for pair in pairs if pair[1] != scan]
    return pairs, failed


def _held_against(corrected: NDArray[Any], answer: NDArray[Any], table: LabelTable) -> dict[str, Any]:
    """Dice of what the model says now against what the person says, for each label, and what is striking."""
    counts = confusion(answer, corrected, table.classes)
    scores = dice(counts)[1:]
    names = [label.name for label in table]
    notes = [
        f"holds no {name}, where the model finds {int(counts[:, n].sum())} voxels"
        for n, name in enumerate(names, start=1)
        if counts[n].sum() == 0 and counts[:, n].sum() > 0
    ]
    return {
        "dice_before": {
            name: None if np.isnan(s) else round(float(s), 4) for name, s in zip(names, scores, strict=True)
        },
        "mean_dice_before": 1.0 if np.isnan(scores).all() else round(float(np.nanmean(scores)), 4),
        "voxels_changed": int(counts.sum() - np.trace(counts)),
        "notes": notes,
    }


def _tell_cases(record: Mapping[str, Any], setup: Setup) -> None:
    """Corrected against predicted, as a table."""
    shown = [label.name for label in setup.table] if len(setup.table) <= 4 else []
    rows = [["corrected", "Dice before", *shown, "voxels changed", ""]]
    for case in record["cases"]:
        told = ["was trained on before"] * case["trained_on_before"] + case["notes"]
        each = [_number(case["dice_before"][name]) for name in shown]
        rows.append(
            [case["scan"], _number(case["mean_dice_before"]), *each, str(case["voxels_changed"]), "; ".join(told)]
        )
    print(f"round {record['round']}: {len(record['cases'])} corrected mask(s)")
    _print_table(rows)
    if setup.config.get("sparse") is not None:
        print("`sparse` in train.json: slices without any label count as not annotated, in corrected masks too")


# --- the training -----------------------------------------------------------------------------------------------------


def _train(setup: Setup, record: dict[str, Any], minutes: float | None, device: str | None, data: Path | None) -> None:
    """From the bundle's weights, in the round's folder."""
    folder, config = setup.folder / "training", setup.config
    if minutes is None and config.get("minutes") is not None:
        minutes = LENGTH * float(config["minutes"])
    rate, epochs = RATE * float(config["learning_rate"]), max(1, round(LENGTH * config["epochs"]))
    record["training"] = {"learning_rate": rate, **({"epochs": epochs} if minutes is None else {"minutes": minutes})}
    if is_trained(folder):
        return  # before the interruption
    length = f"{epochs} epochs" if minutes is None else f"{minutes:g} minutes"
    told = f"learning rate {rate:g} (train.json: {config['learning_rate']:g}), {length}"
    print(f"training goes on from {setup.model}: {told}")
    settings = {
        "network": "$fewscan.training.corrections.warm_start(@network_def, @warm_start).to(@device)",
        "warm_start": str(setup.model),
        "datalist": str((setup.folder / "datalist.json").resolve()),
        "ckpt_dir": str(folder),
        "learning_rate": rate,
        "epochs": epochs,
    }
    train(setup.bundle, minutes, device, data, settings=settings)


# --- old against new --------------------------------------------------------------------------------------------------


def _compare(setup: Setup, record: Mapping[str, Any], device: str | None, data: Path | None) -> dict[str, Any] | None:
    """Dice of the held-out cases with the old model and the new one; None where no case is held out."""
    listing = str((setup.folder / "datalist.json").resolve())
    entries = read_cases(
        str(setup.bundle), str(data.resolve() if data else setup.config["dataset_dir"]), listing, "validation"
    )
    if not entries:
        return None
    names = read_json(setup.folder / "datalist.json")["validation"]
    cases = [_case(entry, listed, setup) for entry, listed in zip(entries, names, strict=True)]
    if len({case.name for case in cases}) < len(cases):  # from several folders
        cases = [replace(case, name=case.image[0].as_posix()) for case in cases]
    former = _kept(setup, "model.pt")
    if not former.exists() or sha256(former) != record["model_before"]:  # it is kept at the very end
        former = setup.model
    models = {"before": former, "after": setup.folder / "training" / "model.pt"}
    channels, reading = setup.settings["channels"], label_reading(setup.config)
    result: dict[str, Any] = {}
    for when, model in models.items():
        predictor = Predictor(setup.bundle, device, [model])
        result[when] = {
            case.name: round(score_case(predictor, channels, setup.table, case, reading).score.dice, 4)
            for case in tqdm(cases, desc=f"held-out scans, {when}", unit="scan", leave=False)
        }
        result[f"mean_{when}"] = round(float(np.mean(list(result[when].values()))), 4)
    of_group: dict[str, list[float]] = defaultdict(list)  # slices of one patient are one piece of evidence
    for case, group in zip(cases, group_cases(cases)[0], strict=True):
        of_group[group].append(result["after"][case.name] - result["before"][case.name])
    p = sign_flip_test([float(np.mean(own)) for own in of_group.values()])
    return {**result, "groups": len(of_group), "p": round(p, 4)}


def _case(entry: Mapping[str, Any], listed: Mapping[str, Any], setup: Setup) -> Case:
    """Of an entry with absolute paths, and as the data list has it."""
    image, label = ([Path(p) for p in (v if isinstance(v, list) else [v])] for v in (entry["image"], entry["label"]))
    structures = {} if setup.merged else setup.structures or {}
    named = tuple(structures[entry_stem(path)] for path in label) if structures else ()
    name = listed_name(listed, Path(os.path.normpath(image[0])), setup.root, setup.settings["channels"])
    return Case(name, tuple(image), tuple(label), named)


def _tell_comparison(record: Mapping[str, Any], setup: Setup) -> None:
    held_out = record["held_out"]
    if held_out is None:
        print(
            "no case is held out (`validation` in configs/datalist.json), so old and new model cannot be compared "
            f"honestly; `fewscan validate {setup.bundle}` estimates by leaving cases out"
        )
    else:
        rows = [["held out", "Dice before", "after"]]
        rows += [
            [name, _number(held_out["before"][name]), _number(held_out["after"][name])] for name in held_out["before"]
        ]
        _print_table([*rows, ["mean", _number(held_out["mean_before"]), _number(held_out["mean_after"])]])
        change = held_out["mean_after"] - held_out["mean_before"]
        verdict = "better" if change > 0 else "WORSE" if change < 0 else "as good"
        print(f"the new model is {verdict} on {len(rows) - 1} held-out scan(s): {change:+.4f} (p {held_out['p']:.2g})")
    print(
        f"the former model is kept; to go back to it, copy {_kept(setup, 'model.pt')} to model.pt and "
        f"{_kept(setup, 'training.json').name} to training.json there"
    )


def _commit(setup: Setup, record: Mapping[str, Any]) -> None:
    """The new model takes the old one's place, which is kept; each file whole or not at all, the history last."""
    models, trained = setup.bundle / "models", setup.folder / "training"
    if sha256(setup.model) == record["model_before"]:  # else an interrupted commit goes on
        _copy(setup.model, _kept(setup, "model.pt"))
    record_file = models / "training.json"
    if record_file.exists() and sha256(record_file) != sha256(trained / "training.json"):
        _copy(record_file, _kept(setup, "training.json"))
    _copy(setup.folder / "datalist.json", setup.bundle / "configs" / "datalist.json")
    for file in sorted(trained.iterdir(), key=lambda file: (file.name == "model.pt", file.name)):
        if file.is_file():
            _copy(file, models / file.name)
        else:  # logs for TensorBoard
            shutil.copytree(file, models / file.name / f"round-{setup.number}", dirs_exist_ok=True)
    entry = {key: value for key, value in record.items() if key not in ("masks", "failed")}
    write_json(setup.bundle / HISTORY, {"rounds": [*setup.history, entry]})
    _clear(setup.folder)


def _clear(folder: Path) -> None:
    """Of a complete round the masks alone stay."""
    for name in ("round.json", "datalist.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "training", ignore_errors=True)


def _kept(setup: Setup, name: str) -> Path:
    """Where the former `model.pt` or `training.json` goes: named after the number of rounds before this one."""
    file = setup.bundle / "models" / name
    return file.with_name(f"{file.stem}_round-{setup.number - 1}{file.suffix}")


def _copy(source: Path, target: Path) -> None:
    with replace_when_complete(target) as temporary:
        shutil.copyfile(source, temporary)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
