"""Video files through OpenCV, both ways; the only module that imports it.

OpenCV rather than PyAV: its wheel runs on Python 3.8 and its FFmpeg is configured under the LGPL,
while PyAV's wheel (18.1) contains x264 and x265, which are under the GPL.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np

from ..errors import EngineError, InputError, OutputError
from ..image import MAX_IMAGE_PIXELS, grey_from_frame
from ..window import Window, window_unused
from .source import Item, Source, usable_hz

_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
_CODEC = "mp4v"  # MPEG-4 part 2: in every build, and quick enough for a live stream


def is_video(path: Path) -> bool:
    """Whether a path has the suffix of a video."""
    return path.suffix.lower() in _SUFFIXES


def video_is_installed() -> bool:
    """Whether videos can be read and written here."""
    import importlib.util

    return importlib.util.find_spec("cv2") is not None


def open_video(path: Path, *, whole_frame: bool = False, window: Optional[Window] = None) -> Source:
    """Open a video file; its frames are always whole.

    Raises:
        InputError: E-VIDEO-READ (no video, or none that can be decoded), E-IMAGE-SIZE, E-WINDOW (a
            window for 8 bits).
        EngineError: E-EXTRA-MISSING without OpenCV.
    """
    if window is not None:
        raise window_unused(path)
    cv2 = _library()
    with _capture(cv2, path) as video:
        width, height = (
            int(video.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        told, hz = int(video.get(cv2.CAP_PROP_FRAME_COUNT)), video.get(cv2.CAP_PROP_FPS)
    if width < 1 or height < 1:
        raise InputError("E-VIDEO-READ", f"{path} has frames of no size; encode it again")
    if width * height > MAX_IMAGE_PIXELS:
        raise InputError(
            "E-IMAGE-SIZE",
            f"{path} has {width}x{height} pixels, over the cap of {MAX_IMAGE_PIXELS}; shrink it",
        )
    frames = told if told > 0 else None

    def read() -> Iterator[Item]:
        number = 0
        with _capture(cv2, path) as video:
            while True:
                there, frame = video.read()
                if not there:
                    break
                yield grey_from_frame(frame[:, :, ::-1])  # OpenCV's colours are BGR
                number += 1
        # OpenCV ends in the same way at the end and at a frame that it cannot decode. Containers
        # without an index tell a number from their duration, which may be one too many.
        if frames is not None and number < frames - 1:
            yield InputError(
                "E-VIDEO-FRAME",
                f"frame {number} of {path} cannot be decoded (its header tells {frames} frames); "
                "copy or encode the file again",
            )

    return Source(path, "video", usable_hz(hz), frames, None, None, read)


class VideoWriter:
    """Writes RGB frames of one size to an MP4 file."""

    def __init__(self, path: Path, hz: float) -> None:
        self._library = _library()
        self._path, self._hz = path, hz
        self._writer: Any = None
        self._shape: Any = None

    def write(self, picture: np.ndarray) -> None:
        """Add a frame, uint8 [H, W, 3]; the first one gives the size of all.

        Raises InputError: E-VIDEO-SIZE for another size; OutputError: E-OUT-WRITE.
        """
        if self._writer is None:
            self._shape = picture.shape
            size = (picture.shape[1], picture.shape[0])
            codec = self._library.VideoWriter_fourcc(*_CODEC)
            self._writer = self._library.VideoWriter(str(self._path), codec, self._hz, size)
            if not self._writer.isOpened():
                raise OutputError(
                    "E-OUT-WRITE", f"OpenCV cannot write {self._path.name}; use --overlay images"
                )
        if picture.shape != self._shape:
            raise InputError(
                "E-VIDEO-SIZE",
                f"a frame is {picture.shape[1]}x{picture.shape[0]} and those before "
                f"{self._shape[1]}x{self._shape[0]}; use --overlay images",
            )
        self._writer.write(np.ascontiguousarray(picture[:, :, ::-1]))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()


def _library() -> Any:
    # Read when OpenCV is imported: no chatter of FFmpeg on stderr, and no playlist inside a file
    # may reach the network, whatever the caller's environment says.
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
    os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "protocol_whitelist;file"
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise EngineError(
            "E-EXTRA-MISSING", "OpenCV is not installed; pip install 'edgeseg[video]'"
        ) from error
    return cv2


@contextlib.contextmanager
def _capture(cv2: Any, path: Path) -> Iterator[Any]:
    video = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise InputError("E-VIDEO-READ", f"{path} is no video that can be decoded; encode it")
        yield video
    finally:
        video.release()
