"""Both errors over the threshold, the operating point that weighs them, and the temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from edgeseg.benchmarks.measure.accuracy import calibration_error, score_images
from edgeseg.benchmarks.measure.froc import (
    curves_of,
    parts_of,
    render_curves,
    score_with_curves,
    thresholds_for,
)
from edgeseg.benchmarks.measure.operating_point import choose_point
from edgeseg.benchmarks.measure.temperature import fit_temperature
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.image import kept_logits
from edgeseg.runtime.session import Session

CONTRACT = InputContract(32, 32)


def logit(probability):
    return math.log(probability / (1 - probability))


def picture(*spots):
    """Logits of 32 x 32 px: squares of (side, probability) in a row, the rest at 0.01."""
    logits = np.full((32, 32), logit(0.01), np.float32)
    for index, (side, probability) in enumerate(spots):
        logits[4 : 4 + side, 10 * index : 10 * index + side] = logit(probability)
    return logits


def lesion(side, index=0):
    truth = np.zeros((32, 32), bool)
    truth[4 : 4 + side, 10 * index : 10 * index + side] = True
    return truth


EMPTY = np.zeros((32, 32), bool)


def case(logits, truth, source="", contract=CONTRACT):
    return parts_of(logits, truth, thresholds_for(contract), source)


def at(curve, threshold):
    (point,) = (each for each in curve.points if each.threshold == threshold)
    return point


def choose(*cases, limit, contract=CONTRACT):
    return choose_point([case(*each) for each in cases], contract, limit).contract


# --- the curve -----------------------------------------------------------------------------------


def test_curve_counts_lesions_found_and_marks_at_each_threshold():
    cases = [
        case(picture((8, 0.83)), lesion(8)),
        case(picture((8, 0.42)), lesion(8)),
        case(picture((3, 0.42), (3, 0.83)), EMPTY),
        case(picture(), EMPTY),
    ]
    (curve,) = curves_of(cases, CONTRACT)
    assert (curve.name, curve.lesions, curve.without_lesion) == ("all sets", 2, 2)
    low, middle, high = (at(curve, each) for each in (0.4, 0.5, 0.95))
    assert (low.dice, low.found_share, low.missed) == (1, 1, 0)
    assert (low.marks_per_normal, low.marked_share) == (1.0, 0.5)
    assert (middle.dice, middle.found_share, middle.missed) == (0.5, 0.5, 1)
    assert (middle.marks_per_normal, middle.marked_share) == (0.5, 0.5)
    assert (high.dice, high.touched_share, high.missed, high.marked_share) == (0, 0, 2, 0)


def test_lesion_of_little_overlap_is_touched_and_still_missed():
    (curve,) = curves_of([case(picture((1, 0.9)), lesion(9))], CONTRACT)
    point = at(curve, 0.5)
    assert point.dice == pytest.approx(2 / 82)
    assert (point.touched_share, point.found_share, point.missed) == (1, 0, 1)
    assert math.isnan(point.marked_share)
    assert math.isnan(point.marks_per_normal)


def test_curve_of_a_contract_drops_what_is_below_its_least_lesion():
    least = replace(CONTRACT, least_area=10 / 1024, least_peak=0.7)
    cases = [case(picture((3, 0.9), (4, 0.6)), EMPTY), case(picture((4, 0.9)), lesion(4))]
    (plain,), (kept,) = curves_of(cases, CONTRACT), curves_of(cases, least)
    assert at(plain, 0.5).marks_per_normal == 2
    assert at(kept, 0.5).marks_per_normal == 0
    assert at(kept, 0.5).dice == 1


def test_each_data_set_has_its_curve_where_there_are_several():
    cases = [case(picture((4, 0.9)), lesion(4), "busi"), case(picture(), lesion(4), "bra")]
    curves = curves_of(cases, CONTRACT)
    assert [each.name for each in curves] == ["all sets", "bra", "busi"]
    assert [at(each, 0.5).missed for each in curves] == [1, 1, 0]
    assert "busi" in render_curves(curves, CONTRACT)
    assert len(curves_of(cases[:1], CONTRACT)) == 1


def test_threshold_of_the_contract_is_on_the_curve_with_a_star():
    contract = replace(CONTRACT, threshold=0.623)
    curves = curves_of([case(picture(), lesion(4), "", contract)], contract)
    assert "0.623*" in render_curves(curves, contract)
    assert "100.0 %" not in render_curves(curves, contract)


@dataclass(frozen=True)
class Shown:
    """A frame that is its own logits, times 20."""

    name: str
    frame: np.ndarray
    truth: np.ndarray
    label: str = "benign"
    group: str = "a"

    def read_image(self, *, colour=False):
        return self.frame

    def read_mask(self):
        return self.truth


class Echo:
    name, facts = "echo", {}

    def run(self, image):
        return image


def test_one_pass_scores_as_the_session_predicts_and_calibrates_as_before():
    generator = np.random.default_rng(0)
    cases = []
    for index in range(6):
        frame = generator.integers(0, 256, (40, 48), dtype=np.uint8)
        cases.append(Shown(f"{index}", frame, frame > 150 if index % 2 else frame > 255))
    session = Session.over(Echo(), replace(CONTRACT, threshold=0.6, least_area=5 / 1024))
    scored = score_with_curves(session, cases, temperature=2.0)
    alone = score_images(session.predict, cases)
    assert [each.counts for each in scored.scores] == [each.counts for each in alone]
    assert scored.calibration_error == pytest.approx(calibration_error(session.logits, cases))
    halved = calibration_error(lambda frame: session.logits(frame) / 2, cases)
    assert scored.calibrated_error == pytest.approx(halved)
    assert math.isnan(score_with_curves(session, cases).calibrated_error)
    (curve,) = scored.curves
    marked = [each.predicted_px > 0 for each in scored.scores if not each.lesion_px]
    assert at(curve, 0.6).marked_share == np.mean(marked)


# --- the choice ----------------------------------------------------------------------------------


def test_threshold_above_the_false_marks_and_below_the_lesions_is_chosen():
    cases = [(picture((8, 0.9)), lesion(8)), (picture((8, 0.72)), EMPTY)]
    chosen = choose(*cases, limit=0)
    assert not chosen.drops
    assert 0.72 < chosen.threshold < 0.9
    assert choose(*cases, limit=1).threshold == 0.75  # fewer marks, at the same Dice


def test_area_tells_lesions_from_marks_where_no_threshold_does():
    cases = [(picture((8, 0.7)), lesion(8)), (picture((1, 0.9)), EMPTY)]
    chosen = choose(*cases, limit=0)
    assert 1 < chosen.least_px <= 64
    assert (kept_logits(cases[1][0], chosen) > chosen.logit_threshold).sum() == 0
    assert (kept_logits(cases[0][0], chosen) > chosen.logit_threshold).sum() == 64


def test_peak_tells_them_apart_where_lesions_fade_to_their_edge():
    logits = picture((8, 0.4))
    logits[6:8, 2:4] = logit(0.96)
    chosen = choose((logits, lesion(8)), (picture((8, 0.7)), EMPTY), limit=0)
    assert chosen.threshold < 0.4
    assert 0.7 < chosen.least_peak < 0.96


def test_of_equal_points_the_one_that_drops_nothing_nearest_to_one_half_is_chosen():
    cases = [(picture((8, 0.99)), lesion(8)), (picture(), EMPTY)]
    assert choose(*cases, limit=0) == CONTRACT


def test_area_drops_nothing_where_the_images_cannot_tell_its_gain_from_chance():
    mark = picture((8, 0.9), (1, 0.99))  # costs the first image 1/129 of its Dice
    cases = [(mark, lesion(8)), *[(picture((8, 0.9)), lesion(8))] * 5, (picture(), EMPTY)]
    assert choose(*cases, limit=0).least_area == 0
    six = [(mark, lesion(8))] * 6  # a gain that each of six images has is no chance
    assert choose(*six, (picture(), EMPTY), limit=0).least_px > 1
    # What the limit asks for is dropped by area all the same, if nothing else drops it.
    assert choose(*cases, (picture((1, 0.99)), EMPTY), limit=0).least_px > 1


def test_of_points_that_are_as_good_the_one_with_fewer_false_marks_is_chosen():
    faint = picture((8, 0.9))
    faint[2, 2] = logit(0.72)  # found whole below that threshold, all but a pixel above
    plain = [(picture((8, 0.9)), lesion(8))] * 5
    cases = [(faint, lesion(8)), *plain, (picture((8, 0.72)), EMPTY)]
    assert choose(*cases, limit=1).threshold == 0.75
    beside = picture((8, 0.9), (1, 0.82))  # a mark in an image with a lesion counts as well
    cases = [(beside, lesion(8)), *plain, (picture(), EMPTY)]
    assert choose(*cases, limit=1).threshold == 0.85


def test_least_peak_keeps_away_from_lesions_that_another_precision_would_drop():
    def faded(highest):
        logits = picture((8, 0.4))
        logits[6:8, 2:4] = logit(highest)
        return logits, lesion(8)

    normal = picture((8, 0.7)), EMPTY
    assert choose(faded(0.9), normal, limit=1).least_peak == 0.75
    assert choose(faded(0.77), normal, limit=1).least_peak == 0  # 0.77 is 0.11 above 0.75
    assert choose(faded(0.77), normal, limit=0).least_peak == 0.75  # as the limit asks


def test_limit_that_no_point_reaches_is_refused_with_the_nearest():
    same = picture((8, 0.9))
    faint = picture((8, 0.7))
    cases = [case(same, lesion(8)), case(same, EMPTY), case(faint, EMPTY)]
    with pytest.raises(Refused, match=r"at most 25\.0 % of the 2 .* marks 50\.0 % .* 1\.000") as e:
        choose_point(cases, CONTRACT, 0.25)
    assert e.value.code == "E-TUNE-LIMIT"
    assert choose_point(cases, CONTRACT, 0.5).score.marked_share == 0.5


def test_marking_nothing_at_all_is_no_operating_point():
    same = picture((8, 0.9))
    with pytest.raises(Refused, match="E-TUNE-LIMIT"):
        choose((same, lesion(8)), (same, EMPTY), limit=0)


@pytest.mark.parametrize(
    ("truth", "missing"), [(EMPTY, "no image with a lesion"), (lesion(4), "no image without")]
)
def test_val_part_with_one_kind_of_images_is_refused(truth, missing):
    with pytest.raises(InputError, match=missing) as caught:
        choose_point([case(picture(), truth)], CONTRACT, 0.5)
    assert caught.value.code == "E-TUNE-IMAGES"


# --- the temperature -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_that_the_logits_were_multiplied_by_is_found(temperature):
    generator = np.random.default_rng(0)
    answers = []
    for _ in range(8):
        true = generator.normal(-1, 2, (64, 64))
        truth = generator.random((64, 64)) < 1 / (1 + np.exp(-true))
        answers.append(((true * temperature).astype(np.float32), truth))
    assert fit_temperature(answers) == pytest.approx(temperature, rel=0.05)


def test_each_image_weighs_the_same_in_the_temperature():
    sure = np.full((8, 8), 4, np.float32), np.ones((8, 8), bool)
    wrong = np.full((64, 64), 4, np.float32), np.arange(4096).reshape(64, 64) % 2 == 0
    alone = fit_temperature([wrong])
    assert alone == pytest.approx(20, rel=0.01)
    assert fit_temperature([sure, wrong]) < 10
