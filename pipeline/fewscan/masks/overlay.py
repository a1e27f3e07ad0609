"""One picture of a scan and its mask, for a person to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fewscan.arrays import count_values, slabs
from fewscan.errors import FormatError
from fewscan.grid import Grid
from fewscan.labels import LabelTable

_PANEL = 400  # pixels of the longest side of the largest of three planes; a single plane is shown larger
_SINGLE_PANEL = 640
_MARGIN = 8
_FILL = 0.3
_ROWS_OF_LEGEND = 12
_PLANES = {2: ("axial", "R | L"), 1: ("coronal", "R | L"), 0: ("sagittal", "A | P")}

RGBPicture = NDArray[np.uint8]


def write_overlay(
    image: NDArray[Any],
    values: NDArray[Any],
    grid: Grid,
    table: LabelTable,
    path: Path,
    title: str = "",
    cuts_by: NDArray[Any] | None = None,
) -> None:
    """Write `draw_overlay` as a PNG."""
    try:
        picture = draw_overlay(image, values, grid, table, title, cuts_by)
    except FormatError as problem:
        raise FormatError(f"{path.name}: {problem}") from None
    picture.save(path)


def draw_overlay(
    image: NDArray[Any],
    values: NDArray[Any],
    grid: Grid,
    table: LabelTable,
    title: str = "",
    cuts_by: NDArray[Any] | None = None,
) -> Image.Image:
    """One picture: cuts through the scan with the labels' contours on them, and a legend.

    `image` (channel, i, j, k), of which the first channel is shown, windowed from its 1st to its 99th percentile;
    three channels of a single slice are shown as red, green, blue. `values` (i, j, k) holds label values. A volume
    gives the axial, coronal and sagittal slices that hold most label (the middle ones where the mask is empty), at
    one scale in mm; the patient's left is on the right of the picture, front and head are up. `cuts_by` (i, j, k) are
    labels that decide on the slices instead of `values`: two masks of one scan, cut alike. Raises FormatError where
    the shapes differ.
    """
    cuts_by = values if cuts_by is None else cuts_by
    if image.shape[1:] != values.shape or values.shape != grid.shape or cuts_by.shape != grid.shape:
        raise FormatError(f"image {image.shape[1:]}, mask {values.shape} and grid {grid.shape} differ")
    values, cuts_by, image = grid.in_lps(values), grid.in_lps(cuts_by), grid.in_lps(image)
    spacing = [grid.spacing_mm[axis] for axis in grid.axes_to_lps()[0]]
    flat = [normal for normal in range(3) if values.shape[normal] == 1]
    normals = flat[-1:] or list(_PLANES)
    extent = [n * mm for n, mm in zip(values.shape, spacing, strict=True)]
    shown = {axis for normal in normals for axis in range(3) if axis != normal}
    scale = (_PANEL if len(normals) > 1 else _SINGLE_PANEL) / max(extent[axis] for axis in shown)
    colours = len(flat) > 0 and image.shape[0] == 3
    window = _window(image if colours else image[:1])
    panels = []
    for normal in normals:
        at = _fullest(cuts_by, normal)
        picture = _shown(image if colours else image[:1], normal, at, window)
        labels = _upright(_plane(values, normal, at), normal)
        across, down = (max(1, round(extent[axis] * scale)) for axis in range(3) if axis != normal)
        panels.append(_panel(picture, labels, (across, down), table))
    found = _values_in(values)
    present = [label for label in table if label.value in found]
    names = [
        f"{_PLANES[normal][0]} {_fullest(cuts_by, normal) + 1}/{values.shape[normal]}, {_PLANES[normal][1]}"
        for normal in normals
    ]
    legend = [(label.colour, label.name) for label in present] or [((90, 90, 90), "no label found")]
    return _compose(panels, names if len(names) > 1 else [""], legend, title)


def write_side_by_side(
    panels: Sequence[tuple[str, NDArray[Any], NDArray[Any], LabelTable]],
    grid: Grid,
    path: Path,
    title: str,
    cuts_by: NDArray[Any],
) -> None:
    """Write one PNG: the same slice of several images of one scan, each under its name, and a legend.

    A panel is (name, image (channel, i, j, k), label values (i, j, k), their table). A volume gives the axial slice
    where `cuts_by` (i, j, k) holds most that is not 0. Windowed and turned as in `write_overlay`.
    """
    axes, cuts_by = grid.axes_to_lps()[0], grid.in_lps(cuts_by)
    normal = max((axis for axis in range(3) if cuts_by.shape[axis] == 1), default=2)
    at = _fullest(cuts_by, normal)
    extent = [cuts_by.shape[axis] * grid.spacing_mm[axes[axis]] for axis in range(3) if axis != normal]
    across, down = (max(1, round(mm * _SINGLE_PANEL / max(extent))) for mm in extent)
    drawn: list[Image.Image] = []
    legend: dict[str, tuple[int, int, int]] = {}
    for _, image, values, table in panels:
        image, values = grid.in_lps(image)[:1], _plane(grid.in_lps(values), normal, at)
        picture = _shown(image, normal, at, _window(image))
        drawn.append(_panel(picture, _upright(values, normal), (across, down), table))
        present = _values_in(values)
        legend |= {label.name: label.colour for label in table if label.value in present}
    shown = [(colour, name) for name, colour in legend.items()] or [((90, 90, 90), "no label found")]
    _compose(drawn, [name for name, *_ in panels], shown, title).save(path)


def _window(image: NDArray[Any]) -> tuple[float, float]:
    """The 1st and 99th percentile of a sample of the image, a little apart; 0 to 255 for bytes in colour."""
    if image.shape[0] == 3 and image.min() >= 0 and 1 < image.max() <= 255:
        return 0.0, 255.0
    stride = math.ceil((image.size / 2e6) ** (1 / 3))
    low, high = np.percentile(image[:, ::stride, ::stride, ::stride], (1, 99))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    return float(low), float(high) if high > low else float(low) + 1


def _fullest(values: NDArray[Any], normal: int) -> int:
    """The index of the slice with most label along that axis; the middle where there is none."""
    counts = np.zeros(values.shape[normal], dtype=np.int64)
    for box, part in slabs(values):
        counts[box[normal]] += np.count_nonzero(part, axis=tuple(axis for axis in range(3) if axis != normal))
    return int(counts.argmax()) if counts.any() else values.shape[normal] // 2


def _values_in(values: NDArray[Any]) -> set[int]:
    return set(np.flatnonzero(count_values(values)).tolist())


def _plane(values: NDArray[Any], normal: int, at: int) -> NDArray[Any]:
    """A slice of (i, j, k); `ndarray.take` would copy all of an array that lies otherwise in memory."""
    return values[(slice(None),) * normal + (at,)]


def _upright(plane: NDArray[Any], normal: int) -> NDArray[Any]:
    """A plane (first axis, second axis) as rows from the top: front up in axial planes, head up in the others."""
    step = max(1, max(plane.shape) // (2 * _SINGLE_PANEL))  # of large planes no more than can be seen
    return (plane.T if normal == 2 else plane.T[::-1])[::step, ::step]


def _shown(image: NDArray[Any], normal: int, at: int, window: tuple[float, float]) -> RGBPicture:
    """The slice as (rows, columns, 3) bytes."""
    planes = [_upright(_plane(channel, normal, at), normal).astype(np.float64) for channel in image]
    low, high = window
    scaled = [np.clip((plane - low) / (high - low), 0, 1) * 255 for plane in planes]
    return np.stack(scaled if len(scaled) == 3 else scaled * 3, axis=-1).astype(np.uint8)


def _panel(picture: RGBPicture, labels: NDArray[Any], size: tuple[int, int], table: LabelTable) -> Image.Image:
    """One plane with its labels, `size` (across, down) in pixels; filled lightly, contours solid."""
    rows, columns = labels.shape
    shown = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR)).astype(np.float64)
    y = (np.arange(size[1]) * rows) // size[1]
    x = (np.arange(size[0]) * columns) // size[0]
    large = labels[y][:, x]
    edge = _edges(large)
    for label in table:
        inside = large == label.value
        shown[inside] = (1 - _FILL) * shown[inside] + _FILL * np.array(label.colour)
        shown[inside & edge] = label.colour
    return Image.fromarray(shown.round().astype(np.uint8))


def _edges(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels with another value next to them."""
    edge = np.zeros(labels.shape, dtype=bool)
    across, down = labels[:, 1:] != labels[:, :-1], labels[1:] != labels[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def _compose(
    panels: Sequence[Image.Image],
    names: Sequence[str],
    legend: Sequence[tuple[tuple[int, int, int], str]],
    title: str,
) -> Image.Image:
    """Panels side by side, their names above, the legend to the right."""
    font = ImageFont.load_default(size=14)
    line = 20
    shown = list(legend[: 2 * _ROWS_OF_LEGEND])
    texts = [name for _, name in shown]
    if len(legend) > len(shown):
        texts.append(f"and {len(legend) - len(shown)} more")
    top = _MARGIN + (line if title else 0) + (line if any(names) else 0)
    width_of_legend = max(round(font.getlength(text)) for text in texts) + 3 * _MARGIN + 14
    slots = [max(panel.width, round(font.getlength(name))) for panel, name in zip(panels, names, strict=True)]
    width = sum(slot + _MARGIN for slot in slots) + _MARGIN + width_of_legend
    width = max(width, round(font.getlength(title)) + 2 * _MARGIN)
    height = max(top + max(panel.height for panel in panels), top + line * len(texts)) + _MARGIN
    canvas = Image.new("RGB", (width, height), (20, 20, 20))
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN), title, fill=(230, 230, 230), font=font)
    left = _MARGIN
    for panel, name, slot in zip(panels, names, slots, strict=True):
        draw.text((left, top - line), name, fill=(170, 170, 170), font=font)
        canvas.paste(panel, (left, top))
        left += slot + _MARGIN
    for row, text in enumerate(texts):
        y = top + row * line
        if row < len(shown):
            draw.rectangle((left, y + 3, left + 13, y + 16), fill=shown[row][0])
        draw.text((left + 14 + _MARGIN, y), text, fill=(230, 230, 230), font=font)
    return canvas
