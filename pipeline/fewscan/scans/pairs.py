"""Images find their labels, by rules that are tried in a fixed order and said in words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewscan.errors import PairingError
from fewscan.labels import parse_ctbl
from fewscan.scans.cases import MOST_VALUES, Case, Cases, case_name, entry_stem, ordered_cases
from fewscan.scans.content import Content
from fewscan.scans.data_lists import (
    cases_of_list,
    is_nnunet,
    listed_labels,
    read_json,
    undecided_value,
    with_ends,
)
from fewscan.scans.names import IMAGE_FOLDERS, format_of, image_key, is_label_name, label_key
from fewscan.scans.open import Channels, open_file
from fewscan.scans.scan import Skipped


def find_cases(
    data: Path,
    images: str | None = None,
    labels: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    channels: Sequence[Mapping[str, Any] | str] | None = None,
    merge_masks: str | None = None,
) -> Cases:
    """The pairs of images and labels in a folder or a MONAI data list (`.json`).

    `images` and `labels` are patterns below `data`, several separated by commas, paired by equal `*` parts; without
    them the layout is recognised: dataset.json, image and label folders, names with suffixes, a folder per case, a
    mask per structure. `include` and `exclude` are patterns on the path below `data`, or on the name, of the files.
    `merge_masks` names the one class that everything above 0 becomes. Raises PairingError where nothing is found or a
    pair would be a guess.
    """
    data = Path(data)
    if not data.exists():
        raise PairingError(f"{data}: no such file or folder")
    if (images is None) != (labels is None):
        raise PairingError("give both --images and --labels, or neither")
    rows = [{"name": row} if isinstance(row, str) else dict(row) for row in channels or ()]
    if data.is_file():
        if data.suffix.lower() != ".json":
            raise PairingError(f"{data}: neither a folder nor a data list (.json)")
        if images is not None:
            raise PairingError(f"{data}: a data list names its pairs itself; give its folder, or no --images, --labels")
        listed = cases_of_list(data, f"the data list {data.name}", rows, include, exclude)
        return replace(listed, channels=_channels_held(listed), merged=merge_masks)
    content = Content.of(data, include, exclude)
    if images is not None and labels is not None:
        found = _by_patterns(content, images, labels, rows, merge_masks)
    else:
        found = _by_layout(content, rows, merge_masks)
    if found is None:
        raise PairingError(_nothing(content, images, labels))
    table = found.labels if found.labels is not None else _colour_table(data)
    if merge_masks is not None:
        table = [{"value": 1, "name": merge_masks}]
    skipped = (*found.skipped, *content.skipped)
    return replace(found, channels=_channels_held(found), labels=table, merged=merge_masks, skipped=skipped)


# --- the rules in their order ----------------------------------------------------------------------------------------


def _by_layout(content: Content, rows: list[dict[str, Any]], merge: str | None) -> Cases | None:
    description = content.root / "dataset.json"
    listing = read_json(description) if description.exists() else {}
    if listing and (listing.get("training") or any("imagesTr" in content.below(path)[:1] for path in content.entries)):
        return _by_dataset_json(content, description, rows)
    rules: list[Callable[[Content, list[dict[str, Any]], str | None], Cases | None]] = [
        _by_folders, _by_suffix, _by_case_folder, _by_structure,
    ]  # fmt: skip
    for rule in rules:
        found = rule(content, rows, merge)
        if found is not None and found.cases:  # a dataset.json beside another layout still names the labels
            labels = found.labels or listed_labels(description, listing)
            return replace(found, labels=labels, undecided=undecided_value(listing))
    return None


def _by_dataset_json(content: Content, path: Path, rows: list[dict[str, Any]]) -> Cases:
    """Rule 3: a Decathlon folder by its list, an nnU-Net folder by imagesTr, labelsTr and channel suffixes."""
    listing = read_json(path)
    if not is_nnunet(path, listing):
        return cases_of_list(path, "dataset.json (Medical Decathlon)", rows, content.include, content.exclude)
    channel_names = listing.get("channel_names") or listing.get("modality") or {}
    if not rows:
        rows = [
            {"name": str(name), "suffix": f"_{int(number):04d}"}
            for number, name in sorted(channel_names.items(), key=lambda item: int(item[0]))
        ] or [{"name": "image", "suffix": "_0000"}]
    images = [path for path in content.entries if content.below(path)[:1] == ("imagesTr",)]
    labels = [path for path in content.entries if content.below(path)[:1] == ("labelsTr",)]
    grouped, left = _grouped(images, rows)
    pairs = _match(content, grouped, labels, lambda path: [entry_stem(path)], rows)
    if not pairs[0]:
        raise PairingError(f"{path}: no file in imagesTr has a label of its name in labelsTr")
    left = [*left, *pairs[2]]
    found = ordered_cases(*pairs[:2], rows, listed_labels(path, listing), "dataset.json (nnU-Net)", left)
    return replace(found, undecided=undecided_value(listing))


def _by_patterns(
    content: Content, images: str, labels: str, rows: list[dict[str, Any]], merge: str | None
) -> Cases | None:
    """Rule 2: patterns; what their `*` stand for has to be equal. One `*` more in the labels names structures."""
    image_patterns, label_patterns = images.split(","), labels.split(",")
    by_pattern = [_globbed(content, pattern.strip()) for pattern in image_patterns]
    grouped: dict[tuple[str, ...], list[Path]] = {}
    for found in by_pattern:
        for key, path in found.items():
            grouped.setdefault(key, []).append(path)
    counts = {len(paths) for paths in grouped.values()}
    if len(counts) > 1:
        key = max(grouped, key=lambda key: len(grouped[key]))
        raise PairingError(f"{_names(grouped[key])}: two images for one case; let the patterns match one each")
    if counts and counts != {1}:
        rows = with_ends(rows, [tuple(paths) for paths in grouped.values()], images)
    masks: dict[tuple[str, ...], list[tuple[str, Path]]] = {}
    for pattern in label_patterns:
        for key, path in _globbed(content, pattern.strip()).items():
            home, structure = (key, "") if key in grouped else (key[:-1], key[-1] if key else "")
            masks.setdefault(home, []).append((structure, path))
    cases: list[Case] = []
    unlabelled: list[Case] = []
    for key, paths in sorted(grouped.items()):
        found_masks = sorted(masks.pop(key, []))
        name = "/".join(key).strip("/") or entry_stem(paths[0])
        case = Case(name, tuple(paths), tuple(path for _, path in found_masks))
        structures = tuple(structure for structure, _ in found_masks)
        if len(found_masks) > 1 and not all(structures):
            raise PairingError(f"{_names(case.label)}: two labels for {paths[0].name}; let the patterns match one each")
        case = replace(case, structures=structures if any(structures) and merge is None else ())
        (cases if found_masks else unlabelled).append(case)
    if not cases:
        return None
    _check_structures(cases, merge)
    left = [Skipped(path, f"{path}: a label without an image", True) for items in masks.values() for _, path in items]
    return ordered_cases(cases, unlabelled, rows, None, f"the patterns {images} and {labels}", left)


def _by_folders(content: Content, rows: list[dict[str, Any]], merge: str | None) -> Cases | None:
    """Rule 4: a folder of labels beside a folder of images, by equal names."""
    scopes: dict[Path, dict[Path, list[Path]]] = {}
    for path in content.entries:
        folder = content.label_folder(path)
        if folder is not None:
            parent = folder.parent.parent if folder.parent.name == "derivatives" else folder.parent
            scopes.setdefault(parent, {}).setdefault(folder, []).append(path)
    cases: list[Case] = []
    unlabelled: list[Case] = []
    left: list[Skipped] = []
    suffixes: list[dict[str, Any]] = []
    for scope, folders in sorted(scopes.items()):
        images = _images_of(content, scope)
        wanted = rows
        if not rows and images and all(entry_stem(path).endswith("_0000") for path in images):
            wanted = suffixes = [{"name": "image", "suffix": "_0000"}]
        grouped, unused = _grouped(images, wanted)
        matches = {
            folder: _match(content, grouped, labels, _keys_of_label, wanted) for folder, labels in folders.items()
        }
        paired = [folder for folder, (found, _, _) in matches.items() if found]
        image_sets = {case.image for folder in paired for case in matches[folder][0]}
        if len(image_sets) < sum(len(matches[folder][0]) for folder in paired):
            raise PairingError(
                f"{' and '.join(str(folder) for folder in paired)}: both hold labels for the same images; leave one "
                f"out (--exclude '*{paired[-1].name}/*') or give --images and --labels"
            )
        for folder in paired:
            found, _, strays = matches[folder]
            cases += found
            left += strays
        if paired:
            without = [case for case in matches[paired[0]][1] if case.image not in image_sets]
            unlabelled += without
            left += unused
    if not cases:
        return None
    rule = "folders of images and labels with equal names"
    return ordered_cases(cases, unlabelled, rows or suffixes, None, rule, left)


def _by_suffix(content: Content, rows: list[dict[str, Any]], merge: str | None) -> Cases | None:
    """Rule 5: image and label in one folder, the label's name with a suffix."""
    cases: list[Case] = []
    unlabelled: list[Case] = []
    left: list[Skipped] = []
    for folder, entries in _by_folder(content).items():
        labels = [path for path in entries if is_label_name(path)]
        grouped, unused = _grouped([path for path in entries if path not in labels], rows)
        found, without, strays = _match(content, grouped, labels, _keys_of_label, rows)
        if found and len(found) == 1 and not without and folder != content.root:
            found = [replace(found[0], name=folder.relative_to(content.root).as_posix())]
        cases += found
        unlabelled += without
        left += [*strays, *unused]
    return ordered_cases(cases, unlabelled, rows, None, "names with a suffix such as _seg", left) if cases else None


def _by_case_folder(content: Content, rows: list[dict[str, Any]], merge: str | None) -> Cases | None:
    """Rule 6: a folder per case with one image and one file that is named like a label."""
    cases: list[Case] = []
    unlabelled: list[Case] = []
    for folder, entries in _by_folder(content).items():
        if folder == content.root:
            continue
        labels = [path for path in entries if is_label_name(path)]
        grouped, _ = _grouped([path for path in entries if path not in labels], rows)
        name = folder.relative_to(content.root).as_posix()
        if len(grouped) == 1 and len(labels) <= 1:
            case = Case(name, next(iter(grouped.values())), tuple(labels))
            (cases if labels else unlabelled).append(case)
        elif len(labels) == 1 and len(grouped) > 1:
            images = [files[0] for files in grouped.values()]
            other = f"*/{images[-1].name}/*" if format_of(images[-1]) is None else f"*/{images[-1].name}"
            raise PairingError(
                f"{_names(images)} in {folder}: {len(images)} images for the label {labels[0].name}; are they "
                f"channels? Give --images with one pattern per channel, and --labels. Is one no image of the case? "
                f"Leave it out, for example by --exclude '{other}'"
            )
    if not cases:
        return None
    return ordered_cases(cases, unlabelled, rows, None, "a folder per case with one image and one label")


def _by_structure(content: Content, rows: list[dict[str, Any]], merge: str | None) -> Cases | None:
    """Rule 7: a folder per case with one image and a folder of masks, one per structure."""
    masks: dict[Path, list[Path]] = {}
    for path in content.entries:
        folder = content.label_folder(path)
        if folder is not None:
            masks.setdefault(folder, []).append(path)
    cases = []
    for folder, files in sorted(masks.items()):
        images = _images_of(content, folder.parent)
        grouped, _ = _grouped(images, rows)
        if len(grouped) != 1:
            continue
        below = folder.parent.relative_to(content.root).as_posix()
        name = content.root.resolve().name if below == "." else below
        structures = tuple(entry_stem(path) for path in files) if merge is None else ()
        cases.append(Case(name, next(iter(grouped.values())), tuple(files), structures))
    if not cases:
        return None
    _check_structures(cases, merge)
    return ordered_cases(cases, [], rows, None, "a folder per case with one mask per structure")


# --- parts of the rules ----------------------------------------------------------------------------------------------


def _keys_of_label(path: Path) -> list[str]:
    return list(dict.fromkeys([entry_stem(path), label_key(entry_stem(path))]))


def _match(
    content: Content,
    images: dict[str, tuple[Path, ...]],
    labels: Sequence[Path],
    keys_of: Callable[[Path], list[str]],
    rows: Sequence[Mapping[str, Any]],
) -> tuple[list[Case], list[Case], list[Skipped]]:
    """Labels to images by key: (cases, images without label, labels without image)."""
    by_key: dict[str, list[str]] = {}
    for name in images:
        stem, first = name.rsplit("/", 1)[-1], images[name][0]
        above = [first.parent.name] if format_of(first) is None else []  # a series in its patient's folder
        for key in dict.fromkeys([stem, image_key(stem), *above]):
            by_key.setdefault(key, []).append(name)
    taken: dict[str, Path] = {}
    left: list[Skipped] = []
    for path in labels:
        found = next((by_key[key] for key in keys_of(path) if key in by_key), [])
        if len(found) > 1:  # the same name in several folders: the one in the label's own subfolder
            inner = path.parent.name
            found = [name for name in found if images[name][0].parent.name == inner] or found
        if len(found) > 1:
            raise PairingError(f"{_names([images[name][0] for name in found])}: two images for the label {path.name}")
        if not found:
            left.append(Skipped(path, f"{path}: a label without an image", failed=True))
            continue
        if found[0] in taken:
            raise PairingError(
                f"{taken[found[0]].name} and {path.name} in {path.parent}: two labels for "
                f"{images[found[0]][0].name}; leave one out by --exclude, or give --images and --labels"
            )
        taken[found[0]] = path
    cases = [
        Case(case_name(files[0], content.root, rows), files, (taken[name],))
        for name, files in images.items()
        if name in taken
    ]
    without = [
        Case(case_name(files[0], content.root, rows), files) for name, files in images.items() if name not in taken
    ]
    return cases, without, left


def _images_of(content: Content, scope: Path) -> list[Path]:
    """Entries below a folder that are no labels; only those in image folders where the folder has such."""
    images = [
        path
        for path in content.entries
        if path.is_relative_to(scope) and content.label_folder(path) is None and not is_label_name(path)
    ]
    inner = [
        path
        for path in images
        if path.relative_to(scope).parts[:-1] and path.relative_to(scope).parts[0].lower() in IMAGE_FOLDERS
    ]
    return inner or images


def _by_folder(content: Content) -> dict[Path, list[Path]]:
    """Entries outside label folders by their folder; a DICOM folder counts to itself where it holds other files."""
    shared = {path.parent for path in content.entries} & set(content.entries)
    folders: dict[Path, list[Path]] = {}
    for path in content.entries:
        if content.label_folder(path) is None:
            folders.setdefault(path if path in shared else path.parent, []).append(path)
    return folders


def _grouped(
    images: Sequence[Path], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, tuple[Path, ...]], list[Skipped]]:
    """Images by folder and stem, the files of a case's channels together. A case that lacks a channel is left out."""
    wanted = Channels.of(list(rows))
    if wanted is None or not wanted.suffixes:
        return {(path.parent / entry_stem(path)).as_posix(): (path,) for path in _distinct(images)}, []
    found: dict[str, dict[str, Path]] = {}
    left: list[Skipped] = []
    for path in images:
        stem = entry_stem(path)
        suffix = wanted.suffix_in(stem)
        if suffix is None:
            left.append(Skipped(path, f"none of the channels: {', '.join(wanted.suffixes)}"))
        else:
            found.setdefault((path.parent / stem.removesuffix(suffix)).as_posix(), {})[suffix] = path
    grouped = {}
    for name, files in found.items():
        missing = [s for s in wanted.suffixes if s not in files]
        if missing:
            reason = f"{next(iter(files.values()))}: the channel(s) {', '.join(missing)} of this case are missing"
            left.append(Skipped(next(iter(files.values())), reason, failed=True))
        else:
            grouped[name] = tuple(files[s] for s in wanted.suffixes)
    return grouped, left


def _channels_held(cases: Cases) -> list[dict[str, Any]]:
    """The cases' rows of channels; where nobody named any, those that a photograph or TIFF holds by itself."""
    image = cases.cases[0].image[0]
    if cases.channels != [{"name": "image"}] or format_of(image) not in ("png", "tiff"):
        return cases.channels
    names = open_file(image, image.name).channels
    return [{"name": name, "index": n} for n, name in enumerate(names)] if len(names) > 1 else [{"name": "image"}]


def _distinct(images: Sequence[Path]) -> Sequence[Path]:
    seen: dict[str, Path] = {}
    for path in images:
        other = seen.setdefault((path.parent / entry_stem(path)).as_posix(), path)
        if other is not path:
            raise PairingError(f"{other.name} and {path.name} in {path.parent}: two images of one name; leave one out")
    return images


def _check_structures(cases: Sequence[Case], merge: str | None) -> None:
    """Refuse masks whose names are no structures: they do not recur from case to case."""
    if merge is not None:
        return
    sets = [set(case.structures) for case in cases if case.structures]
    if not sets:
        return
    recurring = {name for number, names in enumerate(sets) for name in names if any(
        name in other for place, other in enumerate(sets) if place != number)}  # fmt: skip
    everything = set().union(*sets)
    if (len(sets) > 1 and len(recurring) * 2 < len(everything)) or len(everything) > MOST_VALUES * 4:
        case = next(case for case in cases if case.structures)
        raise PairingError(
            f"{case.label[0].parent}: {len(case.label)} masks whose names do not recur in other cases, so they are "
            f"objects, not structures; --merge-masks NAME makes them one class"
        )


def _globbed(content: Content, pattern: str) -> dict[tuple[str, ...], Path]:
    """Entries that match a pattern below the root, by what its `*` stand for."""
    wild = {"**/": "(?:(.*)/)?", "*": "([^/]*)", "?": "([^/])"}
    parts = re.split(r"(\*\*/|\*|\?)", pattern)
    expression = re.compile("".join(wild.get(part, re.escape(part)) for part in parts))
    found: dict[tuple[str, ...], Path] = {}
    for path in content.entries:
        match = expression.fullmatch(path.relative_to(content.root).as_posix())
        if match is None:
            continue
        key = tuple(group or "" for group in match.groups())
        if key in found:
            raise PairingError(f"{found[key].name} and {path.name}: both match {pattern} in the same way")
        found[key] = path
    return found


def _colour_table(folder: Path) -> list[dict[str, Any]] | None:
    tables = sorted(folder.glob("*.ctbl"))
    return parse_ctbl(tables[0].read_text(encoding="utf-8"), str(tables[0])) if len(tables) == 1 else None


# --- words -----------------------------------------------------------------------------------------------------------


def _names(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    return " and ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]} and {len(names) - 2} more"


def _nothing(content: Content, images: str | None, labels: str | None) -> str:
    seen = ", ".join(path.relative_to(content.root).as_posix() for path in content.entries[:6]) or "no image at all"
    looked = (
        f"the patterns {images} and {labels}"
        if images is not None
        else "dataset.json, folders images/ and labels/, names with _seg, _mask or _label, a folder per case, and "
        "masks per structure"
    )
    return (
        f"{content.root}: no image with a label; looked for {looked}; the first of {len(content.entries)} files: {seen}"
        f". Give --images and --labels patterns"
    )
