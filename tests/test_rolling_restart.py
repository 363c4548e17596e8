"""No request is lost: instances come, go, hang and die behind the real balancers, under constant load."""

import contextlib
import http.client
import os
import random
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Project, tool
from load import Load
from service import Service, wait_for

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("ROLLING_ROUNDS", "3"))
DOCS = ROOT / "docs" / "load-balancers"
# The configurations' ports; their times are made short, to fit this delay by the rule that stands there.
SLOTS = ("8000", "8010", "8020", "8030")
DELAY = "1"
# The service under load says which requests it began to handle: what is repeated, is said twice.
APP = """
import asyncio
import hashlib
import os
import sys

from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.chassis import probe


async def work(request):
    probe.log.info("handled")
    body = await request.body()
    await asyncio.sleep(float(request.query_params["s"]))
    return PlainTextResponse(hashlib.sha256(body).hexdigest())


def create_app(config, registry):
    app = probe.create_app(config, registry)
    app.router.routes.append(Route("/work", work, methods=["GET", "POST"]))
    return app


def service():
    given = probe.service()
    return probe.cli.Service(given.name, probe.Config, probe.register, create_app)


sys.exit(probe.cli.main(service().name, service, [], os.environ))
"""


@dataclass(frozen=True)
class Balancer:
    """A balancer: its files, what is made quicker in them, and how it is started."""

    files: tuple[Path, ...]
    quicker: dict[str, str]
    command: Callable[[Path], tuple[str | Path, ...]]
    # Whether it asks for readiness, and so takes out what does not answer.
    asks: bool = True

    @contextlib.contextmanager
    def running(self, project: Project, folder: Path, ports: Mapping[str, int]) -> Iterator[None]:
        """Run it on the *ports* that stand for those in its files, in the *folder*."""
        texts = {path.name: (project.path / path).read_text(encoding="utf-8") for path in self.files}
        for usual in self.quicker:
            assert usual in "".join(texts.values()), f"{[*texts]} no longer have {usual!r}"
        for name, text in texts.items():
            for usual, quick in self.quicker.items():
                text = text.replace(usual, quick.replace("FOLDER", str(folder)))
            text = re.sub(rf"\b({'|'.join(ports)})\b", lambda match: str(ports[match[0]]), text)
            (folder / name).write_text(text)
        command = self.command(folder)
        with (folder / "balancer.log").open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for(lambda: ask(ports["8080"], "/work?s=0")[0] == 200, f"{command[0]} to answer")
            # Most balancers take every instance for ready until their first check.
            time.sleep(1)
            yield
        finally:
            process.terminate()
            process.wait(10)


def nginx(folder: Path) -> tuple[str | Path, ...]:
    program = tool("nginx")
    conf = folder / "main.conf"
    temp = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    conf.write_text(
        f"daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log;"
        f"{'user root;' if os.geteuid() == 0 else ''}"
        f"events {{}} http {{ access_log off; {temp} include {folder}/nginx.conf; }}"
    )
    return program, "-p", folder, "-c", conf


BALANCERS = {
    "haproxy": Balancer(
        (Path("deploy/systemd/haproxy.cfg"),),
        {"inter 1s": "inter 250ms", "timeout check 1s": "timeout check 500ms"},
        lambda folder: (tool("haproxy"), "-db", "-f", folder / "haproxy.cfg"),
    ),
    "nginx": Balancer(
        (DOCS / "nginx.conf",), {"keepalive_timeout 3s": "keepalive_timeout 500ms"}, nginx, asks=False
    ),
    "traefik": Balancer(
        (DOCS / "traefik.yaml", DOCS / "traefik-service.yaml"),
        {
            "/etc/traefik/": "FOLDER/traefik-",
            "interval: 1s": "interval: 250ms",
            "unhealthyInterval: 1s": "unhealthyInterval: 250ms",
            "timeout: 1s": "timeout: 500ms",
        },
        lambda folder: (tool("traefik"), f"--configfile={folder}/traefik.yaml"),
    ),
    "envoy": Balancer(
        (DOCS / "envoy.yaml",),
        {"interval: 1s": "interval: 0.25s", "timeout: 1s": "timeout: 0.5s"},
        lambda folder: (
            *(tool("envoy"), "-c", folder / "envoy.yaml", "--concurrency", "2", "--use-dynamic-base-id"),
            *("--log-level", "error"),
        ),
    ),
}


def free_ports(number: int) -> list[int]:
    """Find ports that no outgoing connection is given meanwhile."""
    free: list[int] = []
    for port in random.sample(range(20000, 30000), 1000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            free.append(port)
        if len(free) == number:
            return free
    pytest.fail("no free ports")


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
        self.ports = dict(zip(("8080", *SLOTS, *admin), free_ports(9), strict=True))
        (self.folder / "secrets").mkdir()
        (self.folder / "secrets" / "probe_password").write_text("hunter2")
        (self.folder / "app.py").write_text(APP)

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
            "PYTHONPATH": str(self.project.path),
            **env,
        }
        command = (self.project.path / ".venv/bin/python", self.folder / "app.py")
        self.slots[slot] = Instance(command, folder, self.project.path, **settings)
        self.instances.append(self.slots[slot])
        return slot

    def stop(self, slot: str) -> int:
        """Stop the instance on *slot* as a service manager does; return its exit status."""
        process = self.slots[slot].process
        process.terminate()
        status = process.wait(30)
        del self.slots[slot]
        return status

    def replace(self, **env: str) -> int:
        """Put a new instance in the place of the oldest; return the exit status of that one."""
        oldest = next(iter(self.slots))
        self.slots[self.start(**env)].started()
        return self.stop(oldest)

    @contextlib.contextmanager
    def load(self, event: str) -> Iterator[Load]:
        """Put the balancer under load; say afterwards what came of it."""
        load = Load(self.ports["8080"], re.sub(r"\W+", "-", f"{self.name} {event}"))
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
            print(f"\n{ROWS[-1]}", end="", flush=True)

    def no_request_lost(self, load: Load) -> None:
        assert not load.failures, f"{len(load.failures)} failed, first {load.failures[0]}"
        assert not self.repeated, f"repeated: {self.repeated}"


ROWS: list[str] = []


@pytest.fixture(scope="module")
def project(cookies_session: Any, uv: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The default service, with its environment, for all tests of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path_factory.mktemp("no-tools")))
        result = cookies_session.bake(extra_context={"deploy_to": "systemd"}, template=str(ROOT))
    assert result.exception is None, result
    project = Project(result.project_path, result.context)
    project.run(uv, "sync", "--quiet")
    return project


@pytest.fixture(scope="module", params=BALANCERS)
def site(
    request: pytest.FixtureRequest, project: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    site = Site(request.param, BALANCERS[request.param], project, tmp_path_factory.mktemp(request.param))
    try:
        for slot in [site.start() for _ in range(3)]:
            site.slots[slot].started()
        with site.balancer.running(project, site.folder, site.ports):
            yield site
    finally:
        for instance in site.slots.values():
            instance.process.kill()
            instance.process.wait()


def ask(port: int, path: str, source: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
    """Ask from the address *source*; the status is 0 when nobody answers."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=2, source_address=(source, 0))
    with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(client):
        client.request(
            "GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = client.getresponse()
        return answer.status, answer.read().decode()
    return 0, ""


@pytest.fixture(autouse=True)
def shown(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Show the counts where people see them."""
    before = len(ROWS)
    yield
    for row in ROWS[before:]:
        record_property("shown", row)


def test_nothing_happens(site: Site) -> None:
    with site.load("none") as load:
        time.sleep(4)
    site.no_request_lost(load)


def test_every_instance_is_replaced(site: Site) -> None:
    with site.load(f"{ROUNDS} rounds of replacing all three") as load:
        for _ in range(ROUNDS * 3):
            assert site.replace() == 0
    site.no_request_lost(load)


def test_an_instance_is_not_ready_for_ten_seconds(site: Site) -> None:
    with site.load("not ready for 10 s") as load:
        late = site.slots[site.start(APP_PROBE_START_DELAY="10")]
        late.started()
        wait_for(late.handled, "a request to the instance that became ready")
        site.stop(next(iter(site.slots)))
    site.no_request_lost(load)


def test_an_instance_is_stuck(site: Site) -> None:
    """It leaves the rotation, where readiness is asked for, and comes back."""
    slot, instance = next(iter(site.slots.items()))
    with site.load("event loop stuck for 5 s") as load:
        time.sleep(0.5)
        began = time.monotonic()
        instance.ask(site.ports[slot], "/block?s=5")
        ended = time.monotonic()
        before = len(instance.handled())
        wait_for(lambda: len(instance.handled()) > before + 50, "requests after the instance moved again")
    site.no_request_lost(load)
    caught = [
        outcome for outcome in load.outcomes if began + 2 < outcome.began < ended and outcome.overhead > 1
    ]
    assert not (site.balancer.asks and caught), f"sent to the stuck instance: {caught}"


def test_an_instance_is_killed(site: Site) -> None:
    """Only what was in flight on it may fail, and of that only what must not be repeated."""
    slot, instance = next(iter(site.slots.items()))
    with site.load("kill -9") as load:
        time.sleep(1.5)
        instance.process.kill()
        killed = time.monotonic()
        instance.process.wait()
        del site.slots[slot]
        time.sleep(1)
        site.slots[site.start()].started()
        time.sleep(1)
    # A balancer may hear of the end a moment later, and have sent one more on a connection that it kept.
    lost = [outcome for outcome in load.failures if outcome.began > killed + 0.1]
    assert not lost, f"failed though the instance was gone: {lost}"
    assert {outcome.method for outcome in load.failures} <= {"POST"}, load.failures
    assert "POST" not in site.repeated.values(), f"repeated: {site.repeated}"


FORGED = {
    "X_Forwarded_For": "192.0.2.66, 127.0.0.1",
    "X_Forwarded_Proto": "https",
    "X_Forwarded_Host": "evil.example",
    "Forwarded": "for=192.0.2.66;proto=https;host=evil.example",
}


def seen(site: Site, port: int) -> tuple[str, list[str]]:
    """Ask with forged headers, from an address that is no proxy's; return what service and log say."""
    name = f"/address/{port}"
    status, origin = ask(port, name, "127.0.0.9", Host="service.test", **FORGED)
    assert status == 200

    def clients() -> list[str]:
        lines = [line for instance in site.slots.values() for line in instance.lines("request")]
        return [line["client"] for line in lines if line["path"] == name]

    return origin, wait_for(clients, "the request's line")


def test_forged_headers_change_nothing(site: Site) -> None:
    assert seen(site, site.ports["8080"]) == ("http 127.0.0.9 service.test", ["127.0.0.9"])


@pytest.mark.parametrize("site", ["haproxy"], indirect=True)
def test_the_client_is_known_through_a_chain_of_two_proxies(
    site: Site, project: Project, tmp_path: Path
) -> None:
    front, *unused = free_ports(4)
    ports = {"8080": front, "8000": site.ports["8080"], **dict(zip(SLOTS[1:], unused, strict=True))}
    with BALANCERS["nginx"].running(project, tmp_path, ports):
        assert seen(site, front) == ("http 127.0.0.9 service.test", ["127.0.0.9"])


@pytest.mark.parametrize("site", ["envoy"], indirect=True)
def test_envoy_obeys_what_a_draining_instance_says(site: Site, project: Project, tmp_path: Path) -> None:
    """By its checks alone, once a minute, it would hear of it much too late."""
    rare = replace(site.balancer, quicker={"interval: 1s": "interval: 60s"})
    ports = site.ports | {"8080": free_ports(1)[0]}
    slot, instance = next(iter(site.slots.items()))
    with rare.running(project, tmp_path, ports), Load(ports["8080"], "obeys").running() as load:
        first = len(instance.handled())
        wait_for(lambda: len(instance.handled()) > first + 20, "requests")
        instance.process.terminate()
        time.sleep(0.4)
        before = len(instance.handled())
        assert instance.process.wait(30) == 0
        del site.slots[slot]
        assert len(instance.handled()) == before
    assert not load.failures
    site.slots[site.start()].started()


def test_without_the_drain_requests_are_lost(site: Site) -> None:
    """The test of these tests: they see what goes wrong."""
    slot = site.start(APP_DRAIN_DELAY="0", APP_DRAIN_TIMEOUT="0")
    site.slots[slot].started()
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
