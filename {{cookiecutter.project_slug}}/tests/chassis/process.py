"""A service as the contract's tests see it: a process with ports, signals, files and lines."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; *headers* by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def wait_for(condition: Callable[[], T], limit: float = 30.0) -> T:
    """Return the first true value of *condition*; fail when there is none within *limit* seconds."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {limit} s: {condition}"
        time.sleep(0.005)
    return value


def rest(client: socket.socket) -> bytes:
    """Return all that comes until the other side ends the connection, in whatever way."""
    received = b""
    try:
        while data := client.recv(65536):
            received += data
    except ConnectionError:
        return received
    return received


class Process:
    """One running service, with stdout and stderr in files below *folder*."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        self.out, self.err = folder / "stdout", folder / "stderr"
        self._connections: list[http.client.HTTPConnection] = []
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.popen = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """Return the log lines so far; a line that is not JSON fails the test."""
        whole = self.out.read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if event in (None, line["event"])]

    def line(self, event: str) -> dict[str, Any]:
        """Wait for the first line of *event*."""
        return wait_for(lambda: self.lines(event) or self._must_run(event))[0]

    def _must_run(self, event: str) -> list[dict[str, Any]]:
        assert self.popen.poll() is None or self.lines(event), f"ended: {self.out.read_text()}{self.err.read_text()}"
        return []

    def port(self, name: str = "http") -> int:
        return int(self.line("listening")[name].rpartition(":")[2])

    def ready(self) -> Process:
        self.line("ready")
        return self

    def connect(self, name: str = "http") -> http.client.HTTPConnection:
        """Return a connection that is kept until the end of the test."""
        self._connections.append(http.client.HTTPConnection("127.0.0.1", self.port(name), timeout=30))
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
    ) -> Answer:
        """Send one request, on a connection of its own unless *on* is given."""
        connection = on or http.client.HTTPConnection("127.0.0.1", self.port(port), timeout=30)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            if on is None:
                connection.close()

    def dial(self) -> socket.socket:
        """Return a bare connection to the traffic port."""
        return socket.create_connection(("127.0.0.1", self.port()), timeout=30)

    def send(self, data: bytes) -> bytes:
        """Send *data* on a connection of its own; return all that comes until the service ends it."""
        with self.dial() as client:
            client.sendall(data)
            return rest(client)

    def request_line(self, path: str) -> dict[str, Any]:
        """Wait for the request line of *path*."""
        return wait_for(lambda: [line for line in self.lines("request") if line["path"] == path])[0]

    def readiness(self) -> dict[str, Any]:
        body: dict[str, Any] = self.ask("/-/ready", port="admin").json()
        return body

    def signal(self, number: signal.Signals) -> float:
        """Send a signal; return when."""
        os.kill(self.popen.pid, number)
        return time.monotonic()

    def wait(self, limit: float = 30.0) -> int:
        """Wait for the end; return the exit status."""
        return self.popen.wait(limit)

    def stop(self) -> int:
        """Stop it as an orchestrator does; return the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """End it, whatever state it is in; by SIGTERM when that works, so that its coverage is counted."""
        for connection in self._connections:
            connection.close()
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(3)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()


class Asking(threading.Thread):
    """A request in the background; after `join` it has an *answer*, or None when the connection broke."""

    answer: Answer | None = None
    at = 0.0

    def __init__(self, process: Process, path: str, **options: Any) -> None:
        super().__init__()
        self._process, self._path, self._options = process, path, options
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._process.ask(self._path, **self._options)
        except (OSError, http.client.HTTPException):
            return
        self.at = time.monotonic()
