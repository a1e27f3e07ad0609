"""NIfTI voxels are nibabel's, to the last bit and type, whatever the file stores; damage is found."""

import gzip
import tracemalloc

import nibabel
import numpy as np
import pytest

from fewscan import arrays
from fewscan.errors import ScanError
from fewscan.scans import nifti, open_scan
from scans.volumes import AFFINES, image

STORED = ["<i2", ">i2", "|u1", "<u2", "<i4", ">i4", "<f4", ">f4", "<f8", ">f8"]


def save(path, stored, scaling=None, shape=(7, 5, 4), dtype="<i2"):
    """A file of these stored numbers with slope and intercept."""
    header = nibabel.Nifti1Header(endianness=">" if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(AFFINES["oblique"], 1)
    header.set_zooms((0.9, 0.8, 2.5, 1)[: len(shape)])
    header.set_slope_inter(*(scaling or (1, 0)))
    header.set_data_offset(352)
    plain = header.binaryblock + bytes(4) + stored.astype(dtype).tobytes(order="F")
    path.write_bytes(gzip.compress(plain) if path.suffix == ".gz" else plain)
    return path


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", STORED)
def test_values_and_type_are_nibabels(tmp_path, monkeypatch, dtype, suffix):
    monkeypatch.setattr(nifti, "_PIECE", 37)
    for scaling in (None, (0.1, -3.3)):
        path = save(tmp_path / f"x.{suffix}", image() % 251, scaling, dtype=dtype)
        found, theirs = open_scan([path]).read()[0], nibabel.load(path)
        expected = theirs.get_fdata(dtype=np.float32) if scaling else np.asanyarray(theirs.dataobj)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype.newbyteorder("=")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_channels_lie_along_the_fourth_axis(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(nifti, "_PIECE", 37)
    for scaling in (None, (0.5, 10)):
        path = save(tmp_path / f"x.{suffix}", image((7, 5, 4, 3)), scaling, (7, 5, 4, 3))
        expected = np.moveaxis(nibabel.load(path).get_fdata(), -1, 0)
        np.testing.assert_array_equal(open_scan([path], ["a", "b", "c"]).read(), expected)


def flipped(data, at):
    changed = bytearray(data)
    changed[at] ^= 0x10
    return bytes(changed)


DAMAGES = {
    "another check sum": lambda plain: flipped(gzip.compress(plain), -8),
    "another byte": lambda plain: flipped(gzip.compress(plain, 0), -3000),
    "the last byte missing": lambda plain: gzip.compress(plain)[:-1],
    "the check sum missing": lambda plain: gzip.compress(plain)[:-8],
    "the half missing": lambda plain: gzip.compress(plain)[: len(gzip.compress(plain)) // 2],
    "voxels missing": lambda plain: gzip.compress(plain[:-1000]),
    "voxels missing, another size": lambda plain: gzip.compress(plain[:-1000])[:-4] + len(plain).to_bytes(4, "little"),
    "the second member cut": lambda plain: gzip.compress(plain[:9000]) + gzip.compress(plain[9000:])[:-500],
    "the first member changed": lambda plain: flipped(gzip.compress(plain[:9000]), -8) + gzip.compress(plain[9000:]),
    "something behind": lambda plain: gzip.compress(plain) + b"something else",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(tmp_path, damage):
    values = np.random.default_rng(0).integers(0, 999, (31, 29, 11))
    plain = save(tmp_path / "x.nii", values, shape=values.shape).read_bytes()
    (tmp_path / "x.nii.gz").write_bytes(DAMAGES[damage](plain))
    with pytest.raises(ScanError, match=r"x\.nii\.gz: is cut short"):
        open_scan([tmp_path / "x.nii.gz"]).read()


def test_members_of_any_size_and_zeros_behind_are_whole(tmp_path):
    values = np.random.default_rng(0).integers(0, 999, (31, 29, 11))
    plain = save(tmp_path / "x.nii", values, shape=values.shape).read_bytes()
    parts = (plain[:100], plain[100:9000], b"", plain[9000:])
    (tmp_path / "x.nii.gz").write_bytes(b"".join(gzip.compress(part) for part in parts) + bytes(512))
    np.testing.assert_array_equal(open_scan([tmp_path / "x.nii.gz"]).read()[0], values)


def test_opening_reads_the_header_alone(tmp_path):
    """Voxels that cannot be inflated are found when they are read."""
    path = save(tmp_path / "x.nii.gz", np.random.default_rng(0).integers(0, 30000, (64, 64, 64)), shape=(64, 64, 64))
    path.write_bytes(flipped(path.read_bytes(), 200_000))
    scan = open_scan([path])
    with pytest.raises(ScanError, match="damaged"):
        scan.read()


@pytest.mark.parametrize("scaling", [None, (0.5, -3)])
def test_the_array_is_all_that_grows_with_the_scan(tmp_path, monkeypatch, scaling):
    monkeypatch.setattr(nifti, "_PIECE", 1 << 14)
    beside = []
    for depth in (40, 160):
        scan = open_scan([save(tmp_path / "x.nii.gz", image((64, 64, depth)), scaling, (64, 64, depth))])
        read = scan.reader(scan)
        tracemalloc.start()
        read = scan.reader(scan)
        beside.append(tracemalloc.get_traced_memory()[1] - read.nbytes)
        tracemalloc.stop()
    assert beside[1] < beside[0] + 50_000 < 2_000_000


def test_numbers_of_several_channels_are_checked_in_slabs(tmp_path, monkeypatch):
    """Beside a mapped file, not even one byte for each voxel of a channel (1.6 MB) is held."""
    monkeypatch.setattr(arrays, "SLAB", 1 << 12)
    values = np.zeros((64, 64, 400, 3), np.float32)
    values[5, 6, 7, 2] = np.nan
    scan = open_scan([save(tmp_path / "x.nii", values, shape=values.shape, dtype="<f4")], ["a", "b", "c"])
    for trace in (False, True):  # the first time, libraries are imported
        if trace:
            tracemalloc.start()
        with pytest.raises(ScanError, match=r"x\.nii: 1 of 4915200 values are not finite"):
            scan.read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000
