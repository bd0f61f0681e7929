"""The golden frame in which a network marks nothing: far from its threshold, in every engine."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgeseg.export.golden import EMPTY_MARGIN, find_empty_frame, golden_frames
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.image import input_from_frame

CONTRACT = InputContract(height=32, width=48)
LEVEL = CONTRACT.logit_threshold
BLACK = input_from_frame(np.zeros((32, 48), np.uint8), CONTRACT)


def form(run):
    return SimpleNamespace(run=run)


def always(logit):
    return form(lambda image: np.full_like(image, logit))


def brighter_than_black(image):
    return np.where(image > BLACK, LEVEL + 1, LEVEL - 9).astype(np.float32)


def smooth_is_empty(image):
    """Mark where a pixel differs much from the one beside it, as in noise and not in speckle."""
    steps = np.abs(np.diff(image, axis=3, append=image[..., -1:]))
    return np.where(steps.max() > 2, LEVEL + 1, LEVEL - 9) * np.ones_like(image)


def rough_is_empty(image):
    return -smooth_is_empty(image) + 2 * LEVEL - 8


def test_the_first_frame_that_no_form_marks_is_taken():
    assert find_empty_frame([always(LEVEL - 9)], CONTRACT).name == "speckle, seed 0"
    assert find_empty_frame([form(smooth_is_empty)], CONTRACT).name == "speckle, seed 0"
    assert find_empty_frame([form(rough_is_empty)], CONTRACT).name == "noise, seed 0"
    found = find_empty_frame([form(brighter_than_black)], CONTRACT)
    assert found.name == "black"
    assert not found.frame.any()


@pytest.mark.parametrize("logit", [LEVEL + 1, LEVEL - EMPTY_MARGIN + 0.01, float("nan")])
def test_a_frame_near_the_threshold_is_not_taken(logit):
    assert find_empty_frame([always(logit)], CONTRACT) is None


def test_every_form_must_leave_it_unmarked():
    assert find_empty_frame([form(smooth_is_empty), form(rough_is_empty)], CONTRACT) is None
    assert find_empty_frame([form(rough_is_empty), always(LEVEL - 9)], CONTRACT).name[:5] == "noise"


def test_the_same_frames_are_tried_every_time():
    first, again = (find_empty_frame([form(rough_is_empty)], CONTRACT) for _ in range(2))
    assert np.array_equal(first.frame, again.frame)


def test_it_is_the_last_golden_frame_where_there_are_any():
    empty = find_empty_frame([always(LEVEL - 9)], CONTRACT)
    phantom = np.full((30, 50), 9, np.uint8)
    with_it, without = (golden_frames([phantom], CONTRACT, each) for each in (empty, None))
    assert with_it[-1] is empty.frame
    assert len(with_it) == len(without) + 1
    assert golden_frames([], CONTRACT, None) == ()


def test_it_is_within_the_limits_of_what_is_replayed():
    large = InputContract(height=1024, width=1024)
    found = find_empty_frame([always(LEVEL - 9)], large)
    assert found.frame.shape == (600, 800)
