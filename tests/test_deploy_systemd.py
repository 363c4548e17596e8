"""The unit, by systemd's own tools; the service under a stand-in for systemd; the script that restarts."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from kit.balancers import BALANCERS, FRONT, SLOTS
from kit.load import Load
from kit.project import ROOT, Project, Renders
from kit.service import answers, clean_environment, free_ports, wait_for
from kit.systemd import Manager, environment, read_unit
from kit.tools import tool

pytestmark = pytest.mark.slow

EXPOSURE = 1.5
MARGIN = 2


@pytest.fixture(scope="module")
def project(renders: Renders) -> Project:
    """The service for systemd, with its environment; not to be changed."""
    return renders.for_chassis(deploy_to="systemd")


@pytest.fixture(scope="module")
def unit_file(project: Project) -> Path:
    (found,) = (project.path / "deploy/systemd").glob("*@.service")
    return found


@pytest.fixture(scope="module")
def unit(unit_file: Path) -> dict[str, list[str]]:
    return read_unit(unit_file.read_text())


@pytest.fixture
def installed(project: Project, unit_file: Path, tmp_path: Path) -> Path:
    """The unit with an instance, and the service where it is on this machine."""
    folder = tmp_path / "units"
    folder.mkdir()
    text = unit_file.read_text().replace(
        f"/opt/{project.path.name}/current/bin/", f"{project.path}/.venv/bin/"
    )
    assert text != unit_file.read_text()
    (folder / unit_file.name).write_text(text)
    instance = folder / unit_file.name.replace("@.", "@8000.")
    instance.symlink_to(unit_file.name)
    return instance


def analyze(verb: str, instance: Path, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        (tool("systemd-analyze"), verb, "--no-pager", *options, instance),
        env=clean_environment(SYSTEMD_UNIT_PATH=f"{instance.parent}:", SYSTEMD_COLORS="0"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_systemd_accepts_the_unit(installed: Path) -> None:
    status, said = analyze("verify", installed, "--man=no")
    assert (status, installed.name.partition("@")[0] in said) == (0, False), said
    installed.write_text(installed.read_text().replace("WatchdogSec", "WatchDogSec"))
    assert "WatchDogSec" in analyze("verify", installed, "--man=no")[1]


def test_the_unit_is_hardly_exposed(installed: Path, show: Callable[[str], None]) -> None:
    status, said = analyze("security", installed, "--offline=true", f"--threshold={EXPOSURE * 10:.0f}")
    level = re.search(r"exposure level for \S+: ([\d.]+)", said)
    assert level, said
    show(f"exposure of the unit: {level[1]}")
    assert (status, float(level[1]) <= EXPOSURE) == (0, True), said
    installed.write_text(installed.read_text().replace("PrivateUsers=yes\n", "").replace("DynamicUser", "X-"))
    assert analyze("security", installed, "--offline=true", f"--threshold={EXPOSURE * 10:.0f}")[0] != 0


def test_every_name_and_time_is_one_of_the_config_classes(
    project: Project,
    unit: dict[str, list[str]],
) -> None:
    program = project.path / ".venv/bin" / project.path.name
    declared = {each["name"]: each for each in json.loads(project.run(program, "config", "--format", "json"))}
    env = environment(unit, "8000")
    assert env.keys() <= declared.keys()
    files = {each["file"] for each in declared.values() if each["file"]}
    credentials = [line.split(":") for line in unit["LoadCredential"]]
    assert {name for name, _ in credentials} <= files
    # By name: one that is given by its path must exist.
    assert all(source == f"{project.path.name}.{name}" for name, source in credentials)

    def number(name: str) -> float:
        return float(env.get(name) or declared[name]["default"])

    assert (
        float(unit["TimeoutStopSec"][0]) >= number("APP_DRAIN_DELAY") + number("APP_DRAIN_TIMEOUT") + MARGIN
    )
    assert float(unit["WatchdogSec"][0]) > 2 * number("APP_HEALTH_STALL_LIMIT")
    assert unit["RestartPreventExitStatus"] == [str(os.EX_CONFIG)]
    assert unit["Type"] == ["notify"]

    balancer = (project.path / "deploy/systemd/haproxy.cfg").read_text()
    lines = re.findall(r"^ *server \S+ 127\.0\.0\.1:(\d+) check port (\d+)$", balancer, flags=re.M)
    assert len(lines) > 2
    for port, admin in lines:
        env = environment(unit, port)
        assert (env["APP_HTTP_PORT"], env["APP_ADMIN_PORT"]) == (port, admin)


def commands(title: str) -> str:
    """The commands of a section of the page."""
    page = (ROOT / "docs/deploy-systemd.md").read_text()
    found = re.search(rf"^### {title}\n.*?^```sh\n(.*?)^```", page, flags=re.M | re.S)
    assert found, title
    return found[1]


def test_a_version_is_installed_as_the_page_says(
    project: Project,
    uv: Path,
    unit: dict[str, list[str]],
    tmp_path: Path,
) -> None:
    script = commands("Build") + commands("Install a version")
    for there, here in (("/opt", f"{tmp_path}/opt"), ("/usr/bin/python3", sys.executable)):
        assert there in script
        script = script.replace(there, here)
    project.run("bash", "-euc", script, PATH=f"{uv.parent}:{os.environ['PATH']}")
    program = Path(f"{tmp_path}{unit['ExecStart'][0]}")
    assert project.run(program, "check") == "ok\n"
    # It runs what was locked and built, not the working copy.
    where = project.run(
        program.parent / "python", "-c", f"import {project.package} as p; print(p.__file__, p.__cached__)"
    )
    source, compiled = map(Path, where.split())
    assert source.is_relative_to(tmp_path)
    assert compiled.is_file()


def instances(number: int) -> list[str]:
    """Find ports for instances, whose admin ports, with a 1 in front, are free as well."""
    return [str(port) for port in free_ports(number, first=2000, last=10000, also=10000)]


@pytest.fixture
def manager(
    project: Project,
    unit: dict[str, list[str]],
    tmp_path: Path,
) -> Iterator[Manager]:
    """A stand-in for systemd, with the contract's service, which has routes for trouble."""
    name = project.path.name
    drop_in = {"LoadCredential": [*unit["LoadCredential"], f"probe_password:{name}.probe_password"]}
    manager = Manager(
        {**unit, **drop_in},
        name,
        (project.python, "-m", "apps.rolling"),
        tmp_path / "systemd",
        project.path,
        {f"{name}.admin_token": "open sesame", f"{name}.probe_password": "hunter2"},
        # For a balancer that is made quicker by as much.
        {"APP_DRAIN_DELAY": "1", "APP_PROBE_NAME": "systemd", "PYTHONPATH": str(ROOT / "tests")},
    )
    try:
        yield manager
    finally:
        for each in manager.units.values():
            each.kill()


def test_systemd_hears_of_start_life_and_stop_and_hands_over_credentials(manager: Manager) -> None:
    manager.unit = {**manager.unit, "WatchdogSec": ["2"]}
    (port,) = instances(1)
    began = time.monotonic()
    assert manager.start(port, APP_PROBE_START_DELAY="0.5", APP_DRAIN_DELAY="0")
    service = manager.units[port]
    service.ready()
    ((at, _),) = (each for each in service.told if each[1] == "READY=1")
    assert at - began > 0.5, "said to be ready in the middle of the start-up"
    # The credentials directory is the stand-in's; without the required secret in it there would be no start.
    assert json.loads(service.look("/-/config"))["admin_token"]["set"]

    def beats() -> list[float]:
        return [at for at, message in service.told if message == "WATCHDOG=1"]

    count = len(beats())
    wait_for(lambda: len(beats()) >= count + 3, "the watchdog to be fed")
    gaps = [later - before for before, later in pairwise(beats())]
    assert max(gaps) < 2, "systemd would have ended it"
    assert len(gaps) < 2 * (time.monotonic() - began), "systemd is told more often than it needs"
    # A hung event loop feeds nothing, so systemd ends it: here after 2 s.
    moved = beats()[-1]
    assert service.status("/block?s=3") == 200
    wait_for(lambda: beats()[-1] > moved + 2, "the watchdog to be fed again")
    since = [moved, *(at for at in beats() if at > moved)]
    assert max(later - before for before, later in pairwise(since)) > 2

    # Credentials are copied at the start, so the unit offers no reload, and says nothing of one.
    service.signal(signal.SIGHUP)
    service.line("secrets unchanged")
    manager.stop(port)
    assert manager.ended == [0]
    assert [message for _, message in service.told if message != "WATCHDOG=1"] == ["READY=1", "STOPPING=1"]


def restart(manager: Manager, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script, with the stand-in's `systemctl`, for a balancer that is made quicker."""
    script = manager.cwd / "deploy/systemd/rolling-restart"
    program = manager.cwd / ".venv/bin" / manager.name
    with manager.on_the_path() as folder:
        given = {"PATH": f"{folder}:{os.environ['PATH']}", "PROGRAM": str(program), "SETTLE": "0.5"}
        return subprocess.run(
            (script, *arguments),
            env=clean_environment(**given | env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )


def test_instances_are_restarted_without_a_failed_request(
    manager: Manager,
    project: Project,
    tmp_path: Path,
    show: Callable[[str], None],
) -> None:
    first, second, spare, _ = slots = sorted(instances(4))
    (front,) = free_ports(1)
    places = {FRONT: front} | {old: int(new) for old, new in zip(SLOTS, slots, strict=True)}
    places |= {f"1{old}": int(f"1{new}") for old, new in zip(SLOTS, slots, strict=True)}
    for port in (first, second):
        assert manager.start(port)
    before = {port: unit.pid for port, unit in manager.units.items()}
    with BALANCERS["haproxy"].running(project, tmp_path, places):
        with Load(front, "rolling-restart").running() as load:
            done = restart(manager, spare)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(load.outcomes) > 100
        show(f"rolling restart: {len(load.outcomes)} requests, {len(load.failures)} failed")
        assert not load.failures, f"{len(load.failures)} failed, first {load.failures[0]}"
        names = [f"{manager.name}@{port}" for port in (first, second, spare)]
        assert done.stdout.splitlines() == [
            f"starting {names[2]}",
            *(f"restarting {name}.service" for name in names[:2]),
            f"stopping {names[2]}",
        ]
        assert manager.ended == [0, 0, 0]
        assert set(manager.units) == set(before)
        assert not {unit.pid for unit in manager.units.values()} & set(before.values())

        # What does not start, or is not ready, ends it before an instance that serves is touched.
        now = {port: unit.pid for port, unit in manager.units.items()}
        manager.settings |= {"APP_DRAIN_DELAY": "0", "APP_LOG_LEVEL": "loud"}
        done = restart(manager, spare)
        assert (done.returncode, manager.ended[-1]) == (1, os.EX_CONFIG)
        del manager.settings["APP_LOG_LEVEL"]
        done = restart(manager, first)
        assert (done.returncode, "is no spare one" in done.stderr) == (1, True), done.stderr
        done = restart(manager, spare, PROGRAM="/bin/false", PATIENCE="0")
        assert (done.returncode, "does not get ready" in done.stderr) == (1, True), done.stderr
        manager.stop(spare)
        assert {port: unit.pid for port, unit in manager.units.items()} == now
        assert answers(front, "/work?s=0")


def test_without_an_instance_there_is_nothing_to_restart(manager: Manager) -> None:
    manager.folder.mkdir()
    done = restart(manager)
    assert (done.returncode, f"systemctl start {manager.name}@8000" in done.stderr) == (1, True)
