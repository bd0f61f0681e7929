"""Frames out of the pixel data of a DICOM file, one at a time.

Uncompressed, RLE, JPEG and JPEG 2000 need numpy and Pillow alone. Lossless JPEG and JPEG-LS go
through pydicom's decoders, where one is installed. Encoding: DICOM PS3.5, A.4, annex G (RLE).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, Iterator, Optional, Tuple

import numpy as np
from PIL import Image

from ..errors import EngineError, InputError
from .source import Item

MAX_FRAGMENTS = 1024  # of one frame
MAX_ENCODED_BYTES = 256 << 20  # of one frame
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_PIXEL_DATA = {b"\xe0\x7f\x10\x00": "<", b"\x7f\xe0\x00\x10": ">"}  # tag -> byte order
_CODESTREAM_STARTS = (b"\xff\xd8", b"\xff\x4f")  # of JPEG and JPEG-LS, and of JPEG 2000
_BIG_ENDIAN = "1.2.840.10008.1.2.2"


class _DamagedError(Exception):
    """Why a frame cannot be read; becomes an InputError that names the frame."""


@dataclass(frozen=True)
class PixelFormat:
    """How the pixels are stored, checked by `require_readable`."""

    syntax: str  # UID of the transfer syntax, key of `SYNTAXES`
    offset: int  # of the pixel data element in the file
    rows: int
    columns: int
    frames: int
    samples: int  # per pixel
    planar: bool  # colour by plane
    photometric: str
    palette: Optional[np.ndarray]  # uint8 [256, 3], of PALETTE COLOR

    def require_readable(self, path: Path) -> None:
        """Raise InputError (E-DICOM-PIXELS), or EngineError (E-EXTRA-MISSING) for a decoder."""
        if _SAMPLES.get(self.photometric) != self.samples:
            raise InputError(
                "E-DICOM-PIXELS",
                f"{path} has {self.samples} samples a pixel as {self.photometric[:32]!r}, which is "
                f"not read; convert it to one of {', '.join(_SAMPLES)}",
            )
        if SYNTAXES[self.syntax] is _decode_by_library and not _library_decodes(self.syntax):
            raise EngineError(
                "E-EXTRA-MISSING",
                f"no decoder for transfer syntax {self.syntax} of {path}; pip install python-gdcm "
                "(and pydicom 3), or convert the file",
            )

    @property
    def subsampled(self) -> bool:
        """Whether two neighbours share their colour, in uncompressed data."""
        return self.photometric == "YBR_FULL_422"

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame without compression."""
        return self.rows * self.columns * (2 if self.subsampled else self.samples)


# Photometric interpretation -> samples per pixel.
_SAMPLES = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}


def read_frames(path: Path, pixels: PixelFormat) -> Iterator[Item]:
    """Yield the frames, grey uint8 [rows, columns], holding one at a time.

    In place of a frame that cannot be read comes an InputError (E-DICOM-FRAME) that names it,
    counted from 0. Where the data cannot be followed any further, it is the last.
    """
    number = 0
    try:
        with path.open("rb") as file:
            for encoded in _encoded_frames(file, pixels):
                yield _grey_or_error(encoded, pixels, path, number)
                number += 1
            if number < pixels.frames:
                raise _DamagedError("the data ends before it")
    except (_DamagedError, OSError) as damage:
        yield _frame_error(path, pixels, number, damage)


def _grey_or_error(encoded: bytes, pixels: PixelFormat, path: Path, number: int) -> Item:
    try:
        return _grey_of(SYNTAXES[pixels.syntax](encoded, pixels), pixels)
    except (
        *(_DamagedError, OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError),
        *(EOFError, OverflowError, struct.error, Image.DecompressionBombError, RuntimeError),
    ) as error:  # what Pillow's decoders and pydicom's raise for damaged data
        return _frame_error(path, pixels, number, error)


def _frame_error(path: Path, pixels: PixelFormat, number: int, why: Exception) -> InputError:
    reason = " ".join(str(why).split())[:200]
    return InputError(
        "E-DICOM-FRAME",
        f"frame {number} of {pixels.frames} in {path} cannot be read ({reason}); send or export "
        "the file again",
    )


# --- where the bytes of a frame are --------------------------------------------------------------


def _encoded_frames(file: BinaryIO, pixels: PixelFormat) -> Iterator[bytes]:
    length, order = _element(file, pixels.offset)
    compressed = SYNTAXES[pixels.syntax] is not _decode_native
    if compressed != (length == _UNDEFINED):
        raise _DamagedError("pixel data and transfer syntax disagree about compression")
    if compressed:
        return _encapsulated(file, pixels)
    swap = order == (">", b"OW")
    return _native(file, pixels, length, swap)


def _element(file: BinaryIO, offset: int) -> Tuple[int, Tuple[str, bytes]]:
    """Return length, byte order and VR of the pixel data element; the file is then at its value."""
    file.seek(offset)
    head = file.read(8)
    order = _PIXEL_DATA.get(head[:4])
    if len(head) < 8 or order is None:
        raise _DamagedError("there is no pixel data")
    vr = head[4:6]
    if vr in (b"OB", b"OW", b"UN"):  # explicit: four more bytes of length
        tail = file.read(4)
        if len(tail) < 4:
            raise _DamagedError("there is no pixel data")
        return struct.unpack(order + "I", tail)[0], (order, vr)
    return struct.unpack(order + "I", head[4:])[0], (order, b"")


def _native(file: BinaryIO, pixels: PixelFormat, length: int, swap: bool) -> Iterator[bytes]:
    """Cut uncompressed data into frames; `swap`: big-endian words, of which each holds two."""
    start, size = file.tell(), pixels.frame_bytes
    end = min(start + length, file.seek(0, io.SEEK_END))
    for number in range(pixels.frames):
        first = start + number * size
        odd = (first - start) % 2 if swap else 0
        wanted = size + odd + (size + odd) % 2 if swap else size
        if first + size > end:
            raise _DamagedError("the data ends before it")
        file.seek(first - odd)
        data = file.read(wanted)
        if swap:
            data = np.frombuffer(data[: len(data) // 2 * 2], np.uint16).byteswap().tobytes()
        yield data[odd : odd + size]


def _encapsulated(file: BinaryIO, pixels: PixelFormat) -> Iterator[bytes]:
    """Join the fragments of each frame.

    A fragment starts a frame if a codestream starts with it; of RLE each fragment is a frame. The
    table of offsets, which comes first, may be empty and is not used.
    """
    one_each = SYNTAXES[pixels.syntax] is _decode_rle
    parts: list[bytes] = []
    done = 0
    fragments = _fragments(file)
    next(fragments, None)
    while True:
        try:
            fragment = next(fragments, None)
        except _DamagedError:
            # Whole, as far as can be told, if it is the next frame's data that is damaged.
            if parts and done + 1 < pixels.frames:
                yield b"".join(parts)
            raise
        if fragment is None:
            break
        starts = one_each or fragment[:2] in _CODESTREAM_STARTS
        if parts and starts and pixels.frames > 1:
            yield b"".join(parts)
            parts, done = [], done + 1
            if done == pixels.frames:
                return
        parts.append(fragment)
        if len(parts) > MAX_FRAGMENTS or sum(map(len, parts)) > MAX_ENCODED_BYTES:
            raise _DamagedError("it is beyond reason long")
    if parts:
        yield b"".join(parts)


def _fragments(file: BinaryIO) -> Iterator[bytes]:
    """Yield the fragments up to the closing delimiter, or to the end of a file without it."""
    start = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(start)
    while True:
        head = file.read(8)
        if len(head) < 8 or head[:4] == _END:
            return
        if head[:4] != _ITEM:
            raise _DamagedError("its fragments are damaged")
        (length,) = struct.unpack("<I", head[4:])
        if length > MAX_ENCODED_BYTES:
            raise _DamagedError("it is beyond reason long")
        if length > end - file.tell():
            raise _DamagedError("the data ends within it")
        yield file.read(length)


# --- what they mean ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Decoded:
    """Samples of a frame, uint8 [rows, columns] or [rows, columns, 3], and their colour space."""

    samples: np.ndarray
    photometric: str


def _decode_native(encoded: bytes, pixels: PixelFormat) -> _Decoded:
    data = np.frombuffer(encoded, np.uint8)
    rows, columns = pixels.rows, pixels.columns
    samples: np.ndarray
    if pixels.subsampled:  # Y Y Cb Cr for two neighbours
        if columns % 2:
            raise _DamagedError("its width is odd and its colour is shared by two pixels")
        pairs = data.reshape(rows, columns // 2, 4)
        samples = np.empty((rows, columns, 3), np.uint8)
        samples[:, :, 0] = pairs[:, :, :2].reshape(rows, columns)
        samples[:, :, 1:] = pairs[:, :, 2:].repeat(2, axis=1)
    elif pixels.samples == 1:
        samples = data.reshape(rows, columns)
    elif pixels.planar:
        samples = data.reshape(3, rows, columns).transpose(1, 2, 0)
    else:
        samples = data.reshape(rows, columns, 3)
    return _Decoded(samples, pixels.photometric)


def _decode_rle(encoded: bytes, pixels: PixelFormat) -> _Decoded:
    """Decode one PackBits segment for each sample, after a header of 16 unsigned integers."""
    if len(encoded) < 64:
        raise _DamagedError("its RLE header is cut")
    count, *offsets = struct.unpack("<16I", encoded[:64])
    if count != pixels.samples:
        raise _DamagedError(f"it has {count} RLE segments for {pixels.samples} samples")
    bounds = [*offsets[:count], len(encoded)]
    size = (pixels.columns, pixels.rows)
    planes = [
        np.asarray(Image.frombytes("L", size, encoded[bounds[k] : bounds[k + 1]], "packbits", "L"))
        for k in range(count)
    ]
    samples = planes[0] if count == 1 else np.stack(planes, axis=2)
    # Planes have no colour that is shared.
    photometric = "YBR_FULL" if pixels.subsampled else pixels.photometric
    return _Decoded(samples, photometric)


def _decode_by_pillow(encoded: bytes, pixels: PixelFormat) -> _Decoded:
    with Image.open(io.BytesIO(encoded), formats=("JPEG", "JPEG2000")) as image:
        if image.size != (pixels.columns, pixels.rows):
            raise _DamagedError(f"it is {image.width}x{image.height}, the header tells another")
        if image.mode not in ("L", "RGB"):
            raise _DamagedError(f"it is of mode {image.mode}")
        if image.mode == "L":
            return _Decoded(np.asarray(image), _monochrome(pixels))
        # Without Adobe's marker the JPEG library takes any three samples for YCbCr.
        stays_rgb = pixels.photometric == "RGB" and "adobe_transform" not in image.info
        if image.format == "JPEG" and stays_rgb:
            image.draft("YCbCr", image.size)
        return _Decoded(np.asarray(image), "RGB")


def _decode_by_library(encoded: bytes, pixels: PixelFormat) -> _Decoded:
    import pydicom.pixels
    from pydicom.encaps import encapsulate

    library: Any = pydicom.pixels
    samples, told = library.get_decoder(pixels.syntax).as_array(
        encapsulate([encoded]),
        index=0,
        raw=True,
        rows=pixels.rows,
        columns=pixels.columns,
        number_of_frames=1,
        samples_per_pixel=pixels.samples,
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        photometric_interpretation=pixels.photometric,
        planar_configuration=int(pixels.planar) if pixels.samples > 1 else None,
        pixel_keyword="PixelData",
    )
    photometric = str(told["photometric_interpretation"])
    return _Decoded(samples, "YBR_FULL" if photometric == "YBR_FULL_422" else photometric)


def _library_decodes(syntax: str) -> bool:
    try:
        import pydicom.pixels
    except ImportError:  # pydicom 2
        return False
    library: Any = pydicom.pixels
    return bool(library.get_decoder(syntax).is_available)


def _monochrome(pixels: PixelFormat) -> str:
    return pixels.photometric if pixels.samples == 1 else "MONOCHROME2"


def _grey_of(decoded: _Decoded, pixels: PixelFormat) -> np.ndarray:
    samples = decoded.samples
    if decoded.photometric == "MONOCHROME2":
        return samples
    if decoded.photometric == "MONOCHROME1":
        return 255 - samples
    if decoded.photometric == "PALETTE COLOR" and pixels.palette is not None:
        samples = pixels.palette[samples]
    mode = "YCbCr" if decoded.photometric.startswith("YBR") else "RGB"
    size = (pixels.columns, pixels.rows)
    image = Image.frombytes(mode, size, np.ascontiguousarray(samples).tobytes())
    return np.asarray(image.convert("RGB").convert("L"))


# Transfer syntax -> how a frame of it is decoded.
SYNTAXES: Dict[str, Callable[[bytes, PixelFormat], _Decoded]] = {
    **dict.fromkeys(
        ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _BIG_ENDIAN),
        _decode_native,
    ),
    "1.2.840.10008.1.2.5": _decode_rle,
    **dict.fromkeys(  # JPEG Baseline, Extended, JPEG 2000 lossless and lossy
        (
            *("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"),
            *("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),
        ),
        _decode_by_pillow,
    ),
    **dict.fromkeys(  # JPEG Lossless, JPEG-LS lossless and near-lossless
        (
            *("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),
            *("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"),
        ),
        _decode_by_library,
    ),
}
