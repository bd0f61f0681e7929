"""The live page: a small web server for this machine, of the standard library alone.

It answers GET and nothing else, changes nothing, loads nothing from elsewhere, and answers only
requests that name it as it was started (a web page that lets its own name point here is refused).
"""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Dict, Tuple
from urllib.parse import parse_qs, urlsplit

from ..errors import InputError
from .screen import Screen

LOOPBACK = "127.0.0.1"
_MAX_CONNECTIONS = 16
_VIEW_WAIT_S = 2.0  # a viewer that waits longer than this gets the present view again
_FAREWELL_S = 0.3
_IDLE_S = 10.0  # then a silent connection is closed
_PAGE = Path(__file__).parent / "page"
# Address -> file and type. To add a file: a line here and in setup.cfg's package_data.
FILES: Dict[str, Tuple[str, str]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/live.css": ("live.css", "text/css; charset=utf-8"),
    "/live.js": ("live.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Serves a screen in threads of its own. Use as a context."""

    daemon_threads = True
    block_on_close = False  # a viewer that hangs does not keep the stream from ending

    def __init__(self, screen: Screen, host: str, port: int) -> None:
        """Listen.

        Args:
            screen: what to show.
            host: address to listen on; `LOOPBACK` unless others may look.
            port: 0 takes a free one, see `url`.

        Raises InputError: E-SERVE-ADDRESS.
        """
        self.screen, self.host = screen, host
        self.closed = False  # connections that are open end with their next answer
        self._places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        try:
            if ":" in host:
                self.address_family = socket.AF_INET6
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError, UnicodeError, TypeError) as error:  # no IDNA: TypeError
            raise InputError(
                "E-SERVE-ADDRESS",
                f"cannot listen on {host} port {port} ({error}); choose another with --serve",
            ) from error
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.1,), name="live page", daemon=True
        )

    @property
    def url(self) -> str:
        """Address of the page."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.server_port}/"

    def __enter__(self) -> Server:
        """Start answering."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop answering, once viewers had a moment to take the last view."""
        time.sleep(_FAREWELL_S)
        self.closed = True
        self.shutdown()
        self.server_close()

    def is_own(self, host: str) -> bool:
        """Whether a request's Host header names this server.

        Loopback goes by its names. A server for others may have any address, so any literal
        address will do: another site's page can only ever send a name.
        """
        name, _, port = host.rpartition(":")
        if not port.isdigit():  # browsers leave out the port of http
            name, port = host, "80"
        if port != str(self.server_port):
            return False
        if is_loopback(self.host):
            return name in (self.host, LOOPBACK, "localhost", "[::1]")
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name == self.host
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; beyond the limit of connections, hang up."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer until the connection ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a viewer that goes away in the middle."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    server_version, sys_version = "edgeseg", ""

    def do_GET(self) -> None:
        """Answer with a file of the page, or with the view."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self.server.is_own(hosts[0]):
            self._say(403, "this server answers to its own address only")
            return
        try:
            parts = urlsplit(self.path)
        except ValueError:
            self._say(400, "no address")
            return
        if parts.path == "/view":
            after = parse_qs(parts.query).get("after", ["-1"])[0]
            try:
                newest = int(after[:18])
            except ValueError:
                self._say(400, "after is a whole number")
                return
            view = self.server.screen.encoded(newest, _VIEW_WAIT_S)
            self._send(200, "application/octet-stream", view)
        elif parts.path in FILES:
            name, kind = FILES[parts.path]
            self._send(200, kind, (_PAGE / name).read_bytes())
        else:
            self._say(404, "no such page")

    def refuse(self) -> None:
        """Answer another method than GET."""
        self.close_connection = True  # a body may follow, and nobody reads it
        self._say(405, "GET only")

    def _say(self, status: int, text: str) -> None:
        self._send(status, "text/plain; charset=utf-8", (text + "\n").encode("utf-8"))

    def _send(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status == 405:
            self.send_header("Allow", "GET")
        if self.server.closed:
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: stderr belongs to the command."""


for _method in ("HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
    setattr(_Handler, f"do_{_method}", _Handler.refuse)
