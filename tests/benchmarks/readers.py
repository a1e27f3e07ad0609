"""Which kinds of DICOM series fewscan and others read right, refuse, or read wrong without a word.

    OMP_NUM_THREADS=1 PYTHONPATH=tests python tests/benchmarks/readers.py
    OMP_NUM_THREADS=1 PYTHONPATH=tests python tests/benchmarks/readers.py --kind gantry_tilt --why

Each reader gets the folder of each kind of `tests/scans/dicom_kinds.py` (all files side by side) in the way its
documentation shows first, and what it returns is compared with the closed form that the files were made from, voxel by
voxel in the patient. dicom2nifti is tried where it is installed. A warning printed by C++ counts as silence: a program
cannot see it.
"""

import argparse
import contextlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import SimpleITK
from monai.data import ITKReader, PydicomReader

from fewscan.errors import ScanError
from fewscan.scans import find_scans
from scans.dicom_kinds import KINDS, LPS_TO_RAS, Volume, difference

Found = list[tuple[np.ndarray, np.ndarray]]
"""Arrays with their affines, voxel -> mm, LPS."""
NOT_COMPARED = ("colour", "a_modality_look_up_table", "padding", "a_single_slice_without_thickness")
"""What others read as what it is, no volume of intensities; and where the truth is a choice of fewscan's."""


def main() -> None:
    """Print a row for each kind, and the sums."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="this one alone; repeatable")
    parser.add_argument("--why", action="store_true", help="say below each row what was wrong or why it was refused")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    sums = {name: Counter() for name in READERS}
    print(f"| kind of series | {' | '.join(READERS)} |\n|---|{'---|' * len(READERS)}")
    for name in options.kind or [name for name in KINDS if name not in NOT_COMPARED]:
        verdicts = {}
        with tempfile.TemporaryDirectory() as folder:
            truths = KINDS[name].make(Path(folder) / "case")
            flat = flattened(Path(folder) / "case", Path(folder) / "flat")
            for reader, read in READERS.items():
                verdicts[reader] = verdict(truths, read, flat)
                sums[reader][verdicts[reader][0]] += 1
        print(f"| {name.replace('_', ' ')} | {' | '.join(word for word, _ in verdicts.values())} |", flush=True)
        for reader, (_, why) in verdicts.items():
            if options.why and why:
                print(f"    {reader}: {why}")
    print(f"\n| | {' | '.join(READERS)} |\n|---|{'---|' * len(READERS)}")
    for word in WORDS:
        if any(counts[word] for counts in sums.values()):
            print(f"| {word} | {' | '.join(str(counts[word]) for counts in sums.values())} |")


WORDS = ("right", "refused", "part", "guessed", "**wrong**", "not installed")
"""part: right, but not all volumes, in silence; guessed: a volume of files that contradict each other or lack some."""


def verdict(truths: list[Volume], read: Callable[[Path], Found], folder: Path) -> tuple[str, str]:
    """One of WORDS, and the reason."""
    try:
        with silence():
            found = read(folder)
    except ModuleNotFoundError as problem:
        return "not installed", str(problem)
    except Exception as problem:
        return "refused", f"{type(problem).__name__}: {str(problem).strip()[:300]}"
    if not found:
        return "refused", "no volume"
    if not truths:
        return "guessed", "a volume of " + ", ".join("x".join(map(str, array.shape)) for array, _ in found)
    problems = []
    for array, affine in found:
        fits = [difference(truth, array, affine) for truth in truths]
        if all(fits):
            problems.append(min(fits, key=len))
    if problems:
        return "**wrong**", "; ".join(problems)
    return ("right", "") if len(found) == len(truths) else ("part", f"{len(found)} of {len(truths)} volumes")


def flattened(folder: Path, target: Path) -> Path:
    """All files in one folder: not every reader looks into the folders below."""
    target.mkdir()
    for path in sorted(folder.rglob("*")):
        if not path.is_dir():  # links into nowhere too
            below = path.relative_to(folder)
            name = below.name if len(below.parts) == 1 else "_".join(below.parts)
            shutil.copy(path, target / name, follow_symlinks=path.exists())
    return target


@contextlib.contextmanager
def silence():
    """Without what Python and C++ print."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def fewscan(folder: Path) -> Found:
    """`find_scans`; what failed is a refusal where it is all there is."""
    scans, skipped = find_scans(folder)
    if not scans:
        raise ScanError("; ".join(item.reason for item in skipped if item.failed))
    return [(scan.read()[0], LPS_TO_RAS @ scan.grid.affine) for scan in scans]


def simpleitk(folder: Path) -> Found:
    """`ImageSeriesReader` on every series that GDCM finds."""
    found = []
    for series in SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
        image = SimpleITK.ReadImage(files if len(files) > 1 else files[0])
        affine, directions = np.eye(4), np.array(image.GetDirection()).reshape(image.GetDimension(), -1)
        affine[:3, :3] = directions[:3, :3] * np.array(image.GetSpacing())[:3]
        affine[:3, 3] = image.GetOrigin()[:3]
        array = SimpleITK.GetArrayFromImage(image).T
        found.append((array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array, affine))
    return found


def monai(reader: ITKReader | PydicomReader) -> Callable[[Path], Found]:
    """The folder read as MONAI's `LoadImage` does; the array without a channel axis of one."""

    def read(folder: Path) -> Found:
        array, meta = reader.get_data(reader.read(str(folder)))
        array = np.asarray(array)
        array = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
        return [(array[..., None] if array.ndim == 2 else array, LPS_TO_RAS @ np.asarray(meta["affine"], float))]

    return read


def dicom2nifti(folder: Path) -> Found:
    """`convert_directory`, whose default turns the axes; the files that it makes."""
    from dicom2nifti import convert_directory

    with tempfile.TemporaryDirectory() as output:
        convert_directory(str(folder), output, compression=False)
        images = [nibabel.load(path) for path in sorted(Path(output).glob("*.nii"))]
        return [(np.asarray(image.get_fdata()), LPS_TO_RAS @ image.affine) for image in images]


def highdicom_volumes(folder: Path) -> Found:
    """`get_volume_from_series` on the images of each SeriesInstanceUID, or `imread` of each multi-frame file."""
    series: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        with contextlib.suppress(pydicom.errors.InvalidDicomError):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            if "Rows" in header:
                series.setdefault(str(header.SeriesInstanceUID), []).append(path)
    volumes = []
    for files in series.values():
        images = [pydicom.dcmread(path) for path in files]
        if any("NumberOfFrames" in image for image in images):
            volumes += [highdicom.imread(path).get_volume() for path in files]
        else:
            volumes.append(highdicom.get_volume_from_series(images))
    return [(volume.array, volume.affine) for volume in volumes]


READERS: dict[str, Callable[[Path], Found]] = {
    "fewscan": fewscan,
    "SimpleITK": simpleitk,
    "MONAI ITKReader": monai(ITKReader()),
    "MONAI PydicomReader": monai(PydicomReader()),
    "dicom2nifti": dicom2nifti,
    "highdicom": highdicom_volumes,
}

if __name__ == "__main__":
    main()
