"""What a comparison says of each network: one row from the records of its folds, in numbers and in words."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fewscan.networks.vgg import WIDTHS
from fewscan.runs.score import sign_flip_test
from fewscan.training.plateau import has_plateaued

PAPER_UNET = (64, 128, 256, 512, 1024)


def row_of(
    network: str, records: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, Any]:
    """A network's row.

    Args:
        network: its name.
        records: of its folds that are done, in their order.
        reference: those of the first network, against which this one is tested.
        seed: of the test's draws.
    """
    if not records:
        return {"network": network, "folds": 0}
    cases = [case for record in records for case in record["cases"]]
    hd95 = [case["hd95_mm"] for case in cases if case["hd95_mm"] is not None]
    means = [statistics.fmean(case["dice"] for case in record["cases"]) for record in records]
    of, what = (means, "folds") if len(means) > 1 else ([case["dice"] for case in cases], "cases")
    first = records[0]
    return {
        "network": network,
        "folds": len(records),
        "cases": len(cases),
        "dice": statistics.fmean(case["dice"] for case in cases),
        "floor": statistics.fmean(case["floor"] for case in cases),
        "dice_sd": statistics.stdev(of) if len(of) > 1 else None,
        "sd_over": what,
        "iou": statistics.fmean(case["iou"] for case in cases),
        "accuracy": statistics.fmean(case["accuracy"] for case in cases),
        "hd95_mm": statistics.fmean(hd95) if hd95 else None,
        "missed": sum(case["missed"] for case in cases),
        **_test(network, records, reference, seed),
        "parameters": first["parameters"],
        "gmac_patch": first["gmac_patch"],
        "gmac_per_mvoxel": first["gmac_per_mvoxel"],
        "seconds_per_mvoxel": sum(case["seconds"] for case in cases) / sum(case["mvoxels"] for case in cases),
        "memory_mb": first["memory"]["mb"],
        "memory_before_mb": first["memory"]["before_mb"],
        "memory_how": first["memory"]["how"],
        "steps": [record["steps"] for record in records],
        "minutes": [record["minutes"] for record in records],
        "mode": first["mode"],
        "initialisation": first["initialisation"],
        "optimiser": first["optimiser"],
        "converged": [has_plateaued([loss for _, loss in record["losses"]]) for record in records],
    }


def _test(
    network: str, records: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], seed: int
) -> dict[str, Any]:
    """Difference to the reference and its p, over the groups (patients) that both have been tested on."""
    if not reference or reference[0]["network"] == network:
        return {"difference": None, "p": None, "pairs": 0}
    mine, theirs = _dice_by_group(records), _dice_by_group(reference)
    differences = [mine[group] - theirs[group] for group in mine if group in theirs]
    if not differences:
        return {"difference": None, "p": None, "pairs": 0}
    return {
        "difference": statistics.fmean(differences),
        "p": sign_flip_test(differences, seed),
        "pairs": len(differences),
    }


def _dice_by_group(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    grouped: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for case in record["cases"]:
            grouped[case["group"]].append(case["dice"])
    return {group: statistics.fmean(values) for group, values in grouped.items()}


def converged_in_words(converged: Sequence[bool | None]) -> str:
    """Of all folds of a network."""
    if all(converged):
        return "yes"
    failed = [number for number, one in enumerate(converged, start=1) if one is False]
    short = [number for number, one in enumerate(converged, start=1) if one is None]
    told = [f"has not plateaued ({_folds(failed)})"] if failed else []
    return "; ".join(told + ([f"too short to tell ({_folds(short)})"] if short else []))


def _folds(numbers: Sequence[int]) -> str:
    return f"fold{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def mode_of(network: str, definition: Mapping[str, Any]) -> str:
    """Whether a bundle's `network_def` is the network of the paper, and what differs where it is not."""
    widths, norm = tuple(definition["widths"]), definition.get("norm")
    strides = definition.get("strides")
    told = {
        "unet": f"padded, {norm} norm, widths {_span(widths)} (paper: unpadded, no norm, 64 to 1024)",
        "fcn": (
            f"FCN-{definition.get('variant', '8s')}, padded to whole cells, {norm} norm, widths {_span(widths)}, fc "
            f"{definition.get('fc_width')} (paper: 100 zeros around the image and crops, no norm, 64 to 512, fc 4096)"
        ),
        "segnet": f"widths {_span(widths)} (paper: 64 to 512)",
    }[network] + ("" if strides is None else f", poolings by {strides}")
    faithful = {
        "unet": widths == PAPER_UNET and norm is None and definition.get("padding") == "valid",
        "fcn": widths == WIDTHS
        and norm is None
        and definition.get("mode") == "faithful"
        and definition.get("fc_width") == 4096,
        "segnet": widths == WIDTHS and strides is None,
    }[network]
    return "faithful" if faithful else f"practical: {told}"


def initialisation_of(network: str) -> str:
    """How a comparison's networks start."""
    if network == "unet":
        return "random (He et al. 2015), as in the paper"
    return "random (He et al. 2015); no ImageNet weights, with which the paper's network started"


def _span(widths: Sequence[int]) -> str:
    return f"{widths[0]} to {widths[-1]}"
