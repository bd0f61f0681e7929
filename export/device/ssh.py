"""One connection to a device: the system's OpenSSH client, with the agent at its far end.

ssh(1) does the cryptography, the keys and the jumps of the user's own configuration. What it must
not do is decided here: take a host key that was not shown and accepted, ask for a password, wait
for ever on a silent line.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, NoReturn

from ...runtime.errors import EdgesegError, EngineError, InputError, OutputError, Refused
from .onboard.agent import TERMINATE_S
from .registry import Address, Device, HostKey, Registry

CONNECT_S = 15
ALIVE_S = 5  # between two questions whether the other side lives; three without an answer end it
HEARTBEAT_S = 5.0
SILENCE_S = 30.0  # after which the agent gives a connection up
_AGENT = Path(__file__).with_name("onboard") / "agent.py"
# Reads the agent's size, then the agent, from stdin; what follows there is the agent's.
_BOOTSTRAP = (
    "import sys; n = int(sys.stdin.buffer.readline()); "
    "exec(compile(sys.stdin.buffer.read(n), 'agent.py', 'exec'), {'__name__': 'edgeseg-agent'})"
)
_ISOLATED = ("-I", "-S", "-B")  # nothing that lies about on the device gets into the agent
_MAX_LINE = 1 << 24  # bytes of an answer
_MAX_NOISE = 1 << 16  # bytes that a login shell may print before the agent speaks
_OPTIONS = {
    "BatchMode": "yes",  # no password, no question
    "StrictHostKeyChecking": "yes",
    "GlobalKnownHostsFile": "/dev/null",
    "UpdateHostKeys": "no",
    "CheckHostIP": "no",
    "ConnectTimeout": str(CONNECT_S),
    "ConnectionAttempts": "1",
    "ServerAliveInterval": str(ALIVE_S),
    "ServerAliveCountMax": "3",
    "ControlMaster": "no",
    "ControlPath": "none",  # a shared connection would fail for others' reasons
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "LogLevel": "ERROR",
}


class DeviceLost(EngineError):  # noqa: N818 - as its code, E-DEVICE-LOST
    """The connection broke; what was reached so far can be resumed."""


class Job(NamedTuple):
    """What the agent is asked to run, see `run` there."""

    key: str
    argv: tuple[str, ...]
    out: Mapping[str, str]
    log: str
    env: Mapping[str, str]
    publish: bool = False
    check: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()


def release_s() -> float:
    """Seconds after which the agent has let go of all that a lost connection held."""
    return SILENCE_S + 2 * TERMINATE_S


def _command(
    address: Address, alias: str, known_hosts: Path, identity: str | None, **options: str
) -> list[str]:
    """Return the words of ssh up to the remote command."""
    if shutil.which("ssh") is None:
        raise EngineError("E-DEVICE-SSH", "ssh is not installed here; apt install openssh-client")
    # ssh splits this value at blanks unless it is quoted, and expands tokens that begin with %.
    file = str(known_hosts).replace("%", "%%")
    chosen = {**_OPTIONS, "HostKeyAlias": alias, "UserKnownHostsFile": f'"{file}"'}
    words = ["ssh", "-T", "-x", "-a", "-p", str(address.port), "-l", address.user]
    for name, value in {**chosen, **options}.items():
        words += ["-o", f"{name}={value}"]
    if identity is not None:
        words += ["-o", "IdentitiesOnly=yes", "-i", identity]
    return [*words, "--", address.host]


def scan_host_key(address: Address) -> HostKey:
    """Return the key with which whatever answers at an address proves itself; accepts nothing.

    The key exchange is done in full, so the other side has shown that it owns the key. No login.

    Raises EngineError: E-DEVICE-UNREACHABLE.
    """
    with tempfile.TemporaryDirectory(prefix="edgeseg-") as folder:
        found = Path(folder) / "known_hosts"
        words = _command(
            address,
            "scan",
            found,
            None,
            StrictHostKeyChecking="accept-new",  # into the temporary file
            PreferredAuthentications="none",
            HashKnownHosts="no",
        )
        done = subprocess.run(
            [*words, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False, env=_env()
        )
        lines = found.read_text(encoding="utf-8").splitlines() if found.is_file() else []
    for line in lines:
        alias, kind, blob = line.split()[:3]
        if alias == "scan":
            return HostKey(kind, blob)
    raise _unreachable(str(address), done.stderr.decode("utf-8", "replace"))


class Connection:
    """A device that has answered and waits for one request.

    Raises, when it is made or used:
        Refused: E-DEVICE-HOSTKEY.
        EngineError: E-DEVICE-AUTH, E-DEVICE-UNREACHABLE, E-DEVICE-PYTHON, E-DEVICE-BUSY,
            E-DEVICE-AGENT, and DeviceLost (E-DEVICE-LOST).
        OutputError: E-DEVICE-DISK, E-DEVICE-UPLOAD.
    """

    def __init__(self, device: Device, registry: Registry) -> None:
        self.device = device
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the connection
        words = _command(device.address, device.alias, registry.known_hosts, device.identity)
        remote = shlex.join([device.python, *_ISOLATED, "-c", _BOOTSTRAP])
        self._process = subprocess.Popen(
            [*words, remote],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_env(),
            start_new_session=True,  # Ctrl-C reaches us, and we end it in order
        )
        self._greeted = False
        try:
            agent = _AGENT.read_bytes()
            self.write(b"%d\n%s" % (len(agent), agent))
            self._expect_hello()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Connection:
        """Return itself; leaving closes it, and whatever runs at the far end is ended."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the agent sees its input close and clears up."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(CONNECT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def kill(self) -> None:
        """Break the connection, from another thread; whoever uses it sees it lost."""
        self._process.kill()

    def request(self, verb: str, **content: Any) -> None:
        """Send the one request of this connection."""
        line = json.dumps({"verb": verb, "silence_s": SILENCE_S, **content})
        self.write(line.encode() + b"\n")

    def write(self, content: bytes) -> None:
        """Send bytes."""
        try:
            stream = _of(self._process.stdin)
            stream.write(content)
            stream.flush()
        except OSError:
            while True:  # it may have said why before it left; raises in any case
                self.read_answer()

    def read_answer(self, **kinds: type) -> dict[str, Any]:
        """Return the next answer of the agent, with at least these fields of these types.

        Raises what the agent says is wrong; E-DEVICE-AGENT for what no agent of ours says.
        """
        line = _of(self._process.stdout).readline(_MAX_LINE)
        if not line:
            self._raise_lost()
        try:
            content: dict[str, Any] = json.loads(line)
            if "error" in content:
                code, text = map(str, content["error"])
                raise _said_by_agent(code, f"{self.device.name}: {text}")
            if any(type(content[name]) is not kind for name, kind in kinds.items()):
                raise TypeError("a field is of another type")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                self._raise_lost()  # cut in the middle of it
            raise not_understood(self.device, error) from error
        return content

    def read_into(self, stream: IO[bytes], size: int) -> None:
        """Copy bytes that the agent sends after an answer."""
        while size:
            block = _of(self._process.stdout).read(min(size, 1 << 20))
            if not block:
                self._raise_lost()
            stream.write(block)
            size -= len(block)

    def run(self, job: Job, say: Callable[[str], None]) -> dict[str, Any]:
        """Run a job there, pass its output on line by line, return its last answer."""
        self.request("run", **job._asdict())
        with self._heartbeats():
            while True:
                content = self.read_answer()
                if "log" not in content:
                    return content
                say(str(content["log"]))

    @contextlib.contextmanager
    def _heartbeats(self) -> Iterator[None]:
        """Tell the agent now and then that we live: a cut cable closes nothing at its end."""
        ended = threading.Event()
        stream = _of(self._process.stdin)

        def beat() -> None:
            while not ended.wait(HEARTBEAT_S):
                try:
                    stream.write(b"\n")
                    stream.flush()
                except (OSError, ValueError):  # the reader finds out why
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _expect_hello(self) -> None:
        noise = 0
        while noise < _MAX_NOISE:
            line = _of(self._process.stdout).readline(_MAX_NOISE)
            if not line:
                break
            if line == b'{"hello": 1}\n':
                self._greeted = True
                return
            noise += len(line)  # of a login shell that greets
        self._raise_lost()

    def _raise_lost(self) -> NoReturn:
        """Raise the error that says why nothing comes from the other side any more."""
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                _of(stream).close()
        try:
            exit_code = self._process.wait(CONNECT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            exit_code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace")
        raise _failure(self.device, exit_code, said, self._greeted)


def _failure(device: Device, exit_code: int, said: str, greeted: bool) -> EdgesegError:
    """Return the error for an ssh that ended: its exit code, its stderr, and how far it came."""
    name = f"{device.name} ({device.address})"
    last = _last_line(said)
    refused = ("Host key verification failed", "IDENTIFICATION HAS CHANGED")
    if not greeted and any(text in said for text in refused):
        return Refused(
            "E-DEVICE-HOSTKEY",
            f"{name} shows another host key than {device.key.fingerprint}; if the device was "
            f"installed anew: edgeseg device remove {device.name}, then add it again; "
            "if not, somebody is between",
        )
    if "Permission denied (" in said or "Too many authentication failures" in said:
        return EngineError(
            "E-DEVICE-AUTH",
            f"{name} takes none of our keys; ssh-copy-id -p {device.address.port} "
            f"{device.address.user}@{device.address.host}, or name a key with --identity",
        )
    if exit_code == 255 and not greeted:
        return _unreachable(name, said)
    if exit_code in (126, 127):
        return EngineError(
            "E-DEVICE-PYTHON",
            f"{name} has no {device.python}; on it: sudo apt install python3, or name one "
            "with --python",
        )
    if not greeted or "Traceback" in said:
        return EngineError(
            "E-DEVICE-AGENT",
            f"{name}: {device.python} answered nothing we know ({last}); it has to be 3.8 or newer",
        )
    return DeviceLost(
        "E-DEVICE-LOST",
        f"the connection to {name} broke ({last}); run the same command again, it resumes",
    )


def _unreachable(name: str, said: str) -> EngineError:
    return EngineError(
        "E-DEVICE-UNREACHABLE",
        f"{name} does not answer ({_last_line(said)}); see that it is on, its address right and "
        "its sshd running",
    )


def not_understood(device: Device, error: Exception) -> EngineError:
    """Return the error (E-DEVICE-AGENT) for an answer that no agent of ours gives."""
    return EngineError(
        "E-DEVICE-AGENT",
        f"{device.name} answered what we do not understand ({error!r:.80}); see what "
        f"{device.python} is there",
    )


def _said_by_agent(code: str, text: str) -> EdgesegError:
    kind = OutputError if code in ("E-DEVICE-DISK", "E-DEVICE-UPLOAD") else EngineError
    return kind(code, " ".join(text.split()))


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "ssh said nothing"


def _env() -> dict[str, str]:
    """Return an environment in which ssh says its errors in English."""
    return {**os.environ, "LC_ALL": "C"}


def _of(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # they are pipes
    return stream


def error_of_exit(code: str, message: str, exit_code: int) -> EdgesegError:
    """Return the error of a remote command that ended with one of our exit codes."""
    kinds = {2: InputError, 3: Refused, 4: EngineError, 5: OutputError}
    return kinds.get(exit_code, EngineError)(code, message)
