"""Starts the probe (tests/apps/probe.py), or the rendered service itself, for the tests of the chassis."""

from __future__ import annotations

import io
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from apps.probe import service
from kit.service import Service, clean_environment
from my_service.chassis import run

TESTS = Path(__file__).parents[1]
PROBE = (sys.executable, "-m", "apps.probe")
SERVICE = (sys.executable, "-m", "my_service")
# What the probe can't start without.
ENVIRONMENT = {"APP_PROBE_NAME": "probe"}
SECRETS = {"probe_password": "hunter2"}


@dataclass(frozen=True)
class Finished:
    """What came of a command."""

    status: int | str | None
    out: str
    err: str


class Start:
    """Starts processes on free ports, with what they need to start and *env* over that (None: unset)."""

    def __init__(self, folder: Path, secrets: Path) -> None:
        self.started: list[Service] = []
        self._folder = folder
        self._secrets = secrets

    def __enter__(self) -> Start:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.end()

    def __call__(self, *arguments: str, app: str = "probe", **env: str | None) -> Service:
        """Start the probe, or another program of tests/apps that has its settings."""
        return self.run([sys.executable, "-m", f"apps.{app}", *arguments], {**ENVIRONMENT, **env})

    def service(self, *arguments: str, **env: str | None) -> Service:
        """Start the rendered service itself."""
        return self.run([*SERVICE, *arguments], env)

    def command(self, *arguments: str, **env: str | None) -> Finished:
        """Run one of the probe's commands that end by themselves, in this process, which is quicker."""
        out, err = io.StringIO(), io.StringIO()
        variables = self.environment({**ENVIRONMENT, **env})
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status: str | int | None = run(service(), arguments, variables)
            except SystemExit as end:
                status = end.code
        return Finished(status, out.getvalue(), err.getvalue())

    def run(self, command: Sequence[str], env: Mapping[str, str | None]) -> Service:
        """Start a command."""
        folder = self._folder / f"process{len(self.started)}"
        folder.mkdir()
        self.started.append(Service(command, folder, self.environment(env)))
        return self.started[-1]

    def environment(self, env: Mapping[str, str | None]) -> dict[str, str]:
        """Return the whole environment of a process."""
        fixed = {
            "APP_HTTP_PORT": "0",
            "APP_ADMIN_PORT": "0",
            "APP_SECRETS_DIR": str(self._secrets),
            "PYTHONPATH": str(TESTS),
        }
        # What coverage hands on to processes, so that they are measured.
        measured = {name: value for name, value in os.environ.items() if name.startswith("COV")}
        wanted = {**clean_environment(), **measured, **fixed, **env}
        return {name: value for name, value in wanted.items() if value is not None}


def write_secrets(folder: Path) -> Path:
    """Write all secrets that are required into a new folder."""
    folder.mkdir()
    for name, value in SECRETS.items():
        (folder / name).write_text(value)
    return folder


@contextmanager
def started(tmp_path_factory: pytest.TempPathFactory, app: str = "probe", **env: str) -> Iterator[Service]:
    """Start a probe that outlives a test."""
    folder = tmp_path_factory.mktemp("probe")
    with Start(folder, write_secrets(folder / "secrets")) as start:
        yield start(app=app, **env).ready()


def elsewhere() -> str | None:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            # Connecting a datagram socket sends nothing; it only looks up the route.
            asking.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = asking.getsockname()[0]
        return address
