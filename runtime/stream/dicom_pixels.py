"""Frames out of the pixel data of a DICOM file, one at a time.

Uncompressed, RLE, JPEG and JPEG 2000 need numpy and Pillow alone. Lossless JPEG and JPEG-LS go
through pydicom's decoders, where one is installed. Encoding: DICOM PS3.5, A.4, annex G (RLE).
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, FrozenSet, Iterator, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from ..errors import EngineError, InputError
from .source import Item

MAX_FRAGMENTS = 1024  # of one frame
MAX_ENCODED_BYTES = 256 << 20  # of one frame
_UNDEFINED = 0xFFFFFFFF
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_PIXEL_DATA = {b"\xe0\x7f\x10\x00": "<", b"\x7f\xe0\x00\x10": ">"}  # tag -> byte order
# Of JPEG and JPEG-LS, of JPEG 2000, and of JPEG 2000 within the boxes of a JP2 file.
_CODESTREAM_STARTS = (b"\xff\xd8", b"\xff\x4f", b"\0\0\0\x0cjP  ")
_END_OF_IMAGE = b"\xff\xd9"  # of JPEG, JPEG-LS and JPEG 2000
_RLE_HEADER_BYTES = 64
_OF_JPEG_2000 = ("YBR_ICT", "YBR_RCT")  # what only its component transform makes
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
    # Of 16 bits a sample, uint8 [65536]: the grey of each word as it is stored. None: 8 bits.
    levels: Optional[np.ndarray] = None
    stored_bits: int = 8
    signed: bool = False

    def require_readable(self, path: Path) -> None:
        """Raise InputError (E-DICOM-PIXELS), or EngineError (E-EXTRA-MISSING) for a decoder."""
        if _SAMPLES.get(self.photometric) != self.samples:
            raise InputError(
                "E-DICOM-PIXELS",
                f"{path} has {self.samples} samples a pixel as {self.photometric[:32]!r}, which is "
                f"not read; convert it to one of {', '.join(_SAMPLES)}",
            )
        contradiction = self._contradiction()
        if contradiction:
            raise InputError(
                "E-DICOM-PIXELS", f"{path} {contradiction}; convert it to Explicit VR Little Endian"
            )
        if SYNTAXES[self.syntax] is _decode_by_library and not _library_decodes(self.syntax):
            raise EngineError(
                "E-EXTRA-MISSING",
                f"no decoder for transfer syntax {self.syntax} of {path}; pip install python-gdcm "
                "(and pydicom 3), or convert the file",
            )

    def _contradiction(self) -> str:
        if self.palette is not None and self.syntax == _BIG_ENDIAN:
            return "has a palette in big-endian words, which is not read"
        decoder = SYNTAXES[self.syntax]
        if self.levels is not None and decoder in (_decode_jpeg, _decode_jpeg_2000):
            return "stores 16 bits as JPEG, of which 8 are read"
        if self.photometric in _OF_JPEG_2000 and decoder is not _decode_jpeg_2000:
            return f"has pixels as {self.photometric}, which only JPEG 2000 makes"
        if self.subsampled and self.planar and decoder is _decode_native:
            return "has colour that is shared by two pixels, but by plane"
        return ""

    @property
    def subsampled(self) -> bool:
        """Whether two neighbours share their colour, in uncompressed data."""
        return self.photometric == "YBR_FULL_422"

    @property
    def planes(self) -> int:
        """Bytes of a pixel, which RLE stores one after another."""
        return self.samples if self.levels is None else 2 * self.samples

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame without compression."""
        return self.rows * self.columns * (2 if self.subsampled else self.planes)

    def require_length(self, path: Path) -> None:
        """Raise InputError (E-DICOM-PIXELS) where length and photometric contradict each other.

        What is uncompressed and shorter is damaged, which `read_frames` tells; but a length that
        fits another number of samples exactly, or that leaves room for more frames, shows that the
        header is not that of these pixels. E-DICOM-SYNTAX: they are compressed, and the transfer
        syntax, or its absence, says otherwise. Raises OSError.
        """
        if SYNTAXES[self.syntax] is not _decode_native:
            return
        try:
            with path.open("rb") as file:
                length = _element(file, self.offset)[0]
        except _DamagedError:
            return
        wanted = self.frames * self.frame_bytes
        per_sample = self.frames * self.rows * self.columns
        fits_another = length in (_even(samples * per_sample) for samples in (1, 2, 3))
        excess = length - _even(wanted)
        if length == _UNDEFINED:
            raise InputError(
                "E-DICOM-SYNTAX",
                f"{path} has compressed pixels and tells no transfer syntax of any compression; "
                "correct its file meta information",
            )
        if length in (wanted, _even(wanted)):
            return
        if fits_another or excess >= self.frame_bytes:
            raise InputError(
                "E-DICOM-PIXELS",
                f"{path} has {length} bytes of pixels, but {self.frames} frames of "
                f"{self.columns}x{self.rows} as {self.photometric} need {wanted}: its photometric "
                "interpretation or its number of frames is wrong; correct the header",
            )


def _even(count: int) -> int:
    return count + count % 2


# Photometric interpretation -> samples per pixel.
_SAMPLES = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", *_OF_JPEG_2000), 3),
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
        _DamagedError,
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        EOFError,
        OverflowError,
        struct.error,
        Image.DecompressionBombError,
        RuntimeError,
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
    if pixels.levels is not None and order[0] == ">" and order[1] != b"OW":
        raise _DamagedError("its words are not told as words")
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

    The table of offsets, which comes first, tells where frames start; without one that is true a
    fragment starts a frame if a codestream starts with it. Of RLE each fragment is a frame.
    """
    one_each = SYNTAXES[pixels.syntax] is _decode_rle
    parts: list[bytes] = []
    done = 0
    fragments = _fragments(file)
    _, table = next(fragments, (0, b""))
    first = file.tell()
    starts_at = _true_offsets(file, table, pixels.frames)
    signature: Optional[Tuple[bytes, ...]] = None
    while True:
        try:
            at, fragment = next(fragments, (0, None))
        except _DamagedError:
            # Whole, as far as can be told, if it is the next frame's data that is damaged.
            if parts and done + 1 < pixels.frames:
                yield b"".join(parts)
            raise
        if fragment is None:
            break
        if signature is None:  # within the boxes of JP2 the codestream may begin a fragment too
            boxed = fragment.startswith(_CODESTREAM_STARTS[-1:])
            signature = _CODESTREAM_STARTS[-1:] if boxed else _CODESTREAM_STARTS
        if starts_at:
            starts = at - first in starts_at
        elif pixels.frames == 1:  # in as many fragments as it likes
            starts = _is_another(parts, fragment, pixels)
        else:
            starts = bool(fragment) if one_each else fragment.startswith(signature)
        if parts and starts:
            yield b"".join(parts)
            parts, done = [], done + 1
            if done == pixels.frames:
                raise _DamagedError("there are more frames than the header tells")
        parts.append(fragment)
        if len(parts) > MAX_FRAGMENTS or sum(map(len, parts)) > MAX_ENCODED_BYTES:
            raise _DamagedError("it is beyond reason long")
    if parts:
        yield b"".join(parts)


def _is_another(parts: Sequence[bytes], fragment: bytes, pixels: PixelFormat) -> bool:
    """Whether a fragment starts a second frame of a file that tells one: the first is complete."""
    if SYNTAXES[pixels.syntax] is _decode_rle:
        return fragment.startswith(struct.pack("<2I", pixels.planes, _RLE_HEADER_BYTES))
    ended = bool(parts) and parts[-1].rstrip(b"\0").endswith(_END_OF_IMAGE)
    return ended and fragment.startswith(_CODESTREAM_STARTS)


def _true_offsets(file: BinaryIO, table: bytes, frames: int) -> FrozenSet[int]:
    """Return what a table of offsets tells, from where the file is; empty where it is not true.

    It is not if it is of another length, does not ascend, or points at what is no fragment.
    """
    offsets = [offset for (offset,) in struct.iter_unpack("<I", table[: len(table) // 4 * 4])]
    ascending = offsets == sorted(set(offsets))
    if len(offsets) != frames or offsets[0] != 0 or not ascending:
        return frozenset()
    first = file.tell()
    heads = []
    for offset in offsets:
        file.seek(first + offset)
        heads.append(file.read(4))
    file.seek(first)
    return frozenset(offsets if all(head == _ITEM for head in heads) else ())


def _fragments(file: BinaryIO) -> Iterator[Tuple[int, bytes]]:
    """Yield where the item of each fragment begins, and the fragment.

    Up to the closing delimiter, or to the end of a file without it.
    """
    start = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(start)
    while True:
        at = file.tell()
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
        yield at, file.read(length)


# --- what they mean ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Decoded:
    """Samples of a frame and their colour space.

    uint8 [rows, columns] or [rows, columns, 3], or words of 16 bits [rows, columns].
    """

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
    elif pixels.levels is not None:
        samples = data.view("<u2").reshape(rows, columns)
    elif pixels.samples == 1:
        samples = data.reshape(rows, columns)
    elif pixels.planar:
        samples = data.reshape(3, rows, columns).transpose(1, 2, 0)
    else:
        samples = data.reshape(rows, columns, 3)
    return _Decoded(samples, pixels.photometric)


def _decode_rle(encoded: bytes, pixels: PixelFormat) -> _Decoded:
    """Decode one PackBits segment for each sample, after a header of 16 unsigned integers."""
    if len(encoded) < _RLE_HEADER_BYTES:
        raise _DamagedError("its RLE header is cut")
    count, *offsets = struct.unpack("<16I", encoded[:_RLE_HEADER_BYTES])
    if count != pixels.planes:
        raise _DamagedError(f"it has {count} RLE segments for {pixels.planes} bytes a pixel")
    bounds = [*offsets[:count], len(encoded)]
    size = (pixels.columns, pixels.rows)
    planes = [
        np.asarray(Image.frombytes("L", size, encoded[bounds[k] : bounds[k + 1]], "packbits", "L"))
        for k in range(count)
    ]
    if pixels.levels is not None:  # the high byte comes first
        return _Decoded(planes[0].astype(np.uint16) << 8 | planes[1], pixels.photometric)
    samples = planes[0] if count == 1 else np.stack(planes, axis=2)
    # Planes have no colour that is shared.
    photometric = "YBR_FULL" if pixels.subsampled else pixels.photometric
    return _Decoded(samples, photometric)


def _decode_jpeg(encoded: bytes, pixels: PixelFormat) -> _Decoded:
    with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
        _require_geometry(image, pixels)
        if image.mode == "L":
            return _Decoded(np.asarray(image), _monochrome(pixels))
        photometric = _colours_of_jpeg(image, pixels.photometric)
        # The samples as they are, converted as those of every other compression. These two the
        # JPEG library takes for RGB itself, all else for YCbCr.
        if image.info.get("adobe_transform") != 0 and _component_ids(image) != b"RGB":
            image.draft("YCbCr", image.size)
        return _Decoded(np.asarray(image), photometric)


_RGB_IDS = (b"RGB", b"rgb")  # as component identifiers


def _component_ids(image: Any) -> bytes:
    return bytes(layer[0] for layer in image.layer)


def _colours_of_jpeg(image: Any, label: str) -> str:
    """Return what the samples of a JPEG stream are: its own word goes before the label RGB.

    JFIF is YCbCr by its definition (ITU-T T.871), Adobe's marker tells it, and components that are
    named R, G, B are RGB. As pydicom has it, but that a stream that says both is refused.
    """
    adobe = image.info.get("adobe_transform")
    says_ycc = "jfif" in image.info or adobe == 1
    named_rgb = _component_ids(image) in _RGB_IDS
    if says_ycc and (named_rgb or adobe == 0):
        raise _DamagedError("its JPEG markers say both YCbCr and RGB")
    if adobe == 0 and not named_rgb and label != "RGB":
        raise _DamagedError(f"Adobe's marker says RGB and the header {label}")
    if named_rgb:
        return "RGB"
    return "YBR_FULL" if says_ycc or label != "RGB" else "RGB"


def _decode_jpeg_2000(encoded: bytes, pixels: PixelFormat) -> _Decoded:
    stream = _codestream_of(encoded)  # boxes may ask a decoder for a conversion of their own
    transformed = _component_transform(stream)
    with Image.open(io.BytesIO(stream), formats=("JPEG2000",)) as image:
        _require_geometry(image, pixels)
        if image.mode == "L":
            return _Decoded(np.asarray(image), _monochrome(pixels))
        # A decoder undoes the transform that the stream tells, and the samples are RGB then.
        if transformed != _TRANSFORMED.get(pixels.photometric, transformed):
            raise _DamagedError(
                f"its stream has {'a' if transformed else 'no'} component transform and the header "
                f"says {pixels.photometric}"
            )
        full = pixels.photometric in ("YBR_FULL", "YBR_FULL_422")
        return _Decoded(np.asarray(image), "YBR_FULL" if full else "RGB")


# Whether the stream of JPEG 2000 has a component transform, by the header's word; RGB leaves it
# open.
_TRANSFORMED = {
    **dict.fromkeys(_OF_JPEG_2000, True),
    **dict.fromkeys(("YBR_FULL", "YBR_FULL_422"), False),
}


def _require_geometry(image: Image.Image, pixels: PixelFormat) -> None:
    if image.size != (pixels.columns, pixels.rows):
        raise _DamagedError(f"it is {image.width}x{image.height}, the header tells another")
    if image.mode not in ("L", "RGB"):
        raise _DamagedError(f"it is of mode {image.mode}")
    if image.mode == "RGB" and pixels.samples != 3:
        raise _DamagedError("it has three components, the header tells one")


def _codestream_of(encoded: bytes) -> bytes:
    """Return the codestream of JPEG 2000 without the boxes of JP2 (ISO/IEC 15444-1, annex I)."""
    if not encoded.startswith(_CODESTREAM_STARTS[-1]):
        return encoded
    at = 0
    while at + 8 <= len(encoded):
        length, head = struct.unpack_from(">I", encoded, at)[0], 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", encoded, at + 8), 16
        if encoded[at + 4 : at + 8] == b"jp2c":
            return encoded[at + head : at + length if length else None]
        if length < head:
            break
        at += length
    raise _DamagedError("there is no codestream in its boxes")


def _component_transform(stream: bytes) -> bool:
    """Whether a codestream says in COD that its components were transformed.

    Raises _DamagedError for samples that are not 8 unsigned bits, or whose components are of
    different size: what decoders make of those differs. Markers: ISO/IEC 15444-1, annex A.
    """
    at = 2
    while at + 4 <= len(stream):
        marker, length = struct.unpack_from(">2H", stream, at)
        content = stream[at + 4 : at + 2 + length]
        if marker == 0xFF51:  # SIZ: three bytes a component, its precision and its steps
            components = content[36 : 36 + 3 * struct.unpack_from(">H", content, 34)[0]]
            if set(components[0::3]) != {7} or set(components[1::3] + components[2::3]) != {1}:
                raise _DamagedError("its components are not of 8 unsigned bits and of one size")
        elif marker == 0xFF52:  # COD: style, progression, two bytes of layers, the transform
            return content[4] != 0
        elif marker == 0xFF90 or length < 2:  # SOT: the header is over
            break
        at += 2 + length
    raise _DamagedError("its JPEG 2000 header is damaged")


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
        bits_allocated=8 if pixels.levels is None else 16,
        bits_stored=pixels.stored_bits,
        pixel_representation=int(pixels.signed),
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
    if pixels.levels is not None:
        levels: np.ndarray = pixels.levels[samples.view(np.uint16)]
        return levels
    if decoded.photometric == "MONOCHROME2":
        return samples
    if decoded.photometric == "MONOCHROME1":
        return 255 - samples
    if decoded.photometric == "PALETTE COLOR" and pixels.palette is not None:
        through: np.ndarray = _luma(pixels.palette)[samples]
        return through
    if decoded.photometric == "RGB":
        return _luma(samples)
    # Most pixels of a scan are grey: without colour Y is what the conversion gives too.
    grey: np.ndarray = samples[:, :, 0].copy()
    coloured = (samples[:, :, 1:] != 128).any(axis=2)
    grey[coloured] = _luma(_rgb_from_ybr(samples[coloured]))
    return grey


def _luma(rgb: np.ndarray) -> np.ndarray:
    """Return uint8 [..., 3] as grey, uint8 [...], as `runtime.image` makes it."""
    image = Image.fromarray(np.ascontiguousarray(rgb).reshape(1, -1, 3))
    return np.asarray(image.convert("L")).reshape(rgb.shape[:-1])


def _rgb_from_ybr(samples: np.ndarray) -> np.ndarray:
    """Convert YBR_FULL, uint8 [..., 3] (DICOM PS3.3, C.7.6.3.1.2), in the steps of pydicom."""
    converted = samples.astype(np.float32) - np.array([0, 128, 128], np.float32)
    converted = converted @ _RGB_OF_YBR + np.float32(0.5)
    rgb: np.ndarray = np.clip(np.floor(converted), 0, 255).astype(np.uint8)
    return rgb


_RGB_OF_YBR = np.array(
    [
        [1, 1, 1],
        [0, -0.114 * 1.772 / 0.587, 1.772],
        [1.402, -0.299 * 1.402 / 0.587, 0],
    ],
    np.float32,
)


# Transfer syntax -> how a frame of it is decoded.
SYNTAXES: Dict[str, Callable[[bytes, PixelFormat], _Decoded]] = {
    **dict.fromkeys(
        ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", _BIG_ENDIAN),
        _decode_native,
    ),
    "1.2.840.10008.1.2.5": _decode_rle,
    # JPEG Baseline and Extended, JPEG 2000 lossless and lossy
    **dict.fromkeys(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"), _decode_jpeg),
    **dict.fromkeys(("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"), _decode_jpeg_2000),
    **dict.fromkeys(  # JPEG Lossless, JPEG-LS lossless and near-lossless
        (
            "1.2.840.10008.1.2.4.57",
            "1.2.840.10008.1.2.4.70",
            "1.2.840.10008.1.2.4.80",
            "1.2.840.10008.1.2.4.81",
        ),
        _decode_by_library,
    ),
}
