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
    told = advice(NS, curve(0.3, 0.4))
    assert told.startswith("label about 17 more") and "from 0.90 to about 0.93" in told
    assert advice(NS, curve(0.4, 0.15)).startswith("label about 32 more")


def test_flat_and_noisy_curves_give_no_number():
    assert advice(NS, curve(0.1, 0.01)).startswith("the curve is flat: twice as many")
    assert advice(NS, curve(0.3, 0.02, noise=0.25, cases=6)).startswith("the curve is too noisy")
    assert "too few" in advice([1, 2], curve(0.3, 0.4)[:, :2]) and "too few" in advice(NS, curve(0.3, 0.4)[:2])


def test_only_cases_that_were_scored_at_each_size_count():
    rows = {5: [{"case": "a", "dice": 0.7}, {"case": "b", "dice": 0.8}], 1: [{"case": "b", "dice": 0.5}]}
    ns, dice = table(rows)
    assert ns == [1, 5] and dice.tolist() == [[0.5, 0.8]]
