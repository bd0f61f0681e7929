"""The layout of a maker's screen: crop, blanked boxes, and the fan in exact integers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.cli.jobs import phantoms as phantoms_job
from edgeseg.cli.jobs.layout_file import read_layout
from edgeseg.cli.main import cli
from edgeseg.runtime import layout as layout_module
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.runtime.layout import MAX_SHAPES, Layout
from edgeseg.runtime.session import Session, open_session

# Fans in frames of 6x6 px and the pixels that they hold, a row a word: for the C runtime too. A
# centre on an edge belongs to what is right of it, as the diagonals show.
FANS = {
    "triangle": ([[0, 0], [6, 0], [0, 6]], "#####. ####.. ###... ##.... #..... ......"),
    "its other half": ([[6, 0], [6, 6], [0, 6]], ".....# ....## ...### ..#### .##### ######"),
    "sector": (
        [[2, 0], [4, 0], [6, 4], [3, 6], [0, 4]],
        "..##.. .####. .####. ###### .####. ..##..",
    ),
    "the other way round": (
        [[0, 4], [3, 6], [6, 4], [4, 0], [2, 0]],
        "..##.. .####. .####. ###### .####. ..##..",
    ),
    "bow tie": ([[0, 0], [6, 6], [6, 0], [0, 6]], ".....# #...## ##.### ##.### #...## .....#"),
    "overlap is a hole": (
        [[0, 0], [6, 0], [6, 6], [0, 6], [0, 0], [2, 2], [4, 2], [4, 4], [2, 4], [2, 2]],
        "###### ###### ##..## ##..## ###### ######",
    ),
    "no area": ([[1, 1], [5, 5], [1, 1]], "...... ...... ...... ...... ...... ......"),
    "thin": ([[0, 0], [6, 1], [6, 2]], ".##... ....## ...... ...... ...... ......"),
}


def rows_of(text: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in text.split()], np.uint8)


def in_polygon(fan, x, y):
    """The rule of the contract, pixel by pixel."""
    px, py, inside = 2 * x + 1, 2 * y + 1, False
    for (ax, ay), (bx, by) in zip(fan, fan[1:] + fan[:1], strict=True):
        low, high = sorted([(2 * ay, 2 * ax), (2 * by, 2 * bx)])
        if low[0] <= py < high[0]:
            rise, run = high[0] - low[0], high[1] - low[1]
            inside ^= (px - low[1]) * rise < (py - low[0]) * run
    return inside


@pytest.mark.parametrize("name", FANS)
def test_fan_holds_the_pixels_whose_centre_is_inside_by_the_even_odd_rule(name):
    fan, picture = FANS[name]
    expected = rows_of(picture)
    assert [[in_polygon(fan, x, y) for x in range(6)] for y in range(6)] == expected.tolist()
    if not expected.any():
        with pytest.raises(InputError, match="keeps no pixel"):
            Layout.from_dict({"width": 6, "height": 6, "crop": [0, 0, 6, 6], "fan": fan})
        return
    layout = Layout.from_dict({"width": 6, "height": 6, "crop": [0, 0, 6, 6], "fan": fan})
    assert layout.keep.tolist() == expected.tolist()


@settings(max_examples=200, deadline=None)
@given(
    fan=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 17)), min_size=3, max_size=9),
)
def test_any_polygon_is_filled_as_the_rule_says_for_every_pixel(fan):
    expected = np.array([[in_polygon(fan, x, y) for x in range(23)] for y in range(17)], np.uint8)
    try:
        keep = Layout(23, 17, (0, 0, 23, 17), fan=tuple(fan)).keep
    except InputError:
        keep = np.zeros((17, 23), np.uint8)
    assert (keep == expected).all()


def test_polygons_that_share_an_edge_share_no_pixel_and_leave_none():
    corner = (13, 8)
    parts = [((0, 0), (20, 0), corner), ((20, 0), (20, 15), corner)]
    parts += [((20, 15), (0, 15), corner), ((0, 15), (0, 0), corner)]
    keeps = [Layout(20, 15, (0, 0, 20, 15), fan=part).keep.astype(int) for part in parts]
    assert (sum(keeps) == 1).all()


def test_fan_of_the_largest_frame_does_not_overflow():
    width, height = 16384, 4096
    fan = ((0, 0), (width, height), (0, height))
    layout = Layout(width, height, (0, height - 1, width, height), fan=fan)
    assert layout.keep.sum() == width - 2  # the edge is at 4 x 4095.5 px in the last row


def test_keep_is_of_the_crop_and_blank_boxes_are_out_of_it():
    layout = Layout(10, 8, (2, 1, 8, 6), blank=((0, 0, 4, 3), (7, 5, 10, 8), (0, 7, 10, 8)))
    expected = rows_of("..#### ..#### ###### ###### #####.")
    assert layout.keep.tolist() == expected.tolist()


@pytest.mark.parametrize("channels", [(), (3,)])
def test_crop_is_a_view_and_the_mask_of_the_crop_comes_back_in_its_place(channels):
    layout = Layout(10, 8, (2, 1, 8, 6))
    frame = np.arange(80 * (3 if channels else 1), dtype=np.uint8).reshape(8, 10, *channels)
    crop = layout.crop_of(frame)
    assert np.shares_memory(crop, frame)
    assert (crop == frame[1:6, 2:8]).all()
    mask = layout.paste(np.ones((5, 6), np.uint8))
    assert mask.dtype == np.uint8
    assert mask.shape == (8, 10)
    assert mask.sum() == mask[1:6, 2:8].sum() == 30


def test_frame_of_another_size_than_the_layouts_names_both():
    with pytest.raises(InputError, match=r"^E-FRAME: frame is 8x10 px, .* of 10x8; ") as caught:
        Layout(10, 8, (2, 1, 8, 6)).crop_of(np.zeros((10, 8), np.uint8))
    assert caught.value.code == "E-FRAME"


def test_layout_comes_back_from_its_dictionary():
    layout = Layout(10, 8, (2, 1, 8, 6), ((0, 0, 4, 3),), ((0, 0), (10, 0), (5, 8)))
    assert Layout.from_dict(layout.to_dict()) == layout
    assert Layout.from_dict({"width": 10, "height": 8, "crop": [2, 1, 8, 6]}).blank == ()


WHOLE = {"width": 10, "height": 8, "crop": [2, 1, 8, 6], "blank": [], "fan": []}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("width", value) for value in (0, -1, 16385, 10.0, "10", None, True, [10], 10**30)],
        *[("height", value) for value in (0, 16385, 8.5, False)],
        *[("crop", value) for value in ([], [2, 1, 8], [2, 1, 2, 6], [8, 1, 2, 6], [2, 1, 11, 6])],
        *[("crop", value) for value in ([2, 1, 8, 9], [-1, 1, 8, 6], [2.0, 1, 8, 6], "abcd", 5)],
        *[("crop", value) for value in (None, {"left": 2}, [True, 1, 8, 6], [[2], 1, 8, 6])],
        *[("blank", value) for value in ([[]], [[0, 0, 11, 2]], [[0, 0, 0, 2]], 5, None, {})],
        *[("blank", value) for value in ([5], [None], ["abcd"], [[0, 0, 1, 1]] * (MAX_SHAPES + 1))],
        *[("fan", value) for value in ([[0, 0]], [[0, 0], [1, 1]], [[0, 0], [11, 0], [0, 8]])],
        *[("fan", value) for value in ([[0, 0], [5, 9], [1, 1]], [[0, 0], [5, 0.5], [0, 8]])],
        *[("fan", value) for value in ("abc", [1, 2, 3], [[0, 0, 0]] * 3, [[0, 0]] * 65)],
        *[("fan", value) for value in ([[-1, 0], [5, 0], [0, 8]], [[0, 0], [1, 0], None], {})],
    ],
)
def test_value_out_of_range_is_refused_and_its_field_named(field, value):
    with pytest.raises(InputError) as caught:
        Layout.from_dict({**WHOLE, field: value})
    assert caught.value.code == "E-LAYOUT"
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [{}, {"width": 10, "height": 8}, {**WHOLE, "colour": 1}, [], None, "width", 5],
)
def test_other_fields_than_a_layouts_are_refused(values):
    with pytest.raises(InputError) as caught:
        Layout.from_dict(values)
    assert caught.value.code == "E-LAYOUT"


def test_layout_that_keeps_nothing_is_refused():
    with pytest.raises(InputError, match="keeps no pixel"):
        Layout(10, 8, (2, 1, 8, 6), blank=((0, 0, 10, 8),))


def test_layout_of_more_pixels_than_an_image_may_have_is_refused():
    Layout(16384, 4096, (0, 0, 1, 1))  # the most
    with pytest.raises(InputError, match="16384x4097; expected at most 67108864 px") as caught:
        Layout(16384, 4097, (0, 0, 1, 1))
    assert caught.value.code == "E-LAYOUT"


def test_reading_a_layout_computes_no_more_than_its_first_row_of_image(monkeypatch):
    rows = []
    whole = layout_module._fan_row
    monkeypatch.setattr(
        layout_module,
        "_fan_row",
        lambda fan, row, width: rows.append(row) or whole(fan, row, width),
    )
    layout = Layout(10, 8, (0, 0, 10, 8), fan=((0, 2), (10, 2), (5, 8)))
    assert rows == [0, 1, 2]
    Session.over(None, InputContract(height=16, width=32), layout=layout)
    assert rows == [0, 1, 2, *range(8)]


# --- from a file ---------------------------------------------------------------------------------


@pytest.fixture
def _few_phantoms(monkeypatch):
    """They are golden frames here, and nothing is judged by them."""
    monkeypatch.setattr(phantoms_job, "COUNT", 8)


@pytest.mark.usefixtures("_few_phantoms")
def test_a_layout_file_is_read_and_a_bundle_exported_with_it_holds_it(tmp_path):
    file = tmp_path / "layout.json"
    layout = Layout(64, 48, (8, 4, 60, 44), blank=((8, 4, 12, 6),))
    file.write_text(json.dumps(layout.to_dict()))
    assert read_layout(file) == layout
    command = ("export", "--target", "x86-cpu", "--precision", "fp32", "--layout", str(file))
    done = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "bundle"), "-q"])
    assert done.exit_code == 0, done.stderr
    session = open_session(tmp_path / "bundle", engine="onnxruntime")
    assert session.layout == layout
    assert session.predict(np.zeros((48, 64), np.uint8)).shape == (48, 64)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "No such file"),
        ("{", "cannot read"),
        ("[" * 10_000, "cannot read"),
        ("[]", "no JSON object"),
        ('{"width": 9, "height": 9, "crop": [0, 0, 10, 9]}', "crop"),
    ],
)
def test_a_layout_file_that_does_not_parse_is_one_line_before_anything_is_exported(
    text, word, tmp_path
):
    file = tmp_path / "layout.json"
    if text is not None:
        file.write_text(text)
    command = ("export", "--target", "x86-cpu", "--layout", str(file), "--dry-run")
    done = CliRunner().invoke(cli, command)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "E-LAYOUT" in done.stderr
    assert word in done.stderr


@pytest.mark.usefixtures("_few_phantoms")
def test_a_layout_and_a_frame_graph_exclude_each_other(tmp_path):
    file = tmp_path / "layout.json"
    file.write_text(json.dumps(Layout(64, 48, (0, 0, 64, 48)).to_dict()))
    command = ("export", "--target", "x86-cpu", "--precision", "fp32", "--layout", str(file))
    done = CliRunner().invoke(cli, [*command, "--frame", "320x240", "--out", str(tmp_path / "b")])
    assert done.exit_code == 2
    assert "E-LAYOUT" in done.stderr
    assert not (tmp_path / "b").exists()
