"""Contract, section 6: the admin port's page in a browser, and pages of others that want to get at it."""

import http.client
import json
import os
import re
import signal
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest
from kit.devtools import look
from kit.project import ROOT
from kit.service import ENDPOINTS, Service, T, wait_for
from kit.tools import tool
from kit.world import World

pytestmark = pytest.mark.slow

# What a page elsewhere would try; it tells its own server what came of it.
ELSEWHERE = (ROOT / "tests/apps/elsewhere.html").read_text(encoding="utf-8")


class Browser:
    """Chromium without a window, and without a way to anything but loopback."""

    def __init__(self, folder: Path) -> None:
        self._program = tool("chromium")
        self._folder = folder
        self._runs = 0

    def command(self, *arguments: str, names: str = "") -> tuple[str | Path, ...]:
        self._runs += 1
        return (
            self._program,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-proxy-server",
            "--enable-logging=stderr",
            f"--host-resolver-rules={names}MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={self._folder / f'profile{self._runs}'}",
            *arguments,
        )

    def show(self, *arguments: str, names: str = "") -> tuple[str, list[str]]:
        """Open a page, and return what it printed and its console's lines."""
        done = subprocess.run(
            self.command(*arguments, names=names),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def visit(self, url: str, until: Callable[[], T], names: str = "") -> T:
        """Stay on a page until something has come true."""
        # A session of its own: the program is a script, and the browser is many processes.
        browser = subprocess.Popen(
            self.command(url, names=names),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return wait_for(until, f"what {url} reports", 60)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    return Browser(tmp_path)


def first_pixel(png: Path) -> tuple[int, ...]:
    """The colour of the upper left corner; its bytes are the first ones whatever the row's filter."""
    data, at, packed = png.read_bytes(), 8, b""
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        packed += data[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    return tuple(zlib.decompress(packed)[1:4])


def test_the_page_opens_without_a_complaint_in_light_and_dark(
    world: World, browser: Browser, tmp_path: Path
) -> None:
    service = world.start(None).ready()
    url = f"http://127.0.0.1:{service.port('admin')}/"
    _, console = browser.show("--dump-dom", "data:text/html,<script>console.error('heard')</script>")
    assert any("heard" in line for line in console), "a console error would go unheard"
    dom, console = browser.show("--dump-dom", url)
    assert console == []
    assert re.search(r"<h1>[^<]+<span class=\"state ready\">ready</span></h1>", dom), dom
    for shown in ("APP_HTTP_PORT", "admin_token", *ENDPOINTS):
        assert shown in dom, f"{shown} is not on the page"
    corners = []
    for name, options in (("light", ()), ("dark", ("--force-dark-mode",))):
        picture = tmp_path / f"{name}.png"
        _, console = browser.show(*options, "--window-size=1100,1300", f"--screenshot={picture}", url)
        assert console == []
        corners.append(sum(first_pixel(picture)))
    assert corners[0] > 700
    assert corners[1] < 100


@pytest.fixture(scope="module")
def busy(world: World) -> Service:
    """A service that has had requests for long enough to have a history."""
    service = world.start(None).ready()

    def has_history() -> bool:
        service.ask("/greetings/you")
        return re.search(r"<b>[1-9][\d.]*/s</b>", service.look("/")) is not None

    wait_for(has_history, "a slot of the history", 60, every=0.1)
    return service


def test_a_page_that_is_too_wide_or_complains_is_seen(browser: Browser) -> None:
    fits = "data:text/html,<meta name=viewport content='width=device-width'>"
    wide = f"{fits}<script>console.error('heard')</script><div style='width: 900px'>wide</div>"
    page = look(browser.command(), wide, 400, "light")
    assert "heard" in "".join(page.console)
    assert page.scroll_width >= 900


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_its_history_on_a_phone_and_on_a_desk(
    busy: Service, browser: Browser, tmp_path: Path, width: int, scheme: str
) -> None:
    page = look(browser.command(), f"http://127.0.0.1:{busy.port('admin')}/", width, scheme)
    assert page.console == []
    assert page.inner_width == width >= page.scroll_width, "the page does not fit"
    picture, dom = tmp_path / "page.png", page.dom
    picture.write_bytes(page.picture)
    assert picture.stat().st_size > 10_000
    assert sum(first_pixel(picture)) > 700 if scheme == "light" else sum(first_pixel(picture)) < 100
    for heading in ("The last ten minutes", "Slowest requests of late", "What changed of late"):
        assert f"<h2>{heading}</h2>" in dom
    assert "<td>/greetings/{name}</td>" in dom.replace("\n", "")
    assert len(re.findall(r'<polyline points="[\d., -]+"', dom)) == 4, "a sparkline is empty"
    [most] = re.findall(r"requests <b>[\d.]+/s</b> <small>at most ([\d.]+)/s", dom)
    assert float(most) > 0


class Site:
    """Somebody else's page on *host*; what it does not have itself it may pass on to a port of 127.0.0.1."""

    def __init__(self, host: str, port: int, page: str, onward: int | None = None) -> None:
        self.report: Mapping[str, str] = {}
        self.passed: list[tuple[str, str, int]] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("content-length", 0))
                body = self.rfile.read(length)
                if self.path == "/report":
                    site.report = json.loads(body)
                    self.respond(200, b"")
                elif onward is None or self.path == "/":
                    self.respond(200, page.encode())
                else:
                    self.pass_on(onward, body)

            do_POST = do_PUT = do_DELETE = do_OPTIONS = do_GET

            def pass_on(self, port: int, body: bytes) -> None:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                site.passed.append((self.command, self.path, answer.status))
                self.respond(answer.status, answer.read())
                connection.close()

            def respond(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer((host, port), Handler)
        self.port = cast("tuple[str, int]", self.server.server_address)[1]

    def __enter__(self) -> "Site":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def test_a_page_of_another_origin_reads_nothing_and_changes_nothing(world: World, browser: Browser) -> None:
    service = world.start(None).ready()
    levels = service.look("/-/log-level")
    page = ELSEWHERE.replace("ADMIN", f"http://127.0.0.1:{service.port('admin')}")
    with Site("127.0.0.1", 0, page) as site:
        seen = browser.visit(f"http://127.0.0.1:{site.port}/", lambda: site.report)
    print(json.dumps(seen, indent=2))
    assert seen["own"] == "got 200"
    # An opaque answer is one that the page can't look into.
    for blind in ("read blindly", "post"):
        assert seen[blind].strip() in {"got opaque 0", "stopped: TypeError: Failed to fetch"}
    for name in seen.keys() - {"own", "read blindly", "post"}:
        assert seen[name].startswith("stopped: "), f"{name}: {seen[name]}"
    assert "APP_" not in json.dumps(seen)
    assert service.look("/-/log-level") == levels
    assert service.lines("log level changed") == []


def test_a_rebound_name_reads_nothing_and_changes_nothing(world: World, browser: Browser) -> None:
    """The name of a page's own origin comes to mean this machine, so its browser lets it do all."""
    service = world.start(None).ready()
    levels = service.look("/-/log-level")
    url = f"http://evil.test:{service.port('admin')}/"
    dom, _ = browser.show("--dump-dom", url, names="MAP evil.test 127.0.0.1, ")
    assert "This Host is not one of this port" in dom
    # What the name means can't change while the browser runs: another loopback address passes requests on.
    port = service.port("admin")
    with Site("127.0.0.2", port, ELSEWHERE.replace("ADMIN", ""), onward=port) as site:
        seen = browser.visit(url, lambda: site.report, names="MAP evil.test 127.0.0.2, ")
    print(json.dumps(seen, indent=2))
    assert {(method, path) for method, path, _ in site.passed} >= {
        ("GET", "/-/config"),
        ("PUT", "/-/log-level"),
        ("DELETE", "/-/log-level"),
    }
    assert {status for _, _, status in site.passed} == {403}
    assert "APP_" not in json.dumps(seen)
    assert service.look("/-/log-level") == levels
    assert service.lines("log level changed") == []
