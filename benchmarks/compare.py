"""Two benchmark records side by side, and whether the new one keeps its budgets.

The records are of two runs at different times, between which the machine changed. So a row's time
is compared as a ratio to that of its yardstick (`measure/yardstick.py`), pass by pass, and the
interval is Welch's of the passes' means, widened by what two runs on one machine differ by beyond
their passes (`yardstick_passes.py`). A verdict is given only where a difference that matters would
have been found.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..runtime.errors import InputError, Refused
from ..runtime.paths import takes_paths
from .formatting import signed, significant
from .jsonform import json_from_value
from .measure.accuracy import PairedDifference, paired_difference
from .measure.nvml import computes_on_nvidia
from .record import BenchmarkRecord, Row, Settings, read_record
from .yardstick_passes import RecordRatio, record_ratio

SCHEMA = "edgeseg.comparison/2"
_MACHINE = ("cpu", "cores", "isa", "governor")  # fields of the environment
_MACHINE_OF_GPUS = ("gpus", "gpu_driver")
ORDER = "The new record was measured before the old one; name the earlier one first."


@dataclass(frozen=True)
class RowComparison:
    """A row of the new record against its counterpart in the old one."""

    name: str  # in the new record
    old_name: str
    same_artifact: bool  # whether both ran the same files
    old_p50_ms: float
    new_p50_ms: float
    latency: RecordRatio
    dice: PairedDifference | None  # new minus old, image by image
    no_dice: str  # why there is no `dice`; empty where there is


@dataclass(frozen=True)
class Budget:
    """A limit that rows of the new record must keep."""

    kind: BudgetKind
    limit: float  # in the unit of what it limits
    text: str  # as it was written
    rows: str = ""  # name, engine, precision, or engine and precision of those judged; all if empty

    def judges(self, row: Row) -> bool:
        """Say whether the budget is one of this row."""
        if not self.rows:
            return True
        return self.rows in (row.name, row.kind, row.precision, f"{row.kind} {row.precision}")


@dataclass(frozen=True)
class Verdict:
    """One budget on one row."""

    budget: str  # as it was written
    row: str
    passed: bool  # never where the value is unknown
    found: str  # the value, or why there is none


@dataclass(frozen=True)
class RecordComparison:
    """All that `compare_records` found."""

    schema: str
    old_started_utc: str
    new_started_utc: str
    rows: tuple[RowComparison, ...]
    only_old: tuple[str, ...]  # rows without a counterpart
    only_new: tuple[str, ...]
    changes: tuple[str, ...]  # versions and settings, which may explain a difference
    warnings: tuple[str, ...]  # the notes of both records: such times compare badly
    verdicts: tuple[Verdict, ...]

    @property
    def passed(self) -> bool:
        """Whether every budget could be judged and is kept."""
        return all(verdict.passed for verdict in self.verdicts)


# --- budgets -------------------------------------------------------------------------------------


Convert = Callable[[float], float]


def times(factor: float) -> Convert:
    """Return what multiplies by a factor."""
    return lambda number: factor * number


# What a number may be followed by, and what makes the limit of it.
MILLISECONDS: Mapping[str, Convert] = {"us": times(1e-3), "ms": times(1), "s": times(1e3)}
SIZES: Mapping[str, Convert] = {
    "B": times(1),
    "kB": times(1e3),
    "MB": times(1e6),
    "KiB": times(2**10),
    "MiB": times(2**20),
    "GiB": times(2**30),
}
ANY_LIMIT = (0.0, math.inf)


class BudgetKind(NamedTuple):
    """What a budget of one name limits."""

    name: str  # before the "="
    example: str
    units: Mapping[str, Convert]  # from the number that is written to the limit
    limits: tuple[float, float]  # range that the limit must be in
    value: Callable[[Row, RowComparison | None, Budget], float | str]  # or why there is none
    written: Callable[[float], str]
    is_minimum: bool = False
    of_trained: bool = False  # passes over networks that are not trained, unless there is no other


def _dice_drop(row: Row, found: RowComparison | None, budget: Budget) -> float | str:
    """Return the upper end of the drop's interval, as the gate of an export does."""
    if row.accuracy is None:
        return "the network is not trained"
    if found is None:
        return "the old record has no such row"
    if found.dice is None:
        return found.no_dice
    return "too few images for an interval" if math.isnan(found.dice.low) else -found.dice.low


def _slowdown(row: Row, found: RowComparison | None, budget: Budget) -> float | str:
    """Return the lower end of the ratio's interval: the slowdown that is shown at least."""
    if found is None:
        return "the old record has no such row"
    latency = found.latency
    if latency.reason:
        return f"cannot tell: {latency.reason}"
    if latency.verdict == "cannot tell":
        return f"cannot tell: only {smallest_text(latency)} or more would have been found"
    limit = budget.limit
    if latency.low <= limit < latency.high and latency.smallest > limit:
        return (
            f"cannot tell: {significant(latency.low)} to {significant(latency.high)}×, and only "
            f"{smallest_text(latency)} or more would have been found"
        )
    return latency.low


def smallest_text(latency: RecordRatio) -> str:
    """Return the smallest difference that would have been found, in percent."""
    return f"{100 * (latency.smallest - 1):.1f} %"


# Those of figures of a row alone are in `report.metrics`.
OF_COMPARISONS: tuple[BudgetKind, ...] = (
    BudgetKind(
        "dice_drop",
        "dice_drop=0.005",
        {"": times(1)},
        (0, 1),
        _dice_drop,
        lambda value: signed(value, 4),
        of_trained=True,
    ),
    BudgetKind(
        "slowdown",
        "slowdown=5%",
        {"": times(1), "%": lambda number: 1 + number / 100},
        (1, math.inf),
        _slowdown,
        lambda value: f"at least {significant(value)}×",
    ),
)


def _require_rows(budgets: Sequence[Budget], rows: Sequence[Row]) -> None:
    """Raise InputError (E-BUDGET) for a budget of rows that are not there."""
    for budget in budgets:
        if not any(budget.judges(row) for row in rows):
            names = ", ".join(f"{row.name!r} ({row.kind} {row.precision})" for row in rows)
            raise InputError(
                "E-BUDGET",
                f"{budget.text!r:.60} is of no row; name one of {names}, its engine or precision",
            )


def _judge(budget: Budget, row: Row, found: RowComparison | None) -> Verdict:
    kind = budget.kind
    value = kind.value(row, found, budget)
    if isinstance(value, str):
        return Verdict(budget.text, row.name, False, value)
    passed = value >= budget.limit if kind.is_minimum else value <= budget.limit
    return Verdict(budget.text, row.name, passed, kind.written(value))


def require_budgets(comparison: RecordComparison) -> None:
    """Raise Refused (E-BUDGET-FAILED) that names the budgets not kept, if there are any."""
    failed = [verdict for verdict in comparison.verdicts if not verdict.passed]
    if failed:
        what = "; ".join(f"{each.row}: {each.budget}, found {each.found}" for each in failed)
        raise Refused(
            "E-BUDGET-FAILED", f"{len(failed)} of {len(comparison.verdicts)} not kept: {what}"
        )


# --- comparison ----------------------------------------------------------------------------------


@takes_paths
def read_pair(old: Path, new: Path) -> tuple[BenchmarkRecord, BenchmarkRecord]:
    """Read two records to compare.

    Raises InputError: E-COMPARE-SAME where both are one run, those of `read_record`.
    """
    records = read_record(old), read_record(new)  # once: they may be pipes
    # As JSON, in which what is undefined equals itself.
    if json_from_value(records[0]) == json_from_value(records[1]):
        raise InputError(
            "E-COMPARE-SAME",
            f"{old} and {new} are one run, which equals itself; name the records of two runs",
        )
    return records


def compare_records(
    old: BenchmarkRecord,
    new: BenchmarkRecord,
    budgets: Sequence[Budget] = (),
) -> RecordComparison:
    """Compare the rows of two records that have the same name.

    Where no name is in both, a row is compared with the only one of its engine and precision.

    Args:
        old: what to compare with.
        new: what every budget is judged on, row by row.
        budgets: from `report.metrics.parse_budget`; those of accuracy pass over networks that are
            not trained, and fail where no other is there.

    Raises:
        Refused: E-COMPARE-MACHINE for records of different CPUs, cores, instructions or governors,
            and of different GPUs or drivers where a row ran on a GPU.
        InputError: E-COMPARE-ROWS where no row has a counterpart, E-BUDGET for a budget of a row
            that the new record lacks.
    """
    _require_rows(budgets, new.rows)
    pairs = _pairs(old, new)
    _require_same_machine(old, new, pairs)
    compared = {row.name: _compare(before, row) for before, row in pairs}
    return RecordComparison(
        schema=SCHEMA,
        old_started_utc=old.environment.started_utc,
        new_started_utc=new.environment.started_utc,
        rows=tuple(compared.values()),
        only_old=_names_without(old, [before for before, _ in pairs]),
        only_new=_names_without(new, [row for _, row in pairs]),
        changes=tuple(
            f"{each.what}: {each.old} → {each.new}" for each in differences(old, new, pairs)
        ),
        warnings=tuple(_warnings(old, new)),
        verdicts=tuple(
            _judge(budget, row, compared.get(row.name))
            for budget in budgets
            for row in _judged(budget, new.rows)
        ),
    )


def _judged(budget: Budget, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a budget, for accuracy those of trained networks unless there is none."""
    judged = [row for row in rows if budget.judges(row)]
    if not budget.kind.of_trained:
        return judged
    return [row for row in judged if row.accuracy is not None] or judged


def _require_same_machine(
    old: BenchmarkRecord, new: BenchmarkRecord, pairs: Sequence[tuple[Row, Row]]
) -> None:
    on_gpu = any(computes_on_nvidia(row.kind, row.engine_facts) for pair in pairs for row in pair)
    for name in _MACHINE + (_MACHINE_OF_GPUS if on_gpu else ()):
        before, after = getattr(old.environment, name), getattr(new.environment, name)
        if before != after:
            raise Refused(
                "E-COMPARE-MACHINE",
                f"{name} is {before!r} in the old record and {after!r} in the new one; "
                "run both benchmarks on one machine with the same settings",
            )
    modes = old.before.power_mode, new.before.power_mode
    if modes[0] != modes[1]:
        raise Refused(
            "E-COMPARE-MACHINE",
            f"the power mode is {modes[0]} in the old record and {modes[1]} in the new one; run "
            "both benchmarks in one mode",
        )


def _pairs(old: BenchmarkRecord, new: BenchmarkRecord) -> list[tuple[Row, Row]]:
    by_name = {row.name: row for row in old.rows}
    if pairs := [(by_name[row.name], row) for row in new.rows if row.name in by_name]:
        return pairs
    pairs = [
        (before, row)
        for before in old.rows
        for row in new.rows
        if (before.kind, before.precision) == (row.kind, row.precision)
    ]
    if len(pairs) != 1:
        names = (", ".join(row.name for row in record.rows) for record in (old, new))
        raise InputError(
            "E-COMPARE-ROWS",
            f"the records have no row in common: {' against '.join(names)}; benchmark the same "
            "names, or one row of an engine and precision each",
        )
    return pairs


def _names_without(record: BenchmarkRecord, rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(row.name for row in record.rows if row not in rows)


def _compare(old: Row, new: Row) -> RowComparison:
    no_dice = _why_no_dice(old, new)
    return RowComparison(
        name=new.name,
        old_name=old.name,
        same_artifact=old.artifact_sha256 == new.artifact_sha256,
        old_p50_ms=old.latency.p50_ms,
        new_p50_ms=new.latency.p50_ms,
        latency=record_ratio(new, old),
        dice=None if no_dice else paired_difference(new.scores, old.scores),
        no_dice=no_dice,
    )


def _why_no_dice(old: Row, new: Row) -> str:
    """Return why the Dice of two rows cannot be compared image by image; empty where it can."""
    if old.accuracy is None or new.accuracy is None:
        return "a network is not trained"
    before, after = ({score.name: score for score in row.scores} for row in (old, new))
    if different := sorted(set(before) ^ set(after)):
        return f"{len(different)} images are in one record only, such as {different[0]!r}"
    for name, score in before.items():
        if score.lesion_px != after[name].lesion_px:
            return f"the truth of image {name!r} is another one"
    return "" if any(score.lesion_px for score in old.scores) else "no image has a lesion"


class Difference(NamedTuple):
    """What two records have different, which may explain why their numbers differ."""

    what: str
    old: str
    new: str


def differences(
    old: BenchmarkRecord, new: BenchmarkRecord, pairs: Sequence[tuple[Row, Row]]
) -> list[Difference]:
    """Return versions, settings and facts of engines that are not the same in both records.

    Args:
        old: one record.
        new: the other.
        pairs: rows that are compared, of old and new.
    """
    found: list[Difference] = []

    def add(name: str, before: object, after: object) -> None:
        if before != after:
            found.append(Difference(name, str(before), str(after)))

    for name in ("system", "container", "affinity", "python", "commit", *_MACHINE_OF_GPUS):
        add(name, getattr(old.environment, name), getattr(new.environment, name))
    packages = old.environment.packages, new.environment.packages
    for name in sorted({*packages[0], *packages[1]}):
        add(name, packages[0].get(name), packages[1].get(name))
    for name in ("frames", "images", "part"):
        add(name, getattr(old, name), getattr(new, name))
    add("split", old.split_sha256, new.split_sha256)
    for field in dataclasses.fields(Settings):
        add(
            f"setting {field.name}",
            getattr(old.settings, field.name),
            getattr(new.settings, field.name),
        )
    for before, after in pairs:
        facts = before.engine_facts, after.engine_facts
        add(f"{after.name}, engine", before.kind, after.kind)
        add(f"{after.name}, precision", before.precision, after.precision)
        add(f"{after.name}, input contract", before.contract, after.contract)
        for name in sorted({*facts[0], *facts[1]}):
            add(f"{after.name}, {name}", facts[0].get(name), facts[1].get(name))
    return found


def _warnings(old: BenchmarkRecord, new: BenchmarkRecord) -> list[str]:
    order = [ORDER] if measured_backwards(old, new) else []
    return order + [
        f"{which} record: {text}"
        for which, record in (("old", old), ("new", new))
        for text in [each.text for each in record.changes] + [n.text for n in record.notes]
    ]


def measured_backwards(old: BenchmarkRecord, new: BenchmarkRecord) -> bool:
    """Say whether the new record is the earlier one."""
    return new.environment.started_utc < old.environment.started_utc
