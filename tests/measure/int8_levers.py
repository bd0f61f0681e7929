"""What changes of the network are worth to INT8 on this CPU: gates and up-sampling.

python tests/measure/int8_levers.py [THREADS]

Each variant of `attunet-16` and `edge-32` is drawn, trained for some steps on phantoms (its masks
are not judged here), exported for x86-cpu@vnni in FP32 and INT8, and timed in OpenVINO: INT8 as the
runtime runs it, beside the unchanged network's FP32 file with OpenVINO's own defaults, which are
bfloat16 where the CPU has it. All take turns on one frame; printed are medians and the median of
the ratios within a turn.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import openvino as ov
from torch import nn

from edgeseg.cli.jobs import api
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.kd.models import AttentionGate, UpConv, build_model
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.engines.ov import settings
from edgeseg.runtime.progress import quiet
from edgeseg.tests.support.networks import fitted, onnx_of

ROUNDS, WARM = 400, 40
TARGET = "x86-cpu@vnni"
CONTRACT = InputContract(128, 128)


def hard_gates(network: nn.Module) -> None:
    """Put hard sigmoids into the attention gates: INT8 takes a clip, and no sigmoid."""
    for part in network.modules():
        if isinstance(part, AttentionGate):
            part.psi[-1] = nn.Hardsigmoid()


def late_upsampling(network: nn.Module) -> None:
    """Turn each nearest ×2 before a 3×3 convolution into one after it, at a quarter of its work."""
    for part in network.modules():
        if isinstance(part, UpConv):
            up, convolution, relu = part
            part[0], part[1], part[2] = convolution, relu, up


def both(network: nn.Module) -> None:
    hard_gates(network)
    late_upsampling(network)


def unchanged(network: nn.Module) -> None:
    """Leave it as it is."""


VARIANTS: dict[str, dict[str, Callable[[nn.Module], None]]] = {
    "attunet-16": {
        "as it is": unchanged,
        "hard-sigmoid gates": hard_gates,
        "nearest after the convolution": late_upsampling,
        "both": both,
    },
    # Its up-projections come before the up-sampling already.
    "edge-32": {"as it is": unchanged, "hard-sigmoid gates": hard_gates},
}


def main(threads: int, out: Path) -> None:
    data = out / "phantoms"
    write_phantoms(data, count=24)
    (out / "contract.json").write_text(json.dumps(CONTRACT.to_dict()))
    print("| network | variant | INT8 ms | to OpenVINO's default | to INT8 as it is |")
    print("| --- | --- | --- | --- | --- |")
    for model, variants in VARIANTS.items():
        files = {}
        for name, change in variants.items():
            network = build_model(model)
            change(network)
            source = out / f"{model} {name}.onnx"
            source.write_bytes(onnx_of(fitted(network, 0, CONTRACT), contract=CONTRACT))
            for precision in ("fp32", "int8"):
                bundle = source.with_suffix(f".{precision}")
                _export(source, precision, data, bundle)
                (files[name, precision],) = bundle.rglob("*.xml")
        _compare(model, variants, files, threads)


def _export(source: Path, precision: str, data: Path, out: Path) -> None:
    api.export(
        source,
        target=TARGET,
        precision=precision,
        calib=data,
        max_drop=1.0,
        max_hd95_rise=1000.0,
        force_contract=True,
        contract=source.with_name("contract.json"),
        out=out,
        progress=quiet,
    )


def _compare(
    model: str,
    variants: dict[str, Callable[[nn.Module], None]],
    files: dict[tuple[str, str], Path],
    threads: int,
) -> None:
    core = ov.Core()
    default = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = {"default": core.compile_model(files["as it is", "fp32"], "CPU", default)}
    for name in variants:
        options = settings(threads, "f32")
        compiled[name] = core.compile_model(files[name, "int8"], "CPU", options)
    requests = {name: each.create_infer_request() for name, each in compiled.items()}
    frame = np.random.default_rng(0).normal(size=(1, 1, CONTRACT.height, CONTRACT.width))
    image = frame.astype(np.float32)
    taken: dict[str, list[float]] = {name: [] for name in requests}
    for turn in range(WARM + ROUNDS):
        for name, request in requests.items():
            start = time.perf_counter()
            request.infer([image])
            if turn >= WARM:
                taken[name].append((time.perf_counter() - start) * 1000)

    def ratio(name: str, other: str) -> float:
        return median(a / b for a, b in zip(taken[name], taken[other], strict=True))

    for name in requests:
        shown = "FP32 file, OpenVINO's default" if name == "default" else name
        print(
            f"| {model} | {shown} | {median(taken[name]):.2f} | {ratio(name, 'default'):.2f} | "
            f"{ratio(name, 'as it is'):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, Path(folder))
