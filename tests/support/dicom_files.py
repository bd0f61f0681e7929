"""DICOM files for tests: those that pydicom ships, as they are or with a header of ours."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseg.runtime.errors import EdgesegError, InputError
from edgeseg.runtime.stream.dicom import open_dicom


def shipped(name: str) -> Path:
    """Return the path of a file in pydicom's wheel; skip the test without pydicom."""
    data = pytest.importorskip("pydicom.data", reason="no pydicom; make install brings it")
    return Path(data.get_testdata_file(name, download=False) or data.get_charset_files(name)[0])


def write_changed(name: str, path: Path, **elements: Any) -> Path:
    """Write a shipped file with elements of its header replaced; None removes one."""
    pydicom = pytest.importorskip("pydicom", reason="no pydicom; make install brings it")
    data = pydicom.dcmread(shipped(name))
    for keyword, value in elements.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    data.save_as(path)
    return path


def region(
    box: tuple[int, int, int, int], *, data_type: int = 1, units: int = 3, delta: float = 0.05
) -> Any:
    """Return an item of Sequence of Ultrasound Regions: box inclusive, delta in `units` (3: cm)."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.RegionSpatialFormat, item.RegionDataType, item.RegionFlags = 1, data_type, 2
    item.RegionLocationMinX0, item.RegionLocationMinY0 = box[:2]
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = box[2:]
    item.PhysicalUnitsXDirection = item.PhysicalUnitsYDirection = units
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta, 2 * delta
    return copy.deepcopy(item)


def write_pixels(
    path: Path,
    pixels: bytes | list[bytes],
    shape: tuple[int, int],
    photometric: str = "MONOCHROME2",
    syntax: str = "1.2.840.10008.1.2.1",
    *,
    frames: int = 1,
    table: bool = True,
    **elements: Any,
) -> Path:
    """Write an 8-bit ultrasound image of rows and columns; a list of frames is encapsulated.

    `table`: with a table of offsets. `elements` are set last, so that they can contradict the rest.
    """
    pydicom = pytest.importorskip("pydicom", reason="no pydicom; make install brings it")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = shape
    data.NumberOfFrames = len(pixels) if isinstance(pixels, list) else frames
    data.PhotometricInterpretation = photometric
    data.SamplesPerPixel = 1 if photometric.startswith(("MONO", "PAL")) else 3
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = encapsulate(pixels, has_bot=table) if isinstance(pixels, list) else pixels
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = isinstance(pixels, list)
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    data.save_as(path, enforce_file_format=True)
    return path


CINE = "examples_ybr_color.dcm"  # 30 frames of 320x240, JPEG Baseline
"""Its tissue region, 84,31 to 595,414, was told before the frames were made smaller."""
UNCOMPRESSED = "examples_rgb_color.dcm"  # one frame of 320x240


# --- mutations -----------------------------------------------------------------------------------


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Change, cut, insert or repeat bytes, mostly in the header."""
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        end = len(damaged) if chance.random() < 0.3 else min(len(damaged), 2500)
        at = chance.randrange(128, max(129, end))
        kind = chance.choices(range(5), (6, 3, 1, 1, 1))[0]
        if kind == 0:
            damaged[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            damaged[at : at + 4] = chance.choice((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"))
        elif kind == 2:
            del damaged[at : at + chance.randint(1, 64)]
        elif kind == 3:
            damaged[at:at] = damaged[at : at + chance.randint(1, 64)]
        else:
            del damaged[max(at, 200) :]
    return bytes(damaged)


# What is mutated: JPEG, uncompressed, RLE, and two small ones.
FUZZED = (CINE, UNCOMPRESSED, "SC_rgb_rle_2frame.dcm", "SC_rgb_small_odd.dcm", "chrArab.dcm")


def read_all(path: Path) -> str:
    """Read a file as a stream would; return "frames" or the code of the error, of one line."""
    try:
        items = list(open_dicom(path).read())
    except EdgesegError as error:
        return _code_of(error)
    assert all(isinstance(item, (np.ndarray, InputError)) for item in items)
    errors = [item for item in items if isinstance(item, InputError)]
    return _code_of(errors[0]) if errors else "frames"


def _code_of(error: EdgesegError) -> str:
    assert "\n" not in str(error)
    return error.code
