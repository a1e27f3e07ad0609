"""What a DICOM-SEG takes over from the headers of its source series."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import FormatError
from fewscan.grid import Grid
from fewscan.scans.scan import Scan

TYPE_2 = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Of patient and study; DICOM lets them be empty, but not missing."""


def sources_of(scan: Scan) -> list[Any]:
    """The source's headers in the order of the planes, without pixels; one for an enhanced (multi-frame) file.

    What highdicom insists on and a tolerant reader does not is made good in memory: attributes that may be empty
    but are missing, one orientation for all slices, a slice thickness (the distance between the planes, where none
    is stated), and groups that an enhanced file repeats for each frame. SpacingBetweenSlices, by which dcmqi counts
    planes, is the distance of the positions: scanners state the gap alone, or a negative number.
    """
    import pydicom

    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in dict.fromkeys(scan.files)]
    distance = f"{distance_mm(scan.grid):.10g}"
    for header in headers:
        for name in TYPE_2:
            if name not in header:
                setattr(header, name, "")
        if scan.frames:
            shared = header.SharedFunctionalGroupsSequence[0]
            ours = header.PerFrameFunctionalGroupsSequence[scan.frames[0] - 1]
            for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
                if name not in shared:
                    setattr(shared, name, getattr(ours, name))
            measures = shared.PixelMeasuresSequence[0]
        else:
            header.ImageOrientationPatient = headers[0].ImageOrientationPatient
            measures = header
        if not measures.get("SliceThickness"):
            measures.SliceThickness = distance
        if scan.grid.shape[2] > 1:
            measures.SpacingBetweenSlices = distance
    return headers


def distance_mm(grid: Grid) -> float:
    """Between neighbouring planes, along their normal."""
    i, j, k = grid.affine[:3, :3].T
    normal = np.cross(i, j)
    return float(abs(normal @ k) / np.linalg.norm(normal))


def planes_of(scan: Scan, sources: list[Any]) -> dict[tuple[str, int], int]:
    """(SOPInstanceUID, frame number from 1) of each plane, to its index k."""
    places = scan.planes or range(len(scan.files))
    if scan.frames:
        return {(str(sources[0].SOPInstanceUID), frame): k for k, frame in zip(places, scan.frames, strict=True)}
    return {(str(header.SOPInstanceUID), 1): k for k, header in zip(places, sources, strict=True)}


def unusable(source: Any) -> list[str]:
    """Keywords of what a SEG copies from its source and the source lacks or has in a form that DICOM forbids."""
    from pydicom import config, valuerep

    wrong = [name for name in ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID") if not source.get(name)]
    if str(source.get("PatientSex") or "O") not in ("M", "F", "O"):
        wrong.append("PatientSex")
    for name in TYPE_2:
        element = source.data_element(name) if name in source else None
        if element is not None and element.value not in (None, ""):
            try:
                valuerep.validate_value(element.VR, str(element.value), config.RAISE)
            except ValueError:
                wrong.append(name)
    return wrong


def group(frame: Any, shared: Any, name: str) -> Any:
    """The item of a functional group, from the frame or, where all frames share it, from the shared ones."""
    sequence = frame.get(name) or shared.get(name)
    if not sequence:
        raise FormatError(f"a frame has no {name}")
    return sequence[0]


def numbers(values: Any) -> NDArray[np.float64]:
    """The numbers of an element of several."""
    return np.array([float(value) for value in values])
