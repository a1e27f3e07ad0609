"""Each layout that people have is paired by its rule; what would be a guess is refused."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from conftest import shared
from fewscan.errors import LabelError, PairingError
from fewscan.scans import Skipped, find_cases, find_scans, format_table, seed_labels
from scans.dicom_series import write_series
from scans.links import link
from scans.volumes import AFFINES, SHAPE, image


def tree(root, *names, value=1):
    """Tiny files of the kinds that the names say; labels hold 0 and `value`."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.zeros((7, 5, 4), np.uint8)
        values[2, 2, 2:] = value
        if name.endswith(".png"):
            Image.fromarray(values[..., 2].T).save(path)
        else:
            nibabel.save(nibabel.Nifti1Image(values, AFFINES["oblique"]), path)


def pairs(cases, root):
    return {
        case.name: (
            [path.relative_to(root).as_posix() for path in case.image],
            [path.relative_to(root).as_posix() for path in case.label],
        )
        for case in cases.cases
    }


def test_image_and_label_folders(tmp_path):
    tree(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "images/c.nii.gz", "labels/a.nii.gz", "labels/b_seg.nii.gz")
    cases = find_cases(tmp_path)
    assert pairs(cases, tmp_path) == {
        "a": (["images/a.nii.gz"], ["labels/a.nii.gz"]),
        "b": (["images/b.nii.gz"], ["labels/b_seg.nii.gz"]),
    }
    assert [case.name for case in cases.unlabelled] == ["c"]
    assert cases.channels == [{"name": "image"}] and cases.labels is None


def test_folders_below(tmp_path):
    tree(tmp_path, "train/image/0.png", "train/label/0.png", "test/image/0.png", "test/label/0.png")
    assert pairs(find_cases(tmp_path), tmp_path) == {
        "test/0": (["test/image/0.png"], ["test/label/0.png"]),
        "train/0": (["train/image/0.png"], ["train/label/0.png"]),
    }


def test_bids_derivatives(tmp_path):
    tree(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", "derivatives/labels/sub-1/anat/sub-1_T2w_seg-manual.nii.gz")
    assert list(pairs(find_cases(tmp_path), tmp_path).values()) == [
        (["sub-1/anat/sub-1_T2w.nii.gz"], ["derivatives/labels/sub-1/anat/sub-1_T2w_seg-manual.nii.gz"])
    ]


@pytest.mark.parametrize("suffix", ["_seg", "_mask", "_label", "_labels", "_seg-manual", "-seg", "_gmseg_manual"])
def test_names_with_a_suffix(tmp_path, suffix):
    tree(tmp_path, "x.nii.gz", f"x{suffix}.nii.gz", "y.nii.gz", f"y{suffix}.nii.gz")
    assert pairs(find_cases(tmp_path), tmp_path) == {
        name: ([f"{name}.nii.gz"], [f"{name}{suffix}.nii.gz"]) for name in "xy"
    }


@pytest.mark.parametrize(
    ("image_name", "label_name"),
    [
        ("image.png", "label.png"),
        ("raw.png", "instances_ids.png"),
        ("ct.nii.gz", "mask.nii.gz"),
        ("t1.nii", "t1_seg.nii"),
    ],
)
def test_a_folder_per_case(tmp_path, image_name, label_name):
    tree(tmp_path, *(f"case{n}/{name}" for n in (1, 2) for name in (image_name, label_name)))
    assert pairs(find_cases(tmp_path), tmp_path) == {
        f"case{n}": ([f"case{n}/{image_name}"], [f"case{n}/{label_name}"]) for n in (1, 2)
    }


def test_one_mask_per_structure(tmp_path):
    names = ("ct", "segmentations/liver", "segmentations/spleen")
    tree(tmp_path, *(f"s{n}/{name}.nii.gz" for n in (1, 2) for name in names))
    cases = find_cases(tmp_path)
    assert cases.cases[0].structures == ("liver", "spleen")
    assert seed_labels(cases) == [{"value": 1, "name": "liver"}, {"value": 2, "name": "spleen"}]


def test_masks_of_objects_need_a_name(tmp_path):
    tree(tmp_path, "a/images/a.png", "a/masks/x1.png", "a/masks/x2.png")
    tree(tmp_path, "b/images/b.png", "b/masks/y1.png", "b/masks/y2.png")
    with pytest.raises(PairingError, match="--merge-masks"):
        find_cases(tmp_path)
    cases = find_cases(tmp_path, merge_masks="nucleus")
    assert [len(case.label) for case in cases.cases] == [2, 2] and cases.merged == "nucleus"
    assert cases.cases[0].structures == () and seed_labels(cases) == [{"value": 1, "name": "nucleus"}]


def test_decathlon(tmp_path):
    tree(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTr/._a.nii.gz")
    listing = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    cases = find_cases(tmp_path)
    assert list(pairs(cases, tmp_path).values()) == [(["imagesTr/a.nii.gz"], ["labelsTr/a.nii.gz"])]
    assert cases.channels == [{"name": "MRI"}] and "Decathlon" in cases.rule
    assert seed_labels(cases) == [{"value": 1, "name": "Anterior"}, {"value": 2, "name": "Posterior"}]
    listing["labels"] = {"0": "background", "2": "Posterior"}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    with pytest.raises(LabelError, match=r"a.nii.gz: holds the value\(s\) 1"):
        seed_labels(find_cases(tmp_path))


def test_nnunet(tmp_path):
    tree(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz")
    listing = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "liver": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    cases = find_cases(tmp_path)
    assert pairs(cases, tmp_path) == {
        "a": (["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], ["labelsTr/a.nii.gz"])
    }
    assert cases.channels == [{"name": "T1", "suffix": "_0000"}, {"name": "T2", "suffix": "_0001"}]
    assert seed_labels(cases) == [{"value": 1, "name": "liver"}]
    assert [item.path.name for item in cases.skipped if item.failed] == ["b_0000.nii.gz"]


def test_nnunet_of_the_first_version(tmp_path):
    """Its list names images without their channel."""
    tree(tmp_path, "imagesTr/la_3_0000.nii.gz", "labelsTr/la_3.nii.gz")
    listing = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "atrium"},
        "training": [{"image": "./imagesTr/la_3.nii.gz", "label": "./labelsTr/la_3.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    cases = find_cases(tmp_path)
    assert pairs(cases, tmp_path) == {"la_3": (["imagesTr/la_3_0000.nii.gz"], ["labelsTr/la_3.nii.gz"])}
    assert cases.channels == [{"name": "MRI", "suffix": "_0000"}]
    assert seed_labels(cases) == [{"value": 1, "name": "atrium"}]
    with pytest.raises(PairingError, match=r"la_3.nii.gz, which does not exist; give the folder .*, it is nnU-Net's"):
        find_cases(tmp_path / "dataset.json")


def test_nnunets_undecided_voxels_are_no_label(tmp_path):
    tree(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    listing = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "liver": 1, "ignore": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    cases = find_cases(tmp_path)
    assert (cases.labels, cases.undecided) == ([{"value": 1, "name": "liver"}], 2)
    listing["labels"] = {"background": 0, "liver": 1}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    assert find_cases(tmp_path).undecided is None


def test_nnunets_regions_are_refused(tmp_path):
    tree(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    labels = {"background": 0, "whole tumour": [1, 2], "core": 2}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1"}, "labels": labels}))
    with pytest.raises(LabelError, match=r"dataset.json: the label 'whole tumour' is a region of several values"):
        find_cases(tmp_path)


@pytest.mark.parametrize("name", ["list.json", "dataset.json"])
def test_a_data_list_is_chosen_from(tmp_path, name):
    tree(tmp_path, *(f"{kind}/{n}.nii" for n in "abc" for kind in ("i", "l")))
    items = [{"image": f"i/{n}.nii", "label": f"l/{n}.nii"} for n in "abcd"]  # no d
    (tmp_path / name).write_text(json.dumps({"training": items[:2], "validation": items[2:]}))
    data = tmp_path / name if name == "list.json" else tmp_path
    cases = find_cases(data, exclude=["i/b*", "d.nii"])
    assert [case.image[0].name for case in cases.cases] == ["a.nii", "c.nii"]
    assert [item.path.name for item in cases.skipped if item.path.suffix == ".nii" and item.path.parent.name == "i"][
        :2] == ["b.nii", "d.nii"]  # fmt: skip
    assert [case.image[0].name for case in find_cases(data, include=["l/a.nii", "c.nii"], exclude=["c.*"]).cases] == [
        "a.nii"]  # fmt: skip
    with pytest.raises(PairingError, match=r"lists no pair .* that --include and --exclude leave"):
        find_cases(data, include=["z*"])


def test_patterns_contradict_a_data_list(tmp_path):
    tree(tmp_path, "i/a.nii", "l/a.nii")
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "i/a.nii", "label": "l/a.nii"}]}))
    with pytest.raises(PairingError, match=r"list.json: a data list names its pairs itself"):
        find_cases(tmp_path / "list.json", images="i/*.nii", labels="l/*.nii")


def test_linked_folders(tmp_path):
    tree(tmp_path, "elsewhere/pictures/a.nii", "elsewhere/drawings/a.nii")
    data = tmp_path / "data"
    data.mkdir()
    for name, target in (("images", "pictures"), ("labels", "drawings")):
        link(data / name, tmp_path / "elsewhere" / target)
    link(data / "loop", data)
    cases = find_cases(data)
    assert pairs(cases, data) == {"a": (["images/a.nii"], ["labels/a.nii"])}
    assert [(item.path.name, item.failed) for item in cases.skipped] == [("loop", False)]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    tree(tmp_path, "images/a.nii", "labels/a.nii", "locked/b.nii")
    listed = Path.iterdir

    def refuse(path):
        if path.name == "locked":
            raise PermissionError("no")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    reason = f"{tmp_path / 'locked'}: the folder cannot be read (PermissionError)"
    assert find_cases(tmp_path).skipped == (Skipped(tmp_path / "locked", reason, failed=True),)


def test_a_monai_data_list(tmp_path):
    tree(tmp_path, "i/a_t1.nii", "i/a_t2.nii", "l/a.nii", "i/b_t1.nii", "i/b_t2.nii", "l/b.nii")
    items = [{"image": [f"i/{n}_t1.nii", f"i/{n}_t2.nii"], "label": f"l/{n}.nii"} for n in "ab"]
    (tmp_path / "list.json").write_text(json.dumps({"training": items[:1], "validation": items[1:]}))
    cases = find_cases(tmp_path / "list.json")
    assert [case.split for case in cases.cases] == ["training", "validation"]
    assert cases.channels == [{"name": "t1", "suffix": "_t1"}, {"name": "t2", "suffix": "_t2"}]
    assert [path.name for path in cases.cases[1].image] == ["b_t1.nii", "b_t2.nii"]
    assert [case.name for case in cases.cases] == ["i/a", "i/b"]


def test_patterns(tmp_path):
    tree(tmp_path, "a.png", "a_1stHO.png", "a_2ndHO.png", "b.png", "b_1stHO.png")
    with pytest.raises(PairingError, match="no image with a label"):
        find_cases(tmp_path)
    cases = find_cases(tmp_path, images="?.png", labels="?_1stHO.png")
    assert pairs(cases, tmp_path) == {"a": (["a.png"], ["a_1stHO.png"]), "b": (["b.png"], ["b_1stHO.png"])}


def test_patterns_for_channels(tmp_path):
    tree(tmp_path, *(f"{n}/{n}_{part}.nii.gz" for n in ("p1", "p2") for part in ("flair", "t1", "seg")))
    with pytest.raises(PairingError, match="are they channels"):
        find_cases(tmp_path)
    cases = find_cases(tmp_path, images="*/*_t1.nii.gz,*/*_flair.nii.gz", labels="*/*_seg.nii.gz")
    assert cases.channels == [{"name": "t1", "suffix": "_t1"}, {"name": "flair", "suffix": "_flair"}]
    assert [path.name for path in cases.cases[0].image] == ["p1_t1.nii.gz", "p1_flair.nii.gz"]
    assert pairs(find_cases(tmp_path, channels=cases.channels), tmp_path).keys() == {"p1", "p2"}


@pytest.mark.parametrize("listed", [False, True])
def test_channels_that_are_named_are_found_in_new_scans(tmp_path, listed):
    """The names are the user's; by the ends of the files a new scan's are known."""
    tree(tmp_path, *(f"raw/{n}_{part}.nii" for n in ("p1", "p2") for part in ("T1", "FLAIR", "seg")))
    items = [{"image": [f"raw/{n}_T1.nii", f"raw/{n}_FLAIR.nii"], "label": f"raw/{n}_seg.nii"} for n in ("p1", "p2")]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    patterns = {} if listed else {"images": "raw/*_T1.nii,raw/*_FLAIR.nii", "labels": "raw/*_seg.nii"}
    data, names = tmp_path / "list.json" if listed else tmp_path, ("T1 weighted", "dark fluid")
    cases = find_cases(data, channels=names, **patterns)
    assert cases.channels == [{"name": names[0], "suffix": "_T1"}, {"name": names[1], "suffix": "_FLAIR"}]
    found = find_scans(tmp_path, cases.channels).scans
    assert [(scan.name, scan.channels) for scan in found] == [("raw/p1", names), ("raw/p2", names)]
    with pytest.raises(PairingError, match="each case has 2 images, but the channels are T1; name one for each"):
        find_cases(data, channels=["T1"], **patterns)


@pytest.mark.parametrize("layout", ["{part}/{name}.nii", "{name}/{part}/vol_brain.nii", "{part}_{name}.nii"])
def test_channels_that_are_named_may_lie_in_folders(tmp_path, layout):
    """No end of a file tells them apart then: the names are kept as they are."""
    files = {name: [layout.format(part=part, name=name) for part in ("T1", "FLAIR")] for name in ("p1", "p2")}
    tree(tmp_path, *(file for both in files.values() for file in both), "labels/p1.nii", "labels/p2.nii")
    items = [{"image": both, "label": f"labels/{name}.nii"} for name, both in files.items()]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    cases = find_cases(tmp_path / "list.json", channels=["T1", "FLAIR"])
    assert cases.channels == [{"name": "T1"}, {"name": "FLAIR"}]
    assert [[path.relative_to(tmp_path).as_posix() for path in case.image] for case in cases.cases] == [*files.values()]


def test_channels_that_are_swapped_in_one_case_are_refused(tmp_path):
    order = {"p1": ("T1", "FLAIR"), "p2": ("FLAIR", "T1")}
    files = {name: [f"raw/{name}_{part}.nii" for part in parts] for name, parts in order.items()}
    tree(tmp_path, *(file for both in files.values() for file in both), "labels/p1.nii", "labels/p2.nii")
    items = [{"image": both, "label": f"labels/{name}.nii"} for name, both in files.items()]
    (tmp_path / "list.json").write_text(json.dumps({"training": items}))
    with pytest.raises(PairingError, match="no common endings"):
        find_cases(tmp_path / "list.json", channels=["T1", "FLAIR"])


def test_dicom_folders_as_images(tmp_path):
    for name in ("p1", "p2"):
        write_series(tmp_path / "images" / name, image(), AFFINES["oblique"])
    tree(tmp_path, "labels/p1.nii.gz")
    cases = find_cases(tmp_path)
    assert pairs(cases, tmp_path) == {"p1": (["images/p1"], ["labels/p1.nii.gz"])}
    assert [case.name for case in cases.unlabelled] == ["p2"]


def test_dicom_beside_its_label(tmp_path):
    write_series(tmp_path / "p1", image(), AFFINES["oblique"])
    tree(tmp_path, "p1/label.nii.gz")
    assert pairs(find_cases(tmp_path), tmp_path) == {"p1": (["p1"], ["p1/label.nii.gz"])}


def test_a_scout_beside_the_series_can_be_excluded(tmp_path):
    for name in ("p1/ct", "p2/ct", "p2/scout"):
        write_series(tmp_path / name, image(), AFFINES["oblique"])
    tree(tmp_path, "p1/label.nii.gz", "p2/label.nii.gz")
    with pytest.raises(
        PairingError, match=r"ct and scout in .*p2: 2 images .* are they channels.* --images .* --exclude '\*/scout/\*'"
    ):
        find_cases(tmp_path)
    found = pairs(find_cases(tmp_path, exclude=["*/scout/*"]), tmp_path)
    assert list(found.values()) == [(["p1/ct"], ["p1/label.nii.gz"]), (["p2/ct"], ["p2/label.nii.gz"])]


def test_two_labels_for_an_image_are_refused(tmp_path):
    tree(tmp_path, "x.nii", "x_seg.nii", "x_mask.nii")
    with pytest.raises(PairingError, match=r"x_mask.nii and x_seg.nii .* two labels for x.nii"):
        find_cases(tmp_path)
    assert len(find_cases(tmp_path, exclude=["*_mask.nii"]).cases) == 1


def test_two_images_for_a_label_are_refused(tmp_path):
    tree(tmp_path, "images/x.nii", "images/x.png", "labels/x.nii")
    with pytest.raises(PairingError, match=r"x.nii and x.png"):
        find_cases(tmp_path)


def test_two_label_folders_are_refused(tmp_path):
    tree(tmp_path, "images/x.nii", "labels/x.nii", "masks/x.nii")
    with pytest.raises(PairingError, match="both hold labels for the same images"):
        find_cases(tmp_path)


def test_nothing_found_says_what_was_looked_for_and_seen(tmp_path):
    tree(tmp_path, "x.nii", "y.nii")
    with pytest.raises(PairingError, match=r"looked for dataset.json.* first of 2 files: x.nii, y.nii"):
        find_cases(tmp_path)
    with pytest.raises(PairingError, match="no such"):
        find_cases(tmp_path / "gone")


def test_a_few_labels_for_many_images(tmp_path):
    tree(tmp_path, *(f"images/{n:03}.png" for n in range(40)), "labels/003.png", "labels/017.png")
    cases = find_cases(tmp_path)
    assert (len(cases.cases), len(cases.unlabelled)) == (2, 38)
    assert "2 image(s) with a label, 38 without" in format_table(cases)


@pytest.mark.parametrize(
    ("value", "rows"), [(255, [{"value": 255, "name": "label"}]), (4, [{"value": 4, "name": "label_4"}])]
)
def test_labels_are_named_by_what_the_files_hold(tmp_path, value, rows):
    tree(tmp_path, "images/a.png", "labels/a.png", value=value)
    assert seed_labels(find_cases(tmp_path)) == rows


def test_a_colour_table_names_the_labels(tmp_path):
    tree(tmp_path, "images/a.png", "labels/a.png")
    (tmp_path / "labels.ctbl").write_text("0 Background 0 0 0 0\n1 Left_kidney 10 20 30 255\n")
    assert seed_labels(find_cases(tmp_path)) == [{"value": 1, "name": "Left kidney", "colour": [10, 20, 30]}]


def test_object_numbers_are_no_classes(tmp_path):
    tree(tmp_path, "x.nii")
    numbers = np.arange(140, dtype=np.uint8).reshape(SHAPE)
    nibabel.save(nibabel.Nifti1Image(numbers, AFFINES["oblique"]), tmp_path / "x_seg.nii")
    with pytest.raises(LabelError, match=r"140 different values.*--merge-masks"):
        seed_labels(find_cases(tmp_path))


def test_colours_are_found_in_folders_and_in_lists(tmp_path):
    tree(tmp_path, "images/a.png", "labels/a.png")
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    listing = {"training": [{"image": "images/a.png", "label": "labels/a.png"}]}
    (tmp_path / "list.json").write_text(json.dumps(listing))
    rows = [{"name": name, "index": n} for n, name in enumerate(("red", "green", "blue"))]
    assert find_cases(tmp_path / "list.json").channels == rows
    assert find_cases(tmp_path, images="images/*.png", labels="labels/*.png").channels == rows


def test_real_layouts():
    assert len(find_cases(shared("data/msd_hippocampus")).cases) == 100
    assert seed_labels(find_cases(shared("data/isbi2012_em"))) == [{"value": 255, "name": "label"}]
    assert {case.name for case in find_cases(shared("data/spinalcord")).cases} >= {"sct/t1", "ivadomed/sub-unf01"}
    assert len(find_cases(shared("data/stardist_samples")).cases) == 2
    assert find_cases(shared("data/usiigaci_phase"), merge_masks="cell").cases[0].name == "train_set1"
    cases = find_cases(shared("data/dsb2018"), merge_masks="nucleus")
    assert len(cases.cases) == 24 and [row["name"] for row in cases.channels] == ["red", "green", "blue"]
    chase = find_cases(shared("data/chasedb1"), images="*.jpg", labels="*_1stHO.png")
    assert len(chase.cases) == 16 and seed_labels(chase) == [{"value": 1, "name": "label_1"}]
