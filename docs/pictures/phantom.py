"""A synthetic CT with its masks, for the pictures of other people's viewers.

    python docs/pictures/phantom.py FOLDER    # writes ct/ (DICOM), ct_seg.dcm, ct.nii.gz, ct_seg.nii.gz and .ctbl

The masks are the phantom's own shapes, as `fewscan.masks` writes them; no network was asked. Left and right differ.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.scans import open_scan
from scans.dicom_series import write_series

SHAPE = (200, 160, 48)
AFFINE = np.array([[-1.8, 0, 0, 180], [0, -1.8, 0, 144], [0, 0, 4.0, -96], [0, 0, 0, 1]])  # RAS+, mm
TABLE = LabelTable.from_json(["left kidney", "right kidney", "spleen"])
ORGANS = {  # centre and half axes in mm, RAS+; HU
    "left kidney": ((-62, -42, 4), (24, 28, 56), 160.0),
    "right kidney": ((60, -40, -12), (23, 27, 52), 160.0),
    "spleen": ((-108, -30, 44), (30, 48, 42), 110.0),
}


def ellipsoid(centre: tuple[float, ...], half_axes: tuple[float, ...]) -> NDArray[np.bool_]:
    """(i, j, k) whether a voxel lies inside; mm, RAS+."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"), -1)
    places = index @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    inside: NDArray[np.bool_] = (((places - centre) / half_axes) ** 2).sum(-1) < 1
    return inside


def phantom() -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """(i, j, k) HU and label values."""
    hu = np.full(SHAPE, -1000.0)
    hu[ellipsoid((0, 0, 0), (165, 115, 400))] = -90  # fat
    hu[ellipsoid((0, 4, 0), (148, 100, 380))] = 45  # muscle
    hu[ellipsoid((64, 34, 40), (72, 52, 66))] = 100  # liver, on the right side alone
    hu[ellipsoid((0, -62, 0), (22, 20, 300))] = 420  # spine
    hu[ellipsoid((-14, -24, 0), (12, 12, 300))] = 200  # aorta
    values = np.zeros(SHAPE, dtype=np.uint8)
    for label in TABLE:
        centre, half_axes, density = ORGANS[label.name]
        inside = ellipsoid(centre, half_axes)
        hu[inside], values[inside] = density, label.value
    hu += np.random.default_rng(0).normal(0, 12, SHAPE)
    return np.clip(hu, -1024, 3071).astype(np.int16), values


def main(folder: Path) -> None:
    """Write the scan and its masks, as DICOM and as NIfTI."""
    hu, values = phantom()
    files = write_series(folder / "ct", hu, AFFINE, RescaleType="HU", WindowCenter=60, WindowWidth=400)
    write_mask(values, open_scan(files), TABLE, folder / "ct_seg", "dicom-seg")
    nibabel.save(nibabel.Nifti1Image(hu, AFFINE), folder / "ct.nii.gz")
    write_mask(values, open_scan([folder / "ct.nii.gz"]), TABLE, folder / "ct_seg", "nifti")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
