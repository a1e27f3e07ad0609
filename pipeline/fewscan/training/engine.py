"""What happens around the training steps: schedule, progress, checkpoints that resume exactly."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn
from tqdm import tqdm

from fewscan.bundle import settings_difference
from fewscan.errors import BundleError
from fewscan.files import replace_when_complete, sha256
from fewscan.training.patches import StepSampler
from fewscan.training.stages import ORIGIN, load_coarser

STEPS_TO_TIME = 10
STEPS_TO_KEEP = 10
"""Steps whose mean loss is one line of the history."""


class TrainingRun:
    """Learning rate, finishing time, progress bar and checkpoints of one training, as a handler of the trainer.

    The learning rate rises over the first 2 % of the training and then falls as (1 - done) ^ 0.9. Done is the share
    of the epochs or, with `minutes`, of the time: then the number of epochs does not count, the rate of ten steps
    tells how many steps fit, and the training ends when the time is over.

    After each epoch `training_state.pt` is written (temporary file, then rename): network, optimiser, scaler, epoch,
    time spent and the random state. A run that finds it goes on from there and ends with the same weights as one
    that was never interrupted (with `epochs`; with `minutes` the number of steps depends on the machine).
    `history.csv` then also gets the mean loss of every ten steps, and the score where one was taken. At the end
    `model.pt` gets the network's weights alone and the state is removed. A trained `model.pt` is never overwritten
    unless `overwrite` says so. The held-out cases are scored once more at the end, so that the score in
    `training.json` is that of `model.pt`.

    Args:
        network, optimizer: what is trained.
        sampler: the loader's, so that epochs go on where they stopped.
        folder: where `model.pt` and `training_state.pt` live.
        validator: scores the held-out cases; None where there are none.
        minutes: time for the whole training, or None to train the trainer's `max_epochs`.
        overwrite: start again although there is a trained model, or the state of a training by other settings.
        settings: what decides the outcome, by name (see `fewscan.bundle.deciding_settings`), JSON only. A state that
            was written with others is refused; `training.json` keeps them.
        start_from: file with the weights of a coarser FCN, from which this one goes on (see `fewscan.training.stages`);
            relative to the current folder. Its hash is one of the settings.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        sampler: StepSampler,
        folder: str,
        validator: Evaluator | None = None,
        minutes: float | None = None,
        overwrite: bool = False,
        settings: Mapping[str, Any] | None = None,
        start_from: str | None = None,
    ) -> None:
        self.network = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        self.optimizer, self.sampler, self.folder = optimizer, sampler, Path(folder)
        self.validator, self.minutes, self.overwrite = validator, minutes, overwrite
        self.settings: dict[str, Any] = json.loads(json.dumps(settings or {}))  # tuples as files give them back: lists
        self.start_from = None if start_from is None else Path(start_from)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.spent = self._started = self._first_done = self._clock = 0.0
        self._first_step: int | None = None
        self._scored_step = -1
        self._bar: tqdm[Any] | None = None
        self._history: list[dict[str, Any]] = []
        self._losses: list[float] = []

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files and the bar: rank 0."""
        return self.sampler.rank == 0

    def attach(self, engine: Engine) -> None:
        """Called by MONAI."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self._before_step)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._stop)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, lambda: self._scored(engine))

    def done(self, engine: Engine) -> float:
        """Share of the training that is over, 0 to 1."""
        if self.minutes is not None:
            return min(1.0, self._clock / (60 * self.minutes))
        return min(1.0, float(engine.state.iteration - 1) / self._total_steps(engine))

    def _elapsed(self) -> float:
        return self.spent + time.monotonic() - self._started

    def _start(self, engine: Engine) -> None:
        self._started = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        state_file, model_file = self.folder / "training_state.pt", self.folder / "model.pt"
        if model_file.exists() and not state_file.exists() and not self.overwrite:
            raise BundleError(
                f"{model_file}: this bundle is trained already; give `--overwrite` (plain MONAI: `--overwrite True`) "
                "to train it anew, or plan a new bundle"
            )
        if self.start_from is not None:
            load_coarser(self.network, self.start_from, self.settings)
            self.settings[ORIGIN] = sha256(self.start_from)
        if state_file.exists():
            self._resume(engine, state_file)
        if self.minutes is not None:
            engine.state.max_epochs = sys.maxsize  # the time alone ends it
        if self.is_writer:
            total = None if self.minutes is not None else self._total_steps(engine)
            often = 0.2 if sys.stderr.isatty() else 15.0  # seconds; a log file needs fewer lines than a screen
            device = next(self.network.parameters()).device
            cpu = f"{torch.get_num_threads()} threads"
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
            tqdm.write(f"training on {device} ({name}), in {self.folder}")
            self._bar = tqdm(
                total=total, initial=engine.state.iteration, unit="step", smoothing=0.05, mininterval=often
            )

    def _resume(self, engine: Engine, file: Path) -> None:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as problem:
            raise BundleError(f"{file}: is no complete training state; remove it to train from the start") from problem
        difference = self._differs_from(state)
        if difference is not None and self.overwrite:
            return  # that training is replaced, by the end of the first epoch
        if difference is not None:
            raise BundleError(
                f"{file}: was written with {difference}; restore the former settings to resume, or give `--overwrite` "
                "(plain MONAI: `--overwrite True`) to train from the start"
            )
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as problem:
            raise BundleError(
                f"{file}: does not fit the network or its optimizer, which were changed since; restore the former "
                "settings to resume, or remove the file to train from the start"
            ) from problem
        if getattr(engine, "scaler", None) is not None and state["scaler"] is not None:
            engine.scaler.load_state_dict(state["scaler"])
        engine.state.epoch, self.spent = state["epoch"], state["spent"]
        self._history = list(state.get("history", []))
        self._clock = self.spent
        engine.state.iteration = state["epoch"] * engine.state.epoch_length
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and state["random_cuda"]:
            with contextlib.suppress(RuntimeError):  # another number of GPUs: their dropout differs then
                torch.cuda.set_rng_state_all(state["random_cuda"])
        if self.is_writer:
            tqdm.write(f"resuming after epoch {state['epoch']}, {state['spent'] / 60:.1f} minutes of training")

    def _differs_from(self, state: Mapping[str, Any]) -> str | None:
        """In words, what decides the outcome and was otherwise when the state was written."""
        before = {"patches an epoch": state["items"], **state.get("settings", {})}
        return settings_difference(before, {"patches an epoch": self.sampler.items, **self.settings})

    def _start_epoch(self, engine: Engine) -> None:
        self.sampler.epoch = engine.state.epoch - 1

    def _before_step(self, engine: Engine) -> None:
        done = self.done(engine)
        factor = min(1.0, (done + 0.002) / 0.02) * (1 - done) ** 0.9
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _after_step(self, engine: Engine) -> None:
        step, now = engine.state.iteration, time.monotonic()
        if self._first_step is None:
            self._first_step, self._first_done = step, now
        if self._bar is not None:
            loss = float(engine.state.output["loss"].detach())
            self._losses.append(loss)
            if len(self._losses) == STEPS_TO_KEEP:
                self._keep_losses(engine)
            timed = step - self._first_step
            if timed >= STEPS_TO_TIME:
                seconds = (now - self._first_done) / timed
                self._bar.total = self._expected_steps(engine, seconds)
                if timed == STEPS_TO_TIME:
                    self._announce(self._bar.total, step, seconds)
            held_out = "".join(f", Dice {score:.3f}" for score in self.scores().values())
            self._bar.set_postfix_str(f"epoch {engine.state.epoch}, loss {loss:.3f}{held_out}", refresh=False)
            self._bar.update()
        if self.minutes is not None:
            self._clock = self._common_time()
            if self._clock >= 60 * self.minutes:
                engine.terminate()

    def _common_time(self) -> float:
        """Seconds of training by the clock of rank 0: by their own, ranks would learn at different rates."""
        elapsed = torch.tensor(self._elapsed(), device=next(self.network.parameters()).device)
        if self.sampler.ranks > 1:
            torch.distributed.broadcast(elapsed, src=0)
        return float(elapsed)

    def _total_steps(self, engine: Engine) -> int:
        return int(engine.state.max_epochs * engine.state.epoch_length)

    def _expected_steps(self, engine: Engine, seconds: float) -> int:
        """Of the whole training, at this many seconds a step."""
        if self.minutes is None:
            return self._total_steps(engine)
        return int(engine.state.iteration) + math.ceil(max(0.0, 60 * self.minutes - self._elapsed()) / seconds)

    def _announce(self, total: int, step: int, seconds: float) -> None:
        left = (total - step) * seconds
        end = time.strftime("%H:%M", time.localtime(time.time() + left))
        tqdm.write(f"{seconds:.3g} s a step: about {total} steps, done at about {end}, in {left / 60:.1f} minutes")

    def _refuse_divergence(self, engine: Engine) -> None:
        if not all(bool(torch.isfinite(value).all()) for value in self.network.state_dict().values()):
            raise BundleError(
                f"training went astray by step {engine.state.iteration}: weights are not finite any more; lower "
                "`learning_rate` in train.json"
            )

    def _after_epoch(self, engine: Engine) -> None:
        self._refuse_divergence(engine)
        if not self.is_writer:
            return
        self._keep_losses(engine)
        scaler = getattr(engine, "scaler", None)
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "epoch": engine.state.epoch,
            "items": self.sampler.items,
            "settings": self.settings,
            "history": self._history,
            "spent": self._elapsed(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        with replace_when_complete(self.folder / "training_state.pt") as temporary:
            torch.save(state, temporary)
        self._write_history()

    def _keep_losses(self, engine: Engine) -> None:
        """One line of the history: the mean loss of the steps since the last one."""
        if self._losses:
            mean = sum(self._losses) / len(self._losses)
            self._history.append({"epoch": engine.state.epoch, "step": engine.state.iteration, "loss": mean})
            self._losses.clear()

    def _write_history(self) -> None:
        text = io.StringIO(newline="")
        names = dict.fromkeys(["epoch", "step", "loss", *(name for line in self._history for name in line)])
        table = csv.DictWriter(text, list(names))
        table.writeheader()
        table.writerows(self._history)
        with replace_when_complete(self.folder / "history.csv") as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8", newline="")

    def _finish(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
        self._refuse_divergence(engine)
        if self.is_writer:
            self._keep_losses(engine)
            weights = {name: value.detach().cpu() for name, value in self.network.state_dict().items()}
            with replace_when_complete(self.folder / "model.pt") as temporary, temporary.open("wb") as file:
                torch.save(weights, file)  # to a path, the temporary name would get into the file and its hash
        if self.validator is not None and self._scored_step != engine.state.iteration:
            self.validator.run(engine.state.epoch)  # on all ranks: the metric gathers from them
        if self.is_writer:
            self._write_history()
            self._write_record(engine)
            (self.folder / "training_state.pt").unlink(missing_ok=True)

    def scores(self) -> dict[str, float]:
        """The latest scores of the held-out cases, by name; empty before the first and where there are no cases."""
        metrics = {} if self.validator is None else self.validator.state.metrics
        return {name: float(value) for name, value in metrics.items() if name.startswith("val_")}

    def _scored(self, engine: Engine) -> None:
        self._scored_step = engine.state.iteration
        self._keep_losses(engine)
        if self._history:
            self._history[-1].update(self.scores())

    def _write_record(self, engine: Engine) -> None:
        scores = self.scores()
        record = {
            "steps": engine.state.iteration,
            "epochs": engine.state.epoch,
            "minutes": round(self._elapsed() / 60, 2),
            "device": str(next(self.network.parameters()).device),
            "threads": torch.get_num_threads(),
            "validation": scores or "none: no case was held out",
            "settings": self.settings,
        }
        with replace_when_complete(self.folder / "training.json") as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        told = "".join(f", {name} {score:.3f} on held-out cases" for name, score in scores.items())
        tqdm.write(f"trained {record['steps']} steps in {record['minutes']} minutes{told}: {self.folder / 'model.pt'}")

    def _stop(self, engine: Engine, problem: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()
        raise problem
