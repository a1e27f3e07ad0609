"""What a header promises against what the file can hold, before any of it is allocated."""

from __future__ import annotations

from pathlib import Path

from fewscan.errors import ScanError

DEFLATE = 1032
"""Bytes that a byte of gzip, zlib or PNG inflates to at most (zlib's technical notes)."""
BESIDE = 1 << 26
"""Bytes that a file may hold beside its voxels, as header extensions; what inflates to more is no image."""


def check_holds(path: Path, needed: int, stored: int, deflated: bool = False) -> None:
    """Raise ScanError where `stored` bytes of the file, perhaps deflated, cannot give the `needed` bytes."""
    most = stored * DEFLATE if deflated else stored
    if most < needed:
        can = f"{stored} bytes, which inflate to at most {most}," if deflated else f"{stored} bytes"
        raise ScanError(f"{path}: is cut short: {can} where the header needs {needed}; copy it again")
