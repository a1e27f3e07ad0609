"""One annotated scan alone: blocks of it are tested, and what lies beyond a gap on either side is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from fewscan.errors import PairingError
from fewscan.files import replace_when_complete
from fewscan.grid import Grid
from fewscan.scans import Case, Scan
from fewscan.scans.open import Channels

LABELLED_SLICES = 3
"""Of a block, at least."""
SLICES_TO_PREFER = 10
"""Labelled ones, from which on a network that looks at slices is tested on whole slices."""


@dataclass(frozen=True)
class Block:
    """A run of slices along one axis that is tested; [first, stop) of the axis' n voxels.

    The network sees `read`: the block and its gap. It is trained on `training`, which begins where the gap ends. So
    no voxel of the block is trained on, and no voxel that was trained on reaches the answer, however far the network
    looks: beyond `read` its input is mirrored.
    """

    first: int
    stop: int
    gap: int
    n: int

    @property
    def read(self) -> tuple[int, int]:
        """[first, stop) of what is given to the network."""
        return max(0, self.first - self.gap), min(self.n, self.stop + self.gap)

    @property
    def training(self) -> tuple[tuple[int, int], ...]:
        """[first, stop) of each part that is trained on."""
        low, high = self.read
        return tuple((first, stop) for first, stop in ((0, low), (high, self.n)) if stop > first)


def cut_blocks(labelled: Sequence[int], wanted: int | None = None) -> list[Block]:
    """Blocks that partition an axis, each with about the same number of labelled voxels.

    The gap is a tenth of the slices from the first labelled one to the last, at least one voxel.

    Args:
        labelled: voxels with a label in each slice along the axis.
        wanted: blocks; None for five, and for fewer where blocks would hold less than three labelled slices, or leave
            no label to train on.

    Raises:
        PairingError: there is too little to part.
    """
    counts = np.asarray(labelled, dtype=np.int64)
    slices = int(np.count_nonzero(counts))
    most = slices // LABELLED_SLICES
    if not 2 <= (wanted or 2) <= most:
        raise PairingError(
            f"the one scan holds labels in {slices} slices: too few for {wanted or 'two'} blocks of at least "
            f"{LABELLED_SLICES}; annotate another scan"
        )
    for blocks in [wanted] if wanted else range(min(5, most), 1, -1):
        cut = _cut(counts, blocks)
        if all(block.first < block.stop and any(counts[a:b].any() for a, b in block.training) for block in cut):
            return cut
    raise PairingError(
        "the labels of the one scan lie too close together to test one part and train on another; annotate another scan"
    )


def _cut(counts: NDArray[np.int64], blocks: int) -> list[Block]:
    """With equal shares of the labelled voxels."""
    so_far, at = np.cumsum(counts), np.flatnonzero(counts)
    ends = [int(np.searchsorted(so_far, so_far[-1] * part / blocks)) + 1 for part in range(1, blocks)]
    gap = max(1, int(at[-1] - at[0] + 1) // 10)
    n = len(counts)
    return [Block(first, stop, gap, n) for first, stop in zip([0, *ends], [*ends, n], strict=True)]


def choose_axis(classes: NDArray[Any], slice_axis: int | None) -> int:
    """The axis (i, j, k) that is cut: along which labels reach through most slices.

    `slice_axis`: along which a 2D network looks at slices; it is preferred where ten slices or more hold labels.
    """
    counts = [int(np.count_nonzero(profile(classes, axis))) for axis in range(3)]
    if slice_axis is not None and counts[slice_axis] >= SLICES_TO_PREFER:
        return slice_axis
    return int(np.argmax(counts))


def profile(classes: NDArray[Any], axis: int) -> NDArray[np.int64]:
    """Voxels with a label in each slice along an axis."""
    others = tuple(other for other in range(3) if other != axis)
    counts: NDArray[np.int64] = np.count_nonzero(classes > 0, axis=others)
    return counts


def write_parts(
    folder: Path,
    block: Block,
    axis: int,
    scan: Scan,
    label: NDArray[Any],
    channels: Sequence[Mapping[str, Any] | str],
) -> tuple[list[Case], Case, tuple[slice, ...]]:
    """Cut the scan into files (NIfTI): the parts to train on, what the test reads, and which of its voxels count.

    `label` (i, j, k) holds the values that label files get; `channels` are the bundle's.
    """
    image = scan.read()
    called = Channels.of(channels)
    suffixes = called.suffixes if called else ()
    names = ["test", *(f"training{number}" for number, _ in enumerate(block.training, start=1))]
    cases = []
    for name, (first, stop) in zip(names, (block.read, *block.training), strict=True):
        part = tuple(slice(first, stop) if other == axis else slice(None) for other in range(3))
        grid = scan.grid.cropped(part)
        cut = image[(slice(None), *part)]
        if suffixes:
            images = [folder / f"{name}{suffix}.nii.gz" for suffix in suffixes]
            for path, channel in zip(images, cut, strict=True):
                _save(path, channel, grid)
        else:
            images = [folder / f"{name}.nii.gz"]
            _save(images[0], cut[0] if len(cut) == 1 else np.moveaxis(cut, 0, -1), grid)
        labels = folder / "labels" / f"{name}.nii.gz"
        _save(labels, label[part], grid)
        cases.append(Case(name, tuple(images), (labels,)))
    offset = block.first - block.read[0]
    within = slice(offset, offset + block.stop - block.first)
    counted = tuple(within if other == axis else slice(None) for other in range(3))
    return cases[1:], cases[0], counted


def _save(path: Path, array: NDArray[Any], grid: Grid) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(path) as temporary:
        whole = array.astype(np.int32 if array.max() < 2**31 else np.float64) if array.dtype.kind in "iu" else array
        nibabel.save(nibabel.Nifti1Image(whole, grid.affine), temporary)
