"""Recipes for the updates of a fleet: what RAUC, SWUpdate and Mender need to ship one bundle.

A recipe is a folder: the content, the updater's own description of it with board and L4T where
that updater compares them, the script that puts the bundle in place and takes it back where its
self-test fails, and ``make.sh``, which packs and signs with the maker's keys. Nothing is signed
here.

The formats are those of

- RAUC: https://rauc.readthedocs.io/en/latest/reference.html, "Manifest", "[handler] Section" and
  "Custom Handlers (Interface)" (docs/reference.rst of rauc/rauc at 3991031);
- SWUpdate: https://sbabic.github.io/swupdate/sw-description.html, "Board specific settings",
  "Scripts", and handlers.html, "Archive handler" (doc/source of sbabic/swupdate);
- Mender: Documentation/update-modules-v3-file-api.md of mendersoftware/mender, and
  ``mender-artifact write module-image``.
"""

from __future__ import annotations

import io
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...runtime.bundle import open_bundle
from ...runtime.errors import InputError
from ...runtime.files import atomic_folder, sha256_of_file

_SCRIPTS = Path(__file__).with_name("updates")
_HEAD = "#!/bin/sh\n# Written by edgeseg {version} for bundle {bundle}.\nset -u\n\n"
_PLAIN = {
    "board": re.compile(r"[a-z][a-z0-9-]{0,62}"),
    "l4t": re.compile(r"\d{1,3}(\.\d{1,3}){1,2}"),
    "version": re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,62}"),
    "selftest": re.compile(r"[A-Za-z0-9./_=-]+( [A-Za-z0-9./_=-]+)*"),
}
# A key may also be what is no file, such as a PKCS #11 URI.
_FROM_HERE = (
    "set -eu\n# A path is one from here, not from the recipe's folder.\n"
    '[ ! -f "${CERT:-}" ] || CERT=$(realpath "$CERT")\n'
    '[ ! -f "${KEY:-}" ] || KEY=$(realpath "$KEY")\n'
    'cd "$(dirname "$0")"\n'
)
INCOMING = "/data/edgeseg/incoming"  # where SWUpdate unpacks; a path in sw-description is fixed


@dataclass(frozen=True)
class UpdateRecipe:
    """What an update is made from; every text is plain enough for sh, ini and libconfig alike."""

    bundle: Path  # folder
    sha256: str  # of its SHA256SUMS
    board: str  # such as "orin-nano-8"
    l4t: str  # such as "36.4.3"
    version: str  # of the update
    selftest: str  # command that gets a bundle and ends with 0 where it passes

    def __post_init__(self) -> None:
        """Raise InputError (E-RECIPE-FIELD) for a text that a format could misread."""
        for name, pattern in _PLAIN.items():
            value = getattr(self, name)
            if not pattern.fullmatch(value):
                raise InputError(
                    "E-RECIPE-FIELD", f"{name} {value!r} is not of the form {pattern.pattern}"
                )

    @property
    def compatible(self) -> str:
        """The string by which a device says that this update is for it."""
        return f"{self.board}-l4t-{self.l4t}"


def write_recipe(recipe: UpdateRecipe, updater: str, out: Path) -> None:
    """Write the recipe of a bundle for one of `UPDATERS` into the new folder `out`.

    Raises InputError: E-RECIPE-UPDATER, E-RECIPE-BUNDLE (no folder), the errors of `open_bundle`,
    E-OUT-EXISTS; OutputError: E-OUT-WRITE.
    """
    if updater not in UPDATERS:
        raise InputError("E-RECIPE-UPDATER", f"no {updater!r}; choose of {', '.join(UPDATERS)}")
    with atomic_folder(out) as folder:
        UPDATERS[updater](recipe, folder)
        _write_script(folder / "device" / "edgeseg-recover.sh", recipe, "recover")
        (folder / "device" / "edgeseg-recover.service").write_text(_RECOVER_UNIT, encoding="utf-8")
        (folder / "make.sh").chmod(0o755)


def recipe_of(
    bundle: Path, *, board: str, l4t: str, version: str | None, selftest: str
) -> UpdateRecipe:
    """Verify a bundle and return what its recipes are made from; errors as `write_recipe`.

    version: None takes the beginning of the bundle's hash.
    """
    sha256 = open_bundle(bundle).sha256
    if not bundle.is_dir():
        raise InputError("E-RECIPE-BUNDLE", f"{bundle} is one file; unpack it into a folder first")
    return UpdateRecipe(bundle, sha256, board, l4t, version or sha256[:12], selftest)


def _rauc(recipe: UpdateRecipe, folder: Path) -> None:
    """``content/`` becomes the update; its handler replaces the installation into slots."""
    content = folder / "content"
    shutil.copytree(recipe.bundle, content / "bundle")
    _write_script(content / "handler.sh", recipe, "rauc")
    (content / "manifest.raucm").write_text(
        f"[update]\ncompatible={recipe.compatible}\nversion={recipe.version}\n"
        f"description=edgeseg bundle {recipe.sha256}\n\n"
        "[bundle]\nformat=verity\n\n[handler]\nfilename=handler.sh\n",
        encoding="utf-8",
    )
    (folder / "make.sh").write_text(
        f"#!/bin/sh\n# CERT and KEY: the maker's own, PEM.\n{_FROM_HERE}"
        f'rauc bundle --cert="$CERT" --key="$KEY" content edgeseg-{recipe.version}.raucb\n',
        encoding="utf-8",
    )
    drop_in = folder / "device" / "rauc.service.d" / "edgeseg.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(_RAUC_DROP_IN, encoding="utf-8")
    (folder / "device" / "system.conf").write_text(
        _SYSTEM_CONF.format(compatible=recipe.compatible), encoding="utf-8"
    )


def _swupdate(recipe: UpdateRecipe, folder: Path) -> None:
    """``/etc/hwrevision`` of a device must say the board and, as its revision, the L4T."""
    _write_tar(folder / "bundle.tar", recipe)
    _write_script(folder / "switch.sh", recipe, "swupdate")
    sums = {name: sha256_of_file(folder / name) for name in ("bundle.tar", "switch.sh")}
    (folder / "sw-description").write_text(
        "software =\n{\n"
        f'    version = "{recipe.version}";\n'
        f'    description = "edgeseg bundle {recipe.sha256}";\n'
        f"    {recipe.board} = {{\n"
        f'        hardware-compatibility: [ "{recipe.l4t}" ];\n'
        "        files: (\n            {\n"
        '                filename = "bundle.tar";\n'
        '                type = "archive";\n'
        f'                path = "{INCOMING}";\n'
        f'                sha256 = "{sums["bundle.tar"]}";\n'
        '                properties: { create-destination = "true"; };\n'
        "            }\n        );\n"
        "        scripts: (\n            {\n"
        '                filename = "switch.sh";\n'
        '                type = "shellscript";\n'
        f'                sha256 = "{sums["switch.sh"]}";\n'
        "            }\n        );\n"
        "    };\n}\n",
        encoding="utf-8",
    )
    (folder / "make.sh").write_text(
        "#!/bin/sh\n# KEY and CERT: the maker's own, PEM; unset where no signature is checked.\n"
        f'{_FROM_HERE}files="sw-description"\n'
        'if [ -n "${KEY:-}" ]; then\n'
        '    openssl cms -sign -in sw-description -out sw-description.sig -signer "$CERT" \\\n'
        '        -inkey "$KEY" -outform DER -nosmimecap -binary\n'
        '    files="$files sw-description.sig"\nfi\n'
        "for file in $files switch.sh bundle.tar; do echo $file; done |\n"
        f"    cpio -o -H crc --quiet >edgeseg-{recipe.version}.swu\n",
        encoding="utf-8",
    )
    device = folder / "device"
    device.mkdir()
    (device / "hwrevision").write_text(f"{recipe.board} {recipe.l4t}\n", encoding="utf-8")


def _mender(recipe: UpdateRecipe, folder: Path) -> None:
    """The update module is installed once on each device; the artifact holds the bundle alone."""
    _write_tar(folder / "bundle.tar", recipe)
    device = folder / "device"
    device.mkdir()
    _write_script(device / "edgeseg-bundle", recipe, "mender")
    (device / "device_type").write_text(f"device_type={recipe.compatible}\n", encoding="utf-8")
    (folder / "make.sh").write_text(
        "#!/bin/sh\n# KEY: the maker's own, PEM; unset for an artifact that is not signed.\n"
        "# Not PKCS #8: openssl rsa -traditional -in key.pem -out mender.pem\n"
        f"{_FROM_HERE}"
        "mender-artifact write module-image --type edgeseg-bundle \\\n"
        f"    --device-type {recipe.compatible} --artifact-name edgeseg-{recipe.version} \\\n"
        f"    --software-name edgeseg --software-version {recipe.version} \\\n"
        f"    --provides edgeseg.bundle_sha256:{recipe.sha256} \\\n"
        '    --file bundle.tar ${KEY:+--key "$KEY"} \\\n'
        f"    --output-path edgeseg-{recipe.version}.mender\n",
        encoding="utf-8",
    )


def _write_script(path: Path, recipe: UpdateRecipe, tail: str) -> None:
    from ... import __version__

    text = _HEAD.format(version=__version__, bundle=recipe.sha256)
    for name in ("switch", tail):
        text += (_SCRIPTS / f"{name}.sh").read_text(encoding="utf-8")
    for mark, value in {
        "@SELFTEST@": recipe.selftest,
        "@L4T@": recipe.l4t,
        "@BUNDLE@": recipe.sha256,
        "@INCOMING@": INCOMING,
    }.items():
        text = text.replace(mark, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def _write_tar(path: Path, recipe: UpdateRecipe) -> None:
    """Write the bundle as ``bundle/``: same bundle, same bytes."""
    files = sorted(file for file in recipe.bundle.rglob("*") if file.is_file())
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for file in files:
            name = f"bundle/{file.relative_to(recipe.bundle).as_posix()}"
            entry = tarfile.TarInfo(name)
            content = file.read_bytes()
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))


_SYSTEM_CONF = """\
# For a device whose operating system RAUC does not update: without slots, as nothing is written to
# one. Where it does, its own file stays, with this compatible string.
[system]
compatible={compatible}
bootloader=noop
bundle-formats=verity

[keyring]
path=/etc/rauc/keyring.pem
"""
_RAUC_DROP_IN = """\
# For the system.conf that comes with this: RAUC installs nothing unless it knows which slot was
# booted, or that it was none of its own.
[Service]
ExecStart=
ExecStart=/usr/bin/rauc --override-boot-slot=_external_ service
"""
_RECOVER_UNIT = """\
# /data: what is mounted for EDGESEG_ROOT.
[Unit]
Description=Take back an edgeseg update that a power cut interrupted
RequiresMountsFor=/data
# The unit of the application that opens current/bundle says: After=edgeseg-recover.service
Before=rauc.service swupdate.service mender-updated.service mender-client.service

[Service]
Type=oneshot
ExecStart=/usr/lib/edgeseg/edgeseg-recover.sh

[Install]
WantedBy=multi-user.target
"""

# To add an updater: a function above, a script in `updates`, and a line here.
UPDATERS: dict[str, Callable[[UpdateRecipe, Path], None]] = {
    "rauc": _rauc,
    "swupdate": _swupdate,
    "mender": _mender,
}
