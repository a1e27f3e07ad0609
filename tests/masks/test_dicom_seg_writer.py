"""The stream of a DICOM-SEG holds what highdicom's own writer would, whatever the scan, the labels and their number."""

import tracemalloc
import zlib

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless, generate_uid

from conftest import shared
from fewscan.errors import FormatError
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.masks.dicom_seg import binary as dicom_seg
from fewscan.masks.dicom_seg import frames as dicom_seg_frames
from fewscan.masks.dicom_seg.labelmap import check
from fewscan.scans import open_scan
from fewscan.scans.dicom_segments import read_dicom_segments
from masks.cases import GRIDS, LARGE, SHEARED, TABLE, dicom_scan, mask

KINDS = {"dicom-seg": "BINARY", "dicom-seg-labelmap": "LABELMAP"}
MODEL = {"bundle": "kidneys", "version": "1.2", "model_sha256": "ab" * 32}
MANY = LabelTable.from_json([f"part {number}" for number in range(1, 301)])
ONE = LabelTable.from_json(["liver"])
FREE = ("SOPInstanceUID", "SeriesInstanceUID", "InstanceCreationDate", "InstanceCreationTime", "ContentDate",
        "ContentTime")  # fmt: skip
"""What differs from one writing to the next."""


@pytest.fixture(autouse=True, params=["plain", "deflated"])
def size(request, monkeypatch):
    """Files of many pixels are deflated: here, as if small ones were many."""
    monkeypatch.setattr(dicom_seg_frames, "PLAIN", 10**9 if request.param == "plain" else -1)


def in_order(table, seg):
    """The table in the order of the segments, which are known by their names."""
    labels = {label.name: label for label in table}
    return LabelTable(tuple(labels[item.SegmentLabel] for item in seg.SegmentSequence if item.SegmentNumber > 0))


def by_highdicom(ours, scan, values, table, kind):
    """highdicom's own SEG of the whole mask with the descriptions of `ours`, but a label map's background last."""
    sources = [pydicom.dcmread(file) for file in dict.fromkeys(scan.files)]
    table = LabelTable(tuple(sorted(table, key=lambda label: label.value not in values)))  # present ones first
    planes = table.to_classes(values, "").transpose(2, 1, 0)
    if scan.frames:
        frames = np.zeros((int(sources[0].NumberOfFrames), *planes.shape[1:]), dtype=planes.dtype)
        frames[np.array(scan.frames) - 1] = planes
        planes = frames
        measures = sources[0].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SpacingBetweenSlices = f"{scan.grid.spacing_mm[2]:.10g}"  # by the positions, whatever the source says
    where = {}
    if not values.any():
        position = highdicom.PlanePositionSequence("PATIENT", sources[0].ImagePositionPatient)
        where, planes = {"plane_positions": [position], "omit_empty_frames": False}, planes[:1]
    described = [item for item in ours.SegmentSequence if item.SegmentNumber > 0]
    seg = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=np.ascontiguousarray(planes),
        segmentation_type=kind,
        segment_descriptions=[highdicom.seg.SegmentDescription.from_dataset(item) for item in described],
        series_instance_uid=highdicom.UID(),
        sop_instance_uid=highdicom.UID(),
        transfer_syntax_uid=RLELossless if kind == "LABELMAP" else ExplicitVRLittleEndian,
        specific_character_set=ours.get("SpecificCharacterSet"),
        **{name: ours[keyword].value for name, keyword in {
            "series_number": "SeriesNumber", "instance_number": "InstanceNumber", "manufacturer": "Manufacturer",
            "manufacturer_model_name": "ManufacturerModelName", "software_versions": "SoftwareVersions",
            "device_serial_number": "DeviceSerialNumber", "content_label": "ContentLabel",
            "content_description": "ContentDescription", "content_creator_name": "ContentCreatorName",
            "series_description": "SeriesDescription"}.items()},
        **where,
    )  # fmt: skip
    if kind == "LABELMAP":
        background, *others = seg.SegmentSequence
        seg.SegmentSequence = [*others, background]
    return seg


def without_what_is_free(seg):
    for name in FREE:
        setattr(seg, name, "")
    for item in (*seg.DimensionIndexSequence, *seg.DimensionOrganizationSequence):
        item.DimensionOrganizationUID = ""
    seg.ContributingEquipmentSequence[-1].ContributionDateTime = ""
    return seg


def assert_same_elements(path, scan, values, table, kind, folder):
    """Every element of the file, in all depths: tag, VR and value; and the file meta information."""
    ours = pydicom.dcmread(path)
    by_highdicom(ours, scan, values, table, kind).save_as(folder / "highdicom.dcm")
    theirs = pydicom.dcmread(folder / "highdicom.dcm")
    assert ours.file_meta.MediaStorageSOPInstanceUID == ours.SOPInstanceUID
    binary = DeflatedExplicitVRLittleEndian if dicom_seg_frames.PLAIN < 0 else ExplicitVRLittleEndian
    syntax = RLELossless if kind == "LABELMAP" else binary
    assert ours.file_meta.TransferSyntaxUID == syntax
    for meta in (ours.file_meta, theirs.file_meta):
        for name in ("MediaStorageSOPInstanceUID", "TransferSyntaxUID", "FileMetaInformationGroupLength"):
            delattr(meta, name)
    assert ours.file_meta == theirs.file_meta
    without_what_is_free(ours), without_what_is_free(theirs)
    size = -(-int(ours.NumberOfFrames) * ours.Rows * ours.Columns // 8)
    if kind == "BINARY" and size % 2:  # DICOM pads with a zero byte, highdicom 0.28 with the digit 0
        assert ours.PixelData[size:] == b"\0"
        theirs.PixelData = theirs.PixelData[:size] + b"\0"
    assert [element.tag for element in ours] == [element.tag for element in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other, mine.keyword


def spread(table, shape):
    """Every label of the table somewhere, and the background."""
    return table.to_values(np.random.default_rng(1).integers(0, len(table) + 1, shape))


CASES = {
    **{name: (where, TABLE, mask()) for name, where in GRIDS.items()},
    "sheared": (SHEARED, TABLE, mask()),
    "large values": (GRIDS["oblique"], LARGE, mask(LARGE)),
    "300 labels": (GRIDS["oblique"], MANY, spread(MANY, (9, 6, 7))),
    "eight pixels to a byte": (Grid((8, 4, 7), GRIDS["oblique"].affine), TABLE, spread(TABLE, (8, 4, 7))),
    "one label": (GRIDS["oblique"], ONE, np.minimum(mask(), 1)),
    "one label with a gap": (GRIDS["axial"], ONE, np.minimum(mask(), 1) * (np.arange(7) % 3 > 0).astype(np.uint8)),
    "one slice": (Grid((9, 6, 1), GRIDS["oblique"].affine), TABLE, mask()[:, :, 1:2]),
    "a label absent": (GRIDS["axial"], TABLE, np.where(mask() == 5, 0, mask()).astype(np.uint8)),
    "everywhere": (GRIDS["axial"], TABLE, np.full_like(mask(), 5)),
    "empty": (GRIDS["oblique"], TABLE, np.zeros_like(mask())),
    "empty, one label": (GRIDS["oblique"], ONE, np.zeros_like(mask())),
}


@pytest.mark.parametrize("format", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_every_element_is_that_of_highdicom(tmp_path, name, format):
    where, table, values = CASES[name]
    scan = dicom_scan(tmp_path / "series", where, SpacingBetweenSlices=2.5)
    (path,) = write_mask(values, scan, table, tmp_path / "m_seg", format, MODEL)
    assert_same_elements(path, scan, values, table, KINDS[format], tmp_path)


@pytest.mark.parametrize("format", KINDS)
def test_the_same_of_an_enhanced_file(tmp_path, format):
    scan = enhanced(tmp_path)
    values = np.zeros(scan.grid.shape, dtype=np.uint8)
    values[3:40, 4:90, 2], values[0, 0, -1], values[9, 9, 0] = 1, 3, 5
    (path,) = write_mask(values, scan, TABLE, tmp_path / "m_seg", format, MODEL)
    assert_same_elements(path, scan, values, TABLE, KINDS[format], tmp_path)


def enhanced(folder):
    files = shared("data/dicom_series_dicom2nifti") / "philips_enhanced" / "anatomical" / "001"
    source = pydicom.dcmread(next(files.iterdir()))
    source.FrameOfReferenceUID = generate_uid()  # anonymised away in the public file
    for sequence in ("PlaneOrientationSequence", "PixelMeasuresSequence"):  # as highdicom wants them
        first = source.PerFrameFunctionalGroupsSequence[0].get(sequence)
        if first:
            setattr(source.SharedFunctionalGroupsSequence[0], sequence, first)
    for name in ("PatientSex", "AccessionNumber", "PatientBirthDate", "ReferringPhysicianName", "StudyID"):
        setattr(source, name, source.get(name, ""))
    source.save_as(folder / "enhanced.dcm")
    distance = open_scan([folder / "enhanced.dcm"]).grid.spacing_mm[2]
    source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = f"{distance:.10g}"
    source.save_as(folder / "enhanced.dcm")
    return open_scan([folder / "enhanced.dcm"])


@pytest.mark.parametrize("values", [mask(), np.full_like(mask(), 5)], ids=["odd", "even"])
def test_the_stream_ends_where_the_file_does(tmp_path, values):
    scan = dicom_scan(tmp_path / "series", GRIDS["axial"])
    (path,) = write_mask(values, scan, TABLE, tmp_path / "m_seg", "dicom-seg", MODEL)
    length = 128 + 4 + 12 + pydicom.filereader.read_file_meta_info(path).FileMetaInformationGroupLength
    inflated = data = path.read_bytes()[length:]
    if pydicom.dcmread(path).file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        inflated = stream.decompress(data)
        assert stream.eof and stream.unused_data in (b"", b"\0")
    assert len(data) % 2 == 0 and len(inflated) % 2 == 0


@pytest.mark.parametrize("format", KINDS)
def test_the_layout_in_memory_changes_no_byte(tmp_path, format):
    scan, values = dicom_scan(tmp_path / "series", GRIDS["oblique"]), mask()
    there = np.memmap(tmp_path / "labels.raw", values.dtype, "w+", shape=values.shape, order="F")
    there[:] = values
    layouts = {
        "C": values,
        "Fortran": np.asfortranarray(values),
        "map": there,
        "turned": np.ascontiguousarray(values.transpose(1, 2, 0)).transpose(2, 0, 1),
        "reversed": np.ascontiguousarray(values[::-1, :, ::-1])[::-1, :, ::-1],
        "big endian": values.astype(">u2"),
    }
    written = {name: write_mask(array, scan, TABLE, tmp_path / "m", format, MODEL, True)[0].read_bytes()
               for name, array in layouts.items()}  # fmt: skip
    assert set(written.values()) == {written["C"]}


@pytest.mark.parametrize("format", KINDS)
def test_reproducible_files_are_equal_and_named_after_what_they_hold(tmp_path, format):
    scan = dicom_scan(tmp_path / "series", GRIDS["oblique"], AcquisitionDate="20200103", AcquisitionTime="111213.5")
    other_scan = dicom_scan(tmp_path / "other", GRIDS["oblique"], ContentDate=None, AcquisitionDate="20200103",
                            AcquisitionTime="111213.5")  # fmt: skip
    other_values = mask()
    other_values[4, 4, 4] = 1

    def made(scan=scan, values=None, table=TABLE, model=MODEL, reproducible=True):
        values = mask() if values is None else values
        (path,) = write_mask(values, scan, table, tmp_path / "m", format, model, reproducible)
        return path.read_bytes(), pydicom.dcmread(path)

    first, seg = made()
    assert made()[0] == first
    assert (seg.ContentDate, seg.ContentTime, seg.InstanceCreationDate) == ("20200102", "030405", "20200102")
    others = [
        made(scan=other_scan)[1],
        made(values=other_values)[1],
        made(table=LabelTable.from_json(["left kidney", {"name": "gadget", "value": 5}, "aorta"]))[1],
        made(model={**MODEL, "model_sha256": "cd" * 32})[1],
        made(reproducible=False)[1],
        made(reproducible=False)[1],
    ]
    assert (others[0].ContentDate, others[0].ContentTime) == ("20200103", "111213.5")
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        uids = {str(one.get(name)) for one in (seg, *others)}
        assert len(uids) == len(others) + 1, name
        assert all(pydicom.uid.UID(uid).is_valid for uid in uids)
    assert seg.DimensionIndexSequence[0].DimensionOrganizationUID not in (seg.SOPInstanceUID, seg.SeriesInstanceUID)


def test_a_source_without_times_gives_the_same_file_again(tmp_path):
    none = dict.fromkeys(("ContentDate", "ContentTime", "StudyDate", "StudyTime"))
    scan = dicom_scan(tmp_path / "series", GRIDS["axial"], **none)
    files = [write_mask(mask(), scan, TABLE, tmp_path / "m", "dicom-seg", MODEL, True)[0].read_bytes() for _ in "ab"]
    assert files[0] == files[1]
    assert pydicom.dcmread(tmp_path / "m.dcm").ContentDate == "19000101"


def test_memory_is_not_that_of_the_frames(tmp_path):
    """4 million voxels, each plane with each of 64 labels: 4,096 frames of 8 KiB, 32 MiB."""
    table = LabelTable.from_json([f"part {number}" for number in range(1, 65)])
    scan = dicom_scan(tmp_path / "series", Grid((256, 256, 64), GRIDS["axial"].affine))
    values = np.asfortranarray(np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None] // 4 + 1, scan.grid.shape))
    dicom_seg.write(tmp_path / "m.dcm", values, scan, table, MODEL)  # loads what it needs
    tracemalloc.start()
    dicom_seg.write(tmp_path / "m.dcm", values, scan, table, MODEL)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert int(pydicom.dcmread(tmp_path / "m.dcm").NumberOfFrames) == 64 * 64
    assert peak < 8 * 2**20
    tracemalloc.start()
    dicom_seg.check(tmp_path / "m.dcm", values, scan, table)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * 2**20  # pydicom's objects of 4,096 items take most of it


def test_more_than_an_element_can_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_seg_frames, "LONGEST", 40)  # bytes: six frames of 54 pixels take 41
    scan = dicom_scan(tmp_path / "series", GRIDS["axial"])
    with pytest.raises(FormatError, match=r"m\.dcm: 6 frames of 9 x 6 pixels .*choose dicom-seg-labelmap"):
        write_mask(mask(), scan, TABLE, tmp_path / "m", "dicom-seg")
    assert list(tmp_path.glob("*.dcm")) == []


@pytest.mark.parametrize("name", ["large values", "300 labels", "oblique", "sheared", "empty"])
def test_a_label_map_is_read_back_by_highdicom_and_by_us(tmp_path, name):
    where, table, values = CASES[name]
    scan = dicom_scan(tmp_path / "series", where)
    (path,) = write_mask(values, scan, table, tmp_path / "m_seg", "dicom-seg-labelmap", MODEL)
    uids = [pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in scan.files]
    seg = highdicom.seg.segread(path)
    planes = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, combine_segments=True)
    np.testing.assert_array_equal(in_order(table, seg).to_values(planes.transpose(2, 1, 0)), values)
    assert seg.BitsAllocated == (16 if len(table) > 255 else 8)
    found = np.zeros(values.shape, dtype=np.uint16)
    to_index = np.linalg.inv(scan.grid.affine)
    for part in read_dicom_segments(path):
        k = round(float((to_index @ part.grid.affine[:, 3])[2]))
        found[:, :, k][part.mask[..., 0]] = part.segment.value
    np.testing.assert_array_equal(in_order(table, seg).to_values(found), values)


def mirrored(what):
    def spoil(seg):
        groups = seg.PerFrameFunctionalGroupsSequence
        values = [group[what].value for group in groups]
        for group, value in zip(groups, values[::-1], strict=True):
            setattr(group, what, value)

    spoil.__name__ = f"mirrored_{what}"
    return spoil


def another_segment(seg):
    seg.decompress()
    seg.PixelData = bytes(2 if value == 1 else value for value in seg.PixelData)


def background_left_out(seg):
    del seg.SegmentSequence[-1]


def other_patient(seg):
    seg.PatientID = "ID-4712"


WRONG = (mirrored("PlanePositionSequence"), mirrored("DerivationImageSequence"), another_segment,
         background_left_out, other_patient)  # fmt: skip


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_a_wrong_label_map_is_caught(tmp_path, spoil):
    scan = dicom_scan(tmp_path / "series", GRIDS["oblique"])
    (path,) = write_mask(mask(), scan, TABLE, tmp_path / "series_seg", "dicom-seg-labelmap", MODEL)
    check(path, mask(), scan, TABLE)
    with pytest.raises(FormatError, match="series_seg"):
        dicom_seg.check(path, mask(), scan, TABLE)
    seg = pydicom.dcmread(path)
    spoil(seg)
    seg.save_as(path)
    with pytest.raises(FormatError, match="series_seg") as caught:
        check(path, mask(), scan, TABLE)
    assert "4711" not in str(caught.value) and "4712" not in str(caught.value)


def test_a_label_map_is_not_left_to_gdcm(tmp_path, monkeypatch):
    """Where python-gdcm 3.2 is installed, pydicom asks it first, and it ends the process on planes of 9 x 7 pixels."""

    others = {name: run for name, run in RLELosslessEncoder._available.items() if name != "gdcm"}

    def like_gdcm(pixels, runner):
        if runner.rows > 1:
            raise SystemExit("gdcm::Exception: partition % dims[1] == 0")
        return others["pylibjpeg"](pixels, runner)

    monkeypatch.setattr(RLELosslessEncoder, "_available", {"gdcm": like_gdcm, **others})
    scan = dicom_scan(tmp_path / "series", Grid((9, 7, 6), GRIDS["oblique"].affine))
    values = spread(TABLE, (9, 7, 6))
    (path,) = write_mask(values, scan, TABLE, tmp_path / "m_seg", "dicom-seg-labelmap")
    check(path, values, scan, TABLE)
