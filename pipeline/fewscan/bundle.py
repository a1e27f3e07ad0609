"""The bundle on disk: where the template lies, what its configs ask for, and how a plan is written into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fewscan import __version__
from fewscan.errors import BundleError, FewscanError, first_line, ours
from fewscan.files import replace_when_complete, sha256
from fewscan.labels import LabelTable


def template(network: str = "unet") -> Path:
    """The folder of a network's bundle as it is shipped, untrained."""
    here = Path(__file__).resolve().parent
    for folder in (here / "bundles", here.parents[1] / "bundles"):  # installed; a source checkout
        if (folder / f"{network}_segmentation" / "configs" / "train.json").exists():
            return folder / f"{network}_segmentation"
    raise BundleError(f"the bundle {network}_segmentation was not installed with fewscan; install fewscan again")


def write_bundle(
    output: Path,
    settings: Mapping[str, Any],
    datalist: Mapping[str, Any],
    documents: Mapping[str, str],
    network: str = "unet",
) -> None:
    """A new bundle from the template, with these settings at the top of its configs.

    Args:
        output: the bundle's folder; has to be new, or empty and not the current one.
        settings: by name; those that inference shares go into both configs. `network_def` changes the template's.
        datalist: `training` and `validation` cases, MONAI's format.
        documents: further texts by their path in the bundle.
        network: whose template.
    """
    refuse_occupied(output)
    refuse_markup(str(output))
    for key in ("labels", "channels", "structures", "dataset_dir"):  # what comes from the data
        refuse_markup(settings.get(key))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.unfinished")
    if temporary.exists():
        shutil.rmtree(temporary)
    try:
        shutil.copytree(template(network), temporary, ignore=shutil.ignore_patterns("models"))
        (temporary / "models").mkdir()
        for name in ("train", "inference"):
            config = read_json(temporary / "configs" / f"{name}.json")
            network_def = {**config["network_def"], **settings.get("network_def", {})}
            config.update({key: value for key, value in settings.items() if key in config})
            config["network_def"] = network_def
            _write_json(temporary / "configs" / f"{name}.json", config)
        _write_json(temporary / "configs" / "datalist.json", datalist)
        metadata = read_json(temporary / "configs" / "metadata.json")
        _describe_data(metadata["network_data_format"], settings)
        _write_json(temporary / "configs" / "metadata.json", metadata)
        for path, text in documents.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
        if output.exists():
            output.rmdir()
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def parsed(config: Path, device: Any = None) -> Iterator[Callable[[str], Any]]:
    """A bundle's config, whose entries are built by their names within the block.

    `device` stands for the config's own where it is given. Raises BundleError, which names the config, where anything
    fails in the block: an edited config can raise anything.
    """
    from monai.bundle import ConfigParser

    refuse_markup(str(config.parents[1]))
    parser = ConfigParser()
    parser.read_config(str(config))
    parser["bundle_root"] = str(config.parents[1])
    if device is not None:
        parser["device"] = device
    try:
        yield parser.get_parsed_content
    except FewscanError:
        raise
    except Exception as problem:
        raise ours(problem) or BundleError(f"{config}: cannot be used ({first_line(problem)})") from problem


def refuse_markup(value: Any) -> None:
    """Raise BundleError where text from a person's data would be markup in a MONAI config: `$` is run as code there.

    `value` is anything that JSON holds; `#` counts too, for MONAI rewrites it to `::` in every text.
    """
    if isinstance(value, Mapping):
        refuse_markup(list(value))
        refuse_markup(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            refuse_markup(one)
    elif isinstance(value, str) and (value.lstrip()[:1] in ("$", "@", "%") or "#" in value or "::" in value):
        raise BundleError(
            f"{value!r}: a name or path that begins with $, @ or %, or holds # or ::, means something else to MONAI; "
            "rename it"
        )


def refuse_occupied(output: Path) -> None:
    """Raise BundleError where something stands in the way of a new bundle, which takes the place of an empty folder."""
    if output.exists() and output.samefile(os.curdir):
        raise BundleError(f"{output}: is the folder that you are in; name a folder that does not exist yet")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BundleError(f"{output}: is not empty; choose another --output, or remove it")


def _describe_data(data_format: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """MONAI Label and `verify_net_in_out` read channels, classes and names from the metadata."""
    table = LabelTable.from_json(settings["labels"])
    shape = ["32*n"] * settings["spatial_dims"]
    names = [str(channel["name"]) for channel in settings["channels"]]
    data_format["inputs"]["image"].update(
        num_channels=len(names), spatial_shape=shape, channel_def={str(i): name for i, name in enumerate(names)}
    )
    classes = ["background", *(label.name for label in table)]
    data_format["outputs"]["pred"].update(
        num_channels=len(classes), spatial_shape=shape, channel_def={str(i): name for i, name in enumerate(classes)}
    )


def read_json(path: Path) -> Any:
    """The content of a JSON file; a BundleError that names it where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path}: is missing; is {path.parent} the right folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise BundleError(f"{path}: is no valid JSON ({problem})") from problem


def _write_json(path: Path, content: Any) -> None:
    """In ASCII: MONAI reads configs in the machine's own encoding."""
    with replace_when_complete(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8", newline="\n")


# What the configs call by name.


def resolve(bundle_root: str, path: str, holds: str = ".") -> Path:
    """A path of a config: relative to the bundle, or (as typed on a command line) to the current folder.

    `holds` is a file below it, by which the right one of the two is known (`..` exists everywhere). Raises
    BundleError where it exists nowhere, or in both places as two different things.
    """
    places = dict.fromkeys(((Path(bundle_root) / path).resolve(), Path(path).resolve()))
    fitting = [place for place in places if (place / holds).exists()]
    if len({(place / holds).resolve() for place in fitting}) == 1:  # of two places, both may lead to one file by `..`
        return fitting[0]
    shown, looked = path if holds == "." else f"{path}/{holds}", " and as ".join(map(str, fitting or places))
    if fitting:
        raise BundleError(f"{shown} exists as {looked}; give an absolute path")
    way_out = "correct the config, or give the right path"
    if holds != ".":
        way_out = "set `dataset_dir` in the config to where the data lies now, or `fewscan train --data FOLDER`"
    raise BundleError(f"{shown} does not exist (looked for as {looked}); {way_out}")


def read_cases(bundle_root: str, dataset_dir: str, datalist: str, split: str) -> list[dict[str, Any]]:
    """The cases of a datalist's `training` or `validation`, with paths made absolute below `dataset_dir`.

    Corrected masks lie in the bundle and are named relative to it. Raises BundleError where a file is missing, or where
    a case stands in both parts.
    """
    file = resolve(bundle_root, datalist)
    content = read_json(file)
    parts = {name: content.get(name) or [] for name in ("training", "validation")}
    if not parts[split]:
        return []
    first = parts[split][0]["image"]
    root = resolve(bundle_root, dataset_dir, first[0] if isinstance(first, list) else first)

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(one) for one in value]
        path = locate(Path(bundle_root), root, value)
        if not path.exists():
            raise BundleError(f"{path}: is named in {file} but does not exist; is dataset_dir {root} the right folder?")
        return str(path)

    def images(part: str) -> set[Path]:
        listed = (case["image"] for case in parts[part])
        return {(root / one).resolve() for value in listed for one in (value if isinstance(value, list) else [value])}

    both = images("training") & images("validation")
    if both:
        raise BundleError(f"{file}: {min(both)} stands under training and validation; a score on it would be no test")
    return [{key: absolute(case[key]) for key in ("image", "label")} for case in parts[split]]


def locate(bundle: Path, root: Path, path: str) -> Path:
    """A file that a datalist names: below the folder of the cases or, as corrected masks are, in the bundle."""
    below, inside = root / path, bundle.resolve() / path
    return inside if inside.exists() and not below.exists() else below


def items_to_segment(dataset_dir: str, channels: Sequence[Mapping[str, Any]], output_dir: str) -> list[dict[str, Any]]:
    """Every scan in a folder as an item of a MONAI dataset; what is no scan is named on the way.

    Raises BundleError where there is none, ScanError where two have one name.
    """
    from fewscan.scans.find import find_scans, refuse_equal_names
    from fewscan.scans.reader import image_paths

    found = find_scans(Path(dataset_dir), channels=list(channels), output=Path(output_dir))
    for skipped in found.skipped:
        if skipped.failed:
            print(f"skipped {skipped.path}: {skipped.reason}")
    if not found.scans:
        raise BundleError(
            f"{dataset_dir}: holds no scan that this bundle could segment ({len(found.skipped)} files skipped)"
        )
    refuse_equal_names(found.scans)
    return [{"image": image_paths(scan)} for scan in found.scans]


def provenance(bundle_root: str) -> dict[str, str]:
    """What makes the masks of a bundle: its name, fewscan's version and the hash of its weights.

    Where no bundle lies, as in programs that read a bundle without telling it where it is, and save masks by
    themselves, the hash is "unknown". Raises BundleError where the bundle would see scans otherwise than it was trained
    to.
    """
    if not (Path(bundle_root) / "configs").is_dir():
        return {"version": __version__, "model_sha256": "unknown"}
    refuse_disagreement(Path(bundle_root))
    weights = Path(bundle_root) / "models" / "model.pt"
    return {
        "bundle": Path(bundle_root).resolve().name,
        "version": __version__,
        "model_sha256": sha256(weights) if weights.exists() else "untrained",
    }


def refuse_disagreement(bundle: Path) -> None:
    """Raise BundleError where inference.json sees scans otherwise than train.json, or than the network was trained.

    Compares what decides labels; names of labels may differ. A bundle that was passed on without its train.json or
    without the record of its training (models/training.json) is compared with what is there.
    """
    train, inference = (bundle / "configs" / f"{name}.json" for name in ("train", "inference"))
    record = bundle / "models" / "training.json"
    now = _seen_by_network(read_json(inference))
    if train.exists():
        planned = _seen_by_network(read_json(train))
        key = _first_difference(planned, now)
        if key is not None:
            raise BundleError(
                f"{train} has {key} {planned[key]}, but {inference} has {now[key]}: the network would see scans "
                "otherwise than it was trained to; make them equal, and train again if train.json was changed"
            )
    trained = read_json(record).get("settings", {}) if record.exists() else {}
    key = _first_difference(trained, now)
    if key is not None:
        raise BundleError(
            f"{record}: the network was trained with {key} {trained[key]}, but {inference} has {now[key]}; restore it "
            "in the configs, or train again (`fewscan train --overwrite`)"
        )


_SEEN_BY_NETWORK = ("spatial_dims", "channels", "labels", "spacing", "slice_axis", "intensity_window", "network_def")


def _seen_by_network(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config that decide what the network sees and answers; of labels the values alone."""
    settings = {key: config.get(key) for key in _SEEN_BY_NETWORK}
    return {**settings, "labels": LabelTable.from_json(config.get("labels", ())).values.tolist()}


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first of the compared settings that both have with different values."""
    return next((key for key in _SEEN_BY_NETWORK if key in one and one[key] != other[key]), None)


def deciding_settings(
    bundle_root: str,
    datalist: str,
    labels: Sequence[Mapping[str, Any] | str],
    network: Any = None,
    **settings: Any,
) -> dict[str, Any]:
    """What decides the outcome of a training, as JSON: a resumed one has to have the same.

    Args:
        bundle_root: the bundle, whose train.json holds `network_def`.
        datalist: the file of the cases; kept as the hash of its cases.
        labels: of which only the values count.
        network: the network itself; an FCN in stages has another `variant` than train.json.
        settings: further ones, as they are.
    """
    try:
        cases = read_json(resolve(bundle_root, datalist))
        cases_sha256 = cases_hash(cases)
    except BundleError:  # MONAI Label brings its own cases
        cases_sha256 = None
    network_def = read_json(Path(bundle_root) / "configs" / "train.json")["network_def"]
    if "variant" in network_def:
        network_def["variant"] = getattr(network, "variant", network_def["variant"])
    values = LabelTable.from_json(labels).values.tolist()
    return {**settings, "labels": values, "network_def": network_def, TRAINED_CASES: cases_sha256}


TRAINED_CASES = "cases (sha256)"
"""Of the settings that a training records: the hash of the cases that it had."""


def cases_hash(listing: Mapping[str, Any]) -> str:
    """Of the cases that a data list trains on and holds out."""
    listed = json.dumps([listing.get("training"), listing.get("validation")], sort_keys=True)
    return hashlib.sha256(listed.encode()).hexdigest()


def settings_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """In words, the first of the settings that two trainings do not share; None where there is none."""
    for key in dict.fromkeys([*now, *before]):
        if now.get(key) != before.get(key):
            return f"{key} {before.get(key)}, now it is {now.get(key)}"
    return None


def refuse_empty(dataset: Sized, datalist: str) -> None:
    """Raise BundleError where no case was held out, so that nothing can be scored honestly."""
    if len(dataset) == 0:
        raise BundleError(
            f"{datalist}: holds no `validation` cases, so there is nothing to score that was not trained on; "
            "plan with --validation N"
        )


def device_of_this_rank() -> Any:
    """The device of this process under `torchrun`: its own GPU, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
