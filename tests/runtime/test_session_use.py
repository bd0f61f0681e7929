"""How a device uses a session: one thread at a time, layout, options, golden replay, any frame."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeseg.runtime.bundle import MANIFEST, SUMS, open_bundle
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.engines import ENGINES
from edgeseg.runtime.errors import EdgesegError, EngineError, InputError, Refused
from edgeseg.runtime.image import MAX_FRAME_SIDE, mask_from_logits
from edgeseg.runtime.layout import Layout
from edgeseg.runtime.lesion import fill_holes, keep_largest
from edgeseg.runtime.pgm import pixels_from_pnm, pnm_from_pixels
from edgeseg.runtime.session import SelfTest, Session, open_session

pytestmark = pytest.mark.numbers

CPU_ENGINES = [name for name, entry in ENGINES.items() if entry.on_cpu and not entry.cpu]
CONTRACT = InputContract(height=16, width=16, mean=0.48, std=0.2)  # half of a noisy frame is lesion
# Examples of the fuzz test; FUZZ_FRAMES=100000 for a long run.
FUZZ_FRAMES = int(os.environ.get("FUZZ_FRAMES", "300"))


class Echo:
    """Answers with its input: what is brighter than the mean is lesion."""

    name = "echo"
    facts = {"version": "1"}  # noqa: RUF012 - as in the protocol

    def run(self, image):
        return image


class Gated(Echo):
    """Waits inside `run` until it is let go."""

    def __init__(self):
        self.inside, self.go_on = threading.Event(), threading.Event()

    def run(self, image):
        self.inside.set()
        assert self.go_on.wait(10)
        return super().run(image)


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- one thread at a time ------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["predict", "logits"])
def test_second_thread_inside_a_session_is_refused_and_the_first_is_not_disturbed(call):
    engine = Gated()
    session = Session.over(engine, CONTRACT)
    frame, answers = noise((40, 30)), []
    thread = threading.Thread(target=lambda: answers.append(session.predict(frame)))
    thread.start()
    assert engine.inside.wait(10)
    with pytest.raises(EngineError, match="one session a thread") as caught:
        getattr(session, call)(noise((40, 30), seed=1))
    assert caught.value.code == "E-SESSION-BUSY"
    engine.go_on.set()
    thread.join()
    assert (answers[0] == Session.over(Echo(), CONTRACT).predict(frame)).all()
    assert session.predict(frame).any()  # free again


def test_threads_that_race_get_their_own_mask_or_a_refusal(bundle_of):
    session = open_session(bundle_of("x86-cpu", "int8"), threads=1)
    frames = [noise((60, 70), seed) for seed in range(4)]
    expected = [session.predict(frame) for frame in frames]
    outcomes: list[str] = []

    def hammer(index):
        for _ in range(50):
            try:
                equal = (session.predict(frames[index]) == expected[index]).all()
                outcomes.append("right" if equal else "wrong")
            except EngineError as error:
                outcomes.append(error.code)

    threads = [threading.Thread(target=hammer, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) <= {"right", "E-SESSION-BUSY"}
    assert outcomes.count("right") >= 50
    assert len(outcomes) == 200


def test_session_is_free_again_after_a_frame_that_it_refused():
    session = Session.over(Echo(), CONTRACT)
    with pytest.raises(InputError):
        session.predict(np.zeros((0, 4), np.uint8))
    assert session.predict(noise((8, 8))).shape == (8, 8)


def test_mask_and_logits_are_the_callers_own():
    session = Session.over(Echo(), CONTRACT, layout=Layout(20, 20, (0, 0, 20, 20)))
    frame = noise((20, 20))
    mask, logits = session.predict(frame), session.logits(frame)
    kept_mask, kept_logits = mask.copy(), logits.copy()
    mask_of_other = session.predict(255 - frame)
    assert (mask == kept_mask).all()
    assert (logits == kept_logits).all()
    assert (mask_of_other != mask).any()


# --- layout and options --------------------------------------------------------------------------

SCREEN = Layout(
    60, 50, (10, 5, 50, 45), blank=((10, 5, 20, 9),), fan=((25, 5), (35, 5), (50, 45), (10, 45))
)


def keep_of_frame(layout):
    left, top, right, bottom = layout.crop
    keep = np.zeros((layout.height, layout.width), np.uint8)
    keep[top:bottom, left:right] = layout.keep
    return keep


@pytest.mark.parametrize("channels", [(), (3,)])
def test_what_the_layout_leaves_out_changes_nothing_and_is_never_lesion(channels):
    session = Session.over(Echo(), CONTRACT, layout=SCREEN)
    frame = noise((50, 60, *channels))
    other = frame.copy()
    outside = keep_of_frame(SCREEN) == 0
    other[outside] = 255 - other[outside]
    mask = session.predict(frame)
    assert mask.shape == (50, 60)
    assert mask.any()
    assert (mask == session.predict(other)).all()
    assert not mask[outside].any()
    left, top, right, bottom = SCREEN.crop
    crop = frame * keep_of_frame(SCREEN).reshape((50, 60) + (1,) * len(channels))
    alone = Session.over(Echo(), CONTRACT).predict(crop[top:bottom, left:right])
    assert (mask[top:bottom, left:right] == alone * SCREEN.keep).all()


def test_frame_of_another_size_than_the_layouts_is_refused():
    with pytest.raises(InputError, match="60x50") as caught:
        Session.over(Echo(), CONTRACT, layout=SCREEN).predict(noise((60, 50)))
    assert caught.value.code == "E-FRAME"


@pytest.mark.parametrize("layout", [None, SCREEN, Layout(60, 50, (0, 0, 60, 50))])
def test_holes_are_filled_then_the_largest_is_kept_in_the_frame_as_a_whole(layout):
    for seed in range(10):
        frame = noise((50, 60), seed)
        plain = Session.over(Echo(), CONTRACT, layout=layout).predict(frame)
        keep = np.ones_like(plain) if layout is None else keep_of_frame(layout)
        filled = fill_holes(plain) & keep
        for options, expected in (
            ({"fill_holes": True}, filled),
            ({"largest_only": True}, keep_largest(plain)),
            ({"fill_holes": True, "largest_only": True}, keep_largest(filled)),
        ):
            session = Session.over(Echo(), CONTRACT, layout=layout, **options)
            assert (session.predict(frame) == expected).all()
        assert (filled != plain).any()


def reseal(folder, **changes):
    """Write other fields into a bundle's manifest, with hashes that hold."""
    content = json.loads((folder / MANIFEST).read_bytes())
    for name in content["files"]:
        content["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    text = json.dumps({**content, **changes})
    (folder / MANIFEST).write_text(text)
    sums = {**content["files"], MANIFEST: hashlib.sha256(text.encode()).hexdigest()}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    (folder / SUMS).write_text("".join(lines))


def test_bundle_with_a_layout_opens_a_session_that_keeps_to_it(bundle_copy):
    reseal(bundle_copy, layout=SCREEN.to_dict())
    session = open_session(bundle_copy, threads=1)
    assert session.layout == SCREEN
    assert session.predict(noise((50, 60))).shape == (50, 60)
    assert session.selftest().bit_equal  # golden frames are of other sizes: without the layout


def test_bundle_with_an_impossible_layout_is_not_opened(bundle_copy):
    reseal(bundle_copy, layout={**SCREEN.to_dict(), "crop": [0, 0, 61, 50]})
    with pytest.raises(Refused, match="crop of the layout") as caught:
        open_session(bundle_copy, threads=1)
    assert caught.value.code == "E-MANIFEST-FIELD"


# --- golden replay -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("engine", CPU_ENGINES)
def test_golden_frames_are_answered_as_at_export_twenty_times_over(bundle_of, precision, engine):
    session = open_session(bundle_of("x86-cpu", precision), engine=engine, fill_holes=True)
    result = session.selftest(repeats=20)
    assert result.passed
    assert result.bit_equal
    assert result.worst_flipped == 0
    assert (result.engine, result.repeats, result.repeats_equal) == (engine, 20, True)
    assert result.frames == len(
        open_bundle(bundle_of("x86-cpu", precision)).manifest.vectors.frames
    )


def change_golden_mask(folder, flip_px):
    """Flip pixels of the golden mask with the largest lesion; return what share of it they are."""
    manifest = open_bundle(folder).manifest
    names = manifest.vectors.masks["openvino"]
    name = max(names, key=lambda each: np.count_nonzero(pixels_of(folder, each)))
    mask = pixels_of(folder, name).copy()
    lesion = np.argwhere(mask)
    # Out of the lesion: what is left is what the share is of.
    for pixel in lesion[:flip_px]:
        mask[tuple(pixel)] = 0
    (folder / name).write_bytes(pnm_from_pixels(mask))
    return flip_px / (len(lesion) - flip_px)


def pixels_of(folder, name):
    return pixels_from_pnm((folder / name).read_bytes(), name)


@pytest.mark.parametrize(("limit", "passed"), [(0.5, True), (0.0, False)])
def test_mask_that_differs_from_the_golden_one_is_measured_against_the_limit(
    bundle_copy, limit, passed
):
    share = change_golden_mask(bundle_copy, flip_px=3)
    content = json.loads((bundle_copy / MANIFEST).read_bytes())
    content["vectors"]["max_flipped"]["openvino"] = limit
    reseal(bundle_copy, vectors=content["vectors"])
    result = open_session(bundle_copy, engine="openvino").selftest()
    assert result.worst_flipped == pytest.approx(share)
    assert not result.bit_equal
    assert result.passed is passed


def test_golden_mask_without_a_lesion_counts_flipped_pixels_of_one(bundle_copy):
    manifest = open_bundle(bundle_copy).manifest
    name = manifest.vectors.masks["openvino"][0]
    lesion_px = np.count_nonzero(pixels_of(bundle_copy, name))
    (bundle_copy / name).write_bytes(pnm_from_pixels(pixels_of(bundle_copy, name) * np.uint8(0)))
    reseal(bundle_copy)
    assert open_session(bundle_copy, engine="openvino").selftest().worst_flipped == lesion_px > 1


def test_golden_mask_of_another_size_than_its_frame_is_refused(bundle_copy):
    name = open_bundle(bundle_copy).manifest.vectors.masks["openvino"][0]
    (bundle_copy / name).write_bytes(pnm_from_pixels(np.zeros((3, 3), np.uint8)))
    reseal(bundle_copy)
    with pytest.raises(Refused, match="another size") as caught:
        open_session(bundle_copy, engine="openvino").selftest()
    assert caught.value.code == "E-SELFTEST"


def test_golden_frame_that_changes_after_the_bundle_was_opened_is_refused(bundle_copy):
    session = open_session(bundle_copy, threads=1)
    name = session.bundle.manifest.vectors.frames[0]
    content = bytearray((bundle_copy / name).read_bytes())
    content[-1] ^= 1
    (bundle_copy / name).write_bytes(content)
    with pytest.raises(Refused) as caught:
        session.selftest()
    assert caught.value.code == "E-BUNDLE-HASH"


def test_bundle_without_golden_frames_of_the_engine_is_refused(bundle_copy):
    reseal(bundle_copy, vectors={"frames": [], "masks": {}, "max_flipped": {}})
    for session in (open_session(bundle_copy, threads=1), Session.over(Echo(), CONTRACT)):
        with pytest.raises(Refused, match="no golden frames") as caught:
            session.selftest()
        assert caught.value.code == "E-SELFTEST"


class Wandering(Echo):
    """Answers otherwise from the third call on."""

    name = "openvino"

    def __init__(self):
        self.calls = 0

    def run(self, image):
        self.calls += 1
        return image + np.float32(self.calls > 2)


def test_engine_that_answers_otherwise_the_second_time_does_not_pass(bundle_copy):
    names = ["vectors/frame-0.pgm", "vectors/openvino-0.pgm"]
    frame = pixels_of(bundle_copy, names[0])
    bundle = open_bundle(bundle_copy)
    mask = Session.over(Echo(), bundle.manifest.contract).predict(frame)
    (bundle_copy / names[1]).write_bytes(pnm_from_pixels(mask * np.uint8(255)))
    vectors = {
        "frames": names[:1],
        "masks": {"openvino": names[1:]},
        "max_flipped": {"openvino": 1},
    }
    reseal(bundle_copy, vectors=vectors)
    bundle = open_bundle(bundle_copy)
    result = Session.over(Wandering(), bundle.manifest.contract, bundle=bundle).selftest(repeats=3)
    assert result.bit_equal
    assert not result.repeats_equal
    assert not result.passed


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"worst_flipped": 0.03}, False),
        ({"worst_flipped": float("nan")}, False),
        ({"frames": 0}, False),
        ({"repeats_equal": False}, False),
        ({"bit_equal": False}, True),
    ],
)
def test_golden_replay_passes_within_its_limit_only(changes, passed):
    result = replace(SelfTest("echo", 4, 0.02, 0.02, True, 2, True), **changes)
    assert result.passed is passed
    assert result.to_dict()["passed"] is passed


# --- any frame -----------------------------------------------------------------------------------

_SIDES = st.integers(0, 40)
_SHAPES = st.one_of(
    st.just((9, 13)),
    st.tuples(_SIDES, _SIDES),
    st.tuples(_SIDES, _SIDES, st.sampled_from([1, 2, 3, 3, 3, 4])),
    st.lists(st.integers(0, 4), max_size=5).map(tuple),
    st.tuples(st.sampled_from([1, 3000, MAX_FRAME_SIDE, MAX_FRAME_SIDE + 1]), st.integers(1, 3)),
)
_DTYPES = st.sampled_from(
    ["u1"] * 6 + ["i1", "u2", ">u2", "f4", "f8", "?", "c8", "O", "U1", "M8[s]"]
)


@st.composite
def frames(draw):
    """Arrays of any shape, type and strides, broadcast ones among them; and what is no array."""
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return draw(st.sampled_from([None, [], [[1, 2]], b"frame", 5, "frame", memoryview(b"a")]))
    shape = draw(_SHAPES)
    if kind == 1:  # as large as one likes, of one byte
        side = draw(st.sampled_from([1, 7, 2**14, 2**20, 2**31, 2**40]))
        return np.broadcast_to(np.uint8(draw(st.integers(0, 255))), (side, 5, *shape[2:3]))
    dtype = np.dtype(draw(_DTYPES))
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in shape]
    base = np.zeros([size * abs(step) for size, step in zip(shape, steps, strict=True)], dtype)
    if dtype == np.uint8:
        base[...] = noise(base.shape, draw(st.integers(0, 99)))
    frame = base[(*(slice(None, None, step) for step in steps), ...)]  # an array for no axis too
    if draw(st.booleans()):
        frame = frame.transpose(draw(st.permutations(range(frame.ndim))))
    if draw(st.booleans()):
        frame.flags.writeable = False
    return frame


def is_taken(frame, layout):
    """The rule of the contract."""
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim not in (2, 3):
        return False
    if frame.size == 0 or frame.shape[2:] not in ((), (3,)) or max(frame.shape) > MAX_FRAME_SIDE:
        return False
    return layout is None or frame.shape[:2] == (layout.height, layout.width)


_SHARED = [
    Session.over(Echo(), CONTRACT),
    Session.over(Echo(), CONTRACT, layout=Layout(13, 9, (1, 1, 12, 8), blank=((2, 2, 4, 4),))),
    Session.over(Echo(), CONTRACT, fill_holes=True, largest_only=True),
]


@settings(max_examples=FUZZ_FRAMES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(frame=frames(), session=st.sampled_from(_SHARED))
def test_any_frame_gives_its_mask_or_one_line(frame, session):
    if not is_taken(frame, session.layout):
        with pytest.raises(EdgesegError, match=r"\AE-FRAME: .*\Z"):
            session.predict(frame)
        return
    mask = session.predict(frame)
    assert mask.dtype == np.uint8
    assert mask.shape == frame.shape[:2]
    assert mask.max() <= 1
    if session is _SHARED[0]:
        assert (mask == session.predict(frame.copy())).all()


def test_frame_of_the_largest_side_is_segmented_and_one_px_more_is_not():
    session = Session.over(Echo(), CONTRACT)
    long = noise((MAX_FRAME_SIDE, 2))
    assert session.predict(long).shape == long.shape
    with pytest.raises(InputError, match=r"^E-FRAME: frame is 2x16385 px, over 16384 px a side"):
        session.predict(np.zeros((MAX_FRAME_SIDE + 1, 2), np.uint8))


def test_frame_of_too_many_pixels_in_all_is_refused_before_it_is_copied():
    huge = np.broadcast_to(np.uint8(1), (MAX_FRAME_SIDE, MAX_FRAME_SIDE))
    with pytest.raises(InputError, match="crop or shrink") as caught:
        Session.over(Echo(), CONTRACT).predict(huge)
    assert caught.value.code == "E-FRAME"


def test_mask_of_the_steps_is_the_mask_of_predict():
    session = Session.over(Echo(), CONTRACT, layout=SCREEN, fill_holes=True)
    frame = noise((50, 60))
    logits = session.infer(session.prepare(frame))
    assert (session.read_out(logits, frame.shape) == session.predict(frame)).all()
    assert mask_from_logits(logits, CONTRACT, 40, 40).any()


def test_what_a_prompt_shows_of_a_session_is_short_and_says_what_runs(bundle_of):
    shown = repr(open_session(bundle_of("x86-cpu", "int8")))
    assert len(shown) < 1500  # without hashes, proofs and pixels
    assert "precision='int8'" in shown
    assert "InputContract(height=64, width=64" in shown
