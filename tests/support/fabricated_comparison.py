"""Comparisons of fabricated records; nothing in them was measured."""

from __future__ import annotations

import dataclasses

from edgeseg.benchmarks.compare import compare_records
from edgeseg.benchmarks.record import Note
from edgeseg.benchmarks.report.comparison import comparison_document
from edgeseg.benchmarks.report.metrics import parse_budget
from edgeseg.tests.support.fabricated_record import ENVIRONMENT, full_record, make_passes, score

LATER = dataclasses.replace(
    ENVIRONMENT,
    started_utc="2026-11-23T09:30:00+00:00",
    packages={**ENVIRONMENT.packages, "numpy": "2.5.0"},
)
BUDGETS = ("p99=33ms", "OpenVINO INT8:slowdown=5%", "dice_drop=0.5")
COMMAND = ("edgeseg", "compare", "old.json", "new.json")


def changed(row, ratio, dice=None, machine=1.0):
    """The row when it takes `ratio` times its yardstick and has other Dice."""
    more = {"passes": make_passes(ratio, machine=machine)} if row.passes else {}
    if dice is not None:
        more["scores"] = tuple(
            score(each.name, each.label, value, each.lesion_px)
            for each, value in zip(row.scores, dice, strict=True)
        )
    return dataclasses.replace(row, **more)


def two_records():
    """The full record, and a later one: a row slower by 20 % and worse, on a slower machine."""
    old = full_record()
    torch, openvino, untrained = old.rows
    rows = (
        changed(torch, 1.5, machine=1.3),
        changed(openvino, 1.8, (0.68, 0.72, 0.78, 0.82, 0.88, 0.92), machine=1.3),
        untrained,
    )
    notes = (*old.notes, Note("few-lesions", "Few lesions."))
    return old, dataclasses.replace(old, rows=rows, environment=LATER, notes=notes)


def document_of(old, new, budgets=()):
    """The comparison of two records, whole."""
    found = compare_records(old, new, [parse_budget(text) for text in budgets])
    return comparison_document(found, old, new, COMMAND)


def full_comparison():
    """A comparison with everything in it."""
    return document_of(*two_records(), BUDGETS)
