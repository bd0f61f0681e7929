"""Outlines of LabelMe, COCO and YOLO: drawn by one rule, or refused by their code."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeseg.kd.data.audit import audit_datasets
from edgeseg.kd.data.dataset import list_files, read_dataset
from edgeseg.kd.data.outlines import circle, compressed_run_lengths, polygon, rectangle, run_lengths
from edgeseg.kd.data.split import make_split, samples_of
from edgeseg.runtime.errors import InputError

HEIGHT, WIDTH = 6, 8


def save_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(path)


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def code_of(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_dataset(root)
    assert "\n" not in str(caught.value)
    return caught.value.code


def drawn(root: Path) -> dict[str, tuple[str, list[list[int]]]]:
    """Return label and marked pixels (row, column) of every image."""
    return {
        s.image.stem: (s.label, np.argwhere(s.read_mask()).tolist())
        for s in read_dataset(root).samples
    }


# --- the rule ------------------------------------------------------------------------------------


def test_a_pixel_is_in_where_its_centre_is():
    square = polygon([(1.4, 0.6), (3.6, 0.6), (3.6, 2.4), (1.4, 2.4)])(4, 5)
    assert np.argwhere(square).tolist() == [[1, 1], [1, 2], [1, 3]]
    assert (rectangle([(3.6, 2.4), (1.4, 0.6)])(4, 5) == square).all()


def test_neighbours_share_no_pixel_and_leave_none_out():
    left = polygon([(0, 0), (2.5, 0), (2.5, 4), (0, 4)])(4, 5)
    right = polygon([(2.5, 0), (5, 0), (5, 4), (2.5, 4)])(4, 5)
    assert (left ^ right).all()


def test_a_polygon_that_crosses_itself_is_out_where_it_lies_twice():
    twice = [(0, 0), (4, 0), (4, 4), (0, 4)] * 2
    assert not polygon(twice)(4, 4).any()
    bow = polygon([(0, 0), (4, 8), (4, 0), (0, 8)])(8, 4)
    assert bow[:4].astype(int).tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 12), st.floats(-3, 12)), min_size=3, max_size=7))
def test_a_polygon_is_that_of_an_even_odd_test_of_every_centre(points):
    mask = polygon(points)(7, 9)
    for row, column in np.ndindex(7, 9):
        x, y, inside = column + 0.5, row + 0.5, False
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            if (y0 <= y) != (y1 <= y) and x0 + (y - y0) / (y1 - y0) * (x1 - x0) <= x:
                inside = not inside
        assert mask[row, column] == inside


def test_the_area_of_a_large_outline_is_its_own():
    angle = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    points = np.stack([50 + 30 * np.cos(angle), 40 + 20 * np.sin(angle)], axis=1)
    assert polygon(points.tolist())(80, 100).sum() == pytest.approx(np.pi * 600, rel=0.005)
    assert circle([(50, 40), (70, 40)])(80, 100).sum() == pytest.approx(np.pi * 400, rel=0.01)


def test_run_lengths_go_down_the_columns():
    assert run_lengths([1, 2, 3], (2, 3))(2, 3).astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("seed", range(20))
def test_compressed_run_lengths_are_those_of_pycocotools(seed):
    mask = pytest.importorskip("pycocotools.mask", reason="no pycocotools; make install brings it")
    rng = np.random.default_rng(seed)
    size = tuple(map(int, rng.integers(1, 90, 2)))
    pixels = np.kron(rng.random(size) < rng.random(), np.ones((3, 2))).astype(np.uint8)
    counts = mask.encode(np.asfortranarray(pixels))["counts"].decode()
    assert (compressed_run_lengths(counts, pixels.shape)(*pixels.shape) == pixels).all()


@pytest.mark.parametrize("counts", ["", "=24000", "=24000a099", "zz", "o" * 40, "=\x7f", "ö"])
def test_damaged_run_lengths_are_refused_and_never_drawn(counts):
    with pytest.raises(ValueError, match=r"run lengths|ascii"):
        compressed_run_lengths(counts, (HEIGHT, WIDTH))


# --- LabelMe -------------------------------------------------------------------------------------


SQUARE = {"label": "lesion", "shape_type": "rectangle", "points": [[2, 1], [4, 2]]}


def labelme(*shapes: dict, image: str = "a.png", **changes: object) -> dict:
    sizes = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    return {"version": "5", "shapes": list(shapes), "imagePath": image, **sizes, **changes}


def test_shapes_of_labelme_are_united_and_a_file_without_any_is_normal(tmp_path):
    for name in "ab":
        save_image(tmp_path / f"{name}.png")
    dot = {"label": "lesion", "shape_type": "circle", "points": [[6.5, 4.5], [6.5, 4.9]]}
    write(tmp_path / "a.json", labelme(SQUARE, dot))
    write(tmp_path / "b.json", labelme(image="b.png"))
    assert drawn(tmp_path) == {"a": ("lesion", [[1, 2], [1, 3], [4, 6]]), "b": ("normal", [])}


@pytest.mark.parametrize("path", ["../images/a.png", "..\\images\\a.png"])
def test_labelme_may_lie_beside_the_folder_of_images(path, tmp_path, monkeypatch):
    save_image(tmp_path / "set" / "images" / "a.png")
    write(tmp_path / "set" / "annotations" / "a.json", labelme(SQUARE, image=path))
    monkeypatch.chdir(tmp_path / "set")
    for root in (tmp_path / "set", Path(), Path("../set")):
        (sample,) = read_dataset(root).samples
        assert sample.name == "images/a.png"
        assert sample.read_mask().sum() == 2


def test_classes_of_outlines_are_what_the_table_says_and_the_graver_is_on_top(tmp_path):
    save_image(tmp_path / "a.png")
    shadow = {"label": "Shadow", "shape_type": "rectangle", "points": [[3, 1], [5, 2]]}
    lesion = {**SQUARE, "label": "mass"}
    write(tmp_path / "a.json", labelme(lesion, shadow))
    assert code_of(tmp_path) == "E-DATA-CLASSES"
    (tmp_path / "classes.csv").write_text("class,label\nmass,malignant\nshadow,background\n")
    assert drawn(tmp_path) == {"a": ("malignant", [[1, 2], [1, 3]])}


def test_a_class_that_is_to_be_ignored_is_refused(tmp_path):
    save_image(tmp_path / "a.png")
    write(tmp_path / "a.json", labelme(SQUARE, {**SQUARE, "label": "ignore"}))
    assert code_of(tmp_path) == "E-DATA-VOID"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (labelme({**SQUARE, "shape_type": "line"}), "E-DATA-ANNOTATION"),
        (labelme({**SQUARE, "points": [[1, 1]]}), "E-DATA-ANNOTATION"),
        (labelme({**SQUARE, "points": [[1, "2"], [3, 4]]}), "E-DATA-ANNOTATION"),
        (labelme({**SQUARE, "points": [[1, float("nan")], [3, 4]]}), "E-DATA-ANNOTATION"),
        (labelme({**SQUARE, "shape_type": "polygon"}), "E-DATA-ANNOTATION"),
        (labelme({**SQUARE, "label": ""}), "E-DATA-ANNOTATION"),
        (labelme({"label": "lesion"}), "E-DATA-ANNOTATION"),
        (labelme(SQUARE, imageHeight="6"), "E-DATA-ANNOTATION"),
        (labelme(SQUARE, imageHeight=1 << 30, imageWidth=1 << 30), "E-DATA-ANNOTATION"),
        (labelme(SQUARE, image="../../a.png"), "E-DATA-ANNOTATION"),
        (labelme(SQUARE, image="/a.png"), "E-DATA-ANNOTATION"),
        (labelme(SQUARE, image="C:\\a.png"), "E-DATA-ANNOTATION"),
        (labelme(SQUARE, image=7), "E-DATA-ANNOTATION"),
        (labelme(SQUARE, image="gone.png"), "E-DATA-LABEL"),
    ],
    ids=str,
)
def test_labelme_that_cannot_be_used_is_refused(content, code, tmp_path):
    save_image(tmp_path / "set" / "a.png")
    write(tmp_path / "set" / "a.json", content)
    assert code_of(tmp_path / "set") == code


def test_two_files_of_one_image_are_refused(tmp_path):
    save_image(tmp_path / "a.png")
    for name in "ab":
        write(tmp_path / f"{name}.json", labelme(SQUARE))
    assert code_of(tmp_path) == "E-DATA-ANNOTATION"


def test_one_bad_file_is_one_problem_of_the_audit(tmp_path):
    for name in "ab":
        save_image(tmp_path / f"{name}.png")
        write(tmp_path / f"{name}.json", labelme(SQUARE, image=f"{name}.png"))
    write(tmp_path / "b.json", labelme({**SQUARE, "points": 3}, image="b.png"))
    assert len(list_files(tmp_path)[1].mask_faults) == 1
    (problem,) = audit_datasets([tmp_path]).unreadable
    assert "b.json: E-DATA-ANNOTATION" in problem


def test_an_outline_for_another_size_or_outside_of_the_image_is_refused(tmp_path):
    save_image(tmp_path / "a.png", size=(5, 5))
    write(tmp_path / "a.json", labelme(SQUARE))
    (sample,) = read_dataset(tmp_path).samples
    with pytest.raises(InputError) as caught:
        sample.read_mask()
    assert caught.value.code == "E-DATA-MASK-SIZE"
    write(tmp_path / "a.json", labelme({**SQUARE, "points": [[8, 1], [9, 2]]}, imageWidth=5))
    save_image(tmp_path / "a.png", size=(5, HEIGHT))
    with pytest.raises(InputError) as caught:
        read_dataset(tmp_path).samples[0].read_mask()
    assert caught.value.code == "E-DATA-MASK-EMPTY"


# --- COCO ----------------------------------------------------------------------------------------


BOX = [2, 1, 4, 1, 4, 2, 2, 2]  # the same square


def coco(*segmentations: object, names: str = "ab", **changes: object) -> dict:
    """Return annotations of the first image; the others have none."""
    return {
        "images": [
            {"id": n, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH}
            for n, name in enumerate(names)
        ],
        "categories": [{"id": 0, "name": "everything"}, {"id": 1, "name": "mass"}],
        "annotations": [
            {"id": 5, "image_id": 0, "category_id": 1, "iscrowd": 0, "segmentation": each}
            for each in segmentations
        ],
        **changes,
    }


def make_coco(root: Path, content: object, name: str = "annotations/instances.json") -> Path:
    for image in "ab":
        save_image(root / "images" / f"{image}.png")
    write(root / name, content)
    return root


RUNS = [13, 1, 5, 1, 28]  # two pixels of row 1, in columns 2 and 3


@pytest.mark.parametrize(
    "outline",
    [
        [BOX],
        [[2, 1, 3, 1, 3, 2, 2, 2], [3, 1, 4, 1, 4, 2, 3, 2]],
        {"size": [HEIGHT, WIDTH], "counts": RUNS},
        {"size": [HEIGHT, WIDTH], "counts": "=150g0"},
    ],
    ids=["polygon", "two polygons", "run lengths", "compressed"],
)
def test_every_outline_of_coco_is_the_same_mask_and_an_image_without_is_normal(outline, tmp_path):
    root = make_coco(tmp_path, coco(outline))
    assert drawn(root) == {"a": ("lesion", [[1, 2], [1, 3]]), "b": ("normal", [])}


def test_a_crowd_is_of_its_class_like_any_other_mask(tmp_path):
    content = coco({"size": [HEIGHT, WIDTH], "counts": RUNS})
    content["annotations"][0]["iscrowd"] = 1
    assert drawn(make_coco(tmp_path, content))["a"] == ("lesion", [[1, 2], [1, 3]])


def test_files_of_parts_are_the_split(tmp_path):
    for part in ("train", "val"):
        save_image(tmp_path / "images" / f"{part}2017" / "a.png")
        write(tmp_path / "annotations" / f"instances_{part}2017.json", coco([BOX], names="a"))
    dataset = read_dataset(tmp_path)
    assert {s.name: s.part for s in dataset.samples} == {
        "images/train2017/a.png": "train",
        "images/val2017/a.png": "val",
    }
    assert dataset.has_parts


def test_annotations_beside_the_images_of_each_part_are_read_too(tmp_path):
    for part in ("train", "valid"):
        for name in "ab":
            save_image(tmp_path / part / f"{name}.png")
        write(tmp_path / part / "_annotations.coco.json", coco([BOX]))
    samples = read_dataset(tmp_path).samples
    assert [s.part for s in samples] == ["train", "train", "val", "val"]


def test_a_split_knows_the_annotations_and_sees_a_change(tmp_path):
    root = make_coco(tmp_path, coco([BOX]))
    dataset = read_dataset(root)
    split = make_split(dataset, fractions=(1, 0, 0))
    assert len(samples_of(split, dataset, "train")) == 2
    write(root / "annotations" / "instances.json", coco([[*BOX[:-2], 2, 3]]))
    with pytest.raises(InputError) as caught:
        samples_of(split, read_dataset(root), "train")
    assert caught.value.code == "E-SPLIT-MISMATCH"


def test_samples_travel_between_processes(tmp_path):
    samples = read_dataset(make_coco(tmp_path, coco([BOX]))).samples
    copy = pickle.loads(pickle.dumps(samples))[0]
    assert (copy.read_mask() == samples[0].read_mask()).all()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (coco([]), "E-DATA-ANNOTATION"),
        (coco([BOX[:5]]), "E-DATA-ANNOTATION"),
        (coco([BOX[:4]]), "E-DATA-ANNOTATION"),
        (coco({"size": [HEIGHT, WIDTH], "counts": RUNS[:-1]}), "E-DATA-ANNOTATION"),
        (coco({"size": [WIDTH, HEIGHT], "counts": RUNS}), "E-DATA-ANNOTATION"),
        (coco({"size": [HEIGHT, WIDTH], "counts": "=24000"}), "E-DATA-ANNOTATION"),
        (coco({"size": [HEIGHT, WIDTH], "counts": [-1, 49]}), "E-DATA-ANNOTATION"),
        (coco({"counts": RUNS}), "E-DATA-ANNOTATION"),
        (coco([BOX], categories=[]), "E-DATA-ANNOTATION"),
        (coco([BOX], images=[]), "E-DATA-ANNOTATION"),
        (coco([BOX], annotations=3), "E-DATA-ANNOTATION"),
        (coco([BOX], names="aa"), "E-DATA-ANNOTATION"),
        (coco([BOX], names="a"), "E-DATA-LABEL"),
        (coco([BOX], names="abc"), "E-DATA-LABEL"),
    ],
    ids=[
        *("empty", "odd", "two points", "short runs", "other size", "short code", "negative"),
        *("no size", "no category", "no images", "no list", "twice", "unnamed", "missing"),
    ],
)
def test_coco_that_cannot_be_used_is_refused(content, code, tmp_path):
    assert code_of(make_coco(tmp_path, content)) == code


def test_an_image_in_two_files_or_in_two_folders_is_refused(tmp_path):
    root = make_coco(tmp_path, coco([BOX]))
    write(root / "annotations" / "other.json", coco([BOX]))
    assert code_of(root) == "E-DATA-ANNOTATION"
    (root / "annotations" / "other.json").unlink()
    save_image(root / "images" / "inner" / "a.png")
    assert code_of(root) == "E-DATA-ANNOTATION"


# --- YOLO ----------------------------------------------------------------------------------------


LINE = "0 0.25 0.16 0.5 0.16 0.5 0.34 0.25 0.34\n"


def make_yolo(root: Path, text: str, names: str = "") -> Path:
    save_image(root / "images" / "a.png")
    write(root / "labels" / "a.txt", text)
    if names:
        write(root / "data.yaml", names)
    return root


def test_a_polygon_a_line_in_shares_of_the_sides(tmp_path):
    assert drawn(make_yolo(tmp_path, LINE)) == {"a": ("lesion", [[1, 2], [1, 3]])}


@pytest.mark.parametrize(
    "names",
    [
        "names: [malignant, 'x']",
        "path: .\nnames:\n  0: malignant  # worse\n  1: x\nnc: 2\n",
        'names:\n- "malignant"\n- x\n',
        "names:\n\n  - malignant\n  - x\ntrain: a",
    ],
)
def test_names_are_read_in_every_form_that_yolo_writes(names, tmp_path):
    assert drawn(make_yolo(tmp_path, LINE, names))["a"][0] == "malignant"


def test_folders_of_images_may_be_parts(tmp_path):
    for part in ("train", "val"):
        save_image(tmp_path / "images" / part / "a.png")
        write(tmp_path / "labels" / part / "a.txt", LINE)
    assert [s.part for s in read_dataset(tmp_path).samples] == ["train", "val"]


def test_names_beside_the_parts_hold_in_each(tmp_path):
    for part in ("train", "valid"):
        make_yolo(tmp_path / part, LINE)
    write(tmp_path / "data.yaml", "names: [benign, malignant]\n")
    assert [s.label for s in read_dataset(tmp_path).samples] == ["benign", "benign"]


@pytest.mark.parametrize(
    "text",
    [
        "0 0.5 0.5 0.2 0.2\n",
        "0 0.1 0.1 0.2 0.2 0.3\n",
        "0 0.1 0.1 0.2\n",
        "0 0.1 0.1 0.2 0.2 0.3 1.3\n",
        "0 0.1 0.1 0.2 0.2 nan 0.3\n",
        "x 0.1 0.1 0.2 0.2 0.3 0.3\n",
        "5 0.1 0.1 0.2 0.2 0.3 0.3\n",
    ],
    ids=["box", "odd", "short", "outside", "nan", "no class", "no name"],
)
def test_a_line_of_yolo_that_is_no_polygon_is_refused(text, tmp_path):
    assert code_of(make_yolo(tmp_path, text, "names: [a, b]\n")) == "E-DATA-ANNOTATION"


@pytest.mark.parametrize("names", ["nc: 1\n", "names: a\n", "names:\n  a\n"])
def test_names_that_cannot_be_read_are_refused(names, tmp_path):
    assert code_of(make_yolo(tmp_path, LINE, names)) == "E-DATA-ANNOTATION"


def test_a_file_without_an_image_is_an_orphan(tmp_path):
    root = make_yolo(tmp_path, LINE)
    write(root / "labels" / "b.txt", "")
    assert audit_datasets([root]).orphan_masks == ("labels/b.txt",)
