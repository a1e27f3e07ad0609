"""One mask per structure: training sees the classes that the plan counted, whatever the layout."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser

from fewscan.errors import LabelError, PairingError, ours
from fewscan.scans import LabelReader
from fewscan.training.plan import plan

SHAPE = (16, 15, 14)
BLOCKS = {"kidney": np.s_[2:6, 2:6, 2:6], "liver": np.s_[8:13, 8:12, 8:13], "spleen": np.s_[1:3, 9:14, 2:5]}
SIZES = {"kidney": 64, "liver": 100, "spleen": 30}
HELD = {"s1": ("kidney", "liver"), "s2": ("kidney", "liver", "spleen"), "s3": ("liver",), "s4": ("spleen", "liver")}


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-0.9, 0.8, 1.1, 1.0])), path)


def write(folder: Path, place: str, value=1, held=HELD) -> Path:
    """An image and masks per case; `place` says where the mask of a structure lies."""
    for number, (case, names) in enumerate(held.items()):
        save(folder / case / "ct.nii.gz", np.random.default_rng(number).integers(0, 100, SHAPE).astype(np.int16))
        for name in names:
            mask = np.zeros(SHAPE, np.uint8)
            mask[BLOCKS[name]] = value
            save(folder / case / place.format(name), mask)
    return folder


def write_list(data: Path, place: str, held=HELD) -> Path:
    cases = [
        {"image": f"{case}/ct.nii.gz", "label": [f"{case}/{place.format(name)}" for name in names]}
        for case, names in held.items()
    ]
    (data / "list.json").write_text(json.dumps({"training": cases}))
    return data / "list.json"


def seen_in_training(bundle: Path) -> list[dict[str, int]]:
    """Voxels of each label in each case, as training reads it."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"bundle_root": str(bundle), "device": "$torch.device('cpu')"})
    dataset = parser.get_parsed_content("train::dataset")
    names = ["background", *(row["name"] for row in parser["labels"])]
    cases = [np.asarray(dataset.case(number)["label"]) for number in range(len(dataset))]
    return [dict(zip(names, np.bincount(case.ravel(), minlength=len(names)), strict=True)) for case in cases]


def expected(held=HELD) -> list[dict[str, int]]:
    every = {name for names in held.values() for name in names}
    counts = [{name: SIZES[name] if name in names else 0 for name in every} for names in held.values()]
    return [{"background": int(np.prod(SHAPE)) - sum(count.values()), **count} for count in counts]


def planned(data: Path, bundle: Path, **options) -> dict[str, str] | None:
    result = plan(data, bundle, **options)
    assert not result.failed
    table = (bundle / "docs" / "plan.md").read_text()
    for case, count in zip(HELD, expected(), strict=False):
        if f"| {case} |" in table:  # what the plan saw
            row = next(line for line in table.splitlines() if line.startswith(f"| {case} |"))
            assert all(f"{name} {number}" in row for name, number in count.items() if name in row and number)
    return result.settings["structures"]


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("layout", ["folder", "patterns", "list"])
def test_training_sees_the_classes_that_the_plan_counted(tmp_path, layout, value):
    """Cases with three, two and one structure, in different order."""
    place = {"folder": "segmentations/{}.nii.gz", "patterns": "roi_{}.nii.gz", "list": "rois/{}.nii.gz"}[layout]
    data, options = write(tmp_path / "data", place, value), {}
    if layout == "patterns":
        options = {"images": "*/ct.nii.gz", "labels": "*/roi_*.nii.gz"}
    if layout == "list":
        data = write_list(tmp_path / "data", place)
    structures = planned(data, tmp_path / "bundle", **options)
    prefix = "roi_" if layout == "patterns" else ""
    assert structures == {f"{prefix}{name}": name for name in SIZES}
    assert seen_in_training(tmp_path / "bundle") == expected()


@pytest.mark.parametrize("value", [1, 255])
def test_a_single_structure_everywhere(tmp_path, value):
    held = {"s1": ("liver",), "s2": ("liver",)}
    data = write(tmp_path / "data", "segmentations/{}.nii.gz", value, held)
    assert planned(data, tmp_path / "bundle") == {"liver": "liver"}
    assert seen_in_training(tmp_path / "bundle") == expected(held)


def test_the_cases_name_may_stand_in_the_masks_name(tmp_path):
    held = {case: HELD[case] for case in ("s1", "s2")}
    for case, names in held.items():
        write(tmp_path / "data", case + "_{}.nii.gz", 1, {case: names})
        (tmp_path / "data" / case / "ct.nii.gz").rename(tmp_path / "data" / case / f"{case}.nii.gz")
    structures = planned(tmp_path / "data", tmp_path / "bundle", images="*/*.nii.gz", labels="*/*_*.nii.gz")
    assert structures == {f"{case}_{name}": name for case, names in held.items() for name in names}
    assert seen_in_training(tmp_path / "bundle") == expected(held)


def test_merged_masks_are_one_class(tmp_path):
    data = write(tmp_path / "data", "segmentations/{}.nii.gz", 255)
    assert planned(data, tmp_path / "bundle", merge_masks="organ") is None
    organ = [sum(SIZES[name] for name in names) for names in HELD.values()]
    assert [case["organ"] for case in seen_in_training(tmp_path / "bundle")] == organ


def test_one_stem_for_two_structures_is_refused(tmp_path):
    data = write(tmp_path / "data", "{}/mask.nii.gz")
    with pytest.raises(PairingError, match=r"'kidney', but .*'liver'; rename the files by structure"):
        plan(data, tmp_path / "bundle", images="*/ct.nii.gz", labels="*/*/mask.nii.gz")


def test_a_mask_that_nothing_names_is_left_out_and_named(tmp_path):
    """In a list a single file could be a label map as well: its stem is none of the other cases' structures."""
    held = {**HELD, "s5": ("kidney",)}
    data = write(tmp_path / "data", "rois/{}.nii.gz", 1, held)
    (tmp_path / "data" / "s5" / "rois" / "kidney.nii.gz").rename(tmp_path / "data" / "s5" / "rois" / "tumour.nii.gz")
    listing = write_list(data, "rois/{}.nii.gz", held)
    listing.write_text(listing.read_text().replace("s5/rois/kidney", "s5/rois/tumour"))
    result = plan(listing, tmp_path / "bundle")
    assert len(result.failed) == 1
    assert "tumour.nii.gz: is none of the structures kidney, liver, spleen" in result.failed[0][1]
    assert seen_in_training(tmp_path / "bundle") == expected()


def read(paths, *arguments):
    reader = LabelReader(["kidney", "liver"], *arguments)
    return reader.get_data(reader.read([str(path) for path in paths]))[0]


def test_the_reader_refuses_what_the_mapping_does_not_name(tmp_path):
    data = write(tmp_path / "data", "{}.nii.gz")
    kidney, liver = (data / "s1" / f"{name}.nii.gz" for name in ("kidney", "liver"))
    both = read([liver, kidney], False, {"liver": "liver", "kidney": "kidney"})
    assert np.bincount(both.ravel()).tolist()[1:] == [64, 100]
    assert np.bincount(read([liver], False, {"liver": "liver"}).ravel()).tolist()[1:] == [0, 100]
    assert np.bincount(read([liver]).ravel()).tolist()[1:] == [100]  # a label map: its values are the table's
    with pytest.raises(LabelError, match=r"liver\.nii\.gz: `structures` \(kidney\) does not say"):
        read([kidney, liver], False, {"kidney": "kidney"})
    with pytest.raises(LabelError, match=r"2 label files for one image; set `structures`"):
        read([kidney, liver])
    with pytest.raises(LabelError, match="names spleen, but `labels` lists kidney, liver"):
        LabelReader(["kidney", "liver"], False, {"x": "spleen"})


def test_a_renamed_label_has_to_be_renamed_in_structures_too(tmp_path):
    plan(write(tmp_path / "data", "segmentations/{}.nii.gz"), tmp_path / "bundle")
    file = tmp_path / "bundle" / "configs" / "train.json"
    config = json.loads(file.read_text())
    config["labels"][0]["name"] = "left kidney"
    file.write_text(json.dumps(config))
    with pytest.raises(Exception, match=r".") as refused:
        seen_in_training(tmp_path / "bundle")
    assert "`structures` names kidney" in str(ours(refused.value))
    config["structures"]["kidney"] = "left kidney"
    file.write_text(json.dumps(config))
    assert [case["left kidney"] for case in seen_in_training(tmp_path / "bundle")] == [64, 64, 0, 0]
