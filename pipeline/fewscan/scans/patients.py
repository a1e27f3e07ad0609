"""Whether DICOM scans are of one patient, without anything that says of whom."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

from fewscan.scans.dicom_files import is_dicom
from fewscan.scans.quiet import quietly


def patient_numbers(images: Sequence[Path]) -> list[int | None]:
    """For each image the number of its patient, counted from 1 in the order of the images.

    None where it is no DICOM file (or folder of such), or where the PatientID is missing or empty. The IDs are
    compared by a hash with a salt that is drawn anew in each call; neither outlives it.
    """
    salt = secrets.token_bytes(16)
    numbers: dict[bytes, int] = {}
    keys = [_key(image, salt) for image in images]
    return [None if key is None else numbers.setdefault(key, len(numbers) + 1) for key in keys]


def _key(image: Path, salt: bytes) -> bytes | None:
    """A hash of the first PatientID that a file names: a DICOMDIR and damaged files name none."""
    for file in sorted(image.rglob("*")) if image.is_dir() else [image]:
        patient = _patient(file) if file.is_file() and is_dicom(file) else ""
        if patient:
            return hashlib.sha256(salt + patient.encode()).digest()
    return None


@quietly()
def _patient(file: Path) -> str:
    import pydicom

    try:
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["PatientID"])
        return str(header.get("PatientID") or "").strip()
    except Exception:  # pydicom raises types of many kinds
        return ""
