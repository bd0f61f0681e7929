"""The plot of both errors: lesions found over marks on images without a lesion."""

from __future__ import annotations

from collections.abc import Sequence

from ..formatting import fixed, percent
from ..measure.froc import FOUND_DICE, CurvePoint, SetCurve
from ..record import Row
from .charts import marker
from .document import Figure
from .svg import RIGHT, WIDTH, Box, boxes_along, family, grid, labels, linear_axis, short, svg

_MOST_MARKS = 3.0  # a normal image; beyond it no curve is of use, and all would be squeezed


def froc_figures(rows: Sequence[Row]) -> tuple[Figure, ...]:
    """Return a plot for all images and, where there are several, for each data set.

    Sets without images of both kinds have none.
    """
    names = dict.fromkeys(curve.name for row in rows for curve in row.curves)
    figures = []
    for index, name in enumerate(names):
        drawn = [
            (row, curve)
            for row in rows
            for curve in row.curves
            if curve.name == name and curve.lesions and curve.without_lesion
        ]
        if drawn:
            _, first = drawn[0]
            figures.append(
                Figure(
                    f"Lesions found and false marks, {name}",
                    _froc(drawn, f"froc-{index}"),
                    f"Over the threshold; up and left is better. {first.lesions} images with a "
                    f"lesion, which is found with a Dice of at least {FOUND_DICE:g}, and "
                    f"{first.without_lesion} without one. The mark is where each network "
                    f"works. Over {_MOST_MARKS:g} marks an image nothing is drawn.",
                )
            )
    return tuple(figures)


def point_of(row: Row, curve: SetCurve) -> CurvePoint:
    """Return the point at the row's own threshold."""
    return next(each for each in curve.points if each.threshold == row.contract.thresholds[0])


def _froc(drawn: Sequence[tuple[Row, SetCurve]], key: str) -> str:
    height, left, bottom, top = 360, 54, 312, 14
    visible = [
        point
        for _, curve in drawn
        for point in curve.points
        if point.marks_per_normal <= _MOST_MARKS
    ]
    most = max((point.marks_per_normal for point in visible), default=0.0)
    x_axis = linear_axis(0, max(0.1, most), left, RIGHT)
    y_axis = linear_axis(0, 1, bottom, top)

    def place(point: CurvePoint) -> tuple[float, float]:
        marks = min(point.marks_per_normal, x_axis.high)
        return x_axis.at(marks), y_axis.at(point.found_share)

    parts = [grid(x_axis, y_axis, "Marks for each image without a lesion", "Lesions found")]
    own = [(row, place(point_of(row, curve))) for row, curve in drawn]
    covered: list[Box] = []  # by the curves, which a label had better not cross
    for row, curve in drawn:
        line = [place(each) for each in curve.points if each.marks_per_normal <= _MOST_MARKS]
        if line:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in line)
            parts.append(f'<path class="line {family(row.kind)}" d="M{path}"/>')
            covered += boxes_along(line)
    parts += [marker(row, x, y) for row, (x, y) in own]
    names = [short(row.name) for row, _ in own]
    parts += labels(names, [at for _, at in own], covered, (left + 2, top, WIDTH, bottom - 2))
    facts = "; ".join(
        f"{row.name}: {percent(point.found_share)} of the lesions found, {point.missed} missed, "
        f"Dice {fixed(point.dice)}, {fixed(point.marks_per_normal, 2)} marks and "
        f"{percent(point.marked_share)} of the images without a lesion marked"
        for row, curve in drawn
        for point in [point_of(row, curve)]
    )
    return svg(key, "Lesions found and false marks", facts, height, parts)
