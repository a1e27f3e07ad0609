"""MONAI Deploy's operator runs our bundle unchanged: the masks of `fewscan segment`, voxel for voxel.

Skipped unless FEWSCAN_MONAIDEPLOY_PYTHON names a Python with `monai-deploy-app-sdk` and what a bundle needs
(docs/open_masks.md); `.ci/interop-deploy` makes one and runs this.
"""

import os
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from conftest import ROOT, ball
from runs.tiny import noise, save_nifti, unet_bundle
from scans.dicom_series import write_series
from scans.volumes import SPACING, affine, rotation

RUNNER = Path(__file__).with_name("monai_deploy_runs.py")
SEGMENT = "import sys; from fewscan.cli import main; sys.exit(main())"
SQUARE = (0.9, 0.9, 2.5)


def there(folder: Path, *arguments: object) -> None:
    """Run that Python in an empty folder, on the CPU, with this fewscan."""
    python = os.environ.get("FEWSCAN_MONAIDEPLOY_PYTHON")
    if not python:
        pytest.skip("FEWSCAN_MONAIDEPLOY_PYTHON names no Python with MONAI Deploy (.ci/interop-deploy makes one)")
    folder.mkdir(exist_ok=True)
    alone = {**os.environ, "PYTHONPATH": str(ROOT / "pipeline"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [python, *map(str, arguments)], capture_output=True, text=True, check=False, env=alone, cwd=folder, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def scan() -> np.ndarray:
    """(i, j, k) noise of odd sizes with a ball, as `trained` knows it, and one bright corner."""
    shape = (13, 11, 8)
    values = noise(3, shape) // 10 + 150 * ball(shape, (5, 6, 3), 3.5).astype(np.int16)
    values[-1, -1, -1] = 1000
    return values


def refuse_difference(deploy: Path, ours: Path, place: np.ndarray) -> None:
    """Raises where Deploy's mask of a scan on the affine `place` is not ours, value for value and in mm."""
    theirs, mask = np.load(deploy), nibabel.load(ours)
    np.testing.assert_array_equal(theirs["mask"].T, np.asarray(mask.dataobj))
    assert len(np.unique(theirs["mask"])) > 1
    np.testing.assert_allclose(mask.affine, place, atol=1e-5)
    np.testing.assert_allclose(theirs["affine"], place, atol=1e-5)


@pytest.mark.parametrize("dims", [3, 2])
def test_an_oblique_image_in_memory(tmp_path, dims):
    place = affine(rotation(), SPACING)
    bundle = unet_bundle(tmp_path / "bundle", dims=dims, spacing=[1.0, 1.1, 2.0])
    np.savez(tmp_path / "scan.npz", array=scan().T, affine=place)
    save_nifti(tmp_path / "scans" / "scan.nii.gz", scan(), place)
    there(tmp_path / "cwd", RUNNER, bundle, tmp_path / "scan.npz", tmp_path / "mask.npz")
    segment = ("segment", tmp_path / "scans", "--bundle", bundle, "--output", tmp_path / "ours", "--backend", "eager")
    there(tmp_path / "cwd", "-c", SEGMENT, *segment)
    refuse_difference(tmp_path / "mask.npz", tmp_path / "ours" / "scan_seg.nii.gz", place)


@pytest.mark.parametrize("spacing", [SQUARE, SPACING], ids=["square", "not square"])
def test_a_dicom_series(trained, tmp_path, monkeypatch, spacing):
    """Deploy's own operators read it, and a container's model path is set; `fewscan plan` made the bundle."""
    monkeypatch.setenv("HOLOSCAN_MODEL_PATH", str(trained.bundle))
    place = affine(rotation(), spacing)
    write_series(tmp_path / "series", scan(), place, shuffled=True)
    there(tmp_path / "cwd", RUNNER, trained.bundle, tmp_path / "series", tmp_path / "mask.npz")
    segment = ("--bundle", trained.bundle, "--output", tmp_path / "ours", "--backend", "eager", "--format", "nifti")
    there(tmp_path / "cwd", "-c", SEGMENT, "segment", tmp_path / "series", *segment)
    refuse_difference(tmp_path / "mask.npz", tmp_path / "ours" / "series_seg.nii.gz", place)


def test_deploys_own_affine_confuses_rows_and_columns(trained, tmp_path):
    """PixelSpacing is the distance of rows, then that of columns (DICOM PS3.3 10.7.1.3): the documented correction."""
    place = affine(rotation(), SPACING)
    write_series(tmp_path / "series", scan(), place)
    there(tmp_path / "cwd", RUNNER, trained.bundle, tmp_path / "series", tmp_path / "mask.npz", "as_it_is")
    confused = affine(rotation(), (SPACING[1], SPACING[0], SPACING[2]))
    np.testing.assert_allclose(np.load(tmp_path / "mask.npz")["affine"], confused, atol=1e-5)
