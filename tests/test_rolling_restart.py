"""Contract, section 7: no request is lost: instances come, go, hang and die behind real balancers."""

import contextlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from kit.balancers import BALANCERS, FRONT, SLOTS, Balancer
from kit.load import ROWS, Load
from kit.project import ROOT, Project, Renders
from kit.service import Service, ask, clean_environment, free_ports, wait_for

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("ROLLING_ROUNDS", "1"))
# Seconds; the balancers are made quicker to fit it, by the rule that stands in their files.
DELAY = "2"


@pytest.fixture(scope="module")
def project(renders: Renders) -> Project:
    """The service for systemd, whose files have HAProxy's configuration."""
    return renders.for_chassis(deploy_to="systemd")


class Instance(Service):
    def handled(self) -> list[str]:
        """The ids of the requests that this instance began to handle."""
        return [line["request_id"] for line in self.lines("handled")]


@dataclass
class Site:
    """Three instances on four slots, and a balancer before them."""

    name: str
    balancer: Balancer
    project: Project
    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    slots: dict[str, Instance] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    repeated: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        admin = [f"1{slot}" for slot in SLOTS]
        self.ports = dict(zip((FRONT, *SLOTS, *admin), free_ports(9), strict=True))
        (self.folder / "secrets").mkdir()
        (self.folder / "secrets" / "probe_password").write_text("hunter2")

    def start(self, **env: str) -> str:
        """Start an instance on the free slot; return the slot."""
        slot = next(slot for slot in SLOTS if slot not in self.slots)
        folder = self.folder / f"instance{len(self.instances)}"
        folder.mkdir()
        settings = {
            "APP_HTTP_PORT": str(self.ports[slot]),
            "APP_ADMIN_PORT": str(self.ports[f"1{slot}"]),
            "APP_SECRETS_DIR": str(self.folder / "secrets"),
            "APP_DRAIN_DELAY": DELAY,
            "APP_PROBE_NAME": "rolling",
            "PYTHONPATH": str(ROOT / "tests"),
            **env,
        }
        command = (self.project.python, "-m", "apps.rolling")
        self.slots[slot] = Instance(command, folder, clean_environment(**settings), self.project.path)
        self.instances.append(self.slots[slot])
        return slot

    def stop(self, slot: str) -> int:
        """Stop the instance on *slot* as a service manager does; return its exit status."""
        status = self.slots[slot].stop()
        del self.slots[slot]
        return status

    def replace(self, **env: str) -> int:
        """Put a new instance in the place of the oldest; return the exit status of that one."""
        oldest = next(iter(self.slots))
        self.slots[self.start(**env)].ready()
        return self.stop(oldest)

    @contextlib.contextmanager
    def load(self, event: str) -> Iterator[Load]:
        """Put the balancer under load; say afterwards what came of it."""
        load = Load(self.ports[FRONT], re.sub(r"\W+", "-", f"{self.name} {event}"))
        try:
            with load.running():
                yield load
        finally:
            handled = Counter(name for instance in self.instances for name in instance.handled())
            self.repeated = {
                outcome.id: outcome.method for outcome in load.outcomes if handled[outcome.id] > 1
            }
            ROWS.append(
                f"| {self.name} | {event} | {len(load.outcomes)} | {len(load.failures)} |"
                f" {len(self.repeated)} | {load.p99():.0f} ms |"
            )

    def no_request_lost(self, load: Load) -> None:
        assert not load.failures, f"{len(load.failures)} failed, first {load.failures[0]}"
        assert not self.repeated, f"repeated: {self.repeated}"


@pytest.fixture(scope="module", params=BALANCERS)
def site(
    request: pytest.FixtureRequest, project: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp(request.param)
    site = Site(request.param, BALANCERS[request.param], project, folder)
    try:
        for slot in [site.start() for _ in range(3)]:
            site.slots[slot].ready()
        with site.balancer.running(project, site.folder, site.ports):
            yield site
    finally:
        for instance in site.slots.values():
            instance.kill()


def test_nothing_happens(site: Site) -> None:
    with site.load("none") as load:
        time.sleep(2)
    site.no_request_lost(load)


def test_every_instance_is_replaced(site: Site) -> None:
    with site.load(f"{ROUNDS} rounds of replacing all three") as load:
        for _ in range(ROUNDS * 3):
            assert site.replace() == 0
    site.no_request_lost(load)


def test_an_instance_is_not_ready_for_five_seconds(site: Site) -> None:
    with site.load("not ready for 5 s") as load:
        late = site.slots[site.start(APP_PROBE_START_DELAY="5")]
        late.ready()
        wait_for(late.handled, "a request to the instance that became ready")
        site.stop(next(iter(site.slots)))
    site.no_request_lost(load)


def test_an_instance_is_stuck(site: Site) -> None:
    """It leaves the rotation, where readiness is asked for, and comes back."""
    instance = next(iter(site.slots.values()))
    with site.load("event loop stuck for 5 s") as load:
        time.sleep(0.5)
        began = time.monotonic()
        instance.ask("/block?s=5")
        ended = time.monotonic()
        before = len(instance.handled())
        wait_for(lambda: len(instance.handled()) > before + 50, "requests after the instance moved again")
    site.no_request_lost(load)
    # On a busy machine others are slow, too.
    held = set(instance.handled())
    caught = [
        outcome
        for outcome in load.outcomes
        if outcome.id in held and began + 2.5 < outcome.began < ended and outcome.overhead > 1
    ]
    assert not (site.balancer.asks and caught), f"sent to the stuck instance: {caught}"


def test_an_instance_is_killed(site: Site) -> None:
    """Only what was in flight on it may fail, and of that only what must not be repeated."""
    slot, instance = next(iter(site.slots.items()))
    with site.load("kill -9") as load:
        time.sleep(1.5)
        instance.popen.kill()
        killed = time.monotonic()
        instance.wait()
        del site.slots[slot]
        time.sleep(1)
        site.slots[site.start()].ready()
        time.sleep(1)
    # A balancer may hear of the end later, on a busy machine much later, and have sent more by then.
    lost = [outcome for outcome in load.failures if outcome.began > killed + 1]
    assert not lost, f"failed though the instance was gone: {lost}"
    assert {outcome.method for outcome in load.failures} <= {"POST"}, load.failures
    assert "POST" not in site.repeated.values(), f"repeated: {site.repeated}"


FORGED = {
    "X-Forwarded-For": "192.0.2.66, 127.0.0.1",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "Forwarded": "for=192.0.2.66;proto=https;host=evil.example",
}


def seen(site: Site, port: int) -> tuple[str, list[str]]:
    """Ask with forged headers, from an address that is no proxy's; return what service and log say."""
    name = f"/address/{port}"
    answer = ask(port, name, source="127.0.0.9", headers={"Host": "service.test", **FORGED})
    assert answer.status == 200

    def clients() -> list[str]:
        lines = [line for instance in site.slots.values() for line in instance.lines("request")]
        return [line["client"] for line in lines if line["path"] == name]

    return answer.text, wait_for(clients, "the request's line")


def test_forged_headers_change_nothing(site: Site) -> None:
    assert seen(site, site.ports[FRONT]) == ("http 127.0.0.9 service.test", ["127.0.0.9"])


@pytest.mark.parametrize("site", ["haproxy"], indirect=True)
def test_the_client_is_known_through_a_chain_of_two_proxies(
    site: Site, project: Project, tmp_path: Path
) -> None:
    front, *unused = free_ports(4)
    ports = {FRONT: front, "8000": site.ports[FRONT], **dict(zip(SLOTS[1:], unused, strict=True))}
    with BALANCERS["nginx"].running(project, tmp_path, ports):
        assert seen(site, front) == ("http 127.0.0.9 service.test", ["127.0.0.9"])


@pytest.mark.parametrize("site", ["envoy"], indirect=True)
def test_envoy_obeys_what_a_draining_instance_says(site: Site, project: Project, tmp_path: Path) -> None:
    """By its checks alone, once a minute, it would hear of it much too late."""
    rare = replace(site.balancer, quicker={"interval: 1s": "interval: 60s"})
    ports = site.ports | {FRONT: free_ports(1)[0]}
    slot, instance = next(iter(site.slots.items()))
    with rare.running(project, tmp_path, ports), Load(ports[FRONT], "obeys").running() as load:
        first = len(instance.handled())
        wait_for(lambda: len(instance.handled()) > first + 20, "requests")
        instance.signal(signal.SIGTERM)
        time.sleep(0.4)
        before = len(instance.handled())
        assert instance.wait(30) == 0
        del site.slots[slot]
        assert len(instance.handled()) == before
    assert not load.failures
    site.slots[site.start()].ready()


def test_without_the_drain_requests_are_lost(site: Site) -> None:
    """The test of these tests: they see what goes wrong."""
    slot = site.start(APP_DRAIN_DELAY="0", APP_DRAIN_TIMEOUT="0")
    site.slots[slot].ready()
    with site.load("one stopped, the drain switched off") as load:
        wait_for(lambda: len(site.slots[slot].handled()) > 50, "requests to the one that has no drain")
        site.stop(slot)
        time.sleep(1)
    with pytest.raises(AssertionError):
        site.no_request_lost(load)
    cut = {
        outcome.failure for outcome in load.failures if "The service is stopping" in (outcome.failure or "")
    }
    assert cut, f"failed, but not for want of a drain: {load.failures[0]}"
