"""Labelled cases, each read in full: what plans are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fewscan.errors import FewscanError, PairingError
from fewscan.labels import LabelTable
from fewscan.scans import Case, Cases, find_cases, format_table, match_grid, open_scan, read_label, seed_labels
from fewscan.scans.cases import entry_stem
from fewscan.scans.labels import read_values


@dataclass(frozen=True)
class Look:
    """What one labelled case is like; axes in the order left, posterior, superior."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    format: str
    lowest: tuple[float, ...]
    """Intensity of each channel."""
    range_of_labels: tuple[tuple[float, float], ...] | None
    """For each channel the 0.5th and 99.5th percentile of the intensities on labelled voxels; None without any."""
    voxels: tuple[int, ...]
    """For each class, the background first."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Material:
    """Labelled cases that were read in full: what plans are made from."""

    root: Path
    """The folder that data lists are relative to."""
    cases: Cases
    """Those that can be used."""
    table: LabelTable
    looks: dict[str, Look]
    """By the name of the case."""
    structures: dict[str, str] | None
    """See `name_structures`."""
    failed: tuple[tuple[str, str], ...]
    """Cases left out: (name, why)."""


def read_material(
    data: Path,
    images: str | None = None,
    labels: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    channels: Sequence[Mapping[str, Any] | str] | None = None,
    merge_masks: str | None = None,
) -> Material:
    """Pair images and labels and read every pair; prints the pairs, and the cases that are left out with the reason.

    The arguments and errors are those of `plan`.
    """
    cases = find_cases(data, images, labels, include, exclude, channels, merge_masks)
    print(format_table(cases))
    cases, structures, unnamed = name_structures(cases)
    cases, failed = _without_broken_labels(cases)
    failed = [*unnamed, *failed]
    table = LabelTable.from_json(seed_labels(cases))
    looks: dict[str, Look] = {}
    for case in tqdm(cases.cases, desc="reading cases", unit="case", leave=False):
        try:
            looks[case.name] = look(case, cases, table)
        except (FewscanError, OSError) as problem:
            failed.append((case.name, str(problem)))
    for name, reason in failed:
        print(f"left out {name}: {reason}")
    usable = tuple(case for case in cases.cases if case.name in looks)
    if not usable:
        raise PairingError(f"{data}: none of the {len(failed)} labelled cases can be used; the reasons stand above")
    root = data if data.is_dir() else data.parent
    return Material(root, replace(cases, cases=usable), table, looks, structures, tuple(failed))


def name_structures(cases: Cases) -> tuple[Cases, dict[str, str] | None, list[tuple[str, str]]]:
    """Which label each mask is, where the data holds one mask per structure.

    Returns:
        The cases, all with `structures`; {stem of a mask: name of its label}, or None for label maps; and of the
        cases with a mask that nothing names (name, why).

    Raises:
        PairingError: masks of one stem are different structures.
    """
    named: dict[str, tuple[str, Path]] = {}
    for case in cases.cases if cases.merged is None else ():
        for path, name in zip(case.label, case.structures, strict=False):
            other, first = named.setdefault(entry_stem(path), (name, path))
            if other != name:
                raise PairingError(
                    f"{first} is {other!r}, but {path}, of the same stem, is {name!r}; rename the files by structure"
                )
    if not named:
        return cases, None, []
    structures = {stem: name for stem, (name, _) in named.items()}
    kept, unnamed = [], []
    for case in cases.cases:
        strange = [path for path in case.label if entry_stem(path) not in structures]
        if strange:
            known = ", ".join(structures)
            unnamed.append((case.name, f"{strange[0]}: is none of the structures {known}; rename the file"))
        else:
            kept.append(replace(case, structures=tuple(structures[entry_stem(path)] for path in case.label)))
    return replace(cases, cases=tuple(kept)), structures, unnamed


def _without_broken_labels(cases: Cases) -> tuple[Cases, list[tuple[str, str]]]:
    """The cases whose label files can be read and hold labels; of the others (name, why)."""
    try:
        seed_labels(cases)
        return cases, []
    except (FewscanError, OSError) as problem:
        first = problem
    sound, failed = [], []
    for case in cases.cases:
        try:
            if any(read_values(path)[0].any() for path in case.label):  # a scan may hold none of what is looked for
                seed_labels(replace(cases, cases=(case,)))
            sound.append(case)
        except (FewscanError, OSError) as problem:
            failed.append((case.name, str(problem)))
    if not sound or not failed:
        raise first
    return replace(cases, cases=tuple(sound)), failed


def look(case: Case, cases: Cases, table: LabelTable) -> Look:
    """Read one case in full; raises where image and label contradict each other or the table."""
    scan = open_scan(case.image, cases.channels)
    image = scan.read()
    if len(image) != len(cases.channels):
        raise PairingError(f"{case.image[0]}: holds {len(image)} channels, where {len(cases.channels)} are expected")
    classes, grid = read_label(case.label, table, case.structures, cases.merged is not None)
    classes = match_grid(classes, grid, scan.grid, f"{case.label[0]} (label of {case.image[0]})")
    lps = scan.grid.reordered(*scan.grid.axes_to_lps())
    labelled = image[:, classes > 0]
    ends = [np.percentile(channel, (0.5, 99.5)) for channel in labelled] if labelled.size else None
    return Look(
        lps.shape,
        lps.spacing_mm,
        scan.format,
        tuple(float(channel.min()) for channel in image),
        None if ends is None else tuple((float(low), float(high)) for low, high in ends),
        tuple(int(n) for n in np.bincount(classes.ravel(), minlength=table.classes)),
        scan.notes,
    )
