"""Plots as inline SVG: no library, no script; the page's style sheet colours them.

All are `WIDTH` wide so that their text stays readable when a phone scales them down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from .record import Row
from .text import fixed, significant

WIDTH = 420  # px at full size
_RIGHT = WIDTH - 14
_CHARACTER_PX = 7.2  # mean width at 13 px, rather too wide than too narrow
_MAX_NAME = 26  # characters; longer ones are cut, the tables have them whole

# Where a label may lie from its point, liked best first: right, left, the corners, above, below.
_DIRECTIONS = ((1, 0), (-1, 0), (0.7, -1), (-0.7, -1), (0.7, 1), (-0.7, 1), (0, -1), (0, 1))

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class _Axis:
    """Maps values to px; `low` and `high` are ticks themselves."""

    low: float
    high: float
    start_px: float  # where `low` is
    end_px: float
    scale: Callable[[float], float]
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        share = (self.scale(value) - self.scale(self.low)) / (
            self.scale(self.high) - self.scale(self.low)
        )
        return self.start_px + share * (self.end_px - self.start_px)


def _log_axis(values: Sequence[float], start_px: float, end_px: float) -> _Axis:
    """Return a logarithmic axis over values above 0, with ticks at 1, 2 and 5 times 10**k."""
    exponents = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    steps = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    low = max(step for step in steps if step <= min(values))
    high = min(step for step in steps if step > max(values))
    ticks = [step for step in steps if low <= step <= high]
    if len(ticks) > 8:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    return _Axis(low, high, start_px, end_px, math.log10, tuple(ticks))


def _linear_axis(low: float, high: float, start_px: float, end_px: float) -> _Axis:
    """Return a linear axis of about five round steps around `low` and `high`."""
    rough = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(f * magnitude for f in (1, 2, 5, 10) if f * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return _Axis(ticks[0], ticks[-1], start_px, end_px, float, ticks)


def accuracy_against_latency(rows: Sequence[Row]) -> str:
    """Plot mean Dice with its interval against the median latency, and the Pareto front.

    Rows without a lesion to score are left out; an empty string means that no row has one.
    """
    scored = [row for row in rows if row.accuracy.lesions.images]
    if not scored:
        return ""
    height, left, bottom, top = 360, 54, 312, 14
    summaries = [row.accuracy.lesions.per_image["dice"] for row in scored]
    ends = [end for s in summaries for end in (s.mean, s.low, s.high) if not math.isnan(end)]
    margin = max(0.01, 0.05 * (max(ends) - min(ends)))
    y_axis = _linear_axis(max(0, min(ends) - margin), min(1, max(ends) + margin), bottom, top)
    medians = [row.latency.p50_ms for row in scored]
    x_axis = _log_axis([min(medians) / 1.15, max(medians) * 1.15], left, _RIGHT)
    points = [(x_axis.at(m), y_axis.at(s.mean)) for m, s in zip(medians, summaries, strict=True)]
    front = _pareto_front(points)
    parts = [
        _grid(x_axis, y_axis, "Median latency, ms (log scale): left is faster"),
        f'<text class="axis" transform="translate(13 {(top + bottom) / 2}) rotate(-90)" '
        'text-anchor="middle">Mean Dice with 95 % interval</text>',
        _front_path(front),
    ]
    lines: list[Box] = [  # what a label had better not cross: the front, then the intervals
        (x, y - 1, end, y + 1)
        for (x, y), end in zip(front, [*(x for x, _ in front[1:]), _RIGHT], strict=True)
    ]
    for row, (x, _), summary in zip(scored, points, summaries, strict=True):
        if not math.isnan(summary.low):
            low_px, high_px = y_axis.at(summary.low), y_axis.at(summary.high)
            lines.append((x - 2, high_px, x + 2, low_px))
            parts.append(
                f'<path class="interval {row.kind}" d="M{x:.1f} {low_px:.1f}V{high_px:.1f}'
                f'M{x - 4:.1f} {low_px:.1f}h8M{x - 4:.1f} {high_px:.1f}h8"/>'
            )
    parts += [_marker(row, x, y) for row, (x, y) in zip(scored, points, strict=True)]
    names = [_short(row.name) for row in scored]
    parts += _labels(names, points, lines, (left + 2, top, WIDTH, bottom - 2))
    facts = "; ".join(
        f"{row.name}: {significant(row.latency.p50_ms)} ms, Dice {fixed(s.mean)}"
        for row, s in zip(scored, summaries, strict=True)
    )
    return _svg("accuracy-latency", "Accuracy against latency", facts, height, parts)


def _grid(x_axis: _Axis, y_axis: _Axis, x_title: str) -> str:
    bottom, top = y_axis.start_px, y_axis.end_px
    left, right = x_axis.start_px, x_axis.end_px
    decimals = 2 if y_axis.ticks[1] - y_axis.ticks[0] > 0.0099 else 3
    lines = [f'<path class="base" d="M{left} {bottom}H{right}"/>']
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        lines.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        lines.append(
            f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{fixed(tick, decimals)}</text>"
        )
    return "".join([*lines, _x_ticks(x_axis, top, bottom, x_title)])


def _x_ticks(axis: _Axis, top: float, bottom: float, title: str) -> str:
    lines = []
    for tick in axis.ticks:
        x = axis.at(tick)
        lines.append(f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>')
        lines.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>'
        )
    middle = (axis.start_px + axis.end_px) / 2
    lines.append(
        f'<text class="axis" x="{middle}" y="{bottom + 40}" text-anchor="middle">{title}</text>'
    )
    return "".join(lines)


def _pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats on both axes, in px, so less is better on both."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _front_path(front: Sequence[tuple[float, float]]) -> str:
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in front[1:])
    return f'<path class="front" d="M{front[0][0]:.1f} {front[0][1]:.1f}{steps}H{_RIGHT}"/>'


def _marker(row: Row, x: float, y: float) -> str:
    """Draw the shape of the precision in the colour of the engine."""
    if row.precision == "int8":
        shape = f'<path class="mark {row.kind}" d="M{x:.1f} {y - 7:.1f}l7 7-7 7-7-7z"/>'
    elif row.precision == "fp16":
        shape = (
            f'<rect class="mark {row.kind}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" '
            'height="10"/>'
        )
    else:
        shape = f'<circle class="mark {row.kind}" cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'
    return shape


def _labels(
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    lines: Sequence[Box],
    bounds: Box,
) -> list[str]:
    """Put each name where it covers least, with a thin line to its point where it is far."""
    taken: list[Box] = [(x - 8, y - 8, x + 8, y + 8) for x, y in points]
    parts = []
    for name, (x, y) in zip(names, points, strict=True):
        width = _CHARACTER_PX * len(name)
        boxes = [
            _box_at(x + dx * reach, y + dy * reach, dx, width)
            for reach in (11, 18, 26, 36, 48, 62, 78, 96)
            for dx, dy in _DIRECTIONS
        ]

        def cost(box: Box, x: float = x, y: float = y) -> float:
            outside = box[0] < bounds[0] or box[1] < bounds[1]
            outside |= box[2] > bounds[2] or box[3] > bounds[3]
            return (
                10_000 * outside
                + 1_000 * sum(_overlap(box, other) for other in taken)
                + 25 * sum(_overlap(box, other) for other in lines)
                + _distance(box, x, y)
            )

        box = min(boxes, key=cost)
        taken.append(box)
        if _distance(box, x, y) > 16:
            near_x = min(max(x, box[0]), box[2])
            near_y = box[3] if box[3] < y else box[1] if box[1] > y else (box[1] + box[3]) / 2
            parts.append(f'<path class="leader" d="M{x:.1f} {y:.1f}L{near_x:.1f} {near_y:.1f}"/>')
        parts.append(
            f'<text class="label halo" x="{box[0]:.1f}" y="{box[3] - 4:.1f}">{escape(name)}</text>'
        )
    return parts


def _box_at(x: float, y: float, side: float, width: float) -> Box:
    """Return a label's box that starts, ends or is centred at x, by the sign of `side`."""
    left = x if side > 0 else x - width if side < 0 else x - width / 2
    return (left, y - 9, left + width, y + 8)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _distance(box: Box, x: float, y: float) -> float:
    return math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3]))


def latency_strips(rows: Sequence[Row]) -> str:
    """Plot every end-to-end time as a dot, with lines at p50 (long), p90 and p99 (shorter)."""
    strip_px, left = 50, 14
    bottom = 4 + strip_px * len(rows)
    times = [time for row in rows for time in row.latency.e2e_ms]
    axis = _log_axis([min(times), max(times)], left, _RIGHT)
    parts = [_x_ticks(axis, 0, bottom, "Latency of one frame, ms (log scale)")]
    for index, row in enumerate(rows):
        top = strip_px * index
        latency = row.latency
        marks = [
            (name, value, reach)
            for name, value, reach in (
                ("p50", latency.p50_ms, 13),
                ("p90", latency.p90_ms, 9),
                ("p99", latency.p99_ms, 5),
            )
            if value is not None
        ]
        dots = "".join(  # the golden ratio spreads neighbours over the height, the same each time
            f"M{axis.at(time):.1f} {top + 24 + 18 * (turn * 0.618034 % 1):.1f}h0"
            for turn, time in enumerate(latency.e2e_ms)
        )
        values = " · ".join(f"{name} {significant(value)}" for name, value, _ in marks)
        lines = "".join(
            f"M{axis.at(value):.1f} {top + 33 - reach}v{2 * reach}" for _, value, reach in marks
        )
        parts += [
            f'<text class="label halo" x="{left}" y="{top + 16}">{escape(_short(row.name))}</text>'
            f'<text class="value halo" x="{_RIGHT}" y="{top + 16}" text-anchor="end">{values}'
            "</text>",
            f'<path class="dots {row.kind}" d="{dots}"/>',
            f'<path class="percentile" d="{lines}"/>',
        ]
    facts = "; ".join(
        f"{row.name}: median {significant(row.latency.p50_ms)} ms, "
        f"longest {significant(max(row.latency.e2e_ms))} ms"
        for row in rows
    )
    return _svg("latency-strips", "Distribution of latency", facts, bottom + 50, parts)


def bars(rows: Sequence[Row], values: Sequence[float], title: str, unit: str, key: str) -> str:
    """Plot one horizontal bar per row, from zero, with its value beside it.

    Args:
        rows: name and colour of the bars.
        values: >= 0, one per row.
        title: heading of the plot.
        unit: of the values.
        key: unique in the page, for references.
    """
    bar_px = 38
    longest = max(max(values), 1e-9)
    room = _RIGHT - 14 - 64  # for the value beside the longest bar
    parts = []
    for index, (row, value) in enumerate(zip(rows, values, strict=True)):
        top, length = bar_px * index, room * value / longest
        parts.append(
            f'<text class="label" x="14" y="{top + 15}">{escape(_short(row.name))}</text>'
            f'<rect class="bar {row.kind}" x="14" y="{top + 20}" width="{length:.1f}" height="11"/>'
            f'<text class="value" x="{20 + length:.1f}" y="{top + 30}">{significant(value)}</text>'
        )
    facts = "; ".join(
        f"{row.name}: {significant(value)} {unit}" for row, value in zip(rows, values, strict=True)
    )
    return _svg(key, f"{title}, {unit}", facts, bar_px * len(rows) + 4, parts)


def _short(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def _svg(key: str, title: str, description: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-labelledby="{key}-title {key}-description">'
        f'<title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-description">{escape(description)}</desc>{"".join(parts)}</svg>'
    )
