"""A trained bundle scored on labelled cases that it has not seen, and whether two bundles differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.errors import BundleError
from fewscan.files import replace_when_complete
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.masks import write_overlay
from fewscan.metrics import confusion, dice, hausdorff95_mm, iou, pixel_accuracy
from fewscan.metrics.overlap import Counts
from fewscan.runs.predictor import Predictor
from fewscan.scans import Case, Scan, match_grid, open_scan, read_label

EVERYTHING = (slice(None),) * 3
EXACT_PAIRS = 12
DRAWS = 10_000


@dataclass(frozen=True)
class CaseScore:
    """How well one case was segmented, on its own grid against its untouched label; 0 to 1, higher is better.

    Dice and IoU are means over the labels that truth or mask hold; where neither holds any, both are 1.
    """

    case: str
    dice: float
    iou: float
    accuracy: float
    """Share of the voxels whose class is right, background included."""
    hd95_mm: float | None
    """Mean over the labels that truth and mask hold; None on single slices, pictures and where there is none."""
    missed: int
    """Labels that only one of truth and mask holds: they have no HD95."""
    floor: float
    """Dice of a mask that says one and the same label everywhere, the best one for this case: without any learning."""
    seconds: float
    """From the files to label values."""
    mvoxels: float
    """Voxels of the scan in 1e6."""


def score_cases(
    predictor: Predictor,
    settings: Mapping[str, Any],
    cases: Sequence[Case],
    reading: Mapping[str, Any],
    pictures: Path,
    after_each: Callable[[], object] = lambda: None,
) -> list[CaseScore]:
    """Segment cases as `fewscan segment` does and score them; the worst is drawn.

    Args:
        predictor: of the trained bundle.
        settings: the bundle's inference config; its label table maps the values.
        cases: with labels; none that the bundle was trained on.
        reading: how labels are read, see `label_reading`.
        pictures: path and stem of two PNGs, `_truth.png` and `_mask.png`, of the case with the lowest Dice.
        after_each: called when a case is scored.
    """
    table = LabelTable.from_json(settings["labels"])
    scores: list[CaseScore] = []
    for case in cases:
        scored = score_case(predictor, settings["channels"], table, case, reading)
        if not scores or scored.score.dice < min(score.dice for score in scores):
            draw(scored, table, pictures)
        scores.append(scored.score)
        after_each()
    return scores


def label_reading(config: Mapping[str, Any]) -> dict[str, Any]:
    """How a bundle's train.json says that labels are read, as arguments of `fewscan.scans.read_label`."""
    return {
        "merged": bool(config.get("merge_masks")),
        "unlabelled": config.get("unlabelled"),
        "sparse": config.get("sparse"),
    }


@dataclass(frozen=True)
class ScoredCase:
    """A case's score and what it was taken from: class indices (i, j, k) on the scan's grid.

    The truth is -1 where it does not count; the answer is background beyond the part that was scored.
    """

    score: CaseScore
    scan: Scan
    answer: NDArray[Any]
    truth: NDArray[Any]


def score_case(
    predictor: Predictor,
    channels: Sequence[Mapping[str, Any]],
    table: LabelTable,
    case: Case,
    reading: Mapping[str, Any],
    part: tuple[slice, ...] = EVERYTHING,
    untrained: Sequence[int] = (),
) -> ScoredCase:
    """Segment one case as `fewscan segment` does and score it; with `part` only these voxels (i, j, k) count.

    Voxels that nobody annotated count nowhere, nor do those whose truth is one of the classes `untrained`. Surfaces end
    at voxels that do not count, so where there are any there is no HD95.
    """
    scan = open_scan(case.image, channels)
    started = time.perf_counter()
    values = predictor(scan)
    seconds = time.perf_counter() - started
    truth, grid = read_label(case.label, table, case.structures, **reading)
    truth = match_grid(truth, grid, scan.grid, f"{case.label[0]} (label of {case.image[0]})")
    answer = table.to_classes(values, f"the mask of {case.name}")
    if part != EVERYTHING:
        beyond = np.ones(truth.shape, dtype=bool)
        beyond[part] = False
        truth = np.where(beyond | np.isin(truth, untrained), -1, truth.astype(np.int32))
        answer = np.where(beyond, 0, answer)
    has_mm = _has_mm(scan) and truth.min() >= 0
    score = score_masks(case.name, answer, truth, scan.grid, table.classes, seconds, has_mm=has_mm)
    return ScoredCase(score, scan, answer, truth)


def score_masks(
    case: str,
    answer: NDArray[Any],
    truth: NDArray[Any],
    grid: Grid,
    classes: int,
    seconds: float = 0.0,
    *,
    has_mm: bool = True,
) -> CaseScore:
    """Scores of class indices (i, j, k) against others; `has_mm` says whether distances in mm mean something."""
    counts = confusion(answer, truth, classes)
    overlap = iou(counts)[1:]
    in_truth, in_answer = counts.sum(axis=1)[1:] > 0, counts.sum(axis=0)[1:] > 0
    both = np.flatnonzero(in_truth & in_answer) + 1
    has_mm = has_mm and min(grid.shape) > 1 and grid.is_orthogonal
    distances = [hausdorff95_mm(answer == label, truth == label, grid) for label in both] if has_mm else []
    return CaseScore(
        case=case,
        dice=mean_dice(counts),
        iou=1.0 if np.isnan(overlap).all() else float(np.nanmean(overlap)),
        accuracy=pixel_accuracy(counts),
        hd95_mm=float(np.mean(distances)) if distances else None,
        missed=int((in_truth ^ in_answer).sum()),
        floor=floor_of(counts.sum(axis=1)),
        seconds=seconds,
        mvoxels=answer.size / 1e6,
    )


def mean_dice(counts: Counts) -> float:
    """Over the labels that truth or answer hold; 1 where neither holds any."""
    per_label = dice(counts)[1:]
    return 1.0 if np.isnan(per_label).all() else float(np.nanmean(per_label))


def floor_of(voxels: NDArray[Any]) -> float:
    """The best mean Dice of one label everywhere, from the truth's voxels of each class; 1 where it holds no label."""
    labels = np.asarray(voxels[1:], dtype=np.float64)
    held = np.count_nonzero(labels)
    return float((2 * labels / (labels + voxels.sum())).max() / held) if held else 1.0


def sign_flip_test(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of paired differences: how often random signs give a mean as far from 0, or farther.

    Exact over all 2^n signs up to 12 pairs, else 10,000 draws, of which the observed one is counted as one more.
    The smallest p that n pairs can give is 2 / 2^n. Without pairs 1.
    """
    d = np.asarray(differences, dtype=np.float64)
    n = len(d)
    reached = abs(d.sum()) * (1 - 1e-9) - 1e-15  # sums in another order differ in their last digits
    if n <= EXACT_PAIRS:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float((np.abs(signs @ d) >= reached).mean())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(DRAWS, n))
    return float(((np.abs(signs @ d) >= reached).sum() + 1) / (DRAWS + 1))


def refuse_trained_on(listing: Mapping[str, Any], root: Path, cases: Sequence[Case]) -> None:
    """Raise BundleError where a datalist, relative to `root`, trains on an image of one of these cases."""
    trained: set[Path] = set()
    for entry in listing["training"]:
        images = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
        trained |= {(root / image).resolve() for image in images}
    for case in cases:
        both = trained & {image.resolve() for image in case.image}
        if both:
            raise BundleError(f"{min(both)} is trained on, so a score on it would be no test; take it out of one part")


def _has_mm(scan: Scan) -> bool:
    """Stacks of pages state no distance between them."""
    return scan.format not in ("png", "tiff")


def draw(scored: ScoredCase, table: LabelTable, pictures: Path) -> None:
    """`<pictures>_truth.png` and `<pictures>_mask.png`, through the slices where the truth holds most label."""
    scan, score, cuts = scored.scan, scored.score, table.to_values(np.maximum(scored.truth, 0))
    image = scan.read()
    for name, values in (("truth", cuts), ("mask", table.to_values(scored.answer))):
        picture = pictures.with_name(f"{pictures.name}_{name}.png")
        title = f"{score.case}: {name}" + (f", Dice {score.dice:.3f}" if name == "mask" else "")
        with replace_when_complete(picture) as temporary:
            write_overlay(image, values, scan.grid, table, temporary, title=title, cuts_by=cuts)
