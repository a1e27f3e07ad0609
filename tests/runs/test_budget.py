"""A run within a stated memory: the same labels wherever arrays lie, flat in depth, refused where it cannot be."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch

from conftest import ROOT
from fewscan.cli import main
from fewscan.errors import BudgetError
from fewscan.networks import UNet
from fewscan.runs import budget
from fewscan.runs.budget import GIB, share_out
from fewscan.runs.segment import segment
from runs.tiny import change_config, noise, read, save_nifti, unet_bundle
from scans.dicom_series import write_series
from scans.volumes import AFFINES


@pytest.mark.parametrize("limit", [1.3, 2, 4, 64])
def test_the_parts_add_up_to_what_is_allowed(limit):
    shared = share_out(limit, None, on_gpu=False)
    assert budget.PROGRAM + 3 * shared.array / GIB + shared.tile_memory_gb == pytest.approx(limit)
    heavy = share_out(limit, None, on_gpu=False, weights=2**23)  # 8 MiB, which OpenVINO holds twice more
    assert shared.tile_memory_gb - heavy.tile_memory_gb == pytest.approx(3 / 128)
    assert f"at most {limit:g} GiB" in shared.words
    assert share_out(limit, 5, on_gpu=True).tile_memory_gb == 5  # tiles are on the GPU then
    assert share_out(None, None, on_gpu=False).tile_memory_gb is None


def test_what_cannot_be_is_refused_with_the_numbers(tmp_path, capsys):
    with pytest.raises(BudgetError, match=r"--max-memory 1: .* leave nothing for tiles; allow at least 2"):
        share_out(1, None, on_gpu=False)
    with pytest.raises(BudgetError, match="the network runs on the CPU"):
        share_out(None, 8, on_gpu=False)
    save_nifti(tmp_path / "scans" / "x.nii", noise(0, (200, 200, 60)))
    command = ["segment", str(tmp_path / "scans"), "--bundle", str(unet_bundle(tmp_path / "bundle"))]
    assert main([*command, "--output", str(tmp_path / "masks"), "--device", "cpu", "--max-memory", "1.2318"]) == 1
    assert "allow more memory" in capsys.readouterr().err
    assert not (tmp_path / "masks" / "x_seg.nii.gz").exists()


@pytest.mark.parametrize("spacing", [None, (1.3, 0.7, 1.9)])
def test_labels_are_the_same_whether_arrays_lie_in_memory_or_in_files(tmp_path, monkeypatch, spacing):
    """NIfTI with and without gzip, two channels, DICOM, a stack of TIFF pages."""
    scans = tmp_path / "scans"
    save_nifti(scans / "plain.nii", noise(1, (31, 22, 17)), AFFINES["oblique"])
    save_nifti(scans / "packed.nii.gz", noise(2, (31, 22, 17)), AFFINES["oblique"])
    write_series(scans / "series", noise(4, (20, 18, 9)), AFFINES["oblique"])
    tifffile.imwrite(scans / "stack.tif", noise(3, (9, 21, 30)).astype(np.uint16), photometric="minisblack")
    bundle = unet_bundle(tmp_path / "bundle", spacing=spacing)
    segment(scans, bundle, tmp_path / "memory", formats=["nifti"], device="cpu")
    monkeypatch.setattr(budget, "SHARE", 2**30)
    report = segment(scans, bundle, tmp_path / "files", formats=["nifti"], device="cpu", max_memory=1.5)
    assert [row["status"] for row in report.rows] == ["done"] * 4
    for row in report.rows:
        in_memory, in_files = (read(tmp_path / name / row["masks"][0]) for name in ("memory", "files"))
        assert len(np.unique(in_memory)) > 1
        np.testing.assert_array_equal(in_files, in_memory)


def test_two_channels_in_files(tmp_path, monkeypatch):
    for channel in (0, 1):
        save_nifti(tmp_path / "scans" / f"x_{channel:04}.nii.gz", noise(channel, (31, 22, 17)))
    channels = [{"name": "T1", "suffix": "_0000"}, {"name": "T2", "suffix": "_0001"}]
    bundle = unet_bundle(tmp_path / "bundle", channels=channels)
    segment(tmp_path / "scans", bundle, tmp_path / "memory", device="cpu")
    monkeypatch.setattr(budget, "SHARE", 2**30)
    report = segment(tmp_path / "scans", bundle, tmp_path / "files", device="cpu", max_memory=1.5)
    name = report.rows[0]["masks"][0]
    np.testing.assert_array_equal(read(tmp_path / "files" / name), read(tmp_path / "memory" / name))


def test_tiles_shrink_where_a_device_runs_out_of_memory(tmp_path, monkeypatch):
    """And the labels are those of one pass; the report says so."""
    save_nifti(tmp_path / "scans" / "x.nii.gz", noise(0, (96, 80, 24)))
    bundle = unet_bundle(tmp_path / "bundle")
    segment(tmp_path / "scans", bundle, tmp_path / "whole", device="cpu")
    forward = UNet.forward

    def scarce(self, x):
        if x.numel() > 96 * 80 * 24 // 2 and x.device.type != "meta":
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, x)

    monkeypatch.setattr(UNet, "forward", scarce)
    report = segment(tmp_path / "scans", bundle, tmp_path / "less", device="cpu", backend="eager")
    assert report.rows[0]["status"] == "done"
    assert "did not suffice: tiles take" in " ".join(report.rows[0]["notes"])
    np.testing.assert_array_equal(read(tmp_path / "less" / "x_seg.nii.gz"), read(tmp_path / "whole" / "x_seg.nii.gz"))


@pytest.mark.parametrize("options", [{"tile": [64, 64, 64]}, {"patch": [32, 32, 16], "mode": "blend"}])
def test_where_smaller_tiles_are_no_way_out_a_scan_fails_and_the_next_is_done(tmp_path, monkeypatch, options):
    """Fixed tiles and blended patches have the size that they have."""
    save_nifti(tmp_path / "scans" / "a.nii.gz", noise(0, (64, 48, 24)))
    save_nifti(tmp_path / "scans" / "b.nii.gz", noise(1, (16, 16, 16)))
    bundle, inferer = unet_bundle(tmp_path / "bundle"), {"_target_": "fewscan.tiling.OverlapTileInferer"}
    change_config(bundle, inferer={**inferer, "spatial_dims": 3, **options})
    forward, of_a = UNet.forward, []

    def scarce(self, x):
        if x.device.type != "meta" and not of_a:
            of_a.append(x.shape)
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, x)

    monkeypatch.setattr(UNet, "forward", scarce)
    report = segment(tmp_path / "scans", bundle, tmp_path / "masks", device="cpu", backend="eager")
    assert [row["status"] for row in report.rows] == ["failed", "done"]
    assert "out of memory" in report.rows[0]["reason"]
    assert not report.rows[1]["notes"]


PEAK = """
import json, sys
from pathlib import Path
from fewscan.runs import budget
from fewscan.runs.segment import segment
budget.SHARE = 2**12
home = Path(sys.argv[1])
report = segment(home / "scans", home / "bundle", home / "masks", device="cpu", max_memory=1.06, backend="eager")
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([report.rows[0]["status"], int(peak.split()[1])]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages of mapped files as Linux does")
@pytest.mark.parametrize("spacing", [None, (2.5, 2.5, 2.5)])
def test_memory_is_flat_in_depth_and_within_what_is_allowed(tmp_path, spacing):
    """Four times as deep: 20 MB more of float32, 59 of logits, 10 of the scan, 5 of labels; also on a coarse grid."""
    peaks = []
    for depth in (100, 400):
        home = tmp_path / str(depth)
        unet_bundle(home / "bundle", spacing=spacing)
        save_nifti(home / "scans" / "x.nii.gz", noise(0, (128, 128, depth)), np.diag([1.0, 1.0, 1.0, 1.0]))
        command = [sys.executable, "-c", PEAK, str(home)]
        freed = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed does not count any more
        process = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=freed)
        status, peak = json.loads(process.stdout.splitlines()[-1])
        assert status == "done", process.stdout
        peaks.append(peak / 1024)
    assert peaks[1] - peaks[0] < 12
    assert peaks[1] < 1.06 * 1024
