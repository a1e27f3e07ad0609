"""`fewscan validate`: no test case is trained on, the estimate is that of masks on disk, `segment` opens with it."""

import csv
import json
import shutil
from unittest.mock import Mock

import nibabel
import numpy as np
import pytest

from conftest import configure, write_volumes
from fewscan.bundle import cases_hash, read_json
from fewscan.cli import main
from fewscan.errors import BundleError
from fewscan.grid import Grid
from fewscan.labels import LabelTable
from fewscan.metrics import hausdorff95_mm
from fewscan.runs.blocks import cut_blocks, profile
from fewscan.runs.estimate import in_words, read_estimate, settings_hash, write_estimate
from fewscan.runs.folds import make_folds
from fewscan.runs.predictor import Predictor
from fewscan.runs.scheme import Part, Scheme
from fewscan.runs.segment import segment
from fewscan.runs.validate import _Run, disagreement, validate
from fewscan.scans import Case, open_scan
from fewscan.training import PatchDataset, TrainingRun
from fewscan.training.plan import plan
from runs.tiny import change_config, stop_in_training

MEASURED = ("seconds", "minutes")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("validate") / "data", count=3)


def bundle_of(data, folder):
    plan(data, folder)
    return configure(folder, patch=[16, 16, 16], epochs=2, steps_per_epoch=4)


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """A validated bundle, what `validate` returned, and the images that were trained on in each fold."""
    bundle = bundle_of(data, tmp_path_factory.mktemp("straight") / "bundle")
    trained, kept = {}, []
    with pytest.MonkeyPatch.context() as patched:
        before = PatchDataset.case

        def case(self, index):
            trained.setdefault(id(self), set()).add(self.data[index]["image"])
            kept.append(self)  # so that no id is used twice
            return before(self, index)

        patched.setattr(PatchDataset, "case", case)
        result = validate(bundle, device="cpu")
    return bundle, result, list(trained.values())


def comparable(value):
    if isinstance(value, dict):
        return {key: comparable(one) for key, one in value.items() if key not in MEASURED}
    return [comparable(one) for one in value] if isinstance(value, list) else value


def test_no_test_case_is_trained_on_and_each_is_tested_once(data, straight):
    _, result, trained = straight
    assert result["scheme"] == "leave-one-out" and result["folds"] == len(trained) == 3
    for fold, seen in enumerate(trained, start=1):
        tested = {str((data / "images" / f"{row['case']}.nii.gz").resolve()) for row in result["cases"]
                  if row["fold"] == fold}  # fmt: skip
        assert len(seen) == 2 and len(tested) == 1 and not seen & tested
    assert sorted(row["case"] for row in result["cases"]) == ["case0", "case1", "case2"]
    assert all(record["steps"] == 8 for record in result["records"])


def test_the_estimate_is_that_of_segmented_files(data, straight, tmp_path):
    bundle, result, _ = straight
    scores = {}
    for row in result["cases"]:
        name = f"{row['case']}.nii.gz"
        segment(data / "images" / name, bundle / "validation" / f"fold-{row['fold']}", tmp_path / name, overlays=False)
        mask = nibabel.load(tmp_path / name / f"{row['case']}_seg.nii.gz").get_fdata() > 0
        image = nibabel.load(data / "labels" / name)
        truth = image.get_fdata() > 0
        scores[row["case"]] = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
        assert row["dice"] == pytest.approx(scores[row["case"]], abs=1e-12)
        assert row["hd95_mm"] == pytest.approx(hausdorff95_mm(mask, truth, Grid(mask.shape, image.affine)))
    estimate, values = read_estimate(bundle), np.array(list(scores.values()))
    assert estimate["dice"]["mean"] == pytest.approx(values.mean())
    assert estimate["dice"]["sd"] == pytest.approx(values.std(ddof=1))
    assert estimate["dice"]["worst"] == pytest.approx(values.min())
    assert scores[estimate["dice"]["worst_case"]] == values.min()
    assert estimate["cases"] == 3 and estimate["settings_sha256"] == settings_hash(bundle)


def test_page_and_table_say_what_the_json_says(straight):
    bundle, result, _ = straight
    page = (bundle / "validation" / "index.html").read_text(encoding="utf-8")
    assert 'src="http' not in page and "<script" not in page and page.count("data:image/png;base64,") == 2
    assert in_words(bundle) in page and "Not complete" not in page
    assert "This page shows scans of your patients" in page
    with (bundle / "validation" / "report.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(line["case"], float(line["dice"])) for line in table] == [(r["case"], r["dice"]) for r in result["cases"]]


def test_segment_opens_with_the_estimate(data, straight, tmp_path, capsys):
    bundle, result, _ = straight
    scans = tmp_path / "scans"
    scans.mkdir()
    image = nibabel.load(data / "images" / "case0.nii.gz")
    coarse = nibabel.Nifti1Image(np.asarray(image.dataobj)[::2, ::2, ::2], image.affine @ np.diag([2, 2, 2, 1]))
    nibabel.save(coarse, scans / "coarse.nii.gz")
    # the bundle's own model is missing: the models of the folds decide
    assert main(["segment", str(scans), "--bundle", str(bundle), "--output", str(tmp_path / "m"), "--ensemble"]) == 0
    dice = result["summary"]["dice"]
    words = f"Dice {dice['mean']:.2f} (sd {dice['sd']:.2f}), worst {dice['worst']:.2f}, 3 scans, leave-one-out"
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"bundle: {words}") and "yours: voxels twice as coarse" in first
    text = (tmp_path / "m" / "fewscan" / "report.json").read_text()
    assert next(iter(json.loads(text).items())) == ("validation", first.removeprefix("bundle: "))
    with (tmp_path / "m" / "fewscan" / "report.csv").open(newline="") as file:
        assert [row["validation"] for row in csv.DictReader(file)] == [first.removeprefix("bundle: ")]


def test_an_ensemble_is_the_mean_of_the_softmaxes(data, straight, tmp_path):
    bundle, _, _ = straight
    scan = open_scan([data / "images" / "case1.nii.gz"])
    models = [bundle / "validation" / f"fold-{n}" / "models" / "model.pt" for n in (1, 2, 3)]
    shares = []
    for fold in (1, 2, 3):
        alone = Predictor(bundle / "validation" / f"fold-{fold}", "cpu")
        logits = np.asarray(alone.logits(alone.prepare(scan)["image"]).detach(), dtype=np.float64)
        power = np.exp(logits - logits.max(axis=0))
        shares.append(power / power.sum(axis=0))
    mean = np.mean(shares, axis=0)
    together = Predictor(bundle, "cpu", models)
    found = np.exp(np.asarray(together.logits(together.prepare(scan)["image"]).detach(), dtype=np.float64))
    np.testing.assert_allclose(found, mean, atol=1e-6)
    segment(data / "images" / "case1.nii.gz", bundle, tmp_path / "masks", ensemble=True, overlays=False)
    mask = nibabel.load(tmp_path / "masks" / "case1_seg.nii.gz").get_fdata()
    by_numpy = mean.argmax(axis=0)[:, ::-1]  # of the network's left, posterior, superior in the file's order
    assert (mask == by_numpy).all() and 0 < mask.mean() < 1
    report = json.loads((tmp_path / "masks" / "fewscan" / "report.json").read_text())
    assert len(report["ensemble"]) == 3 and report["model_sha256"] not in report["ensemble"]
    alone = Predictor(bundle / "validation" / "fold-1", "cpu").spec
    assert report["ensemble"][0] == alone["model_sha256"]


def test_an_interrupted_validation_gives_the_same_estimate(data, straight, tmp_path, monkeypatch, capsys):
    bundle = bundle_of(data, tmp_path / "bundle")
    with monkeypatch.context() as patched:
        stop_in_training(patched, 14)  # the second epoch of the second fold
        assert main(["validate", str(bundle), "--device", "cpu"]) == 1
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    assert read_estimate(bundle) is None
    assert "2 of 3 trainings are missing" in (bundle / "validation" / "index.html").read_text()
    first = (bundle / "validation" / "fold-1" / "models" / "model.pt").stat().st_mtime_ns
    with monkeypatch.context() as patched:  # then killed between model.pt and training.json
        patched.setattr(TrainingRun, "_write_record", Mock(side_effect=KeyboardInterrupt))
        assert main(["validate", str(bundle), "--device", "cpu"]) == 1
    assert (bundle / "validation" / "fold-2" / "models" / "model.pt").exists()
    capsys.readouterr()
    assert main(["validate", str(bundle), "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "1 of 3 done before" in told and "2 training(s) take at least" in told and "resuming after" in told
    assert (bundle / "validation" / "fold-1" / "models" / "model.pt").stat().st_mtime_ns == first
    assert comparable(read_estimate(bundle)) == comparable(read_estimate(straight[0]))
    assert comparable(json.loads((bundle / "validation" / "report.json").read_text())) == comparable(straight[1])


def test_a_score_on_training_data_is_refused(data, straight, tmp_path):
    """The list of a fold trains on its test case; then a fold was trained on it, and its list was put back."""
    bundle = tmp_path / "bundle"
    shutil.copytree(straight[0], bundle)
    configure(bundle)
    for name in ("train", "inference"):
        shutil.copy(straight[0] / "configs" / f"{name}.json", bundle / "configs" / f"{name}.json")
    config = bundle / "configs" / "train.json"
    config.write_text(config.read_text().replace(json.loads(config.read_text())["dataset_dir"], str(data)))
    shutil.rmtree(bundle / "validation" / "scores")
    (bundle / "validation" / "scores").mkdir()
    file = bundle / "validation" / "fold-1" / "configs" / "datalist.json"
    listing = json.loads(file.read_text())
    file.write_text(json.dumps({**listing, "training": listing["training"] + listing["test"]}))
    with pytest.raises(BundleError, match=r"case\d\.nii\.gz is trained on, so a score on it would be no test"):
        validate(bundle, device="cpu")
    file.write_text(json.dumps(listing))
    record = bundle / "validation" / "fold-1" / "models" / "training.json"
    trained = json.loads(record.read_text())
    trained["settings"]["cases (sha256)"] = "of other cases"
    record.write_text(json.dumps(trained))
    with pytest.raises(BundleError, match=r"was trained on other cases than .* lists"):
        validate(bundle, device="cpu")


def test_other_settings_are_told_and_another_validation_is_refused(straight, tmp_path, capsys):
    bundle = tmp_path / "bundle"
    shutil.copytree(straight[0] / "models", bundle / "models")
    shutil.copytree(straight[0] / "configs", bundle / "configs")
    assert "other settings" not in in_words(bundle)
    config = json.loads((bundle / "configs" / "train.json").read_text())
    (bundle / "configs" / "train.json").write_text(json.dumps({**config, "dataset_dir": "elsewhere", "epochs": 9}))
    assert "other settings" not in in_words(bundle)  # where and how long is not how
    (bundle / "configs" / "train.json").write_text(json.dumps({**config, "learning_rate": 0.5}))
    assert in_words(bundle).startswith("validated with other settings than it has now: Dice 0.")
    assert main(["segment", str(tmp_path), "--bundle", str(bundle), "--output", str(tmp_path / "m"), "--ensemble"]) == 1
    for more, words in (
        (["--minutes", "1"], "of 8 steps each, now they are to take 1 minute(s); go on without --minutes, or remove"),
        (["--folds", "2"], "other cases or folds; remove or rename that folder"),
        (["--minutes", "0"], "--minutes has to be more than 0, not 0"),
        (["--unlabelled", "nowhere"], "--unlabelled nowhere: no such file or folder"),
        (["--folds", "4"], "3 labelled cases in 3 group(s) (each case by itself) give 2 to 3 folds, not 4"),
    ):
        assert main(["validate", str(straight[0]), "--device", "cpu", *more]) == 1
        assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_an_estimate_of_another_model_is_told(straight, tmp_path):
    """By models/training.json: other cases, another length; and what is done to masks that were not scored so."""
    bundle = tmp_path / "bundle"
    shutil.copytree(straight[0] / "models", bundle / "models")
    shutil.copytree(straight[0] / "configs", bundle / "configs")
    record = bundle / "models" / "training.json"
    listed = cases_hash(read_json(bundle / "configs" / "datalist.json"))
    for cases, steps, minutes, words in (
        (listed, 8, None, []),
        (listed, 3, None, ["each fold was trained for 8 steps, the bundle for 3 steps"]),
        (listed, 8, 2.0, ["each fold was trained for 8 steps, the bundle for 2 minute(s)"]),
        ("of others", 8, None, ["the model was trained on other cases than the estimate is of"]),
        (None, 8, None, []),  # MONAI Label brings its own cases
    ):
        trained = {"steps": steps, "minutes_given": minutes, "settings": {"cases (sha256)": cases}}
        record.write_text(json.dumps(trained))
        assert in_words(bundle).split("; ")[1:] == words
        assert in_words(bundle, ensemble=True).endswith("their ensemble was not scored)")
    change_config(bundle, keep_largest=[1])
    assert in_words(bundle).endswith("; scored without the post-processing that inference.json has on")


def test_scans_of_fewer_groups_are_told(straight, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(straight[0] / "configs", bundle / "configs")
    (bundle / "models").mkdir()
    write_estimate(bundle, {**read_estimate(straight[0]), "cases": 40, "groups": 5})
    assert ", 40 scans of 5 groups, leave-one-out" in in_words(bundle)


def test_a_case_that_could_not_be_scored_is_scored_later(data, straight, tmp_path, capsys):
    """Its file came back: the fold is scored again by the model that it has."""
    home = tmp_path / "home"
    shutil.copytree(data, home / "data")
    bundle = bundle_of(home / "data", home / "bundle")
    shutil.copytree(straight[0] / "validation", bundle / "validation")
    for config in (bundle / "validation").glob("fold-*/configs/train.json"):
        config.write_text(json.dumps({**read_json(config), "dataset_dir": str(home / "data")}))
    spec = read_json(bundle / "validation" / "fewscan.json")
    (bundle / "validation" / "fewscan.json").write_text(json.dumps({**spec, "settings_sha256": settings_hash(bundle)}))
    file = bundle / "validation" / "scores" / "fold-1.json"
    record = read_json(file)
    (row,) = record["cases"]
    file.write_text(json.dumps({**record, "cases": [], "failed": [{"case": row["case"], "reason": "unreadable"}]}))
    model = bundle / "validation" / "fold-1" / "models" / "model.pt"
    before = model.stat().st_mtime_ns
    result = validate(bundle, device="cpu")
    assert "2 of 3 done before" in capsys.readouterr().out and model.stat().st_mtime_ns == before
    assert result["failed"] == [] and comparable(result["cases"]) == comparable(straight[1]["cases"])


def test_scores_of_labels_that_changed_are_not_repeated(data, straight, tmp_path, capsys):
    """A label mended in place; then a corrected mask in the bundle, as `train --add` lists it instead of the label."""
    home = tmp_path / "home"
    shutil.copytree(data, home / "data")
    bundle = bundle_of(home / "data", home / "bundle")
    shutil.copytree(straight[0] / "validation", bundle / "validation")
    marker = bundle / "validation" / "fewscan.json"
    spec = {**read_json(marker), "settings_sha256": settings_hash(bundle)}
    marker.write_text(json.dumps(spec))
    file = home / "data" / "labels" / "case1.nii.gz"
    image = nibabel.load(file)
    label = np.array(image.dataobj)
    mended = label.copy()
    mended[tuple(np.argwhere(label)[0])] = 0
    refused = "holds a validation with another image or label of case1; remove or rename that folder"
    nibabel.save(nibabel.Nifti1Image(mended, image.affine), file)
    with pytest.raises(BundleError, match=refused):
        validate(bundle, device="cpu")
    nibabel.save(nibabel.Nifti1Image(label, image.affine), file)
    assert comparable(validate(bundle, device="cpu")["cases"]) == comparable(straight[1]["cases"])
    assert "3 of 3 done before" in capsys.readouterr().out
    estimate, listed = read_estimate(bundle), bundle / "configs" / "datalist.json"
    corrected = bundle / "corrections" / "round-1" / "case1.nii.gz"
    corrected.parent.mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(mended, image.affine), corrected)
    text = listed.read_text().replace("labels/case1.nii.gz", "corrections/round-1/case1.nii.gz")
    assert text != listed.read_text()
    listed.write_text(text)
    with pytest.raises(BundleError, match=refused):
        validate(bundle, device="cpu")
    assert read_estimate(bundle) == estimate  # and not bound to the new list
    marker.write_text(json.dumps({key: value for key, value in spec.items() if key != "data_sha256"}))
    with pytest.raises(BundleError, match="with no hash of its images and labels, for it is of an older version"):
        validate(bundle, device="cpu")


def test_never_validated_is_said(data, tmp_path):
    bundle = bundle_of(data, tmp_path / "bundle")
    assert in_words(bundle).startswith("never validated")
    with pytest.raises(BundleError, match="was never validated, so there are no models of folds for an ensemble"):
        segment(data / "images", bundle, tmp_path / "masks", ensemble=True)


def test_a_broken_estimate_is_named(straight, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(straight[0] / "configs", bundle / "configs")
    (bundle / "models").mkdir()
    (bundle / "models" / "validation.json").write_text('{"dice": 0.8}')
    with pytest.raises(BundleError, match=r"validation\.json: has no cases, scheme, blocks, models, groups, budget"):
        in_words(bundle)


def test_one_bad_case_stops_nothing_and_copies_stay_together(tmp_path, capsys):
    """Of five cases one label lies elsewhere, and one image is another one with noise: three groups are left."""
    data = write_volumes(tmp_path / "data", count=5)
    bundle = bundle_of(data, tmp_path / "bundle")
    configure(bundle, patch=[16, 16, 16], epochs=1, steps_per_epoch=2)
    image, label = (nibabel.load(data / folder / "case1.nii.gz") for folder in ("images", "labels"))
    copy = np.asarray(image.dataobj) + np.random.default_rng(1).normal(0, 3, image.shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(copy, image.affine), data / "images" / "case3.nii.gz")
    nibabel.save(label, data / "labels" / "case3.nii.gz")
    moved = nibabel.Nifti1Image(np.asarray(label.dataobj), label.affine @ np.diag([1, 1, 3, 1]))
    nibabel.save(moved, data / "labels" / "case4.nii.gz")
    assert main(["validate", str(bundle), "--device", "cpu"]) == 2
    told = capsys.readouterr().out
    assert "left out case4" in told and "near-identical images stay together: case1 and case3" in told
    result = json.loads((bundle / "validation" / "report.json").read_text())
    fold = {row["case"]: row["fold"] for row in result["cases"]}
    assert set(fold) == {"case0", "case1", "case2", "case3"} and fold["case1"] == fold["case3"]
    assert len(set(fold.values())) == 3
    assert result["unlabelled"] == []  # case4 has a label, though a broken one
    assert "1 case(s) could not be used" in read_estimate(bundle)["warnings"]


def write_one_scan(folder, labels=2):
    """Labels along the second axis: 1 a bar through the whole scan, 2 beside the bar, in its last quarter alone."""
    shape = (12, 40, 12)
    label = np.zeros(shape, np.uint8)
    label[3:6, 2:38, 3:8], label[7:10, 30:37, 3:8] = 1, 2
    label[label > labels] = 0
    image = np.random.default_rng(0).normal(100, 5, shape) + 100 * label
    for name, array in (("images", image.astype(np.int16)), ("labels", label)):
        (folder / name).mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -1, 1, 1])), folder / name / "scan.nii.gz")
    return label


def blocks_bundle(folder, labels=2):
    """Data of one scan and a bundle, validated by blocks; and the label."""
    label = write_one_scan(folder / "data", labels)
    bundle = bundle_of(folder / "data", folder / "bundle")
    configure(bundle, patch=[8, 16, 8], epochs=2, steps_per_epoch=20)
    return bundle, label, validate(bundle, device="cpu")


def test_one_scan_is_tested_by_blocks(tmp_path, capsys):
    """The score is the Dice of the volume put together from the answers to each block, by sets of voxels."""
    bundle, label, result = blocks_bundle(tmp_path)
    assert result["scheme"] == "5 blocks" and result["blocks"] and "along its axis j" in result["how"]
    answer, counts = np.zeros(label.shape, int), np.ones(label.shape, bool)
    scan = open_scan([tmp_path / "data" / "images" / "scan.nii.gz"])
    for number, block in enumerate(cut_blocks(profile(label, 1).tolist(), axis=1), start=1):
        answer[block.tested] = Predictor(bundle / "validation" / f"fold-{number}", "cpu")(scan)[block.tested]
        known = np.delete(label, np.r_[max(0, block.first - 3) : min(40, block.stop + 3)], axis=1)  # a gap of 3 of 36
        for value in set(np.unique(label)) - set(np.unique(known)):
            counts[block.tested] &= label[block.tested] != value
    assert (~counts).sum() == 60  # of label 2, which the fourth block and its gap hold
    dice = {
        value: 2 * (counts & (label == value) & (answer == value)).sum()
        / ((counts & (label == value)).sum() + (counts & (answer == value)).sum())
        for value in (1, 2) if (counts & (label == value)).any()
    }  # fmt: skip
    assert [one["dice"] for one in result["summary"]["labels"]] == pytest.approx(list(dice.values()), abs=1e-12)
    assert dice[1] > 0.3 and result["summary"]["dice"]["mean"] == pytest.approx(np.mean(list(dice.values())), abs=1e-12)
    assert result["warnings"][1:] == [
        "label_2 lies within one block and its gap, so 60 of its 105 voxels were not tested",
        "a training saw 14% of label_2, so its Dice says too little",
    ]
    words = in_words(bundle)
    assert words.startswith(f"Dice {np.mean(list(dice.values())):.2f}, worst label label_2 {dice[2]:.2f}, 5 blocks of")
    assert words in capsys.readouterr().out and "another scan may differ more" in words
    assert "No case that is scored here" not in (bundle / "validation" / "index.html").read_text()
    assert not (bundle / "validation" / "blocks").exists()  # pieces of a person's scan
    assert all(row["hd95_mm"] is None for row in result["cases"])  # surfaces end at the border of a block
    with pytest.raises(BundleError, match=r"holds a validation with trainings of .*go on with"):
        validate(bundle, device="cpu", minutes=0.03)
    with pytest.raises(BundleError, match="one scan alone gives no learning curve"):
        validate(bundle, device="cpu", learning_curve=True)
    assert not (bundle / "validation" / "blocks").exists()


def test_no_voxel_of_block_and_gap_has_any_influence_on_its_training(tmp_path):
    """Labels and intensities of the second block and its gap moved within slices: its weights keep every bit."""
    bundle, label, result = blocks_bundle(tmp_path / "one", labels=1)
    block = cut_blocks(profile(label, 1).tolist(), axis=1)[1]
    shutil.copytree(tmp_path / "one" / "data", tmp_path / "other" / "data")
    for file in (tmp_path / "other" / "data").rglob("*.nii.gz"):
        volume = nibabel.load(file)
        moved = np.array(volume.dataobj)
        moved[block.hidden] = moved[::-1, :, ::-1][block.hidden]
        nibabel.save(nibabel.Nifti1Image(moved, volume.affine), file)
    shutil.copytree(bundle, tmp_path / "other" / "bundle", ignore=shutil.ignore_patterns("validation"))
    other = validate(tmp_path / "other" / "bundle", device="cpu")
    same = [a["model_sha256"] == b["model_sha256"] for a, b in zip(result["records"], other["records"], strict=True)]
    assert same == [False, True, False, False, False]


@pytest.mark.parametrize("count", range(2, 30))
def test_all_folds_give_the_same_points_of_a_learning_curve(tmp_path, count):
    cases = [Case(f"c{number}", (tmp_path / f"c{number}.nii",)) for number in range(count)]
    groups = {case.name: case.name for case in cases}
    folds, how = make_folds(cases, tmp_path, grouping=(list(groups), "each case by itself"))
    scheme = Scheme(tuple(Part(tmp_path, f.training, f.test) for f in folds), groups, "folds", how, ())
    jobs = _Run(tmp_path, tmp_path, {}, {}, LabelTable.from_json(["a"]), scheme, {}, {}, None, 0).smaller_jobs()
    of_size = {}
    for job in jobs:
        of_size.setdefault(job.size, set()).update(case.name for case in job.part.test)
        assert len(job.part.training) == job.size
    assert all(tested == set(groups) for tested in of_size.values())


def test_where_models_disagree_is_told_first(data, tmp_path, capsys):
    """The learning curve and the ranking: 1 - Dice of pairs in closed form, and on files."""
    masks = [np.zeros((4, 4, 1), int) for _ in range(3)]
    masks[0][:2], masks[1][:2], masks[2][:1] = 1, 1, 1
    assert disagreement(masks, 2) == pytest.approx((0 + 2 * (1 - 8 / 12)) / 3)
    bundle = bundle_of(data, tmp_path / "bundle")
    result = validate(
        bundle, device="cpu", learning_curve=True, unlabelled=write_volumes(tmp_path / "new", 2) / "images"
    )
    assert [point["groups"] for point in result["curve"]] == [1] and result["curve"][0]["cases"] == 3
    assert any("too few for a learning curve" in line for line in result["advice"])
    assert [one["scan"] for one in result["unlabelled"]] and len(result["unlabelled"]) == 2
    amounts = [one["disagreement"] for one in result["unlabelled"]]
    assert amounts == sorted(amounts, reverse=True) and 0 < amounts[0] <= 1
    assert "the models of the folds disagree most on: " in capsys.readouterr().out
