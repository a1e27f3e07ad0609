"""A folder of scans becomes masks: one bad scan never stops the others, and a second run does what is missing."""

from __future__ import annotations

import contextlib
import glob
import math
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fewscan.arrays import Arrays, count_values
from fewscan.errors import BundleError, FewscanError, FormatError, first_line
from fewscan.files import replace_when_complete
from fewscan.labels import LabelTable
from fewscan.masks import FORMATS, check_format, default_format, write_mask, write_overlay
from fewscan.runs.budget import GIB, Budget, share_out
from fewscan.runs.estimate import fold_models, in_words
from fewscan.runs.ledger import Ledger, check_unchanged, places
from fewscan.runs.predictor import Predictor, read_settings
from fewscan.runs.report import Report, failed_row, write_report
from fewscan.scans import Scan, Skipped, find_scans
from fewscan.scans.find import refuse_equal_names


def segment(
    source: Path,
    bundle: Path,
    output: Path,
    *,
    formats: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    device: str | None = None,
    dry_run: bool = False,
    overlays: bool = True,
    ensemble: bool = False,
    max_memory: float | None = None,
    max_gpu_memory: float | None = None,
    backend: str = "auto",
    straighten: bool = False,
    resample_gaps: bool = False,
    reproducible: bool = False,
) -> Report:
    """Segment every scan of a folder (or one scan) with a trained bundle.

    Masks are `output/<path of the scan>_seg<suffix>`, each on its scan's own grid, read back before it gets its name.
    A scan that fails is reported and the others go on. A second call skips what is done, and redoes what is missing,
    changed or broken; a file in the way is moved to `output/fewscan/replaced`, never overwritten. Masks of an earlier
    run in other formats stay where they hold the same labels, and those that somebody changed; others go.

    Args:
        source: a file or a folder at any depth.
        bundle: a trained bundle.
        output: folder of the masks, created where it is missing.
        formats: of `fewscan.masks.FORMATS`; empty follows each scan's own format.
        include, exclude: patterns on the scan's path or file name.
        device: for example "cpu" or "cuda:1"; None takes the bundle's own choice (a GPU where there is one).
        dry_run: only say what would be done.
        overlays: whether a PNG for the eye is written beside each mask.
        ensemble: let the models of the folds that `fewscan validate` trained decide together, by the mean of their
            softmaxes, instead of the bundle's own.
        max_memory: GiB that the run may take; larger arrays lie in raw temporary files in `output/fewscan`.
        max_gpu_memory: GiB of a GPU's memory for tiles.
        backend: what runs the network: "eager" (torch as it is), "openvino" (on a CPU), or "auto", OpenVINO where it
            is installed and gives torch's answer.
        straighten: let the network see sheared scans (gantry tilt) upright; masks are on the scans' own grids all
            the same.
        resample_gaps: interpolate slices that are missing in a DICOM series, which is refused else. Its DICOM-SEG holds
            the slices that are there, other masks the interpolated ones too.
        reproducible: give DICOM-SEG files UIDs and times that follow from what they hold, so that the same run gives
            the same files.

    Raises:
        FewscanError: nothing could be begun: no scans, an untrained bundle, an impossible format, colliding names, not
            enough memory for the largest scan.
    """
    settings = read_settings(bundle)
    table = LabelTable.from_json(settings["labels"])
    found = find_scans(source, settings["channels"], include, exclude, output, resample_gaps)
    report = Report(skipped=found.skipped)
    validation = in_words(bundle, found.scans, ensemble)
    if not dry_run:
        print(f"{bundle.resolve().name}: {validation}")
    _say_what_was_found(source, found.scans, found.skipped)
    wanted = {scan: tuple(formats) or (default_format(scan),) for scan in found.scans}
    unplaced = _check_formats(wanted)
    _refuse_equal_suffixes(formats)
    refuse_equal_names(found.scans)
    members = fold_models(bundle) if ensemble else ()
    weights = bundle / "models" / "model.pt"
    if not members and not weights.exists():
        raise BundleError(f"{weights}: is missing, so this bundle is not trained; run `fewscan train {bundle}` first")
    report.rows += [failed_row(scan.name, problem, output) for scan, problem in unplaced.items()]
    scans = {scan: places(scan) for scan in found.scans if scan not in unplaced}
    for item in found.skipped:
        if item.failed:
            report.rows.append({"scan": str(item.path), "status": "failed", "reason": item.reason})
    if dry_run:
        report.rows += [
            {"scan": scan.name, "status": "planned", "masks": [f"{scan.name}_seg{FORMATS[f]}" for f in wanted[scan]]}
            for scan in scans
        ]
        return report
    predictor = Predictor(bundle, device, members, backend, straighten)
    budget = share_out(max_memory, max_gpu_memory, predictor.device.type == "cuda", predictor.weight_bytes)
    predictor.allow(budget.tile_memory_gb)
    _say_what_is_planned(budget, list(scans), predictor)
    asked = {"reproducible": True} if reproducible else {}
    ledger = Ledger(output, predictor.spec, {"formats": list(formats), "overlays": overlays, **asked})
    ledger.open(source)
    empty = Arrays(output / "fewscan", budget.array)
    bar = tqdm(scans.items(), unit="scan", smoothing=0.1)
    try:
        for scan, seen in bar:
            bar.set_postfix_str(scan.name)
            report.rows.append(_one(scan, seen, wanted[scan], ledger, predictor, table, overlays, empty, reproducible))
    except KeyboardInterrupt:
        report.interrupted = True
    finally:
        bar.close()
        header = {"validation": validation, "run": ledger.run, **ledger.spec}
        write_report(output / "fewscan", report, header)
    return report


def _one(
    scan: Scan,
    seen: Sequence[str | None],
    formats: Sequence[str],
    ledger: Ledger,
    predictor: Predictor,
    table: LabelTable,
    overlays: bool,
    empty: Arrays,
    reproducible: bool,
) -> dict[str, Any]:
    """Segment one scan, whose files were `seen` at their places, or say why not; a row of the report."""
    receipt = ledger.receipt(scan)
    if receipt is not None:
        return {**_row(receipt), "status": "done before"}
    started = time.monotonic()
    stem = ledger.output / f"{scan.name}_seg"
    try:
        _sweep(stem)
        check_unchanged(scan, seen)
        array = scan.read(empty)
        values: NDArray[np.integer] = predictor(scan, array, empty).astype(table.dtype, copy=False)
        check_unchanged(scan, seen)
        outputs, former, told = _make_way(scan, stem, formats, ledger)
        notes = [*scan.notes, *predictor.notes, *told]
        made_by = {key: str(value) for key, value in predictor.spec.items()}
        for format in formats:
            outputs += write_mask(values, scan, table, stem, format, made_by, reproducible)
        if overlays:
            picture = Path(f"{stem}_overlay.png")
            try:
                with replace_when_complete(picture) as temporary:
                    write_overlay(array, values, scan.grid, table, temporary, title=scan.name)
                outputs.append(picture)
            except Exception as problem:  # a picture for the eye: the mask is complete without it
                notes.append(f"no overlay: {first_line(problem)}")
        spacing, voxel_ml = _known_size(scan)
        counts = count_values(values, int(table.values.max()) + 1)
        details = {
            "seconds": round(time.monotonic() - started, 2),
            "format": scan.format,
            "voxels": list(scan.grid.shape),
            "affine": scan.grid.affine.tolist(),
            "spacing_mm": spacing,
            "label_voxels": {label.name: int(counts[label.value]) for label in table},
            "ml": {label.name: round(float(counts[label.value]) * voxel_ml, 4) for label in table} if voxel_ml else {},
            "notes": notes,
        }
        receipt = ledger.sign(scan, seen, outputs, details)
        for path in former:
            path.unlink()
        return {**_row(receipt), "status": "done"}
    except Exception as problem:  # whatever it is, the other scans go on
        return failed_row(scan.name, problem, ledger.output)


def _make_way(
    scan: Scan, stem: Path, formats: Sequence[str], ledger: Ledger
) -> tuple[list[Path], list[Path], list[str]]:
    """Set aside what lies under the names of the new outputs, and what an earlier run with other labels wrote.

    Gives the files of an earlier run that stay, for they hold the same labels in another format. Where those lie now
    that are set aside and nobody changed: they are findable until the new ones are complete. And notes on changed ones;
    one that is not in the way stays under its name.
    """
    valid: list[Path] = []
    former: list[Path] = []
    notes: list[str] = []
    nifti, colours = Path(f"{stem}{FORMATS['nifti']}"), Path(f"{stem}.ctbl")
    names = [Path(f"{stem}{FORMATS[format]}") for format in formats] + [Path(f"{stem}_overlay.png")]
    if nifti in names:
        names.append(colours)
    same_labels = ledger.holds_same_labels(scan)
    for path in dict.fromkeys((*names, *ledger.outputs(scan))):
        ours_unchanged = ledger.is_ours(scan, path)
        if path not in names and not ours_unchanged:
            if path.exists():
                notes.append(f"{path.name} of an earlier run was changed since: it stays, beside the new mask")
            continue
        if path not in names and same_labels:
            valid.append(path)
            continue
        if path == colours and path not in names and nifti.exists():
            continue  # the mask that it colours, which receipts list before it, stays
        kept = ledger.set_aside(path)
        if kept is not None and ours_unchanged:
            former.append(kept)
        elif kept is not None:
            notes.append(f"{path.name} was there, changed since or not by fewscan: kept as {kept}")
    return valid, former, notes


def _known_size(scan: Scan) -> tuple[list[float | None], float | None]:
    """Spacing in mm and volume in ml of a voxel; None for what the file does not say: one picture has no thickness."""
    spacing = [None if axis in scan.assumed else round(mm, 5) for axis, mm in enumerate(scan.grid.spacing_mm)]
    return spacing, None if scan.assumed else scan.grid.voxel_mm3 / 1000


def _check_formats(wanted: Mapping[Scan, Sequence[str]]) -> dict[Scan, FormatError]:
    """The series that have no FrameOfReferenceUID, which DICOM-SEG asks for, with the reason: the others are done.

    Raises FormatError where a format is not for scans of this kind, or for none of them.
    """
    unplaced: dict[Scan, FormatError] = {}
    for scan, names in wanted.items():
        for name in names:
            try:
                check_format(name, scan)
            except FormatError as problem:
                if scan.format != "dicom" or scan.grid.frame_of_reference is not None:
                    raise
                unplaced[scan] = problem
    if unplaced and len(unplaced) == len(wanted):
        raise next(iter(unplaced.values()))
    return unplaced


def _refuse_equal_suffixes(formats: Sequence[str]) -> None:
    for suffix, many in Counter(FORMATS[format] for format in set(formats)).items():
        if many > 1:
            both = " and ".join(format for format in FORMATS if format in formats and FORMATS[format] == suffix)
            raise FormatError(f"{both} would be one file, with the suffix {suffix}; choose one, or two --output")


def _sweep(stem: Path) -> None:
    """Remove what a run that was killed left of this scan under temporary names."""
    for left in stem.parent.glob(".partial-*"):
        if any(file.name.startswith(stem.name) for file in left.iterdir()):
            shutil.rmtree(left, ignore_errors=True)
    for file in stem.parent.glob(f".*.{glob.escape(stem.name)}_overlay.png"):
        file.unlink(missing_ok=True)


def _row(receipt: dict[str, Any]) -> dict[str, Any]:
    keys = ("scan", "seconds", "format", "voxels", "spacing_mm", "label_voxels", "ml", "notes")
    row = {key: receipt[key] for key in keys if key in receipt}  # older receipts lack label_voxels
    return {**row, "masks": list(receipt["outputs"])}


def _say_what_is_planned(budget: Budget, scans: Sequence[Scan], predictor: Predictor) -> None:
    """What memory is for, and the tiles of the scan of the most voxels. Raises BudgetError where it does not fit."""
    if budget.words is None:
        return
    print(budget.words)
    if predictor.decide is None or predictor.reading is None:
        print("this bundle has steps of its own: its scans are held as wholes, which is not planned")
    voxels: dict[Scan, int] = {}
    for scan in scans:
        with contextlib.suppress(FewscanError):  # said when the scan's turn comes
            voxels[scan] = math.prod(predictor.shape(scan))
    if not voxels:
        return
    largest = max(voxels, key=lambda scan: voxels[scan])
    layout = predictor.layout(largest)
    if layout is not None:
        held = "" if layout.bytes is None else f", about {layout.bytes / GIB:.2f} GiB at once"
        tiles, read = len(layout.tiles), " x ".join(map(str, layout.read))
        print(f"largest scan: {largest.name}, {tiles} tile(s) of {read} voxels{held}")


def _say_what_was_found(source: Path, scans: Sequence[Scan], skipped: Sequence[Skipped]) -> None:
    failed = [item for item in skipped if item.failed]
    reasons = Counter(item.reason for item in skipped if not item.failed).most_common(4)
    other = f"{len(skipped) - len(failed)} other file(s) left out" + (
        f" ({'; '.join(f'{count} x {reason}' for reason, count in reasons)})" if reasons else ""
    )
    print(f"{source}: {len(scans)} scan(s), {len(failed)} that cannot be used, {other}")
    if not scans:
        for item in failed:
            print(f"failed: {item.reason}")
        raise FewscanError(f"{source}: holds no scan that can be used" + ("" if skipped else ": the folder is empty"))
