"""A U-Net as it is commonly built goes from torch's exporters to every kind of target.

Its decoder pads what it has enlarged to the size of the skip connection, with numbers that it takes
from the shapes.
"""

from __future__ import annotations

import importlib.util
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from edgeseg.export.foreign import read_onnx
from edgeseg.export.parity import CheckFrame
from edgeseg.export.pipeline import CalibrationSet, Frames, Limits, export_bundle
from edgeseg.export.plan import make_plan
from edgeseg.export.target import find_target
from edgeseg.kd.data.phantom import draw_phantom
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.session import open_session
from edgeseg.tests.support.small_onnx import SIDE, noise

pytestmark = pytest.mark.long

CONTRACT = InputContract(SIDE, SIDE)
WIDTH = 4
DYNAMO = pytest.param(
    True,
    marks=pytest.mark.skipif(
        importlib.util.find_spec("onnxscript") is None,
        reason="no onnxscript for torch's dynamo exporter; make install brings it",
    ),
    id="dynamo",
)


class Block(nn.Sequential):
    """Two convolutions with norms."""

    def __init__(self, inner, outer):
        layers = [
            part
            for first, second in ((inner, outer), (outer, outer))
            for part in (
                nn.Conv2d(first, second, 3, padding=1, bias=False),
                nn.BatchNorm2d(second),
                nn.ReLU(inplace=True),
            )
        ]
        super().__init__(*layers)


class UNet(nn.Module):
    """Two levels; `bilinear` enlarges without weights, else by a transposed convolution."""

    def __init__(self, *, bilinear):
        super().__init__()
        self.levels = nn.ModuleList(
            Block(inner, outer) for inner, outer in ((1, WIDTH), (WIDTH, 2 * WIDTH))
        )
        self.bottom = Block(2 * WIDTH, 4 * WIDTH)
        self.ups = nn.ModuleList(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            if bilinear
            else nn.ConvTranspose2d(inner, inner, 2, stride=2)
            for inner in (4 * WIDTH, 2 * WIDTH)
        )
        self.joins = nn.ModuleList(
            Block(inner, outer) for inner, outer in ((6 * WIDTH, 2 * WIDTH), (3 * WIDTH, WIDTH))
        )
        self.head = nn.Conv2d(WIDTH, 1, 1)

    def forward(self, image):
        skips = []
        for level in self.levels:
            image = level(image)
            skips.append(image)
            image = functional.max_pool2d(image, 2)
        image = self.bottom(image)
        for up, join in zip(self.ups, self.joins, strict=True):
            skip, image = skips.pop(), up(image)
            rows, columns = (skip.size(axis) - image.size(axis) for axis in (2, 3))
            pads = [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2]
            image = join(torch.cat([skip, functional.pad(image, pads)], 1))
        return self.head(image)


@pytest.fixture(scope="module", params=[True, False], ids=["bilinear", "transposed"])
def unet(request):
    torch.manual_seed(0)
    network = UNet(bilinear=request.param)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(
    scope="module", params=[False, DYNAMO], ids=lambda dynamo: "dynamo" if dynamo else "legacy"
)
def exported(unet, request, tmp_path_factory):
    """The file, as the exporter writes it when it is asked for nothing."""
    folder = tmp_path_factory.mktemp("exported")
    file = folder / "unet.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(unet, (torch.zeros(1, 1, SIDE, SIDE),), file, dynamo=request.param)
    (folder / "contract.json").write_text(json.dumps(CONTRACT.to_dict()))
    return file, folder / "contract.json", unet


def frames():
    drawn = [draw_phantom("benign", number, 0) for number in (1, 2, 3)]
    checks = tuple(
        CheckFrame(frame, np.logical_or.reduce(masks), str(at))
        for at, (frame, masks) in enumerate(drawn)
    )
    images = [frame for frame, _ in drawn]
    calibration = CalibrationSet(images, tuple("0" * 64 for _ in images), {"source": "test"})
    return Frames(calibration, checks, vectors=tuple(images))


@pytest.mark.parametrize(
    ("target", "precision"), [("x86-cpu", "fp32"), ("jetson", "fp16"), ("rtx", "fp16")]
)
def test_a_unet_that_pads_its_skips_goes_to_every_kind_of_target(
    exported, target, precision, tmp_path
):
    file, contract, network = exported
    ours = read_onnx(file, contract)
    image = noise()
    with torch.inference_mode():
        np.testing.assert_allclose(
            ours.run(image), network(torch.from_numpy(image)).numpy(), atol=1e-4
        )
    if target == "rtx":
        pytest.importorskip("tensorrt_rtx", reason="no TensorRT-RTX; make install brings it")
    out = tmp_path / "bundle"
    done = export_bundle(
        ours,
        make_plan(find_target(target), precision),
        out,
        frames(),
        split=None,
        limits=Limits(1.0, 100.0, force_contract=True),  # it is not trained
    )
    assert {hop.name for hop in done.hops} > {"onnx fp32"}
    if target == "x86-cpu":
        frame = frames().checks[0].frame
        assert open_session(out).predict(frame).shape == frame.shape
