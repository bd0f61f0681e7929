"""Data set layouts, class lists, masks, and every refusal by its code."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.kd.data.dataset import (
    LABELS,
    LAYOUTS,
    UNCLASSED,
    Sample,
    list_files,
    read_dataset,
    read_datasets,
)
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


def make_bus_bra(root: Path) -> None:
    for stem in ("0001-l", "0001-r", "0002-s"):
        save(root / "Images" / f"bus_{stem}.png")
        save(root / "Masks" / f"mask_{stem}.png", marked=stem != "0002-s")
    (root / "bus_data.csv").write_text(
        "ID,Case,Histology,Pathology,BBOX\n"
        'bus_0001-l,1,ca,malignant,"[1,2,3,4]"\n'
        'bus_0001-r,1,cyst,benign,"[1,2,3,4]"\n'
        'bus_0002-s,2,,normal,""\n'
    )


def make_breast(root: Path) -> None:
    for stem in ("case001", "case002", "case003"):
        save(root / f"{stem}.png")
    for stem in ("case001", "case002"):
        mask = np.full((6, 8, 4), 255, np.uint8)  # white everywhere,
        mask[..., 3] = 0  # and hidden
        mask[0, 0, 3] = 255
        Image.fromarray(mask, "RGBA").save(root / f"{stem}_tumor.png")
    save(root / "case002_other1.png", marked=True)
    (root / "clinical.csv").write_text(
        "CaseID,Image_filename,Mask_tumor_filename,Classification\n"
        "1,case001.png,case001_tumor.png,benign\n"
        "2,case002.png,case002_tumor.png,malignant\n"
        "3,case003.png,,normal\n"
    )


def save_colours(path: Path, *colours: tuple[int, int, int]) -> None:
    """Write an RGB image of 8x6 px, black but for one pixel of each colour."""
    pixels = np.zeros((6, 8, 3), np.uint8)
    pixels[0, : len(colours)] = colours or 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


GREEN, RED = (0, 255, 0), (255, 0, 0)


def make_bus_uclm(root: Path) -> None:
    for stem, colours in (("ALWI_000", [GREEN]), ("ALWI_001", [RED]), ("FUHI_000", [])):
        save(root / "images" / f"{stem}.png")
        save_colours(root / "masks" / f"{stem}.png", *colours)
    (root / "INFO.csv").write_text("Image\n")


def make_unlisted(root: Path) -> None:
    for stem in ("a", "b"):
        save(root / "images" / f"{stem}.png")
        save(root / "masks" / "0" / f"{stem}.png", marked=stem == "a")


NUMBERS = {"benign": 1, "malignant": 2, "normal": 0}
CLASSES = "class,label\n1,benign\n2,malignant\n"


def save_numbers(path: Path, *numbers: int, palette: bool = False) -> None:
    """Write a mask of 8x6 px of class numbers, one pixel each in its first row."""
    pixels = np.zeros((6, 8), np.uint8)
    pixels[0, : len(numbers)] = numbers
    image = Image.fromarray(pixels)
    if palette:  # of PASCAL VOC: its colours differ from grey, and say nothing
        image = Image.frombytes("P", image.size, pixels.tobytes())
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [9] * 756 + [224, 224, 192])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_indexed(root: Path) -> None:
    for label, number in NUMBERS.items():
        save(root / "images" / f"{label}.png")
        save_numbers(root / "masks" / f"{label}.png", number)
    (root / "classes.csv").write_text(CLASSES)


def make_voc(root: Path) -> None:
    for label, number in NUMBERS.items():
        save(root / "JPEGImages" / f"{label}.bmp")
        save_numbers(root / "SegmentationClass" / f"{label}.png", number, palette=True)
    save(root / "JPEGImages" / "of boxes alone.bmp")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("benign\nnormal\n")
    (lists / "val.txt").write_text("malignant\n")
    (lists / "trainval.txt").write_text("benign\nnormal\nmalignant\n")
    (root / "classes.csv").write_text(CLASSES)


CORNER = [[0, 0], [1, 0], [1, 1], [0, 1]]  # a polygon around the first pixel


def make_nnunet(root: Path) -> None:
    for label, number in NUMBERS.items():
        save(root / "imagesTr" / f"{label}_0000.png")
        save_numbers(root / "labelsTr" / f"{label}.png", number)
    labels = {"background": 0, "benign": 1, "malignant": 2}
    content = {"channel_names": {"0": "US"}, "labels": labels, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps(content))


def make_labelme(root: Path) -> None:
    for label in LABELS:
        save(root / f"{label}.png")
        shapes = [{"label": label, "points": CORNER, "shape_type": "polygon"}]
        content = {
            "shapes": [] if label == "normal" else shapes,
            "imagePath": f"{label}.png",
            "imageHeight": 6,
            "imageWidth": 8,
        }
        (root / f"{label}.json").write_text(json.dumps(content))


def make_coco(root: Path) -> None:
    for label in LABELS:
        save(root / "images" / f"{label}.png")
    sizes = {"height": 6, "width": 8}
    content = {
        "images": [{"id": i, "file_name": f"{n}.png", **sizes} for i, n in enumerate(LABELS)],
        "categories": [{"id": 7 + i, "name": name} for i, name in enumerate(LABELS[:2])],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 7 + i,
                "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]],
            }
            for i in range(2)
        ],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_default.json").write_text(json.dumps(content))


def make_yolo(root: Path) -> None:
    (root / "labels").mkdir(parents=True)
    for number, label in enumerate(LABELS):
        save(root / "images" / f"{label}.png")
        line = "" if label == "normal" else f"{number} 0 0 0.125 0 0.125 0.16 0 0.16\n"
        (root / "labels" / f"{label}.txt").write_text(line)
    (root / "data.yaml").write_text("nc: 2\nnames: ['benign', 'malignant']\n")


def make_parts(root: Path) -> None:
    for part, label in zip(("train", "val", "test"), LABELS, strict=True):
        save(root / part / label / f"{label} (1).png")
        save(root / part / label / f"{label} (1)_mask.png", marked=label != "normal")


MAKERS = {
    "busi": make_busi,
    "dataset-b": make_dataset_b,
    "breast": make_breast,
    "bus-bra": make_bus_bra,
    "plain": make_plain,
    "bus-uclm": make_bus_uclm,
    "unlisted": make_unlisted,
    "indexed": make_indexed,
    "voc": make_voc,
    "nnunet": make_nnunet,
    "labelme": make_labelme,
    "coco": make_coco,
    "yolo": make_yolo,
    "parts": make_parts,
}


def code_of(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_dataset(root)
    assert str(caught.value).count("\n") == 0
    return caught.value.code


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_one_sample_of_each_class(layout, tmp_path):
    MAKERS[layout](tmp_path)
    dataset = read_dataset(tmp_path)
    assert dataset.members[0].layout == layout
    labels = [UNCLASSED, "normal"] if layout == "unlisted" else sorted(LABELS)
    assert sorted(sample.label for sample in dataset.samples) == labels
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
    code = {
        "breast": "E-DATA-LAYOUT",  # it has no folders
        **dict.fromkeys(
            ("labelme", "coco"), "E-DATA-LABEL"
        ),  # which name images that are not there
    }
    assert code_of(tmp_path) == code.get(layout, "E-DATA-EMPTY")


@pytest.mark.parametrize(
    ("layout", "mask"),
    [
        ("busi", "benign/benign (1)_mask.png"),
        ("dataset-b", "GT/000001.png"),
        ("plain", "masks/b_mask.png"),
        ("bus-bra", "Masks/mask_0001-l.png"),
        ("breast", "case001_tumor.png"),
        ("bus-uclm", "masks/FUHI_000.png"),  # which alone tells that it is normal
        ("unlisted", "masks/0/b.png"),
        ("indexed", "masks/normal.png"),
        ("voc", "SegmentationClass/normal.png"),
        ("nnunet", "labelsTr/normal.png"),
        ("labelme", "normal.json"),
        ("yolo", "labels/normal.txt"),
        ("parts", "train/benign/benign (1)_mask.png"),
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


def patients_of(root: Path) -> dict[str, str | None]:
    return {sample.name: sample.patient for sample in read_dataset(root).samples}


def test_readers_give_the_patient_where_the_data_set_tells(tmp_path):
    for layout, maker in MAKERS.items():
        maker(tmp_path / layout)
    assert list(patients_of(tmp_path / "bus-bra").values()) == ["1", "1", "2"]
    assert list(patients_of(tmp_path / "breast").values()) == ["case001", "case002", "case003"]
    assert list(patients_of(tmp_path / "bus-uclm").values()) == ["ALWI", "ALWI", "FUHI"]
    for layout in ("busi", "dataset-b", "plain", "unlisted"):
        assert set(patients_of(tmp_path / layout).values()) == {None}


def test_a_plain_list_may_name_patients(tmp_path):
    make_plain(tmp_path)
    (tmp_path / "labels.csv").write_text(
        "image,label,patient\na,benign,p\nb,malignant,q\nc,normal,p\n"
    )
    assert list(patients_of(tmp_path).values()) == ["p", "q", "p"]


@pytest.mark.parametrize(
    ("layout", "table", "old", "new"),
    [
        ("bus-bra", "bus_data.csv", "Case", "Other"),
        ("bus-bra", "bus_data.csv", "bus_0001-r,1", "bus_0001-r,"),
        ("plain", "labels.csv", "image,label", "image,label,patient"),
    ],
    ids=["missing", "half-empty", "empty"],
)
def test_a_list_of_patients_with_gaps_is_refused(layout, table, old, new, tmp_path):
    MAKERS[layout](tmp_path)
    text = (tmp_path / table).read_text()
    (tmp_path / table).write_text(text.replace(old, new))
    assert code_of(tmp_path) == "E-DATA-PATIENT"


def test_other_masks_of_breast_are_no_truth_and_no_orphans(tmp_path):
    make_breast(tmp_path)
    (sample,) = (s for s in read_dataset(tmp_path).samples if s.label == "malignant")
    assert [mask.name for mask in sample.masks] == ["case002_tumor.png"]
    save(tmp_path / "case009_other1.png")
    _, listing = list_files(tmp_path)
    assert [mask.name for mask in listing.orphan_masks] == ["case009_other1.png"]


def test_of_two_colours_in_a_mask_the_worse_is_the_class(tmp_path):
    make_bus_uclm(tmp_path)
    save_colours(tmp_path / "masks" / "FUHI_000.png", GREEN, RED)
    (sample,) = (s for s in read_dataset(tmp_path).samples if s.name.endswith("FUHI_000.png"))
    assert sample.label == "malignant"
    assert sample.read_mask().sum() == 2


@pytest.mark.parametrize(
    ("layout", "mask", "colour"),
    [
        ("bus-uclm", "masks/FUHI_000.png", (0, 0, 255)),
        ("bus-uclm", "masks/FUHI_000.png", (0, 254, 0)),
        ("unlisted", "masks/0/a.png", RED),
    ],
)
def test_a_mask_colour_that_stands_for_nothing_known_is_refused(layout, mask, colour, tmp_path):
    MAKERS[layout](tmp_path)
    save_colours(tmp_path / mask, colour)
    assert code_of(tmp_path) == "E-DATA-COLOUR"
    _, listing = list_files(tmp_path)  # an audit goes on
    assert len(listing.mask_faults) == 1


def test_masks_of_several_kinds_without_a_list_are_refused(tmp_path):
    make_unlisted(tmp_path)
    save(tmp_path / "masks" / "1" / "a.png")
    assert code_of(tmp_path) == "E-DATA-LAYOUT"


def make_two(root: Path) -> list[Path]:
    make_busi(root / "BUSI")
    make_bus_bra(root / "BUS-BRA")
    save(root / "BUS-BRA" / "Images" / "bus_0001-l.png", size=(9, 6))  # no file is in both
    save(root / "BUS-BRA" / "Masks" / "mask_0001-l.png", size=(9, 6), marked=True)
    save(root / "BUS-BRA" / "Images" / "bus_0001-r.png", size=(7, 6))
    save(root / "BUS-BRA" / "Images" / "bus_0002-s.png", size=(6, 6))
    return [root / "BUSI", root / "BUS-BRA"]


def test_several_sets_are_one_whatever_their_order_and_each_name_tells_its_set(tmp_path):
    folders = make_two(tmp_path)
    both = read_datasets(folders)
    assert both == read_datasets(folders[::-1])
    assert [(member.name, member.layout) for member in both.members] == [
        ("bus-bra", "bus-bra"),
        ("busi", "busi"),
    ]
    names = [sample.name for sample in both.samples]
    assert names[0] == "bus-bra/Images/bus_0001-l.png"
    assert names[3] == "busi/benign/benign (1).png"
    assert [sample.source for sample in both.samples] == ["bus-bra"] * 3 + ["busi"] * 3


def test_one_set_keeps_its_names_and_may_be_named(tmp_path):
    folder = make_two(tmp_path)[0]
    alone = read_datasets([folder])
    assert alone == read_dataset(folder)
    assert alone.samples[0].name == "benign/benign (1).png"
    named = read_datasets([Path(f"Clinic-1={folder}")])
    assert [member.name for member in named.members] == ["clinic-1"]
    assert [s.name for s in named.samples] == [s.name for s in alone.samples]


def test_two_sets_of_one_name_are_refused_and_can_be_named(tmp_path):
    one, other = make_two(tmp_path)
    moved = tmp_path / "other" / "busi"  # names have no case
    moved.parent.mkdir()
    other.rename(moved)
    with pytest.raises(InputError) as caught:
        read_datasets([one, moved])
    assert caught.value.code == "E-DATA-NAME"
    named = read_datasets([one, Path(f"second={moved}")])
    assert [member.name for member in named.members] == ["busi", "second"]


def test_an_image_in_two_sets_is_refused(tmp_path):
    one, other = make_two(tmp_path)
    image = one / "benign" / "benign (1).png"
    (other / "Images" / "bus_0002-s.png").write_bytes(image.read_bytes())
    with pytest.raises(InputError) as caught:
        read_datasets([one, other])
    assert caught.value.code == "E-DATA-TWICE"
