"""A service behind a real balancer, and balancers whose limits are small enough for a test to reach them."""

import contextlib
import http.client
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kit.balancers import BALANCERS, FRONT, SLOTS, Balancer, places
from kit.service import LOOPBACK, PATIENCE_SECONDS, Answer, Service, ask, exchange, rest
from kit.world import World

# What the files say, and what tests put in its place; all that is ended soon is ended after 1 s or 2 s.
SMALL: Mapping[str, Mapping[str, str]] = {
    "haproxy": {
        "maxconn 6000": "maxconn 200",
        "timeout client 60s": "timeout client 2s",
        "timeout http-request 10s": "timeout http-request 1s",
        "timeout server 60s": "timeout server 3s",
        "timeout queue 5s": "timeout queue 1s",
        "maxconn 2000": "maxconn 20",
    },
    "nginx": {
        "max_conns=2000": "max_conns=20",
        "keepalive_timeout 60s": "keepalive_timeout 2s",
        "client_header_timeout 10s": "client_header_timeout 1s",
        "client_body_timeout 10s": "client_body_timeout 1s",
        "send_timeout 60s": "send_timeout 2s",
    },
    "traefik": {
        "readTimeout: 60s": "readTimeout: 1s",
        "writeTimeout: 60s": "writeTimeout: 2s",
        "idleTimeout: 60s": "idleTimeout: 2s",
        "amount: 6000": "amount: 20",
    },
    "envoy": {
        "max_active_downstream_connections: 6000": "max_active_downstream_connections: 200",
        # The one with the clients; the other one is on the side of the instances.
        "common_http_protocol_options: {idle_timeout: 60s}\n                #": (
            "common_http_protocol_options: {idle_timeout: 2s}\n                #"
        ),
        "request_headers_timeout: 10s": "request_headers_timeout: 1s",
        "request_timeout: 60s": "request_timeout: 1s",
        "stream_idle_timeout: 60s": "stream_idle_timeout: 2s",
        "max_connections: 2000": "max_connections: 20",
        "max_pending_requests: 1000": "max_pending_requests: 10",
    },
}


def small(name: str) -> Balancer:
    """Return a balancer with its limits made small."""
    usual = BALANCERS[name]
    return replace(usual, quicker={**usual.quicker, **SMALL[name]})


@dataclass(frozen=True)
class Site:
    """A balancer on *port*, and the services behind it; tests look at the first one."""

    port: int
    services: list[Service]

    @property
    def service(self) -> Service:
        return self.services[0]

    def dial(self) -> socket.socket:
        """Return a bare connection to the balancer."""
        return socket.create_connection((LOOPBACK, self.port), timeout=PATIENCE_SECONDS)

    def send(self, data: bytes) -> bytes:
        """Send *data* on a connection of its own; return all that is received until the balancer ends it."""
        with self.dial() as client:
            client.sendall(data)
            return rest(client)

    def ask(self, path: str, **options: Any) -> Answer:
        """Send one request through the balancer."""
        return ask(self.port, path, **options)

    def seen(self, path: str) -> list[dict[str, Any]]:
        """Return the lines of the requests for *path* that the first service saw."""
        return [line for line in self.service.lines("request") if line["path"] == path]

    def in_flight(self) -> float:
        """Return how many requests the first service handles now."""
        return self.service.series()["http_server_active_requests"]


def answered(site: Site, path: str, **options: Any) -> int:
    """Return the status of one request, 0 if there was none."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return site.ask(path, **options).status
    return 0


class Kept:
    """A client that does all as it should, on a connection that it keeps."""

    def __init__(self, site: Site) -> None:
        self._connection = http.client.HTTPConnection(LOOPBACK, site.port, timeout=PATIENCE_SECONDS)

    def asks(self) -> None:
        answer = exchange(self._connection, "/trouble/x")
        assert (answer.status, answer.body) == (200, b"x")

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def behind(balancer: Balancer, world: World, folder: Path, services: int = 1) -> Iterator[Site]:
    """Run services on the first ports of the balancer's file, and the balancer; *folder* must exist."""
    ports = places()
    started = [
        world.start(ports={"http": ports[slot], "admin": ports[f"1{slot}"]}, PATIENCE="30")
        for slot in SLOTS[:services]
    ]
    try:
        for service in started:
            service.ready()
        with balancer.running(world.project, folder, ports, "/trouble/x"):
            yield Site(ports[FRONT], started)
    finally:
        for service in started:
            service.kill()
