"""DICOM-SEG masks: segments on the frames of the source series, coded and coloured; each a frame of bits."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan import __version__
from fewscan.arrays import release
from fewscan.errors import FormatError
from fewscan.grid import LPS_FROM_RAS, Grid
from fewscan.labels import Label, LabelTable
from fewscan.masks.dicom_seg_frames import present_first, save
from fewscan.masks.dicom_seg_identity import make_reproducible
from fewscan.masks.dicom_seg_pixels import Frames, opened
from fewscan.scans.quiet import quietly
from fewscan.scans.scan import Scan
from fewscan.terminology import Code

_TYPE_2 = (
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
_IDENTITY = ("StudyInstanceUID", "FrameOfReferenceUID", *_TYPE_2)
_KIND = {
    "BINARY": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "BitsAllocated": "1"},
    "LABELMAP": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.7", "PixelPaddingValue": "0"},
}


@quietly()
def write(
    path: Path,
    values: NDArray[Any],
    scan: Scan,
    table: LabelTable,
    provenance: Mapping[str, str],
    reproducible: bool = False,
) -> None:
    """Write `values` (i, j, k) as one BINARY DICOM-SEG, large ones deflated; frames without label are left out.

    Every label of the table is a segment, present ones first (see `present_first`); an empty mask keeps one empty frame
    for each segment. `reproducible` is as in `write_mask`. Raises FormatError where the source cannot carry a SEG.
    """
    table, found = present_first(values, table, scan.planes)
    seg, planes = describe("BINARY", found, scan, table, provenance, values if reproducible else None)
    numbers = range(1, len(table) + 1)
    frames = [(number, item) for number in numbers for item, k in enumerate(planes) if found[k, number - 1]]
    save(path, seg, values, table, frames or [(number, 0) for number in numbers], planes)


def describe(
    kind: str,
    found: NDArray[np.bool_],
    scan: Scan,
    table: LabelTable,
    provenance: Mapping[str, str],
    named_after: NDArray[Any] | None = None,
) -> tuple[Any, list[int]]:
    """A SEG whose pixels are still to come, as highdicom makes it, and the plane k of each of its per-frame items.

    `kind` is BINARY or LABELMAP. The items are those of each plane where a label was `found` (planes, labels), for the
    first segment of a BINARY; of an empty mask that of one plane. highdicom is given planes of one pixel. UIDs and
    times follow from the label values `named_after` (i, j, k) where they are given. Raises FormatError where the source
    cannot carry a SEG.

    The background of a LABELMAP, segment 0, comes last: each pixel value has to be described (DICOM PS3.3, C.8.20.2.3),
    but OHIF up to 3.13 takes the n-th item for segment n, and so gives each segment the colour of the one before it
    where the background comes first.
    """
    import highdicom
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    occupied = np.array([labels.any() for labels in found], dtype=np.uint16)
    sources = _sources(scan)
    for source in sources:
        source.Rows = source.Columns = 1
    algorithm = _algorithm(provenance)
    ascii_names = all(label.name.isascii() for label in table)
    try:
        segments = [_segment(number, label, algorithm) for number, label in enumerate(table, start=1)]
        seg = highdicom.seg.Segmentation(
            source_images=sources,
            **_planes(occupied[None, None], scan, sources),
            segmentation_type=kind,
            segment_descriptions=segments[:2] if kind == "BINARY" else segments,  # it looks at each in each plane
            series_instance_uid=highdicom.UID(),
            series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="fewscan",
            manufacturer_model_name="fewscan",
            software_versions=__version__,
            device_serial_number=provenance.get("model_sha256", "0")[:16],
            content_label="SEGMENTATION",
            content_description="Automatic segmentation",
            content_creator_name="fewscan^",
            series_description="fewscan segmentation",
            specific_character_set=sources[0].get("SpecificCharacterSet") if ascii_names else "ISO_IR 192",
            transfer_syntax_uid=RLELossless if kind == "LABELMAP" else ExplicitVRLittleEndian,
        )
    except (ValueError, TypeError, AttributeError, KeyError) as problem:
        wrong = _unusable(sources[0])
        why = f"its {', '.join(wrong)} cannot be copied" if wrong else f"{type(problem).__name__} in highdicom"
        raise FormatError(
            f"{scan.name}: a DICOM-SEG cannot be made from this series: {why}; choose nifti or seg-nrrd"
        ) from problem
    seg.Columns, seg.Rows = scan.grid.shape[:2]
    seg.SegmentSequence = [*segments, *(item for item in seg.SegmentSequence if item.SegmentNumber == 0)]
    items = seg.PerFrameFunctionalGroupsSequence
    if not occupied.any():
        del items[1:]
    if named_after is not None:
        make_reproducible(seg, sources[0], named_after)
    places = _planes_of_sources(scan, sources)
    return seg, [places[_source_of(item)] for item in items]


def _unusable(source: Any) -> list[str]:
    """Keywords of what a SEG copies from its source and the source lacks or has in a form that DICOM forbids."""
    from pydicom import config, valuerep

    wrong = [name for name in ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID") if not source.get(name)]
    if str(source.get("PatientSex") or "O") not in ("M", "F", "O"):
        wrong.append("PatientSex")
    for name in _TYPE_2:
        element = source.data_element(name) if name in source else None
        if element is not None and element.value not in (None, ""):
            try:
                valuerep.validate_value(element.VR, str(element.value), config.RAISE)
            except ValueError:
                wrong.append(name)
    return wrong


@quietly()
def check(path: Path, values: NDArray[Any], scan: Scan, table: LabelTable, kind: str = "BINARY") -> None:
    """Read back and compare voxel for voxel, twice; raises FormatError on any difference.

    3D Slicer (dcmqi) places frames by their position, OHIF by their reference to a source image: both have to give
    `values` on the scan's grid. Patient, study, frame of reference and the images referred to have to be the source's,
    and the segments those of the table, in number, name, code and colour.
    """
    table, _ = present_first(values, table, scan.planes)
    sources = _sources(scan)
    with opened(path) as (seg, pixels):
        _check_header(seg, path.name, scan, sources, table, kind)
        placed = _placed(seg, path.name, scan, sources)
        wrong = {"position": 0, "source image": 0}
        for k in range(scan.grid.shape[2]):
            by_position, by_reference = placed[k]
            expected, where = np.ascontiguousarray(values[:, :, k].T), f"{path.name}: plane {k}"
            if scan.planes and k not in scan.planes:  # only what was imaged can be referred to
                expected = np.zeros_like(expected)
            found = table.to_values(_composed(pixels, by_position, expected.shape, len(table), where))
            wrong["position"] += int(np.count_nonzero(expected != found))
            if by_reference != by_position:
                found = table.to_values(_composed(pixels, by_reference, expected.shape, len(table), where))
            wrong["source image"] += int(np.count_nonzero(expected != found))
            release(values)
    for way, many in wrong.items():
        if many:
            raise FormatError(f"{path.name}: placed by their {way}, its frames give {many} wrong voxels")


def _check_header(seg: Any, where: str, scan: Scan, sources: list[Any], table: LabelTable, kind: str) -> None:
    """Raise FormatError where anything but the frames is not as it was written."""
    if seg.get("SegmentationType") != kind:
        raise FormatError(f"{where}: is no {kind} segmentation")
    for name in _IDENTITY:
        if str(seg.get(name) or "") != str(sources[0].get(name) or ""):
            raise FormatError(f"{where}: {name} is not that of the source series")
    if seg.get("FrameOfReferenceUID") != scan.grid.frame_of_reference:
        raise FormatError(f"{where}: FrameOfReferenceUID is not that of the scan")
    for name, expected in {**_KIND[kind], "Modality": "SEG", "SamplesPerPixel": "1"}.items():
        if str(seg.get(name)) != expected:
            raise FormatError(f"{where}: {name} is not {expected}")
    _check_references(seg, where, sources)
    algorithm = _algorithm({})
    wanted = [_described(_segment(number, label, algorithm)) for number, label in enumerate(table, start=1)]
    segments = list(seg.SegmentSequence)
    if kind == "LABELMAP" and segments and segments[-1].SegmentNumber == 0:
        del segments[-1]  # the background
    elif kind == "LABELMAP":
        raise FormatError(f"{where}: its background is not the last segment")
    if [_described(item) for item in segments] != wanted:
        raise FormatError(f"{where}: the segments are not the labels of the table")


def _check_references(seg: Any, where: str, sources: list[Any]) -> None:
    """Raise FormatError unless the file names the source's series with all its images, and is none of them itself."""
    series = seg.get("ReferencedSeriesSequence") or ()
    named = [
        (str(one.SeriesInstanceUID), str(image.ReferencedSOPClassUID), str(image.ReferencedSOPInstanceUID))
        for one in series
        for image in one.ReferencedInstanceSequence
    ]
    wanted = [(str(s.get("SeriesInstanceUID")), str(s.SOPClassUID), str(s.SOPInstanceUID)) for s in sources]
    if len(series) != 1 or sorted(named) != sorted(wanted):
        raise FormatError(f"{where}: the images of its ReferencedSeriesSequence are not those of the source series")
    if seg.SOPInstanceUID in {s.SOPInstanceUID for s in sources} or seg.SeriesInstanceUID == wanted[0][0]:
        raise FormatError(f"{where}: has a UID of the source series")
    if seg.file_meta.MediaStorageSOPInstanceUID != seg.SOPInstanceUID:
        raise FormatError(f"{where}: is another SOP instance by its file meta information than by its header")


def _described(segment: Any) -> tuple[Any, ...]:
    """What a segment says of itself: number, name, category, type and modifier, colour."""
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    codes = (
        segment.SegmentedPropertyCategoryCodeSequence,
        segment.SegmentedPropertyTypeCodeSequence,
        kind.get("SegmentedPropertyTypeModifierCodeSequence") or (),
    )
    coded = tuple((str(item.CodingSchemeDesignator), str(item.CodeValue)) for code in codes for item in code)
    colour = tuple(segment.RecommendedDisplayCIELabValue)
    return int(segment.SegmentNumber), str(segment.SegmentLabel), coded, colour


Placed = tuple[list[tuple[int, int]], list[tuple[int, int]]]
"""Of a plane: the frames by their position and by their source image, each with its segment, 0 in a label map."""


def _placed(seg: Any, where: str, scan: Scan, sources: list[Any]) -> list[Placed]:
    """The frames of each plane k of the scan."""
    if (seg.Columns, seg.Rows) != scan.grid.shape[:2]:
        raise FormatError(f"{where}: has {seg.Columns} x {seg.Rows} pixels, the scan {scan.grid.shape[:2]}")
    planes = _planes_of_sources(scan, sources)
    shared = seg.SharedFunctionalGroupsSequence[0]
    frames = seg.PerFrameFunctionalGroupsSequence
    if len(frames) != int(seg.NumberOfFrames):
        raise FormatError(f"{where}: {seg.NumberOfFrames} frames and {len(frames)} positions disagree")
    placed: list[Placed] = [([], []) for _ in range(scan.grid.shape[2])]
    for n, frame in enumerate(frames):
        number = 0
        if seg.SegmentationType == "BINARY":
            number = int(_group(frame, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        placed[_plane_at(frame, shared, where, scan.grid)][0].append((n, number))
        placed[_plane_of(frame, shared, where, planes, sources[0])][1].append((n, number))
        frame.clear()  # of thousands: pydicom keeps what it has parsed
    return placed


def _composed(
    pixels: Frames, frames: list[tuple[int, int]], shape: tuple[int, ...], segments: int, where: str
) -> NDArray[np.uint16]:
    """The segments (rows, columns) of one plane; FormatError where two frames mark a pixel, or a segment is none."""
    classes = np.zeros(shape, dtype=np.uint16)
    for n, number in frames:
        frame = pixels(n)
        inside = frame > 0
        if np.logical_and(classes, inside).any():
            raise FormatError(f"{where}: two frames mark the same voxels")
        np.copyto(classes, number or frame, where=inside)
    if classes.max() > segments:
        raise FormatError(f"{where} holds segment {classes.max()}, of {segments}")
    return classes


def _plane_of(frame: Any, shared: Any, where: str, planes: dict[tuple[str, int], int], source: Any) -> int:
    """The index k of the plane whose image a frame refers to; FormatError where that is none, or several."""
    found = set()
    for derivation in frame.get("DerivationImageSequence") or shared.get("DerivationImageSequence") or ():
        for image in derivation.SourceImageSequence:
            named = (str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber") or 1))
            if named not in planes or image.ReferencedSOPClassUID != source.SOPClassUID:
                raise FormatError(f"{where}: a frame refers to an image that is not of the scan")
            found.add(planes[named])
    if len(found) != 1:
        raise FormatError(f"{where}: a frame refers to images of {len(found)} planes, where it has to be one")
    return found.pop()


def _plane_at(frame: Any, shared: Any, where: str, grid: Grid) -> int:
    """The index k of the plane on which a frame lies; FormatError where it lies on none (within 0.1 voxel)."""
    corner = _numbers(_group(frame, shared, "PlanePositionSequence").ImagePositionPatient)
    along_row, along_column = _numbers(
        _group(frame, shared, "PlaneOrientationSequence").ImageOrientationPatient
    ).reshape(2, 3)
    measures = _group(frame, shared, "PixelMeasuresSequence")
    between_rows, between_columns = _numbers(measures.PixelSpacing)
    distance = _distance_mm(grid)
    if grid.shape[2] > 1 and not abs(float(measures.SpacingBetweenSlices) - distance) <= 1e-3 * distance:
        raise FormatError(  # dcmqi, and so 3D Slicer, counts planes with it
            f"{where}: SpacingBetweenSlices is {measures.SpacingBetweenSlices} mm, but planes lie {distance:.6g} apart"
        )
    last_i, last_j = grid.shape[0] - 1, grid.shape[1] - 1
    corners_lps = np.array(
        [corner, corner + along_row * between_columns * last_i, corner + along_column * between_rows * last_j]
    )
    index = np.column_stack([corners_lps, np.ones(3)]) @ (np.linalg.inv(grid.affine) @ LPS_FROM_RAS).T
    k = round(float(index[0, 2]))
    off = float(np.abs(index[:, :3] - [(0, 0, k), (last_i, 0, k), (0, last_j, k)]).max())
    if off > 0.1 or not 0 <= k < grid.shape[2]:
        raise FormatError(f"{where}: a frame lies on no plane of the scan ({off:.3g} voxels from plane {k})")
    return k


def _group(frame: Any, shared: Any, name: str) -> Any:
    """The item of a functional group, from the frame or, where all frames share it, from the shared ones."""
    sequence = frame.get(name) or shared.get(name)
    if not sequence:
        raise FormatError(f"a frame has no {name}")
    return sequence[0]


def _numbers(values: Any) -> NDArray[np.float64]:
    return np.array([float(value) for value in values])


def _sources(scan: Scan) -> list[Any]:
    """The source's headers in the order of the planes, without pixels; one for an enhanced (multi-frame) file.

    What highdicom insists on and a tolerant reader does not is made good in memory: attributes that may be empty
    but are missing, one orientation for all slices, a slice thickness (the distance between the planes, where none
    is stated), and groups that an enhanced file repeats for each frame. SpacingBetweenSlices, by which dcmqi counts
    planes, is the distance of the positions: scanners state the gap alone, or a negative number.
    """
    import pydicom

    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in dict.fromkeys(scan.files)]
    distance = f"{_distance_mm(scan.grid):.10g}"
    for header in headers:
        for name in _TYPE_2:
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


def _distance_mm(grid: Grid) -> float:
    """Between neighbouring planes, along their normal."""
    i, j, k = grid.affine[:3, :3].T
    normal = np.cross(i, j)
    return float(abs(normal @ k) / np.linalg.norm(normal))


def _planes_of_sources(scan: Scan, sources: list[Any]) -> dict[tuple[str, int], int]:
    """(SOPInstanceUID, frame number from 1) of each plane, to its index k."""
    places = scan.planes or range(len(scan.files))
    if scan.frames:
        return {(str(sources[0].SOPInstanceUID), frame): k for k, frame in zip(places, scan.frames, strict=True)}
    return {(str(header.SOPInstanceUID), 1): k for k, header in zip(places, sources, strict=True)}


def _source_of(frame: Any) -> tuple[str, int]:
    """SOPInstanceUID and frame number, from 1, of the image that a frame was made from."""
    image = frame.DerivationImageSequence[0].SourceImageSequence[0]
    return str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber") or 1)


def _planes(classes: NDArray[np.uint16], scan: Scan, sources: list[Any]) -> dict[str, Any]:
    """The planes (plane, row, column) as highdicom pairs them with the source: our files, or the frames of one file."""
    import highdicom

    planes = classes.transpose(2, 1, 0)
    planes = planes[list(scan.planes)] if scan.planes else planes
    if not planes.any():  # highdicom would keep every plane of every segment
        frame = sources[0].PerFrameFunctionalGroupsSequence[scan.frames[0] - 1] if scan.frames else None
        at = sources[0] if frame is None else _group(frame, frame, "PlanePositionSequence")
        position = highdicom.PlanePositionSequence("PATIENT", _numbers(at.ImagePositionPatient))
        return {"pixel_array": planes[:1], "plane_positions": [position], "omit_empty_frames": False}
    if scan.frames:
        frames = np.zeros((int(sources[0].NumberOfFrames), *planes.shape[1:]), dtype=planes.dtype)
        frames[np.array(scan.frames) - 1] = planes
        planes = frames
    return {"pixel_array": planes, "omit_empty_frames": True}


def _segment(number: int, label: Label, algorithm: Any) -> Any:
    import highdicom

    meaning = label.meaning
    segment = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=_text(label.name),
        segmented_property_category=_coded(meaning.category),
        segmented_property_type=_coded(meaning.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=deepcopy(algorithm),
        display_color=highdicom.color.CIELabColor.from_rgb(*label.colour),
    )
    if meaning.modifier is not None:
        item = segment.SegmentedPropertyTypeCodeSequence[0]
        item.SegmentedPropertyTypeModifierCodeSequence = [_coded(meaning.modifier)]
    return segment


def _coded(code: Code) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, _text(code.meaning))


def _algorithm(provenance: Mapping[str, str]) -> Any:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.AlgorithmIdentificationSequence(
        name=_text(provenance.get("bundle", "fewscan")),
        family=codes.DCM.ArtificialIntelligence,
        version=_text(provenance.get("version", __version__)),
        source="fewscan",
        parameters={key: value for key, value in provenance.items() if key not in ("bundle", "version")} or None,
    )


def _text(text: str) -> str:
    """As DICOM's LO takes it: at most 64 characters, no backslash (it separates values)."""
    return text.replace("\\", "/")[:64].strip()
