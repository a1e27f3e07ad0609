"""What was done: one receipt a scan, written last. A scan without a sound receipt is done again."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewscan.errors import FewscanError, ScanError
from fewscan.files import replace_when_complete, sha256
from fewscan.scans import Scan
from fewscan.scans.find import MARKER


class Ledger:
    """The receipts of an output folder, below `fewscan/receipts`.

    A receipt names the run's hash, the scan's grid, the input files and the outputs with their hashes.
    It counts only while all of that still holds: never "the output file exists".

    Args:
        output: the folder of the masks.
        spec: everything that decides the labels (weights, config, versions, device); hashed into the receipts.
        files: what decides which files hold them, and how; hashed likewise.
    """

    def __init__(self, output: Path, spec: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        self.output, self.spec = output, {**spec, **files}
        decides = {key: value for key, value in spec.items() if key != "bundle"}  # a folder's name decides nothing
        self.labels, self.run = _hash(decides), _hash({**decides, **files})

    def open(self, source: Path) -> None:
        """Create the folder and mark it as output of fewscan, so that its masks are never taken for scans.

        A folder that also holds the scans (`source`) is not marked: it would be left out as a whole. There the names
        of the masks tell them apart. Raises FewscanError where the folder cannot be written to.
        """
        holds_scans = self.output.resolve() in (source.resolve(), *source.resolve().parents)
        try:
            (self.output / "fewscan").mkdir(parents=True, exist_ok=True)
            if not holds_scans:
                with replace_when_complete(self.output / MARKER) as temporary:
                    temporary.write_text(json.dumps({"run": self.run, **self.spec}, indent=2) + "\n", encoding="utf-8")
        except OSError as problem:
            raise FewscanError(
                f"{self.output}: nothing can be written there ({problem.strerror}); choose another --output"
            ) from problem

    def receipt(self, scan: Scan) -> dict[str, Any] | None:
        """The scan's receipt where it still holds for this run, else None."""
        try:
            entry = self._read(scan)
            sound = (
                entry["run"] == self.run
                and _same_scan(entry, scan)
                and all(sha256(self.output / name) == digest for name, digest in entry["outputs"].items())
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # missing, cut short or from somewhere else: not done
        return entry if sound else None

    def _read(self, scan: Scan) -> dict[str, Any]:
        entry: dict[str, Any] = json.loads(self._path(scan).read_text(encoding="utf-8"))
        return entry

    def outputs(self, scan: Scan) -> list[Path]:
        """The files beside the scan's mask that its last receipt lists, whatever became of them since."""
        place = (self.output / scan.name).parent
        try:
            return [path for name in self._read(scan)["outputs"] if (path := self.output / name).parent == place]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def holds_same_labels(self, scan: Scan) -> bool:
        """Whether the files of the last receipt hold the labels that this run gives: only their format may differ."""
        try:
            entry = self._read(scan)
            return bool(entry["labels"] == self.labels and _same_scan(entry, scan))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def is_ours(self, scan: Scan, path: Path) -> bool:
        """Whether a file is as an earlier run wrote it."""
        try:
            return bool(self._read(scan)["outputs"][path.relative_to(self.output).as_posix()] == sha256(path))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def sign(
        self, scan: Scan, seen: Sequence[str | None], outputs: Sequence[Path], details: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write the receipt of a scan whose outputs have been read back; returns it.

        `seen` are the `places` of its files when it was found; `details` have its grid, as "voxels" and "affine".
        Raises ScanError where the files changed since then, and FewscanError where another run, which would have other
        outputs, began in this folder.
        """
        inputs = _signature(scan)
        check_unchanged(scan, seen)
        self._check_alone()
        entry = {
            "scan": scan.name,
            "run": self.run,
            "labels": self.labels,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "inputs": inputs,
            "outputs": {path.relative_to(self.output).as_posix(): sha256(path) for path in outputs},
            **details,
        }
        self._path(scan).parent.mkdir(parents=True, exist_ok=True)
        with replace_when_complete(self._path(scan)) as temporary:
            temporary.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
        return entry

    def _check_alone(self) -> None:
        try:
            other = json.loads((self.output / MARKER).read_text(encoding="utf-8"))["run"] != self.run
        except (OSError, ValueError, KeyError, TypeError):
            other = False  # there is none where the folder holds the scans too
        if other:
            raise FewscanError(
                f"{self.output}: another run, by another bundle or with other options, began to write there; give each "
                f"run an --output of its own, and run this one again"
            )

    def set_aside(self, path: Path) -> Path | None:
        """Move a file that stands in the way of an output to `fewscan/replaced`: it may hold a person's corrections."""
        try:
            if not path.exists():
                return None
        except OSError:  # a name that cannot be: the writer will say so
            return None
        below = path.relative_to(self.output)
        for number in itertools.count(1):
            kept = self.output / "fewscan" / "replaced" / str(number) / below
            if not kept.exists():
                break
        kept.parent.mkdir(parents=True, exist_ok=True)
        path.rename(kept)
        return kept

    def _path(self, scan: Scan) -> Path:
        return self.output / "fewscan" / "receipts" / f"{scan.name}.json"


def places(scan: Scan) -> list[str | None]:
    """Of each file once, where, how large and since when it lies there, as a hash: folders may be named after people.

    None of a file that is gone.
    """
    found: list[str | None] = []
    for file in _inputs(scan):
        try:
            found.append(_place(file))
        except OSError:
            found.append(None)
    return found


def check_unchanged(scan: Scan, seen: Sequence[str | None]) -> None:
    """Raise ScanError where the files of a scan are no longer those that were `seen` at their `places`."""
    if places(scan) != list(seen):
        raise ScanError(f"{scan.name}: its files changed while it was segmented; run the same command again")


def _hash(spec: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def _signature(scan: Scan) -> list[dict[str, Any]]:
    """Of each file once: name, place (see `places`), sha256."""
    return [{"name": file.name, "place": _place(file), "sha256": sha256(file)} for file in _inputs(scan)]


def _same_scan(entry: Mapping[str, Any], scan: Scan) -> bool:
    """Whether a receipt is of this grid, which depends on how files are read too, and of these files."""
    grid = entry["voxels"] == list(scan.grid.shape) and entry["affine"] == scan.grid.affine.tolist()
    return grid and _same_inputs(entry["inputs"], scan)


def _same_inputs(signature: Sequence[Mapping[str, Any]], scan: Scan) -> bool:
    """Whether these are the files that were read: untouched at their old place, or of the same bytes elsewhere."""
    files = _inputs(scan)
    return len(files) == len(signature) and all(
        entry["name"] == file.name and (entry["place"] == _place(file) or entry["sha256"] == sha256(file))
        for entry, file in zip(signature, files, strict=True)
    )


def _inputs(scan: Scan) -> list[Path]:
    """Each file that voxels come from, once."""
    return list(dict.fromkeys((*scan.files, *scan.companions)))


def _place(file: Path) -> str:
    stat = file.stat()
    place = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(place.encode(errors="surrogateescape")).hexdigest()  # a name may hold bytes that are no text
