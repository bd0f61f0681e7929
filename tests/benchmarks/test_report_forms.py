"""Page, Markdown and CSV say the same of any record: figure by figure."""

from __future__ import annotations

import csv
import html
import io
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.benchmarks.formatting import fixed, percent, signed, significant
from edgeseg.benchmarks.report.files import to_csv, to_html, to_markdown
from edgeseg.benchmarks.report.markdown import to_markdown_text
from edgeseg.benchmarks.report.page import to_page
from edgeseg.tests.support.fabricated_comparison import full_comparison
from edgeseg.tests.support.fabricated_record import bare_record, full_record, full_row, make_record

MIB = 1 << 20
# Field of the CSV -> table, column and how the table writes its number.
SAME = {
    "p50_ms": ("Results", "p50 (ms)", significant),
    "p90_ms": ("Results", "p90 (ms)", significant),
    "p99_ms": ("Results", "p99 (ms)", significant),
    "latency_ratio": ("Results", "Latency vs reference (99 %)", lambda x: f"{significant(x)}×"),
    "dice": ("Results", "Dice (95 %)", fixed),
    "dice_difference": ("Results", "Dice vs reference (95 %)", signed),
    "offline_fps": ("Results", "Frames/s (95 %)", significant),
    "first_mask_ms": ("Results", "First mask (ms)", significant),
    "peak_rss_mib": ("Results", "Peak memory (MiB)", significant),
    "file_bytes": ("Results", "File (MiB)", lambda x: significant(x / MIB)),
    "pre_p50_ms": ("Latency in detail", "Preparing (ms, median)", significant),
    "engine_p50_ms": ("Latency in detail", "Engine (ms, median)", significant),
    "post_p50_ms": ("Latency in detail", "Reading out (ms, median)", significant),
    "yardstick_ms": ("Against a yardstick", "Yardstick's time (ms)", significant),
    "yardstick_ratio": ("Against a yardstick", "Time over yardstick's (99 %)", significant),
    "passes_spread": ("Against a yardstick", "Spread between passes", percent),
    "smallest_slowdown": (
        *("Against a yardstick", "Smallest slow-down it shows"),
        lambda x: percent(x - 1),
    ),
    "paced_dropped": ("Mode paced (not in MLPerf)", "Dropped", lambda x: f"{x:g}"),
    "paced_missed": ("Mode paced (not in MLPerf)", "Missed", lambda x: f"{x:g}"),
    "paced_p50_ms": ("Mode paced (not in MLPerf)", "p50 (ms from the tick)", significant),
    "parameters": ("Size, memory and start of a fresh process", "Parameters (M)", None),
    "macs": ("Size, memory and start of a fresh process", "MACs (G)", None),
    "pss_mib": ("Size, memory and start of a fresh process", "PSS (MiB)", significant),
    "weights_bytes": ("Size, memory and start of a fresh process", "Weights (MiB)", None),
    "energy_net_mj_per_frame": ("Energy", "Net (mJ a frame)", significant),
    "energy_gross_mj_per_frame": ("Energy", "Gross (mJ a frame)", significant),
}
DIVIDED = {"parameters": 1e6, "macs": 1e9, "weights_bytes": MIB}


def plain(cell):
    """A cell's text as it is read: no elements, no escapes, one space."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", cell)).split())


def of_page(page):
    """Tables of a page as lines of cells."""
    return [
        [
            [plain(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)]
            for line in re.findall(r"<tr>(.*?)</tr>", table)
        ]
        for table in re.findall(r"<table.*?</table>", page)
    ]


def of_markdown(text):
    """Tables of a Markdown text as heading and lines of cells."""
    found, heading = [], ""
    for block in re.split(r"\n\n+|\n(?=#)", text):
        if block.startswith("#"):
            heading = block.splitlines()[0].lstrip("# ")
        lines = [line for line in block.splitlines() if line.startswith("|")]
        if lines:
            cells = [[unescaped(cell) for cell in line[2:-2].split(" | ")] for line in lines]
            found.append((unescaped(heading), [cells[0], *cells[2:]]))
    return found


def unescaped(text):
    return html.unescape(re.sub(r"\\([\\`*_\[\]|])", r"\1", text)).strip()


def without_brackets(text):
    """A heading's unit stands in brackets in Markdown and below it on the page."""
    return text.replace("(", "").replace(")", "")


@st.composite
def records(draw):
    """The full record with one more row of any times and any Dice."""
    times = st.floats(0.01, 1e5)
    row = full_row(
        "another",
        e2e_ms=tuple(draw(st.lists(times, min_size=40, max_size=60))),
        dice=tuple(draw(st.lists(st.floats(0, 1), min_size=2, max_size=6))),
        layers=None,
    )
    return make_record(row)


def require_equal_tables(page, text):
    ours, theirs = of_page(page), of_markdown(text)
    assert len(ours) == len(theirs) > 5
    for page, (title, markdown) in zip(ours, theirs, strict=True):
        assert [list(map(without_brackets, page[0])), *page[1:]] == [
            list(map(without_brackets, markdown[0])),
            *markdown[1:],
        ], title


def require_equal_csv(record):
    tables = dict(of_markdown(to_markdown(record)))
    compared = 0
    for fields in csv.DictReader(io.StringIO(to_csv(record))):
        for field, (title, heading, written) in SAME.items():
            lines = tables.get(title, [[]])
            of_row = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[1:]}
            if fields[field] == "" or fields["name"] not in of_row:
                continue
            number = float(fields[field]) / DIVIDED.get(field, 1)
            shown = of_row[fields["name"]][heading].split(" (")[0]
            if shown == "no difference":
                continue  # in words; the CSV has the ratio
            assert close(shown, (written or significant)(number)), (field, fields["name"])
            compared += 1
    return compared


def close(shown, expected):
    """The CSV keeps six digits, so the last digit that a table shows may round the other way."""
    if shown == expected:
        return True
    a, b = (float(text.strip("×+ %").replace("−", "-")) for text in (shown, expected))
    return math.isclose(a, b, rel_tol=0.011, abs_tol=0.0011)


@pytest.mark.parametrize("record", [full_record(), bare_record()], ids=["full", "bare"])
def test_page_and_markdown_have_the_same_tables_cell_by_cell(record):
    require_equal_tables(to_html(record), to_markdown(record))


def test_page_and_markdown_of_a_comparison_have_the_same_tables_cell_by_cell():
    document = full_comparison()
    require_equal_tables(to_page(document), to_markdown_text(document))


def test_csv_and_tables_have_the_same_numbers_row_by_row():
    assert require_equal_csv(full_record()) > 40


@settings(max_examples=15, deadline=None)
@given(records())
def test_any_times_and_dice_are_the_same_in_every_form(record):
    require_equal_tables(to_html(record), to_markdown(record))
    assert require_equal_csv(record) > 15
