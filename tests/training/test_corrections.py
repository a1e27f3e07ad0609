"""Corrected masks: found, matched, added to the bundle, trained on from its weights, and held against the old model."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Events

from conftest import ball, configure
from fewscan.bundle import read_cases, read_json
from fewscan.cli import main
from fewscan.errors import BundleError, FewscanError, PairingError
from fewscan.files import sha256
from fewscan.runs import correct as correct_module
from fewscan.runs.correct import correct
from fewscan.runs.predictor import Predictor
from fewscan.runs.scheme import labelled_cases
from fewscan.runs.segment import segment
from fewscan.scans import find_scans, open_scan, read_label
from fewscan.scans.labels import read_instances
from fewscan.training import TrainingRun
from fewscan.training.corrections import ScanIndex, find_masks, refuse_held_out, source_of, with_case, write_label
from masks.cases import GRIDS, TABLE, dicom_scan, mask, nifti_scan
from scans.test_scan_mask_files import itk, labels, parts, write_seg, write_slicer

SHAPE = (20, 18, 16)
IMAGE = [{"name": "image"}]


@pytest.fixture
def home(trained, tmp_path):
    """A copy of the tiny trained bundle beside its data (case0 to case3, one held out), and two more scans in `new`."""
    shutil.copytree(trained.data.parent, tmp_path / "home")
    home = tmp_path / "home"
    affine = nibabel.load(home / "data" / "images" / "case0.nii.gz").affine
    random = np.random.default_rng(9)
    (home / "new").mkdir()
    for name in ("x", "y"):
        image = (random.normal(50, 20, SHAPE) + 150 * truth(name)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(image, affine), home / "new" / f"{name}.nii.gz")
    configure(home / "bundle", epochs=4, learning_rate=0.01, patch=[16, 16, 16])
    return home


def truth(name: str) -> np.ndarray:
    return ball(SHAPE, {"x": (7, 9, 8), "y": (12, 8, 9)}[name], 4)


def save_corrected(home: Path, name: str, file: str | None = None) -> Path:
    """The truth of a scan in `corrected`, cropped and reversed, as 3D Slicer saves it."""
    path = home / "corrected" / (file or f"{name}.seg.nrrd")
    path.parent.mkdir(parents=True, exist_ok=True)
    scan = open_scan([home / "new" / f"{name}.nii.gz"])
    image = itk(truth(name), scan.grid)[1:18, 2:17, 2:15]
    image = image[::-1, :, ::-1]
    return write_slicer(path, parts(image)[None], image, [("LABEL 1", 0, 1, "")])


def weights(bundle: Path, name: str = "model.pt") -> dict[str, torch.Tensor]:
    return torch.load(bundle / "models" / name, weights_only=True)


def equal(one, other) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def held_out(bundle: Path) -> str:
    return Path(read_json(bundle / "configs" / "datalist.json")["validation"][0]["image"]).name.removesuffix(".nii.gz")


# --- which files, which scans -----------------------------------------------------------------------------------------


def test_masks_that_nobody_corrected_are_left_out(home):
    """`segment` signs for its masks: only the changed one is a correction; what was added before is none either."""
    segment(home / "new", home / "bundle", home / "masks", device="cpu")
    changed = home / "masks" / "y_seg.nii.gz"
    image = nibabel.load(changed)
    nibabel.save(nibabel.Nifti1Image(truth("y"), image.affine), changed)
    found, left = find_masks(home / "masks")
    assert [mask.path for mask in found] == [changed]
    reasons = {item.path.name: item.reason for item in left}
    assert reasons["x_seg.nii.gz"] == "as fewscan wrote it, not corrected"
    assert reasons["x_seg_overlay.png"] == reasons["x.json"] == reasons["fewscan.json"] == "no mask"
    assert find_masks(home / "masks", {sha256(changed)})[0] == []


@pytest.mark.parametrize(
    ("file", "scan"),
    [
        ("case1.nii.gz", "case1"),
        ("case1_seg.nii.gz", "case1"),
        ("case1-label.nrrd", "case1"),
        ("case1/Segmentation.seg.nrrd", "case1"),
        ("case1/labels.tif", "case1"),
        ("b/case2.seg.nrrd", "b/case2"),
        ("a/case2_seg_1.seg.nrrd", "a/case2"),
        ("a/case2/Segmentation.seg.nrrd", "a/case2"),
    ],
)
def test_a_mask_is_called_like_its_scan_or_lies_in_a_folder_called_so(tmp_path, file, scan):
    for name in ("case1", "case10", "a/case2", "b/case2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.int16), np.diag([1, 1, 2, 1])), tmp_path / f"{name}.nii")
    index = ScanIndex(find_scans(tmp_path).scans, tmp_path)
    assert index.of_mask(tmp_path / "corrected" / file, tmp_path / "corrected").name == scan


@pytest.mark.parametrize(
    ("file", "words"),
    [("case2.nii.gz", "a/case2 and b/case2 .* may be its scan"), ("Segmentation.seg.nrrd", "none of the 2 scans")],
)
def test_a_mask_without_a_scan_or_with_several_is_refused(tmp_path, file, words):
    for name in ("a/case2", "b/case2"):
        (tmp_path / name).parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.int16), np.diag([1, 1, 2, 1])), tmp_path / f"{name}.nii")
    index = ScanIndex(find_scans(tmp_path).scans, tmp_path)
    with pytest.raises(PairingError, match=words):
        index.of_mask(tmp_path / "corrected" / file, tmp_path / "corrected")


@pytest.mark.parametrize("file", ["B/T1_seg.nii.gz", "B/T1/Segmentation.seg.nrrd", "B/A/T1.nii.gz/x.tif"])
def test_a_mask_of_another_patients_folder_is_refused(tmp_path, file):
    """`T1` in the folder of B is no mask of A's, though that is the only T1 there is."""
    (tmp_path / "A").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.int16), np.diag([1, 1, 2, 1])), tmp_path / "A" / "T1.nii")
    index = ScanIndex(find_scans(tmp_path).scans, tmp_path)
    with pytest.raises(PairingError, match="is called so, folders included"):
        index.of_mask(tmp_path / "corrected" / file, tmp_path / "corrected")
    for below in ("T1_seg.nii.gz", "A/T1_seg.nii.gz", "monday/A/T1.seg.nrrd"):
        assert index.of_mask(tmp_path / "corrected" / below, tmp_path / "corrected").name == "A/T1"


def test_a_dicom_seg_finds_its_series_whatever_it_is_called(tmp_path):
    for name in ("one", "two"):
        dicom_scan(tmp_path / "scans" / name, GRIDS["oblique"])
    scans = {scan.name: scan for scan in find_scans(tmp_path / "scans").scans}
    path = write_seg(tmp_path / "one.dcm", scans["two"], "BINARY")
    assert ScanIndex(list(scans.values()), tmp_path).of_mask(path, tmp_path) == scans["two"]
    with pytest.raises(PairingError, match=r"one\.dcm: the series that it refers to is not in"):
        ScanIndex([scans["one"]], tmp_path).of_mask(path, tmp_path)


# --- the list of cases ------------------------------------------------------------------------------------------------


def test_a_case_is_added_or_its_label_replaced(home):
    bundle, root = home / "bundle", home / "data"
    datalist = read_json(bundle / "configs" / "datalist.json")
    new = open_scan([home / "new" / "x.nii.gz"])
    label = bundle / "corrections" / "round-1" / "x_seg.nii.gz"
    added, known = with_case(datalist, root, new, source_of(new), [label], bundle)
    assert not known and added["training"][:-1] == datalist["training"]
    assert added["training"][-1] == {"image": "../new/x.nii.gz", "label": "corrections/round-1/x_seg.nii.gz"}
    old = open_scan([root / datalist["training"][1]["image"]])
    replaced, known = with_case(added, root, old, source_of(old), [label], bundle)
    assert known and len(replaced["training"]) == len(added["training"])
    assert replaced["training"][1] == {**datalist["training"][1], "label": "corrections/round-1/x_seg.nii.gz"}
    assert replaced["validation"] == datalist["validation"]


def test_cases_that_lie_elsewhere_are_found_from_any_folder(home, monkeypatch):
    """Paths with enough `..` lead to one file from the bundle and from the current folder."""
    bundle, up = home / "bundle", "../" * 20
    image = home / "new" / "x.nii.gz"
    listing = {"training": [{"image": f"{up}{image.relative_to(image.anchor)}", "label": "corrections/x_seg.nii.gz"}]}
    (home / "list.json").write_text(json.dumps(listing))
    (bundle / "corrections").mkdir()
    shutil.copy(image, bundle / "corrections" / "x_seg.nii.gz")
    monkeypatch.chdir(home / "data" / "images")
    (case,) = read_cases(str(bundle), "../data", str(home / "list.json"), "training")
    assert Path(case["image"]).samefile(image)
    assert Path(case["label"]).samefile(bundle / "corrections" / "x_seg.nii.gz")
    (bundle / "configs" / "datalist.json").write_text(json.dumps(listing))
    ((validated,), _) = labelled_cases(bundle, {"dataset_dir": "../data"})
    assert validated.label[0].samefile(case["label"]) and validated.image[0].samefile(image)


def test_a_held_out_scan_and_its_patient_are_refused(tmp_path):
    for name in ("sub-01/a", "sub-01/b", "sub-02/a", "sub-03/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), np.int16), np.diag([1, 1, 2, 1])), tmp_path / f"{name}.nii")
    scans = {scan.name: scan for scan in find_scans(tmp_path).scans}
    training = [{"image": "sub-02/a.nii", "label": "l.nii"}]
    datalist = {"training": training, "validation": [{"image": "sub-01/a.nii", "label": "l.nii"}]}
    for name, words in (("sub-01/a", "is held out"), ("sub-01/b", "belongs together with sub-01/a")):
        with pytest.raises(PairingError, match=words):
            refuse_held_out(datalist, tmp_path, scans[name], IMAGE)
    for name in ("sub-02/a", "sub-03/a"):
        refuse_held_out(datalist, tmp_path, scans[name], IMAGE)


@pytest.mark.parametrize("ends", [["_0000"], ["_T1", "_FLAIR"]])
def test_a_slice_of_a_held_out_patient_is_known_before_its_channel(tmp_path, ends):
    """`p1_s003_0000` is slice 3 of p1, not slice 0 of something else; also where old and new model are compared."""
    channels = [{"name": end.strip("_"), "suffix": end} for end in ends]
    for name in ("p1_s003", "p1_s004", "p2_s001", "p2_s002"):
        for end in ends:
            image = nibabel.Nifti1Image(np.ones((2, 3, 4), np.int16), np.diag([1, 1, 2, 1]))
            nibabel.save(image, tmp_path / f"{name}{end}.nii")
    held, trained = ({"image": [f"{name}{end}.nii" for end in ends], "label": "l"} for name in ("p1_s003", "p2_s001"))
    datalist = {"training": [trained], "validation": [held]}
    scans = {scan.name: scan for scan in find_scans(tmp_path, channels).scans}
    with pytest.raises(PairingError, match=r"p1_s004: belongs together with p1_s003 \(by the name without the slice"):
        refuse_held_out(datalist, tmp_path, scans["p1_s004"], channels)
    refuse_held_out(datalist, tmp_path, scans["p2_s002"], channels)
    setup = correct_module.Setup(tmp_path, TABLE, {}, {"channels": channels}, datalist, tmp_path, [])
    entry = {"image": [str(tmp_path / file) for file in held["image"]], "label": "l"}
    assert correct_module._case(entry, held, setup).name == "p1_s003"


def test_a_copy_of_a_held_out_image_is_refused_whatever_it_is_called(tmp_path):
    """The same voxels under another name, in another order of axes and a little brighter; another image is taken."""
    image = np.random.default_rng(0).normal(500, 99, (20, 18, 16)).astype(np.int16)
    other = np.random.default_rng(1).normal(500, 99, image.shape).astype(np.int16)
    affine = np.diag([1.0, 1, 2, 1])
    turned = affine @ np.array([[-1, 0, 0, 19], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for name, array, own in (("a", image, affine), ("t", other, affine), ("copy", image[::-1] + 7, turned)):
        nibabel.save(nibabel.Nifti1Image(array, own), tmp_path / f"{name}.nii")
    nibabel.save(nibabel.Nifti1Image(other[:, ::-1].copy(), affine), tmp_path / "new.nii")
    scans = {scan.name: scan for scan in find_scans(tmp_path).scans}
    datalist = {"training": [{"image": "t.nii", "label": "l"}], "validation": [{"image": "a.nii", "label": "l"}]}
    with pytest.raises(PairingError, match="nearly the same image as a, which is held out"):
        refuse_held_out(datalist, tmp_path, scans["copy"], IMAGE)
    refuse_held_out(datalist, tmp_path, scans["new"], IMAGE)


def test_a_held_out_image_of_four_axes_is_read_with_the_bundles_channels(tmp_path):
    """To be held against a new scan: its copy is refused, another image is taken."""
    channels = [{"name": "FLAIR", "index": 0}, {"name": "T1", "index": 1}]
    a, t, new = (np.random.default_rng(n).normal(500, 99, (20, 18, 16, 2)).astype(np.int16) for n in range(3))
    for name, array in (("a", a), ("t", t), ("new", new), ("copy", a + 7)):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1, 2, 1])), tmp_path / f"{name}.nii")
    scans = {scan.name: scan for scan in find_scans(tmp_path, channels).scans}
    datalist = {"training": [{"image": "t.nii", "label": "l"}], "validation": [{"image": "a.nii", "label": "l"}]}
    with pytest.raises(PairingError, match="nearly the same image as a, which is held out"):
        refuse_held_out(datalist, tmp_path, scans["copy"], channels)
    refuse_held_out(datalist, tmp_path, scans["new"], channels)


def test_labels_are_written_as_the_bundle_reads_them(tmp_path):
    """In one file, or one for each structure, by the stems that train.json names."""
    scan = nifti_scan(tmp_path, GRIDS["oblique"])
    classes = TABLE.to_classes(mask(), "mask").astype(np.int32)
    (path,) = write_label(classes, scan, TABLE, tmp_path / "round")
    assert path == tmp_path / "round" / "scan_seg.nii.gz"
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(path).dataobj), mask())
    stems = {"kidney_l": "left kidney", "thing": "gadget", "milz": "spleen"}
    paths = write_label(classes, scan, TABLE, tmp_path / "round", stems)
    assert [path.name for path in paths] == ["kidney_l.nii.gz", "thing.nii.gz", "milz.nii.gz"]
    for path, label in zip(paths, TABLE, strict=True):
        np.testing.assert_array_equal(np.asanyarray(nibabel.load(path).dataobj) > 0, mask() == label.value)
    with pytest.raises(FewscanError, match="names no file for spleen"):
        write_label(classes, scan, TABLE, tmp_path / "other", {"kidney_l": "left kidney", "thing": "gadget"})


@pytest.mark.parametrize("unlabelled", [None, 2, 255])
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("structures", [None, {"kidney_l": "left kidney", "thing": "gadget", "milz": "spleen"}])
def test_undecided_voxels_and_objects_are_read_back_as_they_were(tmp_path, unlabelled, merged, structures):
    scan = nifti_scan(tmp_path, GRIDS["oblique"])
    classes = labels().astype(np.int32)
    if unlabelled is not None:
        classes[0, :2] = -1
    paths = write_label(classes, scan, TABLE, tmp_path / "round", structures, merged, unlabelled)
    if merged:
        read, _ = read_instances(paths, unlabelled)
    else:
        read, _ = read_label(paths, TABLE, list(structures.values()) if structures else (), unlabelled=unlabelled)
    np.testing.assert_array_equal(read, classes)


def test_a_dicom_scan_is_listed_by_its_folder_or_its_files(tmp_path):
    one = dicom_scan(tmp_path / "one", GRIDS["oblique"])
    (scan,) = find_scans(tmp_path / "one").scans
    assert source_of(scan) == (tmp_path / "one",)
    for file in dicom_scan(tmp_path / "two", GRIDS["axial"]).files:
        shutil.copy(file, tmp_path / "one" / f"other_{file.name}")
    scan = next(scan for scan in find_scans(tmp_path / "one").scans if scan.files[0].name == one.files[0].name)
    assert source_of(scan) == one.files


# --- rounds -----------------------------------------------------------------------------------------------------------


def test_a_round_adds_trains_and_records(home, capsys):
    """One mask is cut short, one of the held-out scan: reported, they leave nothing behind, and the other goes on."""
    bundle = home / "bundle"
    before, former = weights(bundle), sha256(bundle / "models" / "model.pt")
    predicted = Predictor(bundle, "cpu")(open_scan([home / "new" / "x.nii.gz"]))
    datalist = read_json(bundle / "configs" / "datalist.json")
    mask_file = save_corrected(home, "x")
    cut = save_corrected(home, "y")
    cut.write_bytes(cut.read_bytes()[:-40])
    shutil.copy(home / "data" / "labels" / f"{held_out(bundle)}.nii.gz", home / "corrected")
    arguments = ["train", str(bundle), "--add", str(home / "corrected"), "--scans", str(home), "--device", "cpu"]
    assert main(arguments) == 2
    told = capsys.readouterr().out
    assert "y.seg.nrrd: the file is cut short" in told and f"{held_out(bundle)}: is held out" in told
    assert "learning rate 0.0025 (train.json: 0.01), 1 epochs" in told

    folder = bundle / "corrections" / "round-1" / "new"
    assert sorted(path.name for path in (bundle / "corrections").rglob("*") if path.is_file()) == [
        "x_seg.ctbl", "x_seg.nii.gz"
    ]  # fmt: skip
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(folder / "x_seg.nii.gz").dataobj), truth("x"))
    now = read_json(bundle / "configs" / "datalist.json")
    entry = {"image": "../new/x.nii.gz", "label": "corrections/round-1/new/x_seg.nii.gz"}
    assert now == {**datalist, "training": [*datalist["training"], entry]}
    dataset_dir = read_json(bundle / "configs" / "train.json")["dataset_dir"]
    cases = read_cases(str(bundle), dataset_dir, "configs/datalist.json", "training")
    assert Path(cases[-1]["label"]).samefile(folder / "x_seg.nii.gz")
    assert Path(cases[-1]["image"]).samefile(home / "new" / "x.nii.gz")

    (entry,) = read_json(bundle / "models" / "corrections.json")["rounds"]
    (case,) = entry["cases"]
    dice = 2 * np.sum((predicted > 0) & (truth("x") > 0)) / (np.sum(predicted > 0) + np.sum(truth("x")))
    assert case["dice_before"] == {"label_1": pytest.approx(dice, abs=1e-4)}
    assert case["voxels_changed"] == int((predicted != truth("x")).sum())
    assert (case["file"], case["sha256"], case["scan"]) == ("x.seg.nrrd", sha256(mask_file), "new/x")
    assert entry["model_before"] == former and entry["model_after"] == sha256(bundle / "models" / "model.pt")
    assert equal(weights(bundle, "model_round-0.pt"), before) and not equal(weights(bundle), before)
    assert (bundle / "models" / "training_round-0.json").exists()


def test_old_and_new_are_scored_on_the_same_held_out_scans(home):
    """Against Dice by NumPy of what each model says of the case."""
    bundle = home / "bundle"
    save_corrected(home, "x")
    old = Predictor(bundle, "cpu")
    scan = open_scan([home / "data" / "images" / f"{held_out(bundle)}.nii.gz"])
    label = np.asanyarray(nibabel.load(home / "data" / "labels" / f"{held_out(bundle)}.nii.gz").dataobj) > 0
    said = [old(scan) > 0]
    record = correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    said.append(Predictor(bundle, "cpu")(scan) > 0)
    dice = [2 * (answer & label).sum() / (answer.sum() + label.sum()) for answer in said]
    scores = record["held_out"]
    assert list(scores["before"].values()) == [pytest.approx(dice[0], abs=1e-4)]
    assert list(scores["after"].values()) == [pytest.approx(dice[1], abs=1e-4)]
    assert (scores["mean_before"], scores["mean_after"]) == tuple(pytest.approx(d, abs=1e-4) for d in dice)
    assert record["failed"] == []


def test_slices_of_one_patient_are_one_piece_of_evidence(home):
    """Of two held-out cases by themselves p could be 1/2; of one group it is 1."""
    file = home / "bundle" / "configs" / "datalist.json"
    listing = read_json(file)
    for number, entry in enumerate([*listing["validation"], listing["training"].pop()], start=1):
        for folder in ("images", "labels"):
            kept = home / "data" / folder / f"p1_slice{number}.nii.gz"
            (home / "data" / entry[folder[:-1]]).rename(kept)
            entry[folder[:-1]] = f"{folder}/{kept.name}"
        listing["validation"] = [*listing["validation"][: number - 1], entry]
    file.write_text(json.dumps(listing))
    save_corrected(home, "x")
    scores = correct(home / "bundle", home / "corrected", scans=home / "new", device="cpu")["held_out"]
    assert len(scores["before"]) == 2 and (scores["groups"], scores["p"]) == (1, 1.0)


def test_masks_that_say_what_the_model_says_are_left_out(home, capsys):
    """Copied away from the receipts of `segment`, uncorrected; where nothing else is there, nothing is changed."""
    segment(home / "new", home / "bundle", home / "masks", device="cpu", overlays=False)
    (home / "corrected").mkdir()
    shutil.copy(home / "masks" / "y_seg.nii.gz", home / "corrected")
    with pytest.raises(FewscanError, match=r"y_seg\.nii\.gz: as the model says, not corrected"):
        correct(home / "bundle", home / "corrected", scans=home / "new", device="cpu")
    assert not (home / "bundle" / "corrections" / "round-1").exists()
    save_corrected(home, "x")
    record = correct(home / "bundle", home / "corrected", scans=home / "new", device="cpu")
    assert [case["scan"] for case in record["cases"]] == ["x"] and record["failed"] == []
    assert "left out y_seg.nii.gz: as the model says, not corrected" in capsys.readouterr().out


def test_masks_in_use_outlive_a_lost_history(home):
    """Without corrections.json a new round counts on from the masks that the data list names."""
    bundle = home / "bundle"
    save_corrected(home, "x")
    correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    (bundle / "models" / "corrections.json").unlink()
    (home / "corrected" / "x.seg.nrrd").unlink()
    save_corrected(home, "y")
    correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    labels_now = [entry["label"] for entry in read_json(bundle / "configs" / "datalist.json")["training"]]
    assert labels_now[-2:] == ["corrections/round-1/x_seg.nii.gz", "corrections/round-2/y_seg.nii.gz"]
    assert all((bundle / label).exists() for label in labels_now[-2:])
    (entry,) = read_json(bundle / "models" / "corrections.json")["rounds"]
    assert entry["round"] == 2 and entry["model_before"] == sha256(bundle / "models" / "model_round-1.pt")
    assert (bundle / "models" / "model_round-0.pt").exists()


def test_training_begins_at_the_weights_of_the_model(home):
    """At a learning rate of 0 the new model is the old one."""
    bundle = configure(home / "bundle", learning_rate=0.0)
    save_corrected(home, "x")
    before = {name: value for name, value in weights(bundle).items() if "running" not in name and "num_" not in name}
    correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    assert equal(before, weights(bundle))


def test_a_second_round_takes_what_is_new(home, capsys):
    bundle = home / "bundle"
    save_corrected(home, "x")
    correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    with pytest.raises(FewscanError, match="holds no corrected mask that was not added before"):
        correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    save_corrected(home, "y", "y/Segmentation.seg.nrrd")
    capsys.readouterr()
    correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    assert "left out x.seg.nrrd: added in an earlier round" in capsys.readouterr().out
    rounds = read_json(bundle / "models" / "corrections.json")["rounds"]
    assert [[case["scan"] for case in entry["cases"]] for entry in rounds] == [["x"], ["y"]]
    assert rounds[0]["model_after"] == rounds[1]["model_before"] == sha256(bundle / "models" / "model_round-1.pt")
    assert rounds[0]["model_before"] == sha256(bundle / "models" / "model_round-0.pt")
    labels_now = [entry["label"] for entry in read_json(bundle / "configs" / "datalist.json")["training"]]
    assert labels_now[-2:] == ["corrections/round-1/x_seg.nii.gz", "corrections/round-2/y_seg.nii.gz"]


def test_an_interrupted_round_ends_with_the_same_weights(home, monkeypatch, capsys):
    """Stopped in the second of four epochs; until the end the bundle is as it was."""
    bundle = configure(home / "bundle", epochs=16, learning_rate=0.01)
    other = home / "other"
    save_corrected(home, "x")
    (home / "corrected" / "z.nii.gz").write_bytes((home / "new" / "y.nii.gz").read_bytes()[:-1])  # no scan is called so
    shutil.copytree(bundle, other)
    correct(other, home / "corrected", scans=home / "new", device="cpu")
    attach = TrainingRun.attach
    before = {
        name: sha256(bundle / name) for name in ("models/model.pt", "models/training.json", "configs/datalist.json")
    }

    def stop(self, engine):
        attach(self, engine)

        def press(engine):
            if engine.state.iteration == 8:
                raise KeyboardInterrupt

        engine.add_event_handler(Events.ITERATION_STARTED, press)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingRun, "attach", stop)
        with pytest.raises(KeyboardInterrupt):
            correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    assert {name: sha256(bundle / name) for name in before} == before
    assert not (bundle / "models" / "corrections.json").exists()
    capsys.readouterr()
    save_corrected(home, "y")
    with pytest.raises(BundleError, match="round 1 was begun with other masks"):
        correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    (home / "corrected" / "y.seg.nrrd").unlink()
    record = correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    assert len(record["failed"]) == 1 and "z.nii.gz: none of the 2 scans" in record["failed"][0]
    assert "round 1 goes on where it was interrupted" in capsys.readouterr().out
    assert equal(weights(bundle), weights(other))
    assert not (bundle / "corrections" / "round-1" / "training").exists()


@pytest.mark.parametrize("calls", range(9))
def test_a_replacement_that_was_cut_off_is_completed(home, monkeypatch, calls):
    """After each of its copies, and after the history was written."""
    bundle, former = home / "bundle", sha256(home / "bundle" / "models" / "model.pt")
    save_corrected(home, "x")
    done, whole = [], correct_module._copy

    def copy(source, target):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(target)
        whole(source, target)

    def clear(folder):
        if folder.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(correct_module, "_copy", copy)
        patched.setattr(correct_module, "_clear", clear)
        with pytest.raises(KeyboardInterrupt):
            correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    if (bundle / "models" / "corrections.json").exists():
        with pytest.raises(FewscanError, match="not added before"):
            correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    else:
        correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    (entry,) = read_json(bundle / "models" / "corrections.json")["rounds"]
    models = {name: sha256(bundle / "models" / name) for name in ("model.pt", "model_round-0.pt")}
    assert models == {"model.pt": entry["model_after"], "model_round-0.pt": entry["model_before"]}
    assert entry["model_before"] == former != entry["model_after"]
    records = [read_json(bundle / "models" / name) for name in ("training.json", "training_round-0.json")]
    assert [record["steps"] for record in records] == [5, 20]
    assert len(read_json(bundle / "configs" / "datalist.json")["training"]) == 4
    left = {path.name for path in (bundle / "corrections" / "round-1").iterdir()}
    assert left == {"x_seg.nii.gz", "x_seg.ctbl"}


def test_nothing_usable_changes_nothing(home):
    bundle = home / "bundle"
    content = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    shifted = nibabel.load(home / "new" / "x.nii.gz").affine.copy()
    shifted[0, 3] += 0.5
    (home / "corrected").mkdir()
    nibabel.save(nibabel.Nifti1Image(truth("x"), shifted), home / "corrected" / "x.nii.gz")
    with pytest.raises(
        FewscanError, match=r"none of the 1 masks can be used:\n.*x\.nii\.gz .*shifted against the voxels"
    ):
        correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == content


def test_two_masks_of_one_scan_and_a_scan_beside_its_mask(home, capsys):
    save_corrected(home, "x")
    save_corrected(home, "x", "x/Segmentation.seg.nrrd")
    save_corrected(home, "y", "y/Segmentation.seg.nrrd")
    shutil.copy(home / "new" / "y.nii.gz", home / "corrected" / "y")
    record = correct(home / "bundle", home / "corrected", scans=home / "new", device="cpu")
    assert [case["scan"] for case in record["cases"]] == ["y"]
    assert record["failed"] == ["x: has 2 masks, Segmentation.seg.nrrd and x.seg.nrrd; leave all but one out"]
    assert "left out y.nii.gz: the scan itself" in capsys.readouterr().out


def test_without_held_out_cases_nothing_is_claimed(home, capsys):
    bundle = home / "bundle"
    file = bundle / "configs" / "datalist.json"
    file.write_text(json.dumps({**read_json(file), "validation": []}))
    save_corrected(home, "x")
    record = correct(bundle, home / "corrected", scans=home / "new", device="cpu")
    assert record["held_out"] is None
    told = capsys.readouterr().out
    assert "no case is held out" in told and "fewscan validate" in told and "better" not in told


def test_what_cannot_be_corrected(home, tmp_path):
    save_corrected(home, "x")
    with pytest.raises(PairingError, match="no such file or folder"):
        correct(home / "bundle", tmp_path / "nowhere")
    (home / "bundle" / "models" / "model.pt").rename(tmp_path / "model.pt")
    with pytest.raises(BundleError, match="train the bundle first"):
        correct(home / "bundle", home / "corrected")
    assert main(["train", str(home / "bundle"), "--scans", str(home)]) == 1
    assert main(["train", str(home / "bundle"), "--add", str(home), "--stages"]) == 1
