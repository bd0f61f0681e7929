"""Two benchmark records side by side, and whether the new one keeps its budgets.

The records are of two runs at different times, so only the images are paired: the interval of a
latency ratio draws blocks of calls from each run on its own. What the machine did differently
between the runs is in no interval; only rows of one run, which take turns, exclude it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..runtime.errors import InputError, Refused
from .accuracy import PairedDifference, paired_difference
from .jsonform import json_from_value
from .latency import P99_MIN_N, LatencyRatio, LatencyRun
from .record import BenchmarkRecord, Row
from .text import MISSING, fixed, signed, significant, text_table

SCHEMA = "edgeseg.comparison/1"
BLOCKS = 8  # equal stretches of a run: long, because disturbances last for many calls
MIN_CALLS = 40  # of a run; the median of a shorter stretch says little
# A bootstrap over so few blocks is too narrow: by this much for their variance (k / (k - 1)) and
# for its own uncertainty (Student's t at 0.975 with 2 · (8 - 1) degrees of freedom over 1.960).
_WIDER = math.sqrt(BLOCKS / (BLOCKS - 1)) * 2.145 / 1.960
TWO_RUNS = (
    "These are two runs at different times: what the machine did differently between them is in "
    "no interval. Where a small difference matters, measure both in one run."
)
_RESAMPLES = 2000
_SEED = 0
_MACHINE = ("cpu", "cores", "isa", "governor")  # fields of the environment


@dataclass(frozen=True)
class RowComparison:
    """A row of the new record against its counterpart in the old one."""

    name: str  # in the new record
    old_name: str
    same_artifact: bool  # whether both ran the same files
    old_p50_ms: float
    new_p50_ms: float
    latency: LatencyRatio  # median of the new over that of the old
    dice: PairedDifference | None  # new minus old, image by image
    no_dice: str  # why there is no `dice`; empty where there is


@dataclass(frozen=True)
class Budget:
    """A limit that every row of the new record must keep."""

    name: str  # key in BUDGETS
    limit: float  # in ms, bytes, Dice or as a ratio
    text: str  # as it was written


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


def _times(factor: float) -> Convert:
    return lambda number: factor * number


_MS: Mapping[str, Convert] = {"us": _times(1e-3), "ms": _times(1), "s": _times(1e3)}
_BYTES: Mapping[str, Convert] = {
    "B": _times(1),
    "kB": _times(1e3),
    "MB": _times(1e6),
    "KiB": _times(2**10),
    "MiB": _times(2**20),
    "GiB": _times(2**30),
}
_DICE: Mapping[str, Convert] = {"": _times(1)}
_RATIO: Mapping[str, Convert] = {"": _times(1), "%": lambda number: 1 + number / 100}


class BudgetKind(NamedTuple):
    """What a budget of one name limits."""

    example: str
    units: Mapping[str, Convert]  # from the number that is written to the limit
    limits: tuple[float, float]  # range that the limit must be in
    value: Callable[[Row, RowComparison | None], float | str]  # or why there is none
    written: Callable[[float], str]
    is_minimum: bool = False


def _p50_ms(row: Row, found: RowComparison | None) -> float | str:
    return row.latency.p50_ms


def _p90_ms(row: Row, found: RowComparison | None) -> float | str:
    value_ms = row.latency.p90_ms
    return "n too small for a p90" if value_ms is None else value_ms


def _p99_ms(row: Row, found: RowComparison | None) -> float | str:
    value_ms = row.latency.p99_ms
    return f"n too small for a p99, which needs {P99_MIN_N}" if value_ms is None else value_ms


def _first_mask_ms(row: Row, found: RowComparison | None) -> float | str:
    return row.process.first_mask_ms


def _start_ms(row: Row, found: RowComparison | None) -> float | str:
    return row.process.start_ms


def _memory_bytes(row: Row, found: RowComparison | None) -> float | str:
    return row.process.peak_rss_mib * (1 << 20)


def _file_bytes(row: Row, found: RowComparison | None) -> float | str:
    return row.file_bytes


def _dice(row: Row, found: RowComparison | None) -> float | str:
    if row.accuracy is None:
        return "the network is not trained"
    mean = row.accuracy.lesions.per_image["dice"].mean
    return "no image has a lesion" if math.isnan(mean) else mean


def _dice_drop(row: Row, found: RowComparison | None) -> float | str:
    """Return the upper end of the drop's interval, as the gate of an export does."""
    if found is None:
        return "the old record has no such row"
    if found.dice is None:
        return found.no_dice
    return "too few images for an interval" if math.isnan(found.dice.low) else -found.dice.low


def _slowdown(row: Row, found: RowComparison | None) -> float | str:
    """Return the lower end of the ratio's interval: the least that the row is shown to be slower.

    What disturbs the machine within a run widens the interval and so hides a slowdown; what
    differs between the runs can feign one, see `TWO_RUNS`.
    """
    if found is None:
        return "the old record has no such row"
    low = found.latency.low
    return "too few calls for an interval" if math.isnan(low) else low


def _write_ms(value: float) -> str:
    return f"{significant(value)} ms"


def _write_mib(value: float) -> str:
    return f"{significant(value / (1 << 20))} MiB"


def _write_dice(value: float) -> str:
    return signed(value, 4)


def _write_ratio(value: float) -> str:
    return f"at least {significant(value)}×"


_ANY = (0.0, math.inf)

# To add a budget: a line here; the message of E-BUDGET follows.
BUDGETS: Mapping[str, BudgetKind] = MappingProxyType(
    {
        "p50": BudgetKind("p50=20ms", _MS, _ANY, _p50_ms, _write_ms),
        "p90": BudgetKind("p90=25ms", _MS, _ANY, _p90_ms, _write_ms),
        "p99": BudgetKind("p99=33ms", _MS, _ANY, _p99_ms, _write_ms),
        "first_mask": BudgetKind("first_mask=2s", _MS, _ANY, _first_mask_ms, _write_ms),
        "start": BudgetKind("start=1.5s", _MS, _ANY, _start_ms, _write_ms),
        "memory": BudgetKind("memory=300MiB", _BYTES, _ANY, _memory_bytes, _write_mib),
        "size": BudgetKind("size=2MiB", _BYTES, _ANY, _file_bytes, _write_mib),
        "dice": BudgetKind("dice=0.8", _DICE, (0, 1), _dice, fixed, is_minimum=True),
        "dice_drop": BudgetKind("dice_drop=0.005", _DICE, (0, 1), _dice_drop, _write_dice),
        "slowdown": BudgetKind("slowdown=5%", _RATIO, (1, math.inf), _slowdown, _write_ratio),
    }
)


def parse_budget(text: str) -> Budget:
    """Read a budget such as ``p99=33ms``.

    Times take us, ms or s and sizes B, kB, MB, KiB, MiB or GiB, never no unit; `dice` (a minimum)
    and `dice_drop` are plain numbers; `slowdown` is a percentage or a ratio from 1 on.

    Raises InputError: E-BUDGET with the known names and forms.
    """
    written = re.fullmatch(r"(\w+)=(\d+\.?\d*|\.\d+) ?([A-Za-z%]*)", text.strip(), re.ASCII)
    name, number, unit = written.groups() if written else ("", "", "")
    kind = BUDGETS.get(name)
    if kind is None or unit not in kind.units:
        forms = ", ".join(each.example for each in BUDGETS.values())
        raise InputError("E-BUDGET", f"{text!r:.60} is no budget; give one like {forms}")
    limit = kind.units[unit](float(number))
    least, most = kind.limits
    if not (least <= limit <= most and math.isfinite(limit)):
        raise InputError(
            "E-BUDGET",
            f"{text!r:.60} asks for {limit:g}, outside {least:g}..{most:g}; "
            f"give one like {kind.example}",
        )
    return Budget(name, limit, text.strip())


def _judge(budget: Budget, row: Row, found: RowComparison | None) -> Verdict:
    kind = BUDGETS[budget.name]
    value = kind.value(row, found)
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
        budgets: from `parse_budget`; those of Dice pass over networks that are not trained.

    Raises:
        Refused: E-COMPARE-MACHINE for records of different CPUs, cores, instructions or governors.
        InputError: E-COMPARE-ROWS where no row has a counterpart.
    """
    _require_same_machine(old, new)
    pairs = _pairs(old, new)
    compared = {row.name: _compare(before, row) for before, row in pairs}
    return RecordComparison(
        schema=SCHEMA,
        old_started_utc=old.environment.started_utc,
        new_started_utc=new.environment.started_utc,
        rows=tuple(compared.values()),
        only_old=_names_without(old, [before for before, _ in pairs]),
        only_new=_names_without(new, [row for _, row in pairs]),
        changes=tuple(_changes(old, new, pairs)),
        warnings=tuple(
            f"{which} record: {text}"
            for which, record in (("old", old), ("new", new))
            for text in [each.text for each in record.changes] + [n.text for n in record.notes]
        ),
        verdicts=tuple(
            _judge(budget, row, compared.get(row.name))
            for budget in budgets
            for row in new.rows
            if row.accuracy is not None or not budget.name.startswith("dice")
        ),
    )


def _require_same_machine(old: BenchmarkRecord, new: BenchmarkRecord) -> None:
    for name in _MACHINE:
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
        latency=block_ratio(new.latency, old.latency),
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


def block_ratio(a: LatencyRun, b: LatencyRun) -> LatencyRatio:
    """Return the median end-to-end time of `a` over that of `b`, of two runs that took no turns.

    Block bootstrap (Carlstein 1986, doi 10.1214/aos/1176350057): each run is cut into 8 stretches
    of consecutive calls, and whole stretches are drawn from each run on its own, so that drift
    within a run widens the interval. It is NaN where a run has fewer than 40 calls.
    """
    ratio = a.p50_ms / b.p50_ms
    if min(len(a.e2e_ms), len(b.e2e_ms)) < MIN_CALLS:
        return LatencyRatio(ratio, math.nan, math.nan)
    generator = np.random.default_rng(_SEED)
    logs = np.log(_drawn_medians(a, generator)) - np.log(_drawn_medians(b, generator))
    low, high = np.quantile(logs, [0.025, 0.975])
    middle = (low + high) / 2
    return LatencyRatio(
        ratio,
        float(np.exp(middle + _WIDER * (low - middle))),
        float(np.exp(middle + _WIDER * (high - middle))),
    )


def _drawn_medians(run: LatencyRun, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the median of each resample; a rest of the run that fills no block is left out."""
    calls = len(run.e2e_ms) // BLOCKS
    blocks = np.asarray(run.e2e_ms[: BLOCKS * calls]).reshape(BLOCKS, calls)
    middle = (blocks.size - 1) // 2  # the order statistic that `percentile` takes
    draws = generator.integers(0, BLOCKS, (_RESAMPLES, BLOCKS))
    return np.array([np.partition(blocks[draw].ravel(), middle)[middle] for draw in draws])


def _changes(
    old: BenchmarkRecord, new: BenchmarkRecord, pairs: Sequence[tuple[Row, Row]]
) -> list[str]:
    """Return what else differs, as ``name: old → new``."""
    lines: list[str] = []

    def add(name: str, before: object, after: object) -> None:
        if before != after:
            lines.append(f"{name}: {before} → {after}")

    for name in ("system", "python", "commit"):
        add(name, getattr(old.environment, name), getattr(new.environment, name))
    packages = old.environment.packages, new.environment.packages
    for name in sorted({*packages[0], *packages[1]}):
        add(name, packages[0].get(name), packages[1].get(name))
    add("frames", old.frames, new.frames)
    add("split", old.split_sha256, new.split_sha256)
    for before, after in pairs:
        facts = before.engine_facts, after.engine_facts
        add(f"{after.name}, engine", before.kind, after.kind)
        add(f"{after.name}, precision", before.precision, after.precision)
        add(f"{after.name}, input contract", before.contract, after.contract)
        for name in sorted({*facts[0], *facts[1]}):
            add(f"{after.name}, {name}", facts[0].get(name), facts[1].get(name))
    return lines


# --- what is shown -------------------------------------------------------------------------------


def comparison_to_json(comparison: RecordComparison) -> str:
    """Return the comparison as JSON text; an undefined number is null."""
    content = {**json_from_value(comparison), "passed": comparison.passed}
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def render_comparison(comparison: RecordComparison) -> str:
    """Return the comparison for a terminal: the verdict first, then rows and what else changed."""
    header = ["row", "old p50 ms", "new p50 ms", "new / old (95 %)", "Dice, new - old (95 %)"]
    rows = [
        [
            row.name if row.name == row.old_name else f"{row.name} (was {row.old_name})",
            significant(row.old_p50_ms),
            significant(row.new_p50_ms),
            _latency_cell(row.latency),
            _dice_cell(row.dice),
        ]
        for row in comparison.rows
    ]
    lines = [
        f"New record of {comparison.new_started_utc} against {comparison.old_started_utc}.",
        *(
            f"{'kept' if each.passed else 'FAILED'}: {each.budget}, {each.row}: {each.found}"
            for each in comparison.verdicts
        ),
        "",
        text_table(header, rows),
        "",
        TWO_RUNS,
        *(f"note: {warning}" for warning in comparison.warnings),
        *(
            f"{row.name}: both runs had the same files, so software or machine made the difference."
            for row in comparison.rows
            if row.same_artifact and row.latency.differs
        ),
        *(f"{row.name}: no Dice: {row.no_dice}." for row in comparison.rows if row.no_dice),
        *(f"Only in the old record: {name}." for name in comparison.only_old),
        *(f"Only in the new record: {name}." for name in comparison.only_new),
        *(f"Changed: {change}" for change in comparison.changes),
    ]
    return "\n".join(lines)


def _latency_cell(latency: LatencyRatio) -> str:
    if math.isnan(latency.low):
        return f"{significant(latency.ratio)}×, too few calls"
    interval = f"({significant(latency.low)}–{significant(latency.high)})"
    if not latency.differs:
        return f"no difference {interval}"
    word = "slower" if latency.low > 1 else "faster"
    return f"{word}: {significant(latency.ratio)}× {interval}"


def _dice_cell(dice: PairedDifference | None) -> str:
    if dice is None:
        return MISSING
    text = f"{signed(dice.mean)} ({signed(dice.low)} to {signed(dice.high)})"
    return text if dice.differs else f"no difference: {text}"
