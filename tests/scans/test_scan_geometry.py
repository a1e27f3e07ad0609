"""The bright corner lies where other libraries say, in every format and orientation."""

import struct
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from conftest import shared
from fewscan.errors import ScanError
from fewscan.grid import Grid
from fewscan.scans import find_scans, match_grid, open_scan
from fewscan.scans.nrrd_header import check_header
from scans.dicom_series import write_series
from scans.volumes import AFFINES, SHAPE, SPACING, bright_mm, image

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def itk_image(values, affine):
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    result = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0))
    result.SetSpacing(spacing.tolist())
    result.SetOrigin(lps[:3, 3].tolist())
    result.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return result


@pytest.mark.parametrize("orientation", AFFINES)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, ">i2"])
def test_nifti_has_nibabels_values_and_affine(tmp_path, orientation, dtype):
    values, affine = np.minimum(image(), 200).astype(dtype), AFFINES[orientation]
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "x.nii.gz")
    scan = open_scan([tmp_path / "x.nii.gz"])
    reference = nibabel.load(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(scan.read()[0], np.asarray(reference.dataobj))
    np.testing.assert_array_equal(scan.grid.affine, reference.affine)
    np.testing.assert_allclose(scan.grid.spacing_mm, SPACING, rtol=1e-5)
    bright = np.argwhere(scan.read()[0] == 200)[0]
    np.testing.assert_allclose(scan.grid.to_mm(bright), bright_mm(affine), atol=1e-4)


def test_nifti_scaling_gives_real_values(tmp_path):
    nifti = nibabel.Nifti1Image(image(), AFFINES["oblique"])
    nifti.header.set_slope_inter(0.5, -7)
    nibabel.save(nifti, tmp_path / "x.nii")
    np.testing.assert_allclose(
        open_scan([tmp_path / "x.nii"]).read()[0], nibabel.load(tmp_path / "x.nii").get_fdata(), rtol=1e-6
    )


def test_a_flat_nifti_has_one_slice(tmp_path):
    values = image((7, 5, 1))[..., 0]
    nibabel.save(nibabel.Nifti1Image(values, AFFINES["oblique"]), tmp_path / "x.nii")
    scan = open_scan([tmp_path / "x.nii"])
    assert scan.grid.shape == (7, 5, 1)
    np.testing.assert_array_equal(scan.read(), values[None, ..., None])


@pytest.mark.parametrize(
    "units", ['"um" "um" "um"', '"mm" "mm" "micrometers"', '"m" "m" "m"', '"mm" "mm" "mm"', '"" "" ""']
)
def test_nrrd_in_other_units_than_mm_is_refused(tmp_path, units):
    path = tmp_path / "x.nrrd"
    SimpleITK.WriteImage(itk_image(image(), AFFINES["oblique"]), str(path))
    head, mark, data = path.read_bytes().partition(b"kinds:")
    path.write_bytes(head + f"space units: {units}\n".encode() + mark + data)
    if "m" in units.replace("mm", ""):
        with pytest.raises(ScanError, match=r"x\.nrrd: .*save it in mm"):
            open_scan([path])
    else:
        np.testing.assert_allclose(open_scan([path]).grid.affine, AFFINES["oblique"], atol=1e-6)


def write_nrrd(path, lines):
    head = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 7 5 4\nkinds: domain domain domain\nendian: little\n"
    values = image().astype("<i2").tobytes(order="F")
    path.write_bytes(f"{head}encoding: raw\n{lines}\n\n".encode() + values)


@pytest.mark.parametrize(
    "units", ['"micron" "micron" "micron"', '"mm" "mm" "um"', '"mm" "mm" "mm"', '"pixel" "pixel" "pixel"', '"" "" ""']
)
def test_nrrd_whose_axes_have_other_units_than_mm_is_refused(tmp_path, units):
    """NRRD's units axis by axis, beside `spacings`, as Fiji writes them."""
    path = tmp_path / "x.nrrd"
    write_nrrd(path, f"spacings: 0.5 0.5 1.0\nunits: {units}")
    if "m" in units.replace("mm", ""):
        with pytest.raises(ScanError, match=r"x\.nrrd: .*positions in (micron|um) \(units\).*save it in mm"):
            open_scan([path])
    else:
        np.testing.assert_array_equal(open_scan([path]).grid.affine, np.diag([-0.5, -0.5, 1, 1]))


def test_nrrd_units_of_an_axis_of_time_are_none_of_positions(tmp_path):
    write_nrrd(tmp_path / "x.nrrd", 'units: "s" "mm" "mm"')
    content = (tmp_path / "x.nrrd").read_bytes()
    with pytest.raises(ScanError, match=r"positions in s \(units\)"):
        check_header(tmp_path / "x.nrrd")
    (tmp_path / "x.nrrd").write_bytes(content.replace(b"kinds: domain", b"kinds: time"))
    assert check_header(tmp_path / "x.nrrd")[0] == "NrrdImageIO"


@pytest.mark.parametrize(
    ("space", "sign"),
    [
        ("space: left-posterior-superior", -1), ("space: right-anterior-superior", 1), ("space: RAS", 1),
        ("space: 3D-right-handed", None), ("space: 3D-left-handed", None), ("space: scanner-xyz", None),
        ("space dimension: 3", None), (None, None),
    ],
)  # fmt: skip
def test_nrrd_that_names_no_anatomical_directions_is_taken_as_itk_does_and_says_so(tmp_path, space, sign):
    directions = "space directions: (0.5,0,0) (0,0.5,0) (0,0,1)\nspace origin: (0,0,0)"
    write_nrrd(tmp_path / "x.nrrd", "spacings: 0.5 0.5 1" if space is None else f"{space}\n{directions}")
    scan = open_scan([tmp_path / "x.nrrd"])
    np.testing.assert_array_equal(scan.read()[0], image())
    np.testing.assert_array_equal(scan.grid.affine, np.diag([0.5 * (sign or -1), 0.5 * (sign or -1), 1, 1]))
    told = [note for note in scan.notes if "does not say which anatomical directions" in note]
    assert len(told) == len(scan.notes) == (1 if sign is None else 0)


@pytest.mark.parametrize("orientation", AFFINES)
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
def test_nrrd_and_metaimage_have_itks_positions(tmp_path, orientation, suffix):
    values, affine = image(), AFFINES[orientation]
    reference = itk_image(values, affine)
    SimpleITK.WriteImage(reference, str(tmp_path / f"x{suffix}"))
    scan = open_scan([tmp_path / f"x{suffix}"])
    assert scan.notes == ()
    np.testing.assert_array_equal(scan.read()[0], values)
    np.testing.assert_allclose(scan.grid.affine, affine, atol=1e-6)
    corner = reference.TransformIndexToPhysicalPoint([n - 1 for n in SHAPE])
    np.testing.assert_allclose(scan.grid.to_mm(np.array(SHAPE) - 1), LPS[:3, :3] @ corner, atol=1e-6)


@pytest.mark.parametrize("orientation", AFFINES)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_dicom_has_itks_positions_whatever_the_instance_numbers(tmp_path, orientation, modality):
    values, affine = image() - (300 if modality == "CT" else 0), AFFINES[orientation]
    write_series(tmp_path / "case", values, affine, shuffled=True, Modality=modality)
    scan = find_scans(tmp_path).scans[0]
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "case"))
    reference = SimpleITK.ReadImage(names)
    assert scan.name == "case"
    np.testing.assert_array_equal(scan.read()[0], SimpleITK.GetArrayFromImage(reference).transpose(2, 1, 0))
    for corner in ((0, 0, 0), (SHAPE[0] - 1, 0, 0), tuple(n - 1 for n in SHAPE)):
        point = reference.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(scan.grid.to_mm(corner), LPS[:3, :3] @ point, atol=1e-3)
    bright = np.argwhere(scan.read()[0] == values.max())[0]
    np.testing.assert_allclose(scan.grid.to_mm(bright), bright_mm(affine), atol=1e-3)


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_photographs_have_x_first(tmp_path, suffix, shape):
    pixels = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"x{suffix}")
    scan = open_scan([tmp_path / f"x{suffix}"])
    assert scan.channels == (("image",) if len(shape) == 2 else ("red", "green", "blue"))
    np.testing.assert_array_equal(scan.read()[..., 0], np.atleast_3d(pixels).transpose(2, 1, 0))
    reference = SimpleITK.ReadImage(str(tmp_path / f"x{suffix}"))
    np.testing.assert_array_equal(scan.grid.affine[:3, :3][:2, :2], -np.eye(2))
    assert scan.grid.shape[:2] == reference.GetSize()[:2]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_keeps_sixteen_bits(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 65535, (5, 7, channels)).astype(np.uint16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels.squeeze(), isVector=channels == 3), str(tmp_path / "x.png"))
    data = open_scan([tmp_path / "x.png"]).read()
    assert data.dtype == np.uint16
    np.testing.assert_array_equal(data[..., 0], pixels.transpose(2, 1, 0))


def test_png_keeps_sixteen_bits_beside_an_alpha(tmp_path):
    """Written by hand: neither Pillow nor SimpleITK writes grey with alpha in sixteen bits."""
    pixels = np.random.default_rng(0).integers(0, 65535, (5, 7, 2)).astype(">u2")
    pixels[..., 1] = 65535
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 4, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    framed = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))
    scan = open_scan([tmp_path / "x.png"])
    assert scan.channels == ("image",) and scan.read().dtype == np.uint16
    np.testing.assert_array_equal(scan.read()[0, ..., 0].T, pixels[..., 0])


def test_tiff_pages_are_k_and_the_voxel_size_is_imagejs(tmp_path):
    pages = np.random.default_rng(0).integers(0, 65535, (4, 5, 7)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "x.tif", pages, imagej=True, resolution=(1 / 0.5, 1 / 0.25),
        metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"},
    )  # fmt: skip
    scan = open_scan([tmp_path / "x.tif"])
    np.testing.assert_array_equal(scan.read()[0], pages.transpose(2, 1, 0))
    np.testing.assert_allclose(scan.grid.affine, np.diag([-0.0005, -0.00025, 0.002, 1]), rtol=1e-6)


@pytest.mark.parametrize(("stated", "mm"), [(-2.0, 0.002), ("nan", 0.0005), ("near", 0.0005), (0, 0.0005)])
def test_tiff_pages_go_up_whatever_imagej_says_of_their_distance(tmp_path, stated, mm):
    pages = np.random.default_rng(0).integers(0, 65535, (4, 5, 7)).astype(np.uint16)
    more = {"axes": "ZYX", "spacing": stated, "unit": "um"}
    tifffile.imwrite(tmp_path / "x.tif", pages, imagej=True, resolution=(2, 2), metadata=more)
    scan = open_scan([tmp_path / "x.tif"])
    np.testing.assert_allclose(scan.grid.affine, np.diag([-0.0005, -0.0005, mm, 1]), rtol=1e-6)
    unsized = Grid(scan.grid.shape, np.diag([-1.0, -1.0, 1.0, 1.0]))  # a label that an editor saved
    np.testing.assert_array_equal(match_grid(pages.T, unsized, scan.grid, "x_seg.tif"), scan.read()[0])


@pytest.mark.parametrize("unit", ["um", "micron", "mm"])
def test_tiff_pages_of_imagej_without_a_distance_are_one_unit_apart(tmp_path, unit):
    """ImageJ's FileSaver writes no `spacing` where that is 1."""
    pages = np.random.default_rng(0).integers(0, 255, (4, 5, 7)).astype(np.uint8)
    for name, more in (("unsaid", {}), ("said", {"spacing": 1.0})):
        size = {"axes": "ZYX", "unit": unit, **more}
        tifffile.imwrite(tmp_path / f"{name}.tif", pages, imagej=True, resolution=(10, 10), metadata=size)
        assert tifffile.TiffFile(tmp_path / f"{name}.tif").imagej_metadata.get("spacing") == more.get("spacing")
    unsaid, said = (open_scan([tmp_path / f"{name}.tif"]) for name in ("unsaid", "said"))
    one = 1.0 if unit == "mm" else 0.001
    np.testing.assert_allclose(unsaid.grid.affine, np.diag([-one / 10, -one / 10, one, 1]), rtol=1e-6)
    np.testing.assert_array_equal(unsaid.grid.affine, said.grid.affine)
    assert unsaid.notes == said.notes == ("voxel size from ImageJ metadata",)


@pytest.mark.parametrize(("more", "mm"), [({}, 0.001), ({"spacing": 0.3}, 0.0003), ({"spacing": 0}, 0.0001)])
def test_tiff_pages_that_share_one_directory_are_counted(tmp_path, more, mm):
    """As ImageJ writes a stack above 4 GB: one directory, all pages behind it."""
    pages = np.random.default_rng(0).integers(0, 255, (4, 5, 7)).astype(np.uint8)
    size = {"axes": "ZYX", "unit": "um", **more}
    tifffile.imwrite(tmp_path / "x.tif", pages, imagej=True, resolution=(10, 10), metadata=size, truncate=True)
    assert len(tifffile.TiffFile(tmp_path / "x.tif").pages) == 1
    scan = open_scan([tmp_path / "x.tif"])
    np.testing.assert_array_equal(scan.read()[0].T, pages)
    np.testing.assert_allclose(scan.grid.affine, np.diag([-0.0001, -0.0001, mm, 1]), rtol=1e-6)
    assert ("pixel size is assumed" in scan.notes[0]) == (more.get("spacing") == 0)


def test_tiff_takes_omes_size_and_no_size_without_a_unit(tmp_path):
    pages = np.zeros((4, 5, 7), np.uint8)
    size = {"PhysicalSizeX": 0.9, "PhysicalSizeXUnit": "mm", "PhysicalSizeY": 800.0, "PhysicalSizeYUnit": "µm"}
    tifffile.imwrite(tmp_path / "x.ome.tif", pages, metadata={"axes": "ZYX", **size, "PhysicalSizeZ": 2500.0})
    np.testing.assert_allclose(open_scan([tmp_path / "x.ome.tif"]).grid.spacing_mm, SPACING)
    tifffile.imwrite(tmp_path / "y.tif", pages[0], resolution=(72, 72), resolutionunit="INCH")
    assert open_scan([tmp_path / "y.tif"]).grid.spacing_mm == (1, 1, 1)
    tifffile.imwrite(tmp_path / "z.tif", pages[0], resolution=(20, 40), resolutionunit="CENTIMETER")
    assert open_scan([tmp_path / "z.tif"]).grid.spacing_mm[:2] == (0.5, 0.25)


def test_tiff_that_viewers_turn_is_taken_as_stored_and_says_so(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7)).astype(np.uint8)
    for name, orientation in (("plain", 1), ("turned", 6)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, extratags=[(274, "H", 1, orientation, True)])
    plain, turned = (open_scan([tmp_path / f"{name}.tif"]) for name in ("plain", "turned"))
    np.testing.assert_array_equal(turned.read()[0, ..., 0].T, pixels)
    assert "asks viewers to turn it (orientation 6)" in turned.notes[0] and not plain.notes


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int32, np.float32])
def test_tiff_pages_of_lzw_need_no_further_package(tmp_path, dtype):
    pages = np.random.default_rng(0).integers(0, 2 if dtype is bool else 60000, (4, 40, 50)).astype(dtype)
    first, *others = [Image.fromarray(page) for page in pages]
    first.save(tmp_path / "x.tif", compression="tiff_lzw", save_all=True, append_images=others)
    assert tifffile.TiffFile(tmp_path / "x.tif").pages[0].compression == 5
    np.testing.assert_array_equal(open_scan([tmp_path / "x.tif"]).read()[0].T, pages)
    content = bytearray((tmp_path / "x.tif").read_bytes())
    content[len(content) // 3 : len(content) // 3 + 40] = b"\xff" * 40
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(ScanError, match=r"x.tif: the TIFF cannot be decoded"):
        open_scan([tmp_path / "x.tif"]).read()


@pytest.mark.parametrize("channels", [3, 4])
def test_tiff_colours_of_lzw(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, channels)).astype(np.uint8)
    pixels[..., 3:] = 255
    Image.fromarray(pixels).save(tmp_path / "x.tif", compression="tiff_lzw")
    scan = open_scan([tmp_path / "x.tif"])
    assert scan.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(scan.read()[..., 0], pixels[..., :3].transpose(2, 1, 0))


def test_tiff_of_one_bit_a_pixel(tmp_path):
    pages = np.random.default_rng(0).integers(0, 2, (8, 50, 70)).astype(bool)
    first, *others = [Image.fromarray(page) for page in pages]
    first.save(tmp_path / "x.tif", save_all=True, append_images=others)
    assert (tmp_path / "x.tif").stat().st_size < pages.size / 4
    np.testing.assert_array_equal(open_scan([tmp_path / "x.tif"]).read()[0].T, pages)


@pytest.mark.parametrize("planar", ["CONTIG", "SEPARATE"])
def test_tiff_colours(tmp_path, planar):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    stored = pixels if planar == "CONTIG" else pixels.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="rgb", planarconfig=planar)
    scan = open_scan([tmp_path / "x.tif"])
    assert scan.channels == ("red", "green", "blue")
    np.testing.assert_array_equal(scan.read()[..., 0], pixels.transpose(2, 1, 0))


def test_alpha_is_dropped_only_where_it_is_opaque(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 4)).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "varies.png")
    pixels[..., 3] = 255
    Image.fromarray(pixels, "RGBA").save(tmp_path / "opaque.png")
    found = find_scans(tmp_path)
    assert [item.path.name for item in found.skipped if item.failed] == ["varies.png"]
    assert "alpha" in found.scans[0].notes[0]
    np.testing.assert_array_equal(found.scans[0].read()[..., 0], pixels[..., :3].transpose(2, 1, 0))


@pytest.mark.parametrize("case", ["generic/anatomical", "hitachi/anatomical", "philips_enhanced/anatomical"])
def test_real_series_equal_dicom2niftis_reference(case):
    folder = shared("data/dicom_series_dicom2nifti") / case
    scan = open_scan([folder / "001"])
    reference = nibabel.load(folder / "001_ground_truth.nii.gz")
    to_reference = np.linalg.inv(reference.affine) @ scan.grid.affine
    np.testing.assert_allclose(np.abs(to_reference), np.round(np.abs(to_reference)), atol=2e-2)  # voxels coincide
    index = np.stack(np.meshgrid(*[range(n) for n in scan.grid.shape], indexing="ij"), -1).reshape(-1, 3)
    there = np.round(index @ to_reference[:3, :3].T + to_reference[:3, 3]).astype(int)
    values = np.asarray(reference.dataobj)[tuple(there.T)].reshape(scan.grid.shape)
    np.testing.assert_allclose(scan.read()[0], values, atol=1e-3)


def test_codecs_decode_to_the_same_pixels():
    folder = shared("data/dicom_series_dicom2nifti") / "generic"
    one, other = (open_scan([folder / name / "001"]) for name in ("compressed_jpegls", "compressed_rle"))
    np.testing.assert_array_equal(one.read(), other.read())
    assert one.grid.differs_from(other.grid) is None


def test_a_real_gantry_tilt_keeps_every_slice_in_place():
    import pydicom

    scan = open_scan([shared("data/dicom_series_dicom2nifti") / "failing/gantrytilting/001"])
    assert not scan.grid.is_orthogonal and any("gantry tilt" in note for note in scan.notes)
    for k, path in enumerate(scan.files):
        position = pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient
        np.testing.assert_allclose(scan.grid.to_mm((0, 0, k)), LPS[:3, :3] @ np.array(position, float), atol=0.05)


def test_the_real_mr_series_has_itks_voxels():
    folder = shared("data/dicom_mr_udacity")
    scan = find_scans(folder).scans[0]
    reference = SimpleITK.ReadImage([str(path) for path in scan.files])
    np.testing.assert_array_equal(scan.read()[0], SimpleITK.GetArrayFromImage(reference).transpose(2, 1, 0))
    end = [n - 1 for n in scan.grid.shape]
    np.testing.assert_allclose(
        scan.grid.to_mm(end), LPS[:3, :3] @ reference.TransformIndexToPhysicalPoint(end), atol=1e-3
    )


def test_the_real_ct_series_lies_on_the_grid_of_its_label():
    folder = shared("data/totalseg_ref/example_ct_dicom")
    scan = open_scan([folder])
    label = nibabel.load(folder.parent / "example_seg_dicom.nii.gz")
    match_grid(np.asarray(label.dataobj), Grid(label.shape, label.affine), scan.grid, "example_seg_dicom")
