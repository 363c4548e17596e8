"""Run a service under load for long, with one fault after the other, and say what became of it.

The load is half of what the service can do at most. Each fault in turn has a slot of its own while that load
goes on; a failure counts for the fault in whose slot it happens.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[1] / name) for name in ("benchmarks", "tests"))

from common import bake, connections, cores, free_port, load, needed
from kit.hostile import descriptors, memory, send, some, threads
from kit.project import Project
from kit.service import Service, wait_for
from kit.world import World

WORKERS = 16
# As many as it takes to use them up in no time.
FILES, CONNECTIONS = 1024, 600
SLOWHTTPTEST = {
    "slow headers": ("-H",),
    "slow bodies": ("-B", "-s", "8192", "-t", "POST"),
    "slow readers": ("-X", "-w", "10", "-y", "20", "-n", "1", "-z", "8"),
}


class Reader:
    """Reads the service's lines, unless it is told to rest, and counts them by event and level."""

    def __init__(self, fifo: Path) -> None:
        self.events: Counter[str] = Counter()
        self.odd: list[str] = []
        self.reads = threading.Event()
        self.reads.set()
        # Open for writing too, so that the service finds a reader and this one never an end.
        self._descriptor = os.open(fifo, os.O_RDWR)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with os.fdopen(self._descriptor, "rb", buffering=1 << 16) as file:
            for line in file:
                try:
                    self.events[json.loads(line)["event"].partition("\n")[0]] += 1
                except (ValueError, KeyError):
                    self.odd.append(repr(line))
                self.reads.wait()


@dataclass(frozen=True)
class Slot:
    """What happened while a fault went on: *statuses* and *errors* count the load's answers."""

    fault: str
    statuses: dict[str, int]
    errors: dict[str, int]
    p99: float

    @property
    def requests(self) -> int:
        return sum(self.statuses.values()) + sum(self.errors.values())

    @property
    def failures(self) -> dict[str, int]:
        return {name: count for name, count in self.statuses.items() if name != "200"} | self.errors


@dataclass(frozen=True)
class State:
    memory: int
    descriptors: int
    threads: int


class Soak:
    """One service, the load on it, and the faults."""

    def __init__(self, service: Service, reader: Reader, secrets: Path) -> None:
        self.service, self.reader, self.secrets = service, reader, secrets
        self._chance = random.Random(1)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service.port()}/trouble/x"

    def state(self) -> State:
        return State(memory(self.service) // 1024, descriptors(self.service), threads(self.service))

    def slot(self, name: str, fault: Callable[[float], None], rate: float, seconds: float) -> Slot:
        """Keep the load on for *seconds*, with a fault from the first answers to shortly before the last."""
        limits = ("-z", f"{seconds:.0f}s", "-c", str(WORKERS), "-q", str(round(rate / WORKERS)), "-t", "30")
        command = ("taskset", "-c", str(cores()[-1]), needed("hey"), *limits, self.url)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:
            # The connections of the load are those of clients that were there before the trouble.
            wait_for(lambda: connections(clients.pid) == WORKERS, "the connections of the load")
            fault(time.monotonic() + seconds * 0.7)
            said = clients.communicate()[0]
        statuses = {status: int(count) for status, count in re.findall(r"\[(\d+)]\t(\d+) responses", said)}
        errors = {
            re.sub(r"127\.0\.0\.1:\d+", "", what): int(count)
            for count, what in re.findall(r"(?m)^ +\[(\d+)]\t(?!\d+ responses)(?:Get \S+: )?(.*)$", said)
        }
        p99 = re.search(r"99% in ([\d.]+) secs", said)
        return Slot(name, statuses, errors, float(p99[1]) * 1000 if p99 else float("nan"))

    def faults(self) -> dict[str, Callable[[float], None]]:
        """Return each fault by its name: a function that causes it until a time, and puts all back."""
        return {
            "nothing": lambda until: None,
            **{name: partial(self._slow, name) for name in SLOWHTTPTEST},
            "garbage": self._garbage,
            "clients that leave early": self._leave,
            "more connections than the limit": self._crowd,
            "nobody reads the log": self._unread,
            "a dependency flaps": self._flap,
            "no descriptors left": self._descriptors,
            "handlers and tasks that fail": self._fail,
            "hangups and new secrets": self._hang_up,
        }

    def _slow(self, mode: str, until: float) -> None:
        path = {"slow bodies": "/length", "slow readers": "/large"}.get(mode, "/trouble/x")
        url = f"http://127.0.0.1:{self.service.port()}{path}"
        seconds = str(round(until - time.monotonic()))
        limits = ("-c", "300", "-r", "100", "-i", "1", "-p", "2", "-l", seconds)
        with tempfile.TemporaryDirectory() as folder:
            command = (needed("slowhttptest"), *SLOWHTTPTEST[mode], *limits, "-u", url)
            subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _until(self, until: float, each: float) -> Iterator[int]:
        """Count until a time, *each* so many seconds: the pace of a fault."""
        for number in itertools.count():
            if time.monotonic() >= until:
                return
            yield number
            time.sleep(each)

    def _last(self, until: float) -> None:
        """Let a fault last, which nothing but its time ends."""
        time.sleep(max(0.0, until - time.monotonic()))

    def _garbage(self, until: float) -> None:
        for number in self._until(until, 0.01):
            head = b"POST /length HTTP/1.1\r\nHost: x\r\n" if number % 2 else b""
            with self.service.dial() as client:
                send(client, head + self._chance.randbytes(200))

    def _leave(self, until: float) -> None:
        for number in self._until(until, 0.01):
            with self.service.dial() as client:
                send(client, b"GET /slow?s=5 HTTP/1.1\r\nHost: x\r\n\r\n")
                if number % 2:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def _crowd(self, until: float) -> None:
        clients = [self.service.dial() for _ in range(CONNECTIONS + 50)]
        for _ in self._until(until, 1):
            some(clients[-1])
        for client in clients:
            client.close()

    def _unread(self, until: float) -> None:
        self.reader.reads.clear()
        self._last(until)
        self.reader.reads.set()

    def _flap(self, until: float) -> None:
        for number in self._until(until, 0.7):
            self._ask(f"/gate/gate?mode={('shut', 'open', 'hang')[number % 3]}")
        self._ask("/gate/gate?mode=open")

    def _descriptors(self, until: float) -> None:
        # The one who gives them back has to be inside before.
        with self.service.dial() as inside:
            send(inside, b"GET /leak HTTP/1.1\r\nHost: x\r\n\r\n")
            some(inside, 1)
            self._last(until)
            send(inside, b"GET /leak?back HTTP/1.1\r\nHost: x\r\n\r\n")
            some(inside, 1)

    def _fail(self, until: float) -> None:
        paths = ("/group", "/die", "/fail", *(f"/trouble/{kind}" for kind in ("exit", "cancel", "odd")))
        for number in self._until(until, 0.05):
            self._ask(paths[number % len(paths)])

    def _hang_up(self, until: float) -> None:
        for number in self._until(until, 0.2):
            secret = self.secrets / "probe_password"
            secret.with_name("new").write_text(f"secret {number}")
            secret.with_name("new").rename(secret)
            self.service.signal(signal.SIGHUP)

    def _ask(self, path: str) -> None:
        with contextlib.suppress(OSError):
            self.service.ask(path)


@contextlib.contextmanager
def soaked(folder: Path) -> Iterator[Soak]:
    """Bake and start the service that is under test, on the first core."""
    say("Baking the default service")
    project = Project(path := bake(folder / "project"), {"package_name": next((path / "src").iterdir()).name})
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    reader = Reader(fifo)
    (folder / "services").mkdir()
    with World(project, folder / "services") as world:
        secrets = world.secrets()
        shell = ("sh", "-c", f'exec "$@" > {fifo}', "-")
        prefix = ("taskset", "-c", str(cores()[0]), "prlimit", f"--nofile={FILES}", "--", *shell)
        ports = {"http": free_port(), "admin": free_port()}
        limit = {"APP_HTTP_MAX_CONNECTIONS": str(CONNECTIONS)}
        service = world.start(prefix=prefix, secrets=secrets, ports=ports, **limit)
        wait_for(lambda: reader.events["ready"], "the service being ready")
        yield Soak(service, reader, secrets)


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |")


def main() -> int:
    """Return 1 if a request of the load failed, a line is no JSON or the service did not end as it should."""
    parser = argparse.ArgumentParser(description="A service under load and faults, for long.")
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    for name in ("hey", "wrk", "slowhttptest", "taskset", "prlimit"):
        needed(name)
    with tempfile.TemporaryDirectory() as folder, soaked(Path(folder)) as soak:
        # The service has the first core for itself.
        os.sched_setaffinity(0, {cores()[-1]})
        most = load(soak.service.pid, soak.url, 10).rate
        say(f"At most {most:.0f} requests a second")
        faults = soak.faults()
        # Each fault comes at least twice.
        seconds = min(60.0, options.minutes * 60 / (2 * len(faults)))
        began, slots = time.monotonic(), list[Slot]()
        states = [soak.state()]
        for name in itertools.cycle(faults):
            if time.monotonic() - began >= options.minutes * 60:
                break
            slots.append(soak.slot(name, faults[name], most / 2, seconds))
            states.append(soak.state())
            failed = (
                ", ".join(f"{count} of {what}" for what, count in slots[-1].failures.items()) or "none failed"
            )
            say(
                f"{(time.monotonic() - began) / 60:5.1f} min, {name}: {slots[-1].requests} requests, "
                f"{failed}, p99 {slots[-1].p99:.1f} ms, {states[-1]}"
            )
        sound = report(most, slots, states)
        written, lost = soak.reader.events["request"], int(soak.service.series()["log_lines_lost_total"])
        status = soak.service.stop(60)
    said = ", ".join(f"{count} of {event}" for event, count in soak.reader.events.most_common())
    odd = len(soak.reader.odd)
    print(f"\nLines: {said}; lost while nobody read: {lost}; not JSON: {odd}. Exit status: {status}.")
    return int(not sound or odd > 0 or status != 0 or written == 0)


def report(most: float, slots: list[Slot], states: list[State]) -> bool:
    """Print the tables; return whether no request failed."""
    sent = sum(slot.requests for slot in slots)
    print(f"\nAt most {most:.0f} requests a second; {sent} sent at half of that rate.\n")
    row("fault", "requests", "failed", "p99, ms")
    row(*["---"] * 4)
    for name in dict.fromkeys(slot.fault for slot in slots):
        same = [slot for slot in slots if slot.fault == name]
        failures = sum((Counter(slot.failures) for slot in same), Counter[str]())
        causes = ", ".join(f"{count} of {what}" for what, count in failures.items())
        row(name, sum(slot.requests for slot in same), causes or 0, f"{max(slot.p99 for slot in same):.1f}")
    print()
    row("of the service", "at the start", "after a quarter", "at the end")
    row(*["---"] * 4)
    chosen = [states[0], states[len(states) // 4], states[-1]]
    row("memory, MiB", *(state.memory for state in chosen))
    row("descriptors", *(state.descriptors for state in chosen))
    row("threads", *(state.threads for state in chosen))
    return not any(slot.failures for slot in slots)


if __name__ == "__main__":
    sys.exit(main())
