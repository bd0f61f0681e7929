"""Golden frames on disk: one picture has one form, and nothing else is read."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeseg.runtime.errors import Refused
from edgeseg.runtime.pgm import MAX_BYTES, pixels_from_pnm, pnm_from_pixels

GREY = np.arange(6, dtype=np.uint8).reshape(2, 3)
PGM = b"P5\n3 2\n255\n\x00\x01\x02\x03\x04\x05"


def test_two_rows_of_three_pixels():
    assert pnm_from_pixels(GREY) == PGM
    assert np.array_equal(pixels_from_pnm(PGM, "x"), GREY)


def test_strided_frame_is_written_as_it_looks():
    assert pnm_from_pixels(np.repeat(GREY, 2, axis=1)[:, ::2]) == PGM


def test_other_programs_read_it():
    with Image.open(BytesIO(PGM)) as image:
        assert np.array_equal(np.asarray(image), GREY)


def test_largest_frame_is_written_and_read():
    content = pnm_from_pixels(np.full((600, 800, 3), 7, np.uint8))
    assert len(content) == MAX_BYTES
    assert pixels_from_pnm(content, "x").shape == (600, 800, 3)


def test_colour_is_ppm_that_other_programs_read():
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with Image.open(BytesIO(pnm_from_pixels(colour))) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), colour)
    assert np.array_equal(pixels_from_pnm(pnm_from_pixels(colour), "x"), colour)


@pytest.mark.parametrize("shape", [(601, 800), (600, 801), (0, 5), (5, 0)])
def test_frame_beyond_the_limits_is_not_written(shape):
    with pytest.raises(ValueError, match="no form as PGM"):
        pnm_from_pixels(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        PGM[:-1],
        PGM + b"\0",
        PGM.replace(b"P5", b"P2"),
        PGM.replace(b"255", b"256"),
        PGM.replace(b"255", b"127"),
        PGM.replace(b"3 2", b"03 2"),
        PGM.replace(b"3 2", b"3  2"),
        PGM.replace(b"3 2", b"3\t2"),
        PGM.replace(b"3 2", b"-3 2"),
        PGM.replace(b"3 2", b"0 2"),
        PGM.replace(b"3 2", b"2 3 "),
        PGM.replace(b"P5\n", b"P5\n# a comment\n"),
        b"P5\n801 1\n255\n" + bytes(801),
        b"P5\n1 601\n255\n" + bytes(601),
        b"P5\n99999999999 99999999999\n255\n",
    ],
)
def test_anything_else_is_refused(content):
    with pytest.raises(Refused) as caught:
        pixels_from_pnm(content, "frame.pgm")
    assert caught.value.code == "E-PGM"
    assert "frame.pgm" in str(caught.value)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=40) | st.binary(max_size=20).map(lambda tail: PGM[:11] + tail))
def test_what_is_read_is_written_the_same(content):
    try:
        grey = pixels_from_pnm(content, "x")
    except Refused:
        return
    assert pnm_from_pixels(grey) == content
