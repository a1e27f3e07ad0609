"""A DICOM-SEG read back: every frame, by its position and by the image it refers to, and all that it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.arrays import release
from fewscan.errors import FormatError
from fewscan.grid import LPS_FROM_RAS, Grid
from fewscan.labels import LabelTable
from fewscan.masks.dicom_seg.occurrence import present_first
from fewscan.masks.dicom_seg.segments import algorithm_item, described, segment_item
from fewscan.masks.dicom_seg.source import TYPE_2, distance_mm, group, images_of, numbers, sources_of
from fewscan.scans.dicom_frames import Frames, open_frames
from fewscan.scans.quiet import quietly
from fewscan.scans.scan import Scan

_IDENTITY = ("StudyInstanceUID", "FrameOfReferenceUID", *TYPE_2)
_KIND = {
    "BINARY": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "BitsAllocated": "1"},
    "LABELMAP": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.7", "PixelPaddingValue": "0"},
}


@quietly()
def check(path: Path, values: NDArray[Any], scan: Scan, table: LabelTable, kind: str) -> None:
    """Read back and compare voxel for voxel, twice; raises FormatError on any difference.

    3D Slicer (dcmqi) places frames by their position, OHIF by their reference to a source image: both have to give
    `values` on the scan's grid. Patient, study, frame of reference and the images referred to have to be the source's,
    and the segments those of the table, in number, name, code and colour.
    """
    table, _ = present_first(values, table, scan.planes)
    sources = sources_of(scan)
    with open_frames(path, path.parent) as (seg, pixels):
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
    algorithm = algorithm_item({})
    wanted = [described(segment_item(number, label, algorithm)) for number, label in enumerate(table, start=1)]
    segments = list(seg.SegmentSequence)
    if kind == "LABELMAP" and segments and segments[-1].SegmentNumber == 0:
        del segments[-1]  # the background
    elif kind == "LABELMAP":
        raise FormatError(f"{where}: its background is not the last segment")
    if [described(item) for item in segments] != wanted:
        raise FormatError(f"{where}: the segments are not the labels of the table")


def _check_references(seg: Any, where: str, sources: list[Any]) -> None:
    """Raise FormatError unless the file names the source's series with all its images, and is none of them itself."""
    series = seg.get("ReferencedSeriesSequence") or ()
    named = [
        (str(one.SeriesInstanceUID), str(image.ReferencedSOPClassUID), str(image.ReferencedSOPInstanceUID))
        for one in series
        for image in one.ReferencedInstanceSequence
    ]
    wanted = {(str(s.get("SeriesInstanceUID")), str(s.SOPClassUID), str(s.SOPInstanceUID)) for s in sources}
    if len(series) != 1 or sorted(named) != sorted(wanted):
        raise FormatError(f"{where}: the images of its ReferencedSeriesSequence are not those of the source series")
    if seg.SOPInstanceUID in {s.SOPInstanceUID for s in sources} or seg.SeriesInstanceUID == sources[0].get(
        "SeriesInstanceUID"
    ):
        raise FormatError(f"{where}: has a UID of the source series")
    if seg.file_meta.MediaStorageSOPInstanceUID != seg.SOPInstanceUID:
        raise FormatError(f"{where}: is another SOP instance by its file meta information than by its header")


Placed = tuple[list[tuple[int, int]], list[tuple[int, int]]]
"""Of a plane: the frames by their position and by their source image, each with its segment, 0 in a label map."""


def _placed(seg: Any, where: str, scan: Scan, sources: list[Any]) -> list[Placed]:
    """The frames of each plane k of the scan."""
    if (seg.Columns, seg.Rows) != scan.grid.shape[:2]:
        raise FormatError(f"{where}: has {seg.Columns} x {seg.Rows} pixels, the scan {scan.grid.shape[:2]}")
    planes = images_of(scan, sources)
    shared = seg.SharedFunctionalGroupsSequence[0]
    frames = seg.PerFrameFunctionalGroupsSequence
    if len(frames) != int(seg.NumberOfFrames):
        raise FormatError(f"{where}: {seg.NumberOfFrames} frames and {len(frames)} positions disagree")
    placed: list[Placed] = [([], []) for _ in range(scan.grid.shape[2])]
    for n, frame in enumerate(frames):
        number = 0
        if seg.SegmentationType == "BINARY":
            number = int(group(frame, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
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
    corner = numbers(group(frame, shared, "PlanePositionSequence").ImagePositionPatient)
    along_row, along_column = numbers(group(frame, shared, "PlaneOrientationSequence").ImageOrientationPatient).reshape(
        2, 3
    )
    measures = group(frame, shared, "PixelMeasuresSequence")
    between_rows, between_columns = numbers(measures.PixelSpacing)
    distance = distance_mm(grid)
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
