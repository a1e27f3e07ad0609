"""The frames of a DICOM SEG, read one at a time: unpacked they can take gigabytes, and so can their bits."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import ScanError
from fewscan.scans.dicom_header import decoding_plugin
from fewscan.scans.dicom_plain import open_plain

Frames = Callable[[int], NDArray[Any]]


@contextmanager
def open_frames(path: Path, folder: Path | None = None) -> Iterator[tuple[Any, Frames]]:
    """A SEG's data set without pixels, and a function that gives its n-th frame (rows, columns), n from 0.

    Of a BINARY 0 and 1, mapped from the file, or from the plain copy in `folder` of a deflated one (see `open_plain`).
    Of a LABELMAP the numbers of segments, 0 for none. Raises ScanError where the pixels of a BINARY are not as many as
    its frames, or where a frame cannot be decoded.
    """
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    with open_plain(path, folder) as plain:
        seg = pydicom.dcmread(plain, stop_before_pixels=True)
        as_they_are = seg.file_meta.get("TransferSyntaxUID") == ExplicitVRLittleEndian
        if seg.get("SegmentationType") == "BINARY" and as_they_are:
            yield seg, _bits(plain, seg, path)
        else:
            yield seg, _decoded(plain, path)


def _bits(plain: BufferedIOBase, seg: Any, path: Path) -> Frames:
    """Frames of bits, from a file that stands before its pixel data: one after the other, without padding between."""
    begin = plain.tell() + 12
    tag, _, length = struct.unpack("<4s4sI", plain.read(12))
    size, rows, columns = int(seg.Rows) * int(seg.Columns), int(seg.Rows), int(seg.Columns)
    needed = -(-int(seg.NumberOfFrames) * size // 8)
    if tag != b"\xe0\x7f\x10\x00" or length != needed + needed % 2:
        raise ScanError(f"{path}: {seg.NumberOfFrames} frames of {size} bits, but {length} bytes of pixels")
    packed: NDArray[np.uint8] = np.memmap(plain, np.uint8, "r", offset=begin, shape=(length,))

    def frame(n: int) -> NDArray[np.uint8]:
        first = n * size
        bits = np.unpackbits(packed[first // 8 : -(-(first + size) // 8)], bitorder="little")
        return bits[first % 8 : first % 8 + size].reshape(rows, columns)

    return frame


def _decoded(plain: BufferedIOBase, path: Path) -> Frames:
    """Frames by pydicom and its plugins, which hold the file."""
    import pydicom
    from pydicom.pixels.utils import pixel_array

    plain.seek(0)
    seg = pydicom.dcmread(plain)
    syntax = seg.file_meta.get("TransferSyntaxUID")

    def frame(n: int) -> NDArray[Any]:
        try:
            return pixel_array(seg, index=n, raw=True, decoding_plugin=decoding_plugin(syntax))
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as problem:  # of a decoder in Rust, what is no Exception
            raise ScanError(f"{path}: its pixels cannot be decoded ({type(problem).__name__})") from None

    return frame
