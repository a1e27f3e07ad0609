"""A DICOM-SEG gives the mask back by position and by reference, and belongs to the patient it came from."""

import warnings
from copy import deepcopy

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from conftest import shared
from fewscan.errors import FormatError
from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.masks.dicom_seg.binary import check
from fewscan.scans import open_scan
from masks.cases import GRIDS, LARGE, SHEARED, TABLE, dicom_scan, mask

MODEL = {"bundle": "kidneys", "version": "1.2", "model_sha256": "ab" * 32}


def written(tmp_path, where=GRIDS["oblique"], values=None, table=TABLE, **changes):
    scan = dicom_scan(tmp_path / "series", where, **changes)
    values = mask(table) if values is None else values
    (path,) = write_mask(values, scan, table, tmp_path / "series_seg", "dicom-seg", MODEL)
    return scan, path


def by_highdicom(path, scan, table):
    """(i, j, k) label values, planes by their source image, as highdicom reads them."""
    uids = [pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in scan.files]
    seg = highdicom.seg.segread(path)
    planes = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True, combine_segments=True)
    value = {label.name: label.value for label in table}
    values = [0, *(value[item.SegmentLabel] for item in seg.SegmentSequence if item.SegmentNumber > 0)]
    return np.array(values, dtype=table.dtype)[planes.transpose(2, 1, 0)]


@pytest.mark.parametrize("name", [*GRIDS, "sheared"])
def test_highdicom_reads_the_mask_back(tmp_path, name):
    scan, path = written(tmp_path, {**GRIDS, "sheared": SHEARED}[name])
    np.testing.assert_array_equal(by_highdicom(path, scan, TABLE), mask())


@pytest.mark.parametrize("name", GRIDS)
def test_each_labelled_voxel_lies_at_its_place_in_the_patient(tmp_path, name):
    scan, path = written(tmp_path, GRIDS[name])
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    expected = {}
    for index in np.argwhere(mask()).tolist():
        expected[tuple((scan.grid.to_mm(index) * (-1, -1, 1)).round(2) + 0.0)] = TABLE.to_classes(mask(), "")[
            tuple(index)
        ]
    found = {}
    for index in np.argwhere(volume.array).tolist():
        found[tuple((volume.affine @ [*index, 1])[:3].round(2) + 0.0)] = volume.array[tuple(index)]
    assert found == expected


def test_patient_study_and_frame_of_reference_are_the_sources(tmp_path):
    scan, path = written(tmp_path)
    source, seg = pydicom.dcmread(scan.files[0]), pydicom.dcmread(path)
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                 "FrameOfReferenceUID"):  # fmt: skip
        assert seg[name].value == source[name].value, name
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert (seg.Rows, seg.Columns) == (source.Rows, source.Columns)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PatientSex", "U"),
        ("PatientSex", "m"),
        ("PatientBirthDate", "00000000"),
        ("PatientBirthDate", "1970"),
        ("StudyTime", "12:34:56"),
        ("PatientName", "Doe\\Jane"),
        ("SeriesNumber", "-1000"),
    ],
)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["dicom-seg", "dicom-seg-labelmap"])
def test_what_dicom_forbids_is_copied_as_it_is(tmp_path, kind, name, value):
    """A PACS knows patient and study by what the source says; anonymised series say it wrongly."""
    scan = dicom_scan(tmp_path / "series", GRIDS["oblique"])
    for file in scan.files:
        source = pydicom.dcmread(file)
        with pydicom.config.disable_value_validation():
            setattr(source, name, value)
            source.save_as(file)
    (path,) = write_mask(mask(), scan, TABLE, tmp_path / "series_seg", kind, MODEL)
    found, source = pydicom.dcmread(path), pydicom.dcmread(scan.files[0])
    if name == "SeriesNumber":
        assert found.SeriesNumber == 1000
    else:
        assert str(found[name].value) == str(source[name].value) != ""
    np.testing.assert_array_equal(by_highdicom(path, scan, TABLE), mask())


def test_segments_are_coded_coloured_and_say_what_made_them(tmp_path):
    _, path = written(tmp_path)
    seg = pydicom.dcmread(path)
    first, generic, last = seg.SegmentSequence
    kind = first.SegmentedPropertyTypeCodeSequence[0]
    assert (first.SegmentLabel, kind.CodeValue, kind.CodeMeaning) == ("left kidney", "64033007", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert generic.SegmentedPropertyTypeCodeSequence[0].CodeValue == "85756007"
    assert [item.SegmentNumber for item in seg.SegmentSequence] == [1, 2, 3]
    for item, label in zip(seg.SegmentSequence, TABLE, strict=True):
        colour = highdicom.color.CIELabColor.from_dicom_value(item.RecommendedDisplayCIELabValue)
        np.testing.assert_allclose(colour.to_rgb(), label.colour, atol=1)
    algorithm = last.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("kidneys", "1.2")
    assert MODEL["model_sha256"] in algorithm.AlgorithmParameters
    assert seg.SegmentationType == "BINARY"


def test_empty_frames_are_left_out_and_an_empty_mask_keeps_one_for_each_segment(tmp_path):
    _, path = written(tmp_path)
    occupied = sum(int((mask() == label.value).any(axis=(0, 1)).sum()) for label in TABLE)
    assert int(pydicom.dcmread(path).NumberOfFrames) == occupied
    scan, path = written(tmp_path / "empty", values=np.zeros_like(mask()))
    seg = pydicom.dcmread(path)
    assert int(seg.NumberOfFrames) == len(TABLE) and len(seg.SegmentSequence) == len(TABLE)
    assert not seg.pixel_array.any()
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == len(scan.files)


def test_a_label_that_does_not_occur_is_still_listed_behind_the_others(tmp_path):
    """3D Slicer names segments by their order and skips empty ones; see tests/interop/test_by_slicer.py."""
    values = np.where(mask() == 1, 0, mask()).astype(np.uint8)
    scan, path = written(tmp_path, values=values)
    segments = [(item.SegmentNumber, item.SegmentLabel) for item in pydicom.dcmread(path).SegmentSequence]
    assert segments == [(1, "gadget"), (2, "spleen"), (3, "left kidney")]
    np.testing.assert_array_equal(by_highdicom(path, scan, TABLE), values)


def test_large_label_values_and_one_label_and_one_slice(tmp_path):
    scan, path = written(tmp_path / "large", table=LARGE)
    np.testing.assert_array_equal(by_highdicom(path, scan, LARGE), mask(LARGE))
    one = LabelTable.from_json([{"name": "liver", "value": 255}])
    values = np.where(mask() > 0, 255, 0).astype(np.uint8)
    scan, path = written(tmp_path / "one", table=one, values=values)
    np.testing.assert_array_equal(by_highdicom(path, scan, one), values)
    grid = GRIDS["oblique"]
    single = type(grid)((9, 6, 1), grid.affine)
    scan, path = written(tmp_path / "slice", single, table=one, values=values[:, :, 1:2])
    np.testing.assert_array_equal(by_highdicom(path, scan, one), values[:, :, 1:2])


def test_names_beyond_ascii_survive_for_patient_and_label(tmp_path):
    table = LabelTable.from_json(["肝臓", "gadget"])
    _, path = written(
        tmp_path,
        table=table,
        values=np.minimum(mask(), 1),
        SpecificCharacterSet="ISO_IR 100",
        PatientName="Müller^Jörg",
    )
    seg = pydicom.dcmread(path)
    assert seg.SegmentSequence[0].SegmentLabel == "肝臓" and str(seg.PatientName) == "Müller^Jörg"


@pytest.mark.parametrize("kind", ["dicom-seg", "dicom-seg-labelmap"])
@pytest.mark.parametrize(
    "sets, name",
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        ("ISO 2022 IR 100", "Müller^Jörg"),
        ("ISO-IR 100", "Müller^Jörg"),
        ("ISO_IR 6", "Miller^George"),
    ],
)
def test_a_patient_keeps_his_name_whatever_the_character_set(tmp_path, sets, name, kind):
    """The examples of DICOM PS3.5, annexes H to J; pydicom reads them from the source as from the mask."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the misspelled set
        scan = dicom_scan(tmp_path / "series", GRIDS["oblique"], SpecificCharacterSet=sets, PatientName=name)
        (path,) = write_mask(mask(), scan, TABLE, tmp_path / "series_seg", kind)
    assert str(pydicom.dcmread(path).PatientName) == name


def test_a_source_without_what_may_be_empty_still_works(tmp_path):
    missing = dict.fromkeys(("PatientBirthDate", "StudyID", "AccessionNumber", "SliceThickness", "StudyTime"))
    scan, path = written(tmp_path, **missing)
    np.testing.assert_array_equal(by_highdicom(path, scan, TABLE), mask())
    assert float(
        pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness
    ) == pytest.approx(2.5)


def test_no_warning_quotes_the_patient(tmp_path, recwarn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the writer of the synthetic series
        scan = dicom_scan(tmp_path / "series", GRIDS["axial"], PatientName="Onename", PatientAge="0Y")
    write_mask(mask(), scan, TABLE, tmp_path / "m_seg", "dicom-seg")
    assert [str(item.message) for item in recwarn if "Onename" in str(item.message) or "0Y" in str(item.message)] == []


def test_a_series_without_frame_of_reference_is_refused(tmp_path):
    with pytest.raises(FormatError, match="FrameOfReferenceUID"):
        written(tmp_path, FrameOfReferenceUID=None)


def mirrored_positions(seg):
    groups = seg.PerFrameFunctionalGroupsSequence
    positions = [group.PlanePositionSequence for group in groups]
    for group, position in zip(groups, positions[::-1], strict=True):
        group.PlanePositionSequence = position


def mirrored_references(seg):
    groups = seg.PerFrameFunctionalGroupsSequence
    references = [group.DerivationImageSequence for group in groups]
    for group, reference in zip(groups, references[::-1], strict=True):
        group.DerivationImageSequence = reference


def between_planes(seg):
    position = seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    position.ImagePositionPatient = [x + 0.6 for x in position.ImagePositionPatient]


def swapped_spacing(seg):
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = list(measures.PixelSpacing)[::-1]


def turned(seg):
    orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    row, column = orientation.ImageOrientationPatient[:3], orientation.ImageOrientationPatient[3:]
    orientation.ImageOrientationPatient = [*[-x for x in row], *column]


def other_frame_of_reference(seg):
    seg.FrameOfReferenceUID = generate_uid()


def other_patient(seg):
    seg.PatientID = "ID-4712"


def other_study(seg):
    seg.StudyInstanceUID = generate_uid()


def other_source(seg):
    source = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPInstanceUID = generate_uid()


def other_segment(seg):
    groups = seg.PerFrameFunctionalGroupsSequence
    groups[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2


def other_label(seg):
    seg.SegmentSequence[0].SegmentLabel = "right kidney"


def one_voxel(seg):
    seg.PixelData = bytes([seg.PixelData[0] ^ 1]) + seg.PixelData[1:]


def flipped(axis):
    """The pixels of every frame mirrored, left to right or top to bottom."""

    def spoil(seg):
        frames = np.flip(seg.pixel_array, axis)
        seg.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
        seg.PixelData += b"\0" * (len(seg.PixelData) % 2)

    spoil.__name__ = f"flipped_{axis}"
    return spoil


def shifted(what, steps=1):
    """Positions, references or both of every frame, one slice on; beyond the last slice the first follows."""

    def spoil(seg):
        planes = {}
        for group in seg.PerFrameFunctionalGroupsSequence:
            image = group.DerivationImageSequence[0].SourceImageSequence[0]
            planes[image.ReferencedSOPInstanceUID] = group
        order = sorted(planes.values(), key=lambda group: float(group.PlanePositionSequence[0].ImagePositionPatient[2]))
        following = {
            group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID:
                deepcopy(order[(number + steps) % len(order)])
            for number, group in enumerate(order)
        }  # fmt: skip
        for group in seg.PerFrameFunctionalGroupsSequence:
            next_ = following[group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
            for name in what:
                setattr(group, name, getattr(next_, name))

    spoil.__name__ = f"shifted_{len(what)}_{what[0]}"
    return spoil


def moved_beyond_by_a_slice(seg):
    """Positions shifted by the whole distance of two slices: each again on a plane, the last beyond the scan."""
    distance = float(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices)
    orientation = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    normal = np.cross(*np.array(orientation, dtype=float).reshape(2, 3))
    for group in seg.PerFrameFunctionalGroupsSequence:
        position = group.PlanePositionSequence[0]
        moved = np.array(position.ImagePositionPatient, dtype=float) + distance * normal
        position.ImagePositionPatient = [round(float(x), 6) for x in moved]


def another_reference_too(seg):
    """A second source image, of another slice: a reader that takes the last one is misled."""
    groups = seg.PerFrameFunctionalGroupsSequence
    last = deepcopy(groups[-1].DerivationImageSequence[0].SourceImageSequence[0])
    groups[0].DerivationImageSequence[0].SourceImageSequence.append(last)


def another_derivation_too(seg):
    groups = seg.PerFrameFunctionalGroupsSequence
    groups[0].DerivationImageSequence.append(deepcopy(groups[-1].DerivationImageSequence[0]))


def no_reference(seg):
    del seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence


def other_class_of_source(seg):
    source = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"


def other_series(seg):
    seg.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()


def one_image_fewer(seg):
    del seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[-1]


def series_of_the_source(seg):
    seg.SeriesInstanceUID = seg.ReferencedSeriesSequence[0].SeriesInstanceUID


def other_instance(seg):
    seg.file_meta.MediaStorageSOPInstanceUID = generate_uid()


def swapped_numbers(seg):
    first, *_, last = seg.SegmentSequence
    first.SegmentNumber, last.SegmentNumber = last.SegmentNumber, first.SegmentNumber


def other_code(seg):
    seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].CodeValue = "78961009"


def other_side(seg):
    kind = seg.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0]
    kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue = "24028007"


def other_colour(seg):
    colour = seg.SegmentSequence[0].RecommendedDisplayCIELabValue
    seg.SegmentSequence[0].RecommendedDisplayCIELabValue = [colour[0], colour[2], colour[1]]


def distance_of_slices(seg):
    """dcmqi counts planes with it: 3D Slicer would show the mask at other places."""
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 1


def a_frame_twice(seg):
    """One more frame: the last one, as another segment; who draws segments one by one draws both."""
    groups = seg.PerFrameFunctionalGroupsSequence
    frames = seg.pixel_array
    groups.insert(0, deepcopy(groups[-1]))
    groups[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1
    seg.NumberOfFrames = len(groups)
    seg.PixelData = np.packbits(np.concatenate([frames[-1:], frames]).ravel(), bitorder="little").tobytes()
    seg.PixelData += b"\0" * (len(seg.PixelData) % 2)


def a_frame_fewer(seg):
    del seg.PerFrameFunctionalGroupsSequence[-1]


def probabilities(seg):
    seg.SegmentationType, seg.MaximumFractionalValue = "FRACTIONAL", 1


def other_birth_date(seg):
    seg.PatientBirthDate = "19700201"


def other_accession(seg):
    seg.AccessionNumber = "ID-4712"


WRONG = (
    mirrored_positions, mirrored_references, between_planes, swapped_spacing, turned, other_frame_of_reference,
    other_patient, other_study, other_source, other_segment, other_label, one_voxel, flipped(1), flipped(2),
    shifted(["PlanePositionSequence"]), shifted(["DerivationImageSequence"]),
    shifted(["DerivationImageSequence", "PlanePositionSequence"]), moved_beyond_by_a_slice, another_reference_too,
    another_derivation_too, no_reference, other_class_of_source, other_series, one_image_fewer, series_of_the_source,
    other_instance, swapped_numbers, other_code, other_side, other_colour, distance_of_slices, a_frame_twice,
    a_frame_fewer, probabilities, other_birth_date, other_accession,
)  # fmt: skip


@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_a_wrong_seg_is_caught(tmp_path, spoil):
    scan, path = written(tmp_path)
    check(path, mask(), scan, TABLE)
    seg = pydicom.dcmread(path)
    spoil(seg)
    seg.save_as(path)
    with pytest.raises(FormatError, match="series_seg") as caught:
        check(path, mask(), scan, TABLE)
    for secret in ("Doe", "4711", "4712", "1970"):
        assert secret not in str(caught.value)


@pytest.mark.parametrize("stated", [1.0, -2.5, 0.0])
def test_the_distance_of_slices_is_that_of_the_positions(tmp_path, stated):
    """Some scanners state the gap between slices alone, or a negative distance."""
    scan, path = written(tmp_path, SpacingBetweenSlices=stated)
    measures = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SpacingBetweenSlices) == pytest.approx(2.5, abs=1e-6)
    np.testing.assert_array_equal(by_highdicom(path, scan, TABLE), mask())


def test_hippocampus_crop_as_dicom(tmp_path):
    scan = open_scan([shared("data/dicom_mr_udacity") / "Study1" / "13_HCropVolume"])
    table = LabelTable.from_json(["hippocampus anterior", "hippocampus posterior"])
    values = np.zeros(scan.grid.shape, dtype=np.uint8)
    values[3:12, 4:9, 2:6], values[0, 0, -1] = 1, 2
    (path,) = write_mask(values, scan, table, tmp_path / "crop_seg", "dicom-seg")
    np.testing.assert_array_equal(by_highdicom(path, scan, table), values)


def test_an_enhanced_series_is_referred_to_frame_by_frame(tmp_path):
    folder = shared("data/dicom_series_dicom2nifti") / "philips_enhanced" / "anatomical" / "001"
    source = pydicom.dcmread(next(folder.iterdir()))
    source.FrameOfReferenceUID = generate_uid()  # anonymised away in the public file
    source.save_as(tmp_path / "enhanced.dcm")
    scan = open_scan([tmp_path / "enhanced.dcm"])
    values = np.zeros(scan.grid.shape, dtype=np.uint8)
    values[3:40, 4:90, 2], values[0, 0, -1], values[9, 9, 0] = 1, 3, 5
    (path,) = write_mask(values, scan, TABLE, tmp_path / "m_seg", "dicom-seg")
    seg = highdicom.seg.segread(path)
    planes = seg.get_pixels_by_source_frame(
        source.SOPInstanceUID, list(scan.frames), assert_missing_frames_are_empty=True, combine_segments=True
    )
    np.testing.assert_array_equal(TABLE.to_values(planes.transpose(2, 1, 0)), values)


def test_a_real_gantry_tilt_is_kept(tmp_path):
    folder = shared("data/dicom_series_dicom2nifti") / "failing" / "gantrytilting" / "001"
    (tmp_path / "tilt").mkdir()
    uid = generate_uid()
    for file in folder.iterdir():
        source = pydicom.dcmread(file)
        source.FrameOfReferenceUID = uid  # anonymised away in the public file
        source.save_as(tmp_path / "tilt" / file.name)
    scan = open_scan([tmp_path / "tilt"])
    assert not scan.grid.is_orthogonal
    values = np.zeros(scan.grid.shape, dtype=np.uint8)
    values[3:40, 4:90, 1], values[0, 0, -1] = 1, 3
    (path,) = write_mask(values, scan, TABLE, tmp_path / "m_seg", "dicom-seg")
    np.testing.assert_array_equal(by_highdicom(path, scan, TABLE), values)
