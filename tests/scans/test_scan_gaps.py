"""Missing slices of a DICOM series, interpolated where the user asks for it: on the whole grid, and back again."""

import re
from dataclasses import replace

import nibabel
import numpy as np
import pytest

from fewscan.cli import main
from fewscan.runs.ledger import Ledger, places
from fewscan.scans import find_scans
from interop.readers import by_dcmqi, errors
from runs.tiny import change_config, threshold_bundle
from scans.dicom_kinds import LPS_TO_RAS, ORIGIN, difference, volume, write
from scans.dicom_series import write_enhanced
from scans.test_dicom_matrix import THRESHOLDS, points_of, segmented_points

SHAPE = (9, 7, 8)
GONE = [2, 5, 6]


def interpolated(truth):
    """What the slices that are left say of the others, by NumPy alone."""
    left = [k for k in range(SHAPE[2]) if k not in GONE]
    lines = truth.values[:, :, left].reshape(-1, len(left))
    filled = np.stack([np.interp(np.arange(SHAPE[2]), left, line) for line in lines])
    return truth.with_values(filled.reshape(SHAPE))


def without(paths):
    for k in GONE:
        paths[k].unlink()


@pytest.mark.parametrize("direction", ["axial", "coronal", "oblique"])
@pytest.mark.parametrize("shear", [0.0, 0.7])
def test_what_is_there_is_exact_and_the_rest_lies_between(tmp_path, direction, shear):
    truth = volume(direction, shape=SHAPE, shear_mm=shear)
    without(write(tmp_path, truth, shuffled=True))
    assert find_scans(tmp_path).scans == []
    (scan,) = find_scans(tmp_path, resample_gaps=True).scans
    assert scan.planes == (0, 1, 3, 4, 7)
    assert difference(interpolated(truth), scan.read()[0], LPS_TO_RAS @ scan.grid.affine) == ""
    notes = [note for note in scan.notes if "interpolated as asked for" in note]
    assert [note.split(" ")[0] for note in notes] == ["1", "2"]
    place = truth.points()[0, 0, 4]
    assert "({:.1f}, {:.1f}, {:.1f})".format(*place) in notes[1]


def test_a_whole_series_is_read_as_ever(tmp_path):
    write(tmp_path, volume())
    (one,), (other,) = (find_scans(tmp_path, resample_gaps=asked).scans for asked in (False, True))
    assert (one.files, one.notes, one.planes) == (other.files, other.notes, other.planes) and one.planes == ()
    np.testing.assert_array_equal(one.grid.affine, other.grid.affine)


@pytest.mark.parametrize(("thickness", "gap"), [(5, 1), (5, 0.5), (3, 0.3)])
def test_a_whole_series_whose_scanner_states_the_gap_alone_is_read_as_ever(tmp_path, thickness, gap):
    """The distance is the thickness and the gap, which is a whole number of gaps too."""
    truth = volume(shape=SHAPE, spacing=(0.9, 0.8, thickness + gap))
    write(tmp_path, truth, SliceThickness=thickness, SpacingBetweenSlices=gap)
    (one,), (other,) = (find_scans(tmp_path, resample_gaps=asked).scans for asked in (False, True))
    assert (one.notes, one.planes) == (other.notes, other.planes) and other.planes == ()
    assert difference(truth, other.read()[0], LPS_TO_RAS @ other.grid.affine) == ""


def test_slices_that_are_missing_in_such_a_series_are_found_by_its_smallest_distance(tmp_path):
    truth = volume(shape=SHAPE, spacing=(0.9, 0.8, 6.0))
    without(write(tmp_path, truth, SliceThickness=5, SpacingBetweenSlices=1))
    assert find_scans(tmp_path).scans == []
    (scan,) = find_scans(tmp_path, resample_gaps=True).scans
    assert scan.planes == (0, 1, 3, 4, 7)
    assert difference(interpolated(truth), scan.read()[0], LPS_TO_RAS @ scan.grid.affine) == ""


def test_every_second_slice_by_the_distance_that_the_header_states(tmp_path):
    truth = volume(shape=SHAPE)
    for path in write(tmp_path, truth, SpacingBetweenSlices=2.5)[1::2]:
        path.unlink()
    (scan,) = find_scans(tmp_path, resample_gaps=True).scans
    assert scan.planes == (0, 2, 4, 6)
    np.testing.assert_array_equal(scan.read()[0][:, :, ::2], truth.values[:, :, :7:2])
    np.testing.assert_allclose(scan.grid.affine, truth.ras, atol=1e-9)


def test_enhanced_frames(tmp_path):
    truth = volume(shape=SHAPE)
    left = [k for k in range(SHAPE[2]) if k not in GONE]
    write_enhanced(tmp_path / "ct.dcm", [(truth.values, truth.ras)], order=left)
    (scan,) = find_scans(tmp_path, resample_gaps=True).scans
    assert difference(interpolated(truth), scan.read()[0], LPS_TO_RAS @ scan.grid.affine) == ""


def test_distances_that_are_no_whole_steps_stay_refused(tmp_path):
    positions = [0, 2.5, 5, 9, 13, 17]
    write(tmp_path, volume(), ImagePositionPatient=lambda k: [*ORIGIN[:2], ORIGIN[2] + positions[k]])
    found = find_scans(tmp_path, resample_gaps=True)
    assert found.scans == [] and "form no grid" in found.skipped[0].reason


@pytest.mark.parametrize("direction", ["axial", "oblique"])
def test_the_mask_goes_back_to_the_slices_that_are_there(tmp_path, direction, capsys):
    """NIfTI holds them all; a frame of a DICOM-SEG refers to an image."""
    truth = volume(direction, shape=SHAPE)
    without(write(tmp_path / "scans" / "case", truth))
    bundle = threshold_bundle(tmp_path / "bundle", THRESHOLDS, window=(0, 4000))
    command = ["segment", str(tmp_path / "scans"), "--bundle", str(bundle), "--output", str(tmp_path / "masks")]
    assert main([*command, "--resample-gaps"]) != 0  # MONAI's own inferer gets files, not what was made of them
    assert "leave --resample-gaps out" in "".join(capsys.readouterr())
    inferer = {"_target_": "fewscan.tiling.OverlapTileInferer", "spatial_dims": 3, "tile": [8, 8, 8]}
    change_config(bundle, inferer=inferer)
    assert main([*command, "--format", "nifti,dicom-seg", "--resample-gaps"]) == 0
    filled = interpolated(truth)
    wanted = filled.with_values(sum((filled.values > t).astype(int) for t in THRESHOLDS))
    (image,) = (nibabel.load(path) for path in (tmp_path / "masks").rglob("*.nii.gz"))
    assert difference(wanted, np.asanyarray(image.dataobj), LPS_TO_RAS @ image.affine) == ""
    wanted.values[:, :, GONE] = 0
    (seg,) = (tmp_path / "masks").rglob("*.dcm")
    assert segmented_points(seg, tmp_path / "scans") == points_of(wanted)
    assert errors(seg) == []
    found, _ = by_dcmqi(seg, tmp_path / "dcmqi")
    assert len(found) == (wanted.values > 0).sum()
    report = (tmp_path / "masks" / "fewscan" / "report.json").read_text()
    assert len(re.findall("slice.s. missing between", report)) >= 2


def test_what_was_done_of_the_interpolated_stack_is_not_done_of_the_bare_one(tmp_path):
    """The same files in the same run: the receipt of the one is none of the other."""
    without(write(tmp_path / "scans", volume(shape=SHAPE)))
    (filled,) = find_scans(tmp_path / "scans", resample_gaps=True).scans
    bare = replace(filled, grid=replace(filled.grid, shape=(9, 7, 5)), planes=())
    ledger = Ledger(tmp_path / "masks", {}, {})
    ledger.open(tmp_path / "scans")
    for scan, other in ((filled, bare), (bare, filled)):
        ledger.sign(scan, places(scan), [], {"voxels": list(scan.grid.shape), "affine": scan.grid.affine.tolist()})
        assert ledger.receipt(scan) is not None and ledger.receipt(other) is None


def test_without_the_option_the_series_is_refused_and_the_way_out_is_named(tmp_path, capsys):
    without(write(tmp_path / "scans" / "case", volume(shape=SHAPE)))
    bundle = threshold_bundle(tmp_path / "bundle", THRESHOLDS)
    command = ["segment", str(tmp_path / "scans"), "--bundle", str(bundle), "--output", str(tmp_path / "masks")]
    assert main(command) != 0
    assert "--resample-gaps" in "".join(capsys.readouterr())
    assert not list((tmp_path / "masks").rglob("*_seg*"))
