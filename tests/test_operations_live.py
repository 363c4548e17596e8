"""Alerts, dashboard and runbook with a real Prometheus, real services under load, and faults put into them.

A minute of the rules is a second here (kit/prometheus.py).
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from kit.fleet import BEFORE, EXPECTED, TWICE, Fleet, Load, Parts, fired
from kit.postgres import running_postgres
from kit.project import ROOT, Project, Renders
from kit.prometheus import SHORTEST_WINDOW_S, Prometheus, running, sixty_times_faster
from kit.service import clean_environment, wait_for
from kit.tools import tool
from kit.upstream import running_upstream

pytestmark = pytest.mark.slow

OPERATIONS = ROOT / "operations"
# A machine that has no time for the services makes them late too, as it should.
OF_A_BUSY_MACHINE = {"EventLoopLate", "LatencyBudgetBurns", "LatencyBudgetBurnsFast"}
# It was late itself for this share of a window: a fifth of what the rule takes, as luck differs.
BUSY = 0.02
# It takes Prometheus some seconds to see that a target is no more, and a new process to start: minutes here.
# Until its event loop begins to beat, its admin port answers, and it looks stuck.
OF_A_CHANGED_TARGET = {"InstanceDown", "EventLoopStuck"}
WAIT_S = 180.0


def of_a_busy_machine(load: Load) -> set[str]:
    """Return the alerts that say nothing of a service, since this machine had no time for any."""
    late = load.late(SHORTEST_WINDOW_S)
    print(f"In its worst {SHORTEST_WINDOW_S} seconds, this machine was late for {late:.1%} of the time.")
    return OF_A_BUSY_MACHINE if late > BUSY else set()


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    load = Load()
    yield load
    load.end()


@pytest.fixture(scope="module")
def parts(rendered: Project, renders: Renders) -> Iterator[Parts]:
    # The answers that other tests have environments of.
    storing = renders.with_environment(database="postgresql")
    calling = renders.with_environment(tracing="opentelemetry", http_client="httpx2", deploy_to="systemd")
    with running_postgres() as postgres, running_upstream() as upstream:
        yield Parts(rendered, storing, calling, postgres, upstream)


@pytest.fixture(scope="module")
def fleet(parts: Parts, tmp_path_factory: pytest.TempPathFactory, load: Load) -> Iterator[Fleet]:
    with Fleet(parts, tmp_path_factory.mktemp("fleet"), load) as fleet:
        fleet.start()
        yield fleet


@pytest.fixture(scope="module")
def prometheus(fleet: Fleet, load: Load) -> Iterator[Prometheus]:
    """One whose rules have seen all services well, and then each with its fault."""
    rules = fleet.folder / "rules.yaml"
    text = (OPERATIONS / "rules.yaml").read_text(encoding="utf-8")
    rules.write_text(sixty_times_faster(text), encoding="utf-8")
    with running(fleet.folder, fleet.ports, rules) as prometheus:
        scraped = sum(map(len, fleet.ports.values()))
        wait_for(lambda: len(prometheus.query("up == 1")) == scraped, "all are scraped", 60, every=0.5)
        fleet.under_load()
        wait_for(
            lambda: prometheus.query('count_over_time(up{job="well"}[1m]) > 10'), "scrapes", 60, every=0.5
        )
        forgiven = of_a_busy_machine(load)
        assert {name: alerts - forgiven for name, alerts in fired(prometheus).items()} == BEFORE
        fleet.break_all()
        fleet.wear_out(prometheus)
        fleet.forget(prometheus)
        yield prometheus


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
    forgiven = of_a_busy_machine(load)
    for name in TWICE:
        seen[name] -= OF_A_CHANGED_TARGET
    assert {name: alerts - EXPECTED[name] - forgiven for name, alerts in seen.items()} == {
        name: set() for name in EXPECTED
    }


# A selector, or a metric's name that a bracket, an operator or an end follows.
SELECTOR = re.compile(r"([a-z_:][\w:]*)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
NAME = re.compile(
    r"(?<![\w:])(?:http|event|readiness|lifecycle|secrets|log|uncaught|process|template|drain|app|worker|db)_?[a-z_]*(?![\w:])"
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
            set(NAME.findall(re.sub(r"\{[^}]*\}|(?:by|on|ignoring) \([^)]*\)|\"[^\"]*\"", "", plain)))
            <= names
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
            text = target["expr"].replace("$__rate_interval", "10s").replace("$instance", ".*")
            for jobs in (".*", "well|errors|worker|stored|caller"):
                series = prometheus.query(text.replace("$job", jobs))
                assert all(re.fullmatch(jobs, one["metric"]["job"]) for one in series), text
                # Without a request there is no share of it.
                if all(one["value"][1] == "NaN" for one in series):
                    empty.append((panel["title"], text, jobs))
    assert empty == []


def test_the_preview_draws_every_panel(prometheus: Prometheus, tmp_path: Path) -> None:
    picture = tmp_path / "preview.svg"
    command = (
        sys.executable,
        OPERATIONS / "preview.py",
        prometheus.url,
        picture,
        "--minutes",
        "1",
        "--rate",
        "10s",
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    page = ElementTree.parse(picture).getroot()
    panels = page.findall("{*}g")
    assert len(panels) == 30
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


# Whose instance is asked in a section; that of the late one in all others.
ASKED = {"WorkerStuck": "worker", "WorkerFails": "worker"}
ASKED |= {"DatabasePoolUsedUp": "stored", "RetriesUsedUp": "caller"}


def test_every_command_of_the_runbook_runs_and_says_something(
    prometheus: Prometheus, fleet: Fleet, parts: Parts, tmp_path: Path
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
        "http": f"http://127.0.0.1:{late.port()}",
        "log": str(log),
        "prometheus": prometheus.url,
        "database": f"host=127.0.0.1 port={parts.postgres.port} user=tests dbname={fleet.database}",
        "PATH": f"{tool('postgres').parent}{os.pathsep}{os.environ['PATH']}",
    }
    silent = []
    assert len(commands()) > 40
    for section, command in commands():
        asked = fleet.services[ASKED.get(section, "late")]
        given["admin"] = f"http://127.0.0.1:{asked.port('admin')}"
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
