"""A fingerprint holds what NumPy says of hand-made volumes, and says in words how another scan differs."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image

from conftest import write_volumes
from fewscan.errors import BundleError
from fewscan.runs.estimate import in_words
from fewscan.scans import find_scans
from fewscan.training.fingerprint import Fingerprint, differences, read_fingerprint
from fewscan.training.material import read_material
from fewscan.training.plan import plan


def save(folder, name, image, label, spacing=(1, 1, 1)):
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # left, posterior, superior
    for kind, array in (("images", image), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / kind / f"{name}.nii.gz")


@pytest.fixture
def cuboids(tmp_path):
    """Two labels: cuboids of 2 x 3 x 4 and of 1 x 1 x 2 voxels, the second one twice, apart by a corner."""
    image = np.arange(12 * 10 * 8, dtype=np.int16).reshape(12, 10, 8)
    label = np.zeros(image.shape, dtype=np.uint8)
    label[1:3, 1:4, 1:5] = 1
    label[5, 5, 1:3] = 2
    label[8, 8, 1:3] = 2
    save(tmp_path / "data", "a", image, label, (0.5, 2, 1.5))
    return tmp_path, image, label


def test_numbers_of_a_case_are_those_of_numpy(cuboids):
    folder, image, label = cuboids
    (case,) = read_material(folder / "data").fingerprint().cases
    assert case.shape == (12, 10, 8)
    assert case.spacing_mm == pytest.approx((0.5, 2, 1.5))
    assert case.size_mm == pytest.approx((6, 20, 12))
    assert case.voxels == (960 - 28, 24, 4)
    assert case.volumes_mm3 == pytest.approx((24 * 1.5, 4 * 1.5))
    assert case.foreground == pytest.approx(28 / 960)
    assert case.components == (1, 2)
    assert (case.instances, case.touching, case.unlabelled) == (None, None, 0)
    assert case.lowest == (0,)
    points = (0.5, 5, 25, 50, 75, 95, 99.5)
    assert case.intensities[0] == pytest.approx(np.percentile(image, points), rel=1e-5)
    assert case.on_labels[0] == pytest.approx(np.percentile(image[label > 0], points), rel=1e-5)


def test_axes_are_left_posterior_superior_whatever_the_file_says(cuboids):
    folder, image, label = cuboids
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 0], affine[2, 1], affine[3, 3] = 0.5, 2, -1.5, 1  # (anterior, inferior, right) in the file
    for kind, array in (("images", image), ("labels", label)):
        turned = array.transpose(1, 2, 0)[::-1, ::-1, ::-1]
        nibabel.save(nibabel.Nifti1Image(turned, affine), folder / "data" / kind / "b.nii.gz")
    first, second = read_material(folder / "data").fingerprint().cases
    changed = {"name", "identity_affine"}
    assert {key for key in vars(first) if vars(first)[key] != vars(second)[key]} <= changed


def test_corners_join_pieces_and_touching_is_seen_across_them(tmp_path):
    """Instances 5 and 9 share a corner, 7 is alone, 8 lies two pixels away: 2 of 4 touch, in 3 pieces."""
    label = np.zeros((16, 16), dtype=np.uint8)
    label[2:5, 2:5], label[5:8, 5:8], label[11:14, 2:5], label[11:14, 6:9] = 5, 9, 7, 8
    for kind, array in (("images", label * 20), ("labels", label)):
        (tmp_path / kind).mkdir()
        Image.fromarray(array).save(tmp_path / kind / "a.png")
    fingerprint = read_material(tmp_path, merge_masks="nucleus").fingerprint()
    (case,) = fingerprint.cases
    assert (case.instances, case.touching, case.components) == (4, 2, (3,))
    assert fingerprint.touching == 0.5
    assert not fingerprint.knows_spacing


def test_the_hash_knows_equal_voxels_and_nothing_else(tmp_path):
    data = write_volumes(tmp_path / "data", count=3)
    source = nibabel.load(data / "images" / "case0.nii.gz")
    voxels = np.asarray(source.dataobj)
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float64), source.affine), data / "images" / "case1.nii.gz")
    voxels = voxels.copy()
    voxels[0, 0, 0] += 1
    nibabel.save(nibabel.Nifti1Image(voxels, source.affine), data / "images" / "case2.nii.gz")
    hashes = [case.image_sha256 for case in read_material(data).fingerprint().cases]
    assert hashes[0] == hashes[1] != hashes[2]


def test_it_survives_the_bundle(tmp_path):
    plan(write_volumes(tmp_path / "data"), tmp_path / "bundle")
    fingerprint = read_fingerprint(tmp_path / "bundle")
    assert [case.name for case in fingerprint.cases] == [f"case{n}" for n in range(4)]
    assert fingerprint == read_material(tmp_path / "data").fingerprint()
    assert read_fingerprint(tmp_path) is None
    (tmp_path / "bundle" / "configs" / "fingerprint.json").write_text(json.dumps({"cases": [{}]}))
    with pytest.raises(BundleError, match="is no fingerprint"):
        read_fingerprint(tmp_path / "bundle")


def fingerprint_of(tmp_path) -> Fingerprint:
    """Volumes of 20 x 18 x 16 voxels of 1 x 1.1 x 1.2 mm, noise of 50 and objects of 200."""
    return read_material(write_volumes(tmp_path / "data")).fingerprint()


def test_a_scan_like_the_others_has_no_differences(tmp_path):
    fingerprint = fingerprint_of(tmp_path)
    assert differences(fingerprint, (1.05, 1.0, 1.2), (21, 17, 16)) == []


@pytest.mark.parametrize(
    ("spacing", "shape", "words"),
    [
        ((2, 2.2, 2.4), (10, 9, 8), ["voxels twice as coarse (2 x 2.2 x 2.4 mm, the labelled cases 1 x 1.1 x 1.2)"]),
        ((0.4, 0.44, 0.48), (50, 45, 40), ["voxels 2.5 times as fine (0.4 x 0.44 x 0.48 mm, "]),
        ((1, 1.1, 3.6), (20, 18, 5), ["voxels 3 times as coarse along superior (1 x 1.1 x 3.6 mm, "]),
        ((1, 1.1, 1.2), (20, 18, 80), ["covers 96 mm along superior, the labelled cases 19.2"]),
        (  # which has no distance
            (1, 1.1, 9),
            (20, 18, 1),
            ["is a single slice, the labelled cases are volumes", "covers 9 mm along superior"],
        ),
    ],
)
def test_differences_in_words(tmp_path, spacing, shape, words):
    found = differences(fingerprint_of(tmp_path), spacing, shape)
    assert len(found) == len(words)
    assert all(one.startswith(start) for one, start in zip(found, words, strict=True))


def test_a_picture_for_a_bundle_of_mm_is_said_to_have_no_size(tmp_path):
    plan(write_volumes(tmp_path / "data"), tmp_path / "bundle")
    (tmp_path / "scans").mkdir()
    Image.new("L", (64, 48), 9).save(tmp_path / "scans" / "a.png")
    told = in_words(tmp_path / "bundle", find_scans(tmp_path / "scans").scans)
    assert "yours: is a single slice, the labelled cases are volumes; " in told
    assert told.endswith("; yours: its file says no voxel size, those of the labelled cases do: taken as 1 mm")
