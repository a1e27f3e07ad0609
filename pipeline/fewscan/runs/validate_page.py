"""The page and the table of a validation."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewscan.files import replace_when_complete
from fewscan.runs.page import STYLE, pictures_of
from fewscan.training.curves import chart

COLUMNS = (
    ("case", "case"), ("fold", "fold"), ("group", "group"), ("dice", "Dice"), ("iou", "IoU"),
    ("accuracy", "pixel accuracy"), ("hd95_mm", "HD95 mm"), ("missed", "missed labels"), ("floor", "without learning"),
    ("seconds", "seconds"),
)  # fmt: skip


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One row a case."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow([key for key, _ in COLUMNS])
    table.writerows([["" if row[key] is None else row[key] for key, _ in COLUMNS] for row in rows])
    with replace_when_complete(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def write_page(path: Path, result: Mapping[str, Any], pictures: Path) -> None:
    """The page of what `report.json` holds; `pictures` is the folder with the worst case of each fold."""
    with replace_when_complete(path) as temporary:
        temporary.write_text(_page(result, pictures), encoding="utf-8")


def _page(result: Mapping[str, Any], pictures: Path) -> str:
    waits = result["planned"] - result["done"]
    unfinished = f"<b>Not complete: {waits} of {result['planned']} trainings are missing.</b>" if waits else ""
    warned = [unfinished, *(html.escape(f"{w[0].upper()}{w[1:]}.") for w in result["warnings"])]
    body = "".join(f'<p class="warn">{line}</p>' for line in warned if line)
    body += "".join(f"<p>{html.escape(line)}.</p>" for line in result.get("advice", ()))
    if result["summary"]:
        scores = _scores_of_blocks if result["blocks"] else _scores
        body += scores(result["summary"]) + _cases(result["cases"]) + _worst(result["cases"], pictures)
    body += _curve(result) + _losses(result["records"]) + _unlabelled(result.get("unlabelled", ()))
    body += _failures([*result["left_out"], *result["failed"]])
    opening = html.escape(result.get("validation", ""))
    seen = "No case that is scored here was trained on, or looked at in training."
    if result["blocks"]:
        seen = "No voxel that is scored here was trained on, or looked at, in the training that it scores."
    return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>fewscan validate</title><style>{STYLE}</style>
<h1>How good it is on what it was not trained on</h1>
<p><b>{opening}</b></p>
<p>{html.escape(result["how"])}. Each was trained for {html.escape(result["budget"])}, from random weights, with the
bundle's own settings. These were decided with all cases in view (spacing, intensity window, patch), which flatters a
little. {seen} <b>This page shows scans of your patients:
remove it before you pass the bundle on.</b></p>
{body}
<p><small>fewscan {html.escape(result["fewscan"])}, seed {result["seed"]}, {html.escape(result["device"])}. All numbers:
report.json; the table: report.csv; the models: fold-1 and so on, for <code>fewscan segment --ensemble</code>. Research
use.</small></p></html>
"""


def _scores(summary: Mapping[str, Any]) -> str:
    dice, hd95 = summary["dice"], summary["hd95_mm"]
    rows = [
        ("Dice", f"{dice['mean']:.4f}", _shown(dice["sd"]), f"{dice['worst']:.4f} ({html.escape(dice['worst_case'])})"),
        ("IoU", f"{summary['iou']:.4f}", "-", "-"),
    ]
    if hd95 is not None:
        rows.append((f"HD95 mm, of {hd95['cases']} case(s)", f"{hd95['mean']:.3g}", "-", f"{hd95['worst']:.3g}"))
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<h2>Scores of {summary['cases']} case(s)</h2><table><tr><th></th><th>mean</th><th>spread (sd)</th>"
        f"<th>worst</th></tr>{lines}</table><p><small>Each case on its original grid against its untouched label, as "
        "<code>fewscan segment</code> does it, without post-processing. Dice and IoU: mean over the labels that truth "
        "or mask hold. HD95: mean over the labels that both hold; labels that only one holds: "
        f"{summary['missed']}. One and the same label everywhere, the best for each case, has a mean Dice of "
        f"{summary['floor']:.4f}.</small></p>"
    )


def _scores_of_blocks(summary: Mapping[str, Any]) -> str:
    lines = "".join(
        f"<tr><td>{html.escape(one['label'])}</td><td>{one['dice']:.4f}</td><td>{one['voxels']}</td></tr>"
        for one in summary["labels"]
    )
    return (
        f"<h2>Scores of {summary['cases']} blocks together</h2><p>Dice {summary['dice']['mean']:.4f}, IoU "
        f"{summary['iou']:.4f}: mean over the labels.</p>"
        f"<table><tr><th>label</th><th>Dice</th><th>voxels tested</th></tr>{lines}</table>"
        "<p><small>The answers to all blocks are one mask, scored on the scan's original grid against its untouched "
        "label, without post-processing. Voxels of a label that the block's training did not know do not count. "
        f"One and the same label everywhere, the best one, has a Dice of {summary['floor']:.4f}. Below, the Dice of a "
        "block is its own: where it holds a few voxels of a label, these decide.</small></p>"
    )


def _cases(rows: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{title}</th>" for _, title in COLUMNS)
    ordered = sorted(rows, key=lambda row: row["dice"])
    body = "".join(f"<tr>{''.join(f'<td>{_shown(row[key])}</td>' for key, _ in COLUMNS)}</tr>" for row in ordered)
    return f'<h2>Each case, the worst first</h2><div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _worst(rows: Sequence[Mapping[str, Any]], pictures: Path) -> str:
    worst = min(rows, key=lambda row: row["dice"])
    return (
        f"<h2>The worst case</h2><p>{html.escape(worst['case'])}, Dice {worst['dice']:.4f}: truth beside mask.</p>"
        + pictures_of(pictures / f"fold-{worst['fold']}")
    )


def _curve(result: Mapping[str, Any]) -> str:
    if not result["curve"]:
        return ""
    lines = "".join(
        f"<tr><td>{one['groups']}</td><td>{one['cases']}</td><td>{one['dice']:.4f}</td></tr>" for one in result["curve"]
    )
    return (
        "<h2>With fewer labelled scans</h2><table><tr><th>groups trained on</th><th>cases scored</th><th>mean Dice</th>"
        f"</tr>{lines}</table>"
    )


def _losses(records: Sequence[Mapping[str, Any]]) -> str:
    curves = [(f"fold {record['fold']}", record["losses"]) for record in records]
    if not any(curve for _, curve in curves):
        return ""
    return f"<h2>Loss in training</h2>{chart(curves, 'training loss by step')}"


def _unlabelled(ranked: Sequence[Mapping[str, Any]]) -> str:
    if not ranked:
        return ""
    lines = "".join(
        f"<tr><td>{html.escape(one['scan'])}</td><td>{one['disagreement']:.3f}</td></tr>" for one in ranked[:20]
    )
    return (
        "<h2>What to label next</h2><p>Unlabelled scans on which the models of the folds disagree most: mean over "
        f"pairs of models of 1 - Dice.</p><table><tr><th>scan</th><th>disagreement</th></tr>{lines}</table>"
    )


def _failures(failed: Sequence[Mapping[str, str]]) -> str:
    if not failed:
        return ""
    lines = "".join(f"<li>{html.escape(one['case'])}: {html.escape(one['reason'])}</li>" for one in failed)
    return f'<h2 class="warn">What could not be used</h2><ul>{lines}</ul>'


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
