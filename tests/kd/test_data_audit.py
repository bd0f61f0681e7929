"""The audit lists every defect in one go and calls a sound data set sound."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from edgeseg.kd.data.audit import audit_datasets, render
from edgeseg.kd.data.phantom import write_phantoms


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("audit") / "set", count=10).members[0].root


@pytest.fixture
def root(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "set")


def cut(root):
    path = root / "benign" / "benign (1).png"
    path.write_bytes(path.read_bytes()[:1000])


def cut_mask(root):
    path = root / "benign" / "benign (1)_mask.png"
    path.write_bytes(path.read_bytes()[:60])


def resize_mask(root):
    Image.fromarray(np.ones((5, 7), np.bool_)).save(root / "benign" / "benign (1)_mask.png")


def remove_mask(root):
    (root / "benign" / "benign (1)_mask.png").unlink()


def empty_mask(root):
    path = root / "benign" / "benign (1)_mask.png"
    with Image.open(path) as mask:
        size = mask.size
    Image.new("1", size).save(path)


def mark_normal(root):
    path = root / "normal" / "normal (1)_mask.png"
    with Image.open(path) as mask:
        size = mask.size
    Image.new("1", size, 1).save(path)


def add_orphan(root):
    shutil.copy(root / "benign" / "benign (1)_mask.png", root / "benign" / "gone_mask.png")


def copy_across_classes(root):
    for suffix in (".png", "_mask.png"):
        shutil.copy(root / "benign" / f"benign (1){suffix}", root / "malignant" / f"copy{suffix}")


DEFECTS = {
    "unreadable": (cut, "benign (1).png: E-IMAGE-READ"),
    "unreadable-mask": (cut_mask, "benign (1)_mask.png: E-IMAGE-READ"),
    "size_mismatches": (resize_mask, "benign (1)_mask.png 7x5, image "),
    "without_mask": (remove_mask, "benign/benign (1).png"),
    "empty_masks": (empty_mask, "benign/benign (1).png"),
    "marked_normals": (mark_normal, "normal/normal (1).png"),
    "orphan_masks": (add_orphan, "benign/gone_mask.png"),
    "identical": (copy_across_classes, "malignant/copy.png"),
}


@pytest.mark.parametrize("kind", DEFECTS)
def test_each_planted_defect_is_the_only_problem(root, kind):
    plant, text = DEFECTS[kind]
    plant(root)
    audit = audit_datasets([root])
    assert audit.problems == 1
    assert text in str(getattr(audit, kind.removesuffix("-mask")))
    assert text in render(audit)


def test_several_defects_are_all_reported(root):
    for plant in (mark_normal, add_orphan, cut):
        plant(root)
    assert audit_datasets([root]).problems == 3


def test_faults_of_the_class_list_are_reported(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        Image.new("L", (8, 8), 255).save(tmp_path / folder / "a.png")
    (tmp_path / "labels.csv").write_text("image,label\na,benign\nb,benign\nb,odd\n")
    assert len(audit_datasets([tmp_path]).label_faults) == 2


def test_a_sound_data_set_has_no_problems(sound):
    audit = audit_datasets([sound])
    assert audit.problems == 0
    assert audit.images == {"benign": 4, "malignant": 4, "normal": 2}
    assert (audit.duplicate_groups, audit.duplicate_images) == (2, 4)  # the second frames
    assert audit.duplicate_share == pytest.approx(0.4)
    assert "no problems" in render(audit)


def test_a_copy_under_another_class_is_reported_as_such(root):
    copy_across_classes(root)
    ((first, second, correlation),) = audit_datasets([root]).cross_class
    assert (first, second) == ("benign/benign (1).png", "malignant/copy.png")
    assert correlation == pytest.approx(1)


def test_the_dictionary_is_ready_for_json(root):
    cut(root)
    content = json.loads(json.dumps(audit_datasets([root]).to_dict()))
    assert content["problems"] == 1
    assert content["layout"] == "busi"


def test_several_sets_are_audited_as_one_with_their_names_and_what_they_share(root, tmp_path):
    other = tmp_path / "other"
    image = root / "benign" / "benign (1).png"
    for folder, pixels in (("images", image), ("masks", image.with_stem("benign (1)_mask"))):
        (other / folder).mkdir(parents=True)
        shutil.copy(pixels, other / folder / "a.png")
    (other / "labels.csv").write_text("image,label,patient\na,benign,p\n")
    audit = audit_datasets([root, other])
    assert audit.identical == (("set/benign/benign (1).png", "other/images/a.png"),)
    assert audit.problems == 1
    assert [pair[:2] for pair in audit.cross_patient] == [
        ("set/benign/benign (1).png", "other/images/a.png")
    ]
    assert (audit.patients, audit.groups) == (1, audit_datasets([root]).groups)
    assert "patients: 1" in render(audit)
