"""How the processes of a training on several devices agree, and part."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch.distributed
from torch import Tensor

SECONDS_FOR_ITS_THREADS = 1.0


def largest(values: Sequence[float], ranks: int, device: torch.device) -> list[float]:
    """For each number the largest of all ranks, so that all decide alike; float32 where there are several."""
    if ranks == 1:
        return list(values)
    together = torch.tensor(values, device=device)
    torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
    return [float(value) for value in together]


def total(values: Tensor, ranks: int, device: torch.device) -> Tensor:
    """The sum over all ranks, on the CPU."""
    if ranks > 1:
        values = values.to(device)
        torch.distributed.all_reduce(values)
    return values.cpu()


def leave_ranks() -> None:
    """Wait for all ranks, leave their group, and let its threads come to rest before the interpreter ends.

    Gloo's threads drop the tensors of a collective shortly after it has returned, and need the interpreter for that.
    One that finds it shutting down aborts the process ("terminate called without an active exception"), although the
    training is done and written; seen in 2 of 13 short runs on two busy cores with torch 2.13.
    """
    backend = torch.distributed.get_backend()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    if backend == "gloo":
        time.sleep(SECONDS_FOR_ITS_THREADS)
