"""Prediction against MONAI's sliding window and nnU-Net's: time, memory, and what exact tiles do to the scores.

    python tests/benchmarks/inference.py engine
    python tests/benchmarks/inference.py end-to-end --nnunet NNUNET_ENVIRONMENT/bin/python
    python tests/benchmarks/inference.py end-to-end --device cuda:0 --shape 512 512 300 --widths 32 64 128 256
    python tests/benchmarks/inference.py memory --depths 250 1000 --more "--max-memory 3.5"
    python tests/benchmarks/inference.py accuracy --bundle BUNDLE --data DATA

- `engine`: tiling, blending and argmax without a network: one that answers stored numbers, whose own time is taken off;
  "monai" is MONAI's own grid, "blend" ours. Then a planned U-Net: all in all against the time within the network.
- `end-to-end`: file in, mask out, each way in a fresh process: `fewscan segment` and `sliding_window.py`, the same
  network, patch, threads, one patch at a time (on a GPU four, both in float16). Without --bundle one is planned and
  trained on synthetic volumes. On a GPU also the share of time that its network computes, and float32's labels.
- `memory`: `fewscan segment` of an uncompressed scan with a U-Net of three poolings (halo 48) and 100 classes: exact
  tiles, patches of 96^3 that are blended, and exact tiles on a network's grid of 1.5 times the spacing. MONAI's
  memory is computed: 4 x classes + 9 bytes a voxel, as measured on small volumes.
- `accuracy`: Dice of each case in exact tiles and in blended patches; the difference with a bootstrap interval.

Ratios within one run are what counts; nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import torch
from accuracy import read
from scipy.ndimage import gaussian_filter

SHAPE, ROI = (192, 256, 256), (96, 96, 96)
FEWSCAN = [sys.executable, "-m", "fewscan.cli"]
GIB = 2**30
MEMORY_WAYS = ("exact", "blend", "resampled")


def main() -> None:
    """Run the sections that are asked for."""
    sections = {"engine": engine, "end-to-end": end_to_end, "memory": memory, "accuracy": accuracy}
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="+", choices=sections)
    parser.add_argument("--threads", type=int, help="default: 1 for the engine, all cores elsewhere")
    parser.add_argument("--rounds", type=int, default=5, help="of the engine")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE, help="voxels of engine's and end-to-end's volume")
    parser.add_argument("--bundle", type=Path, help="a trained 3D bundle, for end-to-end and accuracy")
    parser.add_argument("--minutes", type=float, default=1, help="of training, where the bundle is planned here")
    parser.add_argument("--patch", type=int, help="of that bundle, along each axis; default: as planned")
    parser.add_argument("--widths", type=int, nargs="+", help="of its network's levels; default: as planned")
    parser.add_argument("--device", default="cpu", help="of end-to-end")
    parser.add_argument("--backends", nargs="+", default=["eager", "openvino"], help="of `segment --backend`")
    parser.add_argument("--nnunet", metavar="PYTHON", help="of an environment with nnunetv2")
    parser.add_argument("--depths", type=int, nargs="+", default=[250, 1000], help="slices of memory's volumes")
    parser.add_argument("--side", type=int, default=512, help="pixels along both sides of those slices")
    parser.add_argument("--memory-gb", type=float, default=2.5, help="GiB that memory's tiles may take")
    parser.add_argument("--ways", nargs="+", choices=MEMORY_WAYS, default=MEMORY_WAYS, help="of memory")
    parser.add_argument("--limit", type=float, help="minutes after which a run of memory is stopped; its peak counts")
    parser.add_argument("--more", type=shlex.split, default=[], help="arguments for every `fewscan segment`")
    parser.add_argument("--data", type=Path, help="images/ and labels/, for accuracy")
    parser.add_argument("--include", action="append", default=[], help="of those cases")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sections:
            print(f"\n## {name}")
            work = Path(folder) / name
            work.mkdir()
            sections[name](options, work)


# ---- the engine alone


class Stored(torch.nn.Module):
    """Answers stored numbers, whatever it is asked; `seconds` is what its own copying took."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stored, self.seconds = torch.randn(1, classes, *ROI, generator=torch.manual_seed(0)), 0.0
        self.answer = self.stored.clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        started = time.process_time()
        self.answer.copy_(self.stored)  # MONAI weighs the answer in place
        self.seconds += time.process_time() - started
        return self.answer


def engine(options: argparse.Namespace, work: Path) -> None:
    """CPU seconds without the network's, and whether labels are equal."""
    from monai.inferers import SlidingWindowInferer

    cores = torch.get_num_threads()
    torch.set_num_threads(options.threads or 1)
    volume = torch.rand(1, 1, *options.shape, generator=torch.manual_seed(1))

    def monai(network: torch.nn.Module) -> np.ndarray:
        return SlidingWindowInferer(ROI, 1, 0.5, mode="gaussian")(volume, network).argmax(dim=1)[0].numpy()

    print(f"{torch.get_num_threads()} thread(s), {by(options.shape)}, patches of {by(ROI)} at overlap 0.5\n")
    print("| classes | | CPU s | MONAI / it | labels unlike MONAI's |\n" + "|---" * 5 + "|")
    for classes in (3, 20):
        network = Stored(classes)
        ways: dict[str, Callable[[], np.ndarray]] = {"MONAI": lambda network=network: monai(network)}
        for mode in ("monai", "blend"):
            ways[mode] = lambda network=network, mode=mode: labels_of(volume[0], network, mode=mode, patch=ROI)
        seconds, labels = in_turns(ways, options.rounds, lambda network=network: network.seconds)
        for way, took in seconds.items():
            unlike = int((labels["MONAI"] != labels[way]).sum())
            print(f"| {classes} | {way} | {took:.3f} | {seconds['MONAI'] / took:.1f} | {unlike} |", flush=True)

    from fewscan.networks import UNet

    torch.manual_seed(0)
    network = UNet(3, 1, 3, (16, 32, 64, 128)).eval()
    part = volume[0, :, :128, :160, :160]
    print(f"\n| U-Net, {by(part.shape[1:])} | all, s | network, s | all / network |\n|---|---|---|---|")
    for name, settings in {
        "exact, one pass": {"mode": "exact"},
        "exact, tiles of 128": {"mode": "exact", "tile": (128,) * 3},
        "blend": {"mode": "blend", "patch": ROI},
    }.items():
        within = Within(network)
        started = time.process_time()
        labels_of(part, within, **settings)
        took = time.process_time() - started
        print(f"| {name} | {took:.2f} | {within.seconds:.2f} | {took / within.seconds:.3f} |")
    torch.set_num_threads(cores)


class Within(torch.nn.Module):
    """A network that counts its seconds, and looks as far as it did."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0
        for name in ("halo", "stride", "surplus", "padding", "is_local"):
            setattr(self, name, getattr(network, name))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        started = time.process_time()
        answer = self.network(x)
        self.seconds += time.process_time() - started
        return answer


def labels_of(volume: torch.Tensor, network: torch.nn.Module, **settings: Any) -> np.ndarray:
    """The classes of a volume (C, *spatial), tile by tile."""
    from fewscan.decision import largest
    from fewscan.tiling import OverlapTileInferer

    labels = np.empty(tuple(volume.shape[1:]), np.uint8)
    with torch.inference_mode():
        for piece in OverlapTileInferer(3, **settings).pieces(volume, network, network, slack=False):
            own = tuple(slice(0, along.stop - along.start) for along in piece.core)
            labels[piece.core] = largest(piece.logits[:, *own]).numpy()
    return labels


def in_turns(
    ways: dict[str, Callable[[], np.ndarray]], rounds: int, other: Callable[[], float]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Median seconds of each without what `other` counts, all taking turns, and what they answered."""
    seen: dict[str, list[float]] = {name: [] for name in ways}
    answers = {name: way() for name, way in ways.items()}
    for _ in range(rounds):
        for name, way in ways.items():
            before, started = other(), time.process_time()
            with torch.inference_mode():
                way()
            seen[name].append(time.process_time() - started - (other() - before))
    return {name: statistics.median(values) for name, values in seen.items()}, answers


# ---- file in, mask out


def end_to_end(options: argparse.Namespace, work: Path) -> None:
    """A table of all ways, and the gains of tiles and of backends."""
    from fewscan.bundle import parsed
    from fewscan.runs.predictor import read_settings

    bundle = options.bundle or planned(work, options)
    settings = read_settings(bundle)
    spacing, patch = settings["spacing"] or [1.0] * 3, settings["patch"]
    scan = work / "scans" / "scan.nii.gz"
    scan.parent.mkdir()
    write_case(scan, None, tuple(options.shape), 100, spacing)
    with parsed(bundle / "configs" / "inference.json", "cpu") as built:
        network = built("network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    torch.save(network.eval().state_dict(), work / "network.pt")
    threads = options.threads or torch.get_num_threads()
    rows: dict[str, Ran] = {}

    for peer, python in (("monai", sys.executable), ("nnunet", options.nnunet)):
        if python is None:
            continue
        channels, classes = len(settings["channels"]), len(settings["labels"]) + 1
        options_of = {k: v for k, v in settings["network_def"].items() if k in ("widths", "norm", "strides", "dropout")}
        job = {"scan": str(scan), "mask": str(work / f"{peer}.nii.gz"), "network": str(work / "network.pt")}
        job |= {"device": options.device, "patch": patch, "window": settings["intensity_window"], "classes": classes}
        job["unet"] = {"spatial_dims": 3, "in_channels": channels, "classes": classes, **options_of}
        (work / f"{peer}.json").write_text(json.dumps(job))
        command = [python, str(Path(__file__).with_name("sliding_window.py")), peer, str(work / f"{peer}.json")]
        rows[peer] = ran = fresh(command, threads)
        took = json.loads(ran.told.strip().split("\n")[-1])
        ran.alone, ran.voxels, ran.mask = took["seconds"], took["voxels"], next(work.glob(f"{peer}*.nii.gz"))

    on_cpu = options.device == "cpu"
    for mode in ("blend", "exact"):
        for backend in options.backends if on_cpu else ["eager"]:
            name = f"{mode}, {backend}"
            own = with_inferer(bundle, work / "bundles" / name.replace(", ", "_"), mode=mode)
            output = work / name.replace(", ", "_")
            more = [*options.more, "--backend", backend]
            rows[name] = ran = segment(scan.parent, own, output, more, threads, device=options.device)
            ran.voxels = evaluated(own, tuple(options.shape), network)
    show(rows, threads, options.shape, patch)
    if not on_cpu:
        within_gpu(own, scan, options.device)


def within_gpu(bundle: Path, file: Path, device: str) -> None:
    """Seconds in which the network computes, of a prediction in a process that has done one before; and its labels."""
    from fewscan.runs.predictor import Predictor, read_settings
    from fewscan.scans import open_scan

    predictor, spent = Predictor(bundle, device), []
    ask, scan = predictor.ask, open_scan([file], read_settings(bundle)["channels"])
    array, labels = scan.read(), {}
    for precision in (torch.float16, torch.bfloat16, torch.float32):

        def timed(tiles: torch.Tensor, precision: torch.dtype = precision) -> torch.Tensor:
            torch.cuda.synchronize()
            started = time.perf_counter()
            with torch.autocast("cuda", precision, enabled=precision != torch.float32):
                answer = ask(tiles)
            torch.cuda.synchronize()
            spent.append(time.perf_counter() - started)
            return answer

        predictor.ask = timed
        with torch.backends.cudnn.flags(allow_tf32=False):
            for _ in range(2):
                spent.clear()
                torch.cuda.reset_peak_memory_stats()
                started = time.perf_counter()
                labels[precision] = predictor(scan, array)
                whole = time.perf_counter() - started
        rate = array.size / sum(spent) / 1e6
        print(
            f"{str(precision)[6:]}: {len(spent)} tile(s), network {sum(spent):.3f} s ({rate:.0f} Mvoxel/s) of "
            f"{whole:.3f} s from intensities to labels, {sum(spent) / whole:.0%}; "
            f"{torch.cuda.max_memory_allocated() / GIB:.1f} GiB of the GPU's memory"
        )
    for precision in (torch.float16, torch.bfloat16):
        unlike = float((labels[precision] != labels[torch.float32]).mean())
        print(f"labels of {str(precision)[6:]} unlike float32's: {unlike:.1e}")


def show(rows: dict[str, Ran], threads: int, shape: tuple[int, ...], patch: list[int]) -> None:
    """The table of `end_to_end`."""
    print(f"{threads} thread(s), {by(shape)}, patch {by(patch)}\n")
    print("| | process, s | scan alone, s | MONAI / it | peak, GiB | Mvoxels evaluated | labels unlike MONAI's | "
          "unlike exact, eager |\n|" + "---|" * 8)  # fmt: skip
    masks = {name: read(ran.mask) for name, ran in rows.items()}
    first = rows["monai"]
    for name, ran in rows.items():
        unlike = [(masks[name] != masks[other]).mean() for other in ("monai", "exact, eager")]
        print(
            f"| {name} | {ran.seconds:.1f} | {ran.alone:.1f} | {first.seconds / ran.seconds:.1f}, alone "
            f"{first.alone / ran.alone:.1f} | {ran.peak / GIB:.2f} | {ran.voxels / 1e6:.1f} | "
            + " | ".join(f"{share:.2e}" for share in unlike)
            + " |"
        )
    exact = {name: ran for name, ran in rows.items() if name.startswith("exact")}
    print(f"\nlabels: {np.bincount(masks['monai'].ravel()).tolist()}")
    if "exact, eager" in exact:
        print(f"tiles: {first.alone / exact['exact, eager'].alone:.1f} x (MONAI / exact, eager)")
        for name, ran in exact.items():
            if name != "exact, eager":
                print(f"backend: {exact['exact, eager'].alone / ran.alone:.1f} x (exact, eager / {name})")


def planned(work: Path, options: argparse.Namespace) -> Path:
    """A bundle of synthetic volumes, planned and trained as a user would."""
    for number in range(4):
        write_case(
            *(work / "data" / kind / f"case{number}.nii.gz" for kind in ("images", "labels")), (112,) * 3, number
        )
    bundle = work / "bundle"
    fresh([*FEWSCAN, "plan", str(work / "data"), "--output", str(bundle), "--validation", "0"], 1)
    for name in ("train", "inference"):
        file = bundle / "configs" / f"{name}.json"
        if options.patch is not None:
            change(file, patch=[options.patch] * 3)
        if options.widths is not None:
            change(file, network_def=json.loads(file.read_text())["network_def"] | {"widths": options.widths})
    fresh([*FEWSCAN, "train", str(bundle), "--minutes", str(options.minutes)], options.threads)
    return bundle


def write_case(image: Path, label: Path | None, shape: tuple[int, ...], seed: int, spacing=(1.0, 1.0, 1.0)) -> None:
    """A smooth field under noise; its label says between which thresholds the field is. Axes as a network has them."""
    random = np.random.default_rng(seed)
    block = tuple(min(n, 128) for n in shape)  # of large volumes a periodic one
    field = gaussian_filter(random.normal(size=block).astype(np.float32), 6, mode="wrap")
    field /= field.std()
    noise = 100 * random.normal(size=block).astype(np.float32)
    field, noise = (
        np.tile(part, [-(-n // m) for n, m in zip(shape, block, strict=True)])[tuple(map(slice, shape))]
        for part in (field, noise)
    )
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    noisy = (200 * field + noise).astype(np.int16)
    for file, values in ((image, noisy), (label, np.digitize(field, (0.8, 1.6)).astype(np.uint8))):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, affine), file)


def evaluated(bundle: Path, shape: tuple[int, ...], network: torch.nn.Module) -> int:
    """Voxels that the network is given for a volume of that shape on its own grid."""
    from fewscan.bundle import parsed

    with parsed(bundle / "configs" / "inference.json", "cpu") as built:
        return built("inferer").layout(torch.empty(1, *shape, device="meta"), network, slack=False).evaluated


# ---- memory


def memory(options: argparse.Namespace, work: Path) -> None:
    """Peak memory of `segment` for two depths, three ways."""
    from fewscan.bundle import write_bundle
    from fewscan.networks import UNet

    labels, widths = [f"structure {n}" for n in range(1, 100)], [4, 8, 8, 8]
    settings = {"spatial_dims": 3, "channels": [{"name": "image"}], "labels": labels, "patch": [96] * 3}
    settings |= {"spacing": [1.0] * 3, "slice_axis": None, "intensity_window": [0, 1000], "seed": 0}
    bundle = work / "bundle"
    write_bundle(bundle, settings | {"network_def": {"widths": widths}}, {"training": [], "validation": []}, {})
    torch.manual_seed(0)
    network = UNet(3, 1, 100, widths)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    threads = options.threads or torch.get_num_threads()
    idle = fresh([sys.executable, "-c", "import fewscan.runs.segment, fewscan.tiling.inferer, fewscan.transforms"], 1)
    ways = {
        "exact": with_inferer(bundle, work / "exact", mode="exact", memory_gb=options.memory_gb),
        "blend": with_inferer(bundle, work / "blend", mode="blend", memory_gb=64),  # whatever it takes
        "resampled": with_inferer(bundle, work / "resampled", mode="exact", memory_gb=options.memory_gb),
    }
    for name in ("train", "inference"):
        change(work / "resampled" / "configs" / f"{name}.json", spacing=[1.5] * 3)
    side, block = options.side, np.random.default_rng(0).integers(0, 1000, (64, 64, 64)).astype(np.int16)
    print(f"halo {network.halo}, 100 classes, {threads} thread(s); imports alone {idle.own / GIB:.2f} GiB\n")
    print(
        "| volume | | minutes | peak, GiB | beyond imports and the mapped file | MONAI, computed |\n" + "|---" * 6 + "|"
    )
    for depth in options.depths:
        scan = work / f"scan{depth}" / "scan.nii"
        scan.parent.mkdir()
        tiled = np.tile(block, [-(-n // 64) for n in (side, side, depth)])[:side, :side, :depth]
        nibabel.save(nibabel.Nifti1Image(tiled, np.diag([-1.0, -1.0, 1.0, 1.0])), scan)
        for name in options.ways:
            own = ways[name]
            output = work / f"masks {depth} {name}"
            try:
                ran = segment(scan.parent, own, output, options.more, threads, options.limit)
            except ProcessError as problem:  # refused, or out of memory: the others are measured all the same
                print(f"| {side} x {side} x {depth} | {name} | failed | | | {str(problem).strip().splitlines()[-1]} |")
                continue
            minutes = f"{ran.seconds / 60:.1f}" + ("" if ran.ended else ", stopped")
            computed = tiled.size * (4 * 100 + 9) / GIB
            print(f"| {side} x {side} x {depth} | {name} | {minutes} | {ran.peak / GIB:.2f} | "
                  f"{(ran.own - idle.own) / GIB:.2f} | {computed:.1f} |", flush=True)  # fmt: skip
            shutil.rmtree(output, ignore_errors=True)
        scan.unlink()


# ---- accuracy


def accuracy(options: argparse.Namespace, work: Path) -> None:
    """Exact minus blended: Dice of all labels of a case, its mean over cases, and a 95 % bootstrap interval."""
    threads = options.threads or torch.get_num_threads()
    more = [*options.more, *(text for pattern in options.include for text in ("--include", pattern))]
    dice: dict[str, dict[str, list[float]]] = {}
    for mode in ("exact", "blend"):
        bundle = with_inferer(options.bundle, work / "bundles" / mode, mode=mode)
        ran = segment(options.data / "images", bundle, work / mode, more, threads)
        print(f"{mode}: {ran.alone:.1f} s", flush=True)
        dice[mode] = {}
        for mask in sorted((work / mode).rglob("*_seg.nii.gz")):
            one, other = read(mask), read(options.data / "labels" / mask.name.replace("_seg.", "."))
            values = np.unique(other)[1:]
            dice[mode][mask.name] = [
                2 * ((one == v) & (other == v)).sum() / ((one == v).sum() + (other == v).sum()) for v in values
            ]
    means = {mode: np.array([np.mean(of) for of in cases.values()]) for mode, cases in dice.items()}
    gains = means["exact"] - means["blend"]
    drawn = np.random.default_rng(0).choice(gains, (10000, len(gains))).mean(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    print(f"{len(gains)} cases; mean Dice exact {means['exact'].mean():.4f}, blend {means['blend'].mean():.4f}")
    print(f"exact - blend {gains.mean():+.5f} (95 % {low:+.5f} to {high:+.5f}), worst case {gains.min():+.4f}")


# ---- fresh processes


@dataclass
class Ran:
    """What a process took."""

    seconds: float
    peak: int
    """Bytes resident at most, pages of mapped files among them."""
    own: int
    """The same without those pages, where the system tells."""
    told: str
    ended: bool
    alone: float = 0.0
    """Seconds from the file to the mask, without imports."""
    voxels: int = 0
    mask: Path = Path()


class ProcessError(Exception):
    """A process failed; what it printed."""


def fresh(command: list[str], threads: int | None, limit: float | None = None) -> Ran:
    """Run a process, and watch its memory; stop it after `limit` minutes."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    if command[0] != sys.executable:  # another environment: nothing of ours but fewscan's networks
        import fewscan

        environment["PYTHONPATH"] = str(Path(fewscan.__file__).parents[1])
    started, peak, own, ended = time.perf_counter(), 0, 0, True
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, env=environment, stdout=told, stderr=subprocess.STDOUT)
        while process.poll() is None:
            now = resident(process.pid)
            peak, own = max(peak, now[0]), max(own, now[1])
            if limit is not None and time.perf_counter() - started > 60 * limit:
                process.terminate()
                ended = False
            time.sleep(0.05)
        told.seek(0)
        text = told.read().decode(errors="replace")
    if process.returncode and ended:
        raise ProcessError(f"{shlex.join(command)} ended with {process.returncode}\n{text}")
    return Ran(time.perf_counter() - started, peak, own, text, ended)


def resident(process: int) -> tuple[int, int]:
    """Bytes (at most so far, without pages of files now) of a process; (0, 0) where it has just ended."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
        own = sum(int(lines[key].split()[0]) for key in ("RssAnon", "RssShmem"))
        return int(lines["VmHWM"].split()[0]) * 1024, own * 1024
    except (OSError, KeyError):  # no Linux, or ended
        try:
            now = psutil.Process(process).memory_info()
        except psutil.NoSuchProcess:
            return 0, 0
        return getattr(now, "peak_wset", now.rss), now.rss


def segment(
    scans: Path,
    bundle: Path,
    output: Path,
    more: list[str],
    threads: int,
    limit: float | None = None,
    device: str = "cpu",
) -> Ran:
    """`fewscan segment` of a folder."""
    command = [*FEWSCAN, "segment", str(scans), "--bundle", str(bundle), "--output", str(output), "--device", device]
    ran = fresh([*command, *more], threads, limit)
    if ran.ended:
        rows = json.loads((output / "fewscan" / "report.json").read_text())["scans"]
        ran.alone, ran.mask = sum(row["seconds"] for row in rows), next(output.rglob("*_seg.nii*"))
    return ran


def with_inferer(bundle: Path, copy: Path, **settings: Any) -> Path:
    """A copy of a bundle whose inferer has other settings."""
    shutil.copytree(bundle, copy)
    file = copy / "configs" / "inference.json"
    change(file, inferer=json.loads(file.read_text())["inferer"] | settings)
    return copy


def change(file: Path, **settings: Any) -> None:
    """Other settings in a config."""
    file.write_text(json.dumps(json.loads(file.read_text()) | settings, indent=4))


def by(shape: Any) -> str:
    """192 x 256 x 256."""
    return " x ".join(map(str, shape))


if __name__ == "__main__":
    main()
