"""NIfTI masks, in the very geometry of the scan."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from fewscan.errors import FormatError
from fewscan.grid import LPS_FROM_RAS, Affine, Grid
from fewscan.labels import LabelTable
from fewscan.scans.scan import Scan

_GEOMETRY = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_ROWS = ("srow_x", "srow_y", "srow_z")


def write(path: Path, values: NDArray[Any], scan: Scan, table: LabelTable, provenance: Mapping[str, str]) -> None:
    """Write `values` (i, j, k) as .nii.gz; equal input gives equal bytes."""
    source = _source_header(scan)
    affine = None if source is not None else scan.grid.affine
    kind = nibabel.Nifti2Image if max(scan.grid.shape) > 32767 else nibabel.Nifti1Image
    image = kind(values, affine)
    header = image.header
    if source is None:
        header.set_sform(affine, code="scanner")
        header.set_qform(affine, code="scanner", strip_shears=True)
        header.set_xyzt_units("mm")
        if not scan.grid.is_orthogonal:
            header["qform_code"] = 0  # a quaternion cannot say a shear
    else:
        for field in (*_GEOMETRY, *_ROWS):
            header[field] = source[field]
        header["pixdim"][:4] = source["pixdim"][:4]
        header["xyzt_units"] = int(source["xyzt_units"]) & 0x07  # the space unit; a mask has no time
    header.set_slope_inter(1, 0)
    with path.open("wb") as file, gzip.GzipFile("", "wb", 5, file, mtime=0) as stream:
        image.to_stream(stream)


def check(path: Path, values: NDArray[Any], scan: Scan, table: LabelTable) -> None:
    """Read back with nibabel and, where the axes are orthogonal, with ITK as 3D Slicer does; FormatError if unequal."""
    image = nibabel.load(path)
    source = _source_header(scan)
    expected = scan.grid.affine if source is None else source.get_best_affine()
    found = np.asanyarray(image.dataobj)
    if found.dtype != table.dtype or found.shape != values.shape or not np.array_equal(found, values):
        raise FormatError(f"{path.name}: nibabel reads other values than were written")
    difference = Grid(image.shape, image.affine).differs_from(Grid(values.shape, expected), tolerance=1e-3)
    if difference:
        raise FormatError(f"{path.name}: nibabel reads another grid than the scan's: {difference}")
    if scan.grid.is_orthogonal:
        _check_with_itk(path, values, expected, placed=source is None or _is_placed(source))


def _check_with_itk(path: Path, values: NDArray[Any], affine: Affine, placed: bool) -> None:
    import itk

    reader = itk.ImageFileReader[itk.Image[itk.US, 3]].New(FileName=str(path))
    reader.Update()
    image = reader.GetOutput()
    if not np.array_equal(itk.array_view_from_image(image).T, values):
        raise FormatError(f"{path.name}: ITK, and so 3D Slicer, reads other values than were written")
    seen = np.eye(4)
    seen[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    seen[:3, 3] = image.GetOrigin()
    difference = Grid(values.shape, LPS_FROM_RAS @ seen).differs_from(Grid(values.shape, affine))
    if placed and difference:
        raise FormatError(
            f"{path.name}: ITK, and so 3D Slicer, places the mask elsewhere than nibabel does: {difference}; "
            f"does the scan's header hold two different orientations (qform and sform)?"
        )


def _source_header(scan: Scan) -> Any:
    """The header of a NIfTI scan, whose geometry is taken over to the last bit; None for other formats."""
    return nibabel.load(scan.files[0]).header if scan.format == "nifti" else None


def _is_placed(header: Any) -> bool:
    return bool(header["qform_code"] > 0 or header["sform_code"] > 0)
