"""PyTorch on the CPU, eager or compiled, and on a GPU: a checkpoint is timed like a bundle."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Mapping

import numpy as np
import torch

from ..runtime.engines import affinity
from ..runtime.errors import EngineError, first_line
from .checkpoint import Checkpoint

# The cache's key holds neither the instruction set nor the number of threads that kernels were
# written for (PyTorch 2.13): AVX-512 kernels read back under AVX2 skip half of each vector.
_COMPILED_ANEW: dict[str, str | int | bool | Callable] = {"fx_graph_cache": False}


class TorchEngine:
    """Runs a checkpoint in float32 on the CPU.

    Args:
        checkpoint: the network.
        threads: of the whole process, since PyTorch has no others.
        compiled: through `torch.compile` with its defaults, but never from its cache. The first
            call compiles, which takes tens of seconds; what cannot be compiled is an error and
            does not run eagerly.

    Raises EngineError: E-ENGINE-COMPILER where `torch.compile` would find no C++ compiler.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int, *, compiled: bool = False) -> None:
        self.name = "torch-compile" if compiled else "torch"
        torch.set_num_threads(threads)
        self._network: Callable[[torch.Tensor], torch.Tensor] = checkpoint.network
        if compiled:
            _require_compiler()
            self._network = torch.compile(
                checkpoint.network, fullgraph=True, options=_COMPILED_ANEW
            )
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
                reason = first_line(error)
                raise EngineError(
                    "E-ENGINE-LOAD", f"torch.compile refused the network: {reason}; run it in torch"
                ) from error
        return logits


class TorchCudaEngine:
    """Runs a checkpoint eagerly in float32 on the first GPU.

    Copies to and from the GPU are part of `run`, which returns when the answer is in host memory.
    Products in TF32, with 10 bits of mantissa, are off: PyTorch uses them for convolutions unless
    told not to, and this is the reference that others are compared with.

    Raises EngineError: E-ENGINE-DEVICE where PyTorch finds no GPU.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.name = "torch-cuda"
        if not torch.cuda.is_available():
            built = torch.version.cuda
            raise EngineError(
                "E-ENGINE-DEVICE",
                f"PyTorch {torch.__version__} "
                + (f"finds no GPU for its CUDA {built}" if built else "was built without CUDA")
                + "; run it in torch, or install PyTorch for the CUDA of this machine's driver",
            )
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        # A copy: the checkpoint's own may run on the CPU beside it.
        self._network = copy.deepcopy(checkpoint.network).to("cuda:0")
        height, width = checkpoint.contract.height, checkpoint.contract.width
        self._image = torch.zeros((1, 1, height, width), pin_memory=True)
        self._logits = torch.zeros((1, 1, height, width), pin_memory=True)
        self._events = [
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(4)
        ]
        self.facts: Mapping[str, str] = {
            "version": torch.__version__,
            "device": torch.cuda.get_device_name(0),
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
            "tf32": "no",
            "threads": "none",
            "streams": "1",  # one call at a time
            "pinning": "no",
            "affinity": affinity(),
        }

    def run(self, image: np.ndarray) -> np.ndarray:
        """Map float32 [N, 1, H, W] to logits, alike, valid until the next call."""
        if image.shape != tuple(self._image.shape):  # a batch of another size than the last
            self._image, self._logits = (torch.zeros(image.shape, pin_memory=True) for _ in "io")
        self._image.copy_(torch.from_numpy(image))
        sent, arrived, done, fetched = self._events
        with torch.inference_mode():
            sent.record()
            on_gpu = self._image.to("cuda:0", non_blocking=True)
            arrived.record()
            logits = self._network(on_gpu)
            done.record()
            self._logits.copy_(logits, non_blocking=True)
            fetched.record()
        fetched.synchronize()
        answer: np.ndarray = self._logits.numpy()
        return answer

    @property
    def transfer_ms(self) -> float:
        """Time that the last call's copies to and from the GPU took there."""
        sent, arrived, done, fetched = self._events
        return float(sent.elapsed_time(arrived) + done.elapsed_time(fetched))


def _require_compiler() -> None:
    """Raise EngineError (E-ENGINE-COMPILER) without the C++ compiler that torch.compile calls."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise EngineError(
            "E-ENGINE-COMPILER",
            f"torch.compile needs a C++ compiler and {compiler!r} is not found; apt install g++, "
            "or name one in CXX",
        )
