"""What every source answers, and what is asked of those that are exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ....runtime.bundle import SPLIT_FILE
from ....runtime.errors import InputError
from ....runtime.progress import Progress
from ....runtime.session import Session

if TYPE_CHECKING:
    from ....benchmarks.run import Candidate
    from ..parts import Folders, Parts


class ModelSource(Protocol):
    """A network on disk that runs, and the split it came with."""

    @property
    def path(self) -> Path:
        """A bundle, or a checkpoint's file."""
        ...

    @property
    def folder(self) -> Path:
        """The bundle, or the run that the checkpoint lies in; resolved."""
        ...

    def split_file(self) -> Path:
        """Return the split that the network was trained with.

        Raises:
            InputError: E-SPLIT-MISSING.
            Refused: E-SPLIT-HASH if the file is not the one of its training.
        """
        ...

    def trained_on(self) -> frozenset[str] | None:
        """Return the SHA-256 of every image that a shipped student has seen; None for a run's.

        Raises Refused: E-EVIDENCE-READ, E-EVIDENCE-HASH, E-MANIFEST-FIELD, those of `open_bundle`.
        """
        ...

    def seen_before(self) -> frozenset[str]:
        """Return the SHA-256 of each image that only the start of a run's student was trained on.

        Empty where it started from no checkpoint, and of a shipped student, whose list has all.
        """
        ...

    def temperature(self) -> float | None:
        """Return the temperature that `edgeseg tune` fitted; None where it was never called."""
        ...

    def open(self, engine: str | None, threads: int) -> Session:
        """Open a session in an engine; None takes the preferred one."""
        ...

    def engines(self) -> list[str]:
        """Return the engines that it has files for, whether they are installed or not."""
        ...

    def candidates(self, engines: Sequence[str], threads: int) -> list[Candidate]:
        """Open it for a benchmark in each of `engines`; empty takes the installed ones."""
        ...


class Exportable(Protocol):
    """A network on disk that can be exported."""

    what: ClassVar[str]  # for refusals

    @property
    def path(self) -> Path:
        """Its file."""
        ...

    def trained_on(self) -> frozenset[str] | None:
        """See `ModelSource`."""
        ...

    def run_split(self) -> Path | None:
        """Return the verified split of its run, which its bundles carry; None where none is."""
        ...

    def training_data(self, provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what is known of each data set that a network was trained on.

        Args:
            provenance: of its checkpoint.

        Returns:
            As `kd.data.catalogue.describe_sets`; empty where no set is named.
        """
        ...

    def parts(self, data: Folders, progress: Progress) -> Parts | None:
        """Return the user's data in parts; None where a shipped student comes without data.

        Raises InputError: E-CALIB-MISSING, those of `read_datasets`.
        """
        ...


def split_in(folder: Path, path: Path) -> Path:
    """Return the split file in a source's folder. Raises InputError: E-SPLIT-MISSING."""
    file = folder / SPLIT_FILE
    if not file.is_file():
        raise InputError(
            "E-SPLIT-MISSING",
            f"{path} comes without {SPLIT_FILE}, so its parts are unknown; "
            "use --part all for data that it never saw, --part unseen for a shipped student",
        )
    return file
