"""What a training leaves beside its model: page, best model, logs; and a plateau that shortens it."""

import csv
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest
import torch

from conftest import configure, write_volumes
from fewscan.errors import BundleError
from fewscan.training import StepSampler, engine, set_seed
from fewscan.training.curves import POINTS, chart
from fewscan.training.history import History, TensorBoardLog
from fewscan.training.plan import plan
from fewscan.training.run import train
from training.interrupt import signal_in


def test_only_the_writer_counts_flat_epochs(monkeypatch, tmp_path):
    """Resumed, each rank has the losses of the state, and rank 0 alone those that follow: they fall again."""
    network, asked = torch.nn.Linear(1, 1), []
    monkeypatch.setattr(engine, "largest", lambda values, *_: asked.append(values[0]) or list(values))
    runs = []
    for rank in range(2):
        run = engine.TrainingRun(
            network, torch.optim.SGD(network.parameters(), 0.1), StepSampler(10, rank, 2), str(tmp_path), patience=20
        )
        run.history.load({"lines": [{"epoch": n // 5, "step": 10 * n, "loss": 1.0} for n in range(25)], "losses": []})
        runs.append(run)
    for epoch in range(6, 30):
        state = SimpleNamespace(epoch=epoch, max_epochs=100)
        runs[0].history.lines += [{"epoch": epoch, "step": 0, "loss": 0.9**epoch}] * 5
        for run in runs:
            run._shorten_at_plateau(SimpleNamespace(state=state))
    assert max(asked) < 20 and runs[1]._flat_epochs == 0
    assert [run.shortened_to for run in runs] == [None, None]


@pytest.fixture
def bundle(tmp_path):
    """Four epochs of five steps, one case held out."""
    plan(write_volumes(tmp_path / "data"), tmp_path / "bundle", validation=1)
    return configure(tmp_path / "bundle", {"dropout": 0.5}, patch=[16, 16, 16])


def record(bundle) -> dict:
    return json.loads((bundle / "models" / "training.json").read_text())


def test_best_is_the_first_of_the_highest_scores_on_the_way_and_says_that_it_is_optimistic(bundle):
    """Its weights are those that the score was taken with: evaluated again, they have it."""
    from monai.bundle import run

    configure(bundle, {"dropout": 0.5}, val_interval=1, epochs=5, learning_rate=0.03)
    train(bundle, device="cpu")
    with (bundle / "models" / "history.csv").open(newline="") as file:
        scores = {int(row["step"]): float(row["val_mean_dice"]) for row in csv.DictReader(file) if row["val_mean_dice"]}
    best = record(bundle)["best"]
    assert best["val_mean_dice"] == max(scores.values())
    assert best["step"] == min(step for step, score in scores.items() if score == max(scores.values()))
    assert best["epoch"] * 5 == best["step"]
    assert "optimistic" in best["note"]
    assert record(bundle)["validation"]["val_mean_dice"] == scores[25]
    configs = [str(bundle / "configs" / name) for name in ("train.json", "evaluate.json")]
    (bundle / "models" / "model.pt").write_bytes((bundle / "models" / "best.pt").read_bytes())
    run(config_file=configs, bundle_root=str(bundle), logging_file=False, **{"device": "$torch.device('cpu')"})
    table = dict(line.split(",") for line in (bundle / "evaluation" / "metrics.csv").read_text().splitlines())
    assert float(table["val_mean_dice"]) == pytest.approx(best["val_mean_dice"], abs=1e-4)


def test_the_page_opens_offline_and_shows_the_curves_of_the_history(bundle, monkeypatch):
    configure(bundle, {"dropout": 0.5}, val_interval=1)
    page = bundle / "models" / "training.html"
    with monkeypatch.context() as patched:
        signal_in(patched, 13, 15)
        with pytest.raises(SystemExit):
            train(bundle, device="cpu")
    running = page.read_text()
    assert "Step 13, epoch 3" in running and 'http-equiv="refresh"' in running
    train(bundle, device="cpu")
    done = page.read_text()
    assert "Step 20, epoch 4" in done and "refresh" not in done and "http://" not in done and "src=" not in done
    with (bundle / "models" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses, scores = (points(svg) for svg in re.findall("<svg.*?</svg>", done))
    top = max(float(row["loss"]) for row in rows)
    assert losses == pytest.approx(placed([(int(r["step"]), float(r["loss"])) for r in rows], 20, top), abs=0.06)
    scored = [(int(r["step"]), float(r["val_mean_dice"])) for r in rows if r["val_mean_dice"]]
    assert scores == pytest.approx(placed(scored, 20, 1.0), abs=0.06)


def points(svg: str) -> list[float]:
    """Coordinates of the one curve."""
    (line,) = [one for one in ElementTree.fromstring(svg) if one.tag == "polyline"]
    return [float(number) for number in re.split("[ ,]", line.get("points"))]


def placed(curve, longest, top) -> list[float]:
    """Where a chart of 760 x 300 with margins of 50, 8, 8 and 34 has them."""
    return [at for x, y in curve for at in (50 + x / longest * 702, 8 + (1 - y / top) * 258)]


def test_long_curves_are_thinned_to_means_of_neighbours():
    curve = [(step, float(step % 2)) for step in range(1, 1001)]
    numbers = points(chart([("a", curve)], "a", 1.0))
    assert len(numbers) == 2 * POINTS
    assert numbers[1::2] == pytest.approx([8 + 0.5 * 258] * POINTS, abs=0.06)


def history_of(losses) -> History:
    history = History()
    for step, loss in enumerate(losses, 1):
        history.add(loss, 1 + step // 50, step)
    return history


def test_a_plateau_shortens_the_training_so_that_the_rate_still_falls_to_0(bundle, monkeypatch):
    """A learning rate of 0 learns nothing: flat from the first 25 lines on, at step 250 of epochs of 10 steps."""
    flat = [1.0] * 10_000
    monkeypatch.setattr(History, "add", lambda self, loss, epoch, step: add(self, flat[step], epoch, step))
    rates = []
    from fewscan.training.step import TrainingStep

    step_before = TrainingStep.__call__
    monkeypatch.setattr(
        TrainingStep,
        "__call__",
        lambda self, engine, batch: (
            rates.append(engine.optimizer.param_groups[0]["lr"]) or step_before(self, engine, batch)
        ),
    )
    configure(bundle, {"widths": [2, 2]}, epochs=100, steps_per_epoch=10, patience=3, val_interval=1000, batch=1,
              patch=[8, 8, 8])  # fmt: skip
    with monkeypatch.context() as patched:
        signal_in(patched, 295, 15)
        with pytest.raises(SystemExit):
            train(bundle, device="cpu")
    train(bundle, device="cpu")
    # epochs 25, 26, 27 are flat: 27 / 0.9 = 30
    assert record(bundle)["epochs"] == 30 and record(bundle)["steps"] == 300
    assert record(bundle)["notes"] == [
        "the loss was at a plateau for 3 epochs: the rate of learning falls to 0 by epoch 30, which is the last"
    ]
    assert rates[269] == pytest.approx(0.02 * (1 - 269 / 1000) ** 0.9)
    assert rates[270:] == pytest.approx([0.02 * (1 - n / 300) ** 0.9 for n in range(270, 300)])


add = History.add


def test_without_patience_every_epoch_is_trained(bundle, monkeypatch):
    monkeypatch.setattr(History, "add", lambda self, loss, epoch, step: add(self, 1.0, epoch, step))
    configure(bundle, {"widths": [2, 2]}, epochs=28, steps_per_epoch=10, val_interval=1000, batch=1, patch=[8, 8, 8],
              patience=None)  # fmt: skip
    train(bundle, device="cpu")
    assert record(bundle)["epochs"] == 28 and record(bundle)["notes"] == []


def test_tensorboard_gets_the_history_once_also_after_an_interruption(bundle, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    configure(bundle, {"dropout": 0.5}, val_interval=1, tensorboard=True)
    with monkeypatch.context() as patched:
        signal_in(patched, 13, 15)
        with pytest.raises(SystemExit):
            train(bundle, device="cpu")
    train(bundle, device="cpu")
    logs = accumulator.EventAccumulator(str(bundle / "models" / "tensorboard")).Reload()
    with (bundle / "models" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("loss", "val_mean_dice"):
        written = [(event.step, event.value) for event in logs.Scalars(name)]
        expected = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        assert written == [(step, pytest.approx(value, abs=1e-6)) for step, value in expected]


def test_tensorboard_that_is_not_installed_is_an_error_with_the_way_out(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if it could not be imported
    with pytest.raises(BundleError, match=r'pip install "fewscan\[tensorboard\]"'):
        TensorBoardLog(tmp_path, 0)


def test_history_lines_are_means_of_ten_steps_whatever_was_interrupted():
    losses = [math.sin(step) for step in range(1, 28)]
    history = history_of(losses[:13])
    other = History()
    other.load(json.loads(json.dumps(history.state())))
    for step, loss in enumerate(losses[13:], 14):
        other.add(loss, 1, step)
    assert other.losses() == pytest.approx([sum(losses[a : a + 10]) / 10 for a in (0, 10)])
    assert [line["step"] for line in other.lines] == [10, 20]


def test_a_seed_decides_and_determinism_is_asked_for():
    flags = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), flags.deterministic, flags.benchmark
    try:
        set_seed(3)
        first = torch.rand(4)
        assert not torch.are_deterministic_algorithms_enabled() and not flags.deterministic and flags.benchmark
        set_seed(3, deterministic=True)
        assert torch.equal(torch.rand(4), first)
        assert torch.are_deterministic_algorithms_enabled() and flags.deterministic and not flags.benchmark
    finally:
        set_seed(0)
        torch.use_deterministic_algorithms(before[0])
        flags.deterministic, flags.benchmark = before[1:]
