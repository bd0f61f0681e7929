from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from edgeseg.benchmarks.jsonform import json_from_value
from edgeseg.benchmarks.record import SCHEMA, from_json, to_json
from edgeseg.benchmarks.schema import json_schema_of, record_schema
from edgeseg.runtime.errors import InputError
from edgeseg.tests.support.fabricated_record import full_record

PUBLISHED = Path(__file__).parents[2] / "docs" / "schema"
TYPES = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
    "array": list,
    "object": dict,
}


def faults(value, schema, top, where="record"):
    """Return what a value breaks: the part of JSON Schema that `json_schema_of` uses."""
    known = {"$schema", "$defs", "title", "description", "$ref", "type", "const", "enum", "anyOf"}
    assert set(schema) <= known | {"items", "properties", "required", "additionalProperties"}
    found = []
    if "$ref" in schema:
        found += faults(value, top["$defs"][schema["$ref"].rpartition("/")[2]], top, where)
    names = schema.get("type", list(TYPES))
    names = [names] if isinstance(names, str) else names
    if not any(
        isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
        for name in names
    ):
        return [f"{where}: {value!r:.40} is not {names}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is not of {schema['enum']}")
    if "anyOf" in schema and all(faults(value, each, top, where) for each in schema["anyOf"]):
        found.append(f"{where}: {value!r:.40} is none of {schema['anyOf']}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            found += faults(item, schema.get("items", {}), top, f"{where}[{i}]")
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        found += [
            f"{where}.{name} is missing" for name in schema.get("required", ()) if name not in value
        ]
        for name, item in value.items():
            inner = properties.get(name, others)
            if inner is False:
                found.append(f"{where}.{name} is unknown")
            else:
                found += faults(item, inner, top, f"{where}.{name}")
    return found


@pytest.fixture(scope="module")
def record():
    """The JSON of a record with everything in it, undefined numbers too."""
    text = to_json(full_record())
    from_json(text)  # it is a record
    return json.loads(text)


def change(content, value, *path):
    """Return the content with another value somewhere, or without it."""
    content = copy.deepcopy(content)
    place = content
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


WRONG = [
    ("edgeseg.benchmark/1", ("schema",)),
    (None, ("environment", "cpu")),
    ("2", ("environment", "cores")),
    ("more", ("rows", 0, "more")),
    (["x"], ("rows", 1, "latency", "e2e_ms")),
    (1.5, ("rows", 0, "macs")),
    (True, ("rows", 0, "latency", "first_ms")),
    ({}, ("rows", 0, "accuracy", "groups")),
    ({"dice": "0.8"}, ("rows", 0, "accuracy", "groups", 0, "pooled")),
]


def test_published_schema_is_that_of_the_dataclasses():
    file = PUBLISHED / f"{SCHEMA.replace('edgeseg.', '').replace('/', '-')}.json"
    assert file.read_text(encoding="utf-8") == record_schema(), (
        f"write it again: python -m edgeseg.benchmarks.schema > docs/schema/{file.name}"
    )


def test_schema_is_printed_by_its_module():
    done = subprocess.run(
        [sys.executable, "-m", "edgeseg.benchmarks.schema"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == record_schema()


def test_record_keeps_its_schema(record):
    schema = json.loads(record_schema())
    assert faults(record, schema, schema) == []


@pytest.mark.parametrize(("value", "path"), WRONG)
def test_wrong_record_breaks_the_schema_and_is_not_read(record, value, path):
    schema = json.loads(record_schema())
    wrong = change(record, value, *path)
    assert len(faults(wrong, schema, schema)) == 1
    with pytest.raises(InputError) as caught:
        from_json(json.dumps(wrong))
    assert caught.value.code == "E-REPORT-SCHEMA"


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="no jsonschema; make install brings it")
    return jsonschema.Draft202012Validator(json.loads(record_schema()))


def test_validator_of_others_takes_the_schema_and_the_record(validator, record):
    validator.check_schema(json.loads(record_schema()))
    assert validator.is_valid(record)


@pytest.mark.parametrize(("value", "path"), WRONG)
def test_validator_of_others_agrees(validator, record, value, path):
    assert not validator.is_valid(change(record, value, *path))


@dataclass(frozen=True)
class Leaf:
    """A part."""

    size_mm: float  # None where unknown
    kind: Literal["a", "b"]


@dataclass(frozen=True)
class Tree:
    """Everything that a field may be.

    More of it.
    """

    schema: str
    leaves: tuple[Leaf, ...]
    by_name: Mapping[str, Leaf]
    best: Leaf | None = None


def test_each_type_has_its_form_and_comments_are_descriptions():
    schema = json_schema_of(Tree, "tree/1")
    leaf = {"$ref": "#/$defs/Leaf"}
    assert schema["description"] == "Everything that a field may be."
    assert schema["properties"] == {
        "schema": {"type": "string", "const": "tree/1"},
        "leaves": {"type": "array", "items": leaf},
        "by_name": {"type": "object", "additionalProperties": leaf},
        "best": {"anyOf": [leaf, {"type": "null"}]},
    }
    assert schema["required"] == ["schema", "leaves", "by_name", "best"]
    assert schema["$defs"]["Leaf"]["properties"] == {
        "size_mm": {"type": ["number", "null"], "description": "null where unknown"},
        "kind": {"enum": ["a", "b"]},
    }
    value = json_from_value(Tree("tree/1", (Leaf(1.0, "a"),), {"x": Leaf(float("nan"), "b")}))
    assert faults(value, schema, schema) == []
    value["leaves"][0]["kind"] = "c"
    assert len(faults(value, schema, schema)) == 1


def test_type_without_a_form_is_an_error():
    @dataclass
    class Odd:
        schema: str
        value: bytes

    with pytest.raises(TypeError, match="bytes"):
        json_schema_of(Odd, "odd/1")
