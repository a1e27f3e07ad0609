"""Masks that a person corrected become cases to train on: found, matched to their scans, listed in the bundle."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import BundleError, FewscanError, LabelError, PairingError
from fewscan.files import sha256
from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.scans import Scan, Skipped, open_scan
from fewscan.scans.cases import Case, listed_name
from fewscan.scans.data_lists import relative
from fewscan.scans.dicom_files import is_dicom
from fewscan.scans.dicom_segments import referenced_series
from fewscan.scans.mask_files import is_mask_file
from fewscan.scans.names import label_key, stem_of
from fewscan.training.alike import Thumbnail, near_identical
from fewscan.training.split import group_cases

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class MaskFile:
    """A file in the folder of corrections."""

    path: Path
    sha256: str


def find_masks(folder: Path, known: Collection[str] = ()) -> tuple[list[MaskFile], list[Skipped]]:
    """The masks in a folder at any depth, or one file, and what is none.

    Left out are masks whose bytes are `known` (their sha256), and those that `fewscan segment` wrote and nobody
    changed since: they would teach the network its own mistakes. Raises PairingError where the folder does not exist.
    """
    if not folder.exists():
        raise PairingError(f"{folder}: no such file or folder")
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    written = _written_by_segment(folder)
    masks, left = [], []
    for path in files:
        inside = path.relative_to(folder).parts[:-1]
        if "fewscan" in inside or any(part.startswith(".") for part in inside) or not is_mask_file(path):
            left.append(Skipped(path, "no mask"))
            continue
        mask = MaskFile(path, sha256(path))
        if mask.sha256 in known:
            left.append(Skipped(path, "added in an earlier round"))
        elif mask.sha256 in written:
            left.append(Skipped(path, "as fewscan wrote it, not corrected"))
        else:
            masks.append(mask)
    return masks, left


def _written_by_segment(folder: Path) -> set[str]:
    """Hashes of the masks that `fewscan segment` signed for in this folder."""
    hashes: set[str] = set()
    for receipt in (folder / "fewscan" / "receipts").rglob("*.json"):
        try:
            hashes |= set(json.loads(receipt.read_text(encoding="utf-8"))["outputs"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # cut short: nothing is known of its mask
    return hashes


class ScanIndex:
    """The scans that masks may belong to: by name, and by series for DICOM SEG."""

    def __init__(self, scans: Sequence[Scan], place: Path) -> None:
        self.scans, self.place = list(scans), place
        self._series: dict[str, list[Scan]] | None = None

    def of_mask(self, path: Path, folder: Path) -> Scan:
        """The scan of a mask in a folder of corrections.

        A DICOM SEG says itself of which series it is. Else a mask is called like its scan, with or without a word that
        says mask (`x`, `x_seg`), or lies in a folder that is called so; where both lie in folders, these have to agree
        as well (`b/T1_seg` is no mask of `a/T1`). Raises PairingError where that gives no scan, or several.
        """
        series = referenced_series(path) if is_dicom(path) else []
        fitting = [scan for uid in series for scan in self._by_series().get(uid, [])]
        if series and not fitting:
            raise PairingError(
                f"{path}: the series that it refers to is not in {self.place}; give the folder of its scan by --scans"
            )
        if len(fitting) == 1:
            return fitting[0]
        for name in _names_of(path, folder):
            found = [scan for scan in fitting or self.scans if _agree(name, scan.name)]
            exact = [scan for scan in found if scan.name == name]
            if len(exact or found) > 1:
                raise PairingError(
                    f"{path}: {found[0].name} and {found[1].name} in {self.place} may be its scan; call the mask by "
                    "the path of its scan below that folder"
                )
            if found:
                return (exact or found)[0]
        raise PairingError(
            f"{path}: none of the {len(self.scans)} scans in {self.place} is called so, folders included; call the "
            "mask by the path of its scan below that folder, or give the folder of the scan by --scans"
        )

    def _by_series(self) -> dict[str, list[Scan]]:
        if self._series is None:
            import pydicom

            self._series = {}
            for scan in self.scans:
                if scan.format == "dicom":
                    header = pydicom.dcmread(
                        scan.files[0], stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]
                    )
                    self._series.setdefault(str(header.get("SeriesInstanceUID")), []).append(scan)
        return self._series


def _names_of(path: Path, folder: Path) -> Iterator[str]:
    """What the scan of a mask may be called, the most telling first."""
    inside = path.relative_to(folder).parent if path != folder else Path()
    for stem in dict.fromkeys((stem_of(path), label_key(stem_of(path)))):
        if stem:
            yield (inside / stem).as_posix()
    if inside.parts:
        yield inside.as_posix()


def _agree(one: str, other: str) -> bool:
    """Whether the shorter of two paths is the end of the longer one."""
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def write_label(
    classes: NDArray[np.int32],
    scan: Scan,
    table: LabelTable,
    folder: Path,
    structures: Mapping[str, str] | None = None,
    merged: bool = False,
    unlabelled: float | None = None,
) -> list[Path]:
    """What `read_mask` gave as the label of a scan, NIfTI on its grid, as the bundle reads labels.

    `folder/<name of the scan>_seg.nii.gz`; with `structures` (see `fewscan.scans.LabelReader`) one file for each label
    below `folder/<name of the scan>`. Raises LabelError where a label has no structure, or `unlabelled` is no value
    that a mask can hold.
    """
    if merged:
        count = int(classes.max(initial=0))
        table = LabelTable.from_json([{"value": n, "name": f"object {n}"} for n in range(1, max(count, 1) + 1)])
    values = table.to_values(np.maximum(classes, 0)).astype(np.int64)
    if unlabelled is not None:
        if merged:  # a number of an object must not mean undecided
            values += values >= unlabelled
            table = LabelTable(
                tuple(replace(label, value=label.value + (label.value >= unlabelled)) for label in table)
            )
        values[classes < 0] = int(unlabelled)
        table = LabelTable((*table, *LabelTable.from_json([{"value": int(unlabelled), "name": "unlabelled"}])))
    if structures is None or merged:
        return [write_mask(values, scan, table, folder / f"{scan.name}_seg", "nifti")[0]]
    stems = {name: stem for stem, name in reversed(list(structures.items()))}
    without = [label.name for label in table if label.name not in stems and label.value != unlabelled]
    if without:
        raise LabelError(f"`structures` names no file for {without[0]}; add it to train.json")
    return [
        write_mask(
            np.where((values == label.value) | (classes < 0), values, 0),
            scan,
            table,
            folder / scan.name / stems[label.name],
            "nifti",
        )[0]
        for label in table
        if label.value != unlabelled
    ]


# --- the bundle's list of cases ---------------------------------------------------------------------------------------


def with_case(
    datalist: Mapping[str, Any], root: Path, scan: Scan, source: Sequence[Path], label: Sequence[Path], bundle: Path
) -> tuple[dict[str, Any], bool]:
    """A datalist with a corrected case, and whether that was trained on before: then its label is replaced.

    Images, from `source_of`, are named relative to `root`, labels relative to the bundle that they lie in.
    """
    training = [dict(entry) for entry in datalist.get("training") or ()]
    at = listed_in(training, root, scan)
    if at is None:
        training.append({"image": _one_or_all([relative(path, root) for path in source])})
    training[-1 if at is None else at]["label"] = _one_or_all([path.relative_to(bundle).as_posix() for path in label])
    return {**datalist, "training": training}, at is not None


def refuse_held_out(
    datalist: Mapping[str, Any], root: Path, scan: Scan, channels: Sequence[Mapping[str, Any] | str]
) -> None:
    """Raise PairingError where a score on what is held out would be no test: of a scan, its copy, or its patient.

    `channels` are the bundle's.
    """
    held_out, training = datalist.get("validation") or (), datalist.get("training") or ()
    way_out = "take it out of `validation` in configs/datalist.json first, or leave the correction out"
    at = listed_in(held_out, root, scan)
    if at is not None:
        raise PairingError(f"{scan.name}: is held out of the training, to score it; {way_out}")
    if not held_out or listed_in(training, root, scan) is not None:
        return
    cases = [_case(entry, _images(entry, root), root, channels) for entry in (*held_out, *training)]
    groups, how = group_cases([*cases, _case({}, [file.absolute() for file in scan.files], root, channels)])
    if groups[-1] in groups[: len(held_out)]:
        other = cases[groups.index(groups[-1])].name
        raise PairingError(f"{scan.name}: belongs together with {other} ({how}), which is held out; {way_out}")
    added = Thumbnail.of(scan.grid.in_lps(scan.read()))
    for case in cases[: len(held_out)]:
        other_scan = open_scan(case.image, channels)
        if near_identical([added, Thumbnail.of(other_scan.grid.in_lps(other_scan.read()))]):
            raise PairingError(f"{scan.name}: is nearly the same image as {case.name}, which is held out; {way_out}")


def _case(
    entry: Mapping[str, Any], images: Sequence[Path], root: Path, channels: Sequence[Mapping[str, Any] | str]
) -> Case:
    paths = tuple(Path(os.path.normpath(image)) for image in images)
    return Case(listed_name(entry, paths[0], root, channels), paths)


def _images(entry: Mapping[str, Any], root: Path) -> list[Path]:
    listed = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    return [root / image for image in listed]


def listed_in(entries: Sequence[Mapping[str, Any]], root: Path, scan: Scan) -> int | None:
    """The number of the entry whose image a scan is; None where it is none's."""
    files = {path.resolve() for path in scan.files}
    if scan.format == "dicom":
        files |= {path.parent for path in files}
    for number, entry in enumerate(entries):
        if files & {image.resolve() for image in _images(entry, root)}:
            return number
    return None


def source_of(scan: Scan) -> tuple[Path, ...]:
    """The files (or the DICOM folder) that `open_scan` opens as this scan. Raises PairingError where none is."""
    files = tuple(dict.fromkeys(scan.files))
    if scan.format != "dicom":
        return files
    for source in ((files[0].parent,), files):
        try:
            again = open_scan(source)
        except (FewscanError, OSError):
            continue
        if (again.files, again.frames) == (scan.files, scan.frames):
            return source
    raise PairingError(f"{scan.name}: its series holds several volumes; put the files of this one into a folder")


def _one_or_all(paths: list[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else paths


# --- the start of the training ----------------------------------------------------------------------------------------


def warm_start(network: nn.Module, weights: str) -> nn.Module:
    """The network with the weights of a file. Raises BundleError where they do not fit."""
    import torch

    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as problem:
        raise BundleError(
            f"{weights}: does not fit the network of train.json ({type(problem).__name__}), so training cannot go on "
            "from it; undo what was changed there, or train anew (`fewscan train --overwrite`)"
        ) from problem
    return network
