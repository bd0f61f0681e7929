"""A student that is trained on from another: which may be taken, and what is kept of it.

Fine-tuning a shipped student on images of one's own is one use, a larger input another: the first
epochs at 128 px cost a quarter of those at 256.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.contract import InputContract
from ..runtime.errors import InputError, Refused
from ..runtime.files import write_bytes
from .config import TrainConfig
from .data.split import Split

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

START = "start"  # in the provenance of a student that was trained on from another
_FILE = "taken-student.safetensors"
_FACTS = "taken-student.json"


@dataclass(frozen=True)
class Start:
    """A checkpoint that a student is trained on from."""

    file: Path
    seen: frozenset[str]  # SHA-256 of the file of every image that it was trained on
    data: tuple[Mapping[str, Any], ...]  # the sets of these images, as `train` lists them


def facts_of(
    start: Start, loaded: Checkpoint, config: TrainConfig, contract: InputContract, split: Split
) -> dict[str, Any]:
    """Return what a run keeps of its student's start, JSON-ready, after checking that it may.

    Args:
        start: what is taken.
        loaded: its checkpoint.
        config: of the run.
        contract: of the run's networks.
        split: of the run.

    Returns:
        `sha256` and `model` of the checkpoint, `size` of its input (height and width in px), `data`
        as above, `also_seen`: SHA-256 of the images that it has seen and this run's train part has
        not, and `encoder_weights` where its encoder started from such.

    Raises:
        InputError: E-CONFIG (with a start from phantoms), E-START-CONTRACT (another network or
            normalisation).
        Refused: E-START-SEEN, it was trained on images that the split keeps for val or test.
    """
    if config.phantom_epochs:
        raise InputError(
            "E-CONFIG",
            f"a student that starts from {start.file} does not start from phantoms; give "
            "--phantom-epochs 0",
        )
    theirs, ours = (
        (model, each.channels, each.mean, each.std)
        for model, each in ((loaded.model, loaded.contract), (config.student, contract))
    )
    if theirs != ours:
        raise InputError(
            "E-START-CONTRACT",
            f"{start.file} is {_described(*theirs)}, the run asks for {_described(*ours)}; give "
            f"--student {loaded.model}, or start from another",
        )
    kept_apart = [entry for entry in split.entries if entry.part != "train"]
    seen = sum(entry.image_sha256 in start.seen for entry in kept_apart)
    if seen:
        raise Refused(
            "E-START-SEEN",
            f"{start.file} was trained on {seen} of the {len(kept_apart)} images that the split "
            "keeps for val and test, which could then judge nothing; give the split of its run "
            "with --split, or images that it has not seen",
        )
    encoder = loaded.provenance.get("encoder_weights")
    return {
        "sha256": loaded.sha256,
        "model": loaded.model,
        "size": [loaded.contract.height, loaded.contract.width],
        "data": [dict(each) for each in start.data],
        "also_seen": sorted(start.seen - split.hashes_of("train")),
        **({"encoder_weights": dict(encoder)} if encoder else {}),
    }


def keep(start: Start, facts: Mapping[str, Any], run: Path) -> None:
    """Copy a start into the folder of its run. Raises OutputError (E-OUT-WRITE), OSError."""
    write_bytes(run / _FILE, start.file.read_bytes())
    write_bytes(run / _FACTS, json.dumps(facts, indent=1) + "\n")


def kept_facts(run: Path) -> dict[str, Any] | None:
    """Return what a run keeps of its student's start; None where it has none.

    Raises InputError: E-RUN-CONFIG, it can no longer be read.
    """
    file = run / _FACTS
    if not file.is_file():
        return None
    try:
        facts: dict[str, Any] = json.loads(file.read_bytes())
    except ValueError as error:
        raise InputError(
            "E-RUN-CONFIG",
            f"{file}, which says what the student starts from, is damaged ({error}); put it back "
            "or start the run anew",
        ) from error
    return facts


def kept_file(run: Path) -> Path:
    """Return where a run keeps the checkpoint that its student starts from."""
    return run / _FILE


def seen_before(provenance: Mapping[str, Any]) -> frozenset[str]:
    """Return the SHA-256 of each image that a student's start alone was trained on.

    Args:
        provenance: of the student's checkpoint.
    """
    return frozenset(provenance.get(START, {}).get("also_seen", ()))


def in_short(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of a student without the lists of its start; `sets_of` has the sets."""
    if START not in provenance:
        return dict(provenance)
    facts = {name: provenance[START][name] for name in ("sha256", "model", "size")}
    return {**provenance, START: facts}


def sets_of(
    provenance: Mapping[str, Any], unnamed: Collection[Mapping[str, Any]] = ()
) -> list[Mapping[str, Any]]:
    """Return the sets that a student was trained on, with those of its start that are others.

    Args:
        provenance: of the student's checkpoint.
        unnamed: the sets of a checkpoint that names none.
    """
    own = list(provenance.get("data", unnamed))
    known = {(each["name"], each["layout"]) for each in own}
    before = provenance.get(START, {}).get("data", ())
    return [*own, *(each for each in before if (each["name"], each["layout"]) not in known)]


def _described(model: str, channels: str, mean: Any, std: Any) -> str:
    return f"{model} for {channels} with mean {mean} and std {std}"
