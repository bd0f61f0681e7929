"""Reading, the network's input, and the mask in the frame's own geometry."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import InputError
from edgeseg.runtime.image import (
    grey_from_frame,
    input_from_frame,
    kept_logits,
    mask_from_logits,
    read_image,
    resize_grey,
    resize_mask,
)

SIZES = [(64, 64), (57, 91), (16, 20), (1, 1), (200, 33), (31, 300)]


def write_png(path: Path, width: int, height: int, *, depth: int, colour: int, pixels: bytes):
    """Write a PNG by hand, so that its header can claim anything."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def blob_logits(seed, height=32, width=48):
    """Smooth logits with a few islands above 0, as a network gives them."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(-1, 2, (1, 1, 6, 8)).astype(np.float32))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0, 0].numpy()


def full_mask(logits, contract, height, width):
    """Interpolate every pixel and threshold; the same arithmetic without any box."""

    def taps(size_in, size_out):
        position = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
        position = position.clip(0, size_in - 1)
        lower = position.astype(int)
        return lower, np.minimum(lower + 1, size_in - 1), (position - lower).astype(np.float32)

    y_low, y_up, y_weight = taps(logits.shape[0], height)
    x_low, x_up, x_weight = taps(logits.shape[1], width)
    lines = logits[y_low] + (logits[y_up] - logits[y_low]) * y_weight[:, None]
    values = lines[:, x_low] + (lines[:, x_up] - lines[:, x_low]) * x_weight
    return (values > contract.logit_threshold).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_mask_is_torch_bilinear_interpolation_thresholded(height, width, threshold):
    contract = InputContract(threshold=threshold)
    for seed in range(5):
        logits = blob_logits(seed)
        values = torch.nn.functional.interpolate(
            torch.from_numpy(logits)[None, None],
            (height, width),
            mode="bilinear",
            align_corners=False,
        )[0, 0].numpy()
        mask = mask_from_logits(logits, contract, height, width)
        differs = mask != (values > contract.logit_threshold)
        assert np.abs(values - contract.logit_threshold)[differs].max(initial=0) < 1e-5


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_mask_from_the_box_is_the_mask_of_all_pixels(height, width):
    rng = np.random.default_rng(1)
    for seed in range(10):
        contract = InputContract(threshold=rng.uniform(0.1, 0.9))
        for logits in (blob_logits(seed), rng.normal(size=(7, 9)).astype(np.float32)):
            mask = mask_from_logits(logits, contract, height, width)
            assert (mask == full_mask(logits, contract, height, width)).all()


@pytest.mark.parametrize("corner", [(0, 0), (0, 15), (15, 0), (15, 15), (7, 0), (0, 7)])
def test_lesion_at_the_edge_of_the_frame_is_whole(corner):
    logits = np.full((16, 16), -1, np.float32)
    logits[corner] = 1
    for height, width in SIZES:
        mask = mask_from_logits(logits, InputContract(), height, width)
        assert (mask == full_mask(logits, InputContract(), height, width)).all()
    assert mask_from_logits(logits, InputContract(), 64, 64).any()


def test_one_logit_grows_with_the_frame():
    # -1 around +3: the bilinear peak crosses 0 three quarters of the way to its neighbours.
    logits = np.full((16, 16), -1, np.float32)
    logits[8, 8] = 3
    mask = mask_from_logits(logits, InputContract(), 64, 64)
    rows = np.flatnonzero(mask.any(axis=1))
    assert (rows[0], rows[-1]) == (31, 36)  # centre 34, 8.5 · 4, reach 3 px of 4


def test_mask_of_equal_size_is_the_logits_thresholded_and_a_tie_is_background():
    logits = np.array([[-1, 0, 1], [2, -2, 0]], np.float32)
    mask = mask_from_logits(logits, InputContract(), 2, 3)
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize(("value", "lesion"), [(-5, 0), (5, 1)])
def test_mask_of_equal_logits_is_empty_or_full(value, lesion):
    mask = mask_from_logits(np.full((16, 16), value, np.float32), InputContract(), 50, 30)
    assert mask.shape == (50, 30)
    assert (mask == lesion).all()


def parts_of(logits, level):
    """Yield the 8-connected parts above a level as bool [H, W], found the plain way."""
    left = {tuple(each) for each in np.argwhere(logits > level).tolist()}
    while left:
        queue, part = [left.pop()], np.zeros(logits.shape, bool)
        while queue:
            y, x = queue.pop()
            part[y, x] = True
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            queue += near
        yield part


def least_contracts(height, width):
    pixel = 1 / (height * width)
    yield InputContract(height, width, threshold=0.3, least_area=2.5 * pixel)
    yield InputContract(height, width, threshold=0.3, least_peak=0.8)
    yield InputContract(height, width, threshold=0.6, least_area=4 * pixel, least_peak=0.7)


def test_mask_is_that_of_each_component_alone_that_is_large_and_probable_enough():
    # Components are taken one by one, with nothing else above the level: their union is the mask
    # with those that stay, and with all of them the mask without a least lesion.
    rng = np.random.default_rng(3)
    seen = {True: 0, False: 0}
    for contract in least_contracts(32, 48):
        level = np.float32(contract.logit_threshold)
        plain = InputContract(32, 48, threshold=contract.threshold)
        for size in [(32, 48), (90, 77), (20, 31), (64, 200), (1, 1)]:
            logits = (rng.normal(-2.2, 2, (32, 48))).astype(np.float32)
            every, kept = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
            for part in parts_of(logits, level):
                alone = np.where((logits > level) & ~part, np.float32(level - 1), logits)
                mask = mask_from_logits(alone, plain, *size)
                stays = (
                    part.sum() >= contract.least_area * logits.size
                    and logits[part].max() >= contract.least_logit
                )
                seen[stays] += 1
                every |= mask
                kept |= mask if stays else 0
            assert (mask_from_logits(logits, plain, *size) == every).all()
            assert (mask_from_logits(logits, contract, *size) == kept).all()
    assert min(seen.values()) > 50


def test_component_of_exactly_the_least_size_and_probability_stays():
    logits = np.full((16, 16), -3, np.float32)
    logits[2:4, 2:4] = 1.5
    peak = float(1 / (1 + np.exp(-1.5)))
    stays = InputContract(16, 16, least_area=4 / 256, least_peak=peak - 1e-6)
    assert mask_from_logits(logits, stays, 16, 16).sum() == 4
    for goes in (
        InputContract(16, 16, least_area=4.5 / 256),
        InputContract(16, 16, least_peak=peak + 1e-6),
    ):
        assert not mask_from_logits(logits, goes, 16, 16).any()


def test_pixels_that_touch_at_a_corner_are_one_component():
    logits = np.full((16, 16), -3, np.float32)
    logits[range(5), range(5)] = 2
    logits[12, 3:7] = 2
    contract = InputContract(16, 16, least_area=5 / 256)
    mask = mask_from_logits(logits, contract, 16, 16)
    assert mask.sum() == 5
    assert mask[:5].sum() == 5


def test_logits_are_left_alone_and_only_what_is_dropped_is_changed():
    logits = np.full((16, 16), -3, np.float32)
    logits[2, 2], logits[8:12, 8:12] = 4, 4
    before = logits.copy()
    contract = InputContract(16, 16, least_area=2 / 256)
    kept = kept_logits(logits, contract)
    assert (logits == before).all()
    assert np.argwhere(kept != logits).tolist() == [[2, 2]]
    assert kept_logits(kept, contract) is kept
    assert kept_logits(logits, InputContract(16, 16)) is logits


def test_dropped_component_leaves_nothing_where_float32_overshoots():
    # 24 px to 168: some weight is 1 - 2**-k, and -5 + (level - -5) * weight may round above the
    # level if a dropped pixel were set to the level itself.
    rng = np.random.default_rng(4)
    for _ in range(300):
        contract = InputContract(16, 16, threshold=float(rng.uniform(0.1, 0.9)), least_area=3 / 256)
        logits = rng.uniform(-9, -4, (16, 16)).astype(np.float32)
        logits[3, 3] = 5  # dropped, inside the box of two that stay
        logits[0, 8:12] = logits[12, 0:4] = 5
        mask = mask_from_logits(logits, contract, 143, 151)
        alone = np.where(np.arange(256).reshape(16, 16) == 51, np.float32(-9), logits)
        assert (mask == mask_from_logits(alone, contract, 143, 151)).all()


def test_rgb_frame_is_read_by_luma():
    frame = np.zeros((2, 3, 3), np.uint8)
    frame[0, 0], frame[0, 1], frame[0, 2] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    assert grey_from_frame(frame)[0].tolist() == [76, 150, 29]  # 0.299, 0.587, 0.114 of 255


def test_grey_frame_saved_as_rgb_is_the_same_frame():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert (grey_from_frame(np.repeat(grey[:, :, None], 3, axis=2)) == grey).all()


@pytest.mark.parametrize("channels", [(), (3,)])
def test_strided_frame_gives_the_input_of_its_copy(channels):
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, *channels), dtype=np.uint8)
    strided = frame[::-2, 10:100:3]
    assert not strided.flags.c_contiguous
    contract = InputContract(height=32, width=32)
    assert (input_from_frame(strided, contract) == input_from_frame(strided.copy(), contract)).all()


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((8, 8), np.float32),
        np.zeros((8, 8), np.uint16),
        np.zeros((8, 8), bool),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        np.zeros((0, 8), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
    ],
    ids=lambda frame: f"{frame.dtype}{list(frame.shape)}",
)
def test_frame_that_is_not_8_bit_grey_or_rgb_is_refused(frame):
    with pytest.raises(InputError) as caught:
        input_from_frame(frame, InputContract())
    assert caught.value.code == "E-FRAME"


def test_input_is_grey_over_255_minus_mean_over_std():
    contract = InputContract(height=16, width=16, mean=0.5, std=0.25)
    for grey, value in ((0, -2), (51, -1.2), (255, 2)):
        image = input_from_frame(np.full((16, 16), grey, np.uint8), contract)
        assert image.dtype == np.float32
        assert image.shape == (1, 1, 16, 16)
        assert image == pytest.approx(value, abs=1e-6)


def test_input_is_written_into_the_given_buffer():
    contract = InputContract(height=32, width=48)
    frame = np.random.default_rng(0).integers(0, 256, (100, 90), dtype=np.uint8)
    buffer = np.full((1, 1, 32, 48), np.nan, np.float32)
    assert input_from_frame(frame, contract, buffer) is buffer
    assert (buffer == input_from_frame(frame, contract)).all()


def test_resized_mask_is_lesion_where_half_of_the_area_is():
    mask = np.zeros((4, 4), bool)
    mask[:, :2] = True
    assert resize_mask(mask, 2, 2).tolist() == [[True, False], [True, False]]
    assert resize_grey(mask * np.uint8(200), 4, 4).tolist() == (mask * 200).tolist()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_8_bit_mode_is_read_as_the_same_grey(mode, tmp_path):
    grey = np.array([[0, 255], [255, 0]], np.uint8)
    Image.fromarray(grey).convert(mode).save(tmp_path / "image.png")
    assert (read_image(tmp_path / "image.png") == grey).all()


def test_palette_with_transparency_is_read_without_a_warning(tmp_path):
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("P")
    image.save(tmp_path / "image.png", transparency=bytes(range(256)))
    assert read_image(tmp_path / "image.png").tolist() == [[0, 255]]  # warnings are errors here


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (6, 4)])
def test_image_of_16_bits_a_channel_is_refused_and_not_cut_down(colour, channels, tmp_path):
    pixels = 4 * (b"\0" + 4 * channels * b"\x12\x34")
    write_png(tmp_path / "deep.png", 4, 4, depth=16, colour=colour, pixels=pixels)
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / "deep.png")
    assert caught.value.code == "E-IMAGE-MODE"


def test_float_image_is_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / "image.tif")
    assert caught.value.code == "E-IMAGE-MODE"


@pytest.mark.parametrize("side", [8193, 60_000, 2**31 - 1])
def test_huge_declared_size_is_refused_before_decoding(side, tmp_path):
    # There are no pixels to decode: reading them would give E-IMAGE-READ instead.
    write_png(tmp_path / "huge.png", side, side, depth=8, colour=0, pixels=b"")
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / "huge.png")
    assert caught.value.code == "E-IMAGE-SIZE"


def test_every_truncation_of_an_image_is_refused(tmp_path):
    path = tmp_path / "image.png"
    noise = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    end = whole.index(b"IEND") - 12  # from here on only checksums and the end mark are missing
    for length in range(0, end, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            read_image(path)
        assert caught.value.code == "E-IMAGE-READ"


@pytest.mark.parametrize("content", [None, b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_missing_or_foreign_file_is_refused(content, tmp_path):
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert caught.value.code == "E-IMAGE-READ"
