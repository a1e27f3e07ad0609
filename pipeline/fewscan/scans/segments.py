"""One segment of a mask file, and which label of a bundle it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import LabelError
from fewscan.grid import Grid
from fewscan.labels import Label, LabelTable

_NO_NAME = re.compile(r"(?:segment|label)?[ _-]?(\d+)", re.IGNORECASE)
"""Names that programs give by themselves: `Segment_1`, `Label 1`, `1`."""


@dataclass(frozen=True)
class Segment:
    """What a file says of one segment: all that it does not say is None."""

    name: str | None = None
    value: int | None = None
    type_code: tuple[str, str] | None = None
    """(scheme, value) of its type, as in `fewscan.terminology`."""
    modifier_code: tuple[str, str] | None = None


@dataclass(frozen=True)
class Part:
    """Voxels of one segment: a mask (i, j, k) of bool on a grid of its own."""

    segment: Segment
    mask: NDArray[np.bool_]
    grid: Grid


def class_of(segment: Segment, table: LabelTable, path: Path) -> tuple[int, str | None]:
    """The class of a segment, and in words how it was found where its name did not say it.

    By its name, as written, else without case, blanks and underscores; by its code; and by its value where it has no
    name, or one that a program gave by itself for this value (`Segment_1`). `path` names the file in errors. Raises
    LabelError where it is none of the labels.
    """
    named = None if segment.name is None else _NO_NAME.fullmatch(segment.name.strip())
    found = by_name(segment, table)
    if found is not None:
        return found, None
    by_code = [n for n, label in enumerate(table, start=1) if _same_code(segment, label)]
    if len(by_code) == 1:
        return by_code[0], f"segment {segment.name!r} is {table.labels[by_code[0] - 1].name!r} by its code"
    values = [label.value for label in table]
    if (segment.name is None or (named and int(named[1]) == segment.value)) and segment.value in values:
        index = values.index(segment.value) + 1
        unnamed = segment.name is None
        return index, None if unnamed else f"segment {segment.name!r} is {table.labels[index - 1].name!r} by its value"
    known = ", ".join(f"{label.value} {label.name}" for label in table)
    told = f"the value {segment.value}" if segment.name is None else f"the segment {segment.name!r}"
    raise LabelError(f"{path}: holds {told}, which is none of the bundle's labels ({known}); rename or remove it there")


def by_name(segment: Segment, table: LabelTable) -> int | None:
    """The class of a segment by its name, first as it is written, then without case, blanks and underscores."""
    if segment.name is None:
        return None
    for form in (str.strip, _plain):
        fitting = [n for n, label in enumerate(table, start=1) if form(label.name) == form(segment.name)]
        if len(fitting) == 1:
            return fitting[0]
    return None


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _same_code(segment: Segment, label: Label) -> bool:
    meaning = label.meaning
    if segment.type_code is None or meaning.is_generic:
        return False
    modifier = None if meaning.modifier is None else (meaning.modifier.scheme, meaning.modifier.value)
    return segment.type_code == (meaning.type.scheme, meaning.type.value) and segment.modifier_code == modifier
