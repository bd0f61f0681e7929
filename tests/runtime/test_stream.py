"""Clock, queue, outputs and the command: every frame that was due is accounted for."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edgeseg.cli.main import cli
from edgeseg.runtime.bundle import open_bundle
from edgeseg.runtime.errors import EngineError, InputError, OutputError
from edgeseg.runtime.lesion import Spacing
from edgeseg.runtime.signature import sign_bundle
from edgeseg.runtime.stream import dicom_pixels, outputs, video
from edgeseg.runtime.stream.pipeline import (
    POLICIES,
    Answer,
    Counts,
    Pace,
    Stream,
    through_crop,
)
from edgeseg.runtime.stream.run import Wanted, run_stream
from edgeseg.runtime.stream.source import Item, Source
from edgeseg.runtime.stream.sources import KINDS, open_source
from edgeseg.runtime.stream.statistics import Distribution
from edgeseg.tests.support.dicom_files import CINE, region, write_changed
from edgeseg.tests.support.working_bundle import write_working_bundle

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
FAST_HZ = 500.0


def source_of(*items: Item, hz: float | None = None, **fields) -> Source:
    values = {"crop": None, "spacing": None, **fields}
    return Source(Path("loop"), "test", hz, len(items), read=lambda: iter(items), **values)


def numbered(count: int) -> list[np.ndarray]:
    """Frames whose first pixel is their number."""
    return [np.full((4, 5), number, np.uint8) for number in range(count)]


def brighter_than_zero(frame: np.ndarray) -> np.ndarray:
    return (frame > 0).astype(np.uint8)


def broken(number: int) -> InputError:
    return InputError("E-DICOM-FRAME", f"frame {number} cannot be read; send it again")


def answers_of(stream: Stream) -> list[Answer]:
    """Run a stream to its end; nothing may be lost, whatever the test is about."""
    answers = list(stream)
    assert stream.counts.unaccounted == 0
    assert [answer.number for answer in answers] == list(range(stream.counts.due))
    return answers


# --- clock and queue -----------------------------------------------------------------------------


def test_blocking_queue_answers_every_frame_in_order():
    stream = Stream(source_of(*numbered(40)), brighter_than_zero, Pace(FAST_HZ, "block"))
    answers = answers_of(stream)
    assert [answer.of_source for answer in answers] == list(range(40))
    assert all(answer.frame[0, 0] == answer.number for answer in answers)
    assert stream.counts.answered == 40


@pytest.mark.parametrize("queue", [1, 3])
def test_newest_frames_wait_while_the_session_is_busy(queue):
    at_work, go_on = threading.Event(), threading.Event()

    def predict(frame: np.ndarray) -> np.ndarray:
        if threading.current_thread().name == "session":  # not in the untimed calls
            at_work.set()
            go_on.wait(10)
        return brighter_than_zero(frame)

    stream = Stream(source_of(*numbered(10)), predict, Pace(FAST_HZ, queue=queue))

    def let_go_when_all_are_due() -> None:
        at_work.wait(10)
        while stream.counts.due < 10:
            time.sleep(0.001)
        time.sleep(0.05)  # between counting the last frame and queueing it
        go_on.set()

    helper = threading.Thread(target=let_go_when_all_are_due)
    helper.start()
    answered = [answer.number for answer in answers_of(stream) if not answer.dropped]
    helper.join()
    assert answered[1:] == list(range(10 - queue, 10))  # the first is the one that was in work
    assert stream.counts.dropped == 9 - queue


def test_miss_is_an_answer_after_the_next_tick():
    def predict(frame: np.ndarray) -> np.ndarray:
        time.sleep(0.03 if frame[0, 0] == 2 else 0)
        return brighter_than_zero(frame)

    stream = Stream(source_of(*numbered(5)), predict, Pace(50.0, "block"))
    answers = answers_of(stream)
    assert answers[2].missed
    assert stream.counts.missed == sum(answer.missed for answer in answers)
    for answer in answers:
        assert answer.missed == (answer.latency_ms > 20)
        assert answer.latency_ms == answer.queued_ms + answer.inference_ms


def test_clock_keeps_its_rate():
    started = time.perf_counter()
    answers_of(Stream(source_of(*numbered(21)), brighter_than_zero, Pace(100.0)))
    assert 0.2 <= time.perf_counter() - started < 2


def test_loop_ends_after_the_time_and_starts_the_source_again():
    pace = Pace(FAST_HZ, "block", seconds=0.05, loop=True)
    stream = Stream(source_of(*numbered(4)), brighter_than_zero, pace)
    assert [answer.of_source for answer in answers_of(stream)] == [k % 4 for k in range(25)]


def test_source_without_frames_is_refused():
    with pytest.raises(InputError) as caught:
        list(Stream(source_of(), brighter_than_zero, Pace(FAST_HZ, loop=True)))
    assert caught.value.code == "E-STREAM-EMPTY"


def test_damaged_frame_ends_the_stream_with_its_own_error():
    frames = numbered(3)
    source = source_of(*frames, broken(3), *frames)
    stream = Stream(source, brighter_than_zero, Pace(FAST_HZ, "block"))
    with pytest.raises(InputError, match="frame 3 cannot be read"):
        list(stream)


@pytest.mark.parametrize("policy", POLICIES)
def test_damaged_frames_are_counted_with_keep_going(policy):
    items = [broken(0), *numbered(5), broken(6)]
    pace = Pace(100.0, policy, queue=len(items), keep_going=True)
    stream = Stream(source_of(*items), brighter_than_zero, pace)
    answers = answers_of(stream)
    assert [answer.number for answer in answers if answer.error] == [0, 6]
    assert stream.counts.failed == 2


def test_frame_that_the_session_refuses_is_a_failure():
    def predict(frame: np.ndarray) -> np.ndarray:
        if frame[0, 0] == 1:
            raise EngineError("E-ENGINE-RESULT", "not finite")
        return brighter_than_zero(frame)

    with pytest.raises(EngineError):
        list(Stream(source_of(*numbered(3)), predict, Pace(FAST_HZ, "block")))
    counted = Stream(source_of(*numbered(3)), predict, Pace(FAST_HZ, "block", keep_going=True))
    assert [bool(answer.error) for answer in answers_of(counted)] == [False, True, False]


def test_first_frame_that_the_session_refuses_is_counted_with_keep_going():
    def predict(frame: np.ndarray) -> np.ndarray:
        if frame[0, 0] == 0:
            raise InputError("E-FRAME", "too large; shrink it")
        return brighter_than_zero(frame)

    pace = Pace(FAST_HZ, "block", keep_going=True)
    answers = answers_of(Stream(source_of(*numbered(3)), predict, pace))
    assert [answer.error is not None for answer in answers] == [True, False, False]
    with pytest.raises(InputError, match="too large"):
        list(Stream(source_of(*numbered(3)), predict, Pace(FAST_HZ, "block")))


@pytest.mark.parametrize("where", ["session", "source"])
def test_bug_in_a_thread_is_raised_and_nothing_hangs(where):
    def predict(frame: np.ndarray) -> np.ndarray:
        if frame[0, 0] == 2 and where == "session":
            raise ZeroDivisionError
        return brighter_than_zero(frame)

    def read() -> Iterator[Item]:
        yield from numbered(3)
        raise ZeroDivisionError

    source = Source(Path("loop"), "test", None, None, None, None, read)
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        list(Stream(source, predict, Pace(FAST_HZ, "block", keep_going=True)))
    assert threading.active_count() == before


def test_stop_answers_what_is_due_and_ends_the_threads():
    before = threading.active_count()
    stream = Stream(source_of(*numbered(4)), brighter_than_zero, Pace(FAST_HZ, loop=True))
    for answer in stream:
        if answer.number == 20:
            stream.stop()
    assert stream.counts.unaccounted == 0
    assert threading.active_count() == before


def test_signal_at_the_very_end_does_not_hang(monkeypatch):
    stream = Stream(source_of(*numbered(3)), brighter_than_zero, Pace(FAST_HZ, "block"))
    notify_all = threading.Condition.notify_all
    receiving = []

    def interrupted(condition: threading.Condition) -> None:
        if threading.get_ident() in receiving:
            stream.stop()
        notify_all(condition)

    def receive() -> None:
        iterator = iter(stream)
        for _ in range(3):
            next(iterator)
        receiving.append(threading.get_ident())  # signals come to the thread that receives
        iterator.close()
        receiving.clear()

    monkeypatch.setattr(threading.Condition, "notify_all", interrupted)
    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    receiver.join(10)
    assert not receiver.is_alive()
    assert stream.counts.answered == 3


def test_stop_does_not_wait_for_the_next_tick():
    stream = Stream(source_of(*numbered(3)), brighter_than_zero, Pace(0.1))
    threading.Timer(0.1, stream.stop).start()
    started = time.perf_counter()
    assert list(stream) == []
    assert time.perf_counter() - started < 5


def test_caller_that_leaves_early_leaves_no_thread_behind():
    before = threading.active_count()
    stream = Stream(source_of(*numbered(4)), brighter_than_zero, Pace(FAST_HZ, loop=True))
    for _ in stream:
        break
    iterator = iter(Stream(source_of(*numbered(4)), brighter_than_zero, Pace(FAST_HZ, loop=True)))
    next(iterator)
    iterator.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_slow_receiver_lets_frames_drop_and_no_answers_pile_up():
    predicted = []

    def predict(frame: np.ndarray) -> np.ndarray:
        predicted.append(1)
        return brighter_than_zero(frame)

    stream = Stream(source_of(*numbered(100)), predict, Pace(FAST_HZ))
    received = 0
    for answer in stream:
        received += not answer.dropped
        assert len(predicted) - 3 - received <= 4  # untimed calls aside
        time.sleep(0.005)
    assert stream.counts.dropped > 0
    assert stream.counts.unaccounted == 0


@pytest.mark.parametrize(
    "fields",
    [
        *({"hz": 0.0}, {"hz": float("nan")}, {"hz": 1e9}, {"hz": 30.0, "policy": "drop"}),
        *({"hz": 30.0, "seconds": seconds} for seconds in (0.0, float("nan"), float("inf"), 1e308)),
    ],
)
def test_clock_that_cannot_be_kept_is_refused(fields):
    with pytest.raises(InputError) as caught:
        Pace(**fields)
    assert caught.value.code == "E-STREAM-CALL"


def test_network_sees_the_crop_and_the_mask_has_the_frames_size():
    seen = []

    def predict(frame: np.ndarray) -> np.ndarray:
        seen.append(frame)
        return np.ones(frame.shape, np.uint8)

    frame = np.arange(48, dtype=np.uint8).reshape(6, 8)
    mask = through_crop(predict, (2, 1, 5, 4))(frame)
    np.testing.assert_array_equal(seen[0], frame[1:4, 2:5])
    assert mask.shape == (6, 8)
    assert mask.sum() == 9
    assert mask[1:4, 2:5].all()


# --- statistics ----------------------------------------------------------------------------------


def test_percentiles_are_within_one_percent_of_the_samples():
    samples = np.random.default_rng(0).lognormal(2, 1, 5000)
    counted = Distribution()
    for sample in samples:
        counted.add(float(sample))
    ordered = np.sort(samples)
    for q in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = ordered[int(np.ceil(q * 5000)) - 1]
        assert exact <= counted.percentile(q) <= 1.0101 * exact
    assert counted.max_ms == ordered[-1]


def test_no_samples_have_no_percentile_and_few_have_no_p99():
    counted = Distribution()
    assert counted.to_dict() == {"p50": None, "p99": None, "max": None}
    for _ in range(367):
        counted.add(1.0)
    assert counted.p99_ms is None
    counted.add(1.0)
    assert counted.p99_ms == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("value_ms", [0.0, 1e-9, 1e9])
def test_extreme_samples_are_counted(value_ms):
    counted = Distribution()
    counted.add(value_ms)
    assert counted.n == 1
    assert counted.percentile(0.5) <= max(value_ms, 0.001)


# --- sources -------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (2, 0, 1):
        Image.fromarray(np.full((6, 8), 50 * number + 50, np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    pytest.importorskip("cv2", reason="no OpenCV; make install brings it")
    path = tmp_path / "clip.mp4"
    writer = video.VideoWriter(path, 25.0)
    for number in range(10):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
    writer.close()
    return path


def test_folder_is_read_in_the_order_of_its_names(images):
    source = open_source(images)
    assert [int(frame[0, 0]) for frame in source.read()] == [50, 100, 150]
    assert (source.kind, source.hz, source.frames) == ("images", None, 3)


def test_images_of_one_name_are_two_frames(images):
    Image.fromarray(np.full((6, 8), 60, np.uint8)).save(images / "0.bmp")
    assert open_source(images).frames == 4


def test_masks_beside_their_images_are_no_frames_and_it_is_said(bundle, images):
    for name in ("0_mask.png", "0_mask_1.png", "alone_mask.png"):
        Image.fromarray(np.full((6, 8), 60, np.uint8)).save(images / name)
    source = open_source(images)
    assert (source.frames, len(list(source.read()))) == (4, 4)
    done = stream(bundle, images, "--rate", 100, "--policy", "block")
    assert done.exit_code == 0, done.output
    assert done.stderr == "left out: 2 masks (NAME_mask.png beside NAME.png)\n"
    assert "4 answered" in done.stdout


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        open_source(tmp_path)
    assert caught.value.code == "E-IMAGE-NONE"


@pytest.mark.parametrize("name", ["x.png", "x.dcm", "x.bin", "folder"])
def test_source_that_may_not_be_read_is_refused_in_one_line(tmp_path, monkeypatch, name):
    pytest.importorskip("pydicom", reason="no pydicom; make install brings it")
    (tmp_path / "folder").mkdir()
    if name != "folder":
        (tmp_path / name).write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(InputError) as caught:
        open_source(tmp_path / name)
    assert caught.value.code in ("E-STREAM-SOURCE", "E-DICOM-READ")
    assert "Permission denied" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_image_that_cannot_be_read_stands_in_its_place(images):
    (images / "1.png").write_bytes(b"no image")
    first, second, third = open_source(images).read()
    assert isinstance(first, np.ndarray)
    assert isinstance(third, np.ndarray)
    assert second.code == "E-IMAGE-READ"


def test_video_gives_its_frames_and_its_rate(clip):
    source = open_source(clip)
    frames = list(source.read())
    assert (source.kind, source.hz, source.frames) == ("video", 25.0, 10)
    assert [abs(int(frame[20, 30]) - 20 * k) <= 4 for k, frame in enumerate(frames)] == [True] * 10


def test_damaged_video_names_the_frame_that_is_missing(clip):
    content = bytearray(clip.read_bytes())
    at = content.index(b"mdat") + 4
    starts = [at + k for k in range(len(content) - at) if content[at + k :][:4] == b"\0\0\1\xb6"]
    content[starts[4] : starts[8]] = bytes(starts[8] - starts[4])
    clip.write_bytes(content)
    *frames, last = open_source(clip).read()
    assert all(isinstance(frame, np.ndarray) for frame in frames)
    assert last.code == "E-VIDEO-FRAME"
    assert f"frame {len(frames)} of {clip}" in str(last)


@pytest.mark.parametrize("content", [b"", b"no video", bytes(5000)])
def test_file_that_is_no_video_is_refused(tmp_path, content):
    pytest.importorskip("cv2", reason="no OpenCV; make install brings it")
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_source(tmp_path / "x.mp4")
    assert caught.value.code == "E-VIDEO-READ"


def test_missing_video_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    (tmp_path / "x.mp4").write_bytes(b"")
    with pytest.raises(EngineError, match=r"edgeseg\[video\]") as caught:
        open_source(tmp_path / "x.mp4")
    assert caught.value.code == "E-EXTRA-MISSING"


def test_callers_environment_does_not_open_the_network_to_a_video(monkeypatch):
    pytest.importorskip("cv2", reason="no OpenCV; make install brings it")
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file,http,tcp")
    video._library()
    assert os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] == "protocol_whitelist;file"


@pytest.mark.parametrize("name", ["missing.dcm", "notes.txt"])
def test_source_of_no_known_kind_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError) as caught:
        open_source(tmp_path / name)
    assert caught.value.code == "E-STREAM-SOURCE"


def test_dicom_is_known_by_its_magic_word_without_a_suffix(tmp_path):
    path = write_changed(CINE, tmp_path / "IM_0001")
    assert open_source(path, whole_frame=True).kind == "dicom"


def test_every_kind_of_source_is_tested_here(images, clip, tmp_path):
    dicom = write_changed(CINE, tmp_path / "x.dcm")
    opened = {open_source(path, whole_frame=True).kind for path in (images, clip, dicom)}
    assert opened == set(KINDS)


# --- outputs -------------------------------------------------------------------------------------


def lesion_at_number(frame: np.ndarray) -> np.ndarray:
    """Mark as many pixels of the first row as the frame's number says."""
    mask = np.zeros(frame.shape, np.uint8)
    mask[0, : frame[0, 0]] = 1
    return mask


def run_to(out: Path, source: Source, **options) -> dict:
    wanted = Wanted(out, options.pop("overlay", "images"), options.pop("masks", True))
    pace = Pace(FAST_HZ, "block", **options)
    return run_stream(source, lesion_at_number, pace, {"engine": "test"}, wanted=wanted).summary


def records_in(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / outputs.RECORDS).read_text().splitlines()]


def test_outputs_hold_a_record_mask_and_overlay_of_each_frame(tmp_path):
    source = source_of(*numbered(4), spacing=Spacing(row_mm=0.2, column_mm=0.5))
    summary = run_to(tmp_path / "out", source)
    records = records_in(tmp_path / "out")
    assert [record["lesion_area_px"] for record in records] == [0, 1, 2, 3]
    assert [record["lesion_area_mm2"] for record in records] == [0, 0.1, 0.2, 0.3]
    (lesion,) = records[2]["lesions"]
    assert (lesion["area_px"], lesion["box"]) == (2, [0, 0, 2, 1])
    assert (lesion["width_mm"], lesion["height_mm"]) == (1.0, 0.2)
    assert {record["outcome"] for record in records} == {"answered"}
    mask = np.asarray(Image.open(tmp_path / "out/masks/000003.png"))
    np.testing.assert_array_equal(mask[0], [255, 255, 255, 0, 0])
    assert len(list((tmp_path / "out/overlay").iterdir())) == 4
    assert json.loads((tmp_path / "out" / outputs.SUMMARY).read_text()) == summary
    assert summary["frames"] == {
        "due": 4,
        "answered": 4,
        "dropped": 0,
        "failed": 0,
        "missed": summary["frames"]["missed"],
    }
    assert (summary["unaccounted"], summary["ended_by"]) == (0, "end")


def test_name_that_is_no_utf8_does_not_cost_the_outputs(tmp_path):
    source = source_of(*numbered(2), broken(2))
    source = replace(source, path=Path(os.fsdecode(b"caf\xe9.dcm")))
    summary = run_to(tmp_path / "out", source, keep_going=True)
    assert json.loads((tmp_path / "out" / outputs.SUMMARY).read_text()) == summary


def test_lesions_are_not_measured_where_nobody_looks(monkeypatch):
    monkeypatch.setattr(outputs, "lesions_of", None)
    pace = Pace(FAST_HZ, "block")
    done = run_stream(source_of(*numbered(3)), lesion_at_number, pace, {}, wanted=Wanted())
    assert done.summary["frames"]["answered"] == 3


def test_source_that_fails_while_it_is_read_is_not_called_a_full_disk(tmp_path, monkeypatch):
    source = open_source(write_changed(CINE, tmp_path / "x.dcm"), whole_frame=True)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(dicom_pixels, "_encoded_frames", fail)
    with pytest.raises(InputError) as caught:
        run_to(tmp_path / "out", source)
    assert caught.value.code == "E-DICOM-FRAME"
    assert "Input/output error" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_record_without_spacing_has_no_area_in_mm2(tmp_path):
    run_to(tmp_path / "out", source_of(*numbered(2)))
    assert "lesion_area_mm2" not in records_in(tmp_path / "out")[0]


def test_failed_frames_have_a_record_and_no_picture(tmp_path):
    frames = numbered(2)
    run_to(tmp_path / "out", source_of(frames[0], broken(1), frames[1]), keep_going=True)
    assert [record["outcome"] for record in records_in(tmp_path / "out")] == [
        "answered",
        "failed",
        "answered",
    ]
    assert {path.name for path in (tmp_path / "out/masks").iterdir()} == {
        "000000.png",
        "000002.png",
    }


@pytest.mark.parametrize(
    ("source", "code"), [(source_of(*numbered(3), broken(3)), "E-DICOM-FRAME")]
)
def test_error_leaves_nothing(tmp_path, source, code):
    with pytest.raises(InputError) as caught:
        run_to(tmp_path / "out", source)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_overlay_video_keeps_the_clock_where_frames_failed(tmp_path):
    pytest.importorskip("cv2", reason="no OpenCV; make install brings it")
    frame = np.zeros((48, 64), np.uint8)
    source = source_of(broken(0), frame, broken(2), frame)
    run_to(tmp_path / "out", source, overlay="video", keep_going=True)
    played = list(open_source(tmp_path / "out/overlay.mp4").read())
    assert [picture.shape for picture in played] == [(48, 64)] * 3  # from the first picture on


def test_frames_of_two_sizes_do_not_fit_a_video(tmp_path):
    pytest.importorskip("cv2", reason="no OpenCV; make install brings it")
    source = source_of(np.zeros((48, 64), np.uint8), np.zeros((48, 62), np.uint8))
    with pytest.raises(InputError) as caught:
        run_to(tmp_path / "out", source, overlay="video")
    assert caught.value.code == "E-VIDEO-SIZE"
    assert list(tmp_path.iterdir()) == []
    run_to(tmp_path / "out", source, overlay="images")


def test_overlays_are_images_where_no_video_library_is_installed(monkeypatch):
    assert outputs.default_overlay() in outputs.OVERLAYS
    monkeypatch.setattr(outputs, "video_is_installed", lambda: False)
    assert outputs.default_overlay() == "images"


def test_full_disk_is_an_output_error(full_disk):
    frames = [np.random.default_rng(k).integers(0, 255, (200, 200), np.uint8) for k in range(9)]
    source = source_of(*frames)
    with pytest.raises(OutputError) as caught:
        run_stream(
            source,
            brighter_than_zero,
            Pace(FAST_HZ, "block"),
            {},
            wanted=Wanted(full_disk / "out", "images"),
        )
    assert caught.value.code == "E-OUT-WRITE"
    assert list(full_disk.iterdir()) == []


def test_counts_and_paced_benchmark_mean_the_same():
    from edgeseg.benchmarks.measure.modes import PacedRun

    latencies_ms = (5.0, 33.0, 34.0, 90.0)
    paced = PacedRun(30.0, 6, (0, 1, 2, 5), latencies_ms, 0.0)
    counts = Counts(due=6)
    mask = np.zeros((1, 1), np.uint8)
    for number in (3, 4):
        counts.add(Answer(number, dropped=True))
    for number, latency_ms in zip(paced.answered, latencies_ms, strict=True):
        missed = latency_ms > 1000 / 30
        counts.add(Answer(number, mask=mask, inference_ms=latency_ms, missed=missed))
    ours = (counts.answered, counts.dropped, counts.missed)
    assert ours == (paced.done, paced.dropped, paced.missed)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_working_bundle(tmp_path / "bundle")


def stream(*arguments: object):
    return CliRunner().invoke(cli, ["stream", *map(str, arguments)])


def test_command_streams_a_dicom_loop_by_its_own_clock_and_region(bundle, tmp_path):
    regions = [region((42, 16, 297, 206))]
    cine = write_changed(CINE, tmp_path / "cine.dcm", SequenceOfUltrasoundRegions=regions)
    done = stream(bundle, cine, "--out", tmp_path / "out", "--masks", "--policy", "block", "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["frames"]["answered"] == summary["frames"]["due"] == 30
    assert summary["pace"]["hz"] == pytest.approx(30, rel=1e-3)
    assert summary["source"]["spacing"] == pytest.approx({"row_mm": 1.0, "column_mm": 0.5})
    for path in (tmp_path / "out/masks").iterdir():
        mask = np.asarray(Image.open(path)).copy()
        assert mask.shape == (240, 320)
        assert mask[16:207, 42:298].any()
        mask[16:207, 42:298] = 0
        assert not mask.any()


def test_options_of_a_session_and_a_spacing_reach_the_stream(bundle, images, tmp_path):
    out = tmp_path / "out"
    options = ["--largest-only", "--fill-holes", "--spacing-mm", 0.2, 0.5, "--rate", 50]
    done = stream(bundle, images, *options, "--policy", "block", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["source"]["spacing"] == {"row_mm": 0.2, "column_mm": 0.5}
    records = records_in(out)
    assert len(records) == 3
    for record in records:
        assert len(record["lesions"]) <= 1
        assert record["lesion_area_mm2"] == pytest.approx(0.1 * record["lesion_area_px"])


def test_layout_of_the_bundle_takes_the_place_of_the_files_region(tmp_path):
    layout = {"width": 320, "height": 240, "crop": [10, 10, 60, 60], "blank": [], "fan": []}
    bundle = write_working_bundle(tmp_path / "bundle", layout=layout)
    regions = [region((42, 16, 297, 206))]
    cine = write_changed(CINE, tmp_path / "cine.dcm", SequenceOfUltrasoundRegions=regions)
    out = tmp_path / "out"
    options = ["--policy", "block", "--rate", 200, "--out", out, "--masks", "--overlay", "none"]
    done = stream(bundle, cine, "--json", *options)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["source"]
    assert told["crop"] is None
    assert told["spacing"] is not None
    masks = [np.asarray(Image.open(path)).copy() for path in (out / "masks").iterdir()]
    assert any(mask[10:60, 10:60].any() for mask in masks)
    for mask in masks:
        assert mask.shape == (240, 320)
        mask[10:60, 10:60] = 0
        assert not mask.any()


@pytest.fixture(scope="module")
def key_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with our.pem and our.pub, their.pem and their.pub."""
    pytest.importorskip(
        "model_signing", reason="signatures need the extra [sign]; make install brings it"
    )
    pytest.importorskip(
        "OpenSSL", reason="signatures need the extra [sign]; make install brings it"
    )
    from cryptography.hazmat.primitives.asymmetric import ec

    from edgeseg.tests.runtime.test_bundle_signature import write_keys

    folder = tmp_path_factory.mktemp("keys")
    for name in ("our", "their"):
        write_keys(folder, name, ec.generate_private_key(ec.SECP256R1()))
    return folder


def test_bundle_is_streamed_only_with_the_key_that_signed_it(bundle, images, key_files):
    options = [bundle, images, "--rate", 100, "--policy", "block", "--key"]
    unsigned = stream(*options, key_files / "our.pub")
    assert (unsigned.exit_code, unsigned.stderr.split(": ")[1]) == (3, "E-SIGNATURE-MISSING")
    sign_bundle(open_bundle(bundle).store, key_files / "our.pem")
    missing = stream(*options, key_files / "none.pub")
    assert (missing.exit_code, missing.stderr.split(": ")[1]) == (2, "E-KEY-READ")
    other = stream(*options, key_files / "their.pub")
    assert (other.exit_code, other.stderr.split(": ")[1]) == (3, "E-SIGNATURE")
    ours = stream(*options, key_files / "our.pub")
    assert ours.exit_code == 0, ours.output
    assert "3 answered" in ours.output


def test_command_offers_every_policy_and_overlay():
    choices = {option.name: option.type for option in cli.commands["stream"].params}
    assert tuple(choices["policy"].choices) == tuple(POLICIES)
    assert tuple(choices["overlay"].choices) == tuple(outputs.OVERLAYS)


def test_command_tells_counts_policy_engine_and_hash(bundle, images):
    done = stream(bundle, images, "--rate", 100, "-q")  # taken, as by every command
    assert done.exit_code == 0, done.output
    assert "3 frames due at 100 Hz" in done.output
    assert "policy drop-oldest, queue 1" in done.output


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], "E-STREAM-RATE"),
        (["--rate", 0.001], "E-STREAM-CALL"),
        (["--rate", 0], "E-STREAM-CALL"),
        (["--rate", 30, "--masks"], "E-STREAM-CALL"),
        (["--rate", 30, "--host", "0.0.0.0"], "E-STREAM-CALL"),
        (["--rate", 30, "--whole-frame"], "E-STREAM-CALL"),
        (["--rate", 30, "--minutes", "inf"], "E-STREAM-CALL"),
        (["--rate", 30, "--minutes", "nan"], "E-STREAM-CALL"),
    ],
)
def test_calls_that_make_no_sense_are_refused(bundle, images, options, code):
    done = stream(bundle, images, *options)
    assert done.exit_code == 2
    assert code in done.stderr
    assert done.stderr.count("\n") == 1


def test_folder_that_exists_is_refused_before_anything_runs(bundle, images, tmp_path):
    done = stream(bundle, images, "--rate", 30, "--out", tmp_path)
    assert done.exit_code == 2
    assert "E-OUT-EXISTS" in done.stderr


@pytest.mark.parametrize(
    "numbers",
    [
        *((signal.SIGINT,), (signal.SIGTERM,), (signal.SIGHUP,)),
        *((signal.SIGHUP, signal.SIGHUP), (signal.SIGHUP, signal.SIGTERM)),
    ],
)
def test_signal_ends_in_good_order_with_complete_outputs(bundle, images, tmp_path, numbers):
    number, out = numbers[0], tmp_path / "out"
    command = [sys.executable, "-m", "edgeseg", "stream", bundle, images, "--rate", 100]
    command += ["--loop", "--out", out, "--overlay", "images"]
    process = subprocess.Popen(
        [*map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent)},
        # Else one that the tests inherit, as from nohup, would keep the command going.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob(".out.partial-*/overlay/*.png"))) < 5:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        for each in numbers:
            process.send_signal(each)
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 128 + number
    assert "E-INTERRUPTED" in told
    assert "Traceback" not in told
    summary = json.loads((out / outputs.SUMMARY).read_text())
    assert (summary["ended_by"], summary["unaccounted"]) == (signal.Signals(number).name, 0)
    assert len(records_in(out)) == summary["frames"]["due"] >= 5
    assert list(tmp_path.glob(".out.*")) == []
