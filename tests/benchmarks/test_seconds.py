"""A bar that the clock moves."""

from __future__ import annotations

import threading
import time

from edgeseg.benchmarks.measure.timed_progress import by_the_second
from edgeseg.runtime.progress import quiet


class Shown:
    """A progress that notes its steps."""

    def __init__(self):
        self.steps = []

    def __call__(self, items, label, total=None):
        self.label, self.total = label, total
        for item in items:
            yield item
            self.steps.append(item)


def test_bar_has_a_step_for_each_second_of_all_items():
    shown = Shown()
    items = list(by_the_second("ab", "soak", 3.0, shown))
    assert (items, shown.label, shown.total) == (["a", "b"], "soak", 6)
    assert shown.steps == [0, 1, 2, 3, 4, 5]


def test_bar_goes_on_while_one_item_is_worked_on():
    shown = Shown()
    for item in by_the_second([0, 1], "paced", 60.0, shown):
        if item == 0:
            deadline = time.monotonic() + 20
            while len(shown.steps) < 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert 1 <= len(shown.steps) < 60
        else:
            assert len(shown.steps) >= 59  # the rest of the first is skipped
    assert len(shown.steps) == 120


def test_nothing_to_show_needs_no_thread():
    before = threading.active_count()
    for _ in by_the_second([1], "energy", 60.0, quiet):
        assert threading.active_count() == before


def test_no_items_show_no_bar():
    shown = Shown()
    assert list(by_the_second((), "energy", 90.0, shown)) == []
    assert not hasattr(shown, "label")


def test_item_shorter_than_a_second_still_has_a_step():
    shown = Shown()
    assert list(by_the_second("a", "offline", 0.02, shown)) == ["a"]
    assert shown.total == 1


def test_failure_leaves_no_thread_behind():
    before = threading.active_count()
    turns = by_the_second([1, 2], "soak", 60.0, Shown())
    next(turns)
    assert threading.active_count() == before + 1
    turns.close()
    assert threading.active_count() == before
