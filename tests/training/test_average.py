"""The average of the weights, and batch-norm statistics of pooled patches, against closed forms and NumPy."""

import json
import shutil

import numpy as np
import pytest
import torch
from ignite.engine import Events
from torch import nn

from conftest import configure, write_volumes
from fewscan.networks import UNet
from fewscan.training import TrainingRun
from fewscan.training.average import HALF, POWER, WeightAverage, recompute_statistics
from fewscan.training.plan import plan
from fewscan.training.run import train


@pytest.mark.parametrize("steps", [1, 7, 300])
def test_the_average_is_that_of_its_closed_form(steps):
    """Step s of t has the weight (s^p - (s - 1)^p) / t^p: those of the last 5 % have half, the start has none."""
    random = np.random.default_rng(0)
    network = nn.Linear(3, 2).double()
    average = WeightAverage(network)
    path = random.normal(size=(steps, 2, 3))
    for step, weight in enumerate(path, 1):
        network.weight.data.copy_(torch.from_numpy(weight))
        average.update(network, step)
    numbers = np.arange(1, steps + 1)
    shares = (numbers**POWER - (numbers - 1) ** POWER) / steps**POWER
    expected = np.tensordot(shares, path, axes=1)
    np.testing.assert_allclose(average.parameters["weight"].numpy(), expected, rtol=1e-10, atol=1e-12)
    assert shares.sum() == pytest.approx(1)
    late = shares[numbers > (1 - HALF) * steps].sum()
    assert steps < 20 or late == pytest.approx(0.5, abs=1e-9)


def test_the_model_holds_the_average_of_its_training(tmp_path):
    """Of 20 steps, as seen by another handler; parameters alone are averaged."""
    plan(write_volumes(tmp_path / "data", count=2), tmp_path / "bundle")
    bundle = configure(tmp_path / "bundle", patch=[16, 16, 16])
    path, before = [], TrainingRun.attach

    def attach(self, engine):
        before(self, engine)
        keep = lambda: path.append({name: v.detach().double().clone() for name, v in self.network.named_parameters()})  # noqa: E731
        engine.add_event_handler(Events.ITERATION_COMPLETED, keep)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrainingRun, "attach", attach)
        train(bundle, device="cpu")
    written = torch.load(bundle / "models" / "model.pt", weights_only=True)
    numbers = np.arange(1, 21)
    shares = (numbers**POWER - (numbers - 1) ** POWER) / 20**POWER
    for name in path[0]:
        expected = sum(share * weights[name] for share, weights in zip(shares, path, strict=True))
        torch.testing.assert_close(written[name].double(), expected, rtol=1e-5, atol=1e-6)
    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    shutil.rmtree(other / "models")
    train(configure(other, average_weights=False), device="cpu")
    last = torch.load(other / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(last[name], value.float()) for name, value in path[-1].items())  # the same training
    records = [json.loads((b / "models" / "training.json").read_text())["weights"] for b in (bundle, other)]
    assert records == ["average, half of it the last 5% of the steps", "of the last step"]


def test_recomputed_statistics_are_those_of_the_pooled_voxels():
    """Batches of unequal size and unlike each other: NumPy on all voxels at once, as each layer sees them."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3)
    network = nn.Sequential(first, nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), second, nn.BatchNorm2d(2))
    batches = [torch.randn(n, 1, 9, 8) * n + n for n in (1, 2, 5)]
    recompute_statistics(network, batches)
    seen = [first(batch).detach() for batch in batches]
    check(network[1], seen)
    normalised = []
    for maps in seen:  # each batch by its own statistics, as in training; dropout is off
        mean, variance = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), keepdim=True, correction=0)
        normalised.append(second(torch.relu((maps - mean) / torch.sqrt(variance + 1e-5))).detach())
    check(network[5], normalised)
    assert not any(module.training for module in network.modules())


def check(layer, batches) -> None:
    voxels = np.concatenate([np.moveaxis(maps.double().numpy(), 1, -1).reshape(-1, maps.shape[1]) for maps in batches])
    np.testing.assert_allclose(layer.running_mean, voxels.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.running_var, voxels.var(axis=0), rtol=1e-5)


def test_one_batch_makes_evaluation_equal_to_training():
    """With the statistics of one batch, a U-Net answers in eval() what it answers that batch in train()."""
    torch.manual_seed(0)
    network = UNet(2, 1, 2, widths=(4, 8))
    image = torch.randn(3, 1, 32, 24)
    before = {name: value.clone() for name, value in network.named_parameters()}
    recompute_statistics(network, [image])
    answer = network(image).detach()
    torch.testing.assert_close(answer, network.train()(image).detach(), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())


def test_frozen_layers_and_networks_without_batch_norm_stay_as_they_are():
    network = UNet(2, 1, 2, widths=(4, 8))
    frozen = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in frozen:
        layer.eval()
        layer.train = lambda mode=True: None
    before = {name: value.clone() for name, value in network.state_dict().items()}
    recompute_statistics(network, [torch.randn(2, 1, 16, 16)])
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())

    def unwanted():
        raise AssertionError("no image is needed")
        yield

    recompute_statistics(UNet(2, 1, 2, widths=(4, 8), norm="instance"), unwanted())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_half_precision_is_for_the_network_alone():
    """Coordinates in float16 would cut the patches out of other places."""
    network, making, answering = UNet(2, 1, 2, widths=(4, 8)).cuda(), [], []
    network.register_forward_pre_hook(lambda *_: answering.append(torch.is_autocast_enabled("cuda")))

    def images():
        for _ in range(2):
            making.append(torch.is_autocast_enabled("cuda"))
            yield torch.randn(2, 1, 16, 16, device="cuda")

    recompute_statistics(network, images(), amp=True)
    assert making == [False, False] and answering == [True, True]
