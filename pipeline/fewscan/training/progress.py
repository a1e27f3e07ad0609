"""What a person sees of a training while it runs: the bar, the time left, where it will end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

STEPS_TO_TIME = 10


class Progress:
    """A progress bar with the finishing time, which is announced once ten steps are timed.

    Args:
        step: that the training goes on from.
        total: steps of the training; None where its time alone ends it.
    """

    def __init__(self, step: int, total: int | None) -> None:
        often = 0.2 if sys.stderr.isatty() else 15.0  # seconds; a log file needs fewer lines than a screen
        self._bar: tqdm[Any] = tqdm(total=total, initial=step, unit="step", smoothing=0.05, mininterval=often)
        self._first_step: int | None = None
        self._first_done = 0.0

    def show(
        self, step: int, epoch: int, loss: float, scores: Mapping[str, float], total: int | None, seconds_left: float
    ) -> None:
        """After a step.

        Args:
            step, epoch, loss: of the training.
            scores: the latest of held-out cases.
            total: steps of the whole training; None where `seconds_left` end it.
            seconds_left: of a training with a time.
        """
        now = time.monotonic()
        if self._first_step is None:
            self._first_step, self._first_done = step, now
        timed = step - self._first_step
        if timed >= STEPS_TO_TIME:
            seconds = (now - self._first_done) / timed
            expected = step + math.ceil(max(0.0, seconds_left) / seconds) if total is None else total
            self._bar.total = expected
            if timed == STEPS_TO_TIME:
                _announce(expected, step, seconds)
        held_out = "".join(f", Dice {score:.3f}" for score in scores.values())
        self._bar.set_postfix_str(f"epoch {epoch}, loss {loss:.3f}{held_out}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        """The bar is drawn no more."""
        self._bar.close()


def _announce(total: int, step: int, seconds: float) -> None:
    left = (total - step) * seconds
    end = time.strftime("%H:%M", time.localtime(time.time() + left))
    tqdm.write(f"{seconds:.3g} s a step: about {total} steps, done at about {end}, in {left / 60:.1f} minutes")
