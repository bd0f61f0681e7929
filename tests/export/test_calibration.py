"""The record of a calibration: what it keeps, and when it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeseg.cli.jobs import phantoms as phantoms_job
from edgeseg.cli.jobs.calibrating import CalibrationRequest, frames_for_export
from edgeseg.cli.jobs.sources import checkpoint_of
from edgeseg.export.calibration import (
    METHOD,
    SCHEMA,
    CalibrationSet,
    calibrate,
    parse_calibration,
    read_calibration,
)
from edgeseg.export.graph import activations_of, measured_of
from edgeseg.export.pipeline import load_trained, read_calibration_frames
from edgeseg.export.ranges import METHODS
from edgeseg.kd.data.split import read_split
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.files import sha256_of_file
from edgeseg.runtime.image import input_from_frame, read_image


@pytest.fixture(scope="module")
def trained(run: Path):
    return load_trained(run / "student.safetensors")


@pytest.fixture(scope="module")
def master(trained):
    return trained.to_onnx()


@pytest.fixture(scope="module")
def train_images(phantoms: Path, run: Path):
    """Files of the train part, with their class."""
    entries = [e for e in read_split(run / "split.json").entries if e.part == "train"]
    files = {sha256_of_file(path): path for path in phantoms.rglob("*.png")}
    return [(files[entry.image_sha256], entry.label) for entry in entries]


@pytest.fixture(scope="module")
def record(trained, master, train_images):
    images, labels = zip(*train_images, strict=True)
    frames = read_calibration_frames(images, 3, read_image, labels=labels)
    return calibrate(trained.sha256, trained.contract, master, frames)


@pytest.fixture
def file(record, tmp_path: Path):
    path = tmp_path / "ranges.json"
    path.write_text(record.to_json(), encoding="utf-8")
    return path


@pytest.fixture
def few_phantoms(monkeypatch):
    """Draw 10 phantoms instead of 160, which only the golden vectors need here."""
    monkeypatch.setattr(phantoms_job, "COUNT", 10)


def rewrite(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# --- what a record holds -------------------------------------------------------------------------


def test_record_reads_back_as_it_was_written(file, record, trained, master):
    again = read_calibration(file, trained.sha256, trained.contract, master)
    assert again == record
    assert again.to_json() == file.read_text()


def test_same_frames_give_the_same_bytes(record, trained, master, train_images):
    images, labels = zip(*train_images, strict=True)
    frames = read_calibration_frames(images, 3, read_image, labels=labels)
    assert calibrate(trained.sha256, trained.contract, master, frames).to_json() == record.to_json()


def test_record_has_every_range_by_every_method_and_the_largest_of_every_activation(record, master):
    graph = onnx.load_model_from_string(master).graph
    assert record.amax.keys() == METHODS.keys()
    assert METHOD in record.amax
    for ranges in record.amax.values():
        assert ranges.keys() == measured_of(graph)
        assert all(0 < ranges[name] <= max(record.largest[name], 1.0) for name in ranges)
    assert record.largest.keys() == set(activations_of(graph))
    assert record.amax["min-max"]["image"] == record.largest["image"]


def test_record_names_its_frames_and_counts_their_classes(file, record, train_images):
    classes = dict.fromkeys(("benign", "malignant", "normal"), 0)
    label_of = {sha256_of_file(path): label for path, label in train_images}
    assert len(record.frames_sha256) == len(set(record.frames_sha256)) == 3
    for frame in record.frames_sha256:
        classes[label_of[frame]] += 1
    assert record.origin["classes"] == {name: count for name, count in classes.items() if count}
    assert record.origin["source"] == "split of the run"
    assert parse_calibration(file).frames_sha256 == record.frames_sha256


def test_classes_are_counted_after_the_draw_and_in_order_of_their_names(train_images):
    images = [path for path, _ in train_images][:5]
    frames = read_calibration_frames(images, 99, read_image, labels=["b", "a", "b", "c", "b"])
    assert list(frames.origin["classes"].items()) == [("a", 1), ("b", 3), ("c", 1)]
    two = read_calibration_frames(images, 2, read_image, labels=["b", "a", "b", "c", "b"])
    assert sum(two.origin["classes"].values()) == 2
    assert read_calibration_frames(images, 2, read_image).origin["classes"] == {}


def test_one_frame_of_one_grey_has_the_range_that_the_contract_gives_it(trained, master):
    frame = np.full((64, 64), 255, np.uint8)
    images = CalibrationSet((frame,), ("0" * 64,), {"source": "a test"})
    found = calibrate(trained.sha256, trained.contract, master, images)
    white = (1 - trained.contract.mean) / trained.contract.std
    assert input_from_frame(frame, trained.contract).max() == pytest.approx(white)
    assert found.largest["image"] == pytest.approx(white)


def test_calibration_without_frames_is_refused(trained, master):
    with pytest.raises(InputError) as caught:
        calibrate(trained.sha256, trained.contract, master, CalibrationSet((), (), {}))
    assert caught.value.code == "E-CALIB-EMPTY"


def test_frames_are_read_when_they_are_asked_for_and_not_before(train_images):
    asked = []

    def read(path):
        asked.append(path)
        return read_image(path)

    images = [path for path, _ in train_images][:4]
    frames = read_calibration_frames(images, 4, read).frames
    assert asked == []
    assert len(frames) == 4
    assert (frames[2] == read_image(images[2])).all()
    assert len(frames[1:]) == 3
    assert asked == [images[2]]
    assert sum(1 for _ in frames) == 4
    assert asked[1:] == images


# --- of another network --------------------------------------------------------------------------


def test_record_of_another_checkpoint_is_refused(file, trained, master):
    with pytest.raises(Refused) as caught:
        read_calibration(file, "0" * 64, trained.contract, master)
    assert caught.value.code == "E-CALIB-KEY"
    assert "checkpoint" in str(caught.value)


@pytest.mark.parametrize("change", [{"height": 96}, {"mean": 0.5}, {"std": 0.1}])
def test_record_of_another_contract_is_refused(file, trained, master, change):
    contract = replace(trained.contract, **change)
    assert isinstance(contract, InputContract)
    with pytest.raises(Refused) as caught:
        read_calibration(file, trained.sha256, contract, master)
    assert caught.value.code == "E-CALIB-KEY"
    assert "input contract" in str(caught.value)


# --- ranges that are none ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_range_that_is_missing_or_none_is_refused_by_name(file, trained, master, method, value):
    def change(content):
        ranges = content["amax"][method]
        if value is None:
            del ranges["image"]
        else:
            ranges["image"] = value

    rewrite(file, change)
    with pytest.raises(Refused, match=f"of image under {method}") as caught:
        read_calibration(file, trained.sha256, trained.contract, master)
    assert caught.value.code == "E-CALIB-RANGE"


def test_record_without_one_of_the_methods_is_refused(file, trained, master):
    rewrite(file, lambda content: content["amax"].pop("mse"))
    with pytest.raises(Refused, match="under mse") as caught:
        read_calibration(file, trained.sha256, trained.contract, master)
    assert caught.value.code == "E-CALIB-RANGE"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_largest_that_is_missing_or_not_finite_is_refused(file, trained, master, value):
    def change(content):
        content["largest"].pop("logits")
        if value is not None:
            content["largest"]["logits"] = value

    rewrite(file, change)
    with pytest.raises(Refused, match="of logits under largest") as caught:
        read_calibration(file, trained.sha256, trained.contract, master)
    assert caught.value.code == "E-CALIB-RANGE"


def test_largest_may_be_zero_where_a_tensor_always_was(file, trained, master):
    rewrite(file, lambda content: content["largest"].update(logits=0.0))
    found = read_calibration(file, trained.sha256, trained.contract, master)
    assert found.largest["logits"] == 0.0


# --- files that are none -------------------------------------------------------------------------


def drop(key):
    return lambda content: content.pop(key)


def put(key, value):
    return lambda content: content.update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        put("schema", SCHEMA.replace("1", "2")),
        *map(drop, ("schema", "checkpoint_sha256", "contract", "frames_sha256", "amax", "largest")),
        put("amax", {"mse": {"image": "wide"}}),
        put("amax", {"mse": {"image": None}}),
        put("amax", [1.0]),
        put("amax", {"mse": 3}),
        put("largest", "many"),
        put("contract", 3),
        put("frames_sha256", 3),
        put("origin", 3),
    ],
)
def test_record_with_a_field_that_is_none_is_refused(file, trained, master, change):
    rewrite(file, change)
    with pytest.raises(InputError) as caught:
        read_calibration(file, trained.sha256, trained.contract, master)
    assert caught.value.code == "E-CALIB-READ"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe\x00", b"PNG\r\n", b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "number", "bytes", "picture", "deep"],
)
def test_file_that_is_no_record_is_refused(tmp_path, trained, master, content):
    file = tmp_path / "ranges.json"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_calibration(file, trained.sha256, trained.contract, master)
    assert caught.value.code == "E-CALIB-READ"


def test_file_that_is_too_large_is_refused_before_it_is_read(file, trained, master):
    with file.open("a") as end:
        end.write(" " * (4 << 20))  # still JSON
    with pytest.raises(InputError, match="larger than 4194304 bytes") as caught:
        read_calibration(file, trained.sha256, trained.contract, master)
    assert caught.value.code == "E-CALIB-READ"


def test_file_that_is_missing_or_a_folder_is_refused(tmp_path, trained, master):
    for file in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError) as caught:
            read_calibration(file, trained.sha256, trained.contract, master)
        assert caught.value.code == "E-CALIB-READ"


def test_number_too_large_for_a_float_is_refused(file, trained, master):
    rewrite(file, lambda content: content["largest"].update(logits=10**400))
    with pytest.raises(InputError) as caught:
        read_calibration(file, trained.sha256, trained.contract, master)
    assert caught.value.code == "E-CALIB-READ"


# --- where a record may come from ----------------------------------------------------------------


@pytest.mark.usefixtures("few_phantoms")
@pytest.mark.parametrize(
    ("part", "where"), [("test", "in the test part"), ("val", "in the val part")]
)
def test_record_with_a_frame_of_another_part_is_refused(file, run, phantoms, part, where):
    entries = read_split(run / "split.json").entries
    foreign = next(entry.image_sha256 for entry in entries if entry.part == part)
    rewrite(file, lambda content: content["frames_sha256"].append(foreign))
    with pytest.raises(Refused, match=where) as caught:
        frames_for_export(checkpoint_of(run), CalibrationRequest([phantoms], record=file))
    assert caught.value.code == "E-CALIB-TEST"


@pytest.mark.usefixtures("few_phantoms")
def test_record_with_a_frame_that_nobody_knows_is_refused(file, run, phantoms):
    rewrite(file, lambda content: content["frames_sha256"].append("0" * 64))
    with pytest.raises(Refused, match="in no part") as caught:
        frames_for_export(checkpoint_of(run), CalibrationRequest([phantoms], record=file))
    assert caught.value.code == "E-CALIB-TEST"


@pytest.mark.usefixtures("few_phantoms")
def test_record_of_the_train_part_is_taken_and_the_val_part_checks(file, run, phantoms):
    request = CalibrationRequest([phantoms], record=file)
    frames, note = frames_for_export(checkpoint_of(run), request)
    entries = read_split(run / "split.json").entries
    assert frames.calibration == file
    assert len(frames.checks) == sum(entry.part == "val" for entry in entries) > 0
    assert str(file) in note


@pytest.mark.usefixtures("few_phantoms")
def test_frames_for_a_run_are_of_its_train_part_and_their_classes_are_counted(run, phantoms):
    request = CalibrationRequest([phantoms], images=4)
    frames, note = frames_for_export(checkpoint_of(run), request)
    part_of = {e.image_sha256: e.part for e in read_split(run / "split.json").entries}
    assert {part_of[each] for each in frames.calibration.sha256} == {"train"}
    assert sum(frames.calibration.origin["classes"].values()) == len(frames.calibration.frames) == 4
    assert "calibrated on 4 images of the train part" in note


def test_record_of_no_frame_is_refused(file, record, master):
    file.write_text(replace(record, frames_sha256=()).to_json())
    with pytest.raises(InputError) as caught:
        read_calibration(file, record.checkpoint_sha256, record.contract, master)
    assert caught.value.code == "E-CALIB-EMPTY"


@pytest.mark.usefixtures("few_phantoms")
def test_record_made_of_phantoms_is_refused_where_real_frames_are_meant(
    file, record, run, phantoms
):
    file.write_text(replace(record, origin={"source": "phantoms"}).to_json())
    with pytest.raises(Refused) as caught:
        frames_for_export(checkpoint_of(run), CalibrationRequest([phantoms], record=file))
    assert caught.value.code == "E-CALIB-SYNTHETIC"


def test_record_and_phantoms_at_once_are_refused(file, run, phantoms):
    request = CalibrationRequest([phantoms], record=file, synthetic=True)
    with pytest.raises(InputError) as caught:
        frames_for_export(checkpoint_of(run), request)
    assert caught.value.code == "E-CALIB-CHOICE"


@pytest.mark.usefixtures("few_phantoms")
def test_run_without_its_data_is_refused_even_with_a_record(file, run):
    with pytest.raises(InputError) as caught:
        frames_for_export(checkpoint_of(run), CalibrationRequest(record=file))
    assert caught.value.code == "E-CALIB-MISSING"
