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
    with pytest.raises(ValueError, match="the `patch` of its training, 3 numbers, not"):
        OverlapTileInferer(3, patch=patch)(torch.rand(1, 1, 16, 16, 16), network("instance"))


@pytest.mark.parametrize("dims, symmetry", [(2, "mirror"), (2, "square"), (3, "mirror")])
def test_the_mean_over_copies_is_that_of_the_turned_images_and_turns_with_the_image(dims, symmetry):
    torch.manual_seed(1)
    net = UNet(dims, 1, 2, (4, 8), norm="batch").double().eval()
    image = torch.rand(1, 1, *(11, 18, 13)[:dims]).double()
    single, inferer = OverlapTileInferer(dims), OverlapTileInferer(dims, symmetry=symmetry)
    axes = [[axis for axis in range(dims) if copy >> axis & 1] for copy in range(2**dims)]
    with torch.no_grad():
        copies = []
        for flip in ([2 + axis for axis in chosen] for chosen in axes):
            copies.append(single(image.flip(flip), net).flip(flip))
            if symmetry == "square":
                turned = image.flip(flip).rot90(1, (2, 3))
                copies.append(single(turned, net).rot90(-1, (2, 3)).flip(flip))
        answer = inferer(image, net)
        torch.testing.assert_close(answer, torch.stack(copies).mean(0), rtol=0, atol=1e-12)
        assert not torch.allclose(answer, single(image, net), atol=1e-6)
        torch.testing.assert_close(inferer(image.flip(2), net), answer.flip(2), rtol=0, atol=1e-12)
        if symmetry == "square":
            torch.testing.assert_close(
                inferer(image.rot90(1, (2, 3)), net), answer.rot90(1, (2, 3)), rtol=0, atol=1e-12
            )


def test_quarter_turns_are_of_the_plane():
    with pytest.raises(ValueError, match="'square' in 2D"):
        OverlapTileInferer(3, symmetry="square")
