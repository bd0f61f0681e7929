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
    # As `torch.use_deterministic_algorithms`, which imports a compiler first: seconds that we do
    # not use. On GPUs some operators have no such form.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
