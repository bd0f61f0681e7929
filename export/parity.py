"""Parity and accuracy of every exported file against the trained network, on real frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ..runtime.contract import InputContract
from ..runtime.errors import InputError, Refused
from ..runtime.image import input_from_frame, kept_logits, mask_from_logits
from ..runtime.metrics import bootstrap_interval, count_pixels, dice_score, hd95_px
from ..runtime.progress import Progress, quiet
from ..runtime.proof import Hop

# Largest share of pixels whose answer may differ from the trained network's.
MAX_FLIPPED: Mapping[str, float] = MappingProxyType(
    {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-3, "int8": 3e-2}
)


@dataclass(frozen=True)
class CheckFrame:
    """One frame of the validation part with its truth."""

    frame: np.ndarray  # uint8 [H, W]
    truth: np.ndarray  # bool [H, W]
    group: str  # of near-duplicates, which count as one in an interval


@dataclass(frozen=True)
class Reference:
    """The trained network's answers on the check frames."""

    contract: InputContract
    frames: tuple[CheckFrame, ...]
    logits: tuple[np.ndarray, ...]  # float32 [H, W] each
    dice: tuple[float, ...]  # against the truth; NaN without a lesion
    hd95_px: tuple[float, ...]  # against the truth, pixels of the frame; NaN where undefined

    @property
    def mean_dice(self) -> float:
        """Mean over the frames with a lesion."""
        return _mean_defined(self.dice)


Run = Callable[[np.ndarray], np.ndarray]  # float32 [1, 1, H, W] -> logits of that shape
# uint8 [H, W] -> logits float32 at network size, and mask uint8 [H, W]
Answer = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def exact_run(model: bytes, threads: int) -> Run:
    """Return how an ONNX model runs without what this machine's INT8 kernels would change.

    For files that another device will run: ONNX Runtime with its graph optimisation off computes
    Q/DQ in float32, where its INT8 kernels on x86 without VNNI saturate. An FP16 graph it computes
    in float32 too, with weights in FP16: what overflows in FP16 is caught by the range scan
    (`nodes_beyond_half`), and the golden vectors judge the rest on the device.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its errors are raised; nothing is printed beside them
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(image: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run(None, {name: image})[0]
        return logits

    return run


def reference_of(
    run: Run,
    contract: InputContract,
    frames: Sequence[CheckFrame],
    *,
    progress: Progress = quiet,
) -> Reference:
    """Run the trained network over the check frames.

    Raises InputError (E-PARITY-FRAMES) if no frame has a lesion: then nothing can be judged.
    """
    if not any(frame.truth.any() for frame in frames):
        raise InputError("E-PARITY-FRAMES", "the validation part has no image with a lesion")
    return Reference(
        contract,
        tuple(frames),
        *_answers(answer_of(run, contract), frames, "trained network", progress),
    )


def answer_of(run: Run, contract: InputContract) -> Answer:
    """Return what the runtime makes of a network: frames in, logits and masks out."""

    def answer(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = run(input_from_frame(frame, contract))[0, 0].copy()
        return logits, mask_from_logits(logits, contract, *frame.shape)

    return answer


def check_hop(name: str, run: Run, reference: Reference, *, progress: Progress = quiet) -> Hop:
    """Compare one exported file, run in its own engine, with the trained network."""
    answer = answer_of(run, reference.contract)
    return check_answers(name, answer, reference, progress=progress)


def check_answers(
    name: str, answer: Answer, reference: Reference, *, progress: Progress = quiet
) -> Hop:
    """Compare what answers frames with masks of its own, as `check_hop` does."""
    logits, dice, hd95 = _answers(answer, reference.frames, name, progress)
    pairs = list(zip(logits, reference.logits, strict=True))
    contract = reference.contract
    masks = [
        [kept_logits(each, contract) > contract.logit_threshold for each in pair] for pair in pairs
    ]
    flipped = [np.mean(ours != theirs) for ours, theirs in masks]
    overlap = [dice_score(count_pixels(ours, theirs)) for ours, theirs in masks]
    drops = np.subtract(reference.dice, dice)  # NaN without a lesion
    rises = np.subtract(hd95, reference.hd95_px)
    groups = [frame.group for frame in reference.frames]
    low, high = bootstrap_interval(drops.tolist(), groups)
    rise_low, rise_high = bootstrap_interval(rises.tolist(), groups)
    return Hop(
        name=name,
        frames=len(pairs),
        max_abs=float(np.max([np.abs(ours - theirs).max() for ours, theirs in pairs])),  # keeps NaN
        flipped_share=float(np.mean(flipped)),
        mask_dice=_mean_defined(overlap),
        dice=_mean_defined(dice),
        dice_drop=_mean_defined(drops.tolist()),
        dice_drop_low=low,
        dice_drop_high=high,
        hd95_rise_px=_mean_defined(rises.tolist()),
        hd95_rise_low_px=rise_low,
        hd95_rise_high_px=rise_high,
    )


def require_parity(hop: Hop, precision: str) -> None:
    """Raise Refused (E-PARITY) when a hop flips too many pixels or is not finite."""
    limit = MAX_FLIPPED[precision]
    if not (hop.flipped_share <= limit and np.isfinite(hop.max_abs)):
        raise Refused(
            "E-PARITY",
            f"{hop.name} changes {hop.flipped_share:.2%} of the trained network's pixels (largest "
            f"logit difference {hop.max_abs:.3g}), allowed are {limit:.2%}; no bundle was written",
        )


def require_accuracy(hop: Hop, max_drop: float) -> None:
    """Raise Refused (E-ACCURACY) unless the loss of Dice is shown to be within the limit.

    Non-inferiority: the upper end of the drop's 95 % interval, not its mean, is compared. Without
    an interval nothing is shown.
    """
    if not hop.dice_drop_high <= max_drop:
        raise Refused(
            "E-ACCURACY",
            f"{hop.name} loses {hop.dice_drop:+.4f} Dice on {hop.frames} frames (95 % interval "
            f"{hop.dice_drop_low:+.4f} to {hop.dice_drop_high:+.4f}), allowed are {max_drop:.4f} "
            "at the upper end; use a higher precision, more frames, or raise --max-drop",
        )


def require_boundary(hop: Hop, max_rise_px: float) -> None:
    """Raise Refused (E-BOUNDARY) when HD95 is shown to rise by more than the limit.

    The lower end of the rise's 95 % interval is compared: HD95 jumps where a far spot of a few
    pixels comes or goes, so on some tens of frames no useful upper end can be shown. NaN, for
    fewer than two groups of frames in which both masks have a boundary, passes.
    """
    if not (hop.hd95_rise_low_px <= max_rise_px or np.isnan(hop.hd95_rise_low_px)):
        raise Refused(
            "E-BOUNDARY",
            f"{hop.name} moves the boundary: HD95 rises by {hop.hd95_rise_px:.2f} px on average "
            f"(95 % interval {hop.hd95_rise_low_px:.2f} to {hop.hd95_rise_high_px:.2f}), allowed "
            f"are {max_rise_px:.2f} at the lower end; use a higher precision",
        )


def render_hops(hops: Sequence[Hop], trained_dice: float) -> str:
    """Return the parity table as text."""
    lines = [
        f"{'against the trained network':28} {'max |Δlogit|':>12} {'flipped':>9} {'mask Dice':>9} "
        f"{'Dice':>7}  drop [95 % interval]         HD95 rise, px",
        f"{'itself':28} {'':12} {'':9} {'':9} {trained_dice:7.4f}",
    ]
    lines += [
        f"{hop.name:28} {hop.max_abs:12.2e} {hop.flipped_share:9.4%} {hop.mask_dice:9.4f} "
        f"{hop.dice:7.4f}  {hop.dice_drop:+.4f} "
        f"[{hop.dice_drop_low:+.4f}, {hop.dice_drop_high:+.4f}]  {hop.hd95_rise_px:+.2f} "
        f"[{hop.hd95_rise_low_px:+.2f}, {hop.hd95_rise_high_px:+.2f}]"
        for hop in hops
    ]
    return "\n".join(lines)


def _answers(
    answer: Answer,
    frames: Sequence[CheckFrame],
    label: str,
    progress: Progress,
) -> tuple[tuple[np.ndarray, ...], tuple[float, ...], tuple[float, ...]]:
    """Return logits [H, W], and Dice and HD95 in the frame's own geometry, one a frame."""
    logits, dice, hd95 = [], [], []
    for check in progress(frames, f"parity: {label}"):
        own, mask = answer(check.frame)
        logits.append(own)
        lesion = check.truth.any()
        dice.append(dice_score(count_pixels(mask, check.truth)) if lesion else float("nan"))
        hd95.append(hd95_px(mask, check.truth))
    return tuple(logits), tuple(dice), tuple(hd95)


def _mean_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else float("nan")
