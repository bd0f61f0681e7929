"""The file that `--layout` names."""

from __future__ import annotations

import json
from pathlib import Path

from ...runtime.errors import InputError
from ...runtime.layout import Layout
from ...runtime.paths import takes_paths

MAX_LAYOUT_BYTES = 1 << 16  # compared with the file size before anything is read


@takes_paths
def read_layout(file: Path) -> Layout:
    """Read where the image is in a maker's frames; JSON as in a manifest, at most 64 KiB.

    Raises InputError: E-LAYOUT.
    """
    try:
        if file.stat().st_size > MAX_LAYOUT_BYTES:
            raise ValueError(f"over {MAX_LAYOUT_BYTES} bytes")
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            "E-LAYOUT", f"cannot read layout {file} ({error}); see docs/bundle.md"
        ) from error
    return Layout.from_dict(content)
