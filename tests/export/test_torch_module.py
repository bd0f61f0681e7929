"""A torch network from elsewhere: by the function that makes it, with its weights, or refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from edgeseg.cli.jobs.sources import load_exportable
from edgeseg.cli.main import cli
from edgeseg.export.foreign import read_module
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.runtime.files import sha256_of_file

CONTRACT = InputContract(height=32, width=48)
CODE = """
import torch
from torch import nn

class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.Dropout(0.5), nn.Conv2d(4, 1, 1))

class Supervised(Plain):
    def forward(self, x):
        y = super().forward(x)
        return {"mask": y, "deep": nn.functional.max_pool2d(y, 2)}

class BranchingPair(Plain):
    def forward(self, x):
        y = super().forward(x)
        return {"mask": y * float(x[0, 0, 0, 0]), "deep": y}

class Sure(Plain):
    def forward(self, x):
        return super().forward(x).sigmoid()

class Branching(Plain):
    def forward(self, x):
        return super().forward(x) * (1 if float(x.max()) > 1e9 else float(x[0, 0, 0, 0]))

def broken():
    raise RuntimeError("no licence")

def number():
    return 5
"""


@pytest.fixture
def name(tmp_path, monkeypatch, request):
    """Return the name of a network in a module in the working directory, a new one each time."""
    module = f"their_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{module}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT.to_dict()))
    return lambda function: f"{module}:{function}"


@pytest.fixture
def trained(tmp_path, name):
    """A network of that code with weights that are not those it is made with, and its state."""
    torch.manual_seed(1)
    scope = {}
    exec(CODE, scope)
    network = scope["Plain"]().eval()
    network[1].running_mean.fill_(0.1)
    return network


def image():
    random = np.random.default_rng(2).normal(size=(1, 1, CONTRACT.height, CONTRACT.width))
    return random.astype(np.float32)


def answer_of(network):
    with torch.inference_mode():
        return network(torch.from_numpy(image())).numpy()


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested", "parallel"])
def test_weights_of_every_usual_form_are_taken(form, name, trained, tmp_path):
    state = trained.state_dict()
    file = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, file)
    elif form == "parallel":
        torch.save({f"module.{key}": value for key, value in state.items()}, file)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "nested" else state, file)
    network = read_module(name("Plain"), file, tmp_path / "contract.json")
    np.testing.assert_allclose(network.run(image()), answer_of(trained), atol=1e-5)
    assert network.provenance["function"] == name("Plain")
    assert network.provenance["weights_sha256"] == sha256_of_file(file)
    assert network.contract == CONTRACT


def test_a_probability_is_cut_off_and_a_second_head_is_chosen_away(name, trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    ends = (tmp_path / "weights.pth", tmp_path / "contract.json")
    sure = read_module(name("Sure"), *ends)
    assert sure.provenance["cut_off"] == "Sigmoid"
    np.testing.assert_allclose(sure.run(image()), answer_of(trained), atol=1e-3)
    with pytest.raises(InputError, match=r"mask float32 .*deep float32") as caught:
        read_module(name("Supervised"), *ends)
    assert caught.value.code == "E-ONNX-OUTPUT"
    chosen = read_module(name("Supervised"), *ends, output="mask")
    np.testing.assert_allclose(chosen.run(image()), answer_of(trained), atol=1e-5)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("broken", "RuntimeError: no licence"),
        ("number", "returns int"),
        ("missing", "AttributeError"),
    ],
)
def test_what_makes_no_network_is_refused_by_its_reason(function, says, name, tmp_path):
    with pytest.raises(InputError, match=says) as caught:
        read_module(name(function), None, tmp_path / "contract.json")
    assert caught.value.code == "E-MODULE-IMPORT"
    with pytest.raises(InputError, match="No module named 'no_such'") as caught:
        read_module("no_such.package:function", None, tmp_path / "contract.json")
    assert caught.value.code == "E-MODULE-IMPORT"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("4.bias"), "1 differences, the first without 4.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "with extra"),
        (lambda state: state.update({"4.bias": torch.zeros(3)}), r"4.bias of \(3,\), not \(1,\)"),
    ],
)
def test_weights_of_another_network_are_refused_by_the_first_difference(
    change, says, name, trained, tmp_path
):
    state = dict(trained.state_dict())
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=says) as caught:
        read_module(name("Plain"), tmp_path / "weights.pth", tmp_path / "contract.json")
    assert caught.value.code == "E-MODULE-WEIGHTS"


def test_pickled_code_and_what_is_no_file_are_refused(name, tmp_path):
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "whole.pth")  # an object, which pickle would make
    for file in ("whole.pth", "missing.pth", "missing.safetensors"):
        with pytest.raises(InputError, match="cannot read weights") as caught:
            read_module(name("Plain"), tmp_path / file, tmp_path / "contract.json")
        assert caught.value.code == "E-MODULE-WEIGHTS"


def test_a_network_whose_answer_hangs_on_a_branch_is_refused(name, tmp_path):
    with pytest.raises(InputError, match="answers otherwise") as caught:
        read_module(name("Branching"), None, tmp_path / "contract.json")
    assert caught.value.code == "E-MODULE-ONNX"
    with pytest.raises(InputError, match="answers otherwise") as caught:
        read_module(name("BranchingPair"), None, tmp_path / "contract.json", output="mask")
    assert caught.value.code == "E-MODULE-ONNX"


def test_a_name_needs_a_contract_and_weights_need_a_name(name, run, tmp_path):
    with pytest.raises(InputError, match="--contract") as caught:
        read_module(name("Plain"), None, None)
    assert caught.value.code == "E-CONTRACT"
    with pytest.raises(InputError, match="leave --weights out") as caught:
        load_exportable(run, None, weights=tmp_path / "weights.pth")
    assert caught.value.code == "E-MODULE-WEIGHTS"


def test_the_command_plans_for_it(name, trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    words = ["export", name("Plain"), "--weights", "weights.pth", "--contract", "contract.json"]
    told = CliRunner().invoke(cli, [*words, "--target", "jetson", "--dry-run"])
    assert told.exit_code == 0, told.stderr
