"""MONAI Label's own app runs our bundle: the masks of `fewscan segment`, and training on its labels.

Skipped unless FEWSCAN_MONAILABEL_PYTHON names a Python with `monailabel` and what a bundle needs (docs/open_masks.md);
`.ci/interop-monailabel` makes one and runs this.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest

from conftest import ROOT

RUNNER = Path(__file__).with_name("monai_label_runs.py")


def there(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run that Python, on the CPU, with this fewscan."""
    python = os.environ.get("FEWSCAN_MONAILABEL_PYTHON")
    if not python:
        pytest.skip("FEWSCAN_MONAILABEL_PYTHON names no Python with monailabel (.ci/interop-monailabel makes one)")
    alone = {**os.environ, "PYTHONPATH": str(ROOT / "pipeline"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([python, *map(str, arguments)], capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture
def app(trained, tmp_path):
    """(app, studies): the trained bundle as MONAI Label's only model, and the scans and labels it was trained on."""
    shutil.copytree(trained.bundle, tmp_path / "app" / "model" / "my_segmentation")
    shutil.copytree(trained.data / "images", tmp_path / "studies")
    shutil.copytree(trained.data / "labels", tmp_path / "studies" / "labels" / "final")
    return tmp_path / "app", tmp_path / "studies"


def test_monai_label_gives_the_masks_of_segment(app, trained, tmp_path):
    folder, studies = app
    names = json.loads(there(RUNNER, folder, studies, "infer").stdout.splitlines()[-1])
    labels = json.loads((trained.bundle / "configs" / "inference.json").read_text())["labels"]
    assert names == {label["name"]: label["value"] for label in labels}
    segment = "import sys; from fewscan.cli import main; sys.exit(main())"
    bundle = folder / "model" / "my_segmentation"
    there("-c", segment, "segment", trained.data / "images", "--bundle", bundle, "--output", tmp_path / "ours",
          "--backend", "eager")  # fmt: skip
    for number in range(4):
        ours = nibabel.load(tmp_path / "ours" / f"case{number}_seg.nii.gz")
        theirs = nibabel.load(studies / "masks" / f"case{number}.nii.gz")
        np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.asarray(ours.dataobj))
        np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-6)
        assert np.asarray(ours.dataobj).any()


def test_monai_label_trains_on_what_was_labelled_there(app):
    folder, studies = app
    bundle = folder / "model" / "my_segmentation"
    config = json.loads((bundle / "configs" / "train.json").read_text())
    (bundle / "configs" / "train.json").write_text(json.dumps({**config, "overwrite": True}))
    before = (bundle / "models" / "model.pt").read_bytes()
    there(RUNNER, folder, studies, "train")
    assert json.loads((bundle / "models" / "training.json").read_text())["steps"] == config["steps_per_epoch"]
    assert (bundle / "models" / "model.pt").read_bytes() != before
