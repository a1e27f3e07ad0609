"""`fewscan demo`: the whole path on a real brain MRI, in a few minutes on two cores, with nothing downloaded.

The MRI is MNI152 (ICBM 2009a, the average T1 of 152 people) with its grey and white matter maps, which nilearn's
package ships. A few slices are the annotated ones; the rest of the brain is what one wants segmented.
"""

from __future__ import annotations

import base64
import datetime
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
from nilearn import datasets
from numpy.typing import NDArray

from fewscan import __version__
from fewscan.bundle import read_json
from fewscan.files import replace_when_complete
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.masks import write_overlay

ANNOTATED = range(14, 106, 13)
"""Axial slices whose masks are learned from: 8 of 189, 13 mm apart, from the cerebellum up."""
SCORED = range(116, 189)
"""Slices that the masks are scored on: above the annotated ones, with a gap of 10 slices between."""
SHOWN = 130
"""The scored slice that the page shows with both the truth and the mask."""
BLOCK = range(118, 150)
"""Slices of which the demo makes a DICOM series and an NRRD."""
NAMES = ("grey matter", "white matter")


def demo(output: Path, minutes: float) -> int:
    """Plan, train, segment and score in `output`; returns the exit code of `segment`. Can be repeated and resumed.

    Args:
        output: a folder; gets `data`, `scans`, `bundle`, `masks` and `index.html`.
        minutes: of training.
    """
    from fewscan.runs.segment import segment
    from fewscan.training.plan import plan
    from fewscan.training.run import train

    brain, truth, affine = _mni152()
    print(f"MNI152: {' x '.join(map(str, brain.shape))} voxels of 1 mm; {len(ANNOTATED)} axial slices are annotated")
    data, scans, bundle, masks = (output / name for name in ("data", "scans", "bundle", "masks"))
    _write_annotated_slices(data, brain, truth, affine)
    _write_scans(scans, brain, affine)
    if not (bundle / "configs" / "train.json").exists():
        plan(data, bundle, window=(0, 255), validation=0)
    if not (bundle / "models" / "model.pt").exists():
        train(bundle, minutes)
    report = segment(scans, bundle, masks)
    for row in report.failed:
        print(f"failed: {row['reason']}")
    if report.exit_code != 0:
        return report.exit_code
    table = LabelTable.from_json(read_json(bundle / "configs" / "inference.json")["labels"])
    answer = np.asarray(nibabel.load(masks / "mni152_seg.nii.gz").dataobj)
    scores = _dice(answer, truth, SCORED)
    same = {
        "DICOM-SEG (read by highdicom)": _agreement(_read_dicom_seg(masks / "dicom_seg.dcm"), answer[..., BLOCK]),
        "seg.nrrd (read by SimpleITK)": _agreement(
            _read_nrrd(masks / "superior_block_seg.seg.nrrd"), answer[..., BLOCK]
        ),
    }
    told = ", ".join(f"{name} {value:.3f}" for name, value in zip(NAMES, scores, strict=True))
    print(f"Dice on slices {SCORED[0]} to {SCORED[-1]}: {told}")
    for file, share in same.items():
        print(f"{file}: {share:.4%} of its voxels equal the NIfTI mask")
    pictures = []
    for name, volume in (("the maps that ship with MNI152", truth), ("what the network says", answer)):
        picture = output / f"slice_{SHOWN}_{'truth' if volume is truth else 'mask'}.png"
        one = slice(SHOWN, SHOWN + 1)
        grid = Grid((*brain.shape[:2], 1), _moved(affine, SHOWN))
        write_overlay(brain[None, ..., one], volume[..., one], grid, table, picture, title=f"slice {SHOWN}: {name}")
        pictures.append((name, picture))
    pictures += [(", ".join(row["masks"]), masks / f"{row['scan']}_seg_overlay.png") for row in report.rows]
    page = output / "index.html"
    with replace_when_complete(page) as temporary:
        temporary.write_text(_page(scores, same, pictures), encoding="utf-8")
    print(f"open {page}")
    return 0


def _mni152() -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]:
    """T1, label values (1 grey, 2 white matter, where the map says more than half) and affine."""
    folder = Path(datasets.__file__).parent / "data"
    image, grey, white = (
        nibabel.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz") for name in ("t1", "gm", "wm")
    )
    g, w = np.asarray(grey.dataobj), np.asarray(white.dataobj)
    truth = np.where((w > 127) & (w > g), 2, np.where(g > 127, 1, 0)).astype(np.uint8)
    return np.asarray(image.dataobj).astype(np.uint8), truth, np.array(image.affine)


def _write_annotated_slices(
    data: Path, brain: NDArray[np.uint8], truth: NDArray[np.uint8], affine: NDArray[np.float64]
) -> None:
    for folder, volume in (("images", brain), ("labels", truth)):
        (data / folder).mkdir(parents=True, exist_ok=True)
        for k in ANNOTATED:
            _save(volume[..., k : k + 1], _moved(affine, k), data / folder / f"slice_{k:03d}.nii.gz")
    (data / "labels.ctbl").write_text(
        "0 Background 0 0 0 0\n1 grey_matter 220 130 60 255\n2 white_matter 90 170 240 255\n"
    )


def _write_scans(scans: Path, brain: NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    import SimpleITK

    scans.mkdir(parents=True, exist_ok=True)
    _save(brain, affine, scans / "mni152.nii.gz")
    block, block_affine = brain[..., BLOCK], _moved(affine, BLOCK[0])
    image = SimpleITK.GetImageFromArray(block.transpose(2, 1, 0))
    image.SetOrigin((np.diag([-1, -1, 1]) @ block_affine[:3, 3]).tolist())
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    if not (scans / "superior_block.nrrd").exists():
        with replace_when_complete(scans / "superior_block.nrrd") as temporary:
            SimpleITK.WriteImage(image, temporary, useCompression=True)
    if not (scans / "dicom").exists():
        with TemporaryDirectory(prefix=".partial-", dir=scans) as hidden:  # half a series would be a shorter scan
            series = Path(hidden) / "dicom"
            series.mkdir()
            _write_dicom_series(series, block, block_affine)
            series.rename(scans / "dicom")


def _save(volume: NDArray[np.uint8], affine: NDArray[np.float64], path: Path) -> None:
    """As NIfTI, in scanner coordinates; a file that is there stays, so that receipts of a former run hold."""
    if not path.exists():
        image = nibabel.Nifti1Image(volume, affine)
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code=1)
        image.set_qform(affine, code=1)
        with replace_when_complete(path) as temporary:
            nibabel.save(image, temporary)


def _moved(affine: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """The affine of the volume that begins at slice k."""
    moved = affine.copy()
    moved[:3, 3] += k * affine[:3, 2]
    return moved


def _write_dicom_series(folder: Path, block: NDArray[np.uint8], affine: NDArray[np.float64]) -> None:
    """An axial MR series of the block; rows and columns along the affine's first two axes."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    to_lps = np.diag([-1.0, -1.0, 1.0])
    directions = to_lps @ affine[:3, :3]
    spacing = np.linalg.norm(directions, axis=0)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    today = datetime.date.today().strftime("%Y%m%d")
    for k in range(block.shape[2]):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = MRImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.PatientName, slice_.PatientID, slice_.PatientBirthDate, slice_.PatientSex = "MNI152", "MNI152", "", ""
        slice_.StudyDate, slice_.StudyTime, slice_.StudyID, slice_.AccessionNumber = today, "000000", "1", ""
        slice_.ReferringPhysicianName, slice_.Manufacturer, slice_.Modality = "", "fewscan demo", "MR"
        slice_.SeriesNumber, slice_.InstanceNumber, slice_.PositionReferenceIndicator = 1, k + 1, ""
        slice_.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
        slice_.ScanningSequence, slice_.SequenceVariant, slice_.ScanOptions = "RM", "NONE", ""
        slice_.MRAcquisitionType, slice_.EchoTime, slice_.EchoTrainLength = "3D", "", ""
        slice_.ImagePositionPatient = (to_lps @ (affine[:3, 3] + k * affine[:3, 2])).tolist()
        slice_.ImageOrientationPatient = [*(directions[:, 0] / spacing[0]), *(directions[:, 1] / spacing[1])]
        slice_.PixelSpacing, slice_.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = block.shape[1], block.shape[0], 1
        slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 8, 7
        slice_.PixelData = np.ascontiguousarray(block[..., k].T.astype("<u2")).tobytes()
        slice_.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)


def _dice(answer: NDArray[Any], truth: NDArray[Any], slices: range) -> list[float]:
    """Of each label, over these slices together."""
    a, t = answer[..., slices], truth[..., slices]
    return [float(2 * ((a == v) & (t == v)).sum() / ((a == v).sum() + (t == v).sum())) for v in (1, 2)]


def _agreement(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float((one == other).mean()) if one.shape == other.shape else 0.0


def _read_dicom_seg(path: Path) -> NDArray[Any]:
    """Label values (i, j, k) in the order of the source's slices, by highdicom alone."""
    import highdicom

    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    array = volume.to_patient_orientation("RAS").array  # the demo's affine is RAS already
    return np.asarray(array)


def _read_nrrd(path: Path) -> NDArray[Any]:
    import SimpleITK

    return np.asarray(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))).transpose(2, 1, 0)


def _page(scores: Sequence[float], same: Mapping[str, float], pictures: Sequence[tuple[str, Path]]) -> str:
    """One HTML page that opens offline: the pictures are inside."""
    dice = "".join(f"<td>{value:.3f}</td>" for value in scores)
    equal = "".join(f"<li>{file}: {share:.4%} of its voxels equal the NIfTI mask</li>" for file, share in same.items())
    shown = "".join(
        f"<h3>{html.escape(name)}</h3>"
        f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}">'
        for name, file in pictures
    )
    return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>fewscan demo</title>
<style>body{{font-family:sans-serif;max-width:70em;margin:2em auto;line-height:1.5}}img{{max-width:100%}}
td,th{{padding:.2em 1em;text-align:left;border-bottom:1px solid #ccc}}</style>
<h1>fewscan demo: a brain from {len(ANNOTATED)} annotated slices</h1>
<p>A 2D U-Net learned from axial slices {ANNOTATED[0]} to {ANNOTATED[-1]} of MNI152, the average T1-weighted MRI of 152
people, every {ANNOTATED.step}th of them annotated. Then it segmented the whole brain, an NRRD and a DICOM series of
slices {BLOCK[0]} to {BLOCK[-1]} (counted from 0).</p>
<h2>Scores (Dice)</h2>
<table><tr><th>slices</th><th>{"</th><th>".join(NAMES)}</th></tr>
<tr><td>{SCORED[0]} to {SCORED[-1]}</td>{dice}</tr></table>
<p><b>What that is worth:</b> training and test slices come from one and the same volume. They lie at least
{SCORED[0] - ANNOTATED[-1]} mm apart, so that no scored slice is a near copy of a learned one; slices between the
annotated ones are not scored. But it is one average brain, very smooth, of one protocol. On another person's scan
expect less. An honest estimate needs other people's scans.</p>
<h2>The same mask in three formats</h2><ul>{equal}</ul>
<h2>Pictures</h2>{shown}
<p>fewscan {__version__}. MNI152: copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University (Fonov et al. 2009, NeuroImage 47 S102).</p></html>
"""
