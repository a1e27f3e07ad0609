"""Elastic deformation against SciPy and elasticdeform; image and label bend together."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from conftest import shared
from fewscan.training.elastic import deform, dense_field, jacobian_determinant, random_coordinates


@pytest.mark.parametrize("shape", [(41, 64), (9, 17, 12)])
@pytest.mark.parametrize("points", [2, 3, 5])
def test_dense_field_is_scipys_cubic_zoom(shape, points):
    coarse = np.random.default_rng(0).normal(size=(len(shape), *(points,) * len(shape)))
    ours = dense_field(torch.from_numpy(coarse), shape)
    zoom = [n / points for n in shape]
    theirs = np.stack([ndimage.zoom(c, zoom, order=3, mode="mirror", grid_mode=False) for c in coarse])
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-12)


@pytest.mark.parametrize("case", ["2d", "2d_512"])
def test_equals_elasticdeform(case):
    file = np.load(shared("parity") / "elastic.npz")
    image, label = file[f"{case}.image"], file[f"{case}.label"]
    field = dense_field(torch.from_numpy(file[f"{case}.disp_grid"].astype(np.float64)), image.shape)
    places = torch.stack(torch.meshgrid(*[torch.arange(n).double() for n in image.shape], indexing="ij")) + field
    theirs = np.stack([file[f"{case}.src_y"], file[f"{case}.src_x"]])
    known = np.isfinite(theirs).all(axis=0)
    np.testing.assert_allclose(places.numpy()[:, known], theirs[:, known], atol=1e-3)
    values = torch.from_numpy(label.astype(np.int64))
    moved, classes = deform(torch.from_numpy(image)[None].float(), values, places.float())
    inside = known & (classes.numpy() >= 0)
    reach = np.abs(image).max()
    assert np.abs(moved[0].numpy() - file[f"{case}.image_o1_mirror"])[inside].max() <= 1e-3 * reach
    assert (classes.numpy() != file[f"{case}.label_o0_mirror"])[inside].mean() < 1e-3  # ties at half a voxel


@pytest.mark.parametrize("patch", [(33, 40), (17, 20, 12)])
def test_image_and_label_bend_together(patch):
    """An image that is its own label: sampled linearly and rounded it stays the label, but for voxels at edges."""
    random = np.random.default_rng(3)
    shape = tuple(2 * n for n in patch)
    label = torch.from_numpy((ndimage.gaussian_filter(random.normal(size=shape), 4) > 0).astype(np.int64))
    options = {"elastic_sd": 2, "rotate_degrees": 40, "scale": (0.8, 1.2), "flip": True}
    places = random_coordinates(random, patch, [n / 2 for n in shape], [1.0] * len(patch), **options)
    moved, classes = deform(label[None].float(), label, places)
    known = classes >= 0
    edge = 0.5 ** len(patch)  # the nearest voxel has at least this weight in linear interpolation
    clear = known & ((moved[0] < edge) | (moved[0] > 1 - edge))
    assert clear.float().mean() > 0.5
    assert torch.equal(moved[0][clear].round().long(), classes[clear])


def test_identity_crops_exactly_and_beyond_the_border_the_label_is_unknown():
    image = torch.rand(2, 11, 9)
    label = torch.arange(99).reshape(11, 9)
    places = random_coordinates(np.random.default_rng(0), (5, 7), (1.0, 4.0), (1.0, 1.0))
    moved, classes = deform(image, label, places)
    torch.testing.assert_close(moved[:, 1:], image[:, :4, 1:8], rtol=0, atol=1e-6)
    assert torch.equal(classes[1:], label[:4, 1:8]) and (classes[0] == -1).all()


def test_rotation_and_scale_are_true_in_mm():
    """A patch turned in anisotropic space: distances in mm between neighbours stay spacing / magnification."""
    spacing = np.array([0.9, 0.8, 2.5])
    places = random_coordinates(
        np.random.default_rng(1), (4, 5, 6), (20.0, 20.0, 20.0), spacing, rotate_degrees=90, scale=(1.25, 1.25)
    ).numpy()
    mm = places * spacing[:, None, None, None]
    for axis in range(3):
        steps = np.linalg.norm(np.diff(mm, axis=axis + 1), axis=0)
        np.testing.assert_allclose(steps, spacing[axis] / 1.25, rtol=1e-4)
    np.testing.assert_allclose(places.mean(axis=(1, 2, 3)), 20.0, atol=1e-4)


@pytest.mark.parametrize("patch", [(64, 48), (24, 32, 20)])
def test_no_deformation_folds(patch):
    random = np.random.default_rng(2)
    for _ in range(5):
        places = random_coordinates(random, patch, [0.0] * len(patch), [1.0] * len(patch), elastic_sd=30)
        grids = torch.meshgrid(*[torch.arange(n).float() for n in patch], indexing="ij")
        assert float(jacobian_determinant(places - torch.stack(grids)).min()) > 0


def test_a_seed_repeats_and_another_differs():
    def once(seed):
        return random_coordinates(
            np.random.default_rng(seed), (8, 9), (4, 4), (1, 1), elastic_sd=3, rotate_degrees=9, flip=True
        )

    assert torch.equal(once(7), once(7)) and not torch.equal(once(7), once(8))
