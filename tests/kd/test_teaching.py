"""Who teaches whom: every row of the table, the average of several teachers, the cache."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgeseg.kd.cache import LogitCache
from edgeseg.kd.config import TrainConfig
from edgeseg.kd.data.dataset import EVERY_LABEL
from edgeseg.kd.distill import find_distillation
from edgeseg.kd.frames import Batch
from edgeseg.kd.models import Network, Trace
from edgeseg.kd.teaching import CLASSES_OF, TEACHINGS, Teachers, find_teaching
from edgeseg.kd.train import student_loss
from edgeseg.runtime.errors import InputError

BENIGN, MALIGNANT, EVERY = 2.0, -2.0, 5.0  # what each teacher says of every pixel
SIZE = 16


class Fixed(Network):
    """Says one logit everywhere and counts the images it saw."""

    def __init__(self, logit):
        super().__init__()
        self.logit = logit
        self.seen = 0

    def trace(self, images):
        self.seen += len(images)
        maps = torch.full_like(images, self.logit)
        return Trace(maps, maps[:, :, :4, :4], maps)


def batch_of(*labels, truth=0.0):
    images = torch.zeros(len(labels), 1, SIZE, SIZE)
    names = tuple(f"{label} {row}" for row, label in enumerate(labels))
    views = np.zeros(len(labels), int)
    return Batch(images, torch.full_like(images, truth), np.array(labels), names, views)


def teachers_of(name, caches=None):
    teaching = find_teaching(name)
    logits = {"benign": BENIGN, "malignant": MALIGNANT, "every": EVERY}
    networks = {each: Fixed(logits[each]) for each in teaching.teachers}
    return Teachers(teaching, networks, caches or {})


def said(name, *labels, truth=0.0):
    trace, taught = teachers_of(name).answer(batch_of(*labels, truth=truth))
    logits = trace.logits[:, 0, 0, 0].tolist() if len(trace.logits) else []
    return logits, taught.tolist()


def test_routed_asks_the_teacher_of_the_images_own_class_and_none_for_a_normal_one():
    assert said("routed", "benign", "normal", "malignant") == ([BENIGN, 0, MALIGNANT], [1, 0, 1])


def test_wrong_asks_the_teacher_of_the_other_class():
    assert said("wrong", "benign", "normal", "malignant") == ([MALIGNANT, 0, BENIGN], [1, 0, 1])


def test_mean_averages_both_teachers():
    assert said("mean", "benign", "malignant", "normal") == ([0, 0, 0], [1, 1, 0])


def test_single_asks_one_teacher_for_every_image():
    assert said("single", *EVERY_LABEL) == ([EVERY] * 4, [1, 1, 1, 1])


def test_none_teaches_nobody():
    assert said("none", *EVERY_LABEL) == ([], [0, 0, 0, 0])


def test_confidence_weighs_by_the_softmax_of_minus_the_loss_on_the_mask():
    # On a mask that is all lesion, cross-entropy is ln(1 + e^-z): 0.1269 for 2 and 2.1269 for -2.
    share = 1 / (1 + np.exp(-2.0))
    expected = share * BENIGN + (1 - share) * MALIGNANT
    logits, taught = said("confidence", "benign", "malignant", truth=1.0)
    assert logits == pytest.approx([expected] * 2, abs=1e-5)
    assert taught == [1, 1]


@pytest.mark.parametrize("name", TEACHINGS)
def test_each_image_passes_only_through_the_teachers_that_it_visits(name):
    teachers = teachers_of(name)
    teachers.answer(batch_of("benign", "benign", "malignant", "normal", "lesion"))
    counts = {"benign": 2, "malignant": 1, "normal": 1, "lesion": 1}
    for teacher, network in teachers.networks.items():
        visitors = teachers.teaching.taught_by(teacher)
        assert network.seen == sum(counts[label] for label in visitors)


@pytest.mark.parametrize("name", TEACHINGS)
def test_teachers_of_a_row_are_known_and_so_are_its_labels(name):
    teaching = TEACHINGS[name]
    assert set(teaching.teachers) <= set(CLASSES_OF)
    assert set(teaching.visits) <= set(EVERY_LABEL)


def test_unknown_teaching_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="routed, mean") as caught:
        find_teaching("both")
    assert caught.value.code == "E-TEACHING-NAME"


# --- the student's loss --------------------------------------------------------------------------


def loss_of(teachers, batch, logits, distillation="kl"):
    terms = {name: find_distillation(name) for name in distillation.split("+")}
    loss = student_loss(teachers, terms, TrainConfig(distillation=distillation))
    maps = torch.full_like(batch.images, 0.0) + torch.tensor(logits).view(-1, 1, 1, 1)
    return loss(Trace(maps, maps[:, :, :4, :4], maps), batch)


def test_student_that_says_what_its_teachers_say_has_no_distillation_loss():
    batch = batch_of("benign", "normal", "malignant")
    values = loss_of(teachers_of("routed"), batch, [BENIGN, 9.0, MALIGNANT])
    assert values["kl"].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    values = loss_of(teachers_of("wrong"), batch, [BENIGN, 9.0, MALIGNANT])
    assert (values["kl"] > 0.5).tolist() == [True, False, True]


def test_student_without_teachers_learns_from_the_masks_alone():
    assert set(loss_of(teachers_of("none"), batch_of("benign"), [0.0])) == {"masks"}


def test_batch_without_a_taught_image_has_a_distillation_loss_of_0():
    values = loss_of(teachers_of("routed"), batch_of("normal", "normal"), [3.0, 4.0])
    assert values["kl"].tolist() == [0, 0]


def test_several_distillation_losses_stand_beside_each_other():
    values = loss_of(teachers_of("routed"), batch_of("benign"), [0.0], "kl+cwd+at")
    assert set(values) == {"masks", "kl", "cwd", "at"}


# --- the cache -----------------------------------------------------------------------------------


def test_view_that_is_kept_is_not_asked_for_again_and_answers_the_same(tmp_path):
    batch = batch_of("benign", "malignant", "benign", "normal")
    rows = {"benign": ("benign 0", "benign 2"), "malignant": ("malignant 1",)}
    caches = {
        name: LogitCache(tmp_path, name, {"size": SIZE}, images, views=2)
        for name, images in rows.items()
    }
    teachers = teachers_of("routed", caches)
    first, taught = teachers.answer(batch)
    again, _ = teachers.answer(batch)
    assert torch.equal(first.logits, again.logits)
    assert first.logits[:, 0, 0, 0].tolist() == [BENIGN, MALIGNANT, BENIGN, 0]
    assert taught.tolist() == [1, 1, 1, 0]
    assert {name: network.seen for name, network in teachers.networks.items()} == {
        "benign": 2,
        "malignant": 1,
    }
    other_view = SimpleNamespace(**{**vars(batch), "views": np.ones(4, int)})
    teachers.answer(other_view)
    assert teachers.networks["benign"].seen == 4
