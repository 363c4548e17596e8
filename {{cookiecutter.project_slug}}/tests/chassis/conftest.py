from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from {{ cookiecutter.package_name }}.chassis import cli

from ..environment import ENVIRONMENT, SECRETS
from .probe import service
from .process import Process

PROBE = [sys.executable, str(Path(__file__).with_name("probe.py"))]
SERVICE = [sys.executable, "-m", "{{ cookiecutter.package_name }}"]


@dataclass(frozen=True)
class Finished:
    """What came of a command."""

    status: int | str | None
    out: str
    err: str


class Start:
    """Starts processes on free ports, with what they need to start and *env* over that (None: unset)."""

    def __init__(self, folder: Path, secrets: Path) -> None:
        self.started: list[Process] = []
        self._folder = folder
        self._secrets = secrets

    def __enter__(self) -> Start:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.end()

    def __call__(self, *arguments: str, **env: str | None) -> Process:
        """Start the probe."""
        return self.run([*PROBE, *arguments], {"APP_PROBE_NAME": "probe", **env})

    def patched(self, limits: Mapping[str, float], **env: str) -> Process:
        """Start the probe with other constants, such as `server.LINGER`: some limits are too long for a test."""
        patches = "\n".join(f"{name} = {value!r}" for name, value in limits.items())
        code = f"""
import runpy, sys
from {{ cookiecutter.package_name }}.chassis import admin, server
{patches}
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""
        return self.run([PROBE[0], "-c", code, PROBE[1]], {"APP_PROBE_NAME": "probe", **env})

    def service(self, *arguments: str, **env: str | None) -> Process:
        """Start the service itself."""
        return self.run([*SERVICE, *arguments], {**ENVIRONMENT, **env}, own=True)

    def command(self, *arguments: str, **env: str | None) -> Finished:
        """Run one of the probe's commands that end by themselves, in this process, which saves the start of one."""
        out, err = io.StringIO(), io.StringIO()
        variables = self._env({"APP_PROBE_NAME": "probe", **env})
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status: str | int | None = cli.main(service().name, service, arguments, variables)
            except SystemExit as end:
                status = end.code
        return Finished(status, out.getvalue(), err.getvalue())

    def run(self, command: Sequence[str], env: Mapping[str, str | None], own: bool = False) -> Process:
        """Start a command; what is not our *own* code is not measured, unless the template wants to have it."""
        folder = self._folder / f"process{len(self.started)}"
        folder.mkdir()
        variables = self._env(env)
        if not own and "UNMEASURED" not in os.environ:
            variables.pop("COVERAGE_PROCESS_CONFIG", None)
        self.started.append(Process(command, variables, folder))
        return self.started[-1]

    def _env(self, env: Mapping[str, str | None]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "PORT"))}
        # Starts are quicker with byte code.
        inherited.pop("PYTHONDONTWRITEBYTECODE", None)
        fixed = {"APP_HTTP_PORT": "0", "APP_ADMIN_PORT": "0", "APP_SECRETS_DIR": str(self._secrets)}
        wanted = {**inherited, **fixed, **env}
        return {name: value for name, value in wanted.items() if value is not None}


def _secrets(folder: Path) -> Path:
    """Write all secrets that are required."""
    folder.mkdir()
    for name, value in {"probe_password": "hunter2", **SECRETS}.items():
        (folder / name).write_text(value)
    return folder


@contextmanager
def started(
    tmp_path_factory: pytest.TempPathFactory, limits: Mapping[str, float] | None = None, **env: str
) -> Iterator[Process]:
    """Start a probe that outlives a test."""
    folder = tmp_path_factory.mktemp("probe")
    with Start(folder, _secrets(folder / "secrets")) as start:
        yield (start.patched(limits, **env) if limits else start(**env)).ready()


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The secrets directory of what `start` starts."""
    return _secrets(tmp_path / "secrets")


@pytest.fixture
def start(tmp_path: Path, secrets: Path) -> Iterator[Start]:
    """What starts processes; all of them are ended with the test."""
    with Start(tmp_path, secrets) as start:
        yield start


@pytest.fixture
def own(start: Start) -> Process:
    """The probe, ready, for one test alone."""
    return start().ready()


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The probe, ready, for all tests of a file that leave it as it is."""
    with started(tmp_path_factory) as process:
        yield process
