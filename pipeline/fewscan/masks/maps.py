"""Maps of real numbers on a scan's grid: probabilities, variances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import FormatError
from fewscan.files import replace_when_complete
from fewscan.labels import LabelTable
from fewscan.masks import image, nifti
from fewscan.scans.scan import Scan

_NO_LABELS = LabelTable(())


def write_map(values: NDArray[Any], scan: Scan, stem: Path) -> Path:
    """Write numbers (i, j, k) on the scan's grid as float32, and give the file's path.

    `stem` + `.tif` for pictures and TIFFs, one page for each k; `stem` + `.nii.gz` in the scan's own geometry for all
    others. A file of that name is replaced. Raises FormatError where the shapes differ.
    """
    if values.shape != scan.grid.shape:
        raise FormatError(f"{scan.name}: the map has the shape {values.shape}, the scan {scan.grid.shape}")
    flat = scan.format in ("png", "tiff")
    path = Path(f"{stem}{'.tif' if flat else '.nii.gz'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(path) as temporary:
        write = image.write if flat else nifti.write
        write(temporary, np.ascontiguousarray(values, dtype=np.float32), scan, _NO_LABELS, {})
    return path
