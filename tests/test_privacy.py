"""What a file says of its patient reaches nothing but a DICOM SEG: no line, no log, no error, no report, no bundle."""

import gzip
import io
import json
import logging
import traceback
import warnings

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import tifffile
from PIL import Image, PngImagePlugin
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from conftest import configure
from fewscan.cli import main
from fewscan.errors import FewscanError
from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.scans import find_scans, open_scan
from fewscan.scans.labels import read_values
from fewscan.scans.mask_files import read_mask
from runs.tiny import expected, noise, read, threshold_bundle
from scans.dicom_series import write_series
from scans.volumes import AFFINES

NAME, ID, BIRTH, ADDRESS = "Zyxwvut^Qponml", "ZQ73911", "19470311", "17 Quince Alley"
ACCESSION, PLACE, PHYSICIAN = "ACC55221", "Zebulon Infirmary", "Drzqk^Ottokar"
SECRETS = ("zyxwvut", "qponml", "zq73911", "19470311", "quince", "acc55221", "zebulon", "drzqk")
SHAPE = (16, 15, 7)
ALL = f"{NAME} {ID} {BIRTH} {ADDRESS} {ACCESSION} {PLACE} {PHYSICIAN}"


def label():
    values = np.zeros(SHAPE, np.uint8)
    values[2:9, 3:10, 2:5], values[9:14, 3:6, 2:5] = 1, 2
    return values


def who(dataset):
    """The patient at every place where a header has room for one."""
    item = Dataset()
    for target in (dataset, item):
        target.PatientName, target.PatientID, target.PatientBirthDate, target.PatientAddress = NAME, ID, BIRTH, ADDRESS
        target.AccessionNumber, target.InstitutionName = ACCESSION, PLACE
        target.ReferringPhysicianName = target.PerformingPhysicianName = PHYSICIAN
        target.PatientComments = target.ImageComments = target.StudyDescription = target.SeriesDescription = ALL[:64]
        block = target.private_block(0x0009, f"{PLACE} 1", create=True)
        block.add_new(0x01, "LO", NAME)
        block.add_new(0x02, "UN", ALL.encode())
    dataset.RequestAttributesSequence = Sequence([item])
    dataset.ReferencedPatientSequence = Sequence([item])
    dataset.file_meta.SourceApplicationEntityTitle = PLACE[:16]
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
    dataset.file_meta.PrivateInformation = ALL.encode()


def ct(folder, **changes):
    """A series that names its patient."""
    files = write_series(folder, noise(1, SHAPE), AFFINES["lps"], **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in files:
            dataset = pydicom.dcmread(file)
            who(dataset)
            dataset.save_as(file)
    return files


def raw(keyword, vr, text, only=None):
    """A spoiler: the element's bytes are a text, in all files or in one."""

    def spoil(files):
        for file in files if only is None else [files[only]]:
            dataset = pydicom.dcmread(file)
            value = text.encode() + b" " * (len(text) % 2)
            where = dataset.file_meta if keyword == "TransferSyntaxUID" else dataset
            if where is dataset.file_meta:
                data = file.read_bytes()
                old = str(where.TransferSyntaxUID).encode()
                file.write_bytes(data.replace(old, value[: len(old)].ljust(len(old)), 1))
                continue
            tag = Tag(keyword)
            dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
            dataset.save_as(file)

    spoil.__name__ = f"{keyword}"
    return spoil


def cut(files):
    files[4].write_bytes(files[4].read_bytes()[:-20])


def cut_in_header(files):
    files[4].write_bytes(files[4].read_bytes()[:900])


def missing_slice(files):
    files[4].unlink()


def one_instance_twice(files):
    data = bytearray(files[4].read_bytes())
    data[-1] ^= 1
    (files[4].parent / "again.dcm").write_bytes(data)


def equal_positions(files):
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID}.9"
        dataset.save_as(file.with_name(f"again{file.name}"))


def broken_rle(files):
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.compress(RLELossless)
        dataset.PixelData = dataset.PixelData[:-40]
        dataset.save_as(file)


def deflated_and_cut(files):
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.save_as(file)
        file.write_bytes(file.read_bytes()[:-10])


def no_mark(files):
    for file in files:
        file.write_bytes(file.read_bytes().replace(b"DICM", b"DOCM", 1))


def letters_for_lengths(files):
    for file in files:
        data = file.read_bytes()
        at = data.find(b"\x10\x00\x10\x00PN")
        file.write_bytes(data[: at + 6] + b"\xf0\xff" + data[at + 8 :])


def several_samples(files):
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.SamplesPerPixel, dataset.PixelData = 3, dataset.PixelData * 3
        dataset.save_as(file)
    raw("PhotometricInterpretation", "CS", WORD)(files)


def palette(files):
    raw("PhotometricInterpretation", "CS", "PALETTE COLOR")(files)


WORD = "ZYXWVUT"
SPOILED_DICOM = (
    cut, cut_in_header, missing_slice, one_instance_twice, equal_positions, broken_rle, deflated_and_cut, no_mark,
    letters_for_lengths,
    *(raw(keyword, vr, text) for keyword, vr, text in (
        ("PixelSpacing", "DS", NAME), ("ImagePositionPatient", "DS", f"{NAME}\\1\\2"), ("SeriesNumber", "IS", ID),
        ("ImageOrientationPatient", "DS", NAME), ("RescaleSlope", "DS", NAME), ("RescaleIntercept", "DS", BIRTH * 4),
        ("NumberOfFrames", "IS", ID), ("SOPClassUID", "UI", NAME), ("SOPInstanceUID", "UI", NAME),
        ("SeriesInstanceUID", "UI", NAME), ("StudyInstanceUID", "UI", NAME), ("FrameOfReferenceUID", "UI", NAME),
        ("PhotometricInterpretation", "CS", WORD), ("SamplesPerPixel", "US", "Zy"), ("BitsAllocated", "US", "Zy"),
        ("Modality", "CS", WORD), ("ImageType", "CS", f"{WORD}\\{WORD}"), ("SliceThickness", "DS", NAME),
        ("SpacingBetweenSlices", "DS", NAME), ("PatientSex", "CS", NAME), ("PatientBirthDate", "DA", ALL),
        ("PatientID", "LO", ALL), ("StudyDate", "DA", NAME), ("StudyTime", "TM", NAME), ("AccessionNumber", "SH", ALL),
        ("SpecificCharacterSet", "CS", NAME), ("AcquisitionNumber", "IS", NAME), ("ContentTime", "TM", NAME),
        ("TransferSyntaxUID", "UI", NAME), ("PixelPaddingValue", "US", "Zy"), ("Rows", "US", "Zy"),
    )),
    palette, several_samples, raw("PixelSpacing", "DS", NAME, only=3),
    raw("SOPClassUID", "UI", "1.2.840.10008.5.1.4.1.1.66.4"),
    raw("SOPClassUID", "UI", "1.2.840.10008.5.1.4.1.1.88.11", only=3), raw("StudyInstanceUID", "UI", ""),
)  # fmt: skip


class Heard(logging.Handler):
    """Every log line of every logger."""

    def __init__(self):
        super().__init__(logging.DEBUG)
        self.lines = []

    def emit(self, record):
        self.lines.append(f"{record.name} {record.getMessage()}")


@pytest.fixture
def heard(capfd):
    """Gives a function that says what was printed, logged and warned of since."""
    handler, root = Heard(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")

        def since():
            text = "\n".join([*capfd.readouterr(), *handler.lines, *(str(item.message) for item in warned)])
            handler.lines.clear()
            warned.clear()
            return text

        yield since
    root.removeHandler(handler)
    root.setLevel(before)


def assert_silent(text, where):
    low = text.lower()
    found = [secret for secret in SECRETS if secret in low]
    at = low.find(found[0]) if found else 0
    assert not found, f"{where}: {text[max(0, at - 200) : at + 100]!r}"


def assert_no_secret_below(folder):
    """Neither in a name nor in the bytes of a file, inflated where it is a gzip; DICOM SEGs belong to the patient."""
    for path in sorted(folder.rglob("*")):
        assert_silent(path.name, "file name")
        if path.is_file() and path.suffix != ".dcm":
            data = path.read_bytes()
            data = gzip.decompress(data) if path.suffix == ".gz" else data
            assert_silent(data.decode("latin-1"), path.name)


def segment(root, *more):
    return main(
        ["segment", str(root / "data"), "--bundle", str(root / "model"), "--output", str(root / "masks"), *more,
         "--device", "cpu", "--backend", "eager"]
    )  # fmt: skip


def opened(read, path):
    """What an error of `read` looks like with all that caused it, as Python prints it; "" where there is none."""
    try:
        read(path)
    except FewscanError as problem:
        return "".join(traceback.format_exception(problem)).replace("\n    ", " ")
    return ""


def test_good_dicom(tmp_path, heard):
    ct(tmp_path / "data" / "a")
    threshold_bundle(tmp_path / "model")
    assert segment(tmp_path, "--format", "dicom-seg,nifti,seg-nrrd") == 0
    assert_silent(heard(), "segment")
    assert_no_secret_below(tmp_path / "masks")
    np.testing.assert_array_equal(read(tmp_path / "masks" / "a_seg.nii.gz"), expected(noise(1, SHAPE)))
    seg = pydicom.dcmread(tmp_path / "masks" / "a_seg.dcm")
    assert (seg.PatientName, seg.PatientID, seg.PatientBirthDate) == (NAME, ID, BIRTH)


@pytest.mark.parametrize("spoil", SPOILED_DICOM, ids=lambda spoil: spoil.__name__)
def test_dicom_that_is_odd_or_refused(tmp_path, heard, spoil):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spoil(ct(tmp_path / "data" / "a"))
    write_series(tmp_path / "data" / "good", noise(2, SHAPE), AFFINES["lps"])
    threshold_bundle(tmp_path / "model")
    heard()
    assert segment(tmp_path) in (0, 2)
    text = heard()
    assert "Traceback" not in text
    assert_silent(text, "segment")
    assert_no_secret_below(tmp_path / "masks")
    assert (tmp_path / "masks" / "good_seg.dcm").exists()
    assert_silent(opened(lambda folder: open_scan([folder]).read(), tmp_path / "data" / "a"), "open_scan")
    for item in find_scans(tmp_path / "data").skipped:
        assert_silent(item.reason, "find_scans")
    scan = open_scan([tmp_path / "data" / "good"])
    for path in sorted((tmp_path / "data" / "a").iterdir())[3:5]:
        assert_silent(opened(lambda path: read_mask(path, scan, LabelTable.from_json(["a"])), path), "read_mask")
    assert_silent(heard(), "reading")


def nifti_extension(code, content):
    def spoil(image):
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, content))

    return spoil


def header_bytes(at, value):
    def spoil(data):
        return data[:at] + value + data[at + len(value) :]

    return spoil


SPOILED_NIFTI = {
    "good": lambda data: data,
    "cut": lambda data: data[:-50],
    "magic": header_bytes(344, b"Zyxw"),
    "datatype": header_bytes(70, b"\x2a\x2a"),
    "shape": header_bytes(40, b"\x03\x00\xff\xff\x08\x00"),
    "affine": header_bytes(280, b"\x00\x00\xc0\x7f" * 12),
    "units": header_bytes(123, b"\x03"),
    "dicom extension": lambda data: (
        data[:108] + np.float32(512).tobytes() + data[112:348] + b"\x01\0\0\0" + np.array([160, 2], "<i4").tobytes()
        + ALL.encode().ljust(152, b"\0") + data[352:]
    ),
    "comment extension": lambda data: (
        data[:108] + np.float32(512).tobytes() + data[112:348] + b"\x01\0\0\0" + np.array([160, 6], "<i4").tobytes()
        + ALL.encode().ljust(152, b"\0") + data[352:]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED_NIFTI)
def test_nifti(tmp_path, heard, name):
    image = nibabel.Nifti1Image(noise(1, SHAPE), AFFINES["lps"])
    image.header["descrip"], image.header["aux_file"], image.header["intent_name"] = ALL[:80], NAME, NAME
    image.header["db_name"] = NAME
    (tmp_path / "data").mkdir()
    data = SPOILED_NIFTI[name](image.to_bytes())
    (tmp_path / "data" / "a.nii").write_bytes(data)
    (tmp_path / "data" / "b.nii.gz").write_bytes(gzip.compress(data))
    nibabel.save(nibabel.Nifti1Image(noise(2, SHAPE), AFFINES["lps"]), tmp_path / "data" / "good.nii.gz")
    threshold_bundle(tmp_path / "model")
    assert segment(tmp_path, "--format", "nifti,seg-nrrd") in ((0,) if name == "good" else (0, 2))
    for path in (tmp_path / "data" / "a.nii", tmp_path / "data" / "b.nii.gz"):
        assert_silent(opened(read_values, path), "read_values")
    assert_silent(heard(), "segment")
    assert_no_secret_below(tmp_path / "masks")


NRRD = "NRRD0005\ntype: short\ndimension: 3\nsizes: 4 3 2\nspace: left-posterior-superior\nendian: little\n" \
       "encoding: raw\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"  # fmt: skip
NRRD_LINES = {
    "good": f"# {ALL}\ncontent: {ALL}\npatient:={ALL}\nDICOM_0010_0010:={NAME}",
    "line": ALL, "field": f"{NAME}: {ID}", "sizes": f"sizes: {NAME}", "units": f"units: {NAME}",
    "kinds": f"kinds: {NAME} domain domain", "file": f"data file: {NAME}.raw", "elsewhere": f"data file: ../{NAME}.raw",
    "labels": f'labels: "{NAME}" "{ID}" "{PLACE}"', "centerings": f"centerings: {NAME}", "old min": f"old min: {NAME}",
    "thicknesses": f"thicknesses: {NAME} 1 1", "number": f"number: {NAME}", "block size": f"block size: {NAME}",
    "sample units": f"sample units: {ALL}", "spacings": f"spacings: {NAME}", "byte skip": f"byte skip: {NAME}",
    "measurement frame": f"measurement frame: {NAME}", "line skip": f"line skip: {ID}",
}  # fmt: skip


@pytest.mark.parametrize("name", NRRD_LINES)
def test_nrrd(tmp_path, heard, name):
    (tmp_path / "data").mkdir()
    voxels = np.arange(24, dtype="<i2").tobytes()
    kept = [line for line in NRRD.splitlines() if not NRRD_LINES[name].startswith(line.split(":")[0] + ":")]
    for file in ("a.nrrd", "b.seg.nrrd"):
        (tmp_path / "data" / file).write_bytes("\n".join([*kept, NRRD_LINES[name], "", ""]).encode() + voxels)
    meta = f"ObjectType = Image\nNDims = 3\nComment = {ALL}\nDimSize = 4 3 2\nElementType = MET_SHORT\n"
    meta += f"{NAME} = {ID}\n" if name == "field" else f"ElementSpacing = {NAME}\n" if name == "spacings" else ""
    (tmp_path / "data" / "c.mha").write_bytes(meta.encode() + b"ElementDataFile = LOCAL\n" + voxels)
    (tmp_path / "data" / "d.mhd").write_bytes(meta.encode() + f"ElementDataFile = {NAME}.raw\n".encode())
    threshold_bundle(tmp_path / "model")
    nibabel.save(nibabel.Nifti1Image(noise(2, SHAPE), AFFINES["lps"]), tmp_path / "data" / "good.nii.gz")
    assert segment(tmp_path, "--format", "nifti,seg-nrrd") in (0, 2)
    scan = open_scan([tmp_path / "data" / "good.nii.gz"])
    for path in sorted((tmp_path / "data").iterdir()):
        assert_silent(opened(read_values, path), "read_values")
        assert_silent(opened(lambda path: read_mask(path, scan, LabelTable.from_json(["a"])), path), "read_mask")
    assert_silent(heard(), "segment")
    assert_no_secret_below(tmp_path / "masks")
    if name == "good":
        np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "data/a.nrrd")))
                                      .ravel(), np.arange(24))  # fmt: skip
        assert (tmp_path / "masks" / "a_seg.nii.gz").exists()


def test_pictures(tmp_path, heard):
    (tmp_path / "data").mkdir()
    pixels = noise(1, (20, 30, 1))[..., 0].astype(np.uint16)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Patient", ALL)
    notes.add_itxt("Comment", ALL, zip=True)
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = ALL, NAME
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=notes, exif=exif)
    data = buffer.getvalue()
    (tmp_path / "data" / "a.png").write_bytes(data)
    (tmp_path / "data" / "b.png").write_bytes(data[:-30])
    (tmp_path / "data" / "c.png").write_bytes(data.replace(b"tEXtPatient", b"IDATPatient"))
    Image.fromarray((pixels >> 2).astype(np.uint8)).save(tmp_path / "data" / "d.jpg", exif=exif, comment=ALL)
    tifffile.imwrite(tmp_path / "data" / "e.tif", pixels, description=ALL, software=NAME, metadata=None)
    tifffile.imwrite(tmp_path / "data" / "f.tif", pixels, description=f"<OME {ALL}", metadata=None)
    tifffile.imwrite(tmp_path / "data" / "g.tif", pixels, description=f"ImageJ=1\nimages={NAME}\nunit={NAME}\n",
                     metadata=None)  # fmt: skip
    (tmp_path / "data" / "h.tif").write_bytes((tmp_path / "data" / "e.tif").read_bytes()[:-400])
    ome = f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><x>{ALL}</OME>'
    tifffile.imwrite(tmp_path / "data" / "i.ome.tif", pixels, description=ome, metadata=None, ome=False)
    threshold_bundle(tmp_path / "model", dims=2)
    heard()
    assert segment(tmp_path) == 2
    for path in sorted((tmp_path / "data").iterdir()):
        assert_silent(opened(read_values, path), "read_values")
    assert_silent(heard(), "segment")
    assert_no_secret_below(tmp_path / "masks")
    assert (tmp_path / "masks" / "a_seg.png").exists()


def test_plan_preview_and_validate(tmp_path, heard):
    """From DICOM with NIfTI and DICOM SEG labels: the bundle is passed on, and its pages too."""
    data, labels = tmp_path / "data" / "images", tmp_path / "data" / "labels"
    labels.mkdir(parents=True)
    for number in range(3):
        ct(data / f"case{number}")
        image = nibabel.Nifti1Image(label(), AFFINES["lps"])
        image.header["descrip"] = ALL[:80]
        nibabel.save(image, labels / f"case{number}.nii.gz")
    missing_slice(ct(data / "case3"))
    raw("PixelSpacing", "DS", NAME)(ct(data / "case4"))
    for number in (3, 4):
        nibabel.save(image, labels / f"case{number}.nii.gz")
    heard()
    bundle = tmp_path / "bundle"
    assert main(["plan", str(tmp_path / "data"), "--output", str(bundle)]) == 2
    configure(bundle, patch=[16, 16], epochs=1, steps_per_epoch=2)
    assert main(["preview", str(bundle)]) == 0
    assert main(["validate", str(bundle), "--device", "cpu"]) in (0, 2)
    assert_silent(heard(), "plan, preview, validate")
    assert_no_secret_below(bundle)
    assert json.loads((bundle / "configs" / "datalist.json").read_text())["training"]


def test_a_damaged_seg_as_a_label(tmp_path, heard):
    ct(tmp_path / "a")
    scan, table = open_scan([tmp_path / "a"]), LabelTable.from_json(["left kidney", "spleen"])
    (path,) = write_mask(label(), scan, table, tmp_path / "a_seg", "dicom-seg")
    assert pydicom.dcmread(path).PatientName == NAME
    np.testing.assert_array_equal(read_mask(path, scan, table)[0], label())
    for change in (
        raw("SegmentationType", "CS", WORD), raw("Modality", "CS", WORD), raw("SOPClassUID", "UI", NAME),
        raw("NumberOfFrames", "IS", NAME), raw("Rows", "US", "Zy"), raw("FrameOfReferenceUID", "UI", NAME), cut_end,
        letters_for_lengths,
    ):  # fmt: skip
        (spoiled,) = write_mask(label(), scan, table, tmp_path / "b_seg", "dicom-seg")
        change([spoiled])
        told = opened(lambda path: read_mask(path, scan, table), spoiled)
        assert told or change.__name__ in ("Modality", "letters_for_lengths"), change.__name__
        assert_silent(told, change.__name__)
    assert_silent(heard(), "reading")


def cut_end(files):
    files[0].write_bytes(files[0].read_bytes()[:-40])


def test_the_watch_hears_what_libraries_say(heard):
    """Without our care pydicom quotes a header's values in warnings: the watch would notice."""
    Dataset().PatientBirthDate = NAME
    with pytest.raises(AssertionError, match="zyxwvut"):
        assert_silent(heard(), "pydicom")
