"""Losses: laws first, then values that can be worked by hand."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from edgeseg.kd.losses import (
    FALSE_SHARE,
    FALSE_WEIGHT,
    LOSSES,
    MAX_AREA_WEIGHT,
    area_balanced_bce,
    dice_loss,
    overlap_loss,
    supervised_loss,
    terms_of,
)
from edgeseg.runtime.errors import InputError


def truth_with(lesion_px, images=1):
    """[N, 1, 10, 10] with the first `lesion_px` of 100 pixels marked."""
    truth = torch.zeros(images, 1, 100)
    truth[..., :lesion_px] = 1
    return truth.reshape(images, 1, 10, 10)


def logits_for(truth, strength=8.0):
    return (2 * truth - 1) * strength


BOTH = "balanced", "dice"
EVERY = [*LOSSES.values(), functools.partial(supervised_loss, terms=BOTH)]


@pytest.mark.parametrize("loss", EVERY)
def test_perfect_answer_costs_nearly_nothing_and_less_than_a_bad_one(loss):
    truth = truth_with(30)
    perfect, unsure, bad = (loss(logits_for(truth, s), truth).item() for s in (12, 0, -12))
    assert perfect < 1e-3
    assert perfect < unsure < bad


@pytest.mark.parametrize("loss", EVERY)
@pytest.mark.parametrize("lesion_px", [0, 100])
@pytest.mark.parametrize("strength", [-50.0, 0.0, 50.0])
def test_empty_and_full_masks_have_finite_losses_and_gradients(loss, lesion_px, strength):
    logits = torch.full((2, 1, 10, 10), strength, requires_grad=True)
    values = loss(logits, truth_with(lesion_px, images=2))
    values.sum().backward()
    assert values.shape == (2,)
    assert torch.isfinite(values).all()
    assert torch.isfinite(logits.grad).all()


def test_dice_loss_without_lesion_rises_with_what_is_marked_to_the_weight_of_a_false_mask():
    nothing, little, half = (
        dice_loss(torch.full((1, 1, 10, 10), logit), truth_with(0)).item()
        for logit in (-30.0, math.log(FALSE_SHARE / (1 - FALSE_SHARE)), 0.0)
    )
    assert nothing == pytest.approx(0, abs=1e-6)
    assert little == pytest.approx(FALSE_WEIGHT / 2)  # p is FALSE_SHARE
    assert little < half < FALSE_WEIGHT


def test_dice_loss_of_half_probability_on_a_half_mask_is_one_half():
    # overlap 50 · 0.5, total 100 · 0.5 + 50: 1 - 50 / 100
    truth = truth_with(50)
    assert dice_loss(torch.zeros_like(truth), truth).item() == pytest.approx(0.5)


@pytest.mark.parametrize("loss", EVERY)
def test_loss_of_an_image_does_not_depend_on_its_batch(loss):
    truth = torch.cat([truth_with(50), truth_with(0), truth_with(3)])
    logits = torch.randn(truth.shape, generator=torch.manual_seed(0))
    alone = [loss(logits[i : i + 1], truth[i : i + 1]).item() for i in range(3)]
    assert loss(logits, truth).tolist() == pytest.approx(alone)


def test_cross_entropy_of_undecided_pixels_is_log_2_whatever_the_area():
    # The weights of an image have mean 1.
    for lesion_px in (0, 1, 50, 100):
        truth = truth_with(lesion_px)
        loss = area_balanced_bce(torch.zeros_like(truth), truth)
        assert loss.item() == pytest.approx(math.log(2), rel=1e-5)


def share_of_lesion_gradient(lesion_px):
    """How much of the gradient of an undecided answer lies on the lesion."""
    truth = truth_with(lesion_px)
    logits = torch.zeros_like(truth, requires_grad=True)
    area_balanced_bce(logits, truth).backward()
    on_lesion = logits.grad[truth == 1].abs().sum() / logits.grad.abs().sum()
    return on_lesion.item()


@pytest.mark.parametrize(
    ("lesion_px", "weight"),
    # sqrt(80 / 20), sqrt(90 / 10); sqrt(99 / 1) is above the cap; half and more weigh 1
    [(20, 2.0), (10, 3.0), (1, MAX_AREA_WEIGHT), (50, 1.0), (90, 1.0)],
)
def test_lesion_pixel_weighs_the_root_of_background_over_lesion_in_1_to_5(lesion_px, weight):
    expected = lesion_px * weight / (lesion_px * weight + 100 - lesion_px)
    assert share_of_lesion_gradient(lesion_px) == pytest.approx(expected, rel=1e-4)


def test_a_missed_pixel_of_a_small_lesion_costs_more_than_one_of_a_large_lesion():
    def cost_of_a_miss(lesion_px):
        truth = truth_with(lesion_px)
        missed = logits_for(truth)
        missed[0, 0, 0, 0] = -8
        gap = area_balanced_bce(missed, truth) - area_balanced_bce(logits_for(truth), truth)
        return gap.item()

    assert cost_of_a_miss(4) > 1.5 * cost_of_a_miss(60)


def test_supervised_loss_is_the_sum_of_both():
    truth = truth_with(20)
    logits = torch.randn(truth.shape, generator=torch.manual_seed(0))
    both = area_balanced_bce(logits, truth) + dice_loss(logits, truth)
    assert supervised_loss(logits, truth, BOTH).item() == pytest.approx(both.item())


def test_terms_are_those_that_are_named():
    truth = truth_with(20)
    logits = torch.randn(truth.shape, generator=torch.manual_seed(0))
    found = supervised_loss(logits, truth, terms_of("bce+overlap")).item()
    pixels = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)
    assert found == pytest.approx((pixels + dice_loss(logits, truth)).item())
    false_marks = overlap_loss(logits, truth_with(0))
    assert false_marks.item() == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bce+dise", "choose of balanced, dice, bce, overlap"),
        ("", "choose of"),
        ("dice+dice", "twice"),
    ],
)
def test_text_that_names_no_sum_of_losses_is_refused(text, told):
    with pytest.raises(InputError, match=told) as caught:
        terms_of(text)
    assert caught.value.code == "E-LOSS-NAME"
