from __future__ import annotations

import pytest

from edgeseg.benchmarks.page import to_html
from edgeseg.tests.fabricated_record import full_record


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(to_html(full_record()), encoding="utf-8")
    return path


def test_the_page_loads_nothing_but_itself_and_the_console_stays_silent(chromium, page):
    chromium.emulate()
    chromium.open(page)
    chromium.collect()
    assert chromium.requests == [page.as_uri()]
    assert chromium.errors == []


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
def test_the_browser_emulates(chromium, page, emulated, question):
    chromium.open(page)
    chromium.emulate()
    matches = f"return matchMedia('{question}').matches"
    assert not chromium.run(matches)
    chromium.emulate(**emulated)
    assert chromium.run(matches)
