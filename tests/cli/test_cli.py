"""The command line: one line, one exit code and no left-overs for bad input; results for good."""

from __future__ import annotations

import csv
import importlib.util
import json
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from edgeseg.cli.jobs import phantoms as phantoms_job
from edgeseg.cli.main import cli
from edgeseg.export.target import targets
from edgeseg.kd.checkpoint import load_checkpoint
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.kd.data.masks import read_mask
from edgeseg.kd.data.split import read_split
from edgeseg.kd.engine import TorchEngine
from edgeseg.runtime.bundle import open_bundle, seal_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.image import read_image
from edgeseg.runtime.metrics import count_pixels, dice_score
from edgeseg.runtime.session import SelfTest, Session, open_session

pytestmark = pytest.mark.long

INPUT, REFUSED, ENGINE, OUTPUT = 2, 3, 4, 5  # exit codes, as in runtime/errors.py


def call(*arguments):
    """Run a command in this process."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def ok(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def refused(code, exit_code, *arguments):
    """Check that a command ends with one line of that code, that exit code and no result."""
    result = call(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception  # anything else is a bug
    assert result.stderr.startswith(f"edgeseg: {code}: "), result.stderr
    assert result.stderr.count("\n") == 1
    assert result.exit_code == exit_code
    assert result.stdout == ""


def started(*arguments):
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "edgeseg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module", autouse=True)
def _few_phantoms():
    """Golden vectors are all that they are for here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantoms_job, "COUNT", 8)
        yield


@pytest.fixture
def data(phantoms, tmp_path):
    """A small data set of one's own, to be damaged: four phantoms of each class."""
    root = tmp_path / "data"
    for label in ("benign", "malignant", "normal"):
        (root / label).mkdir(parents=True)
        for number in (1, 2, 3, 4):
            for path in (phantoms / label).glob(f"{label} ({number})*"):
                shutil.copy(path, root / label)
    return root


@pytest.fixture
def out(tmp_path):
    """Where results go: a name in an otherwise empty folder."""
    (tmp_path / "results").mkdir()
    return tmp_path / "results" / "out"


@pytest.fixture(scope="module")
def picture(phantoms):
    return phantoms / "malignant" / "malignant (2).png"


@pytest.fixture(scope="module")
def int8(bundle_of):
    return bundle_of("x86-cpu", "int8")


# --- bad input -----------------------------------------------------------------------------------


def commands_on(data, out, int8):
    """The commands that read a data set, each with a result it would write."""
    return {
        "audit": ("data", "audit", data, "-q"),
        "split": ("data", "split", data, "--out", out, "-q"),
        "train": ("train", data, "--out", out, "--size", 32, "-q"),
        "evaluate": ("evaluate", int8, data, "--part", "all", "--csv", out, "-q"),
        "benchmark": (
            *("benchmark", int8, "--data", data, "--part", "all"),
            *("--engine", "onnxruntime", "--rounds", 5, "--passes", 0),
            *("--out", out and f"{out}.html", "-q"),
        ),
    }


COMMANDS = tuple(commands_on(None, None, None))


@pytest.mark.parametrize("command", COMMANDS)
def test_folder_that_does_not_exist_is_refused(command, tmp_path, out, int8):
    refused("E-DATA-FOLDER", INPUT, *commands_on(tmp_path / "none", out, int8)[command])
    assert names_in(out.parent) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_empty_folder_is_refused(command, tmp_path, out, int8):
    (tmp_path / "empty").mkdir()
    refused("E-DATA-LAYOUT", INPUT, *commands_on(tmp_path / "empty", out, int8)[command])
    assert names_in(out.parent) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_folder_of_empty_class_folders_is_refused(command, tmp_path, out, int8):
    (tmp_path / "hollow" / "benign").mkdir(parents=True)
    refused("E-DATA-EMPTY", INPUT, *commands_on(tmp_path / "hollow", out, int8)[command])
    assert names_in(out.parent) == []


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_image_without_its_mask_is_refused(command, data, out, int8):
    (data / "benign" / "benign (1)_mask.png").unlink()
    refused("E-DATA-NO-MASK", INPUT, *commands_on(data, out, int8)[command])
    assert names_in(out.parent) == []


@pytest.mark.parametrize("command", COMMANDS[2:])
def test_mask_of_another_size_is_refused(command, data, out, int8):
    for path in data.rglob("*_mask.png"):
        Image.new("L", (5, 5)).save(path)
    refused("E-DATA-MASK-SIZE", INPUT, *commands_on(data, out, int8)[command])
    assert names_in(out.parent) == []


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_truncated_png_is_refused(command, data, out, int8):
    path = data / "malignant" / "malignant (1).png"
    path.write_bytes(path.read_bytes()[:2000])
    refused("E-IMAGE-READ", INPUT, *commands_on(data, out, int8)[command])
    assert names_in(out.parent) == []


@pytest.mark.parametrize("label", ["benign", "malignant"])
def test_training_without_a_taught_class_is_refused(label, data, out):
    shutil.rmtree(data / label)
    refused("E-DATA-CLASS", INPUT, "train", data, "--out", out, "--size", 32, "-q")
    assert names_in(out.parent) == []


@pytest.mark.parametrize("option", [("--size", 40), ("--batch", 0), ("--temperature", 0)])
def test_training_with_a_setting_out_of_range_is_refused(option, data, out):
    refused("E-CONFIG", INPUT, "train", data, "--out", out, *option, "-q")
    assert names_in(out.parent) == []


@pytest.mark.parametrize("option", ["--student", "--teacher"])
def test_training_an_unknown_network_is_refused_before_any_epoch(option, data, out):
    refused("E-MODEL-NAME", INPUT, "train", data, "--out", out, "--size", 32, option, "vgg", "-q")
    assert names_in(out.parent) == []


def test_size_that_the_network_does_not_take_is_refused_before_any_epoch(data, out):
    arguments = ("train", data, "--out", out, "--size", 48, "--teacher", "resnet50-attunet", "-q")
    refused("E-CONFIG", INPUT, *arguments)
    assert names_in(out.parent) == []


@pytest.mark.parametrize(
    ("option", "code"),
    [
        (("--recipe", "t2kd"), "E-RECIPE-NAME"),
        (("--teaching", "both"), "E-TEACHING-NAME"),
        (("--distillation", "kd"), "E-DISTILL-NAME"),
        (("--views", 4, "--distillation", "at"), "E-CONFIG"),
        (("--teachers", "nowhere"), "E-TEACHER-MISSING"),
    ],
    ids=str,
)
def test_training_with_what_is_not_there_or_cannot_work_is_refused(option, code, data, out):
    refused(code, INPUT, "train", data, "--out", out, *option, "-q")
    assert not (out / "config.json").exists()


def test_reproducing_an_unknown_row_is_refused(data, out):
    refused("E-ABLATION-ROW", INPUT, "reproduce", data, "--out", out, "--row", "best", "-q")
    assert names_in(out.parent) == []


@pytest.mark.parametrize("fractions", [(0, 1, 0), (0.5, 0.1, 0.1), (2, -1, 0)])
def test_fractions_that_are_no_split_are_refused(fractions, data, out):
    refused(
        *("E-SPLIT-FRACTIONS", INPUT, "data", "split", data, "--out", out),
        *("--fractions", *fractions, "-q"),
    )
    assert names_in(out.parent) == []


def test_split_of_everything_into_train_serves_weights_that_ship(data, out):
    ok("data", "split", data, "--out", out, "--fractions", 1, 0, 0, "-q")
    entries = json.loads(out.read_text())["entries"]
    assert {entry["part"] for entry in entries} == {"train"}


def test_folds_are_written_as_split_files_of_one_folder(data, out):
    ok("data", "split", data, "--out", out, "--folds", 2, "-q")
    assert names_in(out) == ["fold-1.json", "fold-2.json"]
    tested = [
        {entry.name for entry in read_split(path).entries if entry.part == "test"}
        for path in out.iterdir()
    ]
    assert tested[0].isdisjoint(tested[1])
    assert len(tested[0] | tested[1]) == len(read_dataset(data).samples)


def test_folds_with_fractions_are_a_wrong_call(data, out):
    result = call("data", "split", data, "--out", out, "--folds", 2, "--fractions", 1, 0, 0)
    assert (result.exit_code, names_in(out.parent)) == (INPUT, [])


def test_training_over_a_run_is_refused(phantoms, run):
    refused("E-RUN-EXISTS", INPUT, "train", phantoms, "--out", run, "-q")


def test_resuming_with_other_settings_is_refused(phantoms, run):
    refused(
        *("E-RUN-CONFIG", INPUT, "train", phantoms, "--out", run, "--resume"),
        *("--temperature", 5, "-q"),
    )


@pytest.mark.parametrize("name", ["model.xml", "model.bin", "manifest.json", "split.json"])
@pytest.mark.parametrize("command", ["predict", "evaluate", "benchmark"])
def test_bundle_with_a_changed_byte_is_refused(command, name, bundle_copy, phantoms, picture, out):
    content = bytearray((bundle_copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle_copy / name).write_bytes(content)
    arguments = {
        "predict": (picture, "--out", out),
        "evaluate": (phantoms, "--part", "all", "--csv", out),
        "benchmark": ("--data", phantoms, "--part", "all", "--rounds", 5, "--out", f"{out}.html"),
    }[command]
    refused("E-BUNDLE-HASH", REFUSED, command, bundle_copy, *arguments, "-q")
    assert names_in(out.parent) == []


@pytest.mark.parametrize("command", ["export", "evaluate"])
def test_checkpoint_of_another_architecture_is_refused(command, run, phantoms, tmp_path, out):
    student = run / "student.safetensors"
    loaded = load_checkpoint(student)
    shutil.copy(run / "split.json", tmp_path)
    metadata = {
        "schema": "edgeseg.checkpoint/1",
        "model": "attunet-16",
        "contract": json.dumps(loaded.contract.to_dict()),
        "provenance": "{}",
    }
    save_file(load_file(student), tmp_path / "other.safetensors", metadata)
    arguments = {
        "export": (
            *("--target", "x86-cpu", "--precision", "fp32"),
            *("--calib", phantoms, "--out", out),
        ),
        "evaluate": (phantoms, "--csv", out),
    }[command]
    refused("E-CKPT-ARCH", INPUT, command, tmp_path / "other.safetensors", *arguments, "-q")
    assert names_in(out.parent) == []


@pytest.mark.parametrize("content", [None, b"\x80\x02}q\x00."])
def test_source_that_is_no_checkpoint_is_refused(content, tmp_path, phantoms, out):
    path = tmp_path / "student.pt"
    if content is not None:
        path.write_bytes(content)
    code = "E-SOURCE" if content is None else "E-CKPT-READ"
    shutil.copy(phantoms / "benign" / "benign (1).png", tmp_path / "split.json")
    refused(code, INPUT, "evaluate", path, phantoms, "--part", "all", "--csv", out, "-q")
    assert names_in(out.parent) == []


def test_checkpoint_that_is_cut_is_told_before_a_split_is_missed(run, phantoms, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes((run / "student.safetensors").read_bytes()[:2000])
    refused("E-CKPT-READ", INPUT, "evaluate", path, phantoms, "-q")


def export_arguments(run, phantoms, out, target="x86-cpu", precision="fp32"):
    return (
        *("export", run, "--target", target, "--precision", precision),
        *("--calib", phantoms, "--out", out, "-q"),
    )


def test_unknown_target_is_refused(run, phantoms, out):
    refused("E-TARGET-NAME", INPUT, *export_arguments(run, phantoms, out, target="toaster"))
    assert names_in(out.parent) == []


def test_precision_that_a_target_lacks_is_refused(run, phantoms, out):
    arguments = export_arguments(run, phantoms, out, target="arm-cpu", precision="fp16")
    refused("E-TARGET-PRECISION", REFUSED, *arguments)
    assert names_in(out.parent) == []


def test_export_into_an_existing_folder_is_refused_and_the_folder_untouched(run, phantoms, out):
    out.mkdir()
    (out / "mine").write_text("mine")
    refused("E-OUT-EXISTS", INPUT, *export_arguments(run, phantoms, out))
    assert names_in(out.parent) == ["out"]
    assert names_in(out) == ["mine"]


def test_export_of_a_bundle_is_refused(int8, phantoms, out):
    refused("E-SOURCE", INPUT, *export_arguments(int8, phantoms, out))


def test_export_of_a_run_on_changed_data_is_refused(run, phantoms, tmp_path, out):
    data = shutil.copytree(phantoms, tmp_path / "data")
    for path in data.rglob("*.png"):
        Image.fromarray(255 - read_image(path)).save(path)
    refused("E-SPLIT-MISMATCH", INPUT, *export_arguments(run, data, out))
    assert names_in(out.parent) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_full_disk_during_export_is_refused_and_leaves_nothing(precision, run, phantoms, full_disk):
    arguments = export_arguments(run, phantoms, full_disk / "out", precision=precision)
    refused("E-OUT-WRITE", OUTPUT, *arguments)
    assert names_in(full_disk) == []


@pytest.mark.parametrize("command", ["data phantoms", "predict", "evaluate", "train"])
def test_full_disk_is_refused_and_leaves_nothing(command, int8, phantoms, full_disk):
    (full_disk / "filler").write_bytes(bytes(60 * 1024))
    arguments = {
        "data phantoms": (full_disk / "out", "--count", 3),
        "predict": (int8, phantoms / "benign", "--out", full_disk / "out"),
        "evaluate": (int8, phantoms, "--part", "all", "--csv", full_disk / "out" / "x.csv"),
        "train": (
            *(phantoms, "--out", full_disk / "out", "--size", 32, "--student", "attunet-8"),
            *("--teacher", "attunet-8", "--general-epochs", 0),
            *("--teacher-epochs", 1, "--student-epochs", 1),
        ),
    }[command]
    refused("E-OUT-WRITE", OUTPUT, *command.split(), *arguments, "-q")
    if command == "train":  # what a resume needs may stay
        assert not (full_disk / "out" / "student.safetensors").exists()
    else:
        assert [path for path in full_disk.rglob("*") if path.is_file()] == [full_disk / "filler"]


def test_predicting_a_missing_image_is_refused(int8, tmp_path, out):
    refused("E-IMAGE-READ", INPUT, "predict", int8, tmp_path / "none.png", "--out", out, "-q")
    assert names_in(out.parent) == []


def test_predicting_one_broken_image_among_good_ones_leaves_nothing(int8, picture, tmp_path, out):
    (tmp_path / "z.png").write_bytes(picture.read_bytes()[:500])
    arguments = ("predict", int8, picture, tmp_path / "z.png", "--out", out, "-q")
    refused("E-IMAGE-READ", INPUT, *arguments)
    assert names_in(out.parent) == []


def test_predicting_an_empty_folder_is_refused(int8, tmp_path, out):
    (tmp_path / "empty").mkdir()
    refused("E-IMAGE-NONE", INPUT, "predict", int8, tmp_path / "empty", "--out", out, "-q")


def test_predicting_two_images_of_one_name_is_refused(int8, picture, tmp_path, out):
    shutil.copy(picture, tmp_path)
    arguments = ("predict", int8, picture, tmp_path / picture.name, "--out", out, "-q")
    refused("E-IMAGE-NAME", INPUT, *arguments)
    assert names_in(out.parent) == []


def test_predicting_with_something_that_is_no_bundle_is_refused(run, picture, out):
    refused("E-BUNDLE-MISSING", INPUT, "predict", run, picture, "--out", out, "-q")


def test_predicting_with_an_engine_the_bundle_lacks_is_refused(int8, picture, out):
    arguments = ("predict", int8, picture, "--out", out, "--engine", "tensorrt", "-q")
    refused("E-ENGINE-NOT-IN-BUNDLE", INPUT, *arguments)
    assert names_in(out.parent) == []


def test_predicting_with_an_engine_that_is_not_installed_is_refused(
    int8, picture, out, monkeypatch
):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "openvino" else real(name)
    )
    arguments = ("predict", int8, picture, "--out", out, "--engine", "openvino", "-q")
    refused("E-EXTRA-MISSING", ENGINE, *arguments)
    assert names_in(out.parent) == []


def test_evaluating_a_part_without_a_split_is_refused(run, phantoms, tmp_path, out):
    shutil.copy(run / "student.safetensors", tmp_path / "alone.safetensors")
    arguments = ("evaluate", tmp_path / "alone.safetensors", phantoms, "--csv", out, "-q")
    refused("E-SPLIT-MISSING", INPUT, *arguments)
    assert names_in(out.parent) == []


def test_evaluating_a_checkpoint_in_another_engine_is_refused(run, phantoms):
    arguments = ("evaluate", run, phantoms, "--engine", "openvino", "-q")
    refused("E-ENGINE-NOT-IN-BUNDLE", INPUT, *arguments)


def test_split_of_another_data_set_is_refused(run, data):
    refused("E-SPLIT-MISMATCH", INPUT, "evaluate", run, data, "-q")


def test_refusal_in_a_process_of_its_own_shows_no_traceback(tmp_path, int8):
    done = started("predict", int8, tmp_path / "none.png", "--out", tmp_path / "out")
    assert done.returncode == INPUT
    assert done.stdout == ""
    assert done.stderr.startswith("edgeseg: E-IMAGE-READ: ")
    assert done.stderr.count("\n") == 1
    assert names_in(tmp_path) == []


def test_command_line_without_click_says_what_to_install():
    code = "import sys; sys.modules['click'] = None; sys.argv = ['edgeseg']\n"
    code += "import importlib.util; importlib.util.find_spec = lambda name: None\n"
    code += "from edgeseg.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == ENGINE
    assert done.stderr.startswith("edgeseg: E-EXTRA-MISSING: ")
    assert done.stderr.count("\n") == 1


# --- the good road -------------------------------------------------------------------------------


def test_phantoms_audit_and_split(out):
    assert "6 phantoms" in ok("data", "phantoms", out, "--count", 6, "-q").stdout
    audit = json.loads(ok("data", "audit", out, "--json", "-q").stdout)
    assert audit["images"] == {"benign": 3, "malignant": 2, "normal": 1}
    assert audit["problems"] == 0
    split = out.parent / "split.json"
    ok("data", "split", out, "--out", split, "-q")
    entries = read_split(split).entries
    assert {entry.name for entry in entries} == {s.name for s in read_dataset(out).samples}


def test_audit_lists_every_defect_and_is_no_refusal(data):
    (data / "benign" / "benign (1)_mask.png").unlink()
    (data / "benign" / "benign (2).png").write_bytes(b"")
    Image.new("L", (5, 5), 255).save(data / "malignant" / "malignant (1)_mask.png")
    audit = json.loads(ok("data", "audit", data, "--json", "-q").stdout)
    assert audit["without_mask"] == ["benign/benign (1).png"]
    assert len(audit["unreadable"]) == len(audit["size_mismatches"]) == 1
    assert audit["problems"] == 3


def test_targets_as_json_are_the_table():
    content = json.loads(ok("targets", "--json").stdout)
    assert set(content) == {*targets(), "jetson"}
    assert content["jetson"] == content["orin-nano-8@jp6.2"]
    assert content["jetson"]["tensorrt"] == "10.3.0"
    assert content["arm-cpu"]["engines"]["int8"] == ["onnxruntime"]
    words = set(ok("targets").stdout.split())
    for name in (*targets(), "jetson"):
        is_module = name in targets() and targets()[name].is_jetson
        module, _, jetpack = name.partition("@") if is_module else (name, "", "")
        assert words >= ({f"{module}@…", f"@{jetpack}"} if jetpack else {name})


def test_train_export_and_evaluate(data, phantoms, out):
    settings = ("--size", 32, "--student", "attunet-8", "--teacher", "attunet-8", "--batch", 4)
    epochs = ("--general-epochs", 0, "--teacher-epochs", 1, "--student-epochs", 1)
    run = out.parent / "run"
    done = ok("train", data, "--out", run, *settings, *epochs, "-q")
    assert done.stdout == f"student: {run / 'student.safetensors'}\n"
    # Resuming a finished run takes its own settings and gives the same answer.
    assert ok("train", data, "--out", run, "--resume", "-q").stdout == done.stdout
    exported = ok(
        *("export", run, "--target", "jetson", "--precision", "fp16", "--calib", data),
        *("--max-drop", 1, "--out", out, "--json", "-q"),
    )
    content = json.loads(exported.stdout)
    assert content["bundle"] == str(out)
    assert content["precision"] == "fp16"
    assert [hop["name"] for hop in content["parity"]] == ["onnx fp32", "tensorrt fp16"]
    assert (out / "build_engine.py").is_file()


def test_export_calibrates_on_the_train_part_and_checks_on_the_val_part(run, phantoms, out):
    ok(
        *("export", run, "--target", "jetson", "--precision", "int8", "--calib", phantoms),
        *("--max-drop", 1, "--max-hd95-rise", 100, "--out", out, "-q"),
    )
    manifest = open_bundle(out).manifest
    entries = read_split(run / "split.json").entries
    train = [entry.image_sha256 for entry in entries if entry.part == "train"]
    assert sorted(manifest.provenance["calibration"]["frames_sha256"]) == sorted(train)
    assert manifest.evidence["part"] == "val"
    assert manifest.evidence["frames"] == sum(entry.part == "val" for entry in entries)
    truths = [s for s in read_dataset(phantoms).samples if s.label != "normal"]
    val = {entry.name for entry in entries if entry.part == "val"}
    session = Session.over(
        TorchEngine(load_checkpoint(run / "student.safetensors"), 1), manifest.contract
    )
    dice = [
        dice_score(count_pixels(session.predict(sample.read_image()), sample.read_mask()))
        for sample in truths
        if sample.name in val
    ]
    assert manifest.evidence["trained_dice"] == pytest.approx(np.mean(dice), abs=1e-6)


def test_predict_writes_mask_overlay_and_measurements(int8, picture, out):
    done = ok("predict", int8, picture, "--out", out, "--json", "--threads", 1, "-q")
    assert names_in(out) == [
        "malignant (2)_mask.png",
        "malignant (2)_overlay.png",
        "predictions.json",
    ]
    frame, mask = read_image(picture), read_mask(out / "malignant (2)_mask.png")
    assert mask.shape == frame.shape
    assert set(np.unique(read_image(out / "malignant (2)_mask.png"))) == {0, 255}
    assert np.asarray(Image.open(out / "malignant (2)_overlay.png")).shape == (*frame.shape, 3)
    (record,) = records = json.loads((out / "predictions.json").read_text())
    assert json.loads(done.stdout) == records
    assert (record["height_px"], record["width_px"]) == frame.shape
    assert record["lesion_area_px"] == mask.sum() > 0
    assert sum(lesion["area_px"] for lesion in record["lesions"]) == mask.sum()
    left, top, right, bottom = record["lesions"][0]["box"]
    assert mask[top:bottom, left:right].sum() >= record["lesions"][0]["area_px"]


def test_predict_takes_folders_and_every_engine_of_the_bundle(int8, data, tmp_path):
    for engine in ("openvino", "onnxruntime"):
        out = tmp_path / engine
        done = ok("predict", int8, data / "normal", "--out", out, "--engine", engine)
        assert f"by {engine}, results in {out}" in done.stdout
        # Masks of the data set lie in the folder too, and are no frames.
        assert len(json.loads((out / "predictions.json").read_text())) == 4
        assert "left out: 4 masks" in done.stderr


def test_predict_measures_in_mm_and_cleans_masks_as_asked(int8, data, out, tmp_path):
    folder = data / "malignant"
    plain = ok("predict", int8, folder, "--out", out, "--json", "--threads", 1, "-q")
    cleaned = ok(
        *("predict", int8, folder, "--out", tmp_path / "clean", "--json", "--threads", 1, "-q"),
        *("--largest-only", "--fill-holes", "--spacing-mm", 0.1, 0.2),
    )
    for before, after in zip(json.loads(plain.stdout), json.loads(cleaned.stdout), strict=True):
        assert "spacing_mm" not in before
        assert after["spacing_mm"] == {"row": 0.1, "column": 0.2}
        assert after["lesion_area_mm2"] == pytest.approx(after["lesion_area_px"] * 0.02)
        assert len(after["lesions"]) == min(1, len(before["lesions"]))
        for lesion in after["lesions"]:
            left, top, right, bottom = lesion["box"]
            assert lesion["width_mm"] == pytest.approx((right - left) * 0.2)
            assert lesion["height_mm"] == pytest.approx((bottom - top) * 0.1)
            assert lesion["diameter_mm"] >= max(lesion["width_mm"], lesion["height_mm"])
            assert lesion["area_px"] >= before["lesions"][0]["area_px"]


@pytest.mark.parametrize("spacing", [(0, 0.1), (0.1, -1), (0.1, "nan"), (1000, 0.1)])
def test_predict_refuses_an_impossible_spacing(spacing, picture, out, tmp_path):
    arguments = ("predict", tmp_path, picture, "--out", out, "--spacing-mm", *spacing, "-q")
    refused("E-SPACING", INPUT, *arguments)


def test_selftest_replays_the_golden_frames_on_every_engine(int8):
    for engine in ("openvino", "onnxruntime"):
        done = ok("selftest", int8, "--engine", engine, "--repeats", 20)
        assert f"golden frames by {engine} are equal to the bit" in done.stdout
        assert "20 repeats of each are equal" in done.stdout
    content = json.loads(ok("selftest", int8, "--json").stdout)
    assert (content["passed"], content["worst_flipped"], content["repeats"]) == (True, 0, 0)


def test_selftest_that_fails_ends_with_exit_code_3_and_one_line(int8, monkeypatch):
    failed = SelfTest("openvino", 6, 0.5, 0.02, False, 0, True)
    monkeypatch.setattr(Session, "selftest", lambda self, repeats: failed)
    refused("E-SELFTEST", REFUSED, "selftest", int8)
    done = call("selftest", int8, "--json")
    assert done.exit_code == REFUSED
    assert json.loads(done.stdout)["passed"] is False


def test_evaluate_scores_the_test_part_as_the_library_does(int8, phantoms, out):
    done = ok("evaluate", int8, phantoms, "--json", "--csv", out, "--threads", 1, "-q")
    session = open_session(int8, threads=1)
    split = {entry.name: entry for entry in read_split(int8 / "split.json").entries}
    samples = [s for s in read_dataset(phantoms).samples if split[s.name].part == "test"]
    dice = [
        dice_score(count_pixels(session.predict(sample.read_image()), sample.read_mask()))
        for sample in samples
        if sample.label != "normal"
    ]
    (lesions,) = (g for g in json.loads(done.stdout)["groups"] if g["name"] == "all lesions")
    assert lesions["per_image"]["dice"]["mean"] == pytest.approx(np.mean(dice))
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(samples)


def test_evaluate_takes_a_run_and_a_checkpoint_alike(run, phantoms):
    of_run = ok("evaluate", run, phantoms, "--json", "-q")
    of_file = ok("evaluate", run / "student.safetensors", phantoms, "--json", "-q")
    assert json.loads(of_run.stdout) == json.loads(of_file.stdout)


def test_progress_goes_to_stderr_and_results_to_stdout(int8, picture, out):
    done = ok("predict", int8, picture, "--out", out, "--json")
    assert json.loads(done.stdout)
    assert "predicting: 1 done" in done.stderr


def test_benchmark_writes_html_json_markdown_and_csv(int8, run, phantoms, tmp_path):
    out = tmp_path / "report.html"
    done = ok(
        *("benchmark", int8, run, "--data", phantoms, "--rounds", 5, "--threads", 1),
        *("--passes", 0, "--seconds", 1),
        *("--engine", "onnxruntime", "--engine", "torch", "--out", out, "--json", "-q"),
    )
    assert names_in(tmp_path) == ["report.csv", "report.html", "report.json", "report.md"]
    assert json.loads(done.stdout) == json.loads((tmp_path / "report.json").read_text())
    text = out.read_text()
    for name in ("onnxruntime", "torch"):
        assert name in text
        assert name in (tmp_path / "report.md").read_text()
        assert name in (tmp_path / "report.csv").read_text()


@pytest.fixture(scope="module")
def reports(tmp_path_factory, int8, phantoms):
    """Two JSON reports of one bundle, in a folder."""
    folder = tmp_path_factory.mktemp("reports")
    for name in ("old", "new"):
        ok(
            *("benchmark", int8, "--data", phantoms, "--engine", "onnxruntime", "--threads", 1),
            *("--rounds", 48, "--mode", "paced", "--rate", 100, "--seconds", 1, "--passes", 0),
            *("--out", folder / f"{name}.html", "-q"),
        )
    return folder


def test_modes_that_were_asked_for_are_in_the_report(reports):
    (row,) = json.loads((reports / "old.json").read_text())["rows"]
    assert row["paced"]["due"] == 100
    assert row["offline"] is None
    assert row["soak"] is None


def test_two_reports_are_compared_and_a_kept_budget_passes(reports):
    both = (reports / "old.json", reports / "new.json")
    limits = ("--budget", "onnxruntime:p50=60s", "--budget", "dice_drop=0.01")
    done = ok("compare", *both, *limits)
    assert done.stdout.count("kept: ") == 2
    assert "cannot tell: the old record has no yardstick" in done.stdout
    content = json.loads(ok("compare", *both, "--json").stdout)
    assert content["passed"] is True


def test_budget_that_is_not_kept_ends_with_3_after_the_comparison(reports):
    both = (reports / "old.json", reports / "new.json")
    done = call("compare", *both, "--budget", "p50=1us")
    assert done.exit_code == REFUSED
    assert "FAILED: p50=1us" in done.stdout
    assert done.stderr.startswith("edgeseg: E-BUDGET-FAILED: ")


def test_report_of_another_schema_and_a_budget_that_is_none_are_refused(reports, tmp_path):
    new = reports / "new.json"
    old = tmp_path / "old.json"
    old.write_text(new.read_text().replace("edgeseg.benchmark/5", "edgeseg.benchmark/4"))
    refused("E-REPORT-SCHEMA", INPUT, "compare", old, new)
    refused("E-BUDGET", INPUT, "compare", new, new, "--budget", "p99=33")
    both = (reports / "old.json", new)
    refused("E-BUDGET", INPUT, "compare", *both, "--budget", "torch:p99=33ms")


def test_comparison_is_written_as_page_markdown_and_json_whatever_the_budgets_say(
    reports, tmp_path
):
    both = (reports / "old.json", reports / "new.json")
    page = tmp_path / "new folder" / "change.html"
    done = call("compare", *both, "--budget", "p50=1us", "--out", page)
    assert done.exit_code == REFUSED
    assert done.stdout.endswith(f"report: {page}\n")
    assert names_in(page.parent) == ["change.html", "change.json", "change.md"]
    told = json.loads(ok("compare", *both, "--json", "--out", page).stdout)
    assert json.loads(page.with_suffix(".json").read_text()) == told
    assert "compare old.json new.json --out change.html" in page.read_text()


@pytest.mark.parametrize("name", ["old.html", "new.html"])
def test_comparison_does_not_write_over_what_it_compares(name, reports):
    both = (reports / "old.json", reports / "new.json")
    before = [(path, path.read_bytes()) for path in sorted(reports.iterdir())]
    refused("E-REPORT-NAME", INPUT, "compare", *both, "--out", reports / name)
    assert [(path, path.read_bytes()) for path in sorted(reports.iterdir())] == before


def test_record_compared_with_itself_is_refused(reports):
    refused("E-COMPARE-SAME", INPUT, "compare", *[reports / "new.json"] * 2)


@pytest.mark.parametrize(
    ("damage", "code", "told"),
    [
        (None, "E-REPORT-READ", "No such file"),
        ("folder", "E-REPORT-READ", "Is a directory"),
        (lambda text: text[: len(text) // 2], "E-REPORT-SCHEMA", "not JSON"),
        (lambda text: "[" * 100_000, "E-REPORT-SCHEMA", "not JSON"),
        (lambda text: '{"schema": "edgeseg.comparison/2"}', "E-REPORT-SCHEMA", "not the record"),
        (lambda text: text.replace("/5", "/4", 1), "E-REPORT-SCHEMA", "measure again"),
        (lambda text: text.replace("/5", "/6", 1), "E-REPORT-SCHEMA", "update edgeseg"),
        (lambda text: text.replace('"macs": ', f'"macs": {"9" * 400}', 1), "E-REPORT-SCHEMA", ""),
        (lambda text: text.replace('"hz": ', '"hz": 1e999, "x": ', 1), "E-REPORT-SCHEMA", ""),
        (
            lambda text: text.replace('"python": "', '"python": "\\ud800', 1),
            *("E-REPORT-SCHEMA", "surrogate"),
        ),
    ],
)
def test_record_that_cannot_be_read_is_named(damage, code, told, reports, tmp_path):
    new = tmp_path / "damaged.json"
    if damage == "folder":
        new.mkdir()
    elif damage:
        new.write_text(damage((reports / "new.json").read_text()))
    words = ("compare", reports / "old.json", new)
    refused(code, INPUT, *words, "--out", tmp_path / "change.html")
    assert str(new) in call(*words).stderr
    assert told in call(*words).stderr
    assert [name for name in names_in(tmp_path) if name != "damaged.json"] == []


@pytest.mark.parametrize("suffix", [".html", ".json", ".md", ".csv"])
def test_folder_in_the_place_of_a_report_is_refused_before_anything_is_measured(
    suffix, int8, phantoms, tmp_path
):
    (tmp_path / f"r{suffix}").mkdir()
    refused(
        *("E-OUT-WRITE", OUTPUT, "benchmark", int8, "--data", phantoms),
        *("--out", tmp_path / "r.html", "-q"),
    )
    assert names_in(tmp_path) == [f"r{suffix}"]


def test_name_too_long_for_a_report_is_refused_before_anything_is_measured(
    int8, phantoms, reports, tmp_path
):
    out = ("--out", tmp_path / f"{'n' * 300}.html")
    refused("E-OUT-WRITE", OUTPUT, "benchmark", int8, "--data", phantoms, *out, "-q")
    both = (reports / "old.json", reports / "new.json")
    refused("E-OUT-WRITE", OUTPUT, "compare", *both, *out)
    assert names_in(tmp_path) == []


def test_disk_without_room_for_a_report_is_refused_before_anything_is_measured(
    int8, phantoms, full_disk
):
    out = full_disk / "new" / "r.html"
    refused("E-OUT-WRITE", OUTPUT, "benchmark", int8, "--data", phantoms, "--out", out, "-q")
    assert names_in(full_disk) == []


def test_disk_that_is_full_when_a_comparison_is_written_leaves_the_old_one(reports, full_disk):
    from edgeseg.benchmarks.report import files as report

    both = (reports / "old.json", reports / "new.json")
    (full_disk / "change.html").write_text("before")
    (full_disk / "filler").write_bytes(bytes(40 * 1024))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "ROOM_BYTES", 0)
        refused(
            *("E-OUT-WRITE", OUTPUT, "compare", *both),
            *("--out", full_disk / "change.html"),
        )
    assert names_in(full_disk) == ["change.html", "filler"]
    assert (full_disk / "change.html").read_text() == "before"


def test_bundle_for_another_machine_is_not_measured(bundle_of, phantoms, tmp_path):
    kit = bundle_of("jetson", "fp16")
    words = ("benchmark", kit, "--data", phantoms, "--out", tmp_path / "to" / "r.html", "-q")
    refused("E-ENGINE-DEVICE", ENGINE, *words)
    assert names_in(tmp_path) == []


def test_engine_that_is_not_installed_is_named_with_what_to_install(
    int8, phantoms, tmp_path, monkeypatch
):
    find = importlib.util.find_spec
    hidden = ("openvino", "onnxruntime")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in hidden else find(name)
    )
    words = ("benchmark", int8, "--data", phantoms, "--out", tmp_path / "r.html", "-q")
    refused("E-EXTRA-MISSING", ENGINE, *words)
    refused("E-EXTRA-MISSING", ENGINE, *words, "--engine", "openvino")
    assert "pip install 'edgeseg[openvino]'" in call(*words, "--engine", "openvino").stderr
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full; Linux has it")
def test_result_for_which_standard_output_has_no_room_is_one_line(reports):
    command = [sys.executable, "-m", "edgeseg", "compare"]
    command += [str(reports / "old.json"), str(reports / "new.json")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == OUTPUT
    assert done.stderr.startswith("edgeseg: E-OUT-WRITE: ")
    assert done.stderr.count("\n") == 1


def test_source_named_twice_and_an_engine_of_none_say_what_to_do(int8, phantoms, tmp_path):
    words = ("--data", phantoms, "--out", tmp_path / "a" / "r.html", "-q", "--engine")
    refused("E-BENCHMARK-NAMES", INPUT, "benchmark", int8, int8, *words, "onnxruntime")
    done = call("benchmark", int8, *words, "openvnio")
    assert "name one of openvino, onnxruntime" in done.stderr
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        *(("benchmark", "b", "--rounds", 0), ("compare", "a.json"), ("nope",)),
        *(("data", "nope"), ("data", "split"), ("predict", "--nope")),
        *(("--nope",), ("--nope", "data", "split"), ("--version=3",)),
    ],
)
def test_wrong_call_is_one_line_with_its_help(words):
    refused("E-USAGE", INPUT, *words)
    assert "--help`" in call(*words).stderr


@pytest.mark.parametrize(("words", "command"), [((), "benchmark"), (("data",), "split")])
def test_group_without_a_command_shows_its_commands(words, command):
    done = call(*words)
    assert done.output.startswith("Usage: ")
    assert command in done.output
    assert done.exit_code in (0, INPUT)  # of click before and since 8.2


@pytest.mark.parametrize("word", ["--help", "-h", "--version"])
def test_help_and_version_are_results(word):
    assert ok(word).stderr == ""


STOPPED_IN_A_SOAK = """
import os, signal, threading
from edgeseg.__main__ import main
from edgeseg.benchmarks import run

def stop(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait(10)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
run.measure_soak = stop
main()
"""


def test_benchmark_stopped_by_ctrl_c_leaves_nothing(int8, phantoms, tmp_path):
    words = ("benchmark", int8, "--data", phantoms, "--engine", "onnxruntime", "--mode", "soak")
    words += ("--passes", 0, "--threads", 1, "--rounds", 5, "--out", tmp_path / "to" / "r.html")
    command = [sys.executable, "-c", STOPPED_IN_A_SOAK, *map(str, words), "-q"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr.startswith("edgeseg: E-INTERRUPTED: ")
    assert done.stderr.count("\n") == 1
    assert names_in(tmp_path) == []


def test_batch_of_a_bundle_made_for_single_frames_is_refused(int8, phantoms, tmp_path):
    words = ("benchmark", int8, "--data", phantoms, "--out", tmp_path / "r.html", "--batch", "2")
    refused("E-BENCHMARK-BATCH", INPUT, *words, "-q")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("BUNDLE",),
        ("BUNDLE", "--data", "DATA"),
        ("BUNDLE", "--data", "DATA", "--out", "OUT", "--mode", "single", "--batch", "2"),
    ],
)
def test_benchmark_that_lacks_or_mixes_its_words_is_refused(words, int8, phantoms, tmp_path):
    places = {"BUNDLE": int8, "DATA": phantoms, "OUT": tmp_path / "r.html"}
    refused("E-BENCHMARK-CALL", INPUT, "benchmark", *(places.get(word, word) for word in words))


@pytest.mark.parametrize(
    "words",
    [
        ("--compare", "old.json", "new.json"),
        ("--compare", "old.json", "new.json", "--budget", "p99=33ms", "--out", "r.html"),
        ("BUNDLE", "--data", "DATA", "--out", "r.html", "--budget", "p99=33ms"),
        ("--compare",),
    ],
)
def test_benchmark_asked_to_compare_names_the_command_that_does(words):
    refused("E-BENCHMARK-CALL", INPUT, "benchmark", *words)
    assert "edgeseg compare OLD.json NEW.json" in call("benchmark", *words).stderr
    assert "--compare" not in ok("benchmark", "--help").stdout


def test_rival_beside_a_bundle_alone_or_of_no_name_is_refused(int8, run, phantoms, tmp_path):
    ends = ("--data", phantoms, "--out", tmp_path / "r.html", "-q", "--rival")
    refused("E-RIVAL-SOURCE", INPUT, "benchmark", int8, *ends, "unext")
    refused("E-RIVAL-NAME", INPUT, "benchmark", run, *ends, "yolo")


# --- help ----------------------------------------------------------------------------------------

HEAVY = ("numpy", "torch", "onnx", "openvino", "onnxruntime", "PIL", "tqdm", "safetensors")


def test_help_imports_no_heavy_package():
    code = "import sys\nsys.argv = ['edgeseg', '--help']\nfrom edgeseg.__main__ import main\n"
    code += "try:\n    main()\nexcept SystemExit:\n    pass\n"
    code += f"print(*sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "benchmark" in done.stdout
    assert done.stderr.split() == []


def test_help_takes_hardly_longer_than_importing_click():
    def cpu_s(*arguments):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # In turn and of the process alone, so that a busy machine slows both alike.
    pairs = [(cpu_s("-c", "import click"), cpu_s("-m", "edgeseg", "--help")) for _ in range(5)]
    click_s, help_s = map(statistics.median, zip(*pairs, strict=True))
    assert help_s < 2 * click_s + 0.15


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help(name):
    assert len(ok(name, "--help").stdout.splitlines()) > 3


def test_split_that_the_checkpoint_was_not_trained_with_is_refused(run, phantoms, tmp_path):
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "split.json").unlink()
    ok("data", "split", phantoms, "--out", other / "split.json", "--seed", 9, "-q")
    refused("E-SPLIT-HASH", REFUSED, "evaluate", other, phantoms, "-q")
    refused(
        *("E-SPLIT-HASH", REFUSED, "export", other, "--target", "x86-cpu", "--precision", "fp32"),
        *("--calib", phantoms, "--out", tmp_path / "bundle", "-q"),
    )


def test_networks_of_two_splits_are_not_compared(int8, bundle_copy, phantoms, tmp_path):
    ok("data", "split", phantoms, "--out", tmp_path / "split.json", "--seed", 9, "-q")
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    shutil.copy(tmp_path / "split.json", bundle_copy / "split.json")
    (bundle_copy / "SHA256SUMS").unlink()
    (bundle_copy / "manifest.json").unlink()
    fields = {key: value for key, value in manifest.items() if key not in ("schema", "files")}
    fields["contract"] = InputContract.from_dict(fields["contract"])
    seal_bundle(bundle_copy, fields)
    refused(
        *("E-SPLIT-DIFFERS", REFUSED, "benchmark", int8, bundle_copy, "--data", phantoms, "-q"),
        *("--engine", "onnxruntime", "--out", tmp_path / "report.html"),
    )


def test_folder_with_an_old_stage_is_no_place_for_a_new_run(run, phantoms, tmp_path):
    shutil.copy(run / "student.safetensors", tmp_path)
    refused("E-RUN-EXISTS", INPUT, "train", phantoms, "--out", tmp_path, "--size", 32, "-q")
    assert names_in(tmp_path) == ["student.safetensors"]


def test_engine_that_no_source_has_is_refused(int8, phantoms, tmp_path):
    refused(
        *("E-ENGINE-NONE", INPUT, "benchmark", int8, "--data", phantoms, "-q"),
        *("--engine", "onnxruntime", "--engine", "openvnio", "--out", tmp_path / "r.html"),
    )


def test_missing_package_is_named_with_its_extra(phantoms, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "edgeseg.kd.train", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.delitem(sys.modules, "edgeseg.kd.log", raising=False)
    result = call("train", phantoms, "--out", tmp_path / "run", "-q")
    assert result.exit_code == ENGINE
    assert result.stderr == (
        "edgeseg: E-EXTRA-MISSING: tensorboard is not installed; pip install 'edgeseg[train]'\n"
    )
