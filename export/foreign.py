"""ONNX that edgeseg did not make: taken with a contract, or refused by what does not fit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

from ..benchmarks.measure.complexity import OPS
from ..runtime.contract import InputContract
from ..runtime.engines import available_threads
from ..runtime.errors import InputError, first_line
from ..runtime.files import sha256_of_file
from ..runtime.paths import takes_paths
from .ends import fit_ends, type_name
from .logits import (
    cut_probability,
    ends_unbounded,
    logits_of,
    require_logits,
    subtract_background,
)
from .onnx_file import OTHER_FLOATS, load_onnx, nodes_of, tensors_of, unreadable
from .operators import CONDITION, require_operators
from .opset import as_defined, at_our_opset, opset_of, require_opset
from .parity import Run, exact_run
from .quantised import (
    drop_end_pair,
    has_constant_grids,
    is_quantised,
    require_pairs,
    with_stored_weights,
    without_pairs,
)
from .target import OPSET
from .to_onnx import CONTRACT_KEY
from .torch_module import write_module_as_onnx, write_network_as_onnx

if TYPE_CHECKING:
    from torch import nn

_JOINED_SHAPE = "_new_shape"  # how ONNX Runtime ends the name of the shape of joined Reshapes
# Rewrites of Q/DQ pairs, which are to stay where their author has put them.
_OF_PAIRS = (
    "DoubleQDQPairsRemover",
    "EnsureUniqueDQForNodeUnit",
    "QDQFinalCleanupTransformer",
    "QDQPropagationTransformer",
    "WeightBiasQuantization",
)
_TRAINING_MODE = 14  # the opset from which a batch norm says its mode in an attribute
_FLOAT = onnx.TensorProto.FLOAT
_MAX_FLIPPED = 2e-3  # of a file's pixels, by the order of sums before its roundings
_END_STEPS = 2 / 127  # of the largest logit: two steps of a pair at the end
_NOISE = (1.0, 1.0, 5.0)  # standard deviations of frames that tell whether an answer depends on any


@dataclass(frozen=True)
class OnnxNetwork:
    """An ONNX model as an `ExportableNetwork`."""

    name: str
    model: bytes  # FP32, in an opset that the target takes, `image` to `logits`
    contract: InputContract
    sha256: str  # of the file as it was, see `OnnxFile`
    provenance: Mapping[str, Any]
    # The file as it was, in ONNX Runtime; of a probability, the logit; of Q/DQ, without the pairs.
    _run: Run
    quantised: bytes | None = None  # see `ExportableNetwork`

    def to_onnx(self) -> bytes:
        """See `ExportableNetwork`."""
        return self.model

    def run(self, image: np.ndarray) -> np.ndarray:
        """See `ExportableNetwork`."""
        return self._run(image)


@takes_paths
def read_onnx(
    file: Path,
    contract_file: Path | None,
    opset: int = OPSET,
    output: str | None = None,
) -> OnnxNetwork:
    """Read an ONNX model and make it ours: batch norms folded, logits, every node named.

    An opset from 17 to `opset` stays, any other becomes 17. What is constant is folded before
    anything is judged. A sigmoid at the end, or a softmax over two channels, is cut off; the
    reference stays the file as it was. Types other than FP32 inside become FP32. A file with Q/DQ
    pairs is its own INT8, and its network without them the reference.

    Args:
        file: opset 7 to 24, weights inside or in data files beside it; one input and one output,
            float or uint8, [1, C, H, W] or [1, H, W, C], where an axis that is not fixed becomes
            the contract's.
        contract_file: JSON as in a manifest; None: the model carries the contract.
        opset: the highest that the target takes, see `Target.opset`.
        output: name of the one that answers; needed where there are several.

    Raises InputError: E-ONNX-READ, E-ONNX-OUTPUT, E-ONNX-SHAPE (also an output that is no logit),
    E-ONNX-OPERATOR (names what no export takes, see `operators`), E-ONNX-OPSET, E-ONNX-QDQ (see
    `require_pairs`), E-ONNX-TRAINING (batch norm or dropout in training mode), E-ONNX-CONSTANT
    (every frame gets the same answer), E-CONTRACT.
    """
    loaded = load_onnx(file)
    contract = _contract_of(file, contract_file, _carried_by(loaded.model))
    theirs, fitted = fit_ends(_cleaned(loaded.model, file), file, contract, output)
    require_opset(theirs, file)
    # Before anything runs. An If may be folded.
    require_operators((each for each in nodes_of(theirs.graph) if each.op_type != CONDITION), file)
    _require_inference(theirs.graph, opset_of(theirs), file)
    _require_ends(theirs.graph.input, "input", file, contract.depth, contract)
    if any(
        each.type.tensor_type.elem_type != onnx.TensorProto.FLOAT for each in theirs.graph.output
    ):
        _require_ends(theirs.graph.output, "output", file, len(contract.classes), contract)
    _require_biases(theirs.graph, file)
    whole, paired = theirs, is_quantised(theirs.graph)
    if paired:
        if not has_constant_grids(whole.graph):
            whole = _folded(whole, file)
        require_pairs(whole.graph, file)
        theirs = _inferred(without_pairs(whole), file)
    folded = _in_float(_folded(theirs, file), file)
    run = _run_of(theirs, file, contract)
    if folded.graph.output[0].name in {tensor.name for tensor in folded.graph.initializer}:
        raise _constant(file)
    require_operators(folded.graph.node, file)
    ours, cut = _made_ours(folded, file, contract, opset)
    for level in dict.fromkeys(contract.logit_thresholds):
        require_logits(ours.graph, level, file)
    model = _sealed(ours, file, contract)
    _require_answer(_run_of_ours(model, file), ours.graph, file, contract)
    quantised = _quantised_form(whole, file, contract, opset) if paired else None
    return OnnxNetwork(
        file.stem,
        model,
        contract,
        loaded.sha256,
        {
            "source": "ONNX from elsewhere",
            **({"external_data": dict(loaded.data)} if loaded.data else {}),
            **fitted,
            **({"cut_off": cut} if cut else {}),
            **({"quantised": "by its own Q/DQ pairs"} if paired else {}),
        },
        lambda image: logits_of(run(image), contract, probability=bool(cut)),
        quantised,
    )


def _quantised_form(
    whole: onnx.ModelProto, file: Path, contract: InputContract, opset: int
) -> bytes:
    """Make a file with pairs ours in form; it must answer noise as the file does.

    Raises InputError (E-ONNX-QDQ) where it does not, and as `read_onnx`.
    """
    folded = with_stored_weights(_in_float(_folded(whole, file), file))
    made, cut = _made_ours(_inferred(folded, file), file, contract, opset)
    model = _sealed(made, file, contract)
    theirs, ours = _run_of(whole, file, contract), _run_of_ours(model, file)
    level = np.array(contract.logit_thresholds, np.float32)[:, None, None]
    flipped = []
    for image in _noise(contract):
        expected = logits_of(theirs(image), contract, probability=bool(cut))
        found = ours(image)
        # Near the threshold a pair at the end decides, which ours does without.
        clear = np.abs(found - level) > _END_STEPS * np.abs(found).max()
        flipped.append(float(np.mean(clear & ((expected > level) != (found > level)))))
    if max(flipped) > _MAX_FLIPPED:
        raise InputError(
            "E-ONNX-QDQ",
            f"what edgeseg makes of the pairs of {file} answers {max(flipped):.2%} of the pixels "
            "otherwise; report this, or name the float network",
        )
    return model


def _made_ours(
    folded: onnx.ModelProto, file: Path, contract: InputContract, opset: int
) -> tuple[onnx.ModelProto, str | None]:
    """Bring a model to our opset and cut a probability off its end; return what was cut off."""
    defined = as_defined(folded, file, opset)
    if defined is not folded:
        folded = _folded(defined, file)
    converted = at_our_opset(folded, file, opset)
    try:
        ours = _inferred(converted, file)
        drop_end_pair(ours.graph)
        cut = cut_probability(ours.graph, file, contract)
        drop_end_pair(ours.graph)  # of the logits
        ours = _folded(ours, file)
        if subtract_background(ours.graph, contract):
            ours = _inferred(ours, file)
    except InputError as error:
        if error.code != "E-ONNX-READ":
            raise
        raise InputError(  # the file was taken before
            "E-ONNX-OPSET",
            f"what edgeseg makes of {file} in opset {OPSET} is no valid ONNX; export it with opset "
            f"{OPSET}, and report this: {error}",
        ) from error
    _require_ends(ours.graph.output, "output", file, len(contract.classes), contract)
    return ours, cut


def _sealed(ours: onnx.ModelProto, file: Path, contract: InputContract) -> bytes:
    """Name all, add the contract, check, and return the bytes."""
    _name_all(ours.graph)
    ours = _inferred(ours, file)
    del ours.metadata_props[:]
    onnx.helper.set_model_props(ours, {CONTRACT_KEY: json.dumps(contract.to_dict())})
    try:
        onnx.checker.check_model(ours, full_check=True)
    except Exception as error:  # the checker's errors share no narrower base
        raise unreadable(file, error) from error
    return bytes(ours.SerializeToString(deterministic=True))


@takes_paths
def read_module(
    name: str,
    weights: Path | None,
    contract_file: Path | None,
    opset: int = OPSET,
    output: str | None = None,
) -> OnnxNetwork:
    """Read a torch network by the function that makes it; see `write_module_as_onnx`.

    Args:
        name: ``package.module:function``.
        weights: see there.
        contract_file: see `read_onnx`, as `opset` and `output`.
        opset: see there.
        output: see there.

    Raises InputError: E-CONTRACT, those of `write_module_as_onnx` and `read_onnx`.
    """
    contract = _contract_of(name, contract_file)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{name.rpartition(':')[2]}.onnx")
        write_module_as_onnx(name, weights, contract, file, output)
        network = read_onnx(file, contract_file, opset, output)
    own = {"source": "torch network from elsewhere", "function": name}
    if weights is not None:
        own["weights_sha256"] = sha256_of_file(weights)
    if output is not None:
        own["output"] = output
    return replace(network, provenance={**network.provenance, **own})


def onnx_from_module(network: nn.Module, name: str, contract: InputContract) -> bytes:
    """Return a network from elsewhere that was trained here as ONNX, see `read_onnx`.

    Args:
        network: answers with logits, as the training took its answer.
        name: of the function that makes it.
        contract: of its training.

    Raises InputError: E-MODULE-ONNX, those of `read_onnx`, E-ONNX-SHAPE also for a probability.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{name.rpartition(':')[2]}.onnx")
        carried = Path(folder, "contract.json")
        carried.write_text(json.dumps(contract.to_dict()), "utf-8")
        write_network_as_onnx(network, name, contract, file)
        made = read_onnx(file, carried)
    if cut := made.provenance.get("cut_off"):
        raise InputError(
            "E-ONNX-SHAPE",
            f"{name} ends in {cut}, which the training took for a logit; leave it out and train "
            "again",
        )
    return made.model


def _cleaned(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Return the model without functions of its own and without weights listed as inputs."""
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:  # the library's errors share no narrower base
            raise unreadable(file, error) from error
    _without_listed_weights(model.graph)
    return model


def _without_listed_weights(graph: onnx.GraphProto) -> None:
    """Drop weights from the list of inputs, where old exporters name them too."""
    names = {tensor.name for tensor in graph.initializer}
    for value in [value for value in graph.input if value.name in names]:
        graph.input.remove(value)


def _require_inference(graph: onnx.GraphProto, opset: int, file: Path) -> None:
    """Raise InputError (E-ONNX-TRAINING) for what answers by the batch, or by chance."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in nodes_of(graph):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
    true = {
        name
        for name, tensor in stored.items()
        if tensor.data_type == onnx.TensorProto.BOOL and numpy_helper.to_array(tensor).any()
    }
    for node in nodes_of(graph):
        mode = any(each.name == "training_mode" and each.i for each in node.attribute)
        # Before opset 14 the running statistics as further outputs say it.
        mode |= opset < _TRAINING_MODE and any(node.output[1:])
        batch = node.op_type == "BatchNormalization" and mode
        chance = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in true
        if batch or chance:
            raise InputError(
                "E-ONNX-TRAINING",
                f"{file} has {node.op_type} {node.name or node.output[0]!r} in training mode, so "
                f"its answer depends on {'the frames of the call' if batch else 'chance'}; export "
                "the network in inference mode (torch: model.eval())",
            )


def _require_biases(graph: onnx.GraphProto, file: Path) -> None:
    """Raise InputError (E-ONNX-READ) for a bias of another length than its convolution's outputs.

    Neither the checker nor ONNX Runtime compares them: it reads beyond the end.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in nodes_of(graph):
        if node.op_type not in ("Conv", "ConvTranspose") or len(node.input) < 3:
            continue
        weight, bias = (shapes.get(name) for name in node.input[1:3])
        if weight is None or bias is None or len(weight) < 2:
            continue
        groups = next((each.i for each in node.attribute if each.name == "group"), 1)
        outputs = weight[0] if node.op_type == "Conv" else weight[1] * groups
        if bias != (outputs,):
            raise InputError(
                "E-ONNX-READ",
                f"{file} has {node.op_type} {node.name or node.output[0]!r} with {outputs} "
                f"channels and a bias of the shape {list(bias)}; export it again",
            )


def _run_of(model: onnx.ModelProto, file: Path, contract: InputContract) -> Run:
    """Return how a model runs. Raises InputError (E-ONNX-READ) where it does not."""
    zeros = np.zeros((1, contract.depth, contract.height, contract.width), np.float32)
    try:
        run = exact_run(model.SerializeToString(), available_threads())
        run(zeros)
    except Exception as error:  # the library's errors share no narrower base
        raise _refused_by_runtime(file, error) from error
    return run


def _run_of_ours(model: bytes, file: Path) -> Run:
    """Return how what we made runs. Raises InputError (E-ONNX-OPSET) where it does not."""
    try:
        return exact_run(model, available_threads())
    except Exception as error:  # the library's errors share no narrower base
        raise InputError(
            "E-ONNX-OPSET",
            f"ONNX Runtime refuses what edgeseg makes of {file} in opset {OPSET} "
            f"({first_line(error)}); export it with opset {OPSET}",
        ) from error


def _noise(contract: InputContract) -> list[np.ndarray]:
    noise = np.random.default_rng(0)
    shape = (1, contract.depth, contract.height, contract.width)
    return [noise.normal(0, scale, shape).astype(np.float32) for scale in _NOISE]


def _refused_by_runtime(file: Path, error: Exception) -> InputError:
    reason = first_line(error)
    return InputError("E-ONNX-READ", f"ONNX Runtime refuses {file}: {reason}; export it again")


def _in_float(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Make every float type FP32, as the targets' own steps choose narrower ones; infer shapes."""
    for tensor in tensors_of(model.graph):
        if tensor.data_type in OTHER_FLOATS:
            with np.errstate(over="ignore"):  # what overflows shows in the parity
                array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in nodes_of(model.graph):
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in OTHER_FLOATS:
                attribute.i = _FLOAT
    del model.graph.value_info[:]
    model = _inferred(model, file)
    values = (*model.graph.input, *model.graph.value_info)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == _FLOAT}
    for node in model.graph.node:
        casts_to = [each.i for each in node.attribute if each.name == "to"]
        if node.op_type == "Cast" and node.input[0] in floats and casts_to == [_FLOAT]:
            node.op_type = "Identity"
            del node.attribute[:]
    return model


def _constant(file: Path) -> InputError:
    return InputError(
        "E-ONNX-CONSTANT", f"{file} answers every frame alike; export the trained network"
    )


def _require_answer(run: Run, graph: onnx.GraphProto, file: Path, contract: InputContract) -> None:
    """Refuse a network that computes nothing, and one whose answers to noise are probabilities.

    Raises InputError: E-ONNX-CONSTANT, E-ONNX-SHAPE.
    """
    answers = [run(image) for image in _noise(contract)]
    if all(np.array_equal(each, answers[0], equal_nan=True) for each in answers):
        raise _constant(file)
    if not any(node.op_type in OPS for node in graph.node):
        raise InputError(
            "E-ONNX-OPERATOR",
            f"{file} has no convolution or matrix product, so there is nothing that a target would "
            "run in a precision; export the network that segments",
        )
    low, high = (float(end(answers)) for end in (np.min, np.max))
    above = low > max(contract.logit_thresholds)
    if not ends_unbounded(graph) and (above or 0 <= low < high <= 1):
        raise InputError(
            "E-ONNX-SHAPE",
            f"{file} answers between {low:.4g} and {high:.4g} whatever the frame, so its output "
            "is no logit; export what comes before the probability",
        )


def _contract_of(
    source: Path | str, contract_file: Path | None, carried: str | None = None
) -> InputContract:
    if carried is None and contract_file is None:
        raise InputError(
            "E-CONTRACT",
            f"{source} does not say how frames become its input; give --contract FILE with height, "
            "width, mean, std and threshold as JSON",
        )
    try:
        texts = [carried] if carried is not None else []
        texts += [contract_file.read_text("utf-8")] if contract_file is not None else []
        contracts = [InputContract.from_dict(dict(json.loads(text))) for text in texts]
    except OSError as error:
        raise InputError("E-CONTRACT", f"cannot read {contract_file}: {error.strerror}") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError("E-CONTRACT", f"the input contract is malformed ({error})") from error
    if len(set(contracts)) > 1:
        raise InputError("E-CONTRACT", f"{source} carries another contract; leave --contract out")
    return contracts[0]


def _carried_by(model: onnx.ModelProto) -> str | None:
    found = {entry.key: entry.value for entry in model.metadata_props}.get(CONTRACT_KEY)
    return None if found is None else str(found)


def _require_ends(
    values: Sequence[onnx.ValueInfoProto],
    what: str,
    file: Path,
    channels: int,
    contract: InputContract,
) -> None:
    """Raise InputError (E-ONNX-SHAPE) unless there is one end and it is as the contract says."""
    expected = [1, channels, contract.height, contract.width]
    found = [_shape_of(value) for value in values]
    if found != [(onnx.TensorProto.FLOAT, expected)]:
        ends = " and ".join(f"{type_name(kind)} {shape}" for kind, shape in found)
        raise InputError(
            "E-ONNX-SHAPE",
            f"{file} has the {what} {ends or 'none'}; expected one, float32 {expected}, as the "
            "contract says (logits, before any sigmoid)",
        )


def _shape_of(value: onnx.ValueInfoProto) -> tuple[int, list[int | str]]:
    tensor = value.type.tensor_type
    dims = [each.dim_value or each.dim_param or "?" for each in tensor.shape.dim]
    return tensor.elem_type, dims


def _inferred(model: onnx.ModelProto, file: Path) -> onnx.ModelProto:
    """Return the model with the shape of every tensor, the output's from what makes it."""
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:  # the library's errors share no narrower base
        raise unreadable(file, error) from error


def _folded(model: onnx.ModelProto, file: Path, *, again: bool = False) -> onnx.ModelProto:
    """Return the model with constants, also of shapes, and batch norms folded, shapes inferred."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "folded.onnx")
        options.optimized_model_filepath = str(result)
        try:
            ort.InferenceSession(
                model.SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(_OF_PAIRS),
            )
        except Exception as error:  # the library's errors share no narrower base
            raise _refused_by_runtime(file, error) from error
        folded = onnx.load_model(result)
    used = {"" if node.domain == "ai.onnx" else node.domain for node in folded.graph.node} | {""}
    for each in [each for each in folded.opset_import if each.domain not in used]:
        folded.opset_import.remove(each)  # the library lists all that it knows
    _rename_joined_shapes(folded.graph)
    # A function of the standard, such as GroupNormalization, is put in behind the folding.
    if any(node.op_type == "Shape" for node in folded.graph.node) and not again:
        return _folded(folded, file, again=True)
    return _inferred(folded, file)


def _rename_joined_shapes(graph: onnx.GraphProto) -> None:
    """Rename the shapes of joined Reshapes: the library fails on its own name when it folds again.

    ONNX Runtime 1.32 calls such a constant by its node, whether or not there is one of that name.
    """
    taken = {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        if not tensor.name.endswith(_JOINED_SHAPE):
            continue
        old, number = tensor.name, 0
        while tensor.name in taken:
            tensor.name, number = f"{old}.{number}", number + 1
        taken.add(tensor.name)
        for node in graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = tensor.name if name == old else name


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
