"""FCN against the reference network, and what its description says of it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fewscan.errors import FewscanError
from fewscan.networks import FCN
from fewscan.networks.layers import cut
from fewscan.tiling import OverlapTileInferer
from networks.narrow import WIDTHS, against_reference, randomise, reach_of

NARROW = {"widths": WIDTHS, "fc_width": 24}
VARIANTS = ("32s", "16s", "8s")


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_the_reference_network(channels, monkeypatch):
    network = FCN(2, channels, 5, widths=WIDTHS, fc_width=256, mode="faithful")
    against_reference(network, f"fcn8s_in{channels}.npz", monkeypatch)


@pytest.mark.parametrize("mode", ["practical", "faithful"])
def test_has_the_parameters_of_the_paper(mode):
    with torch.device("meta"):
        network = FCN(2, 1, 2, mode=mode)
    assert sum(p.numel() for p in network.parameters()) == 134_270_278
    assert sum(p.numel() for p in network.parameters() if not p.requires_grad) == 1_152  # fixed upsampling
    assert not any(isinstance(module, nn.Linear) for module in network.modules())


def by_interpolation(network, x):
    """The practical mode as its description says it, without transposed convolutions."""
    size, up = x.shape[2:], functional.interpolate
    mode = {2: "bilinear", 3: "trilinear"}[len(size)]
    ends = [n for size_of in reversed(size) for n in (0, -size_of % 32)]
    x = functional.pad(x, ends, mode="replicate")
    pools = []
    for stage, pool in zip(network.encoder.stages, network.encoder.pools, strict=True):
        x = pool(stage(x))
        pools.append(x)
    score = network.score(torch.relu(network.fc7(torch.relu(network.fc6(x)))))
    factor = 32
    for pooled, layer in ((pools[3], network.score_pool4), (pools[2], network.score_pool3)):
        if layer is not None:
            score = up(score, scale_factor=2.0, mode=mode, align_corners=False) + layer(pooled)
            factor //= 2
    return up(score, scale_factor=float(factor), mode=mode, align_corners=False)[(..., *[slice(n) for n in size])]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_size_is_the_sum_of_interpolated_scores(variant):
    torch.manual_seed(0)
    network = randomise(FCN(2, 1, 3, variant, **NARROW))
    for n in range(1, 131, 7):
        x = torch.rand(1, 1, n, 131 - n, dtype=torch.double)
        torch.testing.assert_close(network(x), by_interpolation(network, x), rtol=1e-6, atol=1e-6)


def test_three_axes_are_the_sum_of_interpolated_scores_too():
    torch.manual_seed(0)
    network = randomise(FCN(3, 2, 3, **NARROW))
    x = torch.rand(1, 2, 37, 33, 5, dtype=torch.double)
    torch.testing.assert_close(network(x), by_interpolation(network, x), rtol=1e-6, atol=1e-6)


def by_crops(network, x, variant):
    """The faithful mode by the published numbers: 100 zeros, incomplete cells kept, crops of 5, 9 and 31, 27 or 19."""
    size, padding, pools = x.shape[2:], 100, []
    for stage in network.encoder.stages:
        for layer in stage:
            if isinstance(layer, nn.Conv2d):
                x = torch.relu(functional.conv2d(x, layer.weight, layer.bias, padding=padding))
                padding = 1
        x = functional.max_pool2d(x, 2, 2, ceil_mode=True)
        pools.append(x)

    def up(score, factor):
        middle = (torch.arange(2 * factor, dtype=score.dtype) - (factor - 0.5)).abs()
        kernel = torch.outer(1 - middle / factor, 1 - middle / factor).expand(score.shape[1], 1, -1, -1)
        return functional.conv_transpose2d(score, kernel, stride=factor, groups=score.shape[1])

    def cropped(score, start, like):
        return score[:, :, start : start + like[0], start : start + like[1]]

    score = network.score(
        torch.relu(network.fc7(torch.relu(functional.conv2d(x, network.fc6.weight, network.fc6.bias))))
    )
    for pooled, layer, crop in ((pools[3], network.score_pool4, 5), (pools[2], network.score_pool3, 9)):
        if layer is not None:
            score = up(score, 2)
            score = score + cropped(layer(pooled), crop, score.shape[2:])
    factor, crop = {"32s": (32, 19), "16s": (16, 27), "8s": (8, 31)}[variant]
    return cropped(up(score, factor), crop, size)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_faithful_mode_takes_every_size_too(variant):
    torch.manual_seed(0)
    network = randomise(FCN(2, 1, 2, variant, mode="faithful", widths=(2, 2, 2, 2, 2), fc_width=4))
    for n in range(1, 131, 7):
        x = torch.rand(1, 1, n, 131 - n, dtype=torch.double)
        torch.testing.assert_close(network(x), by_crops(network, x, variant), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["practical", "faithful"])
def test_the_heat_map_moves_by_one_cell_when_the_object_moves_by_32_pixels(mode):
    torch.manual_seed(0)
    network = FCN(2, 1, 2, mode=mode, **NARROW).double().eval()
    image = torch.zeros(1, 1, 384, 416, dtype=torch.double)  # its border is out of reach of the object's features
    image[:, :, 170:181, 170:190] = 1
    heat, moved = network.heat_map(image), network.heat_map(image.roll((32, 64), (2, 3)))
    if mode == "practical":
        assert heat.shape == (1, 2, 12, 13)
    assert heat.std(dim=(2, 3)).min() > 0.01
    torch.testing.assert_close(moved[:, :, 1:, 2:], heat[:, :, :-1, :-2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("dims", "options"),
    [(2, {}), (2, {"variant": "32s"}), (2, {"mode": "faithful"}), (2, {"mode": "faithful", "variant": "32s"}), (3, {})],
)
def test_halo_is_what_the_gradient_reaches(dims, options):
    network = FCN(dims, 1, 1, widths=(1,) * 5, fc_width=1, **options)
    reach = reach_of(network, dims, images=3)
    assert network.halo - network.stride < reach <= network.halo
    assert (network.stride, network.halo) == (32, {2: 224, 3: 160}[dims])


@pytest.mark.parametrize("axis", [0, 2])
def test_no_axis_looks_farther_than_the_halo_with_unequal_strides(axis):
    network = FCN(3, 1, 1, widths=(1,) * 5, fc_width=1, strides=[(2, 2, 1), (2, 2, 1), 2, 2, 1])
    assert network.cell == [16, 16, 4] and network.stride == 16
    reach = reach_of(network, 3, axis, images=3)
    assert reach <= network.halo and (axis != 0 or reach > network.halo - 16)


@pytest.mark.parametrize("mode", ["practical", "faithful"])
def test_tiled_equals_whole(mode):
    torch.manual_seed(0)
    network = randomise(FCN(2, 1, 2, mode=mode, widths=(2, 2, 4, 4, 4), fc_width=4))
    image = torch.rand(1, 1, 608, 64, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(OverlapTileInferer(2, (480, 64))(image, network), network(image), rtol=0, atol=1e-9)


def test_upsampling_is_trained_only_on_request():
    x = torch.rand(1, 1, 32, 32)
    for learn in (False, True):
        network = FCN(2, 1, 2, learn_upsampling=learn, **NARROW)
        network(x).square().sum().backward()
        kernels = [layer.transposed.weight for layer in (network.upscore2, network.upscore_pool4, network.upscore)]
        assert all((kernel.grad is not None) == learn for kernel in kernels)


def test_at_once_scales_the_pools():
    torch.manual_seed(0)
    at_once, plain = FCN(2, 1, 2, at_once=True, **NARROW).eval(), FCN(2, 1, 2, **NARROW).eval()
    plain.load_state_dict(at_once.state_dict())
    plain.score_pool4.weight.data *= 0.01
    plain.score_pool3.weight.data *= 0.0001
    x = torch.rand(1, 1, 45, 50)
    torch.testing.assert_close(at_once(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["practical", "faithful"])
def test_a_stage_goes_on_from_what_the_coarser_network_answers(mode):
    torch.manual_seed(0)
    networks = {v: randomise(FCN(2, 1, 3, v, mode=mode, **NARROW)) for v in VARIANTS}
    x = torch.rand(1, 1, 75, 98, dtype=torch.double)
    networks["16s"].load_stage(networks["32s"].state_dict())
    torch.testing.assert_close(networks["16s"].heat_map(x), networks["32s"].heat_map(x), rtol=0, atol=0)
    one, two = networks["32s"], networks["16s"]
    expected = cut(two.upscore(two.upscore2(one.heat_map(x))), two.crop, [75, 98])  # x2 then x16, instead of x32
    torch.testing.assert_close(two(x), expected, rtol=0, atol=1e-12)
    assert (two(x) - one(x)).square().mean() < 0.02 * one(x).square().mean()
    nn.init.normal_(networks["16s"].score_pool4.weight)
    networks["8s"].load_stage(networks["16s"].state_dict())
    assert torch.equal(networks["8s"].score_pool4.weight, networks["16s"].score_pool4.weight)
    assert not networks["8s"].score_pool3.weight.any() and not networks["8s"].score_pool3.bias.any()
    assert (networks["8s"](x) - two(x)).square().mean() < 0.02 * two(x).square().mean()
    networks["8s"].load_stage(networks["32s"].state_dict())
    assert not networks["8s"].score_pool4.weight.any()


def test_a_stage_that_does_not_fit_is_refused():
    network = FCN(2, 1, 2, "16s", **NARROW)
    with pytest.raises(FewscanError, match="weights of FCN-8s"):
        network.load_stage(FCN(2, 1, 2, "8s", **NARROW).state_dict())
    with pytest.raises(FewscanError, match="first in score"):
        network.load_stage(FCN(2, 1, 3, "32s", **NARROW).state_dict())
    with pytest.raises(FewscanError, match="first in encoder"):
        network.load_stage(FCN(2, 1, 2, "32s", norm="batch", **NARROW).state_dict())


def discs(count, generator):
    """Noisy images of three bright discs, and their labels; 64 x 64."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    centre = 64 * torch.rand(2, count, 3, 1, 1, generator=generator)
    radius = 4 + 8 * torch.rand(count, 3, 1, 1, generator=generator)
    label = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2).any(1).long()
    return label[:, None] + 0.3 * torch.randn(count, 1, 64, 64, generator=generator), label


def test_finer_variants_are_better_at_boundaries():
    """Accuracy within two pixels of a boundary after 60 steps: about 0.55, 0.63, 0.79 for 32s, 16s, 8s."""
    image, label = discs(32, torch.Generator().manual_seed(99))
    near = functional.max_pool2d(label[:, None].float(), 5, 1, 2) - functional.avg_pool2d(
        label[:, None].float(), 5, 1, 2, count_include_pad=False
    )
    near = (near[:, 0] > 0) & (near[:, 0] < 1)
    for seed in range(3):
        accuracy = []
        for variant in VARIANTS:
            torch.manual_seed(seed)
            network = FCN(2, 1, 2, variant, widths=WIDTHS, fc_width=32, norm="batch", dropout=0)
            optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 3e-3)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(60):
                batch, truth = discs(4, generator)
                optimiser.zero_grad()
                functional.cross_entropy(network(batch), truth).backward()
                optimiser.step()
            with torch.no_grad():
                accuracy.append(float((network.eval()(image).argmax(1) == label)[near].float().mean()))
        assert accuracy[0] + 0.02 < accuracy[1] and accuracy[1] + 0.02 < accuracy[2], (seed, accuracy)
