"""Masks that a person corrected, as 3D Slicer, ITK-SNAP, napari and DICOM viewers save them, on their scan's grid."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import FewscanError, GeometryError, LabelError, ScanError
from fewscan.labels import LabelTable, parse_ctbl
from fewscan.scans.dicom_files import is_dicom
from fewscan.scans.dicom_segments import read_dicom_segments
from fewscan.scans.labels import read_values
from fewscan.scans.names import format_of, stem_of
from fewscan.scans.place import place
from fewscan.scans.scan import Scan
from fewscan.scans.segments import Part, Segment, by_name, class_of
from fewscan.scans.slicer_segments import is_slicers, read_slicer_segments

WHOLE = 1e-3
"""How far a value of a floating-point mask may lie from a whole number: what a scaled file rounds."""

_SNAP_ROW = re.compile(r'\s*(\d+)\s+\d+\s+\d+\s+\d+\s+[\d.]+\s+\d+\s+\d+\s+"(.*)"\s*$')


def read_mask(
    path: Path, scan: Scan, table: LabelTable, merged: bool = False, unlabelled: float | None = None
) -> tuple[NDArray[np.int32], list[str]]:
    """A mask's class indices (i, j, k) on the grid of its scan, and what had to be decided, in words.

    Read are 3D Slicer's `.seg.nrrd` (cropped, reordered, several layers), DICOM SEG (binary, label map), and label
    maps in NIfTI (floating point too), NRRD, MetaImage, TIFF and PNG, with the label descriptions of ITK-SNAP or the
    colour table of 3D Slicer where one lies beside them. Segments find their label by name (case, blanks and
    underscores do not count), then by coded meaning, then by their value (see `class_of`). Nothing is resampled.

    Args:
        path: the file.
        scan: whose mask it is.
        table: the labels of the bundle.
        merged: everything that is marked is one class: the array holds numbers of objects instead, from 1, one for
            each segment or value; where they overlap, the later one counts.
        unlabelled: the value of voxels that nobody decided; they are -1.

    Raises:
        ScanError: the file is broken or holds no mask.
        GeometryError: its voxels do not lie on the scan's, or labelled ones beyond it.
        LabelError: a segment is none of the labels, or two labels overlap.
    """
    classes = np.zeros(scan.grid.shape, dtype=np.int32)
    notes: dict[str, None] = {}
    objects: dict[Segment, int] = {}
    empty = True
    for part in read_parts(path):
        frames = {part.grid.frame_of_reference, scan.grid.frame_of_reference} - {None}
        if len(frames) > 1:
            raise GeometryError(f"{path}: its FrameOfReferenceUID is not that of {scan.name}: it is of another scan")
        empty = False
        if part.mask.size == 1 and not part.mask.any():
            continue  # 3D Slicer saves segments that are all empty as one voxel somewhere
        mask, box = place(part.mask, part.grid, scan.grid, f"{path} (mask of {scan.name})")
        if not mask.any():
            continue  # an empty segment says nothing, whatever its name
        there = classes[box]
        if unlabelled is not None and part.segment.value == unlabelled and by_name(part.segment, table) is None:
            there[mask & (there == 0)] = -1
            continue
        if merged:
            there[mask] = objects.setdefault(part.segment, len(objects) + 1)
            continue
        index, how = class_of(part.segment, table, path)
        if how is not None:
            notes[how] = None
        overlap = mask & (there > 0) & (there != index)
        if overlap.any():
            other = table.labels[int(there[overlap][0]) - 1].name
            raise LabelError(
                f"{path}: {table.labels[index - 1].name!r} and {other!r} overlap in {int(overlap.sum())} voxels or "
                "more; a voxel has one label: correct one of them"
            )
        there[mask] = index
    if empty:
        raise ScanError(f"{path}: holds no segment")
    return classes, list(notes)


def read_parts(path: Path) -> Iterator[Part]:
    """The segments of a mask file, voxels and names as it has them. Raises ScanError where it cannot be read."""
    try:
        yield from _parts(path)
    except FewscanError:
        raise
    except Exception as problem:  # what a damaged file makes libraries raise; their text may quote it
        raise ScanError(f"{path}: cannot be read, the file may be damaged ({type(problem).__name__})") from None


def _parts(path: Path) -> Iterator[Part]:
    if format_of(path) in (None, "dicom") or is_dicom(path):
        yield from read_dicom_segments(path)
    elif format_of(path) == "seg" or (format_of(path) == "nrrd" and is_slicers(path)):
        yield from read_slicer_segments(path)
    else:
        yield from _values(path)


def is_mask_file(path: Path) -> bool:
    """Whether `read_mask` could read a file, by its suffix (or, without one, by its first bytes)."""
    if path.name.startswith(".") or path.name.endswith("_overlay.png"):
        return False
    return format_of(path) is not None or is_dicom(path)


def _values(path: Path) -> Iterator[Part]:
    values, grid = read_values(path)
    whole = np.rint(values) if values.dtype.kind == "f" else values
    off = float(np.abs(values - whole).max()) if values.dtype.kind == "f" else 0.0
    if off > WHOLE or whole.min() < 0:
        raise LabelError(
            f"{path}: holds values from {values.min():g} to {values.max():g}, up to {off:.3g} from a whole number; a "
            "mask holds the whole numbers of its labels: save the segmentation, not probabilities or the image"
        )
    names = _names_beside(path)
    for value in np.unique(whole).astype(np.int64).tolist():
        yield Part(Segment(names.get(value), value), (whole == value) & (value > 0), grid)


def _names_beside(path: Path) -> dict[int, str]:
    """Names of values: from 3D Slicer's `.ctbl` of the same stem, or from the one label file of ITK-SNAP beside it."""
    table = path.with_name(f"{stem_of(path)}.ctbl")
    if table.exists():
        rows = parse_ctbl(table.read_text(encoding="utf-8"), str(table))
        return {row["value"]: row["name"] for row in rows}
    files = [file for suffix in ("*.txt", "*.label") for file in sorted(path.parent.glob(suffix))]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    snaps = [text for text in texts if "ITK-SnAP Label Description File" in text[:1000]]
    if len(snaps) != 1:
        return {}
    rows_of_snap = [_SNAP_ROW.match(line) for line in snaps[0].splitlines()]
    return {int(row[1]): row[2] for row in rows_of_snap if row and row[1] != "0"}
