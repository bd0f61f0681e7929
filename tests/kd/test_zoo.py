"""Students that ship: names, evidence, what may score them, export without data, the card."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edgeseg.benchmarks.measure.accuracy import score_images
from edgeseg.benchmarks.record import from_json
from edgeseg.benchmarks.report.evidence import evidence_to_json, read_evidence, settings_of
from edgeseg.benchmarks.report.model_card import draw_cases, render_card, worst_of
from edgeseg.cli.jobs import empty_frames, sources
from edgeseg.cli.jobs import phantoms as phantoms_job
from edgeseg.cli.main import cli
from edgeseg.export.kit.kit_files import read_kit
from edgeseg.kd import zoo
from edgeseg.kd.checkpoint import load_checkpoint, save_checkpoint
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.kd.data.phantom import write_phantoms
from edgeseg.kd.data.split import make_split, read_split, write_split
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.files import sha256_of_file
from edgeseg.runtime.session import open_session

pytestmark = pytest.mark.long

INPUT, REFUSED = 2, 3
NAME = "t2kd-edge"
SUFFIXES = (".safetensors", ".json", ".calibration.json", ".md", "-phantoms.png")


def call(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def ok(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(code, exit_code, *arguments):
    result = call(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.stderr.startswith(f"edgeseg: {code}: "), result.stderr
    assert (result.stderr.count("\n"), result.exit_code, result.stdout) == (1, exit_code, "")
    return result.stderr


@pytest.fixture(scope="module", autouse=True)
def _few_phantoms():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantoms_job, "COUNT", 24)
        # A run of eight epochs may mark speckle; what is refused then has its own test below.
        patch.setattr(empty_frames, "empty_frames", lambda: iter(()))
        yield


@pytest.fixture(scope="module")
def record(run, bundle_of, phantoms, tmp_path_factory):
    """A benchmark of the run and its INT8 bundle on the test part."""
    report = tmp_path_factory.mktemp("record") / "report.html"
    ok(
        *("benchmark", run, bundle_of("x86-cpu", "int8"), "--data", phantoms, "--rounds", 3),
        *("--mode", "single", "--engine", "torch", "--engine", "openvino", "--passes", 0),
        *("--out", report, "-q"),
    )
    return report.with_suffix(".json")


@pytest.fixture(scope="module")
def whole(run, phantoms, tmp_path_factory):
    """The run's student under the claim that all 40 phantoms trained it."""
    split = make_split(read_dataset(phantoms), fractions=(1, 0, 0))
    return claimed(run, split, tmp_path_factory.mktemp("whole"))


def claimed(run, split, folder):
    """Write the run's student as if another split had trained it."""
    write_split(split, folder / "split.json")
    loaded = load_checkpoint(run / "student.safetensors")
    path = folder / "student.safetensors"
    save_checkpoint(
        path,
        loaded.network,
        model=loaded.model,
        contract=loaded.contract,
        provenance={
            **loaded.provenance,
            "split_sha256": sha256_of_file(folder / "split.json"),
        },
    )
    return path


@pytest.fixture(scope="module")
def shipped(record, run, whole, phantoms, tmp_path_factory):
    """A folder with one student, made by `edgeseg card`."""
    folder = tmp_path_factory.mktemp("zoo")
    ok(*("card", NAME, record, *card_options(run, whole, phantoms), "--out", folder, "-q"))
    return folder


BUNDLE = {}


@pytest.fixture(scope="module", autouse=True)
def _bundles(bundle_of):
    BUNDLE.update({form: bundle_of("x86-cpu", form) for form in ("int8", "fp32")})


def card_options(measured, weights, data, bundle="int8"):
    options = ("--measured", measured, "--weights", weights, "--data", data)
    return (*options, "--int8", BUNDLE[bundle])


@pytest.fixture
def zoo_folder(shipped, tmp_path, monkeypatch):
    """A copy of that folder, to be damaged, in the place of the package's own."""
    folder = Path(shutil.copytree(shipped, tmp_path / "zoo"))
    monkeypatch.setattr(zoo, "FOLDER", folder)
    return folder


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Eight phantoms that no network has seen; nobody may write here."""
    folder = tmp_path_factory.mktemp("fresh") / "data"
    write_phantoms(folder, count=8, seed=9)
    return folder


@pytest.fixture
def mixed(fresh, phantoms, tmp_path):
    """The fresh phantoms and three that the student was trained on."""
    folder = Path(shutil.copytree(fresh, tmp_path / "mixed"))
    for number in (1, 2, 3):
        for path in (phantoms / "benign").glob(f"benign ({number})*"):
            shutil.copy(path, folder / "benign" / path.name.replace("(", "(10"))
    return folder


def evidence_in(folder):
    return read_evidence(folder / f"{NAME}.json", folder / f"{NAME}.safetensors")


# --- what ships ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.available_names())
def test_shipped_student_has_evidence_of_its_own_weights_and_the_card_made_of_it(name):
    weights = zoo.find_weights(name)
    evidence = read_evidence(zoo.evidence_file(weights), weights)
    assert evidence.name == name
    assert weights.with_suffix(".md").read_text() == render_card(evidence, zoo.SHIPPED[name])
    assert (weights.parent / f"{name}-phantoms.png").stat().st_size < 150_000


def test_default_is_in_the_table():
    assert zoo.DEFAULT in zoo.SHIPPED


def test_listing_names_needs_neither_torch_nor_numpy():
    code = "import sys, edgeseg.kd.zoo as zoo; zoo.available_names(); "
    code += "print(*{'torch', 'numpy', 'safetensors'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_only_names_with_weights_and_evidence_are_offered(zoo_folder):
    assert zoo.available_names() == (NAME,)
    (zoo_folder / f"{NAME}.json").unlink()
    assert zoo.available_names() == ()


def test_name_without_its_weights_is_refused(zoo_folder, fresh):
    line = refused("E-ZOO-WEIGHTS", INPUT, "evaluate", "t2kd-attunet", fresh, "-q")
    assert "t2kd-attunet.safetensors" in line


def test_unknown_word_is_refused_with_the_names_there_are(zoo_folder, fresh):
    assert NAME in refused("E-SOURCE", INPUT, "evaluate", "t2kd-egde", fresh, "-q")


def test_path_wins_over_a_name(zoo_folder, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.find_source(Path(NAME)).path == zoo_folder / f"{NAME}.safetensors"
    shutil.copytree(run, tmp_path / NAME)
    assert sources.find_source(Path(NAME)).path == Path(NAME) / "student.safetensors"


def test_models_shows_the_figures_of_the_evidence(zoo_folder):
    evidence = evidence_in(zoo_folder)
    table = ok("models")
    assert f"{evidence.fp32.accuracy.lesions.per_image['dice'].mean:.3f}" in table
    changed = dataclasses.replace(evidence, parameters=123_000_000)
    (zoo_folder / f"{NAME}.json").write_text(evidence_to_json(changed))
    assert " 123 " in ok("models")
    content = json.loads(ok("models", "--json"))
    assert content[NAME]["parameters"] == 123_000_000
    assert content == {NAME: json.loads((zoo_folder / f"{NAME}.json").read_text())}


def test_models_of_an_installation_without_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    assert ok("models") == "no student in this installation\n"
    assert json.loads(ok("models", "--json")) == {}


# --- what may score it ---------------------------------------------------------------------------


def test_student_is_scored_on_the_images_it_has_not_seen(zoo_folder, mixed, fresh):
    assert "unseen part, 8 images" in ok("evaluate", NAME, mixed, "-q")
    of_fresh = json.loads(ok("evaluate", NAME, fresh, "--part", "all", "--json", "-q"))
    of_unseen = json.loads(ok("evaluate", NAME, mixed, "--json", "-q"))
    names = [each.pop("name") for found in (of_fresh, of_unseen) for each in found["sets"]]
    assert len(set(names)) == 2  # of the folders
    assert of_unseen == of_fresh


def test_training_images_do_not_score_it(zoo_folder, mixed, phantoms):
    line = refused("E-DATA-SEEN", REFUSED, "evaluate", NAME, mixed, "--part", "all", "-q")
    assert "3 of the 11 images" in line
    assert "40 of the 40" in refused("E-DATA-SEEN", REFUSED, "evaluate", NAME, phantoms, "-q")


def test_it_has_no_split(zoo_folder, phantoms):
    refused("E-SPLIT-MISSING", INPUT, "evaluate", NAME, phantoms, "--part", "test", "-q")


def test_weights_named_by_path_obey_the_same_rule(zoo_folder, phantoms):
    path = zoo_folder / f"{NAME}.safetensors"
    refused("E-DATA-SEEN", REFUSED, "evaluate", path, phantoms, "--part", "all", "-q")


def test_run_has_no_list_of_seen_images(run, fresh):
    refused("E-PART-UNSEEN", INPUT, "evaluate", run, fresh, "--part", "unseen", "-q")


def test_benchmark_obeys_the_same_rule(zoo_folder, run, mixed, tmp_path):
    out = tmp_path / "report.html"
    rest = ("--data", mixed, "--rounds", 3, "--mode", "single", "--passes", 0)
    rest = (*rest, "--engine", "torch", "--out", out, "-q")
    refused("E-DATA-SEEN", REFUSED, "benchmark", NAME, *rest, "--part", "all")
    refused("E-PART-UNSEEN", INPUT, "benchmark", NAME, run, *rest)
    ok("benchmark", NAME, *rest)
    record = from_json(out.with_suffix(".json").read_bytes())
    assert (record.part, record.split_sha256, record.images) == ("unseen", None, 8)
    assert "what no network here was trained on" in out.read_text()


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda text: text[:-100], "E-EVIDENCE-READ"),
        (lambda text: "[]", "E-EVIDENCE-READ"),
        (lambda text: text.replace("evidence/2", "evidence/9"), "E-EVIDENCE-READ"),
        (lambda text: text.replace('"macs"', '"mac"'), "E-EVIDENCE-READ"),
        (lambda text: text.replace('"checkpoint_sha256": "', '"checkpoint_sha256": "0'),
         "E-EVIDENCE-HASH"),
    ],
)  # fmt: skip
def test_damaged_evidence_is_refused(damage, code, zoo_folder, fresh):
    file = zoo_folder / f"{NAME}.json"
    file.write_text(damage(file.read_text()))
    refused(code, REFUSED, "evaluate", NAME, fresh, "-q")
    refused(code, REFUSED, "models")


# --- export --------------------------------------------------------------------------------------


def export_options(out, precision):
    gates = ("--max-drop", 1, "--max-hd95-rise", 100)
    return ("--target", "x86-cpu", "--precision", precision, *gates, "--out", out, "-q")


@pytest.fixture
def bundle(zoo_folder, tmp_path):
    """The default student in INT8, exported without any data."""
    ok("export", *export_options(tmp_path / "bundle", "int8"))
    return tmp_path / "bundle"


def test_export_without_data_takes_the_ranges_that_ship_and_says_so(zoo_folder, tmp_path, phantoms):
    text = ok("export", *export_options(tmp_path / "b", "int8"))
    assert f"no SOURCE was named: the shipped student {NAME}\n" in text
    assert "checked on the val part of 24 phantoms, seed 0" in text
    assert "calibrated with the ranges that ship with the student\n" in text
    manifest = open_bundle(tmp_path / "b").manifest
    calibration = manifest.provenance["calibration"]
    assert (calibration["source"], calibration["part"]) == ("split of the run", "train")
    assert sorted(calibration["frames_sha256"]) == sorted(
        sha256_of_file(sample.image) for sample in read_dataset(phantoms).samples
    )
    record = (tmp_path / "b" / "calibration.json").read_bytes()
    assert record == (zoo_folder / f"{NAME}.calibration.json").read_bytes()
    assert manifest.evidence["part"] == "val part of 24 phantoms, seed 0"
    assert "split_sha256" not in manifest.provenance
    assert "split.json" not in manifest.files


def test_export_without_data_and_ranges_is_refused(zoo_folder, tmp_path):
    (zoo_folder / f"{NAME}.calibration.json").unlink()
    refused("E-CALIB-MISSING", INPUT, "export", *export_options(tmp_path / "b", "int8"))
    assert not (tmp_path / "b").exists()


def test_export_calibrates_on_phantoms_where_it_is_told_to(zoo_folder, tmp_path):
    text = ok("export", "--synthetic-calibration", *export_options(tmp_path / "b", "int8"))
    frames = {sha256_of_file(path) for path in phantom_files(tmp_path / "again")}
    calibration = open_bundle(tmp_path / "b").manifest.provenance["calibration"]
    facts = {key: calibration[key] for key in ("source", "seed", "count", "part")}
    assert facts == {"source": "phantoms", "seed": 0, "count": 24, "part": "train"}
    used = calibration["frames_sha256"]
    assert set(used) < frames
    assert f"calibrated on {len(used)} phantoms\n" in text


def test_export_for_a_jetson_needs_no_more_than_the_target(tmp_path):
    text = ok("export", "--target", "jetson", "--out", tmp_path / "b", "-q")
    assert f"no SOURCE was named: the shipped student {NAME}\n" in text
    manifest = open_bundle(tmp_path / "b").manifest
    assert (manifest.target, manifest.precision) == ("orin-nano-8@jp6.2", "fp16")
    assert read_kit(tmp_path / "b").default == "fp16"
    assert manifest.evidence["part"] == "val part of 24 phantoms, seed 0"


def phantom_files(folder):
    return [sample.image for sample in write_phantoms(folder, count=24, seed=0).samples]


def test_export_with_data_splits_it_anew(zoo_folder, phantoms, run, tmp_path):
    out = tmp_path / "b"
    content = json.loads(
        ok("export", NAME, "--calib", phantoms, "--json", *export_options(out, "int8"))
    )
    assert content["source"] == NAME
    assert content["checks"] == "val part of a new split of the --calib data, seed 0"
    manifest = open_bundle(out).manifest
    calibration = manifest.provenance["calibration"]
    assert (calibration["source"], calibration["split_seed"]) == ("new split of --calib", 0)
    assert manifest.evidence["part"] == content["checks"]
    # The run's split of the same data has seed 0 too, so its parts are those of the new one.
    entries = read_split(run / "split.json").entries
    train = {entry.image_sha256 for entry in entries if entry.part == "train"}
    assert set(calibration["frames_sha256"]) == train
    assert manifest.evidence["frames"] == sum(entry.part == "val" for entry in entries)


def test_export_in_fp32_needs_no_calibration(zoo_folder, tmp_path):
    assert "calibrated" not in ok("export", NAME, *export_options(tmp_path / "b", "fp32"))
    manifest = open_bundle(tmp_path / "b").manifest
    assert manifest.provenance["calibration"] is None
    assert manifest.evidence["part"] == "val part of 24 phantoms, seed 0"


def test_export_of_a_run_without_its_data_is_refused(run, tmp_path):
    refused("E-CALIB-MISSING", INPUT, "export", run, *export_options(tmp_path / "b", "int8"))
    assert not (tmp_path / "b").exists()


def test_bundle_of_a_student_obeys_the_rule_of_its_weights(bundle, phantoms, mixed):
    assert open_bundle(bundle).manifest.provenance["trained_on"] == sorted(
        sha256_of_file(sample.image) for sample in read_dataset(phantoms).samples
    )
    refused("E-DATA-SEEN", REFUSED, "evaluate", bundle, mixed, "--part", "all", "-q")
    refused("E-DATA-SEEN", REFUSED, "evaluate", bundle, phantoms, "-q")
    refused("E-SPLIT-MISSING", INPUT, "evaluate", bundle, phantoms, "--part", "test", "-q")
    assert "unseen part, 8 images" in ok("evaluate", bundle, mixed, "-q")


# --- the card ------------------------------------------------------------------------------------


def test_card_makes_all_that_ships(shipped, run, whole, phantoms, record):
    assert {path.name for path in shipped.iterdir()} == {NAME + suffix for suffix in SUFFIXES}
    weights = shipped / f"{NAME}.safetensors"
    assert weights.read_bytes() == whole.read_bytes()
    evidence = evidence_in(shipped)
    hashes = sorted(sha256_of_file(sample.image) for sample in read_dataset(phantoms).samples)
    assert list(evidence.trained_on) == hashes
    assert evidence.split_sha256 == sha256_of_file(run / "split.json")
    row = from_json(record.read_bytes()).rows[0]
    assert evidence.fp32.accuracy.lesions == row.accuracy.lesions
    assert (evidence.parameters, evidence.macs) == (row.parameters, row.macs)
    assert evidence.fp32.calibration_error == row.calibration_error


def test_card_says_what_it_must(shipped):
    evidence = evidence_in(shipped)
    text = (shipped / f"{NAME}.md").read_text()
    assert text == render_card(evidence, zoo.SHIPPED[NAME])
    for part in (
        *("Not a medical device", "The figures are not of the weights that ship"),
        *("not in the catalogue", evidence.split_sha256, evidence.checkpoint_sha256),
        *("Intended use", "Known failure cases", "config.seed", "ECE", "FP32 (torch)"),
        *("INT8 (openvino)", f"]({NAME}-phantoms.png)", "outline of the truth in green"),
    ):
        assert part.replace("_", "\\_") in text or part in text
    dice = evidence.int8.accuracy.lesions.per_image["dice"]
    assert f"{dice.mean:.3f} ({dice.low:.3f}–{dice.high:.3f})" in text
    assert "{" not in text
    assert "nan" not in text.split("## ")[2]


def test_picture_is_small_and_shows_both_outlines(shipped):
    path = shipped / f"{NAME}-phantoms.png"
    assert path.stat().st_size < 150_000
    colours = {colour for _, colour in Image.open(path).convert("RGB").getcolors(1 << 16)}
    assert (90, 230, 120) in colours


@dataclasses.dataclass(frozen=True)
class FakeCase:
    name: str
    lesion_rows: int
    label: str = "benign"

    @property
    def group(self):
        return self.name

    def read_image(self, *, colour=False):
        return np.zeros((200, 300), np.uint8)

    def read_mask(self):
        mask = np.zeros((200, 300), np.bool_)
        mask[: self.lesion_rows] = True
        return mask


def test_worst_are_the_lesions_of_lowest_dice_and_the_largest_false_alarm():
    def scores_of(answer_rows, *cases):
        return score_images(lambda image: FakeCase("", answer_rows).read_mask(), cases)

    lesions = [FakeCase(f"{rows}", rows) for rows in (100, 60, 90, 50, 80)]
    quiet, alarm = FakeCase("quiet", 0, "normal"), FakeCase("alarm", 0, "normal")
    scores = scores_of(100, *lesions, alarm) + scores_of(0, quiet)
    assert [score.name for score in worst_of(scores)] == ["50", "60", "80", "alarm"]


def test_picture_draws_truth_in_green_and_answer_in_orange():
    cases = [(FakeCase("a", 100), FakeCase("", 50).read_mask().astype(np.uint8))] * 2
    picture = np.asarray(Image.open(io.BytesIO(draw_cases(cases))).convert("RGB"))
    assert picture.shape == (160, 2 * 240 + 4, 3)
    assert tuple(picture[79, 100]) == (90, 230, 120)  # the truth's last row
    assert tuple(picture[39, 100]) == (255, 140, 0)  # the answer's


def test_settings_are_flat_text():
    provenance = {"config": {"size": 64, "student": "attunet-8"}, "train_images": 28}
    assert settings_of(provenance) == {
        "config.size": "64",
        "config.student": "attunet-8",
        "train_images": "28",
    }


def test_card_of_an_unknown_name_is_refused(record, run, phantoms, tmp_path):
    arguments = ("card", "mine", record, *card_options(run, run, phantoms), "--out", tmp_path, "-q")
    refused("E-ZOO-NAME", INPUT, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_card_of_a_record_that_measured_something_else_is_refused(
    record, run, whole, phantoms, tmp_path, int8_only
):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    shutil.copy(run / "teacher-benign.safetensors", other / "student.safetensors")
    out = tmp_path / "out"
    rest = ("--out", out, "-q")
    refused(
        "E-CARD-WEIGHTS", INPUT, "card", NAME, record, *card_options(other, whole, phantoms), *rest
    )
    refused(
        "E-CARD-RECORD", INPUT, "card", NAME, int8_only, *card_options(run, whole, phantoms), *rest
    )
    assert not out.exists()


@pytest.fixture
def int8_only(record, tmp_path):
    """A record without its torch row."""
    content = json.loads(record.read_text())
    content["rows"], content["comparisons"] = content["rows"][1:], []
    (tmp_path / "int8.json").write_text(json.dumps(content))
    return tmp_path / "int8.json"


def test_card_of_another_bundle_than_the_measured_one_is_refused(record, run, phantoms, tmp_path):
    options = card_options(run, run, phantoms, bundle="fp32")
    rest = ("--out", tmp_path / "out", "-q")
    assert "INT8 bundle" in refused("E-CARD-WEIGHTS", INPUT, "card", NAME, record, *options, *rest)


def test_card_of_weights_that_were_not_trained_on_all_images_is_refused(
    record, run, phantoms, tmp_path
):
    split = make_split(read_dataset(phantoms), seed=3, fractions=(0.9, 0, 0.1))
    part = claimed(run, split, tmp_path)
    out = tmp_path / "out"
    arguments = ("card", NAME, record, *card_options(run, part, phantoms), "--out", out, "-q")
    assert "not on all 40" in refused("E-CARD-WEIGHTS", INPUT, *arguments)
    assert not out.exists()


def test_measured_weights_may_ship_and_have_then_seen_the_train_part_alone(
    record, run, phantoms, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    ok(*("card", NAME, record, *card_options(run, run, phantoms), "--out", out, "-q"))
    evidence = evidence_in(out)
    split = read_split(run / "split.json")
    train = [entry.image_sha256 for entry in split.entries if entry.part == "train"]
    assert evidence.is_measured
    assert list(evidence.trained_on) == sorted(train)
    text = (out / f"{NAME}.md").read_text()
    assert "The figures are of the weights that ship" in text
    assert "are not of the weights" not in text
    monkeypatch.setattr(zoo, "FOLDER", out)
    unseen = len(split.entries) - len(train)
    assert f"unseen part, {unseen} images" in ok("evaluate", NAME, phantoms, "-q")


def test_every_error_of_reading_evidence_is_a_refusal(tmp_path):
    with pytest.raises(Refused):
        read_evidence(tmp_path / "none.json", tmp_path / "none.safetensors")
    with pytest.raises(InputError):
        zoo.find_weights("t2kd-none")


def test_student_that_marks_what_has_no_lesion_gets_no_card(
    record, run, phantoms, tmp_path, monkeypatch
):
    sample = next(each for each in read_dataset(phantoms).samples if each.label == "malignant")
    shown = empty_frames.EmptyFrame("a frame that it marks", sample.read_image())
    monkeypatch.setattr(empty_frames, "empty_frames", lambda: iter([shown]))
    out = tmp_path / "zoo"
    arguments = ("card", NAME, record, *card_options(run, run, phantoms), "--out", out, "-q")
    assert "px of a frame that it marks" in refused("E-EMPTY-MARKED", REFUSED, *arguments)
    assert not out.exists()


@pytest.mark.parametrize("name", zoo.available_names())
def test_card_of_a_shipped_student_names_the_data_sets_with_licence_and_doi(name):
    text = (zoo.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    for part in ("BUSI, licence CC BY 4.0", "10.1016/j.dib.2019.104863", "10.1002/mp.16812"):
        assert part in text


@pytest.mark.parametrize("name", zoo.available_names())
def test_shipped_student_leaves_black_frames_and_speckle_unmarked(name, shipped_int8):
    fp32 = sources.find_source(Path(name)).open("torch", 0)
    empty_frames.require_empty({"FP32": fp32, "INT8": open_session(shipped_int8(name))})
