"""The challenges' scores, against their own scorers' output, pairs of pixels one by one, and numbers by hand."""

import json
from collections import deque

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from conftest import shared
from fewscan.metrics import Agreement, score_isbi2012, seg
from fewscan.metrics.isbi2012 import THRESHOLDS, count_pairs, v_info, v_rand
from fewscan.metrics.objects import basins, components

CASES = ("good", "merges", "splits", "perfect", "hard")


@pytest.fixture(scope="module")
def isbi():
    with np.load(shared("parity") / "isbi_metrics.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def ctc():
    with np.load(shared("parity") / "ctc_seg.npz") as file:
        return dict(file)


def same_objects(one, other):
    """Whether two images have the same objects under any numbers, and 0 in the same places."""
    pairs = {*zip(one.ravel().tolist(), other.ravel().tolist(), strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) and all(
        (a == 0) == (b == 0) for a, b in pairs
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threshold", ["0.3", "0.5", "0.7"])
def test_thinning_and_components_equal_the_challenges(isbi, case, threshold):
    for number in range(2):
        inside = isbi[f"{case}.prob"][number].T.astype(float) > float(threshold)  # files: (slice, row, column)
        assert same_objects(basins(inside), isbi[f"{case}.thin_t{threshold}"][number].T)
        truth = isbi[f"{case}.label"][number].T == 1
        assert same_objects(components(truth), isbi[f"{case}.gt_cc{number}"].T)


@pytest.mark.parametrize("case", CASES)
def test_scores_equal_the_challenges(isbi, case):
    expected = json.loads(str(isbi["scores_json"]))[case]["isbi_java"]
    score = score_isbi2012(isbi[f"{case}.prob"].transpose(2, 1, 0), isbi[f"{case}.label"].transpose(2, 1, 0))
    for ours, theirs in (
        (score.v_rand_macro, expected["max_vrand_thin_macro_0_1_0.1"]),
        (score.v_rand_micro, expected["max_vrand_thin_micro_0_1_0.1"]),
        (score.v_info_macro, expected["max_vinfo_thin_0_1_0.1"]),
        (score.old_rand_error, 1 - expected["max_fr_rand_f_0_1_0.1"]),
        (score.pixel_error, 1 - expected["max_pixel_f_0_1_0.1"]),
    ):
        assert ours == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("threshold", ["0.0", "0.3", "0.5", "0.7"])
def test_each_threshold_equals_the_challenges(isbi, case, threshold):
    expected = json.loads(str(isbi["scores_json"]))[case]["isbi_java"]["t" + threshold]
    inside = [one.T.astype(float) > float(threshold) for one in isbi[f"{case}.prob"]]
    truth = [components(one.T == 1) for one in isbi[f"{case}.label"]]
    thinned = [count_pairs(true, basins(one)) for true, one in zip(truth, inside, strict=True)]
    plain = [count_pairs(true, components(one)) for true, one in zip(truth, inside, strict=True)]
    rand = v_rand(thinned)
    for ours, theirs in (
        (rand.f, "vrand_thin_micro"),
        (rand.precision, "vrand_thin_prec_micro"),
        (rand.recall, "vrand_thin_rec_micro"),
        (np.mean([v_rand([table]).f for table in thinned]), "vrand_thin_macro"),
        (np.mean([v_info([table]).f for table in thinned]), "vinfo_thin"),
        (v_rand(plain).f, "fr_rand_fscore"),
    ):
        assert ours == pytest.approx(expected[theirs], abs=1e-9)


def flooded(inside):
    """Vincent and Soille's algorithm as they wrote it: distances, a fictitious pixel and a flag, corrected."""
    mask, line = -1, 0
    number = np.pad(label(inside)[0], 1, constant_values=-9)
    number[1:-1, 1:-1][~inside] = mask
    distance = np.zeros(number.shape, int)
    queue = deque()

    def near(x, y):
        return (x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)

    for place in zip(*np.nonzero(number == mask), strict=True):
        if any(number[other] > 0 for other in near(*place)):
            distance[place] = 1
            queue.append(place)
    queue.append(None)
    now, flag = 1, False
    while True:
        place = queue.popleft()
        if place is None:
            if not queue:
                return number[1:-1, 1:-1]
            queue.append(None)
            now += 1
            continue
        for other in near(*place):
            if number[other] >= 0 and distance[other] <= now:
                if number[other] > 0:
                    if number[place] == mask or (number[place] == line and flag):
                        number[place] = number[other]
                    elif number[place] != number[other]:
                        number[place], flag = line, False
                elif number[place] == mask:
                    number[place], flag = line, True
            elif number[other] == mask and distance[other] == 0:
                distance[other] = now + 1
                queue.append(other)


@pytest.mark.parametrize(("smooth", "share"), [(0, 0.1), (0, 0.4), (0.7, 0.3), (2, 0.2), (2, 0.5)])
def test_thinning_equals_the_algorithm_with_distances_and_flag(smooth, share):
    for seed in range(3):
        noise = gaussian_filter(np.random.default_rng(seed).random((41, 33)), smooth)
        inside = noise < np.quantile(noise, share)
        np.testing.assert_array_equal(basins(inside), flooded(inside))


def test_basins_meet_in_the_middle():
    inside = np.zeros((7, 3), bool)
    inside[0] = inside[6] = True
    assert basins(inside)[:, 1].tolist() == [1, 1, 1, 0, 2, 2, 2]
    assert (basins(np.zeros((4, 5), bool)) == 1).all()
    assert (basins(np.ones((4, 5), bool)) == 1).all()


def test_scores_equal_a_count_of_every_pair_of_pixels():
    random = np.random.default_rng(4)
    truth, answer = random.integers(0, 4, (2, 9, 7)), random.integers(0, 5, (2, 9, 7))
    tables = [count_pairs(true, said) for true, said in zip(truth, answer, strict=True)]
    cells = truth > 0
    true = (truth + 100 * np.arange(2)[:, None, None])[cells]  # slices share no object
    said = (answer + 100 * np.arange(2)[:, None, None])[cells]
    alone = answer[cells] == 0
    said[alone] = 1000 + np.arange(alone.sum())  # what is left out is an object of its own
    same_truth, same_answer = true[:, None] == true, said[:, None] == said
    both = (same_truth & same_answer & ~alone).sum() + alone.sum()
    assert v_rand(tables).precision == pytest.approx(both / same_answer.sum(), abs=1e-15)
    assert v_rand(tables).recall == pytest.approx(both / same_truth.sum(), abs=1e-15)

    def entropy(*labels):
        share = np.unique(np.stack(labels), axis=1, return_counts=True)[1] / len(true)
        return -(share * np.log(share)).sum()

    common = entropy(true) + entropy(said) - entropy(true, said)
    assert v_info(tables).precision == pytest.approx(common / entropy(said), abs=1e-12)
    assert v_info(tables).recall == pytest.approx(common / entropy(true), abs=1e-12)


def test_a_merge_costs_precision_and_a_split_recall():
    halves, whole = np.repeat([[1, 2]], 8, axis=0), np.ones((8, 2), int)
    assert v_rand([count_pairs(halves, whole)]) == Agreement(precision=0.5, recall=1.0)
    assert v_rand([count_pairs(whole, halves)]) == Agreement(precision=1.0, recall=0.5)
    assert v_info([count_pairs(halves, whole)]) == Agreement(precision=1.0, recall=0.0)
    assert v_info([count_pairs(whole, halves)]) == Agreement(precision=0.0, recall=1.0)
    assert v_rand([count_pairs(whole, whole)]).f == v_info([count_pairs(whole, whole)]).f == 1
    assert v_info([count_pairs(halves, whole)]).f == 0


def test_thresholds_are_the_challenges():
    assert len(THRESHOLDS) == 11
    assert THRESHOLDS[3] == 0.30000000000000004
    assert THRESHOLDS[-1] == 0.9999999999999999


def test_thinning_forgives_a_thick_membrane_and_the_old_scores_do_not():
    truth = np.ones((20, 12, 1), np.uint8)
    truth[10] = 0
    probability = np.ones(truth.shape, np.float32)
    probability[8:13] = 0  # five pixels thick
    score = score_isbi2012(probability, truth)
    assert (score.v_rand_macro, score.v_rand_micro, score.v_info_macro, score.v_info_micro) == (1, 1, 1, 1)
    inside, said = 19 * 12, 15 * 12
    assert score.pixel_error == pytest.approx(1 - 2 * said / (said + inside), abs=1e-15)
    left_out = inside - said
    a, b = (120 / inside) ** 2 + (108 / inside) ** 2, (96 / inside) ** 2 + (84 / inside) ** 2 + left_out / inside**2
    assert score.old_rand_error == pytest.approx(1 - 2 * b / (a + b), abs=1e-15)  # AB = B: nothing is merged


def test_refuses_a_stack_that_cannot_be_scored():
    truth = np.ones((5, 4, 2), np.uint8)
    probability = np.full(truth.shape, 0.5)
    for wrong, told in (
        ((probability[..., :1], truth), "one shape"),
        ((probability * 255, truth), "from 0 to 1, not from 127.5"),
        ((probability, truth * 255), r"holds \[255\]"),
        ((probability, truth * [1, 0]), "slice 1 of the truth"),
    ):
        with pytest.raises(ValueError, match=told):
            score_isbi2012(*wrong)


def test_seg_equals_py_ctcmetrics(ctc):
    frames = [(ctc[f"comp{number}"], ctc[f"ref{number}"]) for number in range(3)]
    assert seg(frames) == pytest.approx(float(ctc["SEG"]), abs=1e-12)
    assert seg(frames) == pytest.approx(ctc["per_object"].mean(), abs=1e-12)


def test_seg_by_hand():
    truth = np.array([[7, 7, 7, 7, 0, 0, 2, 2, 2, 2, 0, 300]])
    answer = np.array([[0, 5, 5, 5, 5, 0, 1, 1, 4, 4, 9, 0]])
    # 7: three of its four pixels, union five; 2: halves do not match; 300: missed; 9 is false and costs nothing
    assert seg([(answer, truth)]) == pytest.approx((3 / 5) / 3, abs=1e-15)
    assert seg([(answer, truth), (truth, truth)]) == pytest.approx((3 / 5 + 3) / 6, abs=1e-15)
    assert seg([(np.zeros_like(truth), truth)]) == 0


def test_seg_refuses_what_has_no_objects():
    nothing = np.zeros((3, 3), np.uint16)
    with pytest.raises(ValueError, match="nothing to score"):
        seg([(nothing, nothing)])
    with pytest.raises(ValueError, match="shape"):
        seg([(nothing, nothing[:2])])
    with pytest.raises(ValueError, match="object numbers"):
        seg([(nothing.astype(float), nothing)])
