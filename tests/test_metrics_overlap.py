"""Scores that count voxels, against sets of voxels and numbers worked out by hand."""

import numpy as np
import pytest

from fewscan.metrics import confusion, dice, iou, mean_iou, pixel_accuracy

SHAPE = (1, 17, 13, 5)


def noise(seed):
    random = np.random.default_rng(seed)
    return random.integers(0, 4, SHAPE).astype(np.uint8), random.integers(-1, 4, SHAPE).astype(np.int16)


def voxels(array, value, known):
    return {tuple(place) for place in np.argwhere((array == value) & known)}


def test_equals_sets_of_voxels():
    answer, truth = noise(0)
    known = truth >= 0
    counts = confusion(answer, truth, 4)
    shares = []
    for value in range(4):
        said, true = voxels(answer, value, known), voxels(truth, value, known)
        assert dice(counts)[value] == 2 * len(said & true) / (len(said) + len(true))
        assert iou(counts)[value] == len(said & true) / len(said | true)
        shares.append(len(said & true) / len(said | true))
    assert pixel_accuracy(counts) == (answer[known] == truth[known]).mean()
    assert mean_iou(counts) == pytest.approx(np.mean(shares), abs=1e-15)


def test_rows_are_the_truth_and_columns_the_answer():
    counts = confusion(np.array([1, 1, 2, 0]), np.array([1, 2, 2, -1]), 3)
    assert counts.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]
    np.testing.assert_array_equal(dice(counts), [np.nan, 2 / 3, 2 / 3])
    np.testing.assert_array_equal(iou(counts), [np.nan, 1 / 2, 1 / 2])
    assert pixel_accuracy(counts) == 2 / 3
    assert mean_iou(counts) == 1 / 2  # the class that neither side has is left out


def test_slabs_add_up_to_the_volume():
    answer, truth = noise(1)
    slabs = sum(confusion(answer[..., k], truth[..., k], 4) for k in range(SHAPE[-1]))
    np.testing.assert_array_equal(slabs, confusion(answer, truth, 4))


def test_nothing_known_has_no_score():
    counts = confusion(np.zeros(5, int), np.full(5, -1), 2)
    assert np.isnan([*dice(counts), *iou(counts), pixel_accuracy(counts), mean_iou(counts)]).all()


def test_a_class_on_one_side_only_scores_zero():
    counts = confusion(np.array([0, 0, 1]), np.array([0, 0, 0]), 2)
    assert dice(counts)[1] == iou(counts)[1] == 0


@pytest.mark.parametrize(
    ("answer", "truth", "told"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\).*\(3, 2\)"),
        (np.zeros(3, int), np.array([0, 1, 2]), "truth holds class indices from 0 to 2"),
        (np.array([0, -1, 1]), np.zeros(3, int), "answer holds class indices from -1 to 1"),
        (np.zeros(3), np.zeros(3, int), "answer has to hold class indices"),
    ],
)
def test_refuses_what_it_cannot_count(answer, truth, told):
    with pytest.raises(ValueError, match=told):
        confusion(answer, truth, 2)
