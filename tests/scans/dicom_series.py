"""A synthetic DICOM series, complete enough for readers and for DICOM-SEG writers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage}
ENHANCED = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage}


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
    if changes.get("SeriesInstanceUID"):  # the parts of one series are of one study
        uids["StudyInstanceUID"] = generate_uid(entropy_srcs=[changes["SeriesInstanceUID"]])
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


def write_enhanced(
    path: Path,
    stacks: Sequence[tuple[np.ndarray, np.ndarray]],
    modality: str = "CT",
    order: Sequence[int] | None = None,
    shared: Sequence[str] = ("PlaneOrientationSequence", "PixelMeasuresSequence"),
    groups: Callable[[int, int], dict[str, dict[str, Any]]] = lambda stack, k: {},
    **changes: Any,
) -> Path:
    """Write integers (i, j, k) on RAS+ affines as one enhanced file, all planes of the first stack first.

    `order` permutes these frames. `shared` names the functional groups that all frames share (taken from the first
    frame); the others stand in each frame. `groups(stack, k)` gives more groups of a frame: keyword of the sequence ->
    keywords with values. `changes` as in `write_series`.
    """
    with tempfile.TemporaryDirectory() as name:
        parts = [
            [pydicom.dcmread(file) for file in write_series(Path(name) / str(number), array, affine, Modality=modality)]
            for number, (array, affine) in enumerate(stacks)
        ]
    planes = [(number, k, plane) for number, part in enumerate(parts) for k, plane in enumerate(part)]
    planes = [planes[n] for n in (range(len(planes)) if order is None else order)]
    enhanced = parts[0][0]
    items = []
    for number, k, plane in planes:
        frame = Dataset()
        for sequence, values in {
            "PlanePositionSequence": {"ImagePositionPatient": plane.ImagePositionPatient},
            "PlaneOrientationSequence": {"ImageOrientationPatient": plane.ImageOrientationPatient},
            "PixelMeasuresSequence": {"PixelSpacing": plane.PixelSpacing, "SliceThickness": plane.SliceThickness},
            **groups(number, k),
        }.items():
            item = Dataset()
            for keyword, value in values.items():
                setattr(item, keyword, value)
            setattr(frame, sequence, [item])
        items.append(frame)
    enhanced.SharedFunctionalGroupsSequence = [Dataset()]
    for sequence in shared:
        setattr(enhanced.SharedFunctionalGroupsSequence[0], sequence, getattr(items[0], sequence))
        for frame in items:
            delattr(frame, sequence)
    enhanced.PerFrameFunctionalGroupsSequence = items
    enhanced.NumberOfFrames = len(planes)
    enhanced.PixelData = b"".join(plane.PixelData for _, _, plane in planes)
    enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = ENHANCED[modality]
    for keyword in (
        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
        "RescaleIntercept", "AcquisitionNumber",
    ):  # fmt: skip
        delattr(enhanced, keyword)
    for keyword, value in changes.items():
        setattr(enhanced, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    enhanced.save_as(path)
    return path
