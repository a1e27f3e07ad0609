"""Given files become one scan, strictly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.arrays import Arrays, release, slabs
from fewscan.errors import FewscanError, GeometryError, ScanError
from fewscan.scans.dicom import find_series, open_series
from fewscan.scans.dicom_files import dicom_files
from fewscan.scans.microscopy import open_photo, open_tiff
from fewscan.scans.names import format_of, stem_of
from fewscan.scans.nifti import open_nifti
from fewscan.scans.nrrd import open_nrrd
from fewscan.scans.quiet import quietly
from fewscan.scans.scan import Scan


@dataclass(frozen=True)
class Channels:
    """What the channels of a bundle are called and where they lie.

    `suffixes` end the stems of files, one file per channel; empty where one file holds all channels.
    """

    names: tuple[str, ...]
    suffixes: tuple[str, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any] | str] | None) -> Channels | None:
        """From a bundle's `channels`: rows with `name` and either `suffix` or `index`, or bare names.

        Raises ScanError where some rows have a suffix and others none, or indices do not count 0, 1, 2, ...
        """
        if not rows:
            return None
        entries: list[Mapping[str, Any]] = [{"name": row} if isinstance(row, str) else row for row in rows]
        names = tuple(str(entry["name"]) for entry in entries)
        suffixes = tuple(str(entry["suffix"]) for entry in entries if entry.get("suffix"))
        if suffixes and len(set(suffixes)) != len(entries):
            raise ScanError(f"channels {', '.join(names)}: give each a suffix of its own, or none a suffix")
        indices = [int(entry.get("index", number)) for number, entry in enumerate(entries)]
        if not suffixes and indices != list(range(len(entries))):
            raise ScanError(f"channels {', '.join(names)}: list them in the order of the file, index 0, 1, 2, ...")
        return cls(names, suffixes)

    def suffix_in(self, stem: str) -> str | None:
        """The longest suffix that ends the stem; None where none does."""
        return max((suffix for suffix in self.suffixes if stem.endswith(suffix)), key=len, default=None)


def open_scan(
    files: Sequence[Path], channels: Sequence[Mapping[str, Any] | str] | None = None, name: str | None = None
) -> Scan:
    """The one scan that these files are: one file, one file per channel, a DICOM folder, or the slices of a series.

    `channels` as a bundle has them (rows of `name` with `suffix` or `index`; or names). Raises ScanError where the
    files are no single scan.
    """
    paths = [Path(file) for file in files]
    missing = [path for path in paths if not path.exists()]
    if not paths or missing:
        raise ScanError(f"{missing[0]}: no such file or folder" if missing else "no file was given")
    wanted = Channels.of(channels)
    called = name if name is not None else stem_of(paths[0])
    if paths[0].is_dir() or format_of(paths[0]) in (None, "dicom"):
        folder = paths[0] if paths[0].is_dir() else paths[0].parent
        scan = _open_dicom(paths, name if name is not None else folder.resolve().name)
        if wanted and len(wanted.names) > 1:
            raise ScanError(f"{paths[0]}: a DICOM series holds 1 channel, where {len(wanted.names)} are expected")
        return replace(scan, channels=wanted.names) if wanted else scan
    if len(paths) > 1:
        return open_channels(paths, called, wanted.names if wanted else tuple(stem_of(path) for path in paths))
    return open_file(paths[0], called, wanted.names if wanted else None)


def open_file(path: Path, name: str, channels: Sequence[str] | None = None, label: bool = False) -> Scan:
    """The scan in one file that is no DICOM; with `label` read as label values (see `open_photo`).

    Raises ScanError where the file is broken in any way, or no scan.
    """
    try:
        with quietly():
            return _open_by_format(path, name, channels, label)
    except FewscanError:
        raise
    except Exception as problem:  # what a damaged file makes libraries raise; their text may quote it
        raise ScanError(f"{path}: cannot be read, the file may be damaged ({type(problem).__name__})") from None


def _open_by_format(path: Path, name: str, channels: Sequence[str] | None, label: bool) -> Scan:
    match format_of(path):
        case "nifti":
            return open_nifti(path, name, channels or ("image",))
        case "nrrd":
            return open_nrrd(path, name, channels or ("image",), label)
        case "png":
            return open_photo(path, name, channels, label)
        case "tiff":
            return open_tiff(path, name, channels, label)
        case "seg":
            return open_nrrd(path, name, ("label",), label)
    raise ScanError(f"{path}: is no format that is read (NIfTI, NRRD, MetaImage, DICOM, PNG, JPEG, BMP, TIFF)")


def open_channels(files: Sequence[Path], name: str, channels: Sequence[str]) -> Scan:
    """One scan from one single-channel file per channel. Raises GeometryError where their grids differ."""
    if len(files) != len(channels):
        raise ScanError(f"{name}: {len(files)} files for {len(channels)} channels: {', '.join(channels)}")
    parts = [open_file(path, name, (channel,)) for path, channel in zip(files, channels, strict=True)]
    for part in parts:
        if len(part.channels) > 1:
            raise ScanError(f"{part.files[0]}: holds {len(part.channels)} channels; give one file per channel")
        difference = parts[0].grid.differs_from(part.grid)
        if difference:
            raise GeometryError(
                f"{part.files[0]}: is not on the grid of {parts[0].files[0].name}: {difference}; resample one of them"
            )
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    companions = tuple(file for part in parts for file in part.companions)
    return replace(
        parts[0], files=tuple(files), channels=tuple(channels), notes=notes, companions=companions, reader=read_channels
    )


def read_channels(scan: Scan, empty: Arrays) -> NDArray[Any]:
    """The voxels (channel, i, j, k) of a scan that `open_channels` gave."""
    named = zip(scan.files, scan.channels, strict=True)
    parts = [open_file(path, scan.name, (channel,)).read(empty)[0] for path, channel in named]
    dtype = np.result_type(*(part.dtype for part in parts))
    data = empty((len(parts), *scan.grid.shape[::-1]), dtype).transpose(0, 3, 2, 1)
    for channel, part in zip(data, parts, strict=True):
        for box, values in slabs(part, axis=2):
            channel[box] = values
            release(data)
    return data


def _open_dicom(paths: list[Path], name: str) -> Scan:
    if not paths[0].is_dir():
        return open_series(paths, name)
    if len(paths) > 1:
        raise ScanError(f"{paths[0]}: {len(paths)} folders, where the folder of one DICOM series is expected")
    inside = [path for path in sorted(paths[0].rglob("*")) if path.is_file() or not path.exists()]  # links into nowhere
    files = dicom_files(path for path in inside if not path.name.startswith("."))
    if not files:
        raise ScanError(f"{paths[0]}: the folder holds no DICOM file")
    scans, skipped = find_series(files, paths[0])
    failed = [item for item in skipped if item.failed]
    if len(scans) != 1 or failed:
        reason = failed[0].reason if failed else f"holds {len(scans)} volumes; give the files of one"
        reason = reason.removeprefix(f"{paths[0]}: ")
        raise ScanError(f"{paths[0]}: is no single scan: {reason}")
    notes = (*scans[0].notes, f"{len(skipped)} other file(s) left out") if skipped else scans[0].notes
    return replace(scans[0], name=name, notes=notes)
