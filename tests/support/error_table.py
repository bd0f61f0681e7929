"""Codes of errors as the source raises them, listed by `python -m` with this module's name."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import edgeseg
from edgeseg.export.kit import kit_files
from edgeseg.runtime import errors

ROOT = Path(edgeseg.__file__).parent
CODE = re.compile(r"E-[A-Z0-9]+(?:-[A-Z0-9]+)*")
EXITS = {
    name: kind.exit_code
    for module in (errors, kit_files)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and hasattr(kind, "exit_code")
}


def sources():
    """The files of the package, without its tests and what lies beside it, such as a venv."""
    yield from sorted(ROOT.glob("*.py"))
    for folder in ("benchmarks", "cli", "export", "kd", "runtime"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def _text(node):
    """The literal text of a node, `…` where it is computed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(each) for each in node.values)
    return "…"


def raised():
    """Code -> exit codes: of the class that is made with it, 0 where the source does not tell."""
    found = defaultdict(set)
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                code = _text(node.args[0]).partition(":")[0]
                if CODE.fullmatch(code) and name in EXITS:
                    found[code].add(EXITS[name])
                elif CODE.fullmatch(code) and name == "leave" and len(node.args) > 1:
                    told = node.args[1]
                    found[code].add(told.value if isinstance(told, ast.Constant) else 0)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                code = node.value.partition(":")[0]
                if CODE.fullmatch(code):
                    found[code]  # handed on to where the class is chosen
    return {code: sorted(exits - {0}) for code, exits in found.items()}


def in_page():
    """Code -> exit codes of the table in docs/errors.md."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(E-[A-Z0-9-]+)` \| ([0-9, ]+) \|$", text, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return {code: [int(each) for each in exits.split(",")] for code, exits in rows}


if __name__ == "__main__":
    for each, exits in sorted(raised().items()):
        print(f"| `{each}` | {', '.join(map(str, exits)) or '?'} |")
