"""Clients as a load balancer has them: connections kept alive, long and short requests, bodies.

Nothing is sent twice: what fails, failed. Each request has an id of its own, which the service logs.
"""

import asyncio
import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

CLIENTS = 60
# A request that takes longer has failed.
PATIENCE_SECONDS = 30.0
# What came of loads, for people: conftest.py shows the rows after the test that added them.
ROWS: list[str] = []


@dataclass(frozen=True)
class Outcome:
    id: str
    method: str
    began: float
    took: float
    asked: float
    failure: str | None

    @property
    def overhead(self) -> float:
        """The time beyond what the request itself asked for."""
        return self.took - self.asked


class Load:
    """Sends requests to *port* until it is told to stop; half of them quick, half slow ones or bodies."""

    def __init__(self, port: int, name: str) -> None:
        self.outcomes: list[Outcome] = []
        self._port = port
        self._name = name
        self._stop = threading.Event()
        self._random = random.Random(name)
        self._sent = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.failure]

    def p99(self) -> float:
        """The 99th percentile of the overheads, in milliseconds."""
        return statistics.quantiles((outcome.overhead for outcome in self.outcomes), n=100)[98] * 1000

    @contextmanager
    def running(self) -> Iterator["Load"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()

    async def _run(self) -> None:
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))

    async def _client(self) -> None:
        await asyncio.sleep(self._random.uniform(0, 0.5))
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stop.is_set():
            # A client that sees the end of a connection before it sends opens another one.
            if connection and connection[0].at_eof():
                connection[1].close()
                connection = None
            self._sent += 1
            identity = f"{self._name}-{self._sent}"
            kind = self._random.choices(("quick", "slow", "post", "slow post"), (50, 20, 20, 10))[0]
            asked = self._random.uniform(0, 2) if "slow" in kind else 0.0
            body = self._random.randbytes(self._random.randrange(1, 20000)) if "post" in kind else b""
            method = "POST" if body else "GET"
            head = (
                f"{method} /work?s={asked:.3f} HTTP/1.1\r\nHost: service.test\r\nX-Request-ID: {identity}\r\n"
                + (f"Content-Length: {len(body)}\r\n" if body else "")
                + "\r\n"
            )
            began = time.monotonic()
            failure, kept = None, False
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    connection = connection or await asyncio.open_connection("127.0.0.1", self._port)
                    connection[1].write(head.encode() + body)
                    failure, kept = await self._answer(connection[0], identity, body)
            except (OSError, EOFError, ValueError, TimeoutError) as error:
                failure = f"{type(error).__name__}: {error}"
            took = time.monotonic() - began
            self.outcomes.append(Outcome(identity, method, began, took, asked, failure))
            if not kept and connection:
                connection[1].close()
                connection = None
            await asyncio.sleep(self._random.uniform(0, 0.02))
        if connection:
            connection[1].close()

    async def _answer(
        self, reader: asyncio.StreamReader, identity: str, body: bytes
    ) -> tuple[str | None, bool]:
        """Read an answer; return what is wrong with it, and whether the connection can be used again."""
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
        }
        said = await reader.readexactly(int(headers["content-length"]))
        kept = headers.get("connection", "").lower() != "close"
        if status.split()[1] != "200":
            return f"{status} {said[:80]!r}", kept
        if headers["x-request-id"] != identity or said.decode() != sha256(body).hexdigest():
            return "another request's answer", kept
        return None, kept
