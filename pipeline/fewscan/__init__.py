"""fewscan: from a few annotated scans to masks that clinical tools open."""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("bundle", "networks", "tiling", "training"):  # for bundles, which `import fewscan`
        return importlib.import_module(f"fewscan.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
