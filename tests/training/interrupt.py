"""Signals that reach a training in the midst of a step."""

import signal

from ignite.engine import Events

from fewscan.training import TrainingRun


def signal_in(monkeypatch, step: int, *numbers: int) -> None:
    """The process gets these signals in the midst of that step."""
    before = TrainingRun.attach

    def attach(self, engine):
        before(self, engine)

        def send(engine):
            if engine.state.iteration == step:
                for number in numbers:
                    signal.raise_signal(number)

        engine.add_event_handler(Events.ITERATION_STARTED, send)

    monkeypatch.setattr(TrainingRun, "attach", attach)
