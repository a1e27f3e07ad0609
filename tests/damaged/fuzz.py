"""Damaged files by the thousand through `segment`, `plan` and the reading of masks; by hand.

python tests/damaged/fuzz.py --count 2000 --seed 0        (`test_damaged.py` runs the first few)

Of each folder of damaged files has to be true: the command ends by itself with a report, no scan takes over 10 s,
memory stays below 2 GB, nothing outside the output is created, changed or read, and valid files beside get their masks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pydicom

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from damaged.mutants import SHAPE, TABLE, dicom_files, image, labels, mask_files, mutant, own_series, valid_files  # noqa: E402
from runs.tiny import expected, read, save_nifti, threshold_bundle  # noqa: E402
from scans.dicom_series import write_series  # noqa: E402
from scans.volumes import AFFINES  # noqa: E402

MOST_SECONDS = 10.0
MOST_GIB = 2.0
SECRET = 999
"""The intensity of every voxel in the file that detached headers point to: no mask of it may exist."""


def watched(root: Path, *command: str | Path, seconds: float) -> tuple[int, str, dict]:
    """Exit code, what was printed, and what `watched.py` says of a command that ran in `root`/cwd."""
    (root / "cwd").mkdir(exist_ok=True)
    (root / "tmp").mkdir(exist_ok=True)
    result = root / "result.json"
    result.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, HERE / "watched.py", result, *command],
        cwd=root / "cwd",
        env={**os.environ, "TMPDIR": str(root / "tmp"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )
    told = done.stdout + done.stderr
    assert result.exists(), f"exit code {done.returncode}, no result:\n{told[-3000:]}"
    return done.returncode, told, json.loads(result.read_text())


def check_run(code: int, told: str, said: dict, codes: tuple[int, ...]) -> None:
    """The command ended by itself, in time and memory."""
    assert code in codes and "Traceback" not in told, f"exit code {code}\n{told[-3000:]}"
    for name, seconds in said["slowest"][:1]:
        assert seconds < MOST_SECONDS, f"{name}: {seconds:.1f} s"
    assert said["peak_gib"] is None or said["peak_gib"] < MOST_GIB, f"{said['peak_gib']:.2f} GiB; {said['slowest']}"


def snapshot(root: Path, but: tuple[str, ...]) -> dict[str, str]:
    """Hash of each file below `root`, without the folders `but`."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in but
    }


def secret(root: Path) -> None:
    (root / "secret.raw").write_bytes(np.full(SHAPE, SECRET, np.int16).tobytes())


def hold_segment(root: Path, seeds: range) -> Counter:
    """Segment a folder of these mutants and some valid scans; what became of the mutants."""
    scans, masks = root / "scans", root / "masks"
    valid = {**valid_files(root / "valid", image()), **dicom_files(root / "valid" / "dicom", image())}
    valid |= {name: data for name, data in mask_files(root / "valid" / "masks").items() if name == "mask.dcm"}
    good = np.random.default_rng(5).integers(0, 1000, SHAPE).astype(np.int16)
    for name in ("good_1.nii.gz", "good_2.nii", "z/good_3.nii.gz"):
        save_nifti(scans / name, good, AFFINES["oblique"])
    write_series(scans / "good_ct", good, AFFINES["lps"])
    secret(root)
    made = {}
    for seed in seeds:
        what = mutant(seed, own_series(valid, seed), root)
        folder = scans / what.name if what.name.endswith(".dcm") else scans
        folder.mkdir(exist_ok=True)
        (folder / what.name).write_bytes(what.data)
        made[what.name] = what.what
    threshold_bundle(root / "bundle")
    before = snapshot(root, ("masks", "cwd", "tmp"))
    code, told, said = watched(
        root, "segment", scans, "--bundle", root / "bundle", "--output", masks, "--device", "cpu", "--backend", "eager",
        seconds=60 + MOST_SECONDS * len(seeds),
    )  # fmt: skip
    check_run(code, told, said, (0, 2))
    after = snapshot(root, ("masks", "cwd", "tmp"))
    after.pop("result.json")
    assert after == before, f"changed: {sorted(set(after.items()) ^ set(before.items()))[:5]}"
    assert not list((root / "cwd").iterdir()) and not list((root / "tmp").iterdir())
    for name in ("good_1", "good_2", "z/good_3"):
        np.testing.assert_array_equal(read(masks / f"{name}_seg.nii.gz"), expected(good))
    seg = pydicom.dcmread(masks / "good_ct_seg.dcm")
    assert int(np.count_nonzero(seg.pixel_array)) == int((expected(good) > 0).sum())
    report = json.loads((masks / "fewscan" / "report.json").read_text())
    status = {row["scan"]: row["status"] for row in report["scans"]}
    left_out = {row["path"] for row in report["left_out"]}
    became: Counter = Counter()
    for name, what in made.items():
        stem = re.sub(r"(\.nii)?\.\w+$", "", name)
        found = [value for key, value in status.items() if stem in key] or [
            "left out" for path in left_out if name in path
        ]
        assert found, f"{name} ({what}) is nowhere in the report"
        became[found[0]] += 1
        if "secret" in what:
            assert found[0] == "failed", f"{name} ({what}) was {found[0]}"
    assert not list(masks.rglob("*secret*"))
    return _with_costs(became, said)


def hold_masks(root: Path, seeds: range) -> Counter:
    """Read these mutants of masks as masks of a scan."""
    valid = {**valid_files(root / "valid", labels()), **mask_files(root / "valid" / "masks")}
    scan = save_nifti(root / "scan.nii", image(), AFFINES["lps"])
    secret(root)
    (root / "damaged").mkdir()
    made = {}
    for seed in seeds:
        what = mutant(seed, valid, root)
        (root / "damaged" / what.name).write_bytes(what.data)
        made[what.name] = what.what
    before = snapshot(root, ("cwd", "tmp"))
    code, told, said = watched(root, "masks", root / "damaged", scan, seconds=60 + MOST_SECONDS * len(seeds))
    check_run(code, told, said, (0,))
    after = snapshot(root, ("cwd", "tmp"))
    after.pop("result.json")
    assert after == before
    assert set(said["became"]) == set(made)
    for name, reason in said["became"].items():
        assert reason == "read" or name in reason, f"{name} ({made[name]}) is not named in: {reason}"
        assert reason != "read" or "secret" not in made[name], f"{name} ({made[name]}) was read"
    became = Counter("read" if reason == "read" else "failed" for reason in said["became"].values())
    return _with_costs(became, said)


def hold_plan(root: Path, seeds: range) -> Counter:
    """Plan from a folder in which these mutants are labels, beside valid pairs."""
    data = root / "data"
    valid = {name: content for name, content in valid_files(root / "valid", labels()).items()
             if name.endswith((".nii", ".nii.gz", ".nrrd"))}  # fmt: skip
    for name in ("good_1", "good_2"):
        save_nifti(data / "images" / f"{name}.nii.gz", image(), AFFINES["lps"])
        save_nifti(data / "labels" / f"{name}.nii.gz", labels(), AFFINES["lps"])
    secret(root)
    made = {}
    for seed in seeds:
        what = mutant(seed, valid, root)
        stem = re.sub(r"(\.nii)?\.\w+$", "", what.name)
        nibabel.save(nibabel.Nifti1Image(image(), AFFINES["lps"]), data / "images" / f"{stem}.nii.gz")
        (data / "labels" / what.name).write_bytes(what.data)
        made[stem] = what.what
    names = {"background": 0, **{label.name: label.value for label in TABLE}}
    (data / "dataset.json").write_text(json.dumps({"labels": names, "channel_names": {"0": "CT"}}))
    before = snapshot(root, ("bundle", "cwd", "tmp"))
    code, told, said = watched(
        root, "plan", data, "--output", root / "bundle", seconds=60 + MOST_SECONDS * len(seeds)
    )  # fmt: skip
    check_run(code, told, said, (0, 2))
    after = snapshot(root, ("bundle", "cwd", "tmp"))
    after.pop("result.json")
    assert after == before
    datalist = json.loads((root / "bundle" / "configs" / "datalist.json").read_text())
    used = {Path(case["image"]).name.removesuffix(".nii.gz") for case in datalist["training"] + datalist["validation"]}
    assert {"good_1", "good_2"} <= used
    for stem, what in made.items():
        assert stem not in used or "secret" not in what, f"{stem} ({what}) was used"
        assert stem in used or stem in told, f"{stem} ({what}) is nowhere"
    return _with_costs(Counter({"read": len(used) - 2, "failed": len(made) + 2 - len(used)}), said)


def _with_costs(became: Counter, said: dict) -> Counter:
    print(f"   slowest: {said['slowest'][:2]}")
    became["peak MiB"] = int((said["peak_gib"] or 0) * 1024)
    became["slowest ms"] = int(max((seconds for _, seconds in said["slowest"]), default=0) * 1000)
    return became


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("segment", "masks", "plan"))
    options = parser.parse_args()
    share = {"segment": 0.7, "masks": 0.2, "plan": 0.1}
    wrong, total, first = 0, Counter(), options.seed
    for name, hold in (("segment", hold_segment), ("masks", hold_masks), ("plan", hold_plan)):
        last = first + round(options.count * (share[name] if options.only is None else options.only == name))
        for start in range(first, last, 50):
            seeds = range(start, min(start + 50, last))
            with tempfile.TemporaryDirectory() as folder:
                try:
                    became = hold(Path(folder), seeds)
                except (AssertionError, subprocess.TimeoutExpired) as problem:
                    wrong += 1
                    print(f"{name} {seeds.start} to {seeds.stop - 1}: WRONG: {str(problem)[-2500:]}", flush=True)
                else:
                    print(f"{name} {seeds.start} to {seeds.stop - 1}: {dict(became)}", flush=True)
                    for key, value in became.items():
                        most = key in ("peak MiB", "slowest ms")
                        total[key] = max(total[key], value) if most else total[key] + value
        first = last
    print(f"all: {dict(total)}, {wrong} batches wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
