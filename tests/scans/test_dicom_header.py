"""The quick way through a header says what pydicom says, and leaves to pydicom what it does not know."""

import contextlib
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from fewscan.errors import ScanError
from fewscan.scans import dicom_header, open_scan
from fewscan.scans.dicom_files import is_dicom
from fewscan.scans.dicom_planes import read_planes
from scans.dicom_series import write_series
from scans.volumes import AFFINES, image

BROKEN = ("MR_truncated.dcm", "rtplan_truncated.dcm", "SC_ybr_full_422_uncompressed.dcm", "badVR.dcm")
FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
OTHERS = [path for path in sorted(FOLDER.glob("*.dcm")) if is_dicom(path) and path.name not in BROKEN]
"""What pydicom ships, without what is shorter than it says or holds letters for a number."""


def assert_as_pydicom_says(path):
    """Whether the file was read the quick way; its values are pydicom's."""
    dataset = pydicom.dcmread(path)
    with dicom_header.open_dicom(path) as (file, header):
        for keyword in dicom_header.KEYWORDS:
            assert header.get(keyword) == dataset.get(keyword), keyword
            assert (keyword in header) == (keyword in dataset), keyword
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        assert header.syntax == (ExplicitVRLittleEndian if syntax == DeflatedExplicitVRLittleEndian else syntax)
        if header.is_plain and "PixelData" in dataset:
            file.seek(header.pixels_at)
            assert file.read(len(dataset.PixelData)) == dataset.PixelData
        return isinstance(header._values, dicom_header._Values)


def resave(path, syntax):
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    little = syntax != ExplicitVRBigEndian
    pydicom.dcmwrite(path, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=little)


@pytest.mark.parametrize(
    ("syntax", "quick"),
    [
        (None, True),
        (ImplicitVRLittleEndian, True),
        (ExplicitVRBigEndian, False),
        (DeflatedExplicitVRLittleEndian, True),
    ],
)
def test_every_uncompressed_syntax(tmp_path, syntax, quick):
    for path in write_series(tmp_path, image(), AFFINES["oblique"], RescaleSlope=lambda k: k + 0.5):
        if syntax:
            resave(path, syntax)
        assert assert_as_pydicom_says(path) == quick
    np.testing.assert_allclose(open_scan([tmp_path]).read()[0], image() * (np.arange(4) + 0.5), rtol=1e-6)


def test_compressed_files_and_what_lies_between(tmp_path):
    """Nested sequences of unknown length, private elements, text in another character set, empty values."""
    inner, outer = Dataset(), Dataset()
    inner.PixelSpacing = [9, 9]
    inner.is_undefined_length_sequence_item = True
    outer.ReferencedImageSequence = [inner]
    for path in write_series(tmp_path, image((32, 40, 4)), AFFINES["lps"], SliceThickness=""):
        dataset = pydicom.dcmread(path)
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 192", "Größe"
        dataset.ReferencedStudySequence = [outer]
        dataset["ReferencedStudySequence"].is_undefined_length = True
        dataset.private_block(0x0019, "fewscan", create=True).add_new(1, "LO", "private")
        dataset.PixelPaddingValue = 7
        dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
        assert assert_as_pydicom_says(path)
    expected = image((32, 40, 4)).astype(float)
    expected[expected == 7] = expected[expected != 7].min()
    np.testing.assert_array_equal(open_scan([tmp_path]).read()[0], expected)


def test_padding_without_a_vr_is_left_to_pydicom(tmp_path):
    """Whether it is signed says PixelRepresentation."""
    (path,) = write_series(tmp_path, image((7, 5, 1)) - 500, AFFINES["lps"], PixelPaddingValue=-500)
    resave(path, ImplicitVRLittleEndian)
    assert not assert_as_pydicom_says(path)
    with dicom_header.open_dicom(path) as (_, header):
        assert header.get("PixelPaddingValue") == -500


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_files_of_others(path):
    assert_as_pydicom_says(path)


def test_memory_beside_the_volume_does_not_grow_with_its_depth(tmp_path):
    """Padding in every plane, of which one is padding alone."""
    beside = []
    for depth in (10, 10, 40):  # the first time loads libraries
        values = image((96, 64, depth))
        values[:20], values[..., 3] = 5000, 5000
        folder = tmp_path / f"{len(beside)}"
        write_series(folder, values, AFFINES["lps"], PixelPaddingValue=5000)
        scan = open_scan([folder])
        tracemalloc.start()
        read = scan.reader(scan)
        beside.append(tracemalloc.get_traced_memory()[1] - read.nbytes)
        tracemalloc.stop()
        np.testing.assert_array_equal(read[0], np.where(values == 5000, values[values < 5000].min(), values))
    assert beside[2] < beside[1] + 50_000 < 1_000_000


@pytest.mark.parametrize("kept", [100, 140, 300, 600, 900])
def test_a_header_cut_anywhere_is_refused(tmp_path, kept):
    (path,) = write_series(tmp_path, image((7, 5, 1)), AFFINES["lps"])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ScanError):
        open_scan([path])


@pytest.mark.filterwarnings("ignore")
def test_damage_has_the_same_answer_either_way(tmp_path, monkeypatch):
    """Bits turned and bytes missing: the same planes, or the same reason; nothing but a ScanError is raised."""
    random, simple, quick = np.random.default_rng(0), dicom_header._simple_header, 0
    (path,) = write_series(tmp_path, image((7, 5, 1)), AFFINES["oblique"], PixelPaddingValue=5)
    whole = path.read_bytes()

    def answer(way):
        monkeypatch.setattr(dicom_header, "_simple_header", way)
        try:
            return repr(read_planes(path))
        except ScanError as problem:
            return str(problem)

    for _ in range(400):
        changed = bytearray(whole)
        at = int(random.integers(128, len(whole) - 80))
        if random.integers(2):
            changed[at] ^= 1 << int(random.integers(8))
        else:
            del changed[at : at + int(random.integers(1, 9))]
        path.write_bytes(changed)
        found = answer(simple)
        assert found == answer(lambda file: None)
        with contextlib.suppress(ScanError):
            open_scan([path]).read()
            quick += 1
    assert quick > 50
