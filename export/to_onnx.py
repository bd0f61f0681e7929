"""A trained network as checked, static ONNX."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from ..runtime.contract import InputContract
from .onnx_file import remove_unread
from .target import OPSET

if TYPE_CHECKING:
    from torch import nn

CONTRACT_KEY = "edgeseg.contract"  # in metadata_props


def onnx_from_network(network: nn.Module, contract: InputContract) -> bytes:
    """Return the network as ONNX: ``image`` float32 [1, 1, H, W] to ``logits`` of that shape.

    Batch norms and zero padding are folded into the convolutions, shapes are static, the model is
    checked, and the input contract lies in ``metadata_props``.
    """
    import torch

    image = torch.zeros(1, 1, contract.height, contract.width)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder, "model.onnx")
        # The TorchScript exporter folds batch norm and keeps static scales in Resize; the newer
        # one is preferred upstream, hence the notice.
        warnings.simplefilter("ignore", DeprecationWarning)
        # How it computes the sides of a padding, which is folded below.
        warnings.filterwarnings("ignore", "Constant folding - Only steps=1", UserWarning)
        torch.onnx.export(
            network.eval(),
            (image,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
        )
        model = onnx.load_model(file)
    _tidy(model)
    _constants_to_initialisers(model.graph)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    entry = model.metadata_props.add()
    entry.key, entry.value = CONTRACT_KEY, json.dumps(contract.to_dict())
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def module_of_node(name: str) -> str:
    """Return the path of the module that a node of `onnx_from_network` belongs to.

    The exporter writes the scopes into the name: ``/decoder.0/gate/gate/gate.0/Conv`` is of
    ``decoder.0.gate.gate.0``. The second call of a module is another scope, such as ``pool_1``.
    """
    path: list[str] = []
    *scopes, _ = name.strip("/").split("/")
    for scope in scopes:
        if path and scope.startswith(f"{path[-1]}."):
            path[-1] = scope
        else:
            path.append(scope)
    return ".".join(path)


def _tidy(model: onnx.ModelProto) -> None:
    """Remove what the exporter leaves between operators.

    A Pad of zeros goes into the convolution that alone reads it, any other stays. An Identity goes
    unless it makes an output of the model.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    for node in [node for node in graph.node if node.op_type == "Conv"]:
        pad = makers.get(node.input[0])
        if pad is None or pad.op_type != "Pad" or _times_read(graph, node.input[0]) > 1:
            continue
        sides = _computed(model, pad.input[1]).reshape(2, -1)
        fill = _computed(model, pad.input[2]) if len(pad.input) > 2 and pad.input[2] else 0
        if np.any(fill != 0) or np.any(sides[:, :2]) or np.any(sides < 0):
            continue
        own = next(attribute for attribute in node.attribute if attribute.name == "pads")
        own.ints[:] = (sides[:, 2:].ravel() + list(own.ints)).tolist()
        node.input[0] = pad.input[0]
    for node in [node for node in graph.node if node.op_type == "Identity"]:
        for reader in graph.node:  # of shared bounds of Clip
            for place, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[place] = node.input[0]
    remove_unread(graph)


def _computed(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return a tensor that depends on constants only."""
    makers = {output: node for node in model.graph.node for output in node.output}
    needed, open_names = [], [name]
    while open_names:
        node = makers.get(open_names.pop())
        if node is not None and node not in needed:
            needed.append(node)
            open_names.extend(node.input)
    nodes = [node for node in model.graph.node if node in needed]
    output = onnx.ValueInfoProto(name=name)
    part = onnx.helper.make_graph(nodes, "part", [], [output], model.graph.initializer)
    whole = onnx.helper.make_model(part, opset_imports=model.opset_import)
    (value,) = ReferenceEvaluator(whole).run(None, {})
    return np.asarray(value)


def _times_read(graph: onnx.GraphProto, name: str) -> int:
    return sum(list(node.input).count(name) for node in graph.node)


def _constants_to_initialisers(graph: onnx.GraphProto) -> None:
    """Move Constant nodes to initialisers: converters keep Resize's scales in FP32 only there."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)
