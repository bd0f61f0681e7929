"""What a source of frames is; `sources` holds the table of those there are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple, Union

import numpy as np

from ..errors import InputError
from ..lesion import Spacing

# A frame, grey uint8 [H, W], or in its place the error that says why it could not be read.
Item = Union[np.ndarray, InputError]
MIN_HZ, MAX_HZ = 0.1, 1000.0


@dataclass(frozen=True)
class Source:
    """Frames that are read one by one, with what their file says about them."""

    path: Path
    kind: str  # key of `sources.KINDS`
    hz: Optional[float]  # frame rate; None where the file tells none
    frames: Optional[int]  # how many; None where only reading tells
    # What of a frame is tissue: left, top, right, bottom in px, right and bottom exclusive; the
    # network sees nothing else. None: the whole frame.
    crop: Optional[Tuple[int, int, int, int]]
    spacing: Optional[Spacing]  # of pixels; None: unknown
    read: Callable[[], Iterator[Item]]  # starts from the first frame at each call
    note: str = ""  # for who starts it, such as what of a folder is left out

    def to_dict(self) -> Dict[str, Any]:
        """Return what a record says about the source, as JSON-ready values."""
        return {
            "name": self.path.name,
            "kind": self.kind,
            "hz": self.hz,
            "frames": self.frames,
            "crop": list(self.crop) if self.crop else None,
            "spacing": asdict(self.spacing) if self.spacing else None,
        }


@dataclass(frozen=True)
class Still:
    """One frame, and what its file says of its geometry."""

    frame: np.ndarray  # uint8 [H, W], of an image in colour [H, W, 3]; the whole frame
    crop: Optional[Tuple[int, int, int, int]] = None  # as `Source.crop`
    spacing: Optional[Spacing] = None


def usable_hz(hz: float) -> Optional[float]:
    """Return a frame rate that a file told, or None where no clock can keep it."""
    return hz if MIN_HZ <= hz <= MAX_HZ else None  # false for NaN
