"""The shared phantoms as a data set, and the split of the shared run."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeseg.kd.data.dataset import Dataset, read_dataset
from edgeseg.kd.data.split import Split, read_split


@pytest.fixture(scope="module")
def dataset(phantoms: Path) -> Dataset:
    """The phantoms of `phantoms`; a file that needs others has a fixture of this name."""
    return read_dataset(phantoms)


@pytest.fixture(scope="module")
def split(run: Path) -> Split:
    """That of `run`; as above."""
    return read_split(run / "split.json")
