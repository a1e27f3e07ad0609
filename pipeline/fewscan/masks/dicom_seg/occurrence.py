"""Which labels a mask holds, and in which planes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.arrays import release
from fewscan.labels import LabelTable


def labels_in_planes(values: NDArray[Any], table: LabelTable, imaged: Sequence[int] = ()) -> NDArray[np.bool_]:
    """(planes, labels): whether a label of the table occurs in a plane k of `values` (i, j, k).

    `imaged` are the planes that are looked at, all where it is empty: a frame has to refer to an image.
    """
    many = int(table.values.max()) + 1
    found = np.zeros((values.shape[2], len(table)), dtype=np.bool_)
    for k in imaged or range(values.shape[2]):
        plane = values[:, :, k].T.ravel()
        ends = np.append(np.flatnonzero(plane[1:] != plane[:-1]), plane.size - 1)  # of runs: counting is slow
        found[k] = np.bincount(plane[ends], minlength=many)[table.values[1:]] > 0
        release(values)
    return found


def present_first(
    values: NDArray[Any], table: LabelTable, imaged: Sequence[int] = ()
) -> tuple[LabelTable, NDArray[np.bool_]]:
    """The labels that occur, then the others, each in the order of the table; and `labels_in_planes` for that table.

    3D Slicer skips empty segments and gives the others the names in the file's order, so that behind an empty one every
    segment would carry its neighbour's name.
    """
    found = labels_in_planes(values, table, imaged)
    order = np.argsort(~found.any(axis=0), kind="stable")
    labels = tuple(table)
    return LabelTable(tuple(labels[n] for n in order)), found[:, order]
