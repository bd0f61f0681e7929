"""The C runtime, built as firmware builds it: equal to Python's, and what it must refuse."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import io
import json
import os
import platform
import random
import re
import shlex
import shutil
import struct
import subprocess
import sysconfig
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.cli.jobs.empty_frames import empty_frames
from edgeseg.kd.data.phantom import draw_phantom
from edgeseg.kd.zoo import available_names
from edgeseg.runtime.bundle import (
    MAX_MANIFEST_BYTES,
    GoldenVectors,
    open_bundle,
    pack_bundle,
    seal_bundle,
)
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.cpu import FEATURES, missing_features
from edgeseg.runtime.errors import EdgesegError, InputError
from edgeseg.runtime.image import (
    grey_from_frame,
    input_from_frame,
    inset_of,
    kept_logits,
    mask_from_logits,
    resize_grey,
)
from edgeseg.runtime.layout import Layout
from edgeseg.runtime.lesion import fill_holes, keep_largest
from edgeseg.runtime.pgm import golden_from_labels, pnm_from_pixels
from edgeseg.runtime.session import open_session
from edgeseg.runtime.signature import sign_bundle
from edgeseg.runtime.store import MAX_ARCHIVE_BYTES, MAX_FILES
from edgeseg.tests.support.several_classes import export_located, in_colour

pytestmark = pytest.mark.long

SOURCE = Path(__file__).parents[2] / "runtime" / "c"
SITE = Path(sysconfig.get_path("purelib"))
# Where `make test` puts what `runtime/c/get_onnxruntime.sh` prepares.
ORT_ROOT = os.environ.get("EDGESEG_ONNXRUNTIME", "")
PILLOW_13 = hasattr(Image, "__version__") and int(Image.__version__.split(".")[0]) >= 13
ERRORS = {  # code of Python -> exit code of the example: the positive value of the status
    "E-ARGUMENT": 1,
    "E-BUNDLE-MISSING": 10,
    "E-BUNDLE-HASH": 11,
    "E-BUNDLE-LINK": 12,
    "E-MANIFEST-SIZE": 13,
    "E-MANIFEST-NEWER": 14,
    "E-MANIFEST-FIELD": 15,
    "E-PGM": 16,
    "E-ENGINE-NOT-IN-BUNDLE": 20,
    "E-EXTRA-MISSING": 21,
    "E-ENGINE-LOAD": 22,
    "E-ENGINE-RUN": 24,
    "E-ENGINE-RESULT": 25,
    "E-CPU-FEATURE": 26,
    "E-SELFTEST": 30,
    "E-SIGNATURE-MISSING": 40,
    "E-SIGNATURE": 41,
    "E-KEY-READ": 42,
}
# Engines link against more libraries of theirs, which the loader finds and the linker need not.
LINK_LATER = ("-Wl,--allow-shlib-undefined",)
OPENSSL_MISSING = 43  # E-EXTRA-MISSING too, of a key


def require(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}; .ci/packages installs what is missing, as root")


def run(*arguments: str | Path, **kinds) -> subprocess.CompletedProcess:
    return subprocess.run([str(each) for each in arguments], capture_output=True, **kinds)


# Where the library's speed is not the matter: it compiles in a third of the time.
UNOPTIMISED = "-DCMAKE_BUILD_TYPE=Debug"


def build(folder: Path, *options: str) -> Path:
    """Configure and build into a folder; warnings are errors."""
    require("cmake", "gcc")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configured = run(
        "cmake", "-S", SOURCE, "-B", folder, *generator, "-DEDGESEG_WERROR=ON", *options
    )
    assert configured.returncode == 0, configured.stderr.decode()
    built = run("cmake", "--build", folder, "-j", "2")
    assert built.returncode == 0, built.stdout.decode()[-4000:]
    return folder


def engine_options() -> list[str]:
    """The engines that can be compiled here."""
    options = []
    if (SITE / "openvino" / "include" / "openvino" / "c" / "openvino.h").is_file():
        options.append(f"-DEDGESEG_OPENVINO={SITE / 'openvino'}")
    if ORT_ROOT:
        options.append(f"-DEDGESEG_ONNXRUNTIME={ORT_ROOT}")
    return options


def openssl_options() -> list[str]:
    """What compiles the verification of signatures in, if libcrypto's headers are here."""
    if shutil.which("pkg-config") is None:
        return []
    found = run("pkg-config", "--exists", "libcrypto").returncode == 0
    return ["-DEDGESEG_OPENSSL=ON"] if found else []


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The library with every engine that is here, the example and the tools of these tests."""
    return build(
        tmp_path_factory.mktemp("c"), "-DEDGESEG_TESTS=ON", *openssl_options(), *engine_options()
    )


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory):
    """The same under AddressSanitizer and UBSan."""
    return build(
        tmp_path_factory.mktemp("sanitized"),
        *("-DEDGESEG_TESTS=ON", "-DEDGESEG_SANITIZE=address,undefined", UNOPTIMISED),
        *openssl_options(),
        *engine_options(),
    )


@pytest.fixture(scope="session")
def library(built):
    loaded = ctypes.CDLL(str(built / "libedgeseg-testing.so"))
    loaded.es_last_message.restype = ctypes.c_char_p
    loaded.es_code.restype = ctypes.c_char_p
    return loaded


@pytest.fixture(params=["openvino", "onnxruntime"])
def engine(request):
    if request.param == "onnxruntime" and not ORT_ROOT:
        pytest.skip(
            "EDGESEG_ONNXRUNTIME names no folder with ONNX Runtime's C header; make test fetches "
            "it where apt knows a Debian mirror, see runtime/c/get_onnxruntime.sh"
        )
    pytest.importorskip(request.param, reason=f"no {request.param}; make install brings it")
    return request.param


@pytest.fixture(scope="session")
def int8(bundle_of):
    return bundle_of("x86-cpu", "int8")


CONTRACT = InputContract(48, 64, 0.33, 0.22, 0.4)
LEAST = InputContract(48, 64, 0.33, 0.22, 0.4, least_area=0.02, least_peak=0.9)


SEVERAL = InputContract(
    *(48, 64, (0.3, 0.4, 0.5), (0.2, 0.25, 0.3), (0.3, 0.5, 0.4, 0.6)),
    least_area=(0.01, 0.0, 0.02, 0.0),
    channels="bgr",
    resize="letterbox",
    pad=100,
    classes=("cyst", "benign", "malignant", "vessel"),
    head="softmax",
)


NEEDS = {"schema": "edgeseg.bundle/3.0"}  # of what needs something of the CPU


def stub_logits(frame: np.ndarray, contract: InputContract) -> np.ndarray:
    """What tests/stub_engine.c answers: the image, doubled; of several classes a channel each."""
    image = input_from_frame(frame, contract)[0] * np.float32(2)
    if len(contract.classes) == 1:
        return image[0]
    return image[np.arange(len(contract.classes)) % len(image)]


def stub_bundle(
    folder: Path,
    what: str = "ok",
    layout: dict | None = None,
    contract: InputContract = CONTRACT,
) -> Path:
    """A bundle for the engine of the C tests, which needs no library."""
    (folder / "vectors").mkdir(parents=True)
    (folder / "model.stub").write_text(what)
    generator = np.random.default_rng(3)
    for index, size in enumerate(((40, 30), (96, 131))):
        colours = (3,) if contract.takes_colour and index else ()
        frame = generator.integers(0, 256, (*size, *colours), dtype=np.uint8)
        mask = mask_from_logits(stub_logits(frame, contract), contract, *size)
        (folder / f"vectors/frame-{index}.pgm").write_bytes(pnm_from_pixels(frame))
        stored = pnm_from_pixels(golden_from_labels(mask, contract))
        (folder / f"vectors/stub-{index}.pgm").write_bytes(stored)
    vectors = GoldenVectors(
        ("vectors/frame-0.pgm", "vectors/frame-1.pgm"),
        {"stub": ("vectors/stub-0.pgm", "vectors/stub-1.pgm")},
        {"stub": 0.01},
    )
    fields = {"name": "stub", "target": "test", "precision": "fp32", "contract": contract}
    models = {"stub": ("model.stub",), "elsewhere": ("model.stub",)}
    seal_bundle(folder, {**fields, "models": models, "vectors": vectors, "layout": layout or {}})
    return folder


def reseal(folder: Path, change: Callable[[dict], None]) -> None:
    """Change the manifest and make the hashes hold again."""
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_bytes())
    change(content)
    manifest.write_text(json.dumps(content))
    rehash(folder)


def rehash(folder: Path) -> None:
    names = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "SHA256SUMS"
    )
    (folder / "SHA256SUMS").write_text(
        "".join(
            f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
            for name in names
        )
    )


# --- a session of C, from Python -----------------------------------------------------------------


class Options(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_char_p) for name in ("engine", "key")),
        *((name, ctypes.c_int) for name in ("threads", "max_width", "max_height")),
        *((name, ctypes.c_int) for name in ("largest_only", "fill_holes")),
    )


class Result(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("frames", "bit_equal", "worst_frame")),
        *((name, ctypes.c_double) for name in ("worst_flipped", "max_flipped")),
    )


class Failed(Exception):  # noqa: N818 - as `Refused` of the runtime
    """A status that is not ES_OK, by its name."""


@dataclass
class CSession:
    library: ctypes.CDLL
    pointer: ctypes.c_void_p

    def check(self, status: int) -> None:
        if status != 0:
            text = self.library.es_last_message(self.pointer).decode()
            raise Failed(f"{self.library.es_code(status).decode()}: {text}")

    def predict(self, frame: np.ndarray, stride: int | None = None) -> np.ndarray:
        height, width = frame.shape[:2]
        mask = np.full((height, width), 9, np.uint8)
        call = self.library.es_infer if frame.ndim == 2 else self.library.es_infer_rgb
        address = frame.ctypes.data_as(ctypes.c_void_p)
        stride = frame.strides[0] if stride is None else stride
        status = call(self.pointer, address, width, height, stride, mask.ctypes.data)
        if status != 0:
            assert (mask == 9).all()  # untouched on any error
        self.check(status)
        return mask

    def selftest(self) -> Result:
        result = Result()
        self.check(self.library.es_selftest(self.pointer, ctypes.byref(result)))
        return result


@pytest.fixture
def open_c(library):
    """Open a session: (bundle, engine, key, **options) -> CSession."""
    library.es_infer.argtypes = library.es_infer_rgb.argtypes = (
        *(ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ctypes.c_void_p,
    )
    library.es_selftest.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.es_last_message.argtypes = library.es_close.argtypes = (ctypes.c_void_p,)
    opened = []

    def open_it(
        bundle: Path, engine: str | None = None, key: Path | str | None = None, **options
    ) -> CSession:
        chosen = Options(
            engine and engine.encode(),
            None if key is None else str(key).encode(),
            **{"threads": 1, **options},
        )
        pointer = ctypes.c_void_p()
        message = ctypes.create_string_buffer(256)
        status = library.es_open(
            str(bundle).encode(), ctypes.byref(chosen), ctypes.byref(pointer), message
        )
        if status != 0:
            assert not pointer.value
            raise Failed(f"{library.es_code(status).decode()}: {message.value.decode()}")
        opened.append(pointer)
        return CSession(library, pointer)

    yield open_it
    for pointer in opened:
        library.es_close(pointer)


# --- pure parts ----------------------------------------------------------------------------------


def test_hashes_json_pgm_sums_and_codes_are_right(built):
    assert run(built / "edgeseg-check").stdout == b"ok\n"


class Taps(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("first", "count", "weights"))


class Canvas(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("network_width", "network_height")),
        *((name, ctypes.c_int) for name in ("max_width", "max_height")),
        *(("across", Taps), ("down", Taps)),
        *((name, ctypes.c_void_p) for name in ("reduced", "between", "small")),
        *((name, ctypes.c_void_p) for name in ("x_low", "x_up", "y_low", "y_up")),
        *((name, ctypes.c_void_p) for name in ("x_weight", "y_weight", "lines", "best")),
        *((name, ctypes.c_int) for name in ("taps_width", "taps_height")),
        *((name, ctypes.c_int) for name in ("taps_from_width", "taps_from_height")),
    )


class Class(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 64),
        *((name, ctypes.c_double) for name in ("threshold", "least_area", "least_peak")),
    )


class Contract(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("width", "height", "channels", "classes")),
        ("part", ctypes.c_int * 3),
        *(("mean", ctypes.c_double * 3), ("std", ctypes.c_double * 3)),
        *(("letterbox", ctypes.c_bool), ("pad", ctypes.c_int)),
        ("of", Class * 16),
    )


class Box(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ("left", "top", "right", "bottom"))


PARTS = {"grey": (-1, -1, -1), "grey3": (-1, -1, -1), "rgb": (0, 1, 2), "bgr": (2, 1, 0)}


def told(contract: InputContract) -> Contract:
    """Return a contract as C has it."""
    points = zip(
        contract.thresholds, contract.least_areas, contract.least_peaks, contract.classes,
        strict=True,
    )  # fmt: skip
    return Contract(
        *(contract.width, contract.height, contract.depth, len(contract.classes)),
        PARTS[contract.channels],
        *(contract.means, contract.stds),
        *(contract.resize == "letterbox", contract.pad),
        tuple((name.encode(), *point) for *point, name in points),
    )


def inset_box(library, contract: InputContract, height: int, width: int) -> Box:
    """Return where C puts a frame, which is where Python puts it."""
    library.es_inset_of.restype = Box
    found = library.es_inset_of(ctypes.byref(told(contract)), width, height)
    rows, columns = inset_of(contract, height, width).box
    assert (found.left, found.right) == (columns.start, columns.stop)
    assert (found.top, found.bottom) == (rows.start, rows.stop)
    return found


@pytest.fixture
def canvas(library):
    """Make the buffers for a network's size: (height, width, classes) -> Canvas."""
    opened = []

    def make(height: int, width: int, classes: int = 1) -> Canvas:
        made = Canvas()
        total = ctypes.c_size_t()
        assert library.es_canvas_open(
            ctypes.byref(made), width, height, classes, 1200, 1200, ctypes.byref(total)
        )
        opened.append(made)
        return made

    yield make
    for each in opened:
        library.es_canvas_close(ctypes.byref(each))


def random_sizes(count: int) -> list[tuple[int, int]]:
    generator = np.random.default_rng(11)
    even = generator.integers(1, 1201, (count // 2, 2))
    small = np.exp(generator.uniform(0, np.log(1200), (count - count // 2, 2))).astype(int)
    fixed = [(1, 1), (1, 1200), (1200, 1), (48, 64), (64, 48), (96, 128), (48, 1000), (1000, 64)]
    return [*fixed, *map(tuple, even.tolist()), *map(tuple, small.tolist())]


@pytest.mark.skipif(
    not PILLOW_13,
    reason="Pillow older than 13 resizes in another order of its passes; make install brings 13",
)
def test_resize_is_pillows_to_the_bit(library, canvas):
    generator = np.random.default_rng(0)
    buffers = {size: canvas(*size) for size in ((48, 64), (128, 128), (16, 160))}
    for height, width in random_sizes(150):
        stride = width + int(generator.integers(0, 9))
        frame = generator.integers(0, 256, (height, stride), dtype=np.uint8)
        for size, made in buffers.items():
            library.es_resize_grey(
                ctypes.byref(made), frame.ctypes.data_as(ctypes.c_void_p), width, height,
                ctypes.c_size_t(stride), ctypes.byref(Box(0, 0, size[1], size[0])),
            )  # fmt: skip
            ours = np.ctypeslib.as_array(
                ctypes.cast(made.small, ctypes.POINTER(ctypes.c_uint8)), size
            )
            assert (ours == resize_grey(frame[:, :width], *size)).all(), (height, width, size)


def test_luma_is_pillows_for_every_colour(library):
    steps = np.arange(256, dtype=np.uint8)
    for red in range(0, 256, 5):
        colours = np.full((256, 86, 3), red, np.uint8)
        colours[..., 1], colours[..., 2] = steps[:, None], steps[::3]
        grey = np.empty(colours.shape[:2], np.uint8)
        library.es_grey_from_rgb(
            colours.ctypes.data_as(ctypes.c_void_p), 86, len(colours), ctypes.c_size_t(86 * 3),
            grey.ctypes.data_as(ctypes.c_void_p),
        )  # fmt: skip
        assert (grey == grey_from_frame(colours)).all()


def test_normalisation_is_numpys_to_the_bit(library, canvas):
    frame = np.arange(256, dtype=np.uint8).reshape(16, 16)
    generator = np.random.default_rng(1)
    for mean, std in [(0.33, 0.22), (0.0, 1.0), *generator.uniform(0.01, 1, (200, 2)).tolist()]:
        contract = InputContract(16, 16, mean, std, 0.5)
        assert (
            input_of(library, canvas, frame, contract)
            == input_from_frame(frame, contract).tobytes()
        )


def input_of(library, canvas, frame: np.ndarray, contract: InputContract) -> bytes:
    """Return what C makes of a grey frame: the network's input, every channel of it."""
    made = canvas(contract.height, contract.width, len(contract.classes))
    box = inset_box(library, contract, *frame.shape)
    library.es_resize_grey(
        ctypes.byref(made), frame.ctypes.data_as(ctypes.c_void_p), frame.shape[1], frame.shape[0],
        ctypes.c_size_t(frame.shape[1]), ctypes.byref(box),
    )  # fmt: skip
    ours = np.empty((contract.depth, contract.height, contract.width), np.float32)
    for channel in range(contract.depth):
        library.es_normalise(
            ctypes.byref(made), ctypes.byref(told(contract)), ctypes.byref(box), channel,
            ours.ctypes.data_as(ctypes.c_void_p),
        )  # fmt: skip
    return ours.tobytes()


@pytest.mark.skipif(
    not PILLOW_13,
    reason="Pillow older than 13 resizes in another order of its passes; make install brings 13",
)
def test_letterbox_and_channels_are_numpys_to_the_bit(library, canvas):
    generator = np.random.default_rng(6)
    for index, (height, width) in enumerate(random_sizes(40)):
        frame = generator.integers(0, 256, (height, width), dtype=np.uint8)
        mean, std = generator.uniform(0.01, 1, (2, 3)).tolist()
        contract = InputContract(
            *(48, 64, tuple(mean), tuple(std), 0.5),
            channels=("rgb", "bgr", "grey3")[index % 3],
            resize="letterbox",
            pad=int(generator.integers(0, 256)),
        )
        expected = input_from_frame(frame, contract)
        assert input_of(library, canvas, frame, contract) == expected.tobytes(), (height, width)


def smooth(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Logits like a network's: a few blobs, or none."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    logits = np.full(shape, -4.0)
    for _ in range(generator.integers(0, 4)):
        y, x = generator.uniform(0, shape[0]), generator.uniform(0, shape[1])
        size = generator.uniform(1, 20)
        logits += 9 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / size**2)
    return logits


def mask_of(library, made: Canvas, logits: np.ndarray, contract, height: int, width: int):
    mask = np.full((height, width), 9, np.uint8)
    box = inset_box(library, contract, height, width)
    library.es_mask_from_logits(
        ctypes.byref(made), ctypes.byref(told(contract)), ctypes.byref(box),
        logits.ctypes.data_as(ctypes.c_void_p), width, height,
        mask.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(width),
    )  # fmt: skip
    return mask


def test_mask_from_logits_is_numpys_to_the_bit(library, canvas):
    generator = np.random.default_rng(2)
    made = canvas(48, 64)
    found = 0
    for index, (height, width) in enumerate(random_sizes(150)):
        threshold = float(generator.uniform(0.05, 0.95))
        logits = generator.normal(0, 2, (48, 64)) if index % 3 else smooth(generator, (48, 64))
        logits = logits.astype(np.float32)
        if index % 5 == 0:  # exactly on the level
            logits[generator.random((48, 64)) < 0.2] = np.float32(
                InputContract(48, 64, 0.3, 0.2, threshold).logit_threshold
            )
        contract = InputContract(48, 64, 0.3, 0.2, threshold)
        mask = mask_of(library, made, logits, contract, height, width)
        assert (mask == mask_from_logits(logits, contract, height, width)).all(), (height, width)
        found += bool(mask.any())
    assert found > 50


def test_labels_of_several_classes_are_numpys_to_the_bit(library, canvas):
    generator = np.random.default_rng(3)
    made = canvas(48, 64, 3)
    found = np.zeros(4, int)
    for index, (height, width) in enumerate(random_sizes(120)):
        contract = InputContract(
            *(48, 64, 0.3, 0.2, tuple(generator.uniform(0.05, 0.95, 3).tolist())),
            resize="letterbox" if index % 2 else "stretch",
            classes=("cyst", "benign", "malignant"),
        )
        planes = [
            generator.normal(0, 2, (48, 64)) if index % 3 else smooth(generator, (48, 64))
            for _ in contract.classes
        ]
        logits = np.stack(planes).astype(np.float32)
        if index % 5 == 0:  # two classes alike: the first is meant
            logits[1] = logits[0]
        mask = mask_of(library, made, logits, contract, height, width)
        assert (mask == mask_from_logits(logits, contract, height, width)).all(), (height, width)
        found[np.unique(mask)] += 1
    assert (found > 20).all()


def test_what_is_below_the_least_lesion_is_dropped_as_in_numpy_to_the_bit(library, canvas):
    generator = np.random.default_rng(7)
    made = canvas(48, 64)
    runs = ctypes.create_string_buffer(64 * 32 * 48)
    dropped = 0
    for index in range(200):
        threshold = float(generator.uniform(0.05, 0.9))
        contract = InputContract(
            *(48, 64, 0.3, 0.2, threshold),
            least_area=float(generator.uniform(0, 0.005)) if index % 3 else 0.0,
            least_peak=float(generator.uniform(threshold, 1)) if index % 2 else 0.0,
        )
        logits = generator.normal(-2, 3, (48, 64)) if index % 4 else smooth(generator, (48, 64))
        logits = logits.astype(np.float32)
        ours = dropped_by_c(library, made, logits, contract, (48, 64), runs)
        assert ours.tobytes() == kept_logits(logits, contract).tobytes()
        dropped += (ours != logits).any() and (ours > contract.logit_threshold).any()
    assert dropped > 50


def test_each_class_drops_what_is_below_its_own_least_lesion_where_the_frame_is(library, canvas):
    generator = np.random.default_rng(8)
    made = canvas(48, 64, 2)
    runs = ctypes.create_string_buffer(64 * 32 * 48)
    dropped = 0
    for height, width in random_sizes(60):
        contract = InputContract(
            *(48, 64, 0.3, 0.2, 0.5),
            least_area=(0.01, 0.0),
            least_peak=(0.0, float(generator.uniform(0.6, 1))),
            resize="letterbox",
            classes=("benign", "malignant"),
        )
        logits = generator.normal(-2, 3, (2, 48, 64)).astype(np.float32)
        expected = logits.copy()
        inside = (slice(None), *inset_of(contract, height, width).box)
        expected[inside] = kept_logits(logits[inside], contract)
        ours = dropped_by_c(library, made, logits, contract, (height, width), runs)
        assert ours.tobytes() == expected.tobytes()
        dropped += (ours != logits).any()
    assert dropped > 30


def dropped_by_c(library, made, logits, contract, size, runs) -> np.ndarray:
    ours = logits.copy()
    box = inset_box(library, contract, *size)
    if library.es_contract_drops(ctypes.byref(told(contract))):
        library.es_drop_components(
            ctypes.byref(made), ctypes.byref(told(contract)), ctypes.byref(box),
            ours.ctypes.data_as(ctypes.c_void_p), runs,
        )  # fmt: skip
    return ours


@pytest.mark.parametrize("density", [0.03, 0.4, 0.6, 0.95])
def test_components_are_those_of_python(library, density):
    generator = np.random.default_rng(4)
    for _ in range(60):
        height, width = generator.integers(1, 40, 2).tolist()
        mask = (generator.random((height, width)) < density).astype(np.uint8)
        runs = ctypes.create_string_buffer(64 * ((width + 1) // 2) * height)
        for call, reference in (
            (library.es_fill_holes, fill_holes),
            (library.es_keep_largest, keep_largest),
        ):
            ours = mask.copy()
            call(ours.ctypes.data_as(ctypes.c_void_p), width, height, runs)
            assert (ours == reference(mask)).all()


# --- sessions over the stub: layout, options, refusals -------------------------------------------


@pytest.mark.parametrize("options", [{}, {"fill_holes": 1}, {"largest_only": 1, "fill_holes": 1}])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_session_with_layout_and_options_is_pythons(open_c, tmp_path, options, channels):
    layout = Layout(
        *(120, 100, (9, 5, 111, 97)),
        blank=((20, 20, 40, 30), (100, 0, 120, 50)),
        fan=((60, 0), (119, 70), (60, 99), (2, 65)),
    )
    session = open_c(stub_bundle(tmp_path / "b", layout=layout.to_dict()), "stub", **options)
    generator = np.random.default_rng(5)
    for _ in range(5):
        small = generator.integers(0, 256, (12, 15, *channels), dtype=np.uint8)
        frame = np.asarray(Image.fromarray(small).resize((120, 100)))
        crop = grey_from_frame(layout.crop_of(frame)) * layout.keep
        mask = mask_from_logits(stub_logits(crop, CONTRACT), CONTRACT, *crop.shape) & layout.keep
        if options.get("fill_holes"):
            mask = fill_holes(mask) & layout.keep
        if options.get("largest_only"):
            mask = keep_largest(mask)
        assert mask.any()
        assert (session.predict(frame) == layout.paste(mask)).all()
    assert session.selftest().bit_equal == 2  # of other sizes: without layout and options


@pytest.mark.parametrize("size", [(20, 25), (48, 64), (150, 260)])
def test_session_drops_what_python_drops(open_c, tmp_path, size):
    folder = stub_bundle(tmp_path / "b", contract=LEAST)
    session = open_c(folder, "stub", max_width=size[1], max_height=size[0])
    generator = np.random.default_rng(8)
    changed = 0
    for _ in range(20):
        frame = generator.integers(0, 256, (9, 12), dtype=np.uint8)
        frame = np.asarray(Image.fromarray(frame).resize(size[::-1]))
        logits = stub_logits(frame, LEAST)
        expected = mask_from_logits(logits, LEAST, *size)
        assert (session.predict(frame) == expected).all()
        changed += (expected != mask_from_logits(logits, CONTRACT, *size)).any()
    assert changed > 2


def test_golden_frame_with_a_dropped_component_proves_the_least_lesion(open_c, tmp_path):
    folder = stub_bundle(tmp_path / "b")  # masks without a least lesion
    reseal(folder, lambda content: content["contract"].update(least_peak=0.999999))
    with pytest.raises(
        Failed, match=r"E-SELFTEST: vectors/frame-[01]\.pgm: .* of the lesion differs"
    ):
        open_c(folder, "stub").selftest()


@pytest.mark.parametrize(
    "least",
    [
        *({"least_area": value} for value in (1, -0.1, "0", None)),
        *({"least_peak": value} for value in (1, 0.4, -0.1, None)),
        {"more": 0},
    ],
)
def test_least_lesion_out_of_range_and_other_fields_of_a_contract_are_refused(
    open_c, tmp_path, least
):
    folder = stub_bundle(tmp_path / "b")
    reseal(folder, lambda content: content["contract"].update(least))
    with pytest.raises(Failed, match="E-MANIFEST-FIELD"):
        open_c(folder, "stub")


@pytest.mark.parametrize(
    "values",
    [
        *({"mean": value} for value in (-0.01, 1.01, 127.5, "0.5", None)),
        *({"std": value} for value in (0, -0.1, 1.01, 58, "0.2", None)),
    ],
)
def test_normalisation_out_of_range_is_refused_as_python_does(open_c, tmp_path, values):
    folder = stub_bundle(tmp_path / "b")
    reseal(folder, lambda content: content["contract"].update(values))
    with pytest.raises(InputError) as caught:
        InputContract.from_dict({**CONTRACT.to_dict(), **values})
    assert caught.value.code == "E-CONTRACT"
    with pytest.raises(Failed, match="E-MANIFEST-FIELD"):
        open_c(folder, "stub")


@pytest.mark.parametrize("values", [{"mean": 0, "std": 1}, {"mean": 1, "std": 1e-3}])
def test_normalisation_at_the_ends_of_its_range_is_taken(open_c, tmp_path, values):
    folder = stub_bundle(tmp_path / "b")
    reseal(folder, lambda content: content["contract"].update(values))
    open_c(folder, "stub")


def test_frames_of_any_stride_and_colour_are_taken(open_c, tmp_path):
    session = open_c(stub_bundle(tmp_path / "b"), "stub", max_width=300, max_height=200)
    wide = np.random.default_rng(6).integers(0, 256, (200, 330, 3), dtype=np.uint8)
    for frame in (wide[:, :300, 1].copy(), wide[:150, 5:305], wide[:, :300], wide[:1, :1]):
        grey = grey_from_frame(frame)
        expected = mask_from_logits(stub_logits(grey, CONTRACT), CONTRACT, *grey.shape)
        assert (session.predict(frame) == expected).all()


@pytest.mark.parametrize(
    ("shape", "stride", "code"),
    [
        ((0, 5), 5, "E-ARGUMENT"),
        ((5, 0), 0, "E-ARGUMENT"),
        ((5, 5), 4, "E-ARGUMENT"),
        ((5, 5, 3), 14, "E-ARGUMENT"),
        ((5, 5), -5, "E-ARGUMENT"),
        ((5, 301), 301, "E-FRAME"),
        ((201, 5), 5, "E-FRAME"),
    ],
)
def test_frame_that_cannot_be_taken_is_refused_and_the_mask_untouched(
    open_c, tmp_path, shape, stride, code
):
    session = open_c(stub_bundle(tmp_path / "b"), "stub", max_width=300, max_height=200)
    with pytest.raises(Failed, match=f"{code}: .*[0-9]"):
        session.predict(np.zeros(shape, np.uint8), stride)


def test_frame_of_another_size_than_the_layouts_is_refused(open_c, tmp_path):
    layout = {"width": 60, "height": 50, "crop": [0, 0, 60, 50]}
    session = open_c(stub_bundle(tmp_path / "b", layout=layout), "stub")
    with pytest.raises(Failed, match=r"E-FRAME: frame of 59x50 px; the layout is of 60x50"):
        session.predict(np.zeros((50, 59), np.uint8))


@pytest.mark.parametrize(
    ("what", "code"), [("nan", "E-ENGINE-RESULT"), ("fail", "E-ENGINE-RUN: stub: failed")]
)
def test_engine_that_fails_gives_an_error_and_no_mask(open_c, tmp_path, what, code):
    session = open_c(stub_bundle(tmp_path / "b", what), "stub")
    with pytest.raises(Failed, match=code):
        session.predict(np.zeros((9, 9), np.uint8))
    with pytest.raises(Failed, match=code):
        session.selftest()


def damage(name: str) -> Callable[[Path], None]:
    """Return what makes a bundle one that must be refused."""

    def field(**values) -> Callable[[Path], None]:
        return lambda folder: reseal(folder, lambda content: content.update(values))

    def flip(folder: Path) -> None:
        content = bytearray((folder / "model.stub").read_bytes())
        content[0] ^= 1
        (folder / "model.stub").write_bytes(content)

    def link(folder: Path) -> None:
        (folder / "model.stub").rename(folder.parent / "model.stub")
        (folder / "model.stub").symlink_to(folder.parent / "model.stub")

    def golden(folder: Path) -> None:
        (folder / "vectors/stub-0.pgm").write_bytes(b"P5\n1 1\n255\nx")
        with_new_hashes(folder)

    def with_new_hashes(folder: Path) -> None:
        reseal(
            folder,
            lambda content: content["files"].update(
                {
                    name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
                    for name in content["files"]
                }
            ),
        )

    def two_keys(folder: Path) -> None:
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text.replace("{", '{"target": "x",', 1))
        rehash(folder)

    def not_json(folder: Path) -> None:
        (folder / "manifest.json").write_bytes(b"[" * 100_000)
        rehash(folder)

    def refuse(folder: Path) -> None:
        (folder / "model.stub").write_text("refuse")
        with_new_hashes(folder)

    layout = {"width": 60, "height": 50, "crop": [0, 0, 60, 50]}
    return {
        "a byte changed": flip,
        "a file removed": lambda folder: (folder / "model.stub").unlink(),
        "a file added": lambda folder: (folder / "more").write_text("x"),
        "a file added below": lambda folder: (folder / "vectors/more").write_text("x"),
        "a file as link": link,
        "manifest as link": lambda folder: (
            (folder / "manifest.json").rename(folder.parent / "m"),
            (folder / "manifest.json").symlink_to(folder.parent / "m"),
        ),
        "a folder as link": lambda folder: (folder / "more").symlink_to(folder.parent),
        "a pipe": lambda folder: os.mkfifo(folder / "more"),
        "no manifest": lambda folder: (folder / "manifest.json").unlink(),
        "no sums": lambda folder: (folder / "SHA256SUMS").unlink(),
        "no folder": shutil.rmtree,
        "large manifest": lambda folder: (folder / "manifest.json").write_bytes(
            b" " * (MAX_MANIFEST_BYTES + 1)
        ),
        "large sums": lambda folder: (folder / "SHA256SUMS").write_bytes(b" " * (1 << 21)),
        "newer schema": field(schema="edgeseg.bundle/4.0"),
        "a need of the CPU in schema 2": field(cpu=["vnni"]),
        "contract 2 in schema 2": field(contract={**CONTRACT.to_dict(), "channels": "rgb"}),
        "older schema": field(schema="edgeseg.bundle/1"),
        "no schema": field(schema="edgeseg.bundle/2.x"),
        "no json": not_json,
        "a key twice": two_keys,
        "another name": field(name=7),
        "a file more in files": lambda folder: reseal(
            folder, lambda content: content["files"].update({"more": "0" * 64})
        ),
        "another hash in files": lambda folder: reseal(
            folder, lambda content: content["files"].update({"model.stub": "0" * 64})
        ),
        "a model that is no file": field(models={"stub": ["manifest.json"]}),
        "a model outside": field(models={"stub": ["../x.stub"]}),
        "width 17": field(contract={**CONTRACT.to_dict(), "width": 17}),
        "std 0": field(contract={**CONTRACT.to_dict(), "std": 0}),
        "a number as text": field(contract={**CONTRACT.to_dict(), "mean": "0"}),
        "crop outside": field(layout={**layout, "crop": [0, 0, 61, 50]}),
        "fan of two": field(layout={**layout, "fan": [[0, 0], [1, 1]]}),
        "nothing kept": field(layout={**layout, "blank": [[0, 0, 60, 50]]}),
        "golden mask of another size": golden,
        "model refused": refuse,
    }[name]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("a byte changed", "E-BUNDLE-HASH: model.stub "),
        ("a file removed", "E-BUNDLE-HASH: model.stub "),
        ("a file added", "E-BUNDLE-HASH: more "),
        ("a file added below", "E-BUNDLE-HASH: vectors/more "),
        ("a file as link", "E-BUNDLE-LINK: model.stub "),
        ("manifest as link", "E-BUNDLE-LINK: manifest.json "),
        ("a folder as link", "E-BUNDLE-LINK: more "),
        ("a pipe", "E-BUNDLE-LINK: more "),
        ("no manifest", "E-BUNDLE-MISSING"),
        ("no sums", "E-BUNDLE-MISSING"),
        ("no folder", "E-BUNDLE-MISSING"),
        ("large manifest", "E-MANIFEST-SIZE"),
        ("large sums", "E-MANIFEST-SIZE"),
        ("newer schema", "E-MANIFEST-NEWER: bundle schema is edgeseg.bundle/4.0, .*/2.x to 3"),
        ("a need of the CPU in schema 2", r"E-MANIFEST-FIELD: .*\(cpu\)"),
        ("contract 2 in schema 2", r"E-MANIFEST-FIELD: .*\(contract\)"),
        ("older schema", "E-MANIFEST-NEWER"),
        ("no schema", "E-MANIFEST-NEWER"),
        ("no json", "E-MANIFEST-FIELD"),
        ("a key twice", "E-MANIFEST-FIELD"),
        ("another name", "E-MANIFEST-FIELD"),
        ("a file more in files", "E-MANIFEST-FIELD"),
        ("another hash in files", "E-MANIFEST-FIELD"),
        ("a model that is no file", "E-MANIFEST-FIELD"),
        ("a model outside", "E-MANIFEST-FIELD"),
        ("width 17", r"E-MANIFEST-FIELD: .*\(contract\)"),
        ("std 0", r"E-MANIFEST-FIELD: .*\(contract\)"),
        ("a number as text", r"E-MANIFEST-FIELD: .*\(contract\)"),
        ("crop outside", r"E-MANIFEST-FIELD: .*\(layout\)"),
        ("fan of two", r"E-MANIFEST-FIELD: .*\(layout\)"),
        ("nothing kept", "E-MANIFEST-FIELD: layout keeps no pixel"),
        ("golden mask of another size", "E-PGM: vectors/frame-0.pgm "),
        ("model refused", "E-ENGINE-LOAD: stub: refused"),
    ],
)
def test_damaged_bundle_is_refused_by_name(open_c, tmp_path, name, code):
    folder = stub_bundle(tmp_path / "b")
    open_c(folder, "stub")  # it was whole
    damage(name)(folder)
    with pytest.raises(Failed, match=code):
        open_c(folder, "stub")


@pytest.mark.parametrize(
    "change",
    [
        {"channels": "yuv"},
        {"channels": 3},
        {"mean": [0.3]},
        {"mean": [0.3, 0.3, "0.3"]},
        {"std": [0.2, 0.2, 0]},
        {"resize": "crop"},
        {"pad": 256},
        {"pad": 1, "resize": "stretch"},
        {"head": "logits"},
        {"classes": []},
        {"classes": "lesion"},
        {"classes": ["a", "a", "b", "c"]},
        {"classes": ["a", "b", "c", "background"]},
        {"classes": ["a", "b", "c", "d\n"]},
        {"classes": ["a", "b", "c", "d" * 64]},
        {"classes": ["a", "b", "c"]},
        {"classes": [*map(str, range(17))], "threshold": 0.5, "least_area": 0.0},
        {"threshold": [0.3, 0.5, 0.4, 1.0]},
        {"least_peak": [0.0, 0.5, 0.0, 0.0]},
        {"least_area": [0.0, 0.0, 0.0, 1.0]},
        {"more": 1},
    ],
)
def test_contract_2_that_python_refuses_is_refused(open_c, tmp_path, change):
    folder = stub_bundle(tmp_path / "b", contract=SEVERAL)
    reseal(folder, lambda content: content["contract"].update(change))
    with pytest.raises(EdgesegError, match="E-MANIFEST-FIELD"):
        open_bundle(folder)
    with pytest.raises(Failed, match=r"E-MANIFEST-FIELD: .*\(contract\)"):
        open_c(folder, "stub")


@pytest.mark.parametrize("channels", ["grey", "grey3", "rgb", "bgr"])
@pytest.mark.parametrize("resize", ["stretch", "letterbox"])
def test_labels_of_several_classes_are_pythons(open_c, tmp_path, channels, resize):
    norms = {} if channels != "grey" else {"mean": 0.3, "std": 0.2}
    pad = 100 if resize == "letterbox" else 0
    contract = replace(SEVERAL, channels=channels, resize=resize, pad=pad, **norms)
    folder = stub_bundle(tmp_path / "b", contract=contract)
    session = open_c(folder, "stub", max_width=300, max_height=300)
    assert session.selftest().bit_equal == 2
    generator = np.random.default_rng(5)
    found = set()
    for height, width in ((48, 64), (90, 300), (300, 41), (7, 250), (131, 97)):
        grey = resize_grey(generator.integers(0, 256, (9, 7), np.uint8), height, width)
        colour = np.stack([grey, np.rot90(grey, 2), 255 - grey], axis=2)
        for frame in (grey, colour, np.ascontiguousarray(colour[:, ::-1])):
            expected = mask_from_logits(stub_logits(frame, contract), contract, height, width)
            assert (session.predict(frame) == expected).all(), (height, width, frame.ndim)
            found |= set(np.unique(expected).tolist())
    # Of a network that takes grey all classes are alike here, and the one easiest to reach wins.
    assert len(found) > (2 if contract.takes_colour else 1)


def test_layout_of_a_network_that_takes_colour_is_pythons(open_c, tmp_path):
    layout = Layout(
        90, 70, (10, 5, 80, 65), blank=((10, 5, 30, 20),), fan=((45, 0), (90, 70), (0, 70))
    )
    folder = stub_bundle(tmp_path / "b", contract=SEVERAL, layout=layout.to_dict())
    session = open_c(folder, "stub")
    colour = np.random.default_rng(6).integers(0, 256, (70, 90, 3), np.uint8)
    for frame in (colour, np.ascontiguousarray(colour[:, :, 0])):
        keep = layout.keep if frame.ndim == 2 else layout.keep[:, :, None]
        crop = layout.crop_of(frame) * keep
        mask = mask_from_logits(stub_logits(crop, SEVERAL), SEVERAL, *crop.shape[:2])
        assert (session.predict(frame) == layout.paste(mask * layout.keep)).all()


@pytest.mark.parametrize("options", [{"largest_only": 1}, {"fill_holes": 1}])
def test_options_of_one_class_are_refused_for_several(open_c, tmp_path, options):
    folder = stub_bundle(tmp_path / "b", contract=SEVERAL)
    with pytest.raises(Failed, match=r"E-ARGUMENT: .* one class; this one has 4"):
        open_c(folder, "stub", **options)


def test_golden_mask_of_another_class_is_refused(open_c, tmp_path):
    folder = stub_bundle(tmp_path / "b", contract=SEVERAL)
    mask = folder / "vectors/stub-0.pgm"
    header, pixels = mask.read_bytes()[:-1200], np.frombuffer(mask.read_bytes()[-1200:], np.uint8)
    assert pixels.any()
    mask.write_bytes(header + np.where(pixels, pixels % 4 + 1, 0).astype(np.uint8).tobytes())
    digest = hashlib.sha256(mask.read_bytes()).hexdigest()
    reseal(folder, lambda content: content["files"].update({"vectors/stub-0.pgm": digest}))
    with pytest.raises(Failed, match=r"E-SELFTEST: vectors/frame-0.pgm: 100\.00 %"):
        open_c(folder, "stub").selftest()


@pytest.fixture(scope="session")
def located(request, frames_of, made_once):
    """A trained network of three channels and four classes, background among them."""
    trained = request.getfixturevalue("run")
    frames = frames_of("int8")
    return made_once("located-int8", lambda out: export_located(trained, frames, out))


def test_several_classes_of_a_real_network_are_pythons_to_the_bit(open_c, located, engine):
    session = open_c(located, engine, max_width=600, max_height=600)
    result = session.selftest()
    assert result.bit_equal == result.frames > 3
    theirs = open_session(located, engine=engine, threads=1)
    labels = set()
    for seed in range(6):
        grey = draw_phantom("malignant", seed, 100)[0]
        for frame in (grey, in_colour(grey)):
            expected = theirs.predict(frame)
            assert (session.predict(np.ascontiguousarray(frame)) == expected).all()
            labels |= set(np.unique(expected).tolist())
    assert len(labels) > 2


def test_example_tells_the_classes_and_takes_colour(built, located, engine):
    example = (built / "edgeseg-predict", located, "--engine", engine, "--threads", "1")
    told = run(*example, "--info").stdout.decode()
    assert "3 channels of colour\nlabel 1: left\nlabel 2: upper right\n" in told
    frame = in_colour(draw_phantom("benign", 1, 7)[0])
    expected = open_session(located, engine=engine, threads=1).predict(frame)
    assert run(*example, input=pnm_from_pixels(frame)).stdout == pnm_from_pixels(expected)


def test_our_library_does_not_allocate_for_several_classes(built, located, engine):
    done = run(built / "edgeseg-allocations", located, engine)
    opening, ours, _, _ = map(int, done.stdout.split())
    assert done.returncode == 0
    assert opening > 10
    assert ours == 0


@pytest.mark.parametrize("name", available_names())
def test_shipped_student_leaves_black_frames_and_speckle_unmarked(
    open_c, shipped_int8, engine, name
):
    session = open_c(shipped_int8(name), engine)
    for each in empty_frames():
        assert not session.predict(np.ascontiguousarray(each.frame)).any(), each.name
    # A frame with a lesion is marked, so the session does see what it is shown.
    assert session.predict(draw_phantom("malignant", 1, 7)[0]).any()


def test_newer_minor_with_unknown_fields_is_read(open_c, tmp_path):
    folder = stub_bundle(tmp_path / "b")
    reseal(folder, lambda content: content.update(schema="edgeseg.bundle/2.9", more={"a": [1]}))
    assert open_c(folder, "stub").selftest().bit_equal == 2


def test_what_a_cpu_has_is_read_from_its_registers(library):
    vnni, bf16, amx = (library.es_cpu_need(name) for name in (b"vnni", b"bf16", b"amx"))
    assert sorted({vnni, bf16, amx, library.es_cpu_need(b"avx99")}) == [0, 1, 2, 4]
    library.es_cpu_read.argtypes = (*[ctypes.c_uint32] * 3, ctypes.c_uint64)
    avx, avx512, tiles = 0x6, 0xE6, 0x600E6  # XCR0
    avx512_vnni, tile, amx_int8, amx_bf16 = 1 << 11, 1 << 24, 1 << 25, 1 << 22
    avx_vnni, avx512_bf16 = 1 << 4, 1 << 5
    assert library.es_cpu_read(0, 0, 0, tiles) == 0
    assert library.es_cpu_read(avx512_vnni, 0, 0, avx512) == vnni
    assert library.es_cpu_read(avx512_vnni, 0, 0, avx) == 0  # the system does not save ZMM
    assert library.es_cpu_read(0, 0, avx_vnni, avx) == vnni
    assert library.es_cpu_read(0, 0, avx_vnni, 0) == 0
    assert library.es_cpu_read(0, 0, avx512_bf16, avx512) == bf16
    assert library.es_cpu_read(0, tile | amx_bf16, 0, tiles) == bf16
    assert library.es_cpu_read(0, tile | amx_bf16 | amx_int8, 0, tiles) == bf16 | amx
    assert library.es_cpu_read(0, tile | amx_bf16 | amx_int8, 0, avx512) == 0
    assert library.es_cpu_read(0, amx_bf16 | amx_int8, 0, tiles) == 0


@pytest.mark.parametrize("needed", FEATURES)
def test_bundle_that_needs_what_the_cpu_lacks_is_refused_by_name(library, open_c, tmp_path, needed):
    folder = stub_bundle(tmp_path / "b")
    reseal(folder, lambda content: content.update(NEEDS, cpu=[needed]))
    if missing_features([needed]):  # as Python finds it on this CPU
        with pytest.raises(Failed, match=f"E-CPU-FEATURE: the bundle needs {needed} "):
            open_c(folder, "stub")
    else:
        assert open_c(folder, "stub").selftest().bit_equal == 2
    bit = library.es_cpu_need(needed.encode())
    message = ctypes.create_string_buffer(256)
    assert library.es_cpu_lacks(bit, 7 & ~bit, message) == -ERRORS["E-CPU-FEATURE"]
    assert message.value.startswith(f"the bundle needs {needed} ({sorted_flags(needed)}".encode())
    assert library.es_cpu_lacks(bit, bit, message) == library.es_cpu_lacks(0, 0, message) == 0


def sorted_flags(needed: str) -> str:
    return "+".join(sorted(FEATURES[needed][0]))


def test_older_cpu_under_an_emulator_refuses_what_it_lacks(tmp_path):
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if qemu is None or platform.machine() != "x86_64":
        pytest.skip("no qemu-x86_64 on an x86 CPU; .ci/packages installs it, as root")
    folder = stub_bundle(tmp_path / "b")
    pure = build(tmp_path / "pure", "-DEDGESEG_TESTS=ON", UNOPTIMISED)
    program = tmp_path / "open"
    source = tmp_path / "open.c"
    source.write_text(
        '#include <stdio.h>\n#include "edgeseg.h"\n'
        "int main(int count, char **words) { char text[ES_MESSAGE_BYTES]; es_session *s = NULL;"
        " (void)count; int status = es_open(words[1], NULL, &s, text);"
        ' printf("%s: %s\\n", es_code(status), text); es_close(s); return 0; }\n'
    )
    linked = (f"-I{SOURCE / 'include'}", f"-L{pure}", "-ledgeseg-testing", f"-Wl,-rpath,{pure}")
    done = run("gcc", source, "-o", program, *linked)
    assert done.returncode == 0, done.stderr.decode()
    opened = run(qemu, "-cpu", "Haswell", program, folder)
    assert opened.stdout.startswith(b"OK: ")
    for needed in FEATURES:
        reseal(folder, lambda content, needed=needed: content.update(NEEDS, cpu=[needed]))
        told = run(qemu, "-cpu", "Haswell", program, folder).stdout
        assert told.startswith(f"E-CPU-FEATURE: the bundle needs {needed} ".encode())


@pytest.mark.parametrize("names", [["avx99"], ["vnni", "avx99"]])
def test_bundle_that_needs_something_unknown_of_the_cpu_is_refused(open_c, tmp_path, names):
    folder = stub_bundle(tmp_path / "b")
    reseal(folder, lambda content: content.update(NEEDS, cpu=names))
    with pytest.raises(Failed, match="E-CPU-FEATURE: the bundle needs 'avx99' of the CPU"):
        open_c(folder, "stub")


@pytest.mark.parametrize("field", ["vnni", [1], ["x" * 40], {"vnni": 1}])
def test_malformed_need_of_the_cpu_is_refused(open_c, tmp_path, field):
    folder = stub_bundle(tmp_path / "b")
    reseal(folder, lambda content: content.update(NEEDS, cpu=field))
    with pytest.raises(Failed, match=r"E-MANIFEST-FIELD: .*\(cpu\)"):
        open_c(folder, "stub")


@pytest.mark.parametrize("name", ["a b", ".hidden", "vectors/-x", "a" * 201])
def test_file_whose_name_is_not_plain_is_refused(open_c, tmp_path, name):
    folder = stub_bundle(tmp_path / "b")
    (folder / name).write_bytes(b"x")
    reseal(
        folder, lambda content: content["files"].update({name: hashlib.sha256(b"x").hexdigest()})
    )
    with pytest.raises(Failed, match="E-BUNDLE-NAME: a file is named '"):
        open_c(folder, "stub")


def test_signature_beside_the_sums_is_left_to_who_has_the_key(open_c, tmp_path):
    folder = stub_bundle(tmp_path / "b")
    (folder / "model.sig").write_bytes(b"anything")
    assert open_c(folder, "stub").selftest().bit_equal == 2


def test_signature_that_nobody_asks_for_is_not_read(built, tmp_path):
    folder = stub_bundle(tmp_path / "b")
    with (folder / "model.sig").open("wb") as file:
        file.truncate(1 << 40)  # takes no space on disk, and hours to read
    assert run(built / "edgeseg-predict", folder, "--verify", timeout=60).returncode == 0


def test_link_in_the_place_of_a_signature_is_refused_without_a_key(open_c, tmp_path):
    folder = stub_bundle(tmp_path / "b")
    (folder / "model.sig").symlink_to(folder / "model.stub")
    with pytest.raises(Failed, match=r"E-BUNDLE-LINK: model\.sig "):
        open_c(folder, "stub")


def test_engine_that_is_not_there_is_named(open_c, tmp_path):
    folder = stub_bundle(tmp_path / "b")
    with pytest.raises(Failed, match=r"E-ENGINE-NOT-IN-BUNDLE: .*'openvino'"):
        open_c(folder, "openvino")
    with pytest.raises(Failed, match="E-EXTRA-MISSING: engine 'elsewhere' is not compiled in"):
        open_c(folder, "elsewhere")
    reseal(folder, lambda content: content.update(models={"elsewhere": ["model.stub"]}))
    with pytest.raises(Failed, match="E-EXTRA-MISSING: no engine of the bundle is compiled in"):
        open_c(folder)


def test_selftest_refuses_a_mask_that_differs_and_a_bundle_without_vectors(open_c, tmp_path):
    folder = stub_bundle(tmp_path / "b")
    mask = folder / "vectors/stub-1.pgm"
    mask.write_bytes(mask.read_bytes()[:-2000] + bytes(2000))
    digest = hashlib.sha256(mask.read_bytes()).hexdigest()
    reseal(folder, lambda content: content["files"].update({"vectors/stub-1.pgm": digest}))
    with pytest.raises(Failed, match=r"E-SELFTEST: vectors/frame-1.pgm: .* over 1.00 %"):
        open_c(folder, "stub").selftest()
    reseal(folder, lambda content: content.pop("vectors"))
    with pytest.raises(Failed, match="E-SELFTEST: the bundle has no golden vectors of stub"):
        open_c(folder, "stub").selftest()


def test_no_changed_byte_of_any_file_is_accepted(built, tmp_path):
    folder = stub_bundle(tmp_path / "b")
    tried = run(built / "edgeseg-tamper", folder, "23")
    assert tried.returncode == 0, tried.stdout
    positions, accepted = map(int, tried.stdout.split())
    assert positions > 1000
    assert accepted == 0


def test_two_threads_get_right_masks_or_busy(built, tmp_path):
    done = run(built / "edgeseg-threads", stub_bundle(tmp_path / "b", "3"), "stub")
    answered, busy = map(int, done.stdout.split())
    assert done.returncode == 0
    assert answered >= 100
    assert busy > 0


@pytest.mark.parametrize(
    "contract", [CONTRACT, LEAST, SEVERAL], ids=["plain", "least lesion", "several classes"]
)
def test_nothing_in_the_process_allocates_after_open(built, tmp_path, contract):
    folder = stub_bundle(tmp_path / "b", contract=contract)
    done = run(built / "edgeseg-allocations", folder, "stub")
    opening, ours, others, _ = map(int, done.stdout.split())
    assert done.returncode == 0
    assert opening > 10
    assert ours == others == 0


def cycles(built: Path, bundle: Path, engine: str, count: int) -> np.ndarray:
    """Open, use and close a bundle; return [cycle, (blocks of ours, files, heap, resident)]."""
    done = run(built / "edgeseg-cycles", bundle, engine, str(count))
    assert done.returncode == 0, (done.stdout, done.stderr)
    return np.array([line.split() for line in done.stdout.splitlines()], int)


def test_nothing_is_left_after_closing(built, tmp_path):
    found = cycles(built, stub_bundle(tmp_path / "b"), "stub", 100)
    ours, files, heap_kib, _ = found.T
    assert len(found) == 100
    assert (ours == 0).all()
    assert (files == files[0]).all()
    assert (heap_kib[50:] == heap_kib[-1]).all()  # what malloc keeps at hand fills at first


# --- packed into one file ------------------------------------------------------------------------


@pytest.fixture
def code_of(library):
    """How es_verify answers, the same as Python's open_bundle: (bundle, key) -> code."""

    def verify(bundle: Path, key: Path | None = None) -> str:
        message = ctypes.create_string_buffer(256)
        status = library.es_verify(str(bundle).encode(), key and str(key).encode(), message)
        assert "\n" not in message.value.decode()
        return library.es_code(status).decode()

    def python(bundle: Path, key: Path | None) -> str:
        try:
            open_bundle(bundle, key=key)
        except EdgesegError as error:
            return error.code
        return "OK"

    def both(bundle: Path, key: Path | None = None) -> str:
        found = verify(bundle, key)
        assert found == python(bundle, key)
        return found

    return both


def archive_of(
    files: Iterable[tuple[str, bytes]],
    *,
    flags: int = 0,
    method: int = 0,
    date: int = 33,
    extra: bytes = b"",
    comment: bytes = b"",
    inside: bytes = b"",
    between: bytes = b"",
    behind: bytes = b"",
    local_name: str | None = None,
    crc_change: int = 0,
    more_files: int = 0,
) -> bytes:
    """Return an archive; without options, of sorted files, in the canonical form."""
    body, directory, count = b"", b"", 0
    for name, content in files:
        facts = (zlib.crc32(content) ^ crc_change, len(content), len(content))
        raw, local = name.encode(), (local_name or name).encode()
        offset = len(body) + len(inside)
        body += struct.pack(
            "<4s5H3L2H", b"PK\3\4", 10, flags, method, 0, date, *facts, len(local), len(extra)
        )
        body += local + extra + inside + content + between
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 3 << 8 | 10, 10, flags, method, 0, date, *facts,
            *(len(raw), len(extra), len(comment), 0, 0, 0o100644 << 16, offset),
        )  # fmt: skip
        directory += raw + extra + comment
        count += 1
    count += more_files
    body += behind
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + end


def files_of(folder: Path) -> list[tuple[str, bytes]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return [(name, (folder / name).read_bytes()) for name in names]


def test_packed_bundle_is_the_same_bundle(open_c, code_of, tmp_path):
    layout = {"width": 60, "height": 50, "crop": [10, 0, 60, 50]}
    folder = stub_bundle(tmp_path / "b", layout=layout)
    pack_bundle(folder, tmp_path / "b.edgeseg")
    assert (tmp_path / "b.edgeseg").read_bytes() == archive_of(files_of(folder))
    assert code_of(tmp_path / "b.edgeseg") == "OK"
    frame = np.random.default_rng(7).integers(0, 256, (50, 60), dtype=np.uint8)
    packed, plain = open_c(tmp_path / "b.edgeseg", "stub"), open_c(folder, "stub")
    assert (packed.predict(frame) == plain.predict(frame)).all()
    assert packed.selftest().bit_equal == 2


def test_no_changed_byte_of_a_packed_bundle_is_accepted(built, tmp_path):
    pack_bundle(stub_bundle(tmp_path / "b"), tmp_path / "b.edgeseg")
    tried = run(built / "edgeseg-tamper", tmp_path / "b.edgeseg", "23")
    assert tried.returncode == 0, tried.stdout
    positions, accepted = map(int, tried.stdout.split())
    assert positions > 1000
    assert accepted == 0


def with_files(**options) -> Callable[[list[tuple[str, bytes]]], bytes]:
    return lambda files: archive_of(files, **options)


def by_zipfile(files: list[tuple[str, bytes]], *, method: int = 0, zip64: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with archive.open(info, "w", force_zip64=zip64) as member:
                member.write(content)
    return out.getvalue()


SMALL = [("a", b"1"), ("b", b"2")]
ARCHIVES = {
    "another date": with_files(date=34),
    "a flag": with_files(flags=1 << 11),
    "compressed, it says": with_files(method=8),
    "compressed": lambda files: by_zipfile(files, method=zipfile.ZIP_DEFLATED),
    "of zipfile": by_zipfile,
    "zip64": lambda files: by_zipfile(files, zip64=True),
    "extra fields": with_files(extra=b"ux\x01\x00\x00"),
    "a comment of a file": with_files(comment=b"x"),
    "a byte in front of a content": with_files(inside=b"\0"),
    "bytes between": with_files(between=b"\0"),
    "bytes behind the last file": with_files(behind=b"\0"),
    "another name in front": with_files(local_name="manifest.json"),
    "wrong CRC-32": with_files(crc_change=1),
    "a file more, it says": with_files(more_files=1),
    "a file less, it says": with_files(more_files=-1),
    "names not sorted": lambda files: archive_of(reversed(files)),
    "a name twice": lambda files: archive_of([files[0], *files]),
    "up": lambda files: archive_of([("../x", b""), *files]),
    "absolute": lambda files: archive_of([("/x", b""), *files]),
    "up in the middle": lambda files: archive_of([("A/../../x", b""), *files]),
    "a backslash": lambda files: archive_of([("A\\x", b""), *files]),
    "a folder": lambda files: archive_of([("A/", b""), *files]),
    "a zero": lambda files: archive_of([("A\0", b""), *files]),
    "not ASCII": lambda files: archive_of([("A\xe9", b""), *files]),
    "empty name": lambda files: archive_of([("", b""), *files]),
    "long name": lambda files: archive_of([("A" * 201, b""), *files]),
    "a file named as a folder": lambda files: archive_of(
        sorted([*files, ("vectors", b""), ("vectors-x", b"")])
    ),
    "a byte behind": lambda files: archive_of(files) + b"\0",
    "a byte in front": lambda files: b"\0" + archive_of(files),
    "an archive behind": lambda files: archive_of(files) + archive_of(SMALL),
    "an archive in front": lambda files: archive_of(SMALL) + archive_of(files),
    "cut": lambda files: archive_of(files)[:-1],
    "only its end": lambda files: archive_of(files)[-22:],
    "empty": lambda files: b"",
    "no files": lambda files: archive_of([]),
    "no manifest": lambda files: archive_of([each for each in files if each[0] != "manifest.json"]),
    "no sums": lambda files: archive_of([each for each in files if each[0] != "SHA256SUMS"]),
    "a file added": lambda files: archive_of(sorted([*files, ("more", b"x")])),
    "a file removed": lambda files: archive_of([x for x in files if x[0] != "model.stub"]),
    "another model": lambda files: archive_of([(n, b"x" if "stub" in n else c) for n, c in files]),
    "a large manifest": lambda files: archive_of(
        [(n, c + b" " * MAX_MANIFEST_BYTES if n == "manifest.json" else c) for n, c in files]
    ),
    "over 4096 files": lambda files: archive_of(
        sorted([*files, *((f"f{index}", b"") for index in range(MAX_FILES))])
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archive_of_another_form_or_content_is_refused_as_python_does(code_of, tmp_path, name):
    files = files_of(stub_bundle(tmp_path / "b"))
    path = tmp_path / "b.edgeseg"
    path.write_bytes(archive_of(files))
    assert code_of(path) == "OK"
    path.write_bytes(ARCHIVES[name](files))
    assert code_of(path) not in ("OK", "E-MANIFEST-FIELD")


@pytest.mark.parametrize("shift", [-1, 1, 1 << 31, (1 << 32) - 1])
def test_file_that_the_directory_has_elsewhere_is_refused(code_of, tmp_path, shift):
    folder = stub_bundle(tmp_path / "b")
    for name in ("x1", "x2"):  # alike, so that no CRC-32 tells one from the other
        (folder / name).write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    reseal(folder, lambda content: content["files"].update({"x1": digest, "x2": digest}))
    whole = bytearray(archive_of(files_of(folder)))
    (tmp_path / "b.edgeseg").write_bytes(whole)
    assert code_of(tmp_path / "b.edgeseg") == "OK"
    field = whole.rindex(b"x2") - 4  # where the file begins, the last of its header
    first, second = (whole.index(name) - 30 for name in (b"x1xPK", b"x2xPK"))
    assert struct.unpack_from("<L", whole, field) == (second,)
    moved = first if shift == -1 else (second + shift) % (1 << 32)
    struct.pack_into("<L", whole, field, moved)
    (tmp_path / "b.edgeseg").write_bytes(whole)
    assert code_of(tmp_path / "b.edgeseg") == "E-ARCHIVE-FORM"


def test_damage_of_an_archive_is_named_as_python_names_it(code_of, tmp_path):
    whole = archive_of(files_of(stub_bundle(tmp_path / "b")))
    path = tmp_path / "b.edgeseg"
    generator = random.Random(8)
    headers = [at for at in range(len(whole)) if whole[at : at + 2] == b"PK"]
    places = [generator.randrange(len(whole)) for _ in range(60)]
    places += [start + generator.randrange(60) for start in headers for _ in range(6)]
    for place in places:
        at = min(place, len(whole) - 1)
        path.write_bytes(
            whole[:at] + bytes([whole[at] ^ 1 << generator.randrange(8)]) + whole[at + 1 :]
        )
        assert code_of(path) != "OK", at
        path.write_bytes(whole[:at])
        assert code_of(path) == "E-ARCHIVE-FORM", at


def test_huge_archive_is_refused_by_its_size(code_of, tmp_path):
    with (tmp_path / "b.edgeseg").open("wb") as file:
        file.truncate(MAX_ARCHIVE_BYTES + 1)  # takes no space on disk
    assert code_of(tmp_path / "b.edgeseg") == "E-ARCHIVE-SIZE"


@pytest.mark.parametrize(
    ("count", "size", "start"),
    [(0xFFFF, 0xFFFFFFFF, 0), (1, 1 << 31, 1 << 31), (1, 46, 0xFFFFFFFF)],
)
def test_huge_counts_are_refused_before_anything_is_read(code_of, tmp_path, count, size, start):
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, start, 0)
    (tmp_path / "b.edgeseg").write_bytes(bytes(100) + end)
    assert code_of(tmp_path / "b.edgeseg") == "E-ARCHIVE-FORM"


# --- signed --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def keys(tmp_path_factory):
    """NAME.pem and NAME.pub of several keys, and what is no key."""
    if not openssl_options():
        pytest.skip("no libssl-dev or pkg-config; .ci/packages installs them, as root")
    pytest.importorskip("model_signing", reason="no model_signing; make install brings it")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    folder = tmp_path_factory.mktemp("keys")
    pem, info = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    for name, key in (
        ("our", ec.generate_private_key(ec.SECP256R1())),
        ("their", ec.generate_private_key(ec.SECP256R1())),
        ("p384", ec.generate_private_key(ec.SECP384R1())),
        ("p521", ec.generate_private_key(ec.SECP521R1())),
        ("k1", ec.generate_private_key(ec.SECP256K1())),
        ("ed", ed25519.Ed25519PrivateKey.generate()),
        ("rsa", rsa.generate_private_key(65537, 2048)),
    ):
        (folder / f"{name}.pem").write_bytes(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(pem, info))
    (folder / "text").write_text("no key")
    (folder / "empty").touch()
    (folder / "huge").write_bytes((folder / "our.pub").read_bytes() + b"\n" * (1 << 16))
    (folder / "cut").write_bytes((folder / "our.pub").read_bytes()[:-60])
    return folder


@pytest.fixture
def signed(keys, tmp_path):
    """A bundle of the stub, signed with our key."""
    folder = stub_bundle(tmp_path / "signed")
    sign_bundle(open_bundle(folder).store, keys / "our.pem")
    return folder


def signature_of(statement: bytes, key: Path) -> bytes:
    """Sign any statement in the form of model.sig."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = serialization.load_pem_private_key(key.read_bytes(), None)
    head = b"DSSEv1 28 application/vnd.in-toto+json %d " % len(statement)
    value = private.sign(head + statement, ec.ECDSA(hashes.SHA256()))
    hint = hashlib.sha256(key.with_suffix(".pub").read_bytes()).hexdigest()
    return form_of(statement, value, hint)


def form_of(statement: bytes = b"", value: bytes = b"", hint: str = "0" * 64) -> bytes:
    return json.dumps(
        {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(statement).decode(),
                "payloadType": "application/vnd.in-toto+json",
                "signatures": [{"sig": base64.b64encode(value).decode(), "keyid": ""}],
            },
        },
        separators=(",", ":"),
    ).encode()


@pytest.mark.parametrize("name", ["our", "p384", "p521"])
def test_bundle_signed_in_python_opens_in_c_with_its_key_alone(
    open_c, code_of, keys, tmp_path, name
):
    folder = stub_bundle(tmp_path / "b")
    assert code_of(folder, keys / f"{name}.pub") == "E-SIGNATURE-MISSING"
    sign_bundle(open_bundle(folder).store, keys / f"{name}.pem")
    pack_bundle(folder, tmp_path / "b.edgeseg")
    for bundle in (folder, tmp_path / "b.edgeseg"):
        assert open_c(bundle, "stub", keys / f"{name}.pub").selftest().bit_equal == 2
        assert code_of(bundle, keys / f"{name}.pub") == code_of(bundle) == "OK"
        assert code_of(bundle, keys / "their.pub") == "E-SIGNATURE"


def test_packed_bundle_without_a_signature_is_refused_where_a_key_is_given(code_of, keys, tmp_path):
    pack_bundle(stub_bundle(tmp_path / "b"), tmp_path / "b.edgeseg")
    assert code_of(tmp_path / "b.edgeseg", keys / "our.pub") == "E-SIGNATURE-MISSING"


def test_signature_of_another_bundle_is_refused(code_of, keys, signed, tmp_path):
    other = stub_bundle(tmp_path / "other", "3")
    shutil.copy(signed / "model.sig", other)
    assert code_of(other, keys / "our.pub") == "E-SIGNATURE"


@pytest.mark.parametrize("name", ["a byte changed", "a file added", "no schema", "no json"])
def test_change_with_new_hashes_is_refused_with_the_key_before_it_is_parsed(
    library, keys, signed, name
):
    damage(name)(signed)
    content = (signed / "model.sig").read_bytes()
    (signed / "model.sig").unlink()
    rehash(signed)
    (signed / "model.sig").write_bytes(content)
    status = library.es_verify(str(signed).encode(), str(keys / "our.pub").encode(), None)
    assert library.es_code(status) == b"E-SIGNATURE"


def test_no_changed_byte_of_a_signature_is_accepted_with_the_key(library, keys, signed):
    path, key = signed / "model.sig", str(keys / "our.pub").encode()
    whole = path.read_bytes()
    payload = range(whole.index(b"payload"), whole.index(b"payloadType"))
    for position, byte in enumerate(whole):
        if position in payload[60:] and position % 7:  # what is signed: a sample of it
            continue
        with path.open("r+b") as file:
            file.seek(position)
            file.write(bytes([byte ^ 1 << position % 8]))
        status = library.es_verify(str(signed).encode(), key, None)
        assert library.es_code(status) == b"E-SIGNATURE", position
        path.write_bytes(whole)
    assert library.es_verify(str(signed).encode(), key, None) == 0


def test_no_changed_byte_of_a_signed_bundle_is_accepted_with_the_key(built, keys, signed, tmp_path):
    pack_bundle(signed, tmp_path / "b.edgeseg")
    for bundle in (signed, tmp_path / "b.edgeseg"):
        tried = run(built / "edgeseg-tamper", bundle, "101", keys / "our.pub")
        assert tried.returncode == 0, tried.stdout
        assert int(tried.stdout.split()[1]) == 0


def test_every_cut_of_a_signature_is_refused(library, keys, signed):
    whole = (signed / "model.sig").read_bytes()
    for length in range(0, len(whole), 23):
        (signed / "model.sig").write_bytes(whole[:length])
        status = library.es_verify(str(signed).encode(), str(keys / "our.pub").encode(), None)
        assert library.es_code(status) == b"E-SIGNATURE", length


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + b"\n",
        lambda text: b" " + text,
        lambda text: text.replace(b'":"', b'": "', 1),
        lambda text: text.replace(b'"keyid":""', b'"keyid":"x"'),
        lambda text: text.replace(b'"tlogEntries":[]', b'"tlogEntries":[1]'),
        lambda text: text.replace(b"v0.3+json", b"v0.2+json"),
        lambda text: json.dumps(json.loads(text)).encode(),
        lambda text: json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")).encode(),
        lambda text: re.sub(rb'"sig":"[^"]*"', rb'"sig":""', text),
        lambda text: re.sub(rb'"payload":"[^"]*"', rb'"payload":""', text),
        lambda text: re.sub(rb'("sig":"[^"]*)"', rb'\1AAAA"', text),  # bytes behind the DER
        lambda text: text + b" " * (1 << 20),
        lambda text: b"",
        lambda text: b"\0" * 2000,
    ],
)
def test_signature_in_another_form_is_refused(code_of, keys, signed, change):
    text = (signed / "model.sig").read_bytes()
    (signed / "model.sig").write_bytes(change(text))
    assert code_of(signed, keys / "our.pub") == "E-SIGNATURE"


def statement_of(folder: Path) -> dict:
    """What the signature of a bundle signs."""
    envelope = json.loads((folder / "model.sig").read_bytes())["dsseEnvelope"]
    return json.loads(base64.b64decode(envelope["payload"]))


def without_sums(statement: dict) -> None:
    kept = [each for each in statement["predicate"]["resources"] if each["name"] != "SHA256SUMS"]
    statement["predicate"]["resources"] = kept


def sums_twice(statement: dict) -> None:
    statement["predicate"]["resources"].append({**statement["predicate"]["resources"][0]})


@pytest.mark.parametrize(
    "change",
    [
        without_sums,
        sums_twice,
        lambda statement: statement.update(_type="https://in-toto.io/Statement/v0"),
        lambda statement: statement.update(predicateType="https://slsa.dev/provenance/v1"),
        lambda statement: statement["predicate"]["resources"][0].update(algorithm="blake2b"),
        lambda statement: statement["predicate"]["resources"][0].update(digest="0" * 64),
        lambda statement: statement["predicate"].update(resources={}),
        lambda statement: statement.clear(),
    ],
)
def test_statement_that_our_key_signed_of_something_else_is_refused(code_of, keys, signed, change):
    statement = statement_of(signed)
    assert statement["predicate"]["resources"][0]["name"] == "SHA256SUMS"
    content = signature_of(json.dumps(statement).encode(), keys / "our.pem")
    (signed / "model.sig").write_bytes(content)
    assert code_of(signed, keys / "our.pub") == "OK"
    change(statement)
    content = signature_of(json.dumps(statement).encode(), keys / "our.pem")
    (signed / "model.sig").write_bytes(content)
    assert code_of(signed, keys / "our.pub") == "E-SIGNATURE"


@pytest.mark.parametrize("statement", [b"", b"null", b"{", b"[" * 5000, b"\xff", b"{}" + b"\0"])
def test_what_our_key_signed_and_is_no_statement_is_refused(library, keys, signed, statement):
    (signed / "model.sig").write_bytes(signature_of(statement, keys / "our.pem"))
    status = library.es_verify(str(signed).encode(), str(keys / "our.pub").encode(), None)
    assert library.es_code(status) == b"E-SIGNATURE"


@pytest.mark.parametrize(
    "name", ["our.pem", "k1.pub", "ed.pub", "rsa.pub", "text", "empty", "huge", "cut", "no", "."]
)
def test_what_is_no_public_key_of_the_curves_is_refused(code_of, keys, signed, name):
    assert code_of(signed, keys / name) == "E-KEY-READ"


def test_empty_name_of_a_key_is_not_no_key(open_c, signed):
    with pytest.raises(Failed, match="E-KEY-READ"):
        open_c(signed, "stub", "")


def test_certificate_is_refused_as_one(open_c, keys, signed, tmp_path):
    require("openssl")
    made = run(
        *("openssl", "req", "-x509", "-key", keys / "our.pem", "-subj", "/CN=us"),
        *("-out", tmp_path / "our.crt"),
    )
    assert made.returncode == 0, made.stderr
    with pytest.raises(Failed, match=r"E-KEY-READ: .*certificate: give the key in it"):
        open_c(signed, "stub", tmp_path / "our.crt")


def test_bundle_signed_with_a_certificate_is_refused_as_one(open_c, code_of, keys, tmp_path):
    pytest.importorskip("OpenSSL", reason="no pyopenssl; make install brings it")
    from cryptography.hazmat.primitives import serialization

    from edgeseg.tests.runtime.test_bundle_certificate import certify, write_pem

    private = serialization.load_pem_private_key((keys / "our.pem").read_bytes(), None)
    certificate = write_pem(tmp_path / "our.cer", certify("Us", key=private))
    folder = stub_bundle(tmp_path / "b")
    sign_bundle(open_bundle(folder).store, keys / "our.pem", certificate)
    pack_bundle(folder, tmp_path / "b.edgeseg")
    for bundle in (folder, tmp_path / "b.edgeseg"):
        assert code_of(bundle, keys / "our.pub") == "E-SIGNATURE"
        with pytest.raises(Failed, match=r"with a certificate, .*bare keys; sign a copy .* alone$"):
            open_c(bundle, "stub", keys / "our.pub")
        assert open_c(bundle, "stub").selftest().bit_equal == 2


def test_key_with_a_compressed_point_is_refused_by_name(open_c, keys, signed, tmp_path):
    require("openssl")
    helped = run("openssl", "pkey", "-help")
    if b"-ec_conv_form" not in helped.stdout + helped.stderr:
        pytest.skip("no openssl pkey -ec_conv_form, of OpenSSL 3; Debian 12 has it")
    made = run(
        *("openssl", "pkey", "-in", keys / "our.pem", "-pubout", "-ec_conv_form", "compressed"),
        *("-out", tmp_path / "our.pub"),
    )
    assert made.returncode == 0, made.stderr
    with pytest.raises(Failed, match=r"E-KEY-READ: .*\(of another kind, or its point is compr"):
        open_c(signed, "stub", tmp_path / "our.pub")


def test_locked_key_asks_nobody_for_its_password(open_c, keys, signed, tmp_path):
    text = (keys / "our.pub").read_text().splitlines()
    lock = ["Proc-Type: 4,ENCRYPTED", "DEK-Info: AES-128-CBC,0123456789ABCDEF0123456789ABCDEF", ""]
    (tmp_path / "locked.pub").write_text("\n".join([text[0], *lock, *text[1:], ""]))
    with pytest.raises(Failed, match="E-KEY-READ"):
        open_c(signed, "stub", tmp_path / "locked.pub")


def test_nothing_allocates_after_a_signed_packed_bundle_is_open(built, keys, signed, tmp_path):
    pack_bundle(signed, tmp_path / "b.edgeseg")
    done = run(built / "edgeseg-allocations", tmp_path / "b.edgeseg", "stub", keys / "our.pub")
    opening, ours, others, _ = map(int, done.stdout.split())
    assert done.returncode == 0
    assert opening > 10
    assert ours == others == 0


def test_example_takes_a_key(built, keys, signed):
    example = (built / "edgeseg-predict", signed, "--verify", "--key")
    assert run(*example, keys / "our.pub").returncode == 0
    done = run(*example, keys / "their.pub")
    assert (done.returncode, done.stderr.count(b"\n")) == (ERRORS["E-SIGNATURE"], 1)
    assert done.stderr.startswith(b"E-SIGNATURE: ")


# --- real engines --------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_masks_are_those_of_the_python_session(open_c, bundle_of, engine, precision):
    bundle = bundle_of("x86-cpu", precision)
    ours = open_c(bundle, engine, max_width=800, max_height=600)
    theirs = open_session(bundle, engine=engine, threads=1)
    golden = open_bundle(bundle).manifest.vectors
    found = 0
    for name in golden.frames:
        frame = np.asarray(Image.open(bundle / name))
        mask = theirs.predict(frame)
        assert (ours.predict(frame) == mask).all()
        found += bool(mask.any())
    assert found > 0
    result = ours.selftest()
    assert result.bit_equal == result.frames == len(golden.frames)


def test_packed_bundle_answers_as_its_folder_does(open_c, int8, engine, tmp_path):
    pack_bundle(int8, tmp_path / "b.edgeseg")
    packed, folder = open_c(tmp_path / "b.edgeseg", engine), open_c(int8, engine)
    for name in open_bundle(int8).manifest.vectors.frames:
        frame = np.asarray(Image.open(int8 / name))
        assert (packed.predict(frame) == folder.predict(frame)).all()
    result = packed.selftest()
    assert result.bit_equal == result.frames > 0


def test_our_library_does_not_allocate_after_open(built, int8, engine):
    done = run(built / "edgeseg-allocations", int8, engine)
    assert done.returncode == 0, done.stdout
    opening, ours, _, _ = map(int, done.stdout.split())
    assert opening > 10
    assert ours == 0


def test_nothing_of_ours_is_left_after_closing_a_real_engine(built, int8, engine):
    ours, files, _, _ = cycles(built, int8, engine, 4).T
    assert (ours == 0).all()
    assert (files == files[0]).all()


def test_two_threads_in_a_real_engine_get_right_masks_or_busy(built, int8, engine):
    assert run(built / "edgeseg-threads", int8, engine).returncode == 0


@pytest.mark.parametrize("content", [b"", b"\x08\x07", b"<net", bytes(1000)])
def test_model_that_the_engine_cannot_read_is_refused(
    built, engine, bundle_of, tmp_path, content, open_c
):
    folder = Path(shutil.copytree(bundle_of("x86-cpu", "fp32"), tmp_path / "b"))
    name = {"openvino": "model.xml", "onnxruntime": "model.onnx"}[engine]
    (folder / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    reseal(folder, lambda manifest: manifest["files"].update({name: digest}))
    with pytest.raises(Failed, match=f"E-ENGINE-LOAD: {engine}: "):
        open_c(folder, engine)


def test_example_answers_and_exits_as_documented(built, int8, engine, tmp_path):
    golden = open_bundle(int8).manifest.vectors
    frame = (int8 / golden.frames[0]).read_bytes()
    example = (built / "edgeseg-predict", int8, "--engine", engine, "--threads", "1")
    done = run(*example, input=frame)
    assert done.stdout == (int8 / golden.masks[engine][0]).read_bytes()
    assert re.fullmatch(rb"open .* ms, first frame .* ms, second .* ms\n", done.stderr)
    assert run(*example, "--selftest").stdout.startswith(
        b"%d of %d golden frames bit-equal" % ((len(golden.frames),) * 2)
    )
    assert engine.encode() in run(*example, "--info").stdout
    assert run(built / "edgeseg-predict").returncode == 2
    for mode, given in (((), frame), (("--info",), b"")):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [str(each) for each in (*example, *mode)],
                input=given,
                stdout=full,
                stderr=subprocess.PIPE,
            )
        assert (done.returncode, b"E-OUTPUT" in done.stderr) == (5, True)


@pytest.mark.parametrize(
    "arguments", [["--inof"], ["--threads"], ["--engine"], ["--threads", "--info"], ["second"]]
)
def test_example_refuses_what_it_does_not_understand(built, tmp_path, arguments):
    done = run(built / "edgeseg-predict", stub_bundle(tmp_path / "b"), *arguments)
    assert (done.returncode, done.stderr[:6]) == (2, b"usage:")


@pytest.mark.parametrize(
    "frame",
    [
        b"P5 2 2 65535\n\0\1\0\2\0\3\0\4",
        b"P5 2 2 2550\n1234",
        b"P5 2 2 254\n1234",
        b"P5 2 2 255",
        b"P5 2 2 2551234",
        b"P5 2 2 255\n123",
        b"P5 2 0 255\n",
        b"P5 2 2 ",
        b"P2 2 2 255\n1 2 3 4",
        b"",
    ],
)
def test_example_takes_a_whole_frame_of_8_bits_only(built, tmp_path, frame):
    example = (built / "edgeseg-predict", tmp_path / "gone")
    for good in (b"P5 2 2 255\n1234", b"P5\n2 2\n255 \n234"):  # as far as the bundle
        assert run(*example, input=good).returncode == ERRORS["E-BUNDLE-MISSING"]
    done = run(*example, input=frame)
    assert done.returncode == ERRORS["E-ARGUMENT"]
    assert (done.stderr[:12], done.stderr.count(b"\n")) == (b"E-ARGUMENT: ", 1)


@pytest.mark.parametrize(
    "header",
    [
        b"P5\n# CREATOR: GIMP\n16 16\n255\n",
        b"P5 # two\n#lines 9 9 255\n16 # width\r\n16#height\n#\n255\n",
        b"P5\r\n16\t16\r\n255 ",
    ],
)
def test_example_passes_over_comments_of_a_pgm(built, tmp_path, header):
    example = (built / "edgeseg-predict", tmp_path / "gone")
    for pixels, code in ((256, "E-BUNDLE-MISSING"), (255, "E-ARGUMENT")):  # whole, cut
        assert run(*example, input=header + bytes(pixels)).returncode == ERRORS[code]


@pytest.mark.parametrize("header", [b"P5\n# only a comment", b"P5\n2 2\n255# no pixel\n1234"])
def test_example_refuses_a_pgm_whose_header_does_not_end(built, tmp_path, header):
    done = run(built / "edgeseg-predict", tmp_path / "gone", input=header)
    assert done.returncode == ERRORS["E-ARGUMENT"]


@pytest.mark.parametrize("name", ["no folder", "a byte changed", "newer schema", "a pipe"])
def test_example_exits_with_the_status_and_one_line(built, tmp_path, name):
    folder = stub_bundle(tmp_path / "b")
    assert run(built / "edgeseg-predict", folder, "--verify").returncode == 0
    damage(name)(folder)
    done = run(built / "edgeseg-predict", folder, "--verify")
    code = done.stderr.decode().split(":")[0]
    assert done.returncode == ERRORS[code]
    assert done.stderr.count(b"\n") == 1


# --- builds --------------------------------------------------------------------------------------


def test_library_exports_its_header_and_nothing_else(built):
    require("nm")
    listed = run("nm", "-D", "--defined-only", built / "libedgeseg.so").stdout.decode()
    exported = {line.split()[-1] for line in listed.splitlines()}
    header = (SOURCE / "include" / "edgeseg.h").read_text()
    assert exported == set(re.findall(r"^ES_API .*?\b(es_\w+)\(", header, re.MULTILINE))


def test_every_status_of_the_header_has_a_code_in_the_documentation(library):
    header = (SOURCE / "include" / "edgeseg.h").read_text()
    text = (SOURCE.parent.parent / "docs" / "c-runtime.md").read_text()
    for value in re.findall(r"ES_ERR_\w+ = (-\d+)", header):
        code = library.es_code(int(value)).decode()
        assert f"| {value} | `{code}` |" in text


@pytest.mark.parametrize("compiler", ["gcc", "g++"])
def test_header_stands_alone_in_c_and_in_cpp(compiler, tmp_path):
    require(compiler)
    suffix = {"gcc": "c", "g++": "cc"}[compiler]
    (tmp_path / f"x.{suffix}").write_text("#include <edgeseg.h>\n")
    flags = ("-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only")
    done = run(compiler, *flags, f"-I{SOURCE / 'include'}", tmp_path / f"x.{suffix}")
    assert done.returncode == 0, done.stderr


def test_installed_static_library_links_by_pkg_config(tmp_path):
    require("pkg-config")
    options = ("-DBUILD_SHARED_LIBS=OFF", f"-DCMAKE_INSTALL_PREFIX={tmp_path}", UNOPTIMISED)
    folder = build(tmp_path / "b", *options)
    assert run("cmake", "--install", folder).returncode == 0
    (place,) = tmp_path.glob("lib*/**/pkgconfig")
    flags = run(
        *("pkg-config", "--static", "--cflags", "--libs", "edgeseg"),
        env={**os.environ, "PKG_CONFIG_PATH": str(place)},
    ).stdout.decode()
    (tmp_path / "x.c").write_text(
        "#include <edgeseg.h>\n#include <stdio.h>\nint main(int count, char **arguments) {\n"
        "char message[ES_MESSAGE_BYTES];\n(void)count;\n"
        "int status = es_verify(arguments[1], arguments[2], message);\n"
        "puts(message);\nreturn -status; }\n"
    )
    linked = run("gcc", tmp_path / "x.c", "-o", tmp_path / "x", *flags.split())
    assert linked.returncode == 0, linked.stderr
    assert run(tmp_path / "x", "/nonexistent").returncode == ERRORS["E-BUNDLE-MISSING"]
    bundle = stub_bundle(tmp_path / "stub")  # this library has no OpenSSL
    assert run(tmp_path / "x", bundle).returncode == 0
    assert run(tmp_path / "x", bundle, "key.pem").returncode == ERRORS["E-SIGNATURE-MISSING"]
    (bundle / "model.sig").write_bytes(form_of())
    refused = run(tmp_path / "x", bundle, "key.pem")
    assert (refused.returncode, refused.stdout.count(b"\n")) == (OPENSSL_MISSING, 1)
    assert b"-DEDGESEG_OPENSSL=ON" in refused.stdout


@pytest.fixture(scope="module", params=["ON", "OFF"], ids=["shared", "static"])
def moved(request, tmp_path_factory):
    """An installation that was moved afterwards; configured for /usr/local."""
    folder = tmp_path_factory.mktemp("installed")
    shared = f"-DBUILD_SHARED_LIBS={request.param}"
    built = build(folder / "b", shared, UNOPTIMISED, *openssl_options(), *engine_options())
    assert run("cmake", "--install", built, "--prefix", folder / "first").returncode == 0
    (folder / "first").rename(folder / "a place")
    return folder / "a place"


@pytest.fixture
def environment_of_moved(moved):
    """Where the loader finds the moved library and the engines of a static one."""
    places = [*moved.glob("lib*"), SITE / "openvino" / "libs", Path(ORT_ROOT, "lib")]
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, places))}


@pytest.mark.parametrize(("compiler", "suffix"), [("gcc", "c"), ("g++", "cc")])
def test_moved_installation_is_used_by_pkg_config(
    compiler, suffix, moved, environment_of_moved, tmp_path
):
    require("pkg-config", compiler)
    (place,) = moved.glob("lib*/**/pkgconfig")
    words = ["pkg-config", "--cflags", "--libs", *["--static"] * any(moved.rglob("*.a")), "edgeseg"]
    flags = run(*words, env={**os.environ, "PKG_CONFIG_PATH": str(place)}).stdout.decode()
    assert "/usr/local" not in flags
    source = SOURCE / "examples" / "find_package" / f"verify.{suffix}"
    made = run(compiler, source, "-o", tmp_path / "x", *shlex.split(flags), *LINK_LATER)
    assert made.returncode == 0, made.stderr.decode()
    holds = run(tmp_path / "x", stub_bundle(tmp_path / "stub"), env=environment_of_moved)
    assert (holds.returncode, holds.stdout) == (0, b"holds\n")


def test_moved_installation_is_used_by_find_package_in_c_and_in_cpp(
    moved, environment_of_moved, tmp_path
):
    require("cmake", "g++")
    project = SOURCE / "examples" / "find_package"
    words = (f"-DCMAKE_PREFIX_PATH={moved}", f"-DCMAKE_EXE_LINKER_FLAGS={' '.join(LINK_LATER)}")
    done = run("cmake", "-S", project, "-B", tmp_path / "b", *words)
    assert done.returncode == 0, done.stderr.decode()
    done = run("cmake", "--build", tmp_path / "b")
    assert done.returncode == 0, done.stdout.decode()
    bundle = stub_bundle(tmp_path / "stub")
    for name in ("verify", "verify-cpp"):
        holds = run(tmp_path / "b" / name, bundle, env=environment_of_moved)
        assert (holds.returncode, holds.stdout) == (0, b"holds\n")
        missing = run(tmp_path / "b" / name, tmp_path / "none", env=environment_of_moved)
        assert missing.returncode == ERRORS["E-BUNDLE-MISSING"]


def test_find_package_refuses_another_major_version(moved, tmp_path):
    require("cmake")
    text = (SOURCE / "examples" / "find_package" / "CMakeLists.txt").read_text()
    (tmp_path / "CMakeLists.txt").write_text(text.replace("edgeseg 2.0", "edgeseg 3.0"))
    words = ("-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={moved}")
    done = run("cmake", *words)
    assert done.returncode == 1
    assert b"edgeseg-config.cmake, version: 2.0.0" in done.stderr


def test_nothing_installed_names_the_place_of_the_build(moved):
    texts = [path.read_text() for ending in ("*.pc", "*.cmake") for path in moved.rglob(ending)]
    assert len(texts) == 5
    assert not any(str(moved.parent) in text or "/usr/local" in text for text in texts)


def test_absolute_folders_of_an_installation_are_named_as_they_are(tmp_path):
    require("cmake", "gcc", "pkg-config")
    options = [f"-DCMAKE_INSTALL_{name}DIR={tmp_path}/{name}" for name in ("LIB", "INCLUDE")]
    assert run("cmake", "-S", SOURCE, "-B", tmp_path / "b", *options).returncode == 0
    flags = run("pkg-config", "--cflags", "--libs", tmp_path / "b" / "edgeseg.pc").stdout.decode()
    assert flags.split() == [f"-I{tmp_path}/INCLUDE", f"-L{tmp_path}/LIB", "-ledgeseg"]


def test_static_pkg_config_names_the_engines_and_only_the_tests_ask_for_werror(tmp_path):
    require("cmake", "gcc")
    if not engine_options():
        pytest.skip("no engine to compile in; make install brings OpenVINO")
    shown = "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"
    done = run("cmake", "-S", SOURCE, "-B", tmp_path, shown, *engine_options())
    assert done.returncode == 0, done.stderr
    (private,) = re.findall("^Libs.private: (.*)$", (tmp_path / "edgeseg.pc").read_text(), re.M)
    for option in engine_options():
        assert option.partition("=")[2] in private
    assert "-Werror" not in (tmp_path / "compile_commands.json").read_text()


def sanitizer_environment(*, leaks: bool = True) -> dict[str, str]:
    return {
        **os.environ,
        "ASAN_OPTIONS": f"detect_leaks={int(leaks)}:abort_on_error=0",
        "TBB_ENABLE_SANITIZERS": "1",  # else OpenVINO's oneTBB binds deeply, which they refuse
    }


def test_pure_parts_and_refusals_are_clean_under_sanitizers(sanitized, tmp_path):
    environment = sanitizer_environment()
    checked = run(sanitized / "edgeseg-check", env=environment)
    assert checked.stdout == b"ok\n", checked.stderr
    folder = stub_bundle(tmp_path / "b", "1", contract=LEAST)
    for tool, *arguments in (("edgeseg-threads", "stub"), ("edgeseg-tamper", "301")):
        done = run(sanitized / tool, folder, *arguments, env=environment)
        assert done.returncode == 0, done.stderr
    pack_bundle(folder, tmp_path / "b.edgeseg")
    done = run(sanitized / "edgeseg-tamper", tmp_path / "b.edgeseg", "101", env=environment)
    assert done.returncode == 0, done.stderr


def test_signatures_and_keys_are_clean_under_sanitizers(sanitized, keys, signed):
    environment = sanitizer_environment()
    tamper = (sanitized / "edgeseg-tamper", signed, "701", keys / "our.pub")
    done = run(*tamper, env=environment)
    assert done.returncode == 0, done.stderr
    for name in ("their.pub", "our.pem", "rsa.pub", "text", "huge", "cut", "no"):
        done = run(
            sanitized / "edgeseg-predict", signed, "--verify", "--key", keys / name, env=environment
        )
        assert done.returncode in (ERRORS["E-SIGNATURE"], ERRORS["E-KEY-READ"]), done.stderr


def test_real_engines_are_clean_under_sanitizers(sanitized, int8, engine):
    # Leaks are not looked for: the engines' libraries keep memory until the process ends.
    environment = sanitizer_environment(leaks=False)
    example = (sanitized / "edgeseg-predict", int8, "--engine", engine, "--threads", "1")
    done = run(*example, "--selftest", env=environment)
    assert done.returncode == 0, done.stderr
    frame = (int8 / open_bundle(int8).manifest.vectors.frames[0]).read_bytes()
    for options in ((), ("--largest-only", "--fill-holes")):
        assert run(*example, *options, input=frame, env=environment).returncode == 0


def test_pure_parts_are_clean_under_valgrind(tmp_path):
    require("valgrind")
    # Of its own: an engine's libraries alone take valgrind a minute.
    folder = build(tmp_path / "v", "-DEDGESEG_TESTS=ON", UNOPTIMISED, *openssl_options())
    valgrind = ("valgrind", "-q", "--leak-check=full", "--error-exitcode=99")
    checked = run(*valgrind, folder / "edgeseg-check")
    assert checked.returncode == 0, checked.stderr
    bundle = stub_bundle(tmp_path / "b", "1")
    for tool, *arguments in (("edgeseg-threads", "stub"), ("edgeseg-tamper", "4001")):
        done = run(*valgrind, folder / tool, bundle, *arguments)
        assert done.returncode == 0, done.stderr
    pack_bundle(bundle, tmp_path / "b.edgeseg")
    done = run(*valgrind, folder / "edgeseg-tamper", tmp_path / "b.edgeseg", "2003")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def fuzzer(tmp_path_factory):
    require("clang")
    return build(tmp_path_factory.mktemp("fuzz"), "-DEDGESEG_FUZZ=ON", "-DCMAKE_C_COMPILER=clang")


def test_fuzzed_files_of_every_kind_do_no_harm(fuzzer, tmp_path):
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    folder = stub_bundle(tmp_path / "b")
    layout = {"width": 60, "height": 50, "crop": [0, 0, 60, 50], "fan": [[0, 0], [9, 0], [5, 9]]}
    reseal(folder, lambda content: content.update(layout=layout))
    for kind, name in enumerate(("manifest.json", "SHA256SUMS", "vectors/frame-0.pgm")):
        (seeds / str(kind)).write_bytes(bytes([kind]) + (folder / name).read_bytes())
    (seeds / "3").write_bytes(b"\3" + archive_of(SMALL))
    (seeds / "4").write_bytes(b"\4" + form_of(b'{"predicate":{"resources":[]}}', b"value"))
    done = run(
        fuzzer / "edgeseg-fuzz", "-runs=20000", "-seed=1", "-max_len=4096", seeds, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def test_it_cross_compiles_and_runs_on_aarch64(tmp_path):
    require("aarch64-linux-gnu-gcc", "qemu-aarch64-static")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={SOURCE / 'cmake' / 'aarch64-linux-gnu.cmake'}"
    folder = build(tmp_path / "arm", "-DEDGESEG_TESTS=ON", toolchain)
    emulator = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")
    environment = {**os.environ, "QEMU_SET_ENV": f"LD_LIBRARY_PATH={folder}"}
    assert run(*emulator, folder / "edgeseg-check", env=environment).stdout == b"ok\n"
    bundle = stub_bundle(tmp_path / "b", "3")
    pack_bundle(bundle, tmp_path / "b.edgeseg")
    for tool, *arguments in (("edgeseg-threads", "stub"), ("edgeseg-tamper", "2003")):
        for form in (bundle, tmp_path / "b.edgeseg"):
            assert run(*emulator, folder / tool, form, *arguments, env=environment).returncode == 0
    example = (*emulator, folder / "edgeseg-predict", bundle, "--verify")
    assert run(*example, env=environment).returncode == 0
