"""Planes become volumes: regular stacks, told apart where several lie at the same positions."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import GeometryError
from fewscan.scans.dicom_planes import SPLIT_BY, Plane

ROUNDED_MM = 0.0101
"""How far rounding of positions to 0.01 mm moves a plane along an axis: half of it, and half by the line's ends."""
SAME_MM = 0.0011
"""Positions of two phases, rounded to 0.001 mm, differ by no more than this."""
BY_RESAMPLING = ", or let `fewscan segment --resample-gaps` interpolate them"
CONTRAST = ("EchoTime", "EffectiveEchoTime", "DiffusionBValue", "TemporalPositionIdentifier", "TemporalPositionIndex")
"""What a volume has one of."""


def volumes(planes: list[Plane], with_gaps: bool = False) -> list[tuple[list[Plane], tuple[str, ...]]]:
    """The planes as volumes in the order of position, each with its note.

    One volume where every position holds one plane, or one for each StackID where those are regular and the whole is
    not. Else header values have to tell the volumes apart, such that each is a regular stack through all positions;
    GeometryError where none does, or where they contradict each other.

    Args:
        planes: all of one geometry.
        with_gaps: whether slices may be missing in a volume that has its positions for itself: see `places`.
    """
    ordered = sorted(planes, key=lambda plane: plane.along)
    positions = len(levels(ordered))
    if positions == len(ordered):
        stacks = _parts(ordered, ("StackID",))
        if len(stacks) > 1 and not _is_stack(ordered) and all(_is_stack(stack) for stack in stacks):
            return [(part, (f"stack {n} of {len(stacks)}, told apart by StackID",)) for n, part in _counted(stacks)]
        if not (with_gaps and places(ordered)):
            _check_regular(ordered)
        _check_contrast(ordered)
        return [(ordered, ())]
    if positions == 1:
        _check_locations(ordered)
    keys = [key for key in dict.fromkeys(SPLIT_BY) if len({plane.split.get(key) for plane in ordered}) > 1]
    for count in (1, 2):
        ways = {chosen: _parts(ordered, chosen) for chosen in itertools.combinations(keys, count)}
        good = {
            chosen: parts
            for chosen, parts in ways.items()
            if all(len(part) == len(levels(part)) == positions and _is_stack(part) for part in parts)
        }
        _check_agreement(good)
        for chosen, parts in good.items():
            note = f"at the same positions, told apart by {_and(chosen)}"
            return [(part, (f"volume {number} of {len(parts)} {note}",)) for number, part in _counted(parts)]
    differ = (
        f"parts by {', '.join(keys)} do not cover all positions once" if keys else f"{', '.join(SPLIT_BY[:5])}, ..."
    )
    one, other = min(itertools.pairwise(ordered), key=lambda pair: pair[1].along - pair[0].along)
    raise GeometryError(
        f"{len(ordered)} images lie at {positions} position{'s' if positions > 1 else ''} and no header value tells "
        f"the volumes apart ({differ}): {' and '.join(sorted(_places(one, other)))} at {point(one.position)} mm (LPS); "
        f"separate them before"
    )


def places(ordered: list[Plane]) -> tuple[int, ...]:
    """Where planes, in the order of position, lie on even steps of which some are left out; () where they do not.

    A step is the smallest distance, or SpacingBetweenSlices where that is a whole part of it and not the gap alone.
    """
    if len(ordered) < 2:
        return ()
    points = np.array([plane.position for plane in ordered])
    along = np.array([plane.along for plane in ordered])
    step, stated = float(np.diff(along).min()), ordered[0].stated_gap
    gap_alone = _is_gap_alone(ordered[0], step)
    if stated and not gap_alone and step > 1.5 * stated and _equal(step, round(step / stated) * stated):
        step = stated
    steps = np.rint((along - along[0]) / step).astype(int)
    each = (points[-1] - points[0]) / steps[-1]
    beside = points - points[0] - steps[:, None] * each
    away, distance = np.linalg.norm(beside, axis=1), float(np.linalg.norm(each))
    even = away.max() <= 0.01 * distance or np.abs(beside).max() <= min(ROUNDED_MM, 0.25 * distance)
    return tuple(steps.tolist()) if even and steps[-1] >= len(ordered) else ()


def levels(ordered: list[Plane]) -> list[float]:
    """The different positions along the normal, in mm; closer than 1 % of the usual gap counts as equal."""
    along = [plane.along for plane in ordered]
    gaps = np.diff(along)
    real = gaps[gaps > SAME_MM]
    tolerance = max(SAME_MM, 0.01 * float(np.median(real))) if real.size else SAME_MM
    return [along[0], *(later for earlier, later in itertools.pairwise(along) if later - earlier > tolerance)]


def _parts(ordered: list[Plane], keys: Sequence[str]) -> list[list[Plane]]:
    """The planes with equal values of `keys` together, in the order of these values."""
    parts: dict[tuple[str, ...], list[Plane]] = {}
    for plane in ordered:
        parts.setdefault(tuple(plane.split.get(key, "") for key in keys), []).append(plane)
    return [part for _, part in sorted(parts.items(), key=_split_order)]


def _counted(parts: list[list[Plane]]) -> Iterator[tuple[int, list[Plane]]]:
    return enumerate(parts, start=1)


def _split_order(item: tuple[tuple[str, ...], list[Plane]]) -> tuple[tuple[float, str], ...]:
    def key(text: str) -> tuple[float, str]:
        try:
            return float(text), text
        except ValueError:
            return float("inf"), text

    return tuple(key(text) for text in item[0])


def _and(keywords: Sequence[str]) -> str:
    return " and ".join(keywords)


def _places(*planes: Plane) -> list[str]:
    """The planes' files, with their folders where the names are equal, and their frames."""
    known = len({plane.path.name for plane in planes}) == len({plane.path for plane in planes})
    names = [plane.path.name if known else f"{plane.path.parent.name}/{plane.path.name}" for plane in planes]
    return [f"{name}, frame {p.frame}" if p.frame else name for name, p in zip(names, planes, strict=True)]


def _is_stack(part: list[Plane]) -> bool:
    """Whether planes, in the order of position, are a whole volume of one contrast."""
    try:
        _check_regular(part)
        _check_contrast(part)
    except GeometryError:
        return False
    return True


def _check_agreement(ways: Mapping[tuple[str, ...], list[list[Plane]]]) -> None:
    """Raise GeometryError where two ways to tell volumes apart give different volumes."""
    (first, parts), *others = list(ways.items()) or [((), [])]
    known = {frozenset(map(id, part)) for part in parts}
    for other, different in others:
        if {frozenset(map(id, part)) for part in different} != known:
            raise GeometryError(
                f"volumes at the same positions are others by {_and(first)} ({len(parts)}) than by {_and(other)} "
                f"({len(different)}); separate them before"
            )


def _check_contrast(ordered: list[Plane]) -> None:
    """Raise GeometryError where what should be one volume has several echo times, b-values or points in time.

    Two echoes, the second between the slices of the first or behind them, lie at equal distances too. A value that is
    another one for each slice is left to itself.
    """
    for keyword in CONTRAST:
        counts = Counter(plane.split[keyword] for plane in ordered if keyword in plane.split)
        if len(counts) < 2 or 2 * len(counts) > len(ordered) or _are_equal(counts):
            continue
        said = ", ".join(f"{_number(value)} in {count}" for value, count in counts.most_common(4))
        raise GeometryError(
            f"the {len(ordered)} slices of what looks like one volume have different {keyword}: {said} slice(s); "
            f"move them into folders of their own"
        )


def _number(value: str) -> str:
    """A header's number in words; of text, which may be anything, nothing is shown."""
    try:
        return f"{float(value):g}"
    except ValueError:
        return "text"


def _are_equal(values: Iterable[str]) -> bool:
    """Whether all are numbers that differ by no more than 1 %."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:  # several values in one
        return False
    return _equal(min(numbers), max(numbers))


def _check_locations(ordered: list[Plane]) -> None:
    """Raise GeometryError where all images have one position along their normal, but something says otherwise.

    SliceLocation does where an export lost the positions; the positions do where the orientation is not theirs.
    """
    away = [float(np.linalg.norm(plane.position - ordered[0].position)) for plane in ordered]
    if max(away) > 1:
        last = ordered[int(np.argmax(away))]
        raise GeometryError(
            f"the positions of {len(ordered)} images go along their own planes, up to {max(away):.4g} mm from "
            f"{point(ordered[0].position)} to {point(last.position)} mm (LPS), so ImageOrientationPatient is not "
            f"theirs; export the series again"
        )
    places = {round(plane.slice_location, 2) for plane in ordered if plane.slice_location is not None}
    if len(places) > 1:
        raise GeometryError(
            f"{len(ordered)} images lie at 1 position, {point(ordered[0].position)} mm (LPS), while SliceLocation goes "
            f"from {min(places):g} to {max(places):g} mm: the positions were lost; export the series again"
        )


def _check_regular(ordered: list[Plane]) -> None:
    """Raise GeometryError unless the planes lie on one line at equal distances.

    Each may be off the even steps from the first to the last by 1 % of a step, or by what rounding to 0.01 mm does.
    What nobody can see from the positions, one of two slices or every second one missing, the header has to deny.
    """
    if len(ordered) < 2:
        return
    if len(ordered) == 2:
        _check_distance(ordered)
        return
    points = np.array([plane.position for plane in ordered])
    step = (points[-1] - points[0]) / (len(points) - 1)
    beside = points - points[0] - np.arange(len(points))[:, None] * step
    away, distance = np.linalg.norm(beside, axis=1), float(np.linalg.norm(step))
    if away.max() <= 0.01 * distance or np.abs(beside).max() <= min(ROUNDED_MM, 0.25 * distance):
        _check_distance(ordered)
        return
    gaps = np.diff([plane.along for plane in ordered])
    usual = float(np.median(gaps))
    wide = int(np.abs(gaps - usual).argmax())
    if abs(gaps[wide] - usual) > 0.01 * usual:
        missing = round(gaps[wide] / usual) - 1
        guess = f"{missing} slice(s) missing?" if missing > 0 else "are these two stacks?"
        guess += f" Export the series again{BY_RESAMPLING}" if places(ordered) else ""
        raise GeometryError(
            f"slices lie {gaps.min():.4g} to {gaps.max():.4g} mm apart, so they form no grid: "
            f"{gaps[wide]:.4g} mm instead of {usual:.4g} mm between {point(points[wide])} and "
            f"{point(points[wide + 1])} mm (LPS), {ordered[wide].path.name} and {ordered[wide + 1].path.name}; "
            f"{guess}"
        )
    worst = int(away.argmax())
    raise GeometryError(
        f"slices lie on no line at equal distances: {ordered[worst].path.name} at {point(points[worst])} mm (LPS) is "
        f"{away[worst]:.4g} mm beside its place; are these two stacks?"
    )


def _check_distance(ordered: list[Plane]) -> None:
    """Raise GeometryError where the distance of a regular stack says that slices between its slices are missing.

    SpacingBetweenSlices decides where it is there; SliceThickness only for two slices more than 3 x as far apart, for
    slices with gaps between them are usual. Some scanners state the gap alone, without the thickness: that is known.
    """
    distance = (ordered[-1].along - ordered[0].along) / (len(ordered) - 1)
    stated, thickness = ordered[0].stated_gap, ordered[0].thickness
    if stated is not None:
        times = max(2, round(distance / stated))
        missing = distance > 1.5 * stated if len(ordered) == 2 else _equal(distance, times * stated)
        if missing and not _is_gap_alone(ordered[0], distance):
            guess = "every second slice" if times == 2 else f"{times - 1} of {times} slices"
            raise GeometryError(
                f"{len(ordered)} slices lie {distance:.4g} mm apart, where SpacingBetweenSlices says {stated:.4g} mm; "
                f"{guess if len(ordered) > 2 else 'slices between them'} missing? Export the series again"
                f"{BY_RESAMPLING if places(ordered) else ''}"
            )
    elif thickness is not None and len(ordered) == 2 and distance > 3 * thickness:
        raise GeometryError(
            f"2 slices lie {distance:.4g} mm apart, where SliceThickness says {thickness:.4g} mm; slices between them "
            f"missing? Export the series again"
        )


def _is_gap_alone(plane: Plane, distance: float) -> bool:
    """Whether SpacingBetweenSlices of slices at this distance is what lies between them, without their thickness."""
    stated, thickness = plane.stated_gap, plane.thickness
    if stated is None or thickness is None or stated >= 0.99 * thickness:
        return False
    return _equal(distance, stated + thickness)


def _equal(one: float, other: float) -> bool:
    return abs(one - other) <= 0.01 * abs(other)


def point(position: NDArray[np.float64]) -> str:
    """A position in words."""
    return "(" + ", ".join(f"{number:.1f}" for number in position) + ")"
