"""The stack on which a thread handles signals, kept while a library that changes it is loaded."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Keeps the stack on which this thread handles signals.

    OpenVINO sets one of the smallest size, which a handler of Python runs out of: Ctrl-C or the end of a child process
    would end the program with SIGSEGV.
    """
    set_stack = getattr(ctypes.CDLL(None), "sigaltstack", None) if sys.platform == "linux" else None
    former = _SignalStack()
    kept = set_stack is not None and set_stack(None, ctypes.byref(former)) == 0
    try:
        yield
    finally:
        if kept and set_stack is not None:
            set_stack(ctypes.byref(former), None)
