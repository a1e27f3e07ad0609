"""What happens around the training steps: schedule, progress, checkpoints that resume exactly."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn
from tqdm import tqdm

from fewscan.errors import BundleError
from fewscan.files import replace_when_complete, sha256
from fewscan.networks.bare import bare
from fewscan.training.average import HALF
from fewscan.training.checkpoint import read_state, refuse_trained, write_state
from fewscan.training.final import FinalWeights
from fewscan.training.history import History, TensorBoardLog
from fewscan.training.patches import StepSampler
from fewscan.training.plateau import has_plateaued
from fewscan.training.progress import Progress
from fewscan.training.ranks import largest, leave_ranks
from fewscan.training.seeds import seed_step
from fewscan.training.stages import ORIGIN, load_coarser
from fewscan.training.step import TrainingStep
from fewscan.training.stop import STOPPED, StopSignals

SECONDS_TO_SAVE = 300
"""Most time between two states, where epochs are longer."""
LEAST_SCALE = 1e-6
"""Of the loss in float16. A step without finite gradients is left out and halves it: from 65536, 36 steps on end."""
LAST_PART = 0.1
"""Share of a training shortened at a plateau that is left after it, for the rate of learning to fall."""


class TrainingRun:
    """Learning rate, finishing time, progress bar and checkpoints of one training, as a handler of the trainer.

    The learning rate rises over the first 2 % of the training and then falls as (1 - done) ^ 0.9. Done is the share
    of the epochs or, with `minutes`, of the time: then the number of epochs does not count, the rate of ten steps
    tells how many steps fit, and the training ends when the time is over. A training by epochs is shortened where its
    loss has been at a plateau for `patience` epochs: nine tenths count as done then, so that the rate still falls.

    After each epoch, and every five minutes, `training_state.pt` is written (temporary file, then rename). A run that
    finds it goes on from that step and ends with the same weights as one that was never interrupted (with `epochs`;
    with `minutes` the number of steps depends on the machine). Asked to stop (see `fewscan.training.stop`), it ends
    the running step, writes the state and exits with code 75, or after Ctrl-C as KeyboardInterrupt; in the last step
    of an epoch after its validation.

    At the end `model.pt` gets the network's weights alone, averaged over the steps and with batch-norm statistics
    recomputed (see `fewscan.training.average`), and the state is removed. Held-out cases are scored with what would be
    written at that step. They are scored once more at the end, so that the score in `training.json` is that of
    `model.pt`, which nothing was chosen by; `best.pt` has the weights with the highest score on the way, and that
    score is optimistic. `history.csv` and `training.html` get the mean loss of every ten steps, and the scores. A
    trained `model.pt` is never overwritten unless `overwrite` says so.

    Args:
        network, optimizer: what is trained.
        sampler: the loader's, so that epochs go on where they stopped.
        folder: where `model.pt` and `training_state.pt` live.
        validator: scores the held-out cases; None where there are none.
        minutes: time for the whole training, or None to train the trainer's `max_epochs`.
        overwrite: start again although there is a trained model, or the state of a training by other settings. From a
            state of the same settings it goes on.
        settings: what decides the outcome, by name (see `fewscan.bundle.deciding_settings`), JSON only. A state that
            was written with others is refused; `training.json` keeps them.
        start_from: file with the weights of a coarser FCN, from which this one goes on (see `fewscan.training.stages`);
            relative to the current folder. Its hash is one of the settings.
        step: the trainer's `iteration_update`, which knows how far a lack of memory has lowered it.
        patience: epochs at a plateau, one after the other, that shorten a training by epochs; None for never.
        average: whether weights are averaged; False writes those of the last step.
        tensorboard: whether `folder`/tensorboard gets the history too; needs tensorboard.
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
        step: TrainingStep | None = None,
        patience: int | None = None,
        average: bool = True,
        tensorboard: bool = False,
    ) -> None:
        self.network: nn.Module = bare(network)
        self.optimizer, self.sampler, self.folder = optimizer, sampler, Path(folder)
        self.validator, self.minutes, self.overwrite = validator, minutes, overwrite
        self.settings: dict[str, Any] = json.loads(json.dumps(settings or {}))  # tuples as files give them back: lists
        self.start_from = None if start_from is None else Path(start_from)
        self.step, self.patience, self.average, self.tensorboard = step, patience, average, tensorboard
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.history, self.seed = History(), 0
        self.best: dict[str, Any] | None = None
        self.shortened_to: int | None = None
        """Epochs, where a plateau has shortened the training."""
        self.spent = self._started = self._clock = self._saved = 0.0
        self._flat_epochs, self._scored_step = 0, -1
        self._learning = self._finished = False
        self._final = FinalWeights(self.network, sampler, step, average)
        self._signals = StopSignals()
        self._progress: Progress | None = None
        self._log: TensorBoardLog | None = None

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files and the bar: rank 0."""
        return self.sampler.rank == 0

    @property
    def device(self) -> torch.device:
        """Of the network."""
        return next(self.network.parameters()).device

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
            self.validator.add_event_handler(Events.STARTED, lambda: self._final.wear(engine))
            self.validator.add_event_handler(Events.COMPLETED, lambda: self._scored(engine))

    # --- begin -------------------------------------------------------------------------------------------------------

    def _start(self, engine: Engine) -> None:
        self._started = self._saved = time.monotonic()
        self.seed = torch.initial_seed()
        self.folder.mkdir(parents=True, exist_ok=True)
        state_file, model_file = self.folder / "training_state.pt", self.folder / "model.pt"
        if not self.overwrite:
            refuse_trained(model_file, state_file)
        if self.start_from is not None:
            load_coarser(self.network, self.start_from, self.settings)
            self.settings[ORIGIN] = sha256(self.start_from)
        state = read_state(state_file, self._all_settings(), self.overwrite)
        if state is not None:
            self._resume(engine, state_file, state)
        if self.minutes is not None:
            engine.state.max_epochs = sys.maxsize  # the time alone ends it
        self._signals.listen()
        if self.is_writer:
            if self.tensorboard:
                self._log = TensorBoardLog(self.folder / "tensorboard", engine.state.iteration)
            total = None if self.minutes is not None else self._total_steps(engine)
            cpu = f"{torch.get_num_threads()} threads"
            name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else cpu
            tqdm.write(f"training on {self.device} ({name}), in {self.folder}")
            self._progress = Progress(engine.state.iteration, total)

    def _all_settings(self) -> dict[str, Any]:
        """What decides the outcome, beyond the bundle's settings."""
        return {"patches an epoch": self.sampler.items, "average_weights": self.average, **self.settings}

    def _resume(self, engine: Engine, file: Path, state: Mapping[str, Any]) -> None:
        try:
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self._final.average is not None:
                self._final.average.load(state["average"])
            if self.step is not None and state["memory"] is not None:
                self.step.load(state["memory"])
            if getattr(engine, "scaler", None) is not None and state["scaler"] is not None:
                engine.scaler.load_state_dict(state["scaler"])
            self.history.load(state["history"])
            engine.state.iteration, self.spent, self.seed = state["step"], state["spent"], state["seed"]
            self.best, self._flat_epochs, self.shortened_to = (
                state[name] for name in ("best", "flat_epochs", "shortened_to")
            )
        except (RuntimeError, ValueError, KeyError, TypeError) as problem:
            raise BundleError(
                f"{file}: does not fit the network or its optimizer, which were changed since (or fewscan was); "
                "restore the former ones to resume, or remove the file to train from the start"
            ) from problem
        engine.state.epoch = engine.state.iteration // engine.state.epoch_length
        engine.state.max_epochs = self.shortened_to or engine.state.max_epochs
        self._clock = self.spent
        if self.is_writer:
            tqdm.write(f"resuming after step {state['step']}, {state['spent'] / 60:.1f} minutes of training")

    # --- steps -------------------------------------------------------------------------------------------------------

    def done(self, engine: Engine) -> float:
        """Share of the training that is over, 0 to 1."""
        if self.minutes is not None:
            return min(1.0, self._clock / (60 * self.minutes))
        return min(1.0, float(engine.state.iteration - 1) / self._total_steps(engine))

    def _elapsed(self) -> float:
        return self.spent + time.monotonic() - self._started

    def _total_steps(self, engine: Engine) -> int:
        return int(engine.state.max_epochs * engine.state.epoch_length)

    def _start_epoch(self, engine: Engine) -> None:
        self.sampler.epoch = engine.state.epoch - 1
        begun = engine.state.iteration % engine.state.epoch_length  # steps, where it was interrupted
        self.sampler.skip = begun * (len(self.sampler) // engine.state.epoch_length)

    def _before_step(self, engine: Engine) -> None:
        self._learning = True
        seed_step(self.seed, engine.state.iteration, self.sampler.rank)
        done = self.done(engine)
        factor = min(1.0, (done + 0.002) / 0.02) * (1 - done) ** 0.9
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _after_step(self, engine: Engine) -> None:
        if self._final.average is not None:
            self._final.average.update(self.network, engine.state.iteration)
        if self.is_writer:
            self._show(engine)
        self._learning = False
        # by their own clocks, ranks would learn at different rates, and stop in different steps
        clock, asked = largest([self._elapsed(), self._signals.asked], self.sampler.ranks, self.device)
        if self.minutes is not None:
            self._clock = clock
            if clock >= 60 * self.minutes:
                engine.terminate()
                return
        if engine.state.iteration % engine.state.epoch_length == 0:
            return  # see _after_epoch
        if asked:
            self._leave(engine, int(asked))
        if self.is_writer and time.monotonic() - self._saved > SECONDS_TO_SAVE:
            self._save(engine)

    def _show(self, engine: Engine) -> None:
        epoch, step, loss = engine.state.epoch, engine.state.iteration, float(engine.state.output["loss"].detach())
        self.history.add(loss, epoch, step)
        if self._progress is not None:
            total = None if self.minutes is not None else self._total_steps(engine)
            left = 60 * (self.minutes or 0.0) - self._elapsed()
            self._progress.show(step, epoch, loss, self.scores(), total, left)

    # --- epochs ------------------------------------------------------------------------------------------------------

    def _after_epoch(self, engine: Engine) -> None:
        self.history.close(engine.state.epoch, engine.state.iteration)
        self._shorten_at_plateau(engine)
        self._save(engine)
        asked = largest([self._signals.asked], self.sampler.ranks, self.device)[0]
        if asked and engine.state.iteration < self._total_steps(engine):
            self._leave(engine, int(asked))

    def _shorten_at_plateau(self, engine: Engine) -> None:
        if self.minutes is not None or self.patience is None or self.shortened_to is not None:
            return
        flat = self.is_writer and has_plateaued(self.history.losses())  # the others know no losses but a state's
        self._flat_epochs = self._flat_epochs + 1 if flat else 0
        enough = largest([self._flat_epochs], self.sampler.ranks, self.device)[0] >= self.patience
        epochs = math.ceil(engine.state.epoch / (1 - LAST_PART))
        if enough and epochs < engine.state.max_epochs:
            self.shortened_to = engine.state.max_epochs = epochs
            if self.is_writer:
                tqdm.write(self._ending())

    def _ending(self) -> str:
        """Why the training is shorter than its epochs, in words."""
        return (
            f"the loss was at a plateau for {self.patience} epochs: the rate of learning falls to 0 by epoch "
            f"{self.shortened_to}, which is the last"
        )

    def _save(self, engine: Engine) -> None:
        """Write the state of this step, the history and its page."""
        scaler = getattr(engine, "scaler", None)
        lost = scaler is not None and scaler.is_enabled() and scaler.get_scale() < LEAST_SCALE
        if lost or not all(bool(torch.isfinite(value).all()) for value in self.network.parameters()):
            what = "the loss is not finite any more" if lost else "weights are not finite any more"
            raise BundleError(
                f"training went astray by step {engine.state.iteration}: {what}; lower `learning_rate` in train.json"
            )
        if not self.is_writer:
            return
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self._final.average is None else self._final.average.parameters,
            "scaler": None if scaler is None else scaler.state_dict(),
            "memory": None if self.step is None else self.step.state(),
            "step": engine.state.iteration,
            "settings": self._all_settings(),
            "history": self.history.state(),
            "best": self.best,
            "flat_epochs": self._flat_epochs,
            "shortened_to": self.shortened_to,
            "spent": self._elapsed(),
            "seed": self.seed,
        }
        write_state(self.folder / "training_state.pt", state)
        self._saved = time.monotonic()
        self._write_history(engine)

    def _write_history(self, engine: Engine, running: bool = True) -> None:
        self.history.write_csv(self.folder / "history.csv")
        if self._log is not None:
            self._log.write(self.history.lines)
        state = f"Step {engine.state.iteration}, epoch {engine.state.epoch}, {self._elapsed() / 60:.1f} minutes"
        told = [f"{state}, on {self.device}: {'as last saved' if running else 'done'}."]
        told += [f"Of the held-out cases, {name}: {score:.4f}." for name, score in self.scores().items()]
        told += [f"{note}." for note in self._notes()]
        self.history.write_page(self.folder / "training.html", told, running)

    def _precision(self, engine: Any) -> str:
        """The format of the forward pass in training."""
        if engine.amp:
            return "float16"
        return "bfloat16" if self.step is not None and self.step.bfloat16 else "float32"

    def _notes(self) -> list[str]:
        """What happened on the way, in words."""
        ending = [] if self.shortened_to is None else [self._ending()]
        return ending + ([] if self.step is None else self.step.notes)

    # --- scores ------------------------------------------------------------------------------------------------------

    def scores(self) -> dict[str, float]:
        """The latest scores of the held-out cases, by name; empty before the first and where there are no cases."""
        metrics = {} if self.validator is None else self.validator.state.metrics
        return {name: float(value) for name, value in metrics.items() if name.startswith("val_")}

    def _scored(self, engine: Engine) -> None:
        assert self.validator is not None
        self._scored_step = engine.state.iteration
        self.history.score(self.scores(), engine.state.epoch, engine.state.iteration)
        name = self.validator.state.key_metric_name
        value = self.scores().get(name, math.nan)
        if value > (self.best or {}).get(name, -math.inf):
            self.best = {"epoch": engine.state.epoch, "step": engine.state.iteration, name: value}
            if self.is_writer:
                self._final.write(self.folder / "best.pt")
        if not self._finished:
            self._final.take_off()

    # --- end ---------------------------------------------------------------------------------------------------------

    def _finish(self, engine: Engine) -> None:
        if self._progress is not None:
            self._progress.close()
        self.history.close(engine.state.epoch, engine.state.iteration)
        self._save(engine)  # should the scoring be interrupted
        self._final.wear(engine)
        self._finished = True
        if self.is_writer:
            self._final.write(self.folder / "model.pt")
        if self.validator is not None and self._scored_step != engine.state.iteration:
            self.validator.run(engine.state.epoch)  # on all ranks: the metric gathers from them
        if self.is_writer:
            self._write_history(engine, running=False)
            self._write_record(engine)
            if self.best is None:
                (self.folder / "best.pt").unlink(missing_ok=True)  # of a training that this one replaces
            (self.folder / "training_state.pt").unlink(missing_ok=True)
        self._release()

    def _write_record(self, engine: Engine) -> None:
        scores = self.scores()
        record = {
            "steps": engine.state.iteration,
            "epochs": engine.state.epoch,
            "minutes": round(self._elapsed() / 60, 2),
            "minutes_given": self.minutes,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "precision": self._precision(engine),
            "validation": scores or "none: no case was held out",
            "weights": f"average, half of it the last {HALF:.0%} of the steps" if self.average else "of the last step",
            "notes": self._notes(),
            "settings": self.settings,
        }
        if self.best is not None:
            why = "chosen by its score on the held-out cases, which is optimistic therefore"
            record["best"] = {"file": "best.pt", **self.best, "note": why}
        with replace_when_complete(self.folder / "training.json") as temporary:
            temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        told = "".join(f", {name} {score:.3f} on held-out cases" for name, score in scores.items())
        tqdm.write(f"trained {record['steps']} steps in {record['minutes']} minutes{told}: {self.folder / 'model.pt'}")

    def _leave(self, engine: Engine, asked: int) -> NoReturn:
        """Save and exit, as the signal of that number asks for."""
        self._save(engine)
        if self.is_writer:
            tqdm.write(f"saved after step {engine.state.iteration}; the same command goes on from there")
        self._release()
        if self.sampler.ranks > 1:
            leave_ranks()
        if asked == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(STOPPED)

    def _stop(self, engine: Engine, problem: BaseException) -> None:
        # the signal may have ended the loader's workers, for whose next batch the trainer then waits in vain
        waiting = "DataLoader worker" in str(problem) and not self._learning and not self._final.worn
        if self._signals.asked and waiting and self.sampler.ranks == 1:
            self._leave(engine, self._signals.asked)
        self._release()
        raise problem

    def _release(self) -> None:
        self._signals.release()
        if self._progress is not None:
            self._progress.close()
        if self._log is not None:
            self._log.close()
