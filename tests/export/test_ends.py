"""The ends of an ONNX from elsewhere: what only differs in form is taken, the rest refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper, parser

from edgeseg.cli.jobs.sources import load_exportable
from edgeseg.cli.main import cli
from edgeseg.export.foreign import read_onnx
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.runtime.image import input_from_frame
from edgeseg.tests.support.small_onnx import SIDE, answer, noise, small_onnx

CONTRACT = InputContract(height=SIDE, width=SIDE)


@pytest.fixture
def read(tmp_path):
    """Read a model with a contract of its size; the rest goes to `read_onnx`."""

    def of(model, contract=CONTRACT, **options):
        (tmp_path / "contract.json").write_text(json.dumps(contract.to_dict()))
        (tmp_path / "theirs.onnx").write_bytes(model.SerializeToString())
        return read_onnx(tmp_path / "theirs.onnx", tmp_path / "contract.json", **options)

    return of


def end_of(model):
    return onnx.load_model_from_string(model).graph


def same(network, theirs, image, expected):
    """The file as it was, ours, and what is expected agree."""
    for found in (network.run(image), answer(network.to_onnx(), image)):
        np.testing.assert_allclose(found, expected, atol=1e-5)


# --- grey levels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("through", [TensorProto.FLOAT, TensorProto.INT32], ids=["float", "int"])
def test_uint8_at_the_input_is_grey_levels_that_the_contract_leaves_alone(read, through):
    theirs = small_onnx()
    theirs.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    theirs.graph.node[0].input[0] = "scaled"
    nodes = [
        helper.make_node("Cast", ["x"], ["cast"], "cast", to=through),
        helper.make_node("Cast", ["cast"], ["float"], "float", to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "levels"], ["scaled"], "scale"),
    ]
    for node in reversed(nodes):
        theirs.graph.node.insert(0, node)
    levels = numpy_helper.from_array(np.float32(255), "levels")
    theirs.graph.initializer.append(levels)
    untouched = replace(CONTRACT, mean=0.0, std=1 / 255)
    network = read(theirs, untouched)
    frame = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)
    image = input_from_frame(frame, untouched)
    assert np.array_equal(image[0, 0], frame)
    same(network, theirs, image, answer(small_onnx(), (image / 255).astype(np.float32)))
    assert network.provenance["cast_ends"] is True
    with pytest.raises(InputError, match="mean 0 and std") as caught:
        read(theirs)
    assert caught.value.code == "E-CONTRACT"


# --- axes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dims",
    [("N", 1, SIDE, SIDE), (1, 1, "h", "w"), ("N", "c", "h", "w"), (None, 1, None, None)],
    ids=str,
)
def test_an_axis_that_is_not_fixed_becomes_the_contracts(dims, read):
    theirs = small_onnx()
    for value in (theirs.graph.input[0], theirs.graph.output[0]):
        for axis, size in zip(value.type.tensor_type.shape.dim, dims, strict=True):
            axis.Clear()
            if isinstance(size, int):
                axis.dim_value = size
            elif size:
                axis.dim_param = size
    network = read(theirs)
    same(network, theirs, noise(), answer(small_onnx(), noise()))
    assert network.provenance["fixed_axes"] == [1, 1, SIDE, SIDE]
    assert "channels_last" not in network.provenance


def test_what_hangs_on_the_size_of_the_frame_is_folded_once_it_is_fixed(read):
    theirs = small_onnx(
        end="s = Shape (z)\n twice = Mul (s, doubled)\n"
        'u = Resize <mode = "linear"> (z, none, none, twice)\n'
        'y = Resize <mode = "linear"> (u, none, none, s)',
        constants={
            "doubled": np.array([1, 1, 2, 2], np.int64),
            "none": np.zeros(0, np.float32),
        },
    )
    for value in (theirs.graph.input[0], theirs.graph.output[0]):
        for axis, name in zip(value.type.tensor_type.shape.dim, "nchw", strict=True):
            axis.dim_param = name
    other = InputContract(height=SIDE, width=2 * SIDE)
    network = read(theirs, other)
    image = np.random.default_rng(1).normal(size=(1, 1, SIDE, 2 * SIDE)).astype(np.float32)
    np.testing.assert_allclose(network.run(image), answer(network.to_onnx(), image), atol=1e-5)
    assert not {"Shape", "Mul"} & {node.op_type for node in end_of(network.to_onnx()).node}


def test_an_axis_that_is_fixed_otherwise_is_refused_by_its_shape(read):
    theirs = small_onnx()
    theirs.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    with pytest.raises(InputError, match=r"input float32 \[4, 1, 32, 32\]") as caught:
        read(theirs)
    assert caught.value.code == "E-ONNX-SHAPE"


# --- channels last -------------------------------------------------------------------------------


def channels_last(end="y = Transpose <perm = [0, 2, 3, 1]> (z)", out=1, batch="1"):
    """As TensorFlow's converter writes it: a transpose behind the input, another before the end."""
    first = small_onnx()
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        small (float[{batch},{SIDE},{SIDE},1] x) => (float[{batch},{SIDE},{SIDE},{out}] y) {{
            t = Transpose <perm = [0, 3, 1, 2]> (x)
            c = Conv <pads = [1, 1, 1, 1]> (t, w, b)
            m = Relu (c)
            z = Conv (m, h)
            {end}
        }}"""
    model = parser.parse_model(text)
    model.graph.initializer.extend(first.graph.initializer)
    return model


@pytest.mark.parametrize("batch", ["1", "N"])
def test_a_channel_that_comes_last_is_moved_at_the_edge(batch, read):
    network = read(channels_last(batch=batch))
    same(network, None, noise(), answer(small_onnx(), noise()))
    assert network.provenance["channels_last"] == ["input", "output"]
    assert "Transpose" not in {node.op_type for node in end_of(network.to_onnx()).node}


def test_two_channels_of_a_softmax_that_come_last_become_the_second_as_a_logit(read):
    theirs = channels_last(
        "n = Neg (z)\n both = Concat <axis = 1> (n, z)\n"
        "p = Transpose <perm = [0, 2, 3, 1]> (both)\n y = Softmax <axis = -1> (p)",
        out=2,
    )
    for node in theirs.graph.node:
        if node.op_type == "Neg":
            node.CopyFrom(onnx.helper.make_node("Mul", ["z", "minus"], ["n"]))
    theirs.graph.initializer.append(onnx.numpy_helper.from_array(np.array(-1, np.float32), "minus"))
    network = read(theirs)
    assert network.provenance["cut_off"] == "Softmax"
    logits = answer(small_onnx(), noise())
    clear = abs(logits) < 5  # beyond it FP32 rounds their probability
    for found in (network.run(noise()), answer(network.to_onnx(), noise())):
        np.testing.assert_allclose(found[clear], 2 * logits[clear], atol=1e-2)


# --- types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_ends_of_another_float_type_are_cast_at_the_edge(kind, read):
    theirs = small_onnx(end=f"y = Cast <to = {kind}> (z)")
    theirs.graph.input[0].type.tensor_type.elem_type = kind
    theirs.graph.output[0].type.tensor_type.elem_type = kind
    theirs.graph.node.insert(0, onnx.helper.make_node("Cast", ["x"], ["float"], to=1))
    theirs.graph.node[1].input[0] = "float"
    network = read(theirs)
    for found in (network.run(noise()), answer(network.to_onnx(), noise())):
        np.testing.assert_allclose(found, answer(small_onnx(), noise()), atol=2e-2)
    assert network.provenance["cast_ends"] is True
    assert "Cast" not in {node.op_type for node in end_of(network.to_onnx()).node}


# --- outputs -------------------------------------------------------------------------------------


def supervised(**more):
    """A second head, at half the size and with dropout in training mode, as training needs it."""
    model = small_onnx(
        end="y = Identity (z)\n f = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (c)\n"
        "g, mask = Dropout (f, ratio, training)\n deep = Conv (g, h)",
        constants={"ratio": np.array(0.5, np.float32), "training": np.array(True)},
        **more,
    )
    half = onnx.helper.make_tensor_value_info(
        "deep", TensorProto.FLOAT, [1, 1, SIDE // 2, SIDE // 2]
    )
    model.graph.output.append(half)
    return model


def test_the_output_that_is_named_answers_and_what_others_need_goes(read):
    network = read(supervised(), output="y")
    same(network, None, noise(), answer(small_onnx(), noise()))
    assert network.provenance["output"] == "y"
    assert "MaxPool" not in {node.op_type for node in end_of(network.to_onnx()).node}


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (None, r"outputs y float32 \[1, 1, 32, 32\], deep float32 .* --output"),
        ("head", "no output 'head'"),
    ],
)
def test_several_outputs_without_a_name_that_is_one_are_refused_with_the_names(output, says, read):
    with pytest.raises(InputError, match=says) as caught:
        read(supervised(), output=output)
    assert caught.value.code == "E-ONNX-OUTPUT"


def test_an_output_of_another_size_is_refused_by_its_shape(read):
    model = supervised()
    for node in [each for each in model.graph.node if each.op_type == "Dropout"]:
        node.CopyFrom(onnx.helper.make_node("Identity", ["f"], ["g"]))
    with pytest.raises(InputError, match=r"\[1, 1, 16, 16\]") as caught:
        read(model, output="deep")
    assert caught.value.code == "E-ONNX-SHAPE"


def test_a_name_of_the_only_output_changes_nothing(read):
    assert "output" not in read(small_onnx(), output="y").provenance


def test_output_of_what_is_no_onnx_is_refused(run):
    with pytest.raises(InputError) as caught:
        load_exportable(run, None, output="y")
    assert caught.value.code == "E-ONNX-OUTPUT"


def test_the_command_takes_the_name(tmp_path, phantoms):
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT.to_dict()))
    (tmp_path / "theirs.onnx").write_bytes(supervised().SerializeToString())
    ends = ["--target", "x86-cpu", "--contract", str(tmp_path / "contract.json"), "--dry-run"]
    words = ["export", str(tmp_path / "theirs.onnx"), *ends]
    refused = CliRunner().invoke(cli, words)
    assert (refused.exit_code, refused.stderr.split(":")[1].strip()) == (2, "E-ONNX-OUTPUT")
    taken = CliRunner().invoke(cli, [*words, "--output", "y"])
    assert taken.exit_code == 0, taken.stderr
