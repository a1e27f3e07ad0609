"""Random changes of a patch's intensities, of the kinds, strengths and probabilities that nnU-Net trains with."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable
from torch import Tensor
from torch.nn.functional import interpolate

PROBABILITY = {
    "noise": 0.1,
    "blur": 0.2,
    "brightness": 0.15,
    "contrast": 0.15,
    "low_resolution": 0.25,
    "inverted_gamma": 0.1,
    "gamma": 0.3,
}
"""Of each change, one after the other in this order; blur and low resolution then take each channel by half."""


class RandomIntensityd(Randomizable):  # type: ignore[misc]  # MONAI has no types
    """Noise, blur, brightness, contrast, low resolution and gamma of a normalised patch, each at times.

    (C, *patch) float32 of about unit spread, on any device -> the same, there; every channel draws for itself. As
    Isensee et al. 2021 (supplement, section 4) and nnU-Net's current defaults: Gaussian noise of sd up to 0.1, blur of
    sd 0.5 to 1 voxels, brightness x 0.75 to 1.25, contrast x 0.75 to 1.25 within the patch's range, resolution down to
    a half and back, gamma 0.7 to 1.5 of the range (in part on the inverted image) at equal mean and spread.
    """

    def __init__(self, keys: Hashable = "image") -> None:
        self.key = keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the image changed."""
        random = np.random.default_rng(self.R.randint(2**32, dtype=np.uint64))
        image: Tensor = data[self.key].clone()
        for name, probability in PROBABILITY.items():
            if random.random() >= probability:
                continue
            for channel in image:
                if name not in ("blur", "low_resolution") or random.random() < 0.5:
                    channel.copy_(_CHANGES[name](random, channel))
        return {**data, self.key: image}


def add_noise(random: np.random.Generator, image: Tensor) -> Tensor:
    """Gaussian noise of sd 0 to 0.1."""
    source = torch.Generator(image.device).manual_seed(int(random.integers(2**63)))
    noise = torch.randn(image.shape, generator=source, device=image.device, dtype=image.dtype)
    return image + random.uniform(0, 0.1) * noise


def blur(random: np.random.Generator, image: Tensor) -> Tensor:
    """Gaussian blur of sd 0.5 to 1 voxels, cut at 4 sd; the border's voxels are repeated beyond it."""
    sd = random.uniform(0.5, 1.0)
    reach = int(np.ceil(4 * sd))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sd) ** 2)
    weights /= weights.sum()
    for axis, n in enumerate(image.shape):
        index = torch.arange(-reach, n + reach, device=image.device).clamp_(0, n - 1)
        wider = image.index_select(axis, index)
        image = torch.stack([float(w) * wider.narrow(axis, k, n) for k, w in enumerate(weights)]).sum(0)
    return image


def change_brightness(random: np.random.Generator, image: Tensor) -> Tensor:
    """Multiplied by 0.75 to 1.25."""
    return image * _factor(random)


def change_contrast(random: np.random.Generator, image: Tensor) -> Tensor:
    """Distance from the mean multiplied by 0.75 to 1.25, clipped to the former range."""
    mean = image.mean()
    return ((image - mean) * _factor(random) + mean).clamp(image.min(), image.max())


def lower_resolution(random: np.random.Generator, image: Tensor) -> Tensor:
    """Sampled at 0.5 to 1 times the resolution (nearest), and back (linear)."""
    scale = random.uniform(0.5, 1.0)
    coarse = interpolate(image[None, None], [max(1, round(n * scale)) for n in image.shape], mode="nearest-exact")
    mode = {2: "bilinear", 3: "trilinear"}[image.ndim]
    return interpolate(coarse, image.shape, mode=mode, align_corners=False)[0, 0]


def change_gamma(random: np.random.Generator, image: Tensor) -> Tensor:
    """The power 0.7 to 1.5 of the place within the range, then the former mean and spread again."""
    gamma = random.uniform(0.7, 1.0) if random.random() < 0.5 else random.uniform(1.0, 1.5)
    low, high = image.min(), image.max()
    changed = ((image - low) / (high - low).clamp(min=1e-6)).pow(gamma)
    spread = image.std(correction=0) / changed.std(correction=0).clamp(min=1e-6)
    return (changed - changed.mean()) * spread + image.mean()


def change_inverted_gamma(random: np.random.Generator, image: Tensor) -> Tensor:
    """The same on the inverted image: bright parts change most."""
    return -change_gamma(random, -image)


def _factor(random: np.random.Generator) -> float:
    """0.75 to 1.25, below and above 1 equally often."""
    return float(random.uniform(0.75, 1.0) if random.random() < 0.5 else random.uniform(1.0, 1.25))


_CHANGES = {
    "noise": add_noise,
    "blur": blur,
    "brightness": change_brightness,
    "contrast": change_contrast,
    "low_resolution": lower_resolution,
    "inverted_gamma": change_inverted_gamma,
    "gamma": change_gamma,
}
