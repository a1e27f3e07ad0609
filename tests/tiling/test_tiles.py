"""Tiles: cores partition every volume, reads stay inside and reach far enough; tiled equals whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewscan.networks import UNet
from fewscan.tiling import OverlapTileInferer, blend_tiles, exact_tiles, mirror
from fewscan.tiling.tiles import valid_tiles

sizes = st.integers(1, 90)


@settings(max_examples=150, deadline=None)
@given(st.lists(sizes, min_size=2, max_size=2), st.integers(1, 60), st.sampled_from([2, 4, 8]), st.integers(0, 3))
def test_exact_cores_partition_and_reads_reach_a_halo(shape, tile, stride, halos):
    halo = halos * stride
    tiles = exact_tiles(shape, (tile, tile), halo=halo, stride=stride)
    padded = [-(-n // stride) * stride for n in shape]
    owned = np.zeros(padded, dtype=int)
    for one in tiles:
        owned[one.core] += 1
        for read, core, n in zip(one.read, one.core, padded, strict=True):
            assert 0 <= read.start <= core.start < core.stop <= read.stop <= n and read.start % stride == 0
            assert read.start == 0 or core.start - read.start >= halo
            assert read.stop == n or read.stop - core.stop >= halo
    assert (owned == 1).all()
    assert len({tuple(r.stop - r.start for r in one.read) for one in tiles}) == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(sizes, min_size=2, max_size=2), st.integers(3, 40), st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_blended_patches_cover_and_positions_do_not_depend_on_the_end(shape, patch, overlap):
    tiles = blend_tiles(shape, (patch,) * 2, overlap)
    covered = np.zeros(shape, dtype=bool)
    for one in tiles:
        covered[one.read] = True
    assert covered.all()
    longer = blend_tiles([n + 5 for n in shape], (patch,) * 2, overlap)
    assert {one.read[0].start for one in tiles} <= {one.read[0].start for one in longer}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 25), min_size=2, max_size=2),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    st.booleans(),
    st.permutations([0, 1]),
)
def test_no_later_patch_reaches_a_blended_core_or_the_voxel_beyond_it(shape, patch, overlap, snap, order):
    tiles = blend_tiles(shape, (patch,) * 2, overlap, snap=snap)
    tiles = sorted(tiles, key=lambda one: [one.read[axis].start for axis in order])
    owned, last = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    for number, one in enumerate(tiles):
        owned[one.core] += 1
        last[tuple(slice(max(along.start, 0), along.stop) for along in one.read)] = number
    assert (owned == 1).all()
    for number, one in enumerate(tiles):
        if owned[one.core].size:
            assert (last[tuple(slice(along.start, along.stop + 1) for along in one.core)] <= number).all()


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 5).map(lambda k: 16 * k), st.sampled_from([12, 92]))
def test_valid_cores_partition(n, core, margin):
    tiles = valid_tiles((n,), (core,), margin=margin, surplus=4)
    assert [one.core[0].start for one in tiles] == list(range(0, n, core)) and tiles[-1].core[0].stop >= n
    assert all(one.read[0].stop - one.read[0].start == core + 4 + 2 * margin for one in tiles)
    assert all(one.core[0].start - one.read[0].start == margin for one in tiles)


@given(st.integers(1, 9), st.integers(0, 30), st.integers(0, 30))
def test_mirror_is_repeated_reflection(n, before, after):
    expected = np.pad(np.arange(n), (before, after), mode="reflect" if n > 1 else "edge")
    np.testing.assert_array_equal(mirror(-before, n + after, n), expected)


@pytest.mark.parametrize(
    ("dims", "shape", "tile", "options"),
    [
        (2, (70, 101), (56, 60), {"widths": (4, 6, 8)}),
        (2, (61, 37), (40, 64), {"widths": (3, 4), "norm": None}),
        (3, (29, 45, 31), (32, 28, 28), {"widths": (3, 4)}),
    ],
)
def test_tiles_leave_no_seam(dims, shape, tile, options):
    """In double precision the tiled answer is that of one pass over the volume mirrored at its end."""
    torch.manual_seed(0)
    network = UNet(dims, 2, 3, **options).double().eval()
    for parameter in network.parameters():
        parameter.data.abs_()  # positive weights hide no edge
    volume = torch.rand(1, 2, *shape, dtype=torch.double)
    ends = [-n % network.stride for n in shape]
    whole = torch.nn.functional.pad(volume, [e for end in reversed(ends) for e in (0, end)], mode="reflect")
    with torch.no_grad():
        whole = network(whole)[(..., *(slice(n) for n in shape))]
        tiled = OverlapTileInferer(dims, tile, batch=2)(volume, network)
    scale = whole.abs().max()
    assert (tiled - whole).abs().max() <= 1e-12 * scale
    network.halo -= network.stride
    with torch.no_grad():
        seam = OverlapTileInferer(dims, tile)(volume, network)
    assert (seam - whole).abs().max() > 1e-12 * scale, "a halo one stride shorter has to leave a seam"


@pytest.mark.parametrize("shape", [(5, 33), (48, 70)])
def test_valid_network_tiled_equals_one_big_pass(shape):
    torch.manual_seed(1)
    network = UNet(2, 1, 2, widths=(3, 4, 5), padding="valid", norm=None).double().eval()
    volume = torch.rand(1, 1, *shape, dtype=torch.double)
    for axis, n in enumerate(shape, start=2):
        end = n + network.halo + (-(n - network.surplus) % network.stride)
        volume = volume.index_select(axis, torch.from_numpy(mirror(-network.halo, end, n)))
    with torch.no_grad():
        whole = network(volume)[..., : shape[0], : shape[1]]
        inner = (..., *(slice(network.halo, network.halo + n) for n in shape))
        tiled = OverlapTileInferer(2, (16, 16), batch=3)(volume[inner], network)
    assert (tiled - whole).abs().max() <= 1e-12 * whole.abs().max()


def test_instance_norm_and_foreign_networks_are_blended():
    """A network that returns its input gives back the volume; a constant one its constant."""
    volume = torch.rand(1, 2, 37, 50)
    identity = torch.nn.Identity()
    torch.testing.assert_close(OverlapTileInferer(2, (16, 24))(volume, identity), volume, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        OverlapTileInferer(2, (16, 24))(volume, lambda x: torch.full_like(x, 3.0)), torch.full_like(volume, 3.0)
    )
    with pytest.raises(ValueError, match="does not say how far it looks"):
        OverlapTileInferer(2)(volume, UNet(2, 2, 2, widths=(4, 4), norm="instance"))


def test_a_2d_network_takes_a_volume_slice_by_slice():
    torch.manual_seed(0)
    network = UNet(2, 1, 2, widths=(4, 8)).eval()
    volume = torch.rand(2, 1, 20, 24, 3)
    with torch.no_grad():
        answer = OverlapTileInferer(2)(volume, network)
        one_by_one = torch.stack([network(volume[..., k]) for k in range(3)], dim=-1)
    torch.testing.assert_close(answer, one_by_one, rtol=1e-5, atol=1e-5)
