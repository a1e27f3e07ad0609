"""DICOM-SEG masks as binary segments: one frame of bits for each segment and plane that has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fewscan.labels import LabelTable
from fewscan.masks.dicom_seg import read_back
from fewscan.masks.dicom_seg.describe import describe
from fewscan.masks.dicom_seg.frames import save
from fewscan.masks.dicom_seg.occurrence import present_first
from fewscan.scans.quiet import quietly
from fewscan.scans.scan import Scan


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


def check(path: Path, values: NDArray[Any], scan: Scan, table: LabelTable) -> None:
    """Read back and compare; raises FormatError on any difference."""
    read_back.check(path, values, scan, table, "BINARY")
