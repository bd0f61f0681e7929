"""The last upsampling as products of matrices: the same answer, or left alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeseg.export.batch import with_dynamic_batch
from edgeseg.export.final_resize import resize_as_products
from edgeseg.tests.support.small_onnx import answer


def resized(old, new, *, channels=1, scales=None, sizes=None, constant=False, **attributes):
    """A graph of one Resize from `image` to `logits`, linear with half pixels."""
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, *side])
        for name, side in (("image", old), ("double", old), ("logits", new))
    ]
    inputs = ["double", "", "" if sizes else "scales", *(["sizes"] if sizes else [])]
    told = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", **attributes}
    factors = np.array([1, 1, *(scales or (b / a for a, b in zip(old, new, strict=True)))])
    value = numpy_helper.from_array(factors.astype(np.float32), "scales")
    nodes = [helper.make_node("Add", ["image", "image"], ["double"], "add")]
    nodes += [helper.make_node("Constant", [], ["scales"], "c", value=value)] if constant else []
    nodes.append(helper.make_node("Resize", inputs, ["logits"], "up", **told))
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[2:], value_info=ends[1:2])
    if sizes:
        whole = np.array([1, channels, *sizes], np.int64)
        graph.initializer.append(numpy_helper.from_array(whole, "sizes"))
    elif not constant:
        graph.initializer.append(value)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def operators(model):
    return [node.op_type for node in onnx.load_model_from_string(model).graph.node]


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("mode", ["half_pixel", "pytorch_half_pixel"])
@pytest.mark.parametrize(
    ("old", "new"), [((4, 4), (16, 16)), ((3, 5), (6, 20)), ((8, 8), (8, 24)), ((5, 2), (35, 2))]
)
def test_products_answer_as_the_resize_does(old, new, mode, constant):
    model = resized(old, new, coordinate_transformation_mode=mode, constant=constant)
    made = resize_as_products(model).model
    assert [each for each in operators(made) if each != "Constant"] == ["Add", "MatMul", "MatMul"]
    image = np.random.default_rng(0).normal(size=(1, 1, *old)).astype(np.float32)
    np.testing.assert_allclose(answer(made, image), answer(model, image), atol=2e-6)
    assert resize_as_products(model).model == made


def test_products_take_a_batch_where_the_axis_is_made_dynamic():
    made = with_dynamic_batch(resize_as_products(resized((4, 4), (16, 16))).model, 3)
    images = np.random.default_rng(0).normal(size=(3, 1, 4, 4)).astype(np.float32)
    together = answer(made, images)
    for index in range(3):
        np.testing.assert_array_equal(together[index : index + 1], answer(made, images[[index]]))


@pytest.mark.parametrize(
    "model",
    [
        resized((4, 4), (16, 16), channels=2),
        resized((16, 16), (4, 4)),
        resized((4, 4), (16, 16), mode="nearest"),
        resized((4, 4), (16, 16), mode="cubic"),
        resized((4, 4), (16, 16), coordinate_transformation_mode="align_corners"),
        resized((4, 4), (16, 16), coordinate_transformation_mode="asymmetric"),
        resized((4, 4), (16, 16), sizes=(16, 16)),
        resized((4, 4), (16, 16), scales=(4.2, 4.2)),
        resized((1, 4), (4, 16)),
    ],
    ids=["channels", "smaller", "nearest", "cubic", "corners", "asymmetric", "sizes", "scale", "1"],
)
def test_other_resize_is_left_alone_to_the_byte(model):
    assert resize_as_products(model).model is model


def test_graph_that_ends_otherwise_is_left_alone():
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4])
        for name in ("image", "logits")
    ]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["image"], ["logits"], "neg")], "graph", ends[:1], ends[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content = model.SerializeToString()
    assert resize_as_products(content).model is content
