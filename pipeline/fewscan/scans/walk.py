"""The folders of a data folder, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from fewscan.scans.scan import Skipped

MARKER = "fewscan.json"
"""The file in the root of an output folder by which its masks are known."""


def walk(
    root: Path, skipped: list[Skipped], left_out: Callable[[Path], Skipped | None] = lambda folder: None
) -> Iterator[tuple[Path, list[Path]]]:
    """`root` and the folders below it with their files, sorted; links are followed, but no folder is entered twice.

    `skipped` receives the folders that are not entered, with the reason: hidden ones, outputs of fewscan, those for
    which `left_out` gives one, and, as failed, those that cannot be read; and what is neither a folder nor a file.
    """
    entered: dict[Path, Path] = {}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            reason = None if folder == root else _ours_or_hidden(folder) or left_out(folder)
            if reason is None and (first := entered.setdefault(folder.resolve(), folder)) is not folder:
                reason = Skipped(folder, f"the same folder as {first}")
            inside = sorted(folder.iterdir()) if reason is None else []
            folders = {path for path in inside if path.is_dir()}
            strange = [path for path in inside if path not in folders and path.exists() and not path.is_file()]
        except (OSError, RuntimeError) as problem:  # a loop of links is a RuntimeError
            skipped.append(
                Skipped(folder, f"{folder}: the folder cannot be read ({type(problem).__name__})", failed=True)
            )
            continue
        if reason is not None:
            skipped.append(reason)
            continue
        for path in strange:  # to open a pipe would wait for ever
            skipped.append(Skipped(path, "a pipe, a socket or a device"))
        yield folder, [path for path in inside if path not in folders and path not in strange]
        waiting += [path for path in reversed(inside) if path in folders]


def _ours_or_hidden(folder: Path) -> Skipped | None:
    if folder.name.startswith("."):
        return Skipped(folder, "hidden")
    return Skipped(folder, "output of fewscan") if (folder / MARKER).exists() else None
