"""How long a DICOM-SEG of many segments takes to write, how large it is and what memory it takes, beside highdicom.

    OMP_NUM_THREADS=1 PYTHONPATH=tests python tests/benchmarks/seg.py
    OMP_NUM_THREADS=1 PYTHONPATH=tests python tests/benchmarks/seg.py --shape 256x256x100 --segments 10

CPU time of one process, files in the page cache. It makes its own series and mask (seeded balls with a rough surface)
in a temporary folder: 240 MB at 512 x 512 x 300. Each writer runs in a process of its own, once on a mask of one plane
to load its libraries, and then `--rounds` times; the fastest counts. Memory is the peak of the process above what it
held before: its libraries and the mask, one byte a voxel. Each file is read by highdicom and has to hold the mask.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import highdicom
import numpy as np
import psutil
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from fewscan.labels import LabelTable
from fewscan.masks.dicom_seg import binary, labelmap
from fewscan.scans import open_scan
from fewscan.scans.scan import Scan
from scans.dicom_series import write_series

AFFINE = np.array([[-0.7, 0, 0, 180], [0, -0.7, 0, 170], [0, 0, 1.25, -90], [0, 0, 0, 1]])
OURS = {"fewscan, BINARY, deflated": binary.write, "fewscan, LABELMAP, RLE": labelmap.write}
HIGHDICOM = {
    "highdicom, BINARY": ("BINARY", ExplicitVRLittleEndian),
    "highdicom, BINARY, JPEG 2000": ("BINARY", JPEG2000Lossless),
    "highdicom, LABELMAP, RLE": ("LABELMAP", RLELossless),
    "highdicom, LABELMAP, JPEG-LS": ("LABELMAP", JPEGLSLossless),
}


def main() -> None:
    """Make the files and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="512x512x300")
    parser.add_argument("--segments", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are made (default: the system's temporary folder)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.folder, options.segments, options.rounds)))
        return
    shape = tuple(int(n) for n in options.shape.split("x"))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make(folder, shape, options.segments)
        what = f"{' x '.join(map(str, shape))}, {options.segments} segments"
        print(f"| {what} | frames | create + save, s | MB | memory, MB |\n|---|---|---|---|---|")
        for who in (*OURS, *HIGHDICOM):
            own = ["--one", who, "--folder", name, "--segments", str(options.segments), "--rounds", str(options.rounds)]
            done = subprocess.run([sys.executable, __file__, *own], stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            check(folder, options.segments)
            print(
                f"| {who} | {row['frames']} | {row['seconds']:.2f} | {row['mb']:.2f} | {row['memory']:.0f} |",
                flush=True,
            )


def make(folder: Path, shape: tuple[int, ...], segments: int) -> None:
    """A series of noise, and a mask with a ball of each label; smaller ones cover larger ones."""
    random = np.random.default_rng(0)
    write_series(folder / "series", random.integers(0, 50, shape, dtype=np.int16), AFFINE)
    x, y, z = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in shape)]
    mask = np.zeros(shape, np.uint8, order="F")
    for label, radius in enumerate(sorted(random.uniform(0.15, 0.6, segments), reverse=True), start=1):
        centre = random.uniform(-0.7, 0.7, 3)
        rough = 0.02 * np.sin(30 * x) * np.cos(28 * y)
        mask[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 + rough < radius**2] = label
    np.save(folder / "mask.npy", mask)


def measure(who: str, folder: Path, segments: int, rounds: int) -> dict[str, float]:
    """CPU seconds, megabytes of the file and of memory, and frames, of one writer."""
    table = LabelTable.from_json([f"organ {number}" for number in range(1, segments + 1)])
    mask, scan, path = np.load(folder / "mask.npy"), open_scan([folder / "series"]), folder / "seg.dcm"
    write = writer(who, scan, table)
    one = np.zeros_like(mask)
    one[: mask.shape[0] // 2, :, mask.shape[2] // 2] = 1
    write(path, one)  # loads what it needs
    del one
    process = psutil.Process()
    before, seconds = process.memory_info().rss, []
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    for _ in range(rounds):
        start = time.process_time()
        write(path, mask)
        seconds.append(time.process_time() - start)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    frames = int(pydicom.dcmread(path, specific_tags=["NumberOfFrames"]).NumberOfFrames)
    return {
        "seconds": min(seconds),
        "mb": path.stat().st_size / 1e6,
        "memory": (peak - before) / 1e6,
        "frames": frames,
    }


def writer(who: str, scan: Scan, table: LabelTable) -> Callable[[Path, np.ndarray], None]:
    """From the mask and the series' files to the SEG's file."""
    if who in OURS:
        return lambda path, mask: OURS[who](path, mask, scan, table, {})
    kind, syntax = HIGHDICOM[who]
    code = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    algorithm = highdicom.AlgorithmIdentificationSequence("fewscan", code, "1")
    described = [
        highdicom.seg.SegmentDescription(number, label.name, code, code, "AUTOMATIC", algorithm)
        for number, label in enumerate(table, start=1)
    ]

    def write(path: Path, mask: np.ndarray) -> None:
        highdicom.seg.Segmentation(
            source_images=[pydicom.dcmread(file, stop_before_pixels=True) for file in scan.files],
            pixel_array=mask.T,
            segmentation_type=kind,
            segment_descriptions=described,
            series_instance_uid=highdicom.UID(),
            series_number=1,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="none",
            manufacturer_model_name="none",
            software_versions="1",
            device_serial_number="1",
            transfer_syntax_uid=syntax,
        ).save_as(path)

    return write


def check(folder: Path, segments: int) -> None:
    """The file of the last writer holds the mask, plane by plane as highdicom reads it."""
    mask = np.load(folder / "mask.npy", mmap_mode="r")
    uids = [
        pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in open_scan([folder / "series"]).files
    ]
    seg = highdicom.seg.segread(folder / "seg.dcm")
    for k in range(0, len(uids), 7):
        plane = seg.get_pixels_by_source_instance(
            [uids[k]], assert_missing_frames_are_empty=True, combine_segments=True, skip_overlap_checks=True
        )
        assert np.array_equal(plane[0].T, mask[:, :, k]), f"plane {k} holds other labels"


if __name__ == "__main__":
    main()
