"""Draw the networks from their own code: what one pass computes, as torch exports it.

    python docs/figures.py            # writes docs/unet.svg, docs/fcn.svg and docs/segnet.svg
    python docs/figures.py --check    # exits 1 where what is committed differs

Nothing in a picture is typed in: operations, channels, sizes and connections come from the exported graph.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html import escape
from itertools import groupby
from math import log2
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from fewscan.networks import FCN, SegNet, UNet

DOCS = Path(__file__).resolve().parent
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "unet": (lambda: UNet(2, 1, 2, (64, 128, 256, 512, 1024), padding="valid", norm=None, dropout=0.5), 572),
    "fcn": (lambda: FCN(2, 1, 2, mode="faithful"), 512),
    "segnet": (lambda: SegNet(2, 1, 2), 512),
}
"""As published, and the size of the image in the picture."""

COLUMN, ROW, WIDE, HIGH = 214, 134, 150, 96
COLOURS = {"copy": "#2f6fb2", "positions": "#c05a1c", "": "#444444"}


@dataclass
class Box:
    """Maps of one size: what is joined, then convolutions one after another."""

    number: int
    level: int
    joined: str = ""
    convolutions: list[tuple[str, int, list[str]]] = field(default_factory=list)  # kernel, channels, what follows
    size: tuple[int, ...] = ()


@dataclass(frozen=True)
class Edge:
    """From box to box (-1 is the image), with what happens on the way."""

    source: int
    target: int
    text: str
    kind: str = ""


@dataclass(frozen=True)
class Place:
    """Where a tensor of the graph comes from: a box, the level of its cells, and what happened since."""

    box: int
    level: int
    text: str = ""
    kind: str = ""


def read(network: nn.Module, size: int) -> tuple[list[Box], list[Edge]]:
    """The boxes and edges of one pass over a square image; the weights may lie on torch's meta device."""
    image = torch.empty(1, 1, size, size, device=next(network.parameters()).device)
    graph = torch.export.export(network.eval(), (image,), strict=False).graph
    boxes: list[Box] = []
    edges: list[Edge] = []
    places: dict[Node, Place] = {}

    def new_box(level: int, sources: list[Place], joined: str = "") -> Box:
        boxes.append(Box(len(boxes), level, joined))
        edges.extend(Edge(s.box, boxes[-1].number, s.text, s.kind) for s in sources)
        return boxes[-1]

    for node in graph.nodes:
        if node.op == "placeholder" and node.name == "x":
            places[node] = Place(-1, 0)
        known = [places[n] for n in node.all_input_nodes if n in places]
        if node.op != "call_function" or not known:
            continue
        name, source = _name(node), known[0]
        if name == "conv2d":
            kernel, channels = _kernel(node), node.meta["val"].shape[1]
            box = boxes[source.box] if source.box >= 0 and not source.text else new_box(source.level, [source])
            box.convolutions.append((kernel, channels, []))
            places[node] = Place(box.number, source.level)
        elif name.startswith("max_pool2d"):
            places[node] = Place(source.box, source.level + 1, f"max pool {node.args[1][0]}")
        elif name == "conv_transpose2d":
            stride = node.args[3][0]
            text = f"up {stride}: {_kernel(node)} transp."
            places[node] = Place(source.box, source.level - int(log2(stride)), text)
        elif name in ("cat", "add"):
            known = [replace(place, kind="" if place.text else "copy") for place in known]
            joined = "sum" if name == "add" else f"joined: {node.meta['val'].shape[1]}"
            level = source.level
            places[node] = Place(new_box(level, known, joined).number, level)
        elif name == "scatter":
            positions, values = known[-2:]
            where = Place(positions.box, positions.level - 1, "positions", "positions")
            box = new_box(where.level, [values, where], "unpooled")
            places[node] = Place(box.number, where.level)
        else:
            extra = {"relu_": "ReLU", "relu": "ReLU", "batch_norm": "batch norm", "dropout": "dropout"}.get(name)
            active = name != "dropout" or node.args[1] != 0
            if extra is not None and active and source.box >= 0 and not source.text:
                boxes[source.box].convolutions[-1][2].append(extra)
            second = name == "getitem" and node.args[1] == 1
            places[node] = Place(source.box, source.level, "positions" if second else source.text)
        last = places[node]
        if name in ("conv2d", "cat", "add"):
            boxes[last.box].size = tuple(node.meta["val"].shape[2:])
    edges.append(Edge(last.box, len(boxes), last.text))
    shape = _answered(graph)
    boxes.append(Box(len(boxes), 0, f"{shape[1]} classes", [], shape[2:]))
    return boxes, edges


def _answered(graph: torch.fx.Graph) -> tuple[int, ...]:
    """The shape of what the network answers."""
    (answer,) = (node.args[0][0] for node in graph.nodes if node.op == "output")
    return tuple(answer.meta["val"].shape)


def _name(node: Node) -> str:
    return "getitem" if node.target is operator.getitem else str(node.target).split(".")[1]


def _kernel(node: Node) -> str:
    return "x".join(str(n) for n in node.args[1].meta["val"].shape[2:])  # type: ignore[union-attr]


def draw(boxes: list[Box], edges: list[Edge], title: str) -> str:
    """An SVG: columns in the order of the computation, rows by how often the image was pooled."""
    deepest = max(box.level for box in boxes)
    width, height = COLUMN * len(boxes) + 60, ROW * (deepest + 1) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11" role="img" aria-label="{escape(title)}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        "<defs>",
        *(
            f'<marker id="{kind or "flow"}" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
            f'<path d="M0 1 L7 4 L0 7" fill="none" stroke="{colour}"/></marker>'
            for kind, colour in COLOURS.items()
        ),
        "</defs>",
    ]
    lanes: dict[int, int] = {}
    parts += [line for edge in edges for line in _edge(edge, boxes, lanes)]
    parts += [line for box in boxes for line in _box(box)]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _corner(box: Box) -> tuple[int, int]:
    return 50 + COLUMN * box.number, 30 + ROW * box.level


def _box(box: Box) -> list[str]:
    x, y = _corner(box)
    lines = [box.joined] if box.joined else []
    for (kernel, after), group in groupby(box.convolutions, key=lambda each: (each[0], tuple(each[2]))):
        lines.append(f"{kernel} conv: {', '.join(str(channels) for _, channels, _ in group)}")
        lines += [", ".join(after)] if after else []
    lines.append(" x ".join(map(str, box.size)))
    top = y + HIGH / 2 - 7 * len(lines) + 11
    text = [
        f'<text x="{x + WIDE / 2:g}" y="{top + 14 * n:g}" text-anchor="middle" fill="#111111">{escape(line)}</text>'
        for n, line in enumerate(lines)
    ]
    return [f'<rect x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" rx="4" fill="#f2f5f9" stroke="#444444"/>', *text]


def _edge(edge: Edge, boxes: list[Box], lanes: dict[int, int]) -> list[str]:
    target = boxes[edge.target]
    tx, ty = _corner(target)
    middle = ty + HIGH // 2
    if edge.source < 0:
        path, label = f"M{tx - 40} {middle} H{tx - 1}", (tx - 42, middle - 6)
        return _line(path, label, "image", edge.kind)
    source = boxes[edge.source]
    sx, sy = _corner(source)
    between = [b for b in boxes if b.level == target.level and source.number < b.number < target.number]
    if source.level == target.level and not between:
        y = middle - 16 * (edge.kind != "")
        return _line(f"M{sx + WIDE} {y} H{tx - 1}", (sx + WIDE + 4, y - 5), edge.text, edge.kind)
    x = sx + WIDE // 2 + 24 * (edge.kind != "")
    leave = sy + HIGH if source.level <= target.level else sy
    if between:  # out at the side, below the boxes that stand in the way, and in from below
        lane = ty + HIGH + 12 + 9 * lanes.setdefault(target.level, 0)
        lanes[target.level] += 1
        enter = tx + 30
        side = f"M{sx + WIDE} {sy + HIGH // 2} h16" if source.level < target.level else f"M{x} {sy}"
        return _line(f"{side} V{lane} H{enter} V{ty + HIGH + 1}", (tx - 90, lane - 3), edge.text, edge.kind)
    label = (tx - len(edge.text) * 5.6 - 4 if target.level < source.level else x + 5, middle - 5)
    return _line(f"M{x} {leave} V{middle} H{tx - 1}", label, edge.text, edge.kind)


def _line(path: str, label: tuple[float, float], text: str, kind: str) -> list[str]:
    colour = COLOURS[kind]
    dashes = ' stroke-dasharray="5 3"' if kind == "positions" else ""
    drawn = f'<path d="{path}" fill="none" stroke="{colour}"{dashes} marker-end="url(#{kind or "flow"})"/>'
    x, y = label
    return [drawn, f'<text x="{x:g}" y="{y:g}" fill="{colour}">{escape(text)}</text>' if text else ""]


def render(name: str) -> str:
    """The SVG of a network, without allocating its weights."""
    make, size = NETWORKS[name]
    with torch.device("meta"):
        network: Any = make()
        return draw(*read(network, size), f"{type(network).__name__} on an image of {size} x {size} pixels")


def main() -> int:
    """Write all figures, or compare with what is there."""
    stale = []
    for name in NETWORKS:
        file, text = DOCS / f"{name}.svg", render(name)
        if "--check" not in sys.argv[1:]:
            file.write_text(text, encoding="utf-8", newline="\n")
        elif not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(file.name)
    print("\n".join(f"docs/{name} is not what the code describes" for name in stale), end="\n" if stale else "")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
