"""The operations of the description: transposed convolution, bilinear upsampling, unpooling."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from conftest import shared
from fewscan.networks.fcn import Upsampling
from fewscan.networks.layers import bilinear_kernel
from fewscan.networks.segnet import unpool


def transposed_by_hand(x, weight, bias, stride, padding):
    """Insert stride - 1 zeros, pad kernel - 1, crop the padding, convolve with the flipped kernel."""
    dims, kernel = x.ndim - 2, weight.shape[-1]
    wide = x.new_zeros(*x.shape[:2], *[(n - 1) * stride + 1 for n in x.shape[2:]])
    wide[(..., *[slice(None, None, stride)] * dims)] = x
    wide = functional.pad(wide, [kernel - 1 - padding] * (2 * dims))
    convolve = {2: functional.conv2d, 3: functional.conv3d}[dims]
    return convolve(wide, weight.transpose(0, 1).flip(list(range(2, weight.ndim))), bias)


def test_a_transposed_convolution_inserts_zeros_pads_and_convolves():
    file = np.load(shared("parity") / "transposed_conv.npz")
    for name, _ in json.loads(str(file["meta"])):
        _, stride, _, padding = (part[1:] for part in name.split("_"))
        x, weight, bias, expected = (torch.from_numpy(file[f"{name}.{part}"]) for part in "xwby")
        ours = transposed_by_hand(x, weight, bias, int(stride), int(padding))
        layer = {4: functional.conv_transpose2d, 5: functional.conv_transpose3d}[x.ndim]
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(layer(x, weight, bias, int(stride), int(padding)), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [3, 4, 8, 16, 64])
def test_bilinear_kernels_equal_the_reference(size):
    expected = torch.from_numpy(np.load(shared("parity") / "bilinear_kernels.npz")[f"k{size}"])
    torch.testing.assert_close(bilinear_kernel(3, (size, size)), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("factors", [(2, 2), (8, 8), (1, 4), (2, 2, 2), (4, 4, 1)])
def test_upsampling_starts_as_interpolation_up_to_the_border(factors):
    torch.manual_seed(0)
    x = torch.rand(2, 3, *(3, 5, 2)[: len(factors)], dtype=torch.double)
    mode = {2: "bilinear", 3: "trilinear"}[len(factors)]
    expected = functional.interpolate(x, scale_factor=[float(f) for f in factors], mode=mode, align_corners=False)
    ours = Upsampling(3, factors, continued=True, learn=False).double()(x)
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-7)  # the kernels are made in float32


@pytest.mark.parametrize("case", ["2", "c2", "3"])  # c: pools that keep incomplete cells
def test_unpooling_equals_the_reference(case):
    file = np.load(shared("parity") / "unpool_ops.npz")
    pooled, indices, unpooled = (torch.from_numpy(file[f"{part}{case}"]) for part in "piu")
    torch.testing.assert_close(unpool(pooled, indices, list(unpooled.shape[2:])), unpooled, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(7, 9), (2, 3), (5, 6, 9)])
def test_unpooled_maxima_return_to_their_places(shape):
    torch.manual_seed(0)
    x = torch.rand(2, 3, *shape) + 1
    pool = {2: functional.max_pool2d, 3: functional.max_pool3d}[len(shape)]
    inverse = {2: functional.max_unpool2d, 3: functional.max_unpool3d}[len(shape)]
    pooled, indices = pool(x, 2, return_indices=True)
    back = unpool(pooled, indices, list(shape))
    torch.testing.assert_close(back, inverse(pooled, indices, 2, output_size=shape), rtol=0, atol=0)
    there = back != 0
    assert torch.equal(back[there], x[there]) and int(there.sum()) == pooled.numel()
