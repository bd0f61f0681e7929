"""Sources: the networks on disk that commands take, each kind a class; see `ModelSource`.

BundleSource      a bundle's folder
CheckpointSource  the checkpoint of a training run
ShippedSource     a checkpoint that ships with edgeseg, with its evidence
OnnxSource        an ONNX or torch network from elsewhere, which is exported and does nothing else
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ....export.target import OPSET
from ....kd import zoo
from ....kd.config import STUDENT_FILE
from ....runtime.errors import InputError
from ....runtime.paths import takes_paths
from ....runtime.store import SUFFIX
from .bundle import BundleSource
from .checkpoint import CheckpointSource, ShippedSource
from .foreign import OnnxSource
from .source import Exportable, ModelSource

if TYPE_CHECKING:
    from ....export.pipeline import ExportableNetwork

__all__ = [
    "BundleSource",
    "CheckpointSource",
    "Exportable",
    "ModelSource",
    "OnnxSource",
    "ShippedSource",
    "checkpoint_of",
    "find_source",
    "load_exportable",
]


@takes_paths
def find_source(path: Path) -> BundleSource | CheckpointSource:
    """Say what a path is; one that does not exist may be the name of a shipped student.

    Raises InputError: E-SOURCE if it is none of these, E-ZOO-WEIGHTS for a name without its files.
    """
    if str(path) in zoo.SHIPPED and not path.exists():
        return _checkpoint_at(zoo.find_weights(str(path)))
    if path.suffix == SUFFIX and path.is_file():
        raise InputError(
            "E-SOURCE",
            f"{path} is a packed bundle, which `edgeseg predict`, `selftest`, `stream`, `device` "
            "and `bundle` take, and no other command; unpack it with `edgeseg bundle unpack`",
        )
    if (path / "manifest.json").is_file() or (path / "SHA256SUMS").is_file():
        return BundleSource(path)
    if _is_onnx(path):
        raise InputError("E-SOURCE", f"{path} is ONNX, which only `edgeseg export` takes")
    checkpoint = path / STUDENT_FILE if path.is_dir() else path
    if not checkpoint.is_file():
        raise InputError(
            "E-SOURCE",
            f"{path} is no bundle, no finished training run, no checkpoint and no shipped student "
            f"({', '.join(zoo.available_names()) or 'none in this installation'}); "
            "see `edgeseg train` and `edgeseg export`",
        )
    return _checkpoint_at(checkpoint)


@takes_paths
def checkpoint_of(path: Path) -> CheckpointSource:
    """Return the checkpoint of a run, or the one named. Raises InputError (E-SOURCE)."""
    source = find_source(path)
    if isinstance(source, BundleSource):
        raise InputError("E-SOURCE", f"{path} is a bundle already; name the run or its checkpoint")
    return source


@takes_paths
def load_exportable(
    path: Path,
    contract: Path | None,
    opset: int = OPSET,
    output: str | None = None,
    weights: Path | None = None,
) -> tuple[Exportable, ExportableNetwork]:
    """Return what an export starts from: a checkpoint, or an ONNX from elsewhere.

    Args:
        path: a run, a checkpoint, the name of a shipped student, an ONNX file, or
            ``package.module:function`` that makes a torch network.
        contract: JSON file with the input contract of an ONNX that does not carry it.
        opset: the highest that an ONNX may keep, see `Target.opset`.
        output: name of the one that answers, of an ONNX or torch network with several.
        weights: of a torch network.

    Raises InputError: E-SOURCE, E-CONTRACT, E-ONNX-OUTPUT, E-MODULE-WEIGHTS, those of
    `load_checkpoint`, `read_onnx` and `read_module`.
    """
    from ....export.foreign import read_module, read_onnx
    from ....export.pipeline import load_trained
    from ....export.torch_module import is_module_name

    if is_module_name(path):
        network = read_module(str(path), weights, contract, opset, output)
        return OnnxSource(path, quantised=network.quantised is not None), network
    if weights is not None:
        raise InputError("E-MODULE-WEIGHTS", f"{path} brings its own weights; leave --weights out")
    if _is_onnx(path):
        network = read_onnx(path, contract, opset, output)
        return OnnxSource(path, quantised=network.quantised is not None), network
    if output is not None:
        raise InputError(
            "E-ONNX-OUTPUT", f"{path} is no ONNX and has one output; leave --output out"
        )
    if contract is not None:
        raise InputError("E-CONTRACT", f"{path} carries its input contract; leave --contract out")
    found = checkpoint_of(path)
    return found, load_trained(found.path)


def _checkpoint_at(file: Path) -> CheckpointSource:
    shipped = zoo.evidence_file(file).is_file()
    return ShippedSource(file) if shipped else CheckpointSource(file)


def _is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx" and path.is_file()
