"""Whole-or-nothing writes and file hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Iterator, Mapping, Union

from .errors import InputError, OutputError

_WRITE_REFUSED = frozenset(
    (
        *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES),
        *(errno.EPERM, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.ENAMETOOLONG),
        *(errno.EISDIR, errno.EBUSY),
    )
)


def sha256_of_file(path: Path) -> str:
    """Return the lower-case hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it replaces `target` in one rename.

    On any error, a full disk included, `target` keeps its old content and the temporary file goes.
    Raises OutputError (E-OUT-WRITE) where the file system says no.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise cannot_write(target, error) from error
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise _as_output_error(target, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def require_new(target: Path) -> None:
    """Raise InputError (E-OUT-EXISTS) if `target` exists: nothing is overwritten."""
    if target.exists():
        raise InputError("E-OUT-EXISTS", f"{target} exists already; choose another or remove it")


def require_writable(target: Path, room_bytes: int = 0) -> None:
    """Raise OutputError (E-OUT-WRITE) unless the file `target` can be written.

    Nothing is made: where folders are missing, the nearest one that is there is asked.

    Args:
        target: the file that is to be written later.
        room_bytes: that must be free there.
    """
    try:
        if target.is_dir():  # within the try: before Python 3.14 it raises for some names
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = next(each for each in target.absolute().parents if each.exists())
        with contextlib.suppress(FileNotFoundError):  # too long as a temporary name
            os.lstat(str(folder / f".{target.name}.12345678"))
        with tempfile.TemporaryFile(dir=folder):
            pass
        if shutil.disk_usage(folder).free < room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise cannot_write(target, error) from error


def write_bytes(target: Path, content: Union[bytes, str]) -> None:
    """Write a whole file atomically; text is UTF-8. Raises OutputError (E-OUT-WRITE)."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_together(contents: Mapping[Path, Union[bytes, str]]) -> None:
    """Write several whole files, or none; text is UTF-8.

    None is replaced before all are on the disk, and where one cannot be replaced, the others get
    their old content again. A kill among the renames leaves files that are whole, old or new.
    Raises OutputError (E-OUT-WRITE).
    """
    with contextlib.ExitStack() as stack:
        for target in contents:  # first, so that they are left last, after every rename
            stack.enter_context(_as_before_on_error(target))
        for target, content in contents.items():
            data = content.encode("utf-8") if isinstance(content, str) else content
            temporary = stack.enter_context(atomic_path(target))
            temporary.write_bytes(data)
            _sync(temporary)


@contextlib.contextmanager
def _as_before_on_error(target: Path) -> Iterator[None]:
    """Make `target` what it was, if the body replaces it and fails afterwards.

    Raises OutputError (E-OUT-WRITE) where what is there cannot be kept aside, as a folder.
    """
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=str(target.parent))
            old = Path(stack.enter_context(aside)) / "old"
            if os.path.lexists(str(target)):
                _link_or_copy(target, old)
        except OSError as error:
            raise cannot_write(target, error) from error
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                if os.path.lexists(str(old)):
                    old.replace(target)
                else:
                    target.unlink(missing_ok=True)
            raise


def _link_or_copy(path: Path, copy: Path) -> None:
    try:
        os.link(str(path), str(copy), follow_symlinks=False)
    except OSError:  # a file system without links, or someone else's file
        shutil.copy2(str(path), str(copy), follow_symlinks=False)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it becomes `target`.

    On any error the temporary folder is removed, and left-overs of killed earlier runs for the
    same target are removed at the start, so no half-written folder is ever found under the name.
    Raises InputError (E-OUT-EXISTS) if `target` exists, OutputError (E-OUT-WRITE) on I/O errors.
    """
    require_new(target)
    prefix = f".{target.name}.partial-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in target.parent.glob(f"{prefix}*"):
            if not _process_runs(stale.name[len(prefix) :].split("-")[0]):
                shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=target.parent))
    except OSError as error:
        raise cannot_write(target, error) from error
    try:
        with _terminate_as_exit():
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                _sync(path)
            temporary.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
            temporary.rename(target)
            _sync(target.parent)
    except OSError as error:
        raise _as_output_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _terminate_as_exit() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that `finally` clauses run; only in the main thread."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    try:
        previous = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread: signals are its caller's matter
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def cannot_write(target: Path, error: OSError) -> OutputError:
    """Return the OutputError (E-OUT-WRITE) that says why `target` was not written."""
    reason = error.strerror or str(error)
    return OutputError(
        "E-OUT-WRITE", f"cannot write {target}: {reason}; free space or choose another place"
    )


def _as_output_error(target: Path, error: OSError) -> Exception:
    """Return an OutputError if the file system refused to write, else the error itself."""
    return cannot_write(target, error) if error.errno in _WRITE_REFUSED else error


def _process_runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
