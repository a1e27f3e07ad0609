"""A DICOM-SEG that is the same when it is made again: UIDs and times that follow from what it holds."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from numpy.typing import NDArray

from fewscan.arrays import slabs
from fewscan.masks.dicom_seg.frames import encoded
from fewscan.masks.slabs import in_file_order

_NO_TIME = ("19000101", "000000")
_CLOCKS = ("Content", "Acquisition", "Series", "Study")


def make_reproducible(seg: Any, source: Any, values: NDArray[Any]) -> None:
    """Replace the UIDs and the times of a SEG without pixels, as highdicom made it.

    The UIDs (`2.25.` + UUID, version 5) are those of a hash of all its other elements, among them the SOPInstanceUIDs
    of the source, the model's hash and the versions, and of `values` (i, j, k): files of one UID are equal. The times
    are those of the source's content, acquisition, series or study, the first that is stated; else 1 January 1900.
    """
    date, time = _when(source)
    seg.ContentDate = seg.InstanceCreationDate = date
    seg.ContentTime = seg.InstanceCreationTime = time
    seg.ContributingEquipmentSequence[-1].ContributionDateTime = date + time  # highdicom's own; the scanner keeps its
    _give_uids(seg, "none yet")
    digest = hashlib.sha256(encoded(seg))
    for _, slab in slabs(values, axis=2):
        digest.update(in_file_order(slab.astype(slab.dtype.newbyteorder("<"), copy=False)))
    _give_uids(seg, digest.hexdigest())


def _give_uids(seg: Any, what: str) -> None:
    series, instance, dimensions = (
        f"2.25.{uuid5(NAMESPACE_OID, f'{what} {kind}').int}" for kind in ("series", "instance", "dimensions")
    )
    seg.SeriesInstanceUID, seg.SOPInstanceUID = series, instance
    seg.file_meta.MediaStorageSOPInstanceUID = instance
    for item in (*seg.DimensionIndexSequence, *seg.DimensionOrganizationSequence):
        item.DimensionOrganizationUID = dimensions


def _when(source: Any) -> tuple[str, str]:
    """Date and time of one kind."""
    for clock in _CLOCKS:
        date, time = (str(source.get(f"{clock}{part}") or "") for part in ("Date", "Time"))
        if re.fullmatch(r"\d{8}", date) and re.fullmatch(r"\d{6}(\.\d{1,6})?", time):
            return date, time
    return _NO_TIME
