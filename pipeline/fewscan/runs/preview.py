"""A page that shows what augmentation does to a bundle's own data, before anything is trained."""

from __future__ import annotations

import base64
import html
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.transforms import Randomizable

from fewscan import __version__
from fewscan.bundle import parsed, read_json
from fewscan.errors import BundleError
from fewscan.files import replace_when_complete
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.masks.overlay import write_overlay
from fewscan.runs.page import STYLE
from fewscan.training.elastic import Deformation
from fewscan.training.patches import PatchDataset, RandomPatchd

DRAWS = 200
"""Deformations that tell how often one is weakened."""
PLACES = 10
"""Places of which the one with most label is shown."""


def preview(bundle: Path, output: Path | None = None, number: int = 12) -> Path:
    """Write a page with a patch of the first training case as it is, and augmented `number` times at the same place.

    Labels are drawn over, what is unknown in grey. The page opens offline. It also says how often an elastic
    deformation is weakened because it would fold the image. Nothing is trained, and no trained model is needed.

    Args:
        bundle: its folder, from `fewscan plan`.
        output: the page; None for `docs/preview.html` in the bundle.
        number: of augmented patches.

    Returns:
        The path of the page.

    Raises:
        BundleError: the bundle cannot be used, or its `train::augment` does not cut patches by `RandomPatchd`.
    """
    if number < 1:
        raise BundleError(f"--number has to be 1 or more, not {number}")
    config = bundle / "configs" / "train.json"
    settings, items = read_json(config), _items(config)
    cut, further = _cut(config, items), items.augment[1:]
    random, case = np.random.default_rng(items.seed), items.case(0)
    spared = Deformation(torch.eye(len(cut.patch)))
    places = [cut.place(random, case) for _ in range(PLACES)]
    place = max(places, key=lambda place: int((cut.cut(case, place, spared)["label"] > 0).sum()))
    plain = cut.cut(case, place, spared)
    i, j, k = (*cut.patch, 1)[:3]
    grid = Grid((i, j, k), np.asarray(case["image"].affine, dtype=np.float64))
    table = LabelTable.from_json(settings["labels"])
    pictures = [_picture("as it is", plain, plain, grid, table)]
    for count in range(1, number + 1):
        drawn = cut.draw(random, case)
        patch = cut.cut(case, place, drawn)
        for step in further:
            if isinstance(step, Randomizable):
                step.set_random_state(seed=int(random.integers(2**32)))
            patch = step(patch)
        weakened = f", elastic weakened to {drawn.share:.0%}" if drawn.share < 1 else ""
        pictures.append(_picture(f"{count}{weakened}", patch, plain, grid, table))
    shares = [cut.draw(random, case).share for _ in range(DRAWS)]
    output = bundle / "docs" / "preview.html" if output is None else output
    output.parent.mkdir(parents=True, exist_ok=True)
    with replace_when_complete(output) as temporary:
        temporary.write_text(_page(bundle, settings, shares, pictures), encoding="utf-8")
    return output


def _items(config: Path) -> PatchDataset:
    """The training patches as the config describes them, on the CPU."""
    with parsed(config, torch.device("cpu")) as built:
        return cast(PatchDataset, built("train::dataset"))


def _cut(config: Path, items: PatchDataset) -> RandomPatchd:
    first = items.augment[0] if getattr(items, "augment", None) else None
    if not isinstance(first, RandomPatchd):
        raise BundleError(f"{config}: `train::augment` does not begin with RandomPatchd, so there is nothing to show")
    return first


def _picture(title: str, patch: Mapping[Any, Any], plain: Mapping[Any, Any], grid: Grid, table: LabelTable) -> bytes:
    """A PNG of the patch; cut where the plain one holds most label."""
    unknown = int(table.values.max()) + 1
    grey = {"value": unknown, "name": "unknown", "colour": [128, 128, 128]}
    image = np.asarray(patch["image"]).reshape(-1, *grid.shape)
    classes, before = (np.asarray(which["label"]).reshape(grid.shape) for which in (patch, plain))
    values = np.where(classes < 0, unknown, table.to_values(classes.clip(0)).astype(np.int64))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "patch.png"
        write_overlay(image, values, grid, LabelTable.from_json([*table.to_json(), grey]), file, title, before > 0)
        return file.read_bytes()


def _page(bundle: Path, settings: Mapping[str, Any], shares: list[float], pictures: list[bytes]) -> str:
    weakened = [share for share in shares if share < 1]
    if weakened:
        told = (
            f"Of {len(shares)} drawn elastic deformations {len(weakened)} would have folded the image and are "
            f"weakened, to {np.mean(weakened):.0%} on average. Where that is most of them, a smaller "
            "<code>elastic_sd</code> or fewer control points say more plainly what happens."
        )
    else:
        told = f"Of {len(shares)} drawn elastic deformations none folds the image, so none is weakened."
    strengths = settings.get("augmentation", {}).items()
    strength = ", ".join(f"{name} {json.dumps(value)}" for name, value in strengths if value is not None)
    shown = "\n".join(
        f'<img alt="patch {count}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        for count, picture in enumerate(pictures)
    )
    return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>fewscan preview</title><style>{STYLE}</style>
<h1>What augmentation does in {html.escape(bundle.resolve().name)}</h1>
<p>One place of the first training case: as it is, then {len(pictures) - 1} times as the network sees it in training.
Grey is unknown: not labelled, or beyond the scan. The strength stands in <code>configs/train.json</code>,
<code>augmentation</code>: {html.escape(strength)}.</p>
<p>{told}</p>
{shown}
<p><small>fewscan {html.escape(__version__)}. Research use.</small></p></html>
"""
