"""Build an engine with the device's own TensorRT, 8.5 to 11, and run it.

Between these versions names come and go: `EXPLICIT_BATCH` is needed in 8, `STRONGLY_TYPED` begins
with 10, and 11 has neither precision flags nor calibrators. What a build asks for and the installed
version lacks is refused, never left out: without its flag an INT8 build would succeed in FP32.
Valid Python 3.8; `tensorrt` comes as an argument, numpy is imported where arrays are made.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Tuple

if TYPE_CHECKING:
    import numpy as np

    from .cuda_buffers import Cuda
    from .kit_files import Build, DeviceError, Kit, Profile, Refused, Tensor
else:
    from kit_files import DeviceError, Refused

# How TensorRT says that memory ran out; the last one names a layer instead, and mostly means it.
_MEMORY = re.compile(
    r"out ?of ?memory|insufficient (device )?memory|cudaErrorMemoryAllocation"
    r"|bad_?alloc|could not find any implementation for node",
    re.IGNORECASE,
)
# Types of tensors -> members of DataType, which has them from 8.5 on.
_DATA_TYPES = {"float32": "FLOAT", "uint8": "UINT8"}


class Log(NamedTuple):
    """What TensorRT said."""

    errors: List[str]
    warnings: List[str]


class Built(NamedTuple):
    """An engine and the timings that it was chosen by."""

    plan: bytes
    timing_cache: Optional[bytes]  # None unless one was asked for


def version_of(trt: Any) -> str:
    """Return the major.minor of the installed TensorRT."""
    return ".".join(trt.__version__.split(".")[:2])


def make_logger(trt: Any, log: Log) -> Any:
    """Return a TensorRT logger that keeps errors and warnings in a log.

    The class is made here because its base comes from `tensorrt`.
    """
    if not hasattr(trt, "ILogger"):
        return trt.Logger(trt.Logger.WARNING)
    severities = trt.ILogger.Severity

    class CollectingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                log.errors.append(message)
            elif severity == severities.WARNING:
                log.warnings.append(message)

    return CollectingLogger()


def build_engine(
    trt: Any,
    logger: Any,
    log: Log,
    build: Build,
    onnx: bytes,
    *,
    workspace_mib: int,
    calibration: Optional[bytes] = None,
    timing_cache: Optional[bytes] = None,
) -> Built:
    """Build one precision.

    Args:
        trt: the `tensorrt` module.
        logger: of `make_logger`, which fills `log`.
        log: read when a build fails.
        build: what to build.
        onnx: content of `build.onnx`.
        workspace_mib: most memory that a layer may use while it runs.
        calibration: content of `build.cache`.
        timing_cache: b"" to begin one, None to use none.

    Raises:
        Refused: E-KIT-RECIPE, E-KIT-DLA, E-KIT-TIMING.
        DeviceError: E-KIT-PARSE, E-KIT-MEMORY, E-KIT-BUILD.
    """
    builder = trt.Builder(logger)
    _require_dla(builder, build)
    network = builder.create_network(_network_flags(trt, build))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx):
        raise DeviceError("E-KIT-PARSE", _parser_errors(build, parser))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else nothing can be audited
    if build.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default, with 10 bits of mantissa
    for name in build.flags:
        config.set_flag(_named(trt, "BuilderFlag", name, build))
    profile = build.profile
    if profile is not None:
        config.add_optimization_profile(_profile(builder, profile, profile.min, profile.max))
    if calibration is not None:
        config.int8_calibrator = _cache_only_calibrator(trt, build, calibration)
        if profile is not None:  # one of its own: TensorRT writes over its least and largest shape
            single = _profile(builder, profile, profile.opt, profile.opt)
            config.set_calibration_profile(single)
    if build.dla_core is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = build.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if timing_cache is not None:
        cache = config.create_timing_cache(timing_cache)
        if not config.set_timing_cache(cache, False):  # do not ignore a mismatch
            message = "the timing cache is of another device or TensorRT; delete it and run again"
            raise Refused("E-KIT-TIMING", message)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _build_error(log, build, workspace_mib)
    timings = bytes(config.get_timing_cache().serialize()) if timing_cache is not None else None
    return Built(bytes(plan), timings)


def _profile(builder: Any, profile: Profile, least: Any, most: Any) -> Any:
    made = builder.create_optimization_profile()
    made.set_shape(profile.input, least, profile.opt, most)
    return made


def _network_flags(trt: Any, build: Build) -> int:
    """Return the argument of `create_network`."""
    major = int(trt.__version__.split(".")[0])
    if build.typed:
        if build.flags or build.cache:
            message = f"the {build.title} build is typed, yet has flags or a cache; {_AGAIN}"
            raise Refused("E-KIT-RECIPE", message)
        if major >= 11:  # always typed
            return 0
        return 1 << int(_named(trt, "NetworkDefinitionCreationFlag", "STRONGLY_TYPED", build))
    if major >= 11:
        message = (
            f"the {build.title} build is weakly typed, which TensorRT {trt.__version__} "
            f"no longer builds; {_AGAIN}"
        )
        raise Refused("E-KIT-RECIPE", message)
    if major == 8:
        return 1 << int(_named(trt, "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", build))
    return 0


_AGAIN = "export the kit again for the target that `edgeseg targets` lists for this JetPack"


def _named(trt: Any, owner: str, name: str, build: Build) -> Any:
    """Return trt.<owner>.<name>, or refuse where this TensorRT has no such name."""
    value = getattr(getattr(trt, owner), name, None)
    if value is None:
        message = (
            f"the {build.title} build needs {owner}.{name}, which TensorRT {trt.__version__} "
            f"does not have; {_AGAIN}"
        )
        raise Refused("E-KIT-RECIPE", message)
    return value


def _require_dla(builder: Any, build: Build) -> None:
    if build.dla_core is not None and build.dla_core >= builder.num_DLA_cores:
        message = (
            f"the {build.title} build is for DLA core {build.dla_core}, and TensorRT finds "
            f"{builder.num_DLA_cores} DLA cores here; {_AGAIN}"
        )
        raise Refused("E-KIT-DLA", message)


def _cache_only_calibrator(trt: Any, build: Build, calibration: bytes) -> Any:
    """Return a calibrator that hands out the kit's cache and never asks for images."""
    if not hasattr(trt, "IInt8EntropyCalibrator2"):
        message = (
            f"the {build.title} build needs a calibration cache, which TensorRT "
            f"{trt.__version__} no longer reads; {_AGAIN}"
        )
        raise Refused("E-KIT-RECIPE", message)

    class CacheOnlyCalibrator(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: List[str]) -> None:
            return None

        def read_calibration_cache(self) -> bytes:
            return calibration

        def write_calibration_cache(self, cache: bytes) -> None:
            """Leave the kit's file as it is."""

    return CacheOnlyCalibrator()


def _parser_errors(build: Build, parser: Any) -> str:
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # Before 10 the parser knows only the number of the node.
        named = hasattr(error, "node_name")
        where = f"{error.node_name()} ({error.node_operator()})" if named else error.node()
        lines.append(f"node {where}: {error.desc()}")
    return f"TensorRT cannot read {build.onnx}: {'; '.join(lines)}"


def _build_error(log: Log, build: Build, workspace_mib: int) -> DeviceError:
    said = "; ".join(log.errors[-3:]) or "TensorRT gave no reason"
    if any(_MEMORY.search(each) for each in log.errors):
        return memory_error(f"the {build.title} build", workspace_mib, said)
    return DeviceError("E-KIT-BUILD", f"TensorRT built no {build.title} engine: {said}")


def memory_error(what: str, workspace_mib: int, said: str) -> DeviceError:
    """Say that memory ran out, and what to do about it."""
    message = (
        f"{what} ran out of memory, most likely ({said}); close other programs and the desktop, "
        f"add swap, or give less than --workspace-mib {workspace_mib}"
    )
    return DeviceError("E-KIT-MEMORY", message)


def load_engine(trt: Any, logger: Any, log: Log, plan: bytes, build: Build) -> Any:
    """Return the engine of a plan that was built here: a plan is code, so take no other.

    Raises:
        DeviceError: E-KIT-BUILD: it does not load.
        Refused: E-KIT-TENSORS: its inputs and outputs are not those of the build.
    """
    runtime = trt.Runtime(logger)
    if build.dla_core is not None:
        runtime.DLA_core = build.dla_core
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        said = "; ".join(log.errors[-3:]) or "TensorRT gave no reason"
        raise DeviceError("E-KIT-BUILD", f"the engine does not load: {said}")
    found = sorted(
        (name, tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name).name)
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
    )
    wanted = sorted(
        (tensor.name, _shape_of(tensor, build), _DATA_TYPES[tensor.dtype])
        for tensor in (build.input, *build.outputs)
    )
    if found != wanted:
        message = f"the engine has {found}, kit.json names {wanted}; {_AGAIN}"
        raise Refused("E-KIT-TENSORS", message)
    return engine


def _shape_of(tensor: Tensor, build: Build) -> Tuple[int, ...]:
    return tensor.shape if build.profile is None else (-1, *tensor.shape[1:])


def inspect_engine(trt: Any, engine: Any) -> str:
    """Return what the engine tells about its layers, as JSON."""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def run_engine(
    engine: Any, cuda: Cuda, kit: Kit, build: Build, frames: np.ndarray, *, batch: int = 1
) -> Dict[str, np.ndarray]:
    """Run frames one by one, or in batches.

    Args:
        engine: of `load_engine`.
        cuda: moves the frames.
        kit: that the engine is of.
        build: that the engine is of.
        frames: [N, 1, H, W] of the input's type, N a multiple of `batch`.
        batch: frames a call; other than 1 only for a build with a profile.

    Returns:
        Output by name, [N, 1, H, W] of its type.

    Raises:
        DeviceError: E-KIT-MEMORY, E-KIT-RUN.
        CudaError: of the provider.
    """
    import numpy as np

    context = engine.create_execution_context()
    if context is None:
        raise memory_error("the execution context", kit.workspace_mib, "TensorRT made none")
    answers = {
        tensor.name: np.empty((len(frames), *tensor.shape[1:]), tensor.dtype)
        for tensor in build.outputs
    }
    stream = cuda.create_stream()
    tensors = (build.input, *build.outputs)
    addresses = {tensor.name: cuda.alloc(batch * tensor.nbytes) for tensor in tensors}
    frames = np.ascontiguousarray(frames)
    try:
        if build.profile is not None:
            shape = (batch, *build.input.shape[1:])
            if not context.set_input_shape(build.input.name, shape):
                raise DeviceError("E-KIT-RUN", f"TensorRT does not take a batch of {batch}")
        for name, address in addresses.items():
            context.set_tensor_address(name, address)
        for start in range(0, len(frames), batch):
            cuda.copy_to_device(addresses[build.input.name], frames[start : start + batch])
            if not context.execute_async_v3(stream):
                raise DeviceError("E-KIT-RUN", "TensorRT did not run the engine")
            cuda.synchronise(stream)
            for name, answer in answers.items():
                cuda.copy_to_host(answer[start : start + batch], addresses[name])
    finally:
        for address in addresses.values():
            cuda.free(address)
    return answers
