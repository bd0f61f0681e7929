"""A bundle as a source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ....runtime.bundle import Bundle, open_bundle
from ....runtime.engine_files import engine_files
from ....runtime.engines import ENGINES, available_threads, files_of, is_installed
from ....runtime.errors import Refused
from ....runtime.session import Session, first_installed, session_of
from ..probing import probe_command
from .source import split_in

if TYPE_CHECKING:
    from ....benchmarks.record import Proof
    from ....benchmarks.run import Candidate


@dataclass(frozen=True)
class BundleSource:
    """The folder of a bundle; it is verified wherever it is read."""

    path: Path

    @property
    def folder(self) -> Path:
        """See `ModelSource`."""
        return self.path.resolve()

    def split_file(self) -> Path:
        """See `ModelSource`; it was verified with the bundle."""
        return split_in(self.folder, self.path)

    def trained_on(self) -> frozenset[str] | None:
        """See `ModelSource`; a bundle of a shipped student has the list in its manifest."""
        listed = open_bundle(self.path).provenance().trained_on
        return None if listed is None else frozenset(listed)

    def seen_before(self) -> frozenset[str]:
        """See `ModelSource`."""
        from ....kd.start import seen_before

        return seen_before(open_bundle(self.path).provenance().training)

    def temperature(self) -> float | None:
        """See `ModelSource`."""
        from ..tuning import temperature_in

        return temperature_in(open_bundle(self.path).provenance().training)

    def open(self, engine: str | None, threads: int) -> Session:
        """See `ModelSource`."""
        return session_of(open_bundle(self.path), engine=engine, threads=threads)

    def engines(self) -> list[str]:
        """See `ModelSource`."""
        models = open_bundle(self.path).manifest.models
        reading = (name for name in ENGINES if files_of(name) in models)
        return list(dict.fromkeys((*models, *reading)))

    def candidates(self, engines: Sequence[str], threads: int) -> list[Candidate]:
        """See `ModelSource`."""
        from ....benchmarks.run import Candidate

        bundle = open_bundle(self.path)
        manifest = bundle.manifest
        threads = threads or available_threads()
        if engines:
            known = dict.fromkeys((*manifest.models, *ENGINES))  # also those of another device
            wanted = [
                name for name in known if name in engines and files_of(name) in manifest.models
            ]
        else:
            first_installed(bundle)  # says what to install where none is
            wanted = [name for name in manifest.models if name in ENGINES and is_installed(name)]
        onnx, proof = _onnx_of(bundle), _proof_of(bundle)
        # A session first: it says what to install or to build where its files are not there.
        sessions = {engine: session_of(bundle, engine=engine, threads=threads) for engine in wanted}
        files = {engine: engine_files(bundle, engine) for engine in wanted}
        return [
            Candidate(
                name=f"{self.folder.name} · {engine}",
                kind=engine,
                precision=manifest.precision,
                session=sessions[engine],
                artifact_sha256=bundle.sha256,
                file_bytes=sum(map(len, files[engine].values())),
                complexity=_complexity_of(bundle, files_of(engine)),
                probe=probe_command(self.path, threads, "--engine", engine),
                open_another=partial(_another, bundle, engine),
                files=files[engine],
                max_batch=int(manifest.batch["max"]),
                onnx=onnx,
                proof=proof,
            )
            for engine in wanted
        ]


def _another(bundle: Bundle, engine: str, threads: int) -> Session:
    return session_of(bundle, engine=engine, threads=threads)


def _onnx_of(bundle: Bundle) -> bytes | None:
    """Return the ONNX that the files of every engine were made from, where the bundle has it."""
    files = bundle.manifest.models.get("onnxruntime", ())
    return bundle.model_files("onnxruntime")[files[0]] if len(files) == 1 else None


def _proof_of(bundle: Bundle) -> Proof:
    """Return what of the export's proof a benchmark records."""
    from ....benchmarks.record import Proof, ProofStep

    proof = bundle.proof()
    return Proof(
        part=proof.part,
        frames=proof.frames,
        trained_dice=math.nan if proof.trained_dice is None else proof.trained_dice,
        max_drop=proof.max_drop,
        steps=tuple(
            ProofStep(
                name=hop.name,
                max_abs=hop.max_abs,
                flipped_share=hop.flipped_share,
                mask_dice=hop.mask_dice,
                dice_drop=hop.dice_drop,
                dice_drop_low=hop.dice_drop_low,
                dice_drop_high=hop.dice_drop_high,
            )
            for hop in proof.parity
        ),
        achieved=proof.achieved,
        kept_float=proof.kept_float,
    )


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
