"""The session: a frame in, a mask in the frame's own geometry out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Tuple

import numpy as np

from .bundle import Bundle, open_bundle
from .contract import InputContract
from .engines import ENGINES, Engine, available_threads, files_of, is_installed, open_engine
from .errors import EngineError
from .image import input_from_frame, mask_from_logits


@dataclass(frozen=True)
class Session:
    """A contract and an engine, ready to predict.

    One session serves one thread at a time: the input buffer is allocated once and reused.
    """

    contract: InputContract
    engine: Engine
    _input: np.ndarray

    @classmethod
    def over(cls, engine: Engine, contract: InputContract) -> Session:
        """Return a session over an engine that is open already."""
        buffer = np.zeros((1, 1, contract.height, contract.width), np.float32)
        return cls(contract, engine, buffer)

    def predict(self, frame: np.ndarray) -> np.ndarray:
        """Segment one frame.

        Args:
            frame: uint8 [H, W] or RGB [H, W, 3], any size and strides.

        Returns:
            Mask, uint8 [H, W], 1 where lesion.

        Raises:
            InputError: E-FRAME for another dtype or shape.
            EngineError: E-ENGINE-RESULT for logits that are not finite.
        """
        return self.read_out(self.infer(self.prepare(frame)), frame.shape)

    def logits(self, frame: np.ndarray) -> np.ndarray:
        """Return the logits, float32 [height, width] of the contract; see `predict`."""
        return self.infer(self.prepare(frame))

    # The three steps of `predict`, apart so that a benchmark can time each within one call.

    def prepare(self, frame: np.ndarray) -> np.ndarray:
        """Return the network's input, float32 [1, 1, height, width], valid until the next frame.

        Raises InputError: E-FRAME for another dtype or shape than `predict` takes.
        """
        return input_from_frame(frame, self.contract, self._input)

    def infer(self, image: np.ndarray) -> np.ndarray:
        """Return the logits, float32 [height, width], for what `prepare` returned.

        They may be a view of the engine's own buffer, valid until the next call.
        Raises EngineError: E-ENGINE-RESULT for logits that are not finite.
        """
        logits = self.engine.run(image)
        if not np.isfinite(logits.sum()):  # NaN would read as "no lesion"
            raise EngineError(
                "E-ENGINE-RESULT", f"{self.engine.name} answered a number that is not finite"
            )
        answer: np.ndarray = logits[0, 0]
        return answer

    def read_out(self, logits: np.ndarray, frame_shape: Tuple[int, ...]) -> np.ndarray:
        """Return the mask, uint8 [H, W], of a frame of shape [H, W] or [H, W, 3]."""
        return mask_from_logits(logits, self.contract, frame_shape[0], frame_shape[1])


def open_session(bundle: Path, *, engine: Optional[str] = None, threads: int = 0) -> Session:
    """Verify a bundle and open it.

    Args:
        bundle: folder written by `edgeseg export`.
        engine: one of the bundle's engines, or of those that run another device with the files
            of one; None takes the first of the bundle's that is installed.
        threads: for the engine; 0 takes every core this process may use.

    Raises:
        InputError: E-BUNDLE-MISSING, E-ENGINE-NOT-IN-BUNDLE.
        Refused: the bundle's integrity checks, see `open_bundle`.
        EngineError: E-EXTRA-MISSING, E-ENGINE-LOAD, E-ENGINE-DEVICE.
    """
    return session_of(open_bundle(bundle), engine=engine, threads=threads)


def session_of(bundle: Bundle, *, engine: Optional[str] = None, threads: int = 0) -> Session:
    """Open a verified bundle; arguments and errors as `open_session`."""
    name = engine or first_installed(bundle)
    if name in bundle.manifest.models and name not in ENGINES:
        raise _only_on_device(bundle)
    files = bundle.model_files(files_of(name))
    opened = open_engine(name, files, threads or available_threads())
    return Session.over(opened, bundle.manifest.contract)


def first_installed(bundle: Bundle) -> str:
    """Return the bundle's preferred engine among those installed.

    Raises EngineError: E-EXTRA-MISSING naming what to install when there is none, E-ENGINE-DEVICE
    for a bundle that only its device can run.
    """
    known = [name for name in bundle.manifest.models if name in ENGINES]
    if not known:
        raise _only_on_device(bundle)
    for name in known:
        if is_installed(name):
            return name
    mends = " or ".join(ENGINES[name].extra for name in known)
    raise EngineError(
        "E-EXTRA-MISSING", f"no engine of {bundle.path} is installed here; it needs {mends}"
    )


def _only_on_device(bundle: Bundle) -> EngineError:
    return EngineError(
        "E-ENGINE-DEVICE",
        f"{bundle.path} is for {', '.join(bundle.manifest.models)} on {bundle.manifest.target} "
        "and cannot run here; take it there, or export for this machine",
    )
