"""On a GPU: the CPU's answer but for half precision, within the card's memory, and training that can be repeated."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from conftest import ROOT, configure, write_volumes
from fewscan.labels import LabelTable
from fewscan.networks import FCN, SegNet, UNet
from fewscan.runs.predictor import Predictor, read_settings
from fewscan.runs.score import score_case
from fewscan.runs.segment import segment
from fewscan.scans import Case, open_scan
from fewscan.tiling import OverlapTileInferer
from fewscan.training.plan import plan
from fewscan.training.run import train
from runs.tiny import noise, read, save_nifti, unet_bundle

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

HALF = 4e-3
"""How far logits in half precision may lie from float32's, of the largest |logit|: 4 units in the last place."""


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (UNet(2, 1, 3, (4, 8, 8)), (150, 131)),
        (UNet(3, 1, 3, (4, 8, 8)), (70, 41, 37)),
        (FCN(2, 1, 3, widths=(4, 8, 8, 8, 8), fc_width=8), (900, 131)),
        (SegNet(2, 1, 3, (4, 8, 8, 8, 8)), (900, 131)),
    ],
    ids=["unet2d", "unet3d", "fcn", "segnet"],
)
def test_exact_tiles_are_one_pass_on_the_cpu(network, shape):
    network.eval()
    volume = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    tile = (2 * network.halo + 2 * network.stride,) * len(shape)
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):  # else 10 bits of 23
        whole = OverlapTileInferer(len(shape))(volume, network)
        tiled = OverlapTileInferer(len(shape), tile, mode="exact")(volume, network.cuda())
    assert tiled.device.type == "cpu"
    assert float((tiled - whole).abs().max() / whole.abs().max()) < 1e-5


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_answer_lies_where_the_volume_lies(device):
    """As with MONAI's inferer, also of a volume that knows its affine."""
    volume = MetaTensor(torch.randn(1, 1, 20, 18, 16), affine=torch.eye(4)).to(device)
    with torch.inference_mode():
        answer = OverlapTileInferer(3)(volume, UNet(3, 1, 3, (4, 8, 8)).cuda().eval())
    assert isinstance(answer, MetaTensor) and answer.device == volume.device


@pytest.mark.parametrize("spacing", [None, (1.3, 0.7, 1.9)])
def test_labels_are_those_of_the_cpu_but_where_half_precision_cannot_tell(tmp_path, spacing):
    axes = np.diag([-0.9, -0.8, 2.5, 1])  # as a network has them
    file = save_nifti(tmp_path / "scans" / "x.nii.gz", noise(0, (61, 52, 37)), axes)
    bundle = unet_bundle(tmp_path / "bundle", spacing=spacing)
    for device in ("cpu", "cuda:0"):
        segment(file.parent, bundle, tmp_path / device[:3], device=device, backend="eager")
    one, other = (read(tmp_path / device / "x_seg.nii.gz") for device in ("cpu", "cud"))
    assert 0 < (one != 0).mean() < 1
    predictor = Predictor(bundle, "cpu")
    scan = open_scan([file], read_settings(bundle)["channels"])
    with torch.inference_mode():
        logits = {d: Predictor(bundle, d).logits(predictor.prepare(scan)["image"]).cpu() for d in ("cpu", "cuda:0")}
    apart = (logits["cpu"] - logits["cuda:0"]).abs().max()
    assert float(apart / logits["cpu"].abs().max()) < HALF
    if spacing is None:
        first, second = logits["cpu"].as_subclass(torch.Tensor).topk(2, dim=0).values
        close = (first - second < 2 * apart).numpy()
        assert close.any() and not (one != other)[~close].any()
    assert (one != other).mean() < 0.01


def test_a_card_that_is_full_gets_smaller_tiles(tmp_path):
    save_nifti(tmp_path / "scans" / "x.nii.gz", noise(0, (160, 160, 160)))
    bundle = unet_bundle(tmp_path / "bundle")
    segment(tmp_path / "scans", bundle, tmp_path / "whole", device="cuda:0")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.6e8 / total)
    try:
        report = segment(tmp_path / "scans", bundle, tmp_path / "less", device="cuda:0")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert report.rows[0]["status"] == "done", report.rows[0]
    assert "did not suffice: tiles take" in " ".join(report.rows[0]["notes"])
    one, other = (read(tmp_path / name / "x_seg.nii.gz") for name in ("whole", "less"))
    assert (one != other).mean() < 0.01


def weights(bundle: Path) -> dict[str, torch.Tensor]:
    return torch.load(bundle / "models" / "model.pt", weights_only=True)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_deterministic_training_has_the_same_weights_twice(tmp_path, dims):
    """In processes of their own: cuBLAS is asked for determinism before its first use."""
    data = write_volumes(tmp_path / "data")
    for name in ("one", "two"):
        plan(data, tmp_path / name, validation=1, dims=dims)
        configure(tmp_path / name, patch=[16] * dims, deterministic=True)
        command = [sys.executable, "-m", "fewscan.cli", "train", str(tmp_path / name), "--device", "cuda:0"]
        subprocess.run(command, check=True, cwd=ROOT)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    record = json.loads((tmp_path / "one" / "models" / "training.json").read_text())
    assert record["steps"] == 20
    (entry,) = json.loads((tmp_path / "one" / "configs" / "datalist.json").read_text())["validation"]
    held_out = Case("held out", (data / entry["image"],), (data / entry["label"],))
    settings = read_settings(tmp_path / "one")
    table, reading = LabelTable.from_json(settings["labels"]), {"merged": False, "unlabelled": None, "sparse": None}
    scored = score_case(Predictor(tmp_path / "one", "cpu"), settings["channels"], table, held_out, reading).score
    assert record["validation"]["val_mean_dice"] == pytest.approx(scored.dice, abs=0.05)  # the GPU's in half precision


def test_a_training_planned_for_6_gib_takes_no_more(tmp_path):
    """With 0.9 GiB for CUDA's own, and on a card of any size."""
    data = write_volumes(tmp_path / "data", 3, (160, 150, 140))
    plan(data, tmp_path / "bundle", validation=0, budget="titan6gb")
    file = tmp_path / "bundle" / "configs" / "train.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "epochs": 1, "steps_per_epoch": 8}))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train(tmp_path / "bundle", device="cuda:0")
    assert 3 < torch.cuda.max_memory_reserved() / 2**30 < 6 - 0.9
    assert not json.loads((tmp_path / "bundle" / "models" / "training.json").read_text()).get("notes")
    assert all(np.isfinite(weight.numpy()).all() for weight in weights(tmp_path / "bundle").values())
