"""How cases are parted where the usual way would test too little or too kindly: it is said, never silent."""

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import shared
from fewscan.bundle import read_json
from fewscan.errors import PairingError
from fewscan.labels import LabelTable
from fewscan.runs.scheme import Look, labelled_cases, look_at, part_cases
from fewscan.scans import Case, find_cases, open_scan
from fewscan.scans.data_lists import list_entry
from fewscan.training.alike import Thumbnail, near_identical, stack_correlation
from fewscan.training.plan import plan
from fewscan.training.split import group_cases
from runs.tiny import noise, save_nifti

TABLE = LabelTable.from_json(["kidney"])


def parted(images, names, groups=None, tmp_path=Path()):
    cases = [Case(name, (Path("data") / f"{name}.png",)) for name in names]
    looks = {name: Look(Thumbnail.of(image), None, "") for name, image in zip(names, images, strict=True)}
    return part_cases(cases, Path("data"), tmp_path, looks, {}, TABLE, {}, None, groups, 0)


def different(count):
    return [np.random.default_rng(number).normal(size=(1, 40, 30, 1)) for number in range(count)]


def of_test(scheme):
    return [[case.name for case in part.test] for part in scheme.parts]


def test_slices_of_one_patient_are_tested_in_runs_and_it_is_said():
    names = [f"p1_slice{number:02d}" for number in range(10)]
    scheme = parted(different(10), names)
    assert of_test(scheme) == [names[first : first + 2] for first in range(0, 10, 2)]
    assert scheme.warnings[0].startswith("all cases belong to one group (by the name without the slice's number)")


def test_the_sections_of_isbi_do_not_collapse_into_one_group():
    files = sorted((shared("data") / "isbi2012_em" / "train" / "image").iterdir())[:15]
    scheme = parted([open_scan([file]).read() for file in files], [file.stem for file in files])
    assert scheme.name == "5 folds" and of_test(scheme)[1] == ["03", "04", "05"]
    assert "neighbouring slices of one stack" in scheme.warnings[0] and len(set(scheme.groups.values())) == 15


@pytest.mark.parametrize("name", ["{}", "s{:02d}", "p1_slice{}"])
def test_no_slice_beside_a_tested_one_is_trained_on(name):
    """Also where names count without leading zeros, and so are not in the order of the stack as letters: 1, 10, 2."""
    files = sorted((shared("data") / "isbi2012_em" / "train" / "image").iterdir())[:15]
    images = {name.format(number): open_scan([file]).read() for number, file in enumerate(files)}
    place = {own: number for number, own in enumerate(images)}
    names = sorted(images)  # as a bundle lists them
    scheme = parted([images[own] for own in names], names)
    assert sorted(own for test in of_test(scheme) for own in test) == names
    for part in scheme.parts:
        trained = {place[case.name] for case in part.training}
        assert not trained & {place[case.name] + step for case in part.test for step in (-1, 0, 1)}


def test_slices_grouped_by_patient_are_no_stack():
    """Slices of a patient look alike, but whole patients are held out: no warning, and they are drawn."""
    images, names = [], []
    for patient in range(5):
        random = np.random.default_rng(patient)
        body = random.normal(size=(1, 40, 30, 1)).cumsum(1).cumsum(2)
        body /= body.std()
        for number in range(8):
            images.append(body + 0.9 * random.normal(size=body.shape).cumsum(1) / 5)
            names.append(f"p{patient}_slice{number:02d}")
    assert stack_correlation([Thumbnail.of(image) for image in images]) is not None  # the trap
    scheme = parted(images, names)
    assert scheme.warnings == () and scheme.name == "leave-one-out" and "either side" not in scheme.how
    for part in scheme.parts:
        assert len({case.name[:2] for case in part.test}) == 1 and len(part.training) == 32


def test_a_copy_with_other_axes_in_its_file_is_found(tmp_path):
    image = np.random.default_rng(0).normal(500, 99, (20, 18, 16)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[5:10, 5:10, 5:10] = 1
    lps, other = np.diag([-1.0, -1, 1, 1]), np.array([[0, 1.0, 0, -17], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    cases = []
    for name, affine in (("a", lps), ("b", other)):
        for folder, array in (("images", image), ("labels", label)):
            stored = array if name == "a" else array[:, ::-1].transpose(1, 0, 2)[::-1, ::-1].copy()
            save_nifti(tmp_path / folder / f"{name}.nii.gz", stored, affine)
        cases.append(Case(name, (tmp_path / "images" / f"{name}.nii.gz",), (tmp_path / "labels" / f"{name}.nii.gz",)))
    looks, left_out = look_at(cases, {"channels": [{"name": "image"}]}, TABLE, {})
    one, two = (open_scan(case.image) for case in cases)
    np.testing.assert_array_equal(one.grid.in_lps(one.read()), two.grid.in_lps(two.read()))
    assert not left_out and near_identical([looks["a"].thumbnail, looks["b"].thumbnail])


def test_a_case_is_known_by_its_voxels(tmp_path):
    """Not by the bytes of its files; by the place of the voxels too, and by the objects where borders count."""
    image = np.random.default_rng(0).normal(500, 99, (9, 8, 7)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[2:7, 2:6, 2:5] = 1
    parted = label.copy()
    parted[2:4] *= 2
    mended = label.copy()
    mended[2, 2, 2] = 0

    def known_by(label=label, image=image, ends="a.nii.gz", spacing=1.0, border=None):
        files = tuple(tmp_path / folder / ends for folder in ("images", "labels"))
        for file, array in zip(files, (image, label), strict=True):
            save_nifti(file, array, np.diag([-1.0, -1, spacing, 1]))
        config = {"merge_masks": "kidney", "border_weights": border}
        looks, _ = look_at([Case("a", files[:1], files[1:])], {"channels": [{"name": "image"}]}, TABLE, config)
        return looks["a"].sha256

    same = known_by()
    assert same == known_by(label.astype(np.int16), ends="a.nii") == known_by(parted)
    changed = [known_by(mended), known_by(image=image + label), known_by(spacing=2.0)]
    assert len({same, *changed}) == 4
    border = {"height": 10.0, "sd": 5.0}
    assert known_by(border=border) != known_by(parted, border=border)


@pytest.mark.parametrize("ends", [["_0000"], ["_0000", "_0001"], ["_T1", "_FLAIR"]])
def test_a_bundle_names_and_groups_its_cases_as_plan_did(tmp_path, ends):
    """The channel at the end of a file's name hides neither the number of the slice nor the patient."""
    data, configs = tmp_path / "data", tmp_path / "bundle" / "configs"
    names = [f"p{patient}_s{number:03d}" for patient in (1, 2) for number in (3, 4)]
    for name in names:
        for end in ends:
            save_nifti(data / "images" / f"{name}{end}.nii", noise())
        save_nifti(data / "labels" / f"{name}.nii", noise())
    planned = find_cases(data, channels=[{"name": end.strip("_"), "suffix": end} for end in ends])
    configs.mkdir(parents=True)
    listing = {"training": [list_entry(case, data) for case in planned.cases]}
    (configs / "datalist.json").write_text(json.dumps(listing))
    cases, _ = labelled_cases(configs.parent, {"dataset_dir": str(data), "channels": planned.channels})
    assert [case.name for case in cases] == [case.name for case in planned.cases] == names
    by_patient = ["p1", "p1", "p2", "p2"], "by the name without the slice's number"
    assert group_cases(cases) == group_cases(planned.cases) == by_patient


@pytest.mark.parametrize(
    ("image", "label", "patterns"),
    [
        ("{}/image.nii", "{}/mask.nii", {}),
        ("{}_T1.nii", "{}_truth.nii", {"images": "*_T1.nii", "labels": "*_truth.nii"}),
    ],
)
def test_a_name_that_the_files_do_not_say_is_kept(tmp_path, image, label, patterns):
    """The patients too: a folder for each slice, or a pattern's word behind its number."""
    names = [f"p{patient}_s{number:03d}" for patient in (1, 2) for number in (3, 4)]
    disc = np.zeros((24, 24, 1), np.uint8)
    disc[6:18, 8:16] = 1
    for number, name in enumerate(names):
        save_nifti(tmp_path / "data" / image.format(name), noise(number, disc.shape))
        save_nifti(tmp_path / "data" / label.format(name), disc)
    plan(tmp_path / "data", tmp_path / "bundle", validation=0, **patterns)
    cases, _ = labelled_cases(tmp_path / "bundle", read_json(tmp_path / "bundle" / "configs" / "train.json"))
    assert [case.name for case in cases] == names
    assert group_cases(cases)[0] == ["p1", "p1", "p2", "p2"]


def test_copies_stay_together_unless_nothing_else_is_left():
    images = different(6)
    images[4] = images[1] * 2 + 1
    scheme = parted(images, list("abcdef"))
    assert ["b", "e"] in of_test(scheme) and scheme.groups["b"] == scheme.groups["e"] and not scheme.warnings
    assert "near-identical images stay together: b and e" in scheme.how and scheme.name == "leave-one-out"
    scheme = parted([images[0] * factor for factor in (1, 2, 3)], list("abc"))
    assert of_test(scheme) and "all images are near-identical" in scheme.warnings[0]


def test_the_users_groups_decide(tmp_path):
    file = tmp_path / "groups.csv"
    file.write_text("case,group\na,x\nb,y\nc,x\nd,y\n")
    scheme = parted(different(4), list("abcd"), file)
    assert sorted(of_test(scheme)) == [["a", "c"], ["b", "d"]] and "as --groups says" in scheme.how
    file.write_text("case,group\na,x\nb,x\nc,x\nd,x\n")
    with pytest.raises(PairingError, match="puts all cases into one group, so nothing is left to test on"):
        parted(different(4), list("abcd"), file)
    with pytest.raises(PairingError, match="one scan alone is parted into blocks, not by groups; leave --groups out"):
        parted(different(1), ["a"], file)
