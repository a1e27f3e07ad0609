"""A step in parts has the gradients of the whole one; a lack of memory lowers batch and patch, and the run goes on."""

import json
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn

from conftest import configure, write_volumes
from fewscan.errors import BundleError
from fewscan.networks import UNet
from fewscan.training import SegmentationLoss
from fewscan.training.plan import plan
from fewscan.training.run import train
from fewscan.training.step import TrainingStep, halved, weight_of
from training.interrupt import signal_in

CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class Trainer:
    """What a step asks of MONAI's trainer, with an optimiser that keeps the gradients."""

    def __init__(self, network, loss):
        self.network, self.loss_function, self.optimizer = network, loss, torch.optim.SGD(network.parameters(), lr=0.0)
        self.state, self.amp, self.scaler, self.amp_kwargs = (
            type("State", (), {"iteration": 1, "device": None})(),
            False,
            None,
            {},
        )
        self.events = []
        self.non_blocking, self.to_kwargs, self.inferer = False, {}, lambda image, network: network(image)

    def prepare_batch(self, batch, device, non_blocking):
        return batch

    def fire_event(self, event):
        self.events.append((event.name, sorted(self.state.output)))


class CrossEntropy(nn.Module):
    """Weighted by the target's second channel, divided by the weights' sum; -1 is unknown."""

    class_weights = (1.0, 3.0)

    def forward(self, logits, target):
        classes = target[:, 0].long()
        weights = target[:, 1] * (classes >= 0) * torch.tensor(self.class_weights)[classes.clamp(min=0)]
        each = nn.functional.cross_entropy(logits, classes.clamp(min=0), reduction="none")
        return (weights * each).sum() / weights.sum()


def batch(samples=5, shape=(12, 10), classes=2):
    random = torch.Generator().manual_seed(0)
    label = torch.randint(-1, classes, (samples, 1, *shape), generator=random).float()
    label[1] = -1  # a patch that nobody labelled
    return torch.randn(samples, 1, *shape, generator=random), torch.cat(
        [label, torch.rand(label.shape, generator=random)], 1
    )


def gradients(step, network, loss, data):
    step(Trainer(network, loss), data)
    return [value.grad.clone() for value in network.parameters()]


@pytest.mark.parametrize(("samples", "size"), [(3, None), (1, None), (1, (6, 10)), (2, (4, 5))])
def test_gradients_of_the_pieces_add_up_to_those_of_the_whole(samples, size):
    """A network that sees each voxel by itself, and a weighted mean over voxels: equal but for rounding."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    data = tuple(part.double() for part in batch())
    whole = gradients(TrainingStep(), network, CrossEntropy(), data)
    step = TrainingStep()
    step.samples, step.size = samples, size
    trainer = Trainer(network, CrossEntropy())
    output = step(trainer, data)
    assert len(step.pieces(data[0].shape)) > 1
    for ours, value in zip(network.parameters(), whole, strict=True):
        torch.testing.assert_close(ours.grad, value, rtol=1e-5, atol=1e-7)  # weights are summed in float32
    assert float(output["loss"]) == pytest.approx(float(CrossEntropy()(network(data[0]), data[1]).detach()), rel=1e-6)


def test_samples_apart_have_the_gradients_of_the_batch_for_a_padded_u_net_without_batch_norm():
    torch.manual_seed(0)
    network = UNet(2, 1, 2, widths=(4, 8), norm="instance").double()
    data = tuple(part.double() for part in batch(shape=(16, 24)))
    whole = gradients(TrainingStep(), network, CrossEntropy(), data)
    step = TrainingStep()
    step.samples = 2
    for ours, value in zip(gradients(step, network, CrossEntropy(), data), whole, strict=True):
        torch.testing.assert_close(ours, value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("size", "axis"), [((4, 5), (12, 10)), ((5, 5), (12, 10)), ((12, 3), (12, 10))])
def test_pieces_cover_every_voxel_and_are_all_of_one_size(size, axis):
    step = TrainingStep()
    step.samples, step.size = 2, size
    seen = np.zeros((3, 1, *axis), dtype=int)
    for piece in step.pieces(seen.shape):
        assert seen[piece].shape[2:] == size
        seen[piece] += 1
    assert seen.min() == 1


def test_the_weight_of_a_target_is_what_the_loss_divides_by():
    target = batch()[1]
    classes, weights = target[:, 0].numpy(), target[:, 1].numpy()
    loss = SegmentationLoss()
    assert weight_of(target[:, :1], loss) == (classes >= 0).sum()
    assert weight_of(target, loss) == pytest.approx(weights[classes >= 0].sum(), rel=1e-5)
    expected = weights[classes == 0].sum() + 3 * weights[classes == 1].sum()
    assert weight_of(target, CrossEntropy()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("size", "stride", "expected"),
    [((64, 64), 8, (32, 64)), ((40, 64), 8, (40, 32)), ((24, 16), 8, (16, 16)), ((8, 8), 8, None), ((20,), 8, (12,))],
)
def test_half_a_patch_is_a_multiple_of_the_stride_less(size, stride, expected):
    network = nn.Identity()
    network.stride = stride
    assert halved(size, network) == expected
    network.padding = "valid"
    assert halved(size, network) is None


def fail_above(monkeypatch, voxels: int, problem):
    """The network finds no memory for more voxels than that, in training: the batch's samples count."""
    forward, seen = UNet.forward, []

    def scarce(self, x):
        if self.training and x.device.type != "meta":  # there nothing is computed
            if x[:, 0].numel() > voxels:
                raise problem
            seen.append(tuple(x.shape))
        return forward(self, x)

    monkeypatch.setattr(UNet, "forward", scarce)
    return seen


@pytest.fixture
def bundle(tmp_path):
    plan(write_volumes(tmp_path / "data", count=2), tmp_path / "bundle")
    return configure(tmp_path / "bundle", patch=[16, 16, 16], batch=4, epochs=1)


@pytest.mark.parametrize("samples", [None, 2])
def test_events_come_as_in_monais_own_step(samples):
    """Forward pass and loss once a piece, with what MONAI's handlers read there."""
    network = nn.Conv2d(1, 2, 1)
    step, trainer = TrainingStep(), Trainer(network, SegmentationLoss())
    step.samples = samples
    step(trainer, batch(4))
    pieces = 1 if samples is None else 2
    names = ["FORWARD_COMPLETED", "LOSS_COMPLETED"] * pieces + ["BACKWARD_COMPLETED", "MODEL_COMPLETED"]
    assert [name for name, _ in trainer.events] == names
    assert all(output == ["image", "label", "loss", "pred"] for _, output in trainer.events[: 2 * pieces])
    assert ("pred" in trainer.state.output) == (samples is None)


def test_an_optimiser_without_memory_for_its_states_is_told_plainly(monkeypatch):
    network = nn.Conv2d(1, 2, 1)
    trainer = Trainer(network, SegmentationLoss())
    for problem, raised in (
        (torch.OutOfMemoryError("CUDA out of memory"), pytest.raises(BundleError, match="while the optimiser steps")),
        (RuntimeError("no such kernel"), pytest.raises(RuntimeError, match="no such kernel")),
    ):
        monkeypatch.setattr(trainer.optimizer, "step", Mock(side_effect=problem))
        with raised:
            TrainingStep()(trainer, batch())


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(CPU),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
    ids=["cuda", "cpu", "cublas", "cudnn"],
)
def test_out_of_memory_halves_the_batch_and_the_training_goes_on(bundle, monkeypatch, problem, capsys):
    seen = fail_above(monkeypatch, 2 * 16**3, problem)
    train(bundle, device="cpu")
    assert seen == [(2, 1, 16, 16, 16)] * 10  # five steps of four
    note = json.loads((bundle / "models" / "training.json").read_text())["notes"]
    expected = (
        "out of memory in step 1: from here on 2 patch(es) of 16 x 16 x 16 at a time, gradients of all 4 patches of "
        "16 x 16 x 16 added up"
    )
    assert note == [expected]
    assert expected in capsys.readouterr().out
    assert expected in (bundle / "models" / "training.html").read_text()


def test_then_patches_are_cut_and_what_was_lowered_stays_so_after_an_interruption(bundle, monkeypatch):
    """Single patches in halves: eight pieces a step. Stopped and resumed, the steps begin with them."""
    configure(bundle, patch=[16, 16, 16], batch=4, epochs=2)
    seen = fail_above(monkeypatch, 16**3 // 2, torch.OutOfMemoryError("CUDA out of memory"))
    with monkeypatch.context() as patched:
        signal_in(patched, 3, 15)
        with pytest.raises(SystemExit):
            train(bundle, device="cpu")
    assert seen == [(1, 1, 8, 16, 16)] * 24
    seen.clear()
    train(bundle, device="cpu")
    assert seen == [(1, 1, 8, 16, 16)] * 56
    notes = json.loads((bundle / "models" / "training.json").read_text())["notes"]
    parts = [(2, "16 x 16 x 16"), (1, "16 x 16 x 16"), (1, "8 x 16 x 16")]
    for note, (samples, size) in zip(notes, parts, strict=True):
        assert f"from here on {samples} patch(es) of {size} at a time" in note


def test_a_device_without_memory_for_a_single_cell_is_refused_by_name(bundle, monkeypatch):
    fail_above(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(BundleError, match=r"even with a single patch of 2 x 2 x 2 \(CUDA out of memory\); make"):
        train(bundle, device="cpu")


def test_other_errors_of_the_network_are_not_taken_for_a_lack_of_memory(bundle, monkeypatch):
    fail_above(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as raised:
        train(bundle, device="cpu")
    assert "mat1 and mat2" in str(raised.value.__context__)
    assert not (bundle / "models" / "training_state.pt").exists()
