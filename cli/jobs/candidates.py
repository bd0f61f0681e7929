"""What a benchmark compares: each source in each of its engines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ...runtime.errors import InputError
from .sources import CheckpointSource, ModelSource

if TYPE_CHECKING:
    from ...benchmarks.measure.prediction import DevicePeaks
    from ...benchmarks.run import Candidate


def candidates_of(
    sources: Sequence[ModelSource], engines: Sequence[str], threads: int
) -> tuple[Candidate, ...]:
    """Open everything that a benchmark compares: each source in each of its engines.

    Args:
        sources: bundles and checkpoints, the reference first.
        engines: those wanted; empty takes every engine that is installed.
        threads: for each engine.

    Raises:
        InputError: E-ENGINE-NONE (a source has none of `engines`, or an engine no source), and
            those of `ModelSource.open`.
        EngineError: E-EXTRA-MISSING.
    """
    found: list[Candidate] = []
    parents: list[str] = []  # tells apart sources of one name
    for source in sources:
        candidates = source.candidates(engines, threads)
        if not candidates:
            raise InputError(
                "E-ENGINE-NONE",
                f"{source.path} runs in none of {', '.join(engines)}; name one of "
                f"{', '.join(source.engines())}, or leave --engine out",
            )
        found += candidates
        parents += [source.folder.parent.name] * len(candidates)
    unused = set(engines) - {candidate.kind for candidate in found}
    if unused:
        known = dict.fromkeys(name for source in sources for name in source.engines())
        raise InputError(
            "E-ENGINE-NONE",
            f"no source runs in {', '.join(sorted(unused))}; name some of {', '.join(known)}",
        )
    names = Counter(candidate.name for candidate in found)
    return tuple(
        replace(each, name=f"{parent}/{each.name}") if names[each.name] > 1 else each
        for each, parent in zip(found, parents, strict=True)
    )


def first_checkpoint(sources: Sequence[ModelSource]) -> CheckpointSource:
    """Return the first source that is no bundle. Raises InputError: E-RIVAL-SOURCE."""
    found = next((source for source in sources if isinstance(source, CheckpointSource)), None)
    if found is None:
        raise InputError(
            "E-RIVAL-SOURCE",
            "rivals are made from a checkpoint; name a run, a checkpoint or a shipped student too",
        )
    return found


def jetson_devices() -> tuple[DevicePeaks, ...]:
    """Return the peaks of every Jetson module, whichever its JetPack."""
    from ...benchmarks.measure.prediction import DevicePeaks
    from ...export.target import jetson_modules

    return tuple(
        DevicePeaks(module, target.bandwidth_gb_s, target.fp16_tflops, target.int8_tops)
        for module, target in jetson_modules().items()
    )
