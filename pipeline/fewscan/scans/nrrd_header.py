"""What an NRRD or MetaImage header promises, checked before ITK opens the file.

ITK allocates what a header says, follows the names of data files anywhere, and quotes header lines in its errors, for
which it has a kilobyte: a longer line ends the process (SimpleITK 2.5, any field but `content`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from fewscan.errors import GeometryError, ScanError
from fewscan.scans.sizes import check_holds

_MOST = 1 << 24
"""Bytes of the longest header."""
_MOST_FILES = 1 << 16
_LONGEST = 700
"""Characters of a line that ITK may quote."""
_LONGEST_NAME = 200
"""Characters of a MetaImage's Name, for which ITK has 255: a longer one ends the process."""
_MOST_AXES = 16
_BYTES = {
    1: "signed char, int8, int8_t, uchar, unsigned char, uint8, uint8_t, MET_CHAR, MET_UCHAR",
    2: "short, short int, signed short, signed short int, int16, int16_t, ushort, unsigned short, unsigned short int, "
    "uint16, uint16_t, MET_SHORT, MET_USHORT",
    4: "int, signed int, int32, int32_t, uint, unsigned int, uint32, uint32_t, float, MET_INT, MET_UINT, MET_FLOAT, "
    "MET_LONG, MET_ULONG",
    8: "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t, ulonglong, "
    "unsigned long long, unsigned long long int, uint64, uint64_t, double, MET_LONG_LONG, MET_ULONG_LONG, MET_DOUBLE",
}
_SIZE = {name.lower(): size for size, names in _BYTES.items() for name in names.split(", ")}
_ENCODINGS = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "txt": "text", "text": "text", "ascii": "text", "hex": "hex",
}  # fmt: skip


_MM = {"", "???", "none", "pixel", "pixels", "mm", "millimeter", "millimeters", "millimetre", "millimetres"}
"""Units that are mm, or say nothing."""
_ALONG_SPACE = {"domain", "space", "???", "none"}
"""Kinds of axes along which positions are counted; others are of time, colours and the like."""


@dataclass(frozen=True)
class _Header:
    numbers: int
    """Numbers in all voxels."""
    itemsize: int
    encoding: str
    data: tuple[str, ...]
    """Names of the files that hold the voxels; empty where they follow the header."""
    end: int
    """The first byte behind the header."""


def check_header(path: Path) -> tuple[str, tuple[Path, ...]]:
    """The name of ITK's reader for the file, and the files beside it that hold its voxels; none where it holds them.

    Raises ScanError where the header is broken, needs more than its data hold, or names data beyond its folder.
    """
    with path.open("rb") as file:
        start = file.read(_MOST)
    is_nrrd = start[:4] == b"NRRD"
    header = _nrrd(path, start) if is_nrrd else _meta(path, start)
    for name in header.data:
        _check_inside(path, name)
    beside = tuple(path.parent / name for name in header.data)
    files = beside or (path,)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ScanError(f"{path}: {len(missing)} of the files that it names for its voxels are missing; copy them here")
    stored = sum(file.stat().st_size for file in files) - (0 if header.data else header.end)
    least = {"text": 1, "hex": 2 * header.itemsize}.get(header.encoding, header.itemsize)
    check_holds(path, header.numbers * least, stored, header.encoding == "gzip")
    return "NrrdImageIO" if is_nrrd else "MetaImageIO", beside


def _nrrd(path: Path, start: bytes) -> _Header:
    blank = re.search(rb"\r?\n\r?\n", start)
    lines = start[: blank.start() if blank else len(start)].decode("latin-1").splitlines()
    fields: dict[str, str] = {}
    listed: list[str] = []
    for number, line in enumerate(lines[1:], start=2):
        if line.startswith("#") or re.match(r"[^:]*:=", line):
            continue  # a comment, or a key and its value, which say nothing of the voxels
        name, _, value = line.partition(":")
        key = name.strip().lower().replace(" ", "")
        if len(line) > _LONGEST and key != "content":
            raise ScanError(
                f"{path}: line {number} of the header has {len(line)} characters, more than any field needs"
            )
        if key in fields:
            raise ScanError(f"{path}: line {number} of the header says again what a line before it said")
        fields[key] = value.strip()
        if key == "datafile" and value.split()[:1] == ["LIST"]:
            listed = _list(path, lines[number:])
            break
    try:
        sizes = [int(n) for n in fields["sizes"].split()]
        dimension, type_name, encoding = int(fields["dimension"]), fields["type"], fields["encoding"].lower()
    except (KeyError, ValueError):
        raise ScanError(f"{path}: the header lacks type, dimension, sizes or encoding, or has letters there") from None
    _check_units(path, fields)
    if len(sizes) != dimension:
        raise ScanError(f"{path}: the header says {dimension} dimensions, but {len(sizes)} sizes")
    data = tuple(listed) or _named(path, fields.get("datafile", "LOCAL"))
    if blank is None and not data:
        raise ScanError(f"{path}: is cut short: the header has no end")
    return _checked(path, sizes, type_name, encoding, data, blank.end() if blank else len(start))


def _check_units(path: Path, fields: dict[str, str]) -> None:
    """Refuse positions in other units than mm: of the space, or axis by axis where there is none."""
    said = re.findall('"([^"]*)"', fields.get("units", ""))
    kinds = [*fields.get("kinds", "").lower().split(), *["???"] * len(said)]
    along = [unit for unit, kind in zip(said, kinds, strict=False) if kind in _ALONG_SPACE][:3]  # a fourth: channels
    for field, stated in (("space units", re.findall('"([^"]*)"', fields.get("spaceunits", ""))), ("units", along)):
        units = {unit.strip().lower() for unit in stated} - _MM
        if units:
            raise GeometryError(
                f"{path}: the header gives positions in {' and '.join(sorted(units))} ({field}), which readers take "
                f"for mm; save it in mm"
            )


def _meta(path: Path, start: bytes) -> _Header:
    fields: dict[str, str] = {}
    end, data = 0, None
    lines = start.splitlines(keepends=True)
    for line in lines:
        end += len(line)
        name, *value = re.split("[=:]", line.decode("latin-1"), maxsplit=1)
        key = name.strip().lower()
        if not value or len(name) > 80 or len(line) > _LONGEST:
            break
        if key in fields:
            raise ScanError(f"{path}: line {len(fields) + 1} of the header says again what a line before it said")
        fields[key] = value[0].strip()
        if key == "name" and len(fields[key]) > _LONGEST_NAME:
            raise ScanError(f"{path}: its Name has {len(fields[key])} characters; {_LONGEST_NAME} are read")
        if key == "elementdatafile":
            data = fields[key]
            break
    try:
        sizes = [int(n) for n in re.split(r"[\s,]+", fields["dimsize"])]
        dimension, type_name = int(fields["ndims"]), fields["elementtype"]
        channels = int(fields.get("elementnumberofchannels", 1))
    except (KeyError, ValueError):
        raise ScanError(f"{path}: is no NRRD or MetaImage, or its NDims, DimSize or ElementType are broken") from None
    if data is None or len(sizes) != dimension:
        raise ScanError(f"{path}: the header has no ElementDataFile, or {dimension} dimensions but {len(sizes)} sizes")
    compressed = fields.get("compresseddata", "False").lower() in ("true", "1")
    binary = fields.get("binarydata", "True").lower() in ("true", "1")
    encoding = "gzip" if compressed else "raw" if binary else "text"
    if data.split()[:1] == ["LIST"]:
        names = tuple(_list(path, start[end:].decode("latin-1").splitlines()))
    else:
        names = _named(path, data)
    return _checked(path, [*sizes, channels], type_name, encoding, names, end)


def _list(path: Path, lines: list[str]) -> list[str]:
    names = [name.strip() for name in lines if name.strip()]
    if not names or len(names) > _MOST_FILES or max(map(len, names)) > _LONGEST:
        raise ScanError(f"{path}: the list of its data files is empty, or has lines that are no names")
    return names


def _checked(path: Path, sizes: list[int], kind: str, encoding: str, data: tuple[str, ...], end: int) -> _Header:
    if not 0 < len(sizes) <= _MOST_AXES or min(sizes) < 1:
        raise ScanError(f"{path}: the header says {' x '.join(str(n) for n in sizes)} voxels")
    if kind.lower() not in _SIZE:
        raise ScanError(f"{path}: the type of its numbers is not known; save it as short, float or the like")
    if encoding not in _ENCODINGS:
        raise ScanError(f"{path}: its encoding is not read; save it as raw or gzip")
    return _Header(math.prod(sizes), _SIZE[kind.lower()], _ENCODINGS[encoding], data, end)


def _named(path: Path, value: str) -> tuple[str, ...]:
    """The data files that a name, or a pattern with first, last and step, means; none where they follow the header."""
    if value.upper() in ("LOCAL", ""):
        if not value:
            raise ScanError(f"{path}: the header names no file of its voxels")
        return ()
    if "%" not in value:
        return (value,)
    found = re.fullmatch(r"([^%]*%0?\d{0,2}d[^%]*?)\s+(-?\d+)\s+(-?\d+)\s+(-?\d+)(?:\s+\d+)?", value)
    if found is None or int(found[4]) == 0:
        raise ScanError(f"{path}: the pattern of its data files is not read; it has to be as `slice%03d.raw 1 9 1`")
    first, last, step = (int(found[n]) for n in (2, 3, 4))
    numbers = range(first, last + (1 if step > 0 else -1), step)
    if not 1 <= len(numbers) <= _MOST_FILES:
        raise ScanError(f"{path}: the pattern of its data files gives {len(numbers)} files")
    return tuple(found[1] % number for number in numbers)


def _check_inside(path: Path, name: str) -> None:
    """Refuse data beyond the header's folder: a file says nothing of what else there is to read on a machine."""
    for kind in (PurePosixPath, PureWindowsPath):
        place = kind(name)
        if place.is_absolute() or place.anchor or ".." in place.parts:
            raise ScanError(
                f"{path}: its voxels lie in a file outside its folder, which is not read; move that file beside the "
                "header and name it there without folders"
            )
