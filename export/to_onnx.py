"""A trained network as checked, static ONNX."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from ..runtime.contract import InputContract

if TYPE_CHECKING:
    from torch import nn

CONTRACT_KEY = "edgeseg.contract"  # in metadata_props
OPSET = 17  # the highest that TensorRT 8.5 (JetPack 5) parses


def onnx_from_network(network: nn.Module, contract: InputContract) -> bytes:
    """Return the network as ONNX: ``image`` float32 [1, 1, H, W] to ``logits`` of that shape.

    Batch norms are folded into the convolutions, shapes are static, the model is checked, and the
    input contract lies in ``metadata_props``.
    """
    import torch

    image = torch.zeros(1, 1, contract.height, contract.width)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        file = Path(folder, "model.onnx")
        # The TorchScript exporter folds batch norm and keeps static scales in Resize; the newer
        # one is preferred upstream, hence the notice.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Constant folding")  # what it leaves, `master` folds
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


def _constants_to_initialisers(graph: onnx.GraphProto) -> None:
    """Move Constant nodes to initialisers: converters keep Resize's scales in FP32 only there."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)
