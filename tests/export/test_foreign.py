"""ONNX from elsewhere: taken with a contract, or refused by what does not fit."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from edgeseg.cli.jobs.sources import OnnxSource, find_source, load_exportable
from edgeseg.export import foreign
from edgeseg.export.foreign import read_onnx
from edgeseg.export.to_onnx import onnx_from_network
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.tests.support.small_onnx import answer, noise, operators_of, ours_of, small_onnx

CONTRACT = InputContract(height=32, width=32)


def network(*, opset=14, size=32, middle="Relu", outputs=("y",), kind=TensorProto.FLOAT, **names):
    """Convolution, batch norm, something, 1x1 convolution; nodes have no names."""
    weights = {
        "w": np.full((4, 1, 3, 3), 0.1, np.float32),
        "g": np.full(4, 2, np.float32),
        "b": np.ones(4, np.float32),
        "m": np.zeros(4, np.float32),
        "v": np.ones(4, np.float32),
        "h": np.ones((1, 4, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["in", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
        helper.make_node(middle, ["n"], ["r"], **names),
        helper.make_node("Conv", ["r", "h"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("in", kind, [1, 1, size, size])],
        [helper.make_tensor_value_info(name, kind, [1, 1, size, size]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def contract_file(tmp_path):
    file = tmp_path / "contract.json"
    file.write_text(json.dumps(CONTRACT.to_dict()))
    return file


@pytest.fixture
def saved(tmp_path):
    def save(model):
        file = tmp_path / "theirs.onnx"
        file.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return file

    return save


def test_it_answers_as_before_but_is_ours_in_form(saved, contract_file):
    theirs = network()
    ours = read_onnx(saved(theirs), contract_file)
    image = np.random.default_rng(0).normal(size=(1, 1, 32, 32)).astype(np.float32)
    expected = answer(theirs.SerializeToString(), image)
    np.testing.assert_allclose(ours.run(image), expected, atol=1e-5)
    graph = onnx.load_model_from_string(ours.to_onnx())
    assert [each.version for each in graph.opset_import if each.domain == ""] == [17]
    assert (graph.graph.input[0].name, graph.graph.output[0].name) == ("image", "logits")
    names = [node.name for node in graph.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}
    assert ours.contract == CONTRACT


def test_our_own_onnx_carries_its_contract(run, saved):
    loaded = load_checkpoint(run / "student.safetensors")
    own = read_onnx(saved(onnx_from_network(loaded.network, loaded.contract)), None)
    assert own.contract == loaded.contract


def test_another_contract_than_the_one_it_carries_is_refused(run, saved, contract_file):
    loaded = load_checkpoint(run / "student.safetensors")
    file = saved(onnx_from_network(loaded.network, loaded.contract))
    with pytest.raises(InputError) as caught:
        read_onnx(file, contract_file)
    assert caught.value.code == "E-CONTRACT"


@pytest.mark.parametrize(
    "text", [None, "", "[]", "5", "{", '{"height": 32}', '{"height": Infinity}']
)
def test_a_missing_or_malformed_contract_is_refused(saved, tmp_path, text):
    file = None
    if text is not None:
        file = tmp_path / "bad.json"
        file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_onnx(saved(network()), file)
    assert caught.value.code == "E-CONTRACT"


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        (b"not onnx", "E-ONNX-READ", "theirs.onnx"),
        (b"", "E-ONNX-READ", "theirs.onnx"),
        (network(size=48), "E-ONNX-SHAPE", "48"),
        (network(outputs=("y", "r2")), "E-ONNX-READ", "theirs.onnx"),
        (network(middle="RandomNormalLike"), "E-ONNX-OPERATOR", "RandomNormalLike .* at random"),
        (network(middle="Mine", domain="my.own"), "E-ONNX-READ", "my.own"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(saved, contract_file, model, code, says):
    with pytest.raises(InputError, match=says) as caught:
        read_onnx(saved(model), contract_file)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_only_export_takes_onnx(saved):
    with pytest.raises(InputError) as caught:
        find_source(saved(network()))
    assert caught.value.code == "E-SOURCE"


def test_a_contract_for_what_carries_its_own_is_refused(run, contract_file):
    with pytest.raises(InputError) as caught:
        load_exportable(run, contract_file)
    assert caught.value.code == "E-CONTRACT"


def test_weights_that_are_listed_as_inputs_and_inner_tensors_with_our_names_are_taken(
    saved, contract_file
):
    model = network()
    for name, shape in (("w", [4, 1, 3, 3]), ("h", [1, 4, 1, 1])):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = {"r": "logits", "c": "image"}.get(name, name)
    ours = read_onnx(saved(model), contract_file)
    image = np.random.default_rng(0).normal(size=(1, 1, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(
        ours.run(image), answer(network().SerializeToString(), image), atol=1e-5
    )


def test_fp16_within_an_fp32_network_becomes_fp32(saved, contract_file):
    for as_nodes in (False, True):
        model = half_inside(as_nodes=as_nodes)
        ours = read_onnx(saved(model), contract_file)
        np.testing.assert_allclose(
            ours.run(noise()), answer(ours.to_onnx(), noise()), atol=2e-3, rtol=2e-3
        )
        kinds = {
            tensor.data_type
            for tensor in onnx.load_model_from_string(ours.to_onnx()).graph.initializer
        }
        assert TensorProto.FLOAT16 not in kinds
        assert TensorProto.FLOAT in kinds


def half_inside(*, as_nodes):
    """Cast to FP16, the network in FP16, and back."""
    model = network(opset=17)
    halves = [
        numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        for tensor in model.graph.initializer
    ]
    nodes = [
        helper.make_node("Cast", ["in"], ["half"], to=TensorProto.FLOAT16),
        *model.graph.node,
        helper.make_node("Cast", ["low"], ["y"], to=TensorProto.FLOAT),
    ]
    nodes[1].input[0] = "half"
    nodes[-2].output[0] = "low"
    del model.graph.initializer[:]
    if as_nodes:
        constants = [helper.make_node("Constant", [], [each.name], value=each) for each in halves]
        nodes = [*constants, *nodes]
    else:
        model.graph.initializer.extend(halves)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def test_weights_of_two_types_in_one_convolution_are_refused(saved, contract_file):
    model = network()
    half = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(half, "w"))
    with pytest.raises(InputError) as caught:
        read_onnx(saved(model), contract_file)
    assert caught.value.code == "E-ONNX-READ"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (TensorProto.INT8, "int8"),
        (TensorProto.INT64, "int64"),
    ],
)
def test_an_end_of_another_type_is_refused_by_its_type(saved, contract_file, kind, name):
    came = small_onnx()
    came.graph.input[0].type.tensor_type.elem_type = kind
    came.graph.node.insert(0, helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT))
    came.graph.node[1].input[0] = "float"
    goes = small_onnx(end=f"y = Cast <to = {kind}> (z)")
    goes.graph.output[0].type.tensor_type.elem_type = kind
    for model, what in ((came, "input"), (goes, "output")):
        with pytest.raises(InputError, match=rf"{what} {name} \[1, 1, 32, 32\]") as caught:
            read_onnx(saved(model), contract_file)
        assert caught.value.code == "E-ONNX-SHAPE"


def batch_norm(*, outputs=1, **attributes):
    names = ["m", "mean", "var", "saved_mean", "saved_var"][:outputs]
    node = helper.make_node("BatchNormalization", ["r", *"gevu"], names, **attributes)
    model = small_onnx(
        constants={
            name: np.full(4, value, np.float32)
            for name, value in (("g", 2), ("e", 1), ("v", 0.5), ("u", 4))
        }
    )
    (place,) = (
        at for at, each in enumerate(model.graph.node) if each.op_type == "Identity" and at < 3
    )
    model.graph.node[place].CopyFrom(node)
    return model


def dropout(training):
    return small_onnx(
        middle="m, dropped = Dropout (r, ratio, training)",
        constants={"ratio": np.array(0.5, np.float32), "training": np.array(training)},
    )


def at_opset(model, opset):
    model.opset_import[0].version = opset
    return model


def in_a_function(model):
    """The batch norm behind a function of the model, as older exporters of torch write it."""
    model.functions.append(
        helper.make_function(
            "own",
            "Norm",
            [*"abcde"],
            ["f"],
            [helper.make_node("BatchNormalization", [*"abcde"], ["f"], training_mode=1)],
            [helper.make_opsetid("", 17)],
        )
    )
    node = next(each for each in model.graph.node if each.op_type == "BatchNormalization")
    node.CopyFrom(helper.make_node("Norm", list(node.input), ["m"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (batch_norm(training_mode=1, outputs=3), "BatchNormalization"),
        (batch_norm(training_mode=1), "BatchNormalization"),
        (at_opset(batch_norm(outputs=5), 9), "BatchNormalization"),
        (in_a_function(batch_norm()), "BatchNormalization"),
        (dropout(True), "Dropout"),
    ],
    ids=["three outputs", "one output", "opset 9", "in a function", "Dropout"],
)
def test_a_network_in_training_mode_is_refused(saved, contract_file, model, says):
    with pytest.raises(InputError, match=f"{says} .* in training mode") as caught:
        read_onnx(saved(model), contract_file)
    assert caught.value.code == "E-ONNX-TRAINING"


@pytest.mark.parametrize("model", [batch_norm(), batch_norm(training_mode=0), dropout(False)])
def test_a_network_in_inference_mode_is_taken(saved, contract_file, model):
    ours = read_onnx(saved(model), contract_file)
    np.testing.assert_allclose(answer(ours.to_onnx(), noise()), answer(model, noise()), atol=1e-5)
    assert "Dropout" not in operators_of(onnx.load_model_from_string(ours.to_onnx()))


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (small_onnx(end="y = Mul (z, zero)", constants={"zero": np.zeros(1, np.float32)}), 1),
        (small_onnx(end="y = Identity (k)", constants={"k": np.ones((1, 1, 32, 32), "f")}), 1),
        (
            parser.parse_model(
                '<ir_version: 8, opset_import: ["" : 17]>'
                " g (float[1,1,32,32] x) => (float[1,1,32,32] y) { y = Identity (x) }"
            ),
            2,
        ),
    ],
    ids=["times zero", "a constant", "no convolution"],
)
def test_a_network_that_computes_nothing_is_refused(saved, contract_file, model, code):
    with pytest.raises(InputError) as caught:
        read_onnx(saved(model), contract_file)
    assert caught.value.code == ("E-ONNX-CONSTANT", "E-ONNX-OPERATOR")[code - 1]


def test_a_suffix_in_capitals_is_onnx_too(saved, contract_file):
    file = saved(network())
    capitals = file.rename(file.with_suffix(".ONNX"))
    source, ours = load_exportable(capitals, contract_file)
    assert isinstance(source, OnnxSource)
    assert ours.contract == CONTRACT
    with pytest.raises(InputError, match="which only") as caught:
        find_source(capitals)
    assert caught.value.code == "E-SOURCE"


def test_the_reference_is_the_file_as_it_was_not_what_it_became(saved, contract_file, monkeypatch):
    monkeypatch.setattr(foreign, "at_our_opset", lambda model, *_: doubled(model))
    ours = read_onnx(saved(network(opset=17)), contract_file)
    image = noise()
    np.testing.assert_array_equal(ours.run(image), answer(network(opset=17), image))
    assert not np.allclose(ours.run(image), answer(ours.to_onnx(), image))


def doubled(model):
    """What a faulty conversion might make of a model."""
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
    return model


def _conv(text, **weights):
    return small_onnx(middle=text, constants=weights)


@pytest.mark.parametrize(
    "model",
    [
        _conv("m = Conv <pads = [1, 1, 1, 1]> (r, v, c3)", v=np.ones((4, 4, 3, 3), np.float32)),
        _conv(
            "t = ConvTranspose <group = 2> (r, v, c3)\n m = Concat <axis = 1> (t, t)",
            v=np.ones((4, 1, 1, 1), np.float32),
        ),
        _conv("m = Conv <group = 0> (r, v)", v=np.ones((4, 4, 1, 1), np.float32)),
    ],
    ids=["bias of Conv", "bias of ConvTranspose", "no group"],
)
def test_a_convolution_that_cannot_run_is_refused_as_no_onnx(model, tmp_path, capfd):
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "c3"))
    file, contract = tmp_path / "theirs.onnx", tmp_path / "contract.json"
    file.write_bytes(model.SerializeToString())
    contract.write_text(json.dumps(CONTRACT.to_dict()))
    with pytest.raises(InputError) as caught:
        read_onnx(file, contract)
    assert caught.value.code == "E-ONNX-READ"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("opset", [21, 24])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_group_norm_of_the_standard_is_taken_as_its_steps(groups, opset, tmp_path):
    weights = {"s": np.array([1, 2, 0.5, 3], np.float32), "o": np.array([0, 1, -1, 2], np.float32)}
    text = f"m = GroupNormalization <num_groups = {groups}> (r, s, o)"
    theirs = small_onnx(middle=text, opset=opset, constants=weights)
    contract = tmp_path / "contract.json"
    contract.write_text(json.dumps(CONTRACT.to_dict()))
    ours = ours_of(theirs, tmp_path, contract)
    np.testing.assert_allclose(answer(ours, noise(3)), answer(theirs, noise(3)), atol=1e-4)
    assert not operators_of(ours) & {"GroupNormalization", "Shape", "CastLike"}
