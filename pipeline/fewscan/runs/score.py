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
from fewscan.runs.predictor import Predictor
from fewscan.scans import Case, Scan, match_grid, open_scan, read_label

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
    merged: bool,
    pictures: Path,
    after_each: Callable[[], object] = lambda: None,
) -> list[CaseScore]:
    """Segment cases as `fewscan segment` does and score them; the worst is drawn.

    Args:
        predictor: of the trained bundle.
        settings: the bundle's inference config; its label table maps the values.
        cases: with labels; none that the bundle was trained on.
        merged: whether everything above 0 in a label is one class.
        pictures: path and stem of two PNGs, `_truth.png` and `_mask.png`, of the case with the lowest Dice.
        after_each: called when a case is scored.
    """
    table = LabelTable.from_json(settings["labels"])
    scores: list[CaseScore] = []
    worst = 2.0
    for case in cases:
        scan = open_scan(case.image, settings["channels"])
        started = time.perf_counter()
        values = predictor(scan)
        seconds = time.perf_counter() - started
        truth, grid = read_label(case.label, table, case.structures, merged)
        truth = match_grid(truth, grid, scan.grid, f"{case.label[0]} (label of {case.image[0]})")
        answer = table.to_classes(values, f"the mask of {case.name}")
        score = score_masks(case.name, answer, truth, scan.grid, table.classes, seconds, has_mm=_has_mm(scan))
        scores.append(score)
        if score.dice < worst:
            worst = score.dice
            _draw(scan, {"truth": table.to_values(truth), "mask": values}, table, pictures, score)
        after_each()
    return scores


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
    per_label = dice(counts)[1:], iou(counts)[1:]
    nothing = bool(np.isnan(per_label[0]).all())
    in_truth, in_answer = counts.sum(axis=1)[1:] > 0, counts.sum(axis=0)[1:] > 0
    both = np.flatnonzero(in_truth & in_answer) + 1
    has_mm = has_mm and min(grid.shape) > 1 and grid.is_orthogonal
    distances = [hausdorff95_mm(answer == label, truth == label, grid) for label in both] if has_mm else []
    return CaseScore(
        case=case,
        dice=1.0 if nothing else float(np.nanmean(per_label[0])),
        iou=1.0 if nothing else float(np.nanmean(per_label[1])),
        accuracy=pixel_accuracy(counts),
        hd95_mm=float(np.mean(distances)) if distances else None,
        missed=int((in_truth ^ in_answer).sum()),
        floor=_floor(counts.sum(axis=1)),
        seconds=seconds,
        mvoxels=answer.size / 1e6,
    )


def _floor(voxels: NDArray[Any]) -> float:
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


def _draw(scan: Scan, maps: Mapping[str, NDArray[Any]], table: LabelTable, pictures: Path, score: CaseScore) -> None:
    """`<pictures>_truth.png` and `<pictures>_mask.png`, through the slices where the truth holds most label."""
    image, cuts = scan.read(), maps["truth"]
    for name, values in maps.items():
        picture = pictures.with_name(f"{pictures.name}_{name}.png")
        title = f"{score.case}: {name}" + (f", Dice {score.dice:.3f}" if name == "mask" else "")
        with replace_when_complete(picture) as temporary:
            write_overlay(image, values, scan.grid, table, temporary, title=title, cuts_by=cuts)
