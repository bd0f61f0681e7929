"""Engines on a device: there and alone, or an error; and what each says of threads and pinning.

No GPU is needed: ONNX Runtime's own refusal is met with a provider that takes no node, the rest
with stand-ins for the two libraries.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from edgeseg.benchmarks.measure.roofline import files_for
from edgeseg.benchmarks.measure.yardstick import yardstick_graph
from edgeseg.benchmarks.run import ANY_BATCH
from edgeseg.cli.jobs.candidates import candidates_of
from edgeseg.cli.jobs.sources import find_source
from edgeseg.kd import zoo
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.engines import ENGINES, affinity, files_of, open_engine
from edgeseg.runtime.engines.ort import OnnxRuntimeEngine
from edgeseg.runtime.engines.ov import shared_core
from edgeseg.runtime.errors import EngineError, InputError
from edgeseg.runtime.session import session_of

pytestmark = pytest.mark.numbers

DEVICE_ENGINES = [name for name, entry in ENGINES.items() if entry.files_of]
PROVIDERS = {
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}


def relu_onnx() -> bytes:
    """A model of one node: image [1, 1, 2, 2] to its positive part."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 2, 2]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


FILES = {"model.onnx": relu_onnx()}


def code_of(call, *arguments, **settings) -> str:
    with pytest.raises(EngineError) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return caught.value.code


@pytest.fixture
def library(monkeypatch):
    """Let ONNX Runtime claim the GPU providers; return what sessions are asked for.

    ``answers`` is the list of providers that a session then says it runs in.
    """
    asked = SimpleNamespace(answers=None, providers=None, fallback=None, disabled=False)

    class Session:
        def __init__(self, model, options, providers):
            asked.providers = providers
            with contextlib.suppress(RuntimeError):  # raised where the entry was not set
                asked.fallback = options.get_session_config_entry("session.disable_cpu_ep_fallback")

        def get_providers(self):
            return asked.answers or [*asked.providers, "CPUExecutionProvider"]

        def disable_fallback(self):
            asked.disabled = True

        def get_inputs(self):
            return [SimpleNamespace(name="x")]

        get_outputs = get_inputs

        def run(self, names, feeds):
            return [np.maximum(feeds["x"], 0)]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(
        ort, "get_available_providers", lambda: [*PROVIDERS.values(), "CPUExecutionProvider"]
    )
    return asked


# --- ONNX Runtime --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROVIDERS)
def test_provider_that_the_installed_onnxruntime_lacks_is_refused_with_what_to_install(name):
    if PROVIDERS[name] in ort.get_available_providers():
        pytest.skip("this onnxruntime has it; needs plain onnxruntime")
    with pytest.raises(EngineError, match="pip install onnxruntime-gpu") as caught:
        open_engine(name, FILES, 1)
    assert caught.value.code == "E-ENGINE-DEVICE"


def test_onnxruntime_itself_refuses_to_put_nodes_on_the_cpu():
    # The Azure provider is in every wheel and takes no node of a plain model, as a GPU's provider
    # would not take an operator that it lacks.
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("no AzureExecutionProvider; the wheel of onnxruntime on PyPI has it")
    code = code_of(OnnxRuntimeEngine, FILES, 1, "AzureExecutionProvider", "onnxruntime-azure")
    assert code == "E-ENGINE-DEVICE"


@pytest.mark.parametrize("name", PROVIDERS)
def test_device_engine_asks_for_its_provider_alone_and_without_fallback(library, name):
    engine = open_engine(name, FILES, 1)
    assert library.providers == [PROVIDERS[name]]
    assert library.fallback == "1"
    assert library.disabled
    assert engine.name == name
    assert engine.facts["device"] == "GPU"
    assert engine.facts["provider"] == PROVIDERS[name]
    image = np.float32([[[[-1, 2], [3, -4]]]])
    assert engine.run(image).tolist() == [[[[0, 2], [3, 0]]]]


@pytest.mark.parametrize("name", PROVIDERS)
def test_session_that_fell_back_to_the_cpu_is_refused(library, name):
    # As where the wheel has the provider but CUDA's libraries do not load.
    library.answers = ["CPUExecutionProvider"]
    assert code_of(open_engine, name, FILES, 1) == "E-ENGINE-DEVICE"


def test_onnxruntime_that_cannot_forbid_the_fallback_is_refused(library, monkeypatch):
    monkeypatch.setattr(ort, "__version__", "1.15.1")
    assert code_of(open_engine, "onnxruntime-cuda", FILES, 1) == "E-ENGINE-DEVICE"
    monkeypatch.setattr(ort, "__version__", "1.16.0")
    open_engine("onnxruntime-cuda", FILES, 1)


def test_cpu_engine_is_not_kept_from_the_cpu(library):
    open_engine("onnxruntime", FILES, 1)
    assert library.providers == ["CPUExecutionProvider"]
    assert library.fallback is None


# --- OpenVINO ------------------------------------------------------------------------------------


@pytest.fixture
def plugin(monkeypatch):
    """Stand in for OpenVINO with a GPU; ``devices`` is what a compiled model says it runs on."""
    asked = SimpleNamespace(devices=["GPU.0"], found=["CPU", "GPU"], compiled=None)

    class Compiled:
        def get_property(self, name):
            return {"EXECUTION_DEVICES": asked.devices, "NUM_STREAMS": 1}[name]

        def create_infer_request(self):
            image = SimpleNamespace(data=np.zeros((1, 1, 16, 16), np.float32))
            return SimpleNamespace(get_input_tensor=lambda index: image)

        def input(self, index):
            return SimpleNamespace(partial_shape=SimpleNamespace(is_dynamic=False))

    class Core:
        @property
        def available_devices(self):
            return asked.found

        def read_model(self, xml, weights):
            return "model"

        def compile_model(self, model, device, options):
            asked.compiled = (device, options)
            return Compiled()

    monkeypatch.setattr("edgeseg.runtime.engines.ov.shared_core", Core)
    return asked


IR = {"model.xml": b"", "model.bin": b""}

SIGNAL_AFTER_SESSIONS = """
import gc, os, signal, sys
from edgeseg.runtime.session import open_session

first, second = (open_session(sys.argv[1], engine="openvino") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
came = []
signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
os.kill(os.getpid(), signal.SIGTERM)
assert came == [signal.SIGTERM]
"""


def test_a_signal_after_sessions_went_in_the_order_in_which_they_came_is_handled(bundle_of):
    bundle = bundle_of("x86-cpu", "fp32")
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_AFTER_SESSIONS, str(bundle)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_openvino_without_a_gpu_says_what_it_finds():
    if any(name.startswith("GPU") for name in shared_core().available_devices):
        pytest.skip("there is a GPU; needs a machine without one")
    with pytest.raises(EngineError, match="finds CPU and no GPU") as caught:
        open_engine("openvino-gpu", IR, 1)
    assert caught.value.code == "E-ENGINE-DEVICE"


def test_openvino_gpu_is_compiled_for_the_gpu_in_float32_and_one_stream(plugin):
    engine = open_engine("openvino-gpu", IR, 3)
    device, options = plugin.compiled
    assert device == "GPU"
    assert options["INFERENCE_PRECISION_HINT"] == "f32"
    assert options["NUM_STREAMS"] == "1"
    assert "INFERENCE_NUM_THREADS" not in options
    assert engine.name == "openvino-gpu"
    assert engine.facts["device"] == "GPU.0"
    assert engine.facts["streams"] == "1"


@pytest.mark.parametrize("devices", [["CPU"], ["GPU.0", "CPU"], []])
def test_openvino_that_runs_on_another_device_too_is_refused(plugin, devices):
    plugin.devices = devices
    assert code_of(open_engine, "openvino-gpu", IR, 1) == "E-ENGINE-DEVICE"


# --- bundles and facts ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fp32(bundle_of):
    """A bundle, exported before a test puts a stand-in for the library."""
    return bundle_of("x86-cpu", "fp32")


def test_device_engine_runs_the_files_of_its_base_in_a_bundle(fp32, library):
    bundle = open_bundle(fp32)
    assert session_of(bundle, engine="onnxruntime-cuda", threads=1).engine.name.endswith("cuda")
    assert session_of(bundle, threads=1).engine.name == "openvino"  # never chosen by itself


def test_bundle_without_the_base_has_no_device_engine_either(bundle_of):
    with pytest.raises(InputError) as caught:
        session_of(open_bundle(bundle_of("x86-cpu", "fp16")), engine="onnxruntime-cuda")
    assert caught.value.code == "E-ENGINE-NOT-IN-BUNDLE"


def test_benchmark_takes_a_device_engine_by_name_only(fp32, library):
    source = find_source(fp32)
    (candidate,) = candidates_of([source], ["onnxruntime-cuda"], 1)
    assert candidate.kind == candidate.session.engine.name == "onnxruntime-cuda"
    assert candidate.file_bytes == (source.path / "model.onnx").stat().st_size
    others = candidates_of([source], [], 1)
    assert [(each.kind, each.max_batch) for each in others] == [("openvino", 1), ("onnxruntime", 1)]
    with pytest.raises(InputError) as caught:
        candidates_of([source], ["onnxruntime-tpu"], 1)
    assert caught.value.code == "E-ENGINE-NONE"


@pytest.mark.parametrize("name", ENGINES)
def test_files_of_an_engine_are_those_of_one_with_the_same_suffixes(name):
    assert ENGINES[files_of(name)].suffixes == ENGINES[name].suffixes
    assert files_of(files_of(name)) == files_of(name)
    assert (files_of(name) != name) == (name in DEVICE_ENGINES)


def test_cpu_engines_report_threads_streams_pinning_and_affinity(fp32):
    bundle = open_bundle(fp32)
    for name in ("openvino", "onnxruntime"):
        facts = session_of(bundle, engine=name, threads=1).engine.facts
        assert facts["threads"] == facts["streams"] == "1"
        assert facts["pinning"] in ("yes", "no")
        assert facts["affinity"] == affinity()


def test_affinity_lists_the_cores_and_is_left_alone():
    before = os.sched_getaffinity(0)
    assert {int(core) for core in affinity().split(",")} == before
    try:
        os.sched_setaffinity(0, {min(before)})
        assert affinity() == str(min(before))
        open_engine("onnxruntime", FILES, 1)
        assert os.sched_getaffinity(0) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)


# --- the buffers of OpenVINO's CPU plugin --------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    """The files of a network of fixed size: image [1, 1, 128, 128] to the same shape."""
    return files_for("openvino", yardstick_graph("fp32"))


def images(*seeds):
    shape = (1, 1, 128, 128)
    return [np.random.default_rng(seed).random(shape, dtype=np.float32) for seed in seeds]


def test_openvino_answers_each_call_into_one_buffer_of_its_own(network):
    engine = open_engine("openvino", network, 2)
    turns = images(0, 1, 0)
    expected = [engine._compiled({0: image})[0].copy() for image in turns]
    answers = []
    for image in turns:
        answer = engine.run(image)
        answers.append((answer, answer.copy()))
    assert all(answer is answers[0][0] for answer, _ in answers)
    for (_, copied), wanted in zip(answers, expected, strict=True):
        np.testing.assert_array_equal(copied, wanted)
    assert not np.array_equal(expected[0], expected[1])


def test_buffer_of_openvino_outlives_many_calls_and_other_engines(network):
    engine = open_engine("openvino", network, 1)
    (image,) = images(0)
    wanted = engine.run(image).copy()
    for turn, other in enumerate(images(*range(1, 11))):
        engine.run(other)
        if turn % 5 == 0:
            open_engine("openvino", network, 1).run(other)
    np.testing.assert_array_equal(engine.run(image), wanted)


# --- checkpoints ---------------------------------------------------------------------------------


def shipped():
    if "t2kd-edge" not in zoo.available_names():
        pytest.skip("no shipped student; edgeseg card writes one, see CONTRIBUTING.md")
    return find_source(Path("t2kd-edge"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU; needs a machine without one")
def test_checkpoint_on_a_gpu_that_is_not_there_is_refused():
    assert code_of(candidates_of, [shipped()], ["torch-cuda"], 1) == "E-ENGINE-DEVICE"


def test_checkpoint_runs_on_the_cpu_unless_asked_otherwise_and_takes_any_batch():
    (candidate,) = candidates_of([shipped()], [], 1)
    assert candidate.kind == "torch"
    assert candidate.max_batch == ANY_BATCH
    with pytest.raises(InputError, match="torch and torch-cuda") as caught:
        shipped().open("onnxruntime", 1)
    assert caught.value.code == "E-ENGINE-NOT-IN-BUNDLE"


def test_openvino_reports_nothing_from_here(tmp_path):
    """Imported alone it leaves an ID of this user in HOME and posts from a forked process."""
    code = "import edgeseg.runtime.engines.ov, sys; print(sys.modules['openvino_telemetry'])"
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    environment["HOME"] = str(tmp_path)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    assert list(tmp_path.iterdir()) == []
