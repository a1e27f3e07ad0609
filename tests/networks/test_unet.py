"""U-Net against other people's networks, the paper's counts, and its own claims of halo and stride."""

import numpy as np
import pytest
import torch
from torch import nn

from fewscan.networks import UNet
from networks.narrow import against_reference, reach_of

PAPER = {"widths": (64, 128, 256, 512, 1024), "padding": "valid", "norm": None, "dropout": 0.5}


@pytest.mark.parametrize(
    ("name", "options"),
    [("unet_valid_skip_up.npz", {"padding": "valid", "norm": None}), ("unet_padded_bn.npz", {})],
)
def test_equals_the_reference_networks(name, options, monkeypatch):
    against_reference(UNet(2, 1, 2, widths=(8, 16, 32, 64, 128), **options), name, monkeypatch)


def test_is_the_network_of_the_paper():
    network = UNet(2, 1, 2, **PAPER)
    assert sum(p.numel() for p in network.parameters()) == 31_030_658
    assert sum(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in network.modules()) == 23
    assert (network.stride, network.halo) == (16, 92)
    narrow = UNet(2, 1, 2, **{**PAPER, "widths": (2, 2, 2, 2, 2)}).eval()
    assert narrow(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)
    with pytest.raises(ValueError, match="not 570"):
        narrow(torch.zeros(1, 1, 572, 570))


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_halo_is_what_the_gradient_reaches(dims, levels):
    """From a cell of the stride's grid: within one stride of the true reach, and never short of it."""
    torch.manual_seed(0)
    network = UNet(dims, 1, 1, widths=(1,) * (levels + 1), norm=None)
    reach = reach_of(network, dims, images=30)
    assert network.halo - network.stride < reach <= network.halo


@pytest.mark.parametrize("dims", [2, 3])
def test_a_shift_by_the_stride_shifts_the_answer(dims):
    torch.manual_seed(0)
    network = UNet(dims, 2, 3, widths=(4, 8, 8)).double().eval()
    halo, stride = network.halo, network.stride
    wide = torch.rand((1, 2, 2 * halo + 4 * stride) + (2 * stride,) * (dims - 1), dtype=torch.double)
    moved = network(wide[:, :, stride:])
    torch.testing.assert_close(moved[:, :, halo:], network(wide)[:, :, stride + halo :], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [1, 2, 7, 13, 21])
def test_any_size_keeps_its_size_and_what_lies_a_halo_from_the_end_does_not_feel_it(dims, size):
    torch.manual_seed(0)
    network = UNet(dims, 1, 2, widths=(4, 8, 8)).double().eval()
    start, rest = network.halo + network.stride, (size,) * (dims - 1)
    x = torch.rand((1, 1, start + size, *rest), dtype=torch.double)
    answer = network(x)
    assert answer.shape[2:] == x.shape[2:]
    longer = network(torch.cat([x, torch.rand_like(x)], dim=2))
    torch.testing.assert_close(longer[:, :, : network.stride], answer[:, :, : network.stride], rtol=1e-12, atol=1e-12)


def test_initialised_as_he_says():
    torch.manual_seed(0)
    weights = UNet(2, 1, 2, **PAPER).down[3][0].weight.detach().numpy()
    assert np.std(weights) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


def test_dropout_acts_at_the_end_of_the_contracting_path_only_in_training():
    torch.manual_seed(0)
    network = UNet(2, 1, 2, widths=(2, 4, 8), norm=None, dropout=0.5)
    x = torch.rand(1, 1, 16, 16)
    assert not torch.equal(network.train()(x), network(x))
    torch.testing.assert_close(network.eval()(x), network(x), rtol=0, atol=0)


def test_the_other_order_joins_the_upsampled_map_first():
    """The same network once the filters behind each joint change places accordingly."""
    torch.manual_seed(0)
    ours, other = UNet(2, 1, 2, (4, 8, 16)).eval(), UNet(2, 1, 2, (4, 8, 16), concat_order="up_skip").eval()
    other.load_state_dict(ours.state_dict())
    for merge in other.merge:
        weight = merge[0].weight.data
        merge[0].weight.data = torch.cat(weight.chunk(2, dim=1)[::-1], dim=1)
    x = torch.rand(1, 1, 29, 37)
    torch.testing.assert_close(other(x), ours(x), rtol=1e-4, atol=1e-5)


def test_a_relu_follows_the_up_convolution_on_request():
    torch.manual_seed(0)
    network = UNet(2, 1, 2, (4, 8, 16), relu_after_upconv=True).eval()
    plain = UNet(2, 1, 2, (4, 8, 16)).eval()
    plain.load_state_dict(network.state_dict())
    for up in plain.up:
        up.register_forward_hook(lambda _, __, upsampled: torch.relu(upsampled))
    x = torch.rand(1, 1, 29, 37)
    torch.testing.assert_close(network(x), plain(x), rtol=0, atol=0)


def test_a_stride_of_one_keeps_slices_apart():
    """With no pooling along an axis and kernels that only see their own slice, a volume is its slices in 2D."""
    torch.manual_seed(0)
    flat, volume = UNet(2, 1, 2, (4, 8, 16)).eval(), UNet(3, 1, 2, (4, 8, 16), strides=[(2, 2, 1), (2, 2, 1)]).eval()
    state = volume.state_dict()
    for key, value in flat.state_dict().items():
        if value.shape == state[key].shape:
            state[key] = value
        else:
            state[key].zero_()
            state[key][..., state[key].shape[-1] // 2] = value
    volume.load_state_dict(state)
    x = torch.rand(1, 1, 19, 22, 3)
    expected = torch.stack([flat(x[..., k]) for k in range(3)], dim=-1)
    torch.testing.assert_close(volume(x), expected, rtol=1e-5, atol=1e-5)
    assert (volume.cell, volume.stride, volume.halo) == ([4, 4, 1], 4, flat.halo)


@pytest.mark.parametrize(("axis", "strides"), [(0, [(2, 2, 1), 2, 2]), (2, [(2, 2, 1), 2, 2]), (2, [(2, 2, 1)] * 3)])
def test_no_axis_looks_farther_than_the_halo_with_unequal_strides(axis, strides):
    torch.manual_seed(0)
    network = UNet(3, 1, 1, (1,) * 4, norm=None, strides=strides)
    reach = reach_of(network, 3, axis, images=20)
    assert reach <= network.halo and (axis != 0 or reach > network.halo - network.stride)


def test_deep_supervision_answers_each_decoder_level_in_training_and_one_tensor_else():
    torch.manual_seed(0)
    network = UNet(3, 1, 2, (4, 8, 16, 16), norm=None, strides=[2, (2, 2, 1), 2], deep_supervision=True)
    plain = UNet(3, 1, 2, (4, 8, 16, 16), norm=None, strides=[2, (2, 2, 1), 2])
    plain.load_state_dict(network.state_dict(), strict=False)
    maps = []
    for merge in plain.merge:
        merge.register_forward_hook(lambda _, __, merged: maps.append(merged))
    x = torch.rand(1, 1, 19, 16, 13)
    logits = plain(x)
    answers = network.train()(x)
    torch.testing.assert_close(answers[0], logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(network.eval()(x), logits, rtol=1e-6, atol=1e-6)
    for answer, head, coarse, factors in zip(
        answers[1:], network.coarse_heads, (maps[1], maps[0]), ((2, 2, 2), (4, 4, 2)), strict=True
    ):
        assert answer.shape == logits.shape
        expected = nn.functional.interpolate(
            head(coarse), [n * f for n, f in zip(coarse.shape[2:], factors, strict=True)], mode="trilinear"
        )
        inside = (..., *[slice(min(a, b)) for a, b in zip(expected.shape[2:], answer.shape[2:], strict=True)])
        torch.testing.assert_close(answer[inside], expected[inside], rtol=1e-5, atol=1e-6)


def test_valid_convolutions_refuse_what_they_cannot_give():
    for option in ({"strides": [(2, 1), 2]}, {"deep_supervision": True}):
        with pytest.raises(ValueError, match='padding="same"'):
            UNet(2, 1, 2, (4, 8, 16), padding="valid", norm=None, **option)
    with pytest.raises(ValueError, match="1 or 2 for each of 2 poolings"):
        UNet(2, 1, 2, (4, 8, 16), strides=[2, 3])


class WithoutSkips(UNet):
    def _join(self, skip, upsampled):
        return super()._join(torch.zeros_like(skip), upsampled)


def test_skips_raise_the_first_gradient():
    """At He initialisation, against the same network with its skips emptied: 3.4 times (geometric mean), 1.7 to 7.3.

    It holds for the network as it is initialised: with batch norm, or with joints made for the upsampled map alone,
    the gradient of the emptied network is not smaller.
    """
    ratios = []
    for seed in range(10):
        norms = []
        for kind in (UNet, WithoutSkips):
            torch.manual_seed(seed)
            network = kind(2, 1, 2, (8, 16, 32, 64, 128), norm=None)
            torch.manual_seed(100 + seed)
            x, label = torch.rand(1, 1, 64, 64), torch.randint(2, (1, 64, 64))
            nn.functional.cross_entropy(network(x), label).backward()
            norms.append(float(network.down[0][0].weight.grad.norm()))
        ratios.append(norms[0] / norms[1])
    assert np.exp(np.log(ratios).mean()) > 2
    assert min(ratios) > 1


def test_the_decoder_has_twice_the_parameters_of_the_encoder_at_each_level():
    with torch.device("meta"):
        network = UNet(2, 1, 2, **PAPER)
    counts = [[sum(p.numel() for p in block.parameters()) for block in side] for side in (network.down, network.merge)]
    ratios = [decoder / encoder for encoder, decoder in zip(counts[0], counts[1][::-1], strict=True)]
    assert ratios == pytest.approx([2.95, 2.0, 2.0, 2.0], abs=0.005)
