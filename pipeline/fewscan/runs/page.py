"""What the pages of `compare`, `validate` and `preview` share: they open offline, with all their pictures inside."""

from __future__ import annotations

import base64
from pathlib import Path

STYLE = """body{font-family:sans-serif;max-width:80em;margin:2em auto;padding:0 1em;line-height:1.5;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #ccc}
td:first-child,th:first-child{text-align:left}img{max-width:49%}svg{max-width:100%}.warn{color:#a40000}
.wide{overflow-x:auto}small{color:#555}"""


def pictures_of(stem: Path) -> str:
    """Truth beside mask of a case, as `fewscan.runs.score.draw` drew them: `<stem>_truth.png` and `<stem>_mask.png`."""
    return "".join(
        f'<img alt="{kind}" src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"> '
        for kind in ("truth", "mask")
        if (file := stem.with_name(f"{stem.name}_{kind}.png")).exists()
    )
