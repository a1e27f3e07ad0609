"""What the header of a DICOM file says about its image planes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import GeometryError, ScanError

SPLIT_BY = (
    "AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime", "EffectiveEchoTime", "DiffusionBValue", "StackID",
    "TemporalPositionIndex", "ImageType", "FrameType", "InversionTime", "TriggerTime", "AcquisitionTime",
    "ContentTime",
)  # fmt: skip
"""What may tell volumes at the same positions apart, in this order."""

PIXEL_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "PlanarConfiguration",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_HEADER_TAGS = (
    *PIXEL_TAGS, "Modality", "SeriesInstanceUID", "SeriesNumber", "ImageType", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime", "DiffusionBValue", "InversionTime", "TriggerTime",
    "AcquisitionTime", "ContentTime",
)  # fmt: skip
_NO_IMAGE = ("1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.5.1.4.1.1.481", "1.2.840.10008.5.1.4.1.1.30",
             "1.2.840.10008.5.1.4.1.1.88", "1.2.840.10008.5.1.4.1.1.11", "1.2.840.10008.5.1.4.1.1.104",
             "1.2.840.10008.1.3.10", "1.2.840.10008.5.1.4.1.1.68", "1.2.840.10008.5.1.4.1.1.9")  # fmt: skip
_FILE_PROBLEMS = (OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError, IndexError)


@dataclass(frozen=True)
class Plane:
    """One image plane: a classic file, or one frame of an enhanced file (`frame` from 1, 0 for a classic file)."""

    path: Path
    frame: int
    series: str  # SeriesInstanceUID; where it is missing, the folder stands in for it
    series_number: int | None
    sop_instance: str
    shape: tuple[int, int]  # columns, rows
    position: NDArray[np.float64]  # LPS, mm
    orientation: NDArray[np.float64]  # (6,) along a row, then along a column
    spacing: tuple[float, float]  # between rows, between columns, as PixelSpacing has it
    frame_of_reference: str | None
    thickness: float | None
    stated_gap: float | None
    localizer: bool
    notes: tuple[str, ...]
    split: dict[str, str] = field(repr=False)

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the plane, LPS."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def along(self) -> float:
        """Position along the normal, in mm."""
        return float(self.position @ self.normal)


class NotAnImage(ScanError):
    """A DICOM object that is no image: not a failure."""


def is_dicom(path: Path) -> bool:
    """Whether the file carries DICOM's mark, DICM at byte 128."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def load_dataset(path: Path, tags: tuple[str, ...], pixels: bool = False) -> Any:
    """The header values named by `tags`; with `pixels` the file is read whole. Raises ScanError where it is broken."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with path.open("rb") as file:
            dataset = pydicom.dcmread(file, stop_before_pixels=not pixels, specific_tags=list(tags))
            if not pixels:
                _check_length(path, file, dataset)
            return dataset
    except ScanError:
        raise
    except InvalidDicomError as problem:
        raise ScanError(f"{path}: is no DICOM file (DICM is missing at byte 128)") from problem
    except _FILE_PROBLEMS as problem:
        raise ScanError(f"{path}: the DICOM file is cut short or damaged ({type(problem).__name__})") from problem


def _check_length(path: Path, file: Any, dataset: Any) -> None:
    """Refuse a file whose uncompressed pixels end before they should; the file stands before its pixels."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None or syntax.is_compressed or syntax.is_deflated or "Rows" not in dataset:
        return
    needed = frame_bytes(dataset) * int(dataset.get("NumberOfFrames") or 1)
    rest = path.stat().st_size - file.tell()
    if rest < needed:
        raise ScanError(f"{path}: is cut short: {max(0, rest)} bytes where its pixels need {needed}; copy it again")


def frame_bytes(dataset: Any) -> int:
    """Bytes of one uncompressed frame."""
    bits = int(dataset.get("BitsAllocated") or 8) * int(dataset.get("SamplesPerPixel") or 1)
    return int(dataset.Rows) * int(dataset.Columns) * bits // 8


def read_planes(path: Path) -> list[Plane]:
    """The planes of one file. Raises NotAnImage or ScanError with the reason."""
    dataset = load_dataset(path, _HEADER_TAGS)
    _check_image(path, dataset)
    try:
        if "PerFrameFunctionalGroupsSequence" in dataset:
            return [_plane_of_frame(path, dataset, number) for number in range(1, int(dataset.NumberOfFrames) + 1)]
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            raise ScanError(f"{path}: holds {dataset.NumberOfFrames} frames without a position each")
        return [_plane(path, dataset, [dataset], 0)]
    except ScanError:
        raise
    except _FILE_PROBLEMS as problem:
        raise ScanError(f"{path}: a value in the header cannot be used ({type(problem).__name__})") from problem


def _check_image(path: Path, dataset: Any) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    sop_class = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or ""
    no_image = any(sop_class == prefix or sop_class.startswith(prefix + ".") for prefix in _NO_IMAGE)
    if no_image or "Rows" not in dataset or "Columns" not in dataset:
        kind = getattr(sop_class, "name", "") or "an unnamed object"
        raise NotAnImage(f"DICOM, but not an image: {kind}")
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise ScanError(f"{path}: the header names no transfer syntax")
    if syntax.is_compressed:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError as problem:
            raise ScanError(f"{path}: {syntax.name} pixels cannot be decoded; save them uncompressed") from problem
        if not available:
            raise ScanError(_no_plugin(path, syntax.name))
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise ScanError(f"{path}: is a colour image ({dataset.get('PhotometricInterpretation')}), not a scan")
    if "MOSAIC" in (dataset.get("ImageType") or ()):
        raise ScanError(f"{path}: a mosaic of slices, whose header gives no position of each; convert it (dcm2niix)")
    if "ModalityLUTSequence" in dataset:
        raise ScanError(f"{path}: has a modality look-up table instead of slope and intercept, which is not read")


def _no_plugin(path: Path, syntax: str) -> str:
    return (
        f"{path}: no decoder for {syntax} pixels is installed; python -m pip install pylibjpeg pylibjpeg-libjpeg "
        f"pylibjpeg-openjpeg"
    )


def _plane_of_frame(path: Path, dataset: Any, number: int) -> Plane:
    per_frame = dataset.PerFrameFunctionalGroupsSequence[number - 1]
    shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
    sources = [*functional_groups(per_frame), *functional_groups(shared[0]), dataset]
    return _plane(path, dataset, sources, number)


def functional_groups(groups: Any) -> Iterator[Any]:
    """The first item of each functional group that tells of a plane."""
    for keyword in (
        "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "FrameContentSequence",
        "PixelValueTransformationSequence", "MREchoSequence", "MRDiffusionSequence", "MRImageFrameTypeSequence",
        "CTImageFrameTypeSequence", "PETFrameTypeSequence", "MRTimingAndRelatedParametersSequence",
        "TemporalPositionSequence",
    ):  # fmt: skip
        if groups is not None and groups.get(keyword):
            yield groups.get(keyword)[0]


def first_value(sources: Sequence[Any], keyword: str) -> Any:
    """The value of the first dataset that has one; None where none has."""
    return next((source.get(keyword) for source in sources if source.get(keyword) not in (None, "")), None)


def _plane(path: Path, dataset: Any, sources: Sequence[Any], frame: int) -> Plane:
    position = _numbers(sources, "ImagePositionPatient", 3)
    orientation = _numbers(sources, "ImageOrientationPatient", 6)
    spacing = _numbers(sources, "PixelSpacing", 2)
    for keyword, value in (
        ("ImagePositionPatient", position), ("ImageOrientationPatient", orientation), ("PixelSpacing", spacing)
    ):  # fmt: skip
        if value is None:
            raise ScanError(f"{path}: has no {keyword}, so nobody can say where its pixels lie in the patient")
    assert position is not None and orientation is not None and spacing is not None
    lengths, corner = np.linalg.norm(orientation.reshape(2, 3), axis=1), orientation[:3] @ orientation[3:]
    if np.abs(lengths - 1).max() > 1e-3 or abs(corner) > 1e-3 or spacing.min() <= 0:
        raise GeometryError(f"{path}: rows and columns are no right angle of unit vectors, or a pixel has no size")
    notes = []
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        notes.append("MONOCHROME1 (shown inverted): values are taken as stored")
    if "PixelPaddingValue" in dataset:
        notes.append("pixels of PixelPaddingValue, where there are any, take the smallest of the other values")
    number = dataset.get("SeriesNumber")
    split = {}
    for keyword in (*SPLIT_BY, "FrameAcquisitionNumber"):
        value = first_value(sources, keyword)
        if value is not None:
            split["AcquisitionNumber" if keyword == "FrameAcquisitionNumber" else keyword] = str(value)
    return Plane(
        path, frame, str(dataset.get("SeriesInstanceUID") or path.parent), None if number is None else int(number),
        str(dataset.get("SOPInstanceUID") or ""), (int(dataset.Columns), int(dataset.Rows)), position, orientation,
        (float(spacing[0]), float(spacing[1])), str(dataset.get("FrameOfReferenceUID") or "") or None,
        _number(first_value(sources, "SliceThickness")), _number(first_value(sources, "SpacingBetweenSlices")),
        "LOCALIZER" in (dataset.get("ImageType") or ()), tuple(notes), split,
    )  # fmt: skip


def _numbers(sources: Sequence[Any], keyword: str, count: int) -> NDArray[np.float64] | None:
    value = first_value(sources, keyword)
    if value is None:
        return None
    numbers = np.array([float(number) for number in value])
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def _number(value: Any) -> float | None:
    return None if value is None or not float(value) else abs(float(value))
