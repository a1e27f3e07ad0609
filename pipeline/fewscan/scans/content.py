"""The image files and DICOM folders of a data folder, and which of them lie among labels."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from fewscan.scans.dicom_files import is_dicom
from fewscan.scans.names import LABEL_FOLDERS, format_of
from fewscan.scans.scan import Skipped
from fewscan.scans.walk import walk


@dataclass(frozen=True)
class Content:
    """The image files and DICOM folders below `root`, sorted; a DICOM folder stands for its files.

    `include` and `exclude` are the patterns by which they were chosen.
    """

    root: Path
    entries: tuple[Path, ...]
    skipped: tuple[Skipped, ...]
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @classmethod
    def of(cls, root: Path, include: Sequence[str], exclude: Sequence[str]) -> Content:
        """What `root` holds, without hidden folders and outputs of fewscan."""
        entries: list[Path] = []
        skipped: list[Skipped] = []
        ours: set[Path] = set()
        for folder, files in walk(root, skipped):
            ours |= _masks_of_receipts(folder)
            dicom = False
            for path in files:
                below = path.relative_to(root).as_posix()
                if path.name.startswith(".") or path.name.endswith("_overlay.png"):
                    skipped.append(Skipped(path, "hidden or a review picture"))
                elif not is_wanted([below], include, exclude):
                    skipped.append(Skipped(path, "not included or excluded"))
                elif path in ours:
                    skipped.append(Skipped(path, "a mask that fewscan made: no label to learn from"))
                elif format_of(path) not in (None, "dicom"):
                    entries.append(path)
                elif is_dicom(path):
                    dicom = True
            if dicom:
                entries.append(folder)
        return cls(root, tuple(sorted(entries)), tuple(skipped), tuple(include), tuple(exclude))

    def below(self, path: Path) -> tuple[str, ...]:
        """The folders between root and the entry, outermost first."""
        return path.relative_to(self.root).parts[:-1]

    def label_folder(self, path: Path) -> Path | None:
        """The innermost folder around the entry that is named like one of labels."""
        parts = self.below(path)
        for depth in range(len(parts), 0, -1):
            if parts[depth - 1].lower() in LABEL_FOLDERS:
                return self.root.joinpath(*parts[:depth])
        return None


def _masks_of_receipts(folder: Path) -> set[Path]:
    """The masks that lie in or below a folder of scans because it was also the output of `segment`."""
    masks: set[Path] = set()
    for receipt in (folder / "fewscan" / "receipts").rglob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # cut short: no receipt
            masks |= {folder / name for name in json.loads(receipt.read_text(encoding="utf-8"))["outputs"]}
    return masks


def is_wanted(below: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether the files of one image or case, paths below the data folder, are chosen: one is included, none excluded.

    Patterns match the path or the file's name.
    """
    return (not include or any(_fits(path, include) for path in below)) and not any(
        _fits(path, exclude) for path in below
    )


def _fits(below: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(below, pattern) or fnmatch(below.rsplit("/", 1)[-1], pattern) for pattern in patterns)
