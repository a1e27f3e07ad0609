"""How long scans take to read and masks to write, beside MONAI and nibabel.

    OMP_NUM_THREADS=1 PYTHONPATH=tests python tests/benchmarks/files.py
    OMP_NUM_THREADS=1 PYTHONPATH=tests python tests/benchmarks/files.py --shape 512x512x100 --rounds 9

CPU time of one thread, files in the page cache; medians over rounds in which all take turns. It makes its own files, a
CT-like volume and a mask of twelve blobs (seeded), in a temporary folder: 1 GB at 512 x 512 x 300. Every reader goes
from the path to the array in real values and the affine, which have to be equal before anything is timed; the masks
written have to read back equal.
"""

import argparse
import gzip
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import ITKReader, PydicomReader
from monai.transforms import LoadImage, SaveImage

from fewscan.labels import LabelTable
from fewscan.masks import nifti, write_mask
from fewscan.scans import open_scan
from scans.dicom_series import write_series

AFFINE = np.array([[-0.7, 0, 0, 180], [0, -0.7, 0, 170], [0, 0, 1.25, -90], [0, 0, 0, 1]])
LABELS = LabelTable.from_json([f"organ {number}" for number in range(1, 13)])
Step = Callable[[], object]


def main() -> None:
    """Make the files, compare what all read, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="512x512x300")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    i, j, k = (int(n) for n in options.shape.split("x"))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        ct, mask = make(folder, (i, j, k))
        print(f"| {i} x {j} x {k}, ms of CPU | median | lowest | x fewscan |\n|---|---|---|---|")
        for title, steps in (
            ("DICOM series, int16, uncompressed", dicom(folder / "series", ct)),
            (".nii.gz, int16", compressed(folder / "ct.nii.gz", ct)),
            (".nii.gz, int16 with a slope", compressed(folder / "scaled.nii.gz", 0.5 * ct + 10)),
            ("mask to .nii.gz, uint8", writers(folder, mask)),
        ):
            times = measure(steps, options.rounds)
            ours = times["fewscan"][1]
            for who, (lowest, median) in times.items():
                print(f"| {title}: {who} | {median:.0f} | {lowest:.0f} | {median / ours:.1f} |", flush=True)
        print_sizes(folder, mask)


def measure(steps: dict[str, Step], rounds: int) -> dict[str, tuple[float, float]]:
    """Lowest and median CPU time of each in ms; all take turns, so that a slow minute hits all alike."""
    seen: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            result = step()
            taken = 1000 * (time.process_time() - start)
            del result
            if number:  # the first one loads libraries
                seen[name].append(taken)
    return {name: (min(values), statistics.median(values)) for name, values in seen.items()}


def make(folder: Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A series, two NIfTI files and a mask; the real values (i, j, k) in Fortran order, and the mask."""
    random = np.random.default_rng(0)
    x, y, z = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    body = x**2 / 0.7 + y**2 / 0.5 < 1
    ct, mask = np.empty(shape, np.int16, order="F"), np.zeros(shape, np.uint8, order="F")
    for plane in range(shape[2]):
        soft = 40 + 200 * np.sin(6 * x) * np.cos(5 * y) * np.sin(4 * z[..., plane : plane + 1])
        values = np.where(body, soft, -1000) + random.normal(0, 12, (*shape[:2], 1))
        ct[..., plane] = np.clip(values, -1024, 3071)[..., 0]
    for label in range(1, 13):
        centre, radius = random.uniform(-0.6, 0.6, 3), random.uniform(0.1, 0.4)
        rough = 0.02 * np.sin(30 * x) * np.cos(28 * y)
        mask[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 + rough < radius**2] = label
    write_series(folder / "series", ct + 1024, AFFINE, BitsStored=12, HighBit=11, RescaleIntercept=-1024)
    image = nibabel.Nifti1Image(ct, AFFINE)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, folder / "ct.nii.gz")
    plain = bytearray(image.to_bytes())
    plain[112:120] = np.array([0.5, 10], "<f4").tobytes()  # slope and intercept
    (folder / "scaled.nii.gz").write_bytes(gzip.compress(plain, 1))
    return ct, mask


def same(steps: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]], expected: np.ndarray) -> dict[str, Step]:
    """The steps, after all of them gave these values and the affine."""
    for name, step in steps.items():
        values, affine = step()
        assert np.array_equal(values, expected), f"{name} reads other values"
        np.testing.assert_allclose(affine, AFFINE, rtol=1e-6, atol=1e-6, err_msg=name)
    return dict(steps)


def ours(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """All checks included."""
    scan = open_scan([path])
    return scan.read()[0], scan.grid.affine


def by_monai(load: LoadImage, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """MONAI's array has the axis order of NIfTI for both formats."""
    image = load(path)
    return image.numpy(), image.affine.numpy()


def dicom(folder: Path, expected: np.ndarray) -> dict[str, Step]:
    """Readers of a series."""
    by_pydicom, by_itk = LoadImage(reader=PydicomReader()), LoadImage(reader=ITKReader())
    steps = {
        "fewscan": lambda: ours(folder),
        "MONAI, PydicomReader": lambda: by_monai(by_pydicom, folder),
        "MONAI, ITKReader": lambda: by_monai(by_itk, folder),
    }
    return same(steps, expected)


def compressed(path: Path, expected: np.ndarray) -> dict[str, Step]:
    """Readers of a .nii.gz; nibabel's array and ours are integers where the file has no slope, MONAI's is float32."""
    load = LoadImage()

    def by_nibabel() -> tuple[np.ndarray, np.ndarray]:
        image = nibabel.load(path)
        return np.asanyarray(image.dataobj), image.affine

    steps = {
        "fewscan": lambda: ours(path),
        "MONAI, LoadImage": lambda: by_monai(load, path),
        "nibabel": by_nibabel,
    }
    return same(steps, expected)


def writers(folder: Path, mask: np.ndarray) -> dict[str, Step]:
    """Writers of a mask as .nii.gz, beside the scan `ct.nii.gz`."""
    scan, stem = open_scan([folder / "ct.nii.gz"]), folder / "out" / "ct_seg"
    stem.parent.mkdir()
    tensor = LoadImage(ensure_channel_first=True)(folder / "ct.nii.gz")
    tensor.set_array(torch.from_numpy(mask[None]))
    save = SaveImage(
        stem.parent, "monai", output_dtype=np.uint8, resample=False, separate_folder=False, print_log=False
    )
    steps: dict[str, Step] = {
        "fewscan": lambda: nifti.write(folder / "out" / "fewscan.nii.gz", mask, scan, LABELS, {}),
        "fewscan, checked and read back": lambda: write_mask(mask, scan, LABELS, stem, "nifti"),
        "MONAI, SaveImage": lambda: save(tensor),
        "nibabel": lambda: nibabel.save(nibabel.Nifti1Image(mask, AFFINE), folder / "out" / "nibabel.nii.gz"),
    }
    for step in steps.values():
        step()
    written = sorted(stem.parent.glob("*.nii.gz"))
    assert len(written) == len(steps), written
    for path in written:
        image = nibabel.load(path)
        assert np.array_equal(np.asanyarray(image.dataobj), mask), f"{path.name} holds other values"
        np.testing.assert_allclose(image.affine, AFFINE, rtol=1e-6, atol=1e-5, err_msg=path.name)
    return steps


def print_sizes(folder: Path, mask: np.ndarray) -> None:
    """Of the mask's files, and of gzip -5."""
    by_gzip = len(gzip.compress(mask.tobytes(order="F"), 5, mtime=0))
    sizes = {path.name: path.stat().st_size for path in sorted((folder / "out").glob("*.nii.gz"))}
    print("bytes: " + ", ".join(f"{name} {size}" for name, size in {**sizes, "gzip -5": by_gzip}.items()))


if __name__ == "__main__":
    main()
