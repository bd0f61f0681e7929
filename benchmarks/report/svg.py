"""Parts of the plots: axes, labels that keep clear of each other, the frame of an SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from ...runtime.engines import ENGINES, entry_of

WIDTH = 420  # px at full size
RIGHT = WIDTH - 14
# Of engines; each has a colour in `style`.
FAMILIES = ("torch", *sorted({entry.family for entry in ENGINES.values()}))
CHARACTER_PX = 7.6  # mean width at 13 px, rather too wide than too narrow
_STEP_PX = 12  # between the boxes along a line: no label is so low that it fits between two
_MAX_NAME = 26  # characters; longer ones are cut, the tables have them whole

# Where a label may lie from its point, liked best first: right, left, the corners, above, below.
_DIRECTIONS = ((1, 0), (-1, 0), (0.7, -1), (-0.7, -1), (0.7, 1), (-0.7, 1), (0, -1), (0, 1))

Box = tuple[float, float, float, float]  # left, top, right, bottom


def family(kind: str) -> str:
    """Return the family of an engine: "openvino" for "openvino-default", or "other"."""
    if f"{kind}-".startswith("torch-"):
        return "torch"
    entry = entry_of(kind)
    return entry.family if entry else "other"


@dataclass(frozen=True)
class Axis:
    """Maps values to px; `low` and `high` are ticks themselves."""

    low: float
    high: float
    start_px: float  # where `low` is
    end_px: float
    scale: Callable[[float], float]
    ticks: tuple[float, ...]
    decimals: int | None  # of the ticks' text; None: as many as each needs

    def at(self, value: float) -> float:
        """Return where a value is, in px."""
        share = (self.scale(value) - self.scale(self.low)) / (
            self.scale(self.high) - self.scale(self.low)
        )
        return self.start_px + share * (self.end_px - self.start_px)

    def text(self, tick: float) -> str:
        """Return what stands beside a tick."""
        text = f"{tick:g}" if self.decimals is None else f"{tick:.{self.decimals}f}"
        return text.replace("-", "−") if tick < 0 else text


def log_axis(values: Sequence[float], start_px: float, end_px: float) -> Axis:
    """Return a logarithmic axis over values above 0, with ticks at 1, 2 and 5 times 10**k."""
    exponents = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    steps = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    low = max(step for step in steps if step <= min(values))
    high = min(step for step in steps if step > max(values))
    ticks = [step for step in steps if low <= step <= high]
    if len(ticks) > 8:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    return Axis(low, high, start_px, end_px, math.log10, tuple(ticks), None)


def linear_axis(low: float, high: float, start_px: float, end_px: float, steps: int = 5) -> Axis:
    """Return a linear axis of about so many round steps around `low` < `high`."""
    rough = (high - low) / steps
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(f * magnitude for f in (1, 2, 5, 10) if f * magnitude >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(ticks[0], ticks[-1], start_px, end_px, float, ticks, decimals)


def grid(x_axis: Axis, y_axis: Axis, x_title: str, y_title: str) -> str:
    """Return lines, ticks and titles of both axes; the base line where y starts."""
    bottom, left, right = y_axis.start_px, x_axis.start_px, x_axis.end_px
    lines = [f'<path class="base" d="M{left} {bottom}H{right}"/>']
    for tick in y_axis.ticks:
        y = y_axis.at(tick)
        lines.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        lines.append(
            f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{y_axis.text(tick)}</text>"
        )
    middle = (y_axis.end_px + bottom) / 2
    lines.append(
        f'<text class="axis" transform="translate(13 {middle:.1f}) rotate(-90)" '
        f'text-anchor="middle">{y_title}</text>'
    )
    return "".join([*lines, x_ticks(x_axis, y_axis.end_px, bottom, x_title)])


def x_ticks(axis: Axis, top: float, bottom: float, title: str) -> str:
    """Return upright lines, ticks and the title of an x axis."""
    lines = []
    for tick in axis.ticks:
        x = axis.at(tick)
        lines.append(f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>')
        lines.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">'
            f"{axis.text(tick)}</text>"
        )
    middle = (axis.start_px + axis.end_px) / 2
    lines.append(
        f'<text class="axis" x="{middle}" y="{bottom + 40}" text-anchor="middle">{title}</text>'
    )
    return "".join(lines)


def labels(
    names: Sequence[str],
    points: Sequence[tuple[float, float]],
    lines: Sequence[Box],
    bounds: Box,
) -> list[str]:
    """Put each name where it covers least, with a thin line to its point where it is far."""
    taken: list[Box] = [(x - 8, y - 8, x + 8, y + 8) for x, y in points]
    parts = []
    for name, (x, y) in zip(names, points, strict=True):
        width = CHARACTER_PX * len(name)
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


def boxes_along(line: Sequence[tuple[float, float]]) -> list[Box]:
    """Return small boxes, in px, on a line of straight pieces, for `labels` to keep clear of."""
    boxes: list[Box] = []
    for (x, y), (next_x, next_y) in pairwise(line):
        steps = max(1, math.ceil(math.hypot(next_x - x, next_y - y) / _STEP_PX))
        for step in range(steps):
            at_x, at_y = x + (next_x - x) * step / steps, y + (next_y - y) * step / steps
            boxes.append((at_x - 1, at_y - 1, at_x + 1, at_y + 1))
    return boxes


def _box_at(x: float, y: float, side: float, width: float) -> Box:
    """Return a label's box that starts, ends or is centred at x, by the sign of `side`."""
    left = x if side > 0 else x - width if side < 0 else x - width / 2
    return (left, y - 9, left + width, y + 8)


def emptiest(boxes: Sequence[Box], taken: Sequence[Box]) -> Box:
    """Return the first of the boxes that covers the fewest of those taken."""
    return min(boxes, key=lambda box: sum(_overlap(box, other) for other in taken))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _distance(box: Box, x: float, y: float) -> float:
    return math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3]))


def short(name: str) -> str:
    """Cut a name to what fits beside a mark, in its middle: names often differ at the end."""
    half = _MAX_NAME // 2
    return name if len(name) <= _MAX_NAME else f"{name[:half]}…{name[1 - half :]}"


def svg(key: str, title: str, description: str, height: float, parts: Sequence[str]) -> str:
    """Return the whole SVG; title and description are for those who do not see it.

    Args:
        key: unique in the page, for references.
        title: heading, plain text.
        description: the numbers in words, plain text.
        height: in px.
        parts: SVG elements.
    """
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-labelledby="{key}-title {key}-description">'
        f'<title id="{key}-title">{escape(title)}</title>'
        f'<desc id="{key}-description">{escape(description)}</desc>{"".join(parts)}</svg>'
    )
