"""ONNX of opsets 7 to 24 answers as before when it is ours, or is refused by name.

Where a target's parsers take its opset it stays as it is.
"""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from edgeseg.export import foreign
from edgeseg.export.foreign import read_onnx
from edgeseg.export.target import targets
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
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


@pytest.fixture
def contract_file(tmp_path):
    file = tmp_path / "contract.json"
    file.write_text(json.dumps(InputContract(SIDE, SIDE).to_dict()))
    return file


def same_answer(model, tmp_path, contract_file, *, highest=17, opset=17):
    ours = ours_of(model, tmp_path, contract_file, highest)
    assert [(each.domain, each.version) for each in ours.opset_import] == [("", opset)]
    image = noise(3)
    np.testing.assert_allclose(answer(ours, image), answer(model, image), atol=1e-5)
    return ours


DOWN = {  # what is between the convolutions, the least opset, the constants
    "Pad with axes": (
        "p = Pad(r, pads, , axes)\n m = Slice(p, one, last, spatial)",
        18,
        integers("pads", 1, 2, 3, 1)
        | integers("axes", -1, 2)
        | integers("one", 1, 1)
        | integers("last", 33, 33)
        | integers("spatial", 2, 3),
    ),
    "Pad by reflection": (
        'p = Pad <mode = "reflect"> (r, pads)\n m = Slice(p, one, last, spatial)',
        18,
        integers("pads", 0, 0, 1, 1, 0, 0, 1, 1)
        | integers("one", 0, 1)
        | integers("last", 32, 33)
        | integers("spatial", 2, 3),
    ),
    "Split in a number": (
        "a, b1 = Split <axis = 1, num_outputs = 2> (r)\n m = Concat <axis = 1> (b1, a)",
        18,
        {},
    ),
    "Split that does not divide": (
        "a, b1, b2 = Split <axis = -3, num_outputs = 3> (t)\n m = Concat <axis = 1> (b1, b2, a)",
        18,
        {},
    ),
    "Split by sizes": (
        "a, b1 = Split <axis = 1> (r, sizes)\n m = Concat <axis = 1> (b1, a)",
        18,
        integers("sizes", 1, 3),
    ),
    "ReduceMean with axes": (
        "g = ReduceMean <keepdims = 1> (r, axes)\n m = Mul (r, g)",
        18,
        integers("axes", 2, -1),
    ),
    "ReduceMean of all": ("g = ReduceMean (r)\n m = Mul (r, g)", 18, {}),
    "ReduceMean of none": (
        "g = ReduceMean <noop_with_empty_axes = 1> (r)\n m = Add (r, g)",
        18,
        {},
    ),
    "Gelu": ("m = Gelu (r2)", 20, {}),
    "Gelu by tanh": ('m = Gelu <approximate = "tanh"> (r2)', 20, {}),
    "Cast that saturates": ("m = Cast <to = 1, saturate = 1> (r)", 19, {}),
    "AveragePool with dilations": (
        "p = AveragePool <kernel_shape = [2, 2], strides = [2, 2], dilations = [1, 1]> (r)\n"
        'm = Resize <mode = "nearest"> (p, , scales)',
        19,
        constant("scales", 1, 1, 2, 2),
    ),
    "Resize of axes by scales": (
        "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)\n"
        'm = Resize <axes = [2, 3], mode = "linear"> (p, , scales)',
        18,
        constant("scales", 2, 2),
    ),
    "Resize of axes to sizes": (
        "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)\n"
        'm = Resize <axes = [-1, -2], mode = "cubic"> (p, , , sizes)',
        18,
        integers("sizes", 32, 32),
    ),
    **{
        f"Resize with antialias to {height}x{width}, exclude_outside {outside}": (
            f'p = Resize <antialias = 1, mode = "linear", exclude_outside = {outside}>'
            " (r, , , small)\n"
            'm = Resize <antialias = 1, mode = "linear"> (p, , , large)',
            18,
            integers("small", 1, 4, height, width) | integers("large", 1, 4, SIDE, SIDE),
        )
        for height, width, outside in ((16, 32, 0), (16, 32, 1), (8, 16, 0), (8, 16, 1), (1, 4, 0))
    },
}


@pytest.mark.parametrize(
    ("name", "opset"), [(name, opset) for name in DOWN for opset in range(DOWN[name][1], 25)]
)
def test_what_opset_18_and_later_changed_answers_as_before(name, opset, tmp_path, contract_file):
    model = downward(name, opset)
    same_answer(model, tmp_path, contract_file)
    same_answer(model, tmp_path, contract_file, highest=opset - 1 if opset > 18 else 17)


@pytest.mark.parametrize("opset", range(18, 25))
@pytest.mark.parametrize("name", DOWN)
def test_an_opset_that_the_target_takes_is_kept(name, opset, tmp_path, contract_file):
    if opset < DOWN[name][1]:
        opset = DOWN[name][1]
    theirs = downward(name, opset)
    ours = same_answer(theirs, tmp_path, contract_file, highest=24, opset=opset)
    kept = {"Gelu", "ReduceMean", "Resize", "Pad"} & operators_of(theirs)
    assert kept <= operators_of(ours)  # none is rewritten


def downward(name, opset):
    middle, _, constants = DOWN[name]
    middle = "r2 = Identity (c)\n" * ("(r2)" in middle) + middle  # values of both signs
    if "(t)" in middle:  # five channels in three parts, of which four go on
        middle = "five = Concat <axis = 1> (r, c1)\n" + middle.replace("(t)", "(five)")
        middle = "c1, c3 = Split <axis = 1> (r, sizes)\n" + middle
        middle = middle.replace(
            "m = Concat <axis = 1> (b1, b2, a)", "u = Concat <axis = 1> (b1, a)"
        )
        middle += "\n v = Sub (u, b2)\n m = Identity (v)"
        constants = integers("sizes", 1, 3)
    return small_onnx(middle=middle, opset=opset, constants=constants)


def test_a_reduction_with_antialias_is_a_depthwise_convolution_with_a_stride(
    tmp_path, contract_file
):
    middle, _, constants = DOWN["Resize with antialias to 16x32, exclude_outside 0"]
    model = small_onnx(middle=middle, opset=18, constants=constants)
    (smooth,) = (
        node
        for node in same_answer(model, tmp_path, contract_file).graph.node
        if any(each.name == "strides" and list(each.ints) == [2, 1] for each in node.attribute)
    )
    assert smooth.op_type == "Conv"


UP = {
    "Upsample by a factor": (
        9,
        "p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)\n"
        'm = Upsample <mode = "{}"> (p, scales)',
        constant("scales", 1, 1, 2, 2),
    ),
    "Slice and Squeeze by attributes": (
        9,
        "s = Slice <axes = [1], starts = [0], ends = [1]> (r)\n"
        "q = Squeeze <axes = [1]> (s)\n u = Unsqueeze <axes = [1]> (q)\n m = Add (r, u)",
        {},
    ),
    "Clip by attributes": (9, "m = Clip <min = 0.1, max = 0.5> (r)", {}),
    "Pad by attributes": (
        9,
        "p = Pad <pads = [0, 0, 1, 1, 0, 0, 0, 0]> (r)\n"
        "m = Slice <axes = [2, 3], starts = [0, 0], ends = [32, 32]> (p)",
        {},
    ),
    "Split by attributes": (
        11,
        "a, d = Split <axis = 1, split = [1, 3]> (r)\n m = Concat <axis = 1> (d, a)",
        {},
    ),
    "Softmax over channels": (13, "s = Softmax <axis = 1> (r)\n m = Mul (r, s)", {}),
}


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("name", UP)
def test_an_older_opset_answers_as_before(name, mode, tmp_path, contract_file):
    opset, middle, constants = UP[name]
    model = small_onnx(middle=middle.format(mode), opset=opset, constants=constants)
    same_answer(model, tmp_path, contract_file)


NOT_IN_17 = [
    (
        'p = Pad <mode = "wrap"> (r, pads)\n m = Slice (p, one, last, spatial)',
        19,
        integers("pads", 0, 0, 0, 1, 0, 0, 0, 1)
        | integers("one", 1)
        | integers("last", 33)
        | integers("spatial", 3),
        "mode wrap",
    ),
    (
        "m = AveragePool <kernel_shape = [3, 3], dilations = [2, 2], pads = [2, 2, 2, 2]> (r)",
        19,
        {},
        "dilations",
    ),
    (
        'p = Resize <antialias = 1, mode = "linear"> (r, , , small)\n'
        'm = Resize <mode = "linear"> (p, , , large)',
        18,
        integers("small", 1, 4, 20, 20) | integers("large", 1, 4, 32, 32),
        "whole factor",
    ),
]


@pytest.mark.parametrize("opset", [20, 24])
@pytest.mark.parametrize(("middle", "constants"), [(each[0], each[2]) for each in NOT_IN_17])
def test_what_only_a_later_opset_says_is_taken_where_the_target_takes_it(
    middle, constants, opset, tmp_path, contract_file
):
    model = small_onnx(middle=middle, opset=opset, constants=constants)
    same_answer(model, tmp_path, contract_file, highest=24, opset=opset)


@pytest.mark.parametrize("opset", [18, 22, 24])
@pytest.mark.parametrize(
    ("end", "out"),
    [
        ("y = Sigmoid (z)", "float[1,1,32,32]"),
        ("n = Neg (z)\n both = Concat <axis = 1> (n, z)\n y = Softmax <axis = 1> (both)", ""),
    ],
)
def test_a_probability_is_cut_off_in_a_later_opset_too(end, out, opset, tmp_path, contract_file):
    model = small_onnx(
        end=end.replace("Neg (z)", "Mul (z, minus)"),
        opset=opset,
        out=out or "float[1,2,32,32]",
        constants=constant("minus", -0.5),
    )
    ours = ours_of(model, tmp_path, contract_file, 24)
    assert ours.opset_import[0].version == opset
    assert not {"Sigmoid", "Softmax"} & operators_of(ours)
    image = noise(3)
    share = answer(model, image)[:, -1:]
    np.testing.assert_allclose(answer(ours, image), np.log(share / (1 - share)), atol=1e-3)


def test_a_target_says_the_highest_opset_of_its_parsers():
    known = targets()
    assert {each.opset for each in known.values()} == {17, 24}
    # OpenVINO passes over the antialias of a Resize, TensorRT's parsers were not run beyond 17.
    assert [name for name, each in known.items() if each.opset > 17] == ["arm-cpu"]


@pytest.mark.parametrize(
    ("middle", "opset", "constants", "says"),
    [
        *NOT_IN_17,
        ("m = Identity (r)", 25, {}, "7 to 24"),
        ("m = Identity (r)", 6, {}, "7 to 24"),
    ],
)
def test_what_opset_17_cannot_say_is_refused_by_name(
    middle, opset, constants, says, tmp_path, contract_file
):
    file = tmp_path / "theirs.onnx"
    model = small_onnx(middle=middle, opset=opset, constants=constants)
    file.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=says) as caught:
        read_onnx(file, contract_file)
    assert caught.value.code == "E-ONNX-OPSET"


def test_a_converter_that_fails_is_called_ours(tmp_path, contract_file, monkeypatch):
    def fail(*_):
        raise RuntimeError("adapter_lookup: Assertion `false` failed")

    monkeypatch.setattr(onnx.version_converter, "convert_version", fail)
    file = tmp_path / "theirs.onnx"
    file.write_bytes(small_onnx(opset=13).SerializeToString())
    with pytest.raises(InputError, match="edgeseg cannot convert") as caught:
        read_onnx(file, contract_file)
    assert caught.value.code == "E-ONNX-OPSET"


def test_a_conversion_of_ours_that_is_no_onnx_is_called_ours(tmp_path, contract_file, monkeypatch):
    def broken(model, *_):
        model.graph.node[0].input[0] = "nowhere"
        return model

    monkeypatch.setattr(foreign, "at_our_opset", broken)
    file = tmp_path / "theirs.onnx"
    file.write_bytes(small_onnx(opset=18).SerializeToString())
    with pytest.raises(InputError, match="what edgeseg makes of") as caught:
        read_onnx(file, contract_file)
    assert caught.value.code == "E-ONNX-OPSET"


def test_a_cast_to_the_type_that_it_reads_goes(tmp_path, contract_file):
    model = small_onnx(middle="s = Cast <to = 1> (r)\n m = Relu (s)", end="y = Cast <to = 1> (z)")
    ours = same_answer(model, tmp_path, contract_file)
    assert operators_of(ours) <= {"Conv", "Relu", "Identity"}


def test_shapes_that_are_computed_from_static_ones_are_folded(tmp_path, contract_file):
    middle = """s = Shape (r)
        part = Slice (s, two, four, zero)
        floats = Cast <to = 1> (part)
        half = Div (floats, by)
        sizes1 = Cast <to = 7> (half)
        start = ConstantOfShape <value = int64[1] {1}> (two)
        channels = Mul (start, four)
        sizes = Concat <axis = 0> (start1, channels1, sizes1)
        p = Resize <mode = "nearest"> (r, , , sizes)
        m = Resize <mode = "nearest"> (p, , , s)"""
    constants = (
        integers("two", 2)
        | integers("four", 4)
        | integers("zero", 0)
        | constant("by", 2, 2)
        | integers("start1", 1)
        | integers("channels1", 4)
    )
    model = small_onnx(middle=middle, constants=constants, out="float[a,b,c,d]")
    ours = same_answer(model, tmp_path, contract_file)
    assert operators_of(ours) == {"Conv", "Relu", "Resize"}
