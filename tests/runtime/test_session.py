"""Sessions over real bundles: geometry, agreement of engines, repeatability, what is missing."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from edgeseg.kd.data.dataset import read_dataset
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.cpu import missing_features
from edgeseg.runtime.engines import ENGINES, open_engine, ov
from edgeseg.runtime.errors import EngineError, InputError, Refused
from edgeseg.runtime.metrics import count_pixels, dice_score
from edgeseg.runtime.session import open_session, session_of

CPU_ENGINES = [name for name, entry in ENGINES.items() if entry.on_cpu and not entry.cpu]


@pytest.fixture(scope="module")
def int8(bundle_of):
    return bundle_of("x86-cpu", "int8")


@pytest.fixture(scope="module")
def lesions(phantoms):
    """Eight lesion phantoms and their masks."""
    samples = [sample for sample in read_dataset(phantoms).samples if sample.label != "normal"]
    return [(sample.read_image(), sample.read_mask()) for sample in samples[::4]]


@pytest.fixture
def without(monkeypatch):
    """Make packages look as if they were not installed."""
    real = importlib.util.find_spec

    def hide(*packages):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in packages else real(name)
        )

    return hide


@pytest.mark.parametrize("engine", CPU_ENGINES)
@pytest.mark.parametrize("shape", [(64, 64), (101, 67), (480, 640), (1, 5), (50, 40, 3)])
def test_mask_has_the_size_of_the_frame(int8, engine, shape):
    frame = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mask = open_session(int8, engine=engine, threads=1).predict(frame)
    assert mask.shape == shape[:2]
    assert mask.dtype == np.uint8
    assert mask.max() <= 1


@pytest.mark.parametrize("engine", CPU_ENGINES)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_engine_finds_the_lesions(bundle_of, lesions, engine, precision):
    session = open_session(bundle_of("x86-cpu", precision), engine=engine, threads=1)
    dice = [dice_score(count_pixels(session.predict(image), truth)) for image, truth in lesions]
    assert np.mean(dice) > 0.5  # an untrained network scores about 0.1


def test_engines_of_one_int8_bundle_give_nearly_the_same_masks(int8, lesions):
    first, second = (open_session(int8, engine=name, threads=1) for name in CPU_ENGINES)
    pairs = [(first.predict(image), second.predict(image)) for image, _ in lesions]
    # A mean, since a network of eight epochs hesitates on single frames, whatever rounds it.
    assert np.mean([dice_score(count_pixels(*pair)) for pair in pairs if pair[0].any()]) > 0.9
    assert np.mean([np.mean(ours != theirs) for ours, theirs in pairs]) < 0.02


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_twenty_repeats_are_equal_to_the_bit(int8, lesions, engine):
    session = open_session(int8, engine=engine, threads=1)
    (frame, _), (other, _) = lesions[:2]
    first = session.predict(frame)
    assert first.any()
    for _ in range(20):
        session.predict(other)  # nothing of the frame before may stay in the buffers
        assert (session.predict(frame) == first).all()


def test_first_installed_engine_of_the_bundle_is_taken(int8, without):
    assert open_session(int8, threads=1).engine.name == "openvino"
    without("openvino")
    assert open_session(int8, threads=1).engine.name == "onnxruntime"


def test_bundle_none_of_whose_engines_is_installed_says_what_to_install(int8, without):
    without("openvino", "onnxruntime")
    with pytest.raises(EngineError, match="pip install onnxruntime") as caught:
        open_session(int8)
    assert caught.value.code == "E-EXTRA-MISSING"


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_engine_asked_for_by_name_but_not_installed_is_refused(int8, without, engine):
    without(ENGINES[engine].package)
    with pytest.raises(EngineError) as caught:
        open_session(int8, engine=engine)
    assert caught.value.code == "E-EXTRA-MISSING"


def test_engine_that_the_bundle_has_no_model_for_is_refused(bundle_of):
    with pytest.raises(InputError, match="it has openvino") as caught:
        open_session(bundle_of("x86-cpu", "fp16"), engine="onnxruntime")
    assert caught.value.code == "E-ENGINE-NOT-IN-BUNDLE"


@pytest.mark.parametrize(("target", "engine"), [("jetson", "tensorrt"), ("rtx", "tensorrt-rtx")])
def test_bundle_that_only_its_device_runs_says_so(bundle_of, target, engine, without):
    without("tensorrt", "tensorrt_rtx")
    with pytest.raises(EngineError, match=f"is for {engine} on ") as caught:
        open_session(bundle_of(target, "fp16"))
    assert caught.value.code == "E-ENGINE-DEVICE"


@pytest.mark.parametrize("engine", CPU_ENGINES)
@pytest.mark.parametrize("content", [b"", b"\x08\x07", b"<net", bytes(1000)])
def test_model_that_the_engine_cannot_read_is_refused(engine, content):
    files = {f"model{suffix}": content for suffix in ENGINES[engine].suffixes}
    with pytest.raises(EngineError) as caught:
        open_engine(engine, files, 1)
    assert caught.value.code == "E-ENGINE-LOAD"


@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_engine_without_its_files_is_refused(engine):
    with pytest.raises(EngineError) as caught:
        open_engine(engine, {}, 1)
    assert caught.value.code == "E-ENGINE-LOAD"


def test_model_that_changes_after_the_bundle_was_opened_is_refused(bundle_copy):
    bundle = open_bundle(bundle_copy)
    content = bytearray((bundle_copy / "model.onnx").read_bytes())
    content[1000] ^= 1
    (bundle_copy / "model.onnx").write_bytes(content)
    with pytest.raises(Refused) as caught:
        session_of(bundle, engine="onnxruntime")
    assert caught.value.code == "E-BUNDLE-HASH"


def test_engine_reports_its_version_device_and_threads(int8):
    for name in CPU_ENGINES:
        facts = open_session(int8, engine=name, threads=1).engine.facts
        assert facts["device"] == "CPU"
        assert facts["threads"] == "1"
        assert facts["version"]


@pytest.mark.parametrize(
    ("precision", "convolutions"),
    [
        ("fp32", "f32 35"),
        ("fp16", "f32 35"),
        ("int8", "f32 5, i8 30"),
    ],  # fp16: stored, not computed
)
def test_openvino_runs_every_convolution_in_the_precision_of_the_bundle(
    bundle_of, precision, convolutions
):
    facts = open_session(bundle_of("x86-cpu", precision), engine="openvino", threads=1).engine.facts
    assert facts["convolutions"] == convolutions


def test_bundle_in_bf16_runs_in_bf16_and_in_no_other_engine(bundle_of, lesions):
    if missing_features(["bf16"]):
        pytest.skip("this CPU has no bf16; run the tests on one with AVX512_BF16 or AMX_BF16")
    bundle = bundle_of("x86-cpu", "bf16")
    session = open_session(bundle, threads=1)
    assert session.engine.name == "openvino-bf16"
    assert session.engine.facts["convolutions"] == "bf16 35"
    dice = [dice_score(count_pixels(session.predict(image), truth)) for image, truth in lesions]
    assert np.mean(dice) > 0.5
    told = session.selftest()
    assert told.passed
    assert told.max_flipped == 0.02
    for other in ("openvino", "onnxruntime", "openvino-gpu"):
        with pytest.raises(InputError, match="it has openvino-bf16") as caught:
            open_session(bundle, engine=other)
        assert caught.value.code == "E-ENGINE-NOT-IN-BUNDLE"


def test_engine_that_answers_in_another_type_than_bf16_is_refused(bundle_of, monkeypatch):
    if missing_features(["bf16"]):
        pytest.skip("this CPU has no bf16; run the tests on one with AVX512_BF16 or AMX_BF16")
    monkeypatch.setattr(ov, "_convolution_types", lambda model: "f32 35")
    with pytest.raises(EngineError, match="asked for bf16 and runs the convolutions as f32") as no:
        open_session(bundle_of("x86-cpu", "bf16"), threads=1)
    assert no.value.code == "E-ENGINE-DEVICE"
