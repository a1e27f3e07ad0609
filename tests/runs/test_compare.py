"""`fewscan compare`: no test case is trained on, scores are those of `segment`, and an interruption changes nothing."""

import csv
import itertools
import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from conftest import ball, configure, write_volumes
from fewscan.cli import main
from fewscan.errors import BundleError, PairingError
from fewscan.grid import Grid
from fewscan.networks import FCN, SegNet, SegNetBasic, UNet
from fewscan.runs import compare as module
from fewscan.runs import measure
from fewscan.runs.compare import compare, groups_of
from fewscan.runs.compare_table import converged_in_words, mode_of
from fewscan.runs.folds import make_folds
from fewscan.runs.score import score_masks, sign_flip_test
from fewscan.runs.segment import segment
from fewscan.scans import Case, find_cases
from fewscan.training import PatchDataset
from fewscan.training.material import read_material
from fewscan.training.plan import plan
from fewscan.training.plateau import has_plateaued
from runs.tiny import save_nifti, stop_in_training

NETWORKS = ["unet", "fcn"]
MEASURED = ("seconds", "minutes", "memory", "seconds_per_mvoxel", "memory_mb", "memory_before_mb")
"""What differs from run to run."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("compare") / "data", count=3)


@pytest.fixture(scope="module", autouse=True)
def without_memory():
    """Each measurement starts a process of several seconds; it has a test of its own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "patch_memory", lambda *_: {"mb": None, "before_mb": None, "how": "not measured"})
        yield


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """The folder of a comparison in one go, the images that were trained on in each bundle, and what was printed."""
    output = tmp_path_factory.mktemp("straight") / "report"
    trained = {}
    with pytest.MonkeyPatch.context() as patched:
        before = PatchDataset.case

        def case(self, index):
            trained.setdefault(id(self), set()).add(self.data[index]["image"])
            kept.append(self)  # so that no id is used twice
            return before(self, index)

        kept = []
        patched.setattr(PatchDataset, "case", case)
        compare(data, output, networks=NETWORKS, steps=6, device="cpu")
    return output, list(trained.values())


def result_of(output):
    return json.loads((output / "compare.json").read_text())


def comparable(value):
    """Without what was timed or measured."""
    if isinstance(value, dict):
        return {key: comparable(one) for key, one in value.items() if key not in MEASURED}
    return [comparable(one) for one in value] if isinstance(value, list) else value


def bundles(output):
    return {(n, f): output / "bundles" / n / f"fold-{f}" for f in (1, 2, 3) for n in NETWORKS}


def test_no_test_case_is_trained_on_and_each_is_tested_once(data, straight):
    output, trained = straight
    result = result_of(output)
    assert len(trained) == 6
    for seen, record in zip(trained, sorted(result["records"], key=lambda r: r["fold"]), strict=True):
        tested = {str((data / "images" / f"{case['case']}.nii.gz").resolve()) for case in record["cases"]}
        assert len(seen) == 2 and len(tested) == 1 and not seen & tested
    for network in NETWORKS:
        tested = [
            case["case"] for record in result["records"] if record["network"] == network for case in record["cases"]
        ]
        assert sorted(tested) == ["case0", "case1", "case2"]
    for record in result["records"]:
        other = next(r for r in result["records"] if r["fold"] == record["fold"] and r["network"] != record["network"])
        assert [case["case"] for case in record["cases"]] == [case["case"] for case in other["cases"]]
        assert record["steps"] == other["steps"] == 6


def test_scores_are_those_of_segmented_files(data, straight, tmp_path):
    """Dice, IoU and accuracy by numpy from the NIfTI of `segment`; Dice also by MONAI, in the bundle's record."""
    for (network, fold), bundle in bundles(straight[0]).items():
        record = json.loads((straight[0] / "scores" / f"{network}-fold-{fold}.json").read_text())
        case = record["cases"][0]
        segment(data / "images" / f"{case['case']}.nii.gz", bundle, tmp_path / network / str(fold), overlays=False)
        mask = nibabel.load(tmp_path / network / str(fold) / f"{case['case']}_seg.nii.gz").get_fdata() > 0
        truth = nibabel.load(data / "labels" / f"{case['case']}.nii.gz").get_fdata() > 0
        both, either = (mask & truth).sum(), (mask | truth).sum()
        assert case["dice"] == pytest.approx(2 * both / (mask.sum() + truth.sum()), abs=1e-12)
        assert case["iou"] == pytest.approx(both / either, abs=1e-12)
        assert case["accuracy"] == pytest.approx((mask == truth).mean(), abs=1e-12)
        by_monai = json.loads((bundle / "models" / "training.json").read_text())["validation"]["val_mean_dice"]
        assert case["dice"] == pytest.approx(by_monai, abs=1e-6)


def test_the_table_is_the_mean_of_its_cases(straight):
    result = result_of(straight[0])
    dice = {n: [r["cases"][0]["dice"] for r in result["records"] if r["network"] == n] for n in NETWORKS}
    for row in result["table"]:
        values = dice[row["network"]]
        assert row["dice"] == pytest.approx(np.mean(values)) and row["sd_over"] == "folds"
        assert row["dice_sd"] == pytest.approx(np.std(values, ddof=1))
        assert row["converged"] == [None] * 3  # 6 steps are too few to tell
    first, second = result["table"]
    assert first["p"] is None and second["pairs"] == 3
    assert second["difference"] == pytest.approx(np.mean(np.subtract(dice["fcn"], dice["unet"])))
    assert second["p"] in (0.25, 0.5, 0.75, 1.0)


def test_csv_and_page_say_what_the_json_says(straight):
    output, _ = straight
    rows = result_of(output)["table"]
    with (output / "compare.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["network"] for line in table] == NETWORKS
    assert [float(line["dice"]) for line in table] == [row["dice"] for row in rows]
    page = (output / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:)""", page) and "<script" not in page  # opens offline
    assert page.count("data:image/png;base64,") == 4 and page.count("<svg") == 1
    assert all(f"<td>{row['dice']:.4f}</td>" in page for row in rows)
    assert page.count("too short to tell (folds 1, 2, 3)") == 2
    assert page.count("no ImageNet weights") == 1 and page.count("practical: ") == 2


def test_an_interrupted_comparison_gives_the_same_table(data, straight, tmp_path, monkeypatch, capsys):
    """Stopped in the second training and in the third scoring; what is done is not done again."""
    command = ["compare", str(data), "--output", str(tmp_path / "report"), "--networks", "unet,fcn", "--steps", "6"]
    command += ["--device", "cpu"]
    with monkeypatch.context() as patched:
        stop_in_training(patched, 9)
        assert main(command) == 1
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Not complete: 1 of 6 trainings are done." in page and page.count("Worst case of") == 1
    scored = []
    with monkeypatch.context() as patched:
        before = module.score_cases

        def score(*arguments):
            scored.append(arguments)
            if len(scored) == 2:
                raise KeyboardInterrupt
            return before(*arguments)

        patched.setattr(module, "score_cases", score)
        assert main(command) == 1
    trained = []
    with monkeypatch.context() as patched:
        train = module.train
        patched.setattr(module, "train", lambda bundle, **more: (trained.append(bundle), train(bundle, **more)))
        assert main(command) == 0
    assert len(trained) == 3  # of 6: three had a model before
    assert comparable(result_of(tmp_path / "report")) == comparable(result_of(straight[0]))
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "Not complete" not in page


def test_a_model_that_was_trained_anew_is_scored_anew(data, tmp_path):
    output = tmp_path / "report"
    result = compare(data, output, networks=["fcn"], steps=2, quick=True, device="cpu")
    weights = output / "bundles" / "fcn" / "fold-1" / "models" / "model.pt"
    state = torch.load(weights, weights_only=True)
    torch.save({name: value * 0 for name, value in state.items()}, weights)
    again = compare(data, output, networks=["fcn"], steps=2, quick=True, device="cpu")
    assert again["done"] == result["done"] == 1
    assert again["records"][0]["model_sha256"] != result["records"][0]["model_sha256"]
    assert again["table"][0]["dice"] == 0  # all scores equal: background everywhere
    assert "has not plateaued" not in (output / "index.html").read_text(encoding="utf-8")


def test_scores_of_labels_that_changed_are_not_repeated(data, straight, tmp_path, capsys):
    """The same cases in another folder are the same comparison; with one label mended they are not."""
    shutil.copytree(straight[0], tmp_path / "report")
    shutil.copytree(data, tmp_path / "data")
    compare(tmp_path / "data", tmp_path / "report", networks=NETWORKS, steps=6, device="cpu")
    assert "6 done before" in capsys.readouterr().out
    assert comparable(result_of(tmp_path / "report")["table"]) == comparable(result_of(straight[0])["table"])
    file = tmp_path / "data" / "labels" / "case2.nii.gz"
    image = nibabel.load(file)
    mended = np.array(image.dataobj)
    mended[tuple(np.argwhere(mended)[0])] = 0
    nibabel.save(nibabel.Nifti1Image(mended, image.affine), file)
    with pytest.raises(BundleError, match="holds a comparison with another image or label of case2; choose another"):
        compare(tmp_path / "data", tmp_path / "report", networks=NETWORKS, steps=6, device="cpu")


def test_a_comparison_goes_on_with_the_data_that_it_read(data, tmp_path, monkeypatch):
    """Begun in one folder, it trains on another one with the same cases, where the first is there no more."""
    for name in ("one", "other"):
        shutil.copytree(data, tmp_path / name)
    output = tmp_path / "report"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_in_training(patched, 1)
        compare(tmp_path / "one", output, networks=["fcn"], steps=2, quick=True, device="cpu")
    shutil.rmtree(tmp_path / "one")
    assert compare(tmp_path / "other", output, networks=["fcn"], steps=2, quick=True, device="cpu")["done"] == 1


def test_a_test_case_among_the_training_cases_is_refused(data, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    output = tmp_path / "report"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "train", stop)
        compare(data, output, networks=["fcn"], steps=2, device="cpu")
    file = output / "bundles" / "fcn" / "fold-1" / "configs" / "datalist.json"
    listing = json.loads(file.read_text())
    listing["training"].append(listing["validation"].pop())
    file.write_text(json.dumps(listing))
    with pytest.raises(BundleError, match=r"case\d\.nii\.gz is trained on, so a score on it would be no test"):
        compare(data, output, networks=["fcn"], steps=2, device="cpu")
    assert not (output / "bundles" / "fcn" / "fold-1" / "models" / "model.pt").exists()


def test_settings_are_decided_without_the_test_cases(data, tmp_path, monkeypatch):
    """Cases 0 and 1 have 1 x 1.1 x 1.2 mm; one of two test cases has 3 mm slices more than all together."""
    folder = tmp_path / "data"
    write_volumes(folder, count=4)
    for name in ("images", "labels"):
        for number in (2, 3):
            file = folder / name / f"case{number}.nii.gz"
            image = nibabel.load(file)
            array, affine = np.asarray(image.dataobj), image.affine @ np.diag([2, 2, 2, 1])
            nibabel.save(nibabel.Nifti1Image(array, affine), file)
    monkeypatch.setattr(module, "train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        compare(folder, tmp_path / "report", steps=2, test=["case[23]*"], device="cpu")
    for network in ("unet", "fcn", "segnet"):
        config = json.loads(
            (tmp_path / "report" / "bundles" / network / "fold-1" / "configs" / "train.json").read_text()
        )
        assert config["spacing"] == [1.0, 1.1, 1.2]
        assert (config["epochs"], config["steps_per_epoch"]) == (1, 2)


def test_images_and_labels_by_patterns(data, tmp_path):
    """Folders that no rule knows: what `plan` takes by its patterns, `compare` takes too, to the same cases."""
    (tmp_path / "data").mkdir()
    for kind, folder in (("images", "raw"), ("labels", "manual")):
        shutil.copytree(data / kind, tmp_path / "data" / folder)
    arguments = ["compare", str(tmp_path / "data"), "--output", str(tmp_path / "report"), "--networks", "unet"]
    arguments += ["--steps", "2", "--device", "cpu", "--quick"]
    assert main(arguments) == 1
    assert main([*arguments, "--images", "raw/*.nii.gz", "--labels", "manual/*.nii.gz"]) == 0
    fold = json.loads((tmp_path / "report" / "compare.json").read_text())["folds"][0]
    names = {case.name for case in find_cases(data).cases}
    assert {*fold["training"], *fold["test"]} == names


def test_quick_is_one_fold_in_minutes(data, tmp_path, capsys):
    result = compare(data, tmp_path / "report", networks=["unet"], minutes=0.01, quick=True, device="cpu")
    assert "1 network(s) x 1 fold(s)" in (told := capsys.readouterr().out)
    assert "training takes 0.0 minutes in all; scoring comes on top" in told
    assert (result["done"], result["planned"], len(result["folds"])) == (1, 1, 1)
    assert result["table"][0]["dice_sd"] is None and result["table"][0]["sd_over"] == "cases"
    assert result["records"][0]["minutes"] >= 0.01


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--steps", "7"], "holds a comparison with steps 6, now it is 7; choose another --output"),
        (["--steps", "6", "--seed", "1"], "holds a comparison with seed 0, now it is 1"),
        (["--steps", "6", "--folds", "2"], "holds a comparison with other cases"),
        (["--steps", "6", "--minutes", "1"], "give --minutes or --steps, not both"),
        (["--steps", "6", "--networks", "unet,vgg"], "--networks takes unet, fcn, segnet, with commas; not vgg"),
        (["--steps", "6", "--folds", "2", "--test", "x"], "give --folds or --test, not both"),
        (["--steps", "6", "--test", "nothing*"], "--test nothing* takes 0 of 3 labelled cases"),
        (
            ["--steps", "6", "--folds", "4"],
            "3 labelled cases in 3 group(s) (each case by itself) give 2 to 3 folds, not 4",
        ),
        (["--minutes", "0"], "the budget has to be more than 0, not 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(data, straight, capsys, more, words):
    assert main(["compare", str(data), "--output", str(straight[0]), "--device", "cpu", *more]) == 1
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_of_something_else_is_left_alone(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(BundleError, match="is not empty and no comparison"):
        compare(data, tmp_path, steps=2, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def cases(*names, split=None):
    return [Case(name, (Path("d") / f"{name}.png",), split=split) for name in names]


def names_tested(folds):
    return [[case.name for case in fold.test] for fold in folds]


def test_slices_of_one_patient_are_in_one_fold(tmp_path):
    slices = cases(*(f"p{patient}_s{number:03d}" for patient in range(7) for number in range(3)))
    folds, how = make_folds(slices, tmp_path)
    assert "5 folds of 7 groups" in how
    assert sorted(itertools.chain(*names_tested(folds))) == [case.name for case in slices]
    for fold in folds:
        assert not {c.name[:2] for c in fold.training} & {c.name[:2] for c in fold.test}
        assert len(fold.training) + len(fold.test) == 21 and len(fold.test) in (3, 6)
    assert names_tested(make_folds(slices, tmp_path, seed=1)[0]) != names_tested(folds)
    assert names_tested(make_folds(slices, tmp_path)[0]) == names_tested(folds)


def test_four_cases_leave_one_out_and_one_cannot_be_parted(tmp_path):
    folds, how = make_folds(cases("a", "b", "c", "d"), tmp_path)
    assert sorted(names_tested(folds)) == [["a"], ["b"], ["c"], ["d"]] and how.startswith("leave one out")
    with pytest.raises(PairingError, match=r"1 labelled cases in 1 group.*choose the test cases by --test PATTERN"):
        make_folds(cases("a"), tmp_path)


def test_test_cases_by_pattern_and_by_data_list(tmp_path):
    numbered = cases(*(f"{n:02d}" for n in range(20)))
    folds, _ = make_folds(numbered, tmp_path, test=["1[5-9].png"])
    assert names_tested(folds) == [["15", "16", "17", "18", "19"]] and len(folds[0].training) == 15
    listed = [*cases("a", "b"), *cases("c", split="validation")]
    folds, how = make_folds(listed, tmp_path)
    assert names_tested(folds) == [["c"]] and how == "test cases as the data list says"
    assert len(make_folds(listed, tmp_path, count=3)[0]) == 3
    _, how = make_folds(cases("p1_s1", "p1_s2", "p2_s1"), tmp_path, test=["p1_s1*"])
    assert "1 group(s) (by the name without the slice's number" in how and "easier than it looks" in how


def test_one_image_under_two_names_is_never_on_both_sides(tmp_path):
    twins = [*cases("a", "b"), Case("c", cases("a")[0].image)]
    with pytest.raises(PairingError, match=r"a\.png would be trained and tested on"):
        make_folds(twins, tmp_path)


def test_the_sign_flip_test_counts_all_signs():
    """Against all 2^n signs one by one; with 14 pairs, 10,000 draws lie within four standard errors of all 16,384."""

    def brute(d):
        sums = [
            abs(sum(s * x for s, x in zip(signs, d, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(d))
        ]
        return np.mean([total >= abs(sum(d)) - 1e-12 for total in sums])

    random = np.random.default_rng(5)
    for n in range(1, 10):
        d = random.normal(0.3, 1, n).tolist()
        assert sign_flip_test(d) == pytest.approx(brute(d), abs=1e-12)
    assert sign_flip_test([0.1] * 5) == 2 / 2**5 and sign_flip_test([0.1] * 12) == 2 / 2**12
    assert sign_flip_test([0.0, 0.0]) == 1 and sign_flip_test([]) == 1
    d = random.normal(0.35, 1, 14).tolist()
    exact = brute(d)
    assert sign_flip_test(d, seed=3) == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 10_000) ** 0.5)
    assert sign_flip_test(d, seed=3) == sign_flip_test(d, seed=3)


@pytest.mark.parametrize(
    ("make", "expected", "count"),
    [
        (lambda: UNet(2, 1, 2, (64, 128, 256, 512, 1024), norm=None), 192.4, 31_030_658),
        (lambda: FCN(2, 1, 2, mode="faithful"), 189.1, 134_270_278),
        (lambda: FCN(2, 1, 2), 110.5, 134_270_278),
        (lambda: SegNet(2, 1, 2), 159.9, 29_443_010),
        (lambda: SegNetBasic(2, 1, 2), 88.0, 1_409_730),
    ],
)
def test_multiplications_and_parameters_of_the_papers_networks(make, expected, count):
    with torch.device("meta"):
        network = make()
    assert measure.gmac(network, (1, 1, 512, 512)) == pytest.approx(expected, abs=0.05)
    assert measure.parameters(network) == count


def test_multiplications_in_closed_form():
    """Strides, groups, 3D, no padding, and the transposed convolution, which multiplies each voxel that goes in."""
    network = nn.Sequential(
        nn.Conv3d(2, 4, (3, 3, 1), stride=2, bias=True),
        nn.ReLU(),
        nn.Conv3d(4, 4, 1, groups=2),
        nn.ConvTranspose3d(4, 3, 2, 2),
    )
    places = 4 * 5 * 3  # of 9 x 11 x 5
    expected = places * (4 * 2 * 9 + 4 * 4 // 2 + 4 * 3 * 8)
    assert measure.gmac(network, (1, 2, 9, 11, 5)) == pytest.approx(expected / 1e9, rel=1e-12)
    assert next(network.parameters()).device.type == "cpu"


def test_a_step_with_deep_supervision_is_timed(tmp_path):
    """Its network answers a list in training."""
    plan(write_volumes(tmp_path / "data", 2), tmp_path / "bundle", validation=0)
    configure(tmp_path / "bundle", network={"widths": [4, 8, 8], "deep_supervision": True}, patch=[16] * 3)
    assert isinstance(measure.network_of(tmp_path / "bundle").train()(torch.zeros(2, 1, 16, 16, 16)), list)
    assert measure.seconds_per_step(tmp_path / "bundle", "cpu") > 0


def test_memory_is_that_of_a_fresh_process(straight):
    """At least the largest maps of the U-Net: input of the last merge and both its outputs live together."""
    if not measure._STATUS.exists():
        pytest.skip("memory of a process is measured on Linux alone")
    bundle = straight[0] / "bundles" / "unet" / "fold-1"
    config = bundle / "configs" / "train.json"
    text = config.read_text()
    try:
        config.write_text(json.dumps({**json.loads(text), "patch": [96, 96, 64]}))
        taken = measure.patch_memory(bundle, torch.device("cpu"))
    finally:
        config.write_text(text)
    needed = 96 * 96 * 64 * 4 * (32 + 16) / 1e6
    assert needed < taken["mb"] - taken["before_mb"] < 12 * needed
    assert 50 < taken["before_mb"] < 2000


def test_a_plateau_is_less_than_four_percent_over_two_fifths():
    def fifths(*means):
        return [mean for mean in means for _ in range(10)]

    assert has_plateaued(fifths(2, 1, 0.5, 0.7, 0.481)) is True
    assert has_plateaued(fifths(2, 1, 0.5, 0.479, 0.479)) is False
    assert has_plateaued(list(np.linspace(2, 1, 50))) is False
    assert has_plateaued([0.5] * 25) is True and has_plateaued([0.5] * 24) is None
    assert converged_in_words([True, True]) == "yes"
    assert (
        converged_in_words([True, False, None, False]) == "has not plateaued (folds 2, 4); too short to tell (fold 3)"
    )


def test_scores_of_masks_in_closed_form():
    """A cube moved by two voxels of 2.5 mm; a label that neither holds; nothing said where there is nothing."""
    grid = Grid((20, 18, 16), np.diag([-0.9, 0.8, 2.5, 1.0]))
    truth = np.zeros(grid.shape, np.uint16)
    truth[5:12, 5:12, 3:8] = 2
    moved = np.roll(truth, 2, axis=2)
    score = score_masks("case", moved, truth, grid, 4)
    assert score.dice == pytest.approx(3 / 5) and score.iou == pytest.approx(3 / 7)
    assert score.accuracy == pytest.approx(1 - 2 * 2 * 49 / truth.size)
    assert score.hd95_mm == pytest.approx(5.0) and score.missed == 0
    nothing = np.zeros_like(truth)
    assert score_masks("case", nothing, nothing, grid, 4).dice == 1
    wrong = score_masks("case", truth, nothing, grid, 4)
    assert (wrong.dice, wrong.iou, wrong.hd95_mm, wrong.missed) == (0, 0, None, 1)
    flat = Grid((20, 18, 1), grid.affine)
    assert score_masks("case", moved[..., 4:5], truth[..., 4:5], flat, 4).hd95_mm is None


def test_the_floor_is_the_best_mask_of_one_label_everywhere():
    random = np.random.default_rng(0)
    grid = Grid((9, 8, 7), np.eye(4))
    for classes in (2, 4):
        truth = random.choice(
            classes, size=grid.shape, p=np.array([8, 4, 2, 1][:classes]) / sum([8, 4, 2, 1][:classes])
        )
        constant = [score_masks("case", np.full_like(truth, c), truth, grid, classes).dice for c in range(classes)]
        assert score_masks("case", truth, truth, grid, classes).floor == pytest.approx(max(constant), abs=1e-12)
    assert score_masks("case", truth, np.zeros_like(truth), grid, 4).floor == 1


def test_faithful_is_said_of_the_papers_networks_alone():
    vgg = {"widths": [64, 128, 256, 512, 512]}
    assert mode_of("unet", {"widths": [64, 128, 256, 512, 1024], "padding": "valid", "norm": None}) == "faithful"
    assert mode_of("fcn", {**vgg, "mode": "faithful", "norm": None, "fc_width": 4096}) == "faithful"
    assert mode_of("segnet", vgg) == "faithful"
    assert mode_of("segnet", {"widths": [16, 32]}) == "practical: widths 16 to 32 (paper: 64 to 512)"
    assert mode_of("unet", {"widths": [16, 32], "padding": "same", "norm": "batch"}).startswith(
        "practical: padded, batch"
    )
    assert mode_of("fcn", {**vgg, "mode": "practical", "norm": None, "fc_width": 4096}).startswith("practical: FCN-8s")


def test_a_comparison_inside_the_data_is_no_data(data, straight):
    """Its pictures are never taken for scans of the next plan."""
    inside = data / "report"
    inside.symlink_to(straight[0], target_is_directory=True)
    try:
        found = find_cases(data)
        assert [case.name for case in found.cases] == ["case0", "case1", "case2"]
        assert "output of fewscan" in {skipped.reason for skipped in found.skipped}
    finally:
        inside.unlink()


def test_truth_and_mask_are_cut_alike(tmp_path):
    """The overlay of a mask, cut where the truth holds most, shows the truth's slice and not its own fullest."""
    from PIL import Image

    from fewscan.labels import LabelTable
    from fewscan.masks import write_overlay

    grid, table = Grid((20, 18, 16), np.diag([-1.0, 1, 1, 1])), LabelTable.from_json(["liver"])
    truth, mask = ball(grid.shape, [5, 5, 4], 3.5), ball(grid.shape, [14, 12, 11], 3.5)
    image = np.random.default_rng(0).normal(size=(1, *grid.shape))
    files = [tmp_path / f"{name}.png" for name in ("alike", "alone", "empty")]
    write_overlay(image, mask, grid, table, files[0], cuts_by=truth)
    write_overlay(image, mask, grid, table, files[1])
    write_overlay(image, truth * 0, grid, table, files[2], cuts_by=truth)
    alike, alone, empty = (np.asarray(Image.open(file)).astype(int)[:400, :1100] for file in files)
    assert np.array_equal(alike, empty) and not np.array_equal(alike[:, :400], alone[:, :400])


def test_copies_of_an_image_are_never_on_both_sides(tmp_path):
    label = np.zeros((12, 12, 12), np.uint8)
    label[4:8, 4:8, 4:8] = 1
    for number, name in enumerate("abcdef"):  # a is b, c is d, e is f
        image = np.random.default_rng(number // 2).normal(500, 99, label.shape).astype(np.int16)
        save_nifti(tmp_path / "images" / f"{name}.nii.gz", image)
        save_nifti(tmp_path / "labels" / f"{name}.nii.gz", label)
    material = read_material(tmp_path)
    grouping = groups_of(material)
    folds, why = make_folds(material.cases.cases, tmp_path, grouping=(grouping.of_case, grouping.how))
    tested = sorted(tuple(case.name for case in fold.test) for fold in folds)
    assert tested == [("a", "b"), ("c", "d"), ("e", "f")] and "near-identical" in why
    assert all(len(fold.training) == 4 for fold in folds) and not grouping.warnings


def write_scans(folder, images):
    """One ball as the label of all, and what is in the images: {name: (20, 18, 16)}."""
    label = ball((20, 18, 16), [9, 8, 7], 4)
    for name, image in images.items():
        save_nifti(folder / "images" / f"{name}.nii.gz", image.astype(np.int16), np.diag([-1.0, 1.1, 1.2, 1]))
        save_nifti(folder / "labels" / f"{name}.nii.gz", label, np.diag([-1.0, 1.1, 1.2, 1]))
    return folder


def test_copies_on_both_sides_are_said(tmp_path):
    image = np.random.default_rng(0).normal(500, 99, (20, 18, 16))
    write_scans(tmp_path, {"a": image, "b": 2 * image, "c": 3 * image})
    grouping = groups_of(read_material(tmp_path))
    assert grouping.of_case == ("a", "b", "c")
    assert grouping.warnings == ("all images are near-identical (a and b, a and c, b and c), so this is hardly a test",)


def test_no_scan_beside_a_tested_one_is_trained_on(tmp_path, monkeypatch, capsys):
    """Each scan shares half of its noise with the next; their names count 0 to 11, which is not their order."""
    noise = np.random.default_rng(0).normal(250, 99, (13, 20, 18, 16))
    data = write_scans(tmp_path / "data", {f"s{n}": noise[n] + noise[n + 1] for n in range(12)})
    output, said = tmp_path / "report", "he images look like neighbouring slices of one stack: this holds for more"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "train", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        compare(data, output, networks=["unet"], steps=2, device="cpu")
    folds = result_of(output)["folds"]
    tested = [[int(name[1:]) for name in fold["test"]] for fold in folds]
    assert tested == [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9], [10, 11]]
    for fold, numbers in zip(folds, tested, strict=True):
        beside = {number + step for number in numbers for step in (-1, 0, 1)}
        assert {int(name[1:]) for name in fold["training"]} == set(range(12)) - beside
    assert f"T{said}" in (output / "index.html").read_text(encoding="utf-8") and f"t{said}" in capsys.readouterr().out
    assert [said in warning for warning in result_of(output)["warnings"]] == [True]
