"""NRRD and MetaImage scans (`.nrrd`, `.nhdr`, `.mha`, `.mhd`), through SimpleITK."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.arrays import IN_MEMORY_ONLY, Arrays, check_memory
from fewscan.errors import GeometryError, ScanError
from fewscan.grid import LPS_FROM_RAS, Grid
from fewscan.scans.nrrd_header import check_header
from fewscan.scans.scan import Scan

_UNSAID = (
    "the header does not say which anatomical directions its axes have (no space, or one that ITK does not turn): "
    "left, posterior, superior are assumed"
)


def open_nrrd(path: Path, name: str, channels: Sequence[str] = ("image",), label: bool = False) -> Scan:
    """The scan in an NRRD or MetaImage file; only the header is read.

    Several channels are the components of a voxel, or lie along the fourth axis. Raises ScanError where the file is
    broken, is a segmentation (unless `label`), or holds another number of channels.
    """
    kind, beside = check_header(path)
    reader = _reader(path, kind)
    if not label and any(key.startswith("Segmentation_") or key == "Segment0_ID" for key in reader.GetMetaDataKeys()):
        raise ScanError(f"{path}: is a segmentation of 3D Slicer, not a scan")
    size = tuple(int(n) for n in reader.GetSize())
    components = int(reader.GetNumberOfComponents())
    dimensions = int(reader.GetDimension())
    if dimensions > 4 or (dimensions == 4 and components > 1):
        raise ScanError(f"{path}: {dimensions}-D with {components} numbers a voxel; save 3-D files")
    volumes = components * (size[3] if dimensions == 4 else 1)
    if volumes != len(channels):
        raise ScanError(
            f"{path}: holds {volumes} volumes or numbers a voxel, where {len(channels)} channel(s) are expected: is it "
            f"a time series, or channels? Save the volume to segment as a 3-D file, or name the channels"
        )
    grid, notes = _grid(path, size, reader)
    assumed = (2,) if dimensions == 2 else ()
    return Scan(
        name, "nrrd", (path,), grid, tuple(channels), notes=notes, companions=beside, assumed=assumed, reader=read_nrrd
    )


def read_nrrd(scan: Scan, empty: Arrays = IN_MEMORY_ONLY) -> NDArray[Any]:
    """The voxels (channel, i, j, k) of a scan that `open_nrrd` gave; SimpleITK holds the whole in memory."""
    import SimpleITK

    check_memory(2 * math.prod(scan.grid.shape) * len(scan.channels))  # of 16 bits or more, or ITK's copy of 8
    image = itk_image(scan.files[0])
    data: NDArray[Any] = SimpleITK.GetArrayFromImage(image)
    if np.iscomplexobj(data):
        raise ScanError(f"{scan.files[0]}: holds complex numbers; save one real number a voxel")
    if image.GetNumberOfComponentsPerPixel() > 1:
        data = np.moveaxis(data, -1, 0)  # (c, k, j, i)
    return data.reshape((len(scan.channels), *scan.grid.shape[::-1])).transpose(0, 3, 2, 1)


def grid_from_itk(size: Sequence[int], spacing: Sequence[float], origin: Sequence[float], direction: Any) -> Grid:
    """The grid of an ITK image of 2 to 4 dimensions (LPS+); a fourth axis is left out, a missing third is 1 mm."""
    dimensions = len(size)
    steps = np.reshape(direction, (dimensions, dimensions)) * np.asarray(spacing)
    lps = np.eye(4)
    spatial = min(dimensions, 3)
    lps[:spatial, :spatial] = steps[:spatial, :spatial]
    lps[:spatial, 3] = np.asarray(origin)[:spatial]
    i, j, k = (*(int(n) for n in size), 1)[:3]
    return Grid((i, j, k), LPS_FROM_RAS @ lps)


def _grid(path: Path, size: tuple[int, ...], reader: Any) -> tuple[Grid, tuple[str, ...]]:
    try:
        grid = grid_from_itk(size, reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    except ValueError as problem:
        raise GeometryError(f"{path}: {problem}") from None
    if np.array_equal(grid.affine, LPS_FROM_RAS):
        return grid, ("the header gives no geometry: 1 mm voxels along left, posterior, superior are assumed",)
    return grid, () if _says_directions(reader) else (_UNSAID,)


def _says_directions(reader: Any) -> bool:
    """Whether axes run to left, posterior, superior by what the file says, not for want of it.

    ITK brings the spaces RAS and LAS of NRRD to LPS; axes of `3D-right-handed`, `scanner-xyz` or no space it leaves as
    they are. MetaImage has no other space.
    """
    if reader.GetImageIO() != "NrrdImageIO":
        return True
    space: str = reader.GetMetaData("NRRD_space") if reader.HasMetaDataKey("NRRD_space") else ""
    return space.startswith("left-posterior-superior")


def itk_reader(path: Path) -> Any:
    """SimpleITK's reader of a file, its header read. Raises ScanError where that is broken."""
    return _reader(path, check_header(path)[0])


def _reader(path: Path, kind: str) -> Any:
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # its warnings quote the header
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(kind)
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # its text quotes the header
        raise ScanError(f"{path}: its header cannot be read as NRRD or MetaImage; save it again") from None
    return reader


def itk_image(path: Path) -> Any:
    """SimpleITK's image in a file. Raises ScanError where the file is broken."""
    reader = itk_reader(path)
    try:
        return reader.Execute()
    except RuntimeError:
        raise ScanError(f"{path}: the file is cut short or damaged, ITK cannot read its voxels") from None
