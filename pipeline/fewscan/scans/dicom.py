"""DICOM series, strictly: positions decide, contradictions are refused, nothing is dropped in silence."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import GeometryError, ScanError
from fewscan.grid import LPS_FROM_RAS, Grid
from fewscan.scans.dicom_pixels import pixel_digest, read_series
from fewscan.scans.dicom_planes import SPLIT_BY, NotAnImage, Plane, is_dicom, read_planes
from fewscan.scans.quiet import quietly
from fewscan.scans.scan import Scan, Skipped

__all__ = ["find_series", "is_dicom", "open_series", "read_series"]

ROUNDED_MM = 0.0101
"""How far rounding of positions to 0.01 mm moves a plane along an axis: half of it, and half by the line's ends."""


@quietly()
def find_series(files: Iterable[Path], root: Path) -> tuple[list[Scan], list[Skipped]]:
    """The scans among DICOM files, by series, and what is none; names are paths of folders below `root`.

    A series gives several scans where it holds several volumes at the same positions that a header value tells
    apart. Files are read up to their pixels.
    """
    planes: list[Plane] = []
    skipped: list[Skipped] = []
    for path in sorted(files):
        try:
            planes += read_planes(path)
        except NotAnImage as problem:
            skipped.append(Skipped(path, str(problem)))
        except ScanError as problem:
            skipped.append(Skipped(path, str(problem), failed=True))
    found: list[tuple[Scan, int | None]] = []
    for _, members in itertools.groupby(sorted(planes, key=lambda plane: plane.series), lambda plane: plane.series):
        scans, left = _scans_of_series(list(members))
        found += scans
        skipped += left
    return _named(found, root), skipped


@quietly()
def open_series(files: Sequence[Path], name: str, frames: Sequence[int] = ()) -> Scan:
    """The one scan in these DICOM files; every file has to belong to it.

    `frames` (from 1, one per file) chooses frames of enhanced files. Raises ScanError where a file is no image or the
    files are no single volume.
    """
    planes = [plane for path in dict.fromkeys(files) for plane in read_planes(path)]
    if frames:
        wanted = set(zip(files, frames, strict=True))
        planes = [plane for plane in planes if (plane.path, plane.frame) in wanted]
    series = sorted({plane.series for plane in planes})
    if len(series) > 1:
        raise ScanError(f"{_folder(planes)}: the files belong to {len(series)} series; give the files of one")
    scans, left = _scans_of_series(planes)
    problems = [item for item in left if item.failed or not scans]
    if problems or len(scans) != 1 or left:
        reason = (problems or left)[0].reason if left else f"{len(scans)} volumes, where one is expected"
        reason = reason.removeprefix(f"{_folder(planes)}: ")
        raise ScanError(f"{_folder(planes)}: is no single volume: {reason}")
    return replace(scans[0][0], name=name)


def _scans_of_series(planes: list[Plane]) -> tuple[list[tuple[Scan, int | None]], list[Skipped]]:
    """The volumes of one series with the series number, and the planes that are in none."""
    skipped = [Skipped(plane.path, "a localizer of its series", failed=False) for plane in planes if plane.localizer]
    extra = (f"{len(skipped)} localizer(s) of the series left out",) if skipped else ()
    planes = [plane for plane in planes if not plane.localizer]
    groups = sorted(_alike(planes), key=len, reverse=True)
    several = len(groups) > 1 and 2 * len(groups[0]) <= len(planes)  # no group is the series: each stands for itself
    if several:
        extra = (*extra, f"one of {len(groups)} stacks of its series, which differ in geometry")
    elif len(groups) > 1:
        try:
            strangers, notes = _strangers(groups[0], groups[1:])
        except GeometryError as problem:
            return [], [*skipped, Skipped(_folder(planes), f"{_folder(planes)}: {problem}", failed=True)]
        skipped, extra, groups = [*skipped, *strangers], (*extra, *notes), groups[:1]
    scans: list[tuple[Scan, int | None]] = []
    for group in groups:
        try:
            group, copies = _without_duplicates(group)
            skipped += copies
            note = (f"{len(copies)} duplicate file(s) left out",) if copies else ()
            for volume, volume_note in _volumes(group):
                scans.append((_scan(volume, extra + note + volume_note), volume[0].series_number))
        except ScanError as problem:
            skipped.append(Skipped(_folder(group), f"{_folder(group)}: {problem}", failed=True))
    return scans, skipped


def _alike(planes: list[Plane]) -> list[list[Plane]]:
    """Planes grouped by orientation, matrix, spacing and frame of reference."""
    groups: list[list[Plane]] = []
    for plane in planes:
        home = next((group for group in groups if not _differ(group[0], plane)), None)
        if home is None:
            groups.append([plane])
        else:
            home.append(plane)
    return groups


def _strangers(main: list[Plane], groups: list[list[Plane]]) -> tuple[list[Skipped], tuple[str, ...]]:
    """The images of a series that are not like most of it, left out, with a note for the scan about each group.

    Raises GeometryError where they lie where slices of the volume belong: without them it would be a part of itself.
    """
    skipped: list[Skipped] = []
    notes: list[str] = []
    for group in groups:
        kind = _differ(main[0], group[0]) or "geometry"
        plane = _within(main, group)
        if plane is not None:
            raise GeometryError(
                f"{len(group)} of {len(main) + sum(map(len, groups))} images have another {kind} than the rest "
                f"({_numbers(plane, kind)} against {_numbers(main[0], kind)}), but lie in its stack, "
                f"{plane.path.name} at {_point(plane.position)} mm (LPS); export the series again, or move them away "
                f"if they are no part of the scan"
            )
        reason = (
            f"{len(group)} of {len(main) + sum(map(len, groups))} images of its series have another {kind} than the "
            f"rest: not merged"
        )
        skipped += [Skipped(path, reason) for path in dict.fromkeys(plane.path for plane in group)]
        notes.append(f"{len(group)} image(s) of the series with another {kind} left out")
    return skipped, tuple(notes)


def _within(main: list[Plane], group: list[Plane]) -> Plane | None:
    """A plane of the group that continues or interleaves the main stack; None where it lies elsewhere or on a slice.

    Elsewhere: another normal (by more than 2 degrees), another frame of reference, or beyond 1.5 slice distances.
    """
    normal = main[0].normal
    levels = np.sort([plane.along for plane in main])
    gaps = np.diff(levels)
    usual = float(np.median(gaps[gaps > 1e-4])) if (gaps > 1e-4).any() else main[0].stated_gap or main[0].thickness
    frames = main[0].frame_of_reference, group[0].frame_of_reference
    if usual is None or abs(group[0].normal @ normal) < np.cos(np.radians(2)) or (all(frames) and len(set(frames)) > 1):
        return None
    for plane in group:
        away = float(np.abs(levels - plane.position @ normal).min())
        if 0.01 * usual < away < 1.5 * usual:
            return plane
    return None


def _numbers(plane: Plane, kind: str) -> str:
    """What a plane says in the matter that tells it from others."""
    match kind:
        case "orientation":
            return " ".join(f"{number:.5g}" for number in plane.orientation)
        case "matrix":
            return f"{plane.shape[0]} x {plane.shape[1]} pixels"
        case "pixel spacing":
            return f"{plane.spacing[1]:.6g} x {plane.spacing[0]:.6g} mm"
    return "named" if plane.frame_of_reference else "not named"


def _differ(one: Plane, other: Plane) -> str | None:
    if one.geometry == other.geometry:
        return None
    if not np.allclose(one.orientation, other.orientation, atol=1e-4):
        return "orientation"
    if one.shape != other.shape:
        return "matrix"
    if not np.allclose(one.spacing, other.spacing, rtol=1e-4):
        return "pixel spacing"
    return None if one.frame_of_reference == other.frame_of_reference else "frame of reference"


def _without_duplicates(planes: list[Plane]) -> tuple[list[Plane], list[Skipped]]:
    """The planes with each SOP instance once, and the copies. Raises ScanError where one instance is two things."""
    kept: dict[tuple[str, int], Plane] = {}
    copies: dict[Path, Path] = {}
    for plane in planes:
        first = kept.setdefault((plane.sop_instance, plane.frame), plane)
        if first is plane:
            continue
        if not np.allclose(first.position, plane.position, atol=1e-3):
            raise ScanError(
                f"{first.path} and {plane.path} carry one SOPInstanceUID at different positions; export them again"
            )
        copies[plane.path] = first.path
    for copy, original in copies.items():
        if pixel_digest(copy) != pixel_digest(original):
            raise ScanError(f"{original} and {copy} carry one SOPInstanceUID but different pixels; keep the right one")
    return list(kept.values()), [Skipped(copy, f"a copy of {original}") for copy, original in copies.items()]


def _volumes(planes: list[Plane]) -> list[tuple[list[Plane], tuple[str, ...]]]:
    """The planes as volumes in the order of position, each with its note.

    One volume where every position holds one plane. Else a header value has to tell the volumes apart, such that
    each is a regular stack through all positions; GeometryError where none does.
    """
    ordered = sorted(planes, key=lambda plane: plane.along)
    positions = len(_levels(ordered))
    if positions == len(ordered):
        _check_regular(ordered)
        return [(ordered, ())]
    keys = [key for key in dict.fromkeys(SPLIT_BY) if len({plane.split.get(key) for plane in ordered}) > 1]
    for count in (1, 2):
        for chosen in itertools.combinations(keys, count):
            parts: dict[tuple[str, ...], list[Plane]] = {}
            for plane in ordered:
                parts.setdefault(tuple(plane.split.get(key, "") for key in chosen), []).append(plane)
            if all(_is_stack(part, positions) for part in parts.values()):
                return [
                    (part, (f"volume {number} of {len(parts)} at the same positions, told apart by {_and(chosen)}",))
                    for number, (_, part) in enumerate(sorted(parts.items(), key=_split_order), start=1)
                ]
    differ = (
        f"parts by {', '.join(keys)} do not cover all positions once" if keys else f"{', '.join(SPLIT_BY[:5])}, ..."
    )
    raise GeometryError(
        f"{len(ordered)} images lie at {positions} positions and no header value tells the volumes apart ({differ}); "
        f"separate them before"
    )


def _split_order(item: tuple[tuple[str, ...], list[Plane]]) -> tuple[tuple[float, str], ...]:
    def key(text: str) -> tuple[float, str]:
        try:
            return float(text), text
        except ValueError:
            return float("inf"), text

    return tuple(key(text) for text in item[0])


def _and(keywords: Sequence[str]) -> str:
    return " and ".join(keywords)


def _levels(ordered: list[Plane]) -> list[float]:
    """The different positions along the normal, in mm; closer than 1 % of the usual gap counts as equal."""
    along = [plane.along for plane in ordered]
    gaps = np.diff(along)
    real = gaps[gaps > 1e-4]
    tolerance = 0.01 * float(np.median(real)) if real.size else 1e-4
    return [along[0], *(later for earlier, later in itertools.pairwise(along) if later - earlier > tolerance)]


def _is_stack(part: list[Plane], positions: int) -> bool:
    """Whether the part is a whole volume: one plane at every position; a value may change within a volume too."""
    if len(part) != positions or len(_levels(part)) != positions:
        return False
    try:
        _check_regular(part)
    except GeometryError:
        return False
    return True


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
        guess = f"{missing} slice(s) missing" if missing > 0 else "are these two stacks"
        raise GeometryError(
            f"slices lie {gaps.min():.4g} to {gaps.max():.4g} mm apart, so they form no grid: "
            f"{gaps[wide]:.4g} mm instead of {usual:.4g} mm between {_point(points[wide])} and "
            f"{_point(points[wide + 1])} mm (LPS), {ordered[wide].path.name} and {ordered[wide + 1].path.name}; "
            f"{guess}?"
        )
    worst = int(away.argmax())
    raise GeometryError(
        f"slices lie on no line at equal distances: {ordered[worst].path.name} at {_point(points[worst])} mm (LPS) is "
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
        gap_alone = thickness is not None and stated < 0.99 * thickness and _equal(distance, stated + thickness)
        times = max(2, round(distance / stated))
        missing = distance > 1.5 * stated if len(ordered) == 2 else _equal(distance, times * stated)
        if missing and not gap_alone:
            guess = "every second slice" if times == 2 else f"{times - 1} of {times} slices"
            raise GeometryError(
                f"{len(ordered)} slices lie {distance:.4g} mm apart, where SpacingBetweenSlices says {stated:.4g} mm; "
                f"{guess if len(ordered) > 2 else 'slices between them'} missing? Export the series again"
            )
    elif thickness is not None and len(ordered) == 2 and distance > 3 * thickness:
        raise GeometryError(
            f"2 slices lie {distance:.4g} mm apart, where SliceThickness says {thickness:.4g} mm; slices between them "
            f"missing? Export the series again"
        )


def _equal(one: float, other: float) -> bool:
    return abs(one - other) <= 0.01 * other


def _point(position: NDArray[np.float64]) -> str:
    return "(" + ", ".join(f"{number:.1f}" for number in position) + ")"


def _scan(ordered: list[Plane], notes: tuple[str, ...]) -> Scan:
    first, last, depth = ordered[0], ordered[-1], len(ordered)
    notes = (*dict.fromkeys(note for plane in ordered for note in plane.notes), *notes)
    if depth > 1:
        step = (last.position - first.position) / (depth - 1)
        if first.stated_gap and abs(first.stated_gap - step @ first.normal) > 0.01 * first.stated_gap:
            notes = (
                *notes,
                f"SpacingBetweenSlices says {first.stated_gap:.4g} mm, the positions {step @ first.normal:.4g} mm: the "
                f"positions are taken",
            )
        if not first.stated_gap and first.thickness and step @ first.normal > 1.5 * first.thickness:
            notes = (
                *notes,
                f"slices of {first.thickness:.4g} mm (SliceThickness) lie {step @ first.normal:.4g} mm apart: what "
                f"lies between them was not imaged, or is missing",
            )
    else:
        thickness = first.stated_gap or first.thickness
        step = first.normal * (thickness or 1.0)
        notes = (*notes, "a single slice" + ("" if thickness else " without thickness: 1 mm is assumed"))
    lps = np.eye(4)
    lps[:3, 0] = first.orientation[:3] * first.spacing[1]  # along a row: the distance between columns
    lps[:3, 1] = first.orientation[3:] * first.spacing[0]
    lps[:3, 2] = step
    lps[:3, 3] = first.position
    try:
        grid = Grid((*first.shape, depth), LPS_FROM_RAS @ lps, first.frame_of_reference)
    except ValueError as problem:  # positions or spacings beyond what numbers hold
        raise GeometryError(str(problem)) from None
    if not grid.is_orthogonal:
        tilt = np.degrees(np.arccos(step @ first.normal / np.linalg.norm(step)))
        notes = (*notes, f"slices are sheared by {tilt:.1f} degrees (gantry tilt): the affine keeps it")
    frames = tuple(plane.frame for plane in ordered) if first.frame else ()
    return Scan(
        "", "dicom", tuple(plane.path for plane in ordered), grid, frames=frames, notes=notes, reader=read_series
    )


def _folder(planes: list[Plane]) -> Path:
    """The folder, or the file, that holds all the planes."""
    files = {plane.path for plane in planes}
    return files.pop() if len(files) == 1 else Path(os.path.commonpath([str(file.parent) for file in files]))


def _named(found: list[tuple[Scan, int | None]], root: Path) -> list[Scan]:
    """Scans named after their folders below `root`; several in one folder's tree by their series number."""
    folders = [Path(os.path.commonpath([str(file.parent) for file in scan.files])) for scan, _ in found]
    base = root if root.is_dir() else root.parent
    named: list[Scan] = []
    taken: set[str] = set()
    order = sorted(range(len(found)), key=lambda n: (folders[n].as_posix(), found[n][1] or 0, n))
    for number in order:
        scan, series_number = found[number]
        folder = folders[number]
        inside = folder.relative_to(base).as_posix() if folder.is_relative_to(base) else folder.name
        alone = sum(other == folder or other.is_relative_to(folder) for other in folders) == 1
        name = inside if inside != "." else base.resolve().name
        if not alone:
            series = f"series-{series_number if series_number is not None else 0}"
            name = series if inside == "." else f"{inside}/{series}"
        unique = next(
            candidate for candidate in itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
            if candidate not in taken
        )  # fmt: skip
        taken.add(unique)
        named.append(replace(scan, name=unique))
    return named
