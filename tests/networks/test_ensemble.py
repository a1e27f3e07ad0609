"""Networks that decide together: the mean of their probabilities, and they look as far as one."""

import numpy as np
import torch
from scipy.special import softmax

from fewscan.networks import UNet
from fewscan.networks.ensemble import Ensemble
from fewscan.tiling import OverlapTileInferer


def members(count=3, **options):
    torch.manual_seed(0)
    return [UNet(2, 1, 3, widths=(4, 8), **options).eval() for _ in range(count)]


def test_it_answers_the_mean_of_the_softmaxes():
    networks, image = members(), torch.randn(2, 1, 12, 20)
    with torch.no_grad():
        expected = np.mean([softmax(network(image).numpy(), axis=1) for network in networks], axis=0)
        answer = Ensemble(networks)(image)
    np.testing.assert_allclose(softmax(answer.numpy(), axis=1), expected, atol=1e-6)


def test_it_is_tiled_as_its_members_are():
    networks, image = members(), torch.randn(1, 1, 61, 37)
    with torch.no_grad():
        whole = OverlapTileInferer(2)(image, Ensemble(networks))
        tiled = OverlapTileInferer(2, tile=(16, 24))(image, Ensemble(networks))
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)
    assert Ensemble(networks).halo == networks[0].halo
    assert not Ensemble(members(norm="instance")).is_local
