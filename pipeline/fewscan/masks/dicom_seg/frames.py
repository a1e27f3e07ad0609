"""A binary DICOM-SEG of many frames, written as a stream: neither its pixels nor its frames' items exist as a whole.

highdicom makes a Python object of each item and holds all pixels: of 50 segments in 300 planes, 5,215 frames, in 3.4 s
and 566 MB, this in 0.6 s and 6 MB (tests/benchmarks/seg.py, one core). The elements are the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from fewscan.arrays import release
from fewscan.errors import FormatError
from fewscan.labels import LabelTable

PLAIN = 10_000_000
"""Bytes of pixels up to which a file is not compressed: every PACS and validator reads it."""
LONGEST = 2**32 - 2
"""Bytes of the longest element that DICOM can hold."""
_CONTENT, _SEGMENT = 0x00209111, 0x0062000A
_FRAMES, _PIXELS = struct.pack("<2H", 0x5200, 0x9230), struct.pack("<2H", 0x7FE0, 0x0010)


def save(
    path: Path,
    seg: Any,
    values: NDArray[Any],
    table: LabelTable,
    frames: Sequence[tuple[int, int]],
    planes: Sequence[int],
) -> None:
    """Write a SEG in Explicit VR Little Endian, deflated where its pixels are many (`PLAIN`).

    Args:
        path: of the file.
        seg: all of the data set but frames and pixels, and as its per-frame items those of one segment: one for each
            plane that has a frame. They are taken out.
        values: (i, j, k) label values.
        table: its n-th label is segment n.
        frames: segment, from 1, and item of each frame, in their order.
        planes: the plane k of each item.

    Raises FormatError where the pixels are more than a DICOM element can hold.
    """
    bits = len(frames) * int(seg.Rows) * int(seg.Columns)
    if bits > 8 * LONGEST:
        raise FormatError(
            f"{path.name}: {len(frames)} frames of {seg.Columns} x {seg.Rows} pixels take {bits / 8e9:.1f} GB, a "
            f"DICOM-SEG holds 4.3 GB; choose dicom-seg-labelmap"
        )
    items = seg.PerFrameFunctionalGroupsSequence
    content, segment = encoded(items[0][_CONTENT : _CONTENT + 1]), encoded(items[0][_SEGMENT:])
    items = [_Item(item, content, segment) for item in items]
    for name in ("PerFrameFunctionalGroupsSequence", "PixelData"):
        delattr(seg, name)
    seg.NumberOfFrames = len(frames)
    parts = _parts(seg, values, table, frames, planes, items)
    deflated = bits > 8 * PLAIN
    with path.open("wb") as file:
        file.write(_beginning(seg, deflated))
        for part in _deflate(parts) if deflated else parts:
            file.write(part)


def _deflate(parts: Iterable[bytes]) -> Iterator[bytes]:
    stream, size = isal_zlib.compressobj(2, isal_zlib.DEFLATED, -15), 0
    for part in parts:
        packed_part = stream.compress(part)
        size += len(packed_part)
        yield packed_part
    end = stream.flush()
    yield end + bytes((size + len(end)) % 2)


def _parts(
    seg: Any,
    values: NDArray[Any],
    table: LabelTable,
    frames: Sequence[tuple[int, int]],
    planes: Sequence[int],
    items: Sequence[_Item],
) -> Iterator[bytes]:
    yield encoded(seg)
    yield _FRAMES + b"SQ\0\0" + struct.pack("<I", sum(len(items[item]) for _, item in frames))
    yield from (items[item].of_segment(segment) for segment, item in frames)
    length = -(-len(frames) * int(seg.Rows) * int(seg.Columns) // 8)
    yield _PIXELS + b"OB\0\0" + struct.pack("<I", length + length % 2)
    yield from packed(values, ((int(table.values[segment]), planes[item]) for segment, item in frames))
    yield bytes(length % 2)


class _Item:
    """The functional groups of a frame as DICOM's bytes, in which only the segment's number changes.

    `content` and `segment` are the elements of any item that name plane and segment: the dimension indices (segment,
    then plane) and the segment's number are their last bytes.
    """

    def __init__(self, item: Any, content: bytes, segment: bytes) -> None:
        self.before, self.after = encoded(item[:_CONTENT]), encoded(item[_CONTENT + 1 : _SEGMENT])
        self.content, self.segment = content, segment
        self.plane = int(item.FrameContentSequence[0].DimensionIndexValues[1])

    def __len__(self) -> int:
        return 8 + len(self.before) + len(self.content) + len(self.after) + len(self.segment)

    def of_segment(self, number: int) -> bytes:
        """The item for another segment; where there is one alone it is not named here."""
        content = self.content[:-8] + struct.pack("<2I", number, self.plane)
        segment = self.segment and self.segment[:-2] + struct.pack("<H", number)
        header = struct.pack("<2HI", 0xFFFE, 0xE000, len(self) - 8)
        return b"".join((header, self.before, content, self.after, segment))


def packed(values: NDArray[Any], frames: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The bits of frames (label value, plane k), row by row, lowest bit first, without padding between frames.

    A mask whose planes do not lie together in memory is copied once, since each is looked at for every label.
    """
    if values.strides[2] != max(values.strides, key=abs):
        values = np.asfortranarray(values)
    left, last = np.empty(0, dtype=np.bool_), 0
    for value, k in frames:
        found = np.equal(values[:, :, k].T, value).ravel()
        if left.size:
            found = np.concatenate([left, found])
        whole = found.size // 8 * 8
        yield np.packbits(found[:whole], bitorder="little").tobytes()
        left = found[whole:]
        if value != last:
            release(values)
            last = value
    yield np.packbits(left, bitorder="little").tobytes()


def _beginning(seg: Any, deflated: bool) -> bytes:
    """The preamble and the file meta information, which is not deflated."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

    seg.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, seg.file_meta, enforce_standard=True)
    return bytes(128) + b"DICM" + buffer.getvalue()


def encoded(dataset: Any) -> bytes:
    """The elements in explicit VR, little endian."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = False, True
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())
