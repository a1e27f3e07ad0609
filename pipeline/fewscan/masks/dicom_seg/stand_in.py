"""Frames of enhanced files as if they were files, while highdicom describes a SEG of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def stand_in(sources: list[Any], frames: Sequence[int]) -> dict[str, tuple[str, str, int]]:
    """Let frames of enhanced files pass for files. Class, UID and number of each, by the UID that it has then.

    highdicom takes one enhanced file and all of its frames; a volume may have some of them, or those of several files.
    """
    from pydicom.uid import CTImageStorage

    images = {}
    for n, (source, frame) in enumerate(zip(sources, frames, strict=False), start=1):
        images[f"2.25.{n}"] = (str(source.SOPClassUID), str(source.SOPInstanceUID), frame)
        source.SOPClassUID, source.SOPInstanceUID = CTImageStorage, f"2.25.{n}"
    return images


def refer(seg: Any, images: Mapping[str, tuple[str, str, int]]) -> None:
    """Put the frames that are meant in the place of their stand-ins."""
    if not images:
        return
    for item in seg.PerFrameFunctionalGroupsSequence:
        for source in item.DerivationImageSequence[0].SourceImageSequence:
            named = images[source.ReferencedSOPInstanceUID]
            source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID, source.ReferencedFrameNumber = named
    (series,) = seg.ReferencedSeriesSequence
    files = {images[item.ReferencedSOPInstanceUID][:2]: item for item in seg.SourceImageSequence}
    for (sop_class, uid), item in files.items():
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    seg.SourceImageSequence = series.ReferencedInstanceSequence = list(files.values())
