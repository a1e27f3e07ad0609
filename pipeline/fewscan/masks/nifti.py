"""NIfTI masks, in the very geometry of the scan."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from fewscan.arrays import slabs
from fewscan.errors import FormatError
from fewscan.grid import LPS_FROM_RAS, Affine, Grid
from fewscan.labels import LabelTable
from fewscan.masks.slabs import equal, gzip_stream, in_file_order
from fewscan.scans.nifti import read_into
from fewscan.scans.scan import Scan

_GEOMETRY = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_ROWS = ("srow_x", "srow_y", "srow_z")
_ITK_VOXELS = 1 << 26
"""Of larger masks ITK reads the header alone, for it holds a volume whole."""
_ITK_COSINE = 5e-5
"""Between axes: ITK reads no s-form that is sheared by 1e-4 or more, in a scan neither."""
_APART = 1e-3
"""Voxels that a header may place the mask beside its scan."""


def write(path: Path, values: NDArray[Any], scan: Scan, table: LabelTable, provenance: Mapping[str, str]) -> None:
    """Write `values` (i, j, k) as .nii.gz, slab by slab; equal input gives equal bytes on one kind of processor.

    NIfTI-1; NIfTI-2 where an axis is too long for that, or its affine, of single precision, too coarse.
    """
    header = _header(nibabel.Nifti1Image if max(scan.grid.shape) <= 32767 else nibabel.Nifti2Image, values, scan)
    if _apart(header.get_best_affine(), scan):
        header = _header(nibabel.Nifti2Image, values, scan)
    with path.open("wb") as file, gzip_stream(file) as stream:
        header.write_to(stream)
        for _, slab in slabs(values, axis=2):
            stream.write(in_file_order(slab))


def _header(kind: type[Any], values: NDArray[Any], scan: Scan) -> Any:
    """The header of a mask: a NIfTI scan's own geometry, or the grid of any other."""
    source = _source_header(scan)
    affine = None if source is not None else scan.grid.affine
    header = kind(values, affine).header
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
    return header


def check(path: Path, values: NDArray[Any], scan: Scan, table: LabelTable) -> None:
    """Read back, slab by slab; FormatError where the file holds anything else.

    The header is read by nibabel and the voxels are inflated by zlib, as most programs do. NIfTI-1 with orthogonal
    axes is read by ITK too, as 3D Slicer does: its geometry, and up to 64 million voxels their values.
    """
    image = nibabel.load(path)
    proxy = image.dataobj
    source = _source_header(scan)
    stored_as_is = proxy.dtype == table.dtype and (proxy.slope, proxy.inter) == (1, 0)
    if not (stored_as_is and proxy.shape == values.shape and _inflates_to(values, path, proxy.offset)):
        raise FormatError(f"{path.name}: nibabel reads other values than were written")
    difference = _apart(image.affine, scan)
    if difference:
        raise FormatError(f"{path.name}: nibabel reads another grid than the scan's: {difference}")
    directions = scan.grid.directions
    upright = np.abs(directions.T @ directions - np.eye(3)).max() < _ITK_COSINE
    if upright and not isinstance(image, nibabel.Nifti2Image):
        _check_with_itk(path, values, _affine_of_itk(scan), placed=source is None or _is_placed(source))


def _affine(scan: Scan) -> Affine:
    """As the scan's own header says it."""
    source = _source_header(scan)
    affine: Affine = scan.grid.affine if source is None else source.get_best_affine()
    return affine


def _affine_of_itk(scan: Scan) -> Affine:
    """As ITK reads the scan: with the axes of the s-form and the sizes of pixdim, which may be rounded."""
    source, affine = _source_header(scan), _affine(scan).copy()
    if source is not None:
        affine[:3, :3] *= np.abs(source["pixdim"][1:4]) / np.linalg.norm(affine[:3, :3], axis=0)
    return affine


def _apart(affine: Affine, scan: Scan) -> str | None:
    """In words, how a mask's affine places it beside its scan."""
    return Grid(scan.grid.shape, affine).differs_from(Grid(scan.grid.shape, _affine(scan)), _APART)


def _inflates_to(values: NDArray[Any], path: Path, offset: int) -> bool:
    """Whether the file holds exactly these values from that byte on."""
    try:
        with gzip.open(path) as file:
            file.seek(offset)
            for _, slab in slabs(values, axis=2):
                stored = np.empty(slab.shape[::-1], values.dtype)
                read_into(stored, file)
                if not np.array_equal(stored.T, slab):
                    return False
            return not file.read(1)  # and the check sum is right
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return False


def _check_with_itk(path: Path, values: NDArray[Any], affine: Affine, placed: bool) -> None:
    import itk

    reader = itk.ImageFileReader[itk.Image[itk.UC if values.itemsize == 1 else itk.US, 3]].New(FileName=str(path))
    reader.UpdateOutputInformation()
    image = reader.GetOutput()
    shape = tuple(image.GetLargestPossibleRegion().GetSize())
    if shape == values.shape and values.size <= _ITK_VOXELS:
        reader.Update()
        shape = () if not equal(itk.array_view_from_image(image).T, values) else shape
    if shape != values.shape:
        raise FormatError(f"{path.name}: ITK, and so 3D Slicer, reads other values than were written")
    seen = np.eye(4)
    seen[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    seen[:3, 3] = image.GetOrigin()
    difference = Grid(values.shape, LPS_FROM_RAS @ seen).differs_from(Grid(values.shape, affine))
    if placed and difference:
        raise FormatError(
            f"{path.name}: ITK, and so 3D Slicer, places the mask elsewhere than the scan: {difference}; "
            f"does the scan's header hold two different orientations (qform and sform)?"
        )


def _source_header(scan: Scan) -> Any:
    """The header of a NIfTI scan, whose geometry is taken over to the last bit; None for other formats."""
    return nibabel.load(scan.files[0]).header if scan.format == "nifti" else None


def _is_placed(header: Any) -> bool:
    return bool(header["qform_code"] > 0 or header["sform_code"] > 0)
