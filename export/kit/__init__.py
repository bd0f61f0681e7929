"""The build kit: files that travel in a Jetson bundle and run on the device.

They are copied side by side into the bundle and import each other by file name.
"""

from __future__ import annotations

from typing import Tuple

FILES: Tuple[str, ...] = (
    "build_engine.py",
    "cuda_buffers.py",
    "engine_builder.py",
    "kit_files.py",
    "precision_audit.py",
)
