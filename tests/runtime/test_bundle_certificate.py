"""Who certified the maker of a bundle: chains, their dates, and nothing that could vary in them."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from edgeseg.cli.main import cli
from edgeseg.runtime.bundle import open_bundle, pack_bundle
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.signature import sign_bundle
from edgeseg.tests.support.fabricated_bundle import write_bundle

pytest.importorskip(
    "model_signing", reason="signatures need the extra [sign]; make install brings it"
)
pytest.importorskip("OpenSSL", reason="signatures need the extra [sign]; make install brings it")

import model_signing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgeseg.tests.runtime.test_bundle_signature import write_keys

ROOT = Path(__file__).parents[2]
NOW = datetime.datetime.now(datetime.timezone.utc)
PEM = serialization.Encoding.PEM


def certify(
    subject,
    issuer=None,
    *,
    key=None,
    days=(-30, 30),
    authority=False,
    sign=True,
    purpose=ExtendedKeyUsageOID.CODE_SIGNING,
    limits=(),
    digest=hashes.SHA256,
):
    """Return a certificate with its private key, as `certificate` and `key`.

    days: of the beginning and the end of its validity, from now.
    limits: what the certificates that an authority issues may be used for; none: anything.
    """
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    usage = dict.fromkeys(
        (
            *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + datetime.timedelta(days[0]))
        .not_valid_after(NOW + datetime.timedelta(days[1]))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=sign and not authority, key_cert_sign=authority, **usage
            ),
            critical=True,
        )
    )
    uses = limits if authority else (purpose,)
    if any(uses):
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    certificate = builder.sign(issuer.key if issuer else key, digest())
    return SimpleNamespace(certificate=certificate, key=key)


def write_pem(path, *certified):
    path.write_bytes(b"".join(each.certificate.public_bytes(PEM) for each in certified))
    return path


@pytest.fixture(scope="module")
def made():
    """Certificates by name: a root, one between, a maker's; and what goes wrong with them."""
    root = certify("Root", authority=True, days=(-1000, 1000))
    between = certify("Between", root, authority=True, days=(-900, 900))
    maker = certify("Maker release", between)
    gone_root = certify("Gone root", authority=True, days=(-1000, -1))
    gone_between = certify("Gone between", root, authority=True, days=(-900, -1))
    limited = {
        name: certify(name, root, authority=True, limits=limits)
        for name, limits in (
            ("servers", [ExtendedKeyUsageOID.SERVER_AUTH]),
            ("code", [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CODE_SIGNING]),
            ("anything", [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
        )
    }
    twin_above = certify("Twin", root, authority=True)
    below_twin = certify("Below twin", twin_above, authority=True)
    return SimpleNamespace(
        root=root,
        between=between,
        maker=maker,
        itself=certify("Itself"),
        direct=certify("Direct", root),
        other=certify("Other root", authority=True),
        namesake=certify("Root", authority=True),
        expired=certify("Expired", root, days=(-30, -1)),
        early=certify("Early", root, days=(1, 30)),
        gone_root=gone_root,
        under_gone_root=certify("Under gone root", gone_root),
        gone_between=gone_between,
        under_gone=certify("Under gone", gone_between),
        server=certify("Server", root, purpose=ExtendedKeyUsageOID.SERVER_AUTH),
        unused=certify("Unused", root, purpose=None),
        silent=certify("Silent", root, sign=False),
        weak=certify("Weak", root, digest=hashes.SHA224),
        rsa=certify("Rsa", root, key=rsa.generate_private_key(65537, 2048)),
        k1=certify("K1", root, key=ec.generate_private_key(ec.SECP256K1())),
        by_maker=certify("By maker", maker),  # which is no authority
        renewed=certify("Between", root, key=between.key, authority=True, days=(-1, 900)),
        twin_above=twin_above,
        below_twin=below_twin,
        twin=certify("Twin", below_twin),
        **limited,
        **{f"under_{name}": certify(f"Under {name}", each) for name, each in limited.items()},
    )


@pytest.fixture(scope="module")
def files(made, tmp_path_factory):
    """A folder with NAME.cer of every certificate, NAME.pem of its key, chain.cer of the maker."""
    folder = tmp_path_factory.mktemp("certificates")
    for name, each in vars(made).items():
        write_keys(folder, name, each.key)
        write_pem(folder / f"{name}.cer", each)
    write_pem(folder / "chain.cer", made.maker, made.between)
    return folder


@pytest.fixture(scope="module")
def signed(files, tmp_path_factory):
    """A bundle that the maker signed; nobody may write here."""
    folder = write_bundle(tmp_path_factory.mktemp("certified") / "toy")
    sign_bundle(open_bundle(folder).store, files / "maker.pem", files / "chain.cer")
    return folder


@pytest.fixture
def copy(signed, tmp_path):
    return shutil.copytree(signed, tmp_path / "copy")


def refusal_of(path, key):
    with pytest.raises((Refused, InputError)) as caught:
        open_bundle(path, key=key)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)
    return caught.value


def put_chain(folder, *certified):
    """Put other certificates into a signature."""
    file = folder / "model.sig"
    encoded = [
        base64.b64encode(each.certificate.public_bytes(serialization.Encoding.DER))
        for each in certified
    ]
    put_encoded(file, encoded)


def put_encoded(file, encoded):
    listed = b",".join(b'{"rawBytes":"%s"}' % each for each in encoded)
    whole = file.read_bytes()
    changed = re.sub(rb'(?<="certificates":\[).*?(?=\])', lambda _: listed, whole, count=1)
    file.write_bytes(changed)


def sign_as(folder, files, *certified):
    """Sign a bundle as who does not look at what it signs with: the first's key, all certificates.

    Who has no key that could sign gets a signature that is none.
    """
    write_bundle(folder)
    sign_bundle(open_bundle(folder).store, files / "itself.pem", files / "itself.cer")
    content = json.loads((folder / "model.sig").read_bytes())
    payload = base64.b64decode(content["dsseEnvelope"]["payload"])
    kind = b"application/vnd.in-toto+json"
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    key, sig = certified[0].key, b"x"
    if isinstance(key, ec.EllipticCurvePrivateKey):
        sig = key.sign(message, ec.ECDSA(hashes.SHA256()))
    content["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(sig).decode()
    (folder / "model.sig").write_text(json.dumps(content, separators=(",", ":")))
    put_chain(folder, *certified)
    return folder


# --- what holds ----------------------------------------------------------------------------------


def test_a_bundle_opens_with_the_authority_that_certified_its_signer(signed, files):
    bundle = open_bundle(signed, key=files / "root.cer")
    assert (bundle.verified, bundle.signer) == (True, "CN=Maker release")
    assert open_bundle(signed).signer == ""


@pytest.mark.parametrize(("name", "authority"), [("direct", "root"), ("itself", "itself")])
def test_no_certificate_is_needed_between_the_signer_and_the_root(name, authority, files, tmp_path):
    folder = write_bundle(tmp_path / "toy")
    sign_bundle(open_bundle(folder).store, files / f"{name}.pem", files / f"{name}.cer")
    assert open_bundle(folder, key=files / f"{authority}.cer").verified


def test_a_packed_bundle_takes_certificates_as_well(signed, files, tmp_path):
    pack_bundle(signed, tmp_path / "toy.edgeseg")
    assert open_bundle(tmp_path / "toy.edgeseg", key=files / "root.cer").signer
    assert refusal_of(tmp_path / "toy.edgeseg", files / "other.cer").code == "E-SIGNATURE"


def test_a_certificate_with_text_around_its_pem_is_one(signed, files, tmp_path):
    (tmp_path / "root.cer").write_bytes(
        b"Certificate:\n  Data: ...\n" + (files / "root.cer").read_bytes() + b"\n"
    )
    assert open_bundle(signed, key=tmp_path / "root.cer").signer


def test_the_standard_tool_verifies_our_certificates(signed, files):
    command = [sys.executable, "-m", "model_signing", "verify", "certificate", str(signed)]
    options = ["--signature", str(signed / "model.sig"), "--certificate_chain"]
    done = subprocess.run([*command, *options, str(files / "root.cer")], capture_output=True)
    assert done.returncode == 0, done.stderr
    other = subprocess.run([*command, *options, str(files / "other.cer")], capture_output=True)
    assert other.returncode != 0


def test_certificates_of_the_standard_library_are_taken_and_ours_are_the_same(
    signed, files, tmp_path
):
    folder = write_bundle(tmp_path / "toy")
    signer = model_signing.signing.Config().use_certificate_signer(
        private_key=files / "maker.pem",
        signing_certificate=files / "maker.cer",
        certificate_chain=[files / "between.cer"],
    )
    signer.sign(folder, folder / "model.sig")
    assert open_bundle(folder, key=files / "root.cer").signer == "CN=Maker release"
    ours, theirs = (
        re.sub(rb'"(payload|sig)":"[^"]*"', b"", (each / "model.sig").read_bytes())
        for each in (signed, folder)
    )
    assert ours == theirs


# --- what does not -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["other", "namesake", "itself"])
def test_a_bundle_of_another_authority_is_refused(name, signed, files):
    error = refusal_of(signed, files / f"{name}.cer")
    assert (error.code, "was not issued by" in str(error)) == ("E-SIGNATURE", True)


@pytest.mark.parametrize(
    ("names", "authority", "code", "whose"),
    [
        (["expired"], "root", "E-SIGNATURE-EXPIRED", "expired"),
        (["under_gone", "gone_between"], "root", "E-SIGNATURE-EXPIRED", "gone_between"),
        (["under_gone_root"], "gone_root", "E-SIGNATURE-EXPIRED", "gone_root"),
        (["early"], "root", "E-SIGNATURE-NOT-YET", "early"),
    ],
)
def test_every_certificate_must_be_valid_today(
    names, authority, code, whose, files, made, tmp_path
):
    folder = sign_as(tmp_path / "toy", files, *(getattr(made, name) for name in names))
    before = datetime.datetime.now(datetime.timezone.utc).replace(second=0, microsecond=0)
    error = refusal_of(folder, files / f"{authority}.cer")
    assert (type(error), error.code) == (Refused, code)
    told = re.search(r"and it is (\S+ \S+) by this clock", str(error))[1]
    clock = datetime.datetime.strptime(f"{told} +0000", "%Y-%m-%d %H:%M %z")
    assert before <= clock <= datetime.datetime.now(datetime.timezone.utc)
    certificate = getattr(made, whose).certificate
    for fact in (
        certificate.subject.rfc4514_string(),
        f"{certificate.not_valid_before_utc:%Y-%m-%d}",
        f"{certificate.not_valid_after_utc:%Y-%m-%d}",
        "check the clock",
    ):
        assert fact in str(error), fact


def test_dates_are_told_of_a_signature_that_holds_only(files, made, tmp_path):
    folder = sign_as(tmp_path / "toy", files, made.expired)
    (folder / "model.bin").write_bytes(b"another")
    assert refusal_of(folder, files / "root.cer").code == "E-SIGNATURE"


def test_a_certificate_that_begins_before_its_authority_does_is_refused(files, tmp_path):
    young = certify("Young root", authority=True, days=(-1, 30))
    folder = sign_as(tmp_path / "toy", files, certify("Older", young, days=(-2, 30)))
    error = refusal_of(folder, write_pem(tmp_path / "young.cer", young))
    assert (error.code, "not yet valid" in str(error)) == ("E-SIGNATURE", True)


@pytest.mark.parametrize("name", ["server", "unused", "silent", "weak", "rsa", "k1"])
def test_not_every_certificate_of_the_authority_signs(name, files, made, tmp_path):
    folder = sign_as(tmp_path / "toy", files, getattr(made, name))
    error = refusal_of(folder, files / "root.cer")
    why = {"weak": "sha224", "rsa": "P-256", "k1": "P-256"}.get(name, "codeSigning")
    assert (error.code, why in str(error)) == ("E-SIGNATURE", True)


@pytest.mark.parametrize("name", ["code", "anything"])
def test_an_authority_for_code_among_others_may_stand_between(name, files, tmp_path, made):
    folder = write_bundle(tmp_path / "toy")
    chain = (getattr(made, f"under_{name}"), getattr(made, name))
    write_pem(tmp_path / "chain.cer", *chain)
    sign_bundle(open_bundle(folder).store, files / f"under_{name}.pem", tmp_path / "chain.cer")
    assert open_bundle(folder, key=files / "root.cer").signer == f"CN=Under {name}"


@pytest.mark.parametrize("place", ["between", "root"])
def test_an_authority_for_servers_certifies_no_signer(place, files, made, tmp_path):
    chain, root = (made.under_servers, made.servers), made.root
    if place == "root":
        root = certify("Web", authority=True, limits=[ExtendedKeyUsageOID.SERVER_AUTH])
        chain = (certify("Under web", root),)
    folder = sign_as(tmp_path / "toy", files, *chain)
    error = refusal_of(folder, write_pem(tmp_path / "root.cer", root))
    assert (error.code, "limited to other uses" in str(error)) == ("E-SIGNATURE", True)


def test_a_renewed_root_opens_nothing_of_a_signer_from_before(signed, files, made, tmp_path):
    renewed = certify("Root", key=made.root.key, authority=True, days=(-1, 2000))
    error = refusal_of(signed, write_pem(tmp_path / "renewed.cer", renewed))
    assert (error.code, "not yet valid" in str(error)) == ("E-SIGNATURE", True)


def test_a_signer_is_no_authority(files, made, tmp_path):
    folder = sign_as(tmp_path / "toy", files, made.by_maker, made.maker, made.between)
    error = refusal_of(folder, files / "root.cer")
    assert (error.code, "invalid CA certificate" in str(error)) == ("E-SIGNATURE", True)


def test_a_bare_key_does_not_open_what_a_certificate_signed_nor_the_reverse(
    signed, files, tmp_path
):
    error = refusal_of(signed, files / "maker.pub")
    assert (error.code, "made with a certificate" in str(error)) == ("E-SIGNATURE", True)
    bare = write_bundle(tmp_path / "toy")
    sign_bundle(open_bundle(bare).store, files / "maker.pem")
    assert open_bundle(bare, key=files / "maker.pub").verified
    error = refusal_of(bare, files / "root.cer")
    assert (error.code, "made with a bare key" in str(error)) == ("E-SIGNATURE", True)


# --- what could vary -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["maker"],
        ["between", "maker"],
        ["maker", "between", "root"],
        ["maker", "between", "between"],
        ["maker", "maker", "between"],
        ["maker", "between", "other"],
        ["maker", "between", "direct"],
        ["direct", "between"],
        [],
        ["maker", *["between"] * 8],
    ],
)
def test_other_certificates_than_those_of_the_chain_are_refused(names, copy, files, made):
    put_chain(copy, *(getattr(made, name) for name in names))
    assert refusal_of(copy, files / "root.cer").code == "E-SIGNATURE"


def test_the_same_chain_put_in_again_is_no_change(copy, signed, files, made):
    put_chain(copy, made.maker, made.between)
    assert (copy / "model.sig").read_bytes() == (signed / "model.sig").read_bytes()


def longer_length(der, signature):
    """Write the length of the outermost sequence in a byte more than DER allows."""
    assert der[1] == 0x82
    return der[:1] + b"\x83\0" + der[2:]


def unused_bit(der, signature):
    """Say that the last bit of the signature, which is 0, is none of it."""
    at = len(der) - len(signature) - 1
    assert (der[at - 2], der[at], der[-1] & 1) == (3, 0, 0)
    return der[:at] + b"\1" + der[at + 1 :]


def more(der, signature):
    return der + b"\0"


def even(issue):
    """Issue a certificate until the last bit of its signature is 0."""
    while (made := issue()).certificate.signature[-1] & 1:
        pass
    return made


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("change", [longer_length, unused_bit, more])
def test_another_encoding_of_a_certificate_is_refused(change, which, files, made, tmp_path):
    between = even(lambda: certify("Even between", made.root, authority=True, days=(-900, 900)))
    chain = (even(lambda: certify("Even maker", between)), between)
    folder = sign_as(tmp_path / "toy", files, *chain)
    assert open_bundle(folder, key=files / "root.cer").signer == "CN=Even maker"
    encoded = [each.certificate.public_bytes(serialization.Encoding.DER) for each in chain]
    encoded[which] = change(encoded[which], chain[which].certificate.signature)
    put_encoded(folder / "model.sig", list(map(base64.b64encode, encoded)))
    assert refusal_of(folder, files / "root.cer").code == "E-SIGNATURE"


# A changed serial number may be negative, which the library warns of before it is refused.
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_changed_byte_anywhere_in_a_signature_with_certificates_is_refused(copy, files):
    whole = (copy / "model.sig").read_bytes()
    end = whole.index(b'"tlogEntries"') + 200  # of form and certificates; then the payload
    for position in (*range(150), *range(150, end, 7), *range(end, len(whole), 61)):
        changed = bytearray(whole)
        changed[position] ^= 1
        (copy / "model.sig").write_bytes(changed)
        assert refusal_of(copy, files / "root.cer").code == "E-SIGNATURE", position


# --- keys and certificates that are none ---------------------------------------------------------


def test_what_is_no_certificate_of_one_authority_is_no_key(signed, files, made, tmp_path):
    both = write_pem(tmp_path / "both", made.root, made.other)
    broken = tmp_path / "broken"
    broken.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    cut = tmp_path / "cut"
    cut.write_bytes((files / "root.cer").read_bytes()[:-40])
    for key in (both, broken, cut, files / "between.cer", files / "maker.cer"):
        error = refusal_of(signed, key)
        assert (type(error), error.code) == (InputError, "E-KEY-READ"), key


@pytest.mark.parametrize(
    ("key", "names", "code", "why"),
    [
        ("direct", ["maker", "between"], "E-KEY-READ", "of another key"),
        ("maker", ["between"], "E-KEY-READ", "codeSigning"),
        ("maker", ["between", "maker"], "E-KEY-READ", "codeSigning"),
        ("maker", ["maker", "between", "root"], "E-KEY-READ", "the root's is in it"),
        ("maker", ["maker", "under_gone_root"], "E-KEY-READ", "was not issued by"),
        ("server", ["server"], "E-KEY-READ", "codeSigning"),
        ("by_maker", ["by_maker", "maker", "between"], "E-KEY-READ", "CN=Maker.*: invalid CA"),
        ("maker", ["maker", "renewed"], "E-KEY-READ", "CN=Between.*: .*not yet valid"),
        ("twin", ["twin", "below_twin", "twin_above"], "E-KEY-READ", "one subject has two"),
        ("under_servers", ["under_servers", "servers"], "E-KEY-READ", "limited to other uses"),
        ("rsa", ["rsa"], "E-KEY-READ", "P-256"),
        ("expired", ["expired"], "E-SIGNATURE-EXPIRED", "CN=Expired"),
        ("early", ["early"], "E-SIGNATURE-NOT-YET", "CN=Early"),
        ("under_gone", ["under_gone", "gone_between"], "E-SIGNATURE-EXPIRED", "CN=Gone between"),
    ],
)
def test_nothing_is_signed_that_no_device_would_open(key, names, code, why, files, made, tmp_path):
    folder = write_bundle(tmp_path / "toy")
    chain = write_pem(tmp_path / "chain.cer", *(getattr(made, name) for name in names))
    with pytest.raises((InputError, Refused), match=why) as caught:
        sign_bundle(open_bundle(folder).store, files / f"{key}.pem", chain)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert not (folder / "model.sig").exists()


@pytest.fixture
def pipe():
    """What makes a path that gives the content of a file once, as `<(...)` in a shell does."""
    if not Path("/dev/fd").is_dir():
        pytest.skip("no /dev/fd; mount /proc")
    with contextlib.ExitStack() as opened:

        def pipe_of(path):
            reader, writer = os.pipe()
            opened.callback(os.close, reader)
            os.write(writer, path.read_bytes())
            os.close(writer)
            return Path(f"/dev/fd/{reader}")

        yield pipe_of


def test_keys_and_certificates_may_come_from_a_pipe(files, tmp_path, pipe):
    bare, certified = write_bundle(tmp_path / "bare"), write_bundle(tmp_path / "certified")
    sign_bundle(open_bundle(bare).store, pipe(files / "maker.pem"))
    assert open_bundle(bare, key=pipe(files / "maker.pub")).verified
    sign_bundle(open_bundle(certified).store, pipe(files / "maker.pem"), pipe(files / "chain.cer"))
    assert open_bundle(certified, key=pipe(files / "root.cer")).signer == "CN=Maker release"


@pytest.mark.parametrize("name", ["maker.pem", "maker.pub", "missing", "."])
def test_a_file_without_certificates_signs_nothing(name, files, tmp_path):
    folder = write_bundle(tmp_path / "toy")
    with pytest.raises(InputError) as caught:
        sign_bundle(open_bundle(folder).store, files / "maker.pem", files / name)
    assert caught.value.code == "E-KEY-READ"
    assert not (folder / "model.sig").exists()


# --- the commands --------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(cli, ["bundle", *map(str, arguments)])


def test_the_commands_sign_with_a_certificate_and_say_who_did(files, tmp_path):
    folder = write_bundle(tmp_path / "toy")
    done = run("sign", folder, "--key", files / "maker.pem", "--certificate", files / "chain.cer")
    assert done.exit_code == 0, done.output
    key = ("--key", files / "root.cer")
    assert "signature verified, by CN=Maker release\n" in run("verify", folder, *key).stdout
    assert json.loads(run("verify", folder, *key, "--json").stdout)["signer"] == "CN=Maker release"
    assert json.loads(run("verify", folder, "--json").stdout)["signer"] is None
    assert "signature    verified, by CN=Maker release\n" in run("inspect", folder, *key).stdout
    other = run("verify", folder, "--key", files / "other.cer")
    assert (other.exit_code, other.stderr.split(": ")[1]) == (3, "E-SIGNATURE")
    assert other.stderr.count("\n") == 1


def test_certificates_as_the_manual_makes_them_with_openssl_hold(tmp_path, monkeypatch):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl; apt install openssl")
    text = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    block = text[text.index("    openssl req -x509") :]
    block = block[: block.index("    edgeseg bundle")]
    if (
        b"-noenc"
        not in subprocess.run(["openssl", "req", "-help"], capture_output=True, check=True).stderr
    ):
        pytest.skip("this openssl is older than 3.0; Debian 12 has 3.0")
    subprocess.run(["sh", "-ec", block], cwd=tmp_path, check=True, capture_output=True)
    folder = write_bundle(tmp_path / "toy")
    monkeypatch.chdir(tmp_path)
    done = run("sign", "toy", "--key", "maker-private.pem", "--certificate", "maker.pem")
    assert done.exit_code == 0, done.output
    assert open_bundle(folder, key=tmp_path / "authority.pem").signer == "CN=Maker release"
