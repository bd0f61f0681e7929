"""Standard input, output and error, made safe to use whatever the caller left of them.

Needs nothing but Python: a message about a missing package goes through them too.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from typing import Literal, TextIO

from ..runtime.errors import OutputError

_READER_GONE = frozenset((errno.EPIPE, errno.EIO))  # a pipe's, a terminal's


class _Stream(io.FileIO):
    """A descriptor to which writing goes on as if nothing were wrong once nobody reads it.

    Commands print when their work is done, so what becomes of the print changes nothing of it.

    Args:
        descriptor: stays open.
        told: whether a write that fails for another reason, such as a full disk, is an
            OutputError (E-OUT-WRITE), once; else it is let go too.
    """

    def __init__(self, descriptor: int, *, told: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._told = told
        self._gone = False

    def write(self, content: object) -> int:
        """Write bytes and return how many were taken."""
        size = memoryview(content).nbytes  # type: ignore[arg-type]  # any buffer
        while not self._gone:
            try:
                written = super().write(content)  # type: ignore[arg-type]
            except OSError as error:
                self._gone = True
                if self._told and error.errno not in _READER_GONE:
                    reason = error.strerror or str(error)
                    raise OutputError(
                        "E-OUT-WRITE",
                        f"cannot write to standard output: {reason}; free space or send it "
                        "elsewhere",
                    ) from error
            else:
                if written is not None:
                    return written
                select.select([], [self], [])  # a descriptor that does not block, and is full
        return size


def mend_streams() -> None:
    """Give this process three standard streams that work; call it once, first.

    A closed one (of a service, by ``2>&-``) leads nowhere from now on: also its descriptor, which
    would otherwise be that of the next file opened, for libraries and children to write into.
    Characters that the encoding of an output lacks are replaced.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(nowhere, True)
    if sys.stdin is None:
        sys.stdin = _nowhere("r")
    sys.stdout = _writer(sys.stdout, told=True)
    sys.stderr = _writer(sys.stderr, told=False)


def _nowhere(mode: Literal["r", "w"]) -> TextIO:
    descriptor = os.open(os.devnull, os.O_RDWR)
    return os.fdopen(descriptor, mode, encoding="utf-8", errors="replace")


def _writer(stream: TextIO | None, *, told: bool) -> TextIO:
    if stream is None:
        return _nowhere("w")
    try:
        raw = _Stream(stream.fileno(), told=told)
    except io.UnsupportedOperation:  # what a notebook or a test reads has no descriptor
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=bool(stream.line_buffering) or not told,
    )
