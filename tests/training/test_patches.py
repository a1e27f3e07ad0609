"""Patches: a function of the seed and their number alone, and cut where they say."""

import itertools
import os
import pickle

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import default_collate

from conftest import ball
from fewscan.errors import BundleError
from fewscan.training import ListLabelVoxelsd, PatchDataset, RandomIntensityd, RandomPatchd, StepSampler, patches

BENT = {"elastic_sd": 1.5, "rotate_degrees": 15.0, "scale": (0.85, 1.2), "flip": True}


class Case:
    """A volume whose mean tells its number; stands for reading files. Picklable, as workers need it."""

    def __init__(self, shape):
        self.shape = shape

    def __call__(self, item):
        number = item["number"]
        image = np.random.default_rng(number).normal(10 * number, 1, (2, *self.shape))
        label = torch.from_numpy(ball(self.shape, [n // 2 for n in self.shape], 3))[None]
        data = {"image": MetaTensor(image, affine=np.diag([0.9, 0.8, 2.5, 1])), "label": label}
        return ListLabelVoxelsd("label")(data)


def dataset(cases=5, seed=0, patch=(8, 8, 8), shape=(15, 13, 11), **bend):
    augment = [RandomPatchd(patch, **(bend or BENT)), RandomIntensityd()]
    return PatchDataset([{"number": n} for n in range(cases)], Case(shape), augment, seed)


def equal(one, other):
    return torch.equal(one["image"], other["image"]) and torch.equal(one["label"], other["label"])


def test_a_patch_depends_on_its_number_and_the_seed_alone():
    one, other = dataset(), dataset()
    wanted = one[7]
    for number in (3, 0, 12, 7, 7):
        again = other[number]
    assert equal(again, wanted)
    assert equal(pickle.loads(pickle.dumps(other))[7], wanted)
    assert not equal(one[8], wanted)
    assert not equal(dataset(seed=1)[7], wanted)


def test_workers_give_the_same_patches():
    items = dataset()
    loader = DataLoader(items, sampler=StepSampler(8), batch_size=2, num_workers=2)
    alone = [default_collate([items[n], items[n + 1]]) for n in range(0, 8, 2)]
    for theirs, ours in zip(loader, alone, strict=True):
        assert equal(theirs, ours)


def test_each_case_comes_once_a_round():
    items = dataset(patch=(4, 4, 4), rotate_degrees=0.0)
    items.augment = items.augment[:1]  # intensities as they are, to tell the cases apart
    seen = [round(float(items[n]["image"].mean()) / 10) for n in range(20)]
    rounds = [seen[first : first + 5] for first in range(0, 20, 5)]
    assert all(sorted(cases) == [0, 1, 2, 3, 4] for cases in rounds)
    assert len({tuple(cases) for cases in rounds}) > 1


def test_the_ranks_partition_the_numbers_of_each_epoch():
    samplers = [StepSampler(24, rank, 3) for rank in range(3)]
    for epoch in range(3):
        for sampler in samplers:
            sampler.epoch = epoch
        parts = [list(sampler) for sampler in samplers]
        assert [len(part) for part in parts] == [len(sampler) for sampler in samplers] == [8, 8, 8]
        assert sorted(itertools.chain.from_iterable(parts)) == list(range(24 * epoch, 24 * (epoch + 1)))


@pytest.mark.parametrize("patch", [(8, 8, 8), (7, 5, 4), (6, 7)])
def test_a_patch_that_is_not_bent_is_a_crop(patch):
    """Without elastic, rotation and scale the patch holds the volume's voxels themselves, of one slice in 2D."""
    shape = (15, 13, 11)
    numbers = torch.arange(np.prod(shape)).reshape(1, *shape)
    label = (numbers % 3).long()
    data = {"image": MetaTensor(numbers.float(), affine=np.diag([0.9, 0.8, 2.5, 1])), "label": label}
    cut = RandomPatchd(patch)
    for seed in range(12):
        item = cut.set_random_state(seed)(ListLabelVoxelsd("label")(data))
        image, corner = item["image"][0], np.unravel_index(round(float(item["image"].min())), shape)
        ends = [at + n for at, n in zip(corner, patch, strict=False)]
        crop = (*map(slice, corner, ends), *corner[len(patch) :])
        torch.testing.assert_close(image, numbers[0].float()[crop], rtol=0, atol=2e-3)  # of values up to 2144
        assert torch.equal(item["label"][0], label[0][crop])


@pytest.mark.parametrize("still", [0, 1, 2])
def test_no_slice_is_mixed_with_the_next_across_a_still_axis(still):
    """Slices that hold their own number hold it in the patch, exactly; without a still axis they do not."""
    shape, patch = [24, 24, 24], [10, 10, 10]
    shape[still], patch[still] = 15, 9
    numbers = torch.arange(15.0).reshape([15 if axis == still else 1 for axis in range(3)]).expand(1, *shape)
    data = {"image": MetaTensor(numbers.clone()), "label": numbers.long()}
    data = ListLabelVoxelsd("label")(data)
    orders = set()
    for seed in range(10):
        item = RandomPatchd(patch, **BENT, still_axis=still).set_random_state(seed)(data)
        along = item["image"][0].movedim(still, 0).flatten(1)
        assert torch.equal(along, along[:, :1].expand_as(along))
        first, *_, last = along[:, 0].tolist()
        assert {first, last} == {min(first, last), min(first, last) + 8}
        orders.add(first < last)
        known = item["label"] >= 0
        assert known.any() and torch.equal(item["label"][known].float(), item["image"][known])
    assert orders == {True, False}
    mixed = RandomPatchd(patch, **BENT).set_random_state(0)(data)["image"]
    assert (mixed != mixed.round()).float().mean() > 0.5


def test_a_flat_patch_is_refused_a_still_axis_before_training():
    with pytest.raises(ValueError, match="still_axis 2 is for 3D patches"):
        RandomPatchd((8, 8), **BENT, still_axis=2)


def test_patches_reach_every_voxel():
    cut, reached = RandomPatchd((4, 3, 2)), torch.zeros(9, 8, 5)
    numbers = torch.arange(360.0).reshape(1, 9, 8, 5)
    data = {"image": MetaTensor(numbers), "label": torch.zeros(1, 9, 8, 5), "label_voxels": []}
    for seed in range(300):
        reached.view(-1)[cut.set_random_state(seed)(data)["image"].round().long().ravel()] = 1
    assert reached.all()


def test_beyond_the_volume_the_label_is_unknown():
    """A patch larger than the volume lies about its middle; the image is mirrored there, the label is -1."""
    image, label = torch.rand(1, 4, 6, 8), torch.randint(0, 3, (1, 4, 6, 8))
    item = RandomPatchd((8, 8, 8))(ListLabelVoxelsd("label")({"image": MetaTensor(image), "label": label}))
    assert torch.equal(item["label"][:, 2:6, 1:7], label)
    torch.testing.assert_close(item["image"][:, 2:6, 1:7], image, rtol=0, atol=1e-5)
    known = item["label"] >= 0
    assert int(known.sum()) == label.numel()
    mirrored = np.pad(image[0].numpy(), [(2, 2), (1, 1), (0, 0)], mode="symmetric")
    np.testing.assert_allclose(item["image"][0].numpy(), mirrored, atol=1e-5)


def test_half_of_the_patches_are_centred_on_a_label():
    """A single labelled voxel in a large volume: chance alone would hit it in one of 100 patches."""
    label = torch.zeros(1, 40, 40, 40, dtype=torch.long)
    label[0, 30, 7, 21] = 1
    data = ListLabelVoxelsd("label")({"image": MetaTensor(torch.rand(1, 40, 40, 40)), "label": label})
    cut = RandomPatchd((9, 9, 9))
    found = [cut.set_random_state(seed)(data)["label"] for seed in range(100)]
    centred = [int(patch[0, 4, 4, 4]) for patch in found]
    assert 35 <= sum(centred) <= 65


def test_label_voxels_lists_each_label_whole_where_it_is_small():
    label = torch.zeros(1, 30, 40, 50, dtype=torch.long)
    label[0, 2:5, 3, 4] = 5
    label[0, 10:] = 2
    large, small = ListLabelVoxelsd("label")({"label": label})["label_voxels"]
    assert torch.equal(small, (label[0] == 5).nonzero())
    assert 10_000 < len(large) <= 20_000
    assert (label[0][tuple(large.T)] == 2).all()


@pytest.mark.parametrize(("size", "every"), [(200, 2), (200, 3)])
def test_the_listed_voxels_lie_in_every_annotated_slice(size, every):
    """Of sizes and distances that share divisors, so that each n-th voxel lies in the same slices."""
    label = torch.full((1, size, size, 16 * every), -1, dtype=torch.int16)
    label[..., ::every] = 0
    label[:, size // 4 : size // 2, size // 4 : size // 2, ::every] = 1
    data = ListLabelVoxelsd("label")({"label": label})
    for voxels, known in ((data["known_voxels"], 0), (data["label_voxels"][0], 1)):
        counts = torch.bincount(voxels[:, 2], minlength=16 * every)
        assert len(voxels) == len(voxels.unique(dim=0)) == 20_000
        assert (label[0][tuple(voxels.T)] >= known).all()
        assert counts[::every].min() > 1000 and counts.sum() == counts[::every].sum()  # 1250 each, sd 34
    again = ListLabelVoxelsd("label")({"label": label})
    assert torch.equal(again["known_voxels"], data["known_voxels"])


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_listed_voxels_are_those_that_numpy_picks_from_all(order):
    """With the same seed, of more voxels than are looked at at once, in whatever order they lie in memory."""
    values = np.random.default_rng(3).integers(-1, 3, (90, 80, 70), dtype=np.int8)
    data = ListLabelVoxelsd("label")({"label": torch.from_numpy(np.asarray(values, order=order))[None]})
    assert len(data["label_voxels"]) == 2
    masks = [values >= 0, values == 1, values == 2]
    for voxels, mask in zip([data["known_voxels"], *data["label_voxels"]], masks, strict=True):
        places = np.argwhere(mask)
        wanted = places[np.random.default_rng(0).choice(len(places), 20_000, replace=False)]
        np.testing.assert_array_equal(voxels.numpy(), wanted)


class Largest(TorchDispatchMode):
    """Knows the bytes of the largest tensor that torch gave meanwhile."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [one.nbytes for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        self.nbytes = max([self.nbytes, *given])
        return result


def test_no_list_of_voxels_is_ever_larger_than_the_label():
    """Of a volume with a few unknown voxels (nnU-Net's `ignore`) nearly all are known, and half are of a label."""
    label = torch.zeros(1, 120, 160, 160, dtype=torch.int16)
    label[:, 60:] = 1
    label[0, :2, :3, :5] = -1
    with Largest() as largest:
        data = ListLabelVoxelsd("label")({"label": label})
    assert len(data["known_voxels"]) == len(data["label_voxels"][0]) == 20_000
    assert largest.nbytes <= label.nbytes


@pytest.mark.parametrize("patch", [(8, 9, 7), (9, 7)])
def test_a_weight_map_goes_along_with_its_patch(patch):
    """A weight map that is the image itself: equal inside the volume, 0 beyond it; 2D patches from the same slice."""
    image = torch.rand(1, 12, 11, 10) + 1
    data = {"image": MetaTensor(image), "label": torch.zeros(1, 12, 11, 10, dtype=torch.uint8), "weight": image}
    data = ListLabelVoxelsd("label")(data)
    cut, beyond = RandomPatchd(patch, **BENT), 0
    for seed in range(10):
        item = cut.set_random_state(seed)(data)
        share = cut.set_random_state(seed)({**data, "weight": torch.ones(1, 12, 11, 10)})["weight"]  # inside
        assert item["weight"].dtype == torch.float32 and item["weight"].shape == (1, *patch)
        full, none = share > 1 - 1e-5, share == 0
        torch.testing.assert_close(item["weight"][full], item["image"][full], rtol=0, atol=1e-4)
        assert full.any() and (item["weight"][none] == 0).all() and (item["label"][none] == -1).all()
        beyond += int(none.sum())
    assert beyond


def test_the_dataset_hands_on_what_there_is():
    def case(item):
        return {**Case((15, 13, 11))(item), **({"weight": torch.ones(1, 15, 13, 11)} if item["number"] else {})}

    items = PatchDataset([{"number": 0}, {"number": 1}], case, [RandomPatchd((4, 4, 4)), RandomIntensityd()])
    assert {tuple(sorted(map(str, items[n]))) for n in range(2)} == {("image", "label"), ("image", "label", "weight")}


def test_cases_are_kept_on_the_device_while_they_fit(monkeypatch):
    """`meta` stands for a GPU: two cases of (2 x 4 or 8 + 1) bytes a voxel fit, the third stays where it was read."""
    size = 15 * 13 * 11 * (2 * Case((15, 13, 11))({"number": 0})["image"].element_size() + 1)
    monkeypatch.setattr(patches, "room_for_cases", lambda device: 2 * size)
    items = PatchDataset([{"number": n} for n in range(3)], Case((15, 13, 11)), [], device="meta")
    where = [{items.case(n)[key].device.type for key in ("image", "label")} for n in (2, 0, 1, 2)]
    assert where == [{"meta"}, {"meta"}, {"cpu"}, {"meta"}]
    assert items.case(0)["image"].affine.device.type == "cpu"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system starts workers anew")
def test_a_forked_worker_does_not_ask_the_gpu_for_its_memory(monkeypatch):
    """CUDA raises there, for it was begun before."""

    def of_a_gpu(device):
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    monkeypatch.setattr(patches, "room_for_cases", of_a_gpu)
    items = PatchDataset([{"number": 0}], Case((6, 5, 4)), [], device="meta")
    loader = torch.utils.data.DataLoader(items, num_workers=1, multiprocessing_context="fork")
    (batch,) = loader
    assert torch.equal(torch.as_tensor(batch["image"][0]), torch.as_tensor(Case((6, 5, 4))({"number": 0})["image"]))
    with pytest.raises(RuntimeError, match="Cannot re-initialize"):
        items[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_patches_made_on_a_gpu_are_those_of_the_cpu():
    items = dataset()
    items.augment = items.augment[:1]  # noise comes from the device's own generator
    moved = PatchDataset(items.data, items.transform, items.augment, device="cuda")
    for n in range(4):
        ours, theirs = items[n], moved[n]
        assert theirs["image"].device.type == "cuda"
        torch.testing.assert_close(theirs["image"].cpu(), ours["image"], rtol=0, atol=2e-3)  # of values up to 40
        assert (theirs["label"].cpu() != ours["label"]).float().mean() < 1e-2


def test_no_case_is_refused():
    with pytest.raises(BundleError, match="training"):
        PatchDataset([], Case((4, 4, 4)), [])
