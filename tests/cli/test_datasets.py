"""Several data sets and published lists, through the commands that a user types."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edgeseg.cli.main import cli
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.kd.data.split import read_split
from edgeseg.tests.support.dicom_files import write_pixels

INPUT = 2  # exit code, as in runtime/errors.py
FAST = ("--size", 32, "--student", "edge-32", "--student-epochs", 1, "--batch", 4)


def call(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def ok(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def refused(code, *arguments):
    result = call(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.startswith(f"edgeseg: {code}: "), result.stderr
    assert result.stderr.count("\n") == 1
    assert (result.exit_code, result.stdout) == (INPUT, "")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for name, seed in (("One", 0), ("two", 1)):
        write_phantoms(root / name, count=12, seed=seed)
    return [root / "One", root / "two"]


@pytest.fixture(scope="module")
def run(sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    ok("train", *sets, "--out", out, "--teaching", "none", *FAST, "-q")
    return out


def test_a_run_of_two_sets_records_set_part_and_group_of_every_image(sets, run):
    split = read_split(run / "split.json")
    assert split.layouts == {"one": "busi", "two": "busi"}
    assert {entry.source for entry in split.entries} == {"one", "two"}
    assert len(split.entries) == 24
    data = load_checkpoint(run / "student.safetensors").provenance["data"]
    assert [each["name"] for each in data] == ["one", "two"]
    trained = sum(entry.part == "train" for entry in split.entries)
    assert sum(sum(each["images"].values()) for each in data) == trained


def test_evaluate_tells_each_set_and_all(sets, run):
    text = ok("evaluate", run, *sets, "-q").stdout
    assert "missed (Dice < 0.1)" in text
    content = json.loads(ok("evaluate", run, *reversed(sets), "--json", "-q").stdout)
    assert [row["name"] for row in content["sets"]] == ["one", "two", "all"]
    assert content["leak"] == ""


def test_other_sets_than_those_of_the_run_are_refused(sets, run, tmp_path):
    refused("E-SPLIT-SETS", "evaluate", run, sets[0], "-q")
    refused("E-SPLIT-SETS", "evaluate", run, sets[0], f"three={sets[1]}", "-q")
    again = shutil.copytree(sets[1], tmp_path / "ONE")
    refused("E-DATA-NAME", "evaluate", run, sets[0], again, "-q")
    refused("E-DATA-TWICE", "train", *sets, f"three={again}", "--out", tmp_path / "run", "-q")
    assert not (tmp_path / "run").exists()


def test_audit_and_folds_take_several_sets(sets, tmp_path):
    audit = json.loads(ok("data", "audit", *sets, "--json", "-q").stdout)
    assert sum(audit["images"].values()) == 24
    ok("data", "split", *sets, "--out", tmp_path / "folds", "--folds", 2, "-q")
    folds = [read_split(tmp_path / "folds" / f"fold-{number}.json") for number in (1, 2)]
    tested = [entry.name for fold in folds for entry in fold.entries if entry.part == "test"]
    assert len(set(tested)) == len(tested) == 24


def test_stills_of_dicom_are_scored_as_their_pictures_are(sets, run, tmp_path):
    for label in ("benign", "malignant", "normal"):
        for path in sorted((sets[0] / label).glob("*.png")):
            out = tmp_path / "one" / label / path.name
            out.parent.mkdir(parents=True, exist_ok=True)
            if "_mask" in path.stem:
                shutil.copy(path, out)
                continue
            grey = np.asarray(Image.open(path))
            write_pixels(out.with_suffix(".dcm"), grey.tobytes(), grey.shape)
    asked = ("--part", "all", "--json", "-q")
    pictures, stills = (
        json.loads(ok("evaluate", run, folder, *asked).stdout)
        for folder in (sets[0], tmp_path / "one")
    )
    assert stills == pictures
    assert "leak" in stills


def write_list(path: Path, *names: str) -> Path:
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def test_a_split_of_lists_says_what_it_tears(sets, tmp_path):
    train = write_list(tmp_path / "train.txt", *(f"benign ({n}).png" for n in (1, 2, 3)))
    val = write_list(tmp_path / "val.txt", "benign (4)")
    test = write_list(tmp_path / "test.txt", "malignant (1).png")
    out = tmp_path / "split.json"
    said = ok("data", "split", sets[0], "--split-list", train, val, test, "--out", out, "-q").stdout
    split = read_split(out)
    assert [entry.part for entry in split.entries] == [*["train"] * 3, "val", "test"]
    assert f"tears {split.torn_groups} groups" in said
    given = (sets[0], "--split", out, "--out", tmp_path / "run", "--teaching", "none", *FAST, "-q")
    assert "made from lists" in ok("train", *given).stderr
    loaded = load_checkpoint(tmp_path / "run" / "student.safetensors")
    assert loaded.provenance["torn_groups"] == split.torn_groups
    assert "Not leak-safe" in ok("evaluate", tmp_path / "run", sets[0], "-q").stdout


def test_lists_that_cannot_be_followed_are_refused_and_leave_nothing(sets, tmp_path):
    train = write_list(tmp_path / "train.txt", "benign (1).png", "benign (1000).png")
    val = write_list(tmp_path / "val.txt")
    out = tmp_path / "split.json"
    lists = ("--split-list", train, val)
    refused("E-SPLIT-LIST", "data", "split", sets[0], *lists, "--out", out, "-q")
    refused("E-USAGE", "data", "split", sets[0], *lists, "--seed", 1, "--out", out)
    refused("E-USAGE", "data", "split", sets[0], "--split-list", train, "--out", out)
    assert not out.exists()


@pytest.fixture
def divided(sets, tmp_path):
    """Return phantoms in train/ and test/, one folder too deep."""
    root = tmp_path / "clinic" / "unpacked"
    for part, source in zip(("train", "test"), sets, strict=True):
        shutil.copytree(source, root / part)
    return tmp_path / "clinic"


def test_data_in_parts_is_trained_as_it_comes_and_that_is_recorded(divided, tmp_path):
    out = tmp_path / "run"
    given = (divided, "--out", out, "--teaching", "none", *FAST, "-q")
    ok("train", *given)
    split = read_split(out / "split.json")
    assert (split.parts_from, split.torn_groups) == ("data set", 0)
    assert {entry.name.partition("/")[0]: entry.part for entry in split.entries} == {
        "train": "train",
        "test": "test",
    }
    assert "is the data set's own" in ok("evaluate", out, divided, "-q").stdout


def test_what_was_taken_of_a_folder_is_one_line_on_stderr(divided):
    command = (sys.executable, "-m", "edgeseg", "data", "audit", str(divided), "-q")
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=divided)
    assert done.stderr == f"took {divided / 'unpacked'}, the one folder in {divided}\n"
    assert f"{divided / 'unpacked'} (parts layout)" in done.stdout


def test_data_in_parts_that_share_look_alikes_need_a_split_that_is_named(divided, sets, tmp_path):
    image = sets[0] / "benign" / "benign (1).png"
    for path in (image, image.with_stem("benign (1)_mask")):
        shutil.copy(path, divided / "unpacked" / "test" / "benign" / f"copy{path.stem[10:]}.png")
    out, split = tmp_path / "run", tmp_path / "split.json"
    given = (divided, "--out", out, "--teaching", "none", *FAST, "-q")
    result = call("train", *given)
    assert result.exit_code == 3
    assert "E-SPLIT-TORN" in result.stderr
    assert not out.exists()
    assert "tears 1 groups" in ok("data", "split", divided, "--out", split, "-q").stdout
    assert "tears 1 groups" in ok("train", *given, "--split", split).stderr
    ok("data", "split", divided, "--out", split, "--seed", 0, "-q")
    assert read_split(split).torn_groups is None
