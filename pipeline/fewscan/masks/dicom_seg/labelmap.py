"""DICOM-SEG masks as label maps (DICOM supplement 243): one frame a plane, each pixel the number of its segment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.labels import LabelTable
from fewscan.masks.dicom_seg import read_back
from fewscan.masks.dicom_seg.describe import describe
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
    """Write `values` (i, j, k) as one LABELMAP DICOM-SEG, run-length encoded; planes without label are left out.

    Every label of the table is a segment, present ones first; 8 bits a pixel up to 255 labels, else 16; an empty mask
    keeps one empty frame. `reproducible` is as in `write_mask`. Raises FormatError where the source cannot carry a SEG.
    """
    from pydicom.encaps import encapsulate
    from pydicom.pixels.encoders.base import get_encoder

    table, found = present_first(values, table, scan.planes)
    seg, planes = describe("LABELMAP", found, scan, table, provenance, values if reproducible else None)
    numbers = np.zeros(int(table.values.max()) + 1, dtype=f"u{seg.BitsAllocated // 8}")
    numbers[table.values] = range(table.classes)
    how = {
        "rows": seg.Rows,
        "columns": seg.Columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "bits_allocated": seg.BitsAllocated,
        "bits_stored": seg.BitsStored,
        "photometric_interpretation": seg.PhotometricInterpretation,
        "pixel_representation": seg.PixelRepresentation,
        "encoding_plugin": "pylibjpeg",  # pydicom would take GDCM where it is installed, which aborts on 7 x 9 pixels
    }
    encode = get_encoder(seg.file_meta.TransferSyntaxUID).encode
    frames = [encode(np.ascontiguousarray(numbers[values[:, :, k].T]), **how) for k in planes]
    seg.NumberOfFrames, seg.PixelData = len(frames), encapsulate(frames)
    seg.save_as(path)


def check(path: Path, values: NDArray[Any], scan: Scan, table: LabelTable) -> None:
    """Read back and compare; raises FormatError on any difference."""
    read_back.check(path, values, scan, table, "LABELMAP")
