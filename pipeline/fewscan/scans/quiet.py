"""Libraries that read files say what is odd in them, and quote it: names of patients too. Here they keep silent."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("pydicom", "highdicom", "PIL", "PIL.PngImagePlugin", "PIL.TiffImagePlugin", "PIL.Image", "tifffile")


@contextmanager
def quietly() -> Iterator[None]:
    """Without warnings, and without the log lines of those libraries at any level. Errors are raised as ever."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.disabled for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled
