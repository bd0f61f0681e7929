"""ONNX that edgeseg did not make: taken with a contract, or refused by what does not fit."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter

from ..runtime.contract import InputContract
from ..runtime.engines import available_threads
from ..runtime.errors import InputError
from ..runtime.paths import takes_paths
from .parity import Run, exact_run
from .to_onnx import CONTRACT_KEY, OPSET

_MAX_BYTES = 1 << 30
# What the parsers of OpenVINO, ONNX Runtime and TensorRT-RTX 1.7 all took, one small model each.
# Without matrix products: the audits cannot follow them in every engine.
OPERATORS = frozenset(
    (
        *(
            "Add",
            "ArgMax",
            "AveragePool",
            "BatchNormalization",
            "Cast",
            "Clip",
            "Concat",
            "Constant",
        ),
        *("Conv", "ConvTranspose", "Div", "Erf", "Exp", "Flatten", "Gather"),
        *("GlobalAveragePool", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization"),
        *("LayerNormalization", "LeakyRelu", "MaxPool", "Mul", "Pad", "Pow", "PRelu"),
        *("ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split"),
        *("Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"),
    )
)


@dataclass(frozen=True)
class OnnxNetwork:
    """An ONNX model as a `Network`."""

    name: str
    model: bytes  # FP32, opset 17, `image` to `logits`
    contract: InputContract
    sha256: str  # of the file as it was
    provenance: Mapping[str, Any]
    _run: Run  # in ONNX Runtime, as the graph is written

    def to_onnx(self) -> bytes:
        """See `Network`."""
        return self.model

    def run(self, image: np.ndarray) -> np.ndarray:
        """See `Network`."""
        return self._run(image)


@takes_paths
def read_onnx(file: Path, contract_file: Path | None) -> OnnxNetwork:
    """Read an ONNX model and make it ours: opset 17, batch norms folded, every node named.

    Args:
        file: FP32, one input and one output, both static float32 [1, 1, H, W].
        contract_file: JSON as in a manifest; None: the model carries the contract.

    Raises InputError: E-ONNX-READ, E-ONNX-SHAPE, E-ONNX-OPERATOR (names what no target takes),
    E-ONNX-OPSET, E-CONTRACT.
    """
    content, model = _load(file)
    contract = _contract_of(model, file, contract_file)
    _without_listed_weights(model.graph)
    _require_operators(model.graph, file)
    _require_float(model.graph, file)
    _require_shape(model.graph, file, contract)
    folded = _folded(_at_opset(model, file), file)
    _name_all(folded.graph)
    folded = onnx.shape_inference.infer_shapes(folded, strict_mode=True)
    del folded.metadata_props[:]
    onnx.helper.set_model_props(folded, {CONTRACT_KEY: json.dumps(contract.to_dict())})
    try:
        onnx.checker.check_model(folded, full_check=True)
    except Exception as error:  # the checker's errors share no narrower base
        raise _unreadable(file, error) from error
    ours = bytes(folded.SerializeToString(deterministic=True))
    return OnnxNetwork(
        file.stem,
        ours,
        contract,
        hashlib.sha256(content).hexdigest(),
        {"source": "ONNX from elsewhere"},
        exact_run(ours, available_threads()),
    )


def _load(file: Path) -> tuple[bytes, onnx.ModelProto]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError("E-ONNX-READ", f"{file} is larger than {_MAX_BYTES >> 20} MiB")
        content = file.read_bytes()
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(model)
    except OSError as error:
        raise InputError("E-ONNX-READ", f"cannot read {file}: {error.strerror}") from error
    except Exception as error:  # protobuf's and the checker's errors share no narrower base
        if isinstance(error, InputError):
            raise
        raise _unreadable(file, error) from error
    return content, model


def _unreadable(file: Path, error: Exception) -> InputError:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return InputError(
        "E-ONNX-READ",
        f"{file} is no valid ONNX with its weights inside ({reason}); export it again",
    )


def _without_listed_weights(graph: onnx.GraphProto) -> None:
    """Drop weights from the list of inputs, where old exporters name them too."""
    names = {tensor.name for tensor in graph.initializer}
    for value in [value for value in graph.input if value.name in names]:
        graph.input.remove(value)


def _require_float(graph: onnx.GraphProto, file: Path) -> None:
    """Refuse weights in another float type than FP32, and logits that are probabilities."""
    others = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    found = [tensor.name for tensor in graph.initializer if tensor.data_type in others]
    if found:
        raise InputError(
            "E-ONNX-SHAPE", f"{file} has {found[0]!r} in another type than FP32; export it in FP32"
        )
    last = [node.op_type for node in graph.node if graph.output[0].name in node.output]
    if last and last[0] in ("Sigmoid", "Softmax", "HardSigmoid"):
        raise InputError(
            "E-ONNX-SHAPE",
            f"{file} ends in {last[0]}, so its output is no logit; export it without",
        )


def _contract_of(model: onnx.ModelProto, file: Path, contract_file: Path | None) -> InputContract:
    carried = {entry.key: entry.value for entry in model.metadata_props}.get(CONTRACT_KEY)
    if carried is None and contract_file is None:
        raise InputError(
            "E-CONTRACT",
            f"{file} does not say how frames become its input; give --contract FILE with height, "
            "width, mean, std and threshold as JSON",
        )
    try:
        texts = [str(carried)] if carried is not None else []
        texts += [contract_file.read_text("utf-8")] if contract_file is not None else []
        contracts = [InputContract.from_dict(dict(json.loads(text))) for text in texts]
    except OSError as error:
        raise InputError("E-CONTRACT", f"cannot read {contract_file}: {error.strerror}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError("E-CONTRACT", f"the input contract is malformed ({error})") from error
    if len(set(contracts)) > 1:
        raise InputError("E-CONTRACT", f"{file} carries another contract; leave --contract out")
    return contracts[0]


def _require_operators(graph: onnx.GraphProto, file: Path) -> None:
    for node in graph.node:
        if node.op_type not in OPERATORS or node.domain not in ("", "ai.onnx"):
            raise InputError(
                "E-ONNX-OPERATOR",
                f"{file} has the operator {node.op_type} ({node.name or node.output[0]!r}), which "
                "not every target takes; export the network without it",
            )


def _require_shape(graph: onnx.GraphProto, file: Path, contract: InputContract) -> None:
    expected = [1, 1, contract.height, contract.width]
    for what, values in (("input", list(graph.input)), ("output", list(graph.output))):
        found = [_shape_of(value) for value in values]
        if found != [(onnx.TensorProto.FLOAT, expected)]:
            shapes = " and ".join(str(shape) for _, shape in found)
            raise InputError(
                "E-ONNX-SHAPE",
                f"{file} has the {what} {shapes}; expected one, float32 {expected}, as the "
                "contract says (logits, before any sigmoid)",
            )


def _shape_of(value: onnx.ValueInfoProto) -> tuple[int, list[int | str]]:
    tensor = value.type.tensor_type
    dims = [each.dim_value or each.dim_param or "?" for each in tensor.shape.dim]
    return tensor.elem_type, dims


def _at_opset(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if opset == OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter's errors share no narrower base
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            "E-ONNX-OPSET",
            f"{file} has opset {opset} and cannot be brought to {OPSET} ({reason}); export it so",
        ) from error


def _folded(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Return the model with constants and batch norms folded, in standard operators."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "folded.onnx")
        options.optimized_model_filepath = str(result)
        try:
            ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's errors share no narrower base
            reason = str(error).strip().splitlines()[0]
            raise InputError("E-ONNX-READ", f"ONNX Runtime refuses {file}: {reason}") from error
        return onnx.shape_inference.infer_shapes(onnx.load_model(result), strict_mode=True)


def _name_all(graph: onnx.GraphProto) -> None:
    """Call the input ``image`` and the output ``logits``, and give every node a name of its own."""
    outer = {graph.input[0].name: "image", graph.output[0].name: "logits"}
    # An inner tensor that has one of our names gives way.
    renamed = {name: f"{name}.inner" for name in outer.values()} | outer
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        value.name = renamed[value.name]
    seen: set[str] = set()
    for index, node in enumerate(graph.node):
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = renamed.get(name, name)
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}.{index}"
        seen.add(node.name)
