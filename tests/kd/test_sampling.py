"""What an epoch consists of: weights of images, crops without lesion, frames that show nothing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

import edgeseg.kd.fit as fitting
from edgeseg.kd.checkpoint import read_tensors
from edgeseg.kd.config import TrainConfig, set_weights_of
from edgeseg.kd.data.split import make_split
from edgeseg.kd.frames import CROP, EMPTY, IMAGE, PHANTOM, FrameSet, draw_batch, load_frames
from edgeseg.kd.negatives import MAX_ASPECT, MAX_GREY, draw_empty, lesion_free_box
from edgeseg.kd.sampling import Sampling, epochs_of, require_drawable, sampling_of
from edgeseg.kd.train import train
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.runtime.progress import quiet

CPU = torch.device("cpu")
CONTRACT = InputContract(height=32, width=32)
SHORT = TrainConfig(
    size=32, student="attunet-8", teacher="attunet-8", teaching="none", student_epochs=2, batch=8
)
NEGATIVES = Sampling(crop_share=0.2, empty_share=0.1)


def frames_of(labels, kinds=None, sets=None):
    count = len(labels)
    return FrameSet(
        names=tuple(f"image {row}" for row in range(count)),
        images=torch.full((count, 1, 32, 32), 99, dtype=torch.uint8),
        masks=torch.zeros(count, 1, 32, 32, dtype=torch.bool),
        labels=np.array(labels),
        kinds=np.array(kinds or [IMAGE] * count),
        sets=None if sets is None else np.array(sets),
    )


def drawn(frames, sampling, epochs=10, seed=0, first=0):
    return list(islice(epochs_of(frames, sampling, seed, first), epochs))


def count_rows(frames, sampling, epochs=10):
    return Counter(row for rows, _ in drawn(frames, sampling, epochs) for row in rows.tolist())


@pytest.fixture(scope="module")
def with_negatives(dataset):
    return load_frames(dataset.samples, 32, CPU, quiet, "", crops=True, empty=True)


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(set_weights={"a": 1.0})])
def test_with_weights_of_1_an_epoch_is_the_permutation_of_its_seed(sampling):
    frames = frames_of(["benign", "normal"] * 8, sets=["a", "b"] * 8)
    for epoch, (rows, views) in enumerate(drawn(frames, sampling, 3, seed=7)):
        assert np.array_equal(rows, np.random.default_rng([7, epoch]).permutation(16))
        assert np.all(views == epoch)


def test_an_image_of_weight_3_is_drawn_three_times_as_often():
    frames = frames_of(["normal"] + ["benign"] * 7)
    counts = count_rows(frames, Sampling(normal_weight=3.0), epochs=100)
    assert counts[0] == pytest.approx(3 / 10 * 800, abs=100 * 0.5)
    assert counts[0] / np.mean([counts[row] for row in range(1, 8)]) == pytest.approx(3, rel=0.05)


def test_images_of_a_data_set_of_weight_3_are_drawn_three_times_as_often():
    frames = frames_of(["benign"] * 8, sets=["a"] * 4 + ["b"] * 4)
    counts = count_rows(frames, Sampling(set_weights={"b": 3.0}), epochs=50)
    of_b = sum(counts[row] for row in range(4, 8))
    assert of_b == pytest.approx(3 / 4 * 400, rel=0.03)


def test_weights_by_class_and_data_set_multiply():
    frames = frames_of(["benign", "benign", "normal", "normal"], sets=["a", "b", "a", "b"])
    counts = count_rows(frames, Sampling(normal_weight=2.0, set_weights={"b": 3.0}), epochs=300)
    shares = np.array([counts[row] for row in range(4)]) / 1200
    assert shares == pytest.approx(np.array([1, 3, 2, 6]) / 12, abs=0.02)


def test_no_image_is_missed_that_is_expected_once():
    frames = frames_of(["benign"] * 12 + ["normal"] * 2)
    for rows, _ in drawn(frames, Sampling(normal_weight=0.25), 20):
        assert len(rows) == 14
        assert set(range(12)) <= set(rows.tolist())  # each is expected 14 / 12.5 times


def test_shares_are_those_of_the_draws():
    kinds = [IMAGE] * 10 + [CROP] * 4 + [EMPTY]
    frames = frames_of(["benign"] * 10 + ["normal"] * 5, kinds)
    counts = count_rows(frames, NEGATIVES, epochs=100)
    of_kind = [sum(counts[row] for row in rows) for rows in (range(10), range(10, 14), (14,))]
    assert of_kind == pytest.approx([700, 200, 100], abs=15)


def test_weight_of_normal_images_does_not_change_the_share_of_negatives():
    kinds = [IMAGE] * 10 + [CROP] * 4 + [EMPTY]
    frames = frames_of(["benign"] * 5 + ["normal"] * 10, kinds)
    counts = count_rows(frames, replace(NEGATIVES, normal_weight=9.0), epochs=100)
    assert sum(counts[row] for row in range(10)) == pytest.approx(700, abs=15)


def test_a_row_is_never_drawn_twice_as_the_same_view():
    frames = frames_of(["normal"] * 2 + ["benign"] * 6)
    draws = [
        pair
        for rows, views in drawn(frames, Sampling(normal_weight=4.0))
        for pair in zip(rows.tolist(), views.tolist(), strict=True)
    ]
    assert len(set(draws)) == len(draws) == 80
    for row in range(8):
        views = [view for other, view in draws if other == row]
        assert sorted(views) == list(range(len(views)))


def test_epochs_from_the_middle_are_those_of_the_whole():
    frames = frames_of(["normal"] * 2 + ["benign"] * 6)
    sampling = Sampling(normal_weight=2.5)
    whole, rest = drawn(frames, sampling, 6), drawn(frames, sampling, 2, first=4)
    for ours, theirs in zip(rest, whole[4:], strict=True):
        assert np.array_equal(ours, theirs)


def test_settings_become_the_sampling():
    config = replace(SHORT, normal_weight=2.0, set_weights="busi=1.5,bus-bra=0.5", crop_share=0.1)
    assert sampling_of(config) == Sampling(2.0, {"busi": 1.5, "bus-bra": 0.5}, 0.1, 0.0)
    assert sampling_of(TrainConfig()) == Sampling()


@pytest.mark.parametrize(
    "values",
    [
        {"normal_weight": 0.0},
        {"normal_weight": float("nan")},
        {"crop_share": -0.1},
        {"empty_share": -0.1},
        {"phantom_share": -0.1},
        {"crop_share": 0.4, "empty_share": 0.4, "phantom_share": 0.2},
        {"crop_share": 0.5, "empty_share": 0.5},
        {"crop_share": float("nan")},
        *({"set_weights": text} for text in ("busi", "busi=", "=1", "busi=0", "busi=-1", "a=inf")),
        *({"set_weights": text} for text in ("a=nan", "a=1,a=2", "a=1;b=2", "a=1, ")),
    ],
)
def test_sampling_out_of_range_is_refused(values):
    with pytest.raises(InputError) as caught:
        replace(SHORT, **values)
    assert caught.value.code == "E-CONFIG"


def test_weights_of_no_data_set_are_none():
    assert set_weights_of("") == {}


@pytest.mark.parametrize("sets", [None, ["a"] * 4])
def test_weight_of_a_data_set_that_is_not_there_is_refused(sets):
    with pytest.raises(InputError, match="'b'") as caught:
        require_drawable(Sampling(set_weights={"b": 2.0}), frames_of(["benign"] * 4, sets=sets))
    assert caught.value.code == "E-CONFIG"


def test_weight_of_a_data_set_that_is_not_there_is_refused_before_the_run(dataset, tmp_path):
    with pytest.raises(InputError) as caught:
        train(dataset, tmp_path / "run", replace(SHORT, set_weights="elsewhere=2"), device="cpu")
    assert caught.value.code == "E-CONFIG"
    assert not (tmp_path / "run").exists()


def test_crops_of_images_without_room_for_one_are_refused():
    with pytest.raises(InputError, match="room") as caught:
        require_drawable(Sampling(crop_share=0.1), frames_of(["benign"] * 4))
    assert caught.value.code == "E-CONFIG"


# --- crops ---------------------------------------------------------------------------------------


def masks_at_random(count):
    random = np.random.default_rng(0)
    for _ in range(count):
        mask = np.zeros(random.integers(20, 200, 2), bool)
        for _ in range(random.integers(1, 4)):
            top, left = (random.integers(0, side) for side in mask.shape)
            tall, wide = (random.integers(1, side // 2) for side in mask.shape)
            mask[top : top + tall, left : left + wide] = True
        yield mask


def test_crops_never_hold_a_pixel_of_a_lesion_and_keep_away_from_it():
    found = 0
    for mask in masks_at_random(500):
        box = lesion_free_box(mask)
        if box is None:
            continue
        found += 1
        part = mask[box]
        assert part.size
        assert not part.any()
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        gaps = [rows[0] - box[0].stop, box[0].start - rows[-1] - 1]
        gaps = [gap / mask.shape[0] for gap in gaps] + [
            gap / mask.shape[1]
            for gap in (columns[0] - box[1].stop, box[1].start - columns[-1] - 1)
        ]
        assert max(gaps) >= 0.04
        assert max(part.shape) <= MAX_ASPECT * min(part.shape) + 1e-9
    assert found > 100


def test_crop_is_the_largest_box_beside_the_lesion():
    mask = np.zeros((100, 100), bool)
    mask[60:70, 10:20] = True  # right of it are 76 columns, above it 56 rows
    assert lesion_free_box(mask) == (slice(0, 100), slice(24, 100))


def test_long_crop_is_cut_to_its_middle():
    mask = np.zeros((100, 300), bool)
    mask[50:60, 10:290] = True  # 46 rows above it; 2.2 times 46 is 101
    assert lesion_free_box(mask) == (slice(0, 46), slice(99, 200))


def test_lesion_that_leaves_no_room_has_no_crop():
    mask = np.zeros((100, 100), bool)
    mask[30:70, 30:70] = True  # 26 px are left on each side
    assert lesion_free_box(mask) is None


def test_crops_are_cut_from_lesion_images_at_their_own_resolution(dataset, with_negatives):
    rows = np.flatnonzero(with_negatives.kinds == CROP)
    assert len(rows) > 5
    samples = {sample.name: sample for sample in dataset.samples}
    for row in rows:
        sample = samples[with_negatives.names[row].removesuffix(" crop")]
        assert sample.label != "normal"
        assert with_negatives.labels[row] == "normal"
        box = lesion_free_box(sample.read_mask())
        part = sample.read_image()[box]
        assert part.mean() == pytest.approx(with_negatives.images[row].float().mean(), abs=2)
    assert not with_negatives.masks[rows].any()


def test_images_are_the_same_with_negatives_and_without(dataset, with_negatives):
    plain = load_frames(dataset.samples, 32, CPU, quiet, "")
    kept = with_negatives.images_only()
    assert kept.names == plain.names
    assert kept.image_count == len(plain.names) == with_negatives.image_count
    assert torch.equal(kept.images, plain.images)
    assert torch.equal(kept.masks, plain.masks)


def test_class_teachers_see_no_negatives(with_negatives):
    assert set(with_negatives.of_classes("benign").kinds) == {IMAGE}


# --- frames that show nothing --------------------------------------------------------------------


def test_empty_frames_are_black_uniform_or_speckle():
    frames = [draw_empty(seed, 64) for seed in range(200)]
    spreads = np.array([float(frame.std()) for frame in frames])
    flat = [frame for frame in frames if float(frame.std()) < 1e-6]
    black = [frame for frame in flat if frame.max() == 0]
    assert 25 < len(black) < 75
    assert 25 < len(flat) - len(black) < 75
    assert max(frame.max() for frame in flat) <= MAX_GREY
    assert (spreads > 0.005).sum() == 200 - len(flat)
    for frame in frames:
        assert frame.shape == (1, 64, 64)
        assert 0 <= frame.min() <= frame.max() <= 1


def test_empty_frame_is_that_of_its_seed():
    assert torch.equal(draw_empty(5, 32), draw_empty(5, 32))
    assert len({draw_empty(seed, 32).numpy().tobytes() for seed in range(40)}) > 25


def test_negatives_have_empty_masks_and_no_teacher(with_negatives):
    rows = np.flatnonzero(with_negatives.kinds != IMAGE)
    batch = draw_batch(with_negatives, rows, 0, 0, CONTRACT)
    assert batch.truth.max() == 0
    assert set(batch.labels) == {""}
    lesion = np.flatnonzero(with_negatives.labels == "benign")[:2]
    assert set(draw_batch(with_negatives, lesion, 0, 0, CONTRACT).labels) == {"benign"}


def test_each_view_of_the_empty_frame_is_another(with_negatives):
    row = np.flatnonzero(with_negatives.kinds == EMPTY)
    batch = draw_batch(with_negatives, row.repeat(30), np.arange(30), 0, CONTRACT)
    assert len({image.numpy().tobytes() for image in batch.images}) > 15
    alone = draw_batch(with_negatives, row, 17, 0, CONTRACT)
    assert torch.equal(alone.images[0], batch.images[17])


# --- phantoms ------------------------------------------------------------------------------------


def test_phantoms_are_drawn_by_their_share_with_their_lesions_and_without_a_teacher(
    dataset, monkeypatch
):
    monkeypatch.setattr("edgeseg.kd.frames._PHANTOMS", 16)
    frames = load_frames(dataset.samples, 32, CPU, quiet, "", phantoms=True)
    phantoms = np.flatnonzero(frames.kinds == PHANTOM)
    marked = frames.masks[phantoms].flatten(1).any(dim=1)
    assert 2 * int(marked.sum()) == len(phantoms) > 0
    assert set(draw_batch(frames, phantoms[:8], 0, 0, CONTRACT).labels) == {""}
    assert set(frames.of_classes("benign", "malignant", "normal").kinds) == {IMAGE}
    rows = np.concatenate([rows for rows, _ in drawn(frames, Sampling(phantom_share=0.25))])
    assert np.mean(frames.kinds[rows] == PHANTOM) == pytest.approx(0.25, abs=0.01)


def test_settings_of_a_run_before_phantoms_were_drawn_are_read():
    values = json.loads(SHORT.to_json())
    del values["phantom_share"]
    assert TrainConfig.from_json(json.dumps(values)) == SHORT
    del values["crop_share"]
    with pytest.raises(InputError, match="has the keys"):
        TrainConfig.from_json(json.dumps(values))


# --- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampled(dataset, tmp_path_factory):
    """A run with weights and negatives, and what it drew."""
    config = replace(SHORT, normal_weight=2.0, crop_share=0.2, empty_share=0.1, views=1)
    config = replace(config, teaching="single", general_epochs=0, teacher_epochs=1)
    out = tmp_path_factory.mktemp("sampled") / "run"
    return train(dataset, out, config, split=make_split(dataset), device="cpu"), config


def test_run_with_weights_that_is_resumed_ends_with_the_same_bytes(dataset, sampled, tmp_path):
    whole, config = sampled
    copy = shutil.copytree(whole.parent, tmp_path / "run")
    (copy / "student.safetensors").unlink()
    saved = []

    def save_then_stop(*arguments):
        saved.append(arguments)
        real(*arguments)
        raise KeyboardInterrupt

    real = fitting._save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "_save", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            train(dataset, copy, config, resume=True, device="cpu")
    assert len(saved) == 1  # of two epochs
    train(dataset, copy, config, resume=True, device="cpu")
    ours, theirs = (read_tensors(run / "student.safetensors")[0] for run in (copy, whole.parent))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_provenance_counts_images_and_not_negatives(sampled):
    from edgeseg.kd.checkpoint import load_checkpoint
    from edgeseg.kd.data.split import read_split

    student, _ = sampled
    entries = read_split(student.parent / "split.json").entries
    provenance = load_checkpoint(student).provenance
    assert provenance["train_images"] == sum(entry.part == "train" for entry in entries)
