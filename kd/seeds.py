"""Seeds that differ between purposes and not between runs."""

from __future__ import annotations

import numpy as np


def seed_of(seed: int, purpose: str) -> int:
    """Return a 32-bit seed for one purpose, such as "augment benign (1).png view 3"."""
    words = [seed, *purpose.encode()]
    return int(np.random.SeedSequence(words).generate_state(1)[0])
