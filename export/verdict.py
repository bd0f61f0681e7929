"""Which precision ships: those that pass their gates, measured side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..benchmarks.measure.latency import measure_interleaved, median_ratio
from ..runtime.contract import InputContract
from ..runtime.progress import Progress, quiet
from ..runtime.proof import Hop, PrecisionTiming
from ..runtime.session import Session
from .forms import Form

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

    That of the fastest form ships if the whole interval of its time lies below `_WORTH` of FP32's;
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
    earned = [
        form for form in forms if form.precision != REFERENCE and ratios[form.name].high < _WORTH
    ]
    best = min(earned, key=lambda form: ratios[form.name].ratio).precision if earned else REFERENCE
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


def render_verdicts(verdicts: Sequence[PrecisionTiming], refused: Mapping[str, str]) -> str:
    """Return a line for each precision."""
    lines = [_line(each) for each in verdicts]
    lines += [f"{name.upper()}: left out: {why}" for name, why in refused.items()]
    return "\n".join(lines)


def _line(verdict: PrecisionTiming) -> str:
    end = "shipped" if verdict.shipped else "not shipped"
    name = f"{verdict.precision.upper()} in {verdict.engine}"
    if verdict.ratio == 1:
        return f"{name}: {verdict.p50_ms:.2f} ms a frame, what the others are compared with: {end}"
    speed = f"{1 / verdict.ratio:.2f}× as fast as FP32"
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
