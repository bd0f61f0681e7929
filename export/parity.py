"""Parity and accuracy of every exported file against the trained network, on real frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from ..runtime.contract import InputContract
from ..runtime.errors import InputError, Refused
from ..runtime.image import (
    input_from_frame,
    kept_logits,
    labels_of,
    mask_from_logits,
    planes_of_answer,
)
from ..runtime.metrics import bootstrap_interval, count_pixels, dice_score, hd95_px
from ..runtime.progress import Progress, quiet
from ..runtime.proof import ClassDrop, Hop

# Largest share of pixels whose answer may differ from the trained network's.
MAX_FLIPPED: Mapping[str, float] = MappingProxyType(
    {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-3, "int8": 3e-2}
)


@dataclass(frozen=True)
class CheckFrame:
    """One frame of the validation part with its truth."""

    frame: np.ndarray  # uint8 [H, W], or RGB [H, W, 3] for a network that takes colour
    truth: np.ndarray  # bool [H, W]; of several classes their numbers, uint8 [H, W]
    group: str  # of near-duplicates, which count as one in an interval


@dataclass(frozen=True)
class Reference:
    """The trained network's answers on the check frames."""

    contract: InputContract
    frames: tuple[CheckFrame, ...]
    logits: tuple[np.ndarray, ...]  # float32 [H, W] each, [K, H, W] of several classes
    # Of each frame and class against the truth; NaN where the frame has none of the class.
    class_dice: tuple[tuple[float, ...], ...]
    # The same in pixels of the frame, NaN where undefined.
    class_hd95_px: tuple[tuple[float, ...], ...]

    @property
    def dice(self) -> tuple[float, ...]:
        """Of each frame, the mean over its classes; NaN without a lesion."""
        return tuple(map(_mean_defined, self.class_dice))

    @property
    def hd95_px(self) -> tuple[float, ...]:
        """Of each frame, the mean over the classes that have one; NaN where undefined."""
        return tuple(map(_mean_defined, self.class_hd95_px))

    @property
    def mean_dice(self) -> float:
        """Mean over the frames with a lesion."""
        return _mean_defined(self.dice)


Run = Callable[[np.ndarray], np.ndarray]  # float32 [1, C, H, W] -> logits [1, K, H, W]
# uint8 frame -> logits float32 at network size as `planes_of_answer`, and mask uint8 [H, W]
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
    for label, name in enumerate(contract.classes, 1):
        if any((frame.truth == label).any() for frame in frames):
            continue
        what = "a lesion" if len(contract.classes) == 1 else f"the class {name!r}"
        raise InputError("E-PARITY-FRAMES", f"the validation part has no image with {what}")
    return Reference(
        contract,
        tuple(frames),
        *_answers(answer_of(run, contract), frames, contract, "trained network", progress),
    )


def answer_of(run: Run, contract: InputContract) -> Answer:
    """Return what the runtime makes of a network: frames in, logits and masks out."""

    def answer(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = planes_of_answer(run(input_from_frame(frame, contract))).copy()
        return logits, mask_from_logits(logits, contract, *frame.shape[:2])

    return answer


def check_hop(name: str, run: Run, reference: Reference, *, progress: Progress = quiet) -> Hop:
    """Compare one exported file, run in its own engine, with the trained network."""
    answer = answer_of(run, reference.contract)
    return check_answers(name, answer, reference, progress=progress)


def check_answers(
    name: str, answer: Answer, reference: Reference, *, progress: Progress = quiet
) -> Hop:
    """Compare what answers frames with masks of its own, as `check_hop` does."""
    contract = reference.contract
    logits, dice, hd95 = _answers(answer, reference.frames, contract, name, progress)
    pairs = list(zip(logits, reference.logits, strict=True))
    masks = [[labels_of(kept_logits(each, contract), contract) for each in pair] for pair in pairs]
    flipped = [np.mean(ours != theirs) for ours, theirs in masks]
    overlap = [
        _mean_defined(_overlaps(ours, theirs, len(contract.classes))) for ours, theirs in masks
    ]
    class_drops = np.subtract(reference.class_dice, dice)  # [frames, K], NaN without the class
    drops = np.array([_mean_defined(each) for each in class_drops.tolist()])
    rises = np.array(
        [_mean_defined(each) for each in np.subtract(hd95, reference.class_hd95_px).tolist()]
    )
    groups = [frame.group for frame in reference.frames]
    low, high = bootstrap_interval(drops.tolist(), groups)
    rise_low, rise_high = bootstrap_interval(rises.tolist(), groups)
    return Hop(
        name=name,
        frames=len(pairs),
        max_abs=float(np.max([np.abs(ours - theirs).max() for ours, theirs in pairs])),  # keeps NaN
        flipped_share=float(np.mean(flipped)),
        mask_dice=_mean_defined(overlap),
        dice=_mean_defined([_mean_defined(each) for each in dice]),
        dice_drop=_mean_defined(drops.tolist()),
        dice_drop_low=low,
        dice_drop_high=high,
        hd95_rise_px=_mean_defined(rises.tolist()),
        hd95_rise_low_px=rise_low,
        hd95_rise_high_px=rise_high,
        classes=_class_drops(contract, dice, class_drops, groups),
    )


def _class_drops(
    contract: InputContract,
    dice: Sequence[Sequence[float]],
    drops: np.ndarray,
    groups: Sequence[str],
) -> tuple[ClassDrop, ...]:
    """Return what is lost of each of several classes; nothing of a single one.

    Args:
        contract: gives the classes.
        dice: of each frame and class.
        drops: the same, float64 [frames, K].
        groups: of each frame.
    """
    if len(contract.classes) == 1:
        return ()
    found = []
    for index, name in enumerate(contract.classes):
        own = drops[:, index].tolist()
        low, high = bootstrap_interval(own, groups)
        found.append(
            ClassDrop(
                name=name,
                frames=int(np.count_nonzero(~np.isnan(own))),
                dice=_mean_defined([each[index] for each in dice]),
                dice_drop=_mean_defined(own),
                dice_drop_low=low,
                dice_drop_high=high,
            )
        )
    return tuple(found)


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
    """Raise Refused (E-ACCURACY) unless the loss of Dice, and of each class, is within the limit.

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
    for each in hop.classes:
        if not each.dice_drop_high <= max_drop:
            raise Refused(
                "E-ACCURACY",
                f"{hop.name} loses {each.dice_drop:+.4f} Dice of the class {each.name!r} on "
                f"{each.frames} frames (95 % interval {each.dice_drop_low:+.4f} to "
                f"{each.dice_drop_high:+.4f}), allowed are {max_drop:.4f} at the upper end; use a "
                "higher precision, more frames with that class, or raise --max-drop",
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
    lines += [
        f"{f'{hop.name}, {each.name}':28} {'':12} {'':9} {'':9} {each.dice:7.4f}  "
        f"{each.dice_drop:+.4f} [{each.dice_drop_low:+.4f}, {each.dice_drop_high:+.4f}]"
        for hop in hops
        for each in hop.classes
    ]
    return "\n".join(lines)


def _answers(
    answer: Answer,
    frames: Sequence[CheckFrame],
    contract: InputContract,
    label: str,
    progress: Progress,
) -> tuple[tuple[np.ndarray, ...], tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]]:
    """Return logits, and Dice and HD95 of each class in the frame's own geometry, by frame."""
    logits, dice, hd95 = [], [], []
    count = len(contract.classes)
    for check in progress(frames, f"parity: {label}"):
        own, mask = answer(check.frame)
        logits.append(own)
        truth = check.truth
        dice.append(
            tuple(
                each if (truth == label).any() else float("nan")
                for label, each in enumerate(_overlaps(mask, truth, count), 1)
            )
        )
        hd95.append(tuple(hd95_px(mask == label, truth == label) for label in range(1, count + 1)))
    return tuple(logits), tuple(dice), tuple(hd95)


def _overlaps(mask: np.ndarray, other: np.ndarray, count: int) -> tuple[float, ...]:
    """Return the Dice of each class between two masks; NaN where both have none of it."""
    return tuple(
        dice_score(count_pixels(mask == label, other == label)) for label in range(1, count + 1)
    )


def _mean_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else float("nan")
