"""Frame graphs of what ships, each compared with the session that it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.contract import InputContract
from ..runtime.engines import available_threads
from ..runtime.errors import InputError, Refused
from ..runtime.image import resize_grey, resize_mask
from ..runtime.progress import Progress, quiet
from ..runtime.proof import Hop
from .forms import Form
from .frame_graph import frame_graph_from_onnx
from .parity import Answer, CheckFrame, Run, answer_of, check_answers, reference_of

# Largest share of a frame's lesion whose pixels may differ from `Session.predict`'s. ONNX Runtime
# flips none; the room is for engines that fuse and round elsewhere.
MAX_FLIPPED = 0.005
_LEAST_LESION = 0.01  # of a frame's pixels: in fewer, single pixels would decide


@dataclass(frozen=True)
class FrameGraph:
    """An ONNX that takes frames of one size, and how it compares."""

    precision: str
    model: bytes
    width: int  # px, of the frame
    height: int  # px, of the frame
    flipped_share: float  # of the lesion, against the session; of the worst frame
    hop: Hop  # against the trained network

    @property
    def file(self) -> str:
        """Name in the bundle."""
        return f"frame-{self.precision}.onnx"


def prove_frame_graphs(
    forms: Sequence[Form],
    size: tuple[int, int],
    trained: Run,
    contract: InputContract,
    checks: Sequence[CheckFrame],
    *,
    optimised: bool,
    progress: Progress = quiet,
) -> tuple[FrameGraph, ...]:
    """Make a frame graph of every form that has an ONNX and run it on frames of its size.

    Args:
        forms: of all precisions that ship.
        size: width and height in px of the frames.
        trained: the trained network.
        contract: of the network.
        checks: those of this size are taken; if none of them has a lesion, all, resized to it.
        optimised: run as the runtime does; else as `exact_run`, for another device.
        progress: wraps the frames.

    Raises:
        InputError: E-PARITY-FRAMES (no lesion is left at this size).
        Refused: E-PARITY.
    """
    frames = _of_size(checks, *size)
    if not any(each.truth.any() for each in frames):
        raise InputError(
            "E-PARITY-FRAMES",
            f"no lesion of the check frames is left in frames of {size[0]}x{size[1]} px, so the "
            "frame graph cannot be judged; export with --frame of the size that the device gives",
        )
    reference = reference_of(trained, contract, frames, progress=progress)
    found = []
    for form in forms:
        if form.model is None:
            continue
        name = f"frame {form.precision}"
        model = frame_graph_from_onnx(form.model, contract, *size)
        answer = run_frames(model, optimised=optimised)
        share = _flipped_share(answer, answer_of(form.run, contract), frames)
        if not share <= MAX_FLIPPED:
            raise Refused(
                "E-PARITY",
                f"{name} changes {share:.2%} of a frame's lesion against the session (allowed are "
                f"{MAX_FLIPPED:.2%}); no bundle was written; export without --frame",
            )
        hop = check_answers(name, answer, reference, progress=progress)
        found.append(FrameGraph(form.precision, model, *size, share, hop))
    return tuple(found)


def frame_facts(graphs: Sequence[FrameGraph]) -> Mapping[str, Mapping[str, object]]:
    """Return what the manifest says of each, by precision."""
    return {
        each.precision: {
            "file": each.file,
            "width": each.width,
            "height": each.height,
            "flipped_share": each.flipped_share,
        }
        for each in graphs
    }


def run_frames(model: bytes, *, optimised: bool) -> Answer:
    """Return how a frame graph runs in ONNX Runtime: uint8 [H, W] to logits and mask."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = available_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def answer(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, mask = session.run(["logits", "mask"], {"frame": frame[None, None]})
        return logits[0, 0], mask[0, 0]

    return answer


def _of_size(checks: Sequence[CheckFrame], width: int, height: int) -> tuple[CheckFrame, ...]:
    same = tuple(each for each in checks if each.frame.shape == (height, width))
    if any(each.truth.any() for each in same):
        return same
    return tuple(
        CheckFrame(
            resize_grey(each.frame, height, width),
            resize_mask(each.truth, height, width),
            each.group,
        )
        for each in checks
    )


def _flipped_share(ours: Answer, theirs: Answer, frames: Sequence[CheckFrame]) -> float:
    """Return the share of the lesion that differs between two masks, in the worst frame."""
    worst = 0.0
    for check in frames:
        first, second = ours(check.frame)[1], theirs(check.frame)[1]
        marked = max(float(((first | second) > 0).mean()), _LEAST_LESION)
        worst = max(worst, float((first != second).mean()) / marked)
    return worst
