"""What a mask says about the lesions in it, how it is cleaned, and how it is drawn on the frame."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .errors import InputError
from .metrics import boundary_of

_MAX_SPACING_MM = 100.0  # beyond it a unit was mistaken


@dataclass(frozen=True)
class Spacing:
    """Distance between the centres of neighbouring pixels, as DICOM's Pixel Spacing orders it."""

    row_mm: float  # from a row to the next, > 0
    column_mm: float  # from a column to the next, > 0

    def __post_init__(self) -> None:
        """Raise InputError (E-SPACING) for a value out of range."""
        for name in ("row_mm", "column_mm"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value <= _MAX_SPACING_MM:
                raise InputError(
                    "E-SPACING",
                    f"{name} of the pixel spacing is {value}; expected mm above 0 and at most "
                    f"{_MAX_SPACING_MM:g}",
                )


@dataclass(frozen=True)
class Lesion:
    """One 8-connected component of a mask, its pixels taken as areas and not as points."""

    area_px: int
    box: Tuple[int, int, int, int]  # left, top, right, bottom in px; right and bottom exclusive
    diameter_px: float  # largest distance of two points of it (maximum Feret), of square pixels
    area_mm2: Optional[float] = None  # this and the next: None where no spacing is known
    width_mm: Optional[float] = None  # of the box
    height_mm: Optional[float] = None  # of the box
    diameter_mm: Optional[float] = None
    name: Optional[str] = None  # of its class, of a network of several

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as JSON-ready values; without a spacing none in mm.

        The name is called ``class``.
        """
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return {"class" if name == "name" else name: value for name, value in known.items()}


def lesions_of(
    mask: np.ndarray, spacing: Optional[Spacing] = None, classes: Sequence[str] = ()
) -> Tuple[Lesion, ...]:
    """Return the 8-connected components of a mask [H, W], largest first, then by their box.

    Args:
        mask: uint8, nonzero where lesion.
        spacing: of its pixels.
        classes: names of the labels from 1 on, where there are several: a component is then of one
            class, whose name it has.
    """
    found: List[Lesion] = []
    if len(classes) > 1:
        for label, name in enumerate(classes, 1):
            parts = _components(_runs_of(mask == label), diagonal=True)
            found += [replace(each, name=name) for each in _measure(parts, spacing)]
    else:
        found += _measure(_components(_runs_of(mask != 0), diagonal=True), spacing)
    return tuple(sorted(found, key=lambda lesion: (-lesion.area_px, lesion.box)))


def keep_largest(mask: np.ndarray) -> np.ndarray:
    """Return a mask, uint8 [H, W], with the largest 8-connected component alone.

    Of equal ones that with the smallest box (left, top, right, bottom) stays.
    """
    parts = _components(_runs_of(mask != 0), diagonal=True)
    kept = np.zeros(mask.shape, np.uint8)
    if len(parts.areas_px):
        largest = np.flatnonzero(parts.areas_px == parts.areas_px.max())
        chosen = min(largest, key=lambda index: parts.boxes[index].tolist())
        _paint(kept, parts.runs.take(parts.labels == chosen))
    return kept


def small_components(
    above: np.ndarray, logits: np.ndarray, least_px: int, least_logit: float
) -> np.ndarray:
    """Return where a mask, bool [H, W], has components that are no lesion, uint8 [H, W].

    Those are 8-connected and of fewer pixels than `least_px`, or their highest logit, float32
    [H, W], lies below `least_logit`.
    """
    parts = _components(_runs_of(above), diagonal=True)
    dropped = np.zeros(above.shape, np.uint8)
    small = parts.areas_px < least_px
    small |= _over_components(np.maximum, parts, logits[above]) < np.float32(least_logit)
    _paint(dropped, parts.runs.take(small[parts.labels]))
    return dropped


def component_values(
    above: np.ndarray, logits: np.ndarray, truth: np.ndarray
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return area, highest logit and pixels in the truth of each 8-connected component of a mask.

    Args:
        above: the mask, bool [H, W].
        logits: float32 [H, W].
        truth: bool [H, W].

    Returns:
        int64, float32 and int64, [K] each.
    """
    parts = _components(_runs_of(above), diagonal=True)
    hits = _over_components(np.add, parts, truth[above].astype(np.int64))
    return parts.areas_px, _over_components(np.maximum, parts, logits[above]), hits


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Return a mask, uint8 [H, W], with its holes as lesion.

    A hole is a 4-connected component of the background that does not touch the frame's border.
    """
    filled: np.ndarray = (mask != 0).astype(np.uint8)
    rows = np.flatnonzero(filled.any(axis=1))
    if not len(rows):
        return filled
    columns = np.flatnonzero(filled.any(axis=0))
    # No hole reaches out of the lesions' box: what is around it leads to the border.
    inner = filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    parts = _components(_runs_of(inner == 0), diagonal=False)
    left, top, right, bottom = parts.boxes.T
    height, width = inner.shape
    hole = (left > 0) & (top > 0) & (right < width) & (bottom < height)
    _paint(inner, parts.runs.take(hole[parts.labels]))
    return filled


class _Runs(NamedTuple):
    """Horizontal runs of pixels in raster order, int64 [N] each."""

    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray  # exclusive
    width: int  # px of the picture

    def take(self, chosen: np.ndarray) -> _Runs:
        """Return the runs at bool [N]."""
        return _Runs(self.rows[chosen], self.starts[chosen], self.ends[chosen], self.width)


class _Parts(NamedTuple):
    """Connected components of runs."""

    runs: _Runs
    labels: np.ndarray  # of each run, int64 [N]
    areas_px: np.ndarray  # of each component, int64 [K]
    boxes: np.ndarray  # of each component, int64 [K, 4]: left, top, right, bottom
    order: np.ndarray  # of the runs, component by component and in each by row, int64 [N]
    firsts: np.ndarray  # of each component in `order`, int64 [K]


def _runs_of(picture: np.ndarray) -> _Runs:
    """Return the runs of a bool [H, W]."""
    height, width = picture.shape
    bounded = np.zeros((height, width + 1), np.bool_)  # the last pixel of a row leads to the next
    bounded[:, :width] = picture
    flat = bounded.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        changes = np.concatenate(([0], changes))
    rows, starts = np.divmod(changes[::2], width + 1)
    return _Runs(rows, starts, changes[1::2] - rows * (width + 1), width)


def _components(runs: _Runs, *, diagonal: bool) -> _Parts:
    """Join the runs that touch; diagonal: 8-connected, else 4-connected.

    It costs what the runs are and not the pixels, has no loop over them, and needs at most about
    log2(runs) rounds on any picture: a label that is left after two rounds has taken in another.
    """
    upper, lower = _touching(runs, diagonal)
    parent = np.arange(len(runs.rows))
    while len(upper):
        first, second = parent[upper], parent[lower]
        apart = first != second
        upper, lower = upper[apart], lower[apart]
        first, second = first[apart], second[apart]
        np.minimum.at(parent, np.maximum(first, second), np.minimum(first, second))
        while True:
            above = parent[parent]
            if (above == parent).all():
                break
            parent = above
    roots, labels = np.unique(parent, return_inverse=True)
    areas = np.bincount(labels, weights=runs.ends - runs.starts, minlength=len(roots))
    order = np.argsort(labels, kind="stable")
    firsts = np.searchsorted(labels[order], np.arange(len(roots)))
    boxes = np.zeros((len(roots), 4), np.int64)
    if len(roots):
        boxes[:, 0] = np.minimum.reduceat(runs.starts[order], firsts)
        boxes[:, 1] = runs.rows[roots]
        boxes[:, 2] = np.maximum.reduceat(runs.ends[order], firsts)
        boxes[:, 3] = np.maximum.reduceat(runs.rows[order], firsts) + 1
    return _Parts(runs, labels, areas.astype(np.int64), boxes, order, firsts)


def _over_components(reduce: np.ufunc, parts: _Parts, values: np.ndarray) -> np.ndarray:
    """Return one value a component, [K], of the values of its pixels in raster order, [pixels]."""
    if not len(parts.areas_px):
        return np.zeros(0, values.dtype)
    lengths = parts.runs.ends - parts.runs.starts  # runs are in raster order too
    of_runs = reduce.reduceat(values, lengths.cumsum() - lengths)
    found: np.ndarray = reduce.reduceat(of_runs[parts.order], parts.firsts)
    return found


def _touching(runs: _Runs, diagonal: bool) -> Tuple[np.ndarray, np.ndarray]:
    """Return the pairs of runs that touch in neighbouring rows, int64 [M] and [M]."""
    pitch = runs.width + 2  # so far apart that rows do not meet
    above = (runs.rows - 1) * pitch
    starts, ends = runs.rows * pitch + runs.starts, runs.rows * pitch + runs.ends
    first = ends.searchsorted(above + runs.starts, side="left" if diagonal else "right")
    last = starts.searchsorted(above + runs.ends, side="right" if diagonal else "left")
    counts = last - first
    lower = np.repeat(np.arange(len(counts)), counts)
    return np.arange(len(lower)) + np.repeat(first - (counts.cumsum() - counts), counts), lower


def _paint(picture: np.ndarray, runs: _Runs) -> None:
    """Set the pixels of the runs in a uint8 [H, W] to 1."""
    lengths = runs.ends - runs.starts
    before = lengths.cumsum() - lengths
    columns = np.arange(lengths.sum()) + np.repeat(runs.starts - before, lengths)
    picture[np.repeat(runs.rows, lengths), columns] = 1


def _measure(parts: _Parts, spacing: Optional[Spacing]) -> Iterator[Lesion]:
    """Yield each component measured. Plain lists: most lesions of a noisy mask are of few runs."""
    runs = np.stack(parts.runs[:3], axis=1)[parts.order].tolist()
    bounds = [*parts.firsts.tolist(), len(runs)]
    for index, area_px in enumerate(parts.areas_px.tolist()):
        left, top, right, bottom = parts.boxes[index].tolist()
        hull = _hull_of(runs[bounds[index] : bounds[index + 1]])
        lesion = (area_px, (left, top, right, bottom), _diameter(hull, 1.0, 1.0))
        if spacing is None:
            yield Lesion(*lesion)
            continue
        yield Lesion(
            *lesion,
            area_mm2=area_px * spacing.row_mm * spacing.column_mm,
            width_mm=(right - left) * spacing.column_mm,
            height_mm=(bottom - top) * spacing.row_mm,
            diameter_mm=_diameter(hull, spacing.column_mm, spacing.row_mm),
        )


_Corner = Tuple[int, int]  # x, y between pixels


def _hull_of(runs: List[List[int]]) -> List[_Corner]:
    """Return the corners of the convex hull of runs: row, start and end each, by row."""
    sides: Tuple[Dict[int, int], Dict[int, int]] = ({}, {})  # row -> outermost x
    for row, start, end in runs:
        sides[0][row] = min(start, sides[0].get(row, start))
        sides[1][row] = min(-end, sides[1].get(row, -end))  # mirrored
    left, right = map(_chain, sides)
    return left + [(-x, y) for x, y in right]


def _chain(side: Dict[int, int]) -> List[_Corner]:
    """Return the corners of the left half of a hull, downwards (Andrew 1979)."""
    chain: List[_Corner] = []
    for row, x in side.items():
        for corner in ((x, row), (x, row + 1)):
            while len(chain) > 1 and not _bulges_left(chain[-2], chain[-1], corner):
                chain.pop()
            chain.append(corner)
    return chain


def _bulges_left(a: _Corner, b: _Corner, c: _Corner) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) < (b[1] - a[1]) * (c[0] - a[0])


def _diameter(hull: List[_Corner], column: float, row: float) -> float:
    """Return the largest distance of two corners, in the unit of the spacings."""
    if len(hull) <= 8:  # where numpy's calls cost more than its loops save
        scaled = [(x * column, y * row) for x, y in hull]
        return math.sqrt(max((a - c) ** 2 + (b - d) ** 2 for a, b in scaled for c, d in scaled))
    points = np.array(hull) * (column, row)
    apart = points[:, None] - points[None]
    return math.sqrt(float((apart * apart).sum(axis=2).max()))


# Of the classes in turn. After the first the palette of Okabe and Ito (2008), made to be told apart
# by people who see colours differently; without its black and its orange, which is near the first.
PALETTE = (
    (255, 140, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (0, 114, 178),
    (213, 94, 0),
)


def draw_overlay(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a frame, uint8 [H, W] or [H, W, 3], as RGB with the lesions' outlines.

    The colour is that of the mask's label in `PALETTE`, which begins anew behind its last.
    """
    if frame.ndim == 2:
        frame = frame[:, :, None]
    picture = np.repeat(frame, 3 // frame.shape[2], axis=2)
    for label in np.unique(mask[mask != 0]).tolist():
        outline = boundary_of(mask == label)
        for row, column in ((0, 0), (0, 1), (1, 0)):  # two pixels wide, to be seen on large frames
            y = np.minimum(outline[:, 0] + row, picture.shape[0] - 1)
            x = np.minimum(outline[:, 1] + column, picture.shape[1] - 1)
            picture[y, x] = PALETTE[(label - 1) % len(PALETTE)]
    return picture
