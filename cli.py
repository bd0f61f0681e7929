"""The command line: each command is a signature, library calls and a print.

Heavy packages are imported inside the commands, so that ``edgeseg --help`` answers at once.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from . import __version__
from .export.target import PRECISIONS
from .kd.config import TrainConfig
from .runtime.errors import EdgesegError, InputError

if TYPE_CHECKING:
    from .runtime.progress import Progress

T = TypeVar("T")
_EXTRA_OF = {
    **dict.fromkeys(("torch", "safetensors", "tensorboard"), "train"),
    **dict.fromkeys(("onnx", "openvino"), "export"),
    "tqdm": "cli",
}
_LINE_EVERY_S = 10.0  # where the output is no terminal


class _Group(click.Group):
    """Turns an `EdgesegError` into one line and its exit code; everything else is a bug."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except EdgesegError as error:
            _leave(f"{error}", error.exit_code)
        except ModuleNotFoundError as error:
            if error.name not in _EXTRA_OF:
                raise
            _leave(
                f"E-EXTRA-MISSING: {error.name} is not installed; "
                f"pip install 'edgeseg[{_EXTRA_OF[error.name]}]'",
                4,
            )
        except (KeyboardInterrupt, click.Abort):
            _leave("E-INTERRUPTED: stopped; a training continues with --resume", 130)


def _leave(message: str, exit_code: int) -> NoReturn:
    click.echo("edgeseg: " + " ".join(message.split()), err=True)
    sys.exit(exit_code)


def _bars(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Show a bar with the time left on a terminal, else a plain line now and then; on stderr."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=label, total=total, file=sys.stderr, dynamic_ncols=True)
        return
    total = total if total is not None else len(items) if isinstance(items, Sized) else None
    started = shown = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - shown > _LINE_EVERY_S and total:
            left_s = (now - started) / done * (total - done)
            click.echo(f"{label}: {done}/{total}, {left_s:.0f} s left", err=True)
            shown = now
    click.echo(f"{label}: {done} done in {time.monotonic() - started:.1f} s", err=True)


def _progress(quiet: bool) -> Progress:
    from .runtime.progress import quiet as silent

    return silent if quiet else _bars


def _path(**options: Any) -> click.Path:
    return click.Path(path_type=Path, **options)


F = TypeVar("F", bound=Callable[..., Any])
_quiet = click.option("--quiet", "-q", is_flag=True, help="No progress.")
_json = click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")
_engine = click.option("--engine", help="Engine to run; default: the first that is installed.")
_threads = click.option("--threads", type=click.IntRange(1), help="Engine threads; default: all.")
_part = click.option(
    "--part",
    type=click.Choice(["train", "val", "test", "unseen", "all"]),
    help="Part of the source's own split; unseen: the images of DATA that a shipped student was "
    "not trained on; all: every image of DATA. Default: test, or unseen for a shipped student.",
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Distil, export, run and measure small breast-ultrasound segmentation networks."""


@cli.group()
def data() -> None:
    """Phantoms, audits and leak-safe splits."""


@data.command("phantoms")
@click.argument("out", type=_path())
@click.option("--count", type=click.IntRange(1), default=120, show_default=True, help="Images.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed.")
@_quiet
def data_phantoms(out: Path, count: int, seed: int, quiet: bool) -> None:
    """Write ultrasound phantoms with their masks to OUT, in the BUSI layout."""
    from .kd.data.phantom import write_phantoms

    dataset = write_phantoms(out, count=count, seed=seed, progress=_progress(quiet))
    click.echo(f"{len(dataset.samples)} phantoms in {out}")


@data.command("audit")
@click.argument("folder", type=_path())
@_json
@_quiet
def data_audit(folder: Path, as_json: bool, quiet: bool) -> None:
    """List what is wrong in FOLDER: duplicates, conflicts, unreadable files, sizes, empty masks."""
    from .kd.data.audit import audit_dataset, render

    audit = audit_dataset(folder, progress=_progress(quiet))
    click.echo(json.dumps(audit.to_dict(), indent=1) if as_json else render(audit))


@data.command("split")
@click.argument("folder", type=_path())
@click.option(
    "--out", type=_path(), required=True, help="The split file to write; with --folds a new folder."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed.")
@click.option(
    "--fractions",
    type=(float, float, float),
    help="Train, val, test; if not given 0.7 0.1 0.2. 1 0 0 is for weights that ship, once the "
    "settings are chosen.",
)
@click.option("--folds", type=click.IntRange(2), help="Cross-validation instead of --fractions.")
@_quiet
def data_split(
    folder: Path,
    out: Path,
    seed: int,
    fractions: tuple[float, float, float] | None,
    folds: int | None,
    quiet: bool,
) -> None:
    """Split FOLDER into train, val and test so that no near-duplicates are separated.

    With --folds N, OUT/fold-1.json to OUT/fold-N.json; every image is in one test part.
    """
    from .kd.data.dataset import read_dataset
    from .kd.data.split import describe_split, make_folds, make_split, write_split
    from .runtime.files import atomic_folder, require_new, require_writable

    if folds:
        if fractions:
            raise click.UsageError("--folds and --fractions exclude each other; leave one out")
        require_new(out)
        made = make_folds(read_dataset(folder), folds=folds, seed=seed, progress=_progress(quiet))
        with atomic_folder(out) as partial_folder:
            for number, fold in enumerate(made, start=1):
                write_split(fold, partial_folder / f"fold-{number}.json")
        for number, fold in enumerate(made, start=1):
            click.echo(f"fold {number}\n{describe_split(fold)}")
        return
    require_writable(out)
    split = make_split(
        read_dataset(folder),
        seed=seed,
        fractions=fractions or (0.7, 0.1, 0.2),
        progress=_progress(quiet),
    )
    write_split(split, out)
    click.echo(describe_split(split))


def _train_options(command: F, without: tuple[str, ...] = ()) -> F:
    """Add one option for each field of `TrainConfig`, with its default and help."""
    for field in reversed([each for each in fields(TrainConfig) if each.name not in without]):
        command = click.option(
            "--" + field.name.replace("_", "-"),
            type=type(field.default),
            default=field.default,
            show_default=True,
            help=field.metadata["help"],
        )(command)
    return command


def _given(context: click.Context, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that were named on the command line."""
    return {
        name: value
        for name, value in settings.items()
        if context.get_parameter_source(name) != ParameterSource.DEFAULT
    }


@cli.command()
@click.argument("dataset", metavar="DATA", type=_path())
@click.option("--out", type=_path(), required=True, help="Folder of the run.")
@click.option("--split", "split_file", type=_path(), help="Split to use; default: a new one.")
@click.option("--recipe", help="Settings to start from: t2kd-busi or t2kd-busi-edge.")
@click.option("--teachers", type=_path(), help="A run whose teachers are taken.")
@click.option("--resume", is_flag=True, help="Continue the run in --out with its own settings.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@_train_options
@_quiet
@click.pass_context
def train(
    context: click.Context,
    /,
    dataset: Path,
    out: Path,
    split_file: Path | None,
    recipe: str | None,
    teachers: Path | None,
    resume: bool,
    device: str,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train two class teachers on DATA, then the student that both teach (T²KD).

    Several GPUs or machines: torchrun --nproc-per-node N -m edgeseg train ...
    """
    from .kd.config import find_recipe
    from .kd.data.dataset import read_dataset
    from .kd.data.split import read_split
    from .kd.train import read_config
    from .kd.train import train as run_training

    base = find_recipe(recipe) if recipe else read_config(out) if resume else TrainConfig()
    student = run_training(
        read_dataset(dataset),
        out,
        replace(base, **_given(context, settings)),
        split=read_split(split_file) if split_file else None,
        resume=resume,
        teachers=teachers,
        device=device,
        progress=_progress(quiet),
    )
    click.echo(f"student: {student}")


@cli.command()
@click.argument("dataset", metavar="DATA", type=_path())
@click.option("--out", type=_path(), required=True, help="Folder of runs and table; continued.")
@click.option("--recipe", default="t2kd-busi-edge", show_default=True, help="See `train`.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--row", "rows", multiple=True, help="Only this row and routed; default: all.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@partial(_train_options, without=("teaching", "distillation"))
@_quiet
@click.pass_context
def reproduce(
    context: click.Context,
    /,
    dataset: Path,
    out: Path,
    recipe: str,
    seeds: int,
    rows: tuple[str, ...],
    device: str,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train a student in every way on DATA: the table of what routed distillation is worth."""
    from .ablation import ROWS, to_text
    from .ablation import reproduce as run_ablation
    from .kd.config import find_recipe
    from .kd.data.dataset import read_dataset

    results = run_ablation(
        read_dataset(dataset),
        out,
        replace(find_recipe(recipe), **_given(context, settings)),
        seeds=seeds,
        rows=rows or tuple(ROWS),
        device=device,
        progress=_progress(quiet),
    )
    click.echo(f"{to_text(results)}\ntable: {out / 'ablation.md'}")


@cli.command()
@_json
def targets(as_json: bool) -> None:
    """List the targets of `edgeseg export`, with what is known of them."""
    from dataclasses import asdict

    from .export.target import ALIAS, default_jetson, render_targets
    from .export.target import targets as known

    if as_json:
        content = {name: asdict(target) for name, target in known().items()}
        click.echo(json.dumps({**content, ALIAS: content[default_jetson()]}, indent=1))
    else:
        click.echo(render_targets())


@cli.command()
@_json
def models(as_json: bool) -> None:
    """List the students that ship, with the figures of their evidence."""
    from .benchmarks.evidence import read_evidence, render_students
    from .benchmarks.jsonform import json_from_value
    from .kd import zoo

    weights = [zoo.find_weights(name) for name in zoo.available_names()]
    students = [read_evidence(zoo.evidence_file(path), path) for path in weights]
    if as_json:
        click.echo(json.dumps({each.name: json_from_value(each) for each in students}, indent=1))
    else:
        click.echo(
            render_students(students, zoo.SHIPPED)
            if students
            else "no student in this installation"
        )


def _frame_size(
    _: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    """Read width and height of a size such as 800x600."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text)
    if not found:
        raise click.BadParameter(f"{text!r} is not WIDTHxHEIGHT in px, such as 800x600")
    return int(found[1]), int(found[2])


@cli.command()
@click.argument("source", type=_path(), required=False)
@click.option("--target", required=True, help="See `edgeseg targets`.")
@click.option(
    "--precision",
    type=click.Choice(("auto", *PRECISIONS)),
    default="auto",
    show_default=True,
    help="auto: all that the target takes, measured side by side where that can be done here.",
)
@click.option(
    "--calib",
    "dataset",
    type=_path(),
    help="Data set whose train part calibrates and whose val part checks. A run needs its own; "
    "a shipped student takes any, split anew, and does with its own ranges without.",
)
@click.option("--calib-images", type=click.IntRange(1), default=200, show_default=True)
@click.option("--ranges", type=_path(), help="Record of an earlier calibration of this network.")
@click.option("--synthetic-calibration", is_flag=True, help="Calibrate on phantoms.")
@click.option(
    "--method",
    type=click.Choice(("min-max", "percentile", "mse", "entropy")),
    default="entropy",
    show_default=True,
    help="How a range is chosen from a histogram.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    default=0.005,
    show_default=True,
    help="Largest accepted loss of mean Dice on the val part, at the upper end of its 95 % "
    "interval.",
)
@click.option(
    "--max-hd95-rise",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Largest accepted rise of mean HD95, px; refused where the whole 95 % interval is above.",
)
@click.option(
    "--qat",
    type=click.IntRange(1),
    metavar="EPOCHS",
    help="Quantisation-aware training of a run, on --calib, if its INT8 fails with layers kept in "
    "float; the teachers go on teaching.",
)
@click.option("--dla", type=click.IntRange(0), help="Build for this DLA core of a Jetson.")
@click.option(
    "--calibration-cache", is_flag=True, help="INT8 from a TensorRT cache instead of Q/DQ."
)
@click.option(
    "--dynamic",
    "max_batch",
    type=click.IntRange(2),
    help="Take batches of 1 to this many frames; without it the files take single frames.",
)
@click.option(
    "--frame",
    metavar="WIDTHxHEIGHT",
    callback=_frame_size,
    help="Also write ONNX that takes uint8 frames of this size and answers with masks.",
)
@click.option(
    "--contract", type=_path(), help="JSON with the input contract of an ONNX that has none."
)
@click.option("--out", type=_path(), help="Folder of the bundle; must be new. [default: by name]")
@click.option("--dry-run", is_flag=True, help="Check SOURCE, print the plan and write nothing.")
@_json
@_quiet
def export(
    source: Path | None,
    target: str,
    precision: str,
    dataset: Path | None,
    calib_images: int,
    ranges: Path | None,
    synthetic_calibration: bool,
    method: str,
    max_drop: float,
    max_hd95_rise: float,
    qat: int | None,
    dla: int | None,
    calibration_cache: bool,
    max_batch: int | None,
    frame: tuple[int, int] | None,
    contract: Path | None,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Export SOURCE for a target, compared with the network at every step.

    SOURCE is a run, a checkpoint, a shipped student (`edgeseg models`) or an ONNX from elsewhere;
    left out, it is the student t2kd-edge.
    """
    from .export.plan import make_plan, render_plan
    from .export.target import find_target

    plan = make_plan(
        find_target(target),
        precision,
        dla_core=dla,
        cache=calibration_cache,
        retrains=qat is not None,
        max_batch=max_batch or 1,
        frame=frame,
    )
    if dry_run:
        if source is not None:
            from .sources import CalibrationRequest, load_exportable, retraining_of

            found, _ = load_exportable(source, contract)  # what cannot be exported is no plan
            if qat:
                request = CalibrationRequest(dataset, ranges, synthetic_calibration, calib_images)
                retraining_of(found, request, qat)
        click.echo(json.dumps(plan.to_dict(), indent=1) if as_json else render_plan(plan))
        return
    from .export.pipeline import Limits, export_bundle
    from .export.summary import render_export
    from .kd import zoo
    from .runtime.files import require_new
    from .sources import CalibrationRequest, frames_for_export, load_exportable, retraining_of

    named = source or Path(zoo.DEFAULT)
    out = out or Path(f"{named.resolve().stem}-{plan.target.name}".replace("@", "-"))
    require_new(out)
    found, network = load_exportable(named, contract)
    trained_on = found.trained_on()
    request = CalibrationRequest(dataset, ranges, synthetic_calibration, calib_images)
    retrain = retraining_of(found, request, qat) if qat else None
    frames, note = frames_for_export(
        found,
        request,
        needs_ranges=plan.needs_ranges,
        progress=_progress(quiet),
    )
    exported = export_bundle(
        network,
        plan,
        out,
        frames,
        split=found.split_file() if trained_on is None and not found.is_onnx else None,
        trained_on=trained_on or (),
        limits=Limits(max_drop, max_hd95_rise, method),
        retrain=retrain,
        progress=_progress(quiet),
    )
    if as_json:
        click.echo(
            json.dumps({"source": str(named), "checks": frames.checks_are, **exported.to_dict()})
        )
        return
    if source is None:
        click.echo(f"no SOURCE was named: the shipped student {zoo.DEFAULT}")
    click.echo(f"target: {plan.target.name}\n{note}\n{render_export(exported, plan)}")


@cli.command()
@click.argument("bundle", type=_path())
@click.argument("images", type=_path(), nargs=-1, required=True)
@click.option("--out", type=_path(), required=True, help="Folder of the results; must be new.")
@_engine
@_threads
@_json
@_quiet
def predict(
    bundle: Path,
    images: tuple[Path, ...],
    out: Path,
    engine: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Segment IMAGES (files or folders) with BUNDLE: masks, overlays, area and box as JSON."""
    from .runtime.predict import find_images, predict_files
    from .runtime.session import open_session

    found = find_images(images)
    session = open_session(bundle, engine=engine, threads=threads or 0)
    records = predict_files(session, found, out, progress=_progress(quiet))
    if as_json:
        click.echo(json.dumps(records, indent=1, ensure_ascii=False))
    else:
        click.echo(f"{len(records)} images by {session.engine.name}, results in {out}")


@cli.command()
@click.argument("source", type=_path())
@click.argument("dataset", metavar="DATA", type=_path())
@_part
@_engine
@_threads
@click.option("--csv", "csv_file", type=_path(), help="Also write a row per image.")
@_json
@_quiet
def evaluate(
    source: Path,
    dataset: Path,
    part: str | None,
    engine: str | None,
    threads: int | None,
    csv_file: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score SOURCE (a bundle, run, checkpoint or shipped student) on a part of DATA."""
    from .benchmarks.accuracy import render_accuracy, score_images, summarise, write_scores_csv
    from .runtime.files import require_writable
    from .sources import default_part, find_source, samples_for

    if csv_file:
        require_writable(csv_file)
    found = find_source(source)
    part = part or default_part([found])
    cases = samples_for(found, dataset, part, _progress(quiet))
    session = found.open(engine, threads or 0)
    scores = score_images(session.predict, cases, progress=_progress(quiet))
    if csv_file:
        write_scores_csv(csv_file, scores)
    accuracy = summarise(scores)
    if as_json:
        click.echo(json.dumps(accuracy.to_dict(), indent=1))
    else:
        click.echo(f"{source} in {session.engine.name}, {part} part, {len(cases)} images")
        click.echo(render_accuracy(accuracy))


@cli.command()
@click.argument("sources", metavar="[SOURCE]...", type=_path(), nargs=-1)
@click.option("--data", "dataset", type=_path(), help="Data set to measure on.")
@_part
@click.option("--engine", "engines", multiple=True, help="Only these; default: all installed.")
@click.option(
    "--rival",
    "rivals",
    multiple=True,
    help="Measure this beside: torch-compile, onnxruntime-default, openvino-default, "
    "onnxruntime-quantize-static, unext, cmunext-s, mobile-uvit.",
)
@_threads
@click.option(
    "--mode",
    "modes",
    type=click.Choice(("single", "offline", "paced", "soak")),
    multiple=True,
    default=("single", "offline"),
    show_default=True,
    help="single is always measured; offline: throughput; paced: a frame clock; soak: drift.",
)
@click.option("--rounds", type=click.IntRange(1), default=400, show_default=True, help="Of single.")
@click.option("--streams", type=click.IntRange(1), default=1, show_default=True, help="Of offline.")
@click.option(
    "--rate", type=click.FloatRange(0.1, 1000), default=30, show_default=True, help="Of paced, Hz."
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=10,
    show_default=True,
    help="Of paced and offline, for each row.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0.1, 600),
    default=10,
    show_default=True,
    help="Of soak, for each row.",
)
@click.option("--layers", is_flag=True, help="Also time by layer, roofline and predictions.")
@click.option(
    "--energy", is_flag=True, help="Also mJ a frame, 90 s a row, where there is a counter."
)
@click.option("--out", type=_path(), help="The HTML report; .json, .md, .csv go beside.")
@click.option(
    "--compare",
    type=(_path(exists=True, dir_okay=False), _path(exists=True, dir_okay=False)),
    metavar="OLD.json NEW.json",
    help="Measure nothing: compare two earlier reports.",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    help="With --compare: a limit that NEW must keep, such as p99=33ms or dice_drop=0.005.",
)
@_json
@_quiet
@click.pass_context
def benchmark(
    context: click.Context,
    sources: tuple[Path, ...],
    dataset: Path | None,
    part: str | None,
    engines: tuple[str, ...],
    rivals: tuple[str, ...],
    threads: int | None,
    modes: tuple[str, ...],
    rounds: int,
    streams: int,
    rate: float,
    seconds: float,
    minutes: float,
    layers: bool,
    energy: bool,
    out: Path | None,
    compare: tuple[Path, Path] | None,
    budgets: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure SOURCEs interleaved; the first is the reference.

    A SOURCE is a bundle, a run, a checkpoint or a shipped student (`edgeseg models`). With
    --compare nothing is measured, and a budget that is not kept ends with exit code 3.
    """
    if compare:
        unused = set(_given(context, context.params)) - {"compare", "budgets", "as_json", "quiet"}
        if unused:
            raise InputError(
                "E-BENCHMARK-CALL", "--compare measures nothing; leave all but --budget out"
            )
        _compare_reports(compare, budgets, as_json)
        return
    if not (sources and dataset and out):
        raise InputError("E-BENCHMARK-CALL", "name at least one SOURCE, --data and --out")
    for mode, option in (("offline", "streams"), ("paced", "rate"), ("soak", "minutes")):
        if mode not in modes and _given(context, {option: None}):
            raise InputError(
                "E-BENCHMARK-CALL",
                f"--{option} is of --mode {mode}; ask for it, or leave it out",
            )
    if budgets:
        raise InputError("E-BENCHMARK-CALL", "budgets are judged with --compare; leave them out")
    import tempfile

    from .benchmarks.record import Settings, run_benchmark, to_json
    from .benchmarks.report import require_report_path, to_table, write_reports
    from .runtime.files import sha256_of_file
    from .sources import (
        candidates_of,
        common_samples,
        default_part,
        find_source,
        first_checkpoint,
        jetson_devices,
        train_frames,
    )

    require_report_path(out)
    settings = Settings(
        modes=modes,
        rounds=rounds,
        streams=streams,
        offline_s=seconds,
        paced_s=seconds,
        hz=rate,
        soak_s=60 * minutes,
        layers=layers,
        energy=energy,
    )
    found = [find_source(path) for path in sources]
    part = part or default_part(found)
    of_split = part not in ("unseen", "all")
    cases = common_samples(found, dataset, part, _progress(quiet))
    with tempfile.TemporaryDirectory(prefix="edgeseg-") as folder:
        candidates = candidates_of(found, engines, threads or 0)
        if rivals:
            from .rivals import PHANTOMS, rival_candidates

            network = first_checkpoint(found)
            candidates += rival_candidates(
                network.path,
                rivals,
                threads or 0,
                Path(folder),
                frames=train_frames(network, dataset, PHANTOMS) if of_split else (),
                progress=_progress(quiet),
            )
        record = run_benchmark(
            candidates,
            cases,
            settings=settings,
            part=part,
            split_sha256=sha256_of_file(found[0].split_file()) if of_split else None,
            command=["edgeseg", *sys.argv[1:]],
            devices=jetson_devices(),
            progress=_progress(quiet),
        )
    write_reports(record, out)
    click.echo(to_json(record) if as_json else f"{to_table(record)}\nreport: {out}")


def _compare_reports(files: tuple[Path, Path], budgets: tuple[str, ...], as_json: bool) -> None:
    from .benchmarks.compare import (
        compare_records,
        comparison_to_json,
        parse_budget,
        render_comparison,
        require_budgets,
    )
    from .benchmarks.record import from_json

    limits = [parse_budget(text) for text in budgets]
    old, new = (from_json(file.read_bytes()) for file in files)
    comparison = compare_records(old, new, limits)
    click.echo(comparison_to_json(comparison) if as_json else render_comparison(comparison))
    require_budgets(comparison)


@cli.command(hidden=True)
@click.argument("name")
@click.argument("record", type=_path(exists=True, dir_okay=False))
@click.option("--measured", type=_path(), required=True, help="The run that RECORD measured.")
@click.option("--int8", type=_path(), required=True, help="Its INT8 bundle, in RECORD too.")
@click.option(
    "--weights", type=_path(), required=True, help="What ships: that run, or one on all of DATA."
)
@click.option("--data", "dataset", type=_path(), required=True, help="Data set of both runs.")
@click.option("--calib-images", type=click.IntRange(1), default=300, show_default=True)
@click.option("--out", type=_path(), required=True, help="Folder; kd/zoo of a checkout to ship.")
@_quiet
def card(
    name: str,
    record: Path,
    measured: Path,
    int8: Path,
    weights: Path,
    dataset: Path,
    calib_images: int,
    out: Path,
    quiet: bool,
) -> None:
    """Write the files of shipped student NAME: weights, evidence, model card and picture.

    RECORD is the JSON of a benchmark of the measured run and its INT8 bundle on the test part.
    """
    from .benchmarks.card import write_student
    from .kd import zoo
    from .runtime.files import write_bytes
    from .sources import calibrate_shipped, checkpoint_of, gather_evidence

    if name not in zoo.SHIPPED:
        raise InputError(
            "E-ZOO-NAME", f"no student is called {name!r}; choose of {', '.join(zoo.SHIPPED)}"
        )
    shipped = checkpoint_of(weights)
    evidence, picture = gather_evidence(
        name, record, checkpoint_of(measured), int8, shipped, dataset, _progress(quiet)
    )
    write_student(out, shipped.path.read_bytes(), evidence, zoo.SHIPPED[name], picture)
    ranges = calibrate_shipped(shipped, dataset, calib_images, _progress(quiet))
    write_bytes(zoo.calibration_file(out / f"{name}.safetensors"), ranges)
    click.echo(f"{name}: card, evidence, ranges, picture and weights in {out}")


@cli.command(hidden=True)
@click.argument("source", type=_path())
@click.option("--engine", help="Of SOURCE.")
@click.option("--rival", help="Of SOURCE, in place of an engine.")
@click.option("--folder", type=_path(), help="Of the rival.")
@click.option("--threads", type=click.IntRange(1), required=True)
def probe(
    source: Path, engine: str | None, rival: str | None, folder: Path | None, threads: int
) -> None:
    """Report this process's own memory and start-up times, for `benchmark`."""
    import numpy as np

    from .benchmarks.process import report_probe
    from .runtime.session import Session

    def open_session() -> Session:
        if rival and folder:
            from .rivals import open_rival

            return open_rival(rival, source, folder, threads)
        from .sources import find_source

        return find_source(source).open(engine, threads)

    click.echo(report_probe(open_session, np.zeros((480, 640), np.uint8)))


if __name__ == "__main__":
    cli()
