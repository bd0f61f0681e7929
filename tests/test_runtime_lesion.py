"""Lesions of a mask: components, areas, boxes, and the outline drawn over the frame."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseg.runtime.lesion import Lesion, draw_overlay, lesions_of


def mask_of(text):
    return np.array([[character == "#" for character in row] for row in text.split()], np.uint8)


def flood_fill(mask):
    """The 8-connected components, found the plain way."""
    left = {tuple(pixel) for pixel in np.argwhere(mask).tolist()}
    lesions = []
    while left:
        queue = [left.pop()]
        found = []
        while queue:
            y, x = queue.pop()
            found.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            queue += near
        ys, xs = zip(*found, strict=True)
        lesions.append(Lesion(len(found), (min(xs), min(ys), max(xs) + 1, max(ys) + 1)))
    return sorted(lesions, key=lambda lesion: (-lesion.area_px, lesion.box))


def test_empty_mask_has_no_lesion():
    assert lesions_of(np.zeros((5, 5), np.uint8)) == ()


def test_full_mask_is_one_lesion():
    assert lesions_of(np.ones((3, 5), np.uint8)) == (Lesion(15, (0, 0, 5, 3)),)


@pytest.mark.parametrize("picture", ["#. .#", ".# #."])
def test_pixels_that_touch_diagonally_are_one_lesion(picture):
    assert lesions_of(mask_of(picture)) == (Lesion(2, (0, 0, 2, 2)),)


def test_lesions_come_largest_first_with_area_and_box():
    picture = """
        #......
        ....##.
        ....###
    """
    assert lesions_of(mask_of(picture)) == (Lesion(5, (4, 1, 7, 3)), Lesion(1, (0, 0, 1, 1)))


def test_arms_that_meet_only_below_are_one_lesion():
    picture = """
        #.#.#
        #.#.#
        #####
    """
    assert lesions_of(mask_of(picture)) == (Lesion(11, (0, 0, 5, 3)),)


def test_arms_that_meet_only_above_are_one_lesion():
    picture = """
        #####
        #.#.#
        #.#.#
    """
    assert lesions_of(mask_of(picture)) == (Lesion(11, (0, 0, 5, 3)),)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_random_masks_have_the_lesions_of_a_flood_fill(share):
    rng = np.random.default_rng(0)
    for _ in range(50):
        mask = rng.random((rng.integers(1, 20), rng.integers(1, 20))) < share
        assert list(lesions_of(mask.astype(np.uint8))) == flood_fill(mask)


def test_overlay_without_a_lesion_is_the_frame_in_grey():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (draw_overlay(grey, np.zeros_like(grey)) == grey[:, :, None]).all()


def test_overlay_colours_the_outline_and_leaves_the_inside():
    grey = np.full((12, 12), 100, np.uint8)
    mask = np.zeros_like(grey)
    mask[2:9, 2:9] = 1
    picture = draw_overlay(grey, mask)
    assert picture.shape == (12, 12, 3)
    assert picture[2, 2].tolist() == picture[8, 5].tolist() == [255, 140, 0]
    assert picture[5, 5].tolist() == picture[0, 0].tolist() == [100, 100, 100]


def test_overlay_of_a_lesion_in_the_last_corner_stays_in_the_frame():
    grey = np.zeros((4, 4), np.uint8)
    mask = np.zeros_like(grey)
    mask[3, 3] = 1
    assert draw_overlay(grey, mask)[3, 3].tolist() == [255, 140, 0]
