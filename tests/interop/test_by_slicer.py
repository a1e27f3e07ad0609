"""3D Slicer's own code opens our masks: names, colours, codes, and every voxel at its place.

Skipped unless FEWSCAN_SLICER_PYTHON names a Python with `slicer-core`; `.ci/interop-slicer` makes one and runs this.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from interop.readers import assert_same_places, program
from masks.cases import GRIDS, LARGE, SHEARED, TABLE, dicom_scan, mask, nifti_scan

READER = Path(__file__).with_name("slicer_reads.py")


def opened(path: Path, *colours: Path) -> subprocess.CompletedProcess[str]:
    """What 3D Slicer prints on loading a mask."""
    python = os.environ.get("FEWSCAN_SLICER_PYTHON")
    if not python:
        pytest.skip("FEWSCAN_SLICER_PYTHON names no Python with slicer-core (.ci/interop-slicer makes one)")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, str(READER), *map(str, (path, *colours))]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean)


def by_slicer(path: Path, *colours: Path) -> list[dict]:
    """What 3D Slicer holds after loading: a segment each with name, colour, terminology and voxels (mm, RAS+)."""
    done = opened(path, *colours)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def through_dcmqi(path: Path) -> Path:
    """The folder that 3D Slicer's DICOM plugin reads: dcmqi's label maps and description of a DICOM-SEG."""
    folder = path.with_suffix(".dcmqi")
    folder.mkdir()
    command = [program("segimage2itkimage"), "--inputDICOM", str(path), "--outputDirectory", str(folder)]
    subprocess.run([*command, "--outputType", "nrrd", "--mergeSegments"], check=True, capture_output=True)
    return folder


def loaded(tmp_path: Path, format: str, grid, values: np.ndarray, table: LabelTable = TABLE) -> list[dict]:
    """A mask of a scan on this grid, written by us and opened by 3D Slicer as its user would."""
    if format == "nifti":
        scan = nifti_scan(tmp_path, grid)
        return by_slicer(*write_mask(values, scan, table, tmp_path / "m_seg", format))
    scan = dicom_scan(tmp_path / "series", grid)
    (path,) = write_mask(values, scan, table, tmp_path / "m_seg", format)
    return by_slicer(through_dcmqi(path) if format == "dicom-seg" else path)


def places(segments: list[dict]) -> dict[tuple[float, ...], str]:
    """{(x, y, z) in mm, RAS+: name of the segment}."""
    return {tuple(np.round(voxel, 3)): segment["name"] for segment in segments for voxel in segment["voxels"]}


def expected(values: np.ndarray, grid, table: LabelTable) -> dict[tuple[float, ...], str]:
    names = {label.value: label.name for label in table}
    return {
        tuple(grid.to_mm(index).round(3)): names[int(values[tuple(index)])] for index in np.argwhere(values).tolist()
    }


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("format", ["seg-nrrd", "nifti", "dicom-seg"])
def test_slicer_puts_every_voxel_where_the_scan_has_it(tmp_path, format, name):
    segments = loaded(tmp_path, format, GRIDS[name], mask())
    assert_same_places(places(segments), expected(mask(), GRIDS[name], TABLE))


@pytest.mark.parametrize("format", ["seg-nrrd", "nifti", "dicom-seg"])
def test_slicer_shows_names_and_colours(tmp_path, format):
    found = {segment["name"]: segment for segment in loaded(tmp_path, format, GRIDS["oblique"], mask())}
    assert set(found) == {label.name for label in TABLE}
    for label in TABLE:
        tolerance = 3 / 255 if format == "dicom-seg" else 1e-5  # through CIELab and back
        np.testing.assert_allclose(found[label.name]["colour"], np.array(label.colour) / 255, atol=tolerance)


@pytest.mark.parametrize("format", ["seg-nrrd", "dicom-seg"])
def test_slicer_shows_the_codes(tmp_path, format):
    found = {segment["name"]: segment for segment in loaded(tmp_path, format, GRIDS["oblique"], mask())}
    for label in TABLE:
        meaning = label.meaning
        codes = found[label.name]["terminology"].split("~")[1:4]
        assert codes == [
            "^".join((code.scheme, code.value, code.meaning)) if code else "^^"
            for code in (meaning.category, meaning.type, meaning.modifier)
        ]


@pytest.mark.parametrize("format", ["seg-nrrd", "nifti", "dicom-seg"])
@pytest.mark.parametrize("missing", [label.name for label in TABLE])
def test_a_label_that_was_not_found_shifts_no_name(tmp_path, format, missing):
    values = mask()
    values[values == next(label.value for label in TABLE if label.name == missing)] = 0
    segments = loaded(tmp_path, format, GRIDS["oblique"], values)
    assert_same_places(places(segments), expected(values, GRIDS["oblique"], TABLE))


@pytest.mark.parametrize("format", ["seg-nrrd", "nifti"])
def test_slicer_reads_values_above_255(tmp_path, format):
    segments = loaded(tmp_path, format, GRIDS["oblique"], mask(LARGE), LARGE)
    assert_same_places(places(segments), expected(mask(LARGE), GRIDS["oblique"], LARGE))


def test_without_its_colour_table_a_nifti_has_no_names(tmp_path):
    """What docs/open_masks.md warns of: 3D Slicer does not look for the table itself."""
    path, _ = write_mask(mask(), nifti_scan(tmp_path, GRIDS["axial"]), TABLE, tmp_path / "m_seg", "nifti")
    assert [segment["name"] for segment in by_slicer(path)] == ["Segment_1", "Segment_3", "Segment_5"]


def test_slicer_keeps_the_shear_of_a_gantry_tilt_in_seg_nrrd(tmp_path):
    segments = loaded(tmp_path, "seg-nrrd", SHEARED, mask())
    assert_same_places(places(segments), expected(mask(), SHEARED, TABLE))


def test_slicer_refuses_the_shear_of_a_gantry_tilt_in_nifti(tmp_path):
    """So docs/open_masks.md sends such masks through seg.nrrd."""
    path, colours = write_mask(mask(), nifti_scan(tmp_path, SHEARED), TABLE, tmp_path / "m_seg", "nifti")
    done = opened(path, colours)
    assert done.returncode != 0
    assert "ITK only supports orthonormal direction cosines" in done.stderr
