"""What labelled data is like, in numbers: made by `plan`, kept in the bundle, compared with every scan to come."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.bundle import read_json
from fewscan.errors import BundleError

FILE = "configs/fingerprint.json"
"""Its place in a bundle."""
PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
AXES = ("left", "posterior", "superior")
_SAMPLE = 2_000_000
"""Voxels of an image that its percentiles are taken from, about; evenly picked."""


@dataclass(frozen=True)
class CaseFingerprint:
    """What one labelled case is like; axes in the order left, posterior, superior."""

    name: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    """1 along each axis where the file does not say it, as pictures do not."""
    format: str
    lowest: tuple[float, ...]
    """Intensity of each channel."""
    intensities: tuple[tuple[float, ...], ...]
    """For each channel its `PERCENTILES` over the whole image."""
    on_labels: tuple[tuple[float, ...], ...] | None
    """The same over the labelled voxels; None without any."""
    voxels: tuple[int, ...]
    """For each class, the background first; undecided ones are not counted."""
    unlabelled: int
    """Voxels that nobody decided."""
    components: tuple[int, ...]
    """Connected pieces (8 neighbours, in 3D 26) of each label."""
    instances: int | None
    """Objects, where the files tell one from the other; None where they hold classes."""
    touching: int | None
    """How many of them touch another."""
    sparse_axis: int | None
    """0, 1 or 2 (left, posterior, superior) where only some slices across it seem to be annotated; else None."""
    sparse_why: str
    """What gave that away, in words."""
    identity_affine: bool
    image_sha256: str
    """Of the voxels as read."""
    label_sha256: str
    """Of the class indices, or of the objects' numbers where there are any; of an empty label too."""
    notes: tuple[str, ...] = ()

    @property
    def foreground(self) -> float:
        """Share of the decided voxels that hold a label, 0 to 1."""
        return sum(self.voxels[1:]) / max(1, sum(self.voxels))

    @property
    def volumes_mm3(self) -> tuple[float, ...]:
        """Of each label."""
        return tuple(float(n * np.prod(self.spacing_mm)) for n in self.voxels[1:])

    @property
    def size_mm(self) -> tuple[float, ...]:
        """What the scan covers along each axis."""
        return tuple(n * mm for n, mm in zip(self.shape, self.spacing_mm, strict=True))


@dataclass(frozen=True)
class Fingerprint:
    """What the labelled cases of a bundle are like."""

    channels: tuple[str, ...]
    labels: tuple[str, ...]
    cases: tuple[CaseFingerprint, ...]

    def to_json(self) -> dict[str, Any]:
        """As the bundle keeps it; `summary` is for the reader and is not read back."""
        return {
            "channels": list(self.channels),
            "labels": list(self.labels),
            "summary": self.summary(),
            "percentiles": list(PERCENTILES),
            "cases": [asdict(case) for case in self.cases],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Fingerprint:
        """From what `to_json` gives. Raises BundleError where something is missing."""
        try:
            names = [field.name for field in fields(CaseFingerprint)]
            cases = tuple(CaseFingerprint(**{name: _frozen(case[name]) for name in names}) for case in content["cases"])
            return cls(tuple(content["channels"]), tuple(content["labels"]), cases)
        except (KeyError, TypeError) as problem:
            raise BundleError(f"{FILE}: is no fingerprint ({problem}); plan the bundle anew") from problem

    def summary(self) -> dict[str, Any]:
        """The smallest, median and largest of what the cases hold."""
        cases = self.cases
        instances = [case for case in cases if case.instances]
        return {
            "cases": len(cases),
            "formats": sorted({case.format for case in cases}),
            "shape": [_spread(case.shape[axis] for case in cases) for axis in range(3)],
            "spacing_mm": [_spread(case.spacing_mm[axis] for case in cases) for axis in range(3)],
            "foreground": _spread(case.foreground for case in cases),
            "median_intensity": {
                name: _spread(case.intensities[channel][3] for case in cases)
                for channel, name in enumerate(self.channels)
            },
            "median_on_labels": {
                name: _spread(case.on_labels[channel][3] for case in cases if case.on_labels is not None)
                for channel, name in enumerate(self.channels)
            },
            "voxels": {name: _spread(case.voxels[n] for case in cases) for n, name in enumerate(self.labels, 1)},
            "volume_mm3": {name: _spread(case.volumes_mm3[n] for case in cases) for n, name in enumerate(self.labels)},
            "components": {name: _spread(case.components[n] for case in cases) for n, name in enumerate(self.labels)},
            "instances": sum(case.instances or 0 for case in instances) if instances else None,
            "touching": self.touching,
        }

    @property
    def touching(self) -> float | None:
        """Share of the instances that touch another, 0 to 1; None where the files do not tell instances apart."""
        known = [(case.touching, case.instances) for case in self.cases if case.instances and case.touching is not None]
        return sum(touching for touching, _ in known) / sum(n for _, n in known) if known else None

    @property
    def knows_spacing(self) -> bool:
        """Whether the files say how large a voxel is."""
        return any(says_spacing(case.format, case.spacing_mm) for case in self.cases)


def says_spacing(format: str, spacing_mm: Sequence[float]) -> bool:
    """Whether a file of this `Scan.format` says how large a voxel is; pictures that do not are taken as 1 mm."""
    return not (format in ("png", "tiff") and np.allclose(spacing_mm, 1))


def percentiles(values: NDArray[Any]) -> tuple[float, ...]:
    """`PERCENTILES` of intensities of any shape, of every n-th along each axis where there are very many."""
    step = max(1, round((values.size / _SAMPLE) ** (1 / max(1, values.ndim))))
    sample = values[(slice(None, None, step),) * values.ndim]
    return tuple(float(f"{value:.6g}") for value in np.percentile(sample, PERCENTILES))


def read_fingerprint(bundle: Path) -> Fingerprint | None:
    """Of a bundle; None where it has none."""
    file = bundle / FILE
    return Fingerprint.from_json(read_json(file)) if file.exists() else None


def differences(fingerprint: Fingerprint, spacing_mm: Sequence[float] | None, shape: Sequence[int]) -> list[str]:
    """In plain words, how a scan differs from the labelled cases; empty where it lies among them.

    Args:
        fingerprint: of the labelled cases.
        spacing_mm, shape: of the scan, along left, posterior, superior (`Grid.reordered(*grid.axes_to_lps())`);
            the spacing is None where its file says none.
    """
    cases = fingerprint.cases
    if not cases:
        return []
    words = []
    if 1 in shape and all(1 not in case.shape for case in cases):
        words.append("is a single slice, the labelled cases are volumes")
    if spacing_mm is None and fingerprint.knows_spacing:
        return [*words, "its file says no voxel size, those of the labelled cases do: taken as 1 mm"]
    spacing_mm = spacing_mm or (1, 1, 1)
    if fingerprint.knows_spacing:
        words += _spacing_differences([case.spacing_mm for case in cases], spacing_mm, shape)
    size = [n * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    unit = "mm" if fingerprint.knows_spacing else "pixels"
    for axis, name in enumerate(AXES):
        low, high = (end(case.size_mm[axis] for case in cases) for end in (min, max))
        if not low / 2 <= size[axis] <= 2 * high:
            words.append(f"covers {size[axis]:.4g} {unit} along {name}, the labelled cases {_between(low, high)}")
    return words


def _spacing_differences(known: Sequence[Sequence[float]], spacing: Sequence[float], shape: Sequence[int]) -> list[str]:
    """How many times as coarse or fine; an axis of one voxel says nothing."""
    factors: dict[int, float] = {}
    for axis in range(3):
        low, high = min(one[axis] for one in known), max(one[axis] for one in known)
        if shape[axis] > 1 and not low / 1.25 <= spacing[axis] <= high * 1.25:
            factors[axis] = spacing[axis] / statistics.median(one[axis] for one in known)
    if not factors:
        return []
    shown = " x ".join(f"{mm:.3g}" for mm in spacing)
    ends = [_between(min(one[axis] for one in known), max(one[axis] for one in known)) for axis in range(3)]
    tail = f"({shown} mm, the labelled cases {' x '.join(ends)})"
    seen = sum(n > 1 for n in shape)
    if len(factors) == seen and max(factors.values()) / min(factors.values()) < 1.1:
        return [f"voxels {_times_as(statistics.median(factors.values()))} {tail}"]
    return [f"voxels {', '.join(f'{_times_as(f)} along {AXES[axis]}' for axis, f in factors.items())} {tail}"]


def _times_as(factor: float) -> str:
    rounded = f"{max(factor, 1 / factor):.2g}"
    return f"{'twice' if rounded == '2' else f'{rounded} times'} as {'coarse' if factor > 1 else 'fine'}"


def _between(low: float, high: float) -> str:
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"


def _spread(values: Any) -> list[float] | None:
    """[smallest, median, largest]; None of nothing."""
    known = [float(value) for value in values]
    return [float(f"{v:.5g}") for v in (min(known), statistics.median(known), max(known))] if known else None


def _frozen(value: Any) -> Any:
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value
