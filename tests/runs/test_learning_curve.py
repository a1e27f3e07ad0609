"""The power law is found where there is one, and the advice is honest where there is none."""

import numpy as np
import pytest

from fewscan.runs.learning_curve import advice, fit, sizes, table

NS = [1, 2, 5, 10, 16]


def curve(a, b, noise=0.0, cases=12, seed=0):
    """(cases, sizes) of Dice with mean 1 - a n^-b; each case has its own difficulty at all sizes, and noise at each."""
    random = np.random.default_rng(seed)
    difficulty = random.normal(0, 0.03, cases)
    difficulty -= difficulty.mean()
    each = random.normal(0, noise, (cases, len(NS))) if noise else 0.0
    return 1 - a * np.asarray(NS) ** -b - difficulty[:, None] + each


def test_nested_sizes():
    assert (
        sizes(16) == [1, 2, 5, 10] and sizes(10) == [1, 2, 5] and sizes(1) == [] and sizes(60) == [1, 2, 5, 10, 20, 50]
    )


def test_an_exact_power_law_is_found():
    law = fit(NS, curve(0.3, 0.4))
    assert (law.a, law.b) == pytest.approx((0.3, 0.4)) and law.low <= 0.4 <= law.high
    assert law.dice(32) == pytest.approx(1 - 0.3 * 32**-0.4)


def test_how_many_more_remove_a_quarter_of_the_error():
    """n (4/3)^(1/b): from 16 to 32.9 scans; where that were too many, three times as many."""
    told = advice(NS, curve(0.3, 0.4), 16, "scans")
    assert told.startswith("label about 17 more scans") and "from 0.90 to about 0.93" in told
    assert advice(NS, curve(0.4, 0.15), 16, "scans").startswith("label about 32 more")


def test_more_is_counted_from_all_that_are_labelled_not_from_those_of_a_fold():
    """Folds trained on 16 of 20: 20 (4/3)^(1/0.4) = 41.06, so 22 more than there are."""
    told = advice(NS, curve(0.3, 0.4), 20, "groups")
    assert told.startswith("label about 22 more groups") and f"from {1 - 0.3 * 20**-0.4:.2f} to" in told


def test_flat_and_noisy_curves_give_no_number():
    assert advice(NS, curve(0.1, 0.01), 16, "scans").startswith("the curve is flat: twice as many")
    assert advice(NS, curve(0.3, 0.02, noise=0.25, cases=6), 16, "scans").startswith("the curve is too noisy")
    assert "too few" in advice([1, 2], curve(0.3, 0.4)[:, :2], 3, "scans")
    assert "too few" in advice(NS, curve(0.3, 0.4)[:2], 16, "scans")


def test_only_cases_that_were_scored_at_each_size_count():
    rows = {
        5: [{"case": "a", "group": "p", "dice": 0.7}, {"case": "b", "group": "p", "dice": 0.8}],
        1: [{"case": "b", "group": "p", "dice": 0.5}],
    }
    ns, dice = table(rows)
    assert ns == [1, 5] and dice.tolist() == [[0.5, 0.8]]


def test_a_group_counts_once_however_many_slices_it_has():
    scores = {1: (0.2, 0.4, 0.8), 2: (0.4, 0.6, 0.9)}
    rows = {
        n: [{"case": f"s{at}", "group": "pq"[at // 2], "dice": dice} for at, dice in enumerate(own)]
        for n, own in scores.items()
    }
    ns, dice = table(rows)
    assert ns == [1, 2]
    np.testing.assert_allclose(dice, [[0.3, 0.5], [0.8, 0.9]])
