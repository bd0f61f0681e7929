"""A stand-in for the `tensorrt` module, made from a recorded surface of one version.

It has the names that the version has and no other, so that touching a name of another version
raises AttributeError as the real module would. It records what is called, and does what a `World`
says. Nothing is computed by TensorRT here: what an engine answers is the test's own function.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

SURFACES = Path(__file__).parents[2] / "export" / "surfaces"
VERSIONS = tuple(
    sorted(
        (file.stem.split("-")[1] for file in SURFACES.glob("tensorrt-*.json")),
        key=lambda version: [int(part) for part in version.split(".")],
    )
)
_READ_ONLY = {"Builder.num_DLA_cores", "OnnxParser.num_errors", "ICudaEngine.num_io_tensors"}
_TYPES = {"FLOAT": np.float32, "UINT8": np.uint8}
_UNRECORDED = {"get_error", "node", "node_name", "node_operator", "desc"}  # they change nothing


def read_surface(version: str) -> dict[str, Any]:
    """Return the recorded names of one version, such as "10.3"."""
    return json.loads((SURFACES / f"tensorrt-{version}.json").read_text(encoding="utf-8"))


@dataclass
class World:
    """What TensorRT finds and does on the device that is played."""

    # The input [1, 1, H, W] -> the output, or a tuple of all outputs; types as in `tensors`.
    network: Callable[[np.ndarray], Any]
    information: str  # what the engine inspector prints
    tensors: tuple[tuple[str, tuple[int, ...], str], ...]  # name, shape, name of its DataType
    plan: bytes | None = b"plan"
    said: tuple[tuple[str, str], ...] = ()  # (severity, message) that the build logs
    parser_errors: tuple[tuple[int, str, str, str], ...] = ()  # node, its name, operator, text
    dla_cores: int = 0
    most_frames: int = 1  # that an engine with a dynamic batch takes
    takes_timings: bool = True
    loads: bool = True  # whether plans and contexts are what comes of them
    runs: bool = True
    calls: list[str] = field(default_factory=list)
    calibration: bytes | None = None  # what the calibrator handed out
    timings: bytes | None = None  # what the timing cache began with


def install(monkeypatch: Any, version: str, world: World) -> ModuleType:
    """Make `import tensorrt` give the stand-in of a version until the test ends."""
    module = make_tensorrt(read_surface(version), world)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def make_tensorrt(surface: dict[str, Any], world: World) -> ModuleType:
    """Return a module with exactly the names of a surface."""
    module = ModuleType("tensorrt")
    enums = {name: IntEnum(name, members) for name, members in surface["enums"].items()}
    for name in surface["module"]:
        setattr(module, name, enums.get(name, object()))
    for name, members in surface["classes"].items():
        setattr(module, name, _make_class(name, members, module, enums, world))
    module.__version__ = surface["tensorrt"]
    module.__spec__ = ModuleSpec("tensorrt", None)  # `importlib.util.find_spec` asks for it
    return module


def _make_class(
    name: str, members: list[str], module: Any, enums: dict[str, Any], world: World
) -> type:
    severities = enums["Logger.Severity"]

    def initialise(self: Any, *arguments: Any) -> None:
        object.__setattr__(self, "made", arguments)  # pybind needs its __init__ called as well
        for argument in arguments:
            _require_made(argument)
        if hasattr(_Played, f"{name}_init"):
            getattr(_Played, f"{name}_init")(world, self, *arguments)

    def set_attribute(self: Any, attribute: str, value: Any) -> None:
        if attribute not in members:
            raise AttributeError(f"{name} has no attribute {attribute}")
        _require_made(value)
        world.calls.append(f"{attribute} = {_show(value)}")
        object.__setattr__(self, attribute, value)

    space: dict[str, Any] = {"__init__": initialise, "__setattr__": set_attribute}
    for member in members:
        if member == "Severity":
            space[member] = severities
        elif member in severities.__members__ and "Logger" in name:
            space[member] = severities[member]
        else:
            space[member] = _make_member(name, member, module, world)
    if name == "IHostMemory":
        space["__bytes__"] = lambda self: self.made[0]
    return type(name, (), space)


def _make_member(owner: str, member: str, module: Any, world: World) -> Any:
    play: Any = getattr(_Played, f"{owner}_{member}", None)
    if play is None:
        return None  # an attribute that nobody set, or a method that nobody should call
    if f"{owner}.{member}" in _READ_ONLY:
        return property(lambda self: play(world, self))

    def method(self: Any, *arguments: Any) -> Any:
        if member not in _UNRECORDED:
            shown = (_show_network_flags(module, each) for each in arguments)
            shown = shown if member == "create_network" else map(_show, arguments)
            world.calls.append(" ".join([member, *filter(None, shown)]))
        for argument in arguments:
            _require_made(argument)
        return play(world, self, module, *arguments)

    return method


def _require_made(value: Any) -> None:
    bases = [base.__name__ for base in type(value).__mro__[1:]]
    if {"ILogger", "IInt8EntropyCalibrator2"} & set(bases) and not hasattr(value, "made"):
        raise TypeError(f"{type(value).__name__}: __init__ of its base was not called")


def _show(value: Any) -> str:
    if isinstance(value, IntEnum):
        return value.name
    if isinstance(value, (int, str)):
        return str(value)
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return "" if isinstance(value, bytes) else type(value).__name__


def _show_network_flags(module: Any, bits: int) -> str:
    flags = module.NetworkDefinitionCreationFlag
    names = [name for name, bit in flags.__members__.items() if bits >> bit & 1]
    assert bits == sum(1 << flags[name] for name in names), f"unknown network flag in {bits:b}"
    return "+".join(names) or "0"


class _Played:
    """CLASS_member: what a member does, called with (world, self, module, *arguments)."""

    @staticmethod
    def Builder_init(world: World, self: Any, logger: Any) -> None:
        object.__setattr__(self, "own_logger", logger)

    @staticmethod
    def Builder_create_network(world: World, self: Any, module: Any, flags: int) -> Any:
        return module.INetworkDefinition()

    @staticmethod
    def Builder_create_builder_config(world: World, self: Any, module: Any) -> Any:
        return module.IBuilderConfig()

    @staticmethod
    def Builder_create_optimization_profile(world: World, self: Any, module: Any) -> Any:
        return module.IOptimizationProfile()

    @staticmethod
    def IOptimizationProfile_set_shape(
        world: World, self: Any, module: Any, name: str, least: Any, opt: Any, most: Any
    ) -> None:
        assert least <= opt <= most

    @staticmethod
    def IBuilderConfig_add_optimization_profile(
        world: World, self: Any, module: Any, profile: Any
    ) -> int:
        return 0

    @staticmethod
    def IBuilderConfig_set_calibration_profile(
        world: World, self: Any, module: Any, profile: Any
    ) -> bool:
        return True

    @staticmethod
    def Builder_num_DLA_cores(world: World, self: Any) -> int:
        return world.dla_cores

    @staticmethod
    def Builder_build_serialized_network(
        world: World, self: Any, module: Any, network: Any, config: Any
    ) -> Any:
        for severity, message in world.said:
            self.own_logger.log(module.Logger.Severity[severity], message)
        calibrator = getattr(config, "int8_calibrator", None)
        if calibrator is not None:
            assert calibrator.get_batch_size() == 1
            assert calibrator.get_batch(["image"]) is None
            world.calibration = calibrator.read_calibration_cache()
            calibrator.write_calibration_cache(b"other")
        return None if world.plan is None else module.IHostMemory(world.plan)

    @staticmethod
    def OnnxParser_parse(world: World, self: Any, module: Any, model: bytes) -> bool:
        assert isinstance(model, bytes)
        return not world.parser_errors

    @staticmethod
    def OnnxParser_num_errors(world: World, self: Any) -> int:
        return len(world.parser_errors)

    @staticmethod
    def OnnxParser_get_error(world: World, self: Any, module: Any, index: int) -> Any:
        return module.ParserError(index)

    @staticmethod
    def ParserError_node(world: World, self: Any, module: Any) -> int:
        return world.parser_errors[self.made[0]][0]

    @staticmethod
    def ParserError_node_name(world: World, self: Any, module: Any) -> str:
        return world.parser_errors[self.made[0]][1]

    @staticmethod
    def ParserError_node_operator(world: World, self: Any, module: Any) -> str:
        return world.parser_errors[self.made[0]][2]

    @staticmethod
    def ParserError_desc(world: World, self: Any, module: Any) -> str:
        return world.parser_errors[self.made[0]][3]

    @staticmethod
    def IBuilderConfig_set_memory_pool_limit(
        world: World, self: Any, module: Any, pool: Any, size: int
    ) -> None:
        assert isinstance(pool, module.MemoryPoolType)

    @staticmethod
    def IBuilderConfig_set_flag(world: World, self: Any, module: Any, flag: Any) -> None:
        assert isinstance(flag, module.BuilderFlag)

    @staticmethod
    def IBuilderConfig_clear_flag(world: World, self: Any, module: Any, flag: Any) -> None:
        assert isinstance(flag, module.BuilderFlag)

    @staticmethod
    def IBuilderConfig_create_timing_cache(
        world: World, self: Any, module: Any, content: bytes
    ) -> Any:
        world.timings = content
        return module.ITimingCache()

    @staticmethod
    def IBuilderConfig_set_timing_cache(
        world: World, self: Any, module: Any, cache: Any, ignore_mismatch: bool
    ) -> bool:
        return world.takes_timings

    @staticmethod
    def IBuilderConfig_get_timing_cache(world: World, self: Any, module: Any) -> Any:
        return module.ITimingCache()

    @staticmethod
    def ITimingCache_serialize(world: World, self: Any, module: Any) -> Any:
        return module.IHostMemory(b"timings")

    @staticmethod
    def Runtime_deserialize_cuda_engine(world: World, self: Any, module: Any, plan: bytes) -> Any:
        assert plan == world.plan
        return module.ICudaEngine() if world.loads else None

    @staticmethod
    def ICudaEngine_num_io_tensors(world: World, self: Any) -> int:
        return len(world.tensors)

    @staticmethod
    def ICudaEngine_get_tensor_name(world: World, self: Any, module: Any, index: int) -> str:
        return world.tensors[index][0]

    @staticmethod
    def ICudaEngine_get_tensor_shape(world: World, self: Any, module: Any, name: str) -> Any:
        return next(shape for each, shape, _ in world.tensors if each == name)

    @staticmethod
    def ICudaEngine_get_tensor_mode(world: World, self: Any, module: Any, name: str) -> Any:
        first = world.tensors[0][0]
        return module.TensorIOMode.INPUT if name == first else module.TensorIOMode.OUTPUT

    @staticmethod
    def ICudaEngine_get_tensor_dtype(world: World, self: Any, module: Any, name: str) -> Any:
        return module.DataType[next(dtype for each, _, dtype in world.tensors if each == name)]

    @staticmethod
    def ICudaEngine_create_engine_inspector(world: World, self: Any, module: Any) -> Any:
        return module.EngineInspector()

    @staticmethod
    def ICudaEngine_create_execution_context(world: World, self: Any, module: Any) -> Any:
        return module.IExecutionContext({}) if world.runs else None

    @staticmethod
    def EngineInspector_get_engine_information(
        world: World, self: Any, module: Any, layout: Any
    ) -> str:
        assert layout == module.LayerInformationFormat.JSON
        return world.information

    @staticmethod
    def IExecutionContext_set_input_shape(
        world: World, self: Any, module: Any, name: str, shape: tuple[int, ...]
    ) -> bool:
        self.made[0]["shape"] = shape
        return shape[0] <= world.most_frames

    @staticmethod
    def IExecutionContext_set_tensor_address(
        world: World, self: Any, module: Any, name: str, address: int
    ) -> bool:
        self.made[0][name] = address
        return True

    @staticmethod
    def IExecutionContext_execute_async_v3(
        world: World, self: Any, module: Any, stream: int
    ) -> bool:
        (source, shape, kind), *outputs = world.tensors
        # The address table holds the shape as well, where the engine's is dynamic.
        frame = np.empty(self.made[0]["shape"] if -1 in shape else shape, _TYPES[kind])
        ctypes.memmove(frame.ctypes.data, self.made[0][source], frame.nbytes)
        answers = world.network(frame)
        answers = answers if isinstance(answers, tuple) else (answers,)
        for (target, _, kind), answer in zip(outputs, answers, strict=True):
            array = np.ascontiguousarray(answer, _TYPES[kind])
            ctypes.memmove(self.made[0][target], array.ctypes.data, array.nbytes)
        return True
