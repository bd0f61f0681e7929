"""Where the bytes of a bundle lie: in a folder, or in one file.

The single file, ``NAME.edgeseg``, is a zip archive in one canonical form: members sorted by name
and stored as they are, no dates, no comments, no extra fields, nothing between them. Any zip tool
reads it. Here only that form is read: what a reader of zip archives could understand in two ways
(two directories, two names, lengths that differ, a prefix, ZIP64) is refused, and what is read
packs to the same bytes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Dict, Iterator, Mapping, Protocol, Tuple

from .errors import InputError, Refused
from .files import atomic_folder, atomic_path, sha256_of_file

SUFFIX = ".edgeseg"
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
SIGNATURE = "model.sig"  # of everything else; in no list, as it comes last
MAX_ARCHIVE_BYTES = 1 << 30  # compared with the file size before anything is read
MAX_FILES = 4096
MAX_NAME_BYTES = 200
# Of a file in a bundle: plain on every file system, and never a way out of the folder.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_BLOCK = 1 << 20

# Of PKWARE's APPNOTE 6.3: local header, header in the directory, end of the directory.
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION, _UNIX, _DATE = 10, 3 << 8, (1 << 5) | 1  # 1.0, made on Unix, 1 January 1980
_MODE = 0o100644 << 16  # a plain file
_MAX_DIRECTORY = MAX_FILES * (_CENTRAL.size + MAX_NAME_BYTES)


class Store(Protocol):
    """Files by name; a name is a relative path with ``/``.

    What cannot be read is an InputError (E-BUNDLE-MISSING).
    """

    @property
    def path(self) -> Path:
        """Of the folder or the file."""
        ...

    def names(self) -> Tuple[str, ...]:
        """Return every file, sorted."""
        ...

    def size(self, name: str) -> int:
        """Return the bytes of a file."""
        ...

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        ...

    def digest(self, name: str) -> str:
        """Return the lower-case hex SHA-256 of a file."""
        ...


@dataclass(frozen=True)
class Folder:
    """A bundle as a folder."""

    path: Path

    def names(self) -> Tuple[str, ...]:
        """See `Store`. Raises Refused: E-BUNDLE-LINK for what is no plain file."""
        names = []
        with reading(self.path):
            for path in self.path.rglob("*"):
                if path.is_symlink() or not (path.is_file() or path.is_dir()):
                    raise Refused(
                        "E-BUNDLE-LINK",
                        f"{path} is no plain file; a bundle holds no links and no devices",
                    )
                if path.is_file():
                    names.append(path.relative_to(self.path).as_posix())
        return tuple(sorted(names))

    def size(self, name: str) -> int:
        """See `Store`."""
        with reading(self.path / name):
            return (self.path / name).stat().st_size

    def read(self, name: str) -> bytes:
        """See `Store`."""
        with reading(self.path / name):
            return (self.path / name).read_bytes()

    def digest(self, name: str) -> str:
        """See `Store`."""
        with reading(self.path / name):
            return sha256_of_file(self.path / name)


@dataclass(frozen=True)
class _Member:
    """A file in an archive."""

    start: int  # of its content, bytes from the start of the archive
    size: int
    crc: int  # CRC-32 of its content


@dataclass(frozen=True)
class Archive:
    """A bundle as one file, in canonical form; made by `open_archive`."""

    path: Path
    members: Mapping[str, _Member]

    def names(self) -> Tuple[str, ...]:
        """See `Store`."""
        return tuple(self.members)

    def size(self, name: str) -> int:
        """See `Store`."""
        return self.members[name].size

    def read(self, name: str) -> bytes:
        """See `Store`. Raises Refused: E-ARCHIVE-FORM if it is not what the directory says."""
        return b"".join(self._blocks(name))

    def digest(self, name: str) -> str:
        """See `Store` and `read`; no more than a block is held."""
        digest = hashlib.sha256()
        for block in self._blocks(name):
            digest.update(block)
        return digest.hexdigest()

    def _blocks(self, name: str) -> Iterator[bytes]:
        """Yield the content of a file; its CRC-32 is compared after the last block."""
        member = self.members[name]
        left, crc = member.size, 0
        with reading(self.path), self.path.open("rb") as file:
            file.seek(member.start)
            while left:
                block = file.read(min(left, _BLOCK))
                if not block:
                    break
                left, crc = left - len(block), zlib.crc32(block, crc)
                yield block
        if left or crc != member.crc:
            raise _not_canonical(self.path, f"{name} does not have its CRC-32")


@dataclass(frozen=True)
class Sealed:
    """The store of a verified bundle: each file is compared again whenever it is read."""

    inner: Store
    # File -> SHA-256 when it was verified; all but the signature.
    digests: Mapping[str, str] = field(repr=False)

    @property
    def path(self) -> Path:
        """See `Store`."""
        return self.inner.path

    def names(self) -> Tuple[str, ...]:
        """See `Store`: what was verified, and the signature if there is one."""
        signature = {SIGNATURE} & set(self.inner.names())
        return tuple(sorted({*self.digests, *signature}))

    def size(self, name: str) -> int:
        """See `Store`."""
        return self.inner.size(name)

    def read(self, name: str) -> bytes:
        """See `Store`. Raises Refused: E-BUNDLE-HASH if the file changed since."""
        content = self.inner.read(name)
        if name != SIGNATURE and hashlib.sha256(content).hexdigest() != self.digests[name]:
            raise changed(self.path / name)
        return content

    def digest(self, name: str) -> str:
        """See `Store` and `read`."""
        return hashlib.sha256(self.read(name)).hexdigest()


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError of what reads a bundle into InputError (E-BUNDLE-MISSING)."""
    try:
        yield
    except OSError as error:
        raise InputError(
            "E-BUNDLE-MISSING",
            f"cannot read {path} ({error.strerror or error}); name a bundle, all of it readable",
        ) from error


def changed(file: Path) -> Refused:
    """Return what refuses a file that is not what SHA256SUMS says."""
    return Refused(
        "E-BUNDLE-HASH", f"{file} does not match SHA256SUMS; fetch or export the bundle again"
    )


def require_name(name: str, where: Path) -> None:
    """Raise Refused (E-BUNDLE-NAME) unless a name is plain and stays inside the bundle."""
    if len(name) > MAX_NAME_BYTES or not _NAME.fullmatch(name):
        raise Refused(
            "E-BUNDLE-NAME",
            f"{where} has a file named {name[:MAX_NAME_BYTES]!r}; names are of letters, digits and "
            f"'._-', relative, at most {MAX_NAME_BYTES} long",
        )


def write_archive(store: Store, out: Path) -> None:
    """Write the files of a store as one archive: same files, same bytes.

    Raises:
        Refused: E-BUNDLE-NAME, E-ARCHIVE-SIZE (more than an archive may hold).
        OutputError: E-OUT-WRITE.
    """
    names = sorted(store.names())
    for name in names:
        require_name(name, store.path)
    if len(names) > MAX_FILES or sum(map(store.size, names)) > MAX_ARCHIVE_BYTES - _MAX_DIRECTORY:
        raise _too_large(store.path)
    directory = b""
    with atomic_path(out) as temporary, temporary.open("wb") as file:
        for name in names:
            content = store.read(name)
            member = _Member(
                file.tell() + _LOCAL.size + len(name), len(content), zlib.crc32(content)
            )
            directory += _central_header(name, member)
            file.write(_local_header(name, member))
            file.write(content)
        end = _end_of(len(names), len(directory), file.tell())
        file.write(directory + end)


def open_archive(path: Path) -> Archive:
    """Read the directory of an archive and check every byte that is not content.

    Raises:
        InputError: E-BUNDLE-MISSING (not readable as a file).
        Refused: E-ARCHIVE-SIZE, E-ARCHIVE-FORM (not the canonical form), E-BUNDLE-NAME.
    """
    with reading(path), path.open("rb") as file:
        return Archive(path, _members_of(file, path))


def write_folder(store: Store, out: Path) -> None:
    """Write the files of a store into the new folder `out`, whole or not at all.

    Raises InputError (E-OUT-EXISTS), OutputError (E-OUT-WRITE), and as `read` of the store.
    """
    with atomic_folder(out) as folder:
        write_files(store, folder)


def write_files(store: Store, folder: Path) -> None:
    """Write the files of a store into an existing folder."""
    for name in store.names():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(store.read(name))


def _members_of(file: BinaryIO, path: Path) -> Dict[str, _Member]:
    length = file.seek(0, 2)
    if length > MAX_ARCHIVE_BYTES:
        raise _too_large(path)
    if length < _END.size:
        raise _not_canonical(path, "it is too short")
    end = _read_at(file, length - _END.size, _END.size)
    _, _, _, _, count, size, start, _ = _END.unpack(end)
    if count > MAX_FILES or size > _MAX_DIRECTORY or start + size + _END.size != length:
        raise _not_canonical(path, "its directory is not where it should end")
    if end != _end_of(count, size, start):
        raise _not_canonical(path, "its end is another")
    directory = _read_at(file, start, size)
    members = _parse_directory(directory, path)
    if len(members) != count or list(members) != sorted(members):
        raise _not_canonical(path, "names are not sorted or not once each")
    folders = {str(parent) for name in members for parent in PurePosixPath(name).parents}
    if not folders.isdisjoint(members):
        raise _not_canonical(path, "a file has the name of a folder")
    position = 0
    for name, member in members.items():
        header = _local_header(name, member)
        if member.start != position + len(header) or member.start + member.size > start:
            raise _not_canonical(path, f"{name} is not where the one before it ends")
        if _read_at(file, position, len(header)) != header:
            raise _not_canonical(path, f"{name} has another header than the directory says")
        position = member.start + member.size
    if position != start:
        raise _not_canonical(path, "it has bytes that belong to no file")
    return members


def _parse_directory(directory: bytes, path: Path) -> Dict[str, _Member]:
    """Read headers that are byte for byte as this module writes them."""
    members: Dict[str, _Member] = {}
    position = 0
    while position < len(directory):
        if len(directory) - position < _CENTRAL.size:
            raise _not_canonical(path, "its directory is cut")
        header = _CENTRAL.unpack_from(directory, position)
        crc, size, name_size, offset = header[7], header[8], header[10], header[16]
        begin = position + _CENTRAL.size
        name = directory[begin : begin + name_size].decode("ascii", "backslashreplace")
        require_name(name, path)
        member = _Member(offset + _LOCAL.size + name_size, size, crc)
        expected = _central_header(name, member)
        if directory[position : position + len(expected)] != expected:
            raise _not_canonical(path, f"the directory has {name} in another form")
        if name in members:
            raise _not_canonical(path, f"{name} is there twice")
        members[name] = member
        position += len(expected)
    return members


def _local_header(name: str, member: _Member) -> bytes:
    raw = name.encode("ascii")
    fields = (_VERSION, 0, 0, 0, _DATE, member.crc, member.size, member.size, len(raw), 0)
    return _LOCAL.pack(b"PK\3\4", *fields) + raw


def _central_header(name: str, member: _Member) -> bytes:
    raw = name.encode("ascii")
    start = member.start - _LOCAL.size - len(raw)
    return (
        _CENTRAL.pack(
            b"PK\1\2",
            _UNIX | _VERSION,
            _VERSION,
            0,
            0,
            0,
            _DATE,
            member.crc,
            member.size,
            member.size,
            len(raw),
            0,
            0,
            0,
            0,
            _MODE,
            start,
        )
        + raw
    )


def _end_of(count: int, size: int, start: int) -> bytes:
    return _END.pack(b"PK\5\6", 0, 0, count, count, size, start, 0)


def _read_at(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return file.read(size)


def _too_large(path: Path) -> Refused:
    return Refused(
        "E-ARCHIVE-SIZE",
        f"{path} has more than {MAX_ARCHIVE_BYTES} bytes or {MAX_FILES} files, which a packed "
        "bundle may have; take it as a folder",
    )


def _not_canonical(path: Path, why: str) -> Refused:
    return Refused(
        "E-ARCHIVE-FORM",
        f"{path} is no bundle as `edgeseg bundle pack` writes it: {why}; fetch it or pack it again",
    )
