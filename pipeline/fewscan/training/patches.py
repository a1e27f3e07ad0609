"""Training patches: which case, where, and how it is bent; each a function of the seed and its number alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from fewscan.errors import BundleError
from fewscan.training.elastic import deform, random_coordinates


class ListLabelVoxelsd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Adds `label_voxels`: for each label of a case up to 20,000 of its voxels, evenly picked, as (n, axes) int64.

    Done once a case, so that a patch can be centred on a label without a search through the volume.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the lists of the first of the keys, (1, *spatial) class indices."""
        classes = data[self.keys[0]].as_subclass(Tensor)[0]
        voxels = [(classes == label).nonzero() for label in torch.unique(classes[classes > 0])]
        return {**data, "label_voxels": [where[:: max(1, -(-len(where) // 20_000))].clone() for where in voxels]}


class RandomPatchd(Randomizable):  # type: ignore[misc]  # MONAI has no types
    """A patch from a random place of a case, elastically deformed, turned and scaled in one resample.

    Half of the patches are centred on a voxel of a random label of the case (from `label_voxels`, see
    `ListLabelVoxelsd`), half lie anywhere. A 2D patch of a volume comes from one slice along its last axis.

    Args:
        image_key: (C, *spatial) on the network's grid.
        label_key: (1, *spatial) class indices; the result's are -1 beyond the volume.
        patch: voxels along each axis; its length says whether patches are 2D or 3D.
        elastic_sd: standard deviation of the control points' displacements, in voxels; 0 switches it off.
        control_points: of the elastic grid along each axis, from border to border of the patch.
        rotate_degrees, scale, flip: see `fewscan.training.elastic.random_coordinates`.
    """

    def __init__(
        self,
        patch: Sequence[int],
        image_key: Hashable = "image",
        label_key: Hashable = "label",
        elastic_sd: float = 0.0,
        control_points: int = 3,
        rotate_degrees: float = 0.0,
        scale: Sequence[float] = (1.0, 1.0),
        flip: bool = False,
    ) -> None:
        if len(patch) not in (2, 3):
            raise ValueError(f"a patch has 2 or 3 axes, not {len(patch)}: {list(patch)}")
        self.patch, self.image_key, self.label_key = tuple(patch), image_key, label_key
        self.bend: dict[str, Any] = {
            "elastic_sd": elastic_sd,
            "control_points": control_points,
            "rotate_degrees": rotate_degrees,
            "scale": scale,
            "flip": flip,
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with `image` (C, *patch) float32 and `label` (1, *patch) int64."""
        random = np.random.default_rng(self.R.randint(2**32, dtype=np.uint64))
        image: MetaTensor = data[self.image_key]
        volume, classes = image.as_subclass(Tensor), torch.as_tensor(data[self.label_key]).as_subclass(Tensor)[0]
        spacing = np.linalg.norm(np.asarray(image.affine, dtype=np.float64)[:3, :3], axis=0)
        centre = self._centre(random, tuple(classes.shape), data["label_voxels"])
        if len(self.patch) == 2 and volume.ndim == 4:
            at = int(centre[2])
            volume, classes, centre = volume[..., at], classes[..., at], centre[:2]
        places = random_coordinates(random, self.patch, centre, spacing[: len(self.patch)], **self.bend)
        moved, label = deform(volume, classes, places)
        return {**data, self.image_key: moved, self.label_key: label[None]}

    def _centre(self, random: np.random.Generator, shape: tuple[int, ...], labels: Sequence[Tensor]) -> list[float]:
        """Voxel coordinates, such that an undeformed patch lies on voxels; it stays inside the volume where it fits."""
        target = [random.uniform(-0.5, n - 0.5) for n in shape]
        if labels and random.random() < 0.5:
            voxels = labels[int(random.integers(len(labels)))]
            target = [float(v) for v in voxels[int(random.integers(len(voxels)))]]
        centre = []
        for axis, (n, at) in enumerate(zip(shape, target, strict=True)):
            if axis >= len(self.patch):  # the slice of a 2D patch
                centre.append(float(min(max(round(at), 0), n - 1)))
                continue
            size = self.patch[axis]
            first = min(max(round(at - (size - 1) / 2), 0), n - size) if size <= n else (n - size) // 2
            centre.append(first + (size - 1) / 2)
        return centre


class RandomIntensityd(Randomizable):  # type: ignore[misc]  # MONAI has no types
    """Contrast, brightness, gamma and noise of a normalised patch, each changed a little at random.

    (C, *patch) float32 of about unit spread -> the same. Contrast x 0.75 to 1.3, brightness by a normal of sd 0.15,
    gamma 0.7 to 1.5 of the patch's range in a third of all cases, noise of sd up to 0.1 in a third.
    """

    def __init__(self, keys: Hashable = "image") -> None:
        self.key = keys

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the image changed."""
        random = np.random.default_rng(self.R.randint(2**32, dtype=np.uint64))
        image: Tensor = data[self.key].clone()
        for channel in image:
            if random.random() < 1 / 3:
                low, high = channel.min(), channel.max()
                spread = (high - low).clamp(min=1e-6)
                channel.copy_(((channel - low) / spread) ** float(np.exp(random.uniform(-0.35, 0.4))) * spread + low)
            mean = channel.mean()
            contrast, brightness = float(np.exp(random.uniform(-0.29, 0.26))), float(random.normal(0, 0.15))
            channel.copy_((channel - mean) * contrast + mean + brightness)
        if random.random() < 1 / 3:
            noise = random.normal(0, random.uniform(0, 0.1), tuple(image.shape))
            image += torch.from_numpy(noise.astype(np.float32))
        return {**data, self.key: image}


class PatchDataset(Dataset[dict[Hashable, Any]]):
    """Endless random patches of a few cases: item n is the same in every run with the same seed.

    Cases are read and preprocessed once and kept in memory. Each item's randomness comes from (seed, n) alone, so
    that workers, their number and an interruption change nothing.

    Args:
        data: one dictionary a case, as in a MONAI datalist.
        transform: from the dictionary to image and label on the network's grid.
        augment: from there to a patch; its `Randomizable` parts are seeded for each item.
        seed: of all patches.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        augment: Sequence[Callable[[Any], Any]],
        seed: int = 0,
    ) -> None:
        if not data:
            raise BundleError("there is no case to train on: the datalist's `training` is empty")
        self.data, self.transform, self.augment, self.seed = list(data), transform, list(augment), seed
        self._cases: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> dict[Hashable, Any]:
        random = np.random.default_rng((self.seed, number))
        # within each round every case comes once, in a new order
        order = np.random.default_rng((self.seed, number // len(self.data), 1)).permutation(len(self.data))
        patch = self.case(int(order[number % len(self.data)]))
        for step in self.augment:
            if isinstance(step, Randomizable):
                step.set_random_state(seed=int(random.integers(2**32)))
            patch = step(patch)
        return {"image": patch["image"], "label": patch["label"]}

    def case(self, index: int) -> Any:
        """A case on the network's grid, from memory once it was read."""
        if index not in self._cases:
            self._cases[index] = self.transform(self.data[index])
        return self._cases[index]


class StepSampler(Sampler[int]):
    """The numbers of the items of one epoch after the other: epoch e goes on where e - 1 stopped.

    Args:
        items: in an epoch, of all ranks together (steps x batch x ranks).
        rank, ranks: of this process; each takes every `ranks`-th item.
    """

    def __init__(self, items: int, rank: int = 0, ranks: int = 1) -> None:
        self.items, self.rank, self.ranks = items, rank, ranks
        self.epoch = 0

    def __len__(self) -> int:
        return self.items // self.ranks

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.items
        return iter(range(first + self.rank, first + len(self) * self.ranks, self.ranks))
