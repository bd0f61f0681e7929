"""`edgeseg tune`: a new checkpoint with an operating point, and bundles that carry it."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgeseg.cli.jobs.sources import CheckpointSource
from edgeseg.cli.main import cli
from edgeseg.export.pipeline import Limits, export_bundle, load_trained
from edgeseg.export.plan import make_plan
from edgeseg.export.target import find_target
from edgeseg.kd import zoo
from edgeseg.kd.checkpoint import load_checkpoint, save_checkpoint
from edgeseg.kd.data.split import read_split, write_split
from edgeseg.kd.engine import TorchEngine
from edgeseg.kd.qat import read_run
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.session import Session

INPUT, REFUSED, USAGE = 2, 3, 2


def call(*arguments):
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def refused(code, exit_code, *arguments):
    result = call(*arguments)
    assert result.stderr.startswith(f"edgeseg: {code}: "), result.stderr
    assert result.stderr.count("\n") == 1
    assert result.exit_code == exit_code
    assert result.stdout == ""
    return result.stderr


@pytest.fixture(scope="module")
def own(run, tmp_path_factory):
    """A copy of the run, to write into."""
    return shutil.copytree(run, tmp_path_factory.mktemp("tune") / "run")


@pytest.fixture(scope="module")
def tuned(own, phantoms):
    """What the command told, and the checkpoint that it wrote."""
    before = (own / "student.safetensors").read_bytes()
    done = call("tune", own, phantoms, "--max-false-marks", 1, "--json", "-q")
    assert done.exit_code == 0, done.stderr
    assert (own / "student.safetensors").read_bytes() == before
    return json.loads(done.stdout), own / "tuned.safetensors"


def test_checkpoint_beside_the_old_one_has_the_same_weights_and_the_evidence(own, tuned):
    told, file = tuned
    old, new = load_checkpoint(own / "student.safetensors"), load_checkpoint(file)
    for name, tensor in old.network.state_dict().items():
        assert (new.network.state_dict()[name] == tensor).all()
    facts = new.provenance["operating_point"]
    assert told == {"checkpoint": str(file), **facts}
    assert facts["checkpoint_sha256"] == old.sha256
    assert facts["part"] == "val"
    assert new.provenance["split_sha256"] == old.provenance["split_sha256"]
    assert facts["after"] == {
        name: getattr(new.contract, name) for name in ("threshold", "least_area", "least_peak")
    }
    (every,) = facts["sets"]
    assert every["images"] == every["lesions"] + every["without_lesion"]
    assert every["after"]["dice"] >= every["before"]["dice"] - 0.02  # at the network's size it is
    errors = facts["calibration_error"]
    assert 0 < facts["temperature"] < 20
    assert 0 <= errors["before"] <= 1
    assert 0 <= errors["after"] <= 1


def test_evidence_is_what_evaluate_finds_on_the_val_part(own, tuned, phantoms):
    facts, file = tuned
    for source, when in ((own, "before"), (file, "after")):
        done = call("evaluate", source, phantoms, "--part", "val", "--json", "-q")
        found = json.loads(done.stdout)
        (lesions,) = (each for each in found["groups"] if each["name"] == "all lesions")
        (told,) = facts["sets"]
        assert told[when]["dice"] == pytest.approx(lesions["per_image"]["dice"]["mean"])
        assert told[when]["marked_share"] == pytest.approx(found["false_positive_share"])
        assert found["calibration_error"] == pytest.approx(facts["calibration_error"]["before"])
    assert found["temperature"] == facts["temperature"]
    assert found["calibrated_error"] == pytest.approx(facts["calibration_error"]["after"])


def test_evaluate_shows_both_errors_over_the_threshold(tuned, phantoms):
    done = call("evaluate", tuned[1], phantoms, "--part", "val", "-q")
    assert done.exit_code == 0, done.stderr
    assert "lesions found" in done.stdout
    assert "marks per normal" in done.stdout
    assert "with its temperature of" in done.stdout


def test_bundles_of_both_precisions_carry_the_same_contract(own, tuned, frames_of, tmp_path):
    network = load_trained(tuned[1])
    for precision in ("fp32", "int8"):
        made = export_bundle(
            network,
            make_plan(find_target("x86-cpu"), precision),
            tmp_path / precision,
            frames_of(precision),
            split=own / "split.json",
            limits=Limits(1.0, max_hd95_rise_px=100.0),
        )
        manifest = open_bundle(made.path).manifest
        assert manifest.contract == network.contract
        training = manifest.provenance["training"]
        assert training["operating_point"] == network.provenance["operating_point"]


def test_it_can_be_trained_on_for_int8_as_the_student_of_its_run(tuned):
    assert read_run(tuned[1]).student.contract == load_checkpoint(tuned[1]).contract


def test_weights_of_another_run_take_the_operating_point_over(own, tuned):
    _, file = tuned
    assert call("tune", own, "--point-of", file, "--name", "taken", "-q").exit_code == 0
    taken, given = load_checkpoint(own / "taken.safetensors"), load_checkpoint(file)
    assert taken.contract == given.contract
    assert taken.provenance["operating_point"]["taken_from"] == given.sha256


@pytest.fixture(scope="module")
def swapped(run, tmp_path_factory):
    """The network of the run in another, whose val part is the run's test part and the reverse.

    It says that it was trained by another loss.
    """
    folder = shutil.copytree(run, tmp_path_factory.mktemp("swapped") / "swapped")
    split = read_split(folder / "split.json")
    other = {"val": "test", "test": "val", "train": "train"}
    entries = tuple(replace(entry, part=other[entry.part]) for entry in split.entries)
    write_split(replace(split, entries=entries), folder / "split.json")
    loaded = load_checkpoint(folder / "student.safetensors")
    sha256 = hashlib.sha256((folder / "split.json").read_bytes()).hexdigest()
    save_checkpoint(
        folder / "student.safetensors",
        loaded.network,
        model=loaded.model,
        contract=loaded.contract,
        provenance={
            **loaded.provenance,
            "config": {**loaded.provenance["config"], "loss": "bce"},
            "split_sha256": sha256,
        },
    )
    return folder


def test_chosen_on_folds_is_chosen_on_their_test_parts_less_its_own(run, swapped, phantoms):
    limit = "--max-false-marks", 1
    for name, more in (("val", ()), ("folds", ("--fold", run))):
        done = call("tune", swapped, phantoms, *limit, *more, "--name", name, "-q")
        assert done.exit_code == 0, done.stderr
    assert "on the test parts of the folds" in done.stdout
    on_val, on_folds = (
        load_checkpoint(swapped / f"{name}.safetensors").provenance["operating_point"]
        for name in ("val", "folds")
    )
    student = load_checkpoint(run / "student.safetensors")
    assert on_folds.pop("folds") == [
        {"checkpoint_sha256": student.sha256, "settings": {"loss": "balanced+dice"}}
    ]
    assert on_folds.pop("part") == "test parts of folds"
    assert on_val.pop("part") == "val"
    assert on_folds == on_val
    # of the run itself every image of the fold is in its own test part
    line = refused("E-TUNE-FOLDS", INPUT, "tune", run, phantoms, "--fold", run, "--name", "n", "-q")
    assert "has no image that is not in the test part of" in line


def test_folds_that_share_images_or_are_of_another_network_are_refused(
    own, run, swapped, tuned, phantoms, tmp_path
):
    twice = "--fold", run, "--fold", own
    line = refused("E-TUNE-FOLDS", INPUT, "tune", swapped, phantoms, *twice, "--name", "n", "-q")
    assert f"in the test parts of {run}/student.safetensors and {own}/student.safetensors" in line
    other = shutil.copytree(run, tmp_path / "other")
    small = load_checkpoint(other / "student.safetensors")
    save_checkpoint(
        other / "student.safetensors",
        small.network,
        model=small.model,
        contract=replace(small.contract, width=2 * small.contract.width),
        provenance=small.provenance,
    )
    line = refused(
        "E-TUNE-SOURCE", INPUT, "tune", swapped, phantoms, "--fold", other, "--name", "n", "-q"
    )
    assert "folds have its network and input" in line
    shipped = next(Path(zoo.__file__).parent.glob("*.safetensors"))
    line = refused(
        "E-TUNE-SOURCE", INPUT, "tune", swapped, phantoms, "--fold", shipped, "--name", "n", "-q"
    )
    assert "is no checkpoint of a run" in line
    refused("E-USAGE", USAGE, "tune", own, "--point-of", tuned[1], "--fold", run)


def test_nothing_is_overwritten(own, tuned, phantoms):
    before = tuned[1].read_bytes()
    refused("E-OUT-EXISTS", INPUT, "tune", own, phantoms, "-q")
    refused("E-OUT-EXISTS", INPUT, "tune", own, phantoms, "--name", "student", "-q")
    assert tuned[1].read_bytes() == before


def test_limit_that_cannot_be_reached_writes_nothing(own, phantoms, monkeypatch):
    class Loud(Session):
        """Marks every image in the middle, as surely as its lesion."""

        def logits(self, frame):
            logits = np.full((64, 64), -5, np.float32)
            logits[16:48, 16:48] = 5
            return logits

    def loud(source, engine, threads):
        loaded = load_checkpoint(source.path)
        return Loud.over(TorchEngine(loaded, 1), loaded.contract)

    monkeypatch.setattr(CheckpointSource, "open", loud)
    line = refused("E-TUNE-LIMIT", REFUSED, "tune", own, phantoms, "--name", "none", "-q")
    assert "the nearest marks 100.0 %" in line
    assert not (own / "none.safetensors").exists()


@pytest.mark.parametrize("arguments", [(), ("DATA", "--point-of", "x")])
def test_data_or_another_checkpoint_is_needed_and_not_both(own, phantoms, arguments):
    given = [phantoms if each == "DATA" else each for each in arguments]
    refused("E-USAGE", USAGE, "tune", own, *given)


def test_what_has_no_operating_point_to_take_is_refused(own):
    refused("E-TUNE-SOURCE", INPUT, "tune", own, "--point-of", own, "--name", "n", "-q")


def test_operating_point_of_another_network_is_refused(own, tuned, tmp_path):
    loaded = load_checkpoint(tuned[1])
    other = tmp_path / "other.safetensors"
    small = load_checkpoint(own / "student.safetensors")
    contract = type(small.contract)(small.contract.height * 2, small.contract.width)
    save_checkpoint(
        other, small.network, model=small.model, contract=contract, provenance=loaded.provenance
    )
    line = refused("E-TUNE-SOURCE", INPUT, "tune", own, "--point-of", other, "--name", "n", "-q")
    assert "one network and input" in line


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../a", "a b"])
def test_name_that_is_not_plain_is_refused(own, phantoms, name):
    refused("E-TUNE-NAME", INPUT, "tune", own, phantoms, "--name", name, "-q")


def test_bundle_and_shipped_student_are_refused(own, phantoms, bundle_of):
    bundle = bundle_of("x86-cpu", "fp32")
    refused("E-SOURCE", INPUT, "tune", bundle, phantoms, "-q")
