"""Networks that come with Q/DQ pairs: taken as their own INT8, or refused by what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from edgeseg.cli.jobs import phantoms
from edgeseg.cli.main import cli
from edgeseg.export.audit import asked_in_graph
from edgeseg.export.foreign import read_onnx
from edgeseg.export.plan import make_plan, plan_for, render_plan
from edgeseg.export.quantised import without_pairs
from edgeseg.export.target import find_target
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.tests.support.small_onnx import SIDE, answer, noise, operators_of, small_onnx

CONTRACT = InputContract(SIDE, SIDE)


@pytest.fixture
def read(tmp_path):
    """Read a model with a contract of its size."""

    def of(model):
        (tmp_path / "contract.json").write_text(json.dumps(CONTRACT.to_dict()))
        (tmp_path / "theirs.onnx").write_bytes(model.SerializeToString())
        return read_onnx(tmp_path / "theirs.onnx", tmp_path / "contract.json")

    return of


def quantised(
    *, zero=0, relu_zero=None, kind=np.int8, float_weights=False, bias=True, end="", opset=17
):
    """Two convolutions on rounded activations, the way of ONNX Runtime's tool.

    `float_weights` stores them in float behind a pair, as fake quantisation is exported. The zero
    point behind the ReLU is `relu_zero` where it is another.
    """
    model = small_onnx(opset=opset)
    graph = model.graph
    tensors = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    relu_zero = zero if relu_zero is None else relu_zero
    nodes, kept = [], {"zero": np.asarray(zero, kind), "r.zero": np.asarray(relu_zero, kind)}

    def rounded(name, scale):
        kept[f"{name}.scale"] = np.float32(scale)
        ends = [f"{name}.scale", "r.zero" if name == "r" else "zero"]
        nodes.append(helper.make_node("QuantizeLinear", [name, *ends], [f"{name}.q"], f"{name}/Q"))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}.q", *ends], [f"{name}.d"], f"{name}/DQ")
        )
        return f"{name}.d"

    def weight(name):
        scale = (np.abs(tensors[name]).max(axis=(1, 2, 3)) / 127).astype(np.float32)
        kept[f"{name}.scale"], kept[f"{name}.zero"] = scale, np.zeros(len(scale), np.int8)
        ends, source = [f"{name}.scale", f"{name}.zero"], f"{name}.q"
        if float_weights:
            kept[name] = tensors[name]
            nodes.append(
                helper.make_node("QuantizeLinear", [name, *ends], [source], f"{name}/Q", axis=0)
            )
        else:
            steps = np.round(tensors[name] / scale.reshape(-1, 1, 1, 1))
            kept[source] = steps.astype(np.int8)
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [source, *ends], [f"{name}.d"], f"{name}/DQ", axis=0
            )
        )
        return f"{name}.d"

    image, first = rounded("x", 4 / 127), weight("w")
    operands = [image, first, "b"]
    if bias:
        scale = kept["w.scale"] * kept["x.scale"]
        kept |= {"b.q": np.round(tensors["b"] / scale).astype(np.int32), "b.scale": scale}
        kept["b.zero"] = np.zeros(4, np.int32)
        ends = ["b.q", "b.scale", "b.zero"]
        nodes.append(helper.make_node("DequantizeLinear", ends, ["b.d"], "b/DQ", axis=0))
        operands[2] = "b.d"
    else:
        kept["b"] = tensors["b"]
    nodes += [
        helper.make_node("Conv", operands, ["c"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
    ]
    nodes.append(helper.make_node("Conv", [rounded("r", 8 / 127), weight("h")], ["z"], "head"))
    last = rounded("z", 16 / 127) if end == "pair" else "z"
    nodes.append(
        helper.make_node("Sigmoid" if end == "sigmoid" else "Identity", [last], ["y"], "end")
    )
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in kept.items()
    )
    return model


def edited(change, **options):
    """A quantised model after `change` of its stored arrays and its nodes by name."""
    model = quantised(**options)
    stored = {each.name: each for each in model.graph.initializer}
    change(stored, {each.name: each for each in model.graph.node}, model)
    return model


def store(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), tensor.name))


# --- taken ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"float_weights": True},
        {"bias": False},
        {"kind": np.uint8, "zero": 128},
        {"end": "pair"},
        {"end": "sigmoid"},
        {"opset": 21},
        {"opset": 13},
    ],
    ids=str,
)
def test_pairs_are_taken_as_they_are_and_the_reference_goes_without(options, read):
    theirs = quantised(**options)
    network = read(theirs)
    expected, found = answer(theirs, noise(2)), answer(network.quantised, noise(2))
    if options.get("end") == "sigmoid":
        expected = np.log(expected / (1 - expected))
    step = 16 / 127 if options.get("end") == "pair" else 1e-3
    np.testing.assert_allclose(found, expected, atol=step)
    assert not {"QuantizeLinear", "DequantizeLinear"} & operators_of(
        onnx.load_model_from_string(network.to_onnx())
    )
    reference = network.run(noise(2))
    np.testing.assert_allclose(answer(network.to_onnx(), noise(2)), reference, atol=1e-4)
    assert np.abs(reference - found).max() > 1e-3  # what is rounded differs
    assert network.provenance["quantised"] == "by its own Q/DQ pairs"
    assert asked_in_graph(network.quantised).share("int8") == 1


def test_the_pair_at_the_end_goes_and_no_other(read):
    count = len([each for each in quantised(end="pair").graph.node if "/Q" in each.name])
    kept = onnx.load_model_from_string(read(quantised(end="pair")).quantised).graph
    assert len([each for each in kept.node if each.op_type == "QuantizeLinear"]) == count - 1


def test_weights_behind_a_pair_of_stored_floats_are_those_floats_in_the_reference(read):
    floats = {each.name: numpy_helper.to_array(each) for each in small_onnx().graph.initializer}
    network = read(quantised(float_weights=True, bias=False))
    stored = [
        numpy_helper.to_array(each)
        for each in onnx.load_model_from_string(network.to_onnx()).graph.initializer
    ]
    for name in ("w", "h"):
        assert any(np.array_equal(each, floats[name]) for each in stored)
    integers = onnx.load_model_from_string(network.quantised).graph.initializer
    assert sum(each.data_type == TensorProto.INT8 and len(each.dims) == 4 for each in integers) == 2


def test_a_bias_in_int32_is_what_it_stands_for():
    stripped = without_pairs(quantised())
    (bias,) = (each for each in stripped.graph.initializer if each.name == "b.d")
    np.testing.assert_allclose(numpy_helper.to_array(bias), [0.1, 0.2, 0.3, 0.4], atol=1e-4)


# --- refused -------------------------------------------------------------------------------------


def _computed(stored, nodes, model):
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0))
    for name in ("x/Q", "x/DQ"):
        nodes[name].input[1] = "most"


def _another_grid(stored, nodes, model):
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "other"))
    nodes["x/DQ"].input[1] = "other"


def _integers_move(stored, nodes, model):
    moved = helper.make_node("Transpose", ["x.q"], ["x.t"], "moved", perm=[0, 1, 3, 2])
    nodes["x/DQ"].input[0] = "x.t"
    at = list(model.graph.node).index(nodes["x/DQ"])
    model.graph.node.insert(at, moved)


def _sixteen_bits(stored, nodes, model):
    for name in ("zero", "r.zero"):
        store(stored[name], np.int16(0))


def _each_channel(stored, nodes, model):
    store(stored["r.scale"], np.full(4, 0.1, np.float32))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.int8), "zeros"))
    for name in ("r/Q", "r/DQ"):
        nodes[name].input[2] = "zeros"


def _biased_bias(stored, nodes, model):
    store(stored["b.zero"], np.ones(4, np.int32))


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (_computed, {}, "scale or zero point is computed"),
        (lambda stored, *_: store(stored["x.scale"], np.float32(0)), {}, "not finite and above 0"),
        (lambda stored, *_: store(stored["x.scale"], np.float32("nan")), {}, "not finite"),
        (_another_grid, {}, "of another scale"),
        (_integers_move, {}, "whose integers Transpose reads"),
        (_sixteen_bits, {"opset": 21}, "in INT16"),
        (_each_channel, {}, "for each channel of what is computed"),
        (_biased_bias, {}, "INT32 that is no bias"),
    ],
)
def test_pairs_that_not_every_engine_reads_are_refused_by_their_node(change, options, says, read):
    with pytest.raises(InputError, match=says) as caught:
        read(edited(change, **options))
    assert caught.value.code == "E-ONNX-QDQ"
    assert "\n" not in str(caught.value)


def test_what_becomes_of_the_pairs_must_answer_as_they_do(read, monkeypatch):
    from edgeseg.export import foreign

    def doubled(model):
        for tensor in model.graph.initializer:
            if tensor.name == "h.scale":
                store(tensor, -5 * numpy_helper.to_array(tensor))
        return model

    monkeypatch.setattr(foreign, "with_stored_weights", doubled)
    with pytest.raises(InputError, match=r"answers .* of the pixels otherwise") as caught:
        read(quantised())
    assert caught.value.code == "E-ONNX-QDQ"


@pytest.mark.parametrize(
    ("target", "asked", "options", "says"),
    [
        ("x86-cpu", "fp32", {}, "weights are rounded already"),
        ("rtx", "fp16", {}, "weights are rounded already"),
        ("jetson", "int8", {"kind": np.uint8, "zero": 128}, "UINT8 with the zero point 128"),
        ("rtx", "auto", {"zero": 3}, "INT8 with the zero point 3"),
    ],
)
def test_what_the_pairs_do_not_fit_is_refused_before_anything_is_made(
    target, asked, options, says, read
):
    network = read(quantised(**options))
    with pytest.raises(Refused, match=says) as caught:
        plan_for(make_plan(find_target(target), asked), network.to_onnx(), network.quantised)
    assert caught.value.code == "E-TARGET-QDQ"


def test_a_target_without_int8_has_no_use_for_pairs(read):
    network = read(quantised())
    plan = make_plan(find_target("x86-cpu"))
    plan = replace(plan, precisions=("fp32",), refused={"int8": "it has none"})
    with pytest.raises(Refused, match="takes no int8") as caught:
        plan_for(plan, network.to_onnx(), network.quantised)
    assert caught.value.code == "E-TARGET-QDQ"


def test_a_cache_or_a_dla_has_no_use_for_pairs(read):
    network = read(quantised())
    for options in ({"cache": True}, {"dla_core": 0}):
        plan = make_plan(find_target("orin-nx-16@jp6.2"), "int8", **options)
        with pytest.raises(Refused, match="without the pairs") as caught:
            plan_for(plan, network.to_onnx(), network.quantised)
        assert caught.value.code == "E-TARGET-QDQ"


def test_auto_leaves_int8_and_says_why_and_what_it_is_judged_by(read):
    network = read(quantised())
    plan = make_plan(find_target("jetson"))
    plan = plan_for(plan, network.to_onnx(), network.quantised)
    assert plan.precisions == ("int8",)
    assert plan.default == "int8"
    assert not plan.needs_ranges
    assert "rounded already" in plan.refused["fp16"]
    assert "judged against the network without them" in render_plan(plan)


# --- exported ------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT.to_dict()))
    (tmp_path / "theirs.onnx").write_bytes(quantised().SerializeToString())
    return tmp_path


def export(folder, *words):
    call = ["export", str(folder / "theirs.onnx"), "--contract", str(folder / "contract.json")]
    limits = ["--max-drop", "1", "--max-hd95-rise", "99", "--force-contract", "-q"]
    return CliRunner().invoke(cli, [*call, *limits, *words])


@pytest.mark.parametrize("target", ["x86-cpu", "jetson"])
def test_it_is_exported_without_data_that_calibrate(target, files, monkeypatch):
    monkeypatch.setattr(phantoms, "COUNT", 12)  # that check it
    out = files / "bundle"
    if target == "x86-cpu":  # ONNX Runtime takes a ReLU in only where the zero point cuts it
        model = quantised(kind=np.uint8, zero=128, relu_zero=0)
        (files / "theirs.onnx").write_bytes(model.SerializeToString())
    done = export(files, "--target", target, "--precision", "int8", "--out", str(out))
    assert done.exit_code == 0, done.stderr
    bundle = open_bundle(out)
    assert bundle.manifest.precision == "int8"
    assert bundle.manifest.provenance["calibration"] is None
    assert bundle.manifest.provenance["training"]["quantised"] == "by its own Q/DQ pairs"
    names = {path.name for path in out.iterdir()}
    assert not names & {"calibration.json", "calib.cache", "fp32.onnx", "fp16.onnx"}


def test_it_is_not_calibrated_again(files):
    for words in (["--synthetic-calibration"], ["--ranges", str(files / "contract.json")]):
        refused = export(files, "--target", "x86-cpu", "--precision", "int8", *words)
        assert refused.exit_code == 2
        assert "E-CALIB-CHOICE" in refused.stderr
