"""Certificates: who signed a bundle, under which authority, and whether that holds today.

`model_signing` verifies a chain as of the day on which its first certificate began to be valid,
lets any certificate sign that may sign anything, names no purpose for those above it, and passes
over certificates that it does not need. What it leaves open is settled here. Its libraries are
imported only when a key is given.
"""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Sequence, Tuple, Type, TypeVar

from .errors import InputError, Refused

if TYPE_CHECKING:
    from cryptography import x509

MAX_CERTIFICATES = 8  # of a chain, without the authority's
_LABEL = b"-----BEGIN CERTIFICATE-----"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_LEAST_DIGEST_BYTES = 32  # of what a certificate is signed over: SHA-1 can be made to collide
_MAX_SUBJECT = 120  # characters that are shown
Chain = Tuple["x509.Certificate", ...]  # the signer's first, each issued by the next
T = TypeVar("T")


def is_certificate(pem: bytes) -> bool:
    """Whether a PEM file holds a certificate: its label says so."""
    return _LABEL in pem


def read_authority(pem: bytes, path: Path) -> x509.Certificate:
    """Return the certificate of an authority, the only one of its PEM file.

    Raises InputError: E-KEY-READ.
    """

    def read() -> x509.Certificate:
        chain = _from_pem(pem)
        if len(chain) > 1:
            raise ValueError(f"it holds {len(chain)} certificates; give the authority's alone")
        if not _is_root(chain[0]):
            raise ValueError("it was issued by another; give that one's certificate")
        return chain[0]

    return _or_key_error(read, f"{path} is no certificate of an authority")


def read_chain(pem: bytes, path: Path) -> Chain:
    """Return the certificates to sign with: the signer's, then those between it and the root.

    Raises InputError: E-KEY-READ.
    """

    def read() -> Chain:
        chain = _from_pem(pem)
        if any(map(_is_root, chain[1:])):
            raise ValueError("the root's is in it; leave it out")
        require_use(chain)
        require_links(chain)
        _require_valid(chain)
        return chain

    return _or_key_error(read, f"{path} holds no certificate to sign with")


def parse_chain(encoded: Sequence[bytes]) -> Chain:
    """Return certificates from DER; the library takes no other encoding of the same content.

    Raises ValueError or one of `faults`.
    """
    from cryptography import x509

    return tuple(map(x509.load_der_x509_certificate, encoded))


def require_path(chain: Chain, authority: x509.Certificate) -> None:
    """Require that a chain leads to an authority and holds nothing else.

    Whether those in between may issue certificates is for `model_signing` to verify.

    Raises ValueError or one of `faults`.
    """
    if chain == (authority,):  # who trusts a signer's own certificate
        return
    require_links((*chain, authority))


def require_links(chain: Chain) -> None:
    """Require that each certificate was issued by the next, which is not limited to other uses.

    Raises ValueError or one of `faults`.
    """
    from cryptography.exceptions import InvalidSignature

    if len({each.subject for each in chain}) < len(chain):
        raise ValueError("one subject has two certificates in it")
    for each, issuer in zip(chain, chain[1:]):  # noqa: B905, RUF007 - of 3.10
        digest = each.signature_hash_algorithm
        if digest is not None and digest.digest_size < _LEAST_DIGEST_BYTES:
            raise ValueError(f"the certificate of {subject_of(each)} is signed over {digest.name}")
        try:
            each.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise ValueError(
                f"the certificate of {subject_of(each)} was not issued by that of "
                f"{subject_of(issuer)}"
            ) from error
        if not _may_certify_code(issuer):
            raise ValueError(
                f"the certificate of {subject_of(issuer)} is limited to other uses than codeSigning"
            )


def require_use(chain: Chain) -> None:
    """Require that the first certificate is for signing code, with a key of our curves.

    An authority's other certificates, such as those of servers, must not sign bundles.

    Raises ValueError or one of `faults`.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    key, extensions = chain[0].public_key(), chain[0].extensions
    whose = f"the certificate of {subject_of(chain[0])}"
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise ValueError(f"{whose} has a key of none of P-256, P-384, P-521")
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        may = usage.digital_signature and ExtendedKeyUsageOID.CODE_SIGNING in extended
    except x509.ExtensionNotFound:
        may = False
    if not may:
        raise ValueError(f"{whose} lacks keyUsage digitalSignature or extendedKeyUsage codeSigning")


def require_today(chain: Chain, what: str, mend: str) -> None:
    """Require that every certificate is valid now.

    Args:
        chain: certificates.
        what: rests on them, for the message.
        mend: besides the clock, for the message.

    Raises Refused: E-SIGNATURE-EXPIRED, E-SIGNATURE-NOT-YET.
    """
    now = datetime.now(timezone.utc)
    for each in chain:
        begin, end = each.not_valid_before_utc, each.not_valid_after_utc
        if not begin <= now <= end:
            raise Refused(
                "E-SIGNATURE-EXPIRED" if now > end else "E-SIGNATURE-NOT-YET",
                f"{what} rests on the certificate of {subject_of(each)}, which is valid from "
                f"{begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, and it is "
                f"{now:%Y-%m-%d %H:%M} by this clock; check the clock, or {mend}",
            )


def subject_of(certificate: x509.Certificate) -> str:
    """Return whom a certificate is for, as RFC 4514 writes it, on one line and not too long."""
    text = certificate.subject.rfc4514_string()
    return "".join(each if each.isprintable() else "?" for each in text)[:_MAX_SUBJECT]


def faults() -> Tuple[Type[Exception], ...]:
    """Return what the libraries raise for a certificate that is none or does not hold."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from OpenSSL import crypto

    return (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        InvalidSignature,
        UnsupportedAlgorithm,
        crypto.Error,
        crypto.X509StoreContextError,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
        x509.UnsupportedGeneralNameType,
    )


def _from_pem(pem: bytes) -> Chain:
    from cryptography import x509

    chain = tuple(x509.load_pem_x509_certificates(pem))
    if len(chain) > MAX_CERTIFICATES:
        raise ValueError(f"it holds {len(chain)} certificates, at most {MAX_CERTIFICATES} may be")
    return chain


def _may_certify_code(issuer: x509.Certificate) -> bool:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        uses = issuer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    any_use = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
    return ExtendedKeyUsageOID.CODE_SIGNING in uses or any_use in uses


def _require_valid(chain: Chain) -> None:
    """Require of a chain without its root what `model_signing` will, as of the same day.

    Raises ValueError or one of `faults`.
    """
    from OpenSSL import crypto

    signer, *issuers = map(crypto.X509.from_cryptography, chain)
    store = crypto.X509Store()
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)  # up to the last, for want of the root
    store.set_time(chain[0].not_valid_before_utc)
    store.add_cert(issuers[-1] if issuers else signer)
    try:
        crypto.X509StoreContext(store, signer, issuers).verify_certificate()
    except crypto.X509StoreContextError as error:
        whose = subject_of(error.certificate.to_cryptography())
        raise ValueError(
            f"as of the first day of the signer's, that of {whose}: {error}"
        ) from error


def _is_root(certificate: x509.Certificate) -> bool:
    return certificate.issuer == certificate.subject


def _or_key_error(read: Callable[[], T], what: str) -> T:
    try:
        return read()
    except faults() as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError("E-KEY-READ", f"{what} ({why}); see docs/bundle.md") from error
