"""Lesions of a mask: components, areas, boxes, and the outline drawn over the frame."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseg.runtime.errors import InputError
from edgeseg.runtime.lesion import (
    Spacing,
    draw_overlay,
    fill_holes,
    keep_largest,
    lesions_of,
)


def mask_of(text):
    return np.array([[character == "#" for character in row] for row in text.split()], np.uint8)


def flood_fill(mask, steps):
    """Yield the connected components as lists of (y, x), found the plain way."""
    left = {tuple(pixel) for pixel in np.argwhere(mask).tolist()}
    while left:
        queue = [left.pop()]
        found = []
        while queue:
            y, x = queue.pop()
            found.append((y, x))
            near = {(y + dy, x + dx) for dy, dx in steps} & left
            left -= near
            queue += near
        yield found


EIGHT = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
FOUR = [(-1, 0), (1, 0), (0, -1), (0, 1)]


def box_of(pixels):
    ys, xs = zip(*pixels, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def plain_lesions(mask):
    """Area, box and diameter of each component; the diameter over all corners of all pixels."""
    lesions = []
    for pixels in flood_fill(mask, EIGHT):
        corners = np.array([(y + dy, x + dx) for y, x in pixels for dy in (0, 1) for dx in (0, 1)])
        diameter = np.hypot(*(corners[:, None] - corners).T).max()
        lesions.append((len(pixels), box_of(pixels), pytest.approx(diameter)))
    return sorted(lesions, key=lambda lesion: (-lesion[0], lesion[1]))


def plain_fill(mask):
    filled = mask.copy()
    height, width = mask.shape
    for pixels in flood_fill(mask == 0, FOUR):
        if all(0 < y < height - 1 and 0 < x < width - 1 for y, x in pixels):
            for pixel in pixels:
                filled[pixel] = 1
    return filled


def plain_largest(mask):
    kept = np.zeros_like(mask)
    parts = sorted(flood_fill(mask, EIGHT), key=lambda pixels: (-len(pixels), box_of(pixels)))
    for pixel in parts[0] if parts else []:
        kept[pixel] = 1
    return kept


def random_masks():
    rng = np.random.default_rng(0)
    for share in (0.1, 0.3, 0.5, 0.65, 0.8):
        for _ in range(20):
            mask = rng.random((rng.integers(1, 20), rng.integers(1, 20))) < share
            yield mask.astype(np.uint8)


def areas_and_boxes(mask):
    return [(lesion.area_px, lesion.box) for lesion in lesions_of(mask)]


def test_empty_mask_has_no_lesion():
    assert lesions_of(np.zeros((5, 5), np.uint8)) == ()


def test_full_mask_is_one_lesion():
    assert areas_and_boxes(np.ones((3, 5), np.uint8)) == [(15, (0, 0, 5, 3))]


@pytest.mark.parametrize("picture", ["#. .#", ".# #."])
def test_pixels_that_touch_diagonally_are_one_lesion(picture):
    assert areas_and_boxes(mask_of(picture)) == [(2, (0, 0, 2, 2))]


def test_end_of_a_row_does_not_touch_the_start_of_the_next():
    assert areas_and_boxes(mask_of("...# .... #...")) == [(1, (0, 2, 1, 3)), (1, (3, 0, 4, 1))]
    assert areas_and_boxes(mask_of("...# #...")) == [(1, (0, 1, 1, 2)), (1, (3, 0, 4, 1))]


def test_lesions_come_largest_first_with_area_and_box():
    picture = """
        #......
        ....##.
        ....###
    """
    assert areas_and_boxes(mask_of(picture)) == [(5, (4, 1, 7, 3)), (1, (0, 0, 1, 1))]


@pytest.mark.parametrize("picture", ["#.#.# #.#.# #####", "##### #.#.# #.#.#"])
def test_arms_that_meet_only_above_or_below_are_one_lesion(picture):
    assert areas_and_boxes(mask_of(picture)) == [(11, (0, 0, 5, 3))]


def test_random_masks_have_the_lesions_of_a_flood_fill():
    for mask in random_masks():
        found = [(each.area_px, each.box, each.diameter_px) for each in lesions_of(mask)]
        assert found == plain_lesions(mask)


@pytest.mark.parametrize("value", [1, 255, True])
def test_any_nonzero_pixel_is_lesion(value):
    mask = mask_of("#.. .## ...").astype(type(value) if value is True else np.uint8) * value
    assert areas_and_boxes(mask) == [(3, (0, 0, 3, 2))]
    assert (
        fill_holes(mask).tolist() == keep_largest(mask).tolist() == [[1, 0, 0], [0, 1, 1], [0] * 3]
    )


# --- millimetres ---------------------------------------------------------------------------------


def test_measures_in_mm_follow_the_spacing_of_rows_and_of_columns():
    (lesion,) = lesions_of(mask_of("......... .########"), Spacing(0.5, 0.25))
    assert lesion.area_mm2 == 8 * 0.5 * 0.25
    assert (lesion.width_mm, lesion.height_mm) == (2.0, 0.5)
    assert lesion.diameter_mm == pytest.approx(np.hypot(2.0, 0.5))
    assert lesion.diameter_px == pytest.approx(np.hypot(8, 1))


def test_longest_line_in_mm_can_be_another_than_in_px():
    (lesion,) = lesions_of(mask_of("#..... #..... #..... ######"), Spacing(3.0, 0.1))
    assert lesion.diameter_px == pytest.approx(np.hypot(6, 4))
    assert lesion.diameter_mm == pytest.approx(np.hypot(0.6, 12))


def test_diameter_of_a_disc_is_its_own():
    y, x = np.mgrid[:101, :101]
    (lesion,) = lesions_of(((x - 50) ** 2 + (y - 50) ** 2 <= 40**2).astype(np.uint8))
    assert 81 <= lesion.diameter_px <= 80 + np.sqrt(2)  # 80 px between centres, and one pixel


def test_diameter_of_a_slanted_ellipse_is_its_long_axis():
    y, x = np.mgrid[:200, :200] - 100.0
    along, across = (x + y) / np.sqrt(2), (x - y) / np.sqrt(2)
    mask = ((along / 80) ** 2 + (across / 30) ** 2 <= 1).astype(np.uint8)
    (lesion,) = lesions_of(mask, Spacing(0.1, 0.1))
    assert lesion.diameter_mm == pytest.approx(16, abs=0.15)


def test_lesion_without_a_spacing_says_nothing_in_mm():
    (lesion,) = lesions_of(mask_of("##"))
    assert set(lesion.to_dict()) == {"area_px", "box", "diameter_px"}
    assert lesion.diameter_mm is None


@pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf"), 101, "0.1", None, True])
@pytest.mark.parametrize("name", ["row_mm", "column_mm"])
def test_impossible_spacing_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=name) as caught:
        Spacing(**{"row_mm": 0.1, "column_mm": 0.1, name: value})
    assert caught.value.code == "E-SPACING"


# --- holes and the largest -----------------------------------------------------------------------


def test_hole_is_filled_and_a_bay_is_not():
    picture = """
        .......
        .#####.
        .#...#.
        .#.###.
        .####..
        ....###
        ....#..
    """
    expected = mask_of(picture)
    expected[2, 2:5] = expected[3, 2] = 1
    assert (fill_holes(mask_of(picture)) == expected).all()


def test_hole_that_leaks_only_over_a_corner_is_a_hole():
    assert fill_holes(mask_of(".#. #.# .#.")).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]


@pytest.mark.parametrize("picture", ["### #.# #.#", "#.# #.# ###", "### ..# ###", "### #.. ###"])
def test_background_that_touches_the_border_of_the_frame_is_no_hole(picture):
    assert (fill_holes(mask_of(picture)) == mask_of(picture)).all()


def test_lesion_in_a_hole_becomes_part_of_what_surrounds_it():
    ring = np.ones((7, 7), np.uint8)
    ring[1:6, 1:6] = 0
    ring[3, 3] = 1
    assert fill_holes(ring).all()


def test_random_masks_are_filled_as_by_a_flood_fill():
    for mask in random_masks():
        assert (fill_holes(mask) == plain_fill(mask)).all()


def test_random_masks_keep_the_largest_of_a_flood_fill():
    for mask in random_masks():
        assert (keep_largest(mask) == plain_largest(mask)).all()


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ("##.## ..... ..##.", "##... ..... ....."),
        ("...## ##... .....", "..... ##... ....."),  # the left side decides before the top
        (".## ... .##", ".## ... ..."),
        ("#.#.# ..... #....", "#.... ..... ....."),
    ],
)
def test_of_equally_large_lesions_the_one_with_the_smallest_box_stays(picture, expected):
    assert (keep_largest(mask_of(picture)) == mask_of(expected)).all()


@pytest.mark.parametrize("clean", [fill_holes, keep_largest])
def test_cleaning_leaves_the_mask_that_was_given_alone(clean):
    mask = mask_of("###.# #.#.. ###..")
    before = mask.copy()
    answer = clean(mask)
    assert answer.dtype == np.uint8
    assert (mask == before).all()
    assert not np.shares_memory(answer, mask)


@pytest.mark.parametrize("clean", [fill_holes, keep_largest])
@pytest.mark.parametrize("value", [0, 1])
def test_cleaning_leaves_an_empty_and_a_full_mask_as_they_are(clean, value):
    assert (clean(np.full((4, 6), value, np.uint8)) == value).all()


def test_a_maze_of_one_long_path_is_joined():
    maze = np.zeros((401, 301), np.uint8)
    maze[::2] = 1
    maze[1::4, -1] = maze[3::4, 0] = 1
    assert (keep_largest(maze) == maze).all()
    assert len(lesions_of(maze.T[::-1])) == 1


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
