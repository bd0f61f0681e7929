"""The signature of a bundle: OpenSSF Model Signing v1 with an elliptic-curve key, in `model.sig`.

`model_signing verify key BUNDLE --signature BUNDLE/model.sig --public_key KEY` reads it as well.
The library is imported only when a key is given; it needs Python 3.9 and the extra ``[sign]``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.util
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, Iterator, Tuple, TypeVar

from .errors import EngineError, InputError, OutputError, Refused
from .files import write_bytes
from .store import (
    SIGNATURE,
    SUMS,
    Archive,
    Folder,
    Sealed,
    Store,
    changed,
    reading,
    write_archive,
    write_files,
)

if TYPE_CHECKING:
    import model_signing

MAX_SIGNATURE_BYTES = 1 << 20
_MAX_KEY_BYTES = 1 << 16
_BASE64 = rb"((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)"
# As model-signing 1.1 writes it. What a signature does not cover may not vary either.
_FORM = re.compile(
    rb'\{"mediaType":"application/vnd\.dev\.sigstore\.bundle\.v0\.3\+json",'
    rb'"verificationMaterial":\{"publicKey":\{"hint":"[0-9a-f]{64}"\},"tlogEntries":\[\]\},'
    rb'"dsseEnvelope":\{"payload":"' + _BASE64 + rb'",'
    rb'"payloadType":"application/vnd\.in-toto\+json",'
    rb'"signatures":\[\{"sig":"' + _BASE64 + rb'","keyid":""\}\]\}\}'
)
T = TypeVar("T")


def require_signature(store: Store, key: Path, sums: bytes) -> None:
    """Verify that a bundle was signed with the private key that belongs to a public key.

    Nothing of the bundle is parsed for it but the signature itself.

    Args:
        store: where the bundle lies.
        key: PEM file of the public key; P-256, P-384 or P-521.
        sums: content of SHA256SUMS, by which every other file is verified next.

    Raises:
        InputError: E-KEY-READ.
        Refused: E-SIGNATURE-MISSING, E-SIGNATURE (another key, another bundle, or no signature).
        EngineError: E-EXTRA-MISSING.
        OutputError: E-OUT-WRITE (no room for a packed bundle where temporary files go).
    """
    if SIGNATURE not in store.names():
        raise Refused(
            "E-SIGNATURE-MISSING",
            f"{store.path} has no {SIGNATURE}, but a key was given; sign it with "
            "`edgeseg bundle sign`, or open it without a key",
        )
    if store.size(SIGNATURE) > MAX_SIGNATURE_BYTES:
        raise _refused(store, f"{SIGNATURE} is over {MAX_SIGNATURE_BYTES} bytes")
    content = store.read(SIGNATURE)
    payload = _payload_of(content, store)
    _require_library()
    import model_signing

    public = _read_key(
        key,
        "public",
        lambda: model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key),
    )
    verifier = public.set_hashing_config(_hashing())
    with _scratch() as scratch:
        signature = scratch / SIGNATURE  # what is verified is what was read
        signature.write_bytes(content)
        folder = store.path
        if isinstance(store, Archive):
            folder = scratch / "bundle"
            folder.mkdir()
            write_files(store, folder)
        with reading(store.path):
            _try(lambda: verifier.verify(folder, signature), store)
    signed = _try(lambda: _digests_of(payload).get(SUMS), store)
    if signed != (hashlib.sha256(sums).hexdigest(),):
        raise _refused(store, f"it does not cover {SUMS}")


def sign_bundle(store: Sealed, key: Path) -> None:
    """Sign a verified bundle; `model.sig` is added to its folder or its file.

    Args:
        store: where the bundle lies, with the hashes that are signed.
        key: PEM file of an elliptic-curve private key (P-256, P-384, P-521), not encrypted.

    Raises:
        InputError: E-KEY-READ, E-OUT-EXISTS (it is signed already).
        Refused: E-BUNDLE-HASH (the bundle changed since it was verified: nothing is signed).
        EngineError: E-EXTRA-MISSING.
        OutputError: E-OUT-WRITE.
    """
    if SIGNATURE in store.names():
        raise InputError(
            "E-OUT-EXISTS", f"{store.path} is signed already; remove {SIGNATURE} to sign it again"
        )
    _require_library()
    import model_signing

    private = _read_key(
        key,
        "private",
        lambda: model_signing.signing.Config().use_elliptic_key_signer(private_key=key),
    )
    signer = private.set_hashing_config(_hashing())
    with _scratch() as scratch:
        folder, signature = store.path, scratch / SIGNATURE
        if isinstance(store.inner, Archive):
            folder = scratch / store.path.stem
            folder.mkdir()
            write_files(store, folder)
        with reading(store.path):
            signer.sign(folder, signature)
        content = signature.read_bytes()
        signed = _digests_of(_payload_of(content, store))
        for name in sorted(set(signed) | set(store.digests)):
            if signed.get(name) != (store.digests.get(name),):
                raise changed(store.path / name)
        write_bytes(folder / SIGNATURE, content)
        if isinstance(store.inner, Archive):
            write_archive(Sealed(Folder(folder), store.digests), store.path)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a temporary folder. Raises OutputError (E-OUT-WRITE) where there is no room for it."""
    try:
        with tempfile.TemporaryDirectory(prefix="edgeseg-") as folder:
            yield Path(folder)
    except OSError as error:
        raise OutputError(
            "E-OUT-WRITE",
            f"cannot write temporary files for the signature ({error.strerror or error}); free "
            "space, or name a place with room for the bundle in TMPDIR",
        ) from error


def _hashing() -> model_signing.hashing.Config:
    """Return how files are hashed: all but the signature, git's too."""
    import model_signing

    return model_signing.hashing.Config().set_ignored_paths(
        paths=[SIGNATURE], ignore_git_paths=False
    )


def _payload_of(content: bytes, store: Store) -> bytes:
    """Return what is signed. Raises Refused (E-SIGNATURE) for another form."""
    found = _FORM.fullmatch(content)
    if found is None or any(base64.b64encode(base64.b64decode(x)) != x for x in found.groups()):
        raise _refused(store, f"{SIGNATURE} is not in the form of OpenSSF Model Signing 1.1")
    return base64.b64decode(found[1])


def _digests_of(payload: bytes) -> Dict[str, Tuple[str, ...]]:
    """Return file -> every SHA-256 that a verified payload has for it."""
    found: Dict[str, Tuple[str, ...]] = {}
    for each in json.loads(payload)["predicate"]["resources"]:
        if each["algorithm"] == "sha256":
            found[each["name"]] = (*found.get(each["name"], ()), each["digest"])
    return found


def _read_key(key: Path, kind: str, read: Callable[[], T]) -> T:
    """Return what the library makes of a key. Raises InputError (E-KEY-READ)."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        if key.stat().st_size > _MAX_KEY_BYTES:
            raise ValueError(f"over {_MAX_KEY_BYTES} bytes")
        return read()
    except (OSError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise InputError(
            "E-KEY-READ",
            f"{key} is no {kind} key of an elliptic curve (P-256, P-384, P-521) as plain PEM"
            f"{f' ({reason})' if reason else ''}; make one with openssl, see docs/bundle.md",
        ) from error


def _try(verify: Callable[[], T], store: Store) -> T:
    """Run what a signature that is none makes fail in many ways; each is a refusal."""
    from cryptography.exceptions import InvalidSignature

    try:
        return verify()
    except InvalidSignature as error:
        raise _refused(store, "it was made for something else, or by another key") from error
    except (
        *(ValueError, TypeError, KeyError, IndexError, AttributeError),
        *(OverflowError, RecursionError),
    ) as error:
        raise _refused(store, str(error)) from error


def _require_library() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("model_signing", "OpenSSL")):
        raise EngineError(
            "E-EXTRA-MISSING",
            "signatures need model-signing, on Python 3.9 or later; pip install 'edgeseg[sign]'",
        )


def _refused(store: Store, why: str) -> Refused:
    text = " ".join(why.split())
    return Refused(
        "E-SIGNATURE",
        f"the signature of {store.path} does not hold for this key ({text[:200]}); use the "
        "maker's public key, or fetch the bundle again",
    )
