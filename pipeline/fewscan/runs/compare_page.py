"""The page and the table of a comparison: HTML that opens offline with all its pictures inside, and CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewscan.files import replace_when_complete
from fewscan.runs.compare_table import converged_in_words
from fewscan.runs.page import STYLE, pictures_of
from fewscan.training.curves import chart
from fewscan.training.plateau import PLATEAU_RULE

Column = tuple[str, str]
SCORES: tuple[Column, ...] = (
    ("dice", "mean Dice"),
    ("dice_sd", "spread (sd)"),
    ("iou", "IoU"),
    ("accuracy", "pixel accuracy"),
    ("hd95_mm", "HD95 mm"),
    ("missed", "missed labels"),
    ("difference", "difference in Dice"),
    ("p", "p"),
)
COSTS: tuple[Column, ...] = (
    ("parameters", "parameters"),
    ("gmac_patch", "GMAC a patch"),
    ("gmac_per_mvoxel", "GMAC a Mvoxel"),
    ("seconds_per_mvoxel", "seconds a Mvoxel"),
    ("memory_mb", "peak memory MB"),
    ("memory_before_mb", "of it before the patch"),
    ("steps", "steps trained"),
)
CSV_COLUMNS = ("network", "folds", "cases", *(key for key, _ in SCORES), "floor", "sd_over", "pairs")
CSV_COLUMNS += (*(key for key, _ in COSTS), "memory_how", "minutes", "mode", "initialisation", "optimiser", "converged")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table, one row a network; a value for each fold is parted by semicolons."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(CSV_COLUMNS)
    for row in rows:
        converged = converged_in_words(row["converged"]) if row["folds"] else None
        table.writerow([_cell({**row, "converged": converged}.get(key)) for key in CSV_COLUMNS])
    with replace_when_complete(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def write_page(path: Path, result: Mapping[str, Any], pictures: Path) -> None:
    """The page of what `compare.json` holds; `pictures` is the folder of the worst cases."""
    with replace_when_complete(path) as temporary:
        temporary.write_text(_page(result, pictures), encoding="utf-8")


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ";".join(map(str, value))
    return "" if value is None else str(value)


def _page(result: Mapping[str, Any], pictures: Path) -> str:
    rows = [row for row in result["table"] if row["folds"]]
    budget = f"{result['minutes']:g} minute(s)" if result["steps"] is None else f"{result['steps']} steps"
    unfinished = (
        f'<p class="warn"><b>Not complete: {result["done"]} of {result["planned"]} trainings are done.</b> '
        "Networks may stand on different folds until then.</p>"
        if result["done"] < result["planned"]
        else ""
    )
    warned = "".join(f'<p class="warn">{html.escape(f"{w[0].upper()}{w[1:]}.")}</p>' for w in result["warnings"])
    if not rows:
        body = "<p>No training is done yet.</p>"
    else:
        body = _scores(rows) + _costs(rows, result["records"]) + _about(rows)
        body += _curves(result["records"])
        body += "".join(_worst(row["network"], result["records"], pictures) for row in rows)
        body += _cases(result["records"], [row["network"] for row in rows])
    return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>fewscan compare</title><style>{STYLE}</style>
<h1>{" against ".join(html.escape(row["network"]) for row in result["table"])}</h1>
<p>Each network was trained on the same cases, with the same augmentation, for {budget} on each of
{len(result["folds"])} fold(s): {html.escape(result["how"])}. The settings were decided by the training cases. No test
case was trained on, and none was scored before the training was over.</p>
{unfinished}{warned}{body}
<p><small>fewscan {html.escape(result["fewscan"])}, seed {result["seed"]}, {html.escape(result["device"])}. All numbers:
compare.json; the table: compare.csv; the trained bundles: bundles/. Research use.</small></p></html>
"""


def _scores(rows: Sequence[Mapping[str, Any]]) -> str:
    first = rows[0]
    over = {
        "folds": f"over the means of {first['folds']} folds",
        "cases": f"over {first['cases']} test case(s) of the one fold that is done",
    }[first["sd_over"]]
    return f"""<h2>Scores</h2>
{_table(rows, SCORES)}
<p>Without any learning: one label everywhere, the best one for each case, has a mean Dice of {first["floor"]:.4f}.</p>
<p><small>Means over the test cases, each on its original grid against its untouched label. Dice and IoU: mean over the
labels that truth or mask hold, 1 where neither holds any. Pixel accuracy counts the background. HD95: mean over the
labels that both hold, volumes only; <i>missed labels</i> are those that only one holds. Spread: standard deviation
{over}. Difference and p: Dice, paired against {html.escape(first["network"])}, by a two-sided sign-flip permutation
test over {max(row["pairs"] for row in rows)} pairs (cases of one patient or group are one pair); n pairs cannot give a
p below 2 / 2<sup>n</sup>.
A p says nothing about another data set, another budget or another rate of learning.</small></p>"""


def _costs(rows: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> str:
    where = sorted({f"{record['device']} with {record['threads']} threads" for record in records})
    patches = sorted({" x ".join(map(str, record["patch"])) for record in records})
    return f"""<h2>Costs</h2>
{_table(rows, COSTS)}
<p><small>On {html.escape(", ".join(where))}. GMAC: multiply-accumulates in 1e9 of the convolutions, for one patch of
{", ".join(patches)} voxels, and per million voxels of such patches. Seconds: from the test cases' files to label
values, reading and what tiles see beyond their core among it, per million voxels of the scans. Memory:
{html.escape(rows[0]["memory_how"])}.</small></p>"""


def _about(rows: Sequence[Mapping[str, Any]]) -> str:
    told = []
    for row in rows:
        words = converged_in_words(row["converged"])
        shown = words if words == "yes" else f'<b class="warn">{words}</b>'
        told.append(
            f"<li><b>{html.escape(row['network'])}</b>: {html.escape(row['mode'])}. Initialisation: "
            f"{html.escape(row['initialisation'])}. {html.escape(row['optimiser'])}. Converged: {shown}.</li>"
        )
    return f"<h2>How each was trained</h2><ul>{''.join(told)}</ul><p><small>{PLATEAU_RULE}</small></p>"


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for _, title in columns)
    body = "".join(
        f"<tr><td>{html.escape(row['network'])}</td>"
        + "".join(f"<td>{_shown(key, row.get(key))}</td>" for key, _ in columns)
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr><th>network</th>{head}</tr>{body}</table></div>'


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "not measured" if key == "memory_mb" else "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if key in ("parameters", "missed"):
        return f"{value:,}"
    if key == "difference":
        return f"{value:+.4f}"
    return f"{value:.4f}" if key in ("dice", "dice_sd", "iou", "accuracy", "p") else f"{value:.4g}"


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    """The training loss of every network and fold, as SVG."""
    curves = [(record["network"], record["losses"]) for record in records]
    if not any(curve for _, curve in curves):
        return ""
    return (
        f"<h2>Learning curves</h2>{chart(curves, 'training loss by step')}"
        "<p><small>Loss of the training patches (cross-entropy + 1 - soft Dice), one line a fold.</small></p>"
    )


def _worst(network: str, records: Sequence[Mapping[str, Any]], pictures: Path) -> str:
    """The case with the lowest Dice of all folds: truth beside mask."""
    lowest = [(min(case["dice"] for case in r["cases"]), r) for r in records if r["network"] == network]
    dice, record = min(lowest, key=lambda item: item[0])
    images = pictures_of(pictures / f"{network}-fold-{record['fold']}")
    return (
        f"<h2>Worst case of {html.escape(network)}</h2>"
        f"<p>{html.escape(record['worst'])}, fold {record['fold']}, Dice {dice:.4f}: truth beside mask, cut alike.</p>"
        f"{images}"
    )


def _cases(records: Sequence[Mapping[str, Any]], networks: Sequence[str]) -> str:
    """Dice of every test case."""
    dice = {(record["network"], case["case"]): case["dice"] for record in records for case in record["cases"]}
    names = sorted({case for _, case in dice})
    head = "".join(f"<th>{html.escape(network)}</th>" for network in networks)
    body = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{_shown('dice', dice.get((network, name)))}</td>" for network in networks)
        + "</tr>"
        for name in names
    )
    return f"<h2>Dice of each test case</h2><table><tr><th>case</th>{head}</tr>{body}</table>"
