"""Histograms of activations, one pass over frames, and what each method makes of them."""

from __future__ import annotations

import itertools
import weakref
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeseg.export.ranges import BINS, LEVELS, METHODS, Histogram, add_values, measure_ranges
from edgeseg.runtime.errors import InputError, Refused


def histogram_of(*frames):
    histogram = None
    for frame in frames:
        histogram = add_values(histogram, np.asarray(frame, np.float32))
    return histogram


def filled(histogram):
    return {int(index): int(histogram.counts[index]) for index in np.flatnonzero(histogram.counts)}


def gaussian(count=100_000, seed=0):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def tiny_model(*weights):
    """A 1x1 convolution an entry, each with its name, then a ReLU: image -> logits."""
    nodes, tensors, last = [], [], "image"
    for index, channels in enumerate(weights):
        value = np.asarray(channels, np.float32)
        tensors.append(onnx.numpy_helper.from_array(value[:, :, None, None], f"w{index}"))
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"conv{index}"], f"c{index}"))
        last = f"conv{index}"
    nodes.append(helper.make_node("Relu", [last], ["logits"], "relu"))
    shape = [1, len(weights[-1]), 1, 2]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 1, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True).SerializeToString()


def image(*values):
    return np.asarray(values, np.float32).reshape(1, 1, 1, 2)


# --- histograms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("peaks", [(1,), (1, 2, 4), (4, 2, 1), (0, 3, 0), (1e-3, 50, 7, 900)])
def test_every_value_is_counted_once_however_the_range_grows(peaks):
    frames = [peak * np.linspace(-1, 1, 101) for peak in peaks]
    histogram = histogram_of(*frames)
    assert histogram.counts.sum() == 101 * len(peaks)
    assert histogram.largest == np.float32(max(peaks))
    assert histogram.largest <= histogram.width * BINS * (1 + 1e-6)


def test_sign_of_a_value_does_not_matter():
    ours, theirs = histogram_of([0.25, -1, 0.5]), histogram_of([-0.25, 1, -0.5])
    assert (ours.counts == theirs.counts).all()
    assert (ours.width, ours.largest) == (theirs.width, theirs.largest) == (1 / BINS, 1.0)


def test_growing_range_joins_bins_in_pairs():
    first = histogram_of([0, 3 / BINS, 4.5 / BINS, 5.5 / BINS, 1.0])
    assert filled(first) == {0: 1, 3: 1, 4: 1, 5: 1, BINS - 1: 1}
    twice = add_values(first, np.asarray([2.0], np.float32))
    assert filled(twice) == {0: 1, 1: 1, 2: 2, BINS // 2 - 1: 1, BINS - 1: 1}
    assert (twice.width, twice.largest) == (2 / BINS, 2.0)
    eight_times = add_values(twice, np.asarray([8.0], np.float32))
    assert filled(eight_times) == {0: 4, BINS // 8 - 1: 1, BINS // 4 - 1: 1, BINS - 1: 1}
    assert (eight_times.width, eight_times.largest) == (8 / BINS, 8.0)


def test_at_least_half_of_the_bins_stay_in_use():
    histogram = histogram_of([1.0], [1.001])
    assert histogram.width == 2 / BINS
    assert max(filled(histogram)) == int(1.001 * BINS / 2) >= BINS // 2


def test_adding_values_leaves_the_histogram_before_as_it_was():
    before = histogram_of([0.5, 1.0])
    kept = before.counts.copy()
    add_values(before, np.asarray([0.25, 4.0], np.float32))
    assert (before.counts == kept).all()
    assert before.largest == 1.0


def test_adding_values_leaves_the_activations_as_they_were():
    values = np.asarray([[-3.0, 2.0]], np.float32)
    add_values(None, values)
    assert values.tolist() == [[-3.0, 2.0]]


def test_order_of_frames_moves_no_value_by_more_than_a_bin():
    frames = [peak * np.append(gaussian(500, seed=peak).clip(-1, 1), 1.0) for peak in (1, 2, 4)]
    totals = [np.cumsum(histogram_of(*order).counts) for order in itertools.permutations(frames)]
    assert any((total != totals[0]).any() for total in totals)  # else nothing was shown
    for total in totals:
        assert (total[1:] >= totals[0][:-1]).all()
        assert (total[:-1] <= totals[0][1:]).all()


@pytest.mark.parametrize(
    ("method", "share"), [("min-max", 0), ("percentile", 0.01), ("mse", 0.05), ("entropy", 0.2)]
)
def test_order_of_frames_hardly_changes_a_range(method, share):
    frames = [peak * gaussian(20_000, index) for index, peak in enumerate((1, 1.7, 0.4, 2.9))]
    ranges = [METHODS[method](histogram_of(*order)) for order in itertools.permutations(frames)]
    assert max(ranges) <= (1 + share) * min(ranges)


def test_memory_does_not_grow_with_the_frames():
    one, many = (
        histogram_of(gaussian(50)),
        histogram_of(*[gaussian(50, seed) for seed in range(99)]),
    )
    assert one.counts.shape == many.counts.shape == (BINS,)
    assert one.counts.nbytes == many.counts.nbytes
    assert many.counts.dtype == np.int64


# --- one pass over the frames --------------------------------------------------------------------


def test_largest_is_exact_for_every_activation_and_taken_over_all_frames():
    model = tiny_model([[2.0], [-1.0]])
    found = measure_ranges(model, [image(-3, 1), image(0.5, 2), image(0, 0)])
    assert found.frames == 3
    assert dict(found.largest) == {"image": 3.0, "conv0": 6.0, "logits": 4.0}


def test_what_is_measured_is_what_does_not_follow_from_others():
    found = measure_ranges(tiny_model([[2.0], [-1.0]]), [image(-3, 1), image(0.5, 2)])
    # conv0 has the range of its ReLU, with which every engine fuses it.
    assert found.histograms.keys() == {"image", "logits"}
    assert found.histograms["image"].counts.sum() == 4
    assert found.histograms["logits"].counts.sum() == 8
    assert found.amax("min-max") == {"image": 3.0, "logits": 4.0}


@pytest.mark.parametrize("method", METHODS)
def test_tensor_that_is_always_zero_gets_the_range_one(method):
    found = measure_ranges(tiny_model([[-1.0]]), [image(1, 2), image(0, 3)])
    assert found.largest["logits"] == 0.0
    assert found.amax(method)["logits"] == 1.0


def test_frames_are_not_kept():
    alive = []

    def frames():
        for index in range(20):
            frame = image(index, 1)
            alive.append(weakref.ref(frame))
            yield frame
            del frame
            assert sum(each() is not None for each in alive) <= 2

    assert measure_ranges(tiny_model([[1.0]]), frames()).frames == 20


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_frame_that_is_not_finite_is_refused_by_number_and_name(value):
    with pytest.raises(Refused, match="activation image is not finite on calibration frame 2") as e:
        measure_ranges(tiny_model([[1.0]]), [image(1, 2), image(1, value)])
    assert e.value.code == "E-CALIB-RANGE"


def test_activation_that_overflows_is_refused_by_its_name():
    model = tiny_model([[1e30]], [[1e30]])
    assert measure_ranges(model, [image(0, 0)]).frames == 1
    with pytest.raises(Refused, match=r"activation conv1 .* frame 1") as caught:
        measure_ranges(model, [image(0, 1)])
    assert caught.value.code == "E-CALIB-RANGE"


def test_calibration_without_a_frame_is_refused():
    with pytest.raises(InputError) as caught:
        measure_ranges(tiny_model([[1.0]]), [])
    assert caught.value.code == "E-CALIB-EMPTY"


def test_unknown_method_is_refused_with_the_known_ones():
    found = measure_ranges(tiny_model([[1.0]]), [image(1, 2)])
    with pytest.raises(InputError, match=", ".join(METHODS)) as caught:
        found.amax("median")
    assert caught.value.code == "E-CALIB-METHOD"


# --- methods -------------------------------------------------------------------------------------

SHAPES = {
    "gaussian": gaussian(),
    "relu": np.maximum(gaussian(), 0),
    "uniform": np.random.default_rng(0).uniform(-1, 1, 100_000),
    "laplace": np.random.default_rng(0).laplace(size=100_000),
    "constant": np.full(100, 3.0),
    "one value": np.asarray([0.7]),
    "mostly zero": np.append(np.zeros(10_000), [1.0, 2.0]),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_range_is_above_zero_and_no_larger_than_what_was_met(method, shape):
    histogram = histogram_of(SHAPES[shape])
    assert 0 < METHODS[method](histogram) <= histogram.largest
    grown = histogram_of(SHAPES[shape], 1.1 * SHAPES[shape])  # its last bins are empty
    assert 0 < METHODS[method](grown) <= grown.largest


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_range_scales_with_the_values(method, shape):
    ours = METHODS[method](histogram_of(SHAPES[shape]))
    assert METHODS[method](histogram_of(8 * SHAPES[shape])) == pytest.approx(8 * ours, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_frames_seen_twice_change_no_range(method, shape):
    once, twice = histogram_of(SHAPES[shape]), histogram_of(SHAPES[shape], SHAPES[shape])
    assert METHODS[method](twice) == pytest.approx(METHODS[method](once), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_constant_is_never_clipped(method):
    assert METHODS[method](histogram_of([3.0] * 10)) == pytest.approx(3.0, rel=1e-3)


def test_min_max_clips_nothing():
    assert METHODS["min-max"](histogram_of(gaussian(), [-77.0])) == 77.0


def test_percentile_drops_an_outlier_that_is_rarer_than_one_in_ten_thousand():
    ramp = np.arange(1, 20_001) / 20_000
    assert METHODS["percentile"](histogram_of(ramp, [50.0])) == pytest.approx(1.0, abs=64 / BINS)
    thrice = histogram_of(ramp, [50.0] * 3)
    assert METHODS["percentile"](thrice) == pytest.approx(50.0, abs=64 / BINS)


def test_percentile_of_a_ramp_lies_at_its_place():
    histogram = histogram_of(np.arange(1, 100_001) / 100_000)
    assert METHODS["percentile"](histogram) == pytest.approx(0.9999, abs=1 / BINS)


@pytest.mark.parametrize("method", ["percentile", "mse", "entropy"])
def test_far_outlier_in_a_gaussian_is_clipped(method):
    histogram = histogram_of(gaussian(), [40.0])
    counts = histogram.counts * 100
    counts[np.flatnonzero(counts)[-1]] = 1  # ten million values, one of them far away
    assert 2.0 < METHODS[method](replace(histogram, counts=counts)) < 8.0


def test_squared_error_of_clipping_one_value_is_weighed_against_rounding_all():
    # d/dc of (40 - c)^2 / N + (c / 127)^2 / 12 is 0 at c = 40 / (1 + N / (12 * 127^2)) = 26.4.
    chosen = METHODS["mse"](histogram_of(gaussian(), [40.0]))
    assert chosen == pytest.approx(26.4, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_uniform_values_are_hardly_clipped(method):
    assert METHODS[method](histogram_of(SHAPES["uniform"])) > 0.9


def squared_error(values, amax):
    step = amax / LEVELS
    return float(np.mean((np.clip(np.round(values / step), -LEVELS, LEVELS) * step - values) ** 2))


@pytest.mark.parametrize("shape", ["gaussian", "relu", "laplace"])
def test_no_other_range_has_noticeably_less_squared_error_than_the_one_of_mse(shape):
    values = SHAPES[shape]
    histogram = histogram_of(values)
    ours = squared_error(values, METHODS["mse"](histogram))
    others = [squared_error(values, histogram.largest * share) for share in np.linspace(0.2, 1, 41)]
    assert ours <= 1.02 * min(others)
    assert ours < 0.9 * others[-1]  # and clipping was worth it


def plain_divergence(counts, stop):
    """Kullback-Leibler divergence as Migacz's slides give it, bin by bin, into 128 levels."""
    reference = [float(count) for count in counts[:stop]]
    reference[-1] += float(sum(counts[stop:]))
    quantised = [0.0] * stop
    for level in range(LEVELS + 1):
        bins = [at for at in range(stop) if at * (LEVELS + 1) // stop == level]
        full = [at for at in bins if reference[at] > 0]
        for at in full:
            quantised[at] = sum(float(counts[each]) for each in bins) / len(full)
    p_sum, q_sum = sum(reference), sum(quantised)
    total = 0.0
    for p, q in zip(reference, quantised, strict=True):
        if p > 0:
            total += p / p_sum * np.log((p / p_sum) / (q / q_sum)) if q > 0 else np.inf
    return total


def test_no_other_range_diverges_noticeably_less_than_the_one_of_entropy():
    histogram = histogram_of(gaussian(20_000), [12.0])
    counts = histogram.counts.copy()
    counts[0] = counts[1]
    ours = METHODS["entropy"](histogram) / histogram.width
    others = [plain_divergence(counts, stop) for stop in range(LEVELS + 1, BINS + 1, 40)]
    assert plain_divergence(counts, round(ours)) <= 1.1 * min(others)
    assert ours == pytest.approx(round(ours))


def test_zeros_that_a_relu_makes_do_not_change_the_range_of_entropy():
    positive = np.abs(gaussian()) + 1e-2
    without = METHODS["entropy"](histogram_of(positive))
    assert METHODS["entropy"](histogram_of(positive, np.zeros(500_000))) == without


def test_histogram_of_nothing_but_its_fields_is_all_a_method_needs():
    counts = np.zeros(BINS, np.int64)
    counts[[0, 9, 99]] = 5, 5, 5
    histogram = Histogram(counts, width=0.01, largest=0.995)
    for choose in METHODS.values():
        assert choose(histogram) == pytest.approx(1.0, abs=0.02)


def test_entropy_does_not_clip_half_of_the_values_however_they_lie():
    values = np.repeat(np.float32([0.0622, 1.0]), 50)
    chosen = METHODS["entropy"](add_values(None, values))
    assert chosen == pytest.approx(1.0, rel=0.01)
