"""The loss against its formula in NumPy."""

import numpy as np
import pytest
import torch

from fewscan.errors import BundleError
from fewscan.networks import UNet
from fewscan.training import SegmentationLoss, prepare_batch


def by_formula(logits, label):
    """Cross-entropy plus 1 - soft Dice, voxel by voxel, over the voxels whose label is not -1."""
    batch, classes = logits.shape[:2]
    seen = [
        (np.exp(column) / np.exp(column).sum(), int(truth))
        for n in range(batch)
        for column, truth in zip(logits[n].reshape(classes, -1).T, label[n].ravel(), strict=True)
        if truth >= 0
    ]
    cross_entropy = np.mean([-np.log(p[truth]) for p, truth in seen])
    dice = [
        (2 * sum(p[c] for p, truth in seen if truth == c) + 1)
        / (sum(p[c] for p, _ in seen) + sum(truth == c for _, truth in seen) + 1)
        for c in range(1, classes)
    ]
    return cross_entropy + 1 - np.mean(dice)


def example(shape, classes=3, unknown=0.3):
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (2, classes, *shape))
    label = random.integers(0, classes, (2, 1, *shape))
    label[random.random(label.shape) < unknown] = -1
    return torch.from_numpy(logits).float(), torch.from_numpy(label)


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_equals_its_formula(shape, unknown):
    logits, label = example(shape, unknown=unknown)
    loss = SegmentationLoss()(logits, label)
    assert float(loss) == pytest.approx(by_formula(logits.double().numpy(), label.numpy()), rel=1e-5)


def test_unknown_voxels_have_no_influence_and_no_gradient():
    logits, label = example((5, 7))
    other = torch.where((label < 0).expand_as(logits), 100 * torch.rand_like(logits), logits)
    assert torch.equal(SegmentationLoss()(logits, label), SegmentationLoss()(other, label))
    logits.requires_grad_()
    SegmentationLoss()(logits, label).backward()
    moves = logits.grad.abs().sum(1, keepdim=True) > 0
    assert torch.equal(moves, label >= 0)


def test_without_a_labelled_voxel_the_loss_is_zero_and_trains_nothing():
    logits, label = example((5, 7), unknown=1.1)
    logits.requires_grad_()
    loss = SegmentationLoss()(logits, label)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_valid_networks_are_compared_with_the_centre_of_the_label():
    logits, label = example((5, 8))
    around = torch.full((2, 1, 9, 14), 2)
    around[:, :, 2:7, 3:11] = label
    assert torch.equal(SegmentationLoss()(logits, around), SegmentationLoss()(logits, label))


def test_a_sure_and_right_answer_costs_nothing_a_wrong_one_much():
    label = torch.randint(0, 2, (1, 1, 6, 6))
    right = 40 * (torch.nn.functional.one_hot(label[:, 0], 2).movedim(-1, 1).float() - 0.5)
    assert float(SegmentationLoss()(right, label)) < 1e-6
    assert float(SegmentationLoss()(-right, label)) > 20


def test_deep_supervision_weighs_each_answer_half_as_much_as_the_one_before():
    (fine, label), (coarse, _), (coarser, _) = (example((5, 7)) for _ in range(3))
    answers = [fine, coarse.flip(2) * 0.5, coarser * 2]
    single = [by_formula(answer.double().numpy(), label.numpy()) for answer in answers]
    expected = (single[0] + single[1] / 2 + single[2] / 4) / 1.75
    assert float(SegmentationLoss()(answers, label)) == pytest.approx(expected, rel=1e-5)


def test_deep_supervision_reaches_the_coarse_heads():
    network = UNet(2, 1, 3, (4, 8, 8, 8), deep_supervision=True)
    label = torch.randint(0, 3, (2, 1, 13, 17))
    SegmentationLoss()(network(torch.rand(2, 1, 13, 17)), label).backward()
    assert all(float(head.weight.grad.abs().sum()) > 0 for head in (network.head, *network.coarse_heads))


# --- weights ----------------------------------------------------------------------------------------------------------


def by_weighted_formula(logits, label, weight, class_weights):
    """The weighted cross-entropy of the docstring, voxel by voxel."""
    classes = logits.shape[1]
    columns = np.concatenate([one.reshape(classes, -1).T for one in logits])
    top = bottom = 0.0
    for column, truth, w in zip(columns, label.ravel(), weight.ravel(), strict=True):
        if truth >= 0:
            share = w * class_weights[truth]
            top -= share * np.log(np.exp(column[truth]) / np.exp(column).sum())
            bottom += share
    return top / bottom


def dice_alone(logits, label):
    """The formula without its cross-entropy."""
    return by_formula(logits, label) - by_weighted_formula(logits, label, np.ones(label.shape), (1, 1, 1))


def weights_of(label):
    return torch.from_numpy(np.random.default_rng(1).uniform(0, 11, label.shape).astype(np.float32))


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
def test_border_weights_class_weights_and_unknown_voxels_together(shape):
    logits, label = example(shape)
    weight, class_weights = weights_of(label), (0.3, 1.7, 4.0)
    batch = {"image": torch.zeros(2, 1, *shape), "label": label, "weight": weight}
    _, target = prepare_batch(batch, "cpu")
    loss = SegmentationLoss(class_weights)(logits, target)
    said, truth = logits.double().numpy(), label.numpy()
    expected = dice_alone(said, truth) + by_weighted_formula(said, truth, weight.numpy(), class_weights)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_deep_supervision_weighs_voxels_too():
    logits, label = example((5, 7))
    target, one = torch.cat([label.float(), weights_of(label)], 1), SegmentationLoss((1.0, 2.0, 3.0))
    several = one([logits, logits / 2], target)
    assert float(several) == pytest.approx(float(one(logits, target) + one(logits / 2, target) / 2) / 1.5, rel=1e-6)


def test_the_sum_of_the_weights_divides():
    """Two voxels, their answers 0.8 and 0.4 sure of the truth: (3 ln 1/0.8 + 2 ln 1/0.4) / 5; ten times w, the same."""
    logits = torch.tensor([[0.2, 0.4], [0.8, 0.6]]).log().reshape(1, 2, 1, 2)
    label = torch.tensor([[[[1.0, 0.0]]]])
    weight = torch.tensor([[[[1.0, 2.0]]]])
    overlap, size = 0.8, 1 + 0.8 + 0.6
    expected = (3 * np.log(1 / 0.8) + 2 * np.log(1 / 0.4)) / 5 + 1 - (2 * overlap + 1) / (size + 1)
    loss = SegmentationLoss((1.0, 3.0))
    assert float(loss(logits, torch.cat([label, weight], 1))) == pytest.approx(expected, rel=1e-6)
    assert float(loss(logits, torch.cat([label, 10 * weight], 1))) == pytest.approx(expected, rel=1e-6)


def test_weights_of_one_change_nothing():
    logits, label = example((5, 7))
    ones = torch.cat([label.float(), torch.ones(label.shape)], 1)
    plain = SegmentationLoss()(logits, label)
    assert torch.equal(SegmentationLoss((1.0, 1.0, 1.0))(logits, ones), plain)


def test_what_stands_at_unknown_voxels_does_not_matter():
    """Neither their weight nor what the network says there; the gradient of all others is the same."""
    logits, label = example((5, 7))
    weight, unknown = weights_of(label), label < 0
    gradients = []
    for value in (0.0, 1.0, 1e6):
        said = torch.where(unknown.expand_as(logits), value, logits).requires_grad_()
        target = torch.cat([label.float(), weight.masked_fill(unknown, value)], 1)
        loss = SegmentationLoss((0.5, 1.0, 2.0))(said, target)
        loss.backward()
        gradients.append((float(loss.detach()), said.grad))
    assert all(loss == gradients[0][0] and torch.equal(grad, gradients[0][1]) for loss, grad in gradients)
    assert not gradients[0][1][unknown.expand_as(logits)].any()


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_weights_without_a_labelled_voxel_train_nothing(weight):
    logits, label = example((5, 7), unknown=1.1)
    logits.requires_grad_()
    loss = SegmentationLoss((1.0, 2.0, 3.0))([logits, logits], torch.cat([label.float(), label * 0 + weight], 1))
    loss.backward()
    assert float(loss.detach()) == 0 and not logits.grad.any()


def test_where_all_weights_are_zero_dice_alone_is_left():
    logits, label = example((5, 7))
    loss = SegmentationLoss()(logits, torch.cat([label.float(), torch.zeros(label.shape)], 1))
    assert float(loss) == pytest.approx(dice_alone(logits.double().numpy(), label.numpy()), rel=1e-5)


def test_valid_networks_are_compared_with_the_centre_of_the_weights():
    logits, label = example((5, 8))
    target = torch.cat([label.float(), weights_of(label)], 1)
    around = torch.full((2, 2, 9, 14), 2.0)
    around[:, :, 2:7, 3:11] = target
    assert torch.equal(SegmentationLoss()(logits, around), SegmentationLoss()(logits, target))


def test_without_weights_the_target_is_the_label():
    batch = {"image": torch.rand(2, 1, 4, 4), "label": torch.randint(0, 2, (2, 1, 4, 4))}
    image, target = prepare_batch(batch, "cpu", dtype=None)
    assert torch.equal(image, batch["image"]) and torch.equal(target, batch["label"])


@pytest.mark.parametrize("weights", [(1.0, 2.0), (0.0, 0.0, 0.0), (1.0, -1.0, 1.0)])
def test_class_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(BundleError, match="class_weights"):
        SegmentationLoss(weights)(*example((5, 7)))
