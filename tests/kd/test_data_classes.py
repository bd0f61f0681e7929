"""Masks of class numbers: read by number, and lesion is what the data set says is lesion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.kd.data.audit import audit_datasets
from edgeseg.kd.data.classes import ClassMask, read_index
from edgeseg.kd.data.dataset import Sample, list_files, read_dataset
from edgeseg.runtime.errors import InputError

SHAPE = (6, 8)


def write(path: Path, pixels: object, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8), mode).save(path)


def numbers(*row: int) -> np.ndarray:
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[0, : len(row)] = row
    return pixels


def make(root: Path, masks: dict[str, np.ndarray], table: str = "") -> Path:
    """Write images/ and masks/ of numbers, and classes.csv with these lines."""
    for name, mask in masks.items():
        write(root / "images" / f"{name}.png", np.zeros(SHAPE))
        write(root / "masks" / f"{name}.png", mask)
    if table:
        (root / "classes.csv").write_text("class,label\n" + table)
    return root


def make_voc(root: Path, masks: dict[str, np.ndarray], table: str = "") -> Path:
    make(root, masks, table)
    (root / "images").rename(root / "JPEGImages")
    (root / "masks").rename(root / "SegmentationClass")
    return root


def code_of(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_dataset(root)
    assert "\n" not in str(caught.value)
    return caught.value.code


def marked(root: Path) -> dict[str, tuple[str, list[int]]]:
    """Return label and lesion of the first row of every image."""
    return {
        s.image.stem: (s.label, s.read_mask()[0].astype(int).tolist())
        for s in read_dataset(root).samples
    }


def test_each_number_is_what_the_table_says(tmp_path):
    table = "1,benign\n2,malignant\n3,background\n0,background\n"
    masks = {"a": numbers(1, 3), "b": numbers(1, 2), "c": numbers(3), "d": numbers()}
    assert marked(make(tmp_path, masks, table)) == {
        "a": ("benign", [1, 0, 0, 0, 0, 0, 0, 0]),
        "b": ("malignant", [1, 1, 0, 0, 0, 0, 0, 0]),
        "c": ("normal", [0] * 8),
        "d": ("normal", [0] * 8),
    }


def labels(root: Path, *classes: str) -> dict[str, list[int]]:
    """Return the labels of a network's classes in the first row of every image."""
    samples = read_dataset(root).samples
    return {s.image.stem: s.read_labels(classes)[0, :4].tolist() for s in samples}


def test_truth_of_several_classes_is_by_name_else_by_meaning(tmp_path):
    table = "1,benign\n2,malignant\n3,background\n"
    root = make(tmp_path, {"a": numbers(1, 3, 2), "b": numbers(2), "c": numbers(3)}, table)
    of_meaning = {"a": [2, 0, 1, 0], "b": [1, 0, 0, 0], "c": [0, 0, 0, 0]}
    assert labels(root, "malignant", "benign") == of_meaning
    by_name = {"a": [2, 3, 1, 0], "b": [1, 0, 0, 0], "c": [3, 0, 0, 0]}
    assert labels(root, "malignant", "1", "3") == by_name
    with pytest.raises(InputError, match=r"'2' \(malignant\)") as caught:
        labels(root, "1", "cyst")
    assert caught.value.code == "E-CLASSES"


def test_truth_of_several_classes_without_numbers_is_that_of_the_image(tmp_path):
    write(tmp_path / "benign" / "a.png", np.zeros(SHAPE))
    write(tmp_path / "benign" / "a_mask.png", numbers(255, 255))
    write(tmp_path / "normal" / "b.png", np.zeros(SHAPE))
    assert labels(tmp_path, "cyst", "benign") == {"a": [2, 2, 0, 0], "b": [0, 0, 0, 0]}
    with pytest.raises(InputError, match="is benign") as caught:
        labels(tmp_path, "cyst", "malignant")
    assert caught.value.code == "E-CLASSES"


@pytest.mark.parametrize("palette", [[0, 0, 0, 0, 0, 0], [255, 255, 255, 0, 0, 0]])
def test_a_palette_is_read_by_number_whatever_it_shows(palette, tmp_path):
    root = make(tmp_path, {"a": numbers(1)}, "1,lesion\n")
    image = Image.frombytes("P", (8, 6), numbers(1).tobytes())
    image.putpalette(palette)
    image.save(root / "masks" / "a.png")
    assert marked(root) == {"a": ("lesion", [1, 0, 0, 0, 0, 0, 0, 0])}


def test_16_bits_are_numbers_too(tmp_path):
    Image.fromarray(np.array([[0, 300, 2]], np.uint16)).save(tmp_path / "m.png")
    assert read_index(tmp_path / "m.png").tolist() == [[0, 300, 2]]


def test_one_class_alone_is_the_lesion(tmp_path):
    root = make_voc(tmp_path, {"a": numbers(3), "b": numbers()})
    assert marked(root) == {
        "a": ("lesion", [1, 0, 0, 0, 0, 0, 0, 0]),
        "b": ("normal", [0] * 8),
    }


def test_parts_in_which_different_classes_are_alone_are_refused(tmp_path):
    make_voc(tmp_path / "train", {"a": numbers(1)})
    make_voc(tmp_path / "val", {"b": numbers(2)})
    assert code_of(tmp_path) == "E-DATA-CLASSES"
    (tmp_path / "classes.csv").write_text("class,label\n1,lesion\n2,background\n")
    assert [label for label, _ in marked(tmp_path).values()] == ["lesion", "normal"]


def test_several_classes_that_nothing_explains_are_refused(tmp_path):
    assert code_of(make_voc(tmp_path, {"a": numbers(1), "b": numbers(2)})) == "E-DATA-CLASSES"


@pytest.mark.parametrize("second", [2, 255])
def test_several_numbers_in_masks_of_no_list_are_refused(second, tmp_path):
    flat = np.repeat(np.repeat(np.array([[0, 1], [second, 0]]), 3, axis=0), 4, axis=1)
    root = make(tmp_path, {"a": flat})
    assert code_of(root) == "E-DATA-CLASSES"
    (root / "classes.csv").write_text(f"class,label\n1,lesion\n{second},lesion\n")
    assert read_dataset(root).samples[0].read_mask().sum() == (flat > 0).sum()


@pytest.mark.parametrize("maker", [make, make_voc])
def test_pixels_that_nobody_decided_on_are_neither_lesion_nor_background(maker, tmp_path):
    table = "1,lesion\n"
    root = maker(tmp_path, {"a": numbers(1, 255)}, table)
    assert code_of(root) == "E-DATA-VOID"
    (root / "classes.csv").unlink()
    if maker is make_voc:
        assert code_of(root) == "E-DATA-VOID"
    for said, mask in (("background", [1, 0]), ("lesion", [1, 1])):
        (root / "classes.csv").write_text(f"class,label\n1,lesion\n255,{said}\n")
        assert marked(root)["a"][1][:2] == mask


def test_a_number_that_comes_later_has_no_meaning(tmp_path):
    root = make(tmp_path, {"a": numbers(1)}, "1,lesion\n")
    (sample,) = read_dataset(root).samples
    for number, code in ((2, "E-DATA-CLASSES"), (255, "E-DATA-VOID")):
        write(root / "masks" / "a.png", numbers(1, number))
        with pytest.raises(InputError) as caught:
            sample.read_mask()
        assert caught.value.code == code


@pytest.mark.parametrize(
    "table",
    [
        "2,malignant\n",
        "1,cyst\n",
        "1,benign\n1,malignant\n",
        "1,benign,odd\n",
        "0,lesion\n1,benign\n",
    ],
    ids=["missing", "unknown", "two labels", "three columns", "0 is a lesion"],
)
def test_a_table_that_does_not_explain_the_masks_is_refused(table, tmp_path):
    assert code_of(make(tmp_path, {"a": numbers(1)}, table)) == "E-DATA-CLASSES"


def test_a_table_without_its_first_line_is_refused(tmp_path):
    root = make(tmp_path, {"a": numbers(1)})
    (root / "classes.csv").write_text("1,benign\n")
    assert code_of(root) == "E-DATA-CLASSES"


@pytest.mark.parametrize(
    ("name", "pixels", "code"),
    [
        ("a.png", np.zeros((*SHAPE, 3)), "E-DATA-COLOUR"),
        ("a.jpg", np.zeros(SHAPE), "E-MASK-VALUES"),
    ],
)
def test_what_holds_no_numbers_is_refused_and_an_audit_goes_on(name, pixels, code, tmp_path):
    root = make(tmp_path, {"a": numbers(1), "b": numbers(1)}, "1,lesion\n")
    (root / "masks" / "a.png").unlink()
    write(root / "masks" / name, pixels)
    assert code_of(root) == code
    assert len(list_files(root)[1].mask_faults) == 1
    audit = audit_datasets([root])
    assert code in audit.unreadable[0]


def test_a_list_of_labels_and_a_table_of_numbers_go_together(tmp_path):
    root = make(tmp_path, {"a": numbers(1, 2)}, "1,lesion\n2,background\n")
    (root / "labels.csv").write_text("image,label,patient\na,malignant,p\n")
    (sample,) = read_dataset(root).samples
    assert (sample.label, sample.patient) == ("malignant", "p")
    assert sample.read_mask()[0].tolist() == [True, *[False] * 7]
    (root / "classes.csv").write_text("class,label\ntumour,lesion\n")
    assert code_of(root) == "E-DATA-CLASSES"


# --- VOC -----------------------------------------------------------------------------------------


def lists(root: Path, **images: str) -> None:
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in images.items():
        (folder / f"{name}.txt").write_text(text)


def test_lists_of_voc_give_the_parts_and_leave_out_what_is_in_none(tmp_path):
    root = make_voc(tmp_path, {name: numbers(1) for name in "abcd"})
    (root / "SegmentationClass" / "d.png").unlink()  # an image with boxes alone
    lists(root, train="a\n", val="b\n", test="c\n", trainval="a\nb\n")
    dataset = read_dataset(root)
    assert {s.image.stem: s.part for s in dataset.samples} == dict(
        zip("abc", ("train", "val", "test"), strict=True)
    )
    assert dataset.has_parts


def test_a_list_of_no_part_names_the_images_alone(tmp_path):
    root = make_voc(tmp_path, {"a": numbers(1), "b": numbers(1)})
    lists(root, default="a\n")
    dataset = read_dataset(root)
    assert ([s.image.stem for s in dataset.samples], dataset.has_parts) == (["a"], False)


@pytest.mark.parametrize(
    ("named", "code"),
    [
        ({"train": "a\n", "val": "a\n"}, "E-SPLIT-LIST"),
        ({"train": "a\nz\n"}, "E-DATA-LABEL"),
    ],
    ids=["in two parts", "no image"],
)
def test_lists_of_voc_that_cannot_be_followed_are_refused(named, code, tmp_path):
    root = make_voc(tmp_path, {"a": numbers(1)})
    lists(root, **named)
    assert code_of(root) == code


def test_colours_are_read_as_the_label_map_of_voc_says(tmp_path):
    root = make_voc(tmp_path, {"a": numbers()})
    pixels = np.zeros((*SHAPE, 3))
    pixels[0, :2] = [[128, 0, 0], [0, 128, 0]]
    write(root / "SegmentationClass" / "a.png", pixels)
    text = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbenign:128,0,0::\n"
    (root / "labelmap.txt").write_text(text)
    assert code_of(root) == "E-DATA-COLOUR"
    (root / "labelmap.txt").write_text(text + "shadow:0,128,0::\n")
    assert code_of(root) == "E-DATA-CLASSES"
    (root / "classes.csv").write_text("class,label\nbenign,benign\nshadow,background\n")
    assert marked(root) == {"a": ("benign", [1, 0, 0, 0, 0, 0, 0, 0])}
    (root / "labelmap.txt").write_text("benign\n")
    assert code_of(root) == "E-DATA-CLASSES"


def test_names_of_labelme_begin_with_what_is_ignored(tmp_path):
    root = make_voc(tmp_path, {"a": numbers(1)})
    (root / "class_names.txt").write_text("__ignore__\n_background_\nmalignant\n")
    assert marked(root)["a"][0] == "malignant"


def test_a_mask_of_classes_is_one_function_of_its_numbers(tmp_path):
    write(tmp_path / "m.png", numbers(1, 2, 3))
    reader = ClassMask(read_index, ((1, "benign"), (2, "background"), (3, "lesion")))
    sample = Sample("m", "lesion", tmp_path / "m.png", (tmp_path / "m.png",), mask_reader=reader)
    assert sample.read_mask()[0, :3].tolist() == [True, False, True]
