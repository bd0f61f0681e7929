"""What ships with a student: its evidence, the picture of its failures, and its ranges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.bundle import open_bundle
from ...runtime.errors import InputError
from ...runtime.files import sha256_of_file
from ...runtime.paths import takes_paths
from ...runtime.progress import Progress
from ...runtime.session import session_of
from . import phantoms
from .parts import Folders, reader_of
from .sources import CheckpointSource

if TYPE_CHECKING:
    from ...benchmarks.report.evidence import Evidence


def calibrate_shipped(
    weights: CheckpointSource, data: Folders, images: int, progress: Progress
) -> str:
    """Return the record of ranges that ships with a student, as JSON.

    Args:
        weights: the checkpoint.
        data: roots of the data sets it was trained on; the train part of its split calibrates.
        images: most frames.
        progress: wraps the frames.
    """
    from ...export.calibration import calibrate
    from ...export.pipeline import load_trained, read_calibration_frames
    from ...kd.data.dataset import read_datasets
    from ...kd.data.split import read_split, samples_of

    trained = load_trained(weights.path)
    samples = samples_of(read_split(weights.split_file()), read_datasets(data), "train")
    frames = read_calibration_frames(
        [each.image for each in samples],
        images,
        reader_of(samples, trained.contract),
        labels=[each.label for each in samples],
    )
    master = trained.to_onnx()
    record = calibrate(trained.sha256, trained.contract, master, frames, progress=progress)
    return record.to_json()


@takes_paths
def gather_evidence(
    name: str,
    record: Path,
    measured: CheckpointSource,
    bundle: Path,
    weights: CheckpointSource,
    data: Folders,
    progress: Progress,
) -> tuple[Evidence, bytes]:
    """Gather what is known of a student that is to ship; return it with the PNG of its failures.

    Args:
        name: in `zoo.SHIPPED`.
        record: the JSON of a benchmark of `measured` in torch and of its INT8 bundle, test part.
        measured: the checkpoint trained on the train part of a split.
        bundle: the INT8 bundle of `measured`.
        weights: what ships: `measured` itself, or the same network trained on the whole data set.
        data: roots of its data sets.
        progress: wraps the long loops.

    Raises InputError: E-REPORT-SCHEMA, E-CARD-RECORD, E-CARD-WEIGHTS (the three do not belong
    together), those of `load_checkpoint` and `read_dataset`. Refused: E-EMPTY-MARKED, see
    `require_empty`; INT8 is that of `measured`.
    """
    from ...benchmarks.measure.accuracy import score_images
    from ...benchmarks.record import from_json
    from ...benchmarks.report.evidence import (
        SCHEMA,
        Evidence,
        figures_of,
        measured_rows,
        settings_of,
    )
    from ...benchmarks.report.model_card import draw_cases, worst_of
    from ...kd.checkpoint import load_checkpoint
    from ...kd.data.dataset import read_datasets
    from ...kd.data.split import read_split, samples_of
    from ...kd.start import in_short
    from .empty_frames import require_empty

    fp32, int8, split_sha256 = measured_rows(from_json(record.read_bytes()))
    trial, shipped = load_checkpoint(measured.path), load_checkpoint(weights.path)
    if trial.sha256 != fp32.artifact_sha256:
        raise InputError(
            "E-CARD-WEIGHTS", f"{record} did not measure {measured.path}; benchmark it again"
        )
    exported = open_bundle(bundle)
    origin = exported.provenance().checkpoint_sha256
    if (exported.sha256, origin) != (int8.artifact_sha256, trial.sha256):
        raise InputError(
            "E-CARD-WEIGHTS",
            f"{bundle} is not the INT8 bundle of {measured.path} that {record} measured; export "
            "and benchmark it again",
        )
    if (trial.model, trial.contract) != (shipped.model, shipped.contract):
        raise InputError(
            "E-CARD-WEIGHTS",
            f"{weights.path} is another network than the measured {measured.path}, or has another "
            "input; train both alike",
        )
    dataset = read_datasets(data)
    split = read_split(weights.split_file())
    images = [sample.image for sample in samples_of(split, dataset, "train")]
    if shipped.sha256 != trial.sha256 and len(images) != len(dataset.samples):
        raise InputError(
            "E-CARD-WEIGHTS",
            f"{weights.path} was trained on {len(images)} images, not on all "
            f"{len(dataset.samples)} of {dataset.where}; train on all of them, or ship the "
            "measured ones",
        )
    hashes = [sha256_of_file(image) for image in progress(images, "hashing files")]
    session = weights.open("torch", 0)
    require_empty({"FP32": session, "INT8": session_of(exported)}, progress)
    with phantoms.phantom_dataset(progress) as drawn:
        failures = worst_of(score_images(session.predict, drawn.samples, progress=progress))
        by_name = {sample.name: sample for sample in drawn.samples}
        worst = [by_name[score.name] for score in failures]
        picture = draw_cases([(each, session.predict(each.read_image())) for each in worst])
    evidence = Evidence(
        schema=SCHEMA,
        name=name,
        model=shipped.model,
        contract=shipped.contract,
        parameters=fp32.parameters,
        macs=fp32.macs,
        checkpoint_sha256=shipped.sha256,
        training=settings_of(
            {**in_short(shipped.provenance), "data": weights.training_data(shipped.provenance)}
        ),
        # A file that a data set holds twice is two images.
        trained_on=tuple(sorted([*hashes, *(weights.seen_before() - set(hashes))])),
        measured_training=settings_of(in_short(trial.provenance)),
        split_sha256=split_sha256,
        fp32=figures_of(fp32),
        int8=figures_of(int8),
        phantoms=phantoms.COUNT,
        phantom_seed=phantoms.SEED,
        failures=failures,
    )
    return evidence, picture
