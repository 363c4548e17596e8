"""The unit, by systemd's own tools; the service under a stand-in for systemd; the script that restarts.

No unit is started: this needs systemd as the first process. The stand-in reads the unit and does what its
lines say: the environment, credentials, and what Type=notify means.
"""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import ROOT, Project, clean_environment, tool
from load import Load
from service import Service, wait_for
from test_rolling_restart import APP, BALANCERS, ask, free_ports, project  # noqa: F401

pytestmark = pytest.mark.slow

EXPOSURE = 1.5
MARGIN = 2
# What `systemctl` is here: it asks the stand-in, and tells what it was told.
SYSTEMCTL = """
import json, socket, sys

with socket.socket(socket.AF_UNIX) as sock:
    sock.connect({address!r})
    with sock.makefile("rw") as file:
        print(json.dumps(sys.argv[1:]), file=file, flush=True)
        answer = json.loads(file.readline())
print(answer["said"], end="")
sys.exit(answer["status"])
"""


def read_unit(text: str) -> dict[str, list[str]]:
    """Return what each directive says, in order; enough of the format for the units here."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", text, flags=re.M):
        found.setdefault(name, []).append(value)
    return found


@pytest.fixture(scope="module")
def unit_file(project: Project) -> Path:  # noqa: F811
    (found,) = (project.path / "deploy/systemd").glob("*@.service")
    return found


@pytest.fixture(scope="module")
def unit(unit_file: Path) -> dict[str, list[str]]:
    return read_unit(unit_file.read_text())


def environment(unit: Mapping[str, list[str]], instance: str) -> dict[str, str]:
    words = " ".join(unit["Environment"]).replace("%i", instance).split()
    return dict(word.split("=", 1) for word in words)


@pytest.fixture
def installed(project: Project, unit_file: Path, tmp_path: Path) -> Path:  # noqa: F811
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


def test_the_unit_is_hardly_exposed(installed: Path, record_property: Callable[[str, object], None]) -> None:
    status, said = analyze("security", installed, "--offline=true", f"--threshold={EXPOSURE * 10:.0f}")
    level = re.search(r"exposure level for \S+: ([\d.]+)", said)
    assert level, said
    record_property("shown", f"exposure of the unit: {level[1]}")
    assert (status, float(level[1]) <= EXPOSURE) == (0, True), said
    installed.write_text(installed.read_text().replace("PrivateUsers=yes\n", "").replace("DynamicUser", "X-"))
    assert analyze("security", installed, "--offline=true", f"--threshold={EXPOSURE * 10:.0f}")[0] != 0


def test_every_name_and_time_is_one_of_the_config_classes(
    project: Project,  # noqa: F811
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
    project: Project,  # noqa: F811
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


class Unit(Service):
    """An instance, with the socket that it notifies, and when it said what."""

    def __init__(self, command: tuple[str | Path, ...], folder: Path, cwd: Path, **env: str) -> None:
        self.told: list[tuple[float, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        super().__init__(command, folder, cwd, NOTIFY_SOCKET=str(folder / "notify"), **env)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._socket.recv(4096):
                self.told.append((time.monotonic(), message.decode()))

    def said(self, message: str) -> bool:
        return message in [each for _, each in self.told]

    def is_up(self) -> bool:
        return self.process.poll() is None

    def stop(self, limit: float) -> int:
        """Stop it as systemd does; return the exit status."""
        if self.is_up():
            self.process.terminate()
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self._socket.close()


@dataclass
class Manager:
    """Does what systemd would with the instances of the unit, as far as the unit says so."""

    unit: Mapping[str, list[str]]
    name: str
    command: tuple[str | Path, ...]
    folder: Path
    cwd: Path
    # The folder /etc/credstore, and the file /etc/NAME.env.
    credentials: Mapping[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    units: dict[str, Unit] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    _count: int = 0

    def start(self, instance: str, **env: str) -> bool:
        """Start an instance and wait until it says that it is ready; False when it ends or takes too long."""
        self._count += 1
        folder = self.folder / f"run{self._count}"
        (folder / "credentials").mkdir(parents=True)
        for line in self.unit["LoadCredential"]:
            name, source = line.split(":")
            if source in self.credentials:
                (folder / "credentials" / name).write_text(self.credentials[source])
                (folder / "credentials" / name).chmod(0o400)
        given = {
            "CREDENTIALS_DIRECTORY": str(folder / "credentials"),
            "WATCHDOG_USEC": f"{float(self.unit['WatchdogSec'][0]) * 1e6:.0f}",
        }
        given |= environment(self.unit, instance) | self.settings | env
        unit = self.units[instance] = Unit(self.command, folder, self.cwd, **given)
        deadline = time.monotonic() + float(self.unit["TimeoutStartSec"][0])
        while unit.is_up() and not unit.said("READY=1") and time.monotonic() < deadline:
            time.sleep(0.01)
        if unit.said("READY=1"):
            return True
        self.stop(instance)
        return False

    def stop(self, instance: str) -> None:
        self.ended.append(self.units.pop(instance).stop(float(self.unit["TimeoutStopSec"][0])))

    def systemctl(self, verb: str, *arguments: str) -> tuple[int, str]:
        """Obey as far as the script asks; return the status and what to print."""
        *_, what = arguments
        found = re.fullmatch(rf"{self.name}@(\d+|\*)\.service", what)
        assert found, arguments
        instance = found[1]
        match verb:
            case "list-units":
                up = [each for each, unit in self.units.items() if unit.is_up()]
                return 0, "".join(
                    f"{self.name}@{each}.service loaded active running a unit\n" for each in sorted(up)
                )
            case "is-active":
                return (0 if instance in self.units else 3), ""
            case "start" | "restart":
                if instance in self.units:
                    self.stop(instance)
                return (0 if self.start(instance) else 1), ""
            case "stop":
                self.stop(instance)
                return 0, ""
        raise AssertionError(verb)

    @contextlib.contextmanager
    def on_the_path(self) -> Iterator[Path]:
        """A folder with a program `systemctl` that asks this manager."""
        address = str(self.folder / "manager")
        script = self.folder / "bin" / "systemctl"
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!{sys.executable} -IS{SYSTEMCTL.format(address=address)}")
        script.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
            thread.start()
            yield script.parent
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(address)
            thread.join(10)
        Path(address).unlink()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            with listener.accept()[0] as connection, connection.makefile("rw") as file:
                if not (line := file.readline()):
                    return
                status, said = self.systemctl(*json.loads(line))
                print(json.dumps({"status": status, "said": said}), file=file, flush=True)


def ports(number: int) -> list[str]:
    """Find ports for instances, whose admin ports, with a 1 in front, are free as well."""
    free: list[str] = []
    for port in random.sample(range(2000, 10000), 500):
        with (
            contextlib.suppress(OSError),
            socket.create_server(("127.0.0.1", port)),
            socket.create_server(("127.0.0.1", 10000 + port)),
        ):
            free.append(str(port))
        if len(free) == number:
            return free
    pytest.fail("no free ports")


@pytest.fixture
def manager(
    project: Project,  # noqa: F811
    unit: dict[str, list[str]],
    tmp_path: Path,
) -> Iterator[Manager]:
    """A stand-in for systemd, with the contract's service, which has routes for trouble."""
    (tmp_path / "app.py").write_text(APP)
    name = project.path.name
    drop_in = {"LoadCredential": [*unit["LoadCredential"], f"probe_password:{name}.probe_password"]}
    manager = Manager(
        {**unit, **drop_in},
        name,
        (project.path / ".venv/bin/python", tmp_path / "app.py"),
        tmp_path / "systemd",
        project.path,
        {f"{name}.admin_token": "open sesame", f"{name}.probe_password": "hunter2"},
        # For a balancer that is made quicker by as much.
        {"APP_DRAIN_DELAY": "1", "APP_PROBE_NAME": "systemd", "PYTHONPATH": str(project.path)},
    )
    try:
        yield manager
    finally:
        for each in manager.units.values():
            each.process.kill()
            each.process.wait()


def test_systemd_hears_of_start_life_and_stop_and_hands_over_credentials(manager: Manager) -> None:
    manager.unit = {**manager.unit, "WatchdogSec": ["2"]}
    (port,) = ports(1)
    began = time.monotonic()
    assert manager.start(port, APP_PROBE_START_DELAY="0.5", APP_DRAIN_DELAY="0")
    service = manager.units[port]
    service.started()
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
    assert service.ask(service.http, "/block?s=3")[0] == 200
    wait_for(lambda: beats()[-1] > moved + 2, "the watchdog to be fed again")
    since = [moved, *(at for at in beats() if at > moved)]
    assert max(later - before for before, later in pairwise(since)) > 2

    # Credentials are copied at the start, so the unit offers no reload, and says nothing of one.
    service.process.send_signal(signal.SIGHUP)
    wait_for(lambda: service.lines("secrets are unchanged"), "the answer to SIGHUP")
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
    project: Project,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first, second, spare, _ = slots = sorted(ports(4))
    (front,) = free_ports(1)
    usual = ("8000", "8010", "8020", "8030")
    places = {"8080": front} | {old: int(new) for old, new in zip(usual, slots, strict=True)}
    places |= {f"1{old}": int(f"1{new}") for old, new in zip(usual, slots, strict=True)}
    for port in (first, second):
        assert manager.start(port)
    before = {port: unit.process.pid for port, unit in manager.units.items()}
    with BALANCERS["haproxy"].running(project, tmp_path, places):
        with Load(front, "rolling-restart").running() as load:
            done = restart(manager, spare)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(load.outcomes) > 100
        with capfd.disabled():
            print(f"\nrolling restart: {len(load.outcomes)} requests, {len(load.failures)} failed", end="")
        assert not load.failures, f"{len(load.failures)} failed, first {load.failures[0]}"
        names = [f"{manager.name}@{port}" for port in (first, second, spare)]
        assert done.stdout.splitlines() == [
            f"starting {names[2]}",
            *(f"restarting {name}.service" for name in names[:2]),
            f"stopping {names[2]}",
        ]
        assert manager.ended == [0, 0, 0]
        assert set(manager.units) == set(before)
        assert not {unit.process.pid for unit in manager.units.values()} & set(before.values())

        # What does not start, or is not ready, ends it before an instance that serves is touched.
        now = {port: unit.process.pid for port, unit in manager.units.items()}
        manager.settings |= {"APP_DRAIN_DELAY": "0", "APP_LOG_LEVEL": "loud"}
        done = restart(manager, spare)
        assert (done.returncode, manager.ended[-1]) == (1, os.EX_CONFIG)
        del manager.settings["APP_LOG_LEVEL"]
        done = restart(manager, first)
        assert (done.returncode, "is no spare one" in done.stderr) == (1, True), done.stderr
        done = restart(manager, spare, PROGRAM="/bin/false", PATIENCE="0")
        assert (done.returncode, "does not get ready" in done.stderr) == (1, True), done.stderr
        manager.stop(spare)
        assert {port: unit.process.pid for port, unit in manager.units.items()} == now
        assert ask(front, "/work?s=0")[0] == 200


def test_without_an_instance_there_is_nothing_to_restart(manager: Manager) -> None:
    manager.folder.mkdir()
    done = restart(manager)
    assert (done.returncode, f"systemctl start {manager.name}@8000" in done.stderr) == (1, True)
