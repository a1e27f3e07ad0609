"""The pixels of a DICOM series, in real values."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.arrays import IN_MEMORY_ONLY, Arrays, release
from fewscan.errors import ScanError
from fewscan.scans.dicom_header import KEYWORDS, Header, decoding_plugin, open_dicom
from fewscan.scans.dicom_planes import first_value, sources_of_frame
from fewscan.scans.quiet import quietly
from fewscan.scans.scan import Scan

_MEANING = ("PixelRepresentation", "BitsStored", "HighBit", "PixelPaddingValue", "PixelPaddingRangeLimit")


def read_series(scan: Scan, empty: Arrays = IN_MEMORY_ONLY) -> NDArray[np.float32]:
    """The voxels (1, i, j, k) of a DICOM scan in real values: slope and intercept applied plane by plane.

    Padding becomes the smallest of the other values. Planes without a file are interpolated between their neighbours,
    linearly. Raises ScanError where a file cannot be decoded.
    """
    columns, rows, depth = scan.grid.shape
    volume = empty((depth, rows, columns), np.float32)
    _fill(volume, scan)
    for before, after in itertools.pairwise(scan.planes):
        for k in range(before + 1, after):
            share = np.float32((k - before) / (after - before))
            volume[k] = (1 - share) * volume[before] + share * volume[after]
        release(volume)
    return volume.transpose(2, 1, 0)[None]


def _fill(volume: NDArray[np.float32], scan: Scan) -> None:
    """The real values of the scan's planes into `volume` (plane, row, column), one plane at a time."""
    smallest = np.float32(np.inf)
    padded, whole = [], []
    for path, places in _places(scan).items():
        planes = _planes(path, list(places.values()), volume.shape[1:])
        for k, (stored, padding, slope, intercept) in zip(places, planes, strict=True):
            np.multiply(stored, np.float32(slope), out=volume[k], casting="unsafe")
            if intercept:
                volume[k] += np.float32(intercept)
            if padding is None:
                whole.append(k)
            else:
                padded.append(k)
                smallest = min(smallest, volume[k].min(where=~padding, initial=np.inf))
                volume[k][padding] = np.nan  # until the smallest of all is known
        release(volume)
    if padded:
        for k in whole:
            smallest = min(smallest, volume[k].min())
            release(volume)
        for k in padded:
            np.copyto(volume[k], smallest if np.isfinite(smallest) else 0, where=np.isnan(volume[k]))
            release(volume)


def _planes(
    path: Path, frames: Sequence[int], shape: tuple[int, ...]
) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_] | None, float, float]]:
    """Of frames of a file: the stored numbers, where they are padding (None: nowhere), slope and intercept."""
    with open_dicom(path) as (file, header):
        try:
            for frame, stored in zip(frames, _stored(path, file, header, frames), strict=True):
                if stored.shape != shape:
                    wrong = f"{stored.shape[1]} x {stored.shape[0]} pixels"
                    raise ScanError(f"{path}: has {wrong}, which changed since it was found")
                padding = _padding(header, stored)
                if padding is None or not padding.any():
                    padding = None
                else:
                    stored = np.where(padding, stored[~padding].min() if not padding.all() else 0, stored)
                yield _within_bits(path, header, stored), padding, *_rescale(path, header, frame)
        except (ScanError, OSError, MemoryError):
            raise
        except Exception as problem:  # pydicom raises types of many kinds
            raise ScanError(f"{path}: {header.wrong} in the header cannot be used ({type(problem).__name__})") from None


@quietly()
def pixel_digest(path: Path) -> bytes:
    """A hash of the file's decoded pixels and of what makes real values of them.

    Raises ScanError where they cannot be decoded.
    """
    digest = hashlib.sha256()
    with open_dicom(path) as (file, header):
        try:
            meaning = [str(header.get(keyword)) for keyword in _MEANING]
            digest.update("|".join(meaning).encode())
            frames = range(1, header.frames + 1)
            for frame, stored in zip(frames, _stored(path, file, header, frames), strict=True):
                number = frame if "PerFrameFunctionalGroupsSequence" in header else 0
                digest.update(repr(_rescale(path, header, number)).encode())
                digest.update(np.ascontiguousarray(stored, stored.dtype.newbyteorder("=")).data)
        except ScanError:
            raise
        except Exception as problem:  # pydicom raises types of many kinds
            raise ScanError(f"{path}: {header.wrong} in the header cannot be used ({type(problem).__name__})") from None
    return digest.digest()


def _places(scan: Scan) -> dict[Path, dict[int, int]]:
    """Each file once, with the planes k that it holds, and which frame each is (from 1; 0 of a classic file)."""
    places: dict[Path, dict[int, int]] = {}
    for number, path in enumerate(scan.files):
        k = scan.planes[number] if scan.planes else number
        places.setdefault(path, {})[k] = scan.frames[number] if scan.frames else 0
    return places


def _stored(path: Path, file: BufferedIOBase, header: Header, frames: Sequence[int]) -> Iterator[NDArray[Any]]:
    """The stored numbers (row, column) of frames, from 1, one at a time; uncompressed ones from where they lie."""
    shape = int(header.get("Rows")), int(header.get("Columns"))
    bits = int(header.get("BitsAllocated") or 0)
    swapped = bits == 8 and not header.syntax.is_little_endian  # where two of them are stored as one word
    if not header.is_plain or bits not in (8, 16, 32) or swapped:
        yield from _decoded(path, header, frames)
        return
    kind = "i" if int(header.get("PixelRepresentation") or 0) else "u"
    order = "<" if header.syntax.is_little_endian else ">"
    for number in frames:
        stored = np.empty(shape, f"{order}{kind}{bits // 8}")
        file.seek((header.pixels_at or 0) + (max(number, 1) - 1) * stored.nbytes)
        if file.readinto(stored.view(np.uint8).data) != stored.nbytes:
            raise ScanError(f"{path}: is cut short: its pixels need more bytes; copy it again")
        yield stored


def _decoded(path: Path, header: Header, frames: Sequence[int]) -> Iterator[NDArray[Any]]:
    import pydicom
    from pydicom.pixels.utils import pixel_array

    try:
        plugin = decoding_plugin(header.syntax)
        dataset = pydicom.dcmread(path, specific_tags=[*KEYWORDS, "PixelData"])
        for number in frames:
            yield pixel_array(dataset, raw=True, index=max(number, 1) - 1, decoding_plugin=plugin)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as problem:  # each plugin raises types of its own, and one in Rust what is no Exception
        raise ScanError(
            f"{path}: {header.syntax.name} pixels cannot be decoded ({type(problem).__name__}); "
            f"the file may be damaged, or try: python -m pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from None


def _rescale(path: Path, header: Header, frame: int) -> tuple[float, float]:
    sources = sources_of_frame(header, frame) if frame else [header]
    slope, intercept = first_value(sources, "RescaleSlope"), first_value(sources, "RescaleIntercept")
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    if not max(abs(slope), abs(intercept)) <= np.finfo(np.float32).max or slope == 0:  # nor NaN
        raise ScanError(f"{path}: slope {slope:g} and intercept {intercept:g} give no intensities")
    return slope, intercept


def _padding(header: Header, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where the pixels hold padding; None where the header names none.

    Many writers give the value with the other sign than the pixels (63536 for -2000), so the bits are compared.
    """
    value = header.get("PixelPaddingValue")
    if value is None or not isinstance(value, int):
        return None
    limit = header.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    bits = stored.dtype.itemsize * 8
    used = int(header.get("BitsStored") or bits)
    mask = (1 << max(bits, 16)) - 1  # the tag has 16 bits, whatever the pixels have
    width = (high - low) & mask
    numbers = stored.astype(np.int64)
    signed = stored.dtype.kind == "i" and used < bits
    if signed and low & mask < 1 << used:  # a pattern of the stored bits
        low = _extended(low, used)
    padding: NDArray[np.bool_] = ((numbers - low) & mask) <= width  # not cut first: padding may exceed the stored bits
    if signed:
        padding |= ((_extended(numbers, used) - low) & mask) <= width
    return padding


def _extended(number: Any, used: int) -> Any:
    """The signed number in the lowest `used` bits."""
    sign = 1 << (used - 1)
    return ((number & (2 * sign - 1)) ^ sign) - sign


def _within_bits(path: Path, header: Header, stored: NDArray[Any]) -> NDArray[Any]:
    """The numbers in the bits that hold them: sign extended where signed; refused where unsigned ones exceed them."""
    bits = stored.dtype.itemsize * 8
    used = int(header.get("BitsStored") or bits)
    if int(header.get("HighBit") or used - 1) != used - 1:
        raise ScanError(
            f"{path}: its high bit is {header.get('HighBit')} with {used} bits stored; save it in standard form"
        )
    if used >= bits:
        return stored
    if stored.dtype.kind == "i":
        shift = bits - used
        return (stored << shift) >> shift
    if int(stored.max()) >= 1 << used:
        raise ScanError(
            f"{path}: holds the number {int(stored.max())}, which does not fit the {used} bits its header states "
            f"(an overlay in the high bits?)"
        )
    return stored
