"""How a training that is asked to stop ends its running step first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

STOPPED = 75
"""Exit code of a training that was asked to stop and saved its state: given again, it goes on (EX_TEMPFAIL)."""


class StopSignals:
    """Remembers that the process was asked to stop: by Ctrl-C, SIGTERM, SIGUSR1 (not on Windows) or Ctrl-Break.

    A second Ctrl-C raises KeyboardInterrupt at once. A signal that the process ignores (as under `nohup`) stays
    ignored, and outside of the main thread nothing is changed, for Python hears signals there alone.

    The loader's workers get what their whole group gets, and end. Torch would raise an error for that anywhere in the
    running step; from the first signal on it does not.

    Attributes:
        asked: number of the first signal; 0 before.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """From now on, until `release`."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._hear)

    def release(self) -> None:
        """Signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            self.release()
            raise KeyboardInterrupt
        if self.asked:
            return
        self.asked = number
        child = getattr(signal, "SIGCHLD", None)
        if child is not None and signal.getsignal(child) is not None:
            self._before[child] = signal.signal(child, signal.SIG_DFL)
        told = f"\n{signal.Signals(number).name}: the running step is finished and saved"
        told += " (Ctrl-C once more stops at once)\n" if number == signal.SIGINT else "\n"
        with contextlib.suppress(OSError):  # print may be what was interrupted
            os.write(2, told.encode())
