"""Ten networks in the style of public ones become INT8 for a CPU, RTX GPUs and a Jetson."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from click.testing import CliRunner

from edgeseg.cli.main import cli
from edgeseg.export import target as target_module
from edgeseg.export.parity import MAX_FLIPPED
from edgeseg.export.target import find_target
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.session import open_session
from edgeseg.tests.support.networks import CONTRACT, NETWORKS

pytestmark = pytest.mark.long
TARGETS = ("x86-cpu", "rtx", "jetson")
# Of the multiply-accumulates that INT8 takes at least; matrix products stay in float.
LEAST_INT8 = dict.fromkeys(NETWORKS, 0.9) | {"SegFormer": 0.45}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Phantoms, the contract and the files of the networks."""
    made = tmp_path_factory.mktemp("networks")
    write_phantoms(made / "phantoms", count=12)
    (made / "contract.json").write_text(json.dumps(CONTRACT.to_dict()))
    return made


@pytest.fixture(scope="module")
def came(folder):
    """Return the words of the command that name a network, whose file is written once."""

    @cache
    def words(name):
        network = NETWORKS[name]()
        file = folder / f"{list(NETWORKS).index(name)}.onnx"
        file.write_bytes(network.model)
        named = ("--output", network.output) if network.output else ()
        return (str(file), "--contract", str(folder / "contract.json"), *named)

    return words


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_from_elsewhere_marks_the_same_pixels_in_int8(
    name, target, came, folder, tmp_path, monkeypatch
):
    if target == "rtx":
        pytest.importorskip("tensorrt_rtx", reason="no TensorRT-RTX; make install brings it")
        one = replace(find_target("rtx"), compute_capabilities=("8.9",))  # each takes its time
        monkeypatch.setattr(target_module, "find_target", lambda _: one)
    out = tmp_path / "bundle"
    words = ["export", *came(name), "--target", target, "--precision", "int8", "--out", str(out)]
    # Few phantoms show no small loss of Dice; what is shown is that the masks stay.
    gates = ["--calib", str(folder / "phantoms"), "--max-drop", "0.5", "--max-hd95-rise", "64"]
    done = CliRunner().invoke(cli, [*words, *gates, "--json", "-q"])
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["trained_dice"] > 0.2  # there are lesions to compare
    hops = {hop["name"]: hop for hop in told["parity"]}
    assert hops.pop("onnx fp32")["flipped_share"] <= MAX_FLIPPED["fp32"]
    assert hops
    assert all(hop["flipped_share"] <= MAX_FLIPPED["int8"] for hop in hops.values())
    assert all(shares["int8"] > LEAST_INT8[name] for shares in told["achieved"].values())
    assert bool(told["achieved"]) == (target != "jetson")
    bundle = open_bundle(out)
    assert bundle.manifest.precision == "int8"
    if target == "x86-cpu":
        frame = np.zeros((90, 120), np.uint8)
        assert open_session(out).predict(frame).shape == frame.shape
