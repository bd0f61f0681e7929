"""What marks a frame that shows no lesion does not ship."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseg.cli.jobs.empty_frames import empty_frames, require_empty
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import Refused
from edgeseg.runtime.session import Session

CONTRACT = InputContract(64, 64)
BLACK = np.float32(-CONTRACT.mean / CONTRACT.std)  # what the network gets of it


class Network:
    """An engine of one function of the image."""

    name, facts = "fake", {}

    def __init__(self, run):
        self.run = run


def session(run, contract=CONTRACT):
    return Session.over(Network(run), contract)


def marks_nothing(image):
    return np.full_like(image, -3)


def marks_black(image):
    return np.where(np.abs(image - BLACK) < 1e-4, 3, -3).astype(np.float32)


def marks_bright(image):
    return (image - 1).astype(np.float32)


def test_black_frames_and_speckle_are_tried_the_same_each_time():
    first, again = list(empty_frames()), list(empty_frames())
    assert all(np.array_equal(a.frame, b.frame) for a, b in zip(first, again, strict=True))
    assert [each.name.split()[0] for each in first] == ["a"] * 2 + ["frame"] * 32
    assert not any(each.frame.any() for each in first[:2])
    textured = [each for each in first[2:] if np.ptp(each.frame)]
    assert 8 < len(textured) < 32  # the others are uniform


def test_network_that_marks_nothing_ships():
    require_empty({"FP32": session(marks_nothing), "INT8": session(marks_nothing)})


@pytest.mark.parametrize(
    ("run", "shows"), [(marks_black, "a black frame of 256x256 px"), (marks_bright, "of speckle")]
)
def test_network_that_marks_an_empty_frame_does_not_ship(run, shows):
    with pytest.raises(Refused, match=f"INT8 marks [0-9]+ px of .*{shows}") as caught:
        require_empty({"FP32": session(marks_nothing), "INT8": session(run)})
    assert caught.value.code == "E-EMPTY-MARKED"


def test_least_lesion_that_drops_what_is_marked_lets_it_ship():
    def marks_a_spot(image):
        logits = np.full_like(image, -3)
        logits[0, 0, 5:8, 5:8] = 3
        return logits

    with pytest.raises(Refused):
        require_empty({"FP32": session(marks_a_spot)})
    least = InputContract(64, 64, least_area=10 / 4096)
    require_empty({"FP32": session(marks_a_spot, least)})
