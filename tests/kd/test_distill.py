"""Distillation losses: laws that hold for each row, then values that can be worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from edgeseg.kd.distill import (
    DISTILLATIONS,
    MAX_POSITIONS,
    attention_transfer,
    binary_kl,
    channel_wise,
    find_distillation,
    hint,
    intra_class_variation,
    pair_wise,
)
from edgeseg.kd.models import Trace, build_model
from edgeseg.runtime.errors import InputError

pytestmark = pytest.mark.numbers

SIZE = 64
NETWORKS = ("attunet-8", "edge-16", "resnet50-attunet")
# Each differs from its partner in the channels and resolution of centre and decoder.
PAIRS = [
    ("edge-16", "attunet-8"),
    ("attunet-8", "edge-16"),
    ("attunet-8", "resnet50-attunet"),
    ("resnet50-attunet", "edge-16"),
]
NO_TRUTH = torch.zeros(1, 1, 1, 1)

each_distillation = pytest.mark.parametrize("name", DISTILLATIONS)
each_pair = pytest.mark.parametrize(("student", "teacher"), PAIRS)


@pytest.fixture(scope="module")
def traces():
    """What untrained networks make of three images."""
    torch.manual_seed(0)
    images = torch.randn(3, 1, SIZE, SIZE)
    with torch.no_grad():
        return {name: build_model(name).trace(images) for name in NETWORKS}


@pytest.fixture(scope="module")
def truth():
    """Three masks: no lesion, a square, all lesion."""
    masks = torch.zeros(3, 1, SIZE, SIZE)
    masks[1, :, 16:40, 16:40] = 1
    masks[2] = 1
    return masks


def change(trace, function):
    return Trace(*(function(each) for each in trace))


def leaves(trace):
    """A copy of a trace that gradients can reach."""
    return change(trace, lambda each: each.clone().requires_grad_())


def adapt(name, student, teacher):
    """Let the student's centre pass an untrained 1×1 convolution, if the loss needs it."""
    if not DISTILLATIONS[name].adapter:
        return student
    shape = (teacher.centre.shape[1], student.centre.shape[1], 1, 1)
    weight = torch.randn(shape, generator=torch.manual_seed(0)) / shape[1] ** 0.5
    return student._replace(centre=F.conv2d(student.centre, weight))


def loss_of(name, student, teacher, truth, temperature=2.0):
    return DISTILLATIONS[name].term(student, teacher, truth, temperature)


def trace_of(**maps):
    """A trace of one image; what is not given is of one position and zero."""
    empty = torch.zeros(1, 1, 1, 1)
    return Trace(*(maps.get(field, empty) for field in Trace._fields))


def row(*channels):
    """Channels of a 1×W map: [1, C, 1, W]."""
    return torch.tensor(channels).reshape(1, len(channels), 1, -1)


# --- every row of the table ----------------------------------------------------------------------


@each_distillation
@each_pair
def test_each_image_has_a_loss_above_0_whatever_the_sizes_of_the_features(
    traces, truth, name, student, teacher
):
    ours = adapt(name, traces[student], traces[teacher])
    loss = loss_of(name, ours, traces[teacher], truth)
    assert loss.shape == (3,)
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert (loss > 0).all()


@each_distillation
def test_student_that_is_its_teacher_has_no_loss(traces, truth, name):
    for trace in traces.values():
        loss = loss_of(name, trace, change(trace, torch.clone), truth)
        assert loss.tolist() == pytest.approx([0, 0, 0], abs=1e-6)


@each_distillation
@each_pair
def test_no_image_sees_another(traces, truth, name, student, teacher):
    ours, theirs = adapt(name, traces[student], traces[teacher]), traces[teacher]
    together = loss_of(name, ours, theirs, truth)
    for index in range(3):
        only = slice(index, index + 1)
        one, other = (change(trace, lambda each, only=only: each[only]) for trace in (ours, theirs))
        alone = loss_of(name, one, other, truth[only])
        assert alone.item() == pytest.approx(together[index].item(), rel=1e-5, abs=1e-7)


@each_distillation
@each_pair
def test_gradient_reaches_what_the_row_says_it_reads_and_never_the_teacher(
    traces, truth, name, student, teacher
):
    ours, theirs = leaves(traces[student]), leaves(traces[teacher])
    loss_of(name, adapt(name, ours, theirs), theirs, truth).sum().backward()
    assert [each.grad for each in theirs] == [None, None, None]
    reached = [each.grad for each in ours if each.grad is not None]
    assert all(torch.isfinite(grad).all() and grad.any() for grad in reached)
    in_features = ours.centre.grad is not None or ours.decoder.grad is not None
    assert (ours.logits.grad is not None, in_features) == (
        not DISTILLATIONS[name].features,
        DISTILLATIONS[name].features,
    )


@pytest.mark.parametrize("name", [n for n, row in DISTILLATIONS.items() if not row.features])
def test_stored_logits_suffice_where_the_row_says_so(traces, truth, name):
    nothing = torch.empty(3, 0, 0, 0)
    stored = Trace(traces["edge-16"].logits, nothing, nothing)
    loss = loss_of(name, traces["attunet-8"], stored, truth)
    assert torch.equal(loss, loss_of(name, traces["attunet-8"], traces["edge-16"], truth))


@each_distillation
def test_bfloat16_traces_are_compared_in_float32(traces, truth, name):
    pair = adapt(name, traces["edge-16"], traces["attunet-8"]), traces["attunet-8"]
    coarse = [change(trace, torch.Tensor.bfloat16) for trace in pair]
    exact = [change(trace, torch.Tensor.float) for trace in coarse]
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(name, *coarse, truth)
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx(loss_of(name, *exact, truth).tolist(), rel=1e-5)


@each_distillation
@pytest.mark.parametrize("strength", [0.0, 1e-8, 100.0])
def test_silent_and_saturated_networks_have_finite_losses_and_bounded_gradients(
    truth, name, strength
):
    generator = torch.manual_seed(0)
    shapes = [(3, 1, SIZE, SIZE), (3, 8, 4, 4), (3, 8, 16, 16)]
    maps = [torch.randn(shape, generator=generator) for shape in shapes]
    ours = leaves(Trace(*(strength * each for each in maps)))
    theirs = Trace(*(-each for each in maps))
    loss = loss_of(name, ours, theirs, truth)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    for each in ours:
        assert each.grad is None or each.grad.abs().max() < 1e4


@each_distillation
@each_pair
def test_weighted_losses_of_untrained_networks_are_of_like_size(
    traces, truth, name, student, teacher
):
    ours = adapt(name, traces[student], traces[teacher])
    loss = loss_of(name, ours, traces[teacher], truth).mean() * DISTILLATIONS[name].weight
    assert 0.005 < loss.item() < 2


def test_unknown_name_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(InputError) as caught:
        find_distillation("kl-softmax")
    assert caught.value.code == "E-DISTILL-NAME"
    assert all(name in str(caught.value) for name in DISTILLATIONS)


@each_distillation
def test_known_name_is_found(name):
    assert find_distillation(name) is DISTILLATIONS[name]


# --- binary KL -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_is_the_mean_over_pixels_of_the_divergence_worked_by_hand(temperature):
    # Teacher says 3/4 then 1/2, student 1/2 both times, at this temperature.
    teacher = trace_of(logits=row([math.log(3) * temperature, 0.0]))
    loss = binary_kl(trace_of(logits=row([0.0, 0.0])), teacher, NO_TRUTH, temperature)
    by_hand = (0.75 * math.log(1.5) + 0.25 * math.log(0.5) + 0) / 2
    assert loss.item() == pytest.approx(by_hand * temperature**2, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_binary_kl_is_the_kl_of_the_softmax_over_two_classes(temperature):
    # Why the table has no row for softmax KL: for one lesion channel it is the same number.
    student, teacher = torch.randn(2, 3, 1, 8, 8, generator=torch.manual_seed(0)) * 4
    ours, theirs = (
        torch.cat([each, torch.zeros_like(each)], dim=1).div(temperature).log_softmax(dim=1)
        for each in (student, teacher)
    )
    softmax_kl = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
    loss = binary_kl(trace_of(logits=student), trace_of(logits=teacher), NO_TRUTH, temperature)
    expected = softmax_kl.mean(dim=(1, 2)) * temperature**2
    assert loss.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


# --- channel-wise --------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_channel_wise_is_the_kl_of_distributions_over_pixels_worked_by_hand(temperature):
    # Teacher has 1/8, 1/8, 1/8 and 5/8 of its mass on four pixels, student 1/4 on each.
    logits = torch.tensor([[1.0, 1.0], [1.0, 5.0]]).log().reshape(1, 1, 2, 2) * temperature
    student = trace_of(logits=torch.zeros(1, 1, 2, 2))
    loss = channel_wise(student, trace_of(logits=logits), NO_TRUTH, temperature)
    by_hand = 3 / 8 * math.log(1 / 2) + 5 / 8 * math.log(5 / 2)
    assert loss.item() == pytest.approx(by_hand * temperature**2, rel=1e-5)


def test_channel_wise_does_not_see_a_constant_added_to_all_logits():
    teacher = trace_of(logits=row([1.0, -2.0, 0.5, 3.0]))
    student = trace_of(logits=teacher.logits - 4)
    assert channel_wise(student, teacher, NO_TRUTH, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert binary_kl(student, teacher, NO_TRUTH, 2.0).item() > 1


@pytest.mark.parametrize("term", [binary_kl, channel_wise])
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_that_is_not_above_0_is_refused(term, temperature):
    with pytest.raises(ValueError, match="temperature"):
        term(trace_of(), trace_of(), NO_TRUTH, temperature)


@pytest.mark.parametrize("term", [binary_kl, channel_wise])
def test_logits_of_unequal_shape_are_refused(term):
    with pytest.raises(ValueError, match="against"):
        term(trace_of(), trace_of(logits=torch.zeros(1, 1, 1, 2)), NO_TRUTH, 2.0)


# --- attention transfer --------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["centre", "decoder"])
def test_attention_distance_worked_by_hand(level):
    # Sums of squares 3 and 4, so attention 0.6 and 0.8; the teacher's one channel has 0.8 and 0.6.
    student = trace_of(**{level: row([1.0, -2.0], [-math.sqrt(2), 0.0])})
    teacher = trace_of(**{level: row([2.0, math.sqrt(3)])})
    loss = attention_transfer(student, teacher, NO_TRUTH, 2.0)
    assert loss.item() == pytest.approx(0.2**2 + 0.2**2, rel=1e-5)


def test_attention_distances_of_centre_and_decoder_are_added():
    # Attention on one position against attention on the other: 1 + 1 on each level.
    student = trace_of(centre=row([5.0, 0.0]), decoder=row([0.0, 1.0]))
    teacher = trace_of(centre=row([0.0, 3.0]), decoder=row([7.0, 0.0]))
    assert attention_transfer(student, teacher, NO_TRUTH, 2.0).item() == pytest.approx(4)


def test_attention_of_another_resolution_is_resized_without_skipping_positions():
    # The teacher attends to the left edge of 8×8, the student to one half of 2×2.
    edge, left = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 2, 2)
    edge[..., :1] = 1
    left[..., :1] = 1
    for centre, expected in ((left, 0), (left.flip(3), 2)):
        loss = attention_transfer(trace_of(centre=centre), trace_of(centre=edge), NO_TRUTH, 2.0)
        assert loss.item() == pytest.approx(expected, abs=1e-6)


# --- hints ---------------------------------------------------------------------------------------


def test_hint_is_the_mean_squared_difference_worked_by_hand():
    # Differences 1, 2 and 0, 3 in two channels of two positions
    student = trace_of(centre=row([1.0, 2.0], [5.0, 3.0]))
    teacher = trace_of(centre=row([0.0, 0.0], [5.0, 0.0]))
    loss = hint(student, teacher, NO_TRUTH, 2.0)
    assert loss.item() == pytest.approx((1 + 4 + 0 + 9) / 4)


def test_hint_takes_the_mean_of_the_teachers_positions_under_one_of_the_students():
    student, teacher = trace_of(centre=row([2.0, 2.0])), trace_of(centre=row([1.0, 3.0, 4.0, 6.0]))
    # Means 2 and 5
    assert hint(student, teacher, NO_TRUTH, 2.0).item() == pytest.approx((0 + 9) / 2)


def test_hint_to_a_centre_of_other_channels_is_refused_not_broadcast():
    with pytest.raises(ValueError, match="1 channels, not 3"):
        hint(trace_of(), trace_of(centre=torch.zeros(1, 3, 1, 1)), NO_TRUTH, 2.0)


# --- intra-class feature variation ---------------------------------------------------------------

# All positions of a class alike, so each has cosine 1 to its prototype
ALIKE = trace_of(decoder=row([1.0, 1.0, 1.0, 1.0]))


def test_intra_class_variation_worked_by_hand():
    # Lesion (1, 0) and (0, 1): both at 45° to their mean. Background twice (1, 0): cosine 1.
    student = trace_of(decoder=row([1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]))
    loss = intra_class_variation(student, ALIKE, row([1.0, 1.0, 0.0, 0.0]), 2.0)
    assert loss.item() == pytest.approx(2 * (1 - math.sqrt(0.5)) ** 2 / 4, rel=1e-5)


@pytest.mark.parametrize("lesion", [0.0, 1.0])
def test_image_of_one_class_has_one_prototype(lesion):
    # Three (1, 0) and one (0, 1): the prototype is (3, 1) / 4.
    student = trace_of(decoder=row([1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]))
    loss = intra_class_variation(student, ALIKE, row([lesion] * 4), 2.0)
    by_hand = (3 * (1 - 3 / math.sqrt(10)) ** 2 + (1 - 1 / math.sqrt(10)) ** 2) / 4
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_position_is_of_the_class_of_most_of_its_pixels():
    student = trace_of(decoder=row([1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]))
    exact = intra_class_variation(student, ALIKE, row([1.0, 1.0, 0.0, 0.0]), 2.0)
    mask = row([1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])  # 3 px a position
    assert torch.equal(intra_class_variation(student, ALIKE, mask, 2.0), exact)


# --- pair-wise -----------------------------------------------------------------------------------


def test_pair_wise_worked_by_hand():
    # Cosines of the student's pairs 1, 0, 0, 1, of the teacher's 1, -1, -1, 1
    student = trace_of(centre=row([2.0, 0.0], [0.0, 5.0]))
    teacher = trace_of(centre=row([3.0, -1.0]))
    assert pair_wise(student, teacher, NO_TRUTH, 2.0).item() == pytest.approx(2 / 4)


def test_pair_wise_pools_both_to_the_coarser_of_the_two():
    # Each pair of the teacher's positions has the student's feature as its mean.
    student = trace_of(centre=row([2.0, 0.0], [0.0, 5.0]))
    teacher = trace_of(centre=row([1.0, 3.0, -1.0, 1.0], [2.0, -2.0, 4.0, 6.0]))
    for ours, theirs in ((student, teacher), (teacher, student)):
        assert pair_wise(ours, theirs, NO_TRUTH, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_pair_wise_never_compares_more_positions_than_its_limit():
    side = 2 * MAX_POSITIONS
    fine = torch.randn(2, 1, 4, side, side, generator=torch.manual_seed(0))
    pooled = F.avg_pool2d(fine.flatten(0, 1), 2).unflatten(0, (2, 1))
    given, expected = (
        pair_wise(trace_of(centre=ours), trace_of(centre=theirs), NO_TRUTH, 2.0).item()
        for ours, theirs in (fine, pooled)
    )
    assert given == pytest.approx(expected, rel=1e-5)
