"""Which cases are held out: whole patients, never some of their slices."""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fewscan.errors import PairingError
from fewscan.scans import Case
from fewscan.scans.cases import entry_stem
from fewscan.scans.patients import patient_numbers

_PATIENT = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
_SLICE = re.compile(r"(?:^|[/_\-. ])(?:slice|sl|frame)[_-]?\d+$", re.IGNORECASE)
_NUMBER = re.compile(r"[/_\-. ][sz]?\d+$", re.IGNORECASE)


def split(
    cases: Sequence[Case], wanted: int | None, seed: int, copies: Sequence[tuple[int, int]] = ()
) -> tuple[list[Case], list[Case], str]:
    """Training and held-out cases, and why: as the data list says, or drawn.

    Slices or scans of one patient (`group_cases`) and `copies`, pairs of near-identical images by their numbers, always
    stay together, so whole groups are drawn: until there are at least `wanted` cases, or a tenth of the groups from ten
    groups on.
    """
    if wanted is None and any(case.split == "validation" for case in cases):
        held_out = [case for case in cases if case.split == "validation"]
        return [case for case in cases if case.split != "validation"], held_out, "as the datalist says"
    of_case, how = group_cases(cases)
    of_case, how = join_groups(of_case, copies), how + ("; near-identical images stay together" if copies else "")
    sizes = Counter(of_case)
    groups = list(sizes)
    drawn = [groups[number] for number in np.random.default_rng(seed).permutation(len(groups))]
    count = len(groups) // 10
    if wanted is not None:  # whole groups until there are enough cases
        count = sum(so_far < wanted for so_far in itertools.accumulate((sizes[one] for one in drawn[:-1]), initial=0))
    chosen = set(drawn[:count])
    if len(chosen) == len(groups):
        raise PairingError(
            f"{wanted} of {len(cases)} labelled cases ({len(groups)} groups: {how}) cannot be held out: none would be "
            "left to train on; hold out fewer, or list `training` and `validation` in a data list (.json)"
        )
    training = [case for case, group in zip(cases, of_case, strict=True) if group not in chosen]
    held_out = [case for case, group in zip(cases, of_case, strict=True) if group in chosen]
    if not held_out:
        why = f"none of the {len(cases)} cases is held out, so that training shows no score of its own"
        return training, held_out, f"{why} ({len(groups)} groups: {how})"
    drawn_groups = f"{len(chosen)} of {len(groups)} groups ({how})"
    return training, held_out, f"{len(held_out)} of {len(cases)} cases, {drawn_groups}, drawn with seed {seed}"


def group_cases(cases: Sequence[Case], table: Mapping[str, str] | None = None) -> tuple[list[str], str]:
    """For each case the name of what has to stay together, and in words how that was found.

    A `table` of the user (`read_groups`) goes before all else; what its groups are called is not kept, they may be
    patients. Then the PatientID of DICOM files, of which nothing but a number is kept, and the patient of BIDS
    (`sub-01` in the path below what all share): cases that share either are of one group. Else the name without the
    number of its slice (`p1_s003`, `p1_slice12`, `p1/004`), where several cases share what remains. A mere number that
    all names end in, with the same before it, counts the cases: then each is a group.
    """
    if table is not None:
        return _by_table(cases, table), "as --groups says"
    paths = [case.image[0] for case in cases]
    numbers = patient_numbers(paths)
    try:
        base = os.path.commonpath([path.parent for path in paths])
        below = [Path(os.path.relpath(path, base)).as_posix() for path in paths]
    except ValueError:  # several drives of Windows
        below = [path.as_posix() for path in paths]
    patients = [_PATIENT.search(path) for path in below]
    stems = [_without_slice(case, path) for case, path in zip(cases, below, strict=True)]
    without_numbers = [
        _NUMBER.sub("", stem) if stem == case.name else stem for stem, case in zip(stems, cases, strict=True)
    ]
    if len(set(without_numbers)) > 1:
        stems = without_numbers
    shared = Counter(stem for stem, patient in zip(stems, patients, strict=True) if patient is None)
    groups: list[str] = []
    ways: set[str] = set()
    first: dict[str, int] = {}  # case of each patient
    same: list[tuple[int, int]] = []
    for at, (case, stem, patient, number) in enumerate(zip(cases, stems, patients, numbers, strict=True)):
        known = {}
        if number is not None:
            known[f"patient {number}"] = "by the patient of the DICOM files"
        if patient is not None:
            known[patient[1]] = "by the patient, sub-XX"
        if known:
            groups.append(next(iter(known)))
            ways.update(known.values())
            same += [(first.setdefault(name, at), at) for name in known]
        elif shared[stem] > 1:
            groups.append(stem)
            ways.add("by the name without the slice's number")
        else:
            groups.append(case.name)
            ways.add("each case by itself")
    return join_groups(groups, same), ", ".join(sorted(ways))


def _without_slice(case: Case, path: str) -> str:
    """The name without the number of a slice. A user's pattern may hide that it is one: the path of its file tells."""
    stem = _SLICE.sub("", case.name)
    own = entry_stem(case.image[0])
    if stem != case.name or not _SLICE.search(own):
        return stem
    return f"{path.rpartition('/')[0]}/{_SLICE.sub('', own)}"


def read_groups(file: Path) -> dict[str, str]:
    """A table {case: group} from a CSV with the columns `case` and `group`, parted by commas or semicolons.

    Raises PairingError where a column is missing, or a case has two groups.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise PairingError(
            f"{file}: cannot be read as a table ({type(problem).__name__}); save it as CSV in UTF-8"
        ) from problem
    rows = csv.DictReader(text.splitlines(), delimiter=";" if ";" in text.partition("\n")[0] else ",")
    if not {"case", "group"} <= set(rows.fieldnames or ()):
        raise PairingError(f"{file}: has the columns {', '.join(rows.fieldnames or ())}; it needs `case` and `group`")
    table: dict[str, str] = {}
    for row in rows:
        case, group = (row["case"] or "").strip(), (row["group"] or "").strip()
        if not case or not group or table.setdefault(case, group) != group:
            raise PairingError(f"{file}: line {rows.line_num} gives the case {case!r} no group, or a second one")
    return table


def _by_table(cases: Sequence[Case], table: Mapping[str, str]) -> list[str]:
    numbers: dict[str, int] = {}
    groups = []
    for case in cases:
        names = (case.name, case.image[0].name, entry_stem(case.image[0]), case.name.rpartition("/")[2])
        group = next((table[name] for name in names if name in table), None)
        if group is None:
            raise PairingError(f"--groups says nothing of the case {case.name} ({case.image[0].name}); add its line")
        groups.append(f"group {numbers.setdefault(group, len(numbers) + 1)}")
    return groups


def join_groups(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """The groups after the groups of each pair of cases, by their numbers, became one."""
    joined = list(groups)
    for one, other in pairs:
        kept, lost = joined[one], joined[other]
        if kept != lost:
            joined = [kept if group == lost else group for group in joined]
    return joined
