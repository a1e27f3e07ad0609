"""Tiles within a memory: the cheapest of all that fit, and none where nothing fits."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fewscan.errors import BudgetError
from fewscan.networks import UNet
from fewscan.tiling.layout import lay_tiles
from fewscan.tiling.memory import Footprint, footprint
from fewscan.tiling.tiles import cheapest_tile, exact_tiles


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 70), min_size=2, max_size=2),
    st.sampled_from([2, 4, 8]),
    st.integers(0, 2),
    st.integers(50, 5000),
)
def test_no_tile_that_fits_evaluates_fewer_voxels(shape, stride, halos, voxels):
    """Against all reads in steps of the stride."""
    halo = halos * stride
    costs = {}
    for steps in itertools.product(*(range(1, -(-n // stride) + 1) for n in shape)):
        tile = [step * stride for step in steps]
        tiles = exact_tiles(shape, tile, halo=halo, stride=stride)
        read = tuple(along.stop - along.start for along in tiles[0].read)
        if math.prod(read) <= voxels:
            costs[read] = len(tiles) * math.prod(read)
    if not costs:
        with pytest.raises(ValueError, match=f"{voxels} are allowed"):
            cheapest_tile(shape, halo=halo, stride=stride, voxels=voxels)
        return
    best = cheapest_tile(shape, halo=halo, stride=stride, voxels=voxels)
    assert costs[best] == min(costs.values())


def test_a_forward_pass_is_counted_as_it_goes():
    """The input and two maps of 4 channels at the ReLU: 4 + 16 + 16 bytes a voxel; afterwards 4 + 16 + 8."""
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1))
    assert footprint(network, 1, 3) == Footprint(36.0, 2)
    inplace = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv3d(4, 2, 1))
    assert footprint(inplace, 1, 3) == Footprint(28.0, 2)
    overlapping = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ConvTranspose3d(4, 2, 3, padding=1))
    assert footprint(overlapping, 1, 3) == Footprint(28.0 + 4 * 2 * 27, 2)  # 27 contributions to each of two channels
    assert footprint(lambda x: x, 1, 3) is None


def test_tiles_grow_with_the_memory_up_to_one_pass():
    network, shape = UNet(3, 1, 3, widths=(4, 8)), (64, 100, 40)
    needs = footprint(network, 1, 3)
    layouts = [
        lay_tiles(network, shape, footprint=needs, memory=share * needs.read * math.prod(shape))
        for share in (0.1, 0.3, 1.0)
    ]
    assert [layout.evaluated for layout in layouts] == sorted((one.evaluated for one in layouts), reverse=True)
    assert len(layouts[0].tiles) > 1
    assert [layout.read for layout in layouts][-1] == shape
    for layout, share in zip(layouts, (0.1, 0.3, 1.0), strict=True):
        assert layout.bytes <= share * needs.read * math.prod(shape) * (1 + 1e-9)


def test_what_does_not_fit_is_refused_with_the_numbers():
    network = UNet(3, 1, 3, widths=(4, 8, 16))
    with pytest.raises(BudgetError, match=r"at least 52 x 52 x 40 = 108160 voxels, \d+ are allowed"):
        lay_tiles(network, (200, 200, 40), footprint=footprint(network, 1, 3), memory=2**20)
    blended = UNet(3, 1, 3, widths=(4, 8, 16), norm="instance")
    with pytest.raises(BudgetError, match=r"blended patches of 64 x 64 x 64 need .* GiB, 0\.0 are allowed"):
        lay_tiles(blended, (200, 200, 40), patch=(64,) * 3, footprint=footprint(blended, 1, 3), memory=2**20)


def test_auto_takes_what_evaluates_fewer_voxels():
    """A wide halo and little memory: each exact tile reads 27 times its core, each voxel lies in 8 patches."""
    network, shape = UNet(3, 1, 2, widths=(4, 4, 4, 4)), (144, 144, 144)
    needs = footprint(network, 1, 3)
    little, less = (needs.read * side**3 for side in (105, 100))
    exact = lay_tiles(network, shape, mode="exact", footprint=needs, memory=little)
    auto = lay_tiles(network, shape, patch=(48, 48, 48), footprint=needs, memory=little)
    whole = lay_tiles(network, shape, patch=(48, 48, 48), footprint=needs, memory=1e12)
    assert exact.window is None and auto.window is not None and whole.window is None
    assert auto.evaluated < exact.evaluated
    with pytest.raises(BudgetError):
        lay_tiles(network, shape, mode="exact", footprint=needs, memory=less)
    assert lay_tiles(network, shape, patch=(48, 48, 48), footprint=needs, memory=less).window is not None
    assert whole.evaluated == 144**3


@pytest.mark.parametrize("mode", ["exact", "blend"])
def test_a_network_that_tells_nothing_needs_a_patch(mode):
    with pytest.raises(ValueError, match="does not say how far it looks"):
        lay_tiles(torch.nn.Identity(), (20, 20), mode=mode)


def test_of_many_classes_tiles_are_larger_where_a_head_answers_cores_alone():
    """100 classes take 400 bytes a voxel: within the same memory far fewer voxels are evaluated."""
    network, shape, memory = UNet(3, 1, 100, widths=(4, 8, 8, 8)), (512, 512, 400), 3 * 2**30
    body, head = network.split()
    whole = lay_tiles(network, shape, slack=True, footprint=footprint(network, 1, 3), memory=memory)
    needs = replace(footprint(body, 1, 3), head=head.out_channels)
    parted = lay_tiles(body, shape, slack=True, footprint=needs, memory=memory)
    cores = [np.prod([along.stop - along.start + 1 for along in tile.core]) for tile in parted.tiles]
    assert needs.read * np.prod(parted.read) + 800 * max(cores) == parted.bytes <= memory
    assert 5 * parted.evaluated < whole.evaluated


def test_fixed_tiles_and_valid_networks_keep_to_the_memory_too():
    network, valid = UNet(3, 1, 3, widths=(4, 8)), UNet(3, 1, 3, widths=(4, 8), padding="valid")
    needs = footprint(network, 1, 3)
    with pytest.raises(BudgetError, match=r"exact tiles of 64 x 64 x 64 need .* GiB, .* are allowed"):
        lay_tiles(network, (200, 200, 64), tile=(64,) * 3, footprint=needs, memory=needs.read * 63**3)
    needs = footprint(valid, 1, 3)
    for side in (64, 90, 120):
        layout = lay_tiles(valid, (200, 200, 64), footprint=needs, memory=needs.read * side**3)
        assert side**3 / 4 < np.prod(layout.read) <= side**3
