"""Look at the data, decide, and write a bundle that says why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewscan import __version__
from fewscan.bundle import refuse_occupied, write_bundle
from fewscan.labels import LabelTable
from fewscan.scans import Case, Cases
from fewscan.training.material import Look, Material, read_material
from fewscan.training.settings import decide_settings
from fewscan.training.split import split


@dataclass(frozen=True)
class Plan:
    """The settings of a bundle, each with its reason, and the cases that go into it."""

    settings: dict[str, Any]
    reasons: dict[str, str]
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    failed: tuple[tuple[str, str], ...]
    """Cases left out: (name, why)."""


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

    Returns:
        What was decided. Cases that cannot be used are in `failed`; the others go on.

    Raises:
        PairingError, LabelError, BundleError: nothing can be planned.
    """
    refuse_occupied(output)
    material = read_material(data, images, labels, include, exclude, channels, merge_masks)
    training, held_out, why = split(material.cases.cases, validation, seed)
    return write_plan(material, output, training, held_out, why, dims=dims, window=window, seed=seed, network=network)


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
    settings: Mapping[str, Any] | None = None,
) -> Plan:
    """Decide, and write the bundle `output`.

    Args:
        material: from `read_material`.
        output: the bundle's folder, new or empty.
        training, held_out: of the material's cases.
        why: how these were parted, in words.
        decide_by: the cases that settings are decided by; None for all.
        dims, window, seed, network: as for `plan`.
        settings: further ones of train.json by name, for example `minutes`.
    """
    cases, table = material.cases, material.table
    seen = [material.looks[case.name] for case in (cases.cases if decide_by is None else decide_by)]
    decided, reasons = decide_settings(seen, cases, table, dims, window, network)
    if material.structures is not None:
        reasons["structures"] = "one mask per structure; the file's stem says which label it is"
    reasons["validation"] = why
    decided |= {"merge_masks": cases.merged is not None, "structures": material.structures, "seed": seed}
    decided |= {"dataset_dir": _relative(material.root.resolve(), output.resolve()), **(settings or {})}
    result = Plan(decided, reasons, tuple(training), tuple(held_out), material.failed)
    datalist = {
        "description": f"paired by {cases.rule}",
        "training": [_entry(case, material.root) for case in training],
        "validation": [_entry(case, material.root) for case in held_out],
    }
    write_bundle(output, decided, datalist, {"docs/plan.md": _document(result, material.looks, cases, table)}, network)
    return result


def _entry(case: Case, root: Path) -> dict[str, Any]:
    def listed(paths: Sequence[Path]) -> Any:
        names = [_relative(path, root) for path in paths]
        return names[0] if len(names) == 1 else names

    return {"image": listed(case.image), "label": listed(case.label)}


def _relative(path: Path, folder: Path) -> str:
    """The path as seen from a folder; as it is where they lie on two drives of Windows."""
    try:
        return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    except ValueError:
        return str(path.absolute())


def _document(result: Plan, looks: Mapping[str, Look], cases: Cases, table: LabelTable) -> str:
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
        value = result.settings.get(name, len(result.validation))
        shown = ", ".join(f"{label.value} {label.name}" for label in table) if name == "labels" else value
        lines.append(f"| {name} | {shown} | {reason} |")
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
