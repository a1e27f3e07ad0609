"""OpenVINO answers what torch answers, or torch does: every network of ours, any size, batch and memory layout."""

import copy
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from fewscan.errors import BundleError
from fewscan.networks import FCN, SegNet, UNet
from fewscan.networks.ensemble import Ensemble
from fewscan.networks.sampling import dropout_on
from fewscan.networks.segnet import SegNetBasic
from fewscan.tiling import OverlapTileInferer
from fewscan.tiling.backend import OpenVinoNetwork, choose_backend

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")

FAST = {
    "unet 2D": lambda: UNet(2, 1, 3, widths=(4, 6, 8)),
    "unet 3D": lambda: UNet(3, 2, 3, widths=(3, 4, 5), strides=[[2, 2, 1], 2]),
    "unet without norm": lambda: UNet(2, 1, 3, widths=(4, 6), norm=None, dropout=0.5, relu_after_upconv=True),
    "unet valid": lambda: UNet(2, 1, 3, widths=(3, 4, 5), padding="valid", norm=None),
    "unet supervised": lambda: UNet(2, 1, 3, widths=(4, 6, 8), deep_supervision=True),
    "fcn 2D": lambda: FCN(2, 1, 3, widths=[4, 4, 4, 4, 4], fc_width=8, strides=[2, 2, 1, 1, 1]),
    "fcn 3D": lambda: FCN(3, 1, 3, widths=[4, 4, 4, 4, 4], fc_width=8, strides=[2, 2, 1, 1, 1]),
    "fcn faithful": lambda: FCN(2, 1, 3, widths=[4, 4, 4, 4, 4], fc_width=8, mode="faithful"),
    "ensemble": lambda: Ensemble([UNet(2, 1, 3, widths=(4, 6)) for _ in range(3)]),
    "foreign": lambda: nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.GELU(), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)),
}
LEFT = {
    "segnet": (lambda: SegNet(2, 1, 3, widths=[4, 4, 4, 4, 4], strides=[2, 2, 1, 1, 1]), "which rounding may move"),
    "segnet basic": (lambda: SegNetBasic(2, 1, 3, width=4), "which rounding may move"),
    "instance norm": (lambda: UNet(2, 1, 3, widths=(4, 6), norm="instance"), "rounds too much"),
    "double": (lambda: UNet(2, 1, 3, widths=(4, 6)).double(), "weights in torch.float64 on cpu"),
}


def trained(make) -> nn.Module:
    """A network whose batch norms have seen data, so that they do something."""
    torch.manual_seed(0)
    network = make()
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


def seen(network) -> list[tuple[int, ...]]:
    """The shapes of all that torch will compute with it from now on."""
    shapes: list[tuple[int, ...]] = []
    network.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


def assert_close(answer, network, tiles) -> None:
    """To the network in double precision, in parts of its largest |logit|."""
    with torch.inference_mode():
        expected = copy.deepcopy(network).double()(tiles.double())
    assert answer.shape == expected.shape and answer.dtype == torch.float32
    assert (answer - expected).abs().max() <= 1e-5 * expected.abs().max()


@needs_openvino
@pytest.mark.parametrize("name", FAST)
def test_answers_are_those_of_torch(name):
    """Also for sizes that the stride does not divide, where the network continues the tile."""
    network = trained(FAST[name])
    dims = 3 if "3D" in name else 2
    channels = 2 if name == "unet 3D" else 1
    sizes = {2: [(64, 96), (61, 37), (72, 40), (5, 70)], 3: [(24, 16, 20), (13, 9, 22), (3, 16, 16)]}[dims]
    if name == "unet valid":
        sizes = [(300, 176), (44, 48)]
    fast = OpenVinoNetwork(network)
    for size in sizes:
        tiles = torch.rand(2, channels, *size)
        assert_close(fast(tiles), network, tiles)
    assert fast.notes == []


@needs_openvino
@pytest.mark.parametrize(("make", "why"), LEFT.values(), ids=LEFT)
def test_what_openvino_rounds_too_much_is_left_to_torch(make, why):
    network = trained(make)
    tiles = torch.rand(2, 1, 32, 40, dtype=next(network.parameters()).dtype)
    fast = OpenVinoNetwork(network)
    for _ in range(2):
        assert torch.equal(fast(tiles), network(tiles))
    assert len(fast.notes) == 1 and why in fast.notes[0]
    assert choose_backend("auto", network, "cpu") == "eager"


@needs_openvino
def test_torch_computes_only_what_is_checked():
    """Each shape of large tiles at its far corner; small tiles once for all sizes that divide alike."""
    network = trained(lambda: UNet(2, 1, 3, widths=(2, 3)))
    shapes, fast = seen(network), OpenVinoNetwork(network)
    assert (network.stride, network.halo) == (2, 8)
    corner = 8 + 128
    for size, computed in (
        ((400, 400), [(corner, corner)]),
        ((400, 400), []),
        ((404, 401), [(corner, corner + 1)]),
        ((60, 40), [(60, 40)]),
        ((40, 60), []),
        ((136, 150), []),
        ((61, 40), [(61, 40)]),
        ((41, 60), []),
        ((301, 41), [(corner + 1, 41)]),
        ((41, 61), []),
    ):
        tiles = torch.rand(1, 1, *size)
        shapes.clear()
        answer = fast(tiles)
        assert [shape[2:] for shape in shapes if max(shape[2:]) > 5] == computed  # the rest are examples to convert
        assert_close(answer, network, tiles)
    assert fast.notes == []


class Threshold(nn.Conv2d):
    """Label 1 where the intensity is above one half."""

    def __init__(self) -> None:
        super().__init__(1, 2, 1)
        self.weight.data[:, 0, 0, 0] = torch.tensor([0.0, 1.0])
        self.bias.data[:] = torch.tensor([0.0, -0.5])


@needs_openvino
def test_background_does_not_count_as_a_check():
    """Until a tile holds several labels, and eight times at most."""
    empty, full = torch.zeros(1, 1, 40, 40), torch.ones(1, 1, 40, 40)
    both = torch.cat([empty, full], dim=2)[:, :, 20:60]
    for tiles, computed in (([empty, full, empty, both, both, empty], 4), ([empty] * 12, 8)):
        network = Threshold().eval()
        fast = OpenVinoNetwork(network)
        fast._converted(empty, (1, 40, 40))  # has to be traced once
        shapes = seen(network)
        for tile in tiles:
            assert torch.equal(fast(tile), network.forward(tile))
        assert len(shapes) == computed
        assert fast.notes == []


class Sized(nn.Module):
    """Says that it looks nowhere, and yet its answer depends on the size of the tile."""

    is_local, stride, halo = True, 2, 0

    def forward(self, x):
        return torch.cat([x, x * int(x.shape[-1])], dim=1)


class Unknown(nn.Module):
    """An operation that OpenVINO does not have."""

    def forward(self, x):
        return torch.cat([x, torch.special.bessel_j1(x)], dim=1)


@needs_openvino
@pytest.mark.parametrize(
    ("network", "told"),
    [
        (Sized(), "torch computes tiles of 16 x 20 voxels, as OpenVINO's answer differs: logits by up to "),
        (Unknown(), "torch computes tiles of 16 x 20 voxels, as OpenVINO cannot: "),
    ],
)
def test_torch_goes_on_where_openvino_is_wrong(network, told):
    fast, shapes = OpenVinoNetwork(network.eval()), seen(network)
    tiles = torch.rand(3, 1, 16, 20)
    for _ in range(2):
        assert torch.equal(fast(tiles), network(tiles))
    assert len(fast.notes) == 1 and fast.notes[0].startswith(told)
    shapes.clear()
    fast(tiles)
    assert shapes == [(1, 1, 16, 20)] * 3


@needs_openvino
def test_the_difference_is_told_in_numbers():
    tiles = torch.rand(1, 1, 16, 20)
    tiles[..., 15, 19] = 1
    fast = OpenVinoNetwork(Sized().eval())
    fast(tiles)  # 20 times the voxel, where an example of 4 voxels had 4 times
    assert "logits by up to 16, where the largest is 20 (2e-04 of it is allowed), 0 of 320 labels" in fast.notes[0]


@needs_openvino
def test_dropout_samples_are_left_to_torch():
    network = trained(lambda: UNet(2, 1, 3, widths=(4, 6), dropout=0.5))
    fast, tiles = OpenVinoNetwork(network), torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        assert_close(fast(tiles), network, tiles)
        assert fast.notes == []
        with dropout_on(network, seed=3):
            expected = network(tiles)
        with dropout_on(network, seed=3):
            assert torch.equal(fast(tiles), expected)
        assert_close(fast(tiles), network, tiles)
    assert fast.notes == ["torch computes, as a part of the network is in train()"]


@needs_openvino
def test_batch_and_repetition_never_change_a_bit():
    network = trained(FAST["unet 3D"])
    fast, tiles = OpenVinoNetwork(network), torch.rand(3, 2, 16, 24, 20)
    first = fast(tiles)
    assert torch.equal(fast(tiles), first)
    assert torch.equal(torch.cat([fast(tile) for tile in tiles.split(1)]), first)
    assert torch.equal(OpenVinoNetwork(network)(tiles[2:]), first[2:])


@needs_openvino
def test_turned_tiles_are_not_mistaken():
    network = trained(FAST["unet 2D"])
    fast, tiles = OpenVinoNetwork(network), torch.rand(2, 1, 24, 40)
    for turned in (tiles.transpose(2, 3), tiles.flip(3), tiles[..., ::2], tiles.expand(2, 1, 24, 40)[:, :, 4:, 8:]):
        assert_close(fast(turned), network, turned)
    answer = fast(tiles)
    assert_close(fast(tiles.transpose(2, 3)), network, tiles.transpose(2, 3))
    assert torch.equal(fast(tiles), answer)


@needs_openvino
@pytest.mark.parametrize("symmetry", ["none", "square"])
def test_tiles_by_openvino_give_the_whole_answer_of_torch(symmetry):
    network = trained(lambda: UNet(2, 1, 3, widths=(4, 6)))
    volume = torch.rand(1, 70, 45)
    fast, inferer = OpenVinoNetwork(network), OverlapTileInferer(2, (36, 40), symmetry=symmetry)
    with torch.inference_mode():
        whole = OverlapTileInferer(2, (80, 80), symmetry=symmetry)(volume[None], network)[0]
        for piece in inferer.pieces(volume, fast, network):
            apart = piece.logits - whole[(slice(None), *piece.box)]
            assert apart.abs().max() <= 1e-5 * whole.abs().max()
    assert fast.notes == []


ALONE = """
import sys, torch
from fewscan.networks import UNet
from fewscan.tiling.backend import OpenVinoNetwork

def watch(event, arguments):
    if event.startswith(("socket.connect", "socket.getaddrinfo")):
        raise SystemExit(f"{event} {arguments}")

sys.addaudithook(watch)
fast = OpenVinoNetwork(UNet(2, 1, 2, widths=(2, 3)).eval())
fast(torch.rand(1, 1, 8, 8))
print(fast.notes, [name for name in sys.modules if name.startswith("openvino_telemetry.")])
"""


@needs_openvino
def test_nothing_is_reported_or_written(tmp_path):
    """OpenVINO's package would write into the home folder and report its use."""
    home = {name: str(tmp_path) for name in ("HOME", "USERPROFILE", "LOCALAPPDATA", "TMPDIR", "TEMP", "TMP")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env={**os.environ, **home}, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] []\n", "")
    assert list(tmp_path.iterdir()) == []


@needs_openvino
def test_auto_takes_openvino_where_it_may():
    network = UNet(2, 1, 2, widths=(2, 3))
    assert choose_backend("auto", network, "cpu") == "eager"  # in train()
    assert choose_backend("auto", network.eval(), "cpu") == "openvino"
    assert choose_backend("auto", lambda x: x, "cpu") == "eager"
    assert choose_backend("auto", network, torch.device("cuda", 1)) == "eager"
    assert choose_backend("openvino", network, torch.device("cpu")) == "openvino"
    assert choose_backend("eager", network, "cpu") == "eager"


def test_what_cannot_be_is_refused(monkeypatch):
    network = UNet(2, 1, 2, widths=(2, 3)).eval()
    with pytest.raises(BundleError, match="computes on the CPU, but the device is cuda:1; take the backend auto"):
        choose_backend("openvino", network, torch.device("cuda", 1))
    with pytest.raises(ValueError, match="one of auto, eager, openvino, not 'tensorrt'"):
        choose_backend("tensorrt", network, "cpu")
    monkeypatch.setitem(sys.modules, "openvino", None)  # as where it is not installed
    assert choose_backend("auto", network, "cpu") == "eager"
    with pytest.raises(BundleError, match=r'pip install "fewscan\[openvino\]"'):
        choose_backend("openvino", network, "cpu")


SIGNALS = """
import os, signal, subprocess, sys
import torch
from fewscan.networks import UNet
from fewscan.tiling.backend import OpenVinoNetwork

ended = []
network = OpenVinoNetwork(UNet(2, 1, 2, widths=(3, 4)).eval())
with torch.inference_mode():
    for side in (16, 24, 32, 40):
        network(torch.rand(1, 1, side, side))
assert not network.notes
signal.signal(signal.SIGCHLD, lambda *_: ended.append(1))
subprocess.run([sys.executable, "-c", "pass"], check=True)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print(len(ended), "child, then Ctrl-C")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OpenVINO changes the stack of signals on Linux alone")
def test_signals_are_handled_after_openvino_ran():
    """By Python's own handlers; OpenVINO's stack for them is too small, and the process would end with SIGSEGV."""
    done = subprocess.run([sys.executable, "-c", SIGNALS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1 child, then Ctrl-C\n"), done.stderr
