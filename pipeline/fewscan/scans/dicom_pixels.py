"""The pixels of a DICOM series, in real values."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.arrays import IN_MEMORY_ONLY, Arrays
from fewscan.errors import ScanError
from fewscan.scans.dicom_planes import PIXEL_TAGS, first_value, frame_bytes, functional_groups, load_dataset
from fewscan.scans.scan import Scan


def read_series(scan: Scan, empty: Arrays = IN_MEMORY_ONLY) -> NDArray[np.float32]:
    """The voxels (1, i, j, k) of a DICOM scan in real values: slope and intercept applied plane by plane.

    Padding becomes the smallest of the other values. Raises ScanError where a file cannot be decoded.
    """
    columns, rows, depth = scan.grid.shape
    volume = empty((depth, rows, columns), np.float32)
    padded: list[tuple[int, NDArray[np.bool_]]] = []
    for path, places in _places(scan).items():
        dataset = load_dataset(path, (*PIXEL_TAGS, "PixelData"), pixels=True)
        frames = stored_frames(path, dataset, (rows, columns))
        for k in places:
            frame = scan.frames[k] if scan.frames else 0
            stored = frames[max(frame, 1) - 1]
            slope, intercept = _rescale(path, dataset, frame)
            padding = _padding(dataset, stored)
            if padding is not None and padding.any():
                padded.append((k, padding))
                stored = np.where(padding, stored[~padding].min() if not padding.all() else 0, stored)
            np.multiply(_within_bits(path, dataset, stored), np.float32(slope), out=volume[k], casting="unsafe")
            if intercept:
                volume[k] += np.float32(intercept)
    if padded:
        _fill(volume, padded)
    return volume.transpose(2, 1, 0)[None]


def pixel_digest(path: Path) -> bytes:
    """A hash of the file's decoded pixels."""
    dataset = load_dataset(path, (*PIXEL_TAGS, "PixelData"), pixels=True)
    stored = stored_frames(path, dataset, (int(dataset.Rows), int(dataset.Columns)))
    return hashlib.sha256(np.ascontiguousarray(stored).tobytes()).digest()


def _places(scan: Scan) -> dict[Path, list[int]]:
    """Each file once, with the planes k that it holds."""
    places: dict[Path, list[int]] = {}
    for k, path in enumerate(scan.files):
        places.setdefault(path, []).append(k)
    return places


def stored_frames(path: Path, dataset: Any, shape: tuple[int, int]) -> NDArray[Any]:
    """The stored numbers (frame, rows, columns) of a file; uncompressed ones without a copy."""
    if (int(dataset.Rows), int(dataset.Columns)) != shape:
        raise ScanError(f"{path}: has {dataset.Columns} x {dataset.Rows} pixels, which changed since it was found")
    syntax = dataset.file_meta.TransferSyntaxUID
    bits = int(dataset.BitsAllocated)
    if syntax.is_compressed or bits not in (8, 16, 32):
        return _decoded(path, dataset).reshape(-1, *shape)
    count = int(dataset.get("NumberOfFrames") or 1)
    raw = dataset.get("PixelData") or b""
    if len(raw) < count * frame_bytes(dataset):
        raise ScanError(f"{path}: is cut short: {len(raw)} bytes where its pixels need more; copy it again")
    kind = "i" if int(dataset.get("PixelRepresentation") or 0) else "u"
    order = "<" if syntax.is_little_endian else ">"
    return np.frombuffer(raw, f"{order}{kind}{bits // 8}", count * shape[0] * shape[1]).reshape(count, *shape)


def _decoded(path: Path, dataset: Any) -> NDArray[Any]:
    from pydicom.pixels.utils import pixel_array

    try:
        return pixel_array(dataset, raw=True)
    except Exception as problem:  # each plugin raises types of its own
        raise ScanError(
            f"{path}: {dataset.file_meta.TransferSyntaxUID.name} pixels cannot be decoded ({type(problem).__name__}); "
            f"the file may be damaged, or try: python -m pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
        ) from problem


def _rescale(path: Path, dataset: Any, frame: int) -> tuple[float, float]:
    sources = [dataset]
    if frame:
        per_frame = dataset.PerFrameFunctionalGroupsSequence[frame - 1]
        shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
        sources = [*functional_groups(per_frame), *functional_groups(shared[0]), dataset]
    slope, intercept = first_value(sources, "RescaleSlope"), first_value(sources, "RescaleIntercept")
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise ScanError(f"{path}: slope {slope:g} and intercept {intercept:g} give no intensities")
    return slope, intercept


def _padding(dataset: Any, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where the pixels hold padding; None where the header names none.

    Many writers give the value with the other sign than the pixels (63536 for -2000), so the bits are compared.
    """
    value = dataset.get("PixelPaddingValue")
    if value is None or not isinstance(value, int):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    bits = stored.dtype.itemsize * 8
    used = int(dataset.get("BitsStored") or bits)
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


def _within_bits(path: Path, dataset: Any, stored: NDArray[Any]) -> NDArray[Any]:
    """The numbers in the bits that hold them: sign extended where signed; refused where unsigned ones exceed them."""
    bits = stored.dtype.itemsize * 8
    used = int(dataset.get("BitsStored") or bits)
    if int(dataset.get("HighBit") or used - 1) != used - 1:
        raise ScanError(f"{path}: its high bit is {dataset.HighBit} with {used} bits stored; save it in standard form")
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


def _fill(volume: NDArray[np.float32], padded: list[tuple[int, NDArray[np.bool_]]]) -> None:
    """Give padding pixels the smallest value of the others."""
    smallest = np.float32(np.inf)
    masks = dict(padded)
    for k in range(len(volume)):
        rest = volume[k][~masks[k]] if k in masks else volume[k]
        smallest = min(smallest, rest.min(initial=np.inf))
    for k, mask in padded:
        volume[k][mask] = smallest if np.isfinite(smallest) else 0
