"""Which devices there are: one file of names, addresses and host keys, and ssh's own beside it.

``devices.json`` says what was added; ``known_hosts`` holds the key of each device under the alias
``edgeseg-NAME``, so that no other list of keys is asked and none changed. Both are written whole.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from ...runtime.errors import InputError, OutputError, Refused
from ...runtime.files import write_bytes

SCHEMA = "edgeseg.devices/1"
VARIABLE = "EDGESEG_DEVICES"  # folder of the registry, where not the user's own
MAX_BYTES = 1 << 20  # compared with the file size before anything is read
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")  # ssh compares aliases in lower case
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}|[0-9A-Fa-f:]{2,45}")


@dataclass(frozen=True)
class Address:
    """Where ssh finds a device."""

    user: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ssh://{self.user}@{host}:{self.port}"

    @classmethod
    def from_url(cls, url: str) -> Address:
        """Read ``ssh://user@host[:port]``. Raises InputError (E-DEVICE-URL)."""
        try:
            parts = urlsplit(url)
            port = parts.port or 22
        except ValueError as error:
            raise InputError("E-DEVICE-URL", f"{url!r} is no address ({error})") from error
        if parts.password is not None:
            raise InputError(
                "E-DEVICE-URL", "a password in an address is seen by all; log in with a key"
            )
        whole = parts.scheme == "ssh" and not (parts.path.strip("/") or parts.query)
        user, host = parts.username or "", parts.hostname or ""
        if not whole or not _USER.fullmatch(user) or not _HOST.fullmatch(host):
            raise InputError("E-DEVICE-URL", f"{url!r} is not of the form ssh://user@host[:port]")
        return cls(user, host, port)


@dataclass(frozen=True)
class HostKey:
    """What a device proves itself with."""

    kind: str  # such as "ssh-ed25519"
    blob: str  # base64

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it, ``SHA256:`` and base64 without padding."""
        digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


@dataclass(frozen=True)
class Device:
    """One row of the registry."""

    name: str
    address: Address
    key: HostKey
    python: str = "python3"  # command there
    identity: str | None = None  # private key file here; None: what ssh takes by itself

    @property
    def alias(self) -> str:
        """The name of its key in ``known_hosts``."""
        return f"edgeseg-{self.name}"


def require_name(name: str) -> str:
    """Return a name that a device may have. Raises InputError (E-DEVICE-NAME)."""
    if not _NAME.fullmatch(name):
        raise InputError(
            "E-DEVICE-NAME", f"{name!r} is no name; take a to z, digits and any of _ . -"
        )
    return name


def default_folder() -> Path:
    """Return the folder of the registry: `VARIABLE`, or ``edgeseg`` under the XDG config folder."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "edgeseg"


@dataclass(frozen=True)
class Registry:
    """The devices of one folder."""

    folder: Path
    devices: Mapping[str, Device]

    @property
    def known_hosts(self) -> Path:
        """The file that ssh compares host keys with, and no other."""
        return self.folder / "known_hosts"

    @classmethod
    def read(cls, folder: Path) -> Registry:
        """Read a registry; a folder without one has no devices.

        Raises Refused: E-DEVICE-REGISTRY (malformed), E-DEVICE-NEWER (of another version).
        """
        file = folder / "devices.json"
        if not file.exists():
            return cls(folder, MappingProxyType({}))
        try:
            if file.stat().st_size > MAX_BYTES:
                raise ValueError(f"over {MAX_BYTES} bytes")
            content = json.loads(file.read_bytes())
            if content["schema"] != SCHEMA:
                raise Refused(
                    "E-DEVICE-NEWER",
                    f"{file} has schema {content['schema']!r}, this tool reads {SCHEMA!r}",
                )
            devices = {row["name"]: _device_of(row) for row in content["devices"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError, InputError) as error:
            raise Refused(
                "E-DEVICE-REGISTRY", f"{file} is malformed ({error}); mend or remove it"
            ) from error
        return cls(folder, MappingProxyType(devices))

    def find(self, name: str) -> Device:
        """Return a device. Raises InputError (E-DEVICE-NAME)."""
        if name not in self.devices:
            known = ", ".join(self.devices) or "none"
            raise InputError(
                "E-DEVICE-NAME", f"no device {name!r} (known: {known}); see `edgeseg device add`"
            )
        return self.devices[name]

    def put(self, device: Device) -> Registry:
        """Add a device, or replace the one of its name, and write the files."""
        with self._locked() as devices:
            return self._write({**devices, device.name: device})

    def remove(self, name: str) -> Registry:
        """Forget a device and its key. Raises InputError (E-DEVICE-NAME)."""
        self.find(name)
        with self._locked() as devices:
            return self._write({each: row for each, row in devices.items() if each != name})

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Mapping[str, Device]]:
        """Keep other processes from writing; gives the devices as the last of them left them."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("a")
        except OSError as error:
            raise OutputError("E-OUT-WRITE", f"cannot write {self.folder} ({error})") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Registry.read(self.folder).devices

    def _write(self, devices: Mapping[str, Device]) -> Registry:
        written = Registry(self.folder, MappingProxyType(dict(sorted(devices.items()))))
        rows = [asdict(device) for device in written.devices.values()]
        text = json.dumps({"schema": SCHEMA, "devices": rows}, indent=1) + "\n"
        # Keys first: a device without its key is refused by ssh, a key without its device is idle.
        write_bytes(written.known_hosts, known_hosts_text(tuple(written.devices.values())))
        write_bytes(self.folder / "devices.json", text)
        return written


def known_hosts_text(devices: tuple[Device, ...]) -> str:
    """Return the lines of ``known_hosts``, see sshd(8)."""
    return "".join(f"{each.alias} {each.key.kind} {each.key.blob}\n" for each in devices)


def _device_of(row: Mapping[str, object]) -> Device:
    values = dict(row)
    address, key = values.pop("address"), values.pop("key")
    if not isinstance(address, dict) or not isinstance(key, dict):
        raise TypeError("address and key are objects")
    device = Device(
        address=Address(**address),
        key=HostKey(**key),
        **values,  # type: ignore[arg-type]  # checked below
    )
    require_name(device.name)
    if Address.from_url(str(device.address)) != device.address:
        raise ValueError(f"the address of {device.name} is malformed")
    try:
        base64.b64decode(device.key.blob, validate=True)
    except binascii.Error as error:
        raise ValueError(f"the key of {device.name} is no base64") from error
    texts = (device.python, device.key.kind, device.key.blob, device.identity or "")
    if any(not isinstance(text, str) or set(text) & set("\n\0") for text in texts):
        raise ValueError(f"a field of {device.name} is no text of one line")
    return device
