from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace

import numpy as np
import pytest

from edgeseg.benchmarks.measure.accuracy import (
    METRICS,
    calibration_error,
    paired_difference,
    render_accuracy,
    score_images,
    summarise,
    write_scores_csv,
)
from edgeseg.runtime.errors import InputError


@dataclass(frozen=True)
class FakeCase:
    """A 10×10 image with a lesion of so many whole rows, in which the answer is hidden.

    The image's first pixel tells the fake network how many rows to predict.
    """

    name: str
    lesion_rows: int
    predicted_rows: int
    label: str = "benign"
    look: str | None = None

    @property
    def group(self):
        return self.look or self.name

    def read_image(self, *, colour=False):
        return np.full((10, 10), self.predicted_rows, np.uint8)

    def read_mask(self):
        return rows_mask(self.lesion_rows).astype(bool)


def rows_mask(rows):
    mask = np.zeros((10, 10), np.uint8)
    mask[:rows] = 1
    return mask


def predict(image):
    return rows_mask(image[0, 0])


def scores_of(*cases):
    return score_images(predict, cases)


def test_perfect_mask_scores_1_and_half_a_lesion_scores_two_thirds():
    perfect, half = scores_of(FakeCase("a", 4, 4), FakeCase("b", 4, 2))
    assert (perfect.dice, perfect.iou, perfect.accuracy, perfect.hd95_px) == (1, 1, 1, 0)
    assert half.dice == pytest.approx(2 / 3)
    assert (half.recall, half.precision, half.iou) == (0.5, 1.0, 0.5)
    assert (half.lesion_px, half.predicted_px, half.lesion_share) == (40, 20, 0.4)


def test_missed_lesion_counts_0_and_is_not_left_out():
    accuracy = summarise(scores_of(FakeCase("found", 4, 4), FakeCase("missed", 4, 0)))
    dice = accuracy.lesions.per_image["dice"]
    assert (dice.mean, dice.n, dice.undefined) == (0.5, 2, 0)


def test_undefined_values_are_counted_not_averaged():
    accuracy = summarise(scores_of(FakeCase("found", 4, 4), FakeCase("missed", 4, 0)))
    distance = accuracy.lesions.per_image["hd95_px"]
    assert (distance.mean, distance.n, distance.undefined) == (0.0, 1, 1)


def test_normal_images_enter_no_group():
    lesion = FakeCase("lesion", 4, 4)
    empty = FakeCase("empty", 0, 0, "normal")
    alarm = FakeCase("alarm", 0, 3, "normal")
    accuracy = summarise(scores_of(lesion, empty, alarm))
    assert [group.name for group in accuracy.groups] == [
        "all lesions",
        "benign",
        "small lesions",
        "medium lesions",
        "large lesions",
    ]
    assert accuracy.lesions.images == 1
    assert accuracy.lesions.per_image["dice"].mean == 1
    assert (accuracy.images_without_lesion, accuracy.false_positive_share) == (2, 0.5)


def test_false_positive_share_is_undefined_without_normal_images():
    assert np.isnan(summarise(scores_of(FakeCase("a", 4, 4))).false_positive_share)


def test_pooled_dice_weighs_images_by_their_pixels():
    accuracy = summarise(scores_of(FakeCase("large", 9, 9), FakeCase("small", 1, 0)))
    assert accuracy.lesions.per_image["dice"].mean == 0.5
    assert accuracy.lesions.pooled["dice"] == pytest.approx(180 / 190)


def test_each_label_is_a_group():
    accuracy = summarise(scores_of(FakeCase("a", 4, 4), FakeCase("b", 4, 0, "malignant")))
    dice = {group.name: group.per_image["dice"].mean for group in accuracy.groups}
    assert (dice["benign"], dice["malignant"]) == (1, 0)


def test_size_terciles_split_the_lesions_evenly_by_area():
    accuracy = summarise(scores_of(*(FakeCase(f"{n}", n, n) for n in range(1, 10))))
    assert [group.images for group in accuracy.groups[-3:]] == [3, 3, 3]
    assert accuracy.small_up_to_share == pytest.approx(0.1 + 8 / 3 * 0.1)
    assert accuracy.large_above_share == pytest.approx(0.1 + 16 / 3 * 0.1)


def test_interval_of_equal_scores_has_no_width():
    dice = summarise(scores_of(*(FakeCase(f"{n}", 4, 4) for n in range(5)))).lesions.per_image
    assert (dice["dice"].low, dice["dice"].high) == (1, 1)


def test_prediction_is_given_the_image_and_nothing_else():
    seen = []

    def spy(*arguments, **options):
        seen.append((arguments, options))
        return rows_mask(0)

    score_images(spy, [FakeCase("secret", 4, 7, "malignant")])
    ((image,), options) = seen[0]
    assert options == {}
    assert type(image) is np.ndarray
    np.testing.assert_array_equal(image, np.full((10, 10), 7, np.uint8))


def test_paired_difference_is_the_mean_of_a_minus_b_over_lesions_in_any_order():
    better = scores_of(FakeCase("1", 4, 4), FakeCase("2", 4, 4), FakeCase("n", 0, 0, "normal"))
    worse = scores_of(FakeCase("n", 0, 5, "normal"), FakeCase("2", 4, 0), FakeCase("1", 4, 4))
    difference = paired_difference(better, worse)
    assert (difference.mean, difference.n) == (0.5, 2)
    assert paired_difference(worse, better).mean == -0.5


def test_copies_of_a_case_do_not_narrow_an_interval():
    cases = [FakeCase(f"{rows}", 8, rows, look=f"look {rows}") for rows in (2, 5, 6, 8)]
    copies = [replace(case, name=f"{case.name} again") for case in cases]
    once, twice = summarise(scores_of(*cases)), summarise(scores_of(*cases, *copies))
    assert twice.lesions.images == 2 * once.lesions.images
    dice, of_copies = once.lesions.per_image["dice"], twice.lesions.per_image["dice"]
    assert (of_copies.low, of_copies.high) == pytest.approx((dice.low, dice.high))
    strangers = [replace(case, look=None) for case in (*cases, *copies)]
    narrower = summarise(scores_of(*strangers)).lesions.per_image["dice"]
    assert narrower.high - narrower.low < dice.high - dice.low


def test_run_does_not_differ_from_itself():
    scores = scores_of(*(FakeCase(f"{n}", 4, n) for n in range(5)))
    difference = paired_difference(scores, scores)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert not difference.differs


def test_constant_gain_differs():
    better = scores_of(*(FakeCase(f"{n}", 4, 4) for n in range(5)))
    worse = scores_of(*(FakeCase(f"{n}", 4, 2) for n in range(5)))
    assert paired_difference(better, worse).differs


def test_runs_on_different_images_are_not_compared():
    with pytest.raises(InputError) as caught:
        paired_difference(scores_of(FakeCase("a", 4, 4)), scores_of(FakeCase("b", 4, 4)))
    assert caught.value.code == "E-SCORES-DIFFER"


def test_csv_has_a_line_per_image_and_empty_cells_for_undefined_values(tmp_path):
    path = tmp_path / "scores.csv"
    write_scores_csv(path, scores_of(FakeCase('a,"b"', 4, 4), FakeCase("missed", 4, 0)))
    with path.open(encoding="utf-8", newline="") as stream:
        found, missed = csv.DictReader(stream)
    assert (found["name"], found["dice"], found["tp_px"]) == ('a,"b"', "1", "40")
    assert (missed["dice"], missed["precision"], missed["hd95_px"]) == ("0", "", "")


def test_summary_is_ready_for_json_with_null_for_undefined():
    text = json.dumps(summarise(scores_of(FakeCase("a", 4, 0))).to_dict(), allow_nan=False)
    lesions = json.loads(text)["groups"][0]
    assert set(lesions["per_image"]) == set(METRICS)
    assert lesions["per_image"]["precision"]["mean"] is None


def test_table_names_every_group_and_the_size_thresholds():
    text = render_accuracy(summarise(scores_of(FakeCase("a", 4, 4), FakeCase("n", 0, 1, "normal"))))
    assert "all lesions" in text
    assert "small up to 40.0 %" in text
    assert "any pixel predicted in 100.0 %" in text


def test_no_scores_give_empty_groups():
    accuracy = summarise([])
    assert accuracy.lesions.images == 0
    assert "–" in render_accuracy(accuracy)


# --- calibration ---------------------------------------------------------------------------------


def certain_of(*probabilities):
    """Return a network that gives each image in turn one probability all over, as its logit."""
    answers = iter(probabilities)
    return lambda image: np.full(image.shape, -np.log(1 / next(answers) - 1), np.float32)


def test_calibration_error_is_the_gap_between_probability_and_share_of_lesion():
    assert calibration_error(certain_of(0.25), [FakeCase("a", 4, 0)]) == pytest.approx(0.15)


def test_calibration_error_is_the_mean_over_images_where_the_bins_differ():
    cases = [FakeCase("a", 4, 0), FakeCase("b", 10, 0)]  # gaps 0.25 - 0.4 and 0.75 - 1.0
    assert calibration_error(certain_of(0.25, 0.75), cases) == pytest.approx(0.2)


def test_gaps_of_one_bin_cancel_across_images():
    cases = [FakeCase("a", 5, 0), FakeCase("b", 3, 0)]
    assert calibration_error(certain_of(0.41, 0.41), cases) == pytest.approx(0.01)
    # 0.39 and 0.41 lie on both sides of 6 / 15
    assert calibration_error(certain_of(0.39, 0.41), cases) == pytest.approx(0.11)


def test_certain_and_right_has_no_calibration_error_however_large_the_logits():
    case = FakeCase("a", 4, 0)
    sure = np.where(case.read_mask(), 1e4, -1e4).astype(np.float32)
    assert calibration_error(lambda image: sure, [case]) == 0
    assert calibration_error(lambda image: -sure, [case]) == 1


def test_images_weigh_the_same_whatever_the_size_of_the_answer():
    sizes = iter((10, 5))  # the second network works at half the size

    def logits_of(image):
        side = next(sizes)
        return np.full((side, side), 0.0 if side == 10 else np.log(3), np.float32)

    cases = [FakeCase("a", 4, 0), FakeCase("b", 4, 0)]  # gaps 0.1 and 0.35
    assert calibration_error(logits_of, cases) == pytest.approx((0.1 + 0.35) / 2)
