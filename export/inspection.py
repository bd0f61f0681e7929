"""What an ONNX from elsewhere is, whether it can be exported, and the contract it seems to want."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..benchmarks.measure.complexity import count_complexity
from ..runtime.contract import LESION, MAX_CLASSES, InputContract
from ..runtime.errors import InputError
from ..runtime.files import write_bytes
from ..runtime.image import input_from_frame
from ..runtime.paths import takes_paths
from .ends import End, ends_of
from .foreign import OnnxNetwork, read_onnx
from .onnx_file import load_onnx, nodes_of
from .operators import refusals_of
from .opset import opset_of
from .parity import CheckFrame
from .reading import best_reading
from .target import OPSET

_DEPTHS = (1, 3)  # channels of an input
_FRAMES = 16  # most that other readings are tried on


@dataclass(frozen=True)
class Inspection:
    """An ONNX file, and what an export would make of it."""

    file: str
    sha256: str
    opset: int
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    operators: Mapping[str, int]  # how often each is there
    not_taken: tuple[str, ...]  # operators, before anything is folded, that no export takes
    contract: InputContract  # proposed
    reasons: Mapping[str, str]  # field of the contract -> where its value is from
    refused: str | None  # what `edgeseg export` says of the file with this contract; None: taken
    parameters: int | None  # None where it is refused, as those below
    macs: int | None
    answers: tuple[float, float] | None  # lowest and highest logit of the frames

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return {**asdict(self), "contract": self.contract.to_dict()}

    def to_text(self) -> str:
        """Return the fields for a terminal."""
        operators = ", ".join(f"{name} {count}" for name, count in self.operators.items())
        lines = [
            f"{self.file}: opset {self.opset}, SHA-256 {self.sha256[:12]}…",
            *(f"input {end.name}: {end.text}" for end in self.inputs),
            *(f"output {end.name}: {end.text}" for end in self.outputs),
            f"operators: {operators}",
        ]
        if self.not_taken:
            lines.append(f"taken only if folding removes them: {', '.join(self.not_taken)}")
        lines.append("proposed contract:")
        lines += [
            f"  {name} {_told(value)}: {self.reasons[name]}"
            for name, value in self.contract.to_dict().items()
        ]
        if self.macs is not None and self.parameters is not None and self.answers:
            low, high = self.answers
            lines += [
                f"{self.parameters / 1e6:.3f} M parameters, {self.macs / 1e9:.4g} GMACs",
                f"logits between {low:.4g} and {high:.4g} on the frames that were tried",
            ]
        lines.append(f"export refuses it: {self.refused}" if self.refused else "export takes it")
        return "\n".join(lines)


@takes_paths
def inspect_onnx(
    file: Path,
    *,
    output: str | None = None,
    size: tuple[int, int] | None = None,
    frames: Sequence[CheckFrame] = (),
) -> Inspection:
    """Read an ONNX, propose a contract, and try whether an export would take the file.

    Height and width are the file's, else `size`. Mean and std are not in a file: with frames they
    are those of the usual ones under which the network's masks fit the truth best.

    Args:
        file: see `read_onnx`.
        output: see `read_onnx`.
        size: width and height in px, of a file that leaves them open.
        frames: images with their lesions; the first 16 with one are tried.

    Raises InputError: E-ONNX-READ, E-CONTRACT (a size that is needed, impossible or not the
    file's).
    """
    loaded = load_onnx(file)
    graph = loaded.model.graph
    inputs, outputs = ends_of(graph)
    counts = Counter(node.op_type for node in nodes_of(graph))
    answering = [each for each in outputs if output in (None, each.name)]
    contract, reasons = _proposed(file, inputs, answering, size)
    refused, parameters, macs, answers = None, None, None, None
    try:
        network = _read(file, contract, output)
        with_lesion = [each for each in frames if each.truth.any()][:_FRAMES]
        if with_lesion:
            contract, told = best_reading(network.run, contract, with_lesion)
            reasons |= {"mean": told, "std": told}
        complexity = count_complexity(network.to_onnx())
        parameters, macs = complexity.parameters, complexity.macs
        found = [network.run(image) for image in _inputs(contract, with_lesion)]
        answers = min(float(each.min()) for each in found), max(float(each.max()) for each in found)
    except InputError as error:
        refused = str(error)
    return Inspection(
        file=file.name,
        sha256=loaded.sha256,
        opset=opset_of(loaded.model),
        inputs=inputs,
        outputs=outputs,
        operators=dict(sorted(counts.items())),
        not_taken=tuple(sorted({node.op_type for node, _ in refusals_of(nodes_of(graph))})),
        contract=contract,
        reasons=reasons,
        refused=refused,
        parameters=parameters,
        macs=macs,
        answers=answers,
    )


@takes_paths
def write_contract(out: Path, contract: InputContract) -> None:
    """Write a contract as `edgeseg export --contract` takes it. Raises OutputError: E-OUT-WRITE."""
    write_bytes(out, (json.dumps(contract.to_dict(), indent=1) + "\n").encode())


def _proposed(
    file: Path, inputs: Sequence[End], outputs: Sequence[End], size: tuple[int, int] | None
) -> tuple[InputContract, dict[str, str]]:
    dims = _four_of(inputs)
    channels_last = dims[3] in _DEPTHS and dims[1] not in _DEPTHS
    own = dims[1:3] if channels_last else dims[2:4]
    asked = (size[1], size[0]) if size else (None, None)
    for name, there, wanted in zip(("height", "width"), own, asked, strict=True):
        if wanted is not None and there not in (None, wanted):
            raise InputError(
                "E-CONTRACT", f"{file} has the {name} {there} px, so {wanted} cannot be; leave it"
            )
    height, width = (there or wanted for there, wanted in zip(own, asked, strict=True))
    if height is None or width is None:
        raise InputError(
            "E-CONTRACT",
            f"{file} leaves height and width open; name those that it was trained with by --size",
        )
    depth = dims[3] if channels_last else dims[1]
    answers = _four_of(outputs)
    count = answers[3] if channels_last and answers[1] == height else answers[1]
    classes: tuple[str, ...] = LESION
    if count is not None and 2 < count <= 1 + MAX_CLASSES:
        classes = tuple(f"class {label}" for label in range(1, count))
    contract = InputContract(
        height=height,
        width=width,
        channels="rgb" if depth == 3 else "grey",
        classes=classes,
        head="sigmoid" if count in (None, 1) else "softmax",
    )
    told = "the file's" if None not in own else "as --size says"
    unknown = "not in the file; of BUSI's frames. Give what it was trained with, or --data"
    return contract, {
        "height": told,
        "width": told,
        "mean": unknown,
        "std": unknown,
        "threshold": "not in the file; the usual one",
        "channels": "of three; bgr or grey3, if it was trained so",
        "classes": f"{count} channels, the first taken as the background; give their names",
        "head": "of the background's channel beside the others",
    }


def _four_of(ends: Sequence[End]) -> list[int | None]:
    """Return the axes of the only end, where it has four."""
    only = ends[0].dims if len(ends) == 1 else ()
    return list(only) if len(only) == 4 else [None] * 4


def _told(value: object) -> str:
    if isinstance(value, list):
        return " / ".join(map(_told, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _read(file: Path, contract: InputContract, output: str | None) -> OnnxNetwork:
    with TemporaryDirectory() as folder:
        write_contract(Path(folder, "contract.json"), contract)
        return read_onnx(file, Path(folder, "contract.json"), OPSET, output)


def _inputs(contract: InputContract, frames: Sequence[CheckFrame]) -> list[np.ndarray]:
    """Return the frames as inputs, or noise where there are none."""
    if frames:
        return [input_from_frame(each.frame, contract) for each in frames]
    noise = np.random.default_rng(0)
    shape = (contract.height, contract.width)
    grey = [noise.integers(0, 256, shape, np.uint8) for _ in range(3)]
    return [input_from_frame(each, contract) for each in grey]
