"""Labelled cases, each read in full: what plans are made from."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fewscan.errors import FewscanError, PairingError
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.pieces import count_pieces
from fewscan.scans import Case, Cases, Scan, find_cases, format_table, match_grid, open_scan, read_label, seed_labels
from fewscan.scans.cases import entry_stem
from fewscan.scans.labels import read_instances, read_values
from fewscan.training.data_page import overlay_png
from fewscan.training.fingerprint import CaseFingerprint, Fingerprint, percentiles, says_spacing
from fewscan.training.outliers import Preview
from fewscan.training.sparse import unlabelled_slices


@dataclass(frozen=True)
class Material:
    """Labelled cases that were read in full: what plans are made from."""

    root: Path
    """The folder that data lists are relative to."""
    cases: Cases
    """Those that can be used."""
    table: LabelTable
    looks: dict[str, CaseFingerprint]
    """By the name of the case, as the two below."""
    previews: dict[str, Preview]
    pictures: dict[str, bytes]
    """PNG of the label on the image; only where they were asked for."""
    structures: dict[str, str] | None
    """See `name_structures`."""
    failed: tuple[tuple[str, str], ...]
    """Cases left out: (name, why)."""

    def fingerprint(self, names: Sequence[str] | None = None) -> Fingerprint:
        """Of the named cases, by default of all."""
        chosen = list(self.looks) if names is None else names
        channels = tuple(str(channel["name"]) for channel in self.cases.channels)
        labels = tuple(label.name for label in self.table)
        return Fingerprint(channels, labels, tuple(self.looks[name] for name in chosen))


def read_material(
    data: Path,
    images: str | None = None,
    labels: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    channels: Sequence[Mapping[str, Any] | str] | None = None,
    merge_masks: str | None = None,
    undecided: int | None = None,
    pictures: bool = False,
) -> Material:
    """Pair images and labels and read every pair; prints the pairs, and the cases that are left out with the reason.

    The arguments and errors are those of `plan`; `undecided` is its `unlabelled`, `pictures` draws each case.
    """
    cases = find_cases(data, images, labels, include, exclude, channels, merge_masks)
    if undecided is not None:
        cases = replace(cases, undecided=undecided)
    print(format_table(cases))
    cases, structures, unnamed = name_structures(cases)
    cases, failed = _without_broken_labels(cases)
    failed = [*unnamed, *failed]
    table = LabelTable.from_json(seed_labels(cases))
    looks: dict[str, CaseFingerprint] = {}
    previews: dict[str, Preview] = {}
    drawn: dict[str, bytes] = {}
    for case in tqdm(cases.cases, desc="reading cases", unit="case", leave=False):
        try:
            seen = read_case(case, cases, table)
            looks[case.name] = seen.fingerprint()
            previews[case.name] = seen.preview()
            if pictures:
                drawn[case.name] = seen.picture()
        except (FewscanError, OSError) as problem:
            failed.append((case.name, str(problem)))
    for name, reason in _of_unlike_sizes([case for case in cases.cases if case.name in previews], looks):
        del looks[name], previews[name]
        drawn.pop(name, None)
        failed.append((name, reason))
    for name, reason in failed:
        print(f"left out {name}: {reason}")
    usable = tuple(case for case in cases.cases if case.name in previews)
    if not usable:
        raise PairingError(f"{data}: none of the {len(failed)} labelled cases can be used; the reasons stand above")
    root = data if data.is_dir() else data.parent
    return Material(root, replace(cases, cases=usable), table, looks, previews, drawn, structures, tuple(failed))


def name_structures(cases: Cases) -> tuple[Cases, dict[str, str] | None, list[tuple[str, str]]]:
    """Which label each mask is, where the data holds one mask per structure.

    Returns:
        The cases, all with `structures`; {stem of a mask: name of its label}, or None for label maps; and of the
        cases with a mask that nothing names (name, why).

    Raises:
        PairingError: masks of one stem are different structures.
    """
    named: dict[str, tuple[str, Path]] = {}
    for case in cases.cases if cases.merged is None else ():
        for path, name in zip(case.label, case.structures, strict=False):
            other, first = named.setdefault(entry_stem(path), (name, path))
            if other != name:
                raise PairingError(
                    f"{first} is {other!r}, but {path}, of the same stem, is {name!r}; rename the files by structure"
                )
    if not named:
        return cases, None, []
    structures = {stem: name for stem, (name, _) in named.items()}
    kept, unnamed = [], []
    for case in cases.cases:
        strange = [path for path in case.label if entry_stem(path) not in structures]
        if strange:
            known = ", ".join(structures)
            unnamed.append((case.name, f"{strange[0]}: is none of the structures {known}; rename the file"))
        else:
            kept.append(replace(case, structures=tuple(structures[entry_stem(path)] for path in case.label)))
    return replace(cases, cases=tuple(kept)), structures, unnamed


def _without_broken_labels(cases: Cases) -> tuple[Cases, list[tuple[str, str]]]:
    """The cases whose label files can be read and hold labels; of the others (name, why)."""
    try:
        seed_labels(cases)
        return cases, []
    except (FewscanError, OSError) as problem:
        first = problem
    sound, failed = [], []
    for case in cases.cases:
        try:
            if any(read_values(path)[0].any() for path in case.label):  # a scan may hold none of what is looked for
                seed_labels(replace(cases, cases=(case,)))
            sound.append(case)
        except (FewscanError, OSError) as problem:
            failed.append((case.name, str(problem)))
    if not sound or not failed:
        raise first
    return replace(cases, cases=tuple(sound)), failed


def _of_unlike_sizes(cases: Sequence[Case], looks: Mapping[str, CaseFingerprint]) -> list[tuple[str, str]]:
    """Where some files say how large a voxel is and others do not: (name, why) of the fewer, at a tie of the latter.

    No spacing suits both: on a grid of 0.0005 mm a pixel that is taken as 1 mm becomes 2000 along each axis.
    """
    stated: list[Case] = []
    unknown: list[Case] = []
    for case in cases:
        look = looks[case.name]
        (stated if says_spacing(look.format, look.spacing_mm) else unknown).append(case)
    if not stated or not unknown:
        return []
    way_out = "write the sizes into all files, or into none"

    def size(case: Case) -> str:
        return f"{' x '.join(f'{mm:.3g}' for mm in looks[case.name].spacing_mm)} mm"

    if len(stated) < len(unknown):
        others = f"{len(unknown)} of the {len(cases)} cases say none"
        return [(c.name, f"{c.image[0].name}: says that a voxel is {size(c)}, {others}; {way_out}") for c in stated]
    others = f"{len(stated)} of the {len(cases)} cases do ({stated[0].image[0].name}: {size(stated[0])})"
    return [(c.name, f"{c.image[0].name}: says no voxel size, {others}; {way_out}") for c in unknown]


@dataclass(frozen=True)
class ReadCase:
    """An image and its label; axes in the order left, posterior, superior."""

    name: str
    scan: Scan
    grid: Grid
    image: NDArray[Any]
    """(channel, i, j, k)."""
    classes: NDArray[np.int32]
    """(i, j, k), -1 where nobody decided."""
    instances: NDArray[np.int32] | None
    """(i, j, k), each object's own number from 1; None where the files hold classes."""
    table: LabelTable

    def fingerprint(self) -> CaseFingerprint:
        """The case in numbers."""
        labelled = self.image[:, self.classes > 0]
        counted = None if self.instances is None else _touching(self.instances)
        sparse, classes = unlabelled_slices(self.classes, self.grid.spacing_mm), self.classes
        if sparse is not None:
            classes = classes.copy()
            classes[(slice(None),) * sparse.axis + (sparse.unlabelled,)] = -1
        counts = np.sum([np.bincount(plane[plane >= 0], minlength=self.table.classes) for plane in classes], axis=0)
        return CaseFingerprint(
            name=self.name,
            shape=self.grid.shape,
            spacing_mm=self.grid.spacing_mm,
            format=self.scan.format,
            lowest=tuple(float(channel.min()) for channel in self.image),
            intensities=tuple(percentiles(channel) for channel in self.image),
            on_labels=tuple(percentiles(channel) for channel in labelled) if labelled.size else None,
            voxels=tuple(int(n) for n in counts),
            unlabelled=int((classes < 0).sum()),
            components=tuple(count_pieces(self.classes == label) for label in range(1, self.table.classes)),
            instances=None if counted is None else counted[0],
            touching=None if counted is None else counted[1],
            sparse_axis=None if sparse is None else sparse.axis,
            sparse_why="" if sparse is None else sparse.why,
            identity_affine=self.scan.format == "nifti" and np.array_equal(self.scan.grid.affine, np.eye(4)),
            image_sha256=digest(*self.image),
            label_sha256=digest(self.classes if self.instances is None else self.instances),
            notes=self.scan.notes,
        )

    def preview(self) -> Preview:
        """The case small, to hold it against the others."""
        return Preview.of(self.image, self.classes > 0)

    def picture(self) -> bytes:
        """The label on the image as a PNG."""
        values = self.table.to_values(self.classes.clip(min=0))
        return overlay_png(self.image, values, self.grid, self.table)


def read_case(case: Case, cases: Cases, table: LabelTable) -> ReadCase:
    """Read one case in full; raises where image and label contradict each other or the table."""
    scan = open_scan(case.image, cases.channels)
    image = scan.read()
    if len(image) != len(cases.channels):
        raise PairingError(f"{case.image[0]}: holds {len(image)} channels, where {len(cases.channels)} are expected")

    def placed(label: NDArray[Any], grid: Grid) -> NDArray[np.int32]:
        fitted = match_grid(label, grid, scan.grid, f"{case.label[0]} (label of {case.image[0]})")
        return np.ascontiguousarray(scan.grid.in_lps(fitted), dtype=np.int32)

    classes = placed(*read_label(case.label, table, case.structures, cases.merged is not None, cases.undecided))
    instances = None
    if cases.merged is not None:
        numbered, grid = read_instances(case.label, cases.undecided)
        instances = placed(numbered, grid)
    grid = scan.grid.reordered(*scan.grid.axes_to_lps())
    return ReadCase(case.name, scan, grid, scan.grid.in_lps(image), classes, instances, table)


def _touching(instances: NDArray[np.int32]) -> tuple[int, int] | None:
    """(instances, those with a voxel next to another's); None of a mask that numbers no objects."""
    from fewscan.training.weights import are_objects  # loads MONAI

    if not are_objects(instances):
        return None
    names = np.unique(instances[instances > 0])
    places = np.nonzero(instances > 0)
    around = np.pad(instances[tuple(slice(at.min(), at.max() + 1) for at in places)], 1)
    core = around[1:-1, 1:-1, 1:-1]
    found: set[int] = set()
    for step in itertools.product((-1, 0, 1), repeat=3):
        if step > (0, 0, 0):
            near = around[tuple(slice(1 + s, 1 + s + n) for s, n in zip(step, core.shape, strict=True))]
            meeting = (core > 0) & (near > 0) & (core != near)
            found |= {*core[meeting].tolist(), *near[meeting].tolist()}
    return len(names), len(found)


def digest(*volumes: NDArray[Any]) -> str:
    """SHA-256 of shape and values, whatever their type in the file."""
    found = hashlib.sha256(str([volume.shape for volume in volumes]).encode())
    for volume in volumes:
        for plane in volume:  # plane by plane: no copy of a large volume
            found.update(np.ascontiguousarray(plane, dtype=np.float32).data)
    return found.hexdigest()
