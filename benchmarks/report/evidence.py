"""The evidence of a shipped student: its figures, and the images its weights have seen.

The figures are of a network trained on the train part of a split and measured on the test part. The
weights that ship are either that network, or the same one trained on the whole data set: then no
image of it can score them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.contract import InputContract
from ...runtime.errors import InputError, Refused
from ...runtime.files import sha256_of_file
from ..formatting import significant, text_table
from ..jsonform import json_from_value, value_from_json
from ..measure.accuracy import Accuracy, ImageScore
from ..record import BenchmarkRecord, Row
from .wording import mib, with_interval

SCHEMA = "edgeseg.evidence/2"
DATA_KEY = "data"  # in `Evidence.training`: the data sets, as JSON
MAX_EVIDENCE_BYTES = 16 << 20  # compared with the file size before anything is read


@dataclass(frozen=True)
class Measured:
    """What was measured of one form of the network."""

    engine: str
    precision: str  # "fp32" or "int8"
    artifact_sha256: str  # of the measured checkpoint or bundle
    file_bytes: int  # of its model files alone
    accuracy: Accuracy
    calibration_error: float  # see `edgeseg.benchmarks.measure.accuracy.calibration_error`


@dataclass(frozen=True)
class Evidence:
    """What is known of a shipped student; every value is measured or read from a file."""

    schema: str
    name: str  # of the student
    model: str  # of the network
    contract: InputContract
    parameters: int
    macs: int  # of one image at the contract's size
    checkpoint_sha256: str  # of the weights that ship
    training: Mapping[str, str]  # settings of the weights that ship
    trained_on: tuple[str, ...]  # SHA-256 of the image files, sorted
    measured_training: Mapping[str, str]  # settings of the network that was measured
    split_sha256: str  # of the split whose train part it saw and whose test part scores it
    fp32: Measured  # in PyTorch
    int8: Measured  # in OpenVINO
    phantoms: int  # drawn and answered with the weights that ship
    phantom_seed: int
    failures: tuple[ImageScore, ...]  # the worst of them

    @property
    def is_measured(self) -> bool:
        """Whether the weights that ship are those that were measured."""
        return self.checkpoint_sha256 == self.fp32.artifact_sha256

    @property
    def data(self) -> list[dict[str, Any]]:
        """What is known of each data set of the weights that ship, as in a bundle's manifest.

        Empty where the evidence is from before they were named.
        Raises Refused: E-EVIDENCE-READ, for anything but a list of named sets.
        """
        try:
            sets = json.loads(self.training.get(DATA_KEY, "[]"))
            if all(isinstance(each["name"], str) for each in sets):
                return list(sets)
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise Refused(
            "E-EVIDENCE-READ",
            f"the evidence of {self.name} does not name its data sets; install this release again",
        )


def settings_of(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return a checkpoint's provenance as flat text, nested names joined by dots."""
    flat: dict[str, str] = {}
    for key, value in provenance.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": text for name, text in settings_of(value).items()}
        else:
            flat[key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def measured_rows(record: BenchmarkRecord) -> tuple[Row, Row, str]:
    """Return the rows a card shows, PyTorch in FP32 and OpenVINO in INT8, and their split's hash.

    Raises InputError (E-CARD-RECORD) unless the record is of the test part of a split, has lesions,
    and has exactly one of each row, of one network.
    """
    if record.part != "test" or record.split_sha256 is None:
        raise InputError(
            "E-CARD-RECORD",
            f"the record is of the {record.part} part; a card needs the test part of a split",
        )
    fp32, int8 = (
        [row for row in record.rows if (row.kind, row.precision) == form and _has_lesions(row)]
        for form in (("torch", "fp32"), ("openvino", "int8"))
    )
    if not (len(fp32) == len(int8) == 1 and fp32[0].macs == int8[0].macs):
        raise InputError(
            "E-CARD-RECORD",
            "the record has not one row each of torch fp32 and openvino int8 of one network, on "
            "lesions; benchmark the run and its INT8 bundle",
        )
    return fp32[0], int8[0], record.split_sha256


def _has_lesions(row: Row) -> bool:
    return row.accuracy is not None and row.accuracy.lesions.images > 0


def figures_of(row: Row) -> Measured:
    """Return what the evidence keeps of a row that was scored."""
    if row.accuracy is None:
        raise ValueError(f"{row.name} was not scored")
    return Measured(
        engine=row.kind,
        precision=row.precision,
        artifact_sha256=row.artifact_sha256,
        file_bytes=row.file_bytes,
        accuracy=row.accuracy,
        calibration_error=row.calibration_error,
    )


def evidence_to_json(evidence: Evidence) -> str:
    """Return the evidence as JSON text; an undefined number is null."""
    return json.dumps(json_from_value(evidence), indent=1, allow_nan=False) + "\n"


def read_evidence(path: Path, checkpoint: Path) -> Evidence:
    """Read the evidence of a checkpoint.

    Raises Refused: E-EVIDENCE-READ (not what `evidence_to_json` writes), E-EVIDENCE-HASH (of other
    weights).
    """
    try:
        if path.stat().st_size > MAX_EVIDENCE_BYTES:
            raise ValueError(f"over {MAX_EVIDENCE_BYTES} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise ValueError(f"this version reads schema {SCHEMA!r}")
        evidence = value_from_json(Evidence, content, "evidence")
    except (OSError, ValueError, RecursionError, InputError) as error:
        raise Refused(
            "E-EVIDENCE-READ", f"cannot use {path} ({error}); install this release again"
        ) from error
    if sha256_of_file(checkpoint) != evidence.checkpoint_sha256:
        raise Refused(
            "E-EVIDENCE-HASH",
            f"{checkpoint} is not what {path} was written for; install this release again",
        )
    return evidence


def render_students(students: Sequence[Evidence], summaries: Mapping[str, str]) -> str:
    """Return a table of the students with the figures of both forms; summaries are by name."""
    header = ["student", "network", "form", "input px", "parameters M", "MACs G", "file MiB"]
    header += ["Dice (95 %)", "IoU (95 %)"]
    rows = [
        [
            each.name,
            each.model,
            f"{form.engine} {form.precision}",
            f"{each.contract.width}×{each.contract.height}",
            significant(each.parameters / 1e6),
            significant(each.macs / 1e9),
            significant(mib(form.file_bytes)),
            *(with_interval(form.accuracy.lesions.per_image[metric]) for metric in ("dice", "iou")),
        ]
        for each in students
        for form in (each.fp32, each.int8)
    ]
    notes = [
        f"{each.name}: {summaries[each.name]}. Means over {each.fp32.accuracy.lesions.images} "
        f"images with a lesion, test part of split {each.split_sha256[:12]}, by "
        + (
            f"these weights, trained on its train part of {len(each.trained_on)} images."
            if each.is_measured
            else "the same network trained on its train part alone; the weights that ship were "
            f"trained on all {len(each.trained_on)} images of the data set."
        )
        for each in students
    ]
    return "\n".join([text_table(header, rows), "", *notes])
