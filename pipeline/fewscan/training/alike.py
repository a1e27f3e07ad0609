"""Images that are nearly the same, and images that are neighbours in one stack: both make a test too easy."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALIKE = 0.99
"""Correlation of two thumbnails from which images count as copies. The highest of different images: 0.96 for the
retina photographs of CHASE-DB1, which all show one bright disc, 0.76 for hippocampi, 0.64 for ISBI's sections."""
NEIGHBOURS = 0.2
"""By how much neighbours in the order of names correlate more than other pairs where they are one stack: 0.48 for
ISBI's sections, at most 0.02 for hippocampi, nuclei and retinas."""
LEAST = 5
"""Images of one shape, from which on this is asked."""


@dataclass(frozen=True)
class Thumbnail:
    """A coarse image of length 1, each channel of mean 0, with the shape of the image that it was made from."""

    shape: tuple[int, ...]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, image: NDArray[np.generic]) -> Thumbnail:
        """Means of equal blocks of an image (channel, i, j, k): at most 32 blocks along an axis of a picture, and
        16 of a volume. Each channel is centred and scaled by itself. So fine noise, brightness and contrast change it
        little, and no channel outshines the others."""
        small = np.asarray(image, dtype=np.float64)
        most = 16 if min(image.shape[1:]) > 1 else 32
        for axis in range(1, small.ndim):
            edges = np.linspace(0, small.shape[axis], min(most, small.shape[axis]) + 1).round().astype(int)
            sizes = np.diff(edges).reshape([-1 if a == axis else 1 for a in range(small.ndim)])
            small = np.add.reduceat(small, edges[:-1], axis=axis) / sizes
        channels = small.reshape(len(small), -1)
        channels = _of_length_1(channels - channels.mean(axis=1, keepdims=True))
        return cls(image.shape, _of_length_1(channels.reshape(1, -1))[0].astype(np.float32))


def _of_length_1(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Those of length 0 stay 0."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def near_identical(thumbnails: Sequence[Thumbnail]) -> list[tuple[int, int, float]]:
    """The pairs (first, second, correlation) of images of one shape that count as copies."""
    pairs = []
    for numbers, correlation in _by_shape(thumbnails):
        for one, other in zip(*np.nonzero(np.triu(correlation > ALIKE, 1)), strict=True):
            pairs.append((numbers[one], numbers[other], float(correlation[one, other])))
    return sorted(pairs)


def stack_correlation(thumbnails: Sequence[Thumbnail]) -> float | None:
    """Mean correlation of neighbours, where images in this order look like the slices of one stack; else None."""
    near, far = [], []
    for numbers, correlation in _by_shape(thumbnails):
        if len(numbers) >= LEAST:
            near += [float(correlation[a, a + 1]) for a, b in itertools.pairwise(range(len(numbers)))]
            far += correlation[np.triu_indices(len(numbers), 2)].tolist()
    if not near or np.mean(near) < np.mean(far) + NEIGHBOURS:
        return None
    return float(np.mean(near))


def _by_shape(thumbnails: Sequence[Thumbnail]) -> list[tuple[list[int], NDArray[np.float32]]]:
    """Of the images of each shape: their numbers, and the correlation of each with each."""
    of_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, thumbnail in enumerate(thumbnails):
        of_shape[thumbnail.shape].append(number)
    stacked = ((numbers, np.stack([thumbnails[n].values for n in numbers])) for numbers in of_shape.values())
    return [(numbers, values @ values.T) for numbers, values in stacked]
