"""Scans in: a folder becomes scans, labels, and pairs of both."""

from __future__ import annotations

from typing import Any

from fewscan.scans.cases import Case, Cases, format_table, seed_labels
from fewscan.scans.find import Found, find_scans
from fewscan.scans.labels import match_grid, read_label
from fewscan.scans.open import open_scan
from fewscan.scans.pairs import find_cases
from fewscan.scans.scan import Scan, Skipped

__all__ = [
    "Case",
    "Cases",
    "Found",
    "LabelReader",
    "Scan",
    "ScanReader",
    "Skipped",
    "find_cases",
    "find_scans",
    "format_table",
    "image_paths",
    "match_grid",
    "open_scan",
    "read_label",
    "scan_from_meta",
    "scan_meta",
    "seed_labels",
]

_WITH_MONAI = {"LabelReader", "ScanReader", "image_paths", "scan_from_meta", "scan_meta"}


def __getattr__(name: str) -> Any:
    """The parts that need MONAI, imported when they are asked for."""
    if name in _WITH_MONAI:
        from fewscan.scans import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
