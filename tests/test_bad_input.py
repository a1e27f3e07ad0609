"""The input that goes wrong in practice, through `fewscan plan` and `fewscan segment`: named, explained, isolated."""

import json

import nibabel
import numpy as np
import pytest

from fewscan.cli import main
from runs.tiny import change_config, expected, masks_below, noise, read, save_nifti, threshold_bundle
from scans.dicom_series import write_series
from scans.volumes import AFFINES

SHAPE = (16, 15, 13)


def label(shape=SHAPE):
    values = np.zeros(shape, np.uint8)
    values[2:9, 3:10, 4:9] = 1
    values[9:14, 3:6, 4:9] = 2
    return values


def add_case(data, name, image=None, values=None, affine=None, label_affine=None):
    save_nifti(data / "images" / f"{name}.nii.gz", noise(0, SHAPE) if image is None else image, affine)
    save_nifti(data / "labels" / f"{name}.nii.gz", label() if values is None else values, label_affine)


def plan(root, *more):
    """The exit code, and the datalist of the bundle (None where there is none)."""
    code = main(["plan", str(root / "data"), "--output", str(root / "bundle"), *more])
    file = root / "bundle" / "configs" / "datalist.json"
    return code, json.loads(file.read_text()) if file.exists() else None


def segment(root):
    return main(["segment", str(root / "data"), "--bundle", str(root / "model"), "--output", str(root / "masks")])


def names(datalist):
    return [case["image"] for case in datalist["training"] + datalist["validation"]]


@pytest.fixture
def root(tmp_path):
    """Two good cases in `data`, and a trained `model`."""
    for number, name in enumerate(("good_1", "good_2")):
        add_case(tmp_path / "data", name, noise(number, SHAPE))
    threshold_bundle(tmp_path / "model")
    return tmp_path


def test_an_empty_folder(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    threshold_bundle(tmp_path / "model")
    assert plan(tmp_path) == (1, None)
    told = capsys.readouterr().err.strip()
    assert told.startswith(f"fewscan: {tmp_path / 'data'}") and len(told.splitlines()) == 1
    assert segment(tmp_path) == 1 and not (tmp_path / "masks").exists()
    assert capsys.readouterr().err.strip() == (
        f"fewscan: {tmp_path / 'data'}: holds no scan that can be used: the folder is empty"
    )


def text(data):
    add_case(data, "bad")
    (data / "images" / "bad.nii.gz").write_text("Dear colleague, the scan is attached.")


def truncated(data):
    add_case(data, "bad")
    path = data / "images" / "bad.nii.gz"
    path.write_bytes(path.read_bytes()[:-900])


def nan(data):
    image = noise(0, SHAPE).astype(np.float32)
    image[1, 2, 3] = np.nan
    add_case(data, "bad", image)


def time_series(data):
    add_case(data, "bad", np.stack([noise(0, SHAPE)] * 4, axis=-1))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (text, "is no NIfTI file"),
        (truncated, "is cut short"),
        (nan, "1 of 3120 values are not finite (NaN or infinite); replace them"),
        (time_series, "4-D with 4 volumes"),
    ],
)
def test_a_bad_image_is_named_and_the_others_go_on(root, capsys, bad, words):
    bad(root / "data")
    code, datalist = plan(root)
    assert code == 2 and names(datalist) == ["images/good_1.nii.gz", "images/good_2.nii.gz"]
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if "left out" in line and "bad.nii.gz" in line and words in line]
    assert segment(root) == 2
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if line.startswith("failed") and "bad.nii.gz" in line and words in line]
    assert masks_below(root / "masks") == [
        f"images/good_{n}_seg{suffix}" for n in (1, 2) for suffix in (".ctbl", ".nii.gz", "_overlay.png")
    ]
    np.testing.assert_array_equal(read(root / "masks/images/good_1_seg.nii.gz"), expected(noise(0, SHAPE)))


def test_a_truncated_label_is_named(root, capsys):
    add_case(root / "data", "bad")
    path = root / "data" / "labels" / "bad.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    code, datalist = plan(root)
    assert code == 2 and names(datalist) == ["images/good_1.nii.gz", "images/good_2.nii.gz"]
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if "left out bad" in line and "labels/bad.nii.gz" in line]
    assert "Traceback" not in told.err


def test_a_truncated_dicom_file(root, capsys):
    """In its header or in its pixels: the series would lack a slice, and the file is named."""
    files = write_series(root / "data" / "ct_1", noise(1), AFFINES["lps"])
    files[3].write_bytes(files[3].read_bytes()[:400])
    files = write_series(root / "data" / "ct_2", noise(2), AFFINES["lps"])
    files[3].write_bytes(files[3].read_bytes()[:-20])
    write_series(root / "data" / "ct_3", noise(3), AFFINES["lps"])
    assert segment(root) == 2
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert [line for line in told if "ct_1: 1 of" in line and f"{files[3].name}: is CT Image Storage without R" in line]
    assert [line for line in told if "ct_2" in line and files[3].name in line]
    assert not [line for line in told if "ct_3" in line]
    assert [name for name in masks_below(root / "masks") if name.endswith(".dcm")] == ["ct_3_seg.dcm"]


def test_a_series_with_a_missing_slice(root, capsys):
    write_series(root / "data" / "ct", noise(), AFFINES["oblique"])[2].unlink()
    assert segment(root) == 2
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed")]
    assert f"{root / 'data' / 'ct'}: slices lie 2.5 to 5 mm apart" in line and "1 slice(s) missing?" in line


def test_label_values_outside_the_list(root, capsys):
    add_case(root / "data", "bad", values=label() * 3)
    (root / "data" / "dataset.json").write_text(
        json.dumps({"labels": {"0": "background", "1": "anterior", "2": "posterior"}, "channel_names": {"0": "MRI"}})
    )
    code, datalist = plan(root)
    assert code == 2 and names(datalist) == ["images/good_1.nii.gz", "images/good_2.nii.gz"]
    told = capsys.readouterr().out
    assert "labels/bad.nii.gz: holds the value(s) 3, 6" in told and "correct one of them" in told
    config = json.loads((root / "bundle" / "configs" / "inference.json").read_text())
    assert [(row["value"], row["name"]) for row in config["labels"]] == [(1, "anterior"), (2, "posterior")]


def test_image_and_label_of_different_grids(root, capsys):
    add_case(root / "data", "shape", values=label()[:-1])
    add_case(root / "data", "place", label_affine=AFFINES["lps"])
    code, datalist = plan(root)
    assert code == 2 and names(datalist) == ["images/good_1.nii.gz", "images/good_2.nii.gz"]
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if "shape.nii.gz" in line and "15 x 15 x 13" in line and "16 x 15 x 13" in line]
    assert [line for line in told if "left out place" in line and "labels" in line and "mm" in line]


def test_a_label_in_another_orientation_is_the_same_label(root):
    """The same voxels in another order: the plan counts the same voxels of each label."""
    image = nibabel.Nifti1Image(label(), np.diag([-0.9, 0.8, 2.5, 1]))
    turned = image.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    assert turned.shape != image.shape
    add_case(root / "data", "turned")
    nibabel.save(turned, root / "data" / "labels" / "turned.nii.gz")
    code, datalist = plan(root)
    assert code == 0 and len(names(datalist)) == 3
    rows = [line for line in (root / "bundle" / "docs" / "plan.md").read_text().splitlines() if "label_1" in line]
    counts = {part.split("|")[1].strip(): part.split("|")[5].strip() for part in rows if part.count("|") > 6}
    assert len(counts) == 3 and len(set(counts.values())) == 1
    assert f"label_1 {(label() == 1).sum()}" in next(iter(counts.values()))


def test_an_identity_affine_is_noted(root):
    save_nifti(root / "data" / "images" / "identity.nii.gz", noise(5, SHAPE), np.eye(4))
    assert segment(root) == 0
    report = json.loads((root / "masks" / "fewscan" / "report.json").read_text())
    notes = {row["scan"]: row["notes"] for row in report["scans"]}
    assert notes["images/good_1"] == [] and "exactly the identity" in notes["images/identity"][0]


def test_mixed_types_of_voxels_make_no_difference(root):
    """The same intensities as uint8, int16, float32 and scaled: one mask."""
    image = noise(3, SHAPE) // 4
    change_config(root / "model", intensity_window=[0, 250])
    for dtype in (np.uint8, np.float32, np.int16, np.float64):
        save_nifti(root / "data" / "images" / f"{np.dtype(dtype).name}.nii.gz", image.astype(dtype))
    scaled = nibabel.Nifti1Image(image.astype(np.int16) * 2, np.diag([-0.9, 0.8, 2.5, 1]))
    scaled.header.set_slope_inter(0.5, 0)
    nibabel.save(scaled, root / "data" / "images" / "scaled.nii.gz")
    assert segment(root) == 0
    for name in ("uint8", "float32", "int16", "float64", "scaled"):
        mask = read(root / "masks" / "images" / f"{name}_seg.nii.gz")
        np.testing.assert_array_equal(mask, expected(image, (75.125, 175.125)))
    assert plan(root)[0] == 0


def test_a_place_that_cannot_be_written_to(root, capsys):
    (root / "masks").write_text("a file")
    assert segment(root) == 1
    assert "masks: nothing can be written there" in capsys.readouterr().err
    (root / "bundle").write_text("a file")
    assert main(["plan", str(root / "data"), "--output", str(root / "bundle" / "new")]) == 1
    told = capsys.readouterr().err
    assert "bundle" in told and "Traceback" not in told
    assert (root / "masks").read_text() == (root / "bundle").read_text() == "a file"
