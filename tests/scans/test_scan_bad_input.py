"""Input that would give a wrong mask is refused, by the file's name and the numbers."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from fewscan.errors import GeometryError, ScanError
from fewscan.scans import find_scans, open_scan
from scans.volumes import AFFINES, image, ome_set

OBLIQUE = AFFINES["oblique"]


def save(path, values, affine=OBLIQUE, **header):
    nifti = nibabel.Nifti1Image(values, affine)
    for key, value in header.items():
        nifti.header[key] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nifti, path)
    return path


def reason(path):
    (item,) = find_scans(path).skipped
    assert item.failed and item.path.name in item.reason
    return item.reason


def test_text_named_nifti(tmp_path):
    (tmp_path / "x.nii.gz").write_text("Dear colleague, the scan is attached.")
    assert "is no NIfTI file" in reason(tmp_path)


def test_html_named_nifti(tmp_path):
    (tmp_path / "x.nii").write_text("<html>" + "x" * 1000)
    assert "is no NIfTI file" in reason(tmp_path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_nifti(tmp_path, suffix):
    path = save(tmp_path / f"x{suffix}", np.random.default_rng(0).integers(0, 999, (31, 29, 11)).astype(np.int16))
    path.write_bytes(path.read_bytes()[:-4000])
    assert "cut short" in reason(tmp_path)


def test_a_gzip_of_several_members_is_whole(tmp_path):
    plain = save(tmp_path / "plain.nii", image()).read_bytes()
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(plain[:400]) + gzip.compress(plain[400:]))
    np.testing.assert_array_equal(open_scan([tmp_path / "x.nii.gz"]).read()[0], image())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(tmp_path, bad):
    values = image().astype(np.float32)
    values[0, 0, :2] = bad
    with pytest.raises(ScanError, match=r"x.nii: 2 of 140 values are not finite"):
        open_scan([save(tmp_path / "x.nii", values)]).read()


def test_a_time_series(tmp_path):
    path = save(tmp_path / "x.nii", np.zeros((7, 5, 4, 5), np.int16), xyzt_units=2 + 8)
    assert "4-D with 5 volumes (the header's time unit is sec): is it a time series, or channels?" in reason(tmp_path)
    with pytest.raises(ScanError, match="4-D with 5 volumes, where 4 channels"):
        open_scan([path], [{"name": str(n), "index": n} for n in range(4)])
    tifffile.imwrite(tmp_path / "t.tif", np.zeros((3, 5, 7), np.uint8), imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(ScanError, match="time series of 3 images"):
        open_scan([tmp_path / "t.tif"])


def test_s_form_and_q_form_that_disagree(tmp_path):
    nifti = nibabel.Nifti1Image(image(), OBLIQUE)
    nifti.set_sform(OBLIQUE, 1)
    nifti.set_qform(AFFINES["lps"], 1)
    nibabel.save(nifti, tmp_path / "x.nii")
    assert "s-form (code 1) and q-form (code 1) disagree" in reason(tmp_path)
    nifti.set_qform(None, 0)
    nibabel.save(nifti, tmp_path / "x.nii")
    np.testing.assert_allclose(open_scan([tmp_path / "x.nii"]).grid.affine, OBLIQUE, atol=1e-5)


def test_an_s_form_and_a_voxel_size_that_disagree(tmp_path):
    """ITK takes the axes of the s-form, but the size of pixdim."""
    nifti = nibabel.Nifti1Image(image(), None)
    nifti.header.set_sform(OBLIQUE, 1)
    nibabel.save(nifti, tmp_path / "x.nii")
    assert np.allclose(SimpleITK.ReadImage(str(tmp_path / "x.nii")).GetSpacing(), 1)
    assert "the s-form says voxels of 0.9 x 0.8 x 2.5 mm, pixdim 1 x 1 x 1 mm" in reason(tmp_path)
    nifti.header.set_zooms((0.9, 0.8, 2.5))
    nibabel.save(nifti, tmp_path / "x.nii")
    np.testing.assert_allclose(open_scan([tmp_path / "x.nii"]).grid.affine, OBLIQUE, atol=1e-5)
    nifti.header.set_zooms((0.904, 0.8, 2.5))
    nibabel.save(nifti, tmp_path / "x.nii")
    assert find_scans(tmp_path).skipped == []  # 0.4 %


def test_the_voxel_size_of_one_slice_or_of_a_sheared_form_is_free(tmp_path):
    nifti = nibabel.Nifti1Image(image()[..., :1], None)
    nifti.header.set_sform(OBLIQUE, 1)
    nifti.header.set_zooms((0.9, 0.8, 1))
    nibabel.save(nifti, tmp_path / "x.nii")
    sheared = AFFINES["straight"].copy()
    sheared[:3, 2] = 0, 1.0, 2.5
    nifti = nibabel.Nifti1Image(image(), None)
    nifti.header.set_sform(sheared, 1)
    nifti.header.set_zooms((0.9, 0.8, 2.5))
    nibabel.save(nifti, tmp_path / "y.nii")
    for name, affine in (("x", OBLIQUE), ("y", sheared)):
        np.testing.assert_allclose(open_scan([tmp_path / f"{name}.nii"]).grid.affine, affine, atol=1e-5)


def test_a_header_without_orientation_is_said(tmp_path):
    save(tmp_path / "x.nii", image(), None)
    scan = open_scan([tmp_path / "x.nii"])
    assert "no orientation" in scan.notes[0]
    np.testing.assert_array_equal(scan.grid.affine, nibabel.load(tmp_path / "x.nii").affine)
    save(tmp_path / "y.nii", image(), np.eye(4))
    assert "identity" in open_scan([tmp_path / "y.nii"]).notes[0]


def test_positions_in_micrometres_are_refused(tmp_path):
    save(tmp_path / "x.nii", image(), xyzt_units=3)
    assert "microns" in reason(tmp_path)


@pytest.mark.parametrize("dtype", [np.complex64, [("R", "u1"), ("G", "u1"), ("B", "u1")]])
def test_voxels_that_are_no_number(tmp_path, dtype):
    save(tmp_path / "x.nii", np.zeros((7, 5, 4), dtype))
    assert "one real number a voxel" in reason(tmp_path)


def test_five_axes(tmp_path):
    save(tmp_path / "x.nii", np.zeros((7, 5, 4, 1, 3), np.float32))
    assert "5-D, 7 x 5 x 4 x 1 x 3" in reason(tmp_path)


def test_damaged_others(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 70)).astype(np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:-900])
    with pytest.raises(ScanError, match=r"x.png: .*cut short"):
        open_scan([tmp_path / "x.png"]).read()
    for name in ("y.png", "y.tif", "y.nrrd", "y.dcm"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ScanError, match=name):
            open_scan([tmp_path / name])
    (tmp_path / "y.mhd").write_text("ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\n"
                                    "ElementDataFile = gone.raw\n")  # fmt: skip
    with pytest.raises(ScanError, match=r"y\.mhd"):
        open_scan([tmp_path / "y.mhd"]).read()


def test_a_palette_image_is_no_scan(tmp_path):
    Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).convert("P").save(tmp_path / "x.png")
    assert "palette" in reason(tmp_path)


def test_a_picture_of_too_many_pixels_says_the_way_out(tmp_path):
    Image.new("L", (20000, 9000)).save(tmp_path / "x.png")
    assert "more than 178956970 pixels are not read from a picture; save it as TIFF" in reason(tmp_path)


@pytest.mark.parametrize("colours", ["CMYK", "LAB", "YCbCr"])
def test_other_colours_are_not_red_green_blue(tmp_path, colours):
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    pixels[..., 0] = 255  # of which CMYK makes no black: it would pass for an opaque alpha
    Image.fromarray(pixels).convert(colours).save(tmp_path / "x.tif")
    assert f"its colours are {'CIELAB' if colours == 'LAB' else colours}" in reason(tmp_path)


def test_an_ome_tiff_that_lacks_planes_has_no_empty_slices(tmp_path):
    pages = ome_set(tmp_path)
    np.testing.assert_array_equal(open_scan([tmp_path / "x0.ome.tif"]).read()[0].T, pages)
    (tmp_path / "x2.ome.tif").unlink()
    with pytest.raises(ScanError, match=r"x0.ome.tif: 1 of the 3 planes that its OME metadata names are missing"):
        open_scan([tmp_path / "x0.ome.tif"])


def test_an_ome_tiff_reads_nothing_beyond_its_folder(tmp_path):
    ome_set(tmp_path / "set")
    for file in sorted((tmp_path / "set").iterdir()):
        file.write_bytes(file.read_bytes().replace(b'"x2.ome.tif"', b'"../x2.tif" '))
    (tmp_path / "set" / "x2.ome.tif").rename(tmp_path / "x2.tif")
    with pytest.raises(ScanError, match=r"x0.ome.tif: planes of it lie in a file outside its folder"):
        open_scan([tmp_path / "set" / "x0.ome.tif"])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_colour_picture_is_no_grey_one(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    path = tmp_path / f"x.{suffix}"
    tifffile.imwrite(path, pixels, photometric="rgb") if suffix == "tif" else Image.fromarray(pixels).save(path)
    words = f"x.{suffix}: holds 3 channels, where 1 is expected; convert it to grey, or plan with RGB images"
    with pytest.raises(ScanError, match=words):
        open_scan([path], ["image"])
    (item,) = find_scans(tmp_path, [{"name": "image"}]).skipped
    assert item.failed and item.reason.endswith(words)
    colours = open_scan([path], ["r", "g", "b"])
    assert colours.channels == ("r", "g", "b")
    np.testing.assert_array_equal(colours.read()[..., 0], pixels.transpose(2, 1, 0))
    np.testing.assert_array_equal(open_scan([path]).read(), colours.read())


def test_a_slicer_segmentation_is_no_scan(tmp_path):
    segmentation = SimpleITK.GetImageFromArray(np.zeros((4, 5, 7), np.uint8))
    segmentation.SetMetaData("Segment0_ID", "Segment_1")
    SimpleITK.WriteImage(segmentation, str(tmp_path / "x.nrrd"))
    assert "segmentation" in reason(tmp_path)


def test_channel_files_on_different_grids(tmp_path):
    channels = [{"name": "T1", "suffix": "_T1"}, {"name": "T2", "suffix": "_T2"}]
    save(tmp_path / "a_T1.nii", image())
    save(tmp_path / "a_T2.nii", image(), AFFINES["lps"])
    (item,) = find_scans(tmp_path, channels).skipped
    assert item.failed and "not on the grid of a_T1.nii" in item.reason and "corners up to" in item.reason
    with pytest.raises(GeometryError):
        open_scan([tmp_path / "a_T1.nii", tmp_path / "a_T2.nii"], channels)


def test_nothing_and_no_folder(tmp_path):
    assert find_scans(tmp_path) == ([], [])
    with pytest.raises(ScanError, match="no such file"):
        find_scans(tmp_path / "gone")
    with pytest.raises(ScanError, match="holds no DICOM"):
        open_scan([tmp_path])
