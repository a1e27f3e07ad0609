"""Training patches: which case, where, and how it is bent; each a function of the seed and its number alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform, Randomizable
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from fewscan.errors import BundleError
from fewscan.training.elastic import Deformation, RandomDeformation
from fewscan.training.memory import CASES_SHARE
from fewscan.training.resample import Mode, resample

_ARRAYS = ("image", "label", "weight")
MOST_VOXELS = 20_000
"""Of a label that are listed."""
_SLAB = 2**18
"""Voxels that are looked at at once: torch makes int64 indices of all that a mask holds, far larger than the label."""


class ListLabelVoxelsd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Adds `label_voxels`: for each label of a case up to 20,000 of its voxels, drawn at random, as (n, axes) int64.

    Done once a case, so that a patch can be centred on a label without a search through the volume. Where voxels of
    the case are unknown (-1), `known_voxels` lists those that are not, in the same way.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the lists of the first of the keys, (1, *spatial) class indices."""
        classes = data[self.keys[0]].as_subclass(Tensor)[0]
        slabs = torch.split(classes.reshape(-1), _SLAB)
        labels = torch.unique(torch.cat([torch.unique(slab[slab > 0]) for slab in slabs]))
        voxels = [_some(classes == label) for label in labels]
        known = classes >= 0
        listed: dict[Hashable, Any] = {} if bool(known.all()) else {"known_voxels": _some(known)}
        return {**data, "label_voxels": voxels, **listed}


def _some(mask: Tensor) -> Tensor:
    """(n, axes) of up to `MOST_VOXELS` voxels of a mask, the same in every run.

    Not every n-th, which a volume's rows and slices would share.
    """
    count = int(mask.count_nonzero())
    if count <= MOST_VOXELS:
        return mask.nonzero()
    chosen = np.random.default_rng(0).choice(count, MOST_VOXELS, replace=False)
    ranks, order = torch.from_numpy(chosen).to(mask.device).sort()  # the n-th voxel of the mask, in the array's order
    places = torch.empty_like(ranks)
    passed = first = 0
    for number, slab in enumerate(torch.split(mask.reshape(-1), _SLAB)):
        held = slab.nonzero()[:, 0]
        last = int(torch.searchsorted(ranks, passed + len(held)))
        places[order[first:last]] = number * _SLAB + held[ranks[first:last] - passed]
        passed, first = passed + len(held), last
    return torch.stack(torch.unravel_index(places, mask.shape), dim=1)


def _one_of(voxels: Tensor, random: np.random.Generator) -> list[float]:
    return [float(v) for v in voxels[int(random.integers(len(voxels)))]]


class RandomPatchd(Randomizable):  # type: ignore[misc]  # MONAI has no types
    """A patch from a random place of a case, elastically deformed, turned and scaled in one resample.

    Half of the patches are centred on a voxel of a random label of the case (from `label_voxels`, see
    `ListLabelVoxelsd`), half lie anywhere; where voxels of the case are unknown, around one that is known. A 2D patch
    of a volume comes from one slice along its last axis. The patch is made on the device where the case lies.

    Args:
        patch: voxels along each axis; its length says whether patches are 2D or 3D.
        image_key: (C, *spatial) on the network's grid, a MetaTensor, whose affine tells the spacing.
        label_key: (1, *spatial) class indices; the result's are -1 beyond the volume.
        weight_key: (1, *spatial) weights, moved along where there are any; the result's are 0 beyond the volume.
        deformation: see `fewscan.training.elastic.RandomDeformation`, for example `elastic_sd=10`.
    """

    def __init__(
        self,
        patch: Sequence[int],
        image_key: Hashable = "image",
        label_key: Hashable = "label",
        weight_key: Hashable = "weight",
        **deformation: Any,
    ) -> None:
        if len(patch) not in (2, 3):
            raise ValueError(f"a patch has 2 or 3 axes, not {len(patch)}: {list(patch)}")
        self.patch, self.image_key, self.label_key, self.weight_key = tuple(patch), image_key, label_key, weight_key
        self.deformation = RandomDeformation(**deformation)
        self.deformation.refuse_flat(len(patch))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with `image` (C, *patch) float32, `label` (1, *patch) int64 and `weight` (1, *patch) float32."""
        random = np.random.default_rng(self.R.randint(2**32, dtype=np.uint64))
        centre = self.place(random, data)
        return self.cut(data, centre, self.draw(random, data))

    def draw(self, random: np.random.Generator, data: Mapping[Hashable, Any]) -> Deformation:
        """A random deformation of the case's patches."""
        affine = np.asarray(data[self.image_key].affine.cpu(), dtype=np.float64)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        return self.deformation.draw(random, self.patch, spacing[: len(self.patch)])

    def place(self, random: np.random.Generator, data: Mapping[Hashable, Any]) -> list[float]:
        """Voxel coordinates of a patch's centre, and the slice of a 2D patch of a volume.

        An undeformed patch lies on voxels there, and inside the volume where it fits.
        """
        shape, labels = tuple(data[self.label_key].shape[1:]), data["label_voxels"]
        target = [random.uniform(-0.5, n - 0.5) for n in shape]
        if len(data.get("known_voxels", ())):
            target = _one_of(data["known_voxels"], random)
        if labels and random.random() < 0.5:
            target = _one_of(labels[int(random.integers(len(labels)))], random)
        centre = []
        for axis, (n, at) in enumerate(zip(shape, target, strict=True)):
            if axis >= len(self.patch):  # the slice of a 2D patch
                centre.append(float(min(max(round(at), 0), n - 1)))
                continue
            size = self.patch[axis]
            first = min(max(round(at - (size - 1) / 2), 0), n - size) if size <= n else (n - size) // 2
            centre.append(first + (size - 1) / 2)
        return centre

    def cut(
        self, data: Mapping[Hashable, Any], centre: Sequence[float], deformation: Deformation
    ) -> dict[Hashable, Any]:
        """`data` with the patch of that place and deformation."""
        modes: dict[Hashable, Mode] = {self.image_key: "linear", self.label_key: "nearest"}
        if self.weight_key in data:
            modes[self.weight_key] = "weight"
        axes = len(self.patch)
        arrays = [torch.as_tensor(data[key]).as_subclass(Tensor)[None] for key in modes]
        if arrays[0].ndim == axes + 3:
            arrays = [array[..., int(centre[axes])] for array in arrays]
        places = deformation.coordinates(self.patch, centre[:axes], arrays[0].device)
        moved = resample(arrays, list(modes.values()), places[None])
        return {**data, **{key: array[0] for key, array in zip(modes, moved, strict=True)}}


class PatchDataset(Dataset[dict[Hashable, Any]]):
    """Endless random patches of a few cases: item n is the same in every run with the same seed.

    Cases are read and preprocessed once and kept in memory. Each item's randomness comes from (seed, n) alone, so
    that workers, their number and an interruption change nothing.

    With a GPU as `device` patches are made there: cases are kept on it, in the order in which they come, while all of
    them together take at most a tenth of its memory, which a plan for a GPU leaves for them. From the others patches
    are cut on the CPU, and go on there. In a worker process, which has to leave the GPU alone, all stays on the CPU.
    Where not all cases have room, an interrupted training may have others there when it goes on: their patches are the
    same but for rounding.

    Args:
        data: one dictionary a case, as in a MONAI datalist.
        transform: from the dictionary to image and label on the network's grid.
        augment: from there to a patch; its `Randomizable` parts are seeded for each item.
        seed: of all patches.
        device: where patches are made.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable[[Any], Any],
        augment: Sequence[Callable[[Any], Any]],
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not data:
            raise BundleError("there is no case to train on: the datalist's `training` is empty")
        self.data, self.transform, self.augment, self.seed = list(data), transform, list(augment), seed
        self.device = torch.device(device)
        self._cases: dict[int, Any] = {}
        self._kept_bytes = 0

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
            patch = self._on_device(step(patch))
        return {key: patch[key] for key in _ARRAYS if key in patch}

    def case(self, index: int) -> Any:
        """A case on the network's grid, from memory once it was read."""
        if index not in self._cases:
            case = self.transform(self.data[index])
            arrays = [torch.as_tensor(case[key]) for key in _ARRAYS if key in case]
            size = sum(array.nelement() * array.element_size() for array in arrays)
            if self._makes_on_device and self._kept_bytes + size <= room_for_cases(self.device):
                case = self._on_device(case)
                self._kept_bytes += size
            self._cases[index] = case
        return self._cases[index]

    @property
    def _makes_on_device(self) -> bool:
        """Whether patches are made there and not on the CPU. A worker must not even ask the GPU for its memory."""
        return self.device.type != "cpu" and get_worker_info() is None

    def _on_device(self, data: Any) -> Any:
        """`data` with its arrays where patches are made."""
        if not self._makes_on_device:
            return data
        return {**data, **{key: torch.as_tensor(data[key]).to(self.device) for key in _ARRAYS if key in data}}


def room_for_cases(device: torch.device) -> int:
    """Bytes of a device's memory that cases may take."""
    if device.type == "cuda":
        return int(CASES_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return 2**63  # no memory of its own


class StepSampler(Sampler[int]):
    """The numbers of the items of one epoch after the other: epoch e goes on where e - 1 stopped.

    Args:
        items: in an epoch, of all ranks together (steps x batch x ranks).
        rank, ranks: of this process; each takes every `ranks`-th item.

    Attributes:
        epoch: whose items come next, from 0.
        skip: items of this rank that an interrupted training has seen of that epoch.
        only: instead of an epoch's these items, shared among the ranks.
    """

    def __init__(self, items: int, rank: int = 0, ranks: int = 1) -> None:
        self.items, self.rank, self.ranks = items, rank, ranks
        self.epoch = self.skip = 0
        self.only: range | None = None

    def __len__(self) -> int:
        return self.items // self.ranks

    def __iter__(self) -> Iterator[int]:
        if self.only is not None:
            return iter(self.only[self.rank :: self.ranks])
        first = self.epoch * self.items
        return iter(range(first + self.rank, first + len(self) * self.ranks, self.ranks)[self.skip :])
