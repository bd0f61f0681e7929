"""The comparison of two records for people: for a terminal, as a page, as Markdown and JSON."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...runtime.errors import InputError
from ...runtime.files import write_together
from ...runtime.paths import takes_paths
from ..compare import (
    ORDER,
    RecordComparison,
    RowComparison,
    differences,
    measured_backwards,
    smallest_text,
)
from ..formatting import MISSING, percent, printable, signed_interval, significant, text_table
from ..jsonform import json_from_value
from ..measure.accuracy import PairedDifference
from ..record import BenchmarkRecord, Row
from ..yardstick_passes import RecordRatio, summarise_passes
from . import metrics
from .document import (
    Caution,
    Code,
    Document,
    Figure,
    Figures,
    Head,
    Section,
    Table,
    Terms,
    heads,
    section,
)
from .files import require_report_path
from .markdown import to_markdown_text
from .page import to_page
from .pass_charts import passes_of_both, ratio_intervals
from .svg import family
from .tables import environment_terms, set_aside_text, told_conditions
from .wording import DEFINITIONS, cautions

SUFFIXES = (".html", ".json", ".md")  # of the forms, the page's first
_CHANGED = ("slower", "faster")
_ORDER = (*_CHANGED, "cannot tell", "no difference")  # of rows, what changed first
_DEFINED = ("Yardstick and passes", "p50, p90, p99", "Frames/s", "First mask", "Peak memory")
_NEW_OVER_OLD = (
    "a row's time over its yardstick's in the new run, divided by the same in the old run; above 1 "
    "is slower. The 99 % interval is Welch's over the passes of both, with an allowance for what "
    "no pass shows. “Slower” and “faster” mean that it leaves out 1. Else it is “no difference” "
    "only if a difference of 10 % would have been found 19 times in 20, and “cannot tell” if not."
)
_MACHINE = (
    "what the machine did between the runs: the time of the yardstick itself, new over old. It is "
    "in the times as measured, and taken out of the ratio. What both networks share, such as the "
    "engine's adapter, would show here too."
)
_DICE = (
    "new minus old, image by image, over images with a lesion, with the 95 % interval; "
    "near-duplicates are drawn together."
)


def ordered(rows: Sequence[RowComparison]) -> list[RowComparison]:
    """Return rows with what changed first, the largest change foremost."""

    def key(row: RowComparison) -> tuple[int, float]:
        ratio = row.latency.ratio
        return _ORDER.index(row.latency.verdict), -abs(math.log(ratio)) if ratio > 0 else 0.0

    return sorted(rows, key=key)


# --- one sentence --------------------------------------------------------------------------------


def comparison_headline(found: RecordComparison) -> str:
    """Return the one sentence to remember: what changed, by how much, and the budgets."""
    parts = (_latency_finding(found), _dice_finding(found), _budget_finding(found))
    return f"{'; '.join(part for part in parts if part)}."


def _latency_finding(found: RecordComparison) -> str:
    rows = ordered(found.rows)
    first, latency = rows[0], rows[0].latency
    counts = Counter(row.latency.verdict for row in rows)
    changed, untold = counts["slower"] + counts["faster"], counts["cannot tell"]
    if latency.verdict in _CHANGED:
        more = f", and {changed - 1} more of {len(rows)} rows changed" if changed > 1 else ""
        return (
            f"{first.name} is {latency.verdict}: {significant(latency.ratio)}× its earlier time "
            f"(99 % interval {significant(latency.low)}–{significant(latency.high)}){more}"
        )
    if untold == len(rows):
        return "Whether latency changed cannot be told"
    if len(rows) > 1:
        return f"No change of latency was found in {len(rows) - untold} of {len(rows)} rows" + (
            f", {untold} cannot be told" if untold else ""
        )
    return (
        f"No change of latency was found in {first.name} (one of {smallest_text(latency)} would "
        "have been)"
    )


def _dice_finding(found: RecordComparison) -> str:
    compared = [(row, row.dice) for row in found.rows if row.dice is not None]
    if not compared:
        return "Dice not compared"
    moved = sorted((dice.mean, row.name, dice) for row, dice in compared if dice.differs)
    if not moved:
        return "Dice not shown to differ"
    _, name, worst = moved[0]
    more = f" (and {len(moved) - 1} more)" if len(moved) > 1 else ""
    return f"Dice of {name} {signed_interval(worst.mean, worst.low, worst.high)}{more}"


def _budget_finding(found: RecordComparison) -> str:
    """Count budgets by row: each is judged on every row that it is of."""
    failed, asked = sum(not each.passed for each in found.verdicts), len(found.verdicts)
    if asked < 2:
        return f"the budget is {'not ' * failed}kept" if asked else ""
    return f"{failed} of {asked} budget checks failed" if failed else f"all {asked} budgets kept"


# --- terminal and JSON ---------------------------------------------------------------------------


def comparison_to_json(found: RecordComparison) -> str:
    """Return the comparison as JSON text; an undefined number is null."""
    content = {**json_from_value(found), "passed": found.passed}
    for row, compared in zip(content["rows"], found.rows, strict=True):
        row["latency"]["verdict"] = compared.latency.verdict
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def render_comparison(found: RecordComparison) -> str:
    """Return the comparison for a terminal: the finding first, then rows and what else changed."""
    header = ["row", "old p50 ms", "new p50 ms", "new / old (99 %)", "Dice, new - old (95 %)"]
    rows = [
        [
            _name(row),
            significant(row.old_p50_ms),
            significant(row.new_p50_ms),
            _latency_cell(row.latency),
            _dice_cell(row.dice),
        ]
        for row in ordered(found.rows)
    ]
    lines = [
        f"New record of {found.new_started_utc} against {found.old_started_utc}.",
        comparison_headline(found),
        *(
            f"{'kept' if each.passed else 'FAILED'}: {each.budget}, {each.row}: {each.found}"
            for each in found.verdicts
        ),
        "",
        text_table(header, rows),
        "",
        *(_about_latency(row) for row in ordered(found.rows)),
        *(f"note: {warning}" for warning in found.warnings),
        *_remarks(found),
        *(f"Changed: {change}" for change in found.changes),
    ]
    return printable("\n".join(lines))


def _name(row: RowComparison) -> str:
    return row.name if row.name == row.old_name else f"{row.name} (was {row.old_name})"


def _latency_cell(latency: RecordRatio) -> str:
    verdict = latency.verdict
    if latency.reason:
        return verdict
    if verdict in _CHANGED:
        return f"{verdict}: {_ratio_cell(latency)}"
    return f"{verdict} ({significant(latency.low)}–{significant(latency.high)})"


def _ratio_cell(latency: RecordRatio) -> str:
    if latency.reason:
        return MISSING
    interval = f"({significant(latency.low)}–{significant(latency.high)})"
    return f"{significant(latency.ratio)}× {interval}"


def _about_latency(row: RowComparison) -> str:
    """Return what a verdict rests on: what could have been found, and what the machine did."""
    latency = row.latency
    if latency.reason:
        return f"{row.name}: latency: cannot tell: {latency.reason}."
    return (
        f"{row.name}: the machine took {significant(latency.machine)}× the time for its yardstick, "
        f"which is taken out; a difference of {smallest_text(latency)} would have been found "
        f"19 times in 20 ({latency.passes[0]} and {latency.passes[1]} passes)."
    )


def _dice_cell(dice: PairedDifference | None) -> str:
    if dice is None:
        return MISSING
    text = signed_interval(dice.mean, dice.low, dice.high)
    return text if dice.differs else f"no difference: {text}"


def _remarks(found: RecordComparison) -> list[str]:
    """Return what a reader may wonder about: changes without a cause, Dice or counterpart."""
    return [
        *(
            f"{row.name}: both runs had the same files, so software or settings differ."
            for row in found.rows
            if row.same_artifact and row.latency.verdict in _CHANGED
        ),
        *(f"{row.name}: no Dice: {row.no_dice}." for row in found.rows if row.no_dice),
        *(f"Only in the old record: {name}." for name in found.only_old),
        *(f"Only in the new record: {name}." for name in found.only_new),
    ]


# --- page and Markdown ---------------------------------------------------------------------------


def comparison_document(
    found: RecordComparison, old: BenchmarkRecord, new: BenchmarkRecord, command: Sequence[str]
) -> Document:
    """Return the whole report of a comparison.

    Args:
        found: of these two records.
        old: what was compared with.
        new: what was judged.
        command: that compared them, to reproduce it.
    """
    rows = ordered(found.rows)
    of_old, of_new = ({row.name: row for row in record.rows} for record in (old, new))
    pairs = [(of_old[row.old_name], of_new[row.name]) for row in rows]
    return Document(
        title="edgeseg comparison",
        date=new.environment.started_utc[:10],
        headline=comparison_headline(found),
        cautions=tuple(_cautions(old, new)),
        sections=(
            section(
                "What changed",
                "Latency is judged by the ratio to a fixed network that was timed beside each row, "
                "from calls that did not wait for a core. The two p50 are of the whole run: they "
                "have in them what else the machine did.",
                _changed_table(rows),
                *_reasons(rows),
                *_remarks(found),
            ),
            section("Budgets", _budgets_table(found) or "No budget was given."),
            section("Plots", _plots(rows, pairs) or "No row could be compared in latency."),
            section("How sure is this", _sure_table(rows, pairs)),
            section(
                "As measured",
                "Each run as it was, with what the machine did still in it: budgets judge these "
                "figures of the new run, and only the ratio above compares the two. Old → new.",
                _measured_table("Latency and throughput", "compared times", pairs),
                _measured_table("Memory, start and file", "compared memory", pairs),
                _measured_table("Accuracy", "compared accuracy", pairs),
            ),
            section("What differs", _differences_table(old, new, pairs)),
            section("Conditions", _runs_table(old, new), _conditions_table(old, new)),
            section("Definitions", Terms(_definitions())),
            _reproduce(old, new, command),
        ),
    )


def _cautions(old: BenchmarkRecord, new: BenchmarkRecord) -> list[Caution]:
    """Return what both records warn of, each text once; what invalidates times first."""
    told: dict[tuple[str, bool], list[str]] = {}
    for which, record in (("Old", old), ("New", new)):
        for caution in cautions(record):
            told.setdefault((caution.text, caution.invalidates), []).append(which)
    found = [Caution(ORDER, invalidates=True)] if measured_backwards(old, new) else []
    for (text, invalidates), runs in told.items():
        whose = "Both runs" if len(runs) > 1 else f"{runs[0]} run"
        found.append(Caution(f"{whose}: {text}", invalidates))
    return sorted(found, key=lambda caution: not caution.invalidates)


def _changed_table(rows: Sequence[RowComparison]) -> Table:
    header = heads(
        "Row",
        "Latency",
        ("New over old", "99 %"),
        ("Old p50", "ms"),
        ("New p50", "ms"),
        ("Dice, new minus old", "95 %"),
        "Dice",
        "Files",
    )
    lines = tuple(
        (
            _name(row),
            row.latency.verdict,
            _ratio_cell(row.latency),
            significant(row.old_p50_ms),
            significant(row.new_p50_ms),
            MISSING if row.dice is None else _dice_cell(row.dice).removeprefix("no difference: "),
            _dice_verdict(row.dice),
            "the same" if row.same_artifact else "others",
        )
        for row in rows
    )
    return Table("What changed", header, lines)


def _dice_verdict(dice: PairedDifference | None) -> str:
    if dice is None:
        return "not compared"
    return ("worse" if dice.mean < 0 else "better") if dice.differs else "no difference"


def _reasons(rows: Sequence[RowComparison]) -> list[str]:
    return [_about_latency(row) for row in rows if row.latency.reason]


def _budgets_table(found: RecordComparison) -> Table | None:
    verdicts = sorted(found.verdicts, key=lambda each: each.passed)
    lines = tuple(
        (each.budget, "kept" if each.passed else "not kept", each.found, each.row)
        for each in verdicts
    )
    header = heads("Budget", "Result", "Found", "Row")
    return Table("Budgets", header, lines, words=True) if lines else None


def _plots(rows: Sequence[RowComparison], pairs: Sequence[tuple[Row, Row]]) -> Figures | None:
    figures = (
        Figure(
            "New run against the old",
            ratio_intervals([(row, new) for row, (_, new) in zip(rows, pairs, strict=True)]),
            "The machine's part taken out, with the 99 % interval. An interval that crosses the "
            "line at 0 shows no change.",
        ),
        Figure(
            "Passes of both runs",
            passes_of_both(
                [pair for row, pair in zip(rows, pairs, strict=True) if not row.latency.reason]
            ),
            "A dot is a pass, the first one on top: the row's time over its yardstick's. Long "
            "lines: the means. Where the dots of the two runs overlap, so do the runs.",
        ),
    )
    drawn = tuple(figure for figure in figures if figure.svg)
    kinds = sorted({new.kind for _, new in pairs}, key=lambda kind: (family(kind), kind))
    return Figures(drawn, tuple(kinds)) if drawn else None


def _sure_table(rows: Sequence[RowComparison], pairs: Sequence[tuple[Row, Row]]) -> Table:
    header = heads(
        "Row",
        "Smallest difference it shows",
        ("Machine", "new over old"),
        ("Passes that count", "old"),
        ("Passes that count", "new"),
        ("Spread between passes", "old"),
        ("Spread between passes", "new"),
        ("Calls set aside", "old"),
        ("Calls set aside", "new"),
    )
    lines = tuple(
        (row.name, *_sure_cells(row.latency, *pair)) for row, pair in zip(rows, pairs, strict=True)
    )
    return Table("How sure is this", header, lines)


def _sure_cells(latency: RecordRatio, old: Row, new: Row) -> tuple[str, ...]:
    both = summarise_passes(old), summarise_passes(new)
    return (
        MISSING if latency.reason else smallest_text(latency),
        MISSING if math.isnan(latency.machine) else f"{significant(latency.machine)}×",
        *(f"{each.count} of {each.measured}" for each in both),
        *(percent(each.spread) for each in both),
        *(set_aside_text(each) for each in both),
    )


def _measured_table(
    title: str, table: metrics.Table, pairs: Sequence[tuple[Row, Row]]
) -> Table | None:
    """Return figures of both runs as they were measured; None where none is of this table."""
    columns = metrics.columns_of(table, [row for pair in pairs for row in pair])
    header: list[str | Head] = ["Row"]
    for column in columns:
        if column.is_split:
            header += [(column.title, "old"), (column.title, "new")]
        else:
            header.append((column.title, column.unit))
    lines = tuple(
        (new.name, *(cell for column in columns for cell in _measured_cells(column, old, new)))
        for old, new in pairs
    )
    return Table(title, heads(*header), lines) if columns else None


def _measured_cells(column: metrics.Column, old: Row, new: Row) -> tuple[str, ...]:
    before, after = column.cell(old, None), column.cell(new, None)
    return (before, after) if column.is_split else (_old_to_new(before, after),)


def _old_to_new(old: str, new: str) -> str:
    return old if old == new else f"{old} → {new}"


def _differences_table(
    old: BenchmarkRecord, new: BenchmarkRecord, pairs: Sequence[tuple[Row, Row]]
) -> Table | str:
    found = differences(old, new, pairs)
    if not found:
        return "Versions, settings, data and facts of the engines are the same in both records."
    return Table("What differs", heads("What", "Old", "New"), tuple(found), words=True)


def _runs_table(old: BenchmarkRecord, new: BenchmarkRecord) -> Table:
    before, after = environment_terms(old), environment_terms(new)
    lines = tuple((name, before[name], after[name]) for name in before)
    return Table("Both runs", heads("Fact", "Old", "New"), lines, words=True)


def _conditions_table(old: BenchmarkRecord, new: BenchmarkRecord) -> Table:
    header = heads("Condition", "Old, before", "Old, after", "New, before", "New, after")
    return told_conditions((old.before, old.after, new.before, new.after), header)


def _definitions() -> dict[str, str]:
    return {
        "New over old": _NEW_OVER_OLD,
        "Machine": _MACHINE,
        "Dice": _DICE,
        **{name: DEFINITIONS[name] for name in _DEFINED},
    }


def _reproduce(old: BenchmarkRecord, new: BenchmarkRecord, command: Sequence[str]) -> Section:
    return section(
        "Reproduce",
        Code(shlex.join(old.environment.command), "Command line of the old run"),
        Code(shlex.join(new.environment.command), "Command line of the new run"),
        Code(shlex.join(command), "Command line of the comparison"),
        "Folders are left out of the commands. The .json beside this report has its numbers.",
    )


# --- files ---------------------------------------------------------------------------------------


@takes_paths
def require_comparison_path(html_path: Path, records: Sequence[Path]) -> None:
    """Check before anything is read that a comparison can be written.

    Args:
        html_path: of the page.
        records: files that are compared.

    Raises:
        InputError: E-REPORT-NAME for another ending, or where one of these records would be
            written over.
        OutputError: E-OUT-WRITE, as `require_report_path`.
    """
    require_report_path(html_path, suffixes=SUFFIXES)
    for target in map(html_path.with_suffix, SUFFIXES):
        for record in records:
            if _is_same_file(target, record):
                raise InputError(
                    "E-REPORT-NAME",
                    f"{html_path} would write over {record}, which is compared; choose another "
                    "name",
                )


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one is not there, or a link to itself: nothing to write over
        return False


@takes_paths
def write_comparison(
    found: RecordComparison, document: Document, html_path: Path
) -> tuple[Path, ...]:
    """Write the page and, beside it under the same name, .json and .md; all or none.

    Raises OutputError: E-OUT-WRITE.
    """
    forms = (to_page(document), comparison_to_json(found), to_markdown_text(document))
    contents = dict(zip(map(html_path.with_suffix, SUFFIXES), forms, strict=True))
    write_together(contents)
    return tuple(contents)
