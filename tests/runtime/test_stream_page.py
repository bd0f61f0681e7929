"""The live page: who may look, what it says, and that a slow viewer delays nobody."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeseg.runtime.errors import InputError
from edgeseg.runtime.lesion import Spacing
from edgeseg.runtime.stream import server as server_module
from edgeseg.runtime.stream.pipeline import Pace
from edgeseg.runtime.stream.run import Wanted, run_stream
from edgeseg.runtime.stream.screen import Screen, View, encode_view
from edgeseg.runtime.stream.server import FILES, LOOPBACK, Server
from edgeseg.runtime.stream.source import Source

pytestmark = pytest.mark.long

HZ = 50.0
ABOUT = {
    "bundle": "edge-32",
    "precision": "int8",
    "bundle_sha256": "d4e48189c3cc" + "0" * 52,
    "engine": "openvino",
}


@pytest.fixture(autouse=True)
def no_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave at once: no viewer of these tests waits for the last view."""
    monkeypatch.setattr(server_module, "_FAREWELL_S", 0.0)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(Screen({**ABOUT, "state": "starting"}), LOOPBACK, 0) as started:
        yield started


def ask(server: Server, path: str = "/", *, method: str = "GET", host: str | None = None):
    """Return status, headers and body of an answer; `host` replaces the header."""
    connection = http.client.HTTPConnection(LOOPBACK, server.server_port, timeout=10)
    try:
        headers = {} if host is None else {"Host": host}
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def parse(message: bytes) -> tuple[dict, np.ndarray, bytes]:
    text, points, picture = struct.unpack("<3I", message[:12])
    end = 12 + text + 4 * points
    outline = np.frombuffer(message[12 + text : end], "<u2").reshape(-1, 2)
    assert len(message) == end + picture
    return json.loads(message[12 : 12 + text]), outline, message[end:]


# --- who may look --------------------------------------------------------------------------------


def test_it_listens_on_loopback_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/"


@pytest.mark.parametrize("path", FILES)
def test_every_file_is_served_with_a_policy_that_lets_nothing_else_in(server, path):
    status, headers, body = ask(server, path)
    assert status == 200
    assert body
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_page_names_no_other_place():
    folder = Path(__file__).parents[2] / "runtime" / "stream" / "page"
    assert {path.name for path in folder.iterdir()} == {name for name, _ in FILES.values()}
    for path in folder.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in text.replace("// ", ""), path


@pytest.mark.parametrize("name", ["{}", "localhost:{}", "127.0.0.1:{}", "[::1]:{}"])
def test_own_names_are_answered(server, name):
    port = server.server_port
    host = f"127.0.0.1:{port}" if name == "{}" else name.format(port)
    assert ask(server, host=host)[0] == 200


@pytest.mark.parametrize(
    "name", ["evil.example:{}", "127.0.0.1", "127.0.0.1:1", "", "10.0.0.1:{}", "localhost.evil:{}"]
)
@pytest.mark.parametrize("path", ["/", "/view"])
def test_name_of_another_site_that_points_here_is_refused(server, name, path):
    status, _, body = ask(server, path, host=name.format(server.server_port))
    assert status == 403
    assert b"edge-32" not in body


def test_server_for_others_answers_to_addresses_but_to_no_foreign_name():
    with Server(Screen({"state": "starting"}), "0.0.0.0", 0) as server:
        port = server.server_port
        assert ask(server, host=f"192.168.0.7:{port}")[0] == 200
        assert ask(server, host=f"evil.example:{port}")[0] == 403


def test_request_with_two_hosts_is_refused(server):
    with socket.create_connection((LOOPBACK, server.server_port), timeout=10) as connection:
        host = f"Host: 127.0.0.1:{server.server_port}\r\n"
        connection.sendall(f"GET / HTTP/1.1\r\n{host}{host}\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 403 ")


def test_address_that_is_none_is_a_bad_request_and_says_nothing_on_stderr(server, capfd):
    with socket.create_connection((LOOPBACK, server.server_port), timeout=10) as connection:
        host = f"Host: 127.0.0.1:{server.server_port}\r\n"
        connection.sendall(f"GET http://[ HTTP/1.1\r\n{host}\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_only_get_is_answered(server, method):
    status, headers, _ = ask(server, method=method)
    assert status == 405
    assert headers["Allow"] == "GET"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/../server.py", 404),
        ("/%2e%2e/server.py", 404),
        ("//etc/passwd", 404),
        ("/live.js/", 404),
        ("/view?after=x", 400),
        ("/view?after=-1", 200),
        ("/view?after=" + 40 * "9", 200),  # waits, then gets the present one
    ],
)
def test_paths_that_are_not_in_the_table_do_not_exist(server, path, status, monkeypatch):
    monkeypatch.setattr(server_module, "_VIEW_WAIT_S", 0.2)
    assert ask(server, path)[0] == status


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "localhost:80"])
def test_port_80_may_be_left_out_as_browsers_do(server, host, monkeypatch):
    monkeypatch.setattr(server, "server_port", 80)
    assert server.is_own(host)
    assert not server.is_own("evil.example")


def test_port_that_is_taken_is_refused(server):
    with pytest.raises(InputError) as caught:
        Server(server.screen, LOOPBACK, server.server_port)
    assert caught.value.code == "E-SERVE-ADDRESS"


@pytest.mark.parametrize("host", ["256.1.1.1", "no.such.host.invalid", 64 * "ä", "ä..b"])
def test_address_that_is_none_is_refused(host):
    with pytest.raises(InputError) as caught:
        Server(Screen({}), host, 0)
    assert caught.value.code == "E-SERVE-ADDRESS"


# --- the newest view -----------------------------------------------------------------------------


def test_view_holds_state_outline_and_picture():
    mask = np.zeros((20, 30), np.uint8)
    mask[5:8, 10:12] = 1
    view = View({"state": "running"}, np.full((20, 30), 90, np.uint8), mask)
    state, outline, picture = parse(encode_view(7, view))
    assert state == {"serial": 7, "state": "running"}
    assert {tuple(point) for point in outline.tolist()} == {
        (x, y) for x in (10, 11) for y in (5, 6, 7)
    }
    assert picture.startswith(b"\xff\xd8")


def test_view_before_the_first_frame_has_no_picture(server):
    state, outline, picture = parse(ask(server, "/view")[2])
    assert state["state"] == "starting"
    assert (len(outline), picture) == (0, b"")


def test_viewer_waits_for_a_newer_view_and_gets_the_newest():
    screen = Screen({"n": 0})
    received = []
    viewer = threading.Thread(target=lambda: received.append(screen.encoded(0, 10)))
    viewer.start()
    for number in (1, 2, 3):
        screen.show(View({"n": number}))
    viewer.join(10)
    assert parse(received[0])[0]["n"] in (1, 2, 3)
    assert parse(screen.encoded(2, 10))[0]["n"] == 3


def test_views_that_nobody_asks_for_are_not_encoded(monkeypatch):
    from edgeseg.runtime.stream import screen as module

    encoded = []
    monkeypatch.setattr(module, "encode_view", lambda serial, view: encoded.append(serial) or b"")
    screen = Screen({})
    for _ in range(5):
        screen.show(View({}))
    screen.encoded(0, 1)
    screen.encoded(0, 1)  # another viewer
    assert encoded == [5]


# --- a stream that is watched --------------------------------------------------------------------


def textured(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (120, 160), np.uint8)


def mark_box(frame: np.ndarray) -> np.ndarray:
    mask = np.zeros(frame.shape, np.uint8)
    mask[40:80, 50:110] = 1
    return mask


@pytest.fixture
def watched(server) -> Iterator[SimpleNamespace]:
    """A stream on the server, stopped at the end of the test."""
    frames = [textured(number) for number in range(5)]
    stop = threading.Event()

    def read():
        for frame in frames:
            if stop.is_set():
                raise SystemExit
            yield frame

    source = Source(Path("breast.dcm"), "dicom", HZ, 5, None, Spacing(0.2, 0.1), read)
    found = SimpleNamespace(server=server, done=stop.is_set)

    def work() -> None:
        pace, screen = Pace(HZ, loop=True), server.screen
        with contextlib.suppress(SystemExit):
            run_stream(source, mark_box, pace, ABOUT, wanted=Wanted(), screen=screen)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def answered_by(server: Server) -> int:
    return parse(ask(server, "/view")[2])[0]["frames"]["answered"]


def test_viewers_that_never_read_do_not_slow_the_stream(watched):
    wait_for(lambda: "frames" in parse(ask(watched.server, "/view")[2])[0])
    stuck = []
    for _ in range(6):
        connection = socket.create_connection((LOOPBACK, watched.server.server_port), timeout=10)
        host = f"Host: 127.0.0.1:{watched.server.server_port}\r\n\r\n"
        connection.sendall(f"GET /view HTTP/1.1\r\n{host}".encode() * 200)
        stuck.append(connection)
    first, started = answered_by(watched.server), time.perf_counter()
    time.sleep(1)
    rate = (answered_by(watched.server) - first) / (time.perf_counter() - started)
    for connection in stuck:
        connection.close()
    assert rate > 0.5 * HZ


def test_too_many_connections_are_hung_up_on_and_it_recovers(server):
    kept = [socket.create_connection((LOOPBACK, server.server_port), timeout=10) for _ in range(16)]
    wait_for(lambda: not server._places._value)
    with socket.create_connection((LOOPBACK, server.server_port), timeout=10) as one_more:
        assert one_more.recv(10) == b""
    for connection in kept:
        connection.close()
    wait_for(lambda: server._places._value == 16)
    assert ask(server)[0] == 200


def wait_for(ready, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture
def page(chromium, watched):
    """The page, open, once it shows figures."""
    chromium.emulate()
    chromium.open(watched.server.url)
    wait_for(lambda: text(chromium, "p50") != "–")
    return chromium


def text(browser, name: str) -> str:
    return browser.run("return document.getElementById(arguments[0]).textContent", name)


def pixels(browser, name: str) -> list[int]:
    """Return how many pixels of a canvas are drawn, and the sum of their red values."""
    return browser.run(
        "const c = document.getElementById(arguments[0]);"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let drawn = 0, red = 0;"
        "for (let k = 0; k < d.length; k += 4) if (d[k + 3]) { drawn++; red += d[k]; }"
        "return [drawn, red];",
        name,
    )


def test_page_shows_picture_contour_figures_and_what_runs(page):
    assert text(page, "state") == "running"
    assert "Not for diagnosis" in page.run("return document.body.innerText")
    assert pixels(page, "image")[0] == 120 * 160
    assert pixels(page, "outline")[0] > 100
    assert pixels(page, "chart")[0] > 100
    assert float(text(page, "now")) > 0
    assert text(page, "source") == "breast.dcm"
    assert text(page, "engine") == ABOUT["engine"]
    assert text(page, "bundle") == "edge-32 int8"
    assert text(page, "hash") == ABOUT["bundle_sha256"]
    assert "50 Hz, drop-oldest, queue 1" in text(page, "clock")
    assert (text(page, "area"), text(page, "area-unit")) == ("48.0", "mm²")
    for name in ("answered", "missed", "dropped", "fps"):
        assert float(text(page, name)) >= 0
    label = page.run("return document.getElementById('image').getAttribute('aria-label')")
    assert "1 marked region" in label


def test_page_loads_nothing_from_elsewhere_and_the_console_stays_silent(page, watched):
    time.sleep(0.5)
    page.collect()
    assert page.errors == []
    assert len(page.requests) > 5
    assert [each for each in page.requests if not each.startswith(watched.server.url)] == []


def test_policy_stops_what_a_page_must_not_do(page):
    page.run(
        "window.broken = [];"
        "addEventListener('securitypolicyviolation', e => broken.push(e.effectiveDirective));"
        "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
        "document.body.append(s); new Image().src = 'data:image/gif;base64,R0lGODlhAQABAAAAACw=';"
    )
    wait_for(lambda: len(page.run("return broken")) == 2)
    assert page.run("return window.ran") is None


def test_keys_pause_the_view_toggle_the_contour_and_set_the_contrast(page):
    page.press("p")
    assert page.run("return document.getElementById('pause').ariaPressed") == "true"
    still = text(page, "answered")
    time.sleep(0.6)
    assert text(page, "answered") == still
    assert page.run("return document.getElementById('paused').hidden") is False
    page.press("c")
    assert pixels(page, "outline")[0] == 0
    page.press("+", "+", "-")
    assert "contrast(110%)" in page.run("return document.getElementById('image').style.filter")
    page.press("0", "c", "p")
    assert "contrast(100%)" in page.run("return document.getElementById('image').style.filter")
    wait_for(lambda: text(page, "answered") != still)
    assert pixels(page, "outline")[0] > 100


def test_controls_are_reached_by_tab_and_show_the_focus(page):
    reached = []
    for _ in range(5):
        page.press("TAB")
        reached.append(page.run("return document.activeElement.id"))
        assert page.run("return getComputedStyle(document.activeElement).outlineWidth") == "3px"
    assert reached == ["pause", "contour", "contrast", "brightness", "reset"]


CONTRAST = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const light = (c) => {
  const curve = (v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = c.slice(0, 3).map((v) => curve(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c;
  }
  return [255, 255, 255];
};
const faults = [];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.checkVisibility() || e.closest("noscript, .badge")) continue;
  const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) faults.push(e.outerHTML.slice(0, 80));
}
return faults;
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(page, dark):
    page.emulate(dark=dark)
    page.run("for (const id of ['missed', 'dropped']) document.getElementById(id).className='late'")
    assert page.run(CONTRAST) == []
    shade = page.run("return getComputedStyle(document.body).backgroundColor")
    assert shade == ("rgb(16, 22, 27)" if dark else "rgb(243, 245, 246)")


@pytest.mark.parametrize("width_px", [320, 390, 768, 1280])
def test_page_fits_its_width(page, width_px):
    page.emulate(width_px=width_px, height_px=844)
    wait_for(lambda: page.run("return innerWidth") == width_px)
    assert page.run("return document.documentElement.scrollWidth") <= width_px
    assert pixels(page, "outline")[0] > 100


def test_nothing_pulses_where_motion_is_not_wanted(page):
    beat = "return getComputedStyle(document.getElementById('state'), '::before').animationName"
    assert page.run(beat) == "beat"
    page.emulate(calm=True)
    assert page.run(beat) == "none"


def test_page_says_when_the_stream_has_ended_and_keeps_the_last_picture(chromium, server):
    chromium.emulate()
    chromium.open(server.url)
    wait_for(lambda: text(chromium, "state") == "starting")
    source = Source(Path("x"), "test", HZ, 40, None, None, lambda: iter([textured(0)] * 40))
    run_stream(source, mark_box, Pace(HZ), ABOUT, wanted=Wanted(), screen=server.screen)
    wait_for(lambda: text(chromium, "state") == "ended")
    assert pixels(chromium, "image")[0] == 120 * 160


def test_page_says_when_the_connection_is_lost(chromium):
    with Server(Screen({**ABOUT, "state": "starting"}), LOOPBACK, 0) as server:
        chromium.emulate()
        chromium.open(server.url)
        wait_for(lambda: text(chromium, "state") == "starting")
        server.screen.show(View({**ABOUT, "state": "running"}))
        wait_for(lambda: text(chromium, "state") == "running")
    wait_for(lambda: text(chromium, "state") == "connection lost")


def test_chart_goes_on_when_another_stream_answers_at_the_address(chromium):
    def state(number: int) -> dict:
        return {"state": "running", "frame": {"frame": number, "latency_ms": 5.0, "missed": False}}

    seen = "return view.seen"
    chromium.emulate()
    with Server(Screen(state(500)), LOOPBACK, 0) as server:
        port = server.server_port
        chromium.open(server.url)
        wait_for(lambda: chromium.run(seen) == 500)
    wait_for(lambda: text(chromium, "state") == "connection lost")
    with Server(Screen(state(3)), LOOPBACK, port):
        wait_for(lambda: chromium.run(seen) == 3)
