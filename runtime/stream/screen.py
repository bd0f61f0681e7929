"""The newest answer, for whoever looks: viewers take it when they can, the stream never waits."""

from __future__ import annotations

import io
import json
import struct
import threading
from dataclasses import dataclass
from typing import Any, Dict, Optional, Tuple

import numpy as np
from PIL import Image

from ..metrics import boundary_of

_JPEG_QUALITY = 90  # of the view alone; masks and records come from the frame itself


@dataclass(frozen=True)
class View:
    """A frame with its mask and what is to be said beside it."""

    state: Dict[str, Any]  # JSON-ready
    frame: Optional[np.ndarray] = None  # grey uint8 [H, W]; None: no picture yet
    mask: Optional[np.ndarray] = None  # uint8 [H, W]


class Screen:
    """Holds one view. `show` is a swap of a reference; pictures are encoded by who asks."""

    def __init__(self, state: Dict[str, Any]) -> None:
        self._serial = 0
        self._view = View(state)
        self._changed = threading.Condition()
        self._encoding = threading.Lock()
        self._encoded: Tuple[int, bytes] = (-1, b"")

    def show(self, view: View) -> None:
        """Replace the view."""
        with self._changed:
            self._serial += 1
            self._view = view
            self._changed.notify_all()

    def encoded(self, after: int, wait_s: float) -> bytes:
        """Return the newest view as `encode_view` does, waiting for one newer than `after`.

        When none comes within `wait_s`, the present one is returned again.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._serial > after, wait_s)
            serial, view = self._serial, self._view
        with self._encoding:  # once for all viewers
            if self._encoded[0] != serial:
                self._encoded = (serial, encode_view(serial, view))
            return self._encoded[1]


def encode_view(serial: int, view: View) -> bytes:
    """Return a view as bytes.

    Three numbers, uint32 little-endian: length of the JSON, points of the outline, length of the
    JPEG. Then the JSON (UTF-8), the outline (x and y, uint16 little-endian) and the JPEG.
    """
    outline, picture = b"", b""
    if view.frame is not None and view.mask is not None:
        labels = np.unique(view.mask[view.mask != 0]).tolist() or [1]
        outlines = [boundary_of(view.mask == label) for label in labels]
        outline = np.concatenate(outlines)[:, ::-1].astype("<u2").tobytes()
        file = io.BytesIO()
        Image.fromarray(view.frame).save(file, "JPEG", quality=_JPEG_QUALITY)
        picture = file.getvalue()
    text = json.dumps({"serial": serial, **view.state}).encode("utf-8")
    head = struct.pack("<3I", len(text), len(outline) // 4, len(picture))
    return head + text + outline + picture
