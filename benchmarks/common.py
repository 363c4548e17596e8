"""What the benchmarks have in common: a service to measure, load, and figures of processes."""

import csv
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

TEMPLATE = Path(__file__).parents[1]
START_SECONDS = 180
# Clients that keep to a rate.
WORKERS = 16


def needed(name: str) -> str:
    """Return the path of a program, or end with a word on where it comes from."""
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if found := shutil.which(name, path=beside):
        return found
    sys.exit(f"{name} is missing (Debian: apt install {name}; uv: make .venv/ready)")


def bake(folder: Path, *answers: str, groups: Sequence[str] = ("--no-dev",)) -> Path:
    """Make a project with the default answers but for *answers* (name=value), and its environment."""
    command = (sys.executable, "-m", "cookiecutter", "--no-input", "--default-config", "-o", folder, TEMPLATE)
    subprocess.run((*command, *answers), check=True, stdout=subprocess.DEVNULL)
    project = next(folder.iterdir())
    subprocess.run((needed("uv"), "sync", "--quiet", "--compile-bytecode", *groups), cwd=project, check=True)
    return project


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without what a service would heed, and with *variables*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("APP_", "PORT"))}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | variables


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as sock:
        port: int = sock.getsockname()[1]
        return port


def answers(port: int, path: str) -> bool:
    """Whether *path* is answered with 200 at the first try."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return client.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


@dataclass(frozen=True)
class Running:
    """A server that has answered: its process, its port, and the seconds from its start to that answer."""

    process: int
    port: int
    started_in: float


@contextmanager
def server(
    command: Sequence[str | Path], folder: Path, port: int, path: str, core: int, env: Mapping[str, str]
) -> Iterator[Running]:
    """Run a server on one core, with its output into a pipe that is read on another."""
    began = time.perf_counter()
    process = subprocess.Popen(
        ("taskset", "-c", str(core), *command),
        cwd=folder,
        env=dict(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    reader = subprocess.Popen(
        ("taskset", "-c", str(cores()[-1]), "cat"), stdin=process.stdout, stdout=subprocess.DEVNULL
    )
    try:
        deadline = began + START_SECONDS
        while not answers(port, path):
            if process.poll() is not None or time.perf_counter() > deadline:
                sys.exit(f"did not start: {command}")
            time.sleep(0.001)
        yield Running(process.pid, port, time.perf_counter() - began)
    finally:
        process.terminate()
        process.wait(30)
        reader.wait(30)


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Round:
    """What one round of load came to: requests, their rate a second, and the server's CPU seconds for one."""

    count: int
    rate: float
    cpu: float


def load(
    process: int,
    url: str,
    seconds: int,
    connections: int = 64,
    core: int | None = None,
    options: Sequence[str] = (),
) -> Round:
    """Ask as fast as it goes, from the last core unless *core* is given; *options* are wrk's."""
    pinned = ("taskset", "-c", str(cores()[-1] if core is None else core))
    command = (*pinned, needed("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", *options, url)
    before = cpu_seconds(process)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    used = cpu_seconds(process) - before
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        sys.exit(f"not all requests were answered well:\n{done.stdout}")
    rate, count = (
        re.search(pattern, done.stdout) for pattern in (r"Requests/sec:\s+([\d.]+)", r"(\d+) requests in")
    )
    assert rate is not None
    assert count is not None
    return Round(int(count[1]), float(rate[1]), used / int(count[1]))


def paced(url: str, rate: float, seconds: float, *options: str) -> list[float]:
    """Ask so many times a second, from the last core; return the seconds that each answer took."""
    limits = ("-z", f"{seconds:g}s", "-c", str(WORKERS), "-q", str(round(rate / WORKERS)), "-o", "csv")
    command = ("taskset", "-c", str(cores()[-1]), needed("hey"), *limits, *options, url)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    answers = list(csv.DictReader(done.stdout.splitlines()))
    if not answers or {answer["status-code"] for answer in answers} != {"200"}:
        sys.exit(f"not all requests were answered well: {done.stdout[:500]}")
    return [float(answer["response-time"]) for answer in answers]


def listening(process: int) -> list[int]:
    """Return the TCP ports on which a process listens."""
    said = subprocess.run(("ss", "-Hltnp"), check=True, capture_output=True, text=True).stdout
    return [
        int(line.split()[3].rpartition(":")[2]) for line in said.splitlines() if f"pid={process}," in line
    ]


def connections(process: int) -> int:
    """Return how many TCP connections a process has."""
    said = subprocess.run(("ss", "-Htnp"), check=True, capture_output=True, text=True).stdout
    return said.count(f"pid={process},")


def cpu_seconds(process: int) -> float:
    """Return what a process has used so far, all its threads together."""
    # What clock_getcpuclockid(3) returns on Linux. /proc/PID/stat has hundredths of a second only.
    return time.clock_gettime(~process << 3 | 2)


def proportional_memory(process: int) -> int:
    """Return the PSS of a process in bytes: its own pages, and its share of those that it shares."""
    found = re.search(r"(?m)^Pss:\s+(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text())
    assert found is not None
    return int(found[1]) * 1024


def compare(those: Sequence[Round], without: Sequence[Round], names: tuple[str, str]) -> list[float]:
    """Print how each of *those* rounds compares with its neighbours; return the ratios of their rates.

    So a drift of the machine does not count. There is one more round *without*; *names* are what people read.
    """
    with_it, plain = names
    neighbours = list(pairwise(without))
    rates = [one.rate * 2 / (a.rate + b.rate) for one, (a, b) in zip(those, neighbours, strict=True)]
    cpus = [one.cpu * 2 / (a.cpu + b.cpu) for one, (a, b) in zip(those, neighbours, strict=True)]
    print(f"throughput, {with_it} / {plain}: {spread(rates)}")
    print(f"throughput, {plain} / {plain}: {spread([b.rate / a.rate for a, b in neighbours])}")
    print(f"CPU a request, {with_it} / {plain}: {spread(cpus)}")
    print(f"CPU a request, {plain} / {plain}: {spread([b.cpu / a.cpu for a, b in neighbours])}")
    return rates


def spread(ratios: Sequence[float]) -> str:
    low, median, high = statistics.quantiles(ratios, n=4)
    return f"median {median:.3f}, half in {low:.3f}-{high:.3f}, all in {min(ratios):.3f}-{max(ratios):.3f}"
