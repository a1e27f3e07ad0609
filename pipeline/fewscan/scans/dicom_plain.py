"""DICOM files in Deflated Explicit VR, inflated: into a plain file without a name, and no further than needed."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from fewscan.errors import ScanError

_START = b"DICM\x02\x00\x00\x00UL\x04\x00"
"""At byte 128: the mark, and the head of the first element, which has to be the length of the meta information."""
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_MOST = 1 << 16
_BLOCK, _PART = 1 << 16, 1 << 20
"""Bytes that are read, and that come of them, at once."""
_HEAD = 1 << 22
"""Bytes of a data set that say how many pixels it has."""
_BESIDE, _BESIDE_FRAME = 1 << 26, 1 << 14
"""Bytes that a data set may hold beside its pixels, and for each frame; what inflates to more is no image."""
_FRAMES_OF_PIXELS = 0x52009230
_SIZES = ("NumberOfFrames", "SamplesPerPixel", "Rows", "Columns", "BitsAllocated")


@contextmanager
def open_plain(path: Path, folder: Path | None = None) -> Iterator[BufferedIOBase]:
    """The file, or where it is deflated its plain copy in `folder` (None: where temporary files are).

    Raises ScanError where the data set is cut short or damaged, or inflates to more than its header speaks of.
    """
    with path.open("rb") as file:
        meta = _deflated_meta(file)
        if meta is None:
            file.seek(0)
            yield file
            return
        with TemporaryFile(dir=folder) as temporary:
            plain: Any = temporary  # on Windows a wrapper that has all of it
            for part in _inflated(path, file, meta):
                plain.write(part)
            plain.seek(0)
            yield plain


def plain_head(path: Path) -> BufferedIOBase:
    """The first bytes of the file, inflated where it is deflated; enough for what stands before functional groups."""
    with path.open("rb") as file:
        meta = _deflated_meta(file)
        if meta is None:
            file.seek(0)
            return BytesIO(file.read(_HEAD))
        head = BytesIO()
        for part in _inflated(path, file, meta):
            head.write(part)
            if head.tell() >= _HEAD:
                break
    head.seek(0)
    return head


def _deflated_meta(file: BufferedIOBase) -> bytes | None:
    """Preamble and meta information of a deflated file, behind which `file` stands then; None for others."""
    start = file.read(144)
    length = int.from_bytes(start[140:144], "little")
    if start[128 : 128 + len(_START)] != _START or length > _META_MOST:
        return None
    meta = file.read(length)
    return start + meta if len(meta) == length and _DEFLATED in meta else None


def _inflated(path: Path, file: BufferedIOBase, meta: bytes) -> Iterator[bytes]:
    """Parts of the plain file. zlib inflates as most programs do; igzip is not asked."""
    yield _plain_meta(path, meta)
    stream, size, most, head = zlib.decompressobj(-zlib.MAX_WBITS), 0, _HEAD, bytearray()
    while not stream.eof and (block := stream.unconsumed_tail or file.read(_BLOCK)):
        try:
            part = stream.decompress(block, _PART)
        except zlib.error:
            raise ScanError(
                f"{path}: its deflated data set cannot be inflated beyond {size} bytes: it is damaged; copy it again"
            ) from None
        size += len(part)
        if most == _HEAD:
            head += part
            most = _HEAD if size <= _HEAD else _needed(bytes(head)) + _BESIDE
        if size > most:
            raise ScanError(
                f"{path}: a deflated file that inflates to more than {most} bytes, where its header speaks of "
                f"{max(0, most - _BESIDE)}; it is damaged, or save it uncompressed"
            )
        yield part
    if not stream.eof:
        raise ScanError(f"{path}: is cut short: its deflated data set has no end; copy it again")


def _plain_meta(path: Path, meta: bytes) -> bytes:
    """The same with the transfer syntax Explicit VR Little Endian."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filereader import read_file_meta_info
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import ExplicitVRLittleEndian

    written = DicomBytesIO()
    try:
        info: Any = read_file_meta_info(path)
        info.TransferSyntaxUID = ExplicitVRLittleEndian
        write_file_meta_info(written, info, enforce_standard=False)
    except Exception as problem:  # pydicom raises types of many kinds
        raise ScanError(f"{path}: its file meta information is damaged ({type(problem).__name__})") from None
    return meta[:132] + written.getvalue()


def _needed(head: bytes) -> int:
    """Bytes of the pixels of a data set that begins so, and of its frames' items; 0 where it does not say."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.filereader import data_element_generator

    tags = {tag_for_keyword(keyword) or 0: keyword for keyword in _SIZES}
    said = {"NumberOfFrames": 1, "SamplesPerPixel": 1}
    try:
        elements = data_element_generator(
            BytesIO(head), False, True, lambda tag, *_: tag >= _FRAMES_OF_PIXELS, specific_tags=list(tags)
        )
        for element in elements:
            keyword, stored = tags.get(int(element.tag)), bytes(element.value or b"")
            if keyword == "NumberOfFrames":
                said[keyword] = int(stored.decode("ascii").strip("\0 "))
            elif keyword is not None:
                said[keyword] = struct.unpack("<H", stored)[0]
        bits = said["SamplesPerPixel"] * said["Rows"] * said["Columns"] * said["BitsAllocated"]
        return said["NumberOfFrames"] * bits // 8 + said["NumberOfFrames"] * _BESIDE_FRAME
    except Exception:  # pydicom raises types of many kinds
        return 0
