"""Several frames in one call of an engine, for throughput; a device streams single ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from ...runtime.errors import EngineError
from ...runtime.session import Session
from .latency import Frame

# Largest share of a frame's pixels that may differ from the answer to it alone, as an export with
# --dynamic allows it: other kernels for a batch sum in another order, and INT8 then rounds some
# values to the neighbour.
MAX_FLIPPED: Mapping[str, float] = MappingProxyType(
    {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-3, "int8": 3e-2}
)


class BatchSession:
    """Answers a fixed number of frames a call, through the engine of a session.

    Args:
        session: whose engine takes float32 [N, 1, height, width].
        frames: N, >= 1.
    """

    def __init__(self, session: Session, frames: int) -> None:
        self.session = session
        contract = session.contract
        self._input = np.zeros((frames, 1, contract.height, contract.width), np.float32)

    def predict(self, frames: Sequence[Frame]) -> list[Frame]:
        """Return the masks, uint8 [H, W] each, of N frames of any sizes.

        Raises:
            InputError: E-FRAME.
            EngineError: E-ENGINE-RESULT for an answer of another shape or not finite; what the
                engine raises for a batch.
        """
        for frame, row in zip(frames, self._input, strict=True):
            row[...] = self.session.prepare(frame)[0]
        logits = self.session.engine.run(self._input)
        if logits.shape != self._input.shape or not np.isfinite(logits.sum()):
            raise EngineError(
                "E-ENGINE-RESULT",
                f"{self.session.engine.name} answered {list(self._input.shape)} with "
                f"{list(logits.shape)}, or with a number that is not finite",
            )
        answers = zip(logits, frames, strict=True)
        return [self.session.read_out(answer[0], frame.shape) for answer, frame in answers]


def require_same_answers(
    session: Session, frames: Sequence[Frame], batch: int, precision: str
) -> None:
    """Compare every frame's mask in a full batch with the mask of it alone.

    Args:
        session: see `BatchSession`.
        frames: at least one; repeated to fill the batch.
        batch: frames a call, >= 2.
        precision: key in `MAX_FLIPPED`.

    Raises EngineError: E-BATCH-ROWS if a frame's answer depends on its neighbours; those of
    `BatchSession.predict`.
    """
    alone = [session.predict(frame) for frame in frames]
    several = BatchSession(session, batch)
    for start in range(0, len(frames), batch):
        places = [(start + row) % len(frames) for row in range(batch)]
        masks = several.predict([frames[place] for place in places])
        for place, mask in zip(places, masks, strict=True):
            flipped = float(np.mean(mask != alone[place]))
            if flipped > MAX_FLIPPED[precision]:
                raise EngineError(
                    "E-BATCH-ROWS",
                    f"{session.engine.name} changes {flipped:.2%} of a frame's pixels in a batch "
                    f"of {batch} ({MAX_FLIPPED[precision]:.2%} allowed); measure without --batch",
                )
