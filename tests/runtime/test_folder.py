"""A folder is listed in one order and by one rule, whoever lists it."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgeseg.kd.data.audit import audit_datasets
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.runtime.folder import image_files, masked_stem, natural_key
from edgeseg.runtime.predict import find_images
from edgeseg.runtime.stream.sources import open_source

NFC, NFD = (unicodedata.normalize(form, "Müller é 1") for form in ("NFC", "NFD"))


def save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.full((3, 4), value, np.uint8))
    image.save(path, "PNG")


def listed(folder: Path) -> list[str]:
    """Return the names as predict, a stream and a data set list them, which must be the same."""
    names = [path.name for path in find_images([folder]).images]
    frames = [int(frame[0, 0]) for frame in open_source(folder).read()]
    by_value = {int(np.asarray(Image.open(folder / name))[0, 0]): name for name in names}
    assert [by_value[value] for value in frames] == names
    return names


def test_numbers_are_sorted_as_numbers(tmp_path):
    for number in (1, 2, 3, 9, 10, 11, 12):
        save(tmp_path / "normal" / f"{number}.png", number)
    expected = [f"{number}.png" for number in (1, 2, 3, 9, 10, 11, 12)]
    assert listed(tmp_path / "normal") == expected
    assert [sample.image.name for sample in read_dataset(tmp_path).samples] == expected


def test_what_the_system_leaves_in_a_folder_is_no_image(tmp_path):
    save(tmp_path / "normal" / "a.png")
    for name in ("._a.png", ".hidden.png", "Thumbs.db", ".DS_Store"):
        (tmp_path / "normal" / name).write_bytes(b"\0\5\x16\7Mac OS X")
    (tmp_path / "normal" / "sub.png").mkdir()
    assert listed(tmp_path / "normal") == ["a.png"]
    assert audit_datasets([tmp_path]).problems == 0


def test_suffix_and_mask_are_known_in_any_case(tmp_path):
    for number, name in enumerate(("X.PNG", "X_MASK.png", "X_Mask_1.PNG", "y.Png")):
        save(tmp_path / "benign" / name, number)
    assert listed(tmp_path / "benign") == ["X.PNG", "y.Png"]
    assert [path.name for path in find_images([tmp_path / "benign"]).masks] == [
        "X_MASK.png",
        "X_Mask_1.PNG",
    ]


@pytest.mark.parametrize(("image", "mask"), [(NFC, NFD), (NFD, NFC)])
def test_accents_match_in_either_form_of_unicode(image, mask, tmp_path):
    assert image != mask
    save(tmp_path / "images" / f"{image}.png")
    save(tmp_path / "masks" / f"{mask}.png", 255)
    (tmp_path / "labels.csv").write_text(f"image,label\n{mask}.png,benign\n", encoding="utf-8")
    (sample,) = read_dataset(tmp_path).samples
    assert [path.name for path in sample.masks] == [f"{mask}.png"]
    save(tmp_path / "benign" / f"{image}.png")
    save(tmp_path / "benign" / f"{mask}_mask.png")
    assert [path.name for path in find_images([tmp_path / "benign"]).images] == [f"{image}.png"]


def test_link_to_nothing_is_an_image_that_is_missing(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (item,) = open_source(tmp_path).read()
    assert item.code == "E-IMAGE-READ"


def test_link_to_a_folder_is_no_image(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.png").symlink_to(tmp_path / "folder")
    assert image_files(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a_mask.png", "a"),
        ("a_MASK_12.PNG", "a"),
        ("a_mask_mask.png", "a_mask"),
        ("a_mask_x.png", None),
        ("_mask.png", None),
        ("mask.png", None),
    ],
)
def test_name_tells_whose_mask_it_is(name, stem):
    assert masked_stem(Path(name)) == stem


@given(st.lists(st.text(alphabet="a1209é²٣ -_.", max_size=8), max_size=6), st.randoms())
def test_any_names_have_one_order(names, chance):
    ordered = sorted(names, key=natural_key)
    chance.shuffle(names)
    assert sorted(names, key=natural_key) == ordered
