"""What the answer `tracing: opentelemetry` costs while it is off, as a share of a service without it.

Both services run at once, and rounds of wrk alternate between them. What counts is the ratio of neighbours:
the figures themselves move with the machine.
"""

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from common import Round, bake, compare, cores, environment, free_port, load, needed, server

CONNECTIONS = 32
PATH = "/greetings/you"
SERVICES = {"without": (), "off": ("tracing=opentelemetry",)}


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of traces that are off, as a share of throughput.")
    parser.add_argument("--rounds", type=int, default=30, help="rounds with each service, two at least")
    parser.add_argument("--seconds", type=int, default=1, help="of load in each round")
    options = parser.parse_args()
    needed("wrk")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        running = {}
        for name, answers in SERVICES.items():
            print(f"Baking the service {name} ...", file=sys.stderr, flush=True)
            (into := Path(folder) / name).mkdir()
            project, port = bake(into, *answers), free_port()
            env = environment(APP_HTTP_PORT=str(port), APP_ADMIN_PORT="0", APP_LOG_FORMAT="json")
            command = (project / ".venv/bin/python", "-m", next((project / "src").iterdir()).name)
            running[name] = stack.enter_context(server(command, project, port, PATH, cores()[0], env))

        def measure(name: str) -> Round:
            return load(
                running[name].process,
                f"http://127.0.0.1:{running[name].port}{PATH}",
                options.seconds,
                CONNECTIONS,
            )

        for name in SERVICES:
            measure(name)
        off, without = [], [measure("without")]
        for _ in range(options.rounds):
            off.append(measure("off"))
            without.append(measure("without"))
    compare(off, without, ("off", "without"))


if __name__ == "__main__":
    main()
