from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from edgeseg.benchmarks.accuracy import summarise
from edgeseg.benchmarks.record import Note, from_json, to_json
from edgeseg.benchmarks.report import to_csv, to_html, to_markdown, to_table, write_reports
from edgeseg.runtime.errors import InputError
from edgeseg.tests.fabricated_record import (
    ENVIRONMENT,
    make_record,
    make_row,
    score,
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
    assert not re.search(r"https?:|url\(|@import|src=|href=|javascript:|\son\w+=", page)


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
