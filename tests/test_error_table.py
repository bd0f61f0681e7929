"""The error table of the docs: every code of the source, its exit codes, and a test of each."""

from __future__ import annotations

import re

from edgeseg.tests.support.error_table import CODE, ROOT, in_page, raised


def _text():
    return (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")


def test_table_has_every_code_of_the_source_and_no_other():
    assert set(in_page()) == set(raised())


def test_exit_codes_of_the_table_are_those_of_the_classes_that_are_raised():
    page = in_page()
    told = {code: exits for code, exits in raised().items() if exits}
    assert {code: page[code] for code in told} == told
    assert len(told) > 200  # what is left is chosen where an answer arrives, such as a device's


def test_table_is_sorted_and_its_exit_codes_are_those_of_the_first_table():
    page = in_page()
    assert list(page) == sorted(page)
    known = {int(code) for code in re.findall(r"^\| (\d+) \| ", _text(), re.MULTILINE)}
    assert {exit_code for exits in page.values() for exit_code in exits} <= known - {0, 1}


def test_examples_of_the_first_table_stand_in_the_row_of_their_exit_code():
    page = in_page()
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]*E-[^|]*) \|$", _text(), re.MULTILINE)
    assert len(rows) == 5
    for exit_code, examples in rows:
        for code in CODE.findall(examples):
            assert int(exit_code) in page[code], code


def test_every_code_of_the_table_is_named_by_a_test():
    named = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path.name != "test_error_table.py":
            named |= set(CODE.findall(path.read_text(encoding="utf-8")))
    assert set(in_page()) - named == set()
