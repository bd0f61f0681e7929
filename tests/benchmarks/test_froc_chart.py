"""Both errors in the report of a benchmark: the plot, the columns, and records without them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from itertools import pairwise

import numpy as np
import pytest

from edgeseg.benchmarks.measure.froc import CurvePoint, SetCurve
from edgeseg.benchmarks.record import from_json, to_json
from edgeseg.benchmarks.report.files import to_csv, to_html
from edgeseg.benchmarks.report.svg import CHARACTER_PX
from edgeseg.runtime.errors import InputError
from edgeseg.tests.support.fabricated_record import make_record, make_row


def curve(name="all sets", lesions=10, without=5, found=0.9):
    points = tuple(
        CurvePoint(
            threshold=threshold,
            dice=0.8,
            found_share=found - threshold / 10,
            touched_share=1.0,
            missed=2,
            marks_per_normal=5 * (1 - threshold),
            marked_share=0.4,
        )
        for threshold in (0.1, 0.3, 0.5, 0.7, 0.9)
    )
    return SetCurve(name, lesions, without, points)


def record_with(*curves):
    return make_record(make_row("one", curves=curves), make_row("two", curves=curves))


def test_each_data_set_has_a_plot_with_a_line_and_a_mark_of_each_row():
    page = to_html(record_with(curve(), curve("busi"), curve("bra")))
    assert page.count("Lesions found and false marks, ") == 3
    plot = page[page.index('id="froc-0-title"') :].partition("</svg>")[0]
    assert plot.count('class="line torch"') == 2
    assert plot.count('class="mark torch"') == 2
    assert "one: 85.0 % of the lesions found, 2 missed, Dice 0.800, 2.50 marks" in plot


def test_what_marks_too_much_is_not_drawn():
    page = to_html(record_with(curve()))
    plot = page[page.index('id="froc-0-title"') :].partition("</svg>")[0]
    path = plot.partition('class="line torch" d="M')[2].partition('"')[0]
    assert path.count("L") == 2  # of 4.5, 3.5, 2.5, 1.5 and 0.5 marks the last three


@pytest.mark.parametrize("curves", [(), (curve(without=0),), (curve(lesions=0),)])
def test_no_plot_without_images_of_both_kinds(curves):
    assert "false marks, " not in to_html(record_with(*curves))


def test_csv_has_the_row_s_own_point():
    first, *_ = csv.DictReader(io.StringIO(to_csv(record_with(curve()))))
    assert (first["lesions_found_share"], first["marks_per_normal"]) == ("0.85", "2.5")
    bare, *_ = csv.DictReader(io.StringIO(to_csv(record_with())))
    assert bare["lesions_found_share"] == bare["marks_per_normal"] == ""


def test_record_comes_back_with_its_curves_and_one_of_before_has_none():
    text = to_json(record_with(curve()))
    assert from_json(text).rows[0].curves == (curve(),)
    before = json.loads(to_json(record_with()))
    assert all("curves" not in row for row in before["rows"])
    assert from_json(json.dumps(before)).rows[0].curves == ()


@pytest.mark.parametrize(
    "points",
    [
        (),
        curve().points[:1],
        (dataclasses.replace(curve().points[2], found_share=float("nan")),),
        (dataclasses.replace(curve().points[2], marks_per_normal=-1.0),),
    ],
)
def test_curve_that_cannot_be_drawn_is_refused(points):
    broken = dataclasses.replace(curve(), points=points)
    with pytest.raises(InputError, match="curve without the point") as caught:
        from_json(to_json(record_with(broken)))
    assert caught.value.code == "E-REPORT-SCHEMA"


def text_boxes(plot):
    """The labels of marks: left, top, right and bottom, in px."""
    pattern = r'<text class="label halo" x="([\d.]+)" y="([\d.]+)">(.*?)</text>'
    found = [(float(x), float(y), text) for x, y, text in re.findall(pattern, plot)]
    return [(x, y - 13, x + CHARACTER_PX * len(text), y + 4) for x, y, text in found]


def test_names_keep_clear_of_the_curves_even_where_rows_share_a_point():
    rows = [make_row(f"network {i}", curves=(curve(found=0.9 + i / 50),)) for i in range(3)]
    page = to_html(make_record(*rows))
    plot = page[page.index('id="froc-0-title"') :].partition("</svg>")[0]
    boxes = text_boxes(plot)
    assert len(boxes) == 3
    for path in re.findall(r'class="line torch" d="M([^"]+)"', plot):
        line = [tuple(map(float, point.split())) for point in path.split("L")]
        for (x, y), (next_x, next_y) in pairwise(line):
            for share in np.linspace(0, 1, 200):
                at = x + share * (next_x - x), y + share * (next_y - y)
                assert not any(a < at[0] < c and b < at[1] < d for a, b, c, d in boxes)
