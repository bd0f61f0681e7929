"""The errors a user can meet, each with a stable code and an exit code.

Anything that is not an `EdgesegError` is a bug and keeps its traceback (exit code 1).
"""

from __future__ import annotations

from typing import Tuple, Type


class EdgesegError(Exception):
    """Base of every error that is not a bug.

    Args:
        code: stable name such as ``E-DATA-MASK-SIZE``; tests and scripts key on it.
        message: one line: what, where, and after a semicolon how to mend it.
    """

    exit_code = 1

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self._message = message

    def __reduce__(self) -> Tuple[Type[EdgesegError], Tuple[str, str]]:
        """Let processes hand errors to each other."""
        return type(self), (self.code, self._message)


class InputError(EdgesegError):
    """What was given (arguments, images, a data set, a checkpoint) cannot be used."""

    exit_code = 2


class Refused(EdgesegError):  # noqa: N818 - a refusal is an answer, not a failure
    """An integrity check or a quality gate said no."""

    exit_code = 3


class EngineError(EdgesegError):
    """An engine or a package is missing, or failed on this machine."""

    exit_code = 4


class OutputError(EdgesegError):
    """A result could not be written; nothing partial was left behind."""

    exit_code = 5


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# What reading content that others may have written raises: also numbers and nesting beyond reason.
MALFORMED = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
    InputError,
)
