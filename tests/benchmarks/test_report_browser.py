"""The benchmark's page in a real browser: sizes, themes, paper, keys, contrast."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import time

import pytest

from edgeseg.benchmarks.report.files import to_html
from edgeseg.benchmarks.report.page import to_page
from edgeseg.tests.support.chromium import MARK_CONTRAST, TEXT_CONTRAST
from edgeseg.tests.support.fabricated_comparison import LATER, document_of, full_comparison
from edgeseg.tests.support.fabricated_record import (
    ENVIRONMENT,
    bare_record,
    full_record,
    make_record,
    make_row,
)

REACHED = "a, .scroll, summary, textarea"  # what Tab must stop at
A4_PX = 718  # between margins of 1 cm
THEMES = pytest.mark.parametrize(
    "theme", [{}, {"dark": True}, {"paper": True}], ids=["light", "dark", "paper"]
)


PAGES = {
    "benchmark": lambda: to_html(full_record()),
    "comparison": lambda: to_page(full_comparison()),
}


def write(html, folder):
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write(to_html(full_record()), tmp_path_factory.mktemp("page"))


@pytest.fixture
def report(chromium, page):
    """The full report on a desk, nothing opened."""
    return opened(chromium, page)


@pytest.fixture(params=PAGES)
def either(request, chromium, tmp_path):
    """The full report, then a comparison with everything in it."""
    return opened(chromium, write(PAGES[request.param](), tmp_path))


def opened(chromium, path):
    chromium.emulate()
    chromium.open(path)
    return chromium


def test_the_browser_sees_what_a_page_says_and_loads(chromium, tmp_path):
    page, script = tmp_path / "loud.html", tmp_path / "loud.js"
    script.write_text("console.error('oh'); undefined.x")
    page.write_text('<script src="loud.js"></script><img src="gone.png">')
    chromium.open(page)
    chromium.collect()
    assert chromium.requests[1:] == [script.as_uri(), (tmp_path / "gone.png").as_uri()]
    assert len(chromium.errors) == 3


@pytest.mark.parametrize(
    ("emulated", "question"),
    [
        ({"dark": True}, "(prefers-color-scheme: dark)"),
        ({"paper": True}, "print"),
        ({"calm": True}, "(prefers-reduced-motion: reduce)"),
        ({"width_px": 390}, "(max-width: 400px)"),
    ],
)
def test_the_browser_emulates(report, emulated, question):
    matches = f"return matchMedia('{question}').matches"
    assert not report.run(matches)
    report.emulate(**emulated)
    assert report.run(matches)


def test_contrast_is_that_of_the_colours_that_are_seen(chromium, tmp_path):
    page = tmp_path / "grey.html"
    page.write_text(
        '<body style="background:#fff"><p style="color:#777">a</p>'
        '<p style="background:#000;color:rgba(255,255,255,.5)">b</p>'
        '<p style="color:#000;opacity:.5;font-size:24px">c</p>'
        '<svg><text style="fill:#000;fill-opacity:.5">d</text>'
        '<path class="line" style="fill:none;stroke:#000;stroke-opacity:.5" d="M0 0h9"/></svg>'
    )
    chromium.emulate()
    chromium.open(page)
    found = {
        text: (pytest.approx(value, abs=0.03), needed)
        for text, value, needed in chromium.run(TEXT_CONTRAST)
    }
    # Half of black over white is #808080 (3.98), half of white over black 5.32 by WCAG's formula.
    assert found == {"a": (4.48, 4.5), "b": (5.28, 4.5), "c": (3.98, 3), "d": (3.98, 4.5)}
    assert chromium.run(MARK_CONTRAST) == [["line", pytest.approx(3.98, abs=0.03)]]


def test_a_page_loads_nothing_but_itself_and_the_console_stays_silent(either):
    either.collect()
    assert either.requests == [either.run("return location.href")]
    assert either.errors == []


@THEMES
def test_every_text_and_mark_that_is_seen_has_the_contrast_of_wcag_aa(either, theme):
    either.emulate(**theme)
    either.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    texts, marks = either.run(TEXT_CONTRAST), either.run(MARK_CONTRAST)
    assert len(texts) > 250
    assert len(marks) > 20
    assert [text for text in texts if text[1] < text[2]] == []
    # Grid lines are no information: each has its number beside it.
    assert [mark for mark in marks if mark[1] < 3 and mark[0] != "grid"] == []


def long_names(**more):
    return make_record(make_row("w" * 90), make_row("many words " * 9), **more)


NARROW = {
    **PAGES,
    "bare": lambda: to_html(bare_record()),
    "long names": lambda: to_html(long_names()),
    "long names compared": lambda: to_page(
        document_of(long_names(), long_names(environment=LATER), ["p99=33ms"])
    ),
}


@pytest.mark.parametrize("html", NARROW.values(), ids=NARROW)
def test_a_phone_scrolls_wide_tables_in_their_box_and_never_the_page(chromium, html, tmp_path):
    chromium.emulate(390, 844)
    chromium.open(write(html(), tmp_path))
    assert chromium.run("return document.documentElement.scrollWidth") == 390
    assert chromium.run(
        "return [...document.querySelectorAll('.scroll')]"
        ".some(box => box.scrollWidth > box.clientWidth)"
    )


def test_tab_stops_at_all_that_can_be_used_in_reading_order_and_shows_where_it_is(either):
    wanted = either.run(
        f"return [...document.querySelectorAll('{REACHED}')].filter(e => e.checkVisibility())"
        ".map(e => e.outerHTML)"
    )
    reached = []
    for _ in wanted:
        either.press("TAB")
        reached.append(
            either.run(
                "const e = document.activeElement, s = getComputedStyle(e);"
                "return [e.outerHTML, s.outlineStyle, parseFloat(s.outlineWidth)]"
            )
        )
    assert [html for html, *_ in reached] == wanted
    assert {(style, width) for _, style, width in reached} == {("solid", 3)}
    either.press("TAB")
    assert either.run("return document.activeElement === document.body")


@pytest.mark.parametrize("key", ["ENTER", "SPACE"])
def test_a_folded_table_opens_and_closes_by_key(report, key):
    report.run("document.querySelector('summary').focus()")
    states = []
    for _ in range(2):
        report.press(key)
        states.append(report.run("return document.querySelector('details').open"))
    assert states == [True, False]


def test_arrow_keys_scroll_a_wide_table(report):
    report.emulate(390, 844)
    report.run("document.querySelector('.scroll').focus()")
    report.press("ARROW_RIGHT", "ARROW_RIGHT")
    end = time.monotonic() + 5
    while not (moved := report.run("return document.querySelector('.scroll').scrollLeft")):
        assert time.monotonic() < end
    assert moved > 0


def test_the_command_is_selected_and_copied_by_keys_alone_and_cannot_be_changed(report):
    report.run("document.querySelector('textarea').focus()")
    report.press("a", holding="CONTROL")
    assert report.run("return getSelection().toString()") == shlex.join(ENVIRONMENT.command)
    report.press("x", "DELETE")
    assert report.run("return document.querySelector('textarea').value") == shlex.join(
        ENVIRONMENT.command
    )


@pytest.mark.parametrize("theme", [{"width_px": 390}, {"width_px": A4_PX, "paper": True}])
def test_a_long_command_is_seen_whole_on_a_phone_and_on_paper(chromium, theme, tmp_path):
    command = (*ENVIRONMENT.command, *(f"--rival=network-{i}" for i in range(30)))
    environment = dataclasses.replace(ENVIRONMENT, command=command)
    record = make_record(make_row("a"), environment=environment)
    chromium.emulate(**theme)
    chromium.open(write(to_html(record), tmp_path))
    assert chromium.run(
        "const e = document.querySelector('textarea'); return e.scrollHeight <= e.clientHeight"
    )


def test_paper_has_every_table_open_and_whole(either):
    either.emulate(A4_PX, paper=True)
    assert either.run("return document.documentElement.scrollWidth") <= A4_PX
    hidden = either.run(
        "return [...document.querySelectorAll('td')].filter(e => !e.checkVisibility()"
        " || !e.getClientRects().length).length"
    )
    assert hidden == 0


def test_a_folded_table_is_there_to_be_opened_on_paper(report):
    assert report.run("return document.querySelectorAll('details td').length") > 0


def test_who_listens_gets_a_language_a_title_landmarks_and_headings_in_order(report):
    assert report.run("return [document.documentElement.lang, document.title]") == [
        "en",
        "edgeseg benchmark",
    ]
    for landmark in ("header", "main", "footer", "h1"):
        assert report.run(f"return document.querySelectorAll('{landmark}').length") == 1
    levels = report.run(
        "return [...document.querySelectorAll('h1,h2,h3,h4')].map(e => Number(e.tagName[1]))"
    )
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_all_that_needs_a_name_has_one_and_landmarks_differ(either):
    """Names as the browser hands them to a screen reader."""
    either.run("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    nodes = either.cdp("Accessibility.getFullAXTree")["nodes"]
    names = {}
    for node in nodes:
        if not node["ignored"]:
            role = node["role"]["value"]
            names.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    pictures = names.get("image", []) + names.get("img", [])
    assert len(pictures) == either.run("return document.querySelectorAll('svg').length")
    assert all(pictures + names["region"] + names["textbox"])
    assert either.run("return [...document.querySelectorAll('[tabindex]')].every(e => e.ariaLabel)")
    assert len(set(names["region"])) == len(names["region"])
