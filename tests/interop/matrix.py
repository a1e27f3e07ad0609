"""Every kind of series that is read, with a mask by thresholds, its DICOM-SEG in both formats, and the truth of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.scans import find_scans
from fewscan.scans.scan import Scan
from interop.readers import Places, places
from scans.dicom_kinds import KINDS, LPS_TO_RAS, difference

READ = [name for name, kind in KINDS.items() if not kind.refused]
TILTED = [name for name in READ if "sheared" in KINDS[name].noted]
FORMATS = ("dicom-seg", "dicom-seg-labelmap")


@dataclass(frozen=True)
class Written:
    """One volume of a kind: its scan, a DICOM-SEG of each of `FORMATS`, and where its segments belong."""

    scan: Scan
    paths: tuple[Path, ...]
    places: Places

    @property
    def files(self) -> list[Path]:
        return list(dict.fromkeys(self.scan.files))


def write_kind(name: str, folder: Path) -> list[Written]:
    """The volumes of a kind, made below `folder`. The mask is the scan's own voxels against thresholds."""
    truths = KINDS[name].make(folder / "case")
    written = []
    for number, scan in enumerate(find_scans(folder / "case").scans):
        array, lps = scan.read()[0], LPS_TO_RAS @ scan.grid.affine
        (truth,) = [truth for truth in truths if not difference(truth, array, lps)]
        limits = thresholds(truth.values)
        table = LabelTable.from_json([f"part {label}" for label in range(1, len(limits) + 1)])
        wanted = above(truth.values, limits)
        inside = wanted > 0
        names = [f"part {label}" for label in wanted[inside]]
        paths = [
            write_mask(above(array, limits).astype(table.dtype), scan, table, folder / f"{number}_{format}_seg", format)
            for format in FORMATS
        ]
        written.append(Written(scan, tuple(path for (path,) in paths), places(truth.points()[inside], names)))
    assert len(written) == len(truths)
    return written


def above(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The number of limits below each value."""
    return np.digitize(values, limits, right=True)


def thresholds(values: np.ndarray) -> np.ndarray:
    """The fewest from two on, at equal distances in the order of the values, whose BINARY mask OHIF reads."""
    for count in range(2, 40):
        limits = np.quantile(values, np.linspace(0.4, 0.95, count))
        if bits_for_ohif(above(values, limits)):
            return limits
    raise AssertionError("no number of labels has bits that OHIF reads")


def bits_for_ohif(mask: np.ndarray) -> bool:
    """Whether OHIF's reader can know where the frames of a BINARY mask (i, j, k) begin: see docs/dicom_seg.md."""
    pixels = mask.shape[0] * mask.shape[1]
    frames = sum(len(np.unique(plane[plane > 0])) for plane in np.moveaxis(mask, 2, 0))
    together, apart = -(-frames * pixels // 8), frames * -(-pixels // 8)
    return together % 2 == 0 and (together < apart or frames == 1 or pixels % 8 == 0)
