"""Synthetic breast-ultrasound frames in BUSI layout, for trying the tools without patient data.

A frame is simulated as a linear array sees it: wavy tissue layers set the strength of random
scatterers, a point-spread function that widens with depth blurs their complex echoes into Rayleigh
speckle (Wagner et al. 1983, doi 10.1109/T-SU.1983.31404), attenuation summed along depth and an
imperfect time-gain compensation give shadows and enhancement, log compression gives grey values.
Signs that tell benign from malignant follow BI-RADS: shape, orientation, margin, posterior echo.
Phantoms are for plumbing: no figure measured on them says anything about patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...runtime.engines import available_threads
from ...runtime.errors import InputError
from ...runtime.files import atomic_folder
from ...runtime.paths import takes_paths
from ...runtime.progress import Progress, quiet
from .dataset import LABELS, Dataset, read_dataset

_Field = npt.NDArray[np.float32]
_Mask = npt.NDArray[np.bool_]

# Mean echo level in dB below full white
_SKIN_DB, _FAT_DB, _GLAND_DB, _MUSCLE_DB = -18.0, -40.0, -30.0, -40.0
_CYST_DB = -75.0
_DEPTH_LOSS_DB = 35.0  # of ordinary tissue from top to bottom, before compensation
_OVERLAP = 8  # extra rows simulated and cut, where the FFT's blur wraps around
_SECOND_FRAME_EVERY = 16  # the 4th, 20th, 36th ... frame of a class shows the lesion before it
_AT_ONCE = 64  # frames drawn ahead, about 0.3 MB each


@dataclass(frozen=True)
class _Lesion:
    """Geometry in pixels, echo in dB."""

    x: float
    y: float
    half_width: float
    half_height: float
    malignant: bool
    cyst: bool


@dataclass
class _Tissue:
    """What the beam meets, each [H, W]; lesions and artefacts are drawn into it."""

    echo_db: _Field
    loss: _Field  # attenuation relative to ordinary tissue


@takes_paths
def write_phantoms(out: Path, *, count: int, seed: int = 0, progress: Progress = quiet) -> Dataset:
    """Write frames and masks in BUSI layout: 45 % benign, 40 % malignant, 15 % normal.

    A frame depends on the seed, its class and its number only, not on `count`.

    Args:
        out: folder to make; written whole or not at all.
        count: frames, >= 1.
        seed: >= 0.
        progress: wraps the loop over frames.

    Returns:
        The data set read back.

    Raises:
        InputError: E-PHANTOM-COUNT, or E-OUT-EXISTS where `out` exists.
        OutputError: E-OUT-WRITE.
    """
    if count < 1:
        raise InputError("E-PHANTOM-COUNT", f"cannot write {count} phantoms; ask for 1 or more")
    with atomic_folder(out) as folder:
        chosen = phantoms_of(count)
        shown = progress(chosen, "drawing phantoms")
        for (label, number), (image, masks) in zip(shown, draw_all(chosen, seed), strict=True):
            (folder / label).mkdir(exist_ok=True)
            stem = f"{label} ({number})"
            Image.fromarray(image).save(folder / label / f"{stem}.png")
            for index, mask in enumerate(masks):
                suffix = f"_mask_{index}" if index else "_mask"
                Image.fromarray(mask).save(folder / label / f"{stem}{suffix}.png")
    return read_dataset(out)


def phantoms_of(count: int) -> list[tuple[str, int]]:
    """Return class and number of `count` phantoms: 45 % benign, 40 % malignant, 15 % normal."""
    malignant, normal = round(0.40 * count), round(0.15 * count)
    counts = dict(zip(LABELS, (count - malignant - normal, malignant, normal), strict=True))
    return [(label, number + 1) for label in LABELS for number in range(counts[label])]


def draw_all(
    chosen: Sequence[tuple[str, int]], seed: int
) -> Iterator[tuple[npt.NDArray[np.uint8], tuple[_Mask, ...]]]:
    """Yield frames by class and number in their order, as `draw_phantom` draws them.

    All cores draw: NumPy lets go of the interpreter's lock while it computes.
    """
    with ThreadPoolExecutor(available_threads()) as pool:
        for first in range(0, len(chosen), _AT_ONCE):
            here = chosen[first : first + _AT_ONCE]
            yield from pool.map(lambda each: draw_phantom(each[0], each[1], seed), here)


def draw_phantom(
    label: str, number: int, seed: int
) -> tuple[npt.NDArray[np.uint8], tuple[_Mask, ...]]:
    """Draw one frame.

    Args:
        label: one of LABELS.
        number: of the frame in its class, >= 1.
        seed: >= 0.

    Returns:
        The frame, uint8 [H, W], and its masks, bool [H, W] each; an empty one for "normal".
    """
    key = LABELS.index(label)
    if number % _SECOND_FRAME_EVERY == 4:
        image, masks = draw_phantom(label, number - 1, seed)
        return _second_frame(np.random.default_rng((seed, key, number)), image, masks)
    rng = np.random.default_rng((seed, key, number))
    height, width = 4 * int(rng.integers(65, 101)), 4 * int(rng.integers(80, 121))
    tissue = _layers(rng, height + _OVERLAP, width)
    _add_fat_lobules(rng, tissue)
    masks = tuple(_add_lesion(rng, tissue, one) for one in _lesions(rng, label, height, width))
    if not masks:
        masks = (np.zeros_like(tissue.echo_db, np.bool_),)
    image = _scan(rng, tissue)
    return image[:height], tuple(mask[:height] for mask in masks)


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: tuple[float, float]) -> _Field:
    """Return smooth noise of about unit variance whose features are `cell` (rows, columns) big."""
    grid = (int(shape[0] / cell[0]) + 3, int(shape[1] / cell[1]) + 3)
    coarse = Image.fromarray(rng.standard_normal(grid, np.float32))
    smooth = np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    return np.asarray(1.4 * smooth, np.float32)


def _wave(rng: np.random.Generator, width: int, height: float) -> _Field:
    """Return a wavy line [width] of about the given height."""
    x = np.linspace(0, 2 * np.pi, width, dtype=np.float32)
    waves = [
        rng.normal() / order * np.cos(rng.uniform(0.6, 1.4) * order / 2 * x + rng.uniform(0, 7))
        for order in (1, 2, 3, 5)
    ]
    return np.asarray(height / 2 * sum(waves), np.float32)


def _layers(rng: np.random.Generator, height: int, width: int) -> _Tissue:
    """Return skin, fat, gland and muscle with their textures."""
    shape = (height, width)
    y = np.arange(height, dtype=np.float32)[:, None]
    skin = height * rng.uniform(0.03, 0.06) + _wave(rng, width, height * 0.01)
    fat = height * rng.uniform(0.18, 0.34) + _wave(rng, width, height * 0.12)
    gland = height * rng.uniform(0.62, 0.80) + _wave(rng, width, height * 0.08)

    # Fibres run along the layers: rows of anisotropic noise, moved up and down with the bounds.
    rows = np.clip(y - (fat - fat.mean()) * (1 - y / height), 0, height - 1).astype(np.intp)
    columns = np.arange(width)
    fibres = _noise(rng, shape, (4, width / rng.uniform(4, 9)))[rows, columns]
    streaks = _noise(rng, shape, (2.5, width / rng.uniform(3, 7)))[rows, columns]
    clumps = _noise(rng, shape, (rng.uniform(12, 24), rng.uniform(25, 60)))

    layer = np.where(y < fat, 0, np.where(y < gland, 1, 2))
    echo_db = np.array([_FAT_DB, _GLAND_DB, _MUSCLE_DB], np.float32)[layer]
    echo_db += np.array([2.0, 5.0, 2.0], np.float32)[layer] * clumps
    echo_db += np.array([4.0, 3.0, 5.0], np.float32)[layer] * np.clip(fibres, -0.5, 2)
    echo_db += 10 * np.clip(streaks - 0.9, 0, 1.5)  # septa and Cooper's ligaments
    for bound, peak_db in ((fat, 9.0), (gland, 14.0)):  # fasciae mirror the beam
        thickness = rng.uniform(1.2, 2.5)
        echo_db += peak_db * np.exp(-(((y - bound) / thickness) ** 2))
    echo_db = np.where(y < skin, _SKIN_DB + 3 * fibres, echo_db).astype(np.float32)
    return _Tissue(echo_db, np.ones(shape, np.float32))


def _polar(
    rng: np.random.Generator, shape: tuple[int, ...], lesion: _Lesion
) -> tuple[_Field, _Field]:
    """Return distance over the ellipse's radius, and angle from its axis, each [H, W]."""
    tilt = rng.normal(0, 0.15)
    y, x = np.ogrid[: shape[0], : shape[1]]
    right, down = x - lesion.x, y - lesion.y
    u = (right * np.cos(tilt) + down * np.sin(tilt)) / lesion.half_width
    v = (down * np.cos(tilt) - right * np.sin(tilt)) / lesion.half_height
    return np.hypot(u, v).astype(np.float32), np.arctan2(v, u).astype(np.float32)


def _outline(rng: np.random.Generator, angle: _Field, malignant: bool) -> _Field:
    """Return the outline's radius at each angle, about 1: smooth, or lobed with spikes."""
    radius = np.ones_like(angle)
    roughness = 0.16 if malignant else 0.05
    for order in range(2, 8 if malignant else 4):
        radius += np.float32(roughness * rng.normal() / order**0.5) * np.cos(
            order * angle + np.float32(rng.uniform(0, 2 * np.pi))
        )
    if malignant:
        for _ in range(rng.integers(4, 10)):
            sharpness = np.float32(rng.uniform(25, 90))
            direction = np.float32(rng.uniform(0, 2 * np.pi))
            spike = np.exp(sharpness * (np.cos(angle - direction) - 1))
            radius += np.float32(rng.uniform(0.10, 0.40)) * spike
    return np.asarray(np.maximum(radius, 0.45), np.float32)


def _lesions(rng: np.random.Generator, label: str, height: int, width: int) -> Iterator[_Lesion]:
    """Yield the lesions of a frame: none, one, or two side by side in a few benign frames."""
    if label == "normal":
        return
    malignant = label == "malignant"
    pair = not malignant and rng.random() < 0.10
    centres = (rng.uniform(0.2, 0.3), rng.uniform(0.7, 0.8)) if pair else (rng.uniform(0.3, 0.7),)
    for centre in centres:
        if malignant:
            half_width = width * rng.uniform(0.07, 0.15)
            half_height = half_width * rng.uniform(0.75, 1.45)
        else:
            half_width = width * rng.uniform(0.05, 0.12 if pair else 0.18)
            half_height = half_width * rng.uniform(0.45, 0.80)
        half_height = min(half_height, 0.26 * height)
        depth = max(height * rng.uniform(0.30, 0.55), half_height + 0.12 * height)
        cyst = not malignant and rng.random() < 0.30
        yield _Lesion(width * centre, depth, half_width, half_height, malignant, cyst)


def _add_lesion(rng: np.random.Generator, tissue: _Tissue, lesion: _Lesion) -> _Mask:
    """Draw a lesion into the tissue and return its mask, bool [H, W]."""
    shape = tissue.echo_db.shape
    distance, angle = _polar(rng, shape, lesion)
    radius = _outline(rng, angle, lesion.malignant)
    depth_px = (radius - distance) * np.float32(min(lesion.half_width, lesion.half_height))
    if lesion.malignant:
        border_px, inside_db = rng.uniform(1.5, 4.0), rng.uniform(-53, -46)
        inside = inside_db + 3.5 * _noise(rng, (shape[0], shape[1]), (10, 14))
        # echogenic halo of infiltrated fat around the mass
        tissue.echo_db += 4 * np.exp(-(((depth_px + 7) / 5) ** 2))
        bright = (rng.random(shape, np.float32) < 0.004) & (depth_px > 4) & (rng.random() < 0.4)
        inside = np.where(bright, -18.0, inside)  # microcalcifications
        loss = rng.uniform(1.4, 3.2)
    else:
        inside_db = _CYST_DB if lesion.cyst else rng.uniform(-50, -44)
        border_px, loss = rng.uniform(0.7, 1.3), 0.1 if lesion.cyst else rng.uniform(0.3, 0.8)
        inside = inside_db + 1.2 * _noise(rng, (shape[0], shape[1]), (12, 18))
        # thin capsule, brightest where the beam meets it at a right angle
        capsule = np.exp(-(((depth_px + 1.5) / 1.5) ** 2)) * (0.3 + np.abs(np.sin(angle)))
        tissue.echo_db += rng.uniform(5, 9) * capsule
    share = 1 / (1 + np.exp(np.clip(-depth_px / np.float32(border_px), -30, 30)))
    tissue.echo_db += share * (inside - tissue.echo_db)
    tissue.loss += share * np.float32(loss - 1)
    return np.asarray(depth_px > 0)


def _add_fat_lobules(rng: np.random.Generator, tissue: _Tissue) -> None:
    """Draw dark lobules of fat, which are no lesions: they neither shadow nor enhance."""
    height, width = tissue.echo_db.shape
    for _ in range(rng.integers(0, 5)):
        half_width = width * rng.uniform(0.04, 0.12)
        spot = _Lesion(
            width * rng.uniform(0.05, 0.95),
            height * rng.uniform(0.15, 0.65),
            half_width,
            half_width * rng.uniform(0.25, 0.5),
            malignant=False,
            cyst=False,
        )
        distance, angle = _polar(rng, (height, width), spot)
        depth_px = (_outline(rng, angle, malignant=False) - distance) * spot.half_height
        share = 1 / (1 + np.exp(np.clip(-depth_px / 1.5, -30, 30)))
        tissue.echo_db += share * (rng.uniform(-45, -39) - tissue.echo_db)
        tissue.echo_db += rng.uniform(2, 6) * np.exp(-(((depth_px + 1.5) / 2) ** 2))


def _scan(rng: np.random.Generator, tissue: _Tissue) -> npt.NDArray[np.uint8]:
    """Return the frame, uint8 [H, W], that a scanner shows of the tissue."""
    height, width = tissue.echo_db.shape
    depth = (np.arange(height, dtype=np.float32) / height)[:, None]

    loss_db = np.cumsum(tissue.loss, axis=0) * (_DEPTH_LOSS_DB / height)
    # the beam is wide: shadows have soft sides
    coarse = Image.fromarray(loss_db).resize((width // 6, height // 4), Image.Resampling.BOX)
    loss_db = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    gain_db = _DEPTH_LOSS_DB * depth * rng.uniform(0.80, 1.02) + rng.normal(0, 2)
    level_db = tissue.echo_db - loss_db + gain_db
    x = np.arange(width, dtype=np.float32)
    for _ in range(rng.integers(0, 4)):  # shadows of ligaments and bad contact, without a lesion
        column, spread = rng.uniform(0, width), width * rng.uniform(0.01, 0.06)
        start = height * rng.uniform(0.0, 0.5)
        fade = np.clip((depth * height - start) / (0.1 * height), 0, 1)
        level_db = level_db - rng.uniform(4, 14) * fade * np.exp(-(((x - column) / spread) ** 2))

    amplitude = np.exp(level_db * np.float32(np.log(10) / 20))
    sigma_rows, sigma_near, sigma_far = (
        rng.uniform(0.9, 1.2),
        rng.uniform(1.0, 1.4),
        rng.uniform(2.4, 3.6),
    )
    echo = np.zeros((height, width), np.float32)
    looks = 2  # compounded, as clinical scanners do
    for _ in range(looks):
        pairs = rng.standard_normal((height, width, 2), np.float32)
        scatterers = pairs.view(np.complex64)[..., 0]  # real and imaginary parts
        spectrum = np.fft.fft2(amplitude * scatterers).astype(np.complex64, copy=False)
        near = _blurred(spectrum, sigma_rows, sigma_near)
        far = _blurred(spectrum, sigma_rows, sigma_far)
        echo += np.abs(near + (far - near) * depth) / looks
    shown_db = 20 * np.log10(echo + np.float32(1e-4))
    range_db = rng.uniform(54, 62)
    grey: npt.NDArray[np.uint8] = np.clip(255 * (1 + shown_db / range_db), 0, 255).astype(np.uint8)
    return grey


def _blurred(
    spectrum: npt.NDArray[np.complex64], sigma_rows: float, sigma_columns: float
) -> npt.NDArray[np.complex64]:
    """Return the field [H, W] blurred by a Gaussian that keeps the mean power of white noise."""
    height, width = spectrum.shape
    rows = np.exp(-2 * (np.pi * sigma_rows * np.fft.fftfreq(height)) ** 2).astype(np.float32)
    columns = np.exp(-2 * (np.pi * sigma_columns * np.fft.fftfreq(width)) ** 2).astype(np.float32)
    rows /= np.sqrt((rows**2).mean())
    columns /= np.sqrt((columns**2).mean())
    return np.asarray(np.fft.ifft2(spectrum * rows[:, None] * columns), np.complex64)


def _second_frame(
    rng: np.random.Generator, image: npt.NDArray[np.uint8], masks: tuple[_Mask, ...]
) -> tuple[npt.NDArray[np.uint8], tuple[_Mask, ...]]:
    """Return the frame as saved again: cropped, with other contrast and callipers."""
    top, left, bottom, right = rng.integers(0, 5, size=4)
    crop = (slice(top, image.shape[0] - bottom), slice(left, image.shape[1] - right))
    masks = tuple(mask[crop] for mask in masks)
    changed = image[crop] * rng.uniform(0.85, 1.1) + rng.uniform(-8, 8)
    frame = np.clip(changed, 0, 255).astype(np.uint8)
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size:
            y, x = int(rows.mean()), int(columns.mean())
            for end in ((y, columns[0]), (y, columns[-1]), (rows[0], x), (rows[-1], x)):
                _add_cross(frame, int(end[0]), int(end[1]))
    return frame, masks


def _add_cross(frame: npt.NDArray[np.uint8], y: int, x: int) -> None:
    arm = 4
    frame[max(y - arm, 0) : y + arm + 1, x] = 255
    frame[y, max(x - arm, 0) : x + arm + 1] = 255
