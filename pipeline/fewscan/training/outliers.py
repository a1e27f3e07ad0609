"""Labelled cases that differ from the others: wrong pairs, lost geometry, near-empty labels, the same scan twice."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fewscan.training.alike import Thumbnail, near_identical
from fewscan.training.fingerprint import AXES, CaseFingerprint, Fingerprint

_SIDE = {2: 128, 3: 32}
_FAR = 5 * 1.4826
"""Times the median absolute deviation: five standard deviations of a normal."""

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Outlier:
    """One thing about one case (`case` is empty for what all share), in words with its numbers."""

    case: str
    kind: str
    words: str

    def __str__(self) -> str:
        return f"{self.case or 'all cases'}: {self.words}"


@dataclass(frozen=True)
class Preview:
    """What is kept of a case to hold it against the others."""

    thumbnail: Thumbnail
    """Of the image."""
    image: NDArray[np.float16]
    """Its first channel at 128 x 128 or 32 x 32 x 32, without what is smooth: a unit vector, or zeros."""
    label: NDArray[np.float16]
    """The labelled voxels likewise."""

    @classmethod
    def of(cls, image: NDArray[np.generic], labelled: NDArray[np.bool_]) -> Preview:
        """Of an image (channel, i, j, k) and its labelled voxels (i, j, k), axes in an order that all cases share."""
        side = _SIDE[2 if 1 in labelled.shape else 3]
        shape = [1 if n == 1 else side for n in labelled.shape]
        places = [((np.arange(k) + 0.5) * n / k).astype(int) for k, n in zip(shape, labelled.shape, strict=True)]
        small = torch.nn.functional.adaptive_avg_pool3d(_volume(image[0]), (shape[0], shape[1], shape[2]))
        return cls(Thumbnail.of(image), _detail(small), _detail(_volume(labelled[np.ix_(*places)])))


def find_outliers(fingerprint: Fingerprint, previews: Mapping[str, Preview]) -> list[Outlier]:
    """What a person should look at before training; nothing in a set that is consistent.

    A number is far from the others where it differs from their median by five (robust) standard deviations and by a
    least amount that the rule names. Three cases are needed to compare numbers, two to compare pairs.
    """
    cases = fingerprint.cases
    found = [*_geometry(fingerprint), *_intensities(fingerprint), *_labels(fingerprint), *_duplicates(cases, previews)]
    copies = {outlier.case for outlier in found if outlier.kind == "duplicate"}
    found += _fit({name: own for name, own in previews.items() if name not in copies})
    order = {case.name: number for number, case in enumerate(cases)}
    return sorted(found, key=lambda outlier: order.get(outlier.case, -1))


def far_from_others(values: Sequence[float], least: float) -> list[int]:
    """Which values differ from the median by more than `least` and by five robust standard deviations."""
    if len(values) < 3:
        return []
    distance = np.abs(np.asarray(values) - np.median(values))
    return np.flatnonzero(distance > max(least, _FAR * float(np.median(distance)))).tolist()


def _geometry(fingerprint: Fingerprint) -> list[Outlier]:
    cases, found = fingerprint.cases, []
    odd: set[int] = set()
    for axis, name in enumerate(AXES):
        if fingerprint.knows_spacing:
            seen = [n for n, case in enumerate(cases) if case.shape[axis] > 1]
            own = [cases[n].spacing_mm[axis] for n in seen]
            for number in far_from_others(np.log(own).tolist(), float(np.log(1.5))):
                odd.add(seen[number])
                words = f"spacing {own[number]:.4g} mm along {name}, the median is {np.median(own):.4g} mm"
                found.append(Outlier(cases[seen[number]].name, "spacing", words))
        size = [case.size_mm[axis] for case in cases]
        unit = "mm" if fingerprint.knows_spacing else "pixels"
        for number in far_from_others(np.log(size).tolist(), float(np.log(2.5))):
            if number not in odd:
                words = f"covers {size[number]:.4g} {unit} along {name}, the median is {np.median(size):.4g}"
                found.append(Outlier(cases[number].name, "size", words))
    placeholders = [case for case in cases if case.identity_affine]
    what = "the affine is exactly the identity, which may be a placeholder: spacing and sides may be wrong"
    if len(placeholders) == len(cases) > 1:
        return [*found, Outlier("", "identity affine", what)]
    return [*found, *(Outlier(case.name, "identity affine", what) for case in placeholders)]


def _intensities(fingerprint: Fingerprint) -> list[Outlier]:
    """Another scale or brightness, and labels on other intensities than the rest; the first such channel is named."""
    cases = fingerprint.cases
    odd: dict[str, str] = {}
    unfit: dict[str, str] = {}
    for channel, name in enumerate(fingerprint.channels):
        known = [case.intensities[channel] for case in cases]
        spans = [one[-1] - one[0] for one in known]
        typical = float(np.median(spans))
        medians = [one[3] for one in known]
        for number in far_from_others(medians, 0.5 * typical):
            words = f"{name} has the median {medians[number]:.4g}, the others' is {np.median(medians):.4g}"
            odd.setdefault(cases[number].name, words)
        logs = np.log([max(span, 1e-9 * max(typical, 1.0)) for span in spans])
        for number in far_from_others(logs.tolist(), float(np.log(4))):
            words = f"{name} spans {spans[number]:.4g}, the others {typical:.4g} (0.5th to 99.5th percentile)"
            odd.setdefault(cases[number].name, words)
        labelled = [case for case in cases if case.on_labels is not None]
        places = [_place_of_labels(case, channel) for case in labelled]
        for number in far_from_others(places, 0.3):
            words = (
                f"{name} on the label lies {places[number]:+.2f} of the image's span from its median, in the others "
                f"{np.median(places):+.2f}: does the label fit the image?"
            )
            unfit.setdefault(labelled[number].name, words)
        on_air = [case for case in labelled if (case.on_labels or ())[channel][3] <= case.lowest[channel]]
        for case in on_air if 2 * len(on_air) < len(cases) else ():
            words = f"half of the labelled voxels have the lowest intensity of {name}: does the label lie on air?"
            unfit.setdefault(case.name, words)
    return [*_told("intensities", odd, len(cases)), *_told("fit", unfit, len(cases))]


def _told(kind: str, odd: Mapping[str, str], count: int) -> list[Outlier]:
    """One line a case; one for all where they are too many to be mistakes: images of two kinds."""
    if len(odd) <= max(2, count // 10):
        return [Outlier(case, kind, words) for case, words in odd.items()]
    names, first = list(odd), next(iter(odd.values()))
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    words = f"{len(odd)} of {count} are of another kind: {', '.join(names[:4])}{more}; in {names[0]} {first}"
    return [Outlier("", kind, words)]


def _place_of_labels(case: CaseFingerprint, channel: int) -> float:
    """Where the labelled intensities lie: (their median - the image's) / (the image's 99.5th - 0.5th percentile)."""
    image, labelled = case.intensities[channel], (case.on_labels or ())[channel]
    return (labelled[3] - image[3]) / max(image[6] - image[0], 1e-9)


def _labels(fingerprint: Fingerprint) -> list[Outlier]:
    cases, found = fingerprint.cases, []
    found += [Outlier(case.name, "near empty", "its label is empty") for case in cases if not any(case.voxels[1:])]
    for number, name in enumerate(fingerprint.labels):
        holding = [case for case in cases if case.voxels[number + 1]]
        if len(cases) > 3 and len(holding) >= 0.8 * len(cases):
            words = f"holds no {name}, which {len(holding)} of {len(cases)} cases hold"
            missing = [case for case in cases if not case.voxels[number + 1] and any(case.voxels[1:])]
            found += [Outlier(case.name, "near empty", words) for case in missing]
        volumes = [case.volumes_mm3[number] for case in holding]
        unit = "mm3" if fingerprint.knows_spacing else "pixels"
        typical = float(np.median(volumes)) if volumes else 0.0
        odd = set(far_from_others(np.log(volumes).tolist(), float(np.log(10))))
        if len(holding) >= 3 and np.median([case.voxels[number + 1] for case in holding]) >= 100:
            odd |= {n for n, case in enumerate(holding) if case.voxels[number + 1] < 10}
        for one in sorted(odd):
            kind = "near empty" if volumes[one] < typical else "label size"
            words = (
                f"{name} has {volumes[one]:.4g} {unit} ({holding[one].voxels[number + 1]} voxels), the median is "
                f"{typical:.4g}"
            )
            found.append(Outlier(holding[one].name, kind, words))
    return found


def _duplicates(cases: Sequence[CaseFingerprint], previews: Mapping[str, Preview]) -> list[Outlier]:
    found: list[Outlier] = []
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    known: set[frozenset[str]] = set()
    for case in cases:
        twin = images.setdefault(case.image_sha256, case.name)
        other = labels.setdefault(case.label_sha256, case.name) if any(case.voxels[1:]) else case.name
        if twin != case.name:
            known.add(frozenset((twin, case.name)))
            tail = ", and so has the label" if other == twin else ", but the label has not"
            found.append(Outlier(case.name, "duplicate", f"the image has the same voxels as that of {twin}{tail}"))
        elif other != case.name:
            words = f"the label has the same voxels as that of {other}, but the image has not"
            found.append(Outlier(case.name, "duplicate", words))
    names = list(previews)
    for first, second, alike in near_identical([preview.thumbnail for preview in previews.values()]):
        if frozenset((names[first], names[second])) not in known:
            words = f"the image is nearly that of {names[first]} (correlation {alike:.3f})"
            found.append(Outlier(names[second], "duplicate", words))
    return found


def _fit(previews: Mapping[str, Preview]) -> list[Outlier]:
    """Labels that have less in common with their image than they should: |correlation| of the thumbnails' details.

    Whether a label is bright or dark does not matter. Of each pair of cases the crossed labels are tried: where both
    fit better, they are swapped.
    """
    found = []
    for names in _of_one_size(previews):
        images, labels = (_stacked([getattr(previews[n], kind) for n in names]) for kind in ("image", "label"))
        fits = np.abs(images @ labels.T)  # of image i with label j
        own = fits.diagonal()
        gain = fits - own[:, None]
        explained = {number for number in range(len(names)) if not labels[number].any()}  # empty: said elsewhere
        for i, j in itertools.combinations(range(len(names)), 2):
            if gain[i, j] > 0 and gain[j, i] > 0 and gain[i, j] + gain[j, i] > 0.15:
                if {i, j} & explained:
                    continue
                explained |= {i, j}
                for a, b in ((i, j), (j, i)):
                    words = (
                        f"the label of {names[b]} fits this image better ({fits[a, b]:.2f}) than its own "
                        f"({own[a]:.2f}), and the other way round: are the two swapped?"
                    )
                    found.append(Outlier(names[a], "fit", words))
        typical = float(np.median(own))
        for i, name in enumerate(names):
            best = int(fits[i].argmax())
            if i in explained:
                continue
            if gain[i, best] > 0.2:
                words = f"the label of {names[best]} fits this image better ({fits[i, best]:.2f}) than its own"
                found.append(Outlier(name, "fit", f"{words} ({own[i]:.2f})"))
            elif len(names) > 2 and own[i] < typical / 4 and i in far_from_others(own.tolist(), 0.2):
                words = f"image and label have little in common ({own[i]:.2f}, the median is {typical:.2f})"
                found.append(Outlier(name, "fit", words))
    return found


def _of_one_size(previews: Mapping[str, Preview]) -> list[list[str]]:
    sizes = Counter(own.image.size for own in previews.values())
    return [[name for name, own in previews.items() if own.image.size == size] for size in sizes]


def _volume(array: NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]


def _detail(volume: torch.Tensor) -> NDArray[np.float16]:
    """What differs from the mean of 5 voxels along each axis, as a unit vector; zeros where nothing does."""
    kernel = [5 if n > 1 else 1 for n in volume.shape[2:]]
    smooth = torch.nn.functional.avg_pool3d(volume, kernel, 1, [n // 2 for n in kernel], count_include_pad=False)
    detail = (volume - smooth).double().flatten()
    detail -= detail.mean()
    length = detail.norm()
    unit: NDArray[np.float16] = (detail / length if length > 1e-6 else detail * 0).numpy().astype(np.float16)
    return unit


def _stacked(vectors: Sequence[NDArray[np.float16]]) -> Vector:
    """(cases, voxels) float32; unit vectors again after their rounding."""
    stack = np.stack(vectors).astype(np.float32)
    length = np.linalg.norm(stack, axis=1, keepdims=True)
    unit: Vector = (stack / np.where(length > 0, length, 1)).astype(np.float32)
    return unit
