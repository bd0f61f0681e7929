"""Which images of a folder are predicted, and that no file name loses a run."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edgeseg.cli.main import cli
from edgeseg.runtime import session as session_module
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.runtime.predict import find_images, predict_files


class Blank:
    """A session that finds nothing."""

    engine = SimpleNamespace(name="none")
    contract = InputContract()
    layout = None

    def predict(self, frame):
        return np.zeros(frame.shape[:2], np.uint8)


def pictures(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("L", (4, 3)).save(folder / name, "PNG")
    return folder


def names_of(folder):
    return [path.name for path in find_images([folder]).images]


BUSI = (
    "a (1).png",
    "a (1)_mask.png",
    "a (1)_mask_1.png",
    "a (2).png",
    "b_mask.png",
    "c_mask_x.png",
)


def test_masks_beside_their_images_are_left_out_of_a_folder(tmp_path):
    folder = pictures(tmp_path / "benign", *BUSI)
    assert names_of(folder) == ["a (1).png", "a (2).png", "b_mask.png", "c_mask_x.png"]


def test_a_mask_that_is_named_itself_is_predicted(tmp_path):
    folder = pictures(tmp_path / "benign", *BUSI)
    assert find_images([folder / "a (1)_mask.png"]) == ((folder / "a (1)_mask.png",), ())


def test_predict_says_how_many_masks_were_left_out(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "benign", *BUSI)
    monkeypatch.setattr(session_module, "open_session", lambda *_, **__: Blank())
    arguments = ["predict", "bundle", str(folder), "--json", "--out"]
    done = CliRunner().invoke(cli, [*arguments, str(tmp_path / "out")])
    assert done.exit_code == 0
    assert "left out: 2 masks (NAME_mask.png beside NAME.png)\n" in done.stderr
    assert len(json.loads(done.stdout)) == 4
    quiet = CliRunner().invoke(cli, [*arguments, str(tmp_path / "quiet"), "-q"])
    assert (quiet.exit_code, quiet.stderr) == (0, "")


def test_a_folder_is_listed_once_for_its_images_and_its_masks(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "benign", *BUSI)
    listed = []
    inside = list(folder.iterdir())
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or iter(inside))
    found = find_images([folder])
    assert (len(found.images), len(found.masks), listed) == (4, 2, [folder])


def test_a_folder_of_folders_is_told_to_name_the_one_with_the_images(tmp_path):
    pictures(tmp_path / "benign", "a.png")
    with pytest.raises(
        InputError, match=r"; name the folder that the images .* subfolders"
    ) as caught:
        find_images([tmp_path])
    assert caught.value.code == "E-IMAGE-NONE"


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError, match=r"Permission denied.*; mend") as caught:
        find_images([tmp_path])
    assert caught.value.code == "E-IMAGE-READ"


def test_a_file_name_that_is_no_text_does_not_lose_the_run(tmp_path):
    raw = os.fsencode(pictures(tmp_path / "in")) + b"/\xff.png"
    Image.new("L", (4, 3)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(os.fsdecode(raw))
    predict_files(Blank(), find_images([tmp_path / "in"]).images, tmp_path / "out")
    records = json.loads((tmp_path / "out" / "predictions.json").read_bytes())
    assert os.fsencode(records[0]["image"]) == b"\xff.png"
