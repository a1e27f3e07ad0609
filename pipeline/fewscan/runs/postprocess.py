"""Whether removing pieces of labels pays: only the out-of-fold masks say so."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewscan.bundle import read_json
from fewscan.labels import LabelTable
from fewscan.metrics import confusion
from fewscan.pieces import keep_pieces, number_pieces
from fewscan.runs.records import write_json
from fewscan.runs.score import mean_dice, sign_flip_test

P = 0.05
"""Of all candidates together: each has to reach it divided by their number."""
SMALL = "minimum size"


def small_piece_mm3(truth: NDArray[Any], voxel_mm3: float) -> float | None:
    """Half the volume below which one in twenty of a truth's own pieces lies; None where it holds no label."""
    sizes: list[int] = []
    for label in np.unique(truth[truth > 0]).tolist():
        sizes += np.bincount(number_pieces(truth == label).ravel())[1:].tolist()
    return float(np.percentile(sizes, 5)) / 2 * voxel_mm3 if sizes else None


def dice_after(
    answer: NDArray[Any], truth: NDArray[Any], table: LabelTable, voxel_mm3: float, minimum_size_mm3: float
) -> dict[str, float]:
    """Mean Dice of a case after each candidate, by its name.

    Args:
        answer, truth: class indices (i, j, k).
        table: of the labels; for each one candidate keeps its largest piece alone, named "largest <value>".
        voxel_mm3: volume of a voxel.
        minimum_size_mm3: of the candidate that removes smaller pieces; 0 leaves it out.
    """
    values = table.values.tolist()
    cleaned = {f"largest {values[label]}": keep_pieces(answer, [label]) for label in range(1, table.classes)}
    if minimum_size_mm3 > voxel_mm3:
        cleaned[SMALL] = keep_pieces(answer, minimum_voxels=int(np.ceil(minimum_size_mm3 / voxel_mm3 - 1e-6)))
    return {name: mean_dice(confusion(mask, truth, table.classes)) for name, mask in cleaned.items()}


def judge(cases: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """For each candidate `name`, mean `gain` in Dice over the groups, `p` of the sign-flip test, and `accepted`.

    A candidate is accepted where its mean gain is above 0 and p, two-sided over the groups, is below 0.05 divided by
    the number of candidates. So nothing is accepted under six groups.

    Args:
        cases: each with `group`, `dice` and `after`, what `dice_after` gave.
        seed: of the test's draws.
    """
    names = [name for name in dict.fromkeys(n for case in cases for n in case["after"])]
    judged = []
    for name in names:
        of_group: dict[str, list[float]] = defaultdict(list)
        for case in cases:
            of_group[case["group"]].append(case["after"].get(name, case["dice"]) - case["dice"])
        gains = [statistics.fmean(own) for own in of_group.values()]
        gain, p = statistics.fmean(gains), sign_flip_test(gains, seed)
        judged.append({"name": name, "gain": gain, "p": p, "accepted": gain > 0 and p < P / len(names)})
    return judged


def write_accepted(bundle: Path, judged: Sequence[Mapping[str, Any]], minimum_size_mm3: float) -> str:
    """Put what was accepted into the bundle's inference.json, where nothing is set yet; says in words what was done."""
    accepted = [one["name"] for one in judged if one["accepted"]]
    file = bundle / "configs" / "inference.json"
    config = read_json(file)
    own = {key: config[key] for key in ("keep_largest", "minimum_size_mm3") if config.get(key)}
    wanted = {
        "keep_largest": [int(name.split()[1]) for name in accepted if name != SMALL],
        "minimum_size_mm3": float(f"{minimum_size_mm3:.6g}") if SMALL in accepted else 0,
    }
    if own:
        same = own == {key: value for key, value in wanted.items() if value}
        return f"post-processing stays as inference.json has it ({'as' if same else 'not as'} the folds suggest)"
    if not accepted:
        return "no post-processing: the folds show no gain by it"
    for step in config["postprocessing"]["transforms"]:
        if str(step.get("_target_", "")).endswith("DecideLabelsd"):
            step |= {key: f"@{key}" for key in wanted}
    write_json(file, {**config, **wanted})
    gains = ", ".join(f"{one['name']} {one['gain']:+.3f} Dice (p {one['p']:.2g})" for one in judged if one["accepted"])
    return f"post-processing switched on in inference.json, since the folds gain by it: {gains}"
