"""Clients of the example's database: they write and read, and remember what they were told."""

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from kit.service import LOOPBACK, PATIENCE_SECONDS, Answer, exchange


@dataclass
class Guests:
    """Clients that greet guests and ask for them, each on a connection that is kept, until they are stopped.

    Args:
        port: Where the service, or its balancer, is.
        clients: How many there are.
        name: What guests are called.
        pause: The seconds between two requests of a client.
    """

    port: int
    clients: int
    name: str = "guest"
    pause: float = 0.01
    # How often a client was told that a guest had been counted, by the guest's name.
    told: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    refusals: list[Answer] = field(default_factory=list)
    answers: int = 0
    slowest: float = 0.0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self) -> Iterator["Guests"]:
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(self.clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _client(self, number: int) -> None:
        guest = f"{self.name}-{number}"
        connection: http.client.HTTPConnection | None = None
        while not self._stop.is_set():
            if connection is None:
                connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=PATIENCE_SECONDS)
            writes = self.told[guest] == 0 or self.answers % 2 == 0
            began = time.monotonic()
            try:
                if writes:
                    answer = self._ask(connection, "/greetings", "POST", {"name": guest})
                else:
                    answer = self._ask(connection, f"/guests/{guest}", "GET")
                self._note(guest, writes, answer, time.monotonic() - began)
                if answer.headers.get("connection") == "close":
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{guest}: {type(error).__name__}: {error}")
                if connection:
                    connection.close()
                connection = None
            self._stop.wait(self.pause)
        if connection:
            connection.close()

    @staticmethod
    def _ask(connection: http.client.HTTPConnection, path: str, method: str, body: object = None) -> Answer:
        sent = None if body is None else json.dumps(body)
        return exchange(connection, path, method, {"Content-Type": "application/json"} if sent else {}, sent)

    def _note(self, guest: str, wrote: bool, answer: Answer, took: float) -> None:
        with self._lock:
            self.answers += 1
            self.slowest = max(self.slowest, took)
            if answer.status == 503:
                self.refusals.append(answer)
            elif answer.status != 200:
                self.failures.append(f"{guest}: {answer.status} {answer.text}")
            elif wrote:
                self.told[guest] += 1
            elif answer.json()["visits"] < self.told[guest]:
                self.failures.append(f"{guest}: told {self.told[guest]}, found {answer.text}")
