"""The steps around the network, against NumPy."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from fewscan.errors import BundleError, GeometryError, LabelError, ScanError
from fewscan.transforms import (
    DecideLabelsd,
    LeaveOutUnknownd,
    MatchLabelGridd,
    NormaliseIntensityd,
    ToNetworkGridd,
)

AFFINE = np.array([[0, 0, 2.5, -31.5], [-0.9, 0, 0, 12.25], [0, 0.8, 0, 80], [0, 0, 0, 1]])


def scan(array, affine=AFFINE) -> MetaTensor:
    return MetaTensor(torch.from_numpy(np.asarray(array)), affine=torch.from_numpy(np.array(affine)))


def normalised(array, window=None) -> np.ndarray:
    result = NormaliseIntensityd("image", window)({"image": scan(array)})["image"]
    assert np.array_equal(result.affine.numpy(), AFFINE)
    assert result.dtype == torch.float32
    return result.numpy()


def test_each_channel_gets_mean_0_and_deviation_1_between_its_percentiles():
    image = np.random.default_rng(0).gamma(2, 100, (2, 9, 8, 7)) * [[[[1]]], [[[50]]]]
    for channel, answer in zip(image, normalised(image), strict=True):
        clipped = np.clip(channel, *np.percentile(channel, (0.5, 99.5)))
        np.testing.assert_allclose(answer, (clipped - clipped.mean()) / clipped.std(), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float64])
def test_the_type_of_the_file_does_not_count(dtype):
    image = np.random.default_rng(0).integers(0, 200, (1, 9, 8, 7))
    np.testing.assert_allclose(normalised(image.astype(dtype)), normalised(image.astype(np.float32)), atol=1e-6)


def test_a_window_is_clipped_and_becomes_minus_1_to_1():
    image = np.array([-2000, -100, 0, 100, 300, 5000.0]).reshape(1, 6, 1, 1)
    assert normalised(image, (-100, 300)).ravel().tolist() == [-1, -1, -0.5, 0, 1, 1]


def test_one_window_for_all_channels_or_one_for_each():
    ct = np.array([-2000, -100, 0, 100, 300, 5000.0]).reshape(1, 6, 1, 1)
    pet = np.random.default_rng(0).gamma(2, 3, ct.shape)
    both = np.concatenate([ct, pet])
    scaled, standard = normalised(ct, (-100, 300)), normalised(pet)
    assert float(standard.std()) == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(normalised(both, [[-100, 300], None]), np.concatenate([scaled, standard]))
    np.testing.assert_array_equal(normalised(both, [None, [0, 9]])[1], normalised(pet, [0, 9])[0])
    np.testing.assert_array_equal(normalised(both, (-100, 300))[0], scaled[0])
    np.testing.assert_array_equal(normalised(both, [None, None]), normalised(both))


@pytest.mark.parametrize("window", [[None], [None, None, [0, 1]], [[0, 1], [0, 1], [0, 1]]])
def test_a_list_of_windows_for_other_channels_is_refused(window):
    with pytest.raises(BundleError, match=f"has 2 channels, but intensity_window lists {len(window)}"):
        normalised(np.zeros((2, 5, 4, 3)), window)


@pytest.mark.parametrize("value", [0, 1000.0, -7])
def test_a_constant_channel_becomes_0(value):
    assert not normalised(np.full((1, 5, 4, 3), value)).any()


@pytest.mark.parametrize("factor", [1e36, 1e39, -1e39])
def test_numbers_beyond_single_precision_are_no_constant_image(factor):
    values = np.random.default_rng(0).uniform(1, 999, (1, 9, 8, 7)) * factor
    image = MetaTensor(torch.from_numpy(values), meta={"filename_or_obj": "x.nii.gz"})
    with np.errstate(over="ignore"), pytest.raises(ScanError, match=r"x.nii.gz: .*beyond single precision"):
        NormaliseIntensityd("image")({"image": image})


def test_a_few_bright_voxels_on_a_constant_ground_do_not_vanish():
    image = np.zeros((1, 20, 20, 20))
    image[0, 3:5, 3:5, 3:5] = 100  # 0.1 % of the volume
    answer = normalised(image)
    assert (answer[image > 0] > 10).all()
    assert abs(float(answer.mean())) < 1e-5


@pytest.mark.parametrize("window", [(3, 3), (5, 1), (1, 2, 3), [], [None, 5], [[5, 1], None]])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(ValueError, match="low < high"):
        NormaliseIntensityd("image", window)


def decided(logits, labels):
    data = ToNetworkGridd("image")({"image": scan(np.zeros((1, 5, 4, 3)))})
    data["pred"] = logits.permute(0, 3, 1, 2).flip([1])  # left, posterior, superior are k reversed, i and j here
    return DecideLabelsd("pred", labels=labels)(data)["pred"]


def test_masks_hold_the_values_of_the_label_table_on_the_scans_grid():
    classes = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (5, 4, 3)))
    logits = torch.nn.functional.one_hot(classes).movedim(-1, 0).float()
    labels = [{"value": 255, "name": "cell"}, {"value": 7, "name": "wall"}]
    pred = decided(logits, labels)
    assert np.array_equal(pred[0].numpy(), np.array([0, 255, 7])[classes.numpy()])
    assert np.array_equal(pred.affine.numpy(), AFFINE)
    assert np.array_equal(decided(logits, None)[0].numpy(), classes.numpy())
    with pytest.raises(LabelError, match="3 classes"):
        decided(logits, labels[:1])


def test_a_label_in_another_order_of_axes_is_turned_onto_the_image():
    label = np.random.default_rng(0).integers(0, 3, (1, 5, 4, 3))
    turned = np.flip(label.transpose(0, 3, 1, 2), 1).copy()  # new axes: k reversed, i, j
    step = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 2], [0, 0, 0, 1]])
    data = {"image": scan(np.zeros((1, 5, 4, 3))), "label": scan(turned, AFFINE @ step)}
    matched = MatchLabelGridd("label")(data)["label"]
    assert np.array_equal(matched.numpy(), label)
    assert matched.dtype == torch.uint8
    assert np.array_equal(matched.affine.numpy(), AFFINE)


def test_a_label_that_lies_elsewhere_is_refused_by_name():
    moved = AFFINE.copy()
    moved[0, 3] += 2.5
    label = scan(np.zeros((1, 5, 4, 3)), moved)
    label.meta["filename_or_obj"] = "labels/case1.nii.gz"
    with pytest.raises(GeometryError, match=r"labels/case1\.nii\.gz"):
        MatchLabelGridd("label")({"image": scan(np.zeros((1, 5, 4, 3))), "label": label})


@pytest.mark.parametrize(
    ("highest", "dtype"), [(255, torch.uint8), (256, torch.int16), (32767, torch.int16), (32768, torch.int32)]
)
def test_labels_take_the_smallest_type_from_the_file_to_the_network(highest, dtype):
    label = np.random.default_rng(0).integers(0, highest + 1, (1, 5, 4, 3))
    label.flat[7] = highest
    data = {"image": scan(np.zeros((1, 5, 4, 3))), "label": scan(label.astype(np.float32))}  # as LoadImaged gives it
    data = ToNetworkGridd("image", label_keys=["label"])(MatchLabelGridd("label")(data))
    assert data["label"].dtype == dtype
    assert np.array_equal(data["label"].numpy()[:, ::-1].transpose(0, 2, 3, 1), label)


def test_unknown_voxels_count_in_no_score():
    """Dice of every label as from the known voxels alone, by MONAI."""
    from monai.metrics import DiceMetric

    random = np.random.default_rng(0)
    pred, label = torch.from_numpy(random.integers(0, 3, (2, 1, 9, 8, 7)))
    label[torch.from_numpy(random.random(label.shape) < 0.4)] = -1
    data = LeaveOutUnknownd("pred")({"pred": pred, "label": label, "other": 1})
    dice = DiceMetric(include_background=False, num_classes=3)([data["pred"]], [data["label"]])[0]  # as in train.json
    known = label >= 0
    for value in (1, 2):
        said, true = (array[known] == value for array in (pred, label))
        assert float(dice[value - 1]) == pytest.approx(2 * float((said & true).sum()) / float(said.sum() + true.sum()))
    assert (label < 0).any()  # the input is left alone
