"""What predicting with edgeseg costs on a device beside the same with MMDeploy's SDK.

python tests/measure/footprint_mmdeploy.py BUNDLE [PYTHON [REPEATS]]

BUNDLE is for a CPU, with ONNX Runtime. Makes two fresh environments, one with edgeseg's base
install and one with `mmdeploy-runtime` 1.3.1, numpy 1 and Pillow, of an interpreter that this SDK
has a wheel for (PYTHON; the one that runs this if not given). The SDK gets the bundle's ONNX and
the JSON files that MMDeploy's converter would write: grey, OpenCV's bilinear resize, the contract's
normalisation, logits resized to the frame. Its wheel brings ONNX Runtime 1.15.1. Both open, predict
one frame and threshold it, in turns; what is printed is as in footprint.py. REPEATS is 5 if
not given.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from edgeseg.runtime.bundle import Bundle, open_bundle
from edgeseg.tests.measure.footprint import (
    OURS,
    Program,
    environment_with,
    golden_frame,
    in_turns,
    print_sizes,
)

SDK = "mmdeploy-runtime==1.3.1"
THEIRS = """
import os, sys
sys.stdout = os.fdopen(os.dup(1), "w")  # the SDK logs to the other one
os.dup2(2, 1)
import numpy as np
from PIL import Image
from mmdeploy_runtime import Segmentor
sdk, frame, level = sys.argv[1:4]
image = np.asarray(Image.open(frame).convert("RGB"))
scores = Segmentor(sdk, "cpu", 0)(image)
mask = (np.asarray(scores).reshape(image.shape[:2]) > float(level)).astype(np.uint8)
"""


def write_sdk(folder: Path, bundle: Bundle) -> None:
    """Write what MMDeploy's SDK opens as a segmentor."""
    contract = bundle.manifest.contract
    (model,) = bundle.model_files("onnxruntime").values()
    folder.mkdir()
    (folder / "end2end.onnx").write_bytes(model)
    net = {"name": "net", "net": "end2end.onnx", "weights": "", "backend": "onnxruntime"}
    deploy = {
        "version": "1.3.1",
        "task": "Segmentor",
        "models": [{**net, "precision": "FP32", "batch_size": 1, "dynamic_shape": False}],
        "customs": [],
    }
    normalise = {
        "type": "Normalize",
        "mean": [255 * contract.mean],
        "std": [255 * contract.std],
        "to_rgb": False,
    }
    transforms = [
        {"type": "LoadImageFromFile", "color_type": "grayscale"},
        {"type": "Resize", "size": [contract.width, contract.height], "keep_ratio": False},
        normalise,
        {"type": "ImageToTensor", "keys": ["img"]},
        {"type": "Collect", "keys": ["img"], "meta_keys": ["ori_shape", "img_shape"]},
    ]
    tasks = [
        {
            "type": "Task",
            "module": "Transform",
            "name": "Preprocess",
            "input": ["img"],
            "output": ["prep_output"],
            "transforms": transforms,
        },
        {
            "type": "Task",
            "module": "Net",
            "name": "net",
            "input": ["prep_output"],
            "output": ["infer_output"],
            "input_map": {"img": "image"},
            "output_map": {"output": "logits"},
        },
        {
            "type": "Task",
            "module": "mmseg",
            "name": "postprocess",
            "component": "ResizeMask",
            "params": {"num_classes": 1, "with_argmax": False},
            "input": ["prep_output", "infer_output"],
            "output": ["post_output"],
        },
    ]
    pipeline = {"pipeline": {"input": ["img"], "output": ["post_output"], "tasks": tasks}}
    for name, content in (("deploy", deploy), ("pipeline", pipeline), ("detail", {})):
        (folder / f"{name}.json").write_text(json.dumps(content))


def main(path: Path, interpreter: Path, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = open_bundle(path)
        frame = golden_frame(bundle, folder)
        ours = environment_with(folder / "edgeseg", "")
        print_sizes("edgeseg", ours)
        theirs = folder / "mmdeploy" / "bin" / "python"
        subprocess.run([str(interpreter), "-m", "venv", str(folder / "mmdeploy")], check=True)
        quietly = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        subprocess.run([str(theirs), *quietly, SDK, "numpy<2", "pillow"], check=True)
        print_sizes(SDK, theirs)
        write_sdk(folder / "sdk", bundle)
        level = str(bundle.manifest.contract.logit_threshold)
        programs = {
            "edgeseg": Program(ours, OURS, (str(path), str(frame), "onnxruntime", "")),
            "mmdeploy": Program(theirs, THEIRS, (str(folder / "sdk"), str(frame), level)),
        }
        in_turns(programs, repeats, folder)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]).resolve(),
        Path(sys.argv[2] if len(sys.argv) > 2 else sys.executable),
        int(sys.argv[3]) if len(sys.argv) > 3 else 5,
    )
