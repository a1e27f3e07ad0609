"""What is kept of a training on its way: losses and scores, as a table, a page and TensorBoard logs."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewscan.errors import BundleError
from fewscan.files import replace_when_complete
from fewscan.training.curves import Curve, chart

STEPS_TO_KEEP = 10
"""Steps whose mean loss is one line of the history."""
STYLE = """body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em;line-height:1.5;color:#222}
svg{max-width:100%}small{color:#555}"""


class History:
    """The mean loss of every ten steps, and the scores of held-out cases where they were taken.

    Attributes:
        lines: `epoch`, `step`, `loss`, and each score by its name.
    """

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._losses: list[float] = []

    def add(self, loss: float, epoch: int, step: int) -> None:
        """Of one step."""
        self._losses.append(loss)
        if len(self._losses) == STEPS_TO_KEEP:
            self.close(epoch, step)

    def close(self, epoch: int, step: int) -> None:
        """End a line: the mean loss of the steps since the last one, if there are any."""
        if self._losses:
            mean = sum(self._losses) / len(self._losses)
            self.lines.append({"epoch": epoch, "step": step, "loss": mean})
            self._losses.clear()

    def score(self, scores: Mapping[str, float], epoch: int, step: int) -> None:
        """Of the held-out cases, after that step."""
        self.close(epoch, step)
        if self.lines:
            self.lines[-1].update(scores)

    def losses(self) -> list[float]:
        """Of all lines."""
        return [line["loss"] for line in self.lines]

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of the lines that hold it."""
        return [(line["step"], line[name]) for line in self.lines if name in line]

    def scored(self) -> list[str]:
        """Names of the scores."""
        return [name for name in dict.fromkeys(name for line in self.lines for name in line) if name.startswith("val_")]

    def state(self) -> dict[str, Any]:
        """For a training that goes on."""
        return {"lines": [dict(line) for line in self.lines], "losses": list(self._losses)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what another one kept."""
        self.lines, self._losses = [dict(line) for line in state["lines"]], list(state["losses"])

    def write_csv(self, path: Path) -> None:
        """One row a line."""
        text = io.StringIO(newline="")
        names = dict.fromkeys(["epoch", "step", "loss", *(name for line in self.lines for name in line)])
        table = csv.DictWriter(text, list(names))
        table.writeheader()
        table.writerows(self.lines)
        with replace_when_complete(path) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8", newline="")

    def write_page(self, path: Path, told: Sequence[str], running: bool) -> None:
        """A page that opens offline; while the training is running it loads itself anew every half minute."""
        curves: Iterator[tuple[str, Curve]] = ((name, self.curve(name)) for name in ("loss", *self.scored()))
        loss, *scores = curves
        body = "".join(f"<p>{html.escape(line)}</p>" for line in told)
        if loss[1]:
            body += f"<h2>Loss of the training patches</h2>{chart([loss], 'training loss by step')}"
        if scores:
            body += f"<h2>Scores of the held-out cases</h2>{chart(scores, 'scores of held-out cases by step', 1.0)}"
            body += "<p><small>Of the weights that would be written at that step.</small></p>"
        again = '<meta http-equiv="refresh" content="30">' if running else ""
        page = f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8">{again}<title>fewscan train</title><style>{STYLE}</style>
<h1>Training</h1>{body}<p><small>All numbers: history.csv. Research use.</small></p></html>
"""
        with replace_when_complete(path) as temporary:
            temporary.write_text(page, encoding="utf-8")


class TensorBoardLog:
    """Losses and scores of a history as TensorBoard scalars.

    Args:
        folder: of the logs.
        step: what an interrupted training had logged after it is hidden.

    Raises BundleError where tensorboard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BundleError(
                'tensorboard is true in train.json, but it is not installed: pip install "fewscan[tensorboard]"'
            ) from None
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)
        self._step = step

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Those lines of a history that are new."""
        for line in lines:
            if line["step"] > self._step:
                for name, value in line.items():
                    if name not in ("epoch", "step"):
                        self._writer.add_scalar(name, value, line["step"])
        if lines:
            self._step = lines[-1]["step"]
        self._writer.flush()

    def close(self) -> None:
        """All is on the disk then."""
        self._writer.close()
