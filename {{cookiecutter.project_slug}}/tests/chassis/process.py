"""The running service as tests see it: a process with ports, signals, log lines and an exit status.

Tests of yours may use it: import the fixture `start` in tests/conftest.py, as conftest.py beside this file does.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ..environment import ENVIRONMENT, SECRETS

T = TypeVar("T")

# Long enough for a busy machine. A test that passes never waits for so long.
PATIENCE_SECONDS = 60.0
HOST = "127.0.0.1"
PACKAGE = "{{ cookiecutter.package_name }}"
# The image to start in place of the code in src/, as `make test-image` says.
IMAGE = os.environ.get("IMAGE")


@dataclass(frozen=True)
class Response:
    """One HTTP response; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def wait_for(condition: Callable[[], T], what: str) -> T:
    """Return the first true value of *condition*; without one, fail and say *what* was waited for."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:g} s: {what}"
        time.sleep(0.01)
    return value


class Process:
    """One process of the service; *folder* gets its output."""

    def __init__(self, command: tuple[str, ...], env: Mapping[str, str], folder: Path) -> None:
        self._out, self._err = folder / "stdout", folder / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._popen = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of *event* so far; a line that is not JSON fails the test."""
        complete = self.stdout.rpartition("\n")[0]
        return [line for line in map(json.loads, complete.splitlines()) if line["event"] == event]

    def line(self, event: str) -> dict[str, Any]:
        """Wait for the first log line of *event*."""

        def found() -> list[dict[str, Any]]:
            has_ended = self._popen.poll() is not None
            lines = self.lines(event)
            assert lines or not has_ended, f"ended without a line {event!r}:\n{self.stdout}{self.stderr}"
            return lines

        return wait_for(found, f"a log line {event!r}")[0]

    def ready(self) -> Process:
        """Wait until the service has started."""
        self.line("ready")
        return self

    def port(self, name: str = "http") -> int:
        """Return a port that the service has chosen: `http` or `admin`."""
        return int(self.line("listening")[name].rpartition(":")[2])

    def request(
        self, path: str, method: str = "GET", *, port: str = "http", body: str | None = None, **headers: str
    ) -> Response:
        """Send one request on a connection of its own; `x_request_id=…` is the header X-Request-ID."""
        with closing(http.client.HTTPConnection(HOST, self.port(port), timeout=PATIENCE_SECONDS)) as connection:
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=sent)
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Response(response.status, received, response.read())

    def connect(self) -> socket.socket:
        """Open a bare connection to the traffic port."""
        return socket.create_connection((HOST, self.port()), timeout=PATIENCE_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def wait(self) -> int:
        """Wait for the end, and return the exit status."""
        return self._popen.wait(PATIENCE_SECONDS)

    def stop(self) -> int:
        """Stop it as an orchestrator does, and return the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def end(self) -> None:
        """End it if it still runs: by SIGTERM if that suffices, so that its coverage is counted."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(5)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()


class Start:
    """Starts the service on free ports, with what tests/environment.py says and *env* over it (None: unset)."""

    def __init__(self, folder: Path) -> None:
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        for name, value in SECRETS.items():
            (self.secrets / name).write_text(value)
        self._folder = folder
        self._started: list[Process] = []

    def __enter__(self) -> Start:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            process.end()

    def __call__(self, *arguments: str, **env: str | None) -> Process:
        folder = self._folder / f"process{len(self._started)}"
        folder.mkdir()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "PORT"))}
        # A start is quicker with byte code.
        inherited.pop("PYTHONDONTWRITEBYTECODE", None)
        fixed = {"APP_HTTP_PORT": "0", "APP_ADMIN_PORT": "0", "APP_SECRETS_DIR": str(self.secrets)}
        # What is known only at run time, a port for example, is a function that returns it.
        given = {name: value() if callable(value) else value for name, value in ENVIRONMENT.items()}
        wanted = {**fixed, **given, **env}
        set_ = {name: value for name, value in wanted.items() if value is not None}
        command = in_container(IMAGE, set_) if IMAGE else (sys.executable, "-m", PACKAGE)
        self._started.append(Process((*command, *arguments), {**inherited, **set_}, folder))
        return self._started[-1]


def in_container(image: str, env: Mapping[str, str]) -> tuple[str, ...]:
    """Run the image as strictly as a platform may: no capability, nothing to write to, a user it has never heard of."""
    strict = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=12345:0")
    secrets = f"--volume={env['APP_SECRETS_DIR']}:{env['APP_SECRETS_DIR']}:ro"
    # In the host's network, the addresses in tests/environment.py mean the same.
    return ("docker", "run", "--rm", "--network=host", *strict, secrets, *(f"--env={name}" for name in env), image)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """What starts the service; the processes end with the test."""
    with Start(tmp_path) as start:
        yield start
