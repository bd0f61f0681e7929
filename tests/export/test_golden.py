"""The golden frame in which a network marks nothing: far from its threshold, in every engine."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeseg.export.calibration import CalibrationSet
from edgeseg.export.datasheet import datasheet_of, render_datasheet
from edgeseg.export.frame_gate import run_frames
from edgeseg.export.frame_graph import require_frame_contract
from edgeseg.export.golden import (
    EMPTY_MARGIN,
    find_dropped_frame,
    find_empty_frame,
    golden_frames,
)
from edgeseg.export.parity import exact_run
from edgeseg.export.pipeline import Frames, Limits, export_bundle
from edgeseg.export.plan import make_plan
from edgeseg.export.summary import render_export
from edgeseg.export.target import find_target
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import Refused
from edgeseg.runtime.image import input_from_frame, mask_from_logits, resize_grey
from edgeseg.runtime.pgm import pixels_from_pnm
from edgeseg.runtime.session import open_session
from edgeseg.tests.export.test_gate import Toy, toy_checks

pytestmark = pytest.mark.numbers

CONTRACT = InputContract(height=32, width=48)
LEVEL = CONTRACT.logit_threshold
BLACK = input_from_frame(np.zeros((32, 48), np.uint8), CONTRACT)


def form(run):
    return SimpleNamespace(run=run)


def always(logit):
    return form(lambda image: np.full_like(image, logit))


def brighter_than_black(image):
    return np.where(image > BLACK, LEVEL + 1, LEVEL - 9).astype(np.float32)


def test_the_frame_that_is_farthest_from_being_marked_is_taken():
    seen = []

    def run(image):
        seen.append(image.mean())
        return np.full_like(image, LEVEL - 9 - image.mean())

    found = find_empty_frame([form(run)], CONTRACT)
    assert len(set(seen)) == 9
    assert input_from_frame(found.frame, CONTRACT).mean() == max(seen)
    assert find_empty_frame([always(LEVEL - 9)], CONTRACT).name.endswith("grain 3 px, seed 0")


def test_where_speckle_is_marked_a_black_frame_may_do():
    found = find_empty_frame([always(LEVEL - 9), form(brighter_than_black)], CONTRACT)
    assert found.name == "black"
    assert not found.frame.any()


@pytest.mark.parametrize("logit", [LEVEL + 1, LEVEL - EMPTY_MARGIN + 0.01, float("nan")])
def test_a_frame_near_the_threshold_is_not_taken(logit):
    assert find_empty_frame([always(logit)], CONTRACT) is None
    assert find_empty_frame([always(LEVEL - 9), always(logit)], CONTRACT) is None


def test_the_same_frames_are_tried_every_time():
    first, again = (find_empty_frame([always(LEVEL - 9)], CONTRACT) for _ in range(2))
    assert np.array_equal(first.frame, again.frame)


def test_it_is_the_last_golden_frame_where_there_are_any():
    empty = find_empty_frame([always(LEVEL - 9)], CONTRACT)
    phantom = np.full((30, 50), 9, np.uint8)
    with_it, without = (golden_frames([phantom], CONTRACT, each) for each in (empty, None))
    assert with_it[-1] is empty.frame
    assert len(with_it) == len(without) + 1
    assert golden_frames([], CONTRACT, None) == ()


def test_it_is_within_the_limits_of_what_is_replayed():
    large = InputContract(height=1024, width=1024)
    found = find_empty_frame([always(LEVEL - 9)], large)
    assert found.frame.shape == (600, 800)


# --- in what is exported -------------------------------------------------------------------------


class Loud(Toy):
    """Marks every pixel of any frame."""

    def to_onnx(self):
        model = onnx.load_model_from_string(super().to_onnx())
        (bias,) = (each for each in model.graph.initializer if each.name == "head.b")
        bias.CopyFrom(numpy_helper.from_array(np.full(1, 9, np.float32), "head.b"))
        return model.SerializeToString()

    def run(self, image):
        return exact_run(self.to_onnx(), 1)(image)


def export(network, target, out, **limits):
    """Return what was exported and its plan."""
    checks = toy_checks()
    frames = Frames(None, checks, "toys", tuple(each.frame for each in checks[:2]))
    plan = make_plan(find_target(target), "fp32")
    limits = Limits(**limits)
    return export_bundle(network, plan, out, frames, split=None, limits=limits), plan


def test_a_bundle_and_its_selftest_have_it(tmp_path):
    exported, plan = export(Toy(), "x86-cpu", tmp_path / "toy")
    vectors = open_bundle(exported.path).manifest.vectors
    assert len(vectors.frames) == 2 + 3 + 1
    assert exported.to_dict()["empty_frame"] == exported.empty_frame
    assert exported.empty_frame.startswith("speckle")
    assert "empty answer" not in render_export(exported, plan)
    assert len(vectors.masks) == 2
    for names in vectors.masks.values():
        empty = [
            not pixels_from_pnm((exported.path / name).read_bytes(), name).any() for name in names
        ]
        assert empty[-1]
        assert not any(empty[:2])
    session = open_session(exported.path, engine="onnxruntime")
    assert session.selftest().passed

    class Marks:
        """One pixel more, wherever it is."""

        name, facts = session.engine.name, session.engine.facts

        def run(self, image):
            logits = session.engine.run(image).copy()
            logits[0, 0, 5, 5] = 9
            return logits

    more = replace(session, engine=Marks()).selftest()
    assert (more.passed, more.worst_flipped) == (False, 1.0)


def test_the_same_export_has_the_same_frame(tmp_path):
    first, again = (export(Toy(), "x86-cpu", tmp_path / name)[0].path for name in ("a", "b"))
    assert (first / "SHA256SUMS").read_bytes() == (again / "SHA256SUMS").read_bytes()


def test_a_kit_has_it_too(tmp_path):
    exported, _ = export(Toy(), "jetson", tmp_path / "kit")
    inputs, answers = (
        np.load(exported.path / "vectors" / f"{name}.npy") for name in ("input", "fp32")
    )
    assert len(inputs) == len(answers) == 2 + 1
    assert answers[0].max() > 0
    assert answers[-1].max() < -EMPTY_MARGIN
    assert len(open_bundle(exported.path).manifest.vectors.frames) == 2 + 3 + 1


def test_where_no_frame_qualifies_the_export_says_so_once(tmp_path):
    exported, plan = export(Loud(), "x86-cpu", tmp_path / "loud", force_contract=True)
    assert exported.empty_frame is None
    assert exported.to_dict()["empty_frame"] is None
    assert len(open_bundle(exported.path).manifest.vectors.frames) == 2 + 3
    assert render_export(exported, plan).count("note: no golden frame has an empty answer") == 1


# --- with a least lesion -------------------------------------------------------------------------

LEAST = InputContract(height=32, width=48, least_area=20 / (32 * 48))


def spots(*sizes):
    """A network that marks squares of these sides whatever it sees."""

    def run(image):
        logits = np.full_like(image, LEVEL - 9)
        for index, size in enumerate(sizes):
            logits[0, 0, 2 : 2 + size, 12 * index : 12 * index + size] = LEVEL + 3
        return logits

    return form(run)


def test_frame_with_a_component_that_is_clearly_dropped_is_found():
    assert find_dropped_frame([spots(3)], LEAST, []).name.startswith("speckle")
    by_peak = replace(CONTRACT, least_peak=0.999)  # logit 6.9, and 3 is met
    assert find_dropped_frame([spots(9)], by_peak, []) is not None


@pytest.mark.parametrize(
    ("forms", "contract"),
    [
        ([spots(3)], CONTRACT),  # no least lesion
        ([spots()], LEAST),  # nothing is marked
        ([spots(4)], LEAST),  # 16 px of 20: a rounding might decide
        ([spots(3, 5)], LEAST),  # 25 px stay, but a rounding might drop them
        ([spots(3, 9)], LEAST),  # more is left than is dropped
        ([spots(3), spots(9)], LEAST),  # one of the forms drops nothing
        ([spots(3), always(float("nan"))], LEAST),
        ([spots(9)], replace(CONTRACT, least_peak=0.96)),  # logit 3.2 against 3
        ([spots(9)], replace(CONTRACT, least_peak=0.6)),  # reached
    ],
)
def test_frame_in_which_a_rounding_might_decide_is_not_taken(forms, contract):
    assert find_dropped_frame(forms, contract, []) is None


class Least(Toy):
    """Drops all that is smaller than half of the frame."""

    contract = replace(Toy.contract, least_area=0.5)

    def __init__(self):
        super().__init__(contract=self.contract)


def test_a_bundle_with_a_least_lesion_has_a_frame_that_proves_it(tmp_path):
    exported, plan = export(Least(), "x86-cpu", tmp_path / "toy")
    assert exported.dropped_frame is not None
    text = render_export(exported, plan)
    assert "masks are without components of less than 50 % of the frame" in text
    assert "clearly dropped" not in text
    assert len(open_bundle(exported.path).manifest.vectors.frames) == 2 + 3 + 1 + 1
    session = open_session(exported.path, engine="onnxruntime")
    assert session.selftest().bit_equal
    keeps_all = replace(session, contract=Toy.contract).selftest()
    assert not keeps_all.passed


def test_where_nothing_is_clearly_dropped_the_export_says_so(tmp_path):
    quiet = Toy(contract=replace(Toy.contract, least_area=1e-9))
    exported, plan = export(quiet, "x86-cpu", tmp_path / "toy")
    assert exported.dropped_frame is None
    assert render_export(exported, plan).count("note: no golden frame has a component that") == 1


def test_frame_graph_of_masks_with_a_least_lesion_drops_as_the_session_does(tmp_path):
    plan = make_plan(find_target("x86-cpu"), "fp32", frame=(90, 70))
    frames = Frames(None, toy_checks(), "toys", ())
    made = export_bundle(Least(), plan, tmp_path / "toy", frames, split=None)
    assert open_bundle(made.path).manifest.frame_graphs["fp32"]["flipped_share"] == 0
    run = run_frames((made.path / "frame-fp32.onnx").read_bytes(), optimised=True)
    frame = resize_grey(toy_checks()[0].frame, 70, 90)
    logits, mask = run(frame)
    assert not mask.any()
    assert mask_from_logits(logits, Toy.contract, *frame.shape).any()


def test_a_kits_frame_graph_replays_a_frame_in_which_something_is_dropped(tmp_path):
    plan = make_plan(find_target("jetson"), "fp32", frame=(90, 70))
    phantoms = tuple(each.frame for each in toy_checks(2))
    frames_of = {}
    for network in (Toy(), Least()):
        frames = Frames(None, toy_checks(), "toys", phantoms)
        made = export_bundle(network, plan, tmp_path / type(network).__name__, frames, split=None)
        frames_of[type(network)] = np.load(made.path / "vectors/frames.npy")
    assert len(frames_of[Least]) == len(frames_of[Toy]) + 1
    answers = np.load(tmp_path / "Least/vectors/frames-fp32.npz")
    kept = mask_from_logits(answers["logits"][-1, 0], Toy.contract, 70, 90)
    assert kept.any()
    assert not answers["mask"][-1].any()


@pytest.mark.parametrize(
    ("target", "precision", "refused"),
    [
        ("xavier-nx@jp5.1", "fp16", True),  # TensorRT 8.5, which takes types as a hint
        ("xavier-nx@jp5.1", "fp32", False),
        ("jetson", "fp16", False),
    ],
)
def test_frame_graph_that_counts_is_refused_where_fp16_may_count(
    target, precision, refused, tmp_path
):
    plan = make_plan(find_target(target), precision, frame=(90, 70))
    assert plan.frame_is_weakly_typed == refused
    if refused:
        images = CalibrationSet(tuple(each.frame for each in toy_checks()), ("2" * 64,), {})
        frames = Frames(images, toy_checks(), "toys", ())
        with pytest.raises(Refused, match=r"E-FRAME-LEAST: .* may count them in FP16"):
            export_bundle(Least(), plan, tmp_path / "toy", frames, split=None)
        assert not list(tmp_path.iterdir())
    else:
        require_frame_contract(Least.contract, weakly_typed=plan.frame_is_weakly_typed)
    by_peak = replace(Toy.contract, least_peak=0.9)
    require_frame_contract(by_peak, weakly_typed=plan.frame_is_weakly_typed)


def test_data_sheet_states_what_is_dropped(tmp_path):
    for network, told in ((Toy(), 0), (Least(), 1)):
        exported, _ = export(network, "x86-cpu", tmp_path / str(told))
        sheet = render_datasheet(datasheet_of(open_bundle(exported.path)))
        assert sheet.count("without components of less than 50 % of the frame") == told
