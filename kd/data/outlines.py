"""Outlines drawn as masks, by one rule: a pixel is in where its centre lies inside.

The centre of the pixel in row i and column k is (k + 0.5, i + 0.5), the corner of the image (0, 0).
Of a polygon that crosses itself is inside what an odd number of its edges lie around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...runtime.errors import InputError
from .annotations import whole
from .classes import (
    BACKGROUND,
    ClassMask,
    Index,
    alone_in,
    label_of,
    meanings_of,
    unreadable,
)
from .pairing import GRAVEST_FIRST
from .sample import Listing, Sample

Points = tuple[tuple[float, float], ...]  # x and y in px
Shape = Callable[[int, int], npt.NDArray[np.bool_]]  # of height and width, bool [height, width]


@dataclass(frozen=True)
class Outlined:
    """An image and what an annotation file marks in it."""

    sample: Sample  # its masks are the annotation file
    shapes: tuple[tuple[str, Shape], ...] = ()  # each with its class
    size: tuple[int, int] = (0, 0)  # height and width in px
    fault: InputError | None = None  # why the annotation cannot be read


def polygon(points: Sequence[Sequence[float]]) -> Shape:
    """Return a polygon of at least 3 points x, y. Raises ValueError."""
    corners: Points = tuple((_number(x), _number(y)) for x, y in points)
    if len(corners) < 3:
        raise ValueError(f"a polygon of {len(corners)} points")
    return partial(_fill_polygon, corners)


def rectangle(points: Sequence[Sequence[float]]) -> Shape:
    """Return a rectangle by two opposite corners x, y. Raises ValueError."""
    (left, top), (right, bottom) = points
    return polygon([(left, top), (right, top), (right, bottom), (left, bottom)])


def circle(points: Sequence[Sequence[float]]) -> Shape:
    """Return a circle by its centre and a point of it, x, y. Raises ValueError."""
    (x, y), (edge_x, edge_y) = ((_number(x), _number(y)) for x, y in points)
    return partial(_fill_circle, (x, y), float(np.hypot(edge_x - x, edge_y - y)))


def run_lengths(counts: Sequence[int], size: Sequence[int]) -> Shape:
    """Return a mask by COCO's run lengths: of 0 and 1 in turn, down the columns.

    Raises ValueError unless they fill the size, height and width.
    """
    height, width = (whole(side) for side in size)
    runs = tuple(map(whole, counts))
    if sum(runs) != height * width:
        raise ValueError(f"run lengths of {sum(runs)} pixels for {width}x{height}")
    return partial(_fill_runs, runs, (height, width))


def compressed_run_lengths(counts: str, size: Sequence[int]) -> Shape:
    """Return a mask by COCO's run lengths in their compressed form.

    A run is digits of 5 bits, lowest first, above the character "0": each with a bit that says
    whether more follow, the last with the sign. From the fourth run on it is the difference to the
    run before the last. (pycocotools decodes it too, but what is too short into whatever is in
    memory, and needs a compiler.)

    Raises ValueError.
    """
    runs: list[int] = []
    value = shift = 0
    for byte in counts.encode("ascii"):
        digit = byte - ord("0")
        if not 0 <= digit < 64 or shift > 30:
            raise ValueError("compressed run lengths with characters that are none")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("compressed run lengths that are cut")
    return run_lengths(runs, size)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e6:
        raise ValueError(f"{value!r} is no coordinate in px")
    return float(value)


def _fill_polygon(points: Points, height: int, width: int) -> npt.NDArray[np.bool_]:
    marked = np.zeros((height, width), np.bool_)
    x, y = np.array(points).T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    top, bottom = _within(y.min(), height), _within(y.max(), height)
    for row in range(top, bottom):
        centre = row + 0.5
        crossed = (y <= centre) != (next_y <= centre)
        share = (centre - y[crossed]) / (next_y[crossed] - y[crossed])
        crossings = np.sort(x[crossed] + share * (next_x[crossed] - x[crossed]))
        for left, right in crossings.reshape(-1, 2):
            marked[row, _within(left, width) : _within(right, width)] = True
    return marked


def _within(position: float, length: int) -> int:
    """Return the first of `length` pixels whose centre is not before a position."""
    return int(np.clip(np.ceil(position - 0.5), 0, length))


def _fill_circle(
    centre: tuple[float, float], radius: float, height: int, width: int
) -> npt.NDArray[np.bool_]:
    x, y = np.arange(width) + 0.5 - centre[0], np.arange(height) + 0.5 - centre[1]
    inside = x[None] ** 2 + y[:, None] ** 2 <= radius**2
    return np.asarray(inside, np.bool_)


def _fill_runs(
    runs: tuple[int, ...], size: tuple[int, int], height: int, width: int
) -> npt.NDArray[np.bool_]:
    """Draw runs in their own size; where the image's differs, that is seen when it is read."""
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.asarray(values.reshape(size[1], size[0]).T, np.bool_)


def with_outlines(
    root: Path,
    found: Sequence[Outlined],
    *,
    orphans: Sequence[Path] = (),
    label_faults: Sequence[str] = (),
) -> Listing:
    """Return the listing of images with outlines: labels by their classes, masks drawn when read.

    Raises InputError: E-DATA-CLASSES, E-DATA-VOID (see `meanings_of`).
    """
    used = sorted({name for each in found for name, _ in each.shapes})
    meanings = meanings_of(root, used)
    alone = alone_in(root, meanings)
    rank = (BACKGROUND, *reversed(GRAVEST_FIRST))
    numbers = {name: number for number, name in enumerate(used, start=1)}
    pairs = tuple((numbers[name], meanings[name]) for name in used)
    names = tuple((number, name) for name, number in numbers.items())
    samples, faults = [], []
    for each in found:
        if each.fault is not None:
            faults.append(each.fault)
            samples.append(replace(each.sample, mask_reader=unreadable(each.fault)))
            continue
        # What is graver is drawn over the rest.
        ordered = sorted(each.shapes, key=lambda shape: rank.index(meanings[shape[0]]))
        drawn = tuple((numbers[name], shape) for name, shape in ordered)
        sample = each.sample
        if sample.masks:
            label = label_of({meanings[name] for name, _ in each.shapes})
            reader = ClassMask(partial(_draw, drawn, each.size), pairs, names, alone)
            sample = replace(sample, label=label, mask_reader=reader)
        samples.append(sample)
    return Listing(tuple(samples), tuple(orphans), tuple(label_faults), tuple(faults))


def _draw(shapes: Sequence[tuple[int, Shape]], size: tuple[int, int], path: Path) -> Index:
    """Draw shapes, each with the number of its class, over one another."""
    index = np.zeros(size, np.uint16)
    for number, shape in shapes:
        index[shape(*size)] = number
    return index
