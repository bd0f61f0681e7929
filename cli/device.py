"""The commands for devices over ssh, and for updates of a fleet."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..export.kinds.kind import TYPED_ONNX
from ..runtime.errors import EdgesegError, InputError
from .console import (
    engine_option,
    json_option,
    number_option,
    out_option,
    path_type,
)

if TYPE_CHECKING:
    from ..export.device.jobs import Outcome
    from ..export.device.registry import HostKey
    from ..export.device.transfer import Link

registry_option = click.option(
    "--registry",
    type=path_type(file_okay=False),
    help="Folder of the list of devices; default: $EDGESEG_DEVICES, or ~/.config/edgeseg.",
)
retries_option = click.option(
    "--retries",
    type=click.IntRange(0, 20),
    default=3,
    show_default=True,
    help="After a broken connection; each resumes.",
)


@click.group()
def device() -> None:
    """Look at devices over ssh, build on them, measure and predict there."""


@device.command()
@click.argument("name")
@click.argument("url", metavar="ssh://USER@HOST[:PORT]")
@click.option("--fingerprint", help="SHA256:… that the device's host key must have.")
@click.option("--identity", type=path_type(exists=True, dir_okay=False), help="Private key file.")
@click.option("--python", default="python3", show_default=True, help="Interpreter there.")
@registry_option
def add(
    name: str,
    url: str,
    fingerprint: str | None,
    identity: Path | None,
    python: str,
    registry: Path | None,
) -> None:
    """Add a device, or replace NAME, once its host key is accepted and a login works."""
    from ..export.device.adding import add_device
    from ..export.device.registry import Registry, default_folder

    def accept(key: HostKey) -> bool:
        click.echo(f"{url} shows the {key.kind} key {key.fingerprint}", err=True)
        if not sys.stdin.isatty():
            return False
        return click.confirm("Is it the device's own?", default=False, err=True)

    found = Registry.read(registry or default_folder())
    added = add_device(
        found, name, url, accept=accept, fingerprint=fingerprint, identity=identity, python=python
    )
    click.echo(f"{added.name}: {added.address}, {added.key.fingerprint}")


@device.command("list")
@json_option
@registry_option
def list_devices(as_json: bool, registry: Path | None) -> None:
    """List the devices."""
    from ..export.device.registry import Registry, default_folder
    from ..export.device.table import render_table

    devices = Registry.read(registry or default_folder()).devices.values()
    rows = [(each.name, str(each.address), each.key.fingerprint) for each in devices]
    heads = ("device", "address", "host key")
    if as_json:
        click.echo(json.dumps([dict(zip(heads, row, strict=True)) for row in rows], indent=1))
    else:
        click.echo(render_table(heads, rows))


@device.command()
@click.argument("name")
@registry_option
def remove(name: str, registry: Path | None) -> None:
    """Forget a device and its host key; nothing on it is touched."""
    from ..export.device.registry import Registry, default_folder

    Registry.read(registry or default_folder()).remove(name)
    click.echo(f"{name}: removed from the list")


@device.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
@registry_option
def doctor(names: tuple[str, ...], as_json: bool, registry: Path | None) -> None:
    """Say what devices are, what they lack and the exact fix; installs nothing."""
    from ..export.device.doctor import examine, render, to_json
    from ..export.device.jobs import on_each

    outcomes = on_each(_links(names, registry, retries=0), examine)
    click.echo(to_json(outcomes) if as_json else render(outcomes))
    _raise_first(outcomes)


@device.command()
@click.argument("name")
@click.argument("kit", type=path_type(exists=True, file_okay=False))
@click.option("--precision", type=click.Choice(tuple(TYPED_ONNX)), help="Default: the kit's.")
@click.option("--frame", is_flag=True, help="Build the kit's frame graph instead of the network.")
@out_option("New folder for engine and log.")
@retries_option
@registry_option
def build(
    name: str,
    kit: Path,
    precision: str | None,
    frame: bool,
    out: Path,
    retries: int,
    registry: Path | None,
) -> None:
    """Build the TensorRT engine of KIT on a device, replay its vectors, bring it back."""
    from ..export.device import jobs

    (link,) = _links((name,), registry, retries=retries)
    built = jobs.build(link, kit, precision, out, frame=frame)
    vectors, how = built.facts["vectors"], "checked again" if built.reused else "built"
    click.echo(
        f"{name}: {built.facts['precision']} {how} with TensorRT {built.facts['tensorrt']} on "
        f"{built.facts['model'] or 'a PC'}; at most {vectors['flipped_share']:.3%} of a frame's "
        f"lesion unlike the host's in {vectors['frames']} frames; {out}"
    )


@device.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.argument("bundle", type=path_type(exists=True))
@engine_option
@number_option("--rounds", click.IntRange(1), 400)
@json_option
@retries_option
@registry_option
def benchmark(
    names: tuple[str, ...],
    bundle: Path,
    engine: str | None,
    rounds: int,
    as_json: bool,
    retries: int,
    registry: Path | None,
) -> None:
    """Time BUNDLE on devices, all at once, and print one table.

    A kit is measured with the engine that `edgeseg device build` left there.
    """
    from ..export.device import jobs

    links = _links(names, registry, retries=retries)
    outcomes = jobs.on_each(links, lambda link: jobs.benchmark(link, bundle, engine, rounds))
    if as_json:
        content = {each.name: each.result or {"error": str(each.error)} for each in outcomes}
        click.echo(json.dumps(content, indent=1))
    else:
        click.echo(jobs.render_benchmark(outcomes))
    _raise_first(outcomes)


@device.command()
@click.argument("name")
@click.argument("bundle", type=path_type(exists=True))
@click.argument("images", metavar="IMAGE...", type=path_type(), nargs=-1, required=True)
@out_option("New folder for the results.")
@engine_option
@retries_option
@registry_option
def predict(
    name: str,
    bundle: Path,
    images: tuple[Path, ...],
    out: Path,
    engine: str | None,
    retries: int,
    registry: Path | None,
) -> None:
    """Segment IMAGEs (files or folders) on a device; --out is filled as by `edgeseg predict`."""
    from ..export.device import jobs

    (link,) = _links((name,), registry, retries=retries)
    count = jobs.predict(link, bundle, engine, images, out)
    click.echo(f"{name}: {count} images → {out}")


@device.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@registry_option
def clean(names: tuple[str, ...], registry: Path | None) -> None:
    """Remove all that edgeseg left on devices (~/.cache/edgeseg), unless a job runs there."""
    from ..export.device.jobs import clean_device, on_each

    outcomes = on_each(_links(names, registry, retries=0), clean_device)
    for each in outcomes:
        click.echo(f"{each.name}: {each.error or f'{each.result} bytes removed'}")
    _raise_first(outcomes)


@device.command()
@click.argument("bundle", type=path_type(exists=True))
@click.option(
    "--for",
    "updater",
    type=click.Choice(("rauc", "swupdate", "mender")),
    required=True,
    help="Updater of the fleet.",
)
@click.option("--board", required=True, help="Of the devices, such as orin-nano-8.")
@click.option("--l4t", required=True, help="Jetson Linux of the devices, such as 36.4.3.")
@click.option("--version", help="Of the update; default: the beginning of the bundle's hash.")
@click.option(
    "--selftest",
    default="edgeseg selftest",
    show_default=True,
    help="Command on the device that gets the bundle; not 0 rolls back.",
)
@out_option("New folder for the recipe.")
def recipe(
    bundle: Path, updater: str, board: str, l4t: str, version: str | None, selftest: str, out: Path
) -> None:
    """Write what an updater needs to ship BUNDLE to a fleet, with roll-back (docs/updates.md)."""
    from ..export.device.recipes import recipe_of, write_recipe

    found = recipe_of(bundle, board=board, l4t=l4t, version=version, selftest=selftest)
    write_recipe(found, updater, out)
    click.echo(f"{updater} for {found.compatible}: {out}, pack it with {out / 'make.sh'}")


def _links(names: Sequence[str], registry: Path | None, *, retries: int) -> tuple[Link, ...]:
    """Return a link to each device of these names, each once."""
    from ..export.device.registry import Registry, default_folder
    from ..export.device.transfer import Link

    if len(set(names)) < len(names):
        raise InputError("E-DEVICE-NAME", "a device is named twice; name each once")
    found = Registry.read(registry or default_folder())

    def link_of(name: str) -> Link:
        prefix = f"{name}: " if len(names) > 1 else ""
        return Link(
            found.find(name), found, lambda text: click.echo(prefix + text, err=True), retries
        )

    return tuple(link_of(name) for name in names)


def _raise_first(outcomes: Sequence[Outcome[Any]]) -> None:
    """End with the first error's exit code, after all results were shown."""
    errors: list[EdgesegError] = [each.error for each in outcomes if each.error is not None]
    if errors:
        raise errors[0]
