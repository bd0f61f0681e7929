"""The command that measures memory and start-up times in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path


def probe_command(source: Path, threads: int, *options: str) -> tuple[str, ...]:
    """Return the command line of `edgeseg probe`; `options` say what of the source is opened."""
    edgeseg = (sys.executable, "-m", "edgeseg", "probe")
    return (*edgeseg, str(source.resolve()), *options, "--threads", str(threads))
