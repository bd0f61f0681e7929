"""What a command can be pointed at: a bundle, a training run, or a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .kd.config import SPLIT_FILE, STUDENT_FILE
from .runtime.bundle import Bundle, open_bundle
from .runtime.engines import ENGINES, available_threads, is_installed
from .runtime.errors import InputError, Refused
from .runtime.session import Session, session_of

if TYPE_CHECKING:
    from .benchmarks.record import Candidate
    from .kd.data.dataset import Sample


@dataclass(frozen=True)
class Source:
    """A network on disk: a bundle's folder or a checkpoint's file, and the split it came with."""

    path: Path
    is_bundle: bool

    def split_file(self) -> Path:
        """Return the split beside the network. Raises InputError (E-SPLIT-MISSING)."""
        file = (self.path if self.is_bundle else self.path.parent) / SPLIT_FILE
        if not file.is_file():
            raise InputError(
                "E-SPLIT-MISSING",
                f"{self.path} comes without {SPLIT_FILE}, so its parts are unknown; "
                "use --part all for data that it never saw",
            )
        return file

    def open(self, engine: str | None, threads: int) -> Session:
        """Open a session; a checkpoint runs in PyTorch and takes no other engine."""
        if self.is_bundle:
            return session_of(open_bundle(self.path), engine=engine, threads=threads)
        if engine not in (None, "torch"):
            raise InputError(
                "E-ENGINE-NOT-IN-BUNDLE",
                f"{self.path} is a checkpoint and runs in torch, not in {engine!r}; "
                "export it first",
            )
        from .kd.checkpoint import load_checkpoint
        from .kd.engine import TorchEngine

        loaded = load_checkpoint(self.path)
        return Session.over(TorchEngine(loaded, threads or available_threads()), loaded.contract)


def find_source(path: Path) -> Source:
    """Say what a path is. Raises InputError (E-SOURCE) if it is none of the three."""
    if (path / "manifest.json").is_file() or (path / "SHA256SUMS").is_file():
        return Source(path, is_bundle=True)
    checkpoint = path / STUDENT_FILE if path.is_dir() else path
    if not checkpoint.is_file():
        raise InputError(
            "E-SOURCE",
            f"{path} is no bundle, no finished training run and no checkpoint; "
            "see `edgeseg train` and `edgeseg export`",
        )
    return Source(checkpoint, is_bundle=False)


def checkpoint_of(path: Path) -> Source:
    """Return the checkpoint of a run, or the one named. Raises InputError (E-SOURCE)."""
    source = find_source(path)
    if source.is_bundle:
        raise InputError("E-SOURCE", f"{path} is a bundle already; name the run or its checkpoint")
    return source


def samples_for(source: Source, data: Path, part: str) -> tuple[Sample, ...]:
    """Return the samples of a part of the source's own split; "all" takes every image.

    Raises InputError: E-SPLIT-MISSING (a part is asked for, but there is no split), E-SPLIT-EMPTY,
    and those of `read_dataset` and `samples_of`.
    """
    from .kd.data.dataset import read_dataset
    from .kd.data.split import read_split, samples_of

    dataset = read_dataset(data)
    if part == "all":
        return dataset.samples
    samples = samples_of(read_split(source.split_file()), dataset, part)
    if not samples:
        raise InputError("E-SPLIT-EMPTY", f"the {part} part of {source.split_file()} has no image")
    return samples


def candidates_of(
    sources: Sequence[Source], engines: Sequence[str], threads: int
) -> tuple[Candidate, ...]:
    """Open everything that a benchmark compares: each source in each of its engines.

    Args:
        sources: bundles and checkpoints, the reference first.
        engines: those wanted; empty takes every engine that is installed.
        threads: for each engine.

    Raises:
        InputError: E-ENGINE-NONE (a source has none of `engines`), and those of `Source.open`.
        EngineError: E-EXTRA-MISSING.
    """
    found: list[Candidate] = []
    for source in sources:
        candidates = (_of_bundle if source.is_bundle else _of_checkpoint)(source, engines, threads)
        if not candidates:
            raise InputError("E-ENGINE-NONE", f"{source.path} runs in none of {', '.join(engines)}")
        found += candidates
    return tuple(found)


def _of_bundle(source: Source, engines: Sequence[str], threads: int) -> list[Candidate]:
    from .benchmarks.record import Candidate

    bundle = open_bundle(source.path)
    manifest = bundle.manifest
    threads = threads or available_threads()
    return [
        Candidate(
            name=f"{source.path.name} · {engine}",
            kind=engine,
            precision=manifest.precision,
            session=session_of(bundle, engine=engine, threads=threads),
            artifact_sha256=bundle.sha256,
            file_bytes=sum((source.path / file).stat().st_size for file in manifest.models[engine]),
            complexity=_complexity_of(bundle, engine),
            probe=_probe_command(source, engine, threads),
        )
        for engine in manifest.models
        if (engine in engines) or (not engines and engine in ENGINES and is_installed(engine))
    ]


def _complexity_of(bundle: Bundle, engine: str) -> dict[str, int]:
    facts = bundle.manifest.complexity
    try:
        return {
            "parameters": int(facts["parameters"]),
            "macs": int(facts["macs"]),
            "weights_bytes": int(facts["weights_bytes"][engine]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(
            "E-MANIFEST-FIELD",
            f"{bundle.path} does not state its complexity ({error}); export the bundle again",
        ) from error


def _of_checkpoint(source: Source, engines: Sequence[str], threads: int) -> list[Candidate]:
    if engines and "torch" not in engines:
        return []
    threads = threads or available_threads()
    from .benchmarks.record import Candidate
    from .kd.checkpoint import load_checkpoint
    from .kd.models import count_macs, count_parameters

    loaded = load_checkpoint(source.path)
    return [
        Candidate(
            name=f"{loaded.model} · torch",
            kind="torch",
            precision="fp32",
            session=source.open("torch", threads),
            artifact_sha256=loaded.sha256,
            file_bytes=source.path.stat().st_size,
            complexity={
                "parameters": count_parameters(loaded.network),
                "macs": count_macs(loaded.network, loaded.contract),
                "weights_bytes": sum(
                    value.numel() * value.element_size() for value in loaded.network.parameters()
                ),
            },
            probe=_probe_command(source, "torch", threads),
        )
    ]


def _probe_command(source: Source, engine: str, threads: int) -> tuple[str, ...]:
    return (
        *(sys.executable, "-m", "edgeseg", "probe", str(source.path.resolve())),
        *("--engine", engine, "--threads", str(threads)),
    )
