"""What became of each scan: for the caller, as a file for programs and as a table for people."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewscan.errors import FewscanError, first_line, ours
from fewscan.files import replace_when_complete
from fewscan.scans import Skipped


@dataclass
class Report:
    """What became of each scan. `failed` holds (name, reason); `rows` one dictionary a scan, as in the report file."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Rows of the scans that got no mask, and of files that look like scans but could not be read."""
        return [row for row in self.rows if row["status"] == "failed"]

    @property
    def exit_code(self) -> int:
        """0 all done, 2 some scans failed, 1 none was done or the run was interrupted."""
        if self.interrupted or not any(row["status"] in ("done", "done before", "planned") for row in self.rows):
            return 1
        return 2 if self.failed else 0


def failed_row(name: str, problem: Exception, output: Path) -> dict[str, Any]:
    """The row of a scan that something kept from being done, with the reason in one line."""
    if isinstance(problem, FewscanError):
        reason = str(problem)
    elif isinstance(problem, OSError):
        reason = f"{name}: {problem.strerror or problem} ({problem.filename or output})"
    else:
        reason = str(ours(problem) or f"{name}: {first_line(problem)}")
    return {"scan": name, "status": "failed", "reason": reason}


def write_report(folder: Path, report: Report, header: Mapping[str, Any]) -> None:
    """Write `report.json` and `report.csv` into a folder.

    `header` says which run it was, and first, under `validation`, how good the bundle is (`fewscan.runs.estimate`).
    Of pictures that say no voxel size, or no thickness, `ml` is empty; `label_voxels` counts the voxels of each label.
    """
    counts = Counter(row["status"] for row in report.rows)
    content = {
        **header,
        "counts": dict(counts),
        "scans": report.rows,
        "left_out": [{"path": str(i.path), "reason": i.reason} for i in report.skipped if not i.failed],
    }
    with suppress(OSError):  # the masks and receipts are what counts; a full disk was reported with the scans
        with replace_when_complete(folder / "report.json") as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        with replace_when_complete(folder / "report.csv") as temporary:
            table = _table(report.rows, str(header["validation"]))
            temporary.write_text(table, encoding="utf-8", errors="backslashreplace", newline="")


def _table(rows: Sequence[dict[str, Any]], validation: str) -> str:
    """The rows as CSV, for a spreadsheet; each says how good the bundle is, for rows are copied one by one."""
    text = io.StringIO(newline="")
    columns = csv.writer(text)
    columns.writerow(["validation", "scan", "status", "seconds", "masks", "ml", "label voxels", "reason or notes"])
    for row in rows:
        told = row.get("reason") or "; ".join(row.get("notes", []))
        ml = "; ".join(f"{name} {volume:g}" for name, volume in row.get("ml", {}).items())
        voxels = "; ".join(f"{name} {count}" for name, count in row.get("label_voxels", {}).items())
        masks = "; ".join(row.get("masks", []))
        columns.writerow([validation, row["scan"], row["status"], row.get("seconds", ""), masks, ml, voxels, told])
    return text.getvalue()
