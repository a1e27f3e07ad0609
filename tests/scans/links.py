"""Links to folders, where the machine allows them."""

from __future__ import annotations

from pathlib import Path

import pytest


def link(path: Path, target: Path) -> None:
    """Make `path` a link to the folder `target`; the test is skipped where links are not allowed (Windows)."""
    try:
        path.symlink_to(target, target_is_directory=True)
    except OSError as problem:
        pytest.skip(f"links cannot be made here ({type(problem).__name__})")
