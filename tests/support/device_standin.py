"""A stand-in for a device: a real sshd on loopback, a line that can be cut, a played TensorRT.

For tests/export/test_device.py and tests/measure/device.py. What is played is said there; ssh, the
agent, the kit's build_engine.py and the runtime are the real ones.
"""

from __future__ import annotations

import contextlib
import getpass
import inspect
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeseg.export.device.registry import Address, Device, HostKey, Registry
from edgeseg.runtime.bundle import GoldenVectors, seal_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.engines import open_engine
from edgeseg.runtime.image import read_image
from edgeseg.runtime.pgm import pnm_from_pixels
from edgeseg.runtime.session import Session
from edgeseg.tests.support.tensorrt_standin import World

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")
STANDIN = Path(__file__).with_name("tensorrt_standin.py")
_WAIT_S = 10.0
_PLAYED_TENSORRT = """
import importlib.util, json, os, subprocess, sys, time
from pathlib import Path
import numpy as np
HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("standin", {standin!r})
standin = importlib.util.module_from_spec(spec)
sys.modules["standin"] = standin
spec.loader.exec_module(standin)
{source}
world = standin.World({network}, {information!r}, {tensors!r}, plan=b"plan" * 50000)
play = standin._Played.Builder_build_serialized_network
def build(world, self, module, network, config):
    helper = subprocess.Popen(["sleep", "600"])
    (HERE / "processes").write_text(f"{{os.getpid()}} {{helper.pid}}")
    with (HERE / "builds").open("a") as builds:
        builds.write("x")
    time.sleep(float((HERE / "build_s").read_text()))
    helper.kill()
    helper.wait()
    return play(world, self, module, network, config)
standin._Played.Builder_build_serialized_network = staticmethod(build)
sys.modules["tensorrt"] = standin.make_tensorrt(standin.read_surface({version!r}), world)
"""
_PLAYED_CUDA = """
import ctypes
from enum import IntEnum
from types import SimpleNamespace
Error = IntEnum("Error", {"cudaSuccess": 0})
names = ("cudaDevAttrComputeCapabilityMajor", "cudaDevAttrComputeCapabilityMinor")
cudaDeviceAttr = SimpleNamespace(**{name: name for name in names})
cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
live = {}
def alloc(size):
    block = ctypes.create_string_buffer(size)
    live[ctypes.addressof(block)] = block
    return Error.cudaSuccess, ctypes.addressof(block)
def give(*values):
    return lambda *arguments: (Error.cudaSuccess, *values)
cudaSetDevice = give()
cudaRuntimeGetVersion, cudaDriverGetVersion = give(12060), give(12020)
cudaMemGetInfo = give(1 << 30, 2 << 30)
cudaDeviceGetAttribute = lambda which, _: (Error.cudaSuccess, (8, 7)[names.index(which)])
cudaMalloc = alloc
cudaFree = lambda address: (Error.cudaSuccess,)
def cudaMemcpy(to, source, size, kind):
    ctypes.memmove(to, source, size)
    return (Error.cudaSuccess,)
cudaStreamCreate = give(7)
cudaStreamSynchronize = give()
"""


@dataclass
class Played:
    """A running sshd and the folder that the device takes for its own."""

    folder: Path
    port: int
    python: str
    process: subprocess.Popen = field(repr=False)

    @property
    def cache(self) -> Path:
        return self.folder / "cache" / "edgeseg"

    @property
    def identity(self) -> Path:
        return self.folder / "user_key"

    @property
    def url(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"

    @property
    def key(self) -> HostKey:
        kind, blob = (self.folder / "host_key.pub").read_text().split()[:2]
        return HostKey(kind, blob)

    def device(self, name: str, port: int | None = None) -> Device:
        address = Address(getpass.getuser(), "127.0.0.1", port or self.port)
        return Device(name, address, self.key, self.python, str(self.identity))

    def registry(self, folder: Path, *names: str, port: int | None = None) -> Registry:
        registry = Registry.read(folder)
        for name in names:
            registry = registry.put(self.device(name, port))
        return registry

    def set_build_s(self, seconds: float) -> None:
        (self.folder / "site" / "build_s").write_text(str(seconds))

    def builds(self) -> int:
        file = self.folder / "site" / "builds"
        return len(file.read_text()) if file.exists() else 0

    def build_processes(self, within_s: float = _WAIT_S) -> list[int]:
        """Wait until a build runs; return its process and that of its helper."""
        file = self.folder / "site" / "processes"
        wait_for(lambda: file.exists() and len(file.read_text().split()) == 2, within_s)
        return [int(pid) for pid in file.read_text().split()]

    def forget_build(self) -> None:
        (self.folder / "site" / "processes").unlink(missing_ok=True)

    def leftovers(self) -> list[str]:
        """Name what should not be there between two commands."""
        return sorted(
            str(path.relative_to(self.cache))
            for pattern in ("*/part", "*/run-*")
            for path in self.cache.glob(pattern)
        )

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def start_sshd(
    folder: Path, *, python: str = sys.executable, version: str = "10.3", force: str = ""
) -> Played:
    """Start an sshd with keys of its own on a free port.

    force: command that takes the place of what the client asks for, as a chroot.
    """
    site = folder / "site"
    (site / "cuda" / "bindings").mkdir(parents=True)
    (folder / "home").mkdir()
    write_played_packages(site, version)
    for name in ("host_key", "user_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)
    port = free_port()
    lines = [
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        f"HostKey {folder}/host_key",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        f"PidFile {folder}/pid",
        "KexAlgorithms curve25519-sha256",  # half the time of a connection otherwise
        "UsePAM no",
        "StrictModes no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        # A home of its own: what the user's shell does at its start is no part of a device.
        f"SetEnv HOME={folder}/home XDG_CACHE_HOME={folder}/cache PYTHONPATH={site}",
        *([f"ForceCommand {force}"] if force else []),
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    command = [str(SSHD), "-D", "-E", str(folder / "sshd.log"), "-f", str(folder / "sshd_config")]
    process = subprocess.Popen(command)
    played = Played(folder, port, python, process)
    wait_for(lambda: _listens(port))
    return played


def write_played_packages(site: Path, version: str) -> None:
    """Write a `tensorrt` and a `cuda` that build_engine.py finds on the device."""
    from edgeseg.tests.export.test_kit import HALF, make_world

    play_world(site, version, make_world(HALF))
    (site / "cuda" / "bindings" / "runtime.py").write_text(_PLAYED_CUDA)
    (site / "build_s").write_text("0")


def play_world(site: Path, version: str, world: World) -> None:
    """Write the `tensorrt` of a world, whose network is a function of numpy alone."""
    text = _PLAYED_TENSORRT.format(
        standin=str(STANDIN),
        source=inspect.getsource(world.network),
        network=world.network.__name__,
        information=world.information,
        tensors=world.tensors,
        version=version,
    )
    (site / "tensorrt.py").write_text(text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, within_s: float = _WAIT_S) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process lives; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


class Line:
    """A TCP relay to a device: it can be cut after so many bytes, closed, or fall silent."""

    def __init__(self, port: int) -> None:
        self.cuts: list[int] = []  # bytes towards the device after which each next connection ends
        self.silent = False
        self._target = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._serve)

    def cut(self) -> None:
        """End every connection at once, as a reset does."""
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes accept, which close alone does not
        for thread in self._threads:
            thread.join(_WAIT_S)
        for each in (self._server, *self._sockets):
            each.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                pair = (near, far)
                self._pairs.append(pair)
                self._sockets += pair
                limit = self.cuts.pop(0) if self.cuts else None
                self._start(self._relay, pair, limit)
                self._start(self._relay, (far, near), None)

    def _start(self, target, *arguments) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _relay(self, pair: tuple[socket.socket, socket.socket], limit: int | None) -> None:
        source, target = pair
        passed = 0
        with contextlib.suppress(OSError):
            while block := source.recv(4096):
                while self.silent:  # a pulled cable: nothing passes, nothing closes
                    time.sleep(0.02)
                target.sendall(block)
                passed += len(block)
                if limit is not None and passed > limit:
                    time.sleep(0.5)  # sshd drops what the far end has not taken yet
                    break
        if not self.silent:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def write_kit_bundle(folder: Path, version: str = "10.3", *, framed: bool = True) -> Path:
    """Write a kit with the real build_engine.py, sealed as a bundle is; 1 MB of it is ballast."""
    from edgeseg.tests.export.test_kit import build, write_frame_kit, write_kit

    write = write_frame_kit if framed else write_kit
    write(folder, version, {"fp16": build(), "fp32": build()})
    for name in ("manifest.json", "SHA256SUMS"):
        (folder / name).unlink()
    ballast = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8)
    (folder / "model.onnx").write_bytes(ballast.tobytes())
    contract = InputContract(height=16, width=16)  # nobody predicts with it
    seal_bundle(folder, bundle_fields("jetson", "fp16", contract, {"tensorrt": ("model.onnx",)}))
    return folder


def write_onnx_bundle(folder: Path, size: int = 64, *, wrong: bool = False) -> Path:
    """Write a bundle for ONNX Runtime: a blur whose logits are above 0 where a frame is bright.

    wrong: its golden masks are those of another network.
    """
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.full((1, 1, 5, 5), 1 / 25, np.float32), "weights")
    bias = numpy_helper.from_array(np.full(1, -0.5, np.float32), "bias")
    shape = [1, 1, size, size]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weights", "bias"], ["logits"], pads=[2, 2, 2, 2])],
        "blur",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [weights, bias],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    contract = InputContract(height=size, width=size)
    session = Session.over(
        open_engine("onnxruntime", {"model.onnx": model.SerializeToString()}, 1), contract
    )
    (folder / "vectors").mkdir()
    frames, masks = [], []
    for index, file in enumerate(write_frames(folder.parent / f"{folder.name}-golden", 4)):
        frame = read_image(file)
        mask = session.predict(frame)
        for names, content in ((frames, frame), (masks, (mask ^ wrong) * np.uint8(255))):
            names.append(f"vectors/{'frame' if names is frames else 'onnxruntime'}-{index}.pgm")
            (folder / names[-1]).write_bytes(pnm_from_pixels(content))
    vectors = GoldenVectors(tuple(frames), {"onnxruntime": tuple(masks)}, {"onnxruntime": 0.02})
    fields = bundle_fields("arm-cpu", "fp32", contract, {"onnxruntime": ("model.onnx",)})
    seal_bundle(folder, {**fields, "vectors": vectors})
    return folder


def bundle_fields(
    target: str, precision: str, contract: InputContract, models: Mapping[str, tuple[str, ...]]
) -> dict:
    return {
        "name": "blur",
        "target": target,
        "precision": precision,
        "contract": contract,
        "models": models,
    }


def write_frames(folder: Path, count: int = 3) -> list[Path]:
    """Write grey frames with a bright disc each."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:90, :120]
    files = []
    for index in range(count):
        disc = (rows - 40) ** 2 + (columns - 30 - 20 * index) ** 2 < 400
        file = folder / f"frame-{index}.png"
        Image.fromarray((disc * 200 + 20).astype(np.uint8)).save(file)
        files.append(file)
    return files


@contextlib.contextmanager
def killed_with(process: subprocess.Popen) -> Iterator[None]:
    """End a process and its group when left, whatever happens."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def facts_of(file: Path) -> dict:
    return json.loads(file.read_text())
