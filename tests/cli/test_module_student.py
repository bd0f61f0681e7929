"""A student that a function makes goes the whole way of the commands, or is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edgeseg.cli.main import cli
from edgeseg.export.parity import exact_run
from edgeseg.export.pipeline import load_trained
from edgeseg.kd.checkpoint import load_checkpoint, save_checkpoint
from edgeseg.kd.models import build_model
from edgeseg.kd.modules import ALLOWED
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.runtime.session import open_session

HERE = "edgeseg.tests.support.other_networks"
STUDENT = f"{HERE}:plain"
SETTINGS = (
    *("--student", STUDENT, "--size", "32", "--teaching", "none", "--student-epochs", "1"),
    *("--batch", "2", "--learning-rate", "1e-2", "--device", "cpu"),
)


@pytest.fixture(autouse=True)
def _allowed(monkeypatch):
    monkeypatch.setenv(ALLOWED, HERE)


def call(*arguments):
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def told(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(code, *arguments):
    result = call(*arguments)
    assert result.stderr.startswith(f"edgeseg: {code}: "), result.stderr
    assert result.stderr.count("\n") == 1
    assert result.exit_code == 2
    assert result.stdout == ""
    return result.stderr


@pytest.fixture(scope="module")
def own_run(phantoms, tmp_path_factory):
    """A run of one epoch, whose command line alone names the network."""
    out = tmp_path_factory.mktemp("module-student") / "run"
    told("train", phantoms, "--out", out, *SETTINGS)
    return out


def test_it_is_exported_in_int8_and_the_bundle_says_what_made_it(own_run, phantoms, tmp_path):
    bundle = tmp_path / "bundle"
    words = ("--target", "x86-cpu", "--precision", "int8", "--max-drop", "1")
    gates = ("--max-hd95-rise", "100", "--force-contract")  # one epoch is no network to judge
    told("export", own_run, *words, *gates, "--calib", phantoms, "--out", bundle)
    provenance = open_bundle(bundle).provenance()
    assert provenance.training["config"]["student"] == STUDENT
    assert open_bundle(bundle).manifest.precision == "int8"
    assert open_session(bundle, key=None).predict(np.zeros((40, 60), np.uint8)).shape == (40, 60)


def test_its_onnx_answers_as_it_does_in_torch(own_run):
    trained = load_trained(own_run / "student.safetensors")
    image = np.random.default_rng(0).normal(size=(1, 1, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = load_checkpoint(own_run / "student.safetensors").network(torch.from_numpy(image))
    np.testing.assert_array_equal(trained.run(image), expected.numpy())
    np.testing.assert_allclose(exact_run(trained.to_onnx(), 1)(image), expected, atol=1e-4)


def test_it_is_evaluated_tuned_and_planned_for_a_jetson(own_run, phantoms):
    assert json.loads(told("evaluate", own_run, phantoms, "--json"))["sets"]
    told("tune", own_run, phantoms, "--name", "tuned", "--quiet")
    assert load_checkpoint(own_run / "tuned.safetensors").model == STUDENT
    assert "Jetson" in told("export", own_run, "--target", "jetson", "--dry-run")


def test_quantisation_aware_training_of_it_is_refused(own_run, phantoms):
    words = ("--target", "x86-cpu", "--precision", "int8", "--dry-run")
    message = refused("E-QAT-SOURCE", "export", own_run, *words, "--qat", 1, "--calib", phantoms)
    assert STUDENT in message


def test_no_command_makes_it_unless_its_module_is_allowed(own_run, phantoms, monkeypatch, tmp_path):
    monkeypatch.delenv(ALLOWED)
    out = tmp_path / "out.html"
    refused("E-MODEL-MODULE", "evaluate", own_run, phantoms)
    refused("E-MODEL-MODULE", "tune", own_run, phantoms, "--name", "again")
    refused("E-MODEL-MODULE", "export", own_run, "--target", "jetson", "--dry-run")
    refused("E-MODEL-MODULE", "benchmark", own_run, "--data", phantoms, "--out", out)
    resume = ("train", phantoms, "--out", own_run, "--resume", "--device", "cpu")
    refused("E-MODEL-MODULE", *resume)
    told(*resume, "--student", STUDENT)  # whose command line says it again
    monkeypatch.setenv(ALLOWED, HERE)
    told(*resume)


@pytest.mark.parametrize(
    ("function", "code", "says"),
    [
        ("late_probability", "E-ONNX-SHAPE", "late_probability ends in Sigmoid"),
        ("summed_by_index", "E-ONNX-OPERATOR", "Einsum"),
    ],
)
def test_what_no_target_takes_is_refused_by_its_name(function, code, says, tmp_path):
    file = tmp_path / "student.safetensors"
    torch.manual_seed(0)
    save_checkpoint(
        file,
        build_model(f"{HERE}:{function}"),
        model=f"{HERE}:{function}",
        contract=InputContract(32, 32),
        provenance={},
    )
    with pytest.raises(InputError, match=says) as caught:
        load_trained(file)
    assert caught.value.code == code
