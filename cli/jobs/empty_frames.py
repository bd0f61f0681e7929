"""Frames that show no lesion, which a student that ships has to leave unmarked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ...runtime.errors import Refused
from ...runtime.progress import Progress, quiet
from ...runtime.session import Session

_SIZES: Final = ((256, 256), (600, 800))  # px, height and width of the black frames
_SPECKLE: Final = 32  # frames, black and uniform ones among them
_FIRST_SEED: Final = 1 << 20  # of speckle: no training draws so many


class EmptyFrame(NamedTuple):
    """A frame without a lesion."""

    name: str  # what it shows
    frame: npt.NDArray[np.uint8]  # [H, W]


def empty_frames() -> Iterator[EmptyFrame]:
    """Yield black frames and speckle, the same ones each time.

    Phantoms without a lesion are not among them: no network that learns from images alone leaves
    all of their drawn cysts and shadows unmarked yet. The model card shows the worst of them.
    """
    from ...kd.negatives import draw_empty

    for height, width in _SIZES:
        yield EmptyFrame(f"a black frame of {width}x{height} px", np.zeros((height, width), "u1"))
    for seed in range(_FIRST_SEED, _FIRST_SEED + _SPECKLE):
        grey = np.rint(draw_empty(seed, _SIZES[0][0])[0].numpy() * 255).astype(np.uint8)
        yield EmptyFrame(f"frame {seed - _FIRST_SEED} of speckle", grey)


def require_empty(sessions: Mapping[str, Session], progress: Progress = quiet) -> None:
    """Raise Refused (E-EMPTY-MARKED) where a session marks a pixel of any of `empty_frames`.

    Args:
        sessions: by what the message calls them.
        progress: wraps the frames.
    """
    marked = [
        (name, each.name, int(np.count_nonzero(session.predict(each.frame))))
        for each in progress(list(empty_frames()), "empty frames")
        for name, session in sessions.items()
    ]
    wrong = [found for found in marked if found[2]]
    if wrong:
        name, shows, count = wrong[0]
        raise Refused(
            "E-EMPTY-MARKED",
            f"{name} marks {count} px of {shows}, and something in {len(wrong)} of {len(marked)} "
            "answers to frames that show no lesion; such a student does not ship: train with more "
            "images without a lesion, or choose a stricter point with `edgeseg tune`",
        )
