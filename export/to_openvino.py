"""ONNX to OpenVINO IR: FP32, FP16 weights, or INT8 from Q/DQ pairs."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import openvino as ov

from ..runtime.errors import Refused

_COUNTED = re.compile(r"[A-Z][A-Za-z]*_[0-9]+")  # as OpenVINO names a node that has no name
_LACKING = re.compile(r"No conversion rule found for operations: [^\n]*\w")
_LAST = re.compile(r"[^\n]*\S(?=\s*$)")  # line of what it says


def openvino_from_onnx(
    model: bytes, folder: Path, *, half: bool = False, max_batch: int = 1
) -> None:
    """Write ``model.xml`` and ``model.bin`` into `folder`.

    Args:
        model: ONNX in FP32, or with Q/DQ pairs, which OpenVINO runs in INT8.
        folder: exists.
        half: store the weights in FP16.
        max_batch: upper end of a dynamic batch axis, where `model` has one.

    Raises Refused (E-OPENVINO-PARSE) for what its frontend does not take.
    """
    source = folder / "source.onnx"
    source.write_bytes(model)
    try:
        network = ov.convert_model(source)
    except Exception as error:  # its errors share no narrower base
        said = _LACKING.search(str(error)) or _LAST.search(str(error))
        reason = said[0] if said else type(error).__name__
        raise Refused(
            "E-OPENVINO-PARSE",
            f"OpenVINO does not take the network ({reason}); export it without what is named "
            "there, or for another target",
        ) from error
    if network.is_dynamic():
        shape = network.input(0).get_partial_shape()
        shape[0] = ov.Dimension(1, max_batch)
        network.reshape(shape)
    _number_nodes(network, _names_in(onnx.load_model_from_string(model).graph))
    ov.save_model(network, folder / "model.xml", compress_to_fp16=half)
    source.unlink()


def _names_in(graph: onnx.GraphProto) -> set[str]:
    """Return the name of every node and tensor."""
    tensors = {name for node in graph.node for name in (*node.input, *node.output)}
    return {*(node.name for node in graph.node), *tensors}


def _number_nodes(network: ov.Model, named: set[str]) -> None:
    """Rename what OpenVINO named by a counter of the whole process: same model, same bytes.

    What bears a name of the ONNX keeps it.
    """
    for index, node in enumerate(network.get_ordered_ops()):
        name = node.get_friendly_name()
        if name not in named and _COUNTED.fullmatch(name):
            node.set_friendly_name(f"unnamed_{index}")
