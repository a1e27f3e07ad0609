"""Half precision and channels last change what a step costs, not what it learns."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import configure, write_volumes
from fewscan.networks import FCN, SegNet, UNet, lay_out
from fewscan.training import SegmentationLoss, has_half_precision
from fewscan.training.plan import plan
from fewscan.training.run import train
from fewscan.training.step import TrainingStep
from training.test_step import Trainer

CPUINFO = Path("/proc/cpuinfo")
NETWORKS = {
    "unet": lambda dims: UNet(dims, 1, 3, widths=[8, 16, 32]),
    "fcn": lambda dims: FCN(dims, 1, 3, widths=[8, 8, 16, 16, 16], strides=[2, 2, 2, 1, 1]),
    "segnet": lambda dims: SegNet(dims, 1, 3, widths=[8, 8, 16, 16, 16], strides=[2, 2, 2, 1, 1]),
}


def batch(dims):
    random = torch.Generator().manual_seed(0)
    shape = (4, 1, *(32,) * dims)
    return torch.randn(shape, generator=random), torch.randint(0, 3, shape, generator=random).float()


def step(network, data, bfloat16=False):
    """The loss, and the gradient of all weights as one vector."""
    for layer in network.modules():
        if isinstance(layer, (nn.Dropout, nn.Dropout2d, nn.Dropout3d)):
            layer.p = 0.0
    loss = TrainingStep(bfloat16)(Trainer(network, SegmentationLoss()), data)["loss"]
    gradients = [value.grad for value in network.parameters() if value.grad is not None]
    return float(loss), torch.cat([value.flatten().double() for value in gradients])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_in_bfloat16_learns_what_one_in_double_precision_does(name, dims):
    """bfloat16 has 8 bits, and each layer rounds. SegNet's gradient jumps where two values of a pooling nearly tie."""
    torch.manual_seed(0)
    network = NETWORKS[name](dims)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    image, label = batch(dims)
    loss, exact = step(network.double(), (image.double(), label))
    network.float().load_state_dict(weights)
    rounded_loss, rounded = step(network, (image, label), bfloat16=True)
    assert rounded_loss == pytest.approx(loss, rel=0.01)
    alike = float(rounded @ exact / (rounded.norm() * exact.norm()))
    assert alike < 1 - 1e-6  # float32 is nearer
    assert name == "segnet" or alike > 0.95


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last_has_the_same_gradients(name, dims):
    torch.manual_seed(0)
    network = NETWORKS[name](dims).double()
    data = tuple(part.double() for part in batch(dims))
    before = step(network, data)[1]
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    wide = [value for value in lay_out(network).parameters() if value.ndim == dims + 2]
    assert all(value.is_contiguous(memory_format=last) for value in wide)
    torch.testing.assert_close(step(network, data)[1], before, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 40, 32), (24, 32, 32), (8, 32, 32), (40, 32, 32)])
def test_where_bfloat16_is_wrong_a_step_is_in_float32(shape):
    """oneDNN's gradients are wrong where a convolution sees 2 voxels along the first axis: 16 / 8, and 8 / 4."""
    torch.manual_seed(0)
    network = UNet(3, 1, 3, widths=[8, 8, 16, 16])
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    random = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, *shape, generator=random)
    label = torch.randint(0, 3, image.shape, generator=random).float()
    _, exact = step(network.double(), (image.double(), label))
    network.float().load_state_dict(weights)
    _, in_float32 = step(lay_out(network), (image, label))
    network.load_state_dict(weights)
    _, answer = step(network, (image, label), bfloat16=True)
    assert torch.equal(answer, in_float32) == (2 in (shape[0] // 4, shape[0] // 8))
    assert float(answer @ exact / (answer.norm() * exact.norm())) > 0.95


def test_what_trains_faster_in_half_precision():
    assert has_half_precision("cuda")
    assert has_half_precision(torch.device("cuda:1"))
    assert not has_half_precision("mps")


@pytest.mark.skipif(not CPUINFO.exists(), reason="only Linux tells the processor's instructions in a file")
def test_a_processor_with_instructions_for_bfloat16_is_known():
    flags = CPUINFO.read_text().split()
    if not hasattr(torch.cpu, "get_capabilities"):
        assert not has_half_precision("cpu")
    else:
        assert has_half_precision("cpu") == ("avx512_bf16" in flags or "amx_bf16" in flags)


@pytest.mark.parametrize(("wanted", "told"), [(True, "bfloat16"), (False, "float32")])
def test_the_record_says_the_precision_and_the_model_is_stored_as_ever(tmp_path, wanted, told):
    write_volumes(tmp_path / "data", 2)
    plan(tmp_path / "data", tmp_path / "bundle")
    configure(tmp_path / "bundle", steps_per_epoch=2, epochs=1, half_precision=wanted)
    train(tmp_path / "bundle", device="cpu")
    assert json.loads((tmp_path / "bundle/models/training.json").read_text())["precision"] == told
    weights = torch.load(tmp_path / "bundle/models/model.pt", weights_only=True)
    assert all(value.is_contiguous() for value in weights.values())
    assert {value.dtype for value in weights.values()} <= {torch.float32, torch.int64}


def test_a_network_of_several_devices_is_looked_at_as_well():
    """One rank, on the CPU, with a patch that bfloat16 would be wrong for."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        network = UNet(3, 1, 3, widths=[4, 8])
        wrapped = nn.parallel.DistributedDataParallel(network)
        training = TrainingStep(bfloat16=True)
        training(Trainer(wrapped, SegmentationLoss()), (torch.randn(2, 1, 4, 16, 16), torch.zeros(2, 1, 4, 16, 16)))
    finally:
        distributed.destroy_process_group()
    assert [note.partition(":")[0] for note in training.notes] == [
        "patches of 4 x 16 x 16 voxels are learned from in float32"
    ]
