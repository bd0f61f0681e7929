"""ONNX to a TensorRT-RTX plan, ahead of time: no GPU and no driver are needed to build one.

A plan cannot be opened without a GPU. What it will run is therefore read from the builder's own
listing of its layers, one line each, in the log.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..runtime.errors import EngineError, InputError, Refused

if TYPE_CHECKING:
    import tensorrt_rtx as trt

# Compute capability -> member of `tensorrt_rtx.ComputeCapability`. It has none for Jetson (8.7).
COMPUTE_CAPABILITIES: Mapping[str, str] = MappingProxyType(
    {"8.6": "SM86", "8.9": "SM89", "12.0": "SM120"}
)


@dataclass(frozen=True)
class PlanLayer:
    """One fused layer as the builder lists it; a type is "" where there is no such tensor."""

    name: str
    kind: str  # the builder's own: correlation, deconv, gemm, kgen (generated code), maxpool...
    input_type: str  # of the first input: Float, Half, BFloat16, Int8...
    weight_type: str  # of the first constant, the weights of a correlation
    output_type: str
    origins: tuple[str, ...]  # names of the ONNX nodes it computes, or parts of


@dataclass(frozen=True)
class RtxPlan:
    """A built plan and what the builder said about it."""

    plan: bytes
    layers: tuple[PlanLayer, ...]
    weights_bytes: int
    activation_bytes: int
    compute_capability: str  # as in `COMPUTE_CAPABILITIES`
    version: str  # of TensorRT-RTX


def plan_from_onnx(
    model: bytes, compute_capability: str, *, workspace_mib: int = 256, max_batch: int = 1
) -> RtxPlan:
    """Build a plan for one GPU generation; each tensor keeps the type it has in the ONNX.

    One build at a time in a process: all log into one logger.

    Args:
        model: ONNX with its weights inside; FP16 by casts, INT8 by Q/DQ pairs. Static shapes, but
            for the batch if `max_batch` is above 1.
        compute_capability: key in `COMPUTE_CAPABILITIES`.
        workspace_mib: most scratch memory a layer may take on the GPU.
        max_batch: upper end of a dynamic batch axis. The plan is tuned for a batch of 1, since a
            device streams single frames.

    Raises:
        InputError: E-RTX-CC (unknown compute capability).
        Refused: E-RTX-PARSE (the parser does not take a node; it is named).
        EngineError: E-EXTRA-MISSING, E-RTX-BUILD, E-RTX-AUDIT (the builder did not list its
            layers as expected).
    """
    if compute_capability not in COMPUTE_CAPABILITIES:
        known = ", ".join(COMPUTE_CAPABILITIES)
        raise InputError(
            "E-RTX-CC", f"no compute capability {compute_capability!r}; one of {known}"
        )
    try:
        import tensorrt_rtx as trt
    except ImportError as error:
        raise EngineError(
            "E-EXTRA-MISSING", f"TensorRT-RTX is not usable ({error}); pip install 'edgeseg[rtx]'"
        ) from error

    log = _logger()
    log.drain()  # what an earlier build has left
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise Refused("E-RTX-PARSE", _parser_faults(parser))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # lists the layers in the log
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    config.num_compute_capabilities = 1
    sm = getattr(trt.ComputeCapability, COMPUTE_CAPABILITIES[compute_capability])
    config.set_compute_capability(sm, 0)
    if max_batch > 1:
        image = network.get_input(0)
        single, full = ((batch, *list(image.shape)[1:]) for batch in (1, max_batch))
        profile = builder.create_optimization_profile()
        profile.set_shape(image.name, min=single, opt=single, max=full)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    messages = log.drain()
    if plan is None:
        errors = [_one_line(text) for severity, text in messages if severity == "ERROR"]
        raise EngineError(
            "E-RTX-BUILD", f"no plan for {compute_capability}: {'; '.join(errors) or 'no reason'}"
        )
    texts = [text for _, text in messages]
    return RtxPlan(
        plan=bytes(plan),
        layers=layers_from_log(texts),
        weights_bytes=_bytes_from_log(texts, "Total Weights Memory"),
        activation_bytes=_bytes_from_log(texts, "Total Activation Memory"),
        compute_capability=compute_capability,
        version=str(trt.__version__),
    )


@functools.cache
def _logger() -> Any:
    """Return the process's one logger; the library warns of each further one."""
    import tensorrt_rtx as trt

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._messages: list[tuple[str, str]] = []

        def log(self, severity: trt.ILogger.Severity, message: str) -> None:
            self._messages.append((severity.name.replace("INTERNAL_", ""), message))

        def drain(self) -> list[tuple[str, str]]:
            """Return severity and text of each message since the last call."""
            drained, self._messages = self._messages, []
            return drained

    return Log()


def _parser_faults(parser: trt.OnnxParser) -> str:
    """Return the first fault as one line that names its node and operator."""
    first = parser.get_error(0)
    reason = f"{first.code().name}: {_one_line(first.desc())}"
    if not first.node_operator():
        return f"TensorRT-RTX cannot read the model ({reason}); export it again"
    more = f" and {parser.num_errors - 1} more" if parser.num_errors > 1 else ""
    return (
        f"TensorRT-RTX does not take {first.node_operator()} {first.node_name()!r}{more} "
        f"({reason}); export the model without it"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


# --- the builder's listing -----------------------------------------------------------------------

_LAYER = re.compile(
    r"Name: (?P<name>.+?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"Constants: \[(?P<constants>.*?)\], Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: .*, Metadata: (?P<origins>.*)"
)
_TYPE = re.compile(r"Datatype: (\w+)")
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\x1f]+)\]")  # the list is separated by \x1f


def layers_from_log(messages: Sequence[str]) -> tuple[PlanLayer, ...]:
    """Read the layers from the one message that lists them.

    Raises EngineError (E-RTX-AUDIT) when there is not exactly one such message, it lists nothing,
    or a line of it is not understood.
    """
    listings = [text for text in messages if text.startswith("Layers:\n")]
    if len(listings) != 1:
        raise EngineError(
            "E-RTX-AUDIT",
            f"{len(listings)} listings of layers in the builder's log, expected one; build one "
            "plan at a time",
        )
    layers = tuple(_layers(listings[0]))
    if not layers:
        raise EngineError("E-RTX-AUDIT", "the builder's listing has no layers")
    return layers


def _layers(listing: str) -> Iterator[PlanLayer]:
    for line in listing.split("\n")[1:]:
        if not line:  # tensors and engine facts follow
            return
        found = _LAYER.fullmatch(line)
        if found is None:
            raise EngineError("E-RTX-AUDIT", f"not understood in the builder's log: {line[:200]}")
        yield PlanLayer(
            name=found["name"],
            kind=found["kind"],
            input_type=_first_type(found["inputs"]),
            weight_type=_first_type(found["constants"]),
            output_type=_first_type(found["outputs"]),
            origins=tuple(_ORIGIN.findall(found["origins"])),
        )


def _first_type(tensors: str) -> str:
    found = _TYPE.search(tensors)
    return found[1] if found else ""


def _bytes_from_log(messages: Sequence[str], label: str) -> int:
    for text in messages:
        if found := re.fullmatch(rf"{label}: (\d+) bytes", text.strip()):
            return int(found[1])
    raise EngineError("E-RTX-AUDIT", f"no {label!r} in the builder's log")
