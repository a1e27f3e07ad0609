"""SegNet against the reference network, and what its description says of it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fewscan.networks import SegNet, SegNetBasic
from fewscan.tiling import OverlapTileInferer
from networks.narrow import WIDTHS, against_reference, randomise, reach_of


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_the_reference_network(channels, monkeypatch):
    against_reference(SegNet(2, channels, 11, WIDTHS), f"segnet_in{channels}.npz", monkeypatch)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_is_the_network_of_the_paper():
    with torch.device("meta"):
        network, basic = SegNet(2, 1, 2), SegNetBasic(2, 1, 2)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (len(convolutions), len(norms)) == (26, 25)
    # the reference's 29,443,014 count a batch norm of two classes that it makes for the last convolution, but not uses
    assert count(network) == 29_443_014 - 4
    assert count(basic) == 1_409_730
    for one in (network, basic):  # nothing upsamples but the indices
        assert not any(isinstance(m, nn.ConvTranspose2d | nn.Upsample) for m in one.modules())
        leaves = [m for m in one.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
        assert sum(map(count, leaves)) == count(one)
    assert (network.stride, network.halo, basic.stride, basic.halo) == (32, 192, 16, 96)


def by_unpooling(network, x):
    """SegNet with torch's own unpooling; sizes of at least one cell."""
    pool = {2: functional.max_pool2d, 3: functional.max_pool3d}[x.ndim - 2]
    inverse = {2: functional.max_unpool2d, 3: functional.max_unpool3d}[x.ndim - 2]
    seen = []
    stages = network.encoder.stages if isinstance(network, SegNet) else network.encoder
    for stage in stages:
        x = stage(x)
        size = x.shape[2:]
        x, indices = pool(x, 2, return_indices=True)
        seen.append((indices, size))
    for stage, (indices, size) in zip(network.decoder, reversed(seen), strict=True):
        x = stage(inverse(x, indices, 2, output_size=size))
    return x if isinstance(network, SegNet) else network.head(x)


@pytest.mark.parametrize("make", [lambda d: SegNet(d, 1, 3, WIDTHS), lambda d: SegNetBasic(d, 1, 3, 4)])
@pytest.mark.parametrize("shape", [(32, 63), (75, 98), (37, 33, 47)])
def test_any_size_unpools_by_the_indices_of_the_same_stage(make, shape):
    torch.manual_seed(0)
    network = randomise(make(len(shape)))
    x = torch.rand(1, 1, *shape, dtype=torch.double)
    answer = network(x)
    assert answer.std() > 0
    torch.testing.assert_close(answer, by_unpooling(network, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (3, 33, 2)])
def test_an_axis_shorter_than_a_cell_is_continued_with_its_last_voxel(shape):
    torch.manual_seed(0)
    network = randomise(SegNet(len(shape), 1, 2, WIDTHS))
    x = torch.rand(1, 1, *shape, dtype=torch.double)
    ends = [n for size in reversed(shape) for n in (0, max(32 - size, 0))]
    longer = network(functional.pad(x, ends, mode="replicate"))
    torch.testing.assert_close(network(x), longer[(..., *[slice(n) for n in shape])], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dims", "make"),
    [
        (2, lambda: SegNet(2, 1, 1, (1,) * 5)),
        (2, lambda: SegNetBasic(2, 1, 1, 1)),
        (3, lambda: SegNet(3, 1, 1, (1,) * 4)),
        (3, lambda: SegNet(3, 1, 1, (1,) * 4, strides=[(2, 2, 1), 2, 2, 2])),
    ],
)
def test_halo_is_what_the_gradient_reaches(dims, make):
    """The gradient misses a few voxels: those that have no influence but where they would win a pooling."""
    network = make()
    reach = reach_of(network, dims, images=8)
    assert network.halo - network.stride < reach <= network.halo
    if dims == 3:
        assert reach_of(make(), dims, axis=2, images=8) <= network.halo


@pytest.mark.parametrize(
    ("make", "tile"), [(lambda: SegNet(2, 1, 2, (2, 2, 4, 4, 4)), 416), (lambda: SegNetBasic(2, 1, 2, 2), 208)]
)
def test_tiled_equals_whole(make, tile):
    torch.manual_seed(0)
    network = randomise(make())
    image = torch.rand(1, 1, 544, 32, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(OverlapTileInferer(2, (tile, 32))(image, network), network(image), rtol=0, atol=1e-9)


def test_bayesian_dropout_acts_at_the_six_central_stages():
    torch.manual_seed(0)
    network = SegNet(2, 1, 2, WIDTHS, dropout=0.5).eval()
    places = []
    network.dropout.register_forward_hook(lambda _, given, __: places.append(given[0].shape[1:]))
    x = torch.rand(1, 1, 64, 96)
    torch.testing.assert_close(network(x), network(x), rtol=0, atol=0)
    assert places[:6] == [(16, 8, 12), (32, 4, 6), (32, 2, 3), (32, 4, 6), (16, 8, 12), (8, 16, 24)]
    assert len(places) == 12
    network.dropout.train()  # samples: dropout on, batch norm still as it was trained
    assert not torch.equal(network(x), network(x))


def test_the_last_convolution_is_plain_and_all_others_have_batch_norm_and_relu():
    network = SegNet(2, 1, 2, WIDTHS)
    last = network.decoder[-1]
    assert [type(m) for m in last] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d]
    assert [m.out_channels for stage in network.decoder for m in stage if isinstance(m, nn.Conv2d)] == [
        *(32, 32, 32),
        *(32, 32, 16),
        *(16, 16, 8),
        *(8, 4),
        *(4, 2),
    ]
