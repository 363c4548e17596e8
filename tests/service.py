"""A service as a process, and waiting for what it does."""

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from conftest import clean_environment

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, limit: float = 20.0) -> T:
    """Return the first true value of the condition."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {limit} s: {what}"
        time.sleep(0.01)
    return value


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class Service:
    """A running service: its ports, its lines and its answers."""

    def __init__(self, command: tuple[str | Path, ...], folder: Path, cwd: Path, **env: str) -> None:
        self.out, self.err = folder / "stdout", folder / "stderr"
        with self.out.open("wb") as out, self.err.open("wb") as err:
            inherited = clean_environment(**env)
            self.process = subprocess.Popen(
                command, cwd=cwd, env=inherited, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    def lines(self, event: str | None = None) -> list[dict[str, Any]]:
        whole = self.out.read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if event in (None, line["event"])]

    def started(self) -> "Service":
        def ready() -> bool:
            assert self.process.poll() is None, f"ended: {self.out.read_text()}{self.err.read_text()}"
            return bool(self.lines("ready"))

        wait_for(ready, "the line that says ready")
        said = self.lines("listening")[0]
        self.http, self.admin = (int(said[name].rpartition(":")[2]) for name in ("http", "admin"))
        return self

    def ask(self, port: int, path: str, method: str = "GET", timeout: float = 20) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def look(self, path: str) -> str:
        """Ask the admin port for what must be there."""
        status, body = self.ask(self.admin, path)
        assert status == 200, f"{path}: {status} {body}"
        return body

    def series(self) -> dict[str, float]:
        samples = (line.rpartition(" ") for line in self.look("/metrics").splitlines() if line[0] != "#")
        return {name: float(value) for name, _, value in samples}

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
