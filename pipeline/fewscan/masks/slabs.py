"""A volume compressed and compared in slabs, with little memory beside it."""

from __future__ import annotations

from typing import IO, Any

import numpy as np
from isal import igzip
from numpy.typing import NDArray

from fewscan.arrays import slabs


def gzip_stream(file: IO[bytes]) -> Any:
    """A stream that compresses into an open file, without name and time.

    By ISA-L's level 2: masks of labels are smaller than by gzip -1, which NIfTI libraries take, at ten times its speed.
    """
    return igzip.IGzipFile("", "wb", 2, file, mtime=0)


def in_file_order(slab: NDArray[Any]) -> memoryview:
    """The bytes of a slab, i fastest; copied only where they lie in another order."""
    return np.ascontiguousarray(slab.T).reshape(-1).view(np.uint8).data


def equal(found: NDArray[Any], values: NDArray[Any]) -> bool:
    """Whether two volumes (i, j, k) hold the same."""
    return found.shape == values.shape and all(np.array_equal(found[box], part) for box, part in slabs(values, axis=2))
