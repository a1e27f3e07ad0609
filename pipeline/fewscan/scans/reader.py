"""Our strict readers inside MONAI: `LoadImaged(reader="fewscan.scans.ScanReader")`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys, SpaceKeys
from numpy.typing import NDArray

from fewscan.errors import LabelError, ScanError
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.scans.cases import entry_stem
from fewscan.scans.dicom import open_series
from fewscan.scans.labels import forget_empty_slices, read_instances, read_label
from fewscan.scans.names import stem_of
from fewscan.scans.open import open_scan
from fewscan.scans.scan import Scan

SCAN_KEY = "fewscan_scan"
"""The key in MONAI's metadata under which the scan's files are kept, as a JSON string that survives collation."""


@dataclass(frozen=True)
class Files:
    """The files of one image or label, not opened yet.

    LoadImage tries its own readers where ours raises in `read`, and would guess; so everything that can be refused is
    opened in `get_data`, whose errors reach the user.
    """

    paths: tuple[Path, ...]
    frames: tuple[int, ...] = ()


def image_paths(scan: Scan) -> list[str]:
    """A scan as `ScanReader` reads it again: its files, or `file#frame` for each plane of a multi-frame DICOM."""
    if scan.frames:
        return [f"{file}#{frame}" for file, frame in zip(scan.files, scan.frames, strict=True)]
    return [str(file) for file in dict.fromkeys(scan.files)]


class ScanReader(ImageReader):  # type: ignore[misc]
    """Reads scans for MONAI as `open_scan` does: (channel, i, j, k), affine RAS+.

    `channels` as the bundle has them. A path may name one frame of a DICOM file: `file#3` (see `image_paths`).
    """

    def __init__(self, channels: Sequence[Mapping[str, Any] | str] | None = None) -> None:
        """Remember the bundle's channels."""
        super().__init__()
        self.channels = channels

    def verify_suffix(self, filename: Any) -> bool:
        """Any file may be a scan; what is none is refused by `get_data`."""
        return True

    def read(self, data: Any, **kwargs: Any) -> Files:
        """The file, folder or list of files to open."""
        return _files(data)

    def get_data(self, img: Files) -> tuple[NDArray[Any], dict[str, Any]]:
        """The array (channel, i, j, k) and MONAI's metadata. Raises ScanError where the files are no single scan."""
        if img.frames:
            scan = open_series(img.paths, stem_of(img.paths[0]), img.frames)
            names = [row if isinstance(row, str) else str(row["name"]) for row in self.channels or scan.channels]
            if len(names) != 1:
                raise ScanError(f"{img.paths[0]}: a DICOM series holds 1 channel, where {len(names)} are expected")
            scan = replace(scan, channels=tuple(names))
        else:
            scan = open_scan(img.paths, self.channels)
        return scan.read(), scan_meta(scan)


class LabelReader(ImageReader):  # type: ignore[misc]
    """Reads label files for MONAI as class indices (i, j, k), by the label table of the bundle.

    Args:
        labels: the table's rows.
        merged: everything above 0, in one file or several, is class 1.
        structures: for one mask per structure: which label a file means, {stem of the file: name of the label};
            then every file, also a single one, is such a mask (anything above 0). None where a case has one file that
            holds the values of the table.
        unlabelled: the value in files of voxels that nobody annotated; they become -1. None where there is none.
        sparse: 0, 1 or 2 where slices without any label, across left, posterior or superior, are not annotated: they
            become -1. None where they are background.
        instances: of merged masks, the number of each object instead of class 1 (see `read_instances`), for
            `fewscan.training.AddWeightMapd`.
    """

    def __init__(
        self,
        labels: Sequence[Mapping[str, Any] | str],
        merged: bool = False,
        structures: Mapping[str, str] | None = None,
        unlabelled: float | None = None,
        sparse: int | None = None,
        instances: bool = False,
    ) -> None:
        """Build the label table. Raises LabelError where the settings contradict it."""
        super().__init__()
        self.table = LabelTable.from_json(labels)
        self.merged, self.structures = merged, None if merged else structures
        self.unlabelled, self.sparse, self.instances = unlabelled, sparse, instances and merged
        if sparse not in (None, 0, 1, 2):
            raise LabelError(f"`sparse` is null, 0 (left), 1 (posterior) or 2 (superior), not {sparse!r}")
        if unlabelled is not None and self.structures is None and not merged and unlabelled in self.table.values[1:]:
            raise LabelError(f"`unlabelled` is {unlabelled:g}, which `labels` lists too; take it out of one of them")
        names = [label.name for label in self.table]
        strangers = sorted(set((self.structures or {}).values()) - set(names))
        if strangers:
            raise LabelError(
                f"`structures` names {', '.join(strangers)}, but `labels` lists {', '.join(names)}; use the same names"
            )

    def verify_suffix(self, filename: Any) -> bool:
        """Any file may be a label; what is none is refused by `get_data`."""
        return True

    def read(self, data: Any, **kwargs: Any) -> Files:
        """The file or list of files to open."""
        return _files(data)

    def get_data(self, img: Files) -> tuple[NDArray[np.integer[Any]], dict[str, Any]]:
        """Class indices (i, j, k) and MONAI's metadata. Raises LabelError or ScanError where they contradict."""
        structures = [] if self.structures is None else [self._structure(path, self.structures) for path in img.paths]
        if len(img.paths) > 1 and not structures and not self.merged:
            raise LabelError(
                f"{img.paths[0]}: {len(img.paths)} label files for one image; set `structures` to "
                "{stem of the file: name of the label}, or `merge_masks` to true"
            )
        values: NDArray[np.integer[Any]]
        if self.instances:
            numbers, grid = read_instances(img.paths, self.unlabelled)
            values = numbers if self.sparse is None else forget_empty_slices(numbers, grid, self.sparse)
        else:
            values, grid = read_label(img.paths, self.table, structures, self.merged, self.unlabelled, self.sparse)
        return values, {**_grid_meta(grid), MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel"}

    @staticmethod
    def _structure(path: Path, structures: Mapping[str, str]) -> str:
        stem = entry_stem(path)
        if stem not in structures:
            raise LabelError(
                f"{path}: `structures` ({', '.join(structures)}) does not say which label {stem!r} is; rename the "
                "file or add it"
            )
        return structures[stem]


def scan_meta(scan: Scan) -> dict[str, Any]:
    """MONAI's metadata of a scan: affine (RAS+), shape, and the JSON from which `scan_from_meta` opens it again."""
    source = {
        "files": [str(path) for path in scan.files],
        "channels": list(scan.channels),
        "name": scan.name,
        "frames": list(scan.frames),
    }
    return {**_grid_meta(scan.grid), MetaKeys.ORIGINAL_CHANNEL_DIM: 0, SCAN_KEY: json.dumps(source)}


def scan_from_meta(meta: Mapping[str, Any]) -> Scan:
    """The scan that `ScanReader` read, opened again from MONAI's metadata (also after collation of a batch of one)."""
    text = meta.get(SCAN_KEY)
    if isinstance(text, list | tuple) and len(text) == 1:
        text = text[0]
    if not isinstance(text, str):
        raise ScanError(f"the metadata holds no {SCAN_KEY}: load the image by reader='fewscan.scans.ScanReader'")
    source = json.loads(text)
    files = [Path(file) for file in source["files"]]
    if source["frames"]:
        scan = open_series(files, source["name"], source["frames"])
        return replace(scan, channels=tuple(source["channels"]))
    return open_scan(files, source["channels"], source["name"])


def _files(data: Any) -> Files:
    paths = [str(path) for path in ([data] if isinstance(data, str | Path) else data)]
    named = [re.fullmatch(r"(.+)#(\d+)", path) for path in paths]
    if all(named) and not any(Path(path).exists() for path in paths):
        pairs = [(Path(match[1]), int(match[2])) for match in named if match]
        return Files(tuple(file for file, _ in pairs), tuple(frame for _, frame in pairs))
    return Files(tuple(Path(path) for path in paths))


def _grid_meta(grid: Grid) -> dict[str, Any]:
    return {
        MetaKeys.AFFINE: np.array(grid.affine),
        MetaKeys.ORIGINAL_AFFINE: np.array(grid.affine),
        MetaKeys.SPATIAL_SHAPE: np.array(grid.shape),
        MetaKeys.SPACE: SpaceKeys.RAS,
    }
