"""Look at the data, decide, and write a bundle that says why."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewscan import __version__
from fewscan.bundle import refuse_occupied, write_bundle
from fewscan.errors import BundleError
from fewscan.labels import LabelTable
from fewscan.scans import Case, Cases
from fewscan.scans.cases import case_name
from fewscan.scans.data_lists import list_entry, relative
from fewscan.training.alike import near_identical
from fewscan.training.data_page import data_page
from fewscan.training.fingerprint import FILE, CaseFingerprint
from fewscan.training.material import Material, read_material
from fewscan.training.memory import Budget
from fewscan.training.outliers import Outlier, find_outliers
from fewscan.training.settings import decide_settings
from fewscan.training.split import split

PAGE = "docs/data.html"


@dataclass(frozen=True)
class Plan:
    """The settings of a bundle, each with its reason, and the cases that go into it."""

    settings: dict[str, Any]
    reasons: dict[str, str]
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    failed: tuple[tuple[str, str], ...]
    """Cases left out: (name, why)."""
    outliers: tuple[Outlier, ...] = ()
    """What to look at before training."""


def plan(
    data: Path,
    output: Path,
    *,
    images: str | None = None,
    labels: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    channels: Sequence[Mapping[str, Any] | str] | None = None,
    merge_masks: str | None = None,
    dims: int | None = None,
    window: Sequence[float] | None = None,
    validation: int | None = None,
    seed: int = 0,
    network: str = "unet",
    budget: str = "cpu",
    minutes: float | None = None,
    unlabelled: int | None = None,
) -> Plan:
    """Pair images and labels, read every pair, decide, and write the bundle `output`.

    Args:
        data: a folder or a MONAI datalist.
        output: the bundle's folder, new or empty.
        images, labels, include, exclude, channels, merge_masks: see `fewscan.scans.find_cases`.
        dims: 2 or 3 where the user knows better.
        window: intensities [low, high] that matter, of every channel, where the user knows them.
        validation: cases held out of training to watch it; None for a tenth from ten cases on, else none.
        seed: of the choice of held-out cases and of the training.
        network: "unet", or the baselines "fcn" and "segnet".
        budget: what the training may use, see `fewscan.training.memory.Budget`.
        minutes: of the training, instead of `epochs`.
        unlabelled: the value in label files of voxels that nobody decided.

    Returns:
        What was decided. Cases that cannot be used are in `failed`; the others go on.

    Raises:
        PairingError, LabelError, BundleError: nothing can be planned.
    """
    refuse_occupied(output)
    if minutes is not None and minutes <= 0:
        raise BundleError(f"--minutes has to be more than 0, not {minutes:g}")
    spend = Budget.of(budget)
    material = read_material(
        data, images, labels, include, exclude, channels, merge_masks, undecided=unlabelled, pictures=True
    )
    copies = near_identical([material.previews[case.name].thumbnail for case in material.cases.cases])
    training, held_out, why = split(material.cases.cases, validation, seed, [pair[:2] for pair in copies])
    fingerprint = material.fingerprint()
    outliers = find_outliers(fingerprint, material.previews)
    parts = {case.name: part for part, held in (("training", training), ("validation", held_out)) for case in held}
    page = data_page(fingerprint, outliers, material.pictures, parts, material.failed)
    return write_plan(
        material,
        output,
        training,
        held_out,
        why,
        dims=dims,
        window=window,
        seed=seed,
        network=network,
        budget=spend,
        settings={} if minutes is None else {"minutes": minutes},
        outliers=outliers,
        documents={PAGE: page},
    )


def write_plan(
    material: Material,
    output: Path,
    training: Sequence[Case],
    held_out: Sequence[Case],
    why: str,
    *,
    decide_by: Sequence[Case] | None = None,
    dims: int | None = None,
    window: Sequence[float] | None = None,
    seed: int = 0,
    network: str = "unet",
    budget: Budget | None = None,
    settings: Mapping[str, Any] | None = None,
    outliers: Sequence[Outlier] = (),
    documents: Mapping[str, str] | None = None,
) -> Plan:
    """Decide, and write the bundle `output`.

    Args:
        material: from `read_material`.
        output: the bundle's folder, new or empty.
        training, held_out: of the material's cases.
        why: how these were parted, in words.
        decide_by: the cases that settings are decided by; None for all.
        dims, window, seed, network: as for `plan`.
        budget: what the training may use; None for two CPU cores.
        settings: further ones of train.json by name, for example `minutes`.
        outliers: cases to look at, which the plan lists.
        documents: further texts by their path in the bundle.
    """
    cases, table = material.cases, material.table
    fingerprint = material.fingerprint([case.name for case in (cases.cases if decide_by is None else decide_by)])
    decided, reasons = decide_settings(fingerprint, cases, table, dims, window, network, budget)
    if material.structures is not None:
        reasons["structures"] = "one mask per structure; the file's stem says which label it is"
    reasons["validation"] = why
    decided |= {"merge_masks": cases.merged is not None, "structures": material.structures, "seed": seed}
    decided |= {"dataset_dir": relative(material.root.resolve(), output.resolve()), **(settings or {})}
    reasons["schedule"] = _schedule(decided)
    result = Plan(decided, reasons, tuple(training), tuple(held_out), material.failed, tuple(outliers))
    datalist = {
        "description": f"paired by {cases.rule}",
        "training": [_entry(case, material) for case in training],
        "validation": [_entry(case, material) for case in held_out],
    }
    texts = {
        **(documents or {}),
        "docs/plan.md": _document(result, material.looks, cases, table),
        FILE: json.dumps(fingerprint.to_json(), indent=1) + "\n",
    }
    write_bundle(output, decided, datalist, texts, network)
    return result


def _entry(case: Case, material: Material) -> dict[str, Any]:
    """In the data list; with the case's name where its files do not say it, as a pattern of the user found it."""
    told = case_name(case.image[0], material.root, material.cases.channels)
    return {**({} if told == case.name else {"name": case.name}), **list_entry(case, material.root)}


def _schedule(settings: Mapping[str, Any]) -> str:
    if settings.get("minutes") is not None:
        return f"`minutes` {settings['minutes']:g}: the rate falls with the time, so that it fits whatever the machine"
    return "`epochs` x `steps_per_epoch`; `minutes` (also `fewscan train --minutes`) makes it fit a time instead"


def _document(result: Plan, looks: Mapping[str, CaseFingerprint], cases: Cases, table: LabelTable) -> str:
    lines = [
        f"# Plan (fewscan {__version__})",
        "",
        f"{len(result.training)} cases to train on, {len(result.validation)} held out; paired by {cases.rule}.",
        "Any value may be edited at the top of `configs/train.json` and `configs/inference.json`.",
        "",
        "| setting | value | why |",
        "|---|---|---|",
    ]
    for name, reason in result.reasons.items():
        value = result.settings.get(name, len(result.validation) if name == "validation" else "")
        shown = ", ".join(f"{label.value} {label.name}" for label in table) if name == "labels" else value
        lines.append(f"| {name} | {shown} | {reason} |")
    if result.outliers:
        lines += ["", f"Look at these first (pictures: `{PAGE}`):", ""]
        lines += [f"- {outlier}" for outlier in result.outliers]
    lines += [
        "",
        "| case | part | voxels (left x posterior x superior) | spacing mm | labelled voxels | notes |",
        "|" + "---|" * 6,
    ]
    for part, members in (("training", result.training), ("validation", result.validation)):
        for case in members:
            seen = looks[case.name]
            counts = ", ".join(f"{label.name} {n}" for label, n in zip(table, seen.voxels[1:], strict=True))
            lines.append(
                f"| {case.name} | {part} | {' x '.join(map(str, seen.shape))} | "
                f"{' x '.join(f'{s:.3g}' for s in seen.spacing_mm)} | {counts} | {'; '.join(seen.notes)} |"
            )
    lines += [f"| {name} | left out | | | | {reason} |" for name, reason in result.failed]
    return "\n".join(lines) + "\n"
