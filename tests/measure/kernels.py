"""Which convolutions OpenVINO computes wrong on this CPU, by kernel, stride and channels.

python tests/measure/kernels.py

Random convolutions in INT8 and bfloat16 against float32; printed is each whose largest error is
above 3 % of the largest answer. `export/odd_kernels.py` keeps what it found out of the bundles.
"""

from __future__ import annotations

import numpy as np
import onnx
import openvino as ov
from onnx import helper, numpy_helper

SIDE, OUTPUTS, LIMIT = 24, 32, 0.03
CHANNELS = (1, 3, 8, 16, 32, 48, 64, 128)


def convolution(
    generator: np.random.Generator, kernel: int, stride: int, channels: int, *, int8: bool
) -> bytes:
    shape = (OUTPUTS, channels, kernel, kernel)
    weight = (generator.normal(size=shape) / kernel).astype(np.float32)
    step = np.abs(weight).reshape(OUTPUTS, -1).max(axis=1) / 63
    rounded = np.round(weight / step[:, None, None, None]).astype(np.int8)
    stored = {
        "step": np.float32(4 / 127),
        "zero": np.int8(0),
        "rounded": rounded,
        "steps": step.astype(np.float32),
        "zeros": np.zeros(OUTPUTS, np.int8),
        "weight": (rounded * step[:, None, None, None]).astype(np.float32),
    }
    pairs = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["rounded", "steps", "zeros"], ["w"], axis=0),
    ]
    inputs = ["d", "w"] if int8 else ["x", "weight"]
    last = helper.make_node("Conv", inputs, ["y"], strides=[stride, stride])
    graph = helper.make_graph(
        [*(pairs if int8 else ()), last],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, channels, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, OUTPUTS, None, None])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())


def main() -> None:
    core = ov.Core()
    generator = np.random.default_rng(0)
    for kernel in range(1, 10):
        for stride in (each for each in (1, 2, 3, 4, 6, 8) if each <= kernel):
            for channels in CHANNELS:
                image = generator.normal(size=(1, channels, SIDE, SIDE)).astype(np.float32)
                image = np.round(image * 127 / 4).clip(-127, 127).astype(np.float32) * (4 / 127)
                seed = generator.integers(1 << 30)
                answers = {}
                for name, int8, precision in (
                    ("float32", False, "f32"),
                    ("int8", True, "f32"),
                    ("bfloat16", False, "bf16"),
                ):
                    model = convolution(
                        np.random.default_rng(seed), kernel, stride, channels, int8=int8
                    )
                    options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
                    compiled = core.compile_model(core.read_model(model), "CPU", options)
                    answers[name] = compiled([image.astype(np.float32)])[0]
                exact = answers.pop("float32")
                for name, answer in answers.items():
                    error = np.abs(answer - exact).max() / np.abs(exact).max()
                    if error > LIMIT:
                        print(
                            f"{name}: {kernel}×{kernel}, stride {stride}, {channels} channels: "
                            f"{error:.0%}",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
