"""DICOM as a source of frames: pixels, regions, clock, and everything a header can get wrong."""

from __future__ import annotations

import random
import struct
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeseg.runtime.errors import EdgesegError, EngineError, InputError
from edgeseg.runtime.lesion import Spacing
from edgeseg.runtime.stream import dicom_pixels
from edgeseg.runtime.stream.dicom import open_dicom, tissue_region
from edgeseg.runtime.stream.sources import open_source
from edgeseg.tests.support.dicom_files import (
    CINE,
    FUZZED,
    UNCOMPRESSED,
    mutated,
    read_all,
    region,
    shipped,
    write_changed,
)

pytest.importorskip("pydicom", reason="no pydicom; make install brings it")

BY_LIBRARY = "SC_rgb_jpeg_gdcm.dcm"  # JPEG Lossless


def by_pydicom(path: Path) -> list[np.ndarray]:
    """Decode every frame as pydicom does it; grey as our images are."""
    import pydicom
    from pydicom.pixels import apply_color_lut, pixel_array

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(path)
        frames = pixel_array(data)
        if data.PhotometricInterpretation == "PALETTE COLOR":
            frames = (apply_color_lut(frames, data) >> 8).astype(np.uint8)
    if int(data.get("NumberOfFrames") or 1) == 1:
        frames = frames[None]
    return [np.asarray(Image.fromarray(frame).convert("L")) for frame in frames]


@pytest.mark.parametrize(
    "name",
    [
        CINE,  # JPEG, 30 frames
        UNCOMPRESSED,
        "examples_palette.dcm",
        "examples_jpeg2k.dcm",
        "ExplVR_BigEnd.dcm",
        "SC_rgb_small_odd_big_endian.dcm",  # 27 bytes in words of two
        "SC_rgb_rle_2frame.dcm",
        "SC_jpeg_no_color_transform.dcm",  # RGB in a JPEG without Adobe's marker
        "SC_rgb_dcmtk_+eb+cy+s4.dcm",
        "SC_rgb_jpeg_dcmd.dcm",  # implicit VR
        "SC_ybr_full_422_uncompressed.dcm",
        "chrArab.dcm",  # MONOCHROME2
    ],
)
def test_frames_are_those_that_pydicom_decodes(name):
    path = shipped(name)
    ours = list(open_dicom(path, whole_frame=True).read())
    theirs = by_pydicom(path)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == np.uint8
        np.testing.assert_array_equal(mine, other)


def test_monochrome1_is_inverted(tmp_path):
    plain = shipped("chrArab.dcm")
    turned = write_changed(plain.name, tmp_path / "x.dcm", PhotometricInterpretation="MONOCHROME1")
    (dark,), (light,) = open_dicom(plain).read(), open_dicom(turned).read()
    np.testing.assert_array_equal(dark, 255 - light)


def test_colour_by_plane_is_the_same_picture(tmp_path):
    import pydicom

    data = pydicom.dcmread(shipped(UNCOMPRESSED))
    data.PixelData = np.ascontiguousarray(data.pixel_array.transpose(2, 0, 1)).tobytes()
    data.PlanarConfiguration = 1
    data.save_as(tmp_path / "planes.dcm")
    (planes,), (pixels,) = (
        open_dicom(path).read() for path in (tmp_path / "planes.dcm", shipped(UNCOMPRESSED))
    )
    np.testing.assert_array_equal(planes, pixels)


def test_lossless_jpeg_is_read_where_a_decoder_is_installed():
    pytest.importorskip("gdcm", reason="no python-gdcm; make install brings it")
    path = shipped(BY_LIBRARY)
    (frame,) = open_dicom(path).read()
    np.testing.assert_array_equal(frame, by_pydicom(path)[0])


# --- region, spacing, clock ----------------------------------------------------------------------


def with_regions(tmp_path: Path, *regions) -> Path:
    return write_changed(CINE, tmp_path / "cine.dcm", SequenceOfUltrasoundRegions=list(regions))


def test_tissue_region_gives_crop_and_spacing_in_mm(tmp_path):
    source = open_dicom(with_regions(tmp_path, region((42, 16, 297, 206), delta=0.05)))
    assert source.crop == (42, 16, 298, 207)
    assert source.spacing == Spacing(row_mm=1.0, column_mm=0.5)


def test_largest_tissue_region_is_taken_and_doppler_is_not(tmp_path):
    small, large = region((0, 0, 99, 99)), region((100, 0, 299, 99))
    spectrum = region((0, 100, 319, 239), data_type=3)
    source = open_dicom(with_regions(tmp_path, spectrum, small, large))
    assert source.crop == (100, 0, 300, 100)


def test_file_without_a_tissue_region_is_used_whole_without_spacing(tmp_path):
    source = open_dicom(with_regions(tmp_path, region((0, 0, 99, 99), data_type=3)))
    assert (source.crop, source.spacing) == (None, None)
    assert tissue_region(()) is None


@pytest.mark.parametrize(("units", "delta"), [(4, 0.05), (3, 0.0), (3, 1e9), (3, float("nan"))])
def test_spacing_that_is_not_in_cm_is_unknown(tmp_path, units, delta):
    source = open_dicom(with_regions(tmp_path, region((0, 0, 99, 99), units=units, delta=delta)))
    assert source.crop == (0, 0, 100, 100)
    assert source.spacing is None


def test_far_corner_may_be_the_frame_size(tmp_path):
    assert open_dicom(with_regions(tmp_path, region((0, 0, 320, 240)))).crop == (0, 0, 320, 240)


@pytest.mark.parametrize("name", [CINE, "examples_palette.dcm"])
def test_region_of_a_frame_that_was_resized_later_is_refused(name):
    with pytest.raises(InputError, match="--whole-frame") as caught:
        open_dicom(shipped(name))
    assert caught.value.code == "E-DICOM-REGION"
    whole = open_source(shipped(name), whole_frame=True)
    assert (whole.crop, whole.spacing) == (None, None)


@pytest.mark.parametrize("box", [(10, 10, 10, 20), (20, 10, 10, 20), (0, 0, 4294967295, 9)])
def test_region_without_pixels_is_refused(tmp_path, box):
    with pytest.raises(InputError) as caught:
        open_dicom(with_regions(tmp_path, region(box)))
    assert caught.value.code == "E-DICOM-REGION"


@pytest.mark.parametrize(
    ("elements", "hz"),
    [
        ({}, 1000 / 33.333),
        ({"FrameTime": 40}, 25),
        ({"FrameTime": None, "CineRate": 20}, 20),
        ({"FrameTime": None, "RecommendedDisplayFrameRate": 12}, 12),
        ({"FrameTime": None, "FrameTimeVector": [0, 10, 30]}, 50),
        ({"FrameTime": 0, "CineRate": 20}, 20),
        ({"FrameTime": None}, None),
        ({"FrameTime": 1e-9}, None),  # a rate that no clock can keep
    ],
)
def test_clock_is_that_of_the_header(tmp_path, elements, hz):
    path = write_changed(CINE, tmp_path / "cine.dcm", **elements)
    found = open_dicom(path, whole_frame=True).hz
    assert found == (None if hz is None else pytest.approx(hz))


# --- what cannot be read -------------------------------------------------------------------------


def code_of(path: Path) -> str:
    with pytest.raises(EdgesegError) as caught:
        open_dicom(path, whole_frame=True)
    assert "\n" not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("CT_small.dcm", "E-DICOM-PIXELS"),  # 16 bits
        ("liver_1frame.dcm", "E-DICOM-PIXELS"),  # 1 bit
        ("image_dfl.dcm", "E-DICOM-SYNTAX"),  # deflated
        ("rtplan.dcm", "E-DICOM-READ"),  # no image
        ("badVR.dcm", "E-DICOM-READ"),
        ("ExplVR_LitEndNoMeta.dcm", "E-DICOM-READ"),  # no magic word
    ],
)
def test_files_that_are_no_8_bit_image_are_refused(name, code):
    assert code_of(shipped(name)) == code


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"Rows": 0}, "E-DICOM-SIZE"),
        ({"Rows": 65535, "Columns": 65535}, "E-DICOM-SIZE"),
        ({"NumberOfFrames": -1}, "E-DICOM-SIZE"),
        ({"Rows": None}, "E-DICOM-READ"),
        ({"PhotometricInterpretation": None}, "E-DICOM-READ"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "E-DICOM-PIXELS"),
        ({"SamplesPerPixel": 1}, "E-DICOM-PIXELS"),
        ({"BitsAllocated": 16}, "E-DICOM-PIXELS"),
        ({"PixelRepresentation": 1}, "E-DICOM-PIXELS"),
        ({"PhotometricInterpretation": "PALETTE COLOR", "SamplesPerPixel": 1}, "E-DICOM-READ"),
    ],
)
def test_headers_that_make_no_sense_are_refused(tmp_path, elements, code):
    assert code_of(write_changed(UNCOMPRESSED, tmp_path / "x.dcm", **elements)) == code


@pytest.mark.parametrize("content", [b"", b"DICM", bytes(128) + b"DICM", bytes(1000)])
def test_files_that_hold_nothing_are_refused(tmp_path, content):
    (tmp_path / "x.dcm").write_bytes(content)
    assert code_of(tmp_path / "x.dcm") == "E-DICOM-READ"


def test_what_a_header_says_cannot_break_the_line(tmp_path):
    path = tmp_path / "x.dcm"
    content = shipped(CINE).read_bytes()
    path.write_bytes(content.replace(b"YBR_FULL_422", b"RGB\nedgeseg:"))
    assert code_of(path) == "E-DICOM-PIXELS"
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1\nedges"))
    assert code_of(path) == "E-DICOM-SYNTAX"


def test_transfer_syntax_that_is_not_read_is_refused(tmp_path):
    path = tmp_path / "x.dcm"
    content = shipped(CINE).read_bytes()
    path.write_bytes(content.replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.66"))
    assert code_of(path) == "E-DICOM-SYNTAX"


def test_missing_pydicom_is_named(monkeypatch):
    path = shipped(CINE)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(EngineError, match=r"edgeseg\[dicom\]") as caught:
        open_dicom(path)
    assert caught.value.code == "E-EXTRA-MISSING"


def test_missing_decoder_is_named(monkeypatch):
    monkeypatch.setattr(dicom_pixels, "_library_decodes", lambda syntax: False)
    with pytest.raises(EngineError, match="pip install python-gdcm") as caught:
        open_dicom(shipped(BY_LIBRARY))
    assert caught.value.code == "E-EXTRA-MISSING"


# --- damaged frames ------------------------------------------------------------------------------


def outcomes(path: Path) -> list[str]:
    """Return for each item of a file "frame", or the error's text."""
    items = open_dicom(path, whole_frame=True).read()
    return ["frame" if isinstance(item, np.ndarray) else str(item) for item in items]


def jpeg_starts(content: bytes) -> list[int]:
    """Return where the frames of the cine loop start: after each item's eight bytes."""
    starts, at = [], content.index(b"\xfe\xff\x00\xe0", content.index(b"\xe0\x7f\x10\x00OB"))
    while content[at : at + 4] == b"\xfe\xff\x00\xe0":
        (length,) = struct.unpack("<I", content[at + 4 : at + 8])
        starts.append(at + 8)
        at += 8 + length
    return starts[1:]  # the first is the table of offsets


def test_damaged_frame_is_named_and_those_after_it_are_read(tmp_path):
    content = bytearray(shipped(CINE).read_bytes())
    start = jpeg_starts(bytes(content))[7]
    content[start + 2 : start + 400] = bytes(398)
    (tmp_path / "x.dcm").write_bytes(content)
    found = outcomes(tmp_path / "x.dcm")
    assert len(found) == 30
    assert [k for k, outcome in enumerate(found) if outcome != "frame"] == [7]
    assert found[7].startswith("E-DICOM-FRAME: frame 7 of 30 in ")


@pytest.mark.parametrize("side", [512, 60000])
def test_frame_of_another_size_is_refused_before_it_is_decoded(tmp_path, side):
    content = bytearray(shipped(CINE).read_bytes())
    start = jpeg_starts(bytes(content))[3]
    size_at = content.index(b"\xff\xc0", start) + 5
    content[size_at : size_at + 4] = struct.pack(">2H", side, side)
    (tmp_path / "x.dcm").write_bytes(content)
    found = outcomes(tmp_path / "x.dcm")
    assert [k for k, outcome in enumerate(found) if outcome != "frame"] == [3]
    assert f"it is {side}x{side}" in found[3] or "decompression bomb" in found[3]


def test_deflated_file_is_refused_before_it_is_inflated(tmp_path):
    content = shipped("image_dfl.dcm").read_bytes()
    (length,) = struct.unpack("<I", content[140:144])  # of the group before what is deflated
    bomb = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = bomb.compress(bytes(100 << 20)) + bomb.flush()
    (tmp_path / "x.dcm").write_bytes(content[: 144 + length] + body)
    tracemalloc.start()
    try:
        assert code_of(tmp_path / "x.dcm") == "E-DICOM-SYNTAX"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_cut_file_ends_with_an_error_that_names_the_frame(tmp_path, share):
    content = shipped(CINE).read_bytes()
    (tmp_path / "x.dcm").write_bytes(content[: int(share * len(content))])
    *before, last = outcomes(tmp_path / "x.dcm")
    assert set(before) == {"frame"}
    assert last.startswith(f"E-DICOM-FRAME: frame {len(before)} of 30 in ")


def test_loop_without_its_closing_delimiter_is_whole(tmp_path):
    content = shipped(CINE).read_bytes()
    end = content.rindex(b"\xfe\xff\xdd\xe0")
    for kept in (0, 5):
        (tmp_path / "x.dcm").write_bytes(content[: end + kept])
        assert outcomes(tmp_path / "x.dcm") == 30 * ["frame"]


def test_last_frame_that_is_cut_is_named_once(tmp_path):
    content = shipped(CINE).read_bytes()
    end = content.rindex(b"\xfe\xff\xdd\xe0")
    (tmp_path / "x.dcm").write_bytes(content[: end - 300])
    found = outcomes(tmp_path / "x.dcm")
    assert found[:29] == 29 * ["frame"]
    assert [text[:31] for text in found[29:]] == ["E-DICOM-FRAME: frame 29 of 30 in"[:31]]


def test_fragment_that_claims_200_mebibytes_costs_nothing(tmp_path):
    content = bytearray(shipped(CINE).read_bytes())
    start = jpeg_starts(bytes(content))[4]
    content[start - 4 : start] = struct.pack("<I", 200 << 20)
    (tmp_path / "x.dcm").write_bytes(content)
    tracemalloc.start()
    try:
        found = outcomes(tmp_path / "x.dcm")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 5
    assert "frame 4 of 30" in found[4]
    assert peak < 20 << 20


def test_claim_of_a_billion_frames_costs_nothing(tmp_path):
    path = write_changed(UNCOMPRESSED, tmp_path / "x.dcm", NumberOfFrames=10**9)
    tracemalloc.start()
    try:
        found = outcomes(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found[0] == "frame"
    assert "frame 1 of 1000000000" in found[1]
    assert len(found) == 2
    assert peak < 20 << 20


def test_element_that_claims_four_gibibytes_costs_nothing(tmp_path):
    content = shipped(UNCOMPRESSED).read_bytes()
    rows = content.index(b"\x28\0\x10\0US")
    private = struct.pack("<2H2s2xI", 0x0009, 0x1010, b"OB", 0xFFFFFFF0)
    (tmp_path / "x.dcm").write_bytes(content[:rows] + private + content[rows:])
    tracemalloc.start()
    try:
        assert code_of(tmp_path / "x.dcm") == "E-DICOM-READ"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 << 20


def test_frames_are_read_one_by_one(tmp_path):
    # Of a file cut after its second frame the first one comes out before anything is wrong.
    content = shipped(CINE).read_bytes()
    (tmp_path / "x.dcm").write_bytes(content[: jpeg_starts(content)[2]])
    items = open_dicom(tmp_path / "x.dcm", whole_frame=True).read()
    assert isinstance(next(items), np.ndarray)


# --- mutations -----------------------------------------------------------------------------------


def test_mutated_files_give_frames_or_one_line(tmp_path):
    chance = random.Random(20261125)
    path = tmp_path / "x.dcm"
    contents = [shipped(name).read_bytes()[:30_000] for name in FUZZED]
    seen = set()
    for _ in range(300):
        path.write_bytes(mutated(chance.choice(contents), chance))
        seen.add(read_all(path))
    assert {"frames", "E-DICOM-READ", "E-DICOM-FRAME"} <= seen
