"""Labels become classes on the image's grid, exactly or not at all; MONAI gets the same numbers."""

import nibabel
import numpy as np
import pytest
import SimpleITK
import tifffile
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import LoadImaged
from PIL import Image

from conftest import shared
from fewscan.errors import GeometryError, LabelError
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.scans import LabelReader, ScanReader, find_scans, match_grid, open_scan, read_label, scan_from_meta
from fewscan.scans.labels import read_instances
from fewscan.transforms import MatchLabelGridd
from scans.dicom_series import write_series
from scans.volumes import AFFINES, SHAPE, image

ROWS = [{"value": 3, "name": "liver"}, {"value": 7, "name": "spleen"}]
TABLE = LabelTable.from_json(ROWS)
OBLIQUE = AFFINES["oblique"]


def label():
    values = np.zeros(SHAPE, np.uint8)
    values[1:3, 1, 1] = 3
    values[-1, -1, -1] = 7
    return values


CLASSES = (label() == 3) * 1 + (label() == 7) * 2


def save(path, values, affine=OBLIQUE):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_nifti_labels_of_any_number_type(tmp_path, dtype):
    classes, grid = read_label([save(tmp_path / "x_seg.nii.gz", label().astype(dtype))], TABLE)
    assert classes.dtype == np.uint16
    np.testing.assert_array_equal(classes, CLASSES)
    np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".seg.nrrd"])
def test_itk_labels(tmp_path, suffix):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(label().transpose(2, 1, 0)), str(tmp_path / f"x{suffix}"))
    np.testing.assert_array_equal(read_label([tmp_path / f"x{suffix}"], TABLE)[0], CLASSES)


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_picture_labels_give_indices(tmp_path, mode):
    flat = label()[:, :, -1].T
    picture = Image.fromarray(flat)
    if mode == "P":
        picture = Image.frombytes("P", picture.size, flat.tobytes())
        picture.putpalette(np.random.default_rng(0).integers(0, 255, 768).astype(np.uint8).tobytes())
    picture.convert(mode).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_label([tmp_path / "x.png"], TABLE)[0], CLASSES[..., -1:])


@pytest.mark.parametrize("stranger", [5, 0.5])
def test_values_outside_the_table(tmp_path, stranger):
    values = label().astype(np.float32)
    values[0, 0, 0] = stranger
    with pytest.raises(LabelError, match=rf"x.nii: holds the label value\(s\) {stranger}"):
        read_label([save(tmp_path / "x.nii", values)], TABLE)


def test_masks_per_structure(tmp_path):
    files = [save(tmp_path / "spleen.nii", (label() == 7) * 1.0), save(tmp_path / "liver.nii", (label() == 3) * 255.0)]
    np.testing.assert_array_equal(read_label(files, TABLE, ["spleen", "liver"])[0], CLASSES)
    np.testing.assert_array_equal(read_label(files, LabelTable.from_json(["any"]), merged=True)[0], CLASSES > 0)
    save(files[0], (label() > 0) * 1.0)
    with pytest.raises(LabelError, match=r"overlap in 2 voxels"):
        read_label(files, TABLE, ["spleen", "liver"])
    with pytest.raises(LabelError, match="no 'kidney'"):
        read_label(files, TABLE, ["kidney", "liver"])


@pytest.mark.parametrize("target", AFFINES)
def test_a_label_in_another_orientation_is_reordered_exactly(target):
    grid = Grid(SHAPE, AFFINES[target])
    axes, flips = (2, 0, 1), (True, False, True)
    turned = grid.reordered(axes, flips)
    values = label().transpose(axes)[::-1, :, ::-1]
    np.testing.assert_array_equal(match_grid(values, turned, grid, "x"), label())


def test_agrees_with_nibabels_reorientation():
    nifti = nibabel.Nifti1Image(label(), AFFINES["permuted"])
    canonical = nibabel.as_closest_canonical(nifti)
    back = match_grid(
        np.asarray(canonical.dataobj), Grid(canonical.shape, canonical.affine), Grid(SHAPE, AFFINES["permuted"]), "x"
    )
    np.testing.assert_array_equal(back, label())


def test_a_label_elsewhere_is_refused_with_the_distance():
    moved = OBLIQUE.copy()
    moved[0, 3] += 0.5
    with pytest.raises(GeometryError, match=r"x: is not on the grid of its image: .*0\.5 mm apart"):
        match_grid(label(), Grid(SHAPE, moved), Grid(SHAPE, OBLIQUE), "x")
    with pytest.raises(GeometryError, match="shape 7 x 5 x 4 against 7 x 5 x 3"):
        match_grid(label()[..., :3], Grid((7, 5, 3), OBLIQUE), Grid(SHAPE, OBLIQUE), "x")


def picture(*size, shape=SHAPE):
    x, y, z = size
    return Grid(shape, np.diag([-x, -y, z, 1.0]))


def test_a_picture_without_a_voxel_size_fits_one_that_states_it():
    plain, sized = picture(1, 1, 1), picture(2e-4, 2e-4, 1e-3)
    for one, other in ((plain, sized), (sized, plain)):
        np.testing.assert_array_equal(match_grid(label(), one, other, "x"), label())
    with pytest.raises(GeometryError, match=r"against 0\.0003 x 0\.0003"):  # both state one
        match_grid(label(), picture(3e-4, 3e-4, 1e-3), sized, "x")
    with pytest.raises(GeometryError, match="shape"):
        match_grid(label()[..., :3], picture(1, 1, 1, shape=(7, 5, 3)), sized, "x")
    for affine in (np.eye(4), AFFINES["lps"], OBLIQUE):  # no pictures
        with pytest.raises(GeometryError, match="spacing"):
            match_grid(label(), plain, Grid(SHAPE, affine @ np.diag([2, 2, 2, 1])), "x")


def test_a_png_label_of_a_tiff_in_micrometres(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", image()[..., 0].T, imagej=True, resolution=(5, 5), metadata={"unit": "um"})
    Image.fromarray(label()[..., -1].T.copy()).save(tmp_path / "x_seg.png")
    scan = open_scan([tmp_path / "x.tif"])
    classes, grid = read_label([tmp_path / "x_seg.png"], TABLE)
    np.testing.assert_allclose(scan.grid.spacing_mm[:2], (2e-4, 2e-4))
    np.testing.assert_array_equal(match_grid(classes, grid, scan.grid, "x"), CLASSES[..., -1:])


def test_monai_loads_the_same_arrays_and_affines(tmp_path):
    item = {"image": str(save(tmp_path / "x.nii.gz", image())), "label": str(save(tmp_path / "x_seg.nii.gz", label()))}
    load_image = LoadImaged("image", "fewscan.scans.ScanReader", ensure_channel_first=True, channels=[{"name": "CT"}])
    load_label = LoadImaged("label", "fewscan.scans.LabelReader", ensure_channel_first=True, labels=ROWS)
    loaded = load_label(load_image(item))
    np.testing.assert_array_equal(loaded["image"], image()[None])
    np.testing.assert_array_equal(loaded["label"], CLASSES[None])
    for key in ("image", "label"):
        np.testing.assert_allclose(loaded[key].affine, OBLIQUE, atol=1e-5)
    scan = scan_from_meta(loaded["image"].meta)
    assert (scan.name, scan.files, scan.channels) == ("x", (tmp_path / "x.nii.gz",), ("CT",))
    np.testing.assert_array_equal(scan.read(), image()[None])


def test_the_scan_survives_collation(tmp_path):
    write_series(tmp_path / "case", image(), OBLIQUE, shuffled=True)
    loader = DataLoader(
        Dataset([{"image": str(tmp_path / "case")}], LoadImaged("image", ScanReader, ensure_channel_first=True)), 1
    )
    (batch,) = loader
    assert batch["image"].shape == (1, 1, *SHAPE) and batch["image"].dtype == torch.float32
    scan = scan_from_meta(batch["image"].meta)
    assert scan.name == "case" and scan.files == find_scans(tmp_path).scans[0].files
    np.testing.assert_array_equal(scan.read(), batch["image"][0])


def test_monai_does_not_fall_back_on_its_own_readers(tmp_path):
    values = image().astype(np.float32)
    values[0, 0, 0] = np.nan
    with pytest.raises(Exception, match="not finite"):
        LoadImaged("image", "fewscan.scans.ScanReader")({"image": save(tmp_path / "x.nii", values)})
    with pytest.raises(Exception, match="does not list"):
        LoadImaged("label", LabelReader(["one"]))({"label": save(tmp_path / "y.nii", label())})


def test_multi_channel_files_through_monai(tmp_path):
    files = [str(save(tmp_path / f"a_{n}.nii", image() * n)) for n in (1, 2)]
    rows = [{"name": "T1", "suffix": "_1"}, {"name": "T2", "suffix": "_2"}]
    loaded = LoadImaged("image", ScanReader(rows), ensure_channel_first=True)({"image": files})["image"]
    np.testing.assert_array_equal(loaded, [image(), image() * 2])
    np.testing.assert_array_equal(scan_from_meta(loaded.meta).read(), loaded)


def test_real_float_labels():
    folder = shared("data/msd_hippocampus/labels")
    table = LabelTable.from_json(["anterior", "posterior"])
    for path in sorted(folder.glob("*.nii.gz"))[:20]:
        np.testing.assert_array_equal(read_label([path], table)[0], np.asarray(nibabel.load(path).dataobj))


# --- what nobody annotated --------------------------------------------------------------------------------------------

UNKNOWN = np.zeros(SHAPE, bool)
UNKNOWN[0, :, :] = UNKNOWN[2, 1, 1] = True
PARTLY = np.where(UNKNOWN, -1, CLASSES)


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 255), (np.int16, -1), (np.float32, 9), (np.uint16, 65535)])
def test_the_unlabelled_value_is_unknown_whatever_it_is(tmp_path, dtype, value):
    values = np.where(UNKNOWN, value, label().astype(np.int32)).astype(dtype)
    classes, _ = read_label([save(tmp_path / "x.nii", values)], TABLE, unlabelled=value)
    assert classes.dtype == np.int32
    np.testing.assert_array_equal(classes, PARTLY)
    with pytest.raises(LabelError, match="which the label table does not list"):
        read_label([tmp_path / "x.nii"], TABLE, unlabelled=100)


def test_masks_say_what_the_others_leave_open(tmp_path):
    """A voxel that one mask leaves open and another holds is the other's; open in all that say nothing is unknown."""
    open_in_both = np.where(UNKNOWN, 7.0, 0.0)
    files = [
        save(tmp_path / "spleen.nii", np.where(CLASSES == 2, 1.0, open_in_both)),
        save(tmp_path / "liver.nii", np.where(CLASSES == 1, 255.0, open_in_both)),
    ]
    expected = np.where(UNKNOWN & (CLASSES == 0), -1, CLASSES)
    assert (expected != PARTLY).any()
    np.testing.assert_array_equal(read_label(files, TABLE, ["spleen", "liver"], unlabelled=7)[0], expected)
    any_table = LabelTable.from_json(["any"])
    np.testing.assert_array_equal(read_label(files, any_table, merged=True, unlabelled=7)[0], expected.clip(max=1))
    numbers, _ = read_instances(files, 7)
    np.testing.assert_array_equal(numbers, np.where(expected == 2, 1, np.where(expected == 1, 2, expected)))


def test_numbers_of_objects_in_one_file(tmp_path):
    values = np.zeros(SHAPE, np.float32)
    values[0], values[2], values[3, 0, 0], values[3, 1, 1] = 4000, 0.5, 7, 65535
    numbers, grid = read_instances([save(tmp_path / "x.nii", values)])
    np.testing.assert_array_equal(numbers, np.unique(values, return_inverse=True)[1].reshape(SHAPE))
    np.testing.assert_allclose(grid.affine, OBLIQUE, atol=1e-5)
    reader = LabelReader(["any"], merged=True, instances=True)
    np.testing.assert_array_equal(reader.get_data(reader.read(tmp_path / "x.nii"))[0], numbers)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_without_any_label_across_an_anatomical_axis(tmp_path, name, axis):
    """`sparse` counts left, posterior, superior, as `slice_axis` does, however the file's axes run."""
    grid = Grid(SHAPE, AFFINES[name])
    own = grid.axes_to_lps()[0][axis]
    values, part = np.zeros(SHAPE, np.uint8), [slice(None)] * 3
    part[own] = 1
    values[tuple(part)] = 3 * (np.random.default_rng(0).random(values[tuple(part)].shape) > 0.5)
    classes, _ = read_label([save(tmp_path / "x.nii", values, AFFINES[name])], TABLE, sparse=axis)
    expected = np.full(SHAPE, -1)
    expected[tuple(part)] = values[tuple(part)] > 0
    np.testing.assert_array_equal(classes, expected)
    reader = LabelReader(ROWS, sparse=axis)
    np.testing.assert_array_equal(reader.get_data(reader.read(tmp_path / "x.nii"))[0], expected)


def test_a_case_without_any_label_stays_background(tmp_path):
    empty = save(tmp_path / "x.nii", np.zeros(SHAPE, np.uint8))
    np.testing.assert_array_equal(read_label([empty], TABLE, sparse=0)[0], 0)


def test_settings_of_unlabelled_voxels_that_contradict_the_table_are_refused():
    with pytest.raises(LabelError, match="`unlabelled` is 7, which `labels` lists too"):
        LabelReader(ROWS, unlabelled=7)
    with pytest.raises(LabelError, match="`sparse` is null, 0"):
        LabelReader(ROWS, sparse="auto")
    LabelReader(ROWS, structures={"x": "liver"}, unlabelled=7)


def test_monai_gets_unknown_voxels_in_a_type_that_holds_them(tmp_path):
    values = np.where(UNKNOWN, 255, label()).astype(np.uint8)
    data = {"image": save(tmp_path / "i.nii", image()), "label": save(tmp_path / "x.nii", values)}
    data = LoadImaged("image", ScanReader, ensure_channel_first=True)(data)
    data = LoadImaged("label", LabelReader(ROWS, unlabelled=255), ensure_channel_first=True)(data)
    matched = MatchLabelGridd("label")(data)["label"]
    assert matched.dtype == torch.int16
    np.testing.assert_array_equal(matched[0].numpy(), PARTLY)
