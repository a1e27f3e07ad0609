"""What every test may use."""

import functools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: small tensors on busy cores wait for their threads
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


def shared(name: str) -> Path:
    """A folder of the reference data beside the repository; the test is skipped where it is absent."""
    path = ROOT.parent / "shared" / name
    if not path.exists():
        pytest.skip(f"../shared/{name} is not on this machine")
    return path


def ball(shape, centre, radius) -> np.ndarray:
    """(shape) uint8: 1 within `radius` voxels of `centre`."""
    places = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    return (np.linalg.norm(places - centre, axis=-1) < radius).astype(np.uint8)


def write_volumes(folder: Path, count=4, shape=(20, 18, 16), spacing=(1.0, 1.1, 1.2)) -> Path:
    """Noise with a bright ball, and the ball as its label: `folder`/images and /labels, NIfTI, left to right first."""
    random = np.random.default_rng(0)
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = 10, -20, 30
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        radius = min(shape) / 4
        label = ball(shape, [random.uniform(radius, n - radius) for n in shape], radius)
        image = (random.normal(50, 20, shape) + 150 * label).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / "images" / f"case{number}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / "labels" / f"case{number}.nii.gz")
    return folder


def configure(bundle: Path, network=None, **settings) -> Path:
    """Change settings of train.json, and `network_def` in both configs; by default a network that trains in seconds."""
    for name in ("train", "inference"):
        file = bundle / "configs" / f"{name}.json"
        config = json.loads(file.read_text())
        config["network_def"].update({"widths": [4, 8], **(network or {})})
        if name == "train":
            config.update({"epochs": 4, "steps_per_epoch": 5, "val_interval": 2, "learning_rate": 0.02, **settings})
        file.write_text(json.dumps(config))
    return bundle


@dataclass(frozen=True)
class Trained:
    """A tiny bundle that was trained for 20 steps (SegNet 60), one case held out; never to be changed by a test."""

    bundle: Path
    data: Path


NARROW = {"unet": {}, "fcn": {"widths": [8] * 5, "fc_width": 16}, "segnet": {"widths": [8] * 5}}
"""What makes each network of the family one that trains in seconds, beside what `configure` does."""


@pytest.fixture(scope="session")
def family(tmp_path_factory) -> Callable[[str], Trained]:
    """The tiny trained bundle of a network, by the network's name."""
    from fewscan.training.plan import plan
    from fewscan.training.run import train

    @functools.cache
    def member(name: str) -> Trained:
        home = tmp_path_factory.mktemp(f"trained_{name}")
        data = write_volumes(home / "data")
        plan(data, home / "bundle", validation=1, network=name)
        steps = 15 if name == "segnet" else 5  # it needs more to find anything
        configure(home / "bundle", NARROW[name], patch=[16, 16, 16], steps_per_epoch=steps)
        train(home / "bundle", device="cpu")
        return Trained(home / "bundle", data)

    return member


@pytest.fixture(scope="session")
def trained(family) -> Trained:
    """The tiny trained U-Net bundle."""
    return family("unet")
