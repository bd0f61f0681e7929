"""Imports point one way, and what runs on a device stays small and valid Python 3.8."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("runtime", "kd", "export", "benchmarks", "cli")
STDLIB = sys.stdlib_module_names

# They lie beside each other in a kit and import each other by file name.
KIT_MODULES = {file.stem for file in (ROOT / "export" / "kit").glob("*.py")} - {"__init__"}
# Packages from outside that a folder may import, the most specific prefix first. To add an engine
# to the runtime: a line with its module.
PACKAGES = {
    "edgeseg.runtime.engines.ort": {"numpy", "onnxruntime"},
    "edgeseg.runtime.engines.ov": {"numpy", "openvino"},
    "edgeseg.runtime.stream.dicom": {"numpy", "pydicom"},
    "edgeseg.runtime.stream.dicom_pixels": {"numpy", "PIL", "pydicom"},
    "edgeseg.runtime.stream.video": {"numpy", "cv2"},
    "edgeseg.runtime.signature": {"model_signing", "cryptography"},
    "edgeseg.runtime.certificates": {"cryptography", "OpenSSL"},
    "edgeseg.runtime": {"numpy", "PIL"},
    "edgeseg.kd.data.nifti": {"numpy", "nibabel"},
    "edgeseg.kd": {"numpy", "PIL", "torch", "safetensors", "openpyxl"},
    "edgeseg.benchmarks.measure.complexity": {"numpy", "onnx", "google"},
    "edgeseg.benchmarks.baselines": {"torch"},  # networks, and nothing else may reach them
    "edgeseg.benchmarks.measure.profile": {"numpy", "onnxruntime", "openvino"},
    "edgeseg.benchmarks.measure.roofline": {"numpy", "onnx", "openvino"},
    "edgeseg.benchmarks.measure.yardstick": {"numpy", "onnx"},
    "edgeseg.benchmarks": {"numpy", "PIL"},
    "edgeseg.export.kit": {"numpy", *KIT_MODULES},
    "edgeseg.export.device.onboard.work": {"numpy"},
    "edgeseg.export.device": set(),
    "edgeseg.export.torch_module": {"numpy", "torch", "safetensors"},
    "edgeseg.export": {"numpy", "torch", "onnx", "onnxruntime", "openvino", "tensorrt_rtx"},
    "edgeseg.cli.jobs.rivals": {"numpy", "onnx", "onnxruntime", "openvino"},
    "edgeseg.cli.benchmark": {"click", "numpy"},
    "edgeseg.cli.jobs.api": {"tqdm", "pandas"},
    "edgeseg.cli.jobs": {"numpy"},
    "edgeseg.cli.console": {"click", "tqdm"},
    "edgeseg.cli": {"click"},
    "edgeseg": set(),
}
# What lies in benchmarks/ itself: beside measure/ and below report/.
BENCHMARKS = (
    "edgeseg.benchmarks.measure",
    *(f"edgeseg.benchmarks.{file.stem}" for file in (ROOT / "benchmarks").glob("*.py")),
)
BELOW = tuple(f"edgeseg.{folder}" for folder in FOLDERS if folder != "cli")
# What of edgeseg itself a folder may import.
LAYERS = {
    "edgeseg.runtime": ("edgeseg.runtime",),
    "edgeseg.kd": ("edgeseg.kd", "edgeseg.runtime", "edgeseg.__version__"),
    "edgeseg.benchmarks.measure": (
        "edgeseg.benchmarks.measure",
        "edgeseg.benchmarks.formatting",
        "edgeseg.benchmarks.jsonform",
        "edgeseg.runtime",
        "edgeseg.__version__",
    ),
    "edgeseg.benchmarks.report": ("edgeseg.benchmarks", "edgeseg.runtime"),
    "edgeseg.benchmarks.baselines": ("edgeseg.benchmarks.baselines", "edgeseg.runtime"),
    "edgeseg.benchmarks": (*BENCHMARKS, "edgeseg.runtime", "edgeseg.__version__"),
    "edgeseg.export.kit": ("edgeseg.export.kit",),
    "edgeseg.export.device.onboard.agent": (),
    "edgeseg.export.device.onboard": ("edgeseg.export.device.onboard", "edgeseg.runtime"),
    "edgeseg.export": (
        "edgeseg.export",
        "edgeseg.runtime",
        "edgeseg.__version__",
        "edgeseg.benchmarks.measure.complexity",
        "edgeseg.benchmarks.measure.latency",
        "edgeseg.kd.checkpoint",
        "edgeseg.kd.modules",
    ),
    "edgeseg.cli.jobs": ("edgeseg.cli.jobs", *BELOW),
    "edgeseg.cli.console": ("edgeseg.runtime",),
    "edgeseg.cli": ("edgeseg.cli", "edgeseg.__version__", *BELOW),
    "edgeseg.__main__": ("edgeseg.cli",),
    "edgeseg": ("edgeseg.cli.jobs.api", "edgeseg.export"),  # once they are asked for
}
# Wherever a package is heavy it waits until a function needs it.
ONLY_INSIDE_FUNCTIONS = {
    "edgeseg.benchmarks": {"onnx", "google", "onnxruntime", "openvino"},
    "edgeseg.cli.benchmark": {"numpy"},
    "edgeseg.cli.console": {"tqdm"},
    "edgeseg.cli.jobs.api": {"tqdm", "pandas"},
    "edgeseg.cli.jobs.rivals": {"onnx", "onnxruntime", "openvino"},
    "edgeseg.export": {"tensorrt_rtx"},
    "edgeseg.kd.data": {"nibabel"},
    "edgeseg.runtime.stream": {"pydicom", "cv2"},
    "edgeseg.runtime.signature": {"model_signing", "cryptography"},
    "edgeseg.runtime.certificates": {"cryptography", "OpenSSL"},
}


@dataclass(frozen=True)
class Import:
    name: str  # full name, as in "edgeseg.runtime.errors.InputError" or "numpy"
    line: int
    function: str  # the innermost function around it; "" at the top of a module
    for_types: bool  # under `if TYPE_CHECKING`

    @property
    def package(self) -> str:
        return self.name.split(".")[0]


def imports_of(module: str, source: str, *, is_package: bool = False) -> list[Import]:
    """List every import of a module's source, relative ones resolved."""
    found: list[Import] = []

    def walk(node: ast.AST, function: str, for_types: bool) -> None:
        for child in ast.iter_child_nodes(node):
            inner, types = function, for_types
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inner = child.name
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                types = True
            if isinstance(child, ast.Import):
                for alias in child.names:
                    found.append(Import(alias.name, child.lineno, inner, types))
            if isinstance(child, ast.ImportFrom):
                parts = module.split(".")
                kept = parts[: len(parts) - child.level + is_package] if child.level else []
                base = ".".join([*kept, *([child.module] if child.module else [])])
                for alias in child.names:
                    found.append(Import(f"{base}.{alias.name}", child.lineno, inner, types))
            walk(child, inner, types)

    walk(ast.parse(source), "", False)
    return found


def below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def rule_for(module: str, table):
    return next(rule for prefix, rule in table.items() if below(module, prefix))


def faults_of(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Return one line for each import that its layer forbids."""
    faults = []
    for each in imports_of(module, source, is_package=is_package):
        where = f"{module}:{each.line} imports {each.name}"
        if each.package == "edgeseg":
            allowed = rule_for(module, LAYERS)
            if not any(below(each.name, prefix) for prefix in allowed):
                faults.append(where)
            may = below(module, "edgeseg.cli") or module in ("edgeseg", "edgeseg.__main__")
            if below(each.name, "edgeseg.cli") and not may:
                faults.append(f"{where}: only __main__ and the package itself may")
            if module == "edgeseg" and not (each.function or each.for_types):
                faults.append(f"{where} before it is asked for")
        elif each.package not in STDLIB | {"__future__"}:
            if each.package not in rule_for(module, PACKAGES):
                faults.append(where)
            late = next((v for k, v in ONLY_INSIDE_FUNCTIONS.items() if below(module, k)), set())
            if each.package in late and not (each.function or each.for_types):
                faults.append(f"{where} before a function needs it")
    return faults


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of the package with its file."""
    files = list(ROOT.glob("*.py"))
    for folder in FOLDERS:
        files += (ROOT / folder).rglob("*.py")
    for file in sorted(files):
        parts = ["edgeseg", *file.relative_to(ROOT).with_suffix("").parts]
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


MODULES = dict(modules())
DEVICE_FILES = [file for name, file in MODULES.items() if below(name, "edgeseg.runtime")]
for folder in ("kit", "device.onboard"):
    DEVICE_FILES += [
        file for name, file in MODULES.items() if below(name, f"edgeseg.export.{folder}")
    ]


def test_every_folder_of_the_package_is_walked():
    for folder in FOLDERS:
        assert f"edgeseg.{folder}" in MODULES


def test_no_module_is_loose_at_the_root():
    loose = {file.name for file in ROOT.glob("*.py")}
    assert loose == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    file = MODULES[module]
    source = file.read_text(encoding="utf-8")
    assert faults_of(module, source, is_package=file.name == "__init__.py") == []


def test_exporter_takes_of_training_only_what_makes_a_network_of_a_checkpoint_or_a_name():
    places = [
        (module, each.name, each.function)
        for module, file in MODULES.items()
        if below(module, "edgeseg.export")
        for each in imports_of(module, file.read_text(encoding="utf-8"))
        if below(each.name, "edgeseg.kd")
    ]
    assert places == [
        ("edgeseg.export.pipeline", "edgeseg.kd.checkpoint.load_checkpoint", "load_trained"),
        ("edgeseg.export.pipeline", "edgeseg.kd.modules.names_function", "load_trained"),
        ("edgeseg.export.torch_module", "edgeseg.kd.modules.module_made_by", ""),
        ("edgeseg.export.torch_module", "edgeseg.kd.modules.names_function", ""),
    ]


def test_onnx_and_torch_are_not_imported_to_open_the_export_table():
    # Else `edgeseg targets` would wait for them.
    names = ("edgeseg.export.target", "edgeseg.export.plan", "edgeseg.export")
    names += tuple(name for name in MODULES if below(name, "edgeseg.export.kinds"))
    for name in (*names, "edgeseg.runtime.errors"):
        packages = {each.package for each in imports_of(name, MODULES[name].read_text())}
        assert packages <= STDLIB | {"__future__", "edgeseg"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edgeseg.runtime.image", "import torch"),
        ("edgeseg.runtime.image", "def f():\n    from ..kd.models import MODELS"),
        ("edgeseg.runtime.image", "from .. import kd"),
        ("edgeseg.runtime.image", "import edgeseg.export.target"),
        ("edgeseg.runtime.image", "import onnxruntime"),
        ("edgeseg.runtime.engines.ort", "import openvino"),
        ("edgeseg.runtime.stream.dicom", "import pydicom"),
        ("edgeseg.runtime.stream.sources", "def f():\n    import cv2"),
        ("edgeseg.runtime.engines.ov", "from ...kd import models"),
        ("edgeseg.kd.train", "from ..export import target"),
        ("edgeseg.kd.train", "import onnx"),
        ("edgeseg.kd.data.split", "from ...benchmarks.formatting import fixed"),
        ("edgeseg.benchmarks.record", "from ..kd.models import MODELS"),
        ("edgeseg.benchmarks.record", "import torch"),
        ("edgeseg.benchmarks.measure.latency", "from ..run import Candidate"),
        ("edgeseg.benchmarks.record", "from .report.wording import mib"),
        ("edgeseg.benchmarks.measure.latency", "from ..record import Row"),
        ("edgeseg.benchmarks.measure.latency", "from ..report.wording import mib"),
        ("edgeseg.benchmarks.baselines.unext", "import onnx"),
        ("edgeseg.benchmarks.record", "from ..cli.jobs.rivals import RIVALS"),
        ("edgeseg.cli.jobs.rivals", "import openvino"),
        ("edgeseg.benchmarks.record", "def f():\n    import click"),
        ("edgeseg.benchmarks.record", "import onnx"),
        ("edgeseg.benchmarks.measure.complexity", "import onnx"),
        ("edgeseg.export.parity", "from ..benchmarks.run import run_benchmark"),
        ("edgeseg.export.parity", "from ..kd.train import train"),
        ("edgeseg.export.parity", "import click"),
        ("edgeseg.export.kit.build_engine", "import onnx"),
        ("edgeseg.export.kit.build_engine", "from ..target import TARGETS"),
        ("edgeseg.export.kit.build_engine", "from ...runtime import bundle"),
        ("edgeseg.export.device.onboard.agent", "import numpy"),
        ("edgeseg.export.device.onboard.agent", "from ....runtime.files import sha256_of_file"),
        ("edgeseg.export.device.onboard.work", "from ..ssh import Connection"),
        ("edgeseg.export.device.ssh", "import paramiko"),
        ("edgeseg.export.pipeline", "from ..cli.jobs.sources import find_source"),
        ("edgeseg.kd.train", "def f():\n    from ..cli.main import cli"),
        ("edgeseg.cli.jobs.sources", "from ..main import cli"),
        ("edgeseg.kd.train", "from ..cli.jobs.ablation import reproduce"),
        ("edgeseg.cli.jobs.sources", "import click"),
        ("edgeseg.__main__", "from .runtime.session import Session"),
        ("edgeseg", "from edgeseg.cli.jobs.api import load"),
        ("edgeseg", "def f():\n    from edgeseg.kd import train"),
        ("edgeseg.cli.main", "import numpy"),
        ("edgeseg.cli.main", "import torch"),
    ],
)
def test_import_in_the_wrong_direction_is_found(module, source):
    assert len(faults_of(module, source)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("edgeseg.runtime.image", "import json\nimport numpy\nfrom .errors import InputError"),
        ("edgeseg.kd.train", "from ..runtime.files import write_bytes\nimport torch"),
        ("edgeseg.benchmarks.measure.complexity", "def f():\n    import onnx"),
        ("edgeseg.benchmarks.measure.complexity", "if TYPE_CHECKING:\n    import onnx"),
        ("edgeseg.benchmarks.baselines.unext", "import torch"),
        ("edgeseg.export.pipeline", "from ..benchmarks.measure.complexity import count_complexity"),
        ("edgeseg.export.verdict", "from ..benchmarks.measure.latency import measure_interleaved"),
        ("edgeseg.cli.main", "import click\ndef f():\n    from .jobs.sources import find_source"),
    ],
)
def test_import_in_the_right_direction_is_not_a_fault(module, source):
    assert faults_of(module, source) == []


def test_relative_import_in_a_package_starts_from_the_package_itself():
    (own,) = imports_of("edgeseg.runtime", "from .errors import Refused", is_package=True)
    (up,) = imports_of("edgeseg.runtime.engines", "from ..errors import Refused", is_package=True)
    assert own.name == up.name == "edgeseg.runtime.errors.Refused"


# --- what runs on a device -----------------------------------------------------------------------


@pytest.mark.parametrize("file", DEVICE_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_device_code_is_valid_python_3_8(file):
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    if len(tree.body) > 1:  # more than a docstring
        assert "from __future__ import annotations" in source
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            arguments = {keyword.arg for keyword in node.keywords}
            # zip(strict=) is of 3.10, as are slots and kw_only of dataclasses
            assert not arguments & {"strict", "slots", "kw_only"}, node.lineno
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("removeprefix", "removesuffix", "bit_count"), node.lineno


def test_syntax_newer_than_3_8_is_found():
    with pytest.raises(SyntaxError):
        ast.parse("match x:\n    case 1: pass", feature_version=(3, 8))


def loaded_by(code: str, *wanted: str) -> set[str]:
    """Return which packages an interpreter has loaded after running some code."""
    code += f"\nimport sys; print(*sorted({set(wanted)!r} & set(sys.modules)))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    return set(done.stdout.split())


def test_importing_the_whole_runtime_pulls_in_no_training_package_and_no_engine():
    names = [name for name in MODULES if below(name, "edgeseg.runtime")]
    names = [name for name in names if name.split(".")[-1] not in ("ort", "ov")]
    assert {"edgeseg.runtime", "edgeseg.runtime.session", "edgeseg.runtime.predict"} <= set(names)
    heavy = ("torch", "click", "onnx", "openvino", "onnxruntime", "tqdm", "edgeseg.kd")
    heavy += ("pydicom", "cv2")
    assert loaded_by("import " + ", ".join(names), *heavy) == set()


def test_importing_runtime_alone_does_not_even_load_numpy():
    assert loaded_by("import edgeseg.runtime", "numpy", "PIL") == set()


def test_loaded_packages_are_seen():
    assert loaded_by("import numpy", "numpy", "PIL") == {"numpy"}


def test_no_tuple_is_starred_to_keep_the_formatter_from_one_item_a_line():
    starred = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Starred) and isinstance(node.value, ast.Tuple)
    ]
    assert starred == []
