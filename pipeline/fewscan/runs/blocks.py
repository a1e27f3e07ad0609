"""One annotated scan alone: each block of it is tested by a training that saw what lies beyond a gap in its place.

The scan that is trained on has the size of the whole one. Cut out, or unlabelled in the block, it would leave places
where no answer is wrong, and there the network answers a label everywhere (docs/measured.md, "One annotated volume").
"""

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
ENOUGH_SEEN = 1 / 3
"""Of a label's voxels; a training that sees fewer is a poor stand-in for one that sees them all."""


@dataclass(frozen=True)
class Block:
    """A run of slices along one axis that is tested; [first, stop) of the axis' n voxels.

    In its training neither the block is seen nor the `gap` slices on either side.
    """

    axis: int
    first: int
    stop: int
    gap: int
    n: int

    @property
    def tested(self) -> tuple[slice, ...]:
        """The voxels (i, j, k) that are scored."""
        return self._along(self.first, self.stop)

    @property
    def hidden(self) -> tuple[slice, ...]:
        """The voxels (i, j, k) that the training does not see: the block and its gap."""
        return self._along(max(0, self.first - self.gap), min(self.n, self.stop + self.gap))

    @property
    def seen(self) -> NDArray[np.int64]:
        """(n,) slices that are trained on: each by itself, and for each hidden one another in its place.

        What lies beyond the nearer end of the hidden slices is mirrored there, as in a mirror between two slices; back
        and forth where it is the shorter.
        """
        hidden = self.hidden[self.axis]
        low, high = hidden.start, self.n - hidden.stop
        at = np.arange(hidden.start, hidden.stop)
        from_below, from_above = at - hidden.start, hidden.stop - 1 - at
        slices = np.arange(self.n)
        below = low - 1 - _back_and_forth(from_below, low) if low else slices[hidden]
        above = hidden.stop + _back_and_forth(from_above, high) if high else slices[hidden]
        nearer_below = (low > 0) & ((high == 0) | (from_below <= from_above))
        slices[hidden] = np.where(nearer_below, below, above)
        return slices

    def _along(self, first: int, stop: int) -> tuple[slice, ...]:
        return tuple(slice(first, stop) if axis == self.axis else slice(None) for axis in range(3))


def _back_and_forth(steps: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """0 to n - 1 and back again, and so on."""
    return np.minimum(steps % (2 * n), 2 * n - 1 - steps % (2 * n))


def cut_blocks(labelled: Sequence[int], wanted: int | None = None, axis: int = 0) -> list[Block]:
    """Blocks that partition the labelled part of an axis, each with about the same number of labelled voxels.

    The gap is a tenth of the slices from the first labelled one to the last, at least one voxel. The outermost blocks
    reach a gap beyond the labels. Slices farther away are in no block: they hold no label, and were a training not to
    see them, the organ would be mirrored into them.

    Args:
        labelled: voxels with a label in each slice along the axis.
        wanted: blocks; None for five, and for fewer where blocks would hold less than three labelled slices, or leave
            no label to train on.
        axis: that is cut.

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
        cut = _cut(counts, blocks, axis)
        if all(block.first < block.stop and counts.sum() > counts[block.hidden[axis]].sum() for block in cut):
            return cut
    raise PairingError(
        "the labels of the one scan lie too close together to test one part and train on another; annotate another scan"
    )


def _cut(counts: NDArray[np.int64], blocks: int, axis: int) -> list[Block]:
    """With equal shares of the labelled voxels."""
    so_far, at = np.cumsum(counts), np.flatnonzero(counts)
    ends = [int(np.searchsorted(so_far, so_far[-1] * part / blocks)) + 1 for part in range(1, blocks)]
    gap = max(1, int(at[-1] - at[0] + 1) // 10)
    n = len(counts)
    first, stop = max(0, int(at[0]) - gap), min(n, int(at[-1]) + 1 + gap)
    return [Block(axis, a, b, gap, n) for a, b in zip([first, *ends], [*ends, stop], strict=True)]


def choose_blocks(classes: NDArray[Any], slice_axis: int | None, wanted: int | None = None) -> list[Block]:
    """Blocks along the axis (i, j, k) on which labels reach through most slices.

    An axis counts only where every training sees a third of each label (`share_seen`); where none does, the one that
    leaves most to the training that sees least. Organs that follow each other along an axis are so cut along another.

    Args:
        classes: (i, j, k) class indices, -1 where nobody annotated.
        slice_axis: along which a 2D network looks at slices; it is taken where ten slices or more hold labels.
        wanted: see `cut_blocks`, whose errors are raised where no axis can be cut.
    """
    profiles = [profile(classes, axis) for axis in range(3)]
    slices = [int(np.count_nonzero(labelled)) for labelled in profiles]
    if slice_axis is not None and slices[slice_axis] >= SLICES_TO_PREFER:
        return cut_blocks(profiles[slice_axis].tolist(), wanted, slice_axis)
    cuts: list[tuple[float, list[Block]]] = []
    problems = []
    for axis in sorted(range(3), key=lambda axis: -slices[axis]):
        try:
            blocks = cut_blocks(profiles[axis].tolist(), wanted, axis)
        except PairingError as problem:
            problems.append(problem)
            continue
        least = min(min(share_seen(classes, block).values()) for block in blocks)
        if least >= ENOUGH_SEEN:
            return blocks
        cuts.append((least, blocks))
    if not cuts:
        raise problems[0]
    return max(cuts, key=lambda cut: cut[0])[1]


def share_seen(classes: NDArray[Any], block: Block) -> dict[int, float]:
    """For each label (class index) of the scan the share, 0 to 1, of its voxels that lie outside block and gap."""
    labels, voxels = np.unique(classes[classes > 0], return_counts=True)
    hidden = classes[block.hidden]
    return {int(label): 1 - int((hidden == label).sum()) / int(n) for label, n in zip(labels, voxels, strict=True)}


def profile(classes: NDArray[Any], axis: int) -> NDArray[np.int64]:
    """Voxels with a label in each slice along an axis."""
    others = tuple(other for other in range(3) if other != axis)
    counts: NDArray[np.int64] = np.count_nonzero(classes > 0, axis=others)
    return counts


def write_training_scan(
    folder: Path,
    block: Block,
    scan: Scan,
    label: NDArray[Any],
    channels: Sequence[Mapping[str, Any] | str],
) -> Case:
    """The slices `block.seen` of a scan and its label as files (NIfTI) on the scan's grid.

    `label` (i, j, k) holds the values that label files get; `channels` are the bundle's.
    """
    image = scan.read().take(block.seen, block.axis + 1)
    called = Channels.of(channels)
    if called and called.suffixes:
        images = [folder / f"training{suffix}.nii.gz" for suffix in called.suffixes]
        for path, channel in zip(images, image, strict=True):
            _save(path, channel, scan.grid)
    else:
        images = [folder / "training.nii.gz"]
        _save(images[0], image[0] if len(image) == 1 else np.moveaxis(image, 0, -1), scan.grid)
    labels = folder / "labels" / "training.nii.gz"
    _save(labels, label.take(block.seen, block.axis), scan.grid)
    return Case("training", tuple(images), (labels,))


def _save(path: Path, array: NDArray[Any], grid: Grid) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(path) as temporary:
        whole = array.astype(np.int32 if array.max() < 2**31 else np.float64) if array.dtype.kind in "iu" else array
        nibabel.save(nibabel.Nifti1Image(whole, grid.affine), temporary)
