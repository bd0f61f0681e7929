"""What an export found, as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .kinds import kind_of
from .parity import render_hops
from .pipeline import Exported
from .plan import Plan, notes_without
from .verdict import render_verdicts

_TELLING_DICE = 0.3  # below it most lesions are missed, in FP32 as in INT8


def render_export(exported: Exported, plan: Plan) -> str:
    """Return the parity chain, what really runs in which precision, the verdict and the place."""
    lines = [render_hops(exported.hops, exported.trained_dice), ""]
    lines += [
        f"{form:28} runs {', '.join(f'{share:.2%} in {name}' for name, share in shares.items())}"
        for form, shares in exported.achieved.items()
    ]
    if exported.kept_float:
        lines.append(f"kept in float to pass the gate: {', '.join(exported.kept_float)}")
    if exported.qat is not None:
        lines.append(_line_of_qat(exported.qat))
    if exported.verdicts or exported.refused:
        lines.append(render_verdicts(exported.verdicts, exported.refused))
    if not exported.trained_dice >= _TELLING_DICE:
        lines.append(
            f"note: the network itself has a Dice of {exported.trained_dice:.3f} on these frames, "
            "so a gate that compares with it proves little; check its training, or its --contract"
        )
    if exported.empty_frame is None:
        lines.append(
            "note: no golden frame has an empty answer, as the network leaves neither speckle nor "
            "black clearly unmarked; so the self-test tells less of a device that marks too much"
        )
    if exported.least:
        lines.append(f"masks are {exported.least}")
    if exported.least and exported.dropped_frame is None:
        lines.append(
            "note: no golden frame has a component that is clearly dropped, so the self-test tells "
            "nothing of a device that drops none"
        )
    lines += [f"note: {note}" for note in notes_without(plan, exported.refused)]
    lines.append(f"bundle: {exported.path} ({exported.precision})")
    if left := kind_of(plan.target).on_device:
        lines.append(f"on the device, {left}")
    return "\n".join(lines)


def _line_of_qat(facts: Mapping[str, Any]) -> str:
    teachers = facts["teachers"]
    taught_by = (
        "by itself before INT8 (the run lacks teachers)"
        if isinstance(teachers, str)
        else f"by {' and '.join(teachers)}"
    )
    return (
        f"quantisation-aware training: {facts['epochs']} epochs on {facts['train_images']} images "
        f"of the train part, learning rate {facts['learning_rate']:g}, seed {facts['seed']}, "
        f"taught {taught_by}"
    )
