"""What the header of a DICOM file says about its image planes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import GeometryError, ScanError
from fewscan.scans.dicom_header import Header, open_dicom
from fewscan.scans.dicom_plain import plain_head
from fewscan.scans.quiet import quietly

SPLIT_BY = (
    "AcquisitionNumber", "TemporalPositionIdentifier", "EchoTime", "EffectiveEchoTime", "DiffusionBValue", "StackID",
    "TemporalPositionIndex", "ImageType", "FrameType", "InversionTime", "TriggerTime", "AcquisitionTime",
    "ContentTime",
)  # fmt: skip
"""What may tell volumes at the same positions apart, in this order."""

_YOUNG = {"1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage"}
"""Names that pydicom 3.0 does not know."""


@dataclass(frozen=True)
class Plane:
    """One image plane: a classic file, or one frame of an enhanced file (`frame` from 1, 0 for a classic file)."""

    path: Path
    frame: int
    series: str  # SeriesInstanceUID; where it is missing, the folder stands in for it
    study: str
    patient: str = field(repr=False)  # to tell patients apart; never shown
    series_number: int | None
    sop_instance: str
    shape: tuple[int, int]  # columns, rows
    position: NDArray[np.float64]  # LPS, mm
    orientation: NDArray[np.float64]  # (6,) along a row, then along a column
    spacing: tuple[float, float]  # between rows, between columns, as PixelSpacing has it
    frame_of_reference: str | None
    thickness: float | None
    stated_gap: float | None
    slice_location: float | None
    rescaled: bool  # whether the header gives a slope or an intercept
    localizer: bool
    secondary: bool  # a secondary capture: converted, or a screenshot
    notes: tuple[str, ...]
    split: dict[str, str] = field(repr=False)

    @cached_property
    def geometry(self) -> tuple[object, ...]:
        """Equal where orientation, matrix, spacing and frame of reference are equal to the last bit."""
        return self.orientation.tobytes(), self.shape, self.spacing, self.frame_of_reference

    @cached_property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the plane, LPS."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @cached_property
    def along(self) -> float:
        """Position along the normal, in mm."""
        return float(self.position @ self.normal)


class NotAnImage(ScanError):
    """A DICOM object that is no image: not a failure."""


class Picture(ScanError):
    """A colour image or a screenshot that names no place in the patient: no slice of a scan beside which it lies."""


class Screenshot(Picture):
    """A grey one (secondary capture): a slice after all, where the slices of its series are secondary captures too."""


@quietly()
def identity(path: Path) -> tuple[str, str]:
    """SeriesInstanceUID and SOPInstanceUID of a file that cannot be used, as far as they can be read; "" else."""
    import pydicom

    wanted = ["SeriesInstanceUID", "SOPInstanceUID"]
    try:
        header = pydicom.dcmread(plain_head(path), stop_before_pixels=True, force=True, specific_tags=wanted)
        return str(header.get("SeriesInstanceUID") or ""), str(header.get("SOPInstanceUID") or "")
    except Exception:  # pydicom raises types of many kinds
        return "", ""


@quietly()
def read_planes(path: Path) -> list[Plane]:
    """The planes of one file. Raises NotAnImage or ScanError with the reason."""
    with open_dicom(path) as (_, header):
        pass
    try:
        _check_image(path, header)
        if "PerFrameFunctionalGroupsSequence" in header:
            described = len(header.get("PerFrameFunctionalGroupsSequence"))
            if described != header.frames:
                raise ScanError(
                    f"{path}: holds {header.frames} frames, but {described} items of PerFrameFunctionalGroupsSequence, "
                    f"which say where they lie; export it again"
                )
            return [_plane_of_frame(path, header, number) for number in range(1, header.frames + 1)]
        if header.frames > 1:
            raise ScanError(f"{path}: holds {header.frames} frames without a position each")
        return [_plane(path, header, [header], 0)]
    except ScanError:
        raise
    except Exception as problem:  # pydicom raises types of many kinds
        raise ScanError(f"{path}: {header.wrong} in the header cannot be used ({type(problem).__name__})") from None


def _check_image(path: Path, header: Header) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    if header.is_no_image or "Rows" not in header or "Columns" not in header:
        kind, said = (name_of(uid) or "an unnamed object" for uid in (header.sop_class, header.media_class))
        if not header.is_no_image and said.endswith("Image Storage"):
            raise ScanError(f"{path}: is {said} without Rows and Columns: cut short or damaged; copy it again")
        raise NotAnImage(f"DICOM, but not an image: {kind}")
    if min(int(header.get("Rows") or 0), int(header.get("Columns") or 0)) < 1:
        raise ScanError(f"{path}: has {header.get('Columns')} x {header.get('Rows')} pixels")
    syntax = header.syntax
    if syntax is None:
        raise ScanError(f"{path}: the header names no transfer syntax")
    if syntax.is_compressed:
        try:
            available = get_decoder(syntax).is_available
        except NotImplementedError:
            raise ScanError(f"{path}: {name_of(syntax)} pixels cannot be decoded; save them uncompressed") from None
        if not available:
            raise ScanError(_no_plugin(path, syntax.name))
    colour = header.get("PhotometricInterpretation")
    placed = "ImagePositionPatient" in header or "PerFrameFunctionalGroupsSequence" in header
    if int(header.get("SamplesPerPixel") or 1) != 1 or colour == "PALETTE COLOR":
        raise (ScanError if placed else Picture)(f"{path}: is a colour image, not a scan")
    if not placed and _is_secondary(header):
        raise Screenshot(f"{path}: has no ImagePositionPatient: a screenshot (secondary capture), not a scan")
    if "MOSAIC" in (header.get("ImageType") or ()):
        raise ScanError(f"{path}: a mosaic of slices, whose header gives no position of each; convert it (dcm2niix)")
    if "ModalityLUTSequence" in header:
        raise ScanError(f"{path}: has a modality look-up table instead of slope and intercept, which is not read")


def _is_secondary(header: Header) -> bool:
    return f"{header.sop_class}.".startswith("1.2.840.10008.5.1.4.1.1.7.")


def name_of(uid: Any) -> str:
    """The name that DICOM gives to a UID; "" for others, which may hold anything."""
    from pydicom.uid import UID

    name = _YOUNG.get(str(uid)) or str(UID(str(uid)).name)
    return "" if name == str(uid) else name


def _no_plugin(path: Path, syntax: str) -> str:
    return (
        f"{path}: no decoder for {syntax} pixels is installed; python -m pip install pylibjpeg pylibjpeg-libjpeg "
        f"pylibjpeg-openjpeg"
    )


def _plane_of_frame(path: Path, header: Header, number: int) -> Plane:
    return _plane(path, header, sources_of_frame(header, number), number)


def sources_of_frame(header: Header, number: int) -> list[Any]:
    """What tells of a frame (from 1), the nearest first: its own functional groups, those of all, the header."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence")[number - 1]
    shared = header.get("SharedFunctionalGroupsSequence") or [None]
    return [*_functional_groups(per_frame), *_functional_groups(shared[0]), header]


def _functional_groups(groups: Any) -> Iterator[Any]:
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
    for source in sources:
        value = source.get(keyword)
        if value is not None and value != "":
            return value
    return None


def _plane(path: Path, header: Header, sources: Sequence[Any], frame: int) -> Plane:
    position = _numbers(sources, "ImagePositionPatient", 3)
    orientation = _numbers(sources, "ImageOrientationPatient", 6)
    spacing = _numbers(sources, "PixelSpacing", 2)
    for keyword, value in (
        ("ImagePositionPatient", position), ("ImageOrientationPatient", orientation), ("PixelSpacing", spacing)
    ):  # fmt: skip
        if value is None:
            raise ScanError(f"{path}: has no {keyword}, so nobody can say where its pixels lie in the patient")
    assert position is not None and orientation is not None and spacing is not None
    lengths, cosine = np.linalg.norm(orientation.reshape(2, 3), axis=1), orientation[:3] @ orientation[3:]
    if np.abs(lengths - 1).max() > 1e-3 or abs(cosine) > 1e-3:
        raise GeometryError(
            f"{path}: rows and columns are no right angle of unit vectors: ImageOrientationPatient has vectors of "
            f"lengths {lengths[0]:.4g} and {lengths[1]:.4g}, with a cosine of {cosine:.3g} between them"
        )
    if spacing.min() <= 0:
        raise GeometryError(f"{path}: has pixels of {spacing[1]:g} x {spacing[0]:g} mm (PixelSpacing)")
    notes = []
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        notes.append("MONOCHROME1 (shown inverted): values are taken as stored")
    if "PixelPaddingValue" in header:
        notes.append("pixels of PixelPaddingValue, where there are any, take the smallest of the other values")
    number = header.get("SeriesNumber") if header.is_readable("SeriesNumber") else None  # in names alone
    split = {}
    for keyword in (*SPLIT_BY, "FrameAcquisitionNumber"):
        value = first_value(sources, keyword)
        if value is not None:
            split["AcquisitionNumber" if keyword == "FrameAcquisitionNumber" else keyword] = str(value)
    return Plane(
        path, frame, str(header.get("SeriesInstanceUID") or path.parent), str(header.get("StudyInstanceUID") or ""),
        str(header.get("PatientID") or ""), None if number is None else int(number),
        str(header.get("SOPInstanceUID") or ""), (int(header.get("Columns")), int(header.get("Rows"))), position,
        orientation, (float(spacing[0]), float(spacing[1])), str(header.get("FrameOfReferenceUID") or "") or None,
        _number(first_value(sources, "SliceThickness")), _number(first_value(sources, "SpacingBetweenSlices")),
        _location(first_value(sources, "SliceLocation")),
        any(first_value(sources, keyword) is not None for keyword in ("RescaleSlope", "RescaleIntercept")),
        "LOCALIZER" in (header.get("ImageType") or ()), _is_secondary(header), tuple(notes), split,
    )  # fmt: skip


def _numbers(sources: Sequence[Any], keyword: str, count: int) -> NDArray[np.float64] | None:
    value = first_value(sources, keyword)
    if value is None:
        return None
    numbers = np.array([float(number) for number in value])
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def _number(value: Any) -> float | None:
    """A length in mm; None where nobody could mean it: 0, NaN, or one with which nothing can be counted."""
    number = 0.0 if value is None else abs(float(value))
    return number if 1e-6 < number < 1e6 else None


def _location(value: Any) -> float | None:
    return float(value) if value is not None and np.isfinite(float(value)) else None
