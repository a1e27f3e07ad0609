"""A folder of scans becomes masks: which, where, with what values, and what happens to the scans that fail."""

import csv
import hashlib
import json
import os

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import tifffile
from PIL import Image

from fewscan import __version__
from fewscan.errors import BundleError, FewscanError, FormatError
from fewscan.runs.segment import segment
from fewscan.scans import find_cases
from runs.tiny import (
    change_config,
    expected,
    files_below,
    masks_below,
    noise,
    read,
    save_nifti,
    threshold_bundle,
)
from scans.dicom_series import write_series
from scans.volumes import AFFINES


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return threshold_bundle(tmp_path_factory.mktemp("bundles") / "kidneys")


def report_of(output):
    return json.loads((output / "fewscan" / "report.json").read_text())


def reasons(report):
    return [row["reason"] for row in report.failed]


# Which values, and where.


def test_masks_mirror_the_tree_and_hold_what_the_network_says(tmp_path, bundle):
    images = {"sub-01/anat/T1": noise(1), "sub-02/anat/T1": noise(2, (5, 11, 6)), "plain": noise(3)}
    for number, (name, image) in enumerate(images.items()):
        save_nifti(tmp_path / "scans" / f"{name}.nii.gz", image, list(AFFINES.values())[number + 2])
    report = segment(tmp_path / "scans", bundle, tmp_path / "masks")
    assert report.exit_code == 0
    assert masks_below(tmp_path / "masks") == sorted(
        f"{name}_seg{suffix}" for name in images for suffix in (".ctbl", ".nii.gz", "_overlay.png")
    )
    for name, image in images.items():
        mask, scan = tmp_path / "masks" / f"{name}_seg.nii.gz", tmp_path / "scans" / f"{name}.nii.gz"
        np.testing.assert_array_equal(read(mask), expected(image))
        np.testing.assert_array_equal(nibabel.load(mask).affine, nibabel.load(scan).affine)


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (3, 3)])
def test_the_codes_of_q_and_s_form_are_kept(tmp_path, bundle, codes):
    image = nibabel.Nifti1Image(noise(), None)
    image.set_qform(AFFINES["oblique"], codes[0])
    image.set_sform(AFFINES["oblique"], codes[1])
    nibabel.save(image, tmp_path / "x.nii")
    segment(tmp_path / "x.nii", bundle, tmp_path / "masks", overlays=False)
    header = nibabel.load(tmp_path / "masks" / "x_seg.nii.gz").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == codes


@pytest.mark.parametrize(("values", "dtype"), [((255,), np.uint8), ((3, 7, 300), np.uint16)])
def test_label_values_return_as_in_the_training_files(tmp_path, values, dtype):
    thresholds = (250.5, 500.5, 750.5)[: len(values)]
    labels = [{"name": f"part {value}", "value": value} for value in values]
    threshold_bundle(tmp_path / "bundle", thresholds, labels)
    save_nifti(tmp_path / "scans" / "x.nii.gz", noise())
    segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "masks")
    mask = read(tmp_path / "masks" / "x_seg.nii.gz")
    assert mask.dtype == dtype
    np.testing.assert_array_equal(mask, expected(noise(), thresholds, values))


def test_the_channel_that_decides_is_found_by_its_name(tmp_path):
    channels = [{"name": "T1", "suffix": "_T1"}, {"name": "FLAIR", "suffix": "_FLAIR"}]
    threshold_bundle(tmp_path / "bundle", channels=channels, decides=1)
    for number, name in enumerate(("a_FLAIR", "a_T1", "b_T1")):  # alphabetically the other way round
        save_nifti(tmp_path / "scans" / "sub" / f"{name}.nii.gz", noise(number))
    report = segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "masks", overlays=False)
    assert masks_below(tmp_path / "masks") == ["sub/a_seg.ctbl", "sub/a_seg.nii.gz"]
    np.testing.assert_array_equal(read(tmp_path / "masks" / "sub" / "a_seg.nii.gz"), expected(noise(0)))
    assert report.exit_code == 2 and "sub/b" in reasons(report)[0] and "_FLAIR" in reasons(report)[0]


def test_a_picture_gives_a_picture(tmp_path):
    threshold_bundle(tmp_path / "bundle", (100.5, 200.5), dims=2, window=(0, 255))
    picture = (noise(4, (13, 21)) // 4).astype(np.uint8)
    (tmp_path / "scans").mkdir()
    Image.fromarray(picture).save(tmp_path / "scans" / "cell.png")
    segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "masks")
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "masks" / "cell_seg.png")))
    np.testing.assert_array_equal(found, expected(picture, (100.5, 200.5)))


# Formats.


def test_the_format_follows_the_source(tmp_path, bundle):
    save_nifti(tmp_path / "scans" / "a.nii", noise(1))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise(2).T), str(tmp_path / "scans" / "b.mha"))
    write_series(tmp_path / "scans" / "c", noise(3), AFFINES["oblique"])
    assert segment(tmp_path / "scans", bundle, tmp_path / "masks", overlays=False).exit_code == 0
    assert masks_below(tmp_path / "masks") == ["a_seg.ctbl", "a_seg.nii.gz", "b_seg.seg.nrrd", "c_seg.dcm"]
    nrrd = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "masks" / "b_seg.seg.nrrd")))
    np.testing.assert_array_equal(nrrd.T, expected(noise(2)))


def test_several_formats_hold_one_mask(tmp_path, bundle):
    write_series(tmp_path / "scans" / "ct", noise(), AFFINES["reversed"], shuffled=True)
    segment(tmp_path / "scans", bundle, tmp_path / "masks", formats=["nifti", "dicom-seg", "seg-nrrd"], overlays=False)
    masks = tmp_path / "masks"
    nifti = nibabel.load(masks / "ct_seg.nii.gz")
    nrrd = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(masks / "ct_seg.seg.nrrd"))).T
    volume = highdicom.seg.segread(masks / "ct_seg.dcm").get_volume(combine_segments=True)
    assert set(np.unique(nrrd)) == {0, 1, 2}
    np.testing.assert_array_equal(np.asanyarray(nifti.dataobj), nrrd)
    for index in np.ndindex(volume.array.shape):  # the same label at the same place in the patient
        lps = volume.affine @ (*index, 1)
        i, j, k, _ = np.rint(np.linalg.inv(nifti.affine) @ (lps * (-1, -1, 1, 1))).astype(int)
        assert volume.array[index] == nrrd[i, j, k]


@pytest.mark.parametrize("format", ["dicom-seg", "dicom-seg-labelmap"])
def test_a_reproducible_run_gives_the_same_files_again(tmp_path, bundle, format):
    write_series(tmp_path / "scans" / "ct", noise(), AFFINES["oblique"])

    def run(output, reproducible):
        segment(tmp_path / "scans", bundle, output, formats=[format], overlays=False, reproducible=reproducible)
        return (output / "ct_seg.dcm").read_bytes()

    first = run(tmp_path / "a", True)
    assert run(tmp_path / "b", True) == first and run(tmp_path / "c", False) != first
    (tmp_path / "a" / "ct_seg.dcm").unlink()
    assert run(tmp_path / "a", True) == first
    assert run(tmp_path / "c", True) == first  # what was written with random UIDs is not taken for it


def test_two_formats_of_one_file_name_are_refused(tmp_path, bundle):
    write_series(tmp_path / "scans" / "ct", noise(), AFFINES["lps"])
    with pytest.raises(FormatError, match=r"dicom-seg and dicom-seg-labelmap would be one file, .* \.dcm; choose one"):
        segment(tmp_path / "scans", bundle, tmp_path / "masks", formats=["nifti", "dicom-seg", "dicom-seg-labelmap"])
    assert not (tmp_path / "masks").exists()


def test_an_impossible_format_fails_before_anything_is_written(tmp_path, bundle):
    write_series(tmp_path / "scans" / "a", noise(), AFFINES["lps"])
    save_nifti(tmp_path / "scans" / "b.nii.gz", noise())
    with pytest.raises(FormatError, match=r"b: a DICOM-SEG refers to the DICOM series .* choose nifti or seg-nrrd"):
        segment(tmp_path / "scans", bundle, tmp_path / "masks", formats=["dicom-seg"])
    assert not (tmp_path / "masks").exists()


def test_a_series_that_no_dicom_seg_can_be_placed_on_keeps_none_of_the_others_from_theirs(tmp_path, bundle):
    for number, name in enumerate(("a", "b")):
        write_series(tmp_path / "scans" / name, noise(number), AFFINES["lps"])
    write_series(tmp_path / "scans" / "c", noise(2), AFFINES["lps"], FrameOfReferenceUID=None)
    report = segment(tmp_path / "scans", bundle, tmp_path / "masks", formats=["dicom-seg"], overlays=False)
    assert {row["scan"]: row["status"] for row in report.rows} == {"a": "done", "b": "done", "c": "failed"}
    assert report.exit_code == 2 and "c: the series has no FrameOfReferenceUID" in report.failed[0]["reason"]
    with pytest.raises(FormatError, match=r"c: the series has no FrameOfReferenceUID, .* choose nifti or seg-nrrd"):
        segment(tmp_path / "scans" / "c", bundle, tmp_path / "other", formats=["dicom-seg"])
    with pytest.raises(FormatError, match="png holds neither orientation nor position"):
        segment(tmp_path / "scans", bundle, tmp_path / "other", formats=["png"])


# What is a scan, and what it is called.


def test_patients_names_appear_nowhere_but_in_dicom_headers(tmp_path, bundle, capfd):
    who = {"PatientName": "Zyxwv^Planted", "PatientID": "ID4711Q", "PatientBirthDate": "19630531"}
    who["SeriesDescription"] = "described Planted"
    write_series(tmp_path / "scans" / "case-1" / "t1", noise(1), AFFINES["lps"], Modality="MR", **who)
    write_series(tmp_path / "scans" / "case-2" / "t1", noise(2), AFFINES["lps"], Modality="MR", **who)
    (tmp_path / "scans" / "case-2" / "t1" / "image003.dcm").unlink()
    cut = tmp_path / "scans" / "case-1" / "cut.dcm"
    whole = (tmp_path / "scans" / "case-1" / "t1" / "image000.dcm").read_bytes()
    cut.write_bytes(whole[:-30])
    report = segment(tmp_path / "scans", bundle, tmp_path / "masks", formats=["dicom-seg", "seg-nrrd"])
    assert report.failed and (tmp_path / "masks" / "case-1" / "t1_seg.dcm").exists()
    told = [*capfd.readouterr(), str(report)]
    planted = ("Zyxwv", "Planted", "4711Q", "19630531")
    for path in (tmp_path / "masks").rglob("*"):
        told.append(str(path))
        if path.is_file() and path.suffix != ".dcm":
            told.append(path.read_bytes().decode("latin-1"))
    assert not [word for word in planted for text in told if word in text]
    assert pydicom.dcmread(tmp_path / "masks" / "case-1" / "t1_seg.dcm").PatientID == "ID4711Q"


@pytest.mark.parametrize(("one", "other"), [("x.nii", "x.nii.gz"), ("x.nii.gz", "x.mha"), ("x.nii", "X.nii.gz")])
def test_two_scans_of_one_name_are_refused_before_computing(tmp_path, bundle, one, other):
    for name in (one, other):
        path = tmp_path / "scans" / "sub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise().T), str(path))
    with pytest.raises(FewscanError) as caught:
        segment(tmp_path / "scans", bundle, tmp_path / "masks")
    assert one in str(caught.value) and other in str(caught.value) and "--exclude" in str(caught.value)
    assert not (tmp_path / "masks").exists()
    assert segment(tmp_path / "scans", bundle, tmp_path / "masks", exclude=[other], overlays=False).exit_code == 0


def test_a_folder_whose_name_is_no_text_is_done_and_reported(tmp_path, bundle):
    """As old archives have them: Latin-1 in a file system of UTF-8."""
    name = os.fsdecode(b"M\xfcller")
    try:
        (tmp_path / "scans" / name).mkdir(parents=True)
    except OSError as problem:
        pytest.skip(f"no such names here ({type(problem).__name__})")
    write_series(tmp_path / "scans" / name / "ct", noise(1), AFFINES["lps"])
    write_series(tmp_path / "scans" / name / "cut", noise(2), AFFINES["lps"])[3].unlink()
    write_series(tmp_path / "scans" / "other", noise(3), AFFINES["lps"])
    for status in ("done", "done before"):
        report = segment(tmp_path / "scans", bundle, tmp_path / "masks")
        assert sorted(row["status"] for row in report.rows) == [status, status, "failed"]
        table = (tmp_path / "masks" / "fewscan" / "report.csv").read_text(encoding="utf-8")
        assert f"M\\udcfcller/ct,{status}" in table and f"other,{status}" in table
    assert (tmp_path / "masks" / name / "ct_seg.dcm").exists()


def test_labels_and_earlier_masks_are_no_scans(tmp_path, bundle):
    scans = tmp_path / "scans"
    for name in ("a", "a_seg", "a_mask", "labels/a", "sub/b", "sub/b_label"):
        save_nifti(scans / f"{name}.nii.gz", noise())
    write_series(scans / "ct", noise(), AFFINES["lps"])
    wanted = ["a", "ct", "sub/b"]
    for output in (scans / "masks_1", scans / "deep" / "er", tmp_path / "out", scans, tmp_path):
        report = segment(scans, bundle, output, formats=["nifti"])
        assert [(row["scan"], row["status"]) for row in report.rows] == [(name, "done") for name in wanted]
    segment(scans, bundle, tmp_path / "seg", include=["ct/*"])
    assert [row["scan"] for row in segment(tmp_path, bundle, tmp_path / "all", exclude=["scans/*_seg*"]).rows] == [
        f"scans/{name}" for name in wanted
    ]


@pytest.mark.parametrize("formats", ["nifti", "nifti seg-nrrd", "seg-nrrd nifti"])
def test_masks_beside_the_scans_are_never_learned_from(tmp_path, bundle, formats):
    """Nor those of an earlier run in another format."""
    for name in ("a", "b", "b_seg"):
        save_nifti(tmp_path / "scans" / f"{name}.nii.gz", noise())
    for format in formats.split():
        segment(tmp_path / "scans", bundle, tmp_path / "scans", include=["a.nii.gz"], formats=[format])
    cases = find_cases(tmp_path / "scans")
    assert [case.name for case in cases.cases] == ["b"] and [case.name for case in cases.unlabelled] == ["a"]


def test_include_exclude_and_dry_run(tmp_path, bundle):
    for name in ("sub-01/T1", "sub-01/T2", "sub-02/T1"):
        save_nifti(tmp_path / "scans" / f"{name}.nii.gz", noise())
    before = files_below(tmp_path)
    choice = {"include": ["*T1*"], "exclude": ["sub-02/*"]}
    report = segment(tmp_path / "scans", bundle, tmp_path / "masks", **choice, dry_run=True)
    assert report.exit_code == 0 and files_below(tmp_path) == before and not (tmp_path / "masks").exists()
    (row,) = report.rows
    assert row == {"scan": "sub-01/T1", "status": "planned", "masks": ["sub-01/T1_seg.nii.gz"]}
    segment(tmp_path / "scans", bundle, tmp_path / "masks", **choice, overlays=False)
    assert masks_below(tmp_path / "masks") == ["sub-01/T1_seg.ctbl", "sub-01/T1_seg.nii.gz"]


def test_files_that_are_no_images_are_no_failure(tmp_path, bundle):
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    for name in ("notes.txt", "protocol.pdf", "Thumbs.db", "no_suffix"):
        (tmp_path / "scans" / name).write_bytes(b"nothing of the kind")
    report = segment(tmp_path / "scans", bundle, tmp_path / "masks")
    assert report.exit_code == 0 and not report.failed
    assert len(report_of(tmp_path / "masks")["left_out"]) == 4


# Scans that fail.


def bad_scans(folder):
    """Each with a part of the reason that has to be given."""
    nan = noise().astype(np.float32)
    nan[2, 3, 4] = np.nan
    save_nifti(folder / "nan.nii.gz", nan)
    save_nifti(folder / "time.nii.gz", np.stack([noise()] * 5, axis=-1))
    (folder / "text.nii.gz").write_text("not an image")
    cut = save_nifti(folder / "cut.nii.gz", noise(shape=(30, 30, 30)))
    cut.write_bytes(cut.read_bytes()[:-5000])
    image = nibabel.Nifti1Image(noise(), None)
    image.set_qform(AFFINES["lps"], 1)
    image.set_sform(AFFINES["oblique"], 1)
    nibabel.save(image, folder / "two_places.nii.gz")
    write_series(folder / "gap", noise(), AFFINES["lps"])[3].unlink()
    return {
        "nan.nii.gz": "not finite",
        "time.nii.gz": "is it a time series",
        "text.nii.gz": "is no NIfTI file",
        "cut.nii.gz": "cut short",
        "two_places.nii.gz": "s-form (code 1) and q-form (code 1) disagree",
        "gap": "1 slice(s) missing",
    }


def test_a_bad_scan_fails_with_its_reason_and_the_others_are_done(tmp_path, bundle):
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise(1))
    save_nifti(tmp_path / "scans" / "z.nii.gz", noise(2))
    wanted = bad_scans(tmp_path / "scans")
    report = segment(tmp_path / "scans", bundle, tmp_path / "masks", overlays=False)
    assert report.exit_code == 2
    assert masks_below(tmp_path / "masks") == ["a_seg.ctbl", "a_seg.nii.gz", "z_seg.ctbl", "z_seg.nii.gz"]
    assert len(report.failed) == len(wanted)
    for name, words in wanted.items():
        assert [reason for reason in reasons(report) if name in reason and words in reason], (name, reasons(report))
    assert report_of(tmp_path / "masks")["counts"] == {"failed": len(wanted), "done": 2}


def test_nothing_but_bad_scans_is_an_error(tmp_path, bundle):
    save_nifti(tmp_path / "scans" / "nan.nii.gz", np.full((5, 4, 3), np.nan, np.float32))
    assert segment(tmp_path / "scans", bundle, tmp_path / "masks").exit_code == 1
    assert masks_below(tmp_path / "masks") == []
    (tmp_path / "scans" / "nan.nii.gz").write_text("not an image")
    with pytest.raises(FewscanError, match="holds no scan that can be used"):
        segment(tmp_path / "scans", bundle, tmp_path / "masks")


def test_a_network_that_fails_names_the_scan(tmp_path):
    threshold_bundle(tmp_path / "bundle")
    change_config(tmp_path / "bundle", inferer={"_target_": "fewscan.tiling.OverlapTileInferer", "spatial_dims": 3})
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    report = segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "masks")
    assert report.exit_code == 1
    assert reasons(report)[0].startswith("a: ValueError: Conv3d does not say how far it looks")


# The report.


def test_the_report_says_what_was_done_by_what(tmp_path, bundle):
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    save_nifti(tmp_path / "scans" / "identity.nii.gz", noise(), np.eye(4))
    (tmp_path / "scans" / "text.nii.gz").write_text("no image")
    (tmp_path / "scans" / "readme.md").write_text("text")
    segment(tmp_path / "scans", bundle, tmp_path / "masks")
    report = report_of(tmp_path / "masks")
    assert report["model_sha256"] == hashlib.sha256((bundle / "models" / "model.pt").read_bytes()).hexdigest()
    made_by = {"bundle": "kidneys", "version": __version__, "seed": 17, "device": "cpu"}
    assert made_by.items() <= report.items()
    assert {"torch", "monai", "numpy", "python", "threads", "config_sha256", "run"} <= set(report)
    assert "never validated" in report["validation"]
    rows = {row["scan"]: row for row in report["scans"]}
    voxel_ml = 0.9 * 0.8 * 2.5 / 1000
    for value, name in enumerate(("left kidney", "spleen"), start=1):
        assert rows["a"]["ml"][name] == pytest.approx((expected(noise()) == value).sum() * voxel_ml, abs=1e-3)
    assert rows["a"]["masks"] == ["a_seg.nii.gz", "a_seg.ctbl", "a_seg_overlay.png"]
    assert "identity" in rows["identity"]["notes"][0]
    (failed,) = [row for row in report["scans"] if row["status"] == "failed"]
    assert "text.nii.gz" in failed["reason"]
    assert [item["reason"] for item in report["left_out"]] == ["not an image"]
    with (tmp_path / "masks" / "fewscan" / "report.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["scan"], row["status"]) for row in table] == [(row["scan"], row["status"]) for row in report["scans"]]
    assert [row["reason or notes"] for row in table if row["status"] == "failed"] == [failed["reason"]]


def test_the_report_states_no_volume_of_a_picture_without_size_or_thickness(tmp_path):
    thresholds, masks = (100.5, 200.5), tmp_path / "masks"
    threshold_bundle(tmp_path / "bundle", thresholds, dims=2, window=(0, 255))
    shapes = {"cell": (13, 21), "sized": (13, 21), "pages": (4, 13, 21), "stack": (4, 13, 21)}
    images = {name: (noise(n, shape) // 4).astype(np.uint8) for n, (name, shape) in enumerate(shapes.items())}
    scans = tmp_path / "scans"
    scans.mkdir()
    Image.fromarray(images["cell"]).save(scans / "cell.png")
    tifffile.imwrite(scans / "sized.tif", images["sized"], resolution=(20, 40), resolutionunit="CENTIMETER")
    tifffile.imwrite(
        scans / "pages.tif", images["pages"], resolution=(20, 20), resolutionunit="CENTIMETER", photometric="minisblack"
    )
    size = {"axes": "ZYX", "unit": "mm", "spacing": 2}
    tifffile.imwrite(scans / "stack.tif", images["stack"], imagej=True, resolution=(10, 10), metadata=size)
    assert segment(scans, tmp_path / "bundle", masks).exit_code == 0
    rows = {row["scan"]: row for row in report_of(masks)["scans"]}
    counts = {}
    for name, image in images.items():
        answer = expected(image, thresholds)
        counts[name] = {"left kidney": int((answer == 1).sum()), "spleen": int((answer == 2).sum())}
        assert rows[name]["label_voxels"] == counts[name]
    spacing = [[None] * 3, [0.5, 0.25, None], [0.5, 0.5, None], [0.1, 0.1, 2]]
    assert [rows[name]["spacing_mm"] for name in images] == spacing
    assert rows["cell"]["ml"] == rows["sized"]["ml"] == rows["pages"]["ml"] == {}
    for name, count in counts["stack"].items():
        assert rows["stack"]["ml"][name] == pytest.approx(count * 0.1 * 0.1 * 2 / 1000, abs=6e-5)
    with (masks / "fewscan" / "report.csv").open(newline="") as file:
        table = {row["scan"]: row for row in csv.DictReader(file)}
    assert table["cell"]["ml"] == table["sized"]["ml"] == "" and table["stack"]["ml"].startswith("left kidney 0.0")
    for name, count in counts.items():
        assert table[name]["label voxels"] == f"left kidney {count['left kidney']}; spleen {count['spleen']}"


# Bundles.


def test_an_untrained_bundle_is_refused_with_the_way_out(tmp_path):
    (threshold_bundle(tmp_path / "bundle") / "models" / "model.pt").unlink()
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    with pytest.raises(BundleError, match=r"model\.pt: is missing.*run `fewscan train"):
        segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


def test_a_damaged_model_is_refused_by_name(tmp_path):
    weights = threshold_bundle(tmp_path / "bundle") / "models" / "model.pt"
    weights.write_bytes(weights.read_bytes()[:-200])
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    with pytest.raises(BundleError, match=r"model\.pt: does not fit"):
        segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "masks")


def test_a_bundle_of_others_and_an_edited_one_are_refused_in_words(tmp_path):
    config = threshold_bundle(tmp_path / "bundle") / "configs" / "inference.json"
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    change_config(tmp_path / "bundle", inferer={"_target_": "NoSuchInferer"})
    with pytest.raises(BundleError, match=r"inference\.json: cannot be used \(.*NoSuchInferer"):
        segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "masks")
    config.write_text('{"network_def": {}}')
    with pytest.raises(BundleError, match=r"inference\.json: has no channels, labels"):
        segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "masks")


def test_a_bundle_without_its_training_config_segments(tmp_path):
    (threshold_bundle(tmp_path / "bundle") / "configs" / "train.json").unlink()
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    assert segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "masks").exit_code == 0
    assert report_of(tmp_path / "masks")["seed"] is None


def test_the_device_reaches_every_part_of_the_config(tmp_path):
    threshold_bundle(tmp_path / "bundle")
    change_config(tmp_path / "bundle", device="$torch.device('meta')")
    inferer = {"_target_": "SlidingWindowInferer", "roi_size": [9, 8, 7], "device": "@device"}
    change_config(tmp_path / "bundle", inferer=inferer)
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    assert segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "masks", device="cpu").exit_code == 0
    np.testing.assert_array_equal(read(tmp_path / "masks" / "a_seg.nii.gz"), expected(noise()))


def test_each_volume_of_an_enhanced_file_gets_its_own_mask(tmp_path, bundle):
    """Two echoes at the same positions in one multi-frame file."""
    volumes = [noise(1, (10, 9, 4)), noise(2, (10, 9, 4))]
    single = write_series(tmp_path / "single", volumes[0], AFFINES["lps"], Modality="MR")
    file = pydicom.dcmread(single[0])
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
    frames = [np.ascontiguousarray(volume[..., k].T.astype("<u2")).tobytes() for volume in volumes for k in range(4)]
    file.NumberOfFrames, file.PixelData, groups = len(frames), b"".join(frames), []
    for number in range(8):
        group, position, echo, content = (pydicom.Dataset() for _ in range(4))
        position.ImagePositionPatient = pydicom.dcmread(single[number % 4]).ImagePositionPatient
        echo.EffectiveEchoTime = 10.0 * (number // 4 + 1)
        content.DimensionIndexValues = [number // 4 + 1, number % 4 + 1]
        group.PlanePositionSequence, group.MREchoSequence = [position], [echo]
        group.FrameContentSequence = [content]
        groups.append(group)
    shared, orientation, measures = (pydicom.Dataset() for _ in range(3))
    orientation.ImageOrientationPatient = file.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = file.PixelSpacing, file.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    file.PerFrameFunctionalGroupsSequence, file.SharedFunctionalGroupsSequence = groups, [shared]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(file, keyword)
    (tmp_path / "scans").mkdir()
    file.save_as(tmp_path / "scans" / "enhanced.dcm")
    report = segment(tmp_path / "scans", bundle, tmp_path / "masks", formats=["nifti"], overlays=False)
    assert report.exit_code == 0
    masks = [np.asarray(nibabel.load(file).dataobj) for file in sorted((tmp_path / "masks").glob("*_seg.nii.gz"))]
    assert len(masks) == 2
    for volume in volumes:
        assert sum(np.array_equal(mask, expected(volume)) for mask in masks) == 1


def test_a_picture_that_cannot_be_made_costs_no_mask(tmp_path, bundle):
    name = "n" * 241  # the mask's name just fits, the picture's does not
    save_nifti(tmp_path / "scans" / f"{name}.nii", noise())
    report = segment(tmp_path / "scans", bundle, tmp_path / "masks")
    (row,) = report.rows
    assert row["status"] == "done" and any(note.startswith("no overlay: ") for note in row["notes"])
    np.testing.assert_array_equal(read(tmp_path / "masks" / f"{name}_seg.nii.gz"), expected(noise()))
    (row,) = segment(tmp_path / "scans", bundle, tmp_path / "masks").rows
    assert row["status"] == "done before"
