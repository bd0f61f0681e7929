"""What every command of `edgeseg` shares: errors as one line, progress, common options."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from ..runtime.errors import EdgesegError, OutputError

if TYPE_CHECKING:
    from ..runtime.progress import Progress
    from ..runtime.window import Window

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_EXTRA_OF = {
    **dict.fromkeys(("torch", "safetensors", "tensorboard"), "train"),
    **dict.fromkeys(("onnx", "openvino"), "export"),
    "tqdm": "cli",
}
# A group without a command shows its help. Click before 8.2 does so without an error.
_NO_WORDS: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())
_LINE_EVERY_S = 10.0  # where the output is no terminal


class Group(click.Group):
    """Turns an `EdgesegError` or a wrong call into one line and its exit code; the rest is bugs."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the options that stand before the command."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except OutputError as error:  # of --help
            leave(f"{error}", error.exit_code)
        except click.UsageError as error:
            if parent is not None:
                raise
            _leave_wrong_call(error, info_name or "edgeseg")

    def invoke(self, context: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(context)
        except EdgesegError as error:
            leave(f"{error}", error.exit_code)
        except click.UsageError as error:
            _leave_wrong_call(error, context.command_path)
        except ModuleNotFoundError as error:
            if error.name not in _EXTRA_OF:
                raise
            leave(
                f"E-EXTRA-MISSING: {error.name} is not installed; "
                f"pip install 'edgeseg[{_EXTRA_OF[error.name]}]'",
                4,
            )
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            leave("E-OUT-WRITE: no space left where temporary files go; free some", 5)
        except (KeyboardInterrupt, click.Abort):
            leave("E-INTERRUPTED: stopped; a command that has --resume continues with it", 130)


def _leave_wrong_call(error: click.UsageError, command: str) -> NoReturn:
    """Leave with what is wrong in a call of `command`; raise what shows a group's help again."""
    if isinstance(error, _NO_WORDS):
        raise error
    command = error.ctx.command_path if error.ctx else command
    told = error.format_message().rstrip(".")
    leave(f"E-USAGE: {told}; see `{command} --help`", error.exit_code)


def leave(message: str, exit_code: int) -> NoReturn:
    """Print one line on stderr and end with this exit code.

    What a terminal would obey and not show is replaced: names of files are someone else's text.
    """
    line = " ".join(message.split())
    click.echo(
        "edgeseg: " + "".join(each if each.isprintable() else "?" for each in line), err=True
    )
    sys.exit(exit_code)


def bars(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
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


def progress_of(quiet: bool) -> Progress:
    """Return what shows progress, or nothing with --quiet."""
    from ..runtime.progress import quiet as silent

    return silent if quiet else bars


def path_type(**options: Any) -> click.Path:
    """Return the type of an argument that is a path."""
    return click.Path(path_type=Path, **options)


def out_option(told: str, *, required: bool = True) -> Callable[[F], F]:
    """Return `--out`: the file or folder that a command writes."""
    return click.option("--out", type=path_type(), required=required, help=told)


def data_sets_option(name: str, told: str, *, required: bool = False) -> Callable[[F], F]:
    """Return an option that names a data set, as `data_argument` does; repeated for several."""
    return click.option(
        name, "dataset", type=path_type(), multiple=True, required=required, help=told
    )


def number_option(
    name: str, kind: click.ParamType, default: float, told: str | None = None
) -> Callable[[F], F]:
    """Return an option with a number, whose default is shown."""
    return click.option(name, type=kind, default=default, show_default=True, help=told)


# One data set or several, each PATH or NAME=PATH (see `kd.data.dataset.read_datasets`).
data_argument = click.argument(
    "dataset", metavar="DATA...", type=path_type(), nargs=-1, required=True
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress.")
taken_quiet_option = click.option(  # of a script that says -q to every command
    "--quiet", "-q", is_flag=True, expose_value=False, help="No progress; it shows none anyway."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Result as JSON on stdout.")
engine_option = click.option(
    "--engine", help="Engine to run; default: the first that is installed."
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="Engine threads; default: all."
)
seed_option = number_option("--seed", click.IntRange(0), 0, "Seed.")
key_option = click.option(
    "--key",
    type=path_type(),
    help="PEM file by which BUNDLE must be signed: the maker's public key, or the certificate of "
    "the authority that certified the maker's.",
)
largest_option = click.option(
    "--largest-only", is_flag=True, help="Keep only the largest lesion of an image."
)
holes_option = click.option(
    "--fill-holes", is_flag=True, help="Fill what a lesion encloses, before that."
)
spacing_option = click.option(
    "--spacing-mm",
    type=(float, float),
    metavar="ROW COLUMN",
    help="Distance from a row and from a column of pixels to the next: measures in mm too.",
)


def _window(_: click.Context, parameter: click.Parameter, text: str | None) -> Window | None:
    """Read CENTRE,WIDTH. Raises InputError: E-WINDOW."""
    from ..runtime.window import window_from_text

    return None if text is None else window_from_text(text)


window_option = click.option(
    "--window",
    metavar="CENTRE,WIDTH",
    callback=_window,
    help="What is shown of frames of more than 8 bits; default: what a DICOM file says.",
)
whole_frame_option = click.option(
    "--whole-frame", is_flag=True, help="Ignore the tissue region of a DICOM file and its spacing."
)
part_option = click.option(
    "--part",
    type=click.Choice(["train", "val", "test", "unseen", "all"]),
    help="Part of the source's own split; unseen: the images of DATA that a shipped student was "
    "not trained on; all: every image of DATA. Default: test, or unseen for a shipped student.",
)


def given(context: click.Context, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that were named on the command line."""
    return {
        name: value
        for name, value in settings.items()
        if context.get_parameter_source(name) != ParameterSource.DEFAULT
    }
