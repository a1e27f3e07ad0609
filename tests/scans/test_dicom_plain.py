"""Deflated DICOM files are inflated to what pydicom makes of them, and no further than their header speaks of."""

import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from fewscan.errors import ScanError
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.scans import dicom_plain, find_scans
from fewscan.scans.dicom_plain import open_plain, plain_head
from fewscan.scans.mask_files import read_mask
from masks.cases import GRIDS, dicom_scan
from scans.dicom_series import write_series
from scans.volumes import AFFINES, image


def deflated(path, more=b""):
    """The file deflated, with more bytes behind its data set."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=True)
    if more:
        data = path.read_bytes()
        begin = 144 + int.from_bytes(data[140:144], "little")
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        plain = zlib.decompress(data[begin:], -zlib.MAX_WBITS) + more
        path.write_bytes(data[:begin] + packer.compress(plain) + packer.flush())
    return path


@pytest.fixture
def path(tmp_path):
    return write_series(tmp_path, image(), AFFINES["oblique"])[0]


def test_the_plain_copy_is_the_same_data_set(path):
    expected = pydicom.dcmread(path)
    with open_plain(path) as file:
        assert file.read() == path.read_bytes()  # not deflated: the file itself
    with open_plain(deflated(path)) as file:
        found = pydicom.dcmread(file)
    assert found == expected and found.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    head = pydicom.dcmread(plain_head(path), stop_before_pixels=True)
    assert head.SOPInstanceUID == expected.SOPInstanceUID


def test_what_is_cut_or_inflates_without_end_is_refused(path, tmp_path):
    zeros = bytes(1 << 27)
    deflated(path, b"\xe1\x7f\x10\x00OB\0\0" + len(zeros).to_bytes(4, "little") + zeros)
    del zeros
    tracemalloc.start()
    with pytest.raises(ScanError, match=r"inflates to more than 6\d{7} bytes"), open_plain(path):
        pass
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()
    assert find_scans(tmp_path).scans == []
    (whole,) = write_series(tmp_path / "other", image()[:, :, :1], AFFINES["oblique"])
    data = deflated(whole).read_bytes()
    whole.write_bytes(data[:-40])
    with pytest.raises(ScanError, match="is cut short: its deflated data set has no end"), open_plain(whole):
        pass


@pytest.mark.filterwarnings("ignore")  # pydicom quotes damaged values
def test_each_damage_is_refused_by_name_and_the_scans_beside_it_go_on(tmp_path):
    """Every byte of the file wrong in turn: it is read as it is, or refused with a ScanError."""
    path = deflated(write_series(tmp_path / "damaged", image()[:5, :4, :1], AFFINES["oblique"])[0])
    write_series(tmp_path / "valid", image(), AFFINES["oblique"])
    data, refused = path.read_bytes(), set()
    for at in range(128, len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        try:
            with open_plain(path) as file:
                file.read()
        except ScanError as problem:
            refused.add(str(problem).split(": ", 1)[1])
    assert any("cannot be inflated" in reason for reason in refused)
    assert any("meta information is damaged" in reason for reason in refused)
    begin = 144 + int.from_bytes(data[140:144], "little")
    path.write_bytes(data[:begin] + b"\xff" + data[begin + 1 :])
    found = find_scans(tmp_path)
    assert len(found.scans) == 1
    assert any("cannot be inflated" in item.reason for item in found.skipped)


def test_our_own_large_masks_are_read_as_labels(tmp_path, monkeypatch):
    """Bits of more bytes than the head of a data set holds, mostly nothing: they deflate to a few thousandths."""
    monkeypatch.setattr(dicom_plain, "_HEAD", 1 << 14)
    monkeypatch.setattr(dicom_plain, "_BESIDE", 1 << 14)
    table = LabelTable.from_json([f"part {number}" for number in range(1, 101)])
    scan = dicom_scan(tmp_path / "series", Grid((512, 512, 8), GRIDS["oblique"].affine))
    values = np.zeros(scan.grid.shape, dtype=np.uint8)
    for number in range(1, 101):
        values[4 * number : 4 * number + 3, 100:103] = number
    (path,) = write_mask(values, scan, table, tmp_path / "m", "dicom-seg")
    assert pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    assert path.stat().st_size < 512 * 512 * 8 * 100 // 8 // 50
    np.testing.assert_array_equal(read_mask(path, scan, table)[0], values)
