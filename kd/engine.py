"""PyTorch eager as an engine, so that a checkpoint is evaluated and timed like a bundle."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from .checkpoint import Checkpoint


class TorchEngine:
    """Runs a checkpoint in float32 on the CPU."""

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, threads: int) -> None:
        torch.set_num_threads(threads)
        self._network = checkpoint.network
        self.facts: Mapping[str, str] = {
            "version": torch.__version__,
            "device": "CPU",
            "threads": str(threads),
        }

    def run(self, image: np.ndarray) -> np.ndarray:
        """Map float32 [1, 1, H, W] to logits float32 [1, 1, H, W]."""
        with torch.inference_mode():
            logits: np.ndarray = self._network(torch.from_numpy(image)).numpy()
        return logits
