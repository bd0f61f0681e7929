"""Frozen dataclasses to JSON values and back; reading is strict, field by field."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..runtime.contract import SPARSE
from ..runtime.errors import InputError

T = TypeVar("T")
_MAX_INT = 1 << 63  # more is no count, and no float either
_hints = functools.lru_cache(maxsize=None)(get_type_hints)


def json_from_value(value: Any) -> Any:
    """Return dataclasses and mappings as dicts, tuples as lists and NaN as None.

    A sparse field is left out where it has its default.
    """
    if dataclasses.is_dataclass(value):
        return {
            field.name: json_from_value(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not (is_sparse(field) and getattr(value, field.name) == field.default)
        }
    if isinstance(value, Mapping):
        return {key: json_from_value(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [json_from_value(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def is_sparse(field: dataclasses.Field[Any]) -> bool:
    """Say whether a field may be left out of JSON, which then means its default."""
    return field.metadata == SPARSE


def value_from_json(kind: type[T], value: Any, where: str) -> T:
    """Read the result of `json_from_value` as the dataclass `kind`.

    Args:
        kind: dataclass of numbers, strings, literals, mappings from str, tuples and dataclasses.
        value: parsed JSON.
        where: name of the value, for the message.

    Raises:
        InputError: E-REPORT-SCHEMA names the first field that is missing, unknown or mistyped.
    """
    read: T = _read(kind, value, where)
    return read


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        *others, last = [each for each in arguments if each is not type(None)]
        if value is None and type(None) in arguments:
            return None
        for each in others:
            with contextlib.suppress(InputError):
                return _read(each, value, where)
        return _read(last, value, where)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _read_dataclass(kind, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {
            _read(str, key, f"a name in {where}"): _read(arguments[1], item, f"{where}.{key}")
            for key, item in value.items()
        }
    if origin is Literal and value in arguments:
        return value
    if type(value) is int and abs(value) >= _MAX_INT:
        raise _malformed(f"{where} is an integer of over 63 bits")
    if type(value) is float and not math.isfinite(value):
        raise _malformed(f"{where} is {value}, which JSON has not")
    if kind is float and (value is None or type(value) in (int, float)):
        return math.nan if value is None else float(value)
    if kind is str and type(value) is str and not _is_text(value):
        raise _malformed(f"{where} has half of a surrogate pair")
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise _malformed(f"{where} is {value!r:.60}, expected {getattr(kind, '__name__', kind)}")


def _is_text(value: str) -> bool:
    """Say whether a string can be written: JSON may have half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_dataclass(kind: Any, value: dict[str, Any], where: str) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    needed = {field.name for field in dataclasses.fields(kind) if not is_sparse(field)}
    if wrong := sorted((set(value) - names) | (needed - set(value))):
        raise _malformed(f"{where}.{wrong[0]} is {'missing' if wrong[0] in names else 'unknown'}")
    hints = _hints(kind)
    return kind(**{name: _read(hints[name], value[name], f"{where}.{name}") for name in value})


def _malformed(what: str) -> InputError:
    return InputError("E-REPORT-SCHEMA", f"{what}; run the benchmark again with this version")
