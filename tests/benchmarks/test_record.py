from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edgeseg.benchmarks import run as run_module
from edgeseg.benchmarks.jsonform import json_from_value
from edgeseg.benchmarks.measure import latency, yardstick
from edgeseg.benchmarks.measure.environment import describe_environment
from edgeseg.benchmarks.record import NOTES, Settings, from_json, to_json
from edgeseg.benchmarks.report.files import to_html, to_table
from edgeseg.benchmarks.run import Candidate, run_benchmark
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import EngineError, InputError
from edgeseg.runtime.session import Session
from edgeseg.tests.support.fabricated_record import PEAKS, layer_report

PROBE = (
    sys.executable,
    "-S",
    "-c",
    'print(\'{"opened_ns": 1, "first_mask_ns": 2, "peak_rss_kib": 2048, "pss_kib": 1024}\')',
)


class FakeEngine:
    """Finds whatever is brighter than the mean, or nothing at all."""

    name = "fake"

    def __init__(self, *, blind=False, threads="1"):
        self.blind = blind
        self.facts = {"threads": threads}

    def run(self, image):
        return np.full_like(image, -1.0) if self.blind else image


@dataclass(frozen=True)
class FakeCase:
    name: str
    label: str = "benign"

    @property
    def group(self):
        return self.name

    def read_image(self, *, colour=False):
        return np.where(self.read_mask(), 255, 0).astype(np.uint8)

    def read_mask(self):
        mask = np.zeros((32, 32), bool)
        mask[8:24, 8:24] = self.label != "normal"
        return mask


CASES = [FakeCase(f"{n}") for n in range(20)] + [FakeCase("n", "normal")]


def candidate(name, *, size=32, probe=PROBE, trained=True, **engine):
    contract = InputContract(height=size, width=size)
    return Candidate(
        name=name,
        kind="openvino",
        precision="int8",
        session=Session.over(FakeEngine(**engine), contract),
        artifact_sha256="00" * 32,
        file_bytes=1000,
        complexity={"parameters": 10, "macs": 20, "weights_bytes": 30},
        probe=probe,
        trained=trained,
    )


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    # It would rest for 30 s.
    monkeypatch.setattr(run_module, "find_counter", lambda **gpus: None)
    monkeypatch.setattr(latency, "SETTLE_S", 0.0)
    monkeypatch.setattr(latency, "WARMUP_TOLERANCE", np.inf)


def benchmark(*candidates, cases=CASES, rounds=3, modes=("offline",), **settings):
    return run_benchmark(
        *(candidates, cases),
        settings=Settings(modes=modes, rounds=rounds, offline_s=0.02, **settings),
        part="all",
        split_sha256=None,
        command=["edgeseg", "benchmark"],
    )


def test_record_holds_every_sample_and_compares_each_row_with_the_first():
    record = benchmark(candidate("sees"), candidate("blind", blind=True))
    sees, blind = record.rows
    assert (record.frames, record.rounds, record.images) == (16, 3, 21)
    assert [len(row.latency.e2e_ms) for row in record.rows] == [3, 3]
    assert sees.process.peak_rss_mib == 2
    assert sees.accuracy.lesions.per_image["dice"].mean == 1
    assert blind.accuracy.lesions.per_image["dice"].mean == 0
    # It answers -1 everywhere; a quarter of each of 20 images is lesion, and nothing of the 21st.
    assert blind.calibration_error == pytest.approx(1 / (1 + np.e) - 20 / 21 / 4, abs=1e-6)
    (comparison,) = record.comparisons
    assert (comparison.name, comparison.reference) == ("blind", "sees")
    assert (comparison.dice.mean, comparison.dice.n) == (-1, 20)


def test_measured_record_survives_json_and_can_be_reported():
    record = benchmark(candidate("a"), candidate("b"))
    again = from_json(to_json(record))
    assert to_json(again) == to_json(record)
    assert to_table(again) == to_table(record)
    assert to_html(again) == to_html(record)


def test_what_was_not_asked_for_is_none_and_energy_says_why():
    record = benchmark(candidate("a"), modes=())
    (row,) = record.rows
    assert (row.offline, row.paced, row.soak, row.energy, row.layers) == (None,) * 5
    assert record.no_energy == "not asked for"
    assert record.peaks == ()


def test_every_mode_asked_for_is_measured_on_every_row():
    record = benchmark(
        *(candidate("a"), candidate("b")),
        modes=("offline", "paced", "soak"),
        paced_s=0.1,
        hz=50.0,
        soak_s=0.2,
    )
    for row in record.rows:
        assert row.offline.streams == 1
        assert (row.paced.hz, row.paced.due) == (50, 5)
        assert len(row.soak.windows) == 20


@pytest.fixture
def short_passes(monkeypatch):
    monkeypatch.setattr(yardstick, "REST_S", 0.0)
    monkeypatch.setattr(yardstick, "PAIRS", 1)
    monkeypatch.setattr(yardstick, "MAX_WAIT", np.inf)


def test_every_pass_opens_the_row_anew_and_times_it_beside_its_yardstick(short_passes):
    opened = []

    def open_another(threads):
        opened.append(candidate("a").session)
        return opened[-1]

    row = dataclasses.replace(candidate("a"), kind="onnxruntime", open_another=open_another)
    once = dataclasses.replace(candidate("b"), kind="torch", precision="fp32")
    record = benchmark(row, once, passes=3)
    assert len(opened) == 3
    for measured in record.rows:
        assert len(measured.passes) == 3
        assert all(len(each.row) == len(each.yardstick) == 1 for each in measured.passes)
    about = [measured.yardstick for measured in record.rows]
    assert [(each.engine, each.precision, each.threads) for each in about] == [
        ("onnxruntime", "int8", "1"),
        ("onnxruntime", "fp32", "1"),
    ]
    assert to_json(from_json(to_json(record))) == to_json(record)


def test_what_takes_long_to_open_is_opened_once(short_passes, monkeypatch):
    monkeypatch.setattr(run_module, "_REOPEN_MAX_MS", -(10**9))

    def open_another(threads):
        pytest.fail("opened")

    slow = dataclasses.replace(candidate("a"), kind="onnxruntime", open_another=open_another)
    assert len(benchmark(slow, passes=1).rows[0].passes) == 1


def test_engine_without_a_yardstick_has_no_passes(short_passes):
    record = benchmark(dataclasses.replace(candidate("a"), kind="tensorrt"), passes=1)
    assert (record.rows[0].yardstick, record.rows[0].passes) == (None, ())
    assert "no-yardstick" in codes(record)


def test_system_that_tells_no_waits_is_noted(short_passes, monkeypatch):
    row = dataclasses.replace(candidate("a"), kind="onnxruntime")
    assert "no-waits" not in codes(benchmark(row, passes=0))
    monkeypatch.setattr(run_module, "waits_are_told", lambda: False)
    assert "no-waits" in codes(benchmark(row, passes=1))


def test_passes_without_their_yardstick_are_refused(short_passes):
    content = json.loads(
        to_json(benchmark(dataclasses.replace(candidate("a"), kind="onnxruntime"), passes=1))
    )
    content["rows"][0]["yardstick"] = None
    with pytest.raises(InputError) as caught:
        from_json(json.dumps(content))
    assert caught.value.code == "E-REPORT-SCHEMA"


def test_streams_are_sessions_of_their_own():
    opened = []

    def open_another(threads):
        opened.append(threads)
        return candidate("a").session

    several = dataclasses.replace(candidate("a"), open_another=open_another)
    assert benchmark(several, streams=2).rows[0].offline.streams == len(opened) == 2


@pytest.mark.parametrize(
    ("threads", "streams", "each"), [("8", 3, 2), ("2", 4, 1), ("none", 2, 1), ("8", 1, None)]
)
def test_streams_share_the_threads_of_their_row(threads, streams, each):
    opened = []

    def open_another(count):
        opened.append(count)
        one = candidate("a").session
        one.engine.facts = {"threads": str(count)}
        return one

    several = dataclasses.replace(candidate("a"), open_another=open_another)
    several.session.engine.facts = {"threads": threads}
    offline = benchmark(several, streams=streams).rows[0].offline
    assert opened == ([] if each is None else [each] * streams)
    assert offline.threads_each == (threads if each is None else str(each))


# --- batches -------------------------------------------------------------------------------------


def test_batch_is_measured_after_its_answers_were_compared(monkeypatch):
    compared = []
    monkeypatch.setattr(
        *(run_module, "require_same_answers"),
        lambda session, frames, batch, precision: compared.append((len(frames), batch, precision)),
    )
    several = dataclasses.replace(candidate("a"), max_batch=4)
    assert benchmark(several, batch=4).rows[0].offline.batch == 4
    assert compared == [(16, 4, "int8")]


def test_batch_for_a_bundle_of_single_frames_is_refused_with_what_to_export():
    some = [dataclasses.replace(candidate("takes 4"), max_batch=4), candidate("takes 1")]
    with pytest.raises(InputError, match=r"takes 1 cannot .* --dynamic 4") as e:
        benchmark(*some, batch=4)
    assert e.value.code == "E-BENCHMARK-BATCH"


def test_network_that_is_not_trained_is_timed_and_not_scored():
    record = benchmark(candidate("a"), candidate("b", trained=False))
    row = record.rows[1]
    assert (row.accuracy, row.scores, len(row.latency.e2e_ms)) == (None, (), 3)
    assert np.isnan(row.calibration_error)
    assert record.comparisons[0].dice is None
    assert "not-trained" in codes(record)
    assert to_json(from_json(to_json(record))) == to_json(record)


def test_layers_are_reported_where_the_engine_has_a_profiler_and_the_graph_is_known(monkeypatch):
    asked = []

    def report(engine, files, model, peaks, devices):
        asked.append((engine, model, peaks))
        return layer_report()

    monkeypatch.setattr(run_module, "measure_peaks", lambda engine, threads: PEAKS)
    monkeypatch.setattr(run_module, "report_layers", report)
    known = [dataclasses.replace(candidate(name), onnx=b"onnx") for name in "ab"]
    elsewhere = dataclasses.replace(candidate("c"), kind="torch", onnx=b"onnx")
    record = benchmark(*known, elsewhere, candidate("d"), layers=True)
    assert asked == [("openvino", b"onnx", PEAKS)] * 2
    assert record.peaks == (PEAKS,)
    assert [row.layers is not None for row in record.rows] == [True, True, False, False]


def codes(record):
    return [note.code for note in record.notes]


def test_notes_tell_what_to_mind():
    record = benchmark(candidate("a"), candidate("b", size=48, threads="2"))
    assert {"few-rounds", "input-sizes", "threads", "few-lesions"} <= set(codes(record))
    texts = {note.code: note.text for note in record.notes}
    assert "32×32, 48×48" in texts["input-sizes"]
    assert "368" in texts["few-rounds"]


def test_notes_come_from_the_closed_list_in_its_order():
    found = codes(benchmark(candidate("a"), candidate("b", size=48, threads="2")))
    assert found == [code for code in NOTES if code in found]


def test_note_warns_of_a_busy_machine(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    assert "load" in codes(benchmark(candidate("a")))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 99.0, 99.0))
    assert "load" not in codes(benchmark(candidate("a")))


@pytest.mark.parametrize(
    ("candidates", "cases", "rounds", "code"),
    [
        ([], CASES, 3, "E-BENCHMARK-EMPTY"),
        (["a"], [], 3, "E-BENCHMARK-EMPTY"),
        (["a"], CASES, 0, "E-BENCHMARK-EMPTY"),
        (["a", "a"], CASES, 3, "E-BENCHMARK-NAMES"),
    ],
)
def test_benchmark_of_nothing_or_of_one_name_twice_is_refused(candidates, cases, rounds, code):
    with pytest.raises(InputError) as caught:
        benchmark(*map(candidate, candidates), cases=cases, rounds=rounds)
    assert caught.value.code == code


def test_unknown_mode_is_refused():
    with pytest.raises(InputError) as caught:
        Settings(modes=("server",))
    assert caught.value.code == "E-BENCHMARK-MODE"


def test_streams_of_what_opens_once_are_refused():
    with pytest.raises(InputError) as caught:
        benchmark(candidate("a"), streams=2)
    assert caught.value.code == "E-BENCHMARK-STREAMS"


def test_candidate_that_cannot_start_ends_the_benchmark():
    with pytest.raises(EngineError) as caught:
        benchmark(candidate("a", probe=(sys.executable, "-c", "raise SystemExit('broken')")))
    assert caught.value.code == "E-PROBE-FAILED"


def test_environment_names_no_place_and_no_person():
    command = [
        "/home/jane doe/venv/bin/edgeseg",
        "benchmark",
        "--data=/home/jane doe/busi",
        "../jane doe/run/",
        "model=/jane doe/a",
        "C=1",
    ]
    environment = describe_environment(command)
    assert environment.command == ("edgeseg", "benchmark", "--data=busi", "run", "a", "C=1")
    text = json.dumps(json_from_value(environment))
    assert "jane" not in text
    assert str(Path.cwd()) not in text


def test_environment_tells_versions_and_what_is_absent(monkeypatch):
    environment = describe_environment([])
    assert environment.packages["numpy"] == np.__version__
    assert environment.cores >= 1
    monkeypatch.setattr("edgeseg.benchmarks.measure.environment._PACKAGES", ("no-such-package",))
    assert describe_environment([]).packages == {"no-such-package": None}


def test_importing_benchmarks_pulls_in_no_training_packages():
    code = (
        "import sys, edgeseg.benchmarks.report.files, edgeseg.benchmarks.measure.complexity; "
        "heavy = {'torch', 'onnx', 'click', 'tqdm', 'matplotlib', 'onnxruntime', 'openvino'}; "
        "print(*sorted((heavy | {'edgeseg.kd', 'edgeseg.export'}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
