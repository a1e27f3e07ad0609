"""Which cases are trained on and which are tested on; never both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewscan.errors import PairingError
from fewscan.scans import Case
from fewscan.scans.content import is_wanted
from fewscan.training.alike import Thumbnail, near_identical, stack_correlation
from fewscan.training.split import group_cases, join_groups

FOLDS = 5


@dataclass(frozen=True)
class Fold:
    """Cases to train on and cases to test on; no image file is in both."""

    training: tuple[Case, ...]
    test: tuple[Case, ...]

    def __post_init__(self) -> None:
        trained, tested = ({file.resolve() for case in part for file in case.image} for part in self.parts)
        if trained & tested:
            raise PairingError(f"{min(trained & tested)} would be trained and tested on; list it in one case only")

    @property
    def parts(self) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """(training, test)."""
        return self.training, self.test


@dataclass(frozen=True)
class Grouping:
    """What of the cases stays on one side of a test."""

    of_case: tuple[str, ...]
    """The group of each case."""
    how: str
    """How the groups were found, in words."""
    stack: bool
    """Whether the cases look like slices of one stack, so that runs of them have to be tested (`in_order`)."""
    warnings: tuple[str, ...]
    """Why a test says less than it seems to."""


def find_groups(
    cases: Sequence[Case], thumbnails: Sequence[Thumbnail], table: Mapping[str, str] | None = None
) -> Grouping:
    """Groups by names and patients, or by the user's `table` (`group_cases`), joined where images are near-identical.

    Where all cases would be one group by their likeness, it counts for nothing, and a warning says so.
    """
    of_case, how = group_cases(cases, table)
    warnings: list[str] = []
    pairs = near_identical(thumbnails)
    joined = join_groups(of_case, [(one, other) for one, other, _ in pairs])
    seen = {joined[at]: at for at in reversed(_in_order(cases))}  # one of each: copies are no neighbours
    shown = [at for at in _in_order(cases) if seen[joined[at]] == at or len(seen) == 1]
    stack = len(set(of_case)) == len(cases) and stack_correlation([thumbnails[at] for at in shown]) is not None
    if pairs:
        names = ", ".join(f"{cases[one].name} and {cases[other].name}" for one, other, _ in pairs[:3])
        more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        if len(set(joined)) > 1 or len(set(of_case)) == 1:
            of_case, how = joined, f"{how}; near-identical images stay together: {names}{more}"
        else:
            warnings.append(f"all images are near-identical ({names}{more}), so this is hardly a test")
    if stack:
        warnings.append(
            "the images look like neighbouring slices of one stack: this holds for more slices of it, not for another"
        )
    return Grouping(tuple(of_case), how, stack, tuple(warnings))


def _in_order(cases: Sequence[Case]) -> list[int]:
    """The numbers of the cases, in the order in which the numbers in their names count: `s2` before `s10`."""

    def counted(at: int) -> list[tuple[str, int]]:
        return [(text, int(number or 0)) for text, number in re.findall(r"([^0-9]*)([0-9]*)", cases[at].name)]

    return sorted(range(len(cases)), key=counted)


def make_folds(
    cases: Sequence[Case],
    root: Path,
    count: int | None = None,
    test: Sequence[str] = (),
    seed: int = 0,
    grouping: tuple[Sequence[str], str] | None = None,
    in_order: bool = False,
) -> tuple[list[Fold], str]:
    """Folds of labelled cases, and in words how they were made.

    Slices or scans of one patient stay together (`fewscan.training.split.group_cases`), except where the user or a
    data list says which cases are for the test.

    Args:
        cases: in an order that does not change.
        root: the data folder, which `test` patterns are below.
        count: folds; None for five, and one for each group where there are fewer, or one fold with the `validation`
            cases of a data list as its test.
        test: patterns on a case's paths or file names; what matches is the test of one fold.
        seed: of the drawing.
        grouping: the group of each case and how it was found; None takes those of `group_cases`.
        in_order: groups that follow each other, as the numbers in the names of their cases count, are tested together,
            instead of drawn ones: slices of one stack. Those on either side of a run are not trained on, as long as
            half of the others are left.

    Raises:
        PairingError: a fold would have nothing to train or to test on.
    """
    groups, how = group_cases(cases) if grouping is None else grouping
    if test or (count is None and any(case.split == "validation" for case in cases)):
        chosen = [_matches(case, root, test) if test else case.split == "validation" for case in cases]
        fold = Fold(
            tuple(case for case, is_test in zip(cases, chosen, strict=True) if not is_test),
            tuple(case for case, is_test in zip(cases, chosen, strict=True) if is_test),
        )
        if not fold.training or not fold.test:
            what = f"--test {' '.join(test)}" if test else "the data list"
            raise PairingError(
                f"{what} takes {len(fold.test)} of {len(cases)} labelled cases for the test; some have to be left on "
                "both sides"
            )
        both = sorted({g for g, t in zip(groups, chosen, strict=True) if t} & _others(groups, chosen))
        why = f"test cases as {'--test' if test else 'the data list'} says"
        if both:
            why += f"; {len(both)} group(s) ({how}) have cases on both sides, which makes the test easier than it looks"
        return [fold], why
    if in_order:  # neighbours in the stack have to be neighbours in the row of which runs are tested
        order = _in_order(cases)
        cases, groups = [cases[at] for at in order], [groups[at] for at in order]
    names = list(dict.fromkeys(groups))
    count = count or min(FOLDS, len(names))
    if not 2 <= count <= len(names):
        raise PairingError(
            f"{len(cases)} labelled cases in {len(names)} group(s) ({how}) give 2 to {len(names)} folds, not {count}"
            + ("" if len(names) > 1 else "; choose the test cases by --test PATTERN")
        )
    drawn = names if in_order else [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    place = {name: at for at, name in enumerate(drawn)}
    tested, left_out = _places(len(names), count, in_order)
    folds = [
        Fold(
            tuple(case for case, group in zip(cases, groups, strict=True) if place[group] not in out),
            tuple(case for case, group in zip(cases, groups, strict=True) if place[group] in test_places),
        )
        for test_places, out in zip(tested, left_out, strict=True)
    ]
    drawing = "runs in the order of their names" if in_order else f"drawn with seed {seed}"
    words = f"{count} folds of {len(names)} groups ({how}), {drawing}"
    if count == len(names):
        words = f"leave one out: each of {count} groups ({how}) is tested on once"
    return folds, words + ("; the groups on either side of a test are not trained on" if left_out != tested else "")


def _places(n: int, count: int, in_order: bool) -> tuple[list[set[int]], list[set[int]]]:
    """Of n groups in a row, for each fold those that are tested, and those that are not trained on."""
    fold = [at * count // n if in_order else at % count for at in range(n)]
    tested = [{at for at in range(n) if fold[at] == number} for number in range(count)]
    if not in_order:
        return tested, tested
    with_next = [run | {at + step for at in run for step in (-1, 1)} for run in tested]
    enough = (2 * len(set(range(n)) - out) >= n - len(run) for run, out in zip(tested, with_next, strict=True))
    return tested, with_next if all(enough) else tested


def _matches(case: Case, root: Path, patterns: Sequence[str]) -> bool:
    below = [(file.relative_to(root) if file.is_relative_to(root) else file).as_posix() for file in case.image]
    return is_wanted([*below, case.name], patterns, ())


def _others(groups: Sequence[str], chosen: Sequence[bool]) -> set[str]:
    return {group for group, is_test in zip(groups, chosen, strict=True) if not is_test}
