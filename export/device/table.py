"""Plain tables."""

from __future__ import annotations

from collections.abc import Sequence


def render_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns as wide as their longest cell, two blanks apart."""
    lines = [tuple(heads), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
