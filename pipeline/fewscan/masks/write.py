"""One way out for every mask: write under a temporary name, read back, compare, then rename."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.arrays import slabs
from fewscan.errors import FewscanError, FormatError
from fewscan.labels import LabelTable, format_ctbl
from fewscan.scans.scan import Scan

FORMATS: Mapping[str, str] = {
    "nifti": ".nii.gz",
    "dicom-seg": ".dcm",
    "dicom-seg-labelmap": ".dcm",
    "seg-nrrd": ".seg.nrrd",
    "png": ".png",
    "tiff": ".tif",
}
"""The suffix of each format; a mask's name is its stem and this."""

_FILES = {
    "nifti": "nifti",
    "dicom-seg": "dicom_seg.binary",
    "dicom-seg-labelmap": "dicom_seg.labelmap",
    "seg-nrrd": "seg_nrrd",
    "png": "image",
    "tiff": "image",
}
_DICOM = ("dicom-seg", "dicom-seg-labelmap")
_SAME_AS_SOURCE = {"nifti": "nifti", "dicom": "dicom-seg", "nrrd": "seg-nrrd", "png": "png", "tiff": "tiff"}


def default_format(scan: Scan) -> str:
    """The format that follows the scan's own; nifti for a DICOM series that has no FrameOfReferenceUID."""
    if scan.format == "dicom" and scan.grid.frame_of_reference is None:
        return "nifti"
    return _SAME_AS_SOURCE[scan.format]


def check_format(format: str, scan: Scan) -> None:
    """Raises FormatError, with the way out, where masks of this scan cannot be written in this format."""
    if format not in FORMATS:
        raise FormatError(f"{format!r} is no mask format; choose one of {', '.join(FORMATS)}")
    if format in _DICOM and scan.format != "dicom":
        raise FormatError(
            f"{scan.name}: a DICOM-SEG refers to the DICOM series it was made from, and this scan is "
            f"{scan.format}; choose nifti or seg-nrrd"
        )
    if format in _DICOM and scan.grid.frame_of_reference is None:
        raise FormatError(
            f"{scan.name}: the series has no FrameOfReferenceUID, so a DICOM-SEG could not be placed; "
            f"choose nifti or seg-nrrd"
        )
    if format in ("png", "tiff") and scan.format not in ("png", "tiff"):
        raise FormatError(
            f"{scan.name}: {format} holds neither orientation nor position, which this {scan.format} scan has; "
            f"choose nifti or seg-nrrd"
        )
    if format == "png" and scan.grid.shape[2] > 1:
        raise FormatError(
            f"{scan.name}: png holds one slice, and this scan has {scan.grid.shape[2]}; choose tiff or nifti"
        )


def write_mask(
    values: NDArray[Any],
    scan: Scan,
    table: LabelTable,
    stem: Path,
    format: str,
    provenance: Mapping[str, str] | None = None,
    reproducible: bool = False,
) -> tuple[Path, ...]:
    """Write the mask of a scan and give the paths of the files, the mask first.

    `values` (i, j, k) holds label values (`table.values`, whole numbers) on the scan's grid, in its own axis order. Of
    the type `table.dtype`, also as a memory map, it is not copied; NIfTI is written quickest from Fortran order.
    The mask is `stem` + `FORMATS[format]`; a NIfTI gets a 3D Slicer colour table `stem` + `.ctbl` beside it, which
    keeps names and colours. `provenance` (what made the mask: bundle, model_sha256, version, ...) goes into formats
    that have a place for it.
    `reproducible` takes a DICOM-SEG's UIDs from what it holds and its times from the source, so that the same mask of
    the same source with the same provenance is the same file; other formats hold neither.
    A final name appears only after the file was read back and holds these values on this grid; otherwise nothing
    stays, and FormatError, LabelError or OSError is raised. Files of the same names are replaced.
    """
    check_format(format, scan)
    if values.shape != scan.grid.shape:
        raise FormatError(
            f"{scan.name}: the mask has the shape {values.shape}, the scan {scan.grid.shape}; "
            f"bring the mask back to the scan's grid first"
        )
    _check_values(values, table, str(stem))
    values = values.astype(table.dtype, copy=False)
    module = import_module(f"fewscan.masks.{_FILES[format]}")
    mask, colours = Path(f"{stem}{FORMATS[format]}"), Path(f"{stem}.ctbl")
    mask.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".partial-", dir=mask.parent, ignore_cleanup_errors=True) as folder:
        written = [Path(folder) / mask.name]  # in a hidden folder on the same disk, so that renaming is atomic
        try:
            named = {"reproducible": True} if reproducible and format in _DICOM else {}
            module.write(written[0], values, scan, table, provenance or {}, **named)
            module.check(written[0], values, scan, table)
        except (FewscanError, OSError):
            raise
        except Exception as problem:
            raise FormatError(
                f"{mask.name}: the {format} writer failed ({type(problem).__name__}); "
                f"choose another format, or report it with the scan's header"
            ) from problem
        if format == "nifti":
            written.append(Path(folder) / colours.name)
            written[1].write_text(format_ctbl(table), encoding="utf-8", newline="\n")
        for path in written:
            _to_disk(path)
        for path in reversed(written):  # the mask comes last: its name says that all is there
            path.replace(mask.parent / path.name)
    return tuple(mask.parent / path.name for path in written)


def _check_values(values: NDArray[Any], table: LabelTable, where: str) -> None:
    """Raise LabelError where a value is none of the table's."""
    allowed = np.zeros(1 << 16, dtype=bool)
    allowed[table.values] = True
    for _, slab in slabs(values):
        small = slab.dtype.kind == "u" and slab.itemsize <= 2
        if not (small and (allowed[: int(slab.max()) + 1].all() or allowed[slab].all())):
            table.to_classes(slab, where)


def _to_disk(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
