"""Whether DICOM scans are of one patient, without anything that says of whom."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

from fewscan.scans.dicom import is_dicom


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
    import pydicom

    files = sorted(image.rglob("*")) if image.is_dir() else [image]
    first = next((file for file in files if file.is_file() and is_dicom(file)), None)
    if first is None:
        return None
    patient = pydicom.dcmread(first, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID")
    return hashlib.sha256(salt + str(patient).strip().encode()).digest() if str(patient or "").strip() else None
