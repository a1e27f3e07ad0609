"""Pieces of an answer: cores partition the volume, what they cover is the whole's, and labels follow from them."""

import numpy as np
import pytest
import torch
from torch import nn

from fewscan.decision import Decision, largest
from fewscan.network_grid import to_network_grid
from fewscan.networks import FCN, SegNet, UNet
from fewscan.tiling import OverlapTileInferer
from fewscan.tiling.stream import read
from test_network_grid import GRIDS, decide, smooth


class Parts:
    """A volume that gives parts only, and remembers the largest."""

    def __init__(self, array: torch.Tensor) -> None:
        self.array, self.shape, self.most = array, tuple(array.shape), 0

    def __getitem__(self, box):
        part = self.array[box]
        self.most = max(self.most, part.numel())
        return part


class Blur(nn.Module):
    """A foreign network of three classes: the image, its mean over 3 voxels, and a constant."""

    def forward(self, x):
        mean = nn.functional.avg_pool2d(x, 3, 1, 1) if x.ndim == 4 else nn.functional.avg_pool3d(x, 3, 1, 1)
        return torch.cat([x, mean, torch.ones_like(x)], dim=1)


NETWORKS = {
    "unet 2D": (2, lambda: UNet(2, 1, 3, widths=(4, 6, 8))),
    "unet 3D": (3, lambda: UNet(3, 1, 3, widths=(3, 4))),
    "unet valid": (2, lambda: UNet(2, 1, 3, widths=(3, 4, 5), padding="valid", norm=None)),
    "fcn 2D": (2, lambda: FCN(2, 1, 3, widths=[4, 4, 4, 4, 4], strides=[2, 2, 1, 1, 1])),
    "segnet 2D": (2, lambda: SegNet(2, 1, 3, widths=[4, 4, 4, 4, 4], strides=[2, 2, 1, 1, 1])),
    "blended 2D": (2, Blur),
    "blended 3D": (3, Blur),
}
SIZES = {2: ((61, 37), (24, 32)), 3: ((21, 37, 18), (16, 16, 12))}


@pytest.mark.parametrize("symmetry", ["none", "mirror"])
@pytest.mark.parametrize("name", NETWORKS)
def test_pieces_are_parts_of_the_whole_answer(name, symmetry):
    """Also one voxel beyond each core's end."""
    torch.manual_seed(0)
    dims, make = NETWORKS[name]
    network, (shape, tile) = make().double().eval(), SIZES[dims]
    volume = torch.rand(1, *shape, dtype=torch.double)
    inferer = OverlapTileInferer(dims, tile, symmetry=symmetry)
    owned = np.zeros(shape, dtype=int)
    with torch.inference_mode():
        whole = inferer(volume[None], network)[0]
        for piece in inferer.pieces(volume, network, network):
            owned[piece.core] += 1
            assert all(
                b.start == c.start and b.stop == min(c.stop + 1, n)
                for b, c, n in zip(piece.box, piece.core, shape, strict=True)
            )
            expected = whole[(slice(None), *piece.box)]
            assert (piece.logits - expected).abs().max() <= 1e-12 * whole.abs().max()
    assert (owned == 1).all()


@pytest.mark.parametrize("shape", [(41, 17), (9, 30), (16, 16), (3, 5)])
def test_blended_pieces_are_the_mean_of_all_patches(shape):
    """Against sums over the whole volume, in NumPy."""
    torch.manual_seed(0)
    network, patch = Blur().double(), (8, 10)
    volume = torch.rand(1, *shape, dtype=torch.double)
    window = np.multiply.outer(*(np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in patch))
    window = np.maximum(window, 1e-3)
    steps = [n // 2 for n in patch]
    counts = [1 if n <= p else -(-(n - p) // s) + 1 for n, p, s in zip(shape, patch, steps, strict=True)]
    sums, weights = np.zeros((3, 99, 99)), np.zeros((99, 99))
    for i in range(counts[0]):
        for j in range(counts[1]):
            box = (slice(i * steps[0], i * steps[0] + patch[0]), slice(j * steps[1], j * steps[1] + patch[1]))
            sums[(slice(None), *box)] += network(read(volume, box)[None])[0].numpy() * window
            weights[box] += window
    expected = sums[:, : shape[0], : shape[1]] / weights[: shape[0], : shape[1]]
    answer = OverlapTileInferer(2, patch)(volume[None], network)[0].numpy()
    np.testing.assert_allclose(answer, expected, rtol=1e-6)  # the window is float32


def test_only_tiles_are_read():
    """The volume may be larger than memory: whatever its depth, what is read at once is a tile."""
    torch.manual_seed(0)
    network = UNet(3, 1, 2, widths=(3, 4)).eval()
    for depth in (20, 80):
        volume = Parts(torch.rand(1, 16, 16, depth))
        with torch.inference_mode():
            for piece in OverlapTileInferer(3, (16, 16, 32)).pieces(volume, network, network):
                assert piece.logits.numel() <= 2 * 16 * 16 * 32
        assert volume.most <= 16 * 16 * 32


@pytest.mark.parametrize("together", [1, 2 * 2 * 17 * 21, 2**24])
def test_slices_that_are_read_together_give_the_same(monkeypatch, together):
    """A 2D network on seven slices: one reading a tile, four of all slices, or one."""
    monkeypatch.setattr("fewscan.tiling.inferer.AT_ONCE", together)
    torch.manual_seed(0)
    network, values = UNet(2, 2, 3, widths=(3, 4)).eval(), torch.rand(2, 17, 21, 7)
    inferer, volume = OverlapTileInferer(2, tile=(24, 24)), Parts(values)
    with torch.inference_mode():
        expected = list(inferer.pieces(values, network, network))
        found = list(inferer.pieces(volume, network, network))
    assert len(found) == len(expected) == 7
    for one, other in zip(found, expected, strict=True):
        assert (one.core, one.box) == (other.core, other.box) and torch.equal(one.logits, other.logits)
    assert volume.most == {1: 1, 2 * 2 * 17 * 21: 2, 2**24: 7}[together] * 2 * 17 * 21


@pytest.mark.parametrize("kind", ["array", "reversed array", "memory map", "zarr"])
@pytest.mark.parametrize("mode", ["exact", "blend", "monai"])
def test_a_volume_may_be_any_array(kind, mode, tmp_path):
    """The same pieces, bit for bit, as from a tensor."""
    torch.manual_seed(0)
    network, values = UNet(3, 2, 2, widths=(3, 4)).eval(), np.random.default_rng(0).random((2, 19, 30, 13), np.float32)
    if kind == "memory map":
        values.tofile(tmp_path / "raw")
        volume = np.memmap(tmp_path / "raw", np.float32, "r", shape=values.shape)
    elif kind == "zarr":
        volume = pytest.importorskip("zarr").open_array(
            tmp_path / "a.zarr", mode="w", shape=values.shape, chunks=(1, 8, 9, 10), dtype="f4"
        )
        volume[:] = values
    else:
        volume = values[:, ::-1][:, ::-1] if kind == "reversed array" else values
    inferer = OverlapTileInferer(3, tile=(16, 24, 16), patch=(8, 12, 16), mode=mode)
    with torch.inference_mode():
        expected = list(inferer.pieces(torch.from_numpy(values), network, network))
        found = list(inferer.pieces(volume, network, network))
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        assert (one.core, one.box) == (other.core, other.box) and torch.equal(one.logits, other.logits)


@pytest.mark.parametrize("scan", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("spacing", [None, (1.4, 1.4, 1.4), (0.7, 1.1, 2.5)])
def test_labels_from_pieces_are_those_of_the_whole(scan, spacing):
    torch.manual_seed(0)
    network = Blur()
    image, grid = to_network_grid(smooth(scan.shape), scan, spacing)
    pieces = list(OverlapTileInferer(3, (8, 8, 8)).pieces(image, network, network))
    whole = OverlapTileInferer(3, (8, 8, 8))(image[None], network)[0]
    decision = Decision(tuple(image.shape[1:]), grid.affine, scan)
    for piece in reversed(pieces):
        decision.add(piece.logits, piece.box, piece.core)
    assert len(pieces) > 1
    expected = decide(whole, grid.affine, scan)
    assert len(np.unique(expected)) > 1
    assert np.array_equal(decision.classes, expected)


@pytest.mark.parametrize("classes", [1, 2, 5, 300])
def test_the_largest_is_numpys_argmax(classes):
    values = np.random.default_rng(0).integers(0, 4, (classes, 7, 11)).astype(np.float32)  # many ties
    answer = largest(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(answer, values.argmax(axis=0))


def test_volumes_go_on_by_reflection():
    volume = np.random.default_rng(0).random((2, 5, 1, 7)).astype(np.float32)
    part = read(volume, (slice(-7, 9), slice(-1, 3), slice(2, 4))).numpy()
    padded = np.pad(volume, ((0, 0), (7, 4), (0, 0), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(part, np.repeat(padded, 4, axis=2)[..., 2:4])


@pytest.mark.parametrize("symmetry", ["none", "mirror"])
@pytest.mark.parametrize(("padding", "mode"), [("same", "exact"), ("same", "blend"), ("valid", "exact")])
def test_a_head_on_cores_gives_the_networks_logits(padding, mode, symmetry):
    """Of each voxel by itself: before or after patches are blended and turns averaged, for it is linear."""
    torch.manual_seed(0)
    network = UNet(2, 1, 9, widths=(3, 4, 5), padding=padding, norm=None).double().eval()
    (body, head), volume = network.split(), torch.rand(1, 61, 37, dtype=torch.double)
    tile = (64, 48) if padding == "same" else (16, 20)
    inferer = OverlapTileInferer(2, tile, patch=(24, 24), symmetry=symmetry, mode=mode)
    with torch.inference_mode():
        whole = inferer(volume[None], network)[0]
        found = list(inferer.pieces(volume, body, body, head=head))
    for piece in found:
        expected = whole[(slice(None), *piece.box)]
        assert piece.logits.shape == expected.shape
        assert (piece.logits - expected).abs().max() <= 1e-12 * whole.abs().max()
    assert sum(np.prod([along.stop - along.start for along in piece.core]) for piece in found) == 61 * 37


@pytest.mark.parametrize(
    "options", [{"tile": (24, 24)}, {"patch": (16, 16), "mode": "blend"}, {"patch": (16, 16), "mode": "monai"}]
)
def test_it_works_where_gradients_are_recorded_too(options):
    torch.manual_seed(0)
    network, volume = UNet(2, 1, 2, widths=(3, 4)).eval(), torch.rand(1, 1, 40, 33)
    inferer = OverlapTileInferer(2, symmetry="mirror", **options)
    with torch.inference_mode():
        expected = inferer(volume, network)
    assert torch.equal(inferer(volume, network).detach(), expected)
