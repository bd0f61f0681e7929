"""Every refusal of a network from elsewhere, as the source words it; `python -m` prints them."""

from __future__ import annotations

import ast

from edgeseg.export.operators import REFUSED
from edgeseg.tests.support.error_table import CODE, EXITS, ROOT

# What reads, converts, plans, parses and judges a network from elsewhere, in that order.
MODULES = (
    "export/torch_module.py",
    "export/onnx_file.py",
    "export/foreign.py",
    "export/ends.py",
    "export/operators.py",
    "export/quantised.py",
    "export/opset.py",
    "export/logits.py",
    "benchmarks/measure/complexity.py",
    "export/plan.py",
    "export/surface.py",
    "export/to_openvino.py",
    "export/to_rtx.py",
    "export/reading.py",
    "export/ranges.py",
    "export/forms.py",
    "export/audit.py",
    "export/parity.py",
)
_BY_REASON = {"refuse": ("E-ONNX-QDQ", "InputError")}  # what makes one error of several reasons
_AS_SAID = "what the library says, in a line of ours"
START, END = "<!-- refusals: made by tests/support/refusals.py -->", "<!-- refusals end -->"


def _texts(node: ast.AST) -> str:
    """The text of a message, `…` where it is computed."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_texts(each) for each in node.values)
    if isinstance(node, ast.BinOp):
        return _texts(node.left) + _texts(node.right)
    return "…"


def _rows_of(module: str) -> list[tuple[str, int, str]]:
    rows = []
    for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or len(node.args) < 2:
            continue
        name = getattr(node.func, "id", "")
        code, reason = _texts(node.args[0]), _texts(node.args[1])
        if name in EXITS and CODE.fullmatch(code):
            reason = _AS_SAID if reason == "…" else reason
            rows.append((node.lineno, code, EXITS[name], reason))
        elif name in _BY_REASON:
            code, kind = _BY_REASON[name]
            rows.append((node.lineno, code, EXITS[kind], reason))
    return [row[1:] for row in sorted(rows)]


def table() -> str:
    """The table of the page: code, exit code and the words, `…` where they name what was found."""
    lines = ["| code | exit code | says |", "| --- | --- | --- |"]
    for module in MODULES:
        for code, exit_code, reason in _rows_of(module):
            words = " ".join(reason.split()).replace("|", "\\|").replace("<", "&lt;")
            lines.append(f"| `{code}` | {exit_code} | {words} |")
    return "\n".join(lines)


def operators() -> str:
    """The table of operators that no export takes, by reason."""
    lines = ["| operators | each |", "| --- | --- |"]
    for reason in dict.fromkeys(REFUSED.values()):
        names = ", ".join(f"`{name}`" for name, why in REFUSED.items() if why == reason)
        lines.append(f"| {names} | {reason} |")
    return "\n".join(lines)


def section() -> str:
    """What stands between the marks in docs/networks.md."""
    return f"{START}\n\n{operators()}\n\n{table()}\n\n{END}"


if __name__ == "__main__":
    print(section())
