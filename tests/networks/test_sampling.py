"""Dropout sampling: the moments are NumPy's and those of the theory, and nothing but dropout is left on."""

import numpy as np
import pytest
import torch
from torch import nn

from fewscan.networks import FCN, SegNet, SegNetBasic, UNet
from fewscan.networks.sampling import dropout_layers, dropout_on, mean_and_variance

IMAGE = torch.randn(1, 1, 24, 20, generator=torch.Generator().manual_seed(1))


def unet(dropout=0.5) -> UNet:
    torch.manual_seed(0)
    network = UNet(2, 1, 2, (4, 8, 16), dropout=dropout)
    network(IMAGE)  # so that batch norm has statistics of its own
    return network


def passes(network, count, seed=3):
    with torch.no_grad(), dropout_on(network, seed):
        return [network(IMAGE) for _ in range(count)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_mean_and_variance_are_numpys(dtype, tolerance):
    stored = [torch.softmax(x.to(dtype), dim=1) for x in passes(unet(), 7)]
    mean, variance = mean_and_variance(iter(stored))
    everything = np.stack([x.double().numpy() for x in stored])
    assert everything.var(axis=0).max() > 1e-3
    np.testing.assert_allclose(mean, everything.mean(axis=0), atol=tolerance)
    np.testing.assert_allclose(variance, everything.var(axis=0), atol=tolerance)


def test_a_small_variance_beside_a_large_mean_is_kept_in_float32():
    samples = 1000 + torch.tensor([0.0, 0.125, 0.25, 0.125])
    mean, variance = mean_and_variance(x[None] for x in samples)
    assert float(mean) == 1000.125 and float(variance) == pytest.approx(0.0078125, rel=1e-3)


def test_no_sample_has_no_mean():
    with pytest.raises(ValueError, match="no sample was given"):
        mean_and_variance([])


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_one_layer_has_the_moments_of_the_theory(p):
    """Dropout of x before the weight w: x w / (1 - p) with probability 1 - p, so mean x w, variance x^2 w^2 p/(1-p)."""
    network = nn.Sequential(nn.Dropout(p), nn.Conv2d(1, 1, 1, bias=False))
    x, w = 1.5, -0.8
    nn.init.constant_(network[1].weight, w)
    with torch.no_grad(), dropout_on(network, 0):
        mean, variance = mean_and_variance(network(torch.full((1, 1, 64, 64), x)) for _ in range(300))
    draws = 300 * 64 * 64  # the standard errors of the means over all pixels follow from it
    assert float(mean.mean()) == pytest.approx(x * w, abs=5 * abs(x * w) * (p / (1 - p) / draws) ** 0.5)
    unbiased = float(variance.mean()) * 300 / 299
    assert unbiased == pytest.approx((x * w) ** 2 * p / (1 - p), rel=0.005)


@pytest.mark.parametrize("was_training", [True, False])
def test_only_dropout_is_on_and_every_mode_returns(was_training):
    network = unet().train(was_training)
    network.bottom.eval()  # someone froze a part
    modes = {name: module.training for name, module in network.named_modules()}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(RuntimeError, match="on purpose"), dropout_on(network, 0):  # also when something goes wrong
        assert {name for name, module in network.named_modules() if module.training} == {"dropout"}
        network(IMAGE)
        raise RuntimeError("on purpose")
    assert {name: module.training for name, module in network.named_modules()} == modes
    for name, value in network.state_dict().items():  # batch norm's statistics among them
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_seed_gives_the_same_samples_bit_for_bit_and_leaves_torchs_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    network = unet()
    torch.manual_seed(5)
    first, second, other = passes(network, 3), passes(network, 3), passes(network, 3, seed=4)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], other[0])


@pytest.mark.parametrize("network", [unet(0.0), SegNetBasic(2, 1, 2, 4), nn.Dropout(0.0)])
def test_without_dropout_there_is_nothing_to_sample(network):
    assert dropout_layers(network) == []
    with pytest.raises(ValueError, match="no dropout layer with p > 0"), dropout_on(network, 0):
        pass


@pytest.mark.parametrize(
    "network", [FCN(2, 1, 2, widths=(4, 4, 4, 4, 4), fc_width=8), SegNet(2, 1, 2, (4, 4, 4, 4, 4), dropout=0.5), unet()]
)
def test_the_papers_networks_answer_anew_each_time(network):
    for weights in network.parameters():  # FCN's scores start at 0
        nn.init.normal_(weights, std=0.3)
    first, second = passes(network, 2)
    assert not torch.equal(first, second)
    with torch.no_grad():
        assert torch.equal(network.eval()(IMAGE), network(IMAGE))
