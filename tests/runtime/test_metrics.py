"""Overlap and boundary metrics: laws, values worked by hand, and what is undefined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeseg.runtime.metrics import (
    PixelCounts,
    accuracy_score,
    bootstrap_interval,
    boundary_of,
    count_pixels,
    dice_score,
    hd95_px,
    iou_score,
    precision_score,
    recall_score,
)


def square(top, left, side, size=32):
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


# 4 pixels of lesion, 4 of prediction, 2 in common, of 10
COUNTS = PixelCounts(tp=2, fp=2, fn=2, tn=4)


@pytest.mark.parametrize(
    ("score", "value"),
    [
        (dice_score, 4 / 8),
        (iou_score, 2 / 6),
        (recall_score, 2 / 4),
        (precision_score, 2 / 4),
        (accuracy_score, 6 / 10),
    ],
)
def test_scores_of_two_hits_two_false_alarms_and_two_misses(score, value):
    assert score(COUNTS) == pytest.approx(value)


def test_pixels_are_counted_into_four_kinds():
    mask = np.array([[1, 1, 0, 0]])
    truth = np.array([[255, 0, 255, 0]])
    assert count_pixels(mask, truth) == PixelCounts(tp=1, fp=1, fn=1, tn=1)


def test_counts_of_two_images_add_up():
    assert COUNTS + PixelCounts(1, 0, 0, 9) == PixelCounts(3, 2, 2, 13)


def test_masks_of_unequal_shape_are_not_compared():
    with pytest.raises(ValueError, match=r"\[2, 2\] against truth \[2, 3\]"):
        count_pixels(np.zeros((2, 2)), np.zeros((2, 3)))


@pytest.mark.parametrize("score", [dice_score, iou_score, recall_score, precision_score])
def test_overlap_of_two_empty_masks_is_undefined_and_not_1(score):
    assert math.isnan(score(count_pixels(np.zeros((4, 4)), np.zeros((4, 4)))))


def test_missed_lesion_scores_0_and_its_precision_is_undefined():
    counts = count_pixels(np.zeros((4, 4)), np.ones((4, 4)))
    assert (dice_score(counts), iou_score(counts), recall_score(counts)) == (0, 0, 0)
    assert math.isnan(precision_score(counts))


def test_boundary_of_a_3x3_square_is_all_but_its_middle():
    found = {tuple(pixel) for pixel in boundary_of(square(5, 5, 3)).tolist()}
    assert found == {(y, x) for y in (5, 6, 7) for x in (5, 6, 7)} - {(6, 6)}


def test_boundary_includes_the_image_edge():
    assert len(boundary_of(np.ones((4, 4)))) == 12


def test_hd95_of_equal_masks_is_0():
    assert hd95_px(square(4, 4, 9), square(4, 4, 9)) == 0


def test_hd95_of_single_pixels_3_down_and_4_across_is_5():
    assert hd95_px(square(2, 2, 1), square(5, 6, 1)) == 5


def test_hd95_of_a_square_shifted_by_4_is_4_both_ways_round():
    # A fifth of each boundary, its far side, lies 4 px away: more than the 5 % that are cut.
    here, there = square(8, 8, 9), square(8, 12, 9)
    assert hd95_px(here, there) == hd95_px(there, here) == 4


def test_hd95_ignores_a_far_speck_of_less_than_5_percent_of_the_boundary():
    speckled = square(4, 4, 20)
    speckled[31, 31] = 1  # 1 of 153 boundary pixels
    assert hd95_px(speckled, square(4, 4, 20)) == 0


def test_hd95_in_blocks_is_hd95_in_one_piece():
    # Noise: about 3000 boundary pixels each, so the distance table is cut into blocks.
    rng = np.random.default_rng(0)
    ours, theirs = (rng.random((80, 80)) > 0.5 for _ in range(2))
    a, b = (boundary_of(mask).astype(float) for mask in (ours, theirs))
    table = np.hypot(a[:, None, 0] - b[None, :, 0], a[:, None, 1] - b[None, :, 1])
    assert table.size > 4_000_000
    pooled = np.concatenate([table.min(axis=1), table.min(axis=0)])
    assert hd95_px(ours, theirs) == pytest.approx(np.percentile(pooled, 95))


@pytest.mark.parametrize("empty_first", [True, False])
def test_hd95_with_an_empty_mask_is_undefined(empty_first):
    masks = [np.zeros((8, 8)), np.ones((8, 8))]
    assert math.isnan(hd95_px(*masks if empty_first else masks[::-1]))


def test_bootstrap_of_equal_values_is_that_value():
    assert bootstrap_interval([0.5] * 7) == (0.5, 0.5)


def test_bootstrap_is_the_same_every_time_and_differs_with_the_seed():
    values = np.random.default_rng(0).random(20).tolist()
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_bootstrap_interval_holds_the_mean_and_widens_with_confidence():
    values = [0.0, 1.0] * 20
    low, high = bootstrap_interval(values)
    assert 0.3 < low < 0.5 < high < 0.7  # standard error 0.08
    wider_low, wider_high = bootstrap_interval(values, confidence=0.99)
    assert wider_low < low < high < wider_high


def test_bootstrap_leaves_undefined_values_out():
    values = [0.1, 0.4, 0.9]
    assert bootstrap_interval([*values, math.nan]) == bootstrap_interval(values)


def test_bootstrap_draws_a_group_whole():
    # Drawn are a and a, a and b, or b and b: means 0, 1/4 and 1.
    values, groups = [0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]
    assert bootstrap_interval(values, groups) == (0.0, 1.0)
    assert bootstrap_interval(values, ["a"] * 4) == pytest.approx((math.nan,) * 2, nan_ok=True)


def test_bootstrap_of_groups_of_one_is_that_of_the_values():
    values = [0.1, 0.4, 0.9]
    assert bootstrap_interval(values, ["x", "y", "z"]) == bootstrap_interval(values)


@pytest.mark.parametrize("values", [[], [0.5], [0.5, math.nan]])
def test_bootstrap_of_fewer_than_two_values_is_undefined(values):
    assert all(math.isnan(end) for end in bootstrap_interval(values))
