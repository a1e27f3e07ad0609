"""The loss against its formula in NumPy."""

import numpy as np
import pytest
import torch

from fewscan.networks import UNet
from fewscan.training import SegmentationLoss


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
