"""Where large arrays lie: in memory, or in raw temporary files that go with them."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fewscan.errors import FewscanError

IN_MEMORY = 2**29
"""Bytes of the largest array that is held in memory where nobody says otherwise."""
SLAB = 2**20
"""Elements that are looked at once, of arrays that may not fit into memory."""
COUNTED = 2**17
"""Elements that are counted at once: counting makes 8 bytes of each."""


class Arrays:
    """Makes arrays to be filled: in memory, or larger ones in raw files that vanish with the array or the process.

    Args:
        folder: where the files lie, on a disk with room; None for all arrays in memory.
        above: bytes from which an array becomes a file.
    """

    def __init__(self, folder: Path | None = None, above: int = IN_MEMORY) -> None:
        self.folder, self.above = folder, above

    def __call__(self, shape: Sequence[int], dtype: DTypeLike, order: str = "C") -> NDArray[Any]:
        """An array of any content; `order` is "C" (the last axis is contiguous) or "F" (the first).

        Raises FewscanError where the disk has no room for its file, MemoryError where the memory has none.
        """
        size = math.prod(int(n) for n in shape) * np.dtype(dtype).itemsize
        if self.holds(size) or self.folder is None:
            check_memory(size)
            return np.empty(tuple(shape), dtype, order="F" if order == "F" else "C")
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise FewscanError(
                f"{self.folder}: a temporary file of {size / 1e9:.1f} GB is needed, {free / 1e9:.1f} GB are free; make "
                "room, or choose an --output on another disk"
            )
        with tempfile.TemporaryFile(dir=self.folder) as file:
            if hasattr(os, "posix_fallocate"):
                try:  # a full disk is an error here and not a crash later
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError as problem:
                    raise FewscanError(
                        f"{self.folder}: a temporary file of {size / 1e9:.1f} GB is needed ({problem.strerror}); make "
                        "room, or choose an --output on another disk"
                    ) from problem
            return np.memmap(file, np.dtype(dtype), "w+", shape=tuple(shape), order="F" if order == "F" else "C")

    def holds(self, size: int) -> bool:
        """Whether an array of that many bytes is in memory."""
        return self.folder is None or size <= self.above


IN_MEMORY_ONLY = Arrays()


def check_memory(size: int) -> None:
    """Raise MemoryError where that many bytes are not free: systems promise more than they have, and then kill."""
    if size <= IN_MEMORY:
        return
    import psutil

    free = psutil.virtual_memory().available
    if size > free:
        raise MemoryError(f"{size / 1e9:.1f} GB are needed at once, {free / 1e9:.1f} GB are free")


def release(array: Any) -> None:
    """Let the pages of an array in a file leave this process's memory; they come back from the file when asked for.

    Not of a map whose changes are not written to the file ("c"): they would be lost.
    """
    mapped = getattr(array, "_mmap", None)
    if getattr(array, "mode", "c") == "c":
        return
    if mapped is not None and hasattr(mapped, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def slabs(array: NDArray[Any], axis: int | None = None) -> Iterator[tuple[tuple[slice, ...], NDArray[Any]]]:
    """Parts of about `SLAB` elements that partition an array: where each lies, and a view of it.

    Cut across `axis`, or across the one whose neighbours lie farthest apart in memory. Parts that were looked at are
    released.
    """
    if array.size == 0:
        return
    if axis is None:
        axis = max(range(array.ndim), key=lambda a: (array.shape[a] > 1, abs(array.strides[a])))
    n = array.shape[axis]
    planes = max(1, SLAB * n // array.size)
    for start in range(0, n, planes):
        box = [slice(None)] * array.ndim
        box[axis] = slice(start, min(start + planes, n))
        yield tuple(box), array[tuple(box)]
        release(array)


def count_values(array: NDArray[np.integer], many: int = 0) -> NDArray[np.int64]:
    """How many elements hold each value from 0 to the largest, or to `many` - 1; none may be negative."""
    counts = np.zeros(many, dtype=np.int64)
    for _, part in slabs(array):
        flat = part.ravel(order="K")
        for first in range(0, flat.size, COUNTED):
            found = np.bincount(flat[first : first + COUNTED], minlength=len(counts))
            found[: len(counts)] += counts
            counts = found
    return counts
