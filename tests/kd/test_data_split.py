"""Laws of the split: groups stay whole, classes keep their shares, changes are seen."""

import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.kd.data import split as split_module
from edgeseg.kd.data.dataset import Dataset, read_dataset, read_datasets
from edgeseg.kd.data.duplicates import with_groups
from edgeseg.kd.data.split import (
    PARTS,
    make_folds,
    make_split,
    read_split,
    samples_of,
    split_from_lists,
    write_split,
)
from edgeseg.runtime.errors import InputError


def make_dataset(root: Path, counts: dict[str, int]) -> Dataset:
    """Write unlike noise images; every fifth of a class is a darker copy of the one before."""
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for number in range(count):
            source = number - 1 if number % 5 == 4 else number
            rng = np.random.default_rng((source, *label.encode()))
            pixels = rng.integers(0, 256, (16, 16), np.uint8) // (1 if source == number else 2)
            image = Image.fromarray(pixels).resize((64, 64))
            image.save(root / label / f"{label} ({number + 1}).png")
            mask = Image.fromarray(np.eye(64, dtype=np.bool_))
            mask.save(root / label / f"{label} ({number + 1})_mask.png")
    return read_dataset(root)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(
        tmp_path_factory.mktemp("data") / "set", {"benign": 40, "malignant": 20, "normal": 10}
    )


@pytest.fixture(scope="module")
def split(dataset):
    return make_split(dataset)


def code_of(call, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    return caught.value.code


def test_no_group_crosses_parts(split):
    parts = defaultdict(set)
    for entry in split.entries:
        parts[entry.group].add(entry.part)
    assert len(parts) == 56  # 14 of the 70 are copies
    assert all(len(found) == 1 for found in parts.values())


def test_class_shares_follow_the_fractions(split):
    counts = Counter((entry.label, entry.part) for entry in split.entries)
    for label, total in (("benign", 40), ("malignant", 20), ("normal", 10)):
        for part, fraction in zip(PARTS, split.fractions, strict=True):
            assert abs(counts[label, part] - fraction * total) <= 1


def test_the_same_seed_gives_the_same_split_and_another_gives_another(dataset, split):
    assert make_split(dataset) == split
    assert make_split(dataset, seed=1) != split


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, "train"), (2, "train test"), (3, "train test val"), (4, "train train test val")],
)
def test_a_class_of_few_images_serves_train_then_test_then_val(tmp_path, count, expected):
    tiny = make_split(make_dataset(tmp_path / "tiny", {"benign": count, "normal": 3}))
    parts = [entry.part for entry in tiny.entries if entry.label == "benign"]
    assert sorted(parts) == sorted(expected.split())


def test_folds_test_every_image_once_and_never_cut_a_group(dataset):
    folds = make_folds(dataset, folds=5)
    tested = [entry.name for fold in folds for entry in fold.entries if entry.part == "test"]
    assert sorted(tested) == sorted(sample.name for sample in dataset.samples)
    for fold in folds:
        parts = defaultdict(set)
        for entry in fold.entries:
            parts[entry.group].add(entry.part)
        assert all(len(of_group) == 1 for of_group in parts.values())
        counts = Counter((entry.part, entry.label) for entry in fold.entries)
        for part, share in zip(PARTS, fold.fractions, strict=True):
            assert counts[part, "benign"] == pytest.approx(40 * share, abs=2)
    assert folds == make_folds(dataset, folds=5)
    assert folds != make_folds(dataset, folds=5, seed=1)


def test_a_single_fold_is_refused(dataset):
    with pytest.raises(InputError) as caught:
        make_folds(dataset, folds=1)
    assert caught.value.code == "E-SPLIT-FOLDS"


def test_a_part_of_fraction_zero_stays_empty(dataset):
    parts = Counter(entry.part for entry in make_split(dataset, fractions=(0.8, 0, 0.2)).entries)
    assert parts["val"] == 0
    assert parts["train"] == pytest.approx(56, abs=2)


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.1, 0.1), (1.2, -0.2, 0), (0, 0.5, 0.5), (float("nan"), 0.5, 0.5)]
)
def test_fractions_that_do_not_divide_are_refused(dataset, fractions):
    with pytest.raises(InputError) as caught:
        make_split(dataset, fractions=fractions)
    assert caught.value.code == "E-SPLIT-FRACTIONS"


def test_samples_of_a_part_bring_their_groups_and_so_do_those_without_a_split(split, dataset):
    found = [sample for part in PARTS for sample in samples_of(split, dataset, part)]
    groups = {entry.name: entry.group for entry in split.entries}
    assert {sample.name: sample.group for sample in found} == {
        name: f"group {group}" for name, group in groups.items()
    }
    again = {sample.name: sample.look for sample in with_groups(dataset.samples)}
    assert again == groups
    assert len({sample.group for sample in dataset.samples}) == len(dataset.samples)  # not sought


def test_a_split_file_reads_back_equal(split, tmp_path):
    write_split(split, tmp_path / "split.json")
    assert read_split(tmp_path / "split.json") == split


def test_the_parts_make_up_the_data_set(split, dataset):
    found = [sample for part in PARTS for sample in samples_of(split, dataset, part)]
    assert sorted(sample.name for sample in found) == sorted(s.name for s in dataset.samples)


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Write a set of patients; unlike `dataset` but for one image, and that only in its pixels."""
    root = tmp_path_factory.mktemp("data") / "second"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    lines = ["image,label,patient"]
    for number in range(40):
        pixels = np.random.default_rng((number, 7)).integers(0, 256, (16, 16), np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(root / "images" / f"{number}.png")
        Image.fromarray(np.eye(64, dtype=np.bool_)).save(root / "masks" / f"{number}.png")
        lines.append(f"{number},{'benign' if number < 24 else 'malignant'},p{number // 2}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


def test_no_patient_crosses_parts_in_splits_folds_or_groups(second):
    dataset = read_dataset(second)
    patients = {sample.name: sample.patient for sample in dataset.samples}
    for made in (make_split(dataset), *make_folds(dataset, folds=2)):
        parts = defaultdict(set)
        for entry in made.entries:
            parts[patients[entry.name]].add(entry.part)
        assert len(parts) == 20
        assert all(len(found) == 1 for found in parts.values())
    groups = {(sample.patient, sample.group) for sample in with_groups(dataset.samples)}
    assert len(groups) == 20


def parts_of(split, source):
    """Return part by name in its set."""
    return {
        entry.name.removeprefix(f"{source}/"): entry.part
        for entry in split.entries
        if entry.source == source
    }


def test_sets_that_share_nothing_are_split_together_as_they_are_alone(dataset, second):
    both = read_datasets([dataset.members[0].root, second])
    together = make_split(both)
    assert parts_of(together, "set") == parts_of(make_split(dataset), "")
    assert parts_of(together, "second") == parts_of(make_split(read_dataset(second)), "")


def test_near_duplicates_across_sets_stay_in_one_part(dataset, second, tmp_path):
    copy = tmp_path / "copy"
    (copy / "benign").mkdir(parents=True)
    originals = [sample for sample in dataset.samples if sample.label == "benign"][:10]
    for number, sample in enumerate(originals):
        darker = Image.fromarray(sample.read_image() // 2 + 20)
        darker.save(copy / "benign" / f"{number}.png")
        Image.fromarray(sample.read_mask()).save(copy / "benign" / f"{number}_mask.png")
    split = make_split(read_datasets([dataset.members[0].root, copy]))
    of_set, of_copy = parts_of(split, "set"), parts_of(split, "copy")
    for number, sample in enumerate(originals):
        assert of_copy[f"benign/{number}.png"] == of_set[sample.name]


def test_a_split_of_several_sets_reads_back_equal_and_is_for_those_sets_only(
    dataset, second, tmp_path
):
    root = dataset.members[0].root
    both = read_datasets([root, second])
    split = make_split(both)
    write_split(split, tmp_path / "split.json")
    assert read_split(tmp_path / "split.json") == split
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["schema"] == "edgeseg.split/2"
    assert content["layouts"] == {"second": "plain", "set": "busi"}
    assert {entry["set"] for entry in content["entries"]} == {"second", "set"}
    named = read_datasets([Path(f"other={root}"), second])
    for given in (dataset, named):
        assert code_of(samples_of, split, given, "train") == "E-SPLIT-SETS"
    assert code_of(samples_of, make_split(dataset), both, "train") == "E-SPLIT-SETS"
    assert len(samples_of(split, both, "train")) == sum(e.part == "train" for e in split.entries)


def test_a_split_of_one_set_has_the_fields_it_always_had(split, tmp_path):
    write_split(split, tmp_path / "split.json")
    content = json.loads((tmp_path / "split.json").read_text())
    assert content["schema"] == "edgeseg.split/1"
    assert list(content) == ["schema", "seed", "fractions", "layout", "tool_version", "entries"]
    assert list(content["entries"][0]) == [
        *("name", "label", "group", "part"),
        *("image_sha256", "mask_sha256"),
    ]


def change_field(name, value):
    return lambda content: content.update({name: value})


def change_entry(name, value):
    return lambda content: content["entries"][0].update({name: value})


def leak(content):
    first = content["entries"][0]
    other = next(entry for entry in content["entries"] if entry["part"] != first["part"])
    other["group"] = first["group"]


@pytest.mark.parametrize(
    "damage",
    [
        change_field("schema", "edgeseg.split/2"),
        change_field("seed", "0"),
        change_field("seed", True),
        change_field("fractions", [0.7, 0.3]),
        change_field("fractions", [0.7, 0.1, 7]),
        change_field("entries", {}),
        change_field("entries", [1]),
        change_field("extra", 1),
        change_entry("part", "exam"),
        change_entry("label", ["benign"]),
        change_entry("group", 1.5),
        change_entry("mask_sha256", "ab"),
        change_entry("name", 3),
        lambda content: content["entries"].append(content["entries"][0]),
        leak,
    ],
)
def test_a_damaged_split_file_is_refused(split, tmp_path, damage):
    path = tmp_path / "split.json"
    write_split(split, path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    assert code_of(read_split, path) == "E-SPLIT-READ"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]"])
def test_a_file_that_is_no_split_is_refused(tmp_path, content):
    (tmp_path / "split.json").write_bytes(content)
    assert code_of(read_split, tmp_path / "split.json") == "E-SPLIT-READ"


def test_a_missing_or_too_large_split_file_is_refused(split, tmp_path, monkeypatch):
    assert code_of(read_split, tmp_path / "none.json") == "E-SPLIT-READ"
    write_split(split, tmp_path / "split.json")
    monkeypatch.setattr(split_module, "MAX_SPLIT_BYTES", 100)
    assert code_of(read_split, tmp_path / "split.json") == "E-SPLIT-READ"


def append_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize("damage", [append_byte, Path.unlink])
@pytest.mark.parametrize("suffix", ["", "_mask"])
def test_a_changed_or_missing_file_is_seen_in_its_part_only(tmp_path, damage, suffix):
    root = tmp_path / "set"
    before = make_dataset(root, {"normal": 3})
    split = make_split(before)
    name = samples_of(split, before, "train")[0].name
    damage((root / name).with_name(f"{Path(name).stem}{suffix}.png"))
    after = read_dataset(root)
    assert code_of(samples_of, split, after, "train") == "E-SPLIT-MISMATCH"
    assert len(samples_of(split, after, "test")) == 1


def test_an_unknown_part_is_refused(split, dataset):
    assert code_of(samples_of, split, dataset, "exam") == "E-SPLIT-PART"


# --- lists ---------------------------------------------------------------------------------------


def lists_of(folder: Path, **images: list[str]) -> list[Path]:
    for part, names in images.items():
        (folder / f"{part}.txt").write_text("# names\n\n" + "\n".join(names) + "\n")
    return [folder / f"{part}.txt" for part in images]


def test_lists_give_the_parts_and_what_they_tear_is_counted(dataset, tmp_path):
    # the fifth benign image is a copy of the fourth
    lists = lists_of(
        tmp_path,
        train=["benign/benign (4).png", "benign (1)", "malignant (1).png"],
        val=["benign (2).png"],
        test=["some/where/benign (5).png"],
    )
    split = split_from_lists(dataset, lists)
    assert {entry.name: entry.part for entry in split.entries} == {
        "benign/benign (1).png": "train",
        "benign/benign (2).png": "val",
        "benign/benign (4).png": "train",
        "benign/benign (5).png": "test",
        "malignant/malignant (1).png": "train",
    }
    assert split.torn_groups == 1
    assert "tears 1 groups" in split.leak
    write_split(split, tmp_path / "split.json")
    assert read_split(tmp_path / "split.json") == split
    assert [s.name for s in samples_of(split, dataset, "test")] == ["benign/benign (5).png"]
    assert make_split(dataset).leak == ""


def test_a_list_that_tears_a_patient_says_so(second, tmp_path):
    lists = lists_of(tmp_path, train=["0"], val=["1"])
    assert split_from_lists(read_dataset(second), lists).torn_groups == 1


def test_a_count_of_torn_groups_that_is_not_true_is_refused(dataset, tmp_path):
    lists = lists_of(tmp_path, train=["benign (4)"], val=["benign (5)"])
    write_split(split_from_lists(dataset, lists), tmp_path / "split.json")
    content = json.loads((tmp_path / "split.json").read_text())
    (tmp_path / "split.json").write_text(json.dumps({**content, "torn_groups": 0}))
    assert code_of(read_split, tmp_path / "split.json") == "E-SPLIT-READ"


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (["benign (1)", "benign (999)"], ["benign (2)"]),
        (["benign (1)"], ["benign (1).png"]),
        (["benign (1)", "benign (1)"], []),
        ([], ["benign (1)"]),
    ],
    ids=["unknown", "in two", "twice", "nothing to train on"],
)
def test_a_list_that_cannot_be_followed_is_refused(dataset, tmp_path, train, val):
    lists = lists_of(tmp_path, train=train, val=val)
    assert code_of(split_from_lists, dataset, lists) == "E-SPLIT-LIST"


def test_a_name_that_may_be_two_images_is_refused(dataset, second, tmp_path):
    both = read_datasets([second, dataset.members[0].root])
    twice = replace(both, samples=(*both.samples, *read_dataset(second).samples))
    lists = lists_of(tmp_path, train=["3.png"], val=[])
    assert code_of(split_from_lists, twice, lists) == "E-SPLIT-LIST"
    assert code_of(split_from_lists, both, [tmp_path / "no.txt"]) == "E-SPLIT-LIST"
