"""What the passes of one row say, in numbers, in the report's table and in its plot."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import re

import pytest

from edgeseg.benchmarks.record import Settings, from_json, to_json
from edgeseg.benchmarks.report.files import to_csv, to_html, to_markdown
from edgeseg.benchmarks.report.pass_charts import pass_strips
from edgeseg.benchmarks.yardstick_passes import (
    BETWEEN_RUNS,
    MIN_PASSES,
    record_ratio,
    students_t,
    summarise_passes,
)
from edgeseg.runtime.errors import InputError
from edgeseg.tests.support.fabricated_record import (
    YARDSTICK,
    full_record,
    make_passes,
    make_record,
    make_row,
    untrained,
)


def timed(name="a", **more):
    """A row of passes that step 1 % to both sides of 1.5 times their yardstick."""
    return make_row(name, **{"yardstick": YARDSTICK, "passes": make_passes(), **more})


def test_ratio_is_the_mean_of_the_passes_and_its_spread_that_between_them():
    found = summarise_passes(timed())
    assert (found.count, found.measured) == (10, 10)
    assert found.ratio == pytest.approx(1.5, rel=1e-4)
    assert found.spread == pytest.approx(0.01 * math.sqrt(10 / 9), rel=1e-3)
    assert found.yardstick_ms == pytest.approx(2)


def test_calls_that_waited_are_counted_of_row_and_yardstick():
    found = summarise_passes(timed(passes=make_passes(waiting=3)))
    assert (found.set_aside, found.calls) == (12, 240)
    assert found.ratio == pytest.approx(1.5, rel=1e-4)


def test_interval_of_passes_without_any_spread_is_the_allowance_alone():
    low, high = summarise_passes(timed(passes=make_passes(step=0))).interval
    assert math.log(high / 1.5) == pytest.approx(2.576 * BETWEEN_RUNS, rel=0.01)
    assert low * high == pytest.approx(1.5**2)


def test_interval_is_students_where_the_spread_is_large():
    found = summarise_passes(timed(passes=make_passes(step=0.2)))
    error = found.spread / math.sqrt(10)
    assert math.log(found.interval[1] / found.ratio) == pytest.approx(
        students_t(0.995, 9) * error, rel=0.05
    )


def test_smallest_slowdown_is_that_of_a_comparison_with_an_equal_run():
    row = timed()
    assert summarise_passes(row).smallest == pytest.approx(record_ratio(row, row).smallest)


def test_more_passes_show_less():
    few, many = (summarise_passes(timed(passes=make_passes(count=n))) for n in (6, 40))
    assert 1 < many.smallest < few.smallest


def test_too_few_passes_have_a_ratio_and_no_interval():
    found = summarise_passes(timed(passes=make_passes(count=MIN_PASSES - 1)))
    assert found.ratio == pytest.approx(1.5, rel=1e-3)
    assert math.isnan(found.smallest)
    assert all(map(math.isnan, found.interval))


def test_row_without_passes_says_nothing():
    found = summarise_passes(make_row("a"))
    assert (found.count, found.measured, found.calls, found.set_aside) == (0, 0, 0, 0)
    assert math.isnan(found.ratio)
    assert math.isnan(found.yardstick_ms)


@pytest.mark.parametrize("value", [0.0, 1e-7, 1e10])
def test_time_of_a_pass_that_is_none_is_refused(value):
    text = to_json(make_record(timed(), settings=Settings(modes=(), rounds=40, passes=10)))
    assert from_json(text)
    with pytest.raises(InputError, match="passes without their yardstick, or one without"):
        from_json(text.replace("[2.0, 2.0]", f"[2.0, {value}]", 1))


# --- what is shown -------------------------------------------------------------------------------


def table_of(record):
    """Return the lines of the table by row, each by heading."""
    text = to_markdown(record).split("### Against a yardstick\n", 1)[1].strip()
    lines = [line[2:-2].split(" | ") for line in text.split("\n\n")[0].splitlines()]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def measured(*rows):
    return make_record(*rows, settings=Settings(modes=(), rounds=40, passes=10))


def test_row_with_too_few_passes_says_how_many_it_takes():
    waited = make_passes(count=4)
    line = table_of(measured(timed(passes=waited)))["a"]
    assert line["Passes that count"] == "4 of 4"
    assert line["Smallest slow-down it shows"] == "none (5 passes needed)"
    assert line["Time over yardstick's (99 %)"] == "1.50"


def test_row_of_an_engine_without_a_yardstick_says_so():
    lines = table_of(measured(timed(), make_row("b")))
    assert lines["b"]["Yardstick"] == "none for this engine"
    assert lines["a"]["Yardstick"] == "openvino int8 (2 threads)"


def test_record_without_passes_says_how_to_get_them():
    record = make_record(make_row("a"))
    assert "it was measured without --passes" in to_markdown(record)
    assert "it was measured without <code>--passes</code>" in to_html(record)
    for text in (to_markdown(record), to_html(record)):
        assert "Against a yardstick" not in text


def test_csv_has_the_passes_and_leaves_them_out_where_there_are_none():
    first, *_, last = csv.DictReader(io.StringIO(to_csv(full_record())))
    assert (first["passes"], first["passes_that_count"]) == ("10", "10")
    assert (first["passes_calls"], first["passes_calls_set_aside"]) == ("240", "12")
    assert float(first["yardstick_ratio_low"]) < 1.5 < float(first["yardstick_ratio_high"])
    assert float(first["smallest_slowdown"]) > 1
    names = [name for name in last if name.startswith(("passes", "yardstick", "smallest"))]
    assert len(names) == 12
    assert {last[name] for name in names} == {""}


def test_each_pass_that_counts_is_a_dot_in_the_order_of_the_passes():
    slow = make_passes(count=6, step=0)
    slow = (*slow[:5], dataclasses.replace(make_passes(ratio=1.6, count=1, step=0)[0]))
    plot = pass_strips([timed("few", passes=make_passes(count=4)), timed("told", passes=slow)])
    assert "few" not in plot
    (dots,) = re.findall(r'class="dots passes torch" d="([^"]*)"', plot)
    points = [tuple(map(float, each.split())) for each in re.findall(r"M([\d. ]+)h0", dots)]
    assert len(points) == 6
    assert [y for _, y in points] == sorted(y for _, y in points)
    assert points[-1][0] > points[0][0] == points[4][0]  # the last one took longer


def test_rows_without_passes_have_no_plot():
    assert pass_strips([make_row("a"), untrained("b")]) == ""
