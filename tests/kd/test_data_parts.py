"""Data that come divided, and archives one folder too high: taken as they are, and said."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.kd.data.audit import audit_datasets, render
from edgeseg.kd.data.dataset import read_dataset, read_datasets
from edgeseg.kd.data.split import (
    default_split,
    make_split,
    read_split,
    samples_of,
    split_of_parts,
    write_split,
)
from edgeseg.runtime.errors import EdgesegError, InputError, Refused


def write_busi(root: Path, label: str, *seeds: int) -> None:
    """Write images of noise, alike where their seeds are equal, each with a mask."""
    (root / label).mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8)
        image = Image.fromarray(pixels - pixels // (8 + number))  # no two files of the same bytes
        image.resize((64, 64)).save(root / label / f"{seed}-{number}.png")
        Image.fromarray(np.eye(64, dtype=np.bool_)).save(root / label / f"{seed}-{number}_mask.png")


@pytest.fixture
def divided(tmp_path: Path) -> Path:
    write_busi(tmp_path / "set" / "train", "benign", 1, 2, 2)
    write_busi(tmp_path / "set" / "valid", "malignant", 3)
    write_busi(tmp_path / "set" / "Test", "benign", 4, 5)
    return tmp_path / "set"


def code_of(kind: type[EdgesegError], call, *arguments) -> str:
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value.code


def test_folders_of_parts_are_the_split_and_the_file_says_so(divided, tmp_path):
    dataset = read_dataset(divided)
    assert dataset.members[0].layout == "parts"
    split = default_split(dataset, seed=5)
    assert {entry.name: entry.part for entry in split.entries} == {
        "train/benign/1-0.png": "train",
        "train/benign/2-1.png": "train",
        "train/benign/2-2.png": "train",
        "valid/malignant/3-0.png": "val",
        "Test/benign/4-0.png": "test",
        "Test/benign/5-1.png": "test",
    }
    assert split.fractions == (3 / 6, 1 / 6, 2 / 6)
    write_split(split, tmp_path / "split.json")
    assert json.loads((tmp_path / "split.json").read_text())["parts_from"] == "data set"
    assert read_split(tmp_path / "split.json") == split
    assert "data set's own and tears 0 groups" in split.leak
    assert len(samples_of(split, dataset, "test")) == 2


def test_parts_may_have_different_layouts(divided):
    root = divided / "Test"
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for file in (root / "benign").iterdir():
        mask = file.stem.endswith("_mask")
        file.rename(root / ("masks" if mask else "images") / file.name)
    (root / "benign").rmdir()
    samples = read_dataset(divided).samples
    assert [s.name for s in samples if s.part == "test"] == [
        "Test/images/4-0.png",
        "Test/images/5-1.png",
    ]


def test_look_alikes_across_parts_are_a_problem_of_the_audit_and_no_default_split(divided):
    assert audit_datasets([divided]).torn_groups == ()
    write_busi(divided / "Test", "malignant", 1)
    audit = audit_datasets([divided])
    assert audit.torn_groups == (("Test/malignant/1-0.png", "train/benign/1-0.png"),)
    assert audit.problems == 1 + len(audit.identical)
    assert "in more than one of its parts: 1" in render(audit)
    dataset = read_dataset(divided)
    assert code_of(Refused, default_split, dataset) == "E-SPLIT-TORN"
    split = split_of_parts(dataset)  # asked for by name it is what it is
    assert split.torn_groups == 1
    assert "has seen relatives in training" in split.leak


def test_a_patient_across_parts_is_no_default_split(divided):
    for part, label in (("train", "benign"), ("valid", "malignant"), ("Test", "benign")):
        root = divided / part
        for folder in ("images", "masks"):
            (root / folder).mkdir()
        for file in (root / label).iterdir():
            mask = file.stem.endswith("_mask")
            file.rename(root / ("masks" if mask else "images") / file.name)
        (root / label).rmdir()
        names = [path.stem for path in (root / "images").iterdir()]
        lines = [f"{name},{label},{'p' if part != 'valid' else 'q'}" for name in names]
        (root / "labels.csv").write_text("\n".join(["image,label,patient", *lines]) + "\n")
    assert code_of(Refused, default_split, read_dataset(divided)) == "E-SPLIT-TORN"
    assert len(audit_datasets([divided]).torn_groups) == 1


def test_data_in_parts_can_be_split_anew(divided):
    split = make_split(read_dataset(divided))
    assert (split.parts_from, split.torn_groups) == ("", None)


def test_a_set_in_parts_beside_one_without_has_no_default_split(divided, tmp_path):
    write_busi(tmp_path / "other", "benign", 8, 9)
    both = read_datasets([divided, tmp_path / "other"])
    assert code_of(InputError, default_split, both) == "E-SPLIT-PARTS"


@pytest.mark.parametrize("name", ["val", "validation"])
def test_two_folders_of_one_part_are_refused(divided, name):
    write_busi(divided / name, "benign", 9)
    assert code_of(InputError, read_dataset, divided) == "E-DATA-LAYOUT"


def test_a_part_without_a_layout_is_refused_by_its_name(divided):
    (divided / "Test" / "benign").rename(divided / "Test" / "pictures")
    with pytest.raises(InputError, match="Test has no known layout") as caught:
        read_dataset(divided)
    assert caught.value.code == "E-DATA-LAYOUT"


# --- one folder too high --------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["Dataset_BUSI_with_GT", "archive/Dataset_BUSI_with_GT"])
def test_a_set_that_lies_alone_in_the_folder_is_taken_and_that_is_said(inner, tmp_path, caplog):
    outer = tmp_path / "BUSI"
    write_busi(outer / inner, "benign", 1)
    (outer / "__MACOSX").mkdir()
    (outer / "README.txt").write_text("about\n")
    with caplog.at_level(logging.WARNING):
        dataset = read_dataset(outer)
        read_dataset(outer)
    assert [record.getMessage() for record in caplog.records] == [
        f"took {outer / inner}, the one folder in {outer}"
    ]
    assert (dataset.members[0].name, dataset.members[0].root) == ("busi", outer / inner)
    assert [sample.name for sample in dataset.samples] == ["benign/1-0.png"]
    assert audit_datasets([outer]).root == str(outer / inner)


def test_of_two_folders_none_is_taken(tmp_path):
    write_busi(tmp_path / "set" / "one", "benign", 1)
    write_busi(tmp_path / "set" / "two", "benign", 2)
    assert code_of(InputError, read_dataset, tmp_path / "set") == "E-DATA-LAYOUT"


def test_a_folder_beside_images_is_not_taken(tmp_path):
    write_busi(tmp_path / "set" / "inner", "benign", 1)
    Image.new("L", (8, 8)).save(tmp_path / "set" / "a.png")
    assert code_of(InputError, read_dataset, tmp_path / "set") == "E-DATA-LAYOUT"
