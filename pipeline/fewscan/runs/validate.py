"""`fewscan validate`: what a bundle's own settings give on cases that were not trained on, by folds of its cases."""

from __future__ import annotations

import itertools
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fewscan import __version__
from fewscan.bundle import TRAINED_CASES, cases_hash, read_json
from fewscan.errors import BundleError, FewscanError, first_line
from fewscan.labels import LabelTable
from fewscan.metrics import confusion, dice, iou
from fewscan.runs import learning_curve, postprocess
from fewscan.runs.correct import HISTORY
from fewscan.runs.estimate import in_words, length_in_words, settings_hash, write_estimate
from fewscan.runs.measure import seconds_per_step
from fewscan.runs.predictor import Predictor, read_settings
from fewscan.runs.records import (
    DATA,
    NEVER,
    duration,
    is_trained,
    kept_record,
    other_content,
    training_record,
    usual_device,
    write_json,
)
from fewscan.runs.scheme import Look, Part, Scheme, labelled_cases, look_at, part_cases
from fewscan.runs.score import (
    EVERYTHING,
    draw,
    floor_of,
    label_reading,
    mean_dice,
    refuse_trained_on,
    score_case,
)
from fewscan.runs.validate_page import write_csv, write_page
from fewscan.scans import Case, find_scans
from fewscan.scans.data_lists import list_entry, relative
from fewscan.scans.walk import MARKER
from fewscan.training.fingerprint import read_fingerprint
from fewscan.training.run import train
from fewscan.training.stages import length_trained

FOLDER = "validation"
"""Of a bundle: the fold bundles, their scores, and the report."""
MOST_UNLABELLED = 20
"""Scans that the models of the folds are asked about, evenly picked where there are more."""


def validate(
    bundle: Path,
    *,
    folds: int | None = None,
    minutes: float | None = None,
    groups: Path | None = None,
    seed: int = 0,
    device: str | None = None,
    learning_curve: bool = False,
    unlabelled: Path | None = None,
) -> dict[str, Any]:
    """Train the bundle's own settings on folds of its own labelled cases, and score what was not trained on.

    Leave-one-out under five groups (patients, or whatever has to stay together), else five folds. One single scan
    is parted into blocks along an axis, with a gap. The same call goes on where it was interrupted. `BUNDLE/validation`
    gets the bundles `fold-N`, `index.html`, `report.csv` and `report.json`; `BUNDLE/models/validation.json` the
    estimate, with which the reports of `segment` open. The bundle's own model is not needed, and not touched.

    Args:
        bundle: its folder.
        folds: None for five, and one for each group where there are fewer.
        minutes: of training for each fold; None trains as long as the bundle is trained.
        groups: a CSV with the columns `case` and `group`: what has to stay together.
        seed: of the drawing of folds; trainings have the bundle's own.
        device: for example "cpu" or "cuda:0"; None takes a GPU where there is one.
        learning_curve: train each fold on 1, 2, 5, 10, ... of its groups too.
        unlabelled: a folder of scans from which those are named that are most worth labelling; None looks in the
            bundle's data folder.

    Returns:
        What `report.json` holds.

    Raises:
        FewscanError: nothing could be begun, or a score would be on data that was trained on.
    """
    config, settings = read_json(bundle / "configs" / "train.json"), read_settings(bundle)
    if minutes is not None and minutes <= 0:
        raise BundleError(f"--minutes has to be more than 0, not {minutes:g}")
    if unlabelled is not None and not unlabelled.exists():
        raise BundleError(f"--unlabelled {unlabelled}: no such file or folder")
    if config.get("start_from"):
        raise BundleError(
            f"{bundle}: starts from the weights {config['start_from']}, which may have seen the test cases; take "
            "`start_from` out of train.json to validate"
        )
    table = LabelTable.from_json(settings["labels"])
    listed, root = labelled_cases(bundle, config)
    looks, left_out = look_at(listed, settings, table, config)
    cases = [case for case in listed if case.name in looks]
    output = bundle / FOLDER
    scheme = part_cases(cases, root, output, looks, settings, table, config, folds, groups, seed)
    budget, budget_words = _budget(bundle, config, minutes)
    device_name = device or usual_device()
    folds_by_name = [[[case.name for case in cases] for cases in (part.training, part.test)] for part in scheme.parts]
    spec: dict[str, Any] = {
        DATA: {case.name: looks[case.name].sha256 for case in cases},
        "settings_sha256": settings_hash(bundle),
    }
    spec |= {"budget": budget, "device": device_name, "folds": folds_by_name}
    run = _Run(bundle, output, config, settings, table, scheme, looks, budget, device, seed)
    jobs = [_Job(number, None, part) for number, part in enumerate(scheme.parts, start=1)]
    try:
        if learning_curve:
            jobs += run.smaller_jobs()
        _open(output, spec)
    except BundleError:
        shutil.rmtree(output / "blocks", ignore_errors=True)  # pieces of a patient's scan
        raise
    waiting = [job for job in jobs if (record := run.kept(job)) is None or record["failed"]]
    for job in waiting:
        run.prepare(job)
    print(f"{scheme.how}; each trained for {budget_words}; {len(jobs) - len(waiting)} of {len(jobs)} done before")
    print(run.forecast(waiting, device_name))
    run.warnings = [*scheme.warnings]
    if left_out:
        run.warnings.append(f"{len(left_out)} case(s) could not be used")
    header = {"scheme": scheme.name, "how": scheme.how, "blocks": scheme.blocks is not None, "budget": budget_words}
    header |= {"seed": seed, "device": device_name, "left_out": left_out, "folds": len(scheme.parts)}
    for job in waiting:
        print(f"{job}: training on {len(job.part.training)} case(s)")
        run.do(job)
        run.publish(header, jobs)
    return run.finish(header, jobs, unlabelled, root, listed)


def _budget(bundle: Path, config: Mapping[str, Any], minutes: float | None) -> tuple[dict[str, Any], str]:
    """Settings of train.json for each fold, and in words.

    The bundle's length is that of its train.json, or the minutes that its training was given. Rounds of corrections
    go on from a model and are shorter: a fold, which starts from nothing, does not follow them. Of a training in
    stages it is that of all together.
    """
    steps, own = config["epochs"] * config["steps_per_epoch"], config.get("minutes")
    trained = None if (bundle / HISTORY).exists() else length_trained(bundle / "models")
    own = own if trained is None else trained.minutes or own
    used = own if minutes is None else minutes
    budget = {key: config[key] for key in ("epochs", "steps_per_epoch")} if used is None else {"minutes": used}
    words = length_in_words(used, steps)
    if trained is not None and trained.in_stages:
        print(f"the bundle was trained in stages; each fold takes {words} in one go")
    return budget, words


def _each(budget: Mapping[str, Any]) -> str:
    return length_in_words(budget.get("minutes"), budget.get("epochs", 0) * budget.get("steps_per_epoch", 0))


def _open(output: Path, spec: Mapping[str, Any]) -> None:
    """Make the folder, or see that it is of this validation."""
    file = output / MARKER
    words = {"settings_sha256": "other settings in train.json", "folds": "other cases or folds"}
    if file.exists():
        before = read_json(file)
        for key, value in spec.items():
            if before.get(key) != value:
                shown, way_out = words.get(key, f"{key} {before.get(key)}, now it is {value}"), ""
                if key == DATA:
                    shown = other_content(before.get(key), value)
                if key == "budget":
                    begun = before.get(key) or {}
                    shown = f"trainings of {_each(begun)} each, now they are to take {_each(value)}"
                    minutes = f"with --minutes {begun['minutes']:g}" if "minutes" in begun else "without --minutes"
                    way_out = f"go on {minutes}, or "
                raise BundleError(f"{output}: holds a validation with {shown}; {way_out}remove or rename that folder")
        return
    (output / "scores").mkdir(parents=True, exist_ok=True)
    write_json(file, spec)  # by it the folder is known, and its images are never taken for scans


@dataclass(frozen=True)
class _Job:
    """One training: a fold, in full or (for the learning curve) on `size` of its groups."""

    fold: int
    size: int | None
    part: Part

    @property
    def name(self) -> str:
        return f"fold-{self.fold}" if self.size is None else f"curve-{self.size}-fold-{self.fold}"

    def __str__(self) -> str:
        return f"fold {self.fold}" if self.size is None else f"fold {self.fold} with {self.size} group(s)"


class _Run:
    """The jobs of one validation."""

    def __init__(
        self,
        bundle: Path,
        output: Path,
        config: Mapping[str, Any],
        settings: Mapping[str, Any],
        table: LabelTable,
        scheme: Scheme,
        looks: Mapping[str, Look],
        budget: Mapping[str, Any],
        device: str | None,
        seed: int,
    ) -> None:
        self.bundle, self.output, self.config, self.settings, self.table = bundle, output, config, settings, table
        self.scheme, self.looks, self.budget, self.device, self.seed = scheme, looks, budget, device, seed
        self.failed: list[dict[str, str]] = []
        self.warnings: list[str] = []

    def folder(self, job: _Job) -> Path:
        return self.output / job.name

    def record(self, job: _Job) -> Path:
        return self.output / "scores" / f"{job.name}.json"

    def kept(self, job: _Job) -> dict[str, Any] | None:
        return kept_record(self.record(job), self.folder(job))

    def smaller_jobs(self) -> list[_Job]:
        """For each fold nested choices of its training groups, drawn by the seed."""
        if self.scheme.blocks:
            raise BundleError("one scan alone gives no learning curve; leave --learning-curve out")
        jobs = []
        groups = [list(dict.fromkeys(self.scheme.groups[case.name] for case in p.training)) for p in self.scheme.parts]
        sizes = learning_curve.sizes(min(len(names) for names in groups))  # in all folds the same
        for fold, (part, names) in enumerate(zip(self.scheme.parts, groups, strict=True), start=1):
            order = np.random.default_rng((self.seed, fold)).permutation(len(names))
            for size in sizes:
                chosen = {names[number] for number in order[:size]}
                fewer = tuple(case for case in part.training if self.scheme.groups[case.name] in chosen)
                jobs.append(_Job(fold, size, Part(part.root, fewer, part.test)))
        return jobs

    def prepare(self, job: _Job) -> None:
        """The bundle of a job: the bundle's own configs, another data list."""
        folder = self.folder(job)
        if folder.exists():
            return
        temporary = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(self.bundle / "configs", temporary / "configs")
        (temporary / "models").mkdir()
        own = {
            "dataset_dir": relative(job.part.root, folder),
            "datalist": "$@bundle_root + '/configs/datalist.json'",
            "ckpt_dir": "$@bundle_root + '/models'",
            "output_dir": "$@bundle_root + '/evaluation'",
            "overwrite": False,
            "val_interval": NEVER,
            **self.budget,
        }
        own |= self.scheme.blocks or {}
        for name, changes in (("train", own), ("inference", {"keep_largest": [], "minimum_size_mm3": 0})):
            file = temporary / "configs" / f"{name}.json"
            config = read_json(file)
            write_json(file, {**config, **{key: value for key, value in changes.items() if key in config}})
        tested = "the block of it that is tested" if job.part.block else "what is under `test`"
        listing = {
            "description": f"{job} of a validation; {tested} is never looked at in training",
            "training": [list_entry(case, job.part.root) for case in job.part.training],
            "validation": [],
            "test": [list_entry(case, job.part.root) for case in job.part.test],
        }
        write_json(temporary / "configs" / "datalist.json", listing)
        temporary.replace(folder)

    def forecast(self, waiting: Sequence[_Job], device: str) -> str:
        """How long the whole will take, in words."""
        untrained = [job for job in waiting if not is_trained(self.folder(job) / "models")]
        if not untrained:
            return "nothing is left to train"
        if "minutes" in self.budget:
            seconds, least = 60 * self.budget["minutes"], ""
        else:
            steps = self.config["epochs"] * self.config["steps_per_epoch"]
            seconds, least = steps * seconds_per_step(self.folder(untrained[0]), device), "at least "
        total = duration(seconds * len(untrained))
        return f"{len(untrained)} training(s) take {least}{total} in all; reading and scoring come on top"

    def do(self, job: _Job) -> None:
        """Train and score; a fold that cannot be trained is kept in `failed`, the others go on."""
        folder = self.folder(job)
        self._refuse_training_data(job)
        try:
            if not is_trained(folder / "models"):
                train(folder, device=self.device)
            predictor = Predictor(folder, self.device)
        except FewscanError as problem:
            self.failed.append({"case": str(job), "reason": str(problem)})
            print(f"failed: {job}: {problem}")
            return
        self._refuse_training_data(job)
        reading, block = label_reading(self.config), job.part.block
        tested = (block.tested, job.part.untrained) if block else (EVERYTHING, ())
        small = min((s for case in job.part.training if (s := self._small_piece(case)) is not None), default=0.0)
        rows: list[dict[str, Any]] = []
        failed: list[dict[str, str]] = []
        for case in tqdm(job.part.test, desc="scoring", unit="case", leave=False):
            try:
                scored = score_case(predictor, self.settings["channels"], self.table, case, reading, *tested)
                row = {**asdict(scored.score), "group": self.scheme.groups[case.name], "fold": job.fold}
                if block:
                    row["counts"] = confusion(scored.answer, scored.truth, self.table.classes).tolist()
                elif job.size is None:
                    voxel_mm3 = scored.scan.grid.voxel_mm3
                    row["after"] = postprocess.dice_after(scored.answer, scored.truth, self.table, voxel_mm3, small)
                if job.size is None and all(row["dice"] < other["dice"] for other in rows):
                    draw(scored, self.table, self.record(job).with_suffix(""))
                rows.append(row)
            except Exception as problem:  # whatever it is, the other cases go on
                reason = str(problem) if isinstance(problem, FewscanError) else first_line(problem)
                print(f"failed: {case.name}: {reason}")
                failed.append({"case": case.name, "reason": reason})
        record = {"fold": job.fold, "size": job.size, "model_sha256": predictor.spec["model_sha256"]}
        record |= {**training_record(folder), "cases": rows, "failed": failed}
        write_json(self.record(job), record)

    def _small_piece(self, case: Case) -> float | None:
        return self.looks[case.name].small_piece_mm3 if case.name in self.looks else None

    def _refuse_training_data(self, job: _Job) -> None:
        """Raise BundleError where a case of the test is or was trained on, or where that cannot be told any more."""
        file, record = (self.folder(job) / name for name in ("configs/datalist.json", "models/training.json"))
        listing = read_json(file)
        refuse_trained_on(listing, job.part.root, job.part.test)
        if listing["training"] != [list_entry(case, job.part.root) for case in job.part.training]:
            raise BundleError(f"{file}: was changed since the folds were made; remove {self.output} to validate anew")
        trained = read_json(record).get("settings", {}).get(TRAINED_CASES) if record.exists() else None
        if trained not in (None, cases_hash(listing)):
            raise BundleError(
                f"{record}: was trained on other cases than {file} lists, perhaps on those of the test, so a score "
                f"would be no test; remove {self.folder(job)} to train it anew"
            )

    def publish(self, header: Mapping[str, Any], jobs: Sequence[_Job], **more: Any) -> dict[str, Any]:
        """Write page, CSV and JSON of what is done so far; returns the JSON."""
        done = [(job, record) for job in jobs if (record := self.kept(job)) is not None]
        records = [record for job, record in done if job.size is None]
        rows = [row for record in records for row in record["cases"]]
        of_size: dict[int, list[dict[str, Any]]] = {}
        for job, record in done:
            if job.size is not None:
                of_size.setdefault(job.size, []).extend(record["cases"])
        failed = [*self.failed, *(one for _, record in done for one in record["failed"])]
        result = {
            "fewscan": __version__,
            **header,
            "warnings": self.warnings,
            "planned": len(jobs),
            "done": len(done),
            "summary": self._summary(rows),
            "failed": failed,
            "cases": rows,
            "records": [{key: value for key, value in record.items() if key != "cases"} for record in records],
            "curve": [
                {"groups": size, "cases": len(own), "dice": statistics.fmean(row["dice"] for row in own)}
                for size, own in sorted(of_size.items())
                if own
            ],
            **more,
        }
        write_json(self.output / "report.json", result)
        write_csv(self.output / "report.csv", rows)
        write_page(self.output / "index.html", result, self.output / "scores")
        return result

    def finish(
        self,
        header: Mapping[str, Any],
        jobs: Sequence[_Job],
        unlabelled: Path | None,
        root: Path,
        cases: Sequence[Case],
    ) -> dict[str, Any]:
        """What needs all folds: the estimate in the bundle, post-processing, advice."""
        full = [job for job in jobs if job.size is None]
        records = [record for job in full if (record := self.kept(job)) is not None]
        rows = [row for record in records for row in record["cases"]]
        if not rows:
            raise BundleError(f"no fold of {self.bundle} could be scored; the reasons stand above")
        told = ["no post-processing is chosen by blocks of one scan"]
        if not self.scheme.blocks:
            judged = postprocess.judge(rows, self.seed)
            sizes = [s for case in cases if (s := self._small_piece(case)) is not None]
            told = [postprocess.write_accepted(self.bundle, judged, min(sizes, default=0.0))]
        lacking = len({case.name for part in self.scheme.parts for case in part.test}) - len(rows)
        if lacking:
            self.warnings.append(f"{lacking} case(s) have no score")
        told += self._curve_advice(jobs, rows)
        ranked = self._rank(records, unlabelled, root, cases)
        if ranked:
            best = ", ".join(one["scan"] for one in ranked[:5])
            told.append(f"of {len(ranked)} unlabelled scans the models of the folds disagree most on: {best}")
        fingerprint = read_fingerprint(self.bundle)
        write_estimate(
            self.bundle,
            {
                "fewscan": __version__,
                **{key: header[key] for key in ("scheme", "how", "blocks", "budget", "seed")},
                **self._summary(rows),
                "groups": len({row["group"] for row in rows}),
                "models": [record["fold"] for record in records],
                "warnings": self.warnings,
                "data": None if fingerprint is None else fingerprint.summary(),
            },
        )
        shutil.rmtree(self.output / "blocks", ignore_errors=True)  # pieces of a patient's scan
        validation = in_words(self.bundle)
        result = self.publish(header, jobs, validation=validation, advice=told, unlabelled=ranked)
        print("\n".join([validation, *told, f"open {self.output / 'index.html'}"]))
        return result

    def _summary(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return summary_of_blocks(rows, self.table) if self.scheme.blocks else summary(rows)

    def _curve_advice(self, jobs: Sequence[_Job], rows: Sequence[Mapping[str, Any]]) -> list[str]:
        points: dict[int, list[Mapping[str, Any]]] = {}
        for job in jobs:
            if job.size is not None and (record := self.kept(job)) is not None:
                points.setdefault(job.size, []).extend(record["cases"])
        if not points:
            return []
        groups = [len({self.scheme.groups[case.name] for case in part.training}) for part in self.scheme.parts]
        points[round(statistics.fmean(groups))] = list(rows)
        total = len(set(self.scheme.groups.values()))
        unit = "scans" if total == len(self.scheme.groups) else "groups"
        return [learning_curve.advice(*learning_curve.table(points), total, unit, self.seed)]

    def _rank(
        self, records: Sequence[Mapping[str, Any]], folder: Path | None, root: Path, cases: Sequence[Case]
    ) -> list[dict[str, Any]]:
        """Unlabelled scans, those first on which the models of the folds disagree most: mean of 1 - Dice over pairs."""
        own = {file.resolve() for case in cases for file in (*case.image, *case.label)}
        found = find_scans(root if folder is None else folder, self.settings["channels"], output=self.bundle)
        scans = [scan for scan in found.scans if not own & {file.resolve() for file in scan.files}
                 and not any(file.parent.resolve() in own for file in scan.files)]  # fmt: skip
        if len(records) < 2 or not scans:
            return []
        step = math.ceil(len(scans) / MOST_UNLABELLED)
        print(f"segmenting {len(scans[::step])} of {len(scans)} unlabelled scan(s) with {len(records)} models")
        predictors = [Predictor(self.output / f"fold-{record['fold']}", self.device) for record in records]
        ranked = []
        for scan in tqdm(scans[::step], desc="unlabelled scans", unit="scan", leave=False):
            try:
                masks = [self.table.to_classes(predictor(scan), scan.name) for predictor in predictors]
            except Exception as problem:  # whatever it is, the other scans go on
                print(f"failed: {scan.name}: {first_line(problem)}")
                continue
            ranked.append({"scan": scan.name, "disagreement": disagreement(masks, self.table.classes)})
        return sorted(ranked, key=lambda one: -one["disagreement"])


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, spread and worst of Dice over cases, and the means of the other scores; empty without any case."""
    if not rows:
        return {}
    each = [row["dice"] for row in rows]
    hd95 = [row["hd95_mm"] for row in rows if row["hd95_mm"] is not None]
    worst = min(rows, key=lambda row: row["dice"])
    return {
        "cases": len(rows),
        "dice": {
            "mean": statistics.fmean(each),
            "sd": statistics.stdev(each) if len(each) > 1 else None,
            "worst": worst["dice"],
            "worst_case": worst["case"],
        },
        "iou": statistics.fmean(row["iou"] for row in rows),
        "hd95_mm": {"mean": statistics.fmean(hd95), "worst": max(hd95), "cases": len(hd95)} if hd95 else None,
        "missed": sum(row["missed"] for row in rows),
        "floor": statistics.fmean(row["floor"] for row in rows),
    }


def summary_of_blocks(rows: Sequence[Mapping[str, Any]], table: LabelTable) -> dict[str, Any]:
    """That of one scan, each of whose blocks was segmented by another network: of the `counts` of all blocks together.

    Dice and IoU are means over the labels that were tested, of which `labels` has the Dice of each; `worst` is a block.
    """
    if not rows:
        return {}
    counts = np.sum([row["counts"] for row in rows], axis=0)
    voxels, of_label, overlap = counts.sum(axis=1), dice(counts), iou(counts)
    tested = [(n, label.name) for n, label in enumerate(table, start=1) if voxels[n]]
    labels = [{"label": name, "dice": float(of_label[n]), "voxels": int(voxels[n])} for n, name in tested]
    mean, mean_iou = (statistics.fmean(one[n] for n, _ in tested) if tested else 0.0 for one in (of_label, overlap))
    blocks = summary(rows)
    dice_of_all = {**blocks["dice"], "mean": mean, "sd": None}
    return {**blocks, "dice": dice_of_all, "iou": mean_iou, "floor": floor_of(voxels), "labels": labels}


def disagreement(masks: Sequence[NDArray[Any]], classes: int) -> float:
    """Mean over all pairs of masks of 1 - mean Dice; 0 where all say the same."""
    pairs = itertools.combinations(masks, 2)
    return statistics.fmean(1 - mean_dice(confusion(one, other, classes)) for one, other in pairs)
