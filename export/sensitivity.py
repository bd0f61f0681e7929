"""Which convolutions cost accuracy in INT8, the worst first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..runtime.engines import available_threads
from ..runtime.image import input_from_frame, planes_of_answer
from ..runtime.progress import Progress, quiet
from .parity import Reference, exact_run
from .qdq import qdq_from_onnx, quantisable_convolutions

FRAMES = 12  # check frames that the layers are compared on


@dataclass(frozen=True)
class Sensitivity:
    """What one convolution costs when it alone is quantised."""

    name: str
    rms: float  # root mean square of the change of a logit


def rank_convolutions(
    master: bytes,
    amax: Mapping[str, float],
    reference: Reference,
    *,
    progress: Progress = quiet,
) -> tuple[Sensitivity, ...]:
    """Quantise each convolution alone and return them all, the costliest first.

    Args:
        master: the trained network as FP32 ONNX.
        amax: ranges, as `qdq_from_onnx` takes them.
        reference: the trained network's answers; its first `FRAMES` frames are used.
        progress: wraps the convolutions.
    """
    names = quantisable_convolutions(master)
    frames = [
        input_from_frame(each.frame, reference.contract) for each in reference.frames[:FRAMES]
    ]
    found = []
    for name in progress(names, "sensitivity of each layer"):
        model = qdq_from_onnx(master, amax, keep_float=set(names) - {name})
        run = exact_run(model, available_threads())
        changes = []
        for image, trained in zip(frames, reference.logits[:FRAMES], strict=True):
            logits = planes_of_answer(run(image))
            changes.append(np.square(logits - trained).mean())
        found.append(Sensitivity(name, float(np.sqrt(np.mean(changes)))))
    return tuple(sorted(found, key=lambda each: each.rms, reverse=True))
