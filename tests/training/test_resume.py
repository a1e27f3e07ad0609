"""Training ends where it should: resumed, in time, and never over a trained model or with held-out cases."""

import csv
import errno
import json
import multiprocessing
import shutil
import time
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from conftest import configure, write_volumes
from fewscan.bundle import read_cases
from fewscan.errors import BundleError, of_the_system
from fewscan.training import PatchDataset, TrainingRun
from fewscan.training.checkpoint import write_state
from fewscan.training.plan import plan
from fewscan.training.run import train


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A plan with dropout, so that the random state counts, and one held-out case."""
    home = tmp_path_factory.mktemp("planned")
    plan(write_volumes(home / "data"), home / "bundle", validation=1)
    return configure(home / "bundle", network={"dropout": 0.5}, patch=[16, 16, 16])


@pytest.fixture
def bundle(planned, tmp_path):
    """An untrained copy beside its data."""
    shutil.copytree(planned.parent, tmp_path / "home")
    return tmp_path / "home" / "bundle"


def weights(bundle: Path) -> dict[str, torch.Tensor]:
    return torch.load(bundle / "models" / "model.pt", weights_only=True)


def interrupt_in(monkeypatch, step: int) -> None:
    """Ctrl-C in the middle of that step."""
    before = TrainingRun.attach

    def attach(self, engine):
        before(self, engine)

        def press(engine):
            if engine.state.iteration == step:
                raise KeyboardInterrupt

        engine.add_event_handler(Events.ITERATION_STARTED, press)

    monkeypatch.setattr(TrainingRun, "attach", attach)


@pytest.mark.parametrize("step", [12, 15])
def test_an_interrupted_training_ends_with_the_same_weights(bundle, planned, monkeypatch, step):
    """4 epochs of 5 steps in one go, and stopped in the third epoch and resumed: bit for bit."""
    other = bundle.parent / "other"
    shutil.copytree(bundle, other)
    train(other, device="cpu")
    with monkeypatch.context() as patched:
        interrupt_in(patched, step)
        with pytest.raises(KeyboardInterrupt):
            train(bundle, device="cpu")
    files = ["best.pt", "history.csv", "training.html", "training_state.pt"]
    assert sorted(file.name for file in (bundle / "models").iterdir()) == files
    train(bundle, device="cpu")
    straight, resumed = weights(other), weights(bundle)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert len(straight) == len(resumed)
    records = [json.loads((b / "models" / "training.json").read_text()) for b in (other, bundle)]
    assert [record["steps"] for record in records] == [20, 20]
    assert records[0]["validation"] == records[1]["validation"]
    files = ["best.pt", "history.csv", "model.pt", "training.html", "training.json"]
    assert sorted(file.name for file in (bundle / "models").iterdir()) == files
    assert (bundle / "models" / "best.pt").read_bytes() == (other / "models" / "best.pt").read_bytes()
    histories = [(b / "models" / "history.csv").read_text() for b in (other, bundle)]
    assert histories[0] == histories[1]  # an epoch that was begun again stands there once


def test_the_history_holds_the_mean_loss_of_ten_steps_and_the_scores(bundle, monkeypatch):
    """Epochs of 15 steps: lines at steps 10, 15, 25, 30; a score after every epoch."""
    losses, before = [], TrainingRun.attach

    def attach(self, engine):
        before(self, engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(engine.state.output["loss"].item()))

    monkeypatch.setattr(TrainingRun, "attach", attach)
    train(configure(bundle, epochs=2, steps_per_epoch=15, val_interval=1), device="cpu")
    with (bundle / "models" / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(1, 10), (1, 15), (2, 25), (2, 30)]
    parts = [losses[0:10], losses[10:15], losses[15:25], losses[25:30]]
    assert [float(row["loss"]) for row in rows] == pytest.approx([sum(part) / len(part) for part in parts], abs=1e-12)
    assert [bool(row["val_mean_dice"]) for row in rows] == [False, True, False, True]
    record = json.loads((bundle / "models" / "training.json").read_text())
    assert float(rows[-1]["val_mean_dice"]) == record["validation"]["val_mean_dice"]


def test_every_step_sees_new_patches_also_after_an_interruption(bundle, monkeypatch):
    """The numbers of the patches go on from epoch to epoch; the interrupted epoch is begun again.

    At the end the first eight serve once more, for the statistics of batch norm.
    """
    configure(bundle, val_interval=1000)
    seen, before = [], PatchDataset.__getitem__

    def listen(self, number):
        seen.append(number)
        return before(self, number)

    monkeypatch.setattr(PatchDataset, "__getitem__", listen)
    with monkeypatch.context() as patched:
        interrupt_in(patched, 13)
        with pytest.raises(KeyboardInterrupt):
            train(bundle, device="cpu")
    assert seen == list(range(26))  # two patches a step
    seen.clear()
    train(bundle, device="cpu")
    assert seen == [*range(20, 40), *range(8)]


def test_workers_change_nothing(bundle):
    """With dropout too, whose randomness is that of the step and not what a loader leaves of it."""
    configure(bundle, epochs=2)
    other = bundle.parent / "other"
    shutil.copytree(bundle, other)
    train(bundle, device="cpu")
    train(configure(other, epochs=2, workers=2), device="cpu")
    for worker in multiprocessing.active_children():
        worker.terminate()  # or the garbage collection of the loader waits 5 s for each
    assert all(torch.equal(a, b) for a, b in zip(weights(bundle).values(), weights(other).values(), strict=True))


def test_a_trained_model_is_not_overwritten_unasked(bundle):
    configure(bundle, epochs=1)
    train(bundle, device="cpu")
    before = (bundle / "models" / "model.pt").read_bytes()
    configure(bundle, epochs=1, seed=1)
    with pytest.raises(BundleError, match=r"model\.pt: this bundle is trained already; give `--overwrite`"):
        train(bundle, device="cpu")
    assert (bundle / "models" / "model.pt").read_bytes() == before
    train(bundle, device="cpu", overwrite=True)
    assert (bundle / "models" / "model.pt").read_bytes() != before


def test_the_old_model_stays_until_the_new_one_is_complete(bundle, monkeypatch):
    configure(bundle, epochs=2, val_interval=1000)
    train(bundle, device="cpu")
    before = (bundle / "models" / "model.pt").read_bytes()
    with monkeypatch.context() as patched:
        interrupt_in(patched, 7)
        with pytest.raises(KeyboardInterrupt):
            train(bundle, device="cpu", overwrite=True)
    assert (bundle / "models" / "model.pt").read_bytes() == before
    seen, read = [], PatchDataset.__getitem__
    monkeypatch.setattr(PatchDataset, "__getitem__", lambda self, number: seen.append(number) or read(self, number))
    train(bundle, device="cpu", overwrite=True)  # goes on where the training that was begun so stopped
    assert seen == [*range(10, 20), *range(8)]


@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_truncated_state_is_refused_by_name(bundle, monkeypatch, keep):
    interrupt_in(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt):
        train(bundle, device="cpu")
    state = bundle / "models" / "training_state.pt"
    state.write_bytes(state.read_bytes()[: int(keep * state.stat().st_size)])
    with pytest.raises(BundleError, match=r"training_state\.pt: is no complete training state"):
        train(bundle, device="cpu")


@pytest.mark.parametrize(
    ("network", "settings", "says"),
    [
        ({}, {"steps_per_epoch": 6}, "patches an epoch 10, now it is 12"),
        ({"widths": [4, 6]}, {}, r"network_def .*4, 8.*now it is .*4, 6"),
        ({}, {"seed": 5}, "seed 0, now it is 5"),
        ({}, {"learning_rate": 0.002}, "learning_rate 0.02, now it is 0.002"),
        ({}, {"intensity_window": [0.0, 9.0]}, r"intensity_window None, now it is \[0.0, 9.0\]"),
        ({}, {"patch": [16, 16, 8]}, r"patch \[16, 16, 16\], now it is \[16, 16, 8\]"),
        ({}, {"merge_masks": True}, "merge_masks False, now it is True"),
        ({}, {"labels": [{"value": 3, "name": "label_1"}]}, r"labels \[0, 1\], now it is \[0, 3\]"),
    ],
)
def test_changed_settings_are_refused_by_name(bundle, monkeypatch, network, settings, says):
    with monkeypatch.context() as patched:
        interrupt_in(patched, 7)
        with pytest.raises(KeyboardInterrupt):
            train(bundle, device="cpu")
    configure(bundle, network=network, **settings)
    with pytest.raises(BundleError, match=rf"training_state\.pt: .*{says}.*--overwrite"):
        train(bundle, device="cpu")


def test_other_cases_are_refused_but_not_another_layout_of_their_list(bundle, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt_in(patched, 7)
        with pytest.raises(KeyboardInterrupt):
            train(bundle, device="cpu")
    file = bundle / "configs" / "datalist.json"
    cases, text = json.loads(file.read_text()), file.read_text()
    file.write_text(json.dumps({**cases, "training": cases["training"][:2]}))
    with pytest.raises(BundleError, match=r"training_state\.pt: was written with cases \(sha256\)"):
        train(bundle, device="cpu")
    file.write_text(json.dumps(json.loads(text)))
    train(bundle, device="cpu")
    assert weights(bundle)


@pytest.mark.parametrize("changed", [{"seed": 5}, {"learning_rate": 0.002}], ids=["seed", "learning_rate"])
def test_overwrite_starts_anew_over_the_state_of_other_settings(bundle, monkeypatch, changed):
    """Two epochs with seed 0 and rate 0.02, then others with `--overwrite`: as if there had been nothing before."""
    other = bundle.parent / "other"
    shutil.copytree(bundle, other)
    with monkeypatch.context() as patched:
        interrupt_in(patched, 12)
        with pytest.raises(KeyboardInterrupt):
            train(bundle, device="cpu")
    for one in (bundle, other):
        configure(one, **changed)
        train(one, device="cpu", overwrite=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(bundle).values(), weights(other).values(), strict=True))
    record = json.loads((bundle / "models" / "training.json").read_text())
    assert record["settings"].items() >= changed.items()
    assert record["steps"] == 20


def test_minutes_end_the_training_in_time_whatever_the_epochs(bundle):
    """3 seconds, far more than the two epochs of one step need; the validation at the end comes on top."""
    configure(bundle, epochs=2, steps_per_epoch=1, val_interval=1000)
    started = time.monotonic()
    train(bundle, minutes=0.05, device="cpu")
    assert 3 <= time.monotonic() - started < 12
    record = json.loads((bundle / "models" / "training.json").read_text())
    assert record["steps"] > 10
    assert 0 <= record["validation"]["val_mean_dice"] <= 1
    assert weights(bundle).keys() == torch.load(bundle / "models" / "model.pt", weights_only=True).keys()


def test_minutes_count_what_was_spent_before(bundle, monkeypatch):
    configure(bundle, val_interval=1000)
    with monkeypatch.context() as patched:
        interrupt_in(patched, 16)
        with pytest.raises(KeyboardInterrupt):
            train(bundle, minutes=0.05, device="cpu")
    state = torch.load(bundle / "models" / "training_state.pt", weights_only=True)
    torch.save({**state, "spent": 1000.0}, bundle / "models" / "training_state.pt")
    train(bundle, minutes=0.05, device="cpu")
    assert json.loads((bundle / "models" / "training.json").read_text())["steps"] <= 16


def test_the_score_in_the_record_is_that_of_the_model(bundle):
    """Evaluated once more by the evaluate overlay, from the weights in model.pt."""
    from monai.bundle import run

    configure(bundle, epochs=3, val_interval=2)  # the last validation by schedule is before the last epoch
    train(bundle, device="cpu")
    configs = [str(bundle / "configs" / name) for name in ("train.json", "evaluate.json")]
    run(config_file=configs, bundle_root=str(bundle), logging_file=False, **{"device": "$torch.device('cpu')"})
    score = json.loads((bundle / "models" / "training.json").read_text())["validation"]["val_mean_dice"]
    table = dict(line.split(",") for line in (bundle / "evaluation" / "metrics.csv").read_text().splitlines())
    assert float(table["val_mean_dice"]) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("written", ["{}", "./{}", "../data/{}"])
def test_a_case_that_is_both_trained_on_and_held_out_is_refused(bundle, written):
    file = bundle / "configs" / "datalist.json"
    content = json.loads(file.read_text())
    content["validation"] = [{key: written.format(path) for key, path in content["training"][0].items()}]
    file.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="stands under training and validation"):
        train(bundle, device="cpu")


def test_held_out_cases_are_not_trained_on(bundle):
    """The images of the training's dataset are those of the datalist's `training`, all different from the others."""
    training, held_out = (read_cases(str(bundle), "../data", str(bundle / "configs/datalist.json"), part)
                          for part in ("training", "validation"))  # fmt: skip
    assert len(training) == 3
    assert len(held_out) == 1
    assert not {case["image"] for case in training} & {case["image"] for case in held_out}
    # and what becomes of them: other held-out voxels, the same weights
    other = bundle.parent / "other"
    shutil.copytree(bundle, other)
    configure(bundle, epochs=1)
    configure(other, epochs=1)
    train(other, device="cpu")
    image = Path(held_out[0]["image"])
    image.write_bytes(Path(training[0]["image"]).read_bytes())
    train(bundle, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(weights(other).values(), weights(bundle).values(), strict=True))


def test_a_folder_without_configs_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="is no bundle"):
        train(tmp_path)


@pytest.mark.parametrize("device", ["cuda:77", "abacus"])
def test_a_device_that_is_not_there_is_refused_by_name(bundle, device):
    with pytest.raises(BundleError, match=f"--device {device} cannot be used"):
        train(bundle, device=device)


def test_minutes_have_to_be_positive(bundle):
    with pytest.raises(BundleError, match="more than 0"):
        train(bundle, minutes=0)


def test_a_training_that_goes_astray_leaves_no_model(bundle):
    configure(bundle, learning_rate=1e30)
    with pytest.raises(BundleError, match="not finite any more"):
        train(bundle, device="cpu")
    assert not (bundle / "models" / "model.pt").exists()


def test_a_state_that_does_not_fit_is_an_error_of_the_system_and_leaves_the_old_one(tmp_path):
    """Of files that may hold 10 kB: torch, given a path, would not say why it failed."""
    resource = pytest.importorskip("resource")
    file = tmp_path / "state.pt"
    write_state(file, {"weights": torch.zeros(3)})
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises((OSError, RuntimeError)) as problem:
            write_state(file, {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = of_the_system(problem.value)
    assert found is not None and found.errno == errno.EFBIG
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
