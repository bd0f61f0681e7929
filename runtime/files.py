"""Whole-or-nothing writes and file hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import Iterator, List, Mapping, Optional, Union

from .errors import InputError, OutputError

_WRITE_REFUSED = frozenset(
    (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EEXIST,
        errno.ENOTEMPTY,
        errno.ENOTDIR,
        errno.ENAMETOOLONG,
        errno.EISDIR,
        errno.EBUSY,
    )
)
# `.NAME.partial-PID-HOST-START-RANDOM`: what `atomic_folder` fills for NAME, and whose it is.
_PARTIAL = re.compile(r"\..+\.partial-(\d+)-([0-9a-f]{8})-(\d+)-[a-z0-9_]{8}", re.DOTALL)
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # SIGINT is Python's own


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
    with _ending_signals_as_exit():
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
    if os.path.lexists(str(target)):  # a link that leads nowhere too
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

    On any error, SIGTERM or SIGHUP the temporary folder is removed; what killed processes of this
    machine left beside `target`, for whatever name, is removed at the start. So no half-written
    folder is ever found under a name.
    Raises InputError (E-OUT-EXISTS) if `target` exists, OutputError (E-OUT-WRITE) on I/O errors.
    """
    require_new(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        pid = os.getpid()
        prefix = f".{target.name}.partial-{pid}-{_host()}-{_started(pid) or 0}-"
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise cannot_write(target, error) from error
    with _ending_signals_as_exit():
        try:
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                _sync(path)
            temporary.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
            _rename_to_new(temporary, target)
            _sync(target.parent)
        except OSError as error:
            raise _as_output_error(target, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _rename_to_new(folder: Path, target: Path) -> None:
    """Rename a folder; raise InputError (E-OUT-EXISTS) where somebody made `target` meanwhile."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            require_new(target)
        raise


def _remove_stale(target: Path) -> None:
    """Remove partial folders beside `target` whose process is gone; what cannot be, stays."""
    older = f".{target.name}.partial-"  # up to edgeseg 0.1.0: then the PID, and something random
    with contextlib.suppress(OSError):  # a folder that may be written and not be listed
        for path in target.parent.iterdir():
            found = _PARTIAL.fullmatch(path.name)
            if found:
                runs = found[2] != _host() or _process_runs(int(found[1]), int(found[3]))
            elif path.name.startswith(older):
                pid = path.name[len(older) :].split("-")[0]
                runs = pid.isdecimal() and _process_runs(int(pid))
            else:
                continue
            if not runs:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _ending_signals_as_exit() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that `finally` clauses run.

    Only in the main thread, and only what nobody handles or ignores, as nohup does.
    """
    taken: List[signal.Signals] = []

    def leave(number: int, frame: object) -> None:
        for each in taken:  # a shell and the terminal that it loses send one each
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    try:
        for each in _ENDING_SIGNALS:
            if signal.getsignal(each) is signal.SIG_DFL:
                signal.signal(each, leave)
                taken.append(each)
    except ValueError:  # not the main thread: signals are its caller's matter
        pass
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)


def cannot_write(target: Path, error: OSError) -> OutputError:
    """Return the OutputError (E-OUT-WRITE) that says why `target` was not written."""
    reason = error.strerror or str(error)
    return OutputError(
        "E-OUT-WRITE", f"cannot write {target}: {reason}; free space or choose another place"
    )


def _as_output_error(target: Path, error: OSError) -> Exception:
    """Return an OutputError if the file system refused to write, else the error itself."""
    return cannot_write(target, error) if error.errno in _WRITE_REFUSED else error


def _host() -> str:
    """Return 8 hex digits for where a PID means a process: this machine, this container."""
    places = [socket.gethostname()]
    with contextlib.suppress(OSError):
        places.append(Path("/etc/machine-id").read_text("utf-8", "replace"))
    with contextlib.suppress(OSError):
        places.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256("\n".join(places).encode("utf-8", "replace")).hexdigest()[:8]


def _started(pid: int) -> Optional[int]:
    """Return when a process started, in clock ticks since boot; None where that is not told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])  # field 22; the name may hold spaces


def _process_runs(pid: int, started: int = 0) -> bool:
    """Tell whether a process runs here, and is that which started then; 0: whenever."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # someone else's
    except (OSError, OverflowError):
        return False
    return not started or _started(pid) in (None, started)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
