"""One planted fault in a clean set is found, by its name; the clean set has none."""

import io
import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image

from conftest import ball, shared
from fewscan.training.data_page import data_page
from fewscan.training.material import read_material
from fewscan.training.outliers import far_from_others, find_outliers
from fewscan.training.plan import plan

SHAPE = (40, 36, 32)


def write(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


@pytest.fixture
def clean(tmp_path):
    """Six volumes of smooth tissue with one bright ball each, at a place of its own."""
    random = np.random.default_rng(0)
    for number in range(6):
        radius = random.uniform(5, 7)
        label = ball(SHAPE, [random.uniform(8, n - 8) for n in SHAPE], radius)
        coarse = random.normal(0, 30, [n // 4 for n in SHAPE])
        tissue = np.kron(coarse, np.ones((4, 4, 4)))
        image = 200 + tissue + random.normal(0, 10, SHAPE) + 100 * label
        write(tmp_path / "images" / f"c{number}.nii.gz", image.astype(np.int16))
        write(tmp_path / "labels" / f"c{number}.nii.gz", label)
    return tmp_path


def found_in(data, **options):
    material = read_material(data, **options)
    return [(outlier.case, outlier.kind) for outlier in find_outliers(material.fingerprint(), material.previews)]


def test_a_clean_set_has_no_outliers(clean):
    assert found_in(clean) == []


def swap_labels(data):
    one, other = (data / "labels" / f"c{n}.nii.gz" for n in (2, 3))
    first, second = voxels(one), voxels(other)
    write(one, second)
    write(other, first)


def wrong_label(data):
    write(data / "labels" / "c3.nii.gz", ball(SHAPE, (9, 9, 9), 6))


def identity(data):
    for kind in ("images", "labels"):
        write(data / kind / "c3.nii.gz", voxels(data / kind / "c3.nii.gz"), np.eye(4))


def double_spacing(data):
    for kind in ("images", "labels"):
        write(data / kind / "c3.nii.gz", voxels(data / kind / "c3.nii.gz"), np.diag([-2.0, -2.0, 2.0, 1.0]))


def copy_case(data):
    for kind in ("images", "labels"):
        shutil.copy(data / kind / "c2.nii.gz", data / kind / "c3.nii.gz")


def copy_nearly(data):
    image = voxels(data / "images" / "c2.nii.gz")
    image = 1.1 * image + np.random.default_rng(5).normal(3, 5, image.shape)
    write(data / "images" / "c3.nii.gz", image.astype(np.int16))
    shutil.copy(data / "labels" / "c2.nii.gz", data / "labels" / "c3.nii.gz")


def copy_label(data):
    shutil.copy(data / "labels" / "c2.nii.gz", data / "labels" / "c3.nii.gz")


def nearly_empty(data):
    label = voxels(data / "labels" / "c3.nii.gz").copy()
    places = np.argwhere(label)
    label[:] = 0
    label[tuple(places[len(places) // 2])] = 1
    write(data / "labels" / "c3.nii.gz", label)


def empty(data):
    write(data / "labels" / "c3.nii.gz", np.zeros(SHAPE, dtype=np.uint8))


def another_scale(data):
    write(data / "images" / "c3.nii.gz", (30 * voxels(data / "images" / "c3.nii.gz").astype(np.float32)))


def large_field(data):
    for kind in ("images", "labels"):
        array = voxels(data / kind / "c3.nii.gz")
        wide = np.random.default_rng(0).normal(200, 30, (40, 36, 96)) if kind == "images" else np.zeros((40, 36, 96))
        wide[..., :32] = array
        write(data / kind / "c3.nii.gz", wide.astype(array.dtype))


def on_air(data):
    image, label = voxels(data / "images" / "c3.nii.gz").copy(), voxels(data / "labels" / "c3.nii.gz")
    image[label > 0] = image.min()
    write(data / "images" / "c3.nii.gz", image)


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (swap_labels, {("c2", "fit"), ("c3", "fit")}),
        (wrong_label, {("c3", "fit")}),
        (identity, {("c3", "identity affine")}),
        (double_spacing, {("c3", "spacing")}),
        (copy_case, {("c3", "duplicate")}),
        (copy_nearly, {("c3", "duplicate")}),
        (copy_label, {("c3", "duplicate"), ("c3", "fit")}),
        (nearly_empty, {("c3", "near empty")}),
        (empty, {("c3", "near empty")}),
        (another_scale, {("c3", "intensities")}),
        (large_field, {("c3", "size")}),
        (on_air, {("c3", "fit")}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_planted_fault_is_found_and_nothing_else(clean, plant, expected):
    plant(clean)
    assert set(found_in(clean)) == expected


def test_words_hold_the_numbers(clean):
    double_spacing(clean)
    material = read_material(clean)
    words = [str(outlier) for outlier in find_outliers(material.fingerprint(), material.previews)]
    assert [f"c3: spacing 2 mm along {axis}, the median is 1 mm" for axis in ("left", "posterior", "superior")] == words


def test_far_means_far_beyond_the_usual_spread():
    assert far_from_others([1, 1, 1, 5], 2) == [3]
    assert far_from_others([1, 1, 1, 5], 4) == []
    assert far_from_others([0, 2, 4, 6, 8, 10, 12], 1) == []  # nothing is usual: the spread is as wide
    assert far_from_others([1, 9], 1) == []  # of two, none is the odd one


def test_a_conflict_of_forms_stands_on_the_page(clean, capsys):
    file = clean / "images" / "c4.nii.gz"
    image = nibabel.load(file)
    image.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), 1)
    shifted = np.diag([-1.0, -1.0, 1.0, 1.0])
    shifted[0, 3] = 7
    image.set_qform(shifted, 1)
    nibabel.save(image, file)
    plan(clean, clean / "bundle")
    page = (clean / "bundle" / "docs" / "data.html").read_text(encoding="utf-8")
    assert "c4: left out" in page
    assert "s-form (code 1) and q-form (code 1) disagree" in page
    assert "left out c4" in capsys.readouterr().out


def test_the_page_escapes_names_and_needs_nothing_from_outside(clean):
    name = "a&b<i>" if shutil.os.name != "nt" else "a&b"
    for kind in ("images", "labels"):
        (clean / kind / "c3.nii.gz").rename(clean / kind / f"{name}.nii.gz")
    material = read_material(clean, pictures=True)
    page = data_page(material.fingerprint(), [], material.pictures, {}, [("<b>", "is <broken>")])
    assert "a&amp;b" in page
    assert "<i>" not in page
    assert "&lt;b&gt;: left out: is &lt;broken&gt;" in page
    assert "http" not in page
    assert page.count("data:image/png;base64,") == 6
    for png in material.pictures.values():
        assert png.startswith(b"\x89PNG")
        assert len(png) < 150_000


def test_pictures_keep_the_colours_of_the_labels(clean):
    """Few colours are a picture's, and most of its pixels are grey."""
    material = read_material(clean, pictures=True)
    for png in material.pictures.values():
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int).reshape(-1, 3)
        for label in material.table:
            assert np.abs(pixels - label.colour).max(axis=1).min() <= 12


def test_the_page_of_pictures_speaks_of_no_patient_and_no_mm(tmp_path):
    for kind, value in (("images", 90), ("labels", 255)):
        (tmp_path / kind).mkdir()
        for name in ("a", "b"):
            array = np.zeros((50, 40), dtype=np.uint8)
            array[5:45, 4:37] = value
            Image.fromarray(array).save(tmp_path / kind / f"{name}.png")
    material = read_material(tmp_path, pictures=True)
    page = data_page(material.fingerprint(), [], material.pictures, {}, [])
    assert not any(word in page for word in ("patient", "left x posterior", "spacing", " mm"))
    assert "<td>40 x 50 x 1</td>" in page and "width x height" in page
    assert page.count("<td>1320</td>") == 2  # 40 x 33 pixels of each label, as a whole number


def test_pictures_show_the_label_where_it_is(tmp_path):
    """A bright square on black: the picture's reddest place is the label's."""
    image, label = np.zeros((64, 64), dtype=np.uint8), np.zeros((64, 64), dtype=np.uint8)
    image[8:24, 40:56], label[8:24, 40:56] = 255, 1
    for kind, array in (("images", image), ("labels", label)):
        (tmp_path / kind).mkdir()
        Image.fromarray(array).save(tmp_path / kind / "a.png")
    material = read_material(tmp_path, pictures=True)
    (tmp_path / "a.png").write_bytes(material.pictures["a"])
    with Image.open(tmp_path / "a.png") as opened:
        drawn = np.asarray(opened.convert("RGB")).astype(int)
    side = drawn.shape[0]
    panel = drawn[:, :side]
    red = panel[..., 0] - panel[..., 2] > 40
    rows, columns = np.nonzero(red)
    assert rows.mean() / side == pytest.approx(16 / 64, abs=0.04)
    assert columns.mean() / side == pytest.approx(48 / 64, abs=0.04)


@pytest.mark.parametrize(
    ("name", "options", "kinds"),
    [
        ("isbi2012_em/train", {}, set()),
        ("chasedb1", {"images": "*.jpg", "labels": "*_1stHO.png"}, set()),
        ("msd_hippocampus", {"include": ["*_0[0-4]*"]}, {"intensities"}),  # some are uint8, some in the thousands
    ],
)
def test_real_sets_raise_no_false_alarm(name, options, kinds):
    assert {kind for _, kind in found_in(shared(f"data/{name}"), **options)} <= kinds


def test_swapped_sections_of_a_real_stack_are_found(tmp_path):
    source = shared("data/isbi2012_em/train")
    files = sorted(path.name for path in (source / "image").iterdir())[:6]
    for number, name in enumerate(files):
        other = files[{1: 4, 4: 1}.get(number, number)]
        for kind, origin in (("image", name), ("label", other)):
            (tmp_path / kind).mkdir(exist_ok=True)
            shutil.copy(source / kind / origin, tmp_path / kind / name)
    swapped = {name.removesuffix(".png") for name in (files[1], files[4])}
    assert {case for case, kind in found_in(tmp_path) if kind == "fit"} == swapped
