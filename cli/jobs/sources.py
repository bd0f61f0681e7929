"""What a command can be pointed at: a bundle, a training run, a checkpoint, a shipped student."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...export.target import OPSET
from ...kd import zoo
from ...kd.config import STUDENT_FILE
from ...runtime.built import engine_files
from ...runtime.bundle import SPLIT_FILE, Bundle, open_bundle
from ...runtime.engines import ENGINES, available_threads, files_of, is_installed
from ...runtime.errors import InputError, Refused
from ...runtime.files import sha256_of_file
from ...runtime.image import read_image
from ...runtime.layout import Layout
from ...runtime.paths import takes_paths
from ...runtime.progress import Progress, quiet
from ...runtime.session import Session, first_installed, session_of
from ...runtime.store import SUFFIX

if TYPE_CHECKING:
    from ...benchmarks.measure.latency import Frame
    from ...benchmarks.measure.prediction import DevicePeaks
    from ...benchmarks.record import Proof
    from ...benchmarks.report.evidence import Evidence
    from ...benchmarks.run import Candidate
    from ...export.calibration import CalibrationSet
    from ...export.pipeline import Frames, Network, Retrain, Retrained
    from ...export.qdq import Rounding
    from ...kd.data.dataset import Dataset, Sample
    from ...kd.qat import TrainedRun

Folders = Sequence[Path]  # of data sets, each PATH or NAME=PATH, as `read_datasets` takes them
# What stands in for images where the user has none: drawn anew each time, always the same.
PHANTOMS = 160
PHANTOM_SEED = 0
TORCH_ENGINES = ("torch", "torch-cuda")  # of checkpoints; the second only if asked for by name
MAX_LAYOUT_BYTES = 1 << 16  # compared with the file size before anything is read
PHANTOM_SOURCE = "phantoms"  # as the record of a calibration names them
_VECTORS = ("benign", "malignant", "normal")  # phantoms that are golden inputs
# Of a manifest's evidence, as `benchmarks.record` names the fields
_PROOF = ("part", "frames", "trained_dice", "max_drop", "achieved", "kept_float")
_PROOF_STEP = (
    *("name", "max_abs", "flipped_share", "mask_dice"),
    *("dice_drop", "dice_drop_low", "dice_drop_high"),
)
_PHANTOM_FRACTIONS = (0.6, 0.4, 0.0)  # no test part: a gate over few frames would be a coin toss


@dataclass(frozen=True)
class Source:
    """A network on disk: a bundle's folder or a checkpoint's file, and the split it came with."""

    path: Path
    is_bundle: bool
    is_onnx: bool = False  # from elsewhere: nothing is known of its training

    @property
    def folder(self) -> Path:
        """The bundle, or the run that the checkpoint lies in."""
        return (self.path if self.is_bundle else self.path.parent).resolve()

    def split_file(self) -> Path:
        """Return the split that the network was trained with.

        Raises:
            InputError: E-SPLIT-MISSING.
            Refused: E-SPLIT-HASH if the file beside a checkpoint is not the one of its training (a
                bundle's was verified with the bundle).
        """
        file = self.folder / SPLIT_FILE
        if not file.is_file():
            raise InputError(
                "E-SPLIT-MISSING",
                f"{self.path} comes without {SPLIT_FILE}, so its parts are unknown; "
                "use --part all for data that it never saw, --part unseen for a shipped student",
            )
        if not self.is_bundle:
            from ...kd.checkpoint import load_checkpoint

            trained_with = load_checkpoint(self.path).provenance.get("split_sha256")
            if sha256_of_file(file) != trained_with:
                raise Refused(
                    "E-SPLIT-HASH",
                    f"{file} is not the split that {self.path} was trained with; its test part may "
                    "have been trained on, so put the original back",
                )
        return file

    def trained_on(self) -> frozenset[str] | None:
        """Return the SHA-256 of every image that a shipped student has seen; None for a run's.

        A checkpoint is shipped if its evidence lies beside it; a bundle of it has the list in its
        manifest.

        Raises Refused: E-EVIDENCE-READ, E-EVIDENCE-HASH, E-MANIFEST-FIELD, those of `open_bundle`.
        """
        if self.is_bundle:
            listed = open_bundle(self.path).manifest.provenance.get("trained_on")
            if listed is None:
                return None
            if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
                raise Refused(
                    "E-MANIFEST-FIELD",
                    f"trained_on of {self.path} is no list of hashes; export the bundle again",
                )
            return frozenset(listed)
        if self.is_onnx or not zoo.evidence_file(self.path).is_file():
            return None
        from ...benchmarks.report.evidence import read_evidence

        return frozenset(read_evidence(zoo.evidence_file(self.path), self.path).trained_on)

    def training_data(self, provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what is known of each data set that a network was trained on.

        Args:
            provenance: of its checkpoint.

        Returns:
            As `kd.data.catalogue.describe_sets`; empty where no set is named.
        """
        from ...kd.data.catalogue import describe_sets

        shipped = self.folder == zoo.FOLDER.resolve() and not self.is_onnx
        return describe_sets(provenance.get("data", [zoo.UNNAMED_SET] if shipped else []))

    def open(self, engine: str | None, threads: int) -> Session:
        """Open a session; a checkpoint runs in PyTorch (`TORCH_ENGINES`) and in no other engine."""
        if self.is_bundle:
            return session_of(open_bundle(self.path), engine=engine, threads=threads)
        if engine not in (None, *TORCH_ENGINES):
            raise InputError(
                "E-ENGINE-NOT-IN-BUNDLE",
                f"{self.path} is a checkpoint and runs in {' and '.join(TORCH_ENGINES)}, not in "
                f"{engine!r}; export it first",
            )
        from ...kd.checkpoint import load_checkpoint
        from ...kd.engine import TorchCudaEngine, TorchEngine

        loaded = load_checkpoint(self.path)
        if engine == "torch-cuda":
            return Session.over(TorchCudaEngine(loaded), loaded.contract)
        return Session.over(TorchEngine(loaded, threads or available_threads()), loaded.contract)


@takes_paths
def find_source(path: Path) -> Source:
    """Say what a path is; one that does not exist may be the name of a shipped student.

    Raises InputError: E-SOURCE if it is none of these, E-ZOO-WEIGHTS for a name without its files.
    """
    if str(path) in zoo.SHIPPED and not path.exists():
        return Source(zoo.find_weights(str(path)), is_bundle=False)
    if path.suffix == SUFFIX and path.is_file():
        raise InputError(
            "E-SOURCE",
            f"{path} is a packed bundle, which `edgeseg predict`, `selftest`, `stream`, `device` "
            "and `bundle` take, and no other command; unpack it with `edgeseg bundle unpack`",
        )
    if (path / "manifest.json").is_file() or (path / "SHA256SUMS").is_file():
        return Source(path, is_bundle=True)
    if path.suffix.lower() == ".onnx" and path.is_file():
        raise InputError("E-SOURCE", f"{path} is ONNX, which only `edgeseg export` takes")
    checkpoint = path / STUDENT_FILE if path.is_dir() else path
    if not checkpoint.is_file():
        raise InputError(
            "E-SOURCE",
            f"{path} is no bundle, no finished training run, no checkpoint and no shipped student "
            f"({', '.join(zoo.available_names()) or 'none in this installation'}); "
            "see `edgeseg train` and `edgeseg export`",
        )
    return Source(checkpoint, is_bundle=False)


@takes_paths
def checkpoint_of(path: Path) -> Source:
    """Return the checkpoint of a run, or the one named. Raises InputError (E-SOURCE)."""
    source = find_source(path)
    if source.is_bundle:
        raise InputError("E-SOURCE", f"{path} is a bundle already; name the run or its checkpoint")
    return source


@takes_paths
def load_exportable(
    path: Path, contract: Path | None, opset: int = OPSET
) -> tuple[Source, Network]:
    """Return what an export starts from: a checkpoint, or an ONNX from elsewhere.

    Args:
        path: a run, a checkpoint, the name of a shipped student, or an ONNX file.
        contract: JSON file with the input contract of an ONNX that does not carry it.
        opset: the highest that an ONNX may keep, see `Target.opset`.

    Raises InputError: E-SOURCE, E-CONTRACT, those of `load_checkpoint` and `read_onnx`.
    """
    from ...export.foreign import read_onnx
    from ...export.pipeline import load_trained

    if path.suffix.lower() == ".onnx" and path.is_file():
        return Source(path, is_bundle=False, is_onnx=True), read_onnx(path, contract, opset)
    if contract is not None:
        raise InputError("E-CONTRACT", f"{path} carries its input contract; leave --contract out")
    found = checkpoint_of(path)
    return found, load_trained(found.path)


@takes_paths
def read_layout(file: Path) -> Layout:
    """Read where the image is in a maker's frames; JSON as in a manifest, at most 64 KiB.

    Raises InputError: E-LAYOUT.
    """
    try:
        if file.stat().st_size > MAX_LAYOUT_BYTES:
            raise ValueError(f"over {MAX_LAYOUT_BYTES} bytes")
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            "E-LAYOUT", f"cannot read layout {file} ({error}); see docs/bundle.md"
        ) from error
    return Layout.from_dict(content)


def temperature_of(source: Source) -> float | None:
    """Return the temperature that `edgeseg tune` fitted; None where it was never called."""
    from .tuning import temperature_in

    if source.is_bundle:
        return temperature_in(open_bundle(source.path).manifest.provenance.get("training"))
    from ...kd.checkpoint import load_checkpoint

    return temperature_in(load_checkpoint(source.path).provenance)


def default_part(sources: Sequence[Source]) -> str:
    """Return "test", or "unseen" where a shipped student is among the sources."""
    return "test" if all(source.trained_on() is None for source in sources) else "unseen"


def leak_of(source: Source, part: str) -> str:
    """Return what must stand beside figures on a part of a source's own split; mostly nothing."""
    from ...kd.data.split import read_split

    return "" if part in ("unseen", "all") else read_split(source.split_file()).leak


def samples_for(
    source: Source, data: Folders, part: str, progress: Progress = quiet
) -> tuple[Sample, ...]:
    """Return the samples of a part for one source; see `common_samples`."""
    return common_samples([source], data, part, progress)


def common_samples(
    sources: Sequence[Source], data: Folders, part: str, progress: Progress = quiet
) -> tuple[Sample, ...]:
    """Return the samples of a part that is the same for all sources.

    Args:
        sources: at least one.
        data: roots of one data set or several (see `read_datasets`).
        part: "train", "val" or "test" of the sources' own split; "all" for every image; "unseen"
            for those that no shipped student among the sources was trained on.
        progress: shows the search for near-duplicates, which "all" and "unseen" need.

    Raises:
        InputError: E-SPLIT-MISSING (a part is asked for, but there is no split), E-SPLIT-EMPTY,
            E-PART-UNSEEN (no list tells what a source has seen), and those of `read_dataset` and
            `samples_of`.
        Refused: E-SPLIT-DIFFERS if the sources have different splits: what is the test part of one
            may have trained another; E-DATA-SEEN if a shipped student was trained on some of
            "all", or on everything; those of `Source.trained_on`.
    """
    from ...kd.data.dataset import read_datasets
    from ...kd.data.duplicates import with_groups
    from ...kd.data.split import read_split, samples_of

    dataset = read_datasets(data)
    if part in ("unseen", "all"):
        return with_groups(_untrained_samples(sources, dataset, part), progress=progress)
    first, *others = [(source, sha256_of_file(source.split_file())) for source in sources]
    for source, split in others:
        if split != first[1]:
            raise Refused(
                "E-SPLIT-DIFFERS",
                f"{source.path} and {first[0].path} have different splits; compare networks of "
                "one split, or use --part all on data that none of them saw",
            )
    split_file = sources[0].split_file()
    samples = samples_of(read_split(split_file), dataset, part)
    if not samples:
        raise InputError("E-SPLIT-EMPTY", f"the {part} part of {split_file} has no image")
    return samples


def _untrained_samples(
    sources: Sequence[Source], dataset: Dataset, part: str
) -> tuple[Sample, ...]:
    """Return the samples that no shipped student has seen; for "all" that must be all of them."""
    seen: set[str] = set()
    for source in sources:
        trained_on = source.trained_on()
        if trained_on is None and part == "unseen":
            raise InputError(
                "E-PART-UNSEEN",
                f"{source.path} has no list of the images it was trained on; use --part test for "
                "data of its split, --part all for data that it never saw",
            )
        seen |= trained_on or set()
    if not seen:
        return dataset.samples
    unseen = tuple(each for each in dataset.samples if sha256_of_file(each.image) not in seen)
    known = len(dataset.samples) - len(unseen)
    if known and (part == "all" or not unseen):
        mend = "score the others with --part unseen" if unseen else "score it on other data"
        raise Refused(
            "E-DATA-SEEN",
            f"the weights were trained on {known} of the {len(dataset.samples)} images in "
            f"{dataset.where}, so these cannot score them; {mend}",
        )
    return unseen


@dataclass(frozen=True)
class CalibrationRequest:
    """What the user wants INT8 ranges from; at most one of the first three."""

    # roots of data sets, none or more: their train part calibrates, their val part checks
    data: Folders = ()
    record: Path | None = None  # of an earlier calibration
    synthetic: bool = False  # phantoms
    images: int = 200  # most frames


def frames_for_export(
    source: Source,
    request: CalibrationRequest,
    *,
    needs_ranges: bool = True,
    progress: Progress = quiet,
) -> tuple[Frames, str]:
    """Read what an export needs, and say in one line what that is.

    The train part of the data calibrates and the val part checks. A run comes with its split and
    needs its own data. For a shipped student any data are split leak-safe with seed 0; without
    data the ranges that ship with it calibrate and phantoms check. Golden vectors are phantoms
    always: no patient's image travels in a bundle.

    Args:
        source: a checkpoint.
        request: where ranges come from.
        needs_ranges: False leaves the calibration out.
        progress: wraps the long loops.

    Raises:
        InputError: E-CALIB-MISSING (a run without data, a shipped student without ranges),
            E-CALIB-CHOICE, those of `samples_for`.
        Refused: E-CALIB-TEST (a record has frames that are not of the train part),
            E-CALIB-SYNTHETIC (a record was made from phantoms), those of
            `Source.trained_on` and `Source.split_file`.
    """
    from ...export.parity import CheckFrame
    from ...export.pipeline import Frames
    from ...kd.data.phantom import draw_phantom

    if request.synthetic and request.record is not None:
        raise InputError(
            "E-CALIB-CHOICE", "--ranges and --synthetic-calibration exclude each other; leave one"
        )
    parts = _parts_of(source, request.data, progress)
    with contextlib.ExitStack() as stack:
        drawn = None
        if parts is None or request.synthetic:
            drawn = _phantom_parts(stack.enter_context(phantom_dataset(progress)), progress)
        judged = parts or drawn
        assert judged is not None  # one of the two is there
        samples = judged.samples("val")
        note = f"checked on the {judged.checks_are} ({len(samples)} images)"
        calibration: CalibrationSet | Path | None = None
        if needs_ranges:
            calibration, how = _calibration_for(source, request, parts, drawn)
            note += f", {how}"
        checks = tuple(
            CheckFrame(each.read_image(), each.read_mask(), each.group) for each in samples
        )
    vectors = tuple(draw_phantom(label, 1, PHANTOM_SEED)[0] for label in _VECTORS)
    return Frames(calibration, checks, judged.checks_are, vectors), note


def retraining_of(source: Source, request: CalibrationRequest, epochs: int) -> Retrain:
    """Return the quantisation-aware training that an export of a run may need.

    Its train part is learnt from and its val part is scored; nothing is read before it is called.

    Args:
        source: the student of a run.
        request: names the data set of the run.
        epochs: >= 1.

    Raises:
        InputError: E-QAT-SOURCE (no run), E-QAT-DATA (no data), E-CALIB-CHOICE (an old record),
            those of `read_run`.
        Refused: those of `Source.trained_on` and `read_run`.
    """
    if source.is_onnx or source.trained_on() is not None:
        what = "ONNX" if source.is_onnx else "a shipped student"
        raise InputError(
            "E-QAT-SOURCE",
            f"{source.path} is {what}, and --qat trains the student of a run on; name a run of "
            "`edgeseg train`, or leave --qat out",
        )
    if not request.data:
        raise InputError(
            "E-QAT-DATA",
            f"--qat trains {source.path} on; name the data set of its run with --calib",
        )
    if request.record is not None:
        raise InputError(
            "E-CALIB-CHOICE",
            "--qat measures the new network on the frames that calibrate; leave --ranges out",
        )
    from ...kd.qat import read_run

    return partial(_retrain, source, request.data, read_run(source.path), epochs)


def _retrain(
    source: Source,
    data: Folders,
    run: TrainedRun,
    epochs: int,
    rounding: Rounding,
    progress: Progress,
) -> Retrained:
    from ...export.pipeline import Retrained, TrainedNetwork
    from ...export.to_onnx import module_of_node
    from ...kd.qat import Quantisation, fine_tune_quantised, load_parts

    quantisation = Quantisation(
        tuple(module_of_node(name) for name in rounding.convolutions),
        rounding.weight_bits,
        rounding.image,
        {module_of_node(name): grid for name, grid in rounding.outputs.items()},
    )
    samples = {part: samples_for(source, data, part) for part in ("train", "val")}
    frames = load_parts(run, samples, progress)
    tuned = fine_tune_quantised(run, quantisation, frames, epochs=epochs, progress=progress)
    network = TrainedNetwork(
        tuned.model, tuned.network, tuned.contract, tuned.sha256, tuned.provenance
    )
    return Retrained(network, tuned.provenance["qat"])


@dataclass(frozen=True)
class _Parts:
    """A data set in parts."""

    samples: Callable[[str], Sequence[Sample]]  # of a part
    origin: Mapping[str, Any]  # of frames of its train part, for the record
    checks_are: str  # what its val part is, for the manifest


def _phantom_parts(phantoms: Dataset, progress: Progress) -> _Parts:
    from ...kd.data.split import make_split, samples_of

    split = make_split(phantoms, seed=0, fractions=_PHANTOM_FRACTIONS, progress=progress)
    return _Parts(
        partial(samples_of, split, phantoms),
        {"source": PHANTOM_SOURCE, "seed": PHANTOM_SEED, "count": PHANTOMS, "part": "train"},
        f"val part of {PHANTOMS} phantoms, seed {PHANTOM_SEED}",
    )


def _parts_of(source: Source, data: Folders, progress: Progress) -> _Parts | None:
    """Return the parts of the user's data; None where a shipped student comes without."""
    from ...export.pipeline import RUN_SPLIT
    from ...kd.data.dataset import read_datasets
    from ...kd.data.split import make_split, samples_of

    if not data and source.trained_on() is None:
        what = "images with masks" if source.is_onnx else "the data set of its run"
        raise InputError(
            "E-CALIB-MISSING",
            f"{source.path} needs {what}; name them with --calib (only a shipped student does "
            "without)",
        )
    if not data:
        return None
    if source.trained_on() is None and not source.is_onnx:
        return _Parts(partial(samples_for, source, data), RUN_SPLIT, "val")
    dataset = read_datasets(data)
    split = make_split(dataset, seed=0, progress=progress)
    return _Parts(
        partial(samples_of, split, dataset),
        {"source": "new split of --calib", "split_seed": 0, "part": "train"},
        "val part of a new split of the --calib data, seed 0",
    )


def _calibration_for(
    source: Source, request: CalibrationRequest, parts: _Parts | None, drawn: _Parts | None
) -> tuple[CalibrationSet | Path, str]:
    """Return frames or the record of an earlier calibration, and a few words on it."""
    from ...export.calibration import parse_calibration
    from ...export.pipeline import read_calibration_frames

    if request.record is not None:
        record = parse_calibration(request.record)
        if record.origin.get("source") == PHANTOM_SOURCE:
            raise Refused(
                "E-CALIB-SYNTHETIC",
                f"{request.record} was made from phantoms; calibrate on real images with --calib, "
                "or say --synthetic-calibration in its place",
            )
        if source.trained_on() is None and not source.is_onnx:
            _require_train_part(request.record, record.frames_sha256, source.split_file())
        elif parts is not None:
            _require_others(request.record, record.frames_sha256, parts.samples("val"))
        return request.record, f"calibrated with {request.record}"
    chosen = drawn if request.synthetic else parts
    if chosen is None:
        shipped = zoo.calibration_file(source.path)
        if not shipped.is_file():
            raise InputError(
                "E-CALIB-MISSING",
                f"{source.path} comes without ranges; name real images with --calib, or take "
                "phantoms with --synthetic-calibration",
            )
        return shipped, "calibrated with the ranges that ship with the student"
    samples = chosen.samples("train")
    frames = read_calibration_frames(
        [each.image for each in samples],
        request.images,
        read_image,
        origin=chosen.origin,
        labels=[each.label for each in samples],
    )
    kind = "phantoms" if chosen is drawn else "images of the train part"
    if chosen is drawn:  # their files go before the export begins
        frames = replace(frames, frames=tuple(frames.frames))
    return frames, f"calibrated on {len(frames.frames)} {kind}"


def _require_train_part(record: Path, frames: Sequence[str], split_file: Path) -> None:
    """Refuse a record with frames that the split tests or validates on, or their near-duplicates.

    A near-duplicate shares its group's part, so the part of the frame itself tells.
    """
    from ...kd.data.split import read_split

    part_of = {entry.image_sha256: entry.part for entry in read_split(split_file).entries}
    for frame in frames:
        part = part_of.get(frame)
        if part != "train":
            where = f"in the {part} part" if part else "in no part"
            raise Refused(
                "E-CALIB-TEST",
                f"{record} was calibrated on a frame (SHA-256 {frame[:12]}…) that is {where} of "
                f"{split_file}; calibrate on its train part with --calib",
            )


def _require_others(record: Path, frames: Collection[str], checks: Sequence[Sample]) -> None:
    """Refuse a record that was calibrated on frames which are to judge it."""
    for sample in checks:
        if sha256_of_file(sample.image) in frames:
            raise Refused(
                "E-CALIB-TEST",
                f"{record} was calibrated on {sample.image}, which is to judge it; calibrate on "
                "the train part with --calib",
            )


def calibrate_shipped(weights: Source, data: Folders, images: int, progress: Progress) -> str:
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
        read_image,
        labels=[each.label for each in samples],
    )
    master = trained.to_onnx()
    record = calibrate(trained.sha256, trained.contract, master, frames, progress=progress)
    return record.to_json()


@contextlib.contextmanager
def phantom_dataset(progress: Progress = quiet) -> Iterator[Dataset]:
    """Draw `PHANTOMS` phantoms of `PHANTOM_SEED` into a folder that goes with the context."""
    from ...kd.data.phantom import write_phantoms

    with tempfile.TemporaryDirectory(prefix="edgeseg-") as folder:
        yield write_phantoms(
            Path(folder) / "phantoms", count=PHANTOMS, seed=PHANTOM_SEED, progress=progress
        )


@takes_paths
def gather_evidence(
    name: str,
    record: Path,
    measured: Source,
    bundle: Path,
    weights: Source,
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
    from .empty_frames import require_empty

    fp32, int8, split_sha256 = measured_rows(from_json(record.read_bytes()))
    trial, shipped = load_checkpoint(measured.path), load_checkpoint(weights.path)
    if trial.sha256 != fp32.artifact_sha256:
        raise InputError(
            "E-CARD-WEIGHTS", f"{record} did not measure {measured.path}; benchmark it again"
        )
    exported = open_bundle(bundle)
    origin = exported.manifest.provenance.get("checkpoint_sha256")
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
    with phantom_dataset(progress) as phantoms:
        failures = worst_of(score_images(session.predict, phantoms.samples, progress=progress))
        by_name = {sample.name: sample for sample in phantoms.samples}
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
            {**shipped.provenance, "data": weights.training_data(shipped.provenance)}
        ),
        trained_on=tuple(sorted(hashes)),
        measured_training=settings_of(trial.provenance),
        split_sha256=split_sha256,
        fp32=figures_of(fp32),
        int8=figures_of(int8),
        phantoms=PHANTOMS,
        phantom_seed=PHANTOM_SEED,
        failures=failures,
    )
    return evidence, picture


def candidates_of(
    sources: Sequence[Source], engines: Sequence[str], threads: int
) -> tuple[Candidate, ...]:
    """Open everything that a benchmark compares: each source in each of its engines.

    Args:
        sources: bundles and checkpoints, the reference first.
        engines: those wanted; empty takes every engine that is installed.
        threads: for each engine.

    Raises:
        InputError: E-ENGINE-NONE (a source has none of `engines`, or an engine no source), and
            those of `Source.open`.
        EngineError: E-EXTRA-MISSING.
    """
    found: list[Candidate] = []
    parents: list[str] = []  # tells apart sources of one name
    for source in sources:
        candidates = (_of_bundle if source.is_bundle else _of_checkpoint)(source, engines, threads)
        if not candidates:
            raise InputError(
                "E-ENGINE-NONE",
                f"{source.path} runs in none of {', '.join(engines)}; name one of "
                f"{', '.join(_engines_of(source))}, or leave --engine out",
            )
        found += candidates
        parents += [source.folder.parent.name] * len(candidates)
    unused = set(engines) - {candidate.kind for candidate in found}
    if unused:
        known = dict.fromkeys(name for source in sources for name in _engines_of(source))
        raise InputError(
            "E-ENGINE-NONE",
            f"no source runs in {', '.join(sorted(unused))}; name some of {', '.join(known)}",
        )
    names = Counter(candidate.name for candidate in found)
    return tuple(
        replace(each, name=f"{parent}/{each.name}") if names[each.name] > 1 else each
        for each, parent in zip(found, parents, strict=True)
    )


def _engines_of(source: Source) -> list[str]:
    """Return the engines that a source has files for, whether they are installed or not."""
    if not source.is_bundle:
        return list(TORCH_ENGINES)
    models = open_bundle(source.path).manifest.models
    return list(dict.fromkeys((*models, *(name for name in ENGINES if files_of(name) in models))))


def _of_bundle(source: Source, engines: Sequence[str], threads: int) -> list[Candidate]:
    from ...benchmarks.run import Candidate

    bundle = open_bundle(source.path)
    manifest = bundle.manifest
    threads = threads or available_threads()
    if engines:
        known = dict.fromkeys((*manifest.models, *ENGINES))  # also those of another device
        wanted = [name for name in known if name in engines and files_of(name) in manifest.models]
    else:
        first_installed(bundle)  # says what to install where none is
        wanted = [name for name in manifest.models if name in ENGINES and is_installed(name)]
    onnx, proof = _onnx_of(bundle), _proof_of(bundle)
    # A session first: it says what to install or to build where its files are not there.
    sessions = {engine: session_of(bundle, engine=engine, threads=threads) for engine in wanted}
    files = {engine: engine_files(bundle, engine) for engine in wanted}
    return [
        Candidate(
            name=f"{source.folder.name} · {engine}",
            kind=engine,
            precision=manifest.precision,
            session=sessions[engine],
            artifact_sha256=bundle.sha256,
            file_bytes=sum(map(len, files[engine].values())),
            complexity=_complexity_of(bundle, files_of(engine)),
            probe=_probe_command(source, engine, threads),
            open_another=partial(_another, bundle, engine),
            files=files[engine],
            max_batch=int(manifest.batch["max"]),
            onnx=onnx,
            proof=proof,
        )
        for engine in wanted
    ]


def _another(bundle: Bundle, engine: str, threads: int) -> Session:
    return session_of(bundle, engine=engine, threads=threads)


def train_frames(source: Source, data: Folders, count: int) -> tuple[Frame, ...]:
    """Return frames of the train part of a run, uint8 [H, W] each, spread over its images."""
    samples = samples_for(source, data, "train")
    return tuple(each.read_image() for each in samples[:: max(1, len(samples) // count)][:count])


def first_checkpoint(sources: Sequence[Source]) -> Source:
    """Return the first source that is no bundle. Raises InputError: E-RIVAL-SOURCE."""
    found = next((source for source in sources if not source.is_bundle), None)
    if found is None:
        raise InputError(
            "E-RIVAL-SOURCE",
            "rivals are made from a checkpoint; name a run, a checkpoint or a shipped student too",
        )
    return found


def _onnx_of(bundle: Bundle) -> bytes | None:
    """Return the ONNX that the files of every engine were made from, where the bundle has it."""
    files = bundle.manifest.models.get("onnxruntime", ())
    return bundle.model_files("onnxruntime")[files[0]] if len(files) == 1 else None


def _proof_of(bundle: Bundle) -> Proof:
    from ...benchmarks.jsonform import value_from_json
    from ...benchmarks.record import Proof

    facts = bundle.manifest.evidence
    try:
        steps = [{key: step[key] for key in _PROOF_STEP} for step in facts["parity"]]
        return value_from_json(
            Proof, {**{key: facts[key] for key in _PROOF}, "steps": steps}, "evidence"
        )
    except (KeyError, TypeError, InputError) as error:
        raise Refused(
            "E-MANIFEST-FIELD",
            f"{bundle.path} does not state what its export proved ({error}); export it again",
        ) from error


def jetson_devices() -> tuple[DevicePeaks, ...]:
    """Return the peaks of every Jetson module, whichever its JetPack."""
    from ...benchmarks.measure.prediction import DevicePeaks
    from ...export.target import targets

    modules = {name.partition("@")[0]: target for name, target in targets().items() if "@" in name}
    return tuple(
        DevicePeaks(module, target.bandwidth_gb_s, target.fp16_tflops, target.int8_tops)
        for module, target in modules.items()
    )


def _complexity_of(bundle: Bundle, engine: str) -> dict[str, int]:
    facts = bundle.manifest.complexity
    try:
        return {
            "parameters": int(facts["parameters"]),
            "macs": int(facts["macs"]),
            "weights_bytes": int(facts["weights_bytes"][engine]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise Refused(
            "E-MANIFEST-FIELD",
            f"{bundle.path} does not state its complexity ({error}); export the bundle again",
        ) from error


def _of_checkpoint(source: Source, engines: Sequence[str], threads: int) -> list[Candidate]:
    wanted = [name for name in TORCH_ENGINES if name in (engines or TORCH_ENGINES[:1])]
    if not wanted:
        return []
    threads = threads or available_threads()
    from ...benchmarks.run import ANY_BATCH, Candidate
    from ...kd.checkpoint import load_checkpoint
    from ...kd.models import complexity_of

    loaded = load_checkpoint(source.path)
    return [
        Candidate(
            name=f"{source.folder.name}/{source.path.stem} · {engine}",
            kind=engine,
            precision="fp32",
            session=source.open(engine, threads),
            artifact_sha256=loaded.sha256,
            file_bytes=source.path.stat().st_size,
            complexity=complexity_of(loaded.network, loaded.contract),
            probe=_probe_command(source, engine, threads),
            open_another=partial(_another_torch, source, engine, threads),
            max_batch=ANY_BATCH,
        )
        for engine in wanted
    ]


def _another_torch(source: Source, engine: str, threads: int, each: int) -> Session:
    """Open it with the threads of the process, which PyTorch has no others than."""
    return source.open(engine, threads)


def _probe_command(source: Source, engine: str, threads: int) -> tuple[str, ...]:
    return (
        *(sys.executable, "-m", "edgeseg", "probe", str(source.path.resolve())),
        *("--engine", engine, "--threads", str(threads)),
    )
