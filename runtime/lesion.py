"""What a mask says about the lesions in it, and how it is drawn over the frame."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Tuple

import numpy as np

from .metrics import boundary_of


@dataclass(frozen=True)
class Lesion:
    """One 8-connected component of a mask."""

    area_px: int
    box: Tuple[int, int, int, int]  # left, top, right, bottom in px; right and bottom exclusive

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return asdict(self)


def lesions_of(mask: np.ndarray) -> Tuple[Lesion, ...]:
    """Return the 8-connected components of a mask [H, W], largest first.

    Union-find over the runs of each row (He et al. 2008), so it costs what the runs are, not the
    pixels, and needs no image library on the device.
    """
    edges = np.diff(np.pad(mask.astype(bool), ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    above = 0
    for run in range(len(rows)):
        while rows[above] < rows[run] - 1 or (
            rows[above] == rows[run] - 1 and ends[above] < starts[run]
        ):
            above += 1
        other = above
        while rows[other] == rows[run] - 1 and starts[other] <= ends[run]:
            parent[root(other)] = root(run)
            other += 1
    members: Dict[int, List[int]] = {}
    for run in range(len(rows)):
        members.setdefault(root(run), []).append(run)
    lesions = [
        Lesion(
            area_px=int((ends[runs] - starts[runs]).sum()),
            box=(
                int(starts[runs].min()),
                int(rows[runs].min()),
                int(ends[runs].max()),
                int(rows[runs].max()) + 1,
            ),
        )
        for runs in members.values()
    ]
    return tuple(sorted(lesions, key=lambda lesion: (-lesion.area_px, lesion.box)))


def draw_overlay(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the frame, uint8 [H, W], as RGB [H, W, 3] with the lesions' outline in orange."""
    picture = np.repeat(grey[:, :, None], 3, axis=2)
    outline = boundary_of(mask)
    for row, column in ((0, 0), (0, 1), (1, 0)):  # two pixels wide, to be seen on large frames
        y = np.minimum(outline[:, 0] + row, grey.shape[0] - 1)
        x = np.minimum(outline[:, 1] + column, grey.shape[1] - 1)
        picture[y, x] = (255, 140, 0)
    return picture
