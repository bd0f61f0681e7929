"""The far end of a connection: takes one request, answers it, and leaves when nobody listens.

It travels over the connection itself and is never written to the device's disk. Only the standard
library; valid Python 3.8. The protocol, of which both ends are always of one version::

    in    one line of JSON: the request, with its "verb"; then what the verb takes
    out   lines of JSON: {"hello": 1} first, then what the verb answers; {"error": [code, text]}

Everything lies under ``~/.cache/edgeseg`` (``$XDG_CACHE_HOME/edgeseg``), by content::

    lock                 held by a job alone, shared by uploads; let go by the kernel
    <sha256>/private     marks what must not stay, as patients' images; there before the first byte
    <sha256>/content/    a folder that was sent, whole and verified
    <sha256>/part/       one that is being sent: files/ that are whole, pieces/ that are not
    <sha256>/run-*/      what a running job has written so far
    <sha256>/content-*   what a build left beside the kit, as `build_engine.py` does by itself

A job lives in a process group of its own. It is killed, and what it wrote is removed, when the
connection closes or when nothing was heard from the other end for a while.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Optional, Tuple

BLOCK = 1 << 20
_SENT_BLOCK = 1 << 16  # of a file; each has to leave before the line counts as silent
TERMINATE_S = 5.0  # between asking a job to end and ending it
STALE_S = 60.0  # after which nobody comes any more to run on private files that were sent
_POLL_S = 0.5
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
Request = Dict[str, Any]


class Failure(Exception):  # noqa: N818 - an answer
    """An answer that ends the request: a stable code and one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Lost(Exception):  # noqa: N818 - a reason to leave
    """Nobody is at the other end any more."""


def main() -> None:
    """Answer the one request on stdin."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    signal.signal(signal.SIGALRM, _lose)
    answer({"hello": 1})
    try:
        line = sys.stdin.buffer.readline()
        if not line.endswith(b"\n"):
            raise Lost
        request = json.loads(line)
        try:
            VERBS[request["verb"]](request)
        except Failure as error:
            answer({"error": [error.code, str(error)]})
        except BrokenPipeError:
            raise
        except OSError as error:
            text = f"{error.strerror or error} ({error.filename}); free space or mend its rights"
            answer({"error": ["E-DEVICE-DISK", text]})
    except (Lost, BrokenPipeError):
        os._exit(1)  # stdout may be gone: nothing may be flushed into it


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _lose(number: int, frame: object) -> None:
    raise Lost


@contextlib.contextmanager
def _watched(silence_s: float) -> Iterator[None]:
    """Raise Lost where reading or writing takes longer; 0 waits for ever."""
    signal.setitimer(signal.ITIMER_REAL, silence_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def answer(content: Dict[str, Any], silence_s: float = 0) -> None:
    """Write one line of JSON; raises Lost where nobody takes it for so long."""
    with _watched(silence_s):
        sys.stdout.write(json.dumps(content) + "\n")
        sys.stdout.flush()


def work_folder() -> Path:
    """Return the one folder that edgeseg uses on a device."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "edgeseg"


def folder_of(key: str) -> Path:
    """Return the folder of a content, by its SHA-256."""
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise Failure("E-DEVICE-PROTOCOL", f"no such key {key!r:.80}")
    return work_folder() / key


def inside(folder: Path, name: str) -> Path:
    """Return a path below a folder; refuses one that would leave it."""
    parts = name.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\0" in name:
        raise Failure("E-DEVICE-PROTOCOL", f"no such file {name!r:.80}")
    return folder.joinpath(*parts)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; keeps the watch off while it reads."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def listing(folder: Path) -> List[Tuple[str, str, int]]:
    """Return path, SHA-256 and size of every file below a folder, sorted by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        (path.relative_to(folder).as_posix(), sha256_of(path), path.stat().st_size)
        for path in files
    ]


# --- put: take a folder ---------------------------------------------------------------------------


def put(request: Request) -> None:
    """Take the files of a content that are not here yet, each from where it was cut.

    Request: key, files [[path, sha256, size], ...], private: whether they must not stay. Answers
    {"need": [[path, offset], ...]}, reads the rest of each of these files in that order, answers
    {"done": true}.
    """
    base = folder_of(request["key"])
    files = [(str(path), str(sha256), int(size)) for path, sha256, size in request["files"]]
    content, part = base / "content", base / "part"
    whole, pieces = part / "files", part / "pieces"
    with _shared(), _alone(base, "the same files are being sent"):
        _sweep(STALE_S, request["key"])
        if request["private"]:
            (base / "private").touch()
        if content.is_dir():
            if listing(content) == sorted(files):
                answer({"need": []})
                answer({"done": True})
                return
            shutil.rmtree(content)  # somebody changed it
        for folder in (whole, pieces):
            folder.mkdir(parents=True, exist_ok=True)
        need = []
        for path, sha256, size in files:
            target = inside(whole, path)
            if target.is_file() and sha256_of(target) == sha256:
                continue
            piece = inside(pieces, sha256)
            here = piece.stat().st_size if piece.is_file() else 0
            need.append((path, sha256, size, here if here <= size else 0))
        answer({"need": [(path, offset) for path, _, _, offset in need]})
        for path, sha256, size, offset in need:
            piece = inside(pieces, sha256)
            _receive(piece, offset, size - offset, request["silence_s"])
            if sha256_of(piece) != sha256:
                piece.unlink()
                raise Failure("E-DEVICE-UPLOAD", f"{path} arrived changed; try again")
            target = inside(whole, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if [each[1] for each in need].count(sha256) > 1:
                shutil.copyfile(str(piece), str(target))  # the same bytes under another name
            else:
                piece.replace(target)
        if listing(whole) != sorted(files):
            shutil.rmtree(part)
            raise Failure("E-DEVICE-UPLOAD", "the files that arrived are others; try again")
        _sync(whole)
        whole.rename(content)
        shutil.rmtree(part)
        if request["private"]:
            (base / "private").touch()  # its time begins anew
    answer({"done": True})


def _receive(piece: Path, offset: int, left: int, silence_s: float) -> None:
    """Append what comes; what came before a cut stays for the next time."""
    incoming: Any = sys.stdin.buffer  # typeshed knows no read1 of it
    with piece.open("r+b" if offset else "wb") as stream:
        stream.seek(offset)
        stream.truncate()
        while left:
            with _watched(silence_s):
                block = incoming.read1(min(left, BLOCK))
            if not block:
                raise Lost
            stream.write(block)
            left -= len(block)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(str(path), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def forget(request: Request) -> None:
    """Remove contents that must not stay; request: keys; answers {"done": true}."""
    with _shared():
        for key in request["keys"]:
            with _alone(folder_of(key), "the same files are being sent"):
                _remove(folder_of(key))
    answer({"done": True})


def _remove(folder: Path) -> None:
    """Remove a folder that may be gone already; what cannot be removed is an error."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _sweep(older_s: float, *kept: str) -> None:
    """Remove private contents that were sent so long ago, but for the keys that are `kept`."""
    for mark in work_folder().glob("*/private"):
        with contextlib.suppress(FileNotFoundError, Failure):  # gone, or being sent
            if mark.parent.name not in kept and time.time() - mark.stat().st_mtime >= older_s:
                with _alone(mark.parent, "the same files are being sent"):
                    _remove(mark.parent)


# --- run: a job under a lock ----------------------------------------------------------------------


def run(request: Request) -> None:
    """Run a command, tell its output line by line, then hand over the files that it wrote.

    Request: key of the content that it works on; argv; env, added; out: name to save as of each
    file to hand over, by its name in the job's folder, or {} for all that is there; log: file of
    that folder that takes the output; publish: whether the files stay beside the content under
    their name to save as; check: argv that says whether those of an earlier run still hold; forget:
    keys of private contents, which are removed before it answers how the job ended.

    At the start of a word of argv or env ``@python`` stands for this interpreter, ``@out`` for the
    job's folder, ``@base`` for that of the content and ``@root`` for `work_folder`.
    Answers {"log": line} for each line, then {"exit": code, "reused": bool, "files": [[save as,
    sha256, size], ...]}, then the bytes of these files one after the other.
    """
    base = folder_of(request["key"])
    private = request["forget"]
    with _only_job(private):
        _sweep(0, *private)  # whoever sent other ones meets our lock, or misses them below
        for key in (request["key"], *private):
            if not (folder_of(key) / "content").is_dir():
                text = "what was sent was removed meanwhile; run the same command again"
                raise Failure("E-DEVICE-GONE", text)
        for stale in work_folder().glob("*/run-*"):  # whoever wrote them was killed: we are alone
            shutil.rmtree(stale, ignore_errors=True)
        out = Path(tempfile.mkdtemp(prefix="run-", dir=str(base)))
        try:
            published = {base / name: name for name in request["out"].values()}
            if request["check"] and all(path.is_file() for path in published):
                job = _Job(request, "check", base, out)
                if job.follow() == 0:
                    _hand_over(request, True, published)
                    return
            for path in published:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
            try:
                exit_code = _Job(request, "argv", base, out).follow()
            finally:
                for key in private:
                    _remove(folder_of(key))
            if exit_code:
                answer({"exit": exit_code, "reused": False, "files": []})
                return
            names = request["out"] or {
                name: name for name, _, _ in listing(out) if name != request["log"]
            }
            written = {inside(out, name): save_as for name, save_as in names.items()}
            lacking = [path.name for path in written if not path.is_file()]
            if lacking:
                raise Failure("E-DEVICE-JOB", f"the job ended well and wrote no {lacking[0]}")
            if request["publish"]:
                _sync(out)
                for path, name in written.items():
                    path.replace(base / name)
                written = published
            _hand_over(request, False, written)
        finally:
            shutil.rmtree(out, ignore_errors=True)  # what stays of it, the next job removes


def _hand_over(request: Request, reused: bool, files: Dict[Path, str]) -> None:
    silence_s: float = request["silence_s"]
    rows = [(name, sha256_of(path), path.stat().st_size) for path, name in files.items()]
    answer({"exit": 0, "reused": reused, "files": rows}, silence_s)
    for path in files:
        with path.open("rb") as stream:
            for block in iter(lambda: stream.read(_SENT_BLOCK), b""):
                with _watched(silence_s):
                    sys.stdout.buffer.write(block)
    with _watched(silence_s):
        sys.stdout.buffer.flush()


@contextlib.contextmanager
def _only_job(private: List[str]) -> Iterator[None]:
    """Hold the lock that no upload and no other job shares, or refuse and keep nothing private."""
    try:
        lock = _lock(work_folder(), "another job or an upload runs here", fcntl.LOCK_EX)
    except Failure:
        # A job that runs has swept these already or uses them, and removes them itself.
        with contextlib.suppress(Failure), _shared():
            for key in private:
                _remove(folder_of(key))
        raise
    with lock:
        yield


class _Job:
    """A command in a process group of its own."""

    def __init__(self, request: Request, argv: str, base: Path, out: Path) -> None:
        stands_for = {
            "@python": sys.executable,
            "@out": str(out),
            "@base": str(base),
            "@root": str(work_folder()),
        }

        def filled(text: str) -> str:
            first, slash, rest = text.partition("/")
            return stands_for.get(first, first) + slash + rest

        added = {name: filled(value) for name, value in request["env"].items()}
        path = os.pathsep.join(
            filter(None, [added.get("PYTHONPATH"), os.environ.get("PYTHONPATH")])
        )
        self._silence_s: float = request["silence_s"]
        self._log = inside(out, request["log"])
        self._process = subprocess.Popen(
            [filled(word) for word in request[argv]],
            cwd=str(base),
            env={**os.environ, **added, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )

    def follow(self) -> int:
        """Tell and log the output until the job ends; return its exit code.

        Raises Lost, after the job was ended, where the other end went away.
        """
        try:
            with self._log.open("ab") as log:
                for line in self._lines():
                    log.write(line)
                    text = line.decode("utf-8", "replace").rstrip("\n")
                    answer({"log": text}, self._silence_s)
            return self._process.wait()
        finally:
            self._end()

    def _lines(self) -> Iterator[bytes]:
        stdin, stdout = sys.stdin.fileno(), self._process.stdout
        assert stdout is not None
        heard, rest, speaks = time.monotonic(), b"", True
        while speaks or self._process.poll() is None:
            ready, _, _ = select.select([stdin, stdout] if speaks else [stdin], [], [], _POLL_S)
            if stdin in ready:
                if not os.read(stdin, BLOCK):  # only heartbeats come, and in the end nothing
                    raise Lost
                heard = time.monotonic()
            if time.monotonic() - heard > self._silence_s:
                raise Lost
            if stdout in ready:
                block = os.read(stdout.fileno(), BLOCK)
                speaks = bool(block)
                *lines, rest = (rest + block).split(b"\n")
                yield from (line + b"\n" for line in lines)
        if rest:
            yield rest + b"\n"

    def _end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(TERMINATE_S)
        if self._process.stdout is not None:
            self._process.stdout.close()


def _die_with_parent() -> None:
    """Have the kernel end the job even where this process is killed outright (Linux)."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


@contextlib.contextmanager
def _alone(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a folder, or refuse."""
    with _lock(folder, what, fcntl.LOCK_EX):
        yield


@contextlib.contextmanager
def _shared() -> Iterator[None]:
    """Keep jobs and `clean` away while files come, or refuse while one of them runs."""
    with _lock(work_folder(), "a job runs here", fcntl.LOCK_SH):
        yield


def _lock(folder: Path, what: str, kind: int) -> IO[str]:
    """Return the lock of a folder, held until it is closed; raises E-DEVICE-BUSY."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("a+")
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        who = f"{what}: {lock.read().strip() or 'unknown'}"
        lock.close()
        raise Failure("E-DEVICE-BUSY", f"{who}; wait for it or end it") from error
    lock.truncate(0)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    lock.write(f"process {os.getpid()} since {since}")
    lock.flush()
    return lock


# --- clean ----------------------------------------------------------------------------------------


def clean(request: Request) -> None:
    """Remove all below `work_folder` but its lock, unless a job or an upload runs.

    Answers {"bytes": removed}.
    """
    root = work_folder()
    if not root.is_dir():
        answer({"bytes": 0})
        return
    with _alone(root, "a job or an upload runs here"):
        folders = [path for path in root.iterdir() if path.name != "lock"]
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        for folder in folders:
            _remove(folder)
    answer({"bytes": size})


# --- doctor ---------------------------------------------------------------------------------------

# Modules a device may need -> the attribute that tells their version.
MODULES = (
    "numpy",
    "PIL",
    "tensorrt",
    "tensorrt_rtx",
    "onnxruntime",
    "openvino",
    "cuda",
    "pycuda",
)
_PACKAGES = ("nvidia-l4t-core", "nvidia-jetpack", "tensorrt", "libnvinfer*", "python3-libnvinfer")
_IMPORT = (
    "import importlib, importlib.util, json, sys\n"
    "sys.modules['openvino_telemetry'] = None\n"  # OpenVINO's import would report itself
    "if importlib.util.find_spec('{0}') is None:\n"
    "    sys.exit(1)\n"
    "version, more, error = '?', [], None\n"
    "try:\n"
    "    module = importlib.import_module('{0}')\n"
    "    version = str(getattr(module, '__version__', '?'))\n"
    "    more = module.get_available_providers() if '{0}' == 'onnxruntime' else []\n"
    "except Exception as reason:\n"
    "    error = ' '.join((str(reason) or repr(reason)).split())[:200]\n"
    "print()\n"
    "print(json.dumps([version, more, error]))\n"
)
_LOOK_S = 60.0  # for each program that is asked


def doctor(request: Request) -> None:
    """Answer {"facts": ...}, see `look`."""
    answer({"facts": look(Path("/"))})


def look(root: Path) -> Dict[str, Any]:
    """Return what this device is and has; what cannot be known is None. Changes nothing.

    root: of the file system, "/" but in a test.
    """
    memory = dict(re.findall(r"^(\w+):\s+(\d+)", _text(root / "proc/meminfo") or "", re.MULTILINE))
    existing = next(path for path in (work_folder(), *work_folder().parents) if path.is_dir())
    model = _text(root / "proc/device-tree/model")
    return {
        "model": model.rstrip("\0\n") if model else None,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "l4t": _l4t(root),
        "packages": _packages(),
        "modules": {name: _module(name) for name in MODULES},
        "cuda": _cuda(root),
        "power_mode": power_mode(root),
        "clocks_locked": clocks_locked(root),
        "temperatures_c": temperatures(root),
        "memory_mib": {
            "total": int(memory["MemTotal"]) >> 10 if "MemTotal" in memory else None,
            "available": int(memory["MemAvailable"]) >> 10 if "MemAvailable" in memory else None,
        },
        "disk_free_mib": shutil.disk_usage(str(existing)).free >> 20,
        "work_folder": str(work_folder()),
    }


def _text(path: Path) -> Optional[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _said(argv: List[str]) -> Optional[str]:
    """Return what a program prints, None where it is missing or fails."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_LOOK_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def _l4t(root: Path) -> Optional[str]:
    found = re.search(
        r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release") or ""
    )
    return f"{found.group(1)}.{found.group(2)}" if found else None


def _packages() -> Dict[str, str]:
    """Return the versions of NVIDIA's Debian packages that are installed."""
    form = "--showformat=${Package} ${Version} ${db:Status-Status}\n"
    rows = (_said(["dpkg-query", "--show", form, *_PACKAGES]) or "").splitlines()
    if not rows:  # dpkg-query fails where one of them is unknown; ask for each
        rows = [
            line
            for name in _PACKAGES
            for line in (_said(["dpkg-query", "--show", form, name]) or "").splitlines()
        ]
    split = (row.split(" ") for row in rows)
    return {row[0]: row[1] for row in split if len(row) == 3 and row[2] == "installed"}


def _module(name: str) -> Optional[Dict[str, Any]]:
    """Import in a process of its own: a broken library must not end this one.

    Returns None for a module that is not there or ends its process, else its version, providers
    and the error that importing it gave, None where it gave none.
    """
    said = _said([sys.executable, "-c", _IMPORT.format(name)])
    if said is None:
        return None
    version, more, error = json.loads(said.splitlines()[-1])
    return {"version": version, "providers": more, "error": error}


def _cuda(root: Path) -> Optional[str]:
    try:
        told = json.loads(_text(root / "usr/local/cuda/version.json") or "{}")
        return str(told["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return None


def power_mode(root: Path) -> Optional[str]:
    """Return the name of nvpmodel's mode, or its number where its table does not name it."""
    mode = re.search(r"pmode:0*(\d+)", _text(root / "var/lib/nvpmodel/status") or "")
    if mode is None:
        return None
    line = rf"^<\s*POWER_MODEL\s+ID={mode.group(1)}\s+NAME=([^\s>]+)"
    name = re.search(line, _text(root / "etc/nvpmodel.conf") or "", re.MULTILINE)
    return name.group(1) if name else mode.group(1)


def clocks_locked(root: Path) -> Optional[bool]:
    """Say whether every CPU core and GPU stands at one frequency, as jetson_clocks sets them."""
    pairs = [
        (folder / "scaling_min_freq", folder / "scaling_max_freq")
        for folder in (root / "sys/devices/system/cpu").glob("cpu*/cpufreq")
    ]
    pairs += [
        (folder / "min_freq", folder / "max_freq")
        for folder in (root / "sys/class/devfreq").glob("*")
        if re.search("gpu|gv11b|ga10b|gp10b", folder.name)
    ]
    limits = [(_text(low), _text(high)) for low, high in pairs]
    known = [limit for limit in limits if None not in limit]
    return all(low == high for low, high in known) if known else None


def temperatures(root: Path) -> Dict[str, float]:
    """Return what each thermal zone reads, in degrees Celsius."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        kind, reading = _text(zone / "type"), _text(zone / "temp")
        with contextlib.suppress(ValueError):
            found[(kind or zone.name).strip()] = int(reading or "") / 1000
    return found


def hello(request: Request) -> None:
    """Answer {"python": version}: the connection works."""
    answer({"python": platform.python_version()})


VERBS: Dict[str, Callable[[Request], None]] = {
    "hello": hello,
    "doctor": doctor,
    "put": put,
    "forget": forget,
    "run": run,
    "clean": clean,
}

if __name__ in ("__main__", "edgeseg-agent"):
    main()
