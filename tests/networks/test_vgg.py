"""VGG-16's weights in our encoders: the same answers as VGG-16 itself."""

import pytest
import torch
from torch import nn

from fewscan.errors import FewscanError
from fewscan.networks import FCN, SegNet
from fewscan.networks.vgg import CONVOLUTIONS, VGG16, load_vgg16
from networks.narrow import WIDTHS, randomise


class TorchvisionVGG16(nn.Module):
    """Laid out and named as torchvision's `vgg16` and `vgg16_bn`, with narrower layers."""

    def __init__(self, norm=False, fc_width=24, colours=3):
        super().__init__()
        layers, inputs = [], colours
        for width, count in zip(WIDTHS, CONVOLUTIONS, strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(inputs, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(WIDTHS[-1] * 49, fc_width), nn.ReLU(), nn.Dropout(), nn.Linear(fc_width, fc_width), nn.ReLU()
        )


def saved(folder, **options):
    torch.manual_seed(0)
    vgg = randomise(TorchvisionVGG16(**options))
    torch.save(vgg.state_dict(), folder / "vgg.pth")
    return vgg, folder / "vgg.pth"


def encode(encoder, x):
    for stage, pool in zip(encoder.stages, encoder.pools, strict=True):
        x = pool(stage(x))
    return x


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_encoder_answers_what_vgg16_answers(tmp_path, norm, channels):
    vgg, file = saved(tmp_path, norm=norm == "batch")
    encoder = VGG16(2, channels, WIDTHS, norm=norm).double().eval()
    load_vgg16(encoder, file)
    x = torch.rand(1, channels, 64, 96, dtype=torch.double)
    colour = x.expand(1, 3, 64, 96)  # one channel: the answer to that image in all three colours
    torch.testing.assert_close(encode(encoder, x), vgg.features(colour), rtol=1e-10, atol=1e-10)


def test_a_linear_layer_as_a_convolution_gives_the_same_scores_at_every_window(tmp_path):
    vgg, file = saved(tmp_path)
    network = FCN(2, 3, 2, widths=WIDTHS, fc_width=24, mode="faithful").double().eval()
    assert network.load_vgg16(file) == ["encoder", "fc6", "fc7"]
    assert not any(isinstance(module, nn.Linear) for module in network.modules())
    pool5 = torch.rand(1, WIDTHS[-1], 9, 10, dtype=torch.double)
    ours = torch.relu(network.fc7(torch.relu(network.fc6(pool5))))
    for row in range(3):
        for column in range(4):
            window = pool5[:, :, row : row + 7, column : column + 7]
            expected = vgg.classifier(window.flatten(1))
            torch.testing.assert_close(ours[:, :, row, column], expected, rtol=1e-10, atol=1e-10)


def test_other_widths_of_the_classifier_stay_as_they_were(tmp_path):
    _, file = saved(tmp_path)
    network = FCN(2, 1, 2, widths=WIDTHS, fc_width=16)
    before = network.fc6.weight.clone()
    assert network.load_vgg16(file) == ["encoder"]
    assert torch.equal(network.fc6.weight, before)


def test_segnet_starts_from_vgg16_and_keeps_its_own_batch_norm(tmp_path):
    vgg, file = saved(tmp_path)
    network = SegNet(2, 1, 2, WIDTHS).double()
    network.load_vgg16(file)
    ours, theirs = network.encoder.stages[4][6], vgg.features[28]  # the last convolution
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert torch.equal(network.encoder.stages[4][7].weight, torch.ones(WIDTHS[4], dtype=torch.double))


@pytest.mark.parametrize(
    ("network", "norm", "says"),
    [
        (lambda: SegNet(2, 2, 2, WIDTHS), False, "three colours, the network 2 channels"),
        (lambda: SegNet(2, 1, 2), False, r"features.0.weight is \(4, 1, 3, 3\), the network's \(64, 1, 3, 3\)"),
        (lambda: SegNet(3, 1, 2, WIDTHS), False, "only a 2D network"),
        (lambda: FCN(2, 1, 2, widths=WIDTHS, fc_width=8), True, 'norm="batch"'),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(tmp_path, network, norm, says):
    _, file = saved(tmp_path, norm=norm)
    refused = network()
    before = {key: value.clone() for key, value in refused.state_dict().items()}
    with pytest.raises(FewscanError, match=says):
        refused.load_vgg16(file)
    assert all(torch.equal(before[key], value) for key, value in refused.state_dict().items())


def test_a_file_that_is_no_vgg16_is_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "other.pth")
    with pytest.raises(FewscanError, match=r"other\.pth has 1 convolutions"):
        load_vgg16(VGG16(2, 1, WIDTHS), tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(FewscanError, match=r"text\.pth cannot be read"):
        load_vgg16(VGG16(2, 1, WIDTHS), tmp_path / "text.pth")
