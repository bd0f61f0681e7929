"""The C runtime, built as firmware builds it: equal to Python's, and what it must refuse."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.runtime.bundle import (
    MAX_MANIFEST_BYTES,
    GoldenVectors,
    open_bundle,
    seal_bundle,
)
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.image import grey_from_frame, input_from_frame, mask_from_logits, resize_grey
from edgeseg.runtime.layout import Layout
from edgeseg.runtime.lesion import fill_holes, keep_largest
from edgeseg.runtime.pgm import pgm_from_grey
from edgeseg.runtime.session import open_session

SOURCE = Path(__file__).parent.parent / "runtime" / "c"
SITE = Path(sysconfig.get_path("purelib"))
# Where CI puts what `runtime/c/get_onnxruntime.sh` prepares.
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
    "E-SELFTEST": 30,
}


def require(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def run(*arguments: str | Path, **kinds) -> subprocess.CompletedProcess:
    return subprocess.run([str(each) for each in arguments], capture_output=True, **kinds)


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


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The library with every engine that is here, the example and the tools of these tests."""
    return build(tmp_path_factory.mktemp("c"), "-DEDGESEG_TESTS=ON", *engine_options())


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory):
    """The same under AddressSanitizer and UBSan."""
    return build(
        tmp_path_factory.mktemp("sanitized"),
        *("-DEDGESEG_TESTS=ON", "-DEDGESEG_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Debug"),
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
        pytest.skip("EDGESEG_ONNXRUNTIME names no folder; see runtime/c/get_onnxruntime.sh")
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope="session")
def int8(bundle_of):
    return bundle_of("x86-cpu", "int8")


CONTRACT = InputContract(48, 64, 0.33, 0.22, 0.4)


def stub_logits(grey: np.ndarray, contract: InputContract) -> np.ndarray:
    """What tests/stub_engine.c answers: the image, doubled."""
    return input_from_frame(grey, contract)[0, 0] * np.float32(2)


def stub_bundle(folder: Path, what: str = "ok", layout: dict | None = None) -> Path:
    """A bundle for the engine of the C tests, which needs no library."""
    (folder / "vectors").mkdir(parents=True)
    (folder / "model.stub").write_text(what)
    generator = np.random.default_rng(3)
    for index, size in enumerate(((40, 30), (96, 131))):
        frame = generator.integers(0, 256, size, dtype=np.uint8)
        mask = mask_from_logits(stub_logits(frame, CONTRACT), CONTRACT, *size)
        (folder / f"vectors/frame-{index}.pgm").write_bytes(pgm_from_grey(frame))
        (folder / f"vectors/stub-{index}.pgm").write_bytes(pgm_from_grey(mask * np.uint8(255)))
    vectors = GoldenVectors(
        ("vectors/frame-0.pgm", "vectors/frame-1.pgm"),
        {"stub": ("vectors/stub-0.pgm", "vectors/stub-1.pgm")},
        {"stub": 0.01},
    )
    fields = {"name": "stub", "target": "test", "precision": "fp32", "contract": CONTRACT}
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
        ("engine", ctypes.c_char_p),
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
    """Open a session: (bundle, engine, **options) -> CSession."""
    library.es_infer.argtypes = library.es_infer_rgb.argtypes = (
        *(ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ctypes.c_void_p,
    )
    library.es_selftest.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.es_last_message.argtypes = library.es_close.argtypes = (ctypes.c_void_p,)
    opened = []

    def open_it(bundle: Path, engine: str | None = None, **options) -> CSession:
        chosen = Options(engine and engine.encode(), **{"threads": 1, **options})
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
        *((name, ctypes.c_void_p) for name in ("x_weight", "y_weight", "line0", "line1")),
        *((name, ctypes.c_int) for name in ("taps_width", "taps_height")),
    )


class Contract(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in ("width", "height")),
        *((name, ctypes.c_double) for name in ("mean", "std", "threshold")),
    )


@pytest.fixture
def canvas(library):
    """Make the buffers for a network's size: (height, width) -> Canvas."""
    opened = []

    def make(height: int, width: int) -> Canvas:
        made = Canvas()
        total = ctypes.c_size_t()
        assert library.es_canvas_open(
            ctypes.byref(made), width, height, 1200, 1200, ctypes.byref(total)
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


@pytest.mark.skipif(not PILLOW_13, reason="older Pillow resizes in another order of its passes")
def test_resize_is_pillows_to_the_bit(library, canvas):
    generator = np.random.default_rng(0)
    buffers = {size: canvas(*size) for size in ((48, 64), (128, 128), (16, 160))}
    for height, width in random_sizes(150):
        stride = width + int(generator.integers(0, 9))
        frame = generator.integers(0, 256, (height, stride), dtype=np.uint8)
        for size, made in buffers.items():
            library.es_resize_grey(
                ctypes.byref(made), frame.ctypes.data_as(ctypes.c_void_p), width, height,
                ctypes.c_size_t(stride),
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
    made = canvas(16, 16)
    generator = np.random.default_rng(1)
    for mean, std in [(0.33, 0.22), (0.0, 1.0), *generator.uniform(0.01, 1, (200, 2)).tolist()]:
        contract = InputContract(16, 16, mean, std, 0.5)
        ours = np.empty((1, 1, 16, 16), np.float32)
        address = frame.ctypes.data_as(ctypes.c_void_p)
        library.es_resize_grey(ctypes.byref(made), address, 16, 16, ctypes.c_size_t(16))
        library.es_normalise(
            ctypes.byref(made), ctypes.byref(Contract(16, 16, mean, std, 0.5)),
            ours.ctypes.data_as(ctypes.c_void_p),
        )  # fmt: skip
        assert ours.tobytes() == input_from_frame(frame, contract).tobytes()


def smooth(generator: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Logits like a network's: a few blobs, or none."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    logits = np.full(shape, -4.0)
    for _ in range(generator.integers(0, 4)):
        y, x = generator.uniform(0, shape[0]), generator.uniform(0, shape[1])
        size = generator.uniform(1, 20)
        logits += 9 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / size**2)
    return logits


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
        mask = np.full((height, width), 9, np.uint8)
        library.es_mask_from_logits(
            ctypes.byref(made), logits.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_double(threshold), width, height, mask.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_size_t(width),
        )  # fmt: skip
        contract = InputContract(48, 64, 0.3, 0.2, threshold)
        assert (mask == mask_from_logits(logits, contract, height, width)).all(), (height, width)
        found += bool(mask.any())
    assert found > 50


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
        "newer schema": field(schema="edgeseg.bundle/3.0"),
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
        ("newer schema", "E-MANIFEST-NEWER: bundle schema is edgeseg.bundle/3.0, .*/2.x"),
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


def test_newer_minor_with_unknown_fields_is_read(open_c, tmp_path):
    folder = stub_bundle(tmp_path / "b")
    reseal(folder, lambda content: content.update(schema="edgeseg.bundle/2.9", more={"a": [1]}))
    assert open_c(folder, "stub").selftest().bit_equal == 2


def test_signature_beside_the_sums_is_left_to_who_has_the_key(open_c, tmp_path):
    folder = stub_bundle(tmp_path / "b")
    (folder / "model.sig").write_bytes(b"anything")
    assert open_c(folder, "stub").selftest().bit_equal == 2


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


def test_nothing_in_the_process_allocates_after_open(built, tmp_path):
    done = run(built / "edgeseg-allocations", stub_bundle(tmp_path / "b"), "stub")
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
    folder = build(tmp_path / "b", "-DBUILD_SHARED_LIBS=OFF", f"-DCMAKE_INSTALL_PREFIX={tmp_path}")
    assert run("cmake", "--install", folder).returncode == 0
    (place,) = tmp_path.glob("lib*/**/pkgconfig")
    flags = run(
        *("pkg-config", "--static", "--cflags", "--libs", "edgeseg"),
        env={**os.environ, "PKG_CONFIG_PATH": str(place)},
    ).stdout.decode()
    (tmp_path / "x.c").write_text(
        '#include <edgeseg.h>\nint main(void) { return -es_verify("/nonexistent", 0); }\n'
    )
    linked = run("gcc", tmp_path / "x.c", "-o", tmp_path / "x", *flags.split())
    assert linked.returncode == 0, linked.stderr
    assert run(tmp_path / "x").returncode == ERRORS["E-BUNDLE-MISSING"]


def test_static_pkg_config_names_the_engines_and_only_the_tests_ask_for_werror(tmp_path):
    require("cmake", "gcc")
    if not engine_options():
        pytest.skip("no engine to compile in is here")
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
    folder = stub_bundle(tmp_path / "b", "1")
    for tool, *arguments in (("edgeseg-threads", "stub"), ("edgeseg-tamper", "301")):
        done = run(sanitized / tool, folder, *arguments, env=environment)
        assert done.returncode == 0, done.stderr


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
    folder = build(tmp_path / "v", "-DEDGESEG_TESTS=ON", "-DCMAKE_BUILD_TYPE=Debug")
    valgrind = ("valgrind", "-q", "--leak-check=full", "--error-exitcode=99")
    checked = run(*valgrind, folder / "edgeseg-check")
    assert checked.returncode == 0, checked.stderr
    bundle = stub_bundle(tmp_path / "b", "1")
    for tool, *arguments in (("edgeseg-threads", "stub"), ("edgeseg-tamper", "4001")):
        done = run(*valgrind, folder / tool, bundle, *arguments)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def fuzzer(tmp_path_factory):
    require("clang")
    return build(tmp_path_factory.mktemp("fuzz"), "-DEDGESEG_FUZZ=ON", "-DCMAKE_C_COMPILER=clang")


def test_fuzzed_manifests_sums_and_pictures_do_no_harm(fuzzer, tmp_path):
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    folder = stub_bundle(tmp_path / "b")
    layout = {"width": 60, "height": 50, "crop": [0, 0, 60, 50], "fan": [[0, 0], [9, 0], [5, 9]]}
    reseal(folder, lambda content: content.update(layout=layout))
    for kind, name in enumerate(("manifest.json", "SHA256SUMS", "vectors/frame-0.pgm")):
        (seeds / str(kind)).write_bytes(bytes([kind]) + (folder / name).read_bytes())
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
    for tool, *arguments in (("edgeseg-threads", "stub"), ("edgeseg-tamper", "2003")):
        assert run(*emulator, folder / tool, bundle, *arguments, env=environment).returncode == 0
    example = (*emulator, folder / "edgeseg-predict", bundle, "--verify")
    assert run(*example, env=environment).returncode == 0
