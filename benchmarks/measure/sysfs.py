"""Small system files, each of which a system may lack."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """Return a small system file's text, or None where it cannot be read or is empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n") or None
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """Return the number a system file holds; None where it is missing or holds something else."""
    try:
        return float(read_text(path) or "")
    except ValueError:
        return None


def read_fields(path: Path, separator: str = ":") -> dict[str, str]:
    """Read ``name : value`` lines; of a name that comes again, as for each core, the first."""
    found: dict[str, str] = {}
    for line in (read_text(path) or "").splitlines():
        name, between, value = line.partition(separator)
        if between:
            found.setdefault(name.strip(), value.strip())
    return found
