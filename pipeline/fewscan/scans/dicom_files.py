"""Which files are DICOM, or were before they were damaged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fewscan.scans.names import format_of

_BARE = (b"\x02\x00\x00\x00UL\x04\x00", *(bytes((8, 0, n, 0)) for n in (0x00, 0x01, 0x05, 0x08, 0x12, 0x16)))
"""How files without a preamble begin: with the meta information, or with group 8, little endian."""


def dicom_files(paths: Iterable[Path]) -> list[Path]:
    """The files that are DICOM by their mark or suffix, and those without a known suffix that may have been.

    The latter lost their preamble, cannot be read, as links into nowhere, or hold nothing, as a copy that was
    interrupted: a slice may be missing with them. Those two are named like DICOM files beside them (see `_named`).
    """
    known = {path: format_of(path) for path in paths}
    marked = {path for path in known if is_dicom(path)}
    alike = {_named(path) for path in marked if known[path] is None}
    return [
        path
        for path, format in known.items()
        if path in marked
        or format == "dicom"
        or (format is None and (lacks_preamble(path) or _is_lost(path, _named(path) in alike)))
    ]


def _named(path: Path) -> tuple[Path, str]:
    """The folder, and the suffix where it is a word (Thumbs.db), not a number as in MR.1.2.840."""
    word = path.suffix[1:].lower()
    return path.parent, word if word.isalpha() else ""


def _is_lost(path: Path, alike: bool) -> bool:
    """Whether a file cannot be read, or holds nothing but zeros where DICOM begins; `alike`: named like DICOM files."""
    try:
        with path.open("rb") as file:
            return alike and not file.read(1024).strip(b"\0")
    except OSError:
        return alike or not _named(path)[1]


def is_dicom(path: Path) -> bool:
    """Whether the file carries DICOM's mark, DICM at byte 128."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def lacks_preamble(path: Path) -> bool:
    """Whether the file begins as DICOM does behind its first 132 bytes, which were lost or never written."""
    try:
        with path.open("rb") as file:
            return file.read(12).startswith(_BARE)
    except OSError:
        return False
