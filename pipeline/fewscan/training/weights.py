"""How much each voxel and each class counts in a training: border weights, unknown voxels, class balance."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from torch import Tensor

from fewscan.training.border import border_weights, part_touching
from fewscan.transforms import without_affine

MOST_PIECES = 3
"""Numbers whose voxels lie in more than this many connected pieces each are no numbers of objects."""


def median_frequency(voxels: Sequence[int]) -> list[float]:
    """Class weights by median frequency balancing, median(f) / f_c (SegNet: Badrinarayanan et al. 2017, Sec. 4.1).

    f_c is the share of a class in all voxels, and the median goes over the classes that have any. A class without
    voxels gets the largest weight of the others: were it 0, the class would be ignored if it turns up later.

    A plan counts voxels as the files hold them: touching objects are parted later (`AddWeightMapd`), which makes labels
    a little rarer than that.

    Args:
        voxels: of each class, the background first.

    Returns:
        A weight for each class, above 0. The middle one of an odd number of classes has 1.

    Raises:
        ValueError: there is no voxel at all.
    """
    present = [count for count in voxels if count > 0]
    if not present:
        raise ValueError("there is no voxel of any class, so classes have no frequency")
    middle = statistics.median(present)
    return [middle / (count if count > 0 else min(present)) for count in voxels]


class AddWeightMapd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Adds `weight`, the U-Net paper's w(x), and parts objects that touch, as the paper trains them.

    Once a case, on the network's grid. The label (1, *spatial) keeps its shape; touching objects of one label get a gap
    of one voxel of background between them (`part_touching`). `weight`, (1, *spatial) float32, is 1 on labels, 1 and
    the border term on background (`border_weights`), 0 where the label is unknown (-1).

    Objects are what the numbers of merged masks tell apart (`LabelReader(instances=True)`; the result holds class 1
    then). Masks that number no objects (`are_objects`), and labels that are no merged masks, give their connected
    pieces (8 neighbours, in 3D 26): such pieces touch nowhere, and no voxel of them becomes background. Objects of
    different labels need no gap.

    A network of 2D slices knows no neighbour slice: pieces and distances are those of each slice then. So they are
    where unknown slices lie between known ones, for the pieces there are cross-sections, perhaps of one object.

    Args:
        keys: the label.
        border: `height` of the border term and its `sd`, in voxels along the finest axis of the network's grid; the
            other axes count by their spacing. None adds nothing and changes nothing.
        merged: whether the label holds numbers of objects.
        spatial_dims: 2 where slices along the last axis are seen one by one.
    """

    def __init__(
        self,
        keys: Hashable = "label",
        border: Mapping[str, float] | None = None,
        merged: bool = False,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__(keys)
        if border is not None and (set(border) != {"height", "sd"} or min(border.values()) <= 0):
            raise ValueError(f'border_weights are null or {{"height": 10.0, "sd": 5.0}}, both above 0; not {border}')
        self.border, self.merged, self.spatial_dims = border, merged, spatial_dims

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with `weight` and the parted label."""
        if self.border is None:
            return dict(data)
        label: MetaTensor = data[self.keys[0]]
        numbers = label.as_subclass(Tensor)[0].numpy(force=True).astype(np.int32)
        classes = np.minimum(numbers, 1) if self.merged else numbers
        numbered = self.merged and are_objects(numbers)
        spacing = np.linalg.norm(np.asarray(label.affine, dtype=np.float64)[:3, :3], axis=0)
        axis = 2 if self.spatial_dims == 2 else None if numbered else _interrupted(classes)
        parted, weight = np.empty_like(classes), np.empty(classes.shape, dtype=np.float32)
        steps = spacing if axis is None else np.delete(spacing, axis)
        for at in [()] if axis is None else [(slice(None),) * axis + (at,) for at in range(classes.shape[axis])]:
            objects = numbers[at] if numbered else pieces(classes[at])
            parted[at], weight[at] = self._weigh(classes[at], objects, tuple((steps / steps.min()).tolist()))
        result = torch.from_numpy(parted[None]).to(torch.int16 if self.merged else label.dtype)
        return {
            **data,
            self.keys[0]: MetaTensor(result, affine=label.affine, meta=without_affine(label)),
            "weight": torch.from_numpy(weight[None]),
        }

    def _weigh(
        self, classes: NDArray[np.int32], objects: NDArray[np.int32], spacing: tuple[float, ...]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The parted classes and their weights, of a volume or a slice."""
        assert self.border is not None
        parted = np.where(classes < 0, -1, 0).astype(np.int32)
        weight = np.where(classes < 0, 0, 1).astype(np.float32)
        for value in np.unique(classes[classes > 0]):
            own = np.where(classes < 0, -1, np.where(classes == value, objects, 0))
            parted[part_touching(own)] = value
            weight = np.maximum(weight, border_weights(own, self.border["height"], self.border["sd"], spacing))
        weight[parted > 0] = 1
        return parted, weight


def are_objects(numbers: NDArray[np.int32]) -> bool:
    """Whether numbers above 0 tell objects apart, rather than being shades of one mask, or kinds of objects.

    More than half of two or more have a voxel inside: its neighbours on both sides, along two axes, are of its number.
    The shades of a smoothed or JPEG mask lie in thin lines along its edge. And the numbers lie in no more than three
    connected pieces each.

    Args:
        numbers: 2D or 3D; 0 is background, -1 unknown.
    """
    known = len(np.unique(numbers[numbers > 0]))
    if known < 2:
        return False
    alike = np.zeros(numbers.shape, dtype=np.int8)
    for axis in range(numbers.ndim):
        along = np.moveaxis(numbers, axis, 0)
        middle = along[1:-1]
        np.moveaxis(alike, axis, 0)[1:-1] += (middle == along[:-2]) & (middle == along[2:])
    inner = len(np.unique(numbers[(alike >= 2) & (numbers > 0)]))
    return 2 * inner > known and len(np.unique(pieces(numbers).clip(min=0))) - 1 <= MOST_PIECES * known


def _interrupted(classes: NDArray[np.int32]) -> int | None:
    """The axis across which unknown slices lie between known ones."""
    for axis in range(classes.ndim):
        known = np.flatnonzero((classes >= 0).any(axis=tuple(other for other in range(classes.ndim) if other != axis)))
        if len(known) and len(known) <= known[-1] - known[0]:
            return axis
    return None


def pieces(numbers: NDArray[np.int32]) -> NDArray[np.int32]:
    """Connected pieces of equal numbers above 0, each with its own number from 1; what is not above 0 stays.

    Args:
        numbers: 2D or 3D; voxels that touch at a corner are connected.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(numbers))
    found = sitk.GetArrayFromImage(sitk.ScalarConnectedComponent(image, image > 0, 0.0, True))
    return np.where(numbers > 0, found.astype(np.int32), numbers)
