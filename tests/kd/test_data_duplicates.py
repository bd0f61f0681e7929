"""Near-duplicates: which images count as one, and which do not."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.kd.data.dataset import Sample, read_dataset
from edgeseg.kd.data.duplicates import (
    NearDuplicate,
    fingerprint,
    group_duplicates,
    groups_from_pairs,
    near_duplicates,
)
from edgeseg.kd.data.phantom import draw_phantom


def samples_from(folder: Path, *images: np.ndarray) -> list[Sample]:
    samples = []
    for index, image in enumerate(images):
        path = folder / f"{index}.png"
        Image.fromarray(image).save(path)
        samples.append(Sample(path.name, "normal", path, ()))
    return samples


@pytest.fixture(scope="module")
def frame():
    return draw_phantom("benign", 1, 0)[0]


def with_overlay(frame):
    marked = frame.copy()
    marked[100:103, 60:160] = 255
    marked[5:20, 5:60] = 230
    return marked


CHANGES = {
    "contrast": lambda frame: (frame * 0.6 + 20).astype(np.uint8),
    "overlay": with_overlay,
    "shift": lambda frame: np.ascontiguousarray(frame[4:, 5:]),
    "crop": lambda frame: np.ascontiguousarray(frame[: int(0.92 * len(frame)), 30:]),
    "size": lambda frame: np.asarray(Image.fromarray(frame).resize((300, 200))),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_is_in_the_group_of_its_original(tmp_path, frame, change):
    other = draw_phantom("benign", 2, 0)[0]
    assert group_duplicates(samples_from(tmp_path, frame, other, change(frame))) == (0, 1, 0)


def test_frames_of_different_lesions_are_in_different_groups(tmp_path):
    frames = [
        draw_phantom(label, n, 0)[0] for label in ("benign", "malignant") for n in range(5, 9)
    ]
    assert group_duplicates(samples_from(tmp_path, *frames)) == tuple(range(8))


def test_a_chain_of_pairs_is_one_group():
    chain = [(2, 3), (0, 3)]
    assert groups_from_pairs(5, chain) == (0, 1, 0, 0, 2)


def test_identical_images_correlate_at_one(tmp_path, frame):
    assert near_duplicates(samples_from(tmp_path, frame, frame)) == (
        NearDuplicate(0, 1, pytest.approx(1.0, abs=1e-5)),
    )


def test_a_fingerprint_has_zero_mean_and_unit_norm(frame):
    values = fingerprint(frame)
    assert values.dtype == np.float32
    assert values.shape == (48 * 48,)
    assert values.sum() == pytest.approx(0, abs=1e-4)
    assert np.linalg.norm(values) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("level", [0, 37, 255])
def test_a_constant_image_resembles_nothing(tmp_path, level):
    flat = np.full((60, 80), level, np.uint8)
    assert not fingerprint(flat).any()
    assert group_duplicates(samples_from(tmp_path, flat, flat)) == (0, 1)


def test_no_samples_have_no_groups():
    assert group_duplicates([]) == ()


def test_known_duplicates_of_busi_are_found_across_classes():
    root = os.environ.get("EDGESEG_BUSI")
    if not root:
        pytest.skip(
            "EDGESEG_BUSI names no folder; unpack the BUSI data set and name its folder there"
        )
    known = ("benign/benign (42).png", "malignant/malignant (51).png", "benign/benign (1).png")
    samples = {sample.name: sample for sample in read_dataset(Path(root)).samples}
    assert group_duplicates([samples[name] for name in known]) == (0, 0, 1)
