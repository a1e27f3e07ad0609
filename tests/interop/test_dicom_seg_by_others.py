"""What dcmqi (the reader under 3D Slicer) and dciodvfy (the checker of DICOM files) say about our DICOM-SEG."""

import numpy as np
import pytest

from conftest import shared
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.masks.dicom_seg import frames
from fewscan.scans import open_scan
from interop.readers import Places, assert_same_places, by_dcmqi, errors, places
from masks.cases import GRIDS, SHEARED, TABLE, dicom_scan, mask

KINDS = ("dicom-seg", "dicom-seg-labelmap")


@pytest.fixture(autouse=True, params=["plain", "deflated"])
def size(request, monkeypatch):
    """Files of many pixels are deflated: here, as if small ones were many."""
    monkeypatch.setattr(frames, "PLAIN", 10**9 if request.param == "plain" else -1)


def expected(values: np.ndarray, grid: Grid, table: LabelTable) -> Places:
    names = {label.value: label.name for label in table}
    index = np.argwhere(values)
    points = [grid.to_mm(voxel) * (-1, -1, 1) for voxel in index.tolist()]
    return places(points, (names[int(value)] for value in values[tuple(index.T)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRIDS)
def test_dcmqi_puts_every_voxel_where_the_scan_has_it(tmp_path, name, kind):
    scan = dicom_scan(tmp_path / "series", GRIDS[name])
    (path,) = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", kind)
    found, _ = by_dcmqi(path, tmp_path / "dcmqi")
    assert_same_places(found, expected(mask(), scan.grid, TABLE))


@pytest.mark.parametrize("stated", [1.0, -2.5])
def test_dcmqi_is_not_misled_by_the_source_about_the_distance_of_slices(tmp_path, stated):
    scan = dicom_scan(tmp_path / "series", GRIDS["oblique"], SpacingBetweenSlices=stated)
    (path,) = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", "dicom-seg")
    found, _ = by_dcmqi(path, tmp_path / "dcmqi")
    assert_same_places(found, expected(mask(), scan.grid, TABLE))


@pytest.mark.parametrize("kind", KINDS)
def test_dcmqi_reads_names_codes_and_colours(tmp_path, kind):
    scan = dicom_scan(tmp_path / "series", GRIDS["oblique"])
    (path,) = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", kind, {"bundle": "kidneys", "version": "2"})
    _, description = by_dcmqi(path, tmp_path / "dcmqi")
    segments = [segment for group in description["segmentAttributes"] for segment in group]
    for label, segment in zip(TABLE, segments, strict=True):
        assert segment["SegmentLabel"] == label.name
        assert segment["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == label.meaning.type.value
        np.testing.assert_allclose(segment["recommendedDisplayRGBValue"], label.colour, atol=3)
        assert segment["SegmentAlgorithmType"] == "AUTOMATIC"
    assert segments[0]["SegmentedPropertyTypeModifierCodeSequence"]["CodeMeaning"] == "Left"


@pytest.mark.parametrize(
    "values", [mask(), np.zeros_like(mask()), np.full_like(mask(), 5)], ids=["some", "none", "all"]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [GRIDS["oblique"], SHEARED], ids=["oblique", "sheared"])
def test_dciodvfy_finds_no_error(tmp_path, where, values, kind):
    scan = dicom_scan(tmp_path / "series", where)
    (path,) = write_mask(values, scan, TABLE, tmp_path / "m_seg", kind, {"bundle": "kidneys", "version": "2"})
    assert errors(path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_mask_is_empty_for_dcmqi(tmp_path, kind):
    scan = dicom_scan(tmp_path / "series", GRIDS["axial"])
    (path,) = write_mask(np.zeros_like(mask()), scan, TABLE, tmp_path / "m_seg", kind)
    found, _ = by_dcmqi(path, tmp_path / "dcmqi")
    assert found == {}


@pytest.mark.parametrize("kind", KINDS)
def test_three_hundred_segments_for_both(tmp_path, kind):
    table = LabelTable.from_json([f"part {number}" for number in range(1, 301)])
    scan = dicom_scan(tmp_path / "series", GRIDS["oblique"])
    values = np.arange(9 * 6 * 7, dtype=np.uint16).reshape(9, 6, 7) % 301
    (path,) = write_mask(values, scan, table, tmp_path / "m_seg", kind)
    assert errors(path) == []
    found, _ = by_dcmqi(path, tmp_path / "dcmqi")
    assert_same_places(found, expected(values, scan.grid, table))


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_series_for_both(tmp_path, kind):
    scan = open_scan([shared("data/dicom_mr_udacity") / "Study1" / "13_HCropVolume"])
    table = LabelTable.from_json(["hippocampus anterior", "hippocampus posterior"])
    values = np.zeros(scan.grid.shape, dtype=np.uint8)
    values[3:12, 4:9, 2:6], values[0, 0, -1] = 1, 2
    (path,) = write_mask(values, scan, table, tmp_path / "crop_seg", kind)
    assert errors(path) == []
    found, _ = by_dcmqi(path, tmp_path / "dcmqi")
    assert_same_places(found, expected(values, scan.grid, table))
