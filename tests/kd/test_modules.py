"""Networks that a function makes: taught as the table's are, or refused; no file runs code."""

from __future__ import annotations

import csv
import re
import sys
from dataclasses import replace

import pytest
import torch

import edgeseg.kd.fit as fitting
from edgeseg.kd.checkpoint import load_checkpoint, read_tensors, save_checkpoint
from edgeseg.kd.config import TrainConfig, features_of
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.kd.models import build_model, centre_channels, with_features
from edgeseg.kd.modules import ALLOWED, names_function
from edgeseg.kd.train import read_config, require_settings, train
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError

HERE = "edgeseg.tests.support.other_networks"
SHORT = TrainConfig(
    size=32,
    student=f"{HERE}:plain",
    teacher=f"{HERE}:wide",
    general_epochs=0,
    teacher_epochs=1,
    student_epochs=2,
    batch=4,
    teaching="single",
)
FEATURES = {"student_features": "bottom,join", "teacher_features": "bottom.4,join"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """12 phantoms."""
    return write_phantoms(tmp_path_factory.mktemp("modules") / "data", count=12)


@pytest.fixture
def allowed(monkeypatch):
    monkeypatch.setenv(ALLOWED, HERE)


def refused(function, *arguments, **options):
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def rows_of(run):
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distillation", "features"),
    [("kl", {}), ("at", FEATURES), ("kl+fitnet+ifvd+skds", FEATURES)],
)
def test_a_student_by_function_is_taught_by_one_by_function(
    distillation, features, dataset, tmp_path, allowed
):
    config = replace(SHORT, distillation=distillation, **features)
    student = train(dataset, tmp_path / "run", config, device="cpu")
    loaded = load_checkpoint(student)
    assert loaded.model == f"{HERE}:plain"
    assert loaded.provenance["config"]["student"] == f"{HERE}:plain"
    assert loaded.provenance["config"]["teacher"] == f"{HERE}:wide"
    assert set(loaded.provenance["teachers"]) == {"every"}
    last = rows_of(tmp_path / "run")[-1]
    assert (last["stage"], last["epoch"]) == ("student", "2")
    assert float(last["distill"]) > 0


def test_a_teacher_by_function_teaches_a_student_of_the_table_and_is_taken_by_another_run(
    dataset, tmp_path
):
    changes = {"student": "attunet-8", "distillation": "at", "teacher_features": "bottom"}
    config = replace(SHORT, student_epochs=1, **changes)
    train(dataset, tmp_path / "first", config, device="cpu")
    # Named on the command line of the second run, so that nothing else need allow it.
    train(dataset, tmp_path / "second", config, teachers=tmp_path / "first", device="cpu")
    assert {row["stage"] for row in rows_of(tmp_path / "second")} == {"student"}
    first, second = (
        read_tensors(tmp_path / run / "student.safetensors")[0] for run in ("first", "second")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_killed_run_of_a_network_that_draws_ends_with_the_weights_of_one_left_alone(
    dataset, tmp_path, monkeypatch
):
    config = replace(SHORT, student=f"{HERE}:drawing", teaching="none")
    train(dataset, tmp_path / "whole", config, device="cpu")
    save = fitting._save

    def killed(path, *arguments):
        save(path, *arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "killed", config, device="cpu")
    monkeypatch.undo()
    torch.rand(5)  # the state of the generator is not the one that was left
    train(dataset, tmp_path / "killed", config, resume=True, device="cpu")
    whole, killed = (
        read_tensors(tmp_path / run / "student.safetensors")[0] for run in ("whole", "killed")
    )
    assert whole
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def test_settings_of_a_run_from_before_features_could_be_named_are_its_settings(dataset, tmp_path):
    config = replace(SHORT, teaching="none", student_epochs=1)
    student = train(dataset, tmp_path / "run", config, device="cpu")
    loaded = load_checkpoint(student, asked_for=(config.student,))
    provenance = dict(loaded.provenance)
    later = {"phantom_share", "student_features", "teacher_features"}
    provenance["config"] = {
        name: value for name, value in provenance["config"].items() if name not in later
    }
    save_checkpoint(
        student,
        loaded.network,
        model=loaded.model,
        contract=loaded.contract,
        provenance=provenance,
    )
    train(dataset, tmp_path / "run", config, resume=True, device="cpu")


# --- the network ---------------------------------------------------------------------------------


def test_one_name_gives_centre_and_decoder_and_two_give_each_its_own():
    images = torch.rand(3, 1, 32, 48)
    network = build_model(f"{HERE}:wide", ("bottom",))
    one = network.trace(images)
    assert one.centre.shape == (3, 16, 16, 24)
    assert one.decoder is one.centre
    two = with_features(network, ("bottom.0", "join")).trace(images)
    assert two.centre.shape == (3, 16, 16, 24)
    assert two.decoder.shape == (3, 8, 32, 48)
    assert torch.equal(two.logits, network(images))


def test_without_names_the_features_are_empty_and_no_hook_is_left():
    network = build_model(f"{HERE}:plain")
    trace = network.trace(torch.zeros(2, 1, 32, 32))
    assert trace.logits.shape == (2, 1, 32, 32)
    assert trace.centre.numel() == trace.decoder.numel() == 0
    with_features(network, ("join",)).trace(torch.zeros(2, 1, 32, 32))
    assert all(not module._forward_hooks for module in network.modules())


def test_the_only_output_of_a_dict_is_the_logits():
    network = build_model(f"{HERE}:alone_in_a_dict")
    images = torch.rand(1, 1, 32, 32)
    assert torch.equal(network(images), network.module.inner(images))


def test_centre_channels_are_those_of_the_trace_and_the_mode_stays():
    network = build_model(f"{HERE}:wide", ("bottom",)).train()
    assert centre_channels(network, 32) == 16
    assert network.training
    assert centre_channels(build_model("attunet-8").eval(), 32) == 128


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("a.b:c", True), ("a:c", True), ("a:b.c", False), ("a", False), (":c", False), ("a:c\n", 0)],
)
def test_a_function_is_named_by_package_module_and_name(text, is_one):
    assert names_function(text) == bool(is_one)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("a_pair", "2 outputs; let"),
        ("two_in_a_dict", r"2 outputs \(out, aux\); let"),
        ("half_size", r"\[2, 1, 32, 32\] with \[2, 1, 16, 16\]"),
        ("probability", "ends in Sigmoid"),
        ("broken_call", "takes no images of 32 px: RuntimeError"),
        ("frozen", "hangs on no weight"),
        ("lazy", "lazy layers"),
        ("twice_inside", "two places"),
        ("always_the_same", "two places"),
    ],
)
def test_a_network_that_could_not_be_trained_is_refused_before_anything_is_written(
    function, says, dataset, tmp_path
):
    config = replace(SHORT, student=f"{HERE}:{function}")
    error = refused(train, dataset, tmp_path / "run", config, device="cpu")
    assert error.code == "E-MODULE-NETWORK"
    assert re.search(says, str(error))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"student": f"{HERE}:missing"}, "E-MODULE-IMPORT", "AttributeError"),
        ({"teacher": "no_such.package:make"}, "E-MODULE-IMPORT", "no_such"),
        ({"student": "no such:make"}, "E-MODEL-NAME", "package.module:function"),
        ({"student_features": "middle"}, "E-MODULE-NETWORK", "inside top, bottom, up, join, head"),
        ({"student_features": "flat"}, "E-MODULE-NETWORK", r"gives \[2, 1024\]"),
        ({"student_features": "a,b,c"}, "E-CONFIG", "CENTRE,DECODER"),
        ({"student_features": ",join"}, "E-CONFIG", "CENTRE,DECODER"),
        ({"student": "attunet-8", "student_features": "head"}, "E-CONFIG", "of its own|its own"),
        ({"distillation": "kl+at"}, "E-CONFIG", "at reads features .* without --student-features"),
        (
            {"student": "attunet-8", "distillation": "fitnet"},
            "E-CONFIG",
            "fitnet reads features .* without --teacher-features",
        ),
    ],
)
def test_what_cannot_be_taught_is_refused_by_its_reason(changes, code, says):
    with pytest.raises(InputError, match=says) as caught:
        require_settings(replace(SHORT, **{"student": f"{HERE}:Vectors", **changes}))
    assert caught.value.code == code


def test_features_are_no_matter_where_nobody_teaches():
    require_settings(replace(SHORT, teaching="none", distillation="at"))


def test_features_are_read_from_text():
    assert features_of("") == ()
    assert features_of("encoder.layer3") == ("encoder.layer3",)
    assert features_of("a.b,c") == ("a.b", "c")


# --- trust ---------------------------------------------------------------------------------------

HOSTILE = """
from pathlib import Path
from edgeseg.tests.support.other_networks import plain as make
Path(__file__).with_suffix(".ran").touch()
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch, request):
    """A checkpoint whose network's module leaves a file when it is imported; and that file."""
    module = f"hostile_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{module}.py").write_text(HOSTILE)
    monkeypatch.chdir(tmp_path)  # from where modules are found
    monkeypatch.delenv(ALLOWED, raising=False)
    file = tmp_path / "student.safetensors"
    save_checkpoint(
        file,
        build_model(f"{HERE}:plain"),
        model=f"{module}:make",
        contract=InputContract(32, 32),
        provenance={"split_sha256": None},
    )
    yield module, file, tmp_path / f"{module}.ran"
    sys.modules.pop(module, None)


def test_a_file_that_names_a_function_runs_nothing_unless_its_module_is_allowed(
    hostile, monkeypatch
):
    module, file, ran = hostile
    for allowed in (None, "", "hostile", f"{module}.inner", f"{module}:make", module.upper(), "*"):
        if allowed is not None:
            monkeypatch.setenv(ALLOWED, allowed)
        error = refused(load_checkpoint, file, asked_for=("attunet-8", f"{module}:other"))
        assert error.code == "E-MODEL-MODULE"
        assert f"{module}:make" in str(error)
        assert f"{ALLOWED}={module}" in str(error)
        assert module not in sys.modules
        assert not ran.exists()
    monkeypatch.setenv(ALLOWED, f"one.other, {module}")
    assert load_checkpoint(file).model == f"{module}:make"
    assert ran.exists()  # so it would have been seen above


def test_a_file_of_the_network_that_was_asked_for_is_read(hostile):
    module, file, ran = hostile
    assert load_checkpoint(file, asked_for=(f"{module}:make",)).model == f"{module}:make"
    assert ran.exists()


def test_teachers_of_another_run_run_no_code_that_was_not_asked_for(hostile, dataset, tmp_path):
    module, file, ran = hostile
    other = tmp_path / "other"
    other.mkdir()
    (other / "teacher-every.safetensors").write_bytes(file.read_bytes())
    config = replace(SHORT, student="attunet-8", teacher="attunet-8")
    for taken in ({"teachers": other}, {"teacher_checkpoints": [file]}):
        error = refused(train, dataset, tmp_path / "run", config, device="cpu", **taken)
        assert error.code == "E-MODEL-MODULE"
    assert module not in sys.modules
    assert not ran.exists()
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_network_than_its_function_makes_is_refused(tmp_path, allowed):
    file = tmp_path / "student.safetensors"
    save_checkpoint(
        file,
        build_model(f"{HERE}:wide"),
        model=f"{HERE}:plain",
        contract=InputContract(32, 32),
        provenance={},
    )
    assert refused(load_checkpoint, file).code == "E-CKPT-ARCH"


def test_reading_the_settings_of_a_run_imports_nothing(hostile, tmp_path):
    module, _, ran = hostile
    (tmp_path / "config.json").write_text(replace(SHORT, student=f"{module}:make").to_json())
    assert read_config(tmp_path).student == f"{module}:make"
    assert not ran.exists()
    assert module not in sys.modules
