"""Data lists in JSON: MONAI's, the Medical Decathlon's and nnU-Net's dataset.json."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewscan.errors import LabelError, PairingError
from fewscan.scans.cases import Case, Cases, case_name, entry_stem, ordered_cases
from fewscan.scans.content import is_wanted
from fewscan.scans.names import format_of, stem_of, suffix_of
from fewscan.scans.scan import Skipped


def cases_of_list(
    path: Path, rule: str, rows: list[dict[str, Any]], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Cases:
    """Rule 1: MONAI's and the Decathlon's lists of `{"image": ..., "label": ...}`.

    `include` and `exclude` are patterns on a case's files, below the list's folder or by name.
    """
    listing = read_json(path)
    cases: list[Case] = []
    unlabelled: list[Case] = []
    left: list[Skipped] = []
    for split in ("training", "validation"):
        for item in listing.get(split, ()):
            entry = {"image": item} if isinstance(item, str) else item
            if not isinstance(entry, dict) or "image" not in entry:
                raise PairingError(f"{path}: an item under {split!r} has no image")
            image, label = (_listed(path, entry.get(key)) for key in ("image", "label"))
            if not is_wanted([_below(file, path.parent) for file in (*image, *label)], include, exclude):
                left.append(Skipped(image[0], "not included or excluded"))
                continue
            _check_exist(path, (*image, *label))
            structures = tuple(entry_stem(file) for file in label) if len(label) > 1 else ()
            case = Case("", image, label, structures, split)  # named below, when the channels are known
            (cases if label else unlabelled).append(case)
    if not cases:
        chosen = " that --include and --exclude leave" if left else ""
        raise PairingError(f"{path}: lists no pair under 'training' or 'validation'{chosen}")
    counts = {len(case.image) for case in (*cases, *unlabelled)}
    if len(counts) > 1:
        raise PairingError(f"{path}: images have {' and '.join(map(str, sorted(counts)))} channels; give all the same")
    images = [case.image for case in (*cases, *unlabelled)]
    if not rows:
        rows = _listed_channels(path, listing, images)
    elif counts != {1}:
        rows = with_ends(rows, images, str(path))
    cases, unlabelled = (
        [replace(case, name=case_name(case.image[0], path.parent, rows)) for case in part]
        for part in (cases, unlabelled)
    )
    found = ordered_cases(cases, unlabelled, rows, listed_labels(path, listing), rule, left)
    return replace(found, undecided=undecided_value(listing))


def list_entry(case: Case, root: Path) -> dict[str, Any]:
    """A labelled case as MONAI's lists have it, with paths relative to `root`."""

    def listed(paths: Sequence[Path]) -> Any:
        names = [relative(path, root) for path in paths]
        return names[0] if len(names) == 1 else names

    return {"image": listed(case.image), "label": listed(case.label)}


def relative(path: Path, folder: Path) -> str:
    """The path as seen from a folder; as it is where they lie on two drives of Windows."""
    try:
        return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()
    except ValueError:
        return str(path.absolute())


def is_nnunet(path: Path, listing: dict[str, Any]) -> bool:
    """Whether the list is nnU-Net's, old or new: it names no images, or images without their channel's `_0000`."""
    items = listing.get("training")
    if not isinstance(items, list) or not items:
        return True
    image = items[0].get("image") if isinstance(items[0], dict) else items[0]
    return isinstance(image, str) and _is_without_channel(path.parent / image)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises PairingError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as problem:
        raise PairingError(f"{path}: is no JSON ({type(problem).__name__})") from problem
    if not isinstance(content, dict):
        raise PairingError(f"{path}: is no data list: it has no 'training'")
    return content


def _listed(path: Path, value: Any) -> tuple[Path, ...]:
    """Files that a list names, relative to its folder."""
    return tuple(path.parent / item for item in ([value] if isinstance(value, str) else value or ()))


def _check_exist(path: Path, files: Sequence[Path]) -> None:
    for file in files:
        if not file.exists():
            hint = f"; give the folder {path.parent}, it is nnU-Net's" if _is_without_channel(file) else ""
            raise PairingError(f"{path}: lists {file}, which does not exist{hint}")


def _is_without_channel(file: Path) -> bool:
    """Whether there is no such file, but one of nnU-Net's channel 0."""
    return not file.exists() and file.with_name(f"{stem_of(file)}_0000{suffix_of(file)}").exists()


def _below(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()


def _listed_channels(path: Path, listing: dict[str, Any], images: list[tuple[Path, ...]]) -> list[dict[str, Any]]:
    named = listing.get("channel_names") or listing.get("modality")
    names = [str(named[key]) for key in sorted(named, key=int)] if isinstance(named, dict) else []
    count = len(images[0])
    if count == 1:
        return [{"name": name, "index": n} for n, name in enumerate(names)] if len(names) > 1 else [
            {"name": names[0] if names else "image"}]  # fmt: skip
    rows = channels_by_ends(images, str(path))
    return [{**row, "name": name} for row, name in zip(rows, names, strict=True)] if len(names) == count else rows


def listed_labels(path: Path, listing: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Rows from `labels`, the Decathlon's {"1": "name"} or nnU-Net's {"name": 1}; without background and "ignore"."""
    named = listing.get("labels")
    if not isinstance(named, dict) or not named:
        return None
    rows = []
    for key, value in named.items():
        if isinstance(value, list):
            raise LabelError(f"{path}: the label {key!r} is a region of several values; list single values")
        name, number = (value, key) if isinstance(value, str) else (key, value)
        if name == "ignore":  # see `undecided_value`
            continue
        try:
            rows.append({"value": int(number), "name": str(name)})
        except (TypeError, ValueError) as problem:
            raise LabelError(f"{path}: the label {key!r}: {value!r} has no whole number") from problem
    return sorted((row for row in rows if row["value"] != 0), key=lambda row: int(str(row["value"])))


def undecided_value(listing: dict[str, Any]) -> int | None:
    """The value of nnU-Net's label `ignore`, which marks voxels that nobody decided; None without one."""
    named = listing.get("labels")
    value = named.get("ignore") if isinstance(named, dict) else None
    return value if isinstance(value, int) else None


def channels_by_ends(images: Sequence[tuple[Path, ...]], where: str) -> list[dict[str, Any]]:
    """Rows of channels from the ends of the file names, which have to be the same in every case."""
    ends = {_ends([entry_stem(path) for path in files]) for files in images}
    first = next(iter(ends))
    if len(ends) > 1 or not _tell_apart(first):
        raise PairingError(f"{where}: the channels' files have no common endings; name them like x_T1, x_T2")
    return [{"name": end.strip("_-. "), "suffix": end} for end in first]


def with_ends(rows: list[dict[str, Any]], images: Sequence[tuple[Path, ...]], where: str) -> list[dict[str, Any]]:
    """Rows of channels that lie in several files a case: named as `rows` are, else by the ends of the files.

    They get these ends as suffixes, except where `rows` have some, the files are slices of a DICOM series, or no ends
    tell the files apart.
    """
    if rows and (any(row.get("suffix") for row in rows) or format_of(images[0][0]) in (None, "dicom")):
        return rows
    if rows and _have_no_ends(images):
        return rows
    ends = channels_by_ends(images, where)
    if not rows:
        return ends
    if len(ends) != len(rows):
        named = ", ".join(str(row["name"]) for row in rows)
        raise PairingError(
            f"{where}: each case has {len(ends)} images, but the channels are {named}; name one for each"
        )
    return [{**end, "name": row["name"]} for end, row in zip(ends, rows, strict=True)]


def _have_no_ends(images: Sequence[tuple[Path, ...]]) -> bool:
    """Whether no case's files end in different ways behind a common start, so that ends cannot be of channels."""
    stems = [tuple(entry_stem(path) for path in files) for files in images]
    ends = [_ends(list(of_case)) for of_case in stems]
    if len(set(ends)) == 1:
        return not _tell_apart(ends[0])
    return all(own == whole or not _tell_apart(own) for own, whole in zip(ends, stems, strict=True))


def _tell_apart(ends: Sequence[str]) -> bool:
    return all(ends) and len(set(ends)) == len(ends)


def _ends(stems: list[str]) -> tuple[str, ...]:
    same = [len(set(letters)) == 1 for letters in zip(*stems, strict=False)]
    prefix = stems[0][: same.index(False) if False in same else len(same)]
    cut = max((prefix.rfind(separator) for separator in "_-."), default=-1)
    start = cut if cut > 0 else len(prefix)
    return tuple(stem[start:] for stem in stems)
