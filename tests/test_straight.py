"""A gantry tilt is taken out for the network by moving planes, and labels go back to the very voxels."""

import json

import nibabel
import numpy as np
import pytest

from fewscan.cli import main
from fewscan.errors import GeometryError
from fewscan.grid import Grid
from fewscan.straight import Straight
from runs.tiny import change_config, noise, read, save_nifti, threshold_bundle, unet_bundle
from scans.dicom_kinds import KINDS, LPS_TO_RAS, difference
from scans.volumes import AFFINES


def sheared(name, along_i, along_j):
    """The affine with its third axis moved by as many voxels along the others."""
    affine = AFFINES[name].copy()
    affine[:3, 2] += along_i * affine[:3, 0] + along_j * affine[:3, 1]
    return affine


@pytest.mark.parametrize("name", ["lps", "permuted", "oblique"])
@pytest.mark.parametrize("shear", [(0, 0.83), (0, -0.83), (1.7, -0.4)])
def test_every_voxel_is_within_half_a_voxel_of_its_place(name, shear):
    grid = Grid((9, 8, 7), sheared(name, *shear), "1.2.3")
    straight = Straight.of(grid)
    assert straight.grid.is_orthogonal and straight.grid.frame_of_reference == "1.2.3"
    numbered = np.arange(1, 9 * 8 * 7 + 1).reshape(9, 8, 7)
    moved = straight.array(numbered[None] + 5)[0]
    assert (moved == 6).sum() == moved.size - numbered.size + 1  # beside the voxels, the smallest of them
    inverse = np.linalg.inv(straight.grid.affine)
    for index in list(np.ndindex(grid.shape))[1:]:
        (found,) = np.argwhere(moved == numbered[index] + 5)
        place = (inverse @ [*grid.to_mm(index), 1])[:3]
        assert (np.abs(found - place) <= (0.5 + 1e-6, 0.5 + 1e-6, 1e-6)).all()
    np.testing.assert_array_equal(straight.back(moved - 5), numbered)


def test_planes_that_are_no_rectangles_are_refused():
    affine = AFFINES["lps"].copy()
    affine[:3, 1] += 0.2 * affine[:3, 0]
    with pytest.raises(GeometryError, match=r"cosine 0\.2"):
        Straight.of(Grid((9, 8, 7), affine))


def test_the_network_sees_the_stack_upright(tmp_path):
    """A U-Net's mask of a tilted scan is that of the planes moved by hand, moved back."""
    unet_bundle(tmp_path / "bundle")
    save_nifti(tmp_path / "tilted" / "x.nii", noise(), sheared("lps", 0, 0.83))
    upright = np.full((9, 8 + 5, 7), noise().min())
    places = [0, 1, 2, 2, 3, 4, 5]  # 0.83 k, rounded
    for k, j in enumerate(places):
        upright[:, j : j + 8, k] = noise()[:, :, k]
    save_nifti(tmp_path / "upright" / "x.nii", upright, AFFINES["lps"])
    change_config(tmp_path / "bundle", intensity_window=[0, 1000])
    for name in ("tilted", "upright"):
        arguments = ["--bundle", str(tmp_path / "bundle"), "--output", str(tmp_path / f"{name}-masks"), "--straighten"]
        assert main(["segment", str(tmp_path / name), *arguments]) == 0
    tilted, by_hand = (read(tmp_path / f"{name}-masks" / "x_seg.nii.gz") for name in ("tilted", "upright"))
    for k, j in enumerate(places):
        np.testing.assert_array_equal(tilted[:, :, k], by_hand[:, j : j + 8, k])
    report = json.loads((tmp_path / "tilted-masks" / "fewscan" / "report.json").read_text())
    assert "planes moved by up to 0 x 5 whole voxels" in " ".join(report["scans"][0]["notes"])
    sheared_mask = tmp_path / "as-it-is"
    main(["segment", str(tmp_path / "tilted"), "--bundle", str(tmp_path / "bundle"), "--output", str(sheared_mask)])
    assert (read(sheared_mask / "x_seg.nii.gz") != tilted).any()


@pytest.mark.parametrize("name", ["gantry_tilt", "gantry_tilt_of_an_oblique_stack", "enhanced_ct_with_a_gantry_tilt"])
def test_the_mask_is_on_the_slices_of_the_tilted_series(tmp_path, name):
    """DICOM-SEG, which is read back by position and by reference, and NIfTI."""
    threshold_bundle(tmp_path / "bundle", (1500.5, 1700.5), window=(0, 4000))
    tiles = {"_target_": "fewscan.tiling.OverlapTileInferer", "spatial_dims": 3, "tile": [8, 8, 8]}
    change_config(tmp_path / "bundle", inferer=tiles)
    (truth,) = KINDS[name].make(tmp_path / "scans" / "case")
    arguments = ["--output", str(tmp_path / "masks"), "--format", "nifti,dicom-seg", "--straighten"]
    assert main(["segment", str(tmp_path / "scans"), "--bundle", str(tmp_path / "bundle"), *arguments]) == 0
    image = nibabel.load(tmp_path / "masks" / "case_seg.nii.gz")
    wanted = truth.with_values((truth.values > 1500.5).astype(int) + (truth.values > 1700.5))
    assert difference(wanted, np.asanyarray(image.dataobj), LPS_TO_RAS @ image.affine) == ""
    assert (tmp_path / "masks" / "case_seg.dcm").exists()


def test_a_scan_that_cannot_be_straightened_fails_alone_within_a_stated_memory(tmp_path, capfd):
    """The memory is planned before scans are read; one of them has planes that are no rectangles."""
    unet_bundle(tmp_path / "bundle")
    odd = AFFINES["lps"].copy()
    odd[:3, 1] += 0.2 * odd[:3, 0]
    arguments = ["--bundle", str(tmp_path / "bundle"), "--straighten", "--device", "cpu", "--max-memory", "4"]
    save_nifti(tmp_path / "scans" / "odd.nii", noise(1, (20, 20, 20)), odd)
    assert main(["segment", str(tmp_path / "scans"), *arguments, "--output", str(tmp_path / "none")]) == 1
    assert "cosine 0.2" in capfd.readouterr().out
    save_nifti(tmp_path / "scans" / "x.nii", noise(), sheared("lps", 0, 0.83))
    assert main(["segment", str(tmp_path / "scans"), *arguments, "--output", str(tmp_path / "masks")]) == 2
    report = json.loads((tmp_path / "masks" / "fewscan" / "report.json").read_text())
    assert {row["scan"]: row["status"] for row in report["scans"]} == {"odd": "failed", "x": "done"}
    assert "largest scan: x, 1 tile(s)" in capfd.readouterr().out


def test_a_bundle_with_steps_of_its_own_is_refused(tmp_path, capfd):
    threshold_bundle(tmp_path / "bundle")  # its inferer is another one
    save_nifti(tmp_path / "x.nii", noise(), sheared("lps", 0, 0.83))
    arguments = ["--bundle", str(tmp_path / "bundle"), "--output", str(tmp_path / "masks"), "--straighten"]
    assert main(["segment", str(tmp_path / "x.nii"), *arguments]) == 1
    assert "steps of its own" in capfd.readouterr().err
