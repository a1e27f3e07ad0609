"""What all three networks are: one class for every pixel, and no objects."""

import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from fewscan.networks import FCN, SegNet, UNet
from networks.narrow import WIDTHS

NETWORKS = {
    "unet": lambda: UNet(2, 1, 2, (4, 8, 16)),
    "fcn": lambda: FCN(2, 1, 2, "8s", widths=WIDTHS, fc_width=16, norm="batch", dropout=0),
    "segnet": lambda: SegNet(2, 1, 2, WIDTHS),
}


def discs(centres, shape=(64, 64), radius=9.0):
    """(1, *shape): 1 within `radius` of any of the centres."""
    rows, columns = torch.meshgrid(*[torch.arange(n) for n in shape], indexing="ij")
    return torch.stack([(rows - y) ** 2 + (columns - x) ** 2 < radius**2 for y, x in centres]).any(0)[None].long()


def noisy(label, generator):
    return label[:, None] + 0.2 * torch.randn(label[:, None].shape, generator=generator)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_pixel_gets_a_class_and_touching_objects_become_one_region(name):
    """Trained on discs that lie anywhere; two discs apart are two regions, two that touch are one."""
    torch.manual_seed(0)
    network, generator = NETWORKS[name](), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(120):
        label = torch.cat([discs(64 * torch.rand(2, 2, generator=generator)) for _ in range(4)])
        optimiser.zero_grad()
        functional.cross_entropy(network(noisy(label, generator)), label).backward()
        optimiser.step()
    network.eval()
    for centres, regions in (([(30, 20), (33, 47)], 2), ([(30, 20), (33, 36)], 1)):
        label = discs(centres, (67, 75))  # an odd size
        with torch.no_grad():
            classes = network(noisy(label, generator)).argmax(1)
        assert classes.shape == label.shape
        found, count = ndimage.label(classes[0].numpy())
        assert (classes == label).float().mean() > 0.96
        sizes = [int((found == number).sum()) for number in range(1, count + 1)]
        assert sum(size > 20 for size in sizes) == regions
        same = found[centres[0]] == found[centres[1]]
        assert found[centres[0]] and found[centres[1]] and same == (regions == 1)
