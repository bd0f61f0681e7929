"""The build kit: what a device needs to build, verify and audit its own TensorRT engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from ..runtime.contract import InputContract
from ..runtime.image import input_from_frame, resize_grey
from . import kit
from .forms import Conversion, Form, least_share_of
from .frame_gate import FrameGraph, run_frames
from .frame_graph import AROUND
from .golden import FOLDER, MAX_FLIPPED, ChosenFrame, clearly_dropped_px, whole_frames
from .qdq import calibration_cache

_KIT = Path(__file__).parent / "kit"
_WORKSPACE_MIB = 256  # of the device's memory while TensorRT builds


def write_kit(
    folder: Path,
    conversion: Conversion,
    forms: Mapping[str, Form],
    vectors: Sequence[np.ndarray],
    contract: InputContract,
    default: str,
    *,
    empty: ChosenFrame | None,
    dropped: ChosenFrame | None,
    frame_graphs: Sequence[FrameGraph],
    cache: bool,
) -> None:
    """Add to the ONNX files of a bundle what builds and verifies the engine on the device.

    Args:
        folder: of the bundle; the ONNX files are in it.
        conversion: what the forms were made from.
        forms: by precision.
        vectors: golden frames, uint8 [H, W]; what the forms answer to them goes along.
        contract: of the network.
        default: precision that is built when none is asked for.
        empty: comes last, as it is: no frame graph is asked, whose resize would make it another.
        dropped: a frame in which every form marks what the least lesion drops; frame graphs are
            asked for it in their size, where they clearly drop something too.
        frame_graphs: of the bundle; they are built and judged as well.
        cache: False leaves calib.cache out: with it INT8 is built from fp32.onnx, and a retrained
            INT8 has other weights.
    """
    for name in kit.FILES:
        shutil.copyfile(_KIT / name, folder / name)
    target = conversion.plan.target
    takes_cache = "int8" in forms and target.tensorrt_version[0] < 11
    if cache and takes_cache and conversion.calibration is not None:
        amax = conversion.calibration.amax[conversion.method]
        content = calibration_cache(conversion.master, amax, str(target.tensorrt))
        (folder / "calib.cache").write_text(content, encoding="utf-8")
    (folder / FOLDER).mkdir(exist_ok=True)
    frames = (*vectors, *([empty.frame] if empty else []))
    inputs = np.concatenate([input_from_frame(frame, contract) for frame in frames])
    _write_array(folder / FOLDER / "input.npy", inputs.astype(np.float32))
    for name, form in forms.items():
        logits = [form.run(image[None]) for image in inputs]
        _write_array(folder / FOLDER / f"{name}.npy", np.concatenate(logits).astype(np.float32))
    shape = [1, contract.depth, contract.height, contract.width]
    most = conversion.plan.max_batch
    full = [most, *shape[1:]]
    kit_json = {
        "schema": "edgeseg.kit/1",
        "target": target.name,
        "tensorrt": ".".join(map(str, target.tensorrt_version[:2])),
        "compute_capability": next(iter(target.compute_capabilities), None),
        "default": default,
        "input": {"name": "image", "shape": shape},
        "output": {"name": "logits", "shape": [1, len(contract.classes), *shape[2:]]},
        # Tuned for 1: a device streams single frames.
        "profile": {"min": shape, "opt": shape, "max": full} if most > 1 else None,
        # Of the network alone: what is below a least lesion the session drops, not the engine.
        **_levels(contract),
        "workspace_mib": _WORKSPACE_MIB,
        "builds": {
            name: {
                "onnx": conversion.plan.builds[name].onnx,
                "typed": conversion.plan.builds[name].typed,
                "flags": list(conversion.plan.builds[name].flags),
                "cache": conversion.plan.builds[name].cache,
                "dla_core": conversion.plan.builds[name].dla_core,
                "min_share": least_share_of(conversion, name, form.kept_float),
            }
            for name, form in forms.items()
        },
        "vectors": {
            "input": f"{FOLDER}/input.npy",
            "expected": {name: f"{FOLDER}/{name}.npy" for name in forms},
            "max_flipped": {name: MAX_FLIPPED[name] for name in forms},
        },
        "frame": _write_frames(folder, frame_graphs, vectors, dropped, contract)
        if frame_graphs
        else None,
    }
    (folder / "kit.json").write_text(json.dumps(kit_json, indent=1) + "\n", encoding="utf-8")


def _levels(contract: InputContract) -> Mapping[str, object]:
    """Return from which logit on a pixel is lesion, of several classes one for each."""
    levels = contract.logit_thresholds
    return {"logit_threshold": levels[0]} if len(levels) == 1 else {"logit_thresholds": [*levels]}


def _write_frames(
    folder: Path,
    frame_graphs: Sequence[FrameGraph],
    vectors: Sequence[np.ndarray],
    dropped: ChosenFrame | None,
    contract: InputContract,
) -> Mapping[str, object]:
    """Write frames and what the frame graphs answer to them, and return the part of kit.json."""
    width, height = frame_graphs[0].width, frame_graphs[0].height
    answers = [run_frames(each.model, optimised=False) for each in frame_graphs]
    frames = whole_frames(vectors, width, height)
    if dropped is not None:
        frame = resize_grey(dropped.frame, height, width)
        if all(clearly_dropped_px(answer(frame)[0], contract) for answer in answers):
            frames = (*frames, frame)
    _write_array(folder / FOLDER / "frames.npy", np.stack(frames)[:, None])
    builds = {}
    for each, answer in zip(frame_graphs, answers, strict=True):
        logits, masks = zip(*map(answer, frames), strict=True)
        name = f"{FOLDER}/frames-{each.precision}.npz"
        # Masks are mostly one number, and as large as the frames.
        buffer = BytesIO()
        np.savez_compressed(buffer, mask=np.stack(masks)[:, None], logits=np.stack(logits)[:, None])
        (folder / name).write_bytes(buffer.getvalue())
        builds[each.precision] = {"onnx": each.file, "expected": name}
    shape = [1, 1, height, width]
    return {
        "input": {"name": "frame", "shape": shape},
        "mask": {"name": "mask", "shape": shape},
        "logits": "logits",
        "around": list(AROUND),
        "builds": builds,
        "vectors": f"{FOLDER}/frames.npy",
    }


def _write_array(path: Path, array: np.ndarray) -> None:
    buffer = BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    path.write_bytes(buffer.getvalue())
