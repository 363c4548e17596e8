"""The chassis in a rendered service of each framework: tests/chassis, run by that service's interpreter."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kit.project import FRAMEWORKS, ROOT, Project, Renders
from kit.service import clean_environment

pytestmark = pytest.mark.slow

TESTS = ROOT / "tests"
CHASSIS = TESTS / "chassis"
# The tests wait for processes more than they work.
WORKERS = 3
# Measuring more than doubles what a process costs: `make coverage` and the nightly run ask for it.
MEASURED = "MEASURE_COVERAGE" in os.environ
LIMIT_SECONDS = 1800
# Of lines and branches of the chassis, in percent.
COVERED = 100
# In this framework's service all of the chassis runs: its routes and errors take lines of their own.
WHOLE = "fastapi"
# What meets no framework runs in that one alone: the chassis is the same in all of them (test_bake).
ONCE = (
    "admin",
    "bare",
    "checks",
    "cli",
    "clients",
    "commands",
    "config",
    "formats",
    "health",
    "incidents_of_logging",
    "logs",
    "metrics",
    "output",
    "page",
    "processes",
    "secrets",
    "signals",
    "stalls",
    "stopping",
    "systemd",
    "workers",
)


@pytest.fixture(params=FRAMEWORKS)
def service(request: pytest.FixtureRequest, renders: Renders) -> Project:
    """A service of each framework, with what runs tests side by side, and with what only systemd asks for."""
    return renders.for_chassis(web_framework=request.param, deploy_to="systemd")


def follow(command: list[str | Path], cwd: Path, progress: Callable[[str], None], **environment: str) -> str:
    """Run a command, and pass on its lines that tell how far it is; a failure shows all of it."""
    said: list[str] = []
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if re.search(r"\[ *\d+%\]$", line):
                progress(line.rstrip())
        status = process.wait(LIMIT_SECONDS)
    if status:
        pytest.fail(f"exit {status}\n{''.join(said)}", pytrace=False)
    return "".join(said)


def test_the_chassis_keeps_its_promises(
    service: Project, tmp_path: Path, show: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    framework = service.answers["web_framework"]
    is_whole = framework == WHOLE

    def progress(line: str) -> None:
        # What a worker of xdist writes to stdout, nobody sees.
        with capfd.disabled():
            print(f"\n{framework}: {line}", end="", file=sys.stderr, flush=True)

    assert all((CHASSIS / f"test_{name}.py").exists() for name in ONCE)
    ignored = [f"--ignore={CHASSIS}/test_{name}.py" for name in ONCE if not is_whole]
    measured = ("--rcfile", CHASSIS / "coverage.ini", "--data-file", tmp_path / "coverage")
    pytest_ = ("-m", "pytest", "-c", "pyproject.toml", "--rootdir", service.path, "--confcutdir", CHASSIS)
    # Without what is meant for a person, and with all else that the project asks of its tests.
    options = ("-o", "addopts=--strict-markers", "-p", "no:cacheprovider", "--basetemp", tmp_path / "run")
    workers = ("-q", "--numprocesses", str(WORKERS), "--dist", "worksteal")
    coverage: list[str | Path] = [service.python, "-m", "coverage"]
    is_measured = MEASURED and is_whole
    python = [*coverage, "run", *measured] if is_measured else [service.python]
    follow([*python, *pytest_, *options, *workers, *ignored, CHASSIS], service.path, progress)
    if not is_measured:
        return
    service.run(*coverage, "combine", "--quiet", *measured, tmp_path)
    report = service.run(*coverage, "report", *measured, "--show-missing", "--skip-covered")
    for line in report.splitlines():
        show(f"{framework}: {line}")
    total = re.search(r"^TOTAL .* (\d+)%$", report, flags=re.M)
    assert total, report
    assert int(total[1]) >= COVERED, report


def test_the_tests_of_the_chassis_and_its_programs_are_typed(renders: Renders) -> None:
    """mypy finds `my_service` in the service's environment only; they name no framework but Starlette."""
    service = renders.for_chassis(web_framework="starlette", deploy_to="systemd")
    files = [*CHASSIS.glob("*.py"), *(TESTS / "apps").glob("*.py"), TESTS / "kit" / "service.py"]
    options = ("--strict", "--explicit-package-bases", "--config-file=")
    service.run(service.python, "-m", "mypy", *options, *files, MYPYPATH=f"{TESTS}:{service.path / 'src'}")
