"""The build kit on a device that is played: TensorRT from its recorded surfaces, CUDA from fakes.

What no test here can tell: whether a real TensorRT builds these networks.
"""

from __future__ import annotations

import ast
import ctypes
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from edgeseg.export.kit import FILES
from edgeseg.export.parity import exact_run
from edgeseg.export.pipeline import Limits, export_bundle, load_trained
from edgeseg.export.plan import make_plan
from edgeseg.export.target import find_target
from edgeseg.tests.support import tensorrt_standin as standin

pytestmark = pytest.mark.long

KIT = Path(__file__).parents[2] / "export" / "kit"
MODULES = [Path(name).stem for name in FILES]
SHAPE = (1, 1, 4, 6)
FLOAT, HALF, INT8 = "Row major linear FP32", "Half", "Row major Int8 format"


def network(frame):
    return frame * 4 - 2


def frames(count=3):
    return np.random.default_rng(0).random((count, *SHAPE[1:]), dtype=np.float32)


# --- a kit, a device and the command -------------------------------------------------------------


def build(**changes):
    recipe = {"onnx": "model.onnx", "typed": True, "flags": [], "cache": None, "dla_core": None}
    return {**recipe, "min_share": 0.9, **changes}


def seal(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in files
        if path.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def write_kit(folder, version, recipes, **changes):
    """Write a kit as `edgeseg export` does."""
    (folder / "vectors").mkdir(parents=True)
    for name in FILES:
        shutil.copy(KIT / name, folder)
    (folder / "model.onnx").write_bytes(b"onnx")
    (folder / "calib.cache").write_bytes(b"cache")
    (folder / "manifest.json").write_text("{}")
    np.save(folder / "vectors" / "input.npy", frames())
    np.save(folder / "vectors" / "expected.npy", network(frames()))
    content = {
        "schema": "edgeseg.kit/1",
        "target": "some-board@jp",
        "tensorrt": version,
        "compute_capability": "8.7",
        "default": next(iter(recipes)),
        "input": {"name": "image", "shape": SHAPE},
        "output": {"name": "logits", "shape": SHAPE},
        "profile": None,
        "logit_threshold": 0.0,
        "workspace_mib": 256,
        "builds": recipes,
        "vectors": {
            "input": "vectors/input.npy",
            "expected": dict.fromkeys(recipes, "vectors/expected.npy"),
            "max_flipped": dict.fromkeys(recipes, 0.02),
        },
        "frame": None,
    }
    (folder / "kit.json").write_text(json.dumps({**content, **changes}))
    seal(folder)
    return folder


def convolution(datatype, **changes):
    """One layer as the engine inspector prints it: 3 x 3 taps, 8 to 16 channels, 4 x 6 pixels."""
    layer = {
        "Name": "/enc/conv/Conv",
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "a", "Dimensions": [1, 8, 4, 6], "Format/Datatype": datatype}],
        "Outputs": [{"Name": "b", "Dimensions": [1, 16, 4, 6], "Format/Datatype": datatype}],
        "ParameterType": "Convolution",
        "Kernel": [3, 3],
        "PrePadding": [1, 1],
        "PostPadding": [1, 1],
        "Stride": [1, 1],
        "Dilation": [1, 1],
        "OutMaps": 16,
        "Groups": 1,
        "Weights": {"Type": "Float", "Count": 1152},
    }
    return {**layer, **changes}


def information(*layers):
    return json.dumps({"Layers": layers, "Bindings": ["image", "logits"]})


def make_world(datatype, **changes):
    tensors = (("image", SHAPE, "FLOAT"), ("logits", SHAPE, "FLOAT"))
    return standin.World(network, information(convolution(datatype)), tensors, **changes)


Error = IntEnum(
    "Error",
    {
        "cudaSuccess": 0,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorLaunchFailure": 719,
    },
)


class FakeCuda:
    """Device memory that is host memory: `live` holds what was not freed."""

    def __init__(self):
        self.live = {}
        self.failing = {}  # name of a call -> the error that it gives

    def answer(self, name, work, *arguments):
        error = self.failing.get(name)
        return (error, None) if error else (Error.cudaSuccess, *work(*arguments))

    def alloc(self, size):
        block = ctypes.create_string_buffer(size)
        self.live[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address):
        del self.live[address]
        return ()

    def copy(self, target, source, size):
        ctypes.memmove(target, source, size)
        return ()


def fake_cuda_python(monkeypatch, capability=(8, 7)):
    """Install cuda.bindings.runtime, whose calls give tuples that begin with the error."""
    cuda = FakeCuda()
    runtime = ModuleType("cuda.bindings.runtime")
    attributes = ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor")
    runtime.cudaDeviceAttr = SimpleNamespace(**{name: name for name in attributes})
    runtime.cudaMemcpyKind = SimpleNamespace(
        cudaMemcpyHostToDevice="to device", cudaMemcpyDeviceToHost="to host"
    )

    def function(name, work=lambda *arguments: ()):
        setattr(runtime, name, lambda *arguments: cuda.answer(name, work, *arguments))

    function("cudaSetDevice")
    function("cudaRuntimeGetVersion", lambda: (12060,))
    function("cudaDriverGetVersion", lambda: (12020,))
    function("cudaMemGetInfo", lambda: (1 << 30, 2 << 30))
    function("cudaDeviceGetAttribute", lambda which, _: (capability[attributes.index(which)],))
    function("cudaMalloc", lambda size: (cuda.alloc(size),))
    function("cudaFree", cuda.free)
    function("cudaMemcpy", lambda to, source, size, kind: cuda.copy(to, source, size))
    function("cudaStreamCreate", lambda: (7,))
    function("cudaStreamSynchronize", lambda stream: {7: ()}[stream])
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", runtime)
    return cuda


@pytest.fixture
def build_engine(monkeypatch):
    """The command's module, as it lies in a checkout."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "export" / "kit")
    return importlib.import_module("build_engine")


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Return a function that runs the command of a kit: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    cuda = fake_cuda_python(monkeypatch)

    def load(folder):
        for name in MODULES:
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(folder)
        return importlib.import_module("build_engine")

    def run(folder, *arguments):
        try:
            code = load(folder).main([str(each) for each in arguments])
        except SystemExit as left:  # argparse
            code = left.code
        return (code, *capsys.readouterr())

    run.cuda, run.load = cuda, load
    yield run
    for name in MODULES:
        sys.modules.pop(name, None)


def refusal_of(done):
    """Return the exit code and the stable code of the one line on stderr."""
    code, stdout, stderr = done
    line = stderr.splitlines()[-1]
    assert line.startswith("build_engine: E-KIT-")
    assert stdout == ""
    return code, line.split(": ")[1]


# --- what is called, version by version ----------------------------------------------------------


class Row(NamedTuple):
    """One legal recipe of a family of versions and what the builder does for it."""

    major: str
    name: str
    precision: str
    build: dict
    network: str  # flag of create_network
    steps: tuple  # between the verbosity and the build


WEAK = {"typed": False}
FP16, INT8_FP16 = {**WEAK, "flags": ["FP16"]}, {**WEAK, "flags": ["FP16", "INT8"]}
CACHE, DLA = {"cache": "calib.cache"}, {"dla_core": 0}
ON_DLA = ("default_device_type = DLA", "DLA_core = 0", "set_flag GPU_FALLBACK")
NO_TF32 = ("clear_flag TF32",)
CALIBRATED = ("set_flag FP16", "set_flag INT8", "int8_calibrator = CacheOnlyCalibrator")
ROWS = [
    # 8: the batch is explicit, flags say what may be used
    Row("8", "fp32", "fp32", WEAK, "EXPLICIT_BATCH", NO_TF32),
    Row("8", "fp16", "fp16", FP16, "EXPLICIT_BATCH", ("set_flag FP16",)),
    Row("8", "int8", "int8", INT8_FP16, "EXPLICIT_BATCH", ("set_flag FP16", "set_flag INT8")),
    Row("8", "int8 cache", "int8", {**INT8_FP16, **CACHE}, "EXPLICIT_BATCH", CALIBRATED),
    Row("8", "fp16 DLA", "fp16", {**FP16, **DLA}, "EXPLICIT_BATCH", ("set_flag FP16", *ON_DLA)),
    Row(
        *("8", "int8 DLA", "int8", {**INT8_FP16, **CACHE, **DLA}, "EXPLICIT_BATCH"),
        (*CALIBRATED, *ON_DLA),
    ),
    Row(
        *("8", "fp16 obeyed", "fp16", {**WEAK, "flags": ["FP16", "OBEY_PRECISION_CONSTRAINTS"]}),
        *("EXPLICIT_BATCH", ("set_flag FP16", "set_flag OBEY_PRECISION_CONSTRAINTS")),
    ),
    # 10: the types of the ONNX bind on the GPU; the DLA takes the way of 8 without its flag
    Row("10", "fp32", "fp32", {}, "STRONGLY_TYPED", NO_TF32),
    Row("10", "fp16", "fp16", {}, "STRONGLY_TYPED", ()),
    Row("10", "int8", "int8", {}, "STRONGLY_TYPED", ()),
    Row("10", "int8 cache", "int8", {**INT8_FP16, **CACHE}, "0", CALIBRATED),
    Row("10", "fp16 DLA", "fp16", {**FP16, **DLA}, "0", ("set_flag FP16", *ON_DLA)),
    Row("10", "int8 DLA", "int8", {**INT8_FP16, **CACHE, **DLA}, "0", (*CALIBRATED, *ON_DLA)),
    # 11: the types of the ONNX always bind
    Row("11", "fp32", "fp32", {}, "0", NO_TF32),
    Row("11", "fp16", "fp16", {}, "0", ()),
    Row("11", "int8", "int8", {}, "0", ()),
    Row("11", "int8 DLA", "int8", DLA, "0", ON_DLA),
]
DATATYPES = {"fp32": FLOAT, "fp16": HALF, "int8": INT8}
CASES = [(v, row) for v in standin.VERSIONS for row in ROWS if v.split(".")[0] == row.major]


def test_surfaces_of_six_versions_are_recorded_with_source_and_date():
    assert standin.VERSIONS == ("8.5", "8.6", "10.3", "10.13", "10.16", "11.4")
    for version in standin.VERSIONS:
        surface = standin.read_surface(version)
        assert surface["schema"] == "edgeseg.tensorrt-surface/1"
        assert surface["tensorrt"].startswith(version + ".")
        assert surface["source"]
        assert surface["recorded"]


@pytest.mark.parametrize(("version", "row"), CASES, ids=[f"{v} {row.name}" for v, row in CASES])
def test_builder_calls_what_its_row_says_and_touches_no_name_that_the_version_lacks(
    version, row, command, monkeypatch, tmp_path
):
    folder = write_kit(tmp_path / "kit", version, {row.precision: build(**row.build)})
    world = make_world(DATATYPES[row.precision], dla_cores=2)
    standin.install(monkeypatch, version, world)
    code, _, stderr = command(folder)
    assert code == 0, stderr
    built = world.calls.index("build_serialized_network INetworkDefinition IBuilderConfig")
    assert world.calls[:built] == [
        f"create_network {row.network}",
        "parse",
        "create_builder_config",
        "set_memory_pool_limit WORKSPACE 268435456",
        "profiling_verbosity = DETAILED",
        *row.steps,
    ]
    on_dla = ["DLA_core = 0"] if "dla_core" in row.build else []
    each_frame = ["execute_async_v3 7"] * 3
    assert [each for each in world.calls[built + 1 :] if "tensor" not in each] == [
        *on_dla,  # a DLA engine has to be loaded for its core
        "deserialize_cuda_engine",
        "create_engine_inspector",
        "get_engine_information JSON",
        "create_execution_context",
        *each_frame,
    ]
    assert world.calibration == (b"cache" if "cache" in row.build else None)
    assert command.cuda.live == {}


SINGLE, FULL = SHAPE, (4, *SHAPE[1:])
PROFILE = {"profile": {"min": SINGLE, "opt": SINGLE, "max": FULL}}


def dynamic_world(datatype, **changes):
    """A device whose engine has a dynamic batch, up to the profile's."""
    world = make_world(datatype, most_frames=4, **changes)
    world.tensors = tuple((name, (-1, *shape[1:]), kind) for name, shape, kind in world.tensors)
    return world


# No profile goes to the DLA, which takes static shapes.
BATCHED = [(version, row) for version, row in CASES if "dla_core" not in row.build]


@pytest.mark.parametrize(("version", "row"), BATCHED, ids=[f"{v} {row.name}" for v, row in BATCHED])
def test_dynamic_batch_has_a_profile_in_every_version_and_is_proved_full(
    version, row, command, monkeypatch, tmp_path
):
    folder = write_kit(tmp_path / "kit", version, {row.precision: build(**row.build)}, **PROFILE)
    world = dynamic_world(DATATYPES[row.precision])
    standin.install(monkeypatch, version, world)
    code, _, stderr = command(folder)
    assert code == 0, stderr
    single, full = "1x1x4x6", "4x1x4x6"
    added = [
        "create_optimization_profile",
        f"set_shape image {single} {single} {full}",  # tuned for one frame
        "add_optimization_profile IOptimizationProfile",
    ]
    first = world.calls.index(added[0])
    assert world.calls[first : first + 3] == added
    # A calibrator wants a profile of its own, whose shapes TensorRT makes one.
    own = f"set_shape image {single} {single} {single}"
    assert (own in world.calls) == ("cache" in row.build)
    assert ("set_calibration_profile IOptimizationProfile" in world.calls) == ("cache" in row.build)
    run = [each for each in world.calls if each.startswith(("set_input_shape", "execute"))]
    assert run == [
        f"set_input_shape image {single}",
        *["execute_async_v3 7"] * 3,
        f"set_input_shape image {full}",
        "execute_async_v3 7",
    ]
    assert command.cuda.live == {}


def test_frame_that_is_answered_otherwise_in_a_full_batch_is_refused(
    command, monkeypatch, tmp_path
):
    folder = write_kit(tmp_path / "kit", "10.3", {"fp16": build()}, **PROFILE)
    world = dynamic_world(HALF)
    world.network = lambda frames: network(frames) * (1 if len(frames) == 1 else -1)
    standin.install(monkeypatch, "10.3", world)
    assert refusal_of(command(folder)) == (3, "E-KIT-VECTORS")


def test_engine_that_takes_no_full_batch_is_an_error(command, monkeypatch, tmp_path):
    folder = write_kit(tmp_path / "kit", "10.3", {"fp16": build()}, **PROFILE)
    world = dynamic_world(HALF)
    world.most_frames = 1
    standin.install(monkeypatch, "10.3", world)
    assert refusal_of(command(folder)) == (4, "E-KIT-RUN")


def test_engine_with_static_shapes_is_not_that_of_a_kit_with_a_profile(
    command, monkeypatch, tmp_path
):
    folder = write_kit(tmp_path / "kit", "10.3", {"fp16": build()}, **PROFILE)
    standin.install(monkeypatch, "10.3", make_world(HALF))
    assert refusal_of(command(folder)) == (3, "E-KIT-TENSORS")


def test_stand_in_has_no_name_that_its_version_lacks():
    eleven = standin.make_tensorrt(standin.read_surface("11.4"), make_world(FLOAT))
    eight = standin.make_tensorrt(standin.read_surface("8.5"), make_world(FLOAT))
    for owner, gone in ((eleven.BuilderFlag, "FP16"), (eleven, "IInt8EntropyCalibrator2")):
        with pytest.raises(AttributeError):
            getattr(owner, gone)
    with pytest.raises(AttributeError):
        eight.NetworkDefinitionCreationFlag.STRONGLY_TYPED  # noqa: B018
    with pytest.raises(AttributeError):
        eleven.IBuilderConfig().int8_calibrator = None
    with pytest.raises(AttributeError):
        eight.Builder(None).create_netwrok(0)


# --- kits that were exported ---------------------------------------------------------------------

EXPORTED = (1, 1, 64, 64)
WEAK_FLAGS = {"fp32": [], "fp16": ["FP16"], "int8": ["FP16", "INT8"]}


def play_exported(monkeypatch, version, capability, answer, precision, **changes):
    """Play a device that answers to the frames of a real kit as told."""
    tensors = (("image", EXPORTED, "FLOAT"), ("logits", EXPORTED, "FLOAT"))
    layers = information(convolution(DATATYPES[precision]))
    world = standin.World(answer, layers, tensors, **changes)
    standin.install(monkeypatch, version, world)
    fake_cuda_python(monkeypatch, capability)
    return world


@pytest.mark.parametrize("precision", DATATYPES)
@pytest.mark.parametrize(
    ("target", "version", "capability", "network_flags"),
    [
        ("xavier-nx@jp5.1", "8.5", (7, 2), "EXPLICIT_BATCH"),
        ("jetson", "10.3", (8, 7), "STRONGLY_TYPED"),
        ("agx-orin-64@jp7.2.2", "11.4", (8, 7), "0"),
    ],
)
def test_exported_kit_is_built_and_proved_on_the_device_it_was_made_for(
    target, version, capability, network_flags, precision, command, bundle_of, monkeypatch, tmp_path
):
    folder = bundle_of(target, "auto")
    onnx = folder / json.loads((folder / "kit.json").read_text())["builds"][precision]["onnx"]
    answer = exact_run(onnx.read_bytes(), 1)
    world = play_exported(monkeypatch, version, capability, answer, precision)
    plan = tmp_path / "e.plan"
    code, _, stderr = command(folder, "--precision", precision, "--out", plan)
    assert code == 0, stderr
    assert world.calls[0] == f"create_network {network_flags}"
    flags = [each.split()[1] for each in world.calls if each.startswith("set_flag ")]
    assert flags == (WEAK_FLAGS[precision] if version == "8.5" else [])
    assert world.calibration is None  # its ranges are in the Q/DQ pairs
    facts = json.loads((tmp_path / "e.plan.json").read_text())
    assert facts["onnx_sha256"] == sha256(onnx.read_bytes())
    assert facts["kit_sha256"] == sha256((folder / "SHA256SUMS").read_bytes())
    assert (facts["vectors"]["frames"], facts["vectors"]["flipped_share"]) == (4, 0.0)


def test_exported_kit_builds_fp16_unless_told_otherwise(command, bundle_of, monkeypatch, tmp_path):
    folder = bundle_of("jetson", "auto")
    answer = exact_run((folder / "fp16.onnx").read_bytes(), 1)
    play_exported(monkeypatch, "10.3", (8, 7), answer, "fp16")
    assert command(folder, "--out", tmp_path / "e.plan")[0] == 0
    assert json.loads((tmp_path / "e.plan.json").read_text())["precision"] == "fp16"


def test_exported_kit_for_a_dla_core_gives_it_the_calibration_cache(
    command, frames_of, run, monkeypatch, tmp_path
):
    folder = export_bundle(
        load_trained(run / "student.safetensors"),
        make_plan(find_target("xavier-nx@jp5.1"), "int8", dla_core=1),
        tmp_path / "kit",
        frames_of("int8"),
        split=run / "split.json",
        limits=Limits(max_drop=1.0, max_hd95_rise_px=100.0),
    ).path
    answers = iter(np.load(folder / "vectors" / "int8.npy")[:, None])
    world = play_exported(
        monkeypatch, "8.5", (7, 2), lambda frame: next(answers), "int8", dla_cores=2
    )
    code, _, stderr = command(folder, "--out", tmp_path / "e.plan")
    assert code == 0, stderr
    assert "DLA_core = 1" in world.calls
    assert world.calibration == (folder / "calib.cache").read_bytes()


# --- what is written -----------------------------------------------------------------------------


@pytest.fixture
def kit(tmp_path):
    builds = {"fp16": build(), "int8": build(min_share=0.8)}
    return write_kit(tmp_path / "kit", "10.3", builds)


@pytest.fixture
def world(monkeypatch):
    world = make_world(HALF)
    standin.install(monkeypatch, "10.3", world)
    return world


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_engine_is_plain_bytes_and_its_side_car_says_where_it_comes_from(
    command, kit, world, tmp_path, monkeypatch
):
    module = command.load(kit)
    release = tmp_path / "release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    model = tmp_path / "model"
    model.write_bytes(b"NVIDIA Jetson Orin Nano\0")
    world.said = (("WARNING", "subnormal weights"), ("INFO", "chatter"))
    monkeypatch.setattr(module, "RELEASE_FILE", release)
    monkeypatch.setattr(module, "MODEL_FILE", model)
    assert module.main([]) == 0
    plan = tmp_path / "kit-fp16.plan"
    assert plan.read_bytes() == b"plan"
    assert json.loads((tmp_path / "kit-fp16.plan.json").read_text()) == {
        "schema": "edgeseg.engine/1",
        "target": "some-board@jp",
        "precision": "fp16",
        "tensorrt": "10.3.0",
        "compute_capability": "8.7",
        "l4t": "36.4.3",
        "model": "NVIDIA Jetson Orin Nano",
        "cuda": {
            "provider": "cuda-python",
            "runtime": "12.6",
            "driver": "12.2",
            "compute_capability": "8.7",
        },
        "build": {
            "onnx": "model.onnx",
            "typed": True,
            "flags": [],
            "cache": None,
            "dla_core": None,
            "workspace_mib": 256,
        },
        "onnx_sha256": sha256(b"onnx"),
        "plan_sha256": sha256(b"plan"),
        "kit_sha256": sha256((kit / "SHA256SUMS").read_bytes()),
        "timing_cache_sha256": None,
        "achieved": {"by": "macs", "convolutions": 1, "shares": {"fp16": 1.0}, "min_share": 0.9},
        "vectors": {"frames": 3, "flipped_share": 0.0, "max_flipped": 0.02, "max_abs": 0.0},
        "warnings": ["subnormal weights"],
    }


def test_precision_workspace_and_place_are_as_asked(command, kit, world, tmp_path):
    world.information = information(convolution(INT8))
    arguments = "--precision", "int8", "--workspace-mib", 64, "--out", tmp_path / "e.plan"
    code, stdout, _ = command(kit, *arguments)
    assert code == 0
    assert "100.0% of the convolutions' macs in int8" in stdout
    assert f"set_memory_pool_limit WORKSPACE {64 << 20}" in world.calls
    assert json.loads((tmp_path / "e.plan.json").read_text())["precision"] == "int8"


def test_timing_cache_is_begun_then_used_again(command, kit, world, tmp_path):
    file = tmp_path / "timings"
    assert command(kit, "--timing-cache", file)[0] == 0
    assert world.timings == b""
    assert file.read_bytes() == b"timings"
    assert command(kit, "--timing-cache", file)[0] == 0
    assert world.timings == b"timings"
    assert "set_timing_cache ITimingCache False" in world.calls
    facts = json.loads((tmp_path / "kit-fp16.plan.json").read_text())
    assert facts["timing_cache_sha256"] == sha256(b"timings")


def test_kit_takes_no_file_more_while_it_builds(command, kit, world):
    before = sorted(kit.rglob("*"))
    assert command(kit)[0] == 0
    assert sorted(kit.rglob("*")) == before


class Killed(BaseException):
    """The process ends here: no handler may run."""


def kill_at(monkeypatch, step):
    """Kill the next write at one of its steps on the file system, counted from 0."""
    count = [-1]

    def counted(function):
        def wrapped(*arguments, **keywords):
            count[0] += 1
            if count[0] == step:
                raise Killed
            return function(*arguments, **keywords)

        return wrapped

    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    monkeypatch.setattr(os, "fsync", counted(os.fsync))


def test_kill_at_any_step_leaves_no_plan_with_the_side_car_of_another(tmp_path, command, kit):
    module = command.load(kit).kit_files
    seen = set()
    for step in range(20):
        plan = tmp_path / f"{step}.plan"
        module.write_engine(plan, b"old", {"plan_sha256": sha256(b"old")})
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, step)
            try:
                module.write_engine(plan, b"new", {"plan_sha256": sha256(b"new")})
            except Killed:
                finished = False
            else:
                finished = True
        side_car = module.side_car_of(plan)
        content = plan.read_bytes()
        if side_car.exists():
            assert json.loads(side_car.read_text())["plan_sha256"] == sha256(content)
        seen.add((content, side_car.exists()))
        if finished:
            break
    assert finished
    assert step == 8  # of them two replacements, one removal, five times fsync
    assert seen == {(b"old", True), (b"old", False), (b"new", False), (b"new", True)}


def test_engine_that_cannot_be_written_leaves_with_5_and_nothing_behind(
    command, kit, world, tmp_path
):
    (tmp_path / "e.plan").mkdir()
    assert refusal_of(command(kit, "--out", tmp_path / "e.plan")) == (5, "E-KIT-WRITE")
    assert world.calls == []  # not after the minutes that a build takes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.plan", "kit"]


# --- refusals ------------------------------------------------------------------------------------


def no_engine(tmp_path):
    return not list(tmp_path.glob("*.plan*"))


def test_changed_file_is_refused(command, kit, world, tmp_path):
    for name in ("model.onnx", "kit.json", "manifest.json", "vectors/input.npy", "kit_files.py"):
        whole = (kit / name).read_bytes()
        command.load(kit)
        (kit / name).write_bytes(whole + b"\n")
        code, _, stderr = command(kit)
        assert (code, stderr.count("\n")) == (3, 1)
        assert stderr.startswith(f"build_engine: E-KIT-HASH: {name} does not match")
        (kit / name).write_bytes(whole)
    assert no_engine(tmp_path)


def test_missing_file_added_file_and_sums_that_are_none_are_refused(command, kit):
    sums = (kit / "SHA256SUMS").read_text()
    (kit / "extra").write_text("")
    assert refusal_of(command(kit)) == (3, "E-KIT-HASH")
    (kit / "extra").unlink()
    for text in ("", "nonsense\n", sums + sums.replace("manifest.json", "gone.json")):
        (kit / "SHA256SUMS").write_text(text)
        assert refusal_of(command(kit)) == (3, "E-KIT-HASH")
    (kit / "SHA256SUMS").unlink()
    assert refusal_of(command(kit)) == (3, "E-KIT-HASH")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "edgeseg.kit/2"},
        {"default": "fp32"},
        {"builds": {"fp16": {}}},
        {"vectors": {"input": "vectors/gone.npy"}},
        {"builds": {"fp16": build(onnx="../other.onnx")}},
        {"input": {"name": "image"}},
        {"profile": {"min": SINGLE, "opt": SINGLE}},
        {"profile": {"min": FULL, "opt": SINGLE, "max": FULL}},
        {"profile": {"min": [], "opt": SINGLE, "max": FULL}},
        {"builds": []},
        {"profile": {"min": SINGLE, "opt": SINGLE, "max": (4, 1, 8, 6)}},
    ],
    ids=lambda change: str(change)[:40],
)
def test_kit_json_that_is_not_understood_is_refused(change, command, tmp_path):
    folder = write_kit(tmp_path / "kit", "10.3", {"fp16": build()}, **change)
    assert refusal_of(command(folder)) == (3, "E-KIT-FORMAT")


def test_vectors_of_another_shape_are_refused(command, kit, world):
    np.save(kit / "vectors" / "expected.npy", network(frames(2)))
    seal(kit)
    assert refusal_of(command(kit)) == (3, "E-KIT-FORMAT")


def test_precision_that_the_kit_lacks_is_a_wrong_call(command, kit):
    done = command(kit, "--precision", "fp32")
    assert refusal_of(done) == (2, "E-KIT-PRECISION")
    assert "holds fp16, int8, not fp32" in done[2]


@pytest.mark.parametrize("option", ["--out", "--timing-cache"])
def test_output_in_the_kit_or_nowhere_is_a_wrong_call(option, command, kit, tmp_path):
    assert refusal_of(command(kit, option, kit / "x")) == (2, "E-KIT-OUT")
    assert refusal_of(command(kit, option, tmp_path / "missing" / "x")) == (2, "E-KIT-OUT")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--check", "e.plan", "--precision", "fp16"],
        ["--check", "e.plan", "--print-trtexec"],
        ["--check", "e.plan", "--frame"],
        ["--workspace-mib", "0"],
        ["--precision", "fp8"],
        ["--cuda", "torch"],
    ],
)
def test_call_that_contradicts_itself_leaves_with_2(arguments, command, kit):
    assert command(kit, *arguments)[0] == 2


@pytest.mark.parametrize("version", ["8.6", "10.13", "11.4"])
def test_another_tensorrt_than_planned_is_refused(version, command, kit, monkeypatch, tmp_path):
    world = make_world(HALF)
    standin.install(monkeypatch, version, world)
    done = command(kit)
    assert refusal_of(done) == (3, "E-KIT-TENSORRT")
    assert f"made for TensorRT 10.3, here is {version}; run edgeseg export" in done[2]
    assert world.calls == []
    assert no_engine(tmp_path)


def test_another_gpu_than_planned_is_refused(command, kit, world, monkeypatch):
    fake_cuda_python(monkeypatch, capability=(7, 2))
    done = command(kit)
    assert refusal_of(done) == (3, "E-KIT-DEVICE")
    assert "compute capability 8.7, here is 7.2" in done[2]


@pytest.mark.parametrize(
    ("version", "recipe"),
    [
        ("11.4", {"typed": False}),
        ("11.4", {"typed": False, "flags": ["FP16"]}),
        ("11.4", {"flags": ["FP16"]}),
        ("11.4", {"cache": "calib.cache"}),
        ("10.3", {"typed": False, "flags": ["FP99"]}),
        ("10.3", {"flags": ["FP16"]}),
        ("8.5", {"typed": False, "flags": ["FP8"]}),  # of 8.6
        ("8.6", {"typed": True}),
    ],
)
def test_recipe_that_this_tensorrt_lacks_is_refused_rather_than_built_without(
    version, recipe, command, monkeypatch, tmp_path
):
    folder = write_kit(tmp_path / "kit", version, {"fp16": build(**recipe)})
    world = make_world(HALF)
    standin.install(monkeypatch, version, world)
    done = command(folder)
    assert refusal_of(done) == (3, "E-KIT-RECIPE")
    assert "export the kit again" in done[2]
    assert not any("build_serialized_network" in call for call in world.calls)


def test_cache_where_the_calibrator_is_gone_is_refused(command, monkeypatch, tmp_path):
    recipe = build(typed=False, flags=["INT8"], cache="calib.cache")
    folder = write_kit(tmp_path / "kit", "10.16", {"int8": recipe})
    module = standin.install(monkeypatch, "10.16", make_world(INT8))
    del module.IInt8EntropyCalibrator2
    done = command(folder)
    assert refusal_of(done) == (3, "E-KIT-RECIPE")
    assert "calibration cache, which TensorRT 10.16.1.11 no longer reads" in done[2]


@pytest.mark.parametrize(("core", "there"), [(0, 0), (1, 1), (2, 2)])
def test_dla_core_that_is_not_there_is_refused(core, there, command, monkeypatch, tmp_path):
    recipe = build(typed=False, flags=["FP16"], dla_core=core)
    folder = write_kit(tmp_path / "kit", "10.3", {"fp16": recipe})
    standin.install(monkeypatch, "10.3", make_world(HALF, dla_cores=there))
    done = command(folder)
    assert refusal_of(done) == (3, "E-KIT-DLA")
    assert f"DLA core {core}, and TensorRT finds {there} DLA cores" in done[2]


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("10.3", "node /dec/up (Unique): not supported; node /b (Det): nor this"),
        ("11.4", "node /dec/up (Unique): not supported; node /b (Det): nor this"),
        ("8.6", "node 12: not supported; node 13: nor this"),
    ],
)
def test_parser_errors_name_node_and_operator(version, told, command, monkeypatch, tmp_path):
    recipe = build(typed=not version.startswith("8"))
    folder = write_kit(tmp_path / "kit", version, {"fp16": recipe})
    errors = ((12, "/dec/up", "Unique", "not\nsupported"), (13, "/b", "Det", "nor this"))
    standin.install(monkeypatch, version, make_world(HALF, parser_errors=errors))
    done = command(folder)
    assert refusal_of(done) == (4, "E-KIT-PARSE")
    assert f"cannot read model.onnx: {told}\n" in done[2]


def test_build_that_fails_says_what_tensorrt_said(command, kit, world, tmp_path):
    world.plan = None
    world.said = (("ERROR", "Error Code 4: no weights"), ("WARNING", "beside the point"))
    done = command(kit)
    assert refusal_of(done) == (4, "E-KIT-BUILD")
    assert done[2].endswith("TensorRT built no fp16 engine: Error Code 4: no weights\n")
    assert no_engine(tmp_path)


def test_build_that_fails_is_an_error_without_ilogger_too(command, kit, world, monkeypatch):
    del sys.modules["tensorrt"].ILogger
    world.plan = None
    done = command(kit)
    assert refusal_of(done) == (4, "E-KIT-BUILD")
    assert "gave no reason" in done[2]


@pytest.mark.parametrize(
    "message",
    [
        "Error Code 2: OutOfMemory (no further information)",
        "Cuda failure: out of memory",
        "Error Code 10: Could not find any implementation for node {ForeignNode[/a.../b]}.",
    ],
)
def test_build_that_ran_out_of_memory_says_so_and_what_to_do(message, command, kit, world):
    world.plan, world.said = None, (("ERROR", message), ("ERROR", "and so it failed"))
    done = command(kit)
    assert refusal_of(done) == (4, "E-KIT-MEMORY")
    assert "add swap, or give less than --workspace-mib 256" in done[2]
    assert message in done[2]


def test_timing_cache_of_another_device_is_refused(command, kit, world, tmp_path):
    (tmp_path / "timings").write_bytes(b"other")
    world.takes_timings = False
    done = command(kit, "--timing-cache", tmp_path / "timings")
    assert refusal_of(done) == (3, "E-KIT-TIMING")
    assert (tmp_path / "timings").read_bytes() == b"other"


def test_engine_that_does_not_load_or_run_is_an_error(command, kit, world):
    world.loads = False
    assert refusal_of(command(kit)) == (4, "E-KIT-BUILD")
    world.loads, world.runs = True, False
    assert refusal_of(command(kit)) == (4, "E-KIT-MEMORY")


@pytest.mark.parametrize(
    "tensors",
    [
        (("image", SHAPE, "HALF"), ("logits", SHAPE, "FLOAT")),
        (("image", SHAPE, "FLOAT"), ("mask", SHAPE, "FLOAT")),
        (("image", SHAPE, "FLOAT"), ("logits", (1, 1, 8, 6), "FLOAT")),
        (("image", SHAPE, "FLOAT"),),
    ],
)
def test_engine_with_other_tensors_than_the_kit_is_refused(tensors, command, kit, world):
    world.tensors = tensors
    assert refusal_of(command(kit)) == (3, "E-KIT-TENSORS")


def test_engine_less_precise_than_asked_for_is_refused(command, kit, world, tmp_path):
    world.information = information(convolution(HALF), convolution(FLOAT))
    done = command(kit)
    assert refusal_of(done) == (3, "E-KIT-SHARE")
    assert "fp16 was asked for, but the 2 convolutions run 50.0% fp16, 50.0% fp32" in done[2]
    assert "(by macs; 90% needed)" in done[2]
    assert no_engine(tmp_path)


@pytest.mark.parametrize(
    "text", [information(), json.dumps({"Layers": ["conv1", "conv2"]}), "{}", "no JSON"]
)
def test_engine_that_does_not_tell_its_precision_is_refused(text, command, kit, world):
    world.information = text
    assert refusal_of(command(kit)) == (3, "E-KIT-SHARE")


def test_answers_unlike_the_hosts_are_refused(command, kit, world, tmp_path):
    world.network = lambda frame: network(frame) * np.float32(-1)
    done = command(kit)
    assert refusal_of(done) == (3, "E-KIT-VECTORS")
    assert "100.00% of the lesion is unlike the host's (2.00% allowed" in done[2]
    assert no_engine(tmp_path)


def compared(build_engine, answers, expected, mask=None):
    """Compare answers with the host's where a fifth of a lesion may differ."""
    logits = SimpleNamespace(name="logits")
    build = SimpleNamespace(max_flipped=0.2, logits=logits, mask=mask)
    return build_engine.compare(answers, expected, SimpleNamespace(logit_thresholds=(0.0,)), build)


@pytest.mark.parametrize(("lost", "passed"), [(0, True), (2, True), (3, False), (10, False)])
def test_lesion_may_lose_as_much_as_the_kit_says_in_every_frame(lost, passed, build_engine):
    expected = np.full((2, 1, 10, 10), -1, np.float32)
    expected[0] = 1  # a frame that is all lesion does not make up for one that loses its own
    expected[1, 0, 0] = 1  # 10 pixels
    logits = expected.copy()
    logits[1, 0, 0, :lost] = -1
    result = compared(build_engine, {"logits": logits}, {"logits": expected})
    assert result.flipped_share == pytest.approx(lost / 10)
    assert result.passed == passed


def test_single_pixels_of_a_frame_without_lesion_weigh_as_one_in_a_hundred_of_it(build_engine):
    expected = np.full((1, 1, 20, 20), -1, np.float32)
    logits = expected.copy()
    logits[0, 0, 0, 0] = 1
    result = compared(build_engine, {"logits": logits}, {"logits": expected})
    assert result.flipped_share == pytest.approx(1 / 4)  # one of 400 * 0.01


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answer_that_is_not_finite_is_refused_even_where_no_pixel_flips(value, command, kit, world):
    def broken(frame):
        logits = network(frame)
        logits.flat[logits.argmax() if value > 0 else logits.argmin()] = value  # NaN > 0 is False
        return logits

    world.network = broken
    assert refusal_of(command(kit)) == (3, "E-KIT-VECTORS")


def test_out_of_gpu_memory_is_told_as_such_and_other_cuda_errors_by_name(command, kit, world):
    command.cuda.failing["cudaMalloc"] = Error.cudaErrorMemoryAllocation
    done = command(kit)
    assert refusal_of(done) == (4, "E-KIT-MEMORY")
    assert "cudaMalloc: cudaErrorMemoryAllocation" in done[2]
    command.cuda.failing = {"cudaStreamSynchronize": Error.cudaErrorLaunchFailure}
    done = command(kit)
    assert refusal_of(done) == (4, "E-KIT-CUDA")
    assert "cudaStreamSynchronize: cudaErrorLaunchFailure" in done[2]
    assert command.cuda.live == {}


# --- the precision that an engine tells ----------------------------------------------------------


@pytest.fixture
def audit(command, kit):
    return command.load(kit).precision_audit


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Channel major INT8 format where channel % 16 == 0", "int8"),
        ("Row major linear BFloat16 format", "bf16"),
        ("Half", "fp16"),
        ("Half(64,1:8,...)", "fp16"),
        ("Float", "fp32"),
        ("Row major linear UInt8 format", "unknown"),
    ],
)
def test_formats_of_all_versions_are_read(text, precision, audit):
    assert audit.precision_of(convolution(text, Weights={})) == precision


def test_convolution_whose_input_tells_no_format_is_known_by_its_weights(audit):
    layer = convolution("N/A due to dynamic shapes", Weights={"Type": "Half", "Count": 1152})
    assert audit.precision_of(layer) == "fp16"


def test_macs_of_a_convolution_count_each_output_pixel(audit):
    assert audit.macs_of(convolution(HALF)) == 4 * 6 * 16 * 8 * 9
    assert audit.macs_of(convolution(HALF, Stride=[2, 2])) == 2 * 3 * 16 * 8 * 9
    assert audit.macs_of(convolution(HALF, Groups=8)) == 4 * 6 * 16 * 1 * 9
    dilated = convolution(HALF, Dilation=[2, 2], PrePadding=[2, 2], PostPadding=[2, 2])
    assert audit.macs_of(dilated) == 4 * 6 * 16 * 8 * 9


def test_macs_of_a_transposed_convolution_count_each_input_pixel(audit):
    up = convolution(
        HALF, LayerType="CaskDeconvolutionV2", Kernel=[2, 2], Stride=[2, 2], PrePadding=[0, 0]
    )
    assert audit.macs_of(up) == 4 * 6 * 8 * 16 * 4


def test_convolution_fused_with_pooling_has_its_fields_under_another_name(audit):
    names = ("Kernel", "PrePadding", "PostPadding", "Stride", "Dilation", "OutMaps", "Groups")
    layer = convolution(INT8)
    fused = {f"Conv{name}" if name in names else name: each for name, each in layer.items()}
    fused |= {"LayerType": "ConvActPool", "ParameterType": "ConvActPool"}
    assert audit.macs_of(fused) == 4 * 6 * 16 * 8 * 9
    assert audit.audit(information(fused)).shares == {"int8": 1.0}


def test_share_is_of_macs_and_layers_that_move_data_count_for_nothing(audit):
    small = convolution(FLOAT, Kernel=[1, 1], PrePadding=[0, 0], PostPadding=[0, 0])
    reformat = {"Name": "copy", "LayerType": "Reformat", "Inputs": small["Inputs"], "Outputs": []}
    pointwise = {"Name": "pw", "LayerType": "kgen", "Inputs": small["Inputs"], "Outputs": []}
    achieved = audit.audit(information(convolution(INT8), small, reformat, pointwise))
    assert achieved == ("macs", 2, {"int8": 0.9, "fp32": 0.1})


def test_share_is_by_count_where_a_layer_tells_no_dimensions(audit):
    dla = {
        "Name": "{ForeignNode[/enc/Conv.../dec/Relu]}",
        "LayerType": "DLA",
        "Inputs": [{"Name": "a", "Format/Datatype": "Channel major INT8 format"}],
        "Outputs": [],
    }
    assert audit.audit(information(dla)) == ("count", 1, {"int8": 1.0})
    small = convolution(FLOAT, Kernel=[1, 1], PrePadding=[0, 0], PostPadding=[0, 0])
    assert audit.audit(information(dla, small)) == ("count", 2, {"int8": 0.5, "fp32": 0.5})
    correlation = {"LayerType": "correlation", "Inputs": [{"Format/Datatype": "Half"}]}
    assert audit.audit(information(correlation)) == ("count", 1, {"fp16": 1.0})


def test_shares_are_the_same_whatever_batch_the_inspector_prints(audit):
    def of_batch(batch):
        inputs = [{"Name": "a", "Dimensions": [batch, 8, 4, 6], "Format/Datatype": HALF}]
        small = convolution(FLOAT, Kernel=[1, 1], PrePadding=[0, 0], PostPadding=[0, 0])
        other = [{**small["Inputs"][0], "Dimensions": [batch, 8, 4, 6]}]
        layers = convolution(HALF, Inputs=inputs), {**small, "Inputs": other}
        return audit.audit(information(*layers))

    assert of_batch(-1) == of_batch(1) == of_batch(4)
    assert of_batch(-1).shares == {"fp16": 0.9, "fp32": 0.1}


# --- an engine that is there already -------------------------------------------------------------


@pytest.fixture
def engine(command, kit, world, tmp_path):
    assert command(kit)[0] == 0
    world.calls.clear()
    return tmp_path / "kit-fp16.plan"


def test_engine_that_was_built_here_fits(command, kit, world, engine):
    code, stdout, _ = command(kit, "--check", engine)
    assert (code, stdout) == (0, "fits; at most 0.000% of a frame's lesion unlike the host's\n")
    assert world.calls.count("execute_async_v3 7") == 3
    assert not any("build" in call for call in world.calls)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (
            "tensorrt",
            "10.3.1",
            "built on TensorRT 10.3.1, compute capability 8.7; here is TensorRT ",
        ),
        ("compute_capability", "8.6", "compute capability 8.6; here is"),
        ("l4t", "36.3", "built on L4T 36.3, TensorRT"),
        ("model", "Another Board", "built on Another Board, TensorRT"),
    ],
)
def test_engine_from_another_place_is_refused_before_tensorrt_reads_it(
    name, value, told, command, kit, world, engine
):
    side_car = engine.with_name(engine.name + ".json")
    side_car.write_text(json.dumps({**json.loads(side_car.read_text()), name: value}))
    done = command(kit, "--check", engine)
    assert refusal_of(done) == (3, "E-KIT-ENGINE")
    assert told in done[2]
    assert done[2].endswith(": run python3 build_engine.py --precision fp16\n")
    assert world.calls == []


def test_engine_without_its_side_car_or_with_another_plan_or_kit_is_refused(
    command, kit, world, engine
):
    engine.write_bytes(b"plam")
    assert refusal_of(command(kit, "--check", engine)) == (3, "E-KIT-ENGINE")
    engine.write_bytes(b"plan")
    side_car = engine.with_name(engine.name + ".json")
    content = side_car.read_text()
    for text in ("{}", "[]", "no JSON", content.replace("engine/1", "engine/2")):
        side_car.write_text(text)
        assert refusal_of(command(kit, "--check", engine)) == (3, "E-KIT-ENGINE")
    side_car.unlink()
    assert refusal_of(command(kit, "--check", engine)) == (3, "E-KIT-ENGINE")
    side_car.write_text(content)
    (kit / "model.onnx").write_bytes(b"another")
    seal(kit)
    assert "not of this kit" in command(kit, "--check", engine)[2]
    assert world.calls == []


def test_check_refuses_answers_unlike_the_hosts(command, kit, world, engine):
    world.network = lambda frame: -network(frame)
    assert refusal_of(command(kit, "--check", engine)) == (3, "E-KIT-VECTORS")


# --- whole frames ---------------------------------------------------------------------------------

FRAME_SHAPE = (1, 1, 8, 12)
FRAME_TENSORS = (
    ("frame", FRAME_SHAPE, "UINT8"),
    ("mask", FRAME_SHAPE, "UINT8"),
    ("logits", SHAPE, "FLOAT"),
)
BOXES = convolution(FLOAT, Name="before/1.Conv")  # of the resize: in float on purpose


def frame_network(frame):
    """Play a frame graph: every other pixel is an input of the network."""
    logits = frame[..., ::2, ::2].astype(np.float32) / 64 - 2
    return (logits > 0).repeat(2, axis=2).repeat(2, axis=3).astype(np.uint8), logits


def write_frame_kit(folder, version, recipes, *, frame=None, **changes):
    """Write a kit as `edgeseg export --frame` does."""
    whole = {"onnx": "frame.onnx", "expected": "vectors/frames.npz"}
    section = {
        "input": {"name": "frame", "shape": FRAME_SHAPE},
        "mask": {"name": "mask", "shape": FRAME_SHAPE},
        "logits": "logits",
        "around": ["before/", "after/"],
        "builds": dict.fromkeys(recipes, whole),
        "vectors": "vectors/frames.npy",
    }
    write_kit(folder, version, recipes, frame={**section, **(frame or {})}, **changes)
    (folder / "frame.onnx").write_bytes(b"frame onnx")
    noise = np.random.default_rng(0).integers(0, 256, (3, *FRAME_SHAPE[1:]), dtype=np.uint8)
    mask, logits = frame_network(noise)
    np.save(folder / "vectors" / "frames.npy", noise)
    np.savez_compressed(folder / "vectors" / "frames.npz", mask=mask, logits=logits)
    seal(folder)
    return folder


def frame_world(datatype, **changes):
    layers = information(convolution(datatype, Name="network//enc/conv/Conv"), BOXES)
    return standin.World(frame_network, layers, FRAME_TENSORS, **changes)


@pytest.fixture
def frame_kit(tmp_path):
    return write_frame_kit(tmp_path / "kit", "10.3", {"fp16": build(), "int8": build()})


@pytest.fixture
def framed(monkeypatch):
    """A device on which frame graphs are built."""
    world = frame_world(HALF)
    standin.install(monkeypatch, "10.3", world)
    return world


# Neither a calibration cache nor the DLA has room for what stands around the network.
FRAMED = [(v, row) for v, row in CASES if not {"cache", "dla_core"} & set(row.build)]


@pytest.mark.parametrize(("version", "row"), FRAMED, ids=[f"{v} {row.name}" for v, row in FRAMED])
def test_frame_graph_is_built_as_its_network_in_every_version(
    version, row, command, monkeypatch, tmp_path
):
    recipes = {row.precision: build(**row.build)}
    folder = write_frame_kit(tmp_path / "kit", version, recipes, **PROFILE)
    world = frame_world(DATATYPES[row.precision])
    standin.install(monkeypatch, version, world)
    code, stdout, stderr = command(folder, "--frame")
    assert code == 0, stderr
    built = world.calls.index("build_serialized_network INetworkDefinition IBuilderConfig")
    assert world.calls[:built] == [
        f"create_network {row.network}",
        "parse",
        "create_builder_config",
        "set_memory_pool_limit WORKSPACE 268435456",
        "profiling_verbosity = DETAILED",
        *row.steps,  # no profile: one frame a call, whatever the network takes
    ]
    addresses = [each.split()[1] for each in world.calls if each.startswith("set_tensor_address")]
    assert addresses == ["frame", "mask", "logits"]
    assert world.calls.count("execute_async_v3 7") == 3
    plan = tmp_path / f"kit-{row.precision}-frame.plan"
    assert plan.read_bytes() == b"plan"
    assert f"built {plan}" in stdout
    facts = json.loads((tmp_path / f"{plan.name}.json").read_text())
    assert facts["onnx_sha256"] == sha256(b"frame onnx")
    assert (facts["precision"], facts["build"]["onnx"]) == (row.precision, "frame.onnx")
    assert facts["achieved"]["shares"] == {row.precision: 1.0}
    assert facts["vectors"] == {
        "frames": 3,
        "flipped_share": 0.0,
        "max_flipped": 0.02,
        "max_abs": 0.0,
    }
    assert command.cuda.live == {}


def test_network_of_a_kit_with_frame_graphs_is_built_as_ever(command, frame_kit, world, tmp_path):
    assert command(frame_kit)[0] == 0
    facts = json.loads((tmp_path / "kit-fp16.plan.json").read_text())
    assert facts["onnx_sha256"] == sha256(b"onnx")


def one_pixel_off(frame):
    mask, logits = frame_network(frame)
    return np.roll(mask, 1, axis=3), logits


def another_number(frame):
    mask, logits = frame_network(frame)
    return mask * 255, logits


def empty(frame):
    mask, logits = frame_network(frame)
    return np.zeros_like(mask), logits


def not_finite(frame):
    mask, logits = frame_network(frame)
    logits[0, 0, 0, 0] = np.nan
    return mask, logits


@pytest.mark.parametrize("answer", [one_pixel_off, another_number, empty, not_finite])
def test_frame_graph_that_answers_otherwise_than_the_host_is_refused(
    answer, command, frame_kit, framed, tmp_path
):
    framed.network = answer
    assert refusal_of(command(frame_kit, "--frame")) == (3, "E-KIT-VECTORS")
    assert no_engine(tmp_path)


@pytest.mark.parametrize(("lost", "passed"), [(0, True), (2, True), (3, False)])
def test_mask_of_a_frame_may_lose_as_much_as_the_kit_says(lost, passed, build_engine):
    mask = np.zeros((1, 1, 10, 10), np.uint8)
    mask[0, 0, 0] = 1  # 10 pixels
    answered = mask.copy()
    answered[0, 0, 0, :lost] = 0
    logits = np.full((1, 1, 2, 2), -1, np.float32)  # they would say: no lesion
    result = compared(
        build_engine,
        {"mask": answered, "logits": logits},
        {"mask": mask, "logits": logits},
        SimpleNamespace(name="mask"),
    )
    assert result.flipped_share == pytest.approx(lost / 10)
    assert result.passed == passed


@pytest.mark.parametrize(
    "tensors",
    [
        (("frame", FRAME_SHAPE, "FLOAT"), *FRAME_TENSORS[1:]),
        (FRAME_TENSORS[0], ("mask", FRAME_SHAPE, "BOOL"), FRAME_TENSORS[2]),
        FRAME_TENSORS[:2],
        (*FRAME_TENSORS, ("more", SHAPE, "FLOAT")),
        (("image", SHAPE, "FLOAT"), ("logits", SHAPE, "FLOAT")),
    ],
)
def test_engine_with_other_tensors_than_the_frame_graph_is_refused(
    tensors, command, frame_kit, framed, tmp_path
):
    framed.tensors = tensors
    assert refusal_of(command(frame_kit, "--frame")) == (3, "E-KIT-TENSORS")
    assert no_engine(tmp_path)


def test_network_in_a_frame_graph_that_is_less_precise_than_asked_for_is_refused(
    command, frame_kit, framed
):
    framed.information = information(convolution(FLOAT, Name="network//enc/conv/Conv"), BOXES)
    done = command(frame_kit, "--frame")
    assert refusal_of(done) == (3, "E-KIT-SHARE")
    assert "the 1 convolutions run 100.0% fp32" in done[2]


def test_what_stands_around_the_network_does_not_count_whatever_names_it(audit):
    around = ("before/", "after/")
    named = convolution(FLOAT, Name="__myl_conv", Metadata="[ONNX Layer: before/1.Conv]")
    joint = "[ONNX Layer: before/9.Sub]\x1f[ONNX Layer: network/before/Conv]"
    both = convolution(HALF, Name="__myl_both", Metadata=joint)
    first = convolution(HALF, Name="network/before/conv + before/x")
    last = convolution(HALF, Name="before/9.Sub + network/before/conv")
    beside = convolution(HALF, Name="before/2.Conv || network/before/conv")
    alone = convolution(FLOAT, Name="before/1.Conv + before/2.Relu || after/1.Conv")
    text = information(BOXES, named, both, first, last, beside, alone)
    assert audit.audit(text, around) == ("macs", 4, {"fp16": 1.0})
    assert audit.audit(text).convolutions == 7
    with pytest.raises(ValueError, match="none of the engine's 1 layers"):
        audit.audit(information(BOXES), around)


def test_kit_without_frame_graphs_says_how_to_get_them(command, kit):
    done = command(kit, "--frame")
    assert refusal_of(done) == (2, "E-KIT-FRAME")
    assert done[2].endswith("no frame graph; export it with --frame WIDTHxHEIGHT\n")
    assert done[2].count("\n") == 1


def test_precision_that_has_no_frame_graph_is_a_wrong_call(command, tmp_path):
    only = {"fp16": {"onnx": "frame.onnx", "expected": "vectors/frames.npz"}}
    recipes = {"fp16": build(), "int8": build()}
    folder = write_frame_kit(tmp_path / "kit", "10.3", recipes, frame={"builds": only})
    done = command(folder, "--frame", "--precision", "int8")
    assert refusal_of(done) == (2, "E-KIT-PRECISION")
    assert "holds fp16, not int8" in done[2]


def test_frame_graph_that_is_gone_is_refused_in_one_line(command, frame_kit, framed):
    (frame_kit / "frame.onnx").unlink()
    done = command(frame_kit, "--frame")
    assert refusal_of(done) == (3, "E-KIT-HASH")
    assert "frame.onnx" in done[2]
    seal(frame_kit)
    done = command(frame_kit, "--frame")
    assert refusal_of(done) == (3, "E-KIT-FORMAT")
    assert "'frame.onnx', which the kit lacks" in done[2]
    assert framed.calls == []


@pytest.mark.parametrize("recipe", [{**INT8_FP16, **CACHE}, {**FP16, **DLA}])
def test_frame_graph_with_a_calibration_cache_or_for_the_dla_is_refused(
    recipe, command, monkeypatch, tmp_path
):
    folder = write_frame_kit(tmp_path / "kit", "10.3", {"fp16": build(**recipe)})
    world = frame_world(HALF, dla_cores=2)
    standin.install(monkeypatch, "10.3", world)
    done = command(folder, "--frame")
    assert refusal_of(done) == (3, "E-KIT-FORMAT")
    assert "frame graph with a calibration cache or for the DLA" in done[2]
    assert world.calls == []


@pytest.mark.parametrize(
    "change",
    [
        {"builds": {"fp32": {"onnx": "frame.onnx", "expected": "vectors/frames.npz"}}},
        {"builds": {"fp16": {"onnx": "frame.onnx"}}},
        {"builds": {"fp16": {"onnx": "frame.onnx", "expected": "../frames.npz"}}},
        {"vectors": "vectors/gone.npy"},
        {"mask": {"name": "mask"}},
        {"around": None},
        {"builds": []},
    ],
    ids=lambda change: str(change)[:40],
)
def test_frame_of_kit_json_that_is_not_understood_is_refused(change, command, tmp_path):
    folder = write_frame_kit(tmp_path / "kit", "10.3", {"fp16": build()}, frame=change)
    assert refusal_of(command(folder, "--frame")) == (3, "E-KIT-FORMAT")


MASK, LOGITS = np.zeros((3, 1, 8, 12), np.uint8), np.zeros((3, 1, 4, 6), np.float32)


@pytest.mark.parametrize(
    "stored",
    [
        {"mask": MASK},
        {"mask": MASK, "logits": LOGITS[:2]},
        {"mask": MASK.astype(bool), "logits": LOGITS},
        {"mask": MASK[..., :11], "logits": LOGITS},
        {"mask": MASK, "logits": LOGITS, "more": LOGITS},
    ],
)
def test_vectors_that_are_not_of_the_frame_graph_are_refused(stored, command, frame_kit, framed):
    np.savez_compressed(frame_kit / "vectors" / "frames.npz", **stored)
    seal(frame_kit)
    assert refusal_of(command(frame_kit, "--frame")) == (3, "E-KIT-FORMAT")


@pytest.mark.parametrize("content", [b"", b"no arrays", b"PK\3\4 cut"])
def test_vectors_that_are_no_arrays_are_refused(content, command, frame_kit, framed):
    (frame_kit / "vectors" / "frames.npz").write_bytes(content)
    seal(frame_kit)
    assert refusal_of(command(frame_kit, "--frame")) == (3, "E-KIT-FORMAT")


@pytest.mark.parametrize("name", ["frames.npz", "frames.npy"])
def test_one_array_where_a_frame_has_two_is_refused(name, command, frame_kit, framed):
    with (frame_kit / "vectors" / name).open("wb") as file:  # numpy would add the suffix
        np.save(file, LOGITS)
    seal(frame_kit)
    assert refusal_of(command(frame_kit, "--frame")) == (3, "E-KIT-FORMAT")


def test_archive_of_arrays_where_one_belongs_is_refused(command, kit, world):
    with (kit / "vectors" / "input.npy").open("wb") as file:
        np.savez(file, frames=frames())
    seal(kit)
    assert refusal_of(command(kit)) == (3, "E-KIT-FORMAT")


def test_frame_engine_that_does_not_fit_says_how_to_build_it_again(
    command, frame_kit, framed, tmp_path
):
    assert command(frame_kit, "--frame", "--precision", "fp16")[0] == 0
    plan = tmp_path / "kit-fp16-frame.plan"
    plan.write_bytes(b"plam")
    done = command(frame_kit, "--check", plan)
    assert done[2].endswith(": run python3 build_engine.py --precision fp16 --frame\n")


def test_frame_engine_that_was_built_here_fits_and_is_judged_by_frames(
    command, frame_kit, framed, tmp_path
):
    assert command(frame_kit, "--frame")[0] == 0
    framed.calls.clear()
    plan = tmp_path / "kit-fp16-frame.plan"
    code, stdout, _ = command(frame_kit, "--check", plan)
    assert (code, stdout) == (0, "fits; at most 0.000% of a frame's lesion unlike the host's\n")
    assert framed.calls.count("execute_async_v3 7") == 3
    assert not any("build" in call for call in framed.calls)
    framed.network = empty
    assert refusal_of(command(frame_kit, "--check", plan)) == (3, "E-KIT-VECTORS")
    plan.write_bytes(b"plam")
    assert refusal_of(command(frame_kit, "--check", plan)) == (3, "E-KIT-ENGINE")


def test_network_engine_of_a_kit_with_frame_graphs_fits_too(command, frame_kit, world, tmp_path):
    assert command(frame_kit)[0] == 0
    assert command(frame_kit, "--check", tmp_path / "kit-fp16.plan")[0] == 0


def test_frame_graph_is_refused_on_another_tensorrt_or_gpu(
    command, frame_kit, framed, monkeypatch, tmp_path
):
    fake_cuda_python(monkeypatch, capability=(7, 2))
    assert refusal_of(command(frame_kit, "--frame")) == (3, "E-KIT-DEVICE")
    standin.install(monkeypatch, "10.13", framed)
    assert refusal_of(command(frame_kit, "--frame")) == (3, "E-KIT-TENSORRT")
    assert framed.calls == []
    assert no_engine(tmp_path)


# --- trtexec -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "precision", "recipe", "middle"),
    [
        ("8.5", "fp32", WEAK, "--noTF32"),
        ("8.6", "int8", {**INT8_FP16, **CACHE}, "--fp16 --int8 --calib={kit}/calib.cache"),
        ("8.6", "fp16", {**FP16, **DLA}, "--fp16 --useDLACore=0 --allowGPUFallback"),
        (
            *("8.6", "fp16", {**WEAK, "flags": ["FP16", "OBEY_PRECISION_CONSTRAINTS"]}),
            "--fp16 --precisionConstraints=obey",
        ),
        ("10.3", "fp16", {}, "--stronglyTyped"),
        ("11.4", "int8", {}, ""),
    ],
)
def test_trtexec_line_has_every_option_that_matters(
    version, precision, recipe, middle, command, tmp_path
):
    # Neither TensorRT nor a GPU is needed for it.
    folder = write_kit(tmp_path / "kit", version, {precision: build(**recipe)})
    code, stdout, _ = command(folder, "--print-trtexec", "--workspace-mib", 64)
    assert code == 0
    pinned = "--includeDataTransfers --noSpinWait --noCudaGraph" if version == "11.4" else ""
    expected = (
        f"trtexec --onnx={folder}/model.onnx --saveEngine={tmp_path}/kit-{precision}.plan "
        f"{middle.format(kit=folder)} --memPoolSize=workspace:64 --profilingVerbosity=detailed "
        f"--warmUp=1000 --duration=10 --iterations=500 {pinned}"
    )
    assert stdout.split() == expected.split()


def test_trtexec_line_of_a_dynamic_batch_has_its_shapes(command, tmp_path):
    folder = write_kit(tmp_path / "kit", "10.3", {"fp16": build()}, **PROFILE)
    words = command(folder, "--print-trtexec")[1].split()
    assert [word for word in words if "Shapes" in word] == [
        "--minShapes=image:1x1x4x6",
        "--optShapes=image:1x1x4x6",
        "--maxShapes=image:4x1x4x6",
    ]


@pytest.mark.parametrize(
    ("version", "recipe", "middle"),
    [("8.5", FP16, "--fp16"), ("10.3", {}, "--stronglyTyped"), ("11.4", {}, "")],
)
def test_trtexec_line_of_a_frame_graph_is_that_of_its_network_without_shapes(
    version, recipe, middle, command, tmp_path
):
    folder = write_frame_kit(tmp_path / "kit", version, {"fp16": build(**recipe)}, **PROFILE)
    words = command(folder, "--frame", "--print-trtexec")[1].split()
    assert words[:3] == [
        "trtexec",
        f"--onnx={folder}/frame.onnx",
        f"--saveEngine={tmp_path}/kit-fp16-frame.plan",
    ]
    assert words[3] == (middle or "--memPoolSize=workspace:256")
    ours = command(folder, "--print-trtexec")[1].split()[3:]
    assert words[3:] == [word for word in ours if "Shapes" not in word]


def test_trtexec_line_quotes_paths_and_refuses_a_flag_without_an_option(command, tmp_path):
    folder = write_kit(tmp_path / "a kit", "10.3", {"fp16": build()})
    assert f"'--onnx={folder}/model.onnx'" in command(folder, "--print-trtexec")[1]
    other = write_kit(tmp_path / "kit", "8.6", {"fp16": build(typed=False, flags=["REFIT"])})
    assert refusal_of(command(other, "--print-trtexec")) == (2, "E-KIT-TRTEXEC")


# --- device memory -------------------------------------------------------------------------------

LIBCUDART = """
#include <stdlib.h>
#include <string.h>
int fail_malloc = 0, live = 0;
int cudaSetDevice(int d) { return d; }
const char *cudaGetErrorName(int e) { return e == 2 ? "cudaErrorMemoryAllocation" : 0; }
int cudaRuntimeGetVersion(int *v) { *v = 11040; return 0; }
int cudaDriverGetVersion(int *v) { *v = 12060; return 0; }
int cudaDeviceGetAttribute(int *v, int which, int d) {
    *v = which == 75 ? 8 : which == 76 ? 7 : -1;
    return d;
}
int cudaMemGetInfo(size_t *f, size_t *t) { *f = (size_t)3 << 32; *t = (size_t)4 << 32; return 0; }
int cudaMalloc(void **p, size_t n) {
    if (fail_malloc) return fail_malloc;
    *p = malloc(n);
    live++;
    return 0;
}
int cudaFree(void *p) { free(p); live--; return 0; }
int cudaMemcpy(void *to, const void *from, size_t n, int kind) {
    if (kind != 1 && kind != 2) return 1;
    memcpy(to, from, n);
    return 0;
}
int cudaStreamCreate(void **s) { *s = (void *)0x7fff00000007; return 0; }
int cudaStreamSynchronize(void *s) { return s == (void *)0x7fff00000007 ? 0 : 1; }
"""


@pytest.fixture(scope="module")
def libcudart(tmp_path_factory):
    """A libcudart whose device memory is the heap."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile a fake libcudart; apt install gcc")
    folder = tmp_path_factory.mktemp("cudart")
    (folder / "cudart.c").write_text(LIBCUDART)
    command = ["gcc", "-shared", "-fPIC", "-o", folder / "libcudart.so", folder / "cudart.c"]
    subprocess.run(command, check=True)
    return folder / "libcudart.so"


def fake_pycuda(monkeypatch):
    """Install pycuda.driver, whose objects free what they hold and whose errors are its own."""
    cuda = FakeCuda()
    driver = ModuleType("pycuda.driver")
    driver.Error = type("Error", (Exception,), {})

    class Allocation:
        def __init__(self, size):
            if "mem_alloc" in cuda.failing:
                raise driver.Error("cuMemAlloc failed: out of memory")
            self.address = cuda.alloc(size)

        def __int__(self):
            return self.address

        def free(self):
            cuda.free(self.address)

    driver.mem_alloc = Allocation
    driver.Stream = lambda: SimpleNamespace(handle=7, synchronize=lambda: None)
    driver.memcpy_htod = lambda to, array: cuda.copy(to, array.ctypes.data, array.nbytes)
    driver.memcpy_dtoh = lambda array, source: cuda.copy(array.ctypes.data, source, array.nbytes)
    driver.mem_get_info = lambda: (3 << 32, 4 << 32)
    driver.get_version = lambda: (11, 4, 0)
    driver.get_driver_version = lambda: 12060
    driver.Device = lambda index: SimpleNamespace(compute_capability=lambda: (8, 7))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setitem(sys.modules, "pycuda.autoprimaryctx", ModuleType("autoprimaryctx"))
    monkeypatch.setitem(sys.modules, "pycuda.autoinit", None)  # to import it is an error
    return cuda


@pytest.fixture
def buffers(command, kit, monkeypatch):
    """cuda_buffers on a machine with no CUDA at all."""
    module = command.load(kit).cuda_buffers
    for name in ("cuda.bindings.runtime", "pycuda.driver", "pycuda.autoprimaryctx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(module, "LIBRARIES", ("libcudart.so.99",))
    return module


PROVIDERS = ("cuda-python", "pycuda", "ctypes")


@pytest.fixture
def give(buffers, monkeypatch, request):
    """Install one provider; returns a function that tells how many allocations live."""

    def install(provider):
        if provider == "ctypes":
            path = str(request.getfixturevalue("libcudart"))
            monkeypatch.setattr(buffers, "LIBRARIES", ("libcudart.so.99", path))
            return lambda: ctypes.c_int.in_dll(ctypes.CDLL(path), "live").value
        fake = {"cuda-python": fake_cuda_python, "pycuda": fake_pycuda}[provider](monkeypatch)
        return lambda: len(fake.live)

    return install


@pytest.mark.parametrize("provider", PROVIDERS)
def test_bytes_come_back_from_the_device_and_are_freed(provider, buffers, give):
    live = give(provider)
    cuda = buffers.open_cuda()
    assert cuda.facts.provider == provider
    assert cuda.facts.compute_capability == "8.7"
    array = frames()
    back = np.zeros_like(array)
    address = cuda.alloc(array.nbytes)
    assert live() == 1
    cuda.copy_to_device(address, array)
    cuda.copy_to_host(back, address)
    stream = cuda.create_stream()
    cuda.synchronise(stream)
    cuda.free(address)
    assert live() == 0
    np.testing.assert_array_equal(back, array)


def test_versions_and_memory_are_told_in_plain_units(buffers, give):
    give("ctypes")
    cuda = buffers.open_cuda()
    assert cuda.facts == ("ctypes", "11.4", "12.6", "8.7")
    assert cuda.memory_mib() == (3 << 12, 4 << 12)
    give("pycuda")
    assert buffers.open_cuda("pycuda").facts == ("pycuda", "11.4", "12.6", "8.7")
    assert buffers.open_cuda("pycuda").memory_mib() == (3 << 12, 4 << 12)
    give("cuda-python")
    assert buffers.open_cuda().facts == ("cuda-python", "12.6", "12.2", "8.7")
    assert buffers.open_cuda().memory_mib() == (1024, 2048)


def test_providers_are_tried_in_their_order_and_one_can_be_forced(buffers, give):
    for provider in reversed(PROVIDERS):
        give(provider)
        assert buffers.open_cuda().facts.provider == provider
    for provider in PROVIDERS:
        assert buffers.open_cuda(provider).facts.provider == provider


def test_forced_provider_that_is_not_there_is_an_error_though_another_is(buffers, give):
    give("cuda-python")
    with pytest.raises(buffers.CudaError, match="pycuda"):
        buffers.open_cuda("pycuda")


def test_cuda_python_without_a_driver_gives_way_to_the_next(buffers, monkeypatch, give):
    fake_cuda_python(monkeypatch).failing["cudaSetDevice"] = Error.cudaErrorInsufficientDriver
    give("pycuda")
    assert buffers.open_cuda().facts.provider == "pycuda"


def test_where_nothing_works_the_error_tells_why_for_each(buffers):
    with pytest.raises(buffers.CudaError) as caught:
        buffers.open_cuda()
    assert all(f"{provider} (" in str(caught.value) for provider in PROVIDERS)
    assert "libcudart.so.99" in str(caught.value)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_out_of_memory_is_known_from_every_provider(provider, buffers, give, monkeypatch, request):
    if provider == "ctypes":
        give("ctypes")
        library = ctypes.CDLL(str(request.getfixturevalue("libcudart")))
        switch = ctypes.c_int.in_dll(library, "fail_malloc")
        request.addfinalizer(lambda: setattr(switch, "value", 0))
        switch.value = Error.cudaErrorMemoryAllocation
    else:
        fake = {"cuda-python": fake_cuda_python, "pycuda": fake_pycuda}[provider](monkeypatch)
        fake.failing = {"cudaMalloc": Error.cudaErrorMemoryAllocation, "mem_alloc": True}
    with pytest.raises(buffers.CudaError) as caught:
        buffers.open_cuda().alloc(8)
    assert caught.value.out_of_memory


def test_error_that_ctypes_gets_is_named_or_said_to_be_unknown(buffers, give):
    give("ctypes")
    with pytest.raises(
        buffers.CudaError, match=r"^cudaStreamSynchronize: unknown error$"
    ) as caught:
        buffers.open_cuda().synchronise(1)
    assert not caught.value.out_of_memory


@pytest.mark.parametrize("provider", PROVIDERS)
def test_engine_is_built_and_tried_with_every_provider(provider, world, give, tmp_path):
    live = give(provider)
    assert sys.modules["build_engine"].main(["--cuda", provider]) == 0
    facts = json.loads((tmp_path / "kit-fp16.plan.json").read_text())
    assert facts["cuda"]["provider"] == provider
    assert live() == 0


# --- as a script ---------------------------------------------------------------------------------


def run_script(folder, *arguments):
    """Run the kit in an interpreter without site packages, hence without numpy and tensorrt."""
    command = [sys.executable, "-S", str(folder / "build_engine.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": ""}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_script_without_its_packages_leaves_with_4_and_one_line(kit):
    done = run_script(kit)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("build_engine: E-KIT-IMPORT: cannot import numpy")
    assert "apt install python3-numpy" in done.stderr


def test_script_leaves_no_bytecode_in_the_kit_and_so_runs_twice(kit):
    first, second = run_script(kit, "--print-trtexec"), run_script(kit, "--print-trtexec")
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert first.stdout == second.stdout


def test_help_names_the_exit_codes_and_every_option(kit):
    done = run_script(kit, "--help")
    assert done.returncode == 0
    options = ("precision", "frame", "out", "timing-cache", "workspace-mib", "cuda", "check")
    for word in (*(f"--{name}" for name in options), "--print-trtexec", "exit codes:"):
        assert word in done.stdout


def test_kit_lists_every_module_that_it_needs():
    assert {path.name for path in KIT.glob("*.py")} - {"__init__.py"} == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_kit_needs_the_standard_library_numpy_and_tensorrt_only(name):
    tree = ast.parse((KIT / name).read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {
        node.module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level
    }
    assert imported <= sys.stdlib_module_names | set(MODULES) | {"numpy", "__future__"}
