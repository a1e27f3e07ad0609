"""When a loss counts as no longer falling."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

PLATEAU = 0.04
LEAST_LOSSES = 25
"""Of ten steps each: with fewer, the noise of the patches is as large as what is asked for."""
PLATEAU_RULE = (
    f"A training counts as converged where the mean loss of its last fifth lies less than {PLATEAU:.0%} below that of "
    f"its middle fifth; under {10 * LEAST_LOSSES} steps are too few to tell. The rate of learning falls to 0 with the "
    "budget, so a plateau says that this budget was used up, not that a longer training would give no more."
)


def has_plateaued(losses: Sequence[float]) -> bool | None:
    """By `PLATEAU_RULE`, of means of ten steps; None where there are too few to tell."""
    if len(losses) < LEAST_LOSSES:
        return None
    fifth = len(losses) // 5
    last, middle = statistics.fmean(losses[-fifth:]), statistics.fmean(losses[-3 * fifth : -2 * fifth])
    return middle - last < PLATEAU * middle
