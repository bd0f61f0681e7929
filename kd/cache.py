"""Teachers' logits of a fixed set of views, kept on disk, so that no view is taught twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ..runtime.errors import InputError, Refused
from ..runtime.files import write_bytes

MAX_BYTES: Final = 16 << 30  # of one teacher's file


class LogitCache:
    """The logits of one teacher: float16 [images, views, S, S] in `<name>.f16`.

    `<name>.json` holds the key (what the logits depend on) and `<name>.done` one byte a view, set
    after its logits are written: a kill at any moment costs the views in flight, which are then
    written again. Values are those of float16 on the first reading too, so that a resumed training
    sees what an uninterrupted one saw.
    """

    def __init__(
        self, folder: Path, name: str, key: Mapping[str, Any], images: Sequence[str], views: int
    ) -> None:
        """Open the cache, or make an empty one.

        Args:
            folder: made if it is not there.
            name: of the teacher.
            key: JSON-ready; everything but images and views that the logits depend on; `size` (px
                a side) is one of its entries.
            images: names of the images that this teacher teaches.
            views: of each image.

        Raises:
            Refused: E-CACHE-OTHER, the folder's cache was made for other data, weights or views.
            InputError: E-CACHE-SIZE, over `MAX_BYTES`.
            OSError: the file system refuses, the disk is full.
        """
        size = int(key["size"])
        self._rows = {image: row for row, image in enumerate(images)}
        shape = (max(1, len(images)), views, size, size)
        content = json.dumps({**key, "images": list(images), "views": views}, indent=1) + "\n"
        header = folder / f"{name}.json"
        values, done = folder / f"{name}.f16", folder / f"{name}.done"
        lengths = {values: 2 * int(np.prod(shape)), done: shape[0] * views}
        if header.is_file():
            _require_same(header, content, lengths)
        else:
            _require_room(lengths[values])
            folder.mkdir(parents=True, exist_ok=True)
            for path, length in lengths.items():
                with path.open("wb") as file:
                    # Taken now: a disk that fills up under a memory map kills the process.
                    os.posix_fallocate(file.fileno(), 0, length)
            write_bytes(header, content)  # last: it makes the files a cache
        self._values = np.memmap(values, np.float16, "r+", shape=shape)
        self._done = np.memmap(done, np.uint8, "r+", shape=shape[:2])

    def read(self, images: Sequence[str], views: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Return logits, float32 [N, 1, S, S], and which of them were there, bool [N]."""
        rows = [self._rows[image] for image in images]
        logits = torch.from_numpy(self._values[rows, views].astype(np.float32))
        return logits[:, None], self._done[rows, views].astype(bool)

    def write(self, images: Sequence[str], views: np.ndarray, logits: torch.Tensor) -> None:
        """Keep logits [N, 1, S, S]."""
        rows = [self._rows[image] for image in images]
        self._values[rows, views] = logits[:, 0].half().cpu().numpy()
        self._done[rows, views] = 1


def _require_same(header: Path, content: str, lengths: Mapping[Path, int]) -> None:
    whole = all(path.is_file() and path.stat().st_size == size for path, size in lengths.items())
    if not whole or header.read_text(encoding="utf-8") != content:
        raise Refused(
            "E-CACHE-OTHER",
            f"{header} is of other data, weights, views or settings, or its files are cut; remove "
            f"the folder {header.parent} to have it made anew",
        )


def _require_room(needed: int) -> None:
    if needed > MAX_BYTES:
        raise InputError(
            "E-CACHE-SIZE",
            f"the cache of a teacher would take {needed / 2**30:.1f} GiB, allowed are "
            f"{MAX_BYTES >> 30}; lower --views or --size",
        )
