"""Where a training's randomness comes from: the seed and the number of the step, never from what happened before."""

from __future__ import annotations

import os

import numpy as np
import torch
from monai.utils import set_determinism


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch, before the network is made.

    Args:
        seed: of everything.
        deterministic: whether a GPU computes every run to the same bits, which is slower: cuDNN and cuBLAS take
            deterministic algorithms, and torch warns by name of an operation that has none. On a CPU runs with the
            same number of threads are equal either way.
    """
    set_determinism(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed torch for one step of one process: its dropout is then the same after an interruption."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))
