"""Phantom frames: the same for the same seed, valid, and with the traits the tools look for."""

import numpy as np
import pytest

from edgeseg.kd.data.duplicates import near_duplicates
from edgeseg.kd.data.phantom import draw_all, draw_phantom, write_phantoms
from edgeseg.runtime.errors import InputError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_phantoms(tmp_path_factory.mktemp("phantoms") / "set", count=20)


def test_classes_have_their_shares(dataset):
    labels = [sample.label for sample in dataset.samples]
    assert [labels.count(label) for label in ("benign", "malignant", "normal")] == [9, 8, 3]


def test_every_frame_is_readable_and_only_lesions_are_marked(dataset):
    for sample in dataset.samples:
        image, mask = sample.read_image(), sample.read_mask()
        assert image.shape == mask.shape
        assert 240 <= image.shape[0] <= 400
        assert 300 <= image.shape[1] <= 480
        assert mask.any() == (sample.label != "normal")
        assert mask.mean() < 0.4


def test_lesions_are_darker_than_their_frame(dataset):
    for sample in dataset.samples:
        image, mask = sample.read_image(), sample.read_mask()
        assert sample.label == "normal" or image[mask].mean() < 0.8 * image[~mask].mean()


def test_some_benign_frames_have_two_lesions():
    assert any(len(draw_phantom("benign", number, 0)[1]) == 2 for number in range(21, 31))


def test_only_second_frames_are_near_duplicates(dataset):
    pairs = near_duplicates(dataset.samples)
    names = [(dataset.samples[p.first].name, dataset.samples[p.second].name) for p in pairs]
    assert names == [
        ("benign/benign (3).png", "benign/benign (4).png"),
        ("malignant/malignant (3).png", "malignant/malignant (4).png"),
    ]


def test_a_frame_depends_on_seed_class_and_number_only(dataset, tmp_path):
    fewer = write_phantoms(tmp_path / "fewer", count=3)
    by_name = {sample.name: sample for sample in dataset.samples}
    for sample in fewer.samples:
        assert sample.image.read_bytes() == by_name[sample.name].image.read_bytes()
    assert not np.array_equal(draw_phantom("benign", 1, 0)[0], draw_phantom("benign", 1, 1)[0])


def test_frames_drawn_by_all_cores_are_in_order_and_those_of_one():
    chosen = [("normal", 2), ("benign", 4), ("malignant", 1), ("benign", 3)]
    for (label, number), (image, masks) in zip(chosen, draw_all(chosen, 5), strict=True):
        alone, its_masks = draw_phantom(label, number, 5)
        assert np.array_equal(image, alone)
        assert np.array_equal(masks, its_masks)


def test_an_existing_folder_and_an_empty_set_are_refused(dataset, tmp_path):
    for out, count, code in (
        (dataset.members[0].root, 1, "E-OUT-EXISTS"),
        (tmp_path / "new", 0, "E-PHANTOM-COUNT"),
    ):
        with pytest.raises(InputError) as caught:
            write_phantoms(out, count=count)
        assert caught.value.code == code
    assert not (tmp_path / "new").exists()
