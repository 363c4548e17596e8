"""What hostile clients do, and how one sees that a service is sound afterwards."""

import contextlib
import os
import re
import select
import socket
import time
from pathlib import Path
from typing import Any

from kit.service import Service, wait_for

# How many times as many examples as in a usual run; `make hostile` sets it.
SCALE = int(os.environ.get("HOSTILE_SCALE", "1"))
# After so many seconds without a byte, no more is expected of an answer.
SILENCE = 0.03
# The least time that a service of these tests keeps a connection that nobody uses (APP_HTTP_KEEP_ALIVE).
IDLE_SECONDS = 4


def some(client: socket.socket, silence: float = SILENCE) -> bytes:
    """Return what is received until the end or a silence of some seconds."""
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
        self._sent = 0
        self._service = service
        self._client = service.dial()
        self._used = time.monotonic()

    def asks(self, path: str = "/trouble/x", last: bytes = b"\r\n\r\nx") -> float:
        """Send a request, whose answer ends with *last*; return how long the answer took."""
        self._sent += 1
        identity = f"behaved-{self._sent}"
        request = f"GET {path} HTTP/1.1\r\nHost: good.test\r\nX-Request-ID: {identity}\r\n\r\n".encode()
        if time.monotonic() - self._used > IDLE_SECONDS and self._is_ended():
            self._client = self._service.dial()
        began = time.perf_counter()
        self._client.sendall(request)
        received = b""
        while not received.endswith(last):
            data = self._client.recv(65536)
            assert data, f"the connection of a well-behaved client ended: {received!r}"
            received += data
        self._used = time.monotonic()
        assert received.startswith(b"HTTP/1.1 200 "), received
        assert identity.encode() in received, received
        return time.perf_counter() - began

    def _is_ended(self) -> bool:
        """Whether the service has ended the connection, as it may when nobody used it for a while."""
        return bool(select.select((self._client,), (), (), 0)[0]) and not self._client.recv(
            1, socket.MSG_PEEK
        )

    def close(self) -> None:
        self._client.close()


# The events of a service to which nothing has happened that it must tell.
USUAL = frozenset({"listening", "ready", "request", "slow begins", "request refused", "connections refused"})


def sound(service: Service, well_known: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Return the lines of a service that nothing may have shaken; each is JSON, and none tells of a fault."""
    assert service.is_running, service.said()[-2000:]
    assert service.err.read_text() == ""
    lines = service.lines()
    odd = [line for line in lines if line["event"] not in USUAL | well_known]
    assert not odd, odd
    failed = [line for line in lines if line.get("status", 200) >= 500]
    assert not failed, failed
    return lines


def descriptors(service: Service) -> int:
    return len(list(Path(f"/proc/{service.pid}/fd").iterdir()))


def memory(service: Service) -> int:
    """Return the resident memory in KiB."""
    status = Path(f"/proc/{service.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0])


def threads(service: Service) -> int:
    return len(list(Path(f"/proc/{service.pid}/task").iterdir()))


def calm(service: Service, then: int) -> None:
    """Wait until no request is in flight and the descriptors are those of *then* again."""
    wait_for(lambda: service.series()["http_server_active_requests"] == 0, "no request in flight")
    wait_for(lambda: descriptors(service) <= then + 3, f"{then} descriptors or less")
