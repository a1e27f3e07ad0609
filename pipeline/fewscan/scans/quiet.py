"""Libraries that read files say what is odd in them, and quote it: names of patients too. Here they keep silent."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LIBRARIES = ("pydicom", "highdicom", "PIL", "tifffile")
_SILENT = logging.CRITICAL + 1


@contextmanager
def quietly() -> Iterator[None]:
    """Without warnings, and without the log lines of those libraries at any level. Errors are raised as ever."""
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    before = [logger.level for logger in loggers]
    if all(level == _SILENT for level in before):  # it is quiet already; changing levels for each file takes its time
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(_SILENT)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
