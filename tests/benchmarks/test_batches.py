"""Batches: each frame of one is answered as alone, or the benchmark says so."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeseg.benchmarks.measure import batches
from edgeseg.benchmarks.measure.batches import BatchSession, require_same_answers
from edgeseg.export import parity
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.engines import open_engine
from edgeseg.runtime.errors import EngineError
from edgeseg.runtime.session import Session

SIZES = [(16, 16), (20, 50), (64, 33)]
FRAMES = [np.random.default_rng(n).integers(0, 256, size, np.uint8) for n, size in enumerate(SIZES)]


class Engine:
    """Answers the image itself; `spoils(logits)` may change the answer to a batch."""

    name = "fake"

    def __init__(self, spoils=lambda logits: logits):
        self.facts = {}
        self.spoils = spoils
        self.calls = []

    def run(self, image):
        self.calls.append(image.shape)
        logits = image.copy()
        return self.spoils(logits) if len(logits) > 1 else logits


def session(*arguments):
    return Session.over(Engine(*arguments), InputContract(height=16, width=32))


def test_each_frame_of_a_batch_gets_the_mask_of_it_alone_in_its_own_size():
    one = session()
    masks = BatchSession(one, 3).predict(FRAMES)
    assert one.engine.calls == [(3, 1, 16, 32)]
    for frame, mask in zip(FRAMES, masks, strict=True):
        assert mask.shape == frame.shape
        np.testing.assert_array_equal(mask, one.predict(frame))


def test_same_answers_pass_and_every_frame_was_compared():
    one = session()
    require_same_answers(one, FRAMES, 2, "fp32")
    assert one.engine.calls == [(1, 1, 16, 32)] * 3 + [(2, 1, 16, 32)] * 2


@pytest.mark.parametrize(
    "spoils",
    [lambda logits: logits[::-1], lambda logits: logits - logits.mean(0), lambda logits: -logits],
)
def test_answer_that_depends_on_its_neighbours_is_refused(spoils):
    with pytest.raises(EngineError) as caught:
        require_same_answers(session(spoils), FRAMES, 2, "int8")
    assert caught.value.code == "E-BATCH-ROWS"


@pytest.mark.parametrize("spoils", [lambda logits: logits[:1], lambda logits: logits * np.nan])
def test_answer_of_another_shape_or_not_finite_is_refused(spoils):
    with pytest.raises(EngineError) as caught:
        BatchSession(session(spoils), 3).predict(FRAMES)
    assert caught.value.code == "E-ENGINE-RESULT"


def convolution_onnx() -> bytes:
    """A 3 × 3 convolution of images of 16 × 32 px, as many as there are."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1, 16, 32])
        for name in ("image", "logits")
    ]
    weights = np.random.default_rng(0).normal(size=(1, 1, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["image", "w"], ["logits"], pads=[1, 1, 1, 1])
    initialisers = [numpy_helper.from_array(weights, "w")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_engines_of_a_cpu_answer_a_batch_as_its_frames_alone(name, tmp_path):
    files = {"model.onnx": convolution_onnx()}
    if name == "openvino":
        import openvino as ov

        ov.save_model(ov.Core().read_model(files["model.onnx"]), tmp_path / "model.xml")
        files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    contract = InputContract(height=16, width=32)
    one = Session.over(open_engine(name, files, 1), contract)
    require_same_answers(one, FRAMES, 4, "fp32")
    assert any(one.predict(frame).any() for frame in FRAMES)


def test_what_a_batch_may_change_is_what_the_exporter_allows():
    assert batches.MAX_FLIPPED == parity.MAX_FLIPPED
