"""DICOM files as a source: header, ultrasound regions and clock.

pydicom reads the header alone, from a bounded piece of the file. What the header claims is checked
before anything of its size is allocated, and `dicom_pixels` takes the frames one by one. Tags and
their meaning: DICOM PS3.3, C.7.6.3 (image pixel), C.7.6.5 (cine), C.8.5.5 (ultrasound regions).
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence, Tuple

import numpy as np

from ..errors import EdgesegError, EngineError, InputError
from ..image import MAX_IMAGE_PIXELS
from ..lesion import Spacing
from .dicom_pixels import SYNTAXES, PixelFormat, read_frames
from .source import Item, Source, usable_hz

MAX_HEADER_BYTES = 16 << 20  # what comes before the pixels; private elements of vendors included
MAX_REGIONS = 256
_SUFFIXES = (".dcm", ".dicom")
# A whole file under zlib, which pydicom would inflate at once, however large it gets.
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_TISSUE, _TWO_D, _CM = 1, 1, 3  # Region Data Type, Region Spatial Format, Physical Units
_TAGS = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("FrameTime", "FrameTimeVector", "CineRate", "RecommendedDisplayFrameRate"),
    "SequenceOfUltrasoundRegions",
    *(
        f"{colour}PaletteColorLookupTable{what}"
        for colour in ("Red", "Green", "Blue")
        for what in ("Descriptor", "Data")
    ),
)


@dataclass(frozen=True)
class Region:
    """A region of Sequence of Ultrasound Regions, as the file tells it."""

    spatial_format: int
    data_type: int
    box: Tuple[int, int, int, int]  # left, top, right, bottom in px, all inclusive
    units: Tuple[int, int]  # of the deltas, x and y
    delta: Tuple[float, float]  # physical size of a pixel, x and y


@dataclass(frozen=True)
class Header:
    """What is used of a DICOM header."""

    pixels: PixelFormat
    hz: Optional[float]
    regions: Tuple[Region, ...]


def is_dicom(path: Path) -> bool:
    """Whether a path has a suffix of DICOM, or its magic word."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix.lower() in _SUFFIXES or file.read(132)[128:] == b"DICM"


def open_dicom(path: Path, *, whole_frame: bool = False) -> Source:
    """Open a DICOM image, single-frame or multi-frame.

    The largest two-dimensional tissue region is what the network sees, and gives the spacing. A
    file without such a region is used whole, and its spacing is unknown; so is any file with
    `whole_frame`.

    Raises:
        InputError: E-DICOM-READ (no DICOM image, or a damaged header), E-DICOM-SYNTAX (a transfer
            syntax that is not read), E-DICOM-PIXELS (a format of pixels that is not read),
            E-DICOM-SIZE, E-DICOM-REGION (a region that is not within the frame).
        EngineError: E-EXTRA-MISSING without pydicom, or without a decoder for its compression.
    """
    header = read_header(path)
    pixels = header.pixels
    region = None if whole_frame else tissue_region(header.regions)
    crop = spacing = None
    if region:
        crop = _crop_of(region, pixels, path)
        spacing = _spacing_of(region)

    def read() -> Iterator[Item]:
        return read_frames(path, pixels)

    return Source(path, "dicom", header.hz, pixels.frames, crop, spacing, read)


def tissue_region(regions: Sequence[Region]) -> Optional[Region]:
    """Return the largest two-dimensional region of tissue; the first of equals, None without."""

    def area(region: Region) -> int:
        left, top, right, bottom = region.box
        return (right - left) * (bottom - top)

    tissue = [r for r in regions if (r.spatial_format, r.data_type) == (_TWO_D, _TISSUE)]
    return max(tissue, key=area, default=None)


def read_header(path: Path) -> Header:
    """Read what comes before the pixels; errors as `open_dicom`."""
    try:
        import pydicom
    except ModuleNotFoundError as error:
        raise EngineError(
            "E-EXTRA-MISSING", "pydicom is not installed; pip install 'edgeseg[dicom]'"
        ) from error
    try:
        with path.open("rb") as file:
            head = file.read(MAX_HEADER_BYTES)
        if _DEFLATED in head:
            raise InputError(
                "E-DICOM-SYNTAX",
                f"{path} is deflated as a whole; convert it, as with `dcmconv +te`",
            )
        stream = io.BytesIO(head)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what deviates and matters is checked below
            data = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS))
            return _header_of(data, path, stream.tell())
    except EdgesegError:
        raise
    except Exception as error:  # OSError, and pydicom's of any type for a damaged header
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            "E-DICOM-READ", f"cannot read DICOM {path} ({why}); send or export it again"
        ) from error


def _header_of(data: Any, path: Path, offset: int) -> Header:
    syntax = str(data.file_meta.TransferSyntaxUID)
    if syntax not in SYNTAXES:
        raise InputError(
            "E-DICOM-SYNTAX",
            f"{path} has transfer syntax {syntax[:64]!r}, which is not read; convert it to "
            "Explicit VR Little Endian",
        )
    rows, columns = int(data.Rows), int(data.Columns)
    frames = int(data.get("NumberOfFrames") or 1)
    if not (0 < rows <= 65535 and 0 < columns <= 65535 and frames > 0):
        raise InputError(
            "E-DICOM-SIZE", f"{path} claims {frames} frames of {columns}x{rows}; export it again"
        )
    if rows * columns > MAX_IMAGE_PIXELS:
        raise InputError(
            "E-DICOM-SIZE",
            f"{path} claims {columns}x{rows} pixels, over the cap of {MAX_IMAGE_PIXELS}",
        )
    stored = int(data.get("BitsStored") or data.BitsAllocated)
    allocated = int(data.BitsAllocated)
    if allocated != 8 or stored != 8 or int(data.get("PixelRepresentation") or 0):
        raise InputError(
            "E-DICOM-PIXELS",
            f"{path} stores {stored} bits in {allocated}; 8 unsigned bits are read, "
            "window it to 8 bits first",
        )
    photometric = str(data.PhotometricInterpretation)
    pixels = PixelFormat(
        syntax=syntax,
        offset=offset,
        rows=rows,
        columns=columns,
        frames=frames,
        samples=int(data.get("SamplesPerPixel") or 1),
        planar=int(data.get("PlanarConfiguration") or 0) == 1,
        photometric=photometric,
        palette=_palette_of(data) if photometric == "PALETTE COLOR" else None,
    )
    pixels.require_readable(path)
    regions = list(data.get("SequenceOfUltrasoundRegions") or ())[:MAX_REGIONS]
    return Header(pixels, _hz_of(data), tuple(_region_of(item) for item in regions))


def _region_of(item: Any) -> Region:
    return Region(
        int(item.RegionSpatialFormat),
        int(item.RegionDataType),
        (
            int(item.RegionLocationMinX0),
            int(item.RegionLocationMinY0),
            int(item.RegionLocationMaxX1),
            int(item.RegionLocationMaxY1),
        ),
        (int(item.get("PhysicalUnitsXDirection", 0)), int(item.get("PhysicalUnitsYDirection", 0))),
        (float(item.get("PhysicalDeltaX", 0)), float(item.get("PhysicalDeltaY", 0))),
    )


def _hz_of(data: Any) -> Optional[float]:
    """Frame rate: Frame Time, the mean of its vector, Cine Rate, the recommended rate."""
    times_ms = [float(data.get("FrameTime") or 0)]
    vector = data.get("FrameTimeVector") or ()
    # Its first value is the time before the first frame: 0.
    steps = [float(step) for step in (vector if np.iterable(vector) else (vector,))][1:]
    if steps:
        times_ms.append(sum(steps) / len(steps))
    rates = [1000 / time for time in times_ms if time > 0]
    rates += [float(data.get(tag) or 0) for tag in ("CineRate", "RecommendedDisplayFrameRate")]
    return next((hz for hz in map(usable_hz, rates) if hz), None)


def _crop_of(region: Region, pixels: PixelFormat, path: Path) -> Tuple[int, int, int, int]:
    left, top, right, bottom = region.box
    # The far corner belongs to the region; some vendors write the frame's size there.
    if not (0 <= left < right <= pixels.columns and 0 <= top < bottom <= pixels.rows):
        raise InputError(
            "E-DICOM-REGION",
            f"{path} tells a tissue region of {left},{top} to {right},{bottom} in frames of "
            f"{pixels.columns}x{pixels.rows}: they were resized, and its spacing is wrong too; "
            "ignore both with --whole-frame",
        )
    return left, top, min(right + 1, pixels.columns), min(bottom + 1, pixels.rows)


def _spacing_of(region: Region) -> Optional[Spacing]:
    """Return the spacing; None unless both deltas are in cm and of a size that pixels have."""
    if region.units != (_CM, _CM):
        return None
    across, down = (10 * abs(delta) for delta in region.delta)
    try:
        return Spacing(row_mm=down, column_mm=across)
    except InputError:
        return None


def _palette_of(data: Any) -> np.ndarray:
    """Return the palette as uint8 [256, 3]; values outside a table take its nearest entry."""
    columns = []
    for colour in ("Red", "Green", "Blue"):
        described = data[f"{colour}PaletteColorLookupTableDescriptor"].value
        count, first, bits = (int(value) for value in described)
        count = count or 65536  # of 16 bits, in which it does not fit
        table = np.frombuffer(
            data[f"{colour}PaletteColorLookupTableData"].value, np.uint8 if bits == 8 else "<u2"
        )[:count]
        wanted = np.clip(np.arange(256) - first, 0, len(table) - 1)
        columns.append(table[wanted] if bits == 8 else (table[wanted] >> 8).astype(np.uint8))
    return np.stack(columns, axis=1)
