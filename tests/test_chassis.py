"""The chassis in a rendered service of each framework: tests/chassis, run by that service's interpreter."""

import os
import re
import subprocess
import sys
import threading
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
PROGRESS_SECONDS = 60
# What xdist says of each test: that a worker has begun it, and later what came of it.
INNER = re.compile(r"(?:\[gw\d+\] \[ *(?P<percent>\d+)%\] (?P<done>[A-Z]+) )?(?P<test>\S+\.py::.+)")
# Of lines and branches of the chassis, in percent.
COVERED = 100
# In the service of one framework all of the chassis runs. Where lines are counted, it is the one whose
# routes and errors take lines of their own; otherwise the one that starts in half of the time.
WHOLE = "fastapi" if MEASURED else "starlette"
# What meets no framework runs in that one alone: the chassis is the same in all of them (test_bake). That
# each keeps its requests during the drain, its own contract's tests say (test_generated).
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
    "lifecycle",
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


class Progress:
    """Says once a minute, until the end of the block, how far an inner run is and which tests run."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self._what, self._say = what, say
        self._percent, self._running = "0", dict[str, None]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _tick(self) -> None:
        while not self._over.wait(PROGRESS_SECONDS):
            self._say(f"{self._what}: {self._percent} %, running: {', '.join([*self._running]) or 'nothing'}")

    def takes(self, line: str) -> bool:
        """Take a line of the inner run; return whether it only says that a test began or went well."""
        if not (found := INNER.fullmatch(line.rstrip())):
            return False
        file, _, name = found["test"].partition("::")
        test = f"{Path(file).name}::{name}"
        if not found["done"]:
            self._running[test] = None
            return True
        self._running.pop(test, None)
        self._percent = found["percent"]
        return found["done"] in ("PASSED", "SKIPPED")


def follow(command: list[str | Path], cwd: Path, progress: Progress, **environment: str) -> None:
    """Run the inner run; if it fails, show what it said of anything but tests that began or went well."""
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
        said += (line for line in process.stdout if not progress.takes(line))
        status = process.wait(LIMIT_SECONDS)
    if status:
        pytest.fail(f"exit {status}\n{''.join(said)}", pytrace=False)


def test_the_chassis_keeps_its_promises(
    service: Project, tmp_path: Path, show: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    framework = service.answers["web_framework"]
    is_whole = framework == WHOLE

    def say(line: str) -> None:
        # What a worker of xdist writes to stdout, nobody sees.
        with capfd.disabled():
            print(f"\n{line}", file=sys.stderr, flush=True)

    assert all((CHASSIS / f"test_{name}.py").exists() for name in ONCE)
    ignored = [f"--ignore={CHASSIS}/test_{name}.py" for name in ONCE if not is_whole]
    measured = ("--rcfile", CHASSIS / "coverage.ini", "--data-file", tmp_path / "coverage")
    pytest_ = ("-m", "pytest", "-c", "pyproject.toml", "--rootdir", service.path, "--confcutdir", CHASSIS)
    # Without what is meant for a person, and with all else that the project asks of its tests.
    options = ("-o", "addopts=--strict-markers", "-p", "no:cacheprovider", "--basetemp", tmp_path / "run")
    workers = ("-v", "--numprocesses", str(WORKERS), "--dist", "worksteal")
    coverage: list[str | Path] = [service.python, "-m", "coverage"]
    is_measured = MEASURED and is_whole
    python = [*coverage, "run", *measured] if is_measured else [service.python]
    with Progress(f"the chassis with {framework}", say) as progress:
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
