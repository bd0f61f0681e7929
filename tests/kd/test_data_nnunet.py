"""nnU-Net's raw data in 2-D, as pictures and as NIfTI, or refused by their code."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.cli.jobs.parts import reader_of
from edgeseg.kd.data.audit import audit_datasets
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.kd.data.nifti import read_nifti_image
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import EdgesegError, EngineError

SHAPE = (6, 8)
PICTURE = np.arange(48, dtype=np.uint8).reshape(SHAPE)


def numbers(*row: int) -> np.ndarray:
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[1, : len(row)] = row
    return pixels


def save(path: Path, pixels: np.ndarray) -> None:
    """Write [H, W] as a picture, or as a slice of NIfTI in its order of axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
        return
    nibabel = pytest.importorskip("nibabel", reason="no nibabel; make install brings it")
    volume = pixels.T[:, :, None]
    nibabel.Nifti1Image(volume, np.diag([-0.1, -0.1, 1, 1])).to_filename(path)


def table(ending: str, **labels: object) -> dict:
    return {"channel_names": {"0": "US"}, "labels": labels, "file_ending": ending}


def make(root: Path, content: dict, ending: str = ".png", half: str = "Tr", *row: int) -> Path:
    save(root / f"images{half}" / f"case_1_0000{ending}", PICTURE)
    save(root / f"labels{half}" / f"case_1{ending}", numbers(*(row or (1,))))
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def read_masks(root: Path) -> None:
    for sample in read_dataset(root).samples:
        sample.read_mask()


def code_of(root: Path) -> str:
    with pytest.raises(EdgesegError) as caught:
        read_masks(root)
    assert "\n" not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("ending", [".png", ".nii.gz", ".nii"])
def test_a_case_is_read_alike_from_a_picture_and_from_nifti(ending, tmp_path):
    content = table(ending, background=0, tumour=1)
    (sample,) = read_dataset(make(tmp_path, content, ending)).samples
    assert sample.label == "lesion"
    np.testing.assert_array_equal(sample.read_image(), PICTURE)
    np.testing.assert_array_equal(sample.read_mask(), numbers(1) > 0)
    np.testing.assert_array_equal(reader_of([sample], InputContract())(sample.image), PICTURE)
    assert audit_datasets([tmp_path]).problems == 0


def test_the_first_version_has_numbers_for_names_and_no_ending(tmp_path):
    content = {"modality": {"0": "US"}, "labels": {"0": "background", "1": "malignant"}}
    (sample,) = read_dataset(make(tmp_path, content, ".nii.gz")).samples
    assert sample.label == "malignant"


def test_names_say_what_is_lesion_or_the_table_does(tmp_path):
    content = table(".png", background=0, benign=1, shadow=2)
    root = make(tmp_path, content, ".png", "Tr", 1, 2)
    assert code_of(root) == "E-DATA-CLASSES"
    (root / "classes.csv").write_text("class,label\nbenign,benign\nshadow,background\n")
    (sample,) = read_dataset(root).samples
    assert (sample.label, int(sample.read_mask().sum())) == ("benign", 1)


def test_what_is_to_be_ignored_is_refused(tmp_path):
    content = table(".png", background=0, lesion=1, ignore=2)
    assert code_of(make(tmp_path, content, ".png", "Tr", 1, 2)) == "E-DATA-VOID"


def test_cases_of_ts_with_labels_are_the_test_part_and_without_they_are_left_out(tmp_path):
    content = table(".png", background=0, lesion=1)
    root = make(make(tmp_path, content), content, ".png", "Ts")
    assert [(s.name, s.part) for s in read_dataset(root).samples] == [
        ("imagesTr/case_1_0000.png", "train"),
        ("imagesTs/case_1_0000.png", "test"),
    ]
    (root / "labelsTs" / "case_1.png").unlink()
    (root / "labelsTs").rmdir()
    assert [(s.name, s.part) for s in read_dataset(root).samples] == [
        ("imagesTr/case_1_0000.png", "")
    ]


@pytest.mark.parametrize(
    "content",
    [
        {"labels": [1]},
        {"file_ending": ".png"},
        table(".png", background=0, whole=[1, 2]),
        table(".png", background=0, a=1, b=1),
    ],
    ids=["a list", "no labels", "region", "two of one number"],
)
def test_a_table_that_cannot_be_used_is_refused(content, tmp_path):
    root = make(tmp_path, {"file_ending": ".png", **content})
    assert code_of(root) == "E-DATA-ANNOTATION"


@pytest.mark.parametrize("name", ["case_1_0001.png", "case_1.png"])
def test_a_second_channel_or_none_is_refused(name, tmp_path):
    root = make(tmp_path, table(".png", background=0, lesion=1))
    save(root / "imagesTr" / name, PICTURE)
    assert code_of(root) == "E-DATA-ANNOTATION"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def no_nifti(path: Path) -> None:
    path.write_bytes(gzip.compress(b"text" * 200))


def two_slices(path: Path) -> None:
    import nibabel

    nibabel.Nifti1Image(np.zeros((8, 6, 2), np.uint8), np.eye(4)).to_filename(path)


def deep(path: Path) -> None:
    import nibabel

    nibabel.Nifti1Image(np.full((8, 6), 300, np.int16), np.eye(4)).to_filename(path)


def fractions(path: Path) -> None:
    import nibabel

    nibabel.Nifti1Image(np.full((8, 6), 0.5, np.float32), np.eye(4)).to_filename(path)


def not_finite(path: Path) -> None:
    import nibabel

    nibabel.Nifti1Image(np.full((8, 6), np.nan, np.float32), np.eye(4)).to_filename(path)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (truncated, "E-IMAGE-READ"),
        (no_nifti, "E-IMAGE-READ"),
        (two_slices, "E-IMAGE-FRAMES"),
        (deep, "E-IMAGE-MODE"),
        (fractions, "E-IMAGE-MODE"),
        (not_finite, "E-IMAGE-READ"),
    ],
)
def test_nifti_that_is_no_8_bit_slice_is_refused(damage, code, tmp_path):
    root = make(tmp_path, table(".nii.gz", background=0, lesion=1), ".nii.gz")
    damage(root / "imagesTr" / "case_1_0000.nii.gz")
    assert code_of(root) == code


def test_a_mask_of_fractions_is_refused(tmp_path):
    root = make(tmp_path, table(".nii.gz", background=0, lesion=1), ".nii.gz")
    fractions(root / "labelsTr" / "case_1.nii.gz")
    assert code_of(root) == "E-MASK-VALUES"


def test_nifti_without_nibabel_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(EngineError, match=r"pip install 'edgeseg\[nifti\]'") as caught:
        read_nifti_image(tmp_path / "a.nii.gz")
    assert caught.value.code == "E-EXTRA-MISSING"
