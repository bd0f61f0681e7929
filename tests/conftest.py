"""One phantom data set, one tiny run and one bundle of each kind, shared by every test."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core, and so has what it starts. Threads that share cores with those of
    # another wait for them: a training of seconds takes minutes. Before PyTorch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        worker = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
        if worker < len(cores):  # one more takes what they leave while they wait
            os.sched_setaffinity(0, {cores[worker]})

import functools
import gc
import importlib
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

import edgeseg  # before OpenVINO, which otherwise reports itself
from edgeseg.tests.support import instruction_sets

if TYPE_CHECKING:
    from edgeseg.export.pipeline import Frames
    from edgeseg.tests.support.chromium import Browser

ROOT = Path(edgeseg.__file__).parent

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a shell starts with `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what tests start is to obey Ctrl-C
# After eight epochs it finds most phantoms' lesions, so that masks are worth comparing.
_TINY = {
    "size": 64,
    "student": "attunet-8",
    "teacher": "attunet-8",
    "general_epochs": 1,
    "teacher_epochs": 1,
    "student_epochs": 8,
    "batch": 4,
    "learning_rate": 1e-2,
}


def pytest_report_header() -> list[str]:
    """Say what the numbers of this session depend on."""
    return instruction_sets.describe()


@pytest.fixture(scope="session", autouse=True)
def _short_warmup() -> Iterator[None]:
    """A busy machine never becomes steady; here no figure is quoted, so none waits for it."""
    from edgeseg.benchmarks import run
    from edgeseg.benchmarks.measure import latency

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "WARMUP_CAP_S", 0.3)
        patch.setattr(run, "BURST_S", 0.05)
        yield


@pytest.fixture(scope="session", autouse=True)
def _phantoms_drawn_once() -> Iterator[None]:
    """A phantom depends on its label, number and seed alone: what was drawn is kept."""
    from edgeseg.kd.data import phantom

    draw = phantom.draw_phantom

    @functools.cache
    def kept(label: str, number: int, seed: int):
        image, masks = draw(label, number, seed)
        for array in (image, *masks):
            array.flags.writeable = False
        return image, masks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "draw_phantom", kept)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files that take long first, so that no worker ends with one of them alone."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="module", autouse=True)
def _what_stays_is_frozen() -> None:
    """Keep the garbage collector off what stays: thousands of tests, and what they have imported.

    Each benchmark collects all else first.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def jsonschema() -> ModuleType:
    """The library, whose grammars take seconds to load: only where a test asks for it."""
    return importlib.import_module("jsonschema")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a folder of a name, made by the first process of this session that asks for it."""
    from filelock import FileLock

    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        made = shared / f"{name}.made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                make(shared / name)
                made.touch()
        return shared / name

    return folder


@pytest.fixture(scope="session")
def phantoms(made_once: Callable[..., Path]) -> Path:
    """40 phantoms in BUSI layout; nobody may write here."""
    from edgeseg.kd.data.phantom import write_phantoms

    return made_once("phantoms", lambda folder: write_phantoms(folder, count=40))


@contextmanager
def _trained_alike_by_every_cpu() -> Iterator[None]:
    """Train in float64, and write checkpoints in float32 as always.

    How a toy network turns out hangs on the last bits of its kernels, and on whether the CPU
    computes in bfloat16. In float64 what kernels differ by is lost where the weights are rounded:
    every CPU makes the same network, and what tests find in it does not depend on the machine.
    """
    import torch

    from edgeseg.kd import checkpoint, fit

    write_tensors = checkpoint.write_tensors

    def rounded(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]):
        narrow = {
            name: value.to(torch.float32) if value.is_floating_point() else value
            for name, value in tensors.items()
        }
        write_tensors(path, narrow, metadata)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(fit, "compute_dtype", lambda device: torch.float64)
        patch.setattr(checkpoint, "write_tensors", rounded)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def run(phantoms: Path, made_once: Callable[..., Path]) -> Path:
    """A finished training run on `phantoms`, the same on every CPU; nobody may write here."""
    from edgeseg.kd.config import TrainConfig
    from edgeseg.kd.data.dataset import read_dataset
    from edgeseg.kd.train import train

    def make(folder: Path) -> None:
        with _trained_alike_by_every_cpu():
            train(read_dataset(phantoms), folder, TrainConfig(**_TINY), device="cpu")

    return made_once("run", make)


@pytest.fixture(scope="session")
def frames_of(phantoms: Path, run: Path) -> Callable[[str], Frames]:
    """Return what exports of the run in a precision are calibrated with and judged by."""
    from edgeseg.cli.jobs.parts import samples_for
    from edgeseg.cli.jobs.sources import checkpoint_of
    from edgeseg.export.parity import CheckFrame
    from edgeseg.export.pipeline import Frames, read_calibration_frames
    from edgeseg.runtime.image import read_image

    source = checkpoint_of(run)
    images = [sample.image for sample in samples_for(source, [phantoms], "train")]
    calibration = read_calibration_frames(images, 8, read_image)
    checks = tuple(
        CheckFrame(sample.read_image(), sample.read_mask(), sample.group)
        for sample in samples_for(source, [phantoms], "val")
    )
    vectors = tuple(check.frame for check in checks[:4])

    def frames(precision: str) -> Frames:
        return Frames(None if precision == "fp32" else calibration, checks, vectors=vectors)

    return frames


@pytest.fixture(scope="session")
def export_to(frames_of: Callable[[str], Frames], run: Path) -> Callable[..., Path]:
    """Export the run as `edgeseg export` does: (target, precision, out, max_drop) -> out.

    The gate on HD95 is open: five frames of a network of eight epochs say little about it.
    """
    from edgeseg.cli.jobs.sources import checkpoint_of
    from edgeseg.export.pipeline import Limits, export_bundle, load_trained
    from edgeseg.export.plan import make_plan
    from edgeseg.export.target import find_target

    source = checkpoint_of(run)

    def export(target: str, precision: str, out: Path, max_drop: float = 1.0) -> Path:
        return export_bundle(
            load_trained(source.path),
            make_plan(find_target(target), precision),
            out,
            frames_of(precision),
            split=source.split_file(),
            limits=Limits(max_drop, max_hd95_rise_px=100.0),
        ).path

    return export


@pytest.fixture(scope="session")
def bundle_of(
    export_to: Callable[..., Path], made_once: Callable[..., Path]
) -> Callable[[str, str], Path]:
    """Return the shared bundle of a target and precision, exported once; nobody may write there."""

    def bundle(target: str, precision: str) -> Path:
        return made_once(f"{target}-{precision}", lambda out: export_to(target, precision, out))

    return bundle


@pytest.fixture(scope="session")
def shipped_int8(made_once: Callable[..., Path]) -> Callable[[str], Path]:
    """Return the shared INT8 bundle of a student that ships; nobody may write there."""
    from edgeseg.cli.jobs.api import export

    def bundle(name: str) -> Path:
        def make(out: Path) -> None:
            export(Path(name), target="x86-cpu", precision="int8", out=out)

        return made_once(f"{name}-int8", make)

    return bundle


@pytest.fixture
def bundle_copy(bundle_of: Callable[[str, str], Path], tmp_path: Path) -> Path:
    """A copy of the x86 INT8 bundle, to be damaged."""
    return Path(shutil.copytree(bundle_of("x86-cpu", "int8"), tmp_path / "bundle"))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root; run the tests as root")
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(
            f"cannot mount a tmpfs ({mounted.stderr.decode().strip()}); needs CAP_SYS_ADMIN"
        )
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless browser for the tests of one module; skips where Chromium is missing."""
    from edgeseg.tests.support.chromium import open_browser

    with open_browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser
