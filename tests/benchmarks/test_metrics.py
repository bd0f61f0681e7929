"""The table of figures: each entry is in every form, and a new entry needs nothing else."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from edgeseg.benchmarks.compare import compare_records
from edgeseg.benchmarks.measure.accuracy import summarise
from edgeseg.benchmarks.measure.process import ProcessFacts
from edgeseg.benchmarks.report import metrics
from edgeseg.benchmarks.report.comparison import comparison_document
from edgeseg.benchmarks.report.files import to_csv, to_html, to_markdown, to_table
from edgeseg.benchmarks.report.markdown import to_markdown_text
from edgeseg.benchmarks.report.metrics import (
    METRICS,
    Column,
    Limit,
    Metric,
    budget_kinds,
    columns_of,
    csv_description,
    parse_budget,
)
from edgeseg.benchmarks.report.page import to_page
from edgeseg.tests.support.fabricated_comparison import COMMAND, two_records
from edgeseg.tests.support.fabricated_record import full_record, make_row, score, untrained

PAGES = ("results", "latency", "memory", "accuracy")  # tables of the page and of Markdown
COMPARED = ("compared times", "compared memory", "compared accuracy")


class Cells(HTMLParser):
    """The text of every cell of a page's tables."""

    def __init__(self, page):
        super().__init__()
        self.found, self._open = [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag in ("td", "th"):
            self.found.append("")
            self._open = True

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, text):
        if self._open:
            self.found[-1] += text


def forms_of(record):
    """The page's cells, Markdown and the terminal."""
    return Cells(to_html(record)).found, to_markdown(record), to_table(record)


@pytest.fixture(scope="module")
def record():
    return full_record()


@pytest.fixture(scope="module")
def forms(record):
    return (*forms_of(record), *compared_forms())


def compared_forms(budgets=()):
    """The cells of a comparison's page, and its Markdown."""
    old, new = two_records()
    found = compare_records(old, new, [parse_budget(text) for text in budgets])
    document = comparison_document(found, old, new, COMMAND)
    return Cells(to_page(document)).found, to_markdown_text(document)


def test_keys_and_names_of_budgets_are_there_once():
    keys = [metric.key for metric in METRICS]
    names = [metric.budget.name for metric in METRICS if metric.budget]
    assert len(set(keys)) == len(keys)
    assert len({*names, "dice_drop", "slowdown"}) == len(names) + 2 == len(budget_kinds())


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_figure_is_in_the_csv_and_described(metric, record):
    described = json.loads(csv_description())["properties"][metric.key]
    assert described["description"] == metric.text != ""
    assert not metric.text.endswith(".")
    assert described.get("unit", "") == metric.unit
    lines = csv.DictReader(io.StringIO(to_csv(record)))
    for line, row in zip(lines, record.rows, strict=True):
        value = metric.get(row, record.comparison_of(row))
        if value is None or value != value:
            assert line[metric.key] == ""
        elif metric.type is float:
            assert float(line[metric.key]) == pytest.approx(value, rel=1e-5)
        else:
            assert line[metric.key] == str(value)
            assert isinstance(value, metric.type)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.key)
def test_figure_is_in_every_table_that_its_entry_names(metric, record, forms):
    cells, markdown, terminal, compared_cells, compared_markdown = forms
    for column in metric.columns:
        rows = record.rows
        if column.only_where and not any(map(column.only_where, rows)):
            continue
        texts = [column.cell(row, record.comparison_of(row)) for row in rows]
        if column.table == "terminal":
            assert f"{column.title} {column.unit}".strip() in terminal
            assert all(text in terminal for text in texts)
        elif column.table in PAGES:
            assert any(cell.startswith(column.title) for cell in cells)
            assert all(any(text in cell for cell in cells) for text in texts)
            assert column.title in markdown
            assert all(text in html.unescape(markdown) for text in texts)
        else:
            assert column.table in COMPARED
            assert any(cell.startswith(column.title) for cell in compared_cells)
            assert column.title in compared_markdown


@pytest.mark.parametrize(
    "metric", [each for each in METRICS if each.budget], ids=lambda metric: metric.key
)
def test_budget_of_a_figure_is_judged_on_its_number_the_right_way(metric, record):
    judged = parse_budget(metric.budget.example)
    assert metric.better in ("lower", "higher")
    assert judged.kind.is_minimum == (metric.better == "higher")
    number = metric.get(record.rows[0], None)
    assert judged.kind.value(record.rows[0], None, judged) == number
    assert metric.budget.written(number) in judged.kind.written(number)


def test_columns_of_a_table_stand_in_their_order(record):
    for table in (*PAGES, *COMPARED, "terminal"):
        orders = [column.order for column in columns_of(table, record.rows)]
        assert orders == sorted(orders)


def test_a_new_entry_is_in_every_form_and_can_be_limited(monkeypatch, record):
    def tenth(row, against):
        return row.latency.p50_ms / 10

    columns = [Column(table, f"Tenth {table}", "ms", lambda row, _: "a tenth") for table in PAGES]
    columns += [
        Column("terminal", "Tenth shown", "", lambda row, _: "a tenth"),
        Column("compared accuracy", "Tenth compared", "", lambda row, _: "a tenth"),
    ]
    limit = Limit("tenth", "tenth=1ms", {"ms": lambda number: number}, "{:.1f} tenths".format)
    entry = Metric("tenth_ms", "ms", tenth, "a tenth of p50", "lower", limit, tuple(columns))
    before = to_csv(record).split("\n")[0].split(",")
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, entry))
    cells, markdown, terminal = forms_of(record)
    assert to_csv(record).split("\n")[0].split(",") == [*before, "tenth_ms"]
    for table in PAGES:
        assert any(cell.startswith(f"Tenth {table}") for cell in cells)
        assert f"Tenth {table}" in markdown
    assert "a tenth" in terminal
    assert "a tenth of p50" in csv_description()
    compared, text = compared_forms(["torch:tenth=0.5ms"])
    assert any(cell.startswith("Tenth compared") for cell in compared)
    assert "Tenth compared" in text
    assert "1.0 tenths" in compared
    assert "not kept" in compared


def test_description_of_the_csv_is_printed():
    done = subprocess.run(
        [sys.executable, "-m", "edgeseg.benchmarks.report.metrics"], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout == csv_description()


def test_lesions_missed_are_those_under_a_tenth_of_those_there_are():
    scores = tuple(score(f"{dice}", "benign", dice) for dice in (0.0, 0.09, 0.1, 0.8))
    normal = dataclasses.replace(score("normal", "normal", 0.0), lesion_px=0)
    (metric,) = (each for each in METRICS if each.key == "lesions_missed")
    row = make_row("a", scores=(*scores, normal), accuracy=summarise((*scores, normal)))
    assert metric.get(row, None) == 0.5
    assert {column.cell(row, None) for column in metric.columns} == {"50.0 % (2 of 4)"}
    none = make_row("a", scores=(normal,), accuracy=summarise((normal,)))
    assert math.isnan(metric.get(none, None))
    assert metric.get(untrained("a"), None) is None


def test_share_of_lesions_missed_can_be_limited():
    scores = tuple(score(f"{dice}", "benign", dice) for dice in (0.0, 0.5, 0.6, 0.8))
    row = make_row("a", scores=scores, accuracy=summarise(scores))
    kept, broken = parse_budget("lesions_missed=25%"), parse_budget("lesions_missed=0.2")
    assert (kept.limit, broken.limit) == (0.25, 0.2)
    assert kept.kind.value(row, None, kept) <= kept.limit
    assert broken.kind.value(row, None, broken) > broken.limit
    assert kept.kind.value(untrained("a"), None, kept) == "the network is not trained"


def test_power_on_to_first_mask_has_both_parts_in_one_cell():
    (metric,) = (each for each in METRICS if each.key == "first_frame_ms")
    process = ProcessFacts(peak_rss_mib=300.0, start_ms=790.0, first_mask_ms=812.0)
    row = make_row("a", process=process)
    assert metric.get(row, None) == 22
    assert metric.columns[0].cell(row, None) == "812 (790 + 22.0)"
