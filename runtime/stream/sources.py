"""Where frames can come from: one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional, Protocol

from ..errors import InputError
from ..paths import takes_paths
from ..window import Window
from .dicom import is_dicom_source, open_dicom_source
from .images import is_images, open_images
from .source import Source
from .video import is_video, open_video


class _Takes(Protocol):
    def __call__(self, path: Path) -> bool:
        """Whether an existing path is of the kind."""
        ...


class _Opens(Protocol):
    def __call__(
        self, path: Path, *, whole_frame: bool = False, window: Optional[Window] = None
    ) -> Source:
        """Open it.

        `whole_frame` ignores a crop, and the spacing with it, that the file tells; `window` shows
        frames of more than 8 bits.
        """
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of source."""

    title: str
    takes: _Takes
    open: _Opens


# To add a source: a module with these two functions and a line here. The first that takes it wins.
KINDS: Dict[str, Kind] = {
    "dicom": Kind("DICOM file or folder of stills", is_dicom_source, open_dicom_source),
    "video": Kind("video file", is_video, open_video),
    "images": Kind("image or folder of images", is_images, open_images),
}


@takes_paths
def open_source(
    path: Path, *, whole_frame: bool = False, window: Optional[Window] = None
) -> Source:
    """Open a source of frames by what it is.

    Args:
        path: of the file or folder.
        whole_frame: ignore the region of tissue that a DICOM file tells, and its spacing.
        window: what is shown of frames of more than 8 bits; None: what a DICOM file says.

    Raises:
        InputError: E-STREAM-SOURCE (nothing there, not readable, or of no known kind) and those of
            its kind.
        EngineError: E-EXTRA-MISSING for a package that its kind needs.
    """
    try:
        if not path.exists():
            raise InputError("E-STREAM-SOURCE", f"no such file or folder: {path}")
        for kind in KINDS.values():
            if kind.takes(path):
                return kind.open(path, whole_frame=whole_frame, window=window)
    except OSError as error:
        raise InputError(
            "E-STREAM-SOURCE",
            f"cannot read {path} ({error.strerror or error}); check it and its permissions",
        ) from error
    known = ", ".join(kind.title for kind in KINDS.values())
    raise InputError("E-STREAM-SOURCE", f"{path} is of no known kind; give one of: {known}")
