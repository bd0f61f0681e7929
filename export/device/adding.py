"""How a device gets into the registry: its host key is accepted, then a login is tried."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from ...runtime.errors import Refused
from .registry import Address, Device, HostKey, Registry, require_name
from .ssh import Connection, scan_host_key


def add_device(
    registry: Registry,
    name: str,
    url: str,
    *,
    accept: Callable[[HostKey], bool],
    fingerprint: str | None,
    identity: Path | None,
    python: str,
) -> Device:
    """Add a device, or replace the one of its name.

    Args:
        registry: to be written, last of all.
        name: for it.
        url: ``ssh://user@host[:port]``.
        accept: asked with the key where no fingerprint is given.
        fingerprint: ``SHA256:…`` that the key must have.
        identity: private key file; None: what ssh takes by itself.
        python: interpreter there.

    Raises:
        InputError: E-DEVICE-NAME, E-DEVICE-URL.
        Refused: E-DEVICE-FINGERPRINT (another key, or nobody accepted it).
        EngineError: as `Connection`; nothing is recorded of a device that lets nobody in.
    """
    require_name(name)
    address = Address.from_url(url)
    key = scan_host_key(address)
    if fingerprint is not None and fingerprint != key.fingerprint:
        raise Refused(
            "E-DEVICE-FINGERPRINT",
            f"{address} shows the {key.kind} key {key.fingerprint}, not {fingerprint}; read it on "
            "the device: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        )
    if fingerprint is None and not accept(key):
        raise Refused(
            "E-DEVICE-FINGERPRINT",
            f"the {key.kind} key {key.fingerprint} of {address} was not accepted; compare it with "
            "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub on the device, then add it with "
            "--fingerprint",
        )
    device = Device(name, address, key, python, str(identity.resolve()) if identity else None)
    with tempfile.TemporaryDirectory(prefix="edgeseg-") as folder:
        tried = Registry.read(Path(folder)).put(device)
        with Connection(device, tried) as connection:
            connection.request("hello")
            connection.read_answer()
    registry.put(device)
    return device
