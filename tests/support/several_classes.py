"""A network of three channels and four classes that works: it tells lesions by where they are."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from edgeseg.cli.jobs.sources import checkpoint_of
from edgeseg.export.foreign import OnnxNetwork, read_onnx
from edgeseg.export.parity import CheckFrame
from edgeseg.export.pipeline import Exported, Frames, Limits, export_bundle, load_trained
from edgeseg.export.plan import make_plan
from edgeseg.export.target import find_target
from edgeseg.runtime.contract import InputContract

CLASSES = ("left", "upper right", "lower right")
_APART = 6.0  # logits
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class Located(nn.Module):
    """From colour [N, 3, H, W] to the background and three classes, [N, 4, H, W].

    Inside is a network that takes grey and answers one logit. A class loses where the pixel is in
    the part of another.
    """

    def __init__(
        self, network: nn.Module, grey: InputContract, colour: InputContract, *, softmax: bool
    ) -> None:
        super().__init__()
        self.network, self.softmax = network, softmax
        self.grey = (grey.means[0], grey.stds[0])
        luma = (0.299, 0.587, 0.114)
        shares = luma if colour.channels == "rgb" else luma[::-1]
        for name, values in (("mean", colour.means), ("std", colour.stds), ("luma", shares)):
            self.register_buffer(name, torch.tensor(values)[None, :, None, None])
        y, x = torch.meshgrid(
            torch.linspace(-1, 1, grey.height), torch.linspace(-1, 1, grey.width), indexing="ij"
        )
        lost = torch.stack([x.relu(), (-x).relu() + y.relu(), (-x).relu() + (-y).relu()])
        self.register_buffer("lost", _APART * lost[None])

    def forward(self, colour: torch.Tensor) -> torch.Tensor:
        """See the class."""
        grey = nn.functional.conv2d(colour * self.std + self.mean, self.luma)
        logit = self.network((grey - self.grey[0]) / self.grey[1])
        answer = torch.cat([logit * 0, logit - self.lost], 1)
        return answer.softmax(1) if self.softmax else answer


def contract_of(grey: InputContract, **changes: object) -> InputContract:
    """Return the contract of `Located` over a network of another."""
    fields = {"channels": "rgb", "classes": CLASSES, "head": "softmax", **IMAGENET, **changes}
    return InputContract(grey.height, grey.width, **fields)


def write_located(
    file: Path, network: nn.Module, grey: InputContract, colour: InputContract, *, softmax: bool
) -> Path:
    """Write it as ONNX."""
    model = Located(network, grey, colour, softmax=softmax).eval()
    image = torch.zeros(1, 3, grey.height, grey.width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the exporter that edgeseg uses
        torch.onnx.export(
            model, (image,), file, dynamo=False, opset_version=17, input_names=["x"],
            output_names=["y"],
        )  # fmt: skip
    return file


def located_truth(truth: np.ndarray) -> np.ndarray:
    """Return the classes of a lesion mask, bool [H, W], by where its pixels are: uint8 [H, W]."""
    y, x = (np.linspace(-1, 1, side) for side in truth.shape)
    right, lower = np.meshgrid(x > 0, y > 0)
    return (truth * np.where(right, np.where(lower, 3, 2), 1)).astype(np.uint8)


def located_network(
    file: Path, trained: Path, *, softmax: bool = True, **changes: object
) -> OnnxNetwork:
    """Read `Located` over the student of a run as an export does, by its ONNX and contract.

    Args:
        file: to write; its contract goes beside it.
        trained: a run.
        softmax: whether the file ends in one.
        changes: of the contract.
    """
    inner = load_trained(checkpoint_of(trained).path)
    contract = contract_of(inner.contract, **changes)
    write_located(file, inner.network, inner.contract, contract, softmax=softmax)
    told = file.with_suffix(".json")
    told.write_text(json.dumps(contract.to_dict()))
    return read_onnx(file, told)


def located_frames(frames: Frames) -> Frames:
    """Return frames of a grey network in colour, with the classes that `Located` tells."""
    calibration = frames.calibration
    if calibration is not None:
        colours = [in_colour(each) for each in calibration.frames]
        calibration = replace(calibration, frames=colours)
    checks = tuple(map(located_check, frames.checks))
    return replace(frames, calibration=calibration, checks=checks)


def export_located(
    trained: Path,
    frames: Frames,
    out: Path,
    target: str = "x86-cpu",
    precision: str = "int8",
    **changes: object,
) -> Exported:
    """Export `Located` over the student of a run; the gates are open."""
    with TemporaryDirectory() as folder:
        network = located_network(Path(folder, "located.onnx"), trained, **changes)
    return export_bundle(
        network,
        make_plan(find_target(target), precision),
        out,
        located_frames(frames),
        split=None,
        limits=Limits(max_drop=1.0, max_hd95_rise_px=1000.0),
    )


def in_colour(grey: np.ndarray) -> np.ndarray:
    """Return a frame, uint8 [H, W], as RGB of nearly that luma, no two channels alike."""
    return np.stack([grey, grey - grey // 16, grey - grey // 8], axis=2)


def located_check(check: CheckFrame) -> CheckFrame:
    """Return a frame with its truth for `Located`."""
    return CheckFrame(in_colour(check.frame), located_truth(check.truth), check.group)
