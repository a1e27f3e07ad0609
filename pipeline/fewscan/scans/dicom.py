"""DICOM series, strictly: positions decide, contradictions are refused, nothing is dropped in silence."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fewscan.errors import GeometryError, ScanError
from fewscan.grid import LPS_FROM_RAS, Grid
from fewscan.scans.dicom_pixels import pixel_digest, read_series
from fewscan.scans.dicom_planes import (
    NotAnImage,
    Picture,
    Plane,
    Screenshot,
    identity,
    read_planes,
)
from fewscan.scans.dicom_stacks import SAME_MM, levels, places, point, volumes
from fewscan.scans.quiet import quietly
from fewscan.scans.scan import Scan, Skipped

STEEPEST = 45.0
"""Degrees; gantries of scanners tilt by up to 30."""
FEWEST = 3
"""Positions from which on images of another geometry than most of their series are a stack, and no localizer."""

__all__ = ["find_series", "open_series", "read_series"]


@quietly()
def find_series(files: Iterable[Path], root: Path, resample_gaps: bool = False) -> tuple[list[Scan], list[Skipped]]:
    """The scans among DICOM files, by series, and what is none; names are paths of folders below `root`.

    A series gives several scans where it holds several stacks, or volumes at the same positions that a header value
    tells apart, and none where one of its files cannot be used; one that does not say what it is belongs to all
    series in its folder. Files are read up to their pixels. `resample_gaps`: whether missing slices are interpolated
    between their neighbours; else such a series is refused.
    """
    planes: list[Plane] = []
    skipped: list[Skipped] = []
    broken: list[tuple[str, str, Skipped]] = []
    pictures: list[tuple[str, str, Skipped]] = []
    screenshots: set[Path] = set()
    for path in sorted(files):
        try:
            planes += read_planes(path)
        except NotAnImage as problem:
            skipped.append(Skipped(path, str(problem)))
        except ScanError as problem:
            kind = pictures if isinstance(problem, Picture) else broken
            kind.append((*identity(path), Skipped(path, str(problem), failed=True)))
            screenshots.update([path] if isinstance(problem, Screenshot) else [])
    converted = {plane.series for plane in planes if plane.secondary}
    broken += [one for one in pictures if one[2].path in screenshots and one[0] in converted]
    pictures = [one for one in pictures if one not in broken]
    whole = {(plane.series, plane.sop_instance) for plane in planes if plane.sop_instance}
    found: list[tuple[Scan, int | None]] = []
    planes.sort(key=lambda plane: plane.series)
    for series, group in itertools.groupby(planes, lambda plane: plane.series):
        members = list(group)
        folders = {plane.path.parent for plane in members}
        beside = [item for uid, _, item in pictures if uid == series]
        notes = (f"{len(beside)} colour picture(s) or screenshot(s) of the series left out",) if beside else ()
        missing = [
            item
            for uid, instance, item in broken
            if (uid == series and (uid, instance) not in whole)  # a broken copy of a whole file takes nothing away
            or (not uid and item.path.parent in folders)
        ]
        scans, left = _scans_of_series(members, notes, missing, resample_gaps)
        found += scans
        skipped += left
    known = {plane.series for plane in planes}
    skipped += [item for _, _, item in broken] + [replace(item, failed=uid not in known) for uid, _, item in pictures]
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


def _scans_of_series(
    planes: list[Plane],
    extra: tuple[str, ...] = (),
    broken: Sequence[Skipped] = (),
    resample_gaps: bool = False,
) -> tuple[list[tuple[Scan, int | None]], list[Skipped]]:
    """The volumes of one series with the series number, and the planes that are in none.

    `extra` are notes for its scans, `broken` its files that cannot be used.
    """
    skipped = [Skipped(plane.path, "a localizer of its series", failed=False) for plane in planes if plane.localizer]
    extra = (*extra, f"{len(skipped)} localizer(s) of the series left out") if skipped else extra
    planes = [plane for plane in planes if not plane.localizer]
    groups = sorted(_alike(planes), key=len, reverse=True)
    several = len(groups) > 1 and 2 * len(groups[0]) <= len(planes)  # no group is the series: each stands for itself
    try:
        _check_whole(planes, broken)
        if several:
            _check_apart(groups)
        elif len(groups) > 1:
            groups, strangers, notes = _without_strangers(groups)
            skipped, extra = [*skipped, *strangers], (*extra, *notes)
        if len(groups) > 1:
            extra = (*extra, f"one of {len(groups)} stacks of its series, which differ in geometry")
    except ScanError as problem:
        return [], [*skipped, Skipped(_folder(planes), f"{_folder(planes)}: {problem}", failed=True)]
    scans: list[tuple[Scan, int | None]] = []
    for group in groups:
        try:
            group, copies = _without_duplicates(group)
            skipped += copies
            note = (f"{len(copies)} duplicate file(s) left out",) if copies else ()
            for volume, volume_note in volumes(group, resample_gaps):
                scan = _scan(volume, extra + note + volume_note, places(volume) if resample_gaps else ())
                scans.append((scan, volume[0].series_number))
        except ScanError as problem:
            skipped.append(Skipped(_folder(group), f"{_folder(group)}: {problem}", failed=True))
    return scans, skipped


def _check_whole(planes: list[Plane], broken: Sequence[Skipped]) -> None:
    """Raise ScanError where a series is a part of one, or parts of several, which positions may not show."""
    for kind, owners in (("studies", {p.study for p in planes}), ("patients", {p.patient for p in planes})):
        owners.discard("")  # unknown, and no contradiction
        if len(owners) > 1:
            raise ScanError(
                f"{len(planes)} images of one SeriesInstanceUID belong to {len(owners)} {kind}; give each a UID of its "
                f"own, or read each from a folder of its own"
            )
    if broken and planes:
        raise ScanError(
            f"{len(broken)} of {len(planes) + len(broken)} images of the series cannot be used, and without them a "
            f"part of it may be missing: {broken[0].reason}; mend the series, or leave them out by --exclude"
        )


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


def _without_strangers(groups: list[list[Plane]]) -> tuple[list[list[Plane]], list[Skipped], tuple[str, ...]]:
    """The stacks of a series: the first group, most of it, and those of at least `FEWEST` positions, sound or not.

    The others are left out, with a note for the scans about each. A stack in which images of another group lie would be
    a part of itself without them: it fails. Raises GeometryError where that is the first.
    """
    total = sum(map(len, groups))
    stacks = groups[:1]
    skipped: list[Skipped] = []
    notes: list[str] = []
    for group in groups[1:]:
        for main in stacks[:]:
            kind = _differ(main[0], group[0]) or "geometry"
            plane = _within(main, group)
            if plane is None:
                continue
            others = "the rest" if main is groups[0] else f"{len(main)} others"
            reason = (
                f"{len(group)} of {total} images have another {kind} than {others} ({_numbers(plane, kind)} against "
                f"{_numbers(main[0], kind)}), but lie in their stack, {plane.path.name} at {point(plane.position)} mm "
                f"(LPS); export the series again, or move them away if they are no part of the scan"
            )
            if main is groups[0]:
                raise GeometryError(reason)
            stacks.remove(main)
            skipped.append(Skipped(_folder(main), f"{_folder(main)}: {reason}", failed=True))
        if len(levels(sorted(group, key=lambda plane: plane.along))) >= FEWEST:
            stacks.append(group)
            continue
        kind = _differ(groups[0][0], group[0]) or "geometry"
        reason = f"{len(group)} of {total} images of its series have another {kind} than the rest: not merged"
        skipped += [Skipped(path, reason) for path in dict.fromkeys(plane.path for plane in group)]
        notes.append(f"{len(group)} image(s) of the series with another {kind} left out")
    return stacks, skipped, tuple(notes)


def _check_apart(groups: list[list[Plane]]) -> None:
    """Raise GeometryError where a stack lies between the slices of another one, from which its geometry differs."""
    _check_single(groups)
    for main, group in itertools.permutations(groups, 2):
        if len(main) == 1:  # nothing lies between its ends
            continue
        along = [plane.along for plane in main]
        plane = _within(main, [p for p in group if min(along) < p.position @ main[0].normal < max(along)])
        if plane is not None:
            kind = _differ(main[0], plane) or "geometry"
            raise GeometryError(
                f"{len(group)} images have another {kind} than {len(main)} others ({_numbers(plane, kind)} against "
                f"{_numbers(main[0], kind)}), but lie between them, {plane.path.name} at {point(plane.position)} mm "
                f"(LPS); export the series again"
            )


def _check_single(groups: list[list[Plane]]) -> None:
    """Raise GeometryError where three or more stacks are one slice of one orientation, as slices of one volume are.

    So they become where a frame of reference of its own is given to each slice by a bad anonymiser.
    """
    single = [group[0] for group in groups if len(group) == 1]
    orientations = np.array([plane.orientation for plane in single]).reshape(-1, 6)
    for plane in single:
        alike = np.flatnonzero(np.isclose(orientations, plane.orientation, atol=1e-4).all(axis=1))
        if len(alike) > 2:
            other = single[next(n for n in alike if single[n] is not plane)]
            kind = _differ(plane, other) or "geometry"
            raise GeometryError(
                f"{len(alike)} images of one orientation have each a {kind} of its own ({_numbers(plane, kind)} in "
                f"{plane.path.name}, {_numbers(other, kind)} in {other.path.name}), so they form no volume; export the "
                f"series again"
            )


def _within(main: list[Plane], group: list[Plane]) -> Plane | None:
    """A plane of the group that continues or interleaves the main stack; None where it lies elsewhere or on a slice.

    Elsewhere: another normal (by more than 2 degrees), or beyond 1.5 slice distances.
    """
    normal = main[0].normal
    along = np.sort([plane.along for plane in main])
    gaps = np.diff(along)
    real = gaps[gaps > SAME_MM]
    usual = float(np.median(real)) if real.size else main[0].stated_gap or main[0].thickness
    if usual is None or not group or abs(group[0].normal @ normal) < np.cos(np.radians(2)):
        return None
    for plane in group:
        away = float(np.abs(along - plane.position @ normal).min())
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
    return f"...{plane.frame_of_reference[-8:]}" if plane.frame_of_reference else "none"


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
                f"{first.path.name} and {plane.path.name} carry one SOPInstanceUID at different positions "
                f"({point(first.position)} and {point(plane.position)} mm, LPS); export them again"
            )
        copies[plane.path] = first.path
    for copy, original in copies.items():
        if pixel_digest(copy) != pixel_digest(original):
            raise ScanError(
                f"{original} and {copy} carry one SOPInstanceUID but different pixels, or another slope, intercept or "
                f"padding; keep the right one"
            )
    return list(kept.values()), [Skipped(copy, f"a copy of {original}") for copy, original in copies.items()]


def _scan(ordered: list[Plane], notes: tuple[str, ...], at: tuple[int, ...]) -> Scan:
    """The scan of a volume; `at` are the places of its planes where some are missing, else ()."""
    first, last, depth = ordered[0], ordered[-1], at[-1] + 1 if at else len(ordered)
    rescaled = sum(plane.rescaled for plane in ordered)
    if 0 < rescaled < len(ordered):
        bare = next(plane for plane in ordered if not plane.rescaled)
        raise ScanError(
            f"slope or intercept stand in {rescaled} of {len(ordered)} images, but not in {bare.path.name}; export it "
            f"again"
        )
    notes = (*dict.fromkeys(note for plane in ordered for note in plane.notes), *notes)
    for (before, k), (after, end) in itertools.pairwise(zip(ordered, at, strict=False)):
        if end > k + 1:
            notes = (
                *notes,
                f"{end - k - 1} slice(s) missing between {point(before.position)} and {point(after.position)} mm "
                f"(LPS), interpolated as asked for (--resample-gaps)",
            )
    assumed: tuple[int, ...] = ()
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
        step, assumed = first.normal * (thickness or 1.0), () if thickness else (2,)
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
        if tilt > STEEPEST:
            raise GeometryError(
                f"slices are sheared by {tilt:.1f} degrees, further than any gantry tilts: from "
                f"{point(first.position)} to {point(last.position)} mm (LPS), where ImageOrientationPatient has its "
                f"normal along ({', '.join(f'{x + 0:.3g}' for x in first.normal)}); export the series again"
            )
        notes = (*notes, f"slices are sheared by {tilt:.1f} degrees (gantry tilt): the affine keeps it")
    frames = tuple(plane.frame for plane in ordered) if first.frame else ()
    files = tuple(plane.path for plane in ordered)
    return Scan("", "dicom", files, grid, frames=frames, planes=at, notes=notes, assumed=assumed, reader=read_series)


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
