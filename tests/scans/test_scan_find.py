"""Which files of a folder are scans, what they are called, and why the others are none."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from conftest import shared
from fewscan.errors import ScanError
from fewscan.scans import Skipped, find_scans, open_scan
from scans.dicom_series import write_series
from scans.links import link
from scans.volumes import AFFINES, image


def save(path, values=None, affine=AFFINES["oblique"]):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(image() if values is None else values, affine), path)
    return path


def test_what_is_lost_counts_as_dicom_where_it_is_named_like_it(tmp_path):
    """An unreadable slice refuses its series; a locked Thumbs.db does not."""
    for name, suffix in (("bare", ""), ("numbered", ".1.2.{}"), ("worded", ".mr")):
        for number, path in enumerate(write_series(tmp_path / name, image(), AFFINES["oblique"])):
            path.rename(path.with_suffix(suffix.format(number)))
        link(tmp_path / name / "Thumbs.db", tmp_path / "nowhere")
    assert [scan.name for scan in find_scans(tmp_path).scans] == ["bare", "numbered", "worded"]
    for number, name in enumerate(("bare/image", "numbered/image.1.2.9", "worded/image.MR")):
        link(tmp_path / name, tmp_path / "nowhere")
        assert len(find_scans(tmp_path).scans) == 2 - number


def test_names_are_paths_without_suffix_in_a_fixed_order(tmp_path):
    for name in ("b/scan.nii.gz", "a/x/scan.nii", "c.nii"):
        save(tmp_path / name)
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "b" / "photo.JPG")
    assert [scan.name for scan in find_scans(tmp_path).scans] == ["a/x/scan", "b/photo", "b/scan", "c"]
    assert [scan.name for scan in find_scans(tmp_path / "c.nii").scans] == ["c"]


@pytest.mark.parametrize(
    "name",
    ["x_seg.nii.gz", "x_mask.nii", "x_label.nii", "x_labels.nii", "x-seg.nii", "x_seg-manual.nii", "x_gmseg_manual.nii",
     "labels/x.nii", "labelsTr/x.nii", "masks/x.nii", "derivatives/labels/sub-1/x.nii", "x.seg.nrrd", "x_overlay.png",
     ".DS_Store", ".hidden/x.nii", "notes.txt", "mask.png"],
)  # fmt: skip
def test_labels_hidden_files_and_texts_are_skipped_without_alarm(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    found = find_scans(tmp_path)
    assert found.scans == [] and [item.failed for item in found.skipped] == [False]


def test_names_that_only_resemble_labels_are_scans(tmp_path):
    for name in ("segovia01.nii", "masked_brain.nii", "unlabelled.nii", "labelling/x.nii"):
        save(tmp_path / name)
    assert len(find_scans(tmp_path).scans) == 4


def test_earlier_output_is_left_out(tmp_path):
    save(tmp_path / "x.nii")
    save(tmp_path / "old" / "x.nii")
    (tmp_path / "old" / "fewscan.json").write_text("{}")
    save(tmp_path / "new" / "x.nii")
    found = find_scans(tmp_path, output=tmp_path / "new")
    assert [scan.name for scan in found.scans] == ["x"]
    assert [(item.path.name, item.reason) for item in found.skipped] == [
        ("new", "output of fewscan"),
        ("old", "output of fewscan"),
    ]


def test_include_and_exclude(tmp_path):
    for name in ("a/t1.nii", "a/t2.nii", "b/t1.nii"):
        save(tmp_path / name)
    assert [s.name for s in find_scans(tmp_path, include=["t1.nii"]).scans] == ["a/t1", "b/t1"]
    assert [s.name for s in find_scans(tmp_path, include=["*t1*"], exclude=["b/*"]).scans] == ["a/t1"]


def test_what_the_user_names_is_no_label_by_its_name(tmp_path):
    for name in ("seg3_T1.nii", "patient_instance.nii", "t2.nii"):
        save(tmp_path / name)
    assert [s.name for s in find_scans(tmp_path).scans] == ["t2"]
    assert [s.name for s in find_scans(tmp_path / "seg3_T1.nii").scans] == ["seg3_T1"]
    named = find_scans(tmp_path, include=["patient_instance.nii", "t?.nii"]).scans
    assert [s.name for s in named] == ["patient_instance", "t2"]
    assert find_scans(tmp_path, include=["*_instance*"]).scans == []  # a pattern chooses among scans, not labels
    (tmp_path / "x.seg.nrrd").write_bytes(b"")
    for found in (find_scans(tmp_path / "x.seg.nrrd"), find_scans(tmp_path, include=["x*"])):
        assert found.scans == [] and "a label, by its name" in [item.reason for item in found.skipped]


def test_links_are_followed_once(tmp_path):
    """A folder elsewhere is entered, a second way into the same folder and a loop are not."""
    save(tmp_path / "elsewhere" / "x.nii")
    data = tmp_path / "data"
    save(data / "y.nii")
    link(data / "first", tmp_path / "elsewhere")
    link(data / "loop", data)
    link(data / "second", tmp_path / "elsewhere")
    found = find_scans(data)
    assert [scan.name for scan in found.scans] == ["first/x", "y"]
    assert [(item.path.name, item.reason, item.failed) for item in found.skipped] == [
        ("loop", f"the same folder as {data}", False),
        ("second", f"the same folder as {data / 'first'}", False),
    ]


def test_a_folder_that_cannot_be_read_is_a_failure(tmp_path, monkeypatch):
    save(tmp_path / "x.nii")
    save(tmp_path / "locked" / "y.nii")
    listed = Path.iterdir

    def refuse(path):
        if path.name == "locked":
            raise PermissionError("no")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    found = find_scans(tmp_path)
    assert [scan.name for scan in found.scans] == ["x"]
    reason = f"{tmp_path / 'locked'}: the folder cannot be read (PermissionError)"
    assert found.skipped == [Skipped(tmp_path / "locked", reason, failed=True)]


CHANNELS = [{"name": "T1", "suffix": "_t1"}, {"name": "T1 contrast", "suffix": "_t1ce"}]


def test_files_per_channel_become_one_scan_in_the_bundles_order(tmp_path):
    save(tmp_path / "BraTS001" / "BraTS001_t1ce.nii.gz", image() * 2)
    save(tmp_path / "BraTS001" / "BraTS001_t1.nii.gz", image())
    save(tmp_path / "BraTS002" / "BraTS002_t1.nii.gz")
    save(tmp_path / "BraTS001" / "BraTS001_flair.nii.gz")
    found = find_scans(tmp_path, CHANNELS)
    assert [(scan.name, scan.channels) for scan in found.scans] == [("BraTS001/BraTS001", ("T1", "T1 contrast"))]
    np.testing.assert_array_equal(found.scans[0].read(), [image(), image() * 2])
    assert [(item.path.name, item.failed) for item in found.skipped] == [
        ("BraTS001_flair.nii.gz", False),
        ("BraTS002_t1.nii.gz", True),
    ]
    assert "BraTS002/BraTS002: the channel(s) _t1ce are missing" in found.skipped[1].reason


def test_files_that_are_called_like_their_channels_are_the_case_of_their_folder(tmp_path):
    for name in ("p1/T1.nii", "p1/FLAIR.nii", "b/p2/T1.nii", "b/p2/FLAIR.nii"):
        save(tmp_path / name, image() * (2 if "FLAIR" in name else 1))
    rows = [{"name": "T1", "suffix": "T1"}, {"name": "FLAIR", "suffix": "FLAIR"}]
    found = find_scans(tmp_path, rows)
    assert [scan.name for scan in found.scans] == ["b/p2", "p1"] and found.skipped == []
    np.testing.assert_array_equal(found.scans[1].read(), [image(), image() * 2])
    assert [scan.name for scan in find_scans(tmp_path / "p1", rows).scans] == ["p1"]


def test_one_channel_with_a_suffix_takes_files_without_it(tmp_path):
    save(tmp_path / "a_0000.nii.gz")
    save(tmp_path / "b.nii.gz")
    assert [s.name for s in find_scans(tmp_path, [{"name": "MR", "suffix": "_0000"}]).scans] == ["a", "b"]


def test_another_channel_of_a_case_is_no_scan(tmp_path):
    """`a_0001` is a second modality of `a_0000`; without an `x_0000` beside it, `x_0001` is a name like others."""
    for name in ("a_0000.nii", "a_0001.nii.gz", "a_2.nii", "b/a_0001.nii", "x_0001.nii"):
        save(tmp_path / name)
    rows = [{"name": "MR", "suffix": "_0000"}]
    found = find_scans(tmp_path, rows)
    assert [scan.name for scan in found.scans] == ["a", "a_2", "b/a_0001", "x_0001"]
    assert found.skipped == [Skipped(tmp_path / "a_0001.nii.gz", "none of the channels: _0000")]
    assert [scan.name for scan in find_scans(tmp_path / "a_0001.nii.gz", rows).scans] == ["a_0001"]


def test_channels_along_the_fourth_axis(tmp_path):
    values = np.stack([image(), image() * 3], axis=-1)
    save(tmp_path / "x.nii.gz", values)
    rows = [{"name": "FLAIR", "index": 0}, {"name": "T2", "index": 1}]
    (scan,) = find_scans(tmp_path, rows).scans
    assert scan.channels == ("FLAIR", "T2")
    np.testing.assert_array_equal(scan.read(), np.moveaxis(values, -1, 0))
    with pytest.raises(ScanError, match="in the order of the file"):
        find_scans(tmp_path, rows[::-1])


def test_float_and_integer_channels_are_read_together(tmp_path):
    save(tmp_path / "a_t1.nii", image().astype(np.float32) + 0.5)
    save(tmp_path / "a_t1ce.nii", image().clip(0, 200).astype(np.uint8))
    data = find_scans(tmp_path, CHANNELS).scans[0].read()
    np.testing.assert_array_equal(data, [image() + 0.5, image().clip(0, 200)])


def test_scans_cross_process_borders(tmp_path):
    scan = open_scan([save(tmp_path / "x.nii")])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(scan)).read(), scan.read())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_is_left_out(tmp_path):
    """To open one waits until somebody writes into it."""
    os.mkfifo(tmp_path / "x.nii")
    found = find_scans(tmp_path)
    assert found.scans == [] and [(item.path.name, item.reason) for item in found.skipped] == [
        ("x.nii", "a pipe, a socket or a device")
    ]


def test_importing_scans_stays_light():
    heavy = "monai torch pydicom SimpleITK nibabel tifffile PIL itk highdicom"
    code = f"import sys, fewscan.scans; print([name for name in '{heavy}'.split() if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_real_folders():
    found = find_scans(shared("data/msd_hippocampus"))
    assert len(found.scans) == 100 and not any(item.failed for item in found.skipped)
    for scan in found.scans[:10]:
        reference = nibabel.load(scan.files[0])
        np.testing.assert_array_equal(scan.read()[0], np.asarray(reference.dataobj))
        np.testing.assert_array_equal(scan.grid.affine, reference.affine)
    assert len(find_scans(shared("data/isbi2012_em")).scans) >= 20
    assert {scan.channels for scan in find_scans(shared("data/chasedb1"), include=["*.jpg"]).scans} == {
        ("red", "green", "blue")
    }
