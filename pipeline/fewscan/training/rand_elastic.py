"""Elastic and affine augmentation in one resample, as MONAI transforms that any bundle may use."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable, Transform
from numpy.typing import NDArray
from torch import Tensor

from fewscan.training.elastic import RandomDeformation
from fewscan.training.resample import Mode, refuse_unknown, resample


class RandElasticAffine(Randomizable, Transform):  # type: ignore[misc]  # MONAI has no types
    """An image, or a batch, elastically deformed, turned, scaled, flipped and cropped in one resample.

    (C, *spatial), or (N, C, *spatial) with `batched`, on any device -> the same with `patch` voxels, there. Each item
    of a batch is deformed by itself. Spacing is read from a MetaTensor's affine; the voxels of a plain tensor are
    taken as cubes of 1 mm. The result is a plain tensor: what was bent lies on no grid that an affine could describe.

    Args:
        patch: voxels of the result along each axis, from a random place of the image, inside it where it fits; None
            for the whole image.
        patch_spacing_mm: of the result along each axis; None for the image's own.
        prob: of each item to be deformed; the others are only cropped (and resampled where the spacing says so).
        batched: whether what comes is a batch.
        deformation: see `fewscan.training.elastic.RandomDeformation`, for example `elastic_sd=10`.
    """

    def __init__(
        self,
        patch: Sequence[int] | None = None,
        patch_spacing_mm: Sequence[float] | None = None,
        prob: float = 1.0,
        batched: bool = False,
        **deformation: Any,
    ) -> None:
        self.patch, self.patch_spacing_mm, self.prob, self.batched = patch, patch_spacing_mm, prob, batched
        self.deformation = RandomDeformation(**deformation)
        if patch is not None:
            self.deformation.refuse_flat(len(patch))

    def __call__(self, image: Tensor, mode: Mode = "linear") -> Tensor:
        """The image deformed; `mode` "linear", "nearest" (labels) or "weight": `fewscan.training.resample`."""
        return self.together([image], [mode])[0]

    def together(self, images: Sequence[Tensor], modes: Sequence[Mode]) -> list[Tensor]:
        """Several images of one shape, bent alike; the spacing is that of the first."""
        tensors = [torch.as_tensor(image).as_subclass(Tensor) for image in images]
        if not self.batched:
            tensors = [tensor[None] for tensor in tensors]
        shape = tuple(tensors[0].shape[2:])
        if len(shape) not in (2, 3) or (self.patch is not None and len(self.patch) != len(shape)):
            wanted = "(N, C, *spatial)" if self.batched else "(C, *spatial)"
            axes = "2 or 3" if self.patch is None else len(self.patch)
            raise ValueError(f"an image {tuple(images[0].shape)} is no {wanted} with {axes} spatial axes")
        patch = shape if self.patch is None else tuple(self.patch)
        spacing = _spacing_mm(images[0], len(shape))
        random = np.random.default_rng(self.R.randint(2**32, dtype=np.uint64))
        places = []
        for item in np.broadcast_to(spacing, (len(tensors[0]), len(shape))):
            strength = self.deformation if random.random() < self.prob else RandomDeformation()
            drawn = strength.draw(random, patch, item, self.patch_spacing_mm)
            size = np.array(patch) * (1 if self.patch_spacing_mm is None else np.array(self.patch_spacing_mm) / item)
            places.append(drawn.coordinates(patch, _centre(random, shape, size), tensors[0].device))
        results = resample(tensors, modes, places)
        return results if self.batched else [result[0] for result in results]


class RandElasticAffined(Randomizable, MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Dictionary version of `RandElasticAffine`: image, label and weight map bend together.

    Args:
        keys: what is deformed; all of one shape but for channels. The first one's affine tells the spacing.
        mode: for all keys or for each, "linear" (images), "nearest" (labels) or "weight" (weight maps): see
            `fewscan.training.resample`.
        patch, patch_spacing_mm, prob, batched, deformation: as for `RandElasticAffine`.
        allow_missing_keys: whether a key may be missing.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        mode: Mode | Sequence[Mode] = "linear",
        patch: Sequence[int] | None = None,
        patch_spacing_mm: Sequence[float] | None = None,
        prob: float = 1.0,
        batched: bool = False,
        allow_missing_keys: bool = False,
        **deformation: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.modes: Sequence[Mode] = [mode] * len(self.keys) if isinstance(mode, str) else mode
        refuse_unknown(self.modes)
        if len(self.modes) != len(self.keys):
            raise ValueError(f"there are {len(self.keys)} keys but {len(self.modes)} modes; give one, or one for each")
        self.bend = RandElasticAffine(patch, patch_spacing_mm, prob, batched, **deformation)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Any:
        """Seed the deformations."""
        self.bend.set_random_state(seed, state)
        return super().set_random_state(seed, state)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the keys deformed alike."""
        present = list(self.key_iterator(data, self.modes))
        if not present:
            return dict(data)
        keys, modes = zip(*present, strict=True)
        return {**data, **dict(zip(keys, self.bend.together([data[key] for key in keys], modes), strict=True))}


def _spacing_mm(image: Any, axes: int) -> NDArray[np.float64]:
    """(N or 1, axes) of the spatial axes; 1 for a tensor without an affine."""
    affine = getattr(image, "affine", None)
    if affine is None:
        return np.ones((1, axes))
    matrices = np.asarray(torch.as_tensor(affine).as_subclass(Tensor).cpu(), dtype=np.float64)
    return np.atleast_2d(np.linalg.norm(matrices[..., :-1, :-1], axis=-2)[..., :axes])


def _centre(random: np.random.Generator, shape: Sequence[int], size: NDArray[Any]) -> list[float]:
    """Of a patch that covers `size` voxels of the image: anywhere inside, about the middle where it does not fit.

    An undeformed patch of the image's own spacing lies on voxels.
    """
    centre = []
    for n, extent in zip(shape, size, strict=True):
        first = int(random.integers(np.floor(n - extent) + 1)) if extent <= n else (n - extent) // 2
        centre.append(float(first + (extent - 1) / 2))
    return centre
