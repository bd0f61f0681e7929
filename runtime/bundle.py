"""The bundle: a folder with models, a manifest and their hashes; nothing is loaded unverified.

Layout, version 2::

    manifest.json     what it is: contract, target, precision, models, provenance, evidence
    SHA256SUMS        SHA-256 of every file but itself and the signature (`sha256sum -c` reads it)
    model.sig         optional: who made it
    <model files>     named in the manifest's `models`
    vectors/          golden frames and what each engine answered to them
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple, Union

from .contract import InputContract
from .errors import InputError, Refused
from .files import sha256_of_file

MAJOR, MINOR = 2, 0  # of the manifest's schema; another minor of this major is read
SCHEMA = f"edgeseg.bundle/{MAJOR}.{MINOR}"
SPLIT_FILE = "split.json"  # of the training, beside a checkpoint and in its bundles
MAX_MANIFEST_BYTES = 1 << 20  # compared with the file size before anything is read
MAX_SUMS_BYTES = 1 << 20
_MANIFEST = "manifest.json"
_SUMS = "SHA256SUMS"
SIGNATURE = "model.sig"  # of everything else; in no list, as it comes last
_SCHEMA = re.compile(r"edgeseg\.bundle/(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")


@dataclass(frozen=True)
class GoldenVectors:
    """Frames and what each engine answered to them at export, without any layout or option.

    Frames and masks are files of the bundle, see `pgm`; a mask is 255 where lesion. On another
    machine an engine passes while, for every frame, the pixels that differ are at most
    `max_flipped` of the lesion's (of 1 px where there is none).
    """

    frames: Tuple[str, ...] = ()  # phantoms: no image of a patient travels
    masks: Mapping[str, Tuple[str, ...]] = field(default_factory=dict)  # engine -> one a frame
    max_flipped: Mapping[str, float] = field(default_factory=dict)  # engine -> share, 0 to 1

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> GoldenVectors:
        """Read them from JSON. Raises ValueError, TypeError or KeyError for anything malformed."""
        unknown = set(content) - {"frames", "masks", "max_flipped"}
        if unknown:
            raise ValueError(f"vectors has unknown fields {sorted(unknown)}")
        frames = _names(content["frames"], "vectors.frames")
        masks = {
            engine: _names(names, f"vectors.masks.{engine}")
            for engine, names in content["masks"].items()
        }
        largest = dict(content["max_flipped"].items())
        if set(largest) != set(masks):
            raise ValueError("vectors has masks and max_flipped of different engines")
        for engine, share in largest.items():
            if len(masks[engine]) != len(frames):
                raise ValueError(f"vectors has not one mask a frame of {engine}")
            if type(share) not in (int, float) or not (math.isfinite(share) and 0 <= share <= 1):
                raise ValueError(f"vectors.max_flipped of {engine} is not in 0..1")
        return cls(frames, masks, largest)

    @property
    def files(self) -> Tuple[str, ...]:
        """Every file that is named."""
        return (*self.frames, *(name for names in self.masks.values() for name in names))


# Of the manifest's fields; the others are JSON objects.
_KINDS = {
    **dict.fromkeys(("name", "target", "precision"), str),
    "contract": InputContract,
    "vectors": GoldenVectors,
}


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and where it comes from."""

    name: str  # of the network, such as "attunet-16"
    target: str  # key in the exporter's table of targets
    precision: str  # "fp32", "fp16" or "int8"
    contract: InputContract
    models: Mapping[str, Tuple[str, ...]]  # engine -> its files, preferred engine first
    files: Mapping[str, str]  # path in the bundle -> SHA-256, all but manifest, sums, signature
    complexity: Mapping[str, Any] = field(default_factory=dict)  # parameters, macs, ...
    provenance: Mapping[str, Any] = field(default_factory=dict)  # checkpoint, data, tool versions
    evidence: Mapping[str, Any] = field(default_factory=dict)  # parity hops, accuracy
    # Frames a call takes, "min" and "max"; more than one needs an engine of the caller's own.
    batch: Mapping[str, Any] = field(default_factory=lambda: {"min": 1, "max": 1})
    # Precision -> file, width and height in px: ONNX with pre- and post-processing inside.
    frame_graphs: Mapping[str, Any] = field(default_factory=dict)
    vectors: GoldenVectors = field(default_factory=GoldenVectors)
    # Where the image is in a maker's frames; empty: the whole frame is the image.
    layout: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the manifest as canonical JSON text: same content, same bytes."""
        content = {"schema": SCHEMA, **asdict(self)}
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: Union[str, bytes]) -> Manifest:
        """Read the result of `to_json`, as text or UTF-8.

        Fields that this version does not know are refused in a manifest of its own minor version
        or an older one, and left out of a newer one.

        Raises Refused: E-MANIFEST-NEWER (other major version), E-MANIFEST-FIELD (malformed).
        """
        try:
            content = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
            if _minor_of(content.pop("schema")) > MINOR:
                known = {each.name for each in fields(cls)}
                content = {key: value for key, value in content.items() if key in known}
            content["contract"] = InputContract.from_dict(content["contract"])
            content["models"] = {
                engine: _names(names, f"models.{engine}")
                for engine, names in content["models"].items()
            }
            if "vectors" in content:
                content["vectors"] = GoldenVectors.from_dict(content["vectors"])
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


def _minor_of(schema: Any) -> int:
    """Return the minor version of a schema of our major. Raises Refused (E-MANIFEST-NEWER)."""
    found = _SCHEMA.fullmatch(schema) if isinstance(schema, str) else None
    if found is None or int(found[1]) != MAJOR:
        mend = "update edgeseg" if found and int(found[1]) > MAJOR else "export the bundle again"
        raise Refused(
            "E-MANIFEST-NEWER", f"bundle schema is {schema!r}, this tool reads {SCHEMA!r}; {mend}"
        )
    return int(found[2])


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """Refuse an object with a key twice: two readers would differ on what it says."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object has a key twice")
    return content


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _names(value: Any, what: str) -> Tuple[str, ...]:
    """Return a JSON list of strings as a tuple. Raises TypeError."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{what} is no list of names")
    return tuple(value)


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
        return {name: self.read(name) for name in self.manifest.models[engine]}

    def read(self, name: str) -> bytes:
        """Return one verified file.

        Args:
            name: in the manifest's `files`.

        Raises Refused (E-BUNDLE-HASH) if it changed since the bundle was opened.
        """
        content = (self.path / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name]:
            raise _changed(self.path / name)
        return content


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
    named = {name for names in manifest.models.values() for name in names}
    named.update(manifest.vectors.files)
    if set(manifest.files) != set(_names_in(path)) or not named <= set(manifest.files):
        raise Refused("E-MANIFEST-FIELD", f"{path / _MANIFEST} does not list the bundle's files")
    for name, digest in _parse_sums(listed.decode("utf-8", "replace")):
        if name != _MANIFEST and manifest.files[name] != digest:
            raise _changed(path / name)
    return Bundle(path, manifest, sha256_of_file(path / _SUMS))


def _names_in(folder: Path) -> Tuple[str, ...]:
    """Every file below `folder` but manifest, sums and signature, sorted; a link is refused."""
    names = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Refused(
                "E-BUNDLE-LINK", f"{path} is no plain file; a bundle holds no links and no devices"
            )
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (_MANIFEST, _SUMS, SIGNATURE):
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
