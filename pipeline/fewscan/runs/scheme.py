"""How the labelled cases of a bundle are parted into what is trained on and what is tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fewscan.bundle import locate, read_json, resolve
from fewscan.errors import BundleError, FewscanError, PairingError
from fewscan.labels import LabelTable
from fewscan.runs.blocks import ENOUGH_SEEN, Block, choose_blocks, share_seen, write_training_scan
from fewscan.runs.folds import find_groups, make_folds
from fewscan.runs.postprocess import small_piece_mm3
from fewscan.runs.score import label_reading
from fewscan.scans import Case, Scan, match_grid, open_scan, read_label
from fewscan.scans.cases import entry_stem, listed_name
from fewscan.scans.labels import read_instances
from fewscan.training.alike import Thumbnail
from fewscan.training.material import digest
from fewscan.training.split import read_groups


@dataclass(frozen=True)
class Look:
    """What has to be known of a case before it is put into a fold."""

    thumbnail: Thumbnail
    small_piece_mm3: float | None
    sha256: str
    """Of image, label and grid as they were read."""


@dataclass(frozen=True)
class Part:
    """One fold: cases below `root` to train on, and to test on.

    With a `block` both come from one scan: what is trained on does not hold the block and its gap, and the scan is
    scored in the block alone, without the voxels of `untrained` labels (class indices).
    """

    root: Path
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    block: Block | None = None
    untrained: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scheme:
    """How the cases were parted, for programs and in words."""

    parts: tuple[Part, ...]
    groups: Mapping[str, str]
    """Of each case that is tested."""
    name: str
    """"leave-one-out", "5 folds", "4 blocks"."""
    how: str
    warnings: tuple[str, ...]
    blocks: Mapping[str, Any] | None = None
    """Where one scan is tested by blocks: the settings of train.json by which the labels of the trainings are read."""


def labelled_cases(bundle: Path, config: Mapping[str, Any]) -> tuple[list[Case], Path]:
    """All labelled cases of a bundle, trained on or held out, and the folder that its data list is relative to."""
    file = bundle / "configs" / "datalist.json"
    listing = read_json(file)
    entries = [entry for part in ("training", "validation") for entry in listing.get(part) or []]
    if not entries:
        raise BundleError(f"{file}: lists no labelled case; plan the bundle with data")

    def listed(value: Any) -> list[str]:
        return value if isinstance(value, list) else [value]

    root = resolve(str(bundle), config["dataset_dir"], listed(entries[0]["image"])[0])
    structures: Mapping[str, str] = config.get("structures") or {}
    cases = []
    for entry in entries:
        image, label = (tuple(locate(bundle, root, one) for one in listed(entry[key])) for key in ("image", "label"))
        named = tuple(structures[entry_stem(path)] for path in label) if structures else ()
        cases.append(Case(listed_name(entry, image[0], root, config.get("channels")), image, label, named))
    return sorted(cases, key=lambda case: case.name), root


def look_at(
    cases: Sequence[Case], settings: Mapping[str, Any], table: LabelTable, config: Mapping[str, Any]
) -> tuple[dict[str, Look], list[dict[str, str]]]:
    """Read every case; of those that cannot be used `case` and `reason`."""
    looks: dict[str, Look] = {}
    left_out = []
    for case in tqdm(cases, desc="reading cases", unit="case", leave=False):
        try:
            looks[case.name] = _look(case, settings, table, config)
        except (FewscanError, OSError) as problem:
            print(f"left out {case.name}: {problem}")
            left_out.append({"case": case.name, "reason": str(problem)})
    if not looks:
        raise BundleError(f"none of the {len(cases)} labelled cases can be used; the reasons stand above")
    return looks, left_out


def _look(case: Case, settings: Mapping[str, Any], table: LabelTable, config: Mapping[str, Any]) -> Look:
    scan, truth = _read(case, settings, table, config)
    image = scan.read()
    seen: list[NDArray[Any]] = [*image, truth, scan.grid.affine]
    if config.get("merge_masks") and config.get("border_weights"):  # these see which object a voxel is of
        seen.append(read_instances(case.label, config.get("unlabelled"))[0])
    thumbnail = Thumbnail.of(scan.grid.in_lps(image))  # a copy may have other axes in its file
    return Look(thumbnail, small_piece_mm3(truth, scan.grid.voxel_mm3), digest(*seen))


def _read(
    case: Case, settings: Mapping[str, Any], table: LabelTable, config: Mapping[str, Any]
) -> tuple[Scan, NDArray[Any]]:
    scan = open_scan(case.image, settings["channels"])
    truth, grid = read_label(case.label, table, case.structures, **label_reading(config))
    return scan, match_grid(truth, grid, scan.grid, f"{case.label[0]} (label of {case.image[0]})")


def part_cases(
    cases: Sequence[Case],
    root: Path,
    output: Path,
    looks: Mapping[str, Look],
    settings: Mapping[str, Any],
    table: LabelTable,
    config: Mapping[str, Any],
    count: int | None,
    groups: Path | None,
    seed: int,
) -> Scheme:
    """Folds of whole groups; of a single case blocks.

    Args:
        cases: that can be used.
        root: their data folder.
        output: where what is trained on without a block is written, below `blocks`.
        looks: of each case.
        settings, table, config: inference.json, its label table, train.json.
        count: folds or blocks; None for the usual number.
        groups: the user's table of groups.
        seed: of the drawing.
    """
    if len(cases) == 1:
        if groups is not None:
            raise PairingError(f"{groups}: one scan alone is parted into blocks, not by groups; leave --groups out")
        return _into_blocks(cases[0], root, output, settings, table, config, count)
    thumbnails = [looks[case.name].thumbnail for case in cases]
    found = find_groups(cases, thumbnails, None if groups is None else read_groups(groups))
    of_case, how, stack, warnings = found.of_case, found.how, found.stack, [*found.warnings]
    if len(set(of_case)) == 1:
        if groups is not None:
            raise PairingError(f"{groups}: puts all cases into one group, so nothing is left to test on")
        warnings.append(f"all cases belong to one group ({how}): this holds for more images of it, not for another")
        of_case, stack = tuple(case.name for case in cases), True
        how = "each case by itself, for all are of one group"
    parts, words = make_folds(cases, root, count, (), seed, (of_case, how), in_order=stack)
    name = "leave-one-out" if len(parts) == len(set(of_case)) else f"{len(parts)} folds"
    return Scheme(
        tuple(Part(root, fold.training, fold.test) for fold in parts),
        dict(zip((case.name for case in cases), of_case, strict=True)),
        name,
        words,
        tuple(warnings),
    )


def _values_and_reading(
    case: Case, scan: Scan, truth: NDArray[Any], table: LabelTable, config: Mapping[str, Any]
) -> tuple[NDArray[Any], dict[str, Any]]:
    """Values (i, j, k) for label files, and the settings of train.json by which they are read.

    Objects of merged masks keep their numbers, for border weights. What nobody annotated gets a value of its own.
    """
    if config.get("merge_masks"):
        numbers, grid = read_instances(case.label, config.get("unlabelled"))
        values = match_grid(numbers, grid, scan.grid, str(case.label[0])).astype(np.int64)
    else:
        values = table.to_values(np.maximum(truth, 0)).astype(np.int64)
    unknown = truth < 0
    free = int(max(values.max(), *table.values.tolist())) + 1 if unknown.any() else None
    if free is not None:
        values[unknown] = free
    return values, {"structures": None, "unlabelled": free, "sparse": None}


def _into_blocks(
    case: Case,
    root: Path,
    output: Path,
    settings: Mapping[str, Any],
    table: LabelTable,
    config: Mapping[str, Any],
    count: int | None,
) -> Scheme:
    """Writes what each block's training sees below `output`/blocks."""
    scan, truth = _read(case, settings, table, config)
    slice_axis = settings.get("slice_axis")
    cut = choose_blocks(truth, None if slice_axis is None else scan.grid.axes_to_lps()[0][slice_axis], count)
    axis = cut[0].axis
    values, reading = _values_and_reading(case, scan, truth, table, config)
    parts, warnings = [], ["blocks of one scan, of which other parts were trained on: another scan may differ more"]
    for number, block in enumerate(cut, start=1):
        training = write_training_scan(output / "blocks" / f"{number}", block, scan, values, settings["channels"])
        test = replace(case, name=f"block {number}")
        untrained = tuple(label for label, share in share_seen(truth, block).items() if share == 0)
        parts.append(Part(root, (training,), (test,), block, untrained))
    warnings += _hardly_tested(truth, cut, table)
    gap, mm = cut[0].gap, cut[0].gap * scan.grid.spacing_mm[axis]
    how = (
        f"one scan alone in {len(cut)} blocks along its axis {'ijk'[axis]}, each tested by a network that was trained "
        f"without the block and {gap} voxel(s) ({mm:.3g} mm) on either side: there the scan beyond them was mirrored, "
        "image and label. In the test it sees the scan as it is, and so the other blocks, which it was trained on"
    )
    if cut[0].first > 0 or cut[-1].stop < cut[-1].n:
        warnings.append(f"slices more than {gap} beyond the labels were trained on, not tested")
    groups = {test.name: test.name for part in parts for test in part.test}
    return Scheme(tuple(parts), groups, f"{len(cut)} blocks", how, tuple(warnings), reading)


def _hardly_tested(truth: NDArray[Any], blocks: Sequence[Block], table: LabelTable) -> list[str]:
    """In words, the labels of which trainings saw little or nothing. Raises where no label can be tested."""
    told, tested = [], False
    for number, label in enumerate(table, start=1):
        total, lost, least = int((truth == number).sum()), 0, 1.0
        for block in blocks:
            here = int((truth[block.tested] == number).sum())
            share = share_seen(truth, block).get(number, 0.0) if here else 1.0
            lost += here if share == 0 else 0
            least = min(least, share) if share else least
        tested = tested or lost < total
        if lost:
            what = "it was not tested" if lost == total else f"{lost} of its {total} voxels were not tested"
            told.append(f"{label.name} lies within one block and its gap, so {what}")
        if least < ENOUGH_SEEN:
            told.append(f"a training saw {least:.0%} of {label.name}, so its Dice says too little")
    if not tested:
        raise PairingError(
            f"each label of the one scan lies within one block, so none can be tested ({'; '.join(told)}); annotate "
            "another scan"
        )
    return told
