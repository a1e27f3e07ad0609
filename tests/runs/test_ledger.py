"""What is done is not done again; what is missing, changed or broken is; nothing is lost, nothing is half there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import SimpleITK
import tifffile
import torch

from fewscan.errors import FewscanError, ScanError
from fewscan.files import sha256
from fewscan.masks import nifti
from fewscan.runs import segment as segments
from fewscan.runs.ledger import check_unchanged, places
from fewscan.runs.segment import segment
from fewscan.scans import find_scans
from runs.tiny import (
    THRESHOLDS,
    change_config,
    expected,
    files_below,
    masks_below,
    noise,
    read,
    save_nifti,
    threshold_bundle,
)
from scans.volumes import ome_set

NAMES = ("a", "sub-01/b", "sub-01/c")


@pytest.fixture
def done(tmp_path):
    """A bundle, three scans, and their masks."""
    threshold_bundle(tmp_path / "bundle")
    for number, name in enumerate(NAMES):
        save_nifti(tmp_path / "scans" / f"{name}.nii.gz", noise(number))
    assert run(tmp_path) == dict.fromkeys(NAMES, "done")
    return tmp_path


def run(root, **options):
    """Segment; what became of each scan."""
    report = segment(root / "scans", root / "bundle", root / "masks", overlays=False, **options)
    return {row["scan"]: row["status"] for row in report.rows}


def mask(root, name="a"):
    return root / "masks" / f"{name}_seg.nii.gz"


def receipt(root, name="a"):
    return root / "masks" / "fewscan" / "receipts" / f"{name}.json"


def replaced(root):
    folder = root / "masks" / "fewscan" / "replaced"
    return [folder / name for name in files_below(folder)] if folder.exists() else []


ONLY_A = {**dict.fromkeys(NAMES, "done before"), "a": "done"}


def test_a_second_run_computes_nothing(done):
    before = {name: (done / "masks" / name).stat().st_mtime_ns for name in masks_below(done / "masks")}
    assert run(done) == dict.fromkeys(NAMES, "done before")
    assert before == {name: (done / "masks" / name).stat().st_mtime_ns for name in masks_below(done / "masks")}
    report = json.loads((done / "masks" / "fewscan" / "report.json").read_text())
    assert report["counts"] == {"done before": 3}
    assert report["scans"][0]["masks"] == ["a_seg.nii.gz", "a_seg.ctbl"]  # the report is whole again


def test_a_new_scan_is_the_only_one_done(done):
    save_nifti(done / "scans" / "new.nii.gz", noise(9))
    assert run(done) == {**dict.fromkeys(NAMES, "done before"), "new": "done"}


@pytest.mark.parametrize("damage", ["truncated", "deleted", "no colours", "receipt truncated", "receipt deleted"])
def test_what_is_broken_is_done_again(done, damage):
    whole = mask(done).read_bytes()
    match damage:
        case "truncated":
            mask(done).write_bytes(whole[:-20])
        case "deleted":
            mask(done).unlink()
        case "no colours":
            (done / "masks" / "a_seg.ctbl").unlink()
        case "receipt truncated":
            receipt(done).write_bytes(receipt(done).read_bytes()[:-20])
        case "receipt deleted":
            receipt(done).unlink()
    assert run(done) == ONLY_A
    assert mask(done).read_bytes() == whole
    assert run(done) == dict.fromkeys(NAMES, "done before")


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"run": 1}', "\x00"])
def test_a_receipt_that_is_none_is_no_error(done, content):
    receipt(done).write_text(content)
    assert run(done) == ONLY_A


def test_a_changed_scan_is_done_again(done):
    save_nifti(done / "scans" / "a.nii.gz", noise(8))
    assert run(done) == ONLY_A
    np.testing.assert_array_equal(read(mask(done)), expected(noise(8)))


@pytest.mark.parametrize("suffix", ["nhdr", "mhd"])
def test_other_voxels_behind_the_same_header_are_done_again(tmp_path, suffix):
    """The header of a detached file stays as it was, byte for byte, when the voxels are exported again."""
    bundle, header = threshold_bundle(tmp_path / "bundle"), tmp_path / "scans" / f"x.{suffix}"
    header.parent.mkdir()
    headers = set()
    for number, status in ((1, "done"), (2, "done"), (2, "done before")):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(noise(number).T), str(header))
        headers.add(header.read_bytes())
        (row,) = segment(header.parent, bundle, tmp_path / "masks", formats=["nifti"], overlays=False).rows
        assert row["status"] == status
        np.testing.assert_array_equal(read(mask(tmp_path, "x")), expected(noise(number)))
    assert len(headers) == 1
    signed = {entry["name"]: entry["sha256"] for entry in json.loads(receipt(tmp_path, "x").read_text())["inputs"]}
    assert signed == {name: sha256(header.parent / name) for name in (header.name, "x.raw")}
    (scan,) = find_scans(header.parent).scans
    seen = places(scan)
    check_unchanged(scan, seen)
    os.utime(header.with_name("x.raw"), (1_000_000_000, 1_000_000_000))
    with pytest.raises(ScanError, match="x: its files changed while it was segmented"):
        check_unchanged(scan, seen)


def test_another_plane_in_another_file_of_an_ome_tiff_is_done_again(tmp_path):
    thresholds = (20000.5, 40000.5)
    bundle = threshold_bundle(tmp_path / "bundle", thresholds, window=(0, 65535))
    pages, others = ome_set(tmp_path / "scans"), ome_set(tmp_path / "others", seed=1)
    for status in ("done", "done"):
        (row,) = segment(tmp_path / "scans" / "x0.ome.tif", bundle, tmp_path / "masks", overlays=False).rows
        assert row["status"] == status
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "masks" / "x0_seg.tif"), expected(pages, thresholds))
        shutil.copyfile(tmp_path / "others" / "x2.ome.tif", tmp_path / "scans" / "x2.ome.tif")
        pages[2] = others[2]
    (row,) = segment(tmp_path / "scans" / "x0.ome.tif", bundle, tmp_path / "masks", overlays=False).rows
    assert row["status"] == "done before"
    inputs = json.loads(receipt(tmp_path, "x0").read_text())["inputs"]
    assert [entry["name"] for entry in inputs] == ["x0.ome.tif", "x1.ome.tif", "x2.ome.tif"]


def test_a_changed_model_does_everything_again(done):
    weights = torch.load(done / "bundle" / "models" / "model.pt")
    weights["bias"][2] = -9.0  # the second label never wins
    torch.save(weights, done / "bundle" / "models" / "model.pt")
    assert run(done) == dict.fromkeys(NAMES, "done")
    np.testing.assert_array_equal(read(mask(done)), expected(noise(0), THRESHOLDS[:1], [1]))


def test_a_changed_config_counts_but_not_where_the_data_lies(done):
    change_config(done / "bundle", dataset_dir="somewhere/else", output_dir="elsewhere")
    assert run(done) == dict.fromkeys(NAMES, "done before")
    change_config(done / "bundle", intensity_window=[0, 2000])
    assert run(done) == dict.fromkeys(NAMES, "done")


def test_a_mask_that_a_person_corrected_is_kept(done):
    """Twice: the corrections of the first time are not overwritten by those of the second."""
    for number in (1, 2):
        save_nifti(mask(done), np.full((9, 8, 7), number, np.uint8))
        corrected = mask(done).read_bytes()
        assert run(done) == ONLY_A
        np.testing.assert_array_equal(read(mask(done)), expected(noise(0)))
        assert [path.read_bytes() for path in replaced(done)].count(corrected) == 1
    report = json.loads((done / "masks" / "fewscan" / "report.json").read_text())
    (note,) = [note for note in report["scans"][0]["notes"] if "nii.gz" in note]
    assert "a_seg.nii.gz was there, changed since or not by fewscan: kept as" in note
    assert [read(path).max() for path in replaced(done) if path.name == "a_seg.nii.gz"] == [1, 2]


def test_another_format_of_the_same_labels_stands_beside_the_first(done):
    """And both are owned: a scan of which either is missing is done again."""
    assert run(done, formats=["seg-nrrd"]) == dict.fromkeys(NAMES, "done")
    nifti, nrrd = ([f"{name}_seg{suffix}" for name in NAMES] for suffix in (".nii.gz", ".seg.nrrd"))
    assert {*nifti, *nrrd} <= set(masks_below(done / "masks"))
    assert {"a_seg.nii.gz", "a_seg.ctbl", "a_seg.seg.nrrd"} == set(json.loads(receipt(done).read_text())["outputs"])
    assert run(done, formats=["seg-nrrd"]) == dict.fromkeys(NAMES, "done before")
    mask(done).unlink()
    assert run(done, formats=["seg-nrrd"]) == {**dict.fromkeys(NAMES, "done before"), "a": "done"}


def test_masks_of_another_model_go_in_every_format_but_a_corrected_one_stays(done):
    """Else two masks of one scan that contradict each other lie side by side, and the report knows one."""
    save_nifti(mask(done), np.ones((9, 8, 7), np.uint8))
    corrected = mask(done).read_bytes()
    weights = torch.load(done / "bundle" / "models" / "model.pt")
    weights["bias"][2] = -9.0  # the second label never wins
    torch.save(weights, done / "bundle" / "models" / "model.pt")
    assert run(done, formats=["seg-nrrd"]) == dict.fromkeys(NAMES, "done")
    new = [f"{name}_seg.seg.nrrd" for name in NAMES]
    assert masks_below(done / "masks") == sorted(["a_seg.ctbl", "a_seg.nii.gz", *new])
    assert mask(done).read_bytes() == corrected and replaced(done) == []
    report = json.loads((done / "masks" / "fewscan" / "report.json").read_text())
    told = [[note for note in row["notes"] if ".nii.gz" in note] for row in report["scans"]]
    assert told == [["a_seg.nii.gz of an earlier run was changed since: it stays, beside the new mask"], [], []]


def test_an_unfinished_scan_leaves_the_former_mask_findable(done, monkeypatch):
    """The new mask cannot be written: the old one was moved, not lost."""
    old = mask(done).read_bytes()
    save_nifti(done / "scans" / "a.nii.gz", noise(8))
    monkeypatch.setattr(nifti, "check", _raises(OSError(28, "No space left on device")))
    assert run(done) == {**ONLY_A, "a": "failed"}
    assert not mask(done).exists() and old in [path.read_bytes() for path in replaced(done)]
    report = json.loads((done / "masks" / "fewscan" / "report.json").read_text())
    assert [row["reason"] for row in report["scans"] if "reason" in row] == [
        f"a: No space left on device ({done / 'masks'})"
    ]


@pytest.mark.parametrize("changed", ["a", "sub-01/b"])
def test_a_scan_that_changes_during_the_run_is_not_signed(done, monkeypatch, changed):
    """While its mask is written, or before its turn: the mask would be that of another scan."""
    output, check = done / "again", nifti.check

    def changing(*arguments):
        monkeypatch.setattr(nifti, "check", check)
        save_nifti(done / "scans" / f"{changed}.nii.gz", noise(8))
        check(*arguments)

    monkeypatch.setattr(nifti, "check", changing)
    report = segment(done / "scans", done / "bundle", output, overlays=False)
    assert {row["scan"]: row["status"] for row in report.rows} == {**dict.fromkeys(NAMES, "done"), changed: "failed"}
    assert report.failed[0]["reason"].startswith(f"{changed}: its files changed while it was segmented")
    report = segment(done / "scans", done / "bundle", output, overlays=False)
    assert {row["scan"]: row["status"] for row in report.rows} == {
        **dict.fromkeys(NAMES, "done before"), changed: "done",
    }  # fmt: skip
    np.testing.assert_array_equal(read(output / f"{changed}_seg.nii.gz"), expected(noise(8)))


def test_the_mask_of_another_run_in_the_same_folder_is_not_signed(done, monkeypatch):
    """Two runs at once: the other one's mask takes the place of ours before we look at it again."""
    other, output, write = threshold_bundle(done / "other", (100.5, 900.5)), done / "again", segments.write_overlay

    def overtaken(*arguments, **options):
        monkeypatch.setattr(segments, "write_overlay", write)
        segment(done / "scans", other, output, overlays=False)
        write(*arguments, **options)

    monkeypatch.setattr(segments, "write_overlay", overtaken)
    report = segment(done / "scans", done / "bundle", output, include=["a.nii.gz"])
    assert [row["status"] for row in report.rows] == ["failed"]
    assert "another run, by another bundle" in report.failed[0]["reason"]
    assert segment(done / "scans", done / "bundle", output).exit_code == 0
    for number, name in enumerate(NAMES):
        np.testing.assert_array_equal(read(output / f"{name}_seg.nii.gz"), expected(noise(number)))


def _raises(problem):
    def check(*arguments):
        raise problem

    return check


def test_interrupted_while_a_mask_is_written(done, monkeypatch):
    """Ctrl-C between writing and the final name: no partial file, and the same command does the rest."""
    straight = {name: (done / "masks" / name).read_bytes() for name in masks_below(done / "masks")}
    output = done / "again"
    check, calls = nifti.check, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        check(*arguments)

    monkeypatch.setattr(nifti, "check", interrupted)
    report = segment(done / "scans", done / "bundle", output, overlays=False)
    assert report.interrupted and report.exit_code == 1
    assert masks_below(output) == ["a_seg.ctbl", "a_seg.nii.gz"]
    report = segment(done / "scans", done / "bundle", output, overlays=False)
    assert [row["status"] for row in report.rows] == ["done before", "done", "done"]
    assert {name: (output / name).read_bytes() for name in masks_below(output)} == straight


@pytest.mark.parametrize("how", ["killed", "Ctrl-C"])
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_process_that_ends_in_the_middle(tmp_path, how):
    threshold_bundle(tmp_path / "bundle")
    images = {f"sub/scan_{number:02}": noise(number) for number in range(40)}
    for name, image in images.items():
        save_nifti(tmp_path / "scans" / f"{name}.nii.gz", image)
    command = [sys.executable, "-m", "fewscan.cli", "segment", str(tmp_path / "scans")]
    command += ["--bundle", str(tmp_path / "bundle"), "--output", str(tmp_path / "masks")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while len(list((tmp_path / "masks" / "sub").glob("*_seg.nii.gz"))) < 3:
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
    _, told = process.communicate(timeout=60)
    there = list((tmp_path / "masks" / "sub").glob("*_seg.nii.gz"))
    assert 3 <= len(there) < 40
    for path in there:  # what has its final name is whole
        np.testing.assert_array_equal(read(path), expected(images[f"sub/{path.name[:7]}"]))
    if how == "Ctrl-C":
        assert process.returncode == 1 and "the same command goes on" in told and "Traceback" not in told
        assert not [name for name in files_below(tmp_path / "masks") if ".partial" in name]
    report = segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "masks")
    states = [row["status"] for row in report.rows]
    assert states.count("done before") in (len(there) - 1, len(there)) and set(states) == {"done", "done before"}
    fresh = segment(tmp_path / "scans", tmp_path / "bundle", tmp_path / "fresh")
    assert fresh.exit_code == 0
    for name in masks_below(tmp_path / "fresh"):
        assert (tmp_path / "masks" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_a_folder_that_cannot_be_written_to(done):
    (done / "file").write_text("not a folder")
    for output in (done / "file", done / "file" / "masks"):
        with pytest.raises(FewscanError, match=r"file.*: nothing can be written there .* choose another --output"):
            segment(done / "scans", done / "bundle", output)
    assert (done / "file").read_text() == "not a folder"


def test_a_mask_that_cannot_be_written_fails_its_scan_alone(done):
    """A file lies where the folder of sub-01 has to be."""
    (done / "other").mkdir()
    (done / "other" / "sub-01").write_text("in the way")
    report = segment(done / "scans", done / "bundle", done / "other", overlays=False)
    assert [row["status"] for row in report.rows] == ["done", "failed", "failed"]
    assert "sub-01/b: " in report.failed[0]["reason"] and "other" in report.failed[0]["reason"]
    assert report.exit_code == 2 and (done / "other" / "sub-01").read_text() == "in the way"


def test_another_scan_of_equal_name_size_and_date_is_not_taken_as_done(tmp_path):
    bundle = threshold_bundle(tmp_path / "bundle")
    for number, folder in enumerate("AB"):
        scan = save_nifti(tmp_path / folder / "image.nii", noise(number))
        os.utime(scan, (1_000_000_000, 1_000_000_000))
    for number, folder in enumerate("AB"):
        (row,) = segment(tmp_path / folder, bundle, tmp_path / "masks", overlays=False).rows
        assert row["status"] == "done"
        np.testing.assert_array_equal(read(tmp_path / "masks" / "image_seg.nii.gz"), expected(noise(number)))


def test_moved_scans_and_a_renamed_bundle_are_done_already(tmp_path):
    bundle = threshold_bundle(tmp_path / "bundle")
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    segment(tmp_path / "scans", bundle, tmp_path / "masks", overlays=False)
    shutil.copytree(tmp_path / "scans", tmp_path / "elsewhere")
    bundle.rename(tmp_path / "better_name")
    (row,) = segment(tmp_path / "elsewhere", tmp_path / "better_name", tmp_path / "masks", overlays=False).rows
    assert row["status"] == "done before"


def test_leftovers_of_a_killed_run_are_swept_with_their_scan(tmp_path):
    bundle = threshold_bundle(tmp_path / "bundle")
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    left = tmp_path / "masks" / ".partial-xyz"
    left.mkdir(parents=True)
    (left / "a_seg.nii.gz").write_bytes(b"half")
    (tmp_path / "masks" / ".0123abcd.a_seg_overlay.png").write_bytes(b"half")
    segment(tmp_path / "scans", bundle, tmp_path / "masks")
    assert not [path for path in (tmp_path / "masks").iterdir() if path.name.startswith(".")]
