"""A teacher that is several networks, and one that is asked about the mirror image too."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgeseg.kd.cache import LogitCache
from edgeseg.kd.checkpoint import load_checkpoint, read_tensors
from edgeseg.kd.config import TrainConfig
from edgeseg.kd.data.split import make_split, samples_of
from edgeseg.kd.fit import mixed_precision
from edgeseg.kd.frames import draw_batch, load_frames
from edgeseg.kd.models import Network, Trace
from edgeseg.kd.qat import read_run
from edgeseg.kd.teaching import Ensemble
from edgeseg.kd.train import teaching_networks, train
from edgeseg.runtime.errors import InputError
from edgeseg.runtime.files import sha256_of_file
from edgeseg.runtime.progress import quiet

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    size=64, student="attunet-8", teaching="single", student_epochs=1, batch=8, views=1
)


class Ramp(Network):
    """Says the number of the column, times a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def trace(self, images):
        columns = torch.arange(images.shape[-1], dtype=torch.float32)
        maps = self.factor * columns.expand_as(images)
        return Trace(maps, maps, maps)


def test_ensemble_says_the_mean_of_its_members_logits_and_has_no_features():
    images = torch.zeros(2, 1, 4, 5)
    trace = Ensemble([Ramp(1.0), Ramp(4.0)], mirror=False).trace(images)
    assert trace.logits[1, 0, 3].tolist() == [0, 2.5, 5, 7.5, 10]
    assert trace.centre.numel() == trace.decoder.numel() == 0


def test_mirrored_answer_is_turned_back_before_the_mean():
    images = torch.zeros(1, 1, 4, 5)
    trace = Ensemble([Ramp(1.0)], mirror=True).trace(images)
    assert trace.logits[0, 0, 0].tolist() == [2, 2, 2, 2, 2]  # of 0 1 2 3 4 and 4 3 2 1 0


def test_order_of_the_members_does_not_matter():
    images = torch.zeros(1, 1, 4, 5)
    one, other = (
        Ensemble([Ramp(factor) for factor in factors], mirror=False)(images)
        for factors in ((1.0, 3.0), (3.0, 1.0))
    )
    assert torch.equal(one, other)


def test_teachers_of_one_place_are_an_ensemble_and_one_alone_is_itself():
    made = {name: SimpleNamespace(network=Ramp(1.0)) for name in ("every-1", "every-2")}
    networks = teaching_networks(made, CONFIG, CPU)
    assert [type(network) for network in networks.values()] == [Ensemble]
    alone = teaching_networks({"every-1": made["every-1"]}, CONFIG, CPU)
    assert alone["every"] is made["every-1"].network
    mirrored = replace(CONFIG, teacher_mirror=True)
    routed = dict.fromkeys(("benign", "malignant"), made["every-1"])
    for network in teaching_networks(routed, mirrored, CPU).values():
        assert isinstance(network, Ensemble)


@pytest.fixture(scope="module")
def files(run):
    return run / "student.safetensors", run / "teacher-general.safetensors"


@pytest.fixture(scope="module")
def taught(dataset, split, files, tmp_path_factory):
    """A run whose student was taught by two networks of another."""
    out = tmp_path_factory.mktemp("taught") / "run"
    return train(dataset, out, CONFIG, split=split, teacher_checkpoints=files, device="cpu").parent


def test_student_tells_every_checkpoint_that_taught_it_and_no_teacher_is_trained(taught, files):
    shas = [sha256_of_file(file) for file in files]
    provenance = load_checkpoint(taught / "student.safetensors").provenance
    assert provenance["teachers"] == {"every-1": shas[0], "every-2": shas[1]}
    assert not list(taught.glob("teacher-*"))


def test_cache_holds_the_mean_and_names_both_checkpoints(taught, dataset, split, files):
    key = json.loads((taught / "cache/teacher-every.json").read_text())
    assert key["teacher_sha256"] == "+".join(sha256_of_file(file) for file in files)
    assert [path.name for path in (taught / "cache").glob("*.f16")] == ["teacher-every.f16"]
    images = key.pop("images")
    views = key.pop("views")
    kept = LogitCache(taught / "cache", "teacher-every", key, images, views)
    logits, there = kept.read(images[:4], np.zeros(4, int))
    samples = [s for s in samples_of(split, dataset, "train") if s.name in images[:4]]
    frames = load_frames(samples, 64, CPU, quiet, "")
    members = [load_checkpoint(file) for file in files]
    batch = draw_batch(frames, np.arange(len(samples)), 0, 0, members[0].contract)
    with torch.inference_mode(), mixed_precision(CPU):
        each = torch.stack([member.network(batch.images).float() for member in members])
    order = [batch.names.index(name) for name, found in zip(images, there, strict=False) if found]
    assert there.sum() >= 2  # an epoch may end before the last images
    expected, spread = each.mean(dim=0)[order], (each[0] - each[1])[order].abs().max()
    assert spread > 0.5
    assert (logits[there] - expected).abs().max() < 0.1 * spread  # bfloat16


def test_run_is_resumed_with_the_copies_of_its_teachers(taught, dataset, tmp_path):
    copy = shutil.copytree(taught, tmp_path / "run")
    (copy / "student.safetensors").unlink()
    train(dataset, copy, CONFIG, resume=True, device="cpu")
    ours, theirs = (read_tensors(run / "student.safetensors") for run in (copy, taught))
    assert ours[1] == theirs[1]
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])


def test_quantised_training_goes_on_with_all_of_them_or_with_none(taught, tmp_path):
    assert set(read_run(taught / "student.safetensors").teachers) == {"every-1", "every-2"}
    copy = shutil.copytree(taught, tmp_path / "run")
    (copy / "taken-teacher-every-2.safetensors").unlink()
    assert read_run(copy / "student.safetensors").teachers == {}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"teaching": "routed"}, "E-CONFIG"),
        ({"distillation": "kl+at", "views": 0}, "E-CONFIG"),
        ({"size": 32}, "E-TEACHER-CONTRACT"),
    ],
)
def test_checkpoints_that_cannot_teach_are_refused(changes, code, dataset, split, files, tmp_path):
    options = {"split": split, "teacher_checkpoints": files, "device": "cpu"}
    with pytest.raises(InputError) as caught:
        train(dataset, tmp_path / "run", replace(CONFIG, **changes), **options)
    assert caught.value.code == code
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_split_is_refused(dataset, files, tmp_path):
    options = {"split": make_split(dataset, seed=5), "teacher_checkpoints": files[:1]}
    with pytest.raises(InputError) as caught:
        train(dataset, tmp_path / "run", CONFIG, device="cpu", **options)
    assert caught.value.code == "E-TEACHER-SPLIT"


def test_run_that_keeps_no_image_apart_takes_teachers_of_any_split(dataset, files, tmp_path):
    options = {"split": make_split(dataset, fractions=(1.0, 0.0, 0.0))}
    student = train(
        dataset, tmp_path / "run", CONFIG, device="cpu", teacher_checkpoints=files[:1], **options
    )
    assert len(load_checkpoint(student).provenance["teachers"]) == 1


def test_checkpoints_and_a_run_of_teachers_are_not_taken_together(
    dataset, split, files, run, tmp_path
):
    options = {"split": split, "teacher_checkpoints": files, "teachers": run}
    with pytest.raises(InputError) as caught:
        train(dataset, tmp_path / "run", CONFIG, device="cpu", **options)
    assert caught.value.code == "E-CONFIG"


def test_resumed_run_takes_no_other_checkpoints(taught, dataset, files):
    with pytest.raises(InputError) as caught:
        train(dataset, taught, CONFIG, resume=True, teacher_checkpoints=files, device="cpu")
    assert caught.value.code == "E-RUN-CONFIG"


def test_features_are_not_taken_from_mirrored_teachers(dataset, tmp_path):
    config = replace(CONFIG, teaching="routed", views=0, distillation="at", teacher_mirror=True)
    with pytest.raises(InputError) as caught:
        train(dataset, tmp_path / "run", config, device="cpu")
    assert caught.value.code == "E-CONFIG"
