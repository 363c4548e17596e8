"""A service as a process: its ports, signals, files, log lines and answers.

The interpreter of a rendered service imports this module too (tests/chassis), so it needs the standard
library only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
# What the admin port answers.
ENDPOINTS = (
    *("/", "/metrics", "/-/healthy", "/-/ready", "/-/version", "/-/config", "/-/requests", "/-/stacks"),
    *("/-/stalls", "/-/log-level"),
)
# What a test waits for may take this long on a busy machine before the test gives up.
PATIENCE_SECONDS = 60.0
# A port may be found long before something listens there, and HAProxy listens beside another one.
MARKS, MOST_MARKS = deque[socket.socket](), 200
# How long a process may take to end after SIGTERM before `end` kills it.
END_SECONDS = 5.0


def clean_environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without what a rendered project would heed, and with *changes*."""
    foreign = ("APP_", "COV_", "COVERAGE_", "GIT_", "PYTEST_", "VIRTUAL_ENV", "UV_PROJECT")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    kept.pop("PORT", None)
    # Services start faster when their byte code is written.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | changes


def wait_for(
    condition: Callable[[], T], what: object = "", limit: float = PATIENCE_SECONDS, every: float = 0.005
) -> T:
    """Return the first true value of *condition*; fail when there is none within *limit* seconds."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {limit:g} s: {what or condition}"
        time.sleep(every)
    return value


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(number: int, *, first: int = 20000, last: int = 30000, also: int = 0) -> list[int]:
    """Find ports that no outgoing connection is given meanwhile; with *also*, port + *also* is free too.

    Nobody else who asks here, in another process either, is given them soon: their UDP ports are taken.
    """
    free: list[int] = []
    # Not the common generator, which Hypothesis seeds alike in all processes.
    for port in random.SystemRandom().sample(range(first, last), 1000):
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for wanted in {port, port + also}:
                held.enter_context(socket.create_server((LOOPBACK, wanted)))
            mark = held.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            mark.bind((LOOPBACK, port))
            MARKS.append(mark.dup())
            free.append(port)
        if len(free) == number:
            while len(MARKS) > MOST_MARKS:
                MARKS.popleft().close()
            return free
    raise AssertionError(f"no {number} free ports between {first} and {last}")


@dataclass(frozen=True)
class Answer:
    """One HTTP response; *headers* by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)


def exchange(
    connection: http.client.HTTPConnection,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: Any = None,
) -> Answer:
    """Send one request on a connection, and return the response."""
    connection.request(method, path, body=body, headers=dict(headers or {}))
    response = connection.getresponse()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def ask(
    port: int,
    path: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    source: str = LOOPBACK,
    limit: float = PATIENCE_SECONDS,
) -> Answer:
    """Send one request to a port of this machine, on a connection of its own from the address *source*."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=limit, source_address=(source, 0))
    with contextlib.closing(connection):
        return exchange(connection, path, method, headers, body)


def answers(port: int, path: str, status: int = 200) -> bool:
    """Whether a request to a port of this machine is answered with this status."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(port, path, limit=2).status == status
    return False


def rest(client: socket.socket) -> bytes:
    """Return all that is received until the other side ends the connection, in whatever way."""
    received: list[bytes] = []
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            received.append(data)
    return b"".join(received)


class Service:
    """One running service, with stdout and stderr in files below *folder*.

    Args:
        command: What to run.
        folder: Where its output is kept; it must exist.
        env: Its whole environment.
        cwd: Its working directory.
        ports: Its ports by name (http, admin), when its log lines can't be read; otherwise they tell.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        folder: Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        ports: Mapping[str, int] | None = None,
    ) -> None:
        self.out, self.err = folder / "stdout", folder / "stderr"
        self._ports = dict(ports or {})
        self._connections: list[http.client.HTTPConnection] = []
        # What was read of its output so far: waiting for a line asks for the lines again and again.
        self._read, self._lines = 0, list[dict[str, Any]]()
        self._reading = threading.Lock()
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(
                command, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    def cpu_seconds(self) -> float:
        """Return how long it has worked so far, however busy the machine is."""
        user, system = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def said(self) -> str:
        """Return all that it wrote, for a message."""
        return self.out.read_text(errors="replace") + self.err.read_text(errors="replace")

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return the log lines so far; a line that is not JSON fails the test."""
        with self._reading, self.out.open("rb") as out:
            out.seek(self._read)
            whole, end, _ = out.read().rpartition(b"\n")
            self._lines += [json.loads(line) for line in whole.decode().splitlines()]
            self._read += len(whole + end)
            return [line for line in self._lines if event in (None, line["event"])]

    def line(self, event: str) -> dict[str, Any]:
        """Wait for the first line of *event*."""

        def found() -> list[dict[str, Any]]:
            ended = not self.is_running
            lines = self.lines(event)
            assert lines or not ended, f"ended without a line {event!r}: {self.said()}"
            return lines

        return wait_for(found, f"a line {event!r}")[0]

    def port(self, name: str = "http") -> int:
        if name not in self._ports:
            self._ports[name] = int(self.line("listening")[name].rpartition(":")[2])
        return self._ports[name]

    def ready(self) -> Service:
        """Wait for the line that says ready."""
        self.line("ready")
        return self

    def answering(self) -> Service:
        """Wait until it says that it is ready when it is asked, for one whose lines can't be read."""

        def is_ready() -> bool:
            assert self.is_running, f"ended: {self.said()}"
            return answers(self.port("admin"), "/-/ready")

        wait_for(is_ready, "readiness")
        return self

    def connect(self, name: str = "http") -> http.client.HTTPConnection:
        """Return a connection that is kept until the service is ended."""
        self._connections.append(
            http.client.HTTPConnection(LOOPBACK, self.port(name), timeout=PATIENCE_SECONDS)
        )
        return self._connections[-1]

    def ask(
        self,
        path: str,
        *,
        port: str = "http",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        on: http.client.HTTPConnection | None = None,
        limit: float = PATIENCE_SECONDS,
    ) -> Answer:
        """Send one request, on a connection of its own unless *on* is given."""
        if on is not None:
            return exchange(on, path, method, headers, body)
        return ask(self.port(port), path, method=method, headers=headers, body=body, limit=limit)

    def status(self, path: str, port: str = "http") -> int:
        return self.ask(path, port=port).status

    def look(self, path: str) -> str:
        """Return what the admin port answers with 200."""
        answer = self.ask(path, port="admin")
        assert answer.status == 200, f"{path}: {answer.status} {answer.text}"
        return answer.text

    def series(self) -> dict[str, float]:
        """Return the metrics by name and labels."""
        samples = (line.rpartition(" ") for line in self.look("/metrics").splitlines() if line[0] != "#")
        return {name: float(value) for name, _, value in samples}

    def readiness(self) -> dict[str, Any]:
        body: dict[str, Any] = self.ask("/-/ready", port="admin").json()
        return body

    def dial(self, name: str = "http") -> socket.socket:
        """Return a bare connection."""
        return socket.create_connection((LOOPBACK, self.port(name)), timeout=PATIENCE_SECONDS)

    def send(self, data: bytes) -> bytes:
        """Send *data* on a connection of its own; return all that is received until the service ends it."""
        with self.dial() as client:
            client.sendall(data)
            return rest(client)

    def request_line(self, path: str) -> dict[str, Any]:
        """Wait for the request line of *path*."""
        return wait_for(
            lambda: [line for line in self.lines("request") if line["path"] == path],
            f"the request line of {path}",
        )[0]

    def signal(self, number: signal.Signals) -> float:
        """Send a signal; return when."""
        self.popen.send_signal(number)
        return time.monotonic()

    def wait(self, limit: float = PATIENCE_SECONDS) -> int:
        """Wait for the end; return the exit status."""
        return self.popen.wait(limit)

    def stop(self, limit: float = PATIENCE_SECONDS) -> int:
        """Stop it as an orchestrator does; return the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(limit)

    def kill(self) -> None:
        """End it at once, whatever it does."""
        if self.is_running:
            self.popen.kill()
        self.popen.wait()

    def end(self) -> None:
        """End it with its connections, if it still runs."""
        for connection in self._connections:
            connection.close()
        if self.is_running:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(END_SECONDS)
        self.kill()


class Asking(threading.Thread):
    """A request in the background; after `join` it has an *answer*, or None when the connection broke."""

    answer: Answer | None = None
    at = 0.0

    def __init__(self, service: Service, path: str, **options: Any) -> None:
        super().__init__(daemon=True)
        self._service, self._path, self._options = service, path, options
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._service.ask(self._path, **self._options)
        except (OSError, http.client.HTTPException):
            return
        self.at = time.monotonic()
