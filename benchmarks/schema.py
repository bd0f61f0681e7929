"""The JSON Schema of a benchmark record, made from its dataclasses so that it cannot drift.

`python -m edgeseg.benchmarks.schema` prints it; `docs/schema/` keeps what was printed.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .jsonform import is_sparse
from .record import SCHEMA, BenchmarkRecord

_SIMPLE: Mapping[Any, Any] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": ["number", "null"]},  # an undefined number is null
}


def json_schema_of(kind: type, identity: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what `jsonform.json_from_value` makes of `kind`.

    Every field but a sparse one is required and no other is allowed; the comment behind a field in
    the source is its description.

    Args:
        kind: dataclass whose field `schema` names the format.
        identity: value of that field, such as ``edgeseg.benchmark/5``.

    Raises:
        TypeError: a field has a type that `jsonform` does not read, or two have one name.
    """
    kinds: dict[Any, dict[str, Any]] = {}
    _schema_of(kind, kinds)
    top = kinds.pop(kind)
    top["properties"]["schema"]["const"] = identity
    definitions = {each.__name__: schema for each, schema in kinds.items()}
    if len(definitions) < len(kinds):
        raise TypeError(f"two of {list(kinds)} have one name")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": identity,
        **top,
        "$defs": dict(sorted(definitions.items())),
    }


def _schema_of(kind: Any, kinds: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _SIMPLE:
        return dict(_SIMPLE[kind])
    if origin is Literal:
        return {"enum": list(arguments)}
    if kind is type(None):
        return {"type": "null"}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema_of(each, kinds) for each in arguments]}
    if origin is tuple and arguments[1:] == (...,):
        return {"type": "array", "items": _schema_of(arguments[0], kinds)}
    if isinstance(origin, type) and issubclass(origin, Mapping) and arguments[0] is str:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], kinds)}
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise TypeError(f"{kind!r} has no form in JSON")
    if kind not in kinds:
        kinds[kind] = {}  # before its fields, which may hold the same kind
        kinds[kind].update(_object_of(kind, kinds))
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _object_of(kind: Any, kinds: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    hints, comments = get_type_hints(kind), _comments_of(kind)
    every = dataclasses.fields(kind)
    properties = {}
    for name in (field.name for field in every):
        properties[name] = _schema_of(hints[name], kinds)
        if name in comments:
            properties[name]["description"] = comments[name]
    return {
        "description": " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split()),
        "type": "object",
        "properties": properties,
        "required": [field.name for field in every if not is_sparse(field)],
        "additionalProperties": False,
    }


def _comments_of(kind: type) -> dict[str, str]:
    """Return the comment behind each field, by name; one above a field is not taken."""
    line = re.compile(r"^    (\w+): .*?  # (.+)$", re.MULTILINE)
    found = line.findall(inspect.getsource(kind))
    return {name: re.sub(r"\b(None|NaN)\b", "null", comment) for name, comment in found}


def record_schema() -> str:
    """Return the JSON Schema of `BenchmarkRecord` as text."""
    return json.dumps(json_schema_of(BenchmarkRecord, SCHEMA), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(record_schema(), end="")
