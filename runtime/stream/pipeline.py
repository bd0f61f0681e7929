"""A frame clock, a bounded queue and a session: what becomes of every frame that was due.

Frame k is due k / hz after the start. It is *answered* when its mask is there, *missed* if that is
after the next tick, *dropped* if a newer one took its place in the queue, and *failed* if it could
not be read or segmented; every frame that was due is one of answered, dropped and failed. The
definitions are those of the benchmark's mode "paced".
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from queue import Queue
from typing import Any, Callable, Deque, Dict, Iterator, Optional, Tuple

import numpy as np

from ..errors import EdgesegError, InputError
from .source import MAX_HZ, MIN_HZ, Item, Source
from .statistics import Distribution

Predict = Callable[[np.ndarray], np.ndarray]

# What happens to a new frame while the queue is full.
POLICIES: Dict[str, str] = {
    "drop-oldest": "the newest frame wins: it takes the place of the oldest that waits",
    "block": "no frame is dropped: the clock waits, and late frames count as missed",
}
_UNTIMED_CALLS = 3  # with the first frame, before the clock starts
_LOOK_S = 0.02  # the clock waits no longer without looking whether it shall end
_RESULTS_WAIT = 2  # answers that may wait for what records them; then the session waits
_RECENT = 60  # answers over which the present frame rate is taken


@dataclass(frozen=True)
class Pace:
    """When frames are due and what happens when they cannot be answered in time."""

    hz: float
    policy: str = "drop-oldest"  # key of POLICIES
    queue: int = 1  # frames that may wait, >= 1
    seconds: Optional[float] = None  # how long the clock runs; None: to the end of the source
    loop: bool = False  # start the source again at its end
    keep_going: bool = False  # count a frame that fails and go on, instead of raising

    def __post_init__(self) -> None:
        """Check. Raises InputError: E-STREAM-CALL."""
        if not MIN_HZ <= self.hz <= MAX_HZ:
            raise InputError(
                "E-STREAM-CALL",
                f"a clock of {self.hz:g} Hz cannot be kept; give {MIN_HZ:g} to {MAX_HZ:g} Hz",
            )
        if self.policy not in POLICIES or self.queue < 1:
            raise InputError(
                "E-STREAM-CALL",
                f"policy {self.policy!r}, queue of {self.queue}; choose one of "
                f"{', '.join(POLICIES)} and a queue of at least 1",
            )
        if self.seconds is not None and not 0 < self.seconds * self.hz < math.inf:
            raise InputError(
                "E-STREAM-CALL",
                f"a clock cannot run for {self.seconds:g} s; give a finite time above 0",
            )

    @property
    def ticks(self) -> float:
        """How many frames fall due at most; infinity without an end."""
        return math.inf if self.seconds is None else max(1, math.floor(self.seconds * self.hz))


@dataclass(frozen=True)
class Due:
    """A frame whose time has come."""

    number: int  # of the tick, from 0
    of_source: int  # the frame's number in the source, from 0
    at: float  # when it was due, of time.perf_counter
    item: Item


@dataclass(frozen=True)
class Answer:
    """What became of a frame; exactly one of mask, error and dropped."""

    number: int
    of_source: Optional[int] = None
    frame: Optional[np.ndarray] = None  # grey uint8 [H, W]
    mask: Optional[np.ndarray] = None  # uint8 [H, W], 1 where lesion
    error: Optional[EdgesegError] = None
    dropped: bool = False
    queued_ms: float = 0.0  # from the tick to the session
    inference_ms: float = 0.0  # in the session
    missed: bool = False  # answered after the next tick

    @property
    def latency_ms(self) -> float:
        """From the tick to the mask."""
        return self.queued_ms + self.inference_ms


@dataclass
class Counts:
    """What became of the frames so far, in memory that does not grow."""

    due: int = 0
    answered: int = 0
    dropped: int = 0
    failed: int = 0
    missed: int = 0
    late_ms: float = 0.0  # the clock's own longest delay: of the source, or of a full queue
    latency: Distribution = field(default_factory=Distribution)
    queued: Distribution = field(default_factory=Distribution)
    inference: Distribution = field(default_factory=Distribution)

    def add(self, answer: Answer) -> None:
        """Count a frame."""
        self.dropped += answer.dropped
        self.failed += answer.error is not None
        if answer.mask is not None:
            self.answered += 1
            self.missed += answer.missed
            self.latency.add(answer.latency_ms)
            self.queued.add(answer.queued_ms)
            self.inference.add(answer.inference_ms)

    @property
    def unaccounted(self) -> int:
        """Frames due of which nothing is known; 0 once the stream has ended."""
        return self.due - self.answered - self.dropped - self.failed

    def to_dict(self) -> Dict[str, Any]:
        """Return counts and percentiles as JSON-ready values."""
        names = ("due", "answered", "dropped", "failed", "missed")
        return {
            "frames": {name: getattr(self, name) for name in names},
            "latency_ms": self.latency.to_dict(),
            "queued_ms": self.queued.to_dict(),
            "inference_ms": self.inference.to_dict(),
            "clock_late_ms": round(self.late_ms, 3),
        }


class FrameQueue:
    """Frames that wait for the session, a bounded number of them."""

    def __init__(self, size: int, policy: str) -> None:
        self._waiting: Deque[Due] = deque()
        self._size, self._policy = size, policy
        self._changed = threading.Condition()
        self._closed = False

    def put(self, due: Due) -> None:
        """Let a frame wait: in the place of the oldest, or once there is room."""
        with self._changed:
            if self._policy == "block":
                self._changed.wait_for(lambda: len(self._waiting) < self._size or self._closed)
            elif len(self._waiting) == self._size:
                self._waiting.popleft()
            self._waiting.append(due)
            self._changed.notify_all()

    def get(self) -> Optional[Due]:
        """Return the frame that has waited longest; None once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            due = self._waiting.popleft() if self._waiting else None
            self._changed.notify_all()
            return due

    def close(self) -> None:
        """No frame will come any more; those that wait are still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Stream:
    """Frames of a source at a pace through `predict`; iterate once over what became of each.

    Two threads work: the clock reads the source one frame ahead and the session's predicts. The
    caller's receives. Memory is bounded: frames exist one in the source, `queue` waiting, one in
    work and two answered.
    """

    def __init__(self, source: Source, predict: Predict, pace: Pace) -> None:
        self.counts = Counts()
        self.started = time.perf_counter()
        self._source, self._predict, self._pace = source, predict, pace
        self._queue = FrameQueue(pace.queue, pace.policy)
        self._answers: Queue[Optional[Answer]] = Queue(_RESULTS_WAIT)
        self._stopping = False  # no Event: a signal within its `set` would wait for itself
        self._bug: Optional[BaseException] = None
        self._recent: Deque[float] = deque(maxlen=_RECENT)

    def stop(self) -> None:
        """End the clock; frames that are due already are still answered. Safe in a signal."""
        self._stopping = True

    @property
    def fps(self) -> float:
        """Answers a second over the last 60."""
        if len(self._recent) < 2 or self._recent[-1] == self._recent[0]:
            return 0.0
        return (len(self._recent) - 1) / (self._recent[-1] - self._recent[0])

    def __iter__(self) -> Iterator[Answer]:
        """Run, and yield what became of each frame in the order of the ticks.

        Raises:
            InputError: E-STREAM-EMPTY for a source without frames.
            What the source tells or the session raises about a frame, unless `keep_going`.
        """
        items = _endless(self._source, self._pace.loop)
        first = next(items, None)
        if first is None:
            raise InputError("E-STREAM-EMPTY", f"{self._source.path} holds no frame; check it")
        if isinstance(first[1], np.ndarray):
            # A frame that is refused fails when it is due, and is told or counted there.
            with contextlib.suppress(EdgesegError):
                for _ in range(_UNTIMED_CALLS):
                    self._predict(first[1])
        self.started = time.perf_counter()
        threads = [
            threading.Thread(target=self._guard, args=work, name=name, daemon=True)
            for name, work in (
                ("frame clock", (self._tick, first, items)),
                ("session", (self._answer_all,)),
            )
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._received()
        finally:
            self._stopping = True
            self._queue.close()
            while any(thread.is_alive() for thread in threads):
                self._drain()
                for thread in threads:
                    thread.join(0.01)

    def _received(self) -> Iterator[Answer]:
        while True:
            answer = self._answers.get()
            if answer is None:
                break
            self.counts.add(answer)
            if answer.error and not self._pace.keep_going:
                raise answer.error
            if answer.mask is not None:
                self._recent.append(time.perf_counter())
            yield answer
        if self._bug:
            raise self._bug

    def _drain(self) -> None:
        while not self._answers.empty():
            self._answers.get_nowait()

    def _guard(self, work: Callable[..., None], *arguments: Any) -> None:
        """Run a thread's work; what it raises ends the stream and is raised to the caller."""
        try:
            work(*arguments)
        except BaseException as error:
            self._bug = error
            self._stopping = True
        finally:
            self._queue.close()
            if work == self._answer_all:
                self._answers.put(None)

    def _tick(self, first: Tuple[int, Item], items: Iterator[Tuple[int, Item]]) -> None:
        # The first tick comes a period after the start, when both threads run.
        start = time.perf_counter() + 1 / self._pace.hz
        following: Optional[Tuple[int, Item]] = first
        number = 0
        while following and number < self._pace.ticks:
            at = start + number / self._pace.hz
            if not self._comes(at):
                return
            self.counts.late_ms = max(self.counts.late_ms, (time.perf_counter() - at) * 1000)
            self.counts.due += 1
            self._queue.put(Due(number, following[0], at, following[1]))
            following = next(items, None)
            number += 1

    def _comes(self, at: float) -> bool:
        """Wait for a tick; False, and at once, if the clock shall end."""
        while not self._stopping:
            left_s = at - time.perf_counter()
            if left_s <= 0:
                return True
            time.sleep(min(left_s, _LOOK_S))
        return False

    def _answer_all(self) -> None:
        expected = 0
        while True:
            due = self._queue.get()
            if due is None:
                return
            for number in range(expected, due.number):
                self._answers.put(Answer(number, dropped=True))
            expected = due.number + 1
            self._answers.put(self._answer(due))

    def _answer(self, due: Due) -> Answer:
        started = time.perf_counter()
        if not isinstance(due.item, np.ndarray):
            return Answer(due.number, due.of_source, error=due.item)
        try:
            mask = self._predict(due.item)
        except EdgesegError as error:
            return Answer(due.number, due.of_source, error=error)
        done = time.perf_counter()
        return Answer(
            due.number,
            due.of_source,
            due.item,
            mask,
            queued_ms=(started - due.at) * 1000,
            inference_ms=(done - started) * 1000,
            missed=done - due.at > 1 / self._pace.hz,
        )


def _endless(source: Source, loop: bool) -> Iterator[Tuple[int, Item]]:
    """Yield number in the source and frame, over and over with `loop`."""
    while True:
        number = -1
        for number, item in enumerate(source.read()):
            yield number, item
        if number < 0 or not loop:
            return


def through_crop(predict: Predict, crop: Optional[Tuple[int, int, int, int]]) -> Predict:
    """Return `predict` that sees a crop (left, top, right, bottom) of each frame and no more.

    The mask has the frame's size and is 0 outside the crop.
    """
    if crop is None:
        return predict
    left, top, right, bottom = crop

    def predict_crop(frame: np.ndarray) -> np.ndarray:
        mask = np.zeros(frame.shape[:2], np.uint8)
        mask[top:bottom, left:right] = predict(frame[top:bottom, left:right])
        return mask

    return predict_crop
