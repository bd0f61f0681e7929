"""Data set layouts, class lists, masks, and every refusal by its code."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.kd.data.dataset import LABELS, LAYOUTS, Sample, read_dataset
from edgeseg.runtime.errors import EngineError, InputError


def save(path: Path, *, marked: bool = False, size: tuple[int, int] = (8, 6)) -> None:
    """Write a grey image of `size` (width, height), or a mask with one pixel marked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size[::-1], np.uint8)
    pixels[0, 0] = 255 * marked
    Image.fromarray(pixels).save(path)


def make_busi(root: Path) -> None:
    for label in LABELS:
        save(root / label / f"{label} (1).png")
        save(root / label / f"{label} (1)_mask.png", marked=label != "normal")


def make_dataset_b(root: Path) -> None:
    for stem in ("000001", "000012", "000013"):
        save(root / "original" / f"{stem}.png")
        save(root / "GT" / f"{stem}.png", marked=stem != "000013")
    (root / "list.csv").write_text("No;Finding;Type\n1;cyst;Benign\n12;ca;MALIGNANT\n13;;Normal\n")


def make_plain(root: Path) -> None:
    for stem in ("a", "b", "c"):
        save(root / "images" / f"{stem}.bmp")
    save(root / "masks" / "a.png", marked=True)
    save(root / "masks" / "b_mask.png", marked=True)
    (root / "labels.csv").write_text("image,label\na.bmp,benign\nb,malignant\nc.bmp,normal\n")


MAKERS = {"busi": make_busi, "dataset-b": make_dataset_b, "plain": make_plain}


def code_of(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_dataset(root)
    assert str(caught.value).count("\n") == 0
    return caught.value.code


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_one_sample_of_each_class(layout, tmp_path):
    MAKERS[layout](tmp_path)
    dataset = read_dataset(tmp_path)
    assert dataset.layout == layout
    assert sorted(sample.label for sample in dataset.samples) == sorted(LABELS)
    for sample in dataset.samples:
        assert sample.image == tmp_path / sample.name
        assert sample.read_image().shape == sample.read_mask().shape == (6, 8)
        assert sample.label == "normal" or sample.read_mask().sum() == 1


def test_samples_are_in_numeric_order(tmp_path):
    for number in (10, 2, 1):
        save(tmp_path / "normal" / f"normal ({number}).png")
    names = [sample.name for sample in read_dataset(tmp_path).samples]
    assert names == [f"normal/normal ({number}).png" for number in (1, 2, 10)]


def test_the_truth_is_the_union_of_all_masks(tmp_path):
    folder = tmp_path / "Benign"  # any case
    save(folder / "x.jpg", size=(3, 1))
    for index, name in enumerate(("x_mask.png", "x_mask_1.png")):
        pixels = np.zeros((1, 3), np.bool_)
        pixels[0, index] = True
        Image.fromarray(pixels).save(folder / name)  # 1-bit
    (sample,) = read_dataset(tmp_path).samples
    assert [path.name for path in sample.masks] == ["x_mask.png", "x_mask_1.png"]
    assert sample.read_mask().tolist() == [[True, True, False]]


def test_a_normal_image_without_mask_has_an_empty_truth(tmp_path):
    save(tmp_path / "normal" / "n.png")
    assert not read_dataset(tmp_path).samples[0].read_mask().any()


def test_listing_decodes_no_image(tmp_path):
    (tmp_path / "normal").mkdir()
    (tmp_path / "normal" / "n.png").write_bytes(b"not a PNG")
    (sample,) = read_dataset(tmp_path).samples
    with pytest.raises(InputError) as caught:
        sample.read_image()
    assert caught.value.code == "E-IMAGE-READ"


def test_a_truncated_png_is_refused_when_read(tmp_path):
    save(tmp_path / "normal" / "n.png", size=(100, 100))
    image = tmp_path / "normal" / "n.png"
    image.write_bytes(image.read_bytes()[:45])  # ends within the pixels
    with pytest.raises(InputError) as caught:
        read_dataset(tmp_path).samples[0].read_mask()
    assert caught.value.code == "E-IMAGE-READ"


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    save(tmp_path / "i.png", size=(8, 6))
    save(tmp_path / "m.png", size=(4, 5))
    with pytest.raises(InputError, match=r"m\.png has 4x5.*i\.png has 8x6") as caught:
        Sample("i.png", "benign", tmp_path / "i.png", (tmp_path / "m.png",)).read_mask()
    assert caught.value.code == "E-DATA-MASK-SIZE"


def test_hidden_files_are_no_images(tmp_path):
    make_busi(tmp_path)
    save(tmp_path / "benign" / "._benign (2).png")
    assert len(read_dataset(tmp_path).samples) == 3


def test_no_folder_is_refused(tmp_path):
    assert code_of(tmp_path / "none") == "E-DATA-FOLDER"


def test_an_unknown_layout_is_refused_with_all_layouts_described(tmp_path):
    save(tmp_path / "pictures" / "a.png")
    assert code_of(tmp_path) == "E-DATA-LAYOUT"
    with pytest.raises(InputError) as caught:
        read_dataset(tmp_path)
    assert all(layout.description in str(caught.value) for layout in LAYOUTS.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_without_images_is_refused(layout, tmp_path):
    MAKERS[layout](tmp_path)
    for path in tmp_path.rglob("*.*"):
        if path.suffix in (".png", ".bmp"):
            path.unlink()
    assert code_of(tmp_path) == "E-DATA-EMPTY"


@pytest.mark.parametrize(
    ("layout", "mask"),
    [
        ("busi", "benign/benign (1)_mask.png"),
        ("dataset-b", "GT/000001.png"),
        ("plain", "masks/b_mask.png"),
    ],
)
def test_a_lesion_without_mask_is_refused(layout, mask, tmp_path):
    MAKERS[layout](tmp_path)
    (tmp_path / mask).unlink()
    assert code_of(tmp_path) == "E-DATA-NO-MASK"


@pytest.mark.parametrize(
    "content",
    [
        "image,label\na,benign\nb,malignant\n",  # c is missing
        "image,label\na,benign\nb,malignant\nc,odd\n",
        "image,label\na,benign\nb,malignant\nc,normal\nd,normal\n",  # no image d
        "image,label\na,benign\nb,malignant\nc,normal\na,malignant\n",
        "picture,label\na,benign\nb,malignant\nc,normal\n",
        "",
        b"image,label\na,benign\xff\n",
        "image,label\n" + "a" * (4 << 20),
    ],
    ids=["missing", "unknown", "no-image", "contradiction", "header", "empty", "bytes", "huge"],
)
def test_a_bad_class_list_is_refused(content, tmp_path):
    make_plain(tmp_path)
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "labels.csv").write_bytes(data)
    assert code_of(tmp_path) == "E-DATA-LABEL"


def test_two_class_lists_are_refused(tmp_path):
    make_dataset_b(tmp_path)
    (tmp_path / "other.csv").write_text("1,benign\n")
    assert code_of(tmp_path) == "E-DATA-LABEL"


def test_an_xlsx_list_reads_like_its_csv(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="no openpyxl; make install brings it")
    make_dataset_b(tmp_path)
    expected = read_dataset(tmp_path)
    (tmp_path / "list.csv").unlink()
    book = openpyxl.Workbook()
    for row in (("Image", "Class"), (1, "Benign"), (12.0, "Malignant"), ("000013", "normal")):
        book.active.append(row)
    book.save(tmp_path / "list.xlsx")
    assert read_dataset(tmp_path) == expected


def test_a_broken_xlsx_is_refused(tmp_path):
    pytest.importorskip("openpyxl", reason="no openpyxl; make install brings it")
    make_dataset_b(tmp_path)
    (tmp_path / "list.csv").rename(tmp_path / "list.xlsx")
    assert code_of(tmp_path) == "E-DATA-LABEL"


def test_xlsx_without_openpyxl_names_the_extra(tmp_path, monkeypatch):
    make_dataset_b(tmp_path)
    (tmp_path / "list.csv").rename(tmp_path / "list.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(EngineError, match=r"pip install 'edgeseg\[xlsx\]'") as caught:
        read_dataset(tmp_path)
    assert caught.value.code == "E-EXTRA-MISSING"


@pytest.mark.parametrize(("label", "marked"), [("benign", False), ("normal", True)])
def test_mask_that_contradicts_the_label_is_refused(label, marked, tmp_path):
    save(tmp_path / label / "a.png")
    save(tmp_path / label / "a_mask.png", marked=marked)
    with pytest.raises(InputError) as caught:
        read_dataset(tmp_path).samples[0].read_mask()
    assert caught.value.code == "E-DATA-MASK-EMPTY"
