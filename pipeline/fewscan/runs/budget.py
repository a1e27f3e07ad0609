"""How the memory that a run may take is shared out, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from fewscan.arrays import IN_MEMORY
from fewscan.errors import BudgetError

GIB = 2**30
PROGRAM = 1.0
"""GiB of Python, torch, MONAI and a network, and of what is looked at of large arrays at once."""
COPIES = 3
"""Of the network's weights: torch's, and two of OpenVINO."""
ARRAYS = 3
"""Arrays in memory at once, at most: the scan, the scan as the network sees it, and the labels."""
SHARE = 16
"""An array takes at most this part of the memory; larger ones lie in raw temporary files."""


@dataclass(frozen=True)
class Budget:
    """Of one run."""

    array: int
    """Bytes of the largest array in memory."""
    tile_memory_gb: float | None
    """GiB for tiles on the device; None for what the inferer takes by itself."""
    words: str | None
    """What is planned, where something is."""


def share_out(memory_gb: float | None, gpu_memory_gb: float | None, on_gpu: bool, weights: int = 0) -> Budget:
    """The budget within GiB of memory and of a GPU's memory; None for no limit. `weights` are the network's bytes.

    Raises BudgetError where the program alone takes more, or a limit for a GPU is given that is not used.
    """
    if gpu_memory_gb is not None and not on_gpu:
        raise BudgetError(f"{gpu_memory_gb:g} GiB of a GPU are allowed, but the network runs on the CPU; give --device")
    if memory_gb is None:
        words = None if gpu_memory_gb is None else f"memory: at most {gpu_memory_gb:g} GiB of the GPU for tiles"
        return Budget(IN_MEMORY, gpu_memory_gb, words)
    array = int(min(IN_MEMORY, memory_gb * GIB / SHARE))
    program = PROGRAM + COPIES * weights / GIB
    rest = memory_gb - program - ARRAYS * array / GIB
    if rest <= 0:
        raise BudgetError(
            f"--max-memory {memory_gb:g}: {program:.2f} GiB of the program and {ARRAYS} arrays of {array / GIB:.2f} "
            f"leave nothing for tiles; allow at least {program + 1:.1f}"
        )
    words = (
        f"memory: at most {memory_gb:g} GiB: {program:.2f} the program, {ARRAYS} x {array / GIB:.2f} arrays (larger "
        "ones lie in raw temporary files)"
    )
    if on_gpu:
        limit = "" if gpu_memory_gb is None else f"; at most {gpu_memory_gb:g} GiB of the GPU for tiles"
        return Budget(array, gpu_memory_gb, words + limit)
    return Budget(array, rest, f"{words}, {rest:.2f} tiles")
