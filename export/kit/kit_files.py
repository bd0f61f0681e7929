"""What a kit folder holds, how it is checked, and how results are written.

Only the standard library; valid Python 3.8.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Set, Tuple

SUMS = "SHA256SUMS"
SIGNATURE = "model.sig"  # optional, of the maker; checked by `edgeseg bundle verify`, not here
SCHEMA = "edgeseg.kit/1"
PRECISIONS = ("fp32", "fp16", "int8")
ITEM_BYTES = {"float32": 4, "uint8": 1}


class KitError(Exception):
    """Base of every error that is not a bug.

    Args:
        code: stable name such as ``E-KIT-HASH``; tests and scripts key on it.
        message: one line: what, where, and after a semicolon how to mend it.
    """

    exit_code = 1

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {' '.join(message.split())}")
        self.code = code


class InputError(KitError):
    """The command was called in a way that cannot be done."""

    exit_code = 2


class Refused(KitError):  # noqa: N818 - a refusal is an answer, not a failure
    """The kit, the engine or this device is not what it has to be."""

    exit_code = 3


class DeviceError(KitError):
    """TensorRT or CUDA is missing, or failed on this machine."""

    exit_code = 4


class OutputError(KitError):
    """A result could not be written; no part of it was left behind."""

    exit_code = 5


class Tensor(NamedTuple):
    """An input or output of an engine."""

    name: str
    shape: Tuple[int, ...]  # [1, C, H, W]
    dtype: str  # key in ITEM_BYTES

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        size = ITEM_BYTES[self.dtype]
        for length in self.shape:
            size *= length
        return size


class Profile(NamedTuple):
    """Shapes of the input between which an engine with a dynamic batch has to work."""

    input: str  # its name
    min: Tuple[int, ...]  # [1, C, H, W]
    opt: Tuple[int, ...]  # the one that kernels are chosen for
    max: Tuple[int, ...]


class Build(NamedTuple):
    """How one engine is built, and what it has to answer."""

    precision: str  # of PRECISIONS
    onnx: str  # file of the kit
    typed: bool  # the types of the ONNX are binding: a strongly typed network
    flags: Tuple[str, ...]  # names of BuilderFlag, for weakly typed networks
    cache: Optional[str]  # TensorRT calibration cache, a file of the kit
    dla_core: Optional[int]  # None: the GPU
    min_share: float  # share of the convolutions' MACs that must run in the precision, in [0, 1]
    input: Tensor
    logits: Tensor  # a pixel is lesion where its logit lies above the kit's level
    mask: Optional[Tensor]  # of a frame graph: what the engine itself says is lesion (1)
    profile: Optional[Profile]  # None: the shapes are static
    around: Tuple[str, ...]  # how the names of nodes begin that are not the network's
    vectors: str  # file of the kit: what `input` gets, [N, C, H, W] of its type
    expected: str  # file of the kit: the host's logits as npy; with a mask both by name, as npz
    max_flipped: float  # share of a frame's lesion that may differ from the host's, in [0, 1]

    @property
    def title(self) -> str:
        """For messages."""
        return self.precision if self.mask is None else f"{self.precision} frame"

    @property
    def outputs(self) -> Tuple[Tensor, ...]:
        """All outputs of the engine."""
        return (self.logits,) if self.mask is None else (self.mask, self.logits)

    @property
    def files(self) -> Set[str]:
        """Those of the kit that it needs."""
        return {self.onnx, self.vectors, self.expected} | ({self.cache} if self.cache else set())


class Kit(NamedTuple):
    """The content of kit.json and where its files lie."""

    folder: Path
    target: str
    tensorrt: str  # major.minor that the builds were planned for
    compute_capability: Optional[str]  # of the target's GPU, such as "8.7"; None: any
    default: str  # precision built when none is asked for
    logit_thresholds: Tuple[float, ...]  # of each class: its pixels' logits lie above
    workspace_mib: int
    builds: Dict[str, Build]  # of the network, by precision
    frames: Dict[str, Build]  # of the frame graphs, by precision; empty where the kit has none
    sha256: str  # of SHA256SUMS, hence of every file

    def read(self, name: str) -> bytes:
        """Return the content of one of the kit's files."""
        return (self.folder / name).read_bytes()


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def verify(folder: Path) -> Set[str]:
    """Compare every file of the kit with SHA256SUMS and return their names.

    It tells damage, not intent: whoever can change a file can change SHA256SUMS as well.

    Raises:
        Refused: E-KIT-HASH.
    """
    again = "copy the kit again"
    name = SUMS
    listed: Set[str] = set()
    try:
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
            expected, name = line.split("  ", 1)
            if sha256_of((folder / name).read_bytes()) != expected:
                raise Refused("E-KIT-HASH", f"{name} does not match {SUMS}; {again}")
            listed.add(name)
    except (OSError, ValueError) as error:
        raise Refused("E-KIT-HASH", f"cannot verify {name} ({error}); {again}") from error
    strange = sorted(listed ^ (found - {SUMS, SIGNATURE}))
    if strange or "kit.json" not in listed:
        what = strange[0] if strange else "kit.json"
        message = f"{SUMS} does not list exactly the kit's files, see {what}; {again}"
        raise Refused("E-KIT-HASH", message)
    return listed


def read_kit(folder: Path) -> Kit:
    """Verify a kit and read its kit.json.

    Raises:
        Refused: E-KIT-HASH, E-KIT-FORMAT.
    """
    listed = verify(folder)
    try:
        content = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']!r}, this script reads {SCHEMA!r}")
        kit = _kit_from(folder, content)
        used: Set[str] = set()
        for build in (*kit.builds.values(), *kit.frames.values()):
            used |= build.files
        if used - listed:
            raise ValueError(f"it names {sorted(used - listed)[0]!r}, which the kit lacks")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        message = f"{folder / 'kit.json'} is not understood ({error!r}); export the kit again"
        raise Refused("E-KIT-FORMAT", message) from error
    return kit


def _kit_from(folder: Path, content: Dict[str, Any]) -> Kit:
    vectors = content["vectors"]
    image, logits = (
        Tensor(content[side]["name"], tuple(content[side]["shape"]), "float32")
        for side in ("input", "output")
    )
    profile = _profile_from(content["profile"], image)
    builds = {
        precision: Build(
            precision,
            build["onnx"],
            build["typed"],
            tuple(build["flags"]),
            build["cache"],
            build["dla_core"],
            build["min_share"],
            image,
            logits,
            None,
            profile,
            (),
            vectors["input"],
            vectors["expected"][precision],
            vectors["max_flipped"][precision],
        )
        for precision, build in content["builds"].items()
    }
    if content["default"] not in builds or set(builds) - set(PRECISIONS):
        raise ValueError(f"builds {sorted(builds)} with default {content['default']!r}")
    return Kit(
        folder,
        content["target"],
        content["tensorrt"],
        content["compute_capability"],
        content["default"],
        _levels_from(content, logits),
        content["workspace_mib"],
        builds,
        {} if content["frame"] is None else _frames_from(content["frame"], builds),
        sha256_of((folder / SUMS).read_bytes()),
    )


def _levels_from(content: Dict[str, Any], logits: Tensor) -> Tuple[float, ...]:
    """Return the level of each class: a number of a single one, a list of several."""
    several = "logit_thresholds" in content
    levels = tuple(content["logit_thresholds"]) if several else (content["logit_threshold"],)
    if len(levels) != logits.shape[1]:
        raise ValueError(f"{len(levels)} levels for the output {logits.shape}")
    return levels


def _profile_from(content: Optional[Dict[str, Any]], image: Tensor) -> Optional[Profile]:
    if content is None:
        return None
    shapes = [tuple(content[name]) for name in ("min", "opt", "max")]
    batches = [shape[0] for shape in shapes]
    if {shape[1:] for shape in shapes} != {image.shape[1:]}:
        raise ValueError(f"profile {shapes} of the input {image.shape}")
    if batches[0] < 1 or batches != sorted(batches):
        raise ValueError(f"profile with the batches {batches}")
    return Profile(image.name, *shapes)


def _frames_from(content: Dict[str, Any], builds: Dict[str, Build]) -> Dict[str, Build]:
    """Return how each frame graph is built: as the network in it, a single frame a call."""
    frame, mask = (
        Tensor(content[side]["name"], tuple(content[side]["shape"]), "uint8")
        for side in ("input", "mask")
    )
    found = {}
    for precision, build in content["builds"].items():
        network = builds[precision]
        if network.cache or network.dla_core is not None:
            raise ValueError(f"a {precision} frame graph with a calibration cache or for the DLA")
        found[precision] = network._replace(
            onnx=build["onnx"],
            input=frame,
            logits=Tensor(content["logits"], network.logits.shape, "float32"),
            mask=mask,
            profile=None,
            around=tuple(content["around"]),
            vectors=content["vectors"],
            expected=build["expected"],
        )
    return found


def side_car_of(plan: Path) -> Path:
    """Return the path of the JSON file that belongs to an engine."""
    return plan.with_name(plan.name + ".json")


def write_engine(path: Path, plan: bytes, facts: Dict[str, Any]) -> None:
    """Write an engine and its side-car, each whole or not at all.

    The old side-car goes first and the new one comes last, so that whatever is killed in between
    leaves an engine without a side-car, never one with another engine's.

    Raises:
        OutputError: E-KIT-WRITE.
    """
    side_car = side_car_of(path)
    try:
        ready_plan = _write_partial(path, plan)
        ready_side_car = _write_partial(side_car, json.dumps(facts, indent=1).encode("utf-8"))
        _remove(side_car)
        _sync(path.parent)
        ready_plan.replace(path)
        _sync(path.parent)
        ready_side_car.replace(side_car)
        _sync(path.parent)
    except OSError as error:
        for each in (path, side_car):
            _remove(_partial(each))
        raise OutputError("E-KIT-WRITE", f"cannot write {path}: {error.strerror}") from error


def require_writable(path: Path) -> None:
    """See that a file can be written there before the minutes that its content takes.

    Raises:
        OutputError: E-KIT-WRITE.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        _write_partial(path, b"")
        _remove(_partial(path))
    except OSError as error:
        raise OutputError("E-KIT-WRITE", f"cannot write {path}: {error.strerror}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write one file whole or not at all.

    Raises:
        OutputError: E-KIT-WRITE.
    """
    try:
        _write_partial(path, content).replace(path)
    except OSError as error:
        _remove(_partial(path))
        raise OutputError("E-KIT-WRITE", f"cannot write {path}: {error.strerror}") from error


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _write_partial(path: Path, content: bytes) -> Path:
    with _partial(path).open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return _partial(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _sync(folder: Path) -> None:
    """Make renames in a folder last."""
    handle = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
