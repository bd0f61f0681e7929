"""The grey of a DICOM frame is that of pydicom's own decoder to the last bit, or it is refused."""

from __future__ import annotations

import io
import itertools
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.runtime.errors import EdgesegError, InputError
from edgeseg.runtime.stream import dicom_pixels
from edgeseg.runtime.stream.dicom import open_dicom
from edgeseg.tests.support.dicom_files import region, write_pixels

pydicom = pytest.importorskip(
    "pydicom", minversion="3.0", reason="no pydicom 3; make install brings it"
)

SHAPE = (24, 34)  # rows, columns: no side is a multiple of a JPEG block
EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
IMPLICIT, RLE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.5"
BASELINE, EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
LOSSLESS, LOSSLESS_FIRST = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_LS_NEAR = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS, JPEG_2000 = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
YCC_BY_ADOBE, RGB_BY_ADOBE = (b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([t]) for t in (1, 0))


def coloured(seed: int = 0) -> np.ndarray:
    """A picture with edges, ramps and noise in three samples, uint8 [rows, columns, 3]."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    ramps = np.stack([255 * x // SHAPE[1], 255 * y // SHAPE[0], 255 * (x > y)], axis=2)
    return (ramps + chance.integers(-25, 25, ramps.shape)).clip(0, 255).astype(np.uint8)


def by_pydicom(path: Path, plugin: str = "") -> list[np.ndarray]:
    """Decode as pydicom does it; colour as grey by our own rule, MONOCHROME1 turned over."""
    from pydicom.pixels import apply_color_lut, pixel_array

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(path)
        frames = pixel_array(path, decoding_plugin=plugin)
        if data.PhotometricInterpretation == "PALETTE COLOR":
            frames = apply_color_lut(frames, data)
            wide = frames.dtype == np.uint16 and frames.max() > 255
            frames = (frames >> 8 if wide else frames).astype(np.uint8)
    if data.NumberOfFrames == 1:
        frames = frames[None]
    if data.PhotometricInterpretation == "MONOCHROME1":
        frames = 255 - frames
    return [np.asarray(Image.fromarray(frame).convert("L")) for frame in frames]


def ours(path: Path) -> list[np.ndarray]:
    items = list(open_dicom(path).read())
    assert [str(item) for item in items if isinstance(item, InputError)] == []
    return items


def code_of(path: Path) -> str:
    """Return the code of what refuses a file, at the opening or in place of its first frame."""
    try:
        first = next(iter(open_dicom(path).read()))
    except EdgesegError as error:
        first = error
    assert isinstance(first, EdgesegError)
    assert "\n" not in str(first)
    return first.code


def assert_equal(path: Path, plugin: str = "") -> None:
    for mine, theirs in zip(ours(path), by_pydicom(path, plugin), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# --- without compression, RLE --------------------------------------------------------------------


def pixels_as(photometric: str, picture: np.ndarray) -> bytes:
    """Return a picture's bytes; of YBR_FULL_422 Y Y Cb Cr for each two neighbours."""
    if photometric.startswith(("MONO", "PAL")):
        return picture[:, :, 0].tobytes()
    if photometric != "YBR_FULL_422":
        return picture.tobytes()
    pairs = picture.reshape(SHAPE[0], -1, 6)
    return np.ascontiguousarray(pairs[:, :, [0, 3, 1, 2]]).tobytes()


NATIVE = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422")


@pytest.mark.parametrize("photometric", NATIVE)
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
def test_uncompressed_frames_are_those_of_pydicom(photometric, syntax, tmp_path):
    pictures = [pixels_as(photometric, coloured(seed)) for seed in range(3)]
    path = tmp_path / "x.dcm"
    write_pixels(path, b"".join(pictures), SHAPE, photometric, syntax, frames=3)
    assert_equal(path)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_by_plane_is_that_of_pydicom(photometric, tmp_path):
    planes = np.ascontiguousarray(coloured().transpose(2, 0, 1)).tobytes()
    assert_equal(
        write_pixels(tmp_path / "x.dcm", planes, SHAPE, photometric, PlanarConfiguration=1)
    )


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL"])
def test_run_lengths_are_those_of_pydicom(photometric, tmp_path):
    coded = run_lengths(coloured() if photometric in ("RGB", "YBR_FULL") else coloured()[:, :, 0])
    assert_equal(write_pixels(tmp_path / "x.dcm", [coded, coded], SHAPE, photometric, RLE))


def run_lengths(samples: np.ndarray) -> bytes:
    from pydicom.pixels.encoders import RLELosslessEncoder

    return RLELosslessEncoder.encode(
        samples.tobytes(),
        rows=SHAPE[0],
        columns=SHAPE[1],
        samples_per_pixel=1 if samples.ndim == 2 else 3,
        photometric_interpretation="MONOCHROME2" if samples.ndim == 2 else "RGB",
        bits_allocated=8,
        bits_stored=8,
        pixel_representation=0,
        number_of_frames=1,
        planar_configuration=0,
    )


def test_every_colour_is_converted_as_pydicom_does_it():
    from pydicom.pixels.processing import convert_color_space

    chroma = np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=2).astype(np.uint8)
    for luma in range(0, 256, 17):
        samples = np.insert(chroma, 0, luma, axis=2)
        theirs = convert_color_space(samples, "YBR_FULL", "RGB")
        np.testing.assert_array_equal(dicom_pixels._rgb_from_ybr(samples), theirs)


def test_colour_without_chroma_is_its_luma():
    samples = np.insert(np.full((1, 256, 2), 128, np.uint8), 0, np.arange(256), axis=2)
    grey = dicom_pixels._luma(dicom_pixels._rgb_from_ybr(samples))
    assert grey[0].tolist() == list(range(256))


@pytest.mark.parametrize(
    ("photometric", "samples"),
    [("YBR_FULL_422", 3), ("RGB", 2), ("YBR_FULL", 2), ("MONOCHROME2", 3), ("MONOCHROME2", 2)],
)
def test_length_that_fits_another_photometric_is_refused(photometric, samples, tmp_path):
    content = bytes(2 * samples * SHAPE[0] * SHAPE[1])
    path = write_pixels(tmp_path / "x.dcm", content, SHAPE, photometric, frames=2)
    assert code_of(path) == "E-DICOM-PIXELS"


def test_length_with_room_for_more_frames_is_refused(tmp_path):
    content = bytes(5 * SHAPE[0] * SHAPE[1])
    assert code_of(write_pixels(tmp_path / "x.dcm", content, SHAPE, frames=4)) == "E-DICOM-PIXELS"


def test_padding_after_the_last_frame_is_no_contradiction(tmp_path):
    content = coloured()[:, :, 0].tobytes() + bytes(6)
    assert_equal(write_pixels(tmp_path / "x.dcm", content, SHAPE))


def test_shared_colour_by_plane_is_refused(tmp_path):
    path = tmp_path / "x.dcm"
    write_pixels(path, bytes(2 * 24 * 34), SHAPE, "YBR_FULL_422", PlanarConfiguration=1)
    assert code_of(path) == "E-DICOM-PIXELS"


@pytest.mark.parametrize("photometric", ["YBR_ICT", "YBR_RCT"])
def test_transform_of_jpeg_2000_elsewhere_is_refused(photometric, tmp_path):
    path = write_pixels(tmp_path / "x.dcm", coloured().tobytes(), SHAPE, photometric)
    assert code_of(path) == "E-DICOM-PIXELS"


# --- palettes ------------------------------------------------------------------------------------


def with_palette(
    path: Path,
    entries: np.ndarray,
    *,
    bits: int,
    first: int = 0,
    syntax: str = EXPLICIT,
    **elements: object,
) -> Path:
    """Write an image through a palette, [3, count] of the type that its entries have."""
    for colour, table in zip(("Red", "Green", "Blue"), entries, strict=True):
        name = f"{colour}PaletteColorLookupTable"
        elements.setdefault(f"{name}Descriptor", [entries.shape[1] % 65536, first, bits])
        elements.setdefault(f"{name}Data", table.tobytes() + bytes(len(table.tobytes()) % 2))
    indices = pixels_as("PALETTE COLOR", coloured())
    return write_pixels(path, indices, SHAPE, "PALETTE COLOR", syntax, **elements)


def palette(count: int = 256) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, count))


@pytest.mark.parametrize(
    ("entries", "bits"),
    [
        (palette().astype(np.uint8), 8),
        (palette().astype(np.uint8), 16),  # the width is that of the entries
        (palette().astype("<u2"), 8),  # 8-bit values in 16 bits
        (palette().astype("<u2"), 16),  # the same, and the descriptor is wrong
        ((palette() * 257).astype("<u2"), 16),
        ((palette() * 256).astype("<u2"), 16),
        ((palette() * 256).astype("<u2"), 8),
    ],
)
@pytest.mark.parametrize("first", [0, 30])
def test_palette_is_that_of_pydicom(entries, bits, first, tmp_path):
    assert_equal(with_palette(tmp_path / "x.dcm", entries, bits=bits, first=first))


@pytest.mark.parametrize("first", [0, 50, 65500])
def test_value_outside_a_short_palette_takes_its_nearest_entry(first, tmp_path):
    entries = palette(100).astype(np.uint8)
    assert_equal(with_palette(tmp_path / "x.dcm", entries, bits=8, first=first))


def test_palette_of_8_bit_values_in_16_bits_is_the_picture_of_8_bits(tmp_path):
    plain = with_palette(tmp_path / "plain.dcm", palette().astype(np.uint8), bits=8)
    wide = with_palette(tmp_path / "wide.dcm", palette().astype("<u2"), bits=16)
    np.testing.assert_array_equal(ours(plain), ours(wide))


@pytest.mark.parametrize(
    "elements",
    [
        {"BluePaletteColorLookupTableDescriptor": [256, 1, 8]},
        {"BluePaletteColorLookupTableData": bytes(512)},
        {"SegmentedRedPaletteColorLookupTableData": bytes(8)},
        {f"{colour}PaletteColorLookupTableData": bytes(300) for colour in ("Red", "Green", "Blue")},
    ],
)
def test_palette_that_contradicts_itself_is_refused(elements, tmp_path):
    entries = palette().astype(np.uint8)
    assert code_of(with_palette(tmp_path / "x.dcm", entries, bits=8, **elements)) == (
        "E-DICOM-PIXELS"
    )


def test_palette_in_big_endian_words_is_refused(tmp_path):
    entries = palette().astype(">u2")
    path = with_palette(tmp_path / "x.dcm", entries, bits=16, syntax=BIG_ENDIAN)
    assert code_of(path) == "E-DICOM-PIXELS"


# --- JPEG ----------------------------------------------------------------------------------------


def jpeg(
    samples: np.ndarray, *, subsampling: int = 0, markers: tuple[bytes, ...] = (), ids: bytes = b""
) -> bytes:
    """Return samples as they are in a JPEG stream with the given markers and component names."""
    file = io.BytesIO()
    mode = "L" if samples.ndim == 2 else "YCbCr"
    image = Image.frombytes(mode, SHAPE[::-1], samples.tobytes())
    image.save(file, "JPEG", quality=90, subsampling=subsampling)
    stream, at, kept = file.getvalue(), 2, b""
    while stream[at : at + 2] != b"\xff\xda":
        end = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        segment = bytearray(stream[at:end])
        if ids and segment[1] == 0xC0:
            segment[10::3] = ids
        if not 0xE0 <= segment[1] <= 0xEF:
            kept += segment
        at = end
    scan = bytearray(stream[at:])
    if ids:
        scan[5:11:2] = ids
    return b"\xff\xd8" + b"".join(markers) + kept + bytes(scan)


@pytest.mark.parametrize("syntax", [BASELINE, EXTENDED])
@pytest.mark.parametrize(
    ("photometric", "markers", "ids"),
    [
        ("YBR_FULL_422", (), b""),
        ("YBR_FULL", (), b""),
        ("RGB", (), b""),
        ("YBR_FULL_422", (JFIF,), b""),
        ("YBR_FULL", (JFIF,), b""),
        ("RGB", (JFIF,), b""),  # YCbCr whatever the header says
        ("YBR_FULL", (JFIF, YCC_BY_ADOBE), b""),
        ("YBR_FULL_422", (YCC_BY_ADOBE,), b""),
        ("RGB", (RGB_BY_ADOBE,), b""),
        ("RGB", (RGB_BY_ADOBE,), b"RGB"),
        ("YBR_FULL", (), b"RGB"),
        ("YBR_FULL_422", (), b"rgb"),
        ("RGB", (), b"RGB"),
    ],
)
def test_jpeg_in_colour_is_that_of_pydicom(syntax, photometric, markers, ids, tmp_path):
    pytest.importorskip(
        "gdcm",
        reason="no gdcm, and pydicom's other decoder converts some twice; make install brings it",
    )
    # Frames of colour for each pixel, and shared by two and by four.
    frames = [
        jpeg(coloured(shared), subsampling=0 if ids else shared, markers=markers, ids=ids)
        for shared in (0, 1, 2)
    ]
    path = write_pixels(tmp_path / "x.dcm", frames, SHAPE, photometric, syntax)
    assert_equal(path, "gdcm")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_grey_jpeg_is_that_of_pydicom(photometric, tmp_path):
    grey = jpeg(np.ascontiguousarray(coloured()[:, :, 0]), markers=(JFIF,))
    assert_equal(write_pixels(tmp_path / "x.dcm", [grey], SHAPE, photometric, BASELINE))


@pytest.mark.parametrize("marker", [JFIF, YCC_BY_ADOBE])
def test_marker_of_ycbcr_goes_before_the_label_rgb(marker, tmp_path):
    pytest.importorskip(
        "gdcm",
        reason="no gdcm, and pydicom's other decoder converts one twice; make install brings it",
    )
    told, labelled = (
        write_pixels(
            tmp_path / f"{photometric}.dcm",
            [jpeg(coloured(), markers=(marker,))],
            SHAPE,
            photometric,
            BASELINE,
        )
        for photometric in ("YBR_FULL_422", "RGB")
    )
    # With Adobe's marker and this label pydicom's two decoders differ from each other.
    np.testing.assert_array_equal(ours(told), ours(labelled))
    np.testing.assert_array_equal(ours(labelled), by_pydicom(told, "gdcm"))


@pytest.mark.parametrize(
    ("photometric", "markers", "ids"),
    [
        ("RGB", (JFIF, RGB_BY_ADOBE), b""),
        ("RGB", (JFIF,), b"RGB"),
        ("YBR_FULL", (YCC_BY_ADOBE,), b"RGB"),
        ("YBR_FULL_422", (RGB_BY_ADOBE,), b""),
        ("MONOCHROME2", (JFIF,), b""),  # three components
    ],
)
def test_jpeg_that_contradicts_itself_or_its_header_is_refused(photometric, markers, ids, tmp_path):
    stream = jpeg(coloured(), markers=markers, ids=ids)
    path = write_pixels(tmp_path / "x.dcm", [stream], SHAPE, photometric, BASELINE)
    assert code_of(path) == "E-DICOM-FRAME"


# --- JPEG 2000 -----------------------------------------------------------------------------------


def jpeg_2000(samples: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    options.setdefault("no_jp2", True)
    Image.fromarray(samples).save(file, "JPEG2000", **options)
    return file.getvalue()


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize(
    ("photometric", "transformed", "lossy"),
    [
        ("RGB", 0, False),
        ("RGB", 1, False),
        ("YBR_RCT", 1, False),
        ("YBR_ICT", 1, True),
        ("RGB", 1, True),
        ("YBR_FULL", 0, False),
        ("YBR_FULL", 0, True),
        ("MONOCHROME2", 0, False),
        ("MONOCHROME1", 0, True),
    ],
)
def test_jpeg_2000_is_that_of_pydicom(photometric, transformed, lossy, boxed, table, tmp_path):
    options = {"mct": transformed, "irreversible": lossy, "no_jp2": not boxed}
    if lossy:
        options.update(quality_mode="rates", quality_layers=[8])
    pictures = [coloured(seed) for seed in range(3)]
    if photometric.startswith("MONO"):
        pictures = [np.ascontiguousarray(picture[:, :, 0]) for picture in pictures]
    frames = [jpeg_2000(picture, **options) for picture in pictures]
    syntax = JPEG_2000 if lossy else JPEG_2000_LOSSLESS
    path = write_pixels(tmp_path / "x.dcm", frames, SHAPE, photometric, syntax, table=table)
    assert_equal(path, "pillow")


@pytest.mark.parametrize(
    ("photometric", "transformed"),
    [("YBR_FULL", 1), ("YBR_FULL_422", 1), ("YBR_RCT", 0), ("YBR_ICT", 0), ("MONOCHROME2", 1)],
)
def test_component_transform_that_contradicts_the_header_is_refused(
    photometric, transformed, tmp_path
):
    stream = jpeg_2000(coloured(), mct=transformed)
    path = write_pixels(tmp_path / "x.dcm", [stream], SHAPE, photometric, JPEG_2000_LOSSLESS)
    assert code_of(path) == "E-DICOM-FRAME"


@pytest.mark.parametrize(
    "change",
    [
        (b"\7\1\1\7\1\1\7\1\1", b"\x05\1\1\x05\1\1\x05\1\1"),  # six bits
        (b"\7\1\1\7\1\1\7\1\1", b"\x87\1\1\x87\1\1\x87\1\1"),  # signed
        (b"\7\1\1\7\1\1\7\1\1", b"\7\1\1\7\2\1\7\2\1"),  # chroma of half the width
        (b"\xff\x52", b"\xff\x64"),  # no COD
    ],
)
def test_jpeg_2000_that_decoders_read_differently_is_refused(change, tmp_path):
    stream = jpeg_2000(coloured(), mct=0)
    assert change[0] in stream
    changed = stream.replace(*change, 1)
    path = write_pixels(tmp_path / "x.dcm", [changed], SHAPE, "RGB", JPEG_2000_LOSSLESS)
    assert code_of(path) == "E-DICOM-FRAME"


@pytest.mark.parametrize("damage", [slice(12, 16), slice(40, None)])
def test_boxes_without_a_codestream_are_refused(damage, tmp_path):
    stream = bytearray(jpeg_2000(coloured(), no_jp2=False))
    stream[damage] = bytes(len(stream[damage]))
    path = write_pixels(tmp_path / "x.dcm", [bytes(stream)], SHAPE, "RGB", JPEG_2000_LOSSLESS)
    assert code_of(path) == "E-DICOM-FRAME"


# --- lossless JPEG and JPEG-LS -------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL"])
@pytest.mark.parametrize("syntax", [LOSSLESS, LOSSLESS_FIRST, JPEG_LS, JPEG_LS_NEAR])
def test_what_gdcm_writes_without_loss_is_that_of_pydicom(photometric, syntax, tmp_path):
    gdcm = pytest.importorskip("gdcm", reason="no python-gdcm; make install brings it")
    plain = write_pixels(
        tmp_path / "plain.dcm", pixels_as(photometric, coloured()), SHAPE, photometric
    )
    reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    if not change.Change():
        pytest.skip("gdcm does not write this; run with a version that does")
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "x.dcm"))
    assert writer.Write()
    assert_equal(tmp_path / "x.dcm")
    if syntax != JPEG_LS_NEAR:
        np.testing.assert_array_equal(ours(tmp_path / "x.dcm"), ours(plain))


# --- where frames begin --------------------------------------------------------------------------


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
def test_frames_of_several_fragments_are_those_of_pydicom(table, pieces, tmp_path):
    from pydicom.encaps import encapsulate

    frames = [
        jpeg(np.ascontiguousarray(coloured(seed)[:, :, 0]), markers=(JFIF,)) for seed in range(4)
    ]
    content = encapsulate(frames, fragments_per_frame=pieces, has_bot=table)
    path = write_pixels(tmp_path / "x.dcm", frames, SHAPE, syntax=BASELINE, PixelData=content)
    assert_equal(path)


def test_table_of_offsets_goes_before_what_a_fragment_looks_like(tmp_path):
    frames = [jpeg_2000(np.ascontiguousarray(coloured(seed)[:, :, 0])) for seed in range(2)]
    # What comes second begins as a codestream does, and would be a frame of its own.
    middle = b"\xff\x64\0\7\0\1x\xff\x4f"  # a comment in the codestream's header
    at = frames[0].index(b"\xff\x52")
    parts = [frames[0][:at] + middle[:7], middle[7:] + frames[0][at:], frames[1]]
    assert len(parts[0]) % 2 == 0
    parts = [part + bytes(len(part) % 2) for part in parts]
    table = struct.pack("<2I", 0, 16 + len(parts[0]) + len(parts[1]))
    items = [table, *parts]
    content = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(x)) + x for x in items)
    path = write_pixels(
        tmp_path / "x.dcm", frames, SHAPE, syntax=JPEG_2000_LOSSLESS, PixelData=content
    )
    assert_equal(path)


@pytest.mark.parametrize("told", [1, 2, 4])
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("syntax", [BASELINE, RLE, JPEG_2000_LOSSLESS])
def test_frames_beyond_those_that_the_header_tells_are_an_error(told, table, syntax, tmp_path):
    grey = [np.ascontiguousarray(coloured(seed)[:, :, 0]) for seed in range(3)]
    coder = {BASELINE: jpeg, RLE: run_lengths, JPEG_2000_LOSSLESS: jpeg_2000}[syntax]
    path = tmp_path / "x.dcm"
    frames = list(map(coder, grey))
    write_pixels(path, frames, SHAPE, syntax=syntax, table=table, NumberOfFrames=told)
    *whole, last = open_dicom(path).read()
    assert len(whole) == min(told, 3)
    assert last.code == "E-DICOM-FRAME"
    assert f"frame {len(whole)} of {told}" in str(last)


@pytest.mark.parametrize("syntax", [BASELINE, RLE, JPEG_2000_LOSSLESS])
def test_one_frame_may_be_in_any_number_of_fragments(syntax, tmp_path):
    from pydicom.encaps import encapsulate

    grey = np.ascontiguousarray(coloured()[:, :, 0])
    coder = {BASELINE: jpeg, RLE: run_lengths, JPEG_2000_LOSSLESS: jpeg_2000}[syntax]
    frames = [coder(grey)]
    content = encapsulate(frames, fragments_per_frame=7)
    path = write_pixels(tmp_path / "x.dcm", frames, SHAPE, syntax=syntax, PixelData=content)
    assert_equal(path)


@pytest.mark.parametrize("offset", [3, 8, 10**6])
def test_table_of_offsets_that_is_not_true_is_not_followed(offset, tmp_path):
    frames = [jpeg(np.ascontiguousarray(coloured(seed)[:, :, 0])) for seed in range(2)]
    path = write_pixels(tmp_path / "x.dcm", frames, SHAPE, syntax=BASELINE)
    content = path.read_bytes()
    at = content.index(b"\xfe\xff\x00\xe0\x08\0\0\0") + 12
    path.write_bytes(content[:at] + struct.pack("<I", offset) + content[at + 4 :])
    assert len(ours(path)) == 2


# --- files that lack a part ----------------------------------------------------------------------


def body_of(path: Path) -> tuple[bytes, bytes]:
    """Return the file meta information and what comes after it."""
    content = path.read_bytes()
    (length,) = struct.unpack("<I", content[140:144])
    return content[132 : 144 + length], content[144 + length :]


@pytest.mark.parametrize(
    ("head", "syntax"),
    [
        (lambda meta: b"DICM" + meta, EXPLICIT),
        (lambda meta: meta, EXPLICIT),
        (lambda meta: meta, JPEG_2000_LOSSLESS),
        *itertools.product([lambda meta: b""], [IMPLICIT, EXPLICIT, BIG_ENDIAN]),
    ],
    ids=["magic-word", "meta", "meta-jpeg2000", "implicit", "explicit", "big-endian"],
)
def test_file_without_preamble_or_meta_is_the_same_pictures(head, syntax, tmp_path):
    grey = np.ascontiguousarray(coloured()[:, :, 0])
    pixels = [jpeg_2000(grey)] if syntax == JPEG_2000_LOSSLESS else grey.tobytes()
    path = write_pixels(tmp_path / "x.dcm", pixels, SHAPE, syntax=syntax)
    meta, body = body_of(path)
    path.write_bytes(head(meta) + body)
    (frame,) = ours(path)
    np.testing.assert_array_equal(frame, grey)


def test_compressed_pixels_without_a_transfer_syntax_are_refused(tmp_path):
    stream = jpeg_2000(np.ascontiguousarray(coloured()[:, :, 0]))
    path = write_pixels(tmp_path / "x.dcm", [stream], SHAPE, syntax=JPEG_2000_LOSSLESS)
    path.write_bytes(body_of(path)[1])
    assert code_of(path) == "E-DICOM-SYNTAX"


@pytest.mark.parametrize("content", [b"", b"DICM", b"\2\0", b"%PDF-1.7 " * 40, bytes(400)])
def test_what_is_no_dicom_is_refused_without_a_word_of_pydicoms(content, tmp_path):
    (tmp_path / "x.dcm").write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_dicom(tmp_path / "x.dcm")
    assert caught.value.code == "E-DICOM-READ"
    assert "force" not in str(caught.value)


# --- regions that lack a part --------------------------------------------------------------------

LACKING = (
    *("RegionSpatialFormat", "RegionDataType", "RegionLocationMinX0", "RegionLocationMinY0"),
    *("RegionLocationMaxX1", "RegionLocationMaxY1"),
)


def with_region(path: Path, item: object) -> Path:
    content = coloured()[:, :, 0].tobytes()
    return write_pixels(path, content, SHAPE, SequenceOfUltrasoundRegions=[item])


@pytest.mark.parametrize("keyword", LACKING)
def test_region_that_lacks_something_is_refused_and_ignored_with_whole_frame(keyword, tmp_path):
    item = region((2, 2, 20, 20))
    delattr(item, keyword)
    path = with_region(tmp_path / "x.dcm", item)
    with pytest.raises(InputError, match="--whole-frame") as caught:
        open_dicom(path)
    assert caught.value.code == "E-DICOM-REGION"
    whole = open_dicom(path, whole_frame=True)
    assert (whole.crop, whole.spacing, len(list(whole.read()))) == (None, None, 1)


def test_region_that_is_no_tissue_may_lack_its_corners(tmp_path):
    item = region((2, 2, 20, 20), data_type=3)
    del item.RegionLocationMaxX1
    assert open_dicom(with_region(tmp_path / "x.dcm", item)).crop is None


def test_item_of_deltas_alone_as_gdcm_writes_it_is_no_region(tmp_path):
    item = region((2, 2, 20, 20))
    for keyword in LACKING:
        delattr(item, keyword)
    source = open_dicom(with_region(tmp_path / "x.dcm", item))
    assert (source.crop, source.spacing) == (None, None)


def test_region_without_deltas_crops_and_has_no_spacing(tmp_path):
    item = region((2, 2, 20, 20))
    del item.PhysicalDeltaX
    source = open_dicom(with_region(tmp_path / "x.dcm", item))
    assert (source.crop, source.spacing) == ((2, 2, 21, 21), None)


def test_region_without_area_is_not_said_to_be_resized(tmp_path):
    path = with_region(tmp_path / "x.dcm", region((0, 0, 0, 0)))
    with pytest.raises(InputError, match="without area") as caught:
        open_dicom(path)
    assert caught.value.code == "E-DICOM-REGION"
    assert open_dicom(path, whole_frame=True).crop is None
