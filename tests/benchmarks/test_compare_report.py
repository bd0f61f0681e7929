"""The comparison of two records as people read it: page, Markdown, files."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest

from edgeseg.benchmarks.compare import compare_records, read_pair
from edgeseg.benchmarks.record import Note, to_json
from edgeseg.benchmarks.report.comparison import (
    comparison_headline,
    comparison_to_json,
    ordered,
    render_comparison,
    require_comparison_path,
    write_comparison,
)
from edgeseg.benchmarks.report.markdown import to_markdown_text
from edgeseg.benchmarks.report.metrics import parse_budget
from edgeseg.benchmarks.report.page import to_page
from edgeseg.runtime.errors import InputError, OutputError
from edgeseg.tests.support.fabricated_comparison import (
    LATER,
    changed,
    document_of,
    full_comparison,
    two_records,
)
from edgeseg.tests.support.fabricated_record import (
    PEAKS,
    YARDSTICK,
    full_row,
    make_passes,
    make_record,
    make_row,
)

SECTIONS = [
    *("What changed", "Budgets", "Plots", "How sure is this", "As measured", "What differs"),
    *("Conditions", "Definitions", "Reproduce"),
]


def timed(name="a", ratio=1.5, **more):
    return make_row(name, **{"yardstick": YARDSTICK, "passes": make_passes(ratio), **more})


def later(*rows, **more):
    return make_record(*rows, environment=LATER, **more)


def headline(old, new, *budgets):
    return comparison_headline(compare_records(old, new, [parse_budget(each) for each in budgets]))


# --- one sentence --------------------------------------------------------------------------------


def test_headline_says_what_changed_by_how_much_and_what_became_of_the_budgets():
    found = headline(*two_records(), "p99=33ms", "OpenVINO INT8:slowdown=5%")
    assert re.match(
        r"OpenVINO INT8 is slower: 1\.20× its earlier time \(99 % interval 1\.\d+–1\.\d+\); "
        r"Dice of OpenVINO INT8 −0\.0\d+ \(−0\.\d+ to −0\.\d+\); 1 of 4 budget checks failed\.$",
        found,
    )


def test_headline_of_one_row_that_did_not_change_says_what_would_have_been_found():
    found = headline(make_record(timed()), later(timed(ratio=1.505)), "p50=1s")
    assert found.startswith("No change of latency was found in a (one of ")
    assert found.endswith("% would have been); Dice not shown to differ; the budget is kept.")


def test_headline_praises_what_became_faster():
    found = headline(make_record(timed()), later(timed(ratio=1.2)))
    assert found.startswith("a is faster: 0.800× its earlier time")


def test_headline_that_cannot_tell_says_so():
    found = headline(make_record(make_row("a")), later(make_row("a", accuracy=None)))
    assert found == "Whether latency changed cannot be told; Dice not compared."


def test_rows_that_changed_come_first_and_the_largest_change_foremost():
    ratios = {"same": 1.5, "faster": 1.2, "slow": 1.7, "slowest": 2.5}
    old = make_record(*(timed(name) for name in ratios), make_row("untold"))
    new = later(*(timed(name, ratio) for name, ratio in ratios.items()), make_row("untold"))
    found = compare_records(old, new)
    names = [row.name for row in ordered(found.rows)]
    assert names == ["slowest", "slow", "faster", "untold", "same"]
    assert re.match(
        r"slowest is slower: 1\.67× its earlier time \(99 % .*\), and 2 more of 5 rows changed; ",
        headline(old, new),
    )


def test_headline_of_rows_that_did_not_change_counts_those_that_cannot_be_told():
    old, new = (each(timed("a"), timed("b"), make_row("c")) for each in (make_record, later))
    assert headline(old, new).startswith(
        "No change of latency was found in 2 of 3 rows, 1 cannot be told; "
    )


# --- page and Markdown ---------------------------------------------------------------------------


def test_page_and_markdown_have_every_section_in_order():
    document = full_comparison()
    page, text = to_page(document), to_markdown_text(document)
    assert re.findall(r"<h2[^>]*>([^<]*)</h2>", page) == SECTIONS
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [s for s in SECTIONS if s != "Plots"]
    assert "<title>edgeseg comparison</title>" in page
    assert text.startswith("# edgeseg comparison\n")


@pytest.mark.parametrize("bare", [False, True])
def test_page_loads_nothing_and_has_no_undefined_number(bare):
    rows = make_record(make_row("a", accuracy=None)), later(make_row("a", accuracy=None))
    page = to_page(document_of(*rows) if bare else full_comparison())
    assert not re.search(r"<script|https?:|url\(|@import|src=|href=.[^#]|\bnan\b|\bNone\b", page)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(set(ids)) == len(ids)
    wanted = " ".join(re.findall(r'aria-labelledby="([^"]*)"', page)).split()
    assert set(wanted) <= set(ids)


def table_of(document, title):
    """Return the lines of a Markdown table, each by heading."""
    text = to_markdown_text(document).split(f"# {title}\n", 1)[1]
    text = text[text.index("\n|") + 1 :].split("\n\n", 1)[0]
    lines = [line[2:-2].split(" | ") for line in text.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


def test_each_row_has_its_verdict_with_interval_and_its_files():
    openvino, untold, torch = table_of(full_comparison(), "What changed")
    assert (openvino["Row"], openvino["Latency"]) == ("OpenVINO INT8", "slower")
    assert openvino["New over old (99 %)"].startswith("1.20× (1.1")
    assert (openvino["Dice"], openvino["Files"]) == ("worse", "the same")
    assert (torch["Latency"], torch["Dice"]) == ("no difference", "no difference")
    assert (untold["Latency"], untold["New over old (99 %)"]) == ("cannot tell", "–")
    assert untold["Dice"] == "not compared"


def test_budget_that_is_not_kept_comes_first():
    lines = table_of(full_comparison(), "Budgets")
    assert [line["Result"] for line in lines] == ["not kept", *["kept"] * (len(lines) - 1)]
    assert lines[0]["Budget"] == "OpenVINO INT8:slowdown=5%"
    assert lines[0]["Found"].startswith("at least 1.1")


def test_comparison_without_budgets_says_so():
    assert "No budget was given." in to_markdown_text(document_of(*two_records()))


def test_how_sure_it_is_has_the_machine_and_both_runs():
    (openvino, *_) = table_of(full_comparison(), "How sure is this")
    assert openvino["Machine (new over old)"] == "1.30×"
    assert openvino["Passes that count (old)"] == "10 of 10"
    assert openvino["Calls set aside (old)"] == "12 of 240 (5.0 %)"
    assert openvino["Calls set aside (new)"] == "0 of 240 (0.0 %)"
    assert openvino["Smallest difference it shows"].endswith(" %")


def test_what_differs_is_listed_with_both_values():
    (numpy,) = table_of(full_comparison(), "What differs")
    assert numpy == {"What": "numpy", "Old": "2.4.6", "New": "2.5.0"}


def test_records_of_the_same_versions_and_settings_say_so():
    old = make_record(timed())
    new = make_record(timed(), environment=dataclasses.replace(LATER, packages={}))
    old = dataclasses.replace(old, environment=dataclasses.replace(old.environment, packages={}))
    assert "are the same in both records" in to_markdown_text(document_of(old, new))


def test_what_both_runs_warn_of_is_said_once_and_what_invalidates_comes_first():
    cautions = full_comparison().cautions
    texts = [caution.text for caution in cautions]
    assert texts[-1] == "New run: Few lesions."
    assert texts.count("Both runs: The load average was 3.0.") == 1
    flags = [caution.invalidates for caution in cautions]
    assert flags == sorted(flags, reverse=True)
    assert flags[0]


def test_records_the_wrong_way_round_invalidate_the_comparison():
    old, new = two_records()
    first = document_of(new, old).cautions[0]
    assert first.invalidates
    assert "name the earlier one first" in first.text


def test_row_that_cannot_be_compared_says_why_below_the_table():
    text = to_markdown_text(full_comparison())
    assert "UNeXt: latency: cannot tell: the old record has no yardstick" in text
    assert "OpenVINO INT8: both runs had the same files" in text


def test_plots_show_interval_and_passes_of_the_rows_that_can_be_compared():
    page = to_page(full_comparison())
    plot = page[page.index("<h3>New run against the old") :].split("</svg>")[0]
    assert plot.count('class="interval') == 2
    assert "UNeXt" not in plot
    passes = page[page.index("<h3>Passes of both runs") :].split("</svg>")[0]
    assert passes.count('class="dots passes') == 4


def test_hostile_name_stays_text_in_every_form():
    hostile = "<script>alert('x')</script>\"&|`*\x1b[2J"
    old = make_record(timed(hostile), notes=[Note("load", hostile)])
    new = later(timed(hostile, ratio=2))
    document = document_of(old, new, ["p50=1us"])
    assert "<script" not in to_page(document)
    assert not re.search(r"<script", to_markdown_text(document))
    assert "\x1b" not in render_comparison(compare_records(old, new))


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    """Two records in a folder of their own."""
    for name, record in zip(("old", "new"), two_records(), strict=True):
        (tmp_path / f"{name}.json").write_text(to_json(record), encoding="utf-8")
    return tmp_path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_page_markdown_and_json_are_written_together(written):
    old, new = read_pair(written / "old.json", written / "new.json")
    found = compare_records(old, new)
    paths = write_comparison(found, document_of(old, new), written / "to" / "change.html")
    assert [path.name for path in paths] == ["change.html", "change.json", "change.md"]
    assert names_in(written / "to") == sorted(path.name for path in paths)
    assert paths[1].read_text(encoding="utf-8") == comparison_to_json(found)
    assert json.loads(comparison_to_json(found))["schema"] == "edgeseg.comparison/2"


@pytest.mark.parametrize("name", ["old.html", "new.html", "x/../new.html"])
def test_report_of_a_record_that_is_compared_is_not_written_over(name, written):
    (written / "x").mkdir()
    records = written / "old.json", written / "new.json"
    with pytest.raises(InputError) as caught:
        require_comparison_path(written / name, records)
    assert caught.value.code == "E-REPORT-NAME"


@pytest.mark.parametrize("suffix", [".html", ".json", ".md"])
def test_record_under_any_of_the_names_is_not_written_over(suffix, written):
    record = written / f"change{suffix}"
    (written / "new.json").rename(record)
    (written / "link.json").symlink_to(record.name)
    for named in (record, written / "link.json"):
        with pytest.raises(InputError) as caught:
            require_comparison_path(written / "change.html", (written / "old.json", named))
        assert caught.value.code == "E-REPORT-NAME"
        assert str(named) in str(caught.value)


def test_record_that_is_a_link_to_itself_is_left_to_who_reads_it(written):
    loop = written / "loop.json"
    loop.symlink_to(loop.name)
    require_comparison_path(written / "change.html", (loop,))
    require_comparison_path(written / "loop.html", (loop,))
    with pytest.raises(InputError) as caught:
        read_pair(written / "old.json", loop)
    assert caught.value.code == "E-REPORT-READ"


def test_name_that_is_too_long_is_found_before_anything_is_read(written):
    with pytest.raises(OutputError) as caught:
        require_comparison_path(written / f"{'n' * 300}.html", ())
    assert caught.value.code == "E-OUT-WRITE"


def test_folder_in_the_place_of_a_file_is_found_before_anything_is_read(written):
    (written / "change.md").mkdir()
    with pytest.raises(OutputError) as caught:
        require_comparison_path(written / "change.html", ())
    assert caught.value.code == "E-OUT-WRITE"
    assert "change.md" in str(caught.value)


def test_one_run_is_not_compared_with_itself(written):
    text = (written / "old.json").read_text(encoding="utf-8")
    (written / "copy.json").write_text(text, encoding="utf-8")
    (written / "laid-out.json").write_text(json.dumps(json.loads(text), indent=1, sort_keys=True))
    for other in ("old.json", "copy.json", "laid-out.json"):
        with pytest.raises(InputError) as caught:
            read_pair(written / "old.json", written / other)
        assert caught.value.code == "E-COMPARE-SAME"


def test_records_are_read_from_pipes(written):
    whole = read_pair(written / "old.json", written / "new.json")
    with contextlib.ExitStack() as stack:
        pipes = []
        for name in ("old", "new"):
            command = ["cat", str(written / f"{name}.json")]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            pipes.append(Path(f"/dev/fd/{process.stdout.fileno()}"))
        piped = read_pair(*pipes)
    assert [to_json(record) for record in piped] == [to_json(record) for record in whole]


def test_comparison_of_rows_with_layers_and_proofs_stands():
    rows = [full_row("a"), changed(full_row("a"), 1.5)]
    old, new = make_record(rows[0], peaks=(PEAKS,)), later(rows[1], peaks=(PEAKS,))
    assert document_of(old, new).headline.startswith("No change of latency was found in a")
