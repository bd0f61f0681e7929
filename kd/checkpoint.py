"""Checkpoints: safetensors with their architecture and contract inside; no pickle is ever read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ..runtime.contract import InputContract
from ..runtime.errors import InputError
from ..runtime.files import sha256_of_file, write_bytes
from ..runtime.paths import takes_paths
from .models import Network, build_model, require_size
from .modules import require_allowed

OPERATING_POINT = "operating_point"  # in the provenance of what `edgeseg tune` wrote
_SCHEMA = "edgeseg.checkpoint/1"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with what is needed to use and to trace it."""

    model: str  # of `build_model`
    contract: InputContract
    network: Network  # in eval mode, float32, on the CPU
    provenance: Mapping[str, Any]
    sha256: str


@takes_paths
def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata atomically. Raises OutputError (E-OUT-WRITE)."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_bytes(path, save(plain, dict(metadata)))


@takes_paths
def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read tensors and metadata. Raises InputError (E-CKPT-READ) for anything but safetensors."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise InputError(
            "E-CKPT-READ",
            f"{path} is no readable safetensors file ({error}); pickled .pt files are never loaded",
        ) from error


@takes_paths
def save_checkpoint(
    path: Path,
    network: nn.Module,
    *,
    model: str,
    contract: InputContract,
    provenance: Mapping[str, Any],
) -> None:
    """Write a network with its architecture's name, contract and provenance, atomically."""
    metadata = {
        "schema": _SCHEMA,
        "model": model,
        "contract": json.dumps(contract.to_dict()),
        "provenance": json.dumps(provenance),
    }
    write_tensors(path, network.state_dict(), metadata)


@takes_paths
def load_checkpoint(path: Path, *, asked_for: Collection[str] = ()) -> Checkpoint:
    """Read a checkpoint written by `save_checkpoint`.

    Args:
        path: the file.
        asked_for: networks that the user named, not a file; one of them that is a function may be
            made. Of others only those of `modules.ALLOWED`.

    Raises:
        InputError: E-CKPT-READ (no safetensors), E-CKPT-SCHEMA (not ours, or malformed),
            E-MODEL-MODULE (its network is made by code that nobody allowed), E-MODULE-IMPORT,
            E-CKPT-ARCH (its tensors are not those of the architecture it names), E-MODEL-NAME,
            E-CONTRACT (the architecture takes no images of its contract's size).
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("schema") != _SCHEMA:
        raise InputError(
            "E-CKPT-SCHEMA", f"{path} is no checkpoint of `edgeseg train` (schema {_SCHEMA})"
        )
    try:
        model = metadata["model"]
        contract = InputContract.from_dict(json.loads(metadata["contract"]))
        provenance = dict(json.loads(metadata["provenance"]))
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError, InputError) as error:
        raise InputError(
            "E-CKPT-SCHEMA", f"{path} has malformed metadata ({error}); train it again"
        ) from error
    if model not in asked_for:
        require_allowed(model, path)
    network = build_model(model)
    require_size(network, model, contract)
    expected = {name: value.shape for name, value in network.state_dict().items()}
    for name in sorted(set(expected) | set(tensors)):
        if name not in tensors or name not in expected or tensors[name].shape != expected[name]:
            raise InputError(
                "E-CKPT-ARCH",
                f"{path} does not fit {model!r}, first at tensor {name!r}; "
                "it was made for another architecture",
            )
    network.load_state_dict(tensors)
    return Checkpoint(
        model=model,
        contract=contract,
        network=network.eval(),
        provenance=provenance,
        sha256=sha256_of_file(path),
    )
