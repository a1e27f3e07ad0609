"""The demo's whole path in short: three formats hold one and the same mask, in the place that other readers see."""

import os

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from nibabel.affines import apply_affine

from fewscan.demo import ANNOTATED, BLOCK, SCORED, demo


def test_demo_makes_masks_scores_and_a_page_and_can_be_repeated(tmp_path, capsys):
    output = tmp_path / "demo"
    assert demo(output, 0.05) == 0
    told = capsys.readouterr().out
    assert told.count("100.0000% of its voxels equal the NIfTI mask") == 2
    page = (output / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 5 and "one and the same volume" in page and "http" not in page
    masks = output / "masks"
    whole = nibabel.load(masks / "mni152_seg.nii.gz")
    values = np.asarray(whole.dataobj)
    assert set(np.unique(values)) <= {0, 1, 2}
    block = SimpleITK.ReadImage(masks / "superior_block_seg.seg.nrrd")
    corner = np.array(block.TransformIndexToPhysicalPoint((3, 5, 7))) * (-1, -1, 1)
    np.testing.assert_allclose(corner, apply_affine(whole.affine, (3, 5, BLOCK[0] + 7)), atol=1e-6)
    before = {file: file.stat().st_mtime_ns for file in masks.glob("*_seg*")}
    assert demo(output, 0.05) == 0
    assert before == {file: file.stat().st_mtime_ns for file in masks.glob("*_seg*")}


def test_an_interrupted_demo_leaves_whole_files_alone(tmp_path, monkeypatch):
    """Ctrl-C within a NIfTI, within the DICOM series, and before the plan: what has its name by then is whole."""
    output, save, save_as, slices = tmp_path / "demo", nibabel.save, pydicom.Dataset.save_as, []

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    def save_half(image, path):
        save(image, path)
        os.truncate(path, path.stat().st_size // 2)
        raise KeyboardInterrupt

    def save_five(dataset, path, **options):
        if len(slices) == 5:
            raise KeyboardInterrupt
        slices.append(path)
        save_as(dataset, path, **options)

    def demo_with(name, stop):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(name, stop)
            demo(output, 0.05)

    demo_with("nibabel.save", save_half)
    assert list(output.rglob("*.nii.gz")) == []
    demo_with("pydicom.Dataset.save_as", save_five)
    assert len(slices) == 5 and list(output.rglob("*.dcm")) == []
    demo_with("fewscan.training.plan.plan", interrupted)
    whole = np.asarray(nibabel.load(output / "scans" / "mni152.nii.gz").dataobj)
    for k, path in zip(BLOCK, sorted((output / "scans" / "dicom").iterdir()), strict=True):
        np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array.T, whole[..., k])
    for k in ANNOTATED:
        image = nibabel.load(output / "data" / "images" / f"slice_{k:03d}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj)[..., 0], whole[..., k])


def test_scored_slices_lie_beyond_a_gap():
    assert min(abs(scored - learned) for scored in SCORED for learned in ANNOTATED) > 10
