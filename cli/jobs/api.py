"""What `import edgeseg` offers: the work of the commands as functions, which the commands call.

Paths may be str. A data set is PATH or NAME=PATH; where data are taken, one or a sequence of them.
`progress` wraps long loops (`runtime.progress.Progress`); left out, it shows a bar of tqdm, in a
notebook one of its widgets. Errors are those that the commands print: `EdgesegError`, with a code,
what is wrong, where, and how to mend it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...runtime.errors import InputError
from ...runtime.files import sha256_of_file
from ...runtime.paths import takes_paths
from .parts import common_samples, default_part, leak_of, samples_for, train_frames
from .sources import OnnxSource, checkpoint_of, find_source, load_exportable

if TYPE_CHECKING:
    from pandas import DataFrame

    from ...benchmarks.measure.accuracy import Accuracy, ImageScore
    from ...benchmarks.measure.by_set import SetAccuracy
    from ...benchmarks.measure.froc import SetCurve
    from ...benchmarks.record import BenchmarkRecord, Settings
    from ...export.pipeline import Exported
    from ...export.plan import Plan
    from ...runtime.bundle import Bundle
    from ...runtime.layout import Layout
    from ...runtime.progress import Progress
    from ...runtime.session import Session

__all__ = ["benchmark", "evaluate", "export", "load", "plan", "train"]

T = TypeVar("T")


def _bars(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    from tqdm.auto import tqdm

    return iter(tqdm(items, desc=label, total=total))


# --- one network ---------------------------------------------------------------------------------


@takes_paths
def load(source: Path, *, engine: str | None = None, threads: int = 0) -> Session:
    """Open a network for prediction.

    Args:
        source: a bundle, a run, a checkpoint or the name of a shipped student.
        engine: None takes the first that is installed.
        threads: of the engine; 0 for all cores.

    Raises: InputError (E-SOURCE), those of `ModelSource.open`.
    """
    return find_source(source).open(engine, threads)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What a network scores on a part of data sets."""

    source: str
    part: str
    accuracy: Accuracy
    sets: tuple[SetAccuracy, ...]  # each data set, then all
    curves: tuple[SetCurve, ...]  # both errors over the threshold
    calibration_error: float
    calibrated_error: float  # with the network's temperature; NaN without one
    temperature: float | None
    leak: str  # what must stand beside figures of a split that is not leak-safe; mostly ""
    scores: tuple[ImageScore, ...]  # of every image
    session: Session

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON takes them."""
        from ...benchmarks.jsonform import json_from_value

        calibration = {
            "temperature": self.temperature,
            "calibration_error": self.calibration_error,
            "calibrated_error": self.calibrated_error,
        }
        return {
            **self.accuracy.to_dict(),
            "sets": json_from_value(self.sets),
            "leak": self.leak,
            "curves": json_from_value(self.curves),
            **json_from_value(calibration),
        }

    def to_text(self) -> str:
        """Return the figures for a terminal."""
        from ...benchmarks.measure.accuracy import render_accuracy
        from ...benchmarks.measure.by_set import render_by_set
        from ...benchmarks.measure.froc import render_curves

        told = f"{self.calibration_error:.4f}"
        if self.temperature is not None:
            told += f", {self.calibrated_error:.4f} with its temperature of {self.temperature:.3f}"
        engine = self.session.engine.name
        lines = [
            f"{self.source} in {engine}, {self.part} part, {len(self.scores)} images",
            render_accuracy(self.accuracy),
            render_by_set(self.sets),
        ]
        if self.curves:  # of several classes there are none
            lines.append(render_curves(self.curves, self.session.contract))
            lines.append(f"Expected calibration error: {told}.")
        return "\n".join([*lines, *([f"Not leak-safe: {self.leak}."] if self.leak else [])])

    __repr__ = to_text  # what a notebook shows


@takes_paths
def evaluate(
    source: Path,
    data: Path | Sequence[Path],
    *,
    part: str | None = None,
    engine: str | None = None,
    threads: int = 0,
    progress: Progress = _bars,
) -> Evaluation:
    """Score a network on a part of data sets.

    Args:
        source: see `load`.
        data: data sets.
        part: "train", "val" or "test" of the network's own split, "unseen" or "all"; None takes
            "test", for a shipped student "unseen".
        engine: see `load`.
        threads: see `load`.
        progress: shows how far it is.

    Raises: those of `parts.common_samples` and `ModelSource.open`.
    """
    from ...benchmarks.measure.accuracy import summarise
    from ...benchmarks.measure.by_set import accuracy_by_set
    from ...benchmarks.measure.froc import score_with_curves

    found = find_source(source)
    part = part or default_part([found])
    cases = samples_for(found, _sets(data), part, progress)
    session = found.open(engine, threads)
    temperature = found.temperature()
    scored = score_with_curves(session, cases, temperature=temperature, progress=progress)
    return Evaluation(
        source=str(source),
        part=part,
        accuracy=summarise(scored.scores),
        sets=accuracy_by_set(scored.scores, {case.name: case.source for case in cases}),
        curves=scored.curves,
        calibration_error=scored.calibration_error,
        calibrated_error=scored.calibrated_error,
        temperature=temperature,
        leak=leak_of(found, part),
        scores=scored.scores,
        session=session,
    )


# --- training ------------------------------------------------------------------------------------


@takes_paths
def train(
    data: Path | Sequence[Path],
    out: Path,
    *,
    recipe: str | None = None,
    split: Path | None = None,
    resume: bool = False,
    teachers: Path | None = None,
    teacher_checkpoints: Sequence[Path] = (),
    encoder_weights: Path | None = None,
    start: Path | None = None,
    device: str = "auto",
    note: Callable[[str], object] = lambda text: None,
    progress: Progress = _bars,
    **settings: Any,
) -> Path:
    """Train teachers and the student that they teach; see `kd.train.train`.

    Args:
        data: data sets.
        out: folder of the run.
        recipe: settings to start from, a key of `kd.config.RECIPES`; None: the defaults, or those
            of the run that is resumed.
        split: a split file; None takes the parts that the data come in, or makes a leak-safe split.
        resume: continue the run in `out`.
        teachers: see `kd.train.train`, as the next three.
        teacher_checkpoints: see there.
        encoder_weights: see there.
        start: what the student is trained on from: a run, its checkpoint, or the name of a student
            that ships.
        device: "auto", "cpu" or "cuda".
        note: takes a line that belongs beside the figures of this run.
        progress: shows how far it is.
        settings: fields of `kd.config.TrainConfig`, in place of the recipe's.

    Returns:
        The student's checkpoint.

    Raises: InputError (E-CONFIG for an unknown setting, E-MODEL-MODULE for a network of the run
        that is resumed, which a function makes that is neither named here nor allowed), those of
        `kd.train.train` and, of `start`, of `checkpoint_of` and `CheckpointSource.start`.
    """
    from ...kd.config import TrainConfig, find_recipe
    from ...kd.data.dataset import read_datasets
    from ...kd.data.split import read_split
    from ...kd.modules import require_allowed
    from ...kd.train import read_config
    from ...kd.train import train as run_training

    known = [field.name for field in fields(TrainConfig)]
    if unknown := sorted(set(settings) - set(known)):
        raise InputError(
            "E-CONFIG", f"no setting is called {unknown[0]!r}; choose of {', '.join(known)}"
        )
    base = find_recipe(recipe) if recipe else read_config(out) if resume else TrainConfig()
    for name in ("student", "teacher"):
        if name not in settings:  # else the caller named it, and no file
            require_allowed(getattr(base, name), out)
    chosen = read_split(split) if split else None
    if chosen and chosen.leak:
        note(chosen.leak)
    return run_training(
        read_datasets(_sets(data)),
        out,
        replace(base, **settings),
        split=chosen,
        resume=resume,
        teachers=teachers,
        teacher_checkpoints=teacher_checkpoints,
        encoder_weights=encoder_weights,
        start=None if start is None else checkpoint_of(start).start(),
        device=device,
        progress=progress,
    )


# --- export --------------------------------------------------------------------------------------


def plan(
    target: str,
    precision: str = "auto",
    *,
    dla: int | None = None,
    calibration_cache: bool = False,
    qat: int | None = None,
    max_batch: int = 1,
    frame: tuple[int, int] | None = None,
) -> Plan:
    """Return what an export to a target would make; nothing is read or written.

    Args:
        target: a name of `edgeseg targets`.
        precision: "fp32", "fp16", "bf16", "int8", or "auto" for all that the target takes.
        dla: build for this DLA core of a Jetson.
        calibration_cache: INT8 from a TensorRT cache instead of Q/DQ.
        qat: epochs of quantisation-aware training of an INT8 that fails its gate.
        max_batch: above 1 the files take any batch from 1 to it.
        frame: width and height in px of frames that one more ONNX takes as they come.

    Raises: InputError (E-TARGET), those of `export.plan.make_plan`.
    """
    from ...export.plan import make_plan
    from ...export.target import find_target

    return make_plan(
        find_target(target),
        precision,
        dla_core=dla,
        cache=calibration_cache,
        retrains=qat is not None,
        max_batch=max_batch,
        frame=frame,
    )


@dataclass(frozen=True, repr=False)
class Export:
    """A bundle that was written, how it compares with the trained network, and by what."""

    source: str
    plan: Plan
    exported: Exported
    checks: str  # what the check frames are
    note: str  # what it was calibrated and checked on, for people

    @property
    def path(self) -> Path:
        """Folder of the bundle."""
        return self.exported.path

    @property
    def bundle(self) -> Bundle:
        """The bundle, verified as it is read."""
        from ...runtime.bundle import open_bundle

        return open_bundle(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON takes them."""
        return {"source": self.source, "checks": self.checks, **self.exported.to_dict()}

    def to_text(self) -> str:
        """Return the parity table and what stands beside it, for a terminal."""
        from ...export.summary import render_export

        told = render_export(self.exported, self.plan)
        return f"target: {self.plan.target.name}\n{self.note}\n{told}"

    __repr__ = to_text  # what a notebook shows


@takes_paths
def export(
    source: Path | None = None,
    *,
    target: str,
    precision: str = "auto",
    calib: Path | Sequence[Path] = (),
    calib_images: int = 200,
    ranges: Path | None = None,
    synthetic_calibration: bool = False,
    method: str = "entropy",
    max_drop: float = 0.005,
    max_hd95_rise: float = 1.0,
    qat: int | None = None,
    dla: int | None = None,
    calibration_cache: bool = False,
    max_batch: int = 1,
    frame: tuple[int, int] | None = None,
    layout: Layout | None = None,
    contract: Path | None = None,
    output: str | None = None,
    weights: Path | None = None,
    force_contract: bool = False,
    out: Path | None = None,
    progress: Progress = _bars,
) -> Export:
    """Write a bundle for a target, compared with the network at every step, or nothing.

    Args:
        source: a run, a checkpoint, the name of a shipped student, an ONNX from elsewhere, or
            ``package.module:function`` that makes a torch network; None is the student
            `kd.zoo.DEFAULT`.
        target: see `plan`, as `precision`, `dla`, `calibration_cache`, `qat`, `max_batch`, `frame`.
        precision: see `plan`.
        calib: data sets whose train part calibrates and whose val part checks.
        calib_images: most frames that calibrate.
        ranges: record of an earlier calibration of this network.
        synthetic_calibration: calibrate on phantoms.
        method: how a range is chosen, key of `export.ranges.METHODS`.
        max_drop: largest accepted loss of mean Dice, at the upper end of its 95 % interval.
        max_hd95_rise: largest accepted rise of mean HD95, px, at the lower end of its interval.
        qat: see `plan`.
        dla: see `plan`.
        calibration_cache: see `plan`.
        max_batch: see `plan`.
        frame: see `plan`.
        layout: where the image is in the maker's frames.
        contract: JSON with the input contract of an ONNX or torch network from elsewhere.
        output: name of the one that answers, of several.
        weights: state dict of a torch network from elsewhere.
        force_contract: also where the network's answers speak against its contract.
        out: folder of the bundle, new; None names it by source and target.
        progress: shows how far it is.

    Raises: those of `plan`, `load_exportable`, `frames_for_export` and
        `export.pipeline.export_bundle`.
    """
    from ...export.pipeline import Limits, export_bundle
    from ...export.plan import plan_for
    from ...kd import zoo
    from ...runtime.files import require_new
    from .calibrating import CalibrationRequest, frames_for_export, retraining_of

    chosen = plan(
        target,
        precision,
        dla=dla,
        calibration_cache=calibration_cache,
        qat=qat,
        max_batch=max_batch,
        frame=frame,
    )
    named = source or Path(zoo.DEFAULT)
    out = out or Path(f"{named.resolve().stem}-{chosen.target.name}".replace("@", "-"))
    require_new(out)
    found, network = load_exportable(named, contract, chosen.target.opset, output, weights)
    if isinstance(found, OnnxSource):
        chosen = plan_for(chosen, network.to_onnx(), network.quantised)
    trained_on = found.trained_on()
    request = CalibrationRequest(_sets(calib), ranges, synthetic_calibration, calib_images)
    retrain = retraining_of(found, request, qat) if qat else None
    frames, note = frames_for_export(
        found,
        request,
        network.contract,
        needs_ranges=chosen.needs_ranges,
        progress=progress,
    )
    exported = export_bundle(
        network,
        chosen,
        out,
        frames,
        split=found.run_split(),
        trained_on=trained_on or (),
        data=found.training_data(network.provenance),
        layout=layout,
        limits=Limits(max_drop, max_hd95_rise, method, force_contract),
        retrain=retrain,
        progress=progress,
    )
    if cut := network.provenance.get("cut_off"):
        note += f"\nthe {cut} at the end of {named} was cut off: its input is the logit"
    return Export(str(named), chosen, exported, frames.checks_are, note)


# --- benchmark -----------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Benchmark:
    """A benchmark run in the forms that people read; the record has every sample."""

    record: BenchmarkRecord

    def to_frame(self) -> DataFrame:
        """Return a line for each row, with the numbers of the report's CSV by their names.

        Raises EngineError (E-EXTRA-MISSING) without pandas.
        """
        from ...benchmarks.report.metrics import numbers_of
        from ...runtime.errors import EngineError

        try:
            import pandas
        except ImportError:
            raise EngineError(
                "E-EXTRA-MISSING", "a table needs pandas; pip install pandas, or read .record"
            ) from None
        return pandas.DataFrame([numbers_of(self.record, row) for row in self.record.rows])

    def write(self, html: Path | str) -> tuple[Path, ...]:
        """Write the report, .json, .md and .csv beside it; see `report.files.write_reports`."""
        from ...benchmarks.report.files import write_reports

        return write_reports(self.record, Path(html))

    def to_text(self) -> str:
        """Return headline, warnings and a compact table for a terminal."""
        from ...benchmarks.report.files import to_table

        return to_table(self.record)

    __repr__ = to_text  # what a notebook shows

    def _repr_html_(self) -> str:
        """Return headline, warnings and results as a notebook shows them."""
        from html import escape

        from ...benchmarks.report.metrics import columns_of
        from ...benchmarks.report.wording import cautions, headline

        def line(tag: str, cells: Iterable[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        columns = columns_of("terminal", self.record.rows)
        told = [headline(self.record), *(caution.text for caution in cautions(self.record))]
        rows = [
            [column.cell(row, self.record.comparison_of(row)) for column in columns]
            for row in self.record.rows
        ]
        head = line("th", (f"{column.title} {column.unit}".strip() for column in columns))
        table = head + "".join(line("td", row) for row in rows)
        return "".join(f"<p>{escape(text)}</p>" for text in told) + f"<table>{table}</table>"


@takes_paths
def benchmark(
    sources: Path | Sequence[Path],
    data: Path | Sequence[Path],
    *,
    part: str | None = None,
    engines: Sequence[str] = (),
    rivals: Sequence[str] = (),
    threads: int = 0,
    settings: Settings | None = None,
    command: Sequence[str] = (),
    progress: Progress = _bars,
) -> Benchmark:
    """Measure networks in turns on the same frames; the first is the reference.

    Args:
        sources: bundles, runs, checkpoints or names of shipped students.
        data: data sets whose images are timed and scored.
        part: see `evaluate`.
        engines: only these; none takes every engine that is installed.
        rivals: what is measured beside, keys of `rivals.RIVALS`.
        threads: of every engine; 0 for all cores.
        settings: modes, rounds and durations; None for those of `benchmarks.record.Settings`.
        command: what the report says it was made by.
        progress: shows how far it is.

    Raises: those of `parts.common_samples`, `candidates_of` and `benchmarks.run.run_benchmark`.
    """
    from ...benchmarks.record import Settings
    from ...benchmarks.run import run_benchmark
    from .candidates import candidates_of, first_checkpoint, jetson_devices

    found = [find_source(path) for path in _sets(sources)]
    part = part or default_part(found)
    of_split = part not in ("unseen", "all")
    cases = common_samples(found, _sets(data), part, progress)
    with tempfile.TemporaryDirectory(prefix="edgeseg-") as folder:
        candidates = candidates_of(found, engines, threads)
        if rivals:
            from .rivals import CALIBRATION_FRAMES, rival_candidates

            network = first_checkpoint(found)
            frames = train_frames(network, _sets(data), CALIBRATION_FRAMES) if of_split else ()
            candidates += rival_candidates(
                network.path, rivals, threads, Path(folder), frames=frames, progress=progress
            )
        record = run_benchmark(
            candidates,
            cases,
            settings=settings or Settings(),
            part=part,
            split_sha256=sha256_of_file(found[0].split_file()) if of_split else None,
            command=list(command),
            devices=jetson_devices(),
            progress=progress,
        )
    return Benchmark(record)


def _sets(paths: Path | Sequence[Path]) -> tuple[Path, ...]:
    """Return one or several as several."""
    return (paths,) if isinstance(paths, Path) else tuple(paths)
