"""`edgeseg inspect`: what an ONNX from elsewhere is and which contract it seems to want."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from edgeseg.cli.main import cli
from edgeseg.export.foreign import read_onnx
from edgeseg.export.inspection import inspect_onnx
from edgeseg.export.parity import CheckFrame
from edgeseg.export.to_onnx import onnx_from_network
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.tests.support.small_onnx import SIDE, small_onnx


@pytest.fixture
def saved(tmp_path):
    def save(model):
        (tmp_path / "theirs.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "theirs.onnx"

    return save


def call(*words):
    return CliRunner().invoke(cli, ["inspect", *map(str, words)])


def with_open_axes(model):
    for value in (model.graph.input[0], model.graph.output[0]):
        for axis, name in list(zip(value.type.tensor_type.shape.dim, "nchw", strict=True))[2:]:
            axis.dim_param = name
    return model


def test_a_file_is_told_by_its_ends_operators_and_answers(saved):
    found = inspect_onnx(saved(small_onnx()))
    assert [end.text for end in (*found.inputs, *found.outputs)] == ["float32 [1, 1, 32, 32]"] * 2
    assert found.operators == {"Conv": 2, "Identity": 2, "Relu": 1}
    assert (found.contract.height, found.contract.width) == (SIDE, SIDE)
    assert (found.refused, found.not_taken) == (None, ())
    assert found.parameters == 4 * 9 + 4 + 4
    assert found.macs == SIDE * SIDE * (4 * 9 + 4)
    low, high = found.answers
    assert low < high
    told = found.to_text()
    assert "export takes it" in told
    assert "mean 0.33: not in the file" in told


def test_what_export_refuses_is_told_and_no_error(saved):
    model = small_onnx()
    model.graph.node[1].op_type = "RandomNormalLike"
    found = inspect_onnx(saved(model))
    assert found.refused.startswith("E-ONNX-OPERATOR: ")
    assert "RandomNormalLike" in found.refused
    assert found.not_taken == ("RandomNormalLike",)
    assert (found.macs, found.answers) == (None, None)
    assert found.to_dict()["contract"]["height"] == SIDE


def test_a_size_that_is_open_is_asked_for_and_one_that_is_not_is_held(saved):
    file = saved(with_open_axes(small_onnx()))
    with pytest.raises(InputError, match="--size") as caught:
        inspect_onnx(file)
    assert caught.value.code == "E-CONTRACT"
    found = inspect_onnx(file, size=(48, 64))
    assert (found.contract.width, found.contract.height) == (48, 64)
    assert found.refused is None
    with pytest.raises(InputError, match="height 32 px") as caught:
        inspect_onnx(saved(small_onnx()), size=(32, 48))
    assert caught.value.code == "E-CONTRACT"


def test_the_normalisation_that_fits_the_images_is_proposed(saved):
    # Lesion is where the input is below -0.4: grey 0.3 with the mean and std of ImageNet.
    model = small_onnx(
        end="n = Mul (flat, minus)\n y = Sub (n, k)",
        constants={
            "minus": np.array(-1, np.float32),
            "k": np.array(0.4, np.float32),
            "one": np.ones((1, 1, 1, 1), np.float32),
        },
    )
    model.graph.node.insert(0, onnx.helper.make_node("Conv", ["x", "one"], ["flat"]))
    random = np.random.default_rng(0)
    frames = []
    for _ in range(4):
        frame = random.integers(0, 256, (SIDE, SIDE), np.uint8)
        frames.append(CheckFrame(frame, (frame / 255 - 0.485) / 0.229 < -0.4, "g"))
    found = inspect_onnx(saved(model), frames=frames)
    assert (found.contract.mean, found.contract.std) == (0.485, 0.229)
    assert "with a Dice of 1.000" in found.reasons["mean"]


def test_the_contract_that_is_written_is_one_that_export_reads(run, phantoms, tmp_path):
    loaded = load_checkpoint(run / "student.safetensors")
    model = onnx.load_model_from_string(onnx_from_network(loaded.network, loaded.contract))
    del model.metadata_props[:]
    file = tmp_path / "theirs.onnx"
    onnx.save(model, file)
    out = tmp_path / "contract.json"
    told = call(file, "--data", phantoms, "--out", out)
    assert told.exit_code == 0, told.stderr
    assert "export takes it" in told.stdout
    network = read_onnx(file, out)
    proposed = InputContract.from_dict(json.loads(out.read_text()))
    own = loaded.contract
    assert replace(proposed, mean=own.mean, std=own.std) == own
    assert network.contract == proposed
    listed = json.loads(call(file, "--json").stdout)
    assert listed["contract"]["height"] == own.height


def test_what_is_no_onnx_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"no")
    told = call(tmp_path / "a.onnx")
    assert (told.exit_code, told.stderr.count("\n")) == (2, 1)
    assert told.stderr.startswith("edgeseg: E-ONNX-READ: ")
