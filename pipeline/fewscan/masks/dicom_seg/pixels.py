"""The pixels of a DICOM-SEG read frame by frame: unpacked they can take gigabytes, and so can their bits."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import FormatError

Frames = Callable[[int], NDArray[Any]]
_BLOCK = 1 << 16
"""Bytes inflated at once: 64 MiB at most."""


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Frames]]:
    """A SEG and a function that gives its n-th frame (rows, columns), n from 0.

    Of a BINARY 0 and 1: frames follow each other bit by bit, lowest bit first, without padding between them. They are
    mapped, a deflated file from a plain copy beside it that has no name. Of a LABELMAP the numbers of segments, 0 for
    none. Raises FormatError where the pixels of a BINARY are not as many as its frames.
    """
    import pydicom
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    meta = pydicom.filereader.read_file_meta_info(path)
    with path.open("rb") as file, TemporaryFile(dir=path.parent) as copy:
        plain: IO[bytes] = file
        if meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
            _inflate(file, copy, meta, path.name)
            plain = copy
        plain.seek(0)
        seg = pydicom.dcmread(plain, stop_before_pixels=True)
        if seg.get("SegmentationType") == "BINARY":
            yield seg, _bits(plain, seg, path.name)
        else:
            seg = pydicom.dcmread(path)
            yield seg, lambda n: pixel_array(seg, index=n, raw=True)


def _inflate(file: IO[bytes], plain: Any, meta: Any, where: str) -> None:
    """Write the data set again in Explicit VR Little Endian, inflated by zlib, as most programs do."""
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import ExplicitVRLittleEndian

    file.seek(128 + 4 + 12 + int(meta.FileMetaInformationGroupLength))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain.write(bytes(128) + b"DICM")
    write_file_meta_info(plain, meta)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    while block := file.read(_BLOCK):
        plain.write(stream.decompress(block))
    if not stream.eof:
        raise FormatError(f"{where}: its deflated data set is cut short")


def _bits(plain: IO[bytes], seg: Any, where: str) -> Frames:
    """Frames of bits, from a file that stands before its pixel data."""
    begin = plain.tell() + 12
    tag, _, length = struct.unpack("<4s4sI", plain.read(12))
    size, rows, columns = int(seg.Rows) * int(seg.Columns), int(seg.Rows), int(seg.Columns)
    needed = -(-int(seg.NumberOfFrames) * size // 8)
    if tag != b"\xe0\x7f\x10\x00" or length != needed + needed % 2:
        raise FormatError(f"{where}: {seg.NumberOfFrames} frames of {size} bits, but {length} bytes of pixels")
    packed = np.memmap(plain, np.uint8, "r", offset=begin, shape=(length,))

    def frame(n: int) -> NDArray[np.uint8]:
        first = n * size
        bits = np.unpackbits(packed[first // 8 : -(-(first + size) // 8)], bitorder="little")
        return bits[first % 8 : first % 8 + size].reshape(rows, columns)

    return frame
