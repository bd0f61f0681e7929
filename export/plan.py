"""What will be written for a target and why, and what is refused, before anything is converted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from ..runtime.errors import InputError, Refused
from .kinds import kind_of
from .kinds.kind import EngineBuild
from .target import Target

AUTO = "auto"
MAX_BATCH = 64  # frames; every export runs that many at once to prove them, which takes memory
_FRAME_RANGE = (16, 8192)  # px a side

# Least share of the multiply-accumulates that must run in the precision that was asked for.
# Convolutions with one output channel stay in float by design and count too.
MIN_SHARE: Mapping[str, float] = MappingProxyType(
    {"fp32": 0.99, "fp16": 0.99, "bf16": 0.99, "int8": 0.9}
)

WITHOUT_RANGES = frozenset({"fp32", "bf16"})  # BF16 holds what FP32 holds


@dataclass(frozen=True)
class Plan:
    """What an export will write."""

    target: Target
    asked: str  # a precision or `AUTO`
    precisions: tuple[str, ...]
    refused: Mapping[str, str]  # precision that `AUTO` leaves out -> why
    default: str | None  # None: what is measured here decides
    builds: Mapping[str, EngineBuild]  # by precision, of a kit
    notes: tuple[str, ...]
    max_batch: int = 1  # frames; above 1 the batch axis is dynamic
    frame: tuple[int, int] | None = None  # width, height in px: frames that a frame graph takes
    int8_share: float | None = None  # of the network's MACs that INT8 takes; None: not looked at
    quantised: bool = False  # the network brings its own INT8 pairs

    @property
    def needs_ranges(self) -> bool:
        """Whether a calibration is needed: for INT8, and to see what FP16 arithmetic can hold.

        On a CPU FP16 is a way to store weights, no arithmetic.
        """
        if self.quantised:
            return False
        stored = {"fp16"} if kind_of(self.target).stores_half_only else set()
        return bool(set(self.precisions) - WITHOUT_RANGES - stored)

    @property
    def frame_is_weakly_typed(self) -> bool:
        """Whether a frame graph is built by what may take FP16 for the FP32 in it."""
        return self.frame is not None and any(build.may_halve for build in self.builds.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return {
            "target": asdict(self.target),
            "asked": self.asked,
            "precisions": list(self.precisions),
            "refused": dict(self.refused),
            "default": self.default,
            "builds": {name: asdict(build) for name, build in self.builds.items()},
            "notes": list(self.notes),
            "batch": {"min": 1, "max": self.max_batch},
            "frame": list(self.frame) if self.frame else None,
            "int8_share": self.int8_share,
            "quantised": self.quantised,
        }


def make_plan(
    target: Target,
    asked: str = AUTO,
    *,
    dla_core: int | None = None,
    cache: bool = False,
    retrains: bool = False,
    max_batch: int = 1,
    frame: tuple[int, int] | None = None,
) -> Plan:
    """Plan an export.

    Args:
        target: of `find_target`.
        asked: a precision, or `AUTO` for all that the target takes.
        dla_core: build for this core of the deep-learning accelerator instead of the GPU.
        cache: quantise INT8 implicitly from a calibration cache instead of Q/DQ pairs.
        retrains: INT8 that fails its gate is to be retrained.
        max_batch: above 1 the files take any batch from 1 to it; height and width stay fixed.
        frame: width and height in px of the frames that one more ONNX takes as they come, with
            pre- and post-processing inside.

    Raises:
        InputError: E-BATCH, E-FRAME-SIZE (out of range).
        Refused: E-TARGET-TENSORRT (too old), E-TARGET-DLA, E-TARGET-CACHE, E-TARGET-PRECISION,
            E-TARGET-QAT (no INT8, or not from Q/DQ), E-TARGET-DYNAMIC, E-TARGET-FRAME.
    """
    kind = kind_of(target)
    _require_shapes(target, dla_core, cache, max_batch, frame)
    reasons = {name: _why_not(target, name, dla_core, frame) for name in kind.precisions}
    unknown = f"choose of {', '.join(kind.precisions)}"
    if asked != AUTO and (reason := reasons.get(asked, unknown)):
        raise Refused("E-TARGET-PRECISION", f"{target.name} takes no {asked}: {reason}")
    if cache and asked not in (AUTO, "int8"):
        raise Refused("E-TARGET-CACHE", f"{asked} has no ranges; leave --calibration-cache out")
    kind.refuse(target, dla_core, cache)
    if retrains:
        _require_retrainable(target, asked, reasons["int8"], cache=cache, dla=dla_core is not None)
    taken = tuple(name for name, why in reasons.items() if asked in (AUTO, name) and not why)
    default = None if target.runs_here else _default_of(taken)
    builds = MappingProxyType(dict(kind.builds(target, taken, dla_core, cache)))
    return Plan(
        target=target,
        asked=asked,
        precisions=taken,
        refused=MappingProxyType(
            {name: why for name, why in reasons.items() if why and asked == AUTO}
        ),
        default=default,
        builds=builds,
        notes=tuple(_notes(target, taken, asked, builds, frame)),
        max_batch=max_batch,
        frame=frame,
    )


def plan_for(plan: Plan, master: bytes, quantised: bytes | None = None) -> Plan:
    """Hold a plan against a network, and say how much of it INT8 takes.

    Args:
        plan: of `make_plan`.
        master: the network as FP32 ONNX.
        quantised: the same with INT8 pairs that it brings; then INT8 is all that is left.

    Raises Refused: E-TARGET-OPERATOR (the target's parser does not take a node), E-TARGET-QDQ (its
    pairs do not fit the target or what was asked for), E-PRECISION-FALLBACK (INT8 was asked for
    and takes nothing).
    """
    from .audit import asked_in_graph, int8_share_of

    kind = kind_of(plan.target)
    kind.require_network(plan.target, master)
    if quantised is None:
        share = int8_share_of(master)
        why = "no convolution of the network can run in int8, so nothing would"
        if plan.asked == "int8" and not share:
            raise Refused("E-PRECISION-FALLBACK", f"{why}; export fp16 or fp32")
        plan = replace(plan, int8_share=share)
        if not share and "int8" in plan.precisions:
            left = tuple(name for name in plan.precisions if name != "int8")
            plan = _narrowed(plan, left, {"int8": why})
    else:
        plan = _with_own_pairs(plan, quantised, asked_in_graph(quantised).share("int8"))
    return replace(plan, notes=notes_without(plan, ()))


def _with_own_pairs(plan: Plan, quantised: bytes, share: float) -> Plan:
    from .quantised import require_symmetric

    why = (
        "the network brings its own INT8 pairs, so its weights are rounded already; name the file "
        "of the float network for it"
    )
    if plan.asked not in (AUTO, "int8"):
        raise Refused("E-TARGET-QDQ", f"no {plan.asked} of this file: {why}, or say int8")
    if "int8" not in plan.precisions:
        raise Refused(
            "E-TARGET-QDQ",
            f"{plan.target.name} takes no int8 ({plan.refused['int8']}), and {why}",
        )
    if any(build.cache for build in plan.builds.values()):
        raise Refused(
            "E-TARGET-QDQ",
            "with a calibration cache or a DLA INT8 is built from fp32.onnx, without the pairs "
            "that the network brings; leave --calibration-cache and --dla out, or name the float "
            "network",
        )
    if not kind_of(plan.target).has_unsigned_activations:
        require_symmetric(plan.target, quantised)
    gone = {name: why for name in plan.precisions if name != "int8"}
    return replace(_narrowed(plan, ("int8",), gone), int8_share=share, quantised=True)


def _narrowed(plan: Plan, left: tuple[str, ...], gone: Mapping[str, str]) -> Plan:
    """Return the plan with these precisions left, and why others went."""
    builds = {name: build for name, build in plan.builds.items() if name in left}
    return replace(
        plan,
        precisions=left,
        refused=MappingProxyType({**plan.refused, **gone}),
        default=None if plan.target.runs_here else _default_of(left),
        builds=MappingProxyType(builds),
    )


def render_plan(plan: Plan) -> str:
    """Return the plan as text, a line a fact."""
    target = plan.target
    rows = [("target", f"{target.name}: {target.summary}")]
    capabilities = ", ".join(target.compute_capabilities)
    figures = [
        (f"compute capability {capabilities}", capabilities),
        (f"{target.memory_gib} GiB", target.memory_gib),
        (f"{target.bandwidth_gb_s} GB/s", target.bandwidth_gb_s),
        (f"{target.fp16_tflops} TFLOPS FP16 dense", target.fp16_tflops),
        (f"{target.int8_tops} TOPS INT8 dense", target.int8_tops),
        (f"{target.dla_cores} DLA cores", target.dla_cores),
    ]
    software = [
        (f"TensorRT {target.tensorrt}", target.tensorrt),
        (f"CUDA {target.cuda}", target.cuda),
        (f"Python {target.python}", target.python),
        (f"L4T {target.l4t}", target.l4t),
    ]
    rows += [("device", ", ".join(text for text, known in figures if known))]
    rows += [("software", ", ".join(text for text, known in software if known))]
    rows += [("source", f"{target.source} (checked {target.checked})")]
    for name in plan.precisions:
        default = ", the default" if name == plan.default else ""
        rows.append((name, kind_of(target).describe(plan, name) + default))
    if plan.max_batch > 1:
        rows.append(("batch", f"1 to {plan.max_batch} frames, tuned for 1: devices stream frames"))
    if plan.frame:
        width, height = plan.frame
        how = "; build_engine.py --frame builds it" if plan.builds else ""
        what = f"one more ONNX takes {width}x{height} px and answers with masks{how}"
        rows.append(("frames", what))
    rows += [("refused", f"{name}: {why}") for name, why in plan.refused.items()]
    rows += [("note", note) for note in plan.notes]
    return "\n".join(f"{label:9} {text}" for label, text in rows if text)


def _require_retrainable(
    target: Target, asked: str, why_no_int8: str, *, cache: bool, dla: bool
) -> None:
    """Refuse --qat where no INT8 would have the weights that it makes."""
    if asked not in (AUTO, "int8"):
        raise Refused("E-TARGET-QAT", f"{asked} is not quantised; leave --qat out")
    if why_no_int8:
        raise Refused("E-TARGET-QAT", f"{target.name} takes no int8: {why_no_int8}; omit --qat")
    if asked == AUTO and not kind_of(target).ships_every_precision and not target.runs_here:
        raise Refused(
            "E-TARGET-QAT",
            f"{target.name} cannot be measured here, so fp32 ships; say --precision int8 "
            "or leave --qat out",
        )
    if cache or dla:
        option = "--calibration-cache" if cache else "--dla"
        raise Refused(
            "E-TARGET-QAT",
            f"INT8 with {option} is built from fp32.onnx, which has the weights of the training "
            f"and not those of --qat; leave {option} or --qat out",
        )


def _require_shapes(
    target: Target,
    dla_core: int | None,
    cache: bool,
    max_batch: int,
    frame: tuple[int, int] | None,
) -> None:
    """Refuse a batch or a frame graph that no precision of the target takes."""
    if not 1 <= max_batch <= MAX_BATCH:
        raise InputError("E-BATCH", f"a batch of {max_batch} is not in 1..{MAX_BATCH}")
    if max_batch > 1 and dla_core is not None:
        raise Refused(
            "E-TARGET-DYNAMIC", "the DLA takes static shapes only; leave --dynamic or --dla out"
        )
    if frame is None:
        return
    least, most = _FRAME_RANGE
    if not all(least <= side <= most for side in frame):
        raise InputError(
            "E-FRAME-SIZE",
            f"frames of {frame[0]}x{frame[1]} px; each side must be in {least}..{most}",
        )
    if reason := kind_of(target).why_no_frame:
        raise Refused("E-TARGET-FRAME", f"{target.name} {reason}; leave --frame out")
    if cache:
        raise Refused(
            "E-TARGET-FRAME",
            "with a calibration cache TensorRT looks for the range of every tensor, and it has "
            "none of pre- and post-processing, which compute in FP32; leave --calibration-cache "
            "out, so that the ranges are in the ONNX, or --frame",
        )
    if dla_core is not None:
        raise Refused(
            "E-TARGET-FRAME",
            "pre- and post-processing compute in FP32, which the DLA does not have; leave --frame "
            "or --dla out",
        )


def _why_not(
    target: Target, precision: str, dla_core: int | None, frame: tuple[int, int] | None
) -> str:
    """Return why a target does not take a precision; "" if it does."""
    if reason := kind_of(target).why_not(target, precision, frame):
        return reason
    if precision == "int8" and not target.int8:
        return f"compute capability {target.compute_capabilities[0]} has no INT8 arithmetic"
    if precision == "fp32" and dla_core is not None:
        return "the DLA computes in FP16 and INT8 only"
    return ""


def _default_of(precisions: tuple[str, ...]) -> str:
    return "fp16" if "fp16" in precisions else precisions[0]


def _notes(
    target: Target,
    precisions: tuple[str, ...],
    asked: str,
    builds: Mapping[str, EngineBuild],
    frame: tuple[int, int] | None,
) -> list[str]:
    common = []
    if asked == AUTO and target.runs_here:
        common.append(
            "all are measured here, interleaved; the fastest that passes its gate is kept"
        )
    if asked == AUTO and not target.runs_here and (default := _default_of(precisions)) != "int8":
        common.append(f"{default} is the default: INT8 is not shown faster until measured there")
    return list(kind_of(target).notes(target, precisions, builds, frame, common))


def notes_without(plan: Plan, refused: Collection[str]) -> tuple[str, ...]:
    """Return the plan's notes as they stand once gates have refused some of its precisions."""
    left = tuple(name for name in plan.precisions if name not in refused)
    builds = {name: build for name, build in plan.builds.items() if name in left}
    notes = _notes(plan.target, left, plan.asked, builds, plan.frame)
    if plan.quantised:
        notes = [
            "INT8 is by the network's own pairs; it is judged against the network without them"
        ]
    share = plan.int8_share
    if "int8" in left and share is not None and (share < MIN_SHARE["int8"] or plan.quantised):
        rest = "" if share == 1 else "; other products than its convolutions stay in float"
        rest = "; what it does not round stays in float" if plan.quantised and rest else rest
        notes.append(f"int8 takes {share:.1%} of the network's multiply-accumulates{rest}")
    return tuple(notes)
