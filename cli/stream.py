"""The command for cine loops and live frames: `stream`."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.errors import InputError
from .console import (
    engine_option,
    holes_option,
    json_option,
    key_option,
    largest_option,
    leave,
    number_option,
    out_option,
    path_type,
    spacing_option,
    taken_quiet_option,
    threads_option,
    whole_frame_option,
    window_option,
)

if TYPE_CHECKING:
    from ..runtime.window import Window

_PORT = 8765


@click.command()
@click.argument("bundle", type=path_type())
@click.argument("source", type=path_type())
@key_option
@engine_option
@threads_option
@largest_option
@holes_option
@spacing_option
@click.option("--rate", type=float, help="Frames a second; default: what the source tells.")
@click.option(
    "--policy",
    type=click.Choice(("drop-oldest", "block")),
    default="drop-oldest",
    show_default=True,
    help="With a full queue: drop-oldest: the newest frame wins; block: every frame, however late.",
)
@number_option("--queue", click.IntRange(1, 64), 1, "Frames that wait.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="End after this time.")
@click.option("--loop", is_flag=True, help="Start the source again at its end.")
@click.option("--keep-going", is_flag=True, help="Count a frame that fails instead of ending.")
@whole_frame_option
@window_option
@out_option("New folder for records, overlays and summary.", required=False)
@click.option(
    "--overlay",
    type=click.Choice(("video", "images", "none")),
    help="Of --out; default: video where OpenCV is installed, else images.",
)
@click.option("--masks", is_flag=True, help="Also masks, in --out.")
@click.option(
    "--serve",
    "port",
    type=click.IntRange(0, 65535),
    is_flag=False,
    flag_value=_PORT,
    help=f"Show it live on this machine alone, at this port; default: {_PORT}, 0: a free one.",
)
@click.option("--host", help="With --serve: listen on another address, where others can look.")
@json_option
@taken_quiet_option
def stream(
    bundle: Path,
    source: Path,
    key: Path | None,
    engine: str | None,
    threads: int | None,
    largest_only: bool,
    fill_holes: bool,
    spacing_mm: tuple[float, float] | None,
    rate: float | None,
    policy: str,
    queue: int,
    minutes: float | None,
    loop: bool,
    keep_going: bool,
    whole_frame: bool,
    window: Window | None,
    out: Path | None,
    overlay: str | None,
    masks: bool,
    port: int | None,
    host: str | None,
    as_json: bool,
) -> None:
    """Segment SOURCE (DICOM, video, image, folder) with BUNDLE against a frame clock.

    What was due, answered, dropped and missed is told at the end. Ctrl-C ends in good order: what
    there is so far is kept. Not for diagnosis.
    """
    from ..runtime.bundle import open_bundle
    from ..runtime.files import require_new
    from ..runtime.lesion import Spacing
    from ..runtime.session import session_of
    from ..runtime.stream.outputs import default_overlay
    from ..runtime.stream.pipeline import Pace
    from ..runtime.stream.run import Wanted, run_stream
    from ..runtime.stream.sources import open_source

    if not out and (overlay or masks):
        raise InputError("E-STREAM-CALL", "--overlay and --masks are of --out; name a folder")
    if host and port is None:
        raise InputError("E-STREAM-CALL", "--host is of --serve; add it")
    if out:
        require_new(out)
    frames = open_source(source, whole_frame=whole_frame, window=window)
    if whole_frame and frames.kind != "dicom":
        raise InputError(
            "E-STREAM-CALL",
            f"--whole-frame is for DICOM; frames of {source} are whole, leave it out",
        )
    if spacing_mm:
        frames = replace(frames, spacing=Spacing(*spacing_mm))
    hz = frames.hz if rate is None else rate
    if hz is None:
        raise InputError("E-STREAM-RATE", f"{source} tells no frame rate; give one with --rate 30")
    pace = Pace(hz, policy, queue, None if minutes is None else 60 * minutes, loop, keep_going)
    opened = open_bundle(bundle, key=key)
    session = session_of(
        opened,
        engine=engine,
        threads=threads or 0,
        largest_only=largest_only,
        fill_holes=fill_holes,
    )
    if session.layout:  # of whole frames, and it has a crop of its own
        frames = replace(frames, crop=None)
    if session.contract.takes_colour:
        raise InputError(
            "E-STREAM-COLOUR",
            f"a stream gives grey frames and {bundle} takes {session.contract.channels}; predict "
            "the images with `edgeseg predict`, or export with channels grey3",
        )
    classes = session.contract.classes if len(session.contract.classes) > 1 else ()
    about = {
        "bundle": opened.manifest.name,
        "precision": opened.manifest.precision,
        "bundle_sha256": opened.sha256,
        "engine": session.engine.name,
    }
    wanted = Wanted(out, (overlay or default_overlay()) if out else "none", masks)
    if frames.note:
        click.echo(frames.note, err=True)
    with contextlib.ExitStack() as stack:
        screen = _serve(stack, about, host, port) if port is not None else None
        result = run_stream(
            frames, session.predict, pace, about, wanted=wanted, classes=classes, screen=screen
        )
    summary = result.summary
    click.echo(json.dumps(summary, indent=1) if as_json else render(summary))
    kept = f"; {out} is complete up to there" if out else ""
    if result.signal:
        leave(
            f"E-INTERRUPTED: stopped after {summary['frames']['due']} frames{kept}",
            128 + result.signal,
        )
    if out and not as_json:
        click.echo(f"results in {out}")


def _serve(stack: contextlib.ExitStack, about: dict[str, Any], host: str | None, port: int) -> Any:
    """Start the page, say where it is, and return its screen."""
    from ..runtime.stream.screen import Screen
    from ..runtime.stream.server import LOOPBACK, Server, is_loopback

    screen = Screen({**about, "state": "starting"})
    server = stack.enter_context(Server(screen, host or LOOPBACK, port))
    click.echo(f"live page: {server.url} (not for diagnosis)", err=True)
    if not is_loopback(server.host):
        click.echo(
            f"warning: everyone who can reach {server.host} port {server.server_port} sees these "
            "images; there is no password and no encryption",
            err=True,
        )
    return screen


def render(summary: dict[str, Any]) -> str:
    """Return a summary as a few lines of text."""
    frames, pace = summary["frames"], summary["pace"]
    counts = ", ".join(f"{frames[name]} {name}" for name in ("answered", "dropped", "failed"))
    lines = [
        f"{frames['due']} frames due at {pace['hz']:g} Hz: {counts}; {frames['missed']} missed "
        "(answered after the next tick)",
        f"policy {pace['policy']}, queue {pace['queue']}; {summary['engine']}, "
        f"{summary['bundle']} {summary['precision']} {summary['bundle_sha256'][:12]}",
    ]
    for name in ("latency", "queued", "inference"):
        told = summary[f"{name}_ms"]
        figures = ", ".join(
            f"{which} {'-' if value is None else f'{value:.1f}'}" for which, value in told.items()
        )
        lines.append(f"{name:>9} in ms: {figures}")
    return "\n".join(lines)
