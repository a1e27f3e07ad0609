"""One command of fewscan in a process of its own, watched: what it printed, how long a file took, its peak memory.

python tests/damaged/watched.py RESULT.json segment SCANS --bundle B --output OUT    (or any other command line)
python tests/damaged/watched.py RESULT.json masks FOLDER SCAN     reads each file of FOLDER as a mask of SCAN
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOWEST: dict[str, float] = {}


def timed(module: Any, name: str, describe: Callable[..., str]) -> None:
    """Let `module.name` note the seconds of each call, of this process: others may keep the machine busy."""
    function = getattr(module, name)

    @functools.wraps(function)
    def with_time(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            SLOWEST[f"{name} {describe(*args)}"] = time.process_time() - started

    setattr(module, name, with_time)


def read_masks(folder: Path, scan_file: Path) -> dict[str, str]:
    """Each file as a mask of the scan: by name what became of it. Any exception that is not ours goes on."""
    from damaged.mutants import TABLE
    from fewscan.errors import FewscanError
    from fewscan.scans import open_scan
    from fewscan.scans.labels import read_values
    from fewscan.scans.mask_files import read_mask

    scan, became = open_scan([scan_file]), {}
    for path in sorted(folder.iterdir()):
        for read in (lambda path: read_mask(path, scan, TABLE), read_values):
            started = time.process_time()
            try:
                read(path)
                became[path.name] = "read"
            except FewscanError as problem:
                became[path.name] = str(problem)
            SLOWEST[f"mask {path.name}"] = max(time.process_time() - started, SLOWEST.get(f"mask {path.name}", 0))
    return became


def peak_gib() -> float | None:
    """The most memory that this process has held; None where nobody says so (not Linux)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def main() -> int:
    result, command = Path(sys.argv[1]), sys.argv[2:]
    said: dict[str, Any] = {}
    if command[0] == "masks":
        said["became"] = read_masks(Path(command[1]), Path(command[2]))
        code = 0
    else:
        from fewscan.cli import main as fewscan
        from fewscan.runs import segment
        from fewscan.scans import dicom, find

        timed(find, "open_file", lambda path, *_: path.name)
        timed(dicom, "read_planes", lambda path: "/".join(path.parts[-2:]))
        timed(segment, "_one", lambda scan, *_: scan.name)
        code = fewscan(command)
    slowest = sorted(SLOWEST.items(), key=lambda item: -item[1])[:5]
    result.write_text(json.dumps({**said, "peak_gib": peak_gib(), "slowest": slowest}))
    return code


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
