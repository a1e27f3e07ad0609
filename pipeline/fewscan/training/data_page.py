"""`docs/data.html`: every labelled case as a picture, with its numbers and what is odd about it; opens offline."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from PIL import Image

from fewscan import __version__
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.masks.overlay import draw_overlay
from fewscan.training.fingerprint import CaseFingerprint, Fingerprint
from fewscan.training.outliers import Outlier

_LARGEST = (640, 320)
"""Pixels of a picture, at most."""
_COLOURS = 128
_OF_SCANS = """Axes: left x posterior x superior. Pictures: the slices that hold most label, the patient's left on the
right."""
_OF_PICTURES = (
    "Voxels: width x height x pages; the files say no size of a pixel. Pictures: the page that holds most label."
)
_STYLE = """body{font-family:sans-serif;max-width:76em;margin:2em auto;padding:0 1em;line-height:1.45;color:#222}
table{border-collapse:collapse}td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #ccc}
td:first-child,th:first-child{text-align:left}img{max-width:100%;display:block}.odd{color:#a40000}
section{border-top:1px solid #ccc;padding:.6em 0}h2{margin:.3em 0;font-size:1.05em}.wide{overflow-x:auto}"""


def overlay_png(image: NDArray[Any], values: NDArray[Any], grid: Grid, table: LabelTable) -> bytes:
    """`fewscan.masks.overlay.draw_overlay` as a small PNG with few colours."""
    picture = draw_overlay(image, values, grid, table)
    picture.thumbnail(_LARGEST, Image.Resampling.BOX)
    packed = io.BytesIO()
    coverage = Image.Quantize.MAXCOVERAGE  # the median cut makes the labels' colours grey: grey voxels are the most
    picture.quantize(_COLOURS, coverage).save(packed, "PNG")
    return packed.getvalue()


def data_page(
    fingerprint: Fingerprint,
    outliers: Sequence[Outlier],
    pictures: Mapping[str, bytes],
    parts: Mapping[str, str],
    failed: Sequence[tuple[str, str]],
) -> str:
    """The page.

    Args:
        fingerprint: of all labelled cases.
        outliers: from `find_outliers`.
        pictures: PNG by the name of the case.
        parts: "training" or "validation" by the name of the case.
        failed: cases left out: (name, why).
    """
    odd: dict[str, list[str]] = {}
    for outlier in outliers:
        odd.setdefault(outlier.case, []).append(outlier.words)
    cases = sorted(fingerprint.cases, key=lambda case: (case.name not in odd, case.name))
    unit, spacing, about = "pixels", "", _OF_PICTURES
    if fingerprint.knows_spacing:
        unit, spacing, about = "mm3", "<th>spacing mm</th>", _OF_SCANS
    head = "".join(f"<th>{_text(name)} {unit}</th>" for name in fingerprint.labels)
    rows = "".join(
        _row(case, parts.get(case.name, ""), odd.get(case.name, []), fingerprint.knows_spacing) for case in cases
    )
    left_out = "".join(f"<li class=odd>{_text(name)}: left out: {_text(reason)}</li>" for name, reason in failed)
    listed = "".join(f"<li class=odd>{_text(outlier)}</li>" for outlier in outliers) + left_out
    sections = "".join(_section(case, odd.get(case.name, []), pictures.get(case.name)) for case in cases)
    return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>fewscan: the labelled cases</title><style>{_STYLE}</style>
<h1>{len(cases)} labelled case{"s" * (len(cases) != 1)}</h1>
<p>Look for labels that do not lie on what they name. What is odd stands first. <b>This page shows your scans:
remove it before you pass the bundle on.</b></p>
<ul>{listed or "<li>nothing odd was found</li>"}</ul>
<div class="wide"><table><tr><th>case</th><th>part</th><th>voxels</th>{spacing}<th>median intensity</th>
<th>foreground</th>{head}</tr>{rows}</table></div>
<p><small>{about} Foreground: share of the decided voxels.</small></p>
{sections}
<p><small>fewscan {_text(__version__)}. Research use.</small></p></html>
"""


def _row(case: CaseFingerprint, part: str, odd: Sequence[str], knows_spacing: bool) -> str:
    cells = [
        part,
        " x ".join(map(str, case.shape)),
        *([" x ".join(f"{mm:.3g}" for mm in case.spacing_mm)] if knows_spacing else []),
        ", ".join(f"{channel[3]:.4g}" for channel in case.intensities),
        f"{100 * case.foreground:.3g} %",
        *(f"{volume:.0f}" if volume >= 1000 else f"{volume:.4g}" for volume in case.volumes_mm3),
    ]
    name = f"<td{' class=odd' if odd else ''}>{_text(case.name)}</td>"
    return f"<tr>{name}{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>"


def _section(case: CaseFingerprint, odd: Sequence[str], picture: bytes | None) -> str:
    words = "".join(f"<p class=odd>{_text(one)}</p>" for one in odd)
    words += "".join(f"<p>{_text(note)}</p>" for note in case.notes)
    if picture is not None:
        data = base64.b64encode(picture).decode()
        words += f'<img loading="lazy" alt="{_text(case.name)}" src="data:image/png;base64,{data}">'
    return f"<section><h2>{_text(case.name)}</h2>{words}</section>\n"


def _text(value: object) -> str:
    return html.escape(str(value))
