"""Progress of what lasts a known time: a bar that the clock moves, not the loop."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TypeVar

from ...runtime.progress import Progress, quiet

T = TypeVar("T")


def by_the_second(
    items: Sequence[T], label: str, seconds: float, progress: Progress
) -> Iterator[T]:
    """Yield items while a bar goes on by a step a second.

    A thread moves it, since the loop that consumes the items measures meanwhile; without progress
    there is no thread.

    Args:
        items: each is worked on for about so long before the next is asked for.
        label: of the bar.
        seconds: for each item, above 0.
        progress: shows the seconds of all items.
    """
    if progress is quiet or not items:
        yield from items
        return
    each = max(1, round(seconds))
    steps = progress(range(each * len(items)), label, each * len(items))
    for item in items:
        done = threading.Event()
        thread = threading.Thread(target=_walk, args=(steps, each, done), daemon=True)
        thread.start()
        try:
            yield item
        finally:
            done.set()
            thread.join()
    for _ in steps:  # its end is what shows the total time
        pass


def _walk(steps: Iterator[int], count: int, done: threading.Event) -> None:
    """Take so many steps, one a second, and the rest at once when it is done."""
    for _ in range(count):
        done.wait(1.0)
        next(steps, None)
