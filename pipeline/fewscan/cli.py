"""The command line: `fewscan plan`, `preview`, `train`, `validate`, `segment`, `uncertainty`, `compare`, `demo`.

Exit codes: 0 all done; 2 some scans failed, the others are done; 1 nothing could be done, or wrong arguments; 75 a
training was asked to stop (SIGTERM, SIGUSR1, Ctrl-Break) and saved itself: the same command goes on.
"""

from __future__ import annotations

import argparse
import errno
import logging
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fewscan import __version__
from fewscan.errors import BundleError, FewscanError

EXAMPLES = """
typical use:
  fewscan plan DATA --output my_segmentation      look at images and labels, write a bundle that one can edit
  fewscan preview my_segmentation                 what augmentation does to the data, before training
  fewscan train my_segmentation --minutes 30      train it; goes on where it was interrupted
  fewscan segment SCANS --bundle my_segmentation --output masks
  fewscan train my_segmentation --add corrected   add masks that a person corrected, and train on
  fewscan uncertainty SCANS --bundle B --output maps   where a network that was trained with dropout is unsure
  fewscan validate my_segmentation                how good it is on scans that it was not trained on, by folds
  fewscan compare DATA --output report            FCN, SegNet and U-Net on the same folds: one page
  fewscan demo                                    the whole path on a real brain MRI

DATA is a folder (images/ and labels/ with equal names, x.nii.gz with x_seg.nii.gz, one folder a case, nnU-Net,
Medical Decathlon) or a MONAI datalist (.json). SCANS is a file or a folder at any depth with NIfTI, DICOM series,
NRRD, MetaImage, PNG or TIFF.
"""

MOST_OUTLIERS = 20
"""Lines about odd cases on the terminal; the page has all."""


class Parser(argparse.ArgumentParser):
    """Wrong arguments exit with 1: 2 means that some scans failed."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message."""
        self.print_usage(sys.stderr)
        self.exit(1, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = Parser(
        prog="fewscan",
        description="From a few annotated scans to masks that clinical tools open.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fewscan {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in (
        _add_plan,
        _add_preview,
        _add_train,
        _add_validate,
        _add_segment,
        _add_uncertainty,
        _add_compare,
        _add_demo,
    ):
        add(commands)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a file name that the terminal cannot show stops nothing
    _without_noise()
    options = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr)
        return 1
    except (FewscanError, OSError) as problem:
        print(f"fewscan: {in_words(problem)}", file=sys.stderr)
        return 1


def in_words(problem: Exception) -> str:
    """The message of an error; those of a full disk and of a place that cannot be written with the way out."""
    if isinstance(problem, OSError) and problem.errno == errno.EROFS and problem.filename:
        place = Path(problem.filename).parent
        return f"{place}: {problem.strerror}; choose another --output, or copy the bundle elsewhere"
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space is left where --output, the bundle or temporary files lie; make room and run the command again"
    return str(problem)


def _without_noise() -> None:
    """MONAI tries a DICOM reader for GPUs that no bundle of ours uses, and says twice that it is not installed."""
    logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register")


def _add_plan(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser("plan", help="look at images and labels, write a bundle")
    add.add_argument("data", type=Path, help="folder with images and labels, or a MONAI datalist (.json)")
    add.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the new bundle")
    _add_patterns(add)
    _add_choice(add)
    add.add_argument("--channels", type=_names, help="names of the channels of 4-D NIfTI, RGB or --images: T1,FLAIR")
    add.add_argument("--merge-masks", metavar="NAME", help="everything above 0 in a case's label files is one class")
    add.add_argument("--dims", type=int, choices=(2, 3), help="2: slice by slice, 3: whole volumes")
    add.add_argument("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help="intensities that matter")
    add.add_argument(
        "--validation", type=int, metavar="N", help="cases held out of training (default: a tenth from 10 on)"
    )
    add.add_argument(
        "--network", choices=("unet", "fcn", "segnet"), default="unet", help="fcn and segnet are baselines"
    )
    add.add_argument("--seed", type=int, default=0, help="of the choice of held-out cases and of the training")
    add.add_argument(
        "--budget", default="cpu", metavar="WHAT", help="cpu (default), titan6gb, or the memory of a GPU such as 24gb"
    )
    add.add_argument("--minutes", type=float, help="of the training, written into the bundle (default: its `epochs`)")
    add.add_argument(
        "--unlabelled", type=int, metavar="VALUE", help="in label files: voxels that nobody decided; not learned from"
    )
    add.set_defaults(command=_plan)


def _plan(options: argparse.Namespace) -> int:
    from fewscan.training.plan import plan

    result = plan(
        options.data,
        options.output,
        images=options.images,
        labels=options.labels,
        include=options.include,
        exclude=options.exclude,
        channels=options.channels,
        merge_masks=options.merge_masks,
        dims=options.dims,
        window=options.window,
        validation=options.validation,
        seed=options.seed,
        network=options.network,
        budget=options.budget,
        minutes=options.minutes,
        unlabelled=options.unlabelled,
    )
    for name, reason in result.reasons.items():
        print(f"{name}: {reason}")
    for outlier in result.outliers[:MOST_OUTLIERS]:
        print(f"look at {outlier}")
    if len(result.outliers) > MOST_OUTLIERS:
        print(f"look at ... and {len(result.outliers) - MOST_OUTLIERS} more")
    print(f"pictures of all cases: {options.output / 'docs' / 'data.html'}")
    left_out = f", {len(result.failed)} left out: the reasons stand above" if result.failed else ""
    parts = f"{len(result.training)} case(s) to train on, {len(result.validation)} held out"
    print(f"wrote {options.output} ({parts}{left_out})")
    print(f"next: fewscan train {_quoted(options.output)}")
    return 2 if result.failed else 0


def _quoted(folder: Path) -> str:
    """As any system's command line takes it."""
    return f'"{folder}"' if " " in str(folder) else str(folder)


def _add_preview(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser("preview", help="what augmentation does to a bundle's data: one page, before training")
    add.add_argument("bundle", type=Path, help="folder that `fewscan plan` wrote")
    add.add_argument("--output", type=Path, metavar="FILE", help="the page (default: BUNDLE/docs/preview.html)")
    add.add_argument("--number", type=int, default=12, metavar="N", help="augmented patches (default: 12)")
    add.set_defaults(command=_preview)


def _preview(options: argparse.Namespace) -> int:
    from fewscan.runs.preview import preview

    print(f"wrote {preview(options.bundle, options.output, options.number)}")
    return 0


def _add_train(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser(
        "train",
        help="train a bundle; goes on where it was interrupted",
        epilog="Ctrl-C, SIGTERM and SIGUSR1 end the running step and save it; exit code 75 (1 after Ctrl-C) says that "
        "the same command goes on from there. For SLURM: #SBATCH --signal=USR1@120, and requeue on 75.",
    )
    add.add_argument("bundle", type=Path, help="folder that `fewscan plan` wrote")
    add.add_argument("--minutes", type=float, help="time for the whole training (default: the bundle's `epochs`)")
    add.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU where there is one)")
    add.add_argument("--data", type=Path, help="the folder of the cases, where it has moved since the plan")
    add.add_argument(
        "--overwrite",
        action="store_true",
        help="train anew although the bundle is trained, or was begun with other settings",
    )
    add.add_argument(
        "--add", type=Path, metavar="FOLDER", help="corrected masks: add them and train on from the present model"
    )
    add.add_argument("--scans", type=Path, metavar="FOLDER", help="of the scans of --add (default: the bundle's data)")
    add.add_argument(
        "--stages",
        action="store_true",
        help="FCN-16s and -8s: train 32s first, then each from the coarser one; minutes or epochs are shared equally",
    )
    add.set_defaults(command=_train)


def _train(options: argparse.Namespace) -> int:
    from fewscan.training.run import train
    from fewscan.training.stages import refuse_begun_stages, train_stages

    if options.add is not None:
        return _add_corrections(options)
    if options.scans is not None:
        raise BundleError("--scans says where the scans of corrected masks lie; give it together with --add")
    if not options.stages:
        refuse_begun_stages(options.bundle)
    (train_stages if options.stages else train)(
        options.bundle, options.minutes, options.device, options.data, options.overwrite
    )
    print(f"next: fewscan segment SCANS --bundle {_quoted(options.bundle)} --output MASKS")
    return 0


def _add_corrections(options: argparse.Namespace) -> int:
    from fewscan.runs.correct import correct

    if options.stages:
        raise BundleError("--add trains on from the bundle's last stage; leave --stages out")
    record = correct(
        options.bundle,
        options.add,
        scans=options.scans,
        minutes=options.minutes,
        device=options.device,
        data=options.data,
        overwrite=options.overwrite,
    )
    return 2 if record["failed"] else 0


def _add_validate(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser("validate", help="how good a bundle is on scans that it was not trained on, by folds")
    add.add_argument("bundle", type=Path, help="folder that `fewscan plan` wrote; it may be trained or not")
    add.add_argument("--folds", type=int, metavar="K", help="default: 5; one for each case where there are fewer")
    add.add_argument("--minutes", type=float, help="of training for each fold (default: as long as the bundle)")
    add.add_argument("--groups", type=Path, metavar="CSV", help="columns case, group: what has to stay together")
    add.add_argument(
        "--learning-curve", action="store_true", help="train on 1, 2, 5, ... scans too: are more worth it?"
    )
    add.add_argument("--unlabelled", type=Path, metavar="FOLDER", help="scans to choose the next ones to label from")
    add.add_argument("--seed", type=int, default=0, help="of the folds")
    add.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU where there is one)")
    add.set_defaults(command=_validate)


def _validate(options: argparse.Namespace) -> int:
    from fewscan.runs.validate import validate

    result = validate(**{name: value for name, value in vars(options).items() if name != "command"})
    return 2 if result["failed"] or result["left_out"] else 0


def _add_segment(commands: argparse._SubParsersAction[Parser]) -> None:
    from fewscan.masks import FORMATS
    from fewscan.tiling import BACKENDS

    add = commands.add_parser("segment", help="masks for a folder of scans; skips what is done")
    add.add_argument("scans", type=Path, help="a file, or a folder at any depth")
    add.add_argument("--bundle", type=Path, required=True, metavar="FOLDER", help="a trained bundle")
    add.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the masks")
    add.add_argument(
        "--format", type=_names, default=[], help=f"{', '.join(FORMATS)}; several with commas (default: as the scan)"
    )
    _add_choice(add)
    add.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU where there is one)")
    add.add_argument("--dry-run", action="store_true", help="only say what would be done")
    add.add_argument("--ensemble", action="store_true", help="the models of `validate`'s folds decide together")
    add.add_argument("--max-memory", type=_gib, metavar="GIB", help="of the run; larger arrays lie in temporary files")
    add.add_argument("--max-gpu-memory", type=_gib, metavar="GIB", help="of a GPU, for tiles")
    add.add_argument(
        "--backend", choices=BACKENDS, default="auto", help="what runs the network (default: the fastest that agrees)"
    )
    add.add_argument(
        "--straighten", action="store_true", help="let the network see series of a tilted gantry upright, not sheared"
    )
    add.add_argument(
        "--resample-gaps",
        action="store_true",
        help="interpolate slices that are missing in a DICOM series; else it is refused",
    )
    add.add_argument(
        "--reproducible",
        action="store_true",
        help="DICOM-SEG: UIDs and times by content, so that a rerun gives equal files",
    )
    add.set_defaults(command=_segment)


def _segment(options: argparse.Namespace) -> int:
    from fewscan.runs.segment import segment

    report = segment(
        options.scans,
        options.bundle,
        options.output,
        formats=options.format,
        include=options.include,
        exclude=options.exclude,
        device=options.device,
        dry_run=options.dry_run,
        ensemble=options.ensemble,
        max_memory=options.max_memory,
        max_gpu_memory=options.max_gpu_memory,
        backend=options.backend,
        straighten=options.straighten,
        resample_gaps=options.resample_gaps,
        reproducible=options.reproducible,
    )
    for row in report.rows:
        if options.dry_run and row["status"] == "planned":
            print(f"{row['scan']} -> {', '.join(row['masks'])}")
        if row["status"] == "failed":
            print(f"failed: {row['reason']}")
    count = {
        status: sum(row["status"] == status for row in report.rows) for status in ("done", "done before", "failed")
    }
    if not options.dry_run:
        print(
            f"{count['done']} scan(s) segmented, {count['done before']} done before, {count['failed']} failed; "
            f"report: {options.output / 'fewscan' / 'report.json'}"
        )
    if report.interrupted:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
    return report.exit_code


def _add_uncertainty(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser("uncertainty", help="how sure a network trained with dropout is of each voxel")
    add.add_argument("scans", type=Path, help="a file, or a folder at any depth")
    add.add_argument("--bundle", type=Path, required=True, metavar="FOLDER", help="trained with network_def.dropout")
    add.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the maps, a folder of its own")
    add.add_argument("--samples", type=int, default=20, metavar="N", help="passes of the network (default: 20)")
    add.add_argument("--seed", type=int, default=0, help="of the dropout")
    add.add_argument("--score", action="store_true", help="SCANS holds labels too, as for plan: are errors uncertain?")
    _add_choice(add)
    add.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU where there is one)")
    add.set_defaults(command=_uncertainty)


def _uncertainty(options: argparse.Namespace) -> int:
    from fewscan.runs.uncertainty import mean_figures, scored, uncertainty

    report = uncertainty(
        options.scans,
        options.bundle,
        options.output,
        samples=options.samples,
        seed=options.seed,
        score=options.score,
        include=options.include,
        exclude=options.exclude,
        device=options.device,
    )
    for row in report.failed:
        print(f"failed: {row['reason']}")
    for name, value in mean_figures(report.rows).items():
        print(f"{name.replace('_', ' ')}: {value:.4g}")
    if options.score:
        print(f"figures over {scored(report.rows)} of {len(report.rows)} scans")
    done = sum(row["status"] == "done" for row in report.rows)
    left_out = sum(not item.failed for item in report.skipped)
    print(
        f"{done} scan(s) mapped, {len(report.failed)} failed, {left_out} other file(s) left out; "
        f"figures: {options.output / 'uncertainty.json'}"
    )
    if report.interrupted:
        print("interrupted; the same command begins anew", file=sys.stderr)
    return report.exit_code


def _add_compare(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser("compare", help="several networks on the same folds: one page; goes on where it stopped")
    add.add_argument("data", type=Path, help="folder with images and labels, or a MONAI datalist (.json)")
    add.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the page and the bundles")
    add.add_argument("--networks", type=_names, default=["unet", "fcn", "segnet"], help="with commas; the first is the "
                     "one that the others are tested against (default: unet,fcn,segnet)")  # fmt: skip
    add.add_argument("--minutes", type=float, help="of training for each network and fold (default: 10)")
    add.add_argument("--steps", type=int, help="of training for each network and fold, instead of minutes")
    add.add_argument("--folds", type=int, metavar="K", help="default: 5; one for each case where there are fewer")
    add.add_argument(
        "--test", action="append", default=[], metavar="PATTERN", help="cases to test on, in a single fold; repeatable"
    )
    add.add_argument("--quick", action="store_true", help="the first fold alone, 1 minute a network")
    add.add_argument("--device", help="cpu, cuda:0, ... (default: a GPU where there is one)")
    _add_patterns(add)
    _add_choice(add)
    add.add_argument("--dims", type=int, choices=(2, 3), help="2: slice by slice, 3: whole volumes")
    add.add_argument("--merge-masks", metavar="NAME", help="everything above 0 in a case's label files is one class")
    add.add_argument("--seed", type=int, default=0, help="of the folds and the trainings")
    add.set_defaults(command=_compare)


def _compare(options: argparse.Namespace) -> int:
    from fewscan.runs.compare import compare

    wanted = vars(options)
    result = compare(**{name: value for name, value in wanted.items() if name != "command"})
    return 2 if result["failed"] else 0


def _add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    add = commands.add_parser("demo", help="the whole path on a real brain MRI that a package ships")
    add.add_argument("--output", type=Path, default=Path("fewscan-demo"), help="folder (default: fewscan-demo)")
    add.add_argument("--minutes", type=float, default=2.0, help="of training (default: 2)")
    add.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    try:
        from fewscan.demo import demo
    except ModuleNotFoundError as problem:
        if problem.name != "nilearn":
            raise
        raise BundleError('the demo needs nilearn: pip install "fewscan[demo]"') from None
    return demo(options.output, options.minutes)


def _add_patterns(add: argparse.ArgumentParser) -> None:
    add.add_argument("--images", metavar="PATTERN", help="images below DATA, for example 'raw/*.tif'; with --labels")
    add.add_argument("--labels", metavar="PATTERN", help="labels below DATA, for example 'manual/*_gt.tif'")


def _add_choice(add: argparse.ArgumentParser) -> None:
    for name, what in (("include", "only these paths or file names, for example '*_T1*'"), ("exclude", "not these")):
        add.add_argument(f"--{name}", action="append", default=[], metavar="PATTERN", help=f"{what}; repeatable")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _gib(text: str) -> float:
    """A number of GiB above 0, as `4` or `4gb`."""
    try:
        number = float(text.lower().removesuffix("gib").removesuffix("gb"))
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory; give GiB above 0, such as 4 or 4gb")
    return number


if __name__ == "__main__":
    sys.exit(main())
