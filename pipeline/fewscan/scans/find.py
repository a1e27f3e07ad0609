"""A folder becomes scans, and everything else is named with its reason."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from fewscan.errors import ScanError
from fewscan.scans.dicom import find_series
from fewscan.scans.dicom_files import dicom_files
from fewscan.scans.names import LABEL_FOLDERS, format_of, is_label_name, stem_of
from fewscan.scans.open import Channels, open_channels, open_file
from fewscan.scans.scan import Scan, Skipped
from fewscan.scans.walk import MARKER, walk

__all__ = ["MARKER", "Found", "find_scans", "refuse_equal_names"]

_CHANNEL = re.compile(r"_\d{4}")
"""What nnU-Net's file names end in."""


class Found(NamedTuple):
    """What a folder holds: scans by name, and what is no scan with the reason, by path."""

    scans: list[Scan]
    skipped: list[Skipped]


def find_scans(
    folder: Path,
    channels: Sequence[Mapping[str, Any] | str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    output: Path | None = None,
    resample_gaps: bool = False,
) -> Found:
    """The scans in a folder at any depth, or in one file; only headers are read.

    `channels` as a bundle has them: with suffixes, files are grouped by the rest of their name; files without the
    suffix of a single channel are taken too, but not nnU-Net's other channels (`x_0001` beside `x_0000`). `include` and
    `exclude` are patterns (`*`, `?`) on the path below the folder or on the file's name. `output` and other folders
    that hold results of fewscan are left out, and so are labels, by their names, unless `include` gives the
    file's full name or `folder` is the file itself. `resample_gaps`: whether slices that are missing in a DICOM series
    are interpolated between their neighbours; else such a series is refused. Raises ScanError where `folder` does not
    exist.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ScanError(f"{folder}: no such file or folder")
    wanted = Channels.of(channels)
    root = folder if folder.is_dir() else folder.parent
    skipped: list[Skipped] = []
    files = [folder] if folder.is_file() else _files(folder, output, skipped)
    reasons = {path: _left_out(path, root, include, exclude, chosen=path == folder) for path in files}
    dicoms = dicom_files(path for path in files if not reasons[path])
    known = set(dicoms)
    images: list[Path] = []
    for path, reason in reasons.items():
        if reason or (path not in known and format_of(path) is None):
            skipped.append(Skipped(path, reason or "not an image"))
        elif path not in known:
            images.append(path)
    scans = _open_images(images, root, wanted, skipped)
    scans += _open_dicoms(dicoms, root, wanted, skipped, resample_gaps)
    return Found(sorted(scans, key=lambda scan: (scan.name, scan.files)), sorted(skipped, key=lambda item: item.path))


def refuse_equal_names(scans: Sequence[Scan]) -> None:
    """Scans of one name would share their overlay and receipt, whatever the format of their masks."""
    owner: dict[str, Scan] = {}
    for scan in scans:
        other = owner.setdefault(scan.name.lower(), scan)  # Windows and macOS know no case
        if other is not scan:
            raise ScanError(
                f"{scan.files[0]} and {other.files[0]} would both be written to {scan.name}_seg; rename one of them, "
                "or choose with --include or --exclude"
            )


def _files(folder: Path, output: Path | None, skipped: list[Skipped]) -> list[Path]:
    """Files below a folder; folders that hold no scans are skipped whole."""

    def left_out(path: Path) -> Skipped | None:
        if output is not None and path.resolve() == Path(output).resolve():
            return Skipped(path, "output of fewscan")
        if path.name.lower().endswith(".zarr"):
            return Skipped(path, f"{path}: OME-Zarr is not read; save it as TIFF or NIfTI", failed=True)
        return Skipped(path, "a folder of labels, by its name") if path.name.lower() in LABEL_FOLDERS else None

    return sorted(path for _, files in walk(folder, skipped, left_out) for path in files)


def _left_out(
    path: Path, root: Path, include: Sequence[str], exclude: Sequence[str], chosen: bool = False
) -> str | None:
    """Why a file is no candidate; None where it is one. A file that the user chose himself is no label by its name."""
    if path.name.startswith("."):
        return "hidden"
    if path.name.endswith("_overlay.png"):
        return "a review picture of fewscan"
    below = path.relative_to(root).as_posix()
    if include and not _matches(below, path.name, include):
        return "not included"
    if _matches(below, path.name, exclude):
        return "excluded"
    chosen = chosen or path.name in include or below in include  # by its full name, not by a pattern
    if format_of(path) == "seg" or (not chosen and format_of(path) not in (None, "dicom") and is_label_name(path)):
        return "a label, by its name"
    return None


def _matches(below: str, name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(below, pattern) or fnmatch(name, pattern) for pattern in patterns)


def _open_images(images: list[Path], root: Path, wanted: Channels | None, skipped: list[Skipped]) -> list[Scan]:
    scans: list[Scan] = []
    for name, files, names in _cases(images, root, wanted, skipped):
        try:
            scan = open_channels(files, name, names or ()) if len(files) > 1 else open_file(files[0], name, names)
            scans.append(scan)
        except ScanError as problem:
            skipped.append(Skipped(files[0], str(problem), failed=True))
    return scans


def _cases(
    images: list[Path], root: Path, wanted: Channels | None, skipped: list[Skipped]
) -> list[tuple[str, list[Path], tuple[str, ...] | None]]:
    """(name, files, channel names) of each case; a case that lacks a channel is skipped."""
    if wanted is None or not wanted.suffixes:
        return [(_name(path, root), [path], wanted.names if wanted else None) for path in images]
    cases: dict[str, dict[str, Path]] = {}
    bare = {path.with_name(stem_of(path)) for path in images}
    for path in images:
        stem = stem_of(path)
        suffix = wanted.suffix_in(stem)
        if suffix is None and (len(wanted.suffixes) > 1 or _is_another_channel(path, wanted.suffixes[0], bare)):
            skipped.append(Skipped(path, f"none of the channels: {', '.join(wanted.suffixes)}"))
            continue
        base = _name(path, root)
        suffix = suffix or ""
        if suffix != stem:
            base = base.removesuffix(suffix)
        elif len(wanted.suffixes) > 1:  # a folder a case: `p1/T1`, `p1/FLAIR`
            base = base.removesuffix(suffix).rstrip("/") or root.resolve().name
        case = cases.setdefault(base, {})
        if suffix in case:
            reason = f"{path}: the case has this channel twice, also {case[suffix].name}"
            skipped.append(Skipped(path, reason, failed=True))
        case.setdefault(suffix, path)
    complete: list[tuple[str, list[Path], tuple[str, ...] | None]] = []
    for name, files in cases.items():
        missing = [s for s in wanted.suffixes if s not in files] if len(wanted.suffixes) > 1 else []
        if missing:
            reason = f"{name}: the channel(s) {', '.join(missing)} are missing of {len(wanted.names)}"
            skipped.append(Skipped(next(iter(files.values())), reason, failed=True))
        else:
            ordered = [files[s] for s in wanted.suffixes] if len(wanted.suffixes) > 1 else list(files.values())
            complete.append((name, ordered, wanted.names))
    return complete


def _is_another_channel(path: Path, suffix: str, bare: Collection[Path]) -> bool:
    """Whether a file is another numbered channel of a case (`x_0001`) whose wanted one (`x_0000`) is in `bare`."""
    stem = stem_of(path)
    numbered = all(_CHANNEL.fullmatch(end) for end in (stem[-5:], suffix))
    return numbered and path.with_name(stem[:-5] + suffix) in bare


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).with_name(stem_of(path)).as_posix()


def _open_dicoms(
    dicoms: list[Path], root: Path, wanted: Channels | None, skipped: list[Skipped], resample_gaps: bool
) -> list[Scan]:
    scans, left = find_series(dicoms, root, resample_gaps)
    skipped += left
    if wanted is None:
        return scans
    if len(wanted.names) == 1:
        return [replace(scan, channels=wanted.names) for scan in scans]
    reason = f"a DICOM series holds 1 channel, where {len(wanted.names)} are expected ({', '.join(wanted.names)})"
    skipped += [Skipped(scan.files[0].parent, f"{scan.name}: {reason}", failed=True) for scan in scans]
    return []
