"""Weights beside an ONNX file: read relative to it, hashed, or refused."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import pytest

from edgeseg.export import onnx_file
from edgeseg.export.foreign import read_onnx
from edgeseg.export.onnx_file import load_onnx
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.tests.support.small_onnx import SIDE, answer, noise, small_onnx

DATA = "theirs.onnx.data"


@pytest.fixture
def folder(tmp_path):
    """A network with its weights in a data file beside it."""
    folder = tmp_path / "there"
    folder.mkdir()
    onnx.save_model(
        small_onnx(),
        folder / "theirs.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=DATA,
        size_threshold=0,
    )
    return folder


def relocated(folder, **entries):
    """Change what the file says of where its first tensor lies."""
    model = onnx.load_model(folder / "theirs.onnx", load_external_data=False)
    told = {entry.key: entry for entry in model.graph.initializer[0].external_data}
    for key, value in entries.items():
        told[key].value = str(value)
    (folder / "theirs.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("working", ["there", "."])
def test_data_is_read_beside_the_file_from_every_working_directory(
    folder, tmp_path, monkeypatch, working
):
    contract = tmp_path / "contract.json"
    contract.write_text(json.dumps(InputContract(SIDE, SIDE).to_dict()))
    monkeypatch.chdir(tmp_path / working)
    for file in (folder / "theirs.onnx", (folder / "theirs.onnx").relative_to(tmp_path / working)):
        network = read_onnx(file, contract)
        np.testing.assert_array_equal(network.run(noise()), answer(small_onnx(), noise()))
        assert network.provenance["external_data"] == {
            DATA: hashlib.sha256((folder / DATA).read_bytes()).hexdigest()
        }


def test_the_hash_of_a_network_changes_with_its_data(folder):
    before = load_onnx(folder / "theirs.onnx")
    content = bytearray((folder / DATA).read_bytes())
    content[0] ^= 1
    (folder / DATA).write_bytes(content)
    after = load_onnx(folder / "theirs.onnx")
    assert before.sha256 != after.sha256
    assert before.data != after.data


def test_the_hash_of_a_file_with_its_weights_inside_is_that_of_the_file(tmp_path):
    file = tmp_path / "theirs.onnx"
    file.write_bytes(small_onnx().SerializeToString())
    assert load_onnx(file).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def missing(folder):
    (folder / DATA).unlink()


def short(folder):
    (folder / DATA).write_bytes((folder / DATA).read_bytes()[:-1])


def is_folder(folder):
    missing(folder)
    (folder / DATA).mkdir()


def outside(name):
    def move(folder):
        (folder / DATA).rename(folder.parent / DATA)
        relocated(folder, location=name.format(folder=folder.parent))

    return move


def linked_outside(folder):
    (folder / DATA).rename(folder.parent / DATA)
    (folder / DATA).symlink_to(folder.parent / DATA)


@pytest.mark.parametrize(
    "damage",
    [
        missing,
        short,
        is_folder,
        outside(f"../{DATA}"),
        outside(f"sub/../../{DATA}"),
        outside(f"..\\{DATA}"),
        outside("{folder}/" + DATA),
        outside("C:\\" + DATA),
        outside(""),
        linked_outside,
        lambda folder: relocated(folder, offset=-4),
        lambda folder: relocated(folder, offset=1 << 40),
        lambda folder: relocated(folder, length=3),
        lambda folder: relocated(folder, offset="here"),
    ],
)
def test_data_that_is_not_whole_beside_the_file_is_refused(folder, damage):
    damage(folder)
    with pytest.raises(InputError) as caught:
        load_onnx(folder / "theirs.onnx")
    assert caught.value.code == "E-ONNX-READ"
    assert "\n" not in str(caught.value)


def test_data_behind_a_link_within_the_folder_is_taken(folder):
    (folder / DATA).rename(folder / "blob")
    (folder / DATA).symlink_to("blob")
    load_onnx(folder / "theirs.onnx")


def test_a_model_over_the_limit_is_refused_before_its_data_are_read(folder, monkeypatch):
    monkeypatch.setattr(onnx_file, "_MAX_BYTES", (folder / "theirs.onnx").stat().st_size + 8)
    with pytest.raises(InputError, match="over 2 GiB") as caught:
        load_onnx(folder / "theirs.onnx")
    assert caught.value.code == "E-ONNX-READ"
    assert onnx_file._MAX_BYTES < (1 << 31)


def test_an_attribute_may_lie_outside_too(tmp_path):
    model = small_onnx(middle="k = Constant <value = float[1] {2.0}> ()\n m = Mul (r, k)")
    (tensor,) = (node.attribute[0].t for node in model.graph.node if node.op_type == "Constant")
    tensor.raw_data = np.float32(2).tobytes()
    tensor.ClearField("float_data")
    onnx.external_data_helper.set_external_data(tensor, "k.bin")
    tensor.ClearField("raw_data")
    (tmp_path / "k.bin").write_bytes(np.float32(2).tobytes())
    file = tmp_path / "theirs.onnx"
    file.write_bytes(model.SerializeToString())
    loaded = load_onnx(file)
    assert set(loaded.data) == {"k.bin"}
    whole = small_onnx(middle="k = Constant <value = float[1] {2.0}> ()\n m = Mul (r, k)")
    np.testing.assert_array_equal(answer(loaded.model, noise()), answer(whole, noise()))
