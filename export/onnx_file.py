"""An ONNX file and the data files beside it, read as one model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx.external_data_helper import uses_external_data

from ..runtime.errors import InputError, first_line

OTHER_FLOATS = (
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)  # than FP32, which a file from elsewhere may have and becomes
_MAX_BYTES = (1 << 31) - 1  # of a model with its weights inside, as protobuf counts


@dataclass(frozen=True)
class OnnxFile:
    """A model with all its weights inside, and what it was read from."""

    model: onnx.ModelProto
    sha256: str  # of the file; with data files, of the lines "SHA-256  name" of all, as sha256sum's
    data: Mapping[str, str]  # SHA-256 by name of the data files, relative to the file


def load_onnx(file: Path) -> OnnxFile:
    """Read a model and the external data it names, which lie in its folder or below.

    The working directory plays no part. Raises InputError (E-ONNX-READ): no valid ONNX, over 2 GiB
    in all, a data file that is missing, lies outside of the folder (also by a link), or is shorter
    than the model says.
    """
    try:
        content = _read_capped(file, 0)
        model = onnx.load_model_from_string(content)
        contents = _take_data_in(model, file, len(content))
        onnx.checker.check_model(model)
    except InputError:
        raise
    except OSError as error:
        raise InputError("E-ONNX-READ", f"cannot read {file}: {error.strerror}") from error
    except Exception as error:  # protobuf's and the checker's errors share no narrower base
        raise unreadable(file, error) from error
    own = hashlib.sha256(content).hexdigest()
    if not contents:
        return OnnxFile(model, own, {})
    data = {name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)}
    lines = "".join(f"{digest}  {name}\n" for name, digest in {file.name: own, **data}.items())
    return OnnxFile(model, hashlib.sha256(lines.encode()).hexdigest(), data)


def unreadable(file: Path, error: Exception) -> InputError:
    """Return the refusal of a file that the ONNX libraries do not take, with their reason."""
    reason = first_line(error)
    return InputError("E-ONNX-READ", f"{file} is no valid ONNX ({reason}); export it again")


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor: initialisers and attributes, also of the graphs in nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _tensors_of_node(node)


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node, also of the graphs in nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from nodes_of(inner)


def remove_unread(graph: onnx.GraphProto) -> None:
    """Remove nodes whose outputs nobody reads, and then those that only they read."""
    read = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read & set(node.output):
            kept.append(node)
            inner = nodes_of(onnx.helper.make_graph([node], "one", [], []))
            read |= {name for each in inner for name in each.input}
    kept.reverse()
    del graph.node[:]
    graph.node.extend(kept)


def remove_unread_weights(graph: onnx.GraphProto) -> None:
    """Remove stored tensors that no node, also none inside one, and no output reads."""
    read = {name for node in nodes_of(graph) for name in node.input}
    read |= {output.name for output in graph.output}
    for tensor in [each for each in graph.initializer if each.name not in read]:
        graph.initializer.remove(tensor)


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Let these be the graph's nodes, some of which may be its own already."""
    copies = []
    for each in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(each)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def _tensors_of_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            yield from tensors_of(inner)


def _read_capped(file: Path, before: int) -> bytes:
    """Read a file. Raises InputError (E-ONNX-READ) if it and the bytes before it are too many."""
    if before + file.stat().st_size > _MAX_BYTES:
        raise InputError(
            "E-ONNX-READ", f"{file} makes a model of over 2 GiB, which no target takes; shrink it"
        )
    return file.read_bytes()


def _take_data_in(model: onnx.ModelProto, file: Path, size: int) -> dict[str, bytes]:
    """Put external data into the tensors that name it, and return the data files by name."""
    contents: dict[str, bytes] = {}
    functions = (tensor for each in model.functions for tensor in _tensors_of_function(each))
    for tensor in (*tensors_of(model.graph), *functions):
        if not uses_external_data(tensor):
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        if name not in contents:
            before = size + sum(map(len, contents.values()))
            contents[name] = _read_capped(_data_file(file, name), before)
        tensor.raw_data = _part_of(contents[name], entries, tensor, file)
        del tensor.external_data[:]
        tensor.data_location = onnx.TensorProto.DEFAULT
    return contents


def _tensors_of_function(function: onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    for node in function.node:
        yield from _tensors_of_node(node)


def _data_file(file: Path, name: str) -> Path:
    """Return the place of a data file. Raises InputError (E-ONNX-READ), see `load_onnx`."""
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
    if not name or "\0" in name or absolute or ".." in parts:
        raise InputError(
            "E-ONNX-READ",
            f"{file} names the data file {name!r}, which is not in its folder; export it again "
            "with its data beside it",
        )
    path = file.parent / name
    if not path.is_file():
        raise InputError(
            "E-ONNX-READ",
            f"{file} keeps weights in {name!r}, and {path} is no file; put it there, or export "
            "with the weights inside (torch: external_data=False)",
        )
    if not path.resolve().is_relative_to(file.parent.resolve()):
        raise InputError(
            "E-ONNX-READ",
            f"{path}, where {file} keeps weights, is a link that leads out of the folder; copy "
            "what it leads to there",
        )
    return path


def _part_of(
    content: bytes, entries: Mapping[str, str], tensor: onnx.TensorProto, file: Path
) -> bytes:
    """Return the bytes of one tensor. Raises InputError (E-ONNX-READ) if they do not fit."""
    bits = _bits_of(tensor.data_type)
    needed = (prod(tensor.dims) * bits + 7) // 8
    offset = int(entries.get("offset") or 0)
    length = int(entries.get("length") or len(content) - offset)
    if not (bits and offset >= 0 and length == needed and offset + length <= len(content)):
        raise InputError(
            "E-ONNX-READ",
            f"{file} keeps {tensor.name!r} ({needed} bytes) at {offset} of "
            f"{entries['location']!r}, which has {len(content)} bytes, {length} of them for it; "
            "copy the whole file, or export again",
        )
    return content[offset : offset + length]


def _bits_of(kind: int) -> int:
    """Return the bits of an element; 0 for what has no fixed size."""
    name = onnx.TensorProto.DataType.Name(kind)
    if name in ("STRING", "UNDEFINED"):
        return 0
    narrow = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
    return narrow.get(name, onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize * 8)
