"""Elastic and affine deformation against SciPy, elasticdeform and closed forms; nothing folds; true in mm."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from conftest import shared
from fewscan.training.elastic import SMALLEST_JACOBIAN, Deformation, RandomDeformation, dense_field, largest_share
from fewscan.training.resample import resample

STRONG = {"rotate_degrees": 40, "scale": (0.8, 1.2), "flip": True}


def identity(shape):
    return np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij"))


def jacobian(displacement):
    """(axes, *shape) displacements -> (*shape) local change of volume, by finite differences in double precision."""
    gradient = np.stack([np.stack(np.gradient(component)) for component in np.asarray(displacement, dtype=float)])
    return np.linalg.det(np.moveaxis(gradient, (0, 1), (-2, -1)) + np.eye(len(displacement)))


@pytest.mark.parametrize("shape", [(41, 64), (9, 17, 12)])
@pytest.mark.parametrize("points", [2, 3, 5])
def test_dense_field_is_scipys_cubic_zoom(shape, points):
    coarse = np.random.default_rng(0).normal(size=(2, len(shape), *(points,) * len(shape)))
    ours = dense_field(torch.from_numpy(coarse), shape)
    zoom = [n / points for n in shape]
    theirs = [[ndimage.zoom(c, zoom, order=3, mode="mirror", grid_mode=False) for c in item] for item in coarse]
    np.testing.assert_allclose(ours.numpy(), np.array(theirs), atol=1e-12)


@pytest.mark.parametrize("case", ["2d", "2d_512"])
def test_equals_elasticdeform(case):
    file = np.load(shared("parity") / "elastic.npz")
    image, label = file[f"{case}.image"], file[f"{case}.label"]
    points = torch.from_numpy(file[f"{case}.disp_grid"].astype(np.float32))
    places = Deformation(torch.eye(2), points).coordinates(image.shape, [(n - 1) / 2 for n in image.shape])
    theirs = np.stack([file[f"{case}.src_y"], file[f"{case}.src_x"]])
    known = np.isfinite(theirs).all(axis=0)
    np.testing.assert_allclose(places.numpy()[:, known], theirs[:, known], atol=1e-3)
    arrays = [torch.from_numpy(array)[None, None] for array in (image, label)]
    moved, classes = (result[0, 0].numpy() for result in resample(arrays, ["linear", "nearest"], places[None]))
    inside = known & (classes >= 0)
    assert np.abs(moved - file[f"{case}.image_o1_mirror"])[inside].max() <= 1e-3 * np.abs(image).max()
    assert (classes != file[f"{case}.label_o0_mirror"])[inside].mean() < 1e-3  # ties at half a voxel


@pytest.mark.parametrize("patch", [(33, 40), (17, 20, 12)])
def test_turning_the_control_points_is_turning_the_dense_field(patch):
    random = np.random.default_rng(5)
    drawn = RandomDeformation(elastic_sd=2, **STRONG).draw(random, patch, [0.9, 0.8, 2.5][: len(patch)])
    centre = [31.5, 20.0, 7.5][: len(patch)]
    field = dense_field(drawn.points.double(), patch).numpy()
    middle = np.reshape([(n - 1) / 2 for n in patch], (-1, *(1,) * len(patch)))
    moved = np.tensordot(drawn.matrix.double().numpy(), identity(patch) - middle + field, 1)
    wanted = moved + np.reshape(centre, middle.shape)
    np.testing.assert_allclose(drawn.coordinates(patch, centre).numpy(), wanted, atol=2e-5)


@pytest.mark.parametrize("patch", [(33, 40), (17, 20, 12)])
def test_image_and_label_bend_together(patch):
    """An image that is its own label: sampled linearly and rounded it stays the label, but for voxels at edges."""
    random = np.random.default_rng(3)
    shape = tuple(2 * n for n in patch)
    label = torch.from_numpy((ndimage.gaussian_filter(random.normal(size=shape), 4) > 0).astype(np.int64))
    drawn = RandomDeformation(elastic_sd=2, **STRONG).draw(random, patch, [1.0] * len(patch))
    places = drawn.coordinates(patch, [n / 2 for n in shape])
    moved, classes = resample([label[None, None]] * 2, ["linear", "nearest"], places[None])
    known = classes >= 0
    edge = 0.5 ** len(patch)  # the nearest voxel has at least this weight in linear interpolation
    clear = known & ((moved < edge) | (moved > 1 - edge))
    assert clear.float().mean() > 0.5
    assert torch.equal(moved[clear].round().long(), classes[clear])


@pytest.mark.parametrize("axes", [2, 3])
def test_a_turned_ramp_is_exact_up_to_the_patchs_border(axes):
    """One resample from the source: a linear ramp stays linear everywhere, corners of the patch too.

    A crop that is turned afterwards has no values there; a second interpolation would blur what is not linear.
    """
    shape, patch, slopes = (60, 50, 40)[:axes], (24, 20, 14)[:axes], np.array([0.5, -1.25, 2.0])[:axes]
    volume = torch.from_numpy(np.tensordot(slopes, identity(shape), 1).astype(np.float32))
    random = np.random.default_rng(1)
    centre = [(n - 1) / 2 for n in shape]
    for _ in range(3):
        turn = RandomDeformation(rotate_degrees=180, scale=(0.9, 1.3)).draw(random, patch, [1.0] * axes)
        middle = np.reshape([(n - 1) / 2 for n in patch], (-1, *(1,) * axes))
        steps = np.tensordot(turn.matrix.double().numpy().T @ slopes, identity(patch) - middle, 1)
        (moved,) = resample([volume[None, None]], ["linear"], turn.coordinates(patch, centre)[None])
        np.testing.assert_allclose(moved[0, 0].numpy(), steps + slopes @ centre, atol=2e-4)  # of values up to 100


@pytest.mark.parametrize("still", [0, 1, 2])
def test_a_still_axis_stays_still_and_its_plane_is_numpys(still):
    """Along it: exactly the undeformed coordinates, or mirrored. In the plane: turn, scale and flip in mm, and
    displacements by SciPy's zoom, from the same random numbers."""
    patch, spacing, centre = (17, 20, 12), np.array([0.9, 0.8, 2.5]), (31.5, 20.0, 7.5)
    strength = RandomDeformation(elastic_sd=2, **STRONG, still_axis=still)
    mirrored = set()
    for seed in range(8):
        drawn = strength.draw(np.random.default_rng(seed), patch, spacing)
        places = drawn.coordinates(patch, centre).numpy()

        random = np.random.default_rng(seed)
        points = random.normal(0, 2, (3, 3, 3, 3))
        magnification = np.exp(random.uniform(np.log(0.8), np.log(1.2)))
        angle = random.uniform(-np.deg2rad(40), np.deg2rad(40))
        flips = random.choice((-1.0, 1.0), 3)
        steps = identity(patch) - np.reshape([(n - 1) / 2 for n in patch], (3, 1, 1, 1))
        undeformed = (flips[still] * steps[still] + centre[still]).astype(np.float32)
        np.testing.assert_array_equal(places[still], undeformed)
        mirrored.add(flips[still])

        one, other = (axis for axis in range(3) if axis != still)
        zoom = [n / 3 for n in patch]
        moved = {
            axis: steps[axis] + drawn.share * ndimage.zoom(points[axis], zoom, order=3, mode="mirror", grid_mode=False)
            for axis in (one, other)
        }
        y, x = (flips[axis] * moved[axis] * spacing[axis] / magnification for axis in (one, other))
        turned = np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x
        for axis, mm in zip((one, other), turned, strict=True):
            np.testing.assert_allclose(places[axis], mm / spacing[axis] + centre[axis], atol=2e-5)
    assert mirrored == {-1.0, 1.0}


def test_a_field_in_the_plane_alone_does_not_fold():
    """Its volume changes by the plane's determinant, in which the still axis has no part."""
    random, patch = np.random.default_rng(2), (32, 40, 12)
    for strength in ({"elastic_sd": 30}, {"elastic_sd": 6, "control_spacing": 7}):
        for _ in range(5):
            drawn = RandomDeformation(**strength, still_axis=2).draw(random, patch, (1, 1, 12))
            field = dense_field(drawn.points.double(), patch).numpy()
            assert 0 < drawn.share < 1 and not field[2].any() and field[:2].any()
            smallest = min(jacobian(field[:2, :, :, k]).min() for k in range(patch[2]))
            assert SMALLEST_JACOBIAN - 0.1 < smallest < SMALLEST_JACOBIAN + 0.15
            assert np.abs(np.diff(field[:2], axis=3)).max() > 0.1  # slices differ


def test_another_spacing_holds_along_a_still_axis_too():
    strength = RandomDeformation(elastic_sd=1, rotate_degrees=90, scale=(2, 2), still_axis=1)
    places = strength.draw(np.random.default_rng(0), (4, 5, 4), (1, 2, 1), (1, 1, 1)).coordinates((4, 5, 4), (8, 6, 8))
    assert torch.equal(places[1, 0, :, 0], torch.tensor([5.0, 5.5, 6.0, 6.5, 7.0]))
    assert bool((places[1] == places[1, :1, :, :1]).all())


def test_rotation_and_scale_are_true_in_mm():
    """A patch turned in anisotropic space: distances in mm between neighbours stay spacing / magnification."""
    spacing = np.array([0.9, 0.8, 2.5])
    drawn = RandomDeformation(rotate_degrees=90, scale=(1.25, 1.25)).draw(np.random.default_rng(1), (4, 5, 6), spacing)
    places = drawn.coordinates((4, 5, 6), (20.0, 20.0, 20.0)).numpy()
    mm = places * spacing[:, None, None, None]
    for axis in range(3):
        steps = np.linalg.norm(np.diff(mm, axis=axis + 1), axis=0)
        np.testing.assert_allclose(steps, spacing[axis] / 1.25, rtol=1e-4)
    np.testing.assert_allclose(places.mean(axis=(1, 2, 3)), 20.0, atol=1e-4)


def test_another_spacing_is_part_of_the_same_resample():
    """From voxels of 0.5 x 2 mm to 1 x 1 mm: steps of 2 and half a voxel about the same centre."""
    drawn = RandomDeformation().draw(np.random.default_rng(0), (5, 4), (0.5, 2.0), (1.0, 1.0))
    places = drawn.coordinates((5, 4), (10.0, 6.0)).numpy()
    np.testing.assert_allclose(places[0], np.repeat([[6.0], [8.0], [10.0], [12.0], [14.0]], 4, axis=1))
    np.testing.assert_allclose(places[1], np.repeat([[5.25, 5.75, 6.25, 6.75]], 5, axis=0))


def test_voxels_and_mm_say_the_same():
    """At 0.5, 2 and 4 mm a voxel, 2 mm are 4, 1 and half a voxel; control points 32 mm apart follow the extent."""
    patch, spacing = (65, 33, 17), (0.5, 2.0, 4.0)
    small = {"elastic_sd": 0.1, "control_points": 3}
    voxels = RandomDeformation(**small).draw(np.random.default_rng(0), patch, spacing)
    mm = RandomDeformation(**small, unit="mm").draw(np.random.default_rng(0), patch, spacing)
    factors = mm.points / voxels.points
    np.testing.assert_allclose(factors.flatten(1).numpy(), np.repeat([[2.0], [0.5], [0.25]], 27, axis=1), rtol=1e-6)
    spaced = {"elastic_sd": 0.1, "control_spacing": 32}
    assert RandomDeformation(**spaced).draw(np.random.default_rng(0), patch, spacing).points.shape == (3, 3, 2, 2)
    mm = RandomDeformation(**spaced, unit="mm").draw(np.random.default_rng(0), patch, spacing)
    assert mm.points.shape == (3, 2, 3, 3)  # 32, 64 and 64 mm long


def test_displacements_at_control_points_have_the_wanted_spread():
    strength = RandomDeformation(elastic_sd=0.7, control_points=9)
    drawn = strength.draw(np.random.default_rng(0), (400, 400, 400), (1, 1, 1))
    assert drawn.share == 1
    assert float(drawn.points.std()) == pytest.approx(0.7, rel=0.03)  # 2187 numbers
    places = drawn.coordinates((5, 5, 5), (2, 2, 2)).numpy()  # the same points over a smaller patch: at 0, 2, 4 ...
    corner = drawn.points[:, 0, 0, 0].numpy()
    np.testing.assert_allclose(places[:, 0, 0, 0], corner, atol=1e-5)


@pytest.mark.parametrize("patch", [(64, 48), (24, 32, 20)])
@pytest.mark.parametrize("strength", [{"elastic_sd": 30}, {"elastic_sd": 6, "control_spacing": 7}])
def test_no_deformation_folds(patch, strength):
    random = np.random.default_rng(2)
    for _ in range(5):
        drawn = RandomDeformation(**strength).draw(random, patch, [1.0] * len(patch))
        assert 0 < drawn.share < 1
        smallest = jacobian(dense_field(drawn.points.double(), patch)).min()
        # weakened no more than needed: steps of a tenth, and places between those that were looked at
        assert SMALLEST_JACOBIAN - 0.1 < smallest < SMALLEST_JACOBIAN + 0.15


@pytest.mark.parametrize(("patch", "sd"), [((64, 48), 5.0), ((24, 32, 20), 1.5)])
def test_what_does_not_fold_is_left_as_it_was_drawn(patch, sd):
    kept = 0
    for seed in range(20):
        drawn = RandomDeformation(elastic_sd=sd).draw(np.random.default_rng(seed), patch, [1.0] * len(patch))
        points = np.random.default_rng(seed).normal(0, sd, drawn.points.shape)
        np.testing.assert_allclose(drawn.points.numpy(), drawn.share * points, rtol=1e-5)
        sound = jacobian(dense_field(torch.from_numpy(points), patch)).min() >= SMALLEST_JACOBIAN + 0.1
        assert drawn.share == 1 or not sound
        kept += drawn.share == 1
    assert 0 < kept < 20


def test_a_field_that_turns_over_twice_is_weakened():
    """-3 x along both axes: the determinant is (1 - 3)^2 > 0, yet everything stands on its head."""
    steps = np.linspace(-1, 1, 5)
    along = -1.5 * 20 * steps * (1.5 - 0.5 * steps**2)  # flat at the ends, as a mirrored spline is
    points = np.stack([np.repeat(along[:, None], 5, 1), np.repeat(along[None], 5, 0)])
    share = largest_share(points, (41, 41))
    assert jacobian(dense_field(torch.from_numpy(points), (41, 41)))[20, 20] > 1
    assert 0.1 < share < 0.4
    assert jacobian(dense_field(torch.from_numpy(share * points), (41, 41))).min() > 0.1


def test_a_patch_of_one_voxel_along_an_axis():
    drawn = RandomDeformation(elastic_sd=3, **STRONG).draw(np.random.default_rng(0), (16, 1, 12), (1, 1, 1))
    assert bool(torch.isfinite(drawn.coordinates((16, 1, 12), (8, 0, 6))).all())


def test_a_seed_repeats_and_another_differs():
    def once(seed):
        strength = RandomDeformation(elastic_sd=3, rotate_degrees=9, flip=True)
        return strength.draw(np.random.default_rng(seed), (8, 9), (1, 1)).coordinates((8, 9), (4, 4))

    assert torch.equal(once(7), once(7)) and not torch.equal(once(7), once(8))


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"unit": "cm"}, "'voxels' or 'mm'"),
        ({"elastic_sd": -1.0}, "elastic_sd -1"),
        ({"control_points": 1}, "control_points 1"),
        ({"control_spacing": 0.0}, "more than 0"),
        ({"scale": (1.2, 0.8)}, "smallest, largest"),
        ({"still_axis": 3}, "still_axis is 0, 1 or 2"),
        ({"still_axis": -1}, "not -1"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, word):
    with pytest.raises(ValueError, match=word):
        RandomDeformation(**wrong)


def test_a_flat_patch_has_no_still_axis():
    with pytest.raises(ValueError, match="still_axis 1 is for 3D patches: a patch of 2 axes"):
        RandomDeformation(still_axis=1).draw(np.random.default_rng(0), (8, 9), (1, 1))
