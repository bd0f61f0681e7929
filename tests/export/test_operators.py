"""Operators of an ONNX from elsewhere: what no export takes, and what a parser says of the rest."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import helper, parser

from edgeseg.export import foreign
from edgeseg.export.foreign import read_onnx
from edgeseg.export.operators import REFUSED, require_operators
from edgeseg.export.plan import make_plan, plan_for, render_plan
from edgeseg.export.surface import operators_of as parsed_by
from edgeseg.export.target import find_target, targets
from edgeseg.export.to_openvino import openvino_from_onnx
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.tests.support.small_onnx import (
    SIDE,
    answer,
    constant,
    integers,
    noise,
    operators_of,
    ours_of,
    small_onnx,
)

PER_CHANNEL = {
    "s": np.array([1, 2, 0.5, 3], np.float32),
    "o": np.array([0, 1, -1, 2], np.float32),
}
LAST = "t = Transpose <perm = [0, 2, 3, 1]> (c)\n {}\n m = Transpose <perm = [0, 3, 1, 2]> (u)"
TAKEN = {  # name: what is between the convolutions, opset, constants
    "Elu": ("m = Elu (c)", 17, {}),
    "Selu": ("m = Selu (c)", 17, {}),
    "Mish 18": ("m = Mish (c)", 18, {}),
    "Mish 22": ("m = Mish (c)", 22, {}),
    "Swish": ("m = Swish (c)", 24, {}),
    "Gelu": ("m = Gelu (c)", 20, {}),
    "Softplus": ("m = Softplus (c)", 17, {}),
    "InstanceNormalization": ("m = InstanceNormalization (c, s, o)", 17, PER_CHANNEL),
    "GroupNormalization": ("m = GroupNormalization <num_groups = 2> (c, s, o)", 21, PER_CHANNEL),
    "LayerNormalization": (LAST.format("u = LayerNormalization (t, s, o)"), 17, PER_CHANNEL),
    "RMSNormalization": (LAST.format("u = RMSNormalization (t, s)"), 23, PER_CHANNEL),
    "MatMul": (LAST.format("u = MatMul (t, k)"), 17, {"k": np.eye(4, dtype=np.float32)[::-1]}),
    "ReduceMax": ("p = ReduceMax (c, axes)\n m = Sub (c, p)", 20, integers("axes", 2, 3)),
    "LpPool": ("m = LpPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c)", 22, {}),
    "Upsample": (
        "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)\n"
        'm = Upsample <mode = "linear"> (p, scales)',
        9,
        constant("scales", 1, 1, 2, 2),
    ),
    "Attention": (
        "t = Reshape (c, flat)\n u = Attention <q_num_heads = 2, kv_num_heads = 2> (t, t, t)\n"
        "m = Reshape (u, whole)",
        23,
        integers("flat", 1, 64, 64) | integers("whole", 1, 4, SIDE, SIDE),
    ),
}


@pytest.fixture
def contract_file(tmp_path):
    file = tmp_path / "contract.json"
    file.write_text(json.dumps(InputContract(SIDE, SIDE).to_dict()))
    return file


def small(name):
    middle, opset, constants = TAKEN[name]
    return small_onnx(middle=middle, opset=opset, constants=constants)


@pytest.mark.parametrize("highest", [17, 24])
@pytest.mark.parametrize("name", TAKEN)
def test_an_operator_that_no_list_names_answers_as_before(name, highest, tmp_path, contract_file):
    model = small(name)
    ours = ours_of(model, tmp_path, contract_file, highest)
    np.testing.assert_allclose(answer(ours, noise(3)), answer(model, noise(3)), atol=1e-4)
    assert "Attention" not in operators_of(ours)


@pytest.mark.parametrize("operator", REFUSED)
def test_every_operator_of_the_table_is_refused_with_its_reason(operator, tmp_path):
    node = helper.make_node(operator, ["x"], ["y"], "mine")
    with pytest.raises(InputError) as caught:
        require_operators([node], tmp_path / "theirs.onnx")
    assert caught.value.code == "E-ONNX-OPERATOR"
    assert f"{operator} ('mine'), which {REFUSED[operator]};" in str(caught.value)


def loop():
    body = "b (int64 i, bool k) => (bool k2) { k2 = Identity (k) }"
    return small_onnx(
        middle=f"n = Loop <body = {body}> (trips, go)\n m = Identity (r)",
        constants={"trips": np.array(2**62, np.int64), "go": np.array(True)},
    )


def custom():
    model = small_onnx(middle="m = com.microsoft.Gelu (r)")
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (loop, "Loop .* control flow"),
        (custom, "Gelu .* domain 'com.microsoft'"),
        (lambda: small_onnx(middle="m = RandomUniformLike (r)"), "at random"),
        (lambda: small_onnx(middle='m = Einsum <equation = "nchw->nchw"> (r)'), "followed"),
    ],
    ids=["Loop", "custom domain", "random", "Einsum"],
)
def test_what_is_refused_is_refused_before_it_runs(
    make, says, tmp_path, contract_file, monkeypatch
):
    def run(*_):
        raise AssertionError("it ran")

    monkeypatch.setattr(foreign, "_folded", run)
    monkeypatch.setattr(foreign, "_run_of", run)
    (tmp_path / "theirs.onnx").write_bytes(make().SerializeToString())
    with pytest.raises(InputError, match=says) as caught:
        read_onnx(tmp_path / "theirs.onnx", contract_file)
    assert caught.value.code == "E-ONNX-OPERATOR"


def branching(condition):
    """An If around the ReLU, by a constant or by the frame."""
    then, other = (
        f"{name} () => (float[1,4,{SIDE},{SIDE}] {name}) {{ {name} = {operator} (r) }}"
        for name, operator in (("a", "Identity"), ("d", "Neg"))
    )
    constants = {"yes": np.array(True), "zero": np.array(0, np.float32)}
    made = "yes2 = Identity (yes)"
    if condition == "the frame":
        made = "s = ReduceSum <keepdims = 0> (r)\n yes2 = Greater (s, zero)"
    return small_onnx(
        middle=f"{made}\n m = If (yes2) <then_branch = {then}, else_branch = {other}>",
        constants=constants,
    )


def test_a_branch_that_is_always_taken_is_folded_and_one_by_the_frame_refused(
    tmp_path, contract_file
):
    always = branching("always")
    ours = ours_of(always, tmp_path, contract_file)
    assert "If" not in operators_of(ours)
    np.testing.assert_allclose(answer(ours, noise(1)), answer(always, noise(1)), atol=1e-5)
    with pytest.raises(InputError, match="control flow") as caught:
        ours_of(branching("the frame"), tmp_path, contract_file)
    assert caught.value.code == "E-ONNX-OPERATOR"


def test_an_operator_that_changed_and_is_defined_by_no_others_is_refused_by_name(
    tmp_path, contract_file
):
    model = small_onnx(
        middle="i = Cast <to = 7> (r)\n n = BitwiseNot (i)\n m = Cast <to = 1> (n)", opset=18
    )
    with pytest.raises(InputError, match=r"BitwiseNot .* opset 17") as caught:
        ours_of(model, tmp_path, contract_file)
    assert caught.value.code == "E-ONNX-OPSET"
    moved = small_onnx(
        middle='m = GridSample <mode = "linear"> (r, grid)',
        opset=20,
        constants={"grid": np.zeros((1, SIDE, SIDE, 2), np.float32)},
    )
    with pytest.raises(InputError, match=r"GridSample .* has changed since") as caught:
        ours_of(moved, tmp_path, contract_file)
    assert caught.value.code == "E-ONNX-OPSET"


# --- parsers -------------------------------------------------------------------------------------


def test_what_openvino_does_not_take_is_refused_with_what_it_says(tmp_path, contract_file):
    model = small_onnx(
        middle="d = Det (c)\n e = Unsqueeze (d, axes)\n m = Add (c, e)",
        constants=integers("axes", 2, 3),
    )
    ours = ours_of(model, tmp_path, contract_file)  # ONNX Runtime takes it
    (tmp_path / "ir").mkdir()
    with pytest.raises(Refused, match="No conversion rule found for operations: Det") as caught:
        openvino_from_onnx(ours.SerializeToString(), tmp_path / "ir")
    assert caught.value.code == "E-OPENVINO-PARSE"
    assert "\n" not in str(caught.value)


def test_a_kit_is_refused_by_the_operators_that_its_tensorrt_is_recorded_to_take(
    tmp_path, contract_file
):
    ours = ours_of(small("LayerNormalization"), tmp_path, contract_file).SerializeToString()
    plan_for(make_plan(find_target("orin-nano-8@jp6.2")), ours)
    with pytest.raises(Refused, match=r"TensorRT 8.5.2 .* LayerNormalization") as caught:
        plan_for(make_plan(find_target("orin-nano-8@jp5.1")), ours)
    assert caught.value.code == "E-TARGET-OPERATOR"


def test_every_tensorrt_of_a_target_has_its_operators_recorded():
    kits = [each for each in targets().values() if each.kind == "tensorrt"]
    versions = {".".join(map(str, each.tensorrt_version[:2])) for each in kits} - {"8.2"}
    assert len(versions) > 4
    for version in versions:
        known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
        assert {"Conv", "ConvTranspose", "Resize", "QuantizeLinear"} <= parsed_by(version) <= known
        assert ("LayerNormalization" in parsed_by(version)) == (version != "8.5")


# --- INT8 ----------------------------------------------------------------------------------------


def test_a_plan_says_how_much_of_a_network_int8_takes(tmp_path, contract_file):
    # Multiply-accumulates a pixel: 36 of the first convolution, 16 of the product, 4 of the head.
    ours = ours_of(small("MatMul"), tmp_path, contract_file).SerializeToString()
    plan = plan_for(make_plan(find_target("x86-cpu"), "int8"), ours)
    assert plan.int8_share == pytest.approx(36 / 56)
    assert "int8 takes 64.3% of the network's multiply-accumulates" in render_plan(plan)
    assert plan_for(plan, ours) == plan
    whole = plan_for(make_plan(find_target("x86-cpu"), "fp32"), ours)
    assert "int8 takes" not in render_plan(whole)


def test_int8_of_a_network_that_it_takes_nothing_of_is_refused(tmp_path):
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        only (float[1,1,{SIDE},{SIDE}] image) => (float[1,1,{SIDE},{SIDE}] logits) {{
            logits = MatMul (image, k) }}"""
    model = parser.parse_model(text)
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.eye(SIDE, dtype=np.float32), "k")
    )
    model.graph.node[0].name = "product"
    with pytest.raises(Refused, match="no convolution") as caught:
        plan_for(make_plan(find_target("x86-cpu"), "int8"), model.SerializeToString())
    assert caught.value.code == "E-PRECISION-FALLBACK"
    plan = plan_for(make_plan(find_target("jetson")), model.SerializeToString())
    assert plan.precisions == tuple(plan.builds) == ("fp32", "fp16")
    assert "no convolution" in plan.refused["int8"]
