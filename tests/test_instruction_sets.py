"""The header tells what the numbers of a session depend on; a skip tells how to end it."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
import torch

from edgeseg.kd.fit import compute_dtype
from edgeseg.tests import conftest
from edgeseg.tests.support.instruction_sets import CAPS

TESTS = Path(__file__).parent


@pytest.fixture
def uncapped(monkeypatch):
    for cap in CAPS:
        monkeypatch.delenv(cap, raising=False)


def test_header_tells_cpu_instruction_sets_and_float_types(uncapped):
    cpu, sets, types = conftest.pytest_report_header()
    assert f", {os.cpu_count()} cores" in cpu
    assert sets.endswith("; no cap")
    assert f"training {compute_dtype(torch.device('cpu'))} ".replace("torch.", "") in types
    assert "OpenVINO " in types


def test_header_tells_a_cap_and_the_float_types_under_it(uncapped, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    _, sets, types = conftest.pytest_report_header()
    assert sets.endswith("; ONEDNN_MAX_CPU_ISA=AVX2")
    assert "training float32 " in types
    assert "OpenVINO f32 " in types


def reasons_in(file):
    """Yield the line and the constant text of every reason to skip; None where there is none."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        given = {each.arg: each.value for each in node.keywords}
        if node.func.attr == "skip":
            reason = node.args[0]
        elif node.func.attr in ("skipif", "importorskip"):
            reason = given.get("reason")
        else:
            continue
        if not isinstance(reason, ast.Name):  # made by a function
            parts = ast.walk(reason) if reason else ()
            yield (
                node.lineno,
                "".join(
                    each.value
                    for each in parts
                    if isinstance(each, ast.Constant) and isinstance(each.value, str)
                ),
            )


@pytest.mark.parametrize(
    "file", sorted(TESTS.rglob("*.py")), ids=lambda file: file.relative_to(TESTS).as_posix()
)
def test_every_skip_says_what_is_missing_and_how_to_get_it(file):
    assert [line for line, reason in reasons_in(file) if "; " not in reason] == []
