"""Every engine of the runtime, walked through export, profile, report and doctor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgeseg.benchmarks.measure.nvml import computes_on_nvidia
from edgeseg.benchmarks.measure.profile import PROFILERS
from edgeseg.benchmarks.measure.roofline import files_for
from edgeseg.benchmarks.measure.yardstick import yardstick_engine, yardstick_graph
from edgeseg.benchmarks.report.style import STYLE
from edgeseg.benchmarks.report.svg import FAMILIES, family
from edgeseg.export.device import doctor
from edgeseg.export.device.onboard import agent
from edgeseg.export.kinds.cpu import WRITERS
from edgeseg.export.target import targets
from edgeseg.runtime.engines import ENGINES, entry_of, files_of, is_installed

CPU_TARGETS = [target for target in targets().values() if target.engines]
# Engines that a kind of target names when it makes their files.
KINDS = Path(__file__).parents[2] / "export" / "kinds"
BUILT = {
    name
    for file in KINDS.glob("*.py")
    for name in re.findall(r'Form\("([\w-]+)"', file.read_text(encoding="utf-8"))
}


@pytest.mark.parametrize("name", ENGINES)
def test_something_exports_the_files_of_an_engine(name):
    assert files_of(name) in {*WRITERS, *BUILT}
    assert set(ENGINES) >= {*WRITERS, *BUILT}


def test_targets_name_engines_that_are_there_and_have_a_writer():
    named = {
        engine
        for target in CPU_TARGETS
        for engines in target.engines.values()
        for engine in engines
    }
    assert named == set(WRITERS)
    assert named <= {name for name, entry in ENGINES.items() if entry.on_cpu}


@pytest.mark.parametrize("name", ENGINES)
def test_engine_on_the_cpu_has_a_profiler_and_what_an_onnx_makes_a_yardstick(name):
    entry = ENGINES[name]
    assert (name in PROFILERS) == entry.on_cpu
    pytest.importorskip("onnx", reason="no onnx; make install brings it")
    assert yardstick_engine(name, "int8") == ((name, "int8") if entry.from_onnx else None)
    if entry.from_onnx and is_installed(name):
        suffixes = {
            f".{file.rpartition('.')[2]}" for file in files_for(name, yardstick_graph("fp32"))
        }
        assert suffixes == set(entry.suffixes)


@pytest.mark.parametrize("name", ENGINES)
def test_engine_has_the_colour_of_its_family_in_every_report(name):
    assert family(name) == ENGINES[name].family
    assert family(name) in FAMILIES
    assert re.search(rf"\.{family(name)}\{{--mark:var\(--{family(name)}\)\}}", STYLE)
    assert len(re.findall(rf"--{family(name)}:#", STYLE)) == 3  # light, dark, paper


@pytest.mark.parametrize("name", ENGINES)
def test_gpu_memory_and_clocks_are_read_of_the_gpus_that_an_engine_has(name):
    assert computes_on_nvidia(name, {"device": "GPU.0"}) == ENGINES[name].on_nvidia
    assert not computes_on_nvidia(name, {"device": "CPU"})


@pytest.mark.parametrize("name", ENGINES)
def test_doctor_looks_for_the_library_of_an_engine(name):
    assert ENGINES[name].package in doctor._ENGINES
    assert ENGINES[name].package in agent.MODULES


def test_what_is_named_after_an_engine_has_its_entry_and_another_name_has_none():
    assert entry_of("openvino-default") is ENGINES["openvino"]
    assert entry_of("openvino-gpu") is ENGINES["openvino-gpu"]
    assert entry_of("onnxruntime-quantize-static") is ENGINES["onnxruntime"]
    assert entry_of("torch-compile") is entry_of("openvinoise") is entry_of("") is None
