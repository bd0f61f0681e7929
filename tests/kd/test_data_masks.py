"""Masks of every kind are read by the stated rule, or refused by their code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageFilter

from edgeseg.kd.data.audit import audit_datasets, render
from edgeseg.kd.data.masks import inspect_mask, read_mask
from edgeseg.runtime.errors import InputError

HEIGHT, WIDTH = 40, 60


def disc(row: int, column: int, radius: int) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


FIRST, SECOND = disc(14, 18, 9), disc(26, 44, 7)
BOTH = FIRST | SECOND
LABELS = FIRST * np.uint8(1) + SECOND * np.uint8(2)


def painted(*colours: tuple[int, ...]) -> np.ndarray:
    """Return background, first and second lesion in a colour each, uint8 [H, W, channels]."""
    return np.array(colours, np.uint8)[LABELS]


def saved(tmp_path: Path, pixels: np.ndarray, name: str = "mask.png", **options: object) -> Path:
    Image.fromarray(pixels).save(tmp_path / name, **options)
    return tmp_path / name


def code_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_mask(path)
    assert "\n" not in str(caught.value)
    return caught.value.code


# --- read as meant -------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 255])
def test_masks_of_0_and_1_and_of_0_and_255_are_the_same_mask(top, tmp_path):
    truth = np.eye(6, dtype=bool)
    Image.fromarray(truth * np.uint8(top)).save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == truth).all()


def test_faint_noise_of_a_compressed_mask_is_background(tmp_path):
    Image.fromarray(np.array([[0, 9, 120, 250, 255]], np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").tolist() == [[False, False, False, True, True]]


@pytest.mark.parametrize(
    "grey",
    [(0, 255, 0), (0, 100, 0), (0, 2, 0), (0, 255, 100), (0, 100, 255), (0, 1, 2), (0, 3, 255)],
)
def test_every_grey_level_that_is_not_background_is_lesion(grey, tmp_path):
    pixels = np.array(grey, np.uint8)[LABELS]
    assert (read_mask(saved(tmp_path, pixels)) == (pixels > 0)).all()


@pytest.mark.parametrize(
    "second", [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 1)]
)
@pytest.mark.parametrize("first", [(255, 0, 0), (0, 0, 255), (128, 0, 0), (7, 7, 7)])
def test_every_colour_that_is_not_black_is_lesion(first, second, tmp_path):
    pixels = painted((0, 0, 0), first, second)
    assert (read_mask(saved(tmp_path, pixels)) == pixels.any(axis=2)).all()


@pytest.mark.parametrize("name", ["mask.png", "mask.bmp", "mask.tif"])
def test_index_of_a_palette_is_what_its_colour_shows(name, tmp_path):
    image = Image.fromarray(LABELS).convert("P")
    image.putpalette(bytes([0, 0, 0, 128, 0, 0, 0, 128, 0]) + bytes(759))  # PASCAL VOC
    image.putdata(LABELS.ravel().tolist())
    image.save(tmp_path / name)
    assert (read_mask(tmp_path / name) == BOTH).all()


@pytest.mark.parametrize("top", [1, 255, 65535, 300])
@pytest.mark.parametrize("name", ["mask.png", "mask.tif"])
def test_16_bit_mask_is_that_of_8_bits(top, name, tmp_path):
    path = saved(tmp_path, BOTH * np.uint16(top), name)
    assert (read_mask(path) == BOTH).all()
    assert bool(inspect_mask(path).odd_values) == (top == 300)


def test_16_bit_classes_are_all_lesion(tmp_path):
    assert (read_mask(saved(tmp_path, LABELS.astype(np.uint16) * 1000)) == BOTH).all()


@pytest.mark.parametrize("name", ["mask.jpg", "mask.png"])
@pytest.mark.parametrize("quality", [50, 75, 95])
def test_soft_edges_of_jpeg_are_cut_at_half(name, quality, tmp_path):
    saved(tmp_path, BOTH * np.uint8(255), "first.jpg", quality=quality)
    with Image.open(tmp_path / "first.jpg") as image:
        grey = np.asarray(image)
        image.save(tmp_path / name, quality=100)
    mask = read_mask(tmp_path / name)
    assert (mask != BOTH).sum() <= 3
    if name == "mask.png":
        assert (mask == (grey > 127)).all()


def test_edges_of_a_mask_that_was_resized_are_cut_at_half(tmp_path):
    image = Image.fromarray(BOTH * np.uint8(255))
    for resample in (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS):
        grey = image.resize((151, 97), resample)
        grey.save(tmp_path / "mask.png")
        assert (read_mask(tmp_path / "mask.png") == (np.asarray(grey) > 127)).all()


@pytest.mark.parametrize(
    ("background", "first", "second"),
    [
        ((255, 255, 255, 0), (255, 255, 255, 255), (255, 255, 255, 255)),  # alpha carries it
        ((0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 255)),  # in black
        ((255, 255, 255, 0), (255, 0, 0, 128), (255, 0, 0, 128)),  # half transparent
        ((255, 255, 255, 0), (255, 0, 0, 255), (0, 255, 0, 255)),  # two colours
        ((0, 0, 0, 255), (255, 255, 255, 255), (255, 255, 255, 255)),  # opaque
        ((0, 0, 0, 128), (255, 255, 255, 128), (255, 255, 255, 128)),  # alpha that tells nothing
    ],
)
def test_what_is_transparent_is_background(background, first, second, tmp_path):
    path = saved(tmp_path, painted(background, first, second))
    mask = inspect_mask(path)
    assert (mask.lesion == BOTH).all()
    assert mask.has_alpha == (background[3] < 255)


def test_white_that_is_hidden_by_alpha_is_background(tmp_path):
    # Seen are a black frame and a white lesion; the second disc is white too, but transparent.
    pixels = painted((0, 0, 0, 255), (255, 255, 255, 255), (255, 255, 255, 0))
    assert (read_mask(saved(tmp_path, pixels)) == FIRST).all()


def test_transparency_of_a_palette_is_alpha(tmp_path):
    image = Image.fromarray(LABELS).convert("P")
    image.putpalette(bytes([255] * 768))
    image.putdata(LABELS.ravel().tolist())
    image.save(tmp_path / "mask.png", transparency=0)
    assert (read_mask(tmp_path / "mask.png") == BOTH).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
@pytest.mark.parametrize("lesion", [False, True])
def test_mask_of_nothing_and_of_everything_is_read(mode, lesion, tmp_path):
    Image.new("L", (9, 7), 255 * lesion).convert(mode).save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == lesion).all()


@pytest.mark.parametrize("name", ["mask.png", "mask.jpg", "mask.tif"])
def test_mask_is_turned_as_its_image_is(name, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(tmp_path, FIRST * np.uint8(255), name, exif=exif)
    assert (read_mask(tmp_path / name) != np.rot90(FIRST, -1)).sum() < 3


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pixels",
    [
        painted((85,), (170,), (255,))[:, :, 0],  # no black
        painted((255, 255, 255), (255, 0, 0), (0, 255, 0)),  # colours on white
        painted((0, 0, 0), (128, 0, 0), (224, 224, 192)),  # undecided in VOC
        painted((255, 255, 255, 0), (0, 0, 0, 0), (0, 0, 0, 0)),  # all transparent
        np.tile(np.arange(WIDTH, dtype=np.uint8) * 4, (HEIGHT, 1)),  # probabilities
        np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), np.uint8),  # an image
        np.random.default_rng(0).integers(0, 9, (HEIGHT, WIDTH), np.uint8),  # faint noise
        np.where(disc(20, 30, 2) & (np.arange(WIDTH) < 29), 255, LABELS).astype(np.uint8),
        LABELS.astype(np.int32) * 70000,
        LABELS.astype(np.int32) - 1,
    ],
    ids=["grey", "white", "voc", "clear", "ramp", "image", "noise", "sliver", "deep", "negative"],
)
def test_values_that_could_mean_two_things_are_refused(pixels, tmp_path):
    name = "mask.tif" if pixels.dtype == np.int32 else "mask.png"
    assert code_of(saved(tmp_path, pixels, name)) == "E-MASK-VALUES"


@pytest.mark.parametrize("first", [100, 255])
def test_grey_lesion_in_jpeg_is_refused_and_not_dropped(first, tmp_path):
    pixels = np.array([0, first, 100], np.uint8)[LABELS]
    assert code_of(saved(tmp_path, pixels, "mask.jpg", quality=90)) == "E-MASK-VALUES"


def test_classes_in_jpeg_are_refused(tmp_path):
    assert code_of(saved(tmp_path, LABELS, "mask.jpg", quality=95)) == "E-MASK-VALUES"


def test_blurred_mask_without_edges_is_refused(tmp_path):
    image = Image.fromarray(BOTH * np.uint8(255)).filter(ImageFilter.GaussianBlur(8))
    image.save(tmp_path / "mask.png")
    assert code_of(tmp_path / "mask.png") == "E-MASK-VALUES"


def test_palette_that_shows_all_classes_alike_is_refused(tmp_path):
    image = Image.fromarray(LABELS).convert("P")
    image.putpalette(bytes(768))
    image.putdata(LABELS.ravel().tolist())
    image.save(tmp_path / "mask.png")
    assert code_of(tmp_path / "mask.png") == "E-MASK-VALUES"


@pytest.mark.parametrize(
    "pixels",
    [
        ~BOTH * np.uint8(255),
        ~BOTH * np.uint8(1),
        ~BOTH * np.uint16(65535),
        painted((255, 0, 0), (0, 0, 0), (0, 0, 0)),
        painted((0, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 0)),  # lesions cut out of what is opaque
    ],
)
def test_inverted_mask_is_refused(pixels, tmp_path):
    assert code_of(saved(tmp_path, pixels)) == "E-MASK-INVERTED"


def test_large_lesion_that_reaches_the_border_is_not_inverted(tmp_path):
    lesion = disc(20, 25, 26)
    assert lesion.mean() > 0.5
    assert (read_mask(saved(tmp_path, lesion * np.uint8(255))) == lesion).all()


def test_mask_of_several_pages_is_refused(tmp_path):
    pages = [Image.fromarray(lesion * np.uint8(255)) for lesion in (FIRST, SECOND)]
    pages[0].save(tmp_path / "mask.tif", save_all=True, append_images=pages[1:])
    assert code_of(tmp_path / "mask.tif") == "E-IMAGE-FRAMES"


def test_float_mask_is_refused(tmp_path):
    assert code_of(saved(tmp_path, BOTH.astype(np.float32), "mask.tif")) == "E-IMAGE-MODE"


# --- any mask ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    levels=st.lists(st.integers(1, 255), min_size=1, max_size=4),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    coloured=st.booleans(),
)
def test_mask_without_loss_is_what_is_not_black_or_it_is_refused(
    seed, levels, shape, coloured, tmp_path_factory
):
    """Areas of at least three pixels a side, in any colours on black."""
    chance = np.random.default_rng(seed)
    pixels = np.zeros((*shape, 3), np.uint8)
    for level in levels:
        top, left = (chance.integers(0, side) for side in shape)
        colour = [level, chance.integers(0, 256) * coloured, level * (not coloured)]
        pixels[top : top + 3 + chance.integers(9), left : left + 3 + chance.integers(9)] = colour
    path = tmp_path_factory.mktemp("any") / "mask.png"
    Image.fromarray(pixels).save(path)
    lesion = pixels.any(axis=2)
    mask = read_or_refused(path)
    if mask is not None:
        assert (mask <= lesion).all()
        if np.unique(pixels.max(axis=2)).size == 2:
            assert (mask == lesion).all()
        # Nothing is dropped but slivers, which may be edges: no square of three pixels a side.
        brightness = pixels.max(axis=2) * ~mask
        if min(shape) >= 3:
            squares = sliding_window_view(brightness, (3, 3))
            flat = squares.max(axis=(2, 3)) == squares.min(axis=(2, 3))
            assert not (flat & (squares[:, :, 0, 0] > 0)).any()


def read_or_refused(path: Path) -> np.ndarray | None:
    """Return a mask, or None where it is refused by a code that is for it."""
    try:
        return read_mask(path)
    except InputError as error:
        if error.code in ("E-MASK-VALUES", "E-MASK-INVERTED"):
            return None
        raise


# --- the audit -----------------------------------------------------------------------------------


def data_set(root: Path, mask: np.ndarray, *more: np.ndarray) -> Path:
    folder = root / "benign"
    folder.mkdir()
    chance = np.random.default_rng(3)
    Image.fromarray(chance.integers(0, 256, (HEIGHT, WIDTH), np.uint8)).save(folder / "x.png")
    for name, pixels in zip(("x_mask.png", "x_mask_1.png"), (mask, *more), strict=False):
        Image.fromarray(pixels).save(folder / name)
    return root


@pytest.mark.parametrize(
    ("kind", "masks", "text"),
    [
        ("odd_values", [BOTH * np.uint8(100)], "benign/x_mask.png: values 0, 100"),
        ("odd_values", [painted((0, 0, 0), (255, 0, 0), (0, 255, 0))], "x_mask.png: colours"),
        ("alpha_masks", [painted((9, 9, 9, 0), (9, 9, 9, 255), (9, 9, 9, 255))], "x_mask.png"),
        ("large_lesions", [disc(20, 25, 26) * np.uint8(255)], "benign/x.png: 7"),
        ("large_lesions", [np.full((HEIGHT, WIDTH), 255, np.uint8)], "benign/x.png: 100%"),
        ("blank_files", [BOTH * np.uint8(255), BOTH * np.uint8(0)], "benign/x_mask_1.png"),
        ("unreadable", [~BOTH * np.uint8(255)], "x_mask.png: E-MASK-INVERTED"),
    ],
)
def test_unusual_mask_is_the_only_problem_of_its_data_set(kind, masks, text, tmp_path):
    audit = audit_datasets([data_set(tmp_path, *masks)])
    assert audit.problems == 1
    (entry,) = getattr(audit, kind)
    assert text in entry
    assert text in render(audit)


def test_files_of_several_pages_are_listed(tmp_path):
    data_set(tmp_path, BOTH * np.uint8(255))
    folder = tmp_path / "benign"
    pages = [Image.fromarray(lesion * np.uint8(255)) for lesion in (FIRST, SECOND)]
    pages[0].save(folder / "x_mask_1.tif", save_all=True, append_images=pages[1:])
    (entry,) = audit_datasets([tmp_path]).several_pages
    assert entry.startswith("benign/x_mask_1.tif: E-IMAGE-FRAMES")


@pytest.mark.parametrize("top", [1, 255])
def test_usual_masks_are_no_problem(top, tmp_path):
    audit = audit_datasets([data_set(tmp_path, FIRST * np.uint8(top), SECOND * np.uint8(255))])
    assert audit.problems == 0
