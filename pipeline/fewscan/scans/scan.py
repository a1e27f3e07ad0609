"""One image that can be segmented, and one file that cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.arrays import IN_MEMORY_ONLY, Arrays, slabs
from fewscan.errors import FewscanError, ScanError
from fewscan.grid import Grid
from fewscan.scans.quiet import quietly


@dataclass(frozen=True)
class Scan:
    """One image: where it came from, its grid, and how to read it.

    `name` is its path below the folder it was found in, without the suffix, with `/` between parts; masks mirror it.
    `format` is one of "nifti", "nrrd", "png", "tiff", "dicom" (a JPEG or BMP counts as "png").
    `files` are one per channel, or a single file that holds all channels; for DICOM one per plane of the last axis,
    in the order of the planes (an enhanced file stands once per plane), and `frames` the frame numbers from 1.
    `planes` are the places of these planes on the last axis, where slices between them are missing and are to be
    interpolated; empty where none is.
    `companions` are other files that voxels come from, which `files` lead to: the data of a detached header, the other
    files of an OME-TIFF; empty where there are none.
    `assumed` are the axes (0, 1, 2 for i, j, k) along which the size of a voxel is not stated: 1 mm, or a pixel's.
    `channels` names the channels in order; `notes` says in words what had to be decided on the way.
    """

    name: str
    format: str
    files: tuple[Path, ...]
    grid: Grid
    channels: tuple[str, ...] = ("image",)
    frames: tuple[int, ...] = ()
    planes: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    companions: tuple[Path, ...] = ()
    assumed: tuple[int, ...] = ()
    reader: Callable[[Scan, Arrays], NDArray[Any]] = field(kw_only=True, repr=False, compare=False)

    def read(self, empty: Arrays = IN_MEMORY_ONLY) -> NDArray[Any]:
        """The intensities (channel, i, j, k) on the scan's grid, real values (rescaled as the file says).

        `empty` makes the array; an uncompressed NIfTI is mapped instead. Raises ScanError where the file cannot be
        read or holds values that are not finite.
        """
        where = self.files[0] if len(set(self.files)) == 1 else self.name
        try:
            with quietly():
                data = self.reader(self, empty)
        except (FewscanError, OSError):
            raise
        except MemoryError as problem:
            size = " x ".join(str(n) for n in (*self.grid.shape, len(self.channels)))
            raise ScanError(f"{where}: {size} numbers do not fit into memory ({problem})") from None
        except Exception as problem:  # what a damaged file makes libraries raise; their text may quote it
            raise ScanError(f"{where}: cannot be read, the file may be damaged ({type(problem).__name__})") from None
        wrong = 0
        if data.dtype.kind == "f":
            parts = (part for channel in data for _, part in slabs(channel))  # slabs of all would be whole channels
            wrong = sum(int(part.size - np.isfinite(part).sum()) for part in parts)
        if wrong:
            raise ScanError(f"{where}: {wrong} of {data.size} values are not finite (NaN or infinite); replace them")
        return data


@dataclass(frozen=True)
class Skipped:
    """A file or a group of files that is no scan, and why."""

    path: Path
    reason: str
    failed: bool = False
    """True where it looks like a scan that could not be used; False where it is something else (a text, a label)."""
