"""Files appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to: renamed at the end, removed on any exception.

    It keeps the end of the name, so that writers know it by its suffix.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name[-80:]}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
