"""Paths as text: what every public function that takes a path does with a str."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any, Callable, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def takes_paths(function: F) -> F:
    """Let the parameters of a function that are annotated with Path take str as well."""
    names = [name for name, text in function.__annotations__.items() if "Path" in str(text)]
    signature = inspect.signature(function)

    @functools.wraps(function)
    def taking(*arguments: Any, **named: Any) -> Any:
        bound = signature.bind(*arguments, **named)
        for name in names:
            if name in bound.arguments:
                bound.arguments[name] = _path_of(bound.arguments[name])
        return function(*bound.args, **bound.kwargs)

    return cast(F, taking)


def _path_of(value: Any) -> Any:
    if isinstance(value, str):
        return Path(value)
    if isinstance(value, (list, tuple)):
        return [_path_of(each) for each in value]
    return value
