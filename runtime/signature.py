"""The signature of a bundle: OpenSSF Model Signing v1 in `model.sig`, by elliptic-curve key.

Whoever opens a bundle trusts that key itself, or an authority that certified it: then the
signature brings the certificates along. The standard tool reads either, see `docs/bundle.md`.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Dict, Iterator, Optional, Tuple, TypeVar

from . import certificates
from .errors import EngineError, InputError, OutputError, Refused
from .files import write_bytes
from .paths import takes_paths
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
    from cryptography import x509

MAX_SIGNATURE_BYTES = 1 << 20
_MAX_KEY_BYTES = 1 << 16
_PUBLIC = "public key of an elliptic curve (P-256, P-384, P-521), nor a certificate, as plain PEM"
_PRIVATE = "private key of an elliptic curve (P-256, P-384, P-521) as plain PEM"
_BASE64 = rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
_CERTIFICATE = rb'\{"rawBytes":"' + _BASE64 + rb'"\}'
_CHAIN = (_CERTIFICATE, _CERTIFICATE, certificates.MAX_CERTIFICATES - 1)
# As model-signing 1.1 writes it. What a signature does not cover may not vary either.
_FORM = re.compile(
    rb'\{"mediaType":"application/vnd\.dev\.sigstore\.bundle\.v0\.3\+json",'
    rb'"verificationMaterial":\{(?P<signer>"publicKey":\{"hint":"(?P<hint>[0-9a-f]{64})"\}|'
    rb'"x509CertificateChain":\{"certificates":\[%s(?:,%s){0,%d}\]\})'
    % _CHAIN
    + rb',"tlogEntries":\[\]\},"dsseEnvelope":\{"payload":"(?P<payload>'
    + _BASE64
    + rb')",'
    rb'"payloadType":"application/vnd\.in-toto\+json",'
    rb'"signatures":\[\{"sig":"(?P<sig>' + _BASE64 + rb')","keyid":""\}\]\}\}'
)
_RAW_BYTES = re.compile(rb'"rawBytes":"(' + _BASE64 + rb')"')
T = TypeVar("T")


@dataclass(frozen=True)
class _Signed:
    """What `model.sig` says."""

    payload: bytes  # what is signed
    certificates: Tuple[bytes, ...]  # DER, the signer's first; none for a bare key


@dataclass(frozen=True)
class _Trust:
    """Whom the user trusts."""

    verifier: model_signing.verifying.Config
    authority: Optional[x509.Certificate]  # None for a bare key


@takes_paths
def require_signature(store: Store, key: Path, sums: bytes) -> str:
    """Verify that a bundle was signed by who is trusted.

    Nothing of the bundle is parsed for it but the signature itself.

    Args:
        store: where the bundle lies.
        key: PEM file. A public key (P-256, P-384 or P-521): the bundle must be signed with its
            private key. A certificate: of the authority that must have certified the signer, all
            certificates being valid now.
        sums: content of SHA256SUMS, by which every other file is verified next.

    Returns:
        Subject of the signer's certificate; empty for a public key, which names nobody.

    Raises:
        InputError: E-KEY-READ.
        Refused: E-SIGNATURE-MISSING, E-SIGNATURE (another key or authority, another bundle, or no
            signature), E-SIGNATURE-EXPIRED, E-SIGNATURE-NOT-YET.
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
    signed = _parse(content, store)
    _require_library()
    pem = _read_pem(key, _PUBLIC)
    with _scratch() as scratch:
        copy = scratch / "key.pem"  # for the library: a pipe gives its content but once
        copy.write_bytes(pem)
        trust = _or_key_error(key, _PUBLIC, lambda: _trust_of(key, pem, copy))
        chain = _try(lambda: _chain_of(signed, trust), store)
        verifier = trust.verifier.set_hashing_config(_hashing())
        signature = scratch / SIGNATURE  # what is verified is what was read
        signature.write_bytes(content)
        folder = store.path
        if isinstance(store, Archive):
            folder = scratch / "bundle"
            folder.mkdir()
            write_files(store, folder)
        with reading(store.path):
            _try(lambda: verifier.verify(folder, signature), store)
    covered = _try(lambda: _digests_of(signed.payload).get(SUMS), store)
    if covered != (hashlib.sha256(sums).hexdigest(),):
        raise _refused(store, f"it does not cover {SUMS}")
    if trust.authority is None:
        return ""
    certificates.require_today(
        (*chain, trust.authority),
        f"the signature of {store.path}",
        "have the bundle signed again with a certificate of today",
    )
    return certificates.subject_of(chain[0])


@takes_paths
def sign_bundle(store: Sealed, key: Path, certificate: Optional[Path] = None) -> None:
    """Sign a verified bundle; `model.sig` is added to its folder or its file.

    Args:
        store: where the bundle lies, with the hashes that are signed.
        key: PEM file of an elliptic-curve private key (P-256, P-384, P-521), not encrypted.
        certificate: PEM file of the key's certificate, for who trusts the authority that issued
            it; those between it and the root come after it. None: for who trusts the key.

    Raises:
        InputError: E-KEY-READ, E-OUT-EXISTS (it is signed already).
        Refused: E-BUNDLE-HASH (the bundle changed since it was verified: nothing is signed),
            E-SIGNATURE-EXPIRED, E-SIGNATURE-NOT-YET (of a certificate).
        EngineError: E-EXTRA-MISSING.
        OutputError: E-OUT-WRITE.
    """
    if SIGNATURE in store.names():
        raise InputError(
            "E-OUT-EXISTS", f"{store.path} is signed already; remove {SIGNATURE} to sign it again"
        )
    _require_library()
    import model_signing

    private = _or_key_error(  # the library alone reads it: a pipe gives its content but once
        key,
        _PRIVATE,
        lambda: model_signing.signing.Config().use_elliptic_key_signer(private_key=key),
    )
    chain = () if certificate is None else _own_chain(certificate)
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
        signed = _digests_of(_parse(content, store).payload)
        for name in sorted(set(signed) | set(store.digests)):
            if signed.get(name) != (store.digests.get(name),):
                raise changed(store.path / name)
        if certificate is not None:
            if not _is_of(content, chain[0]):
                raise InputError(
                    "E-KEY-READ",
                    f"{certificate} is the certificate of another key than {key}; sign with the "
                    "key that it was issued for",
                )
            content = _with_chain(content, chain)
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


def _parse(content: bytes, store: Store) -> _Signed:
    """Return what a signature says. Raises Refused (E-SIGNATURE) for another form."""
    found = _FORM.fullmatch(content)
    if found is not None:
        encoded = _RAW_BYTES.findall(found["signer"])
        if all(
            base64.b64encode(base64.b64decode(each)) == each
            for each in (*encoded, found["payload"], found["sig"])
        ):
            return _Signed(
                base64.b64decode(found["payload"]), tuple(map(base64.b64decode, encoded))
            )
    raise _refused(store, f"{SIGNATURE} is not in the form of OpenSSF Model Signing 1.1")


def _is_of(content: bytes, certificate: x509.Certificate) -> bool:
    """Whether a signature by a bare key is by that of a certificate: it holds the key's hash."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    found = _FORM.fullmatch(content)
    assert found is not None  # the library wrote it, and it was parsed
    pem = certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return found["hint"] == hashlib.sha256(pem).hexdigest().encode()


def _with_chain(content: bytes, chain: certificates.Chain) -> bytes:
    """Put certificates in the place of the key's hash, as `model_signing sign certificate` does.

    That itself takes no certificate without another above it.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    found = _FORM.fullmatch(content)
    assert found is not None  # the library wrote it, and it was parsed
    encoded = [base64.b64encode(each.public_bytes(Encoding.DER)) for each in chain]
    listed = b",".join(b'{"rawBytes":"%s"}' % each for each in encoded)
    material = b'"x509CertificateChain":{"certificates":[%s]}' % listed
    return content[: found.start("signer")] + material + content[found.end("signer") :]


def _trust_of(key: Path, pem: bytes, copy: Path) -> _Trust:
    """Return whom a PEM file stands for: its label says whether it is a key or an authority.

    Args:
        key: the file as the user named it, for messages.
        pem: its content.
        copy: a file with that content.
    """
    import model_signing

    config = model_signing.verifying.Config()
    if not certificates.is_certificate(pem):
        return _Trust(config.use_elliptic_key_verifier(public_key=copy), None)
    authority = certificates.read_authority(pem, key)
    return _Trust(config.use_certificate_verifier(certificate_chain=[copy]), authority)


def _chain_of(signed: _Signed, trust: _Trust) -> certificates.Chain:
    """Return the certificates of a signature once they lead to who is trusted; none for a key.

    Raises ValueError or one of `certificates.faults`.
    """
    if trust.authority is None:
        if signed.certificates:
            raise ValueError("it was made with a certificate; give that of the maker's authority")
        return ()
    if not signed.certificates:
        raise ValueError("it was made with a bare key; give the public key")
    chain = certificates.parse_chain(signed.certificates)
    certificates.require_use(chain)
    certificates.require_path(chain, trust.authority)
    return chain


def _own_chain(certificate: Path) -> certificates.Chain:
    """Return the certificates to sign with.

    Raises InputError (E-KEY-READ), Refused (E-SIGNATURE-EXPIRED, E-SIGNATURE-NOT-YET).
    """
    chain = certificates.read_chain(_read_pem(certificate, "certificate as plain PEM"), certificate)
    certificates.require_today(chain, "what would be signed", "have a certificate issued")
    return chain


def _digests_of(payload: bytes) -> Dict[str, Tuple[str, ...]]:
    """Return file -> every SHA-256 that a verified payload has for it."""
    found: Dict[str, Tuple[str, ...]] = {}
    for each in json.loads(payload)["predicate"]["resources"]:
        if each["algorithm"] == "sha256":
            found[each["name"]] = (*found.get(each["name"], ()), each["digest"])
    return found


def _read_pem(key: Path, what: str) -> bytes:
    """Return the content of a PEM file. Raises InputError (E-KEY-READ)."""

    def read() -> bytes:
        with key.open("rb") as file:
            pem = file.read(_MAX_KEY_BYTES + 1)
        if len(pem) > _MAX_KEY_BYTES:
            raise ValueError(f"over {_MAX_KEY_BYTES} bytes")
        return pem

    return _or_key_error(key, what, read)


def _or_key_error(key: Path, what: str, read: Callable[[], T]) -> T:
    """Return what is made of a PEM file. Raises InputError (E-KEY-READ)."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return read()
    except (OSError, ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise InputError(
            "E-KEY-READ",
            f"{key} is no {what}{f' ({reason})' if reason else ''}; make one with openssl, see "
            "docs/bundle.md",
        ) from error


def _try(verify: Callable[[], T], store: Store) -> T:
    """Run what a signature that is none makes fail in many ways; each is a refusal."""
    from cryptography.exceptions import InvalidSignature

    try:
        return verify()
    except InvalidSignature as error:
        raise _refused(store, "it was made for something else, or by another key") from error
    except certificates.faults() as error:
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
        "maker's public key or authority, or fetch the bundle again",
    )
