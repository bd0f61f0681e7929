"""Batches: each frame of one is answered as alone, or the benchmark says so."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseg.benchmarks import batches
from edgeseg.benchmarks.batches import BatchSession, require_same_answers
from edgeseg.export import parity
from edgeseg.runtime.contract import InputContract
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


def test_what_a_batch_may_change_is_what_the_exporter_allows():
    assert batches.MAX_FLIPPED == parity.MAX_FLIPPED
