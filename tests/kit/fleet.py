"""Services of several kinds under load, each with a fault of its own, for the alerts and the dashboard."""

import contextlib
import http.client
import math
import os
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.postgres import Postgres
from kit.project import Project
from kit.prometheus import Prometheus
from kit.service import Asking, Service, free_ports, wait_for
from kit.upstream import Upstream
from kit.world import TESTS, World

# What each service has to suffer, and the alerts that must fire for it: these and no others.
EXPECTED = {
    "well": set[str](),
    "errors": {"ErrorBudgetBurnsFast", "ErrorBudgetBurns"},
    "slow": {"LatencyBudgetBurnsFast", "LatencyBudgetBurns"},
    "stuck": {"EventLoopStuck"},
    "late": {"EventLoopLate"},
    "dependency": {"ReadinessCheckFails", "ServiceNotReady", "InstanceNotReady"},
    "lamp": {"ReadinessCheckFails", "DescriptorsRunOut"},
    "troubled": {"UncaughtExceptions", "SecretsReloadFailed", "ConnectionsRefused"},
    "cut": {"DrainTooSlow"},
    "drained": set[str](),
    "killed": {"ServiceDown", "InstanceDown"},
    "worker": {"WorkerFails", "WorkerStuck", "ReadinessCheckFails"},
    "stored": {"DatabasePoolUsedUp", "ErrorBudgetBurnsFast", "ErrorBudgetBurns"},
    "caller": {"RetriesUsedUp", "ErrorBudgetBurnsFast", "ErrorBudgetBurns"},
    "old": {"TemplateOld", "LogLinesLost", "InstanceRestartsOften"},
}
# What is wrong from the beginning.
BEFORE = {name: {"TemplateOld"} if name == "old" else set[str]() for name in EXPECTED}
# Those that are no probe (tests/apps/probe.py).
OTHERS = ("worker", "stored", "caller", "old")
# These are stopped.
ENDED = ("cut", "drained")
# These have a second instance, which goes on.
TWICE = (*ENDED, "old")
# Connections that nobody uses.
MANY = 100
# The line of the chassis that says of when it is.
RELEASED = re.compile(r"(?<=^TEMPLATE_VERSION, TEMPLATE_RELEASED = ).*$", flags=re.MULTILINE)

# A machine is late when this takes longer; a service's event loop beats as often.
NAP_S = 0.1


class Load:
    """Asks services for paths over and over, and notes how late its own clock is."""

    def __init__(self) -> None:
        self._late: list[float] = []
        self._over = threading.Event()
        self._threads = [self._start(self._watch_the_machine)]

    def _start(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def _watch_the_machine(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            time.sleep(NAP_S)
            self._late.append(time.monotonic() - began - NAP_S)

    def late(self, window: float) -> float:
        """Return for which share of the time it was late, in the worst *window* of so many seconds."""
        naps = round(window / NAP_S)
        return max(sum(self._late[start : start + naps]) for start in range(len(self._late))) / window

    def ask(self, service: Service, *paths: str, port: str = "http", pause: float = 0.05) -> None:
        """Ask for *paths* in turn, from a thread of its own."""

        def work() -> None:
            while not self._over.is_set():
                for path in paths:
                    try:
                        service.ask(path, port=port)
                    # One that connects to a port of its own gets back what it sends.
                    except (OSError, http.client.HTTPException):
                        return
                    self._over.wait(pause)

        self._threads.append(self._start(work))

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)


@dataclass(frozen=True)
class Parts:
    """What the services of a fleet are made of: the default project, and others with what they talk to."""

    default: Project
    storing: Project
    calling: Project
    postgres: Postgres
    upstream: Upstream


class Fleet(contextlib.ExitStack):
    """The services by name, until the end of the block; Prometheus scrapes those in *ports*."""

    def __init__(self, parts: Parts, folder: Path, load: Load) -> None:
        super().__init__()
        self.folder, self.load, self._parts = folder, load, parts
        self.database = ""
        self.services: dict[str, Service] = {}
        self.ports: dict[str, list[int]] = {}

    def _world(self, project: Project, name: str) -> World:
        (folder := self.folder / name).mkdir()
        return self.enter_context(World(project, folder))

    def start(self) -> None:
        """Start all, one after the other: the first of a project compiles for all."""
        more: dict[str, dict[str, Any]] = {
            "cut": {"APP_DRAIN_TIMEOUT": "8"},
            "drained": {"APP_DRAIN_TIMEOUT": "8", "APP_DRAIN_DELAY": "2"},
            "stuck": {"APP_HEALTH_STALL_LIMIT": "1"},
            "troubled": {"APP_SECRETS_REFRESH": "1", "APP_HTTP_MAX_CONNECTIONS": "2"},
        }
        world = self._world(self._parts.default, "default")
        self._secrets, self._table = world.secrets(), self.folder / "table"
        self._table.mkdir()
        for name in (name for name in EXPECTED if name not in OTHERS):
            secrets = self._secrets if name == "troubled" else None
            self.services[name] = world.start("probe", secrets=secrets, **more.get(name, {})).ready()
        self.services["worker"] = world.start("working", WORK=str(self._table), FORGIVING="1").ready()
        calling, url = self._world(self._parts.calling, "calling"), self._parts.upstream.url
        self.services["caller"] = calling.start("traced.caller", UPSTREAM=url).ready()
        self.services["stored"] = self._start_stored()
        # The first request imports and connects, and is slow.
        for name, path in (("caller", "/call/it"), ("stored", "/guests/Ada")):
            self.services[name].ask(path)
        self._start_old = self._make_old(world)
        self.services["old"] = self._start_old()
        self.ports = {name: [service.port("admin")] for name, service in self.services.items()}
        for name in TWICE:
            self.ports[name].append(self.services["well"].port("admin"))

    def _start_stored(self) -> Service:
        """Start a service whose database has two connections for it, and no hurry."""
        project, postgres = self._parts.storing, self._parts.postgres
        self.database = postgres.database(f"d{time.time_ns()}")
        world = self._world(project, "storing")
        secrets = world.secrets()
        (secrets / "db_password").write_text("first")
        env: dict[str, Any] = {"APP_DB_PORT": str(postgres.port), "APP_DB_NAME": self.database}
        env |= {"APP_DB_POOL_SIZE": "2", "APP_DB_POOL_TIMEOUT": "0.3"}
        env |= {f"APP_DB_{limit}_TIMEOUT": "600" for limit in ("STATEMENT", "TRANSACTION", "LOCK")}
        project.run(project.python, "-m", project.package, "migrate", APP_SECRETS_DIR=str(secrets), **env)
        return world.start(None, secrets=secrets, **env).ready()

    def _make_old(self, world: World) -> Callable[[], Service]:
        """Return what starts a service of a release that is years old, and whose lines nobody reads."""
        project, folder = self._parts.default, self.folder / "old"
        shutil.copytree(project.path / "src", folder)
        metrics = folder / project.package / "chassis/metrics.py"
        text, found = RELEASED.subn('"0.1.0", datetime(2020, 1, 1, tzinfo=UTC)', metrics.read_text())
        assert found == 1
        metrics.write_text(text)
        pipe = folder / "lines"
        os.mkfifo(pipe)
        # Open at both ends, so that it has a reader, which does not read.
        self.callback(os.close, os.open(pipe, os.O_RDWR))
        ports = dict(zip(("http", "admin"), free_ports(2), strict=True))
        unread, path = ("sh", "-c", 'exec "$@" > "$0"', pipe), f"{folder}:{TESTS}"
        return lambda: world.start("probe", prefix=unread, ports=ports, PYTHONPATH=path).answering()

    def under_load(self) -> None:
        for name in ("well", "errors", "cut", "drained"):
            self.load.ask(self.services[name], "/trouble/none", "/address/me")
        for _ in range(3):
            self.load.ask(self.services["slow"], "/slow?s=0.7", "/trouble/none")
        self.load.ask(self.services["stored"], "/guests/Ada", pause=0.1)
        self.load.ask(self.services["caller"], "/call/it", pause=0.1)
        for service in self.services.values():
            self.load.ask(service, "/-/ready", port="admin", pause=1)

    def break_all(self) -> None:
        """Put each fault into its service."""
        at = self.services
        self.load.ask(at["errors"], "/trouble/exception")
        self.load.ask(at["late"], "/block?s=0.3", pause=0.15)
        self.load.ask(at["late"], "/trouble/none")
        Asking(at["stuck"], "/block?s=600", limit=600.0)
        at["dependency"].ask("/gate/gate?mode=shut")
        at["lamp"].ask("/gate/lamp?mode=shut")
        self._take_descriptors(at["lamp"])
        at["troubled"].ask("/trouble/task")
        (self._secrets / "probe_password").write_text("")
        self._crowd(at["troubled"], 4)
        at["killed"].kill()
        # Three that fail in a row, and one that is never done.
        for item in ("1-poison", "2-poison", "3-poison", "4-bone"):
            (self._table / item).touch()
        self._parts.upstream.mode = "fail"
        self._use_up_the_pool(at["stored"])
        Asking(at["cut"], "/slow?s=300")
        wait_for(lambda: at["cut"].lines("slow begins"), "a long request")
        for name in ENDED:
            at[name].signal(signal.SIGTERM)

    def _crowd(self, service: Service, number: int) -> None:
        """Keep so many connections to a service open."""
        for _ in range(number):
            self.enter_context(service.dial())

    def _take_descriptors(self, service: Service) -> None:
        """Open connections to a service, and let it open hardly more."""
        before = service.series()["process_open_fds"]
        self._crowd(service, MANY)
        # Those that it has not accepted yet would take what is left for scrapes.
        wait_for(lambda: service.series()["process_open_fds"] > before + MANY - 5, "connections", every=0.1)
        most = math.ceil((before + MANY) / 0.87)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (most, most))

    def _use_up_the_pool(self, service: Service) -> None:
        """Let two transactions wait for a lock, each with a connection."""
        self.enter_context(self._parts.postgres.locked("guests", self.database, "exclusive"))
        for _ in range(2):
            Asking(
                service,
                "/greetings",
                method="POST",
                headers={"Content-Type": "application/json"},
                body='{"name": "Ada"}',
                limit=600.0,
            )

    def wear_out(self, prometheus: Prometheus) -> None:
        """Restart the old service until Prometheus has seen three starts, and let it lose lines then."""
        started = 'process_start_time_seconds{job="old"}'

        def starts() -> set[str]:
            return {str(one["value"][1]) for one in prometheus.query(started)}

        def restart() -> None:
            before = starts()
            self.services["old"].kill()
            self.services["old"] = self._start_old()
            wait_for(lambda: starts() - before, "a scrape of the new process", every=0.2)

        # What comes too slowly, on a busy machine, is not often: an hour is a minute here.
        for _ in range(20):
            restart()
            if prometheus.query(f"changes({started}[1m]) >= 3"):
                break
        # Lines of 50,000 bytes soon fill what a service keeps for a reader that comes back.
        self.load.ask(self.services["old"], f"/address/{'x' * 50_000}", pause=0.1)

    def forget(self, prometheus: Prometheus) -> None:
        """Do what an orchestrator does: who has ended is no target any more."""
        for name in ENDED:
            self.services[name].wait(60)
            del self.ports[name][0]
        prometheus.scrape(self.ports)


def fired(prometheus: Prometheus) -> dict[str, set[str]]:
    """Return all alerts that have fired so far, by job."""
    seen: dict[str, set[str]] = {name: set() for name in EXPECTED}
    for one in prometheus.query(
        'group by (job, alertname) (last_over_time(ALERTS{alertstate="firing"}[1h]))'
    ):
        seen[one["metric"]["job"]].add(one["metric"]["alertname"])
    return seen
