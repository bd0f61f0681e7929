from __future__ import annotations

import json
import os
import sys
import time

import numpy as np
import pytest

from edgeseg.benchmarks.measure import nvml, process
from edgeseg.benchmarks.measure.process import probe_process, report_probe
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import EngineError
from edgeseg.runtime.session import Session
from edgeseg.tests.support.nvml_standin import make_standin

CHILD = """
import numpy as np, time
from edgeseg.benchmarks.measure.process import report_probe
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.session import Session

class Engine:
    name, facts = "fake", {}
    def run(self, image):
        time.sleep(0.02)
        return np.zeros((1, 1, 16, 16), np.float32)

def open_session():
    globals()["block"] = np.ones((64, 1 << 17))     # 64 MiB
    return Session.over(Engine(), InputContract(height=16, width=16))

print("a library's chatter")
print(report_probe(open_session, np.zeros((8, 8), np.uint8)))
"""


def python(code):
    return (sys.executable, "-c", code)


def test_child_reports_its_own_memory_and_times_since_it_was_started():
    before = time.monotonic()
    facts = probe_process(python(CHILD))
    elapsed_ms = 1000 * (time.monotonic() - before)
    assert 64 < facts.pss_mib <= facts.peak_rss_mib < 1024
    assert 0 < facts.start_ms < facts.first_mask_ms - 20 < elapsed_ms


def test_peak_of_the_parent_is_not_the_childs():
    block = np.ones((256, 1 << 17))  # 256 MiB here
    code = (
        "import json; from edgeseg.benchmarks.measure.process import _peak_rss_kib; "
        "line = dict(opened_ns=0, first_mask_ns=0, peak_rss_kib=_peak_rss_kib(), pss_kib=None); "
        "print(json.dumps(line))"
    )
    facts = probe_process(python(code))
    assert facts.peak_rss_mib < 256 == block.nbytes >> 20
    assert facts.pss_mib is None


def test_kernel_that_does_not_tell_the_peak_is_an_engine_error(monkeypatch):
    monkeypatch.setattr(process, "read_fields", lambda path: {})
    session = Session.over(FakeEngine(), InputContract(height=16, width=16))
    with pytest.raises(EngineError) as caught:
        report_probe(lambda: session, np.zeros((8, 8), np.uint8))
    assert caught.value.code == "E-PROBE-FAILED"


class FakeEngine:
    name, facts = "fake", {}

    def run(self, image):
        return np.zeros((1, 1, 16, 16), np.float32)


def test_child_predicts_the_first_frame_and_twenty_more():
    calls = []

    class Engine:
        name, facts = "fake", {}

        def run(self, image):
            calls.append(time.monotonic_ns())
            return np.zeros((1, 1, 16, 16), np.float32)

    def open_session():
        return Session.over(Engine(), InputContract(height=16, width=16))

    line = json.loads(report_probe(open_session, np.zeros((8, 8), np.uint8)))
    assert len(calls) == 21
    assert line["opened_ns"] <= calls[0] <= line["first_mask_ns"] <= calls[1]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (python("import sys; sys.exit('E-BUNDLE-HASH: model.onnx')"), "E-BUNDLE-HASH: model.onnx"),
        (python("print('no line')"), "no probe line"),
        (python("print('{}')"), "no probe line"),
        (python("print('[]')"), "no probe line"),
        (python("pass"), "no probe line"),
        (("/no/such/program",), "No such file"),
        (python("import time; time.sleep(60)"), "took over 0.3 s"),
    ],
)
def test_failed_child_is_an_engine_error_that_says_why(command, told):
    timeout_s = 0.3 if "sleep" in command[-1] else 60
    with pytest.raises(EngineError) as caught:
        probe_process(command, timeout_s)
    assert caught.value.code == "E-PROBE-FAILED"
    assert told in str(caught.value)


# --- GPU memory ----------------------------------------------------------------------------------


class GpuEngine:
    """Says that it computes on a GPU, and calls a function at each frame."""

    name = "onnxruntime-cuda"

    def __init__(self, at_frame=lambda: None, device="GPU"):
        self.facts = {"device": device}
        self._at_frame = at_frame

    def run(self, image):
        self._at_frame()
        return np.zeros((1, 1, 16, 16), np.float32)


def probe_here(engine, others_bytes=0):
    """Return what `report_probe` of a session over an engine in this process comes to."""
    contract = InputContract(height=16, width=16)
    line = json.loads(
        report_probe(lambda: Session.over(engine, contract), np.zeros((8, 8), np.uint8))
    )
    return process._device_facts(line["device"], others_bytes)


def test_gpu_memory_is_the_most_that_the_process_itself_had(tmp_path, monkeypatch):
    library = make_standin(tmp_path, monkeypatch)
    sizes = iter([10 << 20, 30 << 20, *[20 << 20] * 19])
    library.set(0, pid=os.getpid(), used=99 << 20)
    found = probe_here(GpuEngine(lambda: library.set(0, own=next(sizes))))
    assert found == (30, "NVML, of the process")


def test_gpu_memory_of_a_process_that_nvml_does_not_know_is_the_rise_of_all(tmp_path, monkeypatch):
    library = make_standin(tmp_path, monkeypatch)
    library.set(0, pid=os.getpid() + 1, used=99 << 20)  # in a container
    library.set(1, used=1 << 20)
    found = probe_here(GpuEngine(), others_bytes=60 << 20)
    assert found == (40, "NVML, rise of what all processes use")


def test_gpu_memory_of_a_jetson_is_what_nvmap_lists_for_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-library.so.1")
    table = tmp_path / "clients"
    rows = [("user", "python3", os.getpid(), "2048K"), ("user", "gnome-shell", 7, "999999K")]
    lines = ["CLIENT PROCESS PID SIZE", *(" ".join(map(str, row)) for row in rows)]
    table.write_text("\n".join([*lines, "total 1002047K"]))
    monkeypatch.setattr(process, "_NVMAP", table)
    assert probe_here(GpuEngine()) == (2, "nvmap, of the process")


def test_gpu_without_a_counter_has_no_figure_but_the_reason(monkeypatch):
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-library.so.1")
    device_mib, told = probe_here(GpuEngine(), others_bytes=None)
    assert device_mib is None
    assert told.startswith("no counter")


def test_engine_on_the_cpu_asks_no_gpu(monkeypatch):
    monkeypatch.setattr(nvml, "devices", lambda: pytest.fail("asked"))
    assert probe_here(GpuEngine(device="CPU")) == (None, "runs on the CPU")


def test_driver_is_asked_only_after_the_first_mask(monkeypatch):
    calls = []
    monkeypatch.setattr(nvml, "devices", lambda: calls.append("driver") or ())
    probe_here(GpuEngine(lambda: calls.append("frame")), others_bytes=None)
    assert calls[:2] == ["frame", "driver"]
