"""What OHIF's reader (dcmjs and Cornerstone's adapters, in Node) makes of our DICOM-SEG. Run by `.ci/interop`."""

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from conftest import shared
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.masks.dicom_seg import frames
from fewscan.scans import open_scan
from interop.readers import by_ohif
from masks.cases import GRIDS, SHEARED, TABLE, dicom_scan, mask

pytestmark = pytest.mark.ohif
KINDS = ("dicom-seg", "dicom-seg-labelmap")
SHAPE = (8, 6, 7)
"""48 pixels a plane, whole bytes of bits."""


@pytest.fixture(autouse=True, params=["plain", "deflated"])
def size(request, monkeypatch):
    """Files of many pixels are deflated: here, as if small ones were many."""
    monkeypatch.setattr(frames, "PLAIN", 10**9 if request.param == "plain" else -1)


def ohif_draws(path, scan, table):
    """The label values (i, j, k) that OHIF draws on the source's images, its segments, and what dicom-parser finds."""
    files = list(dict.fromkeys(scan.files))
    (answer,) = by_ohif([path], files)
    uids = [str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files]
    images = [f"{uids[0]} {frame}" for frame in scan.frames] or [f"{uid} 1" for uid in uids]
    assert set(answer["found"]) <= set(images)
    drawn = np.zeros(scan.grid.shape, dtype=np.uint16)
    for k, image in enumerate(images):
        plane = np.zeros(drawn.shape[0] * drawn.shape[1], dtype=np.uint16)
        for pixel, segment in answer["found"].get(image, []):
            plane[pixel] = segment
        drawn[:, :, k] = plane.reshape(drawn.shape[1], drawn.shape[0]).T
    value = {label.name: label.value for label in table}
    named = {segment["number"]: value[segment["label"]] for segment in answer["segments"] if segment["number"] > 0}
    values = np.array([named.get(number, 0) for number in range(len(table) + 1)], dtype=table.dtype)
    return values[drawn], answer["segments"], answer["dicomParser"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [*GRIDS.values(), SHEARED], ids=[*GRIDS, "sheared"])
def test_every_voxel_is_drawn_on_its_image(tmp_path, where, kind):
    scan, values = dicom_scan(tmp_path / "series", Grid(SHAPE, where.affine)), mask(shape=SHAPE)
    (path,) = write_mask(values, scan, TABLE, tmp_path / "m_seg", kind)
    drawn, _, parsed = ohif_draws(path, scan, TABLE)
    np.testing.assert_array_equal(drawn, values)
    assert parsed["frames"] == int(pydicom.dcmread(path).NumberOfFrames)
    assert parsed["bytes"] == (len(pydicom.dcmread(path).PixelData) if kind == "dicom-seg" else None)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("dicom-seg", marks=pytest.mark.xfail(strict=True, reason="refuses the byte that makes them even")),
        "dicom-seg-labelmap",
    ],
)
def test_an_odd_number_of_bytes_of_pixels(tmp_path, kind):
    """Six frames of 54 bits, or five of 54 bytes run-length encoded."""
    scan = dicom_scan(tmp_path / "series", GRIDS["oblique"])
    (path,) = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", kind)
    np.testing.assert_array_equal(ohif_draws(path, scan, TABLE)[0], mask())


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            "dicom-seg", marks=pytest.mark.xfail(strict=True, reason="begins each frame at a byte of its own")
        ),
        "dicom-seg-labelmap",
    ],
)
def test_few_planes_whose_bits_fill_no_bytes(tmp_path, kind):
    """Two frames of 54 bits, one after the other, need 14 bytes; so would frames that begin at a byte of their own."""
    scan = dicom_scan(tmp_path / "series", GRIDS["oblique"])
    values = np.zeros_like(mask())
    values[2:5, 1:3, 1:3] = 1
    (path,) = write_mask(values, scan, TABLE, tmp_path / "m_seg", kind)
    np.testing.assert_array_equal(ohif_draws(path, scan, TABLE)[0], values)


@pytest.mark.parametrize("kind", KINDS)
def test_each_segment_has_its_name_and_colour(tmp_path, kind):
    scan = dicom_scan(tmp_path / "series", Grid(SHAPE, GRIDS["oblique"].affine))
    (path,) = write_mask(mask(shape=SHAPE), scan, TABLE, tmp_path / "m_seg", kind)
    _, segments, _ = ohif_draws(path, scan, TABLE)
    segments = [segment for segment in segments if segment["number"] > 0]
    for number, (label, segment) in enumerate(zip(TABLE, segments, strict=True), start=1):
        assert (segment["index"], segment["number"], segment["label"]) == (number, number, label.name)
        np.testing.assert_allclose(255 * np.array(segment["colour"]), label.colour, atol=1)
    items = pydicom.dcmread(path).SegmentSequence  # OHIF up to 3.13 takes the n-th item for segment n
    assert [int(item.SegmentNumber) for item in items][: len(TABLE)] == [1, 2, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_one_label_one_slice_and_an_absent_label(tmp_path, kind):
    one = LabelTable.from_json(["liver"])
    single = np.minimum(mask(shape=SHAPE), 1)[:, :, 1:2]
    scan = dicom_scan(tmp_path / "slice", Grid((8, 6, 1), GRIDS["oblique"].affine))
    (path,) = write_mask(single, scan, one, tmp_path / "one_seg", kind)
    np.testing.assert_array_equal(ohif_draws(path, scan, one)[0], single)
    absent = mask(shape=SHAPE)
    absent[absent == 5] = 0
    scan = dicom_scan(tmp_path / "series", Grid(SHAPE, GRIDS["axial"].affine))
    (path,) = write_mask(absent, scan, TABLE, tmp_path / "absent_seg", kind)
    np.testing.assert_array_equal(ohif_draws(path, scan, TABLE)[0], absent)


@pytest.mark.parametrize("kind", KINDS)
def test_an_enhanced_file_frame_by_frame(tmp_path, kind):
    folder = shared("data/dicom_series_dicom2nifti") / "philips_enhanced" / "anatomical" / "001"
    source = pydicom.dcmread(next(folder.iterdir()))
    source.FrameOfReferenceUID = generate_uid()  # anonymised away in the public file
    source.save_as(tmp_path / "enhanced.dcm")
    scan = open_scan([tmp_path / "enhanced.dcm"])
    values = np.zeros(scan.grid.shape, dtype=np.uint8)
    values[3:40, 4:90, 2], values[0, 0, -1], values[9, 9, 0] = 1, 3, 5
    (path,) = write_mask(values, scan, TABLE, tmp_path / "m_seg", kind)
    np.testing.assert_array_equal(ohif_draws(path, scan, TABLE)[0], values)
