"""How numbers are written in every table: significant digits, real minus signs, no NaN."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "–"


def significant(value: float | None, digits: int = 3) -> str:
    """Return a value >= 0 with so many significant digits, never in exponent form."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):.{max(0, decimals)}f}"


def signed_significant(value: float, digits: int = 2) -> str:
    """Return a value with its sign and so many significant digits; zero has no sign."""
    text = significant(abs(value), digits)
    return text if text in (MISSING, "0") else ("−" if value < 0 else "+") + text


def fixed(value: float, decimals: int = 3) -> str:
    """Return a value with so many decimals."""
    return MISSING if math.isnan(value) else f"{value:.{decimals}f}"


def signed(value: float, decimals: int = 3) -> str:
    """Return a value with its sign; what rounds to zero has none."""
    if math.isnan(value):
        return MISSING
    text = f"{abs(value):.{decimals}f}"
    return text if float(text) == 0 else ("−" if value < 0 else "+") + text


def signed_interval(mean: float, low: float, high: float) -> str:
    """Return a signed mean with its interval; an end that is not 0 is not written as 0."""
    nearest = min(abs(low), abs(high)) if low * high > 0 else math.inf
    decimals = next((n for n in (3, 4) if nearest >= 0.5 * 10**-n), 5)
    low_text, high_text = signed(low, decimals), signed(high, decimals)
    return f"{signed(mean, decimals)} ({low_text} to {high_text})"


def percent(share: float, decimals: int = 1) -> str:
    """Return a share in 0..1 as percent with so many decimals."""
    text = MISSING if math.isnan(share) else f"{100 * share:.{decimals}f} %"
    return text.replace("-", "−")


def threads_text(number: str | int) -> str:
    """Return a number of threads, such as ``2 threads``."""
    return f"{number} thread{'' if str(number) == '1' else 's'}"


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an aligned table: the first column to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([first, *others]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows)])


def printable(text: str) -> str:
    """Return lines without what a terminal would obey: a record is someone else's text."""
    lines = text.split("\n")
    return "\n".join(
        "".join(each if each.isprintable() else "?" for each in line) for line in lines
    )
