"""Exported networks answer what the networks answer: ONNX (by onnxruntime) and TorchScript."""

import warnings

import pytest
import torch

from fewscan.networks import FCN, SegNet, SegNetBasic, UNet
from networks.narrow import WIDTHS, randomise

NETWORKS = {
    "unet": lambda: UNet(2, 1, 2, (4, 8, 16)),
    "unet 3D, deep supervision": lambda: UNet(3, 1, 2, (4, 8, 16), strides=[(2, 2, 1), 2], deep_supervision=True),
    "fcn": lambda: FCN(2, 1, 2, widths=WIDTHS, fc_width=8),
    "fcn faithful": lambda: FCN(2, 1, 2, "16s", widths=WIDTHS, fc_width=8, mode="faithful"),
    "segnet": lambda: SegNet(2, 1, 2, WIDTHS),
    "segnet 3D": lambda: SegNet(3, 1, 2, WIDTHS[:3]),
    "segnet basic": lambda: SegNetBasic(2, 1, 2, 4),
}


def network_and_image(name):
    torch.manual_seed(0)
    network = randomise(NETWORKS[name]()).float()
    return network, torch.rand(1, 1, *((37, 21, 9) if "3D" in name else (37, 50)))


@pytest.mark.parametrize("name", NETWORKS)
def test_torchscript_answers_the_same(name):
    network, image = network_and_image(name)
    compiled = torch.jit.script(network)
    torch.testing.assert_close(compiled(image), network(image), rtol=1e-5, atol=1e-5)
    if "fcn" in name:
        torch.testing.assert_close(compiled.heat_map(image), network.heat_map(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_answers_the_same(name, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    network, image = network_and_image(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of itself
        torch.onnx.export(network, (image,), str(tmp_path / "network.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    expected = network(image).detach()
    assert (torch.from_numpy(answer) - expected).abs().max() <= 1e-5 * expected.abs().max()
