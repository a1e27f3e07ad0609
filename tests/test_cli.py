"""The command line as a person meets it: help, usage, one-line errors and exit codes."""

import errno
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import write_volumes
from fewscan import __version__
from fewscan.cli import in_words, main
from fewscan.training.plan import plan
from runs.tiny import change_config, expected, masks_below, noise, read, save_nifti, threshold_bundle
from scans.dicom_series import write_series
from scans.volumes import AFFINES


@pytest.fixture
def data(tmp_path):
    """`scans` with one good scan, and a trained `bundle`."""
    threshold_bundle(tmp_path / "bundle")
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise())
    return tmp_path


def command(root, *more, bundle="bundle"):
    return ["segment", str(root / "scans"), "--bundle", str(root / bundle), "--output", str(root / "masks"), *more]


def error_of(capsys):
    """The error's line: the last of stderr, without a traceback."""
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "typical use:\n  fewscan plan DATA --output my_segmentation"),
        (["plan"], "--output FOLDER"),
        (["train"], "--minutes MINUTES"),
        (["segment"], "nifti, dicom-seg, dicom-seg-labelmap, seg-nrrd, png"),
        (["demo"], "(default: fewscan-demo)"),
    ],
)
def test_help_of_every_command(capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: {' '.join(['fewscan', *arguments])}") and words in told


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"fewscan {__version__}\n"


def test_every_option_is_explained(capsys):
    for name in ("plan", "train", "segment", "demo"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        lines = capsys.readouterr().out.splitlines()
        for number, line in enumerate(lines):
            if line.startswith("  -"):
                alone = len(line.split("  ")) < 3  # the text begins on the next line
                text = lines[number + 1] if alone else line.strip().split("  ", 1)[1]
                assert text.strip() and not text.startswith("  -"), line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["segment", "x"], "the following arguments are required: --bundle, --output"),
        (["plan", "x", "--output", "y", "--dims", "4"], "argument --dims: invalid choice: 4"),
        (["train", "x", "--minutes", "soon"], "argument --minutes: invalid float value: 'soon'"),
    ],
)
def test_wrong_arguments_exit_with_1_and_usage(capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("usage: fewscan") and words in told.splitlines()[-1]


def test_exit_codes_of_segment(data, capsys):
    assert main(command(data)) == 0
    assert "1 scan(s) segmented, 0 done before, 0 failed" in capsys.readouterr().out
    (data / "scans" / "b.nii.gz").write_text("no image")
    assert main(command(data)) == 2
    told = capsys.readouterr().out
    assert "0 scan(s) segmented, 1 done before, 1 failed" in told
    assert told.count("b.nii.gz: is no NIfTI file") == 1
    assert main(command(data, "--include", "b*")) == 1
    captured = capsys.readouterr()
    assert "b.nii.gz: is no NIfTI file" in captured.out and "holds no scan that can be used" in captured.err


def test_dry_run_shows_what_would_be_written(data, capsys):
    assert main(command(data, "--dry-run", "--format", "nifti,seg-nrrd")) == 0
    assert "a -> a_seg.nii.gz, a_seg.seg.nrrd" in capsys.readouterr().out
    assert not (data / "masks").exists()


def test_what_is_left_out_is_counted_by_reason(data, capsys):
    for name in ("x.txt", "y.txt"):
        (data / "scans" / name).write_text("text")
    save_nifti(data / "scans" / "a_mask.nii.gz", noise())
    main(command(data, "--dry-run"))
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("3 other file(s) left out (2 x not an image; 1 x a label, by its name)")


def test_errors_are_one_line_with_the_way_out(data, capsys):
    shutil.copytree(data / "bundle", data / "untrained")
    (data / "untrained" / "models" / "model.pt").unlink()
    for arguments, words in (
        (command(data, "--format", "nifty"), "'nifty' is no mask format; choose one of nifti, dicom-seg, "),
        (command(data, "--format", "dicom-seg"), "choose nifti or seg-nrrd"),
        (command(data, "--format", "dicom-seg-labelmap"), "choose nifti or seg-nrrd"),
        (command(data, bundle="untrained"), "run `fewscan train"),
        (command(data, bundle="nowhere"), "nowhere: is no bundle: configs/inference.json is missing; give"),
        (command(data, "--device", "banana"), "the device banana cannot be used"),
        (command(data, "--device", "cuda:77"), "choose --device cpu"),
        (["segment", str(data / "gone"), *command(data)[2:]], "gone: no such file or folder"),
        (["train", str(data / "nowhere")], "make one with `fewscan plan`"),
        (["train", str(data / "bundle"), "--minutes", "0"], "--minutes has to be more than 0"),
        (["plan", str(data / "gone"), "--output", str(data / "new")], "gone: no such file or folder"),
        (["plan", str(data / "scans"), "--output", str(data / "bundle")], "bundle: is not empty; choose another"),
    ):
        assert main(arguments) == 1, arguments
        line = error_of(capsys)
        assert line.startswith("fewscan: ") and words in line, line
    assert not (data / "masks").exists()


def test_the_next_command_can_be_pasted_whatever_the_folder_is_called(tmp_path, capsys):
    save_nifti(tmp_path / "data" / "images" / "a.nii.gz", noise())
    save_nifti(tmp_path / "data" / "labels" / "a.nii.gz", expected(noise()).astype(np.uint8))
    bundle = tmp_path / "mein Modell 'ü'"
    assert main(["plan", str(tmp_path / "data"), "--output", str(bundle)]) == 0
    told = capsys.readouterr().out.strip().splitlines()[-1]
    assert shlex.split(told.removeprefix("next: ")) == ["fewscan", "train", str(bundle)]


def test_a_bundle_that_moved_still_segments(data):
    change_config(data / "bundle", dataset_dir="../gone", output_dir="$@bundle_root + '/masks'")
    (data / "else" / "where").mkdir(parents=True)
    shutil.move(data / "bundle", data / "else" / "where" / "renamed")
    assert main(command(data, bundle="else/where/renamed")) == 0
    np.testing.assert_array_equal(read(data / "masks" / "a_seg.nii.gz"), expected(noise()))


def test_one_file_one_series_and_relative_paths(data, monkeypatch):
    write_series(data / "ct", noise(2), AFFINES["lps"])
    monkeypatch.chdir(data)
    assert main(["segment", "scans/a.nii.gz", "--bundle", "bundle", "--output", "masks"]) == 0
    assert main(["segment", "ct", "--bundle", "bundle", "--output", "masks", "--format", "nifti"]) == 0
    assert masks_below(data / "masks") == [
        f"{name}_seg{suffix}" for name in ("a", "ct") for suffix in (".ctbl", ".nii.gz", "_overlay.png")
    ]


def test_a_process_of_its_own_is_quiet_and_light(data):
    """Nothing on stderr but the bar; `fewscan --help` needs no MONAI and no torch."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-m", "fewscan.cli", *command(data)], **options)
    assert done.returncode == 0
    told = [part for part in done.stderr.replace("\r", "\n").split("\n") if part.strip()]
    assert told and all("scan/s" in part or "s/scan" in part for part in told)
    assert "report:" in done.stdout.splitlines()[-1]
    code = "import sys, fewscan.cli\ntry: fewscan.cli.main(['segment', '--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'monai', 'itk', 'pydicom', 'highdicom', 'nibabel'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_says_the_way_out():
    """The error is the system's own; it names no file."""
    with pytest.raises(OSError) as full, Path("/dev/full").open("w") as file:
        file.write("x" * 100_000)
    assert "no space is left" in (line := in_words(full.value)) and "make room" in line
    read_only = OSError(errno.EROFS, "Read-only file system", "bundle/docs/.1.preview.html")
    assert in_words(read_only) == (
        "bundle/docs: Read-only file system; choose another --output, or copy the bundle elsewhere"
    )
    assert in_words(OSError(5, "Input/output error", "a.nii")) == "[Errno 5] Input/output error: 'a.nii'"


def test_a_training_that_cannot_write_is_one_line(tmp_path, capsys):
    """A file lies where the folder of models has to be; MONAI wraps what the system says."""
    plan(write_volumes(tmp_path / "data", count=2), tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle" / "models")
    (tmp_path / "bundle" / "models").write_text("in the way")
    assert main(["train", str(tmp_path / "bundle"), "--minutes", "0.01", "--device", "cpu"]) == 1
    assert "models" in (line := error_of(capsys)) and "Errno" in line
