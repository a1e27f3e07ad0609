"""The MONAI transforms: alone, in a dictionary, on batches; a MetaTensor's geometry counts and does not go stale."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose
from scipy import ndimage

from fewscan.training import RandElasticAffine, RandElasticAffined

BENT = {"elastic_sd": 1.0, "rotate_degrees": 30, "scale": (0.9, 1.1), "flip": True}
MODES = ["linear", "nearest", "weight"]


def volumes(shape, seed=0):
    random = np.random.default_rng(seed)
    return {
        "image": torch.from_numpy(random.normal(size=(2, *shape)).astype(np.float32)),
        "label": torch.from_numpy(random.integers(0, 4, (1, *shape)).astype(np.uint8)),
        "weight": torch.from_numpy(random.uniform(1, 5, (1, *shape)).astype(np.float32)),
    }


@pytest.mark.parametrize("shape", [(21, 18), (13, 12, 9)])
def test_the_dictionary_bends_all_keys_as_the_array_transform_does(shape):
    data = volumes(shape)
    moved = RandElasticAffined(list(data), MODES, **BENT).set_random_state(3)(data)
    for key, mode in zip(data, MODES, strict=True):
        alone = RandElasticAffine(**BENT).set_random_state(3)(data[key], mode)
        assert torch.equal(moved[key], alone)
    assert (moved["label"][moved["label"] >= 0] < 4).all() and moved["label"].dtype == torch.int64
    assert not torch.equal(moved["image"], data["image"])


def test_weight_and_label_follow_the_image():
    """A blob that is image, weight and label at once stays in one place."""
    blob = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(40, 36)), 4)
    blob = torch.from_numpy(((blob - blob.min()) / np.ptp(blob)).astype(np.float32))[None]
    data = {"image": blob, "label": (blob > 0.5).long(), "weight": blob}
    moved = RandElasticAffined(list(data), MODES, **BENT).set_random_state(1)(data)
    known = moved["label"] >= 0
    inside = torch.from_numpy(ndimage.binary_erosion(known[0].numpy(), iterations=2))[None]
    torch.testing.assert_close(moved["weight"][inside], moved["image"][inside], rtol=0, atol=1e-5)
    clear = known & ((moved["image"] - 0.5).abs() > 0.1)
    assert torch.equal(moved["label"][clear] == 1, moved["image"][clear] > 0.5)


def test_each_item_of_a_batch_is_bent_by_itself():
    data = volumes((16, 14, 12))
    image = torch.stack([data["image"]] * 3)
    moved = RandElasticAffine(batched=True, **BENT).set_random_state(5)(image)
    alone = RandElasticAffine(**BENT).set_random_state(5)(data["image"])
    assert moved.shape == image.shape and torch.equal(moved[0], alone)
    assert not torch.equal(moved[1], moved[0]) and not torch.equal(moved[2], moved[1])


def test_a_collated_batch_has_the_spacing_of_each_item():
    """Turned in mm: an item is bent as it is alone, whatever spacing the others have."""
    shape, affines = (16, 14, 12), [np.diag([1.0, 2.0, 0.5, 1.0]), np.diag([3.0, 1.0, 1.0, 1.0])]
    items = [{"image": MetaTensor(volumes(shape)["image"], affine=affine)} for affine in affines]
    for first in (0, 1):
        batch = list_data_collate([items[first], items[1 - first]])["image"]
        moved = RandElasticAffine(batched=True, rotate_degrees=45).set_random_state(2)(batch)
        alone = RandElasticAffine(rotate_degrees=45).set_random_state(2)(items[first]["image"])
        assert torch.equal(moved[0], alone)
    assert not torch.equal(moved[0], RandElasticAffine(rotate_degrees=45).set_random_state(2)(items[0]["image"]))


def test_a_turned_sphere_in_mm_stays_a_sphere():
    """An ellipsoid of voxels that is a sphere in mm looks the same from every side; as cubes of 1 mm it would not."""
    spacing = np.array([1.0, 2.0, 1.0])
    places = np.stack(np.meshgrid(*[np.arange(n) for n in (31, 17, 31)], indexing="ij"))
    mm = (places - np.array([15, 8, 15])[:, None, None, None]) * spacing[:, None, None, None]
    sphere = torch.from_numpy(np.exp(-(mm**2).sum(0) / 50).astype(np.float32))[None]
    turn = RandElasticAffine(rotate_degrees=90).set_random_state(0)
    moved = turn(MetaTensor(sphere, affine=np.diag([*spacing, 1])))
    assert float((moved - sphere).abs().max()) < 0.03  # of linear interpolation
    assert float((turn.set_random_state(0)(sphere) - sphere).abs().max()) > 0.2


def test_the_result_has_no_affine():
    image = MetaTensor(torch.rand(1, 9, 9, 9), affine=np.diag([1, 2, 3, 1]))
    moved = RandElasticAffined("image", **BENT)({"image": image})["image"]
    assert type(moved) is torch.Tensor and type(RandElasticAffine()(image)) is torch.Tensor


@pytest.mark.parametrize("patch", [(7, 6, 5), (20, 6, 5)])
def test_without_strength_or_by_chance_it_is_a_crop(patch):
    numbers = torch.arange(12.0 * 11 * 10).reshape(1, 12, 11, 10)
    corners = set()
    for seed in range(8):
        crop = RandElasticAffine(patch, prob=0.0, **BENT).set_random_state(seed)(numbers, "nearest")
        known = crop >= 0
        corner = np.unravel_index(int(crop[known].min()), (12, 11, 10))
        ends = [min(at + n, size) for at, n, size in zip(corner, patch, (12, 11, 10), strict=True)]
        assert torch.equal(crop[known], numbers[(0, *map(slice, corner, ends))].flatten())
        corners.add(corner)
    assert len(corners) > 3
    thirds = [RandElasticAffine(prob=0.3, **BENT).set_random_state(seed)(numbers) for seed in range(100)]
    assert 15 < sum(not torch.equal(moved, numbers) for moved in thirds) < 45


def test_a_change_of_spacing_in_the_same_resample():
    """Every other voxel of a grid of 0.5 mm is the grid of 1 mm."""
    image = MetaTensor(torch.rand(1, 21, 20, 9), affine=np.diag([0.5, 0.5, 1.0, 1.0]))
    ours = RandElasticAffine((10, 10, 9), patch_spacing_mm=(1.0, 1.0, 1.0))
    moved = ours.set_random_state(0)(image)
    between = [(image[0, a : a + 20 : 2, 0:20:2] + image[0, a + 1 : a + 21 : 2, 0:20:2]) / 2 for a in (0, 1)]
    between = [
        (b + (image[0, a : a + 20 : 2, 1:20:2] + image[0, a + 1 : a + 21 : 2, 1:20:2]) / 2) / 2
        for a, b in enumerate(between)
    ]
    assert min(float((moved[0] - b.as_tensor()).abs().max()) for b in between) < 1e-5


def test_slices_across_a_still_axis_stay_whole():
    """Each slice of the result is made of one slice of the image: a volume without the others gives the same."""
    image = MetaTensor(torch.rand(1, 20, 18, 9) + 1, affine=np.diag([0.5, 0.5, 4.0, 1.0]))
    alone = image.clone()
    alone[..., :4] = alone[..., 5:] = 0
    bend = RandElasticAffine(**BENT, still_axis=2)
    whole, one = (bend.set_random_state(3)(volume) for volume in (image, alone))
    (place,) = one[0].amax((0, 1)).nonzero().flatten().tolist()
    assert place == 4 and torch.equal(one[..., place], whole[..., place])
    assert not torch.equal(whole, image.as_tensor())


def test_in_a_compose_of_monai_it_is_seeded():
    data = volumes((12, 11))
    steps = Compose([RandElasticAffined(list(data), MODES, **BENT)])
    one, other, again = (steps.set_random_state(seed)(data)["image"] for seed in (1, 2, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_numpy_arrays_and_missing_keys():
    data = {"image": np.random.default_rng(0).normal(size=(1, 9, 8)).astype(np.float32)}
    ours = RandElasticAffined(["image", "label"], ["linear", "nearest"], allow_missing_keys=True, **BENT)
    moved = ours.set_random_state(0)(data)
    wanted = RandElasticAffine(**BENT).set_random_state(0)(torch.from_numpy(data["image"]))
    assert torch.equal(moved["image"], wanted) and "label" not in moved
    with pytest.raises(KeyError):
        RandElasticAffined(["image", "label"], **BENT)(data)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\(C, \*spatial\)"):
        RandElasticAffine()(torch.zeros(9, 9))
    with pytest.raises(ValueError, match="3 spatial axes"):
        RandElasticAffine((4, 4, 4))(torch.zeros(1, 9, 9))
    with pytest.raises(ValueError, match="'cubic' is no mode"):
        RandElasticAffined(["image", "label"], ["linear", "cubic"])
    with pytest.raises(ValueError, match="2 keys but 1 modes"):
        RandElasticAffined(["image", "label"], ["linear"])
    with pytest.raises(ValueError, match="still_axis 2 is for 3D patches"):
        RandElasticAffined("image", patch=(4, 4), still_axis=2)
    with pytest.raises(TypeError, match="elastic_strength"):
        RandElasticAffine(elastic_strength=3)
