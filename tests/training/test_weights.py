"""Weights on the network's grid: the paper's map through the transform, from one mask per nucleus to the network."""

import io

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from conftest import ball, shared
from fewscan.scans import LabelReader, ScanReader
from fewscan.training import AddWeightMapd, ListLabelVoxelsd
from fewscan.training.border import border_weights, part_touching
from fewscan.training.material import _touching
from fewscan.training.weights import median_frequency, pieces
from fewscan.transforms import MatchLabelGridd, ToNetworkGridd

PAPER = {"height": 10.0, "sd": 5.0}


def weighed(numbers, border=PAPER, spacing=(1.0, 1.0, 1.0), dtype=np.int32, **options):
    """Parted classes and weights (*spatial) of an array on a grid of that spacing."""
    label = MetaTensor(torch.from_numpy(numbers.astype(dtype)[None]), affine=np.diag([*spacing, 1.0]))
    data = AddWeightMapd("label", border, **options)({"label": label, "image": 7})
    assert data["image"] == 7 and data["weight"].dtype == torch.float32
    return data["label"].numpy()[0], data["weight"].numpy()[0]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("case", ["separated", "touching", "ignore"])
def test_the_papers_map_through_the_transform(case, dims):
    reference = np.load(shared("parity/weight_maps.npz"))
    numbers = reference[f"{case}.inst"][..., None]
    classes, weight = weighed(numbers, merged=True, spatial_dims=dims)
    np.testing.assert_array_equal(classes[..., 0] > 0, reference[f"{case}.paper.labels"] > 0)
    np.testing.assert_array_equal(classes < 0, numbers < 0)
    np.testing.assert_allclose(weight[..., 0], reference[f"{case}.paper.weights"], rtol=0, atol=1e-5)


def test_without_border_weights_nothing_is_added_and_nothing_changed():
    label = MetaTensor(torch.randint(-1, 3, (1, 4, 5, 6)))
    data = {"label": label}
    assert AddWeightMapd("label", None)(data) == data


def test_masks_without_numbers_give_their_pieces_and_keep_every_voxel():
    """Two balls two voxels apart, in a mask of one value, as merged masks and as a label; in mm of the grid."""
    mask = (ball((24, 20, 18), (7, 9, 9), 5) + ball((24, 20, 18), (18, 9, 9), 5)).astype(np.int32)
    numbers = ndimage.label(mask, np.ones((3, 3, 3)))[0]
    assert numbers.max() == 2
    expected = border_weights(numbers, **PAPER, spacing=(1.0, 2.0, 4.0))
    for options in ({"merged": True}, {"merged": False}):
        classes, weight = weighed(mask, spacing=(0.5, 1.0, 2.0), **options)
        np.testing.assert_array_equal(classes, mask)
        np.testing.assert_allclose(weight, expected, atol=1e-5)
    assert weight.max() > 5


def test_a_2d_network_gets_distances_within_each_slice():
    """The in-plane spacing counts, whatever the distance of the slices; pieces are those of the slice."""
    random = np.random.default_rng(0)
    volume = ndimage.zoom((random.random((8, 7, 3)) > 0.55).astype(np.int32), (4, 4, 1), order=0)
    classes, weight = weighed(volume, spacing=(0.6, 0.3, 5.0), spatial_dims=2)
    for at in range(3):
        numbers = ndimage.label(volume[..., at], np.ones((3, 3)))[0]
        expected = border_weights(numbers, **PAPER, spacing=(2.0, 1.0))
        np.testing.assert_array_equal(classes[..., at], volume[..., at])
        np.testing.assert_allclose(weight[..., at], expected, atol=1e-5)


def test_objects_of_different_labels_need_no_gap_and_unknown_voxels_have_no_weight():
    """A and P of a hippocampus touch along their whole face: no voxel of them becomes background."""
    classes = np.zeros((20, 12, 9), np.int32)
    classes[4:10, 3:9, 2:7], classes[10:16, 3:9, 2:7] = 1, 2
    classes[:, :, 8] = -1
    parted, weight = weighed(classes)
    np.testing.assert_array_equal(parted, classes)
    np.testing.assert_array_equal(weight, np.where(classes < 0, 0, 1))  # one object of each label: no border term


def test_two_objects_of_one_label_beside_one_of_another():
    classes = np.zeros((30, 9, 9), np.int32)
    classes[2:8, 2:7, 2:7], classes[11:17, 2:7, 2:7], classes[20:26, 2:7, 2:7] = 1, 1, 2
    parted, weight = weighed(classes)
    expected = border_weights(pieces(np.where(classes == 1, classes, 0)), **PAPER)
    np.testing.assert_array_equal(parted, classes)
    np.testing.assert_allclose(weight, np.where(classes > 0, 1, expected), atol=1e-5)


@pytest.mark.parametrize("shape", [(30, 20), (11, 9, 8)])
def test_pieces_are_those_of_each_value_by_itself(shape):
    values = np.random.default_rng(3).integers(-1, 5, shape).astype(np.int32)
    found = pieces(values)
    np.testing.assert_array_equal(found[values <= 0], values[values <= 0])
    names, count = np.zeros(shape, int), 0
    for value in range(1, 5):
        numbered, more = ndimage.label(values == value, np.ones((3,) * len(shape)))
        names[numbered > 0] = numbered[numbered > 0] + count
        count += more
    both = np.unique(np.stack([found[values > 0], names[values > 0]]), axis=1)
    assert both.shape[1] == count == len(np.unique(found[values > 0]))


def discs(boxes, finer=1):
    """An 8-bit picture of discs; `finer` gives it smooth edges."""
    picture = Image.new("L", (64 * finer, 64 * finer))
    for box in boxes:
        ImageDraw.Draw(picture).ellipse([edge * finer for edge in box], fill=255)
    return picture.resize((64, 64), Image.Resampling.BOX)


def as_jpeg(picture, quality):
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return Image.open(content)


ONE = [(12.3, 14.1, 41.7, 40.2)]
TWO = [*ONE, (45, 45, 60, 58)]


def with_a_grey_edge(picture):
    values = np.asarray(picture).copy()
    values[(values > 0) & (np.roll(values, 1, 0) == 0)] = 128
    return Image.fromarray(values)


@pytest.mark.parametrize(
    "picture",
    [
        discs(ONE, 4),
        discs(ONE, 16),
        discs(TWO, 16),
        discs(ONE).filter(ImageFilter.GaussianBlur(1)),
        discs(TWO).filter(ImageFilter.GaussianBlur(3)),
        as_jpeg(discs(ONE), 95),
        as_jpeg(discs(TWO), 75),
        with_a_grey_edge(discs(ONE)),
    ],
    ids=["smooth", "smoother", "two", "blurred", "much blurred", "jpeg 95", "jpeg 75", "two shades"],
)
def test_shades_are_no_numbers_of_objects(picture):
    """Plan finds no objects in them, and training leaves every voxel of the mask where it is."""
    values = np.asarray(picture)[..., None]
    numbers = np.unique(values, return_inverse=True)[1].reshape(values.shape).astype(np.int32)
    assert len(np.unique(numbers)) > 2 and _touching(numbers) is None
    classes, weight = weighed(numbers, merged=True, spatial_dims=2)
    np.testing.assert_array_equal(classes, numbers > 0)
    found = ndimage.label(numbers[..., 0] > 0, np.ones((3, 3)))[0]
    np.testing.assert_allclose(weight[..., 0], border_weights(found), atol=1e-5)


def test_kinds_of_objects_are_no_numbers_of_objects():
    """Two kinds of four cells each; more than three pieces a number."""
    kinds = np.kron(np.array([[1, 0, 2, 0, 1, 0, 2], [0] * 7, [2, 0, 1, 0, 2, 0, 1]]), np.ones((5, 5), int))
    numbers = kinds.astype(np.int32)[..., None]
    assert _touching(numbers) is None
    classes, _ = weighed(numbers, merged=True, spatial_dims=2)
    np.testing.assert_array_equal(classes, numbers > 0)


def test_cells_of_which_some_are_tiny_are_objects():
    cells = np.zeros((30, 30), np.int32)
    cells[2:10, 2:10], cells[2:10, 10:20], cells[15:22, 5:12], cells[15, 20], cells[25:27, 25] = 1, 2, 3, 4, 5
    for numbers in (cells[..., None], np.repeat(cells[..., None], 3, axis=2)):
        assert _touching(numbers) == (5, 2)
        classes, _ = weighed(numbers, merged=True, spatial_dims=2)
        assert (classes[..., 0] == 0)[2:10, 2:20].any(1).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("merged", [False, True])
def test_sections_of_one_object_are_no_neighbours(axis, merged):
    """A ball of which every fourth slice is annotated: in each slice one object, so no border term, as in the whole."""
    whole = ball((30, 31, 32), (15, 15, 16), 10).astype(np.int32)
    annotated = np.arange(whole.shape[axis]) % 4 == 0
    sparse = np.moveaxis(whole.copy(), axis, 0)
    sparse[~annotated] = -1
    classes, weight = weighed(np.moveaxis(sparse, 0, axis), merged=merged)
    np.testing.assert_array_equal(weight, np.moveaxis(np.where(sparse < 0, 0, 1), 0, axis))
    np.testing.assert_array_equal(classes, np.moveaxis(sparse, 0, axis))


def test_two_objects_in_annotated_slices_have_the_border_of_their_slice():
    """Distances in the plane, by its own spacing; of a border of unknown slices nothing is in the way."""
    volume = ball((24, 20, 18), (6, 9, 9), 5) + ball((24, 20, 18), (18, 9, 9), 5)
    sparse = volume.astype(np.int32)
    sparse[:, :, np.arange(18) % 3 != 0] = -1
    weight = weighed(sparse, spacing=(2.0, 1.0, 4.0))[1]
    for at in range(0, 18, 3):
        expected = border_weights(ndimage.label(volume[..., at], np.ones((3, 3)))[0], **PAPER, spacing=(2.0, 1.0))
        np.testing.assert_allclose(weight[..., at], expected, atol=1e-5)
    block = volume.astype(np.int32)
    block[:, :, :4] = block[:, :, 14:] = -1
    own = np.where(block < 0, -1, ndimage.label(volume, np.ones((3, 3, 3)))[0])
    np.testing.assert_allclose(weighed(block)[1], border_weights(own), atol=1e-5)


@pytest.mark.parametrize("border", [{"height": 10.0}, {"height": 10.0, "sd": 0}, {"height": 1.0, "sd": 1.0, "w": 1.0}])
def test_a_border_that_is_none_is_refused(border):
    with pytest.raises(ValueError, match="border_weights"):
        AddWeightMapd("label", border)


# --- from files -------------------------------------------------------------------------------------------------------


def loaded(image, masks, spacing=None, **options):
    """As train.json does it."""
    steps = [
        LoadImaged("image", ScanReader, ensure_channel_first=True),
        LoadImaged("label", LabelReader(["cell"], True, instances=True, **options), ensure_channel_first=True),
        MatchLabelGridd("label"),
        ToNetworkGridd("image", spacing, 2, ["label"]),
        AddWeightMapd("label", PAPER, merged=True, spatial_dims=2),
        ListLabelVoxelsd("label"),
    ]
    return Compose(steps)({"image": str(image), "label": [str(mask) for mask in masks]})


def test_touching_nuclei_get_a_gap_that_counts():
    """Each real nucleus has a mask of its own; the numbers come from the files themselves, read by Pillow alone."""
    touching = 0
    for folder in sorted(shared("data/dsb2018").iterdir())[:12]:
        masks = sorted((folder / "masks").glob("*.png")) if folder.is_dir() else []
        if not 2 <= len(masks) <= 60:
            continue
        data = loaded(next((folder / "images").iterdir()), masks)
        numbers = np.zeros(np.asarray(Image.open(masks[0])).shape, int)
        for number, mask in enumerate(masks, start=1):
            numbers[np.asarray(Image.open(mask)) > 0] = number
        numbers = numbers.T
        classes, weight = data["label"].numpy()[0, ..., 0], data["weight"].numpy()[0, ..., 0]
        gap = (numbers > 0) & (classes == 0)
        np.testing.assert_array_equal(classes > 0, part_touching(numbers))
        assert (weight[gap] > 5).all() and (weight[classes > 0] == 1).all()
        assert (classes[tuple(data["label_voxels"][0].numpy().T[:2])] == 1).all() and "known_voxels" not in data
        whole, parted = (ndimage.label(mask, np.ones((3, 3)))[1] for mask in (numbers > 0, classes > 0))
        if gap.any():
            touching += 1
            assert parted > whole
    assert touching >= 3


def test_a_map_of_numbers_is_as_good_as_a_mask_each(tmp_path):
    """Also where numbers are large and have gaps, on a finer grid, and where 65535 was not annotated."""
    numbers = np.zeros((30, 40), np.uint16)
    numbers[4:12, 5:15], numbers[12:22, 8:20], numbers[4:12, 15:30] = 3, 900, 40_000
    numbers[25:] = 65535
    Image.fromarray(numbers).save(tmp_path / "map.png")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, numbers.shape).astype(np.uint8))
    image.save(tmp_path / "image.png")
    masks = []
    for value in (3, 900, 40_000):
        masks.append(tmp_path / f"{value}.png")
        mask = np.where(numbers == value, 255, 0) + np.where(numbers == 65535, 7, 0)
        Image.fromarray(mask.astype(np.uint8)).save(masks[-1])
    one, several = (
        loaded(tmp_path / "image.png", files, unlabelled=value)
        for files, value in (([tmp_path / "map.png"], 65535), (masks, 7))
    )
    own = np.where(numbers == 65535, -1, numbers.astype(np.int32)).T
    for data in (one, several):
        np.testing.assert_array_equal(data["label"].numpy()[0, ..., 0] > 0, part_touching(own))
        np.testing.assert_array_equal(data["label"].numpy()[0, ..., 0] < 0, own < 0)
        np.testing.assert_allclose(data["weight"].numpy()[0, ..., 0], border_weights(own), atol=1e-5)
        assert len(data["known_voxels"]) == (own >= 0).sum()


def test_on_a_coarser_grid_objects_that_touch_stay_apart(tmp_path):
    numbers = np.zeros((40, 40), np.uint8)
    numbers[4:20, 5:35], numbers[20:36, 5:35] = 1, 2
    for name in ("map", "image"):
        Image.fromarray(numbers).save(tmp_path / f"{name}.png")
    data = loaded(tmp_path / "image.png", [tmp_path / "map.png"], spacing=[2.0, 2.0, 1.0])
    classes = data["label"].numpy()[0, ..., 0]
    assert classes.shape == (20, 20) and data["weight"].shape == (1, 20, 20, 1)
    assert ndimage.label(classes, np.ones((3, 3)))[1] == 2


# --- class balance ----------------------------------------------------------------------------------------------------


def test_median_frequency_balancing():
    """SegNet's median(f) / f_c: shares 0.7, 0.2, 0.1 have the median 0.2."""
    np.testing.assert_allclose(median_frequency([700, 200, 100]), [2 / 7, 1, 2])
    np.testing.assert_allclose(median_frequency([900, 100]), [5 / 9, 5])


def test_a_class_without_voxels_is_not_ignored_if_it_turns_up():
    np.testing.assert_allclose(median_frequency([700, 0, 200, 100]), [2 / 7, 2, 1, 2])
    with pytest.raises(ValueError, match="no voxel"):
        median_frequency([0, 0])
