"""What the answer `tracing: opentelemetry` costs while it is off, as a share of a service without it.

Both services run at once, and rounds of requests alternate between them. With wrk, what counts is the ratio
of neighbours: the figures themselves move with the machine. Where others use it too, even that says little.
Then `--instructions` has valgrind count what the service's process carries out for a request, less what it
does in that time anyway: nobody else has a part in it.
"""

import argparse
import http.client
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from common import Round, Running, bake, compare, cores, environment, free_port, load, needed, server

CONNECTIONS = 32
PATH = "/greetings/you"
# How much of a round by valgrind, which makes a service some fifty times as slow.
CLIENTS, REQUESTS, IDLE_SECONDS = 8, 400, 3
SERVICES = {"without": (), "off": ("tracing=opentelemetry",)}


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of traces that are off, as a share of throughput.")
    parser.add_argument("--framework", choices=("starlette", "fastapi"), default="starlette")
    parser.add_argument("--instructions", action="store_true", help="count them with valgrind")
    parser.add_argument("--rounds", type=int, default=30, help="rounds with each service, two at least")
    parser.add_argument("--seconds", type=int, default=1, help="of load in each round")
    options = parser.parse_args()
    valgrind = ("--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=counted.%p")
    needed("valgrind" if options.instructions else "wrk")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        running = {}
        for name, answers in SERVICES.items():
            print(f"Baking the service {name} ...", file=sys.stderr, flush=True)
            (into := Path(folder) / name).mkdir()
            project, port = bake(into, f"web_framework={options.framework}", *answers), free_port()
            env = environment(APP_HTTP_PORT=str(port), APP_ADMIN_PORT="0", APP_LOG_FORMAT="json")
            prefix = (needed("valgrind"), *valgrind) if options.instructions else ()
            command = (*prefix, project / ".venv/bin/python", "-m", next((project / "src").iterdir()).name)
            running[name] = stack.enter_context(server(command, project, port, PATH, cores()[0], env))

        if options.instructions:
            counted = {name: list[float]() for name in SERVICES}
            for _ in range(options.rounds):
                for name, one in running.items():
                    counted[name].append(instructions(one, Path(folder) / name))
                    print(f"{name}: {counted[name][-1]:.0f} a request", file=sys.stderr, flush=True)
            for name, counts in counted.items():
                median, least, most = statistics.median(counts), min(counts), max(counts)
                print(f"{name}: median {median:.0f}, all in {least:.0f}-{most:.0f}")
            off, without = (statistics.median(counted[name]) for name in ("off", "without"))
            print(f"instructions a request, off / without: {off / without:.3f}")
            return

        def measure(name: str) -> Round:
            one = running[name]
            return load(one.process, f"http://127.0.0.1:{one.port}{PATH}", options.seconds, CONNECTIONS)

        for name in SERVICES:
            measure(name)
        off_rounds, rounds = [], [measure("without")]
        for _ in range(options.rounds):
            off_rounds.append(measure("off"))
            rounds.append(measure("without"))
    compare(off_rounds, rounds, ("off", "without"))


def instructions(service: Running, folder: Path) -> float:
    """Return how many instructions a request takes, without what the process does in that time anyway."""

    def counted(what: Callable[[], object]) -> tuple[int, float]:
        control("--zero")
        began = time.monotonic()
        what()
        took = time.monotonic() - began
        control("--dump")
        while True:
            newest = max(folder.rglob("counted.*.*"), key=lambda path: int(path.name.rpartition(".")[2]))
            # Callgrind writes it while we read, and has no signal for its end.
            if found := re.findall(
                r"^(?:summary|totals): (\d+)", newest.read_text(errors="replace"), flags=re.M
            ):
                return int(found[-1]), took
            time.sleep(0.1)

    def control(*arguments: str) -> None:
        command = (needed("callgrind_control"), *arguments, str(service.process))
        subprocess.run(command, check=True, capture_output=True)

    control("--instr=on")
    # What is translated and cached once is not a request's.
    ask(service.port)
    busy, took = counted(lambda: ask(service.port))
    idle, rest = counted(lambda: time.sleep(IDLE_SECONDS))
    control("--instr=off")
    return (busy - idle * took / rest) / REQUESTS


def ask(port: int) -> None:
    """Send the requests of a round."""

    def client(_: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for _ in range(REQUESTS // CLIENTS):
            connection.request("GET", PATH)
            response = connection.getresponse()
            if (response.status, bool(response.read())) != (200, True):
                sys.exit(f"not all requests were answered well: {response.status}")
        connection.close()

    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(client, range(CLIENTS)))


if __name__ == "__main__":
    main()
