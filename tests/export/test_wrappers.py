"""A known network in random nodes that move, bend and scale its answer: the same mask or a refusal.

EDGESEG_WRAPPERS=10000 with `--timeout 0` draws so many; the suite draws few.
"""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.export.foreign import read_onnx
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.tests.support.small_onnx import SIDE, answer, integers, noise, small_onnx

DRAWS = int(os.environ.get("EDGESEG_WRAPPERS", "40"))
POOL = "kernel_shape = [3, 3], pads = [1, 1, 1, 1]"
# From A to B; what makes a probability ends in "!".
MOVES = (
    "B = Identity (A)",
    "B = Reshape (A, shape)",
    "A1 = Flatten (A)\n B = Reshape (A1, shape)",
    "A1 = Squeeze (A, one)\n B = Unsqueeze (A1, one)",
    "A1 = Transpose <perm = [0, 2, 3, 1]> (A)\n B = Transpose <perm = [0, 3, 1, 2]> (A1)",
    "B = Slice (A, zero, side, two)",
    "A1, A2 = Split <axis = 2> (A)\n B = Concat <axis = 2> (A1, A2)",
    "B = Cast <to = 1> (A)",
    "A1 = Cast <to = 11> (A)\n B = Cast <to = 1> (A1)",
    f"B = MaxPool <{POOL}> (A)",
)
BENDS = (
    "B = Mul (A, factor)",
    "B = Div (A, factor)",
    "B = Add (A, shift)",
    "B = Sub (A, shift)",
    "B = Clip (A, low, high)",
    "B = Relu (A)",
    "B = LeakyRelu (A)",
    "B = Tanh (A)",
    "B = Erf (A)",
    "B = Exp (A)",
    "B = Abs (A)",
    "B = Neg (A)",
    "B = Elu (A)",
    "B = Softplus (A)",
    "A1 = Abs (A)\n B = Log (A1)",
    "B = Max (A, low)",
    "B = Softsign (A)",
    f"B = AveragePool <{POOL}> (A)",
)
MADE = ("B = Sigmoid (A) !", "A1 = Concat <axis = 1> (zeros, A)\n A2 = Softmax <axis = 1> (A1)\n"
        "B = Gather <axis = 1> (A2, one) !", "B = HardSigmoid (A) !",
        "A1 = Concat <axis = 1> (zeros, A)\n A2 = LogSoftmax <axis = 1> (A1)\n"
        "B = Gather <axis = 1> (A2, one) !")  # fmt: skip
NUMBER_NAMES = ("factor", "shift", "low", "high")
NUMBERS = st.tuples(
    st.sampled_from([0.01, 0.5, 2.0, 100.0, 255.0]),
    st.sampled_from([-1.0, -0.5, -0.3, 0.3, 0.5, 1.0]),
    st.sampled_from([-6.0, 0.0, 1e-6, 0.1]),
    st.sampled_from([0.9, 1.0, 6.0]),
)
NODES = st.lists(
    st.tuples(
        st.one_of(st.sampled_from(MOVES), st.sampled_from(BENDS), st.sampled_from(MADE)), NUMBERS
    ),
    max_size=5,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("wrapped")


@settings(max_examples=DRAWS, deadline=None, derandomize=DRAWS <= 100)
@given(wrappers=NODES, threshold=st.sampled_from([0.5, 0.3, 0.8]))
def test_a_wrapped_network_marks_the_same_pixels_or_is_refused(folder, wrappers, threshold):
    lines, logit_lines, constants, is_logit = [], [], {}, True
    for at, (text, numbers) in enumerate(wrappers):
        is_logit &= not text.endswith("!")
        # From where a probability is first made its logit answers, moved as the probability is.
        logit_text = text if is_logit or text in MOVES else "B = Identity (A)"
        names = {"A": f"v{at}", "B": f"v{at + 1}", "A1": f"v{at}a", "A2": f"v{at}b"}
        names |= {key: f"{key}{at}" for key in NUMBER_NAMES}
        constants |= {
            names[key]: np.array(number, np.float32)
            for key, number in zip(NUMBER_NAMES, numbers, strict=True)
        }
        for into, line in ((lines, text.rstrip("!")), (logit_lines, logit_text)):
            into.append("".join(names.get(word, word) for word in re.split(r"(\W)", line)))
    body, logit_body = (
        "v0 = Identity (z)\n" + "\n".join(each) + f"\n y = Identity (v{len(wrappers)})"
        for each in (lines, logit_lines)
    )
    constants |= (
        integers("shape", 1, 1, SIDE, SIDE)
        | integers("zero", 0)
        | integers("one", 1)
        | integers("two", 2)
        | integers("side", SIDE)
        | {"zeros": np.zeros((1, 1, SIDE, SIDE), np.float32)}
    )
    model = small_onnx(end=body, constants=constants)
    contract = InputContract(SIDE, SIDE, threshold=threshold)
    (folder / "contract.json").write_text(json.dumps(contract.to_dict()))
    (folder / "theirs.onnx").write_bytes(model.SerializeToString())
    try:
        network = read_onnx(folder / "theirs.onnx", folder / "contract.json")
    except InputError as error:
        if error.code not in ("E-ONNX-SHAPE", "E-ONNX-CONSTANT"):
            raise
        return
    wanted = answer(small_onnx(end=logit_body, constants=constants), noise(5))
    level = contract.logit_threshold
    # Where the file itself answers no number (the softmax of an infinity) nothing is wanted: parity
    # and the golden frames refuse such an export.
    clear = (abs(wanted - level) > 1e-3) & np.isfinite(answer(model, noise(5)))
    for found in (answer(network.to_onnx(), noise(5)), network.run(noise(5))):
        np.testing.assert_array_equal((found > level)[clear], (wanted > level)[clear])
