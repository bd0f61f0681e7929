"""A network of three channels and four classes through every floor: planned, gated, run, told."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from PIL import Image

from edgeseg.cli.jobs.sources import checkpoint_of
from edgeseg.cli.main import cli
from edgeseg.export import kit as kit_module
from edgeseg.export.parity import answer_of, reference_of
from edgeseg.export.pipeline import Limits, export_bundle, load_trained
from edgeseg.export.plan import make_plan
from edgeseg.export.reading import require_own_answer
from edgeseg.export.target import find_target
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.image import input_from_frame
from edgeseg.runtime.session import open_session
from edgeseg.tests.support.several_classes import (
    CLASSES,
    contract_of,
    export_located,
    located_frames,
    located_network,
    write_located,
)

pytestmark = pytest.mark.long

OPEN = Limits(max_drop=1.0, max_hd95_rise_px=1000.0)


@pytest.fixture(scope="module")
def grey(run):
    """The trained network that is inside."""
    return load_trained(checkpoint_of(run).path)


@pytest.fixture(scope="module")
def located(run, tmp_path_factory):
    """Read the network: (softmax, changes of its contract)."""

    def read(**changes):
        return located_network(tmp_path_factory.mktemp("located") / "located.onnx", run, **changes)

    return read


@pytest.fixture(scope="module")
def frames(frames_of):
    """Frames in colour with classes."""
    return located_frames(frames_of("int8"))


@pytest.fixture(scope="module")
def bundle(run, frames_of, made_once):
    """The INT8 bundle, which the tests of the C runtime share."""
    frames = frames_of("int8")
    return made_once("located-int8", lambda out: export_located(run, frames, out))


@pytest.fixture(scope="module")
def session(bundle):
    return open_session(bundle, threads=1)


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("softmax", [True, False])
def test_softmax_over_background_and_classes_becomes_differences_to_the_background(
    located, frames, softmax, channels
):
    network = located(softmax=softmax, channels=channels)
    reference = reference_of(network.run, network.contract, frames.checks)
    assert reference.mean_dice > 0.5
    for dice in np.nanmean(reference.class_dice, axis=0):
        assert dice > 0.3
    assert reference.logits[0].shape == (3, 64, 64)


def test_channels_of_the_other_order_are_another_answer(located, frames):
    rgb, bgr = (located(channels=channels) for channels in ("rgb", "bgr"))
    frame = input_from_frame(frames.checks[0].frame, rgb.contract)
    turned = input_from_frame(frames.checks[0].frame, bgr.contract)
    assert not np.array_equal(rgb.run(frame), rgb.run(turned))


def test_classes_in_another_order_are_told_by_their_answers(located, frames):
    network = located()
    order = (0, 2, 3, 1)  # what the truth calls 1 the contract calls 2
    checks = [replace(each, truth=np.take(order, each.truth)) for each in frames.checks]
    reference = reference_of(network.run, network.contract, checks)
    with pytest.raises(Refused, match="order of the classes") as caught:
        require_own_answer(network.run, reference)
    assert caught.value.code == "E-CONTRACT-DICE"


@pytest.mark.parametrize(
    "changes", [{"classes": CLASSES[:2]}, {"classes": (*CLASSES, "cyst")}, {"head": "sigmoid"}]
)
def test_another_number_of_channels_than_the_contract_says_is_refused(located, changes):
    with pytest.raises(InputError) as caught:
        located(**changes)
    assert caught.value.code == "E-ONNX-SHAPE"


def test_a_class_without_a_frame_to_judge_it_is_refused(located, frames):
    network = located()
    without = [
        replace(each, truth=np.where(each.truth == 2, 0, each.truth)) for each in frames.checks
    ]
    with pytest.raises(InputError, match="'upper right'") as caught:
        reference_of(network.run, network.contract, without)
    assert caught.value.code == "E-PARITY-FRAMES"


# --- bundle and session --------------------------------------------------------------------------


def test_bundle_says_what_it_is_and_proves_each_class(bundle):
    opened = open_bundle(bundle)
    assert opened.manifest.schema == "edgeseg.bundle/3.0"
    assert opened.manifest.contract.classes == CLASSES
    hops = opened.proof().parity
    assert [each.name for each in hops[-1].classes] == list(CLASSES)
    assert all(each.frames > 1 and each.dice > 0.2 for hop in hops for each in hop.classes)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_golden_frames_in_colour_come_back_with_their_labels(bundle, engine):
    opened = open_session(bundle, engine=engine, threads=1)
    result = opened.selftest(repeats=1)
    assert result.passed
    assert result.bit_equal
    names = opened.bundle.manifest.vectors.frames
    assert {name[-4:] for name in names} == {".pgm", ".ppm"}


def test_session_answers_labels_in_the_frames_own_geometry(session, frames):
    found = set()
    for check in frames.checks:
        mask = session.predict(check.frame)
        assert mask.shape == check.truth.shape
        found |= set(np.unique(mask).tolist())
    assert found == {0, 1, 2, 3}


def test_grey_frame_is_three_channels_alike(session):
    grey = np.random.default_rng(0).integers(0, 256, (90, 70), np.uint8)
    expected = session.predict(np.repeat(grey[:, :, None], 3, axis=2))
    assert np.array_equal(session.predict(grey), expected)


@pytest.mark.parametrize("option", ["largest_only", "fill_holes"])
def test_options_of_one_class_are_refused(bundle, option):
    with pytest.raises(InputError, match=option) as caught:
        open_session(bundle, threads=1, **{option: True})
    assert caught.value.code == "E-CLASSES"


def test_each_class_has_its_threshold_and_its_least_lesion(located, frames):
    plain = located()
    strict = located(threshold=(0.5, 0.9, 0.5), least_area=(0.0, 0.0, 0.5))
    counts = np.zeros((2, 4), int)
    for check in frames.checks:
        for row, network in enumerate((plain, strict)):
            mask = answer_of(network.run, network.contract)(check.frame)[1]
            counts[row] += np.bincount(mask.ravel(), minlength=4)
    assert counts[1, 1] >= counts[0, 1]  # what another class loses may be this one's
    assert 0 < counts[1, 2] < counts[0, 2]
    assert counts[1, 3] == 0  # none is half of a frame


def test_letterbox_keeps_the_shape_of_what_it_sees(run, frames, frames_of, tmp_path):
    out = tmp_path / "bundle"
    changes = {"resize": "letterbox", "pad": 90}
    export_located(run, frames_of("fp32"), out, precision="fp32", **changes)
    opened = open_session(out, threads=1)
    assert opened.selftest().bit_equal
    wide = np.concatenate([frames.checks[0].frame] * 2, axis=1)
    assert opened.predict(wide).shape == wide.shape[:2]


def test_letterbox_leads_masks_back_to_where_lesions_are(located, frames):
    network = located(resize="letterbox", pad=90)  # grey as tissue, which it was trained on
    assert reference_of(network.run, network.contract, frames.checks).mean_dice > 0.3


# --- what is not built for several classes is refused by name -------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "rgb, 3 classes"),
        ({"resize": "letterbox"}, "letterbox"),
    ],
)
def test_frame_graph_is_refused_by_what_it_cannot_follow(located, frames, tmp_path, changes, told):
    plan = make_plan(find_target("x86-cpu"), "fp32", frame=(80, 60))
    with pytest.raises(Refused, match=told) as caught:
        export_bundle(
            located(**changes), plan, tmp_path / "bundle", frames, split=None, limits=OPEN
        )
    assert caught.value.code == "E-FRAME-CONTRACT"
    assert not (tmp_path / "bundle").exists()


def test_stream_of_grey_frames_is_refused_for_colour(bundle, phantoms):
    called = CliRunner().invoke(
        cli, ["stream", str(bundle), str(phantoms / "benign"), "--rate", "30"]
    )
    assert called.exit_code == 2
    assert "E-STREAM-COLOUR" in called.stderr


def test_data_of_other_classes_is_refused(bundle, phantoms):
    called = CliRunner().invoke(cli, ["evaluate", str(bundle), str(phantoms), "--part", "all"])
    assert called.exit_code == 2
    assert "E-CLASSES" in called.stderr
    assert "left, upper right" in called.stderr


# --- commands ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_classes(run, tmp_path_factory):
    """A bundle made by `edgeseg export` whose classes are called as those of the phantoms."""
    folder = tmp_path_factory.mktemp("two")
    grey = load_trained(checkpoint_of(run).path)
    names = ("benign", "malignant", "other")
    contract = contract_of(grey.contract, classes=names[:2], channels="grey3")
    two = contract_of(grey.contract, classes=names)
    file = write_located(folder / "two.onnx", grey.network, grey.contract, two, softmax=False)
    model = onnx.load(file)
    model.graph.initializer.append(numpy_helper.from_array(np.array([3, 1]), "sizes"))
    model.graph.node.append(helper.make_node("Split", ["y", "sizes"], ["kept", "rest"], axis=1))
    model.graph.output[0].name = "kept"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, file)
    (folder / "contract.json").write_text(json.dumps(contract.to_dict()))
    return file


def test_export_evaluate_and_predict_tell_each_class(two_classes, phantoms, tmp_path):
    bundle = tmp_path / "bundle"
    called = CliRunner().invoke(
        cli,
        [
            *("export", str(two_classes), "--contract", str(two_classes.parent / "contract.json")),
            *("--target", "x86-cpu", "--precision", "int8", "--calib", str(phantoms)),
            *("--max-drop", "1", "--max-hd95-rise", "1000", "--out", str(bundle)),
        ],
        catch_exceptions=False,
    )
    assert called.exit_code == 0, called.stderr
    assert "openvino int8, malignant" in called.stdout
    scored = CliRunner().invoke(
        cli, ["evaluate", str(bundle), str(phantoms), "--part", "all", "--json"]
    )
    assert scored.exit_code == 0, scored.stderr
    groups = {each["name"] for each in json.loads(scored.stdout)["groups"]}
    assert {"benign", "malignant"} <= groups
    out = tmp_path / "masks"
    image = next((phantoms / "benign").glob("*).png"))
    done = CliRunner().invoke(cli, ["predict", str(bundle), str(image), "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    (record,) = json.loads((out / "predictions.json").read_text())
    assert record["lesions"]
    assert {each["class"] for each in record["lesions"]} <= {"benign", "malignant"}
    with Image.open(out / f"{image.stem}_mask.png") as mask:
        assert set(np.unique(np.asarray(mask)).tolist()) <= {0, 1, 2}


# --- kit -----------------------------------------------------------------------------------------


def test_kit_judges_labels_and_not_one_threshold(run, frames_of, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(kit_module.__file__).parent))  # as it runs on a device
    build_engine = importlib.import_module("build_engine")
    export_located(run, frames_of("fp16"), tmp_path / "kit", "jetson", "fp16")
    kit = build_engine.kit_files.read_kit(tmp_path / "kit")
    assert len(kit.logit_thresholds) == 3
    build = kit.builds["fp16"]
    assert build.input.shape == (1, 3, 64, 64)
    assert build.logits.shape == (1, 3, 64, 64)
    expected = {"logits": np.load(kit.folder / build.expected)}
    assert build_engine.compare(expected, expected, kit, build).flipped_share == 0
    swapped = {"logits": expected["logits"][:, ::-1]}  # lesions as large, of other classes
    assert build_engine.compare(swapped, expected, kit, build).flipped_share > build.max_flipped
