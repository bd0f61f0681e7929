"""Plots as inline SVG: no library, no script; the page's style sheet colours them.

All are `svg.WIDTH` wide so that their text stays readable when a phone scales them down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from types import MappingProxyType

from ..formatting import fixed, percent, significant
from ..measure.complexity import LayerCost
from ..measure.latency import percentile
from ..measure.layers import LayerReport
from ..measure.modes import SoakRun
from ..measure.roofline import Peaks
from ..record import Row
from .svg import (
    CHARACTER_PX,
    RIGHT,
    WIDTH,
    Axis,
    Box,
    emptiest,
    family,
    grid,
    labels,
    linear_axis,
    log_axis,
    short,
    svg,
    x_ticks,
)
from .wording import dice_of

# Parts of a call, as the style sheet colours them and as people read them.
PARTS = MappingProxyType(
    {"pre": "preparing", "transfer": "copies", "engine": "engine", "post": "reading out"}
)
LABELLED_LAYERS = 5  # have their rank beside their dot


def accuracy_against_latency(rows: Sequence[Row]) -> str:
    """Plot mean Dice with its interval against the median latency, and the Pareto front.

    Rows that are not trained or have no lesion to score are left out; an empty string means that
    no row is left.
    """
    scored = [(row, dice) for row in rows if (dice := dice_of(row)) and dice.n]
    if not scored:
        return ""
    height, left, bottom, top = 360, 54, 312, 14
    summaries = [dice for _, dice in scored]
    ends = [end for s in summaries for end in (s.mean, s.low, s.high) if not math.isnan(end)]
    margin = max(0.01, 0.05 * (max(ends) - min(ends)))
    y_axis = linear_axis(max(0, min(ends) - margin), min(1, max(ends) + margin), bottom, top)
    medians = [row.latency.p50_ms for row, _ in scored]
    x_axis = log_axis([min(medians) / 1.15, max(medians) * 1.15], left, RIGHT)
    points = [(x_axis.at(m), y_axis.at(s.mean)) for m, s in zip(medians, summaries, strict=True)]
    front = _pareto_front(points)
    parts = [
        grid(
            x_axis,
            y_axis,
            "Median latency, ms (log scale): left is faster",
            "Mean Dice with 95 % interval",
        ),
        _front_path(front),
    ]
    lines: list[Box] = [  # what a label had better not cross: the front, then the intervals
        (x, y - 1, end, y + 1)
        for (x, y), end in zip(front, [*(x for x, _ in front[1:]), RIGHT], strict=True)
    ]
    for (row, summary), (x, _) in zip(scored, points, strict=True):
        if not math.isnan(summary.low):
            low_px, high_px = y_axis.at(summary.low), y_axis.at(summary.high)
            lines.append((x - 2, high_px, x + 2, low_px))
            parts.append(
                f'<path class="interval {family(row.kind)}" d="M{x:.1f} {low_px:.1f}V{high_px:.1f}'
                f'M{x - 4:.1f} {low_px:.1f}h8M{x - 4:.1f} {high_px:.1f}h8"/>'
            )
    parts += [marker(row, x, y) for (row, _), (x, y) in zip(scored, points, strict=True)]
    names = [short(row.name) for row, _ in scored]
    parts += labels(names, points, lines, (left + 2, top, WIDTH, bottom - 2))
    facts = "; ".join(
        f"{row.name}: {significant(row.latency.p50_ms)} ms, Dice {fixed(s.mean)}"
        for row, s in scored
    )
    return svg("accuracy-latency", "Accuracy against latency", facts, height, parts)


def _pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats on both axes, in px, so less is better on both."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def _front_path(front: Sequence[tuple[float, float]]) -> str:
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in front[1:])
    return f'<path class="front" d="M{front[0][0]:.1f} {front[0][1]:.1f}{steps}H{RIGHT}"/>'


def marker(row: Row, x: float, y: float) -> str:
    """Draw the shape of the precision in the colour of the engine."""
    look = f'class="mark {family(row.kind)}"'
    if row.precision == "int8":
        return f'<path {look} d="M{x:.1f} {y - 7:.1f}l7 7-7 7-7-7z"/>'
    if row.precision == "fp16":
        return f'<rect {look} x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
    if row.precision == "bf16":
        return f'<path {look} d="M{x:.1f} {y - 7:.1f}l7 12h-14z"/>'
    return f'<circle {look} cx="{x:.1f}" cy="{y:.1f}" r="5.5"/>'


def latency_strips(rows: Sequence[Row]) -> str:
    """Plot every end-to-end time as a dot, with lines at p50 (long), p90 and p99 (shorter)."""
    strip_px, left = 50, 14
    bottom = 4 + strip_px * len(rows)
    times = [time for row in rows for time in row.latency.e2e_ms]
    axis = log_axis([min(times), max(times)], left, RIGHT)
    parts = [x_ticks(axis, 0, bottom, "Latency of one frame, ms (log scale)")]
    for index, row in enumerate(rows):
        top = strip_px * index
        latency = row.latency
        marks = [
            (value, reach)
            for value, reach in ((latency.p50_ms, 13), (latency.p90_ms, 9), (latency.p99_ms, 5))
            if value is not None
        ]
        dots = "".join(  # the golden ratio spreads neighbours over the height, the same each time
            f"M{axis.at(time):.1f} {top + 24 + 18 * (turn * 0.618034 % 1):.1f}h0"
            for turn, time in enumerate(latency.e2e_ms)
        )
        values = " · ".join(significant(value) for value, _ in marks)
        lines = "".join(
            f"M{axis.at(value):.1f} {top + 33 - reach}v{2 * reach}" for value, reach in marks
        )
        parts += [
            f'<text class="label halo" x="{left}" y="{top + 16}">{escape(short(row.name))}</text>'
            f'<text class="value halo" x="{RIGHT}" y="{top + 16}" text-anchor="end">{values}'
            "</text>",
            f'<path class="dots {family(row.kind)}" d="{dots}"/>',
            f'<path class="percentile" d="{lines}"/>',
        ]
    facts = "; ".join(
        f"{row.name}: median {significant(row.latency.p50_ms)} ms, "
        f"longest {significant(max(row.latency.e2e_ms))} ms"
        for row in rows
    )
    return svg("latency-strips", "Distribution of latency", facts, bottom + 50, parts)


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
    room = RIGHT - 14 - 64  # for the value beside the longest bar
    parts = []
    for index, (row, value) in enumerate(zip(rows, values, strict=True)):
        top, length = bar_px * index, room * value / longest
        parts.append(
            f'<text class="label" x="14" y="{top + 15}">{escape(short(row.name))}</text>'
            f'<rect class="bar {family(row.kind)}" x="14" y="{top + 20}" width="{length:.1f}" '
            'height="11"/>'
            f'<text class="value" x="{20 + length:.1f}" y="{top + 30}">{significant(value)}</text>'
        )
    facts = "; ".join(
        f"{row.name}: {significant(value)} {unit}" for row, value in zip(rows, values, strict=True)
    )
    return svg(key, f"{title}, {unit}", facts, bar_px * len(rows) + 4, parts)


def latency_parts(rows: Sequence[Row]) -> str:
    """Plot the medians of preparing, engine and reading out, one behind the other, per row.

    Where the engine tells its copies they stand before what is left of it.
    """
    bar_px = 38
    medians = [part_medians(row) for row in rows]
    px_per_ms = (RIGHT - 14) / max(sum(times.values()) for times in medians)
    parts = []
    for index, (row, times) in enumerate(zip(rows, medians, strict=True)):
        top, x = bar_px * index, 14.0
        values = " + ".join(significant(time) for time in times.values())
        parts.append(
            f'<text class="label halo" x="14" y="{top + 15}">{escape(short(row.name))}</text>'
            f'<text class="value halo" x="{RIGHT}" y="{top + 15}" text-anchor="end">{values}</text>'
        )
        for part, time in times.items():
            length = px_per_ms * time
            parts.append(
                f'<rect class="bar {part}" x="{x:.1f}" y="{top + 20}" '
                f'width="{max(0.5, length - 1):.1f}" height="11"/>'
            )
            x += length
    facts = "; ".join(
        f"{row.name}: "
        + ", ".join(f"{PARTS[part]} {significant(time)} ms" for part, time in times.items())
        for row, times in zip(rows, medians, strict=True)
    )
    return svg("latency-parts", "Latency in parts", facts, bar_px * len(rows) + 4, parts)


def part_medians(row: Row) -> dict[str, float]:
    """Return the median of each part of a call in ms, by key of `PARTS`, in the order they run."""
    run = row.latency
    samples = {"pre": run.pre_ms, "engine": run.engine_ms, "post": run.post_ms}
    if run.transfer_ms:
        copies = {"transfer": run.transfer_ms, "engine": run.compute_ms}
        samples = {"pre": run.pre_ms, **copies, "post": run.post_ms}
    return {part: percentile(times, 0.5) for part, times in samples.items()}


def soak_lines(row: Row, soak: SoakRun, key: str) -> str:
    """Plot the windows' medians over time and, below, the memory of the process.

    Args:
        row: whose soak it is.
        soak: at least one window.
        key: unique in the page, for references.
    """
    left, panel_px, gap_px = 54, 120, 62
    minutes = [window.end_s / 60 for window in soak.windows]
    x_axis = linear_axis(0, max(minutes), left, RIGHT)
    lines = [("p50, ms", minutes, [window.p50_ms for window in soak.windows])]
    known = [(w.end_s / 60, w.rss_mib) for w in soak.windows if w.rss_mib is not None]
    if known:
        lines.append(("RSS, MiB", [at for at, _ in known], [value for _, value in known]))
    parts = []
    for index, (title, times, values) in enumerate(lines):
        top = 10 + index * (panel_px + gap_px)
        # A twentieth around, so that a line does not rise for what is noise.
        y_axis = linear_axis(0.95 * min(values), 1.05 * max(values), top + panel_px, top, steps=3)
        points = [
            f"{x_axis.at(at):.1f} {y_axis.at(value):.1f}"
            for at, value in zip(times, values, strict=True)
        ]
        parts += [
            grid(x_axis, y_axis, "Minutes", title),
            f'<path class="line {family(row.kind)}" d="M{"L".join(points)}"/>',
        ]
    facts = "; ".join(
        f"{title}: {significant(values[0])} at first, {significant(values[-1])} at last"
        for title, _, values in lines
    )
    height = len(lines) * (panel_px + gap_px) - 8
    return svg(key, f"Soak of {row.name}", facts, height, parts)


def roofline(row: Row, report: LayerReport, peaks: Peaks, key: str) -> str:
    """Plot the speed of each timed layer with products over its intensity, below the roofs.

    A dot's area is the layer's time; it is filled for INT8 and hollow else.

    Args:
        row: whose layers they are.
        report: of that row.
        peaks: of its engine.
        key: unique in the page, for references.
    """
    left, bottom, top = 60, 322, 22
    costs = {cost.name: cost for cost in report.costs}
    timed = sorted(report.times.layers, key=lambda layer: -layer.median_ms)
    dots = [
        (rank, cost, layer.median_ms)
        for rank, layer in enumerate(timed, 1)
        if (cost := costs[layer.name]).macs and layer.median_ms > 0
    ]
    roofs = [(f"FP32 {significant(peaks.fp32_gflops)} GFLOP/s", peaks.fp32_gflops)]
    if peaks.int8_gops is not None:
        roofs.append((f"INT8 {significant(peaks.int8_gops)} GOP/s", peaks.int8_gops))
    bandwidth, highest = peaks.bandwidth_gb_s, max(gflops for _, gflops in roofs)
    intensities = [cost.intensity for _, cost, _ in dots] + [highest / bandwidth]
    speeds = [_gflops(cost, ms) for _, cost, ms in dots] + [gflops for _, gflops in roofs]
    x_axis = log_axis([min(intensities) / 2, max(intensities) * 2], left, RIGHT)
    y_axis = log_axis([min(speeds) / 2, max(speeds) * 2.5], bottom, top)
    parts = [
        grid(
            x_axis,
            y_axis,
            "Intensity, FLOP per byte (log scale)",
            "GFLOP/s attained (log scale)",
        ),
        *_roofs(roofs, bandwidth, x_axis, y_axis),
    ]
    longest_ms = max((ms for *_, ms in dots), default=1.0)
    ranks, taken = [], list[Box]()
    for rank, cost, ms in dots:
        x, y = x_axis.at(cost.intensity), y_axis.at(_gflops(cost, ms))
        r = 2 + 9 * math.sqrt(ms / longest_ms)
        labelled = rank <= LABELLED_LAYERS
        reach = max(r, 7) if labelled else r
        taken += [(x - reach, y - reach, x + reach, y + reach)] * (5 if labelled else 1)
        look = "dot" if cost.precision == "int8" else "dot hollow"
        parts.append(
            f'<circle class="{look} {family(row.kind)}" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"/>'
        )
        if labelled:
            ranks.append(
                f'<text class="label halo" x="{x:.1f}" y="{y + 4.5:.1f}" text-anchor="middle">'
                f"{rank}</text>"
            )
    parts += [*ranks, *_roof_names(roofs, bandwidth, (x_axis, y_axis), taken)]
    against = report.attained
    facts = (
        f"{len(dots)} layers; the whole network reaches {percent(against.compute_share)} of the "
        f"compute peak and {percent(against.share)} of the roofline; bandwidth "
        f"{significant(bandwidth)} GB/s, " + ", ".join(name for name, _ in roofs)
    )
    return svg(key, f"Roofline of {row.name}", facts, bottom + 50, parts)


def _gflops(cost: LayerCost, ms: float) -> float:
    return cost.flops / ms / 1e6


def _roofs(
    roofs: Sequence[tuple[str, float]], bandwidth_gb_s: float, x_axis: Axis, y_axis: Axis
) -> list[str]:
    """Draw the bandwidth up to the highest roof, and each roof from where it meets it."""
    highest = max(gflops for _, gflops in roofs)
    start = max(x_axis.low, y_axis.low / bandwidth_gb_s)
    (x0, y0), (x1, y1) = (
        (x_axis.at(intensity), y_axis.at(intensity * bandwidth_gb_s))
        for intensity in (start, highest / bandwidth_gb_s)
    )
    turn = math.degrees(math.atan2(y1 - y0, x1 - x0))
    level = "".join(
        f"M{x_axis.at(max(x_axis.low, gflops / bandwidth_gb_s)):.1f} {y_axis.at(gflops):.1f}"
        f"H{RIGHT}"
        for _, gflops in roofs
    )
    return [
        f'<path class="roof" d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}{level}"/>',
        f'<text class="value halo" text-anchor="middle" y="-6" transform="translate('
        f'{(x0 + x1) / 2:.1f} {(y0 + y1) / 2:.1f}) rotate({turn:.1f})">'
        f"{significant(bandwidth_gb_s)} GB/s</text>",
    ]


def _roof_names(
    roofs: Sequence[tuple[str, float]],
    bandwidth_gb_s: float,
    axes: tuple[Axis, Axis],
    taken: Sequence[Box],
) -> list[str]:
    """Write each roof's name along it, where fewest dots are: best at its end, right at the line.

    Dots have a radius of up to 11 px, so what lies farther from a roof is clear of those on it.
    """
    x_axis, y_axis = axes
    parts = []
    for name, gflops in roofs:
        y, width = y_axis.at(gflops), CHARACTER_PX * len(name)
        start = x_axis.at(max(x_axis.low, gflops / bandwidth_gb_s))
        room = max(1, round(RIGHT - width - start))
        boxes = [
            (RIGHT - width - step, y + shift - 14, RIGHT - step, y + shift)
            for step in range(0, room, 10)
            for shift in (-3, 19, -16, 32)
        ]
        box = emptiest(boxes, taken)
        parts.append(
            f'<text class="value halo" x="{box[0]:.1f}" y="{box[3] - 3:.1f}">{name}</text>'
        )
    return parts
