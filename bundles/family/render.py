"""Render the bundles of the family from their one source.

    python bundles/family/render.py            # writes bundles/<network>_segmentation
    python bundles/family/render.py --check    # exits 1 where what is committed differs

`common.json` stands at the top of train and inference; each network adds one file: its `network_def`, its name and
its reference. MONAI reads a bundle's files by themselves, so each rendered file is self-contained.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FAMILY = Path(__file__).resolve().parent
NETWORKS = ("unet", "fcn", "segnet")


def render(network: str) -> dict[str, str]:
    """The text of each file of a network's bundle, by its path inside the bundle."""
    member = _read(f"{network}.json")
    files = {f"configs/{name}.json": _read(f"{name}.json") for name in ("evaluate", "multi_gpu_train")}
    for name in ("train", "inference"):
        files[f"configs/{name}.json"] = {
            **_read("common.json"),
            **_read(f"{name}.json"),
            "network_def": member["network_def"],
        }
    files["configs/metadata.json"] = {
        **_read("metadata.json"),
        "name": member["name"],
        "description": f"{member['title']} of 2D and 3D images, trained from a few annotated ones with fewscan",
        "references": [member["reference"]],
    }
    texts = {path: json.dumps(content, indent=4, ensure_ascii=False) + "\n" for path, content in files.items()}
    readme = (FAMILY / "README.md").read_text(encoding="utf-8")
    texts["docs/README.md"] = readme.replace("{title}", member["title"]).replace("{reference}", member["reference"])
    texts["LICENSE"] = (FAMILY.parents[1] / "LICENSE").read_text(encoding="utf-8")
    return texts


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FAMILY / name).read_text(encoding="utf-8"))
    return content


def main() -> int:
    """Write all bundles, or compare with what is there."""
    stale = []
    for network in NETWORKS:
        for path, text in render(network).items():
            file = FAMILY.parent / f"{network}_segmentation" / path
            if "--check" not in sys.argv[1:]:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8", newline="\n")
            elif not file.exists() or file.read_text(encoding="utf-8") != text:
                stale.append(file)
    for file in stale:
        print(f"{file.relative_to(FAMILY.parent)} is not what the family renders", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
