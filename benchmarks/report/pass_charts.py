"""Plots of passes beside a yardstick: of one run, and of two against each other."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..compare import RowComparison
from ..formatting import fixed, percent, significant
from ..record import Row
from ..yardstick_passes import MIN_PASSES, PassSummary, summarise_passes
from .charts import marker
from .svg import RIGHT, Axis, family, linear_axis, short, svg, x_ticks

_LEFT = 14
_LEAST_PERCENT = 1.0  # to both sides of 0, so that what hardly moves looks so


def pass_strips(rows: Sequence[Row]) -> str:
    """Plot each pass's ratio to the yardstick as a dot, in percent of the row's mean.

    From top to bottom in the order they were measured; the 99 % interval of the mean below them.
    Rows of fewer than `MIN_PASSES` passes are left out; an empty string means that no row is left.
    """
    found = [(row, summarise_passes(row)) for row in rows]
    found = [(row, summary) for row, summary in found if summary.count >= MIN_PASSES]
    if not found:
        return ""
    strip_px = 54
    bottom = 4 + strip_px * len(found)
    percents = [summary.percents(summary.ratio) for _, summary in found]
    intervals = [tuple(_percent(end / s.ratio) for end in s.interval) for _, s in found]
    axis = _percent_axis([value for each in (*percents, *intervals) for value in each], _LEFT)
    parts = [x_ticks(axis, 0, bottom, "A pass against the mean of its row, %")]
    for index, ((row, summary), values, (low, high)) in enumerate(
        zip(found, percents, intervals, strict=True)
    ):
        top = strip_px * index
        parts += [
            _name(row.name, top),
            _value(f"spread {percent(summary.spread)}", top),
            _dots(row.kind, values, axis, top + 24, top + 42),
            f'<path class="percentile" d="M{axis.at(0):.1f} {top + 22}v22"/>',
            _whisker(row.kind, axis.at(low), axis.at(high), top + 48),
        ]
    facts = "; ".join(f"{row.name}: {_pass_facts(summary)}" for row, summary in found)
    return svg("pass-strips", "Passes beside the yardstick", facts, bottom + 50, parts)


def _pass_facts(found: PassSummary) -> str:
    return (
        f"{found.count} passes, {fixed(found.ratio)} times the yardstick, spread "
        f"{percent(found.spread)}"
    )


def ratio_intervals(pairs: Sequence[tuple[RowComparison, Row]]) -> str:
    """Plot the latency of the new record over that of the old with its 99 % interval, row by row.

    Args:
        pairs: each comparison with its row in the new record. What could not be told is left out;
            an empty string means that nothing is left.
    """
    told = [(found, row) for found, row in pairs if not found.latency.reason]
    if not told:
        return ""
    strip_px = 44
    bottom = 4 + strip_px * len(told)
    ends = [_percent(end) for found, _ in told for end in (found.latency.low, found.latency.high)]
    axis = _percent_axis(ends, _LEFT)
    parts = [
        x_ticks(axis, 0, bottom, "Time of the new run against the old, %: right is slower"),
        f'<path class="base" d="M{axis.at(0):.1f} 0V{bottom}"/>',
    ]
    for index, (found, row) in enumerate(told):
        top, latency = strip_px * index, found.latency
        interval = f"{significant(latency.low)}–{significant(latency.high)}"
        low_px, high_px = axis.at(_percent(latency.low)), axis.at(_percent(latency.high))
        parts += [
            _name(found.name, top),
            _value(f"{significant(latency.ratio)}× ({interval})", top),
            _whisker(row.kind, low_px, high_px, top + 31),
            marker(row, axis.at(_percent(latency.ratio)), top + 31),
        ]
    facts = "; ".join(
        f"{found.name}: {found.latency.verdict}, {significant(found.latency.ratio)} times, 99 % "
        f"interval {significant(found.latency.low)} to {significant(found.latency.high)}"
        for found, _ in told
    )
    return svg("ratio-intervals", "New run against the old", facts, bottom + 50, parts)


def passes_of_both(pairs: Sequence[tuple[Row, Row]]) -> str:
    """Plot the passes of the old row above those of the new one, in percent of the old mean.

    Args:
        pairs: old and new row against the same yardstick. Those of fewer than `MIN_PASSES` passes
            are left out; an empty string means that nothing is left.
    """
    found = [(new, summarise_passes(old), summarise_passes(new)) for old, new in pairs]
    found = [each for each in found if min(each[1].count, each[2].count) >= MIN_PASSES]
    if not found:
        return ""
    strip_px, left = 66, 52
    bottom = 4 + strip_px * len(found)
    percents = [(o.percents(o.ratio), n.percents(o.ratio)) for _, o, n in found]
    axis = _percent_axis([value for pair in percents for each in pair for value in each], left)
    parts = [x_ticks(axis, 0, bottom, "A pass against the mean of the old run, %")]
    for index, ((row, old, new), values) in enumerate(zip(found, percents, strict=True)):
        top = strip_px * index
        parts.append(_name(row.name, top))
        for line, (word, summary) in enumerate((("old", old), ("new", new))):
            above = top + 24 + 21 * line
            mean = axis.at(_percent(summary.ratio / old.ratio))
            parts += [
                f'<text class="tick" x="{_LEFT}" y="{above + 12}">{word}</text>',
                _dots(row.kind, values[line], axis, above, above + 16),
                f'<path class="percentile" d="M{mean:.1f} {above - 1}v18"/>',
            ]
    facts = "; ".join(
        f"{row.name}: old {_pass_facts(old)}, new {_pass_facts(new)}" for row, old, new in found
    )
    return svg("passes-of-both", "Passes of both runs", facts, bottom + 50, parts)


def _percent(ratio: float) -> float:
    return 100 * (ratio - 1)


def _percent_axis(percents: Sequence[float], left: float) -> Axis:
    low, high = min(*percents, -_LEAST_PERCENT), max(*percents, _LEAST_PERCENT)
    return linear_axis(low, high, left, RIGHT)


def _name(name: str, top: float) -> str:
    return f'<text class="label halo" x="{_LEFT}" y="{top + 16}">{escape(short(name))}</text>'


def _value(text: str, top: float) -> str:
    return (
        f'<text class="value halo" x="{RIGHT}" y="{top + 16}" text-anchor="end">'
        f"{escape(text)}</text>"
    )


def _dots(kind: str, percents: Sequence[float], axis: Axis, top: float, bottom: float) -> str:
    """Draw the passes from top to bottom in their order."""
    step = (bottom - top) / len(percents)
    dots = "".join(
        f"M{axis.at(value):.1f} {top + step * (turn + 0.5):.1f}h0"
        for turn, value in enumerate(percents)
    )
    return f'<path class="dots passes {family(kind)}" d="{dots}"/>'


def _whisker(kind: str, low_px: float, high_px: float, y: float) -> str:
    return (
        f'<path class="interval {family(kind)}" d="M{low_px:.1f} {y}H{high_px:.1f}'
        f'M{low_px:.1f} {y - 4}v8M{high_px:.1f} {y - 4}v8"/>'
    )
