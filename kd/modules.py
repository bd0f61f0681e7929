"""Networks from elsewhere: made by a function that is named, so that its code runs.

A name on the command line is the user's own. One that a file brings is its author's, and reading a
file runs no code of its author's choice: such a name is followed only where the user allows it.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..runtime.errors import InputError, first_line

if TYPE_CHECKING:
    from torch import nn

ALLOWED: Final = "EDGESEG_MODULES"  # environment variable: a,b.c are modules that files may name
_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def names_function(text: str) -> bool:
    """Say whether a text is ``package.module:function``; nothing is imported."""
    return _NAME.fullmatch(text) is not None


def module_made_by(name: str) -> nn.Module:
    """Make a network by its function, which takes no argument; its code runs.

    Args:
        name: ``package.module:function``, found from the working directory too.

    Raises InputError (E-MODULE-IMPORT): it cannot be imported or called, or makes no network.
    """
    from torch import nn

    package, _, function = name.partition(":")
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(package), function)()
    except Exception as error:  # whatever somebody's code raises
        raise InputError(
            "E-MODULE-IMPORT",
            f"cannot make a network by {name}: {type(error).__name__}: {first_line(error)}; name "
            "a function without arguments in a module that can be imported from here",
        ) from error
    finally:
        sys.path[:] = before
    if not isinstance(made, nn.Module):
        raise InputError(
            "E-MODULE-IMPORT", f"{name} returns {type(made).__name__}; expected a torch nn.Module"
        )
    return made


def require_allowed(name: str, file: Path) -> None:
    """Refuse a network's name that a file brings and that would run code (E-MODEL-MODULE).

    It passes where its module is in the environment variable `ALLOWED`, letter by letter, or where
    it is no function's name. Nothing is imported.
    """
    module = name.partition(":")[0]
    allowed = [each.strip() for each in os.environ.get(ALLOWED, "").split(",")]
    if names_function(name) and module not in allowed:
        raise InputError(
            "E-MODEL-MODULE",
            f"{file} is of a network that {name} makes, and no file may choose which code runs; if "
            f"you trust that module, set {ALLOWED}={module}",
        )
