"""Border weights, class weights, unlabelled voxels and sparse slices through a whole training, from files on."""

import json
import math

import nibabel
import numpy as np
import pytest
import torch

from conftest import configure, write_volumes
from fewscan.bundle import read_json, write_bundle
from fewscan.runs.predictor import Predictor
from fewscan.scans import open_scan
from fewscan.training.run import train

HELD_OUT = "case3"


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("weighted") / "data")


def relabelled(volumes, folder, change):
    """Copies of the cases; their labels changed by `change(label, case)`."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for image in sorted((volumes / "images").iterdir()):
        (folder / "images" / image.name).write_bytes(image.read_bytes())
        label = nibabel.load(volumes / "labels" / image.name)
        values = change(np.asarray(label.dataobj).copy(), image.name.removesuffix(".nii.gz"))
        nibabel.save(nibabel.Nifti1Image(values, label.affine), folder / "labels" / image.name)
    return folder


def trained(data, bundle, dims=3, epochs=1, **settings):
    """A bundle of two steps an epoch on three cases; the fourth is held out."""
    names = sorted(path.name for path in (data / "images").iterdir())
    entries = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
    is_held_out = [name.startswith(HELD_OUT) for name in names]
    datalist = {
        "training": [entry for entry, out in zip(entries, is_held_out, strict=True) if not out],
        "validation": [entry for entry, out in zip(entries, is_held_out, strict=True) if out],
    }
    decided = {
        "spatial_dims": dims,
        "channels": [{"name": "image"}],
        "labels": ["ball"],
        "spacing": [1.0, 1.1, 1.2],
        "slice_axis": 2 if dims == 2 else None,
        "patch": [16, 16, 16][:dims],
        "dataset_dir": str(data),
        "seed": 0,
        **settings,
    }
    write_bundle(bundle, decided, datalist, {})
    configure(bundle, epochs=epochs, steps_per_epoch=2, val_interval=epochs)
    train(bundle, device="cpu")
    return bundle


def weights(bundle):
    return torch.load(bundle / "models" / "model.pt", weights_only=True)


def equal(one, other):
    return all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def half_open(value):
    """In one half of each case nothing is annotated, in one half of the ball too."""

    def change(label, case):
        label = label.astype(np.int16)
        label[int(np.nonzero(label)[0].mean()) :] = value
        return label

    return change


SETTINGS = {
    "border": {"border_weights": {"height": 10.0, "sd": 5.0}},
    "classes": {"class_weights": [0.2, 3.0]},
    "sparse": {"sparse": 1},
    "all": {
        "border_weights": {"height": 10.0, "sd": 5.0},
        "class_weights": [0.2, 3.0],
        "sparse": 0,
        "unlabelled": 9,
        "merge_masks": True,
    },
}


@pytest.fixture(scope="module")
def halves(volumes, tmp_path_factory):
    """Each ball in two halves, a voxel apart: what is between them has a border weight, in each slice."""

    def cut(label, case):
        label[int(np.nonzero(label)[0].mean())] = 0
        return label

    return relabelled(volumes, tmp_path_factory.mktemp("halves") / "data", cut)


@pytest.fixture(scope="module", params=[2, 3])
def plain(halves, tmp_path_factory, request):
    """(dims, what training without any of the settings gives)."""
    return request.param, trained(halves, tmp_path_factory.mktemp("plain") / "bundle", request.param)


@pytest.mark.parametrize("name", SETTINGS)
def test_trains_otherwise_with_each_setting_and_remembers_it(halves, plain, tmp_path, name):
    dims, without = plain
    bundle = trained(halves, tmp_path / "bundle", dims, **SETTINGS[name])
    assert not equal(bundle, without)
    record = read_json(bundle / "models" / "training.json")
    assert all(record["settings"][key] == value for key, value in SETTINGS[name].items())
    assert 0 <= record["validation"]["val_mean_dice"] <= 1
    history = (bundle / "models" / "history.csv").read_text().splitlines()
    losses = [float(line.split(",")[2]) for line in history[1:]]
    assert losses and all(math.isfinite(loss) for loss in losses)


def test_the_value_that_marks_what_is_unlabelled_does_not_matter(volumes, tmp_path):
    """The same weights to the last bit; other ones where it is taken for background."""
    bundles = [
        trained(relabelled(volumes, tmp_path / f"data{value}", half_open(value)), tmp_path / f"b{value}", **settings)
        for value, settings in ((9, {"unlabelled": 9}), (-5, {"unlabelled": -5}), (0, {}))
    ]
    assert equal(bundles[0], bundles[1])
    assert not equal(bundles[0], bundles[2])


def test_scores_of_held_out_cases_leave_out_what_nobody_annotated(volumes, tmp_path):
    """The score in training.json is the Dice over the known voxels of the mask that the bundle gives."""
    data = relabelled(volumes, tmp_path / "data", half_open(9))
    bundle = trained(data, tmp_path / "bundle", epochs=15, unlabelled=9)
    answer = Predictor(bundle, "cpu")(open_scan([data / "images" / f"{HELD_OUT}.nii.gz"])) > 0
    truth = np.asarray(nibabel.load(data / "labels" / f"{HELD_OUT}.nii.gz").dataobj)
    known = truth != 9
    assert answer[~known].any() and answer[known].any() and (truth == 1).any()
    dice = 2 * (answer & (truth == 1)).sum() / (answer[known].sum() + (truth == 1).sum())
    record = json.loads((bundle / "models" / "training.json").read_text())
    assert record["validation"]["val_mean_dice"] == pytest.approx(dice, abs=1e-6)


def test_patches_of_sparse_cases_hold_annotated_slices(volumes, tmp_path):
    """A 2D network never sees a slice that nobody annotated."""
    from monai.bundle import ConfigParser

    def thinned(label, case):
        label[:, :, np.arange(label.shape[2]) % 5 != 2] = 0
        return label

    data = relabelled(volumes, tmp_path / "data", thinned)
    bundle = trained(data, tmp_path / "bundle", 2, sparse=2)
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "train.json"))
    parser.update({"bundle_root": str(bundle), "device": "$torch.device('cpu')"})
    items = parser.get_parsed_content("train::dataset")
    for number in range(20):
        label = items[number]["label"]
        assert (label >= 0).float().mean() > 0.5
