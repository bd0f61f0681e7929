"""A stream from its source to its outputs and its page, ended by its end, its time or a signal."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence

from ..files import atomic_folder
from .outputs import Outputs, record_of
from .pipeline import Answer, Pace, Predict, Stream, through_crop
from .screen import Screen, View
from .source import Source

SCHEMA = "edgeseg.stream/1"


@dataclass(frozen=True)
class Wanted:
    """What a stream shall leave behind."""

    out: Optional[Path] = None  # a new folder; None: nothing is written
    overlay: str = "none"  # key of `outputs.OVERLAYS`
    masks: bool = False


@dataclass(frozen=True)
class Result:
    """How a stream ended."""

    summary: Dict[str, Any]  # JSON-ready; also summary.json of the outputs
    signal: Optional[int]  # that ended it, one of `_signals_to`; None: its source or its time did


def run_stream(
    source: Source,
    predict: Predict,
    pace: Pace,
    about: Mapping[str, Any],
    *,
    wanted: Wanted,
    classes: Sequence[str] = (),
    screen: Optional[Screen] = None,
) -> Result:
    """Run a stream to its end.

    SIGINT, SIGTERM and SIGHUP end it in good order: frames that are due are answered and the
    outputs are finished. A second signal, and any error, leave no outputs.

    Args:
        source: of the frames; only its crop is segmented.
        predict: a session's.
        pace: the clock and what happens when it is too quick.
        about: JSON-ready facts about bundle and engine for the summary and the page.
        wanted: what to write.
        classes: of the network, where it has several.
        screen: shows each answer; None: nobody looks.

    Raises:
        InputError: E-STREAM-EMPTY, E-OUT-EXISTS, and what the source tells of a frame.
        EngineError, OutputError: of the session and the outputs.
    """
    stream = Stream(source, through_crop(predict, source.crop), pace)
    facts = {**about, "source": source.to_dict(), "pace": _pace_of(pace)}
    with contextlib.ExitStack() as stack:
        outputs: Optional[Outputs] = None
        if wanted.out:
            folder = stack.enter_context(atomic_folder(wanted.out))
            outputs = Outputs(
                folder,
                pace.hz,
                overlay=wanted.overlay,
                masks=wanted.masks,
                has_classes=len(classes) > 1,
            )
            stack.callback(outputs.close)
        # Within atomic_folder, which has a handler of its own.
        caught = stack.enter_context(_signals_to(stream.stop))
        for answer in stream:
            if not screen and not outputs:
                continue  # lesions need not be measured
            record = record_of(answer, pace.hz, source.spacing, classes)
            if screen:
                screen.show(_view_of(answer, record, stream, facts))
            if outputs:
                outputs.write(answer, record)
        summary = _summary_of(stream, facts, caught)
        if screen:
            screen.show(View({**_state_of(stream, facts), "state": "ended"}))
        if outputs:
            outputs.finish(summary)
    return Result(summary, caught[0] if caught else None)


@contextlib.contextmanager
def _signals_to(stop: Callable[[], None]) -> Iterator[List[int]]:
    """Call `stop` on the first SIGINT, SIGTERM or SIGHUP and yield the list that tells which came.

    The second one raises KeyboardInterrupt, where neither is SIGHUP: a shell and the terminal that
    it loses send one each, and systemd may send it beside SIGTERM. An ignored SIGHUP stays so:
    nohup asks for that. Only in the main thread; elsewhere signals are the caller's matter.
    """
    caught: List[int] = []

    def handle(number: int, frame: object) -> None:
        if number != signal.SIGHUP and set(caught) - {signal.SIGHUP}:
            raise KeyboardInterrupt
        caught.append(number)
        stop()

    kinds = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        kinds.append(signal.SIGHUP)
    try:
        previous = {kind: signal.signal(kind, handle) for kind in kinds}
    except ValueError:  # not the main thread
        yield caught
        return
    try:
        yield caught
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)


def _pace_of(pace: Pace) -> Dict[str, Any]:
    return {"hz": pace.hz, "policy": pace.policy, "queue": pace.queue, "loop": pace.loop}


def _summary_of(stream: Stream, facts: Mapping[str, Any], caught: List[int]) -> Dict[str, Any]:
    counts = stream.counts
    elapsed_s = time.perf_counter() - stream.started
    return {
        "schema": SCHEMA,
        "ended_by": signal.Signals(caught[0]).name if caught else "end",
        **facts,
        "elapsed_s": round(elapsed_s, 3),
        "answered_per_s": round(counts.answered / elapsed_s, 3),
        **counts.to_dict(),
        "unaccounted": counts.unaccounted,
    }


def _state_of(stream: Stream, facts: Mapping[str, Any]) -> Dict[str, Any]:
    return {**facts, "state": "running", "fps": round(stream.fps, 2), **stream.counts.to_dict()}


def _view_of(
    answer: Answer, record: Mapping[str, Any], stream: Stream, facts: Mapping[str, Any]
) -> View:
    state = {**_state_of(stream, facts), "frame": dict(record)}
    return View(state, answer.frame, answer.mask)
