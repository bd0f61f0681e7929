"""A contract that the network's own answers speak against is refused, until it is forced."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from edgeseg.cli.main import cli
from edgeseg.export.parity import CheckFrame, reference_of
from edgeseg.export.reading import require_normal_input, require_own_answer
from edgeseg.export.to_onnx import onnx_from_network
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError, Refused

RIGHT = InputContract(32, 32, mean=0.5, std=0.25)


def check(row):
    """A dark square of 8 px in grey of 150, where the lesion is."""
    truth = np.zeros((32, 32), bool)
    truth[row : row + 8, 8:16] = True
    return CheckFrame(np.where(truth, 50, 150).astype(np.uint8), truth, f"frame {row}")


FRAMES = tuple(check(row) for row in (0, 10, 20))


def dark(image):
    """Logits of what is dark, for inputs as RIGHT makes them: -1.2 within, 0.35 without."""
    return (-4 * (image + 0.4)).astype(np.float32)


def share(logits):
    """The sigmoid, without an overflow."""
    return 0.5 + 0.5 * np.tanh(logits / 2)


def judge(run, contract=RIGHT):
    require_own_answer(run, reference_of(run, contract, FRAMES))


def test_a_network_read_as_it_was_trained_passes():
    judge(dark)


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (0.9, 0.1), (0, 0.1), (1, 1 / 255)])
def test_a_contract_under_which_another_does_better_is_refused(mean, std):
    with pytest.raises(Refused, match=r"mean 0.5 and std 0.25 it has 1.000") as caught:
        judge(
            lambda image: np.where(abs(image + 1.216) < 0.05, 1.0, -1.0),
            replace(RIGHT, mean=mean, std=std),
        )
    assert caught.value.code == "E-CONTRACT-DICE"


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda image: -dark(image), "negated"),
        (lambda image: share(dark(image)), "taken as a probability, it"),
        (lambda image: 255 * share(dark(image)), "taken as a probability times 255, it"),
        (lambda image: 0 * image + 3, "on one side of 0"),
        (lambda image: 0 * image - 3, "on one side of 0"),
    ],
    ids=["background", "probability", "grey mask", "everything", "nothing"],
)
def test_answers_that_are_no_logits_of_lesions_are_refused(run, says):
    with pytest.raises(Refused, match=says) as caught:
        judge(run)
    assert caught.value.code == "E-CONTRACT-DICE"


def test_an_untrained_network_passes_as_no_contract_would_help_it():
    judge(lambda image: (0.2 + 0.01 * np.sin(1e4 * image)).astype(np.float32))


@pytest.mark.parametrize(
    ("mean", "std", "passes"),
    [
        (0.485, 0.229, True),
        (0, 1, True),
        (0.33, 0.03, True),
        (0, 1 / 255, True),  # a network that takes grey levels
        (0.5, 1 / 255, True),
        (0.5, 0.01, False),
        (0.5, 0.0005, False),
    ],
)
def test_an_input_that_no_normalised_image_is_is_refused(mean, std, passes):
    contract = replace(RIGHT, mean=mean, std=std)
    if passes:
        require_normal_input(contract, FRAMES)
        return
    with pytest.raises(InputError) as caught:
        require_normal_input(contract, FRAMES)
    assert caught.value.code == "E-CONTRACT"


def test_export_refuses_a_wrong_contract_until_it_is_forced(run, phantoms, tmp_path):
    loaded = load_checkpoint(run / "student.safetensors")
    wrong = replace(loaded.contract, mean=0.95, std=0.04)
    file = tmp_path / "theirs.onnx"
    file.write_bytes(onnx_from_network(loaded.network, wrong))
    out = tmp_path / "bundle"
    words = ["export", file, "--target", "x86-cpu", "--precision", "fp32", "--calib", phantoms]
    arguments = [*map(str, words), "--out", str(out), "-q"]
    refused = CliRunner().invoke(cli, arguments)
    assert refused.exit_code == 3
    assert refused.stderr.startswith("edgeseg: E-CONTRACT-DICE")
    assert not out.exists()
    assert CliRunner().invoke(cli, [*arguments, "--force-contract"]).exit_code == 0
    evidence = json.loads((out / "manifest.json").read_text())["evidence"]
    assert evidence["contract_forced"] is True
