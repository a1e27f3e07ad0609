"""What a DICOM file says before its pixels, and where those begin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Any

from fewscan.errors import ScanError
from fewscan.scans.dicom_plain import open_plain
from fewscan.scans.sizes import check_holds

KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PlanarConfiguration",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "Modality",
    "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "SliceLocation", "SeriesNumber", "ImageType",
    "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime", "DiffusionBValue",
    "InversionTime", "TriggerTime", "AcquisitionTime", "ContentTime",
)  # fmt: skip
"""All that is read of a header."""
_META = ("TransferSyntaxUID", "MediaStorageSOPClassUID")
"""Of the file meta information, before the header proper."""
_SEQUENCES = ("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_SIGN_FROM_ELSEWHERE = ("PixelPaddingValue", "PixelPaddingRangeLimit")
"""Where the file gives no VR, PixelRepresentation says whether these are signed."""
_ENOUGH = 1 << 16
"""Bytes that hold the headers of most files."""
_START = b"DICM\x02\x00\x00\x00UL\x04\x00"
"""At byte 128: the mark, and the head of the first element, which has to be the length of the meta information."""
RLE = "1.2.840.10008.1.2.5"
"""The transfer syntax of run-length encoded pixels."""
_RLE_MOST = 64
"""Bytes that a byte of those gives at most: 128 from a run of two."""
_NO_IMAGE = ("1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.481", "1.2.840.10008.5.1.4.1.1.30",
             "1.2.840.10008.5.1.4.1.1.88", "1.2.840.10008.5.1.4.1.1.11", "1.2.840.10008.5.1.4.1.1.104",
             "1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.68", "1.2.840.10008.5.1.4.1.1.9",
             "1.2.840.10008.5.1.4.1.1.4.2")  # fmt: skip
"""Kinds of objects, with all below them, that are no images, whether they have Rows and Columns or not."""
_UNDEFINED = 0xFFFFFFFF
"""The length of what is cut into items, as compressed pixels are."""
_PIXEL_DATA, _PIXELS = 0x7FE00010, (0x7FE00008, 0x7FE00009, 0x7FE00010)


class Header:
    """What a DICOM file says before its pixels.

    `syntax` is its transfer syntax (a pydicom UID; None where the file names none), `sop_class` the kind of object,
    `media_class` the same as the file's first bytes say it (they differ where the file is cut), `pixels_at` the byte
    where uncompressed pixels begin (None: there are none), `pixel_bytes` how many follow. A deflated file is inflated
    before (`open_plain`), and has the syntax Explicit VR Little Endian then.
    """

    def __init__(self, values: Any, syntax: Any, media_class: Any, pixels_at: int | None, pixel_bytes: int = 0) -> None:
        self._values, self.syntax, self.pixels_at, self.pixel_bytes = values, syntax, pixels_at, pixel_bytes
        self.media_class = media_class or ""
        self.sop_class = values.get("SOPClassUID") or media_class or ""

    def get(self, keyword: str) -> Any:
        """The value as pydicom converts it; None where the header has none."""
        return self._values.get(keyword)

    def __contains__(self, keyword: str) -> bool:
        return keyword in self._values

    def is_readable(self, keyword: str) -> bool:
        """Whether there is no such value, or one of its kind."""
        from pydicom.datadict import dictionary_VR

        try:
            value = self.get(keyword)
            if dictionary_VR(keyword) in ("DS", "IS") and value not in (None, ""):
                [float(number) for number in ([value] if isinstance(value, (str, int, float)) else value)]
        except Exception:  # pydicom raises types of many kinds
            return False
        return True

    @property
    def wrong(self) -> str:
        """The keywords of what cannot be read, in words."""
        return " and ".join(keyword for keyword in KEYWORDS if not self.is_readable(keyword)) or "a value"

    @property
    def is_no_image(self) -> bool:
        """Whether it is of a kind that is not read as an image: a segmentation, a plan, a report, spectra, a map."""
        return any(self.sop_class == kind or self.sop_class.startswith(f"{kind}.") for kind in _NO_IMAGE)

    @property
    def is_plain(self) -> bool:
        """Whether the pixels lie in the file as they are."""
        return self.syntax is not None and not self.syntax.is_compressed

    @property
    def frames(self) -> int:
        """How many frames the file holds."""
        return int(self.get("NumberOfFrames") or 1)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame."""
        bits = int(self.get("BitsAllocated") or 8) * int(self.get("SamplesPerPixel") or 1)
        return int(self.get("Rows")) * int(self.get("Columns")) * bits // 8


@contextmanager
def open_dicom(path: Path) -> Iterator[tuple[BufferedIOBase, Header]]:
    """A DICOM file and its header. Raises ScanError where the file is broken or its pixels end too soon."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_plain(path))
        except OSError as problem:
            raise ScanError(f"{path}: cannot be read ({type(problem).__name__})") from None
        yield file, _header(path, file)


def decoding_plugin(syntax: Any) -> str:
    """pylibjpeg where it knows the transfer syntax, whatever else is installed: the same numbers everywhere.

    pydicom would prefer GDCM, which may end the process on pixels that it does not like. "" leaves it to pydicom.
    """
    from pydicom.pixels.decoders.base import get_decoder

    return "pylibjpeg" if "pylibjpeg" in get_decoder(syntax).available_plugins else ""


def _header(path: Path, file: BufferedIOBase) -> Header:
    from pydicom.errors import InvalidDicomError

    try:
        header = _simple_header(file) or _any_header(file)
        _check_length(path, file, header)
        return header
    except ScanError:
        raise
    except InvalidDicomError:
        raise ScanError(f"{path}: is no DICOM file (DICM is missing at byte 128)") from None
    except Exception as problem:  # pydicom raises types of many kinds
        raise ScanError(f"{path}: the DICOM file is cut short or damaged ({type(problem).__name__})") from None


def _check_length(path: Path, file: BufferedIOBase, header: Header) -> None:
    """Refuse a file whose uncompressed pixels end before they should, or go on for a frame or more after it."""
    if header.is_no_image or "Rows" not in header or (not header.is_plain and header.syntax != RLE):
        return
    needed = header.frame_bytes * header.frames
    if header.syntax == RLE:
        check_holds(path, needed, _RLE_MOST * os.fstat(file.fileno()).st_size)
        return
    rest = 0 if header.pixels_at is None else os.fstat(file.fileno()).st_size - header.pixels_at
    if rest < needed:
        raise ScanError(f"{path}: is cut short: {max(0, rest)} bytes where its pixels need {needed}; copy it again")
    if header.pixel_bytes == _UNDEFINED:
        raise ScanError(f"{path}: its pixels are compressed, where its header says {header.syntax.name}; save it again")
    if header.pixel_bytes >= needed + max(header.frame_bytes, 2):  # padding to whole words or blocks is harmless
        raise ScanError(
            f"{path}: holds {header.pixel_bytes} bytes of pixels, where {header.frames} frame(s) of "
            f"{header.get('Columns')} x {header.get('Rows')} pixels take {needed}; export it again"
        )


def _any_header(file: BufferedIOBase) -> Header:
    """By pydicom's own way of reading."""
    import pydicom
    from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

    file.seek(0)
    dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(KEYWORDS))
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    at, length, start = None, b"", b"" if syntax is None else file.read(8)
    if start[:4] in (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10"):  # the tag, little or big endian
        length = file.read(4) if start[4:6].decode("latin-1") in EXPLICIT_VR_LENGTH_32 else start[4:]
        at = file.tell()
    size = int.from_bytes(length, "little" if start[:1] == b"\xe0" else "big")
    return Header(dataset, syntax, dataset.file_meta.get("MediaStorageSOPClassUID"), at, size)


def _simple_header(file: BufferedIOBase) -> Header | None:
    """The same for a file in which nothing asks for more than its own bytes; None for all others.

    No sequence of interest, nothing at odds with the transfer syntax, no long or broken header. Elements are found by
    pydicom, and their values converted by it, but each value once for all files of a series.
    """
    from pydicom.filereader import data_element_generator

    start = BytesIO(file.read(_ENOUGH))
    pixels: list[tuple[int, int, int]] = []  # tag, first byte, bytes

    def at_pixels(tag: Any, vr: Any, length: int) -> bool:
        if tag >> 16 == 0x7FE0 and tag in _PIXELS:
            pixels.append((tag, start.tell(), length))
        return bool(pixels)

    try:
        start.seek(128)
        if start.read(len(_START)) != _START:
            return None
        start.seek(132)
        meta = {int(e.tag): e for e in data_element_generator(start, False, True, lambda tag, *_: tag >> 16 != 2)}
        syntax = _Values(meta).get("TransferSyntaxUID")
        implicit = _is_implicit(syntax)
        first = start.read(8)
        start.seek(-8, os.SEEK_CUR)
        if implicit is None or implicit == first[4:6].isalpha() or first[:2] < b"\x08\x00":
            return None
        wanted = list(_tags().values())
        found = data_element_generator(start, implicit, True, at_pixels, specific_tags=wanted)
        elements = {int(element.tag): element for element in found}
    except Exception:  # what is wrong with the file, pydicom's own way says
        return None
    if not pixels or pixels[0][0] != _PIXEL_DATA or any(_tags()[keyword] in elements for keyword in _SEQUENCES):
        return None
    padding = [elements.get(_tags()[keyword]) for keyword in _SIGN_FROM_ELSEWHERE]
    if any(element is not None and element.VR not in ("US", "SS") for element in padding):
        return None
    return Header(_Values(elements), syntax, _Values(meta).get("MediaStorageSOPClassUID"), *pixels[0][1:])


class _Values:
    """Raw elements by their tags; values by keyword."""

    def __init__(self, elements: dict[int, Any]) -> None:
        self._elements = elements

    def get(self, keyword: str) -> Any:
        element = self._elements.get(_tags().get(keyword, 0))
        return None if element is None else _value(int(element.tag), element.VR, element.value, element.is_implicit_VR)

    def __contains__(self, keyword: str) -> bool:
        return _tags().get(keyword, 0) in self._elements


@lru_cache(maxsize=4096)
def _value(tag: int, vr: str | None, stored: bytes | None, implicit: bool) -> Any:
    """The value of stored bytes, little endian."""
    from pydicom.dataelem import RawDataElement, convert_raw_data_element
    from pydicom.tag import BaseTag

    return convert_raw_data_element(
        RawDataElement(BaseTag(tag), vr, len(stored or b""), stored, 0, implicit, True)
    ).value


@cache
def _tags() -> dict[str, int]:
    from pydicom.datadict import tag_for_keyword

    return {keyword: tag_for_keyword(keyword) or 0 for keyword in (*KEYWORDS, *_META)}


@cache
def _is_implicit(syntax: Any) -> bool | None:
    """Whether VRs are left out; None for a transfer syntax that is read by pydicom alone."""
    if syntax is None or syntax.is_private or not syntax.is_transfer_syntax:
        return None
    return bool(syntax.is_implicit_VR) if syntax.is_little_endian else None
