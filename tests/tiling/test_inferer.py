"""Networks that look at the whole patch are asked in patches of their training, all others in exact tiles."""

import pytest
import torch

from fewscan.networks import UNet
from fewscan.tiling import OverlapTileInferer


def network(norm: str) -> UNet:
    torch.manual_seed(0)
    return UNet(3, 1, 2, (4, 8), norm=norm).eval()


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_patch_counts_for_networks_that_are_not_local(norm):
    """A volume of one patch: with instance norm its answer is one pass of that patch, never of a tile."""
    volume, net = torch.rand(1, 1, 16, 8, 24), network(norm)
    with torch.no_grad():
        whole = net(volume)
        answer = OverlapTileInferer(3, tile=[8, 8, 8], patch=[16, 8, 24])(volume, net)
    torch.testing.assert_close(answer, whole, rtol=1e-5, atol=1e-5)


def test_without_a_patch_the_tile_is_one():
    volume, net = torch.rand(1, 1, 21, 13, 19), network("instance")
    with torch.no_grad():
        one, other = (OverlapTileInferer(3, **size)(volume, net) for size in ({"tile": [8] * 3}, {"patch": [8] * 3}))
        assert not torch.allclose(one, net(torch.nn.functional.pad(volume, (0, 1, 0, 1, 0, 1)))[..., :21, :13, :19])
    assert torch.equal(one, other)


@pytest.mark.parametrize("patch", [None, [8, 8]])
def test_a_missing_or_unfit_patch_is_refused(patch):
    with pytest.raises(ValueError, match="give the inferer the `patch` of its training, 3 numbers, not"):
        OverlapTileInferer(3, patch=patch)(torch.rand(1, 1, 16, 16, 16), network("instance"))
