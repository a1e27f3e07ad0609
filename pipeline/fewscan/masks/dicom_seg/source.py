"""What a DICOM-SEG takes over from the headers of its source series."""

from __future__ import annotations

from copy import copy
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
_PLANE = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
}
_OF_ALL_FRAMES = ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


def sources_of(scan: Scan) -> list[Any]:
    """The source's headers without pixels, one for each plane in their order; a frame's as if it were a file.

    What highdicom insists on and a tolerant reader does not is made good in memory: attributes that may be empty
    but are missing, one orientation for all slices, a slice thickness (the distance between the planes, where none
    is stated). SpacingBetweenSlices, by which dcmqi counts planes, is the distance of the positions: scanners state
    the gap alone, or a negative number.
    """
    import pydicom

    files = {file: pydicom.dcmread(file, stop_before_pixels=True) for file in dict.fromkeys(scan.files)}
    headers = [files[file] for file in scan.files]
    if scan.frames:
        headers = [_of_frame(header, frame) for header, frame in zip(headers, scan.frames, strict=True)]
    distance = f"{distance_mm(scan.grid):.10g}"
    for header in headers:
        for name in TYPE_2:
            if name not in header:
                setattr(header, name, "")
        header.ImageOrientationPatient = headers[0].ImageOrientationPatient
        if not header.get("SliceThickness"):
            header.SliceThickness = distance
        if scan.grid.shape[2] > 1:
            header.SpacingBetweenSlices = distance
    return headers


def _of_frame(header: Any, number: int) -> Any:
    """The header of an enhanced file as if one of its frames, from 1, were a file."""
    from pydicom import Dataset

    own = header.PerFrameFunctionalGroupsSequence[number - 1]
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    frame = Dataset({element.tag: copy(element) for element in header if element.keyword not in _OF_ALL_FRAMES})
    for name, keywords in _PLANE.items():
        item = group(own, shared, name)
        for keyword in keywords:
            if keyword in item:
                frame[keyword] = copy(item[keyword])
    return frame


def distance_mm(grid: Grid) -> float:
    """Between neighbouring planes, along their normal."""
    i, j, k = grid.affine[:3, :3].T
    normal = np.cross(i, j)
    return float(abs(normal @ k) / np.linalg.norm(normal))


def images_of(scan: Scan, sources: list[Any]) -> dict[tuple[str, int], int]:
    """(SOPInstanceUID, frame number from 1) of each plane, to its index k."""
    frames, places = scan.frames or [1] * len(sources), scan.planes or range(len(sources))
    uids = [str(source.SOPInstanceUID) for source in sources]
    return dict(zip(zip(uids, frames, strict=True), places, strict=True))


def series_number(source: Any) -> int:
    """The source's, 0 where it is none or negative."""
    try:
        return max(0, int(source.get("SeriesNumber") or 0))
    except ValueError:
        return 0


def set_aside(sources: list[Any]) -> dict[str, Any]:
    """Empty in all sources what a SEG copies and DICOM forbids (a sex of "U", a date of "1970"); the first's elements.

    highdicom refuses it, but a PACS knows patient and study by what the source says.
    """
    wrong = {name: sources[0][name] for name in TYPE_2 if _is_wrong(sources[0][name])}
    for name in wrong:
        for source in sources:
            element = copy(source[name])
            element.value = ""
            source[name] = element
    return wrong


def _is_wrong(element: Any) -> bool:
    from pydicom import config, valuerep

    if element.value in (None, ""):
        return False
    if element.keyword == "PatientSex" and element.value not in ("M", "F", "O"):
        return True
    try:
        valuerep.validate_value(element.VR, str(element.value), config.RAISE)
    except ValueError:
        return True
    return bool(element.VM > 1)


def group(frame: Any, shared: Any, name: str) -> Any:
    """The item of a functional group, from the frame or, where all frames share it, from the shared ones."""
    sequence = frame.get(name) or shared.get(name)
    if not sequence:
        raise FormatError(f"a frame has no {name}")
    return sequence[0]


def numbers(values: Any) -> NDArray[np.float64]:
    """The numbers of an element of several."""
    return np.array([float(value) for value in values])
