"""Probabilities at the end of an ONNX network become logits again, or are refused by name."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from edgeseg.export.foreign import read_onnx
from edgeseg.export.logits import logits_of
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.tests.support.small_onnx import (
    SIDE,
    answer,
    constant,
    integers,
    noise,
    operators_of,
    small_onnx,
)

SHAPE = integers("shape", 1, 1, SIDE, SIDE) | integers("flat", 1, -1)


@pytest.fixture
def read(tmp_path):
    def read(model, threshold=0.5):
        contract = tmp_path / "contract.json"
        contract.write_text(json.dumps(InputContract(SIDE, SIDE, threshold=threshold).to_dict()))
        file = tmp_path / "theirs.onnx"
        file.write_bytes(model.SerializeToString())
        return read_onnx(file, contract)

    return read


TAKEN = {  # what comes behind the last convolution; the output is a probability
    "Sigmoid": ("y = Sigmoid (z)", {}),
    "Sigmoid and Identity": ("p = Sigmoid (z)\n y = Identity (p)", {}),
    "Sigmoid and Reshape": ("p = Sigmoid (z)\n y = Reshape (p, shape)", SHAPE),
    "Sigmoid between Reshapes": (
        "t = Identity (z)\n u = Reshape (t, shape)\n p = Sigmoid (u)\n"
        "q = Reshape (p, shape)\n s = Reshape (q, shape)\n y = Identity (s)",
        SHAPE,
    ),
    "Sigmoid, flat and back": (
        "p = Sigmoid (z)\n q = Flatten (p)\n t = Transpose <perm = [1, 0]> (q)\n"
        "u = Unsqueeze (t, zero)\n y = Reshape (u, shape)",
        SHAPE | integers("zero", 0),
    ),
    "Sigmoid and MaxPool": (
        "s = Sub (z, k)\n p = Sigmoid (s)\n"
        "y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p)",
        constant("k", 1.5),
    ),
    "Sigmoid at half size and nearest": (
        "t = Sub (z, k)\n s = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (t)\n"
        'p = Sigmoid (s)\n y = Resize <mode = "nearest"> (p, , scales)',
        constant("scales", 1, 1, 2, 2) | constant("k", 1.5),
    ),
    "Sigmoid in FP16 and back": (
        "h1 = Cast <to = 10> (z)\n p = Sigmoid (h1)\n y = Cast <to = 1> (p)",
        {},
    ),
    "Sigmoid in parts that are joined": (
        "p = Sigmoid (z)\n a, b1 = Split <axis = 2> (p)\n y = Concat <axis = 2> (b1, a)",
        {},
    ),
    "two Sigmoids that are joined": (
        "a, b1 = Split <axis = 2> (z)\n p = Sigmoid (a)\n q = Sigmoid (b1)\n"
        "y = Concat <axis = 2> (q, p)",
        {},
    ),
    "Softmax, one channel chosen": (
        "t = Conv (m, two4)\n p = Softmax <axis = 1> (t)\n y = Slice (p, one, end, one)",
        {"two4": np.random.default_rng(1).normal(0, 1, (2, 4, 1, 1)).astype(np.float32)}
        | integers("one", 1)
        | integers("end", 2),
    ),
    "Softmax over the last axis": (
        "t = Conv (m, two4)\n l = Transpose <perm = [0, 2, 3, 1]> (t)\n p = Softmax <axis = -1> (l)"
        "\n k = Transpose <perm = [0, 3, 1, 2]> (p)\n"
        "a, y = Split <axis = 1> (k)",
        {"two4": np.random.default_rng(1).normal(0, 1, (2, 4, 1, 1)).astype(np.float32)},
    ),
    "Softmax, the background chosen": (
        "t = Conv (m, two4)\n p = Softmax <axis = 1> (t)\n y = Gather <axis = 1> (p, zero)",
        {"two4": np.random.default_rng(1).normal(0, 1, (2, 4, 1, 1)).astype(np.float32)}
        | integers("zero", 0),
    ),
}


@pytest.mark.parametrize("threshold", [0.5, 0.3])
@pytest.mark.parametrize("name", TAKEN)
def test_a_probability_at_the_end_becomes_a_logit_and_marks_the_same_pixels(name, threshold, read):
    end, constants = TAKEN[name]
    model = small_onnx(end=end, constants=constants)
    network = read(model, threshold)
    ours, theirs = answer(network.to_onnx(), noise(1)), answer(model, noise(1))
    wanted = theirs > threshold
    level = network.contract.logit_threshold
    assert 0.05 < wanted.mean() < 0.95
    np.testing.assert_array_equal(ours > level, wanted)
    np.testing.assert_array_equal(network.run(noise(1)) > level, wanted)  # the reference
    assert network.provenance["cut_off"] in ("Sigmoid", "Softmax")


def test_both_channels_of_a_softmax_become_the_second_as_a_logit(read):
    two = {"two4": np.random.default_rng(1).normal(0, 1, (2, 4, 1, 1)).astype(np.float32)}
    model = small_onnx(
        end="t = Conv (m, two4)\n y = Softmax <axis = 1> (t)",
        constants=two,
        out="float[1,2,32,32]",
    )
    network = read(model)
    wanted = answer(model, noise(1)).argmax(1, keepdims=True)
    assert 0.05 < wanted.mean() < 0.95
    np.testing.assert_array_equal(answer(network.to_onnx(), noise(1)) > 0, wanted)
    np.testing.assert_array_equal(network.run(noise(1)) > 0, wanted)


REFUSED = {
    "Clip": ("p = Sigmoid (z)\n y = Clip (p, low, high)", {"low": 0.1, "high": 0.9}, "Clip"),
    "Mul": ("p = Sigmoid (z)\n y = Mul (p, k)", {"k": 255}, "Mul"),
    "Div": ("p = Sigmoid (z)\n y = Div (p, k)", {"k": 2}, "Div"),
    "Add": ("p = Sigmoid (z)\n y = Add (k, p)", {"k": 1}, "Add"),
    "Sub": ("p = Sigmoid (z)\n y = Sub (k, p)", {"k": 1}, "Sub"),
    "twice minus one": (
        "p = Sigmoid (z)\n q = Mul (p, k)\n y = Sub (q, j)",
        {"k": 2, "j": 1},
        "Sub",
    ),
    "Pow": ("p = Sigmoid (z)\n y = Pow (p, k)", {"k": 2}, "Pow"),
    "AveragePool": (
        "p = Sigmoid (z)\n y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (p)",
        {},
        "AveragePool",
    ),
    "Clip before Reshape": (
        "p = Sigmoid (z)\n q = Clip (p, low)\n y = Reshape (q, shape)",
        {"low": 0.1, **SHAPE},
        "Clip",
    ),
    "HardSigmoid": ("y = HardSigmoid (z)", {}, "HardSigmoid"),
    "a sigmoid of a sigmoid": ("p = Sigmoid (z)\n y = Sigmoid (p)", {}, "a probability too"),
    "tanh as a probability": (
        "t = Tanh (z)\n q = Mul (t, k)\n y = Add (q, k)",
        {"k": 0.5},
        "0 to 1",
    ),
    "erf as a probability": (
        "t = Erf (z)\n q = Add (t, j)\n y = Mul (q, k)",
        {"k": 0.5, "j": 1},
        "0 to 1",
    ),
    "1 / (1 + exp(-x))": (
        "n = Mul (z, minus)\n e = Exp (n)\n d = Add (e, j)\n y = Div (j, d)",
        {"minus": -1, "j": 1},
        "0 to 1",
    ),
    "exp, never negative": ("y = Exp (z)", {}, "whatever the frame"),
    "soft sign as a probability": (
        "s = Mul (z, z)\n t = Sqrt (s)\n d = Add (t, j)\n q = Div (z, d)\n"
        "v = Add (q, j)\n y = Mul (v, k)",
        {"j": 1, "k": 0.5},
        "whatever the frame",
    ),
    "a blur of a probability": (
        "p = Sigmoid (z)\n y = Conv <pads = [1, 1, 1, 1]> (p, blur)",
        {"blur": np.full((1, 1, 3, 3), 1 / 9, np.float32)},
        "0 to 1",
    ),
    "Softmax over three": (
        "t = Conv (m, three)\n p = Softmax <axis = 1> (t)\n a, d, y = Split <axis = 1> (p)",
        {"three": np.ones((3, 4, 1, 1), np.float32)},
        "3 channels",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_logit_is_refused_by_what_makes_it(name, read):
    end, constants, says = REFUSED[name]
    arrays = {key: np.asarray(value) for key, value in constants.items()}
    arrays = {
        key: array if array.dtype.kind == "i" and array.ndim else array.astype(np.float32)
        for key, array in arrays.items()
    }
    with pytest.raises(InputError, match=says) as caught:
        read(small_onnx(end=end, constants=arrays))
    assert caught.value.code == "E-ONNX-SHAPE"


LOGITS = {  # none of these is a probability, though some look like one at the end
    "as it is": ("y = Identity (z)", {}),
    "scaled": ("q = Mul (z, k)\n y = Add (q, k)", constant("k", 0.01)),
    "ReLU": ("y = Relu (z)", {}),
    "gated by a sigmoid": ("p = Sigmoid (z)\n y = Mul (z, p)", {}),
    "tanh": ("y = Tanh (z)", {}),
    "a sigmoid before the last convolution": (
        "p = Sigmoid (z)\n q = Conv (p, one)\n y = Add (q, k)",
        {"one": np.array(-3.0, np.float32).reshape(1, 1, 1, 1)} | constant("k", 1.5),
    ),
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_left_as_they_are(name, read):
    end, constants = LOGITS[name]
    model = small_onnx(end=end, constants=constants)
    network = read(model)
    assert "cut_off" not in network.provenance
    np.testing.assert_allclose(
        answer(network.to_onnx(), noise(1)), answer(model, noise(1)), atol=1e-5
    )


def test_a_sigmoid_that_gates_inside_stays(read):
    middle = "a = Sigmoid (r)\n m = Mul (r, a)"
    assert "Sigmoid" in operators_of_network(read(small_onnx(middle=middle, end="y = Sigmoid (z)")))


def operators_of_network(network):
    import onnx

    return operators_of(onnx.load_model_from_string(network.to_onnx()))


def test_the_logit_of_a_probability_is_its_log_odds_and_finite_at_0_and_1():
    shares = np.array([0, 0.5, 0.75, 1], np.float32).reshape(1, 1, 2, 2)
    low, middle, above, high = logits_of(shares, InputContract(), probability=True).reshape(-1)
    assert middle == 0
    assert above == pytest.approx(math.log(3))
    assert low == -high
    assert 16 < high < 17


def test_logits_of_a_softmax_are_log_odds_against_the_background_and_finite():
    contract = InputContract(classes=("a", "b"), head="softmax")
    shares = np.array([[0.5, 0.25, 0.25], [0, 1, 0], [1, 0, 0]], np.float32).T.reshape(1, 3, 1, 3)
    first, second = logits_of(shares, contract, probability=True)[0, :, 0]
    assert first[0] == second[0] == pytest.approx(math.log(0.5))
    assert first[1] == -first[2] == -second[2]
    assert 16 < first[1] < 17
    assert second[1] == 0  # both are rounded to 0, and neither is larger


@pytest.mark.parametrize(
    ("end", "says"),
    [  # a level of -0.85 lies within all these answers
        ("a, b1 = Split <axis = 2> (p)\n j = Concat <axis = 2> (b1, a)\n y = Sub (j, k)", "Sub"),
        ("t = Add (p, p)\n u = Sub (t, k)\n y = Sub (u, k)", "Add|Sub"),
        ("q = Sigmoid (w2)\n y = Sub (p, q)", "Sub"),
        ("u = Sub (p, k)\n y = Sigmoid (u)", "a probability too"),
        (
            "u = Sub (p, k)\n j = Concat <axis = 1> (zeros, u)\n q = Softmax <axis = 1> (j)\n"
            "y = Gather <axis = 1> (q, one)",
            "a probability too",
        ),
        (
            "j = Concat <axis = 2> (p, k2)\n u = Sub (j, k)\n y = Slice (u, o, side, two)",
            "Concat|Sub",
        ),
        (
            "c5 = Conv <pads = [1, 1, 1, 1]> (p, v)\n q = Sigmoid (c5)\n"
            "j = Concat <axis = 2> (p, q)\n y = Slice (j, o, side, two)",
            "reads too",
        ),
    ],
)
def test_a_probability_that_is_joined_or_added_before_it_is_bent_is_refused(end, says, read):
    constants = (
        constant("k", 1)
        | {"zeros": np.zeros((1, 1, SIDE, SIDE), np.float32)}
        | integers("one", 1)
        | {"k2": np.zeros((1, 1, 1, SIDE), np.float32), "v": np.ones((1, 1, 3, 3), np.float32)}
        | integers("o", 0)
        | integers("side", SIDE)
        | integers("two", 2)
    )
    model = small_onnx(end=f"w2 = Sub (z, k)\n p = Sigmoid (z)\n {end}", constants=constants)
    with pytest.raises(InputError, match=says) as caught:
        read(model, 0.3)
    assert caught.value.code == "E-ONNX-SHAPE"


def test_an_answer_that_is_only_weighed_by_a_sigmoid_is_left_alone(read):
    model = small_onnx(end="p = Sigmoid (z)\n y = Mul (z, p)")
    network = read(model, 0.51)
    np.testing.assert_allclose(
        answer(network.to_onnx(), noise(1)), answer(model, noise(1)), atol=1e-5
    )
    assert "cut_off" not in network.provenance
