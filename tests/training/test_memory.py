"""The arithmetic of a training step's memory against what torch allocates, and plans that stay within a budget."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fewscan.errors import BundleError
from fewscan.labels import LabelTable
from fewscan.networks import FCN, SegNet, UNet
from fewscan.scans import Cases
from fewscan.training.fingerprint import CaseFingerprint, Fingerprint
from fewscan.training.loss import SegmentationLoss
from fewscan.training.memory import COPIES_OF_WEIGHTS, Budget, training_bytes
from fewscan.training.patches import room_for_cases
from fewscan.training.settings import GPU_BATCH, decide_settings


def allocated(network, shape, classes) -> int:
    """The most bytes that torch holds in a training step, AdamW's states among them; no average of the weights."""
    optimiser, loss = torch.optim.AdamW(network.parameters()), SegmentationLoss()
    image, label = torch.randn(shape), torch.randint(0, classes, (shape[0], 1, *shape[2:]))

    def step():
        loss(network(image), label).backward()
        optimiser.step()
        optimiser.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        step()
    now = most = 0
    for event in run.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    kept = sum(parameter.numel() for parameter in network.parameters()) * 4 * 3
    return most + kept + 4 * image.numel()


@pytest.mark.parametrize(
    ("network", "shape", "classes"),
    [
        (UNet(2, 1, 2, widths=(24, 48, 96, 192)), (2, 1, 96, 96), 2),
        (UNet(3, 1, 3, widths=(16, 32, 64)), (2, 1, 32, 40, 32), 3),
        (UNet(3, 2, 3, widths=(16, 32, 64), strides=[[2, 2, 1], 2], norm="instance"), (2, 2, 32, 40, 16), 3),
        (FCN(2, 1, 2, widths=(16, 32, 64, 128, 128), fc_width=256), (2, 1, 96, 96), 2),
        (SegNet(2, 3, 2, widths=(16, 32, 64, 128, 128)), (2, 3, 96, 96), 2),
    ],
    ids=["2d", "3d", "anisotropic", "fcn", "segnet"],
)
def test_the_estimate_is_what_torch_allocates(network, shape, classes):
    """Within a fifth, and never much below; the average of the weights, which this step has not, is left out."""
    weights = sum(parameter.numel() for parameter in network.parameters())
    estimate = training_bytes(network, shape) - 4 * weights
    measured = allocated(network, shape, classes)
    assert 0.93 * measured < estimate < 1.2 * measured


def test_half_precision_halves_what_is_kept():
    network = UNet(3, 1, 2, widths=(16, 32, 64))
    weights = sum(parameter.numel() for parameter in network.parameters())
    full, half = (
        training_bytes(network, (2, 1, 48, 48, 48), amp) - COPIES_OF_WEIGHTS * 4 * weights for amp in (False, True)
    )
    logits = 5 * 4 * 2 * 2 * 48**3  # stay in single precision
    image = 4 * 2 * 48**3
    assert half - logits - image - 2 * weights == pytest.approx((full - logits - image) / 2, rel=0.05)


def test_twice_the_batch_takes_twice_what_is_kept():
    network = UNet(2, 1, 2, widths=(8, 16))
    fixed = COPIES_OF_WEIGHTS * 4 * sum(parameter.numel() for parameter in network.parameters())
    one, two = (training_bytes(network, (n, 1, 64, 64)) - fixed for n in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.01)


@pytest.mark.parametrize(("name", "gib"), [("cpu", None), ("titan6gb", 6), ("24gb", 24), ("11.5GB", 11.5)])
def test_budgets_by_name(name, gib):
    assert Budget.of(name).gpu_gb == gib


@pytest.mark.parametrize("name", ["", "titan", "1gb", "gb", "-6gb", "6 gb"])
def test_other_budgets_are_refused(name):
    with pytest.raises(BundleError, match="--budget takes"):
        Budget.of(name)


def like(shape, spacing, kind="nifti", channels=1, voxels=(1000, 100)) -> Fingerprint:
    """Three equal cases of a shape, without reading any."""
    points = ((0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0),) * channels
    case = CaseFingerprint(
        "c", shape, spacing, kind, (0.0,) * channels, points, points, voxels, 0, (1,) * (len(voxels) - 1), None, None,
        None, "", False, "", "",
    )  # fmt: skip
    labels = tuple(f"label {n}" for n in range(1, len(voxels)))
    return Fingerprint(tuple(f"ch{n}" for n in range(channels)), labels, (case,) * 3)


def decided(fingerprint, budget="cpu", network="unet", dims=None):
    table = LabelTable.from_json(fingerprint.labels)
    cases = Cases((), (), [{"name": name} for name in fingerprint.channels], None, "")
    return decide_settings(fingerprint, cases, table, dims, network=network, budget=Budget.of(budget))


def network_of(fingerprint, settings, network="unet"):
    build = {"unet": UNet, "fcn": FCN, "segnet": SegNet}[network]
    return build(
        settings["spatial_dims"], len(fingerprint.channels), len(fingerprint.labels) + 1, **settings["network_def"]
    )


SHAPES = {
    "hippocampus": like((35, 50, 35), (1, 1, 1), voxels=(60000, 1700, 1500)),
    "isbi": like((512, 512, 1), (1, 1, 1), "png"),
    "ct": like((512, 512, 300), (0.8, 0.8, 1.0), voxels=(10**7, 10**5)),
    "thick ct": like((512, 512, 60), (0.8, 0.8, 5.0), voxels=(10**7, 10**5)),
    "brain": like((240, 240, 155), (1, 1, 1), channels=4, voxels=(10**6, 10**4, 10**4, 10**4)),
}


@pytest.mark.parametrize("network", ["unet", "fcn", "segnet"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_titan_of_6_gb_is_filled_and_not_exceeded(name, network, monkeypatch):
    card = SimpleNamespace(total_memory=6 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    settings, reasons = decided(SHAPES[name], "titan6gb", network)
    model = network_of(SHAPES[name], settings, network)
    patch, batch, channels = settings["patch"], settings["batch"], len(SHAPES[name].channels)
    needed = training_bytes(model, (batch, channels, *patch), amp=True) / 2**30
    cases = room_for_cases(torch.device("cuda")) / 2**30  # of a card of 6 GiB
    assert cases == pytest.approx(0.6) and needed + 0.9 + cases < 0.9 * 6
    assert f"an estimated {needed:.1f} GiB" in reasons["patch"]
    if batch < GPU_BATCH[len(patch)]:  # one more would not fit
        more = training_bytes(model, (batch + 1, channels, *patch), amp=True) / 2**30
        assert more > 0.85 * (6 - 0.9 - cases)


@pytest.mark.parametrize("name", SHAPES)
def test_the_network_takes_its_patch(name):
    """Each axis of the patch is whole cells of the network's bottom, and a larger GPU never gets less."""
    voxels = []
    for budget in ("cpu", "titan6gb", "24gb", "80gb"):
        settings, _ = decided(SHAPES[name], budget)
        cell = network_of(SHAPES[name], settings).cell
        assert all(n % step == 0 for n, step in zip(settings["patch"], cell, strict=True))
        voxels.append(settings["batch"] * np.prod(settings["patch"]))
    assert voxels == sorted(voxels)


def test_two_cores_keep_the_measured_values():
    hippocampus, _ = decided(SHAPES["hippocampus"])
    assert (hippocampus["patch"], hippocampus["batch"]) == ([40, 56, 40], 2)
    assert hippocampus["network_def"] == {"widths": [16, 32, 64, 128]}
    isbi, _ = decided(SHAPES["isbi"])
    assert (isbi["patch"], isbi["batch"]) == ([224, 224], 2)
    assert isbi["network_def"] == {"widths": [24, 48, 96, 192, 192]}


@pytest.mark.parametrize(
    ("spacing", "strides"),
    [
        ((1, 1, 2), None),
        ((1, 1, 2.5), [[2, 2, 1], 2, 2]),
        ((1, 1, 4.2), [[2, 2, 1], [2, 2, 1], 2]),
        ((3, 1, 1), [[1, 2, 2], 2, 2]),
        ((1, 2.5, 2.5), [[2, 1, 1], 2, 2]),
    ],
)
def test_coarse_axes_are_pooled_later(spacing, strides):
    settings, reasons = decided(like((64, 64, 64), spacing), dims=3)
    assert settings["network_def"].get("strides") == strides
    assert ("the finer axes are pooled first" in reasons["network_def"]) == (strides is not None)


@pytest.mark.parametrize(
    ("shape", "spacing", "cell", "gpu_cell", "patch"),
    [
        ((512, 512, 15), (4, 4, 50), [8, 8, 1], [16, 16, 2], [144, 144, 12]),
        ((50, 512, 512), (50, 4, 4), [1, 8, 8], [2, 16, 16], [12, 144, 144]),
        ((512, 512, 7), (4, 4, 50), [8, 8, 1], [8, 8, 1], [192, 192, 7]),  # 7 are too few to pool
        ((100, 100, 12), (0.5, 0.5, 7.5), [8, 8, 1], [16, 16, 2], [104, 104, 12]),
        ((512, 512, 60), (0.8, 0.8, 5), [8, 8, 2], [16, 16, 4], [120, 120, 18]),
    ],
)
def test_thick_slices_are_pooled_in_their_plane_however_few_they_are(shape, spacing, cell, gpu_cell, patch):
    """As deep as the plane allows: an axis that is not pooled may be short.

    A patch covers about as many mm along each axis, where slices and voxels suffice.
    """
    fingerprint = like(shape, spacing)
    settings, _ = decided(fingerprint, dims=3)
    network = network_of(fingerprint, settings)
    assert (network.cell, network.halo) == (cell, 48)
    assert settings["patch"] == patch and np.prod(patch) <= 64**3
    settings, _ = decided(fingerprint, "titan6gb", dims=3)
    network = network_of(fingerprint, settings)
    assert network.cell == gpu_cell
    assert all(n % step == 0 for n, step in zip(settings["patch"], gpu_cell, strict=True))
    needed = training_bytes(network, (settings["batch"], 1, *settings["patch"]), amp=True)
    assert needed < 0.85 * Budget.of("titan6gb").tensor_bytes


@pytest.mark.parametrize("network", ["fcn", "segnet"])
def test_the_baselines_take_thick_slices_too(network):
    fingerprint = like((96, 80, 15), (4, 4, 50))
    settings, _ = decided(fingerprint, network=network, dims=3)
    assert settings["network_def"]["strides"] == [[2, 2, 1]] * 3 + [1, 1]
    assert settings["patch"] == [96, 80, 15]
    assert settings["augmentation"]["still_axis"] == 2


@pytest.mark.parametrize(
    ("spacing", "still"),
    [((1, 1, 1), None), ((1, 1, 3), None), ((1, 1, 3.1), 2), ((5, 1, 0.9), 0), ((1, 4, 1), 1), ((1, 4, 4), None)],
)
def test_the_axis_across_thick_slices_stays_still(spacing, still):
    settings, reasons = decided(like((64, 64, 64), spacing), dims=3)
    augmentation = settings["augmentation"]
    assert augmentation["still_axis"] == still
    assert (augmentation["rotate_degrees"], augmentation["flip"]) == (15, False)
    patch = settings["patch"]
    if still is None:
        assert augmentation["elastic_sd"] == round(0.06 * sum(patch) / 3, 1)
        assert "apart" not in reasons["augmentation"]
    else:
        in_plane = sum(n for axis, n in enumerate(patch) if axis != still) / 2
        assert augmentation["elastic_sd"] == round(0.03 * in_plane, 1)
        ratio = max(spacing) / min(spacing)
        word = ("left", "posterior", "superior")[still]
        assert f"across {word} are {max(spacing):g} mm apart, {ratio:.1f} x the pixel" in reasons["augmentation"]
    flat, _ = decided(like((64, 64, 64), spacing, "tiff"), dims=3)
    assert flat["augmentation"] == {**augmentation, "rotate_degrees": 180, "flip": True}
    two, _ = decided(like((64, 64, 64), spacing), dims=2)
    assert two["augmentation"]["still_axis"] is None


def test_classes_are_weighted_where_one_label_dwarfs_another():
    settings, reasons = decided(like((64, 64, 64), (1, 1, 1), voxels=(90000, 2000, 100)))
    assert settings["class_weights"] is None
    assert "20 x the voxels" in reasons["class_weights"]
    settings, _ = decided(like((64, 64, 64), (1, 1, 1), voxels=(90000, 20000, 100)))
    assert settings["class_weights"] == pytest.approx([20000 / 90000, 1, 200], rel=0.005)  # median frequency
