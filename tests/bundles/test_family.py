"""FCN and SegNet as bundles: the U-Net's, but for the network and its name; they train and infer as it does."""

import json

import nibabel
import numpy as np
import pytest
import torch

import fewscan.networks
from conftest import NARROW, ROOT, configure, write_volumes
from fewscan.bundle import read_json
from fewscan.runs import measure
from fewscan.runs.segment import segment
from fewscan.training.plan import plan
from fewscan.training.run import train

PLANNED = {  # parameters and GMAC of 512 x 512 pixels or 64 x 64 x 64 voxels, as docs/networks.md has them
    ("unet", 2): (1_084_274, 20.7),
    ("fcn", 2): (2_596_342, 5.5),
    ("segnet", 2): (1_844_978, 10.1),
    ("unet", 3): (1_401_282, 14.1),
    ("fcn", 3): (3_729_566, 6.2),
    ("segnet", 3): (5_523_026, 11.4),
}


@pytest.mark.parametrize("network", ["fcn", "segnet"])
@pytest.mark.parametrize("name", ["train", "inference", "evaluate", "multi_gpu_train", "metadata"])
def test_bundles_differ_only_in_the_network_and_its_name(network, name):
    ours, unet = (
        read_json(ROOT / "bundles" / f"{member}_segmentation" / "configs" / f"{name}.json")
        for member in (network, "unet")
    )
    different = {key for key in {*ours, *unet} if ours.get(key) != unet.get(key)}
    assert different == {
        "train": {"network_def"},
        "inference": {"network_def"},
        "metadata": {"name", "description", "references"},
    }.get(name, set())


@pytest.mark.parametrize("network", NARROW)
def test_trains_and_segments_on_the_scans_own_grid(family, network, tmp_path):
    bundle, data = family(network).bundle, family(network).data
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in weights.values())
    report = segment(data / "images", bundle, tmp_path / "masks", device="cpu", overlays=False)
    assert report.exit_code == 0
    for image in sorted((data / "images").iterdir()):
        mask = nibabel.load(tmp_path / "masks" / image.name.replace(".nii.gz", "_seg.nii.gz"))
        np.testing.assert_array_equal(mask.affine, nibabel.load(image).affine)
        assert set(np.unique(np.asarray(mask.dataobj))) == {0, 1}


@pytest.mark.parametrize("network", NARROW)
def test_plan_fits_the_network_to_two_and_three_dimensions(network, tmp_path):
    data = write_volumes(tmp_path / "data", count=2, shape=(40, 33, 36))
    for dims in (2, 3):
        plan(data, tmp_path / str(dims), network=network, dims=dims)
        config = json.loads((tmp_path / str(dims) / "configs" / "train.json").read_text())
        known = {"spatial_dims": dims, "in_channels": 1, "classes": 2}
        definition = {key: value for key, value in config["network_def"].items() if key != "_target_"}
        kind = getattr(fewscan.networks, config["network_def"]["_target_"].rsplit(".", 1)[1])
        planned = kind(**{**definition, **known}).eval()
        parameters, gmac = PLANNED[network, dims]
        assert measure.parameters(planned) == parameters
        shape = (1, 1, *{2: (512, 512), 3: (64, 64, 64)}[dims])
        assert measure.gmac(planned, shape) == pytest.approx(gmac, abs=0.05)
        assert torch.isfinite(planned(torch.rand(1, 1, *(17,) * dims))).all()


def test_instance_norm_sees_patches_of_its_training(tmp_path):
    """Its answer depends on all that it sees at once: trained, scored and segmented in patches of one size."""
    data, bundle = write_volumes(tmp_path / "data"), tmp_path / "bundle"
    plan(data, bundle, validation=1)
    for name in ("train", "inference"):
        file = bundle / "configs" / f"{name}.json"
        file.write_text(json.dumps({**read_json(file), "patch": [16, 16, 8]}))
    configure(bundle, {"norm": "instance"})
    train(bundle, device="cpu")
    assert 0 < read_json(bundle / "models" / "training.json")["validation"]["val_mean_dice"] <= 1
    seen = []
    forward = fewscan.networks.UNet.forward
    with pytest.MonkeyPatch.context() as patched:

        def look(self, x):
            if x.device.type != "meta":  # where memory is counted, nothing is computed
                seen.append(tuple(x.shape[2:]))
            return forward(self, x)

        patched.setattr(fewscan.networks.UNet, "forward", look)
        report = segment(data / "images", bundle, tmp_path / "masks", device="cpu", overlays=False)
    assert report.exit_code == 0
    assert set(seen) == {(16, 16, 8)}
    assert set(np.unique(np.asarray(nibabel.load(tmp_path / "masks" / "case0_seg.nii.gz").dataobj))) == {0, 1}
