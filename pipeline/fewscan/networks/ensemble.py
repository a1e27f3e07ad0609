"""Several trained networks of one kind that decide together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CONTRACT = ("halo", "stride", "surplus", "padding", "is_local")
"""What says how far a network looks."""


class Ensemble(nn.Module):
    """Answers the logarithm of the mean of its members' softmaxes, whose softmax is that mean again.

    (N, in_channels, *spatial) -> (N, classes, *spatial), float32. It looks as far as its members do.

    Args:
        members: networks of one architecture.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        for name in CONTRACT:
            if hasattr(members[0], name):
                setattr(self, name, getattr(members[0], name))

    def forward(self, x: Tensor) -> Tensor:
        """The members' common answer; one after the other, so that no two are held at once."""
        mean: Tensor | None = None
        for member in self.members:
            share = torch.softmax(member(x).float(), dim=1) / len(self.members)
            mean = share if mean is None else mean + share
        assert mean is not None  # there are members
        return mean.clamp_min(torch.finfo(torch.float32).tiny).log()
