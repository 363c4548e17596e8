"""Alerts, dashboard and runbook with a real Prometheus, real services under load, and faults put into them.

A minute of the rules is a second here (kit/prometheus.py).
"""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from kit.project import ROOT, Project
from kit.prometheus import Prometheus, running, sixty_times_faster
from kit.service import Asking, Service, clean_environment, wait_for
from kit.tools import tool
from kit.world import World

pytestmark = pytest.mark.slow

OPERATIONS = ROOT / "operations"
# What each service has to suffer, and the alerts that must fire for it: these and no others.
EXPECTED = {
    "well": set[str](),
    "errors": {"ErrorBudgetBurnsFast", "ErrorBudgetBurns"},
    "slow": {"LatencyBudgetBurnsFast", "LatencyBudgetBurns"},
    "stuck": {"EventLoopStuck"},
    "late": {"EventLoopLate"},
    "dependency": {"ReadinessCheckFails", "ServiceNotReady", "InstanceNotReady"},
    "lamp": {"ReadinessCheckFails"},
    "troubled": {"UncaughtExceptions", "SecretsReloadFailed", "ConnectionsRefused"},
    "cut": {"DrainTooSlow"},
    "drained": set[str](),
    "killed": {"ServiceDown", "InstanceDown"},
}
# A machine that has no time for the services makes them late too, as it should.
OF_A_BUSY_MACHINE = {"EventLoopLate", "LatencyBudgetBurns", "LatencyBudgetBurnsFast"}
BUSY_S = 0.02
# It takes Prometheus some seconds to see that a target is no more, and these are minutes here.
OF_A_FORGOTTEN_TARGET = {"InstanceDown"}
WAIT_S = 180.0


class Load:
    """Asks services for paths over and over, and notes how late its own clock is."""

    def __init__(self) -> None:
        self.late: list[float] = []
        self._over = threading.Event()
        self._threads = [self._start(self._watch_the_machine)]

    def _start(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def _watch_the_machine(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            time.sleep(0.1)
            self.late.append(time.monotonic() - began - 0.1)

    def ask(self, service: Service, *paths: str, port: str = "http", pause: float = 0.05) -> None:
        """Ask for *paths* in turn, from a thread of its own."""

        def work() -> None:
            while not self._over.is_set():
                for path in paths:
                    try:
                        service.ask(path, port=port)
                    except OSError:
                        return
                    self._over.wait(pause)

        self._threads.append(self._start(work))

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)


class Fleet:
    """The services by name, all of one world, and the Prometheus that scrapes them."""

    def __init__(self, world: World, folder: Path, load: Load) -> None:
        self.world, self.folder, self.load = world, folder, load
        more: dict[str, dict[str, Any]] = {
            "cut": {"APP_DRAIN_TIMEOUT": "8"},
            "drained": {"APP_DRAIN_TIMEOUT": "8", "APP_DRAIN_DELAY": "2"},
            "stuck": {"APP_HEALTH_STALL_LIMIT": "1"},
            "troubled": {"APP_SECRETS_REFRESH": "1", "APP_HTTP_MAX_CONNECTIONS": "2"},
        }
        self.secrets = world.secrets()
        self.services: dict[str, Service] = {}
        for name in EXPECTED:
            # One after the other: the first one compiles for all.
            secrets = self.secrets if name == "troubled" else None
            self.services[name] = world.start("probe", secrets=secrets, **more.get(name, {})).ready()
        self.ports = {name: [service.port("admin")] for name, service in self.services.items()}
        # These have a second instance, which goes on.
        for name in ("cut", "drained"):
            self.ports[name].append(self.services["well"].port("admin"))

    def under_load(self) -> None:
        for name in ("well", "errors", "cut", "drained"):
            self.load.ask(self.services[name], "/trouble/none", "/address/me")
        for _ in range(3):
            self.load.ask(self.services["slow"], "/slow?s=0.7", "/trouble/none")
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
        at["troubled"].ask("/trouble/task")
        (self.secrets / "probe_password").write_text("")
        at["killed"].kill()
        Asking(at["cut"], "/slow?s=300")
        wait_for(lambda: at["cut"].lines("slow begins"), "a long request")
        for name in ("cut", "drained"):
            at[name].signal(signal.SIGTERM)

    def forget(self, prometheus: Prometheus, *names: str) -> None:
        """Do what an orchestrator does: who has ended is no target any more."""
        for name in names:
            self.services[name].wait(60)
            del self.ports[name][0]
        prometheus.scrape(self.ports)


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    load = Load()
    yield load
    load.end()


@pytest.fixture(scope="module")
def fleet(rendered: Project, tmp_path_factory: pytest.TempPathFactory, load: Load) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "services").mkdir()
    with World(rendered, folder / "services") as world:
        yield Fleet(world, folder, load)


@pytest.fixture(scope="module")
def prometheus(fleet: Fleet) -> Iterator[Prometheus]:
    """One whose rules have seen all services well, and then each with its fault."""
    rules = fleet.folder / "rules.yaml"
    text = (OPERATIONS / "rules.yaml").read_text(encoding="utf-8")
    rules.write_text(sixty_times_faster(text), encoding="utf-8")
    with running(fleet.folder, fleet.ports, rules) as prometheus:
        wait_for(
            lambda: len(prometheus.query("up == 1")) == len(EXPECTED) + 2, "all are scraped", 60, every=0.5
        )
        fleet.under_load()
        wait_for(
            lambda: prometheus.query('count_over_time(up{job="well"}[1m]) > 10'), "scrapes", 60, every=0.5
        )
        assert fired(prometheus) == {name: set() for name in EXPECTED}, "before there was a fault"
        fleet.break_all()
        with crowd(fleet.services["troubled"]):
            fleet.forget(prometheus, "drained", "cut")
        yield prometheus


class crowd:
    """More connections to a service than it takes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._connections: list[socket.socket] = []

    def __enter__(self) -> None:
        self._connections = [self._service.dial() for _ in range(4)]

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()


def fired(prometheus: Prometheus) -> dict[str, set[str]]:
    """Return all alerts that have fired so far, by job."""
    seen: dict[str, set[str]] = {name: set() for name in EXPECTED}
    for one in prometheus.query(
        'group by (job, alertname) (last_over_time(ALERTS{alertstate="firing"}[1h]))'
    ):
        seen[one["metric"]["job"]].add(one["metric"]["alertname"])
    return seen


def test_each_fault_fires_its_alerts_and_no_others(
    prometheus: Prometheus, load: Load, show: Callable[[str], None]
) -> None:
    def all_fired() -> bool:
        seen = fired(prometheus)
        return all(seen[name] >= alerts for name, alerts in EXPECTED.items())

    try:
        wait_for(all_fired, "", WAIT_S, every=0.5)
    finally:
        print("fired", fired(prometheus))
    seen = fired(prometheus)
    show(f"{sum(map(len, seen.values()))} alerts of {len(seen)} services have fired")
    late = sorted(load.late)[-len(load.late) // 10]
    forgiven = OF_A_BUSY_MACHINE if late > BUSY_S else set()
    for name in ("cut", "drained"):
        seen[name] -= OF_A_FORGOTTEN_TARGET
    assert {name: alerts - EXPECTED[name] - forgiven for name, alerts in seen.items()} == {
        name: set() for name in EXPECTED
    }, f"a tenth of the naps here was late by {late:.3f} s"


# A selector, or a metric's name that a bracket, an operator or an end follows.
SELECTOR = re.compile(r"([a-z_:][\w:]*)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
NAME = re.compile(
    r"(?<![\w:])(?:http|event|readiness|lifecycle|secrets|log|uncaught|process|template|drain|app)_?[a-z_]*(?![\w:])"
)


def expressions() -> Iterator[str]:
    """Yield all expressions of the rules and of the dashboard."""
    text = (OPERATIONS / "rules.yaml").read_text(encoding="utf-8")
    for group in yaml.safe_load(text)["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for panel in json.loads((OPERATIONS / "dashboard.json").read_text(encoding="utf-8"))["panels"]:
        yield from (target["expr"] for target in panel.get("targets", ()))


def selects(selector: tuple[str, str], series: dict[str, str]) -> bool:
    name, matchers = selector
    if series["__name__"] != name:
        return False
    for label, operator, value in MATCHER.findall(matchers):
        matches = (
            re.fullmatch(value, series.get(label, "")) if "~" in operator else series.get(label, "") == value
        )
        if bool(matches) == operator.startswith("!"):
            return False
    return True


def test_rules_and_dashboard_name_nothing_that_the_services_do_not_have(prometheus: Prometheus) -> None:
    """Names of metrics and labels, bounds of buckets, reasons, states: each selector finds a series."""
    known: list[dict[str, str]] = prometheus.api("series?match[]={job!=%22%22}")
    names = {series["__name__"] for series in known}
    selectors = set[tuple[str, str]]()
    for text in expressions():
        plain = text.replace("$job", ".*").replace("$instance", ".*")
        selectors |= set(SELECTOR.findall(plain))
        assert (
            set(NAME.findall(re.sub(r"\{[^}]*\}|by \([^)]*\)|on \([^)]*\)|\"[^\"]*\"", "", plain))) <= names
        ), text
    assert len(selectors) > 20
    bounds = {
        float(series["le"]) for series in known if series["__name__"].endswith("duration_seconds_bucket")
    }
    page = " ".join((ROOT / "docs/operations.md").read_text(encoding="utf-8").split())
    [listed] = re.findall(r"must be a bound of the histogram: ([\d., or]+)\.", page)
    assert {float(bound) for bound in re.findall(r"[\d.]+", listed)} == bounds - {float("inf")}
    assert not [one for one in selectors if not any(selects(one, series) for series in known)]


def test_every_query_of_the_dashboard_has_data(prometheus: Prometheus) -> None:
    empty = []
    for panel in json.loads((OPERATIONS / "dashboard.json").read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "10s")
            for jobs in (".*", "well|errors"):
                series = prometheus.query(text.replace("$job", jobs).replace("$instance", ".*"))
                if not series or any(one["value"][1] == "NaN" for one in series if jobs != ".*"):
                    empty.append((panel["title"], text))
    assert empty == []


def test_the_preview_draws_every_panel(prometheus: Prometheus, tmp_path: Path) -> None:
    picture = tmp_path / "preview.svg"
    command = (
        sys.executable,
        OPERATIONS / "preview.py",
        prometheus.url,
        picture,
        "--minutes",
        "2",
        "--rate",
        "10s",
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    page = ElementTree.parse(picture).getroot()
    panels = page.findall("{*}g")
    assert len(panels) == 20
    for panel in panels:
        texts = [text.text for text in panel.findall("{*}text")]
        lines = [line.get("points") for line in panel.findall("{*}polyline")]
        assert any(lines) or len(texts) > 1, texts


def commands() -> list[tuple[str, str]]:
    """Return what the runbook tells people to type, with the section."""
    text = (OPERATIONS / "runbook.md").read_text(encoding="utf-8")
    found, section = list[tuple[str, str]](), ""
    for heading, block in re.findall(r"^## ([^\n]+)$|^```sh\n(.*?)^```$", text, flags=re.M | re.S):
        section = heading or section
        found += [(section, line) for line in block.splitlines()]
    return found


def test_every_command_of_the_runbook_runs_and_says_something(
    prometheus: Prometheus, fleet: Fleet, tmp_path: Path
) -> None:
    tool("jq")
    late = fleet.services["late"]
    wait_for(lambda: json.loads(late.look("/-/stalls")), "a stall")
    # Somebody has asked for more lines.
    body, kind = json.dumps({"level": "debug"}), {"Content-Type": "application/json"}
    assert late.ask("/-/log-level", port="admin", method="PUT", headers=kind, body=body).status == 200
    log = tmp_path / "log.json"
    log.write_text("".join(service.out.read_text() for service in fleet.services.values()))
    given = {
        "admin": f"http://127.0.0.1:{late.port('admin')}",
        "http": f"http://127.0.0.1:{late.port()}",
        "log": str(log),
        "prometheus": prometheus.url,
    }
    silent = []
    assert len(commands()) > 30
    for section, command in commands():
        done = subprocess.run(
            ("bash", "-euo", "pipefail", "-c", command),
            cwd=tmp_path,
            env=clean_environment(**given),
            capture_output=True,
            text=True,
            timeout=60,
        )
        # A `head` that has seen enough ends the program before it (SIGPIPE).
        if done.returncode not in (0, 128 + signal.SIGPIPE, 23) or not done.stdout.strip() or done.stderr:
            silent.append((section, command, done.returncode, done.stdout, done.stderr))
    assert silent == []
