"""The steps between a scan's file and the network, and back, as MONAI dictionary transforms that a bundle names."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray
from torch import Tensor

from fewscan.arrays import release
from fewscan.decision import Decision
from fewscan.errors import BundleError, LabelError, ScanError
from fewscan.grid import Grid
from fewscan.intensity import Normalisation
from fewscan.labels import LabelTable
from fewscan.network_grid import labels_to_network_grid, to_network_grid
from fewscan.pieces import keep_pieces


class NormaliseIntensityd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Intensities to what the network expects, by one rule for the whole scan, never by patch or block.

    With a window [low, high] (CT in HU, or scans of one protocol): low to -1 and high to 1, clipped. Without one:
    each channel is clipped at its 0.5th and 99.5th percentile (not where both are the same: few voxels are bright) and
    brought to mean 0 and standard deviation 1; a constant channel becomes 0. (C, i, j, k) any type -> float32.

    Args:
        keys: images.
        window: None, one window for all channels, or a list with None or a window for each channel.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        window: Sequence[float] | Sequence[Sequence[float] | None] | None = None,
    ) -> None:
        super().__init__(keys)
        one_for_all = window is None or all(isinstance(edge, int | float) for edge in window)
        windows: Sequence[Any] = [window] if one_for_all else window or []
        for own in windows:
            if own is not None and not (isinstance(own, Sequence) and len(own) == 2 and own[0] < own[1]):
                raise ValueError(f"an intensity window has to be [low, high] with low < high, not {own}")
        self.windows, self.one_for_all = windows, one_for_all

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the keys normalised."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: MetaTensor = result[key]
            array = image.as_tensor().to(torch.float32)
            rules = self.rules(array.numpy(force=True), str(image.meta.get("filename_or_obj", "the image")))
            channels = [rule(channel) for rule, channel in zip(rules, array, strict=True)]
            result[key] = MetaTensor(torch.stack(channels), meta=image.meta)
        return result

    def rules(self, array: NDArray[Any], where: str) -> list[Normalisation]:
        """What is done to each channel of (C, i, j, k); `where` names the image in errors.

        Raises BundleError where there are more or fewer windows than channels, ScanError where a channel without a
        window goes beyond single precision.
        """
        windows = [self.windows[0]] * len(array) if self.one_for_all else self.windows
        if len(windows) != len(array):
            raise BundleError(
                f"{where}: has {len(array)} channels, but intensity_window lists {len(windows)}; give null or "
                "[low, high] for each channel, or one for all"
            )
        rules = [
            Normalisation.of_channel(channel) if window is None else Normalisation.of_window(*window)
            for channel, window in zip(array, windows, strict=True)
        ]
        if not all(math.isfinite(rule.high - rule.low) for rule in rules):
            raise ScanError(
                f"{where}: holds numbers beyond single precision (3.4e38), in which networks compute; save it in "
                "smaller ones"
            )
        return rules


class ToNetworkGridd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Image and label onto the grid that the network sees (`fewscan.network_grid.to_network_grid`).

    `label_keys` hold class indices and keep their type: the class that covers most of a new voxel wins; without
    resampling they are only reordered. The affine and the shape of the result stand in its
    metadata, `original_affine` and `spatial_shape` still describe the scan.

    Args:
        keys: images, (C, i, j, k) float.
        spacing: wanted, in mm along left, posterior, superior; None keeps each scan's own.
        slice_axis: 0, 1 or 2 where a 2D network looks at slices along left, posterior, superior: that axis goes last.
        label_keys: labels, (1, i, j, k) class indices.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        spacing: Sequence[float] | None = None,
        slice_axis: int | None = None,
        label_keys: Sequence[Hashable] = (),
    ) -> None:
        super().__init__(keys)
        self.spacing, self.slice_axis, self.label_keys = spacing, slice_axis, tuple(label_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with images and labels on the network's grid."""
        result = dict(data)
        for key in self.key_iterator(result):
            image: MetaTensor = result[key]
            array, moved = to_network_grid(
                image.as_tensor().to(torch.float32), scan_grid(image), self.spacing, self.slice_axis
            )
            result[key] = self._moved(array, moved, image)
        for key in self.label_keys:
            label: MetaTensor = result[key]
            array, moved = labels_to_network_grid(label.as_tensor(), scan_grid(label), self.spacing, self.slice_axis)
            result[key] = self._moved(array, moved, label)
        return result

    def _moved(self, array: Tensor, moved: Grid, source: MetaTensor) -> MetaTensor:
        grid = scan_grid(source)
        meta = {**without_affine(source), "original_affine": grid.affine.copy(), "spatial_shape": np.array(grid.shape)}
        return MetaTensor(array, affine=torch.from_numpy(moved.affine.copy()), meta=meta)


class DecideLabelsd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """The network's logits to labels on the scan's own grid (`fewscan.decision.Decision`).

    (classes, *network) -> (1, i, j, k) MetaTensor with the scan's affine. With a label table the result holds the
    values that files hold, otherwise class indices. Then pieces of labels may become background
    (`fewscan.pieces.keep_pieces`).

    Args:
        keys: the network's answer, `pred`.
        image_key: the image it came from, as `ToNetworkGridd` left it: tells both grids.
        labels: rows of the bundle's label table, or None for class indices.
        keep_largest: values of the labels (class indices without a table) of which only the largest piece stays.
        minimum_size_mm3: pieces of less volume go; a picture without a voxel size has voxels of 1 mm3.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        image_key: Hashable = "image",
        labels: Sequence[Any] | None = None,
        keep_largest: Sequence[int] = (),
        minimum_size_mm3: float = 0.0,
    ) -> None:
        super().__init__(keys)
        self.image_key = image_key
        self.table = None if labels is None else LabelTable.from_json(labels)
        self.keep_largest, self.minimum_size_mm3 = list(keep_largest), minimum_size_mm3
        if self.table is not None:
            self.keep_largest = self.table.to_classes(np.array(self.keep_largest, int), "keep_largest").tolist()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the keys as labels on the scan's grid."""
        result = dict(data)
        image: MetaTensor = result[self.image_key]
        for key in self.key_iterator(result):
            logits = torch.as_tensor(result[key]).as_subclass(Tensor)
            affine = np.asarray(torch.as_tensor(image.meta["original_affine"]).cpu(), dtype=np.float64)
            i, j, k = (int(n) for n in torch.as_tensor(image.meta["spatial_shape"]))
            network_affine = np.asarray(image.affine.cpu(), dtype=np.float64)
            decision = Decision(tuple(image.shape[1:]), network_affine, Grid((i, j, k), affine))
            everything = tuple(slice(0, n) for n in logits.shape[1:])
            decision.add(logits, everything, everything)
            labels = np.ascontiguousarray(self.values(decision, len(logits))[None], dtype=np.int32)
            meta = without_affine(image)  # torch has no arithmetic on uint16
            result[key] = MetaTensor(torch.from_numpy(labels), affine=torch.from_numpy(affine.copy()), meta=meta)
        return result

    def values(self, decision: Decision, answered: int) -> NDArray[np.integer]:
        """The labels of a complete decision, (i, j, k); `answered` is how many classes the network answers.

        Values that files hold, in the table's type, or class indices without a table. May be the decision's array.
        """
        smallest = math.ceil(self.minimum_size_mm3 / decision.scan.voxel_mm3 - 1e-6)
        classes = keep_pieces(decision.classes, self.keep_largest, smallest)
        if self.table is None:
            return classes
        if answered != self.table.classes:
            raise LabelError(
                f"the network answers {answered} classes, but the label table lists {len(self.table)} labels and "
                "the background"
            )
        if classes.dtype == self.table.dtype and np.array_equal(self.table.values, np.arange(answered)):
            return classes
        values = decision.empty(classes.shape, self.table.dtype, "F")
        for k in range(classes.shape[2]):
            values[..., k] = self.table.to_values(classes[..., k])
            release(values)
            release(classes)
        return values


class LeaveOutUnknownd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """Background in answer and label where the label is unknown (-1): such voxels count in no score of the labels.

    Args:
        keys: the network's answer, (1, i, j, k) class indices.
        label_key: the label of the same shape; its -1 become 0 too, and it goes to the device of the answer.
    """

    def __init__(self, keys: Hashable | Sequence[Hashable], label_key: Hashable = "label") -> None:
        super().__init__(keys)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with answer and label changed."""
        result = dict(data)
        label = result[self.label_key]
        for key in self.key_iterator(result):
            answer = result[key]
            label = label.to(answer.device)  # the engine has put it on the network's
            result[key] = answer.masked_fill(label < 0, 0)
        result[self.label_key] = label.masked_fill(label < 0, 0)
        return result


class MatchLabelGridd(MapTransform):  # type: ignore[misc]  # MONAI has no types
    """The label onto the image's grid: reordered exactly where only the order of axes differs, else refused.

    (1, i, j, k) class indices of any type -> uint8 up to 256 classes, else int16 or int32 (torch lacks arithmetic on
    uint16); int16 or int32 where voxels are unknown (-1). Raises GeometryError, naming the label's file and the
    numbers, where its voxels do not lie where the image's lie.
    """

    def __init__(self, keys: Hashable | Sequence[Hashable], image_key: Hashable = "image") -> None:
        super().__init__(keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """`data` with the labels on the image's grid."""
        from fewscan.scans import match_grid

        result = dict(data)
        image: MetaTensor = result[self.image_key]
        for key in self.key_iterator(result):
            label: MetaTensor = result[key]
            where = f"{label.meta.get('filename_or_obj', key)} (label of {image.meta.get('filename_or_obj', 'image')})"
            array = match_grid(label.as_tensor()[0].numpy(force=True), scan_grid(label), scan_grid(image), where)
            highest, unknown = array.max(), array.min() < 0
            dtype = np.uint8 if highest < 2**8 and not unknown else np.int16 if highest < 2**15 else np.int32
            classes = torch.from_numpy(array[None].astype(dtype))
            result[key] = MetaTensor(classes, affine=image.affine, meta=without_affine(label))
        return result


def scan_grid(image: MetaTensor) -> Grid:
    """The grid of a (C, i, j, k) MetaTensor."""
    i, j, k = image.shape[1:]
    return Grid((i, j, k), np.asarray(image.affine.cpu(), dtype=np.float64))


def without_affine(image: MetaTensor) -> dict[str, Any]:
    """The metadata; MetaTensor takes the affine by itself and warns of a second one."""
    return {key: value for key, value in image.meta.items() if key != "affine"}
