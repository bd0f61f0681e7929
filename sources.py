"""What a command can be pointed at: a bundle, a training run, a checkpoint, a shipped student."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .kd import zoo
from .kd.config import SPLIT_FILE, STUDENT_FILE
from .runtime.bundle import Bundle, open_bundle
from .runtime.engines import ENGINES, available_threads, is_installed
from .runtime.errors import InputError, Refused
from .runtime.files import sha256_of_file
from .runtime.session import Session, first_installed, session_of

if TYPE_CHECKING:
    from .benchmarks.record import Candidate
    from .kd.data.dataset import Sample


@dataclass(frozen=True)
class Source:
    """A network on disk: a bundle's folder or a checkpoint's file, and the split it came with."""

    path: Path
    is_bundle: bool

    @property
    def folder(self) -> Path:
        """The bundle, or the run that the checkpoint lies in."""
        return (self.path if self.is_bundle else self.path.parent).resolve()

    def split_file(self) -> Path:
        """Return the split that the network was trained with.

        Raises:
            InputError: E-SPLIT-MISSING.
            Refused: E-SPLIT-HASH if the file beside a checkpoint is not the one of its training (a
                bundle's was verified with the bundle).
        """
        file = self.folder / SPLIT_FILE
        if not file.is_file():
            raise InputError(
                "E-SPLIT-MISSING",
                f"{self.path} comes without {SPLIT_FILE}, so its parts are unknown; "
                "use --part all for data that it never saw",
            )
        if not self.is_bundle:
            from .kd.checkpoint import load_checkpoint

            trained_with = load_checkpoint(self.path).provenance.get("split_sha256")
            if sha256_of_file(file) != trained_with:
                raise Refused(
                    "E-SPLIT-HASH",
                    f"{file} is not the split that {self.path} was trained with; its test part may "
                    "have been trained on, so put the original back",
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
    """Say what a path is; one that does not exist may be the name of a shipped student.

    Raises InputError: E-SOURCE if it is none of these, E-ZOO-WEIGHTS for a name without its files.
    """
    if str(path) in zoo.SHIPPED and not path.exists():
        return Source(zoo.find_weights(str(path)), is_bundle=False)
    if (path / "manifest.json").is_file() or (path / "SHA256SUMS").is_file():
        return Source(path, is_bundle=True)
    checkpoint = path / STUDENT_FILE if path.is_dir() else path
    if not checkpoint.is_file():
        raise InputError(
            "E-SOURCE",
            f"{path} is no bundle, no finished training run, no checkpoint and no shipped student "
            f"({', '.join(zoo.available_names()) or 'none in this installation'}); "
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


def common_samples(sources: Sequence[Source], data: Path, part: str) -> tuple[Sample, ...]:
    """Return the samples of a part that is the same for all sources; "all" takes every image.

    Raises Refused (E-SPLIT-DIFFERS) if the sources have different splits: what is the test part of
    one may have trained another. Else as `samples_for`.
    """
    if part != "all":
        first, *others = [(source, sha256_of_file(source.split_file())) for source in sources]
        for source, split in others:
            if split != first[1]:
                raise Refused(
                    "E-SPLIT-DIFFERS",
                    f"{source.path} and {first[0].path} have different splits; compare networks of "
                    "one split, or use --part all on data that none of them saw",
                )
    return samples_for(sources[0], data, part)


def candidates_of(
    sources: Sequence[Source], engines: Sequence[str], threads: int
) -> tuple[Candidate, ...]:
    """Open everything that a benchmark compares: each source in each of its engines.

    Args:
        sources: bundles and checkpoints, the reference first.
        engines: those wanted; empty takes every engine that is installed.
        threads: for each engine.

    Raises:
        InputError: E-ENGINE-NONE (a source has none of `engines`, or an engine no source), and
            those of `Source.open`.
        EngineError: E-EXTRA-MISSING.
    """
    found: list[Candidate] = []
    parents: list[str] = []  # tells apart sources of one name
    for source in sources:
        candidates = (_of_bundle if source.is_bundle else _of_checkpoint)(source, engines, threads)
        if not candidates:
            raise InputError("E-ENGINE-NONE", f"{source.path} runs in none of {', '.join(engines)}")
        found += candidates
        parents += [source.folder.parent.name] * len(candidates)
    unused = set(engines) - {candidate.kind for candidate in found}
    if unused:
        raise InputError("E-ENGINE-NONE", f"no source runs in {', '.join(sorted(unused))}")
    names = Counter(candidate.name for candidate in found)
    return tuple(
        replace(each, name=f"{parent}/{each.name}") if names[each.name] > 1 else each
        for each, parent in zip(found, parents, strict=True)
    )


def _of_bundle(source: Source, engines: Sequence[str], threads: int) -> list[Candidate]:
    from .benchmarks.record import Candidate

    bundle = open_bundle(source.path)
    manifest = bundle.manifest
    threads = threads or available_threads()
    if not engines:
        first_installed(bundle)  # says what to install where none is
    return [
        Candidate(
            name=f"{source.folder.name} · {engine}",
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
            name=f"{source.folder.name}/{source.path.stem} · torch",
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
