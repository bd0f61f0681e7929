"""A bundle as one file: what packs to it, and that nothing but its canonical form is read."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgeseg.runtime import bundle as bundle_module
from edgeseg.runtime import store as store_module
from edgeseg.runtime.bundle import open_bundle, pack_bundle, unpack_bundle
from edgeseg.runtime.errors import InputError, Refused
from edgeseg.runtime.store import (
    MAX_ARCHIVE_BYTES,
    MAX_FILES,
    Archive,
    Folder,
    open_archive,
    require_name,
    write_archive,
)
from edgeseg.tests.support.fabricated_bundle import write_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture(scope="module")
def packed(folder):
    pack_bundle(folder, folder.parent / "toy.edgeseg")
    return folder.parent / "toy.edgeseg"


def contents_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def code_of(path):
    with pytest.raises((InputError, Refused)) as caught:
        open_bundle(path)
    assert "\n" not in str(caught.value)
    return caught.value.code


def files_in(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return Folder(folder)


# --- packing -------------------------------------------------------------------------------------


def test_packed_bundle_is_the_same_bundle(folder, packed):
    ours, theirs = open_bundle(folder), open_bundle(packed)
    assert (ours.manifest, ours.sha256) == (theirs.manifest, theirs.sha256)
    assert ours.model_files("openvino") == theirs.model_files("openvino")
    assert ours.size("model.onnx") == theirs.size("model.onnx") == 300


def test_unpacking_gives_every_byte_back(folder, packed, tmp_path):
    unpack_bundle(packed, tmp_path / "out")
    assert contents_of(tmp_path / "out") == contents_of(folder)


def test_packing_twice_gives_the_same_bytes_whatever_dates_and_modes(folder, packed, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "another name")
    for path in copy.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    pack_bundle(copy, tmp_path / "again.edgeseg")
    assert (tmp_path / "again.edgeseg").read_bytes() == packed.read_bytes()


def test_packing_what_was_packed_changes_nothing(packed, tmp_path):
    pack_bundle(packed, tmp_path / "again.edgeseg")
    assert (tmp_path / "again.edgeseg").read_bytes() == packed.read_bytes()


def test_any_zip_tool_reads_it(folder, packed):
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        contents = {name: archive.read(name) for name in archive.namelist()}
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}
    assert contents == contents_of(folder)
    assert list(contents) == sorted(contents)


def test_pack_writes_over_nothing(folder, packed):
    before = packed.read_bytes()
    with pytest.raises(InputError) as caught:
        pack_bundle(folder, packed)
    assert caught.value.code == "E-OUT-EXISTS"
    assert packed.read_bytes() == before


def test_damaged_bundle_is_not_packed(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.bin").write_bytes(b"another")
    with pytest.raises(Refused) as caught:
        pack_bundle(copy, tmp_path / "out.edgeseg")
    assert caught.value.code == "E-BUNDLE-HASH"
    assert not (tmp_path / "out.edgeseg").exists()


def test_folder_is_not_unpacked(folder, tmp_path):
    with pytest.raises(InputError) as caught:
        unpack_bundle(folder, tmp_path / "out")
    assert caught.value.code == "E-BUNDLE-MISSING"


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "/x", "a/../x", "a//x", "./x", "a/", "", ".hidden", "a/.git", "..", "-x"),
        *("a\\x", "C:x", "a b", "ü", "a\0", "a\nb", "a" * 201),
    ],
)
def test_name_that_is_not_plain_is_refused(name):
    with pytest.raises(Refused) as caught:
        require_name(name, Path("bundle"))
    assert caught.value.code == "E-BUNDLE-NAME"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.bin", "vectors/frame-0.pgm", "a/b/c_d.e-f", "_x", "a..b"])
def test_plain_name_is_taken(name):
    require_name(name, Path("bundle"))


# --- reading -------------------------------------------------------------------------------------


@pytest.fixture
def archive_of(tmp_path):
    """Pack a few files and return the archive's path."""

    def archive(contents):
        write_archive(files_in(tmp_path / "files", contents), tmp_path / "x.edgeseg")
        return tmp_path / "x.edgeseg"

    return archive


def form_of(content, tmp_path):
    """Return the code that bytes are refused with as an archive, reading every member."""
    path = tmp_path / "damaged.edgeseg"
    path.write_bytes(content)
    try:
        archive = open_archive(path)
        for name in archive.names():
            archive.read(name)
    except (Refused, InputError) as error:
        return error.code
    return None


SMALL = {"a": b"first", "b/c": b"", "d.e": b"\0" * 5}


def test_every_change_of_a_byte_is_refused(archive_of, tmp_path):
    whole = archive_of(SMALL).read_bytes()
    assert form_of(whole, tmp_path) is None
    for position in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(whole)
            changed[position] ^= flip
            code = form_of(changed, tmp_path)
            assert code in ("E-ARCHIVE-FORM", "E-BUNDLE-NAME", "E-ARCHIVE-SIZE"), position


def test_every_cut_and_every_added_byte_is_refused(archive_of, tmp_path):
    whole = archive_of(SMALL).read_bytes()
    for position in range(len(whole)):
        assert form_of(whole[:position], tmp_path) == "E-ARCHIVE-FORM", position
        assert form_of(whole[position + 1 :], tmp_path) == "E-ARCHIVE-FORM", position
        added = whole[:position] + b"\0" + whole[position:]
        assert form_of(added, tmp_path) in ("E-ARCHIVE-FORM", "E-BUNDLE-NAME"), position
    assert form_of(whole + b"\0", tmp_path) == "E-ARCHIVE-FORM"


def zipped(tmp_path, write, **options):
    """Return the bytes of an archive that Python's own zipfile writes."""
    with zipfile.ZipFile(tmp_path / "other.zip", "w", **options) as archive:
        write(archive)
    return (tmp_path / "other.zip").read_bytes()


def link(archive):
    info = zipfile.ZipInfo("a")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    archive.writestr(info, "/etc/passwd")


def zip64(archive):
    with archive.open("a", "w", force_zip64=True) as member:
        member.write(b"x")


@pytest.mark.parametrize(
    "write",
    [
        lambda archive: archive.writestr("a", b"x"),  # has today's date
        lambda archive: archive.writestr("a", bytes(10**7), zipfile.ZIP_DEFLATED),  # a bomb
        lambda archive: archive.writestr("../a", b"x"),
        lambda archive: archive.writestr("/etc/a", b"x"),
        lambda archive: archive.writestr("a\\b", b"x"),
        lambda archive: archive.writestr("a/", b""),
        lambda archive: setattr(archive, "comment", b"PK"),
        link,
        zip64,
    ],
)
def test_archive_of_another_writer_is_refused(write, tmp_path):
    assert form_of(zipped(tmp_path, write), tmp_path) in ("E-ARCHIVE-FORM", "E-BUNDLE-NAME")


def test_name_twice_is_refused(archive_of, tmp_path):
    whole = archive_of({"a": b"x", "b": b"x"}).read_bytes()
    assert form_of(whole.replace(b"b", b"a"), tmp_path) == "E-ARCHIVE-FORM"


def test_names_out_of_order_are_refused(archive_of, tmp_path):
    whole = archive_of({"a": b"x", "b": b"x"}).read_bytes()
    swapped = whole.replace(b"a", b"?").replace(b"b", b"a").replace(b"?", b"b")
    assert form_of(swapped, tmp_path) == "E-ARCHIVE-FORM"


def test_escaping_name_in_an_otherwise_canonical_archive_is_refused(archive_of, tmp_path):
    whole = archive_of({"aaaa": b"x"}).read_bytes()
    for name in (b"../x", b"/tmp", b"a\\bc", b"a//b", b"\xff\xfe\0a", b"a/..", b"a/b/"):
        changed = whole.replace(b"aaaa", name)
        assert form_of(changed, tmp_path) in ("E-BUNDLE-NAME", "E-ARCHIVE-FORM"), name


def test_file_with_the_name_of_a_folder_is_refused(archive_of, tmp_path):
    whole = archive_of({"a": b"x", "bbb": b"x"}).read_bytes()
    assert form_of(whole.replace(b"bbb", b"a/b"), tmp_path) == "E-ARCHIVE-FORM"


def test_bytes_between_members_are_refused(archive_of, tmp_path):
    whole = archive_of({"a": b"x", "b": b"y"}).read_bytes()
    second, directory = whole.index(b"PK\3\4", 1), whole.index(b"PK\1\2")
    body = whole[:second] + b"\0\0\0" + whole[second:directory]
    headers = bytearray(whole[directory:])
    start = headers.index(b"PK\1\2", 1) + 42  # offset of the second member, and of the directory
    for position in (start, len(headers) - 6):
        (old,) = struct.unpack_from("<L", headers, position)
        struct.pack_into("<L", headers, position, old + 3)
    assert form_of(body + bytes(headers), tmp_path) == "E-ARCHIVE-FORM"


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"PK\5\6" + bytes(18), os.urandom(500)])
def test_what_is_no_archive_is_refused(content, tmp_path):
    path = tmp_path / "x.edgeseg"
    path.write_bytes(content)
    assert code_of(path) in ("E-ARCHIVE-FORM", "E-BUNDLE-MISSING")


def test_huge_file_is_refused_by_its_size(tmp_path):
    with (tmp_path / "x.edgeseg").open("wb") as file:
        file.truncate(MAX_ARCHIVE_BYTES + 1)  # takes no space on disk
    assert code_of(tmp_path / "x.edgeseg") == "E-ARCHIVE-SIZE"


def test_huge_counts_are_refused_before_anything_is_read(tmp_path):
    for count, size, start in ((0xFFFF, 0xFFFFFFFF, 0), (MAX_FILES + 1, 46, 0), (1, 2**31, 2**31)):
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, start, 0)
        assert form_of(bytes(100) + end, tmp_path) == "E-ARCHIVE-FORM"


@pytest.mark.parametrize("limit", ["MAX_FILES", "MAX_ARCHIVE_BYTES"])
def test_more_than_an_archive_may_hold_is_not_packed(limit, tmp_path, monkeypatch):
    store = files_in(tmp_path / "many", SMALL)
    monkeypatch.setattr(store_module, limit, 2)
    with pytest.raises(Refused) as caught:
        write_archive(store, tmp_path / "x.edgeseg")
    assert caught.value.code == "E-ARCHIVE-SIZE"


def test_random_damage_of_a_packed_bundle_is_refused(packed, tmp_path):
    whole = packed.read_bytes()
    rng = random.Random(0)
    target = tmp_path / "x.edgeseg"
    for _ in range(150):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        target.write_bytes(changed)
        assert code_of(target) in ("E-ARCHIVE-FORM", "E-BUNDLE-NAME", "E-ARCHIVE-SIZE")


def test_consistent_archive_of_changed_files_is_refused_by_its_hashes(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.bin").write_bytes(b"another")
    write_archive(Folder(copy), tmp_path / "x.edgeseg")
    assert code_of(tmp_path / "x.edgeseg") == "E-BUNDLE-HASH"


def test_archive_that_changes_after_it_was_opened_is_refused(packed, tmp_path):
    path = Path(shutil.copy(packed, tmp_path / "x.edgeseg"))
    bundle = open_bundle(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(bundle.read("model.onnx"), bytes(300)))
    with pytest.raises(Refused) as caught:
        bundle.model_files("onnxruntime")
    assert caught.value.code in ("E-ARCHIVE-FORM", "E-BUNDLE-HASH")


@pytest.mark.parametrize("name", ["SHA256SUMS", "manifest.json", "model.bin"])
def test_a_file_that_cannot_be_read_is_named_in_one_line(folder, name, monkeypatch):
    whole = Path.open

    def refuse(path, *arguments, **settings):
        if path.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return whole(path, *arguments, **settings)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError) as caught:
        open_bundle(folder)
    assert caught.value.code == "E-BUNDLE-MISSING"
    assert f"{folder / name} (Permission denied)" in str(caught.value)


def test_digest_of_a_member_holds_no_more_than_a_block(tmp_path, monkeypatch):
    content = os.urandom(1000)
    write_archive(files_in(tmp_path / "files", {"a": content}), tmp_path / "x.edgeseg")
    archive = open_archive(tmp_path / "x.edgeseg")
    monkeypatch.setattr(store_module, "_BLOCK", 64)
    monkeypatch.setattr(Archive, "read", None)
    assert archive.digest("a") == hashlib.sha256(content).hexdigest()
    assert max(map(len, archive._blocks("a"))) == 64


def test_digest_of_a_damaged_member_is_refused_by_its_crc(tmp_path):
    write_archive(files_in(tmp_path / "files", {"a": bytes(9)}), tmp_path / "x.edgeseg")
    archive = open_archive(tmp_path / "x.edgeseg")
    damaged = archive.path.read_bytes().replace(bytes(9), b"123456789")
    archive.path.write_bytes(damaged)
    with pytest.raises(Refused) as caught:
        archive.digest("a")
    assert caught.value.code == "E-ARCHIVE-FORM"


def change_after_opening(monkeypatch, file):
    """Change a file between the verification of its bundle and what is done with it."""
    verify = bundle_module.open_bundle

    def opened(path, **settings):
        found = verify(path, **settings)
        content = file.read_bytes()
        file.write_bytes(content.replace(found.read("model.onnx"), bytes(300)))
        return found

    monkeypatch.setattr(bundle_module, "open_bundle", opened)


def test_a_file_that_changes_while_it_is_packed_is_refused_and_nothing_is_left(
    folder, tmp_path, monkeypatch
):
    copy = shutil.copytree(folder, tmp_path / "copy")
    change_after_opening(monkeypatch, copy / "model.onnx")
    with pytest.raises(Refused) as caught:
        pack_bundle(copy, tmp_path / "x.edgeseg")
    assert caught.value.code == "E-BUNDLE-HASH"
    assert "model.onnx" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_a_consistent_archive_that_takes_its_place_while_it_is_unpacked_is_refused(
    folder, packed, tmp_path, monkeypatch
):
    mine = Path(shutil.copy(packed, tmp_path / "mine.edgeseg"))
    verify = bundle_module.open_bundle

    def opened(path, **settings):
        found = verify(path, **settings)
        other = shutil.copytree(folder, tmp_path / "other")
        (other / "model.onnx").write_bytes(bytes(300))
        write_archive(Folder(other), mine)
        inner = open_archive(mine)  # with its own CRC-32, as a directory read later has
        return replace(found, store=replace(found.store, inner=inner))

    monkeypatch.setattr(bundle_module, "open_bundle", opened)
    with pytest.raises(Refused) as caught:
        unpack_bundle(mine, tmp_path / "out")
    assert caught.value.code == "E-BUNDLE-HASH"
    assert not (tmp_path / "out").exists()
