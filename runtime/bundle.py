"""The bundle: a folder with models, a manifest and their hashes; nothing is loaded unverified.

Layout, version 1::

    manifest.json     what it is: contract, target, precision, models, provenance, evidence
    SHA256SUMS        SHA-256 of every other file (`sha256sum -c SHA256SUMS` reads it)
    <model files>     named in the manifest's `models`
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple, Union

from .contract import InputContract
from .errors import InputError, Refused
from .files import sha256_of_file

SCHEMA = "edgeseg.bundle/1"
SPLIT_FILE = "split.json"  # of the training, beside a checkpoint and in its bundles
MAX_MANIFEST_BYTES = 1 << 20  # compared with the file size before anything is read
MAX_SUMS_BYTES = 1 << 20
_MANIFEST = "manifest.json"
_SUMS = "SHA256SUMS"
# Of the manifest's fields; the others are JSON objects.
_KINDS = {"name": str, "target": str, "precision": str, "contract": InputContract}


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and where it comes from."""

    name: str  # of the network, such as "attunet-16"
    target: str  # key in the exporter's table of targets
    precision: str  # "fp32", "fp16" or "int8"
    contract: InputContract
    models: Mapping[str, Tuple[str, ...]]  # engine -> its files, preferred engine first
    files: Mapping[str, str]  # path in the bundle -> SHA-256, all but manifest and sums
    complexity: Mapping[str, Any] = field(default_factory=dict)  # parameters, macs, ...
    provenance: Mapping[str, Any] = field(default_factory=dict)  # checkpoint, data, tool versions
    evidence: Mapping[str, Any] = field(default_factory=dict)  # parity hops, accuracy
    # Frames a call takes, "min" and "max"; more than one needs an engine of the caller's own.
    batch: Mapping[str, Any] = field(default_factory=lambda: {"min": 1, "max": 1})
    # Precision -> file, width and height in px: ONNX with pre- and post-processing inside.
    frame_graphs: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the manifest as canonical JSON text: same content, same bytes."""
        content = {"schema": SCHEMA, **asdict(self)}
        content["models"] = {engine: list(paths) for engine, paths in self.models.items()}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> Manifest:
        """Read the result of `to_json`, as text or UTF-8.

        Raises Refused: E-MANIFEST-NEWER (other major version), E-MANIFEST-FIELD (malformed).
        """
        try:
            content = json.loads(text)
            schema = content.pop("schema")
            if schema != SCHEMA:
                raise Refused(
                    "E-MANIFEST-NEWER", f"bundle schema is {schema!r}, this tool reads {SCHEMA!r}"
                )
            content["contract"] = InputContract.from_dict(content["contract"])
            content["models"] = {
                str(engine): tuple(str(path) for path in paths)
                for engine, paths in content["models"].items()
            }
            manifest = cls(**content)
            for each in fields(cls):
                if not isinstance(getattr(manifest, each.name), _KINDS.get(each.name, dict)):
                    raise TypeError(f"{each.name} is of another type")
            return manifest
        except (
            *(ValueError, TypeError, KeyError, AttributeError, InputError),
            *(OverflowError, RecursionError),  # of numbers and nesting beyond reason
        ) as error:
            raise Refused(
                "E-MANIFEST-FIELD", f"manifest.json is malformed ({error}); export the bundle again"
            ) from error


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    manifest: Manifest
    sha256: str  # of SHA256SUMS, hence of everything in the bundle

    def model_files(self, engine: str) -> Dict[str, bytes]:
        """Return the verified files of one engine, by name.

        Raises InputError (E-ENGINE-NOT-IN-BUNDLE); Refused (E-BUNDLE-HASH) if a file changed
        since the bundle was opened.
        """
        if engine not in self.manifest.models:
            raise InputError(
                "E-ENGINE-NOT-IN-BUNDLE",
                f"{self.path} has no model for {engine!r}; "
                f"it has {', '.join(self.manifest.models)}",
            )
        files = {}
        for name in self.manifest.models[engine]:
            content = (self.path / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != self.manifest.files[name]:
                raise _changed(self.path / name)
            files[name] = content
        return files


def seal_bundle(folder: Path, manifest_fields: Mapping[str, Any]) -> Manifest:
    """Hash the files in `folder`, then write its manifest.json and SHA256SUMS.

    Args:
        folder: holds the model files; usually the temporary folder of `atomic_folder`.
        manifest_fields: every field of `Manifest` but `files`.
    """
    files = {name: sha256_of_file(folder / name) for name in _names_in(folder)}
    manifest = Manifest(files=files, **manifest_fields)
    (folder / _MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    (folder / _SUMS).write_text(_sums_text(folder), encoding="utf-8")
    return manifest


def open_bundle(path: Path) -> Bundle:
    """Verify a bundle, byte for byte, and return it.

    Raises:
        InputError: E-BUNDLE-MISSING (no bundle there).
        Refused: E-BUNDLE-HASH (a file was changed, added or removed), E-MANIFEST-SIZE,
            E-MANIFEST-NEWER, E-MANIFEST-FIELD.
    """
    if not (path / _MANIFEST).is_file() or not (path / _SUMS).is_file():
        raise InputError(
            "E-BUNDLE-MISSING",
            f"{path} is no bundle (no {_MANIFEST} and {_SUMS}); make one with `edgeseg export`",
        )
    for name, limit in ((_MANIFEST, MAX_MANIFEST_BYTES), (_SUMS, MAX_SUMS_BYTES)):
        if (path / name).stat().st_size > limit:
            raise Refused("E-MANIFEST-SIZE", f"{path / name} is over {limit} bytes")
    listed = (path / _SUMS).read_bytes()
    if listed != _sums_text(path).encode("utf-8", "surrogateescape"):  # names may be any bytes
        raise _changed(_first_difference(path, listed))
    manifest = Manifest.from_json((path / _MANIFEST).read_bytes())
    model_files = {name for names in manifest.models.values() for name in names}
    if set(manifest.files) != set(_names_in(path)) or not model_files <= set(manifest.files):
        raise Refused("E-MANIFEST-FIELD", f"{path / _MANIFEST} does not list the bundle's files")
    return Bundle(path, manifest, sha256_of_file(path / _SUMS))


def _names_in(folder: Path) -> Tuple[str, ...]:
    """Every file below `folder` but manifest and sums, sorted; a link is refused."""
    names = []
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise Refused("E-BUNDLE-LINK", f"{path} is a link; a bundle holds plain files only")
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (_MANIFEST, _SUMS):
            names.append(name)
    return tuple(sorted(names))


def _sums_text(folder: Path) -> str:
    names = sorted((_MANIFEST, *_names_in(folder)))
    return "".join(f"{sha256_of_file(folder / name)}  {name}\n" for name in names)


def _first_difference(path: Path, listed: bytes) -> Path:
    """Name the file to blame for a mismatch between SHA256SUMS and the folder."""
    actual = dict(_parse_sums(_sums_text(path)))
    expected = dict(_parse_sums(listed.decode("utf-8", "replace")))
    for name in sorted(set(actual) | set(expected)):
        if actual.get(name) != expected.get(name):
            return path / name
    return path / _SUMS


def _parse_sums(text: str) -> Tuple[Tuple[str, str], ...]:
    pairs = (line.split("  ", 1) for line in text.splitlines())
    return tuple((pair[1], pair[0]) for pair in pairs if len(pair) == 2)


def _changed(file: Path) -> Refused:
    return Refused(
        "E-BUNDLE-HASH", f"{file} does not match SHA256SUMS; fetch or export the bundle again"
    )
