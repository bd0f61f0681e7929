"""Who made a bundle: OpenSSF model signing, verified before anything is parsed."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from edgeseg.runtime import signature
from edgeseg.runtime.bundle import Manifest, open_bundle, pack_bundle, seal_bundle
from edgeseg.runtime.errors import EngineError, InputError, OutputError, Refused
from edgeseg.runtime.signature import sign_bundle
from edgeseg.runtime.store import Folder, write_archive
from edgeseg.tests.support.fabricated_bundle import manifest_fields, write_bundle

pytest.importorskip(
    "model_signing", reason="signatures need the extra [sign]; make install brings it"
)
pytest.importorskip("OpenSSL", reason="signatures need the extra [sign]; make install brings it")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa


def write_keys(folder, name, private, password=None):
    """Write a key pair as openssl would."""
    hidden = serialization.NoEncryption()
    if password:
        hidden = serialization.BestAvailableEncryption(password)
    pem = serialization.Encoding.PEM
    (folder / f"{name}.pem").write_bytes(
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden)
    )
    (folder / f"{name}.pub").write_bytes(
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with our.pem, our.pub, and others."""
    folder = tmp_path_factory.mktemp("keys")
    for name, curve in (("our", ec.SECP256R1()), ("their", ec.SECP256R1()), ("k1", ec.SECP256K1())):
        write_keys(folder, name, ec.generate_private_key(curve))
    write_keys(folder, "locked", ec.generate_private_key(ec.SECP256R1()), b"secret")
    write_keys(folder, "ed", ed25519.Ed25519PrivateKey.generate())
    write_keys(folder, "rsa", rsa.generate_private_key(65537, 2048))
    (folder / "text").write_text("no key")
    (folder / "empty").touch()
    (folder / "huge").write_bytes(b"-" * (1 << 17))
    return folder


@pytest.fixture(scope="module")
def signed(keys, tmp_path_factory):
    """A signed bundle; nobody may write here."""
    folder = write_bundle(tmp_path_factory.mktemp("signed") / "toy")
    sign_bundle(open_bundle(folder).store, keys / "our.pem")
    return folder


@pytest.fixture
def copy(signed, tmp_path):
    return shutil.copytree(signed, tmp_path / "copy")


def code_of(path, key):
    with pytest.raises((Refused, InputError)) as caught:
        open_bundle(path, key=key)
    assert "\n" not in str(caught.value)
    return caught.value.code


def test_signed_bundle_opens_with_the_public_key(signed, keys):
    bundle = open_bundle(signed, key=keys / "our.pub")
    assert bundle.is_signed
    assert bundle.manifest.name == "toy"


def test_signing_changes_no_hash_of_the_bundle(signed, tmp_path):
    before = open_bundle(write_bundle(tmp_path / "toy"))
    assert before.sha256 == open_bundle(signed).sha256
    assert not before.is_signed


def test_signed_bundle_opens_without_a_key_and_without_the_library(signed):
    code = (
        "import sys; from pathlib import Path; from edgeseg.runtime import open_bundle;"
        f"open_bundle(Path({str(signed)!r}));"
        "print({'model_signing', 'cryptography'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_every_curve_of_the_standard_signs(curve, tmp_path):
    write_keys(tmp_path, "own", ec.generate_private_key(curve))
    folder = write_bundle(tmp_path / "toy")
    sign_bundle(open_bundle(folder).store, tmp_path / "own.pem")
    open_bundle(folder, key=tmp_path / "own.pub")


def test_signed_bundle_may_be_moved_and_renamed(copy, keys):
    open_bundle(copy.rename(copy.parent / "elsewhere"), key=keys / "our.pub")


def test_signature_travels_in_the_packed_bundle(signed, keys, tmp_path):
    pack_bundle(signed, tmp_path / "toy.edgeseg")
    assert open_bundle(tmp_path / "toy.edgeseg", key=keys / "our.pub").is_signed
    assert code_of(tmp_path / "toy.edgeseg", keys / "their.pub") == "E-SIGNATURE"


def test_packed_bundle_is_signed_in_place(keys, tmp_path):
    pack_bundle(write_bundle(tmp_path / "toy"), tmp_path / "toy.edgeseg")
    sign_bundle(open_bundle(tmp_path / "toy.edgeseg").store, keys / "our.pem")
    open_bundle(tmp_path / "toy.edgeseg", key=keys / "our.pub")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy", "toy.edgeseg"]


def test_the_standard_tool_verifies_our_signature(signed, keys):
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed)]
    options = ["--signature", str(signed / "model.sig"), "--public_key"]
    done = subprocess.run([*command, *options, str(keys / "our.pub")], capture_output=True)
    assert done.returncode == 0, done.stderr


def test_signature_of_the_standard_tool_is_taken(keys, tmp_path):
    folder = write_bundle(tmp_path / "toy")
    command = [sys.executable, "-m", "model_signing", "sign", "key", str(folder)]
    options = ["--signature", str(folder / "model.sig"), "--private_key", str(keys / "our.pem")]
    subprocess.run([*command, *options], check=True, capture_output=True)
    open_bundle(folder, key=keys / "our.pub")


# --- refusals ------------------------------------------------------------------------------------


def test_bundle_without_a_signature_is_refused_where_a_key_is_given(keys, tmp_path):
    folder = write_bundle(tmp_path / "toy")
    assert code_of(folder, keys / "our.pub") == "E-SIGNATURE-MISSING"
    pack_bundle(folder, tmp_path / "toy.edgeseg")
    assert code_of(tmp_path / "toy.edgeseg", keys / "our.pub") == "E-SIGNATURE-MISSING"


def test_wrong_key_is_refused(signed, keys):
    assert code_of(signed, keys / "their.pub") == "E-SIGNATURE"


def test_signature_of_another_bundle_is_refused(signed, keys, tmp_path):
    other = write_bundle(tmp_path / "toy", name="other")
    shutil.copy(signed / "model.sig", other)
    assert code_of(other, keys / "our.pub") == "E-SIGNATURE"


def test_signature_of_something_that_is_no_bundle_is_refused(keys, tmp_path):
    import model_signing

    folder = write_bundle(tmp_path / "toy")
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=keys / "our.pem")
    signer.sign(folder / "model.bin", folder / "model.sig")  # of one file of the bundle
    assert code_of(folder, keys / "our.pub") == "E-SIGNATURE"


def test_signature_that_leaves_files_out_is_refused(keys, tmp_path):
    import model_signing

    folder = write_bundle(tmp_path / "toy")
    partly = model_signing.hashing.Config().set_ignored_paths(
        paths=["SHA256SUMS", "manifest.json"], ignore_git_paths=True
    )
    signer = model_signing.signing.Config().set_hashing_config(partly)
    signer.use_elliptic_key_signer(private_key=keys / "our.pem").sign(folder, folder / "model.sig")
    assert code_of(folder, keys / "our.pub") == "E-SIGNATURE"


def test_manifest_is_not_parsed_before_the_signature_holds(signed, keys, monkeypatch):
    def parse(*_):
        raise AssertionError("parsed")

    monkeypatch.setattr(Manifest, "from_json", parse)
    assert code_of(signed, keys / "their.pub") == "E-SIGNATURE"
    with pytest.raises(AssertionError, match="parsed"):
        open_bundle(signed, key=keys / "our.pub")


def test_every_changed_file_of_a_signed_bundle_is_refused(copy, keys):
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 1
        path.write_bytes(changed)
        assert code_of(copy, keys / "our.pub") == "E-SIGNATURE", path
        path.write_bytes(whole)
    open_bundle(copy, key=keys / "our.pub")


def test_file_that_git_would_own_is_no_way_around_the_signature(copy, keys):
    (copy / ".gitignore").write_text("x")
    assert code_of(copy, keys / "our.pub") == "E-SIGNATURE"


def test_changed_byte_anywhere_in_the_signature_is_refused(copy, keys):
    whole = (copy / "model.sig").read_bytes()
    step = max(1, len(whole) // 150)
    ends = [*range(200), *range(len(whole) - 250, len(whole))]  # around the signed part
    for position in sorted({*ends, *range(0, len(whole), step)}):
        changed = bytearray(whole)
        changed[position] ^= 1
        (copy / "model.sig").write_bytes(changed)
        assert code_of(copy, keys / "our.pub") == "E-SIGNATURE", position


def envelope(**changes):
    def change(content):
        content["dsseEnvelope"].update(changes)

    return change


@pytest.mark.parametrize(
    "change",
    [
        envelope(signatures=[]),
        envelope(payload=""),
        envelope(payload=base64.b64encode(b"{}").decode()),
        envelope(payloadType="text/plain"),
        envelope(signatures=[{"sig": "", "keyid": ""}]),
        lambda content: content.clear(),
        lambda content: content["verificationMaterial"].pop("publicKey"),
        lambda content: content["verificationMaterial"]["publicKey"].update(hint=None),
        lambda content: content.update(mediaType="application/json"),
        lambda content: content.update(more=1),
    ],
)
def test_signature_of_another_content_is_refused(change, copy, keys):
    content = json.loads((copy / "model.sig").read_bytes())
    change(content)
    (copy / "model.sig").write_text(json.dumps(content, separators=(",", ":")))
    assert code_of(copy, keys / "our.pub") == "E-SIGNATURE"


@pytest.mark.parametrize(
    "content", [b"", b"null", b"{}", b"\xff", b"[" * 100_000, b" " * (1 << 21)]
)
def test_signature_that_is_none_is_refused(content, copy, keys):
    (copy / "model.sig").write_bytes(content)
    assert code_of(copy, keys / "our.pub") == "E-SIGNATURE"


@pytest.mark.parametrize(
    "name", ["our.pem", "k1.pub", "ed.pub", "rsa.pub", "text", "empty", "huge", "missing", "."]
)
def test_what_is_no_public_key_of_the_curves_is_refused(name, signed, keys):
    assert code_of(signed, keys / name) == "E-KEY-READ"


@pytest.mark.parametrize(
    "name", ["our.pub", "k1.pem", "ed.pem", "rsa.pem", "locked.pem", "text", "empty", "missing"]
)
def test_what_is_no_private_key_of_the_curves_signs_nothing(name, keys, tmp_path):
    folder = write_bundle(tmp_path / "toy")
    with pytest.raises(InputError) as caught:
        sign_bundle(open_bundle(folder).store, keys / name)
    assert caught.value.code == "E-KEY-READ"
    assert not (folder / "model.sig").exists()


def test_signed_bundle_is_not_signed_again(signed, keys):
    with pytest.raises(InputError) as caught:
        sign_bundle(open_bundle(signed).store, keys / "their.pem")
    assert caught.value.code == "E-OUT-EXISTS"


def test_missing_library_is_named_with_its_extra(signed, keys, monkeypatch):
    monkeypatch.setattr(signature.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"edgeseg\[sign\]") as caught:
        open_bundle(signed, key=keys / "our.pub")
    assert caught.value.code == "E-EXTRA-MISSING"


@pytest.mark.parametrize("packed", [False, True])
def test_what_changes_after_it_was_verified_is_not_signed(packed, keys, tmp_path):
    folder = write_bundle(tmp_path / "toy")
    store = open_bundle(folder).store
    if packed:
        pack_bundle(folder, tmp_path / "toy.edgeseg")
        store = open_bundle(tmp_path / "toy.edgeseg").store
    (folder / "model.bin").write_bytes(b"another")
    seal_again(folder)  # it is a whole bundle again, another
    if packed:
        (tmp_path / "toy.edgeseg").unlink()
        pack_bundle(folder, tmp_path / "toy.edgeseg")
        store = replace(store, inner=open_bundle(tmp_path / "toy.edgeseg").store.inner)
    with pytest.raises(Refused) as caught:
        sign_bundle(store, keys / "our.pem")
    assert caught.value.code == "E-BUNDLE-HASH"
    assert not open_bundle(store.path).is_signed


def seal_again(folder):
    (folder / "manifest.json").unlink()
    (folder / "SHA256SUMS").unlink()
    seal_bundle(folder, manifest_fields())


def test_a_packed_bundle_is_not_written_out_for_its_signature_before_its_hashes_hold(
    copy, keys, tmp_path, monkeypatch
):
    (copy / "model.bin").write_bytes(bytes(1000))
    write_archive(Folder(copy), tmp_path / "toy.edgeseg")

    def write_out(*_):
        raise AssertionError("written out")

    monkeypatch.setattr(signature, "write_files", write_out)
    assert code_of(tmp_path / "toy.edgeseg", keys / "our.pub") == "E-BUNDLE-HASH"


def verify_store(store, keys):
    open_bundle(store.path, key=keys / "our.pub")


def sign_store(store, keys):
    sign_bundle(store, keys / "our.pem")


@pytest.mark.parametrize("call", [verify_store, sign_store])
def test_a_full_disk_for_temporary_files_is_one_line(call, keys, tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / "toy")
    if call is verify_store:
        sign_bundle(open_bundle(folder).store, keys / "our.pem")
    pack_bundle(folder, tmp_path / "toy.edgeseg")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(signature, "write_files", full)
    store = open_bundle(tmp_path / "toy.edgeseg").store
    with pytest.raises(OutputError) as caught:
        call(store, keys)
    assert caught.value.code == "E-OUT-WRITE"
    assert "TMPDIR" in str(caught.value)
