from __future__ import annotations

import os

import pytest

from edgeseg.benchmarks.measure import nvml
from edgeseg.tests.support.nvml_standin import NOT_TOLD, make_standin


@pytest.fixture
def library(tmp_path, monkeypatch):
    return make_standin(tmp_path, monkeypatch)


def test_figures_come_in_the_units_that_the_names_say(library):
    library.set(1, sm=1410, memory=6001, temperature=45, limit=70_000, power=33_500, energy=12)
    device = nvml.devices()[1]
    assert (device.index, device.name()) == (1, "NVIDIA T400")
    assert (device.clock_mhz(), device.memory_clock_mhz()) == (1410, 6001)
    assert device.temperature_c() == 45
    assert (device.power_limit_w(), device.power_w()) == (70, 33.5)
    assert device.energy_uj() == 12_000
    assert nvml.driver() == "575.57.08"


def test_energy_of_weeks_does_not_overflow(library):
    library.set(0, energy=10**13)  # more than 32 bits hold
    assert nvml.devices()[0].energy_uj() == 1e16


def test_what_a_gpu_does_not_tell_is_none(library):
    library.set(0, **dict.fromkeys(("sm", "temperature", "limit", "power", "energy"), NOT_TOLD))
    library.set(0, reasons=NOT_TOLD, used=NOT_TOLD, pid=NOT_TOLD)
    device = nvml.devices()[0]
    told = (device.clock_mhz(), device.temperature_c(), device.power_limit_w(), device.power_w())
    assert told == (None,) * 4
    assert (device.energy_uj(), device.used_bytes(), device.bytes_by_process()) == (None,) * 3
    assert device.slowdown_bits() == 0


def test_memory_is_told_by_process_and_in_all(library):
    library.set(0, used=5 << 20, pid=os.getpid(), own=2 << 20)
    device = nvml.devices()[0]
    assert device.bytes_by_process() == {1: 7, os.getpid(): 2 << 20}
    assert device.used_bytes() == 5 << 20


def test_memory_of_a_process_that_the_driver_hides_is_none_and_not_huge(library):
    library.set(0, pid=77, own=NOT_TOLD)
    assert nvml.devices()[0].bytes_by_process() == {1: 7, 77: None}


def test_older_driver_is_asked_by_its_own_names(tmp_path, monkeypatch):
    library = make_standin(tmp_path, monkeypatch, old=True)
    library.set(0, reasons=0x24, pid=5, own=6)
    assert nvml.devices()[0].slowdown_bits() == 0x24
    assert nvml.devices()[0].bytes_by_process() == {1: 7, 5: 6}


def test_machine_without_the_library_has_no_gpu(monkeypatch):
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-library.so.1")
    assert (nvml.devices(), nvml.driver()) == ((), None)


def test_library_that_lacks_every_function_has_no_gpu(monkeypatch):
    monkeypatch.setattr(nvml, "LIBRARY", "libm.so.6")
    assert nvml.devices() == ()


@pytest.mark.parametrize(
    ("engine", "device", "is_nvidia"),
    [
        ("onnxruntime", "CPU", False),
        ("openvino-gpu", "GPU.0", False),  # Intel's
        ("onnxruntime-cuda", "GPU", True),
        ("torch-cuda", "cuda:0", True),
    ],
)
def test_only_engines_on_nvidias_gpus_count_as_such(engine, device, is_nvidia):
    assert nvml.computes_on_nvidia(engine, {"device": device}) is is_nvidia


def test_engine_that_names_no_device_computes_on_the_cpu():
    assert not nvml.computes_on_nvidia("fake", {})
