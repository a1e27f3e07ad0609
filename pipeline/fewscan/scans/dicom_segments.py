"""DICOM SEG read: each frame is a mask of its own, where its position says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from fewscan.errors import GeometryError, ScanError
from fewscan.grid import LPS_FROM_RAS, Grid
from fewscan.scans.dicom_frames import Frames, open_frames
from fewscan.scans.quiet import quietly
from fewscan.scans.segments import Part, Segment

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of DICOM SEG and of its label maps."""


class NotASegmentation(ScanError):
    """A DICOM object that holds no segments: not a failure where it lies beside one."""


def read_dicom_segments(path: Path) -> Iterator[Part]:
    """The frames of a DICOM SEG: binary, one segment each, or label maps. Raises ScanError where it holds no masks."""
    with _open(path) as (seg, frame_of):
        with quietly():  # values are converted where they are asked for
            kind = str(seg.get("SegmentationType"))
            if kind not in ("BINARY", "LABELMAP"):
                known = kind if kind == "FRACTIONAL" else "unknown"
                raise ScanError(f"{path}: its SegmentationType is {known}; save it as BINARY or LABELMAP")
            segments = {int(item.SegmentNumber): _segment(item) for item in seg.get("SegmentSequence") or ()}
            frames = seg.get("PerFrameFunctionalGroupsSequence")
            if not frames or not segments:
                raise ScanError(f"{path}: has no segments, or frames without positions")
            if int(seg.get("NumberOfFrames") or 1) != len(frames):
                raise ScanError(f"{path}: {seg.NumberOfFrames} frames of pixels, but positions of {len(frames)}")
            shared = (seg.get("SharedFunctionalGroupsSequence") or [{}])[0]
            frame_of_reference = seg.get("FrameOfReferenceUID")
        for n, item in enumerate(frames):
            with quietly():
                plane = frame_of(n)
                grid = _grid(item, shared, plane.shape, frame_of_reference, path)
                if kind == "BINARY":
                    number = int(_group(item, shared, "SegmentIdentificationSequence", path).ReferencedSegmentNumber)
                    found = {number: plane > 0}
                else:
                    found = {int(number): plane == number for number in np.unique(plane) if number}
            for number, mask in found.items():
                if number not in segments:
                    raise ScanError(f"{path}: a frame is of segment {number}, which the header does not describe")
                yield Part(segments[number], mask.T[..., None], grid)


def referenced_series(path: Path) -> list[str]:
    """The SeriesInstanceUIDs that a DICOM SEG refers to. Raises NotASegmentation where the file is none."""
    with _open(path) as (seg, _), quietly():
        return [str(item.SeriesInstanceUID) for item in seg.get("ReferencedSeriesSequence") or ()]


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Frames]]:
    """A DICOM SEG; ScanError where the file is none. Warnings, which may quote names, are silenced."""
    with ExitStack() as stack:
        with quietly():
            try:
                seg, frame_of = stack.enter_context(open_frames(path))
                is_seg = str(seg.get("SOPClassUID")) in SEGMENTATIONS
            except ScanError:
                raise
            except Exception as problem:  # pydicom raises types of many kinds
                raise ScanError(f"{path}: cannot be read as DICOM ({type(problem).__name__})") from None
        if not is_seg:
            raise NotASegmentation(f"{path}: is DICOM, but no segmentation")
        yield seg, frame_of


def _segment(item: Any) -> Segment:
    kind = item.get("SegmentedPropertyTypeCodeSequence")
    modifier = kind[0].get("SegmentedPropertyTypeModifierCodeSequence") if kind else None
    return Segment(
        str(item.get("SegmentLabel") or "") or None,
        int(item.SegmentNumber),
        _code(kind[0]) if kind else None,
        _code(modifier[0]) if modifier else None,
    )


def _code(item: Any) -> tuple[str, str]:
    return str(item.get("CodingSchemeDesignator")), str(item.get("CodeValue"))


def _grid(frame: Any, shared: Any, shape: tuple[int, ...], frame_of_reference: str | None, path: Path) -> Grid:
    """Of one frame, (columns, rows, 1); the step along the third axis moves nothing."""
    try:
        position = _group(frame, shared, "PlanePositionSequence", path).ImagePositionPatient
        along = _group(frame, shared, "PlaneOrientationSequence", path).ImageOrientationPatient
        between_rows, between_columns = _group(frame, shared, "PixelMeasuresSequence", path).PixelSpacing
        lps = np.eye(4)
        row, column = np.array([float(x) for x in along]).reshape(2, 3)
        lps[:3, 0], lps[:3, 1] = row * float(between_columns), column * float(between_rows)
        lps[:3, 2] = np.cross(row, column)
        lps[:3, 3] = [float(x) for x in position]
        uid = None if frame_of_reference is None else str(frame_of_reference)
        return Grid((shape[1], shape[0], 1), LPS_FROM_RAS @ lps, uid)
    except (AttributeError, TypeError, ValueError):
        raise GeometryError(f"{path}: a frame has no position, orientation or pixel spacing") from None


def _group(frame: Any, shared: Any, name: str, path: Path) -> Any:
    """The item of a functional group, from the frame or from what all frames share."""
    sequence = frame.get(name) or shared.get(name)
    if not sequence:
        raise GeometryError(f"{path}: a frame has no {name}")
    return sequence[0]
