"""Plain MONAI and `fewscan segment` write the same masks: the same arrays, names and affines."""

import os
import shutil
import subprocess
import sys

import highdicom
import nibabel
import numpy as np
import pytest
import scipy.ndimage
import SimpleITK
from PIL import Image

from fewscan.cli import main
from runs.tiny import change_config, masks_below, noise, read, save_nifti, unet_bundle
from scans.dicom_series import write_series
from scans.volumes import AFFINES

TWO_FILES = ({"name": "T1", "suffix": "_T1"}, {"name": "FLAIR", "suffix": "_FLAIR"})
ONE_FILE = ({"name": "T1", "index": 0}, {"name": "FLAIR", "index": 1})


def one_channel(scans):
    """Volumes of other spacings than the network's: oblique, anisotropic and reversed, and a DICOM series."""
    save_nifti(scans / "sub-01" / "anat" / "T1.nii.gz", noise(1, (11, 9, 7)), AFFINES["oblique"])
    save_nifti(scans / "sub-02" / "T1.nii", noise(2, (13, 12, 5)), np.diag([1.4, -0.8, -2.5, 1]))
    write_series(scans / "dicom" / "t1", noise(3, (10, 9, 6)), AFFINES["oblique"], shuffled=True, Modality="MR")


def two_files(scans):
    for number, channel in enumerate(("T1", "FLAIR")):
        save_nifti(scans / "sub-01" / f"brain_{channel}.nii.gz", noise(number, (9, 7, 8)), AFFINES["permuted"])


def one_file(scans):
    save_nifti(scans / "brain.nii.gz", np.stack([noise(0), noise(1)], axis=-1), AFFINES["reversed"])


def pictures(scans):
    scans.mkdir()
    for name, shape in (("a", (21, 18)), ("b", (13, 30))):
        Image.fromarray((noise(5, shape) // 4).astype(np.uint8)).save(scans / f"{name}.png")


CASES = {
    "one_channel": (one_channel, {"spacing": [1.0, 1.1, 2.0]}),
    "slices": (one_channel, {"dims": 2, "spacing": [1.0, 1.1, 2.0]}),
    "two_files": (two_files, {"channels": TWO_FILES}),
    "one_file": (one_file, {"channels": ONE_FILE}),
    "pictures": (pictures, {"dims": 2}),
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """For each case the folder with the masks of plain MONAI, in `monai`, and of fewscan, in `fewscan`."""
    root = tmp_path_factory.mktemp("one_decision")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    running = []
    for name, (scans, settings) in CASES.items():
        (root / name).mkdir()
        scans(root / name / "scans")
        bundle = unet_bundle(root / name / "bundle", **settings)
        if name == "pictures":
            change_config(bundle, keep_largest=[2], minimum_size_mm3=3)
        command = [sys.executable, "-m", "monai.bundle", "run"]
        command += ["--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle)]
        command += ["--dataset_dir", str(root / name / "scans"), "--output_dir", str(root / name / "monai")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        running.append(
            subprocess.Popen(
                command, cwd=elsewhere, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
        if len(running) == 2:  # two cores
            _wait(running)
    _wait(running)
    for name in CASES:
        arguments = [str(root / name / "scans"), "--bundle", str(root / name / "bundle")]
        assert main(["segment", *arguments, "--output", str(root / name / "fewscan")]) == 0
    assert not list(elsewhere.iterdir())
    return root


def _wait(running):
    while running:
        process = running.pop()
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0, told


@pytest.mark.parametrize("case", CASES)
def test_the_same_files(outputs, case):
    names = [name for name in masks_below(outputs / case / "fewscan") if not name.endswith("_overlay.png")]
    assert names == masks_below(outputs / case / "monai") and names


@pytest.mark.parametrize("case", CASES)
def test_the_same_values_in_the_same_place(outputs, case):
    images = [name for name in masks_below(outputs / case / "monai") if name.endswith((".nii.gz", ".png"))]
    assert images
    for name in images:
        ours, theirs = outputs / case / "fewscan" / name, outputs / case / "monai" / name
        if name.endswith(".png"):
            one, other = (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) for path in (ours, theirs))
        else:
            one, other = read(ours), read(theirs)
            np.testing.assert_array_equal(nibabel.load(ours).affine, nibabel.load(theirs).affine)
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype and len(np.unique(one)) > 1  # else equality says little


def test_the_scans_own_shape_and_affine(outputs):
    for scan, mask in (
        ("sub-01/anat/T1.nii.gz", "sub-01/anat/T1_seg.nii.gz"),
        ("sub-02/T1.nii", "sub-02/T1_seg.nii.gz"),
    ):
        image = nibabel.load(outputs / "one_channel" / "scans" / scan)
        found = nibabel.load(outputs / "one_channel" / "fewscan" / mask)
        assert found.shape == image.shape
        np.testing.assert_array_equal(found.affine, image.affine)


def test_pieces_are_removed_by_both(outputs, tmp_path):
    """Of what the same bundle answers without the settings: the largest piece of label 2, of both 3 pixels or more."""
    shutil.copytree(outputs / "pictures" / "bundle", tmp_path / "bundle")
    change_config(tmp_path / "bundle", keep_largest=[], minimum_size_mm3=0)
    scans = str(outputs / "pictures" / "scans")
    assert main(["segment", scans, "--bundle", str(tmp_path / "bundle"), "--output", str(tmp_path / "masks")]) == 0

    def mask(folder, name):
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / name)))

    for name in ("a_seg.png", "b_seg.png"):
        before = mask(tmp_path / "masks", name)
        expected = before.copy()
        for label in (1, 2):
            pieces, count = scipy.ndimage.label(before == label, np.ones((3, 3)))
            sizes = np.bincount(pieces.ravel(), minlength=count + 1)
            for piece in range(1, count + 1):
                if sizes[piece] < 3 or (label == 2 and piece != 1 + sizes[1:].argmax()):
                    expected[pieces == piece] = 0
        assert {0, 1, 2} == set(np.unique(expected)) and (before != expected).any()
        for who in ("fewscan", "monai"):
            np.testing.assert_array_equal(mask(outputs / "pictures" / who, name), expected)


def test_the_same_dicom_seg_by_highdicom(outputs):
    segs = [
        highdicom.seg.segread(outputs / "one_channel" / who / "dicom" / "t1_seg.dcm") for who in ("fewscan", "monai")
    ]
    one, other = (seg.get_volume(combine_segments=True) for seg in segs)
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_array_equal(one.affine, other.affine)
    assert len(np.unique(one.array)) > 1
    keywords = ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "SeriesDescription")
    assert [segs[0].get(k) for k in keywords] == [segs[1].get(k) for k in keywords]
