"""A generated service with routes for trouble, and the bytes that hostile clients send it."""

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from conftest import Project
from service import Service, wait_for

# How many times as many examples as in a usual run; `make hostile` sets it.
SCALE = int(os.environ.get("HOSTILE_SCALE", "1"))

CANARIES = {"probe_password": "canary-5f1c", "probe_key": "canary-9ae2", "admin_token": "canary-c07d"}
SILENCE = 0.03

# The probe of the project's own tests, with what only hostile tests need.
APP = """
import asyncio, gc, itertools, os, subprocess, sys, types

import svcs
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from {package}.chassis import cli, server
from tests.chassis import probe

for name, value in {limits!r}.items():
    setattr(server, name, value)
kept, leaked = [], []


async def die(request):
    async def work():
        raise RuntimeError("the task died")
    task = asyncio.create_task(work())
    if "kept" in request.query_params:
        kept.append(task)
    return PlainTextResponse("begun")


async def group(request):
    async def work(n):
        await asyncio.sleep(0)
        raise RuntimeError(f"part {{n}}")
    async with asyncio.TaskGroup() as tasks:
        for n in range(3):
            tasks.create_task(work(n))


async def leak(request):
    if "back" in request.query_params:
        while leaked:
            os.close(leaked.pop())
        return PlainTextResponse("given back")
    try:
        while True:
            leaked.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return PlainTextResponse(f"{{len(leaked)}} {{error}}")


async def allocate(request):
    return PlainTextResponse(str(len(bytearray(1 << 34))))


async def large(request):
    return PlainTextResponse(bytes(300_000))


async def connections(request):
    gc.disable()
    return PlainTextResponse(str(sum(isinstance(one, server.Protocol) for one in gc.get_objects())))


async def child(request):
    said = subprocess.run(["env"], capture_output=True, text=True).stdout
    return PlainTextResponse(said + open("/proc/self/environ").read())


def create_app(config, registry):
    app = probe.create_app(config, registry)

    async def reach(request):
        "Every object that can be reached, by its repr; values themselves are looked at from outside."
        config.probe.password.reveal()
        found = []
        # What start-up made is kept from the collector, and so from view.
        gc.unfreeze()
        words = [w.encode()[::-1].decode() for w in request.query_params.getlist("w")]
        skipped = (types.FrameType, types.CodeType, types.ModuleType)
        tracked = gc.get_objects()
        # The collector does not track what holds only texts, so what is referred to is looked at too.
        untracked = (dict, tuple, list, set)
        held = (one for each in tracked for one in gc.get_referents(each) if isinstance(one, untracked))
        for one in itertools.chain(tracked, held):
            if one is words or one is found or one is tracked or isinstance(one, skipped):
                continue
            try:
                said = repr(one)
            except Exception:
                continue
            if any(word in said for word in words):
                found.append(f"{{type(one)}} {{said[:200]}}")
        return JSONResponse([len(gc.get_objects()), found])

    async def fail(request):
        secret = config.probe.password.reveal()
        raise RuntimeError(f"a message without it, of {{len(secret)}} and {{config.probe.password!r}}")

    more = {{"die": die, "group": group, "leak": leak, "allocate": allocate, "large": large}}
    more |= {{"connections": connections, "child": child}}
    more |= {{"reach": reach, "fail": fail}}
    app.router.routes.extend(Route(f"/{{name}}", route) for name, route in more.items())
    return app


def service():
    given = probe.service()
    return probe.cli.Service(given.name, probe.Config, probe.register, create_app, informs=[probe.Lamp])


if __name__ == "__main__":
    sys.exit(cli.main(service().name, service, sys.argv[1:], os.environ))
"""


class World:
    """Starts hostile services of one project, and ends them."""

    def __init__(self, project: Project, folder: Path) -> None:
        self.project = project
        self._folder = folder
        self._started: list[Service] = []

    def secrets(self) -> Path:
        """Return a new folder with the canaries as secrets."""
        folder = self._folder / f"secrets{len(list(self._folder.iterdir()))}"
        folder.mkdir()
        for name, value in CANARIES.items():
            (folder / name).write_text(value)
        return folder

    def start(
        self,
        limits: Mapping[str, float] | None = None,
        prefix: Sequence[str | Path] = (),
        secrets: Path | None = None,
        **env: str,
    ) -> Service:
        """Start one, with other constants in its server if *limits* says so, without waiting for it."""
        folder = self._folder / f"service{len(self._started)}"
        folder.mkdir()
        script = folder / "app.py"
        script.write_text(APP.format(package=self.project.package, limits=dict(limits or {})))
        given = {
            "APP_HTTP_PORT": "0",
            "APP_ADMIN_PORT": "0",
            "APP_SECRETS_DIR": str(secrets or self.secrets()),
            "APP_LOG_FORMAT": "json",
            "APP_PROBE_NAME": "hostile",
            "PYTHONPATH": str(self.project.path),
        }
        command = (*prefix, self.project.path / ".venv/bin/python", script)
        self._started.append(Service(command, folder, self.project.path, **given | env))
        return self._started[-1]

    def end(self) -> None:
        for service in self._started:
            if service.process.poll() is None:
                service.process.kill()
            service.process.wait()


@contextlib.contextmanager
def world_of(project: Project, folder: Path) -> Iterator[World]:
    world = World(project, folder)
    try:
        yield world
    finally:
        world.end()


def dial(service: Service, port: int | None = None, timeout: float = 20) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port or service.http), timeout=timeout)


def rest(client: socket.socket) -> bytes:
    """Return all that comes until the other side ends the connection, in whatever way."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            received += data
    return received


def some(client: socket.socket, silence: float = SILENCE) -> bytes:
    """Return what comes until the end or a silence of some seconds."""
    client.settimeout(silence)
    received = b""
    with contextlib.suppress(OSError):
        while data := client.recv(65536):
            received += data
    return received


def send(client: socket.socket, data: bytes) -> None:
    """Send, as far as the other side still listens."""
    with contextlib.suppress(OSError):
        client.sendall(data)


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", received)]


class Behaved:
    """A client that does all as it should, on a connection that it keeps."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._sent = 0
        self._client = dial(service)

    def asks(self) -> float:
        """Send a request, and return how long its answer took."""
        self._sent += 1
        identity = f"behaved-{self._sent}"
        began = time.perf_counter()
        self._client.sendall(
            b"GET /trouble/x HTTP/1.1\r\nHost: good.test\r\nX-Request-ID: %b\r\n\r\n" % identity.encode()
        )
        received = b""
        while not received.endswith(b"\r\n\r\nx"):
            data = self._client.recv(65536)
            assert data, f"the connection of a well-behaved client ended: {received!r}"
            received += data
        assert received.startswith(b"HTTP/1.1 200 "), received
        assert identity.encode() in received, received
        return time.perf_counter() - began

    def close(self) -> None:
        self._client.close()


def sound(service: Service, well_known: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Return the lines of a service that nothing may have shaken; each is JSON, and none tells of a fault."""
    assert service.process.poll() is None, service.out.read_text()[-2000:]
    assert service.err.read_text() == ""
    lines = service.lines()
    usual = {"listening", "ready", "request", "slow begins", "refused", "connections refused", *well_known}
    odd = [line for line in lines if line["event"] not in usual]
    assert not odd, odd
    failed = [line for line in lines if line.get("status", 200) >= 500]
    assert not failed, failed
    return lines


def descriptors(service: Service) -> int:
    return len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))


def memory(service: Service) -> int:
    """Return the resident memory in KiB."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


def threads(service: Service) -> int:
    return len(list(Path(f"/proc/{service.process.pid}/task").iterdir()))


def calm(service: Service, then: int) -> None:
    """Wait until no request is in flight and the descriptors are those of *then* again."""
    wait_for(lambda: service.series()["http_server_active_requests"] == 0, "no request in flight")
    wait_for(lambda: descriptors(service) <= then + 3, f"{then} descriptors or less")
