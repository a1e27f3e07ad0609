"""A synthetic DICOM series, complete enough for readers and for DICOM-SEG writers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage}


def write_series(
    folder: Path, array_ijk: np.ndarray, affine_ras: np.ndarray, shuffled: bool = False, **changes: Any
) -> list[Path]:
    """Write integers (i, j, k) on a RAS+ affine as one file per k; returns the files in the order of k.

    i is the column, j the row. `changes` are DICOM keywords with a value, a function of k, or None to leave it out.
    Files and InstanceNumbers run against k where `shuffled`. Plane k is at affine @ (0, 0, k).
    """
    folder.mkdir(parents=True, exist_ok=True)
    modality = changes.get("Modality", "CT")
    uids = {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine_ras, dtype=float)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    depth = array_ijk.shape[2]
    stored = np.ascontiguousarray(array_ijk.transpose(2, 1, 0).astype(np.int16 if array_ijk.min() < 0 else np.uint16))
    order = np.random.default_rng(5).permutation(depth) if shuffled else np.arange(depth)
    files = []
    for k in range(depth):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = STORAGE[modality]
        dataset.SOPInstanceUID = generate_uid()
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "Nobody^N", "N-1", "", ""
        dataset.StudyID, dataset.StudyDate, dataset.StudyTime = "1", "20200102", "030405"
        dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.Manufacturer = "", "", "none"
        dataset.Modality, dataset.SeriesNumber, dataset.SeriesDescription = modality, 3, "synthetic"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.PositionReferenceIndicator, dataset.AcquisitionNumber = "", 1
        for keyword, uid in uids.items():
            setattr(dataset, keyword, uid)
        dataset.InstanceNumber = int(order[k]) + 1
        dataset.ContentDate, dataset.ContentTime = "20200102", "030405"
        dataset.ImagePositionPatient = [round(x, 6) for x in (lps @ (0, 0, k, 1))[:3].tolist()]
        cosines = (lps[:3, :2] / spacing[:2]).T.ravel()
        dataset.ImageOrientationPatient = [round(x, 8) for x in cosines.tolist()]
        dataset.PixelSpacing = [round(float(spacing[1]), 8), round(float(spacing[0]), 8)]  # rows, then columns
        dataset.SliceThickness = round(float(spacing[2]), 6)
        dataset.Rows, dataset.Columns = stored.shape[1:]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = int(stored.dtype == np.int16)
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.PixelData = stored[k].tobytes()
        for keyword, change in changes.items():
            value = change(k) if isinstance(change, Callable) else change
            if value is None:
                if keyword in dataset:
                    delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        path = folder / f"image{order[k]:03d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        files.append(path)
    return files
