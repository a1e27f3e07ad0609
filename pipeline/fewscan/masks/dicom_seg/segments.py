"""What a segment of a DICOM-SEG says of itself: name, codes, colour, and what made it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from fewscan import __version__
from fewscan.labels import Label
from fewscan.terminology import Code


def segment_item(number: int, label: Label, algorithm: Any) -> Any:
    """The item of SegmentSequence of a label, made by `algorithm` (see `algorithm_item`)."""
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


def algorithm_item(provenance: Mapping[str, str]) -> Any:
    """The identification of what made a mask; `provenance` as in `fewscan.masks.write_mask`."""
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


def described(segment: Any) -> tuple[Any, ...]:
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
