"""segmentation_models.pytorch and MONAI: their networks are taught, and ship, by the commands."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edgeseg.cli.main import cli
from edgeseg.export.parity import exact_run
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.kd.modules import ALLOWED
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.tests.support import package_networks

HERE = "edgeseg.tests.support.package_networks"
PACKAGES = {"smp_unet": "segmentation_models_pytorch", "monai_basic_unet": "monai"}
CONTRACT = InputContract(64, 64)
# What these packages warn of while they are imported is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=sorted(PACKAGES))
def function(request, monkeypatch):
    package = PACKAGES[request.param]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no {package}; make install brings it")
    monkeypatch.setenv(ALLOWED, HERE)
    return request.param


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """12 phantoms in BUSI layout; nobody may write here."""
    folder = tmp_path_factory.mktemp("packages") / "few"
    write_phantoms(folder, count=12)
    return folder


def told(*arguments):
    result = CliRunner().invoke(cli, [str(each) for each in arguments])
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


def test_a_student_of_the_package_is_taught_and_ships_in_int8(function, few, tmp_path):
    out, bundle = tmp_path / "run", tmp_path / "bundle"
    told(
        *("train", few, "--out", out, "--student", f"{HERE}:{function}", "--size", 64),
        *("--teaching", "single", "--teacher", "edge-16", "--general-epochs", 1),
        *("--teacher-epochs", 1, "--student-epochs", 1, "--batch", 4, "--device", "cpu", "-q"),
    )
    told(
        *("export", out, "--target", "x86-cpu", "--precision", "int8", "--calib", few),
        # One epoch is no network to judge by its masks.
        *("--max-drop", 1, "--max-hd95-rise", 100, "--force-contract", "--out", bundle, "-q"),
    )
    manifest = open_bundle(bundle).manifest
    assert manifest.precision == "int8"
    assert open_bundle(bundle).provenance().training["config"]["student"] == f"{HERE}:{function}"
    assert told("evaluate", bundle, few)


def test_its_weights_go_to_a_jetson_by_the_function_that_makes_it(function, few, tmp_path):
    torch.manual_seed(0)
    network = getattr(package_networks, function)().eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT.to_dict()))
    kit = tmp_path / "kit"
    told(
        *("export", f"{HERE}:{function}", "--weights", tmp_path / "weights.pth"),
        *("--contract", tmp_path / "contract.json", "--target", "jetson", "--precision", "fp32"),
        *("--calib", few, "--max-drop", 1, "--max-hd95-rise", 100, "--force-contract"),
        *("--out", kit, "-q"),
    )
    image = np.random.default_rng(0).normal(size=(1, 1, 64, 64)).astype(np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image)).numpy()
    (onnx,) = kit.glob("*.onnx")
    np.testing.assert_allclose(exact_run(onnx.read_bytes(), 1)(image), expected, atol=1e-4)
