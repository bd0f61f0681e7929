"""The page of refusals: every one of the source, in its words, and its codes in the error table."""

from __future__ import annotations

import re

from edgeseg.export.operators import REFUSED
from edgeseg.tests.support.error_table import ROOT, in_page
from edgeseg.tests.support.refusals import END, START, section, table


def _page():
    return (ROOT / "docs" / "networks.md").read_text(encoding="utf-8")


def test_the_page_has_every_refusal_as_the_source_words_it_and_no_other():
    _, _, after = _page().partition(START)
    held, _, _ = after.partition(END)
    assert (START + held + END).splitlines() == section().splitlines()


def test_its_codes_and_exit_codes_are_those_of_the_error_table():
    known = in_page()
    rows = re.findall(r"^\| `(E-[A-Z0-9-]+)` \| (\d) \| (.+) \|$", table(), re.MULTILINE)
    assert len(rows) == len(table().splitlines()) - 2 > 80
    assert {code for code, exit_code, _ in rows if int(exit_code) not in known[code]} == set()


def test_it_names_every_operator_that_no_export_takes():
    page = _page()
    assert [name for name in REFUSED if f"`{name}`" not in page] == []
