from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from edgeseg.benchmarks.formatting import MISSING, signed_interval
from edgeseg.benchmarks.measure.accuracy import PairedDifference, summarise
from edgeseg.benchmarks.record import Note, Proof, ProofStep, from_json, to_json
from edgeseg.benchmarks.report.charts import PARTS
from edgeseg.benchmarks.report.files import to_csv, to_html, to_markdown, to_table, write_reports
from edgeseg.benchmarks.report.style import STYLE
from edgeseg.benchmarks.report.svg import FAMILIES, family
from edgeseg.runtime.errors import InputError
from edgeseg.tests.support.fabricated_record import (
    ENVIRONMENT,
    PEAKS,
    bare_record,
    full_record,
    full_row,
    layer_report,
    make_record,
    make_row,
    score,
    soak,
    untrained,
)

FAST = make_row("OpenVINO INT8", kind="openvino", precision="int8", e2e_ms=(2.0,) * 40)
SLOW = make_row("torch FP32")


def test_record_comes_back_equal_from_json():
    rows = [make_row(name, dice=(0.0, 0.5, 0.6, 0.7, 0.8, 0.9)) for name in "ab"]
    rows = [dataclasses.replace(row, accuracy=finite(row.accuracy)) for row in rows]
    record = make_record(*rows, notes=[Note("few-rounds", "few")])
    assert from_json(to_json(record)) == record


def finite(accuracy):
    """Without the false-positive share, which is NaN here and so equals nothing."""
    return dataclasses.replace(accuracy, false_positive_share=0.0)


def test_record_gives_the_same_json_after_reading():
    text = to_json(make_record(SLOW, FAST))
    assert to_json(from_json(text)) == text


def test_undefined_number_is_null_in_json_and_nan_again_after():
    undefined = dataclasses.replace(SLOW.scores[0], hd95_px=float("nan"))
    record = make_record(dataclasses.replace(SLOW, scores=(undefined,)))
    text = to_json(record)
    assert json.loads(text)["rows"][0]["scores"][0]["hd95_px"] is None
    assert np.isnan(from_json(text).rows[0].scores[0].hd95_px)


def drop(*path):
    def damage(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        del content[last]

    return damage


def put(value, *path):
    def damage(content):
        *parents, last = path
        for key in parents:
            content = content[key]
        content[last] = value

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        put("edgeseg.benchmark/1", "schema"),
        drop("images"),
        put(1, "surprise"),
        put("40", "images"),
        put(True, "images"),
        put(41, "settings", "rounds"),
        put(8, "rows", 0, "kind"),
        put([1.0] * 39 + ["1"], "rows", 0, "latency", "e2e_ms"),
        put([1.0] * 39 + [0.0], "rows", 0, "latency", "e2e_ms"),
        put([], "rows", 0, "accuracy", "groups"),
        put("x", "comparisons", 0, "reference"),
        put([], "comparisons"),
        put([], "rows"),
        put([{"code": "invented", "text": ""}], "notes"),
        put(None, "environment", "cpu"),
    ],
)
def test_damaged_record_is_refused(damage):
    content = json.loads(to_json(make_record(SLOW, FAST)))
    damage(content)
    with pytest.raises(InputError) as caught:
        from_json(json.dumps(content))
    assert caught.value.code == "E-REPORT-SCHEMA"


@pytest.mark.parametrize(
    "damage",
    [
        put([], "rows", 1, "latency", "pre_ms"),
        put([-1.0] * 400, "rows", 1, "latency", "post_ms"),
        put([1], "rows", 1, "latency", "block_calls"),
        put([], "rows", 1, "offline", "window_fps"),
        put([], "rows", 1, "paced", "answered"),
        put(0, "rows", 1, "paced", "hz"),
        put([], "rows", 1, "soak", "windows"),
        put(0.0, "rows", 1, "soak", "windows", 3, "end_s"),
        put(0.0, "rows", 1, "soak", "windows", 3, "p50_ms"),
        put("else", "rows", 1, "layers", "costs", 0, "name"),
        put([], "rows", 1, "layers", "times", "plain_ms"),
        put(0.0, "rows", 1, "layers", "attained", "measured_ms"),
        put(-8000, "rows", 1, "layers", "costs", 0, "read_bytes"),
        put(-1, "rows", 1, "layers", "costs", 0, "macs"),
        drop("rows", 1, "accuracy", "groups", 0, "per_image", "iou"),
        drop("rows", 1, "accuracy", "groups", 0, "pooled", "dice"),
        put(0.0, "peaks", 0, "bandwidth_gb_s"),
        put("invented", "changes", 0, "code"),
    ],
)
def test_record_that_contradicts_itself_is_refused(damage):
    content = json.loads(to_json(full_record()))
    damage(content)
    with pytest.raises(InputError) as caught:
        from_json(json.dumps(content))
    assert caught.value.code == "E-REPORT-SCHEMA"


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "not json"])
def test_text_that_is_no_record_is_refused(text):
    with pytest.raises(InputError) as caught:
        from_json(text)
    assert caught.value.code == "E-REPORT-SCHEMA"


def test_headline_names_the_fastest_row_and_its_dice_difference():
    worse = make_row("INT8", e2e_ms=(2.0,) * 40, dice=(0.7, 0.8))
    head = to_table(make_record(SLOW, worse)).splitlines()[0]
    assert head.startswith("INT8 is 5.00× faster than torch FP32 (99 % interval 5.00–5.00)")
    assert "Dice −0.100 (−0.100 to −0.100, n=2)" in head


def test_difference_that_is_one_is_not_written_as_none():
    worse = make_row("INT8", e2e_ms=(2.0,) * 40, dice=(0.8, 0.899))
    record = make_record(SLOW, dataclasses.replace(worse, scores=SLOW.scores))
    dice = PairedDifference(-0.0005, -0.0009, -0.0002, 34)
    changed = dataclasses.replace(record.comparisons[0], dice=dice)
    record = dataclasses.replace(record, comparisons=(changed,))
    expected = "−0.0005 (−0.0009 to −0.0002"
    assert f"Dice {expected}, n=34)" in to_table(record).splitlines()[0]
    assert f"{expected})" in to_markdown(record)


def test_small_ends_of_an_interval_get_more_digits_only_where_it_leaves_out_0():
    assert signed_interval(-0.02, -0.03, -0.01) == "−0.020 (−0.030 to −0.010)"
    assert signed_interval(0.0001, -0.0001, 0.0004) == "0.000 (0.000 to 0.000)"
    assert signed_interval(0.00003, 0.00001, 0.00009) == "+0.00003 (+0.00001 to +0.00009)"
    assert signed_interval(0.1, math.nan, math.nan) == "+0.100 (– to –)"


def test_results_say_on_how_many_threads_and_which_images():
    text = to_markdown(make_record(SLOW, FAST))
    assert "40 calls on 2 threads. " in text
    assert "Dice: 2 images with a lesion of 2 (test part of split abababababab). " in text
    other = make_row("b", engine_facts={"threads": "1"})
    assert "40 calls. " in to_markdown(make_record(SLOW, other))


def test_export_of_several_rows_has_its_proof_once():
    rows = [full_row(f"student · {engine}") for engine in ("openvino", "onnxruntime")]
    text = to_markdown(make_record(*rows, full_row("other", artifact_sha256="cd" * 32)))
    steps = [line for line in text.splitlines() if ": openvino-int8 |" in line]
    assert [line.split(":")[0] for line in steps] == ["| student", "| other"]


def test_conditions_that_nothing_tells_share_a_line():
    line = line_of(bare_record(), "Before and after", "Not told by this system")
    assert line["Before"].startswith("Core clocks, Range of the governor, Governor, Boost")
    assert "Power mode" in line["Before"]
    assert "Not told by this system" not in to_markdown(full_record())


def test_contents_lead_to_every_section():
    page = to_html(full_record())
    links = re.findall(r'<a href="#([^"]*)">', page)
    assert links == re.findall(r'<h2 id="([^"]*)">', page)


def test_terminal_gets_nothing_that_it_would_obey():
    assert "\x1b" not in to_table(make_record(make_row("a\x1b[2Jb")))


def test_headline_says_no_difference_when_the_interval_holds_1():
    head = to_table(make_record(SLOW, make_row("again"))).splitlines()[0]
    assert head.startswith("No difference in latency was found between again and torch FP32")
    assert "not shown to differ: 0.000" in head


def test_headline_does_not_praise_a_slower_row():
    head = to_table(make_record(FAST, SLOW)).splitlines()[0]
    assert head.startswith("OpenVINO INT8 is the fastest; torch FP32 takes 5.00× its time")


def test_headline_of_a_single_row_compares_nothing():
    head = to_table(make_record(SLOW)).splitlines()[0]
    assert head.startswith("torch FP32 takes 10.0 ms a frame (median), Dice 0.850")


def test_table_says_why_there_is_no_p99():
    assert "n too small" in to_table(make_record(SLOW))


def test_every_report_shows_every_note():
    record = make_record(SLOW, notes=[Note("few-rounds", "Too few rounds.")])
    for text in (to_table(record), to_markdown(record), to_html(record)):
        assert "Too few rounds." in text


HOSTILE = "<script>alert('x')</script>\"&|`*"


def test_html_escapes_hostile_text_from_every_field():
    row = make_row(HOSTILE, precision=HOSTILE, engine_facts={HOSTILE: HOSTILE})
    record = make_record(row, make_row("b"), notes=[Note("load", HOSTILE)])
    environment = dataclasses.replace(ENVIRONMENT, cpu=HOSTILE, command=(HOSTILE,))
    page = to_html(dataclasses.replace(record, environment=environment))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_markdown_table_keeps_its_columns_with_a_hostile_name():
    lines = to_markdown(make_record(make_row(HOSTILE))).splitlines()
    header = next(line for line in lines if line.startswith("| Candidate"))
    row = lines[lines.index(header) + 2]
    assert row.count("|") - row.count("\\|") == header.count("|")
    assert "<" not in row


class Elements(HTMLParser):
    """Collects the elements and checks that every one is closed."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_page_loads_nothing_and_runs_nothing():
    page = to_html(make_record(SLOW, FAST))
    names = {name for name, _ in Elements(page).found}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "use", "image"}
    assert not re.search(r"https?:|url\(|@import|src=|href=.[^#]|javascript:|\son\w+=", page)


def test_page_is_well_formed_and_its_references_resolve():
    page = Elements(to_html(make_record(SLOW, FAST)))
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.found if "id" in attrs]
    assert len(set(ids)) == len(ids)
    wanted = " ".join(attrs.get("aria-labelledby") or "" for _, attrs in page.found).split()
    assert set(wanted) <= set(ids)


def test_every_plot_has_title_and_description_and_every_header_cell_a_scope():
    page = Elements(to_html(make_record(SLOW, FAST))).found
    plots = [attrs for name, attrs in page if name == "svg"]
    assert len(plots) == 5
    assert all(p["role"] == "img" and len(p["aria-labelledby"].split()) == 2 for p in plots)
    assert all(attrs.get("scope") in ("col", "row") for name, attrs in page if name == "th")


def test_page_without_any_lesion_has_no_accuracy_plot_but_stands():
    normal = dataclasses.replace(score("n", "normal", 1.0), lesion_px=0, dice=float("nan"))
    row = make_row("a", scores=(normal,), accuracy=summarise([normal]))
    assert "No image with a lesion was scored." in to_html(make_record(row))


def test_page_stands_with_a_single_image_whose_interval_is_undefined():
    assert "nan" not in to_html(make_record(make_row("a", dice=(0.5,))))


def test_csv_leaves_cells_empty_where_there_is_no_number():
    reference, other = csv.DictReader(io.StringIO(to_csv(make_record(SLOW, FAST))))
    assert (reference["p50_ms"], reference["p99_ms"], reference["latency_ratio"]) == ("10", "", "")
    assert float(other["latency_ratio"]) == pytest.approx(0.2)


def test_reports_are_written_beside_the_page(tmp_path):
    record = make_record(SLOW, FAST)
    written = write_reports(record, tmp_path / "new" / "bench.html")
    assert [path.suffix for path in written] == [".html", ".json", ".md", ".csv"]
    assert sorted(written) == sorted((tmp_path / "new").iterdir())
    assert written[1].read_text(encoding="utf-8") == to_json(record)


def test_page_under_another_ending_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        write_reports(make_record(SLOW), tmp_path / "bench.json")
    assert caught.value.code == "E-REPORT-NAME"
    assert list(tmp_path.iterdir()) == []


# --- a record with everything, and one with nothing that need not be there ----------------------

SECTIONS = [
    *("Results", "Plots", "Latency in detail", "How comparable is this run"),
    *("Modes", "Layers and roofline"),
    *("Memory and energy", "Parity and gates", "Accuracy by class and lesion size"),
    *("All metrics", "Conditions", "Definitions", "Reproduce"),
]
BOTH = pytest.mark.parametrize("record", [full_record(), bare_record()], ids=["full", "bare"])


@BOTH
def test_page_and_markdown_have_every_section_in_order(record):
    assert re.findall(r"<h2[^>]*>([^<]*)</h2>", to_html(record)) == SECTIONS
    in_text = [title for title in SECTIONS if title != "Plots"]
    assert re.findall(r"^## (.*)$", to_markdown(record), re.MULTILINE) == in_text


@BOTH
def test_page_of_any_record_is_well_formed_loads_nothing_and_has_no_nan(record):
    page = to_html(record)
    elements = Elements(page)
    assert elements.open == []
    ids = [attrs["id"] for _, attrs in elements.found if "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert not re.search(r"<script|https?:|url\(|@import|src=|href=.[^#]|\bnan\b|\bNone\b", page)


@BOTH
def test_reports_are_the_same_after_json(record):
    again = from_json(to_json(record))
    for write in (to_json, to_html, to_markdown, to_csv, to_table):
        assert write(again) == write(record)


def line_of(record, table, name):
    """Return a line of a Markdown table as a dict by heading."""
    text = to_markdown(record).split(f"# {table}\n", 1)[1]
    text = text[text.index("\n|") + 1 :].split("\n\n", 1)[0]
    lines = [line[2:-2].split(" | ") for line in text.splitlines()]
    (found,) = (line for line in lines[2:] if line[0] == name)
    return dict(zip(lines[0], found, strict=True))


def test_results_give_false_positives_beside_dice_where_images_have_no_lesion():
    with_normals = summarise([*make_row("one").scores, no_lesion(0), no_lesion(50)])
    line = line_of(make_record(make_row("one", accuracy=with_normals)), "Results", "one")
    heading = "False positives (images without a lesion)"
    headings = list(line)
    assert headings[headings.index(heading) - 2].startswith("Dice (95 %)")
    assert line[heading] == "50.0 % (n=2)"
    without = line_of(make_record(make_row("one")), "Results", "one")
    assert not any("False positives" in each for each in without)


def no_lesion(predicted_px):
    whole = score(f"normal {predicted_px}", "normal", 1.0)
    nothing = dict.fromkeys(("dice", "iou", "recall", "precision", "hd95_px"), float("nan"))
    return dataclasses.replace(whole, lesion_px=0, predicted_px=predicted_px, **nothing)


@pytest.mark.parametrize(
    ("table", "name", "numbers"),
    [
        (
            "Results",
            "OpenVINO INT8",
            {
                "Dice (95 %)": "0.825 (0.758–0.892)",
                "p50 (ms)": "2.20",
                "p99 (ms)": "2.40",
                "Frames/s (95 %)": "810 (802–818)",
                "First mask (ms)": "1000",
                "Peak memory (MiB)": "300",
                "File (MiB)": "1.00",
            },
        ),
        ("Results", "UNeXt", {"Dice (95 %)": "not trained", "Latency vs reference (99 %)": None}),
        (
            "Latency in detail",
            "OpenVINO INT8",
            {
                "p50 (ms, 95 %)": "2.20 (2.18–2.22)",
                "Preparing (ms, median)": "0.220",
                "Engine (ms, median)": "1.76",
                "Reading out (ms, median)": "0.220",
                "Overhead": "25.0 %",
                "Warm-up (calls)": "100",
                "Steady": "yes",
            },
        ),
        (
            "Against a yardstick",
            "OpenVINO INT8",
            {
                "Yardstick": "openvino int8 (2 threads)",
                "Yardstick's time (ms)": "2.00",
                "Passes that count": "10 of 10",
                # Steps of 1 % to both sides: sqrt(10 / 9) of that.
                "Spread between passes": "1.1 %",
                # Of 3 passes one pair of blocks, two calls of row and yardstick each.
                "Calls set aside": "12 of 240 (5.0 %)",
            },
        ),
        ("Against a yardstick", "UNeXt", {"Yardstick": "none for this engine"}),
        ("Modes", "single", {"In MLPerf": "SingleStream", "Here": "400 calls"}),
        ("Modes", "soak", {"In MLPerf": "no such", "Here": "10 min"}),
        (
            "Mode offline (MLPerf Offline)",
            "OpenVINO INT8",
            {"Streams × batch": "2 × 4", "Frames/s (95 %)": "810 (802–818)"},
        ),
        (
            "Mode paced (not in MLPerf)",
            "OpenVINO INT8",
            {
                "Clock (Hz)": "30",
                "Due": "10",
                "Answered": "9",
                "Dropped": "1",
                "Missed": "1",
                "p50 (ms from the tick)": "3.00",
                "p99 (ms from the tick)": "n too small",
            },
        ),
        (
            "Mode soak (not in MLPerf)",
            "OpenVINO INT8",
            {
                "Time (min)": "10",
                "Frames": "300000",
                "Drift (ms/min, 95 %)": "drifts: +0.020 (+0.020 to +0.020)",
                "Memory (MiB/min, 95 %)": "no growth found: 0 (0 to 0)",
                "First window p50 (ms)": "2.00",
                "Last window p50 (ms)": "2.19",
                "Mean clock (MHz, first to last)": "2600 to 2581",
                "Hottest (°C)": "69",
            },
        ),
        (
            "Whole networks against the peaks",
            "OpenVINO INT8",
            # Three layers of 14 MFLOP at 700 GOP/s are 0.06 ms of 2 ms.
            {"Share of compute peak": "3.0 %", "Profiler adds": "10.0 %"},
        ),
        (
            "Peaks of this machine, measured",
            "openvino",
            {"FP32 (GFLOP/s)": "200", "INT8 (GOP/s)": "700", "Bandwidth (GB/s)": "20.0"},
        ),
        (
            "Layers of OpenVINO INT8 that take most time",
            "1 · conv2",
            {
                "Operator": "Conv",
                "Precision": "int8",
                "MACs (M)": "7.00",
                "Time (ms, median)": "0.600",
                "Of one call": "30.0 %",
                "Share of roofline": "3.3 %",
                "Bound by": "compute",
            },
        ),
        (
            "Predicted, not measured: one call of the network alone",
            "orin-nano-8gb",
            {"OpenVINO INT8 (predicted ms)": "0.51–0.98 (int8, memory)"},
        ),
        (
            "Size, memory and start of a fresh process",
            "OpenVINO INT8",
            {"Peak RSS (MiB)": "300", "PSS (MiB)": "270", "Weights (MiB)": "8.00"},
        ),
        (
            "Energy",
            "OpenVINO INT8",
            {
                "Net (mJ a frame)": "60.0",
                "Gross (mJ a frame)": "84.0",
                "Rails": "RAPL: package-0, dram",
                "Readings (Hz)": "19.5",
            },
        ),
        (
            "Files of the exports",
            "OpenVINO INT8: openvino-int8",
            {
                "Pixels flipped": "0.12 %",
                "Loss of Dice (95 %)": "+0.0010 (−0.0004 to +0.0024)",
                "Gate (at most)": "0.0050",
                "Result": "passed",
            },
        ),
        (
            "What the exports were checked on",
            "OpenVINO INT8",
            {
                "Check frames": "78 of validation part",
                "Achieved precision (share of the MACs)": "openvino-int8: int8 98.3 %, fp32 1.7 %",
                "Kept in float": "head.conv",
            },
        ),
        (
            "Before and after",
            "Core clocks, MHz",
            {"Before": "2496 to 2596, mean 2546", "After": "2000 to 2100, mean 2050"},
        ),
        ("Before and after", "Power mode", {"Before": "MAXN"}),
    ],
)
def test_tables_show_the_numbers_of_the_record(table, name, numbers):
    record = full_record()
    found = line_of(record, table, name)
    page = to_html(record).replace(" <small>", " ").replace("</small>", "")
    for heading, number in numbers.items():
        if number is not None:
            assert found[heading] == number
            assert number in page


def test_results_name_modes_as_mlperf_does_beside_our_names():
    text = to_markdown(full_record())
    assert "mode single (MLPerf SingleStream)" in text
    assert "mode offline (MLPerf Offline)" in text


def test_bare_record_says_what_was_not_measured_and_why():
    text = to_markdown(bare_record())
    for sentence in (
        "Frames/s were not measured.",
        "Energy: no counter: RAPL is there, but only root may read its energy\\_uj.",
        "No candidate is an export with proofs.",
        "No candidate is trained.",
    ):
        assert sentence in text


def test_what_invalidates_the_times_comes_first_in_every_form():
    record = full_record()
    for text in (to_table(record), to_markdown(record), to_html(record)):
        places = [
            text.index(part)
            for part in ("The fastest core ran", "UNeXt: not steady", "Other programs", "The load")
        ]
        assert places == sorted(places)
    assert to_html(record).count("<strong>Invalidates the times:</strong>") == 2


def test_record_without_warnings_has_no_box():
    assert 'role="note"' not in to_html(make_record(SLOW))


def test_headline_gives_no_prize_to_a_network_that_is_not_trained():
    fastest = untrained("UNeXt", e2e_ms=(1.0,) * 40)
    assert to_table(make_record(SLOW, FAST, fastest)).startswith("OpenVINO INT8 is 5.00× faster")
    head = to_table(make_record(FAST, SLOW, fastest)).splitlines()[0]
    assert head.startswith("OpenVINO INT8 is the fastest of the trained networks; torch FP32")


def test_headline_without_dice_says_so():
    head = to_table(make_record(untrained("a"), untrained("b"))).splitlines()[0]
    assert head.endswith("Dice not compared (not trained).")


def test_headline_of_too_few_rounds_has_no_interval():
    few = [make_row(name, e2e_ms=(2.0,) * 4) for name in "ab"]
    head = to_table(make_record(*few)).splitlines()[0]
    assert head.startswith("b takes 1.00× the time of a (too few rounds for an interval)")


def test_accuracy_plot_leaves_out_what_is_not_trained():
    page = to_html(make_record(SLOW, untrained("UNeXt")))
    plot = page[page.index("<h3>Accuracy against latency") : page.index("<h3>Distribution")]
    assert "torch FP32" in plot
    assert "UNeXt" not in plot


def test_each_layer_with_products_and_a_time_is_a_dot_below_named_roofs():
    page = to_html(full_record())
    plot = page[page.index("<h3>Roofline of OpenVINO INT8") :].split("</svg>")[0]
    assert plot.count('<circle class="dot openvino"') == 3
    assert "INT8 700 GOP/s" in plot
    assert "FP32 200 GFLOP/s" in plot
    assert "20.0 GB/s" in plot


def test_roofline_of_an_engine_without_int8_has_one_roof():
    peaks = dataclasses.replace(PEAKS, int8_gops=None)
    page = to_html(make_record(full_row("a"), peaks=(peaks,)))
    assert "did not run in INT8" in page
    assert "GOP/s</text>" not in page


def test_layers_beyond_the_longest_are_summed():
    record = make_record(full_row("a", layers=layer_report(count=20)), peaks=(PEAKS,))
    # 0.2, 0.4, … 4 ms: twelve have a line; eight, the pooling and the fused one are the rest.
    line = line_of(
        record, "Layers of a that take most time", "10 others, 1 of them run inside another"
    )
    assert line["Time (ms, median)"] == "7.30"
    assert line["MACs (M)"] == "56.0"


def test_layer_table_is_behind_a_summary_and_opens_on_paper():
    page = to_html(full_record())
    assert "<summary>Layers of OpenVINO INT8 that take most time</summary>" in page
    print_style = page[page.index("@media print") :]
    assert "details::details-content{content-visibility:visible" in print_style


def test_soak_without_memory_or_few_windows_says_so():
    line = line_of(
        make_record(full_row("a", soak=soak(3, told=False), layers=None)),
        "Mode soak (not in MLPerf)",
        "a",
    )
    assert line["Memory (MiB/min, 95 %)"] == "–"
    assert line["Hottest (°C)"] == "not told"
    assert line["Drift (ms/min, 95 %)"].endswith("(n too small)")


def test_gate_fails_above_its_limit_and_where_nothing_was_measured():
    steps = [
        ProofStep(name, 0.1, 0.0, 1.0, 0.0, 0.0, high)
        for name, high in (("at", 0.005), ("above", 0.0051), ("unknown", float("nan")))
    ]
    proof = Proof("all", 10, 0.8, 0.005, tuple(steps), {}, ())
    record = make_record(make_row("a", proof=proof))
    results = [line_of(record, "Files of the exports", f"a: {s.name}")["Result"] for s in steps]
    assert results == ["passed", "failed", "failed"]


def test_csv_has_the_numbers_of_every_mode_and_part():
    _, full, other = csv.DictReader(io.StringIO(to_csv(full_record())))
    expected = {
        "pre_p50_ms": 0.2199,
        "engine_p50_ms": 1.7592,
        "post_p50_ms": 0.2199,
        "p50_low_ms": 2.179,
        "p99_ms": 2.395,
        "p99_high_ms": 2.399,
        "offline_streams": 2,
        "offline_batch": 4,
        "offline_threads_each": 1,
        "offline_call_p50_ms": 10,
        "offline_call_p99_ms": 12,
        "offline_fps": 810,
        "offline_fps_low": 802.459,
        "paced_due": 10,
        "paced_dropped": 1,
        "paced_missed": 1,
        "paced_p50_ms": 3,
        "soak_s": 600,
        "soak_drift_ms_per_min": 0.02,
        "soak_memory_mib_per_min": 0,
        "energy_net_mj_per_frame": 60,
        "energy_gross_mj_per_frame": 84,
        "pss_mib": 270,
        "compute_peak_share": 0.03,
        "gate_max_dice_drop": 0.005,
        "gate_worst_dice_drop_high": 0.0024,
    }
    assert {key: float(full[key]) for key in expected} == pytest.approx(expected, rel=1e-3)
    assert (full["paced_p99_ms"], full["trained"], other["trained"]) == ("", "True", "False")
    assert (other["dice"], other["offline_fps"], other["dice_difference"]) == ("", "", "")


FREE_KEYS = ("engine_facts", "temperatures_c", "achieved", "packages", "executed")
CLOSED = ("schema", "code", "modes", "label")


def poison(value, key=""):
    """Return a record's JSON with hostile text behind every text that is not of a closed list."""
    if isinstance(value, dict):
        names = [name + HOSTILE if key in FREE_KEYS else name for name in value]
        return {
            name: poison(item, old) for name, (old, item) in zip(names, value.items(), strict=True)
        }
    if isinstance(value, list):
        return [poison(item, key) for item in value]
    return value + HOSTILE if isinstance(value, str) and key not in CLOSED else value


def test_hostile_text_in_any_field_of_a_file_stays_text():
    record = from_json(json.dumps(poison(json.loads(to_json(full_record())))))
    page, text = to_html(record), to_markdown(record)
    assert Elements(page).open == []
    assert "<script" not in page
    assert {name for name, _ in Elements(page).found} == {
        name for name, _ in Elements(to_html(full_record())).found
    }
    lines = text.splitlines()
    assert not any("<script" in line for line in lines if not line.startswith("    "))
    for above, line in itertools.pairwise(lines):
        if above.startswith("|") and line.startswith("|"):
            assert bars_of(above) == bars_of(line)


def bars_of(line):
    return len(re.findall(r"(?<!\\)\|", line.replace("\\\\", "")))


def test_engines_have_the_colour_of_their_family():
    assert family("torch") == family("torch-compile") == "torch"
    assert family("onnxruntime-tensorrt") == "onnxruntime"
    assert family("openvino-default") == "openvino"
    assert family("tensorrt-rtx") == "tensorrt"
    assert family("torchscript") == family('x" onload="') == "other"


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", range(3), ids=["light", "dark", "print"])
def test_every_colour_keeps_the_contrast_of_wcag_aa(theme):
    variables = re.findall(r":root\{([^}]*)\}", STYLE)[theme]
    colours = dict(re.findall(r"--([\w-]+):(#\w+)", variables))
    marks = (*FAMILIES, "other", *PARTS)
    for ground in ("page", "box"):
        for colour in ("ink", "quiet", *marks):
            assert contrast(colours[colour], colours[ground]) >= 4.5, (colour, ground)
    for box in ("warn", "bad"):
        assert contrast(colours["ink"], colours[box]) >= 4.5
        assert contrast(colours[f"{box}-line"], colours[box]) >= 3


# --- what only some engines tell -----------------------------------------------------------------


def copying_record():
    """A row whose engine tells its copies, a quarter of its 8 ms, and one that does not."""
    row = make_row("on the GPU", kind="tensorrt")
    told = dataclasses.replace(row.latency, transfer_ms=(2.0,) * 40)
    return make_record(make_row("on the CPU"), dataclasses.replace(row, latency=told))


def test_copies_are_told_apart_where_an_engine_tells_them():
    record = copying_record()
    header, _, cpu, gpu = next(
        lines for lines in markdown_tables(to_markdown(record)) if "of it: copies" in lines[0]
    )
    place = cells(header).index("of it: copies (ms, median)")
    assert cells(header)[place + 1] == "of it: compute (ms, median)"
    assert cells(gpu)[place : place + 2] == ["2.00", "6.00"]
    assert cells(cpu)[place : place + 2] == [MISSING, MISSING]
    assert "preparing 1.00 ms, copies 2.00 ms, engine 6.00 ms" in to_html(record)
    assert from_json(to_json(record)).rows[1].latency.transfer_ms == (2.0,) * 40
    first, second = csv.DictReader(io.StringIO(to_csv(record)))
    assert (first["transfer_p50_ms"], second["transfer_p50_ms"]) == ("", "2")


def test_nothing_is_said_of_copies_where_no_engine_tells_them():
    for text in (to_markdown(full_record()), to_html(full_record())):
        assert "of it: copies" not in text
        assert "copies 2" not in text


def test_copies_of_some_calls_only_are_no_record():
    text = to_json(copying_record()).replace("[2.0, 2.0,", "[2.0,", 1)
    with pytest.raises(InputError, match="has copies of some calls only"):
        from_json(text)


def test_streams_batch_and_threads_of_a_stream_are_shown_together():
    header, _, line, *_ = next(
        lines
        for lines in markdown_tables(to_markdown(full_record()))
        if "Streams × batch" in lines[0]
    )
    shown = dict(zip(cells(header), cells(line), strict=True))
    assert shown["Streams × batch"] == "2 × 4"
    assert shown["Threads of a stream"] == "1"
    assert (shown["A call p50 (ms)"], shown["A call p99 (ms)"]) == ("10.0", "12.0")


def markdown_tables(text):
    """Return the lines of each table."""
    tables, last = [], ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not last.startswith("|"):
                tables.append([])
            tables[-1].append(line)
        last = line
    return tables


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


# --- rails and GPU memory ------------------------------------------------------------------------


def table_lines(text, title):
    """Return the cells of each line below a table's head in Markdown."""
    block = text.split(f"{title}\n", 1)[1].split("\n\n")
    lines = next(part for part in block if part.strip().startswith("|")).strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_energy_is_told_by_rail_with_what_is_no_part_of_the_total():
    energy = full_row("a").energy
    row = full_row(
        "OpenVINO INT8",
        energy=dataclasses.replace(
            energy,
            total_rails=("VDD_IN",),
            rails_net_mj_per_frame={"VDD_IN": 60.0, "VDD_CPU_GPU_CV": -0.5},
        ),
    )
    lines = table_lines(to_markdown(make_record(row)), "Energy by rail")
    assert lines == [
        ["OpenVINO INT8", "VDD\\_IN", "60.0", "yes"],
        ["OpenVINO INT8", "VDD\\_CPU\\_GPU\\_CV", "−0.500", "no: part of another rail"],
    ]


def test_single_rail_needs_no_table_of_its_own():
    energy = dataclasses.replace(full_row("a").energy, rails_net_mj_per_frame={"package-0": 60.0})
    assert "Energy by rail" not in to_markdown(make_record(full_row("a", energy=energy)))


@pytest.mark.parametrize(
    ("facts", "cell"),
    [
        ({}, "–"),
        (
            {"device_mib": 512.0, "device_memory": "NVML, of the process"},
            "512 (NVML, of the process)",
        ),
        ({"device_memory": "no counter: NVML is missing"}, "no counter: NVML is missing"),
    ],
)
def test_memory_of_a_gpu_is_told_with_how_it_was_counted(facts, cell):
    row = make_row("a")
    row = dataclasses.replace(row, process=dataclasses.replace(row.process, **facts))
    assert cell in table_lines(to_markdown(make_record(row)), "a fresh process")[0]
