"""A DICOM-SEG without its pixels, made by highdicom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan import __version__
from fewscan.errors import FormatError
from fewscan.labels import LabelTable
from fewscan.masks.dicom_seg.identity import make_reproducible
from fewscan.masks.dicom_seg.segments import algorithm_item, segment_item
from fewscan.masks.dicom_seg.source import images_of, numbers, series_number, set_aside, sources_of
from fewscan.masks.dicom_seg.stand_in import refer, stand_in
from fewscan.scans.scan import Scan


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
    sources = sources_of(scan)
    places = images_of(scan, sources)
    for source in sources:
        source.Rows = source.Columns = 1
    images, verbatim = stand_in(sources, scan.frames), set_aside(sources)
    algorithm = algorithm_item(provenance)
    try:
        segments = [segment_item(number, label, algorithm) for number, label in enumerate(table, start=1)]
        seg = highdicom.seg.Segmentation(
            source_images=sources,
            **_planes(occupied[None, None], scan, sources),
            segmentation_type=kind,
            segment_descriptions=segments[:2] if kind == "BINARY" else segments,  # it looks at each in each plane
            series_instance_uid=highdicom.UID(),
            series_number=1000 + series_number(sources[0]),
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
            specific_character_set=_character_set(sources[0], table),
            transfer_syntax_uid=RLELossless if kind == "LABELMAP" else ExplicitVRLittleEndian,
        )
    except (ValueError, TypeError, AttributeError, KeyError) as problem:
        missing = [name for name in ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID") if not sources[0].get(name)]
        why = f"it has no {' and no '.join(missing)}" if missing else f"{type(problem).__name__} in highdicom"
        raise FormatError(
            f"{scan.name}: a DICOM-SEG cannot be made from this series: {why}; choose nifti or seg-nrrd"
        ) from problem
    refer(seg, images)
    for name, element in verbatim.items():
        seg[name] = element
    seg.Columns, seg.Rows = scan.grid.shape[:2]
    seg.SegmentSequence = [*segments, *(item for item in seg.SegmentSequence if item.SegmentNumber == 0)]
    items = seg.PerFrameFunctionalGroupsSequence
    if not occupied.any():
        del items[1:]
    if named_after is not None:
        make_reproducible(seg, sources[0], named_after)
    return seg, [places[_source_of(item)] for item in items]


def _character_set(source: Any, table: LabelTable) -> str | None:
    """The source's own, or UTF-8 where labels need it or highdicom does not take the source's.

    It takes no set that begins with an empty value (Korea, most of Japan), and none that is misspelled (ISO-IR 100).
    """
    from highdicom.enum import SpecificCharacterSetValues

    own = source.get("SpecificCharacterSet") or None
    single = [value.value for value in SpecificCharacterSetValues if value.value.startswith(("ISO_IR", "GB"))]
    return own if (own is None or own in single) and all(label.name.isascii() for label in table) else "ISO_IR 192"


def _source_of(frame: Any) -> tuple[str, int]:
    """SOPInstanceUID and frame number, from 1, of the image that a frame was made from."""
    image = frame.DerivationImageSequence[0].SourceImageSequence[0]
    return str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber") or 1)


def _planes(classes: NDArray[np.uint16], scan: Scan, sources: list[Any]) -> dict[str, Any]:
    """The planes (plane, row, column) as highdicom pairs them with the source images."""
    import highdicom

    planes = classes.transpose(2, 1, 0)
    planes = planes[list(scan.planes)] if scan.planes else planes
    if planes.any():
        return {"pixel_array": planes, "omit_empty_frames": True}
    position = highdicom.PlanePositionSequence("PATIENT", numbers(sources[0].ImagePositionPatient))
    return {"pixel_array": planes[:1], "plane_positions": [position], "omit_empty_frames": False}  # else it keeps all
