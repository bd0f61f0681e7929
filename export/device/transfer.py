"""Folders by content: sent once, resumed where a connection broke."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ...runtime.bundle import open_bundle
from ...runtime.errors import EngineError, InputError
from ...runtime.files import sha256_of_file
from .registry import Device, Registry
from .ssh import Connection, DeviceLost, not_understood, release_s

_BLOCK = 1 << 20
RETRIES = 3  # after a broken connection, unless told otherwise
_WAIT_S = 1.0  # before the first; doubles
T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Link:
    """A device with how to reach it, how often to try again, and whom to tell."""

    device: Device
    registry: Registry
    say: Say
    retries: int = RETRIES  # >= 0
    _given_up: threading.Event = field(default_factory=threading.Event)
    _connections: list[Connection] = field(default_factory=list)

    def connect(self) -> Connection:
        """Return a connection; errors as there."""
        connection = Connection(self.device, self.registry)
        self._connections.append(connection)
        return connection

    def give_up(self) -> None:
        """Break what runs on the device, from another thread, and do not try again."""
        self._given_up.set()
        for connection in self._connections:
            connection.kill()

    def persist(self, work: Callable[[], T]) -> T:
        """Do work that resumes by itself; do it again where the connection breaks.

        Once it was lost, a device that does not answer counts alike; one that still ends what it
        lost is waited for, see `release_s`.
        """
        lost_at, attempt = None, 0
        while True:
            try:
                return work()
            except EngineError as error:
                if isinstance(error, DeviceLost):
                    lost_at = time.monotonic()
                if lost_at is None or self._given_up.is_set():
                    raise
                if error.code == "E-DEVICE-BUSY":
                    if time.monotonic() - lost_at > release_s():
                        raise  # by somebody else
                else:
                    again = error.code in ("E-DEVICE-LOST", "E-DEVICE-UNREACHABLE")
                    if not again or attempt == self.retries:
                        raise
                    attempt += 1
                wait_s = _WAIT_S * 2 ** (attempt - 1)
                self.say(f"{error.code}: trying again in {wait_s:.0f} s")
                if self._given_up.wait(wait_s):
                    raise


@dataclass(frozen=True)
class Payload:
    """Files to send, by their path on the device."""

    files: Mapping[str, Path]
    private: bool = False  # whether they must not stay there

    @property
    def rows(self) -> tuple[tuple[str, str, int], ...]:
        """Path, SHA-256 and size in bytes of each file, sorted."""
        return tuple(
            (name, sha256_of_file(file), file.stat().st_size)
            for name, file in sorted(self.files.items())
        )

    @property
    def key(self) -> str:
        """The name of this content on a device."""
        return _key_of(self.rows)


def _key_of(rows: tuple[tuple[str, str, int], ...]) -> str:
    text = "".join(f"{sha256}  {name}\n" for name, sha256, _ in rows)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def folder_payload(folder: Path, pattern: str = "*") -> Payload:
    """Return the files below a folder, by their path in it."""
    files = [path for path in folder.rglob(pattern) if path.is_file()]
    return Payload({path.relative_to(folder).as_posix(): path for path in files})


def bundle_payload(bundle: Path) -> tuple[Payload, str]:
    """Return what is sent of a verified bundle, and where in the content it can be opened.

    A folder opens at the content itself (""), the single-file form at its name.
    Raises the errors of `open_bundle`.
    """
    open_bundle(bundle)
    if bundle.is_dir():
        return folder_payload(bundle), ""
    return Payload({bundle.name: bundle}), bundle.name


def runtime_payload() -> Payload:
    """Return the runtime and the device's own commands: Python 3.8, a few dozen small files."""
    root = Path(__file__).parent.parent.parent
    names = ["__init__.py", "export/__init__.py", "export/device/__init__.py"]
    files = [root / name for name in names]
    files += (root / "export" / "device" / "onboard").glob("*.py")
    files += (root / "runtime").rglob("*.py")
    return Payload({f"edgeseg/{path.relative_to(root).as_posix()}": path for path in files})


def images_payload(images: tuple[Path, ...]) -> Payload:
    """Return image files by name. Raises InputError (E-IMAGE-NAME) where two share one."""
    files = {image.name: image for image in images}
    if len(files) < len(images):
        raise InputError("E-IMAGE-NAME", "two images share a name; predict them one after another")
    return Payload(files, private=True)


def send(link: Link, payload: Payload, what: str) -> str:
    """Have a payload on the device, whole; return its key there.

    Raises the errors of `Connection`; what arrived before one is not sent again.
    """
    rows = payload.rows
    key = _key_of(rows)
    link.persist(lambda: _send(link, payload, rows, key, what))
    return key


def _send(
    link: Link, payload: Payload, rows: tuple[tuple[str, str, int], ...], key: str, what: str
) -> None:
    sizes = {name: size for name, _, size in rows}
    with link.connect() as connection:
        connection.request("put", key=key, files=rows, private=payload.private)
        need = connection.read_answer(need=list)["need"]
        try:
            left_of = [(str(name), offset, sizes[name] - offset) for name, offset in need]
            if any(type(offset) is not int or min(offset, left) < 0 for _, offset, left in left_of):
                raise ValueError("an offset outside of a file")
        except (KeyError, TypeError, ValueError) as error:
            raise not_understood(link.device, error) from error
        size = sum(left for _, _, left in left_of)
        if size:
            link.say(f"sending {what}: {size} of {sum(sizes.values())} bytes")
        for name, offset, left in left_of:
            with payload.files[name].open("rb") as stream:
                stream.seek(offset)
                while left:
                    block = stream.read(min(left, _BLOCK))
                    if not block:
                        raise InputError(
                            "E-DEVICE-SOURCE",
                            f"{payload.files[name]} shrank while it was sent; try again",
                        )
                    connection.write(block)
                    left -= len(block)
        connection.read_answer()
