"""Damaged files lose nothing: the first of those that `fuzz.py` makes by the thousand."""

import struct
import subprocess

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from damaged.fuzz import check_run, hold_masks, hold_plan, hold_segment, watched
from damaged.mutants import mutant, valid_files
from fewscan.errors import ScanError
from fewscan.scans import dicom_pixels, open_scan
from scans.dicom_series import write_series
from scans.volumes import AFFINES, image


def test_segment(tmp_path):
    became = hold_segment(tmp_path, range(40))
    assert became["failed"] + became["done"] + became["left out"] == 40 and became["failed"] >= 10


def test_masks(tmp_path):
    became = hold_masks(tmp_path, range(20))
    assert became["failed"] + became["read"] == 20 and became["failed"] >= 5


def test_plan(tmp_path):
    became = hold_plan(tmp_path, range(8))
    assert became["failed"] + became["read"] == 8 and became["failed"] >= 2


def test_a_mutant_can_be_made_again(tmp_path):
    valid = valid_files(tmp_path / "valid", image())
    for seed in range(50):
        assert mutant(seed, valid, tmp_path) == mutant(seed, valid, tmp_path)


def test_the_watch_sees_what_it_forbids(tmp_path):
    """A run that ends with a traceback, takes too long or too much memory is no run that holds."""
    fine = {"slowest": [["x", 0.1]], "peak_gib": 0.5}
    check_run(0, "", fine, (0, 2))
    for code, told, said in (
        (1, "", fine),
        (0, "Traceback (most recent call last)", fine),
        (0, "", {**fine, "slowest": [["x", 11.0]]}),
        (0, "", {**fine, "peak_gib": 2.5}),
    ):
        with pytest.raises(AssertionError):
            check_run(code, told, said, (0, 2))
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        watched(tmp_path, "masks", tmp_path / "gone", tmp_path / "gone.nii", seconds=60)


def test_a_panic_of_a_decoder_is_no_end_of_the_run(tmp_path):
    """RLE pixels that are more than the image make a decoder that is written in Rust raise what is no Exception."""
    (path,) = write_series(tmp_path / "a", image()[..., :1], AFFINES["lps"])
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    run = b"\x81\x05" * 50  # each pair is 128 bytes
    dataset.PixelData = encapsulate([struct.pack("<16L", 2, 64, 64 + len(run), *[0] * 13) + 2 * run])
    dataset.save_as(path)
    with pytest.raises(ScanError, match=r"image000\.dcm: RLE Lossless pixels cannot be decoded"):
        open_scan([path]).read()
    with pytest.raises(ScanError, match=r"image000\.dcm"):
        dicom_pixels.pixel_digest(path)


def test_a_header_of_huge_axes_allocates_nothing(tmp_path):
    """Also where the product of the axes is beyond 64 bits, and where it is 0 modulo 2**64."""
    path = tmp_path / "x.nii"
    nibabel.save(nibabel.Nifti2Image(image(), AFFINES["lps"]), path)
    data = path.read_bytes()
    for axes in ((1 << 32, 1 << 31, 2), (1 << 21, 1 << 21, 1 << 21), (1 << 62, 4, 1)):
        path.write_bytes(data[:16] + np.array([3, *axes, 1, 1, 1, 1], "<i8").tobytes() + data[80:])
        with pytest.raises(ScanError, match=r"x\.nii: is cut short: \d+ bytes where the header needs"):
            open_scan([path])


def test_a_scan_beyond_the_memory_is_refused(tmp_path):
    """Its file is as long as its header says, and mostly a hole."""
    path = tmp_path / "x.nii"
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((8000, 8000, 8000))
    header.set_slope_inter(2, 0)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header.set_sform(AFFINES["lps"], 1)
    header.set_zooms((0.9, 0.8, 2.5))
    with path.open("wb") as file:
        file.write(header.binaryblock)
        file.truncate(352 + 2 * 8000**3)
    with pytest.raises(ScanError, match=r"x\.nii: 8000 x 8000 x 8000 x 1 numbers do not fit into memory"):
        open_scan([path]).read()
