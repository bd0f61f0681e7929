"""TensorRT as an engine: its recorded surfaces of each version over a CUDA driver made of C.

What no test here can tell: whether a real GPU answers. It has not yet been run on one.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgeseg.runtime import engine_files, signature
from edgeseg.runtime.bundle import open_bundle, pack_bundle, seal_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.engines import cuda, open_engine, trt
from edgeseg.runtime.errors import EngineError, InputError, Refused
from edgeseg.runtime.session import open_session
from edgeseg.tests.export import test_kit
from edgeseg.tests.support import tensorrt_standin as standin

SHAPE = (1, 1, 16, 32)
PLAN = b"plan"
FRAME = np.random.default_rng(0).integers(0, 256, (20, 50), dtype=np.uint8)


def network(image):
    return 4 * image - 1


@pytest.fixture(scope="session")
def driver_file(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("no C compiler for the stand-in for the driver; apt install gcc")
    out = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = Path(__file__).parents[1] / "support" / "fake_cuda_driver.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Werror", "-o", out, source], check=True)
    return out


@pytest.fixture
def driver(driver_file, monkeypatch):
    """A driver with one GPU of compute capability 8.7; `fake_live()` counts what was not freed."""
    monkeypatch.setattr(cuda, "LIBRARY", str(driver_file))
    return ctypes.CDLL(str(driver_file))


def world(shape=SHAPE, **changes):
    tensors = (("image", shape, "FLOAT"), ("logits", shape, "FLOAT"))
    return standin.World(network, "{}", tensors, **{"plan": PLAN, **changes})


def side_car(version, **changes):
    facts = {
        "schema": "edgeseg.engine/1",
        "precision": "int8",
        "tensorrt": standin.read_surface(version)["tensorrt"],
        "compute_capability": "8.7",
        "l4t": None,
        "model": None,
        "build": {"dla_core": None},
        **changes,
    }
    return json.dumps(facts).encode()


def files(version, **changes):
    return {"kit-int8.plan": PLAN, "kit-int8.plan.json": side_car(version, **changes)}


def error_of(call, *arguments, kind=EngineError, **settings):
    with pytest.raises(kind) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return caught.value


def images(count):
    return np.random.default_rng(1).random((count, *SHAPE[1:]), dtype=np.float32)


# --- every version -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", standin.VERSIONS)
def test_plan_of_every_version_answers_what_its_network_does(version, driver, monkeypatch):
    played = world()
    standin.install(monkeypatch, version, played)
    engine = open_engine("tensorrt", files(version), 1)
    for image in images(3)[:, None]:
        np.testing.assert_array_equal(engine.run(image), network(image))
    assert engine.name == "tensorrt"
    assert engine.facts["version"] == standin.read_surface(version)["tensorrt"]
    assert engine.facts["device"] == "Fake GPU"
    assert engine.facts["compute capability"] == "8.7"
    assert engine.facts["driver"] == "CUDA 12.6"
    assert sum(call.startswith("execute_async_v3") for call in played.calls) == 3
    assert not any(call.startswith("set_input_shape") for call in played.calls)


@pytest.mark.parametrize("version", standin.VERSIONS)
def test_plan_with_a_dynamic_batch_takes_one_frame_or_several(version, driver, monkeypatch):
    standin.install(monkeypatch, version, world((-1, *SHAPE[1:]), most_frames=4))
    engine = open_engine("tensorrt", files(version), 1)
    for count in (1, 4, 2, 1):
        np.testing.assert_array_equal(engine.run(images(count)), network(images(count)))
    assert error_of(engine.run, images(5)).code == "E-ENGINE-LOAD"
    np.testing.assert_array_equal(engine.run(images(1)), network(images(1)))


def test_engine_whose_memory_ran_out_answers_again_when_less_is_asked(driver, monkeypatch):
    standin.install(monkeypatch, "10.3", world((-1, *SHAPE[1:]), most_frames=9))
    engine = open_engine("tensorrt", files("10.3"), 1)
    with monkeypatch.context() as full:
        full.setenv("FAKE_LARGEST", "4096")
        for _ in range(2):
            assert "out of memory" in str(error_of(engine.run, images(9)))
    for count in (1, 9):
        np.testing.assert_array_equal(engine.run(images(count)), network(images(count)))


def test_batch_for_a_plan_of_one_frame_is_refused_with_the_option_that_mends_it(
    driver, monkeypatch
):
    standin.install(monkeypatch, "10.3", world())
    engine = open_engine("tensorrt", files("10.3"), 1)
    assert "--dynamic" in str(error_of(engine.run, images(2)))


def test_copies_are_timed_by_the_gpus_own_clock(driver, monkeypatch):
    standin.install(monkeypatch, "10.3", world())
    engine = open_engine("tensorrt", files("10.3"), 1)
    for image in images(2)[:, None]:
        engine.run(image)
        assert engine.transfer_ms == 5  # the driver's clock: 2 ms to the GPU, 3 ms back


def test_engine_runs_in_another_thread_than_it_was_opened_in(driver, monkeypatch):
    standin.install(monkeypatch, "10.3", world())
    engine = open_engine("tensorrt", files("10.3"), 1)
    answers = []
    driver.cuCtxSetCurrent(None)  # as in a thread that never used CUDA
    thread = threading.Thread(target=lambda: answers.append(engine.run(images(1)).copy()))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(answers[0], network(images(1)))


def test_engine_gives_its_memory_back_and_an_answer_outlives_it(driver, monkeypatch):
    standin.install(monkeypatch, "10.3", world((-1, *SHAPE[1:]), most_frames=4))
    gc.collect()  # engines of the tests before, that cycles still hold
    before = driver.fake_live()
    engine = open_engine("tensorrt", files("10.3"), 1)
    engine.run(images(4))
    logits = engine.run(images(1))
    assert driver.fake_live() > before
    del engine
    gc.collect()
    assert driver.fake_live() == before + 1  # the pinned memory of the answer
    np.testing.assert_array_equal(logits, network(images(1)))
    del logits
    assert driver.fake_live() == before


def test_plan_for_the_dla_is_loaded_for_its_core(driver, monkeypatch):
    played = world()
    standin.install(monkeypatch, "10.3", played)
    engine = open_engine("tensorrt", files("10.3", build={"dla_core": 1}), 1)
    assert "DLA_core = 1" in played.calls
    assert engine.facts["device"] == "DLA core 1"


# --- refusals ------------------------------------------------------------------------------------


def test_machine_without_a_driver_is_told_before_tensorrt_is_touched(monkeypatch):
    played = world()
    standin.install(monkeypatch, "10.3", played)
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-not-there.so.1")
    error = error_of(open_engine, "tensorrt", files("10.3"), 1)
    assert error.code == "E-ENGINE-DEVICE"
    assert "no NVIDIA driver is here" in str(error)
    assert played.calls == []


def test_driver_without_a_gpu_is_told_before_tensorrt_is_touched(driver, monkeypatch):
    played = world()
    standin.install(monkeypatch, "10.3", played)
    monkeypatch.setenv("FAKE_GPUS", "0")
    error = error_of(open_engine, "tensorrt", files("10.3"), 1)
    assert (error.code, "it finds none" in str(error)) == ("E-ENGINE-DEVICE", True)
    assert played.calls == []


has_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="no tensorrt-rtx; make install brings it",
)


@has_rtx
def test_real_tensorrt_rtx_has_every_name_that_the_engine_uses():
    module = importlib.import_module("tensorrt_rtx")
    used = {
        "Runtime": ("deserialize_cuda_engine",),
        "ICudaEngine": (
            *("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_shape"),
            *("get_tensor_dtype", "create_execution_context"),
        ),
        "IExecutionContext": ("set_input_shape", "set_tensor_address", "execute_async_v3"),
        "TensorIOMode": ("INPUT",),
        "DataType": ("FLOAT",),
        "ILogger": ("Severity",),
    }
    lacking = [
        f"{owner}.{name}"
        for owner, names in used.items()
        for name in names
        if not hasattr(getattr(module, owner), name)
    ]
    assert lacking == []
    said, logger = trt._logger_of(module)
    logger.log(module.ILogger.Severity.ERROR, "wrong")
    logger.log(module.ILogger.Severity.INFO, "right")
    assert said == ["wrong"]


@has_rtx
def test_real_tensorrt_rtx_without_a_driver_is_an_error_and_no_crash():
    try:
        ctypes.CDLL(cuda.LIBRARY)
        pytest.skip("there is an NVIDIA driver; needs a machine without one")
    except OSError:
        pass
    error = error_of(open_engine, "tensorrt-rtx", {"int8-sm86.plan": PLAN}, 1)
    assert (error.code, "no NVIDIA driver" in str(error)) == ("E-ENGINE-DEVICE", True)


@pytest.mark.parametrize(
    "changes", [{"tensorrt": "10.3.1"}, {"compute_capability": "7.2"}, {"model": "a board"}]
)
def test_plan_of_another_place_is_refused_naming_both(changes, driver, monkeypatch):
    played = world()
    standin.install(monkeypatch, "10.3", played)
    error = error_of(open_engine, "tensorrt", files("10.3", **changes), 1)
    assert error.code == "E-ENGINE-DEVICE"
    assert str(*changes.values()) in str(error)
    assert "here is TensorRT 10.3.0, compute capability 8.7" in str(error)
    assert not any(call.startswith("deserialize") for call in played.calls)


def test_place_of_a_jetson_is_read_from_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(trt, "RELEASE_FILE", tmp_path / "release")
    monkeypatch.setattr(trt, "MODEL_FILE", tmp_path / "model")
    assert (trt._l4t_version(), trt._device_model()) == (None, None)
    (tmp_path / "release").write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic")
    (tmp_path / "model").write_text("NVIDIA Jetson Orin Nano\0")
    assert (trt._l4t_version(), trt._device_model()) == ("36.4.3", "NVIDIA Jetson Orin Nano")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", side_car("10.3", build={})])
def test_malformed_side_car_is_refused(content, driver, monkeypatch):
    standin.install(monkeypatch, "10.3", world())
    broken = {"a.plan": PLAN, "a.plan.json": content}
    assert error_of(open_engine, "tensorrt", broken, 1, kind=Refused).code == "E-ENGINE-PLAN"


@pytest.mark.parametrize(
    "changes",
    [
        {"loads": False},
        {"runs": False},
        {"tensors": (("image", SHAPE, "FLOAT"), ("logits", SHAPE, "HALF"))},
        {"tensors": (("image", SHAPE, "FLOAT"), ("logits", (1, 2, 16, 32), "FLOAT"))},
        {"tensors": (("image", SHAPE, "FLOAT"),)},
    ],
)
def test_plan_that_does_not_load_or_is_of_another_network_is_refused(changes, driver, monkeypatch):
    played = world()
    for name, value in changes.items():
        setattr(played, name, value)
    standin.install(monkeypatch, "10.3", played)
    assert error_of(open_engine, "tensorrt", files("10.3"), 1).code == "E-ENGINE-LOAD"


def test_gpu_that_runs_out_of_memory_says_so(driver):
    gpu = cuda.Gpu()
    error = error_of(gpu.allocate, 1 << 40)
    assert (error.code, "out of memory" in str(error)) == ("E-ENGINE-DEVICE", True)


# --- TensorRT-RTX --------------------------------------------------------------------------------


def test_tensorrt_rtx_takes_the_plan_of_this_gpus_generation(driver, monkeypatch):
    module = standin.make_tensorrt(standin.read_surface("11.4"), world(plan=b"mine"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    plans = {"int8-sm86.plan": b"other", "int8-sm87.plan": b"mine", "int8-sm89.plan": b"other"}
    engine = open_engine("tensorrt-rtx", plans, 1)
    assert engine.name == "tensorrt-rtx"
    np.testing.assert_array_equal(engine.run(images(1)), network(images(1)))
    del plans["int8-sm87.plan"]
    error = error_of(open_engine, "tensorrt-rtx", plans, 1)
    assert error.code == "E-ENGINE-DEVICE"
    assert "int8-sm86.plan, int8-sm89.plan; here is compute capability 8.7" in str(error)


# --- a kit and its plan --------------------------------------------------------------------------


@pytest.fixture
def kit(tmp_path, driver, monkeypatch):
    """A sealed kit for TensorRT 10.3, and the device that it is for."""
    monkeypatch.setattr(test_kit, "SHAPE", SHAPE)
    recipes = {"int8": test_kit.build(min_share=0.0)}
    folder = test_kit.write_kit(tmp_path / "kit", "10.3", recipes)
    (folder / "manifest.json").unlink()
    (folder / "SHA256SUMS").unlink()
    contract = InputContract(height=SHAPE[2], width=SHAPE[3])
    seal_bundle(
        folder,
        {
            "name": "net",
            "target": "some-board@jp",
            "precision": "int8",
            "contract": contract,
            "models": {"tensorrt": ("model.onnx",)},
        },
    )
    played = test_kit.make_world(test_kit.INT8, plan=PLAN)
    standin.install(monkeypatch, "10.3", played)
    return folder


@pytest.fixture
def built_kit(kit, monkeypatch):
    """The kit with the plan that its own build_engine.py has built."""
    test_kit.fake_cuda_python(monkeypatch)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in test_kit.MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(kit)
    assert importlib.import_module("build_engine").main([]) == 0
    yield kit
    for name in test_kit.MODULES:
        sys.modules.pop(name, None)


def test_session_runs_what_build_engine_built_beside_the_kit(built_kit):
    session = open_session(built_kit)
    assert session.engine.name == "tensorrt"
    expected = test_kit.network(session.prepare(FRAME))[0, 0]
    np.testing.assert_array_equal(session.logits(FRAME), expected)
    assert session.predict(FRAME).shape == FRAME.shape
    assert open_bundle(built_kit).sha256  # the kit itself is as it was exported


def test_packed_kit_finds_the_plan_that_its_folder_built(built_kit, tmp_path):
    packed = tmp_path / "kit.edgeseg"
    pack_bundle(built_kit, packed)
    session = open_session(packed)
    np.testing.assert_array_equal(session.logits(FRAME), open_session(built_kit).logits(FRAME))


def test_signature_of_a_kit_is_no_file_too_many(kit, monkeypatch):
    (kit / "model.sig").write_bytes(b"{}")
    monkeypatch.syspath_prepend(test_kit.KIT)
    kit_files = importlib.import_module("kit_files")
    assert kit_files.read_kit(kit).sha256 == open_bundle(kit).sha256
    monkeypatch.delitem(sys.modules, "kit_files")


def test_kit_that_nothing_was_built_from_says_how(kit):
    error = error_of(open_session, kit, engine="tensorrt")
    assert error.code == "E-ENGINE-NOT-BUILT"
    assert "kit-int8.plan" in str(error)
    assert f"run python3 {kit / 'build_engine.py'}" in str(error)


def changed_byte(plan, side_car):
    plan.write_bytes(b"Plan")


def of_another_kit(plan, side_car):
    facts = json.loads(side_car.read_bytes())
    side_car.write_text(json.dumps({**facts, "kit_sha256": hashlib.sha256(b"").hexdigest()}))


def of_another_precision(plan, side_car):
    side_car.write_text(json.dumps({**json.loads(side_car.read_bytes()), "precision": "fp16"}))


def of_a_newer_schema(plan, side_car):
    facts = json.loads(side_car.read_bytes())
    side_car.write_text(json.dumps({**facts, "schema": "edgeseg.engine/2"}))


def not_json(plan, side_car):
    side_car.write_bytes(b"\xff{")


def deeply_nested(plan, side_car):
    side_car.write_text("[" * 100_000)


def too_long(plan, side_car):
    side_car.write_bytes(b" " * (engine_files.MAX_SIDE_CAR_BYTES + 1))


@pytest.mark.parametrize(
    "damage",
    [
        *(changed_byte, of_another_kit, of_another_precision, of_a_newer_schema),
        *(not_json, deeply_nested, too_long),
    ],
)
def test_plan_that_is_not_the_kits_own_is_refused(damage, built_kit):
    plan = engine_files.built_plan(open_bundle(built_kit))
    damage(plan, plan.with_name(plan.name + ".json"))
    assert error_of(open_session, built_kit, kind=Refused).code == "E-ENGINE-PLAN"


def test_a_plan_that_no_signature_covers_is_not_loaded_where_a_key_is_given(
    built_kit, monkeypatch, tmp_path
):
    (built_kit / "model.sig").touch()
    monkeypatch.setattr(signature, "require_signature", lambda *_: None)  # as if it held
    error = error_of(open_session, built_kit, key=tmp_path / "public.pem", kind=Refused)
    assert error.code == "E-SIGNATURE-PLAN"
    assert "open it without the key" in str(error)


def test_a_plan_beyond_reason_is_refused_by_its_size(built_kit, monkeypatch):
    monkeypatch.setattr(engine_files, "MAX_PLAN_BYTES", len(PLAN) - 1)
    error = error_of(open_session, built_kit, kind=Refused)
    assert error.code == "E-ENGINE-PLAN"
    assert f"over {len(PLAN) - 1} bytes" in str(error)


def test_a_plan_that_cannot_be_read_is_one_line(built_kit, monkeypatch):
    whole = Path.open

    def refuse(path, *arguments, **settings):
        if path.suffix == ".plan":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    assert error_of(open_session, built_kit, kind=InputError).code == "E-BUNDLE-MISSING"
