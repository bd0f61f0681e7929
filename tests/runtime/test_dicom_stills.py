"""DICOM stills wherever images are taken, and frames of 16 bits by a window."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edgeseg.cli.jobs.parts import reader_of
from edgeseg.cli.main import cli
from edgeseg.kd.data.audit import audit_datasets
from edgeseg.kd.data.dataset import read_dataset
from edgeseg.runtime.contract import InputContract
from edgeseg.runtime.errors import EdgesegError, InputError
from edgeseg.runtime.folder import image_files
from edgeseg.runtime.image import read_frames, read_image
from edgeseg.runtime.lesion import Spacing
from edgeseg.runtime.stream.dicom import open_dicom, read_still
from edgeseg.runtime.stream.sources import open_source
from edgeseg.runtime.window import Window, window_from_text
from edgeseg.tests.support.dicom_files import CINE, region, shipped, write_pixels
from edgeseg.tests.support.working_bundle import write_working_bundle

pytest.importorskip("pydicom", reason="no pydicom; make install brings it")

SHAPE = (40, 60)
GREY = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
REGION = (10, 4, 49, 33)  # inclusive
CROP = (10, 4, 50, 34)


def still(path: Path, **elements: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_pixels(path, GREY.tobytes(), SHAPE, **elements)


def deep(path: Path, words: np.ndarray, *, stored: int = 16, **elements: object) -> Path:
    """Write words of 16 bits as they are stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bits = {"BitsAllocated": 16, "BitsStored": stored, "HighBit": stored - 1}
    given = {**bits, **elements}
    photometric = str(given.pop("photometric", "MONOCHROME2"))
    return write_pixels(path, words.astype("<u2").tobytes(), words.shape, photometric, **given)


def code_of(call, *arguments, **named) -> str:
    with pytest.raises(EdgesegError) as caught:
        call(*arguments, **named)
    assert "\n" not in str(caught.value)
    return caught.value.code


# --- the window ----------------------------------------------------------------------------------


def test_a_window_is_black_below_white_above_and_even_between():
    values = np.array([-100, 0, 100, 200, 300])
    assert Window(100.5, 201).grey_from(values).tolist() == [0, 0, 128, 255, 255]
    assert Window(100, 200, exact=True).grey_from(values).tolist() == [0, 0, 128, 255, 255]
    assert Window(100.5, 1).grey_from(values).tolist() == [0, 0, 0, 255, 255]


def test_a_window_over_all_of_8_bits_changes_nothing():
    assert Window(128, 256).grey_from(np.arange(256)).tolist() == list(range(256))


@pytest.mark.parametrize("text", ["", "40", "40,400,1", "a,b", "40,0", "40,0.5", "nan,3", "1,inf"])
def test_what_is_no_window_is_refused(text):
    assert code_of(window_from_text, text) == "E-WINDOW"


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_RLE.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
    ],
)
def test_16_bits_are_windowed_as_pydicom_windows_them(name):
    import pydicom
    from pydicom.pixels import apply_rescale, apply_windowing

    if "jpeg" in name:
        pytest.importorskip("gdcm", reason="no python-gdcm; make install brings it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pydicom.dcmread(shipped(name))
        values = apply_windowing(apply_rescale(data.pixel_array, data), data)
    low, high = (-(2**15), 2**15 - 1) if data.PixelRepresentation else (0, 2**data.BitsStored - 1)
    theirs = (values - low) / (high - low) * 255
    ours = read_image(shipped(name))
    assert len(np.unique(ours)) > 50
    assert np.abs(ours - theirs).max() <= 0.5 + 1e-6


def test_a_window_that_is_given_goes_before_the_files_own(tmp_path):
    words = np.arange(2400).reshape(SHAPE)
    path = deep(tmp_path / "x.dcm", words, WindowCenter=1000, WindowWidth=10)
    grey = read_image(path, window=Window(1200, 2400))
    np.testing.assert_array_equal(grey, Window(1200, 2400).grey_from(words))


def test_of_several_windows_the_first_is_taken_and_values_are_rescaled(tmp_path):
    words = np.arange(2400).reshape(SHAPE)
    path = deep(
        tmp_path / "x.dcm",
        words,
        WindowCenter=[100, 900],
        WindowWidth=[200, 20],
        RescaleSlope="0.5",
        RescaleIntercept="-50",
    )
    np.testing.assert_array_equal(read_image(path), Window(100, 200).grey_from(words * 0.5 - 50))


def test_bits_beyond_the_stored_ones_do_not_count_and_the_sign_does(tmp_path):
    values = np.arange(-2048, 352).reshape(SHAPE)
    words = (values & 0xFFF) | 0xA000
    path = deep(tmp_path / "x.dcm", words, stored=12, PixelRepresentation=1)
    window = Window(-800, 2000)
    np.testing.assert_array_equal(read_image(path, window=window), window.grey_from(values))


def test_monochrome1_of_16_bits_is_inverted(tmp_path):
    words = np.arange(2400).reshape(SHAPE)
    one, two = (
        deep(tmp_path / f"{name}.dcm", words, photometric=name, WindowCenter=1200, WindowWidth=2400)
        for name in ("MONOCHROME1", "MONOCHROME2")
    )
    np.testing.assert_array_equal(read_image(one), 255 - read_image(two))


WINDOW = {"WindowCenter": 100, "WindowWidth": 200}


@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"WindowCenter": 100},
        {"WindowCenter": 100, "WindowWidth": 0},
        {**WINDOW, "VOILUTFunction": "SIGMOID"},
        {**WINDOW, "HighBit": 12, "BitsStored": 12},
        {**WINDOW, "photometric": "RGB"},
        {**WINDOW, "BitsAllocated": 32, "BitsStored": 32},
    ],
    ids=["none", "no width", "no window", "sigmoid", "upper bits", "colour", "32 bits"],
)
def test_16_bits_without_a_window_that_is_read_are_refused(elements, tmp_path):
    path = deep(tmp_path / "x.dcm", np.zeros(SHAPE), **elements)
    assert code_of(read_image, path) == "E-DICOM-PIXELS"


def test_16_bits_in_jpeg_2000_are_refused():
    assert code_of(read_image, shipped("MR_small_jp2klossless.dcm")) == "E-DICOM-PIXELS"


def test_16_bits_cut_short_are_an_error_of_their_frame(tmp_path):
    path = deep(tmp_path / "x.dcm", np.zeros(SHAPE), **WINDOW)
    path.write_bytes(path.read_bytes()[:-20])
    assert code_of(read_image, path) == "E-DICOM-FRAME"


def test_a_window_for_8_bits_is_refused_and_shows_16_of_other_files(tmp_path):
    window = Window(300, 600)
    Image.fromarray(GREY).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", still(tmp_path / "x.dcm")):
        assert code_of(read_image, path, window=window) == "E-WINDOW"
    words = np.arange(2400, dtype=np.uint16).reshape(SHAPE)
    for name in ("b.png", "b.tif"):
        Image.fromarray(words).save(tmp_path / name)
        expected = window.grey_from(words)
        np.testing.assert_array_equal(read_image(tmp_path / name, window=window), expected)
        np.testing.assert_array_equal(next(read_frames(tmp_path / name, window=window)), expected)
        assert code_of(read_image, tmp_path / name) == "E-IMAGE-MODE"


# --- folders and data sets -----------------------------------------------------------------------


def test_a_file_without_a_suffix_is_an_image_where_it_is_dicom(tmp_path):
    still(tmp_path / "IM2")
    still(tmp_path / "im10.DCM")
    shutil.copy(tmp_path / "IM2", tmp_path / "DICOMDIR")
    (tmp_path / "LICENSE").write_text("text " * 50)
    assert [path.name for path in image_files(tmp_path)] == ["IM2", "im10.DCM"]


def test_a_data_set_of_stills_is_read_whole_by_whatever_reads_data(tmp_path):
    for label, low in (("benign", 0), ("malignant", 128)):
        path = still(tmp_path / label / "a.dcm", SequenceOfUltrasoundRegions=[region(REGION)])
        path.write_bytes(path.read_bytes().replace(GREY.tobytes(), (GREY // 2 + low).tobytes()))
        mask = np.zeros(SHAPE, np.uint8)
        mask[5:9, 20:30] = 255
        Image.fromarray(mask).save(tmp_path / label / "a_mask.png")
    samples = read_dataset(tmp_path).samples
    assert [sample.name for sample in samples] == ["benign/a.dcm", "malignant/a.dcm"]
    np.testing.assert_array_equal(samples[0].read_image(), GREY // 2)
    np.testing.assert_array_equal(
        reader_of(samples, InputContract())(samples[1].image), GREY // 2 + 128
    )
    assert samples[0].read_mask().sum() == 40
    assert audit_datasets([tmp_path]).unreadable == ()


def test_a_still_is_refused_where_colours_are_asked_for(tmp_path):
    path = still(tmp_path / "a.dcm")
    assert code_of(read_image, path, colour=True) == "E-IMAGE-MODE"


def test_a_data_set_says_its_window_in_a_file(tmp_path):
    words = np.arange(2400).reshape(SHAPE)
    deep(tmp_path / "normal" / "a.dcm", words)
    (sample,) = read_dataset(tmp_path).samples
    assert code_of(sample.read_image) == "E-DICOM-PIXELS"
    (tmp_path / "window.txt").write_text("1200,2400\n")
    (sample,) = read_dataset(tmp_path).samples
    np.testing.assert_array_equal(sample.read_image(), Window(1200, 2400).grey_from(words))
    assert audit_datasets([tmp_path]).unreadable == ()
    for text in ("1200\n", "", "1,2\n3,4\n"):
        (tmp_path / "window.txt").write_text(text)
        assert code_of(read_dataset, tmp_path) == "E-WINDOW"


def test_several_frames_are_no_still():
    assert code_of(read_image, shipped(CINE)) == "E-IMAGE-FRAMES"
    assert code_of(read_still, shipped(CINE), whole_frame=True) == "E-IMAGE-FRAMES"


# --- streams of stills ---------------------------------------------------------------------------


def test_a_folder_of_stills_is_a_source_with_their_region_and_spacing(tmp_path):
    for number in (10, 9):
        still(
            tmp_path / f"{number}.dcm",
            SequenceOfUltrasoundRegions=[region(REGION)],
            RecommendedDisplayFrameRate=20,
        )
    source = open_source(tmp_path)
    assert (source.kind, source.frames, source.hz) == ("dicom", 2, 20)
    assert (source.crop, source.spacing) == (CROP, Spacing(row_mm=1.0, column_mm=0.5))
    for frame in source.read():
        np.testing.assert_array_equal(frame, GREY)
    assert open_source(tmp_path, whole_frame=True).crop is None


def test_a_still_that_cannot_be_used_is_an_error_in_its_place(tmp_path):
    still(tmp_path / "1.dcm")
    shutil.copy(shipped("CT_small.dcm"), tmp_path / "2.dcm")
    shutil.copy(shipped(CINE), tmp_path / "3.dcm")
    still(tmp_path / "4.dcm")
    first, second, third, fourth = open_source(tmp_path, whole_frame=True).read()
    assert (second.code, third.code) == ("E-DICOM-PIXELS", "E-IMAGE-FRAMES")
    np.testing.assert_array_equal(first, fourth)


def test_stills_of_different_regions_and_a_mixed_folder_are_refused(tmp_path):
    still(tmp_path / "1.dcm", SequenceOfUltrasoundRegions=[region(REGION)])
    still(tmp_path / "2.dcm")
    assert code_of(open_source, tmp_path) == "E-DICOM-REGION"
    assert open_source(tmp_path, whole_frame=True).frames == 2
    Image.fromarray(GREY).save(tmp_path / "3.png")
    assert code_of(open_source, tmp_path, whole_frame=True) == "E-STREAM-SOURCE"


def test_a_window_is_for_streams_too(tmp_path):
    words = np.arange(2400).reshape(SHAPE)
    deep(tmp_path / "1.dcm", words)
    window = Window(1200, 2400)
    (frame,) = open_source(tmp_path, window=window).read()
    np.testing.assert_array_equal(frame, window.grey_from(words))
    (error,) = open_source(tmp_path).read()
    assert isinstance(error, InputError)
    (tmp_path / "x.mp4").write_bytes(b"")
    assert code_of(open_source, tmp_path / "x.mp4", window=window) == "E-WINDOW"


# --- commands ------------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_predict_sees_the_tissue_region_alone_and_measures_in_mm(tmp_path):
    bundle = write_working_bundle(tmp_path / "bundle")
    path = still(tmp_path / "a.dcm", SequenceOfUltrasoundRegions=[region(REGION)])
    left, top, right, bottom = CROP
    Image.fromarray(GREY[top:bottom, left:right]).save(tmp_path / "crop.png")
    Image.fromarray(GREY).save(tmp_path / "whole.png")
    masks = {}
    for name, arguments in (
        ("a", (path,)),
        ("crop", (tmp_path / "crop.png",)),
        ("whole", (tmp_path / "whole.png",)),
    ):
        result = call("predict", bundle, *arguments, "--out", tmp_path / f"of-{name}", "-q")
        assert result.exit_code == 0, result.stderr
        masks[name] = np.asarray(Image.open(tmp_path / f"of-{name}" / f"{name}_mask.png"))
    expected = np.zeros(SHAPE, np.uint8)
    expected[top:bottom, left:right] = masks["crop"]
    np.testing.assert_array_equal(masks["a"], expected)
    (record,) = json.loads((tmp_path / "of-a" / "predictions.json").read_text())
    assert record["spacing_mm"] == {"row": 1.0, "column": 0.5}
    result = call("predict", bundle, path, "--out", tmp_path / "w", "--whole-frame", "-q")
    assert result.exit_code == 0, result.stderr
    whole = np.asarray(Image.open(tmp_path / "w" / "a_mask.png"))
    np.testing.assert_array_equal(whole, masks["whole"])


def test_predict_and_stream_take_a_window_and_refuse_what_it_is_not_for(tmp_path):
    bundle = write_working_bundle(tmp_path / "bundle")
    path = deep(tmp_path / "a.dcm", np.arange(2400).reshape(SHAPE))
    Image.fromarray(GREY).save(tmp_path / "b.png")
    out = tmp_path / "out"
    for arguments, code in (
        ((path,), "E-DICOM-PIXELS"),
        ((path, "--window", "40"), "E-WINDOW"),
        ((tmp_path / "b.png", "--window", "40,400"), "E-WINDOW"),
        ((tmp_path / "b.png", "--whole-frame"), "E-USAGE"),
    ):
        result = call("predict", bundle, *arguments, "--out", out, "-q")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"edgeseg: {code}: "), result.stderr
        assert not out.exists()
    assert call("predict", bundle, path, "--window", "1200,2400", "--out", out).exit_code == 0
    streamed = ("stream", bundle, tmp_path / "a.dcm", "--rate", 100, "--window", "1200,2400")
    assert call(*streamed, "--json").exit_code == 0


def test_open_dicom_and_read_still_agree(tmp_path):
    path = still(tmp_path / "a.dcm", SequenceOfUltrasoundRegions=[region(REGION)])
    source, frame = open_dicom(path), read_still(path)
    assert (frame.crop, frame.spacing) == (source.crop, source.spacing)
    np.testing.assert_array_equal(frame.frame, next(iter(source.read())))
