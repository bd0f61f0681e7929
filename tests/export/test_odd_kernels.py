"""Convolutions that OpenVINO computes wrong with AMX get a kernel that it computes right."""

from __future__ import annotations

import json

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from edgeseg.cli.jobs import api
from edgeseg.export.odd_kernels import odd_kernels
from edgeseg.export.parity import exact_run
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.runtime.cpu import missing_features
from edgeseg.runtime.engines import open_engine
from edgeseg.runtime.errors import InputError
from edgeseg.runtime.progress import quiet
from edgeseg.tests.support.networks import (
    CONTRACT,
    SIDE,
    named_image,
    onnx_of,
    quantised_by_onnxruntime,
)


def image():
    return np.random.default_rng(0).normal(size=(1, 1, SIDE, SIDE)).astype(np.float32)


def kernels_of(model):
    graph = onnx.load_model_from_string(model).graph
    return [
        tuple(each.ints)
        for node in graph.node
        for each in node.attribute
        if node.op_type == "Conv" and each.name == "kernel_shape"
    ]


def with_patches(kernel=8, stride=8):
    """ONNX of a network whose second convolution is this one; its answers are far from 0."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, kernel, stride),
        nn.ReLU(),
        nn.Upsample(size=(SIDE, SIDE)),
        nn.Conv2d(32, 1, 1),
    )
    with torch.no_grad():
        network[-1].weight *= 40
    return onnx_of(network)


def one_convolution(kernel, **attributes):
    weight = np.random.default_rng(1).normal(size=(2, 1, *kernel)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv", kernel_shape=kernel, **attributes)],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2, None, None])],
        [numpy_helper.from_array(weight, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        ((4, 4), {"strides": [4, 4]}),
        ((8, 8), {"strides": [8, 8], "pads": [1, 2, 3, 4]}),
        ((6, 3), {}),
        ((2, 4), {"strides": [1, 2], "dilations": [1, 3], "pads": [0, 5, 0, 5]}),
        ((4, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 3]}),
        ((6, 4), {"auto_pad": "SAME_LOWER"}),
        ((8, 4), {"auto_pad": "VALID", "strides": [3, 1]}),
    ],
)
def test_a_grown_kernel_answers_as_it_did(kernel, attributes):
    model = one_convolution(kernel, **attributes)
    grown = odd_kernels(model)
    (sides,) = kernels_of(grown)
    assert sides == tuple(side + (side in (4, 6, 8)) for side in kernel)
    before, after = exact_run(model, 1)(image()), exact_run(grown, 1)(image())
    assert before.shape == after.shape
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_padding_that_hangs_on_an_unknown_size_is_refused():
    loaded = onnx.load_model_from_string(one_convolution((4, 4), auto_pad="SAME_UPPER"))
    loaded.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(InputError, match="conv is padded to the size of its input") as caught:
        odd_kernels(loaded.SerializeToString())
    assert caught.value.code == "E-ONNX-SHAPE"


def test_graphs_without_such_a_kernel_keep_their_bytes():
    for kernel in ((1, 1), (2, 2), (3, 3), (5, 7)):
        model = one_convolution(kernel)
        assert odd_kernels(model) is model


def test_weights_in_int8_grow_by_what_stands_for_zero():
    model = quantised_by_onnxruntime(named_image(with_patches()))
    grown = odd_kernels(model)
    assert (9, 9) in kernels_of(grown)
    np.testing.assert_array_equal(exact_run(grown, 1)(image()), exact_run(model, 1)(image()))


@pytest.mark.parametrize("own_pairs", [False, True])
def test_int8_of_such_a_network_answers_in_openvino_as_in_onnxruntime(own_pairs, tmp_path):
    model = with_patches()
    if own_pairs:
        seven_bits = bool(missing_features(["vnni"]))  # both engines would saturate
        model = quantised_by_onnxruntime(named_image(model), seven_bits=seven_bits)
    (tmp_path / "theirs.onnx").write_bytes(model)
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT.to_dict()))
    write_phantoms(tmp_path / "data", count=12)
    made = api.export(
        tmp_path / "theirs.onnx",
        target="x86-cpu",
        precision="int8",
        calib=tmp_path / "data",
        contract=tmp_path / "contract.json",
        max_drop=1.0,  # a network that was not trained has no Dice to lose
        max_hd95_rise=1000.0,
        force_contract=True,
        out=tmp_path / "bundle",
        progress=quiet,
    )
    assert made.exported.achieved["openvino int8"]["int8"] > 0.95
    files = {
        path.name: path.read_bytes()
        for path in (tmp_path / "bundle").iterdir()
        if path.suffix in (".xml", ".bin", ".onnx")
    }
    ours, theirs = (
        open_engine(engine, files, 1).run(image()) for engine in ("openvino", "onnxruntime")
    )
    assert np.abs(ours - theirs).max() < 0.1 * np.ptp(theirs)


def test_bf16_of_such_a_kernel_answers_as_float32_does():
    if missing_features(("amx",)):
        pytest.skip("this CPU has no AMX, whose kernels this is about; run it on one that has")
    torch.manual_seed(0)
    model = odd_kernels(onnx_of(nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 32, 8, 8))))
    core = ov.Core()
    answers = []
    for precision in ("f32", "bf16"):
        options = {"INFERENCE_PRECISION_HINT": precision}
        compiled = core.compile_model(core.read_model(model), "CPU", options)
        answers.append(compiled([image()])[0])
    assert np.abs(answers[1] - answers[0]).max() < 0.05 * np.ptp(answers[0])
