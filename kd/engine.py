"""PyTorch, eager or compiled, as an engine: a checkpoint is scored and timed like a bundle."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..runtime.engines import affinity
from ..runtime.errors import EngineError
from .checkpoint import Checkpoint


class TorchEngine:
    """Runs a checkpoint in float32 on the CPU.

    Args:
        checkpoint: the network.
        threads: of the whole process, since PyTorch has no others.
        compiled: through `torch.compile` with its defaults. The first call compiles, which takes
            tens of seconds; what cannot be compiled is an error and does not run eagerly.

    Raises EngineError: E-ENGINE-COMPILER where `torch.compile` would find no C++ compiler.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int, *, compiled: bool = False) -> None:
        self.name = "torch-compile" if compiled else "torch"
        torch.set_num_threads(threads)
        self._network: Callable[[torch.Tensor], torch.Tensor] = checkpoint.network
        if compiled:
            _require_compiler()
            self._network = torch.compile(checkpoint.network, fullgraph=True)
        self.facts: Mapping[str, str] = {
            "version": torch.__version__,
            "device": "CPU",
            "threads": str(torch.get_num_threads()),
            "streams": "1",  # one call at a time
            "pinning": "no",
            "affinity": affinity(),
        }

    def run(self, image: np.ndarray) -> np.ndarray:
        """Map float32 [1, 1, H, W] to logits float32 [1, 1, H, W].

        Raises EngineError: E-ENGINE-LOAD where `torch.compile` fails, which the first call tells.
        """
        with torch.inference_mode():
            try:
                logits: np.ndarray = self._network(torch.from_numpy(image)).numpy()
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = str(error).strip().splitlines()[0]
                raise EngineError(
                    "E-ENGINE-LOAD", f"torch.compile refused the network: {reason}; run it in torch"
                ) from error
        return logits


def _require_compiler() -> None:
    """Raise EngineError (E-ENGINE-COMPILER) without the C++ compiler that torch.compile calls."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise EngineError(
            "E-ENGINE-COMPILER",
            f"torch.compile needs a C++ compiler and {compiler!r} is not found; apt install g++, "
            "or name one in CXX",
        )
