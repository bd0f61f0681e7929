"""Which precision ships: those that pass their gates, measured side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..benchmarks.measure.latency import (
    LatencyRatio,
    LatencyRun,
    measure_interleaved,
    median_ratio,
)
from ..runtime.contract import InputContract
from ..runtime.progress import Progress, quiet
from ..runtime.proof import Hop, PrecisionTiming
from ..runtime.session import Session
from .forms import Form
from .target import PRECISIONS

REFERENCE = "fp32"
_ROUNDS = 120
_FRAMES = 8
_WARMUP_CAP_S = 3.0  # of each form: what is decided here needs no percent
_WORTH = 0.95  # a precision must take at most this share of the time to replace a wider one


def measure_verdicts(
    forms: Sequence[Form],
    hops: Sequence[Hop],
    contract: InputContract,
    frames: Sequence[np.ndarray],
    *,
    progress: Progress = quiet,
) -> tuple[PrecisionTiming, ...]:
    """Measure all forms interleaved and say which precision ships.

    From the widest on, a precision earns its place if the whole interval of its fastest form's time
    lies below `_WORTH` of the fastest form of all that are wider; the narrowest that does ships,
    else FP32.

    Args:
        forms: each has passed its gate; FP32 is among them.
        hops: how each compares with the trained network.
        contract: of the network.
        frames: uint8 [H, W], at least one.
        progress: wraps the rounds.
    """
    sessions = {form.name: Session.over(_FormEngine(form), contract) for form in forms}
    runs = measure_interleaved(
        sessions, frames[:_FRAMES], rounds=_ROUNDS, warmup_cap_s=_WARMUP_CAP_S, progress=progress
    )
    wide = [form.name for form in forms if form.precision == REFERENCE]
    reference = runs[min(wide, key=lambda name: runs[name].p50_ms)]
    ratios = {name: median_ratio(run, reference) for name, run in runs.items()}
    best = _narrowest_earned(forms, runs, ratios)
    return tuple(
        PrecisionTiming(
            engine=form.engine,
            precision=form.precision,
            p50_ms=runs[form.name].p50_ms,
            ratio=ratios[form.name].ratio,
            ratio_low=ratios[form.name].low,
            ratio_high=ratios[form.name].high,
            dice_drop=hop.dice_drop,
            shipped=form.precision == best,
        )
        for form, hop in zip(forms, hops, strict=True)
    )


def _narrowest_earned(
    forms: Sequence[Form],
    runs: Mapping[str, LatencyRun],
    ratios: Mapping[str, LatencyRatio],
) -> str:
    """Return the precision that ships; `ratios` are against the fastest FP32."""
    best, rival = REFERENCE, ""
    for precision in PRECISIONS:
        own = [form.name for form in forms if form.precision == precision]
        if not own:
            continue
        fastest = min(own, key=lambda name: ratios[name].ratio)
        if rival and median_ratio(runs[fastest], runs[rival]).high < _WORTH:
            best = precision
        if not rival or ratios[fastest].ratio < ratios[rival].ratio:
            rival = fastest
    return best


def render_verdicts(verdicts: Sequence[PrecisionTiming], refused: Mapping[str, str]) -> str:
    """Return a line for each precision."""
    lines = [_line(each, _rival_of(each, verdicts)) for each in verdicts]
    lines += [f"{name.upper()}: left out: {why}" for name, why in refused.items()]
    return "\n".join(lines)


def _rival_of(verdict: PrecisionTiming, verdicts: Sequence[PrecisionTiming]) -> PrecisionTiming:
    """Return the fastest form of the wider precisions; without one the form itself."""
    rank = PRECISIONS.index
    wider = [each for each in verdicts if rank(each.precision) < rank(verdict.precision)]
    return min(wider, key=lambda each: each.ratio, default=verdict)


def _line(verdict: PrecisionTiming, rival: PrecisionTiming) -> str:
    end = "shipped" if verdict.shipped else "not shipped"
    name = f"{verdict.precision.upper()} in {verdict.engine}"
    if verdict.ratio == 1:
        return f"{name}: {verdict.p50_ms:.2f} ms a frame, what the others are compared with: {end}"
    speed = f"{1 / verdict.ratio:.2f}× as fast as FP32"
    if rival.precision not in (REFERENCE, verdict.precision):
        end += f", {verdict.ratio / rival.ratio:.2f} of {rival.precision.upper()}'s time"
    interval = f"{1 / verdict.ratio_high:.2f} to {1 / verdict.ratio_low:.2f}"
    return (
        f"{name}: {verdict.p50_ms:.2f} ms a frame, {speed} ({interval}), "
        f"Dice {-verdict.dice_drop:+.4f}: {end}"
    )


@dataclass(frozen=True)
class _FormEngine:
    """A form as the engine of a session."""

    form: Form

    @property
    def name(self) -> str:
        return self.form.name

    @property
    def facts(self) -> Mapping[str, str]:
        return {}

    def run(self, image: np.ndarray) -> np.ndarray:
        return self.form.run(image)
