"""Figures by data set: a row each and one for all, with missed lesions counted."""

import numpy as np
import pytest

from edgeseg.benchmarks.measure.accuracy import score_images
from edgeseg.benchmarks.measure.by_set import accuracy_by_set, render_by_set


class Case:
    """An image whose truth is the first `truth` pixels and whose grey says what is predicted."""

    def __init__(self, name, truth, predicted):
        self.name, self.truth, self.predicted = name, truth, predicted
        self.label = "benign" if truth else "normal"
        self.group = name

    def read_image(self, *, colour=False):
        return np.full((1, 100), self.predicted, np.uint8)

    def read_mask(self):
        return np.arange(100)[None] < self.truth


def predict(image):
    return (np.arange(100) < image[0, 0])[None]


CASES = [
    Case("a/1", 10, 10),  # Dice 1
    Case("a/2", 100, 5),  # Dice 2 · 5 / 105, under 0.1
    Case("a/3", 0, 1),
    Case("a/4", 0, 0),
    Case("b/1", 10, 20),  # Dice 2/3
]


def rows_of(cases):
    scores = score_images(predict, cases)
    return accuracy_by_set(scores, {case.name: case.name[0] for case in cases})


def test_each_set_has_a_row_and_all_together_one():
    first, second, every = rows_of(CASES)
    assert (first.name, first.lesions, first.missed, first.normals, first.marked) == (
        *("a", 2),
        *(1, 2, 1),
    )
    assert first.dice.mean == pytest.approx((1 + 10 / 105) / 2)
    assert (second.name, second.missed, second.normals) == ("b", 0, 0)
    assert second.dice.mean == pytest.approx(2 / 3)
    assert (every.name, every.lesions, every.missed, every.marked) == ("all", 3, 1, 1)
    assert every.dice.mean == pytest.approx((1 + 10 / 105 + 2 / 3) / 3)


def test_one_set_has_one_row():
    assert [row.name for row in rows_of(CASES[:4])] == ["a"]


def test_the_table_names_sets_missed_lesions_and_marked_normals():
    text = render_by_set(rows_of(CASES))
    assert "missed (Dice < 0.1)" in text
    assert "1 of 2" in text
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["a", "b", "all"]
