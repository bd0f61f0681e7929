"""What becomes of ten networks from elsewhere: parity, gate and latency, or the refusal.

python tests/measure/networks.py [OUT]

Prints the table of docs/networks.md. The networks are those of tests/support/networks.py, in the
style of public ones and tiny; where segmentation-models-pytorch or monai is installed, their own
code makes networks of the usual width too, drawn and trained alike. Each goes through `edgeseg
export` for x86-cpu in FP32 and INT8, for rtx and for a jetson kit in INT8, on phantoms, and the two
of x86-cpu are timed in turns on one thread. OUT keeps the bundles. Loss of Dice up to 0.5 is let
through, as few phantoms show no small one; flipped pixels have the limits of every export.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from edgeseg.cli.jobs import api
from edgeseg.export.target import find_target
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import EdgesegError
from edgeseg.runtime.progress import quiet
from edgeseg.runtime.session import open_session
from edgeseg.tests.support.networks import CONTRACT, NETWORKS, Network, fitted, onnx_of
from edgeseg.tests.support.package_networks import declare_operators

PHANTOMS, ROUNDS = 24, 100
USUAL = InputContract(96, 96)
EXPORTS = (("x86-cpu", "fp32"), ("x86-cpu", "int8"), ("rtx", "int8"), ("jetson", "int8"))


def main(out: Path) -> None:
    out.mkdir(exist_ok=True)
    data = out / "phantoms"
    write_phantoms(data, count=PHANTOMS)
    print("| network | export | flipped | INT8 share of MACs | ms of one thread: FP32, INT8 |")
    print("| --- | --- | --- | --- | --- |")
    for at, (name, contract, make) in enumerate(_all()):
        folder = out / str(at)
        folder.mkdir()
        (folder / "contract.json").write_text(json.dumps(contract.to_dict()))
        network = make()
        (folder / "theirs.onnx").write_bytes(network.model)
        bundles = {}
        for target, precision in EXPORTS:
            bundle = folder / f"{target}-{precision}"
            row = _exported(folder, network.output, target, precision, data, bundle)
            if target == "x86-cpu" and bundle.exists():
                bundles[precision] = bundle
            last = (target, precision) == ("x86-cpu", "int8")
            latency = _latency(bundles, contract) if last else ""
            print(
                f"| {name} | {find_target(target).name} {precision} | {row} | {latency} |",
                flush=True,
            )


def _exported(
    folder: Path, output: str | None, target: str, precision: str, data: Path, bundle: Path
) -> str:
    """Export once and return flipped pixels and INT8 share, or the refusal."""
    try:
        made = api.export(
            folder / "theirs.onnx",
            target=target,
            precision=precision,
            calib=data,
            max_drop=0.5,
            max_hd95_rise=1000.0,
            contract=folder / "contract.json",
            output=output,
            out=bundle,
            progress=quiet,
        )
    except EdgesegError as error:
        return f"{error} | "
    hops = [hop for hop in made.exported.hops if hop.name.endswith(precision)]
    flipped = ", ".join(f"{hop.flipped_share:.3%}" for hop in hops if hop.name != "onnx fp32")
    if precision != "int8":
        return f"{flipped} | "
    shares = [each["int8"] for each in made.exported.achieved.values()]
    share = min(shares) if shares else made.plan.int8_share
    return f"{flipped} | {share:.1%}"


def _latency(bundles: dict[str, Path], contract: InputContract) -> str:
    """Return medians of the processor time of `predict` on a frame of the network's size, in turns.

    Of one thread, so that what else runs on the machine counts little.
    """
    sessions = {name: open_session(bundle, threads=1) for name, bundle in bundles.items()}
    frame = np.random.default_rng(0).integers(0, 256, (contract.height, contract.width), np.uint8)
    taken_ms: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(ROUNDS + 10):
        for name, session in sessions.items():
            start = time.process_time()
            session.predict(frame)
            if turn >= 10:  # warm
                taken_ms[name].append((time.process_time() - start) * 1000)
    return ", ".join(
        f"{median(taken_ms[name]):.2f}" for name in ("fp32", "int8") if name in taken_ms
    )


def _all() -> Iterator[tuple[str, InputContract, Callable[[], Network]]]:
    for name, make in NETWORKS.items():
        yield name, CONTRACT, make
    yield from _of_packages()


def _of_packages() -> Iterator[tuple[str, InputContract, Callable[[], Network]]]:
    """Yield networks made by the packages themselves, where these are installed."""
    declare_operators()
    made: dict[str, Callable[[], nn.Module]] = {}
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        print(f"no segmentation-models-pytorch: {error}", file=sys.stderr)
    else:
        options = {"encoder_weights": None, "in_channels": 1}
        made["smp.Unet, resnet18"] = lambda: smp.Unet("resnet18", **options)
        made["smp.FPN, resnet18"] = lambda: smp.FPN("resnet18", **options)
        made["smp.DeepLabV3Plus, resnet18"] = lambda: smp.DeepLabV3Plus("resnet18", **options)
        made["smp.Segformer, mit_b0"] = lambda: _Grey(smp.Segformer("mit_b0", encoder_weights=None))
    try:
        from monai.networks.nets import BasicUNet
    except ImportError as error:
        print(f"no monai: {error}", file=sys.stderr)
    else:
        made["monai BasicUNet"] = lambda: BasicUNet(spatial_dims=2, in_channels=1, out_channels=1)
    for name, make in made.items():
        yield name, USUAL, partial(_usual, make)


def _usual(make: Callable[[], nn.Module]) -> Network:
    return Network(onnx_of(fitted(make(), 0, USUAL), contract=USUAL))


class _Grey(nn.Module):
    """A network of colour frames, given a grey one three times."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the inner one's answer."""
        return self.inner(image.repeat(1, 3, 1, 1))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made_here:
            main(Path(made_here))
