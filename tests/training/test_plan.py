"""What a plan decides, why, and that it survives broken data and moving."""

import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from monai.bundle import ConfigParser
from PIL import Image

from conftest import ball, configure, write_volumes
from fewscan import bundle as bundles
from fewscan.bundle import read_cases
from fewscan.errors import BundleError, PairingError
from fewscan.scans import Case
from fewscan.training.plan import plan
from fewscan.training.run import train
from fewscan.training.split import group_cases, split

RAS = np.eye(3)
SAGITTAL = np.array([[0, 0, 1.0], [-1, 0, 0], [0, 1, 0]])  # the file's slowest axis runs from left to right


def write_case(folder: Path, name: str, image, label, directions=RAS, spacing=(1, 1, 1)) -> None:
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(spacing)
    for kind, array in (("images", image), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / kind / f"{name}.nii.gz")


def write_picture(folder: Path, name: str, image, label) -> None:
    for kind, array in (("images", image), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / kind / f"{name}.png")


def a_case(shape, value=100):
    label = ball(shape, [n // 2 for n in shape], max(1, min(shape) // 3))
    return (np.random.default_rng(0).normal(50, 5, shape) + value * label).astype(np.int16), label


def configs(bundle: Path) -> list[dict]:
    return [json.loads((bundle / "configs" / f"{name}.json").read_text()) for name in ("train", "inference")]


def test_nearly_isotropic_volumes_are_seen_whole_at_their_median_spacing(tmp_path):
    for number, (shape, spacing) in enumerate(
        [((21, 30, 25), (1, 0.9, 1.2)), ((24, 33, 20), (1.1, 1, 1.3)), ((40, 34, 28), (2, 0.8, 1))]
    ):
        write_case(tmp_path / "data", f"s{number}", *a_case(shape), RAS, spacing)
    settings = plan(tmp_path / "data", tmp_path / "bundle").settings
    assert settings["spatial_dims"] == 3
    assert settings["slice_axis"] is None
    assert settings["spacing"] == [1.1, 0.9, 1.2]
    assert settings["patch"] == [24, 36, 28]  # the median case is 24 x 33 x 25, two poolings: the next multiples of 4
    assert settings["augmentation"]["flip"] is False
    assert settings["intensity_window"] is None
    for config in configs(tmp_path / "bundle"):
        assert config["spatial_dims"] == 3
        assert config["spacing"] == [1.1, 0.9, 1.2]


@pytest.mark.parametrize(
    ("directions", "slice_axis", "spacing"), [(RAS, 2, [0.9, 0.8, 5]), (SAGITTAL, 0, [5, 0.9, 0.8])]
)
def test_thick_slices_are_seen_one_by_one_along_their_own_axis(tmp_path, directions, slice_axis, spacing):
    """Slices 5 mm apart along the file's last axis, axial or sagittal; spacing is left, posterior, superior."""
    for name in ("a", "b"):
        write_case(tmp_path / "data", name, *a_case((40, 30, 14)), directions, (0.9, 0.8, 5))
    settings = plan(tmp_path / "data", tmp_path / "bundle").settings
    assert settings["spatial_dims"] == 2
    assert settings["slice_axis"] == slice_axis
    assert settings["spacing"] == spacing
    assert settings["patch"] == [40, 32]


@pytest.mark.parametrize(("directions", "still"), [(RAS, 2), (SAGITTAL, 0)])
def test_thick_slices_seen_as_volumes_are_bent_in_their_plane(tmp_path, directions, still):
    """The bundle's own patches: each voxel of a volume that holds its slice's number keeps it."""
    label = ball((40, 44, 14), (20, 20, 7), 5)
    image = np.broadcast_to(np.arange(14, dtype=np.int16), label.shape).copy()
    write_case(tmp_path / "data", "a", image, label, directions, (0.9, 0.8, 5))
    result = plan(tmp_path / "data", tmp_path / "bundle", dims=3)
    assert result.settings["augmentation"]["still_axis"] == still
    assert "patients have sides: no flips" in result.reasons["augmentation"]
    assert result.reasons["spatial_dims"].startswith("as asked for")
    patch = first_patch(tmp_path / "bundle").movedim(still, 0).flatten(1)
    assert torch.equal(patch, patch[:, :1].expand_as(patch))
    assert len(patch.unique()) == 14


def test_a_microscope_stack_is_turned_about_the_axis_across_its_sections(tmp_path):
    image, label = a_case((14, 40, 44))
    for kind, array in (("images", image.astype(np.uint8)), ("labels", label)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "data" / kind / "a.tif", array, imagej=True, resolution=(250, 250),
                         metadata={"spacing": 0.05, "unit": "um", "axes": "ZYX"})  # fmt: skip
    result = plan(tmp_path / "data", tmp_path / "bundle", dims=3)
    assert result.settings["spacing"] == pytest.approx([4e-6, 4e-6, 5e-5])
    wanted = {"still_axis": 2, "rotate_degrees": 180.0, "flip": True}
    assert result.settings["augmentation"].items() >= wanted.items()
    assert result.settings["network_def"]["strides"] == [[2, 2, 1]] * 3
    assert "may be turned and flipped" in result.reasons["augmentation"]


def test_a_bundle_from_before_the_still_axis_still_trains_as_it_did(tmp_path):
    write_case(tmp_path / "data", "a", *a_case((40, 30, 14)), RAS, (0.9, 0.8, 5))
    plan(tmp_path / "data", tmp_path / "bundle", dims=3)
    file = tmp_path / "bundle" / "configs" / "train.json"
    config = json.loads(file.read_text())
    config["augmentation"]["still_axis"] = None
    file.write_text(json.dumps(config))
    wanted = first_patch(tmp_path / "bundle")
    del config["augmentation"]["still_axis"], config["train"]["augment"][0]["still_axis"]
    file.write_text(json.dumps(config))
    assert torch.equal(first_patch(tmp_path / "bundle"), wanted)


def test_photographs_are_2d_without_spacing_and_may_be_turned(tmp_path):
    for name in ("a", "b", "c"):
        image, label = a_case((37, 50))
        write_picture(tmp_path / "data", name, image.astype(np.uint8), 255 * label)
    settings = plan(tmp_path / "data", tmp_path / "bundle").settings
    assert (settings["spatial_dims"], settings["slice_axis"], settings["spacing"]) == (2, 2, None)
    assert settings["patch"] == [56, 40]
    assert settings["augmentation"]["flip"] is True
    assert settings["augmentation"]["rotate_degrees"] == 180
    assert [row["value"] for row in settings["labels"]] == [255]


def test_a_stack_of_pages_without_spacing_is_2d(tmp_path):
    image, label = a_case((20, 40, 44))
    for kind, array in (("images", image.astype(np.uint8)), ("labels", label)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "data" / kind / "a.tif", array, photometric="minisblack")
    settings = plan(tmp_path / "data", tmp_path / "bundle").settings
    assert (settings["spatial_dims"], settings["slice_axis"], settings["spacing"]) == (2, 2, None)


@pytest.mark.parametrize(
    ("stated", "unknown", "left_out", "spacing", "says"),
    [
        (3, 2, "unknown", [0.0005, 0.0005, 1], r"says no voxel size, 3 of the 5 cases do \(stated0\.tif: 0.0005 x 0"),
        (2, 2, "unknown", [0.0005, 0.0005, 1], "says no voxel size, 2 of the 4 cases do"),
        (1, 2, "stated", None, "says that a voxel is 0.0005 x 0.0005 x 1 mm, 2 of the 3 cases say none"),
    ],
)
def test_pictures_with_and_without_a_pixel_size_are_not_mixed(tmp_path, stated, unknown, left_out, spacing, says):
    """Of 0.5 um, and of files that have lost that: on the grid of the others they would be 2000 times as large."""
    size = {"imagej": True, "resolution": (2, 2), "metadata": {"unit": "um"}}
    image, label = a_case((40, 44))
    for name, count, options in (("stated", stated, size), ("unknown", unknown, {"photometric": "minisblack"})):
        for number in range(count):
            for kind, array in (("images", image.astype(np.uint8)), ("labels", label)):
                (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(tmp_path / "data" / kind / f"{name}{number}.tif", array, **options)
    result = plan(tmp_path / "data", tmp_path / "bundle")
    kept, count = ("stated", stated) if left_out == "unknown" else ("unknown", unknown)
    assert [case.name for case in result.training] == [f"{kept}{n}" for n in range(count)]
    assert [name for name, _ in result.failed] == [f"{left_out}{n}" for n in range(stated + unknown - count)]
    for name, why in result.failed:
        assert re.search(rf"{name}\.tif: {says}.*; write the sizes into all files, or into none", why)
    assert result.settings["spacing"] == spacing
    fingerprint = json.loads((tmp_path / "bundle" / "configs" / "fingerprint.json").read_text())
    assert [case["name"] for case in fingerprint["cases"]] == [f"{kept}{n}" for n in range(count)]


def test_single_slices_of_volumes_are_2d_across_the_slice(tmp_path):
    for name in ("a", "b"):
        write_case(tmp_path / "data", name, *a_case((40, 30, 1)), SAGITTAL, (0.9, 0.8, 2))
    settings = plan(tmp_path / "data", tmp_path / "bundle").settings
    assert (settings["spatial_dims"], settings["slice_axis"]) == (2, 0)
    with pytest.raises(PairingError, match="--dims 3"):
        plan(tmp_path / "data", tmp_path / "other", dims=3)


def test_a_ct_gets_one_window_around_what_is_labelled(tmp_path):
    for name, low in (("a", 30), ("b", 60)):
        label = ball((20, 20, 20), (10, 10, 10), 6)
        image = np.where(label > 0, low + np.arange(8000).reshape(20, 20, 20) % 41, -1000).astype(np.int16)
        write_case(tmp_path / "data", name, image, label)
    settings = plan(tmp_path / "data", tmp_path / "bundle").settings
    low, high = settings["intensity_window"]
    margin = 0.25 * 70 + 1  # labelled voxels hold 30 to 100
    assert low == pytest.approx(30 - margin, abs=1.5)
    assert high == pytest.approx(100 + margin, abs=1.5)
    assert all(config["intensity_window"] == [low, high] for config in configs(tmp_path / "bundle"))
    asked = plan(tmp_path / "data", tmp_path / "other", window=(0, 80)).settings
    assert asked["intensity_window"] == [0, 80]


def test_only_the_ct_among_the_channels_gets_a_window(tmp_path):
    """CT and PET: by one window for both the PET, 0 to 11, would become a constant."""
    random, label = np.random.default_rng(0), ball((20, 19, 18), (10, 10, 10), 5)
    for name in ("a", "b"):
        ct = np.where(label > 0, 40 + np.arange(label.size).reshape(label.shape) % 61, -1000).astype(np.float32)
        pet = (3 * random.random(label.shape) + 8 * label).astype(np.float32)
        write_case(tmp_path / "data", f"{name}_ct", ct, label)
        write_case(tmp_path / "data", f"{name}_pet", pet, label)
        for kind in ("ct", "pet"):
            (tmp_path / "data" / "labels" / f"{name}_{kind}.nii.gz").rename(
                tmp_path / "data" / "labels" / f"{name}.nii.gz"
            )
    options = {"images": "images/*_ct.nii.gz,images/*_pet.nii.gz", "labels": "labels/*.nii.gz"}
    settings = plan(tmp_path / "data", tmp_path / "bundle", **options).settings
    (low, high), pet_window = settings["intensity_window"]
    assert [row["name"] for row in settings["channels"]] == ["ct", "pet"]
    assert pet_window is None
    assert low == pytest.approx(40 - 0.25 * 60 - 1, abs=1.5)  # labelled voxels hold 40 to 100
    assert high == pytest.approx(100 + 0.25 * 60 + 1, abs=1.5)
    assert all(config["intensity_window"] == [[low, high], None] for config in configs(tmp_path / "bundle"))
    image = preprocessed(tmp_path / "bundle")["image"].as_subclass(torch.Tensor)
    assert float(image[1].mean()) == pytest.approx(0, abs=1e-4)
    assert float(image[1].std()) == pytest.approx(1, abs=1e-2)
    assert (float(image[0].min()), float(image[0].max())) == pytest.approx(
        (-1, 2 * (100 - low) / (high - low) - 1), abs=0.05
    )
    asked = plan(tmp_path / "data", tmp_path / "other", window=(0, 80), **options).settings
    assert asked["intensity_window"] == [0, 80]


def test_minutes_and_budget_go_into_the_bundle_with_their_reasons(tmp_path):
    data = write_volumes(tmp_path / "data", count=2)
    result = plan(data, tmp_path / "bundle", minutes=7.5, budget="titan6gb")
    train_config, inference = configs(tmp_path / "bundle")
    assert train_config["minutes"] == 7.5
    assert train_config["network_def"]["widths"] == inference["network_def"]["widths"] == [32, 64, 128]
    assert (train_config["batch"], train_config["patch"]) == (4, [24, 24, 16])
    document = (tmp_path / "bundle" / "docs" / "plan.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in document and reason in document for name, reason in result.reasons.items())
    assert "titan6gb" in result.reasons["batch"]
    for wrong in ({"minutes": 0}, {"budget": "much"}):
        with pytest.raises(BundleError, match=f"--{next(iter(wrong))}"):
            plan(data, tmp_path / "other", **wrong)
    assert not (tmp_path / "other").exists()


def test_touching_instances_get_border_weights(tmp_path):
    """Two squares that share an edge, against two that a gap of four pixels parts."""
    for name, gap in (("touching", 0), ("apart", 4)):
        image, label = np.zeros((40, 40), dtype=np.uint8), np.zeros((40, 40), dtype=np.uint8)
        label[10:20, 5:15], label[10:20, 15 + gap : 25 + gap] = 1, 2
        image[label > 0] = 200
        write_picture(tmp_path / name, "a", image, label)
    options = {"merge_masks": "nucleus"}
    settings = plan(tmp_path / "touching", tmp_path / "bundle", **options).settings
    assert settings["border_weights"] == {"height": 10.0, "sd": 5.0}
    assert plan(tmp_path / "apart", tmp_path / "other", **options).settings["border_weights"] is None


def test_slices_without_a_label_are_found_where_some_are_annotated(tmp_path):
    for name in ("a", "b", "c"):
        image, label = a_case((32, 30, 28))
        label[:, :, np.arange(28) % 4 != 0] = 0
        write_case(tmp_path / "data", name, image, label)
    result = plan(tmp_path / "data", tmp_path / "bundle")
    assert result.settings["sparse"] == 2
    assert "3 of 3 volumes seem annotated in some slices across superior only" in result.reasons["sparse"]
    assert configs(tmp_path / "bundle")[0]["sparse"] == 2
    write_case(tmp_path / "whole", "a", *a_case((32, 30, 28)))
    assert plan(tmp_path / "whole", tmp_path / "other").settings["sparse"] is None


def test_odd_cases_are_listed_and_shown(tmp_path):
    data = write_volumes(tmp_path / "data")
    label = nibabel.load(data / "labels" / "case2.nii.gz")
    nibabel.save(nibabel.Nifti1Image(0 * np.asarray(label.dataobj), label.affine), data / "labels" / "case2.nii.gz")
    result = plan(data, tmp_path / "bundle")
    assert [str(outlier) for outlier in result.outliers] == ["case2: its label is empty"]
    assert "- case2: its label is empty" in (tmp_path / "bundle" / "docs" / "plan.md").read_text(encoding="utf-8")
    page = (tmp_path / "bundle" / "docs" / "data.html").read_text(encoding="utf-8")
    assert page.index("<h2>case2</h2>") < page.index("<h2>case0</h2>")  # what is odd stands first


def preprocessed(bundle: Path) -> dict:
    """The first training case as the network sees it."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"bundle_root": str(bundle), "device": "$torch.device('cpu')"})
    return parser.get_parsed_content("train::dataset").case(0)


def first_patch(bundle: Path) -> torch.Tensor:
    """The image (*patch) of the first training patch, intensities as they are."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"bundle_root": str(bundle), "device": "$torch.device('cpu')"})
    items = parser.get_parsed_content("train::dataset")
    items.augment = items.augment[:1]
    return items[0]["image"][0]


def test_the_patch_stays_within_its_budget(tmp_path):
    write_case(tmp_path / "data", "a", *a_case((150, 80, 90)))
    patch = plan(tmp_path / "data", tmp_path / "bundle").settings["patch"]
    assert np.prod(patch) <= 64**3
    assert all(n % 8 == 0 for n in patch)


def test_a_tenth_is_held_out_from_ten_cases_on_by_the_seed(tmp_path):
    write_volumes(tmp_path / "data", count=10, shape=(12, 13, 14))

    def held_out(name, **options):
        result = plan(tmp_path / "data", tmp_path / name, **options)
        parts = [{case.name for case in part} for part in (result.training, result.validation)]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == {f"case{n}" for n in range(10)}
        return parts[1]

    assert len(held_out("a")) == 1
    assert held_out("b") == held_out("c") == held_out("a again", seed=0)
    assert len({frozenset(held_out(f"seed {seed}", validation=2, seed=seed)) for seed in range(3)}) > 1
    assert held_out("none", validation=0) == set()
    with pytest.raises(PairingError, match="10 of 10"):
        plan(tmp_path / "data", tmp_path / "all", validation=10)


def test_copies_of_an_image_are_held_out_together(tmp_path):
    data = write_volumes(tmp_path / "data", count=6, shape=(12, 13, 14))
    for number in (0, 2, 4):
        for folder in ("images", "labels"):
            shutil.copy(data / folder / f"case{number}.nii.gz", data / folder / f"case{number + 1}.nii.gz")
    result = plan(data, tmp_path / "bundle", validation=1)
    first, second = sorted(int(case.name.removeprefix("case")) for case in result.validation)
    assert first % 2 == 0 and second == first + 1
    assert "near-identical images stay together" in result.reasons["validation"]


def test_below_ten_cases_all_are_learned_from(tmp_path):
    result = plan(write_volumes(tmp_path / "data"), tmp_path / "bundle")
    assert (len(result.training), len(result.validation)) == (4, 0)
    assert "no score of its own" in result.reasons["validation"]


def named(*paths: str) -> list[Case]:
    return [Case(path.removesuffix(".nii"), (Path("/data") / path,)) for path in paths]


@pytest.mark.parametrize(
    ("paths", "groups"),
    [
        (["p1_s003", "p1_s004", "p2_s001", "p3"], ["p1", "p1", "p2_s001", "p3"]),
        (["p1_slice12", "p1_slice3", "p2_slice3"], ["p1", "p1", "p2_slice3"]),
        (["a-012", "a-013", "b-012", "b-013"], ["a", "a", "b", "b"]),
        (["p1/003", "p1/004", "p2/003", "p2/004"], ["p1", "p1", "p2", "p2"]),
        (["spleen_01", "spleen_02", "spleen_03"], ["spleen_01", "spleen_02", "spleen_03"]),
        (["case1", "case2"], ["case1", "case2"]),
        (["slice_014", "slice_027", "slice_040"], ["", "", ""]),
        (["brain_slice_1", "brain_slice_2"], ["brain", "brain"]),
        (["sub-01/ses-1/anat/sub-01_ses-1_T1w", "sub-01/ses-2/anat/sub-01_ses-2_T1w", "sub-2/anat/sub-2_T1w"],
         ["sub-01", "sub-01", "sub-2"]),
        (["sub-01_run-1", "sub-01_run-2", "control_1", "control_2"], ["sub-01", "sub-01", "control", "control"]),
    ],
)  # fmt: skip
def test_what_stays_together(paths, groups):
    assert group_cases(named(*(f"{path}.nii" for path in paths)))[0] == groups


def test_slices_of_one_patient_are_never_on_both_sides():
    cases = named(*(f"p{patient}_s{number:03d}.nii" for patient in range(12) for number in range(2 + patient % 3)))
    for seed in range(5):
        for wanted in (None, 1, 5, 20):
            training, held_out, why = split(cases, wanted, seed)
            patients = [{case.name.split("_")[0] for case in part} for part in (training, held_out)]
            assert not patients[0] & patients[1]
            assert len(training) + len(held_out) == len(cases)
            assert len(held_out) >= (wanted or 2)
            assert len(held_out) < (wanted or 2) + 4  # no more than the last patient's
            assert f"{len(patients[1])} of 12 groups (by the name without the slice's number)" in why


def test_a_patient_alone_is_never_split():
    cases = named(*(f"brain_slice_{number}.nii" for number in range(30)))
    training, held_out, why = split(cases, None, 0)
    assert (len(training), len(held_out)) == (30, 0)
    assert "1 groups" in why
    with pytest.raises(PairingError, match=r"3 of 30 labelled cases \(1 groups.*data list"):
        split(cases, 3, 0)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def _shift(file: Path) -> None:
    image = nibabel.load(file)
    affine = image.affine.copy()
    affine[0, 3] += 3
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), file)


def _poke(value):
    def poke(file: Path) -> None:
        image = nibabel.load(file)
        array = np.asarray(image.dataobj).astype(np.float32)
        array[3, 4, 5] = value
        nibabel.save(nibabel.Nifti1Image(array, image.affine), file)

    return poke


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("images", _truncate),
        ("labels", _truncate),
        ("labels", lambda file: file.write_text("no image")),
        ("images", lambda file: file.write_text("no image")),
        ("labels", _shift),
        ("labels", _poke(0.5)),
        ("labels", _poke(-3)),
        ("images", _poke(np.nan)),
    ],
    ids=["cut image", "cut label", "text label", "text image", "shifted label", "half label", "-3 label", "nan image"],
)
def test_a_bad_case_is_left_out_and_named_and_the_others_go_on(tmp_path, capsys, kind, spoil):
    data = write_volumes(tmp_path / "data")
    spoil(data / kind / "case2.nii.gz")
    result = plan(data, tmp_path / "bundle")
    assert [case.name for case in result.training] == ["case0", "case1", "case3"]
    listed = json.loads((tmp_path / "bundle" / "configs" / "datalist.json").read_text())["training"]
    assert [case["image"] for case in listed] == [f"images/case{n}.nii.gz" for n in (0, 1, 3)]
    said = capsys.readouterr().out
    assert "left out" in said
    assert f"{kind}/case2.nii.gz".replace("/", str(Path("/"))) in said


def test_an_empty_mask_is_a_case_like_any_other(tmp_path):
    data = write_volumes(tmp_path / "data")
    (data / "labels" / "case1.nii.gz").write_text("broken")
    empty = nibabel.load(data / "labels" / "case2.nii.gz")
    nibabel.save(nibabel.Nifti1Image(0 * np.asarray(empty.dataobj), empty.affine), data / "labels" / "case2.nii.gz")
    result = plan(data, tmp_path / "bundle")
    assert [case.name for case in result.training] == ["case0", "case2", "case3"]


def test_without_any_sound_case_nothing_is_written(tmp_path):
    data = write_volumes(tmp_path / "data", count=2)
    for file in (data / "images").iterdir():
        _truncate(file)
    with pytest.raises(PairingError):
        plan(data, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_output_that_is_not_empty_is_refused_and_untouched(tmp_path):
    data = write_volumes(tmp_path / "data", count=2)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match="not empty"):
        plan(data, tmp_path / "bundle")
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["thesis.txt"]
    with pytest.raises(BundleError, match="not empty"):
        plan(data, tmp_path / "bundle" / "thesis.txt")
    (tmp_path / "empty").mkdir()
    plan(data, tmp_path / "empty")
    assert (tmp_path / "empty" / "configs" / "train.json").exists()


@pytest.mark.parametrize("output", [".", "../here"])
def test_the_folder_that_one_is_in_is_refused_before_anything_is_read(tmp_path, monkeypatch, output):
    """The folder of the data holds no case, so that reading it would be another error."""
    for name in ("data", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(BundleError, match="is the folder that you are in; name a folder that does not exist yet"):
        plan(tmp_path / "data", Path(output))
    assert not list((tmp_path / "here").iterdir())


def test_nothing_remains_of_a_bundle_whose_writing_fails(tmp_path, monkeypatch):
    data = write_volumes(tmp_path / "data", count=2)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundles, "_describe_data", full)
    with pytest.raises(OSError, match="No space"):
        plan(data, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_bundle_survives_moving_together_with_its_data(tmp_path, monkeypatch):
    plan(write_volumes(tmp_path / "here" / "data"), tmp_path / "here" / "bundle", validation=1)
    configure(tmp_path / "here" / "bundle", patch=[16] * 3, epochs=1)
    text = (tmp_path / "here" / "bundle" / "configs" / "datalist.json").read_text() + json.dumps(
        configs(tmp_path / "here" / "bundle")
    )
    assert str(tmp_path) not in text
    shutil.move(tmp_path / "here", tmp_path / "there")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(Path("../there/bundle"), device="cpu")
    assert (tmp_path / "there" / "bundle" / "models" / "model.pt").exists()


def test_a_bundle_alone_finds_its_data_by_option(tmp_path, monkeypatch):
    plan(write_volumes(tmp_path / "here" / "data"), tmp_path / "here" / "bundle")
    configure(tmp_path / "here" / "bundle", patch=[16] * 3, epochs=1)
    shutil.move(tmp_path / "here" / "bundle", tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"images/case0\.nii\.gz does not exist .*--data FOLDER"):
        train(tmp_path / "bundle", device="cpu")
    monkeypatch.chdir(tmp_path / "here")
    train(tmp_path / "bundle", device="cpu", data=Path("data"))
    assert (tmp_path / "bundle" / "models" / "model.pt").exists()


@pytest.mark.parametrize(
    ("place", "relative"),
    [("data/models/bundle", "../.."), ("bundle", "../data"), ("far/away/bundle", "../../../data")],
)
def test_the_data_is_found_wherever_the_bundle_lies(tmp_path, monkeypatch, place, relative):
    """Also where the same words name another folder from where one stands (`..` always does)."""
    data, bundle = write_volumes(tmp_path / "data", count=2), tmp_path / place
    plan(data, bundle)
    listed = str(bundle / "configs" / "datalist.json")
    assert configs(bundle)[0]["dataset_dir"] == relative
    (tmp_path / "standing" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "standing" / "here")
    found = read_cases(str(bundle), relative, listed, "training")
    assert [Path(case["image"]).resolve() for case in found] == [
        (data / "images" / f"case{n}.nii.gz").resolve() for n in range(2)
    ]
    monkeypatch.chdir(tmp_path)  # as typed on a command line, relative to here
    assert read_cases(str(bundle), "data", listed, "training") == found


def test_two_folders_that_fit_are_no_guess(tmp_path, monkeypatch):
    write_volumes(tmp_path / "data", count=2)
    plan(tmp_path / "data", tmp_path / "bundle")
    shutil.copytree(tmp_path / "data", tmp_path / "other" / "data")
    (tmp_path / "other" / "here").mkdir()
    monkeypatch.chdir(tmp_path / "other" / "here")
    with pytest.raises(BundleError, match="absolute path"):
        read_cases(str(tmp_path / "bundle"), "../data", str(tmp_path / "bundle/configs/datalist.json"), "training")


def test_the_plan_says_what_it_saw(tmp_path):
    plan(write_volumes(tmp_path / "data"), tmp_path / "bundle")
    document = (tmp_path / "bundle" / "docs" / "plan.md").read_text()
    counts = [
        int(np.asarray(nibabel.load(tmp_path / "data" / "labels" / f"case{n}.nii.gz").dataobj).sum()) for n in range(4)
    ]
    for number, count in enumerate(counts):
        assert f"| case{number} | training | 20 x 18 x 16 | 1 x 1.1 x 1.2 | label_1 {count} |" in document
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "label_1"}
