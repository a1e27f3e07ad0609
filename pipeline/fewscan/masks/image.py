"""PNG and TIFF masks: the label values themselves as grey levels, rows and columns as in the image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from fewscan.errors import FormatError
from fewscan.labels import LabelTable
from fewscan.scans.scan import Scan

_RESOLUTION = ("XResolution", "YResolution", "ResolutionUnit")


def write(path: Path, values: NDArray[Any], scan: Scan, table: LabelTable, provenance: Mapping[str, str]) -> None:
    """Write `values` (i, j, k) as PNG (k = 1) or as TIFF with one page for each k, 8 or 16 bits a pixel."""
    pages = np.ascontiguousarray(values.T)  # (k, j, i): pages, rows, columns
    if path.suffix == ".png":
        Image.fromarray(pages[0]).save(path, optimize=False)
        return
    across, down, unit = _resolution(scan)
    options: dict[str, Any] = {} if across is None else {"resolution": (across, down), "resolutionunit": unit}
    tifffile.imwrite(
        path,
        pages[0] if len(pages) == 1 else pages,
        photometric="minisblack",
        compression="zlib",
        software=False,
        metadata=None,
        **options,
    )


def check(path: Path, values: NDArray[Any], scan: Scan, table: LabelTable) -> None:
    """Read back with ITK's reader (SimpleITK); FormatError where the values differ."""
    import SimpleITK as sitk

    found = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    pages = found.reshape((-1, *found.shape[-2:]))
    if found.dtype != table.dtype or not np.array_equal(pages.T, values):
        raise FormatError(f"{path.name}: ITK reads other values than were written")


def _resolution(scan: Scan) -> tuple[Any, Any, Any]:
    """The resolution tags of a TIFF scan as they are; nothing for a scan that states no possible one."""
    if scan.format != "tiff":
        return None, None, None
    with tifffile.TiffFile(scan.files[0]) as source:
        tags = source.pages[0].tags
        if not all(name in tags for name in _RESOLUTION):
            return None, None, None
        across, down, unit = (tags[name].value for name in _RESOLUTION)
    return (across, down, unit) if min(*across, *down) > 0 and unit in (1, 2, 3) else (None, None, None)
