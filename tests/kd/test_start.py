"""A student that is trained on from another: what it takes, what it tells, what it may not know."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

import edgeseg.kd.train as training
from edgeseg.cli.jobs.sources import checkpoint_of
from edgeseg.cli.main import cli
from edgeseg.kd.checkpoint import load_checkpoint, read_tensors
from edgeseg.kd.config import TrainConfig
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.kd.data.split import make_split, write_split
from edgeseg.kd.start import in_short, seen_before, sets_of
from edgeseg.kd.train import train
from edgeseg.kd.zoo import find_weights
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.files import sha256_of_file

pytestmark = pytest.mark.long

# A rate at which hardly anything is learnt: what the student is, it was at its start.
CONFIG = TrainConfig(
    size=32,
    student="attunet-8",
    teaching="none",
    student_epochs=1,
    batch=8,
    learning_rate=1e-12,
)


@pytest.fixture(scope="module")
def start(run):
    return checkpoint_of(run).start()


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A data set of which the run has seen nothing."""
    folder = tmp_path_factory.mktemp("others") / "others"
    write_phantoms(folder, count=24, seed=7)
    return folder


@pytest.fixture(scope="module")
def on(dataset, split, start, tmp_path_factory):
    """A run at half the size, on from the shared one."""
    out = tmp_path_factory.mktemp("on") / "run"
    return train(dataset, out, CONFIG, split=split, start=start, device="cpu").parent


@pytest.fixture(scope="module")
def elsewhere(run, others, tmp_path_factory):
    """The same on other images."""
    out = tmp_path_factory.mktemp("elsewhere") / "run"
    student = checkpoint_of(run).start()
    return train(read_dataset(others), out, CONFIG, start=student, device="cpu").parent


def convolutions(file):
    return {name: each for name, each in read_tensors(file)[0].items() if each.ndim == 4}


def refusal(*arguments, **options):
    with pytest.raises((InputError, Refused)) as caught:
        train(*arguments, device="cpu", **options)
    return caught.value.code, str(caught.value)


def test_student_has_the_weights_of_its_start_and_a_size_of_its_own(run, on):
    first, then = (convolutions(each / "student.safetensors") for each in (run, on))
    assert len(first) > 10
    assert all(torch.allclose(first[name], then[name], atol=1e-5) for name in first)
    assert load_checkpoint(on / "student.safetensors").contract.height == 32


def test_student_tells_what_it_started_from(run, on):
    facts = load_checkpoint(on / "student.safetensors").provenance["start"]
    assert facts["sha256"] == sha256_of_file(run / "student.safetensors")
    assert (facts["model"], facts["size"], facts["also_seen"]) == ("attunet-8", [64, 64], [])
    without = load_checkpoint(run / "student.safetensors").provenance
    assert "start" not in without
    assert seen_before(without) == frozenset()
    assert in_short(without) == without


def test_run_is_resumed_without_naming_the_start_and_ends_with_the_same_weights(
    dataset, split, start, tmp_path, monkeypatch
):
    config = replace(CONFIG, student_epochs=2, learning_rate=1e-3)
    whole = train(dataset, tmp_path / "whole", config, split=split, start=start, device="cpu")
    real, calls = training.supervised_loss, 0

    def stops(logits, truth, terms):
        nonlocal calls
        calls += 1
        if calls == 5:  # in the second epoch
            raise KeyboardInterrupt
        return real(logits, truth, terms)

    monkeypatch.setattr(training, "supervised_loss", stops)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "run", config, split=split, start=start, device="cpu")
    monkeypatch.undo()
    kept = tmp_path / "run" / "taken-student.json"
    whole_text = kept.read_bytes()
    kept.write_bytes(whole_text[:40])
    code, message = refusal(dataset, tmp_path / "run", config, resume=True)
    assert code == "E-RUN-CONFIG"
    assert "taken-student.json, which says what the student starts from, is damaged" in message
    kept.write_bytes(whole_text)
    code, message = refusal(dataset, tmp_path / "run", config, resume=True, start=start)
    assert code == "E-RUN-CONFIG"
    assert message.endswith("leave --start out")
    again = train(dataset, tmp_path / "run", config, resume=True, device="cpu")
    (tensors, facts), (those, same) = read_tensors(again), read_tensors(whole)
    assert facts == same
    assert all(torch.equal(tensors[name], those[name]) for name in {*tensors, *those})


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"student": "edge-16"}, "E-START-CONTRACT", "give --student attunet-8"),
        ({"phantom_epochs": 1}, "E-CONFIG", "give --phantom-epochs 0"),
    ],
)
def test_start_of_another_network_or_two_starts_are_refused(
    dataset, split, start, tmp_path, changes, code, told
):
    config = replace(CONFIG, **changes)
    found, message = refusal(dataset, tmp_path / "run", config, split=split, start=start)
    assert found == code
    assert told in message
    assert not (tmp_path / "run").exists()


def test_start_that_has_seen_what_is_kept_apart_is_refused(dataset, split, start, tmp_path):
    other = make_split(dataset, seed=5)
    learnt = split.hashes_of("train")
    known = sum(e.image_sha256 in learnt for e in other.entries if e.part != "train")
    code, message = refusal(dataset, tmp_path / "run", CONFIG, split=other, start=start)
    assert code == "E-START-SEEN"
    assert f"trained on {known} of the " in message
    assert "--split" in message


def test_images_that_only_the_start_has_seen_score_no_network_and_no_bundle(
    elsewhere, phantoms, others, split, tmp_path
):
    learnt = split.hashes_of("train")
    provenance = load_checkpoint(elsewhere / "student.safetensors").provenance
    assert seen_before(provenance) == learnt
    source = checkpoint_of(elsewhere)
    assert learnt < source.start().seen
    bundle = tmp_path / "bundle"
    words = ("--target", "x86-cpu", "--precision", "fp32", "--calib", str(others))
    gates = ("--max-drop", "1", "--max-hd95-rise", "100", "--force-contract")
    made = CliRunner().invoke(
        cli, ["export", str(elsewhere), *words, *gates, "--out", str(bundle), "-q"]
    )
    assert made.exit_code == 0, made.stderr
    for network in (elsewhere, bundle):
        done = CliRunner().invoke(
            cli, ["evaluate", str(network), str(phantoms), "--part", "all", "-q"]
        )
        assert done.exit_code == 3, done.stderr
        assert f"E-DATA-SEEN: the weights were trained on {len(learnt)} of the 40" in done.stderr
    assert {each["name"] for each in open_bundle(bundle).provenance().data} == {
        "phantoms",
        "others",
    }


def test_sets_of_the_start_are_named_once():
    busi, own = {"name": "busi", "layout": "busi"}, {"name": "own", "layout": "plain"}
    assert sets_of({"data": [own], "start": {"data": [busi, own]}}) == [own, busi]
    assert sets_of({}, [busi]) == [busi]


def test_shipped_student_is_trained_on_by_its_name(others, tmp_path):
    split = make_split(read_dataset(others), seed=0)
    write_split(split, tmp_path / "split.json")
    words = ["train", str(others), "--out", str(tmp_path / "run"), "--start", "t2kd-edge"]
    settings = ["--student", "lite0-edge", "--size", "64", "--student-epochs", "1", "--batch", "8"]
    given = ["--teaching", "none", "--split", str(tmp_path / "split.json"), "-q"]
    done = CliRunner().invoke(cli, [*words, *settings, *given])
    assert done.exit_code == 0, done.stderr
    student = load_checkpoint(tmp_path / "run" / "student.safetensors")
    shipped = find_weights("t2kd-edge")
    assert student.provenance["start"]["sha256"] == sha256_of_file(shipped)
    evidence = json.loads(shipped.with_suffix(".json").read_text(encoding="utf-8"))
    assert seen_before(student.provenance) == set(evidence["trained_on"])
    assert {each["name"] for each in student.provenance["start"]["data"]} == {"bus-bra", "busi"}


def test_start_that_is_no_student_is_one_line(others, tmp_path):
    words = ["train", str(others), "--out", str(tmp_path / "run"), "--start", "t2kd-edgy", "-q"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert done.stderr.startswith("edgeseg: E-SOURCE: t2kd-edgy is no bundle")
    assert done.stderr.count("\n") == 1
