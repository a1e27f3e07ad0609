"""What a plan decides, each setting with its reason in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fewscan.errors import BundleError, PairingError
from fewscan.labels import LabelTable
from fewscan.networks import FCN, SegNet, UNet
from fewscan.networks.layers import cell_of, strides_by_axis
from fewscan.scans import Cases
from fewscan.training.fingerprint import AXES, CaseFingerprint, Fingerprint
from fewscan.training.memory import CASES_SHARE, CONTEXT_GB, Budget, training_bytes

PATCH_VOXELS = {2: 224 * 224, 3: 64 * 64 * 64}
NETWORK_DEF: dict[str, dict[int, dict[str, Any]]] = {
    "unet": {2: {"widths": [24, 48, 96, 192, 192]}, 3: {"widths": [16, 32, 64, 128]}},
    "fcn": {
        2: {"widths": [16, 32, 64, 128, 128], "strides": None},
        3: {"widths": [16, 32, 64, 128, 128], "strides": [2, 2, 2, 1, 1]},
    },
    "segnet": {
        2: {"widths": [16, 32, 64, 128, 128], "strides": None},
        3: {"widths": [16, 32, 64, 128, 128], "strides": [2, 2, 2, 1, 1]},
    },
}
"""What two cores train in minutes; FCN and SegNet at a quarter of VGG-16's width, in 3D with three poolings by 2.

U-Net has fewer levels where images are small (see `_levels`)."""
LEARNING_RATE = {"unet": {2: 0.002, 3: 0.002}, "fcn": {2: 0.008, 3: 0.008}, "segnet": {2: 0.008, 3: 0.002}}
"""Of AdamW; each the best of a few on held-out training cases of two data sets (docs/measured.md)."""
BATCH = {2: (2, 8), 3: (2, 2)}
"""Fewest and most patches in a batch on two cores; two of the largest size."""
GPU_NETWORK = {2: (32, 512), 3: (32, 320)}
"""U-Net on a GPU: channels at full resolution, doubled from level to level up to the second number."""
GPU_LEVELS = {2: 4, 3: 4}
"""Poolings at most: a voxel's answer looks 6 x 2^levels voxels far, and large volumes are tiled with that overlap."""
GPU_PATCH = {2: 512, 3: 128}
"""Voxels along an axis, at most on average."""
GPU_BATCH = {2: 16, 3: 4}
THICK = 3.0
"""Coarsest over finest axis in mm above which slices are seen one by one, or in 3D bent in their plane alone."""
RESERVE = 0.85
"""Of a GPU's memory for tensors that an estimate may fill."""
TOUCHING = 0.1
"""Share of instances that touch another from which on border weights are worth their time."""
IMBALANCE = 100.0
"""Largest over smallest label, in voxels, from which on classes are weighted; Dice balances less than that."""


def decide_settings(
    fingerprint: Fingerprint,
    cases: Cases,
    table: LabelTable,
    dims: int | None = None,
    window: Sequence[float] | None = None,
    network: str = "unet",
    budget: Budget | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The top of the bundle's configs, and for each setting its reason in words."""
    looks, budget = fingerprint.cases, budget or Budget.of("cpu")
    settings: dict[str, Any] = {"channels": cases.channels, "labels": table.to_json()}
    reasons = {"labels": _label_reason(table)}
    flat = all(look.format in ("png", "tiff") for look in looks)  # no anatomical orientation
    shape = [round(statistics.median(look.shape[axis] for look in looks)) for axis in range(3)]
    spacing = [float(f"{statistics.median(look.spacing_mm[axis] for look in looks):.4g}") for axis in range(3)]
    known = fingerprint.knows_spacing
    spatial_dims, slice_axis, why = _slices(looks, shape, spacing, known, dims)
    settings["spatial_dims"] = spatial_dims
    settings["slice_axis"] = slice_axis if spatial_dims == 2 else None
    reasons["spatial_dims"] = why if dims is None else f"as asked for; {why}"
    reasons["slice_axis"] = f"slices lie across {AXES[slice_axis]}" if spatial_dims == 2 else "volumes are seen whole"

    settings["spacing"] = spacing if known else None
    reasons["spacing"] = "the median of the cases" if known else "unknown in these files: pixels are taken as they are"
    settings["intensity_window"], reasons["intensity_window"] = _window(looks, cases.channels, window)

    axes = [axis for axis in range(3) if spatial_dims == 3 or axis != slice_axis]
    size, steps = [shape[axis] for axis in axes], [spacing[axis] if known else 1.0 for axis in axes]
    make = _for_cpu if budget.gpu_gb is None else _for_gpu
    made, told = make(network, size, steps, len(cases.channels), table.classes, budget)
    settings |= made
    reasons |= told
    settings["learning_rate"] = LEARNING_RATE[network][spatial_dims]
    reasons["learning_rate"] = "of AdamW; the best of a few for this network on other data (fewscan's docs/measured.md)"
    still = _still_axis(steps)
    bent = [n for axis, n in enumerate(settings["patch"]) if axis != still]
    settings["augmentation"] = {
        "elastic_sd": round((0.03 if len(bent) == 2 else 0.06) * sum(bent) / len(bent), 1),
        "control_points": 3,
        "control_spacing": None,
        "unit": "voxels",
        "rotate_degrees": 180.0 if flat else 15.0,
        "scale": [0.85, 1.2],
        "flip": flat,
        "still_axis": still,
    }
    reasons["augmentation"] = "elastic deformation as in the U-Net paper; " + (
        "images without orientation may be turned and flipped at will"
        if flat
        else "patients have sides: no flips, small rotations"
    )
    if still is not None:
        reasons["augmentation"] += (
            f"; slices across {AXES[still]} are {steps[still]:g} mm apart, {steps[still] / min(steps):.1f} x the "
            "pixel: nothing is displaced along it and turns are about it alone, so that no slice is mixed with the next"
        )
    for name, (value, reason) in _weights(fingerprint, cases).items():
        settings[name], reasons[name] = value, reason
    return settings, reasons


def _slices(
    looks: Sequence[CaseFingerprint], shape: Sequence[int], spacing: Sequence[float], known: bool, dims: int | None
) -> tuple[int, int, str]:
    """(spatial_dims, slice_axis, why)."""
    coarse = max(range(3), key=lambda axis: (spacing[axis], -shape[axis]))
    thin = min(range(3), key=lambda axis: shape[axis])
    if min(shape) == 1:
        slice_axis, why = thin, "the images are single slices"
        if any(look.shape[thin] > 1 and min(look.shape) == 1 for look in looks):
            raise PairingError("the labelled slices lie in different planes; plan each plane by itself")
        if dims == 3:
            raise PairingError("--dims 3 needs volumes, but the labelled images are single slices")
    elif not known:
        slice_axis, why = 2, "a stack without a known distance between its pages"
    elif spacing[coarse] > THICK * min(spacing):
        slice_axis, why = (
            coarse,
            f"slices are {spacing[coarse]:g} mm apart, {spacing[coarse] / min(spacing):.1f} x the pixel",
        )
    elif min(shape) < 12:
        slice_axis, why = thin, f"the volumes have only {shape[thin]} voxels along {AXES[thin]}"
    else:
        slice_axis, why = coarse, f"volumes of about {' x '.join(map(str, shape))} voxels, nearly isotropic"
        dims = dims or 3
    return dims or 2, slice_axis, why


def _still_axis(spacing: Sequence[float]) -> int | None:
    """The axis of 3D patches along which slices lie too far apart to be mixed; None where none or two are so coarse."""
    coarse = [axis for axis, mm in enumerate(spacing) if mm > THICK * min(spacing)]
    return coarse[0] if len(spacing) == 3 and len(coarse) == 1 else None


def _for_cpu(
    network: str, size: Sequence[int], spacing: Sequence[float], channels: int, classes: int, budget: Budget
) -> tuple[dict[str, Any], dict[str, str]]:
    """Patch, batch and network that two cores train in minutes, each with its reason."""
    dims = len(size)
    network_def = dict(NETWORK_DEF[network][dims])
    levels = _levels(size, len(network_def["widths"]) - 1, spacing)
    if network == "unet":
        network_def["widths"] = network_def["widths"][: levels + 1]
    poolings = network_def.get("strides") or [2] * (levels if network == "unet" else 5)
    strides, why_strides = _strides(poolings, spacing)
    if why_strides:
        network_def["strides"] = strides
    cell = cell_of(strides_by_axis(strides, len(strides), dims))
    step = cell if network == "unet" else [min(n, 8) for n in cell]
    patch = _shrunk(size, step, PATCH_VOXELS[dims], None if _still_axis(spacing) is None else spacing)
    fewest, most = BATCH[dims]
    batch = min(max(fewest, 2 * PATCH_VOXELS[dims] // int(np.prod(patch))), most)
    halo = 6 * 2**levels
    why = f"what two cores train in minutes: {' x '.join(map(str, network_def['widths']))} channels"
    if network == "unet":
        why += f"; {levels} poolings, so a voxel looks at most {halo} voxels far and large "
        why += "volumes are tiled exactly; batch norm, for with instance norm a tile's answer depends on the tile"
    settings = {"patch": patch, "batch": batch, "network_def": network_def}
    return settings, {
        "patch": f"the median case, at most {PATCH_VOXELS[dims]} voxels, in steps of "
        + " x ".join(map(str, step if len(set(step)) > 1 else step[:1])),
        "batch": "for two cores",
        "network_def": f"{why}{why_strides}",
    }


def _for_gpu(
    network: str, size: Sequence[int], spacing: Sequence[float], channels: int, classes: int, budget: Budget
) -> tuple[dict[str, Any], dict[str, str]]:
    """The largest patch, then the largest batch, whose estimated training step fits into the GPU."""
    dims = len(size)
    network_def = dict(NETWORK_DEF[network][dims])
    levels = 3
    if network == "unet":
        levels = _levels(size, GPU_LEVELS[dims], spacing)
        first, most = GPU_NETWORK[dims]
        network_def["widths"] = [min(first * 2**level, most) for level in range(levels + 1)]
    poolings = network_def.get("strides") or [2] * (levels if network == "unet" else 5)
    strides, why_strides = _strides(poolings, spacing)
    if why_strides:
        network_def["strides"] = strides
    cell, still = cell_of(strides_by_axis(strides, len(strides), dims)), _still_axis(spacing)
    steps = [n if axis == still else max(8, n) for axis, n in enumerate(cell)]
    lengths = None if still is None else spacing
    room = RESERVE * budget.tensor_bytes
    with torch.device("meta"):  # shapes alone
        model: nn.Module = {"unet": UNet, "fcn": FCN, "segnet": SegNet}[network](dims, channels, classes, **network_def)
    fixed = training_bytes(model, (2, channels, *steps), amp=True)

    def needed(batch: int, patch: Sequence[int]) -> int:
        return training_bytes(model, (batch, channels, *patch), amp=True)

    patch = _shrunk(size, steps, GPU_PATCH[dims] ** dims, lengths)
    while (taken := needed(2, patch)) > room and patch != steps:  # grows with the voxels: nearly there at once
        share = max(0.0, (room - fixed) / (taken - fixed))
        patch = _shrunk(patch, steps, min(int(share * np.prod(patch)), int(np.prod(patch)) - 1), lengths)
    batch = next((n for n in range(GPU_BATCH[dims], 1, -1) if needed(n, patch) <= room), None)
    if batch is None:
        raise BundleError(
            f"--budget {budget.name}: two patches of {' x '.join(map(str, patch))} voxels need {taken / 2**30:.1f} "
            f"GiB, {room / 2**30:.1f} GiB are left for them; take a larger budget"
        )
    took = needed(batch, patch) / 2**30
    why = f"{levels} poolings, the bottom at least 4 voxels wide: a voxel looks {6 * 2**levels} voxels far; batch "
    why += "norm, for with instance norm a tile's answer depends on the tile"
    if network != "unet":
        why = "as on two cores, so that networks stay comparable"
    memory = f"a training step in half precision takes an estimated {took:.1f} GiB, with {CONTEXT_GB} GiB for CUDA and "
    memory += f"{CASES_SHARE:.0%} for cases, of {budget.gpu_gb:g} GiB"
    return {"patch": patch, "batch": batch, "network_def": network_def}, {
        "patch": f"the median case, at most {GPU_PATCH[dims]}^{dims} voxels and what fits {budget.name}: {memory}",
        "batch": f"the most of {GPU_BATCH[dims]} that fit {budget.name}",
        "network_def": f"{why}{why_strides}",
    }


def _levels(size: Sequence[int], most: int, spacing: Sequence[float]) -> int:
    """Poolings, two at least, after which the median case is still 4 voxels wide.

    An axis that waits (see `_strides`) may be short: of thick slices there are few.
    """

    def fits(levels: int) -> bool:
        strides, _ = _strides([2] * levels, spacing)
        cell = cell_of(strides_by_axis(strides, levels, len(size)))
        return all(n >= 4 * step or n == 1 or step == 1 for n, step in zip(size, cell, strict=True)) and max(size) > 1

    return next((levels for levels in range(most, 1, -1) if fits(levels)), 2)


def _strides(poolings: Sequence[Any], spacing: Sequence[float]) -> tuple[list[Any], str]:
    """Strides of the poolings, and in words why they are not the usual ones.

    An axis waits while its voxels are more than twice as coarse as the finest, as that pooling finds them.
    """
    strides: list[Any] = []
    now = list(spacing)
    for pooling in poolings:
        wanted = [pooling if mm <= 2 * min(now) else 1 for mm in now]
        strides.append(pooling if len(set(wanted)) == 1 else wanted)
        now = [mm * step for mm, step in zip(now, wanted, strict=True)]
    if strides == list(poolings):
        return strides, ""
    return strides, f"; voxels of {' x '.join(f'{mm:g}' for mm in spacing)} mm: the finer axes are pooled first"


def _shrunk(
    size: Sequence[int], steps: Sequence[int], voxels: int, spacing: Sequence[float] | None = None
) -> list[int]:
    """Multiples of the steps that cover the size, the longest axis cut first until they have so many voxels.

    Which one is the longest is counted in mm where `spacing` is given, else in voxels.
    """
    mm = [1.0] * len(size) if spacing is None else spacing
    patch = [max(step, -(-n // step) * step) for n, step in zip(size, steps, strict=True)]
    while np.prod(patch) > voxels and any(n > step for n, step in zip(patch, steps, strict=True)):
        open_axes = [axis for axis in range(len(patch)) if patch[axis] > steps[axis]]
        longest = max(open_axes, key=lambda axis: patch[axis] * mm[axis])
        patch[longest] -= steps[longest]
    return patch


def _weights(fingerprint: Fingerprint, cases: Cases) -> dict[str, tuple[Any, str]]:
    """What is weighted and what is not known: (value, reason) by the name of the setting."""
    touching = fingerprint.touching
    border: tuple[Any, str]
    balance: tuple[Any, str]
    if touching is None:
        border = (
            None,
            'the files tell no objects of one kind apart; {"height": 10, "sd": 5} weighs thin gaps between pieces',
        )
    else:
        found = f"{100 * touching:.0f} % of the instances touch another"
        worth = touching >= TOUCHING
        border = ({"height": 10.0, "sd": 5.0} if worth else None, f"{found}; used from {100 * TOUCHING:.0f} % on")
    totals = [sum(case.voxels[n + 1] for case in fingerprint.cases) for n in range(len(fingerprint.labels))]
    present = [n for n in totals if n]
    ratio = max(present) / min(present) if present else 1.0
    if ratio > IMBALANCE and len(present) == len(totals):
        from fewscan.training.weights import median_frequency  # loads MONAI

        voxels = [sum(case.voxels[n] for case in fingerprint.cases) for n in range(len(totals) + 1)]
        weights = [float(f"{weight:.3g}") for weight in median_frequency(voxels)]
        balance = (weights, f"median frequency: the largest label has {ratio:.0f} x the voxels of the smallest")
    else:
        balance = (None, f"the largest label has {ratio:.3g} x the voxels of the smallest; used above {IMBALANCE:g}")
    undecided = sum(case.unlabelled > 0 for case in fingerprint.cases)
    told = f"{undecided} case(s) hold voxels that nobody decided; they are not learned from"
    unlabelled = (cases.undecided, told if cases.undecided is not None else "no value marks undecided voxels")
    return {
        "border_weights": border,
        "class_weights": balance,
        "unlabelled": unlabelled,
        "sparse": _sparse(fingerprint.cases),
    }


def _sparse(looks: Sequence[CaseFingerprint]) -> tuple[int | None, str]:
    """The axis across which only some slices are annotated: where half of the volumes show it."""
    volumes = [look for look in looks if min(look.shape) > 1]
    signs = [look for look in volumes if look.sparse_axis is not None]
    if not signs:
        return None, "every slice without a label counts as background"
    axis = statistics.mode(look.sparse_axis for look in signs if look.sparse_axis is not None)
    along = [look for look in signs if look.sparse_axis == axis]
    found = f"{len(along)} of {len(volumes)} volumes seem annotated in some slices across {AXES[axis]} only"
    first = f"{found} (in {along[0].name} {along[0].sparse_why})"
    if 2 * len(along) < len(volumes):
        return None, f"{first}, fewer than half: set it to {axis} if that is so"
    return axis, f"{first}: slices without any label are not learned from; null if they are background"


def _window(
    looks: Sequence[CaseFingerprint], channels: Sequence[Mapping[str, Any]], window: Sequence[float] | None
) -> tuple[list[Any] | None, str]:
    """One window where all channels share it or there is one channel, else a list with a window or None for each."""
    if window is not None:
        return [float(edge) for edge in window], "as asked for" + (", for all channels" if len(channels) > 1 else "")
    ranges = [look.on_labels for look in looks if look.on_labels is not None]
    windows: list[list[float] | None] = []
    for channel in range(len(channels)):
        if ranges and all(look.lowest[channel] <= -500 for look in looks):  # Hounsfield units: air is -1000 everywhere
            low, high = min(r[channel][0] for r in ranges), max(r[channel][-1] for r in ranges)
            margin = 0.25 * (high - low) + 1
            windows.append([float(round(low - margin)), float(round(high + margin))])
        else:
            windows.append(None)
    ct = [str(channel["name"]) for channel, own in zip(channels, windows, strict=True) if own is not None]
    if not ct:
        return None, "no common scale: each scan is brought to mean 0 and standard deviation 1"
    why = "CT: the range of the labelled voxels and a quarter more"
    if len(channels) == 1:
        return windows[0], why
    return windows, f"{', '.join(ct)}: {why}; null: brought to mean 0 and standard deviation 1"


def _label_reason(table: LabelTable) -> str:
    generic = table.generic()
    if not generic:
        return "codes by the offline terminology"
    return (
        f"{', '.join(generic)}: no code known offline, the generic code Tissue is used; "
        "edit `type` in both configs to say what it is"
    )
