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


def test_the_frame_that_is_farthest_from_being_marked_is_taken():
    seen = []

    def run(image):
        seen.append(image.mean())
        return np.full_like(image, LEVEL - 9 - image.mean())

    found = find_empty_frame([form(run)], CONTRACT)
    assert len(set(seen)) == 9
    assert input_from_frame(found.frame, CONTRACT).mean() == max(seen)
    assert find_empty_frame([always(LEVEL - 9)], CONTRACT).name.endswith("grain 3 px, seed 0")


def test_where_speckle_is_marked_a_black_frame_may_do():
    found = find_empty_frame([always(LEVEL - 9), form(brighter_than_black)], CONTRACT)
    assert found.name == "black"
    assert not found.frame.any()


@pytest.mark.parametrize("logit", [LEVEL + 1, LEVEL - EMPTY_MARGIN + 0.01, float("nan")])
def test_a_frame_near_the_threshold_is_not_taken(logit):
    assert find_empty_frame([always(logit)], CONTRACT) is None
    assert find_empty_frame([always(LEVEL - 9), always(logit)], CONTRACT) is None


def test_the_same_frames_are_tried_every_time():
    first, again = (find_empty_frame([always(LEVEL - 9)], CONTRACT) for _ in range(2))
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
