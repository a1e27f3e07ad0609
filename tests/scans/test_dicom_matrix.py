"""Every kind of series is read exactly, or refused with the numbers that disagree: never wrong in silence."""

import json
import re

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.pixels.decoders.base import get_decoder

from fewscan.cli import main
from fewscan.errors import ScanError
from fewscan.scans import find_scans, open_scan
from runs.tiny import threshold_bundle
from scans.dicom_kinds import KINDS, LPS_TO_RAS, difference, volume

READ = [name for name, kind in KINDS.items() if not kind.refused]
REFUSED = [name for name, kind in KINDS.items() if kind.refused]
THRESHOLDS = (1500.5, 1700.5)
LABELS = {"left kidney": 1, "spleen": 2}


def wrong(truth, scan):
    return difference(truth, scan.read()[0], LPS_TO_RAS @ scan.grid.affine)


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_is_read_exactly(tmp_path, name):
    kind = KINDS[name]
    truths = kind.make(tmp_path / "case")
    found = find_scans(tmp_path / "case")
    assert len(found.scans) == len(truths), found.skipped
    for truth in truths:
        problems = [wrong(truth, scan) for scan in found.scans]
        assert problems.count("") == 1, problems
    for scan in found.scans:
        assert np.linalg.det((LPS_TO_RAS @ scan.grid.affine)[:3, :3]) > 0  # planes in the order of their normal
        assert re.search(kind.noted, "; ".join(scan.notes)) if kind.noted else not scan.notes
    reasons = [item.reason for item in found.skipped]
    assert all(re.search(kind.left_out, reason) for reason in reasons) if kind.left_out else not reasons
    assert bool(reasons) == bool(kind.left_out)
    if len(truths) > 1:
        with pytest.raises(ScanError, match=f"{len(truths)} volumes"):
            open_scan([tmp_path / "case"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path, name):
    kind = KINDS[name]
    kind.make(tmp_path / "case")
    refusal = f"(?s){kind.refused}"
    found = find_scans(tmp_path / "case")
    for scan in found.scans:  # what only the pixels show
        with pytest.raises(ScanError, match=refusal):
            scan.read()
    if not found.scans:
        assert any(re.search(refusal, item.reason) for item in found.skipped if item.failed), found.skipped
    with pytest.raises(ScanError, match=refusal):
        open_scan([tmp_path / "case"]).read()


@pytest.mark.parametrize("name", ["rle", "jpeg_ls", "jpeg_2000"])
def test_another_decoder_that_is_installed_has_no_say(tmp_path, monkeypatch, name):
    """pydicom asks GDCM first, where it is installed; here one that answers zeros."""
    (truth,) = KINDS[name].make(tmp_path)
    syntax = pydicom.dcmread(next(tmp_path.rglob("*.dcm")), stop_before_pixels=True).file_meta.TransferSyntaxUID
    decoder = get_decoder(syntax)
    zeros = {"gdcm": lambda source, runner: bytes(100 * len(source))}
    others = zeros | {name: how for name, how in decoder._available.items() if name != "gdcm"}
    monkeypatch.setattr(decoder, "_available", others)
    (scan,) = find_scans(tmp_path).scans
    assert wrong(truth, scan) == ""


def test_a_broken_file_that_the_user_leaves_out_is_the_way_out(tmp_path):
    KINDS["the_last_file_cut_short"].make(tmp_path)
    found = find_scans(tmp_path, exclude=["image005.dcm"])
    (scan,) = found.scans
    assert wrong(volume(shape=(9, 7, 6)).part(slice(0, 5)), scan) == ""
    assert [(item.path.name, item.reason) for item in found.skipped] == [("image005.dcm", "excluded")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return threshold_bundle(tmp_path_factory.mktemp("bundles") / "b", THRESHOLDS, window=(0, 4000))


SEGMENTED = (
    "axial", "sagittal", "coronal", "feet_first_prone_with_planes_against_their_normal", "files_and_numbers_shuffled",
    "gantry_tilt", "gantry_tilt_of_an_oblique_stack", "a_single_slice_without_thickness", "a_localizer_in_the_series",
    "a_file_twice", "a_colour_picture_in_the_series", "two_series", "two_acquisitions", "explicit_big_endian",
    "two_stacks_of_different_orientation", "signed_12_of_16_bit_without_sign_extension", "jpeg_ls", "enhanced_ct",
    "enhanced_mr_with_frames_out_of_order", "enhanced_mr_without_shared_groups",
    "enhanced_mr_of_two_stacks", "enhanced_mr_of_two_parallel_stacks",
    "enhanced_mr_of_two_echoes", "enhanced_mr_of_two_times", "enhanced_mr_in_two_files",
    "enhanced_mr_with_a_file_for_each_slice",
)  # fmt: skip


@pytest.mark.parametrize("name", SEGMENTED)
def test_the_mask_lies_where_the_content_is(tmp_path, bundle, name):
    """Voxel for voxel in NIfTI, and plane for plane in DICOM-SEG, by position and by reference."""
    truths = KINDS[name].make(tmp_path / "scans" / "case")
    wanted = [truth.with_values(sum((truth.values > t).astype(int) for t in THRESHOLDS)) for truth in truths]
    arguments = ["--bundle", str(bundle), "--output", str(tmp_path / "masks"), "--format", "nifti,dicom-seg"]
    assert main(["segment", str(tmp_path / "scans"), *arguments]) == 0
    images = [nibabel.load(path) for path in sorted((tmp_path / "masks").rglob("*.nii.gz"))]
    assert len(images) == len(truths)
    for truth in wanted:
        problems = [difference(truth, np.asanyarray(image.dataobj), LPS_TO_RAS @ image.affine) for image in images]
        assert problems.count("") == 1, problems
    segments = [segmented_points(path, tmp_path / "scans") for path in sorted((tmp_path / "masks").rglob("*.dcm"))]
    assert len(segments) == len(truths)
    for truth in wanted:
        assert points_of(truth) in segments


def points_of(truth):
    """Label -> the hundredths of mm, LPS, where its voxels lie."""
    points = np.rint(truth.points() * 100).astype(int)
    return {number: set(map(tuple, points[truth.values == number].tolist())) for number in (1, 2)}


def segmented_points(path, scans):
    """The same of a DICOM-SEG, by the positions of its frames, which have to be those of the images they refer to."""
    seg = pydicom.dcmread(path)
    sources = {}
    for file in scans.rglob("*.dcm"):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        for number, frame in enumerate(header.get("PerFrameFunctionalGroupsSequence", [None]), start=1):
            place = header if frame is None else frame.PlanePositionSequence[0]
            sources[header.SOPInstanceUID, number] = place.get("ImagePositionPatient")
    found = {1: set(), 2: set()}
    shared = seg.SharedFunctionalGroupsSequence[0]
    masks = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, mask in zip(seg.PerFrameFunctionalGroupsSequence, masks, strict=True):
        position = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        image = frame.DerivationImageSequence[0].SourceImageSequence[0]
        source = sources[image.ReferencedSOPInstanceUID, int(image.get("ReferencedFrameNumber", 1))]
        np.testing.assert_allclose(np.array(source, float), position, atol=1e-3)
        row, column = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
        between_rows, between_columns = (float(x) for x in shared.PixelMeasuresSequence[0].PixelSpacing)
        j, i = np.nonzero(mask)
        points = position + np.outer(i * between_columns, row) + np.outer(j * between_rows, column)
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        name = seg.SegmentSequence[number - 1].SegmentLabel
        found[LABELS[name]] |= set(map(tuple, np.rint(points * 100).astype(int).tolist()))
    return found


@pytest.mark.parametrize("name", ["a_missing_slice", "the_last_file_cut_short", "two_echoes_shifted_by_half_a_slice"])
def test_a_refused_series_gets_no_mask_and_a_line_in_the_report(tmp_path, bundle, name):
    KINDS[name].make(tmp_path / "scans" / "bad")
    KINDS["oblique"].make(tmp_path / "scans" / "good")
    assert main(["segment", str(tmp_path / "scans"), "--bundle", str(bundle), "--output", str(tmp_path / "masks")]) == 2
    assert [path.name for path in (tmp_path / "masks").rglob("*_seg.dcm")] == ["good_seg.dcm"]
    report = json.loads((tmp_path / "masks" / "fewscan" / "report.json").read_text())
    assert any(re.search(KINDS[name].refused, json.dumps(row, ensure_ascii=False)) for row in report["scans"])
