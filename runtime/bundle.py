"""The bundle: models, a manifest and their hashes; nothing is loaded unverified.

A folder, or the same files packed into one (see `store`)::

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
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple, Union

from .contract import InputContract
from .errors import MALFORMED, InputError, Refused
from .files import require_new
from .layout import Layout
from .paths import takes_paths
from .proof import Proof, Provenance
from .store import (
    MANIFEST,
    SIGNATURE,
    SUMS,
    Archive,
    Folder,
    Sealed,
    Store,
    changed,
    open_archive,
    reading,
    require_name,
    write_archive,
    write_folder,
)

# Major versions of the manifest's schema and the newest minor of each that this version knows;
# another minor is read. What needs contract 2, or something of the CPU, is written in 3, so that no
# reader that knows neither takes it; all else stays in 2.
MINORS: Mapping[int, int] = MappingProxyType({2: 0, 3: 0})
SCHEMA = "edgeseg.bundle/2.0"
SCHEMA_3 = "edgeseg.bundle/3.0"
SPLIT_FILE = "split.json"  # of the training, beside a checkpoint and in its bundles
MAX_MANIFEST_BYTES = 1 << 20  # compared with the file size before anything is read
MAX_SUMS_BYTES = 1 << 20
_DESKTOP_FILES = (".DS_Store", "Thumbs.db", "desktop.ini", ".directory")
MAX_DEPTH = 32  # of objects and lists in a manifest; the C runtime has the same limit
_SCHEMA = re.compile(r"edgeseg\.bundle/(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})")


@dataclass(frozen=True)
class GoldenVectors:
    """Frames and what each engine answered to them at export, without any layout or option.

    Frames and masks are files of the bundle, see `pgm`; a mask is 255 where lesion. On another
    machine an engine passes while, for every frame, the pixels that differ are at most
    `max_flipped` of the lesion's. Where the lesion is empty they are counted against 1 px, so that
    one of them fails: an export takes such a frame only where every logit is far from the
    threshold.
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


# What reading JSON as a dataclass raises.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
# Of the manifest's fields; the others are JSON objects.
_KINDS = {
    **dict.fromkeys(("name", "target", "precision", "schema"), str),
    "contract": InputContract,
    "vectors": GoldenVectors,
    "cpu": tuple,
}


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and where it comes from."""

    name: str  # of the network, such as "attunet-16"
    target: str  # key in the exporter's table of targets
    precision: str  # "fp32", "fp16", "bf16" or "int8"
    contract: InputContract
    models: Mapping[str, Tuple[str, ...]]  # engine -> its files, preferred engine first
    # Path in the bundle -> SHA-256, all but manifest, sums, signature.
    files: Mapping[str, str] = field(repr=False)
    complexity: Mapping[str, Any] = field(default_factory=dict)  # parameters, macs, ...
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)  # as `Provenance`
    evidence: Mapping[str, Any] = field(default_factory=dict, repr=False)  # as `Proof`
    # Frames a call takes, "min" and "max"; more than one needs an engine of the caller's own.
    batch: Mapping[str, Any] = field(default_factory=lambda: {"min": 1, "max": 1})
    # Precision -> file, width and height in px: ONNX with pre- and post-processing inside.
    frame_graphs: Mapping[str, Any] = field(default_factory=dict)
    vectors: GoldenVectors = field(default_factory=GoldenVectors, repr=False)
    # Where the image is in a maker's frames; empty: the whole frame is the image.
    layout: Mapping[str, Any] = field(default_factory=dict)
    # What the CPU must have, see `cpu.FEATURES`; left out where it needs nothing.
    cpu: Tuple[str, ...] = ()
    schema: str = SCHEMA  # that it was written in

    def to_json(self) -> str:
        """Return the manifest as canonical JSON text: same content, same bytes."""
        content = {"schema": self.schema, **asdict(self)}  # the schema first
        content["contract"] = self.contract.to_dict()
        if not self.cpu:
            del content["cpu"]
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
            _require_plain(content)
            major, minor = _version_of(content["schema"])
            if minor > MINORS[major]:
                known = {each.name for each in fields(cls)}
                content = {key: value for key, value in content.items() if key in known}
            content["contract"] = InputContract.from_dict(content["contract"])
            if major == 2 and content["contract"].version > 1:
                raise ValueError("its contract needs edgeseg.bundle/3")
            if major == 2 and "cpu" in content:
                raise ValueError("what it needs of the CPU needs edgeseg.bundle/3")
            content["models"] = {
                engine: _names(names, f"models.{engine}")
                for engine, names in content["models"].items()
            }
            if "vectors" in content:
                content["vectors"] = GoldenVectors.from_dict(content["vectors"])
            if "batch" in content:
                _require_batch(content["batch"])
            if "cpu" in content:
                content["cpu"] = _names(content["cpu"], "cpu")
            if content.get("layout"):
                Layout.from_dict(content["layout"])
            manifest = cls(**content)
            for each in fields(cls):
                if not isinstance(getattr(manifest, each.name), _KINDS.get(each.name, dict)):
                    raise TypeError(f"{each.name} is of another type")
            return manifest
        except MALFORMED as error:
            raise Refused(
                "E-MANIFEST-FIELD", f"manifest.json is malformed ({error}); export the bundle again"
            ) from error


def _version_of(schema: Any) -> Tuple[int, int]:
    """Return major and minor of a schema that is read. Raises Refused (E-MANIFEST-NEWER)."""
    found = _SCHEMA.fullmatch(schema) if isinstance(schema, str) else None
    if found is None or int(found[1]) not in MINORS:
        newer = found and int(found[1]) > max(MINORS)
        raise Refused(
            "E-MANIFEST-NEWER",
            f"bundle schema is {schema!r}, this tool reads {SCHEMA!r} and {SCHEMA_3!r}; "
            f"{'update edgeseg' if newer else 'export the bundle again'}",
        )
    return int(found[1]), int(found[2])


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """Refuse an object with a key twice: two readers would differ on what it says."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("an object has a key twice")
    return content


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _require_plain(content: Any) -> None:
    """Raise ValueError for what JSON can say and what is made of it could not.

    That is a number over the largest float (1e999), half of a surrogate pair, and nesting beyond
    `MAX_DEPTH`.
    """
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [inner for value in level for inner in _values_of(value)]
    if any(isinstance(value, (dict, list)) for value in level):
        raise ValueError(f"it is nested over {MAX_DEPTH} deep")
    json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8")


def _values_of(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _require_batch(batch: Any) -> None:
    """Raise ValueError, TypeError or KeyError unless `batch` has whole `min` and `max` from 1."""
    least, most = batch["min"], batch["max"]
    if not (type(least) is type(most) is int and 1 <= least <= most):
        raise ValueError("batch is not of whole numbers 1 <= min <= max")


def _names(value: Any, what: str) -> Tuple[str, ...]:
    """Return a JSON list of strings as a tuple. Raises TypeError."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{what} is no list of names")
    return tuple(value)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    store: Sealed
    manifest: Manifest
    sha256: str  # of SHA256SUMS, hence of everything in the bundle but the signature
    verified: bool = False  # whether a key was given to open it and its signature held
    signer: str = ""  # subject of the certificate by which it held; empty for a bare key

    @property
    def path(self) -> Path:
        """The folder, or the file that it is packed into."""
        return self.store.path

    @property
    def is_signed(self) -> bool:
        """Whether there is a signature; that it holds is known if a key was given to open it."""
        return SIGNATURE in self.store.names()

    def provenance(self) -> Provenance:
        """Return where it comes from. Raises Refused: E-MANIFEST-FIELD."""
        try:
            return Provenance.from_dict(self.manifest.provenance)
        except _MALFORMED as error:
            raise self._without("where it comes from", error) from error

    def proof(self) -> Proof:
        """Return what its export proved. Raises Refused: E-MANIFEST-FIELD."""
        try:
            return Proof.from_dict(self.manifest.evidence)
        except _MALFORMED as error:
            raise self._without("what its export proved", error) from error

    def _without(self, what: str, error: Exception) -> Refused:
        return Refused(
            "E-MANIFEST-FIELD",
            f"{self.path} does not state {what} ({type(error).__name__}: {error}); export it again",
        )

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

    def size(self, name: str) -> int:
        """Return the bytes of one file."""
        return self.store.size(name)

    def read(self, name: str) -> bytes:
        """Return one verified file.

        Args:
            name: in the manifest's `files`.

        Raises Refused (E-BUNDLE-HASH) if it changed since the bundle was opened.
        """
        return self.store.read(name)


@takes_paths
def hashes_of(folder: Path) -> Dict[str, str]:
    """Return path -> SHA-256 of every file in a folder but manifest, sums and signature, sorted.

    Raises Refused: E-BUNDLE-LINK, E-BUNDLE-NAME.
    """
    store = Folder(folder)
    files = {name: store.digest(name) for name in _hashed_names(store) if name != MANIFEST}
    for name in files:
        require_name(name, folder)
    return files


@takes_paths
def seal_bundle(folder: Path, manifest_fields: Mapping[str, Any]) -> Manifest:
    """Hash the files in `folder`, then write its manifest.json and SHA256SUMS.

    Args:
        folder: holds the model files; usually the temporary folder of `atomic_folder`.
        manifest_fields: every field of `Manifest` but `files`; without `schema` it is the oldest
            that says all of them.
    """
    third = manifest_fields["contract"].version > 1 or manifest_fields.get("cpu")
    schema = SCHEMA_3 if third else SCHEMA
    manifest = Manifest(files=hashes_of(folder), **{"schema": schema, **manifest_fields})
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    (folder / SUMS).write_text(_sums_text(Folder(folder)), encoding="utf-8")
    return manifest


@takes_paths
def open_bundle(path: Path, *, key: Optional[Path] = None) -> Bundle:
    """Verify a bundle, byte for byte, and return it.

    Args:
        path: folder, or file written by `edgeseg bundle pack`.
        key: PEM file of a public key, with whose private key the bundle must be signed, or of the
            certificate of an authority that must have certified the signer. It is verified before
            the manifest is parsed. None asks for no signature and reads none.

    Raises:
        InputError: E-BUNDLE-MISSING (no bundle there), E-KEY-READ.
        Refused: E-BUNDLE-HASH (a file was changed, added or removed), E-BUNDLE-LINK, E-BUNDLE-NAME,
            E-ARCHIVE-FORM, E-ARCHIVE-SIZE, E-MANIFEST-SIZE, E-MANIFEST-NEWER, E-MANIFEST-FIELD,
            E-SIGNATURE-MISSING, E-SIGNATURE, E-SIGNATURE-EXPIRED, E-SIGNATURE-NOT-YET.
        EngineError: E-EXTRA-MISSING (a key was given without what verifies signatures).
    """
    with reading(path):
        is_archive = path.is_file()
    store: Store = open_archive(path) if is_archive else Folder(path)
    names = store.names()
    if MANIFEST not in names or SUMS not in names:
        raise InputError(
            "E-BUNDLE-MISSING",
            f"{path} is no bundle (no {MANIFEST} and {SUMS}); make one with `edgeseg export`",
        )
    for name, limit in ((MANIFEST, MAX_MANIFEST_BYTES), (SUMS, MAX_SUMS_BYTES)):
        if store.size(name) > limit:
            raise Refused("E-MANIFEST-SIZE", f"{path / name} is over {limit} bytes")
    listed = store.read(SUMS)
    signer = ""
    if key is not None:
        from .signature import require_signature  # the only use of what may not be installed

        if is_archive:  # it is written out for that: nothing that is not listed may be
            _require_sums(store, listed)
        signer = require_signature(store, key, listed)
    _require_sums(store, listed)
    for name in names:
        require_name(name, path)
    sums = dict(_parse_sums(listed.decode("utf-8")))
    content = store.read(MANIFEST)
    sealed = Sealed(store, {**sums, SUMS: hashlib.sha256(listed).hexdigest()})
    if hashlib.sha256(content).hexdigest() != sums.pop(MANIFEST):
        raise changed(path / MANIFEST)
    manifest = Manifest.from_json(content)
    named = {name for names in manifest.models.values() for name in names}
    named.update(manifest.vectors.files)
    if set(manifest.files) != set(sums) or not named <= set(sums):
        raise Refused("E-MANIFEST-FIELD", f"{path / MANIFEST} does not list the bundle's files")
    for name, digest in manifest.files.items():
        if digest != sums[name]:
            raise changed(path / name)
    verified = key is not None
    return Bundle(sealed, manifest, sealed.digests[SUMS], verified, signer)


@takes_paths
def pack_bundle(bundle: Path, out: Path) -> None:
    """Verify a bundle and write it as one file: same bundle, same bytes.

    Raises InputError (E-OUT-EXISTS), OutputError (E-OUT-WRITE), and as `open_bundle`.
    """
    require_new(out)
    write_archive(open_bundle(bundle).store, out)


@takes_paths
def unpack_bundle(bundle: Path, out: Path) -> None:
    """Verify a packed bundle and write it as a folder.

    Raises InputError (E-OUT-EXISTS; E-BUNDLE-MISSING for a folder), OutputError (E-OUT-WRITE), and
    as `open_bundle`.
    """
    store = open_bundle(bundle).store
    if not isinstance(store.inner, Archive):
        raise InputError("E-BUNDLE-MISSING", f"{bundle} is a folder already; name a packed bundle")
    write_folder(store, out)


def _hashed_names(store: Store) -> Tuple[str, ...]:
    """Every file that SHA256SUMS lists, sorted."""
    return tuple(name for name in store.names() if name not in (SUMS, SIGNATURE))


def _sums_text(store: Store) -> str:
    return "".join(f"{store.digest(name)}  {name}\n" for name in _hashed_names(store))


def _require_sums(store: Store, listed: bytes) -> None:
    """Raise Refused (E-BUNDLE-HASH) unless SHA256SUMS lists every file, each with its hash."""
    if listed != _sums_text(store).encode("utf-8", "surrogateescape"):  # names may be any bytes
        blamed = _first_difference(store, listed)
        if blamed.name in _DESKTOP_FILES and os.fsencode(blamed.name) not in listed:
            raise Refused(
                "E-BUNDLE-HASH",
                f"{blamed} was put there by a desktop and is not of the bundle; delete it",
            )
        raise changed(blamed)


def _first_difference(store: Store, listed: bytes) -> Path:
    """Name the file to blame for a mismatch between SHA256SUMS and the bundle."""
    actual = dict(_parse_sums(_sums_text(store)))
    expected = dict(_parse_sums(listed.decode("utf-8", "replace")))
    for name in sorted(set(actual) | set(expected)):
        if actual.get(name) != expected.get(name):
            return store.path / name
    return store.path / SUMS


def _parse_sums(text: str) -> Tuple[Tuple[str, str], ...]:
    pairs = (line.split("  ", 1) for line in text.splitlines())
    return tuple((pair[1], pair[0]) for pair in pairs if len(pair) == 2)
