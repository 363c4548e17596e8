"""What the chassis costs with a database: one read and one write, held against the plainest app for both.

The service, with each framework, and an app of FastAPI and SQLAlchemy with its defaults on uvicorn use one
PostgreSQL in turn. What counts are medians of ratios of neighbouring rounds, as in table.py.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

from common import Running, bake, cores, environment, free_port, load, needed, paced, server
from table import Row, machine, ratios, say

HERE = Path(__file__).parent
PLAIN = "FastAPI and SQLAlchemy"
FRAMEWORKS = ("starlette", "fastapi")
CONNECTIONS = 16
READ = "/guests/Ada"
ROUTES = {"read": READ, "write": "/greetings"}
# The same for wrk, and for hey, which sends one body: one guest's row is written by one request at a time.
WRK = {"read": (), "write": ("--script", str(HERE / "subjects" / "write.lua"))}
HEY = {"read": (), "write": ("-m", "POST", "-T", "application/json", "-d", '{"name": "Ada"}')}


@contextmanager
def database(project: Path, folder: Path) -> Iterator[dict[str, str]]:
    """Run PostgreSQL as `make dev` does, migrated and seeded; give the settings that lead to it."""
    secrets = folder / "secrets"
    secrets.mkdir()
    env = environment(APP_SECRETS_DIR=str(secrets), TMPDIR=str(folder))
    command = (
        project / ".venv/bin/python",
        "-m",
        "tests.chassis.postgres",
        "sh",
        "-c",
        "env; echo; exec cat",
    )
    with subprocess.Popen(
        command, cwd=project, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "\n")
        settings = dict(line.strip().split("=", 1) for line in lines if line.startswith("APP_DB_"))
        yield {**settings, "APP_SECRETS_DIR": str(secrets)}
        process.stdin.close()


def serve(kind: str, projects: dict[str, Path], settings: dict[str, str]) -> AbstractContextManager[Running]:
    port = free_port()
    project = projects.get(kind, projects["fastapi"])
    if kind == PLAIN:
        password = quote((Path(settings["APP_SECRETS_DIR"]) / "db_password").read_text())
        at = f"{settings['APP_DB_HOST']}:{settings['APP_DB_PORT']}/{settings['APP_DB_NAME']}"
        url = f"postgresql+psycopg://{settings['APP_DB_USER']}:{password}@{at}"
        uvicorn = ("-m", "uvicorn", "--port", str(port), "--loop", "uvloop", "--http", "httptools")
        command, env = [*uvicorn, "plain:app"], environment(DATABASE_URL=url)
    else:
        command = ["-m", "my_service"]
        ports = {"APP_HTTP_PORT": str(port), "APP_ADMIN_PORT": "0"}
        env = environment(APP_LOG_FORMAT="json", **ports, **settings)
    return server((project / ".venv/bin/python", *command), project, port, READ, cores()[0], env)


def measure(servers: dict[str, Running], what: str, rounds: int, seconds: int) -> list[Row]:
    """Measure requests a second, their CPU, and the 99th percentile at half the slowest's rate."""
    rates: dict[str, list[float]] = {kind: [] for kind in servers}
    costs: dict[str, list[float]] = {kind: [] for kind in servers}
    tails: dict[str, list[float]] = {kind: [] for kind in servers}

    def urls(kind: str) -> str:
        return f"http://127.0.0.1:{servers[kind].port}{ROUTES[what]}"

    for number in range(rounds + 1):
        for kind, one in servers.items():
            done = load(one.process, urls(kind), seconds, CONNECTIONS, options=WRK[what])
            # The first is for warming up.
            rates[kind] += [done.rate] if number else []
            costs[kind] += [done.cpu] if number else []
    half = min(map(statistics.median, rates.values())) / 2
    for _ in range(rounds):
        for kind in servers:
            times = sorted(paced(urls(kind), half, seconds, *HEY[what]))
            tails[kind].append(times[int(len(times) * 0.99)])
    rows = []
    for kind in FRAMEWORKS:
        rate, tail = statistics.median(rates[kind]), statistics.median(tails[kind])
        note = f"{rate:.0f} a second, p99 {tail * 1000:.1f} ms"
        cost = f"{statistics.median(costs[kind]) * 1000:.2f} ms"
        rows += [
            Row(
                f"{what}s a second, {kind}", PLAIN, ">=", 1, 1.2, ratios(rates[kind], rates[PLAIN]), note=note
            ),
            Row(
                f"CPU of a {what}, {kind}", PLAIN, "<=", 1, 0.9, ratios(costs[kind], costs[PLAIN]), note=cost
            ),
            Row(f"p99 of a {what}, {kind}", PLAIN, "<=", 1, 0.9, ratios(tails[kind], tails[PLAIN])),
        ]
    say(f"{what}s: " + ", ".join(f"{kind} {statistics.median(rates[kind]):.0f}/s" for kind in servers))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="What the chassis costs with a database, as ratios.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of load in each round")
    options = parser.parse_args()
    for name in ("wrk", "hey", "taskset"):
        needed(name)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        # As root, PostgreSQL runs as another user.
        folder.chmod(0o755)
        projects = {
            kind: bake(folder / kind, f"web_framework={kind}", "database=postgresql", groups=())
            for kind in FRAMEWORKS
        }
        shutil.copy(HERE / "subjects" / "plain.py", projects["fastapi"])
        settings = stack.enter_context(database(projects["fastapi"], folder))
        kinds = (*FRAMEWORKS, PLAIN)
        servers = {kind: stack.enter_context(serve(kind, projects, settings)) for kind in kinds}
        rows = [row for what in ROUTES for row in measure(servers, what, options.rounds, options.seconds)]
    head = ["| measure | against | median (range) | must | aim | |", "|---|---|---|---|---|---|"]
    print("\n".join([f"\n{machine()}", "", *head, *(row.line() for row in rows)]))


if __name__ == "__main__":
    main()
