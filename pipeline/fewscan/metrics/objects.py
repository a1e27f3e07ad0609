"""From a two-level image to its objects: connected components, and basins that thin lines part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fewscan.pieces import number_pieces

_WAITING, _QUEUED, _BEYOND = -1, -2, -3


def components(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The 4-connected components of a 2D mask (i, j), numbered from 1; 0 outside."""
    return number_pieces(inside, corners=False).astype(np.int64)


def basins(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Thins what is outside to lines, by flooding: the watershed of Vincent and Soille 1991 of a two-level image.

    Args:
        inside: mask (i, j) of one slice, i = column of the image: ties fall column by column.

    Returns:
        Numbers (i, j) from 1: the 4-connected components of the inside, each grown through the outside until it
        meets another; 0 on the lines where they meet. One basin where nothing is inside.

    Pixels outside are flooded first in, first out; the queue begins with those that touch a component, column by
    column, and neighbours are visited in the order i - 1, i + 1, j - 1, j + 1. A pixel joins the one basin it
    touches, and becomes line where it touches several, or lines alone. Vincent and Soille reach the same by a
    distance, a fictitious pixel and a flag: with two levels each pixel is decided once, so none is needed.
    """
    if not inside.any():
        return np.ones(inside.shape, dtype=np.int64)
    start = components(inside)
    start[start == 0] = _WAITING
    rim = np.pad(start, 1, constant_values=_BEYOND)
    touched = (rim[:-2, 1:-1] > 0) | (rim[2:, 1:-1] > 0) | (rim[1:-1, :-2] > 0) | (rim[1:-1, 2:] > 0)
    first = np.pad((start == _WAITING) & touched, 1)
    rim[first] = _QUEUED
    stride = rim.shape[1]
    number: list[int] = rim.ravel().tolist()  # plain lists: three times as fast as single pixels of an array
    queue: list[int] = np.flatnonzero(first).tolist()
    for pixel in queue:  # grows while it is walked
        mine = 0
        several = False
        for near in (pixel - stride, pixel + stride, pixel - 1, pixel + 1):
            theirs = number[near]
            if theirs > 0:
                several |= mine not in (0, theirs)
                mine = theirs
            elif theirs == _WAITING:
                number[near] = _QUEUED
                queue.append(near)
        number[pixel] = 0 if several else mine
    return np.array(number, dtype=np.int64).reshape(rim.shape)[1:-1, 1:-1]
