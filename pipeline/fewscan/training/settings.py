"""What a plan decides, each setting with its reason in words."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fewscan.errors import PairingError
from fewscan.labels import LabelTable
from fewscan.scans import Cases
from fewscan.training.material import Look

PATCH_VOXELS = {2: 160 * 160, 3: 64 * 64 * 64}
NETWORK_DEF: dict[str, dict[int, dict[str, Any]]] = {
    "unet": {2: {"widths": [24, 48, 96, 192]}, 3: {"widths": [16, 32, 64, 128]}},
    "fcn": {
        2: {"widths": [16, 32, 64, 128, 128], "strides": None},
        3: {"widths": [16, 32, 64, 128, 128], "strides": [2, 2, 2, 1, 1]},
    },
    "segnet": {
        2: {"widths": [16, 32, 64, 128, 128], "strides": None},
        3: {"widths": [16, 32, 64, 128, 128], "strides": [2, 2, 2, 1, 1]},
    },
}
"""What two cores train in minutes; FCN and SegNet at a quarter of VGG-16's width, in 3D with three poolings by 2."""
LEARNING_RATE = {"unet": {2: 0.002, 3: 0.002}, "fcn": {2: 0.008, 3: 0.008}, "segnet": {2: 0.008, 3: 0.002}}
"""Of AdamW; each the best of a few on held-out training cases of two data sets (docs/measured.md)."""
BATCH = {2: 4, 3: 2}
AXES = ("left", "posterior", "superior")


def decide_settings(
    looks: Sequence[Look],
    cases: Cases,
    table: LabelTable,
    dims: int | None = None,
    window: Sequence[float] | None = None,
    network: str = "unet",
) -> tuple[dict[str, Any], dict[str, str]]:
    """The top of the bundle's configs, and for each setting its reason in words."""
    settings: dict[str, Any] = {"channels": cases.channels, "labels": table.to_json()}
    reasons = {"labels": _label_reason(table)}
    flat = all(look.format in ("png", "tiff") for look in looks)  # no anatomical orientation
    unknown_spacing = flat and all(np.allclose(look.spacing_mm, 1) for look in looks)
    shape = [round(statistics.median(look.shape[axis] for look in looks)) for axis in range(3)]
    spacing = [float(f"{statistics.median(look.spacing_mm[axis] for look in looks):.4g}") for axis in range(3)]
    coarse = max(range(3), key=lambda axis: (spacing[axis], -shape[axis]))
    thin = min(range(3), key=lambda axis: shape[axis])

    if min(shape) == 1:
        slice_axis, why = thin, "the images are single slices"
        if any(look.shape[thin] > 1 and min(look.shape) == 1 for look in looks):
            raise PairingError("the labelled slices lie in different planes; plan each plane by itself")
    elif unknown_spacing:
        slice_axis, why = 2, "a stack without a known distance between its pages"
    elif spacing[coarse] > 3 * min(spacing):
        slice_axis, why = (
            coarse,
            f"slices are {spacing[coarse]:g} mm apart, {spacing[coarse] / min(spacing):.1f} x the pixel",
        )
    elif min(shape) < 12:
        slice_axis, why = thin, f"the volumes have only {shape[thin]} voxels along {AXES[thin]}"
    else:
        slice_axis, why = coarse, f"volumes of about {' x '.join(map(str, shape))} voxels, nearly isotropic"
        dims = dims or 3
    spatial_dims = dims or 2
    if spatial_dims == 3 and min(shape) == 1:
        raise PairingError("--dims 3 needs volumes, but the labelled images are single slices")
    settings["spatial_dims"] = spatial_dims
    settings["slice_axis"] = slice_axis if spatial_dims == 2 else None
    reasons["spatial_dims"] = why if dims is None or spatial_dims == 3 else "as asked for"
    reasons["slice_axis"] = f"slices lie across {AXES[slice_axis]}" if spatial_dims == 2 else "volumes are seen whole"

    settings["spacing"] = None if unknown_spacing else spacing
    reasons["spacing"] = (
        "unknown in these files: pixels are taken as they are" if unknown_spacing else "the median of the cases"
    )
    settings["intensity_window"], reasons["intensity_window"] = _window(looks, cases.channels, window)

    axes = [axis for axis in range(3) if spatial_dims == 3 or axis != slice_axis]
    patch = _patch([shape[axis] for axis in axes], spatial_dims)
    settings |= {"patch": patch, "batch": BATCH[spatial_dims], "network_def": NETWORK_DEF[network][spatial_dims]}
    reasons["patch"] = f"the median case, at most {PATCH_VOXELS[spatial_dims]} voxels, in steps of 8"
    settings["learning_rate"] = LEARNING_RATE[network][spatial_dims]
    reasons["learning_rate"] = "of AdamW; the best of a few for this network on other data (fewscan's docs/measured.md)"
    strength = 0.03 if spatial_dims == 2 else 0.06
    settings["augmentation"] = {
        "elastic_sd": round(strength * sum(patch) / len(patch), 1),
        "control_points": 3,
        "rotate_degrees": 180.0 if flat else 15.0,
        "scale": [0.85, 1.2],
        "flip": flat,
    }
    reasons["augmentation"] = "elastic deformation as in the U-Net paper; " + (
        "images without orientation may be turned and flipped at will"
        if flat
        else "patients have sides: no flips, small rotations"
    )
    return settings, reasons


def _patch(shape: Sequence[int], dims: int) -> list[int]:
    """Multiples of 8 that cover the median case, the longest axis cut first until they fit the budget."""
    patch = [max(8, -(-n // 8) * 8) for n in shape]
    while np.prod(patch) > PATCH_VOXELS[dims]:
        longest = int(np.argmax(patch))
        patch[longest] -= 8
    return patch


def _window(
    looks: Sequence[Look], channels: Sequence[Mapping[str, Any]], window: Sequence[float] | None
) -> tuple[list[Any] | None, str]:
    """One window where all channels share it or there is one channel, else a list with a window or None for each."""
    if window is not None:
        return [float(edge) for edge in window], "as asked for" + (", for all channels" if len(channels) > 1 else "")
    ranges = [look.range_of_labels for look in looks if look.range_of_labels is not None]
    windows: list[list[float] | None] = []
    for channel in range(len(channels)):
        if ranges and all(look.lowest[channel] <= -500 for look in looks):  # Hounsfield units: air is -1000 everywhere
            low, high = min(r[channel][0] for r in ranges), max(r[channel][1] for r in ranges)
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
