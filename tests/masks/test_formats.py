"""The mask lies where the scan lies, in each format, as other people's readers see it."""

import gzip
import subprocess
import sys

import itk
import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import slicerio
import tifffile

from fewscan.errors import FormatError, LabelError
from fewscan.grid import LPS_FROM_RAS
from fewscan.labels import LabelTable
from fewscan.masks import FORMATS, check_format, default_format, write_mask
from fewscan.scans import open_scan
from masks.cases import GRIDS, LARGE, SHEARED, TABLE, dicom_scan, grid, mask, nifti_scan, nrrd_scan, picture_scan


def corner_in_lps(grid, index):
    return (LPS_FROM_RAS @ [*grid.to_mm(index), 1])[:3]


@pytest.mark.parametrize("name", GRIDS)
def test_nifti_has_the_scans_affine_and_itk_finds_each_label_in_its_place(tmp_path, name):
    scan = nifti_scan(tmp_path, GRIDS[name])
    path, colours = write_mask(mask(), scan, TABLE, tmp_path / "scan_seg", "nifti")
    source, found = nibabel.load(scan.files[0]), nibabel.load(path)
    np.testing.assert_array_equal(found.affine, source.affine)
    for field in ("sform_code", "qform_code", "xyzt_units", "pixdim", "quatern_b", "qoffset_x", "srow_y"):
        np.testing.assert_array_equal(found.header[field], source.header[field], err_msg=field)
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), mask())
    image = sitk.ReadImage(str(path))
    for index in np.argwhere(mask()).tolist():
        at = image.TransformPhysicalPointToIndex(corner_in_lps(scan.grid, index).tolist())
        assert at == tuple(index) and image[at] == mask()[tuple(index)]
    other = itk.imread(str(path))
    np.testing.assert_allclose(other.GetOrigin(), corner_in_lps(scan.grid, (0, 0, 0)), atol=1e-4)
    np.testing.assert_array_equal(itk.array_from_image(other).T, mask())
    assert colours.name == "scan_seg.ctbl" and "left_kidney" in colours.read_text()


@pytest.mark.parametrize("name", GRIDS)
def test_nifti_of_a_dicom_series_is_placed_by_both_forms(tmp_path, name):
    scan = dicom_scan(tmp_path / "series", GRIDS[name])
    path, _ = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", "nifti")
    header = nibabel.load(path).header
    np.testing.assert_allclose(header.get_sform(), scan.grid.affine, atol=1e-4)
    np.testing.assert_allclose(header.get_qform(), scan.grid.affine, atol=1e-4)
    assert (header["sform_code"], header["qform_code"]) == (1, 1)


def test_nifti_keeps_a_shear(tmp_path):
    scan = dicom_scan(tmp_path / "series", SHEARED)
    path, _ = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", "nifti")
    np.testing.assert_allclose(nibabel.load(path).affine, SHEARED.affine, atol=1e-5)


@pytest.mark.parametrize("shear", [1e-3, 2.8e-3])  # voxels from slice to slice: cosines of 3e-4 and 9e-4
def test_nifti_keeps_a_shear_that_itk_reads_in_no_scan(tmp_path, shear):
    scan = nifti_scan(tmp_path, grid(np.diag([-1.0, -1.0, 1.0]), shear=shear))
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(scan.files[0]))
    path, _ = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", "nifti")
    np.testing.assert_array_equal(nibabel.load(path).affine, nibabel.load(scan.files[0]).affine)
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(path).dataobj), mask())


MICRONS = grid(np.diag([-1.0, -1.0, 1.0]), spacing=(0.0002, 0.0002, 0.001), origin=(-12.345678, 7.1234567, 3.3))


def nifti2_scan(folder, where):
    scan = nifti_scan(folder, where)
    nibabel.save(nibabel.Nifti2Image(np.asanyarray(nibabel.load(scan.files[0]).dataobj), where.affine), scan.files[0])
    return scan


@pytest.mark.parametrize("write", [nifti2_scan, nrrd_scan])
def test_nifti_of_voxels_finer_than_single_precision_is_nifti_2(tmp_path, write):
    path, _ = write_mask(mask(), write(tmp_path, MICRONS), TABLE, tmp_path / "m_seg", "nifti")
    found = nibabel.load(path)
    assert isinstance(found, nibabel.Nifti2Image)
    np.testing.assert_allclose(found.affine, MICRONS.affine, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), mask())


def test_nifti_of_an_axis_too_long_for_nifti_1(tmp_path):
    values = mask(shape=(33000, 6, 7))
    nibabel.save(nibabel.Nifti2Image(np.zeros(values.shape, np.uint8), GRIDS["axial"].affine), tmp_path / "x.nii")
    path, _ = write_mask(values, open_scan([tmp_path / "x.nii"]), TABLE, tmp_path / "m_seg", "nifti")
    found = nibabel.load(path)
    np.testing.assert_array_equal(found.affine, GRIDS["axial"].affine)
    np.testing.assert_array_equal(np.asanyarray(found.dataobj), values)


def test_nifti_keeps_sform_and_qform_codes_and_no_scaling(tmp_path):
    scan = nifti_scan(tmp_path, GRIDS["oblique"])
    source = nibabel.load(scan.files[0])
    header = source.header.copy()
    header.set_sform(source.affine, code=4)
    header.set_qform(source.affine, code=2)
    header.set_slope_inter(0.5, 100)
    nibabel.save(nibabel.Nifti1Image(source.get_fdata().astype(np.int16), None, header), scan.files[0])
    path, _ = write_mask(mask(LARGE), scan, LARGE, tmp_path / "m_seg", "nifti")
    found = nibabel.load(path)
    assert (int(found.header["sform_code"]), int(found.header["qform_code"])) == (4, 2)
    assert found.get_data_dtype() == np.uint16
    np.testing.assert_array_equal(found.get_fdata(), mask(LARGE))


def test_nifti_of_a_scan_with_a_rounded_pixdim_lies_on_it_for_every_reader(tmp_path):
    """256 voxels of 0.9375 mm that pixdim calls 0.94: by pixdim, as ITK reads, the last lies 0.64 mm further."""
    scan = nifti_scan(tmp_path, grid(np.diag([-1.0, -1.0, 1.0]), shape=(256, 6, 7), spacing=(0.9375, 0.8, 2.5)))
    source = nibabel.load(scan.files[0])
    header = source.header.copy()
    header["pixdim"][1] = 0.94
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(source.dataobj), None, header), scan.files[0])
    assert sitk.ReadImage(str(scan.files[0])).GetSpacing()[0] == pytest.approx(0.94)
    scan = open_scan(scan.files)
    assert "the s-form says voxels of 0.9375 x 0.8 x 2.5 mm, pixdim 0.94 x 0.8 x 2.5 mm" in scan.notes[0]
    np.testing.assert_array_equal(scan.grid.affine, source.affine)
    path, _ = write_mask(mask(shape=(256, 6, 7)), scan, TABLE, tmp_path / "m_seg", "nifti")
    np.testing.assert_array_equal(nibabel.load(path).affine, source.affine)
    one, other = (sitk.ReadImage(str(file)) for file in (path, scan.files[0]))
    assert one.TransformIndexToPhysicalPoint((255, 5, 6)) == other.TransformIndexToPhysicalPoint((255, 5, 6))


def test_nifti_without_orientation_stays_without(tmp_path):
    path = tmp_path / "scan.nii.gz"
    image = nibabel.Nifti1Image(mask().astype(np.int16), None)
    image.header["pixdim"][1:4] = (0.9, 0.8, 2.5)
    nibabel.save(image, path)
    scan = nifti_scan(tmp_path / ".", GRIDS["axial"])
    nibabel.save(image, scan.files[0])
    written, _ = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", "nifti")
    found = nibabel.load(written)
    assert (int(found.header["sform_code"]), int(found.header["qform_code"])) == (0, 0)
    np.testing.assert_array_equal(found.affine, nibabel.load(path).affine)


def test_equal_masks_are_equal_bytes(tmp_path):
    scan = nifti_scan(tmp_path, GRIDS["oblique"])
    for format in ("nifti", "seg-nrrd"):
        first, *_ = write_mask(mask(), scan, TABLE, tmp_path / "a_seg", format)
        again, *_ = write_mask(mask(), scan, TABLE, tmp_path / "b_seg", format)
        assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("name", [*GRIDS, "sheared"])
def test_seg_nrrd_geometry_by_pynrrd(tmp_path, name):
    where = {**GRIDS, "sheared": SHEARED}[name]
    scan = dicom_scan(tmp_path / "series", where)
    (path,) = write_mask(mask(LARGE), scan, LARGE, tmp_path / "m_seg", "seg-nrrd")
    values, header = nrrd.read(str(path))
    np.testing.assert_array_equal(values, mask(LARGE))
    assert header["space"] == "left-posterior-superior"
    ras = LPS_FROM_RAS[:3, :3] @ np.column_stack([header["space directions"].T, header["space origin"]])
    np.testing.assert_allclose(ras, scan.grid.affine[:3], rtol=0, atol=1e-12)


def test_seg_nrrd_tells_slicer_names_colours_codes_and_extent(tmp_path):
    scan = nrrd_scan(tmp_path, GRIDS["oblique"])
    (path,) = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", "seg-nrrd")
    found = slicerio.read_segmentation(str(path))
    np.testing.assert_array_equal(found["voxels"], mask())
    for label, segment in zip(TABLE, found["segments"], strict=True):
        assert (segment["name"], segment["labelValue"]) == (label.name, label.value)
        np.testing.assert_allclose(segment["color"], np.array(label.colour) / 255, atol=1e-5)
        code = label.meaning.type
        assert segment["terminology"]["type"] == [code.scheme, code.value, code.meaning]
        where = np.argwhere(mask() == label.value)
        extent = np.column_stack([where.min(0), where.max(0)]).ravel().tolist()
        assert list(segment["extent"]) == extent
    assert found["segments"][0]["terminology"]["typeModifier"] == ["SCT", "7771000", "Left"]


def test_png_and_tiff_hold_the_values_themselves(tmp_path):
    for suffix, shape, table in ((".png", (9, 6, 1), TABLE), (".png", (9, 6, 1), LARGE), (".tif", (9, 6, 7), LARGE)):
        scan = picture_scan(tmp_path, suffix, shape)
        values = mask(table)[:, :, 1 : 1 + shape[2]] if shape[2] == 1 else mask(table)
        (path,) = write_mask(values, scan, table, tmp_path / "m_seg", default_format(scan))
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        np.testing.assert_array_equal(found.T.reshape(values.shape), values)
        assert found.dtype == table.dtype


def test_the_default_follows_the_source(tmp_path):
    assert default_format(nifti_scan(tmp_path, GRIDS["axial"])) == "nifti"
    assert default_format(nrrd_scan(tmp_path, GRIDS["axial"])) == "seg-nrrd"
    assert default_format(dicom_scan(tmp_path / "d", GRIDS["axial"])) == "dicom-seg"
    assert default_format(picture_scan(tmp_path, ".png")) == "png"
    assert set(FORMATS) == {"nifti", "dicom-seg", "dicom-seg-labelmap", "seg-nrrd", "png", "tiff"}


def test_impossible_formats_are_refused_with_the_way_out(tmp_path):
    nifti, pages = nifti_scan(tmp_path, GRIDS["axial"]), picture_scan(tmp_path, ".tif", (9, 6, 7))
    for format, scan, words in (
        ("dicom-seg", nifti, "choose nifti or seg-nrrd"),
        ("png", nifti, "neither orientation nor position"),
        ("png", pages, "this has 7|has 7"),
        ("jpeg", nifti, "choose one of"),
    ):
        with pytest.raises(FormatError, match=words):
            check_format(format, scan)
        with pytest.raises(FormatError, match=words):
            write_mask(mask(), scan, TABLE, tmp_path / "x_seg", format)
    assert not list(tmp_path.glob("*x_seg*"))


def test_values_outside_the_table_and_other_shapes_are_refused(tmp_path):
    scan = nifti_scan(tmp_path, GRIDS["axial"])
    wrong = mask()
    wrong[1, 1, 1] = 9
    with pytest.raises(LabelError, match="9"):
        write_mask(wrong, scan, TABLE, tmp_path / "x_seg", "nifti")
    with pytest.raises(FormatError, match="shape"):
        write_mask(mask()[1:], scan, TABLE, tmp_path / "x_seg", "nifti")


def test_empty_and_full_masks_survive_in_every_format(tmp_path):
    series = dicom_scan(tmp_path / "series", GRIDS["oblique"])
    for format in ("nifti", "seg-nrrd", "dicom-seg"):
        for values in (np.zeros_like(mask()), np.full_like(mask(), 5)):
            write_mask(values, series, TABLE, tmp_path / "m_seg", format)


def test_gzip_carries_no_temporary_name(tmp_path):
    scan = nifti_scan(tmp_path, GRIDS["axial"])
    path, _ = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", "nifti")
    assert path.read_bytes()[3] == 0  # no FNAME flag
    assert len(gzip.decompress(path.read_bytes())) == 352 + mask().nbytes


def test_names_with_odd_signs_survive_or_become_what_the_format_allows(tmp_path):
    table = LabelTable.from_json(["a\\b := c", "größe 肝", "x" * 80])
    values = np.minimum(mask(), 2)
    scan = dicom_scan(tmp_path / "series", GRIDS["oblique"])
    for format in ("nifti", "seg-nrrd", "dicom-seg"):
        write_mask(values, scan, table, tmp_path / "m_seg", format)
    image = sitk.ReadImage(str(tmp_path / "m_seg.seg.nrrd"))
    assert image.GetMetaData("Segment0_Name") == "a\\b := c" and image.GetMetaData("Segment1_Name") == "größe 肝"
    assert "größe_肝" in (tmp_path / "m_seg.ctbl").read_text(encoding="utf-8")


def test_tiff_keeps_the_resolution_that_the_scan_states(tmp_path):
    pages = mask().T
    tifffile.imwrite(tmp_path / "scan.tif", pages, resolution=(200, 125), resolutionunit="CENTIMETER")
    scan = picture_scan(tmp_path, ".tif", (9, 6, 7))
    tifffile.imwrite(tmp_path / "scan.tif", pages, resolution=(200, 125), resolutionunit="CENTIMETER")
    (path,) = write_mask(mask(), scan, TABLE, tmp_path / "m_seg", "tiff")
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 7 and file.pages[0].get_resolution("CENTIMETER") == (200, 125)
        np.testing.assert_array_equal(file.asarray(), pages)


@pytest.mark.parametrize(("tag", "value"), [(282, (0, 0)), (283, (1, 0)), (296, (0,)), (296, (4,))])
def test_a_resolution_that_there_cannot_be_is_left_out(tmp_path, tag, value):
    scan = picture_scan(tmp_path, ".tif")
    tifffile.imwrite(scan.files[0], mask()[:, :, 1].T, resolution=(200, 125), resolutionunit="CENTIMETER")
    with tifffile.TiffFile(scan.files[0]) as file:
        at = file.pages[0].tags[tag].valueoffset
    content = bytearray(scan.files[0].read_bytes())
    content[at : at + 4 * len(value)] = np.array(value, "<u4").tobytes()
    scan.files[0].write_bytes(content)
    (path,) = write_mask(mask()[:, :, 1:2], scan, TABLE, tmp_path / "m_seg", "tiff")
    np.testing.assert_array_equal(tifffile.imread(path), mask()[:, :, 1].T)


def test_nifti_of_a_flat_image(tmp_path):
    flat = nibabel.Nifti1Image(np.ones((9, 6), dtype=np.uint8), np.diag([-0.5, -0.5, 3, 1]))
    nibabel.save(flat, tmp_path / "flat.nii.gz")
    scan = open_scan([tmp_path / "flat.nii.gz"])
    path, _ = write_mask(mask()[:, :, 1:2], scan, TABLE, tmp_path / "m_seg", "nifti")
    np.testing.assert_array_equal(nibabel.load(path).affine, nibabel.load(tmp_path / "flat.nii.gz").affine)


def test_importing_the_package_loads_no_heavy_library():
    heavy = "{'monai', 'torch', 'itk', 'SimpleITK', 'pydicom', 'highdicom', 'nibabel', 'PIL', 'tifffile'}"
    code = f"import sys, fewscan.masks; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
