"""How sure a bundle is of each voxel, by dropout sampling, and whether it is unsure where it is wrong."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from fewscan.bundle import read_json
from fewscan.errors import BundleError, FewscanError, LabelError
from fewscan.files import replace_when_complete
from fewscan.labels import LabelTable
from fewscan.masks.maps import write_map
from fewscan.masks.overlay import write_side_by_side
from fewscan.metrics.detection import detection_auc, share_found
from fewscan.network_grid import to_scan_grid
from fewscan.networks.sampling import dropout_layers, dropout_on, mean_and_variance
from fewscan.runs.predictor import Predictor, read_settings
from fewscan.runs.report import Report, failed_row
from fewscan.runs.score import label_reading
from fewscan.scans import Case, Scan, Skipped, find_cases, find_scans, match_grid, open_scan, read_label
from fewscan.scans.find import MARKER, refuse_equal_names
from fewscan.training.material import name_structures
from fewscan.transforms import scan_grid

FIGURES = (
    "wrong", "auc", "errors_in_top_5_percent", "errors_in_top_10_percent", "variance_wrong", "variance_right",
)  # fmt: skip
_WRONG = LabelTable.from_json([{"name": "wrong", "colour": [255, 230, 0]}])


def uncertainty(
    source: Path,
    bundle: Path,
    output: Path,
    *,
    samples: int = 20,
    seed: int = 0,
    score: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    device: str | None = None,
) -> Report:
    """Maps of mean probability and variance for every scan of a folder, from a network that was trained with dropout.

    For each scan, on its own grid in float32 (`fewscan.masks.maps`):

    - `<scan>_mean`: the mean over the samples of the probability (softmax, 0 to 1) of the label; with several labels
      one map each, `<scan>_mean_<value>`;
    - `<scan>_variance`: the variance over the samples, averaged over the classes as Kendall et al. 2017 do (0 to 0.25);
    - `<scan>_uncertainty.png`: one slice of the image with the answer (the class of the largest mean), where it is
      wrong if there is a label, and the variance, brighter where it is larger.

    `uncertainty.json` and `.csv` in `output` hold a row a scan, with these figures where there is a label: the share of
    wrong voxels, the area under the ROC of the variance as a sign of a wrong voxel (0.5 is chance), the share of all
    errors that lies among the 5 and 10 % most uncertain voxels, and the mean variance of wrong and of right voxels.
    The JSON has their means over the `scored` scans too, and the files that were `left_out`.

    All samples are cut into tiles alike, by the bundle's inferer. Each tile (in 2D each slice) draws its own dropout,
    so a single sample can have a seam where tiles meet; the limits of mean and variance have none, since each tile sees
    the whole surroundings of what it decides. Networks whose patches are blended (those with instance norm, and those
    of others) are averaged where patches overlap, and so vary less there. Mean and variance are taken on the network's
    grid and brought to the scan's linearly; where that is no mere reordering, the variance is an upper bound of that
    of the interpolated samples.

    Args:
        source: a file or a folder at any depth.
        bundle: a trained bundle whose `network_def` has `dropout` above 0, in training too.
        output: a new folder, or one that this command made: the files that its uncertainty.json lists are removed
            first, those of scans that take no part now too.
        samples: passes of the network, at least 2.
        seed: of the dropout, the same for every scan: a scan's maps do not depend on the other scans.
        score: take the labelled scans alone, and say whether errors are where the variance is. `source` then holds
            images and labels, paired by the rules of `plan` (`fewscan.scans.find_cases`), or is a MONAI datalist.
        include, exclude: patterns on the scan's path or file name.
        device: for example "cpu" or "cuda:1"; None takes the bundle's own choice.

    Raises:
        FewscanError: nothing could be begun: no scans, an untrained bundle, no dropout, no label that fits.
    """
    if samples < 2:
        raise FewscanError(f"--samples has to be at least 2, not {samples}: one sample has no variance")
    settings = read_settings(bundle)
    table = LabelTable.from_json(settings["labels"])
    case_of: dict[Scan, Case] = {}
    training = bundle / "configs" / "train.json"
    reading = label_reading(read_json(training) if training.exists() else {})
    if score:
        case_of, skipped, failed = _find_labelled(source, reading["merged"], settings, include, exclude)
        scans = list(case_of)
    else:
        found = find_scans(source, settings["channels"], include, exclude, output)
        scans, skipped = list(found.scans), list(found.skipped)
        failed = [item.reason for item in skipped if item.failed]
    if not scans:
        raise FewscanError(failed[0] if failed else f"{source}: holds no scan that can be used")
    refuse_equal_names(scans)
    predictor = Predictor(bundle, device)
    _refuse_without_dropout(predictor, bundle)
    spec = {**predictor.spec, "samples": samples, "dropout_seed": seed}
    _open(output, spec)
    _remove_former(output)
    run = _Run(predictor, table, output, samples, seed, reading)
    report = Report(skipped=skipped)
    report.rows += [{"scan": "", "status": "failed", "reason": reason} for reason in failed]
    bar = tqdm(total=len(scans) * samples, unit="pass", smoothing=0.1)
    try:
        for number, scan in enumerate(scans, start=1):
            bar.set_postfix_str(scan.name)
            report.rows.append(_one(scan, case_of.get(scan), run, bar.update))
            bar.update(number * samples - bar.n)  # a scan that failed leaves passes out
            _publish(output, spec, report)  # a run that is killed leaves no maps that the next one does not know
    except KeyboardInterrupt:
        report.interrupted = True
    finally:
        bar.close()
        _publish(output, spec, report)
    return report


def mean_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each figure over the scans that have it."""
    held = {name: [row[name] for row in rows if row.get(name) is not None] for name in FIGURES}
    return {name: float(np.mean(values)) for name, values in held.items() if values}


def scored(rows: Sequence[Mapping[str, Any]]) -> int:
    """How many scans have figures."""
    return sum("wrong" in row for row in rows)


@dataclass(frozen=True)
class _Run:
    """What is the same for every scan; the arguments of `uncertainty`."""

    predictor: Predictor
    table: LabelTable
    output: Path
    samples: int
    seed: int
    reading: Mapping[str, Any]
    """How labels are read, see `fewscan.runs.score.label_reading`."""


def _one(scan: Scan, case: Case | None, run: _Run, after_each: Callable[[], object]) -> dict[str, Any]:
    """The maps and figures of one scan, or why there are none; a row of the report."""
    try:
        return {"scan": scan.name, "status": "done", **_mapped(scan, case, run, after_each)}
    except Exception as problem:  # whatever it is, the other scans go on
        return failed_row(scan.name, problem, run.output)


def _mapped(scan: Scan, case: Case | None, run: _Run, after_each: Callable[[], object]) -> dict[str, Any]:
    """Write the files of one scan, all or none; their names and its figures."""
    truth = None
    if case is not None:  # first, for it fails sooner than the sampling
        truth, grid = read_label(case.label, run.table, case.structures, **run.reading)
        truth = match_grid(truth, grid, scan.grid, f"{case.label[0]} (label of {case.image[0]})")
    mean, variance = _sampled(scan, run, after_each)
    answer = mean.argmax(axis=0)
    stem, several = f"{run.output / scan.name}", len(run.table) > 1
    maps = {f"{stem}_mean_{row.value}" if several else f"{stem}_mean": mean[n] for n, row in enumerate(run.table, 1)}
    files: list[Path] = []
    try:
        for name, values in {**maps, f"{stem}_variance": variance}.items():
            files.append(write_map(values, scan, Path(name)))
        files.append(Path(f"{stem}_uncertainty.png"))
        _draw(scan, answer, truth, variance, run.table, files[-1])
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise
    told = {
        "files": [file.relative_to(run.output).as_posix() for file in files],
        "mean_variance": float(variance.mean(dtype=np.float64)),
    }
    if truth is None or not (truth >= 0).any():
        return told
    return {**told, **_figures(variance[truth >= 0], (answer != truth)[truth >= 0])}


def _sampled(
    scan: Scan, run: _Run, after_each: Callable[[], object]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """On the scan's grid: mean probabilities (classes, i, j, k), and the variance averaged over classes (i, j, k)."""
    with torch.inference_mode(), dropout_on(run.predictor.network, run.seed):
        image = run.predictor.prepare(scan)["image"]

        def draw() -> torch.Tensor:
            probabilities = torch.softmax(run.predictor.logits(image).as_subclass(torch.Tensor).float(), dim=0)
            after_each()
            return probabilities

        mean, variance = mean_and_variance(draw() for _ in range(run.samples))
        maps = torch.cat([mean, variance.mean(dim=0, keepdim=True)])
    if len(mean) != run.table.classes:
        raise LabelError(
            f"the network answers {len(mean)} classes, but the label table lists {len(run.table)} labels and the "
            "background"
        )
    back = to_scan_grid(maps, scan_grid(image).affine, scan.grid)
    return back[:-1], back[-1]


def _figures(variance: NDArray[Any], wrong: NDArray[np.bool_]) -> dict[str, float | None]:
    """Whether the variance tells wrong voxels from right ones; None for what has no meaning without any."""
    values = (
        float(wrong.mean()),
        detection_auc(variance, wrong),
        share_found(variance, wrong, 0.05),
        share_found(variance, wrong, 0.10),
        float(variance[wrong].mean(dtype=np.float64)) if wrong.any() else None,
        float(variance[~wrong].mean(dtype=np.float64)) if not wrong.all() else None,
    )
    return dict(zip(FIGURES, values, strict=True))


def _draw(
    scan: Scan,
    answer: NDArray[Any],
    truth: NDArray[Any] | None,
    variance: NDArray[Any],
    table: LabelTable,
    picture: Path,
) -> None:
    image, values = scan.read(), table.to_values(answer)
    nothing = np.zeros(scan.grid.shape, dtype=np.uint8)
    panels = [("answer", image, values, table)]
    title = scan.name
    if truth is not None:
        wrong = ((answer != truth) & (truth >= 0)).astype(np.uint8)
        panels.append(("errors", image, wrong, _WRONG))
        title += f": {100 * wrong.sum() / max(1, (truth >= 0).sum()):.1f} % of the voxels are wrong"
    panels.append(("variance", variance[None], nothing, table))
    with replace_when_complete(picture) as temporary:
        write_side_by_side(panels, scan.grid, temporary, title, cuts_by=values)


def _find_labelled(
    source: Path, merged: bool, settings: Mapping[str, Any], include: Sequence[str], exclude: Sequence[str]
) -> tuple[dict[Scan, Case], list[Skipped], list[str]]:
    """The labelled scans, paired by the rules of `plan`; what was skipped; and why some cases cannot be used."""
    name = next(iter(LabelTable.from_json(settings["labels"]))).name if merged else None
    found = find_cases(source, include=include, exclude=exclude, merge_masks=name)
    cases, _, failed = name_structures(found)
    reasons = [reason for _, reason in failed]
    labelled: dict[Scan, Case] = {}
    for case in cases.cases:
        try:
            labelled[open_scan(case.image, settings["channels"], case.name)] = case
        except FewscanError as problem:
            reasons.append(str(problem))
    return labelled, list(found.skipped), reasons


def _refuse_without_dropout(predictor: Predictor, bundle: Path) -> None:
    if not dropout_layers(predictor.network):
        raise BundleError(
            f"{bundle / 'configs' / 'inference.json'}: the network has no dropout, so all samples would be equal; set "
            "network_def.dropout (0.5 in the papers) in train.json and inference.json, and train the bundle with it "
            "(`fewscan train --overwrite`)"
        )


def _open(output: Path, spec: Mapping[str, Any]) -> None:
    """Make the folder, or see that it is one of this command: files of others are never replaced."""
    marker = output / MARKER
    if marker.exists():
        if "dropout_seed" not in read_json(marker):
            raise BundleError(f"{output}: holds other results of fewscan; choose another --output")
    elif output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BundleError(f"{output}: is not empty and not from this command; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    _write(marker, json.dumps(spec, indent=2) + "\n")  # by it the folder is known, and its maps are never scans


def _remove_former(output: Path) -> None:
    """Remove the files that the folder's own uncertainty.json lists, so that none seems to be of this run.

    A path that leaves the folder, by `..` or by a link, is not ours.
    """
    record = output / "uncertainty.json"
    rows = read_json(record).get("scans", []) if record.exists() else []
    for path in [output / name for row in rows for name in row.get("files", [])]:
        if path.parent.resolve().is_relative_to(output.resolve()) and (path.is_file() or path.is_symlink()):
            path.unlink()


def _publish(output: Path, spec: Mapping[str, Any], report: Report) -> None:
    """`uncertainty.json` for programs, `uncertainty.csv` for a spreadsheet."""
    rows = report.rows
    content = {
        **spec,
        "scored": scored(rows),
        "means": mean_figures(rows),
        "scans": rows,
        "left_out": [{"path": str(item.path), "reason": item.reason} for item in report.skipped if not item.failed],
    }
    _write(output / "uncertainty.json", json.dumps(content, indent=2) + "\n")
    text = io.StringIO(newline="")
    columns = csv.DictWriter(text, ("scan", "status", "mean_variance", *FIGURES, "reason"), extrasaction="ignore")
    columns.writeheader()
    columns.writerows(rows)
    _write(output / "uncertainty.csv", text.getvalue())


def _write(path: Path, text: str) -> None:
    with replace_when_complete(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
