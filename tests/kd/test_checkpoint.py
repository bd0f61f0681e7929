"""Checkpoints come back as they were saved; damaged ones are in test_hostile_files.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from edgeseg.kd.checkpoint import load_checkpoint, read_tensors, save_checkpoint, write_tensors
from edgeseg.kd.engine import TorchEngine
from edgeseg.kd.models import build_model
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError, OutputError
from edgeseg.runtime.files import sha256_of_file

CONTRACT = InputContract(height=32, width=48, mean=0.4, std=0.3, threshold=0.6)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_model("attunet-8")


def save(path, network):
    save_checkpoint(
        path, network, model="attunet-8", contract=CONTRACT, provenance={"seed": 3, "note": "é"}
    )
    return path


def test_checkpoint_comes_back_with_its_weights_contract_and_provenance(network, tmp_path):
    path = save(tmp_path / "student.safetensors", network)
    loaded = load_checkpoint(path)
    assert (loaded.model, loaded.contract) == ("attunet-8", CONTRACT)
    assert loaded.provenance == {"seed": 3, "note": "é"}
    assert loaded.sha256 == sha256_of_file(path)
    ours, theirs = network.state_dict(), loaded.network.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_contract_of_a_size_that_the_network_does_not_take_is_refused_in_one_line(tmp_path):
    path, network = tmp_path / "student.safetensors", build_model("edge-16")
    contract = InputContract(height=48, width=64)  # fits attunet-8, of which edge-16 is none
    save_checkpoint(path, network, model="edge-16", contract=contract, provenance={})
    with pytest.raises(InputError, match="multiples of 32 px and not 64x48") as caught:
        load_checkpoint(path)
    assert caught.value.code == "E-CONTRACT"


def test_loaded_network_is_in_eval_mode(network, tmp_path):
    assert network.training
    loaded = load_checkpoint(save(tmp_path / "student.safetensors", network))
    assert not any(module.training for module in loaded.network.modules())


def test_torch_engine_answers_as_the_network_does(network, tmp_path):
    checkpoint = load_checkpoint(save(tmp_path / "student.safetensors", network))
    threads = torch.get_num_threads()
    try:
        engine = TorchEngine(checkpoint, 1)
        image = np.random.default_rng(0).normal(size=(1, 1, 32, 48)).astype(np.float32)
        with torch.no_grad():
            expected = network.eval()(torch.from_numpy(image)).numpy()
        assert (engine.run(image) == expected).all()
        assert engine.facts["threads"] == "1"
    finally:
        torch.set_num_threads(threads)


def test_tensors_of_any_layout_and_type_come_back(tmp_path):
    tensors = {
        "strided": torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "view": torch.arange(10)[::2],
        "scalar": torch.tensor(7),
    }
    write_tensors(tmp_path / "state", tensors, {"epochs_done": "4"})
    found, metadata = read_tensors(tmp_path / "state")
    assert metadata == {"epochs_done": "4"}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_old_checkpoint_stays_when_the_disk_is_full(network, full_disk):
    path = full_disk / "student.safetensors"
    write_tensors(path, {"old": torch.ones(3)}, {})
    before = path.read_bytes()
    with pytest.raises(OutputError) as caught:
        save(path, network)
    assert caught.value.code == "E-OUT-WRITE"
    assert path.read_bytes() == before
    assert json.loads(before[8 : 8 + int.from_bytes(before[:8], "little")])["old"]
