"""What more labels would give, from trainings on fewer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = (1, 2, 5)
DRAWS = 1000
WORTH = 0.005
"""Gain in Dice below which labelling twice as many scans is not worth it."""


def sizes(training: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, ... below the number of groups that a fold trains on."""
    series = (step * 10**power for power in range(6) for step in STEPS)
    return [n for n in series if n < training]


@dataclass(frozen=True)
class PowerLaw:
    """1 - Dice = a n^-b over the number n of labelled groups; b's interval of 90 % is over resampled groups."""

    a: float
    b: float
    low: float
    high: float

    def dice(self, n: float) -> float:
        """Expected mean Dice with n labelled groups."""
        return float(1 - self.a * n**-self.b)


def fit(ns: Sequence[float], dice: NDArray[np.float64], seed: int = 0) -> PowerLaw:
    """The power law through the mean Dice at each n, by least squares of the logarithms.

    Args:
        ns: numbers of labelled groups, at least two.
        dice: (groups, len(ns)) of each tested group with each n.
        seed: of the 1,000 bootstrap draws of the groups that give the interval.
    """
    x = np.log(np.asarray(ns, dtype=np.float64))

    def line(means: NDArray[np.float64]) -> tuple[float, float]:
        slope, start = np.polyfit(x, np.log(np.clip(1 - means, 1e-4, None)), 1)
        return float(np.exp(start)), -float(slope)

    random = np.random.default_rng(seed)
    draws = [line(dice[random.integers(len(dice), size=len(dice))].mean(axis=0))[1] for _ in range(DRAWS)]
    low, high = np.percentile(draws, (5, 95))
    return PowerLaw(*line(dice.mean(axis=0)), float(low), float(high))


def advice(ns: Sequence[float], dice: NDArray[np.float64], total: int, unit: str, seed: int = 0) -> str:
    """In words, how many more to label than the `total` that there are; honest where the curve does not say.

    Asks for as many as would remove a quarter of the error, at most twice as many as there are. `ns`, `dice` and
    `seed` are those of `fit`; `unit` is what is counted, "scans" or "groups".
    """
    if len(ns) < 3 or len(dice) < 3:
        return f"{len(ns)} sizes and {len(dice)} tested {unit} are too few for a learning curve to say anything"
    law, n = fit(ns, dice, seed), float(total)
    doubled = law.dice(2 * n) - law.dice(n)
    at_best = (1 - law.dice(n)) * (1 - 2.0**-law.high)
    if law.low <= 0 and at_best >= 4 * WORTH:
        return (
            f"the curve is too noisy to say how many more to label: twice as many {unit} would give between "
            f"{(1 - law.dice(n)) * (1 - 2.0**-law.low):+.2f} and {at_best:+.2f} Dice"
        )
    if law.low <= 0 or doubled < WORTH:
        return (
            f"the curve is flat: twice as many labelled {unit} would give about {max(doubled, 0):.3f} Dice more; look "
            "at the worst cases and their labels, or train longer, before labelling"
        )
    more = int(np.ceil(min(n * (4 / 3) ** (1 / law.b), 3 * n) - n))
    return (
        f"label about {more} more {unit}: along the curve so far (a power law through {len(ns)} points, exponent "
        f"{law.b:.2f}, 90 % interval {law.low:.2f} to {law.high:.2f}) mean Dice would go from {law.dice(n):.2f} to "
        f"about {law.dice(n + more):.2f}; curves bend, so do it in steps"
    )


def table(records: Mapping[int, Sequence[Mapping[str, Any]]]) -> tuple[list[int], NDArray[np.float64]]:
    """The sizes, rising, and mean Dice (groups, sizes) of each group's cases that were scored at every size.

    `records`: for each size the rows of all folds' cases, each with `case`, `group` and `dice`.
    """
    ns = sorted(records)
    scores = {n: {(row["group"], row["case"]): row["dice"] for row in records[n]} for n in ns}
    common = sorted(set.intersection(*(set(own) for own in scores.values())))
    means = [
        [np.mean([scores[n][key] for key in cases]) for n in ns]
        for cases in (list(own) for _, own in itertools.groupby(common, key=lambda key: key[0]))
    ]
    return ns, np.array(means, dtype=np.float64).reshape(-1, len(ns))
