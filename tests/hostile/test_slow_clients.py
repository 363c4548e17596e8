"""slowhttptest in its three modes, while a normal client goes on; schemathesis on what FastAPI documents."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Project, tool
from service import Service
from world import SCALE, Behaved, World, sound

pytestmark = pytest.mark.slow

SECONDS = 3 * SCALE
MODES: dict[str, tuple[str, ...]] = {
    "slow headers": ("-H",),
    "slow bodies": ("-B", "-s", "8192", "-t", "POST"),
    "slow readers": ("-X", "-w", "10", "-y", "20", "-n", "1", "-z", "8"),
}
PATHS = {"slow headers": "/trouble/x", "slow bodies": "/length", "slow readers": "/large"}


def p99(service: Service, until: float) -> float:
    """Return the 99th percentile of the times of one client after another, in seconds, until then."""
    behaved = Behaved(service)
    times: list[float] = []
    while time.monotonic() < until or len(times) < 200:
        times.append(behaved.asks())
        time.sleep(0.002)
    behaved.close()
    return statistics.quantiles(times, n=100)[98]


@pytest.mark.parametrize("mode", MODES)
def test_slow_clients_cost_the_others_nothing(
    world: World, mode: str, record_property: Callable[[str, object], None]
) -> None:
    program = tool("slowhttptest")
    service = world.start().started()
    command: tuple[str | Path, ...] = (
        program,
        *MODES[mode],
        "-c",
        "300",
        "-r",
        "300",
        "-i",
        "1",
        "-l",
        str(SECONDS),
        "-p",
        "2",
    )
    quiet = p99(service, time.monotonic() + SECONDS / 2)
    attack = subprocess.Popen(
        (*command, "-u", f"http://127.0.0.1:{service.http}{PATHS[mode]}"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=service.out.parent,
    )
    try:
        busy = p99(service, time.monotonic() + SECONDS)
    finally:
        attack.terminate()
        attack.wait()
    ratio = busy / quiet
    record_property("shown", f"{mode}: p99 of a normal client {ratio:.1f} times that without")
    # Other tests share the machine in a usual run, and their share is no fault of the service.
    assert SCALE == 1 or ratio <= 2
    sound(service)


def test_what_openapi_documents_holds_for_any_input(fastapi: Project, tmp_path: Path) -> None:
    uvx = tool("uv")
    service = Service(
        (fastapi.path / ".venv/bin/python", "-m", fastapi.package),
        tmp_path,
        fastapi.path,
        APP_HTTP_PORT="0",
        APP_ADMIN_PORT="0",
        APP_LOG_FORMAT="json",
    )
    try:
        service.started()
        done = subprocess.run(
            (
                *(uvx, "tool", "run", "--from", "schemathesis>=4.32,<5", "schemathesis", "run"),
                *("--checks", "not_a_server_error,response_schema_conformance"),
                *("--max-examples", str(30 * SCALE), "--seed", "7", "--no-color"),
                f"http://127.0.0.1:{service.http}/openapi.json",
            ),
            cwd=tmp_path,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout
        assert len(sound(service)) > 20
    finally:
        service.end()
