"""NIfTI scans, with the header's contradictions refused."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from fewscan.arrays import IN_MEMORY_ONLY, Arrays, release
from fewscan.errors import GeometryError, ScanError
from fewscan.grid import Affine, Grid
from fewscan.scans.scan import Scan
from fewscan.scans.sizes import BESIDE, check_holds

_PIECE = 1 << 22
"""Voxels that are inflated and scaled at a time."""
_DAMAGE: tuple[Any, ...] = (OSError, EOFError, ValueError, zlib.error, isal_zlib.error)


def open_nifti(path: Path, name: str, channels: Sequence[str] = ("image",)) -> Scan:
    """The scan in a `.nii` or `.nii.gz` file; only the header is read.

    The affine is the s-form, else the q-form, as nibabel chooses; a note says where pixdim is slightly off the s-form.
    Several channels lie along the fourth axis.
    Raises ScanError where the file is broken, is a time series, or holds another number of volumes than `channels`;
    GeometryError where s-form and q-form disagree, or the s-form and the voxel size.
    """
    image = _load(path)
    header = image.header
    shape = tuple(int(n) for n in header.get_data_shape())
    dtype = header.get_data_dtype()
    if dtype.names or dtype.kind not in "iuf":
        raise ScanError(f"{path}: holds {dtype} voxels; save one real number a voxel (one file or volume per channel)")
    volumes = _volumes(path, shape)
    if volumes != len(channels):
        raise ScanError(_wrong_count(path, volumes, len(channels), header.get_xyzt_units()[1]))
    if 0 in shape:
        raise ScanError(f"{path}: the header says {_times(shape)} voxels")
    _check_complete(path, image.dataobj)
    affine, notes = _affine(path, header, image.affine)
    grid = Grid(_spatial(shape), affine)
    return Scan(name, "nifti", (path,), grid, tuple(channels), notes=notes, reader=read_nifti)


def read_nifti(scan: Scan, empty: Arrays = IN_MEMORY_ONLY) -> NDArray[Any]:
    """The voxels (channel, i, j, k) of a scan that `open_nifti` gave; integers where the file has no scaling.

    They lie in the file's own order. What needs neither inflating nor scaling nor another byte order is mapped from the
    file. Raises ScanError where the file is cut short or damaged: the whole of it is checked.
    """
    path = scan.files[0]
    proxy = _load(path, "c" if empty.folder is None else "r").dataobj
    scaled, shape = _is_scaled(proxy), (*scan.grid.shape, len(scan.channels))
    mapped = not (scaled or _is_gzip(path)) and proxy.dtype.isnative
    data = None if mapped else empty(shape, np.float32 if scaled else proxy.dtype.newbyteorder("="), "F")
    try:
        if data is None:
            data = np.asanyarray(proxy.get_unscaled()).reshape(shape, order="F")
        else:
            _fill(data, path, proxy)
    except _DAMAGE as problem:
        raise ScanError(_damaged(path, problem)) from None
    return np.moveaxis(data, -1, 0)


def _fill(data: NDArray[Any], path: Path, proxy: Any) -> None:
    """The voxels of a file into `data`, an array in Fortran order, piece by piece, and the rest of the file checked.

    Real values in float32 are slope x stored + intercept in double precision, as nibabel computes them.
    """
    from nibabel.volumeutils import apply_read_scaling

    flat = data.T.reshape(-1)
    with igzip.open(path) if _is_gzip(path) else path.open("rb") as file:
        file.seek(proxy.offset)
        for first in range(0, flat.size, _PIECE):
            piece = flat[first : first + _PIECE]
            if _is_scaled(proxy):
                stored = np.empty(piece.shape, proxy.dtype)
                read_into(stored, file)
                with np.errstate(over="ignore"):  # Scan.read refuses what is not finite
                    piece[:] = apply_read_scaling(stored, np.float64(proxy.slope), np.float64(proxy.inter))
            else:
                read_into(piece, file)
                if not proxy.dtype.isnative:
                    piece.byteswap(inplace=True)
            release(data)
        behind = 0
        while _is_gzip(path) and (rest := file.read(1 << 20)):  # the check sum stands behind the last byte
            behind += len(rest)
            if behind > BESIDE:
                raise ValueError(f"more than {BESIDE} bytes follow the voxels")


def read_into(array: NDArray[Any], file: BufferedIOBase) -> None:
    """Fill a C-contiguous array with the next bytes of a file. Raises EOFError where there are too few."""
    rest = array.reshape(-1).view(np.uint8).data
    while rest:
        count = file.readinto(rest)
        if not count:
            raise EOFError(f"{len(rest)} bytes are missing")
        rest = rest[count:]


def _is_scaled(proxy: Any) -> bool:
    return (proxy.slope, proxy.inter) != (1, 0)


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _load(path: Path, mmap: str = "c") -> Any:
    import nibabel

    try:
        _check_start(path)
        image = nibabel.load(path, mmap=mmap)
    except (ScanError, MemoryError):
        raise
    except Exception as problem:  # of many kinds: of nibabel, of inflating, of what it reads in header extensions
        raise ScanError(f"{path}: is no NIfTI file ({_first_line(problem)})") from None
    if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a subclass
        raise ScanError(f"{path}: is no NIfTI file but {type(image).__name__}")
    return image


def _check_start(path: Path) -> None:
    """Refuse a header whose extensions, which nibabel reads whole, are larger than any are."""
    with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:  # igzip reads on, to where a file is cut
        start = file.read(176)
    for order in "<>":
        version = struct.unpack(f"{order}i", start[:4])[0] if len(start) == 176 else 0
        if version in (348, 540):
            at, kind = (108, "f") if version == 348 else (168, "q")
            (offset,) = struct.unpack_from(f"{order}{kind}", start, at)
            if not 0 <= offset <= BESIDE:
                raise ScanError(f"{path}: the header says that voxels begin at byte {offset:.6g}; save it again")


def _volumes(path: Path, shape: tuple[int, ...]) -> int:
    """How many volumes the axes behind the third hold; more than one such axis is refused."""
    if len(shape) < 2:
        raise ScanError(f"{path}: holds a line of {_times(shape)} voxels, no image")
    if any(n > 1 for n in shape[4:]):
        raise ScanError(f"{path}: {len(shape)}-D, {_times(shape)}; save the volumes to segment as 3-D files")
    return shape[3] if len(shape) > 3 else 1


def _spatial(shape: Sequence[int]) -> tuple[int, int, int]:
    return int(shape[0]), int(shape[1]), int(shape[2]) if len(shape) > 2 else 1


def _wrong_count(path: Path, volumes: int, wanted: int, time_unit: str) -> str:
    if volumes == 1:
        return f"{path}: holds 1 volume, where {wanted} channels are expected"
    if wanted == 1:
        hint = f" (the header's time unit is {time_unit})" if time_unit in ("sec", "msec", "usec") else ""
        return (
            f"{path}: 4-D with {volumes} volumes{hint}: is it a time series, or channels? Save the volume to segment "
            f"as a 3-D file, or name the channels"
        )
    return f"{path}: 4-D with {volumes} volumes, where {wanted} channels are expected; is it a time series?"


def _affine(path: Path, header: Any, affine: Affine) -> tuple[Affine, tuple[str, ...]]:
    """The affine that nibabel chose, and what has to be said about it."""
    unit = header.get_xyzt_units()[0]
    if unit in ("meter", "micron"):
        raise GeometryError(
            f"{path}: the header gives positions in {unit}s, which readers take for mm or convert as they like; "
            f"save it in mm"
        )
    if affine is None or not np.isfinite(affine).all() or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise GeometryError(f"{path}: the affine in the header is no geometry; set its s-form or q-form")
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform == 0 and qform == 0:
        return affine, (
            "the header gives no orientation (s-form and q-form codes are 0): voxel size and nibabel's default axes "
            "are taken",
        )
    if sform > 0 and qform > 0:
        difference = _difference(Grid(_spatial(header.get_data_shape()), header.get_sform()), header.get_qform())
        if difference:
            raise GeometryError(
                f"{path}: s-form (code {sform}) and q-form (code {qform}) disagree: {difference}. Viewers differ in "
                f"which one they take; set the code of the wrong one to 0 (nibabel: image.set_qform(None, 0))"
            )
    _check_voxel_size(path, header)
    if np.array_equal(affine, np.eye(4)):
        return affine, ("the affine in the header is exactly the identity: it may be a placeholder",)
    if has_other_pixdim(header):
        spacing, stated = (_sizes(sizes, 7) for sizes in _voxel_sizes(header))
        return affine, (
            f"the s-form says voxels of {spacing} mm, pixdim {stated} mm: the s-form is taken; ITK and 3D Slicer take "
            f"pixdim, for a NIfTI mask as for the scan",
        )
    return affine, ()


def has_other_pixdim(header: Any) -> bool:
    """Whether a corner of the scan lies elsewhere by pixdim, near as it is, than by the s-form, which has right angles.

    Elsewhere means half of what `Grid.differs_from` lets pass. A q-form has its size from pixdim.
    """
    grid = Grid(_spatial(header.get_data_shape()), header.get_best_affine())
    if int(header["qform_code"]) > 0 or not grid.is_orthogonal:
        return False
    spacing, stated = _voxel_sizes(header)
    moved = [(n - 1) * abs(a - b) for n, a, b in zip(grid.shape, spacing, stated, strict=True) if n > 1]
    return math.hypot(*moved) > 0.005 * min(spacing)


def _voxel_sizes(header: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Along i, j, k, in mm: of the affine, and of pixdim."""
    grid = Grid(_spatial(header.get_data_shape()), header.get_best_affine())
    return grid.spacing_mm, tuple(abs(float(size)) for size in header["pixdim"][1:4])


def _check_voxel_size(path: Path, header: Any) -> None:
    """Refuse an s-form of another voxel size than pixdim, which ITK takes, and so do 3D Slicer and ANTs.

    A q-form has its size from pixdim. The size along an axis of one voxel moves nothing, and of a sheared s-form pixdim
    may say the distance of the slices.
    """
    shape = _spatial(header.get_data_shape())
    grid = Grid(shape, header.get_best_affine())
    if not grid.is_orthogonal:
        return
    spacing, stated = _voxel_sizes(header)
    if any(n > 1 and abs(a - b) > 0.01 * a for n, a, b in zip(shape, spacing, stated, strict=True)):
        raise GeometryError(
            f"{path}: the s-form says voxels of {_sizes(spacing)} mm, pixdim {_sizes(stated)} mm. Readers differ in "
            f"which one they take; where the s-form is right, set pixdim to it (nibabel: image.header.set_zooms)"
        )


def _difference(sform: Grid, qform: Affine) -> str | None:
    if np.linalg.matrix_rank(qform[:3, :3]) < 3:
        return "the q-form is no geometry"
    return sform.differs_from(Grid(sform.shape, qform))


def _check_complete(path: Path, proxy: Any) -> None:
    """Refuse a file that ends before its voxels do.

    A gzip file says its inflated size in its last four bytes; only where that disagrees is it inflated to make sure.
    """
    needed = proxy.offset + math.prod(int(n) for n in proxy.shape) * proxy.dtype.itemsize
    size = path.stat().st_size
    check_holds(path, needed, size, _is_gzip(path))
    if _is_gzip(path):
        with path.open("rb") as file:
            file.seek(max(0, size - 4))
            stated = int.from_bytes(file.read(4), "little")
        if stated == needed % 2**32:
            return
        check_holds(path, needed, _inflated_size(path, needed + BESIDE))


def _inflated_size(path: Path, most: int) -> int:
    size = 0
    try:
        with igzip.open(path) as file:
            while chunk := file.read(1 << 22):
                size += len(chunk)
                if size > most:
                    raise ScanError(
                        f"{path}: inflates to more than {most} bytes, where the header speaks of {most - BESIDE}; the "
                        f"header or the file is damaged"
                    )
    except _DAMAGE as problem:
        raise ScanError(_damaged(path, problem)) from None
    return size


def _damaged(path: Path, problem: BaseException) -> str:
    return f"{path}: is cut short or damaged ({_first_line(problem)}); copy it again"


def _first_line(problem: BaseException) -> str:
    """What went wrong; of libraries beside nibabel and those that inflate the type alone, for they quote the file."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    known = (*_DAMAGE, ImageFileError, HeaderDataError)
    lines = str(problem).splitlines() if isinstance(problem, known) else []
    return f"{type(problem).__name__}: {lines[0][:120]}" if lines else type(problem).__name__


def _sizes(numbers: Sequence[float], digits: int = 4) -> str:
    return " x ".join(f"{number:.{digits}g}" for number in numbers)


def _times(numbers: tuple[int, ...]) -> str:
    return " x ".join(str(number) for number in numbers)
