"""The command `benchmark`, and what it and a release need beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..runtime.errors import InputError
from .console import (
    data_sets_option,
    given,
    json_option,
    number_option,
    out_option,
    part_option,
    path_type,
    progress_of,
    quiet_option,
    threads_option,
)


def _moved(context: click.Context, option: click.Parameter, value: object) -> None:
    """Refuse an option that `benchmark` had and `compare` has."""
    if value:
        raise InputError(
            "E-BENCHMARK-CALL",
            f"{option.opts[0]} is no longer of benchmark; two records are compared, and budgets "
            "judged, by `edgeseg compare OLD.json NEW.json`",
        )


@click.command()
@click.argument("sources", metavar="[SOURCE]...", type=path_type(), nargs=-1)
@data_sets_option("--data", "Data set to measure on; repeated for several.")
@part_option
@click.option("--engine", "engines", multiple=True, help="Only these; default: all installed.")
@click.option(
    "--rival",
    "rivals",
    multiple=True,
    help="Measure this beside: torch-compile, onnxruntime-default, openvino-default, "
    "onnxruntime-quantize-static, unext, cmunext-s, mobile-uvit.",
)
@threads_option
@click.option(
    "--mode",
    "modes",
    type=click.Choice(("single", "offline", "paced", "soak")),
    multiple=True,
    default=("single", "offline"),
    show_default=True,
    help="single is always measured; offline: throughput; paced: a frame clock; soak: drift.",
)
@number_option(
    "--rounds", click.IntRange(1), 400, "Timed single frames of each row; a p99 needs 368."
)
@number_option(
    "--streams",
    click.IntRange(1),
    1,
    "Sessions at once in the offline mode, which share the threads.",
)
@number_option(
    "--batch",
    click.IntRange(1, 1024),
    1,
    "Frames a call in the offline mode; above 1 needs checkpoints or bundles made with --dynamic.",
)
@number_option("--rate", click.FloatRange(0.1, 1000), 30, "Frames a second of the paced mode.")
@number_option(
    "--seconds",
    click.FloatRange(1, 3600),
    10,
    "How long the paced and the offline mode last, for each row.",
)
@number_option(
    "--minutes", click.FloatRange(0.1, 600), 10, "How long the soak mode lasts, for each row."
)
@click.option("--layers", is_flag=True, help="Also time by layer, roofline and predictions.")
@click.option(
    "--energy", is_flag=True, help="Also mJ a frame, 90 s a row, where there is a counter."
)
@number_option(
    "--passes",
    click.IntRange(0, 1000),
    10,
    "Times that each row is measured beside a fixed network, so that `edgeseg compare` can "
    "tell it from other runs.",
)
@out_option("The HTML report; .json, .md, .csv go beside.", required=False)
@click.option("--compare", is_flag=True, hidden=True, expose_value=False, callback=_moved)
@click.option("--budget", multiple=True, hidden=True, expose_value=False, callback=_moved)
@json_option
@quiet_option
@click.pass_context
def benchmark(
    context: click.Context,
    sources: tuple[Path, ...],
    dataset: tuple[Path, ...],
    part: str | None,
    engines: tuple[str, ...],
    rivals: tuple[str, ...],
    threads: int | None,
    modes: tuple[str, ...],
    rounds: int,
    streams: int,
    batch: int,
    rate: float,
    seconds: float,
    minutes: float,
    layers: bool,
    energy: bool,
    passes: int,
    out: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure SOURCEs interleaved; the first is the reference.

    A SOURCE is a bundle, a run, a checkpoint or a shipped student (`edgeseg models`). `edgeseg
    compare` compares the records of two runs.
    """
    if not (sources and dataset and out):
        raise InputError("E-BENCHMARK-CALL", "name at least one SOURCE, --data and --out")
    for mode, option in (
        ("offline", "streams"),
        ("offline", "batch"),
        ("paced", "rate"),
        ("soak", "minutes"),
    ):
        if mode not in modes and given(context, {option: None}):
            raise InputError(
                "E-BENCHMARK-CALL",
                f"--{option} is of --mode {mode}; ask for it, or leave it out",
            )
    from ..benchmarks.record import Settings, to_json
    from ..benchmarks.report.files import require_report_path
    from .jobs import api

    require_report_path(out)
    settings = Settings(
        modes=modes,
        rounds=rounds,
        streams=streams,
        batch=batch,
        offline_s=seconds,
        paced_s=seconds,
        hz=rate,
        soak_s=60 * minutes,
        layers=layers,
        energy=energy,
        passes=passes,
    )
    measured = api.benchmark(
        sources,
        dataset,
        part=part,
        engines=engines,
        rivals=rivals,
        threads=threads or 0,
        settings=settings,
        command=["edgeseg", *sys.argv[1:]],
        progress=progress_of(quiet),
    )
    measured.write(out)
    click.echo(to_json(measured.record) if as_json else f"{measured.to_text()}\nreport: {out}")


@click.command(hidden=True)
@click.argument("name")
@click.argument("record", type=path_type(exists=True, dir_okay=False))
@click.option("--measured", type=path_type(), required=True, help="The run that RECORD measured.")
@click.option("--int8", type=path_type(), required=True, help="Its INT8 bundle, in RECORD too.")
@click.option(
    "--weights",
    type=path_type(),
    required=True,
    help="What ships: that run, or one on all of DATA.",
)
@data_sets_option("--data", "Data set of both runs; repeated for several.", required=True)
@number_option("--calib-images", click.IntRange(1), 300)
@out_option("Folder; kd/zoo of a checkout to ship.")
@quiet_option
def card(
    name: str,
    record: Path,
    measured: Path,
    int8: Path,
    weights: Path,
    dataset: tuple[Path, ...],
    calib_images: int,
    out: Path,
    quiet: bool,
) -> None:
    """Write the files of shipped student NAME: weights, evidence, model card and picture.

    RECORD is the JSON of a benchmark of the measured run and its INT8 bundle on the test part.
    """
    from ..benchmarks.report.model_card import write_student
    from ..kd import zoo
    from ..runtime.files import write_bytes
    from .jobs.shipping import calibrate_shipped, gather_evidence
    from .jobs.sources import checkpoint_of

    if name not in zoo.SHIPPED:
        raise InputError(
            "E-ZOO-NAME", f"no student is called {name!r}; choose of {', '.join(zoo.SHIPPED)}"
        )
    shipped = checkpoint_of(weights)
    evidence, picture = gather_evidence(
        name, record, checkpoint_of(measured), int8, shipped, dataset, progress_of(quiet)
    )
    write_student(out, shipped.path.read_bytes(), evidence, zoo.SHIPPED[name], picture)
    ranges = calibrate_shipped(shipped, dataset, calib_images, progress_of(quiet))
    write_bytes(zoo.calibration_file(out / f"{name}.safetensors"), ranges)
    click.echo(f"{name}: card, evidence, ranges, picture and weights in {out}")


@click.command(hidden=True)
@click.argument("source", type=path_type())
@click.option("--engine", help="Of SOURCE.")
@click.option("--rival", help="Of SOURCE, in place of an engine.")
@click.option("--folder", type=path_type(), help="Of the rival.")
@click.option("--threads", type=click.IntRange(1), required=True)
def probe(
    source: Path, engine: str | None, rival: str | None, folder: Path | None, threads: int
) -> None:
    """Report this process's own memory and start-up times, for `benchmark`."""
    import numpy as np

    from ..benchmarks.measure.process import report_probe
    from ..runtime.session import Session

    def open_session() -> Session:
        if rival and folder:
            from .jobs.rivals import open_rival

            return open_rival(rival, source, folder, threads)
        from .jobs.sources import find_source

        return find_source(source).open(engine, threads)

    click.echo(report_probe(open_session, np.zeros((480, 640), np.uint8)))
