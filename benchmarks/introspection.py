"""What it costs to look: requests a second of the traffic port, left alone and looked at.

Bakes the default service, then alternates rounds of wrk without and with scrapes of /metrics and probes of
/-/ready. What counts is the ratio of neighbours: the figures themselves move with the machine, by more than
one look a second costs. So there are many looks a second, and what they cost together is divided by them.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from common import Round, bake, compare, cpu_seconds, environment, load, needed

START_SECONDS = 60
LOOKS = 500
CONNECTIONS = 32


@contextmanager
def running(project: Path, log: Path) -> Iterator[tuple[int, str, str]]:
    """Run the service on free ports; give its process id and the addresses of both ports, traffic first."""
    env = environment(APP_HTTP_PORT="0", APP_ADMIN_PORT="0", APP_LOG_FORMAT="json")
    package = next((project / "src").iterdir()).name
    with log.open("wb") as out:
        service = subprocess.Popen(
            (project / ".venv/bin/python", "-m", package), cwd=project, env=env, stdout=out
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while '"ready"' not in (said := log.read_text()):
            if service.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the service did not start:\n{said}")
            time.sleep(0.01)
        http, admin = (re.search(rf'"{name}":\s*"([^"]+)"', said) for name in ("http", "admin"))
        assert http is not None
        assert admin is not None
        yield service.pid, f"http://{http[1]}", f"http://{admin[1]}"
    finally:
        service.terminate()
        service.wait(30)


def scrape_and_probe(admin: str) -> None:
    for path in ("/metrics", "/-/ready"):
        with urlopen(f"{admin}{path}", timeout=10) as answer:
            answer.read()


@contextmanager
def looked_at(admin: str, looks: int) -> Iterator[list[float]]:
    """Scrape and probe so many times a second; give the seconds that each pair took."""
    took: list[float] = []
    end = threading.Event()

    def look() -> None:
        due = time.monotonic() + 0.5 / looks
        while not end.wait(max(0.0, due - time.monotonic())):
            began = time.monotonic()
            scrape_and_probe(admin)
            took.append(time.monotonic() - began)
            due += 1 / looks

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield took
    finally:
        end.set()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="The cost of scraping and probing, as a share of throughput."
    )
    parser.add_argument("--rounds", type=int, default=20, help="rounds with looks, two at least")
    parser.add_argument("--seconds", type=int, default=3, help="of load in each round")
    parser.add_argument("--looks", type=int, default=20, help="scrapes and probes a second")
    options = parser.parse_args()
    needed("wrk")
    with tempfile.TemporaryDirectory() as folder:
        print("Baking the default service ...", flush=True)
        project = bake(Path(folder) / "project")
        with running(project, Path(folder) / "log") as (process, http, admin):
            url = f"{http}/greetings/you"
            load(process, url, 3, CONNECTIONS)
            alone, looked, looks = (
                [load(process, url, options.seconds, CONNECTIONS)],
                list[Round](),
                list[float](),
            )
            for number in range(options.rounds):
                with looked_at(admin, options.looks) as took:
                    looked.append(load(process, url, options.seconds, CONNECTIONS))
                looks += took
                alone.append(load(process, url, options.seconds, CONNECTIONS))
                around = f"{alone[-2].rate:.0f} and {alone[-1].rate:.0f}/s"
                print(f"{number + 1}: alone {around}, looked at {looked[-1].rate:.0f}/s", flush=True)
            before = cpu_seconds(process)
            for _ in range(LOOKS):
                scrape_and_probe(admin)
            look = (cpu_seconds(process) - before) / LOOKS
    rates = compare(looked, alone, ("looked at", "alone"))
    cost = (1 - statistics.median(rates)) / options.looks
    print(f"one look a second costs:            {cost:.2%} of throughput")
    print(f"a scrape and a probe under this load: median {statistics.median(looks) * 1000:.0f} ms")
    print(f"a scrape and a probe take {look * 1000:.2f} ms of CPU: {look:.2%} of one core at one a second")


if __name__ == "__main__":
    main()
