"""Layouts of other tools, with voxels in them: what is learned is what they mean."""

import json

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ball, configure, write_volumes
from fewscan.errors import LabelError
from fewscan.training.fingerprint import read_fingerprint
from fewscan.training.plan import plan
from fewscan.training.run import train

SHAPE = (20, 18, 16)
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)


def volumes(number):
    """(T1, T2, label 0, 1, 2): the second label is a smaller ball inside the first."""
    random = np.random.default_rng(number)
    label = ball(SHAPE, (10, 9, 8), 5) + ball(SHAPE, (10, 9, 8), 3)
    first = (random.normal(100, 10, SHAPE) + 80 * (label > 0)).astype(np.float32)
    return first, (500 - 2 * first).astype(np.float32), label


def planned(data, bundle, **options):
    plan(data, bundle, **options)
    files = [json.loads((bundle / "configs" / name).read_text()) for name in ("train.json", "datalist.json")]
    return *files, read_fingerprint(bundle)


def test_nnunet_of_the_second_version(tmp_path):
    for number in range(3):
        first, second, label = volumes(number)
        label[0, 0, :5] = 3  # undecided
        save(tmp_path / "imagesTr" / f"p_{number:03d}_0000.nii.gz", first)
        save(tmp_path / "imagesTr" / f"p_{number:03d}_0001.nii.gz", second)
        save(tmp_path / "labelsTr" / f"p_{number:03d}.nii.gz", label)
        save(tmp_path / "imagesTs" / f"q_{number:03d}_0000.nii.gz", first)
    listing = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "organ": 1, "tumour": 2, "ignore": 3},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    config, datalist, fingerprint = planned(tmp_path, tmp_path / "bundle")
    assert [(row["name"], row["suffix"]) for row in config["channels"]] == [("T1", "_0000"), ("T2", "_0001")]
    assert [(row["value"], row["name"]) for row in config["labels"]] == [(1, "organ"), (2, "tumour")]
    assert config["unlabelled"] == 3
    assert datalist["training"][0] == {
        "image": ["imagesTr/p_000_0000.nii.gz", "imagesTr/p_000_0001.nii.gz"],
        "label": "labelsTr/p_000.nii.gz",
    }
    case = fingerprint.cases[0]
    label = volumes(0)[2]
    label[0, 0, :5] = 3
    assert (*case.voxels, case.unlabelled) == tuple(np.bincount(label.ravel()))
    first, second, _ = volumes(0)
    medians = [np.median(first), np.median(second)]
    assert [channel[3] for channel in case.intensities] == pytest.approx(medians, rel=1e-5)


def test_nnunets_pictures(tmp_path):
    for number in range(3):
        image, label = np.zeros((40, 48), dtype=np.uint8), np.zeros((40, 48), dtype=np.uint8)
        image[10:20, 10 + number : 30] = 200
        label[10:20, 10 + number : 30] = 1
        save(tmp_path / "imagesTr" / f"c{number}_0000.png", image)
        save(tmp_path / "labelsTr" / f"c{number}.png", label)
    listing = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    config, datalist, fingerprint = planned(tmp_path, tmp_path / "bundle")
    assert config["spatial_dims"] == 2
    assert [case["label"] for case in datalist["training"]] == [f"labelsTr/c{n}.png" for n in range(3)]
    assert [case.voxels[1] for case in fingerprint.cases] == [200, 190, 180]


def test_nnunets_regions_are_refused_with_their_name(tmp_path):
    first, _, label = volumes(0)
    save(tmp_path / "imagesTr" / "p_0000.nii.gz", first)
    save(tmp_path / "labelsTr" / "p.nii.gz", label)
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    listing = {"channel_names": {"0": "T1"}, "labels": labels, "regions_class_order": [1, 2], "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    with pytest.raises(LabelError, match="'whole' is a region of several values"):
        plan(tmp_path, tmp_path / "bundle")


def test_decathlon_with_channels_along_the_fourth_axis(tmp_path):
    for number in range(3):
        first, second, label = volumes(number)
        save(tmp_path / "imagesTr" / f"b_{number}.nii.gz", np.stack([first, second], axis=-1))
        save(tmp_path / "labelsTr" / f"b_{number}.nii.gz", label)
    listing = {
        "name": "two",
        "tensorImageSize": "4D",
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema", "2": "tumour"},
        "training": [{"image": f"./imagesTr/b_{n}.nii.gz", "label": f"./labelsTr/b_{n}.nii.gz"} for n in range(3)],
        "test": ["./imagesTs/b_9.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    config, datalist, fingerprint = planned(tmp_path, tmp_path / "bundle")
    assert [(row["name"], row["index"]) for row in config["channels"]] == [("FLAIR", 0), ("T1w", 1)]
    assert [row["name"] for row in config["labels"]] == ["edema", "tumour"]
    assert datalist["training"][1] == {"image": "imagesTr/b_1.nii.gz", "label": "labelsTr/b_1.nii.gz"}
    first, second, label = volumes(1)
    case = fingerprint.cases[1]
    assert case.voxels == tuple(np.bincount(label.ravel()))
    medians = [np.median(first), np.median(second)]
    assert [channel[3] for channel in case.intensities] == pytest.approx(medians, rel=1e-5)


def test_a_monai_datalist_keeps_its_parts(tmp_path):
    data = write_volumes(tmp_path / "data")
    items = [{"image": f"images/case{n}.nii.gz", "label": f"labels/case{n}.nii.gz"} for n in range(4)]
    (data / "list.json").write_text(json.dumps({"training": items[:3], "validation": items[3:]}))
    _, datalist, _ = planned(data / "list.json", tmp_path / "bundle")
    assert (datalist["training"], datalist["validation"]) == (items[:3], items[3:])


def test_a_value_without_a_decision_is_not_learned_from(tmp_path):
    """`--unlabelled 255`: it is no class, it is counted, and a network can be trained beside it."""
    data = write_volumes(tmp_path / "data")
    for file in (data / "labels").iterdir():
        image = nibabel.load(file)
        label = np.asarray(image.dataobj).copy()
        label[:, :, 12:] = 255
        nibabel.save(nibabel.Nifti1Image(label, image.affine), file)
    config, _, fingerprint = planned(data, tmp_path / "bundle", unlabelled=255, validation=1)
    assert [row["value"] for row in config["labels"]] == [1]
    assert config["unlabelled"] == 255
    assert {case.unlabelled for case in fingerprint.cases} == {20 * 18 * 4}
    configure(tmp_path / "bundle", patch=[16] * 3, epochs=1, steps_per_epoch=2)
    train(tmp_path / "bundle", device="cpu")
    weights = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in weights.values())
