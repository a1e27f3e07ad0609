"""A network without what several devices wrap around it."""

from __future__ import annotations

from typing import Any

from torch import nn


def bare(network: Any) -> Any:
    """What `DistributedDataParallel` wraps; anything else as it is."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
