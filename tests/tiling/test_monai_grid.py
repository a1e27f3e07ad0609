"""The mode "monai" is MONAI's own sliding window: the same patches, window, answer, and masks of a bundle."""

import json

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet

from fewscan.tiling import OverlapTileInferer, blend_tiles
from fewscan.tiling.layout import gaussian

NETWORK = {"in_channels": 1, "out_channels": 3, "channels": [4, 8, 16], "strides": [2, 2]}  # instance norm


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.sampled_from([0.0, 0.25, 0.5, 0.625, 0.99]))
def test_patches_lie_where_monai_has_them(n, patch, overlap):
    starts = [one.read[0].start for one in blend_tiles((n,), (patch,), overlap, snap=True)]
    if n < patch:
        assert starts == [-((patch - n) // 2)]
        return
    step = patch if n == patch else max(1, int(patch * (1 - overlap)))
    assert starts == [along.start for (along,) in dense_patch_slices((n,), (patch,), (step,))]


@pytest.mark.parametrize("patch", [(7,), (64, 5), (96, 96, 96), (16, 40, 9)])
def test_the_window_is_monais(patch):
    assert torch.equal(gaussian(patch), compute_importance_map(patch, mode="gaussian", sigma_scale=0.125))


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5])
@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((61, 37), (24, 32)),  # the first axis is the longest, as in MONAI's order
        ((37, 90), (24, 32)),
        ((11, 50), (24, 32)),  # smaller than the patch along one axis
        ((7, 13), (24, 32)),
        ((24, 32), (24, 32)),
        ((27, 21, 30), (16, 16, 12)),
        ((11, 40, 9), (16, 16, 12)),
    ],
)
def test_logits_and_labels_are_monais(shape, patch, overlap):
    torch.manual_seed(0)
    network, volume = UNet(len(shape), **NETWORK).eval(), torch.randn(2, 1, *shape)
    with torch.inference_mode():
        expected = sliding_window_inference(volume, patch, 1, network, overlap, mode="gaussian", sigma_scale=0.125)
        answer = OverlapTileInferer(len(shape), patch=patch, overlap=overlap, mode="monai")(volume, network)
    assert torch.equal(answer, expected)  # to the last bit: the same products in the same order
    assert len(answer.argmax(1).unique()) > 1


def test_patches_in_batches_differ_by_rounding_alone():
    """MONAI fills a batch with patches of the next volume, and convolutions round otherwise in other batches."""
    torch.manual_seed(0)
    network, volume, patch = UNet(3, **NETWORK).eval(), torch.randn(2, 1, 27, 21, 30), (16, 16, 12)
    with torch.inference_mode():
        expected = sliding_window_inference(volume, patch, 4, network, 0.5, mode="gaussian")
        answer = OverlapTileInferer(3, patch=patch, batch=4, mode="monai")(volume, network)
    assert (answer - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert torch.equal(answer.argmax(1), expected.argmax(1))


def test_a_bundle_of_monais_own_parts_gives_the_same_masks(tmp_path):
    """Its inferer exchanged in inference.json, and nothing else."""
    torch.manual_seed(0)
    (tmp_path / "models").mkdir()
    torch.save(UNet(3, **NETWORK).state_dict(), tmp_path / "models" / "model.pt")
    affine, random = np.diag([-0.9, 0.8, 2.5, 1]), np.random.default_rng(0)
    for name, shape in (("one", (31, 22, 18)), ("two", (9, 26, 40))):
        image = nibabel.Nifti1Image(random.normal(size=shape).astype(np.float32), affine)
        nibabel.save(image, tmp_path / f"{name}.nii.gz")
    config = {
        "images": [str(tmp_path / "one.nii.gz"), str(tmp_path / "two.nii.gz")],
        "network": {"_target_": "UNet", "spatial_dims": 3, **NETWORK},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
                {"_target_": "NormalizeIntensityd", "keys": "image"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in @images]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [16, 16, 12],
            "sw_batch_size": 2,
            "overlap": 0.25,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@masks", "separate_folder": False},
            ],
        },
        "handlers": [
            {
                "_target_": "CheckpointLoader",
                "load_path": str(tmp_path / "models" / "model.pt"),
                "load_dict": {"model": "@network"},
            }
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "cpu",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }
    ours = {
        "_target_": "fewscan.tiling.OverlapTileInferer",
        "spatial_dims": 3,
        "patch": [16, 16, 12],
        "batch": 2,
        "overlap": 0.25,
        "mode": "monai",
    }
    for name, changes in (("monai", {}), ("fewscan", {"inferer": ours})):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({**config, "masks": str(tmp_path / name), **changes}))
        parser = ConfigParser()
        parser.read_config(file)
        parser.get_parsed_content("run")
    for name in ("one", "two"):
        expected, found = (nibabel.load(tmp_path / who / f"{name}_trans.nii.gz") for who in ("monai", "fewscan"))
        np.testing.assert_array_equal(found.affine, expected.affine)
        np.testing.assert_array_equal(found.get_fdata(), expected.get_fdata())
        assert len(np.unique(found.get_fdata())) > 1
