"""ONNX from elsewhere: taken with a contract, or refused by what does not fit."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeseg.cli.jobs.sources import find_source, load_exportable
from edgeseg.export.foreign import read_onnx
from edgeseg.export.to_onnx import onnx_from_network
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError

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


def answer(model, image):
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


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
        (network(size="n"), "E-ONNX-SHAPE", "n"),
        (network(outputs=("y", "r2")), "E-ONNX-READ", "theirs.onnx"),
        (network(middle="Elu"), "E-ONNX-OPERATOR", "Elu"),
        (network(middle="Mish", opset=18), "E-ONNX-OPERATOR", "Mish"),
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


def test_an_output_that_is_a_probability_is_refused(saved, contract_file):
    model = network()
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Sigmoid", ["before"], ["y"]))
    with pytest.raises(InputError, match="Sigmoid") as caught:
        read_onnx(saved(model), contract_file)
    assert caught.value.code == "E-ONNX-SHAPE"


def test_weights_in_half_precision_are_refused(saved, contract_file):
    model = network()
    half = numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(half, "w"))
    with pytest.raises(InputError) as caught:
        read_onnx(saved(model), contract_file)
    assert caught.value.code in ("E-ONNX-SHAPE", "E-ONNX-READ")
