"""What a voxel can be: label values, names, colours and coded meaning, in one table."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import LabelError
from fewscan.terminology import Code, Meaning, look_up


@dataclass(frozen=True)
class Label:
    """One thing that is segmented.

    `value` is what label files and masks hold (1 to 65535), `name` what a person calls it, `colour` sRGB 0 to 255,
    `meaning` its coded terminology, which DICOM and 3D Slicer show.
    """

    value: int
    name: str
    colour: tuple[int, int, int]
    meaning: Meaning


@dataclass(frozen=True)
class LabelTable:
    """The labels of a bundle, in the order of the network's classes.

    Class 0 is the background, whose value in files is 0; class n is `labels[n - 1]`. Values and names are unique.
    """

    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        for what in ("value", "name"):
            seen = [getattr(label, what) for label in self.labels]
            twice = {item for item in seen if seen.count(item) > 1}
            if twice:
                raise LabelError(
                    f"the label table holds the {what} {sorted(twice)[0]!r} twice; give each label its own"
                )
        for label in self.labels:
            if not 1 <= label.value <= 65535:
                raise LabelError(f"label {label.name!r} has the value {label.value}; values go from 1 to 65535")

    def __iter__(self) -> Iterator[Label]:
        return iter(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Classes of the network: the labels and the background."""
        return len(self.labels) + 1

    @property
    def values(self) -> NDArray[np.uint16]:
        """(classes,) the value in files of each class, the background's 0 first."""
        return np.array([0, *(label.value for label in self.labels)], dtype=np.uint16)

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        """uint8 where every value fits, else uint16."""
        return np.uint8 if max(self.values) <= 255 else np.uint16

    def to_values(self, classes: NDArray[np.integer]) -> NDArray[np.unsignedinteger]:
        """Class indices (any shape) to the values of files."""
        values: NDArray[np.unsignedinteger] = self.values.astype(self.dtype)[classes]
        return values

    def to_classes(self, values: NDArray[Any], where: str) -> NDArray[np.uint16]:
        """Values of a label file (any shape) to class indices; `where` names the file in errors.

        Floating-point files are accepted where every value is a whole number. Raises LabelError on any other value.
        """
        found = np.unique(values)
        strangers = [value for value in found.tolist() if value not in set(self.values.tolist())]
        if strangers:
            shown = ", ".join(f"{value:g}" for value in strangers[:8]) + (", ..." if len(strangers) > 8 else "")
            raise LabelError(
                f"{where}: holds the label value(s) {shown}, which the label table does not list "
                f"({', '.join(str(value) for value in self.values)}); correct the file or add them to `labels`"
            )
        lookup = np.zeros(int(self.values.max()) + 1, dtype=np.uint16)
        lookup[self.values] = np.arange(self.classes)
        classes: NDArray[np.uint16] = lookup[values if values.dtype.kind == "u" else values.astype(np.int64)]
        return classes

    def to_json(self) -> list[dict[str, Any]]:
        """As the bundle keeps it: a list of dictionaries that a person can edit."""
        return [
            {"value": label.value, "name": label.name, "colour": list(label.colour), **label.meaning.to_json()}
            for label in self.labels
        ]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any] | str]) -> LabelTable:
        """From what `to_json` gives; everything but the name may be missing, a bare name is enough.

        Missing values count up from 1, missing colours come from a fixed palette, missing codes from the offline
        terminology by name (a generic code where the name is unknown).
        """
        labels = []
        for number, row in enumerate(rows, start=1):
            entry: Mapping[str, Any] = {"name": row} if isinstance(row, str) else row
            unknown = set(entry) - {"value", "name", "colour", "category", "type", "modifier"}
            if "name" not in entry or unknown:
                raise LabelError(
                    f"row {number} of the label table needs a name and may have value, colour, category, type and "
                    f"modifier; it has {', '.join(sorted(entry)) or 'nothing'}"
                )
            name = str(entry["name"])
            meaning = Meaning.from_json(entry) if "type" in entry else look_up(name)
            colour = entry.get("colour", palette(number))
            if len(colour) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in colour):
                raise LabelError(f"label {name!r}: a colour is three whole numbers from 0 to 255, not {colour}")
            labels.append(Label(int(entry.get("value", number)), name, (colour[0], colour[1], colour[2]), meaning))
        return cls(tuple(labels))

    def generic(self) -> list[str]:
        """Names of the labels whose code is the generic one, so that it can be announced."""
        return [label.name for label in self.labels if label.meaning.is_generic]


def palette(number: int) -> tuple[int, int, int]:
    """A colour for the label of that number, from 1; neighbours differ strongly (golden-angle hues)."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + (number - 1) * 0.381966) % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def parse_ctbl(text: str, where: str) -> list[dict[str, Any]]:
    """Rows (value, name, colour) of a 3D Slicer colour table, `LabelValue Name R G B A`; the value 0 is left out."""
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        try:
            value, name, colour = int(fields[0]), fields[1].replace("_", " "), [int(float(x)) for x in fields[2:5]]
        except (IndexError, ValueError) as problem:
            raise LabelError(f"{where}: the line {line!r} is not `LabelValue Name R G B A`") from problem
        if value != 0:
            rows.append({"value": value, "name": name, "colour": colour})
    return rows


def format_ctbl(table: LabelTable) -> str:
    """A 3D Slicer colour table; blanks in names become underscores, which Slicer shows as blanks."""
    lines = ["# 3D Slicer colour table: LabelValue Name R G B A", "0 Background 0 0 0 0"]
    for label in table:
        red, green, blue = label.colour
        lines.append(f"{label.value} {'_'.join(label.name.split())} {red} {green} {blue} 255")
    return "\n".join(lines) + "\n"


__all__ = ["Code", "Label", "LabelTable", "Meaning", "format_ctbl", "palette", "parse_ctbl"]
