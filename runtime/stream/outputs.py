"""What a stream leaves behind: a record of every frame that was due, pictures and a summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sequence

import numpy as np
from PIL import Image

from ..lesion import Spacing, draw_overlay, lesions_of
from .pipeline import Answer
from .video import VideoWriter, video_is_installed

RECORDS, SUMMARY = "frames.jsonl", "summary.json"


def record_of(
    answer: Answer, hz: float, spacing: Optional[Spacing], classes: Sequence[str] = ()
) -> Dict[str, Any]:
    """Return what became of a frame, as JSON-ready values.

    Args:
        answer: of the stream.
        hz: of its clock.
        spacing: of the pixels; None leaves what is in mm out.
        classes: of the network, where it has several; each lesion has its own then.
    """
    record: Dict[str, Any] = {
        "frame": answer.number,
        "due_s": round(answer.number / hz, 6),
        "of_source": answer.of_source,
    }
    if answer.dropped:
        return {**record, "outcome": "dropped"}
    if answer.mask is None:
        return {**record, "outcome": "failed", "error": str(answer.error)}
    lesions = lesions_of(answer.mask, spacing, classes)
    area_px = sum(lesion.area_px for lesion in lesions)
    record.update(
        outcome="answered",
        missed=answer.missed,
        queued_ms=round(answer.queued_ms, 3),
        inference_ms=round(answer.inference_ms, 3),
        latency_ms=round(answer.latency_ms, 3),
        lesion_area_px=area_px,
    )
    if spacing:
        record["lesion_area_mm2"] = round(area_px * spacing.row_mm * spacing.column_mm, 3)
    return {**record, "lesions": [lesion.to_dict() for lesion in lesions]}


class _Images:
    """Overlays as PNG files of a folder, named by frame."""

    def __init__(self, folder: Path, hz: float) -> None:
        self._folder = folder / "overlay"
        self._folder.mkdir()

    def add(self, number: int, picture: Optional[np.ndarray]) -> None:
        """Write a picture, uint8 [H, W, 3]; a frame without a mask has none."""
        if picture is not None:
            _save(self._folder / f"{number:06d}.png", picture)

    def close(self) -> None:
        """Nothing is open."""


class _Video:
    """A video that keeps the clock from the first mask on: frames without one repeat a picture."""

    def __init__(self, folder: Path, hz: float) -> None:
        self._writer = VideoWriter(folder / "overlay.mp4", hz)
        self._last: Optional[np.ndarray] = None

    def add(self, number: int, picture: Optional[np.ndarray]) -> None:
        """Write a picture, uint8 [H, W, 3], or the last one again."""
        self._last = self._last if picture is None else picture
        if self._last is not None:
            self._writer.write(self._last)

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


# How overlays are written; None: not at all.
OVERLAYS: Dict[str, Optional[Callable[[Path, float], Any]]] = {
    "video": _Video,
    "images": _Images,
    "none": None,
}


def default_overlay() -> str:
    """Return "video" where OpenCV is installed, else "images"."""
    return "video" if video_is_installed() else "images"


class Outputs:
    """Writes into an empty folder as frames are answered; `finish` adds the summary."""

    def __init__(
        self, folder: Path, hz: float, *, overlay: str, masks: bool, has_classes: bool = False
    ) -> None:
        """Open the files.

        Args:
            folder: usually the temporary one of `atomic_folder`.
            hz: of the clock.
            overlay: key of `OVERLAYS`.
            masks: whether to write masks/NNNNNN.png too, 0 and 255.
            has_classes: masks are of several classes: their numbers are written.

        Raises EngineError: E-EXTRA-MISSING for a video without OpenCV.
        """
        self._folder = folder
        self._records = (folder / RECORDS).open("w", encoding="utf-8")
        make = OVERLAYS[overlay]
        self._overlay = make(folder, hz) if make else None
        self._masks = folder / "masks" if masks else None
        self._has_classes = has_classes
        if self._masks:
            self._masks.mkdir()

    def write(self, answer: Answer, record: Dict[str, Any]) -> None:
        """Write what became of a frame; `record` is that of `record_of`."""
        self._records.write(json.dumps(record) + "\n")
        if self._masks and answer.mask is not None:
            mask = answer.mask if self._has_classes else answer.mask * np.uint8(255)
            _save(self._masks / f"{answer.number:06d}.png", mask)
        if self._overlay:
            picture = None
            if answer.frame is not None and answer.mask is not None:
                picture = draw_overlay(answer.frame, answer.mask)
            self._overlay.add(answer.number, picture)

    def finish(self, summary: Dict[str, Any]) -> None:
        """Write the summary and close everything."""
        self.close()
        text = json.dumps(summary, indent=1) + "\n"
        (self._folder / SUMMARY).write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Close what is open; twice does no harm."""
        self._records.close()
        if self._overlay:
            self._overlay.close()


def _save(path: Path, picture: np.ndarray) -> None:
    Image.fromarray(picture).save(path, compress_level=1)  # quick: the stream waits for it
