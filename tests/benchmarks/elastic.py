"""How long elastic and affine augmentation of an image and its label takes, beside what others offer.

    OMP_NUM_THREADS=1 python tests/benchmarks/elastic.py
    OMP_NUM_THREADS=1 python tests/benchmarks/elastic.py --rounds 15 --shapes 512x512 96x96x96

CPU time of one thread, image (linear) and label (nearest), each elastic, turned up to 15 degrees and scaled by 0.85 to
1.2, on the whole of one volume; medians over rounds in which all take turns. Peers that are not installed are left
out by name. `torch grid_sample` is ours with torch's sampler in place of ours.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from fewscan.training import RandElasticAffined
from fewscan.training.elastic import RandomDeformation

RADIANS = math.radians(15)
Step = Callable[[], object]


def main() -> None:
    """Print one table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["512x512", "96x96x96", "128x128x128"])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for text in options.shapes:
        shape = tuple(int(n) for n in text.split("x"))
        times = measure(contestants(shape), options.rounds)
        print(f"\n| {text}, ms of CPU | median | lowest | x fewscan |\n|---|---|---|---|")
        for name, (lowest, median) in times.items():
            print(f"| {name} | {median:.1f} | {lowest:.1f} | {median / times['fewscan'][1]:.1f} |")


def measure(steps: dict[str, Step], rounds: int) -> dict[str, tuple[float, float]]:
    """Lowest and median CPU time of each in ms; all take turns, so that a slow minute hits all alike."""
    seen: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seen[name].append(1000 * (time.process_time() - start))
    return {name: (min(values), statistics.median(values)) for name, values in seen.items()}


def contestants(shape: tuple[int, ...]) -> dict[str, Step]:
    """By name, one augmentation of one image and label of that shape."""
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.normal(size=(1, *shape)).astype(np.float32))
    label = torch.from_numpy(random.integers(0, 4, (1, *shape)).astype(np.uint8))
    strength = {"elastic_sd": 0.03 * min(shape), "rotate_degrees": 15, "scale": (0.85, 1.2)}
    ours = RandElasticAffined(["image", "label"], ["linear", "nearest"], **strength)
    steps: dict[str, Step] = {
        "fewscan": lambda: ours({"image": image, "label": label}),
        "torch grid_sample": lambda: with_grid_sample(image, label, RandomDeformation(**strength), random),
    }
    for add in (monai, batchgenerators, torchio):
        try:
            steps |= add(image, label)
        except ImportError as problem:
            print(f"{add.__name__} is left out: {problem}")
    return steps


def with_grid_sample(image: torch.Tensor, label: torch.Tensor, strength: RandomDeformation, random: object) -> object:
    """Our coordinates, sampled by torch."""
    shape = image.shape[1:]
    along = (-1, *(1,) * len(shape))
    places = strength.draw(random, shape, [1.0] * len(shape)).coordinates(shape, [(n - 1) / 2 for n in shape])
    grid = ((2 * places + 1) / torch.tensor(shape).view(along) - 1).flip(0).movedim(0, -1)[None]
    sample = torch.nn.functional.grid_sample
    moved = sample(image[None], grid, padding_mode="reflection", align_corners=False)
    return moved, sample(label[None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False).long()


def monai(image: torch.Tensor, label: torch.Tensor) -> dict[str, Step]:
    """MONAI's elastic transforms, with about the same smoothness and strength."""
    from monai.transforms import Rand2DElasticd, Rand3DElasticd

    shape, keys = image.shape[1:], ["image", "label"]
    affine = {"rotate_range": [RADIANS] * (2 * len(shape) - 3), "scale_range": [0.15] * len(shape)}
    common = {"keys": keys, "prob": 1.0, "mode": ["bilinear", "nearest"], "padding_mode": "reflection", **affine}
    if len(shape) == 2:
        step = Rand2DElasticd(spacing=[n // 2 for n in shape], magnitude_range=(10, 15), **common)
    else:
        step = Rand3DElasticd(sigma_range=(5, 8), magnitude_range=(100, 200), **common)
    return {f"MONAI {type(step).__name__}": lambda: step({"image": image, "label": label})}


def batchgenerators(image: torch.Tensor, label: torch.Tensor) -> dict[str, Step]:
    """nnU-Net's SpatialTransform with elastic deformation; labels nearest, and as by default."""
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    def step(mode: str) -> Step:
        size = tuple(image.shape[1:])
        affine = {"p_rotation": 1, "rotation": (-RADIANS, RADIANS), "p_scaling": 1, "scaling": (0.85, 1.2)}
        bend = SpatialTransform(size, 0, random_crop=False, p_elastic_deform=1, mode_seg=mode, **affine)
        return lambda: bend(image=image, segmentation=label.short())

    return {f"batchgeneratorsv2, labels {mode}": step(mode) for mode in ("nearest", "bilinear")}


def torchio(image: torch.Tensor, label: torch.Tensor) -> dict[str, Step]:
    """TorchIO's elastic deformation alone, 3D."""
    import torchio as tio

    if image.ndim != 4:
        return {}
    bend = tio.RandomElasticDeformation()
    subject = tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=label))
    return {"TorchIO, elastic alone": lambda: bend(subject)}


if __name__ == "__main__":
    main()
