"""How long work reports progress: the caller passes a loop wrapper; the default is quiet."""

from __future__ import annotations

from typing import Iterable, Iterator, Optional, Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Wraps an iterable and shows how far the loop has come."""

    def __call__(self, items: Iterable[T], label: str, total: Optional[int] = None) -> Iterator[T]:
        """Yield `items` unchanged; `total` is their number where they have no length."""
        ...


def quiet(items: Iterable[T], label: str, total: Optional[int] = None) -> Iterator[T]:
    """Yield `items` and show nothing."""
    return iter(items)
