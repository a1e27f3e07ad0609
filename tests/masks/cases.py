"""Small scans of every kind with a known mask: odd sizes, unequal spacing, tilted and reversed axes, one corner."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from pydicom import dcmread

from fewscan.grid import LPS_FROM_RAS, Grid
from fewscan.labels import LabelTable
from fewscan.scans.scan import Scan
from scans.dicom_series import write_series

SHAPE = (9, 6, 7)
TABLE = LabelTable.from_json(["left kidney", {"name": "gadget", "value": 5}, "spleen"])
LARGE = LabelTable.from_json([{"name": "liver", "value": 700}, {"name": "spleen", "value": 3}])


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """(3, 3) turn about x, then y, then z, in degrees."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.deg2rad((x, y, z))), np.sin(np.deg2rad((x, y, z)))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def grid(directions: np.ndarray, shape=SHAPE, spacing=(0.9, 0.8, 2.5), origin=(-31.5, 12.25, 97.75), shear=0.0) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(spacing)
    affine[:3, 2] += shear * affine[:3, 1]
    affine[:3, 3] = origin
    return Grid(shape, affine)


GRIDS = {
    "axial": grid(np.diag([-1.0, -1.0, 1.0])),
    "reversed": grid(np.diag([1.0, -1.0, -1.0])),
    "coronal": grid(np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])),
    "left-handed": grid(np.diag([-1.0, 1.0, 1.0])),
    "oblique": grid(rotation(13, -24, 41)),
}
SHEARED = grid(np.diag([-1.0, -1.0, 1.0]), shear=0.6)


def mask(table: LabelTable = TABLE, shape=SHAPE) -> np.ndarray:
    """(i, j, k) label values: every label somewhere, a corner of its own, no symmetry."""
    values = np.zeros(shape, dtype=table.dtype)
    values[0, 0, 0] = table.labels[-1].value
    values[2:5, 1:3, 1:3] = table.labels[0].value
    values[5, 1:4, 2:4] = table.labels[1].value
    values[-1, 2, -1] = table.labels[0].value
    return values


def image(shape=SHAPE) -> np.ndarray:
    values = np.random.default_rng(3).integers(10, 60, shape).astype(np.int16)
    values[0, 0, 0] = 900
    return values


def nifti_scan(folder: Path, where: Grid, array: np.ndarray | None = None) -> Scan:
    path = folder / "scan.nii.gz"
    picture = nibabel.Nifti1Image(image(where.shape) if array is None else array, where.affine)
    picture.header.set_xyzt_units("mm")
    nibabel.save(picture, path)
    return _scan("scan", "nifti", (path,), Grid(where.shape, nibabel.load(path).affine))


def nrrd_scan(folder: Path, where: Grid) -> Scan:
    path = folder / "scan.nrrd"
    picture = sitk.GetImageFromArray(image(where.shape).T)
    lps = LPS_FROM_RAS @ where.affine
    picture.SetSpacing(where.spacing_mm)
    picture.SetOrigin(lps[:3, 3].tolist())
    picture.SetDirection((lps[:3, :3] / where.spacing_mm).ravel().tolist())
    sitk.WriteImage(picture, str(path))
    return _scan("scan", "nrrd", (path,), where)


def picture_scan(folder: Path, suffix: str, shape=(9, 6, 1)) -> Scan:
    path = folder / f"scan{suffix}"
    pages = image(shape).T.astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pages[0] if len(pages) == 1 else pages), str(path))
    return _scan("scan", "png" if suffix == ".png" else "tiff", (path,), Grid(shape, LPS_FROM_RAS))


def dicom_scan(folder: Path, where: Grid, array: np.ndarray | None = None, **changes: object) -> Scan:
    """A series whose file names and InstanceNumbers do not follow the positions."""
    who = {"PatientName": "Doe^Jane", "PatientID": "ID-4711", "PatientSex": "F", "PatientBirthDate": "19700102"}
    array = image(where.shape) if array is None else array
    files = write_series(folder, array, where.affine, shuffled=True, **{"Modality": "MR", **who, **changes})
    frame_of_reference = dcmread(files[0], stop_before_pixels=True).get("FrameOfReferenceUID")
    return _scan("series", "dicom", tuple(files), Grid(where.shape, where.affine, frame_of_reference))


def _scan(name: str, format: str, files: tuple[Path, ...], where: Grid) -> Scan:
    def unread(scan: Scan) -> np.ndarray:
        raise AssertionError("a writer has no need of the intensities")

    return Scan(name, format, files, where, reader=unread)
