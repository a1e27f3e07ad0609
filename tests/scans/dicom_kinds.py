"""Kinds of DICOM series as scanners, archives and bad exports make them, each with what is true of it.

What a voxel holds is a closed form of where it lies in the patient (`content`), so a reader that puts a number at a
wrong place is found out whatever the order of its axes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from scans.dicom_series import write_enhanced, write_series
from scans.links import link
from scans.volumes import SPACING, rotation

ORIGIN = np.array([-31.5, 12.25, 80.0])
"""The centre of the first voxel, LPS, mm."""
SHAPE = (9, 7, 6)
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
X, Y, Z = np.eye(3)
DIRECTIONS = {
    "axial": np.column_stack([X, Y, Z]),
    "sagittal": np.column_stack([Y, -Z, -X]),
    "coronal": np.column_stack([X, -Z, Y]),
    "oblique": rotation(),
}
"""Along a row, along a column, and their cross product: unit vectors as columns, LPS."""


def content(lps: np.ndarray) -> np.ndarray:
    """Whole numbers (...) from 700 to 2300 at points (..., 3) in mm, LPS: no two directions are alike."""
    x, y, z = np.moveaxis(np.asarray(lps) - ORIGIN, -1, 0)
    waves = 120 * np.sin(1.7 * x) * np.cos(2.3 * y) * np.cos(0.9 * z)
    return np.rint(1500 + 23 * x + 31 * y + 17 * z + waves)


@dataclass(frozen=True)
class Volume:
    """What a scan holds: real values (i, j, k), and the affine from voxels to mm, LPS."""

    values: np.ndarray
    lps: np.ndarray

    @property
    def ras(self) -> np.ndarray:
        return LPS_TO_RAS @ self.lps

    def points(self) -> np.ndarray:
        """Where each voxel's centre lies: (i, j, k, 3), mm, LPS."""
        index = np.stack(np.meshgrid(*[np.arange(n) for n in self.values.shape], indexing="ij"), -1)
        return index @ self.lps[:3, :3].T + self.lps[:3, 3]

    def with_values(self, values: np.ndarray) -> Volume:
        return Volume(values, self.lps)

    def part(self, planes: slice) -> Volume:
        lps = self.lps.copy()
        lps[:3, 3] += lps[:3, 2] * range(self.values.shape[2])[planes][0]
        return Volume(self.values[:, :, planes], lps)


@dataclass(frozen=True)
class Kind:
    """A kind of series: `make` writes it below a folder and gives its volumes; [] where nobody can say what is right.

    `refused` is what the reason of the strict reader has to say (a pattern), `noted` one of the scan's notes,
    `left_out` the reason for which a file beside the scan is left out.
    """

    make: Callable[[Path], list[Volume]]
    refused: str = ""
    noted: str = ""
    left_out: str = ""


KINDS: dict[str, Kind] = {}


def kind(
    refused: str = "", noted: str = "", left_out: str = ""
) -> Callable[[Callable[[Path], list[Volume]]], Callable[[Path], list[Volume]]]:
    """Puts a maker into `KINDS` under its name."""

    def add(make: Callable[[Path], list[Volume]]) -> Callable[[Path], list[Volume]]:
        KINDS[make.__name__] = Kind(make, refused, noted, left_out)
        return make

    return add


def difference(truth: Volume, values: np.ndarray, lps: np.ndarray, tolerance_mm: float = 0.002) -> str:
    """In words, what is wrong with an array and its affine (LPS), whatever the order of its axes; "" where it is right.

    Every voxel of the truth has to be a voxel of the array, with the same number, and there are no others.
    """
    if values.size != truth.values.size or values.ndim != 3:
        return f"shape {values.shape} for {truth.values.shape}"
    index = (truth.points() - lps[:3, 3]) @ np.linalg.pinv(lps[:3, :3]).T
    voxel = np.rint(index).astype(int)
    inside = ((voxel >= 0) & (voxel < values.shape)).all(axis=-1)
    away = np.linalg.norm((voxel.clip(0, np.array(values.shape) - 1) - index) @ lps[:3, :3].T, axis=-1)
    if not inside.all() or away.max() > tolerance_mm:
        return f"voxels up to {away.max():.3g} mm from their place"
    wrong = int((np.abs(values[tuple(np.moveaxis(voxel, -1, 0))] - truth.values) > 1e-3).sum())
    return f"{wrong} of {values.size} numbers are wrong" if wrong else ""


def volume(
    way: str = "axial",
    shape: tuple[int, int, int] = SHAPE,
    spacing: Sequence[float] = SPACING,
    origin: np.ndarray = ORIGIN,
    plus: int = 0,
    shear_mm: float = 0,
) -> Volume:
    """The content on a grid, with 1000 more at the last voxel of every axis; `plus` tells phases apart."""
    lps = np.eye(4)
    lps[:3, :3] = DIRECTIONS[way] * np.asarray(spacing)
    lps[:3, 2] += DIRECTIONS[way][:, 1] * shear_mm
    lps[:3, 3] = origin
    empty = Volume(np.zeros(shape), lps)
    values = content(empty.points()) + plus
    values[-1, -1, -1] += 1000
    return Volume(values, lps)


def write(folder: Path, truth: Volume, **changes: Any) -> list[Path]:
    """The files of a classic series, in the order of the planes."""
    return write_series(folder, truth.values, truth.ras, **changes)


def uids() -> dict[str, str]:
    """What the images of one series share."""
    return {key: generate_uid() for key in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}


def edit(path: Path, **values: Any) -> None:
    """Change a file's header; None takes a value out."""
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)


def resave(path: Path, syntax: str) -> None:
    """In another uncompressed transfer syntax."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    little = syntax != ExplicitVRBigEndian
    if not little:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    pydicom.dcmwrite(path, dataset, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=little)


def compress(path: Path, syntax: str) -> None:
    """By pydicom's encoders; not by GDCM's of RLE, which aborts on some sizes (7 x 9)."""
    dataset = pydicom.dcmread(path)
    plugin = "pylibjpeg" if syntax == RLELossless else ""
    dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
    dataset.save_as(path)


# Where planes lie.


@kind()
def axial(folder: Path) -> list[Volume]:
    write(folder, truth := volume())
    return [truth]


@kind()
def sagittal(folder: Path) -> list[Volume]:
    write(folder, truth := volume("sagittal"))
    return [truth]


@kind()
def coronal(folder: Path) -> list[Volume]:
    write(folder, truth := volume("coronal"))
    return [truth]


@kind()
def oblique(folder: Path) -> list[Volume]:
    write(folder, truth := volume("oblique"))
    return [truth]


@kind()
def feet_first_prone_with_planes_against_their_normal(folder: Path) -> list[Volume]:
    lps = np.eye(4)
    lps[:3, :3] = np.column_stack([-X, -Y, -Z]) * SPACING
    lps[:3, 3] = ORIGIN
    truth = Volume(content(Volume(np.zeros(SHAPE), lps).points()), lps)
    write(folder, truth, PatientPosition="FFP")
    return [truth]


@kind()
def files_and_numbers_shuffled(folder: Path) -> list[Volume]:
    write(folder, truth := volume("oblique"), shuffled=True)
    return [truth]


@kind()
def numbers_against_the_positions(folder: Path) -> list[Volume]:
    write(folder, truth := volume(), InstanceNumber=lambda k: 6 - k, SliceLocation=lambda k: 100.0 - 2.5 * k)
    return [truth]


@kind()
def all_numbers_the_same(folder: Path) -> list[Volume]:
    write(folder, truth := volume("sagittal"), InstanceNumber=1)
    return [truth]


@kind(noted="sheared by 15.0 degrees")
def gantry_tilt(folder: Path) -> list[Volume]:
    write(folder, truth := volume(shear_mm=2.5 * np.tan(np.radians(15))))
    return [truth]


@kind(noted="sheared by 20.0 degrees")
def gantry_tilt_of_an_oblique_stack(folder: Path) -> list[Volume]:
    write(folder, truth := volume("oblique", shear_mm=-2.5 * np.tan(np.radians(20))), shuffled=True)
    return [truth]


@kind()
def positions_rounded_to_hundredths(folder: Path) -> list[Volume]:
    truth = volume(spacing=(0.9, 0.8, 0.625), shape=(9, 7, 9))
    write(folder, truth, ImagePositionPatient=lambda k: [*ORIGIN[:2], round(ORIGIN[2] + 0.625 * k, 2)])
    return [truth]


@kind(refused=r"5 mm instead of 2.5 mm between \(-31.5, 12.2, 85.0\).*1 slice\(s\) missing")
def a_missing_slice(folder: Path) -> list[Volume]:
    write(folder, volume())[3].unlink()
    return []


@kind(refused="lie 5 mm apart, where SpacingBetweenSlices says 2.5 mm; every second slice missing")
def every_second_slice_missing(folder: Path) -> list[Volume]:
    for path in write(folder, volume(), SpacingBetweenSlices=2.5)[::2]:
        path.unlink()
    return []


@kind(refused="2.5 to 4 mm apart, so they form no grid: 4 mm instead of 2.5 mm")
def spacing_that_changes(folder: Path) -> list[Volume]:
    write(
        folder, volume(),
        ImagePositionPatient=lambda k: [*ORIGIN[:2], ORIGIN[2] + 2.5 * k + 1.5 * max(0, k - 3)],
    )  # fmt: skip
    return []


@kind(refused=r"on no line at equal distances: image003.dcm at .* is 1 mm beside its place")
def a_slice_beside_its_place(folder: Path) -> list[Volume]:
    write(folder, volume(), ImagePositionPatient=lambda k: [ORIGIN[0] + (k == 3), ORIGIN[1], ORIGIN[2] + 2.5 * k])
    return []


@kind(refused=r"6 images lie at 1 position, \(-31.5, 12.2, 80.0\) mm .LPS., while SliceLocation goes from 0 to 12.5 mm")
def one_position_for_all(folder: Path) -> list[Volume]:
    """An export that lost the positions, while time, number and SliceLocation go on."""
    write(
        folder, volume(), ImagePositionPatient=ORIGIN.tolist(), ContentTime=lambda k: f"0304{k:02d}",
        SliceLocation=lambda k: 2.5 * k, AcquisitionNumber=lambda k: k + 1,
    )  # fmt: skip
    return []


@kind(refused=r"along their own planes, up to 12.5 mm from \(-31.5, 12.2, 80.0\) to \(-31.5, 24.8, 80.0\)")
def an_orientation_along_the_stack(folder: Path) -> list[Volume]:
    """Coronal slices that say that they are axial."""
    write(folder, volume("coronal"), ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    return []


@kind(refused="sheared by 71.8 degrees, further than any gantry tilts")
def an_orientation_across_the_stack(folder: Path) -> list[Volume]:
    write(folder, volume("oblique"), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    return []


@kind(noted="told apart by EchoTime")
def two_echoes_of_several_numbers(folder: Path) -> list[Volume]:
    """EchoTime with two values in it, which is no number."""
    return phases(folder, Modality=("MR", "MR"), EchoTime=([2.3, 4.6], [10.5, 12.8]))


@kind(refused="has no ImageOrientationPatient")
def no_orientation(folder: Path) -> list[Volume]:
    write(folder, volume(), ImageOrientationPatient=None)
    return []


@kind(refused="has no ImageOrientationPatient")
def no_orientation_in_the_last_slice(folder: Path) -> list[Volume]:
    edit(write(folder, volume())[-1], ImageOrientationPatient=None)
    return []


@kind(refused="has no ImagePositionPatient")
def no_position_in_the_last_slice(folder: Path) -> list[Volume]:
    edit(write(folder, volume())[-1], ImagePositionPatient=None)
    return []


@kind(refused="has no PixelSpacing")
def detector_spacing_alone(folder: Path) -> list[Volume]:
    write(folder, volume(), PixelSpacing=None, ImagerPixelSpacing=[0.8, 0.9])
    return []


@kind(refused=r"another orientation than the rest \(0 1 0 1 0 0 against 1 0 0 0 1 0\)")
def one_slice_turned(folder: Path) -> list[Volume]:
    edit(write(folder, volume())[-1], ImageOrientationPatient=[0, 1, 0, 1, 0, 0])
    return []


@kind(refused=r"rows and columns.*lengths 1 and 1, .*cosine of 0.174")
def rows_and_columns_at_80_degrees(folder: Path) -> list[Volume]:
    angle = np.radians(80)
    write(folder, volume(), ImageOrientationPatient=[1, 0, 0, round(np.cos(angle), 6), round(np.sin(angle), 6), 0])
    return []


@kind(refused="rows and columns.*lengths 1.1 and 1")
def orientation_of_no_unit_length(folder: Path) -> list[Volume]:
    write(folder, volume(), ImageOrientationPatient=[1.1, 0, 0, 0, 1, 0])
    return []


@kind(refused=r"pixels of 0 x 0.8 mm")
def pixels_without_a_width(folder: Path) -> list[Volume]:
    write(folder, volume(), PixelSpacing=[0.8, 0])
    return []


@kind(noted="a single slice")
def a_single_slice_with_thickness(folder: Path) -> list[Volume]:
    write(folder, truth := volume("oblique", (9, 7, 1), (0.9, 0.8, 3.5)))
    return [truth]


@kind(noted="a single slice without thickness: 1 mm is assumed")
def a_single_slice_without_thickness(folder: Path) -> list[Volume]:
    write(folder, truth := volume("coronal", (9, 7, 1), (0.9, 0.8, 1.0)), SliceThickness=None)
    return [truth]


# What else lies in the folder.


@kind(noted="1 localizer", left_out="a localizer of its series")
def a_localizer_in_the_series(folder: Path) -> list[Volume]:
    shared = uids()
    write(folder, truth := volume(), **shared)
    write(folder / "0", volume("coronal", (12, 13, 1)), **shared, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return [truth]


@kind(noted="1 image.* another orientation left out", left_out="another orientation")
def a_localizer_that_does_not_say_so(folder: Path) -> list[Volume]:
    shared = uids()
    write(folder, truth := volume(), **shared)
    write(folder / "0", volume("sagittal", (9, 7, 1)), **shared)
    return [truth]


@kind()
def two_series(folder: Path) -> list[Volume]:
    shared = uids()
    truths = [volume(), volume("sagittal", plus=100)]
    for number, truth in enumerate(truths):
        for path in write(folder / "x", truth, **shared | {"SeriesInstanceUID": generate_uid()}):
            path.rename(folder / f"{number}{path.name}")
    return truths


@kind()
def two_studies(folder: Path) -> list[Volume]:
    truths = [volume(), volume(plus=100)]
    for number, truth in enumerate(truths):
        for path in write(folder / "x", truth):
            path.rename(folder / f"{number}{path.name}")
    return truths


@kind(refused="6 images of one SeriesInstanceUID belong to 2 studies")
def two_studies_that_share_their_series_uid(folder: Path) -> list[Volume]:
    """A bad anonymiser; the second one goes on where the first one ends."""
    shared, whole = uids(), volume()
    for number in range(2):
        own = shared | {"StudyInstanceUID": generate_uid()}
        write(folder / str(number), whole.part(slice(3 * number, 3 * number + 3)), **own)
    return []


@kind(refused="6 images of one SeriesInstanceUID belong to 2 patients")
def two_patients_that_share_all_uids(folder: Path) -> list[Volume]:
    shared, whole = uids(), volume()
    for number in range(2):
        write(folder / str(number), whole.part(slice(3 * number, 3 * number + 3)), **shared, PatientID=f"N-{number}")
    return []


@kind()
def a_series_made_anonymous_in_part(folder: Path) -> list[Volume]:
    write(folder, truth := volume("oblique"), PatientID=lambda k: "N-1" if k % 2 else "")
    return [truth]


@kind(noted="1 duplicate", left_out="a copy of")
def a_file_twice(folder: Path) -> list[Volume]:
    files = write(folder, truth := volume())
    shutil.copy(files[2], folder / "a copy.dcm")
    return [truth]


@kind(noted="6 duplicate", left_out="a copy of")
def the_series_twice(folder: Path) -> list[Volume]:
    write(folder / "a", truth := volume())
    shutil.copytree(folder / "a", folder / "b")
    return [truth]


@kind(noted="1 duplicate", left_out="a copy of")
def a_file_twice_in_another_transfer_syntax(folder: Path) -> list[Volume]:
    files = write(folder, truth := volume())
    shutil.copy(files[2], folder / "a copy.dcm")
    compress(folder / "a copy.dcm", RLELossless)
    return [truth]


@kind(refused="carry one SOPInstanceUID but different pixels")
def one_instance_with_two_contents(folder: Path) -> list[Volume]:
    files = write(folder, volume())
    shutil.copy(files[2], folder / "a copy.dcm")
    edit(folder / "a copy.dcm", PixelData=bytes(9 * 7 * 2))
    return []


@kind(refused="carry one SOPInstanceUID but different pixels, or another slope, intercept or padding")
def one_instance_with_two_intercepts(folder: Path) -> list[Volume]:
    files = write(folder, volume())
    shutil.copy(files[2], folder / "a copy.dcm")
    edit(folder / "a copy.dcm", RescaleIntercept=-1024)
    return []


@kind(refused="image000.dcm and image001.dcm carry one SOPInstanceUID at different positions.*80.0.*82.5")
def one_instance_uid_for_all(folder: Path) -> list[Volume]:
    write(folder, truth := volume(), SOPInstanceUID=generate_uid())
    return [truth]


@kind(refused=r"7 images lie at 6 positions .*a copy.dcm and image002.dcm at \(-31.5, 12.2, 85.0\)")
def another_image_at_the_place_of_a_slice(folder: Path) -> list[Volume]:
    files = write(folder, volume())
    shutil.copy(files[2], folder / "a copy.dcm")
    edit(folder / "a copy.dcm", SOPInstanceUID=generate_uid(), PixelData=bytes(9 * 7 * 2))
    return []


@kind()
def files_without_extension(folder: Path) -> list[Volume]:
    for path in write(folder, truth := volume("oblique"), shuffled=True):
        path.rename(path.with_suffix(""))
    return [truth]


@kind(left_out="not an image")
def a_disc_with_a_dicomdir(folder: Path) -> list[Volume]:
    discs = FileSet()
    with_files = folder.with_name(f"{folder.name}-before")
    for path in write(with_files, truth := volume("coronal"), shuffled=True):
        discs.add(path)
    folder.mkdir(parents=True, exist_ok=True)
    discs.write(folder)
    shutil.rmtree(with_files)
    return [truth]


@kind(left_out="not an image|hidden")
def other_files_beside(folder: Path) -> list[Volume]:
    files = write(folder, truth := volume())
    (folder / "readme.txt").write_text("exported")
    (folder / "Thumbs.db").write_bytes(bytes(600))
    (folder / "._image000.dcm").write_bytes(bytes(4096))
    (folder / "empty").write_bytes(b"")
    assert len(files) == 6
    return [truth]


@kind(left_out="DICOM, but not an image: (Parametric Map|MR Spectroscopy) Storage")
def a_parametric_map_and_spectra_beside(folder: Path) -> list[Volume]:
    """They have Rows and Columns, but no PixelData."""
    write(folder, truth := volume())
    for name, keyword in (("ParametricMapStorage", "FloatPixelData"), ("MRSpectroscopyStorage", "SpectroscopyData")):
        sop_class = getattr(pydicom.uid, name)
        (path,) = write(folder / name, volume(shape=(9, 7, 1)), SOPClassUID=sop_class, BitsAllocated=32)
        edit(path, PixelData=None, **{keyword: bytes(9 * 7 * 4)})
    return [truth]


@kind(left_out="DICOM, but not an image")
def a_report_and_a_plan_beside(folder: Path) -> list[Volume]:
    shared = uids()
    write(folder, truth := volume(), **shared)
    for number, sop_class in enumerate(("1.2.840.10008.5.1.4.1.1.88.11", "1.2.840.10008.5.1.4.1.1.481.3")):
        (path,) = write(folder / str(number), volume(shape=(9, 7, 1)), **shared, SOPClassUID=sop_class)
        edit(path, PixelData=None, Rows=None, Columns=None)
    return [truth]


@kind(refused="1 of 6 images of the series.*image003.dcm: is cut short: 106 bytes where its pixels need 126")
def a_middle_file_cut_short(folder: Path) -> list[Volume]:
    path = write(folder, volume())[3]
    path.write_bytes(path.read_bytes()[:-20])
    return []


@kind(refused="1 of 6 images of the series.*image005.dcm: is cut short: 106 bytes where its pixels need 126")
def the_last_file_cut_short(folder: Path) -> list[Volume]:
    """The others form a regular volume, which lacks a slice."""
    path = write(folder, volume())[5]
    path.write_bytes(path.read_bytes()[:-20])
    return []


@kind(refused="1 of 6 images of the series.*image005.dcm: is no DICOM file")
def the_last_file_empty(folder: Path) -> list[Volume]:
    """A copy that was interrupted."""
    write(folder, volume())[5].write_bytes(b"")
    return []


@kind(refused="1 of 6 images of the series.*image005.dcm: .* cut short or damaged")
def the_last_file_cut_in_its_header(folder: Path) -> list[Volume]:
    path = write(folder, volume())[5]
    path.write_bytes(path.read_bytes()[:400])
    return []


@kind(left_out="is cut short")
def a_copy_cut_short(folder: Path) -> list[Volume]:
    files = write(folder, truth := volume())
    (folder / "a copy.dcm").write_bytes(files[2].read_bytes()[:-20])
    return [truth]


@kind(refused="image005.dcm.*(DICM is missing at byte 128|no DICOM file)")
def the_last_file_without_its_preamble(folder: Path) -> list[Volume]:
    path = write(folder, volume())[5]
    path.write_bytes(path.read_bytes()[132:])
    return []


@kind(refused="1 of 6 images of the series cannot be used.*000: is no DICOM file .DICM is missing at byte 128")
def the_first_file_without_preamble_and_extension(folder: Path) -> list[Volume]:
    files = write(folder, volume())
    for path in files:
        path.rename(path.with_suffix(""))
    first = files[0].with_suffix("")
    first.write_bytes(first.read_bytes()[132:])
    return []


def without_suffix(files: list[Path]) -> Path:
    """Renames the files, and takes the last one away; where it lay."""
    for path in files:
        path.rename(path.with_suffix(""))
    files[-1].with_suffix("").unlink()
    return files[-1].with_suffix("")


@kind(refused="1 of 6 images of the series cannot be used.*image005: is no DICOM file")
def the_last_file_empty_and_without_extension(folder: Path) -> list[Volume]:
    without_suffix(write(folder, volume())).write_bytes(b"")
    return []


@kind(refused="1 of 6 images of the series cannot be used.*image005: is no DICOM file")
def the_last_file_nothing_but_zeros(folder: Path) -> list[Volume]:
    """A copy that was interrupted after its room was reserved."""
    without_suffix(write(folder, volume())).write_bytes(bytes(1200))
    return []


@kind(refused="1 of 6 images of the series cannot be used.*image005: cannot be read .FileNotFoundError")
def the_last_file_a_link_into_nowhere(folder: Path) -> list[Volume]:
    """As git-annex and DataLad have it where the content was not fetched; it is like a file without permission."""
    link(without_suffix(write(folder, volume())), folder / "gone")
    return []


@kind(refused="image005.dcm: .* cannot be decoded")
def the_last_file_of_damaged_jpeg_2000(folder: Path) -> list[Volume]:
    files = write(folder, volume(shape=(32, 40, 6)))
    for path in files:
        compress(path, JPEG2000Lossless)
    dataset = pydicom.dcmread(files[5])
    dataset.PixelData = dataset.PixelData[:60] + bytes(len(dataset.PixelData) - 60)
    dataset.save_as(files[5])
    return []


@kind(refused="is a colour image")
def colour(folder: Path) -> list[Volume]:
    for path in write(folder, volume()):
        edit(
            path, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8,
            BitsStored=8, HighBit=7, PixelData=bytes(9 * 7 * 3 + 1),
        )  # fmt: skip
    return []


@kind(left_out="is a colour image", noted="1 colour")
def a_colour_picture_in_the_series(folder: Path) -> list[Volume]:
    shared = uids()
    write(folder, truth := volume(), **shared)
    (path,) = write(folder / "0", volume(shape=(9, 7, 1)), **shared)
    edit(
        path, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8,
        BitsStored=8, HighBit=7, PixelData=bytes(9 * 7 * 3 + 1), ImagePositionPatient=None,
    )  # fmt: skip
    return [truth]


SCREENSHOT = {"SOPClassUID": SecondaryCaptureImageStorage, "ImagePositionPatient": None}


@kind(left_out="a screenshot .secondary capture., not a scan", noted="1 colour picture.s. or screenshot")
def a_grey_screenshot_in_the_series(folder: Path) -> list[Volume]:
    """What a console adds: a dose report, a plan of the slices."""
    shared = uids()
    write(folder, truth := volume(), **shared)
    write(folder / "0", volume(shape=(9, 7, 1)), **shared, **SCREENSHOT)
    return [truth]


@kind(refused="1 of 6 images of the series cannot be used.*image005.dcm: has no ImagePositionPatient")
def a_slice_without_position_of_a_series_of_secondary_captures(folder: Path) -> list[Volume]:
    """As converters write them: no other image is a screenshot either."""
    edit(write(folder, volume(), SOPClassUID=SecondaryCaptureImageStorage)[-1], ImagePositionPatient=None)
    return []


@kind(refused=r"another matrix than the rest \(7 x 9 pixels against 9 x 7 pixels\)")
def other_rows_and_columns_in_a_slice(folder: Path) -> list[Volume]:
    edit(write(folder, volume())[-1], Rows=9, Columns=7)
    return []


@kind(refused=r"another pixel spacing than 3 others \(0.9 x 0.85 mm against 0.9 x 0.8 mm\)")
def other_pixel_spacing_in_half_of_the_slices(folder: Path) -> list[Volume]:
    """Every second one: each half by itself is regular."""
    write(folder, volume(), PixelSpacing=lambda k: [0.8 + 0.05 * (k % 2), 0.9])
    return []


@kind(refused="another frame of reference than the rest")
def the_last_slice_in_another_frame_of_reference(folder: Path) -> list[Volume]:
    edit(write(folder, volume())[-1], FrameOfReferenceUID=generate_uid())
    return []


@kind(refused="another frame of reference than 3 others")
def two_frames_of_reference_in_turn(folder: Path) -> list[Volume]:
    pair = [generate_uid(), generate_uid()]
    write(folder, volume(), FrameOfReferenceUID=lambda k: pair[k % 2])
    return []


@kind(refused="6 images of one orientation have each a frame of reference of its own")
def a_frame_of_reference_for_each_slice(folder: Path) -> list[Volume]:
    """A bad anonymiser, which gives every UID of every file a new value."""
    write(folder, volume(), FrameOfReferenceUID=lambda k: generate_uid())
    return []


@kind(
    refused="6 images of one orientation have each a pixel spacing of its own.*0.9 x 0.8 mm in image000.dcm, 0.9 x 0.8"
)
def a_pixel_spacing_for_each_slice(folder: Path) -> list[Volume]:
    """Magnified towards one end, as a cone of rays does."""
    write(folder, volume(), PixelSpacing=lambda k: [0.8 + 0.01 * k, 0.9])
    return []


@kind(noted="one of 2 stacks of its series")
def two_stacks_of_different_orientation(folder: Path) -> list[Volume]:
    shared = uids()
    truths = [volume("sagittal"), volume("coronal", plus=100)]
    for number, truth in enumerate(truths):
        write(folder / str(number), truth, **shared)
    return truths


# Volumes at the same positions.


def phases(folder: Path, **changes: Sequence[Any]) -> list[Volume]:
    """Two volumes of one series in one folder, told apart by these values."""
    shared, truths = uids(), [volume("oblique", plus=100 * number) for number in range(2)]
    for number, truth in enumerate(truths):
        own = {keyword: values[number] for keyword, values in changes.items()}
        for path in write(folder / "x", truth, shuffled=True, **shared, **own):
            path.rename(folder / f"{1 - number}{path.name}")
    (folder / "x").rmdir()
    return truths


@kind(noted="told apart by AcquisitionNumber")
def two_acquisitions(folder: Path) -> list[Volume]:
    return phases(folder, AcquisitionNumber=(1, 2))


@kind(noted="told apart by EchoTime")
def two_echoes(folder: Path) -> list[Volume]:
    return phases(folder, Modality=("MR", "MR"), EchoTime=(2.3, 10.5))


@kind(noted="told apart by TemporalPositionIdentifier")
def two_temporal_positions(folder: Path) -> list[Volume]:
    return phases(folder, TemporalPositionIdentifier=(1, 2))


@kind(noted="told apart by TriggerTime")
def two_trigger_times(folder: Path) -> list[Volume]:
    return phases(folder, TriggerTime=(9.5, 110.0))


@kind(noted="told apart by DiffusionBValue")
def two_b_values(folder: Path) -> list[Volume]:
    return phases(folder, Modality=("MR", "MR"), DiffusionBValue=(0.0, 800.0))


@kind(noted="told apart by ContentTime")
def two_times(folder: Path) -> list[Volume]:
    return phases(folder, ContentTime=("030405", "030505"))


@kind(noted="told apart by ImageType")
def magnitude_and_phase(folder: Path) -> list[Volume]:
    kinds = [["ORIGINAL", "PRIMARY", letter] for letter in "MP"]
    return phases(folder, Modality=("MR", "MR"), ImageType=kinds)


@kind(noted="told apart by AcquisitionNumber and EchoTime")
def two_acquisitions_of_two_echoes(folder: Path) -> list[Volume]:
    shared, truths = uids(), [volume(plus=100 * number) for number in range(4)]
    for number, truth in enumerate(truths):
        own = {"AcquisitionNumber": 1 + number // 2, "EchoTime": (2.3, 10.5)[number % 2]}
        write(folder / str(number), truth, **shared, **own, Modality="MR")
    return truths


@kind(noted="told apart by TemporalPositionIdentifier")
def phases_whose_positions_differ_by_rounding(folder: Path) -> list[Volume]:
    shared, truths = uids(), [volume(plus=0), volume(plus=100)]
    for number, truth in enumerate(truths):
        write(
            folder / str(number), truth, **shared, TemporalPositionIdentifier=number + 1,
            ImagePositionPatient=lambda k, off=0.0004 * number: [*ORIGIN[:2], ORIGIN[2] + 2.5 * k + off],
        )  # fmt: skip
    return truths


@kind(noted="told apart by TemporalPositionIdentifier")
def two_times_that_acquisition_numbers_mix(folder: Path) -> list[Volume]:
    """AcquisitionNumber alone gives two regular volumes too: halves of both."""
    shared, truths = uids(), [volume(plus=0), volume(plus=100)]
    for number, truth in enumerate(truths):
        write(
            folder / str(number), truth, **shared, TemporalPositionIdentifier=number + 1,
            AcquisitionNumber=lambda k, number=number: 1 + (number + k // 3) % 2,
        )  # fmt: skip
    return truths


@kind(refused=r"are others by AcquisitionNumber \(2\) than by TriggerTime \(2\)")
def two_values_that_contradict_each_other(folder: Path) -> list[Volume]:
    shared = uids()
    for number in range(2):
        write(
            folder / str(number), volume(plus=100 * number), **shared, TriggerTime=10.0 + number,
            AcquisitionNumber=lambda k, number=number: 1 + (number + k // 3) % 2,
        )  # fmt: skip
    return []


@kind(refused="12 images lie at 6 positions and no header value tells the volumes apart")
def two_phases_that_nothing_tells_apart(folder: Path) -> list[Volume]:
    phases(folder)
    return []


@kind(refused="12 slices of what looks like one volume have different EchoTime: 2.3 in 6, 10.5 in 6 slice")
def two_echoes_shifted_by_half_a_slice(folder: Path) -> list[Volume]:
    """Together they form a regular grid of half the distance."""
    shared = uids()
    for number in range(2):
        at = volume(origin=ORIGIN + 1.25 * number * Z)
        write(folder / str(number), at, **shared, Modality="MR", EchoTime=(2.3, 10.5)[number])
    return []


# What the pixels hold.


@kind()
def a_slope_for_each_slice(folder: Path) -> list[Volume]:
    truth, k = volume("oblique"), np.arange(6)
    write(folder, truth, RescaleSlope=lambda k: 0.5 + k, RescaleIntercept=lambda k: -1000 - k)
    return [truth.with_values(truth.values * (0.5 + k) - 1000 - k)]


@kind(refused="slope or intercept stand in 5 of 6 images, but not in image002.dcm")
def no_slope_in_one_slice(folder: Path) -> list[Volume]:
    files = write(folder, volume(), RescaleIntercept=-1024)
    edit(files[2], RescaleSlope=None, RescaleIntercept=None)
    return []


@kind(refused="slope 0 and intercept 0")
def slope_zero(folder: Path) -> list[Volume]:
    write(folder, volume(), RescaleSlope=0)
    return []


@kind(refused="look-up table")
def a_modality_look_up_table(folder: Path) -> list[Volume]:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [4, 0, 16], "US", bytes(8)
    write(folder, volume(), ModalityLUTSequence=[table], RescaleSlope=None, RescaleIntercept=None)
    return []


@kind(noted="MONOCHROME1")
def monochrome1(folder: Path) -> list[Volume]:
    write(folder, truth := volume(), PhotometricInterpretation="MONOCHROME1", RescaleIntercept=-1024)
    return [truth.with_values(truth.values - 1024)]


@kind(noted="PixelPaddingValue")
def padding(folder: Path) -> list[Volume]:
    truth = volume()
    values = truth.values - 1800
    values[0, :, 1] = values[:, 0, 4] = -2000
    write(folder, truth.with_values(values), PixelPaddingValue=-2000)
    return [truth.with_values(np.where(values == -2000, values[values > -2000].min(), values))]


@kind()
def signed_16_bit(folder: Path) -> list[Volume]:
    truth = volume("sagittal")
    write(folder, truth := truth.with_values(truth.values - 1800))
    return [truth]


@kind()
def unsigned_12_of_16_bit(folder: Path) -> list[Volume]:
    write(folder, truth := volume("coronal"), BitsStored=12, HighBit=11)
    return [truth]


@kind()
def signed_12_of_16_bit_without_sign_extension(folder: Path) -> list[Volume]:
    truth = volume()
    truth = truth.with_values((truth.values - 1800).clip(-2000, 2000))
    stored = truth.values.astype(int) & 0x0FFF
    write(folder, truth.with_values(stored), BitsStored=12, HighBit=11, PixelRepresentation=1)
    return [truth]


@kind()
def eight_bit(folder: Path) -> list[Volume]:
    truth = volume()
    truth = truth.with_values(np.rint(truth.values / 16))
    for k, path in enumerate(write(folder, truth, BitsAllocated=8, BitsStored=8, HighBit=7)):
        edit(path, PixelData=truth.values[:, :, k].T.astype(np.uint8).tobytes() + b"\0")
    return [truth]


@kind()
def thirty_two_bit(folder: Path) -> list[Volume]:
    truth = volume()
    truth = truth.with_values(truth.values + 70_000)
    for k, path in enumerate(write(folder, volume(), BitsAllocated=32, BitsStored=32, HighBit=31)):
        edit(path, PixelData=truth.values[:, :, k].T.astype("<u4").tobytes())
    return [truth]


@kind()
def signed_and_unsigned_slices(folder: Path) -> list[Volume]:
    write(folder, truth := volume(), PixelRepresentation=lambda k: k % 2)
    return [truth]


@kind(refused="holds the number 5596, which does not fit the 12 bits|does not fit the 12 bits")
def numbers_beyond_the_stored_bits(folder: Path) -> list[Volume]:
    truth = volume()
    write(folder, truth.with_values(truth.values + 4096), BitsStored=12, HighBit=11)
    return []


@kind(refused="high bit is 15 with 12 bits stored")
def twelve_bits_at_the_top(folder: Path) -> list[Volume]:
    truth = volume()
    write(folder, truth.with_values(truth.values * 16), BitsStored=12, HighBit=15)
    return [truth]


@kind(refused="no pixels|0 bytes where its pixels need")
def no_pixels(folder: Path) -> list[Volume]:
    for path in write(folder, volume()):
        edit(path, PixelData=None)
    return []


@kind(refused="image002.dcm: holds 378 bytes of pixels, where 1 frame.s. of 9 x 7 pixels take 126")
def more_pixels_than_the_header_says(folder: Path) -> list[Volume]:
    """Several frames of which the header says nothing."""
    path = write(folder, volume())[2]
    edit(path, PixelData=3 * pydicom.dcmread(path).PixelData)
    return []


@kind()
def padding_behind_the_pixels(folder: Path) -> list[Volume]:
    for path in write(folder, truth := volume()):
        edit(path, PixelData=pydicom.dcmread(path).PixelData + bytes(30))
    return [truth]


# Transfer syntaxes.


@kind(refused="image003.dcm: its pixels are compressed, where its header says Explicit VR Little Endian")
def compressed_pixels_of_an_uncompressed_syntax(folder: Path) -> list[Volume]:
    path = write(folder, volume())[3]
    compress(path, RLELossless)
    name, other = (f"{uid}\0".encode() for uid in (RLELossless, ExplicitVRLittleEndian))
    path.write_bytes(path.read_bytes().replace(name, other))
    return []


@kind()
def explicit_big_endian_of_eight_bits_in_words(folder: Path) -> list[Volume]:
    truth = volume(shape=(10, 7, 6))
    truth = truth.with_values(np.rint(truth.values / 16))
    for k, path in enumerate(write(folder, truth, BitsAllocated=8, BitsStored=8, HighBit=7)):
        dataset = pydicom.dcmread(path)
        words = np.frombuffer(truth.values[:, :, k].T.astype(np.uint8).tobytes(), "<u2")
        dataset.PixelData = words.astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False)
    return [truth]


@kind()
def implicit_vr(folder: Path) -> list[Volume]:
    for path in write(folder, truth := volume("oblique")):
        resave(path, ImplicitVRLittleEndian)
    return [truth]


@kind()
def explicit_big_endian(folder: Path) -> list[Volume]:
    for path in write(folder, truth := volume("oblique")):
        resave(path, ExplicitVRBigEndian)
    return [truth]


@kind()
def deflated(folder: Path) -> list[Volume]:
    for path in write(folder, truth := volume("oblique")):
        resave(path, DeflatedExplicitVRLittleEndian)
    return [truth]


def compressed(folder: Path, syntax: str, signed: bool) -> list[Volume]:
    """Large enough for the levels of JPEG 2000."""
    truth = volume("oblique", (33, 41, 4), (0.3, 0.2, 2.5))
    truth = truth.with_values(truth.values.clip(0, 4000) - (1800 if signed else 0))
    for path in write(folder, truth):
        compress(path, syntax)
    return [truth]


@kind()
def rle(folder: Path) -> list[Volume]:
    return compressed(folder, RLELossless, signed=False)


@kind()
def rle_signed(folder: Path) -> list[Volume]:
    return compressed(folder, RLELossless, signed=True)


@kind()
def jpeg_ls(folder: Path) -> list[Volume]:
    return compressed(folder, JPEGLSLossless, signed=False)


@kind()
def jpeg_2000(folder: Path) -> list[Volume]:
    return compressed(folder, JPEG2000Lossless, signed=False)


@kind()
def jpeg_2000_signed(folder: Path) -> list[Volume]:
    return compressed(folder, JPEG2000Lossless, signed=True)


@kind()
def a_transfer_syntax_for_each_slice(folder: Path) -> list[Volume]:
    truth = volume("oblique", (33, 41, 4), (0.3, 0.2, 2.5))
    files = write(folder, truth)
    compress(files[0], RLELossless)
    compress(files[1], JPEG2000Lossless)
    resave(files[2], ImplicitVRLittleEndian)
    return [truth]


# Enhanced (multi-frame) files.


@kind()
def enhanced_ct(folder: Path) -> list[Volume]:
    truth = volume("oblique")
    write_enhanced(
        folder / "ct.dcm", [(truth.values, truth.ras)],
        groups=lambda stack, k: {"PixelValueTransformationSequence": {"RescaleSlope": 1 + k, "RescaleIntercept": -9}},
    )  # fmt: skip
    return [truth.with_values(truth.values * (1 + np.arange(6)) - 9)]


@kind()
def enhanced_mr_with_frames_out_of_order(folder: Path) -> list[Volume]:
    truth = volume("sagittal")
    write_enhanced(folder / "mr.dcm", [(truth.values, truth.ras)], "MR", [3, 0, 5, 1, 4, 2], shared=())
    return [truth]


@kind()
def enhanced_mr_without_shared_groups(folder: Path) -> list[Volume]:
    truth = volume("oblique")
    stacks = [(truth.values, truth.ras)]
    write_enhanced(folder / "mr.dcm", stacks, "MR", shared=(), SharedFunctionalGroupsSequence=[])
    return [truth]


@kind(noted="sheared by 15.0 degrees")
def enhanced_ct_with_a_gantry_tilt(folder: Path) -> list[Volume]:
    truth = volume(shear_mm=2.5 * np.tan(np.radians(15)))
    write_enhanced(folder / "ct.dcm", [(truth.values, truth.ras)], order=[5, 4, 3, 2, 1, 0])
    return [truth]


@kind(noted="one of 2 stacks of its series")
def enhanced_mr_of_two_stacks(folder: Path) -> list[Volume]:
    """As Philips has them: the frames of the stacks in turn, all groups in each frame, the number of the stack."""
    truths = [volume("sagittal"), volume("coronal", plus=100)]
    write_enhanced(
        folder / "mr.dcm", [(truth.values, truth.ras) for truth in truths], "MR", shared=(),
        order=[n // 2 + 6 * (n % 2) for n in range(12)],
        groups=lambda stack, k: {
            "FrameContentSequence": {"StackID": str(stack + 1), "InStackPositionNumber": k + 1},
            "PixelValueTransformationSequence": {"RescaleSlope": 1, "RescaleIntercept": 0},
        },
    )  # fmt: skip
    return truths


@kind(noted="StackID")
def enhanced_mr_of_two_parallel_stacks(folder: Path) -> list[Volume]:
    """Discs of a spine, planned without an angle: StackID alone says that no slice is missing between them."""
    truths = [volume(), volume(origin=ORIGIN + 40.0 * Z, plus=100)]
    write_enhanced(
        folder / "mr.dcm", [(truth.values, truth.ras) for truth in truths], "MR",
        groups=lambda stack, k: {"FrameContentSequence": {"StackID": str(stack + 1), "InStackPositionNumber": k + 1}},
    )  # fmt: skip
    return truths


@kind(noted="told apart by EffectiveEchoTime")
def enhanced_mr_of_two_echoes(folder: Path) -> list[Volume]:
    truths = [volume("oblique"), volume("oblique", plus=100)]
    write_enhanced(
        folder / "mr.dcm", [(truth.values, truth.ras) for truth in truths], "MR",
        order=np.random.default_rng(0).permutation(12).tolist(),
        groups=lambda stack, k: {"MREchoSequence": {"EffectiveEchoTime": (4.6, 9.2)[stack]}},
    )  # fmt: skip
    return truths


@kind(noted="told apart by TemporalPositionIndex")
def enhanced_mr_of_two_times(folder: Path) -> list[Volume]:
    truths = [volume(), volume(plus=100)]
    write_enhanced(
        folder / "mr.dcm", [(truth.values, truth.ras) for truth in truths], "MR",
        groups=lambda stack, k: {"FrameContentSequence": {"TemporalPositionIndex": stack + 1, "StackID": "1"}},
    )  # fmt: skip
    return truths


@kind()
def enhanced_mr_in_two_files(folder: Path) -> list[Volume]:
    """A concatenation: one object in parts."""
    shared, truth = uids(), volume("coronal")
    for number in range(2):
        part = truth.part(slice(3 * number, 3 * number + 3))
        write_enhanced(folder / f"{1 - number}.dcm", [(part.values, part.ras)], "MR", **shared)
    return [truth]


@kind()
def enhanced_mr_with_a_file_for_each_slice(folder: Path) -> list[Volume]:
    """As Siemens XA does."""
    shared, truth = uids(), volume("oblique")
    for k in range(6):
        part = truth.part(slice(k, k + 1))
        write_enhanced(folder / f"{6 - k}.dcm", [(part.values, part.ras)], "MR", shared=(), **shared)
    return [truth]


@kind()
def enhanced_ct_in_rle(folder: Path) -> list[Volume]:
    truth = volume("oblique", (33, 41, 4), (0.3, 0.2, 2.5))
    compress(write_enhanced(folder / "ct.dcm", [(truth.values, truth.ras)], order=[2, 0, 3, 1]), RLELossless)
    return [truth]


@kind(refused="5 mm instead of 2.5 mm between")
def enhanced_ct_with_a_missing_frame(folder: Path) -> list[Volume]:
    truth = volume()
    write_enhanced(folder / "ct.dcm", [(truth.values, truth.ras)], order=[0, 1, 2, 4, 5])
    return []


@kind(refused="6 frames, but 5 items of PerFrameFunctionalGroupsSequence")
def enhanced_ct_that_describes_fewer_frames(folder: Path) -> list[Volume]:
    truth = volume()
    path = write_enhanced(folder / "ct.dcm", [(truth.values, truth.ras)])
    dataset = pydicom.dcmread(path)
    del dataset.PerFrameFunctionalGroupsSequence[5]
    dataset.save_as(path)
    return []


@kind(refused="5 frames, but 6 items of PerFrameFunctionalGroupsSequence")
def enhanced_ct_that_describes_more_frames(folder: Path) -> list[Volume]:
    truth = volume()
    path = write_enhanced(folder / "ct.dcm", [(truth.values, truth.ras)])
    edit(path, NumberOfFrames=5, PixelData=pydicom.dcmread(path).PixelData[: 5 * 9 * 7 * 2])
    return []


@kind(refused="6 frames without a position each")
def several_frames_without_positions(folder: Path) -> list[Volume]:
    truth = volume()
    path = write_enhanced(folder / "ct.dcm", [(truth.values, truth.ras)])
    edit(path, PerFrameFunctionalGroupsSequence=None, SharedFunctionalGroupsSequence=None)
    return []


@kind(refused="mosaic of slices")
def a_mosaic(folder: Path) -> list[Volume]:
    write(folder, volume(shape=(18, 14, 1)), Modality="MR", ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    return []
