"""The build kit: what a device needs to build, verify and audit its own TensorRT engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from ..runtime.contract import InputContract
from ..runtime.image import input_from_frame
from . import kit
from .audit import least_share
from .forms import Form, Recipe
from .golden import FOLDER, MAX_FLIPPED
from .qdq import calibration_cache

_KIT = Path(__file__).parent / "kit"
_WORKSPACE_MIB = 256  # of the device's memory while TensorRT builds


def write_kit(
    folder: Path,
    recipe: Recipe,
    forms: Mapping[str, Form],
    vectors: Sequence[np.ndarray],
    contract: InputContract,
    default: str,
    *,
    cache: bool,
) -> None:
    """Add to the ONNX files of a bundle what builds and verifies the engine on the device.

    Args:
        folder: of the bundle; the ONNX files are in it.
        recipe: what the forms were made from.
        forms: by precision.
        vectors: golden frames, uint8 [H, W]; what the forms answer to them goes along.
        contract: of the network.
        default: precision that is built when none is asked for.
        cache: False leaves calib.cache out: with it INT8 is built from fp32.onnx, and a retrained
            INT8 has other weights.
    """
    for name in kit.FILES:
        shutil.copyfile(_KIT / name, folder / name)
    target = recipe.plan.target
    takes_cache = "int8" in forms and target.tensorrt_version[0] < 11
    if cache and takes_cache and recipe.calibration is not None:
        amax = recipe.calibration.amax[recipe.method]
        content = calibration_cache(recipe.master, amax, str(target.tensorrt))
        (folder / "calib.cache").write_text(content, encoding="utf-8")
    (folder / FOLDER).mkdir(exist_ok=True)
    inputs = np.concatenate([input_from_frame(frame, contract) for frame in vectors])
    _write_array(folder / FOLDER / "input.npy", inputs)
    for name, form in forms.items():
        logits = [form.run(image[None]) for image in inputs]
        _write_array(folder / FOLDER / f"{name}.npy", np.concatenate(logits))
    shape = [1, 1, contract.height, contract.width]
    most = recipe.plan.max_batch
    full = [most, *shape[1:]]
    kit_json = {
        "schema": "edgeseg.kit/1",
        "target": target.name,
        "tensorrt": ".".join(map(str, target.tensorrt_version[:2])),
        "compute_capability": next(iter(target.compute_capabilities), None),
        "default": default,
        "input": {"name": "image", "shape": shape},
        "output": {"name": "logits", "shape": shape},
        # Tuned for 1: a device streams single frames.
        "profile": {"min": shape, "opt": shape, "max": full} if most > 1 else None,
        "logit_threshold": contract.logit_threshold,
        "workspace_mib": _WORKSPACE_MIB,
        "builds": {
            name: {
                "onnx": recipe.plan.builds[name].onnx,
                "typed": recipe.plan.builds[name].typed,
                "flags": list(recipe.plan.builds[name].flags),
                "cache": recipe.plan.builds[name].cache,
                "dla_core": recipe.plan.builds[name].dla_core,
                "min_share": least_share(recipe.master, name, form.kept_float),
            }
            for name, form in forms.items()
        },
        "vectors": {
            "input": f"{FOLDER}/input.npy",
            "expected": {name: f"{FOLDER}/{name}.npy" for name in forms},
            "max_flipped": {name: MAX_FLIPPED[name] for name in forms},
        },
    }
    (folder / "kit.json").write_text(json.dumps(kit_json, indent=1) + "\n", encoding="utf-8")


def _write_array(path: Path, array: np.ndarray) -> None:
    buffer = BytesIO()
    np.save(buffer, np.ascontiguousarray(array, np.float32), allow_pickle=False)
    path.write_bytes(buffer.getvalue())
