"""The command line: each command is a signature, library calls and a print.

Heavy packages are imported inside the commands, so that ``edgeseg --help`` answers at once.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..export.target import PRECISIONS
from ..kd.config import RECIPES, TrainConfig
from .benchmark import benchmark, card, probe
from .bundle import bundle
from .compare import compare
from .console import (
    F,
    Group,
    data_argument,
    data_sets_option,
    engine_option,
    given,
    holes_option,
    json_option,
    key_option,
    largest_option,
    number_option,
    out_option,
    part_option,
    path_type,
    progress_of,
    quiet_option,
    seed_option,
    spacing_option,
    taken_quiet_option,
    threads_option,
    whole_frame_option,
    window_option,
)
from .device import device
from .stream import stream

if TYPE_CHECKING:
    from ..runtime.window import Window

_LIST_OPTION = "--split-list"
_LIST_FILES = 3  # at most: train, val and test


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Distil, export, run and measure small breast-ultrasound segmentation networks."""


@cli.group()
def data() -> None:
    """Phantoms, audits and leak-safe splits."""


@data.command("phantoms")
@click.argument("out", type=path_type())
@number_option("--count", click.IntRange(1), 120, "Images.")
@seed_option
@quiet_option
def data_phantoms(out: Path, count: int, seed: int, quiet: bool) -> None:
    """Write ultrasound phantoms with their masks to OUT, in the BUSI layout."""
    from ..kd.data.phantom import write_phantoms

    dataset = write_phantoms(out, count=count, seed=seed, progress=progress_of(quiet))
    click.echo(f"{len(dataset.samples)} phantoms in {out}")


@data.command("audit")
@data_argument
@json_option
@quiet_option
def data_audit(dataset: tuple[Path, ...], as_json: bool, quiet: bool) -> None:
    """List what is wrong in DATA: duplicates, conflicts, unreadable files, sizes, empty masks."""
    from ..kd.data.audit import audit_datasets, render

    audit = audit_datasets(dataset, progress=progress_of(quiet))
    click.echo(json.dumps(audit.to_dict(), indent=1) if as_json else render(audit))


class _WithLists(click.Command):
    """Lets --split-list take two or three files in a row."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give each file behind the option an option of its own."""
        spread: list[str] = []
        left = 0  # files that may still follow
        for arg in args:
            if left and not arg.startswith("-"):
                spread += [] if spread[-1] == _LIST_OPTION else [_LIST_OPTION]
                left -= 1
            else:
                left = _LIST_FILES if arg == _LIST_OPTION else 0
            spread.append(arg)
        return super().parse_args(ctx, spread)


@data.command("split", cls=_WithLists)
@data_argument
@out_option("The split file to write; with --folds a new folder.")
@seed_option
@click.option(
    "--fractions",
    type=(float, float, float),
    help="Train, val, test; if not given 0.7 0.1 0.2. 1 0 0 is for weights that ship, once the "
    "settings are chosen.",
)
@click.option("--folds", type=click.IntRange(2), help="Cross-validation instead of --fractions.")
@click.option(
    _LIST_OPTION,
    "lists",
    type=path_type(),
    multiple=True,
    metavar="TRAIN VAL [TEST]",
    help="A published split instead: text files with an image a line. It may tear near-duplicates "
    "and patients apart; how many is said and stays in the file.",
)
@quiet_option
@click.pass_context
def data_split(
    context: click.Context,
    dataset: tuple[Path, ...],
    out: Path,
    seed: int,
    fractions: tuple[float, float, float] | None,
    folds: int | None,
    lists: tuple[Path, ...],
    quiet: bool,
) -> None:
    """Split DATA into train, val and test so that no patient and no near-duplicates are separated.

    DATA that comes in train/, val/ and test/ is split as it comes, and what that tears is counted;
    --seed, --fractions or --folds split it anew.

    With --folds N, OUT/fold-1.json to OUT/fold-N.json; every image is in one test part.
    """
    from ..kd.data.dataset import read_datasets
    from ..kd.data.split import (
        describe_split,
        make_folds,
        make_split,
        split_from_lists,
        split_of_parts,
        write_split,
    )
    from ..runtime.files import atomic_folder, require_new, require_writable

    if lists:
        if set(given(context, context.params)) & {"folds", "fractions", "seed"}:
            raise click.UsageError("--split-list leaves nothing to divide; name it alone")
        if len(lists) not in (2, 3):
            raise click.UsageError("--split-list takes files for train, val and, maybe, test")
        require_writable(out)
        split = split_from_lists(read_datasets(dataset), lists, progress=progress_of(quiet))
        write_split(split, out)
        click.echo(describe_split(split))
        return
    if folds:
        if fractions:
            raise click.UsageError("--folds and --fractions exclude each other; leave one out")
        require_new(out)
        made = make_folds(
            read_datasets(dataset), folds=folds, seed=seed, progress=progress_of(quiet)
        )
        with atomic_folder(out) as partial_folder:
            for number, fold in enumerate(made, start=1):
                write_split(fold, partial_folder / f"fold-{number}.json")
        for number, fold in enumerate(made, start=1):
            click.echo(f"fold {number}\n{describe_split(fold)}")
        return
    require_writable(out)
    read = read_datasets(dataset)
    if read.has_parts and not set(given(context, context.params)) & {"fractions", "seed"}:
        split = split_of_parts(read, progress=progress_of(quiet))
    else:
        split = make_split(
            read,
            seed=seed,
            fractions=fractions or (0.7, 0.1, 0.2),
            progress=progress_of(quiet),
        )
    write_split(split, out)
    click.echo(describe_split(split))


def _train_options(command: F, without: tuple[str, ...] = ()) -> F:
    """Add one option for each field of `TrainConfig`, with its default and help."""
    for field in reversed([each for each in fields(TrainConfig) if each.name not in without]):
        command = click.option(
            "--" + field.name.replace("_", "-"),
            type=type(field.default),
            is_flag=type(field.default) is bool,
            default=field.default,
            show_default=True,
            help=field.metadata["help"],
        )(command)
    return command


@cli.command()
@data_argument
@out_option("Folder of the run.")
@click.option(
    "--split",
    "split_file",
    type=path_type(),
    help="Split to use; default: the parts that DATA comes in, or a new one.",
)
@click.option("--recipe", help=f"Settings to start from: {', '.join(RECIPES)}.")
@click.option("--teachers", type=path_type(), help="A run whose teachers are taken.")
@click.option(
    "--teacher-checkpoint",
    "teacher_checkpoints",
    type=path_type(),
    multiple=True,
    help="Of another run; repeat it: the mean of all is the teacher of --teaching single.",
)
@click.option("--encoder-weights", type=path_type(), help="File that encoders start from.")
@click.option(
    "--start",
    type=path_type(),
    help="Student to train on from: a run, its checkpoint, or one that ships, as t2kd-edge.",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out with its own settings.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@_train_options
@quiet_option
@click.pass_context
def train(
    context: click.Context,
    /,
    dataset: tuple[Path, ...],
    out: Path,
    split_file: Path | None,
    recipe: str | None,
    teachers: Path | None,
    teacher_checkpoints: tuple[Path, ...],
    encoder_weights: Path | None,
    start: Path | None,
    resume: bool,
    device: str,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train two class teachers on DATA, then the student that both teach (T²KD).

    DATA is one data set or several; NAME=PATH names one, else its folder does.

    Several GPUs or machines: torchrun --nproc-per-node N -m edgeseg train ...
    """
    from .jobs import api

    student = api.train(
        dataset,
        out,
        recipe=recipe,
        split=split_file,
        resume=resume,
        teachers=teachers,
        teacher_checkpoints=teacher_checkpoints,
        encoder_weights=encoder_weights,
        start=start,
        device=device,
        note=lambda text: click.echo(f"note: {text}", err=True),
        progress=progress_of(quiet),
        **given(context, settings),
    )
    click.echo(f"student: {student}")


@cli.command()
@data_argument
@out_option("Folder of runs and table; continued.")
@click.option("--recipe", default="t2kd-busi-edge", show_default=True, help="See `train`.")
@number_option("--seeds", click.IntRange(1), 3)
@click.option("--row", "rows", multiple=True, help="Only this row and routed; default: all.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@partial(_train_options, without=("teaching", "distillation"))
@quiet_option
@click.pass_context
def reproduce(
    context: click.Context,
    /,
    dataset: tuple[Path, ...],
    out: Path,
    recipe: str,
    seeds: int,
    rows: tuple[str, ...],
    device: str,
    quiet: bool,
    **settings: Any,
) -> None:
    """Train a student in every way on DATA: the table of what routed distillation is worth."""
    from ..kd.config import find_recipe
    from ..kd.data.dataset import read_datasets
    from .jobs.ablation import ROWS, to_text
    from .jobs.ablation import reproduce as run_ablation

    results = run_ablation(
        read_datasets(dataset),
        out,
        replace(find_recipe(recipe), **given(context, settings)),
        seeds=seeds,
        rows=rows or tuple(ROWS),
        device=device,
        progress=progress_of(quiet),
    )
    click.echo(f"{to_text(results)}\ntable: {out / 'ablation.md'}")


@cli.command()
@json_option
def targets(as_json: bool) -> None:
    """List the targets of `edgeseg export`, with what is known of them."""
    from dataclasses import asdict

    from ..export.target import ALIAS, default_jetson, render_targets
    from ..export.target import targets as known

    if as_json:
        content = {name: asdict(target) for name, target in known().items()}
        click.echo(json.dumps({**content, ALIAS: content[default_jetson()]}, indent=1))
    else:
        click.echo(render_targets())


@cli.command()
@json_option
def models(as_json: bool) -> None:
    """List the students that ship, with the figures of their evidence."""
    from ..benchmarks.jsonform import json_from_value
    from ..benchmarks.report.evidence import read_evidence, render_students
    from ..kd import zoo

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
@click.argument("source", type=path_type(), required=False)
@click.option("--target", required=True, help="See `edgeseg targets`.")
@click.option(
    "--precision",
    type=click.Choice(("auto", *PRECISIONS)),
    default="auto",
    show_default=True,
    help="auto: all that the target takes, measured side by side where that can be done here.",
)
@data_sets_option(
    "--calib",
    "Data set whose train part calibrates and whose val part checks; repeated for several. A "
    "run needs its own; a shipped student takes any, split anew, and does with its own ranges "
    "without.",
)
@number_option("--calib-images", click.IntRange(1), 200)
@click.option(
    "--ranges", type=path_type(), help="Record of an earlier calibration of this network."
)
@click.option("--synthetic-calibration", is_flag=True, help="Calibrate on phantoms.")
@click.option(
    "--method",
    type=click.Choice(("min-max", "percentile", "mse", "entropy")),
    default="entropy",
    show_default=True,
    help="How a range is chosen from a histogram.",
)
@number_option(
    "--max-drop",
    click.FloatRange(0, 1),
    0.005,
    "Largest accepted loss of mean Dice on the val part, at the upper end of its 95 % interval.",
)
@number_option(
    "--max-hd95-rise",
    click.FloatRange(0),
    1.0,
    "Largest accepted rise of mean HD95, px; refused where the whole 95 % interval is above.",
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
    "--layout",
    "layout_file",
    type=path_type(),
    help="JSON: where the image is on the screen whose frames will come, see docs/session.md.",
)
@click.option(
    "--contract",
    type=path_type(),
    help="JSON with the input contract of an ONNX or torch network that has none.",
)
@click.option("--output", help="The output that answers, of a network with several, by its name.")
@click.option("--weights", type=path_type(), help="State dict of a torch network.")
@click.option(
    "--force-contract",
    is_flag=True,
    help="Export though the network's own answers to the check frames speak against its contract.",
)
@out_option("Folder of the bundle; must be new. [default: by name]", required=False)
@click.option("--dry-run", is_flag=True, help="Check SOURCE, print the plan and write nothing.")
@json_option
@quiet_option
def export(
    source: Path | None,
    target: str,
    precision: str,
    dataset: tuple[Path, ...],
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
    layout_file: Path | None,
    contract: Path | None,
    output: str | None,
    weights: Path | None,
    force_contract: bool,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Export SOURCE for a target, compared with the network at every step.

    SOURCE is a run, a checkpoint, a shipped student (`edgeseg models`), an ONNX from elsewhere or
    package.module:function that makes a torch network; left out, it is the student t2kd-edge.
    """
    from .jobs import api

    layout = None
    if layout_file:
        from .jobs.layout_file import read_layout

        layout = read_layout(layout_file)
    planned: dict[str, Any] = {
        "dla": dla,
        "calibration_cache": calibration_cache,
        "qat": qat,
        "max_batch": max_batch or 1,
        "frame": frame,
    }
    if dry_run:
        from ..export.plan import plan_for, render_plan

        plan = api.plan(target, precision, **planned)
        if source is not None:
            from ..export.frame_graph import require_frame_contract
            from .jobs.calibrating import CalibrationRequest, retraining_of
            from .jobs.sources import load_exportable

            # What cannot be exported is no plan.
            found, network = load_exportable(source, contract, plan.target.opset, output, weights)
            plan = plan_for(plan, network.to_onnx(), network.quantised)
            if frame:
                weakly_typed = plan.frame_is_weakly_typed
                require_frame_contract(network.contract, weakly_typed=weakly_typed)
            if qat:
                request = CalibrationRequest(dataset, ranges, synthetic_calibration, calib_images)
                retraining_of(found, request, qat)
        click.echo(json.dumps(plan.to_dict(), indent=1) if as_json else render_plan(plan))
        return
    made = api.export(
        source,
        target=target,
        precision=precision,
        calib=dataset,
        calib_images=calib_images,
        ranges=ranges,
        synthetic_calibration=synthetic_calibration,
        method=method,
        max_drop=max_drop,
        max_hd95_rise=max_hd95_rise,
        layout=layout,
        contract=contract,
        output=output,
        weights=weights,
        force_contract=force_contract,
        out=out,
        progress=progress_of(quiet),
        **planned,
    )
    if as_json:
        click.echo(json.dumps(made.to_dict()))
        return
    if source is None:
        click.echo(f"no SOURCE was named: the shipped student {made.source}")
    click.echo(made.to_text())


@cli.command()
@click.argument("file", metavar="FILE.onnx", type=path_type())
@click.option("--output", help="The output that answers, of several, by its name.")
@click.option(
    "--size",
    metavar="WIDTHxHEIGHT",
    callback=_frame_size,
    help="Height and width in px, of a file that leaves them open.",
)
@data_sets_option(
    "--data", "Data set on whose images the usual means and stds are tried; repeated for several."
)
@out_option("Write the proposed contract, for `export --contract`.", required=False)
@json_option
@taken_quiet_option
def inspect(
    file: Path,
    output: str | None,
    size: tuple[int, int] | None,
    dataset: tuple[Path, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Say what an ONNX from elsewhere is, which contract it seems to want, and if export takes it.

    Mean, std and threshold are in no ONNX: what is proposed is checked by whoever trained it.
    """
    from ..export.inspection import inspect_onnx, write_contract
    from ..runtime.files import require_writable
    from .jobs.parts import check_frames

    if out:
        require_writable(out)
    found = inspect_onnx(file, output=output, size=size, frames=check_frames(dataset))
    if out:
        write_contract(out, found.contract)
    click.echo(json.dumps(found.to_dict(), indent=1) if as_json else found.to_text())


@cli.command()
@click.argument("bundle", type=path_type())
@click.argument("images", type=path_type(), nargs=-1, required=True)
@out_option("Folder of the results; must be new.")
@largest_option
@holes_option
@spacing_option
@window_option
@whole_frame_option
@key_option
@engine_option
@threads_option
@json_option
@quiet_option
def predict(
    bundle: Path,
    images: tuple[Path, ...],
    out: Path,
    largest_only: bool,
    fill_holes: bool,
    spacing_mm: tuple[float, float] | None,
    window: Window | None,
    whole_frame: bool,
    key: Path | None,
    engine: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Segment IMAGES (files or folders) with BUNDLE: masks, overlays, lesions measured as JSON.

    Of a DICOM still the network sees the tissue region that the file tells, as in a stream.
    """
    from ..runtime.folder import seems_dicom
    from ..runtime.lesion import Spacing
    from ..runtime.predict import find_images, predict_files
    from ..runtime.session import open_session

    spacing = Spacing(*spacing_mm) if spacing_mm else None
    found = find_images(images)
    if whole_frame and not any(map(seems_dicom, found.images)):
        raise click.UsageError("--whole-frame is for DICOM; other images are whole, leave it out")
    session = open_session(
        bundle,
        engine=engine,
        threads=threads or 0,
        largest_only=largest_only,
        fill_holes=fill_holes,
        key=key,
    )
    if found.note and not quiet:
        click.echo(found.note, err=True)
    records = predict_files(
        session,
        found.images,
        out,
        spacing=spacing,
        window=window,
        whole_frame=whole_frame,
        progress=progress_of(quiet),
    )
    if as_json:
        click.echo(json.dumps(records, indent=1))
    else:
        count = "1 image" if len(records) == 1 else f"{len(records)} images"
        click.echo(f"{count} by {session.engine.name}, results in {out}")


@cli.command()
@click.argument("bundle", type=path_type())
@number_option(
    "--repeats",
    click.IntRange(0, 10_000),
    0,
    "Times more that each frame is predicted; every mask must equal its first.",
)
@key_option
@engine_option
@threads_option
@json_option
@taken_quiet_option
def selftest(
    bundle: Path,
    repeats: int,
    key: Path | None,
    engine: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Replay the golden frames of BUNDLE on this machine; exit code 3 where masks differ."""
    from ..runtime.errors import Refused
    from ..runtime.session import open_session

    result = open_session(bundle, engine=engine, threads=threads or 0, key=key).selftest(
        repeats=repeats
    )
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=1))
    if not result.passed:
        raise Refused(
            "E-SELFTEST",
            f"{bundle} failed: {result.to_text()}; do not use it here, choose another --engine",
        )
    if not as_json:
        click.echo(result.to_text())


@cli.command()
@click.argument("source", type=path_type())
@data_argument
@part_option
@engine_option
@threads_option
@click.option("--csv", "csv_file", type=path_type(), help="Also write a row per image.")
@json_option
@quiet_option
def evaluate(
    source: Path,
    dataset: tuple[Path, ...],
    part: str | None,
    engine: str | None,
    threads: int | None,
    csv_file: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score SOURCE (a bundle, run, checkpoint or shipped student) on a part of DATA."""
    from .jobs import api

    if csv_file:
        from ..benchmarks.measure.accuracy import write_scores_csv
        from ..runtime.files import require_writable

        require_writable(csv_file)
    evaluation = api.evaluate(
        source,
        dataset,
        part=part,
        engine=engine,
        threads=threads or 0,
        progress=progress_of(quiet),
    )
    if csv_file:
        write_scores_csv(csv_file, evaluation.scores)
    as_text = evaluation.to_text
    click.echo(json.dumps(evaluation.to_dict(), indent=1) if as_json else as_text())


@cli.command()
@click.argument("source", type=path_type())
@click.argument("datasets", metavar="[DATA]...", type=path_type(), nargs=-1)
@number_option(
    "--max-false-marks",
    click.FloatRange(0, 1),
    0.25,
    "Largest share of the images without a lesion that may be marked.",
)
@click.option(
    "--fold",
    "folds",
    metavar="RUN",
    type=path_type(),
    multiple=True,
    help="Run of the same network on one fold, whose test part takes the place of the val part; "
    "repeat for each fold.",
)
@click.option(
    "--point-of",
    type=path_type(),
    help="In place of DATA: take the operating point of this tuned checkpoint of the same network.",
)
@click.option(
    "--name", default="tuned", show_default=True, help="Of the new checkpoint, beside the old one."
)
@json_option
@quiet_option
def tune(
    source: Path,
    datasets: tuple[Path, ...],
    max_false_marks: float,
    folds: tuple[Path, ...],
    point_of: Path | None,
    name: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Choose the operating point of SOURCE, a run or its checkpoint, on what it has not learnt.

    The threshold and the least lesion with the highest Dice, as far as these images can tell, among
    those that mark few enough images without a lesion: on the val part of DATA, or, where it has
    few images without a lesion or SOURCE was trained on every image, on the test parts of runs on
    folds (--fold). SOURCE is left as it is: NAME.safetensors beside it has the point.
    """
    from .jobs.sources import checkpoint_of
    from .jobs.tuning import render_tuned, take_point
    from .jobs.tuning import tune as choose

    if bool(datasets) == (point_of is not None):
        raise click.UsageError("name either DATA or --point-of")
    if folds and point_of is not None:
        raise click.UsageError("--point-of takes a point as it is; leave --fold out")
    found = checkpoint_of(source)
    if point_of is not None:
        tuned = take_point(found, checkpoint_of(point_of), name=name)
    else:
        tuned = choose(
            found,
            datasets,
            max_false_marks=max_false_marks,
            name=name,
            folds=[checkpoint_of(fold) for fold in folds],
            progress=progress_of(quiet),
        )
    if as_json:
        click.echo(json.dumps({"checkpoint": str(tuned.checkpoint), **tuned.evidence}, indent=1))
    else:
        click.echo(render_tuned(tuned))


cli.add_command(benchmark)
cli.add_command(compare)
cli.add_command(bundle)
cli.add_command(card)
cli.add_command(probe)
cli.add_command(device)
cli.add_command(stream)

if __name__ == "__main__":
    cli()
