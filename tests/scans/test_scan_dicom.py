"""A series is read right or refused with the reason; nothing is merged, dropped or guessed in silence."""

import shutil

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless, generate_uid

from fewscan.errors import ScanError
from fewscan.labels import LabelTable
from fewscan.masks import write_mask
from fewscan.scans import find_scans, open_scan
from scans.dicom_kinds import LPS_TO_RAS, difference, uids, volume, write
from scans.dicom_series import write_series
from scans.volumes import AFFINES, image

STRAIGHT = AFFINES["lps"]


def edit(path, **values):
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path)


def failures(found):
    return [item.reason for item in found.skipped if item.failed]


def test_files_stand_in_the_order_of_the_planes_and_the_frame_of_reference_is_kept(tmp_path):
    files = write_series(tmp_path / "case", image(), STRAIGHT, shuffled=True)
    scan = find_scans(tmp_path).scans[0]
    assert scan.files == tuple(files)
    assert scan.grid.frame_of_reference == pydicom.dcmread(files[0]).FrameOfReferenceUID
    assert scan.frames == ()


def test_files_without_a_suffix_are_known_by_their_mark(tmp_path):
    for path in write_series(tmp_path / "case", image(), STRAIGHT):
        path.rename(path.with_suffix(""))
    np.testing.assert_array_equal(find_scans(tmp_path).scans[0].read()[0], image())


def test_slope_and_intercept_are_applied_slice_by_slice(tmp_path):
    write_series(tmp_path, image(), STRAIGHT, RescaleSlope=lambda k: 0.5 + k, RescaleIntercept=lambda k: -10 * k)
    k = np.arange(4)
    np.testing.assert_allclose(open_scan([tmp_path]).read()[0], image() * (0.5 + k) - 10 * k, rtol=1e-6)


def test_pixel_spacing_is_rows_then_columns(tmp_path):
    write_series(tmp_path, image(), STRAIGHT)
    np.testing.assert_allclose(open_scan([tmp_path]).grid.spacing_mm, (0.9, 0.8, 2.5))


def test_signed_numbers_in_twelve_bits_are_sign_extended(tmp_path):
    values = image() - 500
    write_series(
        tmp_path, values & 0x0FFF, STRAIGHT, BitsStored=12, HighBit=11, PixelRepresentation=1
    )  # as uint16, the high nibble empty
    np.testing.assert_array_equal(open_scan([tmp_path]).read()[0], values)


def test_numbers_beyond_the_stated_bits_are_refused(tmp_path):
    write_series(tmp_path, image() + 4096, STRAIGHT, BitsStored=12, HighBit=11)
    with pytest.raises(ScanError, match="does not fit the 12 bits"):
        open_scan([tmp_path]).read()


def test_padding_becomes_the_smallest_of_the_rest(tmp_path):
    values = image() - 500
    values[0, :, 1] = -2000
    write_series(tmp_path, values, STRAIGHT, PixelPaddingValue=-2000, RescaleSlope=lambda k: 1 + k)
    expected = values * (1.0 + np.arange(4))
    expected[0, :, 1] = expected[values > -2000].min()
    np.testing.assert_allclose(open_scan([tmp_path]).read()[0], expected)


def with_padding_tag(files, vr, value, limit=None):
    """The padding tags with a VR of our choice, also one that contradicts the pixels' sign."""
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            dataset.add_new("PixelPaddingRangeLimit", vr, limit)
        dataset.save_as(path)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize(
    ("vr", "value", "limit"), [("US", 63536, None), ("SS", -2000, None), ("US", 63536, 63551), ("SS", -1985, -2000)]
)
def test_padding_of_signed_pixels_is_known_in_either_sign(tmp_path, bits, vr, value, limit):
    values = image() - 50
    values[0, :, 1] = -2000
    values[1, :, 1] = -1990 if limit else -2000
    stored = values.astype(np.int32) & ((1 << bits) - 1)  # 12 bits: not sign extended
    files = write_series(tmp_path, stored, STRAIGHT, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=1)
    with_padding_tag(files, vr, value, limit)
    expected = np.where(values < -1980, values[values >= -1980].min(), values)
    np.testing.assert_array_equal(open_scan([tmp_path]).read()[0], expected)


@pytest.mark.parametrize(
    ("vr", "value", "limit"), [("US", 63536, None), ("SS", -2000, None), ("SS", -2000, -1), ("SS", -2000, 0)]
)
def test_padding_of_unsigned_pixels_is_known_in_either_sign(tmp_path, vr, value, limit):
    values = image().astype(np.int32) + 7
    values[0, :, 1] = 63536
    with_padding_tag(write_series(tmp_path, values, STRAIGHT), vr, value, limit)
    expected = np.where(values == 63536, values.min(), values)
    np.testing.assert_array_equal(open_scan([tmp_path]).read()[0], expected)


@pytest.mark.parametrize(("sign", "vr", "value", "real"), [(1, "SS", -32768, 0), (0, "SS", -2000, 2096)])
def test_a_padding_value_beyond_the_stored_bits_takes_no_real_pixels(tmp_path, sign, vr, value, real):
    """The low 12 bits of -32768 are 0, and of -2000 are 2096: numbers that a 12-bit scan holds."""
    values = image() - (50 if sign else 0)
    values[2, 2, :] = real
    files = write_series(tmp_path, values, STRAIGHT, BitsStored=12, HighBit=11)
    with_padding_tag(files, vr, value)
    np.testing.assert_array_equal(open_scan([tmp_path]).read()[0], values)


def test_monochrome1_is_taken_as_stored_with_a_note(tmp_path):
    write_series(tmp_path, image(), STRAIGHT, PhotometricInterpretation="MONOCHROME1")
    scan = open_scan([tmp_path])
    np.testing.assert_array_equal(scan.read()[0], image())
    assert "MONOCHROME1" in scan.notes[0]


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_series_hold_the_same_numbers(tmp_path, syntax):
    values = image((32, 40, 4))  # JPEG 2000 wants room for its levels
    for path in write_series(tmp_path, values, STRAIGHT):
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    np.testing.assert_array_equal(open_scan([tmp_path]).read()[0], values)


def test_a_missing_slice_is_refused_with_its_place(tmp_path):
    files = write_series(tmp_path, image((7, 5, 6)), STRAIGHT)
    files[3].unlink()
    (reason,) = failures(find_scans(tmp_path))
    assert "5 mm instead of 2.5 mm between (31.5, -12.2, 85.0) and (31.5, -12.2, 90.0)" in reason
    assert "1 slice(s) missing" in reason


def test_irregular_spacing_is_refused(tmp_path):
    files = write_series(tmp_path, image(), STRAIGHT)
    edit(files[3], ImagePositionPatient=[31.5, -12.25, 80 + 3 * 2.5 + 0.05])  # 2 %
    assert "form no grid" in failures(find_scans(tmp_path))[0]
    edit(files[3], ImagePositionPatient=[31.5, -12.25, 80 + 3 * 2.5 + 0.01])  # 0.4 %
    assert failures(find_scans(tmp_path)) == []


@pytest.mark.parametrize("step", [0.625, 2.5 / 3, 0.5005])
def test_positions_rounded_to_two_decimals_form_a_grid(tmp_path, step):
    values = image((7, 5, 40))
    write_series(tmp_path, values, STRAIGHT, ImagePositionPatient=lambda k: [31.5, -12.25, round(80 + k * step, 2)])
    scan = open_scan([tmp_path])
    np.testing.assert_array_equal(scan.read()[0], values)
    assert scan.grid.spacing_mm[2] == pytest.approx(step, abs=0.01 / 39)


def test_rounding_hides_no_missing_slice_and_no_change_of_the_distance(tmp_path):
    def place(step):
        return {"ImagePositionPatient": lambda k: [31.5, -12.25, round(80 + step(k), 3)]}

    values = image((7, 5, 40))
    files = write_series(tmp_path / "missing", values, STRAIGHT, **place(lambda k: k * 0.02))
    files[20].unlink()
    write_series(tmp_path / "changes", values, STRAIGHT, **place(lambda k: k * 0.625 + max(0, k - 20) * 0.01))
    changes, missing = failures(find_scans(tmp_path))
    assert "1 slice(s) missing" in missing and "0.04 mm instead of 0.02 mm" in missing
    assert "0.635 mm instead of 0.625 mm" in changes


def test_a_localizer_in_the_series_is_reported_and_not_merged(tmp_path):
    files = write_series(tmp_path, image(), STRAIGHT)
    extra = write_series(tmp_path / "other", image((7, 5, 1)), AFFINES["permuted"])[0]
    header = pydicom.dcmread(files[0])
    edit(
        extra, SeriesInstanceUID=header.SeriesInstanceUID, FrameOfReferenceUID=header.FrameOfReferenceUID,
        StudyInstanceUID=header.StudyInstanceUID,
    )  # fmt: skip
    found = find_scans(tmp_path)
    assert [scan.files for scan in found.scans] == [tuple(files)]
    assert [item.path for item in found.skipped] == [extra]
    assert "another orientation" in found.skipped[0].reason
    assert found.scans[0].notes == ("1 image(s) of the series with another orientation left out",)
    edit(extra, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    found = find_scans(tmp_path)
    assert "localizer" in found.skipped[0].reason
    assert found.scans[0].notes == ("1 localizer(s) of the series left out",)


@pytest.mark.parametrize(("count", "header"), [(2, {}), (5, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]})])
def test_localizers_become_no_scans(tmp_path, count, header):
    """By their name, or by their number."""
    shared = uids()
    write(tmp_path / "axial", truth := volume(shape=(9, 7, 12)), **shared)
    extra = write(tmp_path / "coronal", volume("coronal", (9, 7, count)), **shared, **header)
    found = find_scans(tmp_path)
    (scan,) = found.scans
    assert difference(truth, scan.read()[0], LPS_TO_RAS @ scan.grid.affine) == ""
    assert {item.path for item in found.skipped} == set(extra) and failures(found) == []


@pytest.mark.parametrize("counts", [(20, 20), (20, 15), (15, 20), (20, 15, 10), (20, 6, 3)])
def test_stacks_of_one_series_are_scans_whatever_their_sizes(tmp_path, counts):
    shared = uids()
    ways = ("axial", "coronal", "sagittal")[: len(counts)]
    truths = {way: volume(way, (9, 7, count)) for way, count in zip(ways, counts, strict=True)}
    for way, truth in truths.items():
        write(tmp_path / way, truth, **shared)
    found = find_scans(tmp_path)
    assert not found.skipped and sorted(scan.name for scan in found.scans) == sorted(truths)
    for scan in found.scans:
        assert difference(truths[scan.name], scan.read()[0], LPS_TO_RAS @ scan.grid.affine) == ""
        assert scan.notes == (f"one of {len(counts)} stacks of its series, which differ in geometry",)


def test_a_smaller_stack_that_lacks_a_slice_is_refused_by_itself(tmp_path):
    shared = uids()
    write(tmp_path / "axial", volume(shape=(9, 7, 12)), **shared)
    write(tmp_path / "coronal", volume("coronal", (9, 7, 8)), **shared)[3].unlink()
    found = find_scans(tmp_path)
    (reason,) = failures(found)
    assert [scan.name for scan in found.scans] == ["axial"]
    assert reason.startswith(f"{tmp_path / 'coronal'}: ") and "5 mm instead of 2.5 mm" in reason


def test_a_slice_that_belongs_to_the_smaller_stack_but_differs_is_no_localizer(tmp_path):
    shared = uids()
    write(tmp_path / "axial", volume(shape=(9, 7, 12)), **shared)
    edit(write(tmp_path / "coronal", volume("coronal", (9, 7, 8)), **shared)[-1], PixelSpacing=[0.85, 0.9])
    found = find_scans(tmp_path)
    (reason,) = failures(found)
    assert [scan.name for scan in found.scans] == ["axial"] and reason.startswith(f"{tmp_path / 'coronal'}: ")
    assert "1 of 20 images have another pixel spacing than 7 others (0.9 x 0.85 mm against 0.9 x 0.8 mm)" in reason


@pytest.mark.parametrize("which", [[9, 10], [4, 5], [0]])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PixelSpacing": [0.8002, 0.9002]}, "another pixel spacing than the rest (0.9002 x 0.8002 mm against 0.9 x"),
        ({"Rows": 7, "Columns": 5}, "another matrix than the rest (5 x 7 pixels against 7 x 5 pixels)"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.99998, 0.00632]}, "orientation than the rest (1 0 0 0 0.99998 0.0"),
        ({"ImageOrientationPatient": [0, 1, 0, -1, 0, 0]}, "another orientation than the rest (0 1 0 -1 0 0 against"),
    ],
)
def test_slices_that_belong_to_the_volume_but_differ_are_no_localizer(tmp_path, which, change, words):
    files = write_series(tmp_path, image((7, 5, 11)), STRAIGHT)
    for k in which:
        edit(files[k], **change)
    found = find_scans(tmp_path)
    (reason,) = failures(found)
    assert found.scans == [] and reason.startswith(f"{tmp_path}: {len(which)} of 11 images have another")
    assert words in reason and f"image{which[0]:03d}.dcm at (31.5, -12.2, {80 + 2.5 * which[0]:.1f}) mm" in reason
    with pytest.raises(ScanError, match=f"{len(which)} of 11 images"):
        open_scan([tmp_path])


@pytest.mark.parametrize("place", [-40.0, 82.5])
def test_a_parallel_image_away_from_the_stack_or_on_a_slice_is_left_out_with_a_note(tmp_path, place):
    files = write_series(tmp_path, image((7, 5, 5)), STRAIGHT)
    extra = write_series(tmp_path / "other", image((7, 5, 1)), STRAIGHT)[0]
    header = pydicom.dcmread(files[0])
    edit(
        extra, SeriesInstanceUID=header.SeriesInstanceUID, FrameOfReferenceUID=header.FrameOfReferenceUID,
        StudyInstanceUID=header.StudyInstanceUID, PixelSpacing=[1.6, 1.8], ImagePositionPatient=[31.5, -12.25, place],
    )  # fmt: skip
    found = find_scans(tmp_path)
    assert [scan.files for scan in found.scans] == [tuple(files)] and [i.path for i in found.skipped] == [extra]
    assert found.scans[0].notes == ("1 image(s) of the series with another pixel spacing left out",)


@pytest.mark.parametrize(
    ("kept", "header", "words"),
    [
        ([0, 2], {"SpacingBetweenSlices": 2.5}, "2 slices lie 5 mm apart, where SpacingBetweenSlices says 2.5 mm; sl"),
        ([0, 9], {}, "2 slices lie 22.5 mm apart, where SliceThickness says 2.5 mm"),
        ([0, 2, 4, 6], {"SpacingBetweenSlices": 2.5}, "4 slices lie 5 mm apart, where SpacingBetweenSlices says 2.5 m"),
        ([0, 3, 6, 9], {"SpacingBetweenSlices": 2.51}, "2 of 3 slices missing?"),
    ],
)
def test_missing_slices_that_leave_a_regular_stack_are_refused(tmp_path, kept, header, words):
    files = write_series(tmp_path, image((7, 5, 10)), STRAIGHT, **header)
    for k in set(range(10)) - set(kept):
        files[k].unlink()
    found = find_scans(tmp_path)
    assert found.scans == [] and words in failures(found)[0]


@pytest.mark.parametrize(
    ("kept", "header", "note"),
    [
        (range(10), {"SliceThickness": 1.0}, "slices of 1 mm (SliceThickness) lie 2.5 mm apart: what lies between"),
        ([0, 2], {}, "slices of 2.5 mm (SliceThickness) lie 5 mm apart: what lies between"),
        ([0, 1], {"SpacingBetweenSlices": 2.5, "SliceThickness": 0.5}, None),  # the gap is wide and stated
        (range(10), {"SpacingBetweenSlices": 0.5, "SliceThickness": 2.0}, "SpacingBetweenSlices says 0.5 mm, the pos"),
        ([0, 1], {"SpacingBetweenSlices": 0.5, "SliceThickness": 2.0}, "SpacingBetweenSlices says 0.5 mm, the pos"),
        (range(10), {"SpacingBetweenSlices": 1.6}, "SpacingBetweenSlices says 1.6 mm, the positions 2.5 mm"),
        (range(10), {"SliceThickness": 5.0}, None),
    ],
)
def test_gaps_between_slices_are_usual_and_said(tmp_path, kept, header, note):
    """An MR with gaps; a scanner that states the gap without the thickness; a CT that overlaps."""
    files = write_series(tmp_path, image((7, 5, 10)), STRAIGHT, **header)
    for k in set(range(10)) - set(kept):
        files[k].unlink()
    found = find_scans(tmp_path)
    assert failures(found) == []
    np.testing.assert_array_equal(found.scans[0].read()[0], image((7, 5, 10))[..., list(kept)])
    (scan,) = found.scans
    assert scan.notes == () if note is None else scan.notes[0].startswith(note)


@pytest.mark.parametrize("stated", ["NaN", "inf", "1e-320", "0", "-2.5"])
def test_a_distance_that_is_none_stops_neither_its_series_nor_the_others(tmp_path, stated):
    for name in "ab":
        write_series(tmp_path / name, image(), AFFINES["oblique"], SpacingBetweenSlices=2.5)
    head = b"\x18\0\x88\0DS"
    for path in (tmp_path / "a").iterdir():  # its bytes, for pydicom would not write all of these
        stored = path.read_bytes()
        assert head + b"\4\x002.5 " in stored
        path.write_bytes(stored.replace(head + b"\4\x002.5 ", head + f"\6\0{stated:6}".encode()))
    assert [scan.name for scan in find_scans(tmp_path).scans] == ["a", "b"]


def test_a_file_twice_is_left_out_and_said(tmp_path):
    files = write_series(tmp_path, image(), STRAIGHT)
    shutil.copy(files[1], tmp_path / "z copy.dcm")
    found = find_scans(tmp_path)
    np.testing.assert_array_equal(found.scans[0].read()[0], image())
    assert "1 duplicate" in found.scans[0].notes[0] and found.skipped[0].path.name == "z copy.dcm"


def test_one_instance_with_two_contents_is_refused(tmp_path):
    files = write_series(tmp_path, image(), STRAIGHT)
    shutil.copy(files[1], tmp_path / "z copy.dcm")
    edit(tmp_path / "z copy.dcm", PixelData=bytes(7 * 5 * 2))
    assert "different pixels" in failures(find_scans(tmp_path))[0]


@pytest.mark.parametrize(
    ("keyword", "values"),
    [("AcquisitionNumber", (1, 2)), ("EchoTime", (2.3, 10.5)), ("TemporalPositionIdentifier", (1, 2)),
     ("DiffusionBValue", (0.0, 800.0)), ("ContentTime", ("030405", "030505"))],
)  # fmt: skip
def test_volumes_at_the_same_positions_are_told_apart(tmp_path, keyword, values):
    uid = generate_uid()
    second = image() // 2
    write_series(tmp_path / "a", second, STRAIGHT, SeriesInstanceUID=uid, **{keyword: values[1]})
    for path in write_series(tmp_path / "b", image(), STRAIGHT, SeriesInstanceUID=uid, **{keyword: values[0]}):
        frame = pydicom.dcmread(next((tmp_path / "a").iterdir())).FrameOfReferenceUID
        edit(path, FrameOfReferenceUID=frame)
    found = find_scans(tmp_path)
    assert failures(found) == []
    first_read, second_read = sorted((scan.read()[0] for scan in found.scans), key=lambda data: -data.max())
    np.testing.assert_array_equal(first_read, image())
    np.testing.assert_array_equal(second_read, second)
    assert keyword in found.scans[0].notes[0]


def test_volumes_that_nothing_tells_apart_are_refused(tmp_path):
    uid, frame = generate_uid(), generate_uid()
    for name in "ab":
        write_series(tmp_path / name, image(), STRAIGHT, SeriesInstanceUID=uid, FrameOfReferenceUID=frame)
    (reason,) = failures(find_scans(tmp_path))
    assert "8 images lie at 4 positions" in reason
    assert "a/image000.dcm and b/image000.dcm at (31.5, -12.2, 80.0) mm (LPS)" in reason


def test_a_value_that_changes_within_the_phases_cuts_no_stumps(tmp_path):
    uid, frame = generate_uid(), generate_uid()
    for phase in range(2):
        write_series(
            tmp_path / f"phase{phase}", image(), STRAIGHT, SeriesInstanceUID=uid, FrameOfReferenceUID=frame,
            AcquisitionNumber=lambda k, phase=phase: 1 + 2 * phase + k // 2,
        )  # fmt: skip
    found = find_scans(tmp_path)
    (reason,) = failures(found)
    assert found.scans == [] and reason.startswith(f"{tmp_path}: 8 images lie at 4 positions")
    assert "parts by AcquisitionNumber do not cover all positions" in reason


def test_volumes_are_named_in_the_order_of_their_numbers(tmp_path):
    uid, frame = generate_uid(), generate_uid()
    for number in range(3):  # the later the volume, the earlier its files
        for path in write_series(
            tmp_path / "w", image() // (1 + number), STRAIGHT, SeriesInstanceUID=uid, FrameOfReferenceUID=frame,
            TemporalPositionIdentifier=number + 1,
        ):  # fmt: skip
            path.rename(tmp_path / f"{9 - number}{path.name}")
    found = find_scans(tmp_path)
    assert [scan.name for scan in found.scans] == ["series-3", "series-3-2", "series-3-3"]
    for number, scan in enumerate(found.scans):
        np.testing.assert_array_equal(scan.read()[0], image() // (1 + number))
        assert scan.notes[-1].startswith(f"volume {number + 1} of 3")


def test_files_without_a_series_uid_belong_to_the_series_of_their_folder(tmp_path):
    for name, affine in (("a", STRAIGHT), ("b", AFFINES["oblique"])):
        write_series(tmp_path / name, image() // (1 + (name == "b")), affine, SeriesInstanceUID=None)
    found = find_scans(tmp_path)
    assert failures(found) == [] and [scan.name for scan in found.scans] == ["a", "b"]
    for scan, divisor, affine in zip(found.scans, (1, 2), (STRAIGHT, AFFINES["oblique"]), strict=True):
        np.testing.assert_array_equal(scan.read()[0], image() // divisor)
        np.testing.assert_allclose(scan.grid.affine, affine, atol=1e-4)
        assert scan.notes == ()
    same = write_series(tmp_path / "c", image(), STRAIGHT, SeriesInstanceUID=None)
    with pytest.raises(ScanError, match="belong to 2 series"):
        open_scan([*sorted((tmp_path / "a").iterdir()), *same])


def test_a_gantry_tilt_keeps_the_sheared_affine(tmp_path):
    sheared = STRAIGHT.copy()
    sheared[:3, 2] = [0, 0.6, 2.4]
    write_series(tmp_path, image(), sheared)
    scan = open_scan([tmp_path])
    np.testing.assert_allclose(scan.grid.affine, sheared, atol=1e-5)
    np.testing.assert_array_equal(scan.read()[0], image())
    assert not scan.grid.is_orthogonal and "14.0 degrees" in scan.notes[-1]


def test_a_single_slice_takes_its_thickness(tmp_path):
    write_series(tmp_path, image((7, 5, 1)), AFFINES["oblique"], SliceThickness=3.5)
    scan = open_scan([tmp_path])
    np.testing.assert_allclose(scan.grid.spacing_mm, (0.9, 0.8, 3.5), rtol=1e-5)
    np.testing.assert_allclose(scan.grid.to_mm((0, 0, 0)), AFFINES["oblique"][:3, 3], atol=1e-5)


def test_names_are_folders_and_series_numbers_never_persons(tmp_path):
    write_series(tmp_path / "p1", image(), STRAIGHT)
    write_series(tmp_path / "p2" / "a", image(), STRAIGHT, SeriesNumber=7)
    for path in write_series(tmp_path / "p2" / "b", image(), STRAIGHT, SeriesNumber=7):
        path.rename(tmp_path / "p2" / "a" / f"b{path.name}")
    found = find_scans(tmp_path)
    assert [scan.name for scan in found.scans] == ["p1", "p2/a/series-7", "p2/a/series-7-2"]
    assert [scan.name for scan in find_scans(tmp_path / "p1").scans] == ["p1"]


def test_objects_that_are_no_images_are_skipped_and_pictures_refused(tmp_path):
    write_series(tmp_path / "sr", image((7, 5, 1)), STRAIGHT, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    write_series(tmp_path / "sc", image((7, 5, 1)), STRAIGHT, ImagePositionPatient=None)
    found = find_scans(tmp_path)
    assert found.scans == []
    assert [item.failed for item in found.skipped] == [True, False]
    assert "no ImagePositionPatient" in found.skipped[0].reason and "not an image" in found.skipped[1].reason


def test_an_image_without_a_sop_instance_uid_excuses_no_broken_file(tmp_path):
    """A broken copy of a whole file takes nothing away from a series; what names no instance is no copy."""
    write_series(tmp_path, image(), STRAIGHT)[-1].write_bytes(b"")
    other = write_series(tmp_path / "other", image((5, 4, 1)), STRAIGHT)[0]
    edit(other, SOPInstanceUID="")
    other.rename(tmp_path / "other.dcm")
    assert find_scans(tmp_path).scans == []


def test_a_whole_file_of_another_series_excuses_no_broken_one(tmp_path):
    """A study that was sent twice, the second time with other series UIDs, in which the instances keep theirs."""
    files = write_series(tmp_path / "a", image(), STRAIGHT)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for path in (tmp_path / "b").iterdir():
        edit(path, SeriesInstanceUID="1.2.3.4")
    files[-1].write_bytes(files[-1].read_bytes()[:-20])
    found = find_scans(tmp_path)
    assert [scan.name for scan in found.scans] == ["b"]
    assert any("of the series cannot be used" in reason for reason in failures(found))


def test_a_truncated_file_is_a_failure(tmp_path):
    files = write_series(tmp_path, image(), STRAIGHT)
    files[2].write_bytes(files[2].read_bytes()[:-20])
    assert any("cut short" in reason for reason in failures(find_scans(tmp_path)))
    with pytest.raises(ScanError, match="cut short"):
        open_scan(files)


def test_patient_data_is_nowhere(tmp_path):
    person = {"PatientName": "Mustermann^Erika", "PatientID": "4711"}
    files = write_series(tmp_path / "case", image((7, 5, 6)), STRAIGHT, **person)
    files[3].unlink()
    shown = repr(find_scans(tmp_path))
    assert "Mustermann" not in shown and "4711" not in shown and "synthetic" not in shown


def test_enhanced_frames_are_placed_by_their_own_position(tmp_path):
    from pydicom.dataset import Dataset

    values, affine = image() - 100, AFFINES["oblique"]
    files = write_series(tmp_path / "classic", values, affine)
    enhanced = pydicom.dcmread(files[0])
    planes = [pydicom.dcmread(path) for path in files]
    order = [2, 0, 3, 1]
    enhanced.SOPClassUID = enhanced.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    enhanced.NumberOfFrames = 4
    enhanced.PixelData = b"".join(planes[k].PixelData for k in order)
    enhanced.PerFrameFunctionalGroupsSequence = []
    for k in order:
        frame = Dataset()
        frame.PlanePositionSequence = [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = planes[k].ImagePositionPatient
        frame.PixelValueTransformationSequence = [Dataset()]
        frame.PixelValueTransformationSequence[0].RescaleSlope = k + 1
        frame.PixelValueTransformationSequence[0].RescaleIntercept = 3
        enhanced.PerFrameFunctionalGroupsSequence.append(frame)
    shared = Dataset()
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = enhanced.ImageOrientationPatient
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = enhanced.PixelSpacing
    enhanced.SharedFunctionalGroupsSequence = [shared]
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(enhanced, keyword)
    (tmp_path / "one").mkdir()
    enhanced.save_as(tmp_path / "one" / "enhanced.dcm")
    scan = open_scan([tmp_path / "one"])
    np.testing.assert_allclose(scan.read()[0], values * (np.arange(4) + 1.0) + 3)
    np.testing.assert_allclose(scan.grid.affine, affine, atol=1e-4)
    assert scan.frames == (2, 4, 1, 3) and len(set(scan.files)) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["SliceThickness", "PixelSpacing", "RescaleSlope", "SeriesNumber"])
def test_a_value_that_is_no_number_is_named_and_matters_where_it_is_needed(tmp_path, name):
    """A decimal comma is refused by the name of its element; a series is read whatever its number is."""
    for path in write_series(tmp_path / "series", image(), AFFINES["oblique"]):
        source = pydicom.dcmread(path)
        tag = source[name].tag if name in source else pydicom.tag.Tag(name)
        stored = b"ABCD" if name == "SeriesNumber" else b"0,5\\0,5" if name == "PixelSpacing" else b"2,5 "
        vr = pydicom.datadict.dictionary_VR(name)
        source._dict[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(stored), stored, 0, False, True)
        source.save_as(path)
    found = find_scans(tmp_path)
    if name == "SeriesNumber":
        (scan,) = found.scans
        np.testing.assert_array_equal(scan.read()[0], image())
        table = LabelTable.from_json(["a"])
        (path,) = write_mask(np.ones(scan.grid.shape, np.uint8), scan, table, tmp_path / "m", "dicom-seg")
        assert pydicom.dcmread(path).SeriesNumber == 1000
    else:
        for scan in found.scans:
            with pytest.raises(ScanError, match=name):
                scan.read()
        assert found.scans or all(name in item.reason for item in found.skipped)
        assert found.scans or found.skipped
