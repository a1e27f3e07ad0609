"""Bundles whose masks are known: a network that compares intensities with thresholds, and a U-Net of fixed weights."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from ignite.engine import Events

from fewscan.bundle import write_bundle
from fewscan.networks import UNet
from fewscan.training import TrainingRun

SHAPE = (9, 8, 7)
THRESHOLDS = (300.5, 700.5)


def threshold_bundle(
    folder: Path,
    thresholds: Sequence[float] = THRESHOLDS,
    labels: Sequence[Any] = ("left kidney", "spleen"),
    channels: Sequence[Any] = ({"name": "image"},),
    decides: int = 0,
    dims: int = 3,
    window: tuple[float, float] = (0, 1000),
) -> Path:
    """A voxel's class is the number of thresholds below the intensity of channel `decides`: see `expected`.

    Class c of the 1 x 1 network answers c x - t1 - ... - tc, which is largest where x lies between t_c and t_c+1.
    """
    _write(folder, dims, channels, labels, window=window)
    kind = "Conv3d" if dims == 3 else "Conv2d"
    network = {"_target_": f"torch.nn.{kind}", "in_channels": "$len(@channels)", "out_channels": "$len(@labels) + 1"}
    inferer: dict[str, Any] = {"_target_": "SimpleInferer"}
    if dims == 2:
        inferer = {"_target_": "fewscan.tiling.OverlapTileInferer", "spatial_dims": 2, "tile": [8, 8]}
    change_config(folder, network_def={**network, "kernel_size": 1}, inferer=inferer)
    scaled = (np.array(thresholds) - window[0]) * 2 / (window[1] - window[0]) - 1
    weight = torch.zeros((len(thresholds) + 1, len(channels), *[1] * dims))
    weight[:, decides] = torch.arange(len(thresholds) + 1.0).reshape(-1, *[1] * dims)
    bias = torch.tensor([0.0, *-np.cumsum(scaled)], dtype=torch.float32)
    torch.save({"weight": weight, "bias": bias}, folder / "models" / "model.pt")
    return folder


def expected(image: np.ndarray, thresholds: Sequence[float] = THRESHOLDS, values: Sequence[int] = (1, 2)) -> np.ndarray:
    """The mask of a threshold bundle, by numpy alone."""
    return np.array([0, *values])[sum((image > t).astype(int) for t in thresholds)]


def unet_bundle(
    folder: Path,
    dims: int = 3,
    channels: Sequence[Any] = ({"name": "image"},),
    spacing: Sequence[float] | None = None,
    labels: Sequence[Any] = ("left kidney", "spleen"),
) -> Path:
    """A small U-Net with random but fixed weights: its masks mean nothing, but every voxel counts."""
    _write(folder, dims, channels, labels, spacing=spacing)
    torch.manual_seed(4)
    network = UNet(dims, len(channels), len(labels) + 1, (4, 8))
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def change_config(bundle: Path, **changes: Any) -> None:
    """Edit the configs of the bundle as a person would: what both have in both."""
    for name in ("train", "inference"):
        file = bundle / "configs" / f"{name}.json"
        config = json.loads(file.read_text())
        config.update({key: value for key, value in changes.items() if name == "inference" or key in config})
        file.write_text(json.dumps(config, indent=4))


def noise(seed: int = 0, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Integers from 0 to 999 without any symmetry."""
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def save_nifti(path: Path, image: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(image, np.diag([-0.9, 0.8, 2.5, 1]) if affine is None else affine), path)
    return path


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def masks_below(folder: Path) -> list[str]:
    """Everything that is not bookkeeping."""
    return [name for name in files_below(folder) if not name.startswith("fewscan")]


def _write(
    folder: Path, dims: int, channels: Sequence[Any], labels: Sequence[Any], window: Any = None, spacing: Any = None
) -> None:
    settings = {
        "spatial_dims": dims,
        "channels": list(channels),
        "labels": list(labels),
        "spacing": spacing,
        "slice_axis": 2 if dims == 2 else None,
        "intensity_window": window,
        "network_def": {"widths": [4, 8]},
        "seed": 17,
    }
    write_bundle(folder, settings, {"training": [], "validation": []}, {})


def stop_in_training(monkeypatch, step):
    """Ctrl-C in that step of all steps from now on."""
    steps, before = itertools.count(1), TrainingRun.attach

    def attach(self, engine):
        before(self, engine)

        def press():
            if next(steps) == step:
                raise KeyboardInterrupt

        engine.add_event_handler(Events.ITERATION_STARTED, press)

    monkeypatch.setattr(TrainingRun, "attach", attach)
