"""What makes two runs alike: seeds of one purpose each, and operators that answer alike twice."""

from __future__ import annotations

import numpy as np
import torch


def seed_of(seed: int, purpose: str) -> int:
    """Return a 32-bit seed for one purpose, such as "augment benign (1).png view 3"."""
    words = [seed, *purpose.encode()]
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def use_deterministic_operators(device: torch.device) -> None:
    """Make the operators of this process give the same answer twice, on CPUs.

    PyTorch would also fill every new tensor, so that a read of what was never written shows. Our
    training reads none, and filling takes a tenth of a step.
    """
    torch.use_deterministic_algorithms(device.type == "cpu")  # on GPUs some have no such form
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
