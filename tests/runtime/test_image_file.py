"""Image files: turned as a viewer shows them, one frame where one is meant, all where all are."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.runtime.errors import InputError
from edgeseg.runtime.image import read_frames, read_image
from edgeseg.runtime.stream.sources import open_source

GREY = (np.arange(6)[:, None] * 40 + np.arange(4) * 5).astype(np.uint8)  # 6 rows, no symmetry
UPRIGHT = {  # orientation -> how a viewer turns it
    1: lambda grey: grey,
    2: lambda grey: grey[:, ::-1],
    3: lambda grey: grey[::-1, ::-1],
    4: lambda grey: grey[::-1],
    5: lambda grey: grey.T,
    6: lambda grey: np.rot90(grey, -1),
    7: lambda grey: grey[::-1, ::-1].T,
    8: lambda grey: np.rot90(grey),
}


def write_turned(path: Path, orientation: int, grey: np.ndarray = GREY, **options) -> Path:
    """Write an image with an orientation tag."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(grey).save(path, exif=exif, **options)
    return path


def code_of(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    return caught.value.code


# --- orientation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x.png", {}),
        ("x.tif", {}),
        ("x.tif", {"compression": "tiff_deflate"}),
        ("x.jpg", {"quality": 100}),
    ],
)
def test_picture_is_read_as_a_viewer_shows_it(orientation, name, options, tmp_path):
    grey = np.kron(GREY, np.ones((8, 8), np.uint8))  # whole blocks of JPEG
    path = write_turned(tmp_path / name, orientation, grey, **options)
    read, expected = read_image(path), UPRIGHT[orientation](grey)
    assert read.shape == expected.shape
    assert np.abs(read.astype(int) - expected).max() <= (2 if name == "x.jpg" else 0)


@pytest.mark.parametrize("orientation", [5, 8])
def test_tiff_written_by_hand_is_turned_and_not_sheared(orientation, tmp_path):
    tags = [(256, 4), (257, 6), (258, 8), (259, 1), (262, 1), (273, 8), (274, orientation)]
    tags += [(277, 1), (278, 6), (279, GREY.size)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + GREY.size)
    listing = struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "x.tif").write_bytes(head + GREY.tobytes() + listing)
    np.testing.assert_array_equal(read_image(tmp_path / "x.tif"), UPRIGHT[orientation](GREY))


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_orientation_that_means_nothing_turns_nothing(orientation, tmp_path):
    path = write_turned(tmp_path / "x.png", orientation)
    np.testing.assert_array_equal(read_image(path), GREY)


def test_damaged_exif_is_no_damage_of_the_picture(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "x.png", exif=b"Exif\0\0not TIFF at all")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), GREY)


# --- several frames ------------------------------------------------------------------------------

FRAMES = [np.full((6, 4), 50 * k, np.uint8) for k in range(5)]
SEVERAL = ("x.tif", "x.gif", "x.png", "x.apng")


def write_frames(path: Path, frames: list[np.ndarray] = FRAMES, **options) -> Path:
    first, *others = map(Image.fromarray, frames)
    kind = {".apng": "PNG"}.get(path.suffix)
    first.save(path, kind, save_all=True, append_images=others, **options)
    return path


@pytest.mark.parametrize("name", SEVERAL)
def test_file_of_several_frames_is_refused_where_one_is_meant(name, tmp_path):
    with pytest.raises(InputError, match=r"holds 5 frames.*edgeseg stream") as caught:
        read_image(write_frames(tmp_path / name))
    assert caught.value.code == "E-IMAGE-FRAMES"


@pytest.mark.parametrize("name", SEVERAL)
def test_every_frame_of_a_file_is_streamed_in_order(name, tmp_path):
    source = open_source(write_frames(tmp_path / name))
    assert source.frames == 5
    for _ in range(2):  # from the first one each time
        read = list(source.read())
        np.testing.assert_array_equal(read, FRAMES)


def test_pages_of_a_stack_are_turned_and_of_any_size(tmp_path):
    pages = [np.full((6, 4), 9, np.uint8), np.full((3, 7), 8, np.uint8)]
    exif = Image.Exif()
    exif[0x0112] = 6
    write_frames(tmp_path / "x.tif", pages, exif=exif)
    assert [frame.shape for frame in read_frames(tmp_path / "x.tif")] == [(4, 6), (7, 3)]


def test_picture_before_the_animation_is_no_frame(tmp_path):
    still = Image.fromarray(np.full((6, 4), 255, np.uint8))
    others = list(map(Image.fromarray, FRAMES[:3]))
    path = tmp_path / "x.png"
    still.save(path, save_all=True, append_images=others, default_image=True)
    source = open_source(path)
    assert source.frames == 3
    np.testing.assert_array_equal(list(source.read()), FRAMES[:3])


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.png"])
def test_file_of_one_frame_is_an_image(name, tmp_path):
    Image.fromarray(FRAMES[2]).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), FRAMES[2])
    assert open_source(tmp_path / name).frames == 1


def test_second_picture_of_a_camera_is_no_frame(tmp_path):
    first, second = (Image.fromarray(np.full((16, 16), grey, np.uint8)) for grey in (90, 200))
    first.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[second])
    assert abs(int(read_image(tmp_path / "x.jpg")[0, 0]) - 90) <= 1
    assert len(list(open_source(tmp_path / "x.jpg").read())) == 1


def test_stack_of_imagej_on_one_page_is_refused_everywhere(tmp_path):
    text = "ImageJ=1.11a\nimages=5\nslices=5\n"
    Image.fromarray(GREY).save(tmp_path / "x.tif", description=text)
    assert code_of(tmp_path / "x.tif") == "E-IMAGE-FRAMES"
    (item,) = open_source(tmp_path / "x.tif").read()
    assert item.code == "E-IMAGE-FRAMES"


def test_stack_in_a_folder_of_images_is_an_error_in_its_place(tmp_path):
    for name in ("1.png", "3.png"):
        Image.fromarray(GREY).save(tmp_path / name)
    write_frames(tmp_path / "2.tif")
    first, second, third = open_source(tmp_path).read()
    assert first.shape == third.shape == GREY.shape
    assert second.code == "E-IMAGE-FRAMES"


def test_damaged_stack_gives_its_frames_up_to_the_damage(tmp_path):
    path = write_frames(tmp_path / "x.tif", compression="tiff_deflate")
    content = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(3)
        (at,) = image.tag_v2[273]
    content[at : at + 4] = b"\xff" * 4
    path.write_bytes(content)
    source = open_source(path)
    *before, last = source.read()
    np.testing.assert_array_equal(before, FRAMES[:3])
    assert (source.frames, last.code) == (5, "E-IMAGE-READ")
    assert "frame 3" in str(last)


def test_stream_of_a_file_that_is_no_image_is_one_error(tmp_path):
    (tmp_path / "x.gif").write_bytes(b"GIF89a")
    source = open_source(tmp_path / "x.gif")
    (item,) = source.read()
    assert (source.frames, item.code) == (1, "E-IMAGE-READ")
