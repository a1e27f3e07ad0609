"""Pairs of image and label as a value, their table for a person, and the label rows that they suggest."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.errors import LabelError, PairingError
from fewscan.scans.labels import read_values
from fewscan.scans.names import IMAGE_FOLDERS, format_of, image_key, stem_of
from fewscan.scans.open import Channels
from fewscan.scans.scan import Skipped

MOST_VALUES = 50
"""More different values than this in one label file are instance numbers, not classes."""


@dataclass(frozen=True)
class Case:
    """One image and its label.

    `image` is one file per channel, or one DICOM folder. `label` is one file, or one mask per structure, whose names
    `structures` gives in the same order; empty where the image has none. `split` is what a data list says.
    """

    name: str
    image: tuple[Path, ...]
    label: tuple[Path, ...] = ()
    structures: tuple[str, ...] = ()
    split: str | None = None


@dataclass(frozen=True)
class Cases:
    """What a data folder holds, and which rule says so.

    `channels` and `labels` are rows as a bundle keeps them; `labels` is None where the data does not name them.
    `merged` is the name of the one class that everything above 0 becomes, None without merging. `undecided` is the
    value of voxels in label files that nobody decided, None where there is none.
    """

    cases: tuple[Case, ...]
    unlabelled: tuple[Case, ...]
    channels: list[dict[str, Any]]
    labels: list[dict[str, Any]] | None
    rule: str
    skipped: tuple[Skipped, ...] = ()
    merged: str | None = None
    undecided: int | None = None


def seed_labels(cases: Cases) -> list[dict[str, Any]]:
    """Rows (value, name) of the label table: as the data names them, else from the values that the files hold.

    Raises LabelError where a file holds values that are no class: fractions, negative ones, values that the data's
    own table does not list, or more than 50 different ones.
    """
    if cases.merged is not None:
        return [{"value": 1, "name": cases.merged}]
    structures = list(dict.fromkeys(name for case in cases.cases for name in case.structures))
    if structures:
        return [{"value": value, "name": name} for value, name in enumerate(structures, start=1)]
    listed = None if cases.labels is None else {0, *(int(row["value"]) for row in cases.labels)}
    seen: set[int] = set()
    for case in cases.cases:
        for path in case.label:
            values = _classes_in(path, cases.undecided)
            strangers = [] if listed is None else sorted(set(values) - listed)
            if strangers:
                raise LabelError(
                    f"{path}: holds the value(s) {', '.join(map(str, strangers[:8]))}, which the label table of the "
                    f"data ({', '.join(map(str, sorted(listed or ())))}) does not list; correct one of them"
                )
            seen.update(values)
    if cases.labels is not None:
        return cases.labels
    values = sorted(seen - {0})
    if not values:
        raise LabelError("the label files hold nothing but 0: there is nothing to learn; check the pairs")
    if values == [255]:
        return [{"value": 255, "name": "label"}]
    return [{"value": value, "name": f"label_{value}"} for value in values]


def format_table(cases: Cases, most: int = 20) -> str:
    """The pairs as a table for a person, at most `most` lines of it, with counts."""
    base = _common_folder([path for case in (*cases.cases, *cases.unlabelled) for path in (*case.image, *case.label)])
    lines = [
        f"{len(cases.cases)} image(s) with a label, {len(cases.unlabelled)} without, paired by {cases.rule}",
        f"channels: {', '.join(str(row['name']) for row in cases.channels)}",
    ]
    if cases.labels:
        lines.append("labels: " + ", ".join(f"{row['value']} {row['name']}" for row in cases.labels))
    rows = [("case", "image", "label")]
    rows += [(case.name, _shown(case.image, base), _shown(case.label, base)) for case in cases.cases[:most]]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines += [f"  {name:{widths[0]}}  {image:{widths[1]}}  {label}" for name, image, label in rows]
    if len(cases.cases) > most:
        lines.append(f"  ... and {len(cases.cases) - most} more")
    failed = [item for item in cases.skipped if item.failed]
    lines += [f"  left out: {item.reason}" for item in failed[:most]]
    return "\n".join(lines)


def ordered_cases(
    cases: Iterable[Case],
    unlabelled: Iterable[Case],
    rows: list[dict[str, Any]],
    labels: list[dict[str, Any]] | None,
    rule: str,
    left: Iterable[Skipped] = (),
) -> Cases:
    """Cases in the order of their names, which have to differ."""
    done = sorted(cases, key=lambda case: case.name)
    bare = sorted(unlabelled, key=lambda case: case.name)
    for one, other in itertools.pairwise(done):
        if one.name == other.name:
            raise PairingError(f"{one.image[0]} and {other.image[0]}: both give the case {one.name}; rename one")
    return Cases(tuple(done), tuple(bare), rows or [{"name": "image"}], labels, rule, tuple(left))


def case_name(image: Path, root: Path, channels: Sequence[Mapping[str, Any] | str] | None) -> str:
    """The path below the root without folders that only say image, and without the suffixes of channel and file.

    `channels` as a bundle has them. A file that is called like its channel (`p1/T1`), or says only that it is an image
    (`p1/image`), has the name of its folder.
    """
    try:
        parts = image.relative_to(root).parts[:-1]
    except ValueError:
        parts = ()
    kept = [part for part in parts if part.lower() not in IMAGE_FOLDERS]
    stem, wanted = entry_stem(image), Channels.of(channels)
    own = stem.removesuffix((wanted.suffix_in(stem) or "") if wanted else "")
    own = own if image_key(own) else ""
    return "/".join([*kept, own] if own else kept) or stem


def listed_name(
    entry: Mapping[str, Any], image: Path, root: Path, channels: Sequence[Mapping[str, Any] | str] | None
) -> str:
    """The name of a case in a bundle's data list: as `plan` found it, where the file does not say it."""
    return str(entry.get("name") or case_name(image, root, channels))


def entry_stem(path: Path) -> str:
    """The stem of a file; the name of a DICOM folder."""
    return path.name if format_of(path) is None else stem_of(path)


def _classes_in(path: Path, undecided: int | None = None) -> list[int]:
    values = np.unique(read_values(path)[0])
    values = values[values != undecided] if undecided is not None else values
    if len(values) > MOST_VALUES:
        raise LabelError(
            f"{path}: holds {len(values)} different values; are they numbers of objects, or a picture's shades? "
            f"--merge-masks NAME makes everything above 0 one class"
        )
    wrong = [value for value in values.tolist() if value != int(value) or value < 0 or value > 65535]
    if wrong:
        raise LabelError(
            f"{path}: holds the value {wrong[0]:g}; labels are whole numbers from 0 to 65535. Are they "
            f"probabilities? Save the mask that they give"
        )
    return [int(value) for value in values]


def _shown(paths: Sequence[Path], base: Path) -> str:
    if not paths:
        return "-"
    first = paths[0].relative_to(base).as_posix() if paths[0].is_relative_to(base) else str(paths[0])
    return first if len(paths) == 1 else f"{first} (+ {len(paths) - 1} more)"


def _common_folder(paths: Sequence[Path]) -> Path:
    try:
        return Path(os.path.commonpath([str(path.parent) for path in paths])) if paths else Path()
    except ValueError:  # several drives of Windows
        return Path()
