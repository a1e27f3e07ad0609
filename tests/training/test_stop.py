"""A training that is asked to stop ends its step, saves, and goes on from that step to the same weights."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from conftest import ROOT, configure, write_volumes
from fewscan.cli import main
from fewscan.training.plan import plan
from fewscan.training.run import train
from fewscan.training.stop import STOPPED, StopSignals
from training.interrupt import signal_in

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGBREAK") if hasattr(signal, name)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Dropout, so that randomness counts; 2 epochs of 20 steps, one case held out."""
    home = tmp_path_factory.mktemp("planned")
    plan(write_volumes(home / "data"), home / "bundle", validation=1)
    return configure(
        home / "bundle", {"dropout": 0.5}, patch=[16, 16, 16], epochs=2, steps_per_epoch=20, val_interval=1
    )


@pytest.fixture(scope="module")
def straight(planned, tmp_path_factory):
    """Trained without interruption; never to be changed."""
    home = tmp_path_factory.mktemp("straight") / "home"
    shutil.copytree(planned.parent, home)
    train(home / "bundle", device="cpu")
    return home / "bundle"


@pytest.fixture
def bundle(planned, tmp_path):
    """An untrained copy beside its data."""
    shutil.copytree(planned.parent, tmp_path / "home")
    return tmp_path / "home" / "bundle"


def state(bundle):
    return torch.load(bundle / "models" / "training_state.pt", weights_only=True)


def equal(one, other) -> bool:
    """Model, best model and history, bit for bit."""
    return all(
        (one / "models" / name).read_bytes() == (other / "models" / name).read_bytes()
        for name in ("model.pt", "best.pt", "history.csv")
    )


@pytest.mark.parametrize("step", [1, 13, 20, 33, 39])
def test_a_stopped_training_goes_on_from_its_step(bundle, straight, monkeypatch, step):
    """In the midst of an epoch and of ten steps of history, and at an epoch's end."""
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with monkeypatch.context() as patched:
        signal_in(patched, step, signal.SIGTERM)
        with pytest.raises(SystemExit) as stopped:
            train(bundle, device="cpu")
    assert stopped.value.code == STOPPED == 75
    assert state(bundle)["step"] == step
    assert not (bundle / "models" / "model.pt").exists()
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    train(bundle, device="cpu")
    assert equal(bundle, straight)


def test_stopped_again_and_again(bundle, straight, monkeypatch):
    for step in (7, 8, 21):
        with monkeypatch.context() as patched:
            signal_in(patched, step, SIGNALS[-1], signal.SIGTERM)  # a second one of another kind changes nothing
            with pytest.raises(SystemExit):
                train(bundle, device="cpu")
        assert state(bundle)["step"] == step
    train(bundle, device="cpu")
    assert equal(bundle, straight)


def test_control_c_ends_the_step_and_twice_stops_at_once(bundle, monkeypatch, capfd):
    with monkeypatch.context() as patched:
        signal_in(patched, 3, signal.SIGINT)
        assert main(["train", str(bundle), "--device", "cpu"]) == 1
    told = capfd.readouterr()
    assert "SIGINT: the running step is finished and saved (Ctrl-C once more stops at once)" in told.err
    assert "saved after step 3" in told.out + told.err
    assert state(bundle)["step"] == 3
    with monkeypatch.context() as patched:
        signal_in(patched, 5, signal.SIGINT, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(bundle, device="cpu")
    assert state(bundle)["step"] == 3  # nothing was saved
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_in_the_last_step_does_not_keep_the_model_back(bundle, straight, monkeypatch):
    signal_in(monkeypatch, 40, signal.SIGTERM)
    train(bundle, device="cpu")
    assert equal(bundle, straight)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no process groups of this kind")
def test_a_whole_group_that_gets_sigterm_as_from_slurm_exits_with_75_and_goes_on(bundle, straight):
    """The command with two workers, which die of the signal; the trainer may be in a step or wait for a batch."""
    configure(bundle, {"dropout": 0.5}, workers=2, patch=[16, 16, 16], epochs=2, steps_per_epoch=20, val_interval=1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "pipeline"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fewscan.cli", "train", str(bundle), "--device", "cpu"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        for line in process.stdout:
            if "s a step: about" in line:
                os.killpg(process.pid, signal.SIGTERM)
                break
        output = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 75, output
    assert 11 <= state(bundle)["step"] < 40
    configure(bundle, {"dropout": 0.5}, workers=0, patch=[16, 16, 16], epochs=2, steps_per_epoch=20, val_interval=1)
    train(bundle, device="cpu")
    assert equal(bundle, straight)


def test_the_state_is_written_every_few_minutes_too(bundle, straight, monkeypatch):
    """Of an epoch that takes longer; killed without a signal, it is what is left."""
    monkeypatch.setattr("fewscan.training.engine.SECONDS_TO_SAVE", 0.0)
    with monkeypatch.context() as patched:
        signal_in(patched, 30, signal.SIGINT, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            train(bundle, device="cpu")
    assert state(bundle)["step"] == 29
    monkeypatch.undo()
    train(bundle, device="cpu")
    assert equal(bundle, straight)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows")
def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        signals = StopSignals()
        signals.listen()
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0)
        assert signals.asked == 0
        signals.release()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
