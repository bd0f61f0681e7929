"""A checkpoint as a source: the student of a run, or one that ships with edgeseg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ....kd import zoo
from ....runtime.engines import available_threads
from ....runtime.errors import InputError, Refused
from ....runtime.files import sha256_of_file
from ....runtime.progress import Progress
from ....runtime.session import Session
from ..parts import Folders, Parts, data_missing, parts_anew, parts_of_run
from ..probing import probe_command
from .source import split_in

if TYPE_CHECKING:
    from ....benchmarks.run import Candidate
    from ....kd.start import Start

ENGINES = ("torch", "torch-cuda")  # of checkpoints; the second only if asked for by name


@dataclass(frozen=True)
class CheckpointSource:
    """The checkpoint of a run, which lies beside the split of its training."""

    what: ClassVar[str] = "the student of a run"

    path: Path

    @property
    def folder(self) -> Path:
        """See `ModelSource`."""
        return self.path.parent.resolve()

    def split_file(self) -> Path:
        """See `ModelSource`."""
        from ....kd.checkpoint import load_checkpoint

        trained_with = load_checkpoint(self.path).provenance.get("split_sha256")
        file = split_in(self.folder, self.path)
        if sha256_of_file(file) != trained_with:
            raise Refused(
                "E-SPLIT-HASH",
                f"{file} is not the split that {self.path} was trained with; its test part may "
                "have been trained on, so put the original back",
            )
        return file

    def run_split(self) -> Path | None:
        """See `Exportable`."""
        return self.split_file()

    def trained_on(self) -> frozenset[str] | None:
        """See `ModelSource`; a run has its split, and no list."""
        return None

    def seen_before(self) -> frozenset[str]:
        """See `ModelSource`."""
        from ....kd.checkpoint import load_checkpoint
        from ....kd.start import seen_before

        return seen_before(load_checkpoint(self.path).provenance)

    def start(self) -> Start:
        """Return the network as what a student is trained on from.

        Raises: those of `split_file` and `read_split`; of a shipped student of `trained_on`.
        """
        from ....kd.checkpoint import load_checkpoint
        from ....kd.start import Start

        provenance = load_checkpoint(self.path).provenance
        return Start(self.path, self._seen(provenance), tuple(self._sets(provenance)))

    def _seen(self, provenance: Mapping[str, Any]) -> frozenset[str]:
        """Return the SHA-256 of the file of every image that the network was trained on."""
        from ....kd.data.split import read_split
        from ....kd.start import seen_before

        return read_split(self.split_file()).hashes_of("train") | seen_before(provenance)

    def training_data(self, provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
        """See `Exportable`."""
        from ....kd.data.catalogue import describe_sets

        return describe_sets(self._sets(provenance))

    def _sets(self, provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        from ....kd.start import sets_of

        return sets_of(provenance, [zoo.UNNAMED_SET] if self.folder == zoo.FOLDER.resolve() else [])

    def parts(self, data: Folders, progress: Progress) -> Parts | None:
        """See `Exportable`; those of its run."""
        if not data:
            raise data_missing(self.path, "the data set of its run")
        return parts_of_run(self, data)

    def temperature(self) -> float | None:
        """See `ModelSource`."""
        from ....kd.checkpoint import load_checkpoint
        from ..tuning import temperature_in

        return temperature_in(load_checkpoint(self.path).provenance)

    def open(self, engine: str | None, threads: int) -> Session:
        """See `ModelSource`; a checkpoint runs in PyTorch and in no other engine."""
        if engine not in (None, *ENGINES):
            raise InputError(
                "E-ENGINE-NOT-IN-BUNDLE",
                f"{self.path} is a checkpoint and runs in {' and '.join(ENGINES)}, not in "
                f"{engine!r}; export it first",
            )
        from ....kd.checkpoint import load_checkpoint
        from ....kd.engine import TorchCudaEngine, TorchEngine

        loaded = load_checkpoint(self.path)
        if engine == "torch-cuda":
            return Session.over(TorchCudaEngine(loaded), loaded.contract)
        return Session.over(TorchEngine(loaded, threads or available_threads()), loaded.contract)

    def engines(self) -> list[str]:
        """See `ModelSource`."""
        return list(ENGINES)

    def candidates(self, engines: Sequence[str], threads: int) -> list[Candidate]:
        """See `ModelSource`."""
        wanted = [name for name in ENGINES if name in (engines or ENGINES[:1])]
        if not wanted:
            return []
        threads = threads or available_threads()
        from ....benchmarks.run import ANY_BATCH, Candidate
        from ....kd.checkpoint import load_checkpoint
        from ....kd.models import complexity_of

        loaded = load_checkpoint(self.path)
        return [
            Candidate(
                name=f"{self.folder.name}/{self.path.stem} · {engine}",
                kind=engine,
                precision="fp32",
                session=self.open(engine, threads),
                artifact_sha256=loaded.sha256,
                file_bytes=self.path.stat().st_size,
                complexity=complexity_of(loaded.network, loaded.contract),
                probe=probe_command(self.path, threads, "--engine", engine),
                open_another=partial(_another, self, engine, threads),
                max_batch=ANY_BATCH,
            )
            for engine in wanted
        ]


@dataclass(frozen=True)
class ShippedSource(CheckpointSource):
    """A checkpoint with its evidence beside it, which lists the images that it has seen."""

    what: ClassVar[str] = "a shipped student"

    def trained_on(self) -> frozenset[str] | None:
        """See `ModelSource`."""
        from ....benchmarks.report.evidence import read_evidence

        return frozenset(read_evidence(zoo.evidence_file(self.path), self.path).trained_on)

    def _seen(self, provenance: Mapping[str, Any]) -> frozenset[str]:
        """See `CheckpointSource`; its list says it."""
        return self.trained_on() or frozenset()

    def run_split(self) -> Path | None:
        """See `Exportable`; its list of images takes the place of a split."""
        return None

    def parts(self, data: Folders, progress: Progress) -> Parts | None:
        """See `Exportable`; of a new split."""
        return parts_anew(data, progress) if data else None


def _another(source: CheckpointSource, engine: str, threads: int, each: int) -> Session:
    """Open it with the threads of the process, which PyTorch has no others than."""
    return source.open(engine, threads)
