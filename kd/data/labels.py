"""Class lists: which label each image has, from CSV or XLSX tables."""

from __future__ import annotations

import csv
import io
import itertools
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from ...runtime.errors import EngineError, InputError
from ...runtime.folder import IMAGE_SUFFIXES, composed

LABELS = ("benign", "malignant", "normal")  # classes that a list gives
UNCLASSED = "lesion"  # label of a lesion whose class the data set does not tell
EVERY_LABEL = (*LABELS, UNCLASSED)
MAX_LIST_BYTES = 4 << 20  # of the file; a row takes about 20 bytes
MAX_SHEET_BYTES = 64 << 20  # of an unpacked workbook, so that a zip bomb is not unpacked
MAX_ROWS = 100_000

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class LabelList:
    """The labels a table gives, and what is wrong with it.

    Attributes:
        labels: label by image key (see `image_key`).
        faults: one line for each unusable row.
        patients: patient by image key; empty where the table does not tell them.
    """

    labels: Mapping[str, str]
    faults: tuple[str, ...]
    patients: Mapping[str, str] = field(default_factory=dict)


def image_key(name: str) -> str:
    """Return what a file name and a list entry share: no suffix, case, leading zeros or NFD.

    "000012.png", "000012" and "12" give the same key.
    """
    path = PurePath(composed(name).strip().replace("\\", "/"))
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    return (stem.lstrip("0") or "0") if stem.isdigit() else stem.casefold()


def read_named_list(
    path: Path,
    keys: set[str],
    *,
    image: str = "image",
    label: str = "label",
    patient: str = "patient",
    needs_patient: bool = False,
) -> LabelList:
    """Read a CSV whose header names the columns of image, label and, where it has it, patient.

    Args:
        path: the table.
        keys: `image_key` of every image there is; a row for another one is a fault.
        image: name of that column, in any case, as are the next.
        label: name of that column.
        patient: name of that column; where it is there, it must be full.
        needs_patient: whether it must be there.

    Raises:
        InputError: E-DATA-LABEL, where the table cannot be read or lacks a column; E-DATA-PATIENT,
            where the patients' column is missing or has a gap.
    """
    rows = read_rows(path)
    header = [cell.casefold() for cell in rows[0]] if rows else []
    image_name, label_name, patient_name = (each.casefold() for each in (image, label, patient))
    if not {image_name, label_name} <= set(header):
        raise InputError("E-DATA-LABEL", f"{path} needs a first line '{image},{label}'; add it")
    given = _labels(path, rows[1:], header.index(image_name), header.index(label_name), keys)
    if patient_name not in header:
        if needs_patient:
            raise InputError(
                "E-DATA-PATIENT",
                f"{path} has no column {patient!r}, so a split could cut a patient in two; add it",
            )
        return given
    column = header.index(patient_name)
    return replace(
        given, patients=_patients(path, rows[1:], header.index(image_name), column, keys)
    )


def _patients(
    path: Path, rows: Rows, image_column: int, patient_column: int, keys: set[str]
) -> dict[str, str]:
    """Return the patient of every image listed; raises InputError (E-DATA-PATIENT) for a gap."""
    named = [row for row in rows if image_key(_cell(row, image_column)) in keys]
    patients = {
        image_key(_cell(row, image_column)): patient
        for row in named
        if (patient := _cell(row, patient_column))
    }
    gaps = [row for row in named if image_key(_cell(row, image_column)) not in patients]
    if gaps:
        raise InputError(
            "E-DATA-PATIENT",
            f"{path} names no patient for {_cell(gaps[0], image_column)!r} ({len(gaps)} of "
            f"{len(named)} rows have none), so a split could cut a patient in two; fill the column",
        )
    return patients


def read_found_list(path: Path, keys: set[str]) -> LabelList:
    """Read a CSV or XLSX whose columns are known by their content, whatever the header says.

    The label column is the one with most class names, the image column the one with most images.
    Arguments as `read_named_list`.

    Raises:
        InputError: E-DATA-LABEL, where the table cannot be read or has no such columns.
        EngineError: E-EXTRA-MISSING, for XLSX without openpyxl.
    """
    rows = read_rows(path)
    label_column = _fullest_column(rows, lambda cell: cell.casefold() in LABELS)
    image_column = _fullest_column(rows, lambda cell: image_key(cell) in keys)
    if label_column is None or image_column is None:
        raise InputError(
            "E-DATA-LABEL",
            f"{path} has no column of image names or none of Benign/Malignant; "
            "give it one row an image with both",
        )
    first = rows[0]
    has_header = (
        _cell(first, label_column).casefold() not in LABELS
        and image_key(_cell(first, image_column)) not in keys
    )
    return _labels(path, rows[1:] if has_header else rows, image_column, label_column, keys)


def _cell(row: Sequence[str], column: int) -> str:
    return row[column] if column < len(row) else ""


def _fullest_column(rows: Rows, fits: Callable[[str], bool]) -> int | None:
    counts: dict[int, int] = {}
    for row in rows:
        for column, cell in enumerate(row):
            if fits(cell):
                counts[column] = counts.get(column, 0) + 1
    return max(counts, key=lambda column: (counts[column], -column), default=None)


def _labels(
    path: Path, rows: Rows, image_column: int, label_column: int, keys: set[str]
) -> LabelList:
    labels: dict[str, str] = {}
    faults = []
    for row in rows:
        name, label = _cell(row, image_column), _cell(row, label_column).casefold()
        key = image_key(name)
        if not any(row):
            continue
        if key not in keys:
            faults.append(f"{path} lists {name!r}, which has no image")
        elif label not in LABELS:
            faults.append(f"{path} gives {name!r} the label {label!r}, not {'/'.join(LABELS)}")
        elif labels.setdefault(key, label) != label:
            faults.append(f"{path} gives {name!r} two labels, {labels[key]} and {label}")
    return LabelList(labels, tuple(faults))


def read_rows(path: Path) -> Rows:
    """Return the cells of a CSV or XLSX as stripped text.

    Raises InputError: E-DATA-LABEL. EngineError: E-EXTRA-MISSING, for XLSX without openpyxl.
    """
    try:
        size = path.stat().st_size
        if size > MAX_LIST_BYTES:
            raise InputError(
                "E-DATA-LABEL", f"{path} has {size} bytes, over {MAX_LIST_BYTES}; is it a list?"
            )
        read = _xlsx_rows if path.suffix.lower() == ".xlsx" else _csv_rows
        rows = [[_text(cell) for cell in row] for row in itertools.islice(read(path), MAX_ROWS + 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            "E-DATA-LABEL", f"cannot read {path} ({error}); save it as UTF-8 CSV"
        ) from error
    if len(rows) > MAX_ROWS:
        raise InputError("E-DATA-LABEL", f"{path} has more than {MAX_ROWS} rows; shorten it")
    return rows


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list that say something: not empty, and not behind a #.

    Raises InputError: E-SPLIT-LIST.
    """
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise ValueError(f"over {MAX_LIST_BYTES} bytes")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            "E-SPLIT-LIST", f"cannot read {path} ({error}); give UTF-8 text with an image a line"
        ) from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _text(cell: object) -> str:
    """Return a cell as text; a spreadsheet's 12.0 is the image 12."""
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _csv_rows(path: Path) -> Iterable[Sequence[object]]:
    text = path.read_text(encoding="utf-8-sig")
    head = text.partition("\n")[0]
    return csv.reader(io.StringIO(text), delimiter=max(",;\t", key=head.count))


def _xlsx_rows(path: Path) -> Iterable[Sequence[object]]:
    """Return the cells of the first sheet."""
    try:
        import openpyxl
    except ImportError as error:
        raise EngineError(
            "E-EXTRA-MISSING",
            f"reading {path.name} needs openpyxl; pip install 'edgeseg[xlsx]', or save it as CSV",
        ) from error
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > MAX_SHEET_BYTES:
            raise ValueError(f"{unpacked} bytes when unpacked, over {MAX_SHEET_BYTES}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions the list does not need
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            try:
                sheet = book.worksheets[0]
                return list(itertools.islice(sheet.iter_rows(values_only=True), MAX_ROWS + 1))
            finally:
                book.close()
    except (zipfile.BadZipFile, KeyError, IndexError, ValueError, TypeError, SyntaxError) as error:
        raise InputError(
            "E-DATA-LABEL", f"cannot read {path} ({error}); save the list as CSV"
        ) from error
