"""Q/DQ pairs and calibration caches, on graphs small enough to follow and on the trained run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeseg.export.graph import activations_of
from edgeseg.export.parity import exact_run
from edgeseg.export.pipeline import load_trained
from edgeseg.export.qdq import (
    calibration_cache,
    qdq_from_onnx,
    quantisable_convolutions,
    rounding_of,
)
from edgeseg.export.ranges import measure_ranges
from edgeseg.export.to_half import half_from_onnx
from edgeseg.runtime.image import input_from_frame, read_image

pytestmark = pytest.mark.numbers

SIZE = 8
RELU_A, POOL, RELU_B, UP, CONCAT = "relu_a", "pool", "relu_b", "up", "concat"


def make_model(nodes, tensors, *, channels, outputs=("logits",)):
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, SIZE, SIZE])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, SIZE, SIZE])
            for name, count in zip(outputs, channels, strict=True)
        ],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True).SerializeToString()


def tensor(name, value):
    return numpy_helper.from_array(np.asarray(value, np.float32), name)


def conv(name, source, out, *, weight=None, bias=True):
    inputs = [source, weight or f"{name}.w", *([f"{name}.b"] if bias else [])]
    return helper.make_node("Conv", inputs, [out], name, pads=[1, 1, 1, 1])


def weights_of(name, out, into, seed):
    draw = np.random.default_rng(seed)
    spread = np.linspace(0.2, 1, out).reshape(-1, 1, 1, 1) / np.sqrt(9 * into)
    return [
        tensor(f"{name}.w", draw.normal(size=(out, into, 3, 3)) * spread),
        tensor(f"{name}.b", draw.normal(size=out) * 0.1),
    ]


def unet(outputs=("logits",), channels=(1,)):
    """Two levels: a -> pool -> b -> up, joined with a by a Concat -> c -> head."""
    node = helper.make_node
    nodes = [
        conv("a", "image", "conv_a"),
        node("Relu", ["conv_a"], [RELU_A], "relu_a"),
        node("MaxPool", [RELU_A], [POOL], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        conv("b", POOL, "conv_b"),
        node("Relu", ["conv_b"], [RELU_B], "relu_b"),
        node("Resize", [RELU_B, "", "twice"], [UP], "up", mode="linear"),
        node("Concat", [RELU_A, UP], [CONCAT], "concat", axis=1),
        conv("c", CONCAT, "conv_c"),
        node("Relu", ["conv_c"], ["relu_c"], "relu_c"),
        conv("head", "relu_c", "logits"),
    ]
    tensors = [
        *(*weights_of("a", 4, 1, 1), *weights_of("b", 3, 4, 2), *weights_of("c", 5, 7, 3)),
        *(*weights_of("head", 1, 5, 4), tensor("twice", [1, 1, 2, 2])),
    ]
    return make_model(nodes, tensors, outputs=outputs, channels=channels)


def images(count=4, size=SIZE):
    draw = np.random.default_rng(0)
    return [draw.uniform(-1.5, 3, (1, 1, size, size)).astype(np.float32) for _ in range(count)]


def ranges_of(model, frames=None):
    return measure_ranges(model, images() if frames is None else frames).amax("min-max")


@pytest.fixture(scope="module")
def unet_model():
    return unet()


@pytest.fixture(scope="module")
def trained(run: Path, phantoms: Path):
    """The tiny run as FP32 ONNX, its inputs and ranges."""
    network = load_trained(run / "student.safetensors")
    files = sorted(path for path in phantoms.rglob("*.png") if "_mask" not in path.name)[:6]
    frames = [input_from_frame(read_image(file), network.contract) for file in files]
    master = network.to_onnx()
    return master, frames, ranges_of(master, frames)


class Quantised:
    """A graph with Q/DQ, by name."""

    def __init__(self, model):
        self.model = onnx.load_model_from_string(model)
        self.graph = self.model.graph
        self.values = {each.name: numpy_helper.to_array(each) for each in self.graph.initializer}
        self.nodes = {node.name: node for node in self.graph.node}
        self.source = {name: node for node in self.graph.node for name in node.output}

    def of(self, kind):
        return [node for node in self.graph.node if node.op_type == kind]

    @property
    def activations(self):
        """Tensors with a pair, and their scales."""
        return {
            node.input[0]: float(self.values[node.input[1]]) for node in self.of("QuantizeLinear")
        }

    def is_quantised(self, name):
        """Whether a convolution has an INT8 weight."""
        return self.nodes[name].input[1] not in self.values


# --- what the graph computes ---------------------------------------------------------------------


@pytest.mark.parametrize("unsigned", [False, True])
def test_one_convolution_is_within_the_bound_of_its_rounding(unsigned):
    model = make_model([conv("a", "image", "logits")], weights_of("a", 2, 1, 1), channels=[2])
    frame = images(1)[0]
    amax = ranges_of(model, [frame])
    found = Quantised(qdq_from_onnx(model, amax, unsigned=unsigned))
    assert found.activations.keys() == {"image"}
    weight = np.abs(numpy_helper.to_array(onnx.load_model_from_string(model).graph.initializer[0]))
    # Half a step of every product's two factors: |w| dx + |x| dw + dx dw over nine products.
    dx = amax["image"] / 127 / 2
    dw = weight.max(axis=(1, 2, 3)) / 127 / 2
    bound = weight.sum(axis=(1, 2, 3)) * dx + 9 * (amax["image"] * dw + dx * dw) + 1e-6
    changed = exact_run(found.model.SerializeToString(), 1)(frame) - exact_run(model, 1)(frame)
    worst = np.abs(changed).max(axis=(0, 2, 3))
    assert (worst <= bound).all()
    assert (worst > 0).all()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("bits", [7, 8])
def test_tiny_unet_loses_less_than_three_percent_of_its_largest_logit(
    unet_model, half, unsigned, bits
):
    base = half_from_onnx(unet_model) if half else unet_model
    found = qdq_from_onnx(base, ranges_of(unet_model), unsigned=unsigned, weight_bits=bits)
    for frame in images():
        trained = exact_run(unet_model, 1)(frame)
        worst = np.abs(exact_run(found, 1)(frame) - trained).max()
        assert 0 < worst < 0.03 * np.abs(trained).max()


@pytest.mark.parametrize("unsigned", [False, True])
def test_trained_run_keeps_its_answer_on_99_percent_of_the_pixels(trained, unsigned):
    master, frames, amax = trained
    ours, theirs = (
        exact_run(qdq_from_onnx(master, amax, unsigned=unsigned), 1),
        exact_run(master, 1),
    )
    for frame in frames:
        assert np.mean((ours(frame) > 0) == (theirs(frame) > 0)) > 0.99


def test_unsigned_activations_halve_the_error_where_nothing_is_negative():
    nodes = [helper.make_node("Relu", ["image"], ["relu"], "relu"), conv("a", "relu", "logits")]
    signs = np.sign(np.random.default_rng(0).normal(size=(2, 1, 3, 3)))  # exact in INT8
    model = make_model(nodes, [tensor("a.w", signs), tensor("a.b", [0, 0])], channels=[2])
    frames = images(8)
    amax = ranges_of(model, frames)
    errors = []
    for unsigned in (False, True):
        run = exact_run(qdq_from_onnx(model, amax, unsigned=unsigned), 1)
        changes = [run(frame) - exact_run(model, 1)(frame) for frame in frames]
        errors.append(float(np.sqrt(np.mean(np.square(changes)))))
    assert errors[1] == pytest.approx(errors[0] / 2, rel=0.1)


# --- where the pairs stand -----------------------------------------------------------------------


def test_pairs_stand_before_and_behind_every_quantised_convolution(unet_model):
    found = Quantised(qdq_from_onnx(unet_model, ranges_of(unet_model)))
    everything = {"image", RELU_A, POOL, RELU_B, UP, CONCAT, "relu_c"}
    assert found.activations.keys() == everything  # behind a ReLU, not between it and its Conv
    assert len(found.of("DequantizeLinear")) == len(everything) + 3  # and the weights


@pytest.mark.parametrize("kind", ["tiny", "trained"])
@pytest.mark.parametrize("unsigned", [False, True])
def test_what_only_moves_values_has_one_scale_on_all_sides(unet_model, trained, kind, unsigned):
    model, amax = (unet_model, ranges_of(unet_model)) if kind == "tiny" else trained[::2]
    found = Quantised(qdq_from_onnx(model, amax, unsigned=unsigned))
    scales = found.activations
    for move in ("Concat", "MaxPool", "Resize"):
        nodes = found.of(move)
        assert nodes
        for node in nodes:
            read = node.input if move == "Concat" else node.input[:1]
            pairs = [found.source[name] for name in read]
            assert {pair.op_type for pair in pairs} == {"DequantizeLinear"}
            steps = {
                (float(found.values[p.input[1]]), int(found.values[p.input[2]])) for p in pairs
            }
            after = next(q for q in found.of("QuantizeLinear") if q.input[0] == node.output[0])
            steps.add((scales[node.output[0]], int(found.values[after.input[2]])))
            assert len(steps) == 1


def test_shared_scale_is_that_of_the_largest_range(unet_model):
    amax = {**ranges_of(unet_model), RELU_A: 12.7, RELU_B: 25.4}
    scales = Quantised(qdq_from_onnx(unet_model, amax)).activations
    for name in (RELU_A, POOL, RELU_B, UP, CONCAT):
        assert scales[name] == pytest.approx(0.2)
    assert scales["image"] == pytest.approx(amax["image"] / 127)
    assert scales["relu_c"] == pytest.approx(amax["relu_c"] / 127)


@pytest.mark.parametrize("kind", ["tiny", "trained"])
def test_every_reader_of_a_quantised_tensor_reads_the_dequantised_one(unet_model, trained, kind):
    model, amax = (unet_model, ranges_of(unet_model)) if kind == "tiny" else trained[::2]
    found = Quantised(qdq_from_onnx(model, amax))
    assert found.activations
    for name in found.activations:
        readers = [node.op_type for node in found.graph.node if name in node.input]
        assert readers == ["QuantizeLinear"]


@pytest.mark.parametrize("kind", ["tiny", "trained"])
def test_nodes_stay_in_an_order_that_can_run_and_each_keeps_its_name(unet_model, trained, kind):
    model, amax = (unet_model, ranges_of(unet_model)) if kind == "tiny" else trained[::2]
    before = onnx.load_model_from_string(model).graph
    after = qdq_from_onnx(model, amax)
    onnx.checker.check_model(onnx.load_model_from_string(after), full_check=True)
    found = Quantised(after)
    names = [node.name for node in found.graph.node]
    assert len(names) == len(set(names))
    kept = [node.name for node in before.node]
    assert [name for name in names if name in set(kept)] == kept
    assert [each.name for each in found.graph.output] == [each.name for each in before.output]


# --- without what OpenVINO is slower with ---------------------------------------------------------


@pytest.mark.parametrize("unsigned", [False, True])
def test_lean_form_has_no_pair_behind_a_concat_and_before_what_stays_in_float(unet_model, unsigned):
    amax = ranges_of(unet_model)
    full = Quantised(qdq_from_onnx(unet_model, amax, unsigned=unsigned))
    lean = Quantised(qdq_from_onnx(unet_model, amax, unsigned=unsigned, lean=True))
    assert full.activations.keys() - lean.activations.keys() == {CONCAT, "relu_c"}
    assert lean.activations.items() <= full.activations.items()
    assert "relu_c" in lean.nodes["head"].input
    assert all(lean.is_quantised(name) for name in "abc")
    names = {each.name for each in lean.graph.initializer}
    assert not any(name.startswith((CONCAT, "relu_c")) for name in names)


def test_concat_rounds_nothing_again_so_that_leaving_its_pair_out_changes_no_answer(unet_model):
    amax = {**ranges_of(unet_model), "relu_c": 1e9}  # whose pair would round all to 0
    full = qdq_from_onnx(unet_model, amax, unsigned=True, keep_float=["a"])
    lean = qdq_from_onnx(unet_model, amax, unsigned=True, keep_float=["a"], lean=True)
    graph = Quantised(full).graph
    nodes = [node for node in graph.node if node.name == "head"]
    nodes[0].input[0] = "relu_c"  # so that the pair behind the Concat is all that differs
    without = Quantised(full)
    without.graph.CopyFrom(graph)
    changed = exact_run(without.model.SerializeToString(), 1)
    for frame in images():
        np.testing.assert_allclose(changed(frame), exact_run(lean, 1)(frame), atol=1e-5)


def test_lean_form_leaves_both_sides_of_a_sum_in_float_and_quantises_what_follows():
    node = helper.make_node
    nodes = [
        conv("a", "image", "left"),
        conv("b", "image", "right"),
        node("Add", ["left", "right"], ["sum"], "add"),
        conv("c", "sum", "both"),
        conv("head", "both", "logits"),
    ]
    tensors = [*weights_of("a", 4, 1, 1), *weights_of("b", 4, 1, 2), *weights_of("c", 4, 4, 3)]
    model = make_model(nodes, [*tensors, *weights_of("head", 1, 4, 4)], channels=[1])
    amax = ranges_of(model)
    full = Quantised(qdq_from_onnx(model, amax))
    assert full.activations.keys() == {"image", "left", "right", "sum", "both"}
    assert Quantised(qdq_from_onnx(model, amax, lean=True)).activations.keys() == {"image", "sum"}


def test_same_input_gives_the_same_bytes(unet_model):
    amax = ranges_of(unet_model)
    again = dict(reversed(amax.items()))
    assert qdq_from_onnx(unet_model, amax) == qdq_from_onnx(unet_model, again)


def test_output_of_the_graph_is_never_quantised():
    model = unet(outputs=("logits", RELU_A), channels=(1, 4))
    found = Quantised(qdq_from_onnx(model, ranges_of(model)))
    assert not found.activations.keys() & {"logits", RELU_A}
    assert found.source[RELU_A].op_type == "Relu"
    frame = images(1)[0]
    wide = make_model([conv("a", "image", "logits")], weights_of("a", 4, 1, 1), channels=[4])
    assert Quantised(qdq_from_onnx(wide, {"image": 3.0})).source["logits"].op_type == "Conv"
    assert np.isfinite(exact_run(found.model.SerializeToString(), 1)(frame)).all()


def test_output_without_a_relu_gets_its_pair_behind_the_convolution():
    nodes = [
        conv("a", "image", "conv_a"),
        conv("b", "image", "conv_b"),
        helper.make_node("Add", ["conv_a", "conv_b"], ["logits"], "add"),
    ]
    tensors = [*weights_of("a", 4, 1, 1), *weights_of("b", 4, 1, 2)]
    model = make_model(nodes, tensors, channels=[4])
    found = Quantised(qdq_from_onnx(model, ranges_of(model)))
    assert found.activations.keys() == {"image", "conv_a", "conv_b"}
    # One pair for the input although two convolutions read it.
    assert len(found.of("QuantizeLinear")) == 3
    assert set(found.nodes["add"].input) == {"conv_a.dequantised", "conv_b.dequantised"}


def test_relu_that_shares_its_convolution_with_another_reader_is_not_fused():
    nodes = [
        conv("a", "image", "conv_a"),
        helper.make_node("Relu", ["conv_a"], ["relu"], "relu"),
        helper.make_node("Add", ["conv_a", "relu"], ["logits"], "add"),
    ]
    model = make_model(nodes, weights_of("a", 4, 1, 1), channels=[4])
    found = Quantised(qdq_from_onnx(model, ranges_of(model)))
    assert found.activations.keys() == {"image", "conv_a"}
    assert set(found.nodes["add"].input) == {"conv_a.dequantised", "relu"}


# --- what stays in float -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiny", "trained"])
def test_biases_stay_as_they_are(unet_model, trained, kind):
    model, amax = (unet_model, ranges_of(unet_model)) if kind == "tiny" else trained[::2]
    before, after = Quantised(model), Quantised(qdq_from_onnx(model, amax))
    for node in before.of("Conv"):
        bias = after.nodes[node.name].input[2]
        assert bias == node.input[2]
        assert after.values[bias].dtype == np.float32
        assert (after.values[bias] == before.values[bias]).all()


@pytest.mark.parametrize("kind", ["tiny", "trained"])
def test_convolution_with_one_output_channel_is_left_alone(unet_model, trained, kind):
    model, amax = (unet_model, ranges_of(unet_model)) if kind == "tiny" else trained[::2]
    before, after = Quantised(model), Quantised(qdq_from_onnx(model, amax))
    single = {node.name for node in before.of("Conv") if len(before.values[node.input[1]]) == 1}
    assert single
    assert set(quantisable_convolutions(model)) == {n.name for n in before.of("Conv")} - single
    for node in before.of("Conv"):
        assert after.is_quantised(node.name) == (node.name not in single)
    for name in single:
        weight = before.nodes[name].input[1]
        assert (after.values[weight] == before.values[weight]).all()


def test_convolution_that_is_kept_is_left_alone_and_its_surroundings_too(unet_model):
    found = Quantised(qdq_from_onnx(unet_model, ranges_of(unet_model), keep_float=["c"]))
    assert [found.is_quantised(name) for name in "abc"] == [True, True, False]
    assert found.activations.keys() == {"image", RELU_A, POOL, RELU_B}
    assert found.nodes["c"].input[0] == CONCAT
    assert found.nodes["relu_c"].input[0] == "conv_c"


def test_keeping_every_convolution_changes_nothing(unet_model):
    found = qdq_from_onnx(unet_model, {}, keep_float=quantisable_convolutions(unet_model))
    before, after = Quantised(unet_model), Quantised(found)
    assert list(after.graph.node) == list(before.graph.node)
    assert after.values.keys() == before.values.keys()


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "levels"), [(8, 127), (7, 63)])
@pytest.mark.parametrize("kind", ["tiny", "trained"])
@pytest.mark.parametrize("half", [False, True])
def test_weights_are_int8_with_a_scale_for_each_channel_that_uses_every_level(
    unet_model, trained, kind, bits, levels, half
):
    model, amax = (unet_model, ranges_of(unet_model)) if kind == "tiny" else trained[::2]
    base = half_from_onnx(model) if half else model
    before, after = Quantised(model), Quantised(qdq_from_onnx(base, amax, weight_bits=bits))
    for name in quantisable_convolutions(model):
        node = after.source[after.nodes[name].input[1]]
        assert node.op_type == "DequantizeLinear"
        assert [each.i for each in node.attribute if each.name == "axis"] == [0]
        weight, scale, zero = (after.values[each] for each in node.input)
        assert weight.dtype == zero.dtype == np.int8
        assert not zero.any()
        assert scale.shape == zero.shape == (len(weight),)
        assert scale.dtype == (np.float16 if half else np.float32)
        assert (np.abs(weight.reshape(len(weight), -1).astype(int)).max(axis=1) == levels).all()
        trained_weight = before.values[before.nodes[name].input[1]]
        column = scale.astype(np.float32).reshape(-1, 1, 1, 1)
        slack = 0.51 + (levels / 1024 if half else 0)  # FP16 moves a scale by up to 2^-11
        assert (np.abs(weight * column - trained_weight) <= slack * column).all()


def depthwise(kernel=3, channels=16, outputs=16, of_group=1):
    """ONNX of a -> relu_a -> dw -> relu_dw -> head; every activation at its largest is 1 to 25."""
    shape = (outputs, of_group, kernel, kernel)
    steps = np.linspace(0.9, 1, channels).reshape(-1, 1, 1, 1)
    node, pads = helper.make_node, [kernel // 2] * 4
    nodes = [
        conv("a", "image", "conv_a"),
        node("Relu", ["conv_a"], [RELU_A], "relu_a"),
        node("Conv", [RELU_A, "dw.w"], ["conv_dw"], "dw", pads=pads, group=channels // of_group),
        node("Relu", ["conv_dw"], ["relu_dw"], "relu_dw"),
        conv("head", "relu_dw", "logits"),
    ]
    tensors = [
        *(tensor("a.w", steps * np.ones((channels, 1, 3, 3)) / 9), tensor("a.b", [0] * channels)),
        tensor("dw.w", np.ones(shape)),
        *(tensor("head.w", np.ones((1, outputs, 3, 3)) / 9), tensor("head.b", [0])),
    ]
    return make_model(nodes, tensors, channels=[1])


@pytest.mark.parametrize(
    ("options", "levels"),
    [({}, 127), ({"outputs": 32}, 63), ({"outputs": 8, "of_group": 2}, 63)],
)
def test_weights_of_depthwise_convolutions_have_8_bits_where_others_have_7(options, levels):
    model = depthwise(**options)
    amax = ranges_of(model)
    found = Quantised(qdq_from_onnx(model, amax, unsigned=True, weight_bits=7)).values
    assert found["a.w.quantised"].max() == 63
    assert found["dw.w.quantised"].max() == levels
    bits = rounding_of(model, amax, unsigned=True, weight_bits=7).convolutions
    assert bits == {"a": 7, "dw": 8 if levels == 127 else 7}


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("channels", [16, 40, 96])
def test_8_bits_of_depthwise_convolutions_saturate_in_no_engine(kernel, channels):
    model = depthwise(kernel, channels, channels)
    frame = np.ones((1, 1, SIZE, SIZE), np.float32)
    found = qdq_from_onnx(model, ranges_of(model, [frame]), unsigned=True, weight_bits=7)
    exact = exact_run(found, 1)(frame)
    core = openvino.Core()
    theirs = core.compile_model(core.read_model(found), "CPU")([frame])[0]
    ours = onnxruntime.InferenceSession(found).run(None, {"image": frame})[0]
    for answer in (theirs, ours):
        assert np.abs(answer - exact).max() < 0.01 * exact.max()


def with_clip(low=0.0, high=6.0, constant=True):
    """ONNX of a -> Clip -> b -> head, whose Clip cuts above what `a` reaches."""
    node = helper.make_node
    bounds = [tensor("low", low), tensor("high", high)]
    makes_bound = node("Identity", ["low"], ["shown"], "shown")
    nodes = [
        *([] if constant else [makes_bound]),
        conv("a", "image", "conv_a"),
        node("Clip", ["conv_a", "low" if constant else "shown", "high"], ["clip"], "clip"),
        conv("b", "clip", "conv_b"),
        node("Relu", ["conv_b"], [RELU_B], "relu_b"),
        conv("head", RELU_B, "logits"),
    ]
    tensors = [*weights_of("a", 4, 1, 1), *weights_of("b", 4, 4, 2), *weights_of("head", 1, 4, 3)]
    tensors[0] = tensor("a.w", 20 * numpy_helper.to_array(tensors[0]))
    return make_model(nodes, [*tensors, *bounds], channels=[1])


def test_a_relu6_is_rounded_once_from_0_to_6_with_every_level():
    model = with_clip()
    amax = ranges_of(model)
    found = Quantised(qdq_from_onnx(model, amax, unsigned=True))
    assert found.activations.keys() == {"image", "clip", RELU_B}  # not between a and its Clip
    step, zero = (found.values[f"clip.{what}"] for what in ("scale", "zero"))
    assert amax["clip"] >= 6
    assert zero == 0
    assert step * 255 == pytest.approx(6)
    assert "conv_a" not in amax


def test_onnxruntime_takes_a_relu6_into_its_convolution(tmp_path):
    model = with_clip()
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    quantised = qdq_from_onnx(model, ranges_of(model), unsigned=True)
    onnxruntime.InferenceSession(quantised, options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "Clip" not in operators
    assert operators.count("QLinearConv") == 2


@pytest.mark.parametrize(
    "options", [{"low": -1.0}, {"low": 0.5}, {"constant": False}], ids=["below", "above", "shown"]
)
def test_a_clip_that_is_no_relu6_is_rounded_on_both_sides(options):
    model = with_clip(**options)
    found = Quantised(qdq_from_onnx(model, ranges_of(model), unsigned=True))
    assert found.activations.keys() == {"image", "conv_a", "clip", RELU_B}
    assert found.values["clip.zero"] == 128


def test_channel_of_zeros_stays_zero():
    weight = np.zeros((2, 1, 3, 3))
    weight[1] = 0.5
    tensors = [tensor("a.w", weight), tensor("a.b", [0, 0])]
    model = make_model([conv("a", "image", "logits")], tensors, channels=[2])
    found = qdq_from_onnx(model, {"image": 3.0})
    logits = exact_run(found, 1)(images(1)[0])
    assert not logits[0, 0].any()
    assert logits[0, 1].any()


def test_weight_that_two_convolutions_share_is_quantised_once():
    nodes = [
        conv("a", "image", "conv_a", weight="w", bias=False),
        helper.make_node("Relu", ["conv_a"], ["relu"], "relu"),
        conv("b", "image", "conv_b", weight="w", bias=False),
        helper.make_node("Add", ["relu", "conv_b"], ["logits"], "add"),
    ]
    tensors = [tensor("w", np.random.default_rng(0).normal(size=(3, 1, 3, 3)))]
    model = make_model(nodes, tensors, channels=[3])
    amax = ranges_of(model)
    both = Quantised(qdq_from_onnx(model, amax))
    assert both.nodes["a"].input[1] == both.nodes["b"].input[1] == "w.dequantised"
    assert [node.input[0] for node in both.of("DequantizeLinear")].count("w.quantised") == 1
    assert "w" not in both.values
    one = Quantised(qdq_from_onnx(model, amax, keep_float=["b"]))
    assert (one.nodes["a"].input[1], one.nodes["b"].input[1]) == ("w.dequantised", "w")
    assert one.values["w"].dtype == np.float32


# --- activations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiny", "trained"])
def test_signed_form_is_symmetric_throughout(unet_model, trained, kind):
    model, amax = (unet_model, ranges_of(unet_model)) if kind == "tiny" else trained[::2]
    found = Quantised(qdq_from_onnx(model, amax))
    zeros = [
        found.values[n.input[2]] for k in ("Quantize", "Dequantize") for n in found.of(f"{k}Linear")
    ]
    assert zeros
    assert {zero.dtype for zero in zeros} == {np.dtype(np.int8)}
    assert not any(zero.any() for zero in zeros)
    for name, scale in found.activations.items():
        if name in amax and name.endswith("image"):
            assert scale == pytest.approx(amax[name] / 127)


def test_zero_point_is_0_only_where_nothing_can_be_negative(unet_model):
    amax = {**ranges_of(unet_model), "image": 12.7, RELU_A: 25.5, RELU_B: 2.0, "relu_c": 51.0}
    found = Quantised(qdq_from_onnx(unet_model, amax, unsigned=True))
    steps = {
        node.input[0]: (
            round(float(found.values[node.input[1]]), 6),
            int(found.values[node.input[2]]),
        )
        for node in found.of("QuantizeLinear")
    }
    assert steps.pop("image") == (0.1, 128)
    assert steps.pop("relu_c") == (0.2, 0)
    assert set(steps.values()) == {(0.1, 0)}
    assert {found.values[n.input[2]].dtype for n in found.of("QuantizeLinear")} == {np.dtype("u1")}


def gate(*, sign):
    """Add -> Conv, and Mul by a Sigmoid -> Conv: what may be negative, and what may not."""
    node = helper.make_node
    nodes = [
        conv("a", "image", "conv_a"),
        node("Relu", ["conv_a"], ["relu"], "relu"),
        node("Sigmoid", ["image"], ["sigmoid"], "sigmoid"),
        node("Mul", ["relu", "sigmoid" if sign == "gate" else "image"], ["mul"], "mul"),
        conv("b", "mul", "conv_b"),
        node("Add", ["conv_b", "relu"], ["add"], "add"),
        conv("c", "add", "logits"),
    ]
    tensors = [*weights_of("a", 4, 1, 1), *weights_of("b", 4, 4, 2), *weights_of("c", 2, 4, 3)]
    return make_model(nodes, tensors, channels=[2])


@pytest.mark.parametrize(("sign", "zero"), [("gate", 0), ("image", 128)])
def test_product_has_the_zero_point_0_only_if_all_factors_have(sign, zero):
    model = gate(sign=sign)
    found = Quantised(qdq_from_onnx(model, ranges_of(model), unsigned=True))
    zeros = {node.input[0]: int(found.values[node.input[2]]) for node in found.of("QuantizeLinear")}
    assert zeros == {"image": 128, "relu": 0, "mul": zero, "conv_b": 128, "add": 128}


@pytest.mark.parametrize("unsigned", [False, True])
def test_tensors_with_the_zero_point_0_are_never_negative_in_the_trained_run(trained, unsigned):
    master, frames, amax = trained
    found = Quantised(qdq_from_onnx(master, amax, unsigned=unsigned))
    positive = [
        node.input[0]
        for node in found.of("QuantizeLinear")
        if unsigned and not found.values[node.input[2]]
    ]
    assert bool(positive) == unsigned
    probe = onnx.load_model_from_string(master)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in positive)
    import onnxruntime as ort

    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    for frame in frames[:2] if positive else ():
        for value in session.run(positive, {"image": frame}):
            assert value.min() >= 0


@pytest.mark.parametrize("kind", ["tiny", "trained"])
def test_half_graph_has_opset_19_and_half_scales(unet_model, trained, kind):
    model, amax = (unet_model, ranges_of(unet_model)) if kind == "tiny" else trained[::2]
    found = Quantised(qdq_from_onnx(half_from_onnx(model), amax))
    assert [entry.version for entry in found.model.opset_import if entry.domain == ""] == [19]
    pairs = [*found.of("QuantizeLinear"), *found.of("DequantizeLinear")]
    assert {found.values[node.input[1]].dtype for node in pairs} == {np.dtype(np.float16)}
    assert {found.values[node.input[2]].dtype for node in pairs} == {np.dtype(np.int8)}
    for value in (*found.graph.input, *found.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    full = Quantised(qdq_from_onnx(model, amax))
    assert [entry.version for entry in full.model.opset_import if entry.domain == ""] == [17]
    assert sum(map(found.is_quantised, quantisable_convolutions(model))) == len(
        quantisable_convolutions(model)
    )


def test_scales_of_the_half_graph_are_those_of_the_full_one_rounded(unet_model):
    amax = ranges_of(unet_model)
    full = Quantised(qdq_from_onnx(unet_model, amax)).activations
    half = Quantised(qdq_from_onnx(half_from_onnx(unet_model), amax)).activations
    for name in (RELU_A, CONCAT, "relu_c"):
        assert half[name] == np.float16(full[name])
    (image,) = half.keys() - full.keys()  # the converter casts the input under another name
    assert half[image] == np.float16(full["image"])


def test_range_that_half_cannot_hold_gets_the_smallest_scale_instead_of_zero(unet_model):
    amax = {**ranges_of(unet_model), "relu_c": 1e-9}
    found = Quantised(qdq_from_onnx(half_from_onnx(unet_model), amax))
    assert found.activations["relu_c"] == np.finfo(np.float16).smallest_subnormal


# --- the calibration cache -----------------------------------------------------------------------

HAND = {"image": 127.0, RELU_A: 12.7, RELU_B: 63.5, "relu_c": 254.0, "logits": 31.75}


def test_cache_is_written_line_by_line_as_nvidia_translates_it(unet_model):
    # 1.0 = 3f800000, 0.5 = 3f000000, 2.0 = 40000000, 0.25 = 3e800000, 0.1 = 3dcccccd; all that the
    # Concat joins has the largest, 63.5 / 127; before a ReLU, with which it is fused, stands the
    # ReLU's own range.
    assert calibration_cache(unet_model, HAND, "8.5.2").splitlines() == [
        "TRT-8502-EntropyCalibration2",
        "image: 3f800000",
        "conv_a: 3dcccccd",
        "relu_a: 3f000000",
        "pool: 3f000000",
        "conv_b: 3f000000",
        "relu_b: 3f000000",
        "up: 3f000000",
        "concat: 3f000000",
        "conv_c: 40000000",
        "relu_c: 40000000",
        "logits: 3e800000",
    ]


def test_scale_that_is_no_power_of_two_is_rounded_to_float32(unet_model):
    text = calibration_cache(unet_model, {**HAND, "image": 12.7}, "8.6.2")
    assert text.splitlines()[1] == "image: 3dcccccd"  # 0.1
    assert text.endswith("\n")


@pytest.mark.parametrize(
    ("tensorrt", "digits"),
    [("8.5.2", 8502), ("8.6.2", 8602), ("10.3.0", 100300), ("10.13.3", 101303)],
)
def test_cache_carries_the_version_of_the_device(unet_model, tensorrt, digits):
    first = calibration_cache(unet_model, HAND, tensorrt).splitlines()[0]
    assert first == f"TRT-{digits}-EntropyCalibration2"


@pytest.mark.parametrize("kind", ["tiny", "trained"])
def test_cache_covers_every_activation_with_the_scale_of_its_pair(unet_model, trained, kind):
    model, amax = (unet_model, ranges_of(unet_model)) if kind == "tiny" else trained[::2]
    lines = calibration_cache(model, amax, "10.3.0").splitlines()[1:]
    cache = {
        name: np.frombuffer(bytes.fromhex(digits), ">f4")[0]
        for name, digits in (line.rsplit(": ", 1) for line in lines)
    }
    graph = onnx.load_model_from_string(model).graph
    assert len(lines) == len(cache)
    assert tuple(cache) == activations_of(graph)
    assert set(cache) == {"image", *(name for node in graph.node for name in node.output)}
    assert all(np.isfinite(scale) and scale > 0 for scale in cache.values())
    pairs = Quantised(qdq_from_onnx(model, amax)).activations
    assert pairs
    for name, scale in pairs.items():
        assert cache[name] == np.float32(scale)
