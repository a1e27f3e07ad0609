"""Sampling against SciPy, far beyond the border too; weights and masks move with their image."""

import numpy as np
import pytest
import torch
from scipy import ndimage

import fewscan.training.resample as module
from fewscan.training.elastic import RandomDeformation
from fewscan.training.resample import resample

SHAPES = [(13, 18), (9, 12, 7), (9, 1, 7), (1, 5)]


def scattered(shape, patch, reach, seed=0):
    """(1, axes, *patch) places up to `reach` times the volume's size beyond it."""
    random = np.random.default_rng(seed)
    places = np.stack([random.uniform(-reach * n, (1 + reach) * n, patch) for n in shape])
    return torch.from_numpy(places.astype(np.float32))[None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reach", [-0.1, 0.3, 0.9, 5.0])
def test_equals_scipys_map_coordinates(shape, reach):
    random = np.random.default_rng(1)
    image = random.normal(size=(2, *shape)).astype(np.float32)
    label = random.integers(0, 5, (1, *shape)).astype(np.uint8)
    places = scattered(shape, (40, 30), reach)
    arrays = [torch.from_numpy(array)[None] for array in (image, label, image)]
    moved, classes, weight = (r[0].numpy() for r in resample(arrays, ["linear", "nearest", "weight"], places))
    at = places[0].double().numpy()
    for channel in range(2):
        mirrored = ndimage.map_coordinates(image[channel].astype(float), at, order=1, mode="reflect")
        np.testing.assert_allclose(moved[channel], mirrored, atol=3e-5 * max(1, reach))
        zero = ndimage.map_coordinates(image[channel].astype(float), at, order=1, mode="grid-constant", cval=0)
        np.testing.assert_allclose(weight[channel], zero, atol=3e-5)
    nearest = ndimage.map_coordinates(label[0].astype(int), at, order=0, mode="grid-constant", cval=-1)
    clear = (np.abs(at - np.floor(at) - 0.5) > 1e-4).all(axis=0)
    assert clear.mean() > 0.99 and np.array_equal(classes[0][clear], nearest[clear])


def test_a_batch_is_its_items_one_by_one():
    random = np.random.default_rng(0)
    image, label = torch.rand(3, 2, 20, 18, 16), torch.randint(0, 4, (3, 1, 20, 18, 16))
    strength = RandomDeformation(elastic_sd=1, rotate_degrees=30)
    places = torch.stack(
        [strength.draw(random, (9, 8, 7), (1, 1, 1)).coordinates((9, 8, 7), (5 * n, 9, 8)) for n in range(3)]
    )
    together = resample([image, label], ["linear", "nearest"], places)
    for n in range(3):
        alone = resample([image[n : n + 1], label[n : n + 1]], ["linear", "nearest"], [places[n]])
        assert all(torch.equal(one[0], all_[n]) for one, all_ in zip(alone, together, strict=True))


def test_pieces_join_without_a_seam(monkeypatch):
    image, label = torch.rand(1, 1, 30, 40), torch.randint(0, 9, (1, 1, 30, 40))
    places = scattered((30, 40), (50, 60), 0.2)
    whole = resample([image, label, image], ["linear", "nearest", "weight"], places)
    monkeypatch.setattr(module, "_PIECE", 7)
    parts = resample([image, label, image], ["linear", "nearest", "weight"], places)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


def test_voxels_themselves_are_exact_and_beyond_the_border_nothing_is_known():
    image, label = torch.rand(1, 2, 11, 9), torch.arange(99).reshape(1, 1, 11, 9)
    places = torch.stack(torch.meshgrid(torch.arange(-1.0, 4), torch.arange(1.0, 8), indexing="ij"))[None]
    moved, classes, valid = resample(
        [image, label, torch.ones_like(label, dtype=torch.bool)], ["linear", "nearest", "nearest"], places
    )
    assert torch.equal(moved[:, :, 1:], image[:, :, :4, 1:8]) and torch.equal(moved[:, :, 0], image[:, :, 0, 1:8])
    assert torch.equal(classes[:, :, 1:], label[:, :, :4, 1:8]) and (classes[:, :, 0] == -1).all()
    assert valid.dtype == torch.bool and valid[:, :, 1:].all() and not valid[:, :, 0].any()


def test_a_weight_map_moves_like_the_image_and_ends_with_the_volume():
    image = torch.rand(1, 1, 16, 14, 12)
    places = scattered((16, 14, 12), (900,), 0.2)
    moved, weight, ones = resample([image, image, torch.ones_like(image)], ["linear", "weight", "weight"], places)
    size = torch.tensor([16, 14, 12])[:, None]
    inside = ((places[0] >= 0) & (places[0] <= size - 1)).all(0)
    beyond = ((places[0] <= -1) | (places[0] >= size)).any(0)
    torch.testing.assert_close(weight[0, 0, inside], moved[0, 0, inside], rtol=0, atol=1e-5)
    torch.testing.assert_close(ones[0, 0, inside], torch.ones(int(inside.sum())))
    assert inside.sum() > 100 and beyond.sum() > 100 and (weight[0, 0, beyond] == 0).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_labels_of_any_integer_type_become_int64(dtype):
    label = torch.tensor([[0, 7], [200, 3]], dtype=torch.int64).to(dtype)[None, None]
    places = torch.tensor([[[-3.0, 0, 1, 1], [0, 1, 0, 5]]])
    (classes,) = resample([label], ["nearest"], places)
    assert torch.equal(classes, torch.tensor([[[-1, 7, 200, -1]]]))


def test_the_memory_is_that_of_the_patch_however_far_its_places_lie():
    """Only the volume is ever cut out: a place a billion voxels away costs no more than one beside it."""
    (moved,) = resample([torch.rand(1, 1, 5, 5)], ["weight"], torch.tensor([[[-1e9, 1e9, 2], [0.0, 2, 2]]]))
    assert torch.equal(moved[0, 0, :2], torch.zeros(2))


def test_nothing_is_made_on_another_device_than_the_arrays():
    """With `meta` as torch's default device, a tensor made without a device would be of no use."""
    image, label = torch.rand(1, 1, 9, 8), torch.ones(1, 1, 9, 8, dtype=torch.uint8)
    places = scattered((9, 8), (40,), 1)
    wanted = resample([image, label, image], ["linear", "nearest", "weight"], places)
    with torch.device("meta"):
        drawn = RandomDeformation(elastic_sd=1).draw(np.random.default_rng(0), (6, 5), (1, 1))
        assert drawn.coordinates((6, 5), (4, 4), "cpu").device.type == "cpu"
        moved = resample([image, label, image], ["linear", "nearest", "weight"], places)
    assert all(torch.equal(one, other) for one, other in zip(moved, wanted, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_what_the_cpu_gives():
    image, label = torch.rand(2, 1, 20, 18, 16), torch.randint(0, 4, (2, 1, 20, 18, 16))
    drawn = RandomDeformation(elastic_sd=1, rotate_degrees=30).draw(np.random.default_rng(0), (9, 8, 7), (1, 1, 1))
    results = []
    for device in ("cpu", "cuda"):
        places = torch.stack([drawn.coordinates((9, 8, 7), (5, 9, 8), device)] * 2)
        moved = resample([image.to(device), label.to(device)], ["linear", "nearest"], places)
        results.append([array.cpu() for array in moved])
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-4)
    assert (results[0][1] != results[1][1]).float().mean() < 1e-3


@pytest.mark.parametrize(
    ("arrays", "modes", "places", "words"),
    [
        ([torch.zeros(1, 1, 4, 4)], ["cubic"], torch.zeros(1, 2, 3), "'cubic' is no mode"),
        ([torch.zeros(1, 4, 4)], ["linear"], torch.zeros(1, 2, 3), r"\(N, C, \*spatial\)"),
        ([torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5)], ["linear"] * 2, torch.zeros(1, 2, 3), "does not fit"),
        ([torch.zeros(2, 1, 4, 4)], ["linear"], torch.zeros(1, 2, 3), "does not fit"),
        ([torch.zeros(1, 1, 4, 4)], ["linear"], torch.full((1, 2, 3), float("nan")), "finite"),
    ],
)
def test_what_does_not_fit_is_refused(arrays, modes, places, words):
    with pytest.raises(ValueError, match=words):
        resample(arrays, modes, places)
