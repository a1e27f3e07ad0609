"""Uncertainty maps: what the samples say, where the scan lies, and whether errors are where the variance is."""

import json
import shutil

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy.stats import mannwhitneyu, rankdata

from fewscan.cli import main
from fewscan.errors import BundleError, FewscanError, GeometryError, PairingError
from fewscan.grid import Grid
from fewscan.metrics.detection import detection_auc, share_found
from fewscan.network_grid import to_network_grid, to_scan_grid
from fewscan.networks import UNet
from fewscan.networks.sampling import dropout_on, mean_and_variance
from fewscan.runs import uncertainty as module
from fewscan.runs.predictor import Predictor
from fewscan.runs.uncertainty import uncertainty
from fewscan.scans import open_scan
from fewscan.tiling import OverlapTileInferer
from runs.tiny import change_config, files_below, noise, read, save_nifti, unet_bundle
from scans.dicom_series import write_series
from scans.volumes import AFFINES
from test_network_grid import decide

SAMPLES = 5


def with_dropout(bundle, dropout=0.5):
    config = json.loads((bundle / "configs" / "inference.json").read_text())
    change_config(bundle, network_def={**config["network_def"], "dropout": dropout})
    return bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Two labels, values 1 and 2."""
    return with_dropout(unet_bundle(tmp_path_factory.mktemp("bundles") / "two"))


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    """One label, 2D, value 255."""
    folder = tmp_path_factory.mktemp("bundles") / "one"
    return with_dropout(unet_bundle(folder, dims=2, labels=[{"name": "cell", "value": 255}]))


def figures_of(output):
    return json.loads((output / "uncertainty.json").read_text())


# The maps.


def test_the_maps_are_numpys_over_stored_passes_on_the_scans_own_affine(tmp_path, bundle):
    file = save_nifti(tmp_path / "scans" / "sub" / "x.nii.gz", noise(1), AFFINES["oblique"])
    report = uncertainty(tmp_path / "scans", bundle, tmp_path / "maps", samples=SAMPLES, seed=7, device="cpu")
    assert report.exit_code == 0
    predictor, scan = Predictor(bundle, "cpu"), open_scan([file])
    image = predictor.prepare(scan)["image"]
    with torch.inference_mode(), dropout_on(predictor.network, 7):
        passes = [torch.softmax(predictor.logits(image).as_subclass(torch.Tensor), 0) for _ in range(SAMPLES)]
    stored = np.stack([to_scan_grid(p, np.asarray(image.affine), scan.grid) for p in passes])
    for value in (1, 2):
        np.testing.assert_allclose(
            read(tmp_path / "maps" / "sub" / f"x_mean_{value}.nii.gz"), stored.mean(axis=0)[value], atol=1e-6
        )
    variance = nibabel.load(tmp_path / "maps" / "sub" / "x_variance.nii.gz")
    assert variance.get_data_dtype() == np.float32 and stored.var(axis=0).max() > 1e-4
    np.testing.assert_allclose(variance.dataobj, stored.var(axis=0).mean(axis=0), atol=1e-7)
    np.testing.assert_array_equal(variance.affine, nibabel.load(file).affine)
    assert files_below(tmp_path / "maps" / "sub") == [
        "x_mean_1.nii.gz", "x_mean_2.nii.gz", "x_uncertainty.png", "x_variance.nii.gz",
    ]  # fmt: skip


def test_numbers_come_back_to_the_scan_as_the_decision_does():
    scan = Grid((9, 8, 7), AFFINES["oblique"])
    _, network = to_network_grid(torch.zeros(1, 9, 8, 7), scan, spacing_mm=(1.3, 0.7, 2.1))
    logits = torch.randn(3, *network.shape, generator=torch.Generator().manual_seed(0))
    back = to_scan_grid(torch.softmax(logits, 0), network.affine, scan)
    assert back.shape == (3, 9, 8, 7)
    np.testing.assert_allclose(back.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_array_equal(back.argmax(axis=0), decide(logits, network.affine, scan))


def test_a_seam_between_tiles_is_none_of_mean_and_variance():
    """Tiles draw their own dropout; the moments of tiled and of whole samples agree within their random errors."""
    torch.manual_seed(0)
    network, image, count = UNet(2, 1, 2, (4, 8), dropout=0.5), torch.randn(1, 1, 96, 12), 300
    moments = []
    for seed, tile in enumerate([(56, 56), (96, 96)]):  # cores of 8 rows between halos of 24, and everything at once
        ask = OverlapTileInferer(2, tile)
        with torch.inference_mode(), dropout_on(network, seed):
            moments.append(mean_and_variance(torch.softmax(ask(image, network), 1).double() for _ in range(count)))
    (tiled, variance), (whole, other) = moments
    errors = (tiled - whole) / ((variance + other) / count).sqrt()
    assert not torch.equal(tiled, whole) and errors.abs().max() < 6 and errors.square().mean() < 2
    assert float(variance.mean() / other.mean()) == pytest.approx(1, abs=0.1)


def test_a_place_in_mm_keeps_its_place(tmp_path):
    scan = Grid((9, 8, 7), AFFINES["permuted"])
    _, network = to_network_grid(torch.zeros(1, 9, 8, 7), scan, spacing_mm=None)
    places = network.to_mm(np.stack(np.meshgrid(*map(np.arange, network.shape), indexing="ij"), -1))
    back = to_scan_grid(torch.from_numpy(places).movedim(-1, 0), network.affine, scan)
    expected = scan.to_mm(np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"), -1))
    np.testing.assert_allclose(np.moveaxis(back, 0, -1), expected, atol=1e-3)


def test_pictures_give_tiffs_and_dicom_gives_nifti(tmp_path, bundle, binary):
    (tmp_path / "scans").mkdir()
    Image.fromarray((noise(4, (13, 21)) // 4).astype(np.uint8)).save(tmp_path / "scans" / "cell.png")
    assert uncertainty(tmp_path / "scans", binary, tmp_path / "flat", samples=2).exit_code == 0
    mean = tifffile.imread(tmp_path / "flat" / "cell_mean.tif")
    assert mean.dtype == np.float32 and mean.shape == (13, 21) and 0 <= mean.min() < mean.max() <= 1
    assert tifffile.imread(tmp_path / "flat" / "cell_variance.tif").shape == (13, 21)
    write_series(tmp_path / "dicom" / "t1", noise(3), AFFINES["oblique"])
    assert uncertainty(tmp_path / "dicom", bundle, tmp_path / "volumes", samples=2).exit_code == 0
    affine = nibabel.load(tmp_path / "volumes" / "t1_variance.nii.gz").affine
    scan = open_scan([tmp_path / "dicom" / "t1"])
    np.testing.assert_allclose(affine, scan.grid.affine, atol=1e-5)


def test_a_seed_gives_the_same_maps_whatever_the_other_scans(tmp_path, bundle):
    for number in (1, 2):
        save_nifti(tmp_path / "scans" / f"{number}.nii", noise(number))
    uncertainty(tmp_path / "scans", bundle, tmp_path / "both", samples=3)
    uncertainty(tmp_path / "scans", bundle, tmp_path / "second", samples=3, include=["2.nii"])
    uncertainty(tmp_path / "scans", bundle, tmp_path / "other", samples=3, seed=1)
    for kind in ("mean_1", "variance"):
        first = (tmp_path / "both" / f"2_{kind}.nii.gz").read_bytes()
        assert first == (tmp_path / "second" / f"2_{kind}.nii.gz").read_bytes()
        assert first != (tmp_path / "other" / f"2_{kind}.nii.gz").read_bytes()


# Errors.


@pytest.mark.parametrize("ties", [False, True])
def test_the_auc_is_that_of_scipy_and_of_all_pairs(ties):
    random = np.random.default_rng(0)
    scores = random.random((6, 5, 4))
    scores = np.round(scores, 1) if ties else scores
    wrong = random.random(scores.shape) < scores
    good, bad = scores[~wrong], scores[wrong]
    pairs = (bad[:, None] > good).mean() + 0.5 * (bad[:, None] == good).mean()
    assert detection_auc(scores, wrong) == pytest.approx(pairs, abs=1e-12)
    assert detection_auc(scores, wrong) == pytest.approx(
        mannwhitneyu(bad, good).statistic / (len(bad) * len(good)), abs=1e-12
    )
    assert detection_auc(rankdata(scores).reshape(scores.shape), wrong) == pytest.approx(pairs, abs=1e-12)


def test_the_auc_of_nothing_to_tell_apart_is_none():
    scores = np.arange(4.0)
    assert detection_auc(scores, scores < 0) is None and detection_auc(scores, scores >= 0) is None
    assert detection_auc(np.ones(4), scores < 1) == 0.5


def test_the_share_of_errors_among_the_most_uncertain():
    scores, wrong = np.arange(100.0), np.zeros(100, bool)
    wrong[[99, 97, 50, 3]] = True
    assert share_found(scores, wrong, 0.05) == 0.5 and share_found(scores, wrong, 0.5) == 0.75
    assert share_found(np.ones(100), wrong, 0.05) == pytest.approx(0.05)  # what chance gives
    assert share_found(scores, np.zeros(100, bool), 0.05) is None


def test_the_figures_are_those_of_the_written_maps(tmp_path, binary):
    for number, name in enumerate(("a", "b"), start=1):
        for folder in ("images", "masks"):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        image = (noise(number, (24, 30)) // 4).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{name}.png")
        truth = 255 * (noise(number + 5, (24, 30)) > 500).astype(np.uint8)
        Image.fromarray(truth).save(tmp_path / "data" / "masks" / f"{name}_mask.png")
    report = uncertainty(tmp_path / "data", binary, tmp_path / "maps", samples=4, score=True)
    assert report.exit_code == 0
    told = figures_of(tmp_path / "maps")
    aucs = []
    for row in told["scans"]:
        mean, variance = (tifffile.imread(tmp_path / "maps" / f"{row['scan']}_{k}.tif") for k in ("mean", "variance"))
        truth = np.asarray(Image.open(tmp_path / "data" / "masks" / f"{row['scan']}_mask.png")) == 255
        wrong = (mean > 0.5) != truth
        bad, good = variance[wrong].astype(np.float64), variance[~wrong].astype(np.float64)
        assert row["wrong"] == pytest.approx(wrong.mean()) and 0.1 < row["wrong"] < 0.9
        assert row["auc"] == pytest.approx(mannwhitneyu(bad, good).statistic / bad.size / good.size)
        assert row["variance_wrong"] == pytest.approx(bad.mean()) and row["variance_right"] == pytest.approx(
            good.mean()
        )
        top = np.argsort(variance.ravel())[-72:]  # a tenth
        assert row["errors_in_top_10_percent"] == pytest.approx(wrong.ravel()[top].sum() / wrong.sum(), abs=0.01)
        aucs.append(row["auc"])
        picture = Image.open(tmp_path / "maps" / f"{row['scan']}_uncertainty.png")
        assert picture.width > 3 * 512 and (np.asarray(picture) == (255, 230, 0)).all(-1).any()
    assert told["means"]["auc"] == pytest.approx(np.mean(aucs))
    table = (tmp_path / "maps" / "uncertainty.csv").read_text().splitlines()
    assert len(table) == 3 and table[0].startswith("scan,status,mean_variance,wrong")


def test_what_nobody_annotated_is_neither_right_nor_wrong(tmp_path, binary):
    """The figures of the known half of a picture, whose other half holds the value that train.json calls unlabelled."""
    bundle = tmp_path / "bundle"
    shutil.copytree(binary, bundle)
    file = bundle / "configs" / "train.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "unlabelled": 7}))
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    Image.fromarray((noise(1, (24, 30)) // 4).astype(np.uint8)).save(tmp_path / "data" / "images" / "a.png")
    truth = 255 * (noise(6, (24, 30)) > 500).astype(np.uint8)
    truth[:, 15:] = 7
    Image.fromarray(truth).save(tmp_path / "data" / "masks" / "a_mask.png")
    uncertainty(tmp_path / "data", bundle, tmp_path / "maps", samples=4, score=True)
    row = figures_of(tmp_path / "maps")["scans"][0]
    mean, variance = (tifffile.imread(tmp_path / "maps" / f"a_{k}.tif")[:, :15] for k in ("mean", "variance"))
    wrong = (mean > 0.5) != (truth[:, :15] == 255)
    assert row["wrong"] == pytest.approx(wrong.mean())
    assert row["auc"] == pytest.approx(
        mannwhitneyu(variance[wrong], variance[~wrong]).statistic / wrong.sum() / (~wrong).sum()
    )


def label(path, value=0):
    return save_nifti(path, np.full((9, 8, 7), value, np.uint8))


def test_labels_are_paired_as_for_plan_and_scans_without_one_are_left_out(tmp_path, bundle):
    """Equal names in two folders: each patient's scan has its own label or none."""
    for patient in ("p1", "p2"):
        save_nifti(tmp_path / "data" / patient / "t1.nii", noise())
    label(tmp_path / "data" / "p1" / "t1_seg.nii", 1)
    uncertainty(tmp_path / "data", bundle, tmp_path / "maps", samples=2, score=True)
    (row,) = figures_of(tmp_path / "maps")["scans"]
    mean = [read(tmp_path / "maps" / f"{row['scan']}_mean_{value}.nii.gz") for value in (1, 2)]
    answers_one = (mean[0] > mean[1]) & (2 * mean[0] + mean[1] > 1)
    assert row["scan"].startswith("p1") and row["wrong"] == pytest.approx(1 - answers_one.mean())


def test_channels_are_one_case(tmp_path, bundle):
    channels = [{"name": "t1", "suffix": "_0000"}, {"name": "t2", "suffix": "_0001"}]
    two = with_dropout(unet_bundle(tmp_path / "two", channels=channels))
    for suffix in ("_0000", "_0001"):
        save_nifti(tmp_path / "data" / "imagesTr" / f"a{suffix}.nii", noise())
    label(tmp_path / "data" / "labelsTr" / "a.nii")
    listing = {"channel_names": {"0": "t1", "1": "t2"}, "labels": {"background": 0, "one": 1, "two": 2}}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({**listing, "file_ending": ".nii", "numTraining": 1}))
    uncertainty(tmp_path / "data", two, tmp_path / "maps", samples=2, score=True)
    told = figures_of(tmp_path / "maps")
    assert told["scored"] == len(told["scans"]) == 1 and told["scans"][0]["wrong"] > 0


# What goes wrong.


def test_a_network_without_dropout_is_refused(tmp_path, bundle):
    plain = with_dropout(shutil.copytree(bundle, tmp_path / "plain"), 0.0)
    save_nifti(tmp_path / "scans" / "a.nii", noise())
    with pytest.raises(BundleError, match=r"inference\.json: the network has no dropout.*network_def\.dropout.*train"):
        uncertainty(tmp_path / "scans", plain, tmp_path / "maps")
    assert not (tmp_path / "maps").exists()


def test_dropout_that_came_after_the_training_is_refused(tmp_path, bundle):
    late = shutil.copytree(bundle, tmp_path / "late")
    network = json.loads((late / "configs" / "inference.json").read_text())["network_def"]
    record = late / "models" / "training.json"
    save_nifti(tmp_path / "scans" / "a.nii", noise())
    record.write_text(json.dumps({"settings": {"network_def": {**network, "dropout": 0.0}}}))
    with pytest.raises(BundleError, match=r"training\.json: the network was trained with network_def .*train again"):
        uncertainty(tmp_path / "scans", late, tmp_path / "maps", samples=2)
    assert not (tmp_path / "maps").exists()
    record.write_text(json.dumps({"settings": {"network_def": network}}))
    assert uncertainty(tmp_path / "scans", late, tmp_path / "maps", samples=2).exit_code == 0


def test_one_bad_scan_does_not_stop_the_others(tmp_path, bundle, capsys):
    for number, name in enumerate("ab"):
        save_nifti(tmp_path / "scans" / f"{name}.nii", noise(number))
    broken = noise(5).astype(np.float32)
    broken[1, 2, 3] = np.nan
    save_nifti(tmp_path / "scans" / "d.nii", broken)
    (tmp_path / "scans" / "e.nii").write_bytes(b"no scan")
    (tmp_path / "scans" / "notes.txt").write_text("no image")
    arguments = ["--bundle", str(bundle), "--output", str(tmp_path / "maps"), "--samples", "2"]
    assert main(["uncertainty", str(tmp_path / "scans"), *arguments]) == 2
    assert "2 scan(s) mapped, 2 failed, 1 other file(s) left out" in capsys.readouterr().out
    left_out = [{"path": str(tmp_path / "scans" / "notes.txt"), "reason": "not an image"}]
    assert figures_of(tmp_path / "maps")["left_out"] == left_out
    reasons = [row["reason"] for row in figures_of(tmp_path / "maps")["scans"] if row["status"] == "failed"]
    for words in ("e.nii", "d.nii: 1 of 504 values are not finite"):
        assert any(words in reason for reason in reasons), words
    assert (tmp_path / "maps" / "b_variance.nii.gz").exists() and not (tmp_path / "maps" / "d_variance.nii.gz").exists()
    assert not [name for name in files_below(tmp_path / "maps") if name.startswith(".")]


def test_one_bad_label_does_not_stop_the_others(tmp_path, bundle, capsys):
    for name in "ab":
        save_nifti(tmp_path / "data" / "images" / f"{name}.nii", noise())
    label(tmp_path / "data" / "labels" / "a.nii", 1)
    save_nifti(tmp_path / "data" / "labels" / "b.nii", np.ones((9, 8, 6), np.uint8))
    arguments = ["--bundle", str(bundle), "--output", str(tmp_path / "maps"), "--samples", "2", "--score"]
    assert main(["uncertainty", str(tmp_path / "data"), *arguments]) == 2
    told = capsys.readouterr().out
    assert "auc: " in told and "figures over 1 of 2 scans" in told and "b.nii (label of" in told
    assert figures_of(tmp_path / "maps")["scored"] == 1
    assert not (tmp_path / "maps" / "b_variance.nii.gz").exists()


def test_files_of_others_are_never_replaced(tmp_path, bundle):
    save_nifti(tmp_path / "scans" / "a.nii", noise())
    mine = save_nifti(tmp_path / "maps" / "a_variance.nii.gz", noise(3))
    before = mine.read_bytes()
    with pytest.raises(BundleError, match="is not empty and not from this command; choose another --output"):
        uncertainty(tmp_path / "scans", bundle, tmp_path / "maps", samples=2)
    (tmp_path / "maps" / "fewscan.json").write_text("{}")
    with pytest.raises(BundleError, match="holds other results of fewscan"):
        uncertainty(tmp_path / "scans", bundle, tmp_path / "maps", samples=2)
    assert mine.read_bytes() == before


def test_a_second_run_replaces_its_own_maps_and_never_reads_them(tmp_path, bundle):
    save_nifti(tmp_path / "a.nii", noise())
    for samples in (2, 3):
        report = uncertainty(tmp_path, bundle, tmp_path / "maps", samples=samples)
        assert [row["scan"] for row in report.rows] == ["a"]
    assert figures_of(tmp_path / "maps")["samples"] == 3
    assert [row["scan"] for row in uncertainty(tmp_path, bundle, tmp_path / "elsewhere", samples=2).rows] == ["a"]


def test_no_map_of_an_earlier_run_stays(tmp_path, bundle):
    for name in "abc":
        save_nifti(tmp_path / "scans" / "sub" / f"{name}.nii", noise())
    maps = tmp_path / "maps"
    uncertainty(tmp_path / "scans", bundle, maps, samples=2)
    mine = save_nifti(maps / "sub" / "mine_variance.nii.gz", noise())
    (tmp_path / "scans" / "sub" / "a.nii").write_bytes(b"no scan")
    broken = noise().astype(np.float32)
    broken[1, 2, 3] = np.nan
    save_nifti(tmp_path / "scans" / "sub" / "b.nii", broken)
    save_nifti(tmp_path / "scans" / "sub" / "d.nii", noise())
    uncertainty(tmp_path / "scans", bundle, maps, samples=2, exclude=["c.nii"])
    assert {name.split("_")[0] for name in files_below(maps / "sub")} == {"d", "mine"} and mine.exists()


@pytest.mark.parametrize("way", ["..", "absolute", "link"])
def test_files_outside_the_folder_stay_whatever_its_json_says(tmp_path, bundle, way):
    save_nifti(tmp_path / "scans" / "a.nii", noise())
    maps = tmp_path / "maps"
    uncertainty(tmp_path / "scans", bundle, maps, samples=2)
    mine = save_nifti(tmp_path / "mine" / "a_variance.nii.gz", noise())
    (maps / "link").symlink_to(mine.parent, target_is_directory=True)
    names = {"..": "../mine/a_variance.nii.gz", "absolute": str(mine), "link": "link/a_variance.nii.gz"}
    told = figures_of(maps)
    told["scans"][0]["files"] += [names[way], "..", "."]
    (maps / "uncertainty.json").write_text(json.dumps(told))
    assert uncertainty(tmp_path / "scans", bundle, maps, samples=2).exit_code == 0
    assert mine.exists()


def test_an_interrupted_run_says_so_and_keeps_what_is_done(tmp_path, bundle, capsys, monkeypatch):
    for name in "abc":
        save_nifti(tmp_path / "scans" / f"{name}.nii", noise())
    arguments = ["--bundle", str(bundle), "--output", str(tmp_path / "maps"), "--samples", "2"]
    assert main(["uncertainty", str(tmp_path / "scans"), *arguments]) == 0
    draw = module._draw

    def interrupted(scan, *others):
        if scan.name == "b":
            raise KeyboardInterrupt
        draw(scan, *others)

    monkeypatch.setattr(module, "_draw", interrupted)
    assert main(["uncertainty", str(tmp_path / "scans"), *arguments]) == 1
    assert "interrupted; the same command begins anew" in capsys.readouterr().err
    assert [row["scan"] for row in figures_of(tmp_path / "maps")["scans"]] == ["a"]
    assert files_below(tmp_path / "maps") == [
        "a_mean_1.nii.gz", "a_mean_2.nii.gz", "a_uncertainty.png", "a_variance.nii.gz",
        "fewscan.json", "uncertainty.csv", "uncertainty.json",
    ]  # fmt: skip


def test_scores_without_any_label_are_refused_before_anything_is_sampled(tmp_path, bundle):
    save_nifti(tmp_path / "scans" / "a.nii", noise())
    with pytest.raises(PairingError, match="no image with a label"):
        uncertainty(tmp_path / "scans", bundle, tmp_path / "maps", score=True)
    assert not (tmp_path / "maps").exists()


def test_one_sample_has_no_variance(tmp_path, bundle):
    with pytest.raises(FewscanError, match="--samples has to be at least 2, not 1"):
        uncertainty(tmp_path, bundle, tmp_path / "maps", samples=1)


def test_numbers_that_are_not_finite_give_no_maps():
    scan = Grid((2, 2, 2), np.eye(4))
    with pytest.raises(BundleError, match="not finite"):
        to_scan_grid(torch.full((1, 2, 2, 2), torch.nan), scan.affine, scan)
    with pytest.raises(GeometryError, match="turned"):
        angle = np.eye(4)
        angle[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
        to_scan_grid(torch.zeros(1, 2, 2, 2), angle, scan)
