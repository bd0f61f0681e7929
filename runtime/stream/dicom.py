"""DICOM files as a source and as stills: header, ultrasound regions, window and clock.

pydicom reads the header alone, from a bounded piece of the file. What the header claims is checked
before anything of its size is allocated, and `dicom_pixels` takes the frames one by one. Tags and
their meaning: DICOM PS3.3, C.7.6.3 (image pixel), C.7.6.5 (cine), C.8.5.5 (ultrasound regions).
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence, Tuple, Union

import numpy as np

from ..errors import EdgesegError, EngineError, InputError
from ..folder import is_dicom
from ..image import MAX_IMAGE_PIXELS
from ..lesion import Spacing
from ..predict import images_in
from ..window import Window, window_unused
from .dicom_pixels import SYNTAXES, PixelFormat, read_frames
from .source import Item, Source, Still, usable_hz

MAX_HEADER_BYTES = 16 << 20  # what comes before the pixels; private elements of vendors included
MAX_REGIONS = 256
# A whole file under zlib, which pydicom would inflate at once, however large it gets.
_DEFLATED = b"1.2.840.10008.1.2.1.99"
# The first two bytes of a file without preamble: group 2 or 8, the latter big-endian too.
_FIRST_GROUPS = (b"\2\0", b"\x08\0", b"\0\x08")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_TISSUE, _TWO_D, _CM = 1, 1, 3  # Region Data Type, Region Spatial Format, Physical Units
_TAGS = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "HighBit",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "RescaleSlope",
    "RescaleIntercept",
    "FrameTime",
    "FrameTimeVector",
    "CineRate",
    "RecommendedDisplayFrameRate",
    "SequenceOfUltrasoundRegions",
    *(
        f"{colour}PaletteColorLookupTable{what}"
        for colour in ("Red", "Green", "Blue")
        for what in ("Descriptor", "Data")
    ),
    "SegmentedRedPaletteColorLookupTableData",
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


def read_still(path: Path, *, window: Optional[Window] = None, whole_frame: bool = False) -> Still:
    """Read a single-frame DICOM image; see `open_dicom` for arguments and errors.

    Raises InputError: E-IMAGE-FRAMES for several frames, E-DICOM-FRAME for one that is damaged.
    """
    source = open_dicom(path, window=window, whole_frame=whole_frame)
    if source.frames != 1:
        raise _not_one(path, source.frames)
    for item in source.read():
        if isinstance(item, InputError):
            raise item
        return Still(item, source.crop, source.spacing)
    raise AssertionError("a source of one frame yields one")


def _not_one(path: Path, frames: Optional[int]) -> InputError:
    return InputError(
        "E-IMAGE-FRAMES",
        f"{path} holds {frames} frames where one is meant; save each as a file of its own, or send "
        "them all with `edgeseg stream`",
    )


def is_dicom_source(path: Path) -> bool:
    """Whether a path is a DICOM file, or a folder with one among its images."""
    return is_dicom(path) or (path.is_dir() and any(map(is_dicom, images_in(path).images)))


def open_dicom_source(
    path: Path, *, whole_frame: bool = False, window: Optional[Window] = None
) -> Source:
    """Open a DICOM file, see `open_dicom`, or a folder of stills in the order of their names.

    A still that cannot be used is an error in its place.

    Raises:
        InputError: as `open_dicom` for a file; of a folder E-STREAM-SOURCE (other images in it),
            E-DICOM-REGION (stills that tell different regions or spacings).
        EngineError: as `open_dicom`.
    """
    if not path.is_dir():
        return open_dicom(path, whole_frame=whole_frame, window=window)
    found = images_in(path)
    other = next((file for file in found.images if not is_dicom(file)), None)
    if other is not None:
        raise InputError(
            "E-STREAM-SOURCE",
            f"{path} has DICOM files and other images, such as {other.name}; give a folder of one "
            "kind",
        )
    stills = [_still_or_error(file, whole_frame, window) for file in found.images]
    usable = [still for still in stills if isinstance(still, Source)]
    told = {(still.crop, still.spacing) for still in usable}
    if len(told) > 1:
        raise InputError(
            "E-DICOM-REGION",
            f"the files in {path} tell {len(told)} different tissue regions or spacings; stream "
            "those of one alone, or take the frames whole with --whole-frame",
        )
    crop, spacing = told.pop() if told else (None, None)
    rates = {still.hz for still in usable}
    hz = rates.pop() if len(rates) == 1 else None

    def read() -> Iterator[Item]:
        for still in stills:
            if isinstance(still, Source):
                yield from still.read()
            else:
                yield still

    return Source(path, "dicom", hz, len(stills), crop, spacing, read, found.note)


def _still_or_error(
    path: Path, whole_frame: bool, window: Optional[Window]
) -> Union[Source, InputError]:
    try:
        source = open_dicom(path, whole_frame=whole_frame, window=window)
    except InputError as error:
        return error
    return source if source.frames == 1 else _not_one(path, source.frames)


def open_dicom(path: Path, *, whole_frame: bool = False, window: Optional[Window] = None) -> Source:
    """Open a DICOM image, single-frame or multi-frame.

    The largest two-dimensional tissue region is what the network sees, and gives the spacing. A
    file without such a region is used whole, and its spacing is unknown; so is any file with
    `whole_frame`. 16 bits become grey by `window`, or by the file's own first one.

    Raises:
        InputError: E-DICOM-READ (no DICOM image, or a damaged header), E-DICOM-SYNTAX (a transfer
            syntax that is not read), E-DICOM-PIXELS (a format of pixels that is not read, 16 bits
            without any window), E-DICOM-SIZE, E-DICOM-REGION (a region that is not within the
            frame), E-WINDOW (a window for 8 bits).
        EngineError: E-EXTRA-MISSING without pydicom, or without a decoder for its compression.
    """
    header = read_header(path, whole_frame=whole_frame, window=window)
    pixels = header.pixels
    region = tissue_region(header.regions)
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


def read_header(
    path: Path, *, whole_frame: bool = False, window: Optional[Window] = None
) -> Header:
    """Read what comes before the pixels; errors as `open_dicom`.

    The regions are not looked at with `whole_frame`.
    """
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
        start = _start_of(head)
        if start is None:
            raise InputError(
                "E-DICOM-READ",
                f"{path} is no DICOM file (it has no 'DICM' and begins with no element that one "
                "begins with); send or export it again",
            )
        stream = io.BytesIO(head[start:])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what deviates and matters is checked below
            data = pydicom.dcmread(
                stream, stop_before_pixels=True, specific_tags=list(_TAGS), force=True
            )
            header = _header_of(data, path, start + stream.tell(), whole_frame, window)
        header.pixels.require_length(path)
        return header
    except EdgesegError:
        raise
    except Exception as error:  # OSError, and pydicom's of any type for a damaged header
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            "E-DICOM-READ", f"cannot read DICOM {path} ({why}); send or export it again"
        ) from error


def _start_of(head: bytes) -> Optional[int]:
    """Return where pydicom may begin to read: at the preamble, or at the first element.

    Some archives cut the preamble, its magic word or the whole group of file meta information
    off. Then a file begins with an element of group 2 or 8 (identification). None: no DICOM.
    """
    if head[128:132] == b"DICM":
        return 0
    start = len(b"DICM") if head.startswith(b"DICM") else 0
    return start if head[start : start + 2] in _FIRST_GROUPS and len(head) > start + 8 else None


def _syntax_of(data: Any) -> str:
    """Return the UID of the transfer syntax; without one, how pydicom found the elements written.

    Compressed pixels contradict that, see `PixelFormat.require_length`.
    """
    told = data.file_meta.get("TransferSyntaxUID")
    if told:
        return str(told)
    return _UNTOLD[data.original_encoding]


# (implicit VR, little endian) -> transfer syntax
_UNTOLD = {
    (True, True): "1.2.840.10008.1.2",
    (False, True): "1.2.840.10008.1.2.1",
    (False, False): "1.2.840.10008.1.2.2",
}


def _header_of(
    data: Any, path: Path, offset: int, whole_frame: bool, window: Optional[Window]
) -> Header:
    syntax = _syntax_of(data)
    if syntax not in SYNTAXES:
        raise InputError(
            "E-DICOM-SYNTAX",
            f"{path} has transfer syntax {syntax[:64]!r}, which is not read; convert it to "
            "Explicit VR Little Endian",
        )
    for keyword in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation"):
        if data.get(keyword) is None:
            raise InputError(
                "E-DICOM-READ",
                f"{path} is no DICOM image (it has no {keyword}); name a file with pixels",
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
    allocated, signed = int(data.BitsAllocated), bool(int(data.get("PixelRepresentation") or 0))
    photometric = str(data.PhotometricInterpretation)
    deep = allocated == 16 and 1 <= stored <= 16 and photometric in _GREY
    if not deep and (allocated != 8 or stored != 8 or signed):
        raise InputError(
            "E-DICOM-PIXELS",
            f"{path} stores {stored} {'' if signed else 'un'}signed bits in {allocated} as "
            f"{photometric[:32]!r}; 8 unsigned bits and grey of 16 are read, convert it",
        )
    if window is not None and not deep:
        raise window_unused(path)
    pixels = PixelFormat(
        syntax=syntax,
        offset=offset,
        rows=rows,
        columns=columns,
        frames=frames,
        samples=int(data.get("SamplesPerPixel") or 1),
        planar=int(data.get("PlanarConfiguration") or 0) == 1,
        photometric=photometric,
        palette=_palette_of(data, path) if photometric == "PALETTE COLOR" else None,
        levels=_levels_of(data, path, stored, signed, window) if deep else None,
        stored_bits=stored,
        signed=signed,
    )
    pixels.require_readable(path)
    items = list(data.get("SequenceOfUltrasoundRegions") or ())[:MAX_REGIONS]
    found = () if whole_frame else (_region_of(item, path) for item in items)
    return Header(pixels, _hz_of(data), tuple(region for region in found if region))


def _levels_of(
    data: Any, path: Path, stored: int, signed: bool, window: Optional[Window]
) -> np.ndarray:
    """Return the grey of every word of 16 bits, uint8 [65536]: rescaled, windowed, inverted.

    Raises InputError (E-DICOM-PIXELS) without a window, and for one or a rescaling that is none.
    """
    if int(data.get("HighBit", stored - 1)) != stored - 1:
        raise InputError(
            "E-DICOM-PIXELS", f"{path} keeps its bits at the upper end of a word; convert it"
        )
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    values = np.arange(65536) & ((1 << stored) - 1)
    if signed:
        values -= (values >> (stored - 1)) << stored
    grey = (window or _own_window(data, path)).grey_from(values * slope + intercept)
    inverted: np.ndarray = 255 - grey
    return inverted if data.PhotometricInterpretation == "MONOCHROME1" else grey


def _own_window(data: Any, path: Path) -> Window:
    """Return the first window that a file tells. Raises InputError (E-DICOM-PIXELS) without one."""
    function = str(data.get("VOILUTFunction") or _LINEAR)
    told = [data.get(keyword) for keyword in ("WindowCenter", "WindowWidth")]
    values = [list(value) if np.iterable(value) else [value] for value in told]
    try:
        if function not in (_LINEAR, _LINEAR_EXACT):
            raise ValueError(f"a window of the function {function[:32]!r}, which is not read")
        if [] in values or [None] in values:
            raise ValueError("no window")
        centre, width = (float(each[0]) for each in values)
        return Window(centre, width, exact=function == _LINEAR_EXACT)
    except (ValueError, InputError) as error:
        raise InputError(
            "E-DICOM-PIXELS",
            f"{path} stores more than 8 bits and tells {error}; say what to show with --window "
            "CENTRE,WIDTH",
        ) from error


_LINEAR, _LINEAR_EXACT = "LINEAR", "LINEAR_EXACT"


def _region_of(item: Any, path: Path) -> Optional[Region]:
    """Return a region; None for one that lacks something and is no two-dimensional tissue.

    Raises InputError (E-DICOM-REGION) for one that may be the tissue and lacks something.
    """

    def number(keyword: str) -> Optional[int]:
        try:
            return int(item[keyword].value)
        except (KeyError, TypeError, ValueError):
            return None

    spatial_format, data_type = number("RegionSpatialFormat"), number("RegionDataType")
    corners = [number(f"RegionLocation{corner}") for corner in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
    left, top, right, bottom = corners
    told = [value is not None for value in (spatial_format, data_type, *corners)]
    may_be_tissue = spatial_format in (None, _TWO_D) and data_type in (None, _TISSUE)
    # GDCM writes an item with deltas alone, which is no region.
    if not all(told) and any(told) and may_be_tissue:
        raise InputError(
            "E-DICOM-REGION",
            f"{path} tells a region without its spatial format, its data type or a corner, so that "
            "the tissue is not known; take the frames whole with --whole-frame",
        )
    if not all(told):
        return None
    return Region(
        spatial_format or 0,
        data_type or 0,
        (left or 0, top or 0, right or 0, bottom or 0),
        (number("PhysicalUnitsXDirection") or 0, number("PhysicalUnitsYDirection") or 0),
        (_delta_of(item, "PhysicalDeltaX"), _delta_of(item, "PhysicalDeltaY")),
    )


def _delta_of(item: Any, keyword: str) -> float:
    try:
        return float(item[keyword].value)
    except (KeyError, TypeError, ValueError):
        return 0.0  # no spacing


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
    if left >= right or top >= bottom:
        raise InputError(
            "E-DICOM-REGION",
            f"{path} tells a tissue region without area, {left},{top} to {right},{bottom}; ignore "
            "it and its spacing with --whole-frame",
        )
    # The far corner belongs to the region; some vendors write the frame's size there.
    if min(left, top) < 0 or right > pixels.columns or bottom > pixels.rows:
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


def _palette_of(data: Any, path: Path) -> np.ndarray:
    """Return the palette as uint8 [256, 3]; values outside of it take its nearest entry.

    How wide an entry is its length tells, whatever the descriptor says. The high byte of two is
    taken, unless no entry needs it: then 8-bit values were stored in 16 bits.
    Raises InputError (E-DICOM-PIXELS) for one that is segmented or contradicts its descriptors.
    """

    def refused(what: str) -> InputError:
        return InputError(
            "E-DICOM-PIXELS", f"{path} has a palette {what}; convert its pixels to RGB"
        )

    if "SegmentedRedPaletteColorLookupTableData" in data:
        raise refused("in segments, which is not read")
    colours = ("Red", "Green", "Blue")
    described = {
        tuple(int(value) for value in data[f"{colour}PaletteColorLookupTableDescriptor"].value)
        for colour in colours
    }
    stored = [bytes(data[f"{colour}PaletteColorLookupTableData"].value) for colour in colours]
    lengths = set(map(len, stored))
    if len(described) != 1 or len(lengths) != 1:
        raise refused("whose three tables differ in length or first value")
    (count, first, _), (length,) = described.pop(), lengths
    count = count or 65536  # of 16 bits, in which it does not fit
    if length not in (count, count + count % 2, 2 * count):
        raise refused(f"of {count} entries in {length} bytes")
    wide = length == 2 * count
    tables: np.ndarray = np.array(
        [np.frombuffer(table, "<u2" if wide else np.uint8) for table in stored]
    )
    if wide and tables.max() > 255:
        tables >>= 8
    palette: np.ndarray = tables[:, np.clip(np.arange(256) - first, 0, count - 1)].T
    return palette.astype(np.uint8)
