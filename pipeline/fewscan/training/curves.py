"""A chart of a few curves as inline SVG, for pages that open offline."""

from __future__ import annotations

import html
import statistics
from collections.abc import Sequence

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by the colour-blind too
POINTS = 100
"""Most points of a drawn curve."""

Curve = Sequence[tuple[float, float]]
"""(step, value), by rising step; values from 0 up."""


def chart(curves: Sequence[tuple[str, Curve]], label: str, highest: float | None = None) -> str:
    """An SVG element: each curve from step 0, in the colour of its name; several may share a name.

    Args:
        curves: name and points; empty ones are left out. There has to be a point.
        label: what is shown, for people who hear the page.
        highest: value at the top; None for the largest.
    """
    width, height, left, bottom = 760, 300, 50, 34
    drawn = [(name, thinned(curve)) for name, curve in curves if curve]
    names = list(dict.fromkeys(name for name, _ in curves))
    longest = max(step for _, curve in drawn for step, _ in curve)
    top = highest or max(value for _, curve in drawn for _, value in curve) or 1.0
    base = height - bottom
    parts = []
    for name, curve in drawn:
        points = [
            f"{left + step / longest * (width - left - 8):.1f},{8 + (1 - value / top) * (base - 8):.1f}"
            for step, value in curve
        ]
        colour = COLOURS[names.index(name) % len(COLOURS)]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(points)}"/>')
        if len(points) == 1:
            cx, cy = points[0].split(",")
            parts.append(f'<circle cx="{cx}" cy="{cy}" r="3" fill="{colour}"/>')
    for number, name in enumerate(names):
        y = 24 + 18 * number
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{width - 120}" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{width - 102}" y="{y}">{html.escape(name)}</text>')
    parts.append(f'<path d="M{left} 8V{base}H{width - 8}" fill="none" stroke="#888"/>')
    parts += [
        f'<text x="{left - 6}" y="14" text-anchor="end">{top:.2f}</text>',
        f'<text x="{left - 6}" y="{base}" text-anchor="end">0</text>',
        f'<text x="{width - 8}" y="{height - 14}" text-anchor="end">step {longest:g}</text>',
    ]
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" font-size="13" role="img" '
        f'aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
    )


def thinned(curve: Curve) -> list[tuple[float, float]]:
    """At most `POINTS` points: means of neighbours."""
    size = -(-len(curve) // POINTS)
    groups = [curve[first : first + size] for first in range(0, len(curve), size)]
    return [(group[-1][0], statistics.fmean(value for _, value in group)) for group in groups]
