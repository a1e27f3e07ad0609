"""Masks out: label values on a scan's grid become files that clinical tools open, each read back before it counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewscan.masks.write import FORMATS, check_format, default_format, write_mask

if TYPE_CHECKING:
    from fewscan.masks.overlay import write_overlay
    from fewscan.masks.writer import MaskName, MaskWriter

_LAZY = {"write_overlay": "overlay", "MaskName": "writer", "MaskWriter": "writer"}


def __getattr__(name: str) -> Any:
    """MONAI and Pillow are loaded with the first use of what needs them."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


__all__ = [
    "FORMATS",
    "MaskName",
    "MaskWriter",
    "check_format",
    "default_format",
    "write_mask",
    "write_overlay",
]
