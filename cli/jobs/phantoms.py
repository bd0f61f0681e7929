"""Phantoms in place of images that the user does not give: always the same ones."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.progress import Progress, quiet

if TYPE_CHECKING:
    from ...kd.data.dataset import Dataset

COUNT = 160
SEED = 0
NAMED = "phantoms"  # in the record of a calibration


@contextlib.contextmanager
def phantom_dataset(progress: Progress = quiet) -> Iterator[Dataset]:
    """Draw `COUNT` phantoms of `SEED` into a folder that goes with the context."""
    from ...kd.data.phantom import write_phantoms

    with tempfile.TemporaryDirectory(prefix="edgeseg-") as folder:
        yield write_phantoms(Path(folder) / "phantoms", count=COUNT, seed=SEED, progress=progress)
