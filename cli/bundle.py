"""The commands of a bundle as a thing that is handed on: inspected, packed, signed, verified."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from .console import (
    json_option,
    key_option,
    out_option,
    path_type,
)


@click.group()
def bundle() -> None:
    """Look into bundles, pack, sign and verify them."""


@bundle.command()
@click.argument("path", metavar="BUNDLE", type=path_type())
@key_option
@json_option
def inspect(path: Path, key: Path | None, as_json: bool) -> None:
    """Print the data sheet of BUNDLE; no model is loaded."""
    from ..export.datasheet import datasheet_of, render_datasheet
    from ..runtime.bundle import open_bundle

    sheet = datasheet_of(open_bundle(path, key=key))
    click.echo(json.dumps(sheet, indent=1) if as_json else render_datasheet(sheet))


@bundle.command()
@click.argument("path", metavar="BUNDLE", type=path_type())
@key_option
@json_option
def verify(path: Path, key: Path | None, as_json: bool) -> None:
    """Compare every byte of BUNDLE with its hashes, and these with the signature if a key is given.

    Without --key this tells damage, not intent: who can change a file can change the hashes.
    """
    from ..runtime.bundle import open_bundle

    found = open_bundle(path, key=key)
    signature = "verified" if key else "not verified" if found.is_signed else "none"
    if as_json:
        result = {
            "bundle": str(path),
            "sha256": found.sha256,
            "signature": signature,
            "signer": found.signer or None,
        }
        click.echo(json.dumps(result, indent=1))
    else:
        by = f", by {found.signer}" if found.signer else ""
        click.echo(
            f"{path}: {len(found.manifest.files)} files hold, signature {signature}{by}\n"
            f"SHA-256 {found.sha256}"
        )


@bundle.command()
@click.argument("path", metavar="BUNDLE", type=path_type())
@click.option("--key", type=path_type(), required=True, help="PEM of the private key.")
@click.option(
    "--certificate",
    type=path_type(),
    help="PEM of the key's certificate, those between it and the root after it; a device then "
    "trusts the authority that issued it, and needs a clock.",
)
def sign(path: Path, key: Path, certificate: Path | None) -> None:
    """Sign BUNDLE with an elliptic-curve key: OpenSSF Model Signing, `model.sig`."""
    from ..runtime.bundle import open_bundle
    from ..runtime.signature import sign_bundle

    sign_bundle(open_bundle(path).store, key, certificate)
    click.echo(f"{path}: signed")


@bundle.command()
@click.argument("path", metavar="BUNDLE", type=path_type())
@out_option("The file to write; must be new. [default: by name]", required=False)
def pack(path: Path, out: Path | None) -> None:
    """Write the folder BUNDLE as one file, NAME.edgeseg: same bundle, same bytes."""
    from ..runtime.bundle import pack_bundle
    from ..runtime.store import SUFFIX

    whole = Path(os.path.realpath(path)).name  # `Path.resolve` fails for a link to itself
    out = out or Path(whole if whole.endswith(SUFFIX) else whole + SUFFIX)
    pack_bundle(path, out)
    click.echo(f"packed: {out} ({out.stat().st_size} bytes)")


@bundle.command()
@click.argument("path", metavar="BUNDLE", type=path_type())
@out_option(
    "The folder to write; must be new. [default: beside the file itself, by its name]",
    required=False,
)
def unpack(path: Path, out: Path | None) -> None:
    """Write the packed BUNDLE as a folder, once every byte of it was verified."""
    from ..runtime.bundle import unpack_bundle

    # What cannot be read is told where it is opened; `Path` would raise here.
    is_link = os.path.islink(path)  # noqa: PTH114
    file = Path(os.path.realpath(path)) if is_link else path
    out = out or file.parent / file.stem  # beside the file: there a kit's plan is looked for
    unpack_bundle(path, out)
    click.echo(f"unpacked: {out}")
